package gpu

import (
	"cmp"
	"slices"
	"sync"
)

// maxSeries bounds the series that a Latest holds. Processes come and go; when
// there are more, the series that was silent for longest is forgotten.
const maxSeries = 16384

// Latest holds the last sample of every series, for a live view. The zero value
// is ready. Its methods may be called concurrently.
type Latest struct {
	mu     sync.Mutex
	series map[Key]Sample
}

// Add takes a sample.
func (l *Latest) Add(s Sample) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.series == nil {
		l.series = map[Key]Sample{}
	}
	k := s.Key()
	if _, ok := l.series[k]; !ok && len(l.series) >= maxSeries {
		var oldest Key
		first := true
		for k, have := range l.series {
			if first || have.Time < l.series[oldest].Time {
				oldest, first = k, false
			}
		}
		delete(l.series, oldest)
	}
	l.series[k] = s
}

// Get returns the last sample of a series.
func (l *Latest) Get(k Key) (Sample, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.series[k]
	return s, ok
}

// All returns the last samples, ordered by metric, source, device and attribute.
func (l *Latest) All() []Sample {
	l.mu.Lock()
	all := make([]Sample, 0, len(l.series))
	for _, s := range l.series {
		all = append(all, s)
	}
	l.mu.Unlock()
	slices.SortFunc(all, func(a, b Sample) int {
		return cmp.Or(cmp.Compare(a.Metric, b.Metric), cmp.Compare(a.Source, b.Source),
			cmp.Compare(a.Device, b.Device), cmp.Compare(a.Attr, b.Attr))
	})
	return all
}
