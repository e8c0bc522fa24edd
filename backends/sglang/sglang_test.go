package sglang

import (
	"encoding/json"
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
		{File: "aborted_stream_tail.txt", Tokens: "[152 0]", Exact: true, Result: "prompt 3 output 152 cached 2 reasoning 0 abort error abort: Aborted"},
		{File: "chat_stream.txt", Tokens: "[0 1 1 1 1 1 1 1 1 0 0 0]", Exact: false, Result: "prompt 12 output 8 cached 0 reasoning 0 length"},
		{File: "err_bad_json.txt", Tokens: "[0]", Exact: true, Result: "error http_400/bad_json: 1 validation error: {'type': 'json_invalid', 'loc': ('body', 1), 'msg': 'JSON decode error', 'input': {}, 'ctx': {'error': 'unexpected character, expected a string key'}} File \"SITE/sglang/srt/entrypoints/http_server.py\", line 928, in generate_request POST /generate [{'type': 'json_invalid', 'loc…"},
		{File: "err_bogus_sp.txt", Tokens: "[0]", Exact: true, Result: "error http_400/unknown_field: unknown field `bogus`, expected one of `max_new_tokens`, `stop`, `stop_token_ids`, `stop_regex`, `temperature`, `top_p`, `top_k`, `min_p`, `frequency_penalty`, `presence_penalty`, `repetition_penalty`, `min_new_tokens`, `n`, `json_schema`, `regex`, `ebnf`, `structural_tag`, `ignore_eos`, `skip_sp…"},
		{File: "err_empty.txt", Tokens: "[0]", Exact: true, Result: "error http_400/empty_prompt: input_ids cannot be empty."},
		{File: "err_min_gt_max.txt", Tokens: "[0]", Exact: true, Result: "error http_400/max_tokens: min_new_tokens must be in [0, max_new_tokens(2)], got 5."},
		{File: "err_no_input.txt", Tokens: "[0]", Exact: true, Result: "error http_400/empty_prompt: Either text, input_ids or input_embeds should be provided."},
		{File: "err_overlong.txt", Tokens: "[0]", Exact: true, Result: "error http_400/context_overflow: The input (9000 tokens) is longer than the model's context length (8192 tokens)."},
		{File: "err_overlong_stream.txt", Tokens: "[0 0]", Exact: true, Result: "error error_event/context_overflow: The input (9000 tokens) is longer than the model's context length (8192 tokens)."},
		{File: "err_overlong_v1.txt", Tokens: "[0]", Exact: true, Result: "error http_400/context_overflow: The input (9000 tokens) is longer than the model's context length (8192 tokens)."},
		{File: "err_prompt_plus_max.txt", Tokens: "[0]", Exact: true, Result: "error http_400/context_overflow: Requested token count exceeds the model's maximum context length of 8192 tokens. You requested a total of 8290 tokens: 8190 tokens from the input messages and 100 tokens for the completion. Please reduce the number of tokens in the input messages or the completion to fit within the limit."},
		{File: "err_prompt_plus_max_v1.txt", Tokens: "[0]", Exact: true, Result: "error http_400/context_overflow: Requested token count exceeds the model's maximum context length of 8192 tokens. You requested a total of 8290 tokens: 8190 tokens from the input messages and 100 tokens for the completion. Please reduce the number of tokens in the input messages or the completion to fit within the limit."},
		{File: "generate.txt", Tokens: "[8]", Exact: true, Result: "prompt 4 output 8 cached 0 reasoning 0 length"},
		{File: "generate_batch.txt", N: 2, Tokens: "[16]", Exact: true, Result: "prompt 2 output 16 cached 0 reasoning 0 length"},
		{File: "generate_rid.txt", Tokens: "[8]", Exact: true, Result: "prompt 4 output 8 cached 3 reasoning 0 length"},
		{File: "generate_stream.txt", Tokens: "[1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 1 0]", Exact: true, Result: "prompt 4 output 16 cached 3 reasoning 0 length"},
		{File: "generate_stream_incremental.txt", Tokens: "[1 1 1 1 0]", Exact: true, Result: "prompt 3 output 4 cached 0 reasoning 0 length"},
		{File: "generate_stream_interval3.txt", Tokens: "[1 3 2 0]", Exact: true, Result: "prompt 4 output 6 cached 3 reasoning 0 length"},
		{File: "generate_text_logprob.txt", Tokens: "[8]", Exact: true, Result: "prompt 2 output 8 cached 0 reasoning 0 length"},
		{File: "max_new_tokens_0.txt", Tokens: "[0]", Exact: true, Result: "prompt 4 output 0 cached 3 reasoning 0 length"},
		{File: "prefix_1.txt", Tokens: "[8]", Exact: true, Result: "prompt 2000 output 8 cached 1999 reasoning 0 length"},
		{File: "prefix_v1.txt", Tokens: "[4]", Exact: true, Result: "prompt 2000 output 4 cached 1999 reasoning 0 length"},
		{File: "unknown_field.txt", Tokens: "[8]", Exact: true, Result: "prompt 4 output 8 cached 0 reasoning 0 length"},
		{File: "unknown_model.txt", Tokens: "[1]", Exact: true, Result: "prompt 1 output 1 cached 0 reasoning 0 length"},
		{File: "v1_completions.txt", Tokens: "[8]", Exact: true, Result: "prompt 3 output 8 cached 2 reasoning 0 length"},
		{File: "v1_completions_stream_continuous.txt", Tokens: "[1 1 1 1 1 1 1 1 0 0]", Exact: true, Result: "prompt 3 output 8 cached 2 reasoning 0 length"},
		{File: "v1_completions_stream_usage.txt", Tokens: "[1 1 1 1 1 1 1 1 0 0]", Exact: false, Result: "prompt 3 output 8 cached 2 reasoning 0 length"},
	}, "model_info.txt", "models.txt", "server_info.txt", "tokenize.txt", "v1_tokenize.txt", "version.txt")
}

