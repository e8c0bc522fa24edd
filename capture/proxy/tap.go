package proxy

import (
	"net/http"
	"sync"
	"sync/atomic"

	"reprise/capture"
)

// Kinds of what a batch holds.
const (
	opBegin = iota
	opRequestHead
	opRequestBody
	opRequestEnd
	opResponseHead
	opResponseBody
	opResponseEnd
	opEnd
)

// An op is one thing that happened to an exchange, at t on the proxy's anchor.
type op struct {
	t    int64
	n    int32 // bytes of data it takes; the status, or the ending
	kind uint8
}

// A batch is what happened to one exchange, in order.
type batch struct {
	tap  *tap
	ops  []op
	data []byte
	// The heads. net/http makes a new map for each message, and neither it nor
	// the proxy changes one that was handed on.
	method, target   string
	request, respond http.Header
	heads            int64 // bytes that the heads keep alive
}

const (
	batchOps   = 24
	smallBatch = 2 << 10
	largeBatch = 32 << 10
	batchCost  = 512 // of a batch, beyond its data
)

var (
	smallBatches = sync.Pool{New: func() any {
		return &batch{ops: make([]op, 0, batchOps), data: make([]byte, 0, smallBatch)}
	}}
	largeBatches = sync.Pool{New: func() any {
		return &batch{ops: make([]op, 0, batchOps), data: make([]byte, 0, largeBatch)}
	}}
)

func getBatch(size int) *batch {
	if size > smallBatch {
		return largeBatches.Get().(*batch)
	}
	return smallBatches.Get().(*batch)
}

// cost is how much of the memory budget b takes.
func (b *batch) cost() int64 { return int64(cap(b.data)) + b.heads + batchCost }

func (b *batch) put() {
	*b = batch{ops: b.ops[:0], data: b.data[:0]}
	if cap(b.ops) > 8*batchOps {
		return
	}
	if cap(b.data) > smallBatch {
		largeBatches.Put(b)
	} else {
		smallBatches.Put(b)
	}
}

// A tap copies one exchange into batches. The goroutines of the exchange call
// it; none of its methods waits for anything but another of them. A nil tap
// records nothing.
type tap struct {
	take   *take
	client string
	begun  int64

	mu   sync.Mutex
	cur  *batch
	sent bool // a batch of it was queued
	over bool

	// lost is why the rest is not recorded, 0 while it is.
	lost atomic.Int32
	// skip is set by the recorder where it needs no bodies.
	skip atomic.Bool

	x     *capture.Exchange // the recorder's
	ended bool              // the recorder's
}

// Why an exchange is not recorded.
const (
	lostQueue = iota + 1
	lostMemory
	lostOff
	lostReasons
)

var lostNames = [lostReasons]string{lostQueue: capture.ReasonQueueFull, lostMemory: capture.ReasonMemory, lostOff: ReasonOff}

// ReasonOff is that recording was switched off, by a fault or a full disk.
const ReasonOff = "recording_off"

// room returns the current batch with space for an op and n bytes of data, or
// as many as a new batch holds. t.mu is held. Nil: the exchange is lost.
func (t *tap) room(n int) *batch {
	if t.over || t.lost.Load() != 0 {
		return nil
	}
	if b := t.cur; b != nil {
		if n == 0 && len(b.ops) < 8*batchOps || n > 0 && len(b.data) < cap(b.data) && len(b.ops) < 8*batchOps {
			return b
		}
		t.send()
		if t.lost.Load() != 0 {
			return nil
		}
	}
	b := getBatch(n)
	b.tap = t
	if !t.take.reserve(b.cost()) {
		b.put()
		t.lose(lostMemory)
		return nil
	}
	t.cur = b
	return b
}

// send queues the current batch. t.mu is held.
func (t *tap) send() {
	b := t.cur
	t.cur = nil
	if b == nil {
		return
	}
	// Once queued, the batch is the recorder's.
	t.sent = true
	if !t.take.push(b) {
		t.take.release(b.cost())
		b.put()
		t.lose(lostQueue)
	}
}

// lose gives the exchange up.
func (t *tap) lose(why int32) { t.lost.CompareAndSwap(0, why) }

