package capture

import (
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"reprise/internal/tokenizer"
	"reprise/traceformat"
)

// Defaults of [Options].
const (
	DefaultMemory      = 256 << 20
	DefaultMaxBody     = 64 << 20
	DefaultBlockBytes  = 64
	DefaultBlockTokens = 16
	DefaultRetryWindow = 2 * time.Minute
)

// Options of a [Recorder]. The zero value records everything under a key that
// ends with the process.
type Options struct {
	Key    *Key   // nil: a fresh random one, in memory alone
	Sample Sample // zero: everything

	// Tokenizer counts lengths where no server says them, and cuts prompts into
	// blocks of BlockTokens tokens (16) instead of BlockBytes bytes (64).
	Tokenizer     *tokenizer.Tokenizer
	TokenizerName string // for the header
	BlockBytes    int
	BlockTokens   int

	Memory  int64 // most bytes that all open exchanges hold together (256 MiB)
	MaxBody int64 // most bytes kept of one body (64 MiB)

	// SessionHeaders and RequestIDHeaders are asked of every request, in this
	// order; nil: the usual ones. No other header can name a session.
	SessionHeaders   []string
	RequestIDHeaders []string
	// RetryWindow is how long after a refused attempt another one with the same
	// request id and prompt counts as the same request (2 min); negative: none
	// does.
	RetryWindow time.Duration

	Vantage string // for the header: client, proxy, server, wire
	Dialect string // for the header: nginx, pcap, ...
	Program string // for the header: "capture proxy"
	Version string // for the header

	// Start is the time zero of the trace; zero: the arrival of the first
	// exchange. An exchange may arrive up to Slack earlier than the first one: the
	// arrivals then count from Slack before it, and sealing the trace with
	// [traceformat.Rebase] puts that right.
	Start time.Time
	Slack time.Duration

	Clock traceformat.Clock
	// Blocks, if set, describes block ids that come from a log.
	Blocks *traceformat.Blocks
}

// A Sample picks one in Of sessions or clients, by a keyed hash, so that what
// belongs together stays together. Of 0 and 1 pick all.
type Sample struct {
	Of       uint64
	ByClient bool
}

// A Sink takes finished rows, one at a time. It must copy what it keeps. If it
// has a method SetHeader(*traceformat.Header) error, as a
// [traceformat.Journal] has, [Recorder.Close] gives it the final header.
type Sink interface {
	Append(*traceformat.Row) error
}

// A Recorder turns exchanges into rows. It is safe for concurrent use; there is
// one to a process and output. It owns no goroutine.
type Recorder struct {
	key   *Key
	o     Options
	sink  Sink
	limit int64
	held  atomic.Int64 // bytes that open exchanges hold

	mu      sync.Mutex
	start   int64 // time zero, ns since the epoch
	started bool
	nextID  int64
	acc     Accounts
	open    map[*Exchange]struct{}
	closed  bool
	sinkErr error // the first
	threads threads
	retries retries
	clients map[string]string // pseudonyms that clientOf remembers
	lengths blockLengths
	roots   int64 // sessions begun by a request that continues none
}

// NewRecorder returns a recorder that writes to sink.
func NewRecorder(sink Sink, o Options) (*Recorder, error) {
	if o.Key == nil {
		o.Key = NewKey()
	}
	setDefault(&o.Memory, DefaultMemory)
	setDefault(&o.MaxBody, DefaultMaxBody)
	setDefault(&o.BlockBytes, DefaultBlockBytes)
	setDefault(&o.BlockTokens, DefaultBlockTokens)
	setDefault(&o.RetryWindow, DefaultRetryWindow)
	if o.SessionHeaders == nil {
		o.SessionHeaders = sessionHeaders
	}
	if o.RequestIDHeaders == nil {
		o.RequestIDHeaders = requestIDHeaders
	}
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(sink != nil, "no sink to write to")
	check(o.BlockBytes >= 16 && o.BlockBytes <= 1<<16, "block of %d bytes, want 16 to 65536", o.BlockBytes)
	check(o.BlockTokens >= 1 && o.BlockTokens <= 1<<16, "block of %d tokens, want 1 to 65536", o.BlockTokens)
	check(o.Memory >= 1<<20, "memory budget of %d bytes, want at least 1 MiB", o.Memory)
	check(o.MaxBody >= 4<<10, "bound of %d bytes on a body, want at least 4 KiB", o.MaxBody)
	check(o.Slack >= 0, "slack is %v, negative", o.Slack)
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	r := &Recorder{key: o.Key, o: o, sink: sink, limit: o.Memory, open: map[*Exchange]struct{}{}}
	r.acc.Reasons = map[string]int64{}
	r.threads.init()
	r.retries.init(o.RetryWindow)
	if !o.Start.IsZero() {
		r.start, r.started = o.Start.UnixNano(), true
	}
	return r, nil
}

