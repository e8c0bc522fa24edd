package proxylog

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// An Input is one log.
type Input struct {
	Name string // for messages
	Open func() (io.ReadCloser, error)
}

// Files makes inputs of file names: patterns are matched, "-" is stdin, and
// what is there twice is read once.
func Files(names []string, stdin io.Reader) ([]Input, error) {
	var inputs []Input
	seen := map[string]bool{}
	for _, name := range names {
		if name == "-" {
			if !seen[name] {
				inputs = append(inputs, Input{"standard input", func() (io.ReadCloser, error) { return io.NopCloser(stdin), nil }})
			}
			seen[name] = true
			continue
		}
		paths := []string{name}
		if _, err := os.Stat(name); err != nil && strings.ContainsAny(name, "*?[") {
			var err error
			if paths, err = filepath.Glob(name); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			if len(paths) == 0 {
				return nil, fmt.Errorf("%s: no file matches", name)
			}
			slices.Sort(paths)
		}
		for _, path := range paths {
			if seen[path] {
				continue
			}
			seen[path] = true
			info, err := os.Stat(path)
			switch {
			case err != nil:
				return nil, fmt.Errorf("%s: no such file", path)
			case info.IsDir():
				return nil, fmt.Errorf("%s is a folder: name the files in it, as in %s", path, filepath.Join(path, "*.log"))
			}
			inputs = append(inputs, Input{path, func() (io.ReadCloser, error) { return os.Open(path) }})
		}
	}
	return inputs, nil
}

// ErrPickle says that a file is a Python pickle.
var ErrPickle = errors.New("is a Python pickle, which runs code when it is opened and is never opened here: " +
	"turn SGLang's dump into JSON Lines where it was written, as docs/capturing.md shows, or log with --export-metrics-to-file")

// unpack undoes gzip and zstd, told by content, and refuses what is no text.
func unpack(r io.Reader) (io.Reader, func(), error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(4)
	if err != nil && err != io.EOF {
		return nil, nil, err
	}
	stop := func() {}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, fmt.Errorf("gzip: %w", err)
		}
		stop = func() { z.Close() }
		br = bufio.NewReaderSize(z, 64<<10)
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, nil, fmt.Errorf("zstd: %w", err)
		}
		stop = z.Close
		br = bufio.NewReaderSize(z, 64<<10)
	}
	head, _ = br.Peek(4096)
	switch {
	case isPickle(head):
		stop()
		return nil, nil, ErrPickle
	case bytes.HasPrefix(head, []byte("PAR1")):
		stop()
		return nil, nil, errors.New("is a Parquet file: a trace is read by trace convert, a table by a mapping after it was exported as CSV or JSON Lines")
	case bytes.IndexByte(head, 0) >= 0:
		stop()
		return nil, nil, errors.New("holds NUL bytes: it is no text log, or it is damaged")
	}
	return br, stop, nil
}

// isPickle knows pickles of protocol 2 and later, which all of Python 3 writes,
// and those of torch.save, which lie in a ZIP archive.
func isPickle(head []byte) bool {
	return len(head) > 2 && head[0] == 0x80 && head[1] >= 2 && head[1] <= 5 ||
		bytes.HasPrefix(head, []byte("PK\x03\x04")) && bytes.Contains(head, []byte("data.pkl"))
}
