package traceinfo

import (
	"context"
	"time"

	"reprise/internal/stats"
	"reprise/traceformat"
)

// An Info is what [Analyze] found. Its JSON is what trace info --json prints;
// times are nanoseconds, shares run from 0 to 1, and what a trace says nothing
// about is absent.
type Info struct {
	Header *traceformat.Header `json:"header"`

	Rows     int64         `json:"rows"`
	Span     time.Duration `json:"span_ns"`     // first to last arrival
	Rate     float64       `json:"rate"`        // rows over span, a second
	PeakRate int64         `json:"rate_peak"`   // most arrivals in a full second, counted from the first
	Tokens   *TokenRates   `json:"token_rates"` // null where no length is known

	Arrivals   Arrivals  `json:"arrivals"`
	Burstiness []Burst   `json:"burstiness,omitempty"`
	Prompt     *Lengths  `json:"prompt_tokens,omitempty"`
	Output     *Lengths  `json:"output_tokens,omitempty"`
	Prefix     *Prefix   `json:"prefix,omitempty"`
	Sessions   *Sessions `json:"sessions,omitempty"`
	Clients    *Names    `json:"clients,omitempty"`
	Models     *Names    `json:"models,omitempty"`
	Endpoints  *Names    `json:"endpoints,omitempty"`
	Classes    *Names    `json:"classes,omitempty"`
	Limits     Limits    `json:"limits"`
	Outcomes   *Outcomes `json:"outcomes,omitempty"`
	Replay     *Replay   `json:"replay,omitempty"`
	Support    []Support `json:"support"`
}

// TokenRates are tokens over span, a second.
type TokenRates struct {
	Prompt float64 `json:"prompt"`
	Output float64 `json:"output"`
}

// Arrivals describes the clock and the gaps.
type Arrivals struct {
	First time.Duration `json:"first_ns"`
	Last  time.Duration `json:"last_ns"`
	// Distinct counts stamps; far fewer than rows is a coarse clock.
	Distinct int64 `json:"distinct"`
	// Tick is the resolution that the stamps show, 0 where fewer than 16 are
	// distinct. The header's clock says what the recorder knew.
	Tick time.Duration `json:"tick_ns"`
	// Backwards counts rows that arrive before the row above. Gaps and
	// burstiness are absent where there are any.
	Backwards int64         `json:"backwards"`
	GapCV     *float64      `json:"gap_cv,omitempty"` // standard deviation of the gaps over their mean
	GapP50    time.Duration `json:"gap_ns_p50,omitempty"`
	GapP99    time.Duration `json:"gap_ns_p99,omitempty"`
	GapMax    time.Duration `json:"gap_ns_max,omitempty"`
}

// A Burst is the index of dispersion of counts at one window: 1 for a Poisson
// process.
type Burst struct {
	Window   time.Duration `json:"window_ns"`
	IDC      float64       `json:"idc"`
	Complete int64         `json:"windows"` // complete windows that it rests on
	// Artefact says why the figure is not the workload's, or is empty.
	Artefact string `json:"artefact,omitempty"`
}

// An Atom is one value that many rows have.
type Atom struct {
	Value int64   `json:"value"`
	Rows  int64   `json:"rows"`
	Share float64 `json:"share"`
}

// quantileShares are the quantiles that Lengths holds.
var quantileShares = []float64{0.05, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 0.999}

// Lengths describes a column of lengths. Quantiles are of the nearest rank and
// exact up to 2,097,151, to 0.1 % beyond.
type Lengths struct {
	Known   int64   `json:"known"`
	Unknown int64   `json:"unknown"`
	Zero    int64   `json:"zero"`
	Total   int64   `json:"total"`
	Mean    float64 `json:"mean"`
	Min     int64   `json:"min"`
	P5      int64   `json:"p5"`
	P25     int64   `json:"p25"`
	P50     int64   `json:"p50"`
	P75     int64   `json:"p75"`
	P90     int64   `json:"p90"`
	P95     int64   `json:"p95"`
	P99     int64   `json:"p99"`
	P999    int64   `json:"p999"`
	Max     int64   `json:"max"`
	Atoms   []Atom  `json:"atoms,omitempty"`   // up to 4 values of at least 10 rows and 0.5 %
	Cap     *Atom   `json:"cap,omitempty"`     // a value that requests were cut at
	Sources *Names  `json:"sources,omitempty"` // how they were learnt
}

