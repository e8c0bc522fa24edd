package mock

import (
	"container/heap"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"

	"reprise/internal/clock"
)

// A Server is one thread that listens and answers.
type Server struct {
	opts                   Options
	addr                   netip.AddrPort
	epoll, event, listener int
	done                   chan struct{}

	mu       sync.Mutex // of the next three
	requests int64
	events   int64
	late     *hdrhistogram.Histogram

	// Of the loop alone.
	conns  map[int32]*conn
	queue  queue
	buf    []byte
	out    []byte
	cached map[shape]answer
}

// A conn is one client.
type conn struct {
	fd    int32
	in    []byte // of a request that is not whole
	out   []byte // what the client did not take yet
	busy  bool
	req   request
	read  time.Duration // when req was whole
	sent  int           // token events
	due   time.Duration // of the next write
	place int           // in the queue, -1: not there
}

// A shape is what whole answers are kept under.
type shape struct {
	kind    kind
	events  int
	running bool
}

// An answer is one that is kept whole.
type answer struct {
	bytes  []byte
	prompt int // offset
}

const (
	maxCached = 256      // token events of an answer that is kept whole
	maxOut    = 64 << 20 // bytes that a client may leave untaken
)

// Listen starts a server on an address such as 127.0.0.1:0.
func Listen(addr string, o Options) (*Server, error) {
	ap, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, fmt.Errorf("%q is no address to listen on: want IP:port: %w", addr, err)
	}
	if o.Events <= 0 {
		o.Events = 16
	}
	s := &Server{opts: o, epoll: -1, event: -1, listener: -1, done: make(chan struct{}), conns: map[int32]*conn{}, buf: make([]byte, 1<<20), cached: map[shape]answer{}}
	s.late = hdrhistogram.New(1, int64(time.Minute), 3)
	if err := s.open(ap); err != nil {
		s.shut()
		return nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	go s.run()
	return s, nil
}

func (s *Server) open(ap netip.AddrPort) (err error) {
	var sa unix.Sockaddr = &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
	family := unix.AF_INET6
	if ap.Addr().Is4() {
		sa, family = &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}, unix.AF_INET
	}
	if s.listener, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP); err != nil {
		return os.NewSyscallError("socket", err)
	}
	if err = unix.SetsockoptInt(s.listener, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if err = unix.Bind(s.listener, sa); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if err = unix.Listen(s.listener, 4096); err != nil {
		return os.NewSyscallError("listen", err)
	}
	if sa, err = unix.Getsockname(s.listener); err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		s.addr = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		s.addr = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	if s.event, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	for _, fd := range []int{s.listener, s.event} {
		if err = s.watch(fd, unix.EPOLLIN); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) watch(fd int, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(fd)}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, fd, &ev))
}

// Addr is the address the server listens on, as IP:port.
func (s *Server) Addr() string { return s.addr.String() }

// Stats returns what the server did so far.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{Requests: s.requests, Events: s.events, LateP50: time.Duration(s.late.ValueAtQuantile(50)),
		LateP99: time.Duration(s.late.ValueAtQuantile(99)), LateMax: time.Duration(s.late.Max())}
}

// Close ends the server and its connections.
func (s *Server) Close() {
	select {
	case <-s.done:
		return
	default:
	}
	one := [8]byte{1}
	unix.Write(s.event, one[:])
	<-s.done
}

