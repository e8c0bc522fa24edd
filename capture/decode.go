package capture

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"strings"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
)

const (
	// maxDecoded bounds what one answer may decode to, whatever its size on the
	// wire: a stream of a million tokens is some 300 MB.
	maxDecoded = 1 << 30
	// maxWindow bounds the history that a zstd frame may ask for. RFC 8878 wants
	// 8 MB to be supported.
	maxWindow = 8 << 20
	// decoderCost is what a decoder takes of the budget: its window, mostly.
	decoderCost = 256 << 10
)

var (
	errCoding  = errors.New("content coding is not known")
	errDecoded = errors.New("content is larger than it may be")
	errStopped = errors.New("stopped")
)

// openCoding returns a reader of what src holds under a content coding.
func openCoding(coding string, src io.Reader) (io.Reader, error) {
	switch strings.ToLower(strings.TrimSpace(coding)) {
	case "gzip", "x-gzip":
		return gzip.NewReader(src)
	case "deflate":
		// zlib by the standard, bare deflate by some servers.
		b := bufio.NewReader(src)
		head, err := b.Peek(2)
		if err != nil {
			return nil, err
		}
		if head[0]&0x0f == 8 && (uint(head[0])<<8|uint(head[1]))%31 == 0 {
			return zlib.NewReader(b)
		}
		return flate.NewReader(b), nil
	case "br":
		return brotli.NewReader(src), nil
	case "zstd":
		z, err := zstd.NewReader(src, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	default:
		return nil, errCoding
	}
}

// decodeAll decodes a whole body of at most most bytes.
func decodeAll(coding string, body []byte, most int64) (decoded []byte, ok bool) {
	r, err := openCoding(coding, bytes.NewReader(body))
	if err != nil {
		return nil, false
	}
	if c, ok := r.(io.Closer); ok {
		defer c.Close()
	}
	decoded, err = io.ReadAll(io.LimitReader(r, most+1))
	return decoded, err == nil && int64(len(decoded)) <= most
}

// A decoder removes a content coding from a body that comes in pieces. What a
// piece completes comes out while it is fed, so that events keep the time at
// which they were read. It is a coroutine: the decoding libraries want to pull.
type decoder struct {
	in    []byte
	ended bool // no piece follows
	total int64
	err   error
	next  func() (struct{}, bool)
	stop  func()
}

func newDecoder(coding string, out func([]byte)) *decoder {
	d := new(decoder)
	d.next, d.stop = iter.Pull(func(yield func(struct{}) bool) {
		d.err = d.run(coding, &pieces{d: d, yield: yield}, out)
	})
	return d
}

func (d *decoder) run(coding string, src io.Reader, out func([]byte)) error {
	r, err := openCoding(coding, src)
	if err != nil {
		return err
	}
	if c, ok := r.(io.Closer); ok {
		defer c.Close()
	}
	buf := make([]byte, 16<<10)
	for {
		n, err := r.Read(buf)
		if d.total += int64(n); d.total > maxDecoded {
			return errDecoded
		}
		if n > 0 {
			out(buf[:n])
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// feed decodes a piece. An error ends the decoder.
func (d *decoder) feed(p []byte) error {
	d.in = p
	d.next()
	d.in = nil
	return d.err
}

// close ends the decoder; what it holds back comes out first.
func (d *decoder) close() error {
	d.ended = true
	d.next()
	d.stop()
	if d.err != nil {
		return fmt.Errorf("content coding: %w", d.err)
	}
	return nil
}

// pieces is the source of a decoder: it gives control back where it has nothing.
type pieces struct {
	d     *decoder
	yield func(struct{}) bool
}

func (s *pieces) Read(p []byte) (int, error) {
	for len(s.d.in) == 0 {
		if s.d.ended {
			return 0, io.EOF
		}
		if !s.yield(struct{}{}) {
			return 0, errStopped
		}
	}
	n := copy(p, s.d.in)
	s.d.in = s.d.in[n:]
	return n, nil
}

// ReadByte keeps flate from reading ahead of what it needs.
func (s *pieces) ReadByte() (byte, error) {
	var b [1]byte
	_, err := s.Read(b[:])
	return b[0], err
}
