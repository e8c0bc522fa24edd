package replay

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"reprise/backends"
	"reprise/internal/clock"
	"reprise/internal/wallclock"
	"reprise/internal/wire"
	"reprise/traceformat"
)

// A Config is what Run needs besides the plan.
type Config struct {
	Backend backends.Backend
	Client  wire.Client
	Header  []wire.Field // sent with every request: authorisation
	// Record is given every request once, in the order of completion, with its
	// outcome. It is never called concurrently and may not keep the row. Its
	// error stops the run; what was in flight is still offered to it.
	Record func(*traceformat.Row) error
	// Progress, if set, is updated as the run goes.
	Progress *Progress
	// Drain, when closed, stops the sending; requests in flight have
	// Options.Grace to end. Cancelling the context stops at once.
	Drain <-chan struct{}
	// Clock is what Options.CheckClock returned, and Reference what it asked: a
	// common start is by that clock. Both may be nil.
	Clock     *wallclock.Check
	Reference Reference

	// newAlarm makes the pacer's alarm; tests under a faked clock replace it.
	newAlarm func() (alarm, error)
}

// Progress may be read while the run goes on.
type Progress struct {
	sent, shed, inFlight, peak, retries, tokens atomic.Int64
	started                                     atomic.Int64 // clock reading
	virtual                                     atomic.Int64 // time of a run in virtual time, beyond its zero by 1; 0: it is none
}

// A Snapshot is Progress at one moment.
type Snapshot struct {
	Elapsed                             time.Duration // since the first scheduled send; negative before it
	Sent, Shed, InFlight, Peak, Retries int64
	Tokens                              int64 // received
}

// Snapshot reads p. Started is false before the first scheduled send is known.
func (p *Progress) Snapshot() (s Snapshot, started bool) {
	start := p.started.Load()
	if v := p.virtual.Load(); v != 0 {
		s.Elapsed, start = time.Duration(v-1), v
	} else if start != 0 {
		s.Elapsed = clock.Now() - time.Duration(start)
	}
	s.Sent, s.Shed, s.InFlight, s.Peak = p.sent.Load(), p.shed.Load(), p.inFlight.Load(), p.peak.Load()
	s.Retries, s.Tokens = p.retries.Load(), p.tokens.Load()
	return s, start != 0
}

// Stats say how a run went, beyond its rows.
type Stats struct {
	StartedAt   time.Time     `json:"started_at"`           // wall clock of the run's zero
	Elapsed     time.Duration `json:"elapsed_ns"`           // from zero to the end of the last answer
	Sent        int64         `json:"requests_sent"`        // handed to the wire client
	Shed        int64         `json:"requests_shed"`        // at --max-in-flight
	Unsent      int64         `json:"requests_unsent"`      // planned and never due: the run was stopped
	Retries     int64         `json:"retries"`              // sends beyond the first of a request
	Peak        int64         `json:"in_flight_peak"`       //
	Interrupted bool          `json:"interrupted"`          // stopped before the end of the plan
	WarmError   string        `json:"warm_error,omitempty"` // connections could not be opened ahead
	// Clock is the comparison that a common start rests on; StartedAt is by the
	// reference's clock.
	Clock *wallclock.Check `json:"clock,omitempty"`
	Batch *BatchRecord     `json:"batch,omitempty"` // of --batch

	cache *cacheTally // for CacheRecord.Finish
}

// lead is the time between the end of preparations and the first send. It
// covers the look-ahead filling up.
const lead = 200 * time.Millisecond

// An alarm is what the pacer sleeps on: see clock.Alarm.
type alarm interface {
	SleepUntil(time.Duration)
	Wake()
	Close()
}

type run struct {
	Config
	plan     *Plan
	progress *Progress
	start    time.Duration // clock reading of the run's zero

	workers   []*worker
	encoded   atomic.Int64
	records   chan *exchange
	flying    sync.WaitGroup // exchanges that Record has not seen
	queue     *queue
	cache     *cacheTally
	batching  *batching // nil unless batches are sent
	waker     atomic.Pointer[alarm]
	spareIdle int64         // connections idle when more were last asked for,
	spareAt   time.Duration // and when
	cut       atomic.Bool   // a request was given up because the run was stopped
	compared  *wallclock.Check

	mu     sync.Mutex
	live   []*exchange   // for timeouts; swept of the finished ones
	halted chan struct{} // closed when nothing more may be sent
	halt   func()
	err    error // of Record or of reading the trace
}

