package wire

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"reprise/internal/clock"
)

// NewStd returns a client on net/http, with one goroutine a request.
//
// Two things are out of its hands. A chunk that comes in several segments is
// handed over whole, together with complete ones before it, stamped when its
// last part was read. And a connection on which a server speaks unasked is
// dropped when the transport notices, which may be after it was used again.
func NewStd(base string, o Options) (Client, error) {
	u, err := parseBase(base)
	if err != nil {
		return nil, err
	}
	c := &stdClient{base: u, opts: o, stash: map[string][]net.Conn{}}
	c.ctx, c.cancel = context.WithCancelCause(context.Background())
	c.tls = o.TLS.Clone()
	if c.tls == nil {
		c.tls = &tls.Config{}
	}
	if c.tls.ServerName == "" {
		c.tls.ServerName = u.Hostname()
	}
	c.tls.NextProtos = []string{"http/1.1"}
	if o.HTTP2 {
		c.tls.NextProtos = []string{"h2", "http/1.1"}
	}
	if c.proxy, err = o.proxy(u); err != nil {
		return nil, err
	}
	c.rt = &http.Transport{
		Proxy:               func(*http.Request) (*url.URL, error) { return c.proxy, nil },
		DialContext:         func(ctx context.Context, _, addr string) (net.Conn, error) { return c.take(ctx, addr, c.dial) },
		TLSClientConfig:     c.tls, // behind a proxy, where the transport shakes hands itself
		TLSHandshakeTimeout: o.connectTimeout(),
		DisableCompression:  true,
		ForceAttemptHTTP2:   o.HTTP2,
		MaxIdleConns:        0,
		MaxIdleConnsPerHost: math.MaxInt,
		MaxConnsPerHost:     o.MaxConns,
	}
	if c.proxy == nil {
		c.rt.DialTLSContext = func(ctx context.Context, _, addr string) (net.Conn, error) { return c.take(ctx, addr, c.dialTLS) }
	}
	return c, nil
}

type stdClient struct {
	base   *url.URL
	opts   Options
	proxy  *url.URL
	tls    *tls.Config
	rt     *http.Transport
	ctx    context.Context // ends with Close
	cancel context.CancelCauseFunc

	dialed, stale, resent atomic.Int64

	late  refusals
	calls sync.WaitGroup
	conns sync.WaitGroup // of stampConns that are open

	mu     sync.Mutex
	closed bool
	stash  map[string][]net.Conn // opened by Warm and not used yet, by address
}

func (c *stdClient) Kind() string { return KindStd }

func (c *stdClient) Stats() Stats {
	return Stats{Dialed: c.dialed.Load(), Stale: c.stale.Load(), Resent: c.resent.Load(), Idle: -1}
}

// Spare implements Client.
func (c *stdClient) Spare(int) {}

// A stampConn notes when bytes pass. It is what the transport reads from, below
// its buffers and below TLS, so that its stamps are those of the system calls.
type stampConn struct {
	net.Conn
	client     *stdClient
	warm       atomic.Bool             // opened by Warm and not used yet
	wroteFirst atomic.Int64            // clock reading before the first write since the last reset
	wroteLast  atomic.Int64            // after the last write
	readLast   atomic.Int64            // after the last read
	call       atomic.Pointer[stdCall] // to be told of writes, where it has the connection alone
	once       sync.Once
}

func (s *stampConn) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	s.readLast.Store(int64(clock.Now()))
	return n, err
}

func (s *stampConn) Write(b []byte) (int, error) {
	s.wroteFirst.CompareAndSwap(0, int64(clock.Now()))
	n, err := s.Conn.Write(b)
	s.wroteLast.Store(int64(clock.Now()))
	if x := s.call.Load(); x != nil {
		x.wrote()
	}
	return n, err
}

func (s *stampConn) Close() error {
	err := s.Conn.Close()
	s.once.Do(s.client.conns.Done)
	return err
}

// stamps finds the stampConn under a connection, and whether one exchange at a
// time uses it.
func stamps(c net.Conn) (s *stampConn, exclusive bool) {
	exclusive = true
	if t, ok := c.(*tls.Conn); ok {
		exclusive = t.ConnectionState().NegotiatedProtocol != "h2"
		c = t.NetConn()
	}
	s, ok := c.(*stampConn)
	return s, ok && exclusive
}

