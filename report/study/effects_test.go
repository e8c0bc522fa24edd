package study

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"reprise/internal/metrics"
	"reprise/report"
	"reprise/traceformat"
)

// lab is an experiment whose answers are known: output tokens/s by the levels
// of each cell and the repeat. It plays the cells that played returns true for.
func lab(factors []Factor, repeats int, played func(levels []int) bool, of func(levels []int, repeat int) float64) *Study {
	s := &Study{Factors: factors, load: -1, Repeat: Repeat{Repeats: repeats}}
	levels := make([]int, len(factors))
	for {
		if played == nil || played(levels) {
			c := Cell{Levels: map[string]string{}, levels: slices.Clone(levels), Counted: repeats, Planned: repeats, Figures: map[string]Estimate{}}
			for f, l := range levels {
				c.Levels[factors[f].Name] = factors[f].Levels[l]
				c.Name += factors[f].Levels[l] + "-"
			}
			for r := range repeats {
				sum := &metrics.Summary{Window: metrics.Window{Length: time.Second}}
				sum.Rates.OutputTokens = of(levels, r)
				sum.TTFT.Schedule.P50 = traceformat.Some(metrics.Nanos(1e9 / sum.Rates.OutputTokens))
				c.runs = append(c.runs, &Run{Cell: c.Name, Repeat: r + 1, Counted: true, sum: sum})
			}
			c.summarise(s)
			s.Cells = append(s.Cells, c)
		}
		f := len(factors) - 1
		for ; f >= 0; f-- {
			if levels[f]++; levels[f] < len(factors[f].Levels) {
				break
			}
			levels[f] = 0
		}
		if f < 0 {
			break
		}
	}
	s.design = newDesign(s)
	s.design.describe(s)
	s.analyse()
	return s
}

func factorsOf(levels ...int) (out []Factor) {
	for i, n := range levels {
		f := Factor{Name: string(rune('a' + i))}
		for l := range n {
			f.Levels = append(f.Levels, fmt.Sprint(l))
		}
		out = append(out, f)
	}
	return out
}

// at finds an effect on output tokens/s.
func (s *Study) at(t *testing.T, factor, level string) *Effect {
	t.Helper()
	for i := range s.Effects {
		if e := &s.Effects[i]; e.Measure == "output_tokens_per_second" && e.Factor == factor && e.Level == level {
			return e
		}
	}
	t.Fatalf("no effect of %s=%s in %+v", factor, level, s.Effects)
	return nil
}

