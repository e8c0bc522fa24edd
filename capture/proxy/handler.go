package proxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"reprise/capture"
)

// ServeHTTP passes one request on and its answer back.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := p.clock.now()
	x := &exchange{p: p, w: w, r: r}
	if r.ProtoMajor == 1 {
		if x.conn = clientOf(r); x.conn != nil {
			began = x.conn.began(began)
		}
	}
	p.m.requests.Add(1)
	p.m.streams.Add(1)
	defer p.m.streams.Add(-1)
	switch {
	case r.Method == http.MethodConnect:
		p.refuse(w, http.StatusNotImplemented, "this is no forward proxy", "not_implemented")
		return
	case !forwardable(r):
		p.refuse(w, http.StatusBadRequest, "malformed request", "bad_request")
		return
	}
	x.tap = p.rec.begin(clientAddress(r), began)
	defer x.settle()
	if p.up != nil {
		x.overHTTP1()
	} else {
		x.overTransport()
	}
}

// clientAddress is the address of the client without its port.
func clientAddress(r *http.Request) string {
	if i := strings.LastIndexByte(r.RemoteAddr, ':'); i > 0 {
		return r.RemoteAddr[:i]
	}
	return r.RemoteAddr
}

// An exchange is a request on its way through.
type exchange struct {
	p   *Proxy
	w   http.ResponseWriter
	r   *http.Request
	tap *tap

	conn    *clientConn // nil under HTTP/2
	started bool        // the head of the answer went to the client
	pump    *pump
}

// settle ends the recording where nothing else did, and contains a fault of
// this program: what it says may quote the traffic, and is not logged.
func (x *exchange) settle() {
	v := recover()
	x.tap.end(x.p.clock.now(), capture.Truncated)
	if v != nil {
		if v != http.ErrAbortHandler {
			x.p.m.panics.Add(1)
			x.p.o.Log.Error("a request ended in a fault of this program", "stack", string(debug.Stack()))
		}
		panic(http.ErrAbortHandler)
	}
}

// requestEnd notes that all of the request was read.
func (x *exchange) requestEnd(now int64) {
	x.tap.requestEnd(now)
	if x.conn != nil {
		x.conn.first.Store(0) // what is read from now on is another request
	}
}

// overHTTP1 carries the exchange over a connection of the pool.
func (x *exchange) overHTTP1() {
	p, r := x.p, x.r
	ctx := r.Context()
	hasBody := r.Body != nil && r.Body != http.NoBody && r.ContentLength != 0
	f := framingOf(r)
	if !hasBody && f.length < 0 {
		f.length = 0
	}
	buf := getBuffer(hasBody)
	head := p.appendHead(buf.b[:0], r, f)
	x.tap.requestHead(p.clock.now(), r, len(head))
	out := head
	switch {
	case !hasBody:
		x.requestEnd(p.clock.now())
	case f.length < 0 || r.Header["Expect"] != nil || int64(cap(head)-len(head)) < f.length || len(head) > largeBuffer/2:
		x.pump = &pump{x: x, done: make(chan struct{})}
		if r.Header["Expect"] != nil {
			x.pump.gate = make(chan struct{})
		}
	default:
		// The usual body is there already, and goes out with the head.
		body := head[len(head) : len(head)+int(f.length)]
		n, err := r.Body.Read(body)
		now := p.clock.now()
		x.tap.requestBody(now, body[:n])
		out = head[:len(head)+n]
		switch {
		case int64(n) == f.length: // HTTP/2 gives the end apart
			x.requestEnd(now)
		case err == nil:
			x.pump = &pump{x: x, done: make(chan struct{})}
		default:
			buf.put()
			x.clientFailed()
			return
		}
	}

	// What has no body and changes nothing may be sent again (RFC 9110, section
	// 9.2.2) if the server was just closing the connection.
	again := !hasBody && idempotent(r.Method)
	for reuse := true; ; reuse = false {
		c, err := p.up.get(ctx, reuse)
		if err != nil {
			buf.put()
			x.failed(err)
			return
		}
		stop := context.AfterFunc(ctx, func() { c.Close() })
		c.read, c.left = 0, p.o.MaxHeader
		n, err := c.Write(out)
		unsent := err != nil && n == 0 && c.used
		if err != nil && !unsent {
			err = nil // the server may have answered before it hung up
		}
		var resp *http.Response
		if err == nil {
			if x.pump != nil {
				x.pump.to = c
				if ctl := http.NewResponseController(x.w); r.ProtoMajor == 1 {
					_ = ctl.EnableFullDuplex() // HTTP/1.1 always can
				}
				go x.pump.run()
			} else {
				// What was sent is not needed to send it again.
				if !again {
					buf.put()
					buf = nil
				}
			}
			resp, err = x.answer(c)
		}
		if err != nil && (unsent || again && c.used && c.read == 0) && ctx.Err() == nil {
			stop()
			p.up.drop(c)
			p.m.retries.Add(1)
			continue
		}
		if buf != nil {
			buf.put()
		}
		if err != nil {
			x.stopPump(c)
			stop()
			p.up.drop(c)
			x.failed(err)
			return
		}
		x.carry(c, resp, stop)
		return
	}
}

