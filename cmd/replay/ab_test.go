//go:build unix

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"reprise/backends/sim"
	"reprise/replay"
	"reprise/replay/experiment"
	"reprise/traceformat"
)

// short is a sequence whose runs take two seconds or so.
func short(args ...string) []string {
	return append([]string{"../../testdata/demo.parquet", "--limit", "12", "--speedup", "20", "--max-send-error", "10s"}, args...)
}

func readExperiment(t *testing.T, dir string) (*experiment.Plan, *experiment.State) {
	t.Helper()
	p, err := experiment.ReadPlan(dir)
	if err != nil {
		t.Fatal(err)
	}
	s, err := experiment.ReadState(dir, p)
	if err != nil {
		t.Fatal(err)
	}
	return p, s
}

// digests are the prompt digests of a run by request.
func digests(t *testing.T, dir string) map[int64]int64 {
	t.Helper()
	out := map[int64]int64{}
	for _, r := range readRows(t, dir) {
		if !r.PromptDigest.OK {
			t.Errorf("%s: request %d has no digest of its prompt", dir, r.ID)
		}
		if r.Result != traceformat.ResultOK || r.ServedPromptTokens.V != r.PromptTokens.V {
			t.Errorf("%s: request %d: %s %s, %d prompt tokens served of %d", dir, r.ID, r.Result, r.Error, r.ServedPromptTokens.V, r.PromptTokens.V)
		}
		out[r.ID] = r.PromptDigest.V
	}
	return out
}

// Servers of different vocabularies and contexts get the same prompts, token for
// token.
func TestSequenceSendsEqualPrompts(t *testing.T) {
	t.Parallel()
	small, err := sim.ParseOptions(map[string]string{"max-model-len": "4096"})
	if err != nil {
		t.Fatal(err)
	}
	other, err := sim.Start(t.Context(), small)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Stop()
	dir := filepath.Join(t.TempDir(), "out")
	// vLLM's driver learns the vocabulary from /tokenize: a part of it.
	_, stderr, status := replayCommand(t, short("--backend", "wide:sim", "--backend", "narrow:vllm="+other.URL, "--too-long", "clip", "-o", dir)...)
	if status != 0 {
		t.Fatalf("exit status %d\n%s", status, stderr)
	}
	p, s := readExperiment(t, dir)
	if p.Target.MaxLen != 4096 || s.Target != p.Target {
		t.Errorf("target %+v, at the end %+v", p.Target, s.Target)
	}
	var sent []map[int64]int64
	var vocab []int
	for _, r := range s.Runs {
		run := filepath.Join(dir, r.Dir())
		sent = append(sent, digests(t, run))
		m, err := replay.ReadManifest(run)
		if err != nil {
			t.Fatal(err)
		}
		vocab = append(vocab, m.Server.Info.VocabSize)
	}
	if vocab[0] == vocab[1] {
		t.Errorf("both servers have %d tokens: this proves nothing", vocab[0])
	}
	if len(sent[0]) != 12 || fmt.Sprint(sent[0]) != fmt.Sprint(sent[1]) {
		t.Errorf("prompts differ:\n%v\n%v", sent[0], sent[1])
	}
	// Alone, each server would have had others.
	alone := filepath.Join(t.TempDir(), "alone")
	if _, stderr, status := replayCommand(t, short("--backend", "vllm="+other.URL, "--too-long", "clip", "-o", alone)...); status != 0 {
		t.Fatalf("exit status %d\n%s", status, stderr)
	}
	if fmt.Sprint(digests(t, alone)) == fmt.Sprint(sent[0]) {
		t.Error("the narrower server alone gets the same prompts: this proves nothing")
	}
}

