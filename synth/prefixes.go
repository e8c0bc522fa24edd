package synth

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
)

// maxEntries bounds the requests that a generator holds for reuse.
const maxEntries = 1 << 20

// Prefixes says which blocks of a prompt stand in an earlier one. A request
// either continues the request that touched a block last, some time ago, to
// some depth, or it begins with one of the popular prefixes and is new from
// there on. Ids are fresh, and the tree is valid because blocks are only ever
// taken over from the front.
type Prefixes struct {
	// Edges are the greatest whole blocks of each size of request but the last.
	// All lists that follow have an entry for each size.
	Edges []int `json:"edges,omitempty"`
	// Continue is the share that continues an earlier request beyond its popular
	// prefix, where there has been time for one.
	Continue []float64 `json:"continue"`
	// Append is the blocks after the shared ones of those that take over all
	// whole blocks of the earlier request, All how many of the continuing ones
	// that are.
	All    []float64   `json:"all"`
	Append []*Marginal `json:"append"`
	// Depth is the share of the blocks that are shared of the others, Excess
	// how many whole blocks the earlier request had beyond those.
	Depth  []*Marginal `json:"depth"`
	Excess *Marginal   `json:"excess,omitempty"`
	// Gap is the time since the continued request, in seconds.
	Gap []*Marginal `json:"gap"`
	// Roots are the popular prefixes: system prompts, tools, templates. Popular
	// holds how often a request that continues none begins with each, by size;
	// its first column is with none.
	Roots   []Root  `json:"roots,omitempty"`
	Popular [][]int `json:"popular,omitempty"`
}

// maxRootDepth is the longest popular prefix in blocks.
const maxRootDepth = 1 << 16

// A Root is a prefix that many requests begin with.
type Root struct {
	Parent int `json:"parent"` // the root that it extends, -1 none; comes before it
	Depth  int `json:"depth"`  // blocks, those of the parent included
}

func (p *Prefixes) check() error {
	k := len(p.Edges) + 1
	if len(p.Continue) != k || len(p.All) != k || len(p.Append) != k || len(p.Depth) != k || len(p.Gap) != k || !slices.IsSorted(p.Edges) {
		return fmt.Errorf("want edges that rise and %d entries in each list", k)
	}
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	marginal := func(name string, m *Marginal, min, max float64) {
		if m == nil {
			return
		}
		if err := m.check(); err != nil {
			bad("%s: %w", name, err)
		} else if m.Min < min || m.Max > max {
			bad("%s: %v to %v, want %v to %v", name, m.Min, m.Max, min, max)
		}
	}
	for i := range k {
		if !share(p.Continue[i]) || !share(p.All[i]) {
			bad("size %d: continue %v and all %v have to be shares", i, p.Continue[i], p.All[i])
			continue
		}
		if p.Continue[i] > 0 && (p.Gap[i] == nil || p.All[i] > 0 && p.Append[i] == nil || p.All[i] < 1 && (p.Depth[i] == nil || p.Excess == nil)) {
			bad("size %d: requests that continue need gap, append, depth and excess", i)
		}
		marginal("append", p.Append[i], 0, maxTokens)
		marginal("depth", p.Depth[i], 0, 1)
		marginal("gap", p.Gap[i], 0, maxHorizon)
	}
	marginal("excess", p.Excess, 0, maxTokens)
	if len(p.Roots) > 1<<14 {
		bad("%d roots", len(p.Roots))
	}
	for i, r := range p.Roots {
		if r.Parent < -1 || r.Parent >= i || r.Depth <= 0 || r.Depth > maxRootDepth || r.Parent >= 0 && p.Roots[r.Parent].Depth >= r.Depth {
			bad("root %d: parent %d, depth %d", i, r.Parent, r.Depth)
		}
	}
	if len(p.Roots) > 0 {
		if len(p.Popular) != k {
			bad("popular: want %d rows", k)
		} else if err := checkTable(p.Popular, len(p.Roots)+1); err != nil {
			bad("popular: %w", err)
		}
	}
	return errors.Join(errs...)
}

// sizeOf is the size of a request of so many whole blocks.
func (p *Prefixes) sizeOf(whole int) int { return sort.SearchInts(p.Edges, whole) }

