// Package studytest writes folders of experiments whose answers are known, for
// tests of what reads them.
package studytest

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"reprise/traceformat"
)

// An Experiment is a plan.json in the making, with what its runs give.
type Experiment struct {
	Plan    map[string]any // fields of plan.json beyond cells and runs
	Cells   []Cell
	Repeats int
	Rows    int // of each run
	// Telemetry of a run, nil for none.
	Telemetry func(c *Cell, repeat int) map[string]any
	// Row says how long request i of a run takes, and whether it fails.
	Row func(c *Cell, repeat, i int, noise *rand.Rand) (ttft, tpot time.Duration, failed bool)
	// Manifest changes the run.json of a run, and says whether there is a run at
	// all; State the entry of state.json.
	Manifest func(c *Cell, repeat int, m map[string]any) bool
	State    func(c *Cell, repeat int, s map[string]any)
}

// A Cell is one combination.
type Cell struct {
	Name    string
	Factors map[string]string
	Rate    float64        // requests/s
	Extra   map[string]any // fields of the cell in plan.json
	Skip    bool           // has no runs
}

// Tokens of every request.
const (
	PromptTokens = 100
	OutputTokens = 20
)

// Write writes the experiment to dir.
func (e *Experiment) Write(t testing.TB, dir string) {
	t.Helper()
	plan := map[string]any{"version": 2, "repeats": e.Repeats, "seed": 7}
	maps.Copy(plan, e.Plan)
	var cells, runs, states []map[string]any
	for i := range e.Cells {
		c := &e.Cells[i]
		x := map[string]any{"name": c.Name, "backend": "vllm"}
		if c.Factors != nil {
			x["factors"] = c.Factors
		}
		maps.Copy(x, c.Extra)
		cells = append(cells, x)
	}
	for r := range e.Repeats {
		for i := range e.Cells {
			c := &e.Cells[i]
			if c.Skip {
				continue
			}
			n := len(runs) + 1
			runs = append(runs, map[string]any{"number": n, "cell": c.Name, "repeat": r + 1})
			s := map[string]any{"number": n, "cell": c.Name, "repeat": r + 1, "status": "finished"}
			if e.State != nil {
				e.State(c, r+1, s)
			}
			states = append(states, s)
			if s["status"] == "finished" {
				e.run(t, filepath.Join(dir, "runs", fmt.Sprintf("%03d-%s-%d", n, c.Name, r+1)), c, r+1)
			}
		}
	}
	plan["cells"], plan["runs"] = cells, runs
	writeJSON(t, filepath.Join(dir, "plan.json"), plan)
	writeJSON(t, filepath.Join(dir, "state.json"), map[string]any{"version": plan["version"], "runs": states})
}

