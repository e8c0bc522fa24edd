package replay

import (
	"container/heap"
	"context"
	"fmt"
	"iter"
	"math"
	"slices"
	"time"

	"reprise/backends"
	"reprise/backends/sim"
	"reprise/backends/sim/engine"
	"reprise/internal/clock"
	"reprise/traceformat"
)

// A VirtualConfig is what RunVirtual needs besides the plan.
type VirtualConfig struct {
	Engine engine.Config
	// Record is as in Config. The order of completion is always the same.
	Record   func(*traceformat.Row) error
	Progress *Progress
	// Drain, when closed, stops the sending; what is in flight ends. Cancelling
	// the context stops at once.
	Drain <-chan struct{}
	// Chunks records the time of every token.
	Chunks bool
	// Observe, if set, is given the engine's state every Every of the run.
	Observe func(at time.Duration, s *EngineState)
	Every   time.Duration
}

// An EngineState is what a simulated engine would have on its page of metrics.
type EngineState struct {
	engine.Stats
	PromptTokens    int64 // of requests that got their first token
	GeneratedTokens int64
	Finished        int64
	// Iterations counts passes by the tokens in them, in vLLM's way: one bucket
	// for each of [engine.IterationBounds] and one beyond.
	Iterations []int64
}

// A Simulation is what the manifest of a run in virtual time says of it.
type Simulation struct {
	Took           time.Duration `json:"took_ns"` // of real time
	Passes         int64         `json:"passes"`
	ComputedTokens int64         `json:"computed_tokens"` // recomputed and padding ones included
	PaddedTokens   int64         `json:"padded_tokens,omitempty"`
	Preemptions    int64         `json:"preemptions"`
	// IterationTokens counts passes by their tokens in vLLM's way: a prompt in
	// the pass that ends it. There is one count for each bound, of passes with at
	// most as many and more than the bound before, and one beyond the last.
	IterationBounds []float64 `json:"iteration_token_bounds"`
	IterationTokens []int64   `json:"iteration_tokens"`
	// Fitted is the cost model, where it was fitted to a real engine, and how far
	// its simulations of real runs were off.
	Fitted *sim.CostFile `json:"fitted,omitempty"`
}

// Simulation sums up the run.
func (v *Virtual) Simulation() *Simulation {
	s := v.State()
	return &Simulation{
		Took: v.took, Passes: int64(s.Steps), ComputedTokens: int64(s.ComputedTokens), PaddedTokens: int64(s.PaddedTokens), Preemptions: int64(s.Preemptions),
		IterationBounds: engine.IterationBounds, IterationTokens: s.Iterations,
	}
}

// A Virtual is a simulated engine and the run against it, in virtual time.
type Virtual struct {
	plan *Plan
	conf VirtualConfig
	eng  *engine.Engine

	now      time.Duration
	progress *Progress
	cache    *cacheTally
	state    EngineState
	observed time.Duration // when to observe next
	err      error

	next     func() (*item, error, bool) // the schedule
	it       *item                       // its next request, nil: it is over
	dynamic  callHeap                    // turns whose time an answer fixed
	hangups  callHeap                    // requests that are given up at a time
	free     []time.Duration             // users of a closed loop who may begin
	closed   bool
	halted   bool
	inFlight int64

	batches  int64
	requests int64 // batches that were one request
	padding  int64

	spare  []*virtualCall
	hashes []uint64
	ends   []time.Duration
	coasts int64
	pushed int64
	took   time.Duration
}

// A virtualCall is one request of a run in virtual time.
type virtualCall struct {
	row      traceformat.Row
	prompt   int
	output   int
	abort    abort
	due      time.Duration
	source   int32
	shift    time.Duration
	children []*turn
	user     *virtualUser
	implied  implied
	reqs     []*engine.Request
	left     int           // choices that have not ended
	longest  int           // length that its whole batch asks for, 0: its own
	last     time.Duration // of its own tokens, where padding follows
	coast    int64
	settled  bool
	order    int64 // among calls of equal time in a heap
	at       time.Duration
}

