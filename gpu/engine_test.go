package gpu_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"reprise/backends"
	_ "reprise/backends/openai"
	_ "reprise/backends/sglang"
	_ "reprise/backends/sim"
	_ "reprise/backends/vllm"
	"reprise/gpu"
	"reprise/internal/enginemetrics"
)

// A pages server answers each scrape with what its handler says.
func pages(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL + "/metrics"
}

func newEngine(t *testing.T, o gpu.EngineOptions) *gpu.Engine {
	t.Helper()
	e, err := gpu.NewEngine(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// scrape takes one reading at a made-up time.
func scrape(t *testing.T, e *gpu.Engine, at time.Duration) (got map[string]float64, samples []gpu.Sample, err error) {
	t.Helper()
	got = map[string]float64{}
	err = e.Sample(t.Context(), func() time.Duration { return at }, func(s gpu.Sample) {
		if _, known := gpu.Lookup(s.Metric); !known {
			t.Errorf("metric %s is not of the vocabulary", s.Metric)
		}
		samples = append(samples, s)
		k := strings.TrimPrefix(s.Metric, "gen_ai.server.")
		if s.Device != "engine" && s.Device != "engine0" {
			k = s.Device + " " + k
		}
		if s.Attr != "" {
			k += " " + s.Attr
		}
		got[k] = s.Value
	})
	return got, samples, err
}

func fixture(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/engines/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// What real engines wrote becomes the one vocabulary, value by value.
func TestEnginesFixtures(t *testing.T) {
	for _, tt := range []struct {
		file, engine string
		want         map[string]float64
		not          []string
	}{
		{"vllm-0.32.0-load.txt", "vllm", map[string]float64{
			"requests.running": 3, "requests.waiting": 0, "kv_cache.capacity": 4194304, "kv_cache.block_size": 128, "kv_cache.blocks": 32768,
			"kv_cache.usage": 0.00018311105685597795, "kv_cache.used": 0.00018311105685597795 * 4194304,
		}, []string{"requests.aborted"}},
		{"vllm-0.32.0.txt", "vllm", map[string]float64{
			"prefix_cache.queries": 286467, "prefix_cache.hits": 98304, "preemptions": 0, "tokens.prompt": 286467, "tokens.generated": 52522,
			"requests.finished": 893, "requests.rejected": 0, "time_to_first_token.count": 898, "time_to_first_token.sum": 117.27180790901184,
			"inter_token_latency.count": 51624, "time_per_output_token.count": 893, "request.duration.count": 893,
			"time_in_queue.count": 893, "time_in_queue.sum": 9.272249889996601,
		}, nil},
		{"sglang-0.5.23-load.txt", "sglang", map[string]float64{
			"requests.running": 3, "requests.waiting": 0, "kv_cache.capacity": 65536, "kv_cache.used": 1041, "kv_cache.usage": 0.0158843994140625,
			"kv_cache.block_size": 1, "preemptions": 0,
		}, nil},
		{"sglang-0.5.23.txt", "sglang", map[string]float64{
			"tokens.prompt": 8054 + 182822, "tokens.generated": 112 + 19428, "requests.finished": 22 + 569, "requests.aborted": 4,
			"prefix_cache.queries": 8054 + 182822, "prefix_cache.hits": 90925, "time_to_first_token.count": 22 + 569, "request.duration.count": 22 + 569,
			"inter_token_latency.count": 18859, "time_in_prefill.count": 594, "time_in_queue.count": 594, "time_in_queue.sum": 72.89867816100013,
		}, nil},
		{"llama.cpp-2026.10.txt", "llama.cpp", map[string]float64{
			"requests.running": 0, "requests.waiting": 0, "tokens.prompt": 4 + 2, "prefix_cache.queries": 4 + 2, "prefix_cache.hits": 2,
			"tokens.generated": 8, "time_in_prefill.sum": 0.001017, "time_in_decode.sum": 0.00191,
		}, []string{"kv_cache.usage", "time_to_first_token.count", "time_in_prefill.count"}},
	} {
		for _, tables := range [][]*enginemetrics.Table{{backends.Metrics(tt.engine)}, backends.AllMetrics()} {
			body := fixture(t, tt.file)
			e := newEngine(t, gpu.EngineOptions{URL: pages(t, func(w http.ResponseWriter, _ *http.Request) { w.Write(body) }), Tables: tables})
			got, _, err := scrape(t, e, time.Second)
			if err != nil {
				t.Fatalf("%s: %v", tt.file, err)
			}
			for k, want := range tt.want {
				if v, ok := got[k]; !ok || math.Abs(v-want) > 1e-9*math.Abs(want) {
					t.Errorf("%s: %s = %v, %t; want %v", tt.file, k, v, ok, want)
				}
			}
			for _, k := range tt.not {
				if v, ok := got[k]; ok {
					t.Errorf("%s: %s = %v, want it absent", tt.file, k, v)
				}
			}
			if s := e.Stats(); s.Odd != 0 || s.Doubled != 0 || s.Engine != tt.engine {
				t.Errorf("%s: stats %+v", tt.file, s)
			}
			if !bytes.Equal(e.Last(), body) {
				t.Errorf("%s: the last page is not what was sent", tt.file)
			}
		}
	}
}

// Every page that an older version or a gateway would have written is read too.
func TestEnginesNamesDrift(t *testing.T) {
	for _, tt := range []struct {
		name, engine, page string
		want               map[string]float64
	}{
		{"vLLM 0.8", "vllm", `# TYPE vllm:gpu_cache_usage_perc gauge
vllm:gpu_cache_usage_perc{model_name="m"} 0.25
# TYPE vllm:gpu_prefix_cache_queries_total counter
vllm:gpu_prefix_cache_queries_total{model_name="m"} 100
vllm:gpu_prefix_cache_hits_total{model_name="m"} 40
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",num_gpu_blocks="1000",enable_prefix_caching="True"} 1
`, map[string]float64{"kv_cache.usage": 0.25, "kv_cache.capacity": 16000, "kv_cache.used": 4000, "prefix_cache.queries": 100, "prefix_cache.hits": 40}},
		{"the new name before the old", "vllm", `vllm:gpu_cache_usage_perc 0.25
vllm:kv_cache_usage_perc 0.5
`, map[string]float64{"kv_cache.usage": 0.5}},
		{"colons replaced", "sglang", `# TYPE sglang_num_running_reqs gauge
sglang_num_running_reqs{model_name="m"} 7
`, map[string]float64{"requests.running": 7}},
		{"retractions in a histogram", "sglang", `# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs 1
# TYPE sglang:num_retractions histogram
sglang:num_retractions_bucket{le="0"} 3
sglang:num_retractions_bucket{le="1"} 5
sglang:num_retractions_bucket{le="+Inf"} 5
sglang:num_retractions_sum 2
sglang:num_retractions_count 5
`, map[string]float64{"preemptions": 2}},
		{"llama.cpp of 2025", "llama.cpp", `llamacpp:kv_cache_usage_ratio 0.5
llamacpp:kv_cache_tokens 512
llamacpp:prompt_tokens_total 12
`, map[string]float64{"kv_cache.usage": 0.5, "kv_cache.used": 512, "tokens.prompt": 12}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEngine(t, gpu.EngineOptions{URL: pages(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, tt.page) }), Tables: []*enginemetrics.Table{backends.Metrics(tt.engine)}})
			got, _, err := scrape(t, e, time.Second)
			if err != nil {
				t.Fatal(err)
			}
			for k, want := range tt.want {
				if v, ok := got[k]; !ok || v != want {
					t.Errorf("%s = %v, %t; want %v", k, v, ok, want)
				}
			}
		})
	}
}

