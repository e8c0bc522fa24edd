package replay

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"reprise/backends"
	"reprise/internal/llmapi"
	"reprise/internal/wire"
	"reprise/traceformat"
)

// An exchange is one request of the run, from encoding to the recorded row.
//
// The wire client stamps and hands over bytes (Sink methods); a decoder worker
// turns them into events later, so that no JSON is read on the path that takes
// the times.
type exchange struct {
	run    *run
	row    traceformat.Row // requests columns as planned; outcome columns as they come
	prompt int
	output int
	abort  abort
	due    time.Duration
	req    wire.Request
	dec    backends.Decoder
	worker *worker

	flight     wire.Call
	shed       bool
	source     int32         // lap of the row in the trace that is played
	shift      time.Duration // of its session against the recorded times, run time
	abortTimer *time.Timer
	children   []*turn // that wait for the answer
	user       *user   // of a closed loop
	batch      *batch  // what x carries, if it is no row itself
	in         *batch  // that x is a member of
	padding    int     // tokens beyond what was asked for, of a member
	digest     int64
	others     bool // another shard's: played against the model of the cache alone
	implied    implied
	attempts   int
	timeout    atomic.Int32  // index into timeoutErrors of why it was hung up
	lastRead   atomic.Int64  // clock reading, for the idle timeout
	gotToken   atomic.Bool   // for the first-token timeout
	settled    atomic.Bool   // recorded: nothing left to time out
	sentFirst  time.Duration // clock readings from here on
	wake       time.Duration
	conn       time.Duration
	reused     bool

	mu      sync.Mutex // guards what the wire client and the worker share
	head    wire.Head
	headAt  time.Duration
	pending []byte // body bytes that were not decoded yet
	marks   []mark // when which of them were read
	queued  bool
	closed  bool
	closeAt time.Duration
	err     error

	// Of the worker alone.
	next     *exchange // in the worker's queue
	sse      llmapi.SSE
	body     []byte // of an answer that is no stream
	firstAny time.Duration
	inexact  bool
	received int   // tokens
	decErr   error // malformed event
}

// A mark says that pending up to End was read by At.
type mark struct {
	end int
	at  time.Duration
}

// maxBody bounds an answer that is not a stream.
const maxBody = 16 << 20

// maxChunks bounds the recorded events of one answer; a longer one keeps its
// totals. It is 16 times the longest context in use.
const maxChunks = 2 << 20

const (
	noTimeout int32 = iota
	firstTokenTimeout
	idleTimeout
	totalTimeout
	interrupted
	replayedAbort
)

var timeoutErrors = [...]string{firstTokenTimeout: "first_token_timeout", idleTimeout: "idle_timeout", totalTimeout: "total_timeout", interrupted: "interrupted", replayedAbort: "recorded_abort"}

// reschedule sets when x is due, in run time.
func (x *exchange) reschedule(due time.Duration) { x.due, x.row.Arrival = due, due }

// clip makes the row say what is asked for where the plan shortened it. What
// the trace says stays in the extra column.
func (x *exchange) clip() { clipRow(&x.row.Request, x.prompt, x.output, x.abort) }

func clipRow(r *traceformat.Request, prompt, output int, a abort) {
	if v := r.PromptTokens.V; v != int32(prompt) {
		r.Extra = withField(r.Extra, "clipped_from_prompt_tokens", int(v))
		r.PromptTokens.V = int32(prompt)
	}
	if v := r.OutputTokens.V; v != int32(output) && !a.set {
		r.Extra = withField(r.Extra, "clipped_from_output_tokens", int(v))
		r.OutputTokens.V = int32(output)
	}
}

// call is x in the terms of its backend, without the prompt.
func (x *exchange) call() *backends.Call {
	return &backends.Call{ID: requestID(&x.row), MaxTokens: x.output / choices(&x.row.Request), N: choices(&x.row.Request), Stream: x.row.Stream.Or(true), CacheSalt: x.run.plan.Options.CacheSalt}
}

// Conn implements wire.Sink.
func (x *exchange) Conn(at time.Duration, reused bool) {
	if x.conn == 0 {
		x.conn, x.reused = at, reused
	}
}