// A virtualUser is a place of a closed loop: a session, or a batch.
type virtualUser struct {
	open    int
	members []*virtualCall // of a batch that is one request, and has one end
	going   int            // members whose tokens are not all made
}

// NewVirtual returns an idle engine for the plan. It is used for one run.
func NewVirtual(p *Plan, c VirtualConfig) (*Virtual, error) {
	e, err := engine.New(c.Engine)
	if err != nil {
		return nil, err
	}
	places := p.Options.places()
	v := &Virtual{plan: p, conf: c, eng: e, progress: c.Progress, closed: places > 0, free: make([]time.Duration, places)}
	if v.progress == nil {
		v.progress = &Progress{}
	}
	v.state.Iterations = make([]int64, len(engine.IterationBounds)+1)
	return v, nil
}

// CacheStatus implements [Cache].
func (v *Virtual) CacheStatus(context.Context) (backends.CacheStatus, error) {
	s := v.eng.Stats()
	return backends.CacheStatus{
		Known: true, Running: int64(s.Running), Waiting: int64(s.Waiting),
		Queries: traceformat.Some(int64(s.CacheQueries)), Hits: traceformat.Some(int64(s.CacheHits)),
	}, nil
}

// FlushCache implements [Cache].
func (v *Virtual) FlushCache(context.Context) (string, error) {
	if !v.eng.ResetPrefixCache() {
		return "", backends.ErrCacheBusy
	}
	return "", nil
}

// PrepareCache is [Plan.PrepareCache] for the simulated engine, which is empty
// before its run: cold and warm are the same.
func (v *Virtual) PrepareCache(ctx context.Context, info *backends.Info) (*CacheRecord, error) {
	return v.plan.prepareCache(ctx, v, info, func(string) {})
}

// State is the engine's at this moment.
func (v *Virtual) State() *EngineState {
	v.state.Stats = v.eng.Stats()
	return &v.state
}

// endless is later than any event.
const endless = time.Duration(math.MaxInt64)

// Run plays the plan as a discrete-event simulation, in one goroutine: what it
// records depends on the plan and the engine's configuration alone. The errors
// are those of [Plan.Run].
func (v *Virtual) Run(ctx context.Context) (*Stats, error) {
	p := v.plan
	begin := clock.Now()
	defer func() { v.took = clock.Now() - begin }()
	v.cache = newCacheTally(int(p.Header.Blocks.Size), p.cacheInfo)
	next, stop := iter.Pull2(p.allItems())
	defer stop()
	v.next = next
	v.advance()
	for rounds := 0; v.err == nil; rounds++ {
		if rounds%1024 == 0 {
			v.tick(ctx)
		}
		v.client(v.now)
		until := v.horizon()
		var ends *[]time.Duration
		if v.ends = v.ends[:0]; v.conf.Chunks {
			ends = &v.ends
		}
		if t, n := v.eng.Coast(v.now, until, ends); n > 0 {
			v.now = t
			v.coasted(n)
			continue
		}
		d, ok := v.eng.Step(v.now)
		if !ok {
			if wake, soon := v.eng.Wake(); soon {
				until = min(until, wake)
			}
			if v.idle() {
				break
			}
			if until == endless {
				v.err = fmt.Errorf("the simulated engine does not go on with %d requests", v.inFlight)
				break
			}
			v.now = max(v.now, until)
			continue
		}
		// What comes during the pass is handed over at its own time.
		v.client(v.now + d - 1)
		v.now += d
		v.done()
	}
	if v.err == nil && v.conf.Observe != nil && v.now > v.observed-v.conf.Every {
		v.conf.Observe(v.now, v.State())
	}
	cut := v.settleAll()
	v.progress.virtual.Store(int64(v.now) + 1)
	s, _ := v.progress.Snapshot()
	stats := &Stats{Elapsed: v.now, Sent: s.Sent, Shed: s.Shed, Peak: s.Peak, cache: v.cache}
	if !p.Header.Start.IsZero() {
		stats.StartedAt = p.Header.Start.Add(p.Base)
	}
	stats.Unsent = p.Rows - s.Sent - s.Shed
	stats.Interrupted = stats.Unsent > 0 || cut
	if p.Options.Batch > 0 {
		stats.Batch = &BatchRecord{Size: p.Options.Batch, Batches: v.batches, OneRequest: v.requests, PaddingTokens: v.padding}
	}
	return stats, v.err
}

