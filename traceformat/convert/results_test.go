package convert

import (
	"bytes"
	"encoding/json"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"reprise/internal/metrics"
	"reprise/traceformat"
)

// dataset is the output lengths that the runs in testdata asked for, in order;
// vllmbench_chat.json alone had 12 for all.
var dataset = []int32{21, 22, 22, 11, 18, 15, 10, 3, 8, 12, 18, 16, 7, 4, 11, 23, 19, 20, 13, 11, 13, 23, 12, 23}

// figuresOf are the figures of rows by a tool's formulas.
func figuresOf(t *testing.T, tool string, rows []traceformat.Row) map[string]float64 {
	t.Helper()
	as, err := metrics.NewAs(tool, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range rows {
		as.Add(&rows[i])
	}
	out := map[string]float64{}
	for _, f := range as.Figures() {
		out[f.Name] = f.Value
	}
	return out
}

// near checks figures against what the tool says of the same run. Ours of
// pooled gaps have three digits.
func near(t *testing.T, got map[string]float64, name string, want, tolerance float64) {
	t.Helper()
	v, ok := got[name]
	if !ok {
		t.Errorf("no figure %s", name)
	} else if math.Abs(v-want) > tolerance*math.Abs(want)+1e-12 {
		t.Errorf("%s = %v, the tool says %v", name, v, want)
	}
}

// TestResultsAgreeWithTheirTool computes from the imported rows, by a tool's own
// formulas, what the tool said of the run.
func TestResultsAgreeWithTheirTool(t *testing.T) {
	tests := []struct {
		file, format, tool string
		said               func(t *testing.T) map[string]float64
		tolerance          func(name string) float64
		figures            int
	}{
		{"vllmbench.json", "vllm-bench", "vllm", ownTotals("vllmbench.json"), vllmTolerance, 24},
		{"vllmbench_chat.json", "vllm-bench", "vllm", ownTotals("vllmbench_chat.json"), vllmTolerance, 24},
		{"aiperf.jsonl", "aiperf", "aiperf", aiperfTotals("aiperf_summary.json"), aiperfTolerance, 47},
		{"aiperf_chat.jsonl", "aiperf", "aiperf", aiperfTotals("aiperf_chat_summary.json"), aiperfTolerance, 46},
		{"guidellm.json", "guidellm", "guidellm", guidellmTotals("guidellm.json"), guidellmTolerance, 23},
		{"guidellm_chat.json", "guidellm", "guidellm", guidellmTotals("guidellm_chat.json"), guidellmTolerance, 23},
	}
	for _, tt := range tests {
		t.Run(tt.file, func(t *testing.T) {
			_, rows := readAll(t, tt.format, testdata(t, tt.file))
			got := figuresOf(t, tt.tool, rows)
			said := tt.said(t)
			n := 0
			for name := range got {
				if want, ok := said[name]; ok {
					near(t, got, name, want, tt.tolerance(name))
					n++
				}
			}
			if n != tt.figures {
				t.Errorf("%d figures were compared, want %d of %d", n, tt.figures, len(got))
			}
		})
	}
}

// A tool's clock of the whole run starts before its first request and ends after
// its last answer, which rows do not say.
func vllmTolerance(name string) float64 {
	switch {
	case name == "p99_itl_ms": // and numpy interpolates between two of some 280 gaps
		return 0.02
	case strings.Contains(name, "itl"):
		return 3e-3
	case name == "duration" || strings.HasSuffix(name, "throughput"):
		return 0.04
	}
	return 1e-7
}

func aiperfTolerance(name string) float64 {
	switch {
	case strings.HasPrefix(name, "inter_chunk_latency"):
		return 3e-3
	case name == "benchmark_duration" || name == "request_throughput" || name == "output_token_throughput" || name == "total_token_throughput":
		return 0.02
	}
	return 1e-7
}

func guidellmTolerance(name string) float64 {
	switch {
	case strings.HasSuffix(name, "per_second.mean"):
		return 0.02
	case strings.HasSuffix(name, ".std_dev"):
		return 1e-3
	}
	return 1e-4 // its stamps are floats of seconds since 1970: a quarter of a microsecond
}

// ownTotals reads the totals that stand in the result file itself.
func ownTotals(file string) func(*testing.T) map[string]float64 {
	return func(t *testing.T) map[string]float64 {
		out := map[string]float64{}
		for key, v := range keysOf(testdata(t, file)) {
			if f, err := strconv.ParseFloat(v, 64); err == nil {
				out[key] = f
			}
		}
		return out
	}
}

func aiperfTotals(file string) func(*testing.T) map[string]float64 {
	return func(t *testing.T) map[string]float64 {
		out := map[string]float64{}
		for key, v := range keysOf(testdata(t, file)) {
			for stat, v := range keysOf([]byte(v)) {
				f, err := strconv.ParseFloat(v, 64)
				if err != nil {
					continue
				}
				out[key+"."+stat] = f
				if stat == "avg" {
					out[key] = f
				}
			}
		}
		return out
	}
}

func guidellmTotals(file string) func(*testing.T) map[string]float64 {
	return func(t *testing.T) map[string]float64 {
		var d struct {
			Benchmarks []struct {
				Metrics map[string]struct {
					Successful struct {
						Mean, Median float64
						Std          float64            `json:"std_dev"`
						Percentiles  map[string]float64 `json:"percentiles"`
					} `json:"successful"`
				} `json:"metrics"`
			} `json:"benchmarks"`
		}
		if err := json.Unmarshal(testdata(t, file), &d); err != nil {
			t.Fatal(err)
		}
		out := map[string]float64{}
		for name, m := range d.Benchmarks[0].Metrics {
			s := m.Successful
			out[name+".mean"], out[name+".median"], out[name+".std_dev"] = s.Mean, s.Median, s.Std
			out[name+".p95"], out[name+".p99"] = s.Percentiles["p95"], s.Percentiles["p99"]
		}
		return out
	}
}

// TestResultsJoin checks that ids are places in the dataset, whatever the order
// in which requests were sent or ended, so that runs of one dataset join.
func TestResultsJoin(t *testing.T) {
	for _, tt := range []struct {
		file, format string
		failed       map[string]int
	}{
		{"vllmbench.json", "vllm-bench", map[string]int{"server_error truncated": 3, "server_error http_503": 2}},
		{"aiperf.jsonl", "aiperf", map[string]int{"server_error truncated": 3, "server_error http_503": 2}},
		{"aiperf_chat.jsonl", "aiperf", map[string]int{}},
		{"guidellm.json", "guidellm", map[string]int{"server_error truncated": 3, "server_error http_503": 2}},
		{"guidellm_chat.json", "guidellm", map[string]int{}},
	} {
		t.Run(tt.file, func(t *testing.T) {
			h, rows := readAll(t, tt.format, testdata(t, tt.file))
			if len(rows) != len(dataset) || h.Rows.Recorded != int64(len(rows)) {
				t.Fatalf("%d rows, header says %d, want %d", len(rows), h.Rows.Recorded, len(dataset))
			}
			failed := map[string]int{}
			for i := range rows {
				r := &rows[i]
				if r.Result != traceformat.ResultOK {
					failed[r.Result+" "+r.Error]++
					if r.E2E.OK {
						t.Errorf("request %d failed and has an e2e", r.ID)
					}
					continue
				}
				if want := dataset[r.ID]; r.OutputTokens.Or(-1) != want {
					t.Errorf("request %d: output_tokens = %v, want %d", r.ID, r.OutputTokens, want)
				}
			}
			if len(failed) != len(tt.failed) {
				t.Errorf("failures %v, want %v", failed, tt.failed)
			}
			for class, n := range tt.failed {
				if failed[class] != n {
					t.Errorf("failures %v, want %v", failed, tt.failed)
				}
			}
			if !strings.Contains(h.Extra[traceformat.Lacks], lacksSchedule) {
				t.Errorf("the header does not say what is lacking: %q", h.Extra[traceformat.Lacks])
			}
		})
	}
}

// TestResultRows checks one row of each in full units.
func TestResultRows(t *testing.T) {
	at := func(format, file string, id int64) traceformat.Row {
		_, rows := readAll(t, format, testdata(t, file))
		i := slices.IndexFunc(rows, func(r traceformat.Row) bool { return r.ID == id })
		return rows[i]
	}
	v := at("vllm-bench", "vllmbench.json", 0)
	if v.TTFT.V != 24858018*time.Nanosecond || v.E2E.V != 178374219*time.Nanosecond || v.Arrival != 0 || len(v.ChunkTimes) != 21 || v.ChunkTokens[20] != 1 {
		t.Errorf("vllm-bench: ttft %v, e2e %v, arrival %v, %d chunks", v.TTFT.V, v.E2E.V, v.Arrival, len(v.ChunkTimes))
	}
	if v.Model != "llama-3-8b" || v.Endpoint != traceformat.EndpointCompletions || v.PromptTokens.V != 16 || v.TTFTSource != traceformat.TTFTContentEvent {
		t.Errorf("vllm-bench: %+v", v.Request)
	}
	if c := at("vllm-bench", "vllmbench_chat.json", 0); c.TTFTSource != traceformat.TTFTFirstByte || c.ChunkTokens != nil || len(c.ChunkTimes) != 13 {
		t.Errorf("vllm-bench chat: ttft_source %q, %d chunks with tokens %v: the role is an event of its own", c.TTFTSource, len(c.ChunkTimes), c.ChunkTokens)
	}
	a := at("aiperf", "aiperf.jsonl", 0)
	if a.TTFT.V != 50663818 || a.E2E.V != 185134026 || a.Close.V != 185134026 || a.PromptTokens.V != 74 || a.PromptTokensSource != traceformat.SourceUsage || a.CachedTokens != traceformat.Some[int32](0) {
		t.Errorf("aiperf: %+v", a)
	}
	g := at("guidellm", "guidellm.json", 7)
	if g.TTFT.V.Round(time.Microsecond) != 26236*time.Microsecond && g.TTFT.V.Round(time.Microsecond) != 26237*time.Microsecond {
		t.Errorf("guidellm: ttft %v", g.TTFT.V)
	}
	if g.MaxTokens != traceformat.Some[int32](3) || g.PromptTokens.V != 144 || g.ServerQueue.V != 2073748 || g.ServerTTFT.V != 2073748+7731647 || g.Close.V < g.Arrival {
		t.Errorf("guidellm: %+v", g)
	}
}

// TestResultsHoldNoText looks for text, paths and addresses in what is kept.
func TestResultsHoldNoText(t *testing.T) {
	for file, format := range resultFiles {
		h, rows := readAll(t, format, testdata(t, file))
		var out bytes.Buffer
		if err := json.NewEncoder(&out).Encode(h); err != nil {
			t.Fatal(err)
		}
		for i := range rows {
			out.Write(rows[i].AppendJSON(nil))
		}
		for _, part := range []string{"(text)", "http:", "Error", "/models", "Unavailable"} {
			if strings.Contains(out.String(), part) {
				t.Errorf("%s: %q was kept", file, part)
			}
		}
	}
}

var resultFiles = map[string]string{
	"vllmbench.json": "vllm-bench", "vllmbench_chat.json": "vllm-bench", "aiperf.jsonl": "aiperf", "aiperf_chat.jsonl": "aiperf",
	"guidellm.json": "guidellm", "guidellm_chat.json": "guidellm",
}

// TestResultsAreDetected checks that one format claims each.
func TestResultsAreDetected(t *testing.T) {
	files := map[string]string{"aiperf_summary.json": "aiperf"}
	maps.Copy(files, resultFiles)
	for file, want := range files {
		in := testdata(t, file)
		for _, f := range textFormats {
			if got := f.Detect(in[:min(len(in), 64<<10)]); got != (f.Name == want) {
				t.Errorf("%s.Detect(%s) = %t", f.Name, file, got)
			}
		}
	}
}

func TestResultsRefused(t *testing.T) {
	vllm, aiperf := string(testdata(t, "vllmbench.json")), string(testdata(t, "aiperf.jsonl"))
	guidellm := string(testdata(t, "guidellm.json"))
	first, _, _ := strings.Cut(aiperf, "\n")
	for _, tt := range []struct {
		name, format, in, want string
		params                 []string
	}{
		// vLLM leaves latencies and queue_times in a file without details.
		{"vllm without details", "vllm-bench", `{"model_id":"m","tokenizer_id":"m","num_prompts":2,"latencies":[1,2],"queue_times":[0,0],"completed":2}`, "--save-detailed", nil},
		{"vllm appended", "vllm-bench", vllm + vllm, "--append-result", nil},
		{"vllm cut", "vllm-bench", vllm[:len(vllm)/2], "cut short", nil},
		{"vllm lists that differ", "vllm-bench", strings.Replace(vllm, `"ttfts": [`, `"ttfts": [0.1, `, 1), "ttfts has 25 items", nil},
		{"vllm with a negative time", "vllm-bench", strings.Replace(vllm, `"ttfts": [0.`, `"ttfts": [-0.`, 1), "ttfts: -0.02485801799957698", nil},
		{"vllm not a list", "vllm-bench", strings.Replace(vllm, `"errors": [`, `"errors": {"a": [`, 1), "where a '[' has to be", nil},
		{"aiperf summary", "aiperf", string(testdata(t, "aiperf_summary.json")), "profile_export.jsonl", nil},
		{"aiperf raw", "aiperf", strings.Replace(first, `"metrics"`, `"responses"`, 1), "profile_export.jsonl", nil},
		{"aiperf twice", "aiperf", aiperf + aiperf, "comes twice", nil},
		{"aiperf cut", "aiperf", aiperf[:len(aiperf)-100], "cut short", nil},
		{"aiperf in another unit", "aiperf", strings.Replace(aiperf, `,"unit":"ms"`, `,"unit":"parsec"`, 1), "want a unit of time", nil},
		{"guidellm yaml", "guidellm", "benchmarks:\n- config:\n    environment:\n      module: guidellm.scheduler\n", "--output kind=json", nil},
		{"guidellm cut", "guidellm", guidellm[:len(guidellm)/2], "cut short", nil},
		{"guidellm without requests", "guidellm", `{"metadata":{"guidellm_version":"0.8.1"},"benchmarks":[{"requests":{"successful":[],"errored":null}}]}`, "holds no requests", nil},
		{"guidellm with several", "guidellm", strings.Replace(guidellm, `"benchmarks": [`, `"benchmarks": [{},`, 1), "benchmark=0", nil},
		{"guidellm benchmark that is not there", "guidellm", guidellm, "no benchmark 3", []string{"benchmark", "3"}},
		{"guidellm of another version", "guidellm", `{"metadata":{"guidellm_version":"0.2"},"benchmarks":[{"requests":{"successful":[{"start_time":1}]}}]}`, "info.timings", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r, err := open(t, tt.format, []byte(tt.in), tt.params...)
			if err == nil {
				r.Close()
				t.Fatal("it was read")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error = %v, want %q in it", err, tt.want)
			}
			if tt.params == nil {
				located(t, err)
			}
		})
	}
}

