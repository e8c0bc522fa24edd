package wirehttp

import (
	"bytes"
	"encoding/binary"
	"maps"
	"slices"
	"strconv"

	"reprise/capture"
	"reprise/capture/packet/reassembly"
)

const (
	maxBlock   = 256 << 10 // bytes of a header block
	maxControl = 1 << 10   // bytes kept of a control frame
	maxStreams = 10000     // open in one connection
	maxSearch  = 128 << 10 // bytes looked through for frames
	// chain is how many frame headers in a row must be plausible.
	chain = 3
	// streamBytes is charged for an open stream.
	streamBytes = 256
)

// h2 is a connection that speaks HTTP/2 in the clear.
type h2 struct {
	f       *Flow
	sure    bool // frames were found
	dirs    [2]h2dir
	streams map[uint32]*stream
	newest  uint32 // highest stream that the client opened
	late    bool
	lossy   bool // bytes of the client were lost
}

// h2dir is one direction.
type h2dir struct {
	synced bool
	search []byte // looked through for frames
	marks  []reassembly.Mark
	spans  []int // where in search the bytes of each mark begin

	skip  int // bytes of the preface still to come
	head  [frameHead]byte
	nhead int
	frame frame
	inner bool // in the payload of frame
	pad   int  // padding at the end of frame, -1: its length is still to come

	block     []byte // header block, or the payload of a control frame
	blockLost bool   // a part of it was not captured
	blockEnds bool   // END_STREAM
	blockPush bool   // it is of a PUSH_PROMISE
	blockOf   uint32
	table     *headerTable
}

// stream is a request and its answer.
type stream struct {
	x        Exchange
	headed   bool // the head of the request was there
	asked    bool // the request is complete
	answered bool // the head of the answer was there
}

func newH2(f *Flow, late bool) *h2 {
	c := &h2{f: f, streams: map[uint32]*stream{}, late: late}
	for i := range c.dirs {
		c.dirs[i].table = newHeaderTable(late)
		c.dirs[i].synced = !late
	}
	if !late {
		c.sure = true
		c.dirs[fromClient].skip = len(preface)
	}
	return c
}

func (c *h2) data(role int, at reassembly.Mark, p []byte) {
	d := &c.dirs[role]
	if !d.synced {
		c.find(role, at, p)
		return
	}
	for len(p) > 0 {
		n := c.step(role, d, at.Time, p)
		if n < 0 { // out of step
			c.lose(role, at.Time, 0)
			if len(p) > 1 { // a byte further, so that it does not find the same again
				at.Off++
				c.find(role, at, p[1:])
			}
			return
		}
		p, at.Off = p[n:], at.Off+int64(n)
	}
}

// step takes some bytes of p and returns how many; -1 if they make no sense.
func (c *h2) step(role int, d *h2dir, t int64, p []byte) int {
	if d.skip > 0 {
		n := min(d.skip, len(p))
		i := len(preface) - d.skip
		if !bytes.Equal(p[:n], preface[i:i+n]) {
			d.skip = 0
			return -1
		}
		d.skip -= n
		return n
	}
	if !d.inner {
		n := copy(d.head[d.nhead:], p)
		if d.nhead += n; d.nhead < frameHead {
			return n
		}
		d.nhead = 0
		if !c.open(role, d, t) {
			return -1
		}
		return n
	}
	n := min(d.frame.left, len(p))
	q := p[:n]
	d.frame.left -= n
	if d.pad < 0 && n > 0 {
		d.pad, q = int(q[0]), q[1:]
		if d.pad > d.frame.left+len(q) {
			c.f.env.BadMessages++
			d.pad = d.frame.left + len(q)
		}
	}
	if over := d.pad - d.frame.left; d.pad > 0 && over > 0 {
		q = q[:len(q)-min(over, len(q))]
	}
	if len(q) > 0 {
		c.payload(role, d, t, q)
	}
	if d.frame.left == 0 {
		d.inner = false
		c.finish(role, d, t)
	}
	return n
}

