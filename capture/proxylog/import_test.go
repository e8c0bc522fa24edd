package proxylog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"pgregory.net/rapid"

	"reprise/capture"
	"reprise/traceformat"
)

// importText imports a log that stands in memory.
func importText(t testing.TB, o *Options, text string) (*Report, *sink, error) {
	t.Helper()
	im, err := Open([]Input{{"test.log", func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text)), nil }}}, o)
	if err != nil {
		return nil, nil, err
	}
	s := &sink{}
	r, err := im.Run(context.Background(), s)
	return r, s, err
}

// TestArrivalsAgreeWithPackets compares arrivals of nginx's log with the packets
// of the same run (the first byte of each request, from a pcap of loopback).
func TestArrivalsAgreeWithPackets(t *testing.T) {
	_, _, s, err := run(t, &Options{}, "nginx.json.log")
	if err != nil {
		t.Fatal(err)
	}
	packets := []int64{
		1795426021247389000, 1795426022783229000, 1795426024327361000,
		1795426026053640000, 1795426027759336000, 1795426029382514000,
	}
	near := 0
	for i, want := range packets {
		d := time.Duration(s.rows[i].Arrival - want).Abs()
		if d < time.Millisecond {
			near++
		}
		// One request was read by nginx 8 ms after its packet came.
		if d > 10*time.Millisecond {
			t.Errorf("request %d: arrival is off by %v", i, d)
		}
	}
	if near < 5 {
		t.Errorf("%d of 6 arrivals within 1 ms, want 5", near)
	}
}

func TestFixed(t *testing.T) {
	tests := []struct {
		in    string
		scale int
		want  int64
		ok    bool
	}{
		{"1795426084.6794033", 9, 1795426084679403300, true},
		{"1.307857231", 9, 1307857231, true},
		{"1.3078572315", 9, 1307857232, true},
		{"1.3e-05", 9, 13000, true},
		{"1.25e2", 3, 125000, true},
		{"-1", 6, -1000000, true},
		{"0", 9, 0, true},
		{".5", 3, 500, true},
		{"", 9, 0, false},
		{"-", 9, 0, false},
		{"1.2.3", 9, 0, false},
		{"12s", 9, 0, false},
		{"99999999999999999999", 0, 0, false},
		{"9999999999999", 9, 0, false},
		{"NaN", 9, 0, false},
	}
	for _, tt := range tests {
		if got, ok := fixed([]byte(tt.in), tt.scale); ok != tt.ok || ok && got != tt.want {
			t.Errorf("fixed(%q, %d) = %d, %t; want %d, %t", tt.in, tt.scale, got, ok, tt.want, tt.ok)
		}
	}
}

// Any time that package time prints in the layouts of logs is read back.
func TestStampsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		at := time.Unix(rapid.Int64Range(0, 4102444800).Draw(t, "s"), rapid.Int64Range(0, 999999).Draw(t, "us")*1000).UTC()
		zone := time.FixedZone("", rapid.IntRange(-12, 14).Draw(t, "h")*3600)
		k := &calendar{}
		for _, layout := range []string{"2006-01-02T15:04:05.999999999Z07:00", "2006-01-02 15:04:05.000000Z07:00", "2006-01-02T15:04:05.000000-0700"} {
			text := at.In(zone).Format(layout)
			c, ok := parseISO([]byte(text))
			if got, fits := k.at(c); !ok || !fits || got != at.UnixNano() {
				t.Fatalf("%s is read as %v, want %v", text, time.Unix(0, got).UTC(), at)
			}
		}
		text := at.In(zone).Format("02/Jan/2006:15:04:05 -0700")
		c, ok := parseCLF([]byte(text))
		if got, fits := k.at(c); !ok || !fits || got != at.Truncate(time.Second).UnixNano() {
			t.Fatalf("%s is read as %v, want %v", text, time.Unix(0, got).UTC(), at)
		}
	})
}

