package capture

import (
	"strconv"
	"time"

	"reprise/traceformat"
)

// retries tells attempts at one request apart from requests. An attempt is known
// by its request id and prompt together: ids alone are reused by clients that
// think of something else. The Recorder's mutex guards it.
type retries struct {
	window int64 // ns; 0: nothing is looked for
	seen   ring[uint64, *attempted]
	held   []*attempted // refused attempts that wait for another, by their end
}

// maxAttempts bounds what is remembered, maxHeld what is held back.
const (
	maxAttempts = 1 << 16
	maxHeld     = 1 << 12
)

// An attempted is a request by its id and prompt.
type attempted struct {
	key   uint64
	open  bool // not answered yet
	end   int64
	begun int64
	tries int
	row   *traceformat.Row // held back, or nil
}

func (q *retries) init(window time.Duration) {
	q.seen.most = maxAttempts
	if window > 0 {
		q.window = int64(window)
	}
}

// len is how many answered requests are held back.
func (q *retries) len() int64 { return int64(len(q.held)) }

// attempt looks whether x is another attempt at a request. It returns why it is
// not to be recorded, if so. Where the attempts before were refused, x takes
// their place: it arrived when the first of them did. r.mu is held.
func (r *Recorder) attempt(x *Exchange) (reason string) {
	q := &r.retries
	id := x.ask.id
	x.ask.id = ""
	if q.window == 0 || id == "" || x.ask.prompt == nil {
		return ""
	}
	r.expire(x.begun)
	key := r.key.id(domainRequest, strconv.FormatUint(x.ask.prompt.digest, 16)+"/"+strconv.FormatInt(x.ask.size, 16)+"/"+id)
	a := q.seen.get(key)
	switch {
	case a == nil:
	case a.open && x.begun-a.begun <= q.window:
		return ReasonDuplicate
	case a.row != nil:
		q.drop(a)
		r.drop(ReasonRetry)
		x.begun, x.tries = a.begun, a.tries
	case !a.open && x.begun-a.end <= q.window:
		return ReasonRetry
	}
	x.tries++
	x.attempted = &attempted{key: key, open: true, begun: x.begun, tries: x.tries}
	q.seen.put(key, x.attempted)
	return ""
}

// settle is told of the end of an attempt. It takes the row of a refused one,
// and reports whether it did. r.mu is held.
func (r *Recorder) settle(x *Exchange, row *traceformat.Row) bool {
	a := x.attempted
	if a == nil {
		return false
	}
	a.open, a.end = false, x.last
	if row == nil || r.closed {
		return false
	}
	if row.Result != traceformat.ResultRejected && row.Result != traceformat.ResultServerError && row.Result != traceformat.ResultTimeout || row.TTFT.OK {
		return false
	}
	if len(r.retries.held) >= maxHeld {
		r.release(r.retries.held[0])
	}
	a.row = row
	r.retries.held = append(r.retries.held, a)
	return true
}

// expire writes the rows of refused attempts that nothing has followed.
func (r *Recorder) expire(now int64) {
	for len(r.retries.held) > 0 && now-r.retries.held[0].end > r.retries.window {
		r.release(r.retries.held[0])
	}
}

func (r *Recorder) release(a *attempted) {
	row := a.row
	r.retries.drop(a)
	r.append(row)
}

// drop lets go of the row of a.
func (q *retries) drop(a *attempted) {
	a.row = nil
	for i, h := range q.held {
		if h == a {
			q.held = append(q.held[:i], q.held[i+1:]...)
			return
		}
	}
}

func (r *Recorder) flushRetries() {
	for len(r.retries.held) > 0 {
		r.release(r.retries.held[0])
	}
}
