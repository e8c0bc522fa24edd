package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"math"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reprise/internal/metrics"
	"reprise/traceformat"
)

// shape says what a made run is like.
type shape struct {
	n      int
	seed   uint64
	factor float64 // of every latency
	fail   func(i int) bool
	prompt func(i int) int32
	ids    int64 // first id
}

// madeRun writes a run's trace: the requests are those of every made run, the
// latencies share what the request is like, and differ by a noise of their own.
func madeRun(t testing.TB, s shape) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "trace.parquet")
	w, err := traceformat.Create(path, &traceformat.Header{})
	if err != nil {
		t.Fatal(err)
	}
	asked, noise := rand.New(rand.NewPCG(1, 1)), rand.New(rand.NewPCG(s.seed, 2))
	for i := range s.n {
		r := &traceformat.Row{}
		r.ID, r.Arrival = s.ids+int64(i), time.Duration(i)*50*time.Millisecond
		r.Session, r.Turn = traceformat.Some(int64(i/3)), traceformat.Some(int32(i%3))
		r.Client = []string{"a", "b", "<script>"}[i%3]
		size := asked.NormFloat64()
		prompt := int32(200 * math.Exp(0.7*size))
		r.PromptTokens, r.OutputTokens = traceformat.Some(prompt), traceformat.Some[int32](11)
		r.Scheduled, r.Sent = traceformat.Some(r.Arrival), traceformat.Some(r.Arrival+20*time.Microsecond)
		if s.prompt != nil {
			prompt += s.prompt(i)
		}
		r.ServedPromptTokens, r.ServedOutputTokens = traceformat.Some(prompt), traceformat.Some[int32](11)
		r.PromptDigest = traceformat.Some(int64(i))
		ttft := s.factor * 0.1 * math.Exp(0.5*size+0.2*noise.NormFloat64())
		step := s.factor * 0.01 * math.Exp(0.1*noise.NormFloat64())
		r.TTFT = traceformat.Some(time.Duration(ttft * 1e9))
		for k := range 11 {
			r.ChunkTimes = append(r.ChunkTimes, r.TTFT.V+time.Duration(float64(k)*step*1e9))
			r.ChunkTokens = append(r.ChunkTokens, 1)
		}
		r.E2E = traceformat.Some(r.ChunkTimes[10])
		r.Close = traceformat.Some(r.Sent.V + r.E2E.V)
		r.Status, r.Result, r.FinishReason = traceformat.Some[int16](200), traceformat.ResultOK, "length"
		if s.fail != nil && s.fail(i) {
			r.Result, r.Error, r.Status = traceformat.ResultServerError, "http_500", traceformat.Some[int16](500)
		}
		if err := w.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func comparison(t *testing.T, a, b []string, c CompareConfig) *Comparison {
	t.Helper()
	c.Seed = 1
	x, err := Compare(t.Context(), Side{"a", a}, Side{"b", b}, c)
	if err != nil {
		t.Fatal(err)
	}
	var text, md bytes.Buffer
	if err := x.RenderText(&text); err != nil {
		t.Fatal(err)
	}
	if err := x.RenderMarkdown(&md, nil); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text.String()+md.String(), "NaN") || strings.Contains(md.String(), "<script>") {
		t.Errorf("rendered:\n%s\n%s", &text, &md)
	}
	if b, err := json.Marshal(x); err != nil || bytes.Contains(b, []byte("NaN")) {
		t.Errorf("JSON: %v", err)
	}
	return x
}

