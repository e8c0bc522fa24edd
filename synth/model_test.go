package synth

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"reprise/synth/score"
)

func shippedBytes(t testing.TB, name string) []byte {
	t.Helper()
	b, err := shipped.ReadFile("models/" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestReadSaysWhatIsWrong(t *testing.T) {
	whole := shippedBytes(t, "azure-conv")
	edit := func(from, to string) []byte {
		if !bytes.Contains(whole, []byte(from)) {
			t.Fatalf("the model has no %q", from)
		}
		return bytes.Replace(whole, []byte(from), []byte(to), 1)
	}
	tests := []struct {
		name string
		in   []byte
		want string
	}{
		{"empty", nil, "the file is empty"},
		{"cut", whole[:len(whole)/2], "the file is cut short"},
		{"not JSON", []byte("id,arrival\n1,2\n"), "line 1"},
		{"another JSON", []byte("{}"), `format is "", want "reprise-model"`},
		{"later version", edit(`"version": 1`, `"version": 9`), "version is 9, this program knows 1"},
		{"unknown field", edit(`"weight": 1`, `"wieght": 1`), `unknown field "wieght"`},
		{"negative rate", edit(`"weight": 1`, `"weight": -1`), "weight is -1"},
		{"a rate that its windows do not make", edit(`"rate": 5.53`, `"rate": 55.53`), "edit these, or weight"},
		{"a word for a number", edit(`"weight": 1`, `"weight": "lots"`), "line "},
		{"unknown arrivals", edit(`"kind": "profile"`, `"kind": "magic"`), `kind "magic" is not known`},
		{"no horizon", edit(`"horizon_s": `, `"horizon_s": -`), "horizon_s is -"},
		{"rows that it does not hold", edit(`"holds_source_rows": false`, `"holds_source_rows": true`), "holds_source_rows is true"},
		{"two models", append(slices.Clone(whole), whole...), "line "},
		{"window", edit(`"window_s": `, `"window_s": -`), "windows of -"},
	}
	for _, tt := range tests {
		_, err := Read(bytes.NewReader(tt.in))
		if !errors.Is(err, ErrModel) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
		}
	}
}

func TestModelSurvivesItsFile(t *testing.T) {
	for _, name := range Shipped() {
		m, err := Load(name)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := m.Write(&b); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b.Bytes(), shippedBytes(t, name)) {
			t.Errorf("%s: written again, the file is another one", name)
		}
	}
}

func TestRatesOfZero(t *testing.T) {
	m, err := Load("azure-conv")
	if err != nil {
		t.Fatal(err)
	}
	m.Clients[0].Weight = 0
	if _, err := m.Generate(GenOptions{}); err == nil || !strings.Contains(err.Error(), "every rate is 0") {
		t.Errorf("Generate = %v, want that every rate is 0", err)
	}
}

