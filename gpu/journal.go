package gpu

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"

	"reprise/internal/durable"
	"reprise/traceformat"
)

const (
	// journalMark is the first line of a journal: its format and version.
	journalMark = "reprise-telemetry"
	// FormatVersion is the version of the file and of its journal.
	FormatVersion = 1

	// A zstd frame is written when this much has gathered, and at each sync.
	frameSize = 256 << 10
	// maxFrame bounds what a reader unpacks at once.
	maxFrame = 4 << 20
	// maxPending is what gathers in front of a disk that does not take it,
	// before samples are dropped: telemetry waits for nobody, and nobody for it.
	maxPending = 8 << 20
	// syncEvery, with the time that a sync takes, keeps a sample's way to the
	// disk within a second.
	syncEvery = 500 * time.Millisecond
)

// frameMagic starts every zstd frame (RFC 8878, 3.1.1).
var frameMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}

// FileInfo is what a telemetry file says of itself.
type FileInfo struct {
	Version int `json:"version"`
	// Start is the wall time of the run's zero, for people; zero if unknown.
	Start   time.Time `json:"start,omitzero"`
	Program string    `json:"program,omitempty"` // version of what wrote it
	// Partial is traceformat.PartialRecovered where the program that wrote it
	// died.
	Partial string         `json:"partial,omitempty"`
	Sources []SourceStatus `json:"sources,omitempty"`
	// Dropped samples could not be written.
	Dropped int64 `json:"dropped,omitempty"`
	// Sorted says whether the file's rows are in order of time.
	Sorted bool `json:"sorted"`
}

// A journalLine is a line of the journal: one of its fields.
type journalLine struct {
	Mark    string        `json:"mark,omitempty"`
	Version int           `json:"version,omitempty"`
	Zero    time.Duration `json:"zero_ns,omitempty"`
	Start   *time.Time    `json:"start,omitempty"`
	Info    *FileInfo     `json:"info,omitempty"`
	End     int64         `json:"end,omitempty"` // samples plus one: a clean end
	Sample  *sampleLine   `json:"s,omitempty"`
}

// A sampleLine is a Sample in the journal and in an agent's answer.
type sampleLine struct {
	Time   int64   `json:"t"` // ns
	Source string  `json:"src,omitempty"`
	Device string  `json:"dev,omitempty"`
	Metric string  `json:"m"`
	Attr   string  `json:"a,omitempty"`
	Unit   string  `json:"u,omitempty"`
	Value  float64 `json:"v"`
	Late   int64   `json:"late,omitempty"` // ns
	Note   string  `json:"n,omitempty"`
}

// MarshalJSON writes s as one short object, for journals and agents.
func (s Sample) MarshalJSON() ([]byte, error) {
	return json.Marshal(sampleLine{int64(s.Time), s.Source, s.Device, s.Metric, s.Attr, s.Unit, s.Value, int64(s.Late), s.Note})
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (s *Sample) UnmarshalJSON(b []byte) error {
	var l sampleLine
	if err := json.Unmarshal(b, &l); err != nil {
		return err
	}
	if l.Metric == "" {
		return errors.New("a sample without a metric")
	}
	*s = l.sample()
	return nil
}

func (l *sampleLine) sample() Sample {
	return Sample{time.Duration(l.Time), l.Source, l.Device, l.Metric, l.Attr, l.Unit, l.Value, time.Duration(l.Late), clipNote(l.Note)}
}

// JournalPath is where the journal of the telemetry file at path lies while
// the file is made.
func JournalPath(path string) string { return traceformat.JournalPath(path) }

// A Writer writes a telemetry file. Samples go to a journal beside it, which
// is on the disk within a second; Close turns the journal into Parquet, and
// [Recover] does so after a crash.
//
// A journal is a sequence of zstd frames of JSON lines, so that zstdcat shows
// what a dead program left behind.
//
// All methods may be called concurrently. A Writer owns one goroutine, which
// ends with Close.
type Writer struct {
	path string
	file *os.File
	enc  *zstd.Encoder

	io    sync.Mutex // held while writing; taken before mu
	off   int64
	raw   []byte // under io: what is being written
	out   []byte
	dirty bool // written and not synced
	dead  bool // a sync failed: what it was to write may be gone

	mu      sync.Mutex
	buf     []byte
	writing int   // bytes that are on their way to the file
	total   int64 // samples taken
	dropped int64
	err     error // of the last write
	closed  bool

	kick, stop chan struct{}
	stopped    sync.WaitGroup
}

// Create starts a telemetry file at path, which must not exist, nor its journal.
func Create(path string) (*Writer, error) {
	for _, p := range []string{path, JournalPath(path)} {
		if _, err := os.Lstat(p); err == nil {
			return nil, fmt.Errorf("%s: %w", p, fs.ErrExist)
		}
	}
	file, err := os.OpenFile(JournalPath(path), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return nil, err
	}
	// The window is that of a frame: more would be memory for nothing.
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(frameSize))
	if err == nil {
		err = durable.LockFile(file)
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	w := &Writer{path: path, file: file, enc: enc, kick: make(chan struct{}, 1), stop: make(chan struct{})}
	w.line(journalLine{Mark: journalMark, Version: FormatVersion})
	if err := w.flush(true); err != nil {
		file.Close()
		os.Remove(file.Name())
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	w.stopped.Go(w.run)
	return w, nil
}

// line adds a line to the buffer. It cannot fail: no line holds a number that
// JSON has none for.
func (w *Writer) line(l journalLine) {
	b, err := json.Marshal(l)
	if err != nil {
		panic("gpu: " + err.Error())
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = append(append(w.buf, b...), '\n')
}

// Add takes a sample. It never waits for the disk: where that does not keep up,
// samples are dropped and counted.
func (w *Writer) Add(s Sample) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || len(w.buf)+w.writing >= maxPending {
		w.dropped++
		return
	}
	n := len(w.buf)
	b, err := json.Marshal(journalLine{Sample: &sampleLine{int64(s.Time), s.Source, s.Device, s.Metric, s.Attr, s.Unit, s.Value, int64(s.Late), s.Note}})
	if err != nil || len(b) > maxLine {
		w.dropped++
		return
	}
	w.buf = append(append(w.buf, b...), '\n')
	w.total++
	if n < frameSize && len(w.buf) >= frameSize {
		select {
		case w.kick <- struct{}{}:
		default:
		}
	}
}

// maxLine bounds a line of a journal.
const maxLine = 64 << 10

// SetZero says where the run's zero lies on the clock of Sample.Time, and what
// the wall clock said then. It may be called at any time before Close; without
// it the file's times are those of the samples.
func (w *Writer) SetZero(zero time.Duration, start time.Time) {
	w.line(journalLine{Zero: zero, Start: &start})
}

// SetInfo says what else the file is to say of itself. Start, Dropped and Sorted
// are the Writer's.
func (w *Writer) SetInfo(info FileInfo) {
	w.line(journalLine{Info: &info})
}

// Dropped is how many samples were not kept.
func (w *Writer) Dropped() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dropped
}

// Err is why the journal cannot be written at the moment, or nil.
func (w *Writer) Err() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *Writer) run() {
	tick := time.NewTicker(syncEvery)
	defer tick.Stop()
	for {
		// An error stays in w.err; the next flush tries again.
		select {
		case <-w.stop:
			return
		case <-w.kick:
			w.flush(false)
		case <-tick.C:
			w.flush(true)
		}
	}
}

