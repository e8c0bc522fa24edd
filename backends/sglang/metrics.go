package sglang

import (
	"reprise/backends"
	m "reprise/internal/enginemetrics"
)

// SGLang counts the tokens of a request when it ends, prompts too; what it calls
// realtime_tokens_total is raised between log lines and lags alike. Older
// versions counted retractions in a histogram (num_retractions), and called the
// mean time per output token time_per_output_token_seconds.
func init() {
	backends.RegisterMetrics(&m.Table{
		Engine: "sglang",
		Entries: []m.Entry{
			{Quantity: m.Running, Sources: m.Names("sglang:num_running_reqs")},
			{Quantity: m.Waiting, Sources: m.Names("sglang:num_queue_reqs")},
			{Quantity: m.KVUsage, Sources: m.Names("sglang:full_token_usage", "sglang:token_usage")},
			{Quantity: m.KVCapacity, Sources: m.Names("sglang:max_total_num_tokens")},
			{Quantity: m.KVUsed, Sources: m.Names("sglang:kv_used_tokens", "sglang:num_used_tokens")},
			{Quantity: m.KVBlock, Sources: m.Names("sglang:page_size")},
			{Quantity: m.PrefixQueries, Sources: m.Names("sglang:prompt_tokens_total")},
			{Quantity: m.PrefixHits, Sources: m.Names("sglang:cached_tokens_total")},
			{Quantity: m.Preemptions, Sources: []m.Source{{Name: "sglang:num_retracted_requests_total"}, {Name: "sglang:num_retractions", Sum: true}}},
			{Quantity: m.PromptTokens, Sources: m.Names("sglang:prompt_tokens_total")},
			{Quantity: m.GeneratedTokens, Sources: m.Names("sglang:generation_tokens_total")},
			{Quantity: m.Finished, Sources: m.Names("sglang:num_requests_total")},
			{Quantity: m.Aborted, Sources: m.Names("sglang:num_aborted_requests_total")},
			{Quantity: m.TTFT, Sources: m.Names("sglang:time_to_first_token_seconds")},
			{Quantity: m.Queue, Sources: m.Names("sglang:queue_time_seconds")},
			{Quantity: m.Prefill, Sources: []m.Source{{Name: "sglang:per_stage_req_latency_seconds", Where: map[string]string{"stage": "prefill_forward"}}}},
			{Quantity: m.ITL, Sources: m.Names("sglang:inter_token_latency_seconds")},
			{Quantity: m.TPOT, Sources: m.Names("sglang:request_time_per_output_token_seconds", "sglang:time_per_output_token_seconds")},
			{Quantity: m.E2E, Sources: m.Names("sglang:e2e_request_latency_seconds")},
		},
		EngineLabels: []string{"dp_rank"},
		RankLabels:   []string{"pp_rank", "tp_rank", "moe_ep_rank"},
		Late:         true,
		Enable:       "start SGLang with --enable-metrics",
	})
}
