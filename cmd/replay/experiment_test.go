//go:build unix

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"reprise/replay"
	"reprise/replay/experiment"
)

// ready are the experiments that ship, cut down to what takes seconds.
var ready = map[string][]string{
	"batching":    {"repeats=1", "limit=8", "factors.batching=static-4,continuous-16", "factors.max-num-batched-tokens=2048"},
	"kv-cache":    {"repeats=1", "duration=1s", "factors.block-size=16", "factors.kv-cache-tokens=16384"},
	"concurrency": {"repeats=1", "duration=3s", "factors.load=closed-16,open-12"},
	"deployment":  {"repeats=1", "duration=1s", "factors.gpu-memory-utilization=0.9"},
}

func sets(kvs []string) (args []string) {
	for _, kv := range kvs {
		args = append(args, "--set", kv)
	}
	return args
}

// All that ship run as they stand.
func TestReadyExperiments(t *testing.T) {
	t.Parallel()
	for name, set := range ready {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "out")
			args := append([]string{"experiment", "run", "../../testdata/experiments/" + name + ".yaml", "-o", dir, "--set", "max-send-error=10s"}, sets(set)...)
			stdout, stderr, status := replayCommand(t, args...)
			if status != 0 {
				t.Fatalf("exit status %d\n%s", status, stderr)
			}
			p, s := readExperiment(t, dir)
			if s.Count(experiment.Finished) != len(p.Runs) || len(p.Runs) < 2 || p.Title == "" || len(p.Factors) == 0 {
				t.Errorf("%d of %d runs finished: %+v", s.Count(experiment.Finished), len(p.Runs), p)
			}
			for _, r := range p.Runs {
				c := p.Cell(r.Cell)
				m, err := replay.ReadManifest(filepath.Join(dir, r.Dir()))
				if err != nil {
					t.Fatal(err)
				}
				if m.Plan.Digest != c.Work || m.Summary.Requests.OK != c.Requests || c.Requests == 0 {
					t.Errorf("%s: %d of %d requests ok", r, m.Summary.Requests.OK, c.Requests)
				}
				for k, v := range c.Factors {
					if k == "batching" {
						continue // the client's, and not the engine's of that name
					}
					if got, ok := m.Server.Info.Config[strings.ReplaceAll(k, "-", "_")]; ok && !strings.EqualFold(got, v) {
						t.Errorf("%s: the engine has %s=%s, want %s", r, k, got, v)
					}
				}
			}
			for _, want := range []string{"report.json", "report.md", "report.html"} {
				if _, err := os.Stat(filepath.Join(dir, want)); err != nil {
					t.Error(err)
				}
			}
			if !strings.HasPrefix(stdout, p.Title) || p.Title == "" {
				t.Errorf("printed %q", stdout)
			}
		})
	}
	// Their engines' files make command lines of them.
	for name := range ready {
		for _, engine := range []string{"vllm", "sglang", "vllm-docker"} {
			m, err := experiment.ReadMatrix("../../testdata/experiments/"+name+".yaml", []string{"backends=../../testdata/experiments/engines/" + engine + ".yaml"})
			if err != nil {
				t.Fatal(err)
			}
			cells, _, err := m.Expand(newCellFlags())
			if err != nil {
				t.Errorf("%s on %s: %v", name, engine, err)
			}
			for _, c := range cells {
				if c.Launch == nil || !slices.Contains(c.Flags, "cache=salt") {
					t.Errorf("%s on %s: cell %+v", name, engine, c)
				}
			}
		}
	}
}

// writeMatrix puts files into a folder and returns the way to matrix.yaml.
func writeMatrix(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "matrix.yaml")
}

const small = `
traces: [{name: t, synthetic: "rate=10,prompt-tokens=fixed:64,output-tokens=fixed:8"}]
replay: {limit: 6, duration: 10s, speedup: 4, max-send-error: 10s}
`

