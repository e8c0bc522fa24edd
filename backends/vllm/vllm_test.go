package vllm

import (
	"encoding/json"
	"maps"
	"net/http"
	"strings"
	"testing"

	"reprise/backends"
	"reprise/backends/backendtest"
	"reprise/traceformat"
)

// What each recorded answer must decode to. The figures are the recordings' own:
// the tokens asked for, and the usage blocks.
func TestRecordings(t *testing.T) {
	backendtest.Recordings(t, []backendtest.Case{
		{File: "completion_batch_tokenids.txt", Tokens: "[16]", Exact: true, Result: "prompt 5 output 16 cached 0 length"},
		{File: "completion_per_request_metrics.txt", Tokens: "[5]", Exact: true, Result: "prompt 3 output 5 cached 0 length"},
		{File: "completion_return_token_ids.txt", Tokens: "[8]", Exact: true, Result: "prompt 4 output 8 cached 0 length"},
		{File: "completion_sampled.txt", Tokens: "[12]", Exact: true, Result: "prompt 4 output 12 cached 0 length"},
		{File: "completion_tokenids.txt", Tokens: "[8]", Exact: true, Result: "prompt 4 output 8 cached 0 length"},
		{File: "engine_crash_nonstream_in_flight.txt", Tokens: "[0]", Exact: true, Result: "error http_500/engine_dead: EngineCore encountered an issue. See stack trace (above) for the root cause."},
		{File: "engine_crash_stream_in_flight.txt", Tokens: "[1 1 1 1 1 1 1 1 1 1 0 0]", Exact: false, Result: "error error_event/engine_dead: EngineCore encountered an issue. See stack trace (above) for the root cause."},
		{File: "engine_crash_trigger.txt", Tokens: "[0 0 0 0]", Exact: true, Result: "error error_event/engine_dead: EngineCore encountered an issue. See stack trace (above) for the root cause."},
		{File: "err_404.txt", Tokens: "[0]", Exact: true, Result: "error http_404/not_found: Not Found"},
		{File: "err_bad_json.txt", Tokens: "[0]", Exact: true, Result: "error http_400/bad_json: 1 validation error: {'type': 'json_invalid', 'loc': 'body.1', 'msg': 'JSON decode error', 'input': '<dict of 0 items>', 'ctx': {'error': 'Expecting property name enclosed in double quotes'}}"},
		{File: "err_empty_prompt.txt", Tokens: "[0]", Exact: true, Result: "error http_400/empty_prompt: You must pass at least one prompt"},
		{File: "err_empty_string.txt", Tokens: "[0]", Exact: true, Result: "error http_400/empty_prompt: Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)"},
		{File: "err_exactly_max_len.txt", Tokens: "[0]", Exact: true, Result: "error http_400/max_tokens: max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)"},
		{File: "err_max_tokens_0.txt", Tokens: "[0]", Exact: true, Result: "error http_400/max_tokens: max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)"},
		{File: "err_method.txt", Tokens: "[0]", Exact: true, Result: "error http_405/method_not_allowed: Method Not Allowed"},
		{File: "err_min_gt_max.txt", Tokens: "[0]", Exact: true, Result: "error http_400/max_tokens: min_tokens must be less than or equal to max_tokens=4, got 5."},
		{File: "err_overlong.txt", Tokens: "[0]", Exact: true, Result: "error http_400/context_overflow: This model's maximum context length is 8192 tokens. However, your prompt contains 9000 input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value=9000)"},
		{File: "err_prompt_plus_max_tokens.txt", Tokens: "[2]", Exact: true, Result: "prompt 8190 output 2 cached 0 length"},
		{File: "err_token_out_of_vocab.txt", Tokens: "[0]", Exact: true, Result: "error http_400/out_of_vocab: Token id 10000000 is out of vocabulary"},
		{File: "err_unknown_model.txt", Tokens: "[0]", Exact: true, Result: "error http_404/model_not_found: The model `nope` does not exist. Valid aliases: tiny."},
		{File: "prefix_cache_1.txt", Tokens: "[8]", Exact: true, Result: "prompt 2000 output 8 cached 1920 length"},
		{File: "sse_chat.txt", Tokens: "[0 1 1 1 1 1 1 1 1 0 0]", Exact: false, Result: "prompt 12 output 8 cached 0 length"},
		{File: "sse_chat_token_ids.txt", Tokens: "[0 1 1 1 1 1 1 1 1 0 0]", Exact: true, Result: "prompt 12 output 8 cached 0 length"},
		{File: "sse_continuous_usage_token_ids.txt", Tokens: "[1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 0 0]", Exact: true, Result: "prompt 4 output 16 cached 0 length"},
		{File: "sse_include_usage.txt", Tokens: "[1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 0 0]", Exact: false, Result: "prompt 4 output 16 cached 0 length"},
		{File: "sse_inference_v1_generate.txt", Tokens: "[1 1 1 1 1 1 0 0]", Exact: true, Result: "prompt 3 output 6 cached 0 length"},
		{File: "sse_one_token.txt", Tokens: "[1 0 0]", Exact: false, Result: "prompt 4 output 1 cached 0 length"},
		{File: "sse_per_request_metrics.txt", Tokens: "[1 1 1 0 0]", Exact: true, Result: "prompt 3 output 3 cached 0 length"},
		{File: "sse_plain.txt", Tokens: "[1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 0]", Exact: false, Result: "length"},
		{File: "unknown_field.txt", Tokens: "[8]", Exact: true, Result: "prompt 4 output 8 cached 0 length"},
	}, "metrics_cache_config.txt", "models.txt", "server_info.txt", "tokenize.txt", "tokenize_chat.txt", "version.txt")
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

func TestProbe(t *testing.T) {
	all := backendtest.Pages{
		"/v1/models": "models.txt", "/version": "version.txt", "/metrics": "metrics_cache_config.txt",
		"/server_info": "server_info.txt", "/tokenize": "tokenize.txt",
	}
	conf := backendtest.Serve(t, all)
	b, err := New(conf)
	if err != nil {
		t.Fatal(err)
	}
	i, err := b.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if i.Engine != "vllm" || i.Version != "0.32.0" || i.Model != "tiny" || i.MaxLen != 8192 || i.MinID != 10 || i.VocabSize != 2745 || len(i.Warnings) != 0 {
		t.Errorf("Probe = %+v", i)
	}
	if want := (backends.CacheInfo{Block: 128, Tokens: 32767 * 128, Salt: true}); i.Cache != want {
		t.Errorf("Cache = %+v, want %+v", i.Cache, want)
	}
	for k, want := range map[string]string{"block_size": "128", "num_gpu_blocks": "32768", "enable_prefix_caching": "True", "user_specified_block_size": "False", "vocab_source": "tokenize"} {
		if i.Config[k] != want {
			t.Errorf("Config[%s] = %q, want %q", k, i.Config[k], want)
		}
	}
	if !strings.Contains(i.Config["vllm_config"], "max_seq_len=8192") {
		t.Errorf("vllm_config is %q", i.Config["vllm_config"])
	}
	for k := range i.Config {
		if strings.Contains(k, "env") {
			t.Errorf("Config has %s: an environment may hold keys", k)
		}
	}
	if _, body := b.Encode(nil, &backends.Call{}); !strings.Contains(string(body), `"model":"tiny"`) {
		t.Errorf("the model that Probe found is not asked for: %s", body)
	}
}

func TestProbeFailures(t *testing.T) {
	tests := []struct {
		name  string
		pages backendtest.Pages
		conf  backends.Config
		err   string
		warn  []string // a piece of each
	}{
		{"no server", nil, backends.Config{URL: "http://127.0.0.1:1"}, "connection refused", nil},
		{"no models", backendtest.Pages{"/version": "version.txt"}, backends.Config{}, "vllm: /v1/models: status 404: Not Found", nil},
		{"another model", backendtest.Pages{"/v1/models": "models.txt"}, backends.Config{Model: "nope"}, `vllm: /v1/models: no model "nope"; there are ["tiny"]`, nil},
		{"not JSON", backendtest.Pages{"/v1/models": "metrics_cache_config.txt"}, backends.Config{}, "vllm: /v1/models: not the JSON that was expected", nil},
		{"a gateway that knows models alone", backendtest.Pages{"/v1/models": "models.txt"}, backends.Config{}, "",
			[]string{"no /version", "/metrics: status 404", "vocabulary is unknown"}},
		{"chat needs no vocabulary", backendtest.Pages{"/v1/models": "models.txt", "/version": "version.txt", "/metrics": "metrics_cache_config.txt"}, backends.Config{Chat: true}, "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.conf.URL == "" {
				tt.conf.URL = backendtest.Serve(t, tt.pages).URL
			}
			b, err := New(tt.conf)
			if err != nil {
				t.Fatal(err)
			}
			i, err := b.Probe(t.Context())
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("Probe: %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(i.Warnings) != len(tt.warn) {
				t.Fatalf("warnings %q, want %q", i.Warnings, tt.warn)
			}
			for k, w := range tt.warn {
				if !strings.Contains(i.Warnings[k], w) {
					t.Errorf("warning %q, want %q in it", i.Warnings[k], w)
				}
			}
		})
	}
}