// tick looks at the world outside.
func (v *Virtual) tick(ctx context.Context) {
	v.progress.virtual.Store(int64(v.now) + 1)
	if err := context.Cause(ctx); err != nil {
		v.err = err
	}
	select {
	case <-v.conf.Drain:
		v.halted = true
	default:
	}
}

// advance takes the next request of this shard from the schedule.
func (v *Virtual) advance() {
	for {
		it, err, ok := v.next()
		switch {
		case !ok:
			v.it = nil
			return
		case err != nil:
			v.it, v.err = nil, err
			return
		case v.plan.Options.Shard.has(it):
			v.it = it
			return
		case v.cache.trace != nil:
			v.cache.plan(&it.row.Request, it.lap, it.prompt, it.output, false)
		}
	}
}

// scheduled is when the schedule's next request is due.
func (v *Virtual) scheduled() time.Duration {
	switch {
	case v.it == nil || v.halted:
		return endless
	case !v.closed:
		return v.it.due
	case len(v.free) > 0:
		return max(0, v.free[0])
	}
	return endless
}

// turn is when the next turn is due whose time an answer fixed.
func (v *Virtual) turn() time.Duration {
	if len(v.dynamic) == 0 || v.halted {
		return endless
	}
	return v.dynamic[0].at
}

func (v *Virtual) hangup() time.Duration {
	if len(v.hangups) == 0 {
		return endless
	}
	return v.hangups[0].at
}

// horizon is when something of the client's, or an observation, comes next.
func (v *Virtual) horizon() time.Duration {
	t := min(v.scheduled(), v.turn(), v.hangup())
	if v.conf.Observe != nil && (t != endless || v.inFlight > 0) {
		t = min(t, v.observed)
	}
	return t
}

// idle says that nothing will happen any more.
func (v *Virtual) idle() bool {
	return v.inFlight == 0 && v.scheduled() == endless && v.turn() == endless
}

// client does everything that the client does up to a time.
func (v *Virtual) client(to time.Duration) {
	for v.err == nil {
		send, turn, hangup := v.scheduled(), v.turn(), v.hangup()
		t := min(send, turn, hangup)
		if v.conf.Observe != nil && v.observed <= min(t, to) {
			v.conf.Observe(v.observed, v.State())
			v.observed += v.conf.Every
			continue
		}
		switch {
		case t > to:
			return
		case hangup == t:
			if x := heap.Pop(&v.hangups).(*virtualCall); !x.settled {
				v.hangUp(x, t)
			}
		case turn == t:
			v.launch(heap.Pop(&v.dynamic).(*virtualCall), t)
		case v.plan.Options.Batch > 0:
			v.launchBatch(t)
		default:
			it := v.it
			x := v.call(it.row, it.lap, it.prompt, it.output, it.abort)
			x.shift = it.due - v.plan.scale(it.row.Arrival-v.plan.Base)
			if v.closed {
				v.free = v.free[1:]
				x.user = &virtualUser{open: 1 + len(x.children)}
			}
			v.advance()
			v.launch(x, t)
		}
	}
}

