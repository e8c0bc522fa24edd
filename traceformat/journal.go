package traceformat

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"reprise/internal/durable"
)

const (
	// journalMagic starts a journal; its last byte is the version.
	journalMagic = "RPRJRNL\x01"

	// A segment is written when this much has gathered, and in any case at
	// the next sync.
	journalSegment = 256 << 10
	// journalPending is what Append lets gather in front of a slow disk before
	// it waits.
	journalPending = 16 << 20
	// journalSync is how often what was written is synced. With the time that
	// takes, a row is safe within a second.
	journalSync = 500 * time.Millisecond
)

// JournalPath is where the journal of the trace at path lies.
func JournalPath(path string) string { return path + ".journal" }

// A Journal holds a recording while it is made: rows in the order in which they
// were completed, safe from a crash within a second. [Seal] turns it into a
// trace, [Recover] does so after a crash.
//
// All methods may be called concurrently. A Journal owns one goroutine, which
// writes and syncs, and ends with Close.
type Journal struct {
	path string
	file journalFile

	io   sync.Mutex // held while writing; taken before mu
	off  int64      // end of the last whole segment; under io
	out  []byte     // under io
	raw  []byte     // under io: what is being written
	sync bool       // under io: something is written and not synced

	mu      sync.Mutex
	drained sync.Cond
	buf     []byte // rows that are not written
	rows    int    // in buf
	row     []byte // scratch
	total   int64  // rows appended
	header  *Header
	err     error // of the last attempt to write
	dead    bool  // err is for good
	closed  bool

	kick, stop chan struct{}
	stopped    sync.WaitGroup
}

// A journalFile is what a Journal needs of an *os.File.
type journalFile interface {
	io.WriterAt
	Sync() error
	Truncate(int64) error
	Close() error
}

// CreateJournal starts a journal at path, which must not exist. h is copied.
func CreateJournal(path string, h *Header) (*Journal, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		if errors.Is(err, fs.ErrExist) {
			err = fmt.Errorf("%w: trace recover %s saves what it holds", fs.ErrExist, path)
		}
		return nil, fileError(path, pathless(err))
	}
	if err := durable.LockFile(file); err != nil {
		file.Close()
		return nil, fileError(path, err)
	}
	j, err := newJournal(path, file, h)
	if err == nil {
		err = durable.SyncDir(filepath.Dir(path))
	}
	if err != nil {
		file.Close()
		os.Remove(path)
		return nil, fileError(path, pathless(err))
	}
	j.stopped.Go(j.run)
	return j, nil
}

// newJournal writes what comes before the rows.
func newJournal(path string, file journalFile, h *Header) (*Journal, error) {
	j := &Journal{path: path, file: file, kick: make(chan struct{}, 1), stop: make(chan struct{})}
	j.drained.L = &j.mu
	if h == nil {
		h = new(Header)
	}
	if err := h.Check(); err != nil {
		return nil, err
	}
	b, err := headerSegment(nil, h)
	if err != nil {
		return nil, err
	}
	// The header comes twice, so that damage to one costs nothing.
	b = append(append([]byte(journalMagic), b...), b...)
	if err := j.write(b); err != nil {
		return nil, err
	}
	return j, file.Sync()
}

func headerSegment(b []byte, h *Header) ([]byte, error) {
	c := h.Clone()
	c.Version = Version
	raw, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	return appendSegment(b, segmentHeader, 0, raw), nil
}

