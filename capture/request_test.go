package capture

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"reprise/traceformat"
)

func TestRoutes(t *testing.T) {
	tests := []struct {
		method, target   string
		endpoint, reason string
	}{
		{"POST", "/v1/chat/completions", "chat", ""},
		{"POST", "/openai/deployments/x/chat/completions?api-version=2024-02-01", "chat", ""},
		{"POST", "http://host:8000/v1/completions/", "completions", ""},
		{"POST", "/v1/responses", "responses", ""},
		{"GET", "/v1/responses/resp_1", "", ReasonNotLLM},
		{"POST", "/v1/messages", "messages", ""},
		{"POST", "/v1/messages/count_tokens", "", ReasonNotLLM},
		{"POST", "/v1/embeddings", "embeddings", ""},
		{"POST", "/generate", "generate", ""},
		{"POST", "/generate_stream", "generate", ""},
		{"POST", "/inference/v1/generate", "generate", ""},
		{"POST", "/", "", ""},
		{"POST", "/invocations", "", ""},
		{"", "", "", ""},
		{"GET", "/health", "", ReasonHealthCheck},
		{"GET", "/", "", ReasonHealthCheck},
		{"HEAD", "/health/readiness", "", ReasonHealthCheck},
		{"GET", "/metrics", "", ReasonMetrics},
		{"GET", "/v1/models", "", ReasonModelList},
		{"GET", "/v1/models/meta/llama", "", ReasonModelList},
		{"GET", "/get_model_info", "", ReasonModelList},
		{"OPTIONS", "/v1/chat/completions", "", ReasonNotLLM},
		{"POST", "/tokenize", "", ReasonNotLLM},
		{"GET", "/favicon.ico", "", ReasonNotLLM},
	}
	for _, tt := range tests {
		if r := routeOf(tt.method, tt.target); r.endpoint != tt.endpoint || r.reason != tt.reason {
			t.Errorf("routeOf(%s %s) = %q, %q; want %q, %q", tt.method, tt.target, r.endpoint, r.reason, tt.endpoint, tt.reason)
		}
	}
}

// A capture that joined late has no path: the body says what the request is.
func TestShapes(t *testing.T) {
	tests := []struct{ body, want string }{
		{`{"model":"m","messages":[]}`, "chat"},
		{`{"model":"m","messages":[],"system":"x"}`, "messages"},
		{`{"messages":[],"tools":[{"input_schema":{}}]}`, "messages"},
		{`{"model":"m","prompt":"x"}`, "completions"},
		{`{"prompt":[1,2]}`, "completions"},
		{`{"model":"m","input":[{"role":"user","content":"x"}]}`, "responses"},
		{`{"model":"m","input":"x","max_output_tokens":3}`, "responses"},
		{`{"model":"m","input":["x"]}`, "embeddings"},
		{`{"text":"x","sampling_params":{}}`, "generate"},
		{`{"input_ids":[1]}`, "generate"},
		{`{"token_ids":[1],"sampling_params":{}}`, "generate"},
		{`{"inputs":"x"}`, "generate"},
		{`{"jsonrpc":"2.0"}`, ""},
		{`[]`, ""},
		{`hello`, ""},
	}
	for _, tt := range tests {
		r, s := newTest(t, Options{})
		x := r.Begin(epoch, Conn{LateJoin: true})
		x.RequestBody(epoch, []byte(tt.body))
		x.RequestEnd(epoch)
		if tt.want == "" {
			if !x.Skipped() {
				t.Errorf("%s is not skipped", tt.body)
			}
			continue
		}
		x.ResponseBody(epoch+1, []byte(`{}`))
		x.ResponseEnd(epoch + 2)
		if len(s.rows) != 1 || s.rows[0].Endpoint != tt.want || !strings.Contains(s.rows[0].Extra, `"late_join":1`) {
			t.Errorf("%s: %v, want endpoint %s", tt.body, s.rows, tt.want)
		}
	}
}

