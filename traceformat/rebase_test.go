package traceformat

import (
	"path/filepath"
	"testing"
	"time"
)

// A recording whose first request came in late starts at that request.
func TestRebase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.parquet")
	start := time.Unix(1_800_000_000, 0).UTC()
	h := &Header{Start: start, Clock: Clock{Steps: []ClockStep{{At: 2 * time.Hour, By: time.Second}}}}
	j, err := CreateJournal(JournalPath(path), h)
	if err != nil {
		t.Fatal(err)
	}
	for i, at := range []time.Duration{3 * time.Hour, time.Hour, 2 * time.Hour} {
		row := &Row{Request: Request{ID: int64(i), Arrival: at, PrefixBlocks: []uint64{uint64(i)}}}
		if err := j.Append(row); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Seal(JournalPath(path), path, Rebase()); err != nil {
		t.Fatal(err)
	}
	r, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got := r.Header(); !got.Start.Equal(start.Add(time.Hour)) || got.Clock.Steps[0].At != time.Hour {
		t.Errorf("start %v, steps %v; want both an hour on", got.Start, got.Clock.Steps)
	}
	want := []struct {
		id int64
		at time.Duration
	}{{1, 0}, {2, time.Hour}, {0, 2 * time.Hour}}
	i := 0
	for row, err := range r.All() {
		if err != nil {
			t.Fatal(err)
		}
		if row.ID != want[i].id || row.Arrival != want[i].at || row.PrefixBlocks[0] != uint64(row.ID) {
			t.Errorf("row %d: id %d at %v, blocks %v; want %+v", i, row.ID, row.Arrival, row.PrefixBlocks, want[i])
		}
		i++
	}
	if i != len(want) {
		t.Errorf("%d rows, want %d", i, len(want))
	}
}

// Blocks of message content need not tile the prompt.
func TestValidateContentBlocks(t *testing.T) {
	row := Row{Request: Request{PromptTokens: Some[int32](100), PrefixBlocks: []uint64{1}}}
	for of, want := range map[string]int{"": 1, BlocksOfContent: 0} {
		h := Header{Sorted: true, Blocks: Blocks{Size: 16, Partial: PartialDropped, Of: of, Bytes: 64}}
		n := 0
		for v := range Validate(&memory{header: h, rows: []Row{row}}) {
			if !v.Note {
				n++
			}
		}
		if n != want {
			t.Errorf("blocks of %q: %d violations, want %d", of, n, want)
		}
	}
}
