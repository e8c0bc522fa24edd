package synth

import (
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/stat/distuv"
)

// A Description is a parametric fit to a length, for people: nothing is
// generated from it, because none of them has the atoms and limits of real
// lengths.
type Description struct {
	Of         string             `json:"of"`     // "in", "out"
	Family     string             `json:"family"` // exponential, lognormal, lognormal mixture, pareto tail
	Parameters map[string]float64 `json:"parameters,omitempty"`
	Parts      []MixturePart      `json:"parts,omitempty"`
	KS         float64            `json:"ks"` // distance to the lengths, ties respected
	BIC        float64            `json:"bic,omitempty"`
}

// A MixturePart is one lognormal of a mixture.
type MixturePart struct {
	Weight float64 `json:"weight"`
	Median float64 `json:"median"`
	Sigma  float64 `json:"sigma"`
}

// describeRows bounds the rows that mixtures are fitted to.
const describeRows = 20_000

// describe fits families to the lengths.
func (f *fitter) describe() {
	for _, c := range []struct {
		name   string
		values []int32
	}{{"in", f.s.In}, {"out", f.s.Out}} {
		x := positive(known(c.values))
		if len(x) < 100 {
			continue
		}
		f.model.Description = append(f.model.Description, describeLengths(c.name, x)...)
	}
}

// positive returns the values above 0, sorted, thinned evenly where they are
// many.
func positive(values []int32) []float64 {
	var x []float64
	for _, v := range values {
		if v > 0 {
			x = append(x, float64(v))
		}
	}
	slices.Sort(x)
	if len(x) > describeRows {
		thin := make([]float64, describeRows)
		for i := range thin {
			thin[i] = x[(2*i+1)*len(x)/(2*describeRows)]
		}
		x = thin
	}
	return x
}

func describeLengths(of string, x []float64) []Description {
	n := float64(len(x))
	var mean, logs, squares float64
	for _, v := range x {
		mean += v / n
		logs += math.Log(v) / n
	}
	for _, v := range x {
		squares += (math.Log(v) - logs) * (math.Log(v) - logs) / n
	}
	sigma := math.Sqrt(squares)
	ds := []Description{{Of: of, Family: "exponential", Parameters: map[string]float64{"mean": significant(mean, 5)},
		KS: distance(x, func(v float64) float64 { return -math.Expm1(-v / mean) })}}
	if sigma > 0 {
		normal := distuv.Normal{Mu: logs, Sigma: sigma}
		ds = append(ds, Description{Of: of, Family: "lognormal", Parameters: map[string]float64{"median": significant(math.Exp(logs), 5), "sigma": significant(sigma, 4)},
			KS: distance(x, func(v float64) float64 { return normal.CDF(math.Log(v)) })})
		if m, bic := fitMixture(x); len(m) > 1 {
			ds = append(ds, Description{Of: of, Family: "lognormal mixture", Parts: m, BIC: rounded(bic, 0),
				KS: distance(x, func(v float64) float64 {
					p := 0.0
					for _, c := range m {
						p += c.Weight * distuv.UnitNormal.CDF(math.Log(v/c.Median)/c.Sigma)
					}
					return p
				})})
		}
	}
	if d, ok := hill(of, x); ok {
		ds = append(ds, d)
	}
	return ds
}

// distance is the one-sample KS distance, between whole values only: a value v
// stands for (v-1/2, v+1/2].
func distance(sorted []float64, cdf func(float64) float64) float64 {
	n, worst := float64(len(sorted)), 0.0
	for i := range sorted {
		if i+1 == len(sorted) || sorted[i+1] != sorted[i] {
			worst = max(worst, math.Abs(float64(i+1)/n-cdf(sorted[i]+0.5)))
		}
	}
	return rounded(worst, 4)
}

// hill estimates the index of a Pareto tail from the largest twentieth (Hill,
// Annals of Statistics 3(5), 1975).
func hill(of string, x []float64) (Description, bool) {
	k := len(x) / 20
	if k < 20 {
		return Description{}, false
	}
	tail := x[len(x)-k:]
	from := x[len(x)-k-1]
	sum := 0.0
	for _, v := range tail {
		sum += math.Log(v / from)
	}
	if sum <= 0 {
		return Description{}, false // a limit holds the tail
	}
	index := float64(k) / sum
	return Description{Of: of, Family: "pareto tail", Parameters: map[string]float64{"index": significant(index, 4), "from": from, "share": 0.05},
		KS: distance(tail, func(v float64) float64 { return 1 - math.Pow(from/max(v, from), index) })}, true
}

// fitMixture fits two to eight lognormals by EM and takes the number by BIC.
func fitMixture(x []float64) ([]MixturePart, float64) {
	logs := make([]float64, len(x))
	for i, v := range x {
		logs[i] = math.Log(v)
	}
	var best []MixturePart
	bestBIC := math.Inf(1)
	for k := 2; k <= 8; k++ {
		parts, likelihood := mixture(logs, k)
		bic := -2*likelihood + float64(3*k-1)*math.Log(float64(len(x)))
		if bic < bestBIC {
			best, bestBIC = parts, bic
		}
	}
	return best, bestBIC
}

func mixture(logs []float64, k int) ([]MixturePart, float64) {
	n := len(logs)
	weight, mu, sigma := make([]float64, k), make([]float64, k), make([]float64, k)
	for j := range k {
		weight[j] = 1 / float64(k)
		mu[j] = logs[(2*j+1)*n/(2*k)]
		sigma[j] = max(0.05, (logs[n-1]-logs[0])/float64(2*k))
	}
	post := make([]float64, k)
	likelihood, last := 0.0, math.Inf(-1)
	for range 60 {
		sum, first, second := make([]float64, k), make([]float64, k), make([]float64, k)
		likelihood = 0
		for _, v := range logs {
			total := 0.0
			for j := range post {
				z := (v - mu[j]) / sigma[j]
				post[j] = weight[j] / sigma[j] * math.Exp(-z*z/2)
				total += post[j]
			}
			total = max(total, 1e-300)
			likelihood += math.Log(total) - 0.5*math.Log(2*math.Pi) - v
			for j := range post {
				p := post[j] / total
				sum[j] += p
				first[j] += p * v
				second[j] += p * v * v
			}
		}
		for j := range k {
			if sum[j] < 1e-9 {
				continue
			}
			weight[j] = sum[j] / float64(n)
			mu[j] = first[j] / sum[j]
			// Narrower than half a hundredth, a part is an atom and not a lognormal.
			sigma[j] = math.Sqrt(max(2.5e-5, second[j]/sum[j]-mu[j]*mu[j]))
		}
		if likelihood-last < 1e-6*math.Abs(likelihood) {
			break
		}
		last = likelihood
	}
	var parts []MixturePart
	for j := range k {
		parts = append(parts, MixturePart{rounded(weight[j], 4), significant(math.Exp(mu[j]), 5), significant(sigma[j], 4)})
	}
	return parts, likelihood
}

// String is the description on one line.
func (d Description) String() string {
	return fmt.Sprintf("%s: %s, KS %.3f", d.Of, d.Family, d.KS)
}