func TestCalendarFold(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Skip("no time zones here:", err)
	}
	k := &calendar{loc: berlin}
	// 25 October 2026: 03:00 becomes 02:00. The hour comes twice.
	var got []string
	for _, text := range []string{"2026-10-25 01:59:59", "2026-10-25 02:10:00", "2026-10-25 02:50:00", "2026-10-25 02:05:00", "2026-10-25 02:59:00", "2026-10-25 03:00:01"} {
		c, ok := parseISO([]byte(text))
		at, fits := k.at(c)
		if !ok || !fits {
			t.Fatalf("%s is not read", text)
		}
		got = append(got, time.Unix(0, at).UTC().Format("15:04:05"))
	}
	if want := "23:59:59 00:10:00 00:50:00 01:05:00 01:59:00 02:00:01"; strings.Join(got, " ") != want {
		t.Errorf("UTC times %s, want %s", strings.Join(got, " "), want)
	}
	if k.Folds != 4 {
		t.Errorf("%d ambiguous stamps, want 4", k.Folds)
	}
	c, _ := parseISO([]byte("2026-03-29 02:30:00")) // there is no such time
	if k.at(c); k.Gaps != 1 {
		t.Errorf("%d impossible stamps, want 1", k.Gaps)
	}
}

func TestYearRollsOver(t *testing.T) {
	k := &calendar{loc: time.UTC, year: 2026}
	var got []string
	for _, text := range []string{"12-31 23:59:58", "01-01 00:00:01", "12-31 23:59:59", "01-01 00:00:02", "06-01 10:00:00", "02-29 00:00:00"} {
		c, ok := parseMonthDay([]byte(text))
		at, fits := k.at(c)
		if !ok || !fits {
			got = append(got, "refused")
			continue
		}
		got = append(got, time.Unix(0, at).UTC().Format("2006-01-02"))
	}
	if want := "2026-12-31 2027-01-01 2026-12-31 2027-01-01 2027-06-01 2028-02-29"; strings.Join(got, " ") != want {
		t.Errorf("got %s, want %s", strings.Join(got, " "), want)
	}
}

func TestSpans(t *testing.T) {
	for text, want := range map[string]time.Duration{"1.307s": 1307 * time.Millisecond, "52.75µs": 52750, "45.6ms": 45600000, "789ns": 789, "0.25": 250 * time.Millisecond} {
		if got, ok := span([]byte(text), unitAuto); !ok || got != want {
			t.Errorf("span(%q) = %v, %t; want %v", text, got, ok, want)
		}
	}
	for _, text := range []string{"-1", "", "s", "1h2"} {
		if got, ok := span([]byte(text), unitAuto); ok {
			t.Errorf("span(%q) = %v, want none", text, got)
		}
	}
}

func TestHeaderTimeOfRetries(t *testing.T) {
	line := `{"msec":"1795541508.287","request_time":"0.900","request_method":"POST","request_uri":"/v1/completions","status":"200","upstream_header_time":"-, 0.051","upstream_response_time":"0.100, 0.385","upstream_status":"502, 200","request_completion":"OK"}`
	_, s, err := importText(t, &Options{}, line)
	if err != nil {
		t.Fatal(err)
	}
	if r := s.rows[0]; r.Row.TTFT.OK || r.Attempts != 2 {
		t.Errorf("TTFT %v, %d attempts; a header's time is no TTFT, and there were 2", r.Row.TTFT, r.Attempts)
	}
	_, s, err = importText(t, &Options{TrustHeaderTime: true}, line)
	if err != nil {
		t.Fatal(err)
	}
	if r := s.rows[0].Row; r.TTFT.V != 151*time.Millisecond || r.TTFTSource != traceformat.TTFTHeader {
		t.Errorf("TTFT %v by %s, want 151 ms by the header: the first attempt is part of it", r.TTFT.V, r.TTFTSource)
	}
}

