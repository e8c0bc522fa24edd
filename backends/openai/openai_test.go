package openai

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"reprise/backends"
	"reprise/backends/backendtest"
)

// What each recorded answer must decode to. The figures are the recordings' own:
// the tokens asked for, and the usage blocks.
func TestRecordings(t *testing.T) {
	backendtest.Recordings(t, []backendtest.Case{
		{File: "llamacpp_sse.txt", Tokens: "[1 1 1 1 1 1 1 1 0 0]", Exact: false, Result: "prompt 3 output 8 cached 2 length"},
		{File: "llamacpp_completion.txt", Tokens: "[4]", Exact: true, Result: "prompt 3 output 4 cached 2 length"},
		// llama.cpp's usage counts one of the choices, unless streamed.
		{File: "llamacpp_completion_n2.txt", N: 2, Tokens: "[4]", Exact: true, Result: "prompt 3 output 4 cached 2 length"},
		{File: "llamacpp_max_tokens_0.txt", Tokens: "[1]", Exact: true, Result: "prompt 3 output 1 cached 2 length"},
		{File: "llamacpp_stream_timings.txt", Tokens: "[1 1 1 1 1 1 0 0]", Exact: true, Result: "prompt 3 output 6 cached 2 length"},
		{File: "llamacpp_stream_n2.txt", N: 2, Tokens: "[1 1 1 1 1 1 1 0 1 0 0]", Exact: false, Result: "prompt 3 output 8 cached 2 length"},
		{File: "llamacpp_stream_n2_timings.txt", N: 2, Tokens: "[1 1 1 1 1 1 1 0 1 0 0]", Exact: true, Result: "prompt 3 output 8 cached 2 length"},
		{File: "llamacpp_chat.txt", Tokens: "[0 1 1 1 1 0 0 0]", Exact: false, Result: "prompt 12 output 4 cached 11 length"},
		{File: "llamacpp_chat_timings.txt", Tokens: "[0 1 1 1 1 0 0 0]", Exact: true, Result: "prompt 12 output 4 cached 11 length"},
		// 100 were asked for: llama.cpp cuts at the context's end without a word.
		{File: "llamacpp_over_context.txt", Tokens: "[2]", Exact: true, Result: "prompt 8190 output 2 cached 0 length"},
		{File: "llamacpp_err_404.txt", Tokens: "[0]", Exact: true, Result: "error http_404/not_found: File Not Found"},
		{File: "llamacpp_err_bad_json.txt", Tokens: "[0]", Exact: true, Result: "error http_400/bad_json: [json.exception.parse_error.101] parse error at line 1, column 2: syntax error while parsing object key - invalid literal; last read: '{b'; expected string literal"},
		{File: "llamacpp_err_empty.txt", Tokens: "[0]", Exact: true, Result: `error http_400/empty_prompt: "prompt" must not be empty`},
		{File: "llamacpp_err_out_of_vocab.txt", Tokens: "[0]", Exact: true, Result: "error http_400/out_of_vocab: Prompt contains invalid tokens"},
		{File: "llamacpp_err_overlong.txt", Tokens: "[0]", Exact: true, Result: "error http_400/context_overflow: request (9000 tokens) exceeds the available context size (8192 tokens), try increasing it"},
		{File: "llamacpp_err_overlong_stream.txt", Tokens: "[0]", Exact: true, Result: "error http_400/context_overflow: request (9000 tokens) exceeds the available context size (8192 tokens), try increasing it"},
	}, "llamacpp_models.txt", "llamacpp_props.txt", "llamacpp_tokenize.txt")
}

