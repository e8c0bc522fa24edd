package proxylog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"strings"
	"time"

	"reprise/capture"
	"reprise/internal/jsonscan"
	"reprise/traceformat"
)

// An Import is one or several logs of one dialect, opened.
type Import struct {
	inputs  []Input
	o       *Options
	first   *log // open, with what the sample took
	dialect *Dialect
	report  Report
}

// A log is one open input.
type log struct {
	name   string
	file   io.Closer
	stop   func()
	frame  framer
	sample *Sample
	ahead  [][]byte // records of the sample that are not parsed yet
	errs   []error  // for each of them, or nil
	parser Parser
}

func (l *log) close() {
	if l.stop != nil {
		l.stop()
	}
	l.file.Close()
}

// A Report says how an import went.
type Report struct {
	Dialect    string     `json:"dialect"`
	Capability Capability `json:"capability"`
	Inputs     int        `json:"inputs"`
	Records    int64      `json:"records"`    // read, blank lines left out
	Unreadable int64      `json:"unreadable"` // of them
	// Shapes are the first unreadable records, letters as a and digits as 0.
	Shapes []string `json:"shapes,omitempty"`
	// Reasons counts the unreadable records by why.
	Reasons map[string]int64 `json:"unreadable_by,omitempty"`
	Folds   int64            `json:"ambiguous_stamps,omitempty"` // stamps of an hour that comes twice in their zone
	Gaps    int64            `json:"impossible_stamps,omitempty"`
	Rows    string           `json:"rows_with,omitempty"`
}

// Open opens the inputs, of which there must be one, and tells their dialect
// from the first. It reads no more than a sample.
func Open(inputs []Input, o *Options) (*Import, error) {
	if o.MaxBad == 0 {
		o.MaxBad = DefaultMaxBad
	}
	im := &Import{inputs: inputs, o: o}
	im.report.Reasons = map[string]int64{}
	if len(inputs) == 0 {
		return nil, errors.New("no log to read")
	}
	l, err := im.open(inputs[0], false)
	if err != nil {
		return nil, err
	}
	im.first = l
	im.report.Dialect, im.report.Inputs = im.dialect.Name, len(inputs)
	im.report.Capability = im.Capability()
	return im, nil
}

// DefaultMaxBad is the share of records that may be unreadable.
const DefaultMaxBad = 0.01

// Dialect is what the logs are written in.
func (im *Import) Dialect() *Dialect { return im.dialect }

// Capability says what the first log can know.
func (im *Import) Capability() Capability {
	c := im.first.parser.Capability()
	c.Dialect = im.dialect.Name
	return c
}

// Clock describes the clock of the arrivals, for the header of a trace.
func (im *Import) Clock() traceformat.Clock {
	c := traceformat.Clock{Source: "log", Tick: im.Capability().Arrival}
	if im.o.Dither {
		c.Dequantised = "uniform"
	}
	return c
}

// Blocks describes block ids that the log has; nil: it has none, or does not say.
func (im *Import) Blocks() *traceformat.Blocks {
	if b, ok := im.first.parser.(interface{ Blocks() *traceformat.Blocks }); ok {
		return b.Blocks()
	}
	return nil
}

// Close frees what Open opened, if Run did not.
func (im *Import) Close() {
	if im.first != nil {
		im.first.close()
		im.first = nil
	}
}

// open opens an input and reads its sample.
func (im *Import) open(in Input, follow bool) (_ *log, err error) {
	file, err := in.Open()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", in.Name, pathless(err))
	}
	l := &log{name: in.Name, file: file}
	defer func() {
		if err != nil {
			l.close()
			err = fmt.Errorf("%s: %w", in.Name, err)
		}
	}()
	var src io.Reader
	if src, l.stop, err = unpack(file); err != nil {
		return nil, err
	}
	l.frame = framer{src: src, follow: follow}
	if err := im.begin(l); err != nil {
		return nil, err
	}
	return l, nil
}

