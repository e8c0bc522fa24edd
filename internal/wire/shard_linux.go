package wire

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"reprise/internal/clock"
)

// A shard is one epoll loop and its connections.
//
// # Who owns what
//
// The loop owns every connection, with one exception: a connection popped from
// the idle stack belongs to whoever popped it, until begin has written the
// request. The popper holds conn.mu meanwhile, and the loop passes through
// conn.mu before it touches a connection that something happened on. So a sink
// hears of Conn and Sent before the loop can tell it more, and the loop holds
// no lock while it calls a sink.
//
// Lock order: conn.mu, shard.mu, wheel.mu.
type shard struct {
	client  *rawClient
	max     int // connections, 0: no bound
	timeout time.Duration
	retry   bool

	epoll, event int // descriptors: the loop sleeps on one and is woken by the other
	wheel        wheel
	spare        atomic.Int64 // len(idle), to be read without mu
	dialed       atomic.Int64
	reopened     atomic.Int64
	stale        atomic.Int64
	resent       atomic.Int64

	mu      sync.Mutex
	idle    []*conn // the one used last on top: its memory and the server's are warm
	first   *flight // of those that wait for a connection, oldest first
	last    *flight
	waiting int
	asleep  bool          // the loop is in epoll_wait, or about to be
	wakeAt  time.Duration // when it wakes by itself; 0: never
	closing bool          // no more requests
	closed  bool          // no more descriptors
	knock   bool          // someone waits since the loop last looked
	posts   posts

	// Of the loop alone.
	addrs   []netip.AddrPort
	best    int // of addrs: the last that answered
	conns   []*conn
	free    []int32 // slots of conns that are empty
	gen     int32
	open    int     // connections, being opened included
	dialing int     // those for whoever waits
	warmed  int     // connections that warm was asked for, to be kept
	again   []*conn // to be looked at, whatever epoll says
	buf     []byte  // of every read: a stream in flight keeps none of its own
	doing   posts   // spare
}

// posts are what other threads leave to the loop.
type posts struct {
	aborts []*flight  // to be hung up
	pokes  []*conn    // whose request is not written out
	drops  []*conn    // found closed by the server, or talking, while idle
	warms  []*warming // to be begun
}

func (p *posts) empty() bool {
	return len(p.aborts) == 0 && len(p.pokes) == 0 && len(p.drops) == 0 && len(p.warms) == 0
}

// A flight is a request under way, inside its Request.
type flight struct {
	shard   *shard // from the first start on
	req     *Request
	sink    Sink
	aborted uint32 // atomic

	// Guarded by shard.mu.
	state      flightState
	conn       *conn
	next, prev *flight // while it waits

	// Of whoever owns conn.
	started time.Duration
	moved   time.Duration // when the last byte was sent or received
	resent  bool
	timer   timer
}

type flightState uint8

const (
	landed  flightState = iota // over, or not started
	waiting                    // for a connection
	carried                    // by conn
)

// A conn is one connection.
type conn struct {
	mu     sync.Mutex
	flight *flight // what it carries
	dead   bool    // its descriptor is closed

	fd       int32
	slot     int32 // in shard.conns
	gen      int32 // tells events of an earlier connection in the same slot
	idle     int32 // in shard.idle, -1: not there; guarded by shard.mu
	opening  bool
	own      bool // opened for one flight alone
	served   bool // an answer came before
	hungUp   bool // the server sends nothing more
	queued   bool // in shard.again
	opened   time.Duration
	tried    int // addresses that did not answer
	warming  *warming
	timer    timer // while it is being opened
	reused   bool  // of the flight: it did not have this connection opened
	answered bool  // a byte of the answer came
	unsent   bool  // the request is not written out
	toldSent bool
	toldHead bool
	wroteAt  time.Duration // before the first write
	head     []byte        // what is not written yet
	body     []byte
	writeErr unix.Errno
	parser   parser
}

// A warming opens connections ahead.
type warming struct {
	todo, flying int
	err          error
	done         chan error // nil once it was told
	keep         bool       // to be replaced when the server closes them
}

const (
	readSize  = 256 << 10 // shared by all streams of a shard
	maxReads  = 8         // of one connection in a row
	maxEvents = 256
)