// What can be known before the start is named, and nothing is written.
func TestExperimentMistakes(t *testing.T) {
	t.Parallel()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	engine := "backend: vllm\nurl: http://" + busy.Addr().String() + "\ncommand: [sleep, 1000]\n"
	for name, tt := range map[string]struct {
		files  map[string]string
		status int
		want   string
	}{
		"unknown key":             {map[string]string{"matrix.yaml": small + "factor: {}\n"}, 2, `unknown field "factor"`},
		"no text":                 {map[string]string{"matrix.yaml": "PAR1\x00\x15\xff"}, 2, "matrix.yaml is no text"},
		"no file":                 {nil, 2, "matrix.yaml: no such file"},
		"unknown flag":            {map[string]string{"matrix.yaml": small + "factors: {speeed: {kind: replay, levels: [1, 2]}}\n"}, 2, "replay has no flag --speeed for one run"},
		"unknown engine flag":     {map[string]string{"matrix.yaml": small + "factors: {max-seqs: {levels: [1, 2]}}\n"}, 2, `no option "max-seqs"`},
		"a flag of the whole":     {map[string]string{"matrix.yaml": small + "factors: {output: {kind: replay, levels: [1, 2]}}\n"}, 2, "no flag --output for one run"},
		"unknown factor excluded": {map[string]string{"matrix.yaml": small + "factors: {seed: {levels: [1, 2]}}\nexclude: [{sed: 1}]\n"}, 2, `exclude 1: no factor "sed"`},
		"unknown level":           {map[string]string{"matrix.yaml": small + "factors: {seed: {levels: [1, 2]}}\ndesign: cells\ncells: [{seed: 3}]\n"}, 2, `factor seed has no level "3"`},
		"impossible cell":         {map[string]string{"matrix.yaml": small + "factors: {concurrency: {levels: [0, 2]}}\n"}, 2, "cell concurrency2: --concurrency has no arrivals"},
		"a row that does not fit": {map[string]string{"matrix.yaml": small + "factors: {max-model-len: {kind: engine, levels: [64, 1024]}}\n"}, 1, "do not fit"},
		"a cycle":                 {map[string]string{"matrix.yaml": "extends: b.yaml\n", "b.yaml": "extends: matrix.yaml\n"}, 2, "extends itself"},
		"its own run as trace":    {map[string]string{"matrix.yaml": "traces: [OUT/runs/001-a-1]\n"}, 2, "would play its own runs"},
		"no such trace":           {map[string]string{"matrix.yaml": "traces: [missing.parquet]\n"}, 1, "missing.parquet"},
		"no such executable":      {map[string]string{"matrix.yaml": small + "backends: [e.yaml]\n", "e.yaml": strings.Replace(engine, "sleep", "no-such-engine", 1)}, 2, "executable no-such-engine"},
		"port in use":             {map[string]string{"matrix.yaml": small + "backends: [e.yaml]\n", "e.yaml": engine}, 1, "something listens at http://" + busy.Addr().String()},
		"no such engine file":     {map[string]string{"matrix.yaml": small + "backends: [e.yaml]\n"}, 2, "e.yaml"},
		"a server's flags":        {map[string]string{"matrix.yaml": small + "backends: [vllm=http://127.0.0.1:1]\nfactors: {max-num-seqs: {levels: [1, 2]}}\n"}, 2, "runs already, and nobody here can set max-num-seqs"},
		"not a square":            {map[string]string{"matrix.yaml": small + "design: latin-square\nfactors: {a: {levels: [1, 2]}, b: {levels: [1, 2, 3]}, c: {levels: [1, 2]}}\n"}, 2, "as many levels"},
	} {
		t.Run(name, func(t *testing.T) {
			matrix := writeMatrix(t, tt.files)
			out := filepath.Join(filepath.Dir(matrix), "out")
			for n, text := range tt.files {
				os.WriteFile(filepath.Join(filepath.Dir(matrix), n), []byte(strings.ReplaceAll(text, "OUT", out)), 0o644)
			}
			_, stderr, status := replayCommand(t, "experiment", "run", matrix, "-o", out)
			if status != tt.status || !strings.Contains(stderr, tt.want) {
				t.Errorf("exit status %d, want %d and %q\n%s", status, tt.status, tt.want, stderr)
			}
			if _, err := os.Stat(filepath.Join(out, experiment.PlanFile)); err == nil {
				t.Error("something was begun")
			}
		})
	}
}