func TestEncode(t *testing.T) {
	tests := []struct {
		name string
		conf backends.Config
		call backends.Call
		path string
		want string
	}{
		{"generate", backends.Config{Options: map[string]string{"rid": "true"}}, backends.Call{ID: "r-1", PromptIDs: []uint32{5, 16383}, MaxTokens: 8, Stream: true, CacheSalt: "s"},
			"/generate", `{"input_ids":[5,16383],"sampling_params":{"max_new_tokens":8,"min_new_tokens":8,"ignore_eos":true,"temperature":0},"stream":true,"rid":"r-1","extra_key":"s"}`},
		{"no rid unless asked for, as one that comes again too soon is aborted", backends.Config{}, backends.Call{ID: "r-1", PromptIDs: []uint32{5}, MaxTokens: 8},
			"/generate", `{"input_ids":[5],"sampling_params":{"max_new_tokens":8,"min_new_tokens":8,"ignore_eos":true,"temperature":0}}`},
		{"several choices have several ids, so none is sent", backends.Config{Options: map[string]string{"rid": "true"}}, backends.Call{ID: "r-1", PromptIDs: []uint32{5}, MaxTokens: 8, N: 2},
			"/generate", `{"input_ids":[5],"sampling_params":{"max_new_tokens":8,"min_new_tokens":8,"ignore_eos":true,"temperature":1,"n":2}}`},
		{"v1", backends.Config{Model: "m", Options: map[string]string{"api": "v1", "rid": "true"}}, backends.Call{ID: "r-1", PromptIDs: []uint32{5}, MaxTokens: 8, Stream: true},
			"/v1/completions", `{"model":"m","prompt":[5],"max_tokens":8,"min_tokens":8,"ignore_eos":true,"temperature":0,"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true},"rid":"r-1"}`},
		{"chat", backends.Config{Model: "m", Chat: true}, backends.Call{Text: "hi", MaxTokens: 8, Temperature: traceformat.Some(0.25)},
			"/v1/chat/completions", `{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":8,"min_tokens":8,"ignore_eos":true,"temperature":0.25}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.conf.URL = "http://127.0.0.1:30000"
			b, err := New(tt.conf)
			if err != nil {
				t.Fatal(err)
			}
			path, body := b.Encode(nil, &tt.call)
			if path != tt.path || string(body) != tt.want {
				t.Errorf("Encode = %s %s\nwant %s %s", path, body, tt.path, tt.want)
			}
			if !json.Valid(body) {
				t.Error("not JSON")
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	const u = "http://127.0.0.1:30000"
	tests := []struct {
		conf backends.Config
		want string
	}{
		{backends.Config{}, "sglang: no server named: give its address, such as http://127.0.0.1:8000"},
		{backends.Config{URL: u, Options: map[string]string{"api": "v2"}}, "sglang: option api=v2: want generate or v1"},
		{backends.Config{URL: u, Options: map[string]string{"apo": "v1"}}, `sglang: no option "apo"; there are api, rid`},
		{backends.Config{URL: u, Options: map[string]string{"rid": "yes"}}, "sglang: option rid=yes: want true or false"},
		{backends.Config{URL: u, Chat: true, Options: map[string]string{"api": "generate"}}, "sglang: api=generate has no chat; use api=v1"},
	}
	for _, tt := range tests {
		if _, err := New(tt.conf); err == nil || err.Error() != tt.want {
			t.Errorf("New(%+v): %v, want %s", tt.conf, err, tt.want)
		}
	}
}

func TestProbe(t *testing.T) {
	conf := backendtest.Serve(t, backendtest.Pages{
		"/server_info": "server_info.txt", "/v1/models": "models.txt", "/tokenize": "tokenize.txt",
	})
	b, err := New(conf)
	if err != nil {
		t.Fatal(err)
	}
	i, err := b.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if i.Engine != "sglang" || i.Version != "0.5.23" || i.Model != "tiny" || i.MaxLen != 8190 || i.MaxPrompt != 8185 || i.MinID != 10 || i.VocabSize != 2745 {
		t.Errorf("Probe = %+v", i)
	}
	if want := (backends.CacheInfo{Block: 1, Tokens: 65536, Salt: true}); i.Cache != want {
		t.Errorf("Cache = %+v, want %+v", i.Cache, want)
	}
	for k, want := range map[string]string{"page_size": "1", "chunked_prefill_size": "4096", "schedule_policy": "fcfs", "disable_radix_cache": "false", "max_total_num_tokens": "65536", "vocab_source": "tokenize"} {
		if i.Config[k] != want {
			t.Errorf("Config[%s] = %q, want %q", k, i.Config[k], want)
		}
	}
	for k := range i.Config {
		if k == "launch_command" || strings.Contains(k, "api_key") || strings.Contains(k, "password") {
			t.Errorf("Config has %s, which may hold a secret", k)
		}
	}
	if len(i.Warnings) != 1 || !strings.Contains(i.Warnings[0], "--incremental-streaming-output") {
		t.Errorf("warnings %q, want one of cumulative replies", i.Warnings)
	}
	if _, body := b.Encode(nil, &backends.Call{}); strings.Contains(string(body), "model") {
		t.Errorf("/generate names a model: %s", body)
	}
}

func TestProbeFailures(t *testing.T) {
	tests := []struct {
		name  string
		pages backendtest.Pages
		model string
		want  string // error, or
		warn  string
	}{
		{"not SGLang", backendtest.Pages{"/v1/models": "models.txt"}, "", "sglang: /server_info: status 404: Not Found", ""},
		{"before 0.5 the page had another name", backendtest.Pages{"/get_server_info": "server_info.txt", "/v1/models": "models.txt", "/tokenize": "tokenize.txt"}, "", "", "incremental"},
		{"another model", backendtest.Pages{"/server_info": "server_info.txt", "/v1/models": "models.txt"}, "nope", `sglang: /v1/models: no model "nope"; there are ["tiny"]`, ""},
		{"no tokenizer", backendtest.Pages{"/server_info": "server_info.txt", "/v1/models": "models.txt"}, "", "", "the size of the vocabulary is unknown (/tokenize: status 404: Not Found)"},
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
			if tt.want != "" {
				if err == nil || err.Error() != tt.want {
					t.Errorf("Probe: %v, want %s", err, tt.want)
				}
				return
			}
			if err != nil || !strings.Contains(strings.Join(i.Warnings, "\n"), tt.warn) {
				t.Errorf("Probe: %v, warnings %q, want %q", err, i.Warnings, tt.warn)
			}
		})
	}
}

// Against an engine: everything that a replay relies on.
func TestEngine(t *testing.T) {
	url := backendtest.URL(t, "REPRISE_SGLANG_URL")
	for _, conf := range []backends.Config{{URL: url}, {URL: url, Options: map[string]string{"api": "v1"}}, {URL: url, Chat: true}} {
		b, err := New(conf)
		if err != nil {
			t.Fatal(err)
		}
		i, err := b.Probe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%+v", i)
		backendtest.Engine(t, conf, b, i, backendtest.Dialect{Exact: true, OverlongStatus: map[bool]int{true: http.StatusBadRequest, false: http.StatusOK}[b.v1], Clocks: !b.v1})
	}
}

// A batch on /generate has a length and an id for each prompt.
func TestEncodeBatch(t *testing.T) {
	b, err := New(backends.Config{URL: "http://127.0.0.1:30000", Options: map[string]string{"rid": "true"}})
	if err != nil {
		t.Fatal(err)
	}
	path, body := b.EncodeBatch(nil, []*backends.Call{{ID: "a", PromptIDs: []uint32{5, 6}, MaxTokens: 8, CacheSalt: "s"}, {ID: "b", PromptIDs: []uint32{7}, MaxTokens: 9}})
	want := `{"input_ids":[[5,6],[7]],"sampling_params":[{"max_new_tokens":8,"min_new_tokens":8,"ignore_eos":true,"temperature":0},{"max_new_tokens":9,"min_new_tokens":9,"ignore_eos":true,"temperature":0}],"stream":true,"rid":["a","b"],"extra_key":"s"}`
	if path != "/generate" || string(body) != want {
		t.Errorf("EncodeBatch = %s %s\nwant %s", path, body, want)
	}
	if ok, lengths := b.Batches(); !ok || !lengths {
		t.Errorf("Batches = %t, %t", ok, lengths)
	}
}