func near(t *testing.T, what string, got report.Number, want float64) {
	t.Helper()
	if !got.OK || math.Abs(got.V-want) > 1e-9*max(1, math.Abs(want)) {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}

// What multiplies throughput is found to the last digit, in a whole design and
// in one with holes, and whatever the repeats have in common cancels.
func TestEffectsAreExact(t *testing.T) {
	a, b, c, day := []float64{1, 2, 0.25}, []float64{1, 1.1}, []float64{1, 0.7}, []float64{1, 1.5, 0.4}
	of := func(l []int, r int) float64 { return 100 * a[l[0]] * b[l[1]] * c[l[2]] * day[r] }
	for name, played := range map[string]func([]int) bool{
		"whole": nil,
		"holes": func(l []int) bool { return l[0]+l[1]+l[2] != 2 },
	} {
		s := lab(factorsOf(3, 2, 2), 3, played, of)
		near(t, name+": a=1", s.at(t, "a", "1").Change.V, 1)
		near(t, name+": a=2", s.at(t, "a", "2").Change.V, -0.75)
		near(t, name+": b=1", s.at(t, "b", "1").Change.V, 0.1)
		near(t, name+": c=1", s.at(t, "c", "1").Change.V, -0.3)
		if v := s.at(t, "c", "1").Verdict; v != report.Worse {
			t.Errorf("%s: c=1 is %s", name, v)
		}
		if !s.design.exact {
			t.Errorf("%s: repeats that differ by the day alone are not exact", name)
		}
		for _, in := range s.Interactions {
			if in.Corner.V.OK {
				near(t, name+": interaction "+in.A+in.B, in.Corner.V, 0)
			}
		}
		if name == "whole" {
			v := s.Variation[0]
			sum := v.Other + v.Noise.V
			for _, x := range v.Shares {
				sum += x
			}
			if math.Abs(sum-1) > 1e-9 || v.Shares["a"] < 0.9 || v.Shares["a × b"] > 1e-9 {
				t.Errorf("variation %+v sums to %v", v, sum)
			}
			if len(s.Aliases) > 0 || s.Fraction != "all 12 combinations of a, b and c, 3 runs each" {
				t.Errorf("%q, aliases %q", s.Fraction, s.Aliases)
			}
		}
	}
}

// Where b doubles what a does, the interaction says so.
func TestInteractionIsExact(t *testing.T) {
	s := lab(factorsOf(3, 2), 3, nil, func(l []int, r int) float64 {
		return 100 * math.Pow(3, float64(l[0])) * math.Pow(2, float64(l[0]*l[1])) * (1 + 0.01*float64((l[0]*7+l[1]*3+r*5)%4))
	})
	if len(s.Interactions) != 2 { // of TTFT, its inverse here, and of throughput
		t.Fatalf("%+v", s.Interactions)
	}
	in := s.Interactions[1]
	if in.DF != 2 || in.PHolm.V > 1e-6 || in.Levels != [4]string{"0", "2", "0", "1"} || math.Abs(in.Corner.V.V-3) > 0.1 || in.Corner.Lo.V > 3 || in.Corner.Hi.V < 3 {
		t.Errorf("%+v", in)
	}
	if m := s.marginal(&measures[measureAt("output_tokens_per_second")], map[int]int{0: 2, 1: 1}); m.Runs != 1 || m.V.V < 3600 || m.V.V > 3708 {
		t.Errorf("at the corner: %+v", m)
	}
}

// Fractional designs name what they cannot tell apart.
func TestAliases(t *testing.T) {
	flat := func([]int, int) float64 { return 100 }
	has := func(name string, s *Study, want ...string) {
		t.Helper()
		for _, w := range want {
			if !slices.ContainsFunc(s.Aliases, func(a string) bool { return strings.Contains(a, w) }) {
				t.Errorf("%s: %q is not in %q", name, w, s.Aliases)
			}
		}
	}
	latin := lab(factorsOf(3, 3, 3), 2, func(l []int) bool { return (l[0]+l[1]+l[2])%3 == 0 }, func(l []int, r int) float64 {
		return 100 * math.Pow(1.2, float64(l[0])) * math.Pow(0.5, float64(l[2])) * (1 + 0.001*float64((l[0]*5+l[1]*3+r*7)%3))
	})
	has("Latin square", latin, "the effect of c is aliased with a × b", "the effect of a is aliased with b × c")
	if e := latin.at(t, "a", "2"); math.Abs(e.Change.V.V-0.44) > 0.01 || e.Verdict != report.Better {
		t.Errorf("a=2 of the Latin square: %+v", e)
	}
	if !strings.HasPrefix(latin.Fraction, "9 of the 27 combinations") {
		t.Errorf("%q", latin.Fraction)
	}
	has("half", lab(factorsOf(2, 2, 2), 2, func(l []int) bool { return (l[0]+l[1]+l[2])%2 == 0 }, flat), "the effect of c is aliased with a × b")
	half4 := lab(factorsOf(2, 2, 2, 2), 2, func(l []int) bool { return (l[0]+l[1]+l[2]+l[3])%2 == 0 }, flat)
	has("half of four", half4, "a × b is aliased with c × d")
	if slices.ContainsFunc(half4.Aliases, func(a string) bool { return strings.HasPrefix(a, "the effect of") }) {
		t.Errorf("main effects of a resolution IV design are clear of pairs: %q", half4.Aliases)
	}
	tied := lab(factorsOf(2, 2), 3, func(l []int) bool { return l[0] == l[1] }, func(l []int, r int) float64 { return 100 + float64(l[0]*30+r) })
	has("tied", tied, "the effect of a cannot be told from that of b", "a × b cannot be estimated")
	if e := tied.at(t, "a", "1"); e.Change.V.OK || e.Why == "" || e.Verdict != report.NotJudged {
		t.Errorf("a tied effect: %+v", e)
	}
}

// Without repeats the error is what factors leave; without anything left there
// is no interval.
func TestWithoutRepeats(t *testing.T) {
	s := lab(factorsOf(3, 3), 1, nil, func(l []int, r int) float64 {
		return 100 * math.Pow(2, float64(l[0])) * (1 + 0.02*float64((l[0]*5+l[1]*7)%4))
	})
	if e := s.at(t, "a", "1"); !e.Change.Lo.OK || e.Change.Lo.V > 1 || e.Change.Hi.V < 1 {
		t.Errorf("a=1: %+v", e)
	}
	s = lab(factorsOf(2), 1, nil, func(l []int, r int) float64 { return 100 + float64(l[0]) })
	if e := s.at(t, "a", "1"); e.Change.Lo.OK || e.Why == "" || e.P.OK {
		t.Errorf("two runs: %+v", e)
	}
}

// Two cells with three repeats are a paired comparison.
func TestEffectOfTwoCellsIsPaired(t *testing.T) {
	y := [][]float64{{100, 120, 90}, {110, 126, 101}}
	s := lab(factorsOf(2), 3, nil, func(l []int, r int) float64 { return y[l[0]][r] })
	e := s.at(t, "a", "1")
	// Logarithms of the ratios: mean 0.0864669, standard deviation 0.0341640, t(2) 4.302653.
	var d [3]float64
	mean := 0.0
	for i := range d {
		d[i] = math.Log(y[1][i] / y[0][i])
		mean += d[i] / 3
	}
	sd := 0.0
	for _, x := range d {
		sd += (x - mean) * (x - mean) / 2
	}
	half := 4.302652729911275 * math.Sqrt(sd/3)
	near(t, "change", e.Change.V, math.Expm1(mean))
	near(t, "lower", e.Change.Lo, math.Expm1(mean-half))
	near(t, "upper", e.Change.Hi, math.Expm1(mean+half))
}

// Intervals of effects hold the truth as often as they say, where runs have a
// spread of their own, days differ, runs are missing, and one factor does more at
// a level of the other: the truth is the average over cells, whichever of them
// lost runs.
func TestEffectCoverage(t *testing.T) {
	const trials = 1500
	rng := rand.New(rand.NewPCG(5, 6))
	d := &design{factors: factorsOf(3, 2)}
	for a := range 3 {
		for b := range 2 {
			d.levels = append(d.levels, []int{a, b})
		}
	}
	m := &measures[measureAt("output_tokens_per_second")]
	held, of, alarms, tests, found := 0, 0, 0, 0, 0
	for range trials {
		var obs, flat []observation
		day := [3]float64{rng.NormFloat64() * 0.1, rng.NormFloat64() * 0.1, rng.NormFloat64() * 0.1}
		for c, l := range d.levels {
			for r := range 3 {
				if r > 0 && (c == 5 || rng.IntN(12) == 0) {
					continue // it failed
				}
				y := 1 + 0.2*float64(l[0]) + day[r] + 0.03*rng.NormFloat64()
				flat = append(flat, observation{c, r, y})
				if c == 5 {
					y += 0.6
				}
				obs = append(obs, observation{c, r, y})
			}
		}
		truth := map[string]float64{"a1": 0.2, "a2": 0.4 + 0.3, "b1": 0.2}
		for _, e := range d.effects(m, obs, true) {
			want := math.Expm1(truth[e.Factor+e.Level])
			of++
			if e.Change.Lo.V <= want && want <= e.Change.Hi.V {
				held++
			}
		}
		for _, e := range d.effects(m, flat, true) {
			if e.Factor == "b" {
				tests++
				if e.P.V < 0.05 {
					alarms++
				}
			}
		}
		in, _ := d.interactions(m, flat, true)
		if in[0].P.V < 0.05 {
			found++
		}
	}
	if share := float64(held) / float64(of); share < 0.935 || share > 0.965 {
		t.Errorf("%d of %d intervals hold the truth, %.3f", held, of, share)
	}
	if share := float64(alarms) / float64(tests); share > 0.065 || share < 0.035 {
		t.Errorf("%.3f of the tests of no effect find one", share)
	}
	if share := float64(found) / float64(tests); share > 0.075 || share < 0.03 {
		t.Errorf("%.3f of the tests of no interaction find one", share)
	}
	t.Logf("intervals that hold the truth %.3f of %d, false effects %.3f, false interactions %.3f", float64(held)/float64(of), of, float64(alarms)/float64(tests), float64(found)/float64(tests))
}

func TestLoadFactor(t *testing.T) {
	for level, want := range map[string]string{"16": "/16", "closed-16": "closed/16", "open_2.5": "open/2.5", "static": "/NaN", "v2x": "/NaN", "-3": "/-3"} {
		family, v := loadLevel(level)
		if got := fmt.Sprintf("%s/%v", family, v); got != want {
			t.Errorf("%q is %s, want %s", level, got, want)
		}
	}
	f := func(name string, levels ...string) Factor { return Factor{Name: name, Levels: levels} }
	for i, c := range []struct {
		factors []Factor
		want    int
	}{
		{[]Factor{f("a", "1", "2"), f("Rate", "1", "2")}, 1},
		{[]Factor{f("speedup", "1", "2"), f("concurrency", "1", "2")}, 1},
		{[]Factor{f("load", "closed-1", "open-2")}, 0},
		{[]Factor{f("load", "low", "high")}, -1},
		{[]Factor{f("rate", "5")}, -1},
		{[]Factor{f("batching", "static-4", "static-8")}, -1},
	} {
		if got := loadFactor(c.factors); got != c.want {
			t.Errorf("%d: factor %d, want %d", i, got, c.want)
		}
	}
}

// A cost model tells of the runs that it was not fitted to.
func TestSimFitOfACostModel(t *testing.T) {
	var x simulation
	err := json.Unmarshal([]byte(`{"virtual": true, "simulation": {"fitted": {"version": 1, "fit": {"run": "a", "errors": [{"metric": "ttft", "quantile": 0.5, "error": 0.01}]},
		"validations": [{"run": "b", "errors": [{"metric": "ttft", "quantile": 0.5, "error": 0.042}, {"metric": "e2e", "quantile": 0.9, "error": -0.07}]}]}}}`), &x)
	if err != nil {
		t.Fatal(err)
	}
	if s := x.fit().describe(); s != "of another run, b: TTFT p50 +4.2 %, of another run, b: E2E p90 -7.0 %" && s != "of another run, b: TTFT p50 +4.2 %, of another run, b: E2E p90 -7 %" {
		t.Errorf("%q", s)
	}
}
