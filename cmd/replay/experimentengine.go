package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"reprise/backends"
	"reprise/backends/launch"
	"reprise/internal/durable"
	"reprise/replay/experiment"
)

// Files of a run whose engine was started for it, and the folder of the logs of
// engines, which may be up for several runs.
const (
	engineFile    = "engine.json"
	engineLogFile = "engine.log"
	engineLogs    = "engines"
)

// Bounds of engine.log: how the engine began, and its end so far.
const (
	engineLogHead = 64 << 10
	engineLogTail = 64 << 10
)

// portWait is how long, beyond the time that an engine has to end, a port may
// stay in use by one that a killed process left to its keeper.
const portWait = 15 * time.Second

// An engineHost has the engines that this process launches: one at a time, so that none
// takes memory from another.
type engineHost struct {
	up      *launch.Engine
	info    *backends.Info // of the server that was asked last
	restart bool           // begin each run with a new one
}

// An engineRecord is engine.json.
type engineRecord struct {
	Launch  *launch.Spec   `json:"launch"`
	PID     int            `json:"pid,omitempty"`
	Started time.Time      `json:"started_at,omitzero"`
	Took    time.Duration  `json:"ready_after_ns,omitempty"`
	Reused  bool           `json:"reused"` // it was up for an earlier run already
	Info    *backends.Info `json:"info,omitempty"`
	End     *launch.End    `json:"end,omitempty"`
	Error   string         `json:"error,omitempty"`
}

// begin sees to it that the engine of a cell is up.
func (a *ab) begin(ctx context.Context, cell *experiment.Cell, dir string) (context.Context, func() error, error) {
	m := &a.engines
	if m.up != nil && (m.restart || !m.up.Spec.Same(cell.Launch) || !m.up.Answers(ctx)) {
		if err := m.stop(); err != nil {
			return nil, nil, err
		}
	}
	logs := filepath.Join(a.output, engineLogs)
	if err := os.MkdirAll(logs, 0o755); err != nil {
		return nil, nil, err
	}
	record := engineRecord{Launch: cell.Launch, Reused: m.up != nil}
	if m.up == nil {
		a.say("  starting %s", strings.Join(cell.Launch.Command, " "))
		log := filepath.Join(logs, filepath.Base(dir)+".log")
		e, err := launch.Start(ctx, *cell.Launch, log, cell.Launch.StopTimeout+portWait)
		if err != nil {
			record.Error = err.Error()
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return nil, nil, errors.Join(err, record.write(dir, log))
		}
		a.say("  ready after %.1f s", e.Took.Seconds())
		m.up, m.info = e, nil
	}
	e := m.up
	record.PID, record.Started, record.Took = e.PID, e.Started, e.Took
	running, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-e.Gone():
			cancel(e.Died())
		case <-running.Done():
		}
	}()
	return running, func() error {
		cancel(nil)
		record.Info = m.info
		var died error
		switch {
		case e.Exit() != "":
			died = e.Died()
		case ctx.Err() == nil && !e.Answers(ctx):
			died = e.Silent()
		}
		if died != nil {
			record.Error = died.Error()
			end, err := e.Stop()
			record.End, m.up = &end, nil
			died = errors.Join(died, err)
		}
		return errors.Join(died, record.write(dir, e.LogPath))
	}, nil
}

// write puts the record and what there is of the log beside a run.
func (r *engineRecord) write(dir, log string) error {
	if err := durable.WriteJSON(filepath.Join(dir, engineFile), r); err != nil {
		return err
	}
	if _, err := os.Stat(log); errors.Is(err, os.ErrNotExist) {
		return nil // it was not started
	}
	f, err := os.Create(filepath.Join(dir, engineLogFile))
	if err != nil {
		return err
	}
	return errors.Join(launch.CopyLog(f, log, engineLogHead, engineLogTail), f.Close())
}

// stop ends the engine that is up.
func (m *engineHost) stop() error {
	if m.up == nil {
		return nil
	}
	_, err := m.up.Stop()
	m.up = nil
	if err != nil {
		return fmt.Errorf("ending the engine: %w", err)
	}
	return nil
}
