package llmapi

import (
	"bytes"
	"fmt"
)

// MaxEvent is the default bound on the data of one event, and on one line. An
// SGLang reply is cumulative: 100,000 tokens of answer make an event of about
// 1.2 MB, so the bound leaves room for ten times that.
const MaxEvent = 16 << 20

// keepBuffer is what an SSE holds on to between events. Larger buffers are
// returned to the garbage collector, so that one huge event does not pin its
// size for as long as the stream lives.
const keepBuffer = 64 << 10

// An SSE splits an event stream (HTML standard, 9.2.6) that arrives in
// arbitrary pieces. The zero value is ready to use. Per piece:
//
//	s.Feed(b)
//	for data, ok := s.Next(); ok; data, ok = s.Next() {
//		...
//	}
//	if err := s.Err(); err != nil { ... }
//
// Lines end in LF, CR or CRLF, also across pieces. The data lines of an event
// are joined with LF. Comments and the fields event, id and retry are skipped;
// an event without a data line is none. Bytes are passed on as they came:
// nothing is decoded, so a character that is cut in two by the server stays
// so. An event that no blank line ends is not reported, as the standard wants;
// [SSE.Pending] tells a stream that was cut from one that ended.
//
// In steady state nothing is allocated: an event that lies in one piece is
// returned as a view of that piece, others are gathered in one buffer.
type SSE struct {
	// Max bounds the data of an event and the length of a line; 0 is
	// [MaxEvent].
	Max int

	in     []byte // the piece, from Feed
	pos    int    // what is consumed of it
	lf, cr int    // next LF and CR at or after pos, len(in) if there is none
	seen   int64  // bytes of earlier pieces

	line    []byte // start of a line that earlier pieces held
	whole   bool   // the line just read lies in the piece
	data    []byte // data of the current event: buf, or a view of in
	buf     []byte // where data is gathered
	view    bool   // data is a view of in
	hasData bool   // a data line was seen; data may still be empty
	swallow bool   // the last piece ended in CR: an LF that follows belongs to it
	started bool   // a byte-order mark can no longer come
	err     error
}

// Feed gives s the next piece. All events of the piece before must have been
// taken with Next. s reads from b until Next returns false.
func (s *SSE) Feed(b []byte) {
	s.seen += int64(len(s.in))
	s.in, s.pos = b, 0
	s.lf, s.cr = -1, -1
	if s.swallow && len(b) > 0 {
		s.swallow = false
		if b[0] == '\n' {
			s.pos = 1
		}
	}
}

// Next returns the data of the next event that is complete. The bytes stay
// valid until the next call of Next or Feed, and must not be changed.
func (s *SSE) Next() (data []byte, ok bool) {
	if s.err != nil {
		return nil, false
	}
	for {
		line, ok := s.nextLine()
		if !ok {
			break
		}
		if len(line) > 0 {
			s.field(line)
			if s.err != nil {
				return nil, false
			}
			continue
		}
		if !s.hasData {
			continue
		}
		data, s.data = s.data, nil
		s.hasData, s.view = false, false
		if cap(s.buf) > keepBuffer {
			s.buf = nil // data still points to it
		}
		return data, true
	}
	if s.view { // in is the caller's again
		s.buf = append(s.buf[:0], s.data...)
		s.data, s.view = s.buf, false
	}
	return nil, false
}

// Err reports an event or a line beyond Max. Nothing is read after it.
func (s *SSE) Err() error { return s.err }

// Pending reports whether the stream so far ends inside an event.
func (s *SSE) Pending() bool { return s.hasData || len(s.line) > 0 }

// nextLine returns the next line without its end. The bytes stay valid until
// the next call.
func (s *SSE) nextLine() ([]byte, bool) {
	// A search result is kept until pos passes it: a piece of short lines
	// without one of the two would otherwise be searched from every line.
	if s.lf < s.pos {
		s.lf = index(s.in, s.pos, '\n')
	}
	if s.cr < s.pos {
		s.cr = index(s.in, s.pos, '\r')
	}
	end := min(s.lf, s.cr)
	rest := s.in[s.pos:end]
	if len(s.line)+len(rest) > s.max() {
		s.fail("a line")
		return nil, false
	}
	if end == len(s.in) {
		s.line = append(s.line, rest...)
		s.pos = end
		return nil, false
	}
	line := rest
	if s.whole = len(s.line) == 0; !s.whole {
		s.line = append(s.line, rest...)
		line = s.line
		if s.line = s.line[:0]; cap(s.line) > keepBuffer {
			s.line = nil // line still points to it
		}
	}
	s.pos = end + 1
	if end == s.cr {
		switch {
		case s.pos == len(s.in):
			s.swallow = true
		case s.in[s.pos] == '\n':
			s.pos++
		}
	}
	if !s.started {
		s.started = true
		line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))
	}
	return line, true
}

func index(b []byte, from int, c byte) int {
	if i := bytes.IndexByte(b[from:], c); i >= 0 {
		return from + i
	}
	return len(b)
}

// field reads one line that is not blank.
func (s *SSE) field(line []byte) {
	const name = "data"
	if len(line) < len(name) || string(line[:len(name)]) != name {
		return
	}
	v := line[len(name):]
	if len(v) > 0 {
		if v[0] != ':' {
			return
		}
		if v = v[1:]; len(v) > 0 && v[0] == ' ' {
			v = v[1:]
		}
	}
	if len(s.data)+1+len(v) > s.max() {
		s.fail("an event")
		return
	}
	switch {
	case s.hasData && s.view:
		s.buf = append(append(append(s.buf[:0], s.data...), '\n'), v...)
		s.data, s.view = s.buf, false
	case s.hasData:
		s.buf = append(append(s.data, '\n'), v...)
		s.data = s.buf
	case s.whole:
		s.data, s.view = v, true
	default: // v lies in s.line, which a later line overwrites
		s.buf = append(s.buf[:0], v...)
		s.data = s.buf
	}
	s.hasData = true
}

func (s *SSE) max() int {
	if s.Max > 0 {
		return s.Max
	}
	return MaxEvent
}

func (s *SSE) fail(what string) {
	s.err = fmt.Errorf("event stream: byte %d: %s is longer than %d bytes", s.seen+int64(s.pos), what, s.max())
	s.line, s.data, s.buf, s.hasData, s.view = nil, nil, nil, false, false
}
