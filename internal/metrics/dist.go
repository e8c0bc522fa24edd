package metrics

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"reprise/internal/stats"
	"reprise/internal/units"
	"reprise/traceformat"
)

// Nanos is a duration in nanoseconds that may be infinite: the latency of a
// request that never answered. JSON has it as a whole number, or "inf".
type Nanos float64

// Duration rounds to a whole nanosecond; an infinite one is the longest
// duration there is.
func (n Nanos) Duration() time.Duration {
	if n >= math.MaxInt64 {
		return math.MaxInt64
	}
	return time.Duration(math.Round(float64(n)))
}

// IsInf says whether n is infinite.
func (n Nanos) IsInf() bool { return math.IsInf(float64(n), 1) }

// String is for people.
func (n Nanos) String() string {
	if n.IsInf() {
		return "inf"
	}
	return units.Duration(n.Duration())
}

// MarshalJSON implements json.Marshaler.
func (n Nanos) MarshalJSON() ([]byte, error) {
	if n.IsInf() {
		return []byte(`"inf"`), nil
	}
	return strconv.AppendInt(nil, int64(n.Duration()), 10), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (n *Nanos) UnmarshalJSON(b []byte) error {
	if string(b) == `"inf"` {
		*n = Nanos(math.Inf(1))
		return nil
	}
	return json.Unmarshal(b, (*float64)(n))
}

// Estimators of a Dist.
const (
	Exact = "exact" // order statistics, interpolated
	HDR   = "hdr"   // HdrHistogram, 3 significant digits
)

// A Dist sums up one sample of durations. What the sample cannot say is left
// out: nothing of an empty one, no percentile that it is too small for.
type Dist struct {
	N         int64                  `json:"n"`
	Mean      traceformat.Opt[Nanos] `json:"mean,omitzero"`
	SD        traceformat.Opt[Nanos] `json:"sd,omitzero"` // of the sample, n-1
	Min       traceformat.Opt[Nanos] `json:"min,omitzero"`
	P50       traceformat.Opt[Nanos] `json:"p50,omitzero"`
	P90       traceformat.Opt[Nanos] `json:"p90,omitzero"`
	P95       traceformat.Opt[Nanos] `json:"p95,omitzero"`
	P99       traceformat.Opt[Nanos] `json:"p99,omitzero"`
	P999      traceformat.Opt[Nanos] `json:"p99_9,omitzero"`
	Max       traceformat.Opt[Nanos] `json:"max,omitzero"`
	Intervals map[string][2]Nanos    `json:"ci95,omitempty"` // by percentile, of exact ones: see stats.QuantileInterval
	Estimator string                 `json:"estimator,omitempty"`
	Warnings  []string               `json:"warnings,omitempty"`
}

// percentiles are those of a Dist, in order.
var percentiles = []struct {
	name string // as people write it
	key  string // in JSON
	p    float64
	of   func(*Dist) *traceformat.Opt[Nanos]
}{
	{"p50", "p50", 0.5, func(d *Dist) *traceformat.Opt[Nanos] { return &d.P50 }},
	{"p90", "p90", 0.9, func(d *Dist) *traceformat.Opt[Nanos] { return &d.P90 }},
	{"p95", "p95", 0.95, func(d *Dist) *traceformat.Opt[Nanos] { return &d.P95 }},
	{"p99", "p99", 0.99, func(d *Dist) *traceformat.Opt[Nanos] { return &d.P99 }},
	{"p99.9", "p99_9", 0.999, func(d *Dist) *traceformat.Opt[Nanos] { return &d.P999 }},
}

// A Statistic is one figure of a Dist.
type Statistic struct {
	Name     string // mean, min, p50 and so on, max
	Value    traceformat.Opt[Nanos]
	Interval traceformat.Opt[[2]Nanos]
}

// Statistics lists the figures of a table, in order; unknown ones too, so that
// those of every Dist stand in the same places.
func (d *Dist) Statistics() []Statistic {
	out := []Statistic{{Name: "mean", Value: d.Mean}, {Name: "min", Value: d.Min}}
	for _, q := range percentiles {
		s := Statistic{Name: q.name, Value: *q.of(d)}
		if ci, ok := d.Intervals[q.key]; ok {
			s.Interval = traceformat.Some(ci)
		}
		out = append(out, s)
	}
	return append(out, Statistic{Name: "max", Value: d.Max})
}

// exactDist sums up values, which it sorts; failures stand for that many
// infinite ones.
func exactDist(values []float64, failures int64) Dist {
	slices.Sort(values) // also for the mean, whose last digit depends on the order
	var m stats.Moments
	for _, v := range values {
		m.Add(v)
	}
	d := Dist{N: int64(len(values)) + failures, Estimator: Exact}
	if d.N == 0 {
		return Dist{}
	}
	at := func(rank int) float64 {
		if rank < len(values) {
			return values[rank]
		}
		return math.Inf(1)
	}
	d.Min, d.Max = some(at(0)), some(at(int(d.N)-1))
	if d.Mean, d.SD = some(m.Mean()), some(m.SD()); failures > 0 {
		d.Mean, d.SD = some(math.Inf(1)), traceformat.Opt[Nanos]{}
	}
	d.fill(d.N, func(key string, p float64) traceformat.Opt[Nanos] {
		if lo, hi, ok := stats.QuantileInterval(int(d.N), p, stats.Level); ok {
			if d.Intervals == nil {
				d.Intervals = map[string][2]Nanos{}
			}
			d.Intervals[key] = [2]Nanos{Nanos(at(lo)), Nanos(at(hi))}
		}
		return some(stats.QuantileOf(int(d.N), at, p))
	})
	return d
}

// histDist sums up h, whose values came in that many independent groups: a
// percentile is carried by these. Failures stand for that many infinite values.
func histDist(h *stats.Hist, groups, failures int64) Dist {
	m := h.Moments()
	if m.N()+failures == 0 {
		return Dist{}
	}
	d := Dist{N: m.N() + failures, Mean: some(m.Mean()), SD: some(m.SD()), Min: some(m.Min()), Max: some(m.Max()), Estimator: HDR}
	if failures > 0 {
		d.Mean, d.SD, d.Max = some(math.Inf(1)), traceformat.Opt[Nanos]{}, some(math.Inf(1))
	}
	d.fill(groups+failures, func(_ string, p float64) traceformat.Opt[Nanos] {
		if p = p * float64(d.N) / float64(max(1, m.N())); p > 1 {
			return some(math.Inf(1))
		}
		return some(h.Quantile(p))
	})
	if over := h.Over(); over > 0 {
		d.Warnings = append(d.Warnings, fmt.Sprintf("%s beyond %v in percentiles as %[2]v", plural(over, "value"), stats.HistMax))
	}
	return d
}

// sampleWarning begins the warning that names the percentiles left out.
const sampleWarning = "a sample of "

// fill sets the percentiles that a sample of n carries and names the others.
func (d *Dist) fill(n int64, quantile func(key string, p float64) traceformat.Opt[Nanos]) {
	var missing []string
	for _, q := range percentiles {
		if stats.Carries(n, q.p) {
			*q.of(d) = quantile(q.key, q.p)
		} else {
			missing = append(missing, fmt.Sprintf("%s (takes %s)", q.name, units.Count(int64(stats.MinSamples(q.p, stats.Level)))))
		}
	}
	if missing != nil {
		d.Warnings = append(d.Warnings, fmt.Sprintf("%s%s does not carry %s", sampleWarning, units.Count(n), strings.Join(missing, ", ")))
	}
}

// some is a known value, unless it is no number.
func some(v float64) traceformat.Opt[Nanos] {
	if math.IsNaN(v) {
		return traceformat.Opt[Nanos]{}
	}
	return traceformat.Some(Nanos(v))
}