// Prefix describes how much of the prompts was seen before.
type Prefix struct {
	Rows   int64 `json:"rows"`   // rows with block ids
	Blocks int64 `json:"blocks"` // ids in all
	// Unique counts distinct ids; UniqueAtLeast says that it stopped there.
	Unique        int64 `json:"unique"`
	UniqueAtLeast bool  `json:"unique_at_least,omitempty"`
	// Hits is the share of blocks that an LRU prefix cache would have held,
	// weighted by block, counting a prompt's blocks up to the first miss.
	Hits []Hit `json:"hits"`
	// Sharing counts rows whose first block was seen before, Deeper those that
	// share more than one block.
	Sharing int64 `json:"rows_sharing"`
	Deeper  int64 `json:"rows_sharing_deeper"`
	// Sample is null where every block was followed. Otherwise Unique, Hits,
	// Sharing and Deeper are estimates.
	Sample *Sample `json:"sample,omitempty"`
}

// A Sample says of what estimates are made.
type Sample struct {
	Rate  float64 `json:"rate"`       // share of the blocks that was followed
	After int64   `json:"after_rows"` // rows with blocks before, of which all were
}

// A Hit is a point of the hit curve.
type Hit struct {
	Blocks int     `json:"cache_blocks"`           // size of the cache; 0 is unlimited
	Tokens int64   `json:"cache_tokens,omitempty"` // the same in tokens, where the block size is known
	Share  float64 `json:"hit"`
	Margin float64 `json:"hit_margin,omitempty"` // of an estimate: half the width of its 95 % interval
}

// Sessions describes conversations.
type Sessions struct {
	Sessions int64 `json:"sessions"`
	// AtMost says that some sessions may have been counted twice: they paused
	// while half a million others went on.
	AtMost  bool           `json:"sessions_at_most,omitempty"`
	Rows    int64          `json:"rows"` // rows that belong to one
	Turns   *Lengths       `json:"turns"`
	Think   *TimeQuantiles `json:"think,omitempty"` // pause after the parent's answer
	Parents int64          `json:"rows_with_parent"`
}

// TimeQuantiles are to three significant digits, or 1 µs, and up to an hour:
// what is longer counts as an hour in all but Max. A negative time counts as 0.
type TimeQuantiles struct {
	Known int64         `json:"known"`
	P5    time.Duration `json:"ns_p5"`
	P50   time.Duration `json:"ns_p50"`
	P90   time.Duration `json:"ns_p90"`
	P99   time.Duration `json:"ns_p99"`
	Max   time.Duration `json:"ns_max"`
}

// Names counts the values of a column of names.
type Names struct {
	Distinct int    `json:"distinct"`
	More     bool   `json:"more,omitempty"` // there are more: counting stopped there
	Rows     int64  `json:"rows"`           // rows that have one
	Top      []Name `json:"top"`            // the 10 most frequent
}

// A Name is one value of a column.
type Name struct {
	Name string `json:"name"`
	Rows int64  `json:"rows"`
}

// Limits counts the rows that say how the work was bounded.
type Limits struct {
	MaxTokens   int64 `json:"max_tokens"`
	Stream      int64 `json:"stream"`
	Temperature int64 `json:"temperature"`
	ManyChoices int64 `json:"n_above_1"`
}

// Outcomes describes what happened to the requests.
type Outcomes struct {
	Rows         int64          `json:"rows"` // rows with an outcome
	Results      *Names         `json:"results,omitempty"`
	Errors       *Names         `json:"errors,omitempty"`
	Finish       *Names         `json:"finish_reasons,omitempty"`
	TTFT         *TimeQuantiles `json:"ttft,omitempty"`
	TTFTSources  *Names         `json:"ttft_sources,omitempty"`
	E2E          *TimeQuantiles `json:"e2e,omitempty"`
	Chunks       int64          `json:"rows_with_chunks"`
	CachedTokens *Lengths       `json:"cached_tokens,omitempty"`
	Aborted      int64          `json:"rows_with_abort"`
	InFlight     *InFlight      `json:"in_flight,omitempty"`
}

// InFlight counts requests between their send and their last token, hang-up or
// close, over the rows that say when that was.
type InFlight struct {
	Rows   int64         `json:"rows"`
	Peak   int           `json:"peak"`
	PeakAt time.Duration `json:"peak_at_ns"`
	Mean   float64       `json:"mean"`
}

// Replay describes how a replay sent what it sent.
type Replay struct {
	Rows int64          `json:"rows"` // rows with a schedule
	Lag  *TimeQuantiles `json:"lag"`  // sent - scheduled
}

// A Support says whether a trace can be used for something.
type Support struct {
	For  string `json:"for"`
	Can  string `json:"can"` // "yes", "partly" or "no"
	Why  string `json:"why"`
	Next string `json:"next,omitempty"` // what to do about it
}

