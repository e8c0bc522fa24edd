package search

import (
	"math"
	"slices"

	"reprise/internal/metrics"
)

// A model says which latency to expect at a load.
type model struct {
	spec       *Spec
	saturation float64 // load; +Inf in a closed loop, or where it is not known
	certain    bool    // an overloaded run has shown it
	floor      *Run
	burst      *Run
	points     []point
}

func (s *Spec) model(runs []Run, points []point) *model {
	m := &model{spec: s, saturation: math.Inf(1), points: points, floor: find(runs, Floor), burst: find(runs, Burst)}
	if s.By == Concurrency {
		return m
	}
	if m.burst != nil && m.burst.Completed > 0 {
		m.saturation = m.burst.Completed / s.Base
	}
	// The lowest of the overloaded loads is nearest to what is asked.
	for _, p := range points {
		if c := saturationOf(&p); c > 0 {
			m.saturation, m.certain = c, true
			break
		}
	}
	// What was measured without overload lies below it.
	for _, p := range points {
		if !p.overload && p.verdict == Pass {
			m.saturation = max(m.saturation, margin*p.load)
		}
	}
	return m
}

// margin keeps the saturation above every load that passed.
const margin = 1.01

// saturationOf is where saturation lies by an overloaded run: its load times
// completions over arrivals.
func saturationOf(p *point) float64 {
	var sum, n float64
	for _, r := range p.runs {
		if !p.overload {
			break
		}
		// All of the steady part where that is known, as it is longer than the
		// half that the detector looked at.
		if r.Offered > 0 && r.Completed > 0 && r.Completed < r.Offered {
			sum, n = sum+p.load*r.Completed/r.Offered, n+1
		}
	}
	return sum / n
}

// at is the coordinate in which a latency is about a line.
func (m *model) at(load float64) float64 {
	if m.spec.By == Concurrency {
		return load
	}
	if math.IsInf(m.saturation, 1) {
		return math.Log(load)
	}
	return -math.Log(max(1e-6, 1-load/m.saturation))
}

// back is the inverse of at.
func (m *model) back(x float64) float64 {
	switch {
	case m.spec.By == Concurrency:
		return x
	case math.IsInf(m.saturation, 1):
		return math.Exp(x)
	}
	return m.saturation * (1 - math.Exp(-x))
}

// scale is what a latency is a line in: its logarithm, or in a closed loop, where
// each user more waits as long as the one before, itself.
func (m *model) scale(v float64) float64 {
	if m.spec.By == Concurrency {
		return v
	}
	return math.Log(max(1, v))
}

func (m *model) unscale(y float64) float64 {
	if m.spec.By == Concurrency {
		return y
	}
	return math.Exp(y)
}

// lightLoad is the load of the floor run.
func (m *model) lightLoad() float64 {
	if m.spec.By == Concurrency {
		return 1
	}
	if m.floor == nil {
		return 0
	}
	return m.floor.Completed / m.spec.Base
}

// A knot is a latency that was measured.
type knot struct{ load, x, y float64 }

// knots are the measured values of a figure, by load; they never fall.
func (m *model) knots(of func(judged []Judged, runs []*Run) float64) []knot {
	var out []knot
	add := func(load, v float64) {
		if !(load > 0) || !(v >= 0) || math.IsInf(v, 0) || load >= m.saturation {
			return
		}
		k := knot{load, m.at(load), m.scale(v)}
		if n := len(out); n > 0 {
			k.y = max(k.y, out[n-1].y)
		}
		out = append(out, k)
	}
	light := m.lightLoad()
	if m.floor != nil && (len(m.points) == 0 || light < m.points[0].load) {
		add(light, of(m.floor.Objectives, []*Run{m.floor}))
	}
	for _, p := range m.points {
		if !p.overload {
			add(p.load, of(p.judged, p.runs))
		}
	}
	return out
}

// crossing is the load at which the first objective is no longer met: the answer,
// as far as can be said. It is +Inf where no objective comes near its bound.
func (m *model) crossing() float64 {
	c := math.Inf(1)
	for i, o := range m.spec.Objectives {
		k := m.knots(func(j []Judged, _ []*Run) float64 { return float64(j[i].Value.Or(metrics.Nanos(math.Inf(1)))) })
		c = min(c, m.solve(k, m.scale(float64(o.Below))))
		if m.spec.By == Concurrency && len(k) > 0 && k[len(k)-1].y < m.scale(float64(o.Below)) {
			c = min(c, m.little(o))
		}
	}
	return min(c, m.saturation)
}

// solve finds the load at which the line through the knots reaches y.
func (m *model) solve(k []knot, y float64) float64 {
	i := slices.IndexFunc(k, func(k knot) bool { return k.y >= y })
	switch {
	case i == 0:
		return k[0].load
	case i < 0 && len(k) == 0:
		return math.Inf(1)
	case i < 0 && len(k) == 1:
		// As of a single queue, whose time in the system is 1/(1-load/saturation)
		// times what it is without load.
		if m.spec.By == Concurrency {
			return math.Inf(1)
		}
		return m.back(k[0].x + y - k[0].y)
	case i < 0:
		i = len(k) - 1
	}
	a, b := k[i-1], k[i]
	if !(b.y > a.y) {
		return math.Inf(1)
	}
	return m.back(a.x + (b.x-a.x)*(y-a.y)/(b.y-a.y))
}

// little is the number of users at which the time in the system reaches what the
// objective leaves, if the throughput is that of saturation: N = X·W.
func (m *model) little(o metrics.Objective) float64 {
	if m.burst == nil || o.Metric == metrics.MetricTPOT {
		return math.Inf(1)
	}
	last := m.floor
	for _, p := range m.points {
		if p.verdict != Fail {
			last = p.runs[len(p.runs)-1]
		}
	}
	if last == nil || last.E2EMean == 0 {
		return math.Inf(1)
	}
	served := 0.0
	if o.Metric == metrics.MetricTTFT {
		served = max(0, float64(last.E2EMean)-float64(last.TTFT.P50.V))
	}
	return max(m.burst.Completed, last.Completed) * (float64(o.Below) + served) / 1e9
}

// figure is the latency to expect at a load that lies between two that were
// measured; ok is false elsewhere.
func (m *model) figure(load float64, of func(r *Run) float64) (v float64, ok bool) {
	k := m.knots(func(_ []Judged, runs []*Run) float64 {
		sum := 0.0
		for _, r := range runs {
			sum += of(r) / float64(len(runs))
		}
		return sum
	})
	for i := 1; i < len(k); i++ {
		if a, b := k[i-1], k[i]; a.load <= load && load <= b.load {
			share := (m.at(load) - a.x) / (b.x - a.x)
			return m.unscale(a.y + share*(b.y-a.y)), true
		}
	}
	return 0, false
}