func TestLimits(t *testing.T) {
	tests := []struct {
		name, path, body string
		want             string // max n temperature stream
	}{
		{"OpenAI", "/v1/chat/completions", `{"messages":[],"max_tokens":5,"n":2,"temperature":0.5,"stream":true}`, "5 2 0.5 true"},
		{"the newer spelling goes before", "/v1/chat/completions", `{"messages":[],"max_completion_tokens":7,"max_tokens":5}`, "7 - - false"},
		{"responses", "/v1/responses", `{"input":"x","max_output_tokens":9}`, "9 - - false"},
		{"SGLang", "/generate", `{"text":"x","sampling_params":{"max_new_tokens":3,"temperature":1,"n":4},"stream":true}`, "3 4 1 true"},
		{"SGLang, one for each prompt", "/generate", `{"text":["x","y"],"sampling_params":[{"max_new_tokens":3},{"max_new_tokens":4}]}`, "3 - - false"},
		{"TGI", "/generate_stream", `{"inputs":"x","parameters":{"max_new_tokens":6}}`, "6 - - true"},
		{"nonsense is unknown", "/v1/completions", `{"prompt":"x","max_tokens":-1,"n":0,"temperature":-3,"stream":"yes"}`, "- - - false"},
		{"null is unknown", "/v1/completions", `{"prompt":"x","max_tokens":null,"n":null,"temperature":null,"stream":null}`, "- - - false"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, s := newTest(t, Options{})
			exchange(r, tt.path, tt.body, 200, "application/json", `{}`)
			row := s.rows[0]
			show := func(v any, ok bool) string {
				if !ok {
					return "-"
				}
				return fmt.Sprint(v)
			}
			got := strings.Join([]string{
				show(row.MaxTokens.V, row.MaxTokens.OK), show(row.N.V, row.N.OK),
				show(row.Temperature.V, row.Temperature.OK), show(row.Stream.V, row.Stream.OK),
			}, " ")
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// blocksOf records one request and returns its row.
func blocksOf(t testing.TB, o Options, path, body string) *traceformat.Row {
	t.Helper()
	s := new(rowSink)
	r, err := NewRecorder(s, o)
	if err != nil {
		t.Fatal(err)
	}
	exchange(r, path, body, 200, "application/json", `{}`)
	checkRecorder(t, r, s)
	if len(s.rows) != 1 {
		t.Fatalf("no row: %v", r.Accounts())
	}
	return s.rows[0]
}

// One prompt, however it is spelt, has one list of blocks.
func TestBlocksAreOfCanonicalBytes(t *testing.T) {
	o := Options{Key: NewKey()}
	long := strings.Repeat("lorem ipsum ", 40)
	chat := func(body string) []uint64 { return blocksOf(t, o, "/v1/chat/completions", body).PrefixBlocks }
	plain := chat(`{"messages":[{"role":"system","content":"s"},{"role":"user","content":"` + long + `äx"}]}`)
	if len(plain) < 5 {
		t.Fatalf("%d blocks", len(plain))
	}
	same := map[string]string{
		"parts":            `{"messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"` + long + `äx"}]}]}`,
		"order of members": `{"messages":[{"content":"s","role":"system"},{"content":"` + long + `äx","role":"user"}],"model":"x"}`,
		"escapes":          `{"messages":[{"role":"system","content":"\u0073"},{"role":"user","content":"` + strings.ReplaceAll(long, "l", `\u006c`) + `\u00e4x"}]}`,
		"white space":      "{ \"messages\" : [ {\"role\":\"system\",\"content\":\"s\"},\n{\"role\":\"user\",\"content\":\"" + long + "äx\"}]}",
	}
	for name, body := range same {
		if got := chat(body); !slices.Equal(got, plain) {
			t.Errorf("%s: other blocks", name)
		}
	}
	anthropic := blocksOf(t, o, "/v1/messages", `{"system":[{"type":"text","text":"s"}],"messages":[{"role":"user","content":"`+long+`äx"}]}`).PrefixBlocks
	if !slices.Equal(anthropic, plain) {
		t.Error("the same conversation by the Messages API has other blocks")
	}
	shared := chat(`{"messages":[{"role":"system","content":"s"},{"role":"user","content":"` + long + `and another end of it that is long enough for a block of its own"}]}`)
	n := 0
	for n < len(shared) && n < len(plain) && shared[n] == plain[n] {
		n++
	}
	if want := len("\xffsystem\xfes\xffuser\xfe"+long) / DefaultBlockBytes; n != want {
		t.Errorf("%d blocks shared, want %d", n, want)
	}
	if other := blocksOf(t, Options{Key: NewKey()}, "/v1/chat/completions", `{"messages":[{"role":"system","content":"s"},{"role":"user","content":"`+long+`äx"}]}`).PrefixBlocks; other[0] == plain[0] {
		t.Error("another key gives the same blocks")
	}
	if moved := chat(`{"messages":[{"role":"system","content":"s` + "\\u00ff" + `user"},{"role":"user","content":"` + long + `äx"}]}`); moved[0] == plain[0] {
		t.Error("text imitates a frame")
	}
}

// Token ids are a prompt of known length, in blocks of sixteen.
func TestTokenIDPrompts(t *testing.T) {
	ids := make([]string, 100)
	for i := range ids {
		ids[i] = fmt.Sprint(1000 + i)
	}
	list := "[" + strings.Join(ids, ",") + "]"
	o := Options{Key: NewKey()}
	a := blocksOf(t, o, "/v1/completions", `{"prompt":`+list+`}`)
	b := blocksOf(t, o, "/generate", `{"input_ids":[`+list+`]}`)
	if len(a.PrefixBlocks) != 6 || !slices.Equal(a.PrefixBlocks, b.PrefixBlocks) {
		t.Errorf("blocks %v and %v, want six equal ones", a.PrefixBlocks, b.PrefixBlocks)
	}
	for _, row := range []*traceformat.Row{a, b} {
		if row.PromptTokens != traceformat.Some[int32](100) || row.PromptTokensSource != traceformat.SourceTokenizer {
			t.Errorf("prompt of %v from %q, want 100 ids counted", row.PromptTokens, row.PromptTokensSource)
		}
	}
	batch := blocksOf(t, o, "/v1/completions", `{"prompt":[`+list+`,[1,2]]}`)
	if batch.PrefixBlocks != nil || batch.PromptTokens.V != 102 || batch.Extra != `{"prompts":2}` {
		t.Errorf("a batch has %v, %v, %s; want no blocks, 102 tokens", batch.PrefixBlocks, batch.PromptTokens, batch.Extra)
	}
	float := blocksOf(t, o, "/v1/completions", `{"prompt":[1.5,-2,3,99999999999999999999]}`)
	if float.PromptTokens.OK {
		t.Errorf("a list of other numbers has %v tokens", float.PromptTokens)
	}
}

// The blocks do not depend on how the body was cut, or on its coding.
func TestRequestSplits(t *testing.T) {
	key := NewKey()
	body := []byte(`{"model":"m","user":"u","messages":[{"role":"user","content":"` + strings.Repeat("word \\ud83d\\ude00 ", 50) + `"}],"tools":[{"type":"function","function":{"name":"f"}}]}`)
	if !json.Valid(body) {
		t.Fatal("the test's body is no JSON")
	}
	want := ""
	rapid.Check(t, func(rt *rapid.T) {
		s := new(rowSink)
		r, err := NewRecorder(s, Options{Key: key})
		if err != nil {
			rt.Fatal(err)
		}
		coding := rapid.SampledFrom([]string{"", "gzip", "zstd", "br", "deflate"}).Draw(rt, "coding")
		wire := body
		if coding != "" {
			wire = encode(t, coding, body)
		}
		x := r.Begin(epoch, Conn{Client: "a"})
		x.RequestHead(epoch, "POST", "/v1/chat/completions", func(name string) string {
			if name == "content-encoding" {
				return coding
			}
			return ""
		})
		for len(wire) > 0 {
			n := rapid.IntRange(1, len(wire)).Draw(rt, "n")
			p := bytes.Clone(wire[:n])
			x.RequestBody(epoch, p)
			clear(p) // the caller's buffer is its own again
			wire = wire[n:]
		}
		x.RequestEnd(epoch)
		x.ResponseHead(epoch+1, 200, nil)
		x.ResponseEnd(epoch + 1)
		checkRecorder(t, r, s)
		got := timeless(s.rows[0])
		if want == "" {
			want = got
		}
		if got != want {
			rt.Fatalf("got  %s\nwant %s", got, want)
		}
	})
}

// turn is one request of a conversation, with a streamed answer.
type turn struct {
	at       time.Duration
	client   string
	headers  map[string]string
	messages []string // role, content, ...
	prompt   string   // instead of messages
	answer   string
	status   int
}

func (c turn) play(r *Recorder) {
	x := r.Begin(epoch+int64(c.at), Conn{Client: c.client})
	h := func(name string) string { return c.headers[name] }
	type message struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	}
	path, body := "/v1/chat/completions", map[string]any{"stream": true, "model": "m"}
	if c.prompt != "" {
		path, body["prompt"] = "/v1/completions", c.prompt
	} else {
		var list []message
		for m := range slices.Chunk(c.messages, 2) {
			list = append(list, message{m[0], m[1]})
		}
		body["messages"] = list
	}
	b, _ := json.Marshal(body)
	t := epoch + int64(c.at)
	x.RequestHead(t, "POST", path, h)
	x.RequestBody(t, b)
	x.RequestEnd(t)
	if x.Skipped() {
		return
	}
	if c.status != 0 {
		x.ResponseHead(t+5e8, c.status, nil)
		x.ResponseEnd(t + 5e8)
		return
	}
	x.ResponseHead(t, 200, func(name string) string {
		if name == "content-type" {
			return "text/event-stream"
		}
		return ""
	})
	// In pieces of two bytes, as a model writes.
	for p := range slices.Chunk([]rune(c.answer), 2) {
		text, _ := json.Marshal(string(p))
		if c.prompt != "" {
			x.ResponseBody(t+5e8, fmt.Appendf(nil, "data: {\"choices\":[{\"index\":0,\"text\":%s}]}\n\n", text))
		} else {
			x.ResponseBody(t+5e8, fmt.Appendf(nil, "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":%s}}]}\n\n", text))
		}
	}
	x.ResponseBody(t+1e9, []byte("data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n"))
	x.ResponseEnd(t + 1e9)
}

