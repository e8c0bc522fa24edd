package frame

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// readBuffer is large enough that reading is a few system calls a megabyte, and
// that ngGuard can look at an interface block.
const readBuffer = 256 << 10

// maxWindow bounds what a zstd frame may ask for.
const maxWindow = 128 << 20

// ErrFormat is returned for input that is neither pcap nor pcapng.
var ErrFormat = errors.New("neither pcap nor pcapng, plain or packed with gzip or zstd")

// Open opens a capture file; "-" is standard input.
func Open(name string) (Source, error) {
	if name == "-" {
		return NewSource(os.Stdin)
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	s, err := NewSource(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &fileSource{s, f, name}, nil
}

// fileSource names the file in errors and closes it.
type fileSource struct {
	Source
	f    *os.File
	name string
}

func (s *fileSource) Next(p *Packet) error {
	err := s.Source.Next(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("%s: %w", s.name, err)
	}
	return err
}

func (s *fileSource) Close() error { return errors.Join(s.Source.Close(), s.f.Close()) }

// NewSource reads a pcap or pcapng stream, plain or packed with gzip or zstd,
// told apart by content.
func NewSource(r io.Reader) (Source, error) {
	br := bufio.NewReaderSize(r, readBuffer)
	magic, err := br.Peek(4)
	if err != nil {
		if err == io.EOF {
			return nil, fmt.Errorf("%d bytes: %w", len(magic), ErrFormat)
		}
		return nil, err
	}
	switch {
	case magic[0] == 0x1f && magic[1] == 0x8b:
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, err
		}
		return unpacked(z, z.Close)
	case string(magic) == "\x28\xb5\x2f\xfd":
		z, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(2), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		return unpacked(z, func() error { z.Close(); return nil })
	}
	return plain(br, magic)
}

// packedSource closes its decompressor.
type packedSource struct {
	Source
	close func() error
}

func (s *packedSource) Close() error { return s.close() }

// secrets is how many blocks of TLS keys a source has met so far.
func secrets(s Source) int {
	switch s := s.(type) {
	case *fileSource:
		return secrets(s.Source)
	case *packedSource:
		return secrets(s.Source)
	case *ngSource:
		return s.guard.secrets
	}
	return 0
}

func unpacked(r io.Reader, closer func() error) (Source, error) {
	br := bufio.NewReaderSize(r, readBuffer)
	magic, err := br.Peek(4)
	var s Source
	if err == nil {
		s, err = plain(br, magic)
	} else if err == io.EOF {
		err = ErrFormat
	}
	if err != nil {
		closer()
		return nil, err
	}
	return &packedSource{s, closer}, nil
}

func plain(br *bufio.Reader, magic []byte) (Source, error) {
	switch binary.LittleEndian.Uint32(magic) {
	case 0xa1b2c3d4, 0xd4c3b2a1, 0xa1b23c4d, 0x4d3cb2a1:
		return newPcap(br)
	case ngSection:
		return newNg(br)
	}
	return nil, ErrFormat
}
