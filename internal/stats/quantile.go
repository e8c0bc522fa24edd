package stats

import (
	"math"
	"sort"

	"gonum.org/v1/gonum/stat/distuv"
)

// Level is the confidence level of every interval that this project prints.
const Level = 0.95

// Quantile returns the p-quantile of sorted, which holds ascending values and
// may end in +Inf; NaN if sorted is empty or p is outside [0, 1]. With
// h = (n-1)p it is x[⌊h⌋] + (h-⌊h⌋)(x[⌊h⌋+1] - x[⌊h⌋]), counted from 0, and
// infinite if the upper one of the two has a weight and is infinite.
func Quantile(sorted []float64, p float64) float64 {
	return QuantileOf(len(sorted), func(rank int) float64 { return sorted[rank] }, p)
}

// QuantileOf is Quantile of n values that need not lie in memory: at returns
// the one of a rank, counted from 0.
func QuantileOf(n int, at func(rank int) float64, p float64) float64 {
	if n == 0 || !(p >= 0 && p <= 1) {
		return math.NaN()
	}
	h := float64(n-1) * p
	i := int(h)
	frac := h - float64(i)
	if frac == 0 || i == n-1 {
		return at(i)
	}
	lo, hi := at(i), at(i+1)
	if math.IsInf(hi, 1) {
		return hi
	}
	// The two forms of one line, chosen as numpy chooses, give the same last
	// digit as numpy and never leave [lo, hi].
	if frac >= 0.5 {
		return hi - (hi-lo)*(1-frac)
	}
	return lo + (hi-lo)*frac
}

// QuantileInterval returns the ranks lo <= hi, counted from 0, of the order
// statistics of a sample of n that enclose the p-quantile of its distribution
// with probability of at least level, at most (1-level)/2 on either side. ok is
// false if one end would lie outside the sample.
//
// The number of values at or below the quantile is Binomial(n, p): with B its
// distribution function, lo is the largest rank with B(lo) <= (1-level)/2 and hi
// the smallest with B(hi) >= 1-(1-level)/2. Nothing is assumed of the
// distribution, besides independence of the values.
func QuantileInterval(n int, p, level float64) (lo, hi int, ok bool) {
	if n <= 0 || !(p > 0 && p < 1) || !(level > 0 && level < 1) {
		return 0, 0, false
	}
	tail := (1 - level) / 2
	// The two that decide need no series, which keeps them exact: B(0) for the
	// lower end, 1 - B(n-1) for the upper.
	if math.Pow(1-p, float64(n)) > tail || math.Pow(p, float64(n)) > tail {
		return 0, 0, false
	}
	b := distuv.Binomial{N: float64(n), P: p}
	// P(X[lo] > Q) = B(lo), as that takes at most lo values at or below Q.
	lo = sort.Search(n, func(k int) bool { return b.CDF(float64(k)) > tail }) - 1
	hi = sort.Search(n, func(k int) bool { return b.CDF(float64(k)) >= 1-tail })
	return max(lo, 0), min(hi, n-1), true
}

// MinSamples is the smallest sample that carries the p-quantile, see the
// package comment.
func MinSamples(p, level float64) int {
	if !(p > 0 && p < 1) || !(level > 0 && level < 1) {
		return math.MaxInt
	}
	tail := (1 - level) / 2
	n := int(math.Ceil(math.Log(tail) / math.Log(max(p, 1-p))))
	// The logarithms can be off by one at an integer.
	for n > 1 && math.Pow(max(p, 1-p), float64(n-1)) <= tail {
		n--
	}
	for math.Pow(max(p, 1-p), float64(n)) > tail {
		n++
	}
	return n
}

// Carries says whether a sample of n carries the p-quantile at [Level].
func Carries(n int64, p float64) bool { return n >= int64(MinSamples(p, Level)) }
