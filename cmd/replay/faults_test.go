package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"reprise/backends/sim"
	"reprise/replay"
	"reprise/traceformat"
)

// Whatever the engine does, the run goes on, every request that was due has a
// row, failures are counted by class, and the summary says so.
func TestFaults(t *testing.T) {
	tests := []struct {
		name  string
		fault sim.Fault
		ends  string // outcome and error class of the requests that met it
		more  []string
	}{
		{"stalls", sim.Fault{Kind: "stall", After: 3, Every: 5}, "timeout idle_timeout", nil},
		{"never answers", sim.Fault{Kind: "stall", Every: 5}, "timeout first_token_timeout", nil},
		{"closes in mid-stream", sim.Fault{Kind: "die", After: 3, Every: 5}, "server_error truncated", nil},
		{"cuts a chunk", sim.Fault{Kind: "truncate", After: 3, Every: 5}, "server_error truncated", nil},
		{"sends an error event and [DONE]", sim.Fault{Kind: "error-event", After: 3, Every: 5}, "server_error error_event/engine_dead", nil},
		{"splits a character", sim.Fault{Kind: "half-utf8", After: 3, Every: 5}, "ok ", nil},
		{"answers 400", sim.Fault{Kind: "status", Status: 400, Every: 5}, "rejected http_400", nil},
		{"answers 429", sim.Fault{Kind: "status", Status: 429, Every: 5}, "rejected http_429/overloaded", nil},
		{"answers 503", sim.Fault{Kind: "status", Status: 503, Every: 5}, "server_error http_503/overloaded", nil},
		// From the tenth request on, nothing listens.
		{"exits", sim.Fault{Kind: "exit", After: 2, Every: 10}, "server_error ", []string{"server_error truncated", "server_error connection_reset", "server_error connect_refused"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, err := sim.Start(t.Context(), sim.Options{Faults: []sim.Fault{tt.fault}})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Stop()
			dir := filepath.Join(t.TempDir(), "run")
			stdout, stderr, status := replayCommand(t, "../../testdata/demo.parquet", "--limit", "60",
				"--backend", "sim", "--url", p.URL, "--idle-timeout", "1s", "--first-token-timeout", "2s", "-o", dir)
			if status != 0 && status != 3 {
				t.Fatalf("exit status %d\n%s\n%s", status, stdout, stderr)
			}
			rows := readRows(t, dir)
			if len(rows) != 60 {
				t.Fatalf("%d rows, want 60", len(rows))
			}
			met := 0
			for _, r := range rows {
				end := r.Result + " " + r.Error
				switch {
				case tt.fault.Every == 5 && tt.ends == end:
					met++
				case end == "ok " && r.ServedOutputTokens.V == r.OutputTokens.V:
				case slices.Contains(tt.more, end):
					met++
				default:
					t.Errorf("request %d ended with %q, %d of %d tokens; want ok or %q", r.ID, end, r.ServedOutputTokens.V, r.OutputTokens.V, tt.ends)
				}
			}
			if tt.fault.Every == 5 && met < 12 || met == 0 {
				t.Errorf("%d of 60 requests met the fault, want at least 12 of every fifth", met)
			}
			if tt.ends != "ok " && !strings.Contains(stdout, "failed") {
				t.Errorf("the summary does not speak of failures:\n%s", stdout)
			}
		})
	}
}

// A retry happens only when asked for, and is counted.
func TestRetriesAreCounted(t *testing.T) {
	p, err := sim.Start(t.Context(), sim.Options{Faults: []sim.Fault{{Kind: "status", Status: 429, Every: 4}}})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	dir := filepath.Join(t.TempDir(), "run")
	stdout, stderr, status := replayCommand(t, "../../testdata/demo.parquet", "--limit", "40", "--backend", "sim", "--url", p.URL, "--retries", "9", "-o", dir, "--json")
	if status != 0 && status != 3 {
		t.Fatalf("exit status %d\n%s", status, stderr)
	}
	retried := 0
	for _, r := range readRows(t, dir) {
		if r.Result != traceformat.ResultOK {
			t.Errorf("request %d: %s %s, want it to succeed in the end", r.ID, r.Result, r.Error)
		}
		if strings.Contains(r.Extra, `"retries":`) {
			retried++
			// The latency is the user's: the failed attempt and the pause count.
			if r.TTFT.V < 100*time.Millisecond {
				t.Errorf("request %d was sent twice and has a TTFT of %v", r.ID, r.TTFT.V)
			}
		}
	}
	if retried < 5 || !strings.Contains(stdout, fmt.Sprintf(`"retries": %d`, retriesOf(t, dir))) {
		t.Errorf("%d requests were retried, want at least 5, and the manifest to count them", retried)
	}
}

func retriesOf(t *testing.T, dir string) int64 {
	m, err := replay.ReadManifest(dir)
	if err != nil {
		t.Fatal(err)
	}
	return m.Stats.Retries
}
