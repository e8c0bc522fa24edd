package synth

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
)

// Lengths is the joint distribution of the lengths of a request.
type Lengths struct {
	In  *Marginal `json:"in,omitempty"`
	Out *Marginal `json:"out,omitempty"`
	// InKnown and OutKnown are the shares of requests whose length is known;
	// the others are written without one.
	InKnown  float64 `json:"in_known"`
	OutKnown float64 `json:"out_known"`
	// Copula joins them: row i, column j is the weight of output bin j given
	// input bin i. Bins hold equal shares of the marginals. It captures any
	// dependence, monotone or not. Absent: independent.
	Copula [][]int `json:"copula,omitempty"`
	// Reasoning is the share of the output that is reasoning, Cached the share
	// of the prompt that came from a prefix cache.
	Reasoning *Part `json:"reasoning,omitempty"`
	Cached    *Part `json:"cached,omitempty"`
}

// A Part is the share of a length that is of a kind.
type Part struct {
	Known float64 `json:"known"` // share of the requests that say
	// Bins holds the distribution of the part for equal shares of the whole,
	// short ones first: how often it is zero, and quantiles of its share
	// otherwise.
	Bins []PartBin `json:"bins"`
}

// A PartBin is a Part of requests of about one length.
type PartBin struct {
	Zero  float64   `json:"zero"`
	Share *Marginal `json:"share,omitempty"`
}

// copulaSize is how many bins of each length n rows can tell apart.
func copulaSize(n int) int {
	for _, k := range []int{32, 16, 8, 4} {
		if n >= 4*k*k {
			return k
		}
	}
	return 1
}

// lengthRows are the lengths of some requests, -1 unknown.
type lengthRows struct {
	in, out, reasoning, cached []int32
}

func (l lengthRows) n() int { return max(len(l.in), len(l.out)) }

// fitLengths describes rows; s breaks ties. Nil says that no length is known.
func fitLengths(l lengthRows, s *stream) *Lengths {
	in, out := known(l.in), known(l.out)
	if len(in) == 0 && len(out) == 0 {
		return nil
	}
	f := &Lengths{}
	n := float64(l.n())
	if len(in) > 0 {
		f.In, f.InKnown = fitMarginal(in), rounded(float64(len(in))/n, 6)
	}
	if len(out) > 0 {
		f.Out, f.OutKnown = fitMarginal(out), rounded(float64(len(out))/n, 6)
	}
	if f.In != nil && f.Out != nil {
		var both [2][]int32
		for i := range l.in {
			if l.in[i] >= 0 && l.out[i] >= 0 {
				both[0] = append(both[0], l.in[i])
				both[1] = append(both[1], l.out[i])
			}
		}
		f.Copula = fitCopula(both[0], both[1], s)
	}
	f.Reasoning = fitPart(l.reasoning, l.out, s)
	f.Cached = fitPart(l.cached, l.in, s)
	return f
}

func known(x []int32) []int32 {
	var k []int32
	for _, v := range x {
		if v >= 0 {
			k = append(k, v)
		}
	}
	return k
}

// bins ranks values into k bins of equal size; equal values are dealt at
// random over the bins that they span.
func bins(values []int32, k int, s *stream) []int32 {
	n := len(values)
	order := make([]int32, n)
	tie := make([]uint32, n)
	for i := range order {
		order[i] = int32(i)
		tie[i] = uint32(s.Uint64())
	}
	slices.SortFunc(order, func(i, j int32) int {
		return cmp.Or(cmp.Compare(values[i], values[j]), cmp.Compare(tie[i], tie[j]), cmp.Compare(i, j))
	})
	b := make([]int32, n)
	for rank, i := range order {
		b[i] = int32(rank * k / n)
	}
	return b
}

func fitCopula(in, out []int32, s *stream) [][]int {
	k := copulaSize(len(in))
	if k == 1 {
		return nil
	}
	bi, bo := bins(in, k, s), bins(out, k, s)
	c := make([][]int, k)
	for i := range c {
		c[i] = make([]int, k)
	}
	for i := range bi {
		c[bi[i]][bo[i]]++
	}
	return c
}

