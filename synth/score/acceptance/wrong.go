package main

import (
	"math/rand/v2"
	"slices"

	"reprise/synth/score"
	"reprise/traceformat"
)

// The wrong models: each is right in all but one respect, and the metric that
// names this respect has to find it. A test that they pass is no test.

// poissonModel draws arrivals from a Poisson process of the mean rate and rows
// from the trace, each on its own: what most load generators do.
func poissonModel(s *score.Sample, seed uint64) *score.Sample {
	rng := rand.New(rand.NewPCG(seed, 0x706f6973))
	p := &score.Sample{Name: "Poisson", Horizon: s.Horizon}
	for t := rng.ExpFloat64() / s.Rate(); t < s.Horizon; t += rng.ExpFloat64() / s.Rate() {
		i := rng.IntN(s.N())
		p.Arrival = append(p.Arrival, t)
		p.In, p.Out = append(p.In, s.In[i]), append(p.Out, s.Out[i])
	}
	return p
}

// shuffledModel keeps the real arrivals and deals the real pairs of lengths
// out in random order.
func shuffledModel(s *score.Sample, seed uint64) *score.Sample {
	rng := rand.New(rand.NewPCG(seed, 0x73687566))
	p := &score.Sample{Name: "shuffled lengths", Horizon: s.Horizon, Arrival: s.Arrival}
	for _, i := range rng.Perm(s.N()) {
		p.In, p.Out = append(p.In, s.In[i]), append(p.Out, s.Out[i])
	}
	return p
}

// independentModel keeps arrivals and prompts and draws each output on its own.
func independentModel(s *score.Sample, seed uint64) *score.Sample {
	rng := rand.New(rand.NewPCG(seed, 0x696e6470))
	p := &score.Sample{Name: "independent lengths", Horizon: s.Horizon, Arrival: s.Arrival, In: s.In}
	for range s.Out {
		p.Out = append(p.Out, s.Out[rng.IntN(len(s.Out))])
	}
	return p
}

// A treeModel walks the tree of shared prefixes at random, as Dynamo's data
// generator does: blocks that more than one row has are nodes, a walk goes to a
// child as often as rows did, and what no other row shares is a fresh tail.
// Rows come at the real times, each independent of those before.
type treeModel struct {
	source *score.Sample
	root   int
	nodes  []treeNode
	tails  []int
}

type treeNode struct {
	id       uint64
	children []int
	visits   []int // cumulative, per child; past them come the walks that end here
	total    int
}

func newTreeModel(s *score.Sample) *treeModel {
	count := map[uint64]int{}
	for _, id := range s.Blocks {
		count[id]++
	}
	m := &treeModel{source: s, nodes: []treeNode{{}}}
	at := map[uint64]int{}
	passed := map[int]int{} // rows through a node
	for i := range s.Arrival {
		ids := s.RowBlocks(i)
		node := 0
		depth := 0
		passed[0]++
		for depth < len(ids) && count[ids[depth]] > 1 {
			next, ok := at[ids[depth]]
			if !ok {
				next = len(m.nodes)
				at[ids[depth]] = next
				m.nodes = append(m.nodes, treeNode{id: ids[depth]})
				m.nodes[node].children = append(m.nodes[node].children, next)
			}
			node = next
			passed[node]++
			depth++
		}
		m.tails = append(m.tails, len(ids)-depth)
	}
	for i := range m.nodes {
		n := &m.nodes[i]
		sum := 0
		for _, c := range n.children {
			sum += passed[c]
			n.visits = append(n.visits, sum)
		}
		n.total = passed[i]
	}
	return m
}

func (m *treeModel) sample(seed uint64) *score.Sample {
	s := m.source
	rng := rand.New(rand.NewPCG(seed, 0x74726565))
	p := &score.Sample{Name: "tree walk", Horizon: s.Horizon, Arrival: s.Arrival, Out: s.Out,
		BlockStart: []int{0}, BlockSize: s.BlockSize, Partial: traceformat.PartialKept}
	fresh := slices.Max(s.Blocks) + 1
	for range s.Arrival {
		from := len(p.Blocks)
		for node := &m.nodes[m.root]; ; {
			k, _ := slices.BinarySearch(node.visits, rng.IntN(node.total)+1)
			if k == len(node.children) {
				break
			}
			node = &m.nodes[node.children[k]]
			p.Blocks = append(p.Blocks, node.id)
		}
		for range m.tails[rng.IntN(len(m.tails))] {
			p.Blocks = append(p.Blocks, fresh)
			fresh++
		}
		p.BlockStart = append(p.BlockStart, len(p.Blocks))
		p.In = append(p.In, int32(len(p.Blocks)-from)*s.BlockSize)
	}
	return p
}
