package vllm

import (
	"reprise/backends"
	m "reprise/internal/enginemetrics"
)

func init() { backends.RegisterMetrics(Metrics("vllm")) }

// Metrics is the table of vLLM's /metrics for an engine that speaks its dialect.
//
// Names that older versions used: gpu_cache_usage_perc and gpu_prefix_cache_* to
// 0.10, time_per_output_token_seconds (which was the time between tokens, not a
// request's mean) to 0.12, time_in_queue_requests to 0.8.
func Metrics(engine string) *m.Table {
	return &m.Table{
		Engine: engine,
		Entries: []m.Entry{
			{Quantity: m.Running, Sources: m.Names("vllm:num_requests_running")},
			{Quantity: m.Waiting, Sources: m.Names("vllm:num_requests_waiting")},
			{Quantity: m.KVUsage, Sources: m.Names("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")},
			{Quantity: m.KVCapacity, Sources: []m.Source{{Name: "vllm:cache_config_info", Label: "kv_cache_size_tokens"}}},
			{Quantity: m.KVBlocks, Sources: []m.Source{{Name: "vllm:cache_config_info", Label: "num_gpu_blocks"}}},
			{Quantity: m.KVBlock, Sources: []m.Source{{Name: "vllm:cache_config_info", Label: "block_size"}}},
			{Quantity: m.PrefixQueries, Sources: m.Names("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total")},
			{Quantity: m.PrefixHits, Sources: m.Names("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total")},
			{Quantity: m.Preemptions, Sources: m.Names("vllm:num_preemptions_total")},
			{Quantity: m.PromptTokens, Sources: m.Names("vllm:prompt_tokens_total")},
			{Quantity: m.GeneratedTokens, Sources: m.Names("vllm:generation_tokens_total")},
			{Quantity: m.Finished, Sources: m.Names("vllm:request_success_total")},
			{Quantity: m.Rejected, Sources: m.Names("vllm:admission_rejections_total")},
			{Quantity: m.TTFT, Sources: m.Names("vllm:time_to_first_token_seconds")},
			{Quantity: m.Queue, Sources: m.Names("vllm:request_queue_time_seconds", "vllm:time_in_queue_requests")},
			{Quantity: m.Prefill, Sources: m.Names("vllm:request_prefill_time_seconds")},
			{Quantity: m.Decode, Sources: m.Names("vllm:request_decode_time_seconds")},
			{Quantity: m.ITL, Sources: m.Names("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds")},
			{Quantity: m.TPOT, Sources: m.Names("vllm:request_time_per_output_token_seconds")},
			{Quantity: m.E2E, Sources: m.Names("vllm:e2e_request_latency_seconds")},
		},
		EngineLabels: []string{"engine", "engine_idx"},
		Enable:       "start vLLM without --disable-log-stats",
	}
}
