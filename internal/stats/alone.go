package stats

import "math"

// An Estimate is a figure with its interval at [Level]; Lo and Hi are NaN where
// Why says that there is none.
type Estimate struct {
	V, Lo, Hi float64
	Why       string
}

// OK says whether there is an interval.
func (e *Estimate) OK() bool { return e.Why == "" }

// Alone estimates quantiles, or the mean (level [Mean]), of one run, whose
// values come in the order of time: the block bootstrap of [Paired], held
// against nothing. It says what other requests in the same run would have given.
func Alone(values []float64, seed uint64, levels ...float64) []Estimate {
	pieces := make([]int8, len(values))
	for i := range pieces {
		pieces[i] = Piece(i, len(values))
	}
	p := NewPaired(values, make([]float64, len(values)), pieces)
	out := make([]Estimate, len(levels))
	for i, d := range p.Differences(seed, levels...) {
		out[i] = Estimate{V: d.A, Lo: d.ALo, Hi: d.AHi, Why: d.Why}
		if !d.OK() {
			out[i].Lo, out[i].Hi = math.NaN(), math.NaN()
		}
	}
	return out
}

// StudentOf is the mean of values that are independent, with Student's interval.
// It takes three.
func StudentOf(values ...float64) Estimate {
	var m Moments
	for _, v := range values {
		m.Add(v)
	}
	e := Estimate{V: m.Mean(), Lo: math.NaN(), Hi: math.NaN()}
	if n := len(values); n < 3 {
		e.Why = "what differs from run to run takes three repeats"
	} else {
		half := StudentQuantile(n-1) * m.SD() / math.Sqrt(float64(n))
		e.Lo, e.Hi = e.V-half, e.V+half
	}
	return e
}

// StudentQuantile is by how many standard errors an interval at [Level] goes out
// to either side, with so many degrees of freedom.
func StudentQuantile(df int) float64 { return student(df).Quantile(1 - (1-Level)/2) }

// StudentP is the two-sided p-value of so many standard errors.
func StudentP(df int, t float64) float64 { return 2 * student(df).CDF(-math.Abs(t)) }