func (t *tap) add(kind uint8, at int64, n int32) {
	if t == nil {
		return
	}
	t.mu.Lock()
	if b := t.room(0); b != nil {
		b.ops = append(b.ops, op{at, n, kind})
	}
	t.mu.Unlock()
}

func (t *tap) body(kind uint8, at int64, p []byte) {
	if t == nil || len(p) == 0 || t.skip.Load() {
		return
	}
	t.mu.Lock()
	for len(p) > 0 {
		b := t.room(len(p))
		if b == nil {
			break
		}
		n := min(len(p), cap(b.data)-len(b.data))
		b.data = append(b.data, p[:n]...)
		b.ops = append(b.ops, op{at, int32(n), kind})
		p = p[n:]
	}
	t.mu.Unlock()
}

func (t *tap) requestBody(at int64, p []byte)  { t.body(opRequestBody, at, p) }
func (t *tap) responseBody(at int64, p []byte) { t.body(opResponseBody, at, p) }
func (t *tap) requestEnd(at int64)             { t.add(opRequestEnd, at, 0) }

// requestHead begins the recording of the exchange; size is that of the head.
func (t *tap) requestHead(at int64, r *http.Request, size int) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.room(0)
	if b == nil {
		return
	}
	b.ops = append(b.ops, op{t.begun, 0, opBegin}, op{at, 0, opRequestHead})
	b.method, b.target, b.request = r.Method, r.RequestURI, r.Header
	t.head(b, size)
}

// head adds to what b keeps alive.
func (t *tap) head(b *batch, size int) {
	n := int64(size) + batchCost
	if !t.take.reserve(n) {
		t.lose(lostMemory)
		return
	}
	b.heads += n
}

func (t *tap) responseHead(at int64, status int, h http.Header) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.room(0)
	if b == nil {
		return
	}
	if b.respond != nil {
		t.send()
		if b = t.room(0); b == nil {
			return
		}
	}
	b.ops = append(b.ops, op{at, int32(status), opResponseHead})
	b.respond = h
	size := 0
	for name, values := range h {
		size += len(name) + 32
		for _, v := range values {
			size += len(v)
		}
	}
	t.head(b, size)
}

// end ends the recording: how is 0 after a complete answer.
func (t *tap) end(at int64, how capture.Ending) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return
	}
	if b := t.room(0); b != nil {
		if how == 0 {
			b.ops = append(b.ops, op{at, 0, opResponseEnd})
		} else {
			b.ops = append(b.ops, op{at, int32(how), opEnd})
		}
		t.send()
	}
	t.over = true
	if b := t.cur; b != nil { // lost before it was queued
		t.cur = nil
		t.take.release(b.cost())
		b.put()
	}
	t.take.done(t)
}

// canonical remembers how net/http spells the names that a recorder asks for,
// which are few. One goroutine uses it.
type canonical map[string]string

// of is h as the recorder looks things up in it.
func (c canonical) of(h http.Header) capture.Header {
	return func(name string) string {
		key, ok := c[name]
		if !ok {
			key = http.CanonicalHeaderKey(name)
			c[name] = key
		}
		if v := h[key]; len(v) > 0 {
			return v[0]
		}
		return ""
	}
}

// play feeds a batch to the recorder.
func (b *batch) play(r *capture.Recorder, names canonical) {
	t := b.tap
	data := b.data
	for _, o := range b.ops {
		if t.ended {
			return
		}
		switch o.kind {
		case opBegin:
			t.x = r.Begin(o.t, capture.Conn{Client: t.client})
		case opRequestHead:
			t.x.RequestHead(o.t, b.method, b.target, names.of(b.request))
		case opRequestBody:
			t.x.RequestBody(o.t, data[:o.n])
			data = data[o.n:]
		case opRequestEnd:
			t.x.RequestEnd(o.t)
		case opResponseHead:
			t.x.ResponseHead(o.t, int(o.n), names.of(b.respond))
		case opResponseBody:
			t.x.ResponseBody(o.t, data[:o.n])
			data = data[o.n:]
		case opResponseEnd:
			t.x.ResponseEnd(o.t)
			t.ended = true
		case opEnd:
			t.x.End(o.t, capture.Ending(o.n))
			t.ended = true
		}
	}
	if !t.ended && t.x.Skipped() {
		t.skip.Store(true)
	}
}
