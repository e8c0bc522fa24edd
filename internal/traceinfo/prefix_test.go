package traceinfo

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// naiveCache is one LRU cache written as its definition.
type naiveCache struct {
	size int
	ids  []uint64 // most recently used first
	hits int64
}

func (c *naiveCache) add(ids []uint64) {
	for _, id := range ids {
		if !slices.Contains(c.ids, id) {
			break
		}
		c.hits++
	}
	for _, id := range slices.Backward(ids) {
		if i := slices.Index(c.ids, id); i >= 0 {
			c.ids = slices.Delete(c.ids, i, i+1)
		}
		c.ids = slices.Insert(c.ids, 0, id)
		c.ids = c.ids[:min(len(c.ids), c.size)]
	}
}

// One list with markers gives what a cache of each size gives on its own, for
// any prompts, prefix-free and repeating ones included.
func TestPrefixCacheAgainstOneCachePerSize(t *testing.T) {
	sizes := []int{2, 3, 7, 12}
	rapid.Check(t, func(t *rapid.T) {
		prompts := rapid.SliceOfN(rapid.SliceOfN(rapid.Uint64Range(0, 20), 0, 9), 1, 60).Draw(t, "prompts")
		got := newPrefixCache(sizes)
		naive := make([]naiveCache, len(sizes)+1)
		for i := range naive {
			naive[i].size = maxBlocks
			if i < len(sizes) {
				naive[i].size = sizes[i]
			}
		}
		for _, p := range prompts {
			got.add(p)
			for i := range naive {
				naive[i].add(p)
				if got.hits[i] != naive[i].hits {
					t.Fatalf("cache of %d blocks: %d hits, want %d after %v", naive[i].size, got.hits[i], naive[i].hits, p)
				}
			}
		}
	})
}

// A full list forgets the least recently used block and says so.
func TestPrefixCacheIsBounded(t *testing.T) {
	c := newPrefixCache(cacheSizes)
	ids := make([]uint64, 1<<16)
	next := uint64(0)
	for range maxBlocks/len(ids) + 1 {
		for i := range ids {
			ids[i], next = next, next+1
		}
		c.add(ids)
	}
	if len(c.nodes) != maxBlocks || len(c.buckets) != maxBlocks || !c.evicted {
		t.Errorf("%d nodes, %d buckets, evicted %t; want %d of both and true", len(c.nodes), len(c.buckets), c.evicted, maxBlocks)
	}
	// The oldest prompt was evicted first, the newest is all there.
	if n := c.add([]uint64{0}); n != 0 {
		t.Errorf("the oldest block is still there")
	}
	if n := c.add(ids); n != len(ids) {
		t.Errorf("%d of %d blocks of the newest prompt are there", n, len(ids))
	}
}
