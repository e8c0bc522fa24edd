package capture

import (
	"cmp"
	"slices"
	"time"
)

// A Header looks up a field of a head: the value of the first field of that
// name, "" where there is none or where it is unknown. The core asks for the
// few names that it needs, in lower case; letter case must not matter.
// [net/http.Header.Get] is one. A nil Header knows nothing.
type Header func(name string) string

func (h Header) get(name string) string {
	if h == nil {
		return ""
	}
	return h(name)
}

// A Conn is what is known of the connection of an exchange.
type Conn struct {
	// Client is the address of the client without its port, or what else tells
	// one client from another. It is only ever hashed.
	Client string
	// LateJoin says that the capture joined in the middle of the connection.
	LateJoin bool
}

// An Ending says why an exchange came to no regular end.
type Ending int

const (
	ClientAbort Ending = iota + 1 // the client hung up
	ServerReset                   // the server broke off
	Timeout                       // a proxy or the capture gave the answer up
	Truncated                     // the capture lost the rest, or ended
	Evicted                       // the capture had no room for it any more
)

// An Exchange is one request and its answer. One goroutine at a time may use it.
// All times are nanoseconds of the wall clock since the epoch.
//
// After ResponseEnd or End it is over: further calls do nothing. Bytes given to
// it are not kept by reference.
type Exchange struct {
	r     *Recorder
	conn  Conn
	begun int64 // first byte of the request
	last  int64 // time of the last call

	skipped bool
	over    bool
	settled bool  // accounted for
	held    int64 // bytes of the Recorder's budget that it holds

	link       link
	sampledOut bool // processed for what follows it, and not recorded
	tries      int  // attempts at this request, this one included; 0: not counted
	attempted  *attempted

	ask requestState
	ans answerState
}

// Begin opens an exchange at t, the time of the request's first byte.
func (r *Recorder) Begin(t int64, c Conn) *Exchange {
	x := &Exchange{r: r, conn: c, begun: t, last: t}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.acc.Seen++
	if r.closed {
		x.over, x.skipped, x.settled = true, true, true
		r.drop(ReasonIncomplete)
		return x
	}
	r.begin(t)
	r.open[x] = struct{}{}
	return x
}

// Skipped reports whether the exchange is of no interest, so that its bodies
// need not be fed. It may turn true with the head, and with the end of the body.
func (x *Exchange) Skipped() bool { return x.skipped }

// RequestHead gives the head of the request. Target is the path with its query,
// or an absolute URL; empty, like method and h, where the capture could not read
// it.
func (x *Exchange) RequestHead(t int64, method, target string, h Header) {
	if x.over {
		return
	}
	defer x.guard()
	x.at(t)
	if reason := x.ask.head(x, method, target, h); reason != "" {
		x.discard(reason)
	}
}

// RequestBody gives the next piece of the body: transfer coding or framing
// removed, content coding not.
func (x *Exchange) RequestBody(t int64, p []byte) {
	if x.over || x.skipped {
		return
	}
	defer x.guard()
	x.at(t)
	x.ask.body(x, p)
}

// RequestEnd says that the request is complete. A call more does no harm.
func (x *Exchange) RequestEnd(t int64) {
	if x.over || x.ask.ended {
		return
	}
	defer x.guard()
	x.at(t)
	x.endRequest(true)
}

// ResponseHead gives the head of the answer; status is 0 and h nil where the
// capture could not read it. An interim answer (1xx) is passed over.
func (x *Exchange) ResponseHead(t int64, status int, h Header) {
	if x.over || status >= 100 && status < 200 && status != 101 {
		return
	}
	defer x.guard()
	x.at(t)
	if status == 101 {
		x.discard(ReasonNotLLM) // a WebSocket, or another protocol
		return
	}
	x.ans.head(x, t, status, h)
}

// ResponseBody gives the next piece of the answer's body, with the time at which
// it was read: every event that it completes gets that time.
func (x *Exchange) ResponseBody(t int64, p []byte) {
	if x.over || x.skipped {
		return
	}
	defer x.guard()
	x.at(t)
	x.ans.body(x, t, p)
}

// ResponseEnd says that the answer is complete, and writes the row.
func (x *Exchange) ResponseEnd(t int64) { x.finish(t, 0) }

// End closes an exchange that came to no regular end, and writes the row with
// the outcome that how stands for.
func (x *Exchange) End(t int64, how Ending) { x.finish(t, how) }

// Mispaired says that what was given as the answer was that to another request:
// nothing of it is kept, and the exchange is over.
func (x *Exchange) Mispaired(t int64) {
	if x.over {
		return
	}
	x.ans.release()
	x.ans = answerState{noText: true}
	x.finish(t, Truncated)
}

// Gap says that the capture lost n bytes of the request's or the answer's body.
// What depends on them is unknown in the row, never guessed.
func (x *Exchange) Gap(t int64, response bool, n int64) {
	if x.over || x.skipped {
		return
	}
	defer x.guard()
	x.at(t)
	if response {
		x.ans.gap(n)
	} else {
		x.ask.gap(x, n)
	}
}

func (x *Exchange) at(t int64) { x.last = max(x.last, t) }

// guard contains a fault of this package: the exchange is given up and counted,
// and nothing of what it held is shown.
func (x *Exchange) guard() {
	if v := recover(); v != nil {
		x.discard(ReasonPanic)
	}
}

// discard ends the exchange without a row.
func (x *Exchange) discard(reason string) {
	x.r.mu.Lock()
	defer x.r.mu.Unlock()
	x.discardLocked(reason)
}

// discardLocked is discard with the Recorder's mutex held.
func (x *Exchange) discardLocked(reason string) {
	if x.settled {
		return
	}
	x.settled = true
	x.close()
	delete(x.r.open, x)
	x.r.settle(x, nil)
	x.r.drop(reason)
}

// close releases what the exchange holds.
func (x *Exchange) close() {
	x.over, x.skipped = true, true
	x.ask.release()
	x.ans.release()
	x.hold(-x.held)
}

// hold takes n more bytes of the budget and reports whether they were there.
// Giving back always succeeds.
func (x *Exchange) hold(n int64) bool {
	if x.r.held.Add(n) > x.r.limit && n > 0 {
		x.r.held.Add(-n)
		return false
	}
	x.held += n
	return true
}

// since is a time as an offset from the request's first byte. A packet that
// overtook another must not make it negative.
func (x *Exchange) since(t int64) time.Duration { return time.Duration(max(t-x.begun, 0)) }

func sortExchanges(list []*Exchange) {
	slices.SortFunc(list, func(a, b *Exchange) int { return cmp.Compare(a.begun, b.begun) })
}
