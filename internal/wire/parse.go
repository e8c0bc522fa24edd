package wire

import (
	"bytes"
	"fmt"
	"math"
)

// Caps on what a server can make a parser hold or read before it must answer.
// The last two are those of net/http.
const (
	maxHead      = 64 << 10 // bytes of all heads of one answer, 1xx included
	maxChunkLine = 4096     // a chunk's size line with its extensions
	maxTrailer   = 4096
	// A sender may spend 16 bytes a chunk and twice its data on overhead, and
	// this much beyond.
	maxExcess = 16 << 10
)

// A parser reads one HTTP/1.x answer after another from a connection, in pieces
// split anywhere. It keeps no bytes but an incomplete line.
type parser struct {
	state  parseState
	isHEAD bool // the answer to a HEAD request has no body
	headed bool // head is complete

	// Of the head.
	old       bool // HTTP/1.0
	close     bool // Connection: close
	keepAlive bool // Connection: keep-alive
	hasLength bool
	encodings int  // Transfer-Encoding lines
	teChunked bool // the last of them is "chunked"
	special   bool // the last line was one of ours, which a folded line would change
	lines     int  // header lines

	size   int   // bytes of head or trailer so far
	remain int64 // of the body, or of the chunk
	excess int64
	head   Head
	line   []byte // an incomplete line
	// ctype is the last content type, kept from answer to answer: servers say
	// the same every time, and a string of it costs an allocation.
	ctype string
}

type parseState uint8

const (
	inStatus parseState = iota
	inHeader
	inFixed
	inUntilClose
	inChunkSize
	inChunkData
	inChunkCR
	inChunkLF
	inTrailer
	inDone
)

// reset prepares p for the answer to a request of the given method.
func (p *parser) reset(method string) {
	line, ctype := p.line[:0], p.ctype
	if cap(line) > 512 || cap(line) == 0 {
		line = nil // most answers come with whole lines: do not keep what a rare one took
	}
	*p = parser{isHEAD: method == "HEAD", line: line, ctype: ctype}
}

// done says that the answer is complete.
func (p *parser) done() bool { return p.state == inDone }

// reusable says that the connection may carry another request, as far as the
// answer tells. It holds once the answer is done.
func (p *parser) reusable() bool {
	if p.close || p.state != inDone {
		return false
	}
	return !p.old || p.keepAlive
}

// eof tells p that the connection has ended, and returns what that means.
func (p *parser) eof() error {
	switch p.state {
	case inDone:
		return nil
	case inUntilClose:
		p.state, p.close = inDone, true
		return nil
	}
	return ErrTruncated
}

func malformed(format string, a ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrProtocol}, a...)...)
}

// feed reads b up to the end of the answer, and returns the body bytes in it
// and the number of bytes read. body aliases b, whose bytes are moved: the
// pieces of several chunks are brought together, so that one read is one piece
// of data. After an error p is of no more use; body came before it.
func (p *parser) feed(b []byte) (body []byte, n int, err error) {
	lo, hi := 0, 0 // body is b[lo:hi]
	i := 0
	for i < len(b) && p.state != inDone && err == nil {
		switch p.state {
		case inFixed, inChunkData:
			k := len(b) - i
			if int64(k) > p.remain {
				k = int(p.remain)
			}
			if lo == hi {
				lo, hi = i, i+k
			} else {
				hi += copy(b[hi:], b[i:i+k])
			}
			i += k
			if p.remain -= int64(k); p.remain == 0 {
				if p.state == inFixed {
					p.state = inDone
				} else {
					p.state = inChunkCR
				}
			}
		case inUntilClose:
			lo, hi, i = i, len(b), len(b) // nothing but body follows a head
		case inChunkCR:
			if b[i] != '\r' {
				return b[lo:hi], i, malformed("a chunk is longer than its size says")
			}
			p.state = inChunkLF
			i++
		case inChunkLF:
			if b[i] != '\n' {
				return b[lo:hi], i, malformed("a chunk is longer than its size says")
			}
			p.state = inChunkSize
			i++
		default:
			if p.state == inChunkSize && len(p.line) == 0 {
				if k := p.plainChunk(b[i:]); k > 0 {
					i += k
					continue
				}
			}
			var line []byte
			var k int
			line, k, err = p.takeLine(b[i:])
			i += k
			if line == nil || err != nil {
				continue
			}
			switch p.state {
			case inStatus:
				err = p.statusLine(line)
			case inHeader:
				err = p.headerLine(line)
			case inChunkSize:
				err = p.chunkLine(line)
			case inTrailer:
				err = p.trailerLine(line)
			}
			p.line = p.line[:0]
		}
	}
	return b[lo:hi], i, err
}

