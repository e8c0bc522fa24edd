package server

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"reprise/backends/sim/engine"
)

// A histogram is one of Prometheus, cumulative only when printed.
type histogram struct {
	bounds []float64
	counts []uint64 // one more than bounds
	sum    float64
	n      uint64
}

func newHistogram(bounds []float64) *histogram {
	return &histogram{bounds: bounds, counts: make([]uint64, len(bounds)+1)}
}

func (h *histogram) observe(v float64) {
	i := 0
	for i < len(h.bounds) && v > h.bounds[i] {
		i++
	}
	h.counts[i]++
	h.n++
	h.sum += v
}

// Bucket bounds of vLLM 0.32.
var (
	ttftBounds    = []float64{.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560}
	itlBounds     = []float64{.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80}
	requestBounds = []float64{.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680}
	choiceBounds  = []float64{1, 2, 5, 10, 20}
	preemptBounds = []float64{1, 2, 3, 4, 5, 10, 20}
	httpBounds    = []float64{.1, .5, 1}
)

// lengthBounds is 1, 2, 5, 10, ... up to the longest sequence.
func lengthBounds(limit int) (b []float64) {
	for m := 1; ; m *= 10 {
		for _, k := range []int{1, 2, 5} {
			if m*k > limit {
				return b
			}
			b = append(b, float64(m*k))
		}
	}
}

// metrics is what /metrics shows beyond the engine's own counters. It is
// guarded by Server.mu.
type metrics struct {
	promptTokens, cachedTokens, generated uint64
	finishedBy                            [len(reasons)]uint64

	prompt, generation, maxGeneration, n, maxTokens, computed *histogram
	iteration, preemptions                                    *histogram
	ttft, itl, tpot, e2e, queue, inference, prefill, decode   *histogram

	lagMax  time.Duration
	lagSum  time.Duration
	lagging uint64 // passes that ended more than a millisecond late

	requests  map[httpKey]uint64
	durations map[httpKey]*histogram // status empty
}

type httpKey struct{ handler, method, status string }

func (m *metrics) init(maxModelLen int) {
	l := lengthBounds(maxModelLen)
	m.prompt, m.generation, m.maxGeneration = newHistogram(l), newHistogram(l), newHistogram(l)
	m.maxTokens, m.computed = newHistogram(l), newHistogram(l)
	m.n, m.iteration, m.preemptions = newHistogram(choiceBounds), newHistogram(engine.IterationBounds), newHistogram(preemptBounds)
	m.ttft, m.itl, m.tpot = newHistogram(ttftBounds), newHistogram(itlBounds), newHistogram(itlBounds)
	for _, h := range []**histogram{&m.e2e, &m.queue, &m.inference, &m.prefill, &m.decode} {
		*h = newHistogram(requestBounds)
	}
	m.requests, m.durations = map[httpKey]uint64{}, map[httpKey]*histogram{}
}

// step counts a pass as vLLM does: a prompt's tokens in the pass that ends it.
func (m *metrics) step(events []engine.Event) {
	n := len(events)
	m.generated += uint64(n)
	for i := range events {
		if r := events[i].Req; events[i].First {
			n += r.PromptLen
			m.promptTokens += uint64(r.PromptLen)
			m.cachedTokens += uint64(r.CachedTokens)
		}
	}
	if n > 0 {
		m.iteration.observe(float64(n))
	}
}

func (m *metrics) token(ev engine.Event, now time.Duration) {
	if ev.First {
		m.ttft.observe((now - ev.Req.Arrived).Seconds())
	} else {
		m.itl.observe(ev.Gap.Seconds())
	}
}

