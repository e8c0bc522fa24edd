package stats

import (
	"math"
	"math/rand/v2"
	"slices"
	"sort"
)

// Pieces is into how many stretches of neighbours the requests of a run are
// cut. Two of them make a block, or four where neighbouring ones resemble each
// other: fewer blocks make an interval wide, as its quantile is Student's, and
// blocks shorter than what the load remembers make it too narrow.
// docs/statistics.md has the simulations.
const Pieces = 40

// A Paired compares one figure of the same requests under two conditions, with
// a block bootstrap: what is drawn again is not a request, whose neighbours
// resemble it, but a block of them, and both conditions of a block together
// (Künsch, "The jackknife and the bootstrap for general stationary
// observations", Annals of Statistics 17, 1989). A block is kept as a sketch, a
// histogram on edges that follow both samples, so that drawing blocks costs the
// same for a thousand requests and for a million.
type Paired struct {
	edges []float64 // upper end of each bin, ascending
	low   []float64 // smallest value of each bin: equal to the edge for a tie
	a, b  side
}

// side is one condition: bins and exact sums by piece.
type side struct {
	hist   [Pieces][]float64
	count  [Pieces]float64
	sum    [Pieces]float64
	n      float64
	total  []float64 // hist over all
	sorted []float64 // the values, where they are at hand
}

// edgesPerSide is the number of quantiles of a side of n values that become
// edges: half of them evenly spread, half above p98, where tails are compared.
func edgesPerSide(n int) int { return min(400, max(40, n/8)) }

// Piece is the piece of the i-th of n requests in the order of time.
func Piece(i, n int) int8 { return int8(int64(i) * Pieces / int64(n)) }

// NewPaired takes a and b, pair by pair, finite, and the piece of each
// pair. Empty pieces are allowed.
func NewPaired(a, b []float64, piece []int8) *Paired {
	p := &Paired{}
	p.a.sorted, p.b.sorted = slices.Clone(a), slices.Clone(b)
	slices.Sort(p.a.sorted)
	slices.Sort(p.b.sorted)
	p.cut()
	p.a.fill(p.edges, a, piece)
	p.b.fill(p.edges, b, piece)
	return p
}

// NewSketched takes histograms of both conditions by piece in place of
// values: bin k holds what lies above edges[k-1] and up to edges[k].
func NewSketched(edges []float64, a, b *[Pieces][]float64, sumA, sumB *[Pieces]float64) *Paired {
	p := &Paired{edges: edges, low: make([]float64, len(edges))}
	for k := range edges {
		if k > 0 {
			p.low[k] = edges[k-1]
		}
	}
	p.a.hist, p.a.sum = *a, *sumA
	p.b.hist, p.b.sum = *b, *sumB
	p.a.tally(len(edges))
	p.b.tally(len(edges))
	return p
}

// cut chooses the edges.
func (p *Paired) cut() {
	top := math.Inf(-1)
	for _, s := range [][]float64{p.a.sorted, p.b.sorted} {
		if len(s) == 0 {
			continue
		}
		top = max(top, s[len(s)-1])
		all := edgesPerSide(len(s))
		half := all / 2
		for i := range all {
			level := 0.98 * float64(i) / float64(half)
			if i >= half {
				level = 0.98 + 0.02*float64(i-half)/float64(all-half)
			}
			p.edges = append(p.edges, s[int(level*float64(len(s)-1))])
		}
	}
	p.edges = append(p.edges, top)
	slices.Sort(p.edges)
	p.edges = slices.Compact(p.edges)
	p.low = slices.Clone(p.edges)
	for _, s := range [][]float64{p.a.sorted, p.b.sorted} {
		for i := range p.edges {
			below := math.Inf(-1)
			if i > 0 {
				below = p.edges[i-1]
			}
			if k := sort.Search(len(s), func(k int) bool { return s[k] > below }); k < len(s) {
				p.low[i] = min(p.low[i], s[k])
			}
		}
	}
}

func (s *side) fill(edges, v []float64, piece []int8) {
	for i := range s.hist {
		s.hist[i] = make([]float64, len(edges))
	}
	for i, x := range v {
		s.hist[piece[i]][sort.SearchFloat64s(edges, x)]++
		s.sum[piece[i]] += x
	}
	s.tally(len(edges))
}

func (s *side) tally(bins int) {
	s.total = make([]float64, bins)
	for i, h := range s.hist {
		for k, c := range h {
			s.total[k] += c
			s.count[i] += c
		}
		s.n += s.count[i]
	}
}

// quantile reads the p-quantile off a histogram of n values.
func (p *Paired) quantile(hist []float64, n, level float64) float64 {
	rank, below := level*n, 0.0
	for k, c := range hist {
		if c > 0 && below+c >= rank {
			return p.low[k] + (p.edges[k]-p.low[k])*max(0, rank-below)/c
		}
		below += c
	}
	return p.edges[len(p.edges)-1]
}

// Mean, as a level, asks for the mean in place of a quantile.
const Mean = -1

// Estimate returns the figure of a and of b over all requests: a quantile, or
// the mean. NaN of none.
func (p *Paired) Estimate(level float64) (a, b float64) {
	return p.estimate(&p.a, level), p.estimate(&p.b, level)
}

