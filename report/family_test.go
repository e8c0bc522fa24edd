package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reprise/traceformat"
)

// Three sides: the one that differs is found, the one that does not is not, and
// every p-value is corrected for all metrics of both comparisons.
func TestFamilyCorrectsForAllComparisons(t *testing.T) {
	a, b, c := madeRun(t, shape{n: 2000, seed: 1, factor: 1}), madeRun(t, shape{n: 2000, seed: 2, factor: 1.05}), madeRun(t, shape{n: 2000, seed: 3, factor: 1})
	x, y, z := Side{"base", []string{a}}, Side{"slow: er", []string{b}}, Side{"<b>same", []string{c}}
	f, err := CompareAll(t.Context(), [][2]Side{{x, y}, {x, z}}, CompareConfig{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	tests := 0
	for i, side := range []Side{y, z} {
		alone, err := Compare(t.Context(), x, side, CompareConfig{Seed: 1})
		if err != nil {
			t.Fatal(err)
		}
		if alone.Family != 0 || f.Comparisons[i].Family != 2 || f.Comparisons[i].Mark() != string(rune('B'+i)) {
			t.Errorf("families %d, %d, mark %s", alone.Family, f.Comparisons[i].Family, f.Comparisons[i].Mark())
		}
		stricter := false
		for k := range alone.Metrics {
			m, n := &alone.Metrics[k], &f.Comparisons[i].Metrics[k]
			if m.P.OK {
				tests++
			}
			if m.Name != n.Name || m.P != n.P || n.PHolm.Or(0) < m.PHolm.Or(0) {
				t.Errorf("%s: p %v and %v, corrected %v and %v", m.Name, m.P, n.P, m.PHolm, n.PHolm)
			}
			stricter = stricter || n.PHolm.Or(0) > m.PHolm.Or(0)
		}
		if !stricter {
			t.Errorf("%s: no p-value is corrected for the other comparison", side.Name)
		}
	}
	if f.Tests != tests || f.Baseline != "base" {
		t.Errorf("%d p-values corrected, want %d; baseline %q", f.Tests, tests, f.Baseline)
	}
	if m := f.Comparisons[0].metric("e2e.mean"); m.Verdict != Worse {
		t.Errorf("5 %% slower: %+v", m)
	}
	for _, m := range f.Comparisons[1].Metrics {
		if m.Verdict == Better || m.Verdict == Worse {
			t.Errorf("no slower: %+v", m)
		}
	}

	checks, err := f.Check(gates(t, "e2e.mean > +1%", "slow: er: e2e.mean > +20%", "<b>same:e2e.mean > +20%"))
	if err != nil {
		t.Fatal(err)
	}
	if len(checks[0]) != 2 || len(checks[1]) != 2 || !checks[0][0].Failed || checks[1][0].Failed || checks[0][0].Title() != "slow: er: e2e.mean > +1%" || checks[0][1].Title() != "slow: er: e2e.mean > +20%" {
		t.Errorf("%+v", checks)
	}
	if _, err := f.Check(gates(t, "other: e2e.mean > +1%")); err == nil || !strings.Contains(err.Error(), "slow: er, <b>same") {
		t.Errorf("a gate for a side that is not there: %v", err)
	}
	if _, err := f.Check(gates(t, "e2e.mode > +1%")); err == nil {
		t.Error("a gate on a metric that does not exist")
	}
	var text, md, junit bytes.Buffer
	if err := f.RenderText(&text, checks); err != nil {
		t.Fatal(err)
	}
	if err := f.RenderMarkdown(&md, checks); err != nil {
		t.Fatal(err)
	}
	if err := WriteJUnit(&junit, append(checks[0], checks[1]...)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"A: base", "B: slow: er", "C: <b>same", "all 2 comparisons", "FAIL  slow: er: e2e.mean > +1%", "C - A"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, &text)
		}
	}
	if strings.Contains(strings.ReplaceAll(md.String(), "`<b>same:", ""), "<b>") || !strings.Contains(md.String(), "| e2e.mean |") || strings.Contains(text.String()+md.String(), "NaN") {
		t.Errorf("%s", &md)
	}
	if err := xml.Unmarshal(junit.Bytes(), new(struct{})); err != nil || !strings.Contains(junit.String(), `name="slow: er: e2e.mean &gt; +1%"`) {
		t.Errorf("%v %s", err, &junit)
	}
	if b, err := json.Marshal(f); err != nil || bytes.Contains(b, []byte("NaN")) {
		t.Errorf("JSON: %v", err)
	}
	if _, err := CompareAll(t.Context(), [][2]Side{{x, y}, {x, y}}, CompareConfig{}); err == nil || !strings.Contains(err.Error(), "two sides") {
		t.Errorf("two sides of one name: %v", err)
	}
}