func newShard(c *rawClient, o Options, most int, addrs []netip.AddrPort) (*shard, error) {
	s := &shard{client: c, max: most, timeout: o.connectTimeout(), retry: o.RetryStale, addrs: addrs, buf: make([]byte, readSize)}
	s.wheel.tick = tickOf(clock.Now())
	var err error
	if s.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, explain(os.NewSyscallError("epoll_create1", err))
	}
	if s.event, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(s.epoll)
		return nil, explain(os.NewSyscallError("eventfd", err))
	}
	// Edge-triggered: each write is one event, and it need not be read.
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: wakeSlot}
	if err := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, s.event, &ev); err != nil {
		unix.Close(s.epoll)
		unix.Close(s.event)
		return nil, os.NewSyscallError("epoll_ctl", err)
	}
	return s, nil
}

const wakeSlot = -1

// rouse wakes the loop if it sleeps. mu is held.
func (s *shard) rouse() {
	if s.asleep && !s.closed {
		s.asleep = false
		one := [8]byte{1}
		unix.Write(s.event, one[:])
	}
}

// Abort implements Call.
func (f *flight) Abort() {
	s := f.shard
	if s == nil || atomic.SwapUint32(&f.aborted, 1) != 0 {
		return
	}
	s.mu.Lock()
	if f.state != landed {
		s.posts.aborts = append(s.posts.aborts, f)
		s.rouse()
	}
	s.mu.Unlock()
}

// start sends a request on an idle connection, or leaves it to the loop. It
// reports false if the client is closed.
func (s *shard) start(f *flight, req *Request, sink Sink, head []byte) bool {
	now := clock.Now()
	for {
		s.mu.Lock()
		if f.state != landed {
			s.mu.Unlock()
			panic("wire: a request was started while it is in flight")
		}
		if s.closing {
			s.mu.Unlock()
			return false
		}
		f.req, f.sink, f.started, f.moved, f.resent = req, sink, now, now, false
		f.timer.flight = f
		atomic.StoreUint32(&f.aborted, 0)
		cn := s.pop()
		if cn == nil {
			f.state = waiting
			s.enqueue(f)
			if at, ok := f.deadline(); ok {
				s.wheel.arm(&f.timer, at)
			}
			s.rouse()
			s.mu.Unlock()
			return true
		}
		f.state, f.conn = carried, cn
		s.mu.Unlock()

		cn.mu.Lock()
		if !cn.dead && cn.quiet() {
			poke := s.begin(cn, f, head)
			at, timed := f.deadline()
			if timed {
				s.wheel.arm(&f.timer, at)
			}
			cn.mu.Unlock() // the loop may end f from here on
			if poke || timed {
				s.mu.Lock()
				if poke {
					s.posts.pokes = append(s.posts.pokes, cn)
				}
				if poke || s.wakeAt == 0 || at < s.wakeAt {
					s.rouse()
				}
				s.mu.Unlock()
			}
			return true
		}
		dead := cn.dead
		cn.mu.Unlock()
		s.mu.Lock()
		f.state, f.conn = landed, nil
		if !dead {
			s.posts.drops = append(s.posts.drops, cn)
			s.rouse()
		}
		s.mu.Unlock()
	}
}

// deadline returns when a flight must be looked at, unless it has no limits.
func (f *flight) deadline() (at time.Duration, ok bool) {
	idle, total := f.req.Idle, f.req.Total
	switch {
	case idle > 0 && total > 0:
		return min(f.moved+idle, f.started+total), true
	case idle > 0:
		return f.moved + idle, true
	case total > 0:
		return f.started + total, true
	}
	return 0, false
}

// push makes a connection idle. mu is held.
func (s *shard) push(cn *conn) {
	cn.idle = int32(len(s.idle))
	s.idle = append(s.idle, cn)
	s.spare.Store(int64(len(s.idle)))
}

// pop takes an idle connection, or nil. mu is held.
func (s *shard) pop() *conn {
	if len(s.idle) == 0 {
		return nil
	}
	cn := s.idle[len(s.idle)-1]
	s.unidle(cn)
	return cn
}

