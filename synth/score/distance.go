package score

import (
	"math"
	"slices"
)

// KS is the two-sample Kolmogorov-Smirnov distance, the greatest difference of
// the two empirical distribution functions. It is taken between values only,
// never inside a tie, so that it is right for whole numbers with atoms. The
// samples may be in any order and are not changed. NaN if one is empty.
func KS(a, b []float64) float64 {
	if len(a) == 0 || len(b) == 0 {
		return math.NaN()
	}
	return sortedKS(sorted(a), sorted(b))
}

func sortedKS(a, b []float64) float64 {
	na, nb := float64(len(a)), float64(len(b))
	i, j, d := 0, 0, 0.0
	for i < len(a) && j < len(b) {
		v := min(a[i], b[j])
		for i < len(a) && a[i] == v {
			i++
		}
		for j < len(b) && b[j] == v {
			j++
		}
		d = max(d, math.Abs(float64(i)/na-float64(j)/nb))
	}
	return d
}

// W1 is the Wasserstein-1 (earth mover's) distance of two samples, the area
// between their distribution functions, in the unit of the values. NaN if one
// is empty.
func W1(a, b []float64) float64 {
	if len(a) == 0 || len(b) == 0 {
		return math.NaN()
	}
	a, b = sorted(a), sorted(b)
	na, nb := float64(len(a)), float64(len(b))
	i, j, area := 0, 0, 0.0
	last := min(a[0], b[0])
	for i < len(a) || j < len(b) {
		v := math.Inf(1)
		if i < len(a) {
			v = a[i]
		}
		if j < len(b) {
			v = min(v, b[j])
		}
		area += math.Abs(float64(i)/na-float64(j)/nb) * (v - last)
		last = v
		for i < len(a) && a[i] == v {
			i++
		}
		for j < len(b) && b[j] == v {
			j++
		}
	}
	return area
}

// RelativeW1 is [W1] over the mean of the reference.
func RelativeW1(reference, other []float64) float64 { return W1(reference, other) / mean(reference) }

func sorted(x []float64) []float64 {
	if slices.IsSorted(x) {
		return x
	}
	c := slices.Clone(x)
	slices.Sort(c)
	return c
}

func mean(x []float64) float64 {
	sum := 0.0
	for _, v := range x {
		sum += v
	}
	return sum / float64(len(x))
}

// Known returns the known values of a column of tokens.
func Known(column []int32) []float64 {
	var x []float64
	for _, v := range column {
		if v >= 0 {
			x = append(x, float64(v))
		}
	}
	return x
}

// LogRatio is |ln(a/b)|, the error of a scale: 0.25 is about a quarter too much
// or too little. NaN unless both are positive.
func LogRatio(a, b float64) float64 {
	if !(a > 0 && b > 0) {
		return math.NaN()
	}
	return math.Abs(math.Log(a / b))
}
