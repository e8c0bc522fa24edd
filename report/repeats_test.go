package report

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"math"
	"strings"
	"testing"
)

func repeatsOf(t *testing.T, runs ...string) *Repeats {
	t.Helper()
	r, err := AnalyseRepeats(t.Context(), Side{"x<b>", runs}, Config{As: "vllm"})
	if err != nil {
		t.Fatal(err)
	}
	var text, md, table bytes.Buffer
	if err := r.RenderText(&text); err != nil {
		t.Fatal(err)
	}
	if err := r.RenderMarkdown(&md); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteCSV(&table); err != nil {
		t.Fatal(err)
	}
	js, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"NaN", "Inf", "%!"} {
		if strings.Contains(text.String()+md.String()+table.String()+string(js), bad) {
			t.Errorf("%s in\n%s\n%s", bad, &text, &md)
		}
	}
	if strings.Contains(md.String(), "<b>") || strings.Contains(md.String(), "<script>") {
		t.Errorf("markup in\n%s", &md)
	}
	records, err := csv.NewReader(&table).ReadAll()
	if err != nil || len(records[0]) != len(csvHead)+2 || len(records) < len(r.Figures)*(len(runs)+1)/2 {
		t.Errorf("%d records of CSV, %v", len(records), err)
	}
	return r
}

// Runs are told apart and never pooled: the figure over them is the mean of
// theirs, and its interval Student's over them.
func TestRepeatsAreNotPooled(t *testing.T) {
	var runs []string
	for i, factor := range []float64{1, 1.1, 0.9, 3} { // one run of four is an outlier
		runs = append(runs, madeRun(t, shape{n: 400 + 1000*(i%2), seed: 300 + uint64(i), factor: factor}))
	}
	r := repeatsOf(t, runs...)
	f := r.Figure("ttft", "p50")
	var v []float64
	for i, name := range runs {
		a, err := Analyse(t.Context(), name, Config{})
		if err != nil {
			t.Fatal(err)
		}
		own := float64(a.Summary.TTFT.Schedule.P50.V)
		if f.Runs[i].V.V != own || !f.Runs[i].Lo.OK {
			t.Errorf("run %d: %+v, alone %v", i, f.Runs[i], own)
		}
		v = append(v, own)
	}
	mean := (v[0] + v[1] + v[2] + v[3]) / 4
	ss := 0.0
	for _, x := range v {
		ss += (x - mean) * (x - mean)
	}
	half := 3.182446305284263 * math.Sqrt(ss/3) / 2 // t(0.975, 3)
	if r.Estimand != Deployment || f.Of != 4 || math.Abs(f.V.V-mean) > 1e-6*mean || math.Abs(f.Lo.V-(mean-half)) > 1e-6*mean || math.Abs(f.Hi.V-(mean+half)) > 1e-6*mean {
		t.Errorf("%+v, want %v ± %v", f, mean, half)
	}
	if e := r.Figure("requests", "failed_share"); e.V.V != 0 || e.Lo.OK || e.Why == "" {
		t.Errorf("no failure: %+v", e)
	}
	if len(r.AsOf) == 0 || len(r.Segments()) < 5 {
		t.Errorf("%d figures of vLLM, %d segments", len(r.AsOf), len(r.Segments()))
	}
	for _, s := range r.Segments() {
		if s.Requests == nil {
			t.Errorf("%s %s has no count", s.By, s.Label)
		}
	}
}

// Below three runs there is no interval over them, and each run has its own.
func TestTwoRepeats(t *testing.T) {
	r := repeatsOf(t, madeRun(t, shape{n: 400, seed: 1, factor: 1}), madeRun(t, shape{n: 400, seed: 2, factor: 1.2}))
	f := r.Figure("ttft", "p90")
	if r.Estimand != TheseRuns || f.Lo.OK || !strings.Contains(f.Why, "takes three") || !f.Runs[0].Lo.OK || !f.Runs[1].Hi.OK {
		t.Errorf("%s: %+v", r.Estimand, f)
	}
	var text bytes.Buffer
	if err := r.RenderText(&text); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text.String(), "each run's own") || !strings.Contains(text.String(), "2 runs: intervals are of each run by itself") {
		t.Errorf("%s", &text)
	}
}

// A figure that is infinite in one run, as most requests never answered, has no
// mean; runs of ten rows and of nothing but failures are told for what they are.
func TestPoorRepeats(t *testing.T) {
	good := madeRun(t, shape{n: 400, seed: 1, factor: 1})
	half := madeRun(t, shape{n: 400, seed: 2, factor: 1, fail: func(i int) bool { return i%4 != 0 }})
	dead := madeRun(t, shape{n: 400, seed: 3, factor: 1, fail: func(int) bool { return true }})
	ten := madeRun(t, shape{n: 10, seed: 4, factor: 1})
	r := repeatsOf(t, good, half, dead, ten)
	if f := r.Figure("ttft_with_failures", "p50"); f.V.OK || f.Lo.OK || !strings.Contains(f.Why, "infinite in 2 of 4") {
		t.Errorf("%+v", f)
	}
	if f := r.Figure("ttft", "p90"); f.Of != 2 || f.Lo.OK {
		t.Errorf("%+v", f)
	}
	if f := r.Figure("requests", "failed_share"); f.Of != 4 || !f.Lo.OK || math.Abs(f.V.V-1.75/4) > 1e-9 {
		t.Errorf("%+v", f)
	}
}

// What was not played from one plan is no repeat.
func TestRepeatsOfTwoThings(t *testing.T) {
	a := powered(t, shape{n: 200, seed: 1, factor: 1}, 0.5)
	b := powered(t, shape{n: 200, seed: 2, factor: 1}, 0.5)
	c := madeRun(t, shape{n: 200, seed: 3, factor: 1})
	r := repeatsOf(t, a, b, c)
	all := strings.Join(r.Warnings, "\n")
	if strings.Contains(all, b+" was not played") || !strings.Contains(all, "one of them is no run") {
		t.Errorf("%s", all)
	}
	if f := r.Figure("energy", "tokens_per_joule"); f == nil || f.Of != 2 || f.V.V != 2 {
		t.Errorf("%+v", f)
	}
}