// begin reads the sample of a log and makes its parser.
func (im *Import) begin(l *log) error {
	f := &l.frame
	// The start decides how records are told apart.
	for f.w-f.r < readSize/4 && !f.eof {
		if err := f.fill(); err == io.EOF {
			f.eof = true
		} else if err != nil {
			return err
		}
	}
	head := f.buf[f.r:f.w]
	if bytes.HasPrefix(head, []byte("\xef\xbb\xbf")) {
		f.r += 3
		head = head[3:]
	}
	var csv []string
	f.kind, csv = im.framing(head)
	if csv != nil {
		if _, err := f.next(); err != nil {
			return err
		}
	}
	var records [][]byte
	for size := 0; len(records) < maxSample && size < 4<<20; {
		rec, err := f.next()
		if err == io.EOF {
			break
		}
		if err != nil && err != errTooLong && err != errBetween {
			return err
		}
		rec = bytes.Clone(rec)
		records = append(records, rec)
		l.ahead, l.errs = append(l.ahead, rec), append(l.errs, err)
		size += len(rec)
	}
	if len(records) == 0 && csv == nil {
		return errNoSample
	}
	l.sample = newSample(records, csv)
	d := Find(im.o.Format)
	switch {
	case im.o.Mapping != nil:
		d = mappingDialect
	case im.o.Format != "" && d == nil:
		return fmt.Errorf("no dialect %q", im.o.Format)
	case d == nil:
		var err error
		if d, err = detect(l.sample); err != nil {
			return err
		}
	}
	if im.dialect != nil && d != im.dialect {
		return fmt.Errorf("is in dialect %s, and %s is in %s: import them one by one and join them with trace merge", d.Name, im.inputs[0].Name, im.dialect.Name)
	}
	im.dialect = d
	var err error
	l.parser, err = d.New(l.sample, im.o)
	return err
}

// errNoSample says that a log has no record yet.
var errNoSample = errors.New("is empty")

// framing tells how records are told apart, and the columns of a CSV file.
func (im *Import) framing(head []byte) (frame, []string) {
	comma := byte(',')
	if m := im.o.Mapping; m != nil {
		comma = m.comma()
		if m.Format == "csv" {
			return csvFrame, csvColumns(head, comma, true)
		}
	}
	trimmed := bytes.TrimLeft(head, " \t\r\n")
	switch {
	case len(trimmed) == 0:
		return lineFrame, nil
	case trimmed[0] == '[':
		if rest := bytes.TrimLeft(trimmed[1:], " \t\r\n"); len(rest) > 0 && rest[0] == '{' {
			return jsonFrame, nil
		}
	case trimmed[0] == '{':
		first, _, _ := bytes.Cut(trimmed, []byte("\n"))
		if len(bytes.TrimSpace(first)) == 1 {
			return jsonFrame, nil
		}
	default:
		if cols := csvColumns(head, comma, false); cols != nil {
			return csvFrame, cols
		}
	}
	return lineFrame, nil
}

// csvColumns returns the names in the first line of a CSV file, or nil if they
// do not look like names.
func csvColumns(head []byte, comma byte, sure bool) []string {
	line, _, _ := bytes.Cut(head, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	fields, _, err := splitCSV(nil, line, nil, comma)
	if err != nil || len(line) > 16<<10 || !sure && len(fields) < 3 {
		return nil
	}
	var names []string
	for _, f := range fields {
		f = bytes.TrimSpace(f)
		if !sure && !isName(f) {
			return nil
		}
		names = append(names, string(f))
	}
	return names
}

func isName(b []byte) bool {
	if len(b) == 0 || len(b) > 64 || b[0] >= '0' && b[0] <= '9' {
		return false
	}
	for _, c := range b {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '.' || c == '-' || c == ' ') {
			return false
		}
	}
	return true
}

// A BadShareError says that too much could not be read.
type BadShareError struct {
	Unreadable, Records int64
	Max                 float64
	Shapes              []string
}

func (e *BadShareError) Error() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%d of %d records cannot be read, more than the %.3g %% of --max-bad; they look like this, letters as a and digits as 0:",
		e.Unreadable, e.Records, 100*e.Max)
	for _, shape := range e.Shapes {
		s.WriteString("\n  " + shape)
	}
	return s.String()
}

