package traceinfo

// A PrefixCache is the LRU prefix cache behind the hit curve, at one size and
// at none. Its memory is bounded by about 40 MB.
type PrefixCache struct{ c *prefixCache }

// NewPrefixCache returns an empty cache of so many blocks beside an unlimited
// one; blocks of 0 leave the unlimited one alone.
func NewPrefixCache(blocks int) *PrefixCache {
	var sizes []int
	if blocks > 0 {
		sizes = []int{min(max(blocks, 2), maxBlocks-1)}
	}
	return &PrefixCache{newPrefixCache(sizes)}
}

// Add plays one prompt and returns how many of its leading blocks the cache of
// the given size held, and how many the unlimited one.
func (p *PrefixCache) Add(ids []uint64) (limited, unlimited int) {
	before := p.c.hits[0]
	unlimited = p.c.add(ids)
	return int(p.c.hits[0] - before), unlimited
}

// Forgot says that the unlimited cache has met its bound of a million blocks
// and let go of some: what it finds is the least that one would.
func (p *PrefixCache) Forgot() bool { return p.c.evicted }

// A HitCurve plays prompts against LRU prefix caches of several sizes at once,
// in one pass.
type HitCurve struct{ c *prefixCache }

// NewHitCurve returns empty caches of so many blocks each, ascending and from 2
// on, beside an unlimited one.
func NewHitCurve(sizes ...int) *HitCurve { return &HitCurve{newPrefixCache(sizes)} }

// Add plays one prompt and returns how many of its leading blocks the unlimited
// cache held.
func (h *HitCurve) Add(ids []uint64) int { return h.c.add(ids) }

// Shares returns, for each size and last for the unlimited cache, the share of
// all blocks that were hits; NaN where there were no blocks.
func (h *HitCurve) Shares() []float64 {
	shares := make([]float64, len(h.c.hits))
	for i, n := range h.c.hits {
		shares[i] = float64(n) / float64(h.c.blocks)
	}
	return shares
}
