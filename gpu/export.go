package gpu

import (
	"strings"

	dto "github.com/prometheus/client_model/go"
)

// Families are samples as Prometheus has them: names with dots replaced, a
// prefix, and the unit at the end; source, device and attributes as labels.
// Events and gaps, which are no values that last, are left out. samples are
// ordered by metric, as [Latest.All] gives them.
func Families(samples []Sample) (fs []*dto.MetricFamily) {
	var f *dto.MetricFamily
	metric := ""
	for _, s := range samples {
		m, ok := Lookup(s.Metric)
		if !ok || m.Kind == Event || s.IsGap() {
			continue
		}
		if s.Metric != metric {
			metric = s.Metric
			f = &dto.MetricFamily{Name: new(familyName(m)), Help: new(m.Doc), Type: dto.MetricType_GAUGE.Enum()}
			if m.Kind == Counter {
				f.Type = dto.MetricType_COUNTER.Enum()
			}
			fs = append(fs, f)
		}
		labels := []*dto.LabelPair{{Name: new("source"), Value: new(s.Source)}}
		if s.Device != "" {
			labels = append(labels, &dto.LabelPair{Name: new("device"), Value: new(s.Device)})
		}
		for pair := range strings.SplitSeq(s.Attr, ",") {
			if k, v, ok := strings.Cut(pair, "="); ok {
				labels = append(labels, &dto.LabelPair{Name: new(k), Value: new(v)})
			}
		}
		p := &dto.Metric{Label: labels, Gauge: &dto.Gauge{Value: new(s.Value)}}
		if m.Kind == Counter {
			p.Gauge, p.Counter = nil, &dto.Counter{Value: new(s.Value)}
		}
		f.Metric = append(f.Metric, p)
	}
	return fs
}

// unitNames are Prometheus's words for the units that are no annotation.
var unitNames = map[string]string{"s": "seconds", "By": "bytes", "By/s": "bytes_per_second", "W": "watts", "J": "joules", "Hz": "hertz", "Cel": "celsius", "1": "ratio"}

// familyName is the name of a metric of the vocabulary for Prometheus.
func familyName(m Metric) string {
	name := strings.NewReplacer(".", "_", "-", "_").Replace(m.Name)
	if u := unitNames[m.Unit]; u != "" {
		name += "_" + u
	}
	if m.Kind == Counter {
		name += "_total"
	}
	return "reprise_" + name
}
