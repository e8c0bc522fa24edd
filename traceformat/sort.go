package traceformat

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"
)

const (
	// sortMemory is what a sort holds before it spills, in bytes of encoded
	// rows.
	sortMemory = 48 << 20
	// sortSegment is the content of a segment of a run. Merging holds one of
	// each run.
	sortSegment = 64 << 10
	// sortFanIn is how many runs are merged at a time.
	sortFanIn = 64
)

// Copy writes the rows of r to w.
func Copy(w *Writer, r Reader) error {
	for row, err := range r.All() {
		if err != nil {
			return err
		}
		if err := w.Write(row); err != nil {
			return err
		}
	}
	return nil
}

// Sort writes the rows of r, in the order of (arrival, id, lap), to a new trace
// at path. It needs a fixed amount of memory, and disk next to path.
func Sort(r Reader, path string, opts ...WriteOption) error {
	sorted, err := Sorted(r, filepath.Dir(path))
	if err != nil {
		return err
	}
	defer sorted.Close()
	return writeSorted(sorted.All(), sorted.Header(), path, opts)
}

// writeSorted writes rows that are in order.
func writeSorted(rows iter.Seq2[*Row, error], h *Header, path string, opts []WriteOption) error {
	w, err := Create(path, h, append(slices.Clone(opts), RequireSorted())...)
	if err != nil {
		return err
	}
	defer w.Abort()
	var shift time.Duration
	var moved Row // one for all: a row on the heap for each was a tenth of an import
	for row, err := range rows {
		if err != nil {
			return err
		}
		if w.opts.rebase {
			if w.Rows() == 0 {
				shift = row.Arrival
				w.header.shift(shift)
			}
			moved = *row // the lists are shared, and only read
			moved.Arrival -= shift
			row = &moved
		}
		if err := w.Write(row); err != nil {
			return err
		}
	}
	return w.Close()
}

// shift moves the time zero by d.
func (h *Header) shift(d time.Duration) {
	if !h.Start.IsZero() {
		h.Start = h.Start.Add(d)
	}
	for i := range h.Clock.Steps {
		h.Clock.Steps[i].At -= d
	}
}

// Sorted returns a Reader of the rows of r in the order of (arrival, id, lap);
// rows with one key stay in the order in which they came. It reads all of r
// before it returns, holds a fixed amount of memory and spills to temporary
// files in dir, which are gone after Close. The caller still closes r.
func Sorted(r Reader, dir string) (Reader, error) {
	s := newSorter(dir, sortMemory)
	for row, err := range r.All() {
		if err == nil {
			err = s.add(row)
		}
		if err != nil {
			s.close()
			return nil, err
		}
	}
	h := r.Header().Clone()
	h.Sorted = true
	return &sortedReader{sorter: s, header: h}, nil
}

type sortedReader struct {
	*sorter
	header *Header
}

func (s *sortedReader) Header() *Header { return s.header }

func (s *sortedReader) All() iter.Seq2[*Row, error] { return s.rows() }

func (s *sortedReader) Close() error { return s.close() }

// A sorter orders any number of rows in bounded memory.
//
// It selects by replacement: a heap holds what fits, and where it is full its
// least row goes to the current run, so that rows that are only somewhat out of
// order, as those of a journal are, make a single run however many they are.
// Rows are kept encoded, as a journal keeps them; there are no row groups that
// could be copied without decoding, and merging runs needs kilobytes of each
// instead of pages of every column.
type sorter struct {
	dir    string
	budget int

	heap    sortHeap
	size    int // bytes of rows in the heap
	seq     int64
	run     int // number of the run being written
	out     *runWriter
	lastKey [3]int64 // of the last row that went to out
	runs    []*os.File
	row     rowDecoder
	buf     []byte
}

func newSorter(dir string, budget int) *sorter { return &sorter{dir: dir, budget: budget} }

// A sortItem is a row that waits for its turn.
type sortItem struct {
	run    int
	key    [3]int64
	seq    int64 // breaks ties, in the order of arrival
	fields []byte
	from   *runReader // while merging
}

// itemOverhead is about what an item costs beyond its fields.
const itemOverhead = 96

type sortHeap []sortItem

