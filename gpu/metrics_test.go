package gpu

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// metricsTable is the table of METRICS.md as the code has it.
func metricsTable() string {
	var b strings.Builder
	b.WriteString("| metric | unit | kind | DCGM | meaning |\n| --- | --- | --- | --- | --- |\n")
	for _, m := range slices.Concat(gpuMetrics, EngineMetrics(), commonMetrics) {
		dcgm := "-"
		if m.DCGM != "" {
			dcgm = "`" + strings.ReplaceAll(m.DCGM, ", ", "`, `") + "`"
		}
		fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s | %s |\n", m.Name, m.Unit, m.Kind, dcgm, strings.ReplaceAll(m.Doc, "|", `\|`))
	}
	b.WriteString("\n## Throttle reasons\n`hw.gpu.throttle.reasons` is a sum of:\n\n| bit | reason | keeps clocks down by power or heat |\n| --- | --- | --- |\n")
	for _, r := range ThrottleReasonTable {
		slow := ""
		if r.Slow {
			slow = "yes"
		}
		fmt.Fprintf(&b, "| 0x%03x | `%s` | %s |\n", r.Bit, r.Name, slow)
	}
	return b.String()
}

// METRICS.md says what the code does. With REPRISE_UPDATE=1 it is made to.
func TestMetricsDoc(t *testing.T) {
	b, err := os.ReadFile("METRICS.md")
	if err != nil {
		t.Fatal(err)
	}
	const mark = "<!-- the table is checked by a test -->\n"
	head, got, ok := strings.Cut(string(b), mark)
	if !ok {
		t.Fatal("METRICS.md has lost its mark")
	}
	want := metricsTable()
	if os.Getenv("REPRISE_UPDATE") != "" {
		if err := os.WriteFile("METRICS.md", []byte(head+mark+want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got != want {
		t.Errorf("the table of METRICS.md is not the code's: run REPRISE_UPDATE=1 go test -run MetricsDoc ./gpu")
	}
}

// Every field that a source maps is a metric of the vocabulary, and DCGM names
// in it are ones that are read.
func TestFieldTables(t *testing.T) {
	for _, table := range []map[string]dcgmField{dcgmFields, smiFields} {
		for name, f := range table {
			if _, ok := Lookup(f.metric); !ok || f.scale <= 0 {
				t.Errorf("%s gives %q times %v", name, f.metric, f.scale)
			}
		}
	}
	for _, m := range gpuMetrics {
		for name := range strings.SplitSeq(m.DCGM, ", ") {
			if name != "" && dcgmFields[name].metric != m.Name {
				t.Errorf("%s names %s, which gives %q", m.Name, name, dcgmFields[name].metric)
			}
		}
	}
	for _, f := range smiQuery {
		if _, ok := smiFields[f]; !ok && !slices.Contains([]string{"index", "uuid", "name", "driver_version"}, f) {
			t.Errorf("nvidia-smi is asked for %s, which nothing reads", f)
		}
	}
}

func TestThrottleReasons(t *testing.T) {
	for _, tt := range []struct {
		mask  float64
		names string
		slow  bool
	}{
		{0, "", false}, {1, "gpu_idle", false}, {0x44, "sw_power_cap hw_thermal_slowdown", true}, {0x100, "display_clock_setting", false}, {-1, "", false}, {1e300, "", false},
	} {
		names, slow := ThrottleReasons(tt.mask)
		if got := strings.Join(names, " "); got != tt.names || slow != tt.slow {
			t.Errorf("ThrottleReasons(%v) = %q, %t; want %q, %t", tt.mask, got, slow, tt.names, tt.slow)
		}
	}
	if v, ok := AttrValue("a=1,pid=77", "pid"); !ok || v != "77" {
		t.Errorf("AttrValue = %q, %t", v, ok)
	}
}
