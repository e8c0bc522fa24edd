package proxy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// Listen opens addr for a proxy. With reusePort a second process can listen on
// the same address, so that a new one starts before the old one drains.
func Listen(addr string, reusePort bool) (net.Listener, error) {
	lc := net.ListenConfig{}
	if reusePort {
		lc.Control = controlReusePort
	}
	return lc.Listen(context.Background(), "tcp", addr)
}

// Activated returns the listeners that systemd passed (sd_listen_fds(3)), nil
// if there are none. The variables are removed, so that no child takes them.
func Activated() ([]net.Listener, error) {
	pid, n := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	if n == "" || pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(name)
	}
	count, err := strconv.Atoi(n)
	if err != nil || count < 0 || count > 64 {
		return nil, errors.New("LISTEN_FDS is no number of sockets")
	}
	const first = 3 // SD_LISTEN_FDS_START
	var list []net.Listener
	for fd := first; fd < first+count; fd++ {
		f := os.NewFile(uintptr(fd), "socket "+strconv.Itoa(fd))
		l, err := net.FileListener(f)
		f.Close() // the listener has a copy
		if err != nil {
			for _, l := range list {
				l.Close()
			}
			return nil, fmt.Errorf("descriptor %d is no socket to listen on", fd)
		}
		list = append(list, l)
	}
	return list, nil
}

// A limiter accepts as many connections as may be open at a time. Those beyond
// wait in the kernel's queue, where they cost nothing.
type limiter struct {
	net.Listener
	p     *Proxy
	slots chan struct{}
	stop  chan struct{}
	once  *sync.Once
}

func (l *limiter) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	default:
		l.p.m.limited.Add(1)
		select {
		case l.slots <- struct{}{}:
		case <-l.stop:
			return nil, net.ErrClosed
		}
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	l.p.m.accepted.Add(1)
	l.p.m.connections.Add(1)
	return &clientConn{Conn: c, l: l}, nil
}

func (l *limiter) Close() error {
	err := l.Listener.Close()
	l.once.Do(func() { close(l.stop) })
	return err
}

// A clientConn notes when the first byte of a request was read, which net/http
// does not tell.
type clientConn struct {
	net.Conn
	l      *limiter
	first  atomic.Int64 // 0: nothing was read since the last request
	tls    bool
	closed atomic.Bool
}

func (c *clientConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && c.first.Load() == 0 {
		c.first.Store(c.l.p.clock.now())
	}
	return n, err
}

func (c *clientConn) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		<-c.l.slots
		c.l.p.m.connections.Add(-1)
	}
	return c.Conn.Close()
}

// CloseWrite lets net/http and tunnels end one direction.
func (c *clientConn) CloseWrite() error { return closeWrite(c.Conn) }

// began is the time of the first byte of the request whose head was read just
// now. It is exact unless the request was pipelined behind another one or came
// under TLS; then now is as good.
func (c *clientConn) began(now int64) int64 {
	// Under TLS the first byte may be that of the handshake.
	if first := c.first.Swap(0); first != 0 && !c.tls {
		return first
	}
	return now
}

type connKey struct{}

// withConn is http.Server.ConnContext.
func withConn(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
		c.(*clientConn).tls = true
	}
	return context.WithValue(ctx, connKey{}, c)
}

// clientOf returns the connection of r, nil if it is not one of a limiter.
func clientOf(r *http.Request) *clientConn {
	c, _ := r.Context().Value(connKey{}).(*clientConn)
	return c
}

// tunnels are connections that net/http no longer knows.
type tunnels struct {
	mu     sync.Mutex
	open   map[net.Conn]interface{ Close() error }
	wait   sync.WaitGroup
	closed bool
}

// add reports false, and closes nothing, if it is too late for another one.
func (t *tunnels) add(c net.Conn, up interface{ Close() error }) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	if t.open == nil {
		t.open = map[net.Conn]interface{ Close() error }{}
	}
	t.open[c] = up
	t.wait.Add(1)
	return true
}

func (t *tunnels) remove(c net.Conn) {
	t.mu.Lock()
	delete(t.open, c)
	t.mu.Unlock()
	t.wait.Done()
}

func (t *tunnels) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.open)
}

// end waits for tunnels to end until the deadline, then closes them.
func (t *tunnels) end(deadline time.Time) {
	for time.Now().Before(deadline) && t.len() > 0 {
		time.Sleep(50 * time.Millisecond)
	}
	t.mu.Lock()
	t.closed = true
	for c, up := range t.open {
		c.Close()
		up.Close()
	}
	t.mu.Unlock()
	t.wait.Wait()
}