// launchBatch sends the next rows together. They are one request, with the
// longest of their lengths for all, where a real run against this engine makes
// one of them.
func (v *Virtual) launchBatch(at time.Duration) {
	v.free = v.free[1:]
	b := &virtualUser{}
	single, longest := true, 0
	for len(b.members) < v.plan.Options.Batch && v.it != nil && v.err == nil {
		x := v.call(v.it.row, v.it.lap, v.it.prompt, v.it.output, v.it.abort)
		x.user = b
		b.members = append(b.members, x)
		single, longest = single && choices(&x.row.Request) == 1, max(longest, x.output)
		v.advance()
	}
	v.batches++
	b.open, b.going = len(b.members), len(b.members)
	members := b.members
	if single {
		v.requests++
		for _, x := range members {
			x.longest = longest
		}
	} else {
		b.members = nil
	}
	for _, x := range members {
		v.launch(x, at)
	}
}

// call makes the call of a row, which it does not keep.
func (v *Virtual) call(row *traceformat.Row, lap int32, prompt, output int, a abort) *virtualCall {
	var x *virtualCall
	if n := len(v.spare); n > 0 {
		x, v.spare = v.spare[n-1], v.spare[:n-1]
		*x = virtualCall{row: traceformat.Row{
			Request: traceformat.Request{PrefixBlocks: x.row.PrefixBlocks[:0], OutputBlocks: x.row.OutputBlocks[:0]},
			Outcome: traceformat.Outcome{ChunkTimes: x.row.ChunkTimes[:0], ChunkTokens: x.row.ChunkTokens[:0]},
		}, reqs: x.reqs[:0]}
	} else {
		x = &virtualCall{}
	}
	prefix, answer := x.row.PrefixBlocks, x.row.OutputBlocks
	x.row.Request = row.Request
	x.row.PrefixBlocks, x.row.OutputBlocks = kept(prefix, row.PrefixBlocks), kept(answer, row.OutputBlocks)
	x.row.Lap, x.source = lap, row.Lap
	x.prompt, x.output, x.abort = prompt, output, a
	clipRow(&x.row.Request, prompt, output, a)
	if v.plan.talks != nil {
		x.children = v.plan.talks.turns[requestKey{row.ID, row.Lap}]
	}
	return x
}

// kept copies a list that may be nil, which means something else than empty.
func kept(dst, src []uint64) []uint64 {
	if src == nil {
		return nil
	}
	return append(dst[:0], src...)
}

// launch sends x, or sheds it.
func (v *Virtual) launch(x *virtualCall, at time.Duration) {
	x.due, x.row.Arrival = at, at
	o := &x.row.Outcome
	o.Scheduled, o.Wake = traceformat.Some(at), traceformat.Some(at)
	if limit := int64(v.plan.Options.MaxInFlight); limit > 0 && v.inFlight >= limit {
		v.progress.shed.Add(1)
		o.Result, o.Error = traceformat.ResultShed, "max_in_flight"
		v.answered(x, at)
		v.record(x)
		return
	}
	v.inFlight++
	v.progress.sent.Add(1)
	v.progress.inFlight.Store(v.inFlight)
	if v.inFlight > v.progress.peak.Load() {
		v.progress.peak.Store(v.inFlight)
	}
	o.Conn, o.ConnReused, o.Sent = traceformat.Some(at), traceformat.Some(true), traceformat.Some(at)
	o.Status = traceformat.Some(int16(200))
	if v.cache.trace != nil {
		x.implied = v.cache.plan(&x.row.Request, x.row.Lap, x.prompt, x.output, true)
	}
	v.submit(x, at)
	if x.abort.set && x.abort.after > 0 {
		x.at = at + x.abort.after
		v.push(&v.hangups, x)
	}
}

// submit hands a sequence for each choice of x to the engine.
func (v *Virtual) submit(x *virtualCall, at time.Duration) {
	choices := choices(&x.row.Request)
	own := v.identify(x, choices)
	x.left = choices
	for range choices {
		if n := len(x.reqs); n < cap(x.reqs) && x.reqs[:n+1][n] != nil {
			x.reqs = x.reqs[:n+1]
			*x.reqs[n] = engine.Request{}
		} else {
			x.reqs = append(x.reqs, new(engine.Request))
		}
		r := x.reqs[len(x.reqs)-1]
		r.PromptLen, r.MaxTokens, r.Hashes, r.Own, r.Owner = x.prompt, max(x.longest, x.output/choices), v.hashes, own, x
		if err := v.eng.Submit(at, r); err != nil {
			v.err = fmt.Errorf("request %d: %w", x.row.ID, err)
			return
		}
		r.Hashes = nil // Submit has copied them
	}
	v.watch(x)
}

