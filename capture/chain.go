package capture

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"unicode/utf16"
	"unicode/utf8"
)

// Frames of the canonical bytes of a prompt. These bytes occur in no UTF-8 text,
// so that no text can imitate a frame.
const (
	frameMessage = 0xff // then the role
	frameText    = 0xfe // then text
	frameMedia   = 0xfd // then eight bytes that identify the medium
	frameCall    = 0xfc // then the name and the arguments of a tool call
	frameResult  = 0xfb // then the id and the result of a tool call
	frameTools   = 0xfa // then the definitions of tools, as compact JSON
)

// A chain turns the canonical bytes of a prompt into block ids, as the package
// comment has it. It keeps at most one block.
type chain struct {
	k     *Key
	h     hash.Hash
	prev  [sha256.Size]byte
	buf   []byte // of the block under way; its capacity is the block size
	ids   []uint64
	total int64 // bytes so far
	quiet bool  // ids are not collected any more

	// Without a hash, the chain only looks: window takes the bytes from an
	// offset on, up to its capacity.
	from   int64
	window []byte
}

func newChain(k *Key, block int) *chain {
	c := &chain{k: k, h: k.pool.Get().(hash.Hash), buf: make([]byte, 0, block), ids: []uint64{}}
	k.sum(&c.prev, domainBlock, nil, "")
	return c
}

// release gives the hash back; ids stay.
func (c *chain) release() {
	if c.h != nil {
		c.k.pool.Put(c.h)
		c.h = nil
	}
}

func (c *chain) write(p []byte) {
	if c.h == nil {
		c.look(p)
		return
	}
	c.total += int64(len(p))
	for len(p) > 0 {
		n := min(cap(c.buf)-len(c.buf), len(p))
		c.buf = append(c.buf, p[:n]...)
		p = p[n:]
		if len(c.buf) == cap(c.buf) {
			c.h.Reset()
			c.h.Write(c.prev[:])
			c.h.Write(c.buf)
			c.h.Sum(c.prev[:0])
			if !c.quiet {
				c.ids = append(c.ids, binary.BigEndian.Uint64(c.prev[:]))
			}
			c.buf = c.buf[:0]
		}
	}
}

func (c *chain) look(p []byte) {
	skip := c.from - c.total
	c.total += int64(len(p))
	if skip >= int64(len(p)) {
		return
	}
	p = p[max(skip, 0):]
	c.window = append(c.window, p[:min(len(p), cap(c.window)-len(c.window))]...)
}

func (c *chain) writeByte(b byte) { c.write([]byte{b}) }

// boundary identifies everything written so far.
func (c *chain) boundary() uint64 {
	return c.k.boundary(c.prev[:8], c.buf)
}

// boundary identifies what a chain whose last block id was prev has written,
// part being the bytes after that block.
func (k *Key) boundary(prev, part []byte) uint64 {
	var d [sha256.Size]byte
	h := k.pool.Get().(hash.Hash)
	h.Reset()
	h.Write([]byte(domainBoundary + "\x00"))
	h.Write(prev)
	h.Write(part)
	h.Sum(d[:0])
	k.pool.Put(h)
	return binary.BigEndian.Uint64(d[:])
}

// writeJSON writes the value of a JSON string, raw being what lies between its
// quotes.
func (c *chain) writeJSON(raw []byte) { unescape(raw, c.write) }

// unescape yields the value of a JSON string in pieces.
func unescape(raw []byte, yield func([]byte)) {
	for {
		i := bytes.IndexByte(raw, '\\')
		if i < 0 {
			if len(raw) > 0 {
				yield(raw)
			}
			return
		}
		if i > 0 {
			yield(raw[:i])
		}
		r, n := escaped(raw[i:])
		if n == 0 {
			return // no scanner lets this through
		}
		var b [utf8.UTFMax]byte
		yield(utf8.AppendRune(b[:0], r))
		raw = raw[i+n:]
	}
}

// escaped decodes the escape sequence that b begins with, n bytes of it. Half of
// a surrogate pair is U+FFFD, as for encoding/json.
func escaped(b []byte) (r rune, n int) {
	if len(b) < 2 {
		return 0, 0
	}
	switch b[1] {
	case 'b':
		return '\b', 2
	case 'f':
		return '\f', 2
	case 'n':
		return '\n', 2
	case 'r':
		return '\r', 2
	case 't':
		return '\t', 2
	case 'u':
		u, ok := hex4(b[2:])
		if !ok {
			return 0, 0
		}
		if !utf16.IsSurrogate(u) {
			return u, 6
		}
		if len(b) >= 12 && b[6] == '\\' && b[7] == 'u' {
			if v, ok := hex4(b[8:]); ok {
				if r := utf16.DecodeRune(u, v); r != utf8.RuneError {
					return r, 12
				}
			}
		}
		return utf8.RuneError, 6
	}
	return rune(b[1]), 2
}

func hex4(b []byte) (r rune, ok bool) {
	if len(b) < 4 {
		return 0, false
	}
	for _, c := range b[:4] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}