// dial opens a TCP connection.
func (c *stdClient) dial(ctx context.Context, addr string) (net.Conn, error) {
	ctx, stop := context.WithTimeout(ctx, c.opts.connectTimeout())
	defer stop()
	defer context.AfterFunc(c.ctx, stop)()
	nc, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			return nil, fmt.Errorf("connect to %s: %w", addr, ErrConnectTimeout)
		}
		return nil, explain(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		nc.Close()
		return nil, net.ErrClosed
	}
	c.conns.Add(1)
	c.dialed.Add(1)
	return &stampConn{Conn: nc, client: c}, nil
}

// dialTLS opens a TCP connection and shakes hands on it.
func (c *stdClient) dialTLS(ctx context.Context, addr string) (net.Conn, error) {
	nc, err := c.dial(ctx, addr)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithTimeout(ctx, c.opts.connectTimeout())
	defer stop()
	defer context.AfterFunc(c.ctx, stop)()
	t := tls.Client(nc, c.tls)
	if err := t.HandshakeContext(ctx); err != nil {
		nc.Close()
		if ctx.Err() == context.DeadlineExceeded {
			err = ErrConnectTimeout
		}
		return nil, fmt.Errorf("TLS with %s: %w", addr, err)
	}
	return t, nil
}

// take returns a connection that Warm opened, or a new one.
func (c *stdClient) take(ctx context.Context, addr string, dial func(context.Context, string) (net.Conn, error)) (net.Conn, error) {
	c.mu.Lock()
	if s := c.stash[addr]; len(s) > 0 {
		nc := s[len(s)-1]
		c.stash[addr] = s[:len(s)-1]
		c.mu.Unlock()
		return nc, nil
	}
	c.mu.Unlock()
	return dial(ctx, addr)
}

// warmDials bounds the connections that Warm opens at a time: more than a
// server's listen backlog holds would wait a second for their SYN to be resent.
const warmDials = 64

// Warm implements Client. Behind a proxy it opens the connections to the proxy;
// a tunnel through it is made by the request that needs it. With HTTP/2 one
// connection carries all requests, and one is opened.
func (c *stdClient) Warm(n int) error {
	if c.opts.MaxConns > 0 && n > c.opts.MaxConns {
		return fmt.Errorf("%d connections to open ahead exceed the limit of %d", n, c.opts.MaxConns)
	}
	addr, dial := hostPort(c.base), c.dial
	if c.proxy != nil {
		addr = hostPort(c.proxy)
		if c.proxy.Scheme != "http" {
			return nil // a TLS or SOCKS proxy: the transport makes those itself
		}
	} else if c.base.Scheme == "https" {
		dial = c.dialTLS
		if c.opts.HTTP2 {
			n = min(n, 1)
		}
	}
	var wg sync.WaitGroup
	var once sync.Once
	var first error
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	slots := make(chan struct{}, warmDials)
	for range n {
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			nc, err := dial(ctx, addr)
			if err != nil {
				once.Do(func() { first = err; cancel() })
				return
			}
			if s, _ := stamps(nc); s != nil {
				s.warm.Store(true)
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.closed {
				nc.Close()
				return
			}
			c.stash[addr] = append(c.stash[addr], nc)
		})
	}
	wg.Wait()
	if first == nil && c.ctx.Err() != nil {
		first = net.ErrClosed
	}
	return first
}