// unidle takes cn from wherever it is in the stack. mu is held.
func (s *shard) unidle(cn *conn) {
	n := len(s.idle) - 1
	s.idle[cn.idle] = s.idle[n]
	s.idle[cn.idle].idle = cn.idle
	s.idle[n] = nil
	s.idle = s.idle[:n]
	cn.idle = -1
	s.spare.Store(int64(n))
}

// enqueue adds a flight to those that wait. mu is held.
func (s *shard) enqueue(f *flight) {
	f.next, f.prev = nil, s.last
	if s.last == nil {
		s.first = f
	} else {
		s.last.next = f
	}
	s.last = f
	s.waiting++
	s.knock = true
}

// dequeue takes a flight from those that wait. mu is held.
func (s *shard) dequeue(f *flight) {
	if f.prev == nil {
		s.first = f.next
	} else {
		f.prev.next = f.next
	}
	if f.next == nil {
		s.last = f.prev
	} else {
		f.next.prev = f.prev
	}
	f.next, f.prev = nil, nil
	s.waiting--
}

// begin writes a request to a connection that the caller owns. It reports true
// if the loop must go on with it.
func (s *shard) begin(cn *conn, f *flight, head []byte) (poke bool) {
	cn.flight = f
	cn.reused = cn.served || cn.opened < f.started
	cn.answered, cn.toldHead = false, false
	cn.parser.reset(f.req.Method)
	f.sink.Conn(clock.Now(), cn.reused)
	body := f.req.Body
	cn.wroteAt = clock.Now()
	n, errno := writeBoth(cn.fd, head, body)
	now := clock.Now()
	if n == len(head)+len(body) {
		cn.unsent, cn.toldSent = false, true
		f.moved = now
		f.sink.Sent(cn.wroteAt, now)
		return false
	}
	cn.unsent, cn.toldSent = true, false
	cn.head, cn.body = nil, body
	if n < len(head) {
		cn.head = append(cn.head, head[n:]...)
	} else {
		cn.body = body[n-len(head):]
	}
	if errno != unix.EAGAIN {
		cn.writeErr = errno
	}
	return true
}

// flush goes on writing a request.
func (s *shard) flush(cn *conn, f *flight) {
	for cn.writeErr == 0 {
		n, errno := writeBoth(cn.fd, cn.head, cn.body)
		now := clock.Now()
		if n > 0 {
			f.moved = now
		}
		k := min(n, len(cn.head))
		cn.head, cn.body = cn.head[k:], cn.body[n-k:]
		if len(cn.head)+len(cn.body) == 0 {
			cn.head, cn.body, cn.unsent = nil, nil, false
			if !cn.toldSent {
				cn.toldSent = true
				f.sink.Sent(cn.wroteAt, now)
			}
			return
		}
		if errno == unix.EAGAIN {
			return
		}
		cn.writeErr = errno
	}
}

// run is the loop.
func (s *shard) run() {
	// A thread of its own: the kernel wakes it for what was read from no one
	// else's queue, and the pacer's threads do not move.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	events := make([]unix.EpollEvent, maxEvents)
	for {
		for _, ev := range events[:s.poll(events)] {
			if ev.Fd == wakeSlot {
				continue
			}
			if cn := s.conns[ev.Fd]; cn != nil && cn.gen == ev.Pad {
				s.ready(cn, ev.Events)
			}
		}
		if n := len(s.again); n > 0 {
			for _, cn := range s.again[:n] {
				cn.queued = false
				if !cn.dead {
					s.ready(cn, unix.EPOLLIN|unix.EPOLLOUT)
				}
			}
			s.again = s.again[:copy(s.again, s.again[n:])]
		}
		if !s.attend() {
			s.shut()
			return
		}
		s.expire()
		s.serve()
	}
}

