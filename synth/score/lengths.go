package score

import (
	"cmp"
	"math"
	"slices"
)

// pairs returns the rows that know both lengths.
func pairs(s *Sample) (in, out []float64) {
	if s.In == nil || s.Out == nil {
		return nil, nil
	}
	for i := range s.In {
		if s.In[i] >= 0 && s.Out[i] >= 0 {
			in, out = append(in, float64(s.In[i])), append(out, float64(s.Out[i]))
		}
	}
	return in, out
}

// Eta2 is the correlation ratio of log(output) given the input: the share of
// the variance that lies between bins of input of equal size. It sees a
// dependence that goes up and down again, which rank correlation does not. Ties
// of the input stay in one bin. 0 of independent lengths (up to bins/n), NaN
// where no row knows both lengths or outputs are constant.
func Eta2(s *Sample, bins int) float64 {
	in, out := pairs(s)
	if len(in) < 2 {
		return math.NaN()
	}
	edges := make([]float64, 0, bins)
	ordered := sorted(in)
	for k := 1; k < bins; k++ {
		// The edge belongs to the bin above, as numpy's quantile and digitize have it.
		h := float64(len(ordered)-1) * float64(k) / float64(bins)
		lo := int(h)
		e := ordered[lo]
		if lo+1 < len(ordered) {
			e += (ordered[lo+1] - ordered[lo]) * (h - float64(lo))
		}
		edges = append(edges, e)
	}
	edges = slices.Compact(edges)
	n := make([]float64, len(edges)+1)
	sum := make([]float64, len(edges)+1)
	total, square := 0.0, 0.0
	for i, v := range in {
		k, found := slices.BinarySearch(edges, v)
		if found {
			k++
		}
		y := math.Log(max(out[i], 1))
		n[k]++
		sum[k] += y
		total += y
		square += y * y
	}
	m := total / float64(len(in))
	variance := square - m*total
	if variance <= 1e-12*square || variance <= 0 {
		return math.NaN()
	}
	between := 0.0
	for k := range n {
		if n[k] > 0 {
			d := sum[k]/n[k] - m
			between += n[k] * d * d
		}
	}
	return between / variance
}

// Spearman is the rank correlation of input and output, ties at their mean
// rank. NaN where no row knows both lengths or one is constant.
func Spearman(s *Sample) float64 {
	in, out := pairs(s)
	return correlation(ranks(in), ranks(out))
}

func ranks(x []float64) []float64 {
	order := make([]int, len(x))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int { return cmp.Compare(x[i], x[j]) })
	r := make([]float64, len(x))
	for i := 0; i < len(order); {
		j := i
		for j < len(order) && x[order[j]] == x[order[i]] {
			j++
		}
		for k := i; k < j; k++ {
			r[order[k]] = float64(i+j-1) / 2
		}
		i = j
	}
	return r
}

// correlation is Pearson's.
func correlation(x, y []float64) float64 {
	mx, my := mean(x), mean(y)
	var xy, xx, yy float64
	for i := range x {
		xy += (x[i] - mx) * (y[i] - my)
		xx += (x[i] - mx) * (x[i] - mx)
		yy += (y[i] - my) * (y[i] - my)
	}
	if xx == 0 || yy == 0 || len(x) < 2 {
		return math.NaN()
	}
	return xy / math.Sqrt(xx*yy)
}

// An Atom is a length that many rows share.
type Atom struct {
	Value int32   `json:"value"`
	Mass  float64 `json:"mass"` // share of the rows that know the length
}

// Atoms returns the n most frequent lengths, the most frequent first and the
// smaller of two that are equally frequent.
func Atoms(column []int32, n int) []Atom {
	count := map[int32]int{}
	total := 0
	for _, v := range column {
		if v >= 0 {
			count[v]++
			total++
		}
	}
	atoms := make([]Atom, 0, len(count))
	for v, c := range count {
		atoms = append(atoms, Atom{v, float64(c) / float64(total)})
	}
	slices.SortFunc(atoms, func(a, b Atom) int { return cmp.Or(cmp.Compare(b.Mass, a.Mass), cmp.Compare(a.Value, b.Value)) })
	return atoms[:min(n, len(atoms))]
}

// Mass is the share of the known lengths that are v.
func Mass(column []int32, v int32) float64 {
	n, known := 0, 0
	for _, x := range column {
		if x >= 0 {
			known++
		}
		if x == v {
			n++
		}
	}
	return float64(n) / float64(known)
}

// Cap finds a limit that lengths were cut at: an atom among the greatest
// hundredth of the values that holds at least half a percent of the rows, more
// than twenty times what its neighbours lead one to expect. (A service caps at
// the context length less a few tokens, so that a handful of rows can lie
// above the atom.)
func Cap(column []int32) (Atom, bool) {
	x := Known(column)
	if len(x) < 1000 {
		return Atom{}, false
	}
	slices.Sort(x)
	top := x[len(x)-1-len(x)/100]
	count := map[int32]int{}
	for _, v := range x {
		if v >= top {
			count[int32(v)]++
		}
	}
	best := Atom{}
	for v, c := range count {
		mass := float64(c) / float64(len(x))
		if mass > best.Mass || mass == best.Mass && v > best.Value {
			best = Atom{v, mass}
		}
	}
	// Neighbours: rows within one part in fifty below it.
	near := 0
	lo := float64(best.Value) * 0.98
	for _, v := range x {
		if v >= lo && v < float64(best.Value) {
			near++
		}
	}
	width := max(1, float64(best.Value)-lo)
	expected := float64(near) / width / float64(len(x))
	return best, best.Mass >= 0.005 && best.Mass > 20*expected
}

// RunsShared counts runs of length rows in s whose lengths (in, out) occur, in
// this order, somewhere in source: rows that a model has memorised rather than
// learnt. Rows with an unknown length break a run.
func RunsShared(source, s *Sample, length int) (shared, runs int) {
	if s.In == nil || s.Out == nil || source.In == nil || source.Out == nil || length < 1 {
		return 0, 0
	}
	seen := map[string]bool{}
	each(source, length, func(key []byte) { seen[string(key)] = true })
	each(s, length, func(key []byte) {
		runs++
		if seen[string(key)] {
			shared++
		}
	})
	return shared, runs
}

func each(s *Sample, length int, f func([]byte)) {
	key := make([]byte, 0, 8*length)
	for i := 0; i+length <= s.N(); i++ {
		key = key[:0]
		for j := i; j < i+length; j++ {
			in, out := s.In[j], s.Out[j]
			if in < 0 || out < 0 {
				key = nil
				break
			}
			key = append(key, byte(in), byte(in>>8), byte(in>>16), byte(in>>24), byte(out), byte(out>>8), byte(out>>16), byte(out>>24))
		}
		if key == nil {
			key = make([]byte, 0, 8*length)
			continue
		}
		f(key)
	}
}