// partBins is how many lengths of the whole a Part tells apart.
const partBins = 4

func fitPart(part, whole []int32, s *stream) *Part {
	if part == nil || whole == nil {
		return nil
	}
	var wholes, parts []int32
	for i := range part {
		if part[i] >= 0 && whole[i] >= 0 {
			wholes, parts = append(wholes, whole[i]), append(parts, part[i])
		}
	}
	if len(parts) == 0 {
		return nil
	}
	k := partBins
	if len(parts) < 100 {
		k = 1
	}
	p := &Part{Known: rounded(float64(len(parts))/float64(len(part)), 6), Bins: make([]PartBin, k)}
	shares := make([][]float64, k)
	count, zero := make([]float64, k), make([]float64, k)
	for i, b := range bins(wholes, k, s) {
		count[b]++
		if parts[i] == 0 || wholes[i] == 0 {
			zero[b]++
			continue
		}
		shares[b] = append(shares[b], min(1, float64(parts[i])/float64(wholes[i])))
	}
	for b := range p.Bins {
		p.Bins[b].Zero = rounded(zero[b]/count[b], 6)
		if len(shares[b]) > 0 {
			p.Bins[b].Share = fitContinuous(shares[b], 32)
		}
	}
	return p
}

func (l *Lengths) check() error {
	var errs []error
	for name, m := range map[string]*Marginal{"in": l.In, "out": l.Out} {
		if m == nil {
			continue
		}
		if err := m.check(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		} else if m.Min < 0 || m.Max > maxTokens {
			errs = append(errs, fmt.Errorf("%s: %v to %v tokens is no length", name, m.Min, m.Max))
		}
	}
	if !share(l.InKnown) || !share(l.OutKnown) {
		errs = append(errs, fmt.Errorf("in_known %v and out_known %v have to be shares", l.InKnown, l.OutKnown))
	}
	if err := checkTable(l.Copula, len(l.Copula)); err != nil {
		errs = append(errs, fmt.Errorf("copula: %w", err))
	}
	for name, p := range map[string]*Part{"reasoning": l.Reasoning, "cached": l.Cached} {
		if p == nil {
			continue
		}
		if !share(p.Known) || len(p.Bins) == 0 || len(p.Bins) > 1<<12 {
			errs = append(errs, fmt.Errorf("%s: known is %v, with %d bins", name, p.Known, len(p.Bins)))
		}
		for i, b := range p.Bins {
			switch {
			case !share(b.Zero) || b.Share == nil && b.Zero < 1:
				errs = append(errs, fmt.Errorf("%s: bin %d has no distribution", name, i))
			case b.Share != nil:
				if err := b.Share.check(); err != nil {
					errs = append(errs, fmt.Errorf("%s: bin %d: %w", name, i, err))
				} else if b.Share.Min < 0 || b.Share.Max > 1 {
					errs = append(errs, fmt.Errorf("%s: bin %d: the part is not between none and all", name, i))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// maxTokens is what traceformat takes for a length at most.
const maxTokens = 1 << 30

// checkTable says whether rows are k weights each, with something in every row.
func checkTable(rows [][]int, k int) error {
	for i, row := range rows {
		sum := 0
		for _, w := range row {
			if w < 0 || w > 1<<40 {
				return fmt.Errorf("row %d: weight %d", i, w)
			}
			sum += w
		}
		if len(row) != k || sum == 0 {
			return fmt.Errorf("row %d has %d weights that add up to %d, want %d that add up to more than 0", i, len(row), sum, k)
		}
	}
	return nil
}

func share(x float64) bool { return x >= 0 && x <= 1 }

// A lengthSampler draws the lengths of requests.
type lengthSampler struct {
	s                 *stream
	in, out           *quantiler
	inKnown, outKnown float64
	rows              []alias // output bin given input bin
	reasoning, cached *partSampler
	scaleIn, scaleOut float64
}

type partSampler struct {
	known float64
	bins  []PartBin
	share []*quantiler
}

// lengths is a draw; -1 is unknown. u is the level of the input.
type lengths struct {
	in, out, reasoning, cached int32
}

func newLengthSampler(l *Lengths, s *stream, scaleIn, scaleOut float64) *lengthSampler {
	d := &lengthSampler{s: s, scaleIn: scaleIn, scaleOut: scaleOut}
	if l == nil {
		return d
	}
	if l.In != nil {
		d.in, d.inKnown = l.In.quantiler(), l.InKnown
	}
	if l.Out != nil {
		d.out, d.outKnown = l.Out.quantiler(), l.OutKnown
	}
	for _, row := range l.Copula {
		d.rows = append(d.rows, newAlias(floats(row)))
	}
	d.reasoning, d.cached = newPartSampler(l.Reasoning), newPartSampler(l.Cached)
	return d
}

func floats(x []int) []float64 {
	f := make([]float64, len(x))
	for i, v := range x {
		f[i] = float64(v)
	}
	return f
}

func newPartSampler(p *Part) *partSampler {
	if p == nil {
		return nil
	}
	d := &partSampler{known: p.Known, bins: p.Bins}
	for _, b := range p.Bins {
		var q *quantiler
		if b.Share != nil {
			q = b.Share.quantiler()
		}
		d.share = append(d.share, q)
	}
	return d
}

// draw returns the part of whole, which lies at level u of its marginal.
func (p *partSampler) draw(s *stream, whole int32, u float64) int32 {
	if p == nil || whole < 0 || p.known < 1 && s.uniform() >= p.known {
		return -1
	}
	b := min(int(u*float64(len(p.bins))), len(p.bins)-1)
	if s.uniform() < p.bins[b].Zero || p.share[b] == nil {
		return 0
	}
	return min(whole, max(min(1, whole), int32(math.Round(p.share[b].real(s.uniform())*float64(whole)))))
}

// level draws the level of an input length: at a window's own weights of bins
// where there are any.
func (d *lengthSampler) level(window *windowLengths) float64 {
	u := d.plainLevel(window)
	if window != nil && window.power > 0 {
		u = math.Pow(u, window.power)
	}
	return u
}

func (d *lengthSampler) plainLevel(window *windowLengths) float64 {
	if window == nil || window.in.cut == nil {
		return d.s.uniform()
	}
	var k int
	if window.urn != nil {
		k = window.urn.draw(d.s)
	} else {
		k = window.in.draw(d.s.uniform())
	}
	return (float64(k) + d.s.uniform()) / float64(len(window.in.cut))
}

// draw returns the lengths of a request whose input is at level u, with the
// outputs weighted by a window's table where there is one.
func (d *lengthSampler) draw(u float64, window *windowLengths) lengths {
	l := lengths{-1, -1, -1, -1}
	s := d.s
	if d.in != nil && (d.inKnown >= 1 || s.uniform() < d.inKnown) {
		l.in = scaled(d.in.whole(u), d.scaleIn)
		l.cached = d.cached.draw(s, l.in, u)
	}
	if d.out != nil && (d.outKnown >= 1 || s.uniform() < d.outKnown) {
		l.out = d.output(u, window, &l)
	}
	return l
}

func (d *lengthSampler) output(u float64, window *windowLengths, l *lengths) int32 {
	s := d.s
	v := s.uniform()
	if k := len(d.rows); k > 0 {
		i := int(u * float64(k))
		var j int
		if window != nil && window.rows != nil {
			j = window.rows[i].draw(v)
		} else {
			j = d.rows[i].draw(v)
		}
		v = (float64(j) + s.uniform()) / float64(k)
	}
	out := scaled(d.out.whole(v), d.scaleOut)
	l.reasoning = d.reasoning.draw(s, out, v)
	return out
}

// scaled multiplies a length by a what-if factor; what was at least a token
// stays at least a token.
func scaled(n int32, by float64) int32 {
	if by == 1 || n <= 0 {
		return n
	}
	return int32(min(maxTokens, max(1, math.Round(float64(n)*by))))
}
