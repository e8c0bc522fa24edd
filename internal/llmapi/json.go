package llmapi

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"math/bits"
	"strconv"
	"unicode/utf8"

	"reprise/traceformat"
)

// maxDepth bounds the nesting of what a parser walks into. The bodies of LLM
// servers have a depth of about 5; their options can nest a little more.
const maxDepth = 200

// A parser walks once over JSON, strictly: what it walked over without bad
// being set, encoding/json takes as well. When bad is set, i is near the spot
// and every method returns at once.
//
// The generic decoder costs 3 µs for a chunk of 300 bytes, which thousands of
// streams pay for every token; this one costs a tenth.
type parser struct {
	b     []byte
	i     int
	depth int
	first bool // the innermost object or array has just been entered
	bad   bool
}

func (p *parser) fail() bool {
	p.bad = true
	return false
}

// peek skips white space and returns the byte that follows, 0 at the end.
func (p *parser) peek() byte {
	for p.i < len(p.b) {
		switch c := p.b[p.i]; c {
		case ' ', '\n', '\r', '\t':
			p.i++
		default:
			return c
		}
	}
	return 0
}

// enter steps into an object or array if open begins the next value.
func (p *parser) enter(open byte) bool {
	if p.bad || p.peek() != open {
		return false
	}
	if p.depth++; p.depth > maxDepth {
		return p.fail()
	}
	p.i++
	p.first = true
	return true
}

// more steps to the next member of the innermost object or array, which close
// ends. It returns false, having left it, when there is none.
func (p *parser) more(close byte) bool {
	if p.bad {
		return false
	}
	c := p.peek()
	if c == close {
		p.i++
		p.depth--
		p.first = false
		return false
	}
	if p.first {
		p.first = false
		return true
	}
	if c != ',' {
		return p.fail()
	}
	p.i++
	return true
}

// key steps to the next member of an object and returns its name.
func (p *parser) key() ([]byte, bool) {
	if !p.more('}') {
		return nil, false
	}
	if p.peek() != '"' {
		return nil, p.fail()
	}
	k, escaped := p.str()
	if p.bad || p.peek() != ':' {
		return nil, p.fail()
	}
	p.i++
	if escaped {
		k = unquote(k)
	}
	return k, true
}

// elem steps to the next element of an array.
func (p *parser) elem() bool { return p.more(']') }

// unquote returns the value of the inside of a string literal.
func unquote(raw []byte) []byte {
	var s string
	q := append(append(append(make([]byte, 0, len(raw)+2), '"'), raw...), '"')
	if json.Unmarshal(q, &s) != nil {
		return nil // str has seen that it is a literal
	}
	return []byte(s)
}

// str steps over a string literal, i being at its quote, and returns what lies
// between the quotes.
func (p *parser) str() (raw []byte, escaped bool) {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	start := p.i + 1
	i := start
	for {
		// Eight bytes at a time, up to a quote, a backslash or a control
		// character (Mycroft's test for a zero byte; the lowest hit is exact).
		for i+8 <= len(p.b) {
			x := binary.LittleEndian.Uint64(p.b[i:])
			quote, back := x^ones*'"', x^ones*'\\'
			hit := ((quote-ones)&^quote | (back-ones)&^back | (x-ones*' ')&^x) & highs
			if hit != 0 {
				i += bits.TrailingZeros64(hit) / 8
				break
			}
			i += 8
		}
		if i >= len(p.b) {
			p.i = i
			return nil, p.fail()
		}
		switch c := p.b[i]; {
		case c == '"':
			p.i = i + 1
			return p.b[start:i], escaped
		case c == '\\':
			escaped = true
			n := escape(p.b[i:])
			if n == 0 {
				p.i = i
				return nil, p.fail()
			}
			i += n
		case c < ' ':
			p.i = i
			return nil, p.fail()
		default:
			i++
		}
	}
}

// escape returns the length of the escape sequence that b starts with, 0 if it
// is none.
func escape(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	switch b[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2
	case 'u':
		if len(b) < 6 {
			return 0
		}
		for _, c := range b[2:6] {
			if !('0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F') {
				return 0
			}
		}
		return 6
	}
	return 0
}

