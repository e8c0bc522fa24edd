package proxylog

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"reprise/capture"
)

var update = flag.Bool("update", false, "write the golden files anew")

// A sink is a Recorder that keeps what it is given, in plain text.
type sink struct {
	rows    []capture.Logged
	dropped map[string]int64
}

func (s *sink) Record(l *capture.Logged) {
	c := *l
	c.Row = *l.Row.Clone()
	s.rows = append(s.rows, c)
}

func (s *sink) DropN(reason string, n int64) {
	if s.dropped == nil {
		s.dropped = map[string]int64{}
	}
	s.dropped[reason] += n
}

// String is all that was given, a row a line.
func (s *sink) String() string {
	var b strings.Builder
	for i := range s.rows {
		l := &s.rows[i]
		fmt.Fprintf(&b, "%s %s", time.Unix(0, l.Arrival).UTC().Format("2006-01-02T15:04:05.000000000Z"), l.Row.AppendJSON(nil))
		for _, f := range []struct {
			name string
			v    any
		}{{"client", l.Client}, {"session", l.Session}, {"user", l.User}, {"request", l.RequestID}} {
			if f.v != "" {
				fmt.Fprintf(&b, " %s=%v", f.name, f.v)
			}
		}
		if l.Attempts > 0 {
			fmt.Fprintf(&b, " attempts=%d", l.Attempts)
		}
		if l.PrefixHashes != nil {
			fmt.Fprintf(&b, " blocks=%q", l.PrefixHashes)
		}
		b.WriteByte('\n')
	}
	reasons, _ := json.Marshal(s.dropped)
	fmt.Fprintf(&b, "dropped %s\n", reasons)
	return b.String()
}

// run imports a file of testdata.
func run(t testing.TB, o *Options, names ...string) (*Import, *Report, *sink, error) {
	t.Helper()
	var paths []string
	for _, n := range names {
		paths = append(paths, filepath.Join("testdata", n))
	}
	inputs, err := Files(paths, nil)
	if err != nil {
		t.Fatal(err)
	}
	im, err := Open(inputs, o)
	if err != nil {
		return nil, nil, nil, err
	}
	s := &sink{}
	r, err := im.Run(context.Background(), s)
	return im, r, s, err
}

// samples are the logs of testdata: see its README for what is real.
var samples = []struct {
	file, dialect string
	o             Options
}{
	{"nginx.json.log", "nginx", Options{}},
	{"nginx-names.json.log", "nginx", Options{}},
	{"nginx-text.log", "nginx", Options{Format: "nginx", LogFormat: `log_format text '$remote_addr [$time_iso8601] $msec "$request" $status $request_time "$request_completion" up=$upstream_status';`}},
	{"nginx-combined.log", "nginx-combined", Options{ArrivalsAreEnd: true}},
	{"haproxy.log", "haproxy", Options{Zone: time.UTC}},
	{"haproxy-more.log", "haproxy", Options{Zone: time.UTC}},
	{"envoy-text.log", "envoy-text", Options{}},
	{"envoy.jsonl", "envoy", Options{}},
	{"envoy-ai-gateway.jsonl", "envoy-ai-gateway", Options{}},
	{"caddy.log", "caddy", Options{}},
	{"caddy-more.log", "caddy", Options{}},
	{"traefik.jsonl", "traefik", Options{}},
	{"traefik-clf.log", "traefik-clf", Options{}},
	{"kong.jsonl", "kong", Options{}},
	{"higress.jsonl", "higress", Options{}},
	{"litellm.payload.jsonl", "litellm", Options{}},
	{"litellm.spend.csv", "litellm", Options{}},
	{"sglang-metrics.log", "sglang-metrics", Options{}},
	{"sglang.log", "sglang-log", Options{Zone: time.UTC}},
	{"vllm.log", "vllm-log", Options{Zone: time.UTC, Year: 2026}},
	{"vllm-otlp.jsonl", "vllm-otlp", Options{}},
	{"otel.jsonl", "otel-genai", Options{}},
	{"dynamo.jsonl", "dynamo", Options{}},
	{"langfuse.jsonl", "langfuse", Options{}},
	{"langfuse.api.json", "langfuse", Options{}},
	{"helicone.csv", "helicone", Options{}},
	{"tgi.jsonl", "tgi", Options{}},
	{"requests.csv", "mapping", Options{Mapping: mustMapping("requests.yaml")}},
}

func mustMapping(name string) *Mapping {
	m, err := LoadMapping(filepath.Join("testdata", name))
	if err != nil {
		panic(err)
	}
	return m
}

// TestGolden reads every sample and compares what the log can know, the rows and
// the accounts with what was checked by hand against the lines.
func TestGolden(t *testing.T) {
	for _, tt := range samples {
		t.Run(tt.file, func(t *testing.T) {
			im, report, s, err := run(t, &tt.o, tt.file)
			if err != nil {
				t.Fatal(err)
			}
			if got := im.Dialect().Name; got != tt.dialect {
				t.Errorf("dialect %s, want %s", got, tt.dialect)
			}
			for i := range s.rows {
				if err := s.rows[i].Row.Check(); err != nil {
					t.Errorf("row %d: %v", i, err)
				}
			}
			c := report.Capability
			got := fmt.Sprintf("%s\n%s%s", c, notes(c.Notes), s)
			golden := filepath.Join("testdata", "golden", tt.file+".txt")
			if *update {
				if err := os.MkdirAll(filepath.Dir(golden), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func notes(list []string) string {
	var b strings.Builder
	for _, n := range list {
		b.WriteString("note: " + n + "\n")
	}
	return b.String()
}

// TestEachDialectHasASample keeps a dialect from being added without one.
func TestEachDialectHasASample(t *testing.T) {
	have := map[string]bool{}
	for _, s := range samples {
		have[s.dialect] = true
	}
	for _, d := range Dialects() {
		if !have[d.Name] {
			t.Errorf("dialect %s has no file in testdata", d.Name)
		}
	}
}

// TestOneDialectClaims keeps a log from being taken for another: of all
// dialects but one, none is as sure of a sample.
func TestOneDialectClaims(t *testing.T) {
	for _, tt := range samples {
		if tt.dialect == "mapping" || tt.o.Format != "" {
			continue
		}
		im, _, _, err := run(t, &tt.o, tt.file)
		if err != nil {
			t.Errorf("%s: %v", tt.file, err)
			continue
		}
		if im.Dialect().Name != tt.dialect {
			t.Errorf("%s is taken for %s", tt.file, im.Dialect().Name)
		}
	}
}

func readAll(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.TrimRight(b, "\n")
}
