package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	"reprise/backends/sim"
	"reprise/internal/metrics"
	"reprise/replay"
	"reprise/report"
	"reprise/traceformat"
)

func TestMain(m *testing.M) {
	sim.MaybeServe()
	testscript.Main(withReplay{m}, map[string]func(){"report": main})
}

// replayBinary is the program that plays the shards.
var replayBinary string

// withReplay builds it before the tests, and removes it after them.
type withReplay struct{ m *testing.M }

func (w withReplay) Run() int {
	dir, err := os.MkdirTemp("", "reprise-report-test-*")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	replayBinary = filepath.Join(dir, "replay")
	if out, err := exec.Command("go", "build", "-o", replayBinary, "../replay").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
		return 1
	}
	return w.m.Run()
}

// trace writes a trace of n requests that is over in n/100 s and has short
// answers, to spare the time of a test.
func trace(t *testing.T, dir string, n int) string {
	t.Helper()
	path := filepath.Join(dir, "small.parquet")
	w, err := traceformat.Create(path, &traceformat.Header{Blocks: traceformat.Blocks{Size: 16, Partial: traceformat.PartialDropped}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		r := &traceformat.Row{}
		r.ID, r.Arrival = int64(i), time.Duration(i)*10*time.Millisecond
		r.Session = traceformat.Some(int64(i / 4))
		r.PromptTokens, r.OutputTokens = traceformat.Some(int32(40+i%7)), traceformat.Some(int32(1+i%11))
		r.PrefixBlocks = []uint64{uint64(i / 4), uint64(i)}
		if err := w.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestScripts(t *testing.T) {
	small, err := os.ReadFile(trace(t, t.TempDir(), 60))
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", filepath.Dir(replayBinary)+string(filepath.ListSeparator)+e.Getenv("PATH"))
			return os.WriteFile(e.WorkDir+"/small.parquet", small, 0o644)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"status": status},
	})
}

// status runs a command and checks its exit status, one of several with a bar
// between: status 0|3 report run/.
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status CODE COMMAND...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := "0"
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = fmt.Sprint(exit.ExitCode())
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if !slices.Contains(strings.Split(args[0], "|"), code) {
		ts.Fatalf("%v: exit status %s, want %s", args[1:], code, args[0])
	}
}

// play runs replay. Where the machine is busy a run may be invalid.
func play(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), replayBinary, append(args, "--quiet")...).CombinedOutput()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 3 {
		err = nil
	}
	if err != nil {
		t.Fatalf("replay %q: %v\n%s", args, err, out)
	}
}

func rows(t *testing.T, path string) (rows []*traceformat.Row) {
	t.Helper()
	r, err := traceformat.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for row, err := range r.All() {
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, row.Clone())
	}
	return rows
}

