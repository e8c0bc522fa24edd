package llmapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"reprise/internal/jsonscan"
	"reprise/internal/llmapi/fixture"
	"reprise/traceformat"
)

// oracleChunk is Parse by encoding/json, without a thought for speed.
func oracleChunk(data []byte) (c Chunk, ok bool) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber() // a number beyond float64 is not an error of the text
	var o map[string]any
	if !json.Valid(data) || d.Decode(&o) != nil || o == nil {
		return c, false
	}
	object := func(v any) map[string]any { m, _ := v.(map[string]any); return m }
	float := func(v any) (f traceformat.Opt[float64]) {
		if n, ok := v.(json.Number); ok {
			if x, err := n.Float64(); err == nil {
				return traceformat.Some(x)
			}
		}
		return f
	}
	count := func(v any) (n traceformat.Opt[int32]) {
		if f := float(v); f.OK && f.V >= 0 && f.V <= math.MaxInt32 && f.V == math.Trunc(f.V) {
			return traceformat.Some(int32(f.V))
		}
		return n
	}
	length := func(v any) (n traceformat.Opt[int32]) {
		if a, ok := v.([]any); ok {
			return traceformat.Some(int32(len(a)))
		}
		return n
	}
	index := func(m map[string]any) int {
		v, ok := m["index"]
		if !ok {
			return 0
		}
		if n := count(v); n.OK {
			return int(n.V)
		}
		return -1
	}
	filled := func(v any) bool {
		s, _ := v.(string)
		a, _ := v.([]any)
		return s != "" || len(a) > 0
	}
	finish := func(v any) (reason, message []byte) {
		s, _ := v.(string)
		if m := object(v); m != nil {
			s, _ = m["type"].(string)
			t, _ := m["message"].(string)
			message = []byte(t)
		}
		return []byte(s), message
	}

	choices, _ := o["choices"].([]any)
	for _, v := range choices {
		c.Choices++
		m := object(v)
		if m == nil {
			continue
		}
		c.Index = index(m)
		s, _ := m["text"].(string)
		if s != "" {
			c.Text = []byte(s)
		}
		for _, k := range []string{"delta", "message"} {
			if s, _ := object(m[k])["content"].(string); s != "" {
				c.Text = []byte(s)
			} else if filled(object(m[k])["content"]) {
				c.Other = true
			}
			for _, f := range []string{"reasoning_content", "reasoning", "refusal", "tool_calls"} {
				c.Other = c.Other || filled(object(m[k])[f])
			}
		}
		if n := length(m["token_ids"]); n.OK {
			c.TokenIDs = traceformat.Some(c.TokenIDs.V + n.V)
		}
		if r, msg := finish(m["finish_reason"]); len(r) > 0 {
			c.FinishReason, c.FinishMessage = r, msg
		}
	}
	if c.Choices == 0 {
		c.Index = index(o)
	}
	if s, _ := o["text"].(string); len(c.Text) == 0 && s != "" {
		c.Text = []byte(s)
	}
	c.Content = len(c.Text) > 0 || c.Other
	if !c.TokenIDs.OK {
		c.TokenIDs = length(o["output_ids"])
	}
	meta, timings, metrics := object(o["meta_info"]), object(o["timings"]), object(o["metrics"])
	if len(c.FinishReason) == 0 {
		c.FinishReason, c.FinishMessage = finish(meta["finish_reason"])
	}
	switch u := object(o["usage"]); {
	case u != nil:
		c.Prompt, c.Output, c.Reasoning = count(u["prompt_tokens"]), count(u["completion_tokens"]), count(u["reasoning_tokens"])
		c.Cached = count(object(u["prompt_tokens_details"])["cached_tokens"])
		if n := count(object(u["completion_tokens_details"])["reasoning_tokens"]); n.OK {
			c.Reasoning = n
		}
	case meta != nil:
		c.Prompt, c.Output, c.Reasoning = count(meta["prompt_tokens"]), count(meta["completion_tokens"]), count(meta["reasoning_tokens"])
		c.Cached = count(meta["cached_tokens"])
	default:
		c.Output, c.Cached = count(timings["predicted_n"]), count(timings["cache_n"])
		if n := count(timings["prompt_n"]); n.OK && c.Cached.OK {
			c.Prompt = traceformat.Some(int32(min(int64(n.V)+int64(c.Cached.V), math.MaxInt32)))
		}
	}
	v, ok := o["error"]
	object0, _ := o["object"].(string)
	c.Error = ok && v != nil || object0 == "error"

	duration := func(f traceformat.Opt[float64], unit time.Duration) (d traceformat.Opt[time.Duration]) {
		if x := f.V * float64(unit); f.OK && x >= 0 && x <= 365*24*float64(time.Hour) {
			return traceformat.Some(time.Duration(math.Round(x)))
		}
		return d
	}
	c.Queue = duration(float(meta["queue_time"]), time.Second)
	c.TTFT = duration(float(meta["first_token_latency"]), time.Second)
	c.E2E = duration(float(meta["e2e_latency"]), time.Second)
	entry, finished := float(meta["forward_entry_time"]), float(meta["prefill_finished_time"])
	prefill, decode := float(metrics["time_to_first_token_ms"]), float(metrics["generation_time_ms"])
	switch {
	case entry.OK && finished.OK:
		c.Prefill = duration(traceformat.Some(finished.V-entry.V), time.Second)
	case prefill.OK:
		c.Prefill = duration(prefill, time.Millisecond)
	default:
		c.Prefill = duration(float(timings["prompt_ms"]), time.Millisecond)
	}
	if q := float(metrics["queue_time_ms"]); q.OK {
		c.Queue = duration(q, time.Millisecond)
		if p := duration(prefill, time.Millisecond); p.OK && c.Queue.OK {
			c.TTFT = traceformat.Some(c.Queue.V + p.V)
			if d := duration(decode, time.Millisecond); d.OK {
				c.E2E = traceformat.Some(c.TTFT.V + d.V)
			}
		}
	}
	return c, true
}