// Run plays the plan and returns when every request has ended and no goroutine
// is left. The error is the first of the trace, of Record, or ctx's; Stats are
// valid in any case.
func (p *Plan) Run(ctx context.Context, c Config) (*Stats, error) {
	r := &run{Config: c, plan: p, progress: c.Progress, records: make(chan *exchange, 1024), halted: make(chan struct{})}
	r.queue = newQueue(r.wakePacer, p.Options.places())
	if p.Options.Batch > 0 {
		r.batching = newBatching(c.Backend)
	}
	r.halt = sync.OnceFunc(func() {
		close(r.halted)
		r.queue.halt()
	})
	if r.progress == nil {
		r.progress = &Progress{}
	}
	if r.newAlarm == nil {
		r.newAlarm = func() (alarm, error) { return clock.NewAlarm() }
	}
	r.cache = newCacheTally(int(p.Header.Blocks.Size), p.cacheInfo)
	stats := &Stats{cache: r.cache}

	var background, decoding sync.WaitGroup
	for range max(1, min(4, runtime.GOMAXPROCS(0)/2)) {
		w := newWorker()
		r.workers = append(r.workers, w)
		decoding.Go(w.loop)
	}
	recorded := make(chan struct{})
	go func() {
		defer close(recorded)
		r.recordAll()
	}()
	stopped, stop := context.WithCancel(context.Background())
	background.Go(func() { r.watch(ctx, stopped) })

	// Opening connections inside a burst is what costs. An interrupt does not
	// wait for it: closing the client ends it.
	warmed := make(chan error, 1)
	go func() { warmed <- c.Client.Warm(min(p.Connections, MaxWarm)) }()
	select {
	case err := <-warmed:
		if err != nil {
			stats.WarmError = wireClass(err)
		}
	case <-r.halted:
	}

	// The first bodies are ready before the clock starts.
	prepared := make(chan struct{})
	go func() {
		defer close(prepared)
		defer r.queue.end()
		r.prepare()
	}()
	select {
	case <-prepared:
	case <-time.After(lead):
	case <-r.halted:
	}
	wait, ahead := lead, time.Duration(0)
	if at := p.Options.StartAt; !at.IsZero() {
		var err error
		if wait, ahead, err = r.untilStart(ctx, at); err != nil {
			r.fail(err)
		}
		stats.Clock = r.compared
	}
	r.start = clock.Now() + wait
	stats.StartedAt = wallclock.Now().Add(wait + ahead)
	r.progress.started.Store(int64(r.start))

	paced := make(chan error)
	go func() { paced <- r.pace() }()
	if err := <-paced; err != nil {
		r.fail(err)
	}
	<-prepared
	r.flying.Wait()
	stats.Elapsed = max(0, clock.Now()-r.start)
	for _, w := range r.workers {
		w.halt()
	}
	decoding.Wait()
	close(r.records)
	<-recorded
	stop()
	background.Wait()

	s, _ := r.progress.Snapshot()
	stats.Sent, stats.Shed, stats.Peak, stats.Retries = s.Sent, s.Shed, s.Peak, s.Retries
	stats.Unsent = p.Rows - s.Sent - s.Shed
	if r.batching != nil {
		stats.Batch = r.batching.record(p.Options.Batch)
	}
	stats.Interrupted = stats.Unsent > 0 || r.cut.Load()
	if err := context.Cause(ctx); r.err == nil && err != nil {
		r.err = err
	}
	return stats, r.err
}

// MaxWarm bounds the connections opened ahead.
const MaxWarm = 4096

// prepare reads the trace and encodes what the schedule sends, in order.
func (r *run) prepare() {
	var e encoder
	var batches *gatherer
	if r.batching != nil {
		batches = &gatherer{r: r, n: r.plan.Options.Batch}
		defer batches.flush()
	}
	for it, err := range r.plan.allItems() {
		if err != nil {
			r.fail(err)
			return
		}
		if !r.plan.Options.Shard.has(it) {
			// Its prompt warms the server's cache for ours.
			y := &exchange{prompt: it.prompt, output: it.output, others: true}
			y.row.Request, y.row.Lap = it.row.Clone().Request, it.lap
			r.cache.sent(y)
			continue
		}
		x, call := r.encode(&e, it.row.Clone(), it.lap, it.prompt, it.output, it.abort)
		if batches != nil {
			call.PromptIDs = slices.Clone(call.PromptIDs) // the encoder's, until the batch is encoded
			if !batches.add(x, call) {
				return
			}
			continue
		}
		x.reschedule(it.due)
		x.shift = it.due - r.plan.scale(it.row.Arrival-r.plan.Base)
		if r.plan.Options.Concurrency > 0 {
			x.user = &user{}
			x.user.open.Store(1 + int64(len(x.children)))
		}
		if !r.queue.push(x) {
			return
		}
	}
}

// An encoder holds what encoding one request after another reuses.
type encoder struct {
	ids  []uint32
	text textWriter
}

