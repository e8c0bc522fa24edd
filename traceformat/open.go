package traceformat

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// A Reader yields the rows of one trace.
type Reader interface {
	// Header describes the trace. Counts that only a full read can know may
	// be zero until All has ended.
	Header() *Header
	// All yields the rows in file order. The Row belongs to the Reader and is
	// overwritten by the next iteration. An error is a [*RowError], comes with
	// a nil Row and ends the sequence. All may be ranged over once.
	All() iter.Seq2[*Row, error]
	Close() error
}

// RunTrace is the name of the trace in a run directory.
const RunTrace = "trace.parquet"

// headSize is how much of a file formats are told apart by.
const headSize = 64 << 10

// maxWindow bounds the memory that a zstd file may ask its reader for.
const maxWindow = 128 << 20

// Open opens the trace that name stands for: a file in any known format, a run
// directory, a partitioned dataset or a pattern such as "day=*/part-*.parquet"
// (see [OpenParts]), "-" for standard input, or a name with a scheme that was
// registered with [RegisterScheme]. What a file is follows from its content;
// gzip and zstd are undone first. Parquet that comes through a stream is
// spooled to a temporary file, which goes when the Reader is closed.
//
// The error is a [*RowError] and wraps [ErrEmpty], [ErrDirectory],
// [ErrTruncated], [ErrJournal], [ErrVersion] or [ErrFormat] where one of these
// is the reason.
func Open(name string, opts ...ReadOption) (Reader, error) {
	o := readOptions(opts)
	r, err := open(name, o)
	if err != nil {
		return nil, fileError(name, err)
	}
	return r, nil
}

func open(name string, o *OpenOptions) (Reader, error) {
	if s, ok := findScheme(name); ok {
		return s.open(name, o)
	}
	if name == "-" {
		in := o.Stdin
		if in == nil {
			in = os.Stdin
		}
		return openStream(in, name, o)
	}
	info, err := os.Stat(name)
	if err != nil {
		if scheme, _, ok := strings.Cut(name, "://"); ok && errors.Is(err, fs.ErrNotExist) {
			return nil, noScheme(scheme)
		}
		if errors.Is(err, fs.ErrNotExist) && IsPattern(name) {
			return openPattern(name, o)
		}
		return nil, pathless(err)
	}
	if info.IsDir() {
		return openDir(name, o)
	}
	return openPath(name, o)
}

// openPath opens one file.
func openPath(name string, o *OpenOptions) (Reader, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, pathless(err)
	}
	r, err := openStream(f, name, o)
	if err != nil {
		f.Close()
		return nil, err
	}
	return r, nil
}

func findScheme(name string) (found scheme, ok bool) {
	registry.RLock()
	defer registry.RUnlock()
	for _, s := range registry.schemes {
		if strings.HasPrefix(name, s.prefix) && len(s.prefix) > len(found.prefix) {
			found, ok = s, true
		}
	}
	return found, ok
}

// openDir opens the trace of a run directory, or a dataset.
func openDir(name string, o *OpenOptions) (Reader, error) {
	path := filepath.Join(name, RunTrace)
	if _, err := os.Stat(path); err == nil {
		return open(path, o)
	}
	if _, err := os.Stat(JournalPath(path)); err == nil {
		return nil, fmt.Errorf("holds an unfinished run: %w", journalError(JournalPath(path)))
	}
	return openFolder(name, o)
}

func journalError(path string) error {
	return fmt.Errorf("%w: trace recover %s turns it into a trace", ErrJournal, path)
}

