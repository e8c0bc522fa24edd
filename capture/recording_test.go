package capture

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"reprise/traceformat"
)

// A recording is an exchange with a real server, as its bytes came in. The files
// lie with the backends' tests; each folder's README says where they are from.
type recording struct {
	name         string
	method, path string
	request      []byte
	status       int
	head         map[string]string
	pieces       []piece // of the body, transfer coding removed
}

type piece struct {
	at   time.Duration // from the request
	data []byte
}

var (
	reLine  = regexp.MustCompile(`^(GET|POST|OPTIONS|PUT) (\S+)\n(?:> (.*)\n)?`)
	rePiece = regexp.MustCompile(`--- \+([\d.]+)ms recv (\d+) bytes\n`)
	reWhole = regexp.MustCompile(`(?s)^(?:< .*?\n)*\(([\d.]+)s\)\n\n`)
)

// readRecording reads backends/NAME.
func readRecording(t testing.TB, name string) recording {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "backends", filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	x := recording{name: name, head: map[string]string{}}
	m := reLine.FindSubmatch(b)
	if m == nil {
		t.Fatalf("%s does not begin with a request", name)
	}
	x.method, x.path, x.request = string(m[1]), string(m[2]), m[3]
	b = b[len(m[0]):]
	if rePiece.Match(b) {
		x.readPieces(t, b)
		return x
	}
	w := reWhole.FindSubmatch(b)
	if w == nil {
		t.Fatalf("%s: no answer in %.60q", name, b)
	}
	for line := range strings.Lines(string(w[0])) {
		x.headLine(strings.TrimPrefix(line, "< "))
	}
	took, err := strconv.ParseFloat(string(w[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	x.pieces = []piece{{time.Duration(took * 1e9), bytes.TrimRight(b[len(w[0]):], "\n")}}
	return x
}

func (x *recording) headLine(line string) {
	line = strings.TrimSpace(line)
	if name, v, ok := strings.Cut(line, ": "); ok {
		x.head[strings.ToLower(name)] = v
		return
	}
	line = strings.TrimPrefix(line, "HTTP/1.1 ")
	if code, _, _ := strings.Cut(line, " "); len(code) == 3 {
		x.status, _ = strconv.Atoi(code)
	}
}

func (x *recording) readPieces(t testing.TB, b []byte) {
	var wire []piece
	for {
		m := rePiece.FindSubmatchIndex(b)
		if m == nil {
			break
		}
		ms, _ := strconv.ParseFloat(string(b[m[2]:m[3]]), 64)
		n, _ := strconv.Atoi(string(b[m[4]:m[5]]))
		b = b[m[1]:]
		wire = append(wire, piece{time.Duration(ms * 1e6), b[:n]})
		b = b[n:]
	}
	head, rest, ok := bytes.Cut(wire[0].data, []byte("\r\n\r\n"))
	if !ok {
		t.Fatalf("%s: no head", x.name)
	}
	for line := range strings.Lines(string(head)) {
		x.headLine(line)
	}
	wire[0].data = rest
	if x.head["transfer-encoding"] == "chunked" {
		wire = dechunk(wire)
	}
	x.pieces = wire
}

// dechunk removes the chunked coding and keeps the times.
func dechunk(in []piece) (out []piece) {
	var line []byte
	left := 0 // of a chunk and the CRLF after it; 0: in a size line
	for _, p := range in {
		var data []byte
		for _, c := range p.data {
			switch {
			case left > 2:
				data = append(data, c)
				left--
			case left > 0:
				left--
			case c == '\n':
				n, err := strconv.ParseUint(strings.TrimSpace(string(line)), 16, 32)
				if line = line[:0]; err == nil && n > 0 {
					left = int(n) + 2
				}
			default:
				line = append(line, c)
			}
		}
		if len(data) > 0 {
			out = append(out, piece{p.at, data})
		}
	}
	return out
}

func (x *recording) get(name string) string { return x.head[name] }

// epoch is when the tests' requests arrive.
const epoch = int64(1_800_000_000e9)

// rowSink keeps copies of rows.
type rowSink struct {
	rows   []*traceformat.Row
	header *traceformat.Header
}

func (s *rowSink) Append(r *traceformat.Row) error {
	if err := r.Check(); err != nil {
		return err
	}
	s.rows = append(s.rows, r.Clone())
	return nil
}

func (s *rowSink) SetHeader(h *traceformat.Header) error {
	s.header = h
	return nil
}

// newTest returns a recorder that writes to memory; at the end of the test its
// accounts must add up, nothing may be held, and no fault have been contained.
func newTest(t testing.TB, o Options) (*Recorder, *rowSink) {
	t.Helper()
	s := new(rowSink)
	r, err := NewRecorder(s, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { checkRecorder(t, r, s) })
	return r, s
}

func checkRecorder(t testing.TB, r *Recorder, s *rowSink) {
	t.Helper()
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	a := r.Accounts()
	if err := a.Check(); err != nil {
		t.Error(err)
	}
	if a.Open != 0 || a.Recorded != int64(len(s.rows)) {
		t.Errorf("%v after Close, want %d rows and none open", a, len(s.rows))
	}
	if a.Reasons[ReasonPanic] > 0 || a.Reasons[ReasonRow] > 0 {
		t.Errorf("accounts %v: a panic, or rows that no reader takes", a)
	}
	if n := r.Held(); n != 0 {
		t.Errorf("%d bytes are held after Close", n)
	}
	h := s.header.Rows
	if h.Seen != a.Seen || h.Recorded != a.Recorded {
		t.Errorf("header counts %+v, accounts are %v", h, a)
	}
	var sum int64
	for _, n := range h.Dropped {
		sum += n
	}
	if h.Seen != h.Recorded+sum {
		t.Errorf("header counts %+v, which do not add up", h)
	}
}

// play feeds a recording, its answer in the given pieces.
func play(r *Recorder, x recording, pieces []piece) {
	e := r.Begin(epoch, Conn{Client: "192.0.2.7"})
	e.RequestHead(epoch, x.method, x.path, Header(func(string) string { return "" }))
	e.RequestBody(epoch+1e3, x.request)
	e.RequestEnd(epoch + 2e3)
	last := epoch + 3e3
	e.ResponseHead(last, x.status, x.get)
	for _, p := range pieces {
		last = epoch + int64(p.at)
		e.ResponseBody(last, p.data)
	}
	e.ResponseEnd(last + 1e3)
}

func rowText(r *traceformat.Row) string { return string(r.AppendJSON(nil)) }

func TestRecordings(t *testing.T) {
	ms := func(f float64) time.Duration { return time.Duration(f * 1e6) }
	tests := []struct {
		name             string
		endpoint         string
		prompt, output   int32 // -1: unknown
		source           string
		events           int
		ttft             time.Duration // 0: unknown
		finish, outcome  string
		class            string
		cached           int32 // -1: unknown
		max              int32
		promptFromTokens bool
	}{
		{name: "vllm/testdata/sse_chat.txt", endpoint: "chat", prompt: 12, output: 8, source: "usage", events: 8, ttft: ms(18.3), finish: "length", outcome: "ok", cached: 0, max: 8},
		{name: "vllm/testdata/sse_chat_token_ids.txt", endpoint: "chat", prompt: 12, output: 8, source: "usage", events: 8, finish: "length", outcome: "ok", cached: 0, max: 8},
		{name: "vllm/testdata/sse_include_usage.txt", endpoint: "completions", prompt: 4, output: 16, source: "usage", events: 16, ttft: ms(101), finish: "length", outcome: "ok", cached: 0, max: 16},
		{name: "vllm/testdata/sse_plain.txt", endpoint: "completions", prompt: 4, output: 16, source: "events", events: 16, finish: "length", outcome: "ok", cached: -1, max: 16, promptFromTokens: true},
		{name: "vllm/testdata/sse_one_token.txt", endpoint: "completions", prompt: 4, output: 1, source: "usage", events: 1, finish: "length", outcome: "ok", cached: 0, max: 1},
		{name: "vllm/testdata/sse_continuous_usage_token_ids.txt", endpoint: "completions", prompt: 4, output: 16, source: "usage", events: 16, finish: "length", outcome: "ok", cached: 0, max: 16},
		{name: "vllm/testdata/completion_tokenids.txt", endpoint: "completions", prompt: 4, output: 8, source: "usage", finish: "length", outcome: "ok", cached: 0, max: 8},
		{name: "sglang/testdata/generate_stream.txt", endpoint: "generate", prompt: 4, output: 16, source: "engine", events: 16, ttft: ms(10.7), finish: "length", outcome: "ok", cached: 3, max: 16},
		{name: "sglang/testdata/generate_stream_interval3.txt", endpoint: "generate", prompt: 4, output: 6, source: "engine", events: 3, finish: "length", outcome: "ok", cached: 3, max: 6},
		{name: "sglang/testdata/generate.txt", endpoint: "generate", prompt: 4, output: 8, source: "engine", finish: "length", outcome: "ok", cached: -2, max: 8},
		{name: "sglang/testdata/generate_batch.txt", endpoint: "generate", prompt: -2, output: -2, source: "engine", finish: "length", outcome: "ok", cached: -2, max: -2},
		{name: "sglang/testdata/chat_stream.txt", endpoint: "chat", prompt: -2, output: 8, source: "usage", events: 8, finish: "length", outcome: "ok", cached: -2, max: 8},
		{name: "vllm/testdata/err_overlong.txt", endpoint: "completions", prompt: -2, output: -1, outcome: "rejected", class: "http_400/context_overflow", cached: -1, max: -2},
		{name: "vllm/testdata/err_unknown_model.txt", endpoint: "completions", prompt: -2, output: -1, outcome: "rejected", class: "http_404/model_not_found", cached: -1, max: -2},
		{name: "vllm/testdata/err_bad_json.txt", endpoint: "completions", prompt: -1, output: -1, outcome: "rejected", class: "http_400/bad_json", cached: -1, max: -2},
		{name: "sglang/testdata/err_overlong.txt", endpoint: "generate", prompt: -2, output: -1, outcome: "rejected", class: "http_400/context_overflow", cached: -1, max: -2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, s := newTest(t, Options{})
			x := readRecording(t, tt.name)
			play(r, x, x.pieces)
			if len(s.rows) != 1 {
				t.Fatalf("%d rows: %v", len(s.rows), r.Accounts())
			}
			row := s.rows[0]
			check := func(what string, got, want any) {
				t.Helper()
				if fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("%s = %v, want %v; row %s", what, got, want, rowText(row))
				}
			}
			length := func(what string, got traceformat.Opt[int32], want int32) {
				t.Helper()
				if want != -2 && got != (traceformat.Opt[int32]{V: max(want, 0), OK: want >= 0}) {
					t.Errorf("%s = %v, want %d; row %s", what, got, want, rowText(row))
				}
			}
			check("endpoint", row.Endpoint, tt.endpoint)
			length("prompt_tokens", row.PromptTokens, tt.prompt)
			length("output_tokens", row.OutputTokens, tt.output)
			length("cached_tokens", row.CachedTokens, tt.cached)
			length("max_tokens", row.MaxTokens, tt.max)
			check("output_tokens_source", row.OutputTokensSource, tt.source)
			if tt.events >= 0 {
				check("events", len(row.ChunkTimes), tt.events)
			}
			check("finish_reason", row.FinishReason, tt.finish)
			check("outcome", row.Result, tt.outcome)
			check("error", row.Error, tt.class)
			if tt.ttft != 0 {
				check("ttft", row.TTFT, traceformat.Some(tt.ttft))
			}
			if row.TTFT.OK {
				check("ttft_source", row.TTFTSource, traceformat.TTFTContentEvent)
			}
			if tt.promptFromTokens {
				check("prompt_tokens_source", row.PromptTokensSource, traceformat.SourceTokenizer)
			}
			if row.ChunkTokens != nil {
				var sum int32
				for _, n := range row.ChunkTokens {
					sum += n
				}
				check("sum of chunk_tokens", sum, row.OutputTokens.V)
			}
		})
	}
}