// poll returns the number of events there are, and sleeps until there is
// something to do.
func (s *shard) poll(events []unix.EpollEvent) int {
	// Under load there is something at once, and a call that cannot block need
	// not tell the scheduler of Go.
	if n := epollNow(s.epoll, events); n > 0 || len(s.again) > 0 {
		return max(n, 0)
	}
	s.mu.Lock()
	if s.knock || s.closing || !s.posts.empty() {
		s.mu.Unlock()
		return 0
	}
	ms := -1
	s.wakeAt = 0
	if at, ok := s.wheel.next(); ok {
		s.wakeAt = at
		ms = int(max(0, at-clock.Now()+time.Millisecond-1) / time.Millisecond)
	}
	s.asleep = true
	s.mu.Unlock()
	n, err := unix.EpollWait(s.epoll, events, ms)
	s.mu.Lock()
	s.asleep = false
	s.mu.Unlock()
	if err != nil {
		return 0 // EINTR: there is no other for a valid descriptor
	}
	return n
}

// attend does what others left to the loop. It reports false when the client
// is being closed.
func (s *shard) attend() bool {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return false
	}
	if s.posts.empty() {
		s.mu.Unlock()
		return true
	}
	s.posts, s.doing = s.doing, s.posts
	s.mu.Unlock()
	do := &s.doing
	for _, cn := range do.drops {
		if !cn.dead {
			s.drop(cn)
			s.replace(cn)
		}
	}
	for _, cn := range do.pokes {
		if !cn.dead {
			s.ready(cn, unix.EPOLLIN|unix.EPOLLOUT)
		}
	}
	for _, f := range do.aborts {
		if atomic.LoadUint32(&f.aborted) != 0 { // else it was started again
			s.giveUp(f, ErrAborted)
		}
	}
	for _, w := range do.warms {
		if s.max > 0 && s.open+w.todo > s.max {
			w.err = fmt.Errorf("%d connections to open ahead exceed the limit of %d, with %d open", w.todo, s.max, s.open)
			w.todo = 0
		}
		if w.keep {
			s.warmed += w.todo
		}
		s.pump(w)
	}
	clear(do.aborts)
	clear(do.pokes)
	clear(do.drops)
	clear(do.warms)
	*do = posts{do.aborts[:0], do.pokes[:0], do.drops[:0], do.warms[:0]}
	return true
}

// expire meets the deadlines that have passed.
func (s *shard) expire() {
	now := clock.Now()
	for t := s.wheel.pop(now); t != nil; t = s.wheel.pop(now) {
		if cn := t.conn; cn != nil {
			if cn.opening && !cn.dead {
				s.connectFailed(cn, fmt.Errorf("connect to %s: %w", s.addrs[s.best], ErrConnectTimeout))
			}
			continue
		}
		f := t.flight
		if !s.mine(f) {
			s.wheel.arm(t, now) // in the hands of start, until the next tick
			continue
		}
		at, ok := f.deadline()
		switch {
		case !ok:
		case now < at:
			s.wheel.arm(t, at)
		case f.req.Total > 0 && now >= f.started+f.req.Total:
			s.giveUp(f, ErrTotalTimeout)
		default:
			s.giveUp(f, ErrIdleTimeout)
		}
	}
}

// mine says whether a flight is the loop's to touch, and not being started.
func (s *shard) mine(f *flight) bool {
	s.mu.Lock()
	cn := f.conn
	s.mu.Unlock()
	if cn == nil {
		return true
	}
	cn.mu.Lock()
	defer cn.mu.Unlock()
	return cn.flight == f
}

// giveUp ends a flight, wherever it is.
func (s *shard) giveUp(f *flight, err error) {
	s.mu.Lock()
	state, cn := f.state, f.conn
	s.mu.Unlock()
	switch {
	case state == landed:
	case cn == nil:
		s.mu.Lock()
		s.dequeue(f)
		s.mu.Unlock()
		s.land(f, clock.Now(), err)
	case s.mine(f):
		s.fail(cn, f, clock.Now(), err)
	default: // in the hands of start
		s.mu.Lock()
		s.posts.aborts = append(s.posts.aborts, f)
		s.mu.Unlock()
	}
}

// land ends a flight that has no connection any more.
func (s *shard) land(f *flight, at time.Duration, err error) {
	sink := f.sink
	if f.req.Idle > 0 || f.req.Total > 0 {
		s.wheel.disarm(&f.timer)
	}
	s.mu.Lock()
	f.state, f.conn = landed, nil
	s.mu.Unlock()
	sink.Close(at, err)
}

