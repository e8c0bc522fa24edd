package objectstore

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"reprise/internal/cli"
	"reprise/internal/traceout"
	"reprise/traceformat"
)

// fill writes files of a folder, each with its name in it.
func fill(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(name), 0o666); err != nil {
			t.Fatal(err)
		}
	}
}

// testFolders sends folders to an empty bucket called traces and fetches them.
func testFolders(t *testing.T) {
	ctx, store := t.Context(), Store{}
	traceout.RegisterStore(store)
	t.Cleanup(func() { traceout.RegisterStore(nil) })
	dir := t.TempDir()
	run := filepath.Join(dir, "run")
	fill(t, run, "run.json", "trace.parquet", "latency.hlog", "runs/1/run.json", "runs/1/trace.parquet", ".x.tmp")

	// A run that goes up half way is none, is refused to nobody, and goes on.
	stop, full := errors.New("stop"), errors.New("full")
	var sent []string
	err := traceout.SendFolder(ctx, store, run, "s3://traces/runs/a", false, func(_ bool, _, name string) error {
		if sent = append(sent, name); len(sent) == 3 {
			return stop
		}
		return nil
	})
	if !errors.Is(err, stop) {
		t.Fatalf("SendFolder = %v", err)
	}
	if runs, err := traceout.FindRuns(ctx, store, "s3://traces/runs/a"); err != nil || len(runs) > 0 {
		t.Errorf("a half run is found as %q, %v", runs, err)
	}
	if err := traceout.CheckFolder(ctx, "s3://traces/runs/a"); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("CheckFolder of it = %v", err)
	}
	sent = nil
	var there int
	if err := traceout.SendFolder(ctx, store, run, "s3://traces/runs/a", false, func(was bool, _, name string) error {
		if was {
			there++
		}
		sent = append(sent, strings.TrimPrefix(name, "s3://traces/runs/a/"))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"latency.hlog", "runs/1/trace.parquet", "trace.parquet", "runs/1/run.json", "run.json"}; there != 3 || !slices.Equal(sent, want) {
		t.Errorf("sent %q, %d were there, want %q and 3", sent, there, want)
	}
	if err := traceout.PublishFolder(ctx, run, "s3://traces/runs/b"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(run); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an uploaded run stays: %v", err)
	}
	for name, want := range map[string][]string{
		"s3://traces/runs/*": {"s3://traces/runs/a", "s3://traces/runs/b"}, "s3://traces/runs/[b-z]/": {"s3://traces/runs/b"},
		"s3://traces/*/*/runs/*": {"s3://traces/runs/a/runs/1", "s3://traces/runs/b/runs/1"}, "s3://traces/runs/c*": nil, "s3://traces/runs/b/": {"s3://traces/runs/b/"},
	} {
		if got, err := traceout.FindRuns(ctx, store, name); err != nil || !slices.Equal(got, want) {
			t.Errorf("FindRuns(%s) = %q, %v, want %q", name, got, err, want)
		}
	}
	quiet := func(string, string) error { return nil }
	back := filepath.Join(dir, "back")
	if err := traceout.FetchFolder(ctx, store, "s3://traces/runs/b", back, false, quiet); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(back, "runs", "1", "run.json")); err != nil || string(b) != "runs/1/run.json" {
		t.Errorf("what came back is %q, %v", b, err)
	}
	// One that changes while it is fetched is no copy of anything.
	err = traceout.FetchFolder(ctx, store, "s3://traces/runs/b", filepath.Join(dir, "moved"), false, func(name, _ string) error {
		if strings.HasSuffix(name, "/latency.hlog") {
			_, err := store.Upload(ctx, filepath.Join(back, "run.json"), "s3://traces/runs/b/new", false)
			return err
		}
		return nil
	})
	if err == nil || !strings.Contains(err.Error(), "changed while") {
		t.Errorf("a run that changes = %v", err)
	}

	// A dataset has a mark for as long as it is not whole.
	set := filepath.Join(dir, "set")
	write(t, filepath.Join(set, "hour=00001", "part-0.parquet"), nil, makeRows(5))
	write(t, filepath.Join(set, "hour=00002", "part-0.parquet"), nil, makeRows(7))
	if err := traceout.SendFolder(ctx, store, set, "s3://traces/set", false, func(bool, string, string) error { return full }); !errors.Is(err, full) {
		t.Fatal(err)
	}
	if _, err := read(t, "s3://traces/set", &traceformat.OpenOptions{}); !errors.Is(err, traceformat.ErrUnfinished) {
		t.Errorf("a half dataset = %v, want %v", err, traceformat.ErrUnfinished)
	}
	if err := traceout.FetchFolder(ctx, store, "s3://traces/set", filepath.Join(dir, "half"), false, quiet); !errors.Is(err, traceformat.ErrUnfinished) {
		t.Errorf("fetching a half dataset = %v", err)
	}
	said := func(bool, string, string) error { return nil }
	if err := traceout.SendFolder(ctx, store, set, "s3://traces/set", false, said); err != nil {
		t.Fatal(err)
	}
	// Another is refused, and leaves that one as it was.
	write(t, filepath.Join(set, "hour=00001", "part-0.parquet"), nil, makeRows(6))
	if err := traceout.SendFolder(ctx, store, set, "s3://traces/set", false, said); !errors.Is(err, fs.ErrExist) {
		t.Errorf("another dataset = %v, want %v", err, fs.ErrExist)
	}
	if rows, err := read(t, "s3://traces/set", &traceformat.OpenOptions{Columns: []string{"arrival_ns"}}); err != nil || len(rows) != 12 {
		t.Errorf("the dataset has %d rows, %v, want 12", len(rows), err)
	}
	var e *cli.Error
	if err := traceout.PublishFolder(ctx, set, "s3://traces/set"); !errors.As(err, &e) || e.Code != cli.Failed || !strings.Contains(e.Hint, "trace cp "+set+" 's3://traces/set'") {
		t.Errorf("PublishFolder = %v, want the command that goes on", err)
	}
	if _, err := os.Stat(set); err != nil {
		t.Errorf("what was not uploaded is gone: %v", err)
	}
}

func TestFolders(t *testing.T) {
	folderBucket(t, t.TempDir())
	testFolders(t)
}