// open takes a frame header.
func (c *h2) open(role int, d *h2dir, t int64) bool {
	f := parseFrame(d.head[:])
	if f.left > maxDataFrame && f.typ <= frameContinuation || f.typ > 0x3f && f.left > maxFrame {
		c.f.env.BadMessages++
		return false
	}
	if (f.typ == frameContinuation) != (d.blockOf != 0) || f.typ == frameContinuation && f.stream != d.blockOf {
		c.f.env.BadMessages++
		return false
	}
	d.frame, d.inner, d.pad = f, true, 0
	if f.flags&flagPadded != 0 && (f.typ == frameData || f.typ == frameHeaders || f.typ == framePush) {
		d.pad = -1
	}
	if f.typ != frameContinuation {
		c.keep(d, nil)
		d.blockLost = false
	}
	if role == fromClient && f.typ == frameHeaders {
		c.opened(f.stream, t)
	}
	if f.left == 0 {
		d.inner = false
		c.finish(role, d, t)
	}
	return true
}

// opened begins an exchange with the HEADERS of a client, at the time of their
// first byte.
func (c *h2) opened(id uint32, t int64) {
	if id <= c.newest || id&1 == 0 {
		return
	}
	c.newest = id
	if len(c.streams) >= maxStreams {
		c.f.env.Recorder.Drop(ReasonPipeline)
		return
	}
	c.begin(id, c.f.env.Recorder.Begin(t, capture.Conn{Client: c.f.clientName(), LateJoin: c.f.late}))
}

func (c *h2) begin(id uint32, x Exchange) *stream {
	s := &stream{x: x}
	c.streams[id] = s
	c.f.charge(streamBytes)
	return s
}

// keep appends to the block of a direction, or empties it.
func (c *h2) keep(d *h2dir, p []byte) {
	c.f.charge(-cap(d.block))
	if p == nil {
		d.block = nil
		return
	}
	d.block = append(d.block, p...)
	c.f.charge(cap(d.block))
}

// payload takes a piece of the payload of the current frame, without padding.
func (c *h2) payload(role int, d *h2dir, t int64, p []byte) {
	switch d.frame.typ {
	case frameData:
		s := c.streams[d.frame.stream]
		if s == nil {
			s = c.bodyOnly(role, d.frame.stream, t)
		}
		if s == nil {
			return
		}
		if role == fromClient {
			s.x.RequestBody(t, p)
		} else {
			c.answerBegins(s, t)
			s.x.ResponseBody(t, p)
		}
	case frameHeaders, frameContinuation, framePush:
		if len(d.block)+len(p) > maxBlock {
			d.blockLost = true
			c.keep(d, nil)
			return
		}
		c.keep(d, p)
	case frameReset, frameGoAway:
		if len(d.block)+len(p) <= maxControl {
			c.keep(d, p)
		}
	}
}

// bodyOnly begins an exchange of whose request only the body is captured,
// because its HEADERS were lost. A body that was under way when the capture
// joined is none.
func (c *h2) bodyOnly(role int, id uint32, t int64) *stream {
	if role != fromClient || !c.lossy || id <= c.newest || id&1 == 0 {
		return nil
	}
	c.opened(id, t)
	s := c.streams[id]
	if s != nil {
		s.headed = true
		s.x.RequestHead(t, "", "", nil)
		s.x.Gap(t, false, 1) // at least the head; how much of the body is not known
	}
	return s
}

// answerBegins tells the exchange of an answer whose head was not captured.
func (c *h2) answerBegins(s *stream, t int64) {
	if !s.answered {
		s.answered = true
		s.x.ResponseHead(t, 0, nil)
	}
}

// finish ends the current frame.
func (c *h2) finish(role int, d *h2dir, t int64) {
	f := d.frame
	switch f.typ {
	case frameData:
		if f.flags&flagEndStream != 0 {
			c.endStream(role, f.stream, t)
		}
	case frameHeaders, framePush, frameContinuation:
		if f.typ != frameContinuation {
			d.blockEnds = f.typ == frameHeaders && f.flags&flagEndStream != 0
			d.blockPush = f.typ == framePush
			c.trimBlock(d, f)
		}
		if f.flags&flagEndHeaders == 0 {
			d.blockOf = f.stream
			return
		}
		d.blockOf = 0
		c.block(role, d, f.stream, t)
		c.keep(d, nil)
	case frameReset:
		c.reset(role, d, t)
		c.keep(d, nil)
	case frameGoAway:
		if role == fromServer && len(d.block) >= 8 {
			last := binary.BigEndian.Uint32(d.block) & (1<<31 - 1)
			for _, id := range slices.Sorted(maps.Keys(c.streams)) {
				if id > last {
					c.close1(id, t, capture.ServerReset)
				}
			}
		}
		c.keep(d, nil)
	}
}

