package experiment

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"reprise/backends/launch"
)

// Hooks of a run.
const (
	beforeRun = "before-run"
	afterRun  = "after-run"
)

// hookGrace is the time from asking a hook to end to making it.
const hookGrace = 5 * time.Second

// tailBytes of a hook's output are shown where it fails.
const tailBytes = 2 << 10

// hook runs a shell command in a process group of its own, its output in
// hook.log of the run directory. What it leaves in the background goes on, as an
// engine that it started should; it is killed, with its whole group, if timeout
// passes or ctx ends.
//
// The environment is that of this process and REPRISE_HOOK (before-run or
// after-run), REPRISE_CELL, REPRISE_REPEAT, REPRISE_RUN (its number) and
// REPRISE_URL.
func hook(ctx context.Context, what, command, dir string, r Run, url string, timeout time.Duration) error {
	log, err := os.OpenFile(filepath.Join(dir, HookFile), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	if _, err := fmt.Fprintf(log, "--- %s, %s\n", what, time.Now().UTC().Format(time.RFC3339)); err != nil {
		return err
	}
	begin, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("it was not done after %v (--hook-timeout)", timeout))
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "REPRISE_HOOK="+what, "REPRISE_CELL="+r.Cell, "REPRISE_REPEAT="+strconv.Itoa(r.Repeat),
		"REPRISE_RUN="+strconv.Itoa(r.Number), "REPRISE_URL="+url)
	OwnGroup(cmd)
	cmd.Cancel = func() error { endGroup(cmd); return nil }
	cmd.WaitDelay = hookGrace
	err = cmd.Run()
	if ctx.Err() != nil {
		killGroup(cmd) // whatever of it did not listen
		err = context.Cause(ctx)
	}
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	tail := make([]byte, tailBytes)
	if end, serr := log.Seek(0, io.SeekEnd); serr == nil {
		n, _ := log.ReadAt(tail, max(begin, end-tailBytes))
		tail = tail[:max(0, n)]
	} else {
		tail = nil
	}
	return fmt.Errorf("%s of %s: %w%s", what, r.Cell, err, launch.Quoted(string(tail)))
}