func writeJSON(t testing.TB, name string, v any) {
	t.Helper()
	b, err := json.MarshalIndent(v, "", " ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(name), 0o755)
	}
	if err == nil {
		err = os.WriteFile(name, b, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (e *Experiment) run(t testing.TB, dir string, c *Cell, repeat int) {
	t.Helper()
	gap := time.Duration(1e9 / c.Rate)
	span := gap * time.Duration(e.Rows)
	m := map[string]any{
		"version": 1, "state": "complete", "program": map[string]any{"name": "replay", "version": "1.2"},
		"plan":   map[string]any{"digest": "d1", "requests": e.Rows, "span_ns": span.Nanoseconds()},
		"server": map[string]any{"backend": "vllm", "info": map[string]any{"engine": "vllm", "version": "0.11", "config": map[string]any{"cell": c.Name, "block_size": 16}}},
		"stats":  map[string]any{"started_at": "2026-01-02T03:04:05Z"},
	}
	if e.Telemetry != nil {
		m["telemetry"] = e.Telemetry(c, repeat)
	}
	if e.Manifest != nil && !e.Manifest(c, repeat, m) {
		return
	}
	writeJSON(t, filepath.Join(dir, "run.json"), m)
	w, err := traceformat.Create(filepath.Join(dir, "trace.parquet"), nil)
	if err != nil {
		t.Fatal(err)
	}
	h := fnv.New64a()
	h.Write([]byte(c.Name))
	noise := rand.New(rand.NewPCG(h.Sum64(), uint64(repeat)))
	for i := range e.Rows {
		ttft, tpot, failed := e.Row(c, repeat, i, noise)
		r := &traceformat.Row{}
		r.ID, r.Arrival = int64(i), gap*time.Duration(i)
		r.PromptTokens, r.OutputTokens = traceformat.Some[int32](PromptTokens), traceformat.Some[int32](OutputTokens)
		r.ServedPromptTokens, r.ServedOutputTokens, r.ServedCachedTokens = r.PromptTokens, r.OutputTokens, traceformat.Some[int32](25)
		r.Scheduled, r.Sent = traceformat.Some(r.Arrival), traceformat.Some(r.Arrival)
		r.TTFT = traceformat.Some(ttft)
		r.E2E = traceformat.Some(ttft + (OutputTokens-1)*tpot)
		r.Close = traceformat.Some(r.Arrival + r.E2E.V)
		for k := range OutputTokens {
			r.ChunkTimes = append(r.ChunkTimes, ttft+time.Duration(k)*tpot)
			r.ChunkTokens = append(r.ChunkTokens, 1)
		}
		r.Status, r.Result, r.FinishReason = traceformat.Some[int16](200), traceformat.ResultOK, "length"
		if failed {
			r.Status, r.Result, r.Error = traceformat.Some[int16](500), traceformat.ResultServerError, "http_500"
		}
		if err := w.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// Evil is a name that would do harm wherever it became markup, script, style, an
// attribute or a command.
const Evil = `"><img src=x onerror=alert(1)></script><script>alert(2)</script>';$(touch /pwned)` + "`id`" + `{{.}}<style>*{display:none}</style>&lt;|`

// Typical is an experiment of sequence limit × caching × load with 3 repeats of
// 400 requests: TTFT doubles without caching, and tenfold beyond what a limit of
// 8 carries. One run is invalid, one partial, one failed, one gone and one cell
// skipped.
func Typical() *Experiment {
	e := &Experiment{
		Repeats: 3, Rows: 400,
		Plan: map[string]any{
			"title": "Batching and caching", "question": "What does caching buy?", "program": map[string]any{"name": "replay", "version": "1.2", "revision": "0123456789abcdef", "go": "go1.26"},
			"created": "2026-01-02T03:04:05Z", "args": []string{"experiment", "run", "matrix.yaml"}, "flags": []string{"warmup=5s"}, "flags_digest": "abcd", "trace": "conv.parquet", "plan_digest": "d1",
			"factors": []map[string]any{
				{"name": "max-num-seqs", "levels": []string{"8", "64", "512"}, "kind": "engine"},
				{"name": "caching", "levels": []string{"on", "off"}, "kind": "engine"},
				{"name": "rate", "levels": []string{"10", "20", "40"}, "kind": "replay", "unit": "requests/s"},
			},
			"slos": []string{"ttft.p95<250ms", "tpot<50ms"}, "price_per_gpu_hour": 3.6, "gpus_per_engine": 2,
			"notes": []string{"each run has a salt of its own"},
		},
		Telemetry: func(c *Cell, repeat int) map[string]any {
			return map[string]any{
				"engine":   map[string]any{"engines": 1, "preemptions": map[string]int64{"8": 0, "64": 3}[c.Factors["max-num-seqs"]]},
				"energy":   map[string]any{"joules": 1000, "joules_per_output_token": 0.5, "gpus": 2},
				"kv_cache": map[string]any{"usage": map[string]any{"mean": 0.2, "min": 0, "max": 0.2 + c.Rate/100, "n": 9}, "growth": []map[string]any{{"in_flight_mean": 2, "used_tokens_mean": 300, "usage_mean": 0.05, "sequence_tokens_mean": 120}, {"in_flight_mean": c.Rate / 3, "used_tokens_mean": 40 * c.Rate, "usage_mean": c.Rate / 100, "sequence_tokens_mean": 140}}},
			}
		},
		Row: func(c *Cell, repeat, i int, noise *rand.Rand) (time.Duration, time.Duration, bool) {
			ms := 40 * math.Exp(0.3*noise.NormFloat64()) * (1 + 0.02*float64(repeat))
			if c.Factors["caching"] == "off" {
				ms *= 2
			}
			if c.Factors["max-num-seqs"] == "8" && c.Rate > 10 {
				ms *= 10
			}
			return time.Duration(ms * 1e6), time.Duration((8 + c.Rate/10) * 1e6 * math.Exp(0.1*noise.NormFloat64())), c.Name == "64-off-40" && i%20 == 0
		},
		Manifest: func(c *Cell, repeat int, m map[string]any) bool {
			switch fmt.Sprintf("%s/%d", c.Name, repeat) {
			case "8-on-10/1":
				m["summary"] = map[string]any{"fidelity": map[string]any{"verdict": "invalid", "reasons": []string{"the send error's p99 is 30 ms"}}}
			case "8-on-10/2":
				m["state"], m["reason"] = "partial", "interrupted"
			case "8-off-10/1":
				return false
			}
			return true
		},
		State: func(c *Cell, repeat int, s map[string]any) {
			if c.Name == "8-off-20" && repeat == 2 {
				s["status"], s["reason"] = "failed", "the engine died: out of memory"
			}
		},
	}
	for _, n := range []string{"8", "64"} {
		for _, k := range []string{"on", "off"} {
			for _, r := range []string{"10", "20", "40"} {
				rate := map[string]float64{"10": 10, "20": 20, "40": 40}[r]
				e.Cells = append(e.Cells, Cell{Name: n + "-" + k + "-" + r, Rate: rate, Factors: map[string]string{"max-num-seqs": n, "caching": k, "rate": r},
					Extra: map[string]any{"options": []string{"max-num-seqs=" + n}, "flags": []string{"rate=" + r}, "trace": "conv.parquet", "requests": 400}})
			}
		}
	}
	e.Cells = append(e.Cells, Cell{Name: "512-on-40", Skip: true, Factors: map[string]string{"max-num-seqs": "512", "caching": "on", "rate": "40"}, Extra: map[string]any{"skipped": "the KV cache is too small"}})
	return e
}