// fail ends a flight and its connection.
func (s *shard) fail(cn *conn, f *flight, at time.Duration, err error) {
	s.drop(cn)
	s.land(f, at, err)
}

// drop closes a connection, and returns what it carried, which is the caller's
// to end.
func (s *shard) drop(cn *conn) *flight {
	cn.mu.Lock()
	if cn.dead {
		cn.mu.Unlock()
		return nil
	}
	f := cn.flight
	cn.dead, cn.flight = true, nil
	if cn.fd >= 0 {
		unix.Close(int(cn.fd))
	}
	cn.mu.Unlock()
	s.forget(cn)
	return f
}

// forget frees the place of a connection that is closed.
func (s *shard) forget(cn *conn) {
	s.mu.Lock()
	if cn.idle >= 0 {
		s.unidle(cn)
	}
	s.mu.Unlock()
	s.conns[cn.slot] = nil
	s.free = append(s.free, cn.slot)
	s.open--
	if cn.opening {
		s.wheel.disarm(&cn.timer)
		if !cn.own {
			s.dialing--
		}
	}
}

// serve opens connections for those that wait. One pass opens no more than
// were waiting when it began, so that requests which fail at once and are
// started again cannot keep the loop.
func (s *shard) serve() {
	s.mu.Lock()
	n := s.waiting - s.dialing
	s.knock = false
	s.mu.Unlock()
	for ; n > 0 && (s.max == 0 || s.open < s.max); n-- {
		s.dial(nil, nil)
	}
}

// dial opens a connection: for one flight alone, ahead of need, or for whoever
// waits longest when it is there.
func (s *shard) dial(f *flight, w *warming) {
	cn := &conn{idle: -1, opening: true, own: f != nil, flight: f, warming: w}
	cn.timer.conn = cn
	if f != nil {
		s.mu.Lock()
		f.state, f.conn = carried, cn
		s.mu.Unlock()
	}
	s.open++
	if !cn.own {
		s.dialing++
	}
	if n := len(s.free); n > 0 {
		cn.slot = s.free[n-1]
		s.free = s.free[:n-1]
		s.conns[cn.slot] = cn
	} else {
		cn.slot = int32(len(s.conns))
		s.conns = append(s.conns, cn)
	}
	cn.fd = -1
	s.wheel.arm(&cn.timer, clock.Now()+s.timeout)
	s.connect(cn, nil)
}

// connect tries the addresses that are left. err is why the one before failed.
func (s *shard) connect(cn *conn, err error) {
	for ; cn.tried < len(s.addrs); cn.tried++ {
		addr := s.addrs[(s.best+cn.tried)%len(s.addrs)]
		fd, e := socket(addr)
		if e != nil {
			s.connectFailed(cn, e)
			return
		}
		cn.fd = int32(fd)
		s.gen++
		cn.gen = s.gen
		e = connectTo(fd, addr)
		if e == nil {
			ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET, Fd: cn.slot, Pad: cn.gen}
			if e := unix.EpollCtl(s.epoll, unix.EPOLL_CTL_ADD, fd, &ev); e != nil {
				s.connectFailed(cn, os.NewSyscallError("epoll_ctl", e))
				return
			}
			return
		}
		err = e
		unix.Close(fd)
		cn.fd = -1
	}
	s.connectFailed(cn, err)
}

func dialError(addr netip.AddrPort, call string, err error) error {
	return explain(&net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(addr), Err: os.NewSyscallError(call, err)})
}

// connectFailed tells whom it concerns.
func (s *shard) connectFailed(cn *conn, err error) {
	f, w := s.drop(cn), cn.warming
	switch {
	case f != nil:
		s.land(f, clock.Now(), err)
	case w != nil:
		w.flying--
		if w.err == nil {
			w.err = err
		}
		s.pump(w)
	default:
		s.mu.Lock()
		if s.waiting > s.dialing {
			f = s.first
			s.dequeue(f)
		}
		s.mu.Unlock()
		if f != nil {
			s.land(f, clock.Now(), err)
		}
	}
}

