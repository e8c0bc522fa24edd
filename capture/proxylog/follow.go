package proxylog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// pollEvery is how often files that have grown are looked at.
const pollEvery = 250 * time.Millisecond

// rotatedGrace is how long a file that was renamed away is read on: whoever
// writes it may not have opened the new one yet.
const rotatedGrace = 2 * time.Second

// A tail is a file that is read as it grows.
type tail struct {
	in   Input
	log  *log // nil: nothing could be opened yet
	file *os.File
	off  int64     // bytes read
	gone time.Time // since when another file, or none, has its name
}

// Read reads what is there. io.EOF is the end of what has been written: a later
// call finds what was added.
func (t *tail) Read(p []byte) (int, error) {
	n, err := t.file.Read(p)
	t.off += int64(n)
	return n, err
}

// Follow is Run for logs that are being written, as tail -F reads them: it reads
// what is there and then what is added, goes on with the new file where a log is
// rotated, and from the start where it is cut. It ends with the context, whose
// error it returns. A line without its end is left until the end comes.
func (im *Import) Follow(ctx context.Context, rec Recorder) (*Report, error) {
	e := im.emitter(rec)
	tails := make([]*tail, len(im.inputs))
	for i, in := range im.inputs {
		if in.Name == "standard input" {
			return &im.report, errors.New("standard input needs no --follow: it is read until it ends")
		}
		tails[i] = &tail{in: in}
	}
	im.Close() // it was opened to be told its dialect; the tails open it again
	defer func() {
		for _, t := range tails {
			im.end(t, e)
		}
	}()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		for _, t := range tails {
			if err := im.poll(ctx, t, e); err != nil {
				return &im.report, err
			}
		}
		im.report.Rows = e.found.String()
		select {
		case <-ctx.Done():
			// What was written until now belongs to the recording.
			for _, t := range tails {
				if err := im.poll(context.WithoutCancel(ctx), t, e); err != nil {
					return &im.report, err
				}
			}
			return &im.report, ctx.Err()
		case <-tick.C:
		}
	}
}

// poll reads what a log has grown by.
func (im *Import) poll(ctx context.Context, t *tail, e *Emitter) error {
	if t.log == nil {
		if err := im.reopen(t); err != nil || t.log == nil {
			return err
		}
	}
	if err := im.drain(ctx, t.log, e); err != nil {
		return err
	}
	now, err := os.Stat(t.in.Name)
	was, werr := t.file.Stat()
	switch {
	case werr != nil:
		return fmt.Errorf("%s: %w", t.in.Name, pathless(werr))
	case err == nil && os.SameFile(now, was):
		t.gone = time.Time{}
		if was.Size() < t.off { // cut in place: copytruncate
			im.end(t, e)
			return im.poll(ctx, t, e)
		}
	case t.gone.IsZero():
		t.gone = time.Now()
	case err == nil && time.Since(t.gone) >= rotatedGrace:
		im.end(t, e)
		return im.poll(ctx, t, e)
	}
	return nil
}

// reopen opens the file that has the name now. That there is none, or nothing in
// it, is no error: it will come.
func (im *Import) reopen(t *tail) error {
	f, err := os.Open(t.in.Name)
	if err != nil {
		return nil
	}
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		f.Close()
		return nil
	}
	t.file, t.off, t.gone = f, 0, time.Time{}
	l := &log{name: t.in.Name, file: f, frame: framer{src: t, follow: true}}
	if err := im.begin(l); err != nil {
		f.Close()
		if errors.Is(err, errNoSample) {
			return nil // its first line is not whole yet
		}
		return fmt.Errorf("%s: %w", t.in.Name, err)
	}
	t.log = l
	return nil
}

// end takes leave of a file: the last line may have no end.
func (im *Import) end(t *tail, e *Emitter) {
	if t.log == nil {
		return
	}
	t.log.frame.follow = false
	t.log.frame.eof = true
	// The error has been reported, or is that of a last line.
	_ = im.drain(context.Background(), t.log, e)
	t.log.parser.Flush(e)
	im.finish(t.log, e)
	t.log.close()
	t.log, t.file = nil, nil
}
