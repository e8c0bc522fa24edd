package gpu

import (
	"bufio"
	"container/heap"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"time"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress/zstd"

	"reprise/internal/durable"
	"reprise/traceformat"
)

// FileName is the name of the telemetry in a run directory.
const FileName = "telemetry.parquet"

const (
	// groupRows is the most rows of a row group.
	groupRows = 131072
	// sortRows is how far out of order samples may be written and still end up
	// sorted: samples of other hosts come late by seconds. At a thousand samples
	// a second this is two minutes.
	sortRows = 131072
	// infoKey is the footer key that holds the FileInfo as JSON.
	infoKey = "reprise.telemetry"
)

// A fileRow is a row of telemetry.parquet. METRICS.md documents the columns.
type fileRow struct {
	Time   int64   `parquet:"time_ns,delta"`
	Source string  `parquet:"source,dict"`
	Device string  `parquet:"device,dict"`
	Metric string  `parquet:"metric,dict"`
	Attr   string  `parquet:"attr,dict"`
	Unit   string  `parquet:"unit,dict"`
	Value  float64 `parquet:"value"`
	Late   *int64  `parquet:"late_ns,optional"`
	Note   *string `parquet:"note,optional,dict"`
}

// WriteFile writes samples that are at hand as Parquet to path, which must not
// exist, under another name until all of it is on the disk. Version and Sorted
// of info are its own. While a run goes on, a [Writer] takes the samples.
func WriteFile(path string, info FileInfo, samples iter.Seq[Sample]) (err error) {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s: %w", path, fs.ErrExist)
	}
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return err
	}
	defer func() {
		if p := recover(); p != nil { // what the library does on some errors
			err = fmt.Errorf("%s: writing Parquet: %v", path, p)
		}
		if err != nil {
			file.Close()
			os.Remove(file.Name())
		}
	}()
	// CreateTemp makes it private; a run directory is as open as its other files.
	if err := file.Chmod(0o644); err != nil {
		return err
	}
	buf := bufio.NewWriterSize(file, 1<<20)
	pq := parquet.NewGenericWriter[fileRow](buf,
		parquet.Compression(&zstd.Codec{Level: zstd.SpeedFastest}),
		parquet.MaxRowsPerRowGroup(groupRows),
		parquet.CreatedBy("reprise", fmt.Sprint(FormatVersion), ""))
	batch := make([]fileRow, 0, 512)
	var rows int64
	last, sorted := time.Duration(-1<<63), true
	put := func(s Sample) error {
		sorted = sorted && s.Time >= last
		last = s.Time
		batch = append(batch, toRow(&s))
		rows++
		if len(batch) < cap(batch) {
			return nil
		}
		_, err := pq.Write(batch)
		batch = batch[:0]
		return err
	}
	var h sampleHeap
	var order int64
	for s := range samples {
		order++
		heap.Push(&h, heapItem{s, order})
		if len(h) > sortRows {
			if err := put(heap.Pop(&h).(heapItem).Sample); err != nil {
				return err
			}
		}
	}
	for len(h) > 0 {
		if err := put(heap.Pop(&h).(heapItem).Sample); err != nil {
			return err
		}
	}
	if _, err := pq.Write(batch); err != nil {
		return err
	}
	info.Version, info.Sorted = FormatVersion, sorted
	text, err := json.Marshal(info)
	if err != nil {
		return err
	}
	pq.SetKeyValueMetadata(infoKey, string(text))
	if err := errors.Join(pq.Close(), buf.Flush(), file.Sync()); err != nil {
		return err
	}
	// The library has lost values on writing before: count them.
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	back, err := parquet.OpenFile(file, size, parquet.SkipPageIndex(true), parquet.SkipBloomFilters(true))
	if err != nil {
		return fmt.Errorf("%s: reading it back: %w", path, err)
	}
	if n := back.NumRows(); n != rows {
		return fmt.Errorf("%s: reading it back: it holds %d rows, %d were written", path, n, rows)
	}
	if err := file.Close(); err != nil {
		return err
	}
	if err := os.Rename(file.Name(), path); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}

