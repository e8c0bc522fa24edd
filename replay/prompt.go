package replay

import (
	"encoding/binary"
	"hash/fnv"
	"math/bits"

	"reprise/traceformat"
)

// A Vocabulary is the range of token ids that prompts are made of: ordinary
// tokens of the model, since one special or out-of-range id can fail a request
// or, on SGLang, end the whole server.
type Vocabulary struct {
	Low  uint32 // first id used
	Size uint32 // number of ids used, from Low
}

// vocabulary picks the ids to use of a model whose tokens below n are safe and
// from minID on ordinary. Where the server does not say which are, the first
// thousand are left out: bytes and special tokens in every common tokenizer.
func vocabulary(n, minID int) Vocabulary {
	if minID <= 0 || minID >= n {
		minID = min(1000, n/4)
	}
	return Vocabulary{Low: uint32(minID), Size: uint32(n - minID)}
}

// prompts writes the token-id prompt of every row: equal recorded prefixes
// give equal tokens, block by block, and where two prompts part by the record,
// the very next token differs. It depends on nothing but the seed, the
// vocabulary and the trace, so that every process sends the same bytes.
//
// A block's tokens come from a generator keyed by (seed, block id): an id
// stands for a whole prefix, so nothing else is needed. Random first tokens of
// sibling blocks would collide once in a vocabulary's size and grant an engine
// with token-wise prefix sharing a hit that the trace does not have, so the
// plan looks at every pair of siblings and salts the later one of a collision.
type prompts struct {
	seed      uint64
	vocab     Vocabulary
	blockSize int
	head      int // tokens that the server's template puts before a prompt, part of its first blocks

	// What learn found out. taken maps (parent, first token) to the node that
	// has it; salts holds the nodes that needed another first token.
	taken map[uint64]uint64
	salts map[uint64]uint8
	// full holds the parents whose children have used up the vocabulary.
	full map[uint64]bool
	// forced counts nodes that share one token with a sibling all the same, as
	// the vocabulary has no more; unseen those that were not looked at, as the
	// trace has more blocks than maxTaken.
	forced, unseen int64
}

// maxTaken bounds the memory of learn (about 40 bytes an entry). Beyond it,
// collisions stay: one in the size of the vocabulary.
const maxTaken = 2 << 20

// maxSalt bounds the attempts for one node. With half of the vocabulary taken
// under one parent, all 64 fail once in 2^64; the first time that they do, nine
// tenths or so are taken, and the parent's other children are not tried at all.
const maxSalt = 64

const (
	rootNode  = 0x9e3779b97f4a7c15
	blockKind = 0xa0761d6478bd642f
	tailKind  = 0xe7037ed1a0b428db
)

func newPrompts(seed uint64, v Vocabulary, blockSize, head int) *prompts {
	return &prompts{seed: seed, vocab: v, blockSize: blockSize, head: head, taken: map[uint64]uint64{}, salts: map[uint64]uint8{}, full: map[uint64]bool{}}
}

// mix is one round of a strong 64-bit mixer (the multiply-fold of wyhash).
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a^0x2d358dccaa6c78a5, b^0x8bb84b93962eacc9)
	return hi ^ lo
}

// nodes yields the parts of a prompt of n tokens beside its template: the key
// and the length of each block that the row names, then of the tail that it does
// not. Of the first blocks, it is what the template's head leaves.
func (p *prompts) nodes(r *traceformat.Request, n int, yield func(key uint64, tokens int)) {
	if p.blockSize > 0 {
		head := p.head
		for _, id := range r.PrefixBlocks {
			if n <= 0 {
				return
			}
			if head >= p.blockSize {
				head -= p.blockSize
				continue
			}
			size := min(p.blockSize-head, n)
			head = 0
			yield(mix(blockKind, id), size)
			n -= size
		}
	}
	if n > 0 {
		yield(mix(tailKind, uint64(r.ID)), n)
	}
}

// learn looks at one row of the plan, in trace order.
func (p *prompts) learn(r *traceformat.Request, n int) {
	parent := uint64(rootNode)
	p.nodes(r, n, func(key uint64, _ int) {
		p.place(parent, key)
		parent = key
	})
}

func (p *prompts) place(parent, key uint64) {
	for salt := uint8(0); salt < maxSalt; salt++ {
		if salt == 0 {
			salt = p.salts[key] // a node met before keeps its choice
		}
		slot := mix(parent, uint64(p.first(key, salt))+1)
		switch owner, used := p.taken[slot]; {
		case used && owner == key:
			return
		case used && p.full[parent]:
			p.forced++
			return
		case used:
			continue
		case len(p.taken) >= maxTaken:
			p.unseen++
			return
		}
		p.taken[slot] = key
		if salt > 0 {
			p.salts[key] = salt
		}
		return
	}
	p.forced++
	p.full[parent] = true
}

// learned frees what only learning needed.
func (p *prompts) learned() { p.taken, p.full = nil, nil }

// first is the first token of a node, counted from 0 in the vocabulary.
func (p *prompts) first(key uint64, salt uint8) uint32 {
	return p.pick(mix(mix(p.seed, key), uint64(salt)))
}

// pick maps 64 random bits to a token without the bias or cost of a division.
func (p *prompts) pick(x uint64) uint32 {
	return uint32((x >> 32) * uint64(p.vocab.Size) >> 32)
}

// append writes the n-token prompt of row r to dst. Each lap is the same text
// under a rotated vocabulary: it shares prefixes within itself exactly like the
// first, and none with it.
func (p *prompts) append(dst []uint32, r *traceformat.Request, n int, lap int32) []uint32 {
	// An odd stride through the vocabulary keeps the rotations of neighbouring
	// laps far apart.
	turn := uint32(uint64(lap) * 7919 % uint64(p.vocab.Size))
	p.nodes(r, n, func(key uint64, tokens int) {
		t := p.first(key, p.salts[key])
		state := mix(p.seed, key)
		for i := range tokens {
			if i > 0 {
				state += rootNode
				t = p.pick(mix(state, uint64(i)))
			}
			if t += turn; t >= p.vocab.Size {
				t -= p.vocab.Size
			}
			dst = append(dst, p.vocab.Low+t)
		}
	})
	return dst
}

// promptDigest identifies a prompt as it was sent: FNV-1a over its token ids,
// or over its text where it went as text.
func promptDigest(ids []uint32, text string) int64 {
	h := fnv.New64a()
	if text != "" {
		h.Write([]byte(text))
		return int64(h.Sum64())
	}
	var b [4]byte
	for _, id := range ids {
		binary.LittleEndian.PutUint32(b[:], id)
		h.Write(b[:])
	}
	return int64(h.Sum64())
}