// checkEvery is how many records pass between two looks at the share of
// unreadable ones and at the context.
const checkEvery = 4096

// Run parses all inputs into rec. It may be called once.
func (im *Import) Run(ctx context.Context, rec Recorder) (*Report, error) {
	e := im.emitter(rec)
	for i, in := range im.inputs {
		l := im.first
		im.first = nil
		if i > 0 {
			var err error
			if l, err = im.open(in, false); err != nil {
				return &im.report, err
			}
		}
		err := im.drain(ctx, l, e)
		if err == nil {
			l.parser.Flush(e)
		}
		im.finish(l, e)
		l.close()
		if err != nil {
			return &im.report, err
		}
	}
	return &im.report, im.share()
}

func (im *Import) emitter(rec Recorder) *Emitter {
	e := &Emitter{rec: rec}
	if im.o.Dither {
		e.dither = &ditherer{tick: im.Capability().Arrival, rng: rand.New(rand.NewPCG(im.o.Seed, 0))}
	}
	return e
}

// finish adds to the report what a log had to say.
func (im *Import) finish(l *log, e *Emitter) {
	if k, ok := l.parser.(interface{ calendarOf() *calendar }); ok {
		im.report.Folds += k.calendarOf().Folds
		im.report.Gaps += k.calendarOf().Gaps
	}
	im.report.Rows = e.found.String()
}

// drain parses what there is of a log.
func (im *Import) drain(ctx context.Context, l *log, e *Emitter) error {
	for {
		var rec []byte
		var err error
		if len(l.ahead) > 0 {
			rec, err = l.ahead[0], l.errs[0]
			l.ahead, l.errs = l.ahead[1:], l.errs[1:]
		} else {
			rec, err = l.frame.next()
		}
		switch {
		case err == io.EOF:
			return nil
		case err == errTooLong, err == errBetween:
			im.bad(l, rec, err, e)
		case err != nil:
			return fmt.Errorf("%s: after %d records: %w", l.name, im.report.Records, pathless(err))
		default:
			im.report.Records++
			if err := l.parser.Parse(rec, e); err != nil {
				im.report.Records--
				im.bad(l, rec, err, e)
			}
		}
		if im.report.Records%checkEvery == 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			if im.report.Records >= 25*checkEvery {
				if err := im.share(); err != nil {
					return err
				}
			}
		}
	}
}

// bad accounts for a record that cannot be read.
func (im *Import) bad(l *log, rec []byte, err error, e *Emitter) {
	im.report.Records++
	im.report.Unreadable++
	reason := "broken_json"
	if err != errJSON {
		reason = err.Error()
	} else if bytes.Count(rec, []byte(`{"`)) > 1 && !balanced(rec) {
		// Two writers on one pipe: a line that was begun inside another.
		reason = "interleaved_json"
	}
	if len(im.report.Reasons) < 64 || im.report.Reasons[reason] > 0 {
		im.report.Reasons[reason]++
	}
	if len(im.report.Shapes) < 5 {
		im.report.Shapes = append(im.report.Shapes, Shape(rec))
	}
	e.Drop(capture.ReasonParse, 1)
}

func balanced(rec []byte) bool {
	p := jsonscan.New(rec)
	p.Skip()
	return !p.Bad()
}

// share returns an error if too many records are unreadable.
func (im *Import) share() error {
	r := &im.report
	if float64(r.Unreadable) > im.o.MaxBad*float64(r.Records) {
		return &BadShareError{r.Unreadable, r.Records, im.o.MaxBad, r.Shapes}
	}
	return nil
}

// A ditherer spreads stamps over their tick.
type ditherer struct {
	tick time.Duration
	rng  *rand.Rand
}

func (d *ditherer) spread(at int64) int64 {
	if d.tick <= 1 {
		return at
	}
	return at + d.rng.Int64N(int64(d.tick))
}

// pathless takes the path off an error of package os: the caller names it.
func pathless(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	return err
}

// Vantage is where the logs were written.
func (im *Import) Vantage() string {
	if m := im.o.Mapping; m != nil && m.Vantage != "" {
		return m.Vantage
	}
	return im.dialect.Vantage
}
