package gpu

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// interopPython returns a Python with the readers, which the tests of
// traceformat set up in the user's cache.
func interopPython(t *testing.T) string {
	t.Helper()
	give := t.Skipf
	if os.Getenv("REPRISE_INTEROP") != "" {
		give = t.Fatalf
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		give("other readers of Parquet were not tried: %v", err)
	}
	python := filepath.Join(cache, "reprise", "interop", "bin", "python")
	if err := exec.Command(python, "-c", "import pandas, pyarrow, duckdb, polars").Run(); err != nil {
		give("other readers of Parquet were not tried: REPRISE_INTEROP=1 go test -run OtherReaders ./traceformat sets them up")
	}
	return python
}

// interopFile is a second of two GPUs and an engine, and its rows.
func interopFile(t *testing.T) (path string, samples []Sample) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "run")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(dir, FileName)
	w, err := Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 16 {
		at := time.Duration(i-1) * 200 * ms // the first lies before the run's zero
		for g, device := range []string{"gpu0", "gpu1"} {
			samples = append(samples,
				Sample{Time: at, Source: "nvml", Device: device, Metric: GPUEnergy, Unit: "J", Value: 1e9 + 0.1*float64(i*(g+1))},
				Sample{Time: at, Source: "nvml", Device: device, Metric: GPUPower, Unit: "W", Value: 100.5 + float64(100*g+i)})
		}
	}
	samples = append(samples,
		Sample{Time: 3100 * ms, Source: "agent/nvml", Device: "gpu0", Metric: GPUProcessMemory, Attr: "pid=7", Unit: "By", Value: 1 << 53, Late: 30 * ms},
		Sample{Time: 3200 * ms, Source: "engine", Metric: MetricGap, Unit: "s", Value: 1.5, Note: "cut short … ü"})
	for _, s := range samples {
		w.Add(s)
	}
	w.SetInfo(FileInfo{Program: "v1", Sources: []SourceStatus{{Name: "nvml", Readings: 16}}})
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return path, samples
}

// Pandas, PyArrow, DuckDB and Polars read every value, and what is absent as
// absent.
func TestOtherReaders(t *testing.T) {
	python := interopPython(t)
	path, samples := interopFile(t)
	var want [][]any
	for _, s := range samples {
		row := []any{float64(s.Time), s.Source, s.Device, s.Metric, s.Attr, s.Unit, s.Value, nil, nil}
		if s.Late > 0 {
			row[7] = float64(s.Late)
		}
		if s.Note != "" {
			row[8] = s.Note
		}
		want = append(want, row)
	}
	for _, library := range []string{"pandas", "pyarrow", "duckdb", "polars"} {
		t.Run(library, func(t *testing.T) {
			var got struct {
				Columns []string
				Rows    [][]any
				Info    *FileInfo
			}
			askPython(t, python, &got, "rows", library, path)
			columns := []string{"time_ns", "source", "device", "metric", "attr", "unit", "value", "late_ns", "note"}
			if d := cmp.Diff(columns, got.Columns); d != "" {
				t.Errorf("columns (-want +got):\n%s", d)
			}
			if d := cmp.Diff(want, got.Rows); d != "" {
				t.Errorf("rows (-want +got):\n%s", d)
			}
			if library != "pandas" && (got.Info == nil || got.Info.Version != FormatVersion || got.Info.Program != "v1" || len(got.Info.Sources) != 1) {
				t.Errorf("footer = %+v", got.Info)
			}
		})
	}
}

// The queries that the documentation gives are what DuckDB runs.
func TestDocumentedQueries(t *testing.T) {
	python := interopPython(t)
	path, _ := interopFile(t)
	for doc, want := range map[string][][]any{
		"METRICS.md":           {{"gpu0", 1.5}, {"gpu1", 3.0}},
		"../docs/telemetry.md": {{0.0, 103.5}, {1.0, 108.5}, {2.0, 113.5}},
	} {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		queries := regexp.MustCompile("(?s)```sql\n(.*?)```").FindAllStringSubmatch(string(text), -1)
		if len(queries) != 1 {
			t.Fatalf("%s has %d queries, want 1", doc, len(queries))
		}
		sql := strings.ReplaceAll(queries[0][1], "'run/telemetry.parquet'", "'"+path+"'")
		var got struct{ Rows [][]any }
		askPython(t, python, &got, "query", "duckdb", sql)
		// Sums of floating point are compared to the digits that the counter has.
		near := cmp.Comparer(func(a, b float64) bool { return a-b < 1e-6 && b-a < 1e-6 })
		if d := cmp.Diff(want, got.Rows, near); d != "" {
			t.Errorf("%s (-want +got):\n%s", doc, d)
		}
	}
}

func askPython(t *testing.T, python string, answer any, args ...string) {
	t.Helper()
	cmd := exec.Command(python, append([]string{filepath.Join("testdata", "interop.py")}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, &stderr)
	}
	if err := json.Unmarshal(out, answer); err != nil {
		t.Fatal(err)
	}
}
