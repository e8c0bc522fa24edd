package proxy

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"reprise/traceformat"
)

// Files makes the outputs of a recording: Path itself if it is free and Roll is
// false, otherwise names with a sequence number in front of the extension, as
// trace.000001.parquet. A name that is taken, also by a journal, is passed over,
// so that neither a restart nor a second process writes over anything.
type Files struct {
	Path string
	Roll bool
	Log  *slog.Logger

	mu  sync.Mutex
	seq int
}

// split is the name around the sequence number.
func (f *Files) split() (stem, ext string) {
	ext = filepath.Ext(f.Path)
	return strings.TrimSuffix(f.Path, ext), ext
}

func (f *Files) name(seq int) string {
	stem, ext := f.split()
	return fmt.Sprintf("%s.%06d%s", stem, seq, ext)
}

// Open starts the next file.
func (f *Files) Open() (Output, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.Roll && f.seq == 0 {
		if out, err := f.create(f.Path); err == nil || !errors.Is(err, fs.ErrExist) {
			return out, err
		}
	}
	if f.seq == 0 {
		f.seq = f.newest()
	}
	for range 1000 {
		f.seq++
		if out, err := f.create(f.name(f.seq)); err == nil || !errors.Is(err, fs.ErrExist) {
			return out, err
		}
	}
	return nil, fmt.Errorf("%s: too many names are taken", f.name(f.seq))
}

// newest is the highest sequence number in use, 0 if there is none.
func (f *Files) newest() int {
	stem, ext := f.split()
	most := 0
	names, err := os.ReadDir(filepath.Dir(f.Path))
	if err != nil {
		return 0 // creating the file says why
	}
	for _, e := range names {
		s, ok := strings.CutPrefix(e.Name(), filepath.Base(stem)+".")
		if !ok {
			continue
		}
		digits, ok := strings.CutSuffix(strings.TrimSuffix(s, traceformat.JournalPath("")), ext)
		if n, err := strconv.Atoi(digits); ok && err == nil && len(digits) == 6 {
			most = max(most, n)
		}
	}
	return most
}

func (f *Files) create(path string) (Output, error) {
	if _, err := os.Lstat(path); err == nil {
		return nil, fs.ErrExist
	}
	journal := traceformat.JournalPath(path)
	j, err := traceformat.CreateJournal(journal, nil)
	if err != nil {
		return nil, err
	}
	// A journal holds no text, but it is nobody else's business either.
	if err := os.Chmod(journal, 0o600); err != nil {
		j.Close()
		os.Remove(journal)
		return nil, err
	}
	return &file{j, path}, nil
}

// Leftovers lists the journals that are there, before this process makes one.
func (f *Files) Leftovers() []string {
	stem, ext := f.split()
	names, err := os.ReadDir(filepath.Dir(f.Path))
	if err != nil {
		return nil // creating the file says why
	}
	var list []string
	for _, e := range names {
		name := filepath.Join(filepath.Dir(f.Path), e.Name())
		trace, ok := strings.CutSuffix(name, traceformat.JournalPath(""))
		if ok && (trace == f.Path || strings.HasPrefix(trace, stem+".") && strings.HasSuffix(trace, ext)) {
			list = append(list, name)
		}
	}
	return list
}

// Recover saves journals that an earlier process left behind when it was killed;
// one that a live process holds is left alone. The work is done on a thread that
// yields to all others.
func (f *Files) Recover(journals []string) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		background()
		for _, journal := range journals {
			f.recover(journal)
		}
	}()
	<-done
}

func (f *Files) recover(journal string) {
	trace := strings.TrimSuffix(journal, traceformat.JournalPath(""))
	r, err := traceformat.Recover(journal, trace, traceformat.Rebase())
	if err != nil {
		f.Log.Warn("a journal was left alone", "file", filepath.Base(journal), "error", err)
		return
	}
	if err := os.Chmod(trace, 0o600); err != nil {
		f.Log.Warn("the mode of a file could not be set", "file", filepath.Base(trace), "error", err)
	}
	f.Log.Info("an earlier recording was saved", "file", filepath.Base(trace), "rows", r.Rows, "lost_bytes", r.Lost())
}

// A file is a trace in the making: a journal until it is closed.
type file struct {
	*traceformat.Journal
	path string
}

func (f *file) Size() int64 {
	info, err := os.Stat(traceformat.JournalPath(f.path))
	if err != nil {
		return 0
	}
	return info.Size()
}

func (f *file) Close() error {
	if err := f.Journal.Close(); err != nil {
		return err
	}
	if err := traceformat.Seal(traceformat.JournalPath(f.path), f.path, traceformat.Rebase()); err != nil {
		return err
	}
	return os.Chmod(f.path, 0o600)
}
