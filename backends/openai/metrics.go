package openai

import (
	"reprise/backends"
	m "reprise/internal/enginemetrics"
)

// llama.cpp counts computed and reused prompt tokens apart, and has sums of
// times but no histograms. Versions before mid-2025 had the use of the KV cache.
func init() {
	const computed, cached = "llamacpp:prompt_tokens_total", "llamacpp:prompt_tokens_cached_total"
	backends.RegisterMetrics(&m.Table{
		Engine: llamaCpp,
		Entries: []m.Entry{
			{Quantity: m.Running, Sources: m.Names("llamacpp:requests_processing")},
			{Quantity: m.Waiting, Sources: m.Names("llamacpp:requests_deferred")},
			{Quantity: m.KVUsage, Sources: m.Names("llamacpp:kv_cache_usage_ratio")},
			{Quantity: m.KVUsed, Sources: m.Names("llamacpp:kv_cache_tokens")},
			{Quantity: m.PrefixQueries, Sources: m.Names(cached), Plus: m.Names(computed)},
			{Quantity: m.PrefixHits, Sources: m.Names(cached)},
			{Quantity: m.PromptTokens, Sources: m.Names(computed), Plus: m.Names(cached)},
			{Quantity: m.GeneratedTokens, Sources: m.Names("llamacpp:tokens_predicted_total")},
			{Quantity: m.Prefill, Sources: m.Names("llamacpp:prompt_seconds_total")},
			{Quantity: m.Decode, Sources: m.Names("llamacpp:tokens_predicted_seconds_total")},
		},
		Enable: "start llama-server with --metrics",
	})
}