// flush writes what has gathered. What could not be written is put back.
func (w *Writer) flush(sync bool) error {
	w.io.Lock()
	defer w.io.Unlock()
	w.mu.Lock()
	if w.dead {
		defer w.mu.Unlock()
		return w.err
	}
	w.raw, w.buf = w.buf, w.raw[:0]
	w.writing = len(w.raw)
	w.mu.Unlock()

	w.out = w.out[:0]
	for raw := w.raw; len(raw) > 0; {
		cut := len(raw)
		if cut > frameSize {
			// A frame ends with a line, so that losing one loses whole samples.
			cut = bytes.IndexByte(raw[frameSize:], '\n') + frameSize + 1
		}
		w.out = w.enc.EncodeAll(raw[:cut], w.out)
		raw = raw[cut:]
	}
	var err error
	if len(w.out) > 0 {
		if _, err = w.file.WriteAt(w.out, w.off); err == nil {
			w.off += int64(len(w.out))
			w.dirty = true
		} else {
			err = errors.Join(err, w.file.Truncate(w.off))
		}
	}
	dead := false
	if err == nil && sync && w.dirty {
		if err = w.file.Sync(); err == nil {
			w.dirty = false
		} else {
			dead = true
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.err, w.dead, w.writing = err, dead, 0
	if err != nil && !dead {
		w.buf = append(w.raw, w.buf...)
		w.raw = nil
	}
	return err
}

// Close ends the journal, writes the Parquet file from it and removes it.
func (w *Writer) Close() error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return nil
	}
	w.closed = true
	total, dropped := w.total, w.dropped
	w.mu.Unlock()
	close(w.stop)
	w.stopped.Wait()
	w.line(journalLine{End: total + 1, Info: &FileInfo{Dropped: dropped}})
	err := w.flush(true)
	if e := w.file.Close(); err == nil {
		err = e
	}
	w.enc.Close()
	if err != nil {
		return fmt.Errorf("%s: %w", JournalPath(w.path), err)
	}
	r, err := Recover(JournalPath(w.path), w.path)
	if err == nil && !r.Complete {
		err = fmt.Errorf("%s: %d of %d samples are readable", w.path, r.Samples, total)
	}
	return err
}

// A Recovery says what [Recover] found.
type Recovery struct {
	Samples  int64
	Complete bool  // the journal was closed and nothing of it is lost
	Lost     int64 // bytes that could not be read
}

