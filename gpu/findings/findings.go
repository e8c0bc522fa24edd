package findings

import (
	"time"

	"reprise/gpu"
	"reprise/internal/metrics"
	"reprise/traceformat"
)

// Input is what Analyse takes besides samples.
type Input struct {
	From, To time.Duration // measured window, in run time
	// OutputTokens are those whose events fall into the window, Completed the
	// requests that ended well in it, Sent those that were sent in it.
	OutputTokens float64
	Completed    float64
	Sent         float64
	Requests     *Requests
	// Shared says that other shards of the run load the same server: what it
	// holds is not held against these requests alone.
	Shared bool
	// Implied is the share of prompt tokens that the trace implies to be in the
	// prefix cache.
	Implied traceformat.Opt[float64]
	// Spans are the engine's histograms over the run, by metric; nil: the sums
	// and counts in the samples are all there is.
	Spans map[string]gpu.EngineSpan
}

// FromSummary is what the figures of a run say, and its rows.
func FromSummary(s *metrics.Summary, rows *Requests) Input {
	sec := s.Window.Length.Seconds()
	return Input{
		From: s.Window.From, To: s.Window.To, Requests: rows,
		OutputTokens: s.Rates.OutputTokens * sec, Completed: s.Rates.Completed * sec, Sent: s.Rates.Sent * sec,
	}
}

// Findings are what telemetry and requests say together. A part for which there
// was no telemetry is nil.
type Findings struct {
	Engine      *Engine     `json:"engine,omitempty"`
	GPUs        []GPU       `json:"gpus,omitempty"`
	Energy      *Energy     `json:"energy,omitempty"`
	KV          *KV         `json:"kv_cache,omitempty"`
	Prefix      *Prefix     `json:"prefix_cache,omitempty"`
	Little      *Little     `json:"littles_law,omitempty"`
	Clocks      *Clocks     `json:"clocks,omitempty"`
	Environment Environment `json:"environment"`
	Warnings    []string    `json:"warnings,omitempty"`
}

// A Level sums up one gauge over the measured window.
type Level struct {
	Mean float64 `json:"mean"`
	Min  float64 `json:"min"`
	Max  float64 `json:"max"`
	N    int64   `json:"n"` // samples
}

// Engine is what the engine said of itself, engines of one run added up.
// Counts are from the first scrape to the last.
type Engine struct {
	Engines     int                    `json:"engines"`
	Running     *Level                 `json:"running,omitempty"`
	Waiting     *Level                 `json:"waiting,omitempty"`
	Prompt      traceformat.Opt[int64] `json:"prompt_tokens,omitzero"`
	Generated   traceformat.Opt[int64] `json:"generated_tokens,omitzero"`
	Finished    traceformat.Opt[int64] `json:"requests_finished,omitzero"`
	Aborted     traceformat.Opt[int64] `json:"requests_aborted,omitzero"`
	Rejected    traceformat.Opt[int64] `json:"requests_rejected,omitzero"`
	Preemptions traceformat.Opt[int64] `json:"preemptions,omitzero"`
	Restarts    int64                  `json:"restarts,omitempty"`
	// Received are the output tokens that this client got. An engine that
	// generated more has other clients, or answers that were cut off.
	Received int64 `json:"received_tokens"`
	// Spans are by the engine's clock, over the run.
	Spans map[string]gpu.EngineSpan `json:"spans,omitempty"`
}

// GPU sums up one device over the measured window.
type GPU struct {
	Source      string                   `json:"source"`
	Device      string                   `json:"device"`
	Utilization *Level                   `json:"utilization,omitempty"`
	SMActive    *Level                   `json:"sm_active,omitempty"`
	DRAMActive  *Level                   `json:"dram_active,omitempty"`
	Tensor      *Level                   `json:"tensor_active,omitempty"`
	Power       *Level                   `json:"power_watts,omitempty"`
	Temperature *Level                   `json:"temperature_celsius,omitempty"`
	ClockSM     *Level                   `json:"sm_clock_hertz,omitempty"`
	Memory      *Level                   `json:"memory_bytes,omitempty"`
	MemoryLimit float64                  `json:"memory_limit_bytes,omitempty"`
	Headroom    traceformat.Opt[float64] `json:"memory_headroom_bytes,omitzero"` // least there was
	Energy      traceformat.Opt[float64] `json:"energy_joules,omitzero"`
	// Throttled is the time for which clocks were held down, by reason. By
	// counters where there are some, else by samples of the reasons.
	Throttled map[string]float64 `json:"throttled_s,omitempty"`
	Processes int                `json:"processes,omitempty"` // most that held the device at once
	Corrected float64            `json:"ecc_corrected,omitempty"`
	Fatal     float64            `json:"ecc_uncorrected,omitempty"`
	XIDs      []int              `json:"xids,omitempty"`
}

