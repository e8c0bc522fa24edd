package report

import (
	"math"
	"sort"

	"reprise/internal/stats"
)

// A sketch is a histogram of durations on itlEdges, 1 % apart: it tells a
// quantile to half a percent in the same memory for ten requests and for a
// million. The zero sketch is empty.
type sketch struct {
	n        int64
	min, max float64
	bins     []uint64
}

// add takes a duration in ns.
func (s *sketch) add(ns float64) { s.addN(ns, 1) }

// addN takes one of that many equal durations.
func (s *sketch) addN(ns float64, n int64) {
	if n <= 0 {
		return
	}
	if s.bins == nil {
		s.bins = make([]uint64, len(itlEdges))
		s.min, s.max = ns, ns
	}
	s.n += n
	s.min, s.max = min(s.min, ns), max(s.max, ns)
	s.bins[bin(ns)] += uint64(n)
}

// merge adds what o holds.
func (s *sketch) merge(o *sketch) {
	if o.n == 0 {
		return
	}
	if s.bins == nil {
		s.bins = make([]uint64, len(itlEdges))
		s.min, s.max = o.min, o.max
	}
	s.n += o.n
	s.min, s.max = min(s.min, o.min), max(s.max, o.max)
	for k, c := range o.bins {
		s.bins[k] += c
	}
}

// at returns about the value of a rank, counted from 0.
func (s *sketch) at(rank float64) float64 {
	below := 0.0
	for k, c := range s.bins {
		if c == 0 || below+float64(c) <= rank {
			below += float64(c)
			continue
		}
		low, high := s.min, s.max
		if k > 0 {
			low = max(low, itlEdges[k-1])
		}
		high = min(high, itlEdges[k])
		return low + (high-low)*min(1, (rank-below+0.5)/float64(c))
	}
	return s.max
}

// among is a quantile of the values themselves, where there are at least so
// many: it describes them and estimates nothing.
func (s *sketch) among(p float64, least int64) float64 {
	if s.n < least {
		return math.NaN()
	}
	return s.at(p * float64(s.n-1))
}

// value is a quantile with its interval: the order statistics that enclose it,
// as stats.QuantileInterval finds them.
func (s *sketch) value(p float64) (v Value) {
	if lo, hi, ok := stats.QuantileInterval(int(s.n), p, stats.Level); ok {
		v = Value{number(s.at(p * float64(s.n-1))), number(s.at(float64(lo))), number(s.at(float64(hi)))}
	}
	return v
}

// A Curve is a distribution function: the share Y of all that is at most X.
type Curve struct {
	N    int64
	X, Y []float64 // X in ns, ascending
}

// maxCurve bounds the points of a Curve.
const maxCurve = 240

// curve reads the distribution function off at even steps, and in the tail at
// steps that become finer with it, as far as the sample goes.
func (s *sketch) curve() (c Curve) {
	c.N = s.n
	if s.n == 0 {
		return c
	}
	var levels []float64
	for k := range maxCurve * 3 / 4 {
		levels = append(levels, float64(k)/(maxCurve*3/4))
	}
	for k := range maxCurve / 4 {
		levels = append(levels, 1-0.05*math.Pow(0.002, float64(k)/(maxCurve/4)))
	}
	sort.Float64s(levels)
	for _, p := range append(levels, 1) {
		x := s.at(p * float64(s.n-1))
		if n := len(c.X); n > 0 && c.X[n-1] >= x {
			c.Y[n-1] = max(c.Y[n-1], p)
			continue
		}
		c.X, c.Y = append(c.X, x), append(c.Y, p)
	}
	return c
}