// watch makes the engine stop before the token at which the client hangs up, or
// behind which padding begins. Until one choice has made its share of what is
// missing, all have not made all.
func (v *Virtual) watch(x *virtualCall) {
	if x.longest > x.output {
		x.reqs[0].Watch = x.output
	}
	if x.abort.tokens == 0 {
		return
	}
	share := (x.abort.tokens - x.received() + len(x.reqs) - 1) / len(x.reqs)
	for _, r := range x.reqs {
		r.Watch = r.Output + max(1, share)
	}
}

// received is how many tokens came, without padding.
func (x *virtualCall) received() (n int) {
	for _, r := range x.reqs {
		n += r.Output
	}
	return min(n, x.output)
}

// padded says that what comes is padding.
func (x *virtualCall) padded() bool { return x.longest > 0 && x.last > 0 }

// identify names the content of x's prompt in the engine's blocks, as the tokens
// that a real run sends would: equal where the recorded blocks are, and parting
// where they part. The names are in v.hashes; own is that of what lies behind
// them, 0 where no other request has it.
func (v *Virtual) identify(x *virtualCall, choices int) (own uint64) {
	v.hashes = v.hashes[:0]
	if !v.conf.Engine.PrefixCaching || v.conf.Engine.Batching == engine.Static {
		return 0
	}
	row, block, size := &x.row.Request, v.conf.Engine.BlockSize, int(v.plan.Header.Blocks.Size)
	chain := mix(rootNode, uint64(row.Lap))
	named := min(len(row.PrefixBlocks)*size, x.prompt)
	at := 0
	for k := range x.prompt / block {
		last := (k+1)*block - 1
		if last >= named {
			break
		}
		for ; at <= last/size; at++ {
			chain = mix(chain, mix(blockKind, row.PrefixBlocks[at]))
		}
		v.hashes = append(v.hashes, mix(chain, uint64(k)))
	}
	if named == x.prompt {
		// A prompt that other rows may have in full.
		for ; at*size < named; at++ {
			chain = mix(chain, mix(blockKind, row.PrefixBlocks[at]))
		}
		if choices == 1 {
			return max(1, mix(chain, mix(tailKind, uint64(x.prompt))))
		}
		return 0 // sampled answers are nobody else's
	}
	if choices > 1 {
		// The choices have the prompt's own part in common, and then part.
		tail := mix(mix(tailKind, uint64(row.ID)), uint64(row.Lap))
		for k := len(v.hashes); k < x.prompt/block; k++ {
			v.hashes = append(v.hashes, mix(tail, uint64(k)))
		}
	}
	return 0
}

// coasted accounts for n passes that ended at v.now.
func (v *Virtual) coasted(n int) {
	running := v.eng.Running()
	tokens := int64(n) * int64(len(running))
	v.state.GeneratedTokens += tokens
	v.progress.tokens.Add(tokens)
	v.count(len(running), int64(n))
	if !v.conf.Chunks {
		return
	}
	v.coasts++
	for _, r := range running {
		x := r.Owner.(*virtualCall)
		if x.padded() {
			continue
		}
		o := &x.row.Outcome
		if x.coast == v.coasts {
			for i := len(o.ChunkTokens) - n; i < len(o.ChunkTokens); i++ {
				o.ChunkTokens[i]++
			}
			continue
		}
		x.coast = v.coasts
		for _, t := range v.ends {
			o.ChunkTimes = append(o.ChunkTimes, t-x.due)
			o.ChunkTokens = append(o.ChunkTokens, 1)
		}
	}
}

