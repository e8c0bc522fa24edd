package wirehttp

import (
	"bytes"
	"slices"

	"reprise/capture"
	"reprise/capture/packet/reassembly"
)

const (
	maxHead = 256 << 10 // bytes of a head; servers allow 8 to 64 KiB
	maxLine = 8 << 10   // bytes of a chunk's size line
	// maxUnanswered bounds pipelined requests.
	maxUnanswered = 256
)

// step is where a direction stands within its messages.
type step uint8

const (
	stHead      step = iota // before or in a head
	stLength                // body of known length, left bytes to go
	stChunkSize             // size line of a chunk
	stChunkData             // in a chunk, left bytes to go
	stChunkEnd              // line end after a chunk
	stTrailer               // after the last chunk
	stToClose               // body that ends with the connection
	stLost                  // looking for the next head
	stLostChunk             // looking for the next chunk of the message, or the next head
	stTunnel                // no longer HTTP/1
)

// side is one direction of a connection.
type side struct {
	step   step
	buf    []byte          // head or line that is not complete yet
	mark   reassembly.Mark // of the first byte of buf
	left   int64
	lostAt int64 // where bytes were lost, or made no sense
	// unsure is set while it is not known how many messages were missed.
	unsure bool
	line   int // bytes of the current line of a trailer, without its end
}

// asked is a request whose answer is not complete.
type asked struct {
	x    Exchange
	ack  int64 // how much of the server's stream the client had when it asked
	end  int64 // where the request ends in the client's stream, 0: not yet known
	head bool  // HEAD
	conn bool  // CONNECT
	h2c  bool  // asks for an upgrade to h2c
	// lost stands for requests that may have been missed here; x is nil then.
	// off is where in the client's stream they were, or it begins.
	// within says that they were lost while another request was unanswered, so
	// that they are part of it unless the client pipelines.
	lost bool
	off  int64
}

// h1 is a connection that speaks HTTP/1.
type h1 struct {
	f     *Flow
	sides [2]side
	queue []asked
	// asking is the exchange whose request is not complete, or nil.
	asking  Exchange
	askedAt int64 // its asked.ack
	// answering says that the server is in its answer to queue[0], orphan that
	// it answers a request that is not known.
	answering, orphan bool
	// piped is set once a request was sent before the answer to the one before,
	// doubt once messages may have been missed. With both, nothing says any more
	// which answer is whose.
	piped, doubt bool
	headAck      int64 // what the server had received when it began its last answer
	orphans      int   // answers to requests that are not known, so far
	orphanAt     int64 // where the last of them begins
	orphanAck    int64 // what the server had received when it began it
	// trial is what a connection that was joined late is on, or nil.
	trial *trial
	// gone is a request whose answer was seen before it, because of a hole, and
	// taken for nobody's. It ends with its last byte.
	gone   Exchange
	served int64 // how far the server's stream has been read
}

func newH1(f *Flow, late bool) *h1 {
	c := &h1{f: f, orphanAt: -1, orphanAck: -1, headAck: -1, doubt: late}
	if late {
		c.trial = &trial{need: 1, end: -1}
		for i := range c.sides {
			c.sides[i].step, c.sides[i].unsure = stLost, true
		}
	}
	return c
}

