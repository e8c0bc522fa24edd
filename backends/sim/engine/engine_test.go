package engine

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// unit makes every pass take one millisecond, so that times count steps.
var unit = Cost{Step: 1e6}

func small(blocks int) Config {
	return Config{
		Cost: unit, BlockSize: 4, Blocks: blocks, MaxSeqs: 8, MaxBatchedTokens: 64,
		MaxModelLen: (blocks - 1) * 4, PrefixCaching: true, VocabLow: 1000, VocabSize: 5000,
	}
}

func mustNew(t testing.TB, c Config) *Engine {
	t.Helper()
	e, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// prompt is n tokens that share nothing with a prompt of another kind.
func prompt(kind, n int) []uint32 {
	p := make([]uint32, n)
	for i := range p {
		p[i] = uint32(kind*100000 + i)
	}
	return p
}

// named gives requests names for the scripts below.
func named(name string, p []uint32, maxTokens int) *Request {
	return &Request{Prompt: p, MaxTokens: maxTokens, Owner: name}
}

// run plays passes until nothing is left and writes one line for each:
// "batch -> tokens", where A8 is 8 tokens of A computed and A! its last token.
func run(t testing.TB, e *Engine, now time.Duration, reqs ...*Request) (string, time.Duration) {
	t.Helper()
	for _, r := range reqs {
		if err := e.Submit(now, r); err != nil {
			t.Fatal(err)
		}
	}
	var b strings.Builder
	for range 1000 {
		d, ok := e.Step(now)
		if !ok {
			return strings.TrimSuffix(b.String(), "\n"), now
		}
		now += d
		var batch, tokens []string
		for _, s := range e.batch {
			batch = append(batch, fmt.Sprint(s.r.Owner, s.n))
		}
		for _, ev := range e.Done(now) {
			end := ""
			if ev.Finish != Running {
				end = "!"
			}
			tokens = append(tokens, fmt.Sprint(ev.Req.Owner, end))
		}
		fmt.Fprintf(&b, "%s -> %s\n", strings.Join(batch, " "), strings.Join(tokens, " "))
	}
	t.Fatal("no end after 1000 passes")
	return "", 0
}

// Each case is worked out by hand from the rules in the package comment.
func TestSchedule(t *testing.T) {
	tests := []struct {
		name   string
		config func(*Config)
		blocks int
		reqs   []*Request
		want   string
		check  func(t *testing.T, e *Engine, reqs []*Request)
	}{
		{
			name:   "a chunk that does not end the prompt yields no token, and running go first",
			blocks: 100, config: func(c *Config) { c.MaxBatchedTokens = 8 },
			reqs: []*Request{named("A", prompt(1, 10), 3), named("B", prompt(2, 5), 2)},
			want: "A8 -> \nA2 B5 -> A B\nA1 B1 -> A B!\nA1 -> A!",
		},
		{
			name:   "the budget is shared by decodes, the end of a prompt and the start of the next",
			blocks: 100, config: func(c *Config) { c.MaxBatchedTokens = 6 },
			reqs: []*Request{named("A", prompt(1, 2), 3), named("B", prompt(2, 7), 1), named("C", prompt(3, 3), 1)},
			want: "A2 B4 -> A\nA1 B3 C2 -> A B!\nA1 C1 -> A! C!",
		},
		{
			name:   "no more sequences than max seqs",
			blocks: 100, config: func(c *Config) { c.MaxSeqs = 2 },
			reqs: []*Request{named("A", prompt(1, 3), 2), named("B", prompt(2, 3), 1), named("C", prompt(3, 3), 1)},
			want: "A3 B3 -> A B!\nA1 C3 -> A! C!",
		},
		{
			// 4 usable blocks. A and B hold two each; A's ninth token finds none,
			// so B gives up both. B is not admitted in that pass, and then not
			// while A holds three and later four blocks.
			name: "the last of the running is preempted and recomputes what it had", blocks: 5,
			reqs: []*Request{named("A", prompt(1, 8), 6), named("B", prompt(2, 7), 6)},
			want: "A8 B7 -> A B\nA1 -> A\nA1 -> A\nA1 -> A\nA1 -> A\nA1 -> A!\nB8 -> B\nB1 -> B\nB1 -> B\nB1 -> B\nB1 -> B!",
			check: func(t *testing.T, e *Engine, reqs []*Request) {
				if a, b := reqs[0].Preemptions, reqs[1].Preemptions; a != 0 || b != 1 {
					t.Errorf("preemptions of A, B = %d, %d, want 0, 1", a, b)
				}
				if s := e.Stats(); s.Preemptions != 1 || s.ComputedTokens != 8+7+5+8+4 {
					t.Errorf("engine counts %d preemptions and %d computed tokens, want 1 and 32", s.Preemptions, s.ComputedTokens)
				}
			},
		},
		{
			// As above, but A ends while B's first block is still in the cache.
			name: "a preempted request finds its own blocks again", blocks: 5,
			reqs: []*Request{named("A", prompt(1, 8), 2), named("B", prompt(2, 7), 3)},
			want: "A8 B7 -> A B\nA1 -> A!\nB4 -> B\nB1 -> B!",
			check: func(t *testing.T, e *Engine, reqs []*Request) {
				// Lookups after a preemption do not count as queries.
				if s := e.Stats(); s.CacheQueries != 15 || s.CacheHits != 0 {
					t.Errorf("cache queries, hits = %d, %d, want 15, 0", s.CacheQueries, s.CacheHits)
				}
			},
		},
		{
			// B's first chunk (4 of 12 tokens) would fit the one free block.
			name: "a request is admitted only if all its tokens fit", blocks: 5,
			config: func(c *Config) { c.MaxBatchedTokens = 16 },
			reqs:   []*Request{named("A", prompt(1, 12), 2), named("B", prompt(2, 12), 1)},
			want:   "A12 -> A\nA1 -> A!\nB12 -> B!",
		},
		{
			name: "prefill first: whole prompts in passes of their own", blocks: 100,
			config: func(c *Config) { c.Batching, c.MaxBatchedTokens = PrefillFirst, 8 },
			reqs:   []*Request{named("A", prompt(1, 5), 3), named("B", prompt(2, 4), 2), named("C", prompt(3, 20), 1)},
			want:   "A5 -> A\nB4 -> B\nC20 -> C!\nA1 B1 -> A B!\nA1 -> A!",
		},
		{
			name: "static: the batch runs until its longest answer ends, and admits none", blocks: 100,
			config: func(c *Config) { c.Batching, c.StaticSize = Static, 2 },
			reqs:   []*Request{named("A", prompt(1, 5), 3), named("B", prompt(2, 3), 1), named("C", prompt(3, 2), 1)},
			want:   "A5 B3 -> A B!\nA1 -> A\nA1 -> A!\nC2 -> C!",
			check: func(t *testing.T, e *Engine, reqs []*Request) {
				// Two rows of 5, then two passes of two rows, then C: 16 tokens
				// computed, of which B's 2 + 1 + 1 are padding.
				if s := e.Stats(); s.ComputedTokens != 16 || s.PaddedTokens != 4 || s.UsedBlocks != 0 {
					t.Errorf("computed, padded, blocks in use = %d, %d, %d, want 16, 4, 0", s.ComputedTokens, s.PaddedTokens, s.UsedBlocks)
				}
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := small(tt.blocks)
			if tt.config != nil {
				tt.config(&c)
			}
			e := mustNew(t, c)
			got, _ := run(t, e, 0, tt.reqs...)
			if got != tt.want {
				t.Errorf("passes:\n%s\nwant:\n%s", got, tt.want)
			}
			if tt.check != nil {
				tt.check(t, e, tt.reqs)
			}
			if s := e.Stats(); s.UsedBlocks != 0 || s.Running != 0 || s.Waiting != 0 {
				t.Errorf("at the end %d blocks are in use, %d requests run, %d wait", s.UsedBlocks, s.Running, s.Waiting)
			}
		})
	}
}

// By priority the least urgent gives way, even if it has its token of the pass
// already: the budget it had is free again.
func TestPreemptByPriority(t *testing.T) {
	c := small(5)
	c.Priority = true
	e := mustNew(t, c)
	a := &Request{Owner: "A", Prompt: prompt(1, 6), MaxTokens: 6, Priority: 1}
	b := &Request{Owner: "B", Prompt: prompt(2, 8), MaxTokens: 4}
	e.Submit(0, a)
	e.Step(0)
	e.Done(1)
	// Pass 2: A's 7th token and B's prompt take all 4 blocks. Pass 3: A's 8th
	// fits, then B's 9th token needs A's blocks. A's first block stays cached and
	// is evicted by no one, so that A recomputes only 4 of its 8 tokens.
	got, _ := run(t, e, 1, b)
	want := "A1 B8 -> A B\nB1 -> B\nB1 -> B\nB1 -> B!\nA4 -> A\nA1 -> A\nA1 -> A\nA1 -> A!"
	if got != want {
		t.Errorf("passes:\n%s\nwant:\n%s", got, want)
	}
	if a.Preemptions != 1 || b.Preemptions != 0 {
		t.Errorf("preemptions of A, B = %d, %d, want 1, 0", a.Preemptions, b.Preemptions)
	}
}

// The budget of a victim that had its token already goes to those behind it.
func TestPreemptionGivesBudgetBack(t *testing.T) {
	c := small(6)
	c.Priority = true
	e := mustNew(t, c)
	a := &Request{Owner: "A", Prompt: prompt(1, 6), MaxTokens: 6, Priority: 2}
	b := &Request{Owner: "B", Prompt: prompt(2, 8), MaxTokens: 4, Priority: 0}
	d := &Request{Owner: "D", Prompt: prompt(3, 4), MaxTokens: 4, Priority: 1}
	e.Submit(0, a)
	e.Step(0)
	e.Done(1)
	e.Submit(1, b)
	e.Submit(1, d)
	e.Step(1)
	e.Done(2)
	// All 5 blocks are held. With a budget of 2, A and B would use it up; but B
	// needs a block, takes it from A, and A's share goes to D.
	e.cfg.MaxBatchedTokens = 2
	e.Step(2)
	if len(e.batch) != 2 || e.batch[0].r != b || e.batch[1].r != d {
		t.Errorf("the pass computes %v, want B and D", e.batch)
	}
	if got := e.Done(3); len(got) != 2 || a.Preemptions != 1 {
		t.Errorf("%d tokens, A preempted %d times; want 2, 1", len(got), a.Preemptions)
	}
}

// The queue against a sorted list, through growth, returns to the head and
// compaction.
func TestQueueOrder(t *testing.T) {
	for _, priority := range []bool{false, true} {
		q := queue{priority: priority}
		var model []*Request
		rng := rand.New(rand.NewPCG(1, 2))
		var popped []*Request
		for seq := uint64(1); seq < 20000; seq++ {
			switch k := rng.IntN(10); {
			case k < 5 || len(model) == 0:
				r := &Request{seq: seq, Priority: int64(rng.IntN(3))}
				model = append(model, r)
				q.push(r)
			case k < 8:
				popped = append(popped[:0], q.first())
				model = slices.DeleteFunc(model, func(r *Request) bool { return r == popped[0] })
				q.pop()
			case k == 8 && len(popped) > 0: // preempted
				model = append(model, popped[0])
				q.push(popped[0])
				popped = popped[:0]
			default:
				i := rng.IntN(len(model))
				q.remove(model[i])
				popped = popped[:0]
				model = slices.Delete(model, i, i+1)
			}
			if q.len() != len(model) {
				t.Fatalf("operation %d: %d queued, want %d", seq, q.len(), len(model))
			}
			if len(model) > 0 {
				if want := slices.MinFunc(model, func(a, b *Request) int {
					if q.less(a, b) {
						return -1
					}
					return 1
				}); q.first() != want {
					t.Fatalf("operation %d: first is %d, want %d", seq, q.first().seq, want.seq)
				}
			}
		}
	}
}

func TestPrefixCacheHits(t *testing.T) {
	long := prompt(1, 13)
	tests := []struct {
		name   string
		second *Request
		want   int // cached tokens
	}{
		{"the same prompt of 12: one token must be left, so two blocks", &Request{Prompt: long[:12]}, 8},
		{"one token more: all three blocks", &Request{Prompt: long}, 12},
		{"11 tokens in common: two blocks", &Request{Prompt: append(slices.Clone(long[:11]), 7, 7, 7)}, 8},
		{"the first token differs", &Request{Prompt: append([]uint32{7}, long[1:]...)}, 0},
		{"another salt", &Request{Prompt: long, Salt: 1}, 0},
	}
	for _, tt := range tests {
		e := mustNew(t, small(100))
		first := &Request{Prompt: long[:12], MaxTokens: 1}
		_, now := run(t, e, 0, first)
		tt.second.MaxTokens = 1
		run(t, e, now, tt.second)
		if got := tt.second.CachedTokens; got != tt.want {
			t.Errorf("%s: cached tokens = %d, want %d", tt.name, got, tt.want)
		}
		if s := e.Stats(); s.CacheHits != uint64(tt.want) || s.CacheQueries != uint64(12+len(tt.second.Prompt)) {
			t.Errorf("%s: hits, queries = %d, %d", tt.name, s.CacheHits, s.CacheQueries)
		}
	}
}

// The next turn of a conversation finds its prompt and the answer that was
// computed: all but the answer's last token have entered the cache.
func TestAnswersAreCached(t *testing.T) {
	e := mustNew(t, small(100))
	r := &Request{Prompt: prompt(1, 6), MaxTokens: 7}
	if err := e.Submit(0, r); err != nil {
		t.Fatal(err)
	}
	all, now := slices.Clone(r.Prompt), time.Duration(0)
	for {
		d, ok := e.Step(now)
		if !ok {
			break
		}
		now += d
		for _, ev := range e.Done(now) {
			all = append(all, ev.Token)
		}
	}
	next := &Request{Prompt: append(all, 1, 2, 3, 4), MaxTokens: 1}
	run(t, e, now, next)
	if next.CachedTokens != 12 { // 13 tokens, 12 of them computed
		t.Errorf("cached tokens of the next turn = %d, want 12", next.CachedTokens)
	}
}

// Of a freed sequence the end is evicted before the start, and what was freed
// longest ago before the rest.
func TestEviction(t *testing.T) {
	tests := []struct {
		name      string
		usable    int
		between   []int // lengths of the prompts between the two uses of A
		wantCache int
	}{
		{"no need to evict", 6, []int{12}, 12},
		{"one block lost: the last", 6, []int{16}, 8},
		{"two lost", 6, []int{20}, 4},
		{"all lost", 6, []int{23}, 0},
		{"a second prompt evicts the rest of the first before the other's", 9, []int{12, 20}, 4},
	}
	for _, tt := range tests {
		e := mustNew(t, small(tt.usable+1))
		a := prompt(1, 13)
		_, now := run(t, e, 0, &Request{Prompt: a[:12], MaxTokens: 1})
		for i, n := range tt.between {
			_, now = run(t, e, now, &Request{Prompt: prompt(2+i, n), MaxTokens: 1})
		}
		again := &Request{Prompt: a, MaxTokens: 1}
		run(t, e, now, again)
		if again.CachedTokens != tt.wantCache {
			t.Errorf("%s: cached tokens = %d, want %d", tt.name, again.CachedTokens, tt.wantCache)
		}
	}
}

// Two requests that compute the same prefix at once hold a block each; the
// cache keeps serving it while either is left.
func TestTwinBlocks(t *testing.T) {
	e := mustNew(t, small(100))
	p := prompt(1, 9)
	// Both are admitted in one pass: the second finds the first's blocks, which
	// enter the index when they are scheduled, as in vLLM.
	a, b := named("A", p, 3), named("B", p, 1)
	got, _ := run(t, e, 0, a, b)
	if want := "A9 B1 -> A B!\nA1 -> A\nA1 -> A!"; got != want {
		t.Errorf("passes:\n%s\nwant:\n%s", got, want)
	}
	if b.CachedTokens != 8 || e.Stats().CachedBlocks != 2 {
		t.Errorf("B found %d tokens and %d blocks are cached, want 8 and 2", b.CachedTokens, e.Stats().CachedBlocks)
	}

	pool := newPool(4, true)
	x, y := pool.take(), pool.take()
	pool.remember(x, 42, false)
	pool.remember(y, 42, false)
	if got, _ := pool.find(42); got != x {
		t.Errorf("find gives block %d, want the older %d", got, x)
	}
	pool.forget(x)
	if got, ok := pool.find(42); !ok || got != y {
		t.Errorf("after the older is forgotten find gives %d, %t; want %d", got, ok, y)
	}
	pool.forget(y)
	if _, ok := pool.find(42); ok {
		t.Error("found after both were forgotten")
	}
}

func TestAbort(t *testing.T) {
	c := small(100)
	c.Cost.Admit = 5e6
	e := mustNew(t, c)
	reqs := []*Request{named("A", prompt(1, 8), 5), named("B", prompt(2, 8), 5), named("C", prompt(3, 8), 5)}
	for _, r := range reqs {
		if err := e.Submit(0, r); err != nil {
			t.Fatal(err)
		}
	}
	if !e.Abort(reqs[2]) { // on its way to the queue
		t.Error("Abort of a pending request = false")
	}
	if _, ok := e.Step(0); ok {
		t.Error("a pass began before anything reached the queue")
	}
	if at, ok := e.Wake(); !ok || at != 5*time.Millisecond {
		t.Errorf("Wake() = %v, %t; want 5ms", at, ok)
	}
	if _, ok := e.Step(5 * time.Millisecond); !ok {
		t.Fatal("no pass")
	}
	if !e.Abort(reqs[0]) { // during its pass
		t.Error("Abort of a running request = false")
	}
	if s := e.Stats(); s.UsedBlocks != 2 {
		t.Errorf("%d blocks in use after the abort, want B's 2", s.UsedBlocks)
	}
	if evs := e.Done(6 * time.Millisecond); len(evs) != 1 || evs[0].Req != reqs[1] {
		t.Errorf("events %v, want one of B", evs)
	}
	if e.Abort(reqs[0]) {
		t.Error("a second Abort = true")
	}
	if e.ResetPrefixCache() {
		t.Error("the cache was reset while B holds blocks")
	}
	e.Abort(reqs[1])
	if !e.ResetPrefixCache() || e.Stats().CachedBlocks != 0 {
		t.Error("the idle engine does not reset its cache")
	}
	if s := e.Stats(); s.Aborted != 3 || reqs[1].Finish != Aborted {
		t.Errorf("%d aborted, want 3", s.Aborted)
	}
}

// A static batch whose rows were all given up makes room for the next.
func TestAbortStatic(t *testing.T) {
	c := small(100)
	c.Batching, c.StaticSize = Static, 2
	e := mustNew(t, c)
	a, b := named("A", prompt(1, 3), 9), named("B", prompt(2, 3), 2)
	e.Submit(0, a)
	e.Step(0)
	e.Done(1)
	e.Abort(a)
	if got, _ := run(t, e, 1, b); got != "B3 -> B\nB1 -> B!" {
		t.Errorf("passes after the abort:\n%s", got)
	}
}

func TestStops(t *testing.T) {
	first := func(r *Request) (tokens []uint32) {
		e := mustNew(t, small(100))
		if err := e.Submit(0, r); err != nil {
			t.Fatal(err)
		}
		for now := time.Duration(0); ; {
			d, ok := e.Step(now)
			if !ok {
				return tokens
			}
			now += d
			for _, ev := range e.Done(now) {
				tokens = append(tokens, ev.Token)
			}
		}
	}
	plain := first(&Request{Prompt: prompt(1, 5), MaxTokens: 8})
	tests := []struct {
		name   string
		r      *Request
		want   int
		finish Reason
	}{
		{"max tokens", &Request{MaxTokens: 8}, 8, Length},
		{"a stop id", &Request{MaxTokens: 8, StopIDs: []uint32{plain[2]}}, 3, Stop},
		{"a stop id below min tokens does not stop", &Request{MaxTokens: 8, StopIDs: []uint32{plain[2]}, MinTokens: 4}, 8, Length},
		{"natural end", &Request{MaxTokens: 8, StopAfter: 5}, 5, Stop},
		{"natural end below min tokens", &Request{MaxTokens: 8, StopAfter: 5, MinTokens: 7}, 7, Stop},
		{"a natural end at max tokens is a length", &Request{MaxTokens: 8, StopAfter: 8}, 8, Length},
	}
	for _, tt := range tests {
		tt.r.Prompt = prompt(1, 5)
		got := first(tt.r)
		if len(got) != tt.want || tt.r.Finish != tt.finish || !slices.Equal(got, plain[:tt.want]) {
			t.Errorf("%s: %d tokens, reason %d; want %d, %d", tt.name, len(got), tt.r.Finish, tt.want, tt.finish)
		}
	}
	if other := first(&Request{Prompt: prompt(1, 5), MaxTokens: 8, Seed: 1}); slices.Equal(other, plain) {
		t.Error("another seed gives the same answer")
	}
}

func TestSubmitRefuses(t *testing.T) {
	e := mustNew(t, small(10)) // holds 36 tokens
	for _, tt := range []struct {
		r    *Request
		want string
	}{
		{&Request{MaxTokens: 1}, "prompt of 0"},
		{&Request{Prompt: prompt(1, 3)}, "answer of 0"},
		{&Request{Prompt: prompt(1, 30), MaxTokens: 7}, "exceed the model's 36"},
		{&Request{Prompt: prompt(1, 30), MaxTokens: 1 << 62}, "exceed the model's 36"},
		{&Request{PromptLen: 7, Hashes: []uint64{1, 2}, MaxTokens: 1}, "2 block hashes"},
	} {
		if err := e.Submit(0, tt.r); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Submit(%d prompt, %d answer) = %v, want %q", tt.r.PromptLen, tt.r.MaxTokens, err, tt.want)
		}
	}
	r := &Request{Prompt: prompt(1, 30), MaxTokens: 6}
	if err := e.Submit(0, r); err != nil {
		t.Errorf("Submit of a request of full length: %v", err)
	}
	if err := e.Submit(0, r); err == nil {
		t.Error("a request was submitted twice")
	}
}

