//go:build unix

package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"reprise/backends/sim"
	"reprise/backends/sim/engine"
	"reprise/replay"
	"reprise/replay/search"
)

// The capacity of the simulated engine is known where all requests are alike: so
// many sequences at a time, and a step for each token. In virtual time a busy
// machine changes nothing, so that it must be found within the width of the
// bracket.
func TestSearchFindsCapacityOfSim(t *testing.T) {
	t.Parallel()
	const slots, prompt, output = 16, 16, 8
	preset, err := engine.PresetNamed(engine.DefaultPreset)
	if err != nil {
		t.Fatal(err)
	}
	c := preset.Cost
	// Of each sequence one of its steps is the prompt's, and the others read the
	// context so far.
	tokens := float64(slots*(output-1)+slots*prompt) / output
	context := float64(slots) * (output - 1) / output * (prompt + output/2)
	step := c.Step + c.Seq*slots + max(c.Weights, c.Token*tokens) + c.Pair*slots*prompt*(prompt+1)/2/output + c.KV*context
	known := slots / (output * step / 1e9)

	dir := filepath.Join(t.TempDir(), "found")
	_, stderr, status := replayCommand(t, "search", "--synthetic", "rate=100,prompt-tokens=fixed:16,output-tokens=fixed:8", "--option", "max-num-seqs=16",
		"--by", "rate", "--arrival", "constant", "--slo", "ttft.p95<60ms", "--virtual", "--telemetry", "off", "-o", dir)
	if status != 0 {
		t.Fatalf("exit status %d\n%s", status, stderr)
	}
	f, err := search.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	r := f.Result
	t.Logf("known %.1f/s, capacity %.1f, fails at %.1f, estimate %.1f, saturation %.1f, %d runs", known, r.Capacity.V, r.Fails.V, r.Estimate.V, r.Saturation.Requests, len(f.Runs))
	if ratio := r.Capacity.V / known; ratio < 0.97 || ratio > 1.03 || len(f.Runs) > 8 {
		t.Errorf("capacity is %.3f of what is known, after %d runs\n%s", ratio, len(f.Runs), stderr)
	}
	if ratio := r.Saturation.Requests / known; ratio < 0.97 || ratio > 1.03 {
		t.Errorf("saturation throughput is %.3f of what is known", ratio)
	}
	for _, run := range f.Runs {
		m, err := replay.ReadManifest(filepath.Join(dir, run.Dir))
		if err != nil {
			t.Error(err)
			continue
		}
		if m.Stopped != run.Stopped || run.Stopped == "" && m.State != replay.StateComplete {
			t.Errorf("run %d is %s, stopped %q; the search has %q", run.Number, m.State, m.Stopped, run.Stopped)
		}
		if run.Stopped != "" && run.Verdict != search.Fail {
			t.Errorf("run %d was stopped and is judged %s", run.Number, run.Verdict)
		}
	}
	if md, err := os.ReadFile(filepath.Join(dir, search.MarkdownName)); err != nil || !bytes.Contains(md, []byte(f.Says())) {
		t.Errorf("search.md does not have the answer: %v", err)
	}
}

// An interrupt keeps what was played, and the same command goes on behind it.
func TestSearchGoesOn(t *testing.T) {
	t.Parallel()
	path, err := exec.LookPath("replay")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "out")
	args := []string{"search", "--synthetic", "rate=50,prompt-tokens=fixed:16,output-tokens=fixed:32", "--option", "max-num-seqs=4", "--by", "concurrency",
		"--max", "4", "--slo", "e2e.p50<5s", "--requests", "40", "--telemetry", "off", "--max-send-error", "10s", "-o", dir}
	cmd := exec.CommandContext(t.Context(), path, args...)
	var diag bytes.Buffer
	cmd.Stderr = &diag
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		if f, err := search.Read(dir); err == nil && len(f.Runs) > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no run is done\n%s", diag.String())
		}
		time.Sleep(20 * time.Millisecond)
	}
	cmd.Process.Signal(syscall.SIGINT)
	err = cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 130 {
		t.Fatalf("interrupted: %v\n%s", err, diag.String())
	}
	if !strings.Contains(diag.String(), "to go on: replay search") {
		t.Errorf("it does not say how to go on:\n%s", diag.String())
	}
	before, err := search.Read(dir)
	if err != nil || before.Result.Status != search.Going {
		t.Fatalf("%v, %+v", err, before)
	}
	stdout, stderr, status := replayCommand(t, append(args, "--json")...)
	if status != 0 {
		t.Fatalf("exit status %d\n%s", status, stderr)
	}
	after, err := search.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	if after.Result.Status != search.AtMax || after.Result.Capacity.V != 4 || !strings.Contains(stdout, `"status": "max"`) {
		t.Errorf("result %+v\n%s", after.Result, stdout)
	}
	for i, r := range before.Runs {
		if !r.Started.Equal(after.Runs[i].Started) {
			t.Errorf("run %d was played again", r.Number)
		}
	}
	// Another question is not answered in the same folder.
	other := slices.Clone(args)
	other[slices.Index(other, "e2e.p50<5s")] = "e2e.p50<6s"
	if _, stderr, status := replayCommand(t, other...); status != 2 || !strings.Contains(stderr, "is another search") {
		t.Errorf("another SLO in the same folder: status %d\n%s", status, stderr)
	}
}

// A server that is up all the time keeps its cache: each run has a salt of its
// own there, and waits until the one before has left.
func TestSearchOfAServer(t *testing.T) {
	t.Parallel()
	o, err := sim.ParseOptions(map[string]string{"max-num-seqs": "2"})
	if err != nil {
		t.Fatal(err)
	}
	p, err := sim.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	dir := filepath.Join(t.TempDir(), "out")
	_, stderr, status := replayCommand(t, "search", "../../testdata/demo.parquet", "--too-long", "clip", "--limit", "20", "--backend", "vllm="+p.URL, "--by", "concurrency",
		"--max", "2", "--slo", "e2e.p50<1m", "--requests", "20", "--telemetry", "off", "--max-send-error", "10s", "-o", dir)
	if status != 0 {
		t.Fatalf("exit status %d\n%s", status, stderr)
	}
	f, err := search.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	if f.Result.Status != search.AtMax || f.Result.Capacity.V != 2 || f.Cache != string(replay.CacheSalted) || !strings.Contains(stderr, "salt of its own") {
		t.Errorf("%+v, cache %q\n%s", f.Result, f.Cache, stderr)
	}
	salts := map[string]bool{}
	for _, r := range f.Runs {
		m, err := replay.ReadManifest(filepath.Join(dir, r.Dir))
		if err != nil {
			t.Fatal(err)
		}
		if m.Server.URL == "" || m.Options.Cache != replay.CacheSalted {
			t.Errorf("run %d played against %q with cache %q", r.Number, m.Server.URL, m.Options.Cache)
		}
		salts[m.Cache.Salt] = true
	}
	if len(salts) != len(f.Runs) {
		t.Errorf("%d runs have the salts %v", len(f.Runs), salts)
	}
}