func setDefault[T int | int64 | time.Duration](v *T, def T) {
	if *v == 0 {
		*v = def
	}
}

// begin sets the time zero from the first arrival. r.mu is held.
func (r *Recorder) begin(t int64) {
	if !r.started {
		r.start, r.started = t-int64(r.o.Slack), true
	}
}

// Drop accounts for an input that was seen and is not recorded.
func (r *Recorder) Drop(reason string) { r.DropN(reason, 1) }

// DropN is Drop for n inputs.
func (r *Recorder) DropN(reason string, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.acc.Seen += n
	r.acc.Reasons[reason] += n
}

// drop accounts for an input that was counted as seen. r.mu is held.
func (r *Recorder) drop(reason string) { r.acc.Reasons[reason]++ }

// Accounts returns what became of every input so far.
func (r *Recorder) Accounts() Accounts {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.accounts()
}

func (r *Recorder) accounts() Accounts {
	a := r.acc
	a.Reasons = maps.Clone(a.Reasons)
	a.Open = int64(len(r.open)) + r.retries.len()
	return a
}

// Held is how many bytes open exchanges hold.
func (r *Recorder) Held() int64 { return r.held.Load() }

// Err is the first error of the sink. Rows that it refused are accounted for
// under [ReasonWrite].
func (r *Recorder) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.sinkErr
}

// Header describes the trace as it is now. [Recorder.Close] gives the final one
// to the sink.
func (r *Recorder) Header() *traceformat.Header {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.header()
}

func (r *Recorder) header() *traceformat.Header {
	h := &traceformat.Header{
		Clock: r.o.Clock,
		Origin: traceformat.Origin{
			Program: r.o.Program, Version: r.o.Version, Dialect: r.o.Dialect, Vantage: r.o.Vantage,
		},
		Lengths: traceformat.LengthsCumulative,
		Keys:    r.key.Fingerprint(),
		Rows:    r.accounts().counts(),
		Blocks:  r.blocks(),
	}
	if r.started {
		h.Start = time.Unix(0, r.start).UTC()
	}
	if r.o.Tokenizer != nil {
		h.Tokenizer = r.o.TokenizerName
	}
	if n := r.o.Sample.Of; n > 1 {
		h.Sampling = traceformat.Sampling{Rate: 1 / float64(n), By: "session"}
		if r.o.Sample.ByClient {
			h.Sampling.By = "client"
		}
	}
	return h
}

// Close ends open exchanges as cut off by the end of the capture, writes rows
// that were held back, and gives the sink the final header. No method of an
// Exchange may run at the same time. It returns the first error of the sink.
func (r *Recorder) Close() error {
	r.mu.Lock()
	if r.closed {
		defer r.mu.Unlock()
		return r.sinkErr
	}
	r.closed = true
	open := make([]*Exchange, 0, len(r.open))
	for x := range r.open {
		open = append(open, x)
	}
	r.mu.Unlock()
	sortExchanges(open)
	for _, x := range open {
		x.End(x.last, Truncated)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.flushRetries()
	if s, ok := r.sink.(interface {
		SetHeader(*traceformat.Header) error
	}); ok {
		if err := s.SetHeader(r.header()); err != nil && r.sinkErr == nil {
			r.sinkErr = err
		}
	}
	if err := r.accounts().Check(); err != nil {
		return errors.Join(r.sinkErr, err)
	}
	return r.sinkErr
}

// append gives a row to the sink and accounts for it; it reports whether the
// row was taken. r.mu is held. The row has its ID after that.
func (r *Recorder) append(row *traceformat.Row) bool {
	row.ID = r.nextID
	if err := row.Check(); err != nil {
		r.drop(ReasonRow)
		return false
	}
	if err := r.sink.Append(row); err != nil {
		if r.sinkErr == nil {
			r.sinkErr = err
		}
		r.drop(ReasonWrite)
		return false
	}
	r.nextID++
	r.acc.Recorded++
	return true
}
