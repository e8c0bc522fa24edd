package traceformat

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"reprise/internal/durable"
)

// interopTime is what setting up the Python libraries may take before the test
// is skipped; with REPRISE_INTEROP=1 it may take ten minutes and a failure is
// one of the test.
const interopTime = 45 * time.Second

var libraries = []string{"pandas", "pyarrow", "duckdb", "polars"}

// interopPython returns a Python with the libraries, from a virtual environment
// in the user's cache that is made when it is absent.
func interopPython(t *testing.T) string {
	t.Helper()
	must := os.Getenv("REPRISE_INTEROP") != ""
	give := func(format string, args ...any) {
		t.Helper()
		if must {
			t.Fatalf(format, args...)
		}
		t.Skipf("other readers of Parquet were not tried (REPRISE_INTEROP=1 insists): "+format, args...)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		give("%v", err)
	}
	dir := filepath.Join(cache, "reprise", "interop")
	python := filepath.Join(dir, "bin", "python")
	imports := exec.Command(python, "-c", "import "+strings.Join(libraries, ", "))
	if imports.Run() == nil {
		return python
	}
	if testing.Short() {
		give("-short sets nothing up")
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		give("%v", err)
	}
	lock, err := os.Create(filepath.Join(dir, "lock"))
	if err != nil {
		give("%v", err)
	}
	defer lock.Close()
	if durable.LockFile(lock) != nil {
		give("another test is setting them up")
	}
	limit := interopTime
	if must {
		limit = 10 * time.Minute
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for _, args := range [][]string{
		{"python3", "-m", "venv", dir},
		append([]string{python, "-m", "pip", "install", "--quiet"}, libraries...),
	} {
		if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
			give("%s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	return python
}

// interopValue is what a column of a row is in the JSON of interop.py.
func interopValue(t *testing.T, c *column, r *Row) any {
	b := c.field.appendJSON(nil, r)
	switch {
	case len(b) == 0:
		return nil
	case c.name == "extra":
		return r.Extra
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		t.Fatal(err)
	}
	var plain func(v any) any
	plain = func(v any) any {
		switch v := v.(type) {
		case json.Number:
			if c.typ == "double" {
				f, err := v.Float64()
				if err != nil {
					t.Fatal(err)
				}
				return map[string]any{"float": f}
			}
			return v.String()
		case []any:
			for i := range v {
				v[i] = plain(v[i])
			}
		}
		return v
	}
	return plain(v)
}

func TestOtherReaders(t *testing.T) {
	python := interopPython(t)
	rows := append([]Row{*full(), {}}, mixed(30, 2000)...)
	rows[1].Arrival = rows[0].Arrival
	for i := range rows[2:] {
		rows[i+2].Arrival += rows[0].Arrival + 1
		rows[i+2].ID += 100
	}
	rows[2].PrefixBlocks = []uint64{1 << 63, 1<<63 - 1, 1<<64 - 1, 0}
	rows[2].OutputBlocks = nil
	rows[3].PrefixBlocks, rows[3].OutputBlocks = []uint64{}, nil
	rows[4].PrefixBlocks = nil
	rows[5].Session = Some[int64](-1 << 63)
	rows[6].Temperature = Some(1.0 / 3)
	path := filepath.Join(t.TempDir(), "t.parquet")
	header := fullHeader()
	writeTrace(t, path, header, rows)

	wantMeta := map[string]string{}
	header.Sorted, header.Rows.Recorded = false, int64(len(rows))
	if err := header.footer(func(k, v string) { wantMeta[k] = v }); err != nil {
		t.Fatal(err)
	}
	for _, library := range libraries {
		t.Run(library, func(t *testing.T) {
			cmd := exec.Command(python, filepath.Join("testdata", "interop.py"), library, path)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v\n%s", err, &stderr)
			}
			var got struct {
				Version string
				Order   []string
				Columns map[string][]any
				Meta    map[string]string
			}
			if err := json.Unmarshal(out, &got); err != nil {
				t.Fatal(err)
			}
			t.Logf("%s %s", library, got.Version)
			if diff := cmp.Diff(ColumnNames(), got.Order); diff != "" {
				t.Errorf("columns (-want +got):\n%s", diff)
			}
			wrong := 0
			for i := range columns {
				c := &columns[i]
				values := got.Columns[c.name]
				if len(values) != len(rows) {
					t.Fatalf("column %s has %d values, want %d", c.name, len(values), len(rows))
				}
				for k := range rows {
					want := interopValue(t, c, &rows[k])
					if !cmp.Equal(want, values[k]) && wrong < 10 {
						wrong++
						t.Errorf("row %d, %s: %s, want %s", k, c.name, short(values[k]), short(want))
					}
				}
			}
			for k, want := range wantMeta {
				if got.Meta != nil && got.Meta[k] != want {
					t.Errorf("key %s = %q, want %q", k, got.Meta[k], want)
				}
			}
			if got.Meta == nil && library != "pandas" {
				t.Error("no footer keys")
			}
		})
	}
}

func short(v any) string {
	s := fmt.Sprint(v)
	if len(s) > 200 {
		s = s[:200] + "… (" + strconv.Itoa(len(s)) + " bytes)"
	}
	return s
}