// encode makes the exchange of a row, which it keeps. The call is what was
// encoded; its prompt is the encoder's.
func (r *run) encode(e *encoder, row *traceformat.Row, lap int32, prompt, output int, a abort) (*exchange, *backends.Call) {
	x := &exchange{run: r, prompt: prompt, output: output, abort: a, source: row.Lap}
	x.row.Request = row.Request
	x.clip()
	x.worker = r.workers[int(r.encoded.Add(1))%len(r.workers)]
	if r.plan.talks != nil {
		x.children = r.plan.talks.turns[requestKey{row.ID, row.Lap}]
		for range x.children {
			r.queue.park()
		}
	}
	x.row.Lap = lap
	e.ids = r.plan.prompts.append(e.ids[:0], &x.row.Request, prompt-r.plan.template(), lap)
	call := x.call()
	if r.Backend.TokenIDs() {
		call.PromptIDs = e.ids
	} else {
		call.Text = e.text.write(r.plan.Words, e.ids)
	}
	x.digest = promptDigest(e.ids, call.Text)
	x.req.Method = "POST"
	x.req.Path, x.req.Body = r.Backend.Encode(make([]byte, 0, 512+6*prompt), call)
	x.req.Header = append(r.Header[:len(r.Header):len(r.Header)], wire.Field{Name: requestIDHeader, Value: call.ID})
	if name := r.plan.Options.SessionHeader; name != "" && row.Session.OK {
		x.req.Header = append(x.req.Header, wire.Field{Name: name, Value: sessionID(&x.row)})
	}
	x.dec = r.Backend.NewDecoder(call)
	return x, call
}

// answered releases the turns that waited for x.
func (r *run) answered(x *exchange, at time.Duration) {
	if len(x.children) > 0 && !r.stopping() {
		var e encoder
		for _, t := range x.children {
			// A turn is in the same round of the plan as what it continues.
			y, _ := r.encode(&e, t.row.Clone(), x.row.Lap-x.source+t.row.Lap, t.prompt, t.output, t.abort)
			y.reschedule(r.plan.due(t, x.shift, at))
			y.shift = x.shift
			if y.user = x.user; y.user != nil {
				y.user.open.Add(int64(len(y.children)))
			}
			r.queue.release(y)
		}
	}
	if x.user != nil && x.user.open.Add(-1) == 0 {
		r.queue.leave(at)
	}
	if x.in != nil {
		x.in.leave(r.queue, at)
	}
}

const requestIDHeader = "X-Request-Id"

// sessionID names a session at the server, the same in every run of a trace.
func sessionID(row *traceformat.Row) string {
	return "reprise-" + strconv.Itoa(int(row.Lap)) + "-" + strconv.FormatInt(row.Session.V, 10)
}

// requestID names a request at the server, the same in every run of a trace.
func requestID(row *traceformat.Row) string {
	return "reprise-" + strconv.Itoa(int(row.Lap)) + "-" + strconv.FormatInt(row.ID, 10)
}

func (r *run) wakePacer() {
	if a := r.waker.Load(); a != nil {
		(*a).Wake()
	}
}

// pace sends each request at its time. It is the only goroutine that does, but
// for retries.
func (r *run) pace() error {
	a, err := r.newAlarm()
	if err != nil {
		return err
	}
	defer a.Close()
	r.waker.Store(&a)
	defer r.waker.Store(nil)
	for {
		x, at, over := r.queue.next(r.start)
		switch {
		case over:
			return nil
		case x == nil:
			// Within the spin the queue is asked again and again instead.
			if at -= r.plan.Options.Spin; clock.Now() < at {
				a.SleepUntil(at)
			}
		case x.batch != nil:
			r.launchBatch(x)
		default:
			r.launch(x)
		}
	}
}

func (r *run) launch(x *exchange) {
	x.wake = clock.Now()
	r.flying.Add(1)
	if limit := int64(r.plan.Options.MaxInFlight); limit > 0 && r.progress.inFlight.Load() >= limit {
		// Waiting for a place would let a slow server slow the schedule and
		// hide the very stall that is measured. Shed, and say so.
		r.progress.shed.Add(1)
		o := &x.row.Outcome
		o.Result, o.Error = traceformat.ResultShed, "max_in_flight"
		o.Scheduled, o.Wake = traceformat.Some(x.due), traceformat.Some(x.wake-r.start)
		// What follows may wait for a disk, and the pacer may not.
		x.shed = true
		x.worker.push(x)
		return
	}
	r.progress.sent.Add(1)
	if n := r.progress.inFlight.Add(1); n > r.progress.peak.Load() {
		r.progress.peak.Store(n)
	}
	r.cache.sent(x)
	r.send(x)
	r.mu.Lock()
	r.live = append(r.live, x)
	r.mu.Unlock()
}

