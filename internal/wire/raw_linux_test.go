package wire

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"reprise/internal/clock"
)

// deaf is an address whose SYNs are dropped: its backlog is full.
func deaf(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", sa.(*unix.SockaddrInet4).Port)
	for {
		c, err := net.DialTimeout("tcp", addr, 100*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { c.Close() })
	}
}

func TestConnectTimeout(t *testing.T) {
	both(t, func(t *testing.T, open func(string, Options) Client) {
		const d = 100 * time.Millisecond
		addr := deaf(t)
		c := open("http://"+addr, Options{Connect: d})
		before := clock.Now()
		r := send(t, c, "x")
		if took := r.closeAt - before; !errors.Is(r.err, ErrConnectTimeout) || !strings.Contains(r.err.Error(), addr) || took < d || took > 20*d {
			t.Errorf("%v after %v, want ErrConnectTimeout with the address after %v", r.err, took, d)
		}
		if r.attempt != 0 {
			t.Error("Conn without a connection")
		}
		if err := c.Warm(2); !errors.Is(err, ErrConnectTimeout) {
			t.Errorf("Warm: %v, want ErrConnectTimeout", err)
		}
		// A request gives up waiting for a connection by its own limits, too.
		slow := open("http://"+addr, Options{})
		for _, req := range []*Request{{Method: "POST", Path: "/", Total: d}, {Method: "POST", Path: "/", Idle: d}} {
			r := newRecord(t)
			slow.Start(req, r)
			if r.wait(); !errors.Is(r.err, ErrTotalTimeout) && !errors.Is(r.err, ErrIdleTimeout) {
				t.Errorf("error %v, want one of the request's own limits", r.err)
			}
		}
		aborted, abandoned := newRecord(t), newRecord(t)
		call := slow.Start(&Request{Method: "POST", Path: "/"}, aborted)
		slow.Start(&Request{Method: "POST", Path: "/"}, abandoned)
		time.Sleep(10 * time.Millisecond)
		call.Abort()
		if aborted.wait(); aborted.err != ErrAborted {
			t.Errorf("error %v, want ErrAborted", aborted.err)
		}
		warmed := make(chan error, 1)
		go func() { warmed <- slow.Warm(5) }()
		time.Sleep(10 * time.Millisecond)
		slow.Close()
		if abandoned.wait(); abandoned.err != ErrAborted {
			t.Errorf("error %v, want ErrAborted", abandoned.err)
		}
		if err := <-warmed; err == nil {
			t.Error("Warm over a Close: no error")
		}
	})
}

// Without descriptors a request fails and says which limit it was, and the
// client works again when there are some.
func TestOutOfDescriptors(t *testing.T) {
	both(t, func(t *testing.T, open func(string, Options) Client) {
		srv := serve(t, echo)
		c := open(srv.url(), Options{})
		var lim unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
			t.Fatal(err)
		}
		low := lim
		low.Cur = uint64(descriptors())
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
			t.Skip(err)
		}
		// Descriptors below the limit may be free: take them.
		var taken []int
		for range 10 { // and those that the runtime is about to give back
			for {
				fd, err := unix.Dup(1)
				if err != nil {
					break
				}
				taken = append(taken, fd)
			}
			time.Sleep(time.Millisecond)
		}
		r := send(t, c, "x")
		warm := c.Warm(3)
		for _, fd := range taken {
			unix.Close(fd)
		}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{r.err, warm} {
			if !errors.Is(err, syscall.EMFILE) || !strings.Contains(err.Error(), fmt.Sprintf("RLIMIT_NOFILE %d", low.Cur)) {
				t.Errorf("error %v, want EMFILE and the limit", err)
			}
		}
		send(t, c, "x").ok("x")
	})
}

func TestPreflight(t *testing.T) {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		t.Fatal(err)
	}
	low := lim
	low.Cur = uint64(descriptors() + 20)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Skip(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &lim)
	if err := Preflight(100); err != nil {
		t.Errorf("Preflight(100) = %v, with a hard limit of %d", err, lim.Max)
	}
	var now unix.Rlimit
	unix.Getrlimit(unix.RLIMIT_NOFILE, &now)
	if now.Cur != lim.Max {
		t.Errorf("the soft limit is %d, want it raised to %d", now.Cur, lim.Max)
	}
	if lim.Max < 1<<40 {
		if err := Preflight(int(lim.Max)); err == nil || !strings.Contains(err.Error(), "RLIMIT_NOFILE") {
			t.Errorf("Preflight(%d) = %v, want it to name RLIMIT_NOFILE", lim.Max, err)
		}
	}
}