// Recover turns a journal into the telemetry file at path, which must not
// exist. What is damaged is left out, and the journal kept; a journal that was
// read as a whole is removed.
func Recover(journal, path string) (*Recovery, error) {
	file, err := os.Open(journal)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if err := durable.LockFile(file); err != nil {
		return nil, fmt.Errorf("%s: %w", journal, err)
	}
	// Twice: the zero, which every time is counted from, may come late.
	meta := &journalReader{src: file}
	for range meta.lines() {
	}
	if !meta.marked {
		return nil, fmt.Errorf("%s: %w: it does not start like telemetry", journal, traceformat.ErrFormat)
	}
	r := &Recovery{Samples: meta.samples, Lost: meta.lost}
	r.Complete = meta.ended && meta.lost == 0 && meta.end == meta.samples
	if !r.Complete {
		meta.info.Partial = traceformat.PartialRecovered
	}
	again := &journalReader{src: file}
	if err := WriteFile(path, meta.info, func(yield func(Sample) bool) {
		for s := range again.lines() {
			s.Time -= meta.zero
			if !yield(s) {
				return
			}
		}
	}); err != nil {
		return nil, err
	}
	if meta.lost > 0 {
		return r, nil
	}
	if err := os.Remove(journal); err != nil {
		return r, err
	}
	return r, durable.SyncDir(filepath.Dir(path))
}

// A journalReader reads a journal from its start.
type journalReader struct {
	src     io.ReaderAt
	marked  bool
	info    FileInfo
	zero    time.Duration
	samples int64
	ended   bool
	end     int64
	lost    int64
}

// lines yields the samples of the journal and gathers the rest.
func (j *journalReader) lines() func(yield func(Sample) bool) {
	return func(yield func(Sample) bool) {
		dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxFrame))
		if err != nil {
			panic(err) // the options are constant
		}
		defer dec.Close()
		var raw []byte
		frames(j.src, func(frame []byte) (ok, more bool) {
			var err error
			if raw, err = dec.DecodeAll(frame, raw[:0]); err != nil {
				return false, true
			}
			for len(raw) > 0 {
				line, rest, _ := bytes.Cut(raw, []byte("\n"))
				raw = rest
				var l journalLine
				if err := json.Unmarshal(line, &l); err != nil {
					j.lost += int64(len(line))
					continue
				}
				if !j.line(&l, yield) {
					return true, false
				}
			}
			return true, true
		}, &j.lost)
	}
}

func (j *journalReader) line(l *journalLine, yield func(Sample) bool) bool {
	j.ended = false
	switch {
	case l.Mark != "":
		j.marked = j.marked || l.Mark == journalMark && l.Version == FormatVersion
	case l.Start != nil:
		j.zero, j.info.Start = l.Zero, *l.Start
	case l.End > 0:
		j.ended, j.end = true, l.End-1
		if l.Info != nil {
			j.info.Dropped = l.Info.Dropped
		}
	case l.Info != nil:
		start := j.info.Start
		j.info = *l.Info
		j.info.Start = start
	case l.Sample != nil && l.Sample.Metric != "":
		j.samples++
		return yield(l.Sample.sample())
	}
	return true
}

// errShort says that the frame goes on behind what is at hand.
var errShort = errors.New("frame is cut")

// frameLen is the length of the zstd frame that b starts with (RFC 8878, 3.1.1).
func frameLen(b []byte) (int, error) {
	if len(b) < len(frameMagic) {
		return 0, errShort
	}
	if !bytes.HasPrefix(b, frameMagic) {
		return 0, errors.New("no frame starts here")
	}
	var h zstd.Header
	if err := h.Decode(b); errors.Is(err, io.ErrUnexpectedEOF) {
		return 0, errShort
	} else if err != nil {
		return 0, err
	}
	for n := h.HeaderSize; ; {
		if n+3 > len(b) {
			return 0, errShort
		}
		block := uint32(b[n]) | uint32(b[n+1])<<8 | uint32(b[n+2])<<16
		size := int(block >> 3)
		if block>>1&3 == 1 {
			size = 1 // a repeated byte; size is how often
		}
		n += 3 + size
		if block&1 == 0 {
			continue
		}
		if h.HasCheckSum {
			n += 4
		}
		if n > len(b) {
			return 0, errShort
		}
		return n, nil
	}
}

// frames calls f with each zstd frame of src, of up to maxFrame bytes. Bytes that
// are no frame, and frames for which f says that they are not whole, are counted
// as lost, up to where the next frame starts.
func frames(src io.ReaderAt, f func(frame []byte) (ok, more bool), lost *int64) {
	all := make([]byte, maxFrame)
	buf := all[:0]
	var off int64
	eof := false
	for {
		n, err := frameLen(buf)
		if errors.Is(err, errShort) && !eof && len(buf) < maxFrame {
			buf = all[:copy(all, buf)]
			n, err := src.ReadAt(all[len(buf):], off)
			buf = all[:len(buf)+n]
			off += int64(n)
			eof = err != nil
			continue
		}
		if len(buf) == 0 {
			return
		}
		ok := err == nil
		if ok {
			more := true
			if ok, more = f(buf[:n]); !more {
				return
			}
		}
		if !ok {
			n = len(buf)
			if i := bytes.Index(buf[1:], frameMagic); i >= 0 {
				n = i + 1
			} else if !eof {
				n -= len(frameMagic) - 1 // a magic may lie across the end
			}
			*lost += int64(n)
		}
		buf = buf[n:]
	}
}