// before reports whether a comes out before b.
func (a *sortItem) before(b *sortItem) bool {
	switch {
	case a.run != b.run:
		return a.run < b.run
	case a.key != b.key:
		return less(a.key, b.key)
	default:
		return a.seq < b.seq
	}
}

// push adds an item. The heap is written out because container/heap boxes every
// item and swaps where a hole can be moved: on traces of narrow rows that was a
// third of a sort.
func (h *sortHeap) push(item sortItem) {
	*h = append(*h, item)
	a, i := *h, len(*h)-1
	for i > 0 {
		parent := (i - 1) / 2
		if !item.before(&a[parent]) {
			break
		}
		a[i] = a[parent]
		i = parent
	}
	a[i] = item
}

// pop removes and returns the least item.
func (h *sortHeap) pop() sortItem {
	a := *h
	least, last := a[0], len(a)-1
	item := a[last]
	a[last] = sortItem{}
	*h = a[:last]
	if last > 0 {
		(*h).sink(0, item)
	}
	return least
}

// sink puts item where the hole at i is, or below.
func (h sortHeap) sink(i int, item sortItem) {
	for {
		child := 2*i + 1
		if child >= len(h) {
			break
		}
		if right := child + 1; right < len(h) && h[right].before(&h[child]) {
			child = right
		}
		if !h[child].before(&item) {
			break
		}
		h[i] = h[child]
		i = child
	}
	h[i] = item
}

// init orders items that were appended.
func (h sortHeap) init() {
	for i := len(h)/2 - 1; i >= 0; i-- {
		h.sink(i, h[i])
	}
}

func (s *sorter) add(r *Row) error {
	s.buf = appendFields(s.buf[:0], r)
	if len(s.buf) > maxRow {
		return rowError("sort", s.seq, fmt.Errorf("takes more than %d bytes", maxRow))
	}
	item := sortItem{run: s.run, key: r.key(), seq: s.seq, fields: slices.Clone(s.buf)}
	s.seq++
	if s.out != nil && less(item.key, s.lastKey) {
		item.run++ // it missed this run
	}
	s.heap.push(item)
	s.size += len(item.fields) + itemOverhead
	for s.size > s.budget && len(s.heap) > 1 {
		if err := s.spill(); err != nil {
			return err
		}
	}
	return nil
}

// spill moves the least row to the run it belongs to.
func (s *sorter) spill() error {
	item := s.heap.pop()
	s.size -= len(item.fields) + itemOverhead
	if s.out != nil && item.run != s.run {
		if err := s.endRun(); err != nil {
			return err
		}
	}
	s.run = item.run
	if s.out == nil {
		out, err := newRunWriter(s.dir)
		if err != nil {
			return err
		}
		s.out = out
	}
	s.lastKey = item.key
	return s.out.add(item.fields)
}

func (s *sorter) endRun() error {
	if s.out == nil {
		return nil
	}
	file, err := s.out.finish()
	s.out = nil
	if err != nil {
		return errors.Join(err, closeTemp(file))
	}
	s.runs = append(s.runs, file)
	if len(s.runs) < sortFanIn {
		return nil
	}
	// Many runs become one. It is the oldest, so that ties keep their order.
	out, err := newRunWriter(s.dir)
	if err != nil {
		return err
	}
	for fields, err := range mergeRuns(s.runs) {
		if err == nil {
			err = out.add(fields)
		}
		if err != nil {
			return errors.Join(err, closeTemp(out.file))
		}
	}
	file, err = out.finish()
	if err != nil {
		return errors.Join(err, closeTemp(file))
	}
	err = s.closeRuns()
	s.runs = append(s.runs, file)
	return err
}

// rows yields everything in order, once.
func (s *sorter) rows() iter.Seq2[*Row, error] {
	return func(yield func(*Row, error) bool) {
		if s.out == nil && len(s.runs) == 0 {
			for len(s.heap) > 0 {
				row, err := s.row.decode(s.heap.pop().fields)
				if err != nil {
					yield(nil, fileError("sort", err))
					return
				}
				if !yield(row, nil) {
					return
				}
			}
			return
		}
		for len(s.heap) > 0 {
			if err := s.spill(); err != nil {
				yield(nil, fileError("sort", err))
				return
			}
		}
		s.heap = nil
		if err := s.endRun(); err != nil {
			yield(nil, fileError("sort", err))
			return
		}
		for fields, err := range mergeRuns(s.runs) {
			var row *Row
			if err == nil {
				row, err = s.row.decode(fields)
			}
			if err != nil {
				yield(nil, fileError("sort", err))
				return
			}
			if !yield(row, nil) {
				return
			}
		}
	}
}

