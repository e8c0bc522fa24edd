package main

import (
	"path/filepath"
	"testing"
	"time"
)

// A run is a trace: played again, it asks for the same, in the same words, at
// the same times, and the embedded engine finds as much of it in its cache.
func TestReplayOfAReplay(t *testing.T) {
	dir := t.TempDir()
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	a := playInto(t, first, "../../testdata/demo.parquet", "--duration", "10s", "--speedup", "10")
	b := playInto(t, second, first)
	if len(a) < 50 || len(a) != len(b) {
		t.Fatalf("%d rows, then %d", len(a), len(b))
	}
	cached := 0
	for i, r := range a {
		s := b[i]
		// Times are scaled once, to the nanosecond; the second run begins with the
		// first one's first request.
		if d := (s.Scheduled.V - b[0].Scheduled.V) - (r.Scheduled.V - a[0].Scheduled.V); d < -time.Nanosecond || d > time.Nanosecond {
			t.Errorf("row %d was due at %v, then at %v", r.ID, r.Scheduled.V, s.Scheduled.V)
		}
		if r.ID != s.ID || r.PromptDigest != s.PromptDigest || !r.PromptDigest.OK {
			t.Errorf("row %d sent the prompt %x, row %d of the second run %x", r.ID, r.PromptDigest.V, s.ID, s.PromptDigest.V)
		}
		if r.ServedPromptTokens != s.ServedPromptTokens || r.ServedOutputTokens != s.ServedOutputTokens {
			t.Errorf("row %d: %v and %v tokens served, then %v and %v", r.ID, r.ServedPromptTokens.V, r.ServedOutputTokens.V, s.ServedPromptTokens.V, s.ServedOutputTokens.V)
		}
		if r.Session != s.Session || r.Turn != s.Turn || r.Parent != s.Parent || r.Client != s.Client {
			t.Errorf("row %d: another session, turn, parent or client", r.ID)
		}
		if r.ServedCachedTokens.V > 0 {
			cached++
		}
	}
	if cached == 0 {
		t.Error("the engine found nothing in its cache, so that sharing was not tested")
	}
}
