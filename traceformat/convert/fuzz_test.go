package convert

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"testing"

	"github.com/google/go-cmp/cmp"

	"reprise/traceformat"
)

// fuzzImporter checks what every caller of an importer relies on: no panic; an
// error that is located; rows that a writer takes, with ids from 0, in order of
// arrival where the format says so, and with an Extra that is JSON. Where the
// format can be written, what is written reads back as the same rows.
func fuzzImporter(f *testing.F, format string, seeds ...string) {
	var inputs [][]byte
	for _, s := range seeds {
		inputs = append(inputs, testdata(f, s))
	}
	fuzzInputs(f, format, inputs...)
}

func fuzzInputs(f *testing.F, format string, seeds ...[]byte) {
	for _, in := range seeds {
		f.Add(in, false)
		f.Add(in[:len(in)/2], true)
	}
	f.Fuzz(func(t *testing.T, in []byte, dequantise bool) {
		params := []string{"lengths", "cumulative"}
		if dequantise {
			params = append(params, "dequantise", "yes")
		}
		r, err := open(t, format, in, params...)
		if err != nil {
			located(t, err)
			return
		}
		var rows []row
		ids := map[int64]bool{}
		for row, err := range r.All() {
			if err != nil {
				located(t, err)
				return
			}
			if err := row.Check(); err != nil {
				t.Fatalf("row %d: %v", row.ID, err)
			}
			if len(rows) > 0 && row.Arrival < rows[len(rows)-1].Arrival {
				t.Fatalf("row %d arrives before the one before it", row.ID)
			}
			if row.Extra != "" && !json.Valid([]byte(row.Extra)) {
				t.Fatalf("row %d: extra is %q", row.ID, row.Extra)
			}
			if ids[row.ID] || row.ID < 0 {
				t.Fatalf("id %d comes twice or is negative", row.ID)
			}
			ids[row.ID] = true
			rows = append(rows, *row.Clone())
		}
		h := r.Header()
		if h.Rows.Recorded != int64(len(rows)) {
			t.Fatalf("header says %d rows of %d", h.Rows.Recorded, len(rows))
		}
		if err := h.Check(); err != nil {
			t.Fatalf("header: %v", err)
		}
		if _, ok := targets[format]; !ok || len(rows) == 0 {
			return
		}
		var out bytes.Buffer
		if _, err := Export(format, &out, &memory{header: *h, rows: rows}, nil); err != nil {
			t.Fatalf("export: %v", err)
		}
		// The draws belong to the seed and the row, so that they come out alike.
		again, err := open(t, format, out.Bytes(), params...)
		if err != nil {
			t.Fatalf("import of the export: %v\n%q", err, out.Bytes())
		}
		i := 0
		for row, err := range again.All() {
			if err != nil {
				t.Fatalf("import of the export: %v\n%q", err, out.Bytes())
			}
			if i == len(rows) {
				t.Fatalf("export has more rows than the %d that were there", len(rows))
			}
			if diff := cmp.Diff(&rows[i], row); diff != "" {
				t.Fatalf("row %d of the export (-want +got):\n%s\n%q", i, diff, out.Bytes())
			}
			i++
		}
		if i != len(rows) {
			t.Fatalf("export has %d rows, want %d", i, len(rows))
		}
	})
}

func located(t *testing.T, err error) {
	t.Helper()
	if err == io.EOF {
		t.Fatal("io.EOF is no error of a file")
	}
	if _, ok := errors.AsType[*traceformat.RowError](err); !ok {
		t.Fatalf("error %v is a %T, want a *traceformat.RowError", err, err)
	}
}

func FuzzAzure(f *testing.F) {
	fuzzImporter(f, "azure", "azure2023.csv", "azure2024.csv", "azure2025.csv")
}

func FuzzBurstGPT(f *testing.F) { fuzzImporter(f, "burstgpt", "burstgpt1.csv", "burstgpt3.csv") }

func FuzzMooncake(f *testing.F) {
	fuzzImporter(f, "mooncake", "mooncake.jsonl", "mooncake_sessions.jsonl")
}

