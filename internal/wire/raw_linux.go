package wire

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const haveRaw = true

// A rawClient speaks HTTP/1.1 over pooled non-blocking sockets. Each of its
// shards is one epoll loop with connections of its own, so that nothing is
// shared between threads but the handing over of a connection.
type rawClient struct {
	shards []*shard
	turn   atomic.Uint32 // shard that the next request tries first
	prefix string        // of every path
	host   string        // the Host line
	ended  sync.WaitGroup
	late   refusals
}

// NewRaw returns a client with its own HTTP/1.1 for plain http, on Linux. The
// name in base is looked up here, and not again.
func NewRaw(base string, o Options) (Client, error) {
	u, err := parseBase(base)
	if err != nil {
		return nil, err
	}
	switch {
	case u.Scheme != "http":
		return nil, fmt.Errorf("the raw client does no TLS: use net/http for %s", base)
	case o.Proxy != nil:
		return nil, fmt.Errorf("the raw client knows no proxies: use net/http for %s by %s", base, o.Proxy.Host)
	case o.MaxConns < 0 || o.Loops < 0:
		return nil, errors.New("the limits of connections and loops cannot be negative")
	}
	addrs, err := lookup(u, o.connectTimeout())
	if err != nil {
		return nil, err
	}
	c := &rawClient{prefix: u.EscapedPath()}
	c.host = "Host: " + u.Host + "\r\n"
	loops := max(1, o.Loops)
	if o.MaxConns > 0 {
		loops = min(loops, o.MaxConns)
	}
	for i := range loops {
		most := o.MaxConns / loops
		if i < o.MaxConns%loops {
			most++
		}
		s, err := newShard(c, o, most, addrs)
		if err != nil {
			c.Close()
			return nil, err
		}
		c.shards = append(c.shards, s)
		c.ended.Go(s.run)
	}
	return c, nil
}

// lookup finds the addresses of a server, best first.
func lookup(u *url.URL, limit time.Duration) ([]netip.AddrPort, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_, service, _ := net.SplitHostPort(hostPort(u))
	port, err := net.DefaultResolver.LookupPort(ctx, "tcp", service)
	if err != nil {
		return nil, err
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", u.Hostname())
	if err != nil {
		return nil, err
	}
	var addrs []netip.AddrPort
	for _, ip := range ips {
		addrs = append(addrs, netip.AddrPortFrom(ip.Unmap(), uint16(port)))
	}
	return addrs, nil
}

func (c *rawClient) Kind() string { return KindRaw }

func (c *rawClient) Stats() (st Stats) {
	for _, s := range c.shards {
		st.Dialed += s.dialed.Load()
		st.Reopened += s.reopened.Load()
		st.Stale += s.stale.Load()
		st.Resent += s.resent.Load()
		st.Idle += s.spare.Load()
	}
	return st
}

// Spare implements Client.
func (c *rawClient) Spare(n int) {
	for i, s := range c.shards {
		k := n / len(c.shards)
		if i < n%len(c.shards) {
			k++
		}
		if k > 0 {
			s.warm(k, false)
		}
	}
}

// Warm implements Client.
func (c *rawClient) Warm(n int) error {
	var errs []chan error
	for i, s := range c.shards {
		k := n / len(c.shards)
		if i < n%len(c.shards) {
			k++
		}
		if k > 0 {
			errs = append(errs, s.warm(k, true))
		}
	}
	var first error
	for _, e := range errs {
		if err := <-e; first == nil {
			first = err
		}
	}
	return first
}

// Close implements Client.
func (c *rawClient) Close() {
	for _, s := range c.shards {
		s.mu.Lock()
		s.closing = true
		s.rouse()
		s.mu.Unlock()
	}
	c.ended.Wait()
	c.late.wait()
}

// headRoom is the stack space in which heads are formatted. Longer ones are
// allocated.
const headRoom = 2048

// Start implements Client. With an idle connection at hand the request is
// written here, by the caller's thread: one system call, no hand-over.
func (c *rawClient) Start(req *Request, sink Sink) Call {
	f := &req.flight
	var room [headRoom]byte
	head, err := c.appendHead(room[:0], req)
	if err != nil {
		c.late.refuse(sink, err)
		return f
	}
	// A request keeps its shard from start to start, so that an Abort of an
	// earlier start never looks at the wrong one.
	s := f.shard
	if s == nil || s.client != c {
		s = c.shards[0]
		if n := len(c.shards); n > 1 {
			from := int(c.turn.Add(1))
			s = c.shards[from%n]
			for i := range n {
				if t := c.shards[(from+i)%n]; t.spare.Load() > 0 {
					s = t
					break
				}
			}
		}
		f.shard = s
	}
	if !s.start(f, req, sink, head) {
		c.late.refuse(sink, net.ErrClosed)
	}
	return f
}

// appendHead formats the head of a request.
func (c *rawClient) appendHead(b []byte, req *Request) ([]byte, error) {
	if err := req.check(); err != nil {
		return nil, err
	}
	method := req.Method
	if method == "" {
		method = "GET"
	}
	b = append(b, method...)
	b = append(b, ' ')
	b = append(b, c.prefix...)
	b = append(b, req.Path...)
	b = append(b, " HTTP/1.1\r\n"...)
	if !slices.ContainsFunc(req.Header, func(h Field) bool { return equalFold(h.Name, "host") }) {
		b = append(b, c.host...)
	}
	agent, ctype := false, false
	for i := range req.Header {
		name, value := req.Header[i].Name, req.Header[i].Value
		switch len(name) {
		case len("User-Agent"):
			agent = agent || equalFold(name, "user-agent")
		case len("Content-Type"):
			ctype = ctype || equalFold(name, "content-type")
		case len("Content-Length"):
			if equalFold(name, "content-length") {
				continue // the body says
			}
		case len("Transfer-Encoding"):
			if equalFold(name, "transfer-encoding") {
				continue
			}
		}
		b = append(b, name...)
		b = append(b, ": "...)
		b = append(b, value...)
		b = append(b, "\r\n"...)
	}
	if !agent {
		b = append(b, "User-Agent: "+userAgent+"\r\n"...)
	}
	if len(req.Body) > 0 && !ctype {
		b = append(b, "Content-Type: application/json\r\n"...)
	}
	if len(req.Body) > 0 || method == "POST" || method == "PUT" || method == "PATCH" {
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, int64(len(req.Body)), 10)
		b = append(b, "\r\n"...)
	}
	return append(b, "\r\n"...), nil
}
