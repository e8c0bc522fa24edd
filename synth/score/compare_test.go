package score

import (
	"bytes"
	"encoding/json"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

// poisson makes an hour of Poisson arrivals with lengths that depend on each
// other.
func poisson(seed uint64, rate float64) *Sample {
	rng := rand.New(rand.NewPCG(seed, 3))
	s := &Sample{Name: "made", Horizon: 3600}
	for at := rng.ExpFloat64() / rate; at < s.Horizon; at += rng.ExpFloat64() / rate {
		s.Arrival = append(s.Arrival, at)
		in := math.Exp(6 + 0.4*rng.NormFloat64())
		s.In = append(s.In, int32(in)+1)
		s.Out = append(s.Out, int32(math.Exp(4+0.5*math.Sin(math.Log(in))+0.3*rng.NormFloat64()))+1)
	}
	return s
}

// Two draws of one process pass; each way of being wrong fails its own metric.
func TestCompareFindsWhatIsWrong(t *testing.T) {
	real := poisson(1, 3)
	if r := Compare(real, poisson(2, 3)); !r.OK() {
		var b bytes.Buffer
		r.WriteText(&b)
		t.Errorf("two draws of one process differ:\n%s", b.String())
	}
	for _, tt := range []struct {
		name  string
		spoil func(*Sample)
		fails string
	}{
		{"arrivals in pairs", func(s *Sample) {
			for i := 1; i < s.N(); i += 2 {
				s.Arrival[i] = s.Arrival[i-1] + 1e-4
			}
		}, "gap_ks"},
		{"a slow wave", func(s *Sample) {
			for i, t := range s.Arrival {
				s.Arrival[i] = t + 150*math.Sin(t/300)
			}
		}, "idc_100s"},
		{"longer prompts", func(s *Sample) {
			for i := range s.In {
				s.In[i] += s.In[i] / 4
			}
		}, "prompt_ks"},
		{"independent lengths", func(s *Sample) {
			rand.New(rand.NewPCG(9, 9)).Shuffle(s.N(), func(i, j int) { s.Out[i], s.Out[j] = s.Out[j], s.Out[i] })
		}, "eta2"},
	} {
		s := poisson(2, 3)
		tt.spoil(s)
		r := Compare(real, s)
		if m, ok := r.Metric(tt.fails); !ok || m.Verdict != Fail {
			t.Errorf("%s: %s is %+v, want fail", tt.name, tt.fails, m)
		}
	}
}

func TestCompareShortAndEmpty(t *testing.T) {
	real := poisson(1, 3)
	for _, s := range []*Sample{{}, {Arrival: []float64{0}, In: []int32{5}}, real.Slice(0, 5)} {
		for _, pair := range [][2]*Sample{{s, real}, {real, s}, {s, s}} {
			r := Compare(pair[0], pair[1])
			data, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			back, err := ReadReport(data)
			if err != nil {
				t.Fatal(err)
			}
			if len(back.Metrics) != len(r.Metrics) {
				t.Errorf("%d metrics came back, want %d", len(back.Metrics), len(r.Metrics))
			}
			var text, md bytes.Buffer
			if err := r.WriteText(&text); err != nil {
				t.Fatal(err)
			}
			if err := r.WriteMarkdown(&md); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(text.String()+md.String(), "NaN") {
				t.Errorf("NaN in\n%s", text.String())
			}
		}
	}
}

func TestMedian(t *testing.T) {
	real := poisson(1, 3)
	var reports []*Report
	for seed := range uint64(3) {
		reports = append(reports, Compare(real, poisson(seed+2, 3)))
	}
	m := Median(reports)
	got, _ := m.Metric("prompt_ks")
	var lo, hi, sum Number = 1, 0, 0
	for _, r := range reports {
		one, _ := r.Metric("prompt_ks")
		lo, hi, sum = min(lo, one.Value), max(hi, one.Value), sum+one.Value
	}
	if want := sum - lo - hi; math.Abs(float64(got.Value-want)) > 1e-12 || got.Min != lo || got.Max != hi || m.Seeds != 3 {
		t.Errorf("median %v of [%v, %v], want %v of [%v, %v]", got.Value, got.Min, got.Max, want, lo, hi)
	}
	if Median(nil) != nil {
		t.Error("a median of nothing")
	}
}

func TestReadReportRefuses(t *testing.T) {
	for _, s := range []string{"", "{", `{"schema":"reprise.score/99"}`, "[]"} {
		if _, err := ReadReport([]byte(s)); err == nil {
			t.Errorf("ReadReport(%q) gave no error", s)
		}
	}
}
