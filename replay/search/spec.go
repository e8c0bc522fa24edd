package search

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"reprise/internal/metrics"
)

// An Axis is what load means.
type Axis string

const (
	Speedup     Axis = "speedup"     // recorded arrivals, so many times as fast
	Rate        Axis = "rate"        // requests a second of an arrival process
	Concurrency Axis = "concurrency" // sessions at a time in a closed loop
)

// A Kind says what a run is for.
type Kind string

const (
	Floor   Kind = "floor"   // one request at a time: what every latency begins from
	Burst   Kind = "burst"   // all at once: what the server completes at most
	Probe   Kind = "search"  // a load that the search tries
	Curve   Kind = "curve"   // a share of the saturation throughput
	Confirm Kind = "confirm" // the answer once more
)

// Requests of the two runs that a search begins with.
const (
	FloorRequests = 20
	leastBurst    = 100
	mostBurst     = 400
)

// A Spec says what is looked for.
type Spec struct {
	By         Axis                `json:"by"`
	Objectives []metrics.Objective `json:"slos"`
	Confidence float64             `json:"confidence"`
	Within     float64             `json:"within"` // the search ends when the failing load is at most this share above the passing one
	Runs       int                 `json:"runs_max"`
	Min        float64             `json:"min,omitempty"` // bounds of the load, 0: none
	Max        float64             `json:"max,omitempty"`
	Requests   int64               `json:"requests_per_run"`
	Fixed      bool                `json:"requests_fixed,omitempty"` // no run has more, however many are in the system
	// Base is how many requests a second arrive at load 1; 0 in a closed loop.
	Base    float64 `json:"requests_per_second_at_load_1,omitempty"`
	Curve   bool    `json:"curve,omitempty"`   // runs that are left play shares of the saturation throughput
	Confirm int     `json:"confirm,omitempty"` // runs of the answer, beyond Runs
}

// leastRuns are the first two and one load.
const leastRuns = 3

// Validate reports every problem with s, not just the first.
func (s *Spec) Validate() error {
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	switch s.By {
	case Speedup, Rate, Concurrency:
	default:
		bad("--by is %q, want speedup, rate or concurrency", s.By)
	}
	if len(s.Objectives) == 0 {
		bad("no --slo: which latency shall be kept?")
	}
	if !(s.Confidence >= 0.5 && s.Confidence < 1) {
		bad("--confidence is %v, want 0.5 to below 1", s.Confidence)
	}
	if !(s.Within >= 0.001 && s.Within <= 1) {
		bad("--within is %v, want 0.001 to 1", s.Within)
	}
	if s.Runs < leastRuns {
		bad("--runs is %d, want at least %d: two show what to begin with", s.Runs, leastRuns)
	}
	if !(s.Min >= 0 && s.Max >= 0) || math.IsInf(s.Min+s.Max, 0) || s.Max > 0 && s.Min >= s.Max {
		bad("--min %v and --max %v bound no loads", s.Min, s.Max)
	}
	if s.By == Concurrency && (s.Min != math.Trunc(s.Min) || s.Max != math.Trunc(s.Max)) {
		bad("--min and --max count sessions: want whole numbers")
	}
	if s.Confirm < 0 {
		bad("--confirm is %d, want 0 or more", s.Confirm)
	}
	return errors.Join(errs...)
}

// DefaultRequests is how many requests a run needs so that the strictest
// objective can be decided with a few misses.
func DefaultRequests(objectives []metrics.Objective, confidence float64) int64 {
	n := 300.0
	for _, o := range objectives {
		n = max(n, 10/(1-o.Share), 2*float64(LeastRequests(o, confidence)))
	}
	return int64(math.Ceil(min(n, 100_000)))
}

// LeastRequests is how many requests, all of which meet an objective, prove it.
func LeastRequests(o metrics.Objective, confidence float64) int64 {
	n := int64(1)
	for j := (Judged{Objective: o}); ; n += max(1, n/50) {
		j.Met, j.Of, j.Effective = n, n, float64(n)
		if j.settle(confidence); j.Verdict == Pass {
			return n
		}
	}
}

// A Run is one that was played.
type Run struct {
	Number   int           `json:"number"` // from 1
	Kind     Kind          `json:"kind"`
	Load     float64       `json:"load,omitempty"` // of the axis; floor and burst have none
	Dir      string        `json:"dir"`            // in the folder of the search
	Why      string        `json:"why"`
	Planned  int64         `json:"requests_planned"`
	Verdict  Verdict       `json:"verdict,omitempty"` // of what was played; a floor or a burst has none unless it fails
	Stopped  string        `json:"stopped,omitempty"` // a Stop constant
	Started  time.Time     `json:"started_at"`
	Took     time.Duration `json:"took_ns"`
	Invalid  []string      `json:"invalid,omitempty"` // why the run's fidelity verdict is that
	Warnings []string      `json:"warnings,omitempty"`
	*Measured
}

// Judge sets the verdict from what was measured.
func (r *Run) Judge() {
	v := worst(r.Objectives)
	switch {
	case r.Overload != nil || r.Stopped != "":
		v = Fail
	case r.Lagging && v == Pass:
		v = Undecided // it may be that latencies only have not grown far enough
	}
	r.Verdict = ""
	if r.Kind != Burst {
		r.Verdict = v
	}
}

