package traceformat

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/parquet-go/parquet-go"
)

// readBatch is how many rows a FileReader decodes at a time, column by column.
const readBatch = 256

// A FileReader reads a native Parquet file. It holds a page or two of each
// column in memory, whatever the length of the trace.
type FileReader struct {
	name    string
	file    file
	size    int64
	pq      *parquet.File
	header  *Header
	opts    *OpenOptions
	columns []openColumn
	leaves  int // columns of the file
	used    bool
	lax     bool   // leave rules to Validate
	cleanup func() // after Close, removes a spooled copy
}

// A file is where Parquet is read from: an *os.File, or an object in storage.
type file interface {
	io.ReaderAt
	io.Closer
}

// An openColumn is a column that is there and wanted.
type openColumn struct {
	*column
	leaf    int  // index in the file
	narrow  bool // stored as int32
	listDef int  // definition level of an item's place, for lists
}

var _ Reader = (*FileReader)(nil)

// OpenFile opens a native Parquet file. With [Columns] it reads those columns
// alone, with [Within] the row groups that may hold rows of interest.
//
// A file that lacks optional columns is read; one that has columns this package
// does not know is refused unless [IgnoreUnknownColumns] is given, so that no
// later step loses them silently.
func OpenFile(path string, opts ...ReadOption) (*FileReader, error) {
	r, err := openFile(path, path, readOptions(opts))
	if err != nil {
		return nil, fileError(path, err)
	}
	return r, nil
}

func openFile(path, name string, o *OpenOptions) (_ *FileReader, err error) {
	f, pq, err := openParquet(path)
	if err != nil {
		return nil, err
	}
	return newFileReader(f, pq, name, o)
}

// newFileReader reads pq, which f holds. It closes f on error.
func newFileReader(f file, pq *parquet.File, name string, o *OpenOptions) (*FileReader, error) {
	r := &FileReader{name: name, file: f, size: pq.Size(), pq: pq, opts: o, leaves: len(pq.Schema().Columns())}
	if err := r.open(); err != nil {
		f.Close()
		return nil, err
	}
	return r, nil
}

const parquetMagic = "PAR1"

// openParquet opens any Parquet file and tells the ways apart in which a file
// can fail to be one.
func openParquet(path string) (_ *os.File, _ *parquet.File, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, pathless(err)
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = ErrDirectory
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	pq, err := parquetOf(f, info.Size())
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, pq, nil
}

// parquetOf reads the footer of what f holds.
func parquetOf(f io.ReaderAt, size int64) (_ *parquet.File, err error) {
	defer guard(&err)
	if size == 0 {
		return nil, ErrEmpty
	}
	var magic [4]byte
	if _, err := f.ReadAt(magic[:], 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, pathless(err)
	} else if string(magic[:]) != parquetMagic {
		return nil, fmt.Errorf("%w: it does not start like a Parquet file", ErrFormat)
	}
	if _, err := f.ReadAt(magic[:], max(0, size-4)); err != nil && !errors.Is(err, io.EOF) {
		return nil, pathless(err)
	} else if string(magic[:]) != parquetMagic || size < 12 {
		return nil, fmt.Errorf("%w: it starts like a Parquet file and lacks the end of one; copy it again, or run trace recover on its journal", ErrTruncated)
	}
	pq, err := parquet.OpenFile(f, size, parquet.SkipPageIndex(true), parquet.SkipBloomFilters(true), parquet.ReadBufferSize(64<<10))
	if err != nil {
		return nil, fmt.Errorf("unreadable Parquet: %w", err)
	}
	return pq, nil
}

// pathless drops the path of an error that is about to be given a name.
func pathless(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}

func topColumns(pq *parquet.File) []string {
	var names []string
	for _, c := range pq.Root().Columns() {
		names = append(names, c.Name())
	}
	return names
}

// native reports whether a Parquet file is a trace of ours: by its footer, or
// by its columns where another program rewrote it without one.
func native(pq *parquet.File) bool {
	if _, ok := pq.Lookup(keyPrefix + "version"); ok {
		return true
	}
	names := topColumns(pq)
	for _, c := range columns {
		if c.required && !c.mayLack && !slices.Contains(names, c.name) {
			return false
		}
	}
	return true
}

func (r *FileReader) open() (err error) {
	defer guard(&err)
	r.header, err = readFooter(func(yield func(k, v string) bool) {
		for _, kv := range r.pq.Metadata().KeyValueMetadata {
			if !yield(kv.Key, kv.Value) {
				return
			}
		}
	})
	if err != nil {
		return err
	}
	if err := r.bind(); err != nil {
		return err
	}
	for i, g := range r.pq.RowGroups() {
		if g.NumRows() < 0 || len(g.ColumnChunks()) != r.leaves {
			return fmt.Errorf("row group %d is damaged", i)
		}
	}
	return nil
}