// TestNeeds checks that what a log does not say must be said.
func TestNeeds(t *testing.T) {
	tests := []struct {
		file string
		o    Options
		flag string
	}{
		{"haproxy.log", Options{}, "--tz"},
		{"vllm.log", Options{Zone: time.UTC}, "--year"},
		{"vllm.log", Options{Year: 2026}, "--tz"},
		{"nginx-combined.log", Options{}, "--arrivals-are-end"},
	}
	for _, tt := range tests {
		_, _, _, err := run(t, &tt.o, tt.file)
		need, ok := errors.AsType[*NeedError](err)
		if !ok || !strings.Contains(need.Flag, tt.flag) {
			t.Errorf("%s: %v, want a NeedError of %s", tt.file, err, tt.flag)
		}
	}
}

func TestPackedAndMany(t *testing.T) {
	dir := t.TempDir()
	plain := append(readAll(t, "nginx.json.log"), '\n')
	var gz, zst bytes.Buffer
	z := gzip.NewWriter(&gz)
	z.Write(plain)
	z.Close()
	s, _ := zstd.NewWriter(&zst)
	s.Write(plain)
	s.Close()
	for name, b := range map[string][]byte{
		"a.log": plain, "b.log.gz": gz.Bytes(), "c.log.zst": zst.Bytes(),
		"d.log": bytes.ReplaceAll(append([]byte("\xef\xbb\xbf"), plain...), []byte("\n"), []byte("\r\n\r\n")),
		"e.log": []byte("[\n" + strings.ReplaceAll(strings.TrimSpace(string(plain)), "\n", ",\n") + "\n]"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	inputs, err := Files([]string{filepath.Join(dir, "*.log*"), filepath.Join(dir, "a.log")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(inputs) != 5 {
		t.Fatalf("%d inputs, want 5: what is named twice is read once", len(inputs))
	}
	im, err := Open(inputs, &Options{})
	if err != nil {
		t.Fatal(err)
	}
	out := &sink{}
	r, err := im.Run(context.Background(), out)
	if err != nil {
		t.Fatal(err)
	}
	if len(out.rows) != 30 || r.Records != 30 || r.Unreadable != 0 {
		t.Errorf("%d rows of %d records, %d unreadable; want 30 of 30, 0", len(out.rows), r.Records, r.Unreadable)
	}
}

func TestMixedDialectsAreRefused(t *testing.T) {
	_, _, _, err := run(t, &Options{Zone: time.UTC}, "caddy.log", "haproxy.log")
	if err == nil || !strings.Contains(err.Error(), "trace merge") {
		t.Errorf("error %v, want one that names trace merge", err)
	}
}

// Lines of two dialects in one file are not taken for requests to nowhere: keys
// of the same name mean other things.
func TestMixedLinesAreUnreadable(t *testing.T) {
	var text []byte
	for _, name := range []string{"nginx.json.log", "caddy.log"} {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		text = append(text, b...)
	}
	r, s, err := importText(t, &Options{MaxBad: 0.5}, string(text))
	if err != nil || r.Unreadable != 3 || len(s.rows) != 6 {
		t.Errorf("%v, %+v, want 3 lines of Caddy's that cannot be read", err, r)
	}
	if _, _, err := importText(t, &Options{}, string(text)); err == nil {
		t.Error("a third of the lines are of another dialect, and nothing is said")
	}
}

func TestPicklesAreNotOpened(t *testing.T) {
	for _, head := range []string{"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}", "\x80\x05K\x01.", "PK\x03\x04 archive/data.pkl"} {
		if _, _, err := importText(t, &Options{}, head); !errors.Is(err, ErrPickle) {
			t.Errorf("%q: %v, want ErrPickle", head, err)
		}
	}
}

func TestTooMuchIsUnreadable(t *testing.T) {
	good := string(bytes.SplitN(readAll(t, "nginx.json.log"), []byte("\n"), 2)[0])
	secret := `{"msec":"1795426022.563","password":"Hunter2 Ünïcode","bro`
	var b strings.Builder
	for i := range 100 {
		b.WriteString(good + "\n")
		if i%40 == 5 {
			b.WriteString(secret + "\n")
		}
	}
	r, s, err := importText(t, &Options{}, b.String())
	bad, ok := errors.AsType[*BadShareError](err)
	if !ok {
		t.Fatalf("error %v, want a BadShareError", err)
	}
	if bad.Unreadable != 3 || bad.Records != 103 || len(s.rows) != 100 || s.dropped[capture.ReasonParse] != 3 {
		t.Errorf("%+v, %d rows, dropped %v", bad, len(s.rows), s.dropped)
	}
	if want := `{"aaaa":"0000000000.000","aaaaaaaa":"aaaaaa0 ?a?aaaa","aaa`; r.Shapes[0] != want {
		t.Errorf("shape %q, want %q", r.Shapes[0], want)
	}
	if strings.Contains(err.Error(), "Hunter") {
		t.Error("the error quotes the line")
	}
	if _, _, err := importText(t, &Options{MaxBad: 0.05}, b.String()); err != nil {
		t.Errorf("with 5 %% allowed: %v", err)
	}
}

func TestInterleavedLinesAreCounted(t *testing.T) {
	good := string(bytes.SplitN(readAll(t, "kong.jsonl"), []byte("\n"), 2)[0])
	// A second writer's line in the middle of a line.
	broken := good[:200] + good + good[200:]
	r, s, err := importText(t, &Options{MaxBad: 0.5}, good+"\n"+broken+"\n"+good[:len(good)/2]+"\n"+good+"\n"+good)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.rows) != 3 || r.Unreadable != 2 || r.Reasons["interleaved_json"] < 1 {
		t.Errorf("%d rows, %d unreadable: %v", len(s.rows), r.Unreadable, r.Reasons)
	}
}

func TestHostileLines(t *testing.T) {
	good := string(bytes.SplitN(readAll(t, "nginx.json.log"), []byte("\n"), 2)[0])
	deep := `{"msec":"1795426022.563","a":` + strings.Repeat("[", 1_000_000) + strings.Repeat("]", 1_000_000) + `}`
	long := `{"msec":"` + strings.Repeat("9", maxRecord+1000) + `"}`
	var b strings.Builder
	for range 20 {
		b.WriteString(good + "\n")
	}
	b.WriteString(deep + "\n" + long + "\n" + good + "\n")
	r, s, err := importText(t, &Options{MaxBad: 0.5}, b.String())
	if err != nil {
		t.Fatal(err)
	}
	if len(s.rows) != 21 || r.Unreadable != 2 {
		t.Errorf("%d rows, %d unreadable, want 21 and 2", len(s.rows), r.Unreadable)
	}
}

func TestUnknownIsNeverZero(t *testing.T) {
	_, s, err := importText(t, &Options{}, `{"start_time":"2026-11-23T09:27:03.117Z","method":"POST","request.path":"/v1/chat/completions","response_code":200,"duration":900,"gen_ai.request.model":"m","gen_ai.usage.input_tokens":"-","gen_ai.usage.output_tokens":0}`)
	if err != nil {
		t.Fatal(err)
	}
	if r := s.rows[0].Row; r.PromptTokens.OK || r.OutputTokens.OK || r.PromptTokensSource != "" || r.CachedTokens.OK || r.TTFT.OK {
		t.Errorf("got %s: tokens that the gateway lost are unknown", r.AppendJSON(nil))
	}
}

// TestLiteLLMAttempts checks that attempts at a request become one, with the
// arrival of the first.
func TestLiteLLMAttempts(t *testing.T) {
	row := func(trace, status string, start, end float64, code string) string {
		return fmt.Sprintf(`{"id":"x","trace_id":%q,"call_type":"acompletion","stream":true,"status":%q,"startTime":%.3f,"endTime":%.3f,"completionStartTime":%.3f,"prompt_tokens":10,"completion_tokens":5,"model":"m","error_information":{"error_code":%q,"error_class":"RateLimitError","error_message":"secret words"}}`,
			trace, status, start, end, start+(end-start)/2, code)
	}
	text := strings.Join([]string{
		row("t1", "failure", 1795426000.0, 1795426000.1, "429"),
		row("t2", "success", 1795426000.0, 1795426001.0, ""),
		row("t1", "failure", 1795426000.2, 1795426000.3, "429"),
		row("t1", "success", 1795426000.5, 1795426001.5, ""),
		row("t3", "failure", 1795426002.0, 1795426002.1, "500"),
		row("t2", "success", 1795426003.0, 1795426004.0, ""), // a later turn of the trace
	}, "\n")
	_, s, err := importText(t, &Options{}, text)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range s.rows {
		got = append(got, fmt.Sprintf("%.1f %s %v %v %d", float64(l.Arrival%1e11)/1e9, l.Row.Result, l.Row.TTFT.V, l.Row.E2E.V, l.Attempts))
	}
	want := []string{"0.0 ok 500ms 1s 0", "0.0 ok 1s 1.5s 3", "3.0 ok 500ms 1s 0", "2.0 server_error 0s 100ms 0"}
	if strings.Join(got, "; ") != strings.Join(want, "; ") {
		t.Errorf("got\n%s, want\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if s.dropped[capture.ReasonRetry] != 2 {
		t.Errorf("dropped %v, want 2 retries", s.dropped)
	}
}

func TestSGLangUnfinished(t *testing.T) {
	lines := strings.Split(string(readAll(t, "sglang.log")), "\n")
	lines = append(lines, `[2026-11-23 09:45:00] {"timestamp": "2026-11-23T09:45:00.000100", "event": "request.received", "rid": "cut", "obj": {"stream": true, "sampling_params": {"max_new_tokens": 9}}}`)
	_, s, err := importText(t, &Options{Zone: time.UTC}, strings.Join(lines, "\n"))
	if err != nil {
		t.Fatal(err)
	}
	last := s.rows[len(s.rows)-1]
	if last.Row.Result != traceformat.ResultTruncated || last.Row.MaxTokens.V != 9 || last.Row.E2E.OK {
		t.Errorf("the request that the log cuts off is %s", last.Row.AppendJSON(nil))
	}
}

func TestPathsAndRoutes(t *testing.T) {
	o := &Options{Routes: []Route{{"/ask/", traceformat.EndpointChat}}}
	tests := []struct{ method, path, endpoint, reason string }{
		{"POST", "/v1/chat/completions?x=1", "chat", ""},
		{"POST", "https://h:8/openai/v1/chat/completions", "chat", ""},
		{"POST", "/ask/me", "chat", ""},
		{"OPTIONS", "/v1/chat/completions", "", capture.ReasonNotLLM},
		{"GET", "/v1/models", "", capture.ReasonModelList},
		{"GET", "/v1/models/llama", "", capture.ReasonModelList},
		{"GET", "/healthz/", "", capture.ReasonHealthCheck},
		{"GET", "/metrics", "", capture.ReasonMetrics},
		{"POST", "/v1/messages/count_tokens", "", capture.ReasonNotLLM},
		{"POST", "/v1/messages", "messages", ""},
		{"POST", "/generate_stream", "generate", ""},
		{"POST", "/v1/tokenize", "", capture.ReasonNotLLM},
	}
	for _, tt := range tests {
		if e, r := o.classify([]byte(tt.method), []byte(tt.path)); e != tt.endpoint || r != tt.reason {
			t.Errorf("classify(%s %s) = %q, %q; want %q, %q", tt.method, tt.path, e, r, tt.endpoint, tt.reason)
		}
	}
}

func TestMappingProblems(t *testing.T) {
	_, err := ParseMapping([]byte("format: xml\nfields:\n  whence: a\n  duration: {column: b, unit: h}\n"))
	for _, want := range []string{"xml", "whence", `"h"`, "neither start nor end"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not mention %s", err, want)
		}
	}
	m, err := ParseMapping([]byte(`{"fields": {"start": {"column": "t.at", "unit": "s"}, "duration": "d", "path": "p"}, "where": {"kind": "llm"}}`))
	if err != nil {
		t.Fatal(err)
	}
	_, s, err := importText(t, &Options{Mapping: m}, `{"t":{"at":1795426000.5},"d":1.5,"p":"/v1/completions","kind":"llm"}
{"t":{"at":1795426001.5},"d":1.5,"p":"/v1/completions","kind":"other"}`)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.rows) != 1 || s.rows[0].Arrival != 1795426000500000000 || s.rows[0].Row.E2E.V != 1500*time.Millisecond || s.dropped[reasonNotRequest] != 1 {
		t.Errorf("got %s", s)
	}
}

func TestDither(t *testing.T) {
	var b strings.Builder
	for i := range 500 {
		fmt.Fprintf(&b, "127.0.0.1 - - [24/Nov/2026:17:33:%02d +0000] \"POST /v1/completions HTTP/1.1\" 200 5 \"-\" \"-\"\n", i/50)
	}
	o := Options{ArrivalsAreEnd: true, Dither: true, Seed: 7}
	_, one, err := importText(t, &o, b.String())
	if err != nil {
		t.Fatal(err)
	}
	_, two, _ := importText(t, &o, b.String())
	whole := 0
	for i := range one.rows {
		a := one.rows[i].Arrival
		if a != two.rows[i].Arrival {
			t.Fatal("the same seed gives other arrivals")
		}
		if a%1e9 == 0 {
			whole++
		}
		if sec := a / 1e9 % 60; int(sec) != i/50 {
			t.Fatalf("row %d left its second: %d", i, sec)
		}
	}
	if whole > 1 {
		t.Errorf("%d of 500 arrivals stand on the tick", whole)
	}
}

// TestFollow writes a log while it is followed: lines in pieces, a rotation, a
// copy and truncation. Every line is read once.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "access.log")
	line := func(i int) string {
		return fmt.Sprintf(`{"msec":"1795426%03d.000","request_time":"0.500","request_method":"POST","request_uri":"/v1/completions","status":"200","request_completion":"OK","remote_addr":"%d"}`+"\n", i, i)
	}
	if err := os.WriteFile(name, []byte(line(0)+line(1)), 0o600); err != nil {
		t.Fatal(err)
	}
	inputs, err := Files([]string{name}, nil)
	if err != nil {
		t.Fatal(err)
	}
	im, err := Open(inputs, &Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := newLockedSink()
	done := make(chan error)
	go func() {
		_, err := im.Follow(ctx, s)
		done <- err
	}()
	wait := func(n int) {
		t.Helper()
		deadline := time.Now().Add(30 * time.Second)
		for s.len() < n {
			if time.Now().After(deadline) {
				t.Fatalf("%d rows, want %d", s.len(), n)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	wait(2)
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	l := line(2)
	f.WriteString(l[:40])
	time.Sleep(600 * time.Millisecond)
	f.WriteString(l[40:])
	wait(3)
	// Renamed away; its writer goes on for a moment.
	if err := os.Rename(name, name+".1"); err != nil {
		t.Fatal(err)
	}
	f.WriteString(line(3))
	if err := os.WriteFile(name, []byte(line(4)), 0o600); err != nil {
		t.Fatal(err)
	}
	f.Close()
	wait(5)
	// Cut in place.
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(600 * time.Millisecond)
	g, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	g.WriteString(line(5))
	wait(6)
	g.WriteString(strings.TrimSuffix(line(6), "\n")) // no end: read when the recording ends
	g.Close()
	time.Sleep(600 * time.Millisecond)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for _, l := range s.rows {
		seen[l.Client]++
	}
	for i := range 7 {
		if seen[strconv.Itoa(i)] != 1 {
			t.Errorf("line %d was read %d times", i, seen[strconv.Itoa(i)])
		}
	}
}