func TestSessions(t *testing.T) {
	long := strings.Repeat("a prompt of one text, longer than a block. ", 3)
	sid := func(s string) map[string]string { return map[string]string{"x-session-id": s} }
	s := func(n int) time.Duration { return time.Duration(n) * time.Second }
	tests := []struct {
		name  string
		turns []turn
		want  string // of each row: session in order of appearance, turn, parent, think
	}{
		{"a conversation is found by its prefix", []turn{
			{at: 0, messages: []string{"user", "hi"}, answer: "hello \"you\""},
			{at: s(10), messages: []string{"user", "hi", "assistant", "hello \"you\"", "user", "more"}, answer: "yes"},
			{at: s(20), messages: []string{"user", "hi", "assistant", "hello \"you\"", "user", "more", "assistant", "yes", "user", "again"}, answer: "no"},
		}, "A0 - -; A1 0 9.5s; A2 1 9.5s"},
		{"two people begin alike: the answers tell them apart", []turn{
			{at: 0, messages: []string{"user", "hi"}, answer: "one"},
			{at: s(2), messages: []string{"user", "hi"}, answer: "two"},
			{at: s(10), messages: []string{"user", "hi", "assistant", "one", "user", "more"}, answer: "x"},
			{at: s(12), messages: []string{"user", "hi", "assistant", "two", "user", "more"}, answer: "y"},
			{at: s(14), messages: []string{"user", "hi", "assistant", "three", "user", "more"}, answer: "z"},
		}, "A0 - -; B0 - -; A1 0 9.5s; B1 1 9.5s; C0 - -"},
		{"an answer that the client changed", []turn{
			{at: 0, messages: []string{"user", "hi"}, answer: "hello  "},
			{at: s(10), messages: []string{"user", "hi", "assistant", "hello", "user", "more"}, answer: "x"},
		}, "A0 - -; A1 0 9.5s"},
		{"another client with the same words is another conversation", []turn{
			{at: 0, client: "a", messages: []string{"user", "hi"}, answer: "one"},
			{at: s(10), client: "b", messages: []string{"user", "hi", "assistant", "one", "user", "more"}, answer: "x"},
		}, "A0 - -; B0 - -"},
		{"a shared system prompt makes no conversation", []turn{
			{at: 0, messages: []string{"system", long, "user", "a"}, answer: "one"},
			{at: s(10), messages: []string{"system", long, "user", "b"}, answer: "two"},
		}, "A0 - -; B0 - -"},
		{"the same prompt again is no continuation", []turn{
			{at: 0, messages: []string{"user", "hi"}, answer: "one"},
			{at: s(10), messages: []string{"user", "hi"}, answer: "one"},
		}, "A0 - -; B0 - -"},
		{"a branch", []turn{
			{at: 0, messages: []string{"user", "hi"}, answer: "one"},
			{at: s(10), messages: []string{"user", "hi", "assistant", "one", "user", "more"}, answer: "x"},
			{at: s(20), messages: []string{"user", "hi", "assistant", "one", "user", "else"}, answer: "y"},
		}, "A0 - -; A1 0 9.5s; A2 0 19.5s"},
		{"named sessions", []turn{
			{at: 0, headers: sid("p"), messages: []string{"user", "a"}, answer: "one"},
			{at: s(3), headers: sid("q"), messages: []string{"user", "a"}, answer: "one"},
			{at: s(10), headers: sid("p"), messages: []string{"user", "b"}, answer: "x"},
			{at: s(20), headers: sid("p"), messages: []string{"user", "a", "assistant", "one", "user", "c"}, answer: "x"},
		}, "A0 - -; B0 - -; A1 0 9.5s; A2 0 19.5s"},
		{"a prompt of one text", []turn{
			{at: 0, prompt: long, answer: "one"},
			{at: s(10), prompt: long + "one and more", answer: "x"},
			{at: s(20), prompt: long[:70] + "something else, not a continuation", answer: "y"},
			{at: s(30), prompt: long + "one and more, and more still", answer: "z"},
		}, "A0 - -; A1 0 9.5s; B0 - -; A2 1 19.5s"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, sink := newTest(t, Options{})
			for _, c := range tt.turns {
				if c.client == "" {
					c.client = "one"
				}
				c.play(r)
			}
			names := map[int64]string{}
			var got []string
			for _, row := range sink.rows {
				if !row.Session.OK {
					got = append(got, "none")
					continue
				}
				name, ok := names[row.Session.V]
				if !ok {
					name = string(rune('A' + len(names)))
					names[row.Session.V] = name
				}
				parent, think := "-", "-"
				if row.Parent.OK {
					parent = fmt.Sprint(row.Parent.V)
				}
				if row.Think.OK {
					think = row.Think.V.String()
				}
				got = append(got, fmt.Sprintf("%s%d %s %s", name, row.Turn.V, parent, think))
			}
			if g := strings.Join(got, "; "); g != tt.want {
				t.Errorf("got  %s\nwant %s", g, tt.want)
			}
		})
	}
}