// Data parallel engines are kept apart, tensor parallel workers are one, and
// other models are left out.
func TestEnginesLabels(t *testing.T) {
	one := func(engine, page, model string) map[string]float64 {
		e := newEngine(t, gpu.EngineOptions{URL: pages(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, page) }), Tables: []*enginemetrics.Table{backends.Metrics(engine)}, Model: model})
		got, _, err := scrape(t, e, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	got := one("vllm", `vllm:num_requests_running{engine="0",model_name="m"} 3
vllm:num_requests_running{engine="1",model_name="m"} 5
vllm:request_success_total{engine="1",finished_reason="stop",model_name="m"} 2
vllm:request_success_total{engine="1",finished_reason="length",model_name="m"} 9
`, "m")
	if got["requests.running"] != 3 || got["engine1 requests.running"] != 5 || got["engine1 requests.finished"] != 11 {
		t.Errorf("data parallel vLLM: %v", got)
	}
	got = one("sglang", `sglang:num_running_reqs{dp_rank="0",tp_rank="1"} 3
sglang:num_running_reqs{dp_rank="0",tp_rank="0"} 4
sglang:num_running_reqs{dp_rank="1",tp_rank="2"} 6
sglang:num_running_reqs{dp_rank="1",tp_rank="10"} 7
`, "m")
	if got["requests.running"] != 4 || got["engine1 requests.running"] != 6 {
		t.Errorf("SGLang with ranks: %v", got)
	}
	two := `vllm:num_requests_running{engine="0",model_name="a"} 3
vllm:num_requests_running{engine="0",model_name="b"} 8
`
	if got = one("vllm", two, "b"); got["requests.running"] != 8 || len(got) != 1 {
		t.Errorf("two models, one is played against: %v", got)
	}
	if got = one("vllm", two, "c"); got["engine0/a requests.running"] != 3 || got["engine0/b requests.running"] != 8 {
		t.Errorf("two models, neither is known: %v", got)
	}
}

