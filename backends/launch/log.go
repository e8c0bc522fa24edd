package launch

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
)

// Bounds of an engine's log: how it began, and how it ended.
const (
	logHead = 1 << 20
	logTail = 1 << 20
)

// A boundedLog writes the beginning of what it is given to one file and the end
// to two more that take turns, so that an engine that says a lot does not fill
// the disk. What was said last is on disk at any time.
type boundedLog struct {
	mu      sync.Mutex
	path    string
	file    *os.File
	n       int64 // in file
	head    bool  // file is the first one
	total   int64
	dropped int64
	err     error
}

func (l *boundedLog) tail(older bool) string {
	if older {
		return l.path + ".1"
	}
	return l.path + ".2"
}

func createLog(path string) (*boundedLog, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	l := &boundedLog{path: path, file: f, head: true}
	os.Remove(l.tail(true))
	os.Remove(l.tail(false))
	return l, nil
}

// Write never fails: the engine's output is taken from it, wherever it goes.
func (l *boundedLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := len(b)
	l.total += int64(all)
	for len(b) > 0 && l.err == nil {
		limit := int64(logTail / 2)
		if l.head {
			limit = logHead
		}
		part := b[:min(int64(len(b)), limit-l.n)]
		n, err := l.file.Write(part)
		l.n += int64(n)
		b = b[len(part):]
		if l.err = err; err == nil && l.n == limit {
			l.err = l.next()
		}
	}
	return all, nil
}

// next begins another file of the tail; the older one goes.
func (l *boundedLog) next() error {
	err := l.file.Close()
	if !l.head {
		if i, serr := os.Stat(l.tail(true)); serr == nil {
			l.dropped += i.Size()
		}
		err = errors.Join(err, os.Rename(l.tail(false), l.tail(true)))
	}
	f, cerr := os.Create(l.tail(false))
	l.file, l.n, l.head = f, 0, false
	return errors.Join(err, cerr)
}

func (l *boundedLog) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.err, l.file.Close())
}

// CopyLog writes what there is of the log at path to w: at most head bytes of
// its beginning and tail bytes of its end, with a line where some was left out.
func CopyLog(w io.Writer, path string, head, tail int64) error {
	var sizes [3]int64
	names := [3]string{path, path + ".1", path + ".2"}
	var total int64
	for i, n := range names {
		s, err := os.Stat(n)
		if errors.Is(err, fs.ErrNotExist) && i > 0 {
			continue
		}
		if err != nil {
			return err
		}
		sizes[i] = s.Size()
		total += s.Size()
	}
	// Where the older half of the tail is there, something between it and the
	// head may be gone already.
	gap := sizes[1] > 0
	copied := func(from, n int64) error { // of the three files in one
		for i, name := range names {
			if from >= sizes[i] {
				from -= sizes[i]
				continue
			}
			take := min(n, sizes[i]-from)
			if take <= 0 {
				break
			}
			f, err := os.Open(name)
			if err != nil {
				return err
			}
			_, err = io.Copy(w, io.NewSectionReader(f, from, take))
			f.Close()
			if err != nil {
				return err
			}
			n, from = n-take, 0
		}
		return nil
	}
	if total <= head+tail && !gap {
		return copied(0, total)
	}
	head = min(head, sizes[0])
	if err := copied(0, head); err != nil {
		return err
	}
	tail = min(tail, total-head)
	if _, err := fmt.Fprint(w, "\n... a part of the log was left out ...\n"); err != nil {
		return err
	}
	return copied(total-tail, tail)
}
