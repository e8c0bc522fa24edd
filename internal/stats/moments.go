package stats

import "math"

// Moments gathers mean and variance in one pass (Welford, "Note on a Method for
// Calculating Corrected Sums of Squares and Products", Technometrics 4, 1962;
// West 1979 for the weights). The zero value is empty.
type Moments struct {
	n        int64
	mean, m2 float64
	min, max float64
}

// Add adds one value.
func (m *Moments) Add(x float64) { m.AddN(x, 1) }

// AddN adds x n times; n below 1 adds nothing.
func (m *Moments) AddN(x float64, n int64) {
	if n < 1 {
		return
	}
	if m.n == 0 {
		m.min, m.max = x, x
	}
	m.min, m.max = min(m.min, x), max(m.max, x)
	m.n += n
	d := x - m.mean
	m.mean += d * float64(n) / float64(m.n)
	m.m2 += d * (x - m.mean) * float64(n)
}

// Merge adds all that o holds (Chan, Golub and LeVeque 1979).
func (m *Moments) Merge(o Moments) {
	switch {
	case o.n == 0:
	case m.n == 0:
		*m = o
	default:
		n := m.n + o.n
		d := o.mean - m.mean
		m.m2 += o.m2 + d*d*float64(m.n)*float64(o.n)/float64(n)
		m.mean += d * float64(o.n) / float64(n)
		m.n = n
		m.min, m.max = min(m.min, o.min), max(m.max, o.max)
	}
}

// N is how many values were added.
func (m *Moments) N() int64 { return m.n }

// Mean is NaN of no values.
func (m *Moments) Mean() float64 { return m.or(m.n > 0, m.mean) }

// Min is NaN of no values.
func (m *Moments) Min() float64 { return m.or(m.n > 0, m.min) }

// Max is NaN of no values.
func (m *Moments) Max() float64 { return m.or(m.n > 0, m.max) }

// Variance is that of the population, divided by n: what the index of
// dispersion and numpy.var mean.
func (m *Moments) Variance() float64 { return m.or(m.n > 0, m.m2/float64(m.n)) }

// SD is the sample's standard deviation, divided by n-1; NaN below two values.
func (m *Moments) SD() float64 { return m.or(m.n > 1, math.Sqrt(m.m2/float64(m.n-1))) }

// CV is the coefficient of variation, the population's standard deviation
// divided by the mean: 1 for the gaps of a Poisson process.
func (m *Moments) CV() float64 {
	return m.or(m.n > 0 && m.mean != 0, math.Sqrt(m.m2/float64(m.n))/m.mean)
}

func (m *Moments) or(ok bool, v float64) float64 {
	if !ok {
		return math.NaN()
	}
	return v
}
