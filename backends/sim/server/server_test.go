package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"reprise/backends/sim/engine"
	"reprise/internal/clock"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"pgregory.net/rapid"
)

// ids is a prompt of n tokens as JSON.
func ids(n, kind int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, ",%d", (i*7919+kind*104729)%127000+1000)
	}
	return "[" + b.String()[1:] + "]"
}

type answer struct {
	ID      string
	Choices []struct {
		Index        int
		Text         string
		FinishReason string   `json:"finish_reason"`
		StopReason   *int     `json:"stop_reason"`
		TokenIDs     []uint32 `json:"token_ids"`
	}
	Usage struct {
		Prompt     int `json:"prompt_tokens"`
		Completion int `json:"completion_tokens"`
		Details    struct {
			Cached int `json:"cached_tokens"`
		} `json:"prompt_tokens_details"`
	}
	Error struct{ Message string }
}

func complete(t *testing.T, url, body string) answer {
	t.Helper()
	resp, b := do(t, "POST", url+"/v1/completions", body)
	var a answer
	if err := json.Unmarshal(b, &a); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: status %d: %s", body[:min(len(body), 80)], resp.StatusCode, b)
	}
	return a
}

// What vLLM was seen to do at the edge of its context length.
func TestContextLength(t *testing.T) {
	_, url := start(t, tiny)
	a := complete(t, url, `{"prompt":`+ids(8190, 1)+`,"max_tokens":100,"temperature":0}`)
	if a.Usage.Completion != 2 || a.Choices[0].FinishReason != "length" {
		t.Errorf("8190 + 100 tokens of 8192: %d tokens, reason %q; want 2 without an error", a.Usage.Completion, a.Choices[0].FinishReason)
	}
	for _, tt := range []struct {
		prompt, max, min int
		want             string
	}{
		{9000, 8, 0, `{"error":{"message":"This model's maximum context length is 8192 tokens. However, your prompt contains 9000 input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value=9000)","type":"BadRequestError","param":"input_tokens","code":400}}`},
		{8192, 8, 0, `{"error":{"message":"max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)","type":"BadRequestError","param":"max_tokens","code":400}}`},
		// min_tokens is checked against what is left of max_tokens.
		{8190, 100, 100, `{"error":{"message":"min_tokens must be less than or equal to max_tokens=2, got 100.","type":"BadRequestError","param":null,"code":400}}`},
	} {
		for _, stream := range []bool{false, true} {
			resp, b := do(t, "POST", url+"/v1/completions", fmt.Sprintf(`{"prompt":%s,"max_tokens":%d,"min_tokens":%d,"stream":%t}`, ids(tt.prompt, 1), tt.max, tt.min, stream))
			if resp.StatusCode != 400 || string(b) != tt.want {
				t.Errorf("%d prompt and %d answer tokens, stream %t: %d %s\nwant 400 %s", tt.prompt, tt.max, stream, resp.StatusCode, b, tt.want)
			}
		}
	}
}

