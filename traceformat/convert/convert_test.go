package convert

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"reprise/traceformat"
)

// open reads in as a file of the named format.
func open(t testing.TB, format string, in []byte, params ...string) (traceformat.Reader, error) {
	t.Helper()
	o := &traceformat.OpenOptions{Params: map[string]string{}}
	for i := 0; i < len(params); i += 2 {
		if params[i] == "dequantise" {
			o.Dequantise = true
			continue
		}
		o.Params[params[i]] = params[i+1]
	}
	for _, f := range textFormats {
		if f.Name == format {
			return f.Open(bytes.NewReader(in), "in", o)
		}
	}
	t.Fatalf("no format %q", format)
	return nil, nil
}

// textFormats are the formats that are read as a stream.
var textFormats = []traceformat.Format{azureFormat, bailianFormat, burstGPTFormat, mooncakeFormat, vidurFormat}

// readAll reads in and expects no error.
func readAll(t testing.TB, format string, in []byte, params ...string) (*traceformat.Header, []traceformat.Row) {
	t.Helper()
	r, err := open(t, format, in, params...)
	if err != nil {
		t.Fatalf("open %s: %v", format, err)
	}
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

// shared returns a file of the public traces, which are not part of the
// repository, or skips the test.
func shared(t testing.TB, path ...string) []byte {
	t.Helper()
	dir := os.Getenv("REPRISE_SHARED")
	if dir == "" {
		dir = "../shared"
	}
	if !filepath.IsAbs(dir) {
		dir = filepath.Join("..", "..", dir) // it is relative to the top of the repository
	}
	name := filepath.Join(append([]string{dir, "traces"}, path...)...)
	b, err := os.ReadFile(name)
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
			for _, params := range [][]string{nil, {"dequantise", ""}} {
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

func firstDifference(a, b []byte) string {
	la, lb := bytes.SplitAfter(a, []byte("\n")), bytes.SplitAfter(b, []byte("\n"))
	for i := range min(len(la), len(lb)) {
		if !bytes.Equal(la[i], lb[i]) {
			return "line " + formatDecimal(int64(i+1), 0) + ": " + string(la[i]) + " became " + string(lb[i])
		}
	}
	return "one is longer"
}