// Attempts at one request are one row, which arrived when the first did.
func TestRetries(t *testing.T) {
	id := map[string]string{"x-request-id": "r-1"}
	other := map[string]string{"x-request-id": "r-2"}
	hi := []string{"user", "hi"}
	s := func(n int) time.Duration { return time.Duration(n) * time.Second }
	tests := []struct {
		name    string
		turns   []turn
		want    string // arrival outcome extra
		reasons string
	}{
		{"refused, then served", []turn{
			{at: s(1), headers: id, messages: hi, status: 503},
			{at: s(3), headers: id, messages: hi, status: 429},
			{at: s(6), headers: id, messages: hi, answer: "x"},
		}, `1s ok {"attempts":3}`, "map[retry:2]"},
		{"refused for good", []turn{
			{at: s(1), headers: id, messages: hi, status: 503},
			{at: s(3), headers: other, messages: hi, answer: "x"},
		}, `1s rejected ; 3s ok `, "map[]"},
		{"one id for another prompt is another request", []turn{
			{at: s(1), headers: id, messages: hi, status: 503},
			{at: s(3), headers: id, messages: []string{"user", "ho"}, answer: "x"},
		}, `1s rejected ; 3s ok `, "map[]"},
		{"no id, no retry", []turn{
			{at: s(1), messages: hi, status: 503},
			{at: s(3), messages: hi, answer: "x"},
		}, `1s rejected ; 3s ok `, "map[]"},
		{"long after", []turn{
			{at: s(1), headers: id, messages: hi, status: 503},
			{at: s(200), headers: id, messages: hi, answer: "x"},
		}, `1s rejected ; 200s ok `, "map[]"},
		{"again after success", []turn{
			{at: s(1), headers: id, messages: hi, answer: "x"},
			{at: s(3), headers: id, messages: hi, answer: "x"},
		}, `1s ok `, "map[retry:1]"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, sink := newTest(t, Options{Start: time.Unix(0, epoch)})
			for _, c := range tt.turns {
				c.play(r)
			}
			checkRecorder(t, r, sink)
			slices.SortFunc(sink.rows, (*traceformat.Row).Compare)
			var got []string
			for _, row := range sink.rows {
				got = append(got, fmt.Sprintf("%ds %s %s", int(row.Arrival.Seconds()), row.Result, row.Extra))
			}
			if g := strings.Join(got, "; "); g != tt.want {
				t.Errorf("got  %q\nwant %q", g, tt.want)
			}
			if g := fmt.Sprint(r.Accounts().Reasons); g != tt.reasons {
				t.Errorf("reasons %s, want %s", g, tt.reasons)
			}
		})
	}
}

