package engine

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// checkPool compares the pool's books with what the requests hold.
func (e *Engine) checkPool() error {
	p := e.pool
	held := make([]int32, len(p.blocks))
	for _, list := range [][]*Request{e.running, e.queue.list[e.queue.head:], e.pending.list[e.pending.head:]} {
		for _, r := range list {
			if len(r.blocks) > 0 && r.place != running {
				return fmt.Errorf("a request that does not run holds %d blocks", len(r.blocks))
			}
			for _, b := range r.blocks {
				held[b]++
			}
		}
	}
	inFree := make([]bool, len(p.blocks))
	free := 0
	for b := p.blocks[0].next; b != 0; b = p.blocks[b].next {
		if inFree[b] || p.blocks[p.blocks[b].next].prev != b {
			return fmt.Errorf("the free list is broken at block %d", b)
		}
		inFree[b] = true
		free++
	}
	if free != p.free {
		return fmt.Errorf("the free list has %d blocks, its count says %d", free, p.free)
	}
	hashed := 0
	for b := 1; b < len(p.blocks); b++ {
		if p.blocks[b].refs != held[b] {
			return fmt.Errorf("block %d has %d references and %d holders", b, p.blocks[b].refs, held[b])
		}
		if inFree[b] != (held[b] == 0) {
			return fmt.Errorf("block %d: free %t, holders %d", b, inFree[b], held[b])
		}
		h := p.blocks[b].hash
		if h == 0 {
			continue
		}
		hashed++
		if p.blocks[b].twinNext == 0 {
			continue // nobody looks for it
		}
		head, ok := p.index.get(h)
		for x, n := head, 0; ok && x != int32(b); n++ {
			if x = p.blocks[x].twinNext; x == head || n > len(p.blocks) {
				ok = false
			}
		}
		if !ok {
			return fmt.Errorf("block %d has a hash under which it is not found", b)
		}
	}
	indexed := 0
	for _, s := range p.index.slots {
		if s.key != 0 {
			indexed++
		}
	}
	if hashed != p.cached || indexed > hashed {
		return fmt.Errorf("%d blocks have hashes, the count is %d, the index has %d", hashed, p.cached, indexed)
	}
	if held[0] != 0 {
		return fmt.Errorf("the null block was given out")
	}
	return nil
}