// A sequence whose process is killed in the middle of a run leaves no process
// behind, goes on with that run, and plays no finished run again.
func TestSequenceResumesAfterKill(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "out")
	args := short("--limit", "40", "--speedup", "2", "--backend", "a:sim", "--backend", "b:sim", "--repeat", "2", "-o", dir)
	path, err := exec.LookPath("replay")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	// Into the second run.
	var second string
	deadline := time.Now().Add(2 * time.Minute)
	for {
		if runs, _ := filepath.Glob(filepath.Join(dir, "runs", "002-*")); len(runs) == 1 {
			if _, err := os.Stat(filepath.Join(runs[0], replay.ManifestFile)); err == nil {
				second = runs[0]
				break
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("there is no second run")
		}
		time.Sleep(50 * time.Millisecond)
	}
	time.Sleep(1500 * time.Millisecond)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("it ended before: %v", cmd.ProcessState)
	}
	waitFor(t, "the run's process ends", func() bool { return !strings.Contains(commandLines(t), second) })
	_, s := readExperiment(t, dir)
	if s.Runs[0].Status != experiment.Finished || s.Runs[1].Status != experiment.Running {
		t.Fatalf("state after the kill: %+v", s.Runs)
	}
	first := filepath.Join(dir, s.Runs[0].Dir())
	before := stamp(t, first)

	// Another command is refused, and touches nothing.
	if _, stderr, status := replayCommand(t, append(slices.Clone(args), "--seed", "7")...); status != 2 || !strings.Contains(stderr, "another experiment: this has --seed=7") {
		t.Errorf("another seed: status %d, %s", status, stderr)
	}
	stdout, stderr, status := replayCommand(t, append(args, "--resume")...)
	if status != 0 {
		t.Fatalf("exit status %d\n%s", status, stderr)
	}
	if !strings.Contains(stderr, "1 of 4 runs are done") || strings.Contains(stderr, "\nrun 1 of 4") || !strings.Contains(stdout, "in both") {
		t.Errorf("%s\n%s", stderr, stdout)
	}
	if after := stamp(t, first); after != before {
		t.Errorf("the finished run was touched: %s, before %s", after, before)
	}
	if _, s = readExperiment(t, dir); s.Count(experiment.Finished) != 4 {
		t.Errorf("%+v", s.Runs)
	}
	// What the killed run had measured is kept.
	kept, err := traceformat.Recover(filepath.Join(second+".partial-1", traceformat.JournalPath(replay.TraceFile)), filepath.Join(t.TempDir(), "kept.parquet"))
	if err != nil || kept.Rows == 0 {
		t.Errorf("kept %+v, %v", kept, err)
	}
	// And once all is done, there is only the report to write again.
	if _, stderr, status := replayCommand(t, args...); status != 0 || strings.Contains(stderr, "\nrun ") {
		t.Errorf("status %d\n%s", status, stderr)
	}
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	for range 200 {
		if done() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("not in 10 s: %s", what)
}

// commandLines are those of all processes.
func commandLines(t *testing.T) string {
	names, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil || len(names) == 0 {
		t.Skip("no /proc here")
	}
	var b strings.Builder
	for _, name := range names {
		line, _ := os.ReadFile(name)
		b.Write(append(line, '\n'))
	}
	return b.String()
}