func TestGenOptionsValidate(t *testing.T) {
	m := described(t, "rate=1")
	for _, o := range []GenOptions{{Duration: -1}, {Rows: -1}, {ScaleRate: -1}, {ScaleRate: 1e9}, {Rate: math.NaN()}, {Prompts: math.Inf(1)}, {Order: "backwards"}, {From: -1}} {
		if _, err := m.Generate(o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}

// A hand edit does what it says.
func TestEditedModel(t *testing.T) {
	m, err := Load("azure-conv")
	if err != nil {
		t.Fatal(err)
	}
	before, err := m.Sample(t.Context(), GenOptions{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	m.Clients[0].Weight = 2
	after, err := m.Sample(t.Context(), GenOptions{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	if r := after.Rate() / before.Rate(); math.Abs(r-2) > 0.05 {
		t.Errorf("twice the weight makes %.2f times the rows", r)
	}
}

func TestMarginalKeepsAtomsAndQuantiles(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(300, 3000).Draw(t, "n")
		s := newStream(rapid.Uint64().Draw(t, "seed"))
		limit := int32(rapid.IntRange(50, 5000).Draw(t, "limit"))
		values := make([]int32, n)
		for i := range values {
			values[i] = min(limit, int32(math.Exp(5+1.5*s.normal())))
		}
		m := fitMarginal(values)
		if err := m.check(); err != nil {
			t.Fatal(err)
		}
		q := m.quantiler()
		drawn := make([]int32, 20_000)
		for i := range drawn {
			drawn[i] = q.whole(s.uniform())
		}
		a, b := score.Known(values), score.Known(drawn)
		if d := score.KS(a, b); d > 0.01+2/math.Sqrt(20_000)+1.5/float64(min(knots, n/2)) {
			t.Fatalf("KS %.3f", d)
		}
		if slices.Max(drawn) > slices.Max(values) || slices.Min(drawn) < slices.Min(values) {
			t.Fatalf("drew %d to %d of %d to %d", slices.Min(drawn), slices.Max(drawn), slices.Min(values), slices.Max(values))
		}
		if want := score.Mass(values, limit); want > 0.05 {
			if got := score.Mass(drawn, limit); math.Abs(got/want-1) > 0.15 {
				t.Fatalf("the limit holds %.3f, want %.3f", got, want)
			}
		}
		for range 100 {
			v := float64(drawn[s.below(len(drawn))])
			u := q.level(v, s.uniform())
			if got := q.real(u); math.Abs(got-v) > 1 {
				t.Fatalf("level(%v) = %v, where the quantile is %v", v, u, got)
			}
		}
	})
}

func TestShapesByLikelihood(t *testing.T) {
	s := newStream(4)
	for _, want := range []float64{0.3, 1, 4} {
		x, y := make([]float64, 20_000), make([]float64, 20_000)
		for i := range x {
			x[i], y[i] = s.gamma(want), math.Pow(s.exp(), 1/want)
		}
		if got := gammaShape(x); math.Abs(got/want-1) > 0.05 {
			t.Errorf("gamma shape %.3f, want %.1f", got, want)
		}
		if got := weibullShape(y); math.Abs(got/want-1) > 0.05 {
			t.Errorf("weibull shape %.3f, want %.1f", got, want)
		}
	}
	if k := weibullByCV(2); math.Abs(k-0.5427) > 1e-3 {
		t.Errorf("a Weibull of CV 2 has shape %.4f, want 0.5427", k)
	}
}

func TestPoissonCounts(t *testing.T) {
	s := newStream(9)
	for _, mean := range []float64{0.5, 20, 100, 5000} {
		var sum, squares float64
		const n = 20_000
		for range n {
			k := float64(s.poisson(mean))
			sum, squares = sum+k, squares+k*k
		}
		m := sum / n
		v := squares/n - m*m
		if math.Abs(m/mean-1) > 5/math.Sqrt(mean*n) || math.Abs(v/mean-1) > 0.06 {
			t.Errorf("Poisson(%v): mean %.3f, variance %.3f", mean, m, v)
		}
	}
}

func TestHMMFindsItsStates(t *testing.T) {
	truth := &States{Step: 1, Rates: []float64{2, 20}, Move: [][]float64{{0.98, 0.02}, {0.05, 0.95}}}
	m := &Model{Format: ModelFormat, Version: ModelVersion, Horizon: 4000, Clients: []Client{{Weight: 1, Arrivals: Arrivals{Kind: ArrivalsMMPP, Rate: 7, States: truth}}}}
	s, err := m.Sample(t.Context(), GenOptions{Seed: 2})
	if err != nil {
		t.Fatal(err)
	}
	got := fitMMPP(s.Arrival, s.Horizon, nil, 0)
	if got == nil || len(got.Rates) != 2 {
		t.Fatalf("found %+v", got)
	}
	for i, want := range truth.Rates {
		if math.Abs(got.Rates[i]/want-1) > 0.1 || math.Abs(got.Move[i][i]-truth.Move[i][i]) > 0.02 {
			t.Errorf("state %d: rate %.2f, stays %.3f; want %.0f, %.2f", i, got.Rates[i], got.Move[i][i], want, truth.Move[i][i])
		}
	}
}

func TestParseSpec(t *testing.T) {
	s, err := ParseSpec("rate=20,arrival=gamma:cv=2,prompt-tokens=lognormal:512,0.8,max=4096,output-tokens=fixed:128,clients=10:zipf=1.1,length=5m")
	if err != nil {
		t.Fatal(err)
	}
	want := DefaultSpec()
	want.Rate, want.Arrival, want.CV, want.Clients, want.Zipf, want.Duration = 20, ArrivalsGamma, 2, 10, 1.1, 5*60e9
	want.Prompt, want.Output = Dist{"lognormal", 512, 0.8, 4096}, Dist{"fixed", 128, 0, 0}
	if *s != *want {
		t.Errorf("got  %+v\nwant %+v", *s, *want)
	}
	for text, want := range map[string]string{
		"":                            "want key=value",
		"fast":                        "want key=value",
		"rate=0":                      `rate: "0" is no number`,
		"rate=-1":                     "is no number",
		"rate=NaN":                    "is no number",
		"arrival=magic":               `"magic" is not known`,
		"arrival=poisson:cv=2":        "takes no",
		"prompt-tokens=lognormal:5":   "takes 2 numbers, not 1",
		"prompt-tokens=lognormal:0,1": "are no parameters",
		"prompt-tokens=zipf:2":        `"zipf" is not known`,
		"output-tokens=fixed:-5":      "does not lie from",
		"turns=fixed:0":               "does not lie from",
		"clients=0":                   "is no count",
		"shared-prefix=2":             "is no number from 0 to 1",
		"length=0s":                   "is no time",
	} {
		if _, err := ParseSpec(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseSpec(%q) = %v, want %q", text, err, want)
		}
	}
}

func TestSharedPrefixIsTheShareThatWasAskedFor(t *testing.T) {
	m := described(t, "rate=10,prompt-tokens=lognormal:4000,0.7,shared-prefix=0.5,block-size=16,length=5m")
	s, err := m.Sample(t.Context(), GenOptions{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	c := score.HitCurve(s)
	if hit := c[len(c)-1]; math.Abs(hit-0.5) > 0.03 {
		t.Errorf("hit ratio %.3f, want 0.5", hit)
	}
}

func FuzzReadModel(f *testing.F) {
	f.Add(shippedBytes(f, "azure-conv"))
	f.Add([]byte(`{"format":"reprise-model","version":1,"horizon_s":10,"clients":[{"slot":0,"weight":1,"arrivals":{"kind":"weibull","rate":1,"shape":0.01}}]}`))
	f.Add([]byte(`{"format":"reprise-model","version":1,"horizon_s":10,"clients":[{"weight":1,"arrivals":{"kind":"mmpp","rate":1,"states":{"step_s":1,"rates":[0,5],"move":[[1,0],[0,1]]}}}]}`))
	f.Add([]byte(`{"format":"reprise-model","version":1,"horizon_s":10,"clients":[{"weight":1,"arrivals":{"kind":"exponential","rate":3},"lengths":{"in":{"min":1,"max":9,"atoms":[[5,1]]},"in_known":1,"out_known":0},"sessions":{"turns":{"min":1,"max":3,"levels":[0,1],"values":[1,3]},"pause_s":{"min":0,"max":1,"levels":[0,1],"values":[0,1]}}}]}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		m, err := Read(bytes.NewReader(in))
		if err != nil {
			if !errors.Is(err, ErrModel) {
				t.Fatalf("error %v does not wrap ErrModel", err)
			}
			return
		}
		g, err := m.Generate(GenOptions{Seed: 1, Rows: 50, Duration: seconds(min(100, m.Horizon))})
		if err != nil {
			return
		}
		for r, err := range g.All() {
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Check(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func FuzzParseSpec(f *testing.F) {
	f.Add(rich)
	f.Add("rate=1,prompt-tokens=pareto:5,1.1,output-tokens=gamma:9,3")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSpec(text)
		if err != nil || s.Clients > 100 || s.Prefixes > 20 {
			return
		}
		m, err := s.Model()
		if err != nil {
			t.Fatalf("ParseSpec took %q, of which no model can be made: %v", text, err)
		}
		if _, err := m.Generate(GenOptions{Rows: 10}); err != nil && m.Rate() > 1e-6 {
			t.Fatalf("%q: %v", text, err)
		}
	})
}

func FuzzParsePMF(f *testing.F) {
	f.Add("{45: 0.5, 46: 0.5}")
	f.Add("{}")
	f.Fuzz(func(t *testing.T, text string) {
		d, err := parsePMF(text)
		if err != nil || len(d.values) == 0 {
			return
		}
		for _, v := range d.sorted().draws(10) {
			if !finite(v) || v < 0 {
				t.Fatalf("drew %v", v)
			}
		}
	})
}
