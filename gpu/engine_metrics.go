package gpu

import (
	"slices"

	"reprise/internal/enginemetrics"
)

// Suffixes of the metrics that one span of the engine vocabulary has in a
// stream, besides the quantiles, which bear its own name and the attribute
// quantile=.
const (
	EngineSum   = ".sum"   // seconds, since the engine started
	EngineCount = ".count" // values behind them
	EngineRate  = ".rate"  // of a counter, a second, since the scrape before
)

// engineMetrics is the vocabulary of engines as metrics of a stream.
func engineMetrics() []Metric {
	var ms []Metric
	for _, q := range enginemetrics.Quantities() {
		kind, _ := q.Kind()
		name, doc := string(q), q.Help()
		switch kind {
		case enginemetrics.Gauge:
			ms = append(ms, Metric{name, q.Unit(), Gauge, "", doc})
		case enginemetrics.Counter:
			ms = append(ms,
				Metric{name, q.Unit(), Counter, "", doc},
				Metric{name + EngineRate, q.Unit() + "/s", Gauge, "", "the same as a rate, since the scrape before"})
		case enginemetrics.Span:
			ms = append(ms,
				Metric{name, q.Unit(), Gauge, "", doc + " Estimated from a histogram's buckets over the values since the scrape before, `quantile=0.5|0.99`"},
				Metric{name + EngineSum, q.Unit(), Counter, "", "sum of the same"},
				Metric{name + EngineCount, "{value}", Counter, "", "values behind that sum"})
		}
	}
	return ms
}

func init() { RegisterMetrics(engineMetrics()...) }

// EngineMetrics lists the metrics that an [Engine] emits.
func EngineMetrics() []Metric { return slices.Clip(engineMetrics()) }
