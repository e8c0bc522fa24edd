package wire

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"reprise/internal/clock"
)

// A server runs a script on every connection it accepts.
type server struct {
	ln       net.Listener
	accepted atomic.Int64
	open     atomic.Int64
	peak     atomic.Int64
}

// serve runs script on each connection, numbered from 0, until the test ends.
// The connection is closed when script returns.
func serve(t *testing.T, script func(i int, c *peer)) *server {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{ln: ln}
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := map[net.Conn]bool{}
	closed := false
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if errors.Is(err, syscall.EMFILE) {
				time.Sleep(time.Millisecond) // a test is about that
				continue
			}
			if err != nil {
				return
			}
			i := int(s.accepted.Add(1) - 1)
			if n := s.open.Add(1); n > s.peak.Load() {
				s.peak.Store(n)
			}
			mu.Lock()
			conns[c] = true
			if closed {
				c.Close()
			}
			mu.Unlock()
			wg.Go(func() {
				defer s.open.Add(-1)
				defer func() { mu.Lock(); delete(conns, c); mu.Unlock(); c.Close() }()
				script(i, &peer{c.(*net.TCPConn), bufio.NewReader(c)})
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		closed = true
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return s
}

func (s *server) url() string { return "http://" + s.ln.Addr().String() }

// A peer is the server's end of a connection.
type peer struct {
	*net.TCPConn
	br *bufio.Reader
}

// request reads one request with its body; ok is false when there is none.
func (p *peer) request() (r *http.Request, body []byte, ok bool) {
	r, err := http.ReadRequest(p.br)
	if err != nil {
		return nil, nil, false
	}
	body, err = io.ReadAll(r.Body)
	return r, body, err == nil
}

func (p *peer) say(s string) { io.WriteString(p.TCPConn, s) }

// answer says one whole answer.
func (p *peer) answer(body string) {
	p.say("HTTP/1.1 200 OK\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body)
}

// hold waits until the client hangs up.
func (p *peer) hold() { io.Copy(io.Discard, p.br) }

// echo answers every request with its body.
func echo(i int, p *peer) {
	for {
		_, body, ok := p.request()
		if !ok {
			return
		}
		p.answer(string(body))
	}
}

// A record is a sink that keeps what it is told, and checks the contract.
type record struct {
	t       testing.TB
	onConn  func()
	onData  func()
	busy    atomic.Int32
	done    chan struct{}
	attempt int
	resends int // allowed
	stage   string
	heard   atomic.Int32 // calls
	last    time.Duration

	reused      []bool
	first, sent time.Duration
	headAt      time.Duration
	head        Head
	data        []byte
	dataAt      []time.Duration
	closeAt     time.Duration
	err         error
}

func newRecord(t testing.TB) *record {
	return &record{t: t, done: make(chan struct{}), last: clock.Now()}
}

// enter checks that a call comes after one of the stages given.
func (r *record) enter(stage string, after ...string) {
	if r.busy.Add(1) != 1 {
		r.t.Errorf("%s while another call runs", stage)
	}
	if !slices.Contains(after, r.stage) {
		r.t.Errorf("%s after %q", stage, r.stage)
	}
	r.stage = stage
	r.heard.Add(1)
}

// until waits for the n-th call.
func (r *record) until(n int32) {
	r.t.Helper()
	for range 10_000 {
		if r.heard.Load() >= n {
			return
		}
		time.Sleep(time.Millisecond)
	}
	r.t.Fatalf("heard %d calls, want %d", r.heard.Load(), n)
}

func (r *record) stamp(what string, at time.Duration) {
	if at < r.last || at > clock.Now() {
		r.t.Errorf("%s is stamped %v, the event before %v, and now is %v", what, at, r.last, clock.Now())
	}
	r.last = at
}

func (r *record) Conn(at time.Duration, reused bool) {
	after := []string{""}
	if r.attempt++; r.attempt > 1 {
		if after = []string{"Sent", "Conn"}; r.attempt > 1+r.resends {
			r.t.Errorf("Conn for the %d. time", r.attempt)
		}
	}
	r.enter("Conn", after...)
	r.stamp("Conn", at)
	r.reused = append(r.reused, reused)
	if r.onConn != nil {
		r.onConn()
	}
	r.busy.Add(-1)
}

func (r *record) Sent(first, last time.Duration) {
	r.enter("Sent", "Conn")
	r.stamp("Sent", first)
	if last != 0 && last < first || last > clock.Now() {
		r.t.Errorf("Sent from %v to %v", first, last)
	}
	r.first, r.sent = first, last
	r.busy.Add(-1)
}

func (r *record) Head(at time.Duration, h Head) {
	r.enter("Head", "Sent")
	r.stamp("Head", at)
	r.headAt, r.head = at, h
	r.busy.Add(-1)
}

func (r *record) Data(at time.Duration, b []byte) {
	r.enter("Data", "Head", "Data")
	r.stamp("Data", at)
	if len(b) == 0 {
		r.t.Error("Data without data")
	}
	r.data = append(r.data, b...)
	r.dataAt = append(r.dataAt, at)
	if r.onData != nil {
		r.onData()
	}
	r.busy.Add(-1)
}

func (r *record) Close(at time.Duration, err error) {
	r.enter("Close", "", "Conn", "Sent", "Head", "Data")
	r.stamp("Close", at)
	r.closeAt, r.err = at, err
	r.busy.Add(-1)
	close(r.done)
}

func (r *record) wait() *record {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(20 * time.Second):
		buf := make([]byte, 1<<20)
		r.t.Fatalf("no Close; last heard %q\n%s", r.stage, buf[:runtime.Stack(buf, true)])
	}
	return r
}

// send starts a request and waits for its end.
func send(t testing.TB, c Client, body string) *record {
	t.Helper()
	r := newRecord(t)
	c.Start(&Request{Method: "POST", Path: "/", Body: []byte(body)}, r)
	return r.wait()
}

// ok fails the test unless r is a complete 200 with the body given.
func (r *record) ok(body string) *record {
	r.t.Helper()
	if r.err != nil || r.head.Status != 200 || string(r.data) != body {
		r.t.Fatalf("status %d, %d bytes %.60q, error %v; want 200, %.60q", r.head.Status, len(r.data), r.data, r.err, body)
	}
	return r
}

// both runs a test on each implementation, and counts goroutines and
// descriptors before and after it.
func both(t *testing.T, test func(t *testing.T, open func(base string, o Options) Client)) {
	for _, impl := range []struct {
		name string
		open func(string, Options) (Client, error)
	}{{"std", NewStd}, {"raw", NewRaw}} {
		t.Run(impl.name, func(t *testing.T) {
			if impl.name == "raw" && !haveRaw {
				t.Skip("the raw client is for Linux")
			}
			countLeaks(t)
			test(t, func(base string, o Options) Client {
				t.Helper()
				c, err := impl.open(base, o)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(c.Close)
				return c
			})
		})
	}
}

func descriptors() int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(d)
}

func countLeaks(t *testing.T) {
	goroutines, files := runtime.NumGoroutine(), descriptors()
	t.Cleanup(func() {
		var g, f int
		for range 200 {
			if g, f = runtime.NumGoroutine(), descriptors(); g <= goroutines && f <= files {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		buf := make([]byte, 1<<20)
		t.Errorf("%d goroutines and %d descriptors, before %d and %d\n%s", g, f, goroutines, files, buf[:runtime.Stack(buf, true)])
	})
}

func TestMain(m *testing.M) {
	log.SetOutput(io.Discard) // net/http complains there of what these tests provoke
	os.Exit(m.Run())
}

func TestKinds(t *testing.T) {
	t.Setenv("HTTP_PROXY", "")
	want := map[string]string{"http://127.0.0.1:1": KindRaw, "https://127.0.0.1:1/v1": KindStd}
	if !haveRaw {
		want["http://127.0.0.1:1"] = KindStd
	}
	for base, kind := range want {
		c, err := New(base, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if c.Kind() != kind {
			t.Errorf("New(%q).Kind() = %q, want %q", base, c.Kind(), kind)
		}
		c.Close()
	}
	proxy, _ := url.Parse("http://127.0.0.1:3128")
	c, err := New("http://10.0.0.1", Options{Proxy: proxy})
	if err != nil {
		t.Fatal(err)
	}
	if c.Kind() != KindStd {
		t.Errorf("with a proxy: %q, want %q", c.Kind(), KindStd)
	}
	c.Close()
	for _, bad := range []string{"", "127.0.0.1:8000", "ftp://h", "http://", "http://u:p@h", "http://h/?q=1", "http://h:x", "http://h\x00"} {
		if c, err := New(bad, Options{}); err == nil {
			c.Close()
			t.Errorf("New(%q) = %s, want an error", bad, c.Kind())
		}
	}
}

// What a server sees is the same from both clients.
func TestRequestOnTheWire(t *testing.T) {
	both(t, func(t *testing.T, open func(string, Options) Client) {
		type seen struct {
			line, host, ctype, agent, length, id, body string
		}
		heard := make(chan seen, 100)
		srv := serve(t, func(i int, p *peer) {
			for {
				r, body, ok := p.request()
				if !ok {
					return
				}
				heard <- seen{r.Method + " " + r.RequestURI, r.Host, r.Header.Get("Content-Type"), r.Header.Get("User-Agent"),
					r.Header.Get("Content-Length"), strings.Join(r.Header["X-Id"], ","), string(body)}
				if r.Method == "HEAD" {
					p.say("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n")
				} else {
					p.answer("")
				}
			}
		})
		c := open(srv.url()+"/base/", Options{})
		host := srv.ln.Addr().String()
		tests := []struct {
			req  Request
			want seen
		}{
			{Request{Method: "POST", Path: "/v1/x?a=%20b", Body: []byte("{}"), Header: []Field{{"X-Id", "1"}, {"X-Id", "2"}}},
				seen{"POST /base/v1/x?a=%20b", host, "application/json", userAgent, "2", "1,2", "{}"}},
			{Request{Method: "POST", Path: "/"}, seen{"POST /base/", host, "", userAgent, "0", "", ""}},
			{Request{Method: "GET", Path: "/health"}, seen{"GET /base/health", host, "", userAgent, "", "", ""}},
			{Request{Path: "/health"}, seen{"GET /base/health", host, "", userAgent, "", "", ""}},
			{Request{Method: "HEAD", Path: "/"}, seen{"HEAD /base/", host, "", userAgent, "", "", ""}},
			{Request{Method: "POST", Path: "/", Body: []byte("x"), Header: []Field{{"user-agent", "me"}, {"content-type", "text/plain"}, {"host", "h:1"}, {"Content-Length", "99"}}},
				seen{"POST /base/", "h:1", "text/plain", "me", "1", "", "x"}},
		}
		for _, tt := range tests {
			r := newRecord(t)
			c.Start(&tt.req, r)
			r.wait().ok("")
			if got := <-heard; got != tt.want {
				t.Errorf("%s %s: the server saw %+v, want %+v", tt.req.Method, tt.req.Path, got, tt.want)
			}
		}
		if n := srv.accepted.Load(); n != 1 {
			t.Errorf("%d connections, want 1", n)
		}
		for _, bad := range []Request{
			{Method: "POST", Path: "v1"}, {Method: "POST"}, {Method: "PO ST", Path: "/"}, {Method: "GET", Path: "/a b"}, {Method: "GET", Path: "/\r\nX: y"},
			{Method: "GET", Path: "/", Header: []Field{{"X", "a\r\nY: b"}}}, {Method: "GET", Path: "/", Header: []Field{{"X Y", "a"}}}, {Method: "GET", Path: "/", Header: []Field{{"", "a"}}},
		} {
			r := newRecord(t)
			c.Start(&bad, r)
			if r.wait(); r.err == nil {
				t.Errorf("%q %q %v was sent", bad.Method, bad.Path, bad.Header)
			}
		}
		if n := len(heard); n != 0 {
			t.Errorf("the server saw %d requests too many", n)
		}
	})
}

// Every answer of the parser's table, over a real connection, cut into writes:
// both clients end as net/http's own reader does.
func TestAnswersOverConnections(t *testing.T) {
	both(t, func(t *testing.T, open func(string, Options) Client) {
		for _, tt := range answers {
			for _, cut := range []string{"whole", "bytes", "halves"} {
				srv := serve(t, func(i int, p *peer) {
					if _, _, ok := p.request(); !ok {
						return
					}
					switch cut {
					case "whole":
						p.say(tt.in)
					case "bytes":
						for j := range len(tt.in) {
							p.say(tt.in[j : j+1])
						}
					case "halves":
						p.say(tt.in[:len(tt.in)/2])
						time.Sleep(2 * time.Millisecond)
						p.say(tt.in[len(tt.in)/2:])
					}
					p.CloseWrite()
					p.hold()
				})
				c := open(srv.url(), Options{})
				r := send(t, c, "{}")
				c.Close()
				want := parsed([]byte(tt.in), "POST", whole)
				if want.head.ContentEncoding != "" {
					want.err = ErrEncoding
				}
				if c.Kind() == KindStd {
					// net/http takes a few answers that the parser refuses.
					if o := oracle([]byte(tt.in), "POST"); (o.err == nil) != (want.err == nil) && o.head.Status != 101 && want.head.ContentEncoding == "" {
						want.err, want.data = o.err, o.data
					}
				}
				switch {
				case want.err == nil && (r.err != nil || string(r.data) != want.data):
					t.Errorf("%s, %s: %q, %v; want %q", tt.name, cut, r.data, r.err, want.data)
				case want.err != nil && r.err == nil:
					t.Errorf("%s, %s: %q and no error, want %v", tt.name, cut, r.data, want.err)
				case c.Kind() == KindRaw && want.err != nil && !errors.Is(r.err, errors.Unwrap(want.err)) && !errors.Is(r.err, want.err):
					t.Errorf("%s, %s: error %v, want %v", tt.name, cut, r.err, want.err)
				}
			}
		}
	})
}

func TestReuse(t *testing.T) {
	both(t, func(t *testing.T, open func(string, Options) Client) {
		srv := serve(t, echo)
		c := open(srv.url(), Options{})
		for i := range 3 {
			if r := send(t, c, "hello").ok("hello"); r.reused[0] != (i > 0) {
				t.Errorf("request %d: reused = %t", i, r.reused[0])
			}
		}
		if n, d := srv.accepted.Load(), c.Stats().Dialed; n != 1 || d != 1 {
			t.Errorf("%d connections accepted, %d dialed, want 1", n, d)
		}
	})
}

func TestConnectionClose(t *testing.T) {
	both(t, func(t *testing.T, open func(string, Options) Client) {
		for _, head := range []string{"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n"} {
			srv := serve(t, func(i int, p *peer) {
				for { // a server that does not do as it says
					if _, _, ok := p.request(); !ok {
						return
					}
					p.say(head + "ok")
				}
			})
			c := open(srv.url(), Options{})
			for range 3 {
				send(t, c, "{}").ok("ok")
			}
			if n := srv.accepted.Load(); n != 3 {
				t.Errorf("%q: %d connections, want 3", head, n)
			}
		}
	})
}

// What a server says beyond its answer is never taken for another's.
func TestGarbageAfterAnAnswer(t *testing.T) {
	const evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL"
	for _, tt := range []struct {
		name  string
		pause time.Duration // between answer and garbage; -1: one write
	}{{"in the same write", -1}, {"in the next write", 0}, {"while idle", 2 * time.Millisecond}} {
		t.Run(tt.name, func(t *testing.T) {
			both(t, func(t *testing.T, open func(string, Options) Client) {
				// Garbage that comes after the next request was written is, by
				// all that HTTP/1.1 knows, the answer to it.
				said := make(chan bool, 1)
				srv := serve(t, func(i int, p *peer) {
					for {
						_, body, ok := p.request()
						if !ok {
							return
						}
						answer := "HTTP/1.1 200 OK\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + string(body)
						if tt.pause < 0 {
							p.say(answer + evil)
						} else {
							p.say(answer)
							time.Sleep(tt.pause)
							p.say(evil)
						}
						said <- true
					}
				})
				c := open(srv.url(), Options{})
				for i := range 5 {
					body := "mine " + strconv.Itoa(i)
					send(t, c, body).ok(body)
					<-said
					// net/http looks at a connection once it is idle, and may
					// be late; the raw client looks before it sends.
					if c.Kind() == KindStd {
						time.Sleep(50 * time.Millisecond)
					}
				}
				if n := srv.accepted.Load(); n != 5 {
					t.Errorf("%d connections, want 5", n)
				}
			})
		})
	}
}

func TestServerClosesIdleConnections(t *testing.T) {
	both(t, func(t *testing.T, open func(string, Options) Client) {
		srv := serve(t, func(i int, p *peer) {
			if _, body, ok := p.request(); ok {
				p.answer(string(body))
			}
		})
		c := open(srv.url(), Options{})
		for range 5 {
			if r := send(t, c, "x").ok("x"); r.reused[0] {
				t.Error("a closed connection was reused")
			}
			time.Sleep(10 * time.Millisecond)
		}
		if st := c.Stats(); st.Dialed != 5 || st.Stale != 0 {
			t.Errorf("%+v, want 5 dialed and none stale", st)
		}
	})
}

// closesSecond answers the first request of each connection, and closes on
// reading the second.
func closesSecond(reset bool) func(i int, p *peer) {
	return func(i int, p *peer) {
		_, body, ok := p.request()
		if !ok {
			return
		}
		p.answer(string(body))
		p.request()
		if reset {
			p.SetLinger(0)
		}
	}
}

func TestStale(t *testing.T) {
	for _, reset := range []bool{false, true} {
		both(t, func(t *testing.T, open func(string, Options) Client) {
			srv := serve(t, closesSecond(reset))
			c := open(srv.url(), Options{})
			send(t, c, "x").ok("x")
			if r := send(t, c, "y"); r.err != ErrStale || !r.reused[0] {
				t.Errorf("error %v, want ErrStale", r.err)
			}
			send(t, c, "z").ok("z")
			if st := c.Stats(); st.Stale != 1 || st.Resent != 0 || srv.accepted.Load() != 2 {
				t.Errorf("%+v, %d connections, want 1 stale, none resent, 2 connections", st, srv.accepted.Load())
			}
			// A GET may be sent again by the standards of HTTP. It is not.
			r := newRecord(t)
			c.Start(&Request{Method: "GET", Path: "/"}, r)
			if r.wait(); r.err != ErrStale {
				t.Errorf("GET: error %v, want ErrStale", r.err)
			}
		})
		both(t, func(t *testing.T, open func(string, Options) Client) {
			srv := serve(t, closesSecond(reset))
			c := open(srv.url(), Options{RetryStale: true})
			send(t, c, "x").ok("x")
			r := newRecord(t)
			r.resends = 1
			c.Start(&Request{Method: "POST", Path: "/", Body: []byte("y")}, r)
			r.wait().ok("y")
			if !slices.Equal(r.reused, []bool{true, false}) {
				t.Errorf("reused = %v, want true and false", r.reused)
			}
			if st := c.Stats(); st.Stale != 1 || st.Resent != 1 || srv.accepted.Load() != 2 {
				t.Errorf("%+v, %d connections, want 1 stale, 1 resent, 2 connections", st, srv.accepted.Load())
			}
		})
	}
}

// A server that hangs up on a new connection is no stale one, and is asked once.
func TestHangsUpAtOnce(t *testing.T) {
	both(t, func(t *testing.T, open func(string, Options) Client) {
		var requests atomic.Int64
		srv := serve(t, func(i int, p *peer) {
			if _, _, ok := p.request(); ok {
				requests.Add(1)
			}
		})
		c := open(srv.url(), Options{RetryStale: true})
		if r := send(t, c, "x"); !errors.Is(r.err, ErrTruncated) || r.reused[0] {
			t.Errorf("error %v, want ErrTruncated", r.err)
		}
		if n := requests.Load(); n != 1 || c.Stats().Resent != 0 {
			t.Errorf("sent %d times, want once", n)
		}
	})
}

func TestResetInMidEvent(t *testing.T) {
	both(t, func(t *testing.T, open func(string, Options) Client) {
		srv := serve(t, func(i int, p *peer) {
			p.request()
			p.say("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n10\r\ndata: fi")
			time.Sleep(20 * time.Millisecond) // a reset takes what was not read
			p.SetLinger(0)
		})
		c := open(srv.url(), Options{})
		r := send(t, c, "x")
		if !errors.Is(r.err, syscall.ECONNRESET) || string(r.data) != "data: fi" || r.head.ContentType != "text/event-stream" {
			t.Errorf("%q, %+v, error %v; want the data before the reset, and ECONNRESET", r.data, r.head, r.err)
		}
	})
}

func TestCompressedAnswer(t *testing.T) {
	both(t, func(t *testing.T, open func(string, Options) Client) {
		srv := serve(t, func(i int, p *peer) {
			p.request()
			p.say("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 20\r\n\r\n\x1f\x8b\x08")
			p.hold()
		})
		c := open(srv.url(), Options{})
		if r := send(t, c, "x"); !errors.Is(r.err, ErrEncoding) || r.head.ContentEncoding != "gzip" || len(r.data) != 0 {
			t.Errorf("%+v, %q, error %v; want ErrEncoding and no data", r.head, r.data, r.err)
		}
	})
}

func TestTimeouts(t *testing.T) {
	const d = 60 * time.Millisecond
	both(t, func(t *testing.T, open func(string, Options) Client) {
		srv := serve(t, func(i int, p *peer) {
			r, _, ok := p.request()
			if !ok {
				return
			}
			switch r.URL.Path {
			case "/drip":
				p.say("HTTP/1.1 200 OK\r\n\r\n")
				for range 1000 {
					p.say("x")
					time.Sleep(d / 5)
					if _, err := p.TCPConn.Write(nil); err != nil {
						return
					}
				}
			case "/stall":
				p.say("HTTP/1.1 200 OK\r\n\r\nx")
			}
			p.hold()
		})
		c := open(srv.url(), Options{})
		for _, tt := range []struct {
			path        string
			idle, total time.Duration
			want        error
			min         time.Duration
		}{
			{"/never", d, 0, ErrIdleTimeout, d},
			{"/never", 0, d, ErrTotalTimeout, d},
			{"/stall", d, time.Hour, ErrIdleTimeout, d},
			{"/drip", 10 * d, 12 * d, ErrTotalTimeout, 12 * d},
		} {
			r := newRecord(t)
			start := clock.Now()
			c.Start(&Request{Method: "POST", Path: tt.path, Body: []byte("x"), Idle: tt.idle, Total: tt.total}, r)
			r.wait()
			if took := r.closeAt - start; r.err != tt.want || took < tt.min || took > tt.min+2*time.Second {
				t.Errorf("%s, idle %v, total %v: %v after %v, want %v after %v", tt.path, tt.idle, tt.total, r.err, took, tt.want, tt.min)
			}
			if !errors.Is(r.err, os.ErrDeadlineExceeded) {
				t.Errorf("%v is no os.ErrDeadlineExceeded", r.err)
			}
		}
		// A limit that is not reached changes nothing, however often it is set.
		for range 50 {
			r := newRecord(t)
			req := &Request{Method: "POST", Path: "/stall", Body: []byte("x"), Idle: time.Minute, Total: time.Hour}
			started := make(chan Call, 1)
			r.onData = func() { (<-started).Abort() }
			started <- c.Start(req, r)
			if r.wait(); r.err != ErrAborted {
				t.Errorf("error %v, want ErrAborted", r.err)
			}
		}
	})
}

func TestRefused(t *testing.T) {
	both(t, func(t *testing.T, open func(string, Options) Client) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ln.Close()
		c := open("http://"+ln.Addr().String(), Options{MaxConns: 2})
		var all []*record
		for range 10 {
			r := newRecord(t)
			c.Start(&Request{Method: "POST", Path: "/"}, r)
			all = append(all, r)
		}
		for _, r := range all {
			if r.wait(); !errors.Is(r.err, syscall.ECONNREFUSED) || !strings.Contains(r.err.Error(), ln.Addr().String()) {
				t.Errorf("error %v, want ECONNREFUSED with the address", r.err)
			}
		}
		if err := c.Warm(3); err == nil {
			t.Error("Warm(3) with a limit of 2: no error")
		}
		if err := c.Warm(2); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("Warm(2): %v, want ECONNREFUSED", err)
		}
	})
}

// A name with several addresses: the first that answers is used.
func TestFallsBackToTheNextAddress(t *testing.T) {
	both(t, func(t *testing.T, open func(string, Options) Client) {
		srv := serve(t, echo)
		_, port, _ := net.SplitHostPort(srv.ln.Addr().String())
		c := open("http://localhost:"+port, Options{}) // ::1, where there is one, refuses
		send(t, c, "x").ok("x")
		send(t, c, "y").ok("y")
	})
}

func TestWarm(t *testing.T) {
	both(t, func(t *testing.T, open func(string, Options) Client) {
		const n = 40
		var together sync.WaitGroup
		together.Add(n)
		srv := serve(t, func(i int, p *peer) {
			for {
				_, body, ok := p.request()
				if !ok {
					return
				}
				together.Done()
				together.Wait()
				p.answer(string(body))
			}
		})
		c := open(srv.url(), Options{MaxConns: n})
		if err := c.Warm(n); err != nil {
			t.Fatal(err)
		}
		if d := c.Stats().Dialed; d != n {
			t.Errorf("Warm(%d) opened %d connections", n, d)
		}
		var all []*record
		for range n {
			r := newRecord(t)
			c.Start(&Request{Method: "POST", Path: "/", Body: []byte("x")}, r)
			all = append(all, r)
		}
		for _, r := range all {
			if r.wait().ok("x"); !r.reused[0] {
				t.Error("a request had a connection opened")
			}
		}
		if a := srv.accepted.Load(); a != n {
			t.Errorf("%d connections, want %d", a, n)
		}
	})
}

func TestMaxConns(t *testing.T) {
	both(t, func(t *testing.T, open func(string, Options) Client) {
		srv := serve(t, func(i int, p *peer) {
			for n := 0; ; n++ {
				_, body, ok := p.request()
				if !ok {
					return
				}
				time.Sleep(time.Millisecond)
				if n == 3 { // so that places become free the hard way, too
					p.say("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + string(body))
					return
				}
				p.answer(string(body))
			}
		})
		c := open(srv.url(), Options{MaxConns: 3})
		var all []*record
		for i := range 60 {
			r := newRecord(t)
			c.Start(&Request{Method: "POST", Path: "/", Body: []byte(strconv.Itoa(i))}, r)
			all = append(all, r)
		}
		for i, r := range all {
			r.wait().ok(strconv.Itoa(i))
		}
		// A connection that the client has left may still be open at the server.
		if p := srv.peak.Load(); p > 5 {
			t.Errorf("%d connections at a time, want 3", p)
		}
	})
}

func TestLargeBodies(t *testing.T) {
	both(t, func(t *testing.T, open func(string, Options) Client) {
		srv := serve(t, func(i int, p *peer) {
			for {
				_, body, ok := p.request()
				if !ok {
					return
				}
				fmt.Fprintf(p, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
				for len(body) > 0 {
					k := min(len(body), 1+rand.IntN(100_000))
					fmt.Fprintf(p, "%x\r\n%s\r\n", k, body[:k])
					body = body[k:]
				}
				p.say("0\r\n\r\n")
			}
		})
		c := open(srv.url(), Options{})
		var all []*record
		var sums [][32]byte
		for i := range 4 {
			body := make([]byte, 3<<20+i)
			rand.NewChaCha8([32]byte{byte(i)}).Read(body)
			sums = append(sums, sha256.Sum256(body))
			r := newRecord(t)
			c.Start(&Request{Method: "POST", Path: "/", Body: body}, r)
			all = append(all, r)
		}
		for i, r := range all {
			if r.wait(); r.err != nil || sha256.Sum256(r.data) != sums[i] {
				t.Errorf("%d of %d bytes came back, error %v", len(r.data), 3<<20+i, r.err)
			}
			if r.sent == 0 || r.sent < r.first {
				t.Errorf("sent from %v to %v", r.first, r.sent)
			}
		}
	})
}

// A server may answer before it has read the request.
func TestAnswerBeforeTheRequestIsWritten(t *testing.T) {
	both(t, func(t *testing.T, open func(string, Options) Client) {
		srv := serve(t, func(i int, p *peer) {
			if r, err := http.ReadRequest(p.br); err != nil || r.ContentLength < 1<<20 {
				p.answer("second")
				p.hold()
				return
			}
			p.say("HTTP/1.1 413 Too Large\r\nContent-Length: 5\r\n\r\nlarge")
			// It reads no more, and holds the connection.
			for buf := make([]byte, 1); ; time.Sleep(time.Millisecond) {
				p.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
				if _, err := p.Read(buf); err != nil || i > 0 {
					return
				}
			}
		})
		c := open(srv.url(), Options{})
		r := newRecord(t)
		c.Start(&Request{Method: "POST", Path: "/", Body: make([]byte, 32<<20)}, r)
		r.wait()
		if r.err != nil || r.head.Status != 413 || string(r.data) != "large" {
			t.Errorf("status %d, %q, error %v; want 413 and its body", r.head.Status, r.data, r.err)
		}
		if r.sent != 0 {
			t.Errorf("the request is said to be written out at %v", r.sent)
		}
		if r := send(t, c, "x").ok("second"); r.reused[0] {
			t.Error("a connection with half a request on it was reused")
		}
	})
}

// phases gives a server and a body for each phase that a request can be in.
var phases = []struct {
	name   string
	script func(i int, p *peer)
	size   int
	after  string // the last that the sink hears before the abort
}{
	{"writing", nil, 64 << 20, "Conn"},
	{"waiting for the head", func(i int, p *peer) { p.request(); p.hold() }, 10, "Sent"},
	{"inside the head", func(i int, p *peer) { p.request(); p.say("HTTP/1.1 20"); p.hold() }, 10, "Sent"},
	{"before the body", func(i int, p *peer) { p.request(); p.say("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"); p.hold() }, 10, "Head"},
	{"inside the body", func(i int, p *peer) { p.request(); p.say("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"); p.hold() }, 10, "Data"},
	{"inside a chunk", func(i int, p *peer) {
		p.request()
		p.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc")
		p.hold()
	}, 10, "Data"},
}

func TestAbortInEveryPhase(t *testing.T) {
	for _, how := range []string{"abort", "close"} {
		for _, ph := range phases {
			t.Run(how+" "+ph.name, func(t *testing.T) {
				both(t, func(t *testing.T, open func(string, Options) Client) {
					stop := make(chan struct{})
					script := ph.script
					if ph.name == "writing" {
						script = func(i int, p *peer) { <-stop } // reads nothing
					}
					srv := serve(t, script)
					t.Cleanup(func() { close(stop) })
					c := open(srv.url(), Options{MaxConns: 1})
					r := newRecord(t)
					call := c.Start(&Request{Method: "POST", Path: "/", Body: make([]byte, ph.size)}, r)
					r.until(1)
					queued := newRecord(t)
					other := c.Start(&Request{Method: "POST", Path: "/", Body: []byte("x")}, queued)
					calls := map[string]int32{"Conn": 1, "Sent": 2, "Head": 3, "Data": 4}[ph.after]
					if c.Kind() == KindStd && ph.name == "inside a chunk" {
						calls = 3 // net/http keeps the start of a chunk until the rest is there, or none is to come
					}
					r.until(calls)
					time.Sleep(10 * time.Millisecond)
					if how == "close" {
						c.Close()
					} else {
						other.Abort()
						if queued.wait(); queued.err != ErrAborted || queued.stage != "Close" || queued.attempt != 0 {
							t.Errorf("waiting for a connection: error %v after %d attempts, want ErrAborted", queued.err, queued.attempt)
						}
						call.Abort()
						call.Abort()
					}
					for _, r := range []*record{r, queued} {
						if r.wait(); r.err != ErrAborted {
							t.Errorf("error %v, want ErrAborted", r.err)
						}
					}
					heard := "Conn"
					switch {
					case len(r.data) > 0:
						heard = "Data"
					case r.head.Status != 0:
						heard = "Head"
					case r.sent != 0:
						heard = "Sent"
					}
					if heard != ph.after {
						t.Errorf("heard up to %s, want %s", heard, ph.after)
					}
					call.Abort() // after the end
					other.Abort()
				})
			})
		}
	}
}

// An abort from inside the sink is the way of token-based hang-ups.
func TestAbortFromTheSink(t *testing.T) {
	both(t, func(t *testing.T, open func(string, Options) Client) {
		srv := serve(t, func(i int, p *peer) {
			p.request()
			p.say("HTTP/1.1 200 OK\r\n\r\n")
			for {
				if _, err := p.Write([]byte("data: x\n\n")); err != nil {
					return
				}
				time.Sleep(time.Millisecond)
			}
		})
		c := open(srv.url(), Options{})
		for range 20 {
			r := newRecord(t)
			started := make(chan Call, 1)
			n := 0
			r.onData = func() {
				if n++; n == 3 {
					(<-started).Abort()
				}
			}
			started <- c.Start(&Request{Method: "POST", Path: "/"}, r)
			if r.wait(); r.err != ErrAborted || len(r.dataAt) < 3 || len(r.dataAt) > 200 {
				t.Errorf("%d pieces, error %v; want 3 or some more, and ErrAborted", len(r.dataAt), r.err)
			}
		}
		for range 20 {
			r := newRecord(t)
			req := &Request{Method: "POST", Path: "/"}
			ready := make(chan Call, 1)
			r.onConn = func() {
				go func() { (<-ready).Abort() }()
			}
			ready <- c.Start(req, r)
			if r.wait(); r.err != ErrAborted {
				t.Errorf("error %v, want ErrAborted", r.err)
			}
		}
	})
}

func TestStartAfterClose(t *testing.T) {
	both(t, func(t *testing.T, open func(string, Options) Client) {
		srv := serve(t, echo)
		c := open(srv.url(), Options{})
		send(t, c, "x").ok("x")
		c.Close()
		c.Close()
		if r := send(t, c, "x"); !errors.Is(r.err, net.ErrClosed) {
			t.Errorf("error %v, want net.ErrClosed", r.err)
		}
		if err := c.Warm(1); err == nil {
			t.Error("Warm after Close: no error")
		}
	})
}

// Stamps tell when things happened, not when they were handled.
func TestStamps(t *testing.T) {
	const d = 40 * time.Millisecond
	both(t, func(t *testing.T, open func(string, Options) Client) {
		srv := serve(t, func(i int, p *peer) {
			for {
				if _, _, ok := p.request(); !ok {
					return
				}
				time.Sleep(d)
				p.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
				for range 3 {
					time.Sleep(d)
					p.say("2\r\nok\r\n")
				}
				p.say("0\r\n\r\n")
			}
		})
		c := open(srv.url(), Options{})
		for range 2 {
			before := clock.Now()
			r := send(t, c, "x").ok("okokok")
			if r.first < before || len(r.dataAt) != 3 {
				t.Fatalf("sent at %v to %v after the start, %d pieces", r.first-before, r.sent-before, len(r.dataAt))
			}
			// Any of them may be late on a busy machine, none early.
			for i, at := range append([]time.Duration{r.headAt}, r.dataAt...) {
				if since, min := at-r.first, time.Duration(i+1)*d; since < min || since > min+2*time.Second {
					t.Errorf("event %d came %v after the first byte sent, want %v", i, since, min)
				}
			}
		}
	})
}

// Many requests at once over a server that does all it can to confuse: each
// gets its own answer or an error, and none is lost.
func TestPairingUnderStress(t *testing.T) {
	both(t, func(t *testing.T, open func(string, Options) Client) {
		const evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nEVIL"
		srv := serve(t, func(i int, p *peer) {
			rnd := rand.New(rand.NewPCG(1, uint64(i)))
			for {
				_, body, ok := p.request()
				if !ok {
					return
				}
				b := string(body)
				switch rnd.IntN(12) {
				case 0:
					return
				case 1:
					p.SetLinger(0)
					return
				case 2:
					p.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("%x\r\n%s", len(b)+9, b))
					return
				case 3:
					if rnd.IntN(2) == 0 {
						time.Sleep(5 * time.Millisecond)
					}
					p.say("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b)
					return
				case 4:
					p.say("HTTP/1.1 103 Early\r\n\r\n")
					for _, c := range []byte("HTTP/1.1 200 OK\r\nContent-Length: " + strconv.Itoa(len(b)) + "\r\n\r\n" + b) {
						p.Write([]byte{c})
					}
				case 5:
					p.say("HTTP/1.1 200 OK\r\nContent-Length: " + strconv.Itoa(len(b)) + "\r\n\r\n" + b)
					return
				case 6:
					if strings.HasPrefix(b, "raw") {
						p.say("HTTP/1.1 200 OK\r\nContent-Length: " + strconv.Itoa(len(b)) + "\r\n\r\n" + b + evil)
						return
					}
					fallthrough
				default:
					fmt.Fprintf(p, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
					for j := range len(b) {
						fmt.Fprintf(p, "1\r\n%c\r\n", b[j])
					}
					p.say("0\r\n\r\n")
				}
			}
		})
		c := open(srv.url(), Options{MaxConns: 16, RetryStale: true})
		kind := "std"
		if c.Kind() == KindRaw {
			kind = "raw"
		}
		var wg sync.WaitGroup
		var fine, aborted, failed atomic.Int64
		for w := range 24 {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(2, uint64(w)))
				req := &Request{Method: "POST", Path: "/"}
				for i := range 60 {
					body := fmt.Sprintf("%s %d.%d.", kind, w, i)
					r := newRecord(t)
					r.resends = 1
					req.Body = []byte(body)
					req.Idle = []time.Duration{0, 5 * time.Second}[rnd.IntN(2)]
					call := c.Start(req, r)
					if rnd.IntN(5) == 0 {
						time.Sleep(time.Duration(rnd.IntN(500)) * time.Microsecond)
						call.Abort()
					}
					r.wait()
					switch {
					case r.err == nil && string(r.data) != body:
						t.Errorf("sent %q, got %q", body, r.data)
					case r.err == nil:
						fine.Add(1)
					case r.err == ErrAborted:
						aborted.Add(1)
					case !strings.HasPrefix(body, string(r.data)):
						t.Errorf("sent %q, got %q before %v", body, r.data, r.err)
					default:
						failed.Add(1)
					}
				}
			})
		}
		wg.Wait()
		t.Logf("%d fine, %d aborted, %d failed, %+v", fine.Load(), aborted.Load(), failed.Load(), c.Stats())
		if fine.Load() < 500 || failed.Load() == 0 || aborted.Load() == 0 {
			t.Errorf("%d fine, %d aborted, %d failed: this showed nothing", fine.Load(), aborted.Load(), failed.Load())
		}
	})
}

// Closing while requests start, run and end.
func TestCloseUnderLoad(t *testing.T) {
	both(t, func(t *testing.T, open func(string, Options) Client) {
		srv := serve(t, echo)
		for range 10 {
			c := open(srv.url(), Options{MaxConns: 8})
			var wg sync.WaitGroup
			for range 16 {
				wg.Go(func() {
					for {
						r := send(t, c, "x")
						if errors.Is(r.err, net.ErrClosed) {
							return
						}
						if r.err != nil && r.err != ErrAborted {
							t.Errorf("error %v", r.err)
							return
						}
					}
				})
			}
			time.Sleep(5 * time.Millisecond)
			c.Close()
			wg.Wait()
		}
	})
}

func TestTLS(t *testing.T) {
	for _, h2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("h2=%t", h2), func(t *testing.T) {
			countLeaks(t)
			var proto atomic.Value
			srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				proto.Store(r.Proto)
				io.Copy(w, r.Body)
			}))
			srv.EnableHTTP2 = h2
			srv.StartTLS()
			t.Cleanup(srv.Close)
			c, err := New(srv.URL, Options{HTTP2: h2, TLS: &tls.Config{InsecureSkipVerify: true}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(c.Close)
			if err := c.Warm(2); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				// HTTP/2 may answer before it reports the request as written.
				if r := send(t, c, "x").ok("x"); !r.reused[0] || r.sent == 0 && !h2 {
					t.Errorf("reused %v, sent at %v", r.reused, r.sent)
				}
			}
			if want := map[bool]string{false: "HTTP/1.1", true: "HTTP/2.0"}[h2]; proto.Load() != want {
				t.Errorf("the server saw %v, want %s", proto.Load(), want)
			}
		})
	}
	t.Run("untrusted", func(t *testing.T) {
		srv := httptest.NewTLSServer(http.NotFoundHandler())
		srv.Config.ErrorLog = nil
		t.Cleanup(srv.Close)
		c, err := New(srv.URL, Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		if r := send(t, c, "x"); r.err == nil || !strings.Contains(r.err.Error(), "certificate") {
			t.Errorf("error %v, want one about the certificate", r.err)
		}
	})
}