// The same request seen at two hops is one row.
func TestTwoHops(t *testing.T) {
	r, s := newTest(t, Options{})
	h := func(name string) string {
		return map[string]string{"x-request-id": "r"}[name]
	}
	body := []byte(`{"messages":[{"role":"user","content":"hi"}]}`)
	var hops []*Exchange
	for i := range int64(2) {
		x := r.Begin(epoch+i, Conn{Client: fmt.Sprint(i)})
		x.RequestHead(epoch+i, "POST", "/v1/chat/completions", h)
		x.RequestBody(epoch+i, body)
		x.RequestEnd(epoch + i)
		hops = append(hops, x)
	}
	if hops[0].Skipped() || !hops[1].Skipped() {
		t.Error("want the second hop skipped, and the first not")
	}
	hops[0].ResponseHead(epoch+5, 200, nil)
	hops[0].ResponseBody(epoch+5, []byte("{}"))
	hops[0].ResponseEnd(epoch + 6)
	if len(s.rows) != 1 || r.Accounts().Reasons[ReasonDuplicate] != 1 {
		t.Errorf("%d rows, %v", len(s.rows), r.Accounts())
	}
}

// Whole sessions are kept or left out, at about the rate that was asked for.
func TestSampling(t *testing.T) {
	for _, by := range []string{"session", "client"} {
		t.Run(by, func(t *testing.T) {
			sample, err := ParseSample("1/4", by)
			if err != nil {
				t.Fatal(err)
			}
			r, s := newTest(t, Options{Sample: sample})
			const n = 2000
			for i := range n {
				first := fmt.Sprintf("question %d", i)
				c := turn{at: time.Duration(i) * time.Minute, client: fmt.Sprint(i), messages: []string{"user", first}, answer: "x"}
				c.play(r)
				c.at += 10 * time.Second
				c.messages = append(c.messages, "assistant", "x", "user", "more")
				c.play(r)
			}
			sessions := map[int64]int{}
			for _, row := range s.rows {
				sessions[row.Session.V]++
				if row.Turn.V == 1 && !row.Parent.OK {
					t.Fatalf("a second turn has no parent: %s", rowText(row))
				}
			}
			for id, k := range sessions {
				if k != 2 {
					t.Fatalf("session %d has %d rows of 2", id, k)
				}
			}
			if k := len(sessions); k < n/4-100 || k > n/4+100 { // five standard deviations
				t.Errorf("%d of %d sessions, want about a quarter", k, n)
			}
			if h := r.Header().Sampling; h.Rate != 0.25 || h.By != by {
				t.Errorf("header says %+v", h)
			}
		})
	}
	for _, bad := range []string{"2/4", "1/0", "x", "1/", "0.5", "1/-3"} {
		if _, err := ParseSample(bad, ""); err == nil {
			t.Errorf("sample %q is taken", bad)
		}
	}
}

func TestKeyFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "key")
	a, err := LoadKey(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v; want 0600", info.Mode(), err)
	}
	b, err := LoadKey(path)
	if err != nil || a.Fingerprint() != b.Fingerprint() || a.id(domainClient, "x") != b.id(domainClient, "x") {
		t.Errorf("the same file gives another key (%v)", err)
	}
	if NewKey().Fingerprint() == a.Fingerprint() {
		t.Error("two keys have one fingerprint")
	}
	secret, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(secret), a.Fingerprint()) {
		t.Error("the fingerprint is a piece of the key")
	}
	for name, c := range map[string]struct {
		data string
		mode os.FileMode
	}{
		"readable by others": {string(secret), 0o644},
		"by the group":       {string(secret), 0o640},
		"short":              {string(secret)[:40], 0o600},
		"long":               {strings.TrimSpace(string(secret)) + "00", 0o600},
		"no hexadecimal":     {strings.Repeat("zz", 32), 0o600},
		"empty":              {"", 0o600},
	} {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(c.data), c.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, c.mode); err != nil {
			t.Fatal(err)
		}
		_, err := LoadKey(p)
		if err == nil {
			t.Errorf("%s: taken", name)
		} else if d := strings.TrimSpace(c.data); d != "" && strings.Contains(err.Error(), d[:16]) {
			t.Errorf("%s: the error quotes the key", name)
		}
	}
}

