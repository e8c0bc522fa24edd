package traceinfo

import (
	"math"

	"reprise/internal/stats"
)

const (
	// sampleFrom is the number of rows from where the hit curve comes from a
	// sample of the blocks.
	sampleFrom = 10_000_000
	// sampleShift makes the sample one block in 16.
	sampleShift = 4
	sampleRate  = 1.0 / (1 << sampleShift)
	// sampleGroups is how many parts of the sample estimates are compared
	// between, for their error.
	sampleGroups = 16
)

// A prefixSampler is a prefixCache that after a number of rows follows a sample
// of the blocks: those whose hash says so, so that of a block all uses are seen
// or none, in caches that are as much smaller (SHARDS: Waldspurger et al.,
// "Efficient MRC construction with SHARDS", 2015). That a look-up ends at the
// first absent block carries over: the blocks before one that is held were used
// whenever it was, and are held too.
//
// Blocks that are used much make an estimate depend on whether the sample has
// them. Two things are done about that. Of what the sample lacks of the uses it
// should have, it is assumed that they are hits, since it is the most used blocks
// that tip it (SHARDS-adj). And the sample is cut into groups by another part of
// the hash, between which the error is measured.
type prefixSampler struct {
	c     *prefixCache // of all blocks, or of the sample
	sizes []int        // as asked for
	after int64        // rows until sampling, or negative for never
	rows  int64

	// Until sampling began:
	blocks          int64
	hits            []int64
	sharing, deeper int64
	// From then on:
	sampling   bool
	firstRows  int64 // rows before
	rest       int64 // blocks of all prompts
	uses       [sampleGroups]int64
	held       [][sampleGroups]int64 // by the smallest size that did
	first, two sampledRows
	ids        []uint64
	group      []uint8
}

// sampledRows counts rows by one of their blocks.
type sampledRows struct{ rows, sampled, held int64 }

// estimate is how many rows would have been counted as held.
func (s *sampledRows) estimate() int64 {
	e := float64(s.held-s.sampled)/sampleRate + float64(s.rows)
	return int64(min(max(e, 0), float64(s.rows)))
}

func newPrefixSampler(sizes []int, after int64) *prefixSampler {
	return &prefixSampler{c: newPrefixCache(sizes), after: after, sizes: sizes}
}

// sampleHash spreads ids the same way in every process (the finaliser of
// SplitMix64).
func sampleHash(id uint64) uint64 {
	x := id + 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func inSample(hash uint64) bool { return hash&(1<<sampleShift-1) == 0 }

// begin goes over to sampling.
func (p *prefixSampler) begin() {
	old := p.c
	p.sampling, p.firstRows = true, p.rows
	p.blocks, p.hits = old.blocks, old.hits
	p.held = make([][sampleGroups]int64, len(old.hits))
	scaled := make([]int, len(p.sizes))
	for i, s := range p.sizes {
		scaled[i] = max(2, int(math.Round(float64(s)*sampleRate)))
	}
	p.c = newPrefixCache(scaled)
	p.c.evicted = old.evicted
	for n := old.tail; n >= 0; n = old.nodes[n].prev {
		if id := old.nodes[n].id; inSample(sampleHash(id)) {
			p.c.insert(id)
		}
	}
}

// add plays one prompt.
func (p *prefixSampler) add(ids []uint64) {
	if !p.sampling && p.after >= 0 && p.rows >= p.after {
		p.begin()
	}
	p.rows++
	if !p.sampling {
		depth := p.c.add(ids)
		count(&p.sharing, depth > 0)
		count(&p.deeper, depth > 1)
		return
	}
	p.rest += int64(len(ids))
	p.ids, p.group = p.ids[:0], p.group[:0]
	at := [2]int{-1, -1} // where the first two blocks are in the sample
	for i, id := range ids {
		h := sampleHash(id)
		if !inSample(h) {
			continue
		}
		if i < len(at) {
			at[i] = len(p.ids)
		}
		g := uint8(h >> sampleShift % sampleGroups)
		p.ids, p.group = append(p.ids, id), append(p.group, g)
		p.uses[g]++
	}
	depth := 0
	if len(p.ids) > 0 {
		depth = p.c.add(p.ids)
	}
	for i, need := range p.c.needs[:depth] {
		p.held[need][p.group[i]]++
	}
	for i, s := range []*sampledRows{&p.first, &p.two} {
		count(&s.rows, len(ids) > i)
		count(&s.sampled, at[i] >= 0)
		count(&s.held, at[i] >= 0 && at[i] < depth)
	}
}

// rowsSharing are the rows whose first block was seen before, and those whose
// second was.
func (p *prefixSampler) rowsSharing() (sharing, deeper int64) {
	return p.sharing + p.first.estimate(), p.deeper + p.two.estimate()
}

// counts are the blocks of all prompts, and how many different ones there are.
func (p *prefixSampler) counts() (blocks, distinct int64) {
	if !p.sampling {
		return p.c.blocks, int64(len(p.c.nodes))
	}
	return p.blocks + p.rest, int64(float64(len(p.c.nodes)) / sampleRate)
}

// remembered is how many blocks the largest cache holds.
func (p *prefixSampler) remembered() int {
	if p.sampling {
		return maxBlocks << sampleShift
	}
	return maxBlocks
}

// share is the share of hits at size i, and the half width of its 95 % interval.
func (p *prefixSampler) share(i int) (share, margin float64) {
	if !p.sampling {
		return float64(p.c.hits[i]) / float64(p.c.blocks), 0
	}
	var groups stats.Moments
	for g := range sampleGroups {
		held := int64(0)
		for z := range i + 1 {
			held += p.held[z][g]
		}
		groups.Add(float64(held-p.uses[g])/sampleRate + float64(p.rest)/sampleGroups)
	}
	rest, all := float64(p.rest), float64(p.blocks+p.rest)
	hits := min(max(groups.Mean()*sampleGroups, 0), rest)
	// 2.13 is the 97.5 % point of Student's t of 15 degrees of freedom.
	margin = 2.13 * groups.SD() * math.Sqrt(sampleGroups) / all
	return (float64(p.hits[i]) + hits) / all, margin
}
