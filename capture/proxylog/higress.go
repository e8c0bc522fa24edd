package proxylog

import "reprise/traceformat"

// Higress puts what its ai-statistics plugin found into Envoy's JSON, as values
// of their own or as JSON in "ai_log". Durations are in ms. Source: ai-statistics
// in Higress's documentation.
var higressDialect = &Dialect{
	Name: "higress", Title: "Higress, ai-statistics", Vantage: "proxy",
	Detect: func(s *Sample) int {
		if s.json() >= 50 && (s.keys("ai_log", "start_time") || s.anyKey("llm_service_duration", "llm_first_token_duration")) {
			return 97
		}
		return 0
	},
	New: func(s *Sample, o *Options) (Parser, error) {
		keys := []key{{"duration", binding{field: fieldDuration, unit: unitMilli}}}
		for _, in := range []string{"ai_log.", ""} {
			keys = append(keys,
				key{in + "input_token", binding{field: fieldPrompt}},
				key{in + "output_token", binding{field: fieldOutput}},
				key{in + "cached_tokens", binding{field: fieldCached}},
				key{in + "reasoning_tokens", binding{field: fieldReasoning}},
				key{in + "model", binding{field: fieldModel}},
				key{in + "response_model", binding{field: fieldModel}},
				key{in + "session_id", binding{field: fieldSession}},
				key{in + "consumer", binding{field: fieldUser}},
				key{in + "llm_first_token_duration", binding{field: fieldTTFT, unit: unitMilli}},
				key{in + "llm_service_duration", binding{field: fieldDuration, unit: unitMilli}},
			)
		}
		return newTabled(s, newAssembler(o, traceformat.SourceUsage, traceformat.TTFTGateway), append(keys, envoyKeys()...), nil)
	},
}