// takeLine returns the line that b completes, with its end, or nil.
func (p *parser) takeLine(b []byte) (line []byte, n int, err error) {
	limit, what := maxHead-p.size, "the head"
	switch p.state {
	case inChunkSize:
		limit, what = maxChunkLine, "a chunk's size line"
	case inTrailer:
		limit, what = maxTrailer-p.size, "the trailer"
	}
	n = bytes.IndexByte(b, '\n') + 1
	if n > 0 {
		line = b[:n]
	} else {
		n = len(b)
	}
	if len(p.line)+n > limit {
		return nil, n, malformed("%s is longer than %d bytes", what, limit)
	}
	if line == nil || len(p.line) > 0 {
		p.line = append(p.line, b[:n]...)
		if line != nil {
			line = p.line
		}
	}
	if line != nil && p.state != inChunkSize {
		p.size += len(line)
	}
	return line, n, nil
}

// chop removes the end of a line.
func chop(line []byte) []byte {
	line = line[:len(line)-1]
	if n := len(line); n > 0 && line[n-1] == '\r' {
		line = line[:n-1]
	}
	return line
}

func (p *parser) statusLine(line []byte) error {
	line = chop(line)
	// net/http accepts any single-digit version here; other than 1.x there is
	// none whose framing is known.
	if len(line) < 9 || string(line[:7]) != "HTTP/1." || line[7] < '0' || line[7] > '9' || line[8] != ' ' {
		return malformed("it does not begin with HTTP/1.x")
	}
	p.old = line[7] == '0'
	code := bytes.TrimLeft(line[9:], " ")
	if len(code) < 3 || len(code) > 3 && code[3] != ' ' ||
		code[0] < '1' || code[0] > '9' || code[1] < '0' || code[1] > '9' || code[2] < '0' || code[2] > '9' {
		return malformed("its status is no number of three digits")
	}
	p.head.Status = int(code[0]-'0')*100 + int(code[1]-'0')*10 + int(code[2]-'0')
	p.state = inHeader
	return nil
}

// cutHeader splits and checks a header line as net/http does.
func cutHeader(line []byte) (name, value []byte, err error) {
	line = trimSpace(line)
	c := bytes.IndexByte(line, ':')
	if c <= 0 {
		return nil, nil, malformed("a header line has no name")
	}
	name, value = line[:c], trimSpace(line[c+1:])
	for _, b := range name {
		if !isToken[b] && b != ' ' {
			return nil, nil, malformed("byte %#x in a header name", b)
		}
	}
	for _, b := range value {
		if b < ' ' && b != '\t' || b == 0x7f {
			return nil, nil, malformed("byte %#x in the value of header %.40s", b, name)
		}
	}
	return name, value, nil
}

var isToken = func() (t [256]bool) {
	for _, b := range []byte("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") {
		t[b] = true
	}
	return t
}()

func (p *parser) headerLine(line []byte) error {
	if line[0] == ' ' || line[0] == '\t' {
		if p.lines == 0 || p.special {
			return malformed("a header line is folded")
		}
		for _, b := range chop(line) {
			if b < ' ' && b != '\t' || b == 0x7f {
				return malformed("byte %#x in a header", b)
			}
		}
		return nil
	}
	line = chop(line)
	if len(line) == 0 {
		return p.endHead()
	}
	name, value, err := cutHeader(line)
	if err != nil {
		return err
	}
	p.lines++
	p.special = true
	switch len(name) {
	case len("Connection"):
		if equalFold(name, "connection") {
			p.close = p.close || hasToken(value, "close")
			p.keepAlive = p.keepAlive || hasToken(value, "keep-alive")
			return nil
		}
	case len("Retry-After"):
		if equalFold(name, "retry-after") {
			setOnce(&p.head.RetryAfter, value)
			return nil
		}
	case len("Content-Type"): // and X-Request-Id
		if equalFold(name, "content-type") {
			if p.head.ContentType == "" {
				if string(value) != p.ctype {
					p.ctype = string(value)
				}
				p.head.ContentType = p.ctype
				if len(p.ctype) > 256 {
					p.ctype = ""
				}
			}
			return nil
		}
		if equalFold(name, "x-request-id") {
			setOnce(&p.head.RequestID, value)
			return nil
		}
	case len("Content-Length"):
		if equalFold(name, "content-length") {
			return p.contentLength(value)
		}
	case len("Content-Encoding"):
		if equalFold(name, "content-encoding") {
			if !equalFold(value, "identity") {
				setOnce(&p.head.ContentEncoding, value)
			}
			return nil
		}
	case len("Transfer-Encoding"):
		if equalFold(name, "transfer-encoding") {
			p.encodings++
			p.teChunked = equalFold(value, "chunked")
			return nil
		}
	}
	p.special = false
	return nil
}