// depth is the deepest nesting of valid JSON.
func depth(data []byte) (deepest int) {
	d := json.NewDecoder(bytes.NewReader(data))
	n := 0
	for {
		t, err := d.Token()
		if err != nil {
			return deepest
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			n++
			deepest = max(deepest, n)
		case json.Delim('}'), json.Delim(']'):
			n--
		}
	}
}

// check compares Parse with encoding/json.
func check(t *testing.T, data []byte) {
	t.Helper()
	var got Chunk
	before := bytes.Clone(data)
	err := got.Parse(data)
	if !bytes.Equal(data, before) {
		t.Fatalf("Parse changed its input %q", before)
	}
	want, ok := oracleChunk(data)
	if ok && depth(data) > jsonscan.MaxDepth {
		if err == nil {
			t.Fatal("Parse takes what is nested too deep")
		}
		return
	}
	if (err == nil) != ok || err != nil && !errors.Is(err, ErrJSON) {
		t.Fatalf("Parse(%q) = %v; encoding/json takes it: %t", data, err, ok)
	}
	if err != nil {
		return
	}
	// Views keep their escapes; empty and absent are alike.
	for _, v := range []*[]byte{&got.FinishReason, &got.FinishMessage, &got.Text} {
		*v = jsonscan.Unquote(*v)
	}
	for _, v := range []*[]byte{&want.FinishReason, &want.FinishMessage, &want.Text, &got.FinishReason, &got.FinishMessage, &got.Text} {
		if len(*v) == 0 {
			*v = nil
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("Parse(%q): -encoding/json +Parse\n%s", data, d)
	}
}

func recordings(t testing.TB) (bodies [][]byte) {
	for _, dir := range []string{"vllm", "sglang", "openai"} {
		for _, x := range fixture.All(t, "../../backends/"+dir+"/testdata/*.txt") {
			bodies = append(bodies, x.Events...)
			if x.Events == nil {
				bodies = append(bodies, x.Body)
			}
		}
	}
	return bodies
}

var hardChunks = []string{
	``, ` `, `{}`, ` { } `, `[]`, `null`, `{"a":1,}`, `{,}`, `{"a" 1}`, `{"a":}`, `{"a":1 "b":2}`, `{"a":[1,]}`, `{"a":[,1]}`, `{"a":[1 2]}`, `{a:1}`, `{"a":1}}`, `{"a":1}x`, `{`, `{"`, `{"a`, `{"a":"`,
	`{"a":01}`, `{"a":-}`, `{"a":1.}`, `{"a":.5}`, `{"a":1e}`, `{"a":1e+}`, `{"a":-0.0e-0}`, `{"a":+1}`, `{"a":tru}`, `{"a":nulll}`, `{"a":NaN}`, `{"a":1e999}`,
	"{\"a\":\"\x1f\"}", "{\"a\":\"\x7f\xff\"}", `{"a":"\u12g4"}`, `{"a":"\x"}`, `{"a":"\ud800"}`, `{"a":"0123456\"89"}`, `{"a":"01234567\\"}`, "{\"a\":\"0123456\n\"}",
	`{"us\u0061ge":{"completion_tokens":3}}`, `{"usage":null}`, `{"usage":[]}`, `{"usage":{"completion_tokens":3},"usage":null}`, `{"usage":{"completion_tokens":3,"completion_tokens":null}}`,
	`{"usage":{"completion_tokens":-1}}`, `{"usage":{"completion_tokens":1.5}}`, `{"usage":{"completion_tokens":2147483648}}`, `{"usage":{"completion_tokens":2147483647}}`, `{"usage":{"completion_tokens":1e3}}`, `{"usage":{"completion_tokens":-0}}`, `{"usage":{"completion_tokens":"8"}}`, `{"usage":{"completion_tokens":00}}`,
	`{"choices":null}`, `{"choices":{}}`, `{"choices":[1,"a",null,{}]}`, `{"choices":[{"index":1},{"index":-1}]}`, `{"choices":[{"index":null}]}`, `{"choices":[{"text":"a"}],"choices":[]}`, `{"choices":[{"text":"a","text":""}]}`,
	`{"choices":[{"finish_reason":"stop"},{"finish_reason":null}]}`, `{"choices":[{"finish_reason":"st\u006fp"}]}`, `{"choices":[{"finish_reason":"stop","finish_reason":3}]}`, `{"choices":[{"finish_reason":{"type":"abort","message":"a\"b"}}]}`,
	`{"choices":[{"token_ids":[1,2]},{"token_ids":[]},{"token_ids":null}]}`, `{"choices":[{"token_ids":[[1],{"a":[2]}]}],"output_ids":[1,2,3]}`, `{"output_ids":[1,2,3],"index":2,"text":"a"}`,
	`{"choices":[{"delta":{"content":""}}]}`, `{"choices":[{"delta":{"content":null,"reasoning_content":"a"}}]}`, `{"choices":[{"delta":{"tool_calls":[{}]}}]}`, `{"choices":[{"delta":{"tool_calls":[]}}]}`, `{"choices":[{"delta":{"content":[{"type":"text"}]}}]}`, `{"choices":[{"delta":"a"}]}`, `{"choices":[{"delta":{"content":"a"},"delta":null}]}`,
	`{"error":null}`, `{"error":false}`, `{"error":{}}`, `{"error":"x","error":null}`, `{"object":"error"}`, `{"object":"error","object":1}`, `{"object":["error"]}`,
	`{"meta_info":{"completion_tokens":3,"queue_time":0.5,"forward_entry_time":2.5,"prefill_finished_time":2}}`, `{"meta_info":{"queue_time":-1,"e2e_latency":1e300,"first_token_latency":0}}`, `{"meta_info":3,"timings":{"predicted_n":4,"cache_n":2}}`, `{"meta_info":{},"timings":{"predicted_n":4}}`,
	`{"timings":{"predicted_n":4,"cache_n":2,"prompt_n":2147483647,"prompt_ms":0.5}}`, `{"metrics":{"queue_time_ms":1,"time_to_first_token_ms":2,"generation_time_ms":3}}`, `{"metrics":{"time_to_first_token_ms":2}}`, `{"metrics":{"queue_time_ms":null,"generation_time_ms":3},"timings":{"prompt_ms":9}}`,
}

func TestChunkAgainstOracle(t *testing.T) {
	for _, s := range hardChunks {
		check(t, []byte(s))
	}
	for _, b := range recordings(t) {
		check(t, b)
		// Cut short, none is an object any more.
		for i := 0; i < len(b); i += 1 + len(b)/50 {
			check(t, b[:i])
		}
	}
	for _, n := range []int{jsonscan.MaxDepth - 1, jsonscan.MaxDepth, jsonscan.MaxDepth + 1, 100_000} {
		check(t, []byte(`{"a":`+strings.Repeat("[", n)+strings.Repeat("]", n)+`}`))
	}
}

func FuzzChunk(f *testing.F) {
	for _, s := range hardChunks {
		f.Add([]byte(s))
	}
	for _, b := range recordings(f) {
		if len(b) < 4<<10 {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) <= 32<<10 {
			check(t, data)
		}
	})
}

