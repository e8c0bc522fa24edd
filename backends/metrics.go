package backends

import (
	"maps"
	"slices"

	"reprise/internal/enginemetrics"
)

var metricTables = map[string]*enginemetrics.Table{}

// RegisterMetrics adds the table by which the /metrics of t.Engine are read. It
// is called from init functions.
func RegisterMetrics(t *enginemetrics.Table) {
	if _, dup := metricTables[t.Engine]; dup {
		panic("backends: the metrics of " + t.Engine + " are registered twice")
	}
	metricTables[t.Engine] = t
}

// Metrics returns the table of an engine (Info.Engine), nil where there is none:
// such an engine is not scraped unless its user names a page.
func Metrics(engine string) *enginemetrics.Table { return metricTables[engine] }

// AllMetrics returns every table, in the order of the engines' names.
func AllMetrics() []*enginemetrics.Table {
	var ts []*enginemetrics.Table
	for _, name := range slices.Sorted(maps.Keys(metricTables)) {
		ts = append(ts, metricTables[name])
	}
	return ts
}
