package main

import (
	"path/filepath"
	"testing"
	"time"

	"reprise/replay"
	"reprise/traceformat"
)

// A static batch is sent together, awaited together, and the next one follows;
// as one request or, where prompts are text, as several; and in virtual time.
func TestBatches(t *testing.T) {
	t.Parallel()
	padding := map[string]int64{}
	for name, tt := range map[string]struct {
		args []string
		one  int64
	}{
		"one request": {nil, 4},
		"text":        {[]string{"--chat"}, 0},
		"two a time":  {[]string{"--concurrency", "2"}, 4},
		"virtual":     {[]string{"--virtual"}, 4},
	} {
		dir := filepath.Join(t.TempDir(), "out")
		args := append([]string{"--synthetic", "rate=20,prompt-tokens=fixed:64,output-tokens=lognormal:16,0.8", "--duration", "10s", "--limit", "14", "--batch", "4", "-o", dir}, tt.args...)
		if tt.args == nil || tt.args[0] != "--virtual" {
			args = append(args, "--max-send-error", "10s")
		}
		_, stderr, status := replayCommand(t, args...)
		if status != 0 {
			t.Fatalf("%s: exit status %d\n%s", name, status, stderr)
		}
		m, err := replay.ReadManifest(dir)
		if err != nil {
			t.Fatal(err)
		}
		b := m.Stats.Batch
		if b == nil || b.Size != 4 || b.Batches != 4 || b.OneRequest != tt.one || (tt.one > 0) != (b.PaddingTokens > 0) {
			t.Errorf("%s: batches %+v", name, b)
		}
		padding[name] = b.PaddingTokens
		rows := readRows(t, dir)
		if len(rows) != 14 {
			t.Fatalf("%s: %d rows", name, len(rows))
		}
		groups := map[time.Duration][]*traceformat.Row{} // by when they were due
		for _, r := range rows {
			if r.Result != traceformat.ResultOK || r.ServedOutputTokens.V != r.OutputTokens.V || r.ServedPromptTokens.V != r.PromptTokens.V {
				t.Errorf("%s: row %d: %s %s, served %d of %d tokens", name, r.ID, r.Result, r.Error, r.ServedOutputTokens.V, r.OutputTokens.V)
			}
			if len(r.ChunkTimes) == 0 || !r.TTFT.OK || r.E2E.V > r.Close.V-r.Sent.V {
				t.Errorf("%s: row %d: TTFT %v, E2E %v, closed %v after the send", name, r.ID, r.TTFT, r.E2E, r.Close.V-r.Sent.V)
			}
			groups[r.Scheduled.V] = append(groups[r.Scheduled.V], r)
		}
		if tt.args != nil && tt.args[0] == "--concurrency" {
			if m.Stats.Peak < 8 {
				t.Errorf("%s: %d in flight at most", name, m.Stats.Peak)
			}
			continue
		}
		if len(groups) != 4 {
			t.Errorf("%s: %d batches", name, len(groups))
		}
		for due, g := range groups {
			var end time.Duration
			for _, r := range g {
				end = max(end, r.Close.V)
				if tt.one > 0 && (r.Close.V != g[0].Close.V || r.Sent.V != g[0].Sent.V) {
					t.Errorf("%s: row %d: sent %v, closed %v, another of its batch %v, %v", name, r.ID, r.Sent.V, r.Close.V, g[0].Sent.V, g[0].Close.V)
				}
			}
			for other := range groups {
				if other > due && other < end {
					t.Errorf("%s: the batch of %v ended at %v, and the next was due at %v", name, due, end, other)
				}
			}
		}
	}
	if padding["virtual"] != padding["one request"] {
		t.Errorf("%d padding tokens in virtual time, %d against the server", padding["virtual"], padding["one request"])
	}
}

func TestBatchUsage(t *testing.T) {
	for _, args := range [][]string{{"--speedup", "2"}, {"--sessions", "think"}, {"--retries", "1"}, {"--arrival", "poisson", "--rate", "3"}} {
		if _, stderr, status := replayCommand(t, append([]string{"../../testdata/demo.parquet", "--batch", "4", "-o", t.TempDir()}, args...)...); status != 2 {
			t.Errorf("%v: exit status %d\n%s", args, status, stderr)
		}
	}
}
