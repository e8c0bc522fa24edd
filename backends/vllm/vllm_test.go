package vllm

import (
	"encoding/json"
	"fmt"
	"testing"

	"reprise/backends"
	"reprise/internal/llmapi/fixture"
	"reprise/traceformat"
)

// What every recording of a generating endpoint must decode to: the tokens of
// its events, and the result.
func TestDecodeRecordings(t *testing.T) {
	some := traceformat.Some[int32]
	var none traceformat.Opt[int32]
	tests := []struct {
		name         string
		n            int
		tokens       []int // of each event, or of the body
		exact        bool  // of all of them
		prompt, out  traceformat.Opt[int32]
		cached       traceformat.Opt[int32]
		finish, fail string
	}{
		{name: "sse_continuous_usage_token_ids.txt", tokens: ones(16, 2), exact: true, prompt: some(4), out: some(16), cached: some(0), finish: "length"},
		{name: "sse_include_usage.txt", tokens: ones(16, 2), prompt: some(4), out: some(16), cached: some(0), finish: "length"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			x := fixture.Read(t, "testdata/"+tt.name)
			d := backends.NewDecoder(&backends.Call{N: tt.n})
			tokens, exact := decode(t, d, x)
			if fmt.Sprint(tokens) != fmt.Sprint(tt.tokens) || exact != tt.exact {
				t.Errorf("tokens %v, exact %t; want %v, %t", tokens, exact, tt.tokens, tt.exact)
			}
			r := d.Result()
			if r.PromptTokens != tt.prompt || r.OutputTokens != tt.out || r.CachedTokens != tt.cached || r.FinishReason != tt.finish || r.Error != tt.fail {
				t.Errorf("result %+v; want prompt %v, output %v, cached %v, finish %q, error %q", r, tt.prompt, tt.out, tt.cached, tt.finish, tt.fail)
			}
			_ = none
		})
	}
}

func ones(n, zeros int) []int {
	s := make([]int, n+zeros)
	for i := range n {
		s[i] = 1
	}
	return s
}

func decode(t *testing.T, d backends.Decoder, x fixture.Exchange) (tokens []int, exact bool) {
	exact = true
	if x.Events == nil {
		e, err := d.Body(x.Status, x.Body)
		if err != nil {
			t.Errorf("Body: %v", err)
		}
		return []int{e.Tokens}, e.Exact
	}
	for _, data := range x.Events {
		e, err := d.Event(data)
		if err != nil {
			t.Errorf("Event(%s): %v", data, err)
		}
		tokens = append(tokens, e.Tokens)
		exact = exact && e.Exact
	}
	return tokens, exact
}

func TestEncode(t *testing.T) {
	tests := []struct {
		name string
		conf backends.Config
		call backends.Call
		path string
		want string
	}{
		{"token ids, streamed", backends.Config{Model: "m"}, backends.Call{PromptIDs: []uint32{5, 6, 16383}, MaxTokens: 8, Stream: true},
			"/v1/completions", `{"model":"m","prompt":[5,6,16383],"max_tokens":8,"min_tokens":8,"ignore_eos":true,"temperature":0,"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}`},
		{"no stream options without a stream, which vLLM refuses", backends.Config{}, backends.Call{PromptIDs: []uint32{5}, MaxTokens: 1, CacheSalt: `a"b`},
			"/v1/completions", `{"prompt":[5],"max_tokens":1,"min_tokens":1,"ignore_eos":true,"temperature":0,"cache_salt":"a\"b"}`},
		{"several choices are sampled, as vLLM refuses greedy ones", backends.Config{}, backends.Call{PromptIDs: []uint32{5}, MaxTokens: 2, N: 3, Temperature: traceformat.Some(0.0)},
			"/v1/completions", `{"prompt":[5],"max_tokens":2,"min_tokens":2,"ignore_eos":true,"n":3,"temperature":1}`},
		{"chat takes text", backends.Config{Model: "m", Chat: true}, backends.Call{Text: "a \"b\"\n\xff", MaxTokens: 4, Temperature: traceformat.Some(0.7)},
			"/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"a \"b\"\u000a` + "\ufffd" + `"}],"max_tokens":4,"min_tokens":4,"ignore_eos":true,"temperature":0.7}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.conf.URL = "http://127.0.0.1:8000"
			b, err := New(tt.conf)
			if err != nil {
				t.Fatal(err)
			}
			path, body := b.Encode([]byte("kept "), &tt.call)
			if path != tt.path || string(body) != "kept "+tt.want {
				t.Errorf("Encode = %s %s\nwant %s %s", path, body, tt.path, "kept "+tt.want)
			}
			if !json.Valid(body[5:]) {
				t.Error("not JSON")
			}
		})
	}
}