func (s *sorter) closeRuns() error {
	var errs []error
	for _, f := range s.runs {
		errs = append(errs, closeTemp(f))
	}
	s.runs = nil
	return errors.Join(errs...)
}

func (s *sorter) close() error {
	err := s.closeRuns()
	if s.out != nil {
		err = errors.Join(err, closeTemp(s.out.file))
		s.out = nil
	}
	s.heap = nil
	return err
}

// key is what a sorted trace is sorted by.
func (r *Row) key() [3]int64 { return [3]int64{int64(r.Arrival), r.ID, int64(r.Lap)} }

// A runWriter writes one sorted run as segments.
type runWriter struct {
	file *os.File
	off  int64
	raw  []byte
	out  []byte
	rows int
}

func newRunWriter(dir string) (*runWriter, error) {
	f, err := os.CreateTemp(dir, ".reprise-sort-*")
	if err != nil {
		return nil, fmt.Errorf("spilling: %w", err)
	}
	if runtime.GOOS != "windows" {
		os.Remove(f.Name()) // it lives as long as it is open, even through kill -9
	}
	return &runWriter{file: f}, nil
}

func closeTemp(f *os.File) error {
	err := f.Close()
	if runtime.GOOS == "windows" {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	return err
}

func (w *runWriter) add(fields []byte) error {
	w.raw = appendCut(w.raw, fields)
	w.rows++
	if len(w.raw) >= sortSegment {
		return w.flush()
	}
	return nil
}

func (w *runWriter) flush() error {
	if w.rows == 0 {
		return nil
	}
	w.out = appendSegment(w.out[:0], segmentRows, w.rows, w.raw)
	if _, err := w.file.WriteAt(w.out, w.off); err != nil {
		return fmt.Errorf("spilling: %w", err)
	}
	w.off += int64(len(w.out))
	w.raw, w.rows = w.raw[:0], 0
	return nil
}

func (w *runWriter) finish() (*os.File, error) { return w.file, w.flush() }

// A runReader reads a run back.
type runReader struct {
	scan segmentScanner
	raw  []byte
}

// next returns the fields of the next row, valid until the one after, and
// io.EOF at the end.
func (r *runReader) next() ([]byte, error) {
	for len(r.raw) == 0 {
		g, err := r.scan.next()
		if err != nil {
			if err != io.EOF {
				err = fmt.Errorf("a spilled run is damaged: %w", err)
			}
			return nil, err
		}
		r.raw = g.raw
	}
	fields, rest, err := cutRow(r.raw)
	r.raw = rest
	return fields, err
}

// mergeRuns yields the fields of the rows of all runs in order. Runs are in the
// order of age, which breaks ties.
func mergeRuns(runs []*os.File) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		var h sortHeap
		for i, f := range runs {
			info, err := f.Stat()
			if err != nil {
				yield(nil, err)
				return
			}
			r := &runReader{scan: *newSegmentScanner(f, 0, info.Size())}
			item := sortItem{seq: int64(i), from: r}
			if err := item.advance(); err == io.EOF {
				continue
			} else if err != nil {
				yield(nil, err)
				return
			}
			h = append(h, item)
		}
		h.init()
		for len(h) > 0 {
			if !yield(h[0].fields, nil) {
				return
			}
			switch err := h[0].advance(); err {
			case nil:
				h.sink(0, h[0])
			case io.EOF:
				h.pop()
			default:
				yield(nil, err)
				return
			}
		}
	}
}

// advance moves an item to the next row of its run.
func (x *sortItem) advance() (err error) {
	if x.fields, err = x.from.next(); err != nil {
		return err
	}
	x.key, err = fieldsKey(x.fields)
	return err
}