// A run is consecutive block ids.
type run struct {
	start uint64
	n     int32
}

// taken appends the runs that hold the first n blocks of runs.
func taken(dst, runs []run, n int) []run {
	for _, r := range runs {
		if n <= 0 {
			break
		}
		r.n = min(r.n, int32(n))
		dst = append(dst, r)
		n -= int(r.n)
	}
	return dst
}

// blockRule turns a length into blocks.
type blockRule struct {
	size int32
	kept bool // a last block that is not full has an id
}

func newBlockRule(b *Blocks) blockRule { return blockRule{b.Size, b.Partial != "dropped"} }

// of returns how many ids a prompt has and how many of them are of full blocks.
func (r blockRule) of(tokens int32) (ids, whole int) {
	whole = int(tokens / r.size)
	ids = whole
	if r.kept && tokens%r.size != 0 {
		ids++
	}
	return ids, whole
}

// A prefixer makes the blocks of the requests of one client.
type prefixer struct {
	p    *Prefixes
	s    *stream
	rule blockRule
	base uint64 // above the client's ids
	next uint64 // fresh id

	excess  *quantiler
	gap     []*quantiler
	appends []*quantiler
	depth   []*quantiler
	popular []alias
	roots   [][]run
	reuse   float64

	window  float64
	entries ring[entry]
	runs    ring[run]
	cap     int
	scratch []run
}

// An entry is an earlier request that may be continued.
type entry struct {
	t           float64
	from, to    int64 // of its runs
	whole, used int32 // full blocks; deepest that a later one shares
}

// newPrefixer starts with roots first, so that their ids are the least. base
// sets the client's ids apart.
func newPrefixer(p *Prefixes, b *Blocks, s *stream, base uint64, entries int, reuse float64) *prefixer {
	x := &prefixer{p: p, s: s, rule: newBlockRule(b), base: base, window: b.Window, cap: entries, reuse: reuse}
	longest := 0.0
	for _, g := range p.Gap {
		x.gap = append(x.gap, quantilerOf(g))
		if g != nil {
			longest = max(longest, g.Max)
		}
	}
	x.window = min(x.window, longest)
	if p.Excess != nil {
		x.excess = p.Excess.quantiler()
	}
	for i := range p.Continue {
		x.appends = append(x.appends, quantilerOf(p.Append[i]))
		x.depth = append(x.depth, quantilerOf(p.Depth[i]))
	}
	for _, row := range p.Popular {
		x.popular = append(x.popular, newAlias(floats(row)))
	}
	for _, r := range p.Roots {
		var runs []run
		before := 0
		if r.Parent >= 0 {
			before = p.Roots[r.Parent].Depth
			runs = append(runs, x.roots[r.Parent]...)
		}
		x.roots = append(x.roots, append(runs, x.fresh(r.Depth-before)))
	}
	return x
}

func quantilerOf(m *Marginal) *quantiler {
	if m == nil {
		return nil
	}
	return m.quantiler()
}

func (x *prefixer) fresh(n int) run {
	r := run{x.base + x.next, int32(n)}
	x.next += uint64(n)
	return r
}

// A hint is what a resampled row says of its own reuse.
type hint struct {
	gap   float64 // 0: continues none
	depth int
}

