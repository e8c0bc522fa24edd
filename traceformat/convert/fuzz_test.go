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
	for _, s := range seeds {
		in := testdata(f, s)
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

func FuzzVLLMBench(f *testing.F) {
	fuzzImporter(f, "vllm-bench", "vllmbench.json", "vllmbench_chat.json")
}

func FuzzAIPerf(f *testing.F) { fuzzImporter(f, "aiperf", "aiperf.jsonl", "aiperf_summary.json") }

func FuzzGuideLLM(f *testing.F) { fuzzImporter(f, "guidellm", "guidellm.json") }

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