// A gate on a latency that no request has on both sides cannot be judged, and
// does not end in a usage error: the server may be what is broken.
func TestGateOfADeadServer(t *testing.T) {
	a := madeRun(t, shape{n: 300, seed: 1, factor: 1})
	dead := madeRun(t, shape{n: 300, seed: 3, factor: 1, fail: func(int) bool { return true }})
	c := comparison(t, []string{a}, []string{dead}, CompareConfig{})
	checks, err := c.Check(gates(t, "ttft.p99 > +5%", "itl.p50 > 1s", "error_rate > 1%"))
	if err != nil {
		t.Fatal(err)
	}
	if !checks[0].Unknown || !checks[1].Unknown || !checks[2].Failed {
		t.Errorf("%+v", checks)
	}
}

// Nothing is said of sides without a success in common, and a trace that was
// never played is refused.
func TestCompareWithoutSuccesses(t *testing.T) {
	dead := func(seed uint64) string {
		return madeRun(t, shape{n: 300, seed: seed, factor: 1, fail: func(int) bool { return true }})
	}
	a := madeRun(t, shape{n: 300, seed: 1, factor: 1})
	if h := comparison(t, []string{dead(2)}, []string{dead(3)}, CompareConfig{}).Headline(); h != "No request succeeded on both a and b, so that there are no latencies to compare." {
		t.Errorf("both dead: %s", h)
	}
	if h := comparison(t, []string{a}, []string{dead(3)}, CompareConfig{}).Headline(); !strings.HasSuffix(h, "They differ in error_rate.") {
		t.Errorf("one dead: %s", h)
	}
	path := filepath.Join(t.TempDir(), "trace.parquet")
	w, err := traceformat.Create(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		r := &traceformat.Row{}
		r.ID, r.Arrival = int64(i), time.Duration(i)*time.Millisecond
		if err := w.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Compare(t.Context(), Side{"a", []string{a}}, Side{"b", []string{path}}, CompareConfig{}); err == nil || !strings.Contains(err.Error(), path+" says what was asked") {
		t.Errorf("err = %v", err)
	}
}

func TestARunIsNotItsOwnRepeat(t *testing.T) {
	a, b := madeRun(t, shape{n: 300, seed: 1, factor: 1}), madeRun(t, shape{n: 300, seed: 2, factor: 1})
	for _, again := range []string{a, filepath.Dir(a) + "/./" + filepath.Base(a)} {
		if _, err := Compare(t.Context(), Side{"a", []string{a, again}}, Side{"b", []string{b, a}}, CompareConfig{}); err == nil || !strings.Contains(err.Error(), "twice") {
			t.Errorf("err = %v", err)
		}
	}
	if _, err := AnalyseRepeats(t.Context(), Side{"a", []string{a, b, a}}, Config{}); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("err = %v", err)
	}
}

