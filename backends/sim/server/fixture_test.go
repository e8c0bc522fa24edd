package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"reprise/backends/sim/engine"
)

// fast makes a pass take 2 ms.
var fast = engine.Cost{Step: 2e6}

// start serves o in this process until the test ends, each token as an event of
// its own.
func start(t testing.TB, o Options) (*Server, string) {
	t.Helper()
	if o.Cost == nil {
		o.Cost = &fast
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	s.split = true
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { s.Serve(l); close(done) }()
	t.Cleanup(func() { s.Close(); <-done })
	return s, "http://" + l.Addr().String()
}

// tiny is the server that the fixtures come from, as far as it shows.
var tiny = Options{Model: "tiny", MaxModelLen: 8192, BlockSize: 128}

// do sends one request and returns the answer.
func do(t testing.TB, method, url, body string, header ...string) (*http.Response, []byte) {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: body: %v after %q", method, url, err, b)
	}
	return resp, b
}

// events returns the data of each event of a stream.
func events(b []byte) (data []string) {
	for line := range strings.Lines(string(b)) {
		if d, ok := strings.CutPrefix(line, "data: "); ok {
			data = append(data, strings.TrimSpace(d))
		}
	}
	return data
}

// A fixture is one recorded exchange.
type fixture struct {
	method, path, body string
	status             string
	header             map[string]string
	answer             []byte
	stream             bool
}

var (
	chunkSize = regexp.MustCompile(`(?m)^[0-9a-f]+\r?$`)
	received  = regexp.MustCompile(`(?m)^--- \+.*$`)
)

func readFixture(t *testing.T, name string) (f fixture) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "vllm", name+".txt"))
	if err != nil {
		t.Fatal(err)
	}
	f.header = map[string]string{}
	head, rest, _ := bytes.Cut(b, []byte("\n> "))
	f.method, f.path, _ = strings.Cut(string(head), " ")
	body, rest, _ := bytes.Cut(rest, []byte("\n"))
	if f.body = string(body); f.body == "None" {
		f.body = ""
	}
	if bytes.HasPrefix(rest, []byte("---")) {
		f.stream, f.status = true, "200 OK"
		f.answer = received.ReplaceAll(chunkSize.ReplaceAll(rest, nil), nil)
		f.header["content-type"] = "text/event-stream; charset=utf-8"
		return f
	}
	for {
		line, after, _ := bytes.Cut(rest, []byte("\n"))
		l, ok := strings.CutPrefix(string(line), "< ")
		if !ok {
			_, f.answer, _ = bytes.Cut(rest, []byte("\n\n")) // the time, then the body
			return f
		}
		if k, v, ok := strings.Cut(l, ": "); ok {
			f.header[k] = v
		} else {
			f.status = l
		}
		rest = after
	}
}

// shape writes JSON as one line per value, in the order of the bytes. What
// differs from run to run or between models is reduced to its type.
func shape(t *testing.T, data []byte) string {
	t.Helper()
	var b strings.Builder
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var walk func(path string)
	walk = func(path string) {
		tok, err := dec.Token()
		if err != nil {
			t.Fatalf("%v in %s", err, data)
		}
		switch v := tok.(type) {
		case json.Delim:
			fmt.Fprintf(&b, "%s %v\n", path, v)
			if volatile(path) {
				for n := 0; dec.More(); n++ {
					dec.Token()
				}
			}
			for dec.More() {
				if v == '{' {
					k, _ := dec.Token()
					walk(path + "." + k.(string))
				} else {
					walk(path + "[]")
				}
			}
			dec.Token()
		case nil:
			fmt.Fprintf(&b, "%s null\n", path)
		default:
			if volatile(path) {
				fmt.Fprintf(&b, "%s %T\n", path, v)
			} else {
				fmt.Fprintf(&b, "%s %v\n", path, v)
			}
		}
	}
	walk("")
	return b.String()
}

func volatile(path string) bool {
	return slices.Contains([]string{
		".id", ".created", ".system_fingerprint", ".choices[].text", ".choices[].token_ids",
		".choices[].delta.content", ".prompt_token_ids", ".tokens", ".count", ".prompt",
		".metrics.time_to_first_token_ms", ".metrics.generation_time_ms", ".metrics.queue_time_ms",
		".metrics.mean_itl_ms", ".metrics.tokens_per_second",
		".data[].created", ".data[].permission[].id", ".data[].permission[].created",
		// Ours to say.
		".version", ".data[].owned_by", ".data[].root", ".data[].permission[].allow_logprobs",
		// Depend on the tokenizer.
		".usage.prompt_tokens", ".usage.total_tokens",
	}, path)
}

