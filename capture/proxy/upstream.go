package proxy

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// errHead is an answer whose head is larger than allowed.
var errHead = errors.New("the head of the answer is too large")

// An upstreamConn is a connection to the upstream that speaks HTTP/1.1 and
// carries one request at a time, driven by the goroutine of that request.
//
// net/http's Transport has two goroutines to a connection and hands each
// request and answer between three; with events of a few hundred bytes that is
// where a proxy spends its time. Here only the hand-over is gone: answers are
// parsed by net/http.
type upstreamConn struct {
	net.Conn
	br    *bufio.Reader
	idle  time.Time // since when it carries no request
	used  bool      // it has carried a request before this one
	left  int64     // bytes of head that may still be read; < 0: any
	read  int64     // bytes read for the current request
	alive func() bool
}

// Read enforces the bound on heads, which http.ReadResponse does not have.
func (c *upstreamConn) Read(p []byte) (int, error) {
	if c.left == 0 {
		return 0, errHead
	}
	if c.left > 0 && int64(len(p)) > c.left {
		p = p[:c.left]
	}
	n, err := c.Conn.Read(p)
	c.read += int64(n)
	if c.left > 0 {
		c.left -= int64(n)
	}
	return n, err
}

// An upstream is a pool of connections to one server.
type upstream struct {
	addr    string // host:port
	connect time.Duration
	keep    time.Duration // longest idle time of a connection that is used again
	most    int           // idle connections

	mu     sync.Mutex
	free   []*upstreamConn // oldest first
	closed bool
	open   gauge
	reaper *time.Timer
}

func newUpstream(addr string, o *Options) *upstream {
	return &upstream{addr: addr, connect: o.ConnectTimeout, keep: o.UpstreamIdle, most: o.MaxConnections}
}

// get returns a connection, an idle one if reuse is true and there is one.
func (u *upstream) get(ctx context.Context, reuse bool) (*upstreamConn, error) {
	for reuse {
		u.mu.Lock()
		n := len(u.free) - 1
		if n < 0 {
			u.mu.Unlock()
			break
		}
		// The newest is the one that the server is least likely to be closing.
		c := u.free[n]
		u.free[n] = nil
		u.free = u.free[:n]
		u.mu.Unlock()
		if time.Since(c.idle) < u.keep && c.alive() {
			c.used = true
			return c, nil
		}
		u.drop(c)
	}
	d := net.Dialer{Timeout: u.connect}
	conn, err := d.DialContext(ctx, "tcp", u.addr)
	if err != nil {
		return nil, err
	}
	u.open.Add(1)
	c := &upstreamConn{Conn: conn, alive: aliveFunc(conn)}
	c.br = bufio.NewReaderSize(c, smallBuffer)
	return c, nil
}

// put takes back a connection whose exchange is complete on both sides.
func (u *upstream) put(c *upstreamConn) {
	c.idle = time.Now()
	u.mu.Lock()
	ok := !u.closed && len(u.free) < u.most && c.br.Buffered() == 0
	if ok {
		u.free = append(u.free, c)
		if u.reaper == nil {
			u.reaper = time.AfterFunc(u.keep, u.reap)
		}
	}
	u.mu.Unlock()
	if !ok {
		u.drop(c)
	}
}

func (u *upstream) drop(c *upstreamConn) {
	c.Close()
	u.open.Add(-1)
}

// reap closes connections that were idle for too long.
func (u *upstream) reap() {
	u.mu.Lock()
	n := 0
	for n < len(u.free) && time.Since(u.free[n].idle) >= u.keep {
		n++
	}
	old := append([]*upstreamConn(nil), u.free[:n]...)
	u.free = append(u.free[:0], u.free[n:]...)
	clear(u.free[len(u.free):cap(u.free)])
	u.reaper = nil
	if len(u.free) > 0 && !u.closed {
		u.reaper = time.AfterFunc(u.keep/2, u.reap)
	}
	u.mu.Unlock()
	for _, c := range old {
		u.drop(c)
	}
}

// close closes idle connections, and those in use once they are put back.
func (u *upstream) close() {
	u.mu.Lock()
	u.closed = true
	free := u.free
	u.free = nil
	if u.reaper != nil {
		u.reaper.Stop()
	}
	u.mu.Unlock()
	for _, c := range free {
		u.drop(c)
	}
}

// head reads the next head of an answer to r.
func (c *upstreamConn) head(r *http.Request) (*http.Response, error) {
	resp, err := http.ReadResponse(c.br, r)
	if err == io.ErrUnexpectedEOF && c.read == 0 {
		err = io.EOF
	}
	return resp, err
}