// tallies is the state of an analysis.
type tallies struct {
	arrivals *arrivals
	flights  flights

	prompt, output           lengths
	promptSource, outputFrom names

	prefix     *prefixSampler
	prefixRows int64

	sessions sessions
	think    *stats.Hist
	parents  int64

	clients, models, endpoints, classes names
	limits                              Limits

	outcomes    int64
	results     names
	errors      names
	finish      names
	ttft, e2e   *stats.Hist
	ttftSources names
	chunks      int64
	cached      lengths
	aborted     int64

	replayed int64
	lag      *stats.Hist
}

// ctxEvery is how many rows pass between two looks at the context.
const ctxEvery = 4096

// Analyze reads r to its end. An error is the Reader's, or that of ctx.
//
// Of the rows past ten million, the hit curve and the counts beside it come from
// a sample of the blocks, and say so; of a trace that is known to be longer, all
// of it do. With exact nothing is sampled.
func Analyze(ctx context.Context, r traceformat.Reader, exact bool) (*Info, error) {
	after := int64(sampleFrom)
	switch {
	case exact:
		after = -1
	case r.Header().Rows.Recorded > sampleFrom:
		after = 0
	}
	return analyze(ctx, r, after)
}

// analyze is Analyze, with the rows after which blocks are sampled, or -1.
func analyze(ctx context.Context, r traceformat.Reader, after int64) (*Info, error) {
	t := &tallies{
		arrivals: newArrivals(), prefix: newPrefixSampler(cacheSizes, after),
		think: stats.NewHist(), ttft: stats.NewHist(), e2e: stats.NewHist(), lag: stats.NewHist(),
	}
	for row, err := range r.All() {
		if err != nil {
			return nil, err
		}
		if t.arrivals.rows%ctxEvery == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		t.add(row)
	}
	return t.info(r.Header()), nil
}

func (t *tallies) add(row *traceformat.Row) {
	t.arrivals.add(row.Arrival)
	addLength(&t.prompt, row.PromptTokens)
	addLength(&t.output, row.OutputTokens)
	t.promptSource.add(row.PromptTokensSource)
	t.outputFrom.add(row.OutputTokensSource)
	if len(row.PrefixBlocks) > 0 {
		t.prefixRows++
		t.prefix.add(row.PrefixBlocks)
	}
	if id, ok := row.Session.Get(); ok {
		t.sessions.add(id)
	}
	if row.Parent.OK {
		t.parents++
	}
	if d, ok := row.Think.Get(); ok {
		t.think.Add(d, 1)
	}
	t.clients.add(row.Client)
	t.models.add(row.Model)
	t.endpoints.add(row.Endpoint)
	t.classes.add(row.Class)
	count(&t.limits.MaxTokens, row.MaxTokens.OK)
	count(&t.limits.Stream, row.Stream.OK)
	count(&t.limits.Temperature, row.Temperature.OK)
	count(&t.limits.ManyChoices, row.N.Or(1) > 1)
	t.addOutcome(row)
}

func (t *tallies) addOutcome(row *traceformat.Row) {
	t.results.add(row.Result)
	t.errors.add(row.Error)
	t.finish.add(row.FinishReason)
	t.ttftSources.add(row.TTFTSource)
	count(&t.outcomes, row.Result != "" || row.Status.OK || row.TTFT.OK || row.E2E.OK)
	count(&t.chunks, row.ChunkTimes != nil)
	count(&t.aborted, row.Abort.OK)
	if d, ok := row.TTFT.Get(); ok {
		t.ttft.Add(d, 1)
	}
	if d, ok := row.E2E.Get(); ok {
		t.e2e.Add(d, 1)
	}
	if n, ok := row.CachedTokens.Get(); ok {
		t.cached.add(int64(n))
	}
	sent := row.Sent.Or(row.Arrival)
	switch {
	case row.E2E.OK:
		t.flights.add(row.Arrival, sent, sent+row.E2E.V)
	case row.Abort.OK:
		t.flights.add(row.Arrival, sent, sent+row.Abort.V)
	case row.Close.OK:
		t.flights.add(row.Arrival, sent, row.Close.V)
	}
	if at, ok := row.Scheduled.Get(); ok {
		t.replayed++
		if row.Sent.OK {
			t.lag.Add(row.Sent.V-at, 1)
		}
	}
}

func count(n *int64, is bool) {
	if is {
		*n++
	}
}

func addLength(l *lengths, v traceformat.Opt[int32]) {
	if n, ok := v.Get(); ok {
		l.add(int64(n))
	} else {
		l.unknown++
	}
}
