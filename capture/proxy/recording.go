package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"reprise/capture"
)

// Why recording was switched off.
const (
	FaultPanic = "panic"     // a fault of this program
	FaultStall = "stall"     // the recorder stopped making progress
	FaultDisk  = "disk"      // rows cannot be written
	FaultOpen  = "no_output" // no new file could be opened
)

// A RecordOptions says how traffic is recorded.
type RecordOptions struct {
	// Open starts the next output. It is called when recording starts, rolls,
	// or comes back after a fault; never concurrently.
	Open     func() (Output, error)
	Recorder capture.Options

	QueueMemory int64         // bytes on their way to the recorder (64 MiB)
	Queue       int           // batches on their way (8192)
	RollEvery   time.Duration // 0: never
	RollSize    int64         // 0: never
	Linger      time.Duration // how long a rolled file waits for its streams (15 min)
	Stall       time.Duration // without progress for so long, recording is off (10 s)
	Retry       time.Duration // first pause after a fault, doubled up to 64 times (15 s)
}

// recording is the second duty of a proxy. begin is called for each exchange,
// run by one goroutine, and the rest by that and the takes.
type recording struct {
	o    RecordOptions
	log  *slog.Logger
	held atomic.Int64         // bytes of batches
	cur  atomic.Pointer[take] // nil: off
	// off counts exchanges that came while recording was off and that no file
	// has accounted for; offTaken those that one has.
	off, offTaken atomic.Int64
	faults        [len(faultNames)]atomic.Int64
	files         atomic.Int64 // finished
	unfinished    atomic.Int64 // whose journals stay

	roll  chan struct{} // cap 1
	takes sync.WaitGroup

	mu     sync.Mutex
	last   *take            // the newest take
	live   map[*take]bool   // takes that run
	past   capture.Accounts // of finished takes
	reason string           // why recording is off
}

var faultNames = [...]string{FaultPanic, FaultStall, FaultDisk, FaultOpen}

func newRecording(o RecordOptions, log *slog.Logger) *recording {
	def(&o.QueueMemory, 64<<20)
	def(&o.Queue, 8192)
	def(&o.Linger, 15*time.Minute)
	def(&o.Stall, 10*time.Second)
	def(&o.Retry, 15*time.Second)
	if o.Recorder.Key == nil {
		o.Recorder.Key = capture.NewKey() // one for all files of this process
	}
	return &recording{o: o, log: log, roll: make(chan struct{}, 1), live: map[*take]bool{}, past: capture.Accounts{Reasons: map[string]int64{}}, reason: FaultOpen}
}

func def[T int | int64 | time.Duration](v *T, value T) {
	if *v == 0 {
		*v = value
	}
}

// begin returns the tap of a new exchange, nil where it is not recorded. at is
// the time of its first byte.
func (c *recording) begin(client string, at int64) *tap {
	if c == nil {
		return nil
	}
	for {
		k := c.cur.Load()
		if k == nil {
			c.off.Add(1)
			return nil
		}
		k.open.Add(1)
		if !k.retired.Load() {
			return &tap{take: k, client: client, begun: max(at, k.start.UnixNano())}
		}
		k.open.Add(-1)
		k.wake()
	}
}

// start opens the first output, whose error is returned: what cannot work at
// the start should be said at the start.
func (c *recording) start(at int64) error {
	k, err := c.open(at)
	if err != nil {
		return err
	}
	c.become(k)
	return nil
}

func (c *recording) open(at int64) (_ *take, err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("opening an output panicked")
		}
	}()
	out, err := c.o.Open()
	if err != nil {
		return nil, err
	}
	k := &take{c: c, out: out, start: time.Unix(0, at), queue: make(chan *batch, c.o.Queue), kick: make(chan struct{}, 1), ended: make(chan struct{}), names: canonical{}}
	o := c.o.Recorder
	o.Start = k.start
	if k.rec, err = capture.NewRecorder(sink{k}, o); err != nil {
		out.Close()
		return nil, err
	}
	// What a crash leaves behind should say whose it is.
	if err := out.SetHeader(k.rec.Header()); err != nil {
		out.Close()
		return nil, err
	}
	a := k.rec.Accounts()
	k.accounts.Store(&a)
	return k, nil
}

// become makes k the current take and retires the one before.
func (c *recording) become(k *take) {
	c.mu.Lock()
	before := c.last
	c.last, c.reason = k, ""
	c.live[k] = true
	c.mu.Unlock()
	c.takes.Go(k.run)
	c.cur.Store(k)
	if before != nil {
		before.retire()
		time.AfterFunc(c.o.Linger, before.abandon)
	}
}

// fault switches recording off because of k.
func (c *recording) fault(k *take, reason string) {
	if !c.cur.CompareAndSwap(k, nil) {
		return
	}
	c.mu.Lock()
	c.reason = reason
	c.mu.Unlock()
	c.count(reason)
	c.log.Error("recording is off, traffic goes on", "reason", reason)
}

func (c *recording) count(reason string) {
	for i, name := range faultNames {
		if name == reason {
			c.faults[i].Add(1)
		}
	}
}