// A page that is no page fails by name, within bounds, and the next one is read.
func TestEngineBadPages(t *testing.T) {
	good := fixture(t, "vllm-0.32.0.txt")
	var serve atomic.Pointer[http.HandlerFunc]
	url := pages(t, func(w http.ResponseWriter, r *http.Request) { (*serve.Load())(w, r) })
	scraper := func(timeout time.Duration) *gpu.Engine {
		return newEngine(t, gpu.EngineOptions{URL: url, Tables: []*enginemetrics.Table{backends.Metrics("vllm")}, Timeout: timeout})
	}
	patient, hasty := scraper(time.Minute), scraper(300*time.Millisecond)
	text := func(b string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, b) }
	}
	for _, tt := range []struct {
		name  string
		h     http.HandlerFunc
		fault string
	}{
		{"cut in a line", text(string(good[:len(good)/2])), gpu.FaultCutShort},
		{"cut against its length", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(good)))
			w.Write(good[:len(good)/2])
		}, gpu.FaultCutShort},
		{"HTML", text("<!doctype html>\n<html><body>vllm:num_requests_running 3</body></html>\n"), gpu.FaultNotMetrics},
		{"JSON", text(`{"error":{"code":501,"message":"no"}}` + "\n"), gpu.FaultNotMetrics},
		{"nothing", text(""), gpu.FaultNotMetrics},
		{"another program's metrics", text("# TYPE go_goroutines gauge\ngo_goroutines 7\n"), gpu.FaultNotMetrics},
		{"garbage among the metrics", text("vllm:num_requests_running 3\nvllm:num_requests_waiting {{{ 3\n"), gpu.FaultNotMetrics},
		{"50 MB", func(w http.ResponseWriter, _ *http.Request) {
			line := bytes.Repeat([]byte("# HELP vllm:x y\n"), 1<<12)
			for range 50 << 20 / len(line) {
				if _, err := w.Write(line); err != nil {
					return
				}
			}
		}, gpu.FaultTooLong},
		{"50 MB, announced", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(50<<20))
			w.Write(good)
		}, gpu.FaultTooLong},
		{"404", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }, gpu.FaultRefused},
		{"401", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) }, gpu.FaultUnauthorized},
		{"a redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }, gpu.FaultRefused},
		{"a stall", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, gpu.FaultTimeout},
		{"a stall in the middle", func(w http.ResponseWriter, r *http.Request) {
			w.Write(good[:100])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}, gpu.FaultTimeout},
	} {
		t.Run(tt.name, func(t *testing.T) {
			serve.Store(&tt.h)
			e := patient
			if tt.fault == gpu.FaultTimeout {
				e = hasty
			}
			_, samples, err := scrape(t, e, time.Second)
			if f := gpu.AsFault(err); f == nil || f.Name != tt.fault {
				t.Errorf("fault %v, want %s", err, tt.fault)
			} else if strings.Contains(f.Error(), "127.0.0.1") {
				t.Errorf("the fault tells the address: %v", f)
			}
			if len(samples) > 0 {
				t.Errorf("%d samples of a bad page", len(samples))
			}
			h := text(string(good))
			serve.Store(&h)
			if got, _, err := scrape(t, patient, 2*time.Second); err != nil || got["tokens.generated"] != 52522 {
				t.Errorf("the next page: %v, %v", got["tokens.generated"], err)
			}
		})
	}
}