// errUnasked is an upstream that switches protocols on its own.
var errUnasked = errors.New("protocols switched unasked")

// idempotent reports whether a request without a body may be repeated.
func idempotent(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE":
		return true
	}
	return false
}

// answer reads heads until the final one, and passes interim ones on.
func (x *exchange) answer(c *upstreamConn) (*http.Response, error) {
	if d := x.p.o.HeaderTimeout; d > 0 {
		c.SetReadDeadline(time.Now().Add(d))
	}
	for {
		resp, err := c.head(x.r)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			c.left = -1
			if x.p.o.HeaderTimeout > 0 {
				c.SetReadDeadline(time.Time{})
			}
			return resp, nil
		}
		x.interim(resp.StatusCode, resp.Header)
	}
}

// interim passes an answer such as 103 (Early Hints) on.
func (x *exchange) interim(status int, h http.Header) {
	if x.r.ProtoAtLeast(1, 1) {
		to := x.w.Header()
		copyHead(to, h)
		x.w.WriteHeader(status)
		clear(to)
	}
	if status == http.StatusContinue && x.pump != nil {
		x.pump.open()
	}
}

// open lets the body through.
func (u *pump) open() {
	if u.gate != nil && !u.opened {
		u.opened = true
		close(u.gate)
	}
}

// carry passes the final answer on, and gives the connection back if it can
// carry another request.
func (x *exchange) carry(c *upstreamConn, resp *http.Response, stop func() bool) {
	p := x.p
	if resp.StatusCode == http.StatusSwitchingProtocols {
		if upgrade(x.r) == "" {
			x.stopPump(c)
			stop()
			p.up.drop(c)
			x.failed(errUnasked)
			return
		}
		x.tap.responseHead(p.clock.now(), resp.StatusCode, resp.Header)
		x.stopPump(c)
		stop()
		p.up.open.Add(-1)
		x.tunnel(resp, &bufferedConn{c.Conn, c.br})
		return
	}
	err := x.relay(resp, c.br)
	sent := x.pump == nil
	if !sent {
		sent = err == nil && x.pump.finished()
		if !sent {
			x.stopPump(c)
		}
	}
	whole := stop() && sent && err == nil && !resp.Close && resp.ProtoAtLeast(1, 1) && c.br.Buffered() == 0
	if whole {
		p.up.put(c)
	} else {
		p.up.drop(c)
	}
	if err != nil {
		x.broken(err)
	}
}

// finished reports whether the body has been sent. A server that answers at the
// last byte can be quicker than the goroutine that sent it.
func (u *pump) finished() bool {
	select {
	case <-u.done:
	default:
		timer := time.NewTimer(50 * time.Millisecond)
		defer timer.Stop()
		select {
		case <-u.done:
		case <-timer.C:
			return false
		}
	}
	return u.complete
}

// stopPump ends the sending of the body, which no one is going to read, and
// waits for the goroutine to end. The client gets some time to notice.
func (x *exchange) stopPump(c *upstreamConn) {
	u := x.pump
	if u == nil {
		return
	}
	select {
	case <-u.done:
		return
	default:
	}
	u.stop.Store(true)
	u.open()
	if c != nil {
		c.Close()
	}
	ctl := http.NewResponseController(x.w)
	_ = ctl.SetReadDeadline(time.Unix(1, 0))
	<-u.done
	_ = ctl.SetReadDeadline(time.Now().Add(lingering))
}

// lingering is how long the rest of a request body that was answered early is
// read and thrown away, so that the client can read the answer before a reset
// takes it. It is net/http that reads, and no more than 256 KiB.
const lingering = 5 * time.Second

// A writeError is an answer that could not be delivered.
type writeError struct{ err error }

func (e *writeError) Error() string { return "the client is gone" }
func (e *writeError) Unwrap() error { return e.err }

