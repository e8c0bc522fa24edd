package replay

import (
	"slices"
	"testing"

	"reprise/traceformat"
)

func commonPrefix(a, b []uint32) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// The promise of a replayed prefix cache: two prompts agree on exactly the
// blocks that the trace says they share, and differ at the very next token.
func TestPromptsShareExactlyTheRecordedPrefix(t *testing.T) {
	const size = 16
	p := newPrompts(1, Vocabulary{Low: 1000, Size: 5000}, size, 0)
	var rows []traceformat.Request
	// 600 branches under one system prompt, each with 3 continuations: far
	// more sibling pairs than the vocabulary has tokens, so that unsalted first
	// tokens would collide about 36 times.
	for i := range uint64(600) {
		for j := range uint64(3) {
			rows = append(rows, traceformat.Request{
				ID:           int64(len(rows)),
				PrefixBlocks: []uint64{1, 100 + i, 10000 + i*3 + j},
			})
		}
	}
	const n = 3*size + 5
	for i := range rows {
		p.learn(&rows[i], n)
	}
	if p.forced != 0 {
		t.Fatalf("forced = %d, want 0: the vocabulary has room for every sibling", p.forced)
	}
	if len(p.salts) == 0 {
		t.Error("no node was salted: this test no longer meets a collision")
	}
	p.learned()
	ids := make([][]uint32, len(rows))
	for i := range rows {
		ids[i] = p.append(nil, &rows[i], n, 0)
		if len(ids[i]) != n {
			t.Fatalf("row %d has %d tokens, want %d", i, len(ids[i]), n)
		}
		for _, id := range ids[i] {
			if id < 1000 || id >= 6000 {
				t.Fatalf("row %d holds token %d, outside [1000, 6000)", i, id)
			}
		}
	}
	for i := range rows {
		for j := range i {
			want := 0
			for k := range 3 {
				if rows[i].PrefixBlocks[k] != rows[j].PrefixBlocks[k] {
					break
				}
				want += size
			}
			if got := commonPrefix(ids[i], ids[j]); got != want {
				t.Fatalf("rows %d and %d share %d tokens, want %d", j, i, got, want)
			}
		}
	}
}

func TestPromptsPartialLastBlockIsAPrefixOfTheBlock(t *testing.T) {
	p := newPrompts(7, Vocabulary{Low: 0, Size: 30000}, 512, 0)
	long := traceformat.Request{ID: 1, PrefixBlocks: []uint64{5, 6}}
	a := p.append(nil, &long, 1024, 0)
	b := p.append(nil, &long, 700, 0)
	if !slices.Equal(a[:700], b) {
		t.Error("the same ids over fewer tokens give other tokens")
	}
}

func TestPromptsWithoutBlocksPartAtTheFirstToken(t *testing.T) {
	p := newPrompts(3, Vocabulary{Low: 10, Size: 4096}, 0, 0)
	seen := map[uint32]int64{}
	for id := range int64(2000) {
		r := traceformat.Request{ID: id}
		p.learn(&r, 8)
	}
	for id := range int64(2000) {
		first := p.append(nil, &traceformat.Request{ID: id}, 8, 0)[0]
		if other, dup := seen[first]; dup {
			t.Fatalf("rows %d and %d begin with the same token", other, id)
		}
		seen[first] = id
	}
	if p.forced != 0 {
		t.Errorf("forced = %d with half of the vocabulary free", p.forced)
	}
}

func TestPromptsLapsShareNothingWithEachOther(t *testing.T) {
	p := newPrompts(3, Vocabulary{Low: 10, Size: 4096}, 16, 0)
	a := traceformat.Request{ID: 1, PrefixBlocks: []uint64{1, 2, 3}}
	b := traceformat.Request{ID: 2, PrefixBlocks: []uint64{1, 2, 4}}
	first := p.append(nil, &a, 48, 0)
	for lap := range int32(50) {
		x, y := p.append(nil, &a, 48, lap), p.append(nil, &b, 48, lap)
		if got := commonPrefix(x, y); got != 32 {
			t.Errorf("lap %d: rows share %d tokens, want 32", lap, got)
		}
		if lap > 0 && commonPrefix(x, first) != 0 {
			t.Errorf("lap %d begins like lap 0", lap)
		}
	}
}

// The same seed gives the same bytes in every process and version: a change
// here breaks the pairing of old runs with new ones.
func TestPromptsAreStable(t *testing.T) {
	p := newPrompts(42, Vocabulary{Low: 1000, Size: 31000}, 4, 0)
	got := p.append(nil, &traceformat.Request{ID: 9, PrefixBlocks: []uint64{1, 1 << 63}}, 10, 0)
	want := []uint32{16696, 19552, 17974, 22653, 27304, 1262, 19899, 17658, 17322, 6944}
	if !slices.Equal(got, want) {
		t.Errorf("prompt = %v, want %v", got, want)
	}
}

// Once a parent's children have used up the vocabulary, the others cost no
// further attempts, and are counted.
func TestPromptsOfAFullVocabulary(t *testing.T) {
	p := newPrompts(1, Vocabulary{Low: 10, Size: 100}, 0, 0)
	for id := range int64(5000) {
		r := traceformat.Request{ID: id}
		p.learn(&r, 8)
	}
	if len(p.full) != 1 || len(p.taken) < 80 || len(p.taken) > 100 {
		t.Errorf("%d parents are full with %d first tokens taken of 100", len(p.full), len(p.taken))
	}
	if p.forced+int64(len(p.taken)) != 5000 || p.unseen != 0 {
		t.Errorf("%d forced, %d unseen, %d placed of 5,000", p.forced, p.unseen, len(p.taken))
	}
}
