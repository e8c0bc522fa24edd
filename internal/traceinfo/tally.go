package traceinfo

import (
	"cmp"
	"math"
	"slices"
)

// exactBelow bounds the values that are counted one by one. It lies above the
// context length of every model served today; longer ones are counted in
// classes of 0.1 %.
const exactBelow = 1 << 21

// A lengths counts how often each length occurs.
type lengths struct {
	counts  []int64         // by value, below exactBelow
	coarse  map[int64]int64 // by class, from exactBelow on
	known   int64
	unknown int64
	sum     float64
	max     int64
	min     int64
}

func (l *lengths) add(v int64) {
	v = max(v, 0) // a negative length is damage, and validate's to report
	if l.known == 0 || v < l.min {
		l.min = v
	}
	l.max = max(l.max, v)
	l.known++
	l.sum += float64(v)
	if v >= exactBelow {
		if l.coarse == nil {
			l.coarse = map[int64]int64{}
		}
		// The eleven leading bits make 1,024 classes of each doubling.
		shift := max(0, bitLen(v)-11)
		l.coarse[v>>shift<<shift]++
		return
	}
	if int(v) >= len(l.counts) {
		grown := make([]int64, min(exactBelow, max(2*len(l.counts), int(v)+1, 1024)))
		copy(grown, l.counts)
		l.counts = grown
	}
	l.counts[v]++
}

func bitLen(v int64) int {
	n := 0
	for ; v > 0; v >>= 1 {
		n++
	}
	return n
}

// values yields the values that occur, ascending.
func (l *lengths) values(yield func(v, n int64) bool) {
	for v, n := range l.counts {
		if n > 0 && !yield(int64(v), n) {
			return
		}
	}
	keys := make([]int64, 0, len(l.coarse))
	for v := range l.coarse {
		keys = append(keys, v)
	}
	slices.Sort(keys)
	for _, v := range keys {
		if !yield(v, l.coarse[v]) {
			return
		}
	}
}

// quantiles are values of the nearest rank: the smallest that at least a share
// q of all does not exceed. qs ascends.
func (l *lengths) quantiles(qs []float64) []int64 {
	out := make([]int64, len(qs))
	if l.known == 0 {
		return out
	}
	i, seen := 0, int64(0)
	for v, n := range l.values {
		seen += n
		for i < len(qs) && float64(seen) >= math.Ceil(qs[i]*float64(l.known)) {
			out[i] = v
			i++
		}
	}
	return out
}

// atoms are the most frequent values, down to a number and a share of rows.
func (l *lengths) atoms(most int, rows int64, share float64) []Atom {
	var top []Atom
	for v, n := range l.values {
		if n >= rows && float64(n) >= share*float64(l.known) {
			top = append(top, Atom{Value: v, Rows: n, Share: float64(n) / float64(l.known)})
		}
	}
	slices.SortStableFunc(top, func(a, b Atom) int { return cmp.Compare(b.Rows, a.Rows) })
	return top[:min(most, len(top))]
}

// limit finds a length that requests were cut at: a value within 0.2 % of the
// longest (a cap leaves the odd length around it) that holds at least 1 % of
// the rows, ten of them, and ten times what the values of the decile below it
// hold on average.
func (l *lengths) limit() (Atom, bool) {
	from := l.max - l.max/500
	best := Atom{}
	decile := l.quantiles([]float64{0.9})[0]
	below, span := int64(0), max(1, from-decile)
	for v, n := range l.values {
		switch {
		case v >= from:
			if n >= best.Rows {
				best = Atom{Value: v, Rows: n, Share: float64(n) / float64(l.known)}
			}
		case v >= decile:
			below += n
		}
	}
	usual := float64(below) / float64(span)
	ok := l.max > 1 && best.Rows >= 10 && best.Share >= 0.01 && float64(best.Rows) >= 10*usual
	return best, ok
}

// maxNames bounds the distinct strings of a column that are counted.
const maxNames = 1 << 16

// names counts how often each string occurs.
type names struct {
	rows  map[string]int64
	other int64 // rows whose name came after the bound
}

func (c *names) add(s string) {
	if s == "" {
		return
	}
	if _, ok := c.rows[s]; !ok {
		if len(c.rows) >= maxNames {
			c.other++
			return
		}
		if c.rows == nil {
			c.rows = map[string]int64{}
		}
	}
	c.rows[s]++
}

// top lists the most frequent names, ties by name.
func (c *names) top(most int) *Names {
	if len(c.rows) == 0 {
		return nil
	}
	out := &Names{Distinct: len(c.rows), More: c.other > 0}
	for s, n := range c.rows {
		out.Rows += n
		out.Top = append(out.Top, Name{s, n})
	}
	out.Rows += c.other
	slices.SortFunc(out.Top, func(a, b Name) int {
		return cmp.Or(cmp.Compare(b.Rows, a.Rows), cmp.Compare(a.Name, b.Name))
	})
	out.Top = out.Top[:min(most, len(out.Top))]
	return out
}

// maxSessions bounds the sessions that are remembered, half of it at a time.
const maxSessions = 1 << 20

// sessions counts turns. A session that no row came from while maxSessions/2
// others did is over; should it come back it counts as another one.
type sessions struct {
	young, old map[int64]int64
	turns      lengths
	rows       int64
	split      bool
}

func (s *sessions) add(id int64) {
	s.rows++
	if s.young == nil {
		s.young = map[int64]int64{}
	}
	n, ok := s.young[id]
	if !ok {
		n = s.old[id]
		delete(s.old, id)
	}
	s.young[id] = n + 1
	if len(s.young) >= maxSessions/2 {
		s.close(s.old)
		s.split = s.split || len(s.old) > 0
		s.old, s.young = s.young, map[int64]int64{}
	}
}

func (s *sessions) close(m map[int64]int64) {
	for _, n := range m {
		s.turns.add(n)
	}
}
