package search

import (
	"fmt"
	"sync"
	"time"

	"reprise/internal/metrics"
	"reprise/internal/units"
	"reprise/traceformat"
)

// Why a run was stopped early.
const (
	StopHopeless = "hopeless" // it fails, however the rest would go
	StopOverload = "overload"
)

// A Watch says what a [Guard] looks at.
type Watch struct {
	Objectives []metrics.Objective `json:"slos"`
	Confidence float64             `json:"confidence"`
	Planned    int64               `json:"requests"`
	Laps       int                 `json:"laps,omitempty"` // that they are of one trace
	Closed     bool                `json:"closed_loop,omitempty"`
	Warmup     time.Duration       `json:"warmup_ns,omitempty"` // requests scheduled before it are not judged
}

// A Guard stops a run whose outcome is certain. Its methods may be called from
// different goroutines.
type Guard struct {
	watch Watch
	mu    sync.Mutex
	tally *tally
	ended int64
	seen  []Sample
	every int // samples are kept of each so many
	calls int
	grew  int // looks in a row that saw overload
}

// NewGuard returns the guard of a run that is about to begin.
func NewGuard(w Watch) *Guard {
	return &Guard{watch: w, tally: newTally(w.Objectives, w.Planned, w.Laps), every: 1}
}

// Add tells of a request that ended.
func (g *Guard) Add(row *traceformat.Row) {
	r := metrics.Measure(row)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ended++
	if r.Zero < warmup(g.watch.Warmup, g.watch.Closed) {
		g.tally.planned = max(1, g.tally.planned-1)
		return
	}
	g.tally.add(&r)
}

// Look is how often Check wants to be called.
const Look = 200 * time.Millisecond

// Bounds of stopping. A run that failed goes on until it has shown at what rate
// the server completes: what the next load is guessed from.
const (
	leastSent  = 0.3 // of the planned requests
	leastEnded = 100 // requests
	maxSamples = 1 << 10
	sureLooks  = 3
)

// Check says whether to stop, and why; an empty reason says no.
func (g *Guard) Check(at time.Duration, sent, inFlight int64) (reason, text string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.calls++; g.calls%g.every == 0 {
		g.seen = append(g.seen, Sample{at.Seconds(), sent, inFlight})
		if len(g.seen) == maxSamples {
			for i := range len(g.seen) / 2 {
				g.seen[i] = g.seen[2*i+1]
			}
			g.seen, g.every = g.seen[:len(g.seen)/2], 2*g.every
		}
	}
	if float64(sent) < leastSent*float64(g.watch.Planned) || g.ended < min(leastEnded, g.watch.Planned/4) || sent >= g.watch.Planned {
		// Once all is sent, a stop would save little and cut off answers.
		return "", ""
	}
	if !g.watch.Closed {
		if o, sure := detect(g.seen); o == nil || !sure {
			g.grew = 0
		} else if g.grew++; g.grew >= sureLooks {
			return StopOverload, fmt.Sprintf("overload: %s requests in flight and growing, %s arrive and %s end",
				units.Count(o.To), units.Rate(o.Arrivals), units.Rate(o.Completions))
		}
	}
	for _, j := range g.tally.judge(g.watch.Confidence, true) {
		if j.Verdict == Fail {
			return StopHopeless, fmt.Sprintf("hopeless: %s requests have missed %s, and even if all others met it, too few would",
				units.Count(j.Of-j.Met), j.Objective)
		}
	}
	return "", ""
}