// openStream opens what in holds, which it closes with the Reader it returns
// if it can be closed.
func openStream(in io.Reader, name string, o *OpenOptions) (Reader, error) {
	head := bufio.NewReaderSize(in, headSize)
	start, err := peek(head)
	if err != nil {
		return nil, err
	}
	if len(start) == 0 {
		return nil, ErrEmpty
	}
	src := stream{Reader: head}
	if c, ok := in.(io.Closer); ok && in != os.Stdin {
		src.closers = append(src.closers, c.Close)
	}
	packed := true
	switch {
	case bytes.HasPrefix(start, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(head)
		if err != nil {
			return nil, fmt.Errorf("gzip: %w", err)
		}
		src.Reader = namedReader{z, "gzip"}
	case bytes.HasPrefix(start, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(head, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		src.Reader = namedReader{z, "zstd"}
		src.closers = append(src.closers, func() error { z.Close(); return nil })
	default:
		packed = false
	}
	if packed {
		head = bufio.NewReaderSize(src.Reader, headSize)
		if start, err = peek(head); err != nil {
			return nil, err
		}
		if len(start) == 0 {
			return nil, fmt.Errorf("%w once unpacked", ErrEmpty)
		}
		src.Reader = head
	}
	switch {
	case bytes.HasPrefix(start, []byte(parquetMagic)):
		return openParquetStream(in, src, packed, name, o)
	case bytes.HasPrefix(start, []byte(journalMagic)):
		return nil, journalError(name)
	}
	format, err := detect(o.Format, func(f Format) bool { return f.Open != nil && f.Detect != nil && f.Detect(start) })
	if err != nil {
		return nil, err
	}
	if format.Open == nil {
		return nil, fmt.Errorf("%w: %s is Parquet and this is not", ErrFormat, format.Name)
	}
	r, err := format.Open(src.Reader, name, o)
	if err != nil {
		return nil, err
	}
	return &closingReader{Reader: r, close: src.close}, nil
}

// openParquetStream opens Parquet content: in place where it is a file, from a
// temporary copy otherwise.
func openParquetStream(in io.Reader, src stream, packed bool, name string, o *OpenOptions) (_ Reader, err error) {
	path, cleanup := name, func() {}
	if obj, ok := in.(*objectStream); ok && !packed {
		pq, err := parquetOf(obj.Object, obj.Object.Size())
		if err != nil {
			return nil, err
		}
		if o.Format == NativeFormat || o.Format == "" && native(pq) {
			return newFileReader(obj.Object, pq, name, o)
		}
	}
	if f, ok := in.(*os.File); ok && !packed && regular(f) && f != os.Stdin && name != "-" {
		path = f.Name()
	} else if path, err = spool(src.Reader, o.TempDir); err != nil {
		return nil, err
	} else {
		cleanup = func() { os.Remove(path) }
	}
	defer func() {
		if err != nil {
			cleanup()
			src.close()
		}
	}()
	f, pq, err := openParquet(path)
	if err != nil {
		return nil, err
	}
	names, isNative := topColumns(pq), native(pq)
	f.Close()
	if o.Format == NativeFormat || o.Format == "" && isNative {
		r, err := openFile(path, name, o)
		if err != nil {
			return nil, err
		}
		r.cleanup = cleanup
		return r, src.close()
	}
	format, err := detect(o.Format, func(f Format) bool { return f.DetectParquet != nil && f.DetectParquet(names) })
	if err != nil {
		return nil, fmt.Errorf("%w; its columns are %s", err, strings.Join(names, ", "))
	}
	if format.OpenParquet == nil {
		return nil, fmt.Errorf("%w: it is Parquet and %s is not", ErrFormat, format.Name)
	}
	r, err := format.OpenParquet(path, name, o)
	if err != nil {
		return nil, err
	}
	return &closingReader{Reader: r, close: func() error { cleanup(); return src.close() }}, nil
}

// detect finds the format by its name, or the only one that claims the content.
func detect(name string, claims func(Format) bool) (Format, error) {
	var found []Format
	for _, f := range registeredFormats() {
		if name == "" && claims(f) {
			found = append(found, f)
		}
		if name == f.Name {
			return f, nil
		}
	}
	switch {
	case name == NativeFormat:
		return Format{}, fmt.Errorf("%w: it does not start like a Parquet file", ErrFormat)
	case name != "":
		return Format{}, fmt.Errorf("no format is called %q, want one of %s", name, strings.Join(Formats(), ", "))
	case len(found) == 0:
		return Format{}, fmt.Errorf("%w (known: %s)", ErrFormat, strings.Join(Formats(), ", "))
	case len(found) > 1:
		return Format{}, fmt.Errorf("looks like %s and like %s: say which with --format", found[0].Name, found[1].Name)
	}
	return found[0], nil
}

// peek returns the first bytes of r, fewer only where it has no more.
func peek(r *bufio.Reader) ([]byte, error) {
	b, err := r.Peek(headSize)
	if err != nil && err != io.EOF {
		return nil, pathless(err)
	}
	return b, nil
}

func regular(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode().IsRegular()
}

// spool copies r to a temporary file and returns its path.
func spool(r io.Reader, dir string) (_ string, err error) {
	f, err := os.CreateTemp(dir, "reprise-*.parquet")
	if err != nil {
		return "", err
	}
	_, err = io.Copy(f, r)
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		os.Remove(f.Name())
		return "", fmt.Errorf("copying it to a temporary file: %w", err)
	}
	return f.Name(), nil
}

// A stream is the bytes of a trace and what to close after it.
type stream struct {
	io.Reader
	closers []func() error
}

func (s *stream) close() error {
	var errs []error
	for _, c := range slices.Backward(s.closers) {
		errs = append(errs, c())
	}
	s.closers = nil
	return errors.Join(errs...)
}

// A namedReader says which layer an error comes from.
type namedReader struct {
	r    io.Reader
	name string
}

func (n namedReader) Read(b []byte) (int, error) {
	k, err := n.r.Read(b)
	if err == io.ErrUnexpectedEOF {
		err = fmt.Errorf("%s: %w", n.name, ErrTruncated)
	} else if err != nil && err != io.EOF {
		err = fmt.Errorf("%s: %w", n.name, err)
	}
	return k, err
}

// A closingReader closes what lies below a Reader after it.
type closingReader struct {
	Reader
	close func() error
}

func (c *closingReader) Close() error {
	return errors.Join(c.Reader.Close(), c.close())
}