// Sent implements wire.Sink. The first attempt that reached the kernel counts:
// a retry is part of the latency that its user saw.
func (x *exchange) Sent(first, last time.Duration) {
	if x.sentFirst == 0 {
		x.sentFirst = first
		if x.abort.set && x.abort.after > 0 {
			x.abortTimer = time.AfterFunc(x.abort.after, x.hangUp)
		}
	}
	x.lastRead.Store(int64(last))
}

// Head implements wire.Sink.
func (x *exchange) Head(at time.Duration, h wire.Head) {
	x.lastRead.Store(int64(at))
	x.mu.Lock()
	x.head, x.headAt = h, at
	x.mu.Unlock()
}

// Data implements wire.Sink.
func (x *exchange) Data(at time.Duration, b []byte) {
	x.lastRead.Store(int64(at))
	x.mu.Lock()
	x.pending = append(x.pending, b...)
	x.marks = append(x.marks, mark{len(x.pending), at})
	x.enqueue()
	x.mu.Unlock()
}

// Close implements wire.Sink.
func (x *exchange) Close(at time.Duration, err error) {
	x.mu.Lock()
	x.closed, x.closeAt, x.err = true, at, err
	x.enqueue()
	x.mu.Unlock()
}

// enqueue hands x to its worker, once for however much there is. mu is held.
func (x *exchange) enqueue() {
	if !x.queued {
		x.queued = true
		x.worker.push(x)
	}
}

// drain decodes what has come in, and ends the exchange when it is closed.
func (x *exchange) drain(spare *[]byte, spareMarks *[]mark) {
	if x.shed {
		x.run.answered(x, x.wake-x.run.start)
		x.run.record(x)
		return
	}
	x.mu.Lock()
	data, marks := x.pending, x.marks
	x.pending, x.marks = (*spare)[:0], (*spareMarks)[:0]
	*spare, *spareMarks = nil, nil
	head, closed := x.head, x.closed
	x.queued = false
	x.mu.Unlock()

	stream := head.Status == 200 && strings.HasPrefix(head.ContentType, "text/event-stream")
	start := 0
	for _, m := range marks {
		b := data[start:m.end]
		start = m.end
		if stream {
			x.events(m.at, b)
		} else if len(x.body)+len(b) <= maxBody {
			x.body = append(x.body, b...)
			if x.firstAny == 0 {
				x.firstAny = m.at
			}
		}
	}
	*spare, *spareMarks = data, marks
	switch {
	case closed && x.batch != nil:
		x.finishBatch(stream)
	case closed:
		x.finish(stream)
	}
}

func (x *exchange) events(at time.Duration, b []byte) {
	x.sse.Feed(b)
	for data, ok := x.sse.Next(); ok; data, ok = x.sse.Next() {
		if x.firstAny == 0 {
			x.firstAny = at
		}
		if x.batch != nil {
			x.batchEvent(at, data)
			continue
		}
		ev, err := x.dec.Event(data)
		if err != nil && x.decErr == nil {
			x.decErr = err
		}
		x.tokens(at, ev)
	}
	if err := x.sse.Err(); err != nil && x.decErr == nil {
		x.decErr = err
	}
}

// tokens records one event that carries tokens.
func (x *exchange) tokens(at time.Duration, ev backends.Event) {
	if ev.Tokens <= 0 {
		return
	}
	x.gotToken.Store(true)
	x.inexact = x.inexact || !ev.Exact
	x.run.progress.tokens.Add(int64(ev.Tokens))
	o := &x.row.Outcome
	since := at - x.sentFirst
	if !o.TTFT.OK {
		o.TTFT, o.TTFTSource = traceformat.Some(since), traceformat.TTFTContentEvent
	}
	o.E2E = traceformat.Some(since)
	if len(o.ChunkTimes) < maxChunks {
		o.ChunkTimes = append(o.ChunkTimes, since)
		o.ChunkTokens = append(o.ChunkTokens, int32(ev.Tokens))
	}
	if x.received += ev.Tokens; x.abort.tokens > 0 && x.received >= x.abort.tokens {
		x.hangUp()
	}
}