// trimBlock takes what comes before the header block off a frame's payload.
func (c *h2) trimBlock(d *h2dir, f frame) {
	n := 0
	switch {
	case f.typ == framePush:
		n = 4
	case f.flags&flagPriority != 0:
		n = 5
	}
	if len(d.block) < n {
		d.blockLost = true
		n = len(d.block)
	}
	d.block = append(d.block[:0], d.block[n:]...)
}

// block takes a complete header block.
func (c *h2) block(role int, d *h2dir, id uint32, t int64) {
	f := &c.f.env.fields
	f.list = f.list[:0]
	var method, target, status string
	if !d.blockLost {
		ok := d.table.decode(d.block, func(h headerField) {
			if !h.name.ok || !h.value.ok {
				return
			}
			switch h.name.s {
			case ":method":
				method = h.value.s
			case ":path":
				target = h.value.s
			case ":status":
				status = h.value.s
			default:
				if len(f.list) < 1024 {
					f.list = append(f.list, field{[]byte(h.name.s), []byte(h.value.s)})
				}
			}
		})
		if !ok {
			c.f.env.BadMessages++
			c.f.env.LostHPACK++
		}
	} else {
		d.table.lose()
		c.f.env.LostHPACK++
	}
	s := c.streams[id]
	if s == nil || d.blockPush {
		if s == nil && !d.blockPush && role == fromServer && id > c.newest && id&1 == 1 && !(c.late && !c.lossy) {
			c.newest = id
			c.f.env.Recorder.Drop(ReasonNoRequest)
		}
		return
	}
	if role == fromClient {
		if !s.headed { // else a trailer
			s.headed = true
			s.x.RequestHead(t, method, target, c.f.env.header)
		}
	} else if !s.answered {
		n, _ := strconv.Atoi(status)
		s.x.ResponseHead(t, n, c.f.env.header)
		s.answered = n < 100 || n >= 200
	}
	if d.blockEnds {
		c.endStream(role, id, t)
	}
}

func (c *h2) endStream(role int, id uint32, t int64) {
	s := c.streams[id]
	if s == nil {
		return
	}
	if role == fromClient {
		s.asked = true
		s.x.RequestEnd(t)
		return
	}
	c.answerBegins(s, t)
	s.x.ResponseEnd(t)
	c.forget(id)
}

// reset takes RST_STREAM.
func (c *h2) reset(role int, d *h2dir, t int64) {
	how := capture.ServerReset
	if role == fromClient {
		how = capture.ClientAbort
	}
	c.close1(d.frame.stream, t, how)
}

func (c *h2) close1(id uint32, t int64, how capture.Ending) {
	if s := c.streams[id]; s != nil {
		s.x.End(t, how)
		c.forget(id)
	}
}

func (c *h2) forget(id uint32) {
	delete(c.streams, id)
	c.f.charge(-streamBytes)
}

// gap steps over n bytes that were not captured.
func (c *h2) gap(role int, at reassembly.Mark, n int64) {
	d := &c.dirs[role]
	if role == fromClient {
		c.lossy = true
	}
	switch {
	case !d.synced:
		// Frames cannot be followed over it.
		c.discard(d, len(d.search))
		c.f.env.LostBytes += n
		c.tell(role, at.Time, n)
	case d.inner && n <= int64(d.frame.left) && d.pad >= 0:
		d.frame.left -= int(n)
		switch d.frame.typ {
		case frameData:
			if s := c.streams[d.frame.stream]; s != nil {
				s.x.Gap(at.Time, role == fromServer, n)
			}
		case frameHeaders, frameContinuation, framePush:
			d.blockLost = true
		default:
			c.keep(d, nil)
		}
		if d.frame.left == 0 {
			d.inner = false
			c.finish(role, d, at.Time)
		}
	default:
		c.lose(role, at.Time, n)
	}
}

// lose is for when the frames of a direction cannot be followed any more.
func (c *h2) lose(role int, t, n int64) {
	d := &c.dirs[role]
	c.keep(d, nil)
	table := d.table
	table.lose()
	c.f.env.LostHPACK++
	*d = h2dir{table: table}
	c.tell(role, t, max(n, 1))
	if role == fromClient {
		c.lossy = true
	}
}

