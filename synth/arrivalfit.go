package synth

import (
	"math"
	"slices"

	"gonum.org/v1/gonum/mathext"

	"reprise/synth/score"
)

// fitRenewal fits gaps as independent draws of one distribution. ok is false
// where the gaps cannot carry it.
func fitRenewal(kind string, gaps []float64, rate float64) (a Arrivals, ok bool) {
	a = Arrivals{Kind: kind, Rate: significant(rate, 6)}
	if len(gaps) == 0 {
		return a, false
	}
	mean, least := 0.0, math.Inf(1)
	for _, g := range gaps {
		mean += g / float64(len(gaps))
		if g > 0 {
			least = min(least, g)
		}
	}
	if !(mean > 0) {
		return a, false
	}
	switch kind {
	case ArrivalsExponential:
		return a, true
	case ArrivalsQuantiles:
		unit := make([]float64, len(gaps))
		for i, g := range gaps {
			unit[i] = g / mean
		}
		a.Gaps = fitContinuous(unit, knots)
		return a, true
	}
	// A gap of nothing has no logarithm: it is what the clock could not tell
	// from its least step.
	positive := make([]float64, len(gaps))
	for i, g := range gaps {
		positive[i] = max(g, least/2) / mean
	}
	if kind == ArrivalsGamma {
		a.Shape = gammaShape(positive)
	} else {
		a.Shape = weibullShape(positive)
	}
	a.Shape = significant(a.Shape, 5)
	return a, checkShape(a.Shape) == nil
}

// gammaShape is the maximum of likelihood: log k - digamma(k) equals the log of
// the mean less the mean of logs (Choi and Wette, Technometrics 11(4), 1969).
func gammaShape(x []float64) float64 {
	mean, logs := 0.0, 0.0
	for _, v := range x {
		mean += v / float64(len(x))
		logs += math.Log(v) / float64(len(x))
	}
	want := math.Log(mean) - logs
	return bisect(minShape, 1e5, func(k float64) float64 { return math.Log(k) - mathext.Digamma(k) - want })
}

// weibullShape is the maximum of likelihood of the shape.
func weibullShape(x []float64) float64 {
	logs := 0.0
	for _, v := range x {
		logs += math.Log(v) / float64(len(x))
	}
	top := slices.Max(x)
	return bisect(0.02, 1e3, func(k float64) float64 {
		var sum, weighted float64
		for _, v := range x {
			p := math.Exp(k * math.Log(v/top))
			sum += p
			weighted += p * math.Log(v)
		}
		return 1/k + logs - weighted/sum
	})
}

// bisect finds the zero of a falling function on a logarithmic scale.
func bisect(lo, hi float64, f func(float64) float64) float64 {
	for range 60 {
		mid := math.Sqrt(lo * hi)
		if f(mid) > 0 {
			lo = mid
		} else {
			hi = mid
		}
	}
	return math.Sqrt(lo * hi)
}

// fitProfile counts rows and the bins of their inputs by windows, with as many
// windows to a row of input bins as stride says. bin holds the bin of each input,
// of k, -1 unknown; it may be nil.
func fitProfile(s *score.Sample, bin []int32, k int, width float64, stride int) *Profile {
	n := windowsOf(s.Horizon, width)
	rates := make([]float64, n)
	for _, t := range s.Arrival {
		rates[min(n-1, int(t/width))] += 1 / width
	}
	p := &Profile{Window: width, Windows: n, Exact: true, Order: OrderRecorded, Beyond: OrderResampled, Block: blockLength(s.Horizon, width)}
	p.Spans = spans(rates)
	p.Split = fitSplit(s.Arrival, width)
	if bin == nil || k < 2 {
		return p
	}
	rows := (n + stride - 1) / stride
	p.Stride, p.In = stride, make([][]int, rows)
	for i := range p.In {
		p.In[i] = make([]int, k)
	}
	for i, b := range bin {
		if b >= 0 {
			p.In[min(n-1, int(s.Arrival[i]/width))/stride][b]++
		}
	}
	return p
}

// blockLength is how long stretches are kept together in random order: long
// against the window, short against the profile.
func blockLength(horizon, width float64) float64 {
	return max(2*width, min(rowsBlock, horizon/6))
}

// fitSplit measures how arrivals cluster inside windows, by how unevenly the
// arrivals of a cell fall into its halves: a binomial has (2L-n)^2 = n on
// average, a beta-binomial with correlation r has n(1+(n-1)r). Cells of many
// arrivals and of few count alike. It is nil where nothing clusters.
func fitSplit(arrival []float64, width float64) []float64 {
	var split []float64
	last := 0
	for j := range maxSplits {
		cell := width / float64(int(1)<<j)
		if cell < 1e-4 {
			break
		}
		var over, pairs float64
		for i := 0; i < len(arrival); {
			at := math.Floor(arrival[i] / cell)
			mid, end := (at+0.5)*cell, (at+1)*cell
			left, n := 0.0, 0.0
			for ; i < len(arrival) && (n == 0 || arrival[i] < end); i++ {
				n++
				if arrival[i] < mid {
					left++
				}
			}
			if n > 1 {
				over += (2*left-n)*(2*left-n)/n - 1
				pairs += n - 1
			}
		}
		if pairs < 50 {
			break
		}
		r := over / pairs
		// The standard error of r is near 1/sqrt(pairs).
		if r < 2/math.Sqrt(pairs) {
			r = 0
		} else {
			last = j + 1
		}
		split = append(split, min(0.999, rounded(r, 4)))
	}
	if last == 0 {
		return nil
	}
	return split[:last]
}
