package replay

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"reprise/backends"
	"reprise/internal/clock"
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

	// sleep waits until a clock reading; tests under a faked clock replace it.
	sleep func(until time.Duration)
}

// Progress may be read while the run goes on.
type Progress struct {
	sent, shed, inFlight, peak, retries, tokens atomic.Int64
	started                                     atomic.Int64 // clock reading
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
	if start != 0 {
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
}

// Bounds of the look-ahead: how many requests, and how many bytes of bodies,
// are encoded before their time.
const (
	aheadRequests = 512
	aheadBytes    = 32 << 20
)

// lead is the time between the end of preparations and the first send. It
// covers the look-ahead filling up.
const lead = 200 * time.Millisecond

type run struct {
	Config
	plan     *Plan
	progress *Progress
	start    time.Duration // clock reading of the run's zero

	workers []*worker
	records chan *exchange
	flying  sync.WaitGroup // exchanges that Record has not seen
	budget  byteBudget

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
	r.halt = sync.OnceFunc(func() { close(r.halted) })
	if r.progress == nil {
		r.progress = &Progress{}
	}
	if r.sleep == nil {
		r.sleep = clock.SleepUntil
	}
	r.budget.init(aheadBytes)
	stats := &Stats{}

	// As many connections as the busiest second opens at most. Opening them
	// inside a burst is what costs.
	if err := c.Client.Warm(int(min(p.PeakRate, maxWarm))); err != nil {
		stats.WarmError = wireClass(err)
	}

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

	ahead := make(chan *exchange, aheadRequests)
	preparing := make(chan struct{})
	go func() {
		defer close(preparing)
		defer close(ahead)
		r.prepare(ahead)
	}()
	// The first bodies are ready before the clock starts.
	select {
	case <-preparing:
	case <-time.After(lead):
	case <-r.halted:
	}
	r.start = clock.Now() + lead
	stats.StartedAt = time.Now().Add(lead)
	r.progress.started.Store(int64(r.start))

	paced := make(chan struct{})
	go func() {
		defer close(paced)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		r.pace(ahead)
	}()
	<-paced
	r.budget.close()
	<-preparing
	for x := range ahead {
		r.budget.release(len(x.req.Body))
	}
	r.flying.Wait()
	stats.Elapsed = clock.Now() - r.start
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
	stats.Interrupted = stats.Unsent > 0
	if err := context.Cause(ctx); r.err == nil && err != nil {
		r.err = err
	}
	return stats, r.err
}

// maxWarm bounds the connections opened ahead.
const maxWarm = 4096

// prepare reads the trace and encodes what is to be sent, in order.
func (r *run) prepare(ahead chan<- *exchange) {
	var ids []uint32
	var text textWriter
	seq := 0
	for it, err := range r.plan.items() {
		if err != nil {
			r.fail(err)
			return
		}
		x := &exchange{run: r, prompt: it.prompt, output: it.output, due: it.due}
		x.row.Request = it.row.Clone().Request
		x.row.Lap = it.lap
		x.row.Arrival = it.due
		x.worker = r.workers[seq%len(r.workers)]
		seq++
		ids = r.plan.prompts.append(ids[:0], &x.row.Request, it.prompt, it.lap)
		call := backends.Call{ID: requestID(&x.row), MaxTokens: it.output, N: int(max(1, it.row.N.Or(1))), Stream: it.row.Stream.Or(true)}
		if r.Backend.TokenIDs() {
			call.PromptIDs = ids
		} else {
			call.Text = text.write(ids)
		}
		x.row.PromptDigest = traceformat.Some(promptDigest(ids, call.Text))
		x.req.Method = "POST"
		x.req.Path, x.req.Body = r.Backend.Encode(make([]byte, 0, 512+6*it.prompt), &call)
		x.req.Header = append(r.Header[:len(r.Header):len(r.Header)], wire.Field{Name: "X-Request-Id", Value: call.ID})
		x.dec = r.Backend.NewDecoder(&call)
		if !r.budget.take(len(x.req.Body)) {
			return
		}
		select {
		case ahead <- x:
		case <-r.halted:
			return
		}
	}
}

// requestID names a request at the server, the same in every run of a trace.
func requestID(row *traceformat.Row) string {
	return "reprise-" + strconv.Itoa(int(row.Lap)) + "-" + strconv.FormatInt(row.ID, 10)
}

func (r *run) newDecoder(x *exchange) backends.Decoder {
	return r.Backend.NewDecoder(&backends.Call{ID: requestID(&x.row), MaxTokens: x.output, N: int(max(1, x.row.N.Or(1))), Stream: x.row.Stream.Or(true)})
}

// nap bounds one sleep of the pacer, so that it sees a halt soon.
const nap = 100 * time.Millisecond

// pace sends each request at its time. It is the only goroutine that does.
func (r *run) pace(ahead <-chan *exchange) {
	for {
		var x *exchange
		select {
		case <-r.halted:
			return
		case next, ok := <-ahead:
			if !ok {
				return
			}
			x = next
		}
		due := r.start + x.due
		for now := clock.Now(); now < due; now = clock.Now() {
			r.sleep(min(due, now+nap))
			select {
			case <-r.halted:
				r.budget.release(len(x.req.Body))
				return
			default:
			}
		}
		r.launch(x)
	}
}

func (r *run) launch(x *exchange) {
	x.wake = clock.Now()
	r.flying.Add(1)
	r.budget.release(len(x.req.Body))
	if limit := int64(r.plan.Options.MaxInFlight); limit > 0 && r.progress.inFlight.Load() >= limit {
		// Waiting for a place would let a slow server slow the schedule and
		// hide the very stall that is measured. Shed, and say so.
		r.progress.shed.Add(1)
		o := &x.row.Outcome
		digest := o.PromptDigest
		*o = traceformat.Outcome{Result: traceformat.ResultShed, Error: "max_in_flight", PromptDigest: digest}
		o.Scheduled, o.Wake = traceformat.Some(x.due), traceformat.Some(x.wake-r.start)
		r.record(x)
		return
	}
	r.progress.sent.Add(1)
	if n := r.progress.inFlight.Add(1); n > r.progress.peak.Load() {
		r.progress.peak.Store(n)
	}
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
	x.call = call
	x.mu.Unlock()
	if x.timeout.Load() != noTimeout {
		call.Abort() // it was given up between two attempts
	}
}

// resend sends x once more, after a pause that grows with the attempts.
func (r *run) resend(x *exchange) {
	r.progress.retries.Add(1)
	digest := x.row.PromptDigest
	x.reset()
	x.row.PromptDigest = digest
	pause := min(100*time.Millisecond<<min(x.attempts-1, 10), 10*time.Second)
	time.AfterFunc(pause, func() {
		if r.stopping() {
			x.timeout.CompareAndSwap(noTimeout, interrupted)
			x.Close(clock.Now(), wire.ErrAborted)
			return
		}
		r.send(x)
	})
}

// record passes a finished exchange on.
func (r *run) record(x *exchange) {
	x.settled.Store(true)
	if x.row.Result != traceformat.ResultShed {
		r.progress.inFlight.Add(-1)
	}
	r.records <- x
}

func (r *run) recordAll() {
	for x := range r.records {
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
			victims = append(victims, x)
		}
	}
	clear(r.live[len(kept):])
	r.live = kept
	r.mu.Unlock()
	for _, x := range victims {
		x.mu.Lock()
		call := x.call
		x.mu.Unlock()
		if call != nil {
			call.Abort()
		}
	}
}

// A byteBudget bounds the bytes of bodies that wait for their time.
type byteBudget struct {
	mu     sync.Mutex
	freed  sync.Cond
	free   int
	size   int
	closed bool
}

func (b *byteBudget) init(n int) { b.free, b.size = n, n; b.freed.L = &b.mu }

// take waits until n bytes are free. A body larger than the whole budget waits
// until it is alone. It returns false once the budget is closed.
func (b *byteBudget) take(n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.free < min(n, b.size) && !b.closed {
		b.freed.Wait()
	}
	b.free -= n
	return !b.closed
}

func (b *byteBudget) release(n int) {
	b.mu.Lock()
	b.free += n
	b.freed.Signal()
	b.mu.Unlock()
}

func (b *byteBudget) close() {
	b.mu.Lock()
	b.closed = true
	b.freed.Broadcast()
	b.mu.Unlock()
}
