package traceformat

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/parquet-go/parquet-go"
)

var day = time.Date(2026, 1, 1, 0, 30, 0, 0, time.UTC)

// spread are n rows over span, in order.
func spread(seed uint64, n int, span time.Duration) []Row {
	rows := mixed(seed, n)
	for i := range rows {
		rows[i].Arrival = span * time.Duration(i) / time.Duration(n)
		rows[i].Origin, rows[i].OriginID = "", Opt[int64]{}
	}
	return rows
}

func openRows(t *testing.T, name string, opts ...ReadOption) (*Header, []Row) {
	t.Helper()
	r, err := Open(name, opts...)
	if err != nil {
		t.Fatal(err)
	}
	rows := rowsOf(t, r)
	return r.Header(), rows
}

// partition writes rows as a dataset.
func partition(t *testing.T, dir string, h *Header, rows []Row, by Partition) *DatasetWriter {
	t.Helper()
	w, err := CreateDataset(dir, h, by)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	for i := range rows {
		if err := w.Write(&rows[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return w
}

// A dataset reads as the trace that it was written from, by folder and by
// pattern, with a decoding goroutine and without.
func TestDatasetRoundTrip(t *testing.T) {
	for _, start := range []time.Time{day, {}} {
		dir := filepath.Join(t.TempDir(), "day")
		h := &Header{Start: start, Tokenizer: "llama", Blocks: Blocks{Size: 16, Scheme: "sequence"}, Origin: Origin{Program: "test", Version: "1"},
			Clock: Clock{Steps: []ClockStep{{At: 90 * time.Minute, By: -time.Second}}},
			Rows:  Counts{Dropped: map[string]int64{"full": 7}}, Extra: map[string]string{"note": "kept"}}
		want := spread(30, 3000, 5*time.Hour)
		w := partition(t, dir, h, want, Partitions[0])
		folders := folder(t, dir)
		first := "hour=2026-01-01T00"
		if start.IsZero() {
			first = "hour=00000"
		}
		if folders[0] != first || len(folders) != w.Files() {
			t.Errorf("%d files in %q, want the first to be %s", w.Files(), folders, first)
		}
		for _, name := range []string{dir, filepath.Join(dir, "hour=*"), filepath.Join(dir, "*", "part-?.parquet")} {
			got, rows := openRows(t, name, Ahead())
			if diff := cmp.Diff(want, rows); diff != "" {
				t.Fatalf("%s: rows changed:\n%s", name, diff)
			}
			if !got.Start.Equal(start) || got.Tokenizer != "llama" || got.Blocks != h.Blocks || got.Origin != h.Origin || !got.Sorted ||
				got.Rows.Seen != 3007 || got.Rows.Recorded != 3000 || got.Rows.Dropped["full"] != 7 ||
				!slices.Equal(got.Clock.Steps, h.Clock.Steps) || !cmp.Equal(got.Extra, h.Extra) {
				t.Errorf("%s: header became %+v", name, got)
			}
		}
		r, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		for v := range Validate(r) {
			if v.Rule == "sorted" || v.Rule == "unique" || v.Rule == "header" || v.Rule == "readable" {
				t.Errorf("validate: %v", v)
			}
		}
	}
}

// Within leaves whole files unopened, and rows stay on the axis of the whole.
func TestDatasetWithin(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "day")
	want := spread(31, 500, 5*time.Hour)
	partition(t, dir, &Header{Start: day}, want, Partitions[0])
	// Files outside are not opened again: a damaged one is not noticed.
	last := filepath.Join(dir, "hour=2026-01-01T05", "part-0.parquet")
	r, err := Open(dir, Within(time.Hour, 2*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(last); err != nil {
		t.Fatal(err)
	}
	got := map[int64]bool{}
	for row, err := range r.All() {
		if err != nil {
			t.Fatal(err)
		}
		got[row.ID] = true
	}
	for _, row := range want {
		if in := row.Arrival >= time.Hour && row.Arrival < 2*time.Hour; in && !got[row.ID] {
			t.Errorf("row %d at %v is missing", row.ID, row.Arrival)
		}
	}
	if len(got) > 250 {
		t.Errorf("%d rows of 500 were read for one hour of five", len(got))
	}
}

// Files of one trace that overlap in time are merged and keep ids, files of
// different traces get new ones.
func TestDatasetIDs(t *testing.T) {
	dir := t.TempDir()
	all := spread(32, 900, time.Hour)
	var parts [3][]Row
	for i, r := range all { // ranges of ids overlap, no id occurs twice
		parts[i%3] = append(parts[i%3], r)
	}
	for i, rows := range parts {
		writeTrace(t, filepath.Join(dir, fmt.Sprintf("part-%d.parquet", i)), &Header{Start: day}, rows)
	}
	_, rows := openRows(t, dir)
	if diff := cmp.Diff(all, rows); diff != "" {
		t.Fatalf("rows changed:\n%s", diff)
	}

	// A second trace beside it, an hour later by the clock, with the same ids.
	other := spread(33, 300, time.Hour)
	writeTrace(t, filepath.Join(dir, "z.parquet"), &Header{Start: day.Add(30 * time.Minute)}, other)
	h, rows := openRows(t, filepath.Join(dir, "*.parquet"))
	if len(rows) != 1200 || !h.Start.Equal(day) || h.Rows.Recorded != 1200 {
		t.Fatalf("%d rows from %v, header counts %d", len(rows), h.Start, h.Rows.Recorded)
	}
	seen := map[int64]bool{}
	var fromZ []Row
	for i, r := range rows {
		if seen[r.ID] || i > 0 && rows[i-1].Compare(&r) >= 0 {
			t.Fatalf("row %d: id %d, arrival %v: repeated or out of order", i, r.ID, r.Arrival)
		}
		seen[r.ID] = true
		if r.Origin == "z.parquet" {
			fromZ = append(fromZ, r)
		}
	}
	if len(fromZ) != 300 || fromZ[7].OriginID != Some[int64](7) || fromZ[7].Arrival != other[7].Arrival+30*time.Minute {
		t.Errorf("%d rows of z, the eighth from id %v at %v", len(fromZ), fromZ[7].OriginID, fromZ[7].Arrival)
	}
}

// More files than are merged at a time, and files that are not sorted or have
// no footer of ours, are sorted.
func TestDatasetSorts(t *testing.T) {
	dir := t.TempDir()
	all := spread(34, 4000, time.Hour)
	const files = mergeFanIn + 8
	var parts [files][]Row
	for i, r := range all {
		parts[i%files] = append(parts[i%files], r)
	}
	for i, rows := range parts {
		if i == 3 {
			rows = shuffled(rows)
		}
		writeTrace(t, filepath.Join(dir, fmt.Sprintf("part-%03d.parquet", i)), nil, rows)
	}
	strip(t, filepath.Join(dir, "part-005.parquet"))
	temp := t.TempDir()
	_, rows := openRows(t, dir, TempDir(temp))
	if diff := cmp.Diff(all, rows); diff != "" {
		t.Fatalf("rows changed:\n%s", diff)
	}
	if left := folder(t, temp); len(left) > 0 {
		t.Errorf("left %q", left)
	}
}

// strip rewrites a trace without the key-values of this package, as another
// program would.
func strip(t *testing.T, path string) {
	t.Helper()
	src, pq, err := openParquet(path)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	f, err := os.Create(path + ".new")
	if err != nil {
		t.Fatal(err)
	}
	w := parquet.NewGenericWriter[any](f, pq.Schema())
	for _, g := range pq.RowGroups() {
		if _, err := w.WriteRowGroup(g); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), f.Close(), os.Rename(f.Name(), path)); err != nil {
		t.Fatal(err)
	}
}

// What is no one trace is refused, with the names of who differs.
func TestDatasetRefuses(t *testing.T) {
	rows := spread(35, 50, time.Minute)
	for name, c := range map[string]struct {
		a, b Header
		want string
	}{
		"tokenizer": {Header{Tokenizer: "llama"}, Header{Tokenizer: "qwen"}, "the tokenizer is llama in"},
		"blocks":    {Header{Blocks: Blocks{Size: 16}}, Header{Blocks: Blocks{Size: 512}}, "the block size is 16 in"},
		"key":       {Header{Keys: "aa"}, Header{Keys: "bb"}, "fingerprint of the key"},
		"start":     {Header{Start: day}, Header{}, "does not say when it started"},
		"lengths":   {Header{Lengths: LengthsCumulative}, Header{Lengths: LengthsIncremental}, "later turns"},
	} {
		dir := t.TempDir()
		a, b := filepath.Join(dir, "a.parquet"), filepath.Join(dir, "b.parquet")
		writeTrace(t, a, &c.a, rows)
		writeTrace(t, b, &c.b, rows)
		_, err := Open(dir)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), a) || !strings.Contains(err.Error(), b) {
			t.Errorf("%s: %v, want %q and both names", name, err, c.want)
		}
	}

	dir := filepath.Join(t.TempDir(), "d")
	partition(t, dir, &Header{Start: day}, spread(36, 500, 3*time.Hour), Partitions[0])
	part := filepath.Join(dir, "hour=2026-01-01T01", "part-0.parquet")
	data, err := os.ReadFile(part)
	if err != nil {
		t.Fatal(err)
	}
	again := filepath.Join(filepath.Dir(part), "copy.parquet")
	if err := os.WriteFile(again, data, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "the same part") {
		t.Errorf("with a part twice: %v", err)
	}
	if err := os.Remove(again); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(filepath.Join(dir, "nothing-*")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a pattern of nothing: %v", err)
	}
	if _, err := Open(t.TempDir()); !errors.Is(err, ErrDirectory) {
		t.Errorf("an empty folder: %v", err)
	}
	if _, err := CreateDataset(dir, &Header{}, Partitions[0]); !errors.Is(err, fs.ErrExist) {
		t.Errorf("over a folder: %v", err)
	}

	// A file that changes between the survey and its turn is named.
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	writeTrace(t, part, &Header{Start: day}, rows, Overwrite())
	var last error
	for _, err := range r.All() {
		last = err
	}
	if last == nil || !strings.Contains(last.Error(), part) || !strings.Contains(last.Error(), "changed") {
		t.Errorf("a file that changed: %v", last)
	}
}

// Decoding ahead ends with whoever reads, and finds the same damage.
func TestAhead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t.parquet")
	want := mixed(37, 20000)
	writeTrace(t, path, nil, want)
	if diff := cmp.Diff(want, readTrace(t, path, Ahead())); diff != "" {
		t.Fatalf("rows changed:\n%s", diff)
	}
	for _, stop := range []int{1, 255, 256, 257, 5000} {
		r, err := OpenFile(path, Ahead())
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for range r.All() {
			if n++; n == stop {
				break
			}
		}
		r.Close()
	}
}

// An abandoned dataset leaves nothing.
func TestDatasetAbort(t *testing.T) {
	dir := t.TempDir()
	w, err := CreateDataset(filepath.Join(dir, "d"), &Header{}, Partitions[1])
	if err != nil {
		t.Fatal(err)
	}
	rows := spread(38, 10, 50*time.Hour)
	for i := range rows {
		if err := w.Write(&rows[i]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Write(&rows[0]); !errors.Is(err, ErrUnsorted) {
		t.Errorf("a row that goes back = %v", err)
	}
	w.Abort()
	if left := folder(t, dir); len(left) > 0 {
		t.Errorf("left %q", left)
	}
}
