package frame

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Types of pcapng blocks (draft-ietf-opsawg-pcapng).
const (
	ngSection   = 0x0a0d0d0a
	ngInterface = 1
	ngPacket    = 2
	ngSimple    = 3
	ngEnhanced  = 6
	ngSecrets   = 0x0000000a
)

const (
	maxNgBlock      = 4 << 20
	maxNgInterfaces = 4096
)

// ngGuard hands a pcapng stream on block by block, after a check of what the
// library allocates without one: lengths of blocks and packets, the number of
// interfaces. It stops with an error at the first block that fails.
type ngGuard struct {
	r      *bufio.Reader
	order  binary.ByteOrder
	left   int   // bytes of the current block still to hand on
	offset int64 // where in the stream the current block begins
	size   int
	ifaces int
	// secrets counts blocks with TLS keys: they are of no use to us, but tell
	// why there is TLS in the file.
	secrets int
	err     error
}

// explain prefers what the guard found to what the library made of it.
func (g *ngGuard) explain(err error) error {
	if g.err != nil && g.err != io.EOF {
		return g.err
	}
	return err
}

func (g *ngGuard) Read(p []byte) (int, error) {
	if g.err != nil {
		return 0, g.err
	}
	if g.left == 0 {
		if g.err = g.check(); g.err != nil {
			return 0, g.err
		}
	}
	n, err := g.r.Read(p[:min(len(p), g.left)])
	g.left -= n
	if err == io.EOF && g.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && err != io.EOF {
		g.err = err
	}
	return n, g.err
}

// check looks at the block that begins here.
func (g *ngGuard) check() error {
	g.offset += int64(g.size)
	head, err := g.r.Peek(28)
	if len(head) == 0 {
		return err
	}
	if len(head) < 12 {
		return io.ErrUnexpectedEOF
	}
	typ := uint32(0)
	if binary.LittleEndian.Uint32(head) == ngSection {
		switch uint32(0x1a2b3c4d) {
		case binary.LittleEndian.Uint32(head[8:]):
			g.order = binary.LittleEndian
		case binary.BigEndian.Uint32(head[8:]):
			g.order = binary.BigEndian
		default:
			return g.fail("section without a byte order")
		}
		typ, g.ifaces = ngSection, 0
	} else if g.order == nil {
		return g.fail("no section header")
	} else {
		typ = g.order.Uint32(head)
	}
	size := g.order.Uint32(head[4:])
	if size < 12 || size%4 != 0 || size > maxNgBlock {
		return g.fail("block of %d bytes", size)
	}
	g.size, g.left = int(size), int(size)
	switch typ {
	case ngInterface:
		if g.ifaces++; g.ifaces > maxNgInterfaces {
			return g.fail("more than %d interfaces", maxNgInterfaces)
		}
		return g.checkInterface()
	case ngEnhanced, ngPacket:
		if size < 32 || len(head) < 28 {
			return g.fail("packet block of %d bytes", size)
		}
		if n := g.order.Uint32(head[20:]); n > size-32 || n > MaxPacket {
			return g.fail("packet of %d bytes in a block of %d", n, size)
		}
	case ngSimple:
		if size < 16 {
			return g.fail("packet block of %d bytes", size)
		}
		// The library takes the original length for the captured one unless the
		// interface has a snap length: only blocks where that is right may pass.
		if n := g.order.Uint32(head[8:]); n > size-16 {
			return g.fail("simple packet block that is cut short, which is not supported")
		}
	case ngSecrets:
		g.secrets++
	}
	return nil
}

// checkInterface refuses times that cannot be computed with.
func (g *ngGuard) checkInterface() error {
	if g.size < 20 {
		return g.fail("interface block of %d bytes", g.size)
	}
	block, err := g.r.Peek(g.size)
	if err != nil {
		if errors.Is(err, bufio.ErrBufferFull) {
			return g.fail("interface block of %d bytes", g.size)
		}
		return io.ErrUnexpectedEOF
	}
	for opts := block[16 : g.size-4]; len(opts) >= 4; {
		code, n := g.order.Uint16(opts), int(g.order.Uint16(opts[2:]))
		padded := (n + 3) &^ 3
		if code == 0 {
			break
		}
		if 4+padded > len(opts) {
			return g.fail("option beyond its block")
		}
		value := opts[4 : 4+n]
		switch {
		case n == 0 && (code == 9 || code == 11):
			return g.fail("empty option %d", code)
		case code == 14 && n < 8: // time offset
			return g.fail("time offset of %d bytes", n)
		case code == 9: // time resolution
			if exp := value[0] & 0x7f; value[0]&0x80 != 0 && exp > 62 || value[0]&0x80 == 0 && exp > 18 {
				return g.fail("time resolution %#x", value[0])
			}
		}
		opts = opts[4+padded:]
	}
	return nil
}

func (g *ngGuard) fail(format string, args ...any) error {
	return fmt.Errorf("damaged at byte %d: %s", g.offset, fmt.Sprintf(format, args...))
}
