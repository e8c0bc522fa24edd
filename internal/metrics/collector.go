package metrics

import (
	"iter"
	"math"
	"time"

	"reprise/internal/stats"
	"reprise/traceformat"
)

// A Config says what a Collector measures. The zero value measures all rows of
// a capture.
type Config struct {
	// From and To bound the measured window, in run time. To 0: the last
	// scheduled request.
	From, To time.Duration
	SLOs     []SLO
	Limits   Limits // of the fidelity verdict; zero: DefaultLimits
	// TokenIDs says that prompts went as token ids, so that every count must be
	// exact.
	TokenIDs bool
	// Planned is how many requests were to be sent, 0 if that is not known.
	// Those that no row speaks of were never reached.
	Planned int64
}

// A Collector gathers rows: 64 bytes of each up to half a million of them, so
// that percentiles are exact, and histograms of all of them beyond. It is for one
// goroutine.
type Collector struct {
	conf    Config
	keep    int // rows to keep, maxRecords
	rows    [][]record
	folded  *folded // in place of rows
	ends    Requests
	met     []int64 // successes that met each SLO,
	metAll  int64   // and all of them
	itl     *stats.Hist
	gaps    *stats.Hist
	itlN    int64 // events behind itl
	noITL   int64 // successes whose events have no token counts
	flow    flow
	tokens  Tokens
	lengths Lengths
	failed  map[failure]int64
	client  map[string]int64 // requests that the client could not send, by error
	replays int64
}

// record is what is kept of a row. none stands for what is unknown.
type record struct {
	zero  time.Duration
	lag   time.Duration // none: never sent
	pacer time.Duration
	conn  time.Duration // waiting for a connection, which
	ttft  time.Duration // from the send
	e2e   time.Duration
	end   time.Duration
	out   int32 // output tokens, -1: unknown
	class Class
	flags uint8
}

const none = time.Duration(math.MinInt64)

const (
	dialed   = 1 << iota // conn is the opening of one
	measured             // in the window
	replayed
)

type failure struct{ outcome, error string }

// NewCollector returns an empty Collector.
func NewCollector(c Config) *Collector {
	if c.Limits == (Limits{}) {
		c.Limits = DefaultLimits()
	}
	return &Collector{
		conf: c, keep: maxRecords, met: make([]int64, len(c.SLOs)), itl: stats.NewHist(), gaps: stats.NewHist(), flow: newFlow(c.From, c.To),
		failed: map[failure]int64{}, client: map[string]int64{},
	}
}

// Add takes one row, which stays the caller's.
func (c *Collector) Add(row *traceformat.Row) {
	r := Measure(row)
	rec := record{zero: r.Zero, lag: none, ttft: r.TTFT.Or(none), e2e: r.E2E.Or(none), end: r.End.Or(none), out: r.OutputTokens.Or(-1), class: r.Class}
	if r.Sent.OK {
		rec.lag = r.Sent.V - r.Zero
		l := r.Lag.V
		rec.pacer, rec.conn = l.Pacer, l.Queue+l.Connect
	}
	if row.ConnReused.OK && !row.ConnReused.V {
		rec.flags |= dialed
	}
	if r.Replayed {
		rec.flags |= replayed
		c.replays++
	}
	in := r.Zero >= c.conf.From && (c.conf.To == 0 || r.Zero <= c.conf.To)
	if in {
		rec.flags |= measured
	}
	c.store(&rec)
	c.ends.add(&rec, c.conf.From)
	c.flow.scheduled(r.Zero)
	c.flow.request(&rec)
	c.received(row, &r)
	if !in {
		return
	}
	switch r.Class {
	case OK:
		c.pool(row)
		c.good(&r)
	case Failed:
		c.failed[failure{r.Outcome, r.Error}]++
		if !r.Sent.OK && clientErrors[r.Error] {
			c.client[r.Error]++
		}
	}
	c.count(row, &r)
}

// store keeps a record, or folds it where there are too many.
func (c *Collector) store(rec *record) {
	if c.folded == nil {
		if c.ends.Rows < int64(c.keep) {
			// In pieces, as a slice that doubles would hold three times as much.
			last := len(c.rows) - 1
			if last < 0 || len(c.rows[last]) == cap(c.rows[last]) {
				c.rows = append(c.rows, make([]record, 0, min(recordsPerPiece, max(16, c.ends.Rows))))
				last++
			}
			c.rows[last] = append(c.rows[last], *rec)
			return
		}
		c.folded = newFolded(&c.conf)
		for r := range c.records() {
			c.folded.add(r, &c.conf)
		}
		c.rows = nil
	}
	c.folded.add(rec, &c.conf)
}