func TestRefusals(t *testing.T) {
	_, url := start(t, tiny)
	for _, tt := range []struct{ body, want string }{
		{`{"prompt":[1,-2]}`, "greater than or equal to 0"},
		{`{"prompt":[1,2.5]}`, "valid integer"},
		{`{"prompt":[1,[2]]}`, "valid integer"},
		{`{"prompt":[[1],2]}`, "valid integer"},
		{`{"prompt":["a",2]}`, "valid string"},
		{`{"prompt":[[1],[]]}`, "non-empty"},
		{`{"prompt":7}`, "valid list"},
		{`{}`, "must be provided"},
		{`[]`, "valid"},
		{``, "JSON decode error"},
		{`{"prompt":[1],"max_tokens":"many"}`, "body.max_tokens"},
		{`{"prompt":[1],"max_tokens":-1}`, "max_tokens must be at least 1, got -1"},
		{`{"prompt":[1],"n":0}`, "n must be at least 1"},
		{`{"prompt":[1],"n":1000000}`, "more than the 4096"},
		{`{"prompt":[1],"n":2,"temperature":0}`, "n must be 1 when using greedy sampling, got 2."},
		{`{"prompt":[1],"min_tokens":-1}`, "min_tokens must be greater"},
		{`{"prompt":[1],"echo":true}`, "not supported"},
		{`{"prompt":[1],"stream_options":{"include_usage":true}}`, "Stream options can only be defined"},
		{`{"prompt":[99999999999999999999999]}`, "out of vocabulary"},
	} {
		resp, b := do(t, "POST", url+"/v1/completions", tt.body)
		if resp.StatusCode != 400 || !strings.Contains(string(b), tt.want) || !json.Valid(b) {
			t.Errorf("%s: %d %s, want 400 with %q", tt.body, resp.StatusCode, b, tt.want)
		}
	}
	for _, body := range []string{`{"messages":[]}`, `{"messages":[{"role":"user","content":7}]}`, `{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}`} {
		if resp, b := do(t, "POST", url+"/v1/chat/completions", body); resp.StatusCode != 400 {
			t.Errorf("chat %s: %d %s, want 400", body, resp.StatusCode, b)
		}
	}
	if s := metricsOf(t, url); s["vllm:num_requests_running"] != 0 {
		t.Error("a refused request runs")
	}
}

// As measured on vLLM: 2000 tokens again, in blocks of 128, find 1920; another
// salt finds none; a reset empties the cache.
func TestPrefixCache(t *testing.T) {
	_, url := start(t, tiny)
	body := `{"prompt":` + ids(2000, 1) + `,"max_tokens":8,"temperature":0%s}`
	reset := func() string {
		_, b := do(t, "POST", url+"/reset_prefix_cache", "")
		return string(b)
	}
	for i, tt := range []struct {
		extra string
		want  int
	}{{"", 0}, {"", 1920}, {`,"cache_salt":"s1"`, 0}, {`,"cache_salt":"s1"`, 1920}} {
		if got := complete(t, url, fmt.Sprintf(body, tt.extra)).Usage.Details.Cached; got != tt.want {
			t.Errorf("request %d: %d cached tokens, want %d", i, got, tt.want)
		}
	}
	if got := reset(); got != `{"success":true}` {
		t.Errorf("reset when idle: %s", got)
	}
	if got := complete(t, url, fmt.Sprintf(body, "")).Usage.Details.Cached; got != 0 {
		t.Errorf("%d cached tokens after the reset", got)
	}
	m := metricsOf(t, url)
	if m["vllm:prefix_cache_queries_total"] != 10000 || m["vllm:prefix_cache_hits_total"] != 3840 {
		t.Errorf("queries, hits = %v, %v; want 10000, 3840", m["vllm:prefix_cache_queries_total"], m["vllm:prefix_cache_hits_total"])
	}

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	open(t, ctx, url, `{"prompt":[1],"max_tokens":8000,"stream":true}`).Scan() // the first token
	if got := reset(); got != `{"success":false}` {
		t.Errorf("reset while a request runs: %s", got)
	}
}

// open starts a stream and returns once its head is there.
func open(t *testing.T, ctx context.Context, url, body string) *bufio.Scanner {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, "POST", url+"/v1/completions", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	sc := bufio.NewScanner(resp.Body)
	sc.Buffer(nil, 1<<20)
	return sc
}

