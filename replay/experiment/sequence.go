package experiment

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"reprise/internal/units"
	"reprise/replay"
)

// A Sequence plays the runs of an experiment that are not finished, in order.
type Sequence struct {
	Folder *Folder
	// Ready, if set, is called before each run, its hook done. It waits until the
	// servers are ready and idle, and returns what this cell's server can take;
	// notes are kept with the run.
	Ready func(ctx context.Context, c *Cell) (t Target, notes []string, err error)
	// Narrow, if set, returns what both targets can take. Runs that sent what the
	// narrower one cannot are set aside and played again.
	Narrow func(a, b Target) Target
	// Same, if set, says whether a cell's requests for two targets are the same
	// after all: a smaller context matters only if something was longer.
	Same func(c *Cell, a, b Target) (bool, error)
	// Begin, if set, is called before each run of a cell that has Launch, after
	// the hook before it: it sees to it that the engine is up. The context it
	// returns is that of the run, and ends with the engine. end is called when the
	// run is over, however it went, unless Begin failed; what it returns fails the
	// run.
	Begin func(ctx context.Context, c *Cell, dir string) (running context.Context, end func() error, err error)
	// Play plays one run into the directory dir, which may exist. It ends early
	// if ctx does.
	Play func(ctx context.Context, p Progress, dir string) error
	// Retries is how often a run that failed is tried again.
	Retries int
	// HookTimeout bounds each hook.
	HookTimeout time.Duration
	// Say tells the user what happens.
	Say func(format string, a ...any)
}

// Progress says which run is played.
type Progress struct {
	Run
	Of     int // runs in all
	Target Target
	// Rest is a guess of the time that the runs after this one take.
	Rest time.Duration
	// Left is Rest and this run.
	Left time.Duration
}

// A FatalError ends a sequence: what went wrong would go wrong in every run.
type FatalError struct{ Err error }

func (e *FatalError) Error() string { return e.Err.Error() }
func (e *FatalError) Unwrap() error { return e.Err }

// Run plays what is not finished. Runs that failed on an earlier occasion are
// tried again. It returns an error wrapping [context.Canceled] if ctx ended, a
// [*FatalError], or that the folder cannot be written. That runs failed is no
// error: the state says so.
//
// When ctx ends, a hook before a run is killed, a run ends as Play ends it, and
// the hook after it is still run; force ends that too.
func (s *Sequence) Run(ctx, force context.Context) error {
	if err := s.tidy(force); err != nil {
		return err
	}
	runs := s.Folder.State.Runs
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		i := slices.IndexFunc(runs, func(r RunStatus) bool { return r.Status == Pending })
		if i < 0 {
			return nil
		}
		if err := s.attempt(ctx, force, i); err != nil {
			return err
		}
	}
}

// tidy makes the state that a dead process left one to go on from.
func (s *Sequence) tidy(force context.Context) error {
	for i := range s.Folder.State.Runs {
		r := &s.Folder.State.Runs[i]
		dir := s.Folder.RunPath(r.Run)
		switch r.Status {
		case Finished:
			if played(dir) == nil {
				continue
			}
			s.Say("%s is not where it was: it is played again", r.Run)
			r.Status, r.Attempts = Pending, 0
			if err := s.Folder.aside(r.Run, "partial"); err != nil {
				return err
			}
		case Running:
			// Whatever the hook before it started may be there still.
			cell := s.Folder.Plan.Cell(r.Cell)
			err := played(dir)
			if cell.After != "" {
				if mkdir := os.MkdirAll(dir, 0o755); mkdir != nil {
					return mkdir
				}
				s.Say("%s was cut short: its %s comes first", r.Run, afterRun)
				err = errors.Join(err, hook(force, afterRun, cell.After, dir, r.Run, cell.URL, s.HookTimeout))
			}
			if err == nil {
				r.Status = Finished
				break
			}
			r.Status = Pending
			if err := s.Folder.aside(r.Run, "partial"); err != nil {
				return err
			}
		case Failed:
			r.Status, r.Attempts = Pending, 0
		}
	}
	return s.save()
}

func (s *Sequence) save() error {
	return writeJSON(filepath.Join(s.Folder.Path, StateFile), s.Folder.State)
}