// count counts n passes of so many tokens.
func (v *Virtual) count(tokens int, n int64) {
	i, _ := slices.BinarySearch(engine.IterationBounds, float64(tokens))
	v.state.Iterations[i] += n
}

// done ends a pass at v.now.
func (v *Virtual) done() {
	events := v.eng.Done(v.now)
	tokens := len(events)
	v.state.GeneratedTokens += int64(tokens)
	v.progress.tokens.Add(int64(tokens))
	for i := range events {
		ev := &events[i]
		x := ev.Req.Owner.(*virtualCall)
		if ev.First {
			tokens += ev.Req.PromptLen
			v.state.PromptTokens += int64(ev.Req.PromptLen)
		}
		if x.settled {
			continue // another choice of it was the last token that its user wanted
		}
		o := &x.row.Outcome
		since := v.now - x.due
		if v.conf.Chunks && !x.padded() {
			if last := len(o.ChunkTimes) - 1; last >= 0 && o.ChunkTimes[last] == since {
				o.ChunkTokens[last]++
			} else {
				o.ChunkTimes = append(o.ChunkTimes, since)
				o.ChunkTokens = append(o.ChunkTokens, 1)
			}
		}
		if ev.Finish != engine.Running {
			v.state.Finished++
			x.left--
		}
		if x.longest > 0 && ev.Req.Output == x.output {
			x.last = v.now
		}
		switch {
		case x.abort.tokens > 0 && x.received() >= x.abort.tokens && x.left > 0:
			v.hangUp(x, v.now)
		case x.left == 0 && x.longest > 0:
			v.finishBatch(x.user)
		case x.left == 0:
			o.Result, o.FinishReason = traceformat.ResultOK, "length"
			v.finish(x, v.now)
		default:
			v.watch(x)
		}
	}
	if tokens > 0 {
		v.count(tokens, 1)
	}
}

// finishBatch is told that a member has all of its tokens. The answer of the
// request that they share ends with that of the last.
func (v *Virtual) finishBatch(b *virtualUser) {
	if b.going--; b.going > 0 {
		return
	}
	for _, x := range b.members {
		o := &x.row.Outcome
		o.Result, o.FinishReason = traceformat.ResultOK, "length"
		if n := x.longest - x.output; n > 0 {
			v.padding += int64(n)
			x.row.Extra = withField(x.row.Extra, "batch_padding_tokens", n)
		}
		v.finish(x, v.now)
	}
}

// hangUp ends x where the recorded client did.
func (v *Virtual) hangUp(x *virtualCall, at time.Duration) {
	for _, r := range x.reqs {
		v.eng.Abort(r)
	}
	o := &x.row.Outcome
	o.Result, o.Error = traceformat.ResultClientAbort, timeoutErrors[replayedAbort]
	o.Abort = traceformat.Some(at - x.due)
	v.finish(x, at)
}

