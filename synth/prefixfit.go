package synth

import (
	"cmp"
	"slices"

	"reprise/synth/score"
	"reprise/traceformat"
)

// reuse is what the blocks of one row share with earlier rows.
type reuse struct {
	parent int // row that touched the deepest shared block last, -1 none
	depth  int // shared blocks
	root   int // of its popular prefix: depth in blocks, 0 none
	node   uint64
}

// prefixSizes is how many sizes of requests are told apart.
const prefixSizes = 8

// blockRuleOf says how a sample's prompts turn into blocks; ok is false where
// it has none, or does not say how large they are.
func blocksOf(s *score.Sample) (*Blocks, bool) {
	if !s.HasBlocks() || s.In == nil {
		return nil, false
	}
	b := &Blocks{Size: s.BlockSize, Partial: string(s.Partial), Window: 3600, Entries: 1 << 17}
	if b.Partial == "" {
		b.Partial = string(traceformat.PartialKept)
	}
	if b.Size <= 0 {
		// The longest prompts say it best.
		for i, in := range s.In {
			if n := len(s.RowBlocks(i)); n > 8 {
				b.Size = max(b.Size, in/int32(n))
			}
		}
	}
	return b, b.Size > 0
}

// findReuse walks the blocks of all rows. Of each block the last row that held
// it is known.
func findReuse(s *score.Sample) []reuse {
	n := s.N()
	held := make(map[uint64]int32, len(s.Blocks)/2) // rows by block
	for _, id := range s.Blocks {
		held[id]++
	}
	popular := int32(max(20, n/200))
	last := make(map[uint64]int32, len(held))
	rs := make([]reuse, n)
	for i := range n {
		blocks := s.RowBlocks(i)
		r := reuse{parent: -1}
		for r.depth < len(blocks) {
			p, ok := last[blocks[r.depth]]
			if !ok {
				break
			}
			r.parent = int(p)
			r.depth++
		}
		for r.root < len(blocks) && held[blocks[r.root]] >= popular {
			r.node = blocks[r.root]
			r.root++
		}
		rs[i] = r
		for _, id := range blocks {
			last[id] = int32(i)
		}
	}
	return rs
}

// fitPrefixes learns reuse. horizon is how long the rows were observed.
func fitPrefixes(s *score.Sample, rule blockRule, rs []reuse) *Prefixes {
	n := s.N()
	whole := make([]int, n)
	for i := range n {
		// Ids count, not tokens: a trace may break its own rule.
		whole[i] = len(s.RowBlocks(i))
		if s.In[i] >= 0 {
			_, w := rule.of(s.In[i])
			whole[i] = min(whole[i], w)
		}
	}
	p := &Prefixes{Edges: sizeEdges(whole)}
	k := len(p.Edges) + 1

	// A gap of g can be seen in the share 1-g/T of the time alone.
	var gaps, weights []float64
	type group struct {
		rows, continuing, all float64
		appends               []int32
		depths                []float64
		gaps, weights         []float64
	}
	groups := make([]group, k)
	var excess []int32
	for i, r := range rs {
		g := &groups[p.sizeOf(whole[i])]
		depth := min(r.depth, whole[i])
		if r.parent < 0 || depth <= r.root {
			continue
		}
		gap := s.Arrival[i] - s.Arrival[r.parent]
		gaps = append(gaps, max(gap, 1e-6))
		weights = append(weights, 1/max(0.05, 1-gap/s.Horizon))
		g.gaps, g.weights = append(g.gaps, gaps[len(gaps)-1]), append(g.weights, weights[len(weights)-1])
		g.continuing++
		if depth >= whole[r.parent] {
			g.all++
			g.appends = append(g.appends, int32(whole[i]-depth))
		} else {
			g.depths = append(g.depths, float64(depth)/float64(whole[i]))
			excess = append(excess, int32(whole[r.parent]-depth))
		}
	}
	if len(excess) > 0 {
		p.Excess = fitMarginal(excess)
	}
	chance := chanceSeen(gaps, weights)
	for i := range n {
		groups[p.sizeOf(whole[i])].rows += chance(s.Arrival[i])
	}
	for i := range groups {
		g := &groups[i]
		p.Continue = append(p.Continue, rounded(min(1, g.continuing/max(g.rows, 1)), 5))
		p.All = append(p.All, rounded(g.all/max(1, g.continuing), 5))
		var a, d *Marginal
		if len(g.appends) > 0 {
			a = fitMarginal(g.appends)
		}
		if len(g.depths) > 0 {
			d = fitContinuous(g.depths, 32)
		}
		var gap *Marginal
		if len(g.gaps) > 0 {
			gap = fitWeighted(g.gaps, g.weights, 64)
		}
		p.Append, p.Depth, p.Gap = append(p.Append, a), append(p.Depth, d), append(p.Gap, gap)
	}
	p.fitRoots(s, rs, whole)
	return p
}

