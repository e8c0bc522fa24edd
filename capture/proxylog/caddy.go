package proxylog

// Caddy writes a line of JSON when a request ends: ts is that moment, in seconds
// or however the encoder was set, duration is in seconds. Source:
// modules/caddyhttp/server.go; lines of versions 2.6 and 2.10.
var caddyDialect = &Dialect{
	Name: "caddy", Title: "Caddy", Vantage: "proxy",
	Detect: func(s *Sample) int {
		if s.json() >= 50 && s.keys("request.uri", "request.method") && s.anyKey("ts", "time", "timestamp") && s.keys("duration", "status") {
			return 95
		}
		return 0
	},
	New: func(s *Sample, o *Options) (Parser, error) {
		t, err := newTabled(s, newAssembler(o, "", ""), []key{
			{"ts", binding{field: fieldEnd}},
			{"time", binding{field: fieldEnd}},
			{"timestamp", binding{field: fieldEnd}},
			{"duration", binding{field: fieldDuration, unit: unitAuto}},
			{"request.method", binding{field: fieldMethod}},
			{"request.uri", binding{field: fieldPath}},
			{"request.client_ip", binding{field: fieldClient}},
			{"request.remote_ip", binding{field: fieldClient}},
			{"user_id", binding{field: fieldUser}},
			{"status", binding{field: fieldStatus}},
			// Lines of other loggers have a message and no request.
			{"msg", binding{field: fieldKind}},
		}, func(t *tabled) {
			t.skip = func(r *record) string {
				if !r.has(fieldPath) {
					return reasonNotRequest
				}
				return ""
			}
		})
		if t != nil {
			t.cap.Notes = append(t.cap.Notes, "Caddy marks no aborts: an answer that the client gave up looks like a short one")
		}
		return t, err
	},
}
