package score

import (
	"math"

	"reprise/internal/stats"
)

// Gaps returns the seconds between neighbouring arrivals.
func Gaps(s *Sample) []float64 {
	if s.N() < 2 {
		return nil
	}
	g := make([]float64, s.N()-1)
	for i := range g {
		g[i] = s.Arrival[i+1] - s.Arrival[i]
	}
	return g
}

// levelled divides by the mean, so that two levels of traffic can be compared.
// It rounds to nine digits after the point: ties must stay ties.
func levelled(x []float64) []float64 {
	m := mean(x)
	if m <= 0 || math.IsNaN(m) {
		return nil
	}
	c := make([]float64, len(x))
	for i, v := range x {
		c[i] = math.Round(v/m*1e9) / 1e9
	}
	return c
}

// GapKS is the [KS] distance of the gaps, each divided by its own mean. It says
// nothing about the order of the gaps, which is what a queue feels: never use
// it alone.
func GapKS(a, b *Sample) float64 { return KS(levelled(Gaps(a)), levelled(Gaps(b))) }

// GapCV is the coefficient of variation of the gaps.
func GapCV(s *Sample) float64 {
	var m stats.Moments
	for _, g := range Gaps(s) {
		m.Add(g)
	}
	return m.CV()
}

// Counts returns the arrivals in each full window of width seconds.
func Counts(s *Sample, width float64) []float64 {
	return sums(s, width, func(int) float64 { return 1 })
}

// sums adds the weight of the rows of each full window.
func sums(s *Sample, width float64, weight func(int) float64) []float64 {
	// A horizon that is a whole number of windows up to rounding has them all.
	n := int(s.Horizon/width + 1e-9)
	if n <= 0 {
		return nil
	}
	w := make([]float64, n)
	for i, t := range s.Arrival {
		if k := int(t / width); k < n {
			w[k] += weight(i)
		}
	}
	return w
}

// IDC is the index of dispersion of counts, variance over mean of the arrivals
// in windows of width seconds: 1 for a Poisson process at every width (Cox and
// Lewis, "The Statistical Analysis of Series of Events", 1966, section 4.5).
// NaN where fewer than two windows are full.
func IDC(s *Sample, width float64) float64 {
	var m stats.Moments
	for _, c := range Counts(s, width) {
		m.Add(c)
	}
	if m.N() < 2 || m.Mean() == 0 {
		return math.NaN()
	}
	return m.Variance() / m.Mean()
}

// TokenIDC is the index of dispersion of prompt tokens, Var(W) / (E[N] E[X²])
// for the tokens W and arrivals N of a window and the length X of a row: 1 for
// a compound Poisson process. It sees what [IDC] cannot: long prompts that come
// together. NaN where no length is known or fewer than two windows are full.
func TokenIDC(s *Sample, width float64) float64 {
	if s.In == nil {
		return math.NaN()
	}
	square, known := 0.0, 0
	for _, v := range s.In {
		if v >= 0 {
			square += float64(v) * float64(v)
			known++
		}
	}
	var w, n stats.Moments
	for _, v := range sums(s, width, func(i int) float64 { return float64(max(s.In[i], 0)) }) {
		w.Add(v)
	}
	for _, v := range Counts(s, width) {
		n.Add(v)
	}
	if w.N() < 2 || n.Mean() == 0 || square == 0 {
		return math.NaN()
	}
	return w.Variance() / (n.Mean() * square / float64(known))
}

// CountACF is the autocorrelation, at lag windows, of the counts in windows of
// width seconds.
func CountACF(s *Sample, width float64, lag int) float64 {
	return stats.Autocorrelation(Counts(s, width), lag)
}