func TestProxy(t *testing.T) {
	countLeaks(t)
	var asked atomic.Value
	proxy := serve(t, func(i int, p *peer) {
		for {
			r, _, ok := p.request()
			if !ok {
				return
			}
			asked.Store(r.Method + " " + r.RequestURI)
			p.answer("by proxy")
		}
	})
	u, _ := url.Parse(proxy.url())
	c, err := New("http://engine.invalid:8000", Options{Proxy: u})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if err := c.Warm(1); err != nil {
		t.Fatal(err)
	}
	if r := send(t, c, "x").ok("by proxy"); !r.reused[0] {
		t.Error("the connection opened ahead was not used")
	}
	if want := "POST http://engine.invalid:8000/"; asked.Load() != want {
		t.Errorf("the proxy was asked %v, want %s", asked.Load(), want)
	}
}

func TestRedirectIsReported(t *testing.T) {
	both(t, func(t *testing.T, open func(string, Options) Client) {
		srv := serve(t, func(i int, p *peer) {
			p.request()
			p.say("HTTP/1.1 307 Temporary Redirect\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n")
			p.hold()
		})
		c := open(srv.url(), Options{})
		if r := send(t, c, "x"); r.err != nil || r.head.Status != 307 {
			t.Errorf("status %d, error %v, want 307", r.head.Status, r.err)
		}
	})
}

