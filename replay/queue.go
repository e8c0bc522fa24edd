package replay

import (
	"container/heap"
	"sync"
	"time"

	"reprise/internal/clock"
)

// A queue holds what is encoded and waits for its time. Two streams meet in
// it: requests whose time the trace fixes, which come in order and are bounded
// (the producer waits), and turns whose time an answer fixed, which come when
// they come. One goroutine, the pacer, takes from it.
type queue struct {
	mu    sync.Mutex
	room  sync.Cond
	wake  func() // of the pacer
	bytes int    // of bodies in fixed

	fixed   []*exchange // a ring
	first   int
	n       int
	dynamic dueHeap

	ended   bool            // no more fixed requests will come
	waiting int             // turns that wait for an answer
	closed  bool            // a closed loop: users begin, not arrivals
	free    []time.Duration // since when each user is free who may begin, run time
	halted  bool
}

// Bounds of the look-ahead: how many requests, and how many bytes of bodies,
// are encoded before their time. A body larger than the bound goes alone.
const (
	aheadRequests = 512
	aheadBytes    = 32 << 20
)

func newQueue(wake func(), concurrency int) *queue {
	q := &queue{wake: wake, fixed: make([]*exchange, aheadRequests), closed: concurrency > 0, free: make([]time.Duration, concurrency)}
	q.room.L = &q.mu
	return q
}

// push adds a request of the fixed stream and waits for room. It returns false
// once the queue is halted.
func (q *queue) push(x *exchange) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.halted && (q.n == len(q.fixed) || q.n > 0 && q.bytes+x.size() > aheadBytes) {
		q.room.Wait()
	}
	if q.halted {
		return false
	}
	q.fixed[(q.first+q.n)%len(q.fixed)] = x
	q.n++
	q.bytes += x.size()
	if q.n == 1 {
		q.wake()
	}
	return true
}

// end says that the fixed stream is over.
func (q *queue) end() {
	q.mu.Lock()
	q.ended = true
	q.wake()
	q.mu.Unlock()
}

// park announces a turn that will be released.
func (q *queue) park() {
	q.mu.Lock()
	q.waiting++
	q.mu.Unlock()
}

// release adds a parked turn whose time is known now.
func (q *queue) release(x *exchange) {
	q.mu.Lock()
	q.waiting--
	heap.Push(&q.dynamic, x)
	if q.dynamic[0] == x {
		q.wake()
	}
	q.mu.Unlock()
}

// leave says that a user of the closed loop was done with a session at that
// time of the run.
func (q *queue) leave(at time.Duration) {
	q.mu.Lock()
	q.free = append(q.free, at)
	q.wake()
	q.mu.Unlock()
}

// halt ends the queue: what is in it is not sent.
func (q *queue) halt() {
	q.mu.Lock()
	q.halted = true
	q.room.Broadcast()
	q.wake()
	q.mu.Unlock()
}

// idle is how long the pacer sleeps when nothing has a time yet. Whatever
// gives something a time wakes it.
const idle = time.Second

// next returns the request that is due, or when to ask again. over means that
// there is and will be none.
func (q *queue) next(start time.Duration) (x *exchange, at time.Duration, over bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := clock.Now()
	if q.halted || q.ended && q.n == 0 && len(q.dynamic) == 0 && q.waiting == 0 {
		return nil, 0, true
	}
	at = now + idle
	if q.n > 0 && (!q.closed || len(q.free) > 0) {
		x = q.fixed[q.first]
		if q.closed {
			x.due = max(0, q.free[0])
		}
		at = start + x.due
	}
	if len(q.dynamic) > 0 {
		if d := start + q.dynamic[0].due; x == nil || d <= at {
			if d > now {
				return nil, d, false
			}
			return heap.Pop(&q.dynamic).(*exchange), d, false
		}
	}
	if x == nil || at > now {
		return nil, at, false
	}
	if q.closed {
		// It was due when a user came free: what passed since is lag.
		x.reschedule(x.due)
		q.free = q.free[1:]
	}
	q.fixed[q.first] = nil
	q.first = (q.first + 1) % len(q.fixed)
	q.n--
	q.bytes -= x.size()
	q.room.Signal()
	return x, at, false
}

// A dueHeap orders exchanges by their time.
type dueHeap []*exchange

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].due < h[j].due }
func (h dueHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *dueHeap) Push(x any)        { *h = append(*h, x.(*exchange)) }
func (h *dueHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return x
}