func FuzzBailian(f *testing.F) { fuzzImporter(f, "bailian", "bailian.jsonl") }

func FuzzVidur(f *testing.F) { fuzzImporter(f, "vidur", "vidur.csv") }

func FuzzDynamo(f *testing.F) { fuzzImporter(f, "dynamo", "dynamo.jsonl") }

func FuzzWeka(f *testing.F) { fuzzImporter(f, "weka", "weka.json") }

// The result files in testdata are so long that mutating them gets nowhere.
func FuzzVLLMBench(f *testing.F) {
	fuzzInputs(f, "vllm-bench", []byte(`{"endpoint_type": "openai-chat", "model_id": "m", "tokenizer_id": "/m/t", "num_prompts": 3, "request_rate": Infinity}`),
		[]byte(`{"backend":"openai","model_id":"m","tokenizer_id":"t","num_prompts":3,"input_lens":[16,8,1],"output_lens":[3,0,2],"ttfts":[0.5,0.0,1e-2],`+
			`"itls":[[0.25,0.125],[],[0.5]],"latencies":[0.875,0.0,0.51],"start_times":[7.5,7.25,8],"queue_times":[0,0.1,0],`+
			`"generated_texts":["a","","b"],"errors":["","Service Unavailable",""]}`))
}

func FuzzAIPerf(f *testing.F) {
	lines := bytes.SplitAfter(testdata(f, "aiperf.jsonl"), []byte("\n"))
	fuzzInputs(f, "aiperf", lines[4], []byte(`{"metadata":{"session_num":1,"turn_index":0,"request_start_ns":1795546011486823830,"request_end_ns":1795546011671957856,`+
		`"benchmark_phase":"profiling","profiling_index":0},"metrics":{"request_latency":{"value":185.134026,"unit":"ms"},"time_to_first_token":{"value":50.5,"unit":"ms"},`+
		`"output_sequence_length":{"value":3,"unit":"tokens"},"usage_completion_tokens":{"value":3,"unit":"tokens"},"inter_chunk_latency":{"value":[0.0,7.5],"unit":"ms"}}}`))
}

func FuzzGuideLLM(f *testing.F) {
	fuzzInputs(f, "guidellm", []byte(`{"metadata":{"guidellm_version":"0.8.1"},"config":{"spec":{"backend":{"model":"m","request_format":"/v1/completions"}}},`+
		`"benchmarks":[{"scheduler_metrics":{"requests_made":{"total":3}},"requests":{"successful":[{"request_args":"{\"stream\":true,\"body\":{\"max_tokens\":3}}",`+
		`"info":{"turn_index":0,"error":null,"timings":{"queued":3.5,"request_start":4.25,"first_request_iteration":4.5,"first_token_iteration":4.5,"last_token_iteration":5.125,`+
		`"token_iterations":3,"request_end":5.5,"resolve_end":5.5,"targeted_start":4.0}},"response_metrics":{"queue_time_ms":2.5,"time_to_first_token_ms":7,"generation_time_ms":1},`+
		`"prompt_tokens":144,"output_tokens":3,"cached_tokens":0}],"errored":[{"info":{"error":"ReadTimeout('')","timings":{"queued":3.25,"resolve_start":3.5,"resolve_end":9}}}],"incomplete":null}}]}`))
}

// FuzzDetect checks that detection neither panics nor lets two formats claim
// one file.
func FuzzDetect(f *testing.F) {
	for _, name := range []string{"azure2023.csv", "burstgpt3.csv", "mooncake.jsonl", "bailian.jsonl", "vidur.csv", "weka.json", "dynamo.jsonl", "vllmbench.json", "aiperf.jsonl", "aiperf_summary.json", "guidellm.json"} {
		f.Add(testdata(f, name))
	}
	f.Fuzz(func(t *testing.T, head []byte) {
		var claims []string
		for _, f := range textFormats {
			if f.Detect(head) {
				claims = append(claims, f.Name)
			}
		}
		if len(claims) > 1 {
			t.Errorf("%v claim %.200q", claims, head)
		}
	})
}