// hostPort is the address that the transport dials for u.
func hostPort(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443", "socks5": "1080", "socks5h": "1080"}[u.Scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// Close implements Client.
func (c *stdClient) Close() {
	c.mu.Lock()
	c.closed = true
	stash := c.stash
	c.stash = nil
	c.mu.Unlock()
	c.cancel(ErrAborted)
	for _, s := range stash {
		for _, nc := range s {
			nc.Close()
		}
	}
	c.calls.Wait()
	c.rt.CloseIdleConnections()
	c.conns.Wait()
	c.late.wait()
}

// A stdCall is one exchange.
type stdCall struct {
	c      *stdClient
	req    *Request
	ctx    context.Context
	cancel context.CancelCauseFunc
	idle   *time.Timer // nil without an idle timeout

	// mu makes the trace hooks, which run in the transport's goroutines, and
	// the exchange itself one goroutine at a time for sink.
	mu       sync.Mutex
	sink     Sink
	conn     *stampConn // where exclusive
	started  time.Duration
	attempts int
	reused   bool // of the last attempt
	answered bool // a byte of the answer came
	handed   bool // the transport has put the request into its buffer
	sent     bool // the sink was told
	over     bool
}

// Abort implements Call.
func (x *stdCall) Abort() { x.cancel(ErrAborted) }

// Start implements Client.
func (c *stdClient) Start(req *Request, sink Sink) Call {
	x := &stdCall{c: c, req: req, sink: sink}
	x.ctx, x.cancel = context.WithCancelCause(c.ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		x.cancel(nil)
		c.late.refuse(sink, net.ErrClosed)
		return x
	}
	c.calls.Go(func() {
		at, err := x.exchange()
		x.mu.Lock()
		if x.handed {
			x.tellSent() // before a head came
		}
		x.over = true
		if x.conn != nil {
			x.conn.call.CompareAndSwap(x, nil)
		}
		x.mu.Unlock()
		x.cancel(nil)
		x.sink.Close(at, err)
	})
	return x
}

// progress puts the idle timeout off.
func (x *stdCall) progress() {
	if x.idle != nil {
		x.idle.Reset(x.req.Idle)
	}
}

func (x *stdCall) exchange() (time.Duration, error) {
	if x.req.Total > 0 {
		defer time.AfterFunc(x.req.Total, func() { x.cancel(ErrTotalTimeout) }).Stop()
	}
	if x.req.Idle > 0 {
		x.idle = time.AfterFunc(x.req.Idle, func() { x.cancel(ErrIdleTimeout) })
		defer x.idle.Stop()
	}
	hr, err := x.request()
	if err != nil {
		return clock.Now(), err
	}
	resp, err := x.c.rt.RoundTrip(hr)
	if err != nil {
		return clock.Now(), x.fail(err)
	}
	defer resp.Body.Close()
	h := Head{
		Status:      resp.StatusCode,
		ContentType: resp.Header.Get("Content-Type"),
		RequestID:   resp.Header.Get("X-Request-Id"),
		RetryAfter:  resp.Header.Get("Retry-After"),
	}
	if e := resp.Header.Get("Content-Encoding"); e != "" && !equalFold(e, "identity") {
		h.ContentEncoding = e
	}
	x.mu.Lock()
	if x.handed {
		x.tellSent()
	}
	if !x.sent {
		x.sent = true
		x.sink.Sent(x.firstWrite(), 0)
	}
	x.sink.Head(x.lastRead(), h)
	x.mu.Unlock()
	x.progress()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		x.cancel(ErrProtocol)
		return clock.Now(), fmt.Errorf("%w: it switches protocols, which was not asked for", ErrProtocol)
	}
	if h.ContentEncoding != "" {
		x.cancel(ErrEncoding)
		return clock.Now(), fmt.Errorf("%w: %s", ErrEncoding, h.ContentEncoding)
	}
	buf := stdBuffers.Get().(*[4096]byte)
	defer stdBuffers.Put(buf)
	for {
		n, err := resp.Body.Read(buf[:])
		at := x.lastRead()
		if n > 0 {
			x.progress()
			x.sink.Data(at, buf[:n])
		}
		switch {
		case err == io.EOF:
			return at, nil
		case err != nil:
			return clock.Now(), x.fail(err)
		}
	}
}

// stdBuffers are as large as the transport's own: more would not be read at once.
var stdBuffers = sync.Pool{New: func() any { return new([4096]byte) }}

// lastRead is when the bytes at hand were read from the socket. Once an answer
// has ended its connection may already carry another, whose first bytes are at
// least a round trip away.
func (x *stdCall) lastRead() time.Duration {
	if x.conn != nil {
		return time.Duration(x.conn.readLast.Load())
	}
	return clock.Now()
}

func (x *stdCall) firstWrite() time.Duration {
	if x.conn != nil {
		if t := x.conn.wroteFirst.Load(); t != 0 {
			return time.Duration(t)
		}
	}
	return x.started
}

