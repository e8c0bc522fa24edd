package traceformat

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"

	"reprise/internal/durable"
)

const (
	// maxGroupRows is the most rows of a row group.
	maxGroupRows = 131072
	// maxGroupBytes ends a row group early where rows are wide, so that memory
	// does not follow the length of chunk lists. It counts values as they are
	// in memory, before encoding.
	maxGroupBytes = 64 << 20
	// A batch is what is handed to the column encoders at once; these bound it
	// in rows and in items of lists.
	batchRows  = 256
	batchItems = 16384
)

// nulls is a batch of nothing: the zero Value is null.
var nulls [batchRows]parquet.Value

// A WriteOption changes how [Create] writes.
type WriteOption func(*writeOptions)

type writeOptions struct {
	overwrite bool
	sorted    bool
	rebase    bool
}

// Overwrite lets the writer replace an existing file, when it closes.
func Overwrite() WriteOption { return func(o *writeOptions) { o.overwrite = true } }

// RequireSorted makes Write refuse a row that is out of order, with
// [ErrUnsorted], instead of recording that the file is not sorted.
func RequireSorted() WriteOption { return func(o *writeOptions) { o.sorted = true } }

// Rebase lets [Seal], [Recover] and [Sort] count arrivals from the first row's and
// move the header's start there: a recorder of logs that are in no order knows
// only at the end which request was the first. It is for recordings, whose other
// times count from the arrival; [Create] itself does not look at it.
func Rebase() WriteOption { return func(o *writeOptions) { o.rebase = true } }

// A Writer writes a trace as Parquet. The file appears under its name, whole,
// when Close returns nil; until then it is written under a temporary name in
// the same folder. Memory does not grow with the trace. A Writer is not safe
// for concurrent use.
type Writer struct {
	path, temp string
	opts       writeOptions
	header     *Header
	file       *os.File
	buf        *bufio.Writer
	pq         *parquet.GenericWriter[any]

	values [][]parquet.Value // of the batch, by column
	nulls  []int             // that follow them, by column
	batch  int               // rows in it
	items  int               // values in it
	group  int               // rows in the row group, the batch included
	bytes  int64             // bytes in the row group
	rows   int64
	last   [3]int64 // key of the last row
	sorted bool
	part   bool  // of a dataset
	err    error // the first failure of the file; ends the writer
	done   bool
}

// Create starts a trace at path. h is copied; it may be changed until Close
// through [Writer.Header]. An existing file is refused, with an error that
// wraps [fs.ErrExist], unless [Overwrite] is given.
func Create(path string, h *Header, opts ...WriteOption) (*Writer, error) {
	w := &Writer{path: path, sorted: true, header: new(Header)}
	for _, opt := range opts {
		opt(&w.opts)
	}
	if h != nil {
		w.header = h.Clone()
	}
	if err := w.header.Check(); err != nil {
		return nil, fileError(path, err)
	}
	if err := w.checkTarget(); err != nil {
		return nil, fileError(path, err)
	}
	file, err := createTemp(path)
	if err != nil {
		return nil, fileError(path, err)
	}
	w.file, w.temp = file, file.Name()
	w.buf = bufio.NewWriterSize(file, 1<<20)
	w.pq = newParquetWriter(w.buf, w.opts.sorted)
	w.values = make([][]parquet.Value, len(columns))
	w.nulls = make([]int, len(columns))
	return w, nil
}

// checkTarget reports what stands where the trace is to go.
func (w *Writer) checkTarget() error {
	info, err := os.Lstat(w.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.IsDir():
		return fmt.Errorf("%w (to write)", fs.ErrExist)
	case !w.opts.overwrite:
		return fmt.Errorf("%w, and is not written over unless asked to", fs.ErrExist)
	}
	return nil
}

// createTemp creates a file next to path, with the permissions that path
// itself would get.
func createTemp(path string) (*os.File, error) {
	dir, base := filepath.Split(path)
	for try := range 100 {
		name := filepath.Join(dir, fmt.Sprintf(".%s.%d-%d.tmp", base, os.Getpid(), try))
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
		if !errors.Is(err, fs.ErrExist) {
			return f, err
		}
	}
	return nil, errors.New("a hundred temporary files of this trace lie in its folder: remove them")
}