// Bodies that are too large, too deep or never end cost a bounded amount, and
// are accounted for.
func TestHostileRequests(t *testing.T) {
	o := Options{Memory: 4 << 20, MaxBody: 1 << 20}
	deep := strings.Repeat("[", 1_000_000)
	tests := []struct{ name, head, unit, tail string }{
		{"deep", `{"messages":`, deep, ""},
		{"deep and closed", `{"messages":` + strings.Repeat("[", 1000), "", strings.Repeat("]", 1000) + "}"},
		{"large", `{"prompt":"`, strings.Repeat("x", 3<<20), `"}`},
		{"no JSON", "", "\x00\xff", ""},
		{"empty", "", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, s := newTest(t, o)
			x := r.Begin(epoch, Conn{})
			x.RequestHead(epoch, "POST", "/v1/chat/completions", nil)
			for p := range slices.Chunk([]byte(tt.head+tt.unit+tt.tail), 1<<16) {
				x.RequestBody(epoch, p)
				if r.Held() > o.Memory {
					t.Fatalf("%d bytes are held", r.Held())
				}
			}
			x.RequestEnd(epoch)
			x.ResponseHead(epoch, 400, nil)
			x.ResponseEnd(epoch)
			row := s.rows[0]
			if row.PromptTokens.OK || row.PrefixBlocks != nil || row.Result != traceformat.ResultRejected {
				t.Errorf("row %s: want what the body says unknown", rowText(row))
			}
		})
	}
	t.Run("many silent connections", func(t *testing.T) {
		r, _ := newTest(t, o)
		for i := range int64(100_000) {
			r.Begin(epoch+i, Conn{})
		}
		if err := r.Accounts().Check(); err != nil {
			t.Error(err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if n := r.Accounts().Reasons[ReasonIncomplete]; n != 100_000 {
			t.Errorf("%d are incomplete, want 100000", n)
		}
	})
	t.Run("the budget is shared", func(t *testing.T) {
		r, s := newTest(t, o)
		var open []*Exchange
		for range 20 {
			x := r.Begin(epoch, Conn{})
			x.RequestHead(epoch, "POST", "/v1/completions", nil)
			x.RequestBody(epoch, []byte(`{"prompt":"`))
			x.RequestBody(epoch, bytes.Repeat([]byte("y"), 500<<10))
			x.RequestBody(epoch, []byte(`"}`))
			if r.Held() > o.Memory {
				t.Fatalf("%d bytes are held", r.Held())
			}
			open = append(open, x)
		}
		known := 0
		for _, x := range open {
			x.RequestEnd(epoch)
			x.ResponseHead(epoch, 200, nil)
			x.ResponseEnd(epoch)
		}
		for _, row := range s.rows {
			if row.PrefixBlocks != nil {
				known++
			}
		}
		if known == 0 || known == len(s.rows) {
			t.Errorf("%d of %d prompts were read, want some and not all", known, len(s.rows))
		}
	})
}

// What decodes to a thousand times its size is not kept.
func TestBombs(t *testing.T) {
	o := Options{Memory: 8 << 20, MaxBody: 1 << 20}
	zeros := bytes.Repeat([]byte("0"), 64<<20)
	for _, coding := range []string{"gzip", "deflate", "br", "zstd"} {
		bomb := encode(t, coding, zeros)
		for _, kind := range []string{"application/json", "text/event-stream", "text/plain"} {
			r, s := newTest(t, o)
			x := r.Begin(epoch, Conn{})
			x.RequestHead(epoch, "POST", "/v1/completions", func(name string) string {
				return map[string]string{"content-encoding": coding}[name]
			})
			if len(bomb) < 1<<20 {
				x.RequestBody(epoch, bomb)
			}
			x.RequestEnd(epoch)
			x.ResponseHead(epoch, 200, func(name string) string {
				return map[string]string{"content-encoding": coding, "content-type": kind}[name]
			})
			for p := range slices.Chunk(bomb, 4096) {
				x.ResponseBody(epoch, p)
				if r.Held() > o.Memory {
					t.Fatalf("%s: %d bytes are held", coding, r.Held())
				}
			}
			x.ResponseEnd(epoch)
			if len(s.rows) != 1 || s.rows[0].OutputTokens.OK {
				t.Errorf("%s, %s: %v", coding, kind, s.rows)
			}
		}
	}
}

// A gap makes unknown what depends on it, and nothing else.
func TestGaps(t *testing.T) {
	event := func(text string) []byte {
		return fmt.Appendf(nil, "data: {\"choices\":[{\"index\":0,\"text\":%q,\"finish_reason\":null}]}\n\n", text)
	}
	r, s := newTest(t, Options{})
	x := r.Begin(epoch, Conn{})
	x.RequestHead(epoch, "POST", "/v1/completions", nil)
	x.RequestBody(epoch, []byte(`{"model":"m","prompt":[1,2],"stream":true}`))
	x.RequestEnd(epoch)
	x.ResponseHead(epoch, 200, nil)
	x.ResponseBody(epoch+1e9, event("a"))
	x.ResponseBody(epoch+2e9, event("b")[:30])
	x.Gap(epoch+3e9, true, 1000)
	x.ResponseBody(epoch+4e9, append([]byte(`","finish_reason":null}]}`+"\n\n"), event("d")...))
	x.ResponseBody(epoch+5e9, []byte("data: {\"choices\":[{\"index\":0,\"text\":\"\",\"finish_reason\":\"stop\"}]}\n\n"))
	x.ResponseBody(epoch+6e9, []byte("data: {\"choices\":[],\"usage\":{\"prompt_tokens\":2,\"completion_tokens\":9}}\n\n"))
	x.ResponseEnd(epoch + 7e9)

	y := r.Begin(epoch, Conn{})
	y.RequestHead(epoch, "POST", "/v1/completions", nil)
	y.RequestBody(epoch, []byte(`{"model":"m","prompt":`))
	y.Gap(epoch, false, 10)
	y.RequestBody(epoch, []byte(`}`))
	y.RequestEnd(epoch)
	y.ResponseHead(epoch, 200, nil)
	y.ResponseBody(epoch+1e9, event("a"))
	y.Gap(epoch+2e9, true, 5)
	y.End(epoch+3e9, Truncated)

	a, b := s.rows[0], s.rows[1]
	if a.TTFT.V != time.Second || a.E2E.V != 4*time.Second || a.ChunkTimes != nil || a.OutputTokens.V != 9 || a.Result != traceformat.ResultOK || a.Extra != `{"gap":1}` {
		t.Errorf("row %s", rowText(a))
	}
	if b.PrefixBlocks != nil || b.Model != "" || b.OutputTokens.OK || b.Result != traceformat.ResultTruncated || b.TTFT.V != time.Second {
		t.Errorf("row %s", rowText(b))
	}
}

// No order of calls panics or loses an exchange.
func TestAnyOrderOfCalls(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	r, _ := newTest(t, Options{Memory: 1 << 20})
	for range 3000 {
		x := r.Begin(epoch, Conn{Client: "c", LateJoin: true})
		for range rng.IntN(8) {
			switch rng.IntN(8) {
			case 0:
				x.RequestHead(epoch, "POST", "/v1/chat/completions", nil)
			case 1:
				x.RequestBody(epoch, []byte(`{"messages":[{"role":"user","content":"hi"}]}`))
			case 2:
				x.RequestEnd(epoch)
			case 3:
				x.ResponseHead(epoch, []int{0, 100, 101, 200, 503}[rng.IntN(5)], nil)
			case 4:
				x.ResponseBody(epoch, []byte(`{"choices":[]}`))
			case 5:
				x.Gap(epoch, rng.IntN(2) == 0, 5)
			case 6:
				x.ResponseEnd(epoch)
			case 7:
				x.End(epoch, Ending(1+rng.IntN(5)))
			}
		}
	}
}

func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		`{"model":"m","messages":[{"role":"user","content":[{"type":"text","text":"x"},{"type":"image_url","image_url":{"url":"data:"}}]}],"tools":[{}]}`,
		`{"prompt":[[1,2],[3]],"stream":true}`, `{"input":[{"type":"function_call","name":"f","arguments":"{}"}]}`,
		`{"text":["a","\ud83d"],"sampling_params":[{"n":2}]}`, `{"system":[{"type":"tool_result","content":[{"type":"tool_result"}]}],"messages":[]}`,
	} {
		f.Add("/v1/chat/completions", []byte(s))
		f.Add("", []byte(s))
	}
	f.Fuzz(func(t *testing.T, path string, body []byte) {
		s := new(rowSink)
		r, err := NewRecorder(s, Options{Memory: 1 << 20, MaxBody: 1 << 18})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // twice, for what is remembered
			x := r.Begin(epoch, Conn{Client: "c"})
			x.RequestHead(epoch, "POST", path, nil)
			x.RequestBody(epoch, body)
			x.RequestEnd(epoch)
			x.ResponseHead(epoch, 200, nil)
			x.ResponseEnd(epoch + 1)
		}
		checkRecorder(t, r, s)
		for _, row := range s.rows {
			if !json.Valid([]byte(row.Extra)) && row.Extra != "" {
				t.Fatalf("extra %q is no JSON", row.Extra)
			}
		}
	})
}