// finish turns a call that was sent into its row. at is when its answer ended or
// was given up.
func (v *Virtual) finish(x *virtualCall, at time.Duration) {
	o := &x.row.Outcome
	first, last, received := endless, time.Duration(0), x.received()
	for _, r := range x.reqs {
		if r.Output > 0 {
			first, last = min(first, r.First), max(last, r.Last)
		}
	}
	if x.padded() {
		last = x.last
	}
	r := x.reqs[0]
	if x.row.Stream.Or(true) {
		if received > 0 {
			o.TTFT, o.TTFTSource = traceformat.Some(first-x.due), traceformat.TTFTContentEvent
			o.E2E, o.FirstEvent = traceformat.Some(last-x.due), traceformat.Some(first)
			o.ServedPromptTokens, o.ServedOutputTokens = some32(x.prompt), some32(received)
			if o.Result == traceformat.ResultOK { // the end of an answer says it
				o.ServedCachedTokens = some32(r.CachedTokens)
			}
		}
	} else {
		o.ChunkTimes, o.ChunkTokens = o.ChunkTimes[:0], o.ChunkTokens[:0]
		if o.Result == traceformat.ResultOK {
			o.E2E, o.FirstEvent = traceformat.Some(at-x.due), traceformat.Some(at)
			o.ServedPromptTokens, o.ServedOutputTokens = some32(x.prompt), some32(received)
			o.ServedCachedTokens = some32(r.CachedTokens)
		}
	}
	o.CachedTokens, o.Close = o.ServedCachedTokens, traceformat.Some(at)
	if r.Output > 0 && o.Result == traceformat.ResultOK {
		o.ServerQueue, o.ServerPrefill = traceformat.Some(r.Scheduled-r.Queued), traceformat.Some(r.First-r.Scheduled)
		o.ServerTTFT, o.ServerE2E = traceformat.Some(r.First-r.Arrived), traceformat.Some(last-r.Arrived)
	}
	v.inFlight--
	v.progress.inFlight.Store(v.inFlight)
	v.answered(x, at)
	if v.cache.trace != nil || o.ServedCachedTokens.OK {
		v.cache.compare(&x.row, x.implied)
	}
	v.record(x)
}

func some32(n int) traceformat.Opt[int32] { return traceformat.Some(int32(n)) }

// answered releases what waited for x, which ended at a time.
func (v *Virtual) answered(x *virtualCall, at time.Duration) {
	for _, t := range x.children {
		y := v.call(&t.row, x.row.Lap-x.source+t.row.Lap, t.prompt, t.output, t.abort)
		y.shift, y.user = x.shift, x.user
		if y.user != nil {
			y.user.open += len(y.children)
		}
		y.at = v.plan.due(t, x.shift, at)
		v.push(&v.dynamic, y)
	}
	if x.user != nil {
		if x.user.open--; x.user.open == 0 {
			v.free = append(v.free, at)
		}
	}
}

// record passes x on and keeps its memory for another.
func (v *Virtual) record(x *virtualCall) {
	x.settled = true
	if len(x.row.ChunkTimes) == 0 {
		x.row.ChunkTimes, x.row.ChunkTokens = nil, nil
	}
	if v.conf.Record != nil {
		if err := v.conf.Record(&x.row); err != nil && v.err == nil {
			v.err = fmt.Errorf("recording the run: %w", err)
		}
	}
	// One that is to be hung up on is still in that heap.
	if !x.abort.set {
		v.spare = append(v.spare, x)
	}
}

// settleAll records what a run that was stopped has left, and says whether there
// was any.
func (v *Virtual) settleAll() (cut bool) {
	for _, r := range v.eng.All() {
		x := r.Owner.(*virtualCall)
		if x.settled {
			continue
		}
		cut = true
		if x.longest == 0 {
			v.cut(x)
			continue
		}
		for _, m := range x.user.members { // those that have all of theirs too
			v.cut(m)
		}
	}
	return cut
}

// cut gives up x, which a run that was stopped has left.
func (v *Virtual) cut(x *virtualCall) {
	for _, r := range x.reqs {
		v.eng.Abort(r)
	}
	x.children = nil
	o := &x.row.Outcome
	o.Result, o.Error = traceformat.ResultClientAbort, timeoutErrors[interrupted]
	o.Abort = traceformat.Some(max(0, v.now-x.due))
	v.finish(x, max(v.now, x.due))
}

// push adds x to a heap.
func (v *Virtual) push(h *callHeap, x *virtualCall) {
	v.pushed++
	x.order = v.pushed
	heap.Push(h, x)
}

// A callHeap orders calls by their time, and those of one time by their order.
type callHeap []*virtualCall

func (h callHeap) Len() int { return len(h) }
func (h callHeap) Less(i, j int) bool {
	if h[i].at != h[j].at {
		return h[i].at < h[j].at
	}
	return h[i].order < h[j].order
}
func (h callHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *callHeap) Push(x any)   { *h = append(*h, x.(*virtualCall)) }
func (h *callHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return x
}