// Field by field, in order, the answers are those of a real vLLM.
func TestAnswersHaveVLLMsShape(t *testing.T) {
	_, url := start(t, tiny)
	names, err := filepath.Glob("testdata/vllm/*.txt")
	if err != nil || len(names) < 25 {
		t.Fatalf("%d fixtures: %v", len(names), err)
	}
	for _, name := range names {
		name = strings.TrimSuffix(filepath.Base(name), ".txt")
		switch name {
		case "metric_names", "sse_per_request_metrics", "completion_per_request_metrics", "engine_crash_trigger":
			continue // tests of their own
		}
		t.Run(name, func(t *testing.T) {
			f := readFixture(t, name)
			resp, got := do(t, f.method, url+f.path, f.body, "Content-Type", "application/json")
			if resp.Status != f.status {
				t.Fatalf("status %s, want %s: %s", resp.Status, f.status, got)
			}
			if ct := resp.Header.Get("Content-Type"); ct != f.header["content-type"] {
				t.Errorf("content type %q, want %q", ct, f.header["content-type"])
			}
			if allow := resp.Header.Get("Allow"); allow != f.header["allow"] {
				t.Errorf("allow %q, want %q", allow, f.header["allow"])
			}
			switch {
			case f.stream:
				compareStreams(t, events(got), events(f.answer), false)
			case name == "err_bad_json":
				// The words of Python's parser are its own.
				cut := func(b []byte) string { s, _, _ := strings.Cut(string(b), "'ctx'"); return unescape(s) }
				if cut(got) != cut(f.answer) {
					t.Errorf("answer %s\nwant %s", got, f.answer)
				}
			case strings.HasPrefix(name, "err_") || len(f.answer) == 0:
				if string(got) != strings.TrimSpace(string(f.answer)) {
					t.Errorf("answer %s\nwant %s", got, f.answer)
				}
			default:
				if g, w := plain(shape(t, got)), plain(shape(t, f.answer)); g != w {
					t.Errorf("shape:\n%s\nwant:\n%s", g, w)
				}
			}
		})
	}
}

// plain drops the block that vLLM sends only with --enable-per-request-metrics,
// which most fixtures were recorded without.
func plain(shape string) string {
	var b strings.Builder
	for line := range strings.Lines(shape) {
		if !strings.HasPrefix(line, ".metrics") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// unescape makes the two spellings of a newline equal.
func unescape(s string) string { return strings.ReplaceAll(s, `\u000a`, `\n`) }

func compareStreams(t *testing.T, got, want []string, metrics bool) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d events, want %d:\n%s", len(got), len(want), strings.Join(got, "\n"))
	}
	for i := range got {
		if want[i] == "[DONE]" || got[i] == "[DONE]" {
			if got[i] != want[i] {
				t.Errorf("event %d: %s, want %s", i, got[i], want[i])
			}
			continue
		}
		g, w := shape(t, []byte(got[i])), shape(t, []byte(want[i]))
		if !metrics {
			g, w = plain(g), plain(w)
		}
		if g != w {
			t.Errorf("event %d: %s\nwant %s", i, got[i], want[i])
		}
	}
}

// The usage event and the whole answer with --enable-per-request-metrics.
func TestPerRequestMetrics(t *testing.T) {
	_, url := start(t, tiny)
	b, err := os.ReadFile("testdata/vllm/sse_per_request_metrics.txt")
	if err != nil {
		t.Fatal(err)
	}
	_, got := do(t, "POST", url+"/v1/completions", `{"prompt":[5,6,7],"max_tokens":3,"ignore_eos":true,"temperature":0,"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}`)
	compareStreams(t, events(got), events(b), true)
	whole, err := os.ReadFile("testdata/vllm/completion_per_request_metrics.txt")
	if err != nil {
		t.Fatal(err)
	}
	_, answer := do(t, "POST", url+"/v1/completions", `{"prompt":[5,6,7],"max_tokens":5,"temperature":0}`)
	if g, w := shape(t, answer), shape(t, whole); g != w {
		t.Errorf("shape:\n%s\nwant:\n%s", g, w)
	}
	var last struct {
		Metrics struct {
			TTFT float64 `json:"time_to_first_token_ms"`
			Gen  float64 `json:"generation_time_ms"`
			ITL  float64 `json:"mean_itl_ms"`
			Rate float64 `json:"tokens_per_second"`
		}
	}
	evs := events(got)
	if err := json.Unmarshal([]byte(evs[len(evs)-2]), &last); err != nil {
		t.Fatal(err)
	}
	// Three passes of exactly 2 ms, whatever the machine did meanwhile.
	if m := last.Metrics; m.TTFT != 2 || m.Gen != 4 || m.ITL != 2 || m.Rate != 500 {
		t.Errorf("metrics %+v, want 2, 4 and 2 ms and 500/s", m)
	}
}