// attempt plays run i once.
func (s *Sequence) attempt(ctx, force context.Context, i int) error {
	state := s.Folder.State
	r := &state.Runs[i]
	cell := s.Folder.Plan.Cell(r.Cell)
	dir := s.Folder.RunPath(r.Run)
	// What lies there is of nobody that the state knows of.
	if err := s.Folder.aside(r.Run, "partial"); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	r.Status, r.Started, r.Took, r.Notes = Running, time.Now(), 0, nil
	if err := s.save(); err != nil {
		return err
	}
	rest := state.left(s.Folder.Plan, i)
	p := Progress{Run: r.Run, Of: len(state.Runs), Rest: rest, Left: state.left(s.Folder.Plan, -1)}
	s.Say("run %d of %d, %s repeat %d, %s left", r.Number, p.Of, r.Cell, r.Repeat, units.About(p.Left))

	err := s.play(ctx, r, cell, p, dir)
	if cell.After != "" {
		err = errors.Join(err, hook(force, afterRun, cell.After, dir, r.Run, cell.URL, s.HookTimeout))
	}
	r.Took = time.Since(r.Started)
	fatal, isFatal := errors.AsType[*FatalError](err)
	switch {
	case err == nil:
		r.Attempts++
		r.Status, r.Reason = Finished, ""
		return s.save()
	case ctx.Err() != nil:
		r.Status = Pending
		return errors.Join(context.Cause(ctx), s.Folder.aside(r.Run, "partial"), s.save())
	case isFatal:
		r.Status, r.Reason = Pending, fatal.Error()
		return errors.Join(fatal, s.Folder.aside(r.Run, "failed"), s.save())
	}
	r.Attempts++
	r.Reason = err.Error()
	r.Status = Pending
	again := "it is tried again"
	if r.Attempts > s.Retries {
		r.Status, again = Failed, fmt.Sprintf("after %d attempts it counts as failed", r.Attempts)
	}
	s.Say("%s failed: %v\n%s; what there is of it is kept beside it", r.Run, err, again)
	return errors.Join(s.Folder.aside(r.Run, "failed"), s.save())
}

// play is what can fail of an attempt before the hook after it.
func (s *Sequence) play(ctx context.Context, r *RunStatus, cell *Cell, p Progress, dir string) error {
	if cell.Before != "" {
		if err := hook(ctx, beforeRun, cell.Before, dir, r.Run, cell.URL, s.HookTimeout); err != nil {
			return err
		}
	}
	if s.Begin == nil || cell.Launch == nil {
		return s.readyAndPlay(ctx, r, cell, p, dir)
	}
	running, end, err := s.Begin(ctx, cell, dir)
	if err != nil {
		return err
	}
	return errors.Join(s.readyAndPlay(running, r, cell, p, dir), end())
}

// readyAndPlay plays a run whose engine is up or about to be.
func (s *Sequence) readyAndPlay(ctx context.Context, r *RunStatus, cell *Cell, p Progress, dir string) error {
	state := s.Folder.State
	if s.Ready != nil {
		t, notes, err := s.Ready(ctx, cell)
		if err != nil {
			return err
		}
		r.Notes = notes
		if n := s.Narrow(state.Target, t); n != state.Target {
			if err := s.replan(n, cell); err != nil {
				return err
			}
		}
	}
	p.Target = state.Target
	if err := s.Play(ctx, p, dir); err != nil {
		return err
	}
	return played(dir)
}

// replan narrows the target, and sets finished runs aside that were played for a
// wider one.
func (s *Sequence) replan(t Target, cell *Cell) error {
	state := s.Folder.State
	was := state.Target
	state.Target = t
	n := 0
	same := map[string]bool{}
	for i := range state.Runs {
		r := &state.Runs[i]
		if r.Status != Finished {
			continue
		}
		if s.Same != nil {
			alike, asked := same[r.Cell]
			if !asked {
				var err error
				if alike, err = s.Same(s.Folder.Plan.Cell(r.Cell), was, t); err != nil {
					return errors.Join(err, s.save())
				}
				same[r.Cell] = alike
			}
			if alike {
				continue
			}
		}
		if err := s.Folder.aside(r.Run, "replanned"); err != nil {
			return err
		}
		r.Status, r.Attempts = Pending, 0
		n++
	}
	if n > 0 {
		s.Say("the server of %s takes less than those before it: what was played so far (%d of %d runs) has what it cannot take, and is played again", cell.Name, n, len(state.Runs))
	}
	return s.save()
}

// played says why a run directory is not that of a finished run.
func played(dir string) error {
	m, err := replay.ReadManifest(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("there is no run.json")
	}
	if err != nil {
		return err
	}
	if m.State != replay.StateComplete {
		return fmt.Errorf("the run is %s", m.State)
	}
	if m.Summary == nil || m.Summary.Requests.OK == 0 {
		return errors.New("no request succeeded")
	}
	_, err = os.Stat(filepath.Join(dir, replay.TraceFile))
	return err
}