// bind matches the columns of the file with the table.
func (r *FileReader) bind() error {
	wanted := map[string]bool{}
	for _, name := range r.opts.Columns {
		if _, ok := columnsByName[name]; !ok {
			return fmt.Errorf("no column is called %q, want some of %s", name, strings.Join(ColumnNames(), ", "))
		}
		wanted[name] = true
	}
	var unknown []string
	have := map[string]bool{}
	for _, fc := range r.pq.Root().Columns() {
		i, ok := columnsByName[fc.Name()]
		if !ok {
			unknown = append(unknown, fc.Name())
			continue
		}
		c := openColumn{column: &columns[i]}
		if have[c.name] {
			return fmt.Errorf("column %s is there twice", c.name)
		}
		have[c.name] = true
		if err := c.bind(fc); err != nil {
			return fmt.Errorf("column %s: %w", c.name, err)
		}
		if len(wanted) == 0 || wanted[c.name] {
			r.columns = append(r.columns, c)
		}
	}
	for i := range columns {
		if c := &columns[i]; c.required && !c.mayLack && !have[c.name] {
			return fmt.Errorf("%w: column %s is missing", ErrFormat, c.name)
		}
	}
	if len(unknown) > 0 && !r.opts.ignoreUnknown {
		return fmt.Errorf("unknown columns %s: drop them, or ask to ignore them", strings.Join(unknown, ", "))
	}
	return nil
}

// bind finds the leaf of a column and checks its shape.
func (c *openColumn) bind(fc *parquet.Column) error {
	def := 0
	for {
		if fc.Optional() || fc.Repeated() {
			def++
		}
		if fc.Repeated() {
			if c.listDef > 0 {
				return fmt.Errorf("is a list of lists, want %s", c.typ)
			}
			c.listDef = def
		}
		if fc.Leaf() {
			break
		}
		sub := fc.Columns()
		if len(sub) != 1 {
			return fmt.Errorf("is a structure, want %s", c.typ)
		}
		fc = sub[0]
	}
	switch {
	case c.list() && c.listDef == 0, !c.list() && c.listDef > 0:
		return fmt.Errorf("is %s, want %s", fc.Type(), c.typ)
	case !slices.Contains(c.field.kinds(), fc.Type().Kind()):
		hint := ""
		if k := fc.Type().Kind(); k == parquet.Double || k == parquet.Float {
			hint = " (pandas turns integers with gaps into floats: read them with dtype_backend)"
		}
		return fmt.Errorf("is stored as %s, want %s%s", fc.Type(), c.typ, hint)
	}
	c.leaf = int(fc.Index())
	c.narrow = fc.Type().Kind() == parquet.Int32
	return nil
}

// Header describes the trace.
func (r *FileReader) Header() *Header { return r.header }

// NumRows returns the number of rows of the file, those of skipped row groups
// included.
func (r *FileReader) NumRows() int64 { return r.pq.NumRows() }