func newParquetWriter(dst *bufio.Writer, sorted bool) *parquet.GenericWriter[any] {
	opts := []parquet.WriterOption{
		schema,
		parquet.Compression(&zstd.Codec{Level: zstd.SpeedFastest}),
		parquet.CreatedBy("reprise", fmt.Sprint(Version), ""),
	}
	if sorted {
		opts = append(opts, parquet.SortingWriterConfig(parquet.SortingColumns(
			parquet.Ascending("arrival_ns"), parquet.Ascending("id"), parquet.Ascending("lap"))))
	}
	return parquet.NewGenericWriter[any](dst, opts...)
}

// Header is what Close will write. Rows.Recorded is the number of rows written
// and Sorted is what was seen, whatever it says there; Rows.Seen, if zero, is
// recorded plus dropped.
func (w *Writer) Header() *Header { return w.header }

// Rows returns how many rows were written.
func (w *Writer) Rows() int64 { return w.rows }

// Write adds a row. A row that [Row.Check] objects to is refused and nothing
// else changes; any other error ends the Writer. Text that is not UTF-8 is made
// so with U+FFFD.
func (w *Writer) Write(r *Row) error {
	if w.err != nil {
		return w.err
	}
	if w.done {
		return fileError(w.path, fs.ErrClosed)
	}
	if err := r.Check(); err != nil {
		return rowError(w.path, w.rows, err)
	}
	key := r.key()
	if w.rows > 0 && less(key, w.last) {
		if w.opts.sorted {
			return rowError(w.path, w.rows, ErrUnsorted)
		}
		w.sorted = false
	}
	w.last = key
	n := 0
	for i := range columns {
		before := len(w.values[i])
		w.values[i] = columns[i].field.put(w.values[i], r)
		put := len(w.values[i]) - before
		switch {
		case put == 0:
			w.nulls[i]++
			continue
		case w.nulls[i] > 0:
			w.values[i] = slices.Insert(w.values[i], before, nulls[:w.nulls[i]]...)
			w.nulls[i] = 0
		}
		n += put
	}
	w.rows++
	w.batch++
	w.group++
	w.items += n
	// Eight bytes a value is right where it matters, which is lists.
	w.bytes += int64(8*n + len(r.Extra))
	if w.batch == batchRows || w.items >= batchItems {
		w.flushBatch()
	}
	if w.group == maxGroupRows || w.bytes >= maxGroupBytes {
		w.flushGroup()
	}
	return w.err
}

func less(a, b [3]int64) bool {
	for i := range a {
		if a[i] != b[i] {
			return a[i] < b[i]
		}
	}
	return false
}

func (w *Writer) fail(err error) {
	if w.err == nil && err != nil {
		w.err = fileError(w.path, err)
	}
}

func (w *Writer) flushBatch() {
	if w.batch == 0 || w.err != nil {
		return
	}
	for i, cw := range w.pq.ColumnWriters() {
		values := w.values[i]
		if len(values) == 0 {
			values = nulls[:w.nulls[i]] // most columns of most traces
		} else {
			values = append(values, nulls[:w.nulls[i]]...)
		}
		w.nulls[i] = 0
		n, err := cw.WriteRowValues(values)
		if err == nil && n != w.batch {
			err = fmt.Errorf("column %s took %d of %d rows", columns[i].name, n, w.batch)
		}
		if err != nil {
			w.fail(err)
			return
		}
		if len(w.values[i]) > 0 {
			w.values[i] = values[:0]
		}
		if cap(w.values[i]) > 4*batchItems {
			w.values[i] = nil // one huge row must not cost memory for good
		}
	}
	w.batch, w.items = 0, 0
}

func (w *Writer) flushGroup() {
	w.flushBatch()
	if w.group == 0 || w.err != nil {
		return
	}
	w.fail(w.pq.Flush())
	w.group, w.bytes = 0, 0
}

