package search

import (
	"fmt"
	"math"
	"strings"

	"reprise/internal/metrics"
	"reprise/internal/units"
	"reprise/traceformat"
)

// A Result is what is known after some runs.
type Result struct {
	Status string `json:"status"` // Going, Found and so on
	// Capacity is the highest load that passed below every load that failed;
	// Fails is the lowest that failed. The answer lies between them, by the model
	// at Estimate.
	Capacity traceformat.Opt[float64] `json:"capacity,omitzero"`
	Fails    traceformat.Opt[float64] `json:"fails_at,omitzero"`
	Estimate traceformat.Opt[float64] `json:"estimate,omitzero"`
	// Requests and OutputTokens are per second, at Capacity.
	Requests     float64 `json:"requests_per_second,omitempty"`
	OutputTokens float64 `json:"output_tokens_per_second,omitempty"`
	// Binding is the objective that is missed first.
	Binding string `json:"binding_slo,omitempty"`

	Saturation *Saturation  `json:"saturation,omitempty"`
	Knee       *Knee        `json:"knee,omitempty"`
	Curve      []CurvePoint `json:"curve,omitempty"`
	// Confirmed and ConfirmedOf count the runs that played Capacity again.
	Confirmed   int      `json:"confirmed,omitempty"`
	ConfirmedOf int      `json:"confirmed_of,omitempty"`
	Warnings    []string `json:"warnings,omitempty"`
}

// A Saturation is the most that the server completes.
type Saturation struct {
	Requests     float64                  `json:"requests_per_second"`
	OutputTokens float64                  `json:"output_tokens_per_second"`
	Load         traceformat.Opt[float64] `json:"load,omitzero"` // at which as much arrives; none in a closed loop
	Run          int                      `json:"run"`           // that showed it
	Kind         Kind                     `json:"kind"`          // of that run
}

// A Knee is where power, throughput over latency, is highest (Kleinrock, "Power
// and Deterministic Rules of Thumb for Probabilistic Problems in Computer
// Communications", ICC 1979): below it load costs little latency, above it
// latency buys little throughput.
type Knee struct {
	Method       string        `json:"method"` // "power"
	Load         float64       `json:"load"`
	Requests     float64       `json:"requests_per_second"`
	E2EMean      metrics.Nanos `json:"e2e_ns_mean"`
	Interpolated bool          `json:"interpolated"` // between loads that were played
}

// A CurvePoint is a share of the saturation throughput.
type CurvePoint struct {
	Share    float64                        `json:"share_of_saturation"`
	Requests float64                        `json:"requests_per_second"`
	Load     traceformat.Opt[float64]       `json:"load,omitzero"`
	Source   string                         `json:"source"`        // "measured", "interpolated" or "none"
	Run      int                            `json:"run,omitempty"` // that was measured
	TTFTP50  traceformat.Opt[metrics.Nanos] `json:"ttft_ns_p50,omitzero"`
	TTFTP99  traceformat.Opt[metrics.Nanos] `json:"ttft_ns_p99,omitzero"`
	TPOTP50  traceformat.Opt[metrics.Nanos] `json:"tpot_ns_p50,omitzero"`
	TPOTP95  traceformat.Opt[metrics.Nanos] `json:"tpot_ns_p95,omitzero"`
	E2EP50   traceformat.Opt[metrics.Nanos] `json:"e2e_ns_p50,omitzero"`
}

// Sources of a CurvePoint.
const (
	FromRun      = "measured"
	Interpolated = "interpolated"
	NoSource     = "none" // no load as low, or as high, was played
)

// curveShares are those of the saturation throughput that are reported.
var curveShares = []float64{0.25, 0.5, 0.75, 0.9}

// near is how far a run may lie from a share to stand for it.
const near = 0.03

// tried leaves out what came behind the search, so that it does not reopen it.
func tried(runs []Run) (out []Run) {
	for _, r := range runs {
		if r.Kind == Floor || r.Kind == Burst || r.Kind == Probe {
			out = append(out, r)
		}
	}
	return out
}

// Result says what is known after runs.
func (s *Spec) Result(runs []Run) *Result {
	r := &Result{}
	_, r.Status = s.Next(runs)
	t := tried(runs)
	points := s.points(t)
	b := bracketOf(points)
	m := s.model(t, points)
	if b.lo != nil {
		r.Capacity = traceformat.Some(b.lo.load)
		for _, run := range b.lo.runs {
			r.Requests += run.Completed / float64(len(b.lo.runs))
			r.OutputTokens += run.OutputTokens / float64(len(b.lo.runs))
		}
	}
	if b.hi != nil {
		r.Fails = traceformat.Some(b.hi.load)
	}
	if c := m.crossing(); len(points) > 0 && !math.IsInf(c, 0) && !math.IsNaN(c) {
		if b.lo != nil {
			c = max(c, b.lo.load)
		}
		if b.hi != nil {
			c = min(c, b.hi.load)
		}
		if s.Max > 0 {
			c = min(c, s.Max)
		}
		r.Estimate = traceformat.Some(s.round(c))
	}
	r.Binding = m.binding(b)
	all := s.model(runs, s.points(runs))
	r.Saturation = s.saturation(runs, all)
	r.Knee = all.knee()
	r.Curve = s.curve(runs, all, r.Saturation)
	for i := range runs {
		if runs[i].Kind == Confirm {
			r.ConfirmedOf++
			if runs[i].Verdict == Pass {
				r.Confirmed++
			}
		}
	}
	s.warn(r, runs, b)
	return r
}