// Digest returns the SHA-256 of the file's bytes as "sha256:" and hex digits,
// the figure that sha256sum prints.
func (r *FileReader) Digest() (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(r.file, 0, r.size)); err != nil {
		return "", fileError(r.name, err)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

// Close frees the file. Nothing of the reader may be used afterwards.
func (r *FileReader) Close() error {
	err := r.file.Close()
	if r.cleanup != nil {
		r.cleanup()
		r.cleanup = nil
	}
	if err != nil && !errors.Is(err, fs.ErrClosed) {
		return fileError(r.name, pathless(err))
	}
	return nil
}

// All yields the rows in file order. It stops with a [*RowError] at damage, at
// a row that [Row.Check] objects to, and, with [ErrUnsorted], at one that goes
// back in time although the header says that none does.
func (r *FileReader) All() iter.Seq2[*Row, error] {
	return func(yield func(*Row, error) bool) {
		if r.used {
			yield(nil, fileError(r.name, errors.New("rows were read before: open the file again")))
			return
		}
		r.used = true
		ordered := r.header.Sorted && !r.lax && slices.ContainsFunc(r.columns, func(c openColumn) bool { return c.name == "arrival_ns" })
		var last time.Duration
		batches := r.batches
		if r.opts.ahead {
			batches = r.batchesAhead
		}
		batches(func(base int64, batch []Row, err error) bool {
			if err != nil {
				yield(nil, rowError(r.name, base, err))
				return false
			}
			for i := range batch {
				row := &batch[i]
				if !r.lax {
					err := row.Check()
					if err == nil && ordered && row.Arrival < last {
						err = ErrUnsorted
					}
					if err != nil {
						yield(nil, rowError(r.name, base+int64(i), err))
						return false
					}
					last = row.Arrival
				}
				if !yield(row, nil) {
					return false
				}
			}
			return true
		})
	}
}

// A batchSet is the memory of one batch: its rows, and the readers that own the
// lists in them.
type batchSet struct {
	rows    []Row
	readers []fieldReader
}

func (r *FileReader) newBatchSet() *batchSet {
	s := &batchSet{rows: make([]Row, readBatch), readers: make([]fieldReader, len(r.columns))}
	for i, c := range r.columns {
		s.readers[i] = c.field.newReader()
	}
	return s
}

// A batchFunc takes the rows from index base on, or an error there.
type batchFunc func(base int64, rows []Row, err error) bool

// batches hands the rows to yield, batch by batch, until it returns false.
func (r *FileReader) batches(yield batchFunc) {
	set := r.newBatchSet()
	r.decode(func() *batchSet { return set }, func(base int64, rows []Row, _ *batchSet, err error) bool { return yield(base, rows, err) })
}

// aheadBatches is how many batches lie between the two goroutines of
// batchesAhead.
const aheadBatches = 8

// batchesAhead decodes in a goroutine of its own, which has ended when it
// returns.
func (r *FileReader) batchesAhead(yield batchFunc) {
	type full struct {
		base int64
		rows []Row
		set  *batchSet
		err  error
	}
	free, done := make(chan *batchSet, aheadBatches), make(chan full, aheadBatches)
	for range aheadBatches {
		free <- r.newBatchSet()
	}
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		defer close(done)
		r.decode(func() *batchSet {
			select {
			case s := <-free:
				return s
			case <-stop:
				return nil
			}
		}, func(base int64, rows []Row, set *batchSet, err error) bool {
			done <- full{base, rows, set, err} // has room for all sets, and an error comes with none
			return true
		})
	}()
	defer func() {
		close(stop)
		for range done {
		}
		<-ended
	}()
	for f := range done {
		if !yield(f.base, f.rows, f.err) {
			return
		}
		if f.set != nil {
			free <- f.set
		}
	}
}

// decode fills the sets that next returns and hands them to put, until one of
// them says that it is enough.
func (r *FileReader) decode(next func() *batchSet, put func(base int64, rows []Row, set *batchSet, err error) bool) {
	var base int64
	g := groupReader{columns: r.columns, streams: make([]valueStream, len(r.columns))}
	defer g.close()
	groups := r.pq.RowGroups()
	ahead := -1 // the last group that was prefetched
	for i, group := range groups {
		n := group.NumRows()
		if r.outside(group) {
			base += n
			continue
		}
		// An object fetches the next group while this one is decoded.
		for next := max(i, ahead+1); next < len(groups) && ahead <= i; next++ {
			if !r.outside(groups[next]) {
				r.prefetch(next)
				ahead = next
			}
		}
		g.open(group)
		for done := int64(0); done < n; {
			set := next()
			if set == nil {
				return
			}
			batch := set.rows[:min(n-done, readBatch)]
			if err := g.fill(batch, set.readers); err != nil {
				put(base+done, nil, nil, err)
				return
			}
			if !put(base+done, batch, set, nil) {
				return
			}
			done += int64(len(batch))
		}
		base += n
	}
}

// prefetch tells an object which of its bytes row group i is read from.
func (r *FileReader) prefetch(i int) {
	object, ok := r.file.(Object)
	if !ok {
		return
	}
	chunks := r.pq.Metadata().RowGroups[i].Columns
	var ranges []Range
	for _, c := range r.columns {
		m := &chunks[c.leaf].MetaData
		from := m.DataPageOffset
		if d := m.DictionaryPageOffset; d > 0 && d < from {
			from = d
		}
		if from < 0 || m.TotalCompressedSize < 0 || from > r.size-m.TotalCompressedSize {
			continue // damage, which reading it reports
		}
		ranges = append(ranges, Range{From: from, To: from + m.TotalCompressedSize})
	}
	object.Prefetch(ranges)
}

// outside reports whether the bounds of a row group's arrivals, where it has
// some, lie outside what was asked for.
func (r *FileReader) outside(group parquet.RowGroup) bool {
	if !r.opts.From.OK && !r.opts.To.OK {
		return false
	}
	lo, hi, ok := r.groupBounds(group, "arrival_ns")
	return ok && (r.opts.To.OK && lo >= int64(r.opts.To.V) || r.opts.From.OK && hi < int64(r.opts.From.V))
}

// groupBounds returns the least and the greatest value of an integer column of a
// row group, where the file says.
func (r *FileReader) groupBounds(group parquet.RowGroup, name string) (lo, hi int64, ok bool) {
	leaf, ok := r.pq.Schema().Lookup(name)
	if !ok {
		return 0, 0, false
	}
	chunk, ok := group.ColumnChunks()[leaf.ColumnIndex].(*parquet.FileColumnChunk)
	if !ok {
		return 0, 0, false
	}
	least, most, ok := chunk.Bounds()
	if !ok || least.Kind() != most.Kind() {
		return 0, 0, false
	}
	switch least.Kind() {
	case parquet.Int64:
		return least.Int64(), most.Int64(), true
	case parquet.Int32:
		return int64(least.Int32()), int64(most.Int32()), true
	}
	return 0, 0, false
}

