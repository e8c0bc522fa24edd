package engine

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Batching is how sequences share steps.
type Batching int

const (
	Continuous   Batching = iota // chunked prefill mixed with decodes (vLLM V1)
	Static                       // a batch runs until its longest answer ends
	PrefillFirst                 // whole prompts in steps of their own (Orca, vLLM V0)
)

// A Config is one engine.
type Config struct {
	Cost             Cost
	BlockSize        int // tokens per KV block
	Blocks           int // blocks of the KV cache, the null block included
	MaxSeqs          int // sequences that may run at once
	MaxBatchedTokens int // tokens computed in one step
	MaxModelLen      int // prompt and answer together
	PrefixCaching    bool
	// Priority schedules by Request.Priority, lowest first, and preempts the
	// least urgent; otherwise the order is that of arrival.
	Priority bool
	Batching Batching
	// StaticSize bounds a batch under Static.
	StaticSize int
	// VocabLow and VocabSize are the range of ids that answers are made of.
	VocabLow, VocabSize int
}

// Bounds of a Config: far beyond any server, small enough to be allocated.
const (
	maxBlocks    = 1 << 24
	maxBlockSize = 1 << 16
	maxSeqs      = 1 << 20
	maxLen       = 1 << 27
)

// Validate reports every problem with c, not just the first.
func (c Config) Validate() error {
	var errs []error
	for _, f := range []struct {
		name      string
		v, lo, hi int
	}{
		{"block size", c.BlockSize, 1, maxBlockSize},
		{"blocks", c.Blocks, 2, maxBlocks},
		{"max seqs", c.MaxSeqs, 1, maxSeqs},
		{"max batched tokens", c.MaxBatchedTokens, 1, maxLen},
		{"max model len", c.MaxModelLen, 2, maxLen},
		{"vocabulary start", c.VocabLow, 0, maxLen},
		{"vocabulary size", c.VocabSize, 1, maxLen},
	} {
		if f.v < f.lo || f.v > f.hi {
			errs = append(errs, fmt.Errorf("%s is %d, want %d to %d", f.name, f.v, f.lo, f.hi))
		}
	}
	if c.Batching == Static && (c.StaticSize < 1 || c.StaticSize > maxSeqs) {
		errs = append(errs, fmt.Errorf("static batch size is %d, want 1 to %d", c.StaticSize, maxSeqs))
	}
	if c.Batching < Continuous || c.Batching > PrefillFirst {
		errs = append(errs, fmt.Errorf("unknown batching %d", c.Batching))
	}
	// One request of full length must fit, or it would wait for ever.
	if fit := (c.Blocks - 1) * c.BlockSize; len(errs) == 0 && c.MaxModelLen > fit {
		errs = append(errs, fmt.Errorf("max model len is %d, but %d blocks of %d tokens, less the null block, hold %d: lower it, or give more blocks", c.MaxModelLen, c.Blocks, c.BlockSize, fit))
	}
	if err := c.Cost.Validate(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// A Reason is why a request ended.
type Reason uint8

const (
	Running Reason = iota // it has not
	Length                // all tokens asked for, or the model's limit
	Stop                  // a stop token, or the natural end of the answer
	Aborted
)

// A Request is one sequence. The caller fills in the first part, submits it and
// then only reads it. A Request is submitted once.
type Request struct {
	// Prompt is the prompt in token ids; Submit reads it and nothing else does. A
	// caller that knows only hashes gives PromptLen and Hashes, the chained hash
	// of each leading full block, instead. Submit copies them.
	Prompt    []uint32
	PromptLen int
	Hashes    []uint64
	// Own names what lies behind Hashes, the answer included: requests of one
	// name and one salt have the same prompt and the same answer. 0: this
	// request alone has it, and nobody else can find its blocks.
	Own uint64

	MaxTokens int      // length of the answer, at least 1
	MinTokens int      // no stop before this many
	StopAfter int      // the answer's natural length; 0: none
	StopIDs   []uint32 // tokens that end the answer
	Priority  int64
	Salt      uint64 // requests share cached prefixes only within one salt
	Seed      uint64 // part of what the answer is drawn from, with the prompt
	Watch     int    // Coast stops short of this token of the answer; 0: of none
	Owner     any    // the caller's

	// What happened; valid once Scheduled, First and so on are reached.
	Arrived, Queued  time.Duration // submitted; entered the queue
	Scheduled        time.Duration // first chosen for a step
	First, Last      time.Duration // first and last token so far
	Output           int           // tokens so far
	CachedTokens     int           // of the prompt, at first admission
	Preemptions      int
	Finish           Reason
	StopID           uint32 // the token of StopIDs that ended it, if StopIDHit
	StopIDHit        bool
	tokens, computed int // tokens known, tokens with KV
	indexed          int // blocks entered into the index
	room             int // tokens that blocks hold
	blocks           []int32
	hashes           []uint64 // of the leading full blocks; those of own come behind
	state, draw      uint64   // running hash of all tokens; source of the answer
	own              uint64   // what block hashes behind hashes are made of; 0: they are in hashes
	alone            bool     // own is no other request's
	seq              uint64
	place            place
}

// place is where a request is.
type place uint8

const (
	nowhere place = iota
	pending       // submitted, not yet in the queue
	waiting
	running
	ended
)

// An Event is one token of one request. An aborted request yields none.
type Event struct {
	Req    *Request
	Token  uint32
	First  bool
	Gap    time.Duration // since the token before, if not First
	Finish Reason
}

// Stats counts what the engine did since it was made, and its state now.
type Stats struct {
	Running, Waiting   int
	UsedBlocks, Blocks int // without the null block
	CachedBlocks       int // blocks that hold a findable prefix, held or free
	Steps              uint64
	ComputedTokens     uint64 // tokens computed in steps, recomputed ones included
	PaddedTokens       uint64 // of those, padding (static batching)
	Preemptions        uint64
	CacheQueries       uint64 // tokens looked up at first admissions
	CacheHits          uint64 // of those, found
	Aborted            uint64
}

// An Engine is the state machine.
type Engine struct {
	cfg     Config
	pool    *pool
	pending queue // submitted, by time, on their way to the queue
	queue   queue
	running []*Request
	batch   []slot
	events  []Event
	seq     uint64
	busy    bool // between Step and Done
	stats   Stats

	static staticBatch

	// Of Coast: indices of running requests by pass, and where each pass begins.
	takes, fills   []int32
	takeAt, fillAt []int

	// Spare memory of ended requests.
	spareBlocks [][]int32
	spareHashes [][]uint64
}

// A slot is a request's share of the current step.
type slot struct {
	r *Request
	n int
}

// New returns an idle engine with an empty cache.
func New(c Config) (*Engine, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	e := &Engine{cfg: c, pool: newPool(c.Blocks, c.PrefixCaching && c.Batching != Static)}
	e.queue.priority = c.Priority
	return e, nil
}

// Submit hands over a request that arrives at now. Arrivals must be submitted
// in the order of time.
func (e *Engine) Submit(now time.Duration, r *Request) error {
	if r.place != nowhere {
		return errors.New("engine: the request was submitted before")
	}
	if len(r.Prompt) > 0 {
		r.PromptLen = len(r.Prompt)
		r.Hashes = nil
	} else if len(r.Hashes) > r.PromptLen/e.cfg.BlockSize {
		return fmt.Errorf("engine: %d block hashes for a prompt of %d tokens in blocks of %d", len(r.Hashes), r.PromptLen, e.cfg.BlockSize)
	}
	if r.PromptLen < 1 || r.MaxTokens < 1 {
		return fmt.Errorf("engine: prompt of %d and answer of %d tokens, want at least 1 each", r.PromptLen, r.MaxTokens)
	}
	if r.MaxTokens > e.cfg.MaxModelLen-r.PromptLen {
		return fmt.Errorf("engine: %d prompt and %d answer tokens exceed the model's %d", r.PromptLen, r.MaxTokens, e.cfg.MaxModelLen)
	}
	e.seq++
	r.seq, r.place, r.tokens = e.seq, pending, r.PromptLen
	r.Arrived, r.Queued = now, now+time.Duration(e.cfg.Cost.Admit)
	e.hashPrompt(r)
	e.pending.push(r)
	return nil
}

// root starts every running hash; ownKind tells names that requests have by
// themselves from those that they were given.
const (
	root    = 0x1d8e4e27c47d124f
	ownKind = 0x8c6d2f7b1e5a9043
)

// hashPrompt sets the hashes of the prompt's full blocks and the source of the
// answer, which depends on the prompt and the seed alone: a model knows nothing
// of salts or caches.
func (e *Engine) hashPrompt(r *Request) {
	salted := mix(root, r.Salt)
	if e.pool.share {
		if n := len(e.spareHashes); n > 0 {
			r.hashes, e.spareHashes = e.spareHashes[n-1], e.spareHashes[:n-1]
		}
	}
	if len(r.Prompt) == 0 {
		name := r.Own
		if r.alone = name == 0; r.alone {
			name = mix(ownKind, e.seq)
		}
		r.own = nonzero(mix(salted, name))
		r.draw = mix(mix(root, name), r.Seed)
		if e.pool.share {
			for _, h := range r.Hashes {
				r.hashes = append(r.hashes, nonzero(mix(salted, h)))
			}
		}
		return
	}
	if !e.pool.share || r.Salt != 0 {
		r.draw = hashTokens(mix(root, 0), r.Prompt)
	}
	if e.pool.share {
		r.hashes = slices.Grow(r.hashes, e.span(r))
		r.state = salted
		for i, token := range r.Prompt {
			r.push(token, i+1, e.cfg.BlockSize)
		}
		if r.Salt == 0 {
			r.draw = r.state
		}
	}
	r.draw = mix(r.draw, r.Seed)
}

// hash is that of block k of r, which is full.
func (r *Request) hash(k int) uint64 {
	if k < len(r.hashes) {
		return r.hashes[k]
	}
	return nonzero(mix(r.own, uint64(k)))
}

// private says that nobody but r can look for its block k.
func (r *Request) private(k int) bool { return r.alone && k >= len(r.hashes) }

// span is how many blocks r may come to hold.
func (e *Engine) span(r *Request) int {
	return (r.PromptLen + r.MaxTokens + e.cfg.BlockSize - 1) / e.cfg.BlockSize
}

func hashTokens(h uint64, tokens []uint32) uint64 {
	for _, t := range tokens {
		h = mix(h, uint64(t))
	}
	return h
}

// nonzero keeps 0 free to mean "no hash".
func nonzero(h uint64) uint64 { return max(h, 1) }

// push extends the running hash by the token that makes the sequence n long.
func (r *Request) push(token uint32, n, blockSize int) {
	r.state = mix(r.state, uint64(token))
	if n%blockSize == 0 {
		r.state = nonzero(r.state)
		r.hashes = append(r.hashes, r.state)
	}
}

// Running lists the requests that run, the engine's own list: it may be read
// until the next call that changes the engine.
func (e *Engine) Running() []*Request { return e.running }

// All lists the requests that have not ended.
func (e *Engine) All() (all []*Request) {
	for _, list := range [][]*Request{e.static.rows, e.running, e.queue.list[e.queue.head:], e.pending.list[e.pending.head:]} {
		for _, r := range list {
			if r.place != ended {
				all = append(all, r)
			}
		}
	}
	return all
}

// Abort ends a request at once and frees what it held. It reports false if the
// request had ended already. The request yields no further event.
func (e *Engine) Abort(r *Request) bool {
	switch r.place {
	case pending:
		e.pending.remove(r)
	case waiting:
		e.queue.remove(r)
	case running:
		if e.cfg.Batching != Static { // there it keeps its row
			e.running = drop(e.running, r)
		}
	default:
		return false
	}
	r.Finish = Aborted
	e.stats.Aborted++
	e.end(r)
	return true
}

func drop(list []*Request, r *Request) []*Request {
	if i := slices.Index(list, r); i >= 0 {
		return slices.Delete(list, i, i+1)
	}
	return list
}

// end frees what r held.
func (e *Engine) end(r *Request) {
	e.pool.release(r.blocks)
	if r.blocks != nil {
		e.spareBlocks = append(e.spareBlocks, r.blocks[:0])
	}
	if r.hashes != nil {
		e.spareHashes = append(e.spareHashes, r.hashes[:0])
	}
	r.blocks, r.hashes, r.room, r.place = nil, nil, 0, ended
}

// Wake returns when the next submitted request enters the queue. It is of
// interest after Step found nothing to do.
func (e *Engine) Wake() (at time.Duration, ok bool) {
	if e.pending.len() == 0 {
		return 0, false
	}
	return e.pending.first().Queued, true
}

// Step chooses the batch of a pass that starts at now and returns how long the
// pass takes. Done must be called before the next Step. ok is false, and no
// pass begins, if there is nothing to run.
func (e *Engine) Step(now time.Duration) (d time.Duration, ok bool) {
	if e.busy {
		panic("engine: Step before Done")
	}
	for e.pending.len() > 0 && e.pending.first().Queued <= now {
		r := e.pending.first()
		e.pending.pop()
		r.place = waiting
		e.queue.push(r)
	}

	l := e.schedule(now)
	if l.seqs == 0 {
		return 0, false
	}
	for _, s := range e.batch {
		s.r.computed += s.n
	}
	e.busy = true
	e.stats.Steps++
	e.stats.ComputedTokens += uint64(l.tokens)
	return e.cfg.Cost.of(l), true
}

// schedule fills the batch.
func (e *Engine) schedule(now time.Duration) load {
	for {
		clear(e.batch) // let go of ended requests
		e.batch = e.batch[:0]
		preempted := false
		switch e.cfg.Batching {
		case Static:
			return e.stepStatic(now)
		case PrefillFirst:
			e.admit(now, e.cfg.MaxBatchedTokens, false)
			if len(e.batch) == 0 {
				_, preempted = e.continueRunning(e.cfg.MaxBatchedTokens)
			}
		default:
			var left int
			if left, preempted = e.continueRunning(e.cfg.MaxBatchedTokens); !preempted {
				e.admit(now, left, true)
			}
		}
		// By priority, the first of the running may have to give way to itself.
		// vLLM then makes an empty pass, which takes no time to speak of.
		if len(e.batch) > 0 || !preempted {
			return e.load()
		}
	}
}

func (e *Engine) load() load {
	var l load
	for _, s := range e.batch {
		l.add(s.r.computed, s.n)
	}
	return l
}

// continueRunning gives the running requests their tokens, in order, and
// returns what is left of the budget.
func (e *Engine) continueRunning(budget int) (left int, preempted bool) {
	for i := 0; i < len(e.running) && budget > 0; i++ {
		r := e.running[i]
		n := min(r.tokens-r.computed, budget)
		for !e.grow(r, r.computed+n) {
			preempted = true
			v := e.victim()
			victim := e.running[v]
			e.running = slices.Delete(e.running, v, v+1)
			if v < i {
				// By priority the victim may be in this step already: every
				// running request before i is, in the same order.
				budget += e.batch[v].n
				e.batch = slices.Delete(e.batch, v, v+1)
				i--
			}
			e.preempt(victim)
			if victim == r {
				return budget, true
			}
		}
		e.batch = append(e.batch, slot{r, n})
		budget -= n
	}
	return budget, preempted
}

// victim is the running request to give up its blocks.
func (e *Engine) victim() int {
	v := len(e.running) - 1
	if e.cfg.Priority {
		for i, r := range e.running {
			if e.queue.less(e.running[v], r) {
				v = i
			}
		}
	}
	return v
}

func (e *Engine) preempt(r *Request) {
	if e.pool.share && r.alone {
		// It will look for them.
		for k := len(r.hashes); k < r.indexed; k++ {
			e.pool.publish(r.blocks[k])
		}
	}
	e.pool.release(r.blocks)
	r.blocks, r.room, r.computed, r.indexed = r.blocks[:0], 0, 0, 0
	r.Preemptions++
	e.stats.Preemptions++
	r.place = waiting
	e.queue.push(r)
}

// grow gives r blocks for n tokens and enters those that this step fills into
// the index. It changes nothing if there are too few.
func (e *Engine) grow(r *Request, n int) bool {
	size := e.cfg.BlockSize
	if n > r.room {
		need := (n - r.room + size - 1) / size
		if need > e.pool.free {
			return false
		}
		for ; need > 0; need-- {
			r.blocks = append(r.blocks, e.pool.take())
			r.room += size
		}
	}
	if e.pool.share {
		for ; (r.indexed+1)*size <= n; r.indexed++ {
			e.index(r)
		}
	}
	return true
}

// index enters the next block of r, which is full.
func (e *Engine) index(r *Request) {
	e.pool.remember(r.blocks[r.indexed], r.hash(r.indexed), r.private(r.indexed))
}

// admit moves waiting requests to the running while budget, sequences and
// blocks last. Without chunks a prompt longer than the whole budget runs alone.
func (e *Engine) admit(now time.Duration, budget int, chunks bool) {
	for budget > 0 && len(e.running) < e.cfg.MaxSeqs && e.queue.len() > 0 {
		r := e.queue.first()
		hits, fresh := e.lookup(r)
		cached := hits * e.cfg.BlockSize
		n := r.tokens - cached
		if n > budget {
			if !chunks && len(e.batch) > 0 {
				return
			}
			if chunks {
				n = budget
			}
		}
		// The whole sequence must find room, not just its first chunk.
		if e.need(r)-hits+fresh > e.pool.free {
			return
		}
		if r.blocks == nil {
			if n := len(e.spareBlocks); n > 0 {
				r.blocks, e.spareBlocks = e.spareBlocks[n-1], e.spareBlocks[:n-1]
			}
			r.blocks = slices.Grow(r.blocks, e.span(r))
		}
		for k := range hits {
			b, _ := e.pool.find(r.hash(k))
			e.pool.hold(b)
			r.blocks = append(r.blocks, b)
		}
		r.indexed, r.computed, r.room = hits, cached, cached
		e.grow(r, cached+n)
		if r.Preemptions == 0 {
			r.Scheduled, r.CachedTokens = now, cached
			if e.pool.share {
				e.stats.CacheQueries += uint64(r.tokens)
				e.stats.CacheHits += uint64(cached)
			}
		}
		e.queue.pop()
		r.place = running
		e.running = append(e.running, r)
		e.batch = append(e.batch, slot{r, n})
		budget -= n
	}
}

// need is how many blocks r takes as it is.
func (e *Engine) need(r *Request) int {
	return (r.tokens + e.cfg.BlockSize - 1) / e.cfg.BlockSize
}

// lookup returns how many leading blocks of r are cached, at least one token
// being left to compute, and how many of them lie in the free list.
func (e *Engine) lookup(r *Request) (hits, fresh int) {
	if !e.pool.share {
		return 0, 0
	}
	full := (r.tokens - 1) / e.cfg.BlockSize
	if r.alone && r.Preemptions == 0 {
		full = min(full, len(r.hashes))
	}
	for k := range full {
		b, ok := e.pool.find(r.hash(k))
		if !ok {
			break
		}
		hits++
		if e.pool.blocks[b].refs == 0 {
			fresh++
		}
	}
	return hits, fresh
}

// Done ends the pass that Step began; now is its end. The events are in batch
// order and stay valid until the next call.
func (e *Engine) Done(now time.Duration) []Event {
	if !e.busy {
		panic("engine: Done without Step")
	}
	e.busy = false
	clear(e.events)
	e.events = e.events[:0]
	left := false
	for _, s := range e.batch {
		r := s.r
		if r.place != running || r.computed < r.tokens {
			continue // aborted during the pass, or a chunk that does not end the prompt
		}
		token := uint32(e.cfg.VocabLow) + uint32(mix(r.draw, uint64(r.Output))>>32*uint64(e.cfg.VocabSize)>>32)
		r.Output++
		r.tokens++
		if e.pool.share && r.own == 0 {
			r.push(token, r.tokens, e.cfg.BlockSize)
		}
		gap := now - r.Last
		if r.Last = now; r.Output == 1 {
			r.First, gap = now, 0
		}
		r.Finish = r.stop(token)
		e.events = append(e.events, Event{Req: r, Token: token, First: r.Output == 1, Gap: gap, Finish: r.Finish})
		if r.Finish != Running {
			e.end(r)
			left = true
		}
	}
	switch {
	case e.cfg.Batching == Static:
		e.doneStatic()
	case left:
		e.running = slices.DeleteFunc(e.running, func(r *Request) bool { return r.place == ended })
	}
	return e.events
}

// stop says whether the token just made ends the answer.
func (r *Request) stop(token uint32) Reason {
	if r.Output >= r.MinTokens {
		if slices.Contains(r.StopIDs, token) {
			r.StopID, r.StopIDHit = token, true
			return Stop
		}
		if r.StopAfter > 0 && r.Output >= r.StopAfter && r.Output < r.MaxTokens {
			return Stop
		}
	}
	if r.Output >= r.MaxTokens {
		return Length
	}
	return Running
}

// ResetPrefixCache empties the cache. Like vLLM it refuses, and reports false,
// while a request holds blocks.
func (e *Engine) ResetPrefixCache() bool { return len(e.static.rows) == 0 && e.pool.reset() }

// Stats returns the counters.
func (e *Engine) Stats() Stats {
	s := e.stats
	s.Running, s.Waiting = len(e.running), e.queue.len()
	s.Blocks, s.UsedBlocks = e.pool.usable(), e.pool.usable()-e.pool.free
	s.CachedBlocks = e.pool.cached
	if e.cfg.Batching == Static {
		s.UsedBlocks, s.Running = e.static.blocks, 0
		for _, r := range e.static.rows {
			if r.place == running {
				s.Running++
			}
		}
	}
	return s
}
