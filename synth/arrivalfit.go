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

// widths are the windows that a profile may have, in seconds.
var widths = []float64{0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600}

// fewestWindows and mostWindows bound a profile.
const fewestWindows, mostWindows = 8, 20_000

// rateWindow chooses the width of windows: half of the rows, dealt by coin,
// gives the rates, and the other half says how likely they make it. A thinned
// process has the same shape, so that what is only noise in one half does not
// help the other.
func rateWindow(arrival []float64, horizon float64, s *stream) float64 {
	best, bestGain := 0.0, math.Inf(-1)
	side := make([]bool, len(arrival))
	for _, width := range widths {
		n := windowsOf(horizon, width)
		if n < fewestWindows || n > mostWindows {
			continue
		}
		gain := 0.0
		for range 4 {
			for i := range side {
				side[i] = s.Uint64()>>63 == 0
			}
			a, b := make([]float64, n), make([]float64, n)
			for i, t := range arrival {
				w := min(n-1, int(t/width))
				if side[i] {
					a[w]++
				} else {
					b[w]++
				}
			}
			gain += predictive(a, b)
		}
		// Windows half as wide have to say more than chance.
		if gain > bestGain*(1+1e-12)+1 || math.IsInf(bestGain, -1) {
			best, bestGain = width, gain
		}
	}
	return best
}

// predictive is the log likelihood of counts b under rates learnt from a by
// empirical Bayes with a Gamma prior, up to what does not depend on the rates.
func predictive(a, b []float64) float64 {
	n := float64(len(a))
	var sum, squares, other float64
	for i := range a {
		sum, squares, other = sum+a[i], squares+a[i]*a[i], other+b[i]
	}
	mean := sum / n
	over := squares/n - mean*mean - mean
	level := other / max(1, sum)
	gain := 0.0
	for i := range a {
		rate := mean
		if over > 0 {
			prior := mean * mean / over
			rate = (a[i] + prior) / (1 + prior/mean)
		}
		rate *= level
		gain += b[i]*math.Log(max(rate, 1e-12)/max(width1(n), 1e-12)) - rate
	}
	return gain
}

// width1 makes rates of windows of different widths comparable: likelihoods are
// of times, not of counts.
func width1(windows float64) float64 { return 1 / windows }

// fitProfile describes the rate and the lengths of rows by windows. It is nil
// where the trace is too short for windows. inBin and outBin are the bins of
// the copula, of k, -1 unknown.
func fitProfile(s *score.Sample, l *Lengths, inBin, outBin []int32, k int, width float64, r *stream) *Profile {
	if width == 0 {
		width = rateWindow(s.Arrival, s.Horizon, r)
	}
	if width == 0 {
		return nil
	}
	n := windowsOf(s.Horizon, width)
	counts := make([]float64, n)
	for _, t := range s.Arrival {
		counts[min(n-1, int(t/width))]++
	}
	p := &Profile{Window: width, Windows: n, Order: OrderRecorded, Beyond: OrderResampled, Block: blockLength(s.Horizon, width)}
	if s.Horizon >= 20*3600 {
		p.Beyond = OrderRecorded // a day repeats better than shuffled minutes do
	}
	for i := range counts {
		counts[i] /= width
	}
	// The last window may lie partly beyond the end.
	if rest := s.Horizon - float64(n-1)*width; rest > 0 && rest < width {
		counts[n-1] *= width / rest
	}
	p.Spans = spans(counts)
	p.Split = fitSplit(s.Arrival, width)
	if inBin != nil {
		p.fitInputs(s, inBin, k, r)
	}
	_ = l
	_ = outBin
	return p
}

// blockLength is how long stretches are kept together in random order: long
// against the window, short against the profile.
func blockLength(horizon, width float64) float64 {
	return max(2*width, min(300, horizon/6))
}

// priors are the weights of the overall distribution that a window may be given.
var priors = []float64{3, 10, 30, 100, 300}

// fitInputs chooses how many windows share a distribution of inputs, and how
// much weight the overall distribution has, by the likelihood of one half of
// the rows under the other.
func (p *Profile) fitInputs(s *score.Sample, bin []int32, k int, r *stream) {
	side := make([]bool, len(bin))
	for i := range side {
		side[i] = r.Uint64()>>63 == 0
	}
	n := p.Windows
	window := func(i, stride int) int { return min(n-1, int(s.Arrival[i]/p.Window)) / stride }
	best, bestPrior, bestGain := 0, 0.0, 0.0
	for _, width := range widths {
		stride := int(math.Round(width / p.Window))
		if width < p.Window || (n+stride-1)/stride < 2 {
			continue
		}
		rows := (n + stride - 1) / stride
		if rows*k > 400_000 {
			continue
		}
		h, sum := make([]float64, rows*k), make([]float64, rows)
		for i, b := range bin {
			if b >= 0 && side[i] {
				w := window(i, stride)
				h[w*k+int(b)]++
				sum[w]++
			}
		}
		for _, prior := range priors {
			gain := 0.0
			for i, b := range bin {
				if b >= 0 && !side[i] {
					w := window(i, stride)
					gain += math.Log((h[w*k+int(b)] + prior/float64(k)) / (sum[w] + prior) * float64(k))
				}
			}
			if gain > bestGain {
				best, bestPrior, bestGain = stride, prior, gain
			}
		}
	}
	if best == 0 {
		return
	}
	rows := (n + best - 1) / best
	p.Stride, p.Prior, p.In = best, bestPrior, make([][]int, rows)
	for i := range p.In {
		p.In[i] = make([]int, k)
	}
	for i, b := range bin {
		if b >= 0 {
			p.In[window(i, best)][b]++
		}
	}
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