func (r *run) send(x *exchange) {
	x.attempts++
	x.lastRead.Store(int64(clock.Now()))
	call := r.Client.Start(&x.req, x)
	x.mu.Lock()
	x.flight = call
	x.mu.Unlock()
	if x.timeout.Load() != noTimeout {
		call.Abort() // it was given up between two attempts
	}
}

// resend sends x once more, after a pause that grows with the attempts.
func (r *run) resend(x *exchange) {
	r.progress.retries.Add(1)
	x.reset()
	pause := min(100*time.Millisecond<<min(x.attempts-1, 10), 10*time.Second)
	go func() {
		select {
		case <-time.After(pause):
			r.send(x)
		case <-r.halted:
			r.cut.Store(true)
			x.timeout.CompareAndSwap(noTimeout, interrupted)
			x.Close(clock.Now(), wire.ErrAborted)
		}
	}()
}

// record passes a finished exchange on.
func (r *run) record(x *exchange) {
	x.settled.Store(true)
	if x.abortTimer != nil {
		x.abortTimer.Stop()
	}
	if x.row.Result != traceformat.ResultShed {
		r.progress.inFlight.Add(-1)
	}
	r.records <- x
}

func (r *run) recordAll() {
	for x := range r.records {
		r.cache.answered(x)
		if r.Record != nil {
			if err := r.Record(&x.row); err != nil {
				r.fail(fmt.Errorf("recording the run: %w", err))
			}
		}
		r.flying.Done()
	}
}

// fail stops the sending because of err.
func (r *run) fail(err error) {
	r.mu.Lock()
	if r.err == nil {
		r.err = err
	}
	r.mu.Unlock()
	r.halt()
}

func (r *run) stopping() bool {
	select {
	case <-r.halted:
		return true
	default:
		return false
	}
}

// sweep is how often timeouts are looked for; they are far longer.
const sweep = 50 * time.Millisecond

// watch hangs up on requests whose time is over, and on all of them when the
// run is stopped.
func (r *run) watch(ctx, stopped context.Context) {
	tick := time.NewTicker(sweep)
	defer tick.Stop()
	drain, cancelled := r.Drain, ctx.Done()
	var deadline time.Duration // of the grace period
	draining, abandon := false, false
	for {
		select {
		case <-stopped.Done():
			return
		case <-drain:
			drain = nil
			r.halt()
			draining, deadline = true, clock.Now()+r.plan.Options.Grace
		case <-cancelled:
			cancelled = nil
			r.halt()
			abandon = true
		case <-tick.C:
		}
		if draining && clock.Now() > deadline {
			abandon = true
		}
		r.expire(abandon)
		r.reserve()
	}
}

// reserve keeps connections open for the next moments where requests in flight
// have taken what was opened ahead: a server that is slower than guessed, or one
// that closes each connection after its answer.
func (r *run) reserve() {
	spare := max(32, min(r.plan.PeakRate, 1024))
	if left := r.plan.Rows - r.progress.sent.Load() - r.progress.shed.Load(); left < spare {
		spare = left
	}
	if limit := int64(r.plan.Options.MaxInFlight); limit > 0 {
		spare = min(spare, limit-r.progress.inFlight.Load())
	}
	idle := r.Client.Stats().Idle
	if idle < 0 || idle >= spare {
		return
	}
	// Those asked for last may still be opening, or the server may not answer.
	if now := clock.Now(); idle > r.spareIdle || now-r.spareAt > time.Second {
		r.spareIdle, r.spareAt = idle, now
		r.Client.Spare(int(spare - idle))
	}
}

func (r *run) expire(all bool) {
	now := clock.Now()
	o := &r.plan.Options
	r.mu.Lock()
	kept := r.live[:0]
	var victims []*exchange
	for _, x := range r.live {
		if x.settled.Load() {
			continue
		}
		kept = append(kept, x)
		why := noTimeout
		switch {
		case all:
			why = interrupted
		case o.TotalTimeout > 0 && now-x.wake > o.TotalTimeout:
			why = totalTimeout
		case o.FirstTokenTimeout > 0 && now-x.wake > o.FirstTokenTimeout && !x.gotToken.Load() && x.row.Stream.Or(true):
			why = firstTokenTimeout
		case o.IdleTimeout > 0 && x.gotToken.Load() && now-time.Duration(x.lastRead.Load()) > o.IdleTimeout:
			why = idleTimeout
		}
		if why != noTimeout && x.timeout.CompareAndSwap(noTimeout, why) {
			if why == interrupted {
				r.cut.Store(true)
			}
			victims = append(victims, x)
		}
	}
	clear(r.live[len(kept):])
	r.live = kept
	r.mu.Unlock()
	for _, x := range victims {
		x.mu.Lock()
		call := x.flight
		x.mu.Unlock()
		if call != nil {
			call.Abort()
		}
	}
}