// TestGuideLLMBenchmark picks one of several.
func TestGuideLLMBenchmark(t *testing.T) {
	in := strings.Replace(string(testdata(t, "guidellm.json")), `"benchmarks": [`, `"benchmarks": [{"requests": {"successful": []}},`, 1)
	if _, rows := readAll(t, "guidellm", []byte(in), "benchmark", "1"); len(rows) != len(dataset) {
		t.Errorf("%d rows, want %d", len(rows), len(dataset))
	}
}

// TestAIPerfTurns gives conversations ids that do not depend on when their turns
// ended, and leaves warm-up out.
func TestAIPerfTurns(t *testing.T) {
	line := func(session, turn, start int, phase string) string {
		return `{"metadata":{"session_num":` + strconv.Itoa(session) + `,"turn_index":` + strconv.Itoa(turn) + `,"request_start_ns":` + strconv.Itoa(start) +
			`,"request_end_ns":` + strconv.Itoa(start+5) + `,"benchmark_phase":"` + phase + `"},"metrics":{"request_latency":{"value":0.000005,"unit":"ms"}}}` + "\n"
	}
	h, rows := readAll(t, "aiperf", []byte(line(0, 0, 5, "warmup")+line(1, 0, 20, "profiling")+line(0, 1, 30, "profiling")+line(0, 0, 10, "profiling")))
	want := []struct{ id, session, parent int64 }{{0, 0, -1}, {1, 1, -1}, {1 << 32, 0, 0}}
	if len(rows) != len(want) {
		t.Fatalf("%d rows, want %d", len(rows), len(want))
	}
	for i, w := range want {
		if r := rows[i]; r.ID != w.id || r.Session.V != w.session || r.Parent.Or(-1) != w.parent || r.E2E.V != 5 {
			t.Errorf("row %d = %+v, want %+v", i, r.Request, w)
		}
	}
	if h.Rows.Dropped["warmup"] != 1 || h.Rows.Seen != 4 {
		t.Errorf("counts = %+v, want one warmup of 4", h.Rows)
	}
}
