package reassembly

import "math"

// Options bound an Assembler. Zero values mean the defaults.
type Options struct {
	// PerConn bounds the out-of-order bytes of one connection (1 MiB).
	PerConn int
	// Memory bounds everything together (512 MiB).
	Memory int64
	// Idle ends a connection without packets for that long, in nanoseconds of
	// packet time (one hour: a stream may be silent for half of that).
	Idle int64
}

const (
	defaultPerConn = 1 << 20
	defaultMemory  = 512 << 20
	defaultIdle    = int64(3600e9)

	// connBytes is what a connection costs by itself: the struct, its entry in
	// the table and the first state of a handler.
	connBytes = 768
	// heldOverhead is charged per held segment, so that many tiny ones cost
	// what they cost.
	heldOverhead = 80
	// maxHeld bounds the held segments of a direction: insertion is linear.
	maxHeld = 4096
	// maxJump is how far ahead of its stream a segment may lie. Windows are
	// at most 1 GiB and in practice under 16 MiB; a segment beyond belongs to
	// another connection whose SYN was not seen.
	maxJump = 64 << 20
	// touchEvery is how exact the order of idle connections is, in ns.
	touchEvery = int64(1e9)
	// linger is how long a closed connection is remembered, so that its last
	// retransmissions do not look like a new one, in ns.
	linger = int64(10e9)
	// A hole that the peer has acknowledged is still given graceTime and
	// gracePackets, because queues of a network card, or capture buffers of
	// several processors, can hand over an acknowledgement before the data.
	graceTime    = int64(10e6)
	gracePackets = 16
	// graceLong is enough by itself.
	graceLong = int64(1e9)
	// graceDeaf is for a connection of which only one direction is captured.
	graceDeaf = int64(3e9)
	// copyWithin is how close in time two copies of a packet are, in ns.
	copyWithin = int64(5e6)
)

// An Assembler sorts segments into connections. Create one with [New].
type Assembler struct {
	Counters
	Budget Budget

	begin   func(*Conn) Handler
	perConn int
	idle    int64
	now     int64 // latest packet time
	conns   map[Key]*Conn
	open    list // least recently active first
	closed  list // closed, oldest first
	last    *Conn
}

// New returns an Assembler that calls begin for each connection when its first
// byte is delivered. begin may return nil: the connection is then followed
// without anybody listening.
func New(o Options, begin func(*Conn) Handler) *Assembler {
	if o.PerConn <= 0 {
		o.PerConn = defaultPerConn
	}
	if o.Memory <= 0 {
		o.Memory = defaultMemory
	}
	if o.Idle <= 0 {
		o.Idle = defaultIdle
	}
	a := &Assembler{begin: begin, perConn: o.PerConn, idle: o.Idle, conns: map[Key]*Conn{}}
	a.Budget.Limit = o.Memory
	a.open.init()
	a.closed.init()
	return a
}

// A Conn is one connection.
type Conn struct {
	Key Key
	// Client is the direction that opened the connection, where a SYN was
	// seen.
	Client      Dir
	ClientKnown bool

	a       *Assembler
	h       Handler
	halves  [2]half
	over    bool // closed: kept for a while to recognise what still arrives
	begun   bool // begin was called
	finSeen bool
	finBy   Dir
	active  int64 // when it was last moved to the end of its list
	lastAt  int64 // time of the last packet
	prev    *Conn
	next    *Conn
}

// LateJoin says whether the beginning of the connection was not captured.
func (c *Conn) LateJoin() bool { return !c.ClientKnown }

// From is the endpoint that sends direction d.
func (c *Conn) From(d Dir) *Endpoint {
	if d == 0 {
		return &c.Key.A
	}
	return &c.Key.B
}

// half is one direction of a connection. Offsets count from base.
type half struct {
	base    uint32 // sequence number of offset 0
	known   bool   // base is set
	started bool   // next is where delivery stands
	finned  bool   // Fin was called
	next    int64
	acked   int64 // highest offset that the peer acknowledged
	fin     int64 // offset of the FIN, -1 if none was seen
	clock   int64 // time of the last bytes delivered
	finTime int64

	held      []held // sorted, disjoint, beyond next
	heldBytes int
	stuck     int64 // since when a hole has been due for declaration, 0: none
	stuckFor  int   // packets since then

	copies [4]copyMark
	copyAt uint8
}

// held is a segment that waits for its turn.
type held struct {
	off, time, ack int64
	missing        int64
	p              []byte
}

func (h *held) end() int64 { return h.off + int64(len(h.p)) + h.missing }

// copyMark recognises a packet that is captured twice.
type copyMark struct {
	sum  uint64
	time int64
}

// offset widens a sequence number to an offset near where the stream stands.
func (h *half) offset(seq uint32) int64 {
	return h.next + int64(int32(seq-(h.base+uint32(h.next))))
}

// Now is the latest packet time seen.
func (a *Assembler) Now() int64 { return a.now }

// Open is how many connections are followed.
func (a *Assembler) Open() int { return a.open.n }

