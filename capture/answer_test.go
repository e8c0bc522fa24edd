package capture

import (
	"bytes"
	"compress/zlib"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"

	"reprise/traceformat"
)

// timeless is a row without what depends on how the answer was cut.
func timeless(r *traceformat.Row) string {
	c := r.Clone()
	c.TTFT, c.E2E = traceformat.Opt[time.Duration]{OK: c.TTFT.OK}, traceformat.Opt[time.Duration]{OK: c.E2E.OK}
	for i := range c.ChunkTimes {
		c.ChunkTimes[i] = 0
	}
	return string(c.AppendJSON(nil))
}

// However the bytes of an answer are cut, the row is the same but for the times.
func TestAnySplitGivesTheSameRow(t *testing.T) {
	names := []string{
		"vllm/testdata/sse_chat.txt", "vllm/testdata/sse_plain.txt", "vllm/testdata/sse_continuous_usage_token_ids.txt",
		"vllm/testdata/completion_tokenids.txt", "vllm/testdata/err_overlong.txt",
		"sglang/testdata/generate_stream.txt", "sglang/testdata/generate.txt", "sglang/testdata/chat_stream.txt",
	}
	key := NewKey()
	codings := []string{"", "gzip", "deflate", "br", "zstd"}
	for _, name := range names {
		x := readRecording(t, name)
		var body []byte
		for _, p := range x.pieces {
			body = append(body, p.data...)
		}
		last := x.pieces[len(x.pieces)-1].at
		want := ""
		run := func(x recording, pieces []piece) string {
			s := new(rowSink)
			r, err := NewRecorder(s, Options{Key: key})
			if err != nil {
				t.Fatal(err)
			}
			play(r, x, pieces)
			checkRecorder(t, r, s)
			if len(s.rows) != 1 {
				t.Fatalf("%s: %d rows, %v", name, len(s.rows), r.Accounts())
			}
			return timeless(s.rows[0])
		}
		want = run(x, []piece{{last, body}})
		rapid.Check(t, func(rt *rapid.T) {
			y := x
			wire := body
			if c := rapid.SampledFrom(codings).Draw(rt, "coding"); c != "" {
				y.head = map[string]string{"content-type": x.head["content-type"], "content-encoding": c}
				wire = encode(t, c, body)
			}
			cuts := rapid.SliceOfN(rapid.IntRange(0, len(wire)), 0, 40).Draw(rt, "cuts")
			slices.Sort(cuts)
			var pieces []piece
			from := 0
			for _, to := range append(cuts, len(wire)) {
				pieces = append(pieces, piece{last, bytes.Clone(wire[from:to])})
				from = to
			}
			if got := run(y, pieces); got != want {
				rt.Fatalf("%s cut at %v:\n%s", name, cuts, cmp.Diff(want, got))
			}
		})
	}
}