// Three processes play a shard each against one server, from one start: joined
// they are one run, with every request of the trace once, each prompt and each
// schedule as one process would have sent it.
func TestShardsAgainstOneServer(t *testing.T) {
	server, err := sim.Start(t.Context(), sim.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Stop()
	dir := t.TempDir()
	common := []string{trace(t, dir, 400), "--backend", "sim", "--url", server.URL, "--speedup", "2", "--slo", "ttft<500ms"}
	one := filepath.Join(dir, "one")
	play(t, append(common, "-o", one)...)

	at := time.Now().Add(4 * time.Second).Format(time.RFC3339Nano)
	var shards []string
	var playing sync.WaitGroup
	for i := range 3 {
		out := filepath.Join(dir, fmt.Sprintf("shard-%d", i))
		shards = append(shards, out)
		playing.Go(func() {
			play(t, append(common, "--shard", fmt.Sprintf("%d/3", i), "--start-at", at, "-o", out)...)
		})
	}
	playing.Wait()
	if t.Failed() {
		return
	}
	whole := filepath.Join(dir, "whole")
	m, err := report.Merge(t.Context(), report.MergeConfig{Shards: shards, Out: whole})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("offsets within %v; cluster %s, send error %v of limit %v", m.Merge.OffsetMax, m.Summary.Fidelity.Verdict, m.Summary.Fidelity.SendError.V, m.Summary.Fidelity.SendErrorLimit)

	want, got := rows(t, one), rows(t, whole)
	if len(want) != len(got) {
		t.Fatalf("%d rows, one run has %d", len(got), len(want))
	}
	for i := range want {
		w, g := want[i], got[i]
		if diff := cmp.Diff(w.Request, g.Request); diff != "" || w.Scheduled != g.Scheduled || w.PromptDigest != g.PromptDigest {
			t.Fatalf("request %d is not sent as by one process:\n%s", w.ID, diff)
		}
		if g.Result != traceformat.ResultOK {
			t.Errorf("request %d: %s %s", g.ID, g.Result, g.Error)
		}
	}

	// Its figures are those of its rows, and its latency log holds all of them.
	col := metrics.NewCollector(metrics.Config{From: m.Plan.Warmup, To: m.Plan.Span, TokenIDs: true, Planned: m.Plan.All, SLOs: []metrics.SLO{{Metric: "ttft", Below: 500 * time.Millisecond}}})
	for _, r := range got {
		col.Add(r)
	}
	s := col.Summary()
	summary := *m.Summary
	s.Fidelity, summary.Fidelity = metrics.Fidelity{}, metrics.Fidelity{}
	if diff := cmp.Diff(s, &summary); diff != "" {
		t.Errorf("summary (-of the rows +merged):\n%s", diff)
	}
	a, err := replay.ReadManifest(one)
	if err != nil {
		t.Fatal(err)
	}
	b, err := replay.ReadManifest(whole)
	if err != nil {
		t.Fatal(err)
	}
	if a.Plan.Digest != b.Plan.Digest || a.Plan.Rows != b.Plan.Rows || a.Plan.PromptTokens != b.Plan.PromptTokens || a.Plan.OutputTokens != b.Plan.OutputTokens ||
		a.Plan.PeakRate != b.Plan.PeakRate || a.Plan.Span != b.Plan.Span || b.Options.Shard != (replay.Shard{}) || b.State != replay.StateComplete ||
		a.Server.URL != b.Server.URL || b.Stats.Sent != int64(len(got)) || b.Stats.Unsent != 0 {
		t.Errorf("run.json of one run %+v\n%+v\nof the merged %+v\n%+v", a.Plan, a.Stats, b.Plan, b.Stats)
	}
	// What the engine generated for all of them is what all of them received.
	if rec := b.Telemetry; rec == nil || rec.Engine == nil || rec.Engine.Received != a.Telemetry.Engine.Received || rec.Energy != nil ||
		rec.Engine.Generated.V > rec.Engine.Received || rec.Engine.Generated.V < rec.Engine.Received/2 || rec.Engine.Restarts != 0 {
		t.Errorf("telemetry of the merged %+v", rec)
	}
	// Each zero lies at the start that was agreed on, but for what the machine
	// took between two looks at the clock.
	if start, _ := time.Parse(time.RFC3339Nano, at); !b.Stats.StartedAt.Equal(start) || !m.Merge.StartAt || m.Merge.OffsetMax > time.Second {
		t.Errorf("zero %v, want %v; offsets within %v", b.Stats.StartedAt, start, m.Merge.OffsetMax)
	}
}

// A real run, dealt out to three directories and joined again, is itself.
func TestSplitRunIsItself(t *testing.T) {
	dir := t.TempDir()
	one := filepath.Join(dir, "one")
	play(t, trace(t, dir, 400), "--speedup", "4", "-o", one)
	all := rows(t, one)
	m, err := replay.ReadManifest(one)
	if err != nil {
		t.Fatal(err)
	}
	var shards []string
	for i := range 3 {
		out := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(out, 0o755); err != nil {
			t.Fatal(err)
		}
		w, err := traceformat.Create(filepath.Join(out, traceformat.RunTrace), nil)
		if err != nil {
			t.Fatal(err)
		}
		part := *m
		stats := *m.Stats
		part.Stats, part.Options.Shard = &stats, replay.Shard{Index: i, Of: 3}
		stats.Sent = 0
		for _, r := range all {
			if int(r.Session.Or(r.ID))%3 == i {
				stats.Sent++
				if err := w.Write(r); err != nil {
					t.Fatal(err)
				}
			}
		}
		part.Plan.Rows = stats.Sent
		if err := errors.Join(w.Close(), part.Write(out)); err != nil {
			t.Fatal(err)
		}
		shards = append(shards, out)
	}
	whole := filepath.Join(dir, "whole")
	if _, err := report.Merge(t.Context(), report.MergeConfig{Shards: shards, Out: whole}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(all, rows(t, whole)); diff != "" {
		t.Errorf("rows (-one run +merged):\n%s", diff)
	}
	a, err1 := report.Analyse(t.Context(), one, report.Config{})
	b, err2 := report.Analyse(t.Context(), whole, report.Config{})
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	// A shard of less than a hundred requests is judged by its worst.
	a.Summary.Fidelity, b.Summary.Fidelity = metrics.Fidelity{}, metrics.Fidelity{}
	if diff := cmp.Diff(a.Summary, b.Summary); diff != "" {
		t.Errorf("summary (-one run +merged):\n%s", diff)
	}
}

// Every field of the parts of a run.json that a merge adds up is known to it:
// one that was not would be lost.
func TestManifestIsKnown(t *testing.T) {
	dir := t.TempDir()
	play(t, trace(t, dir, 10), "-o", filepath.Join(dir, "run"))
	b, err := os.ReadFile(filepath.Join(dir, "run", "run.json"))
	if err != nil {
		t.Fatal(err)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(new(report.Manifest)); err != nil {
		t.Errorf("%v\n%s", err, b)
	}
}