func (s *Server) shut() {
	for fd := range s.conns {
		unix.Close(int(fd))
	}
	for _, fd := range []int{s.listener, s.epoll, s.event} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

func (s *Server) run() {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// Sleeps of the kernel are rounded up by 50 us unless a thread objects.
	unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	defer close(s.done)
	defer s.shut()
	events := make([]unix.EpollEvent, 256)
	for {
		for _, ev := range events[:s.wait(events)] {
			switch c := s.conns[ev.Fd]; {
			case ev.Fd == int32(s.event):
				return
			case ev.Fd == int32(s.listener):
				s.accept()
			case c == nil:
			case len(c.out) > 0 && ev.Events&unix.EPOLLOUT != 0 && !s.write(c, nil):
			case ev.Events&^unix.EPOLLOUT != 0:
				s.read(c)
			}
		}
		now := clock.Now()
		for len(s.queue) > 0 && s.queue[0].due <= now {
			c := heap.Pop(&s.queue).(*conn)
			s.piece(c, now)
		}
	}
}

// wait returns the number of events, and sleeps until there are some or a write
// is due.
func (s *Server) wait(events []unix.EpollEvent) int {
	var limit *unix.Timespec
	if len(s.queue) > 0 {
		ts := unix.NsecToTimespec(int64(max(0, s.queue[0].due-clock.Now())))
		limit = &ts
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(s.epoll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	if errno == 0 && n == 0 && (limit == nil || limit.Nano() > 0) {
		n, _, errno = unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(s.epoll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(unsafe.Pointer(limit)), 0, 0)
	}
	if errno != 0 {
		return 0 // EINTR
	}
	return int(n)
}

func (s *Server) accept() {
	for {
		fd, _, err := unix.Accept4(s.listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		if err != nil {
			return
		}
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		if s.watch(fd, unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP|unix.EPOLLET) != nil {
			unix.Close(fd)
			continue
		}
		s.conns[int32(fd)] = &conn{fd: int32(fd), place: -1}
	}
}

func (s *Server) drop(c *conn) {
	if c.place >= 0 {
		heap.Remove(&s.queue, c.place)
	}
	delete(s.conns, c.fd)
	unix.Close(int(c.fd))
}

func (s *Server) read(c *conn) {
	for {
		r, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(c.fd), uintptr(unsafe.Pointer(&s.buf[0])), uintptr(len(s.buf)))
		n := int(r)
		switch {
		case errno == unix.EAGAIN:
			return
		case errno != 0 || n == 0:
			s.drop(c)
			return
		}
		b := s.buf[:n]
		if len(c.in) > 0 {
			b = append(c.in, b...)
			c.in = nil
		}
		used, ok := s.take(c, b)
		if !ok {
			return
		}
		if used < len(b) {
			c.in = append([]byte(nil), b[used:]...)
		}
		if n < len(s.buf) {
			return
		}
	}
}

// take answers the requests in b, one at a time. It reports false when the
// connection is gone.
func (s *Server) take(c *conn, b []byte) (used int, ok bool) {
	for !c.busy && used < len(b) {
		r, n := parse(b[used:])
		if n < 0 {
			s.drop(c)
			return 0, false
		}
		if n == 0 {
			break
		}
		used += n
		if r.get || !(string(r.path) == "/v1/completions" || string(r.path) == "/v1/chat/completions") {
			if !s.write(c, page(string(r.path), func() []byte { b, _ := json.Marshal(s.Stats()); return b })) {
				return 0, false
			}
			continue
		}
		r.path = nil
		if r.events == 0 {
			r.events = s.opts.Events
		}
		c.req, c.sent, c.busy = r, 0, true
		now := clock.Now()
		c.read, c.due = now, now+s.opts.FirstToken
		if s.opts.FirstToken == 0 {
			if !s.piece(c, now) {
				return 0, false
			}
		} else {
			heap.Push(&s.queue, c)
		}
	}
	return used, true
}

// piece writes the events that are due. It reports false when the connection is
// gone.
func (s *Server) piece(c *conn, now time.Duration) bool {
	r := &c.req
	n := s.opts.PerWrite
	if n <= 0 {
		n = r.events
	}
	n = min(n, r.events-c.sent)
	var b []byte
	if n == r.events && n <= maxCached {
		key := shape{r.kind, n, r.running}
		a, ok := s.cached[key]
		if !ok {
			a.bytes = []byte(head)
			for i := range n {
				a.bytes = appendEvent(a.bytes, r.kind, i+1, n, r.running)
			}
			a.bytes, a.prompt = appendEnd(a.bytes, n)
			s.cached[key] = a
		}
		setPrompt(a.bytes[a.prompt:], r.prompt)
		b = a.bytes
	} else {
		b = s.out[:0]
		if c.sent == 0 {
			b = append(b, head...)
		}
		for i := range n {
			b = appendEvent(b, r.kind, c.sent+i+1, r.events, r.running)
		}
		if c.sent+n == r.events {
			var at int
			b, at = appendEnd(b, r.events)
			setPrompt(b[at:], r.prompt)
		}
		s.out = b
	}
	if c.sent == 0 && s.opts.Seen != nil {
		s.opts.Seen(c.read, clock.Now())
	}
	c.sent += n
	s.mu.Lock()
	s.events += int64(n)
	if c.sent == r.events {
		s.requests++
	}
	if s.opts.FirstToken > 0 || s.opts.Gap > 0 {
		s.late.RecordValue(int64(now - c.due))
	}
	s.mu.Unlock()
	if !s.write(c, b) {
		return false
	}
	if c.sent < r.events {
		// From the time it was due, so that lateness does not add up.
		c.due += s.opts.Gap
		heap.Push(&s.queue, c)
		return true
	}
	c.busy = false
	if len(c.in) == 0 {
		return true
	}
	in := c.in // a request that came while the answer went
	c.in = nil
	used, ok := s.take(c, in)
	if ok && used < len(in) {
		c.in = append([]byte(nil), in[used:]...)
	}
	return ok
}

// write sends b after what is left from before. It reports false when the
// connection is gone.
func (s *Server) write(c *conn, b []byte) bool {
	if len(c.out) > 0 {
		c.out = append(c.out, b...)
		b = c.out
	}
	for len(b) > 0 {
		n, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(c.fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
		switch {
		case errno == unix.EAGAIN && len(b) <= maxOut:
			c.out = append([]byte(nil), b...)
			return true
		case errno != 0:
			s.drop(c)
			return false
		}
		b = b[n:]
	}
	c.out = nil
	return true
}

// A queue is a heap of the connections with writes to come, by due time.
type queue []*conn

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due < q[j].due }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}
func (q *queue) Push(x any) {
	c := x.(*conn)
	c.place = len(*q)
	*q = append(*q, c)
}
func (q *queue) Pop() any {
	old := *q
	c := old[len(old)-1]
	old[len(old)-1] = nil
	*q = old[:len(old)-1]
	c.place = -1
	return c
}