// binding names the objective that fails at the lowest failing load, or that is
// nearest to its bound.
func (m *model) binding(b bracket) string {
	p := b.hi
	if p == nil {
		p = b.lo
	}
	judged := []Judged(nil)
	switch {
	case p != nil:
		judged = p.judged
	case m.floor != nil:
		judged = m.floor.Objectives
	}
	best, name := math.Inf(-1), ""
	for _, j := range judged {
		// As in the judgement: the shortfall of the share, in its own odds.
		miss := math.Log((1 - j.Share() + 1e-9) / (1 - j.Objective.Share))
		if miss > best {
			best, name = miss, j.Objective.String()
		}
	}
	return name
}

func (s *Spec) saturation(runs []Run, m *model) *Saturation {
	var best *Run
	take := func(r *Run) {
		if r.Completed > 0 && (best == nil || r.Completed > best.Completed) {
			best = r
		}
	}
	for _, p := range m.points {
		if p.overload {
			for _, r := range p.runs {
				take(r)
			}
			break // the lowest overloaded load was looked at for longest
		}
	}
	if best == nil && m.burst != nil {
		take(m.burst)
	}
	for i := range runs {
		if r := &runs[i]; r.Load > 0 && (s.By == Concurrency || r.Overload == nil && r.Stopped == "") {
			take(r) // it is at least what was completed
		}
	}
	if best == nil {
		return nil
	}
	sat := &Saturation{Requests: best.Completed, OutputTokens: best.OutputTokens, Run: best.Number, Kind: best.Kind}
	if s.Base > 0 {
		sat.Load = traceformat.Some(s.round(best.Completed / s.Base))
	}
	return sat
}

// throughput is what a load completes, requests a second.
func (m *model) throughput(load, e2eMean float64) float64 {
	if m.spec.By == Concurrency {
		return load / (e2eMean / 1e9) // N = X·W
	}
	return load * m.spec.Base
}

// knee is the load of the most power, along the line through what was measured.
func (m *model) knee() *Knee {
	mean := func(r *Run) float64 { return float64(r.E2EMean) }
	lo, hi := m.lightLoad(), 0.0
	for _, p := range m.points {
		if !p.overload && p.load < m.saturation {
			hi = max(hi, p.load)
		}
	}
	if !(lo > 0 && hi > lo) {
		return nil
	}
	k := &Knee{Method: "power"}
	best := 0.0
	const steps = 400
	for i := range steps + 1 {
		load := lo * math.Pow(hi/lo, float64(i)/steps)
		e2e, ok := m.figure(load, mean)
		if !ok || e2e <= 0 {
			continue
		}
		if x := m.throughput(load, e2e); x/e2e > best {
			best = x / e2e
			k.Load, k.Requests, k.E2EMean = m.spec.round(load), x, metrics.Nanos(e2e)
		}
	}
	if best == 0 {
		return nil
	}
	k.Interpolated = true
	for _, p := range m.points {
		if math.Abs(p.load/k.Load-1) < 0.01 {
			k.Interpolated = false
		}
	}
	return k
}

