package synth

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
)

// A Marginal is the distribution of a length or of a time: quantiles, and the
// values that occur far more often than their neighbours (limits, templates)
// each with its own share.
type Marginal struct {
	// Levels and Values are points of the quantile function of all that is no
	// atom, Levels from 0 to 1. Whole numbers occupy the unit around them, so
	// that a least value of 3 reads 2.5.
	Levels []float64 `json:"levels,omitempty"`
	Values []float64 `json:"values,omitempty"`
	// Atoms are pairs of a value and its share of all, beyond the part that the
	// quantiles put there.
	Atoms [][2]float64 `json:"atoms,omitempty"`
	// Min and Max are the least and the greatest value seen; nothing outside
	// is generated.
	Min float64 `json:"min"`
	Max float64 `json:"max"`
}

const (
	knots = 128
	// An atom is at least this share of all, this often as frequent as its
	// neighbours, and this many rows.
	// A few values are taken for atoms however frequent their neighbours are.
	atomShare, atomExcess, atomRows = 0.002, 3.0, 8
	topAtoms                        = 12
	maxAtoms                        = 64
)

// levels are the points that n values can carry: 128 even steps and, where
// there are rows enough, halving steps into the upper tail, which holds most of
// the work.
func levels(n, steps int) []float64 {
	k := max(1, min(steps, n/2))
	ls := make([]float64, 0, k+10)
	for i := range k {
		ls = append(ls, float64(i)/float64(k))
	}
	for rest := 0.5 / float64(k); rest*float64(n) >= 4 && len(ls) < k+6; rest /= 2 {
		ls = append(ls, 1-rest)
	}
	return append(ls, 1)
}

// fitMarginal describes whole numbers.
func fitMarginal(values []int32) *Marginal {
	x := slices.Clone(values)
	slices.Sort(x)
	n := len(x)
	type run struct {
		v int32
		c int
	}
	var runs []run
	for i := 0; i < n; {
		j := i
		for j < n && x[j] == x[i] {
			j++
		}
		runs = append(runs, run{x[i], j - i})
		i = j
	}
	m := &Marginal{Min: float64(x[0]), Max: float64(x[n-1])}
	var found []run
	for i, r := range runs {
		if r.c < atomRows || float64(r.c) < atomShare*float64(n) {
			continue
		}
		// Rows a unit on both sides, over a few units or a few neighbours.
		reach := max(3, r.v/50)
		near := 0
		for j := i - 1; j >= 0 && runs[j].v >= r.v-reach; j-- {
			near += runs[j].c
		}
		for j := i + 1; j < len(runs) && runs[j].v <= r.v+reach; j++ {
			near += runs[j].c
		}
		if float64(r.c) > atomExcess*float64(near)/float64(2*reach) {
			found = append(found, r)
		}
	}
	if len(runs) > knots {
		// The most frequent of many values: quantiles alone would spread each of
		// them over its neighbours.
		top := slices.Clone(runs)
		slices.SortFunc(top, func(a, b run) int { return cmp.Or(cmp.Compare(b.c, a.c), cmp.Compare(a.v, b.v)) })
		for _, r := range top[:topAtoms] {
			if r.c >= atomRows && !slices.Contains(found, r) {
				found = append(found, r)
			}
		}
	}
	slices.SortFunc(found, func(a, b run) int { return cmp.Or(cmp.Compare(b.c, a.c), cmp.Compare(a.v, b.v)) })
	found = found[:min(len(found), maxAtoms)]
	isAtom := map[int32]bool{}
	for _, r := range found {
		m.Atoms = append(m.Atoms, [2]float64{float64(r.v), rounded(float64(r.c)/float64(n), 6)})
		isAtom[r.v] = true
	}
	var rest []run
	left := 0
	for _, r := range runs {
		if !isAtom[r.v] {
			rest = append(rest, r)
			left += r.c
		}
	}
	if left == 0 {
		return m
	}
	before, k := 0, 0
	for _, p := range levels(left, knots) {
		target := p * float64(left)
		for k < len(rest)-1 && float64(before+rest[k].c) < target {
			before += rest[k].c
			k++
		}
		f := min(1, max(0, (target-float64(before))/float64(rest[k].c)))
		m.Levels = append(m.Levels, rounded(p, 6))
		m.Values = append(m.Values, rounded(float64(rest[k].v)-0.5+f, 2))
	}
	m.lowerAtoms()
	return m
}