// Close writes what is buffered and the header, syncs the file, reads its
// footer back and counts its rows, and only then gives it its name: a file that
// does not check out never takes the place of anything. On error the temporary
// file is removed.
func (w *Writer) Close() error {
	if w.done {
		return w.err
	}
	w.flushGroup()
	w.finishHeader()
	if w.err == nil {
		w.fail(w.header.Check())
	}
	if w.err == nil {
		w.fail(w.header.footer(w.pq.SetKeyValueMetadata))
	}
	if w.err == nil {
		w.fail(w.pq.Close())
	}
	if w.err == nil {
		w.fail(w.buf.Flush())
	}
	if w.err == nil {
		w.fail(w.file.Sync())
	}
	if w.err == nil {
		w.fail(verifyRows(w.file, w.rows))
	}
	w.done = true
	w.values = nil
	if err := w.file.Close(); w.err == nil {
		w.fail(err)
	}
	if w.err == nil {
		w.fail(publish(w.temp, w.path, w.opts.overwrite))
	}
	if w.err != nil {
		w.removeTemp()
	}
	return w.err
}

// Abort gives the trace up and leaves nothing behind. After Close it does
// nothing, so that it can be deferred.
func (w *Writer) Abort() {
	if w.done {
		return
	}
	w.done = true
	w.values = nil
	w.fail(errors.New("writing was given up"))
	w.file.Close()
	w.removeTemp()
}

func (w *Writer) removeTemp() {
	if err := os.Remove(w.temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		w.err = errors.Join(w.err, err)
	}
}

func (w *Writer) finishHeader() {
	h := w.header
	h.Version = Version
	h.Sorted = w.sorted
	if !w.part { // what is written alone is no file of the dataset that its source is of
		delete(h.Extra, DatasetID)
		delete(h.Extra, DatasetPart)
	}
	h.Rows.Recorded = w.rows
	if h.Rows.Seen == 0 {
		h.Rows.Seen = w.rows
		for _, n := range h.Rows.Dropped {
			h.Rows.Seen += n
		}
	}
}

// verifyRows reads the footer of a finished file and counts the values of each
// column: the library has lost values on writing before (parquet-go #536).
func verifyRows(file *os.File, rows int64) (err error) {
	defer guard(&err)
	info, err := file.Stat()
	if err != nil {
		return err
	}
	pf, err := parquet.OpenFile(file, info.Size(), parquet.SkipPageIndex(true), parquet.SkipBloomFilters(true))
	if err != nil {
		return fmt.Errorf("reading the file back: %w", err)
	}
	var total int64
	for _, g := range pf.RowGroups() {
		total += g.NumRows()
		for i, c := range g.ColumnChunks() {
			n := c.NumValues()
			if n < g.NumRows() || n != g.NumRows() && !columns[i].list() {
				return fmt.Errorf("reading the file back: column %s holds %d values for %d rows", columns[i].name, n, g.NumRows())
			}
		}
	}
	if total != rows || pf.NumRows() != rows {
		return fmt.Errorf("reading the file back: it holds %d rows, %d were written", total, rows)
	}
	return nil
}

// publish gives a finished file its name and makes that survive a crash.
func publish(temp, path string, overwrite bool) error {
	if overwrite {
		if err := os.Rename(temp, path); err != nil {
			return err
		}
		return durable.SyncDir(filepath.Dir(path))
	}
	// A link, unlike a rename, does not replace what another process has put
	// there meanwhile.
	err := os.Link(temp, path)
	switch {
	case err == nil:
		err = os.Remove(temp)
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%w, made while the trace was written", fs.ErrExist)
	default: // a file system without links
		if _, e := os.Lstat(path); !errors.Is(e, fs.ErrNotExist) {
			return fmt.Errorf("%w, made while the trace was written", fs.ErrExist)
		}
		err = os.Rename(temp, path)
	}
	if err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}

// guard turns a panic of the Parquet library, which is what some damaged files
// and values get from it, into an error.
func guard(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("unreadable Parquet: %v", p)
	}
}
