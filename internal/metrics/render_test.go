package metrics

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"reprise/traceformat"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// long is a run of n requests, ten a second, whose TTFT climbs from 40 to 400 ms
// and back twice; every 97th fails.
func long(n int) []*traceformat.Row {
	var rows []*traceformat.Row
	for i := range n {
		at := time.Duration(i) * 100 * ms1
		climb := i % (n/2 + 1)
		climb = min(climb, n/2-climb)
		first := 40*ms1 + 360*ms1*time.Duration(climb)/time.Duration(n/4)
		var events []event
		for k := range 64 {
			events = append(events, event{first + time.Duration(k*20+i*k%7)*ms1, int32(1 + (i+k)%2)})
		}
		r := late(sent(at, events...), time.Duration(20+i*13%90)*time.Microsecond, time.Duration(1+i%3)*time.Microsecond, time.Duration(8+i%11)*time.Microsecond)
		r.ServedCachedTokens = traceformat.Some(int32(i % 60))
		r.ConnReused.V = i%50 != 0
		if i%97 == 96 {
			failed(r, traceformat.ResultServerError, "connection_reset")
		}
		rows = append(rows, r)
	}
	return rows
}

func TestRenderText(t *testing.T) {
	slos := []SLO{{MetricTTFT, 250 * ms1}, {MetricTPOT, 50 * ms1}, {MetricE2E, 10 * s1}}
	tests := []struct {
		name  string
		s     *Summary
		width int
		color bool
	}{
		{"valid", collect(Config{From: 2 * s1, SLOs: slos, TokenIDs: true}, long(1200)...), 80, false},
		{"valid-wide", collect(Config{From: 2 * s1, SLOs: slos, TokenIDs: true}, long(1200)...), 120, false},
		{"narrow", collect(Config{From: 2 * s1, SLOs: slos, TokenIDs: true}, long(1200)...), 20, false},
		{"invalid", collect(Config{From: s1, To: 5 * s1, SLOs: slos, TokenIDs: true, Planned: 9}, handRun()...), 80, false},
		{"color", collect(Config{From: s1, To: 5 * s1, TokenIDs: true}, handRun()...), 80, true},
		{"capture", collect(Config{}, &traceformat.Row{
			Request: traceformat.Request{PromptTokens: traceformat.Some(int32(1000)), OutputTokens: traceformat.Some(int32(5))},
			Outcome: traceformat.Outcome{Result: traceformat.ResultOK, TTFT: known(100 * ms1), E2E: known(500 * ms1)},
		}, &traceformat.Row{Request: traceformat.Request{Arrival: s1}, Outcome: traceformat.Outcome{Result: traceformat.ResultRejected, Error: "http_429"}}), 80, false},
		{"empty", collect(Config{}), 80, false},
	}
	ansi := regexp.MustCompile("\x1b\\[[0-9;]*m")
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			if err := RenderText(&b, tt.s, tt.width, tt.color); err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", tt.name+".txt")
			if *update {
				if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if b.String() != string(want) {
				t.Errorf("%s (rewrite it with -update) is:\n%s\nwant:\n%s", file, b.String(), want)
			}
			for line := range strings.Lines(b.String()) {
				line = ansi.ReplaceAllString(strings.TrimSuffix(line, "\n"), "")
				if n := utf8.RuneCountInString(line); n > max(tt.width, minWidth) {
					t.Errorf("%d columns, want at most %d: %s", n, tt.width, line)
				}
				if line != strings.TrimRight(line, " ") {
					t.Errorf("space at the end of %q", line)
				}
			}
		})
	}
}

func TestRenderFigures(t *testing.T) {
	var b bytes.Buffer
	err := RenderFigures(&b, "vllm", []Figure{{"completed", "", 12}, {"duration", "s", 60}, {"mean_ttft_ms", "ms", 51.2345}})
	const want = "by the formulas of vllm:\n  completed               12\n  duration             60.00 s\n  mean_ttft_ms         51.23 ms\n"
	if err != nil || b.String() != want {
		t.Errorf("RenderFigures = %v:\n%s\nwant:\n%s", err, b.String(), want)
	}
}

// A terminal that goes away is the caller's to know.
func TestRenderTextReportsErrors(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "x"))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := RenderText(f, collect(Config{}), 80, false); err == nil {
		t.Error("RenderText to a closed file: nil")
	}
}

// Snapshots while rows are added: the race detector watches.
func TestLiveIsConcurrent(t *testing.T) {
	l := NewLive()
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			last := int64(0)
			for now := time.Duration(0); ; now += ms1 {
				select {
				case <-done:
					return
				default:
				}
				f := l.Snapshot(now, 0)
				if f.Done < last {
					t.Errorf("done went back from %d to %d", last, f.Done)
				}
				last = f.Done
			}
		})
	}
	r := sent(0, event{ms1, 1})
	for range 2000 {
		l.Add(r)
	}
	close(done)
	wg.Wait()
	if f := l.Snapshot(0, 0); f.Done != 2000 {
		t.Errorf("done = %d, want 2000", f.Done)
	}
}
