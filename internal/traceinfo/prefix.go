package traceinfo

import "math/rand/v2"

// cacheSizes are the sizes, in blocks, at which the hit curve is read.
var cacheSizes = []int{100, 1_000, 3_000, 10_000, 30_000}

// maxBlocks bounds the blocks that are remembered, and so the memory of the
// hit curve (about 40 bytes a block). A trace with more distinct blocks gets a
// curve that ends at this size instead of at an unlimited one.
const maxBlocks = 1 << 20

// prefixCache plays the prompts of a trace against LRU prefix caches of
// several sizes at once. All of them see the same sequence of touches, so the
// content of a smaller one is always the front of a larger one (Mattson et al.,
// "Evaluation techniques for storage hierarchies", 1970): one list holds them
// all, with a marker on the last block that each size still holds.
//
// A prompt is first looked up, then touched. The look-up stops at the first
// block that is absent: what comes after it depends on it. The touch goes from
// the last block to the first, so that the tail of a prompt is evicted before
// the head that it is useless without.
type prefixCache struct {
	nodes []cacheNode
	// buckets and cacheNode.chain are a hash table of the nodes: half the
	// memory of a map beside them, and deletions leave no graves in it.
	buckets []int32
	seed    uint64
	head    int32 // most recently used
	tail    int32
	sizes   []int
	last    []int32 // per size: the last node that it holds, -1 while it is not full

	hits    []int64 // per size, and past the end for the whole list
	blocks  int64
	evicted bool
	// Of the prompt that was added last, the nodes of the leading blocks that
	// were held, and the smallest cache that held each and all before it.
	path, needs []int32
}

type cacheNode struct {
	id         uint64
	prev, next int32
	chain      int32 // next node of the bucket, or -1
	// zone is the index of the smallest size that holds the node, len(sizes)
	// where only the whole list does.
	zone int32
}

// newPrefixCache takes sizes of at least 2 and less than maxBlocks, ascending.
func newPrefixCache(sizes []int) *prefixCache {
	c := &prefixCache{head: -1, tail: -1, sizes: sizes, seed: rand.Uint64(),
		last: make([]int32, len(sizes)), hits: make([]int64, len(sizes)+1)}
	c.rehash(1 << 10)
	for i := range c.last {
		c.last[i] = -1
	}
	return c
}

// add plays one prompt and returns how many of its leading blocks the whole
// list held.
func (c *prefixCache) add(ids []uint64) int {
	c.blocks += int64(len(ids))
	c.path, c.needs = c.path[:0], c.needs[:0]
	// The smallest cache that has held every block so far.
	need := int32(0)
	depth := 0
	for _, id := range ids {
		n := c.find(id)
		if n < 0 {
			break
		}
		need = max(need, c.nodes[n].zone)
		for z := need; z < int32(len(c.hits)); z++ {
			c.hits[z]++
		}
		c.path, c.needs = append(c.path, n), append(c.needs, need)
		depth++
	}
	for i := len(ids) - 1; i >= 0; i-- {
		if i < depth && c.nodes[c.path[i]].id == ids[i] {
			c.touch(c.path[i])
			continue
		}
		// Past the first miss, or the node was evicted by this very prompt.
		if n := c.find(ids[i]); n >= 0 {
			c.touch(n)
		} else {
			c.insert(ids[i])
		}
	}
	return depth
}

// bucket spreads ids, which may be consecutive or chosen by whoever wrote the
// file, by a seed of this process (the finaliser of SplitMix64).
func (c *prefixCache) bucket(id uint64) *int32 {
	x := id + c.seed
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return &c.buckets[(x^x>>31)&uint64(len(c.buckets)-1)]
}

// find returns the node of a block, or -1.
func (c *prefixCache) find(id uint64) int32 {
	n := *c.bucket(id)
	for n >= 0 && c.nodes[n].id != id {
		n = c.nodes[n].chain
	}
	return n
}

func (c *prefixCache) link(n int32) {
	b := c.bucket(c.nodes[n].id)
	c.nodes[n].chain, *b = *b, n
}

func (c *prefixCache) unlink(n int32) {
	at := c.bucket(c.nodes[n].id)
	for *at != n {
		at = &c.nodes[*at].chain
	}
	*at = c.nodes[n].chain
}

// rehash sets the number of buckets, a power of two.
func (c *prefixCache) rehash(buckets int) {
	c.buckets = make([]int32, buckets)
	for i := range c.buckets {
		c.buckets[i] = -1
	}
	for n := range c.nodes {
		c.link(int32(n))
	}
}

// touch moves a node to the front.
func (c *prefixCache) touch(n int32) {
	if c.head == n {
		return
	}
	zone := c.nodes[n].zone
	// The node leaves its place: in every cache that it was not in, the last
	// block falls out to make room; the one that it was last in of all has its
	// marker moved off it.
	for z := range c.sizes {
		last := c.last[z]
		switch {
		case last < 0:
		case int32(z) < zone:
			c.nodes[last].zone = int32(z) + 1
			c.last[z] = c.nodes[last].prev
		case last == n:
			c.last[z] = c.nodes[n].prev
		}
	}
	node := &c.nodes[n]
	c.nodes[node.prev].next = node.next
	if node.next >= 0 {
		c.nodes[node.next].prev = node.prev
	} else {
		c.tail = node.prev
	}
	c.pushFront(n)
}

// insert adds a block at the front, evicting the last one of a full list.
func (c *prefixCache) insert(id uint64) {
	var n int32
	if len(c.nodes) < maxBlocks {
		n = int32(len(c.nodes))
		c.nodes = append(c.nodes, cacheNode{})
	} else {
		c.evicted = true
		n = c.tail
		c.tail = c.nodes[n].prev
		c.nodes[c.tail].next = -1
		c.unlink(n)
	}
	for z, last := range c.last {
		if last >= 0 {
			c.nodes[last].zone = int32(z) + 1
			c.last[z] = c.nodes[last].prev
		}
	}
	c.nodes[n].id = id
	if len(c.nodes) > len(c.buckets) {
		c.rehash(2 * len(c.buckets))
	} else {
		c.link(n)
	}
	c.pushFront(n)
	// A cache that this block fills ends at the tail.
	for z, size := range c.sizes {
		if c.last[z] < 0 && len(c.nodes) == size {
			c.last[z] = c.tail
		}
	}
}

// pushFront links n in at the front.
func (c *prefixCache) pushFront(n int32) {
	node := &c.nodes[n]
	node.prev, node.next, node.zone = -1, c.head, 0
	if c.head >= 0 {
		c.nodes[c.head].prev = n
	} else {
		c.tail = n
	}
	c.head = n
}
