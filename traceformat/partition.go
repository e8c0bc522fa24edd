package traceformat

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"reprise/internal/durable"
)

// A Partition is a way to lay the rows of a trace out in folders.
type Partition struct {
	Key   string        // name of the folders: key=value
	Width time.Duration // what one of them covers
	stamp string        // layout of its value, where the start is known
}

// Partitions are those there are.
var Partitions = []Partition{
	{Key: "hour", Width: time.Hour, stamp: "2006-01-02T15"},
	{Key: "day", Width: 24 * time.Hour, stamp: "2006-01-02"},
}

// A DatasetWriter writes a sorted trace as a folder of folders, one for each
// hour or day (UTC) that has rows: hour=2026-01-01T00/part-0.parquet, or
// hour=00000 on, counted from the start, where the trace does not know its date.
// All files keep the time axis of the whole, so that a query over all of them
// can go by arrival_ns. The folder appears under its name, whole, when Close
// returns nil. Memory does not grow with the trace.
type DatasetWriter struct {
	dir, temp string
	by        Partition
	header    *Header
	id        string
	w         *Writer
	bucket    int64
	parts     int
	rows      int64
	done      bool
}

// CreateDataset starts a dataset at dir, which must not exist.
func CreateDataset(dir string, h *Header, by Partition) (*DatasetWriter, error) {
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = fmt.Errorf("%w, and a folder is not written over", fs.ErrExist)
		}
		return nil, fileError(dir, pathless(err))
	}
	id := make([]byte, 16)
	rand.Read(id)
	dir = filepath.Clean(dir)
	temp := filepath.Join(filepath.Dir(dir), fmt.Sprintf(".%s.%d.tmp", filepath.Base(dir), os.Getpid()))
	if err := os.Mkdir(temp, 0o777); err != nil {
		return nil, fileError(dir, pathless(err))
	}
	return &DatasetWriter{dir: dir, temp: temp, by: by, header: h.Clone(), id: hex.EncodeToString(id)}, nil
}

// Header is what files that are not closed yet say, but for what they count
// themselves. Rows.Dropped goes to the last.
func (w *DatasetWriter) Header() *Header { return w.header }

// Rows returns how many rows were written.
func (w *DatasetWriter) Rows() int64 { return w.rows }

// Files returns how many files hold them.
func (w *DatasetWriter) Files() int { return w.parts }

// Write adds a row. Rows must come in order.
func (w *DatasetWriter) Write(r *Row) error {
	at := r.Arrival
	if !w.header.Start.IsZero() {
		// Truncate counts from year 1, and hours and days of UTC start with it.
		at += w.header.Start.Sub(w.header.Start.Truncate(w.by.Width))
	}
	if bucket := int64(at / w.by.Width); w.w != nil && bucket < w.bucket {
		return rowError(w.dir, w.rows, ErrUnsorted)
	} else if w.w == nil || bucket != w.bucket {
		if err := w.closePart(); err != nil {
			return err
		}
		w.bucket = bucket
		if err := w.openPart(); err != nil {
			return err
		}
	}
	if err := w.w.Write(r); err != nil {
		return err
	}
	w.rows++
	return nil
}

// bounds is what the current folder covers, on the axis of the trace.
func (w *DatasetWriter) bounds() (from, to time.Duration) {
	from = time.Duration(w.bucket) * w.by.Width
	if s := w.header.Start; !s.IsZero() {
		from -= s.Sub(s.Truncate(w.by.Width))
	}
	return from, from + w.by.Width
}

func (w *DatasetWriter) openPart() error {
	value := fmt.Sprintf("%05d", w.bucket)
	if s := w.header.Start; !s.IsZero() {
		value = s.UTC().Truncate(w.by.Width).Add(time.Duration(w.bucket) * w.by.Width).Format(w.by.stamp)
	}
	folder := filepath.Join(w.temp, w.by.Key+"="+value)
	if err := os.Mkdir(folder, 0o777); err != nil {
		return fileError(w.dir, err)
	}
	var err error
	if w.w, err = Create(filepath.Join(folder, "part-0.parquet"), nil, RequireSorted()); err == nil {
		w.w.part = true
	}
	return err
}

// closePart ends the current file with the header as it is.
func (w *DatasetWriter) closePart() error {
	if w.w == nil {
		return nil
	}
	h := w.header.Clone()
	if !w.done {
		h.Rows = Counts{}
	} else {
		h.Rows = Counts{Dropped: h.Rows.Dropped}
	}
	from, to := w.bounds()
	steps := h.Clock.Steps[:0]
	for _, s := range h.Clock.Steps {
		if s.At >= from && s.At < to {
			steps = append(steps, s)
		}
	}
	h.Clock.Steps = steps
	if h.Extra == nil {
		h.Extra = map[string]string{}
	}
	h.Extra[DatasetID], h.Extra[DatasetPart] = w.id, fmt.Sprint(w.parts)
	*w.w.Header() = *h
	w.parts++
	part := w.w
	w.w = nil
	if err := part.Close(); err != nil {
		return err
	}
	return durable.SyncDir(w.temp)
}

// Close ends the last file and gives the folder its name.
func (w *DatasetWriter) Close() error {
	if w.done {
		return nil
	}
	if w.w == nil { // a dataset without rows still has a header
		w.bucket = 0
		if err := w.openPart(); err != nil {
			w.Abort()
			return err
		}
	}
	w.done = true
	err := w.closePart()
	if err == nil {
		if _, e := os.Lstat(w.dir); !errors.Is(e, fs.ErrNotExist) {
			err = fileError(w.dir, fmt.Errorf("%w, made while the trace was written", fs.ErrExist))
		} else if err = os.Rename(w.temp, w.dir); err == nil {
			err = durable.SyncDir(filepath.Dir(w.dir))
		}
	}
	if err != nil {
		os.RemoveAll(w.temp)
	}
	return err
}

// Abort gives the dataset up and leaves nothing behind. After Close it does
// nothing, so that it can be deferred.
func (w *DatasetWriter) Abort() {
	if w.done {
		return
	}
	w.done = true
	if w.w != nil {
		w.w.Abort()
	}
	os.RemoveAll(w.temp)
}
