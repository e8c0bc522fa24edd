package report

import (
	"path/filepath"
	"testing"
	"time"

	"reprise/traceformat"
)

// Under --loop a session comes again in each lap, as another one: the laps are
// not one block of time.
func TestSessionsOfLapsAreBlocksOfTheirOwn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trace.parquet")
	w, err := traceformat.Create(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for lap := range 4 {
		for i := range 100 {
			r := &traceformat.Row{}
			r.ID, r.Lap, r.Arrival = int64(i), int32(lap), time.Duration(lap*100+i)*time.Second
			r.Session = traceformat.Some(int64(i / 10))
			r.Scheduled, r.Sent = traceformat.Some(r.Arrival), traceformat.Some(r.Arrival)
			r.TTFT, r.E2E = traceformat.Some(time.Millisecond), traceformat.Some(time.Millisecond)
			r.Result, r.FinishReason = traceformat.ResultOK, "stop"
			if err := w.Write(r); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	a, err := openRun(path, Config{})
	if err != nil {
		t.Fatal(err)
	}
	j, err := readDuel(t.Context(), a, a, true, [2]*profiler{})
	if err != nil {
		t.Fatal(err)
	}
	pieces := map[int8]bool{}
	for _, p := range j.pairs {
		pieces[p.piece] = true
	}
	if len(j.pairs) != 400 || len(pieces) != 40 {
		t.Errorf("%d pairs in %d pieces, want 400 in 40", len(j.pairs), len(pieces))
	}
}
