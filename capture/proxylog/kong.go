package proxylog

import (
	"bytes"
	"strings"

	"reprise/capture"
	"reprise/traceformat"
)

// Kong's serializer of the log plugins, with what ai-proxy adds under "ai":
// started_at is in epoch ms, latencies are in ms. The names under "ai" are those
// of the plugins (proxy, ai-proxy, ...). Sources: "AI Gateway audit log
// reference", kong/pdk/log.lua.
var kongDialect = &Dialect{
	Name: "kong", Title: "Kong, ai-proxy", Vantage: "proxy",
	Detect: func(s *Sample) int {
		if s.json() >= 50 && s.keys("started_at", "latencies.request") {
			return 95
		}
		return 0
	},
	New: func(s *Sample, o *Options) (Parser, error) {
		keys := []key{
			{"started_at", binding{field: fieldStart, unit: unitMilli}},
			{"latencies.request", binding{field: fieldDuration, unit: unitMilli}},
			{"request.method", binding{field: fieldMethod}},
			{"request.uri", binding{field: fieldPath}},
			{"upstream_uri", binding{field: fieldPath}},
			{"response.status", binding{field: fieldStatus}},
			{"client_ip", binding{field: fieldClient}},
			{"consumer.id", binding{field: fieldUser}},
			{"authenticated_entity.id", binding{field: fieldUser}},
			{"tries", binding{field: fieldUpstream}},
		}
		for _, ns := range kongNames(s) {
			ns = "ai." + strings.ReplaceAll(ns, ".", `\.`) + "."
			keys = append(keys,
				key{ns + "meta.response_model", binding{field: fieldModel}},
				key{ns + "meta.request_model", binding{field: fieldModelAsked}},
				key{ns + "meta.llm_latency", binding{field: fieldDecode, unit: unitMilli}},
				key{ns + "usage.prompt_tokens", binding{field: fieldPrompt}},
				key{ns + "usage.prompt_token", binding{field: fieldPrompt}},
				key{ns + "usage.completion_tokens", binding{field: fieldOutput}},
				key{ns + "usage.completion_token", binding{field: fieldOutput}},
				key{ns + "usage.time_to_first_token", binding{field: fieldTTFT, unit: unitMilli}},
				key{ns + "usage.time_per_token", binding{field: fieldPerToken, unit: unitMilli}},
				key{ns + "cache.cache_status", binding{field: fieldCacheHit}},
			)
		}
		return newTabled(s, newAssembler(o, traceformat.SourceUsage, traceformat.TTFTGateway), keys, func(t *tabled) {
			t.skip = func(r *record) string {
				if r.has(fieldUpstream) {
					// The array of tries: as many attempts as it has objects.
					if n := bytes.Count(r.vals[fieldUpstream].raw, []byte(`"ip"`)); n > 1 {
						r.put(&binding{field: fieldAttempts}, appendInt(nil, int64(n)), false)
					}
					r.set &^= 1 << fieldUpstream
				}
				return ""
			}
			t.fix = func(r *record, l *capture.Logged) {
				if r.has(fieldCacheHit) && strings.EqualFold(r.text(fieldCacheHit), "hit") {
					l.Row.Extra = servedByCache
				}
			}
		})
	},
}

// servedByCache marks an answer that the gateway had in a cache of its own: the
// engine saw nothing of it.
const servedByCache = `{"served_by":"cache"}`

// kongNames are the names under "ai" in the sample, and those that are usual.
func kongNames(s *Sample) []string {
	names := []string{"proxy", "ai-proxy", "ai-proxy-advanced"}
	for _, o := range s.objects {
		for k := range o {
			name, ok := strings.CutPrefix(k, "ai.")
			if ok && len(names) < 16 && !strings.Contains(strings.Join(names, " ")+" ", name+" ") {
				names = append(names, name)
			}
		}
	}
	return names
}