func FuzzAppendString(f *testing.F) {
	f.Add("a\"\\\x00\x1f\u2028 \xff é 😀")
	f.Fuzz(func(t *testing.T, s string) {
		var got string
		b := AppendString([]byte("x"), s)
		if err := json.Unmarshal(b[1:], &got); err != nil || got != strings.ToValidUTF8(s, "\ufffd") && got != string([]rune(s)) {
			t.Errorf("AppendString(%q) = %s: %q, %v", s, b, got, err)
		}
	})
}

// chunks of the kinds that a hot path meets.
func hotChunks(t testing.TB) map[string][]byte {
	dir := "../../backends/"
	long := `{"text":"` + strings.Repeat("token ", 2000) + `","output_ids":[` + strings.Repeat("12345,", 1999) + `12345],"meta_info":{"id":"x","finish_reason":null,"prompt_tokens":3,"completion_tokens":2000}}`
	return map[string][]byte{
		"vllm":            fixture.Read(t, dir+"vllm/testdata/sse_continuous_usage_token_ids.txt").Events[3],
		"vllm-last":       fixture.Read(t, dir+"vllm/testdata/sse_per_request_metrics.txt").Events[3],
		"sglang":          fixture.Read(t, dir+"sglang/testdata/generate_stream_incremental.txt").Events[1],
		"sglang-2000-cum": []byte(long),
		"llamacpp":        fixture.Read(t, dir+"openai/testdata/llamacpp_sse.txt").Events[0],
	}
}

func TestChunkAllocatesNothing(t *testing.T) {
	for name, b := range hotChunks(t) {
		var c Chunk
		if n := testing.AllocsPerRun(100, func() {
			if err := c.Parse(b); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkChunk(b *testing.B) {
	for name, data := range hotChunks(b) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			var c Chunk
			for b.Loop() {
				if err := c.Parse(data); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
