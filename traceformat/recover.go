package traceformat

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"reprise/internal/durable"
)

// Reasons for Header.Partial.
const (
	PartialInterrupted = "interrupted" // stopped before its end, on purpose
	PartialRecovered   = "recovered"   // saved from the journal of a program that died
)

// A Recovery says what [Recover] found in a journal.
type Recovery struct {
	Rows     int64    // saved
	Complete bool     // the journal was closed and nothing of it is lost
	Header   bool     // the header was saved
	Damage   []Damage // what could not be read, in file order
}

// Lost is how many bytes of the journal could not be read.
func (r *Recovery) Lost() int64 {
	var n int64
	for _, d := range r.Damage {
		n += d.Bytes
	}
	return n
}

// Damage is a stretch of a journal that cannot be read. The last one of a
// journal whose program died is often a segment it was writing.
type Damage struct {
	Offset, Bytes int64
	Err           error
}

func (d Damage) Error() string {
	return fmt.Sprintf("%d bytes at offset %d: %v", d.Bytes, d.Offset, d.Err)
}

func (d Damage) Unwrap() error { return d.Err }

// Seal turns a journal that was closed into a trace at path, sorted, and then
// removes the journal. Damage is an error and leaves the journal as it is:
// [Recover] saves what can be saved.
func Seal(journal, path string, opts ...WriteOption) error {
	j, err := readJournal(journal, path)
	if err != nil {
		return fileError(journal, err)
	}
	defer j.close()
	if len(j.Damage) > 0 {
		return fileError(journal, fmt.Errorf("%w; trace recover saves the rest", j.Damage[0]))
	}
	if !j.Complete {
		return fileError(journal, errors.New("was not closed: trace recover saves what it holds"))
	}
	return j.write(journal, path, opts)
}

// Recover turns a journal that its program did not close into a trace at path,
// sorted and marked as "recovered". It skips what is damaged and says so. The
// journal is removed where nothing of it was lost, and stays otherwise.
func Recover(journal, path string, opts ...WriteOption) (*Recovery, error) {
	j, err := readJournal(journal, path)
	if err != nil {
		return nil, fileError(journal, err)
	}
	defer j.close()
	if !j.Complete {
		j.header.Partial = PartialRecovered
	}
	if err := j.write(journal, path, opts); err != nil {
		return nil, err
	}
	return &j.Recovery, nil
}

// A journalContent is a journal whose rows wait in a sorter.
type journalContent struct {
	Recovery
	header *Header
	sorter *sorter
	file   *os.File
}

func (j *journalContent) close() {
	j.sorter.close()
	j.file.Close()
}

func (j *journalContent) write(journal, path string, opts []WriteOption) error {
	// What was recorded is what is here now; other counts stay.
	j.header.Rows.Recorded = 0
	if err := writeSorted(j.sorter.rows(), j.header, path, opts); err != nil {
		return err
	}
	if len(j.Damage) > 0 {
		return nil
	}
	if err := os.Remove(journal); err != nil {
		return fileError(journal, pathless(err))
	}
	return durable.SyncDir(filepath.Dir(journal))
}

// readJournal reads all of a journal, spilling next to path.
func readJournal(journal, path string) (_ *journalContent, err error) {
	file, err := os.Open(journal)
	if err != nil {
		return nil, pathless(err)
	}
	j := &journalContent{file: file, sorter: newSorter(filepath.Dir(path), sortMemory)}
	defer func() {
		if err != nil {
			j.close()
		}
	}()
	if err := durable.LockFile(file); err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, errors.New("is a directory, want a journal")
	}
	if err := j.scan(file, info.Size()); err != nil {
		return nil, err
	}
	return j, nil
}

// scan reads the segments of a journal of the given size.
func (j *journalContent) scan(src io.ReaderAt, size int64) error {
	if size == 0 {
		return ErrEmpty
	}
	magic := make([]byte, min(size, int64(len(journalMagic))))
	if _, err := src.ReadAt(magic, 0); err != nil {
		return readError(err)
	}
	s := newSegmentScanner(src, int64(len(magic)), size)
	if string(magic) != journalMagic[:len(magic)] {
		// One flipped bit here must not cost the recording: the segment that
		// follows vouches for what this is. A version it does not change.
		probe := newSegmentScanner(src, s.off, size)
		g, err := probe.next()
		if err != nil || g.kind != segmentHeader {
			return fmt.Errorf("%w: it does not start like a journal", ErrFormat)
		}
		if string(magic[:len(magic)-1]) == journalMagic[:len(journalMagic)-1] {
			var h Header
			if json.Unmarshal(g.raw, &h) == nil && h.Version != Version {
				return fmt.Errorf("%w %d of the journal, want %d", ErrVersion, magic[len(magic)-1], Version)
			}
		}
		j.Damage = append(j.Damage, Damage{0, int64(len(magic)), errors.New("the first bytes are not those of a journal")})
	}
	j.header = &Header{Version: Version}
	var row rowDecoder
	ended, rows := false, int64(0)
	for {
		at := s.off
		g, err := s.next()
		if err == io.EOF {
			break
		}
		if err == nil {
			err = j.segment(g, &row, &ended, &rows)
			if d, ok := errors.AsType[*segmentError](err); ok {
				j.Damage = append(j.Damage, Damage{at, s.off - at, d.err})
				continue
			}
			if err != nil {
				return err
			}
			continue
		}
		if errors.Is(err, os.ErrClosed) {
			return err
		}
		s.resync()
		j.Damage = append(j.Damage, Damage{at, s.off - at, err})
	}
	j.Rows = rows
	j.Complete = ended && len(j.Damage) == 0
	return nil
}

// A segmentError is what a whole segment with unusable content gives.
type segmentError struct{ err error }

func (e *segmentError) Error() string { return e.err.Error() }

func (j *journalContent) segment(g segment, row *rowDecoder, ended *bool, total *int64) error {
	*ended = false
	switch g.kind {
	case segmentHeader:
		h := new(Header)
		if err := json.Unmarshal(g.raw, h); err != nil {
			return &segmentError{fmt.Errorf("header: %w", err)}
		}
		if h.Version != Version {
			return fmt.Errorf("%w %d, want %d: a later release of reprise reads it", ErrVersion, h.Version, Version)
		}
		if err := h.Check(); err != nil {
			return &segmentError{err}
		}
		j.header, j.Header = h, true
	case segmentRows:
		raw := g.raw
		for i := range g.rows {
			fields, rest, err := cutRow(raw)
			var r *Row
			if err == nil {
				r, err = row.decode(fields)
			}
			if err == nil {
				err = r.Check()
			}
			if err != nil {
				return &segmentError{fmt.Errorf("row %d of the segment: %w", i, err)}
			}
			if err := j.sorter.add(r); err != nil {
				return err
			}
			*total++
			raw = rest
		}
		if len(raw) > 0 {
			return &segmentError{fmt.Errorf("%d bytes after the last row of the segment", len(raw))}
		}
	case segmentEnd:
		// After damage the count is off, which says nothing new.
		if len(j.Damage) == 0 && (len(g.raw) != 8 || binary.LittleEndian.Uint64(g.raw) != uint64(*total)) {
			return &segmentError{fmt.Errorf("the end does not count %d rows", *total)}
		}
		*ended = true
	}
	return nil
}