func (c *h1) data(role int, at reassembly.Mark, p []byte) {
	s := &c.sides[role]
	if role == fromServer {
		c.served = at.Off + int64(len(p))
	}
	start := true // p begins a segment
	for len(p) > 0 {
		n := 0
		switch s.step {
		case stHead:
			n = c.head(role, s, at, p)
			if n < 0 { // HTTP/2 took over
				return
			}
		case stLength:
			if start && c.orphan && role == fromServer && looksLikeResponse(p) && c.asksAt(at.Off) {
				// The answer that nobody asked for was one to HEAD.
				s.step = stHead
				continue
			}
			n = int(min(int64(len(p)), s.left))
			c.body(role, at.Time, p[:n])
			if s.left -= int64(n); s.left == 0 {
				c.end(role, at.Time, at.Off+int64(n))
			}
		case stChunkData:
			n = int(min(int64(len(p)), s.left))
			c.body(role, at.Time, p[:n])
			if s.left -= int64(n); s.left == 0 {
				s.step = stChunkEnd
			}
		case stChunkSize:
			n = c.chunkSize(s, p)
		case stChunkEnd:
			n = 1
			if p[0] == '\n' {
				s.step = stChunkSize
			} else if p[0] != '\r' {
				c.bad(s)
			}
		case stTrailer:
			n = c.trailer(role, s, at, p)
		case stToClose:
			n = len(p)
			c.body(role, at.Time, p)
		case stLost, stLostChunk:
			n = len(p)
			if start && c.resync(role, s, at, p) {
				n = 0
			} else {
				c.f.env.LostBytes += int64(n)
			}
		case stTunnel:
			return
		}
		if n > 0 {
			start = false
			p, at.Off = p[n:], at.Off+int64(n)
		}
	}
}

// bad is a message that cannot be read: the next one that can is searched.
func (c *h1) bad(s *side) {
	c.f.env.BadMessages++
	s.lostAt = s.mark.Off
	c.lose(s, stLost)
}

func (c *h1) lose(s *side, to step) {
	c.keep(s, nil)
	c.endTrial(!c.piped)
	s.step, s.unsure, c.doubt = to, true, true
	if s == &c.sides[fromClient] {
		c.push(asked{lost: true, off: s.lostAt}, 0)
	}
}

// keep replaces what a side has buffered.
func (c *h1) keep(s *side, b []byte) {
	if b == nil {
		c.f.charge(-cap(s.buf))
		s.buf = nil
		return
	}
	c.f.charge(-cap(s.buf))
	s.buf = append(s.buf, b...)
	c.f.charge(cap(s.buf))
}

// resync reports whether p, the beginning of a segment, is where reading can go
// on, and sets the step for it.
func (c *h1) resync(role int, s *side, at reassembly.Mark, p []byte) bool {
	switch {
	case role == fromClient && looksLikeRequest(p), role == fromServer && looksLikeResponse(p):
		if role == fromServer && c.answering {
			c.pop(at.Time, capture.Truncated)
		}
		s.step = stHead
	case s.step == stLostChunk && c.sameMessage(role, at) && looksLikeChunk(p):
		s.step, s.unsure = stChunkSize, false
		if n := len(c.queue); role == fromClient && n > 0 && c.queue[n-1].lost {
			c.queue = c.queue[:n-1] // it was this message all along
		}
	default:
		return false
	}
	c.f.env.Resyncs++
	return true
}

// sameMessage reports whether what a side sends now is certainly still the
// message that it was in when bytes were lost. A server that has not received
// anything beyond a request cannot have begun with another answer; a client that
// waits for answers does not begin with another request before it has one.
func (c *h1) sameMessage(role int, at reassembly.Mark) bool {
	if role == fromClient {
		return c.asking != nil && !c.piped && at.Ack == c.askedAt
	}
	if !c.answering || at.Ack < 0 {
		return false
	}
	q := &c.queue[0]
	return q.end > 0 && at.Ack <= q.end
}

// looksLikeChunk reports whether p begins with the size line of a chunk. Where
// the chunk ends within p, its end must be there; where it does not, it must
// begin like what language models send.
func looksLikeChunk(p []byte) bool {
	line, rest, ok := bytes.Cut(p, []byte("\r\n"))
	if !ok || len(line) > 64 {
		return false
	}
	size, ok := parseChunkSize(line)
	switch {
	case !ok || size > 16<<20:
		return false
	case size == 0:
		return string(rest) == "\r\n" || bytes.HasSuffix(rest, []byte("\r\n\r\n"))
	case int64(len(rest)) >= size+2:
		return rest[size] == '\r' && rest[size+1] == '\n'
	}
	for _, begin := range []string{"data:", "event:", "id:", ": ", "{", "retry:"} {
		if bytes.HasPrefix(rest, []byte(begin)) {
			return true
		}
	}
	return false
}