// Values that are no numbers are left out, families and samples that stand on
// the page twice count once.
func TestEngineOddValues(t *testing.T) {
	page := `# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0"} 3
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0"} NaN
vllm:kv_cache_usage_perc{engine="0"} +Inf
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0"} 3
vllm:num_requests_running{engine="1"} 4
vllm:generation_tokens_total{engine="0"} -5
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1"} 9
vllm:time_to_first_token_seconds_bucket{engine="0",le="1"} 5
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf"} 9
vllm:time_to_first_token_seconds_sum{engine="0"} 1
vllm:time_to_first_token_seconds_count{engine="0"} 9
`
	e := newEngine(t, gpu.EngineOptions{URL: pages(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, page) }), Tables: []*enginemetrics.Table{backends.Metrics("vllm")}})
	got, _, err := scrape(t, e, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got["requests.running"] != 3 || got["engine1 requests.running"] != 4 {
		t.Errorf("got %v", got)
	}
	if s := e.Stats(); s.Doubled != 1 || s.Odd != 4 {
		t.Errorf("stats %+v, want 1 doubled and 4 odd", s)
	}
}

// A counter becomes a rate, and a restart is seen whether the counter fell or
// overtook its old value.
func TestEngineCountersAndRestarts(t *testing.T) {
	type step struct {
		start, tokens float64
	}
	steps := []step{{100, 1000}, {100, 1500}, {200, 300}, {300, 9000}, {300, 9000}}
	i := -1
	e := newEngine(t, gpu.EngineOptions{URL: pages(t, func(w http.ResponseWriter, _ *http.Request) {
		s := steps[i]
		fmt.Fprintf(w, "process_start_time_seconds %g\nvllm:num_requests_running 1\nvllm:generation_tokens_total %g\n", s.start, s.tokens)
	}), Tables: []*enginemetrics.Table{backends.Metrics("vllm")}})
	var values []float64
	var rates []float64
	gaps := 0
	for i = range steps {
		_, samples, err := scrape(t, e, time.Duration(i+1)*2*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range samples {
			switch s.Metric {
			case string(enginemetrics.GeneratedTokens):
				values = append(values, s.Value)
			case string(enginemetrics.GeneratedTokens) + gpu.EngineRate:
				rates = append(rates, s.Value)
			case gpu.MetricGap:
				gaps++
			}
		}
	}
	// The one that was overtaken has a zero before it.
	if want := []float64{1000, 1500, 300, 0, 9000, 9000}; !slices.Equal(values, want) {
		t.Errorf("values %v, want %v", values, want)
	}
	if want := []float64{250, 150, 4500, 0}; !slices.Equal(rates, want) {
		t.Errorf("rates %v, want %v", rates, want)
	}
	if s := e.Stats(); s.Restarts != 2 || gaps != 2 {
		t.Errorf("%d restarts, %d gaps; want 2 and 2", s.Restarts, gaps)
	}
}

// What SGLang's page lacks until it happens was zero before.
func TestEngineLateCounters(t *testing.T) {
	page := "sglang:num_running_reqs 1\n"
	e := newEngine(t, gpu.EngineOptions{URL: pages(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, page) }), Tables: []*enginemetrics.Table{backends.Metrics("sglang")}})
	got, _, err := scrape(t, e, time.Second)
	if v, ok := got["tokens.generated"]; err != nil || !ok || v != 0 {
		t.Errorf("before: %v, %t, %v", v, ok, err)
	}
	page += `sglang:generation_tokens_total 50
# TYPE sglang:time_to_first_token_seconds histogram
sglang:time_to_first_token_seconds_bucket{le="0.1"} 4
sglang:time_to_first_token_seconds_bucket{le="0.2"} 8
sglang:time_to_first_token_seconds_bucket{le="+Inf"} 8
sglang:time_to_first_token_seconds_sum 0.8
sglang:time_to_first_token_seconds_count 8
`
	got, _, err = scrape(t, e, 2*time.Second)
	if err != nil || got["tokens.generated"] != 50 || got["tokens.generated.rate"] != 50 {
		t.Errorf("after: %v, %v", got, err)
	}
	if s := e.Spans()[enginemetrics.TTFT]; s.N != 8 || s.Sum != 0.8 || s.P50 != 0.1 || math.Abs(s.P99-0.198) > 1e-9 || !slices.Equal(s.P99Bounds, []float64{0.1, 0.2}) {
		t.Errorf("TTFT %+v", s)
	}
}