func FuzzAnswer(f *testing.F) {
	for _, x := range []string{
		"data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\ndata: [DONE]\n\n",
		`{"usage":{"completion_tokens":3},"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}`,
		`[{"text":"x","meta_info":{"completion_tokens":1}},{"text":"y"}]`,
		"event: x\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":15}}\n\n",
		"data: {\"type\":\"response.completed\",\"response\":{\"status\":\"completed\",\"usage\":{\"output_tokens\":5}}}\n\n",
	} {
		for i := range byte(6) {
			f.Add(i, byte(0), []byte(x), uint16(10))
		}
	}
	paths := []string{"/v1/chat/completions", "/v1/messages", "/v1/responses", "/generate", "/v1/embeddings", "/v1/completions"}
	codings := []string{"", "gzip", "deflate", "br", "zstd", "nonsense"}
	f.Fuzz(func(t *testing.T, path, coding byte, body []byte, cut uint16) {
		s := new(rowSink)
		r, err := NewRecorder(s, Options{Memory: 2 << 20, MaxBody: 1 << 18})
		if err != nil {
			t.Fatal(err)
		}
		x := r.Begin(epoch, Conn{})
		x.RequestHead(epoch, "POST", paths[int(path)%len(paths)], nil)
		x.RequestBody(epoch, []byte(`{"messages":[{"role":"user","content":"x"}],"input":"x","prompt":"x"}`))
		x.RequestEnd(epoch)
		x.ResponseHead(epoch, 200, func(name string) string {
			if name == "content-encoding" {
				return codings[int(coding)%len(codings)]
			}
			return ""
		})
		n := min(int(cut), len(body))
		x.ResponseBody(epoch+1, body[:n])
		x.ResponseBody(epoch+2, body[n:])
		x.ResponseEnd(epoch + 3)
		checkRecorder(t, r, s)
	})
}