// num steps over a number and returns its text.
func (p *parser) num() []byte {
	b, start, i := p.b, p.i, p.i
	digits := func() bool {
		from := i
		for i < len(b) && '0' <= b[i] && b[i] <= '9' {
			i++
		}
		return i > from
	}
	if i < len(b) && b[i] == '-' {
		i++
	}
	ok := true
	if i < len(b) && b[i] == '0' {
		i++
	} else {
		ok = digits()
	}
	if ok && i < len(b) && b[i] == '.' {
		i++
		ok = digits()
	}
	if ok && i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		if i++; i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		ok = digits()
	}
	p.i = i
	if !ok {
		p.fail()
		return nil
	}
	return b[start:i]
}

func (p *parser) word(w string) {
	if len(p.b)-p.i < len(w) || string(p.b[p.i:p.i+len(w)]) != w {
		p.fail()
		return
	}
	p.i += len(w)
}

// skip steps over a value of any kind.
func (p *parser) skip() {
	if p.bad {
		return
	}
	switch c := p.peek(); c {
	case '{':
		if p.enter('{') {
			for _, ok := p.key(); ok; _, ok = p.key() {
				p.skip()
			}
		}
	case '[':
		p.elems()
	case '"':
		p.str()
	case 't':
		p.word("true")
	case 'f':
		p.word("false")
	case 'n':
		p.word("null")
	default:
		p.num()
	}
}

// elems steps over a value and, if it is an array, counts its elements.
func (p *parser) elems() (n int32, ok bool) {
	if !p.enter('[') {
		p.skip()
		return 0, false
	}
	for p.elem() {
		// Token ids are the bulk of what comes here: a cumulative reply repeats
		// thousands of them in every event.
		b, i := p.b, p.i
		for i < len(b) && b[i]-'0' <= 9 {
			i++
		}
		if i > p.i && i < len(b) && (b[i] == ',' || b[i] == ']') && (b[p.i] != '0' || i == p.i+1) {
			p.i = i
		} else {
			p.skip()
		}
		if n < math.MaxInt32 {
			n++
		}
	}
	return n, !p.bad
}

// text steps over a value and, if it is a string, returns its inside.
func (p *parser) text() []byte {
	if p.peek() != '"' {
		p.skip()
		return nil
	}
	raw, _ := p.str()
	return raw
}

// null steps over a value and reports whether it is null.
func (p *parser) null() bool {
	null := p.peek() == 'n'
	p.skip()
	return null
}

// count steps over a value and, if it is a number without fraction from 0 to
// the largest int32, returns it.
func (p *parser) count() (n traceformat.Opt[int32]) {
	f := p.float()
	if f.OK && f.V >= 0 && f.V <= math.MaxInt32 && f.V == math.Trunc(f.V) {
		return traceformat.Some(int32(f.V))
	}
	return n
}

// float steps over a value and, if it is a number that float64 can hold,
// returns it.
func (p *parser) float() (v traceformat.Opt[float64]) {
	if c := p.peek(); c != '-' && (c < '0' || c > '9') {
		p.skip()
		return v
	}
	t := p.num()
	if p.bad {
		return v
	}
	if len(t) < 10 { // the counts, nearly always
		n := 0
		for _, c := range t {
			if c < '0' || c > '9' {
				n = -1
				break
			}
			n = n*10 + int(c-'0')
		}
		if n >= 0 {
			return traceformat.Some(float64(n))
		}
	}
	f, err := strconv.ParseFloat(string(t), 64)
	if err != nil {
		return v
	}
	return traceformat.Some(f)
}

// AppendString appends s as a JSON string. Bytes that are not UTF-8 become
// U+FFFD.
func AppendString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c < ' ':
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		case c < utf8.RuneSelf:
			dst = append(dst, c)
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			dst = utf8.AppendRune(dst, r)
			i += n
			continue
		}
		i++
	}
	return append(dst, '"')
}

// AppendIDs appends token ids as a JSON array.
func AppendIDs(dst []byte, ids []uint32) []byte {
	dst = append(dst, '[')
	for i, id := range ids {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = strconv.AppendUint(dst, uint64(id), 10)
	}
	return append(dst, ']')
}
