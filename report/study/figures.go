package study

import (
	"math"
	"time"

	"reprise/gpu/findings"
	"reprise/internal/metrics"
	"reprise/internal/units"
	"reprise/traceformat"
)

// A Measure is a figure of a cell.
type Measure struct {
	Name   string `json:"name"`
	Title  string `json:"title"`
	Unit   string `json:"unit"` // ns, 1/s, share, tokens/J, requests, count, tokens/h, price
	Higher bool   `json:"higher_is_better,omitempty"`
	Lower  bool   `json:"lower_is_better,omitempty"`
	Ratio  bool   `json:"effects_are_ratios,omitempty"` // otherwise differences
	// asked figures are told of only where an objective bounds them.
	asked bool
	of    func(*reading) float64
}

// reading is a run reduced to what its figures are computed from.
type reading struct {
	sum    *metrics.Summary
	record *findings.Record
	gpus   float64
	price  float64
}

func nanos(v traceformat.Opt[metrics.Nanos]) float64 {
	if !v.OK || v.V.IsInf() {
		return math.NaN()
	}
	return float64(v.V)
}

// measures are all figures, in the order of tables.
var measures = []Measure{
	{Name: "ttft.p50", Title: "TTFT p50", Unit: "ns", Lower: true, Ratio: true, of: func(r *reading) float64 { return nanos(r.sum.TTFT.Schedule.P50) }},
	{Name: "ttft.p90", Title: "TTFT p90", Unit: "ns", Lower: true, Ratio: true, of: func(r *reading) float64 { return nanos(r.sum.TTFT.Schedule.P90) }},
	{Name: "ttft.p95", Title: "TTFT p95", Unit: "ns", Lower: true, Ratio: true, asked: true, of: func(r *reading) float64 { return nanos(r.sum.TTFT.Schedule.P95) }},
	{Name: "ttft.p99", Title: "TTFT p99", Unit: "ns", Lower: true, Ratio: true, of: func(r *reading) float64 { return nanos(r.sum.TTFT.Schedule.P99) }},
	{Name: "ttft.p99.9", Title: "TTFT p99.9", Unit: "ns", Lower: true, Ratio: true, asked: true, of: func(r *reading) float64 { return nanos(r.sum.TTFT.Schedule.P999) }},
	{Name: "tpot.p50", Title: "TPOT p50", Unit: "ns", Lower: true, Ratio: true, of: func(r *reading) float64 { return nanos(r.sum.TPOT.P50) }},
	{Name: "tpot.p90", Title: "TPOT p90", Unit: "ns", Lower: true, Ratio: true, asked: true, of: func(r *reading) float64 { return nanos(r.sum.TPOT.P90) }},
	{Name: "tpot.p95", Title: "TPOT p95", Unit: "ns", Lower: true, Ratio: true, asked: true, of: func(r *reading) float64 { return nanos(r.sum.TPOT.P95) }},
	{Name: "tpot.p99", Title: "TPOT p99", Unit: "ns", Lower: true, Ratio: true, of: func(r *reading) float64 { return nanos(r.sum.TPOT.P99) }},
	{Name: "itl.p50", Title: "ITL p50", Unit: "ns", Lower: true, Ratio: true, of: func(r *reading) float64 { return nanos(r.sum.ITL.P50) }},
	{Name: "itl.p99", Title: "ITL p99", Unit: "ns", Lower: true, Ratio: true, of: func(r *reading) float64 { return nanos(r.sum.ITL.P99) }},
	{Name: "e2e.p50", Title: "E2E p50", Unit: "ns", Lower: true, Ratio: true, of: func(r *reading) float64 { return nanos(r.sum.E2E.Schedule.P50) }},
	{Name: "e2e.p90", Title: "E2E p90", Unit: "ns", Lower: true, Ratio: true, asked: true, of: func(r *reading) float64 { return nanos(r.sum.E2E.Schedule.P90) }},
	{Name: "e2e.p95", Title: "E2E p95", Unit: "ns", Lower: true, Ratio: true, asked: true, of: func(r *reading) float64 { return nanos(r.sum.E2E.Schedule.P95) }},
	{Name: "e2e.p99", Title: "E2E p99", Unit: "ns", Lower: true, Ratio: true, of: func(r *reading) float64 { return nanos(r.sum.E2E.Schedule.P99) }},
	{Name: "requests_per_second", Title: "Requests/s", Unit: "1/s", Higher: true, Ratio: true, of: func(r *reading) float64 { return rate(r, r.sum.Rates.Completed) }},
	{Name: "output_tokens_per_second", Title: "Output tokens/s", Unit: "1/s", Higher: true, Ratio: true, of: func(r *reading) float64 { return rate(r, r.sum.Rates.OutputTokens) }},
	{Name: "goodput", Title: "Goodput", Unit: "1/s", Higher: true, Ratio: true, of: func(r *reading) float64 {
		if r.sum.Goodput == nil {
			return math.NaN()
		}
		return rate(r, r.sum.Goodput.Requests)
	}},
	{Name: "error_rate", Title: "Error rate", Unit: "share", Lower: true, of: func(r *reading) float64 {
		q := &r.sum.Requests
		return share(q.Failed+q.Shed+q.Unsent, q.Measured-q.Aborted-q.Unknown+q.Unsent)
	}},
	{Name: "in_flight.mean", Title: "In flight", Unit: "requests", of: func(r *reading) float64 { return rate(r, r.sum.InFlight.Mean) }},
	{Name: "kv_usage.max", Title: "KV usage, most", Unit: "share", of: func(r *reading) float64 {
		if r.record == nil || r.record.KV == nil || r.record.KV.Usage == nil {
			return math.NaN()
		}
		return r.record.KV.Usage.Max
	}},
	{Name: "prefix_hit", Title: "Prefix hits", Unit: "share", Higher: true, of: func(r *reading) float64 { return r.sum.Tokens.CacheHit() }},
	{Name: "preemptions", Title: "Preemptions", Unit: "count", Lower: true, of: func(r *reading) float64 {
		if r.record == nil || r.record.Engine == nil || !r.record.Engine.Preemptions.OK {
			return math.NaN()
		}
		return float64(r.record.Engine.Preemptions.V)
	}},
	{Name: "tokens_per_joule", Title: "Tokens/J", Unit: "tokens/J", Higher: true, Ratio: true, of: func(r *reading) float64 {
		if r.record == nil || r.record.Energy == nil || !(r.record.Energy.PerOutputToken.Or(0) > 0) {
			return math.NaN()
		}
		return 1 / r.record.Energy.PerOutputToken.V
	}},
	{Name: "tokens_per_gpu_hour", Title: "Tokens/GPU-hour", Unit: "tokens/h", Higher: true, Ratio: true, of: func(r *reading) float64 { return perGPUHour(r) }},
	{Name: "price_per_million_tokens", Title: "Price of 1M tokens", Unit: "price", Lower: true, Ratio: true, of: func(r *reading) float64 {
		if !(r.price > 0) {
			return math.NaN()
		}
		return r.price / perGPUHour(r) * 1e6
	}},
}