// stamp is what changes if a folder is written to.
func stamp(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		fmt.Fprintln(&b, name, i.Size(), i.ModTime().UnixNano())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// An engine behind hooks is started before each of its runs and stopped after
// it; nobody asks it what it is before.
func TestSequenceSwitchesEngines(t *testing.T) {
	t.Parallel()
	tmp := t.TempDir()
	dir, log := filepath.Join(tmp, "out"), filepath.Join(tmp, "log")
	p, err := sim.Start(t.Context(), sim.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	_, stderr, status := replayCommand(t, short("--backend", "here:sim", "--backend", "there:vllm="+p.URL, "--repeat", "2", "-o", dir,
		"--before-run", "there=echo start $REPRISE_CELL $REPRISE_REPEAT $REPRISE_URL >> "+log,
		"--after-run", "there=echo stop $REPRISE_REPEAT >> "+log)...)
	if status != 0 {
		t.Fatalf("exit status %d\n%s", status, stderr)
	}
	b, _ := os.ReadFile(log)
	if want := fmt.Sprintf("start there 1 %[1]s\nstop 1\nstart there 2 %[1]s\nstop 2\n", p.URL); string(b) != want {
		t.Errorf("hooks wrote %q, want %q", b, want)
	}
	// The vocabulary of the one behind hooks is narrower, which its first run
	// shows: what the other had sent before that was played again.
	_, s := readExperiment(t, dir)
	var sent []map[int64]int64
	for _, r := range s.Runs {
		sent = append(sent, digests(t, filepath.Join(dir, r.Dir())))
	}
	for i := range sent {
		if fmt.Sprint(sent[i]) != fmt.Sprint(sent[0]) {
			t.Errorf("run %d and run 1 sent different prompts", i+1)
		}
	}
	if s.Count(experiment.Finished) != 4 {
		t.Errorf("%+v", s.Runs)
	}
}

// A backend that fails is reported as failed; what the others did is kept and
// compared as far as it goes.
func TestSequenceWithAFailingBackend(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "out")
	stdout, stderr, status := replayCommand(t, short("--backend", "a:sim", "--backend", "b:sim", "--repeat", "2", "--retries-runs", "0", "-o", dir,
		"--before-run", "b=echo no GPU is left; test $REPRISE_REPEAT = 1")...)
	if status != 1 || !strings.Contains(stderr, "| no GPU is left") || !strings.Contains(stderr, "1 of 4 runs failed") || !strings.Contains(stderr, "hint: to try these again: replay ") {
		t.Errorf("status %d\n%s", status, stderr)
	}
	if !strings.Contains(stdout, "failed: before-run of b") || !strings.Contains(stdout, "same work: 12 requests in both") {
		t.Errorf("%s", stdout)
	}
	if _, s := readExperiment(t, dir); s.Count(experiment.Finished) != 3 || s.Count(experiment.Failed) != 1 {
		t.Errorf("%+v", s.Runs)
	}
	// A server that is not there is found before anything is written.
	none := filepath.Join(t.TempDir(), "none")
	_, stderr, status = replayCommand(t, short("--backend", "a:sim", "--backend", "vllm=http://127.0.0.1:1", "-o", none)...)
	if _, err := os.Stat(none); status != 1 || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("status %d, %v\n%s", status, err, stderr)
	}
}

