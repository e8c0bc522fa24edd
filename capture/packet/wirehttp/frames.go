package wirehttp

import "encoding/binary"

// preface is what a client of HTTP/2 sends first (RFC 9113, 3.4).
var preface = []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")

// Types of frames (RFC 9113, section 6).
const (
	frameData         = 0
	frameHeaders      = 1
	framePriority     = 2
	frameReset        = 3
	frameSettings     = 4
	framePush         = 5
	framePing         = 6
	frameGoAway       = 7
	frameWindow       = 8
	frameContinuation = 9
	frameAltSvc       = 10
	frameOrigin       = 12
	framePriorityUp   = 16
)

// Flags.
const (
	flagEndStream  = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

const (
	frameHead = 9
	// maxFrame is the largest frame that anybody sends by default; large DATA
	// frames are used where a peer allows them, by Go among others.
	maxFrame     = 16384
	maxDataFrame = 1 << 20
)

// frame is a frame header.
type frame struct {
	left   int // payload bytes to come
	typ    byte
	flags  byte
	stream uint32
}

func parseFrame(b []byte) frame {
	return frame{
		left:   int(b[0])<<16 | int(b[1])<<8 | int(b[2]),
		typ:    b[3],
		flags:  b[4],
		stream: binary.BigEndian.Uint32(b[5:]) & (1<<31 - 1),
	}
}

// plausible reports whether b begins with a frame header that somebody would
// send. after, if not nil, is the frame before it.
func plausible(b []byte, after *frame) bool {
	if b[5]&0x80 != 0 {
		return false
	}
	f := parseFrame(b)
	if after != nil {
		blockOpen := (after.typ == frameHeaders || after.typ == framePush || after.typ == frameContinuation) && after.flags&flagEndHeaders == 0
		if blockOpen != (f.typ == frameContinuation) || blockOpen && f.stream != after.stream {
			return false
		}
	}
	odd := f.stream&1 == 1
	switch f.typ {
	case frameData:
		return odd && f.left <= maxDataFrame && f.flags&^(flagEndStream|flagPadded) == 0
	case frameHeaders:
		return odd && f.left > 0 && f.left <= maxFrame && f.flags&^(flagEndStream|flagEndHeaders|flagPadded|flagPriority) == 0
	case frameContinuation:
		return after != nil && odd && f.left <= maxFrame && f.flags&^flagEndHeaders == 0
	case framePriority:
		return f.stream != 0 && f.left == 5 && f.flags == 0
	case frameReset:
		return f.stream != 0 && f.left == 4 && f.flags == 0
	case frameSettings:
		return f.stream == 0 && f.left%6 == 0 && f.left <= 600 && f.flags&^1 == 0 && (f.flags == 0 || f.left == 0)
	case framePush:
		return odd && f.left > 4 && f.left <= maxFrame && f.flags&^(flagEndHeaders|flagPadded) == 0
	case framePing:
		return f.stream == 0 && f.left == 8 && f.flags&^1 == 0
	case frameGoAway:
		return f.stream == 0 && f.left >= 8 && f.left <= maxFrame && f.flags == 0
	case frameWindow:
		return f.left == 4 && f.flags == 0
	case frameAltSvc, frameOrigin, framePriorityUp:
		return f.left <= maxFrame && f.flags == 0
	}
	return false
}