// bounds is groupBounds over all row groups.
func (r *FileReader) bounds(name string) (lo, hi int64, ok bool) {
	for _, g := range r.pq.RowGroups() {
		if g.NumRows() == 0 {
			continue
		}
		l, h, known := r.groupBounds(g, name)
		if !known {
			return 0, 0, false
		}
		if !ok || l < lo {
			lo = l
		}
		if !ok || h > hi {
			hi = h
		}
		ok = true
	}
	return lo, hi, ok
}

// A groupReader reads the wanted columns of one row group after the other.
type groupReader struct {
	columns []openColumn
	streams []valueStream
}

func (g *groupReader) open(group parquet.RowGroup) {
	g.close()
	chunks := group.ColumnChunks()
	for i := range g.columns {
		c := &g.columns[i]
		s := &g.streams[i]
		s.pages = chunks[c.leaf].Pages()
		s.narrow, s.list, s.listDef = c.narrow, c.list(), c.listDef
		if s.buf == nil {
			s.buf = make([]parquet.Value, readBatch)
		}
	}
}

// fill decodes the next len(rows) rows with a reader for each column.
func (g *groupReader) fill(rows []Row, readers []fieldReader) (err error) {
	at := 0
	defer func() {
		if err != nil {
			err = fmt.Errorf("column %s: %w", g.columns[at].name, err)
		}
	}()
	defer guard(&err)
	clear(rows)
	for at = range g.columns {
		if err := readers[at].fill(rows, &g.streams[at]); err != nil {
			return err
		}
	}
	return nil
}

func (g *groupReader) close() {
	for i := range g.streams {
		g.streams[i].close()
	}
}

// A valueStream is the values of one column of one row group.
type valueStream struct {
	pages   parquet.Pages
	page    parquet.Page
	values  parquet.ValueReader
	buf     []parquet.Value
	pos, n  int
	nulls   int // rows of an all-null page that are not handed out yet
	narrow  bool
	list    bool
	listDef int
}

// integer is v whatever integer type its column is stored in.
func (s *valueStream) integer(v parquet.Value) int64 {
	if s.narrow {
		return int64(v.Int32())
	}
	return v.Int64()
}

// take returns the values of up to n rows of a column that is no list, and how
// many rows these are. No values means that all of them are null.
func (s *valueStream) take(n int) ([]parquet.Value, int, error) {
	if s.pos == s.n && s.nulls == 0 {
		if err := s.load(); err != nil {
			return nil, 0, unexpected(err)
		}
	}
	if s.nulls > 0 {
		n = min(n, s.nulls)
		s.nulls -= n
		return nil, n, nil
	}
	n = min(n, s.n-s.pos)
	vals := s.buf[s.pos : s.pos+n]
	s.pos += n
	return vals, n, nil
}

// next returns the first value of the next row of a list column.
func (s *valueStream) next() (*parquet.Value, error) {
	if s.pos == s.n {
		if err := s.load(); err != nil {
			return nil, unexpected(err)
		}
	}
	v := &s.buf[s.pos]
	s.pos++
	return v, nil
}

// more returns the next value of the same row, nil where the row has ended.
func (s *valueStream) more() (*parquet.Value, error) {
	if s.pos == s.n {
		if err := s.load(); err == io.EOF {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
	}
	v := &s.buf[s.pos]
	if v.RepetitionLevel() == 0 {
		return nil, nil
	}
	s.pos++
	return v, nil
}

// unexpected is the error of a column that ends before its row group does.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// load reads values into buf, at least one or an all-null page; io.EOF is the
// end of the column.
func (s *valueStream) load() error {
	s.pos, s.n = 0, 0
	for {
		if s.values == nil {
			parquet.Release(s.page)
			s.page = nil
			page, err := s.pages.ReadPage()
			if err != nil {
				return err
			}
			s.page = page
			if n := page.NumValues(); !s.list && n > 0 && page.NumNulls() == n {
				s.nulls = int(n)
				return nil
			}
			s.values = page.Values()
		}
		n, err := s.values.ReadValues(s.buf)
		if err != nil {
			s.values = nil
			if err != io.EOF {
				return err
			}
		}
		if s.n = n; n > 0 {
			return nil
		}
	}
}

func (s *valueStream) close() {
	if s.pages == nil {
		return
	}
	parquet.Release(s.page)
	s.pages.Close()
	*s = valueStream{buf: s.buf}
}