func (x *stdCall) request() (*http.Request, error) {
	if err := x.req.check(); err != nil {
		return nil, err
	}
	ref, err := url.ParseRequestURI(x.c.base.EscapedPath() + x.req.Path)
	if err != nil {
		return nil, fmt.Errorf("request path %q: %w", x.req.Path, err)
	}
	ref.Scheme, ref.Host = x.c.base.Scheme, x.c.base.Host
	hr := &http.Request{
		Method: x.req.Method, URL: ref, Host: ref.Host,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header:        make(http.Header, len(x.req.Header)+3),
		ContentLength: int64(len(x.req.Body)),
	}
	for _, f := range x.req.Header {
		if strings.EqualFold(f.Name, "Host") {
			hr.Host = f.Value
			continue
		}
		hr.Header.Add(f.Name, f.Value)
	}
	if hr.Header.Get("User-Agent") == "" {
		hr.Header.Set("User-Agent", userAgent)
	}
	if len(x.req.Body) > 0 {
		if hr.Header.Get("Content-Type") == "" {
			hr.Header.Set("Content-Type", "application/json")
		}
		// Without GetBody the transport cannot send it twice by itself.
		hr.Body = io.NopCloser(bytes.NewReader(x.req.Body))
	}
	if x.c.opts.RetryStale {
		// The transport sends again what it holds for idempotent: it is told
		// so by a header that it does not put on the wire.
		hr.Header["Idempotency-Key"] = []string{}
		if len(x.req.Body) > 0 {
			hr.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(x.req.Body)), nil }
		}
	}
	return hr.WithContext(httptrace.WithClientTrace(x.ctx, &httptrace.ClientTrace{
		GotConn:              x.gotConn,
		WroteRequest:         x.wroteRequest,
		GotFirstResponseByte: func() { x.mu.Lock(); x.answered = true; x.mu.Unlock() },
	})), nil
}

func (x *stdCall) gotConn(info httptrace.GotConnInfo) {
	now := clock.Now()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.over {
		return
	}
	if x.attempts++; x.attempts > 1 {
		x.c.stale.Add(1)
		if !x.c.opts.RetryStale || x.attempts > 2 {
			x.cancel(ErrStale)
			return
		}
		x.c.resent.Add(1)
	}
	s, exclusive := stamps(info.Conn)
	x.reused, x.conn, x.started, x.handed, x.sent = info.Reused, nil, now, false, false
	if s != nil && s.warm.Swap(false) {
		x.reused = true
	}
	if exclusive {
		x.conn = s
		s.wroteFirst.Store(0)
		s.call.Store(x)
	}
	x.sink.Conn(now, x.reused)
}

// wroteRequest is called when the request is in the transport's buffer, whose
// last flush may be still to come.
func (x *stdCall) wroteRequest(info httptrace.WroteRequestInfo) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.over || x.started == 0 || info.Err != nil {
		return
	}
	x.handed = true
	if x.conn == nil {
		x.tellSent() // many exchanges on one connection: nobody knows better
	}
}

// wrote is called after each write to the connection. Where none follows
// wroteRequest, because the buffer was empty, the head tells that all is sent.
func (x *stdCall) wrote() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.progress()
	if x.handed && !x.over {
		x.tellSent()
	}
}

// tellSent reports once that the request is written. mu is held.
func (x *stdCall) tellSent() {
	if x.sent || x.conn != nil && x.conn.wroteFirst.Load() == 0 {
		return // the second: hung up before anything was flushed
	}
	x.sent = true
	last := clock.Now()
	if x.conn != nil {
		// Where a quick server's head is here before the write has returned,
		// now is as good.
		if t := x.conn.wroteLast.Load(); t >= x.conn.wroteFirst.Load() {
			last = time.Duration(t)
		}
	}
	x.sink.Sent(x.firstWrite(), last)
}

// fail says what an error of the transport means here.
func (x *stdCall) fail(err error) error {
	if x.ctx.Err() != nil {
		return context.Cause(x.ctx)
	}
	if x.c.ctx.Err() != nil { // which may reach a dial sooner than x
		return ErrAborted
	}
	x.mu.Lock()
	reused, answered, connected := x.reused, x.answered, x.started != 0
	x.mu.Unlock()
	switch {
	case !connected:
		return err
	case !answered && reused:
		x.c.stale.Add(1)
		return ErrStale
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return ErrTruncated
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return err // reset, unreachable, ...
	}
	return fmt.Errorf("%w: %w", ErrProtocol, err)
}
