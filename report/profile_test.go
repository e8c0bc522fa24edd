package report

import (
	"bytes"
	"encoding/csv"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"reprise/internal/metrics"
	"reprise/internal/stats"
	"reprise/traceformat"
)

// A sketch tells quantiles to a percent, also after it was merged from parts.
func TestSketchQuantiles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Float64Range(2e3, 1e12), 1, 300).Draw(t, "values")
		var parts [3]sketch
		for i, v := range values {
			parts[i%3].add(v)
		}
		var s sketch
		for i := range parts {
			s.merge(&parts[i])
		}
		sorted := slices.Clone(values)
		slices.Sort(sorted)
		for _, rank := range []int{0, len(sorted) / 2, len(sorted) - 1} {
			if got, want := s.at(float64(rank)), sorted[rank]; math.Abs(got/want-1) > 0.0101 {
				t.Fatalf("rank %d of %d: %v, want %v", rank, len(sorted), got, want)
			}
		}
		c := s.curve()
		if !slices.IsSorted(c.X) || !slices.IsSorted(c.Y) || c.N != int64(len(values)) || c.Y[len(c.Y)-1] != 1 || len(c.X) > maxCurve+1 {
			t.Fatalf("curve %+v", c)
		}
	})
}

// Windows that were joined on the way hold what one pass with the last width
// would have put there.
func TestWindowsAddUp(t *testing.T) {
	path := madeRun(t, shape{n: 3000, seed: 1, factor: 1, fail: func(i int) bool { return i%50 == 0 }})
	ps, err := Profiles(t.Context(), []string{path}, Config{})
	if err != nil {
		t.Fatal(err)
	}
	p := ps[0]
	var requests, ok, failed int64
	var tokens, busy float64
	for i, w := range p.Windows {
		from := time.Duration(i) * p.Width
		var n int64
		for k := range 3000 {
			if at := time.Duration(k) * 50 * time.Millisecond; at >= from && at < from+p.Width {
				n++
			}
		}
		if w.Requests != n {
			t.Errorf("window %d holds %d requests, want %d", i, w.Requests, n)
		}
		requests, ok, failed = requests+w.Requests, ok+w.OK, failed+w.Failed
		tokens += w.OutputTokens
		busy += w.InFlight * p.Width.Seconds()
		if w.OK >= BandOf && (math.IsNaN(w.TTFT.P10) || w.TTFT.P10 > w.TTFT.P50 || w.TTFT.P50 > w.TTFT.P90) {
			t.Errorf("window %d: %+v", i, w.TTFT)
		}
	}
	if requests != 3000 || failed != 60 || ok != 2940 || math.Abs(tokens-33000) > 1e-6 || len(p.Windows) > drawn {
		t.Errorf("%d requests, %d ok, %d failed, %v tokens in %d windows", requests, ok, failed, tokens, len(p.Windows))
	}
	// In flight adds up to the time that requests took, as the summary has it.
	a, err := Analyse(t.Context(), path, Config{})
	if err != nil {
		t.Fatal(err)
	}
	var stay float64
	r, err := openRun(path, Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.rows(t.Context(), func(row *traceformat.Row) {
		if m := metrics.Measure(row); m.End.OK {
			stay += (m.End.V - m.Sent.V).Seconds()
		}
	}); err != nil {
		t.Fatal(err)
	}
	if math.Abs(busy/stay-1) > 1e-6 {
		t.Errorf("in flight for %v s, want %v", busy, stay)
	}
	if got := a.Profile.TTFT.N; got != 2940 {
		t.Errorf("%d in the curve", got)
	}
}

// Segments hold every request once, and figures that exact ones confirm.
func TestRunSegments(t *testing.T) {
	path := madeRun(t, shape{n: 3000, seed: 1, factor: 1})
	a, err := Analyse(t.Context(), path, Config{})
	if err != nil {
		t.Fatal(err)
	}
	by := map[string]int64{}
	for _, s := range a.Segments {
		by[s.By] += s.Requests
	}
	if by["turn"] != 3000 || by["client"] != 3000 || by["time"] != 3000 || by["prompt_tokens"] < 2900 {
		t.Errorf("requests by grouping: %v", by)
	}
	var first []float64
	r, err := openRun(path, Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.rows(t.Context(), func(row *traceformat.Row) {
		if row.Turn.V == 0 {
			m := metrics.Measure(row)
			first = append(first, float64(m.FromSchedule(m.TTFT).V))
		}
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(first)
	i := slices.IndexFunc(a.Segments, func(s RunSegment) bool { return s.Label == "first turn" })
	f := a.Segments[i].Figures[0]
	want := stats.Quantile(first, 0.5)
	lo, hi, _ := stats.QuantileInterval(len(first), 0.5, stats.Level)
	for _, x := range [][2]float64{{f.V.V, want}, {f.Lo.V, first[lo]}, {f.Hi.V, first[hi]}} {
		if f.Name != "ttft.p50" || math.Abs(x[0]/x[1]-1) > 0.01 {
			t.Errorf("%s of the first turn %v, want %v", f.Name, x[0], x[1])
		}
	}
}

func TestCSV(t *testing.T) {
	path := madeRun(t, shape{n: 600, seed: 1, factor: 1, fail: func(i int) bool { return i%2 == 0 }})
	a, err := Analyse(t.Context(), path, Config{})
	if err != nil {
		t.Fatal(err)
	}
	a.Segments = append(a.Segments, RunSegment{By: "client", Label: `=cmd|'/c calc'!A1,"`, Requests: 30})
	var b, md bytes.Buffer
	if err := a.WriteCSV(&b); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(&b).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, r := range rows[1:] {
		if strings.HasPrefix(r[1], "=") {
			t.Errorf("a formula: %q", r)
		}
		got[strings.Join(r[:4], "/")] = r[4]
	}
	if got["//ttft_with_failures/p99"] != "inf" || got["//requests/failed"] != "300" || got["/"] != "" || strings.Contains(got["//ttft/p50"], ".") {
		t.Errorf("ttft with failures %q, failed %q, ttft %q", got["//ttft_with_failures/p99"], got["//requests/failed"], got["//ttft/p50"])
	}
	if err := a.RenderMarkdown(&md); err != nil || strings.Contains(md.String(), "<script>") || !strings.Contains(md.String(), "&lt;script&gt;") {
		t.Errorf("Markdown, %v:\n%s", err, &md)
	}
}

// Telemetry that cannot be read is a note, and no reason to show nothing.
func TestTelemetryIsNoRequirement(t *testing.T) {
	p := &Profile{Manifest: &Manifest{Telemetry: []byte(`{"engine": 3}`)}, Windows: make([]TimeWindow, 3), Width: time.Second}
	if err := p.telemetry(t.Context(), filepath.Join(t.TempDir(), "none")); err != nil || len(p.Notes) != 1 || p.Findings != nil {
		t.Errorf("%v, notes %q", err, p.Notes)
	}
}

// A bin holds what lies above the edge below it and up to its own.
func TestBin(t *testing.T) {
	check := func(ns float64) {
		k := bin(ns)
		if ns > itlEdges[k] || k > 0 && ns <= itlEdges[k-1] {
			t.Fatalf("%v is put into bin %d", ns, k)
		}
	}
	for k, edge := range itlEdges[:len(itlEdges)-1] {
		for _, ns := range []float64{edge, math.Nextafter(edge, 0), math.Nextafter(edge, math.Inf(1)), edge * 1.005} {
			check(ns)
		}
		if bin(edge) != k {
			t.Fatalf("edge %d is put into bin %d", k, bin(edge))
		}
	}
	for _, ns := range []float64{0, 1, 512, 999, 1e3, 3.6e12, 1e15, math.Inf(1)} {
		check(ns)
	}
}

// The profiles of a comparison are those of its runs alone.
func TestFamilyProfiles(t *testing.T) {
	a, b, c := madeRun(t, shape{n: 500, seed: 1, factor: 1}), madeRun(t, shape{n: 500, seed: 2, factor: 1.3}), madeRun(t, shape{n: 300, seed: 3, factor: 1})
	f, err := CompareAll(t.Context(), [][2]Side{{{"a", []string{a}}, {"b", []string{b}}}, {{"a", []string{a}}, {"c", []string{c}}}}, CompareConfig{Charts: true})
	if err != nil {
		t.Fatal(err)
	}
	got, err := f.Profiles(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want, err := Profiles(t.Context(), []string{a, b, c}, Config{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateNaNs()); diff != "" {
		t.Errorf("profiles (-of the runs alone +of the comparison):\n%s", diff)
	}
	f, err = CompareAll(t.Context(), [][2]Side{{{"a", []string{a}}, {"b", []string{b}}}}, CompareConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Profiles(t.Context()); err == nil {
		t.Error("profiles of a comparison without charts")
	}
}

// Readings that come less often than windows are joined; what was not read for
// long stays unknown.
func TestJoinReadings(t *testing.T) {
	nan := math.NaN()
	v := []float64{nan, 1, nan, 2, nan, 4, nan, nan, nan, nan, nan, nan, 9, nan, 7, nan}
	want := []float64{nan, 1, 1.5, 2, 3, 4, nan, nan, nan, nan, nan, nan, 9, 8, 7, nan}
	joinReadings(v)
	if diff := cmp.Diff(want, v, cmpopts.EquateNaNs()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	joinReadings(nil)
	joinReadings([]float64{nan, 3, nan})
}