// Append adds a row. It returns once the row is copied; within a second it is
// on the disk. Where the disk has fallen far behind, Append waits for it.
//
// A row that [Row.Check] objects to is refused. Any other error is that of the
// disk: the row is not taken, rows taken before are kept and written as soon
// as that succeeds again.
func (j *Journal) Append(r *Row) error {
	if err := r.Check(); err != nil {
		return rowError(j.path, j.Rows(), err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	for len(j.buf) >= journalPending && j.err == nil && !j.closed {
		j.drained.Wait()
	}
	switch {
	case j.closed:
		return fileError(j.path, fs.ErrClosed)
	case j.err != nil:
		return fileError(j.path, j.err)
	}
	j.row = appendFields(j.row[:0], r)
	if len(j.row) > maxRow {
		return rowError(j.path, j.total, fmt.Errorf("takes more than %d bytes", maxRow))
	}
	j.buf = appendCut(j.buf, j.row)
	j.rows++
	j.total++
	if len(j.buf) >= journalSegment {
		select {
		case j.kick <- struct{}{}:
		default:
		}
	}
	return nil
}

// Rows returns how many rows were taken.
func (j *Journal) Rows() int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.total
}

// SetHeader replaces the header, from the next write on: counts and the reason
// for a partial recording are only known late.
func (j *Journal) SetHeader(h *Header) error {
	if err := h.Check(); err != nil {
		return fileError(j.path, err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.header = h.Clone()
	return nil
}

// Sync returns when all rows taken so far are on the disk.
func (j *Journal) Sync() error {
	if err := j.flush(true); err != nil {
		return fileError(j.path, err)
	}
	return nil
}

// Close writes and syncs what is left and marks the clean end.
func (j *Journal) Close() error {
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return nil
	}
	j.closed = true
	j.drained.Broadcast()
	j.mu.Unlock()
	close(j.stop)
	j.stopped.Wait()

	err := j.flush(true)
	if err == nil {
		err = j.finish()
	}
	if e := j.file.Close(); err == nil {
		err = e
	}
	if err != nil {
		return fileError(j.path, pathless(err))
	}
	return nil
}

func (j *Journal) finish() error {
	j.io.Lock()
	defer j.io.Unlock()
	raw := binary.LittleEndian.AppendUint64(nil, uint64(j.total))
	if err := j.write(appendSegment(nil, segmentEnd, 0, raw)); err != nil {
		return err
	}
	return j.file.Sync()
}

// run writes and syncs until the journal is closed.
func (j *Journal) run() {
	tick := time.NewTicker(journalSync)
	defer tick.Stop()
	for {
		// The error stays with the journal, which reports it at Append.
		select {
		case <-j.stop:
			return
		case <-j.kick:
			j.flush(false)
		case <-tick.C:
			j.flush(true)
		}
	}
}

// flush writes the rows that have gathered, and syncs them if asked to. Rows
// that could not be written are put back.
func (j *Journal) flush(sync bool) error {
	j.io.Lock()
	defer j.io.Unlock()
	j.mu.Lock()
	if j.dead {
		defer j.mu.Unlock()
		return j.err
	}
	j.raw, j.buf = j.buf, j.raw[:0]
	rows, header := j.rows, j.header
	j.rows, j.header = 0, nil
	j.mu.Unlock()

	err := j.writeRows(rows, header)
	dead := false
	if err == nil && sync && j.sync {
		// A failed sync may have dropped what it was to write, and a second
		// one would not say so.
		if err = j.file.Sync(); err != nil {
			dead = true
		} else {
			j.sync = false
		}
	}

	j.mu.Lock()
	defer j.mu.Unlock()
	j.err, j.dead = pathless(err), dead
	if err != nil && !dead {
		j.buf = append(j.raw, j.buf...)
		j.raw = nil
		j.rows += rows
		if j.header == nil {
			j.header = header
		}
	}
	j.drained.Broadcast()
	return j.err
}

// writeRows writes raw as segments of a size that readers accept.
func (j *Journal) writeRows(rows int, header *Header) error {
	j.out = j.out[:0]
	var err error
	for raw := j.raw; len(raw) > 0; {
		n, size := 0, 0
		for size < journalSegment && size < len(raw) {
			_, rest, err := cutRow(raw[size:])
			if err != nil {
				return err
			}
			size = len(raw) - len(rest)
			n++
		}
		j.out = appendSegment(j.out, segmentRows, n, raw[:size])
		raw = raw[size:]
		rows -= n
	}
	if rows != 0 {
		return fmt.Errorf("%d rows are unaccounted for", rows)
	}
	if header != nil {
		if j.out, err = headerSegment(j.out, header); err != nil {
			return err
		}
	}
	if len(j.out) == 0 {
		return nil
	}
	return j.write(j.out)
}

// write appends whole segments, or nothing.
func (j *Journal) write(b []byte) error {
	n, err := j.file.WriteAt(b, j.off)
	if err != nil {
		if n > 0 {
			// Without this a reader finds a torn segment, which costs
			// nothing but a warning.
			err = errors.Join(err, j.file.Truncate(j.off))
		}
		return err
	}
	j.off += int64(len(b))
	j.sync = true
	return nil
}