// recordsPerPiece is 1 MiB of records.
const recordsPerPiece = 1 << 14

// records are the rows that are kept.
func (c *Collector) records() iter.Seq[*record] {
	return func(yield func(*record) bool) {
		for _, piece := range c.rows {
			for i := range piece {
				if !yield(&piece[i]) {
					return
				}
			}
		}
	}
}

// add counts how a request ended; from is the start of the window.
func (q *Requests) add(r *record, from time.Duration) {
	q.Rows++
	switch {
	case r.flags&measured != 0:
	case r.zero < from:
		q.Warmup++
		return
	default:
		q.After++
		return
	}
	q.Measured++
	switch r.class {
	case OK:
		q.OK++
	case Failed:
		q.Failed++
	case Shed:
		q.Shed++
	case Aborted:
		q.Aborted++
	case Unknown:
		q.Unknown++
	}
}

// good counts the SLOs that a success met.
func (c *Collector) good(r *Reading) {
	all := true
	for i, slo := range c.conf.SLOs {
		if r.Meets(slo) {
			c.met[i]++
		} else {
			all = false
		}
	}
	if all {
		c.metAll++
	}
}

// pool adds the events of a success to the figures over tokens.
func (c *Collector) pool(row *traceformat.Row) {
	if len(row.ChunkTimes) > 1 && len(row.ChunkTokens) != len(row.ChunkTimes) {
		c.noITL++
	}
	eachGap(row, func(gap time.Duration, tokens int64) {
		c.gaps.Add(gap, 1)
		if tokens > 0 {
			c.itl.Add(gap/time.Duration(tokens), tokens)
			c.itlN++
		}
	})
}

// eachGap visits the gaps between token-bearing events, each with the tokens
// of the later event, 0 where that is unknown.
func eachGap(row *traceformat.Row, visit func(gap time.Duration, tokens int64)) {
	counted := len(row.ChunkTokens) == len(row.ChunkTimes)
	last := none
	for i, at := range row.ChunkTimes {
		at = bound(at)
		tokens := int64(0)
		if counted {
			if tokens = int64(row.ChunkTokens[i]); tokens <= 0 {
				continue // it carries no token
			}
		}
		if last != none {
			visit(max(at-last, 0), tokens)
		}
		last = at
	}
}

// TokenGaps visits the gaps between token-bearing events whose later event says
// how many tokens it carries: ITL is gap / tokens, tokens times.
func TokenGaps(row *traceformat.Row, visit func(gap time.Duration, tokens int64)) {
	eachGap(row, func(gap time.Duration, tokens int64) {
		if tokens > 0 {
			visit(gap, tokens)
		}
	})
}

// received places the tokens of any request in time.
func (c *Collector) received(row *traceformat.Row, r *Reading) {
	if !r.Sent.OK || !r.E2E.OK && len(row.ChunkTimes) == 0 {
		return
	}
	first := r.TTFT.Or(r.E2E.V)
	if !r.TTFT.OK && len(row.ChunkTimes) > 0 {
		first = bound(row.ChunkTimes[0])
	}
	counted := len(row.ChunkTokens) == len(row.ChunkTimes)
	total := int64(r.OutputTokens.Or(0))
	switch n := int64(len(row.ChunkTimes)); {
	case n > 0 && counted:
		for i, at := range row.ChunkTimes {
			c.flow.output(r.Sent.V+bound(at), int64(max(row.ChunkTokens[i], 0)))
		}
	case n > 0:
		// Which event carried how many is unknown; their sum is not.
		for i, at := range row.ChunkTimes {
			c.flow.output(r.Sent.V+bound(at), total*int64(i+1)/n-total*int64(i)/n)
		}
		c.flow.spread++
	case total > 0:
		pieces := min(total, maxPieces)
		for i := range pieces {
			at := r.E2E.V
			if pieces > 1 {
				at = first + time.Duration(float64(r.E2E.V-first)*float64(i)/float64(pieces-1))
			}
			c.flow.output(r.Sent.V+at, total*(i+1)/pieces-total*i/pieces)
		}
		c.flow.spread++
	}
	prompt := r.PromptTokens
	if !prompt.OK {
		prompt = r.AskedPromptTokens
	}
	c.flow.prompt(r.Sent.V+first, int64(prompt.Or(0)))
}

// maxPieces bounds the steps in which an answer without events is spread.
const maxPieces = 1024

