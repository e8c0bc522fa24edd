package stats

import "math"

// A LinearFit is a least-squares fit of y on columns, taken in their order. A
// column that the ones before it add up to is aliased with them: it takes no
// part, and nothing that needs it can be estimated.
type LinearFit struct {
	N    int
	Rank int
	// SSE is the sum of squared residuals, with N - Rank degrees of freedom.
	SSE  float64
	coef []float64   // by column, 0 of an aliased one
	kept []int       // by column, its place among the independent ones; -1 of an aliased one
	q, r [][]float64 // orthogonal columns, and the upper triangle, of the independent ones
}

// aliasedBelow is the share of a column's length that must be left once the ones
// before it are taken out.
const aliasedBelow = 1e-8

// LeastSquares fits y. Every column is as long as y. It orthogonalises the
// columns one after another, twice each, which keeps them orthogonal to working
// precision (Giraud, Langou and Rozložník, "The loss of orthogonality in the
// Gram-Schmidt orthogonalization process", 2005).
func LeastSquares(columns [][]float64, y []float64) *LinearFit {
	f := &LinearFit{N: len(y), coef: make([]float64, len(columns))}
	for _, x := range columns {
		v := append([]float64(nil), x...)
		whole := math.Sqrt(dot(v, v))
		r := make([]float64, len(f.q)+1)
		for range 2 {
			for i, u := range f.q {
				p := dot(u, v)
				r[i] += p
				for k := range v {
					v[k] -= p * u[k]
				}
			}
		}
		left := math.Sqrt(dot(v, v))
		if !(left > aliasedBelow*whole) {
			f.kept = append(f.kept, -1)
			continue
		}
		for k := range v {
			v[k] /= left
		}
		r[len(f.q)] = left
		f.kept = append(f.kept, len(f.q))
		f.q, f.r = append(f.q, v), append(f.r, r)
	}
	f.Rank = len(f.q)
	rest := append([]float64(nil), y...)
	b := make([]float64, f.Rank)
	for i, u := range f.q {
		b[i] = dot(u, rest)
		for k := range rest {
			rest[k] -= b[i] * u[k]
		}
	}
	f.SSE = dot(rest, rest)
	for i := f.Rank - 1; i >= 0; i-- {
		b[i] /= f.r[i][i]
		for k := range i {
			b[k] -= f.r[i][k] * b[i]
		}
	}
	for c, i := range f.kept {
		if i >= 0 {
			f.coef[c] = b[i]
		}
	}
	return f
}

// DF are the degrees of freedom of the residuals.
func (f *LinearFit) DF() int { return f.N - f.Rank }

// Aliased says whether a column took no part.
func (f *LinearFit) Aliased(column int) bool { return f.kept[column] < 0 }

// Contrast estimates a sum of coefficients, by column. Its standard error is
// scale times the standard deviation of the errors. ok is false where it needs
// an aliased column.
func (f *LinearFit) Contrast(weights map[int]float64) (estimate, scale float64, ok bool) {
	z, ok := f.solve(weights)
	if !ok {
		return math.NaN(), math.NaN(), false
	}
	for c := range f.coef { // in one order, so that the last digit is always the same
		estimate += weights[c] * f.coef[c]
	}
	return estimate, math.Sqrt(dot(z, z)), true
}

// Weights are what a contrast multiplies each value of y with.
func (f *LinearFit) Weights(weights map[int]float64) (w []float64, ok bool) {
	z, ok := f.solve(weights)
	if !ok {
		return nil, false
	}
	w = make([]float64, f.N)
	for i, u := range f.q {
		for k := range w {
			w[k] += z[i] * u[k]
		}
	}
	return w, true
}

// solve expresses a contrast in the orthogonal columns.
func (f *LinearFit) solve(weights map[int]float64) (z []float64, ok bool) {
	z = make([]float64, f.Rank)
	for c, w := range weights {
		if w == 0 {
			continue
		}
		if f.kept[c] < 0 {
			return nil, false
		}
		z[f.kept[c]] = w
	}
	for i := range z {
		for k := range i {
			z[i] -= f.r[i][k] * z[k]
		}
		z[i] /= f.r[i][i]
	}
	return z, true
}

func dot(a, b []float64) (s float64) {
	for i, v := range a {
		s += v * b[i]
	}
	return s
}
