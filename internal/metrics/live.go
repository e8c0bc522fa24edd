package metrics

import (
	"sync"
	"time"

	"reprise/internal/stats"
	"reprise/traceformat"
)

// Live keeps the figures of a run that a person watches. One goroutine adds
// rows while others take snapshots; it costs about 400 KB, however long the run.
type Live struct {
	mu      sync.Mutex
	done    int64
	failed  int64
	aborted int64
	shed    int64
	lag     *stats.Hist
	ttft    *stats.Hist
	history []received // of the last rateSpan
}

type received struct {
	at     time.Duration
	tokens int64
}

// rateSpan is the time over which tokens/s are taken.
const rateSpan = 5 * time.Second

// LiveFigures are the figures at one moment. A latency of 0 is unknown.
type LiveFigures struct {
	Done    int64 // ended, of whatever kind but shed: successes, failures, hang-ups
	Failed  int64
	Aborted int64
	Shed    int64

	LagP99           time.Duration // of |sent - scheduled|
	TTFTP50, TTFTP99 time.Duration // from the schedule, of successes
	TokensPerSecond  float64       // over the last seconds
}

// NewLive returns an empty Live.
func NewLive() *Live { return &Live{lag: stats.NewHist(), ttft: stats.NewHist()} }

// Add takes one row, which stays the caller's.
func (l *Live) Add(row *traceformat.Row) {
	r := Measure(row)
	l.mu.Lock()
	defer l.mu.Unlock()
	if r.Class == Shed {
		l.shed++
		return
	}
	l.done++
	switch r.Class {
	case Failed:
		l.failed++
	case Aborted:
		l.aborted++
	case OK:
		if ttft, ok := r.FromSchedule(r.TTFT).Get(); ok {
			l.ttft.Add(ttft, 1)
		}
	}
	if lag, ok := r.Lag.Get(); ok {
		l.lag.Add(max(lag.Total, -lag.Total), 1)
	}
}

// Snapshot returns the figures. now is any clock that does not go back, and
// tokens how many were received up to now, in answers that still go on too: the
// rate is their increase over the snapshots of the last 5 s.
func (l *Live) Snapshot(now time.Duration, tokens int64) LiveFigures {
	l.mu.Lock()
	defer l.mu.Unlock()
	f := LiveFigures{Done: l.done, Failed: l.failed, Aborted: l.aborted, Shed: l.shed}
	if l.lag.N() > 0 {
		f.LagP99 = time.Duration(l.lag.Quantile(0.99))
	}
	if l.ttft.N() > 0 {
		f.TTFTP50, f.TTFTP99 = time.Duration(l.ttft.Quantile(0.5)), time.Duration(l.ttft.Quantile(0.99))
	}
	l.history = append(l.history, received{now, tokens})
	// The oldest that is kept is the last one at least rateSpan ago.
	for len(l.history) > 2 && now-l.history[1].at >= rateSpan {
		l.history = l.history[1:]
	}
	if first := l.history[0]; now > first.at {
		f.TokensPerSecond = float64(tokens-first.tokens) / (now - first.at).Seconds()
	}
	return f
}