// lowerAtoms takes from each atom what the quantiles put on its value anyhow.
func (m *Marginal) lowerAtoms() {
	rest := 1.0
	for _, a := range m.Atoms {
		rest -= a[1]
	}
	for i := range m.Atoms {
		a := &m.Atoms[i]
		a[1] = rounded(max(0, a[1]-max(0, rest)*(m.below(a[0]+0.5)-m.below(a[0]-0.5))), 6)
	}
	m.Atoms = slices.DeleteFunc(m.Atoms, func(a [2]float64) bool { return a[1] == 0 })
}

// below is the share of what is no atom that lies below x.
func (m *Marginal) below(x float64) float64 {
	k, _ := slices.BinarySearch(m.Values, x)
	switch {
	case k == 0:
		return 0
	case k == len(m.Values):
		return 1
	}
	from, to := m.Values[k-1], m.Values[k]
	return m.Levels[k-1] + (m.Levels[k]-m.Levels[k-1])*(x-from)/(to-from)
}

// fitContinuous describes times, which have no atoms.
func fitContinuous(values []float64, steps int) *Marginal {
	return fitWeighted(values, nil, steps)
}

// fitWeighted is fitContinuous with a weight for each value, nil for equal ones.
func fitWeighted(values, weights []float64, steps int) *Marginal {
	n := len(values)
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int { return cmp.Or(cmp.Compare(values[i], values[j]), cmp.Compare(i, j)) })
	weight := func(i int) float64 {
		if weights == nil {
			return 1
		}
		return weights[i]
	}
	total := 0.0
	for i := range n {
		total += weight(i)
	}
	m := &Marginal{Min: significant(values[order[0]], 6), Max: significant(values[order[n-1]], 6)}
	before, k := 0.0, 0
	for _, p := range levels(n, steps) {
		for k < n-1 && before+weight(order[k]) < p*total {
			before += weight(order[k])
			k++
		}
		v := values[order[k]]
		if k > 0 && p < 1 {
			f := min(1, max(0, (p*total-before)/weight(order[k])))
			v = values[order[k-1]] + f*(v-values[order[k-1]])
		}
		m.Levels = append(m.Levels, rounded(p, 6))
		m.Values = append(m.Values, significant(v, 6))
	}
	return m
}

// rounded keeps digits behind the point, so that a model file stays readable.
func rounded(x float64, digits int) float64 {
	f := math.Pow10(digits)
	return math.Round(x*f) / f
}

// significant keeps that many digits.
func significant(x float64, digits int) float64 {
	if x == 0 || math.IsInf(x, 0) || math.IsNaN(x) {
		return x
	}
	return rounded(x, max(0, digits-1-int(math.Floor(math.Log10(math.Abs(x))))))
}

func (m *Marginal) check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(m.Levels) != len(m.Values) {
		bad("has %d levels and %d values", len(m.Levels), len(m.Values))
	}
	if len(m.Levels) > 1<<16 || len(m.Atoms) > 1<<12 {
		bad("has %d levels and %d atoms, more than a description needs", len(m.Levels), len(m.Atoms))
	}
	if !finite(m.Min, m.Max) || m.Min > m.Max {
		bad("min %v and max %v are no range", m.Min, m.Max)
	}
	if !finite(m.Levels...) || !finite(m.Values...) || !slices.IsSorted(m.Levels) || !slices.IsSorted(m.Values) {
		bad("levels and values have to rise")
	}
	if n := len(m.Levels); n > 0 && (n < 2 || m.Levels[0] != 0 || m.Levels[n-1] != 1) {
		bad("levels have to run from 0 to 1")
	}
	sum := 0.0
	for _, a := range m.Atoms {
		if !finite(a[0], a[1]) || a[1] < 0 {
			bad("atom %v has share %v", a[0], a[1])
		}
		sum += a[1]
	}
	switch {
	case sum > 1+1e-3:
		bad("atoms add up to %v, more than all", sum)
	case len(m.Levels) == 0 && sum <= 0:
		bad("has neither quantiles nor atoms")
	}
	return errors.Join(errs...)
}