// connected looks at what became of a connection being opened.
func (s *shard) connected(cn *conn) {
	code, err := unix.GetsockoptInt(int(cn.fd), unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && code != 0 {
		err = unix.Errno(code)
	}
	addr := (s.best + cn.tried) % len(s.addrs)
	if err != nil {
		unix.Close(int(cn.fd))
		cn.fd = -1
		cn.tried++
		s.connect(cn, dialError(s.addrs[addr], "connect", err))
		return
	}
	s.best = addr
	s.wheel.disarm(&cn.timer)
	cn.opening = false
	cn.opened = clock.Now()
	s.dialed.Add(1)
	if cn.own {
		s.dispatch(cn, cn.flight)
		return
	}
	s.dialing--
	if w := cn.warming; w != nil {
		cn.warming = nil
		w.flying--
		s.pump(w)
	}
	s.release(cn)
}

// warm asks the loop for n connections.
func (s *shard) warm(n int, keep bool) chan error {
	done := make(chan error, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		done <- net.ErrClosed
		return done
	}
	s.posts.warms = append(s.posts.warms, &warming{todo: n, keep: keep, done: done})
	s.rouse()
	return done
}

// pump opens the next connections of a warming.
func (s *shard) pump(w *warming) {
	for w.todo > 0 && w.err == nil && w.flying < warmDials {
		w.todo--
		w.flying++
		s.dial(nil, w)
	}
	if w.flying == 0 && (w.todo == 0 || w.err != nil) && w.done != nil {
		w.done <- w.err
		w.done = nil
	}
}

// minIdle is how long an idle connection must have lived to be replaced: a
// server that wants none is not pressed.
const minIdle = time.Second

// replace opens a connection in place of an idle one that the server closed.
// Where that fails, whoever needs one finds out.
func (s *shard) replace(cn *conn) {
	if s.open < s.warmed && clock.Now()-cn.opened >= minIdle {
		s.reopened.Add(1)
		s.dial(nil, &warming{flying: 1})
	}
}

// release gives a connection to whoever waits longest, or makes it idle.
func (s *shard) release(cn *conn) {
	s.mu.Lock()
	f := s.first
	if f == nil {
		s.push(cn)
		s.mu.Unlock()
		return
	}
	s.dequeue(f)
	f.state, f.conn = carried, cn
	s.mu.Unlock()
	s.dispatch(cn, f)
}

// dispatch sends a request from the loop.
func (s *shard) dispatch(cn *conn, f *flight) {
	if cn.served && !cn.quiet() {
		// It said more than its answer. The flight goes back to the head of
		// the queue.
		s.drop(cn)
		s.mu.Lock()
		f.state, f.conn = waiting, nil
		f.next, f.prev = s.first, nil
		if s.first == nil {
			s.last = f
		} else {
			s.first.prev = f
		}
		s.first = f
		s.waiting++
		s.knock = true
		s.mu.Unlock()
		return
	}
	var room [headRoom]byte
	head, err := s.client.appendHead(room[:0], f.req)
	if err != nil {
		s.fail(cn, f, clock.Now(), err)
		return
	}
	if s.begin(cn, f, head) {
		s.look(cn)
	}
}

// look has the loop come back to a connection.
func (s *shard) look(cn *conn) {
	if !cn.queued {
		cn.queued = true
		s.again = append(s.again, cn)
	}
}

// ready looks at a connection that something happened on.
func (s *shard) ready(cn *conn, events uint32) {
	if cn.opening {
		s.connected(cn)
		return
	}
	cn.mu.Lock() // waits for start, where it has the connection
	f := cn.flight
	if f == nil && !cn.dead && !cn.quiet() {
		// The server closed it, or speaks unasked. What it said must not be
		// taken for the answer to the next request.
		cn.dead = true
		unix.Close(int(cn.fd))
		cn.mu.Unlock()
		s.forget(cn)
		s.replace(cn)
		return
	}
	cn.mu.Unlock()
	if f == nil {
		return
	}
	if cn.unsent && events&unix.EPOLLOUT != 0 {
		s.flush(cn, f)
	}
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		cn.hungUp = true
	}
	if events&^unix.EPOLLOUT != 0 {
		s.read(cn, f)
	}
}