// count adds up tokens and compares them with what was asked for.
func (c *Collector) count(row *traceformat.Row, r *Reading) {
	t := &c.tokens
	t.Prompt += int64(r.PromptTokens.Or(0))
	t.Output += int64(r.OutputTokens.Or(0))
	t.Reasoning += int64(row.ReasoningTokens.Or(0))
	cached := row.CachedTokens
	if r.Replayed {
		cached = row.ServedCachedTokens
		t.PromptAsked += int64(r.AskedPromptTokens.Or(0))
		t.OutputAsked += int64(r.AskedOutputTokens.Or(0))
	}
	if cached.OK && r.PromptTokens.Or(0) > 0 {
		t.Cached += int64(cached.V)
		t.CachedOf += int64(r.PromptTokens.V)
	}
	if !r.Replayed {
		return
	}
	// A request that ended early for another reason says nothing about lengths.
	if r.Class == OK || r.Outcome == WrongLength {
		c.lengths.Prompt.add(r.AskedPromptTokens, r.PromptTokens, c.conf.Limits.PromptShare)
		c.lengths.Output.add(r.AskedOutputTokens, r.OutputTokens, 0)
	}
}

// A flow counts the tokens, sends and completions that fall inside the window. Where its end
// is not known yet, those that may lie behind it wait, a bucket a millisecond.
type flow struct {
	from, to      time.Duration
	open          bool // to is the last scheduled request so far
	in            counts
	all           counts
	waiting       map[int64]*counts // by end of the millisecond
	most          int               // buckets at which those that the window has reached are emptied
	first, last   time.Duration     // scheduled request, event
	begun, events bool
	spread        int64 // requests whose tokens had to be spread
}

type counts struct{ output, prompt, sent, completed int64 }

func (c *counts) add(o counts) {
	c.output += o.output
	c.prompt += o.prompt
	c.sent += o.sent
	c.completed += o.completed
}

func newFlow(from, to time.Duration) flow {
	return flow{from: from, to: to, open: to == 0, waiting: map[int64]*counts{}, most: maxWaiting}
}

func (f *flow) scheduled(at time.Duration) {
	if !f.begun || at < f.first {
		f.first = at
	}
	f.begun = true
	if f.open {
		f.to = max(f.to, time.Duration(ceilMS(at))*time.Millisecond)
	}
}

func (f *flow) output(at time.Duration, n int64) { f.event(at, counts{output: n}) }
func (f *flow) prompt(at time.Duration, n int64) { f.event(at, counts{prompt: n}) }

// request counts the send and the end of a request.
func (f *flow) request(r *record) {
	if r.lag == none {
		return
	}
	f.count(r.zero+r.lag, counts{sent: 1})
	if r.class == OK && r.e2e != none {
		f.count(r.zero+r.lag+r.e2e, counts{completed: 1})
	}
}

func (f *flow) event(at time.Duration, n counts) {
	if !f.events || at > f.last {
		f.events, f.last = true, at
	}
	f.count(at, n)
}

func (f *flow) count(at time.Duration, n counts) {
	f.all.add(n)
	switch {
	case at < f.from:
	case at <= f.to:
		f.in.add(n)
	case f.open:
		ms := ceilMS(at)
		if w := f.waiting[ms]; w != nil {
			w.add(n)
			return
		}
		w := n // n itself is on no heap: most calls end above
		f.waiting[ms] = &w
		if len(f.waiting) >= f.most {
			f.settle()
			f.most = max(maxWaiting, 2*len(f.waiting)) // or each event would look through all of them
		}
	}
}

// maxWaiting is the least number of buckets, about 4 MB, that are worth looking
// through.
const maxWaiting = 1 << 16

// settle counts what has come to lie inside the window.
func (f *flow) settle() {
	for ms, n := range f.waiting {
		if time.Duration(ms)*time.Millisecond <= f.to {
			f.in.add(*n)
			delete(f.waiting, ms)
		}
	}
}

func ceilMS(d time.Duration) int64 {
	ms := int64(d / time.Millisecond)
	if d > time.Duration(ms)*time.Millisecond {
		ms++
	}
	return ms
}

// add compares one asked count with the one that was served.
func (l *Length) add(asked, served traceformat.Opt[int32], share float64) {
	switch {
	case !asked.OK:
		return
	case !served.OK:
		l.Unverified++
		return
	}
	l.Verified++
	l.Asked += int64(asked.V)
	l.Served += int64(served.V)
	diff := int64(served.V) - int64(asked.V)
	if diff == 0 {
		l.Exact++
	}
	l.MaxError = max(l.MaxError, diff, -diff)
	if float64(max(diff, -diff)) > share*float64(asked.V) {
		l.Over++
	}
}