// curve gives the latencies at shares of the saturation throughput.
func (s *Spec) curve(runs []Run, m *model, sat *Saturation) (out []CurvePoint) {
	if sat == nil {
		return nil
	}
	for _, share := range curveShares {
		p := CurvePoint{Share: share, Requests: share * sat.Requests, Source: NoSource}
		if r := s.measuredAt(runs, share, sat); r != nil {
			p.Source, p.Run, p.Requests = FromRun, r.Number, r.Completed
			if r.Load > 0 {
				p.Load = traceformat.Some(r.Load)
			}
			p.TTFTP50, p.TTFTP99, p.TPOTP50, p.TPOTP95, p.E2EP50 = r.TTFT.P50, r.TTFT.P99, r.TPOT.P50, r.TPOT.P95, r.E2E.P50
			out = append(out, p)
			continue
		}
		load, ok := m.loadOf(p.Requests)
		if ok {
			p.Load = traceformat.Some(s.round(load))
			for _, f := range []struct {
				to *traceformat.Opt[metrics.Nanos]
				of func(r *Run) traceformat.Opt[metrics.Nanos]
			}{
				{&p.TTFTP50, func(r *Run) traceformat.Opt[metrics.Nanos] { return r.TTFT.P50 }},
				{&p.TTFTP99, func(r *Run) traceformat.Opt[metrics.Nanos] { return r.TTFT.P99 }},
				{&p.TPOTP50, func(r *Run) traceformat.Opt[metrics.Nanos] { return r.TPOT.P50 }},
				{&p.TPOTP95, func(r *Run) traceformat.Opt[metrics.Nanos] { return r.TPOT.P95 }},
				{&p.E2EP50, func(r *Run) traceformat.Opt[metrics.Nanos] { return r.E2E.P50 }},
			} {
				v, ok := m.figure(load, func(r *Run) float64 { return float64(f.of(r).Or(metrics.Nanos(math.Inf(1)))) })
				if ok {
					*f.to, p.Source = traceformat.Some(metrics.Nanos(v)), Interpolated
				}
			}
		}
		out = append(out, p)
	}
	return out
}

// measuredAt is the run that stands for a share of the saturation throughput.
func (s *Spec) measuredAt(runs []Run, share float64, sat *Saturation) (best *Run) {
	for i := range runs {
		r := &runs[i]
		if r.Load == 0 || r.Overload != nil || r.Stopped != "" {
			continue
		}
		d := math.Abs(r.Completed/sat.Requests - share)
		if d <= near && (best == nil || d < math.Abs(best.Completed/sat.Requests-share)) {
			best = r
		}
	}
	return best
}

// loadOf is the load that completes so many requests a second.
func (m *model) loadOf(perSecond float64) (float64, bool) {
	if m.spec.By != Concurrency {
		return perSecond / m.spec.Base, m.spec.Base > 0
	}
	// N/W(N) grows with N: the least N that does.
	mean := func(r *Run) float64 { return float64(r.E2EMean) }
	hi := 1.0
	for _, p := range m.points {
		hi = max(hi, p.load)
	}
	for i := range 1001 {
		load := 1 + (hi-1)*float64(i)/1000
		if e2e, ok := m.figure(load, mean); ok && m.throughput(load, e2e) >= perSecond {
			return load, true
		}
	}
	return 0, false
}

// curveStep is the next share of the saturation throughput to play; nil if all
// were.
func (s *Spec) curveStep(runs []Run) *Step {
	m := s.model(runs, s.points(runs))
	sat := s.saturation(runs, m)
	if sat == nil {
		return nil
	}
	for _, share := range curveShares {
		if s.measuredAt(runs, share, sat) != nil {
			continue
		}
		load, ok := m.loadOf(share * sat.Requests)
		load = s.round(load)
		if s.Max > 0 && load > s.Max || load < s.Min {
			continue
		}
		played := false
		for i := range runs {
			played = played || runs[i].Load == load
		}
		if ok && !played && load > 0 {
			return &Step{Kind: Curve, Load: load, Requests: s.length(runs, 0), Why: fmt.Sprintf("%s of the saturation throughput", units.Percent(share))}
		}
	}
	return nil
}

func (s *Spec) warn(r *Result, runs []Run, b bracket) {
	warn := func(format string, a ...any) { r.Warnings = append(r.Warnings, fmt.Sprintf(format, a...)) }
	if b.above != nil {
		warn("%s passed although %s failed: runs of one load differ, and the answer is the one below", s.Format(b.above.load), s.Format(b.hi.load))
	}
	if b.undecided > 0 {
		warn("%d of the loads in between could not be told from the SLO: runs with more requests (--requests) would narrow it", b.undecided)
	}
	var invalid []string
	for i := range runs {
		if len(runs[i].Invalid) > 0 {
			invalid = append(invalid, fmt.Sprint(runs[i].Number))
		}
	}
	if invalid != nil {
		warn("this machine was the bottleneck in run %s: what failed there may be its fault, not the server's", strings.Join(invalid, ", "))
	}
	if r.Capacity.OK && r.ConfirmedOf == 0 {
		warn("each load was played once: the intervals are of the requests of a run, not of differences between runs; --confirm 3 plays the answer again")
	}
	if r.ConfirmedOf > r.Confirmed {
		warn("the answer passed again in %d of %d runs: it lies within the differences between runs", r.Confirmed, r.ConfirmedOf)
	}
}

// Invalid says whether the runs that the answer rests on were limited by this
// machine.
func (s *Spec) Invalid(runs []Run) bool {
	b := bracketOf(s.points(tried(runs)))
	for _, p := range []*point{b.lo, b.hi} {
		if p == nil {
			continue
		}
		for _, r := range p.runs {
			if len(r.Invalid) > 0 {
				return true
			}
		}
	}
	return false
}
