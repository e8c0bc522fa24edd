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