// A client that hangs up frees its blocks and stops generation.
func TestDisconnectAborts(t *testing.T) {
	s, url := start(t, Options{})
	aborted := 0.0
	for _, stream := range []bool{true, false} {
		ctx, cancel := context.WithCancel(t.Context())
		body := fmt.Sprintf(`{"prompt":%s,"max_tokens":8000,"n":3,"stream":%t}`, ids(100, 1), stream)
		if stream {
			sc := open(t, ctx, url, body)
			for range 10 {
				sc.Scan()
			}
		} else {
			req, _ := http.NewRequestWithContext(ctx, "POST", url+"/v1/completions", strings.NewReader(body))
			go func() {
				if resp, err := http.DefaultClient.Do(req); err == nil {
					resp.Body.Close()
				}
			}()
			waitFor(t, "the requests run", func() bool { return metricsOf(t, url)["vllm:num_requests_running"] == 3 })
		}
		cancel()
		waitFor(t, "the requests are gone", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.eng.Stats().Running == 0
		})
		m := metricsOf(t, url)
		if m["vllm:kv_cache_usage_perc"] != 0 {
			t.Errorf("stream %t: the cache is still in use: %v", stream, m["vllm:kv_cache_usage_perc"])
		}
		if aborted += 3; m["sim:aborted_requests_total"] != aborted || families(t, url)["vllm:e2e_request_latency_seconds"].count != 0 {
			t.Errorf("stream %t: %v aborted, want %v", stream, m["sim:aborted_requests_total"], aborted)
		}
		generated := m["vllm:generation_tokens_total"]
		time.Sleep(20 * time.Millisecond)
		if again := metricsOf(t, url)["vllm:generation_tokens_total"]; again != generated {
			t.Errorf("stream %t: %v tokens were generated for nobody", stream, again-generated)
		}
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not after 5 s: %s", what)
		}
	}
}

// A family is one metric as printed: its kind, and the first sample's number or
// the histogram's count and sum.
type family struct {
	kind       string
	samples    int
	value, sum float64
	count      uint64
}

func families(t *testing.T, url string) map[string]family {
	t.Helper()
	_, b := do(t, "GET", url+"/metrics", "")
	p := expfmt.NewTextParser(model.UTF8Validation)
	parsed, err := p.TextToMetricFamilies(bytes.NewReader(b))
	if err != nil {
		t.Fatalf("metrics: %v", err)
	}
	m := map[string]family{}
	for name, f := range parsed {
		first := f.Metric[0]
		m[name] = family{
			kind: strings.ToLower(f.GetType().String()), samples: len(f.Metric),
			value: first.GetGauge().GetValue() + first.GetCounter().GetValue(),
			sum:   first.GetHistogram().GetSampleSum(), count: first.GetHistogram().GetSampleCount(),
		}
	}
	return m
}

// metricsOf returns the families that have one number.
func metricsOf(t *testing.T, url string) map[string]float64 {
	m := map[string]float64{}
	for name, f := range families(t, url) {
		if f.samples == 1 && f.kind != "histogram" {
			m[name] = f.value
		}
	}
	return m
}

// Every family that vLLM has is there under the same name and type, but for
// those about Python, the process, and the optional FLOP estimates.
func TestMetricNames(t *testing.T) {
	_, url := start(t, tiny)
	complete(t, url, `{"prompt":[5,6,7],"max_tokens":9}`)
	f := families(t, url)
	b, err := os.ReadFile("testdata/vllm/metric_names.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		name, kind, _ := strings.Cut(strings.TrimSpace(line), " ")
		if strings.HasSuffix(name, "_created") || strings.HasPrefix(name, "python_") || strings.HasPrefix(name, "vllm:estimated_") ||
			strings.HasPrefix(name, "process_") || strings.Contains(name, "_size_bytes") || strings.Contains(name, "highr") {
			continue
		}
		if f[name].kind != kind {
			t.Errorf("%s is a %q, want a %s", name, f[name].kind, kind)
		}
	}
	for name, want := range map[string]uint64{
		"vllm:time_to_first_token_seconds": 1, "vllm:inter_token_latency_seconds": 8,
		"vllm:e2e_request_latency_seconds": 1, "vllm:iteration_tokens_total": 9, "vllm:request_num_preemptions": 1,
	} {
		if got := f[name].count; got != want {
			t.Errorf("%s has %d samples, want %d", name, got, want)
		}
	}
	if sum := f["vllm:iteration_tokens_total"].sum; sum != 3+9 {
		t.Errorf("iteration tokens sum to %v, want prompt and answer: 12", sum)
	}
	// Eight gaps of exactly a pass.
	if sum := f["vllm:inter_token_latency_seconds"].sum; math.Abs(sum-.016) > 1e-9 {
		t.Errorf("gaps sum to %v s, want 0.016", sum)
	}
}