// hangUp ends the exchange where the recorded client did.
func (x *exchange) hangUp() {
	if !x.timeout.CompareAndSwap(noTimeout, replayedAbort) {
		return
	}
	x.mu.Lock()
	call := x.flight
	x.mu.Unlock()
	if call != nil { // else send sees the mark
		call.Abort()
	}
}

// finish turns the exchange into its row, or sends it again.
func (x *exchange) finish(stream bool) {
	o := &x.row.Outcome
	if !stream && x.head.Status != 0 && x.err == nil {
		ev, err := x.dec.Body(x.head.Status, x.body)
		if err != nil && x.decErr == nil {
			x.decErr = err
		}
		// A whole answer has an end and no first token: its length is known
		// and its TTFT is not.
		if ev.Tokens > 0 {
			o.E2E = traceformat.Some(x.closeAt - x.sentFirst)
		}
	}
	res := x.dec.Result()
	o.Result, o.Error = x.classify(res)
	if x.retry(o) {
		return
	}
	zero := x.run.start
	at := func(t time.Duration) traceformat.Opt[time.Duration] {
		if t == 0 {
			return traceformat.Opt[time.Duration]{}
		}
		return traceformat.Some(t - zero)
	}
	o.Scheduled = traceformat.Some(x.due)
	o.Wake, o.Conn, o.Sent = at(x.wake), at(x.conn), at(x.sentFirst)
	if x.conn != 0 {
		o.ConnReused = traceformat.Some(x.reused)
	}
	o.Headers, o.FirstEvent, o.Close = at(x.headAt), at(x.firstAny), at(x.closeAt)
	if x.head.Status != 0 {
		o.Status = traceformat.Some(int16(x.head.Status))
	}
	if o.Result == traceformat.ResultClientAbort || o.Result == traceformat.ResultTimeout {
		if x.sentFirst != 0 {
			o.Abort = traceformat.Some(x.closeAt - x.sentFirst)
		}
	}
	o.FinishReason = res.FinishReason
	o.ServedPromptTokens, o.ServedOutputTokens, o.ServedCachedTokens = res.PromptTokens, res.OutputTokens, res.CachedTokens
	o.CachedTokens, o.ReasoningTokens = res.CachedTokens, res.ReasoningTokens
	o.ServerQueue, o.ServerPrefill, o.ServerTTFT, o.ServerE2E = res.Queue, res.Prefill, res.TTFT, res.E2E
	if x.inexact && o.ChunkTokens != nil {
		// Events were taken for one token each; the usage block has the last
		// word, and where it disagrees nobody knows which event held more.
		var sum int32
		for _, n := range o.ChunkTokens {
			sum += n
		}
		if served, ok := res.OutputTokens.Get(); !ok || served != sum {
			o.ChunkTokens = nil
		}
	}
	if x.attempts > 1 {
		x.row.Extra = withField(x.row.Extra, "retries", x.attempts-1)
	}
	o.PromptDigest = traceformat.Some(x.digest)
	x.run.answered(x, x.closeAt-zero)
	x.run.record(x)
}

// classify says how the exchange ended: a Result constant and a short class.
func (x *exchange) classify(res backends.Result) (result, class string) {
	switch t := x.timeout.Load(); {
	case (t == interrupted || t == replayedAbort) && !x.complete(res):
		return traceformat.ResultClientAbort, timeoutErrors[t]
	case t != noTimeout && !x.complete(res):
		return traceformat.ResultTimeout, timeoutErrors[t]
	case x.err != nil:
		if class := wireClass(x.err); class == "connect_timeout" || class == "timeout" {
			return traceformat.ResultTimeout, class
		}
		return traceformat.ResultServerError, wireClass(x.err)
	case x.head.Status != 200:
		class := res.Error
		if class == "" {
			class = "http_" + strconv.Itoa(x.head.Status)
		}
		if x.head.Status >= 400 && x.head.Status < 500 {
			return traceformat.ResultRejected, class
		}
		return traceformat.ResultServerError, class
	case res.Error != "":
		return traceformat.ResultServerError, res.Error
	case x.decErr != nil:
		return traceformat.ResultServerError, "malformed_answer"
	case !x.complete(res):
		return traceformat.ResultServerError, "truncated"
	}
	return traceformat.ResultOK, ""
}