// lives is how many times as long as a request a run is to last: one that is
// shorter ends before a queue shows.
const lives = 20

// mostRequests bounds what a run is lengthened to.
const mostRequests = 1 << 17

// length is how many requests a run has. Twice or four times as many tell apart
// what was within the noise.
func (s *Spec) length(runs []Run, undecided int) int64 {
	n := s.Requests
	if s.Fixed {
		return n
	}
	floor, burst := find(runs, Floor), find(runs, Burst)
	if floor != nil && burst != nil {
		inside := burst.Completed * float64(floor.E2EMean) / 1e9 // by Little's law, at saturation
		for i := range runs {
			// Under load a request takes longer.
			if r := &runs[i]; r.Load > 0 && r.Verdict != Fail {
				inside = max(inside, r.InFlight)
			}
		}
		n = max(n, int64(min(mostRequests, math.Ceil(lives*inside))))
	}
	return n << min(undecided, longer)
}

// longer bounds how often the length of a run is doubled.
const longer = 2

// Longest is the longest run that the objectives alone may ask for.
func (s *Spec) Longest() int64 {
	if s.Fixed {
		return s.Requests
	}
	return s.Requests << longer
}

// A Step is a run to play.
type Step struct {
	Kind     Kind
	Load     float64
	Requests int64
	Why      string
}

// A point is a load that was played, once or more.
type point struct {
	load     float64
	runs     []*Run
	verdict  Verdict
	overload bool
	judged   []Judged // of all its runs together
}

func (s *Spec) points(runs []Run) []point {
	var out []point
	for i := range runs {
		r := &runs[i]
		if r.Load == 0 {
			continue
		}
		k := slices.IndexFunc(out, func(p point) bool { return p.load == r.Load })
		if k < 0 {
			out = append(out, point{load: r.Load})
			k = len(out) - 1
		}
		out[k].runs = append(out[k].runs, r)
	}
	for i := range out {
		out[i].pool(s.Confidence)
	}
	slices.SortFunc(out, func(a, b point) int {
		if a.load < b.load {
			return -1
		}
		return 1
	})
	return out
}

// pool judges all runs of one load together. Where this machine was the
// bottleneck of some, they are left out.
func (p *point) pool(confidence float64) {
	if slices.ContainsFunc(p.runs, valid) {
		p.runs = slices.DeleteFunc(p.runs, func(r *Run) bool { return !valid(r) })
	}
	over, fails := 0, 0
	for _, r := range p.runs {
		if r.Overload != nil || r.Stopped == StopOverload {
			over++
		}
		if r.Verdict == Fail {
			fails++
		}
		for i, j := range r.Objectives {
			if i == len(p.judged) {
				p.judged = append(p.judged, Judged{Objective: j.Objective})
			}
			q := &p.judged[i]
			// The value is the mean in the logarithm; what is infinite stays so.
			q.Value.OK = true
			q.Value.V += metrics.Nanos(math.Log(max(1, float64(j.Value.Or(metrics.Nanos(math.Inf(1)))))) / float64(len(p.runs)))
			q.Met, q.Of, q.Effective = q.Met+j.Met, q.Of+j.Of, q.Effective+j.Effective
		}
	}
	for i := range p.judged {
		p.judged[i].Value.V = metrics.Nanos(math.Exp(float64(p.judged[i].Value.V)))
		p.judged[i].settle(confidence)
	}
	p.overload = 2*over > len(p.runs)
	switch {
	case len(p.runs) == 1:
		p.verdict = p.runs[0].Verdict
	case p.overload || 2*fails > len(p.runs):
		p.verdict = Fail
	case fails > 0 && worst(p.judged) == Pass:
		p.verdict = Undecided
	default:
		p.verdict = worst(p.judged)
	}
}

// A bracket holds the answer: the load of lo passed, that of hi failed.
type bracket struct {
	lo, hi    *point
	undecided int     // loads between,
	uLow      float64 // the lowest and highest of them
	uHigh     float64
	above     *point // passed above hi
}

func bracketOf(points []point) (b bracket) {
	for i := range points {
		if p := &points[i]; p.verdict == Fail {
			b.hi = p
			break
		}
	}
	for i := range points {
		p := &points[i]
		switch {
		case p.verdict != Pass:
		case b.hi == nil || p.load < b.hi.load:
			b.lo = p
		default:
			b.above = p
		}
	}
	for i := range points {
		p := &points[i]
		if p.verdict == Undecided && (b.lo == nil || p.load > b.lo.load) && (b.hi == nil || p.load < b.hi.load) {
			if b.undecided++; b.undecided == 1 {
				b.uLow = p.load
			}
			b.uHigh = p.load
		}
	}
	return b
}

func valid(r *Run) bool { return len(r.Invalid) == 0 }

// times counts how often a load was played.
func times(runs []Run, load float64) (n int) {
	for i := range runs {
		if runs[i].Load == load {
			n++
		}
	}
	return n
}

func find(runs []Run, k Kind) *Run {
	for i := range runs {
		if runs[i].Kind == k {
			return &runs[i]
		}
	}
	return nil
}
