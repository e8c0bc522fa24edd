package engine

import "math/bits"

// A block is one page of the KV cache.
type block struct {
	hash uint64 // of all tokens up to the end of the block; 0: not in the index
	refs int32  // requests that hold it; 0: in the free list
	// Neighbours in the free list, which is a ring through block 0.
	prev, next int32
	// Neighbours among blocks of the same hash, a ring of its own: requests
	// that compute the same prefix at the same time each fill a block. 0, the
	// null block, says that a block with a hash is in no ring and not in the
	// index, as nobody looks for it.
	twinPrev, twinNext int32
}

// A pool is the KV cache: a free list in the order of eviction and an index of
// blocks by hash. Block 0 is vLLM's null block; it is never given out and
// serves as the ring's anchor.
type pool struct {
	blocks []block
	free   int
	index  table // hash to the oldest of its blocks
	cached int   // blocks with a hash
	share  bool  // prefix caching is on
}

func newPool(blocks int, share bool) *pool {
	p := &pool{blocks: make([]block, blocks), free: blocks - 1, share: share}
	for i := range p.blocks {
		p.blocks[i] = block{prev: int32(i - 1), next: int32(i + 1)}
	}
	p.blocks[0].prev = int32(blocks - 1)
	p.blocks[blocks-1].next = 0
	if share {
		p.index = newTable(blocks)
	}
	return p
}

func (p *pool) usable() int { return len(p.blocks) - 1 }

// link puts b into the free list behind at.
func (p *pool) link(b, at int32) {
	next := p.blocks[at].next
	p.blocks[b].prev, p.blocks[b].next = at, next
	p.blocks[at].next, p.blocks[next].prev = b, b
	p.free++
}

func (p *pool) unlink(b int32) {
	prev, next := p.blocks[b].prev, p.blocks[b].next
	p.blocks[prev].next, p.blocks[next].prev = next, prev
	p.free--
}

// take gives out the head of the free list, which must not be empty.
func (p *pool) take() int32 {
	b := p.blocks[0].next
	p.unlink(b)
	p.forget(b)
	p.blocks[b].refs = 1
	return b
}

// hold adds a reference to a block of the index.
func (p *pool) hold(b int32) {
	if p.blocks[b].refs == 0 {
		p.unlink(b)
	}
	p.blocks[b].refs++
}

// release gives back the blocks of one request, the last first. What has a hash
// goes to the tail of the free list to be found again as long as possible; what
// has none goes to the head.
func (p *pool) release(held []int32) {
	for i := len(held) - 1; i >= 0; i-- {
		b := held[i]
		if p.blocks[b].refs--; p.blocks[b].refs > 0 {
			continue
		}
		if p.blocks[b].hash != 0 {
			p.link(b, p.blocks[0].prev)
		} else {
			p.link(b, 0)
		}
	}
}

// find returns the block to share for a hash.
func (p *pool) find(hash uint64) (int32, bool) { return p.index.get(hash) }

// remember gives a full block its hash, and enters it into the index unless
// nobody looks for it.
func (p *pool) remember(b int32, hash uint64, private bool) {
	p.blocks[b].hash = hash
	p.cached++
	if private {
		p.blocks[b].twinPrev, p.blocks[b].twinNext = 0, 0
		return
	}
	p.enter(b)
}

// publish enters a block that nobody was to look for.
func (p *pool) publish(b int32) {
	if p.blocks[b].twinNext == 0 {
		p.enter(b)
	}
}

func (p *pool) enter(b int32) {
	head, ok := p.index.get(p.blocks[b].hash)
	if !ok {
		p.index.put(p.blocks[b].hash, b)
		p.blocks[b].twinPrev, p.blocks[b].twinNext = b, b
		return
	}
	tail := p.blocks[head].twinPrev
	p.blocks[b].twinPrev, p.blocks[b].twinNext = tail, head
	p.blocks[tail].twinNext, p.blocks[head].twinPrev = b, b
}

// forget takes the hash off a block, if it has one.
func (p *pool) forget(b int32) {
	h := p.blocks[b].hash
	if h == 0 {
		return
	}
	p.blocks[b].hash = 0
	p.cached--
	prev, next := p.blocks[b].twinPrev, p.blocks[b].twinNext
	switch next {
	case 0:
		return
	case b:
		p.index.drop(h)
		return
	}
	p.blocks[prev].twinNext, p.blocks[next].twinPrev = next, prev
	if head, _ := p.index.get(h); head == b {
		p.index.put(h, next)
	}
}

// reset forgets every hash. It refuses while a block is held.
func (p *pool) reset() bool {
	if p.free != p.usable() {
		return false
	}
	p.index.clear()
	for i := range p.blocks {
		p.blocks[i].hash = 0
	}
	p.cached = 0
	return true
}

// A table maps the hashes of blocks to them: open addressing, as half of what a
// simulation of shared prefixes does is to look here. A hash is its own hash.
type table struct {
	slots []tableSlot
	mask  uint64
}

type tableSlot struct {
	key   uint64 // 0: empty
	block int32
}

// newTable makes room for n hashes, and no more.
func newTable(n int) table {
	size := 16
	for size < 2*n {
		size *= 2
	}
	return table{make([]tableSlot, size), uint64(size - 1)}
}

// at is the slot of key, or the empty one where it belongs.
func (t *table) at(key uint64) uint64 {
	i := key & t.mask
	for t.slots[i].key != key && t.slots[i].key != 0 {
		i = (i + 1) & t.mask
	}
	return i
}

func (t *table) get(key uint64) (int32, bool) {
	if t.slots == nil {
		return 0, false
	}
	s := &t.slots[t.at(key)]
	return s.block, s.key == key
}

func (t *table) put(key uint64, b int32) { t.slots[t.at(key)] = tableSlot{key, b} }

// drop removes key and closes the gap behind it.
func (t *table) drop(key uint64) {
	gap := t.at(key)
	if t.slots[gap].key == 0 {
		return
	}
	for i := (gap + 1) & t.mask; t.slots[i].key != 0; i = (i + 1) & t.mask {
		// It may move to the gap unless its home lies behind that.
		if home := t.slots[i].key & t.mask; (i-home)&t.mask >= (i-gap)&t.mask {
			t.slots[gap] = t.slots[i]
			gap = i
		}
	}
	t.slots[gap] = tableSlot{}
}

func (t *table) clear() { clear(t.slots) }

// mix folds a value into a running hash (the multiply-fold of wyhash). The hash
// of a block is the running hash at its end, so it is chained by construction.
func mix(h, v uint64) uint64 {
	hi, lo := bits.Mul64(h^0x2d358dccaa6c78a5, v^0x8bb84b93962eacc9)
	return hi ^ lo
}