// tell says to all open exchanges that bytes of a direction were lost: they may
// be any one's.
func (c *h2) tell(role int, t, n int64) {
	for _, id := range slices.Sorted(maps.Keys(c.streams)) {
		if s := c.streams[id]; role == fromServer || !s.asked {
			s.x.Gap(t, role == fromServer, n)
		}
	}
}

// find looks for frames in what is not in step, and reads on from there with
// the times that the bytes had.
func (c *h2) find(role int, at reassembly.Mark, p []byte) {
	d := &c.dirs[role]
	d.marks = append(d.marks, at)
	d.spans = append(d.spans, len(d.search))
	c.f.charge(-cap(d.search))
	d.search = append(d.search, p...)
	c.f.charge(cap(d.search))
	i, ok := findFrames(d.search)
	if ok {
		c.resume(role, d, i)
		return
	}
	if i > 0 && (len(d.search) > maxSearch || i == len(d.search)) {
		c.discard(d, i)
	}
	if len(d.search) > maxSearch {
		c.discard(d, len(d.search))
	}
}

// discard gives up the first n bytes of what is looked through.
func (c *h2) discard(d *h2dir, n int) {
	c.f.env.LostBytes += int64(n)
	i := len(d.spans) - 1
	for i > 0 && d.spans[i] > n {
		i--
	}
	c.f.charge(-cap(d.search))
	d.search = append([]byte(nil), d.search[n:]...)
	c.f.charge(cap(d.search))
	if len(d.search) == 0 {
		d.search, d.marks, d.spans = nil, nil, nil
		return
	}
	d.marks, d.spans = slices.Clone(d.marks[i:]), slices.Clone(d.spans[i:])
	for j := range d.spans {
		d.spans[j] = max(0, d.spans[j]-n)
	}
}

// resume reads on at byte i of what was looked through.
func (c *h2) resume(role int, d *h2dir, i int) {
	b, marks, spans := d.search, d.marks, d.spans
	c.f.charge(-cap(d.search))
	d.search, d.marks, d.spans = nil, nil, nil
	d.synced, c.sure = true, true
	c.f.env.Resyncs++
	c.f.env.LostBytes += int64(i)
	for j := range marks {
		end := len(b)
		if j+1 < len(spans) {
			end = spans[j+1]
		}
		from := max(i, spans[j])
		if from < end {
			c.data(role, marks[j], b[from:end])
		}
	}
}

// findFrames looks for several plausible frame headers in a row. It returns
// where they begin, or, with false, the first place where they may begin once
// more bytes are there.
func findFrames(b []byte) (at int, found bool) {
	first := len(b)
	for i := range b {
		// The length of a frame has a zero byte in front, or is 64 KiB and more.
		if b[i] > maxDataFrame>>16 {
			continue
		}
		switch frameChain(b[i:]) {
		case chainFound:
			return i, true
		case chainMaybe:
			first = min(first, i)
		}
		if first < i && i-first > 4*maxFrame {
			break
		}
	}
	return first, false
}

type chained uint8

const (
	chainNone chained = iota
	chainMaybe
	chainFound
)

// frameChain reports whether b begins with a chain of frames.
func frameChain(b []byte) chained {
	var last *frame
	for range chain {
		if len(b) < frameHead {
			return chainMaybe
		}
		if !plausible(b, last) {
			return chainNone
		}
		f := parseFrame(b)
		last = &f
		if len(b) < frameHead+f.left {
			return chainMaybe
		}
		b = b[frameHead+f.left:]
	}
	return chainFound
}

// close ends what is open.
func (c *h2) close(end ending) {
	if !c.dirs[fromServer].synced && (end.how == capture.ClientAbort || end.how == capture.ServerReset) {
		end.how = capture.Truncated
	}
	for _, id := range slices.Sorted(maps.Keys(c.streams)) {
		c.close1(id, end.t, end.how)
	}
}

// release gives back memory.
func (c *h2) release() {
	for i := range c.dirs {
		d := &c.dirs[i]
		c.keep(d, nil)
		c.f.charge(-cap(d.search))
		d.search, d.marks, d.spans = nil, nil, nil
	}
}