// setOnce keeps the first of several lines of one name.
func setOnce(s *string, v []byte) {
	if *s == "" {
		*s = string(v)
	}
}

func (p *parser) contentLength(v []byte) error {
	var n int64
	if len(v) == 0 {
		return malformed("Content-Length is empty")
	}
	for _, c := range v {
		if c < '0' || c > '9' || n > (math.MaxInt64-int64(c-'0'))/10 {
			return malformed("Content-Length is %.40q", v)
		}
		n = n*10 + int64(c-'0')
	}
	if p.hasLength && n != p.remain {
		return malformed("Content-Length is both %d and %d", p.remain, n)
	}
	p.hasLength, p.remain = true, n
	return nil
}

// endHead decides how the body is delimited (RFC 9112, 6.3).
func (p *parser) endHead() error {
	status := p.head.Status
	if p.old {
		p.encodings = 0 // there is none in HTTP/1.0
	}
	if p.encodings > 1 || p.encodings == 1 && !p.teChunked {
		return malformed("its transfer encoding is not plain chunked")
	}
	switch {
	case status == 101:
		return malformed("it switches protocols, which was not asked for")
	case status < 200:
		size, isHEAD, line, ctype := p.size, p.isHEAD, p.line, p.ctype
		*p = parser{size: size, isHEAD: isHEAD, line: line, ctype: ctype}
		return nil
	}
	p.headed = true
	p.size = 0
	switch {
	case p.isHEAD || status == 204 || status == 304:
		p.state = inDone
	case p.encodings == 1:
		p.state = inChunkSize
	case p.hasLength && p.remain == 0:
		p.state = inDone
	case p.hasLength:
		p.state = inFixed
	default:
		p.state = inUntilClose
	}
	return nil
}

// plainChunk reads a size line without extensions that lies whole in b, and
// returns its length, or 0 to leave it to chunkLine.
func (p *parser) plainChunk(b []byte) int {
	var n int64
	for i := 0; i < len(b) && i < 8; i++ {
		d := hexDigit[b[i]]
		if d < 0 {
			if i == 0 || b[i] != '\r' || i+1 >= len(b) || b[i+1] != '\n' {
				return 0
			}
			p.startChunk(n, i)
			return i + 2
		}
		n = n<<4 | int64(d)
	}
	return 0
}

var hexDigit = func() (t [256]int8) {
	for i := range t {
		t[i] = -1
	}
	for i := range int8(10) {
		t['0'+i] = i
	}
	for i := range int8(6) {
		t['a'+i], t['A'+i] = 10+i, 10+i
	}
	return t
}()

func (p *parser) chunkLine(line []byte) error {
	if cr := bytes.IndexByte(line, '\r'); cr < 0 || cr != len(line)-2 {
		return malformed("a chunk's size line does not end in CR LF")
	}
	line = line[:len(line)-2]
	raw := len(line)
	line, _, _ = bytes.Cut(bytes.TrimRight(line, " \t"), []byte(";"))
	if len(line) == 0 || len(line) > 16 {
		return malformed("a chunk's size is %.40q", line)
	}
	var n uint64
	for _, c := range line {
		d := hexDigit[c]
		if d < 0 {
			return malformed("a chunk's size is %.40q", line)
		}
		n = n<<4 | uint64(d)
	}
	if n > math.MaxInt64/4 {
		return malformed("a chunk's size is %s", line)
	}
	p.startChunk(int64(n), raw)
	if p.excess > maxExcess {
		return malformed("it is chunk overhead for the most part")
	}
	return nil
}

// startChunk begins a chunk of n bytes whose size line had raw bytes.
func (p *parser) startChunk(n int64, raw int) {
	p.excess = max(0, p.excess+int64(raw)+2-16-2*n)
	p.remain = n
	p.state = inChunkData
	if n == 0 {
		p.state = inTrailer
	}
}

func (p *parser) trailerLine(line []byte) error {
	if len(line) < 2 || line[len(line)-2] != '\r' {
		return malformed("a trailer line does not end in CR LF")
	}
	if len(line) == 2 {
		p.state = inDone
		return nil
	}
	if line[0] == ' ' || line[0] == '\t' {
		return malformed("a trailer line is folded")
	}
	_, _, err := cutHeader(chop(line))
	return err
}

func trimSpace(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// equalFold compares with a lower-case ASCII word. (bytes.EqualFold knows a
// Kelvin sign for a k.)
func equalFold[T string | []byte](b T, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i := range len(lower) {
		c := b[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// hasToken looks for a word in a comma-separated list.
func hasToken(list []byte, lower string) bool {
	for len(list) > 0 {
		var item []byte
		item, list, _ = bytes.Cut(list, []byte(","))
		if equalFold(trimSpace(item), lower) {
			return true
		}
	}
	return false
}
