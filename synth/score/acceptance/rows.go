package main

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"reprise/internal/stats"
	"reprise/synth/score"
)

// A limit is what a figure has to keep: at most high, and at least low where
// there is one.
type limit struct{ low, high float64 }

func atMost(high float64) limit { return limit{math.NaN(), high} }

func (l limit) keeps(v float64) bool {
	return v <= l.high && (math.IsNaN(l.low) || v >= l.low)
}

// A figure is one cell of the acceptance table.
type figure struct {
	Row      string       `json:"row"`
	Metric   string       `json:"metric"`
	Protocol string       `json:"protocol"`
	Trace    string       `json:"trace"`
	Model    string       `json:"model"`
	Value    score.Number `json:"value"` // median over the seeds
	Min      score.Number `json:"min"`
	Max      score.Number `json:"max"`
	Seeds    int          `json:"seeds"`
	Low      score.Number `json:"limit_low"`
	High     score.Number `json:"limit_high"`
	Floor    string       `json:"floor"` // as text: several figures in some rows
	Verdict  string       `json:"verdict"`
	Note     string       `json:"note,omitempty"`
	// Expected is "fail" for the wrong models.
	Expected string `json:"expected,omitempty"`
}

// values holds a figure's values, one a seed, by key.
type values map[string][]float64

func (v values) add(key string, x float64) { v[key] = append(v[key], x) }

// median returns the median, least and greatest of the values under key that
// are numbers, and how many there are.
func (v values) median(key string) (median, lo, hi float64, n int) {
	var x []float64
	for _, f := range v[key] {
		if !math.IsNaN(f) {
			x = append(x, f)
		}
	}
	slices.Sort(x)
	if len(x) == 0 {
		nan := math.NaN()
		return nan, nan, nan, 0
	}
	return stats.Quantile(x, 0.5), x[0], x[len(x)-1], len(x)
}

var scales = score.Scales

// refit measures what protocol R asks of one synthetic trace.
func refit(v values, real, syn *score.Sample) {
	v.add("rows", float64(syn.N())/float64(real.N()))
	v.add("gap_ks", score.GapKS(real, syn))
	worst := 0.0
	for _, w := range scales {
		worst = math.Max(worst, score.LogRatio(score.IDC(syn, w), score.IDC(real, w)))
	}
	v.add("idc", worst)
	worst = 0
	for _, w := range scales[1:] {
		worst = math.Max(worst, score.LogRatio(score.TokenIDC(syn, w), score.TokenIDC(real, w)))
	}
	v.add("token_idc", worst)
	for _, a := range atomsOf(real) {
		v.add(a.key, score.Mass(a.of(syn), a.Value)/a.Mass)
	}
	for _, rho := range score.Loads {
		q := score.CompareQueues(real, syn, score.PromptWork(real), score.PromptWork(syn), rho)
		v.add(fmt.Sprintf("ttft_ks_%g", rho), q.KS)
		v.add(fmt.Sprintf("ttft_p99_%g", rho), q.P99)
	}
}

// An atom is a length of row 9.
type atom struct {
	score.Atom
	key string
	of  func(*score.Sample) []int32
}

// atomsOf are the four largest atoms of either length, and its cap.
func atomsOf(s *score.Sample) []atom {
	var list []atom
	for _, side := range []struct {
		name string
		of   func(*score.Sample) []int32
	}{
		{"prompt", func(s *score.Sample) []int32 { return s.In }},
		{"output", func(s *score.Sample) []int32 { return s.Out }},
	} {
		atoms := score.Atoms(side.of(s), 4)
		if c, ok := score.Cap(side.of(s)); ok && !slices.ContainsFunc(atoms, func(a score.Atom) bool { return a.Value == c.Value }) {
			atoms = append(atoms, c)
		}
		for _, a := range atoms {
			list = append(list, atom{a, fmt.Sprintf("%s_%d", side.name, a.Value), side.of})
		}
	}
	return list
}

// worstAtom is the greatest relative error of the mass that an atom has in the
// median of the seeds, and which atom it is: one trace holds too few rows of the smaller atoms, 15 of
// some, to say what a model gives them.
func worstAtom(v values, real *score.Sample) (worst float64, which string) {
	for _, a := range atomsOf(real) {
		m, _, _, _ := v.median(a.key)
		if e := math.Abs(m - 1); e > worst {
			worst, which = e, fmt.Sprintf("%s, %.0f rows of the source", strings.ReplaceAll(a.key, "_", " "), a.Mass*float64(real.N()))
		}
	}
	return worst, which
}

// marginals measures what protocol I asks.
func marginals(v values, real, syn *score.Sample) {
	for _, side := range []struct {
		name string
		a, b []int32
	}{{"in", real.In, syn.In}, {"out", real.Out, syn.Out}} {
		a, b := score.Known(side.a), score.Known(side.b)
		v.add("ks_"+side.name, score.KS(a, b))
		v.add("w1_"+side.name, score.RelativeW1(a, b))
	}
	v.add("eta2", math.Abs(score.Eta2(real, 20)-score.Eta2(syn, 20)))
	v.add("spearman", math.Abs(score.Spearman(real)-score.Spearman(syn)))
}

// prefixes measures rows 10, 11, 13, 14, 19 and 19b.
func prefixes(v values, real, syn *score.Sample) {
	meanError, maxError := score.CurveError(score.HitCurve(real), score.HitCurve(syn))
	v.add("hit_mean", meanError)
	v.add("hit_max", maxError)
	v.add("reuse_ks", score.KS(logs(score.ReuseGaps(real)), logs(score.ReuseGaps(syn))))
	faults, _ := score.CheckTree(syn)
	v.add("tree", float64(faults))
	// The real arrivals: this row is about reuse alone.
	at := syn.WithArrivals(real.Arrival, real.Horizon)
	for _, rho := range score.Loads {
		q := score.CompareQueues(real, at, score.CacheWork(real, score.QueueCache), score.CacheWork(at, score.QueueCache), rho)
		v.add(fmt.Sprintf("cached_ks_%g", rho), q.KS)
		v.add(fmt.Sprintf("cached_p99_%g", rho), q.P99)
	}
}

// dynamics measures what protocol H asks.
func dynamics(v values, real, syn *score.Sample) {
	worst := 0.0
	for _, w := range scales {
		worst = math.Max(worst, score.LogRatio(score.IDC(syn, w), score.IDC(real, w)))
	}
	v.add("idc", worst)
	for _, rho := range score.Loads {
		q := score.CompareQueues(real, syn, score.PromptWork(real), score.PromptWork(syn), rho)
		v.add(fmt.Sprintf("ttft_ks_%g", rho), q.KS)
		v.add(fmt.Sprintf("ttft_p99_%g", rho), q.P99)
	}
}

func logs(x []float64) []float64 {
	c := make([]float64, len(x))
	for i, v := range x {
		c[i] = math.Log(v)
	}
	return c
}