func (p *Paired) estimate(s *side, level float64) float64 {
	switch {
	case s.n == 0:
		return math.NaN()
	case level == Mean:
		sum := 0.0
		for _, x := range s.sum {
			sum += x
		}
		return sum / s.n
	case s.sorted != nil:
		return Quantile(s.sorted, level)
	}
	return p.quantile(s.total, s.n, level)
}

// replicates draws blocks of so many pieces again r times and returns, for each
// level, what the figures of a and b would have been, shifted so that they
// centre on those of all requests.
func (p *Paired) replicates(r int, seed uint64, pieces int, levels ...float64) [][][2]float64 {
	rng := rand.New(rand.NewPCG(seed, 0x6a09e667f3bcc908))
	out := make([][][2]float64, len(levels))
	shift := make([][2]float64, len(levels))
	for i, level := range levels {
		out[i] = make([][2]float64, 0, r)
		if level != Mean {
			ea, eb := p.Estimate(level)
			shift[i] = [2]float64{ea - p.quantile(p.a.total, p.a.n, level), eb - p.quantile(p.b.total, p.b.n, level)}
		}
	}
	a, b := p.a.blocks(pieces), p.b.blocks(pieces)
	weight := make([]float64, Pieces/pieces)
	for range r {
		clear(weight)
		for range weight {
			weight[rng.IntN(len(weight))]++
		}
		na, sa := a.draw(weight)
		nb, sb := b.draw(weight)
		if na == 0 || nb == 0 {
			continue // empty blocks alone
		}
		for i, level := range levels {
			if level == Mean {
				out[i] = append(out[i], [2]float64{sa / na, sb / nb})
				continue
			}
			out[i] = append(out[i], [2]float64{p.drawn(a, na, level) + shift[i][0], p.drawn(b, nb, level) + shift[i][1]})
		}
	}
	return out
}

// blocks is a side cut for drawing: how many values of each block lie in a bin or
// below, so that a quantile of drawn blocks is a binary search and not a sum over
// all bins.
type blocks struct {
	below      [][]float64 // by bin, one entry a block
	count, sum []float64   // by block
	weight     []float64   // of the blocks as drawn
}

func (s *side) blocks(pieces int) *blocks {
	n := Pieces / pieces
	out := &blocks{below: make([][]float64, len(s.total)), count: make([]float64, n), sum: make([]float64, n)}
	for i := range Pieces {
		out.count[i/pieces] += s.count[i]
		out.sum[i/pieces] += s.sum[i]
	}
	cells := make([]float64, n*len(s.total))
	for k := range out.below {
		out.below[k] = cells[k*n : (k+1)*n]
		if k > 0 {
			copy(out.below[k], out.below[k-1])
		}
		for i := range s.hist {
			out.below[k][i/pieces] += s.hist[i][k]
		}
	}
	return out
}

// draw takes each block as often as its weight says.
func (b *blocks) draw(weight []float64) (n, sum float64) {
	b.weight = weight
	for i, w := range weight {
		n += w * b.count[i]
		sum += w * b.sum[i]
	}
	return n, sum
}

// upTo is how many drawn values lie in bin k or below.
func (b *blocks) upTo(k int) (n float64) {
	for i, c := range b.below[k] {
		n += b.weight[i] * c
	}
	return n
}

// drawn is quantile of the n values of drawn blocks.
func (p *Paired) drawn(b *blocks, n, level float64) float64 {
	rank := level * n
	k := min(sort.Search(len(p.edges), func(k int) bool { return b.upTo(k) >= rank }), len(p.edges)-1)
	below := 0.0
	if k > 0 {
		below = b.upTo(k - 1)
	}
	c := b.upTo(k) - below
	if c <= 0 {
		return p.edges[k]
	}
	return p.low[k] + (p.edges[k]-p.low[k])*min(1, max(0, rank-below)/c)
}

// filled counts the blocks of so many pieces that hold something of both sides.
func (p *Paired) filled(pieces int) (n int) {
	for i := 0; i < Pieces; i += pieces {
		var a, b float64
		for k := range pieces {
			a, b = a+p.a.count[i+k], b+p.b.count[i+k]
		}
		if a > 0 && b > 0 {
			n++
		}
	}
	return n
}

// memory is the lag-1 autocorrelation of what stretches of so many pieces
// contribute to the difference at a level.
func (p *Paired) memory(pieces int, level float64) float64 {
	a, b := p.Estimate(level)
	contributions := make([]float64, Pieces/pieces)
	for i := range Pieces {
		var c float64
		if level == Mean {
			c = (p.b.sum[i] - b*p.b.count[i]) - (p.a.sum[i] - a*p.a.count[i])
		} else {
			c = p.above(&p.b, i, b, level) - p.above(&p.a, i, a, level)
		}
		contributions[i/pieces] += c
	}
	return Autocorrelation(contributions, 1)
}

// above is how many values of a piece lie above q, less what is expected.
func (p *Paired) above(s *side, piece int, q, level float64) (n float64) {
	if s.count[piece] == 0 {
		return 0
	}
	k := sort.SearchFloat64s(p.edges, q)
	for i := k + 1; i < len(p.edges); i++ {
		n += s.hist[piece][i]
	}
	if k < len(p.edges) && p.edges[k] > p.low[k] {
		n += s.hist[piece][k] * (p.edges[k] - q) / (p.edges[k] - p.low[k])
	}
	return n - (1-level)*s.count[piece]
}