// relay passes an answer on. br, if not nil, is what its body is read from.
func (x *exchange) relay(resp *http.Response, br *bufio.Reader) error {
	p, w, r := x.p, x.w, x.r
	now := p.clock.now()
	h := w.Header()
	copyHead(h, resp.Header)
	for name := range resp.Trailer {
		h.Add("Trailer", name)
	}
	sized := resp.ContentLength >= 0
	if sized && len(resp.Trailer) > 0 && r.ProtoMajor == 1 {
		// HTTP/2 has a trailer after a body of known length; here that takes chunks.
		delete(h, "Content-Length")
		sized = false
	}
	if !sized && r.ProtoMajor == 1 && r.Method != http.MethodHead {
		h["Transfer-Encoding"] = chunked // what net/http would choose, unless the answer comes in one piece
	}
	w.WriteHeader(resp.StatusCode)
	x.started = true
	x.tap.responseHead(now, resp.StatusCode, resp.Header)
	p.m.status(resp.StatusCode)
	flusher := w.(interface{ FlushError() error })
	if resp.Body == http.NoBody {
		x.tap.end(p.clock.now(), 0)
		return nil
	}
	if br == nil || br.Buffered() == 0 {
		if err := flusher.FlushError(); err != nil {
			return &writeError{err}
		}
	}
	var chunks *lookahead
	if br != nil && !sized && len(resp.TransferEncoding) > 0 {
		chunks = new(lookahead)
	}
	large := false
	for {
		// While there is nothing to read, no buffer is held but that of the
		// connection.
		most := largeBuffer
		switch {
		case chunks != nil:
			most = chunks.ready(br, smallBuffer)
		case br != nil && !large && br.Buffered() == 0:
			_, _ = br.Peek(1) // the body reports the error
		}
		buf := getBuffer(chunks == nil && (large || br == nil))
		n, err := 0, error(nil)
		if chunks != nil {
			raw, _ := br.Peek(br.Buffered())
			n, err = resp.Body.Read(buf.b[:most])
			chunks.passed(raw[:max(0, len(raw)-br.Buffered())])
		} else {
			n, err = resp.Body.Read(buf.b)
		}
		if n > 0 {
			now = p.clock.now()
			_, werr := w.Write(buf.b[:n])
			// The end goes out together with the last piece.
			if werr == nil && (err != io.EOF || r.ProtoMajor != 1) {
				werr = flusher.FlushError()
			}
			x.tap.responseBody(now, buf.b[:n])
			if p.m.bodyBytes.Add(int64(n)); werr != nil {
				buf.put()
				return &writeError{werr}
			}
		}
		large = n >= smallBuffer
		buf.put()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	for name, values := range resp.Trailer {
		if slices.Contains(h["Trailer"], name) {
			h[name] = values
		} else {
			h[http.TrailerPrefix+name] = values
		}
	}
	x.tap.end(p.clock.now(), 0)
	return nil
}

// broken ends an exchange whose answer broke off after its head had been sent:
// the client must see that it is not whole.
func (x *exchange) broken(err error) {
	if _, ok := errors.AsType[*writeError](err); ok || x.r.Context().Err() != nil {
		x.aborted()
	}
	x.p.m.upstreamErrors[errorReset].Add(1)
	x.tap.end(x.p.clock.now(), capture.ServerReset)
	panic(http.ErrAbortHandler)
}

// aborted ends an exchange whose client hung up.
func (x *exchange) aborted() {
	x.p.m.aborts.Add(1)
	x.tap.end(x.p.clock.now(), capture.ClientAbort)
	panic(http.ErrAbortHandler)
}

// clientFailed ends an exchange whose request could not be read to its end.
func (x *exchange) clientFailed() {
	if x.r.Context().Err() == nil && !x.started && x.r.ProtoMajor == 1 {
		// It may be malformed and the client still there.
		x.p.refuse(x.w, http.StatusBadRequest, "malformed or incomplete request body", "bad_request")
		x.p.m.aborts.Add(1)
		x.tap.end(x.p.clock.now(), capture.ClientAbort)
		return
	}
	x.aborted()
}

// failed answers for an upstream that gave no answer.
func (x *exchange) failed(err error) {
	p := x.p
	if x.pump != nil && x.pump.to != nil {
		<-x.pump.done
		if x.pump.readErr != nil {
			x.clientFailed()
			return
		}
	}
	if x.r.Context().Err() != nil {
		x.aborted()
	}
	now := p.clock.now()
	status, class, text := http.StatusBadGateway, errorReset, "the upstream broke off before it answered"
	ne, isNet := errors.AsType[*net.OpError](err)
	switch {
	case isNet && ne.Op == "dial" && ne.Timeout(), errors.Is(err, context.DeadlineExceeded):
		status, class, text = http.StatusGatewayTimeout, errorConnectTimeout, "the upstream did not accept a connection in time"
	case isNet && ne.Op == "dial":
		class, text = errorConnect, "the upstream does not accept connections"
	case errors.Is(err, os.ErrDeadlineExceeded) || isTimeout(err):
		status, class, text = http.StatusGatewayTimeout, errorTimeout, "the upstream did not answer in time"
	case errors.Is(err, errHead):
		class, text = errorMalformed, "the upstream's answer has too large a head"
	case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !isNet:
		class, text = errorMalformed, "the upstream's answer is malformed"
	}
	p.m.upstreamErrors[class].Add(1)
	kind := "bad_gateway"
	if status == http.StatusGatewayTimeout {
		kind = "gateway_timeout"
	}
	x.tap.responseHead(now, status, http.Header{})
	p.refuse(x.w, status, text, kind)
	if status == http.StatusGatewayTimeout {
		x.tap.end(p.clock.now(), capture.Timeout)
	} else {
		x.tap.end(p.clock.now(), 0)
	}
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

// refuse answers in the upstream's place, in the shape that clients of LLM
// services expect of an error. Nothing of the request or of an address is in it.
func (p *Proxy) refuse(w http.ResponseWriter, status int, text, kind string) {
	h := w.Header()
	clear(h)
	if status == http.StatusBadRequest {
		h.Set("Connection", "close")
	}
	h.Set("Content-Type", "application/json")
	p.m.status(status)
	w.WriteHeader(status)
	io.WriteString(w, `{"error":{"message":"`+text+`","type":"`+kind+`"}}`+"\n")
}