func (m *metrics) finished(r *engine.Request, c *call) {
	m.finishedBy[r.Finish]++
	m.prompt.observe(float64(r.PromptLen))
	m.generation.observe(float64(r.Output))
	m.maxGeneration.observe(float64(r.Output))
	m.maxTokens.observe(float64(c.maxTok))
	m.n.observe(float64(c.n))
	m.computed.observe(float64(r.PromptLen - r.CachedTokens))
	m.preemptions.observe(float64(r.Preemptions))
	m.e2e.observe((r.Last - r.Arrived).Seconds())
	m.queue.observe((r.Scheduled - r.Queued).Seconds())
	m.inference.observe((r.Last - r.Scheduled).Seconds())
	m.prefill.observe((r.First - r.Scheduled).Seconds())
	m.decode.observe((r.Last - r.First).Seconds())
	tpot := 0.0
	if r.Output > 1 {
		tpot = (r.Last - r.First).Seconds() / float64(r.Output-1)
	}
	m.tpot.observe(tpot)
}

func (m *metrics) lag(d time.Duration) {
	m.lagSum += d
	m.lagMax = max(m.lagMax, d)
	if d > time.Millisecond {
		m.lagging++
	}
}

func (m *metrics) http(handler, method string, status int, d time.Duration) {
	if handler == "/metrics" || handler == "/health" || handler == "/ping" {
		return // vLLM's instrumentation leaves these out
	}
	switch method {
	case "GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH":
	default:
		method = "OTHER" // a client must not make up label values
	}
	m.requests[httpKey{handler, method, strconv.Itoa(status/100) + "xx"}]++
	k := httpKey{handler, method, ""}
	if m.durations[k] == nil {
		m.durations[k] = newHistogram(httpBounds)
	}
	m.durations[k].observe(d.Seconds())
}

// A page writes the Prometheus text format.
type page struct {
	b      []byte
	labels string // of all engine metrics
}

func (p *page) family(name, kind, help string) {
	p.b = append(p.b, "# HELP "+name+" "+help+"\n# TYPE "+name+" "+kind+"\n"...)
}

func (p *page) sample(name, labels string, v float64) {
	p.b = append(p.b, name...)
	if labels != "" {
		p.b = append(append(append(p.b, '{'), labels...), '}')
	}
	p.b = appendFloat(append(p.b, ' '), v)
	p.b = append(p.b, '\n')
}

// value writes a family with one sample.
func (p *page) value(name, kind, help string, v float64) {
	p.family(name, kind, help)
	p.sample(name, p.labels, v)
}

// split writes a family with a sample per value of one label.
func (p *page) split(name, kind, help, label string, values ...any) {
	p.family(name, kind, help)
	for i := 0; i < len(values); i += 2 {
		p.sample(name, p.with(label, values[i].(string)), values[i+1].(float64))
	}
}

// with adds a label, keeping the alphabetical order of vLLM's client library.
func (p *page) with(name, value string) string {
	all := append(strings.Split(p.labels, ","), name+"="+quote(value))
	slices.Sort(all)
	return strings.Join(all, ",")
}

func quote(v string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`).Replace(v) + `"`
}

func (p *page) histogram(name, help string, h *histogram) {
	p.family(name, "histogram", help)
	p.buckets(name, h, p.with)
	p.sample(name+"_count", p.labels, float64(h.n))
	p.sample(name+"_sum", p.labels, h.sum)
}

func (p *page) buckets(name string, h *histogram, with func(name, value string) string) {
	total := uint64(0)
	for i, c := range h.counts {
		total += c
		le := "+Inf"
		if i < len(h.bounds) {
			le = string(appendFloat(nil, h.bounds[i]))
		}
		p.sample(name+"_bucket", with("le", le), float64(total))
	}
}