// head reads a head, or a part of it. It returns how many bytes it took, or -1
// if another protocol took the connection over.
func (c *h1) head(role int, s *side, at reassembly.Mark, p []byte) int {
	if len(s.buf) == 0 {
		// Line ends before a request line are passed over (RFC 9112, 2.2).
		if p[0] == '\r' || p[0] == '\n' {
			return 1
		}
		s.mark = at
		if n := headEnd(p, 0); n > 0 {
			return c.message(role, s, at, p[:n], p[n:])
		}
		if len(p) > maxHead {
			c.bad(s)
			return len(p)
		}
		c.keep(s, p)
		return len(p)
	}
	had := len(s.buf)
	if had+len(p) > maxHead {
		p = p[:maxHead-had]
	}
	c.keep(s, p)
	n := headEnd(s.buf, had-3)
	switch {
	case n > 0:
		// What lies behind the head is read from p again.
		if c.message(role, s, at, s.buf[:n], p[n-had:]) < 0 {
			return -1
		}
		c.keep(s, nil)
		return n - had
	case len(s.buf) >= maxHead:
		c.bad(s)
	}
	return len(p)
}

// headEnd returns the length of the head in b, 0 if its end is not there. The
// search may begin at from.
func headEnd(b []byte, from int) int {
	from = max(from, 0)
	i := bytes.Index(b[from:], []byte("\n\r\n"))
	j := -1
	if i < 0 || bytes.IndexByte(b[from:from+i], '\n') >= 0 {
		j = bytes.Index(b[from:], []byte("\n\n"))
	}
	switch {
	case j >= 0 && (i < 0 || j < i):
		return from + j + 2
	case i >= 0:
		return from + i + 3
	}
	return 0
}