// rate is a figure over the window, which a run of one moment does not have.
func rate(r *reading, v float64) float64 {
	if r.sum.Window.Length <= 0 {
		return math.NaN()
	}
	return v
}

func perGPUHour(r *reading) float64 {
	if !(r.gpus > 0) {
		return math.NaN()
	}
	return rate(r, r.sum.Rates.OutputTokens) * 3600 / r.gpus
}

func share(n, of int64) float64 {
	if of <= 0 {
		return math.NaN()
	}
	return float64(n) / float64(of)
}

// measure finds a figure by its name; -1 if there is none.
func measureAt(name string) int {
	for i := range measures {
		if measures[i].Name == name {
			return i
		}
	}
	return -1
}

// Format writes a value for people.
func (m *Measure) Format(v float64) string {
	sign := ""
	if v < 0 {
		sign, v = "-", -v
	}
	switch {
	case math.IsNaN(v):
		return "-"
	case math.IsInf(v, 0):
		return sign + "inf"
	}
	switch m.Unit {
	case "ns":
		return sign + units.Duration(time.Duration(v))
	case "share":
		return sign + units.Percent(v)
	case "tokens/h":
		if v >= 999500 {
			return sign + units.Digits(v/1e6) + "M"
		}
	}
	return sign + units.Digits(v)
}

// within are the figures of requests that one run's bootstrap speaks of, and how
// they come from the values of a run.
var within = map[string]struct {
	column int
	level  float64
}{
	"ttft.p50": {columnTTFT, 0.5}, "ttft.p90": {columnTTFT, 0.9}, "ttft.p95": {columnTTFT, 0.95}, "ttft.p99": {columnTTFT, 0.99}, "ttft.p99.9": {columnTTFT, 0.999},
	"tpot.p50": {columnTPOT, 0.5}, "tpot.p90": {columnTPOT, 0.9}, "tpot.p95": {columnTPOT, 0.95}, "tpot.p99": {columnTPOT, 0.99},
	"e2e.p50": {columnE2E, 0.5}, "e2e.p90": {columnE2E, 0.9}, "e2e.p95": {columnE2E, 0.95}, "e2e.p99": {columnE2E, 0.99},
}

// Columns of the values that are kept of a run.
const (
	columnTTFT = iota
	columnE2E
	columnTPOT
	columns
)
