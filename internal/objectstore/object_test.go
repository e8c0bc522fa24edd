package objectstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"gocloud.dev/blob"
	"gocloud.dev/blob/fileblob"

	"reprise/traceformat"
)

// folderBucket makes every bucket the folder dir, and counts ranges read.
func folderBucket(t *testing.T, dir string) *atomic.Int64 {
	t.Helper()
	reads := new(atomic.Int64)
	oldOpen, oldPins, oldPause := openBucket, pins, firstPause
	t.Cleanup(func() { openBucket, pins, firstPause = oldOpen, oldPins, oldPause })
	openBucket = func(context.Context, *name) (*blob.Bucket, error) { return fileblob.OpenBucket(dir, nil) }
	pins = []func(*blob.Attributes, func(any) bool) bool{func(*blob.Attributes, func(any) bool) bool { reads.Add(1); return true }}
	firstPause = time.Millisecond
	return reads
}

// makeRows are rows of which a group takes megabytes.
func makeRows(n int) []traceformat.Row {
	rng := rand.New(rand.NewPCG(1, 2))
	rows := make([]traceformat.Row, n)
	for i := range rows {
		r := &rows[i]
		r.ID, r.Arrival = int64(i), time.Duration(i)*time.Millisecond
		r.PromptTokens, r.OutputTokens = traceformat.Some(rng.Int32N(4000)), traceformat.Some(rng.Int32N(400))
		for range 4 {
			r.PrefixBlocks = append(r.PrefixBlocks, rng.Uint64())
		}
		r.TTFT = traceformat.Some(time.Duration(rng.Int64N(1e9)))
	}
	return rows
}

func write(t *testing.T, path string, h *traceformat.Header, rows []traceformat.Row) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	w, err := traceformat.Create(path, h, traceformat.Overwrite())
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
}

func read(t *testing.T, name string, o *traceformat.OpenOptions) ([]traceformat.Row, error) {
	t.Helper()
	r, err := Open(name, o)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var rows []traceformat.Row
	for row, err := range r.All() {
		if err != nil {
			return rows, err
		}
		rows = append(rows, *row.Clone())
	}
	return rows, nil
}

// Two columns of a row group are at most two requests, all of them few more, and
// opening is two.
func TestRangesAreCoalesced(t *testing.T) {
	dir := t.TempDir()
	want := makeRows(140_000) // two row groups
	write(t, filepath.Join(dir, "t.parquet"), nil, want)
	reads := folderBucket(t, dir)
	for _, c := range []struct {
		columns []string
		most    int64
	}{
		{[]string{"arrival_ns", "prompt_tokens"}, 2 + 2},
		{[]string{"arrival_ns", "ttft_ns"}, 2 + 2*2}, // the blocks lie between
		{nil, 2 + 2*2},
	} {
		reads.Store(0)
		got, err := read(t, "s3://b/t.parquet", &traceformat.OpenOptions{Columns: c.columns})
		if err != nil {
			t.Fatal(err)
		}
		if n := reads.Load(); n > c.most {
			t.Errorf("columns %v: %d requests, want at most %d", c.columns, n, c.most)
		}
		if c.columns == nil {
			if diff := cmp.Diff(want[:1000], got[:1000]); diff != "" || len(got) != len(want) {
				t.Errorf("%d rows, want %d:\n%s", len(got), len(want), diff)
			}
		}
	}
}

// An object that is replaced between two ranges is an error, not a mix.
func TestObjectThatChanges(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "t.parquet")
	write(t, path, nil, makeRows(140_000))
	folderBucket(t, dir)
	r, err := Open("s3://b/t.parquet", &traceformat.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	write(t, path, nil, makeRows(130_000))
	var last error
	for _, err := range r.All() {
		last = err
	}
	if !errors.Is(last, ErrChanged) || !strings.Contains(last.Error(), "s3://b/t.parquet") {
		t.Errorf("reading on = %v, want %v with the name", last, ErrChanged)
	}
}

// Folders, run directories and patterns are found as they are on disk.
func TestNamesInABucket(t *testing.T) {
	dir := t.TempDir()
	rows := makeRows(30)
	for i := range 3 {
		write(t, filepath.Join(dir, "set", fmt.Sprintf("hour=%05d", i), "part-0.parquet"), nil, rows[i*10:i*10+10])
	}
	write(t, filepath.Join(dir, "set", "_tmp", "x.parquet"), nil, rows)
	write(t, filepath.Join(dir, "run", traceformat.RunTrace), nil, rows[:5])
	write(t, filepath.Join(dir, "a", "1.parquet"), nil, rows[:7])
	if err := os.WriteFile(filepath.Join(dir, "m.csv"), []byte("TIMESTAMP,ContextTokens,GeneratedTokens\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	folderBucket(t, dir)
	for name, want := range map[string]int{
		"s3://b/set": 30, "gs://b/set/": 30, "s3://b/set/*/part-*.parquet": 30, "s3://b/set/hour=0000[12]/*.parquet": 20,
		"azblob://b/run": 5, "s3://b/a/1.parquet": 7, "s3://b/*/1.parquet": 7, "s3://b/set?region=x": 30,
	} {
		if got, err := read(t, name, &traceformat.OpenOptions{}); err != nil || len(got) != want {
			t.Errorf("%s: %d rows, %v, want %d", name, len(got), err, want)
		}
	}
	for _, name := range []string{"s3://b/none", "s3://b/none-*", "s3://b/a/2.parquet"} {
		if _, err := read(t, name, &traceformat.OpenOptions{}); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, want %v", name, err, fs.ErrNotExist)
		}
	}
	if _, err := read(t, "s3:///x", &traceformat.OpenOptions{}); err == nil || !strings.Contains(err.Error(), "no bucket") {
		t.Errorf("without a bucket: %v", err)
	}
}

// What fails for a moment is asked again; what lasts is explained at once.
func TestRetry(t *testing.T) {
	folderBucket(t, t.TempDir())
	n := &name{}
	calls := 0
	err := n.retry(t.Context(), func(context.Context) error {
		if calls++; calls < 4 {
			return errors.New("503 Slow Down")
		}
		return nil
	})
	if err != nil || calls != 4 {
		t.Errorf("%d calls, %v, want success at the fourth", calls, err)
	}
	calls = 0
	err = n.retry(t.Context(), func(context.Context) error { calls++; return errors.New("503 Slow Down") })
	if calls != attempts || err == nil || !strings.Contains(err.Error(), "503 Slow Down") {
		t.Errorf("%d calls, %v, want %d and the reason", calls, err, attempts)
	}
	for text, want := range map[string]error{
		"api error ExpiredToken: The provided token has expired.": ErrCredentials,
		"api error InvalidAccessKeyId: unknown":                   ErrCredentials,
		"get identity: get credentials: no EC2 IMDS role found":   ErrCredentials,
		"api error NoSuchBucket: no":                              fs.ErrNotExist,
	} {
		calls = 0
		if err := n.retry(t.Context(), func(context.Context) error { calls++; return errors.New(text) }); !errors.Is(err, want) || calls != 1 {
			t.Errorf("%s: %d calls, %v, want one and %v", text, calls, err, want)
		}
	}
}