// message takes a complete head; rest is what came with it. It returns the
// length of the head, or -1 if another protocol took the connection over.
func (c *h1) message(role int, s *side, at reassembly.Mark, head, rest []byte) int {
	line, fields, _ := bytes.Cut(head, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	if role == fromClient && string(line) == "PRI * HTTP/2.0" && len(c.queue) == 0 {
		c.f.takeOver(fromClient, at, nil, slices.Concat(head, rest))
		return -1
	}
	ok := c.f.env.fields.parse(fields)
	if role == fromClient {
		ok = ok && c.request(s, at.Time, s.mark.Off+int64(len(head)), line)
	} else if ok = ok && looksLikeResponse(append(bytes.Clone(line), ' ')); ok {
		status := int(line[9]-'0')*100 + int(line[10]-'0')*10 + int(line[11]-'0')
		if c.response(s, at, status, s.mark.Off+int64(len(head)), rest) {
			return -1
		}
	}
	if !ok {
		c.bad(s)
	}
	return len(head)
}

// parse reads the fields of a head; false if a line is none.
func (f *fields) parse(b []byte) bool {
	f.list = f.list[:0]
	for len(b) > 0 {
		line, rest, _ := bytes.Cut(b, []byte("\n"))
		b = rest
		line = bytes.TrimSuffix(line, []byte("\r"))
		if len(line) == 0 {
			break
		}
		if line[0] == ' ' || line[0] == '\t' { // a folded line (RFC 9112, 5.2)
			if len(f.list) == 0 {
				return false
			}
			continue
		}
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok || len(name) == 0 || len(f.list) >= 1024 {
			return false
		}
		f.list = append(f.list, field{name, bytes.Trim(value, " \t")})
	}
	return true
}

// framing is how the length of a body is told (RFC 9112, section 6.3).
func (f *fields) framing() (chunked, coded bool, length int64, ok bool) {
	length = -1
	for i := range f.list {
		switch {
		case equalFold(f.list[i].name, "transfer-encoding"):
			coded = true
			v := f.list[i].value
			if j := bytes.LastIndexByte(v, ','); j >= 0 {
				v = bytes.TrimSpace(v[j+1:])
			}
			chunked = equalFold(v, "chunked")
		case equalFold(f.list[i].name, "content-length"):
			for v := range bytes.SplitSeq(f.list[i].value, []byte(",")) {
				n, ok := parseLength(bytes.TrimSpace(v))
				if !ok || length >= 0 && length != n {
					return false, coded, 0, false
				}
				length = n
			}
		}
	}
	return chunked, coded, length, true
}

func parseLength(v []byte) (n int64, ok bool) {
	if len(v) == 0 || len(v) > 18 {
		return 0, false
	}
	for _, c := range v {
		if !isDigit(c) {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// request begins an exchange with a head that ends at the offset end. It returns
// false for a head that is none.
func (c *h1) request(s *side, now, end int64, line []byte) bool {
	method, target, ok := requestLine(line)
	if !ok {
		return false
	}
	e := c.f.env
	chunked, coded, length, ok := e.fields.framing()
	if !ok || coded && !chunked {
		return false
	}
	q := asked{
		x:    e.Recorder.Begin(s.mark.Time, capture.Conn{Client: c.f.clientName(), LateJoin: c.f.late}),
		ack:  s.mark.Ack,
		off:  s.mark.Off,
		head: method == "HEAD",
		conn: method == "CONNECT",
	}
	for i := range e.fields.list {
		q.h2c = q.h2c || equalFold(e.fields.list[i].name, "upgrade") && equalFold(e.fields.list[i].value, "h2c")
	}
	q.x.RequestHead(now, method, target, e.header)
	c.push(q, now)
	s.unsure = false
	c.asking, c.askedAt = q.x, q.ack
	switch {
	case chunked:
		s.step = stChunkSize
	case length > 0:
		s.step, s.left = stLength, length
	default:
		c.end(fromClient, now, end)
	}
	return true
}

// requestLine takes a request line apart.
func requestLine(line []byte) (method, target string, ok bool) {
	m, rest, _ := bytes.Cut(line, []byte(" "))
	t, version, _ := bytes.Cut(rest, []byte(" "))
	if len(m) == 0 || len(m) > 24 || !printable(m) || len(t) == 0 || !printable(t) || !isVersion(version) {
		return "", "", false
	}
	return string(m), string(t), true
}

// push appends to the queue of unanswered requests.
func (c *h1) push(q asked, now int64) {
	n := len(c.queue)
	if q.lost {
		if n > 0 && c.queue[n-1].lost {
			c.queue = c.queue[:n-1]
		}
		c.queue = append(c.queue, q)
		return
	}
	c.endGone(now)
	if q.ack >= 0 && q.ack <= c.orphanAt {
		c.gone = q.x
		return
	}
	c.burst(q, now)
	n = len(c.queue)
	for i := range c.queue {
		c.piped = c.piped || !c.queue[i].lost && c.queue[i].ack == q.ack
	}
	if n >= maxUnanswered {
		c.endTrial(false)
		c.pop(now, capture.Evicted)
	}
	c.queue = append(c.queue, q)
}

// A trial is how a connection that was joined late becomes one whose answers are
// known to be those of its requests. When it was joined, requests may have been
// unanswered that nobody saw, and if the client pipelines, what looks like the
// answer to its first request is the answer to one of those.
//
// So answers are given in order, and no exchange ends, until the client asks
// again having received the end of the last answer, and nothing beyond. If there
// were as many answers as requests until then, they were paired rightly. If
// there were more, they were not; but then, too, everything is answered now. A
// client that pipelined across the join has to come out even several times
// before it is believed. A client that always asks again while a request is
// unanswered shows that sooner or later, and is never believed.
type trial struct {
	ack             int64 // what the client had received when it sent these requests
	end             int64 // where the last answer ended, -1: none did
	asked, answered int   // requests sent at ack, and answers since
	good, need      int   // times in a row that these were the same, and how many it takes
	held            []held
}

// held is an exchange that could be over.
type held struct {
	x Exchange
	t int64 // of the end of the answer
}

// evenAfterOdd is how often requests and answers have to be the same in number,
// in a row, once they were not.
const evenAfterOdd = 3

// burst takes a request into account that is about to be queued.
func (c *h1) burst(q asked, now int64) {
	tr := c.trial
	if tr == nil || tr.asked > 0 && q.ack == tr.ack {
		if tr != nil {
			tr.asked++
		}
		return
	}
	if tr.asked > 0 {
		s := &c.sides[fromServer]
		between := !c.answering && !c.orphan && s.step == stHead && len(s.buf) == 0 && q.ack == tr.end
		switch {
		case between && tr.answered == tr.asked:
			if tr.good++; tr.good >= tr.need {
				c.endTrial(true)
				c.doubt = false
			}
		case between && tr.answered > tr.asked:
			c.endTrial(false)
			c.trial = &trial{need: evenAfterOdd, end: tr.end}
		default:
			// It asked while an answer was under way or missing: it pipelines, unless
			// it is the packets that are out of order, and it had more than was seen.
			c.piped = c.piped || tr.asked > 1 || q.ack >= 0 && q.ack <= c.served
			c.endTrial(!c.piped)
			if c.piped && c.answering {
				c.queue[0].x.Mispaired(now)
				c.pop(now, capture.Truncated)
				c.orphan = true // and the rest of that answer is nobody's
			}
			return
		}
		for len(c.queue) > 0 { // whose answers went elsewhere
			c.pop(now, capture.Truncated)
		}
		s.unsure = false
		if tr = c.trial; tr == nil {
			return
		}
	}
	tr.ack, tr.asked, tr.answered = q.ack, 1, 0
}

// endTrial ends the exchanges that were held: right says that their answers are
// theirs.
func (c *h1) endTrial(right bool) {
	if c.trial == nil {
		return
	}
	for _, h := range c.trial.held {
		if right {
			h.x.ResponseEnd(h.t)
		} else {
			h.x.Mispaired(h.t)
		}
	}
	c.trial = nil
}

// endGone ends the request whose answer had passed.
func (c *h1) endGone(t int64) {
	if c.gone != nil {
		c.gone.End(t, capture.Truncated)
		c.gone = nil
	}
}

// pop takes the first request off the queue and ends it.
func (c *h1) pop(t int64, how capture.Ending) {
	if q := c.queue[0]; !q.lost {
		q.x.End(t, how)
	}
	c.queue = slices.Delete(c.queue, 0, 1)
	c.answering = false
}

// asksAt reports whether a request waits for an answer that begins at off.
func (c *h1) asksAt(off int64) bool {
	return slices.ContainsFunc(c.queue, func(q asked) bool { return !q.lost && q.ack == off })
}

// match finds the request that the answer beginning now is for, and brings it
// to the front of the queue; nil if that is not certain.
//
// In order, it is the first unanswered one. Where messages were missed, a client
// that waits for one answer before it asks again gives it away: it had received
// everything before the answer, and nothing of it, when it sent the request. The
// acknowledgement in the request's first segment says how much that was.
func (c *h1) match(s *side, now int64) *asked {
	if len(c.queue) == 0 || c.piped && c.doubt && c.trial == nil {
		return nil
	}
	if c.doubt && s.mark.Ack >= 0 && s.mark.Ack <= c.queue[0].off && !c.queue[0].lost {
		c.piped = true // the server did not have the request yet
		return nil
	}
	if !s.unsure && !c.queue[0].lost {
		return &c.queue[0]
	}
	i := slices.IndexFunc(c.queue, func(q asked) bool { return !q.lost && q.ack == s.mark.Off })
	if i < 0 {
		return nil
	}
	// If a request was missed just before it, and no answer to nobody was seen
	// that the missed one could have had, this may be its answer.
	if i > 0 && c.queue[i-1].lost && c.orphanAck <= c.queue[i-1].off {
		return nil
	}
	for range i {
		c.pop(now, capture.Truncated)
	}
	s.unsure = false
	return &c.queue[0]
}

// response takes the head of an answer that ends at the offset end. It reports
// whether another protocol took the connection over.
func (c *h1) response(s *side, at reassembly.Mark, status int, end int64, rest []byte) (switched bool) {
	e := c.f.env
	if s.mark.Ack >= 0 && (status >= 200 || status == 101) {
		// Two answers and no new request between them: both had been asked for.
		c.piped = c.piped || s.mark.Ack <= c.headAck
		c.headAck = s.mark.Ack
	}
	q := c.match(s, at.Time)
	if status < 200 && status != 101 {
		if q != nil {
			q.ack = end // the final answer begins there
		}
		return false
	}
	chunked, coded, length, ok := e.fields.framing()
	if !ok {
		c.bad(s)
		return false
	}
	if tr := c.trial; tr != nil && tr.asked > 0 {
		tr.answered++
	}
	c.orphan, c.answering = q == nil, q != nil
	if q == nil {
		c.orphans++
		c.orphanAt, c.orphanAck = s.mark.Off, s.mark.Ack
		c.doubt = true
		if !c.f.late || c.orphans > 1 { // what was under way when we joined is no loss
			e.Recorder.Drop(ReasonNoRequest)
		}
	} else {
		if status == 101 && q.h2c {
			c.f.takeOver(fromServer, at, q.x, rest)
			return true
		}
		q.x.ResponseHead(at.Time, status, e.header)
	}
	switch {
	case status == 101, q != nil && q.conn && status < 300:
		c.sides[fromClient].step, c.sides[fromServer].step = stTunnel, stTunnel
		if q != nil {
			q.x.ResponseEnd(at.Time)
			c.pop(at.Time, capture.Truncated)
		}
	case status == 204, status == 304, q != nil && q.head:
		c.end(fromServer, at.Time, end)
	case chunked:
		s.step = stChunkSize
	case coded || length < 0:
		s.step = stToClose
	case length == 0:
		c.end(fromServer, at.Time, end)
	default:
		s.step, s.left = stLength, length
	}
	return false
}

// body hands on a piece of a body.
func (c *h1) body(role int, t int64, p []byte) {
	if role == fromClient {
		if c.asking != nil {
			c.asking.RequestBody(t, p)
		}
	} else if c.answering {
		c.queue[0].x.ResponseBody(t, p)
	}
}

// end ends the current message of a side at the offset off.
func (c *h1) end(role int, t, off int64) {
	c.sides[role].step = stHead
	if role == fromClient {
		if c.asking != nil {
			c.asking.RequestEnd(t)
			c.endGone(t)
			if n := len(c.queue); n > 0 && c.queue[n-1].x == c.asking {
				c.queue[n-1].end = off
			}
			c.asking = nil
		}
		return
	}
	if c.answering && c.trial != nil {
		c.trial.held = append(c.trial.held, held{c.queue[0].x, t})
		c.queue = slices.Delete(c.queue, 0, 1)
		c.answering = false
	} else if c.answering {
		c.queue[0].x.ResponseEnd(t)
		c.pop(t, capture.Truncated)
	}
	if c.trial != nil {
		c.trial.end = off
	}
	c.orphan = false
}

// chunkSize reads the size line of a chunk.
func (c *h1) chunkSize(s *side, p []byte) int {
	i := bytes.IndexByte(p, '\n')
	if i < 0 {
		if len(s.buf)+len(p) > maxLine {
			c.bad(s)
		} else {
			c.keep(s, p)
		}
		return len(p)
	}
	line := p[:i]
	if len(s.buf) > 0 {
		c.keep(s, line)
		line = s.buf
	}
	size, ok := parseChunkSize(bytes.TrimSuffix(line, []byte("\r")))
	if len(s.buf) > 0 {
		c.keep(s, nil)
	}
	switch {
	case !ok:
		c.bad(s)
	case size == 0:
		s.step, s.line = stTrailer, 0
	default:
		s.step, s.left = stChunkData, size
	}
	return i + 1
}

// parseChunkSize reads the hexadecimal size before an extension.
func parseChunkSize(line []byte) (n int64, ok bool) {
	digits := 0
	for _, c := range line {
		switch {
		case c >= '0' && c <= '9':
			n = n<<4 | int64(c-'0')
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			n = n<<4 | int64(c|0x20-'a'+10)
		case c == ';' || c == ' ' || c == '\t':
			return n, digits > 0
		default:
			return 0, false
		}
		if digits++; digits > 15 {
			return 0, false
		}
	}
	return n, digits > 0
}

// trailer passes over the fields after the last chunk, up to an empty line.
func (c *h1) trailer(role int, s *side, at reassembly.Mark, p []byte) int {
	for i, b := range p {
		switch {
		case b == '\n' && s.line == 0:
			c.end(role, at.Time, at.Off+int64(i)+1)
			return i + 1
		case b == '\n':
			s.line = 0
		case b != '\r':
			if s.line++; s.line > maxLine {
				c.bad(s)
				return i + 1
			}
		}
	}
	return len(p)
}

// gap steps over n bytes that were not captured. Where the framing says what
// they were, reading goes on behind them.
func (c *h1) gap(role int, at reassembly.Mark, n int64) {
	s := &c.sides[role]
	s.lostAt = at.Off
	tell := func(n int64) {
		if role == fromClient {
			if c.asking != nil {
				c.asking.Gap(at.Time, false, n)
			}
		} else if c.answering {
			c.queue[0].x.Gap(at.Time, true, n)
		}
	}
	switch s.step {
	case stLength:
		in := min(n, s.left)
		tell(in)
		if s.left -= in; s.left == 0 {
			c.end(role, at.Time, at.Off+in)
		}
		if n > in {
			c.lose(s, stLost)
		}
	case stChunkData:
		tell(n)
		if n > s.left {
			c.lose(s, stLostChunk)
		} else if s.left -= n; s.left == 0 {
			s.step = stChunkEnd
		}
	case stChunkSize, stChunkEnd, stTrailer:
		tell(n)
		c.lose(s, stLostChunk)
	case stToClose:
		tell(n)
	case stHead:
		if role == fromClient {
			c.salvage(s, at.Time)
			tell(n)
		}
		c.lose(s, stLost)
	case stLost, stLostChunk:
		tell(n)
		c.lose(s, s.step)
		c.f.env.LostBytes += n
	}
}

// salvage begins an exchange with a request of whose head a part was captured:
// the request line and the fields until then.
func (c *h1) salvage(s *side, now int64) {
	head := s.buf
	i := bytes.LastIndexByte(head, '\n')
	if i < 0 {
		return
	}
	line, fields, _ := bytes.Cut(head[:i+1], []byte("\n"))
	method, target, ok := requestLine(bytes.TrimSuffix(line, []byte("\r")))
	e := c.f.env
	if !ok || !e.fields.parse(fields) {
		return
	}
	x := e.Recorder.Begin(s.mark.Time, capture.Conn{Client: c.f.clientName(), LateJoin: c.f.late})
	x.RequestHead(now, method, target, e.header)
	c.asking, c.askedAt = x, s.mark.Ack
	c.push(asked{x: x, ack: s.mark.Ack, head: method == "HEAD", conn: method == "CONNECT"}, now)
}

// serverFin ends an answer whose length only the end of the connection tells.
func (c *h1) serverFin(t int64) {
	if c.sides[fromServer].step == stToClose {
		c.end(fromServer, t, 0)
	}
}

// close ends what is open.
func (c *h1) close(end ending) {
	if s := c.sides[fromServer].step; s == stLost || s == stLostChunk || c.sides[fromServer].unsure {
		// The end of the answer may be among what was not captured.
		if end.how == capture.ClientAbort || end.how == capture.ServerReset {
			end.how = capture.Truncated
		}
	}
	c.endTrial(c.trial != nil && c.trial.answered <= c.trial.asked)
	c.endGone(end.t)
	for len(c.queue) > 0 {
		c.pop(end.t, end.how)
	}
}

// release gives back memory.
func (c *h1) release() {
	c.endTrial(true)
	for i := range c.sides {
		c.keep(&c.sides[i], nil)
	}
}