// complete says whether the answer came to its end. A finish reason is that
// end; [DONE] alone is not, since an engine that dies sends it too.
func (x *exchange) complete(res backends.Result) bool {
	return x.err == nil && x.head.Status == 200 && res.FinishReason != "" && res.FinishReason != "abort"
}

// wireClass names a failure of the connection in one word.
func wireClass(err error) string {
	var dns *net.DNSError
	var ne net.Error
	switch {
	case errors.Is(err, wire.ErrAborted):
		return "aborted"
	case errors.Is(err, wire.ErrTruncated):
		return "truncated"
	case errors.Is(err, wire.ErrStale):
		return "stale_connection"
	case errors.Is(err, wire.ErrEncoding):
		return "compressed_answer"
	case errors.Is(err, wire.ErrConnectTimeout):
		return "connect_timeout"
	case errors.Is(err, wire.ErrProtocol):
		return "malformed_http"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connect_refused"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "connection_reset"
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return "no_file_descriptors"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return "no_ports"
	case errors.As(err, &dns):
		return "dns"
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &ne) && ne.Timeout():
		return "timeout"
	}
	return "connection"
}

// retry sends x again where that was asked for and nothing of an answer came.
func (x *exchange) retry(o *traceformat.Outcome) bool {
	if o.Result == traceformat.ResultOK || x.attempts > x.run.plan.Options.Retries || o.TTFT.OK || x.timeout.Load() != noTimeout || x.run.stopping() {
		return false
	}
	if o.Result == traceformat.ResultRejected && x.head.Status != 429 {
		return false // it would be rejected again
	}
	x.run.resend(x)
	return true
}

// reset prepares x for another attempt.
func (x *exchange) reset() {
	x.row.Outcome = traceformat.Outcome{}
	x.dec = x.run.Backend.NewDecoder(x.call())
	x.head, x.headAt, x.closed, x.err = wire.Head{}, 0, false, nil
	x.sse, x.body, x.firstAny, x.inexact, x.received, x.decErr = llmapi.SSE{}, x.body[:0], 0, false, 0, nil
}

// withField adds a number to the JSON object of an extra column.
func withField(extra, name string, n int) string {
	field := strconv.Quote(name) + ":" + strconv.Itoa(n)
	if strings.Contains(extra, strconv.Quote(name)+":") {
		// A replay of a replay: the earlier run's figure gives way.
		var m map[string]json.RawMessage
		if json.Unmarshal([]byte(extra), &m) == nil {
			m[name] = json.RawMessage(strconv.Itoa(n))
			if b, err := json.Marshal(m); err == nil {
				return string(b)
			}
		}
	}
	if len(extra) > 2 {
		return extra[:len(extra)-1] + "," + field + "}"
	}
	return "{" + field + "}"
}

// A worker decodes the bytes of its share of the exchanges, in their order.
type worker struct {
	mu          sync.Mutex
	wake        sync.Cond
	first, last *exchange
	stop        bool
}

func newWorker() *worker {
	w := &worker{}
	w.wake.L = &w.mu
	return w
}

// push never blocks: an exchange is in the queue at most once.
func (w *worker) push(x *exchange) {
	w.mu.Lock()
	if w.last == nil {
		w.first = x
	} else {
		w.last.next = x
	}
	w.last = x
	w.wake.Signal()
	w.mu.Unlock()
}

// loop runs until halt is called and the queue is empty.
func (w *worker) loop() {
	var spare []byte
	var marks []mark
	for {
		w.mu.Lock()
		for w.first == nil && !w.stop {
			w.wake.Wait()
		}
		x := w.first
		if x == nil {
			w.mu.Unlock()
			return
		}
		if w.first = x.next; w.first == nil {
			w.last = nil
		}
		x.next = nil
		w.mu.Unlock()
		x.drain(&spare, &marks)
	}
}

func (w *worker) halt() {
	w.mu.Lock()
	w.stop = true
	w.wake.Signal()
	w.mu.Unlock()
}