func TestExperimentPlan(t *testing.T) {
	t.Parallel()
	matrix := writeMatrix(t, map[string]string{
		"matrix.yaml": "extends: base.yaml\ntitle: over\nreplay: {limit: 4}\nfactors: {max-num-seqs: {kind: engine, unit: sequences, levels: [4, 8]}}\n" +
			"exclude: [{max-num-seqs: 4, seed: 2, reason: nobody asks}]\n",
		"base.yaml": small + "title: base\nquestion: why?\nrepeats: 2\nfactors: {seed: {levels: [1, 2]}}\nslos: ['ttft.p99<500ms']\nprice_per_gpu_hour: 2.5\n",
	})
	stdout, stderr, status := replayCommand(t, "experiment", "plan", matrix, "--json", "--set", "repeats=3", "--set", "seed=7")
	if status != 0 {
		t.Fatalf("exit status %d\n%s", status, stderr)
	}
	var p experiment.Plan
	if err := json.Unmarshal([]byte(stdout), &p); err != nil {
		t.Fatal(err)
	}
	if p.Title != "over" || p.Question != "why?" || p.Repeats != 3 || p.Seed != 7 || len(p.Cells) != 4 || len(p.Runs) != 9 || p.PricePerGPUHour != 2.5 || p.Requests != 4 {
		t.Errorf("%+v", p)
	}
	if f := p.Factors; len(f) != 2 || f[0].Name != "seed" || f[0].Kind != "replay" || f[1].Kind != "engine" || f[1].Unit != "sequences" || !slices.Equal(f[1].Levels, []string{"4", "8"}) {
		t.Errorf("factors %+v", f)
	}
	for _, c := range p.Cells {
		if skip := c.Factors["max-num-seqs"] == "4" && c.Factors["seed"] == "2"; (c.Skipped == "nobody asks") != skip {
			t.Errorf("cell %+v", c)
		}
		if c.Skipped == "" && (!slices.Contains(c.Options, "max-num-seqs="+c.Factors["max-num-seqs"]) || !slices.Contains(c.Flags, "slo=ttft<500ms") || !slices.Contains(c.Flags, "limit=4")) {
			t.Errorf("cell %+v", c)
		}
	}
	stdout, _, _ = replayCommand(t, "experiment", "plan", matrix)
	for _, want := range []string{"max-num-seqs (sequences)", "not played: mns4_seed2: nobody asks", "6 runs: 3 cells, 2 repeats, about ", "on disk"} {
		if !strings.Contains(strings.ReplaceAll(stdout, "seed2_mns4", "mns4_seed2"), want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
}

// engineScript is an engine whose flag --mode says what is wrong with it: the
// simulated one, behind a shell and a pipe.
const engineScript = `#!/bin/sh
while [ $# -gt 0 ]; do case $1 in --mode) mode=$2; shift;; esac; shift; done
faults='[]'
case $mode in
deaf) echo still loading; exec sleep 1000;;
dies|silent) faults='[{"kind":"exit","every":3,"after":2}]';;
esac
echo "mode $mode"
setsid sleep 1000 &
export REPRISE_SIM_SERVE="{\"listen\":\"$ADDR\",\"faults\":$faults}"
case $mode in
silent) sleep 1000 | replay;; # the shell waits for the sleep when the server is gone
*) mkfifo "$FIFO.$$"; exec 3<>"$FIFO.$$"; exec replay <&3;;
esac
`

// An engine that does not come up, or dies, costs its own cells alone. Engines are
// ended with all that they left, and kept where the next run wants the same.
func TestExperimentLaunchesEngines(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	matrix := writeMatrix(t, map[string]string{
		"matrix.yaml": small + "backends: [e.yaml]\nrepeats: 1\nretries: 1\nfactors: {mode: {kind: engine, levels: [well, deaf, dies, silent]}, seed: {kind: replay, levels: [1, 2]}}\nexclude: [{mode: deaf, seed: 2}, {mode: dies, seed: 2}, {mode: silent, seed: 2}]\n",
		"e.yaml":      "backend: sim\nurl: http://" + addr + "\nvars: {dir: .}\ncommand: [sh, '{dir}/engine.sh']\nenv: {ADDR: '" + addr + "', FIFO: '{dir}/fifo'}\nready_timeout: 3s\nstop_timeout: 2s\n",
		"engine.sh":   engineScript,
	})
	out := filepath.Join(filepath.Dir(matrix), "out")
	_, stderr, status := replayCommand(t, "experiment", "run", matrix, "-o", out, "--set", "vars.dir="+filepath.Dir(matrix))
	if status != 1 {
		t.Fatalf("exit status %d\n%s", status, stderr)
	}
	p, s := readExperiment(t, out)
	if len(p.Runs) != 5 || s.Count(experiment.Finished) != 2 || s.Count(experiment.Failed) != 3 {
		t.Fatalf("%+v\n%s", s.Runs, stderr)
	}
	for _, r := range s.Runs {
		dir := filepath.Join(out, r.Dir())
		mode := p.Cell(r.Cell).Factors["mode"]
		want := map[string]string{"deaf": "not ready after 3s (ready_timeout)", "dies": "the engine died: exit status 1", "silent": "the engine does not answer any more: /health"}[mode]
		if !strings.Contains(r.Reason, want) || (want == "") != (r.Reason == "") {
			t.Errorf("%s, %s: %q", r, mode, r.Reason)
		}
		if r.Status == experiment.Failed {
			if dir += ".failed-2"; r.Attempts != 2 {
				t.Errorf("%s: %d attempts", r, r.Attempts)
			}
		}
		var record engineRecord
		b, err := os.ReadFile(filepath.Join(dir, engineFile))
		if err == nil {
			err = json.Unmarshal(b, &record)
		}
		log, lerr := os.ReadFile(filepath.Join(dir, engineLogFile))
		if err != nil || lerr != nil {
			t.Fatal(err, lerr)
		}
		switch mode {
		case "well":
			if record.Error != "" || record.Info == nil || record.Info.Version == "" || record.Took == 0 || !strings.HasPrefix(string(log), "mode well") {
				t.Errorf("%s: %+v, log %q", r, record, log)
			}
		default:
			if !strings.Contains(record.Error, want) {
				t.Errorf("%s: %+v", r, record)
			}
		}
	}
	if c, err := net.Dial("tcp", addr); err == nil {
		c.Close()
		t.Error("the engine lives on")
	}
	if ps, _ := exec.Command("ps", "-eo", "args").Output(); strings.Contains(string(ps), filepath.Dir(matrix)) {
		t.Errorf("something of the engine is left:\n%s", ps)
	}
}

// A killed experiment goes on, and ends with the same table: cells, order,
// requests of each run, and the figures of runs that had finished.
func TestKilledExperiment(t *testing.T) {
	t.Parallel()
	matrix := writeMatrix(t, map[string]string{"matrix.yaml": small + "repeats: 2\nfactors: {max-num-seqs: {kind: engine, levels: [2, 8]}, seed: {levels: [1, 2]}}\n"})
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	out := filepath.Join(filepath.Dir(matrix), "out")
	args := []string{"experiment", "run", matrix, "-o", out}
	finished := map[string]string{} // run.json by folder
	kills := 0
	for kills < 5 {
		path, err := exec.LookPath("replay")
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(path, args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// A run takes two seconds or so; all of them are killed in their third.
		time.Sleep(500*time.Millisecond + time.Duration(rnd.Int64N(int64(2500*time.Millisecond))))
		if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		kills++
		cmd.Wait()
		for dir, before := range finished {
			if b, _ := os.ReadFile(filepath.Join(out, dir, replay.ManifestFile)); string(b) != before {
				t.Errorf("kill %d: %s was touched", kills, dir)
			}
		}
		p, err := experiment.ReadPlan(out)
		if errors.Is(err, os.ErrNotExist) {
			continue // it had not begun
		}
		if err != nil {
			t.Fatal(err)
		}
		s, err := experiment.ReadState(out, p)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range s.Runs {
			if r.Status == experiment.Finished {
				b, err := os.ReadFile(filepath.Join(out, r.Dir(), replay.ManifestFile))
				if err != nil {
					t.Fatal(err)
				}
				finished[r.Dir()] = string(b)
			}
		}
		args = []string{"experiment", "resume", out}
	}
	if _, stderr, status := replayCommand(t, args...); status != 0 {
		t.Fatalf("exit status %d\n%s", status, stderr)
	}
	p, s := readExperiment(t, out)
	stdout, _, _ := replayCommand(t, "experiment", "plan", matrix, "--json")
	var whole experiment.Plan
	if err := json.Unmarshal([]byte(stdout), &whole); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(p.Runs, whole.Runs) || len(p.Cells) != len(whole.Cells) {
		t.Errorf("runs %v, want %v", p.Runs, whole.Runs)
	}
	for _, r := range s.Runs {
		m, err := replay.ReadManifest(filepath.Join(out, r.Dir()))
		if err != nil {
			t.Fatal(err)
		}
		if r.Status != experiment.Finished || m.Summary.Requests.OK != 6 || m.Plan.Digest != whole.Cell(r.Cell).Work {
			t.Errorf("%s: %s, %d requests ok", r, r.Status, m.Summary.Requests.OK)
		}
	}
	for dir, before := range finished {
		if b, _ := os.ReadFile(filepath.Join(out, dir, replay.ManifestFile)); string(b) != before {
			t.Errorf("in the end: %s was touched", dir)
		}
	}
	if len(finished) == 0 {
		t.Log("no run had finished before the last kill")
	}
	// Nothing is left to do, and nothing is done again.
	before := fmt.Sprint(s.Runs)
	if _, stderr, status := replayCommand(t, args...); status != 0 || strings.Contains(stderr, "run 1 of") {
		t.Errorf("exit status %d\n%s", status, stderr)
	}
	if _, s := readExperiment(t, out); fmt.Sprint(s.Runs) != before {
		t.Error("a finished experiment was touched")
	}
}

// An A/B of the version before goes on.
func TestOldPlanGoesOn(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "out")
	args := short("--backend", "a:sim", "--backend", "b:sim", "-o", dir)
	if _, stderr, status := replayCommand(t, args...); status != 0 {
		t.Fatalf("exit status %d\n%s", status, stderr)
	}
	for _, name := range []string{experiment.PlanFile, experiment.StateFile} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]any
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatal(err)
		}
		m["version"] = 1
		if cells, ok := m["cells"].([]any); ok {
			for _, c := range cells {
				for _, key := range []string{"trace", "plan_digest", "requests", "expected_run_ns", "expected_run_bytes"} {
					delete(c.(map[string]any), key)
				}
			}
		}
		if b, err = json.Marshal(m); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, stderr, status := replayCommand(t, args...); status != 0 || !strings.Contains(stderr, "2 of 2 runs are done") {
		t.Errorf("exit status %d\n%s", status, stderr)
	}
}
