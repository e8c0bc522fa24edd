package replay

import (
	"fmt"
	"io"
	"strings"
	"time"

	"reprise/internal/metrics"
	"reprise/internal/units"
)

// A View shows a run as it goes: redrawn in place on a terminal, one line each
// Every where the output is kept (a file, a CI log).
type View struct {
	Out      io.Writer
	Terminal bool
	Plan     *Plan
	Progress *Progress
	Live     *metrics.Live
	// Telemetry, if set, has a line of its own.
	Telemetry *Telemetry
	// Label, if set, says which run of several it is, and Rest how long those
	// after it take.
	Label string
	Rest  time.Duration
	drawn int // lines on the screen
}

// Every is the time between two lines of a View that is no terminal.
const Every = 10 * time.Second

// refresh is the time between two frames of a terminal.
const refresh = 250 * time.Millisecond

// Run draws until done is closed.
func (v *View) Run(done <-chan struct{}) {
	period := Every
	if v.Terminal {
		period = refresh
	}
	v.Live.Snapshot(0, 0) // the rate counts from here
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-done:
			v.erase()
			return
		case <-tick.C:
			v.draw()
		}
	}
}

func (v *View) draw() {
	s, started := v.Progress.Snapshot()
	if !started {
		return
	}
	l := v.Live.Snapshot(s.Elapsed, s.Tokens)
	left := "draining"
	switch d := v.Plan.Span() - s.Elapsed; {
	case s.Sent+s.Shed >= v.Plan.Rows:
	case v.Plan.Waits():
		left = "as the answers come"
	default:
		left = units.Clock(max(0, d)) + " left"
	}
	counts := fmt.Sprintf("sent %s of %s", units.Count(s.Sent), units.Count(v.Plan.Rows))
	if s.Shed > 0 {
		counts += fmt.Sprintf(" (%s shed)", units.Count(s.Shed))
	}
	counts += fmt.Sprintf("  in flight %s  done %s  failed %s", units.Count(s.InFlight), units.Count(l.Done), units.Count(l.Failed))
	lag := "send lag p99 " + units.Duration(l.LagP99)
	tokens := fmt.Sprintf("%s tok/s", units.Count(int64(l.TokensPerSecond)))
	ttft := fmt.Sprintf("TTFT p50 %s p99 %s", units.Duration(l.TTFTP50), units.Duration(l.TTFTP99))
	elapsed := units.Clock(max(0, s.Elapsed))
	host := v.Telemetry.Line()
	label := v.label(s.Elapsed)
	if !v.Terminal {
		if label != "" {
			elapsed = label + "  " + elapsed
		}
		if host != "" {
			host = "  " + host
		}
		fmt.Fprintf(v.Out, "%s  %s  %s  %s  %s  %s%s\n", elapsed, counts, lag, tokens, ttft, left, host)
		return
	}
	share := float64(s.Sent+s.Shed) / float64(max(1, v.Plan.Rows))
	v.erase()
	if label != "" {
		fmt.Fprintln(v.Out, label)
		v.drawn++
	}
	fmt.Fprintf(v.Out, "%s %s  %s  %s\n  %s\n  %s  %s  %s\n", bar(share, 30), elapsed, left, units.Percent(share), counts, lag, tokens, ttft)
	v.drawn += 3
	if host != "" {
		fmt.Fprintf(v.Out, "  %s\n", host)
		v.drawn++
	}
}

// label says which run of several this is, and how long all take.
func (v *View) label(elapsed time.Duration) string {
	if v.Label == "" {
		return ""
	}
	return fmt.Sprintf("%s, %s left", v.Label, units.About(v.Rest+max(0, v.Plan.Span()-elapsed)))
}

// erase takes the last frame off the screen.
func (v *View) erase() {
	if v.drawn > 0 {
		fmt.Fprintf(v.Out, "\x1b[%dA\x1b[J", v.drawn)
		v.drawn = 0
	}
}

func bar(share float64, width int) string {
	full := min(width, int(share*float64(width)))
	return "[" + strings.Repeat("█", full) + strings.Repeat("·", width-full) + "]"
}