func TestEncode(t *testing.T) {
	opts := func(kv ...string) map[string]string {
		m := map[string]string{}
		for i := 0; i < len(kv); i += 2 {
			m[kv[i]] = kv[i+1]
		}
		return m
	}
	tests := []struct {
		name   string
		engine string
		conf   backends.Config
		call   backends.Call
		ids    bool
		want   string
	}{
		{"llama.cpp", llamaCpp, backends.Config{}, backends.Call{PromptIDs: []uint32{5, 6}, MaxTokens: 8, Stream: true, CacheSalt: "s"}, true,
			`/v1/completions {"model":"m","prompt":[5,6],"max_tokens":8,"ignore_eos":true,"temperature":0,"stream":true,"stream_options":{"include_usage":true},"timings_per_token":true}`},
		{"vllm behind a gateway", vllm, backends.Config{}, backends.Call{PromptIDs: []uint32{5}, MaxTokens: 8, Stream: true, CacheSalt: "s"}, true,
			`/v1/completions {"model":"m","prompt":[5],"max_tokens":8,"ignore_eos":true,"temperature":0,"cache_salt":"s","stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}`},
		{"an unknown server", "", backends.Config{}, backends.Call{Text: "hi", MaxTokens: 8, N: 2}, false,
			`/v1/completions {"model":"m","prompt":"hi","max_tokens":8,"ignore_eos":true,"n":2,"temperature":1}`},
		{"overruled", "", backends.Config{Options: opts("prompt", "ids", "ignore_eos", "false", "max_tokens_field", "max_completion_tokens")}, backends.Call{PromptIDs: []uint32{7}, MaxTokens: 8}, true,
			`/v1/completions {"model":"m","prompt":[7],"max_completion_tokens":8,"temperature":0}`},
		{"OpenAI itself gets no field that it refuses", hosted, backends.Config{Chat: true}, backends.Call{Text: "hi", MaxTokens: 8, Stream: true, CacheSalt: "s"}, false,
			`/v1/chat/completions {"model":"m","messages":[{"role":"user","content":"hi"}],"max_completion_tokens":8,"temperature":0,"stream":true,"stream_options":{"include_usage":true}}`},
		{"chat has no ids", llamaCpp, backends.Config{Chat: true}, backends.Call{Text: "hi", MaxTokens: 8}, false,
			`/v1/chat/completions {"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":8,"ignore_eos":true,"temperature":0}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.conf.URL, tt.conf.Model = "http://127.0.0.1:8080", "m"
			b, err := New(tt.conf)
			if err != nil {
				t.Fatal(err)
			}
			b.shape(tt.engine)
			path, body := b.Encode(nil, &tt.call)
			if got := path + " " + string(body); got != tt.want || b.TokenIDs() != tt.ids {
				t.Errorf("Encode = %s, ids %t\nwant     %s, %t", got, b.TokenIDs(), tt.want, tt.ids)
			}
			if !json.Valid(body) {
				t.Error("not JSON")
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	const u = "http://127.0.0.1:8080"
	tests := []struct {
		conf backends.Config
		want string
	}{
		{backends.Config{URL: "127.0.0.1:8080"}, `openai: server address: first path segment in URL cannot contain colon`},
		{backends.Config{URL: "localhost:8080"}, `openai: server address "localhost:8080": want http://host:port or https://host`},
		{backends.Config{URL: "http://me:hush@host"}, "openai: server address: it holds credentials, which would end up in manifests: give an API key instead"},
		{backends.Config{URL: u + "/?x=1"}, `openai: server address "http://127.0.0.1:8080/?x=1": it has a query or a fragment`},
		{backends.Config{URL: u, Options: map[string]string{"prompt": "id"}}, "openai: option prompt=id: want ids or text"},
		{backends.Config{URL: u, Options: map[string]string{"eos": "no"}}, `openai: no option "eos"; there are ignore_eos, max_tokens_field, prompt`},
		{backends.Config{URL: u, Chat: true, Options: map[string]string{"prompt": "ids"}}, "openai: chat takes text: prompt=ids does not go with it"},
	}
	for _, tt := range tests {
		if _, err := New(tt.conf); err == nil || err.Error() != tt.want {
			t.Errorf("New(%+v): %v, want %s", tt.conf, err, tt.want)
		}
	}
}

func TestProbe(t *testing.T) {
	tests := []struct {
		name   string
		pages  backendtest.Pages
		model  string
		engine string
		maxLen int
		ids    bool
		err    string
		warn   []string // a piece of each
	}{
		{"llama.cpp", backendtest.Pages{"/v1/models": "llamacpp_models.txt", "/props": "llamacpp_props.txt", "/tokenize": "llamacpp_tokenize.txt"}, "", "llama.cpp", 8192, true, "", nil},
		{"llama.cpp without /props", backendtest.Pages{"/v1/models": "llamacpp_models.txt", "/tokenize": "llamacpp_tokenize.txt"}, "tiny", "llama.cpp", 8192, true, "", nil},
		{"vllm", backendtest.Pages{"/v1/models": "../../vllm/testdata/models.txt", "/tokenize": "../../vllm/testdata/tokenize.txt"}, "", "vllm", 8192, true, "", nil},
		{"nothing but completions", backendtest.Pages{}, "m", "openai-compatible", 0, false, "", []string{"no /v1/models", "no running token count", "prompts are text", "context length"}},
		{"nothing, and no model", backendtest.Pages{}, "", "", 0, false, "openai: /v1/models: status 404: Not Found: name the model", nil},
		{"another model", backendtest.Pages{"/v1/models": "llamacpp_models.txt"}, "nope", "", 0, false, `openai: /v1/models: no model "nope"; there are ["tiny"]`, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conf := backendtest.Serve(t, tt.pages)
			conf.Model = tt.model
			b, err := New(conf)
			if err != nil {
				t.Fatal(err)
			}
			i, err := b.Probe(t.Context())
			if tt.err != "" {
				if err == nil || err.Error() != tt.err {
					t.Errorf("Probe: %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if i.Engine != tt.engine || i.MaxLen != tt.maxLen || b.TokenIDs() != tt.ids || tt.ids && i.VocabSize == 0 || len(i.Warnings) != len(tt.warn) {
				t.Errorf("Probe = %+v, ids %t", i, b.TokenIDs())
			}
			for k, w := range tt.warn {
				if k < len(i.Warnings) && !strings.Contains(i.Warnings[k], w) {
					t.Errorf("warning %q, want %q in it", i.Warnings[k], w)
				}
			}
		})
	}
}

// Against engines: everything that a replay relies on.
func TestEngine(t *testing.T) {
	for _, e := range []struct{ env, engine string }{
		{"REPRISE_LLAMACPP_URL", llamaCpp}, {"REPRISE_VLLM_URL", vllm}, {"REPRISE_SGLANG_URL", sglang},
	} {
		t.Run(e.engine, func(t *testing.T) {
			url := backendtest.URL(t, e.env)
			for _, conf := range []backends.Config{{URL: url}, {URL: url, Chat: true}} {
				b, err := New(conf)
				if err != nil {
					t.Fatal(err)
				}
				i, err := b.Probe(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if i.Engine != e.engine {
					t.Fatalf("the engine is %s", i.Engine)
				}
				t.Logf("%+v", i)
				backendtest.Engine(t, conf, b, i, backendtest.Dialect{Exact: true, OverlongStatus: http.StatusBadRequest})
			}
		})
	}
}