// read takes what the kernel has of an answer.
func (s *shard) read(cn *conn, f *flight) {
	for range maxReads {
		n, errno := read(cn.fd, s.buf)
		now := clock.Now()
		switch {
		case n > 0:
			if !s.consume(cn, f, now, s.buf[:n]) {
				return
			}
			if n < len(s.buf) && !cn.hungUp {
				return // drained: more is another event
			}
		case errno == unix.EAGAIN:
			if cn.writeErr != 0 {
				s.broken(cn, f, now, cn.writeErr, "write")
			}
			return
		case n == 0 && errno == 0:
			s.ended(cn, f, now)
			return
		default:
			s.broken(cn, f, now, errno, "read")
			return
		}
	}
	s.look(cn)
}

// consume reads the bytes of an answer. It reports false when the flight no
// longer is on cn.
func (s *shard) consume(cn *conn, f *flight, at time.Duration, b []byte) bool {
	cn.answered = true
	f.moved = at
	p := &cn.parser
	body, n, err := p.feed(b)
	if p.headed && !cn.toldHead {
		cn.toldHead = true
		if !cn.toldSent {
			cn.toldSent = true
			f.sink.Sent(cn.wroteAt, 0)
		}
		h := p.head
		p.head = Head{}
		f.sink.Head(at, h)
		if h.ContentEncoding != "" {
			s.fail(cn, f, at, fmt.Errorf("%w: %s", ErrEncoding, h.ContentEncoding))
			return false
		}
	}
	if len(body) > 0 {
		f.sink.Data(at, body)
	}
	switch {
	case atomic.LoadUint32(&f.aborted) != 0 && !p.done():
		s.fail(cn, f, at, ErrAborted)
	case err != nil:
		s.fail(cn, f, at, err)
	case p.done():
		if n == len(b) && p.reusable() && !cn.unsent && !cn.hungUp {
			cn.flight, cn.served = nil, true
			// Idle before the sink hears of the end, so that a request which
			// it starts finds the connection.
			s.release(cn)
		} else {
			s.drop(cn)
		}
		s.land(f, at, nil)
	default:
		return true
	}
	return false
}

// ended deals with the server's close.
func (s *shard) ended(cn *conn, f *flight, at time.Duration) {
	err := cn.parser.eof()
	if err != nil && !cn.answered {
		if cn.writeErr != 0 {
			s.broken(cn, f, at, cn.writeErr, "write")
			return
		}
		if cn.reused {
			s.wentStale(cn, f, at)
			return
		}
	}
	s.fail(cn, f, at, err)
}

// broken deals with an error of the connection.
func (s *shard) broken(cn *conn, f *flight, at time.Duration, errno unix.Errno, op string) {
	if cn.reused && !cn.answered && (errno == unix.ECONNRESET || errno == unix.EPIPE) {
		s.wentStale(cn, f, at)
		return
	}
	s.fail(cn, f, at, &net.OpError{Op: op, Net: "tcp", Addr: net.TCPAddrFromAddrPort(s.addrs[s.best]), Err: os.NewSyscallError(op, errno)})
}

// wentStale deals with a kept-alive connection that the server closed as the
// request was on its way.
func (s *shard) wentStale(cn *conn, f *flight, at time.Duration) {
	s.stale.Add(1)
	if !s.retry || f.resent {
		s.fail(cn, f, at, ErrStale)
		return
	}
	f.resent = true
	s.resent.Add(1)
	s.drop(cn)
	s.dial(f, nil)
}

// shut ends everything.
func (s *shard) shut() {
	for {
		s.mu.Lock()
		f := s.first
		if f == nil {
			s.mu.Unlock()
			break
		}
		s.dequeue(f)
		s.mu.Unlock()
		s.land(f, clock.Now(), ErrAborted)
	}
	for _, cn := range s.conns {
		if cn == nil {
			continue
		}
		if f := s.drop(cn); f != nil {
			s.land(f, clock.Now(), ErrAborted) // a request may have been written just now
		}
		if w := cn.warming; w != nil {
			w.flying--
			w.err = net.ErrClosed
			s.pump(w)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.posts.warms {
		w.done <- net.ErrClosed
	}
	s.closed = true
	unix.Close(s.event)
	unix.Close(s.epoll)
}
