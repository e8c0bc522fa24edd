package traceformat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// A segment is the unit of a journal and of the runs of a sort: a frame of 24
// bytes, then a zstd frame. FORMAT.md has the layout.
const (
	segmentMark  = "RSEG"
	segmentFrame = 24

	segmentHeader = 'H' // the Header as JSON; the last one counts
	segmentRows   = 'R' // rows, each a varint length and its fields
	segmentEnd    = 'E' // the number of rows before it, eight bytes: a clean end

	// maxSegment bounds the content of a segment, packed or not, and by that
	// what damage can make a reader allocate.
	maxSegment = 64 << 20
	// maxRow bounds one row in a segment.
	maxRow = 32 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	errChecksum = errors.New("checksum does not match")
	errFrame    = errors.New("no segment starts here")
)

// packer holds one encoder for all segments of the process: EncodeAll and
// DecodeAll may be called concurrently, and an encoder is megabytes.
var packer = sync.OnceValue(func() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(2), zstd.WithWindowSize(512<<10))
	if err != nil {
		panic(err) // the options are constant
	}
	return e
})

var unpacker = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxMemory(maxSegment))
	if err != nil {
		panic(err)
	}
	return d
})

// appendSegment appends a segment with the given content.
func appendSegment(b []byte, kind byte, rows int, raw []byte) []byte {
	at := len(b)
	b = append(b, segmentMark...)
	b = append(b, kind, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(rows))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(raw)))
	b = append(b, make([]byte, 8)...) // packed size and checksum
	b = packer().EncodeAll(raw, b)
	frame := b[at:]
	binary.LittleEndian.PutUint32(frame[16:], uint32(len(frame)-segmentFrame))
	binary.LittleEndian.PutUint32(frame[20:], segmentSum(frame[:segmentFrame], frame[segmentFrame:]))
	return b
}

// segmentSum covers all of a segment but its mark and the sum itself.
func segmentSum(frame, payload []byte) uint32 {
	return crc32.Update(crc32.Checksum(frame[4:20], castagnoli), castagnoli, payload)
}

// A segment as it was read. raw is valid until the next call of the scanner.
type segment struct {
	kind byte
	rows int
	raw  []byte
}

// A segmentScanner reads segments one after the other.
type segmentScanner struct {
	src      io.ReaderAt
	off, end int64
	buf, raw []byte
	budget   int64 // bytes that resync may still check
}

func newSegmentScanner(src io.ReaderAt, off, end int64) *segmentScanner {
	return &segmentScanner{src: src, off: off, end: end, budget: 16*(end-off) + 1<<20}
}

// next returns the segment at off and moves behind it. At the end it returns
// io.EOF; any other error leaves off where the damage is.
func (s *segmentScanner) next() (segment, error) {
	left := s.end - s.off
	if left <= 0 {
		return segment{}, io.EOF
	}
	var frame [segmentFrame]byte
	n := min(left, segmentFrame)
	if _, err := s.src.ReadAt(frame[:n], s.off); err != nil {
		return segment{}, readError(err)
	}
	if string(frame[:min(n, 4)]) != segmentMark[:min(n, 4)] {
		return segment{}, errFrame
	}
	if n < segmentFrame {
		return segment{}, fmt.Errorf("segment is cut: %w", io.ErrUnexpectedEOF)
	}
	g := segment{kind: frame[4], rows: int(binary.LittleEndian.Uint32(frame[8:]))}
	rawSize := binary.LittleEndian.Uint32(frame[12:])
	size := int64(binary.LittleEndian.Uint32(frame[16:]))
	switch {
	case g.kind != segmentHeader && g.kind != segmentRows && g.kind != segmentEnd || frame[5]|frame[6]|frame[7] != 0:
		return segment{}, fmt.Errorf("segment of unknown kind %q", frame[4:8])
	case rawSize > maxSegment || size > maxSegment || uint32(g.rows) > rawSize:
		return segment{}, errors.New("segment of absurd size")
	case size > left-segmentFrame:
		return segment{}, fmt.Errorf("segment is cut: %w", io.ErrUnexpectedEOF)
	}
	if int64(cap(s.buf)) < size {
		s.buf = make([]byte, size)
	}
	s.buf = s.buf[:size]
	if _, err := s.src.ReadAt(s.buf, s.off+segmentFrame); err != nil {
		return segment{}, readError(err)
	}
	if segmentSum(frame[:], s.buf) != binary.LittleEndian.Uint32(frame[20:]) {
		return segment{}, errChecksum
	}
	raw, err := unpacker().DecodeAll(s.buf, s.raw[:0])
	if err != nil {
		return segment{}, fmt.Errorf("segment does not unpack: %w", err)
	}
	s.raw = raw
	if len(raw) != int(rawSize) {
		return segment{}, fmt.Errorf("segment unpacks to %d bytes and says %d", len(raw), rawSize)
	}
	g.raw = raw
	s.off += segmentFrame + size
	return g, nil
}

// readError is the error of a read that was expected to be whole.
func readError(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// resync moves from damage at off to the next segment that is whole, or to the
// end. It gives up early on a file made to keep it busy.
func (s *segmentScanner) resync() {
	window := make([]byte, 64<<10)
	for at := s.off + 1; at < s.end; {
		n, err := s.src.ReadAt(window[:min(int64(len(window)), s.end-at)], at)
		if n == 0 || err != nil && err != io.EOF {
			break
		}
		i := bytes.Index(window[:n], []byte(segmentMark))
		if i < 0 {
			// A mark may lie across the end of the window.
			at += int64(max(1, n-len(segmentMark)+1))
			continue
		}
		try := segmentScanner{src: s.src, off: at + int64(i), end: s.end, buf: s.buf, raw: s.raw}
		_, err = try.next()
		s.buf, s.raw = try.buf, try.raw
		if err == nil {
			s.off = at + int64(i)
			return
		}
		if s.budget -= int64(len(try.buf)) + segmentFrame; s.budget < 0 {
			break
		}
		at += int64(i) + 1
	}
	s.off = s.end
}

// cutRow splits the fields of the first row off b.
func cutRow(b []byte) (fields, rest []byte, err error) {
	size, n := binary.Uvarint(b)
	if n <= 0 || size > uint64(len(b)-n) {
		return nil, nil, fmt.Errorf("row: %w", errShort)
	}
	return b[n : n+int(size)], b[n+int(size):], nil
}

// A rowDecoder decodes rows into one Row, reusing its memory.
type rowDecoder struct{ row, prev Row }

func (d *rowDecoder) decode(fields []byte) (*Row, error) {
	d.row, d.prev = Row{}, d.row
	if err := decodeFields(&d.row, &d.prev, fields); err != nil {
		return nil, err
	}
	return &d.row, nil
}
