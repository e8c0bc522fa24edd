package replay

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"reprise/backends"
	"reprise/internal/clock"
	"reprise/internal/units"
	"reprise/internal/wire"
)

// A BatchRecord says how the static batches of a run were sent.
type BatchRecord struct {
	Size    int   `json:"size"`
	Batches int64 `json:"batches"`
	// OneRequest is how many of them went as one request with a list of prompts.
	// Others were as many requests at once, awaited together.
	OneRequest int64 `json:"as_one_request"`
	// Lengths says that the prompts of one request had an answer length each. If
	// not, all were as long as the longest, and what a row got beyond its own
	// length is padding: generated, and no part of any figure.
	Lengths       bool  `json:"answer_lengths_of_their_own"`
	PaddingTokens int64 `json:"padding_tokens"`
}

// Render says in a line how batches were sent; of none it says nothing.
func (b *BatchRecord) Render(w io.Writer) error {
	if b == nil {
		return nil
	}
	how := fmt.Sprintf("%d of them as one request", b.OneRequest)
	switch b.OneRequest {
	case b.Batches:
		how = "each as one request"
	case 0:
		how = "each as so many requests at once"
	}
	padding := ""
	if b.PaddingTokens > 0 {
		padding = fmt.Sprintf("; %s padding tokens beyond the rows' own lengths", units.Count(b.PaddingTokens))
	}
	_, err := fmt.Fprintf(w, "\nstatic batches of %d: %s, %s%s\n", b.Size, units.Count(b.Batches), how, padding)
	return err
}

// batching is how a run makes batches.
type batching struct {
	backend  backends.Batcher // nil where a server takes one prompt a request
	lengths  bool
	batches  atomic.Int64
	requests atomic.Int64 // batches that were one request
	padding  atomic.Int64
}

func newBatching(b backends.Backend) *batching {
	t := &batching{}
	if batcher, ok := b.(backends.Batcher); ok {
		if can, lengths := batcher.Batches(); can {
			t.backend, t.lengths = batcher, lengths
		}
	}
	return t
}

func (t *batching) record(size int) *BatchRecord {
	return &BatchRecord{
		Size: size, Batches: t.batches.Load(), OneRequest: t.requests.Load(), Lengths: t.backend != nil && t.lengths, PaddingTokens: t.padding.Load(),
	}
}

// A batch is what an exchange carries that is none of the trace's: requests that
// are sent together and awaited together.
type batch struct {
	members []*exchange
	dec     *backends.BatchDecoder // nil where each member is a request of its own
	left    atomic.Int32           // members without an answer
	ended   atomic.Int64           // run time of the last answer so far
}

// A gatherer makes batches of n of the rows that it is given, and queues them.
type gatherer struct {
	r       *run
	n       int
	members []*exchange
	calls   []*backends.Call
}

// add takes the exchange of a row, and the call that it makes of its own. It
// returns false once the queue is halted.
func (g *gatherer) add(x *exchange, call *backends.Call) bool {
	g.members, g.calls = append(g.members, x), append(g.calls, call)
	return len(g.members) < g.n || g.flush()
}

// flush queues what there is, be it less than a whole batch.
func (g *gatherer) flush() bool {
	if len(g.members) == 0 {
		return true
	}
	r := g.r
	b := &batch{members: g.members}
	c := &exchange{run: r, batch: b, worker: g.members[0].worker}
	b.left.Store(int32(len(b.members)))
	single := r.batching.backend != nil
	for _, m := range b.members {
		m.in = b
		single = single && choices(&m.row.Request) == 1
	}
	if single {
		b.dec = backends.NewBatchDecoder(len(b.members))
		c.req.Method = "POST"
		c.req.Path, c.req.Body = r.batching.backend.EncodeBatch(nil, g.calls)
		c.req.Header = append(r.Header[:len(r.Header):len(r.Header)], wire.Field{Name: "X-Request-Id", Value: g.calls[0].ID})
		for _, m := range b.members {
			m.req.Body = nil
		}
	}
	g.members, g.calls = nil, nil
	return r.queue.push(c)
}

// size is how many bytes of bodies x holds.
func (x *exchange) size() int {
	n := len(x.req.Body)
	if x.batch != nil {
		for _, m := range x.batch.members {
			n += len(m.req.Body)
		}
	}
	return n
}

// launchBatch sends a batch whose time has come.
func (r *run) launchBatch(c *exchange) {
	b := c.batch
	r.batching.batches.Add(1)
	for _, m := range b.members {
		m.reschedule(c.due)
	}
	if b.dec == nil {
		for _, m := range b.members {
			r.launch(m)
		}
		return
	}
	r.batching.requests.Add(1)
	c.wake = clock.Now()
	n := int64(len(b.members))
	r.flying.Add(int(n))
	r.progress.sent.Add(n)
	if now := r.progress.inFlight.Add(n); now > r.progress.peak.Load() {
		r.progress.peak.Store(now)
	}
	for _, m := range b.members {
		m.wake, m.attempts = c.wake, 1
		r.cache.sent(m)
	}
	r.send(c)
	r.mu.Lock()
	r.live = append(r.live, c)
	r.mu.Unlock()
}

// batchEvent hands one event to the row that it belongs to. What comes beyond
// the length that the row asked for is padding.
func (x *exchange) batchEvent(at time.Duration, data []byte) {
	b := x.batch
	i, ev, err := b.dec.Event(data)
	if err != nil && x.decErr == nil {
		x.decErr = err
	}
	if i < 0 || ev.Tokens <= 0 {
		return
	}
	x.gotToken.Store(true)
	m := b.members[i]
	if beyond := m.received + ev.Tokens - m.output; beyond > 0 {
		beyond = min(beyond, ev.Tokens)
		m.padding += beyond
		x.run.batching.padding.Add(int64(beyond))
		ev.Tokens -= beyond
	}
	m.sentFirst = x.sentFirst
	if m.firstAny == 0 {
		m.firstAny = at
	}
	m.tokens(at, ev)
}

// finishBatch turns an answer into the rows that it is of: they share its clocks.
func (x *exchange) finishBatch(stream bool) {
	b := x.batch
	if !stream && x.head.Status != 0 && x.err == nil {
		b.dec.Body(x.head.Status, x.body)
	}
	x.settled.Store(true)
	for i, m := range b.members {
		m.sentFirst, m.conn, m.reused = x.sentFirst, x.conn, x.reused
		m.head, m.headAt, m.closeAt, m.err, m.decErr = x.head, x.headAt, x.closeAt, x.err, x.decErr
		m.timeout.Store(x.timeout.Load())
		m.dec = paddedDecoder{b.dec.Member(i), m}
		if m.padding > 0 {
			m.row.Extra = withField(m.row.Extra, "batch_padding_tokens", m.padding)
		}
		m.finish(true)
	}
}

// A paddedDecoder leaves padding out of what a row got.
type paddedDecoder struct {
	backends.Decoder
	of *exchange
}

func (d paddedDecoder) Result() backends.Result {
	r := d.Decoder.Result()
	if r.OutputTokens.OK {
		r.OutputTokens.V -= int32(d.of.padding)
	}
	return r
}

// leave says that a member has its answer. The batch makes room for the next one
// when all have.
func (b *batch) leave(q *queue, at time.Duration) {
	for {
		was := b.ended.Load()
		if int64(at) <= was || b.ended.CompareAndSwap(was, int64(at)) {
			break
		}
	}
	if b.left.Add(-1) == 0 {
		q.leave(time.Duration(b.ended.Load()))
	}
}