// Runs of other plans, builds and engine versions are compared, and marked.
func TestCompareDoubtsVersions(t *testing.T) {
	run := func(seed uint64, digest, program, engine string) string {
		path := madeRun(t, shape{n: 200, seed: seed, factor: 1})
		text := fmt.Sprintf(`{"version":1,"state":"complete","program":{"version":%q,"revision":"0123456789abcdef"},"plan":{"digest":%q,"requests":200,"span_ns":10000000000},`+
			`"server":{"backend":"vllm","info":{"version":%q,"model":"<b>m"}},"trace":{"name":"t"}}`, program, digest, engine)
		if err := os.WriteFile(filepath.Join(filepath.Dir(path), "run.json"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return filepath.Dir(path)
	}
	a1, a2, b1 := run(1, "d", "v1", "0.32"), run(2, "d", "v1", "0.32"), run(3, "d", "v1", "0.33")
	for _, tt := range []struct {
		name  string
		b2    string
		wants []string
		not   []string
	}{
		{"one of all", run(4, "d", "v1", "0.33"), nil, []string{"one plan", "two builds", "not of one server"}},
		{"another plan", run(5, "e", "v1", "0.33"), []string{"not played from one plan"}, []string{"two builds", "not of one server"}},
		{"another build", run(6, "d", "v2", "0.33"), []string{"two builds of the client (v1 0123456789ab and v2 0123456789ab)"}, []string{"one plan", "not of one server"}},
		{"another engine", run(7, "d", "v1", "0.34"), []string{"the repeats of b are not of one server", "vllm 0.34 <b>m, and vllm 0.33 <b>m before"}, []string{"one plan", "two builds"}},
	} {
		all := strings.Join(comparison(t, []string{a1, a2}, []string{b1, tt.b2}, CompareConfig{}).Warnings, "\n")
		for _, want := range tt.wants {
			if !strings.Contains(all, want) {
				t.Errorf("%s: no %q in\n%s", tt.name, want, all)
			}
		}
		for _, not := range tt.not {
			if strings.Contains(all, not) {
				t.Errorf("%s: %q in\n%s", tt.name, not, all)
			}
		}
	}
}

// powered is a run directory whose telemetry says what a token cost; 0 is none.
func powered(t *testing.T, s shape, joules float64) string {
	t.Helper()
	path := madeRun(t, s)
	telemetry := ""
	if joules > 0 {
		telemetry = fmt.Sprintf(`,"telemetry":{"energy":{"joules":100,"watts_mean":50,"joules_per_output_token":%g,"gpus":1,"covered":1}}`, joules)
	}
	text := fmt.Sprintf(`{"version":1,"state":"complete","plan":{"digest":"d","requests":%d,"span_ns":%d},"server":{"backend":"x"},"trace":{"name":"t"}%s}`, s.n, int64(s.n)*50e6, telemetry)
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "run.json"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return filepath.Dir(path)
}

// Tokens per joule come from the energy counters of both sides, with an interval
// from three repeats on.
func TestCompareEnergy(t *testing.T) {
	var as, bs []string
	for i := range uint64(3) {
		as = append(as, powered(t, shape{n: 200, seed: 10 + i, factor: 1}, 0.5+0.001*float64(i)))
		bs = append(bs, powered(t, shape{n: 200, seed: 20 + i, factor: 1}, 0.4+0.001*float64(i)))
	}
	one := comparison(t, as[:1], bs[:1], CompareConfig{})
	m := one.metric("tokens_per_joule")
	if m == nil || m.A.V.V != 2 || m.B.V.V != 2.5 || m.Verdict != NotJudged || m.Why == "" || !m.Higher {
		t.Errorf("one run each: %+v", m)
	}
	c := comparison(t, as, bs, CompareConfig{})
	m = c.metric("tokens_per_joule")
	if m == nil || m.Verdict != Better || math.Abs(m.Rel.V.V-0.25) > 0.01 || !m.Diff.Lo.OK {
		t.Errorf("three runs each: %+v", m)
	}
	if m := c.metric("joules_per_output_token"); m == nil || m.Verdict != Better || m.Higher || m.Diff.V.V > -0.09 {
		t.Errorf("three runs each: %+v", m)
	}
	bs[1] = powered(t, shape{n: 200, seed: 31, factor: 1}, 0)
	c = comparison(t, as, bs, CompareConfig{})
	if m := c.metric("tokens_per_joule"); m == nil || m.Verdict != NotJudged || !strings.Contains(strings.Join(c.Warnings, "\n"), "2 of 3 pairs of runs alone have joules_per_output_token and tokens_per_joule") {
		t.Errorf("one pair without telemetry: %+v, %q", m, c.Warnings)
	}
	none := comparison(t, as[:1], bs[1:2], CompareConfig{})
	if m := none.metric("tokens_per_joule"); m != nil || !strings.Contains(strings.Join(none.Warnings, "\n"), "energy counters of a alone") {
		t.Errorf("one side without telemetry: %+v, %q", m, none.Warnings)
	}
}