func TestCompareFindsAKnownDifference(t *testing.T) {
	a, b := madeRun(t, shape{n: 4000, seed: 1, factor: 1}), madeRun(t, shape{n: 4000, seed: 2, factor: 1.05})
	c := comparison(t, []string{a}, []string{b}, CompareConfig{Config: Config{SLOs: []metrics.SLO{{Metric: metrics.MetricTTFT, Below: 200 * time.Millisecond}}}})
	for _, name := range []string{"ttft.p50", "ttft.mean", "tpot.p50", "e2e.mean", "itl.p50", "slo_miss_rate"} {
		m := c.metric(name)
		if m == nil {
			t.Fatalf("no metric %s", name)
		}
		if m.Verdict != Worse || m.BetterB.V > 0.01 {
			t.Errorf("%s: %s, %+v", name, m.Verdict, m)
		}
		if m.Unit == "ns" && (m.Rel.Lo.V > 0.05 || m.Rel.Hi.V < 0.05) {
			t.Errorf("%s: %v to %v does not hold 5 %%", name, m.Rel.Lo.V, m.Rel.Hi.V)
		}
	}
	if m := c.metric("error_rate"); m.Verdict != NoDifference || m.B.Hi.V != 3.0/4000 {
		t.Errorf("error rate: %+v", m)
	}
	if m := c.metric("output_tokens_per_second"); m.Verdict != NotJudged || m.Why == "" {
		t.Errorf("throughput of one run each is judged: %+v", m)
	}
	if c.Work[0].BothOK != 4000 || c.Work[0].Excluded != 0 || c.Estimand != TheseRuns || c.Paired[0].A < 0.55 {
		t.Errorf("%+v %+v", c.Work[0], c.Paired[0])
	}
	if len(c.Movers) != maxMovers || len(c.Shift) < 12 {
		t.Errorf("%d movers, %d shifts", len(c.Movers), len(c.Shift))
	}
	by := map[string]int{}
	for _, s := range c.Segments {
		by[s.By]++
	}
	if by["prompt_tokens"] < 2 || by["turn"] != 2 || by["client"] != 3 || by["time"] != timeWindows || by["output_tokens"] != 0 {
		t.Errorf("segments %v", by)
	}
	checks, err := c.Check(gates(t, "ttft.p50 > +2%", "ttft.p50 > +20%", "ttft.p50 > 1s", "ttft.p50>50ms", "error_rate > 0.1%", "error_rate < 1%", "output_tokens_per_second < 1"))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{true, false, false, true, false, true, false} {
		if checks[i].Failed != want {
			t.Errorf("%+v, want failed = %v", checks[i], want)
		}
	}
	if !checks[6].Unknown {
		t.Errorf("%+v is known", checks[6])
	}
	var junit bytes.Buffer
	if err := WriteJUnit(&junit, checks); err != nil {
		t.Fatal(err)
	}
	var back struct {
		Tests    int `xml:"tests,attr"`
		Failures int `xml:"failures,attr"`
		Skipped  int `xml:"skipped,attr"`
	}
	if err := xml.Unmarshal(junit.Bytes(), &back); err != nil || back.Tests != 7 || back.Failures != 3 || back.Skipped != 1 {
		t.Errorf("%v %+v\n%s", err, back, &junit)
	}
	if _, err := c.Check(gates(t, "ttft.p55 > +2%")); err == nil {
		t.Error("a metric that does not exist passes")
	}
}

func gates(t *testing.T, exprs ...string) (out []Gate) {
	t.Helper()
	for _, e := range exprs {
		g, err := ParseGate(e)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, g)
	}
	return out
}

func TestGateRefusesNonsense(t *testing.T) {
	for _, e := range []string{"", "ttft.p99", "> 5%", "ttft.p99 >", "ttft.p99 > +5", "ttft.p99 > fast", "ttft.p99 > nan%", "x > +inf%", "x > NaN"} {
		if g, err := ParseGate(e); err == nil {
			t.Errorf("%q is %+v", e, g)
		}
	}
}

func TestCompareFindsNothingInAA(t *testing.T) {
	alarms := 0
	for i := range uint64(8) {
		a, b := madeRun(t, shape{n: 1500, seed: 10 + i, factor: 1}), madeRun(t, shape{n: 1500, seed: 50 + i, factor: 1})
		for _, m := range comparison(t, []string{a}, []string{b}, CompareConfig{}).Metrics {
			if m.Verdict == Better || m.Verdict == Worse {
				alarms++
				break
			}
		}
	}
	if alarms > 2 { // at 5 % each, three of eight come once in 170
		t.Errorf("%d alarms in 8 comparisons of equals", alarms)
	}
}