func TestBefore(t *testing.T) {
	for version, want := range map[string]bool{"0.5.4": true, "0.4.0.post1": true, "0.6.3.post1": false, "0.32.0": false, "1.0.0": false, "dev": false, "": false} {
		if got := before(version, 6); got != want {
			t.Errorf("before(%q, 6) = %t", version, got)
		}
	}
}

func TestLabels(t *testing.T) {
	const prefix = "x:info{"
	tests := []struct {
		name, in string
		want     map[string]string
	}{
		{"plain", "# TYPE x:info gauge\nx:info{a=\"1\",b=\"\"} 1.0\n", map[string]string{"a": "1", "b": ""}},
		{"escapes", "\nx:info{a=\"q\\\"\\\\n\\n,b=\\\"\",b=\"2\"} 1\n", map[string]string{"a": "q\"\\n\n,b=\"", "b": "2"}},
		{"cut short", "\nx:info{a=\"1\",b=\"2", map[string]string{"a": "1"}},
		{"no labels", "\nx:info{} 1\ny{a=\"1\"} 2\n", map[string]string{}},
		{"absent", "\ny{a=\"1\"} 2\n", map[string]string{}},
	}
	for _, tt := range tests {
		got := map[string]string{}
		labels(got, tt.in, prefix)
		if !maps.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

// Against an engine: everything that a replay relies on.
func TestEngine(t *testing.T) {
	url := backendtest.URL(t, "REPRISE_VLLM_URL")
	for _, conf := range []backends.Config{{URL: url}, {URL: url, Chat: true}} {
		b, err := New(conf)
		if err != nil {
			t.Fatal(err)
		}
		i, err := b.Probe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%+v", i)
		backendtest.Engine(t, conf, b, i, backendtest.Dialect{Exact: true, OverlongStatus: http.StatusBadRequest})
	}
}

// A batch has one length, the longest, as vLLM has one for all prompts.
func TestEncodeBatch(t *testing.T) {
	b, err := New(backends.Config{URL: "http://127.0.0.1:8000", Model: "m"})
	if err != nil {
		t.Fatal(err)
	}
	path, body := b.EncodeBatch(nil, []*backends.Call{{PromptIDs: []uint32{5, 6}, MaxTokens: 8}, {PromptIDs: []uint32{7}, MaxTokens: 9, CacheSalt: "s"}})
	want := `{"model":"m","prompt":[[5,6],[7]],"max_tokens":9,"min_tokens":9,"ignore_eos":true,"temperature":0,"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}`
	if path != "/v1/completions" || string(body) != want {
		t.Errorf("EncodeBatch = %s %s\nwant %s", path, body, want)
	}
	if ok, lengths := b.Batches(); !ok || lengths {
		t.Errorf("Batches = %t, %t", ok, lengths)
	}
}