func finite(xs ...float64) bool {
	for _, x := range xs {
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return false
		}
	}
	return true
}

// A quantiler evaluates the quantile function of a Marginal, atoms included.
type quantiler struct {
	at, value, slope []float64 // piece i covers levels at[i] to at[i+1]
	guide            []int32   // piece of level i/len(guide)
	min, max         float64
}

const guideSize = 2048

func (m *Marginal) quantiler() *quantiler {
	q := &quantiler{min: m.Min, max: m.Max}
	atoms := slices.Clone(m.Atoms)
	slices.SortFunc(atoms, func(a, b [2]float64) int { return cmp.Compare(a[0], b[0]) })
	mass := 0.0
	for _, a := range atoms {
		mass += a[1]
	}
	scale, rest := 1.0, max(0, 1-mass)
	if len(m.Levels) == 0 || mass > 1 {
		scale, rest = 1/mass, 0
	}
	at := 0.0
	piece := func(share, from, to float64) {
		if share <= 0 {
			return
		}
		q.at = append(q.at, at)
		q.value = append(q.value, from)
		q.slope = append(q.slope, (to-from)/share)
		at += share
	}
	k := 0
	atom := func() {
		piece(atoms[k][1]*scale, atoms[k][0], atoms[k][0])
		k++
	}
	for i := 0; i+1 < len(m.Levels); i++ {
		from, to, share := m.Values[i], m.Values[i+1], (m.Levels[i+1]-m.Levels[i])*rest
		for k < len(atoms) && atoms[k][0] <= from {
			atom()
		}
		for k < len(atoms) && atoms[k][0] < to {
			part := share * (atoms[k][0] - from) / (to - from)
			piece(part, from, atoms[k][0])
			from, share = atoms[k][0], share-part
			atom()
		}
		piece(share, from, to)
	}
	for k < len(atoms) {
		atom()
	}
	q.at = append(q.at, math.Inf(1)) // a level of 1 falls in the last piece
	q.guide = make([]int32, guideSize)
	for i, j := 0, int32(0); i < guideSize; i++ {
		for q.at[j+1] <= float64(i)/guideSize {
			j++
		}
		q.guide[i] = j
	}
	return q
}

// real evaluates at level u in [0, 1).
func (q *quantiler) real(u float64) float64 {
	j := q.guide[int(u*guideSize)]
	for q.at[j+1] <= u {
		j++
	}
	return min(q.max, max(q.min, q.value[j]+(u-q.at[j])*q.slope[j]))
}

// whole is real, rounded.
func (q *quantiler) whole(u float64) int32 { return int32(math.Floor(q.real(u) + 0.5)) }

// mean is the mean of the described distribution before rounding.
func (q *quantiler) mean() float64 {
	const steps = 4096
	sum := 0.0
	for i := range steps {
		sum += q.real((float64(i) + 0.5) / steps)
	}
	return sum / steps
}

// level is where v lies, the inverse of real; pick in [0, 1) chooses within the
// mass of an atom.
func (q *quantiler) level(v, pick float64) float64 {
	n := len(q.value)
	end := func(i int) float64 { return min(1, q.at[i+1]) }
	top := func(i int) float64 { return q.value[i] + q.slope[i]*(end(i)-q.at[i]) }
	// The first piece that reaches v, and past the last that begins at it.
	lo, _ := slices.BinarySearchFunc(q.value, v, func(from, v float64) int { return cmp.Compare(from, v) })
	for lo > 0 && top(lo-1) >= v {
		lo--
	}
	if lo >= n {
		return math.Nextafter(1, 0)
	}
	if q.slope[lo] > 0 {
		return min(math.Nextafter(1, 0), max(q.at[lo], q.at[lo]+(v-q.value[lo])/q.slope[lo]))
	}
	return min(math.Nextafter(1, 0), q.at[lo]+pick*(end(lo)-q.at[lo]))
}
