package backends

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"reprise/internal/llmapi"
)

func TestDecoder(t *testing.T) {
	tests := []struct {
		name   string
		n      int
		events string // one a line
		tokens string // of each, "!" where Event is an error, "~" before what is not exact
		result string
	}{
		{"several tokens in an event, and one in none that can be read", 1,
			`{"choices":[{"index":0,"text":"a"}],"usage":{"completion_tokens":1}}
			{"choices":[{"index":0,"text":""}],"usage":{"completion_tokens":2}}
			{"choices":[{"index":0,"text":"bcd"}],"usage":{"completion_tokens":45}}
			{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":45}}
			[DONE]`, "1 1 43 0 0", "out 45"},
		{"a role has no token", 1,
			`{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}],"usage":{"completion_tokens":0}}
			{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"length"}],"usage":{"completion_tokens":1}}`, "0 1", "out 1 length"},
		{"choices count on their own, the last block for all", 2,
			`{"choices":[{"index":1,"text":"a"}],"usage":{"completion_tokens":1}}
			{"choices":[{"index":0,"text":"a"}],"usage":{"completion_tokens":2}}
			{"choices":[{"index":1,"text":"a","finish_reason":"length"}],"usage":{"completion_tokens":4}}
			{"choices":[{"index":0,"text":"a","finish_reason":"stop"}],"usage":{"completion_tokens":3}}
			{"choices":[],"usage":{"completion_tokens":7}}`, "1 2 3 1 0", "out 7 stop"},
		{"without a last block, the sum", 2,
			`{"choices":[{"index":1,"text":"a"}],"usage":{"completion_tokens":4}}
			{"choices":[{"index":0,"text":"a"}],"usage":{"completion_tokens":3}}`, "4 3", "out 7"},
		{"a count that goes back adds nothing", 1,
			`{"meta_info":{"completion_tokens":5},"text":"a"}
			{"meta_info":{"completion_tokens":3},"text":"a"}
			{"meta_info":{"completion_tokens":6},"text":"a"}`, "5 0 1", "out 6"},
		{"token ids where there is no count", 1,
			`{"choices":[{"index":0,"text":"a","token_ids":[1,2,3]}]}
			{"choices":[{"index":0,"text":"","token_ids":[4]}]}`, "3 1", "out 4"},
		{"events are taken for tokens, and nothing says how many there were", 1,
			`{"choices":[{"index":0,"text":"a"}]}
			{"choices":[{"index":0,"text":""}]}
			{"choices":[{"index":0,"text":"b","finish_reason":"stop"}]}
			[DONE]`, "~1 ~0 ~1 0", "stop"},
		{"usage beside the finish reason settles it", 1,
			`{"choices":[{"index":0,"text":"a"}]}
			{"choices":[{"index":0,"text":"","finish_reason":"length"}],"usage":{"completion_tokens":3}}`, "~1 0", "out 3 length"},
		{"and so with text in it", 1,
			`{"choices":[{"index":0,"text":"a"}]}
			{"choices":[{"index":0,"text":"b","finish_reason":"length"}],"usage":{"completion_tokens":2}}`, "~1 ~1", "out 2 length"},
		{"an error after tokens", 1,
			`{"choices":[{"index":0,"text":"a"}],"usage":{"completion_tokens":1}}
			{"error":{"message":"EngineCore encountered an issue.","type":"InternalServerError","code":500}}
			[DONE]`, "1 0 0", "out 1 error_event/engine_dead"},
		{"an error as a bare string, with nothing known in it", 1,
			`{"error":"boom"}`, "0", "error_event"},
		{"an abort, by vLLM", 1,
			`{"choices":[{"index":0,"text":"a","finish_reason":"abort"}],"usage":{"completion_tokens":1}}`, "1", "out 1 abort abort"},
		{"an abort, by SGLang's full queue", 1,
			`{"text":"","output_ids":[],"meta_info":{"completion_tokens":0,"finish_reason":{"type":"abort","message":"The request queue is full.","status_code":503}}}`, "0", "out 0 abort abort/overloaded"},
		{"an abort of one choice is the news", 2,
			`{"choices":[{"index":0,"text":"a","finish_reason":"abort"}],"usage":{"completion_tokens":1}}
			{"choices":[{"index":1,"text":"a","finish_reason":"length"}],"usage":{"completion_tokens":1}}`, "1 1", "out 2 abort abort"},
		{"a choice that was not asked for", 1,
			`{"choices":[{"index":1,"text":"a"}]}`, "!", "bad_event"},
		{"a choice without a number", 1,
			`{"choices":[{"index":-3,"text":"a"}]}`, "!", "bad_event"},
		{"not JSON", 1, `{"choices":[`, "!", "bad_event"},
		{"what the server says outranks what could not be read", 1, "nonsense\n{\"error\":\"boom\"}", "! 0", "error_event"},
		{"a reason that is no word is not passed on", 1,
			`{"choices":[{"index":0,"text":"a","finish_reason":"\u001b[31m secret"}]}`, "~1", "other"},
		{"a reason that is new is", 1,
			`{"choices":[{"index":0,"text":"a","finish_reason":"repetition"}]}`, "~1", "repetition"},
		{"counts that are none", 1,
			`{"choices":[{"index":0,"text":"a"}],"usage":{"completion_tokens":-4}}
			{"choices":[],"usage":{"completion_tokens":1e99}}`, "~1 0", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := NewDecoder(&Call{N: tt.n})
			var got []string
			for line := range strings.Lines(tt.events) {
				e, err := d.Event([]byte(strings.TrimSpace(line)))
				s := fmt.Sprint(e.Tokens)
				if !e.Exact {
					s = "~" + s
				}
				if err != nil {
					s = "!"
				}
				got = append(got, s)
			}
			if s := strings.Join(got, " "); s != tt.tokens {
				t.Errorf("tokens %s, want %s", s, tt.tokens)
			}
			if s := outcome(d.Result()); s != tt.result {
				t.Errorf("result %q, want %q", s, tt.result)
			}
		})
	}
}

