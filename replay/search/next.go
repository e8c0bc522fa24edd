package search

import (
	"fmt"
	"math"
	"strconv"
)

// How a search ended, or why it goes on.
const (
	Going    = "going"    // there is a run to play
	Found    = "found"    // the bracket is as narrow as asked for
	Noise    = "noise"    // what is left of the bracket is within the noise of a run
	AtMax    = "max"      // the highest load allowed passes
	Nothing  = "nothing"  // no load passes
	UsedUp   = "runs"     // the runs are used up before the bracket is that narrow
	NoBounds = "no-bound" // no load fails that can be sent
)

// Next says what to play next. Without one, status says how the search ended.
func (s *Spec) Next(runs []Run) (step *Step, status string) {
	step, status = s.search(runs)
	if step != nil {
		return step, Going
	}
	if status == Nothing {
		return nil, status
	}
	if s.Curve && s.spent(runs) < s.Runs {
		if step := s.curveStep(runs); step != nil {
			return step, Going
		}
	}
	b := bracketOf(s.points(tried(runs)))
	confirmed := 0
	for i := range runs {
		if runs[i].Kind == Confirm {
			confirmed++
		}
	}
	// The load that was to be confirmed, even if it fails meanwhile, by runs as
	// long as the one that passed.
	first := find(runs, Confirm)
	if first == nil && b.lo != nil {
		first = b.lo.runs[0]
	}
	if confirmed < s.Confirm && first != nil {
		return &Step{Kind: Confirm, Load: first.Load, Requests: first.Planned, Why: fmt.Sprintf("the answer once more, %d of %d", confirmed+1, s.Confirm)}, Going
	}
	return nil, status
}

// spent counts the runs of the budget.
func (s *Spec) spent(runs []Run) (n int) {
	for i := range runs {
		if runs[i].Kind != Confirm {
			n++
		}
	}
	return n
}

// search looks for the next load to try.
func (s *Spec) search(runs []Run) (*Step, string) {
	runs = tried(runs)
	floor := find(runs, Floor)
	switch {
	case floor == nil:
		return &Step{Kind: Floor, Requests: min(FloorRequests, s.Requests), Why: "one request at a time: the floor of every latency"}, Going
	case floor.Verdict == Fail:
		return nil, Nothing
	case find(runs, Burst) == nil:
		return &Step{Kind: Burst, Requests: min(s.Requests, max(leastBurst, min(mostBurst, s.Requests/2))), Why: "all at once: the throughput at saturation"}, Going
	}
	points := s.points(runs)
	b := bracketOf(points)
	lo, hi := 0.0, math.Inf(1)
	if b.lo != nil {
		lo = b.lo.load
	}
	if b.hi != nil {
		hi = b.hi.load
	}
	spent := len(runs) >= s.Runs
	again := func(why string) (*Step, string) {
		return &Step{Kind: Probe, Load: hi, Requests: s.length(runs, 0), Why: why}, Going
	}
	switch {
	case s.Max > 0 && lo >= s.Max:
		return nil, AtMax
	case s.Min > 0 && hi <= s.Min || s.By == Concurrency && hi <= 1:
		return nil, Nothing
	case b.above != nil && times(runs, hi) == 1 && !spent:
		return again(fmt.Sprintf("it failed, and %s passed", s.Format(b.above.load)))
	case lo > 0 && s.closed(lo, hi) && !valid(b.hi.runs[0]) && times(runs, hi) == 1 && !spent:
		return again("it failed, and this machine was the bottleneck")
	case lo > 0 && s.closed(lo, hi):
		return nil, Found
	case spent && b.lo == nil && b.hi == nil:
		return nil, Noise
	case spent && b.hi == nil:
		return nil, NoBounds
	case spent && b.lo == nil:
		return nil, Nothing
	case spent:
		return nil, UsedUp
	}
	m := s.model(runs, points)
	load, why := s.target(m, b, runs)
	load = s.round(load)
	if s.Max > 0 {
		load = min(load, s.Max)
	}
	load = max(load, s.Min)
	if s.By == Concurrency {
		load = max(load, 1)
	}
	if !(load > lo && load < hi) || times(runs, load) > 0 {
		if b.lo == nil {
			return nil, Nothing
		}
		return nil, Noise
	}
	// What was within the noise is measured for longer.
	return &Step{Kind: Probe, Load: load, Requests: s.length(runs, b.undecided), Why: why}, Going
}

// closed says whether the bracket is narrow enough.
func (s *Spec) closed(lo, hi float64) bool {
	return hi <= lo*(1+s.Within) || s.By == Concurrency && hi <= lo+1
}

// How far a guess goes where little is known.
const (
	firstShare = 0.93 // of the saturation from a burst, at most
	leastShare = 0.3
	mostUp     = 3.0 // times the highest load that passed
	mostDown   = 4.0
)

