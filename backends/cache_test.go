package backends

import (
	"math"
	"strings"
	"testing"
)

func TestSumMetric(t *testing.T) {
	const page = `# HELP hits_total Hits of "x".
# TYPE hits_total counter
hits_total{engine="0",model_name="a} 7 \"b\"\\"} 3.0
hits_total{engine="1"} 4 1700000000000
hits_total_created{engine="0"} 1.7e9
hits 1e3
odd{a="1"} NaN
cut{a="1`
	for _, tt := range []struct {
		name string
		want float64
		ok   bool
	}{
		{"hits_total", 7, true}, {"hits", 1000, true}, {"hits_total_created", 1.7e9, true},
		{"odd", 0, false}, {"cut", 0, false}, {"absent", 0, false},
	} {
		if got, ok := SumMetric(page, tt.name); ok != tt.ok || ok && got != tt.want {
			t.Errorf("SumMetric(%s) = %v, %t; want %v, %t", tt.name, got, ok, tt.want, tt.ok)
		}
	}
	if n := CountMetric(page, "absent", "hits", "hits_total"); !n.OK || n.V != 1000 {
		t.Errorf("CountMetric takes %+v, want the first name that is there: 1000", n)
	}
}

// A page is whatever the server sends: a sum is finite, and no page that has
// the name nowhere has a sum.
func FuzzSumMetric(f *testing.F) {
	f.Add("a 1\n", "a")
	f.Add("a{b=\"}\\\"\"} 1\na{} 2\n", "a")
	f.Add("a 1e308\na 1e308\n", "a")
	f.Add("a{", "a")
	f.Fuzz(func(t *testing.T, page, name string) {
		v, ok := SumMetric(page, name)
		if ok && (math.IsNaN(v) || math.IsInf(v, 0) || !strings.Contains(page, name)) {
			t.Errorf("SumMetric(%q, %q) = %v", page, name, v)
		}
		if n := CountMetric(page, name); n.OK && n.V < 0 {
			t.Errorf("CountMetric(%q, %q) = %v", page, name, n.V)
		}
	})
}
