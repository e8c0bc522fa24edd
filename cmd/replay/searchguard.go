package main

import (
	"context"
	"sync"
	"time"

	"reprise/replay"
	"reprise/replay/search"
	"reprise/traceformat"
)

// A stoppedError ends a run whose outcome is certain.
type stoppedError struct{ reason, text string }

func (e *stoppedError) Error() string { return "stopped: " + e.text }

// guard watches the run of a search, and ends the context that it returns as
// soon as the outcome is certain. The run's rows go through record; relax ends
// the watching. Of other runs it changes nothing.
func (p *part) guard(ctx context.Context, to func(*traceformat.Row) error, progress *replay.Progress) (running context.Context, record func(*traceformat.Row) error, relax func()) {
	if p == nil || p.Watch == nil {
		return ctx, to, func() {}
	}
	g := search.NewGuard(*p.Watch)
	running, stop := context.WithCancelCause(ctx)
	done := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		tick := time.NewTicker(search.Look)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
			}
			s, started := progress.Snapshot()
			if !started || s.Elapsed < 0 {
				continue
			}
			if reason, text := g.Check(s.Elapsed, s.Sent+s.Shed, s.InFlight); reason != "" {
				stop(&stoppedError{reason, text})
				return
			}
		}
	})
	record = func(row *traceformat.Row) error {
		g.Add(row)
		return to(row)
	}
	return running, record, func() {
		close(done)
		watching.Wait()
		stop(nil)
	}
}