func outcome(r Result) string {
	s := ""
	if r.OutputTokens.OK {
		s = fmt.Sprintf("out %d", r.OutputTokens.V)
	}
	for _, w := range []string{r.FinishReason, r.Error} {
		if w != "" {
			s += " " + w
		}
	}
	return strings.TrimSpace(s)
}

func TestDecoderBody(t *testing.T) {
	tests := []struct {
		name   string
		status int
		body   string
		tokens int
		exact  bool
		bad    bool
		result string
	}{
		{"usage", 200, `{"choices":[{"text":"a","finish_reason":"length"}],"usage":{"completion_tokens":9}}`, 9, true, false, "out 9 length"},
		{"ids alone", 200, `{"choices":[{"text":"a","token_ids":[1,2]}]}`, 2, true, false, "out 2"},
		{"content alone", 200, `{"choices":[{"message":{"content":"a"}}]}`, 1, false, false, ""},
		{"nothing", 200, `{"choices":[]}`, 0, false, false, ""},
		{"SGLang's array for several choices", 200, `[{"text":"a","meta_info":{"completion_tokens":3}}, {"text":"b","meta_info":{"completion_tokens":4}}]`, 7, true, false, "out 7"},
		{"an array of something else", 200, `[1]`, 0, false, true, "bad_body"},
		{"an array that is cut", 200, `[{"text":"a"`, 0, false, true, "bad_body"},
		{"an error under 200", 200, `{"error":{"message":"The model ` + "`x`" + ` does not exist"}}`, 0, true, false, "error_body/model_not_found"},
		{"empty", 200, ``, 0, false, true, "bad_body"},
		{"a web page", 200, `<html>`, 0, false, true, "bad_body"},
		{"a gateway's page", 502, `<html><h1>502 Bad Gateway</h1></html>`, 0, true, false, "http_502"},
		{"too many", 429, `{"error":{"message":"slow down"}}`, 0, true, false, "http_429/rate_limited"},
		{"an empty refusal", 500, ``, 0, true, false, "http_500"},
		{"a redirect", 307, `{}`, 0, true, false, "http_307"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := NewDecoder(&Call{N: 2})
			e, err := d.Body(tt.status, []byte(tt.body))
			if e.Tokens != tt.tokens || e.Exact != tt.exact || (err != nil) != tt.bad {
				t.Errorf("Body = %+v, %v", e, err)
			}
			if s := outcome(d.Result()); s != tt.result {
				t.Errorf("result %q, want %q", s, tt.result)
			}
		})
	}
}