// Only what lies between the first and the last scrape is of the run.
func TestEngineSpansAreDifferences(t *testing.T) {
	hist := func(counts ...int) string {
		var b strings.Builder
		b.WriteString("# TYPE vllm:time_to_first_token_seconds histogram\n")
		total := 0
		for i, c := range counts {
			total += c
			fmt.Fprintf(&b, "vllm:time_to_first_token_seconds_bucket{le=%q} %d\n", []string{"0.1", "0.2", "0.4", "+Inf"}[i], total)
		}
		fmt.Fprintf(&b, "vllm:time_to_first_token_seconds_sum %d\nvllm:time_to_first_token_seconds_count %d\n", total, total)
		return b.String()
	}
	page := hist(100, 0, 0, 0)
	e := newEngine(t, gpu.EngineOptions{URL: pages(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, page) }), Tables: []*enginemetrics.Table{backends.Metrics("vllm")}})
	for i, p := range []string{page, hist(100, 0, 10, 0), hist(100, 0, 10, 1), hist(0, 4, 0, 0)} {
		page = p
		got, _, err := scrape(t, e, time.Duration(i+1)*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if q, ok := got["time_to_first_token quantile=0.5"]; i == 0 && ok || i == 1 && math.Abs(q-0.3) > 1e-9 || i == 2 && q != 0.4 {
			t.Errorf("scrape %d: p50 %v, %t", i, q, ok)
		}
	}
	s := e.Spans()[enginemetrics.TTFT]
	if s.N != 15 || s.P99 != 0.4 || !slices.Equal(s.P99Bounds, []float64{0.4}) || !slices.Equal(s.P50Bounds, []float64{0.2, 0.4}) {
		t.Errorf("TTFT %+v", s)
	}
}