// Tokens go out when their pass ends, to the client, and delays do not add up.
func TestTokensKeepTheirTimes(t *testing.T) {
	const pass = 10 * time.Millisecond
	s, url := start(t, Options{Cost: &engine.Cost{Step: float64(pass)}})
	const n = 100
	before := clock.Now()
	sc := open(t, t.Context(), url, fmt.Sprintf(`{"prompt":[1],"max_tokens":%d,"stream":true}`, n))
	k := 0
	var late []time.Duration
	for sc.Scan() {
		if !strings.HasPrefix(sc.Text(), `data: {`) {
			continue
		}
		k++
		d := clock.Now() - before - time.Duration(k)*pass
		if d < 0 {
			t.Fatalf("token %d came %v before its pass ended", k, -d)
		}
		late = append(late, d)
	}
	if k != n {
		t.Fatalf("%d events for %d tokens", k, n)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m.lagMax > maxLag {
		t.Skipf("this machine stood still for %v", s.m.lagMax)
	}
	// Single tokens may be late on a busy machine. If delays added up, all of the
	// later ones would be.
	if drift := slices.Min(late[n/2:]) - slices.Min(late[:n/2]); drift > pass/4 {
		t.Errorf("the least lateness went from %v to %v in %d passes", slices.Min(late[:n/2]), slices.Min(late[n/2:]), n)
	}
	if st := s.eng.Stats(); st.Steps != n {
		t.Errorf("%d passes for %d tokens", st.Steps, n)
	}
}

func TestChoicesAndStops(t *testing.T) {
	_, url := start(t, tiny)
	greedy := complete(t, url, `{"prompt":[5,6,7],"max_tokens":6,"temperature":0,"return_token_ids":true}`).Choices[0]
	if again := complete(t, url, `{"prompt":[5,6,7],"max_tokens":6,"temperature":0}`).Choices[0]; again.Text != greedy.Text {
		t.Errorf("temperature 0 gave %q and %q", greedy.Text, again.Text)
	}
	if text := Detokenize(greedy.TokenIDs); text != greedy.Text {
		t.Errorf("the ids read %q, the text is %q", text, greedy.Text)
	}
	stop := complete(t, url, fmt.Sprintf(`{"prompt":[5,6,7],"max_tokens":6,"temperature":0,"stop_token_ids":[%d]}`, greedy.TokenIDs[3]))
	if c := stop.Choices[0]; c.FinishReason != "stop" || c.StopReason == nil || *c.StopReason != int(greedy.TokenIDs[3]) || stop.Usage.Completion != 4 {
		t.Errorf("stop token: %+v", stop)
	}
	many := complete(t, url, `{"prompt":[[5,6,7],[8,9]],"n":3,"max_tokens":4,"seed":1}`)
	if len(many.Choices) != 6 || many.Usage.Prompt != 5 || many.Usage.Completion != 24 {
		t.Errorf("two prompts of three choices: %+v", many)
	}
	texts := map[string]bool{}
	for i, c := range many.Choices {
		texts[c.Text] = true
		if c.Index != i {
			t.Errorf("choice %d has index %d", i, c.Index)
		}
	}
	if len(texts) != 6 {
		t.Errorf("six sampled choices have %d texts", len(texts))
	}
	// The same as a stream: each choice has its events, in order.
	_, b := do(t, "POST", url+"/v1/completions", `{"prompt":[[5,6,7],[8,9]],"n":3,"max_tokens":4,"seed":1,"stream":true,"return_token_ids":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}`)
	streamed := make([]string, 6)
	for _, e := range events(b) {
		var a answer
		if json.Unmarshal([]byte(e), &a) != nil || len(a.Choices) == 0 {
			continue
		}
		c := a.Choices[0]
		streamed[c.Index] += c.Text
		if want := len(streamed[c.Index]) / wordLen; a.Usage.Completion != want || a.Usage.Prompt != 3-c.Index/3 {
			t.Errorf("choice %d: usage %+v, want %d tokens so far", c.Index, a.Usage, want)
		}
	}
	for i, c := range many.Choices {
		if streamed[i] != c.Text {
			t.Errorf("choice %d streamed %q, whole %q", i, streamed[i], c.Text)
		}
	}
}

// With a mean length, answers end by themselves; ignore_eos prevents it.
func TestNaturalEnds(t *testing.T) {
	_, url := start(t, Options{MeanOutput: 8, Cost: &engine.Cost{Step: 1e5}})
	sum, stops := 0, 0
	const n = 400
	for range n / 100 {
		a := complete(t, url, `{"prompt":[1],"n":100,"max_tokens":1000}`)
		sum += a.Usage.Completion
		for _, c := range a.Choices {
			if c.FinishReason == "stop" {
				stops++
			}
		}
	}
	// The standard error of the mean is 8/sqrt(400) = 0.4.
	if mean := float64(sum) / n; mean < 6 || mean > 10 || stops != n {
		t.Errorf("mean length %.1f, %d of %d stopped; want 8 and all", mean, stops, n)
	}
	if a := complete(t, url, `{"prompt":[1],"max_tokens":100,"ignore_eos":true}`); a.Usage.Completion != 100 {
		t.Errorf("ignore_eos: %d tokens of 100", a.Usage.Completion)
	}
}

func TestRequestIDs(t *testing.T) {
	_, url := start(t, tiny)
	resp, b := do(t, "POST", url+"/v1/completions", `{"prompt":[1],"max_tokens":1}`, "X-Request-Id", `my-"id"`)
	if !strings.Contains(string(b), `"id":"cmpl-my-\"id\""`) || resp.Header.Get("X-Request-Id") != `my-"id"` {
		t.Errorf("header %q, body %s", resp.Header.Get("X-Request-Id"), b)
	}
	seen := map[string]bool{}
	for range 50 {
		a := complete(t, url, `{"prompt":[1],"max_tokens":1}`)
		if len(a.ID) != len("cmpl-")+16 || seen[a.ID] {
			t.Fatalf("id %q", a.ID)
		}
		seen[a.ID] = true
	}
}

// A client that lags gets the waiting tokens in one event.
func TestLateTokensAreMerged(t *testing.T) {
	s, err := New(tiny)
	if err != nil {
		t.Fatal(err)
	}
	c, fail := s.parse([]byte(`{"prompt":[[1],[2]],"max_tokens":5,"stream":true,"return_token_ids":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}`), false, "x")
	if fail != nil {
		t.Fatal(fail.message)
	}
	f := newFormatter(s, c)
	out := []output{{0, 2000, 0}, {1, 3000, 0}, {0, 2001, 0}, {1, 3001, engine.Length}, {0, 2002, 0}}
	got := events(f.events(nil, out))
	if len(got) != 2 {
		t.Fatalf("events:\n%s", strings.Join(got, "\n"))
	}
	text := Detokenize([]uint32{2000, 2001, 2002})
	for i, want := range []string{
		`"choices":[{"index":0,"text":"` + text + `","logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":[1],"token_ids":[2000,2001,2002]}],"usage":{"prompt_tokens":1,"total_tokens":4,"completion_tokens":3}}`,
		`"finish_reason":"length","stop_reason":null,"prompt_token_ids":[2],"token_ids":[3000,3001]}],"usage":{"prompt_tokens":1,"total_tokens":3,"completion_tokens":2}}`,
	} {
		if !strings.HasSuffix(got[i], want) {
			t.Errorf("event %d: %s\nwant the end %s", i, got[i], want)
		}
	}
}

func TestFaults(t *testing.T) {
	crash, err := os.ReadFile("testdata/vllm/engine_crash_trigger.txt")
	if err != nil {
		t.Fatal(err)
	}
	crash = crash[:bytes.Index(crash, []byte("\r\n0\r\n"))+2]
	dead := events(crash)
	if len(dead) != 2 {
		t.Fatalf("the fixture has %d events", len(dead))
	}
	const body = `{"prompt":[1],"max_tokens":6,"stream":true}`
	post := func(t *testing.T, url string) (*http.Response, []string, error) {
		resp, err := http.Post(url+"/v1/completions", "application/json", strings.NewReader(body))
		if err != nil {
			return nil, nil, err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return resp, events(b), err
	}

	t.Run("error event", func(t *testing.T) {
		_, url := start(t, Options{Faults: []Fault{{Kind: ErrorEvent, After: 3, Every: 2}}})
		if _, evs, err := post(t, url); err != nil || len(evs) != 7 {
			t.Errorf("the first request should be whole: %d events, %v", len(evs), err)
		}
		_, evs, err := post(t, url)
		if err != nil || len(evs) != 5 || evs[3] != dead[0] || evs[4] != dead[1] {
			t.Errorf("events %q, %v; want 3 tokens, then %q", evs, err, dead)
		}
		if _, evs, _ := post(t, url); len(evs) != 7 {
			t.Errorf("the third request has %d events, want 7", len(evs))
		}
	})
	t.Run("die", func(t *testing.T) {
		_, url := start(t, Options{Faults: []Fault{{Kind: Die, After: 2}}})
		if _, evs, err := post(t, url); len(evs) != 2 || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d events, %v; want 2, then an unexpected end", len(evs), err)
		}
	})
	t.Run("truncate", func(t *testing.T) {
		_, url := start(t, Options{Faults: []Fault{{Kind: Truncate, After: 2}}})
		_, evs, err := post(t, url)
		if len(evs) != 3 || evs[2] != `{"id":"cmpl-` || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("events %q, %v; want 2 and a piece, then an unexpected end", evs, err)
		}
	})
	t.Run("stall", func(t *testing.T) {
		_, url := start(t, Options{Faults: []Fault{{Kind: Stall, After: 4}}})
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		sc := open(t, ctx, url, body)
		n := 0
		for sc.Scan() {
			if strings.HasPrefix(sc.Text(), "data: ") {
				n++
			}
		}
		if n != 4 || !errors.Is(sc.Err(), context.DeadlineExceeded) {
			t.Errorf("%d events, then %v; want 4, then nothing", n, sc.Err())
		}
	})
	t.Run("half a character", func(t *testing.T) {
		_, url := start(t, Options{Cost: &engine.Cost{Step: 2e7}, Faults: []Fault{{Kind: HalfUTF8, After: 1}}})
		_, evs, err := post(t, url)
		if err != nil || len(evs) != 7 || !strings.Contains(evs[1], "\"text\":\"\xe2\x82\"") || !strings.Contains(evs[2], "\"text\":\"\xac\"") {
			t.Errorf("events %q, %v", evs, err)
		}
	})
	t.Run("status", func(t *testing.T) {
		_, url := start(t, Options{Faults: []Fault{{Kind: Status, Status: 503}}})
		resp, b := do(t, "POST", url+"/v1/completions", body)
		if resp.StatusCode != 503 || resp.Header.Get("Retry-After") != "1" || string(b) != `{"error":{"message":"Service Unavailable","type":"InternalServerError","param":null,"code":503}}` {
			t.Errorf("%d %s", resp.StatusCode, b)
		}
		if resp, _ := do(t, "GET", url+"/health", ""); resp.StatusCode != 200 {
			t.Errorf("/health answers %d", resp.StatusCode)
		}
	})
	t.Run("refuse", func(t *testing.T) {
		_, url := start(t, Options{Faults: []Fault{{Kind: Refuse, After: 1}}})
		if _, evs, err := post(t, url); err != nil || len(evs) != 7 {
			t.Errorf("the accepted request: %d events, %v", len(evs), err)
		}
		http.DefaultClient.CloseIdleConnections()
		if _, _, err := post(t, url); err == nil {
			t.Error("the second request was accepted")
		}
	})
	t.Run("crash", func(t *testing.T) {
		s, url := start(t, Options{Faults: []Fault{{Kind: Crash, After: 2, Every: 3}}})
		bystander := open(t, t.Context(), url, `{"prompt":[1],"max_tokens":8000,"stream":true}`)
		whole := make(chan string, 1)
		go func() {
			resp, err := http.Post(url+"/v1/completions", "application/json", strings.NewReader(`{"prompt":[1],"max_tokens":8000}`))
			if err != nil {
				whole <- err.Error()
				return
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			whole <- fmt.Sprint(resp.StatusCode, " ", string(b))
		}()
		waitFor(t, "both run", func() bool { return s.requests.Load() == 2 && metricsOf(t, url)["vllm:num_requests_running"] == 2 })
		_, evs, err := post(t, url)
		if err != nil || len(evs) != 4 || !slices.Equal(evs[2:], dead) {
			t.Errorf("the stream that crashed it: %q, %v", evs, err)
		}
		var rest []string
		for bystander.Scan() {
			if d, ok := strings.CutPrefix(bystander.Text(), "data: "); ok {
				rest = append(rest, d)
			}
		}
		if n := len(rest); n < 2 || !slices.Equal(rest[n-2:], dead) || bystander.Err() != nil {
			t.Errorf("another stream ended with %q, %v", rest[max(0, n-2):], bystander.Err())
		}
		// As in the fixture engine_crash_nonstream_in_flight.
		if got := <-whole; got != `500 {"error":{"message":"EngineCore encountered an issue. See stack trace (above) for the root cause.","type":"InternalServerError","param":null,"code":500}}` {
			t.Errorf("a whole answer in flight: %s", got)
		}
		waitFor(t, "the server is gone", func() bool {
			resp, err := http.Get(url + "/health")
			if err == nil {
				resp.Body.Close()
			}
			return err != nil
		})
	})
}

func TestFaultValidate(t *testing.T) {
	for _, f := range []Fault{{Kind: "nope"}, {Kind: Die, After: -1}, {Kind: Status, Status: 200}} {
		if err := (Options{Faults: []Fault{f}}).Validate(); err == nil {
			t.Errorf("Validate accepts %+v", f)
		}
	}
}

func TestParseOptions(t *testing.T) {
	o, err := ParseOptions(map[string]string{
		"preset": "llama-3-8b@a100", "block-size": "32", "num-gpu-blocks": "40", "max-num-batched-tokens": "512",
		"prefix-caching": "false", "batching": "static:8",
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	c := s.cfg
	if c.BlockSize != 32 || c.Blocks != 40 || c.MaxBatchedTokens != 512 || c.PrefixCaching || c.Batching != engine.Static || c.StaticSize != 8 {
		t.Errorf("config %+v", c)
	}
	if c.MaxModelLen != 39*32 {
		t.Errorf("max model len = %d, want what the blocks hold: %d", c.MaxModelLen, 39*32)
	}
	_, err = ParseOptions(map[string]string{"max-num-seqs": "many", "turbo": "on", "prefix-caching": "maybe"})
	for _, want := range []string{`max-num-seqs is "many"`, `no option "turbo"; there are preset`, `prefix-caching is "maybe"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseOptions = %v, want it to say %q", err, want)
		}
	}
	for _, kv := range []map[string]string{
		{"batching": "static"}, {"batching": "sideways"}, {"scheduling-policy": "lifo"}, {"preset": "eliza@vax"},
		{"num-gpu-blocks": "10", "max-model-len": "4096"},
	} {
		if _, err := ParseOptions(kv); err == nil {
			t.Errorf("ParseOptions(%v) is accepted", kv)
		}
	}
}

func TestTokenizer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.StringMatching(`[a-z ]*`), rapid.StringMatching(`( [bcd][aeiou][bcd][aeiou][bcd]|[a-z ])*`)).Draw(t, "text")
		tokens := Tokenize(nil, text)
		if back := Detokenize(tokens); back != text {
			t.Fatalf("%q reads back as %q", text, back)
		}
		words := rapid.SliceOf(rapid.Uint32Range(VocabLow, VocabEnd-1)).Draw(t, "words")
		text = Detokenize(words)
		if again := Tokenize(nil, text); !slices.Equal(again, words) {
			t.Fatalf("%v is %q is %v", words, text, again)
		}
	})
	if n := len(Tokenize(nil, "The quick brown fox jumps over the lazy dog")); n > 26 {
		t.Errorf("43 letters of plain text are %d tokens, want about half", n)
	}
}

// FuzzParse checks the reader of request bodies: no panic, and what is accepted
// is within every limit, with prompts that a slow and simple reader agrees on.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`{"prompt":[1,2,3],"max_tokens":5}`, `{"prompt":[[1],[2 , 3]],"n":2}`, `{"prompt":"text"}`, `{"prompt":["a","b"]}`,
		`{"messages":[{"role":"user","content":"hi"}]}`, `{"messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}]}`,
		`{"prompt":[]}`, `{"prompt":[[]]}`, `{"prompt":[1,[2]]}`, `{"prompt":[[1],]}`, `{"prompt":[1e3]}`, `{"prompt":null}`, `{"prompt":[null]}`,
		`{"prompt":[ ]}`, `{"prompt":[[1]"x"]}`, `{"prompt":[9999999999999999999999]}`, `{"prompt":[1],"seed":-1,"stop_token_ids":[7],"cache_salt":""}`, `{`, ``, `null`,
	} {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	s, err := New(tiny)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte, chat bool) {
		c, fail := s.parse(data, chat, "")
		if fail != nil {
			if fail.status < 400 || fail.status > 499 || !json.Valid(fail.append(nil)) {
				t.Fatalf("%q is refused with %d %s", data, fail.status, fail.append(nil))
			}
			return
		}
		if len(c.reqs) != len(c.prompts)*c.n || c.left != len(c.reqs) || len(c.reqs) == 0 {
			t.Fatalf("%q: %d sequences for %d prompts of %d choices", data, len(c.reqs), len(c.prompts), c.n)
		}
		for _, r := range c.reqs {
			if len(r.Prompt) < 1 || r.MaxTokens < 1 || len(r.Prompt)+r.MaxTokens > s.cfg.MaxModelLen {
				t.Fatalf("%q: a prompt of %d with an answer of %d", data, len(r.Prompt), r.MaxTokens)
			}
		}
		var b struct{ Prompt any }
		if !chat && json.Unmarshal(data, &b) == nil {
			if list, ok := b.Prompt.([]any); ok {
				if _, number := list[0].(float64); number && (len(c.prompts) != 1 || len(list) != len(c.prompts[0])) {
					t.Fatalf("%q: %d tokens were read, %d are there", data, len(c.prompts[0]), len(list))
				}
				if _, nested := list[0].([]any); nested && len(list) != len(c.prompts) {
					t.Fatalf("%q: %d prompts were read, %d are there", data, len(c.prompts), len(list))
				}
			}
		}
	})
}