func TestCompareRepeats(t *testing.T) {
	var as, bs []string
	for i := range uint64(4) {
		as = append(as, madeRun(t, shape{n: 400, seed: 100 + i, factor: 1 + 0.01*float64(i%2)}))
		bs = append(bs, madeRun(t, shape{n: 400, seed: 200 + i, factor: 0.8 + 0.01*float64(i%2)}))
	}
	c := comparison(t, as, bs, CompareConfig{})
	if c.Estimand != Deployment || c.Repeats != 4 || len(c.Noise) == 0 {
		t.Errorf("%s of %d repeats, %d noise", c.Estimand, c.Repeats, len(c.Noise))
	}
	m := c.metric("ttft.p50")
	if m.Verdict != Better || m.Rel.Lo.V > -0.2 || m.Rel.Hi.V < -0.2 || m.BetterB.V < 0.99 {
		t.Errorf("%+v", m)
	}
	if m := c.metric("output_tokens_per_second"); m.Verdict == NotJudged {
		t.Errorf("throughput over repeats: %+v", m)
	}
	two := comparison(t, as[:2], bs[:2], CompareConfig{})
	if two.Estimand != TheseRuns || two.metric("ttft.p50").Verdict != Better {
		t.Errorf("two repeats: %s, %+v", two.Estimand, two.metric("ttft.p50"))
	}
	uneven := comparison(t, as, bs[:3], CompareConfig{})
	if uneven.Repeats != 3 || !strings.Contains(strings.Join(uneven.Warnings, "\n"), "3 pairs") {
		t.Errorf("uneven sides: %d, %q", uneven.Repeats, uneven.Warnings)
	}
}

func TestCompareLooksAtTheWork(t *testing.T) {
	a := madeRun(t, shape{n: 1000, seed: 1, factor: 1})
	b := madeRun(t, shape{n: 1000, seed: 2, factor: 1, prompt: func(i int) int32 { return int32(i % 2) }})
	c := comparison(t, []string{a}, []string{b}, CompareConfig{})
	if w := c.Work[0]; w.PromptTokens != 500 || w.Excluded != 500 || w.Prompts != 0 || len(w.Examples) != maxExamples {
		t.Errorf("%+v", w)
	}
	kept := comparison(t, []string{a}, []string{b}, CompareConfig{KeepUnequal: true})
	if kept.Work[0].Excluded != 0 || kept.Paired[0].Requests != 1000 {
		t.Errorf("%+v", kept.Work[0])
	}

	failing := madeRun(t, shape{n: 1000, seed: 3, factor: 1, fail: func(i int) bool { return i%10 == 0 }})
	c = comparison(t, []string{a}, []string{failing}, CompareConfig{})
	if m := c.metric("error_rate"); m.Verdict != Worse || c.Work[0].FailedB != 100 || c.Paired[0].Requests != 900 {
		t.Errorf("%+v %+v", m, c.Work[0])
	}
	dead := madeRun(t, shape{n: 1000, seed: 3, factor: 1, fail: func(int) bool { return true }})
	c = comparison(t, []string{a}, []string{dead}, CompareConfig{})
	if c.metric("ttft.p50") != nil || c.metric("error_rate").Verdict != Worse || !strings.Contains(strings.Join(c.Warnings, "\n"), "no request succeeded on both sides") {
		t.Errorf("one side all failures: %q", c.Warnings)
	}
	ten := comparison(t, []string{madeRun(t, shape{n: 10, seed: 1, factor: 1})}, []string{madeRun(t, shape{n: 10, seed: 2, factor: 2})}, CompareConfig{})
	for _, m := range ten.Metrics {
		if m.Verdict != NotJudged {
			t.Errorf("ten rows: %s is %s", m.Name, m.Verdict)
		}
	}
	other := madeRun(t, shape{n: 100, seed: 1, factor: 1, ids: 5000})
	if _, err := Compare(t.Context(), Side{"a", []string{a}}, Side{"b", []string{other}}, CompareConfig{}); err == nil || !strings.Contains(err.Error(), "no request in common") {
		t.Errorf("err = %v", err)
	}
}

// Two runs of 200,000 requests of 11 events each.
func BenchmarkCompare(b *testing.B) {
	x, y := madeRun(b, shape{n: 200_000, seed: 1, factor: 1}), madeRun(b, shape{n: 200_000, seed: 2, factor: 1.01})
	for b.Loop() {
		if _, err := Compare(b.Context(), Side{"a", []string{x}}, Side{"b", []string{y}}, CompareConfig{}); err != nil {
			b.Fatal(err)
		}
	}
}
