package tokenizer

import (
	"hash/maphash"
	"strings"
	"sync"
	"sync/atomic"
)

// maxMerges bounds the merges of a file; the largest in use have 500,000. A
// rank must leave room for a position in a 64-bit queue entry.
const (
	maxMerges = 1 << 22
	rankShift = 42
)

// cacheSlots and maxCached bound the word cache: at most 12 MiB where every slot
// holds the longest word in single bytes, 3 MiB with ordinary text.
const (
	cacheSlots = 1 << 15
	maxCached  = 64
)

// bpe merges the bytes of one word at a time.
type bpe struct {
	bytes  [256]uint32
	merges map[uint64]merge // by left id <<32 | right id
	// words is the whole vocabulary where the file says ignore_merges: a word
	// in it is its own token, reachable by merges or not. Otherwise nil.
	words map[string]uint32

	seed  maphash.Seed
	cache []atomic.Pointer[cached]
}

type merge struct{ rank, id uint32 }

// cached is immutable: whoever loads it from a slot may read on while another
// goroutine puts the next word there.
type cached struct {
	word string
	ids  []uint32
}

// scratch is the memory of one Encode.
type scratch struct {
	symbols []symbol
	queue   []uint64 // rank << rankShift | position: a heap, least first
}

// symbol is a token in the making at the position of its first byte. next is
// one past its last byte; prev is where the symbol before begins, -1 at the
// first.
type symbol struct {
	id         uint32
	dead       bool // swallowed by the symbol to the left
	prev, next int
}

var (
	scratches = sync.Pool{New: func() any { return new(scratch) }}
	idBuffers = sync.Pool{New: func() any { return new([]uint32) }}
)

// append encodes one word of the split pattern.
func (b *bpe) append(dst []uint32, word string, sc *scratch) []uint32 {
	if len(word) == 1 {
		return append(dst, b.bytes[word[0]])
	}
	if len(word) > maxCached {
		return b.merge(dst, word, sc)
	}
	slot := &b.cache[maphash.String(b.seed, word)%cacheSlots]
	if c := slot.Load(); c != nil && c.word == word {
		return append(dst, c.ids...)
	}
	from := len(dst)
	dst = b.merge(dst, word, sc)
	slot.Store(&cached{strings.Clone(word), append([]uint32(nil), dst[from:]...)})
	return dst
}

// merge applies the merges in order of rank, leftmost first among equals. Each
// pair's entry is put into the queue when the pair comes to be, and is stale if
// the pair there has another rank by the time it is taken out.
func (b *bpe) merge(dst []uint32, word string, sc *scratch) []uint32 {
	if id, ok := b.words[word]; ok {
		return append(dst, id)
	}
	s := sc.symbols[:0]
	for i := range len(word) {
		s = append(s, symbol{id: b.bytes[word[i]], prev: i - 1, next: i + 1})
	}
	q := sc.queue[:0]
	for i := 1; i < len(s); i++ {
		if m, ok := b.merges[pair(s[i-1].id, s[i].id)]; ok {
			q = append(q, uint64(m.rank)<<rankShift|uint64(i-1))
		}
	}
	for i := len(q)/2 - 1; i >= 0; i-- {
		down(q, i)
	}
	for len(q) > 0 {
		top := q[0]
		q[0] = q[len(q)-1]
		q = q[:len(q)-1]
		down(q, 0)

		at := int(top & (1<<rankShift - 1))
		left := &s[at]
		if left.dead || left.next == len(s) {
			continue
		}
		right := &s[left.next]
		m, ok := b.merges[pair(left.id, right.id)]
		if !ok || uint64(m.rank) != top>>rankShift {
			continue
		}
		left.id, left.next, right.dead = m.id, right.next, true
		if left.prev >= 0 {
			if m, ok := b.merges[pair(s[left.prev].id, left.id)]; ok {
				q = push(q, uint64(m.rank)<<rankShift|uint64(left.prev))
			}
		}
		if left.next < len(s) {
			next := &s[left.next]
			next.prev = at
			if m, ok := b.merges[pair(left.id, next.id)]; ok {
				q = push(q, uint64(m.rank)<<rankShift|uint64(at))
			}
		}
	}
	for i := 0; i < len(s); i = s[i].next {
		dst = append(dst, s[i].id)
	}
	sc.symbols, sc.queue = s, q
	return dst
}

func pair(left, right uint32) uint64 { return uint64(left)<<32 | uint64(right) }

// push and down are container/heap's, without its interface calls: most of the
// time of a word that is not in the cache is spent in them.
func push(q []uint64, x uint64) []uint64 {
	q = append(q, x)
	i := len(q) - 1
	for i > 0 && q[(i-1)/2] > x {
		q[i] = q[(i-1)/2]
		i = (i - 1) / 2
	}
	q[i] = x
	return q
}

func down(q []uint64, i int) {
	for {
		c := 2*i + 1
		if c >= len(q) {
			return
		}
		if c+1 < len(q) && q[c+1] < q[c] {
			c++
		}
		if q[i] <= q[c] {
			return
		}
		q[i], q[c] = q[c], q[i]
		i = c
	}
}