// chanceSeen is how likely it is that a gap is shorter than a time.
func chanceSeen(gaps, weights []float64) func(t float64) float64 {
	order := make([]int, len(gaps))
	total := 0.0
	for i := range order {
		order[i] = i
		total += weights[i]
	}
	slices.SortFunc(order, func(i, j int) int { return cmp.Compare(gaps[i], gaps[j]) })
	sorted, sum := make([]float64, len(gaps)), make([]float64, len(gaps)+1)
	for k, i := range order {
		sorted[k] = gaps[i]
		sum[k+1] = sum[k] + weights[i]
	}
	return func(t float64) float64 {
		if total == 0 {
			return 1
		}
		k, _ := slices.BinarySearch(sorted, t)
		return sum[k] / total
	}
}

// sizeEdges cuts whole blocks into sizes of about equally many requests.
func sizeEdges(whole []int) []int {
	x := slices.Clone(whole)
	slices.Sort(x)
	var edges []int
	for i := 1; i < prefixSizes; i++ {
		e := x[i*len(x)/prefixSizes]
		if e < x[len(x)-1] && (len(edges) == 0 || e > edges[len(edges)-1]) {
			edges = append(edges, e)
		}
	}
	return edges
}

// fitRoots makes a tree of the popular prefixes: those at which a request
// leaves them, and those at which they part.
func (p *Prefixes) fitRoots(s *score.Sample, rs []reuse, whole []int) {
	type node struct {
		depth    int
		parent   uint64
		children map[uint64]bool
		leaves   int
	}
	nodes := map[uint64]*node{}
	var order []uint64 // of first appearance: maps have none
	for i, r := range rs {
		blocks := s.RowBlocks(i)
		for d := range r.root {
			nd := nodes[blocks[d]]
			if nd == nil {
				nd = &node{depth: d + 1, children: map[uint64]bool{}}
				nodes[blocks[d]] = nd
				order = append(order, blocks[d])
				if d > 0 {
					nd.parent = blocks[d-1]
				}
			}
			if d > 0 {
				nodes[blocks[d-1]].children[blocks[d]] = true
			}
		}
		if r.root > 0 {
			nodes[r.node].leaves++
		}
	}
	slices.SortStableFunc(order, func(a, b uint64) int { return cmp.Compare(nodes[a].depth, nodes[b].depth) })
	index := map[uint64]int{}
	for _, id := range order {
		nd := nodes[id]
		// Where only a few leave, they are taken for the popular prefix before.
		if len(nd.children) < 2 && nd.leaves < max(5, len(rs)/1000) && len(nd.children) > 0 {
			continue
		}
		root := Root{Parent: -1, Depth: nd.depth}
		for up := nd; up.depth > 1; {
			at := up.parent
			up = nodes[at]
			if i, ok := index[at]; ok {
				root.Parent = i
				break
			}
		}
		index[id] = len(p.Roots)
		p.Roots = append(p.Roots, root)
	}
	if len(p.Roots) == 0 {
		return
	}
	k := len(p.Edges) + 1
	p.Popular = make([][]int, k)
	for i := range p.Popular {
		p.Popular[i] = make([]int, len(p.Roots)+1)
	}
	for i, r := range rs {
		if r.parent >= 0 && min(r.depth, whole[i]) > r.root {
			continue
		}
		column := 0
		for id, d := r.node, r.root; d > 0; d-- {
			if at, ok := index[id]; ok {
				column = at + 1
				break
			}
			id = nodes[id].parent
		}
		p.Popular[p.sizeOf(whole[i])][column]++
	}
	for _, row := range p.Popular {
		sum := 0
		for _, c := range row {
			sum += c
		}
		if sum == 0 {
			row[0] = 1
		}
	}
}

// hints says of each row what a resampled copy of it shares.
func hints(s *score.Sample, rs []reuse) (gaps []float64, depths []int32) {
	gaps, depths = make([]float64, len(rs)), make([]int32, len(rs))
	for i, r := range rs {
		if r.parent < 0 || r.depth <= r.root {
			continue
		}
		gaps[i] = significant(max(1e-6, s.Arrival[i]-s.Arrival[r.parent]), 6)
		depths[i] = int32(r.depth)
	}
	return gaps, depths
}
