package main

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"reprise/backends/sim"
	"reprise/internal/stats"
	"reprise/replay"
	"reprise/traceformat"
)

// command runs replay, which must succeed.
func command(t *testing.T, args ...string) string {
	t.Helper()
	stdout, stderr, status := replayCommand(t, args...)
	if status != 0 && status != 3 { // a busy machine may make a run invalid
		t.Fatalf("replay %v: exit status %d\n%s%s", args, status, stdout, stderr)
	}
	return stdout
}

// A fit to runs of an engine whose constants are known predicts others of it: of
// a run in real time, and at loads that it has not seen.
func TestSimFit(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	demo := filepath.Join("..", "..", "testdata", "demo.parquet")
	command(t, demo, "-q", "--limit", "100", "-o", in("real"))
	command(t, demo, "-q", "--virtual", "-o", in("fit"))
	command(t, demo, "-q", "--virtual", "--speedup", "0.5", "-o", in("light"))
	command(t, demo, "-q", "--virtual", "--speedup", "1.4", "-o", in("heavy"))
	out := command(t, "sim-fit", in("fit"), "--validate", in("light"), "--validate", in("heavy"), "--validate", in("real"), "--evaluations", "350", "-q", "-o", in("cost.json"))
	t.Logf("\n%s", out)
	f := readCost(t, in("cost.json"))
	if f.Engine != "sim" || f.Config.MaxNumBatchedTokens != 8192 || f.Config.MaxNumSeqs != 1024 || f.Config.BlockSize != 16 || f.Config.NumGPUBlocks != 25000 || len(f.Assumed) > 0 {
		t.Errorf("the engine is %s, %+v, of which %v are assumed", f.Engine, f.Config, f.Assumed)
	}
	for i, r := range append(f.Validations, f.Fit) {
		if r.Cached != r.Simulated || r.Requests == 0 || len(r.Errors) != 9 {
			t.Errorf("%s: %d cached tokens, simulated %d, of %d requests, %d errors", r.Run, r.Cached, r.Simulated, r.Requests, len(r.Errors))
		}
		for _, e := range r.Errors {
			limit := 0.08
			if i == 2 { // this machine may be busy meanwhile
				limit = 0.25
				if e.Metric == "ttft" {
					limit = 0.5
				}
			}
			if e.Quantile < 0.95 && math.Abs(e.Error) > limit {
				t.Errorf("%s: %s p%g is %v simulated, %v measured", r.Run, e.Metric, 100*e.Quantile, e.Simulated, e.Measured)
			}
		}
	}

	// The errors go with every run that the fit simulates.
	out = command(t, demo, "-q", "--virtual", "--limit", "50", "--backend", "sim="+in("cost.json"), "-o", in("again"))
	m, err := replay.ReadManifest(in("again"))
	if err != nil {
		t.Fatal(err)
	}
	if s := m.Simulation; s == nil || s.Fitted == nil || len(s.Fitted.Validations) != 3 || !strings.Contains(out, "other heavy") {
		t.Errorf("run.json says of the fit %+v, the summary\n%s", m.Simulation, out)
	}
	// And the same file serves the engine in real time.
	out = command(t, demo, "-q", "--limit", "20", "--backend", "sim="+in("cost.json"), "-o", in("served"))
	if m, err = replay.ReadManifest(in("served")); err != nil || m.Server.Info.Config["preset"] != "cost.json" {
		t.Errorf("%v: the server's configuration is %v\n%s", err, m.Server.Info.Config, out)
	}

	// What cannot be fitted says so.
	command(t, demo, "-q", "--virtual", "--limit", "5", "-o", in("short"))
	if err := os.WriteFile(in("bad.json"), []byte(`{"version":1,"cost":{"step_ns":-1}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		want string
		code int
		args []string
	}{
		{"5 requests succeeded, and a fit needs at least 20", 1, []string{"sim-fit", in("short"), "-o", in("x.json")}},
		{"is there already", 2, []string{"sim-fit", in("fit"), "-o", in("cost.json")}},
		{"--option colour is none", 2, []string{"sim-fit", in("fit"), "--option", "colour=blue", "-o", in("x.json")}},
		{"sim-fit takes the directory of a run", 1, []string{"sim-fit", in("nowhere"), "-o", in("x.json")}},
		{"no such file", 2, []string{demo, "--virtual", "--backend", "sim=" + in("nowhere.json")}},
		{"step_ns is -1", 2, []string{demo, "--virtual", "--backend", "sim=" + in("bad.json")}},
	} {
		if _, stderr, code := replayCommand(t, tt.args...); code != tt.code || !strings.Contains(stderr, tt.want) {
			t.Errorf("%v: exit status %d, want %d, and %q in\n%s", tt.args, code, tt.code, tt.want, stderr)
		}
	}
}

func readCost(t *testing.T, name string) *sim.CostFile {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	f := &sim.CostFile{}
	if err := json.Unmarshal(b, f); err != nil {
		t.Fatal(err)
	}
	return f
}

// The engine of the tests against vLLM: a cache so small that it evicts and
// preempts.
var smallVLLM = []string{
	"--num-gpu-blocks-override", "40", "--block-size", "32", "--max-num-batched-tokens", "512", "--max-num-seqs", "64", "--max-model-len", "1024",
	"--enable-prompt-tokens-details",
}

var smallSim = []string{
	"--option", "num-gpu-blocks=40", "--option", "block-size=32", "--option", "max-num-batched-tokens=512", "--option", "max-num-seqs=64", "--option", "max-model-len=1024",
}

func startSmallVLLM(t *testing.T) (url string) {
	wanted(t, "vllm")
	venv, model := filepath.Join(cacheDir(t), "vllm"), filepath.Join(cacheDir(t), "tiny", "llama")
	script := filepath.Join(sharedDir(), "engines", "serve-vllm.sh")
	needs(t, filepath.Join(venv, "bin", "vllm"), model, script)
	port := freePort(t)
	return serve(t, port, "/health", 15*time.Minute, append([]string{"bash", script, venv, model, port}, smallVLLM...)...)
}

// Requests that are all there before the first of them is done: vLLM and its
// simulation find the same in their caches, preempt as often, and make the same
// passes.
func TestEngineVLLMSimulatedCounts(t *testing.T) {
	url := startSmallVLLM(t)
	// A request that overtakes another on its way makes another schedule, and no
	// chance makes 160 requests agree: one burst that does is enough.
	for attempt := 1; ; attempt++ {
		different := compareCounts(t, "--backend", "vllm", "--url", url)
		if different == 0 {
			return
		}
		if attempt == 3 {
			t.Fatalf("%d of 160 requests found something else in the cache, and some did in each of %d bursts", different, attempt)
		}
	}
}

// The same of the simulated engine in real time, which is a check of the check: on
// a busy machine requests overtake each other.
func TestSimulatedCounts(t *testing.T) {
	fast := filepath.Join(t.TempDir(), "fast.json")
	f := sim.CostFile{Version: sim.CostFileVersion, Engine: "none", Config: sim.CostConfig{BlockSize: 32, NumGPUBlocks: 40, MaxNumSeqs: 64, MaxNumBatchedTokens: 512, MaxModelLen: 1024}}
	f.Cost.Step = 2e6
	b, err := f.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(fast, b, 0o644); err != nil {
		t.Fatal(err)
	}
	if different := compareCounts(t, "--backend", "sim="+fast); different > 60 {
		t.Errorf("%d of 160 requests found something else in the cache", different)
	}
}

// compareCounts plays a burst against a server and in virtual time, and returns
// how many requests found something else in the cache.
func compareCounts(t *testing.T, server ...string) (different int) {
	t.Helper()
	trace := filepath.Join(t.TempDir(), "burst.parquet")
	w, err := traceformat.Create(trace, &traceformat.Header{Blocks: traceformat.Blocks{Size: 32}})
	if err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 160 {
		var r traceformat.Row
		// The queue is never empty from the second request on, and what is in it
		// is admitted in order: when exactly each came does not matter, as long as
		// none overtakes another on its way.
		r.ID, r.Arrival = int64(i), time.Duration(i)*20*time.Millisecond
		prompt, output := 70+rng.IntN(200), 60+rng.IntN(120)
		if i < 4 {
			prompt, output = 900, 100
		}
		r.PromptTokens, r.OutputTokens = traceformat.Some(int32(prompt)), traceformat.Some(int32(output))
		r.PrefixBlocks = []uint64{}
		if i >= 4 {
			for b := range prompt / 64 {
				r.PrefixBlocks = append(r.PrefixBlocks, uint64(1000*(i%5)+b))
			}
		}
		if err := w.Write(&r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	real, virtual := filepath.Join(t.TempDir(), "real"), filepath.Join(t.TempDir(), "virtual")
	t.Logf("\n%s", command(t, append([]string{trace, "-q", "--cache", "salt", "-o", real}, server...)...))
	rows := readRows(t, real)
	out := command(t, append([]string{trace, "-q", "--virtual", "--speedup", "1000", "-o", virtual}, smallSim...)...)
	t.Logf("\n%s", out)

	cachedReal, cachedSim := 0, 0
	for i, v := range readRows(t, virtual) { // by arrival, as the others
		if r := rows[i]; r.ID != v.ID || r.Result != traceformat.ResultOK || r.ServedOutputTokens != v.ServedOutputTokens {
			t.Fatalf("row %d is request %d, %s with %d tokens; simulated %d with %d", i, r.ID, r.Result, r.ServedOutputTokens.V, v.ID, v.ServedOutputTokens.V)
		}
		a, b := int(rows[i].ServedCachedTokens.V), int(v.ServedCachedTokens.V)
		cachedReal, cachedSim = cachedReal+a, cachedSim+b
		if a != b {
			different++
			t.Logf("request %d: %d cached tokens, simulated %d", v.ID, a, b)
		}
	}
	m, err := replay.ReadManifest(virtual)
	if err != nil {
		t.Fatal(err)
	}
	before, after := readPage(t, filepath.Join(real, "metrics-first.txt")), readPage(t, filepath.Join(real, "metrics-last.txt"))
	preempted := after("vllm:num_preemptions_total") - before("vllm:num_preemptions_total")
	s := m.Simulation
	passes := func(at func(string) float64) []float64 {
		var c []float64
		for _, b := range s.IterationBounds {
			c = append(c, at(fmt.Sprintf(`vllm:iteration_tokens_total_bucket le="%.1f"`, b)))
		}
		return append(c, at(`vllm:iteration_tokens_total_bucket le="+Inf"`))
	}
	first, last := passes(before), passes(after)
	total, n, sum := 0.0, int64(0), 0.0
	for i := range last {
		last[i] -= first[i]
	}
	total = last[len(last)-1]
	for _, k := range s.IterationTokens {
		n += k
	}
	ks := 0.0
	for i, k := range s.IterationTokens {
		sum += float64(k) / float64(n)
		ks = max(ks, math.Abs(sum-last[i]/total))
	}
	t.Logf("%d requests: cached tokens %d and simulated %d, %d requests differ; preemptions %.0f and %d; passes %.0f and %d, KS of their tokens %.4f",
		len(rows), cachedReal, cachedSim, different, preempted, s.Preemptions, total, n, ks)
	if preempted < 100 || math.Abs(float64(s.Preemptions)/preempted-1) > 0.1 {
		t.Errorf("%.0f preemptions and %d simulated, want at least 100 and within 10 %%", preempted, s.Preemptions)
	}
	if ks > 0.05 {
		t.Errorf("the tokens of passes are %.3f apart (KS), want 0.05", ks)
	}
	return different
}

// readPage reads a page of metrics; samples are asked for by their name and,
// where there is one, their label le.
func readPage(t *testing.T, name string) func(string) float64 {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return func(what string) float64 {
		family, label, _ := strings.Cut(what, " ")
		sum := 0.0
		for line := range strings.Lines(string(b)) {
			if rest, ok := strings.CutPrefix(line, family); ok && (rest[0] == '{' || rest[0] == ' ') && strings.Contains(rest, label) {
				v, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, ' ')+1:]), 64)
				if err != nil {
					t.Fatal(err)
				}
				sum += v
			}
		}
		return sum
	}
}

// A fit to one paced run of vLLM predicts another load, as well as vLLM runs
// agree with each other or within 15 %.
func TestEngineVLLMSimulatedLatencies(t *testing.T) {
	compareLatencies(t, 40*time.Second, "--backend", "vllm", "--url", startSmallVLLM(t))
}

// compareLatencies fits the engine of a server to one load and compares another
// with its simulation; each run sends for span.
func compareLatencies(t *testing.T, span time.Duration, server ...string) {
	t.Helper()
	dir := t.TempDir()
	traffic := func(rate float64) []string {
		return []string{
			"--synthetic", fmt.Sprintf("rate=%.2f,arrival=poisson,prompt-tokens=lognormal:130,0.6,output-tokens=lognormal:40,0.5", rate),
			"--duration", span.String(), "--too-long", "clip", "--max-model-len", "1024", "-q",
		}
	}
	play := func(name string, args ...string) string {
		out := filepath.Join(dir, name)
		command(t, append(append(args, "--cache", "salt", "-o", out), server...)...)
		return out
	}
	// What the engine can do: a closed loop that keeps its cache full.
	closed := play("closed", append(traffic(10), "--concurrency", "8")...)
	m, err := replay.ReadManifest(closed)
	if err != nil {
		t.Fatal(err)
	}
	most := m.Summary.Rates.Completed
	fit := play("fit", traffic(0.7*most)...)
	var runs []string
	for i := range 5 {
		runs = append(runs, play(fmt.Sprintf("other%d", i), traffic(0.45*most)...))
	}
	cost := filepath.Join(dir, "cost.json")
	out := command(t, "sim-fit", fit, "--validate", runs[0], "--option", "max-num-batched-tokens=512", "--option", "max-num-seqs=64", "-q", "-o", cost)
	t.Logf("the engine completes %.1f requests a second in a closed loop of 8\n%s", most, out)
	virtual := filepath.Join(dir, "virtual")
	command(t, append(traffic(0.45*most), "--virtual", "--backend", "sim="+cost, "-o", virtual)...)

	figure := func(run string, of func(*traceformat.Row) traceformat.Opt[time.Duration], q float64) float64 {
		var all []float64
		for _, r := range readRows(t, run) {
			if d, ok := of(r).Get(); ok && r.Result == traceformat.ResultOK {
				all = append(all, d.Seconds()*1e3)
			}
		}
		slices.Sort(all)
		return stats.Quantile(all, q)
	}
	for _, metric := range []struct {
		name string
		of   func(*traceformat.Row) traceformat.Opt[time.Duration]
	}{
		{"TTFT", func(r *traceformat.Row) traceformat.Opt[time.Duration] { return r.TTFT }},
		{"E2E", func(r *traceformat.Row) traceformat.Opt[time.Duration] { return r.E2E }},
	} {
		for _, q := range []float64{0.5, 0.9} {
			var real, apart []float64
			for _, run := range runs {
				real = append(real, figure(run, metric.of, q))
			}
			for i, a := range real {
				for _, b := range real[:i] {
					apart = append(apart, math.Abs(a-b)/min(a, b))
				}
			}
			slices.Sort(real)
			slices.Sort(apart)
			median, floor := stats.Quantile(real, 0.5), stats.Quantile(apart, 0.5)
			simulated := figure(virtual, metric.of, q)
			off, limit := simulated/median-1, max(0.15, 1.5*floor)
			t.Logf("%s p%.0f: the engine %.1f ms (%.1f to %.1f, runs %.1f %% apart in the median), simulated %.1f ms: %+.1f %%, limit %.1f %%",
				metric.name, 100*q, median, real[0], real[len(real)-1], 100*floor, simulated, 100*off, 100*limit)
			if math.Abs(off) > limit {
				t.Errorf("%s p%.0f is %+.1f %% off, limit %.1f %%", metric.name, 100*q, 100*off, 100*limit)
			}
		}
	}
}