// An engine that dies and comes back costs its gap and nothing else.
func TestEngineUnderSampler(t *testing.T) {
	good := fixture(t, "vllm-0.32.0.txt")
	var n atomic.Int64
	url := pages(t, func(w http.ResponseWriter, _ *http.Request) {
		if k := n.Add(1); k > 3 && k < 7 {
			io.WriteString(w, "<html></html>")
			return
		}
		w.Write(good)
	})
	e := newEngine(t, gpu.EngineOptions{URL: url, Tables: backends.AllMetrics(), Period: 5 * time.Millisecond})
	gap := make(chan gpu.Sample, 64)
	s := gpu.StartSampler(gpu.SamplerConfig{Emit: func(s gpu.Sample) {
		if s.IsGap() && strings.Contains(s.Note, "HTML") {
			select {
			case gap <- s:
			default:
			}
		}
	}}, e)
	defer s.Close()
	select {
	case g := <-gap:
		if g.Value <= 0 {
			t.Errorf("a gap of %v s", g.Value)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("no gap was recorded")
	}
}

func TestNewEngineRefuses(t *testing.T) {
	for _, url := range []string{"", "ftp://x/metrics", "localhost:8000", "http://user:pass@host/metrics"} {
		if _, err := gpu.NewEngine(gpu.EngineOptions{URL: url, Tables: backends.AllMetrics()}); err == nil || strings.Contains(err.Error(), "pass") {
			t.Errorf("NewEngine(%q) = %v", url, err)
		}
	}
	if _, err := gpu.NewEngine(gpu.EngineOptions{URL: "http://h/metrics"}); err == nil {
		t.Error("NewEngine without tables")
	}
}

// FuzzEnginePage: whatever a server sends, the scrape ends without a panic, its
// samples are finite and known, and its errors are Faults.
func FuzzEnginePage(f *testing.F) {
	for _, name := range []string{"llama.cpp-2026.10.txt"} {
		b, err := os.ReadFile("testdata/engines/" + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, b)
	}
	f.Add([]byte("vllm:num_requests_running{engine=\"0\"} 3\n"), []byte("vllm:num_requests_running{engine=\"0\"} NaN\n"))
	f.Add([]byte("sglang:generation_tokens_total 5\n"), []byte("sglang:generation_tokens_total 3\n# TYPE sglang:time_to_first_token_seconds histogram\nsglang:time_to_first_token_seconds_bucket{le=\"1\"} 2\nsglang:time_to_first_token_seconds_sum 1\nsglang:time_to_first_token_seconds_count 2\n"))
	f.Fuzz(func(t *testing.T, first, second []byte) {
		var body []byte
		e, err := gpu.NewEngine(gpu.EngineOptions{URL: "http://engine/metrics", Tables: backends.AllMetrics(), MaxPage: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		e.SetTransport(roundTrip(func(*http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 200, ContentLength: -1, Body: io.NopCloser(bytes.NewReader(body))}, nil
		}))
		for i, b := range [][]byte{first, second, first} {
			body = b
			at := time.Duration(i+1) * time.Second
			err := e.Sample(context.Background(), func() time.Duration { return at }, func(s gpu.Sample) {
				if _, ok := gpu.Lookup(s.Metric); !ok || math.IsNaN(s.Value) || math.IsInf(s.Value, 0) || s.Time != at {
					t.Fatalf("sample %+v", s)
				}
			})
			if f := gpu.AsFault(err); err != nil && f.Name == gpu.FaultFailed {
				t.Fatalf("%v is no fault", err)
			}
		}
		for q, s := range e.Spans() {
			if k, ok := q.Kind(); !ok || k != enginemetrics.Span || math.IsNaN(s.P50) || math.IsNaN(s.P99) || s.N < 0 {
				t.Fatalf("span %s: %+v", q, s)
			}
		}
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// BenchmarkEngineScrape parses the longest page there is.
func BenchmarkEngineScrape(b *testing.B) {
	body, err := os.ReadFile("testdata/engines/sglang-0.5.23.txt")
	if err != nil {
		b.Fatal(err)
	}
	e, err := gpu.NewEngine(gpu.EngineOptions{URL: "http://engine/metrics", Tables: []*enginemetrics.Table{backends.Metrics("sglang")}})
	if err != nil {
		b.Fatal(err)
	}
	e.SetTransport(roundTrip(func(*http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, ContentLength: -1, Body: io.NopCloser(bytes.NewReader(body))}, nil
	}))
	b.ReportAllocs()
	at := time.Duration(0)
	for b.Loop() {
		at += time.Second
		if err := e.Sample(context.Background(), func() time.Duration { return at }, func(gpu.Sample) {}); err != nil {
			b.Fatal(err)
		}
	}
}
