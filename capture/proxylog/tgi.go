package proxylog

import (
	"math"

	"reprise/capture"
	"reprise/traceformat"
)

// TGI's --json-output: the line "Success" of a request, written at its end, with
// durations as Rust prints them, in the line or in its span. Source:
// router/src/server.rs of text-generation-inference.
var tgiDialect = &Dialect{
	Name: "tgi", Title: "TGI, JSON log", Vantage: "server",
	Detect: func(s *Sample) int {
		if s.json() >= 50 && s.anyKey("span.total_time", "total_time", "span.time_per_token") && s.keys("timestamp") {
			return 95
		}
		if v, ok := s.value("target"); ok && len(v) > 16 && v[1:16] == "text_generation" {
			return 90
		}
		return 0
	},
	New: func(s *Sample, o *Options) (Parser, error) {
		keys := []key{
			{"timestamp", binding{field: fieldEnd, unit: unitISO}},
			{"message", binding{field: fieldKind}},
			{"fields.message", binding{field: fieldKind}},
		}
		for _, in := range []string{"", "span.", "spans.*.", "fields."} {
			keys = append(keys,
				key{in + "total_time", binding{field: fieldDuration, unit: unitSpelt}},
				key{in + "queue_time", binding{field: fieldQueue, unit: unitSpelt}},
				key{in + "inference_time", binding{field: fieldDecode, unit: unitSpelt}},
				key{in + "time_per_token", binding{field: fieldPerToken, unit: unitSpelt}},
			)
		}
		return newTabled(s, newAssembler(o, traceformat.SourceEngine, ""), keys, func(t *tabled) {
			t.skip = func(r *record) string {
				if !r.has(fieldDuration) {
					return reasonNotRequest
				}
				return ""
			}
			t.fix = func(r *record, l *capture.Logged) {
				l.Row.Endpoint = traceformat.EndpointGenerate
				l.Row.Result = traceformat.ResultOK
				// time_per_token is inference_time divided by the number of tokens,
				// to the nanosecond.
				all, each := r.span(fieldDecode), r.span(fieldPerToken)
				if all.OK && each.OK && each.V > 0 {
					n := float64(all.V) / float64(each.V)
					if whole := math.Round(n); whole >= 1 && whole < 1e6 && math.Abs(n-whole) < 0.01 {
						l.Row.OutputTokens, l.Row.OutputTokensSource = traceformat.Some(int32(whole)), traceformat.SourceEngine
					}
				}
			}
		})
	},
}