// Callers that know only hashes get the hits that tokens would have given.
func TestHashesInPlaceOfTokens(t *testing.T) {
	e := mustNew(t, small(100))
	for _, tt := range []struct {
		hashes []uint64
		n      int
		want   int
	}{
		{[]uint64{11, 12, 13}, 13, 0},
		{[]uint64{11, 12, 13}, 13, 12},
		{[]uint64{11, 12, 99}, 14, 8},
		{[]uint64{11, 12, 13}, 12, 8},
		{nil, 12, 0},
		{nil, 12, 0}, // what is unknown is shared with nobody
	} {
		r := &Request{Hashes: tt.hashes, PromptLen: tt.n, MaxTokens: 2}
		_, _ = run(t, e, 0, r)
		if r.CachedTokens != tt.want {
			t.Errorf("%v of %d tokens: cached = %d, want %d", tt.hashes, tt.n, r.CachedTokens, tt.want)
		}
	}
}

func TestValidateReportsAll(t *testing.T) {
	err := Config{BlockSize: -1, Batching: Static, Cost: Cost{KV: -1}}.Validate()
	for _, want := range []string{"block size is -1", "blocks is 0", "max seqs", "static batch size", "kv_ns is -1", "a step takes no time"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Validate() = %v, want it to name %q", err, want)
		}
	}
	c := small(10)
	c.MaxModelLen = 37
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "hold 36") {
		t.Errorf("Validate of a model longer than the cache = %v", err)
	}
}