// vLLM counts its time to first token from scheduling, and generation from the
// first token.
func TestDecoderClocks(t *testing.T) {
	ms := func(f float64) time.Duration { return time.Duration(f * float64(time.Millisecond)) }
	tests := []struct {
		name, event                string
		queue, prefill, ttft, e2e_ time.Duration
	}{
		{"vllm", `{"choices":[],"usage":{"completion_tokens":5},"metrics":{"time_to_first_token_ms":11.5,"generation_time_ms":13.25,"queue_time_ms":0.25,"mean_itl_ms":3.3}}`,
			ms(0.25), ms(11.5), ms(11.75), ms(25)},
		{"sglang", `{"text":"a","meta_info":{"completion_tokens":5,"queue_time":0.0005,"forward_entry_time":1795427060.25,"prefill_finished_time":1795427060.5,"first_token_latency":0.3,"e2e_latency":0.75}}`,
			ms(0.5), ms(250), ms(300), ms(750)},
		{"llama.cpp", `{"choices":[],"usage":{"completion_tokens":5},"timings":{"prompt_ms":0.5,"predicted_ms":3}}`, 0, ms(0.5), 0, 0},
	}
	for _, tt := range tests {
		d := NewDecoder(&Call{})
		if _, err := d.Event([]byte(tt.event)); err != nil {
			t.Fatal(err)
		}
		r := d.Result()
		if r.Queue.V != tt.queue || r.Prefill.V != tt.prefill || r.TTFT.V != tt.ttft || r.E2E.V != tt.e2e_ || r.E2E.OK != (tt.e2e_ > 0) {
			t.Errorf("%s: queue %v, prefill %v, ttft %v, e2e %v", tt.name, r.Queue, r.Prefill, r.TTFT, r.E2E)
		}
	}
}

// A dialect writes the event in which choice i has got more tokens, count in
// all, and the stream's end.
var dialects = map[string]struct {
	event func(i, more, count int, last bool) string
	end   func(total int) []string
}{
	"vllm": {
		func(i, more, count int, last bool) string {
			return fmt.Sprintf(`{"choices":[{"index":%d,"text":"%s","finish_reason":%s}],"usage":{"prompt_tokens":3,"completion_tokens":%d}}`, i, text(count), finish(last), count)
		},
		func(total int) []string {
			return []string{fmt.Sprintf(`{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":%d}}`, total), "[DONE]"}
		},
	},
	"token ids": {
		func(i, more, count int, last bool) string {
			return fmt.Sprintf(`{"choices":[{"index":%d,"delta":{"content":"%s"},"finish_reason":%s,"token_ids":[%s]}]}`, i, text(count), finish(last), strings.TrimSuffix(strings.Repeat("7,", more), ","))
		},
		func(total int) []string {
			return []string{fmt.Sprintf(`{"choices":[],"usage":{"completion_tokens":%d}}`, total), "[DONE]"}
		},
	},
	"sglang, cumulative": {
		func(i, more, count int, last bool) string {
			return fmt.Sprintf(`{"text":"%s","output_ids":[%s],"meta_info":{"finish_reason":%s,"completion_tokens":%d},"index":%d}`, strings.Repeat("x", count), strings.TrimSuffix(strings.Repeat("7,", count), ","), finish(last), count, i)
		},
		func(int) []string { return []string{"[DONE]"} },
	},
	"sglang, incremental": {
		func(i, more, count int, last bool) string {
			return fmt.Sprintf(`{"text":"%s","output_ids":[%s],"meta_info":{"finish_reason":%s,"completion_tokens":%d},"index":%d}`, text(count), strings.TrimSuffix(strings.Repeat("7,", more), ","), finish(last), count, i)
		},
		func(int) []string { return []string{"[DONE]"} },
	},
	"llama.cpp": {
		func(i, more, count int, last bool) string {
			usage := ""
			if last {
				usage = fmt.Sprintf(`,"usage":{"completion_tokens":%d}`, count)
			}
			return fmt.Sprintf(`{"choices":[{"index":%d,"text":"%s","finish_reason":%s}],"timings":{"predicted_n":%d}%s}`, i, text(count), finish(last), count, usage)
		},
		func(int) []string { return []string{"[DONE]"} },
	},
}