// blocks appends the ids of a prompt of so many tokens that arrives at t.
func (x *prefixer) blocks(dst []uint64, t float64, tokens int32, h *hint) []uint64 {
	ids, whole := x.rule.of(tokens)
	size := x.p.sizeOf(whole)
	var shared []run
	depth := 0
	if parent := x.parent(t, size, whole, h); parent.entry != nil {
		e := parent.entry
		depth = parent.depth
		e.used = max(e.used, int32(depth))
		x.scratch = x.scratch[:0]
		left := depth
		for i := e.from; i < e.to && left > 0; i++ {
			r := *x.runs.at(i)
			r.n = min(r.n, int32(left))
			x.scratch = append(x.scratch, r)
			left -= int(r.n)
		}
		shared = x.scratch
	} else if len(x.roots) > 0 {
		for k := x.popular[size].draw(x.s.uniform()) - 1; k >= 0; k = x.p.Roots[k].Parent {
			if d := x.p.Roots[k].Depth; d <= whole {
				depth, shared = d, x.roots[k]
				break
			}
		}
	}
	e := entry{t: t, from: x.runs.end(), whole: int32(whole), used: int32(depth)}
	for _, r := range shared {
		dst = r.ids(dst)
		x.runs.push(r)
	}
	if n := ids - depth; n > 0 {
		r := x.fresh(n)
		dst = r.ids(dst)
		x.runs.push(r)
	}
	e.to = x.runs.end()
	x.entries.push(e)
	for x.entries.len() > x.cap || x.entries.at(x.entries.begin()).t < t-x.window {
		x.runs.drop(x.entries.at(x.entries.begin()).to)
		x.entries.drop(x.entries.begin() + 1)
	}
	return dst
}

func (r run) ids(dst []uint64) []uint64 {
	for k := range uint64(r.n) {
		dst = append(dst, r.start+k)
	}
	return dst
}

type parent struct {
	entry *entry
	depth int
}

// scan bounds how many requests are looked at for one that can be continued.
const scan = 400

// parent picks the request that one of so many whole blocks continues.
func (x *prefixer) parent(t float64, size, whole int, h *hint) parent {
	var gap float64
	var depth, want int // want is the parent's whole blocks
	s := x.s
	switch {
	case h != nil:
		if h.gap <= 0 {
			return parent{}
		}
		gap, depth = h.gap, min(h.depth, whole)
		want = depth
	case x.gap[size] == nil || s.uniform() >= x.p.Continue[size]*x.reuse:
		return parent{}
	default:
		gap = x.gap[size].real(s.uniform())
		if s.uniform() < x.p.All[size] {
			depth = whole - int(x.appends[size].whole(s.uniform()))
			want = depth
		} else {
			depth = int(math.Round(x.depth[size].real(s.uniform()) * float64(whole)))
			want = depth + int(x.excess.whole(s.uniform()))
		}
	}
	if depth < 1 || depth > whole || gap > t {
		return parent{}
	}
	// From the request at that time, look outwards for the nearest (by the ratio
	// of gaps) that is long enough and not yet continued. The further away, the
	// longer than wanted may it be: the depth decides what is shared, so that
	// a wrong gap costs more than a parent that is too long.
	first, end := x.entries.begin(), x.entries.end()
	lo, hi := first, end
	for lo < hi {
		mid := (lo + hi) / 2
		if x.entries.at(mid).t < t-gap {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	up, down := lo, lo-1
	var best *entry
	bestOver := math.MaxInt
	for k := 0; k < scan && (up < end || down >= first); k++ {
		i := up
		if up >= end || down >= first && (t-x.entries.at(down).t)*(t-x.entries.at(up).t) < gap*gap {
			i = down
			down--
		} else {
			up++
		}
		e := x.entries.at(i)
		if int(e.whole) < depth || int(e.used) >= depth {
			continue
		}
		over := int(e.whole) - want
		if over < 0 {
			over = -over
		}
		if over <= 1+want*k/32 {
			return parent{e, depth}
		}
		if over < bestOver {
			best, bestOver = e, over
		}
	}
	if best == nil {
		return parent{}
	}
	return parent{best, depth}
}

// A ring is a queue that is addressed by how many items came before.
type ring[T any] struct {
	items    []T // power of two
	from, to int64
}

func (r *ring[T]) begin() int64  { return r.from }
func (r *ring[T]) end() int64    { return r.to }
func (r *ring[T]) len() int      { return int(r.to - r.from) }
func (r *ring[T]) at(i int64) *T { return &r.items[i&int64(len(r.items)-1)] }
func (r *ring[T]) drop(to int64) { r.from = to }
func (r *ring[T]) push(v T) {
	if r.len() == len(r.items) {
		grown := ring[T]{items: make([]T, max(1024, 2*len(r.items))), from: r.from, to: r.to}
		for i := r.from; i < r.to; i++ {
			*grown.at(i) = *r.at(i)
		}
		*r = grown
	}
	*r.at(r.to) = v
	r.to++
}