// A pass in steady state allocates nothing.
func TestDecodeAllocatesNothing(t *testing.T) {
	c := small(4000)
	c.MaxSeqs, c.MaxBatchedTokens = 500, 8192
	e := mustNew(t, c)
	for i := range 400 {
		if err := e.Submit(0, &Request{Prompt: prompt(i, 16), MaxTokens: 10000}); err != nil {
			t.Fatal(err)
		}
	}
	now := time.Duration(0)
	pass := func() {
		d, ok := e.Step(now)
		if !ok {
			t.Fatal("nothing to run")
		}
		now += d
		if len(e.Done(now)) == 0 {
			t.Fatal("no tokens")
		}
	}
	pass()
	pass()
	// 4 blocks a request in use so far, of 9 each.
	if n := testing.AllocsPerRun(15, pass); n != 0 {
		t.Errorf("a decode pass of 400 requests makes %v allocations", n)
	}
}

func BenchmarkDecodeStep(b *testing.B) {
	c := Config{
		Cost: unit, BlockSize: 16, Blocks: 100_001, MaxSeqs: 4096, MaxBatchedTokens: 8192,
		MaxModelLen: 131072, PrefixCaching: true, VocabLow: 1000, VocabSize: 127000,
	}
	e := mustNew(b, c)
	now := time.Duration(0)
	n := 0
	var again []*Request
	for i := range 2000 {
		again = append(again, &Request{Prompt: prompt(i, 512), MaxTokens: 256})
	}
	tokens := 0
	for b.Loop() {
		for _, r := range again {
			n++
			if err := e.Submit(now, &Request{Prompt: r.Prompt, MaxTokens: 256, Salt: uint64(n)}); err != nil {
				b.Fatal(err)
			}
		}
		again = again[:0]
		d, _ := e.Step(now)
		now += d
		for _, ev := range e.Done(now) {
			tokens++
			if ev.Finish != Running {
				again = append(again, ev.Req)
			}
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(tokens), "ns/token")
}