// Whatever happens to an engine: no block leaks or is held twice too often, no
// pass exceeds its budget, requests are first scheduled in order, and every one
// that is not aborted gets exactly the answer that it would get alone on an
// engine without cache or limits.
func TestEngineProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Config{
			Cost:             Cost{Step: 1e6, Token: 1e4, Admit: float64(rapid.IntRange(0, 3).Draw(t, "admit")) * 7e5},
			BlockSize:        rapid.IntRange(1, 6).Draw(t, "block size"),
			Blocks:           rapid.IntRange(8, 30).Draw(t, "blocks"),
			MaxSeqs:          rapid.IntRange(1, 6).Draw(t, "max seqs"),
			MaxBatchedTokens: rapid.IntRange(1, 30).Draw(t, "budget"),
			PrefixCaching:    rapid.Bool().Draw(t, "caching"),
			Priority:         rapid.Bool().Draw(t, "priority"),
			Batching:         Batching(rapid.IntRange(0, 2).Draw(t, "batching")),
			StaticSize:       rapid.IntRange(1, 4).Draw(t, "static size"),
			VocabLow:         10, VocabSize: 50,
		}
		c.MaxModelLen = max(2, (c.Blocks-1)*c.BlockSize)
		e, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		free := c
		free.Blocks, free.MaxSeqs, free.MaxBatchedTokens = 10000, 1000, 10000
		free.PrefixCaching, free.Batching, free.Cost.Admit = false, Continuous, 0

		answers := map[*Request][]uint32{}
		var all []*Request
		now := time.Duration(0)
		submit := func() {
			n := rapid.IntRange(1, c.MaxModelLen-1).Draw(t, "prompt")
			p := make([]uint32, n)
			for i := range p { // few kinds of prompts, so that they share prefixes
				p[i] = uint32(i)
			}
			if cut := rapid.IntRange(0, n).Draw(t, "own from"); cut < n {
				p[cut] = 1000 + uint32(rapid.IntRange(0, 2).Draw(t, "kind"))
			}
			r := &Request{
				Prompt: p, MaxTokens: rapid.IntRange(1, c.MaxModelLen-n).Draw(t, "answer"),
				Priority: int64(rapid.IntRange(0, 2).Draw(t, "urgency")), Salt: uint64(rapid.IntRange(0, 1).Draw(t, "salt")),
			}
			if err := e.Submit(now, r); err != nil {
				t.Fatal(err)
			}
			all = append(all, r)
		}
		pass := func() bool {
			d, ok := e.Step(now)
			if !ok {
				at, pending := e.Wake()
				if pending {
					now = max(now, at)
				}
				return pending
			}
			sum := 0
			for _, s := range e.batch {
				if s.n < 1 {
					t.Fatalf("a request computes %d tokens", s.n)
				}
				sum += s.n
			}
			alone := c.Batching == PrefillFirst && len(e.batch) == 1
			if sum > c.MaxBatchedTokens && !alone && c.Batching != Static {
				t.Fatalf("a pass computes %d tokens, budget %d", sum, c.MaxBatchedTokens)
			}
			if len(e.running) > c.MaxSeqs {
				t.Fatalf("%d run, at most %d may", len(e.running), c.MaxSeqs)
			}
			if c.Batching != Static {
				if err := e.checkPool(); err != nil {
					t.Fatalf("during a pass: %v", err)
				}
			}
			// A client may hang up while the pass runs.
			if len(all) > 0 && rapid.IntRange(0, 9).Draw(t, "abort during") == 0 {
				e.Abort(rapid.SampledFrom(all).Draw(t, "who"))
			}
			now += d
			for _, ev := range e.Done(now) {
				answers[ev.Req] = append(answers[ev.Req], ev.Token)
			}
			if c.Batching != Static {
				if err := e.checkPool(); err != nil {
					t.Fatalf("after a pass: %v", err)
				}
			}
			return true
		}
		t.Repeat(map[string]func(*rapid.T){
			"submit": func(*rapid.T) { submit() },
			"pass":   func(*rapid.T) { pass() },
			"pass 3": func(*rapid.T) { pass(); pass(); pass() },
			"abort": func(t *rapid.T) {
				if len(all) > 0 {
					e.Abort(rapid.SampledFrom(all).Draw(t, "who"))
				}
			},
		})
		for n := 0; pass(); n++ {
			if n > 200000 {
				t.Fatal("the engine does not come to an end")
			}
		}
		if s := e.Stats(); s.UsedBlocks != 0 || s.Running != 0 || s.Waiting != 0 {
			t.Fatalf("idle, but %d blocks are in use, %d run, %d wait", s.UsedBlocks, s.Running, s.Waiting)
		}

		var scheduled []time.Duration
		for _, r := range all {
			if r.Finish == Aborted {
				continue
			}
			scheduled = append(scheduled, r.Scheduled)
			if r.Finish != Length || r.Output != r.MaxTokens || len(answers[r]) != r.MaxTokens {
				t.Fatalf("a request for %d tokens ended with %d, reason %d", r.MaxTokens, len(answers[r]), r.Finish)
			}
			if r.Arrived > r.Queued || r.Queued > r.Scheduled || r.Scheduled >= r.First || r.First > r.Last {
				t.Fatalf("times out of order: %v %v %v %v %v", r.Arrived, r.Queued, r.Scheduled, r.First, r.Last)
			}
			if r.CachedTokens >= r.PromptLen || r.CachedTokens%c.BlockSize != 0 {
				t.Fatalf("%d of %d prompt tokens cached", r.CachedTokens, r.PromptLen)
			}
			ref, _ := New(free)
			twin := &Request{Prompt: r.Prompt, MaxTokens: r.MaxTokens}
			if err := ref.Submit(0, twin); err != nil {
				t.Fatal(err)
			}
			var want []uint32
			for at := time.Duration(0); ; {
				d, ok := ref.Step(at)
				if !ok {
					break
				}
				at += d
				for _, ev := range ref.Done(at) {
					want = append(want, ev.Token)
				}
			}
			if !slices.Equal(answers[r], want) {
				t.Fatalf("the answer depends on the company: %v, alone %v", answers[r], want)
			}
		}
		if !c.Priority && !slices.IsSorted(scheduled) {
			t.Fatalf("not first come, first served: %v", scheduled)
		}
	})
}

// Without preemption each token is computed once, but for cached ones and the
// last of each answer, which needs no pass of its own.
func TestTokensAreConserved(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := small(4000)
		c.MaxBatchedTokens = rapid.IntRange(1, 50).Draw(t, "budget")
		e, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		want, now := 0, time.Duration(0)
		var reqs []*Request
		for range rapid.IntRange(1, 12).Draw(t, "requests") {
			r := &Request{Prompt: prompt(rapid.IntRange(0, 2).Draw(t, "kind"), rapid.IntRange(1, 60).Draw(t, "prompt")), MaxTokens: rapid.IntRange(1, 20).Draw(t, "answer")}
			if err := e.Submit(now, r); err != nil {
				t.Fatal(err)
			}
			reqs = append(reqs, r)
		}
		for {
			d, ok := e.Step(now)
			if !ok {
				break
			}
			now += d
			e.Done(now)
		}
		for _, r := range reqs {
			want += r.PromptLen - r.CachedTokens + r.Output - 1
		}
		if s := e.Stats(); s.Preemptions != 0 || s.ComputedTokens != uint64(want) {
			t.Fatalf("%d tokens computed, want %d (%d preemptions)", s.ComputedTokens, want, s.Preemptions)
		}
	})
}