func toRow(s *Sample) fileRow {
	r := fileRow{int64(s.Time), s.Source, s.Device, s.Metric, s.Attr, s.Unit, s.Value, nil, nil}
	if s.Late > 0 {
		r.Late = (*int64)(&s.Late)
	}
	if s.Note != "" {
		r.Note = &s.Note
	}
	return r
}

// A sampleHeap sorts by time, and samples of one time by when they came.
type sampleHeap []heapItem

type heapItem struct {
	Sample
	order int64
}

func (h sampleHeap) Len() int      { return len(h) }
func (h sampleHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h sampleHeap) Less(i, j int) bool {
	if h[i].Time != h[j].Time {
		return h[i].Time < h[j].Time
	}
	return h[i].order < h[j].order
}
func (h *sampleHeap) Push(x any) { *h = append(*h, x.(heapItem)) }
func (h *sampleHeap) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	(*h)[last] = heapItem{}
	*h = (*h)[:last]
	return x
}

// A Reader reads a telemetry file.
type Reader struct {
	path string
	file *os.File
	info FileInfo
	pq   *parquet.File
}

// Open opens a telemetry file, or the one in a run directory.
func Open(path string) (*Reader, error) {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		path = filepath.Join(path, FileName)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	r := &Reader{path: path, file: file}
	if err := r.open(); err != nil {
		file.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

func (r *Reader) open() (err error) {
	defer guard(&err)
	st, err := r.file.Stat()
	if err != nil {
		return err
	}
	r.pq, err = parquet.OpenFile(r.file, st.Size(), parquet.SkipPageIndex(true), parquet.SkipBloomFilters(true))
	if err != nil {
		return fmt.Errorf("%w: %v", traceformat.ErrFormat, err)
	}
	text, ok := r.pq.Lookup(infoKey)
	if !ok {
		return fmt.Errorf("%w: it is Parquet, but no telemetry", traceformat.ErrFormat)
	}
	if err := json.Unmarshal([]byte(text), &r.info); err != nil {
		return fmt.Errorf("footer: %w", err)
	}
	if r.info.Version != FormatVersion {
		return fmt.Errorf("%w %d, want %d: a later release of reprise reads it", traceformat.ErrVersion, r.info.Version, FormatVersion)
	}
	return nil
}

// guard turns a panic of the Parquet library on a damaged file into an error.
func guard(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%w: unreadable Parquet: %v", traceformat.ErrFormat, p)
	}
}

// Info is what the file says of itself.
func (r *Reader) Info() FileInfo { return r.info }

// Rows is how many samples the file holds.
func (r *Reader) Rows() int64 { return r.pq.NumRows() }

// All yields the samples in file order, which is that of time where Info says
// Sorted. Times count from the run's zero; they are negative before it. An error
// comes with a zero Sample and ends the sequence.
func (r *Reader) All() iter.Seq2[Sample, error] {
	return func(yield func(Sample, error) bool) {
		stopped := false
		err := r.each(func(s Sample) bool {
			stopped = !yield(s, nil)
			return !stopped
		})
		if err != nil && !stopped {
			yield(Sample{}, fmt.Errorf("%s: %w", r.path, err))
		}
	}
}

func (r *Reader) each(yield func(Sample) bool) error {
	rows := parquet.NewGenericReader[fileRow](r.pq)
	defer rows.Close()
	batch := make([]fileRow, 256)
	for {
		n, err := readBatch(rows, batch)
		for i := range n {
			f := &batch[i]
			s := Sample{time.Duration(f.Time), f.Source, f.Device, f.Metric, f.Attr, f.Unit, f.Value, 0, ""}
			if f.Late != nil {
				s.Late = time.Duration(*f.Late)
			}
			if f.Note != nil {
				s.Note = *f.Note
			}
			if !yield(s) {
				return nil
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func readBatch(rows *parquet.GenericReader[fileRow], batch []fileRow) (n int, err error) {
	defer guard(&err)
	clear(batch)
	return rows.Read(batch)
}

// Close closes the file.
func (r *Reader) Close() error { return r.file.Close() }