// target chooses a load within the bracket.
func (s *Spec) target(m *model, b bracket, runs []Run) (load float64, why string) {
	if b.undecided > 0 {
		return s.aside(b)
	}
	c := m.crossing()
	// A load that is to pass lies a little below the crossing and one that is to
	// fail a little above, so that both together close the bracket.
	aside := 1 + 0.45*s.Within
	switch {
	case b.lo == nil && b.hi == nil:
		if s.By == Concurrency {
			// As many as are in the system at saturation, if none waits.
			n := m.burst.Completed * float64(m.floor.E2EMean) / 1e9
			return max(2, min(n, c)), "users that saturate the server, by Little's law"
		}
		x := m.saturation
		return max(leastShare*x, min(c, firstShare*x)), fmt.Sprintf("below the saturation of the burst, %s", s.Format(s.round(x)))
	case b.hi == nil:
		lo := b.lo.load
		up := min(mostUp*lo, max(c*aside, lo*(1+s.Within)))
		if s.By != Concurrency && !m.certain {
			// A run that is overloaded shows where saturation lies. The more that
			// passed, the less the burst had shown of it, and the longer the step.
			passed := 0
			for i := range m.points {
				if m.points[i].verdict == Pass {
					passed++
				}
			}
			up = max(up, min(1.04*m.saturation, 1.25*lo), lo*(1+s.Within*float64(int(1)<<min(passed, 6))))
		}
		return up, "upwards: it passed"
	case b.lo == nil:
		hi := b.hi.load
		// The more that failed, the longer the step.
		fails := 0
		for i := range m.points {
			if m.points[i].verdict == Fail {
				fails++
			}
		}
		step := 1 + s.Within*float64(int(1)<<min(2*fails, 10))
		return max(hi/mostDown, min(c/aside, hi/min(step, mostDown))), "downwards: it failed"
	}
	lo, hi := b.lo.load, b.hi.load
	guess := "the model has the answer near " + s.Format(s.round(c))
	switch low, high := c/aside, c*aside; {
	case hi <= lo*(1+s.Within)*(1+s.Within):
		return s.between(lo, hi), "the middle: either outcome is narrow enough"
	case s.stuck(runs, hi/lo):
		return s.between(lo, hi), "the middle: the last two runs narrowed little"
	case low > lo*(1+s.Within/4) && low < hi:
		return low, guess + ": just below"
	case high < hi/(1+s.Within/4) && high > lo:
		return high, guess + ": just above"
	}
	return s.between(lo, hi), "the middle"
}

// between is the middle of two loads.
func (s *Spec) between(lo, hi float64) float64 {
	if s.By == Concurrency {
		return (lo + hi) / 2
	}
	return math.Sqrt(lo * hi)
}

// aside chooses a load beside those that could not be told from the SLO, in steps
// that grow: first one that passes, then one that fails, then nearer.
func (s *Spec) aside(b bracket) (load float64, why string) {
	step := 1 + s.Within*float64(int(2)<<min(b.undecided, 5))
	gap := (1 + s.Within) * (1 + s.Within)
	switch {
	case b.lo == nil:
		return b.uLow / step, "lower: what is near is within the noise"
	case b.uLow > gap*b.lo.load:
		return s.between(b.lo.load, b.uLow), "between what passed and the noise"
	case b.hi == nil:
		return b.uHigh * step, "higher: what is near is within the noise"
	case b.hi.load > gap*b.uHigh:
		return s.between(b.uHigh, b.hi.load), "between the noise and what failed"
	}
	return b.lo.load, "" // there is nothing to gain on either side
}

// stuck says that the last two runs did not halve the bracket.
func (s *Spec) stuck(runs []Run, ratio float64) bool {
	last := 0
	for k := len(runs); k > 0; k-- {
		if runs[k-1].Kind != Probe {
			continue
		}
		if last++; last == 2 {
			b := bracketOf(s.points(runs[:k-1]))
			return b.lo != nil && b.hi != nil && math.Log(ratio) > math.Log(b.hi.load/b.lo.load)/2
		}
	}
	return false
}

// round makes a load short to write; sessions are whole.
func (s *Spec) round(load float64) float64 {
	if s.By == Concurrency {
		return math.Round(load)
	}
	v, err := strconv.ParseFloat(strconv.FormatFloat(load, 'g', 4, 64), 64)
	if err != nil {
		return load
	}
	return v
}

// Format writes a load with its unit.
func (s *Spec) Format(load float64) string {
	if math.IsInf(load, 0) || math.IsNaN(load) {
		return "-"
	}
	v := strconv.FormatFloat(load, 'f', -1, 64)
	switch s.By {
	case Speedup:
		return "speedup " + v
	case Rate:
		return v + " requests/s"
	}
	return v + " sessions"
}