// encode encodes a body, flushed after each event as servers do.
func encode(t testing.TB, coding string, body []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w interface {
		io.WriteCloser
		Flush() error
	}
	switch coding {
	case "gzip":
		w = gzip.NewWriter(&b)
	case "deflate":
		w = zlib.NewWriter(&b)
	case "br":
		w = brotli.NewWriter(&b)
	case "zstd":
		z, err := zstd.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		w = z
	case "raw deflate":
		f, err := flate.NewWriter(&b, 6)
		if err != nil {
			t.Fatal(err)
		}
		w = f
	}
	for _, part := range bytes.SplitAfter(body, []byte("\n\n")) {
		if _, err := w.Write(part); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// An event of a compressed stream has the time of the read that completed it,
// not that of a later one.
func TestCompressedEventsKeepTheirTimes(t *testing.T) {
	for _, coding := range []string{"gzip", "deflate", "raw deflate", "br", "zstd"} {
		t.Run(coding, func(t *testing.T) {
			r, s := newTest(t, Options{})
			var b bytes.Buffer
			var w interface {
				io.WriteCloser
				Flush() error
			}
			switch coding {
			case "gzip":
				w = gzip.NewWriter(&b)
			case "deflate":
				w = zlib.NewWriter(&b)
			case "raw deflate":
				w, _ = flate.NewWriter(&b, 6)
			case "br":
				w = brotli.NewWriter(&b)
			case "zstd":
				w, _ = zstd.NewWriter(&b)
			}
			x := r.Begin(epoch, Conn{})
			x.RequestHead(epoch, "POST", "/v1/completions", nil)
			x.RequestBody(epoch, []byte(`{"prompt":"x","stream":true}`))
			x.RequestEnd(epoch)
			x.ResponseHead(epoch, 200, func(name string) string {
				return map[string]string{"content-type": "text/event-stream", "content-encoding": strings.TrimPrefix(coding, "raw ")}[name]
			})
			var want []time.Duration
			for i := range 5 {
				finish := "null"
				if i == 4 {
					finish = `"stop"`
				}
				fmt.Fprintf(w, `data: {"choices":[{"index":0,"text":"t%d","finish_reason":%s}]}`+"\n\n", i, finish)
				w.Flush()
				at := time.Duration(i+1) * time.Second
				want = append(want, at)
				x.ResponseBody(epoch+int64(at), b.Bytes())
				b.Reset()
			}
			w.Close()
			x.ResponseBody(epoch+10e9, b.Bytes())
			x.ResponseEnd(epoch + 11e9)
			if d := cmp.Diff(want, s.rows[0].ChunkTimes); d != "" {
				t.Errorf("chunk_ns -want +got\n%s%s", d, rowText(s.rows[0]))
			}
		})
	}
}

// exchange is one exchange in a table: body in, events or a body out.
func exchange(r *Recorder, path, request string, status int, kind string, answer ...string) {
	x := r.Begin(epoch, Conn{Client: "192.0.2.7"})
	x.RequestHead(epoch, "POST", path, nil)
	x.RequestBody(epoch, []byte(request))
	x.RequestEnd(epoch)
	x.ResponseHead(epoch, status, func(name string) string {
		if name == "content-type" {
			return kind
		}
		return ""
	})
	at := epoch
	for _, a := range answer {
		at += 1e9
		if kind == "text/event-stream" {
			a = "data: " + a + "\n\n"
		}
		x.ResponseBody(at, []byte(a))
	}
	x.ResponseEnd(at)
}

// The dialects that the recordings do not have, by the vendors' documentation.
func TestDialects(t *testing.T) {
	const sse, body = "text/event-stream", "application/json"
	tests := []struct {
		name, path, request string
		kind                string
		answer              []string
		want                string // columns of the row
	}{
		{
			"messages, streamed", "/v1/messages",
			`{"model":"claude-x","max_tokens":64,"stream":true,"system":"be brief","metadata":{"user_id":"u1"},"messages":[{"role":"user","content":[{"type":"text","text":"hi"},{"type":"image","source":{"type":"base64","data":"AAAA"}}]}]}`,
			sse,
			[]string{
				`{"type":"message_start","message":{"id":"msg_1","type":"message","role":"assistant","content":[],"stop_reason":null,"usage":{"input_tokens":25,"cache_read_input_tokens":100,"cache_creation_input_tokens":5,"output_tokens":1}}}`,
				`{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`,
				`{"type": "ping"}`,
				`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hello"}}`,
				`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"!"}}`,
				`{"type":"content_block_stop","index":0}`,
				`{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":15}}`,
				`{"type":"message_stop"}`,
			},
			`endpoint messages prompt 130 usage output 15 usage cached 100 ttft 4s e2e 5s chunks 2 tokens 0 finish stop outcome ok extra images`,
		},
		{
			"messages, whole", "/anthropic/v1/messages", `{"model":"m","max_tokens":64,"messages":[{"role":"user","content":"hi"}]}`, body,
			[]string{`{"id":"msg_1","type":"message","role":"assistant","content":[{"type":"text","text":"Hello"}],"stop_reason":"max_tokens","usage":{"input_tokens":10,"output_tokens":64}}`},
			`endpoint messages prompt 10 usage output 64 usage cached ? ttft ? e2e 1s chunks 0 tokens 0 finish length outcome ok extra`,
		},
		{
			"messages, a tool is named", "/v1/messages", `{"model":"m","max_tokens":64,"stream":true,"tools":[{"name":"f","input_schema":{}}],"messages":[{"role":"user","content":"hi"}]}`, sse,
			[]string{
				`{"type":"message_start","message":{"usage":{"input_tokens":9,"output_tokens":0}}}`,
				`{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"t1","name":"f","input":{}}}`,
				`{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":""}}`,
				`{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"{\"a\":1}"}}`,
				`{"type":"message_delta","delta":{"stop_reason":"tool_use"},"usage":{"output_tokens":3}}`,
			},
			`endpoint messages prompt 9 usage output 3 usage cached ? ttft 2s e2e 5s chunks 3 tokens 3 finish tool_calls outcome ok extra tools tool_bytes`,
		},
		{
			"messages, overloaded in mid-stream", "/v1/messages", `{"model":"m","max_tokens":64,"stream":true,"messages":[{"role":"user","content":"hi"}]}`, sse,
			[]string{
				`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hel"}}`,
				`{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}`,
			},
			`endpoint messages prompt ?  output 1 events cached ? ttft 1s e2e 1s chunks 1 tokens 1 finish  outcome server_error error_event/overloaded extra`,
		},
		{
			"responses, streamed", "/v1/responses",
			`{"model":"gpt-x","input":[{"role":"user","content":[{"type":"input_text","text":"hi"}]}],"instructions":"be brief","max_output_tokens":100,"stream":true}`,
			sse,
			[]string{
				`{"type":"response.created","response":{"id":"resp_1","object":"response","status":"in_progress","usage":null,"error":null}}`,
				`{"type":"response.output_item.added","item":{"type":"message","content":[]}}`,
				`{"type":"response.output_text.delta","delta":"Hel"}`,
				`{"type":"response.output_text.delta","delta":"lo"}`,
				`{"type":"response.output_text.done","text":"Hello"}`,
				`{"type":"response.completed","response":{"id":"resp_1","object":"response","status":"completed","error":null,"output":[],"usage":{"input_tokens":36,"input_tokens_details":{"cached_tokens":8},"output_tokens":2,"output_tokens_details":{"reasoning_tokens":0}}}}`,
			},
			`endpoint responses prompt 36 usage output 2 usage cached 8 ttft 3s e2e 4s chunks 2 tokens 2 finish stop outcome ok extra`,
		},
		{
			"responses, whole and incomplete", "/v1/responses", `{"model":"gpt-x","input":"hi","max_output_tokens":5}`, body,
			[]string{`{"id":"resp_2","object":"response","status":"incomplete","error":null,"incomplete_details":{"reason":"max_output_tokens"},"output":[{"type":"message","content":[{"type":"output_text","text":"Hello"}]}],"usage":{"input_tokens":3,"output_tokens":5,"output_tokens_details":{"reasoning_tokens":4}}}`},
			`endpoint responses prompt 3 usage output 5 usage cached ? ttft ? e2e 1s chunks 0 tokens 0 finish length outcome ok extra`,
		},
		{
			"TGI, streamed", "/generate_stream", `{"inputs":"hi","parameters":{"max_new_tokens":20,"temperature":0.5}}`, sse,
			[]string{
				`{"index":1,"token":{"id":8,"text":"Deep","logprob":-0.1,"special":false},"generated_text":null,"details":null}`,
				`{"index":2,"token":{"id":9,"text":" l","logprob":-0.1,"special":false},"generated_text":null,"details":null}`,
				`{"index":3,"token":{"id":2,"text":"</s>","logprob":-0.1,"special":true},"generated_text":"Deep l","details":{"finish_reason":"eos_token","generated_tokens":3,"seed":null}}`,
			},
			`endpoint generate prompt ?  output 3 engine cached ? ttft 1s e2e 3s chunks 3 tokens 3 finish stop outcome ok extra`,
		},
		{
			"TGI, whole", "/", `{"inputs":"hi","parameters":{"max_new_tokens":20,"details":true}}`, body,
			[]string{`[{"generated_text":"Deep l","details":{"finish_reason":"length","generated_tokens":20,"prefill":[{"id":1},{"id":2}],"tokens":[]}}]`},
			`endpoint generate prompt 2 engine output 20 engine cached ? ttft ? e2e 1s chunks 0 tokens 0 finish length outcome ok extra`,
		},
		{
			"llama.cpp's own endpoint", "/completion", `{"prompt":"hi","n_predict":3,"stream":true}`, sse,
			[]string{
				`{"content":"a","stop":false,"tokens_predicted":1,"tokens_evaluated":7}`,
				`{"content":"b","stop":false,"tokens_predicted":2,"tokens_evaluated":7}`,
				`{"content":"","stop":true,"stop_type":"limit","tokens_predicted":2,"tokens_evaluated":7}`,
			},
			`endpoint completions prompt 7 usage output 2 usage cached ? ttft 1s e2e 2s chunks 2 tokens 2 finish length outcome ok extra`,
		},
		{
			"embeddings", "/v1/embeddings", `{"model":"e","input":["a","b"]}`, body,
			[]string{`{"object":"list","data":[{"embedding":[0.1]}],"usage":{"prompt_tokens":8,"total_tokens":8}}`},
			`endpoint embeddings prompt 8 usage output ?  cached ? ttft ? e2e 1s chunks 0 tokens 0 finish  outcome ok extra prompts`,
		},
		{
			"a role, a comment and an empty delta are no token; the end of the choice is one", "/v1/chat/completions", `{"messages":[{"role":"user","content":"hi"}],"stream":true}`, sse,
			[]string{
				`{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}` + "\n\n: keep-alive",
				`{"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}`,
				`{"choices":[{"index":0,"delta":{"content":""},"finish_reason":"stop"}]}`,
				`{"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":2}}`,
				`[DONE]`,
			},
			`endpoint chat prompt 11 usage output 2 usage cached ? ttft 2s e2e 3s chunks 2 tokens 2 finish stop outcome ok extra`,
		},
		{
			"more tokens than events: which event held more is unknown", "/v1/chat/completions", `{"messages":[{"role":"user","content":"hi"}],"stream":true}`, sse,
			[]string{
				`{"choices":[{"index":0,"delta":{"content":"Hi there"},"finish_reason":null}]}`,
				`{"choices":[{"index":0,"delta":{"content":"!"},"finish_reason":"stop"}]}`,
				`{"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":7}}`,
			},
			`endpoint chat prompt 11 usage output 7 usage cached ? ttft 1s e2e 2s chunks 2 tokens 0 finish stop outcome ok extra`,
		},
		{
			"[DONE] without a finish reason is no success", "/v1/chat/completions", `{"messages":[{"role":"user","content":"hi"}],"stream":true}`, sse,
			[]string{`{"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}]}`, `[DONE]`},
			`endpoint chat prompt ?  output 1 events cached ? ttft 1s e2e 1s chunks 1 tokens 1 finish  outcome server_error truncated extra`,
		},
		{
			"usage and [DONE] of a server that gives no finish reason", "/v1/chat/completions", `{"messages":[{"role":"user","content":"hi"}],"stream":true}`, sse,
			[]string{`{"choices":[{"index":0,"delta":{"content":"Hi"}}]}`, `{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":1}}`, `[DONE]`},
			`endpoint chat prompt 5 usage output 1 usage cached ? ttft 1s e2e 1s chunks 1 tokens 1 finish  outcome ok extra`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, s := newTest(t, Options{})
			exchange(r, tt.path, tt.request, 200, tt.kind, tt.answer...)
			if len(s.rows) != 1 {
				t.Fatalf("no row: %v", r.Accounts())
			}
			if got := digest(s.rows[0]); got != tt.want {
				t.Errorf("got  %s\nwant %s\n%s", got, tt.want, rowText(s.rows[0]))
			}
		})
	}
}

func digest(r *traceformat.Row) string {
	n := func(v traceformat.Opt[int32]) string {
		if !v.OK {
			return "?"
		}
		return fmt.Sprint(v.V)
	}
	d := func(v traceformat.Opt[time.Duration]) string {
		if !v.OK {
			return "?"
		}
		return v.V.String()
	}
	var tokens int32
	for _, v := range r.ChunkTokens {
		tokens += v
	}
	outcome := r.Result
	if r.Error != "" {
		outcome += " " + r.Error
	}
	var extra []string
	for _, name := range []string{"images", "prompts", "tools", "tool_bytes"} {
		if strings.Contains(r.Extra, `"`+name+`"`) {
			extra = append(extra, name)
		}
	}
	return strings.TrimSpace(fmt.Sprintf("endpoint %s prompt %s %s output %s %s cached %s ttft %s e2e %s chunks %d tokens %d finish %s outcome %s extra %s",
		r.Endpoint, n(r.PromptTokens), r.PromptTokensSource, n(r.OutputTokens), r.OutputTokensSource, n(r.CachedTokens),
		d(r.TTFT), d(r.E2E), len(r.ChunkTimes), tokens, r.FinishReason, outcome, strings.Join(extra, " ")))
}

// How an exchange ends that does not end well.
func TestEndings(t *testing.T) {
	stream := "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"},\"finish_reason\":null}]}\n\n"
	finished := "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"b\"},\"finish_reason\":\"stop\"}]}\n\n"
	tests := []struct {
		name   string
		status int
		body   string
		how    Ending
		want   string // outcome error abort
	}{
		{"the client hangs up before anything comes", 0, "", ClientAbort, "client_abort client_closed 5s"},
		{"the client hangs up in mid-stream", 200, stream, ClientAbort, "client_abort client_closed 5s"},
		{"the client hangs up after the end", 200, stream + finished, ClientAbort, "ok  -"},
		{"the server breaks off", 200, stream, ServerReset, "server_error connection_reset -"},
		{"a proxy gives up", 200, stream, Timeout, "timeout timeout 5s"},
		{"the capture ends", 200, stream, Truncated, "truncated_capture  -"},
		{"the capture has no room", 200, stream, Evicted, "truncated_capture evicted -"},
		{"429", 429, `{"error":{"message":"slow down"}}`, 0, "rejected http_429/rate_limited -"},
		{"503", 503, "", 0, "rejected http_503/overloaded -"},
		{"400", 400, `{"object":"error","message":"This model's maximum context length is 10 tokens"}`, 0, "rejected http_400/context_overflow -"},
		{"500", 500, "oops", 0, "server_error http_500 -"},
		{"502", 502, "", 0, "server_error http_502 -"},
		{"504", 504, "", 0, "timeout http_504 5s"},
		{"nginx's 499", 499, "", 0, "client_abort http_499 5s"},
		{"an early 429, cut off", 429, "", ServerReset, "rejected http_429/rate_limited -"},
		{"200 and nothing", 200, "", 0, "server_error empty_answer -"},
		{"an error event", 200, stream + "data: {\"error\":{\"message\":\"EngineCore encountered an issue\"}}\n\n", 0, "server_error error_event/engine_dead -"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, s := newTest(t, Options{})
			x := r.Begin(epoch, Conn{})
			x.RequestHead(epoch, "POST", "/v1/chat/completions", nil)
			x.RequestBody(epoch, []byte(`{"messages":[{"role":"user","content":"hi"}],"stream":true}`))
			x.RequestEnd(epoch)
			if tt.status != 0 {
				x.ResponseHead(epoch+1e9, 103, nil) // early hints are no answer
				x.ResponseHead(epoch+1e9, tt.status, func(name string) string {
					if name == "content-type" && tt.status == 200 {
						return "text/event-stream"
					}
					return ""
				})
				x.ResponseBody(epoch+2e9, []byte(tt.body))
			}
			if tt.how == 0 {
				x.ResponseEnd(epoch + 5e9)
			} else {
				x.End(epoch+5e9, tt.how)
			}
			x.End(epoch+9e9, ClientAbort) // too late
			row := s.rows[0]
			abort := "-"
			if row.Abort.OK {
				abort = row.Abort.V.String()
			}
			if got := row.Result + " " + row.Error + " " + abort; got != tt.want {
				t.Errorf("got %q, want %q; row %s", got, tt.want, rowText(row))
			}
		})
	}
}

