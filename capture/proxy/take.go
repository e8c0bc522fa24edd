package proxy

import (
	"errors"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"reprise/capture"
	"reprise/traceformat"
)

// An Output is one file that is being recorded.
type Output interface {
	capture.Sink
	SetHeader(*traceformat.Header) error
	// Sync returns nil if what was appended is safe, and the output takes more.
	Sync() error
	// Size is how large the file is by now.
	Size() int64
	// Close finishes the file.
	Close() error
}

// gather is how long the recorder lets batches gather once it has caught up.
// To the traffic, putting a batch into a queue nobody waits at costs a tenth of
// waking a thread.
const gather = 5 * time.Millisecond

// A take is the recording of the exchanges that begin while it is the current
// one, into one output. One goroutine, run, feeds its recorder.
type take struct {
	c     *recording
	rec   *capture.Recorder
	out   Output
	start time.Time

	queue chan *batch
	kick  chan struct{} // cap 1: look at what is beside the queue
	ended chan struct{} // closed when run returns

	open    atomic.Int64 // exchanges that are not settled
	retired atomic.Bool  // another take is the current one
	broken  atomic.Bool  // nothing is recorded any more
	diskErr atomic.Bool  // the output refused a row
	steps   atomic.Int64 // what run has done, to see it stall
	busy    atomic.Bool  // run is at work
	names   canonical    // run's
	panics  int64        // that the recorder has contained; run's

	mu   sync.Mutex
	lost []*tap // begun at the recorder, and given up
	// drops counts exchanges that were given up before that.
	drops [lostReasons]atomic.Int64

	accounts atomic.Pointer[capture.Accounts] // as of the last time run looked
}

func (k *take) reserve(n int64) bool {
	if k.c.held.Add(n) > k.c.o.QueueMemory {
		k.c.held.Add(-n)
		return false
	}
	return true
}

func (k *take) release(n int64) { k.c.held.Add(-n) }

// push queues a batch, or returns false at once.
func (k *take) push(b *batch) bool {
	if k.broken.Load() {
		return false
	}
	select {
	case k.queue <- b:
		if k.broken.Load() {
			k.discard() // run may have emptied the queue for good just before
		}
		return true
	default:
		return false
	}
}

// done settles an exchange that has ended, unless the recorder is going to.
func (k *take) done(t *tap) {
	why := t.lost.Load()
	switch {
	case why == 0:
		return
	case t.sent:
		k.mu.Lock()
		k.lost = append(k.lost, t)
		k.mu.Unlock()
	case k.broken.Load():
		k.c.off.Add(1)
	default:
		k.drops[why].Add(1)
		k.open.Add(-1)
	}
	k.wake()
}

func (k *take) wake() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

// retire ends the take once the exchanges that belong to it have ended.
func (k *take) retire() {
	k.retired.Store(true)
	k.wake()
}

// abandon ends the take as soon as run gets to it.
func (k *take) abandon() {
	k.broken.Store(true)
	k.retire()
}

// run feeds the recorder until the take is over, then finishes the output.
func (k *take) run() {
	defer close(k.ended)
	defer func() {
		if recover() != nil {
			k.crash()
		}
	}()
	for {
		k.busy.Store(false)
		select {
		case b := <-k.queue:
			k.busy.Store(true)
			k.play(b)
		case <-k.kick:
			k.busy.Store(true)
		}
		for worked := true; worked; {
			worked = k.drain()
			k.settle()
			if k.over() {
				k.finish()
				return
			}
			if worked {
				time.Sleep(gather)
			}
		}
	}
}

// drain plays what is queued by now and reports whether anything was.
func (k *take) drain() bool {
	n := len(k.queue)
	for range n {
		k.play(<-k.queue)
	}
	return n > 0
}

func (k *take) play(b *batch) {
	t := b.tap
	if !t.ended {
		b.play(k.rec, k.names)
		if t.ended {
			k.open.Add(-1)
		}
	}
	k.release(b.cost())
	b.put()
	k.steps.Add(1)
}

// settle accounts for what did not come through the queue.
func (k *take) settle() {
	k.mu.Lock()
	lost := k.lost
	k.lost = nil
	k.mu.Unlock()
	if len(lost) > 0 {
		k.drain() // what was queued of them comes before their end
	}
	for _, t := range lost {
		if t.ended {
			continue
		}
		if reason := lostNames[t.lost.Load()]; t.x != nil {
			t.x.Drop(reason)
		} else {
			k.rec.Drop(reason)
		}
		t.ended = true
		k.open.Add(-1)
	}
	for why := range k.drops {
		if n := k.drops[why].Swap(0); n > 0 {
			k.rec.DropN(lostNames[why], n)
		}
	}
	if n := k.c.off.Swap(0); n > 0 {
		k.c.offTaken.Add(n)
		k.rec.DropN(ReasonOff, n)
	}
	a := k.rec.Accounts()
	k.accounts.Store(&a)
	k.steps.Add(1)
	if k.diskErr.Load() {
		k.c.fault(k, FaultDisk)
	}
	// The recorder has contained the fault, and lost an exchange to it; what
	// state it is in nobody knows.
	if n := a.Reasons[capture.ReasonPanic]; n > k.panics {
		k.panics = n
		k.c.fault(k, FaultPanic)
	}
}

// over reports whether nothing more can come.
func (k *take) over() bool {
	if !k.retired.Load() {
		return false
	}
	return k.broken.Load() || k.open.Load() == 0 && len(k.queue) == 0
}

// finish closes recorder and output. What an exchange still says goes nowhere.
func (k *take) finish() {
	k.broken.Store(true)
	k.discard()
	background()
	err := k.rec.Close()
	a := k.rec.Accounts()
	k.accounts.Store(&a)
	if e := k.out.Close(); err == nil {
		err = e
	}
	k.c.finished(k, err)
}

// crash gives the take up after a panic, which may have left the recorder in
// any state. What was written is saved if the output still works.
func (k *take) crash() {
	k.broken.Store(true)
	k.c.fault(k, FaultPanic)
	k.discard()
	a := *k.accounts.Load()
	a.Reasons = maps.Clone(a.Reasons)
	a.Reasons[capture.ReasonPanic] += a.Open
	a.Open = 0
	k.accounts.Store(&a)
	err := errors.New("the output panicked")
	defer func() {
		_ = recover()
		k.c.finished(k, err)
	}()
	err = k.out.Close()
}

// discard empties the queue of a broken take.
func (k *take) discard() {
	for {
		select {
		case b := <-k.queue:
			if b.ops[0].kind == opBegin {
				k.c.off.Add(1)
			}
			k.release(b.cost())
			b.put()
		default:
			return
		}
	}
}

// A sink tells the take of rows that the output refuses.
type sink struct{ k *take }

func (s sink) Append(r *traceformat.Row) error {
	err := s.k.out.Append(r)
	if err != nil {
		s.k.diskErr.Store(true)
	}
	return err
}

func (s sink) SetHeader(h *traceformat.Header) error { return s.k.out.SetHeader(h) }
