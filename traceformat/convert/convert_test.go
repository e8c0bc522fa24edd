package convert

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"reprise/traceformat"
)

// open reads in as a file of the named format. params are keys and values;
// "dequantise" asks for that.
func open(t testing.TB, format string, in []byte, params ...string) (traceformat.Reader, error) {
	t.Helper()
	o := &traceformat.OpenOptions{Params: map[string]string{}}
	for i := 0; i < len(params); i += 2 {
		o.Params[params[i]] = params[i+1]
	}
	o.Dequantise = o.Params["dequantise"] != ""
	for _, f := range textFormats {
		if f.Name == format {
			return f.Open(bytes.NewReader(in), "in", o)
		}
	}
	t.Fatalf("no format %q", format)
	return nil, nil
}

// textFormats are the formats that are read as a stream.
var textFormats = []traceformat.Format{
	aiperfFormat, azureFormat, bailianFormat, burstGPTFormat, dynamoFormat, guidellmFormat, mooncakeFormat, vidurFormat, vllmBenchFormat, wekaFormat,
}

// readAll reads in and expects no error.
func readAll(t testing.TB, format string, in []byte, params ...string) (*traceformat.Header, []traceformat.Row) {
	t.Helper()
	r, err := open(t, format, in, params...)
	if err != nil {
		t.Fatalf("open %s: %v", format, err)
	}
	defer func() {
		if err := r.Close(); err != nil {
			t.Errorf("close %s: %v", format, err)
		}
	}()
	var rows []traceformat.Row
	for row, err := range r.All() {
		if err != nil {
			t.Fatalf("read %s: %v", format, err)
		}
		rows = append(rows, *row.Clone())
	}
	return r.Header(), rows
}

// reexport reads in and writes it back in the same format.
func reexport(t testing.TB, format string, in []byte, params ...string) ([]byte, *Report) {
	t.Helper()
	r, err := open(t, format, in, params...)
	if err != nil {
		t.Fatalf("open %s: %v", format, err)
	}
	var out bytes.Buffer
	rep, err := Export(format, &out, r, nil)
	if err != nil {
		t.Fatalf("export %s: %v", format, err)
	}
	return out.Bytes(), rep
}

// sharedDir is where the public traces are, which are not part of the
// repository.
func sharedDir() string {
	dir := os.Getenv("REPRISE_SHARED")
	if dir == "" {
		dir = "../shared"
	}
	if !filepath.IsAbs(dir) {
		dir = filepath.Join("..", "..", dir) // it is relative to the top of the repository
	}
	return filepath.Join(dir, "traces")
}

// shared returns a public trace or skips the test.
func shared(t testing.TB, path ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{sharedDir()}, path...)...))
	if err != nil {
		t.Skipf("public traces are not here (%v): set REPRISE_SHARED to their folder", err)
	}
	return b
}

// TestPublicTracesComeBack imports whole public files and exports them again:
// every byte must be there.
func TestPublicTracesComeBack(t *testing.T) {
	tests := []struct {
		format string
		path   []string
	}{
		{"azure", []string{"azure-llm-2023", "AzureLLMInferenceTrace_conv.csv"}},
		{"azure", []string{"azure-llm-2023", "AzureLLMInferenceTrace_code.csv"}},
		{"mooncake", []string{"mooncake", "conversation_trace.jsonl"}},
	}
	for _, tt := range tests {
		t.Run(tt.path[1], func(t *testing.T) {
			in := shared(t, tt.path...)
			for _, params := range [][]string{nil, {"dequantise", "yes"}} {
				out, rep := reexport(t, tt.format, in, params...)
				if !bytes.Equal(in, out) {
					t.Errorf("%v: %s came back with other bytes: %s", params, tt.path, firstDifference(in, out))
				}
				if len(rep.Lost) > 0 || len(rep.Skipped) > 0 {
					t.Errorf("%v: report = %+v, want nothing lost", params, rep)
				}
			}
		})
	}
}

func testdata(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestOwnFilesComeBack does the same for small files with all that their
// formats allow: other spellings of numbers, quoted fields, missing values.
func TestOwnFilesComeBack(t *testing.T) {
	for file, format := range map[string]string{
		"azure2023.csv": "azure", "azure2024.csv": "azure", "azure2025.csv": "azure",
		"burstgpt1.csv": "burstgpt", "burstgpt3.csv": "burstgpt",
		"mooncake.jsonl": "mooncake", "bailian.jsonl": "bailian",
	} {
		t.Run(file, func(t *testing.T) {
			in := testdata(t, file)
			for _, in := range [][]byte{in, bytes.ReplaceAll(in, []byte("\n"), []byte("\r\n")), bytes.TrimSuffix(in, []byte("\n"))} {
				out, rep := reexport(t, format, in)
				if !bytes.Equal(in, out) {
					t.Errorf("came back with other bytes: %s", firstDifference(in, out))
				}
				if len(rep.Lost) > 0 || len(rep.Skipped) > 0 {
					t.Errorf("report = %+v, want nothing lost", rep)
				}
			}
		})
	}
}

func firstDifference(a, b []byte) string {
	la, lb := bytes.SplitAfter(a, []byte("\n")), bytes.SplitAfter(b, []byte("\n"))
	for i := range min(len(la), len(lb)) {
		if !bytes.Equal(la[i], lb[i]) {
			return "line " + formatDecimal(int64(i+1), 0) + ": " + string(la[i]) + " became " + string(lb[i])
		}
	}
	return "one is longer"
}