func (s *Server) metricsPage(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	b := s.m.page(s.eng.Stats(), s)
	s.mu.Unlock()
	h := w.Header()
	h.Set("Content-Type", "text/plain; version=1.0.0; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(b)))
	w.Write(b)
}

func (m *metrics) page(st engine.Stats, s *Server) []byte {
	p := page{labels: `engine="0",model_name=` + quote(s.opts.Model)}
	num := func(v uint64) float64 { return float64(v) }

	p.b = append(p.b, "# HELP process_start_time_seconds Start time of the process since unix epoch in seconds.\n# TYPE process_start_time_seconds gauge\n"...)
	p.sample("process_start_time_seconds", "", float64(s.started.UnixNano())/1e9)

	p.value("vllm:num_requests_running", "gauge", "Number of requests in model execution batches.", float64(st.Running))
	p.value("vllm:num_requests_waiting", "gauge", "Number of requests waiting to be processed.", float64(st.Waiting))
	p.split("vllm:num_requests_waiting_by_reason", "gauge", "Number of waiting requests by reason.", "reason", "capacity", float64(st.Waiting), "deferred", 0.0)
	p.split("vllm:engine_sleep_state", "gauge", "Engine sleep state; awake = 1 means engine is awake.", "sleep_state", "awake", 1.0, "weights_offloaded", 0.0, "discard_all", 0.0)
	p.value("vllm:kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.", float64(st.UsedBlocks)/float64(st.Blocks))
	p.value("vllm:prefix_cache_queries_total", "counter", "Prefix cache queries, in terms of number of queried tokens.", num(st.CacheQueries))
	p.value("vllm:prefix_cache_hits_total", "counter", "Prefix cache hits, in terms of number of cached tokens.", num(st.CacheHits))
	p.value("vllm:external_prefix_cache_queries_total", "counter", "External prefix cache queries: none is simulated.", 0)
	p.value("vllm:external_prefix_cache_hits_total", "counter", "External prefix cache hits: none is simulated.", 0)
	p.value("vllm:mm_cache_queries_total", "counter", "Multi-modal cache queries: none is simulated.", 0)
	p.value("vllm:mm_cache_hits_total", "counter", "Multi-modal cache hits: none is simulated.", 0)
	p.value("vllm:num_preemptions_total", "counter", "Cumulative number of preemption from the engine.", num(st.Preemptions))
	p.value("vllm:prompt_tokens_total", "counter", "Number of prefill tokens processed.", num(m.promptTokens))
	p.split("vllm:prompt_tokens_by_source_total", "counter", "Number of prompt tokens by source.", "source",
		"local_compute", num(m.promptTokens-m.cachedTokens), "local_cache_hit", num(m.cachedTokens), "external_kv_transfer", 0.0)
	p.value("vllm:prompt_tokens_cached_total", "counter", "Number of cached prompt tokens (local + external).", num(m.cachedTokens))
	p.split("vllm:prompt_tokens_cached_by_source_total", "counter", "Prefix-cache hit tokens by the cache tier that supplied them.", "source",
		"device", num(st.CacheHits), "host", 0.0, "p2p", 0.0, "disk", 0.0, "external_unspecified", 0.0)
	p.value("vllm:generation_tokens_total", "counter", "Number of generation tokens processed.", num(m.generated))
	// Requests of clients that hang up are not counted, as in vLLM.
	p.split("vllm:request_success_total", "counter", "Count of successfully processed requests.", "finished_reason",
		"stop", num(m.finishedBy[engine.Stop]), "length", num(m.finishedBy[engine.Length]), "abort", 0.0, "error", 0.0, "repetition", 0.0)
	p.family("vllm:admission_rejections_total", "counter", "Number of admission attempts rejected by a queue limit, by reason.")
	for _, why := range []string{"max_num_queued_reqs", "max_num_queued_tokens"} {
		p.sample("vllm:admission_rejections_total", "model_name="+quote(s.opts.Model)+",reason="+quote(why), 0)
	}

	p.histogram("vllm:request_prompt_tokens", "Number of prefill tokens processed.", m.prompt)
	p.histogram("vllm:request_generation_tokens", "Number of generation tokens processed.", m.generation)
	p.histogram("vllm:iteration_tokens_total", "Histogram of number of tokens per engine_step.", m.iteration)
	p.histogram("vllm:request_max_num_generation_tokens", "Histogram of maximum number of requested generation tokens.", m.maxGeneration)
	p.histogram("vllm:request_params_n", "Histogram of the n request parameter.", m.n)
	p.histogram("vllm:request_params_max_tokens", "Histogram of the max_tokens request parameter.", m.maxTokens)
	p.histogram("vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", m.ttft)
	p.histogram("vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", m.itl)
	p.histogram("vllm:request_time_per_output_token_seconds", "Histogram of time_per_output_token_seconds per request.", m.tpot)
	p.histogram("vllm:e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", m.e2e)
	p.histogram("vllm:request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.", m.queue)
	p.histogram("vllm:request_inference_time_seconds", "Histogram of time spent in RUNNING phase for request.", m.inference)
	p.histogram("vllm:request_prefill_time_seconds", "Histogram of time spent in PREFILL phase for request.", m.prefill)
	p.histogram("vllm:request_decode_time_seconds", "Histogram of time spent in DECODE phase for request.", m.decode)
	p.histogram("vllm:request_num_preemptions", "Histogram of number of preemptions per request.", m.preemptions)
	p.histogram("vllm:request_prefill_kv_computed_tokens", "Histogram of new KV tokens computed during prefill (excluding cached tokens).", m.computed)

	p.family("vllm:cache_config_info", "gauge", "Information of the LLMEngine CacheConfig")
	info := []string{
		`block_size="` + strconv.Itoa(s.cfg.BlockSize) + `"`,
		`cache_dtype="auto"`,
		`enable_prefix_caching="` + pyBool(s.cfg.PrefixCaching && s.cfg.Batching != engine.Static) + `"`,
		`engine="0"`,
		`kv_cache_size_tokens="` + strconv.Itoa(s.cfg.Blocks*s.cfg.BlockSize) + `"`,
		`num_gpu_blocks="` + strconv.Itoa(s.cfg.Blocks) + `"`,
		`num_gpu_blocks_override="None"`,
	}
	p.sample("vllm:cache_config_info", strings.Join(info, ","), 1)

	// What only a simulation has: how far it trails behind its own schedule.
	// Latencies measured against it are too long by about this much.
	p.value("sim:pass_lag_seconds_max", "gauge", "Largest lateness of a pass against its simulated end.", m.lagMax.Seconds())
	p.value("sim:pass_lag_seconds_total", "counter", "Sum of the lateness of all passes.", m.lagSum.Seconds())
	p.value("sim:passes_late_total", "counter", "Passes that ended more than 1 ms late.", num(m.lagging))
	p.value("sim:passes_total", "counter", "Forward passes.", num(st.Steps))
	p.value("sim:computed_tokens_total", "counter", "Tokens computed in passes, recomputed and padding ones included.", num(st.ComputedTokens))
	p.value("sim:aborted_requests_total", "counter", "Requests whose client hung up, which vLLM counts nowhere.", num(st.Aborted))
	p.value("sim:padded_tokens_total", "counter", "Padding tokens computed under static batching.", num(st.PaddedTokens))

	keys := slices.SortedFunc(maps.Keys(m.requests), compareHTTP)
	p.family("http_requests_total", "counter", "Total number of requests by method, status and handler.")
	for _, k := range keys {
		p.sample("http_requests_total", k.labels()+",status="+quote(k.status), num(m.requests[k]))
	}
	p.family("http_request_duration_seconds", "histogram", "Latency with only few buckets by handler.")
	for _, k := range slices.SortedFunc(maps.Keys(m.durations), compareHTTP) {
		h := m.durations[k]
		p.buckets("http_request_duration_seconds", h, func(_, le string) string {
			return "handler=" + quote(k.handler) + ",le=" + quote(le) + ",method=" + quote(k.method)
		})
		p.sample("http_request_duration_seconds_count", k.labels(), num(h.n))
		p.sample("http_request_duration_seconds_sum", k.labels(), h.sum)
	}
	return p.b
}

func (k httpKey) labels() string {
	return "handler=" + quote(k.handler) + ",method=" + quote(k.method)
}

func compareHTTP(a, b httpKey) int {
	return strings.Compare(a.handler+" "+a.method+" "+a.status, b.handler+" "+b.method+" "+b.status)
}

func pyBool(v bool) string {
	if v {
		return "True"
	}
	return "False"
}
