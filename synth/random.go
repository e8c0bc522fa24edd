package synth

import (
	"math"
	"math/rand/v2"
)

// Purposes of random streams. A new one takes a new number: numbers that exist
// fix what a seed means.
const (
	purposeArrivals = iota + 1
	purposeLengths
	purposePrefixes
	purposeSessions
	purposeOrder
	purposeThin
	purposeFit
)

// A stream is one source of random numbers.
type stream struct{ rand.PCG }

// newStream derives a stream from the seed and the path that names its use.
func newStream(seed uint64, path ...uint64) *stream {
	hi, lo := mix(seed+0x9e3779b97f4a7c15), mix(seed^0x6a09e667f3bcc909)
	for _, p := range path {
		hi = mix(hi ^ p*0x9e3779b97f4a7c15)
		lo = mix(lo + p + 0xbf58476d1ce4e5b9)
	}
	s := new(stream)
	s.Seed(hi, lo)
	return s
}

// mix is the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// uniform is in [0, 1).
func (s *stream) uniform() float64 { return float64(s.Uint64()>>11) * 0x1p-53 }

// exp has mean 1.
func (s *stream) exp() float64 { return -math.Log1p(-s.uniform()) }

// below is in [0, n).
func (s *stream) below(n int) int { return int(s.uniform() * float64(n)) }

func (s *stream) normal() float64 {
	for {
		x, y := 2*s.uniform()-1, 2*s.uniform()-1
		if r := x*x + y*y; r > 0 && r < 1 {
			return x * math.Sqrt(-2*math.Log(r)/r)
		}
	}
}

// gamma has the given shape and scale 1 (Marsaglia and Tsang, ACM TOMS 26(3), 2000).
func (s *stream) gamma(shape float64) float64 {
	if shape < 1 {
		// 1-u is never 0.
		return s.gamma(shape+1) * math.Pow(1-s.uniform(), 1/shape)
	}
	d := shape - 1.0/3
	c := 1 / math.Sqrt(9*d)
	for {
		x := s.normal()
		v := 1 + c*x
		if v <= 0 {
			continue
		}
		v = v * v * v
		if math.Log(1-s.uniform()) < x*x/2+d-d*v+d*math.Log(v) {
			return d * v
		}
	}
}

// poisson counts with mean m.
func (s *stream) poisson(m float64) int {
	switch {
	case !(m > 0):
		return 0
	case m < 30:
		n, p, limit := 0, 1.0, math.Exp(-m)
		for {
			p *= 1 - s.uniform()
			if p < limit {
				return n
			}
			n++
		}
	case m > 1e6:
		return max(0, int(math.Round(m+math.Sqrt(m)*s.normal())))
	}
	// Halving keeps it exact: the k-th point of a unit process is Gamma(k)
	// (Ahrens and Dieter, 1974).
	k := int(m * 7 / 8)
	x := s.gamma(float64(k))
	if x < m {
		return k + s.poisson(m-x)
	}
	return s.binomial(k-1, m/x)
}

// binomial counts successes of n with chance p, n moderate.
func (s *stream) binomial(n int, p float64) int {
	k := 0
	for range n {
		if s.uniform() < p {
			k++
		}
	}
	return k
}

// round is x rounded down or up, at random so that the mean is x.
func (s *stream) round(x float64) int {
	f := math.Floor(x)
	if s.uniform() < x-f {
		f++
	}
	return int(f)
}

// An alias table draws from a discrete distribution with one number
// (Vose, IEEE TSE 17(9), 1991).
type alias struct {
	cut   []float64
	other []int32
}

// newAlias takes weights that are not negative and have a positive sum.
func newAlias(weights []float64) alias {
	n := len(weights)
	a := alias{make([]float64, n), make([]int32, n)}
	sum := 0.0
	for _, w := range weights {
		sum += w
	}
	var small, large []int32
	for i, w := range weights {
		a.cut[i] = w / sum * float64(n)
		a.other[i] = int32(i)
		if a.cut[i] < 1 {
			small = append(small, int32(i))
		} else {
			large = append(large, int32(i))
		}
	}
	for len(small) > 0 && len(large) > 0 {
		l, g := small[len(small)-1], large[len(large)-1]
		small = small[:len(small)-1]
		a.other[l] = g
		a.cut[g] -= 1 - a.cut[l]
		if a.cut[g] < 1 {
			large = large[:len(large)-1]
			small = append(small, g)
		}
	}
	// What is left is full but for rounding.
	for _, i := range append(small, large...) {
		a.cut[i] = 1
	}
	return a
}

// draw turns u in [0, 1) into an index.
func (a alias) draw(u float64) int {
	x := u * float64(len(a.cut))
	i := int(x)
	if x-float64(i) < a.cut[i] {
		return i
	}
	return int(a.other[i])
}