// Gates apply to the comparison, and the report is in the folder.
func TestSequenceGates(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "out")
	junit := filepath.Join(t.TempDir(), "gates.xml")
	args := short("--limit", "60", "--backend", "sim=llama-3-8b@h100", "--backend", "sim=llama-3-8b@a100", "--repeat", "3", "-o", dir)
	stdout, stderr, status := replayCommand(t, append(args, "--fail-if", "ttft.mean > +5%", "--fail-if", "error_rate > 50%", "--junit", junit)...)
	if status != 1 || !strings.Contains(stdout, "FAIL  ttft.mean > +5%: +") || !strings.Contains(stdout, "pass  error_rate > 50%") {
		t.Errorf("status %d\n%s\n%s", status, stdout, stderr)
	}
	b, err := os.ReadFile(junit)
	if err != nil || !strings.Contains(string(b), `failures="1"`) {
		t.Errorf("junit %s, %v", b, err)
	}
	for _, name := range []string{"report.txt", "report.md", "report.html"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !strings.Contains(string(b), "ttft.mean") {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
	b, err = os.ReadFile(filepath.Join(dir, "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	var r struct {
		Version     int
		Runs        []struct{ Status string }
		Comparisons []struct {
			Repeats int
			A, B    struct{ Name string }
			Gates   []struct{ Failed bool }
		}
	}
	if err := json.Unmarshal(b, &r); err != nil || r.Version != 1 || len(r.Runs) != 6 || len(r.Comparisons) != 1 {
		t.Fatalf("%v %+v", err, r)
	}
	if c := r.Comparisons[0]; c.Repeats != 3 || c.A.Name != "llama-3-8b@h100" || c.B.Name != "llama-3-8b@a100" || len(c.Gates) != 2 || !c.Gates[0].Failed {
		t.Errorf("%+v", c)
	}
	// The gates may be changed afterwards; no run is played again.
	if _, stderr, status := replayCommand(t, append(args, "--fail-if", "ttft.mean < -5%")...); status != 0 || strings.Contains(stderr, "\nrun ") {
		t.Errorf("status %d\n%s", status, stderr)
	}
	if _, stderr, status := replayCommand(t, append(args, "--fail-if", "tfft.mean < -5%")...); status != 2 || !strings.Contains(stderr, `no metric "tfft.mean"`) {
		t.Errorf("status %d\n%s", status, stderr)
	}
}

// Three backends make one report: each is held against the first, p-values are
// corrected together, and a gate may be for one side.
func TestSequenceOfThree(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "out")
	args := short("--limit", "40", "--backend", "a:sim", "--backend", "b:sim", "--backend", "c:sim", "-o", dir)
	stdout, stderr, status := replayCommand(t, append(args, "--fail-if", "error_rate > 50%", "--fail-if", "c: error_rate > 40%")...)
	if status != 0 && status != 3 || !strings.Contains(stdout, "A: a") || !strings.Contains(stdout, "C: c") || !strings.Contains(stdout, "b: error_rate > 50%") || strings.Contains(stdout, "b: error_rate > 40%") {
		t.Errorf("status %d\n%s\n%s", status, stdout, stderr)
	}
	b, err := os.ReadFile(filepath.Join(dir, "report.json"))
	if err != nil {
		t.Fatal(err)
	}
	var r struct {
		Comparisons []struct {
			Family int
			B      struct{ Name string }
			Gates  []struct{ Side string }
		}
	}
	if err := json.Unmarshal(b, &r); err != nil || len(r.Comparisons) != 2 || r.Comparisons[1].Family != 2 || r.Comparisons[1].B.Name != "c" || len(r.Comparisons[0].Gates) != 1 || len(r.Comparisons[1].Gates) != 2 {
		t.Errorf("%v %+v", err, r)
	}
	pages, err := filepath.Glob(filepath.Join(dir, "*.html"))
	if err != nil || len(pages) != 1 {
		t.Errorf("pages %q, %v", pages, err)
	}
}

// Each run of a sequence can be repeated by itself: its manifest has the command.
func TestSequenceRunsStandAlone(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "out")
	if _, stderr, status := replayCommand(t, short("--backend", "a:sim", "--backend", "b:sim", "--option", "b:prefix-caching=false", "--option", "max-num-seqs=7", "-o", dir)...); status != 0 {
		t.Fatalf("status %d\n%s", status, stderr)
	}
	_, s := readExperiment(t, dir)
	for _, r := range s.Runs {
		m, err := replay.ReadManifest(filepath.Join(dir, r.Dir()))
		if err != nil {
			t.Fatal(err)
		}
		if off := m.Server.Info.Cache.Off; off != (r.Cell == "b") {
			t.Errorf("%s: the cache is off: %t", r.Cell, off)
		}
		if !slices.Contains(m.Args, "--option=max-num-seqs=7") || slices.Contains(m.Args, "--repeat") {
			t.Errorf("%s: args %q", r.Cell, m.Args)
		}
		again := filepath.Join(t.TempDir(), "again-"+strconv.Itoa(r.Number))
		var args []string
		for _, a := range m.Args {
			if strings.HasPrefix(a, "--output=") {
				a = "--output=" + again
			}
			args = append(args, a)
		}
		if _, stderr, status := replayCommand(t, args...); status != 0 {
			t.Fatalf("%q: status %d\n%s", args, status, stderr)
		}
		if fmt.Sprint(digests(t, again)) != fmt.Sprint(digests(t, filepath.Join(dir, r.Dir()))) {
			t.Errorf("%s by itself sent other prompts", r.Cell)
		}
	}
}

func TestCutLabel(t *testing.T) {
	for arg, want := range map[string][2]string{
		"vllm":                       {"", "vllm"},
		"vllm=http://127.0.0.1:8000": {"", "vllm=http://127.0.0.1:8000"},
		"on:vllm=http://a:1":         {"on", "vllm=http://a:1"},
		"a:sim":                      {"a", "sim"},
		"b:sim=llama-3-8b@h100":      {"b", "sim=llama-3-8b@h100"},
		":sim":                       {"", ":sim"},
		"sim=cost:with.json":         {"", "sim=cost:with.json"},
	} {
		label, rest := cutLabel(arg)
		if got := [2]string{label, rest}; got != want {
			t.Errorf("cutLabel(%q) = %q, want %q", arg, got, want)
		}
	}
}