// Events split at every byte between writes of the server, as the clients see
// them: the data is the same.
func TestEventsSplitAtEveryByte(t *testing.T) {
	const stream = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: a\n\n\r\nd\r\ndata: [DONE]\n\r\n1\r\n\n\r\n0\r\n\r\n"
	both(t, func(t *testing.T, open func(string, Options) Client) {
		srv := serve(t, func(i int, p *peer) {
			for {
				_, body, ok := p.request()
				if !ok {
					return
				}
				at, _ := strconv.Atoi(string(body))
				p.say(stream[:at])
				time.Sleep(200 * time.Microsecond)
				p.say(stream[at:])
			}
		})
		c := open(srv.url(), Options{})
		for at := 1; at < len(stream); at++ {
			send(t, c, strconv.Itoa(at)).ok("data: a\n\ndata: [DONE]\n\n")
		}
		if n := srv.accepted.Load(); n != 1 {
			t.Errorf("%d connections, want 1", n)
		}
	})
}

func TestExplainNamesTheLimit(t *testing.T) {
	for errno, want := range map[syscall.Errno]string{syscall.EMFILE: "RLIMIT_NOFILE", syscall.ENFILE: "fs.file-max", syscall.EADDRNOTAVAIL: "ip_local_port_range"} {
		err := explain(&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", errno)})
		if !errors.Is(err, errno) || !strings.Contains(err.Error(), want) {
			t.Errorf("explain(%v) = %q, want it to name %s", errno, err, want)
		}
	}
	if err := explain(io.EOF); err != io.EOF {
		t.Errorf("explain(EOF) = %v", err)
	}
}
