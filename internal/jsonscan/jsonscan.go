// Package jsonscan walks over JSON without decoding it: what is asked for is read
// where it stands, what is not is stepped over.
package jsonscan

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"math/bits"
	"strconv"

	"reprise/traceformat"
)

// MaxDepth bounds the nesting of what a parser walks into. The bodies of LLM
// servers have a depth of about 5; their options can nest a little more.
const MaxDepth = 200

// A Parser walks once over JSON, strictly: what it walked over without bad
// being set, encoding/json takes as well. When bad is set, i is near the spot
// and every method returns at once.
//
// The generic decoder costs 3 µs for a chunk of 300 bytes, which thousands of
// streams pay for every token; this one costs a tenth.
type Parser struct {
	b     []byte
	i     int
	depth int
	first bool // the innermost object or array has just been entered
	bad   bool
}

// New returns a parser at the start of b, which it does not change.
func New(b []byte) Parser { return Parser{b: b} }

// Bad reports whether b has turned out not to be JSON.
func (p *Parser) Bad() bool { return p.bad }

// Pos is the index of the byte that comes next.
func (p *Parser) Pos() int { return p.i }

// Rest reports how many bytes follow.
func (p *Parser) Rest() int { return len(p.b) - p.i }

// Value steps over a value of any kind and returns its text.
func (p *Parser) Value() []byte {
	p.Peek()
	start := p.i
	p.Skip()
	if p.bad {
		return nil
	}
	return p.b[start:p.i]
}

func (p *Parser) fail() bool {
	p.bad = true
	return false
}

// Peek skips white space and returns the byte that follows, 0 at the end.
func (p *Parser) Peek() byte {
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

// Enter steps into an object or array if open begins the next value.
func (p *Parser) Enter(open byte) bool {
	if p.bad || p.Peek() != open {
		return false
	}
	if p.depth++; p.depth > MaxDepth {
		return p.fail()
	}
	p.i++
	p.first = true
	return true
}

// more steps to the next member of the innermost object or array, which close
// ends. It returns false, having left it, when there is none.
func (p *Parser) more(close byte) bool {
	if p.bad {
		return false
	}
	c := p.Peek()
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

// Key steps to the next member of an object and returns its name.
func (p *Parser) Key() ([]byte, bool) {
	if !p.more('}') {
		return nil, false
	}
	if p.Peek() != '"' {
		return nil, p.fail()
	}
	return p.keyAt()
}

// keyAt reads a name and its colon, i being at its quote.
func (p *Parser) keyAt() ([]byte, bool) {
	k, escaped := p.Str()
	if p.bad || p.Peek() != ':' {
		return nil, p.fail()
	}
	p.i++
	if escaped {
		k = Unquote(k)
	}
	return k, true
}

// KeyIs is Key where the next name is likely to be name, which holds no byte that
// JSON escapes: it steps over it at once if so.
func (p *Parser) KeyIs(name []byte) (key []byte, ok bool) {
	if !p.more('}') {
		return nil, false
	}
	if p.Peek() != '"' {
		return nil, p.fail()
	}
	end := p.i + 1 + len(name)
	if end+1 < len(p.b) && p.b[end] == '"' && p.b[end+1] == ':' && string(p.b[p.i+1:end]) == string(name) {
		p.i = end + 2
		return name, true
	}
	return p.keyAt()
}

// Elem steps to the next element of an array.
func (p *Parser) Elem() bool { return p.more(']') }

// Unquote returns the value of the inside of a string literal.
func Unquote(raw []byte) []byte {
	var s string
	q := append(append(append(make([]byte, 0, len(raw)+2), '"'), raw...), '"')
	if json.Unmarshal(q, &s) != nil {
		return nil // str has seen that it is a literal
	}
	return []byte(s)
}

// Str steps over a string literal, i being at its quote, and returns what lies
// between the quotes.
func (p *Parser) Str() (raw []byte, escaped bool) {
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

// Num steps over a number and returns its text.
func (p *Parser) Num() []byte {
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

func (p *Parser) word(w string) {
	if len(p.b)-p.i < len(w) || string(p.b[p.i:p.i+len(w)]) != w {
		p.fail()
		return
	}
	p.i += len(w)
}

// Skip steps over a value of any kind.
func (p *Parser) Skip() {
	if p.bad {
		return
	}
	switch c := p.Peek(); c {
	case '{':
		if p.Enter('{') {
			for _, ok := p.Key(); ok; _, ok = p.Key() {
				p.Skip()
			}
		}
	case '[':
		p.Elems()
	case '"':
		p.Str()
	case 't':
		p.word("true")
	case 'f':
		p.word("false")
	case 'n':
		p.word("null")
	default:
		p.Num()
	}
}

// Elems steps over a value and, if it is an array, counts its elements.
func (p *Parser) Elems() (n int32, ok bool) {
	if !p.Enter('[') {
		p.Skip()
		return 0, false
	}
	for p.Elem() {
		// Token ids are the bulk of what comes here: a cumulative reply repeats
		// thousands of them in every event.
		b, i := p.b, p.i
		for i < len(b) && b[i]-'0' <= 9 {
			i++
		}
		if i > p.i && i < len(b) && (b[i] == ',' || b[i] == ']') && (b[p.i] != '0' || i == p.i+1) {
			p.i = i
		} else {
			p.Skip()
		}
		if n < math.MaxInt32 {
			n++
		}
	}
	return n, !p.bad
}

// Text steps over a value and, if it is a string, returns its inside.
func (p *Parser) Text() []byte {
	if p.Peek() != '"' {
		p.Skip()
		return nil
	}
	raw, _ := p.Str()
	return raw
}

// Null steps over a value and reports whether it is null.
func (p *Parser) Null() bool {
	null := p.Peek() == 'n'
	p.Skip()
	return null
}

// Count steps over a value and, if it is a number without fraction from 0 to
// the largest int32, returns it.
func (p *Parser) Count() (n traceformat.Opt[int32]) {
	f := p.Float()
	if f.OK && f.V >= 0 && f.V <= math.MaxInt32 && f.V == math.Trunc(f.V) {
		return traceformat.Some(int32(f.V))
	}
	return n
}

// Float steps over a value and, if it is a number that float64 can hold,
// returns it.
func (p *Parser) Float() (v traceformat.Opt[float64]) {
	if c := p.Peek(); c != '-' && (c < '0' || c > '9') {
		p.Skip()
		return v
	}
	t := p.Num()
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