// However a compressed answer ends, its decoder is gone: it is a goroutine.
func TestDecodersEnd(t *testing.T) {
	before := runtime.NumGoroutine()
	r, _ := newTest(t, Options{})
	for i := range 300 {
		coding := []string{"gzip", "deflate", "br", "zstd", "none such"}[i%5]
		wire := []byte("not what it says")
		if i%5 < 4 && i%2 == 0 {
			wire = encode(t, coding, []byte(strings.Repeat("data: {}\n\n", 100)))
		}
		x := r.Begin(epoch, Conn{})
		x.RequestHead(epoch, "POST", "/v1/completions", nil)
		x.RequestEnd(epoch)
		x.ResponseHead(epoch, 200, func(name string) string {
			return map[string]string{"content-encoding": coding}[name]
		})
		x.ResponseBody(epoch, wire[:len(wire)/2])
		switch i % 7 {
		case 0:
			x.ResponseBody(epoch, wire[len(wire)/2:])
			x.ResponseEnd(epoch)
		case 1:
			x.ResponseEnd(epoch)
		case 2:
			x.Gap(epoch, true, 10)
			x.ResponseBody(epoch, wire[len(wire)/2:])
			x.ResponseEnd(epoch)
		case 3:
			x.Drop(ReasonQueueFull)
		case 4:
			x.End(epoch, ClientAbort)
		} // the others are open until Close
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if after := runtime.NumGoroutine(); after > before+2 {
		t.Errorf("%d goroutines before, %d after", before, after)
	}
}

// TestMispaired: what was said of somebody else's answer is not in the row, and
// what the prompt says is.
func TestMispaired(t *testing.T) {
	r, s := newTest(t, Options{})
	x := r.Begin(epoch, Conn{})
	x.RequestHead(epoch, "POST", "/v1/chat/completions", nil)
	x.RequestBody(epoch, []byte(`{"messages":[{"role":"user","content":"hi"}],"max_tokens":7,"stream":true}`))
	x.RequestEnd(epoch)
	x.ResponseHead(epoch+1e9, 200, func(name string) string { return map[string]string{"content-type": "text/event-stream"}[name] })
	x.ResponseBody(epoch+2e9, []byte(`data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}],"usage":{"prompt_tokens":9,"completion_tokens":1}}`+"\n\n"))
	x.Mispaired(epoch + 3e9)
	x.ResponseEnd(epoch + 4e9) // does nothing any more
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if len(s.rows) != 1 {
		t.Fatalf("%d rows", len(s.rows))
	}
	row := s.rows[0]
	if row.Result != traceformat.ResultTruncated || row.MaxTokens.V != 7 || !row.Session.OK {
		t.Errorf("what the request said is lost: %s", row.AppendJSON(nil))
	}
	if row.Status.OK || row.TTFT.OK || row.PromptTokens.OK || row.OutputTokens.OK || row.FinishReason != "" || len(row.ChunkTimes) > 0 {
		t.Errorf("something of the answer is kept: %s", row.AppendJSON(nil))
	}
	if n := r.Held(); n != 0 {
		t.Errorf("%d bytes of the budget not given back", n)
	}
}