// Add takes one segment, in the order of capture.
func (a *Assembler) Add(s *Segment) {
	a.Segments++
	if s.Time > a.now {
		a.now = s.Time
		a.expire()
	}
	k, d := MakeKey(&s.Src, &s.Dst)
	c := a.last
	if c == nil || c.Key != k {
		c = a.conns[k]
	}
	if c = a.admit(c, k, d, s); c == nil {
		return
	}
	a.last = c
	c.lastAt = s.Time
	if a.now-c.active > touchEvery {
		c.active = a.now
		a.open.moveToEnd(c)
	}
	c.segment(d, s)
	if a.Budget.Used > a.Budget.Limit {
		a.makeRoom(c)
	}
	a.PeakMemory = max(a.PeakMemory, a.Budget.Used)
}

// admit returns the connection that s belongs to, nil if to none.
func (a *Assembler) admit(c *Conn, k Key, d Dir, s *Segment) *Conn {
	syn := s.Flags&SYN != 0
	if c != nil && c.replacedBy(d, s) {
		if c.over {
			a.forget(c)
		} else {
			c.close(s.Time, Replaced, d)
			a.forget(c)
		}
		c = nil
	}
	if c != nil {
		if !c.over {
			return c
		}
		switch {
		case c.halves[d].isCopy(s, a.now):
			a.Duplicates++
		case len(s.Payload) > 0:
			a.AfterClose++
		default:
			a.Stray++
		}
		return nil
	}
	if s.Flags&RST != 0 || !syn && len(s.Payload) == 0 {
		a.Stray++
		return nil
	}
	c = &Conn{Key: k, a: a, active: a.now}
	c.halves[0].fin, c.halves[1].fin = -1, -1
	a.conns[k] = c
	a.open.pushEnd(c)
	a.Budget.Add(connBytes)
	a.Connections++
	if !syn {
		a.LateJoins++
	}
	return c
}

// replacedBy reports whether s opens, or belongs to, a newer connection with
// the addresses and ports of c.
func (c *Conn) replacedBy(d Dir, s *Segment) bool {
	h := &c.halves[d]
	switch {
	case s.Flags&RST != 0:
		return false
	case s.Flags&SYN != 0 && s.Flags&ACK == 0:
		return !h.known || h.base != s.Seq+1
	case s.Flags&SYN != 0:
		// The answer to a SYN that was not seen.
		return h.known && h.base != s.Seq+1 && (h.started || c.over)
	case len(s.Payload) == 0 || !h.started:
		return false
	}
	off := h.offset(s.Seq)
	return off-h.next > maxJump || h.next-off > maxJump
}

// forget takes a closed connection out of the table.
func (a *Assembler) forget(c *Conn) {
	a.closed.remove(c)
	if a.conns[c.Key] == c {
		delete(a.conns, c.Key)
	}
	if a.last == c {
		a.last = nil
	}
	a.Budget.Add(-connBytes)
}

// expire ends what has been idle for too long, on packet time.
func (a *Assembler) expire() {
	for c := a.open.first(); c != nil && a.now-c.active > a.idle+touchEvery; c = a.open.first() {
		a.IdleExpired++
		c.close(c.lastAt, Idle, 0)
	}
	for c := a.closed.first(); c != nil && a.now-c.active > linger; c = a.closed.first() {
		a.forget(c)
	}
}

// makeRoom brings the budget back under its limit, with some slack so that it
// need not run again at once. What c holds goes first: it is what grew.
func (a *Assembler) makeRoom(c *Conn) {
	if !c.over {
		for d := range Dir(2) {
			c.release(d, math.MaxInt64, true)
		}
	}
	goal := a.Budget.Limit - a.Budget.Limit/16
	for a.Budget.Used > goal {
		if old := a.closed.first(); old != nil {
			a.forget(old)
			continue
		}
		old := a.open.first()
		if old == nil {
			break
		}
		a.EvictedConns++
		old.close(old.lastAt, Evicted, 0)
		a.forget(old)
	}
}

// Close ends all connections: the capture is over.
func (a *Assembler) Close() {
	for c := a.open.first(); c != nil; c = a.open.first() {
		c.close(c.lastAt, EndOfCapture, 0)
	}
	for c := a.closed.first(); c != nil; c = a.closed.first() {
		a.forget(c)
	}
}

// list is a doubly linked list of connections with a sentinel.
type list struct {
	root Conn
	n    int
}

func (l *list) init() { l.root.prev, l.root.next = &l.root, &l.root }

func (l *list) first() *Conn {
	if l.n == 0 {
		return nil
	}
	return l.root.next
}

func (l *list) pushEnd(c *Conn) {
	c.prev, c.next = l.root.prev, &l.root
	c.prev.next, c.next.prev = c, c
	l.n++
}

func (l *list) remove(c *Conn) {
	c.prev.next, c.next.prev = c.next, c.prev
	c.prev, c.next = nil, nil
	l.n--
}

func (l *list) moveToEnd(c *Conn) {
	l.remove(c)
	l.pushEnd(c)
}