// Energy is that of all GPUs over the window.
type Energy struct {
	Joules         float64                  `json:"joules"`
	Watts          float64                  `json:"watts_mean"`
	PerOutputToken traceformat.Opt[float64] `json:"joules_per_output_token,omitzero"`
	PerRequest     traceformat.Opt[float64] `json:"joules_per_request,omitzero"`
	GPUs           int                      `json:"gpus"`
	// Covered is the share of the window for which every counter is known.
	Covered float64 `json:"covered"`
}

// KV is the growth of the KV cache.
type KV struct {
	Usage    *Level                   `json:"usage,omitempty"`          // share
	Headroom traceformat.Opt[float64] `json:"headroom,omitzero"`        // 1 less the highest share
	Capacity traceformat.Opt[float64] `json:"capacity_tokens,omitzero"` //
	// Used tokens = Fixed + PerResident × resident tokens, by least squares over
	// the scrapes of the run: below 1 where prompts share prefixes, above it for
	// half-filled blocks.
	PerResident traceformat.Opt[float64] `json:"used_per_resident_token,omitzero"`
	Fixed       traceformat.Opt[float64] `json:"used_tokens_at_none,omitzero"`
	R2          traceformat.Opt[float64] `json:"r2,omitzero"`
	N           int64                    `json:"n,omitempty"`
	Growth      []Growth                 `json:"growth,omitempty"` // by concurrency
}

// Growth is one range of concurrency.
type Growth struct {
	Flight   float64 `json:"in_flight_mean"`
	From     float64 `json:"in_flight_from"`
	To       float64 `json:"in_flight_to"`
	Length   float64 `json:"sequence_tokens_mean"` // resident tokens a request
	Resident float64 `json:"resident_tokens_mean"`
	Used     float64 `json:"used_tokens_mean"`
	Usage    float64 `json:"usage_mean"`
	N        int64   `json:"n"`
}

// Prefix compares hits of the prefix cache.
type Prefix struct {
	Queries int64                    `json:"queried_tokens"`
	Hits    int64                    `json:"hit_tokens"`
	Hit     float64                  `json:"hit"`
	Implied traceformat.Opt[float64] `json:"implied,omitzero"`
	// Difference is Hit less Implied.
	Difference traceformat.Opt[float64] `json:"difference,omitzero"`
}

// Little checks the number in flight, over the window.
type Little struct {
	Rate   float64 `json:"sent_per_second"`
	Stay   float64 `json:"stay_s_mean"`
	Law    float64 `json:"rate_times_stay"`
	Client float64 `json:"client_in_flight_mean"` // counted, not computed
	Engine float64 `json:"engine_in_flight_mean"` // running and waiting
	N      int64   `json:"n"`                     // samples of the engine's
	// Beside is Engine less Client: requests of others where it is above zero,
	// and below it the way between the two, front ends and all.
	Beside float64 `json:"engine_less_client"`
	Agree  bool    `json:"agree"` // within 20 % of the client's, or 1
}

// Clocks says how far the engine's clock and ours disagree.
type Clocks struct {
	// By request, ours less the engine's, where its answers hold its own times.
	TTFT *Disagreement `json:"ttft,omitempty"`
	E2E  *Disagreement `json:"e2e,omitempty"`
	// Queue is the engine's alone, request by request.
	Queue *Disagreement `json:"server_queue,omitempty"`
	// By sums over the run, where it has histograms: means.
	Sums []SumDisagreement `json:"sums,omitempty"`
}

// A Disagreement is a distribution of differences.
type Disagreement struct {
	N    int64         `json:"n"`
	Mean time.Duration `json:"mean_ns"`
	Min  time.Duration `json:"min_ns"`
	P50  time.Duration `json:"p50_ns"`
	P99  time.Duration `json:"p99_ns"`
	Max  time.Duration `json:"max_ns"`
}

// A SumDisagreement compares a sum of ours with one of the engine's.
type SumDisagreement struct {
	Metric     string        `json:"metric"`
	Ours       time.Duration `json:"ours_ns_mean"`
	OursN      int64         `json:"ours_n"`
	Engine     time.Duration `json:"engine_ns_mean"`
	EngineN    int64         `json:"engine_n"`
	Difference time.Duration `json:"difference_ns"` // ours less the engine's
}

// Verdicts of an Environment.
const (
	Undisturbed = "undisturbed"
	Doubtful    = "doubtful"  // something was amiss, too little to throw the run away
	Disturbed   = "disturbed" // the run measures something else than the engine on its GPUs
	Unwatched   = "unwatched" // nobody looked at the GPUs
)

// Environment says whether the serving host was left alone.
type Environment struct {
	Verdict  string   `json:"verdict"`
	Reasons  []string `json:"reasons,omitempty"`  // of Disturbed
	Warnings []string `json:"warnings,omitempty"` // of Doubtful
}
