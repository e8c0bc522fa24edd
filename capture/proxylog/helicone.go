package proxylog

import (
	"time"

	"reprise/capture"
	"reprise/traceformat"
)

// Helicone's export. Source: Helicone's documentation, "Request schema".
var heliconeDialect = &Dialect{
	Name: "helicone", Title: "Helicone, requests", Vantage: "proxy",
	Detect: func(s *Sample) int {
		if s.keys("request_created_at") && s.anyKey("delay_ms", "response_created_at", "request_model", "response_model") {
			return 96
		}
		return 0
	},
	New: func(s *Sample, o *Options) (Parser, error) {
		utc := *o
		if utc.Zone == nil {
			utc.Zone = time.UTC
		}
		return newTabled(s, newAssembler(&utc, traceformat.SourceUsage, traceformat.TTFTGateway), []key{
			{"request_created_at", binding{field: fieldStart}},
			{"delay_ms", binding{field: fieldDuration, unit: unitMilli}},
			{"response_created_at", binding{field: fieldEnd}},
			{"time_to_first_token", binding{field: fieldTTFT, unit: unitMilli}},
			{"response_status", binding{field: fieldStatus}},
			{"response_model", binding{field: fieldModel}},
			{"request_model", binding{field: fieldModelAsked}},
			{"model", binding{field: fieldModel}},
			{"prompt_tokens", binding{field: fieldPrompt}},
			{"completion_tokens", binding{field: fieldOutput}},
			{"prompt_cache_read_tokens", binding{field: fieldCached}},
			{"reasoning_tokens", binding{field: fieldReasoning}},
			{"request_user_id", binding{field: fieldUser}},
			{"user_id", binding{field: fieldUser}},
			{"request_path", binding{field: fieldPath}},
			{"request_properties.Helicone-Session-Id", binding{field: fieldSession}},
			{"properties.Helicone-Session-Id", binding{field: fieldSession}},
			{"cache_enabled_hit", binding{field: fieldCacheHit}},
		}, func(t *tabled) {
			t.fix = func(r *record, l *capture.Logged) {
				if s, ok := l.Row.Status.Get(); !ok && r.has(fieldStatus) && s == 0 {
					// Helicone's own codes: -1 timeout, -3 cancelled, -4 threat.
					switch r.text(fieldStatus) {
					case "-1":
						l.Row.Result, l.Row.Error = traceformat.ResultTimeout, "timeout"
					case "-3":
						l.Row.Result, l.Row.Abort, l.Row.E2E = traceformat.ResultClientAbort, l.Row.E2E, traceformat.Opt[time.Duration]{}
					case "-4":
						l.Row.Result, l.Row.Error = traceformat.ResultRejected, "proxy_denied"
					}
				}
			}
		})
	},
}
