package experiment

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"reprise/internal/metrics"
	"reprise/replay"
)

func testPlan(repeats int, cells ...string) *Plan {
	p := &Plan{Version: Version, Trace: "t.parquet", Work: "abc", Repeats: repeats, Seed: 1, RunTime: time.Minute,
		Target: Target{MaxLen: 4096, VocabSize: 32000, MinID: 1000}}
	for _, c := range cells {
		p.Cells = append(p.Cells, Cell{Name: c, Backend: "sim", URL: "http://127.0.0.1:1", Trace: "t.parquet", Work: "abc", RunTime: time.Minute})
	}
	p.Schedule()
	return p
}

// writeRun makes a run directory look like that of a finished run.
func writeRun(t testing.TB, dir string, state string, ok int64) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	m := &replay.Manifest{Version: replay.ManifestVersion, State: state, Summary: &metrics.Summary{Requests: metrics.Requests{OK: ok}}}
	if err := errors.Join(m.Write(dir), os.WriteFile(filepath.Join(dir, replay.TraceFile), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
}

// A player is a Sequence whose runs take no time.
type player struct {
	Sequence
	t      *testing.T
	played []string
	said   []string
	fail   func(p Progress) error // in place of playing
}

func newPlayer(t *testing.T, f *Folder) *player {
	p := &player{t: t}
	p.Sequence = Sequence{
		Folder: f, Retries: 1, HookTimeout: time.Minute,
		Say: func(format string, a ...any) { p.said = append(p.said, fmt.Sprintf(format, a...)) },
		Play: func(ctx context.Context, r Progress, dir string) error {
			p.played = append(p.played, fmt.Sprintf("%s-%d", r.Cell, r.Repeat))
			if p.fail != nil {
				if err := p.fail(r); err != nil {
					return err
				}
			}
			writeRun(t, dir, replay.StateComplete, 5)
			return nil
		},
	}
	return p
}

func (p *player) run() error { return p.Run(p.t.Context(), p.t.Context()) }

func create(t *testing.T, p *Plan) *Folder {
	t.Helper()
	f, err := Create(filepath.Join(t.TempDir(), "out"), p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func reopen(t *testing.T, f *Folder) *Folder {
	t.Helper()
	f.Close()
	g, err := Open(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

func names(p *Plan) (out []string) {
	for _, r := range p.Runs {
		out = append(out, fmt.Sprintf("%s-%d", r.Cell, r.Repeat))
	}
	return out
}

// All runs are played in the order of the plan, and never again.
func TestSequencePlaysEachRunOnce(t *testing.T) {
	f := create(t, testPlan(3, "a", "b"))
	p := newPlayer(t, f)
	if err := p.run(); err != nil {
		t.Fatal(err)
	}
	if want := names(f.Plan); !slices.Equal(p.played, want) {
		t.Errorf("played %v, want %v", p.played, want)
	}
	if len(p.said) != 6 || !strings.HasPrefix(p.said[0], "run 1 of 6, ") || !strings.HasSuffix(p.said[0], "repeat 1, 6 min left") {
		t.Errorf("said %q", p.said)
	}
	p = newPlayer(t, reopen(t, f))
	if err := p.run(); err != nil || p.played != nil {
		t.Errorf("a finished sequence played %v, %v", p.played, err)
	}
}

// A process that dies at any moment leaves a folder from which each unfinished
// run is played once, and no finished one.
func TestSequenceGoesOnAfterDeath(t *testing.T) {
	plan := testPlan(2, "a", "b", "c")
	for at := range plan.Runs {
		for _, when := range []string{"before", "during", "after"} {
			f := create(t, testPlan(2, "a", "b", "c"))
			p := newPlayer(t, f)
			died := errors.New("died")
			p.fail = func(r Progress) error {
				if r.Number != at+1 {
					return nil
				}
				dir := f.RunPath(r.Run)
				switch when {
				case "during":
					writeRun(t, dir, replay.StateRunning, 0)
				case "after":
					writeRun(t, dir, replay.StateComplete, 5)
				}
				panic(died)
			}
			func() {
				defer func() {
					if r := recover(); r != died {
						t.Fatalf("run %d, %s: %v", at+1, when, r)
					}
				}()
				p.run()
			}()
			g := reopen(t, f)
			q := newPlayer(t, g)
			if err := q.run(); err != nil {
				t.Fatal(err)
			}
			want := names(plan)[at:]
			if when == "after" {
				want = want[1:]
			}
			if !slices.Equal(q.played, want) {
				t.Errorf("death %s run %d: then played %v, want %v", when, at+1, q.played, want)
			}
			if n := g.State.Count(Finished); n != 6 {
				t.Errorf("death %s run %d: %d runs are finished", when, at+1, n)
			}
			_, err := os.Stat(g.RunPath(plan.Runs[at]) + ".partial-1")
			if kept := err == nil; kept != (when == "during") {
				t.Errorf("death %s run %d: kept the part = %t", when, at+1, kept)
			}
		}
	}
}

// A run that fails is kept aside and tried again within the budget; then the
// others go on. A resume tries it anew.
func TestFailedRuns(t *testing.T) {
	f := create(t, testPlan(2, "a", "b"))
	p := newPlayer(t, f)
	p.fail = func(r Progress) error {
		if r.Cell == "b" && r.Repeat == 1 {
			writeRun(t, f.RunPath(r.Run), replay.StatePartial, 1)
			return errors.New("the engine died")
		}
		return nil
	}
	if err := p.run(); err != nil {
		t.Fatal(err)
	}
	if len(p.played) != 5 || f.State.Count(Failed) != 1 || f.State.Count(Finished) != 3 {
		t.Errorf("played %v: %+v", p.played, f.State.Runs)
	}
	for _, r := range f.State.Runs {
		if r.Status != Failed {
			continue
		}
		if r.Attempts != 2 || r.Reason != "the engine died" {
			t.Errorf("%+v", r)
		}
		for n, want := range []bool{false, true, true, false} {
			_, err := os.Stat(fmt.Sprintf("%s.failed-%d", f.RunPath(r.Run), n))
			if got := err == nil; got != want {
				t.Errorf("failed-%d is there: %t", n, got)
			}
		}
		if _, err := os.Stat(f.RunPath(r.Run)); err == nil {
			t.Error("the failed run has the name of a run")
		}
	}
	g := reopen(t, f)
	q := newPlayer(t, g)
	if err := q.run(); err != nil || !slices.Equal(q.played, []string{"b-1"}) || g.State.Count(Finished) != 4 {
		t.Errorf("a resume played %v, %v", q.played, err)
	}
}

// A run that says it is done and is not counts as failed.
func TestRunsAreLookedAt(t *testing.T) {
	for name, write := range map[string]func(dir string){
		"nothing":    func(string) {},
		"partial":    func(dir string) { writeRun(t, dir, replay.StatePartial, 3) },
		"no success": func(dir string) { writeRun(t, dir, replay.StateComplete, 0) },
		"garbage": func(dir string) {
			writeRun(t, dir, replay.StateComplete, 3)
			os.WriteFile(filepath.Join(dir, replay.ManifestFile), []byte("{"), 0o644)
		},
		"no trace": func(dir string) {
			writeRun(t, dir, replay.StateComplete, 3)
			os.Remove(filepath.Join(dir, replay.TraceFile))
		},
	} {
		f := create(t, testPlan(1, "a"))
		p := newPlayer(t, f)
		p.Play = func(_ context.Context, _ Progress, dir string) error { write(dir); return nil }
		if err := p.run(); err != nil || f.State.Count(Failed) != 1 {
			t.Errorf("%s: %v, %+v", name, err, f.State.Runs)
		}
	}
}

func TestFatalErrorsEndTheSequence(t *testing.T) {
	f := create(t, testPlan(2, "a", "b"))
	p := newPlayer(t, f)
	p.fail = func(Progress) error { return &FatalError{errors.New("no such option")} }
	err := p.run()
	if _, ok := errors.AsType[*FatalError](err); !ok || len(p.played) != 1 {
		t.Errorf("played %v, %v", p.played, err)
	}
	if q := newPlayer(t, reopen(t, f)); q.run() != nil || len(q.played) != 4 {
		t.Errorf("then played %v", q.played)
	}
}

// What was played for a wider target than a later server takes is played again,
// once.
func TestNarrowerTarget(t *testing.T) {
	f := create(t, testPlan(2, "a", "b"))
	first, second := f.Plan.Runs[0], f.Plan.Runs[1]
	p := newPlayer(t, f)
	targets := map[string]int{}
	p.Ready = func(_ context.Context, c *Cell) (Target, []string, error) {
		if c.Name == second.Cell {
			return Target{VocabSize: 1000}, nil, nil
		}
		return Target{VocabSize: 5000}, []string{"noted"}, nil
	}
	p.Narrow = func(a, b Target) Target { a.VocabSize = min(a.VocabSize, b.VocabSize); return a }
	p.fail = func(r Progress) error {
		targets[fmt.Sprintf("%s-%d", r.Cell, r.Repeat)] = r.Target.VocabSize
		return nil
	}
	if err := p.run(); err != nil {
		t.Fatal(err)
	}
	if len(p.played) != 5 || p.played[2] != p.played[0] {
		t.Errorf("played %v, want the first one again after the second", p.played)
	}
	for run, v := range targets {
		if v != 1000 {
			t.Errorf("%s was last played for a vocabulary of %d", run, v)
		}
	}
	if _, err := os.Stat(f.RunPath(first) + ".replanned-1"); err != nil {
		t.Error(err)
	}
	if f.State.Target.VocabSize != 1000 || f.State.Target.MaxLen != 4096 {
		t.Errorf("the target is %+v", f.State.Target)
	}
	if r := f.State.Runs[0]; !slices.Equal(r.Notes, []string{"noted"}) {
		t.Errorf("notes %q", r.Notes)
	}
}

// A narrower target that changes no request plays nothing again.
func TestNarrowerTargetOfTheSameRequests(t *testing.T) {
	f := create(t, testPlan(2, "a", "b"))
	second := f.Plan.Runs[1].Cell
	p := newPlayer(t, f)
	p.Ready = func(_ context.Context, c *Cell) (Target, []string, error) {
		if c.Name == second {
			return Target{MaxLen: 100}, nil, nil
		}
		return Target{MaxLen: 200}, nil, nil
	}
	p.Narrow = func(a, b Target) Target { a.MaxLen = min(a.MaxLen, b.MaxLen); return a }
	p.Same = func(_ *Cell, a, b Target) (bool, error) { return true, nil }
	if err := p.run(); err != nil || !slices.Equal(p.played, names(f.Plan)) || f.State.Target.MaxLen != 100 {
		t.Errorf("played %v for %+v, %v", p.played, f.State.Target, err)
	}
}

// An interrupt keeps what there is of a run, and the hook after it is run.
func TestInterrupt(t *testing.T) {
	plan := testPlan(2, "a", "b")
	mark := filepath.Join(t.TempDir(), "stopped")
	for i := range plan.Cells {
		plan.Cells[i].After = "echo $REPRISE_CELL $REPRISE_HOOK >> " + mark
	}
	f := create(t, plan)
	p := newPlayer(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	p.Play = func(ctx context.Context, r Progress, dir string) error {
		if r.Number == 2 {
			cancel()
			writeRun(t, dir, replay.StatePartial, 2)
			return ctx.Err()
		}
		writeRun(t, dir, replay.StateComplete, 2)
		return nil
	}
	if err := p.Run(ctx, t.Context()); !errors.Is(err, context.Canceled) {
		t.Fatalf("%v", err)
	}
	if f.State.Count(Finished) != 1 || f.State.Count(Pending) != 3 {
		t.Errorf("%+v", f.State.Runs)
	}
	if _, err := os.Stat(f.RunPath(plan.Runs[1]) + ".partial-1"); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(mark); strings.Count(string(b), "after-run") != 2 {
		t.Errorf("hooks said %q", b)
	}
}

// One process at a time, and no folder of something else.
func TestFolders(t *testing.T) {
	f := create(t, testPlan(1, "a"))
	if _, err := Open(f.Path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second one: %v", err)
	}
	if _, err := Create(f.Path, testPlan(1, "a")); err == nil {
		t.Error("an experiment was replaced")
	}
	run := t.TempDir()
	writeRun(t, run, replay.StateComplete, 1)
	if _, err := Create(run, testPlan(1, "a")); err == nil {
		t.Error("a run was taken for an empty folder")
	}
	if _, err := ReadPlan(t.TempDir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no plan: %v", err)
	}
	// A state of another plan is refused.
	f.Close()
	g := create(t, testPlan(2, "a"))
	b, err := os.ReadFile(filepath.Join(g.Path, StateFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(f.Path, StateFile), b, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(f.Path); err == nil {
		t.Error("a state of another plan was taken")
	}
}

func TestDiffers(t *testing.T) {
	a, b := testPlan(1, "a"), testPlan(1, "a")
	a.SetFlags([]string{"speedup=2", "backend=sim"})
	b.SetFlags([]string{"backend=sim", "speedup=2"})
	if d := a.Differs(b); d != "" || a.FlagsDigest != b.FlagsDigest {
		t.Errorf("one command line twice: %q", d)
	}
	b.SetFlags([]string{"backend=sim", "speedup=3"})
	if d := a.Differs(b); d != "it has --speedup=2, this has --speedup=3" {
		t.Errorf("%q", d)
	}
	b.SetFlags(a.Flags)
	b.Cells[0].Work = "def"
	if d := a.Differs(b); !strings.Contains(d, "t.parquet was changed") {
		t.Errorf("%q", d)
	}
}

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{
		"vllm": true, "llama-3-8b@h100": true, "on_2.1": true, "": false, "a/b": false, "..": false, ".a": false, "-a": false, "a b": false,
		"<b>": false, strings.Repeat("a", 41): false, "ä": false,
	} {
		if err := CheckName(name); (err == nil) != ok {
			t.Errorf("CheckName(%q) = %v", name, err)
		}
	}
}

// Whatever lies in a folder is refused or is a plan that holds together.
func FuzzReadPlan(f *testing.F) {
	f.Add([]byte(`{"version":1}`), []byte(`{}`))
	f.Add([]byte(`{"version":1,"repeats":1,"cells":[{"name":"a"}],"runs":[{"number":1,"cell":"a","repeat":1}]}`), []byte(`{"version":1,"runs":[{"number":1,"cell":"a","repeat":1}]}`))
	f.Add([]byte(`{"version":1,"repeats":1,"cells":[{"name":"../a"}],"runs":[{"number":1,"cell":"../a","repeat":1}]}`), []byte(`[]`))
	f.Fuzz(func(t *testing.T, plan, state []byte) {
		dir := t.TempDir()
		if err := errors.Join(os.WriteFile(filepath.Join(dir, PlanFile), plan, 0o644), os.WriteFile(filepath.Join(dir, StateFile), state, 0o644)); err != nil {
			t.Fatal(err)
		}
		p, err := ReadPlan(dir)
		if err != nil {
			return
		}
		for _, r := range p.Runs {
			if c := p.Cell(r.Cell); c == nil || filepath.Dir(r.Dir()) != RunsDir {
				t.Fatalf("run %+v: cell %v, folder %s", r, c, r.Dir())
			}
		}
		if s, err := ReadState(dir, p); err == nil && len(s.Runs) != len(p.Runs) {
			t.Fatalf("%d runs of %d", len(s.Runs), len(p.Runs))
		}
	})
}