// Starting a request on an idle connection allocates nothing, nor does reading
// its answer.
func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: a\n\n\r\n9\r\ndata: b\n\n\r\n0\r\n\r\n")
	srv := serve(t, func(i int, p *peer) {
		buf := make([]byte, 64<<10)
		for left := 0; ; {
			n, err := p.Read(buf)
			if err != nil {
				return
			}
			if left += n; left > 5000 { // one request: its head and a body of 5000 bytes
				left = 0
				p.Write(answer)
			}
		}
	})
	c, err := NewRaw(srv.url(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s := &silent{done: make(chan error, 1)}
	req := &Request{Method: "POST", Path: "/v1/completions", Body: make([]byte, 5000), Header: []Field{{"Authorization", "Bearer x"}, {"X-Request-Id", "reprise-1"}},
		Idle: time.Minute, Total: time.Hour}
	exchange := func() {
		c.Start(req, s)
		if err := <-s.done; err != nil {
			t.Fatal(err)
		}
	}
	exchange()
	if n := testing.AllocsPerRun(500, exchange); n != 0 {
		t.Errorf("%v allocations a request, want none", n)
	}
	if s.bytes != 502*18 {
		t.Errorf("%d bytes of events, want %d", s.bytes, 502*18)
	}
}

type silent struct {
	done  chan error
	bytes int
}

func (s *silent) Conn(time.Duration, bool)          {}
func (s *silent) Sent(first, last time.Duration)    {}
func (s *silent) Head(time.Duration, Head)          {}
func (s *silent) Data(at time.Duration, b []byte)   { s.bytes += len(b) }
func (s *silent) Close(at time.Duration, err error) { s.done <- err }

// A stream in flight costs the client little more than its connection.
func TestMemoryPerStream(t *testing.T) {
	if raceEnabled || testing.Short() {
		t.Skip("measures memory")
	}
	const n = 2000
	var ready sync.WaitGroup
	ready.Add(n)
	srv := serve(t, func(i int, p *peer) {
		p.br = nil
		buf := make([]byte, 512)
		ready.Done()
		p.Read(buf)
		p.say("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: a\n\n\r\n")
		p.Read(buf)
	})
	c, err := NewRaw(srv.url(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Warm(n); err != nil {
		t.Fatal(err)
	}
	ready.Wait()
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	// Requests and sinks are the caller's.
	reqs := make([]Request, n)
	heard := make(chan bool, n)
	sinks := make([]first, n)
	before := heap()
	for i := range reqs {
		sinks[i].heard = heard
		reqs[i] = Request{Method: "POST", Path: "/", Idle: time.Hour}
		c.Start(&reqs[i], &sinks[i])
	}
	for range n {
		<-heard
	}
	if per := (int64(heap()) - int64(before)) / n; per > 256 {
		t.Errorf("%d bytes a stream beyond its idle connection, want at most 256", per)
	}
	if size := unsafe.Sizeof(conn{}) + unsafe.Sizeof(flight{}); size > 1024 {
		t.Errorf("connection and request take %d bytes, want at most 1024", size)
	}
	runtime.KeepAlive(reqs)
}

// A first tells of the first data.
type first struct {
	silent
	heard chan bool
	told  bool
}

func (f *first) Data(at time.Duration, b []byte) {
	if !f.told {
		f.told = true
		f.heard <- true
	}
}
func (f *first) Close(time.Duration, error) {}

// Several loops share the load and the bounds.
func TestLoops(t *testing.T) {
	countLeaks(t)
	srv := serve(t, echo)
	c, err := NewRaw(srv.url(), Options{Loops: 4, MaxConns: 10})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if err := c.Warm(10); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for w := range 20 {
		wg.Go(func() {
			req := &Request{Method: "POST", Path: "/"}
			for i := range 50 {
				req.Body = fmt.Appendf(nil, "%d.%d", w, i)
				r := newRecord(t)
				call := c.Start(req, r)
				if i%10 == 9 {
					call.Abort()
					r.wait()
					continue
				}
				r.wait().ok(string(req.Body))
			}
		})
	}
	wg.Wait()
	for i, s := range c.(*rawClient).shards {
		if s.dialed.Load() < 2 {
			t.Errorf("loop %d opened %d connections", i, s.dialed.Load())
		}
	}
}

// The closed loop of a concurrency-bound run: a sink starts the next request.
func TestStartFromClose(t *testing.T) {
	both(t, func(t *testing.T, open func(string, Options) Client) {
		srv := serve(t, echo)
		c := open(srv.url(), Options{MaxConns: 4})
		var left atomic.Int64
		left.Store(2000)
		var wg sync.WaitGroup
		for range 8 { // more than there are connections
			wg.Add(1)
			again := &again{client: c, left: &left, done: wg.Done, t: t}
			again.req = Request{Method: "POST", Path: "/", Body: []byte("x")}
			c.Start(&again.req, again)
		}
		wg.Wait()
		// net/http may open one, find another idle, and drop the first.
		if d := c.Stats().Dialed; d > 4 && c.Kind() == KindRaw {
			t.Errorf("%d connections opened, want at most 4", d)
		}
	})
}

type again struct {
	silent
	client Client
	req    Request
	left   *atomic.Int64
	done   func()
	t      *testing.T
}

func (a *again) Close(at time.Duration, err error) {
	if err != nil {
		a.t.Error(err)
	}
	if a.left.Add(-1) < 0 {
		a.done()
		return
	}
	a.client.Start(&a.req, a)
}

// The wheel against the plain rule: a timer is popped in the two ticks after
// its deadline, once, and not after it was disarmed.
func TestWheel(t *testing.T) {
	const tick = time.Duration(1) << tickShift
	rnd := rand.New(rand.NewPCG(3, 4))
	var w wheel
	now := 5 * time.Second
	w.tick = tickOf(now)
	timers := make([]timer, 300)
	due := map[*timer]time.Duration{}
	for range 20_000 {
		tm := &timers[rnd.IntN(len(timers))]
		switch rnd.IntN(10) {
		case 0:
			w.disarm(tm)
			delete(due, tm)
		case 1, 2, 3:
			at := now + time.Duration(rnd.Int64N(int64([]time.Duration{tick, 100 * tick, 3 * wheelSlots * tick}[rnd.IntN(3)]))) - tick
			w.arm(tm, at)
			due[tm] = max(at, now)
		default:
			if rnd.IntN(100) == 0 {
				now += time.Duration(rnd.Int64N(int64(2 * wheelSlots * tick))) // the loop was held up
			} else {
				now += time.Duration(rnd.Int64N(int64(2 * tick)))
			}
			if at, ok := w.next(); ok != (len(due) > 0) {
				t.Fatalf("next = %t with %d armed", ok, len(due))
			} else if ok {
				for _, d := range due {
					if at > d+2*tick {
						t.Fatalf("next looks at %v, a timer is due at %v", at, d)
					}
				}
			}
			for tm := w.pop(now); tm != nil; tm = w.pop(now) {
				d, armed := due[tm]
				if !armed || d > now {
					t.Fatalf("at %v popped a timer of %v, armed %t", now, d, armed)
				}
				delete(due, tm)
			}
			for _, d := range due {
				if d+2*tick < now {
					t.Fatalf("at %v a timer of %v was not popped", now, d)
				}
			}
		}
	}
}

func TestLookup(t *testing.T) {
	for host, want := range map[string]string{"http://127.0.0.1": "127.0.0.1:80", "http://[::1]:8000": "[::1]:8000", "http://[::ffff:127.0.0.1]:1": "127.0.0.1:1"} {
		u, err := url.Parse(host)
		if err != nil {
			t.Fatal(err)
		}
		addrs, err := lookup(u, time.Second)
		if err != nil || len(addrs) != 1 || addrs[0] != netip.MustParseAddrPort(want) {
			t.Errorf("lookup(%s) = %v, %v; want %s", host, addrs, err, want)
		}
	}
	if c, err := NewRaw("http://no-such-host.invalid", Options{}); err == nil {
		c.Close()
		t.Error("a name that does not exist was found")
	}
	if c, err := NewRaw("https://127.0.0.1", Options{}); err == nil {
		c.Close()
		t.Error("the raw client claims TLS")
	}
}

// Connections opened ahead are still there after the server has closed them for
// being idle; a server that closes them at once is left alone.
func TestWarmConnectionsAreReplaced(t *testing.T) {
	countLeaks(t)
	for _, lived := range []time.Duration{minIdle + 100*time.Millisecond, 10 * time.Millisecond} {
		srv := serve(t, func(i int, p *peer) {
			if i < 5 {
				time.Sleep(lived)
				return
			}
			echo(i, p)
		})
		c, err := NewRaw(srv.url(), Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		if err := c.Warm(5); err != nil {
			t.Fatal(err)
		}
		time.Sleep(lived + 200*time.Millisecond)
		want := lived > minIdle
		if r := send(t, c, "x").ok("x"); r.reused[0] != want {
			t.Errorf("closed after %v: reused = %t", lived, r.reused[0])
		}
		st := c.Stats()
		if n := int64(5); want && (st.Reopened != n || st.Dialed != 2*n) || !want && st.Reopened != 0 {
			t.Errorf("closed after %v: %+v", lived, st)
		}
	}
}

func TestStartedTwice(t *testing.T) {
	srv := serve(t, func(i int, p *peer) { p.hold() })
	c, err := NewRaw(srv.url(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	req := &Request{Method: "POST", Path: "/"}
	c.Start(req, newRecord(t))
	defer func() {
		if recover() == nil {
			t.Error("a request in flight was started again")
		}
	}()
	c.Start(req, newRecord(t))
}
