package proxylog

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"time"

	"reprise/capture"
	"reprise/internal/jsonscan"
)

// Options say how logs are read.
type Options struct {
	Format  string         // name of the dialect; empty: told from the first lines
	Mapping *Mapping       // the dialect "mapping"
	Zone    *time.Location // of stamps that name none
	Year    int            // of the first stamp that names none; later ones roll over at New Year

	// LogFormat is nginx's log_format, as it stands in its configuration: names
	// for what the text or the keys of a log mean.
	LogFormat string

	// ArrivalsAreEnd takes the end of a request for its arrival where a log says
	// no more.
	ArrivalsAreEnd bool
	// TrustHeaderTime takes the time to the head of the answer for the TTFT,
	// which it is for engines that hold the head back until the first token.
	TrustHeaderTime bool
	// Routes give endpoints to paths that are not known by their ends.
	Routes []Route

	// MaxBad is the share of records that may be unreadable (0.01).
	MaxBad float64
	// Dither spreads arrivals uniformly over the tick of their clock.
	Dither bool
	Seed   uint64
}

// A Dialect is one way of writing a log.
type Dialect struct {
	Name    string // what --format takes and the header says
	Title   string // for people
	Vantage string // where such a log is written: client, proxy or server

	// Detect says how sure it is, from 0 (not this one) to 100, that the sample
	// is in this dialect.
	Detect func(*Sample) int
	// New returns a parser for a log that begins with the sample. It refuses
	// what cannot be read without being told more ([NeedError]).
	New func(*Sample, *Options) (Parser, error)
}

// A Parser reads the records of one log. It is used by one goroutine.
type Parser interface {
	// Parse reads a record and gives e what it holds. The error says why the
	// record cannot be read, without quoting it; what was given to e stands.
	Parse(record []byte, e *Emitter) error
	// Flush gives e what waited for records that did not come.
	Flush(e *Emitter)
	// Capability says what the log can know.
	Capability() Capability
}

// dialects are tried in this order; where two are as sure, the first is taken.
var dialects = []*Dialect{
	nginxDialect, nginxCombinedDialect, haproxyDialect, envoyGatewayDialect, envoyDialect, envoyTextDialect,
	caddyDialect, traefikDialect, traefikCLFDialect, kongDialect, higressDialect, litellmDialect,
	sglangMetricsDialect, sglangLogDialect, vllmDialect, vllmOTLPDialect, otlpDialect, dynamoDialect, langfuseDialect,
	heliconeDialect, tgiDialect, mappingDialect,
}

// Dialects are all that can be read.
func Dialects() []*Dialect { return slices.Clone(dialects) }

// Find returns the dialect of that name, or nil.
func Find(name string) *Dialect {
	for _, d := range dialects {
		if d.Name == name {
			return d
		}
	}
	return nil
}

// A Sample is the start of a log.
type Sample struct {
	Records [][]byte // the first records, whole
	CSV     []string // names of the columns, if it is a CSV file with a header

	objects []map[string]string // of records that are JSON objects: keys of two levels, values as they stand
}

// maxSample bounds the records of a sample.
const maxSample = 100

func newSample(records [][]byte, csv []string) *Sample {
	s := &Sample{Records: records, CSV: csv}
	for _, rec := range records {
		if i := bytes.IndexByte(rec, '{'); i >= 0 && (i == 0 || len(bytes.TrimSpace(rec[:i])) == 0) {
			s.objects = append(s.objects, keysOf(rec))
		}
	}
	return s
}

// keysOf returns the keys of an object and of objects in it, as "a" and "a.b",
// with their values as they stand. A key that has a dot itself is there with and
// without a backslash before it.
func keysOf(rec []byte) map[string]string {
	keys := map[string]string{}
	p := jsonscan.New(rec)
	if !p.Enter('{') {
		return keys
	}
	for name, ok := p.Key(); ok && len(keys) < 2048; name, ok = p.Key() {
		at := p
		v := p.Value()
		keys[string(name)] = string(v[:min(len(v), 256)])
		keys[strings.ReplaceAll(string(name), ".", `\.`)] = keys[string(name)]
		if len(v) == 0 || v[0] != '{' || !at.Enter('{') {
			continue
		}
		for inner, ok := at.Key(); ok && len(keys) < 2048; inner, ok = at.Key() {
			v := at.Value()
			keys[string(name)+"."+string(inner)] = string(v[:min(len(v), 256)])
		}
	}
	return keys
}

// keys reports whether most JSON objects of the sample have all of the keys.
func (s *Sample) keys(names ...string) bool {
	if len(s.CSV) > 0 {
		for _, n := range names {
			if !slices.Contains(s.CSV, n) {
				return false
			}
		}
		return true
	}
	n := 0
	for _, o := range s.objects {
		has := true
		for _, name := range names {
			if _, ok := o[name]; !ok {
				has = false
				break
			}
		}
		if has {
			n++
		}
	}
	return 2*n > len(s.objects)
}

// anyKey reports whether most objects have one of the keys.
func (s *Sample) anyKey(names ...string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return s.keys(n) })
}

// value returns the first value that the sample has for a key, as it stands.
func (s *Sample) value(name string) (string, bool) {
	for _, o := range s.objects {
		if v, ok := o[name]; ok {
			return v, true
		}
	}
	return "", false
}

// share is the part of the records, in percent, that f holds for.
func (s *Sample) share(f func([]byte) bool) int {
	n, all := 0, 0
	for _, r := range s.Records {
		if len(bytes.TrimSpace(r)) == 0 {
			continue
		}
		all++
		if f(r) {
			n++
		}
	}
	if all == 0 {
		return 0
	}
	return 100 * n / all
}

// json is the part of the records, in percent, that are JSON objects.
func (s *Sample) json() int {
	if len(s.Records) == 0 {
		return 0
	}
	return 100 * len(s.objects) / len(s.Records)
}

// detect names the dialect of a sample.
func detect(s *Sample) (*Dialect, error) {
	var best *Dialect
	most := 0
	for _, d := range dialects {
		if n := d.Detect(s); n > most {
			best, most = d, n
		}
	}
	if best == nil {
		return nil, fmt.Errorf("is in no dialect that is known (%s): describe its columns with --mapping, or name its dialect with --format",
			strings.Join(names(), ", "))
	}
	return best, nil
}

func names() []string {
	var out []string
	for _, d := range dialects {
		out = append(out, d.Name)
	}
	return out
}

// An Emitter passes on what parsers find.
type Emitter struct {
	rec    Recorder
	dither *ditherer
	first  int64 // earliest and latest arrival
	latest int64
	rows   int64
	found  coverage
}

// A Recorder takes requests and accounts for what is none: a
// [capture.Recorder].
type Recorder interface {
	Record(*capture.Logged)
	DropN(reason string, n int64)
}

// Record passes a request on.
func (e *Emitter) Record(l *capture.Logged) {
	if e.dither != nil {
		l.Arrival = e.dither.spread(l.Arrival)
	}
	if e.rows == 0 || l.Arrival < e.first {
		e.first = l.Arrival
	}
	e.latest = max(e.latest, l.Arrival)
	e.rows++
	e.found.add(l)
	e.rec.Record(l)
}

// Drop accounts for n records that are no request, or a part of one.
func (e *Emitter) Drop(reason string, n int64) { e.rec.DropN(reason, n) }