func text(count int) string { return strings.Repeat("x", count%3) } // none, now and then

func finish(last bool) string {
	if last {
		return `{"type":"length","length":1}`
	}
	return "null"
}

// Whatever the number of choices, their lengths, their interleaving and the
// tokens in an event, the tokens of the events are those of the answer.
func TestDecoderCountsValidStreams(t *testing.T) {
	for name, dialect := range dialects {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, 2))
			for range 300 {
				n := 1 + rng.IntN(4)
				want := make([]int, n)
				have := make([]int, n)
				total, left := 0, 0
				for i := range want {
					want[i] = 1 + rng.IntN(60)
					total += want[i]
					left++
				}
				var events []string
				for left > 0 {
					i := rng.IntN(n)
					if have[i] == want[i] {
						continue
					}
					more := 1
					if rng.IntN(4) == 0 {
						more += rng.IntN(44)
					}
					more = min(more, want[i]-have[i])
					have[i] += more
					last := have[i] == want[i]
					if last {
						left--
					}
					events = append(events, dialect.event(i, more, have[i], last))
				}
				events = append(events, dialect.end(total)...)
				d := NewDecoder(&Call{N: n})
				sum := 0
				for _, s := range events {
					e, err := d.Event([]byte(s))
					if err != nil || !e.Exact || e.Tokens < 0 {
						t.Fatalf("Event(%s) = %+v, %v", s, e, err)
					}
					sum += e.Tokens
				}
				if r := d.Result(); sum != total || int(r.OutputTokens.V) != total || r.FinishReason != "length" || r.Error != "" {
					t.Fatalf("%d choices of %v: events %d, result %+v; want %d\n%s", n, want, sum, r, total, strings.Join(events, "\n"))
				}
			}
		})
	}
}

func FuzzDecoder(f *testing.F) {
	f.Add([]byte("{\"choices\":[{\"index\":0,\"text\":\"a\"}],\"usage\":{\"completion_tokens\":1}}\n{\"choices\":[],\"usage\":{\"completion_tokens\":45}}\n[DONE]"), uint8(1))
	f.Add([]byte("{\"text\":\"\",\"output_ids\":[1],\"meta_info\":{\"completion_tokens\":2147483647}}\n{\"error\":{\"message\":\"x\"}}"), uint8(2))
	f.Add([]byte("{\"choices\":[{\"index\":1,\"finish_reason\":{\"type\":\"abort\",\"message\":\"\\u001b\"}}]}\n{\"choices\":[{\"token_ids\":[1]},{\"token_ids\":[2]}]}"), uint8(3))
	f.Add([]byte("[{\"meta_info\":{\"completion_tokens\":3}}]"), uint8(0))
	f.Fuzz(func(t *testing.T, in []byte, n uint8) {
		check := func(d Decoder, e Event) {
			r := d.Result()
			if e.Tokens < 0 || r.OutputTokens.V < 0 || r.PromptTokens.V < 0 || r.CachedTokens.V < 0 || r.Queue.V < 0 || r.Prefill.V < 0 || r.TTFT.V < 0 || r.E2E.V < 0 {
				t.Fatalf("negative: %+v, %+v", e, r)
			}
			if strings.ContainsFunc(r.FinishReason+r.Error, func(c rune) bool { return c <= ' ' || c > '~' }) || len(r.FinishReason) > 32 || len(r.Error) > 64 {
				t.Fatalf("not a short class: %q, %q", r.FinishReason, r.Error)
			}
			if llmapi.OneLine(r.Message) != r.Message {
				t.Fatalf("not for a terminal: %q", r.Message)
			}
		}
		d := NewDecoder(&Call{N: int(n)})
		for line := range bytes.Lines(in) {
			e, err := d.Event(bytes.TrimSpace(line))
			check(d, e)
			if err != nil && (e.Tokens != 0 || d.Result().Error == "") {
				t.Fatalf("%+v with %v, and result %+v", e, err, d.Result())
			}
		}
		for _, status := range []int{200, 400, 0} {
			d := NewDecoder(&Call{N: int(n)})
			e, _ := d.Body(status, in)
			check(d, e)
		}
	})
}