// finished accounts for a take whose output is closed.
func (c *recording) finished(k *take, err error) {
	a := *k.accounts.Load()
	c.mu.Lock()
	delete(c.live, k)
	c.past = sum(c.past, a)
	c.mu.Unlock()
	if err != nil {
		c.unfinished.Add(1)
		c.log.Error("a recording could not be finished, its journal stays", "error", err)
		return
	}
	c.files.Add(1)
	c.log.Info("a recording is finished", "accounts", a.String())
}

func sum(a, b capture.Accounts) capture.Accounts {
	s := capture.Accounts{Seen: a.Seen + b.Seen, Recorded: a.Recorded + b.Recorded, Open: a.Open + b.Open, Reasons: maps.Clone(a.Reasons)}
	for reason, n := range b.Reasons {
		s.Reasons[reason] += n
	}
	return s
}

// accounts is what became of every exchange of the process, and why recording
// is off, "" while it is on.
func (c *recording) accounts() (a capture.Accounts, off string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a = sum(c.past, capture.Accounts{})
	for k := range c.live {
		a = sum(a, *k.accounts.Load())
	}
	if n := c.off.Load(); n > 0 {
		a.Seen += n
		a.Reasons[ReasonOff] += n
	}
	return a, c.reason
}

// queued is how many batches wait.
func (c *recording) queued() int {
	if k := c.cur.Load(); k != nil {
		return len(k.queue)
	}
	return 0
}

// run watches over the takes until ctx ends: it rolls, notices a stall, and
// brings recording back after a fault. now is the proxy's anchor.
func (c *recording) run(ctx context.Context, now func() int64) {
	tick := time.NewTicker(watch)
	defer tick.Stop()
	var steps int64
	pause := c.o.Retry
	moved, retry, healthy := time.Now(), time.Now(), time.Now()
	for {
		asked := false
		select {
		case <-ctx.Done():
			return
		case <-c.roll:
			asked = true
		case <-tick.C:
		}
		c.mu.Lock()
		k, reason := c.last, c.reason
		c.mu.Unlock()
		if n := k.steps.Load(); n != steps || !k.busy.Load() {
			steps, moved = n, time.Now()
		}
		switch {
		case reason == "":
			if time.Since(healthy) > 64*c.o.Retry {
				pause = c.o.Retry
			}
			retry = time.Now().Add(pause)
			if time.Since(moved) > c.o.Stall {
				c.fault(k, FaultStall)
				continue
			}
			age := time.Duration(now() - k.start.UnixNano())
			if asked || c.o.RollEvery > 0 && age >= c.o.RollEvery || c.o.RollSize > 0 && k.out.Size() >= c.o.RollSize {
				c.next(now())
			}
		case reason == FaultStall && time.Since(moved) < watch:
			c.resume(k)
		case time.Now().Before(retry) && !asked:
		default:
			healthy = time.Now()
			retry = healthy.Add(pause)
			if reason == FaultDisk && !k.broken.Load() && !asked {
				err := k.out.Sync()
				if err == nil {
					k.diskErr.Store(false)
					c.resume(k)
					continue
				}
				if full(err) {
					retry = healthy.Add(c.o.Retry)
					continue
				}
			}
			// The fault does not pass, so that another output has to go on.
			pause = min(2*pause, 64*c.o.Retry)
			c.next(now())
		}
	}
}

// watch is how often run looks.
const watch = 250 * time.Millisecond

// full reports whether a write failed for want of space.
func full(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// maxTakes bounds how many outputs are open at once: each that hangs keeps
// its own.
const maxTakes = 16

// next goes on with a new output, if one can be opened.
func (c *recording) next(at int64) {
	c.mu.Lock()
	n := len(c.live)
	c.mu.Unlock()
	if n >= maxTakes {
		return
	}
	k, err := c.open(at)
	if err != nil {
		c.count(FaultOpen)
		c.log.Error("no new recording could be started", "error", err)
		return
	}
	c.become(k)
	c.log.Info("a recording is started")
}

// resume goes on with the take that recording went off with.
func (c *recording) resume(k *take) {
	c.mu.Lock()
	c.reason = ""
	c.mu.Unlock()
	c.cur.CompareAndSwap(nil, k)
	c.log.Info("recording is on again")
}

// An UnfinishedError says that files could not be closed. Traffic was not
// disturbed.
type UnfinishedError struct{ Files int64 }

func (e *UnfinishedError) Error() string {
	return fmt.Sprintf("recordings that could not be finished: %d; trace recover saves what their journals hold", e.Files)
}

// stop ends recording: exchanges that have not ended are recorded as cut off.
// It returns when all outputs are finished, or give is over; then a journal is
// left behind.
func (c *recording) stop(give time.Duration) error {
	c.cur.Store(nil)
	c.mu.Lock()
	for k := range c.live {
		k.retire()
		time.AfterFunc(give/2, k.abandon)
	}
	c.mu.Unlock()
	ended := make(chan struct{})
	go func() {
		c.takes.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		if n := c.unfinished.Load(); n > 0 {
			return &UnfinishedError{n}
		}
		return nil
	case <-time.After(give):
		return errors.New("the recorder hangs: trace recover saves what its journal holds")
	}
}
