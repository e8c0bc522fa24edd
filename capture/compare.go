package capture

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"reprise/internal/stats"
	"reprise/traceformat"
)

// CompareOptions say how two captures are joined. The zero value is what most
// comparisons want.
type CompareOptions struct {
	// Window is how far apart two captures may see one arrival, clocks aligned
	// (100 ms).
	Window time.Duration
	// MaxOffset bounds the offset between the clocks that is looked for: 26 h,
	// which covers a time zone taken for another.
	MaxOffset time.Duration
}

// maxCompared bounds the rows of a capture that is compared: a row takes some 300
// bytes while it is joined.
const maxCompared = 4 << 20

// A Comparison says how well two captures of the same traffic agree. Differences
// are b less a.
type Comparison struct {
	RowsA   int64 `json:"rows_a"`
	RowsB   int64 `json:"rows_b"`
	Matched int64 `json:"matched"`
	// Rows of one capture that the other does not have, although it was running.
	MissingA int64 `json:"missing_in_a"`
	MissingB int64 `json:"missing_in_b"`
	// Rows that arrived before the other capture's first or after its last.
	OutsideA int64 `json:"outside_of_a"`
	OutsideB int64 `json:"outside_of_b"`

	// Offset is how far b's clock is ahead of a's, and Drift what it gains.
	Offset time.Duration `json:"offset_ns"`
	Drift  float64       `json:"drift_ppm"`
	// By says what told requests apart beside their times.
	By []string `json:"joined_by,omitempty"`

	Arrival Difference  `json:"arrival"` // less the offset
	TTFT    *Difference `json:"ttft,omitempty"`
	E2E     *Difference `json:"e2e,omitempty"`

	Aborts  Agreement  `json:"aborts"`
	Prompt  *Agreement `json:"prompt_tokens,omitempty"`
	Output  *Agreement `json:"output_tokens,omitempty"`
	Blocks  *Agreement `json:"prefix_blocks,omitempty"`
	EventsA *Events    `json:"events_a,omitempty"`
	EventsB *Events    `json:"events_b,omitempty"`

	Warnings []string `json:"warnings,omitempty"`
}

// A Difference is the distribution of a difference over matched rows: its median
// with its sign, and quantiles of its size.
type Difference struct {
	N      int64         `json:"n"`
	Median time.Duration `json:"median_ns"`
	P50    time.Duration `json:"abs_p50_ns"`
	P90    time.Duration `json:"abs_p90_ns"`
	P99    time.Duration `json:"abs_p99_ns"`
	Max    time.Duration `json:"abs_max_ns"`
}

// An Agreement counts matched rows of which both captures say something.
type Agreement struct {
	Both    int64 `json:"both"`  // both know, or both say yes
	Equal   int64 `json:"equal"` // of these
	OnlyA   int64 `json:"only_a"`
	OnlyB   int64 `json:"only_b"`
	Neither int64 `json:"neither"`
}

// Share is the share of rows on which the captures agree: equal values, or for
// aborts the same verdict.
func (a Agreement) Share() float64 {
	n := a.Both + a.OnlyA + a.OnlyB + a.Neither
	if n == 0 {
		return math.NaN()
	}
	return float64(a.Equal+a.Neither) / float64(n)
}

// Events says how token-bearing events came in.
type Events struct {
	Events int64         `json:"events"`
	Reads  int64         `json:"reads"`      // events with one time came in one read
	Multi  int64         `json:"multi"`      // reads with several events
	GapP50 time.Duration `json:"gap_ns_p50"` // between events
	// Coalesced says that something held events back and passed on several at a
	// time: more than a quarter of the reads had several, half of the gaps are
	// below 1 ms.
	Coalesced bool `json:"coalesced"`
}

// Compare joins two captures of the same traffic. Rows are matched by their times,
// once the offset of the clocks is found, and by whatever both captures know: the
// prompt's blocks where one key was used, lengths, status, endpoint. Neither has
// to be complete, or of the same kind. It reads both to the end; an error is that
// of a Reader or of ctx.
func Compare(ctx context.Context, a, b traceformat.Reader, o CompareOptions) (*Comparison, error) {
	setDefault(&o.Window, 100*time.Millisecond)
	setDefault(&o.MaxOffset, 26*time.Hour)
	var sides [2]side
	for i, r := range []traceformat.Reader{a, b} {
		if err := sides[i].read(ctx, r); err != nil {
			return nil, err
		}
	}
	j := &join{a: &sides[0], b: &sides[1], window: int64(o.Window)}
	j.known()
	c := &Comparison{RowsA: int64(len(j.a.rows)), RowsB: int64(len(j.b.rows)), By: j.words()}
	c.EventsA, c.EventsB = j.a.events.summary(), j.b.events.summary()
	if c.RowsA == 0 || c.RowsB == 0 {
		c.MissingA, c.MissingB = c.RowsB, c.RowsA
		c.Warnings = append(c.Warnings, "a capture is empty")
		return c, nil
	}
	found := j.offset(int64(o.MaxOffset))
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	j.match()
	j.refine()
	j.match()
	c.fill(j)
	if !found {
		c.Warnings = append(c.Warnings, "no offset of the clocks stands out: are these captures of the same traffic?")
	}
	for i, e := range []*Events{c.EventsA, c.EventsB} {
		if e != nil && e.Coalesced {
			c.Warnings = append(c.Warnings, fmt.Sprintf("%c saw several events in %.0f %% of its reads, and a median gap of %v between events: something between the engine and it holds events back", 'a'+i, 100*float64(e.Multi)/float64(e.Reads), e.GapP50))
		}
	}
	return c, nil
}

// A side is one capture, by the columns that are compared.
type side struct {
	rows   []seen
	start  int64 // ns since the epoch, or 0 where the trace is relative
	keys   string
	blocks traceformat.Blocks
	events eventTally
}

// seen is one row.
type seen struct {
	arrival                  int64
	ttft, e2e                int64 // -1: unknown
	lasted                   int64 // to the end or the abort; -1: unknown
	prompt, output           int32 // -1: unknown
	status                   int16 // 0: unknown
	digest                   uint64
	hasDigest                bool
	endpoint                 uint8 // index into endpointNames, 0: unknown
	aborted                  bool
	verdict                  bool // an outcome is known
	promptExact, outputExact bool
	match                    int32 // index of the row of the other side, or -1
	promptBlocks             int32
}

func (s *side) read(ctx context.Context, r traceformat.Reader) error {
	names := map[string]uint8{"": 0}
	for row, err := range r.All() {
		if err != nil {
			return err
		}
		if len(s.rows)%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		if len(s.rows) == maxCompared {
			return fmt.Errorf("more than %d rows: compare slices of the captures (trace slice)", maxCompared)
		}
		v := seen{arrival: int64(row.Arrival), ttft: -1, e2e: -1, lasted: -1, prompt: -1, output: -1, match: -1, promptBlocks: -1}
		if row.TTFT.OK {
			v.ttft = int64(row.TTFT.V)
		}
		if row.E2E.OK {
			v.e2e = int64(row.E2E.V)
		}
		if row.PromptTokens.OK {
			v.prompt, v.promptExact = row.PromptTokens.V, exactSource(row.PromptTokensSource)
		}
		if row.OutputTokens.OK {
			v.output, v.outputExact = row.OutputTokens.V, exactSource(row.OutputTokensSource)
		}
		v.lasted = v.e2e
		if row.Abort.OK {
			v.lasted = int64(row.Abort.V)
		}
		v.status = row.Status.V
		if row.PrefixBlocks != nil {
			v.promptBlocks = int32(len(row.PrefixBlocks))
			if n := len(row.PrefixBlocks); n > 0 {
				v.digest, v.hasDigest = row.PrefixBlocks[n-1], true
			}
		}
		if _, ok := names[row.Endpoint]; !ok && len(names) < 256 {
			names[row.Endpoint] = endpointCode(row.Endpoint)
		}
		v.endpoint = names[row.Endpoint]
		v.verdict = row.Result != ""
		v.aborted = row.Result == traceformat.ResultClientAbort
		s.events.add(row)
		s.rows = append(s.rows, v)
	}
	h := r.Header()
	if !h.Start.IsZero() {
		s.start = h.Start.UnixNano()
	}
	s.keys, s.blocks = h.Keys, h.Blocks
	slices.SortStableFunc(s.rows, func(a, b seen) int { return cmp.Compare(a.arrival, b.arrival) })
	return nil
}

func exactSource(s string) bool {
	return s == traceformat.SourceUsage || s == traceformat.SourceEngine || s == ""
}

var endpointNames = []string{
	"", traceformat.EndpointChat, traceformat.EndpointCompletions, traceformat.EndpointGenerate, traceformat.EndpointMessages,
	traceformat.EndpointResponses, traceformat.EndpointEmbeddings,
}

func endpointCode(name string) uint8 { return uint8(max(slices.Index(endpointNames, name), 0)) }

// eventTally counts events and reads.
type eventTally struct {
	events, reads, multi int64
	gaps                 *stats.Hist
}

func (e *eventTally) add(row *traceformat.Row) {
	if len(row.ChunkTimes) < 2 {
		return
	}
	if e.gaps == nil {
		e.gaps = stats.NewHist()
	}
	e.events += int64(len(row.ChunkTimes))
	in := 0 // events of the read so far
	for i, at := range row.ChunkTimes {
		if i > 0 {
			e.gaps.Add(at-row.ChunkTimes[i-1], 1)
		}
		if i == 0 || at != row.ChunkTimes[i-1] {
			e.reads++
			in = 0
		}
		if in++; in == 2 {
			e.multi++
		}
	}
}

func (e *eventTally) summary() *Events {
	if e.reads == 0 {
		return nil
	}
	s := &Events{Events: e.events, Reads: e.reads, Multi: e.multi, GapP50: time.Duration(e.gaps.Quantile(0.5))}
	s.Coalesced = s.GapP50 < time.Millisecond && 4*s.Multi > s.Reads
	return s
}

// A join matches rows of two sides.
type join struct {
	a, b   *side
	window int64
	shift  int64   // to add to a's arrivals for b's clock
	slope  float64 // and per ns of a's time since its first row

	digests, prompts, outputs, statuses, endpoints bool
}

// known finds out what both sides say.
func (j *join) known() {
	j.digests = j.a.keys != "" && j.a.keys == j.b.keys && j.a.blocks.Scheme == j.b.blocks.Scheme &&
		j.a.blocks.Bytes == j.b.blocks.Bytes && (j.a.blocks.Bytes > 0 || j.a.blocks.Size == j.b.blocks.Size)
	has := func(f func(*seen) bool) bool {
		return slices.ContainsFunc(j.a.rows, func(v seen) bool { return f(&v) }) && slices.ContainsFunc(j.b.rows, func(v seen) bool { return f(&v) })
	}
	j.digests = j.digests && has(func(v *seen) bool { return v.promptBlocks >= 0 })
	j.prompts = has(func(v *seen) bool { return v.promptExact })
	j.outputs = has(func(v *seen) bool { return v.outputExact })
	j.statuses = has(func(v *seen) bool { return v.status != 0 })
	j.endpoints = has(func(v *seen) bool { return v.endpoint != 0 })
}

func (j *join) words() (list []string) {
	for _, w := range []struct {
		ok   bool
		name string
	}{{j.digests, "prefix_blocks"}, {j.prompts, "prompt_tokens"}, {j.outputs, "output_tokens"}, {j.statuses, "status"}, {j.endpoints, "endpoint"}} {
		if w.ok {
			list = append(list, w.name)
		}
	}
	return list
}

// agree reports whether two rows can be one request. What only one side knows
// says nothing. An abort is told with different statuses, and cuts an answer at
// different lengths.
func (j *join) agree(x, y *seen) bool {
	switch {
	case j.digests && x.promptBlocks >= 0 && y.promptBlocks >= 0 && (x.promptBlocks != y.promptBlocks || x.digest != y.digest):
		return false
	case j.prompts && x.promptExact && y.promptExact && x.prompt != y.prompt:
		return false
	case j.endpoints && x.endpoint != 0 && y.endpoint != 0 && x.endpoint != y.endpoint:
		return false
	case x.aborted || y.aborted:
		return true
	case j.outputs && x.outputExact && y.outputExact && x.output != y.output:
		return false
	case j.statuses && x.status != 0 && y.status != 0 && x.status != y.status:
		return false
	}
	return true
}

// offset finds the shift that most pairs of rows agree on. It reports false if
// none stands out.
func (j *join) offset(most int64) bool {
	absolute := j.a.start != 0 && j.b.start != 0
	base := int64(0)
	if absolute {
		base = j.a.start - j.b.start
	} else {
		base = j.b.rows[0].arrival - j.a.rows[0].arrival
	}
	// Near first, at a resolution where chance does not compete.
	for _, try := range []struct{ reach, bin int64 }{{int64(10 * time.Second), int64(time.Millisecond)}, {most, int64(10 * time.Millisecond)}} {
		reach := min(try.reach, most)
		shift, votes, noise, sample := j.vote(base, reach, try.bin)
		// A third of the sample, and well above what chance gives a bin.
		if sample > 0 && float64(votes) >= max(float64(sample)/3, noise+6*math.Sqrt(noise)+2) || votes == sample && sample > 0 {
			j.shift = shift
			return true
		}
	}
	j.shift = base
	return false
}

// vote counts the differences of rows that can be one request, in bins.
func (j *join) vote(base, reach, bin int64) (shift int64, votes int, noise float64, sample int) {
	bins := make([]int32, 2*reach/bin+2)
	// About 10^8 pairs at most.
	sample = min(len(j.a.rows), max(50, min(2000, 100_000_000/len(j.b.rows))))
	pairs := 0
	for k := range sample {
		x := &j.a.rows[k*len(j.a.rows)/sample]
		from := x.arrival + base - reach
		i, _ := slices.BinarySearchFunc(j.b.rows, from, func(v seen, t int64) int { return cmp.Compare(v.arrival, t) })
		for ; i < len(j.b.rows) && j.b.rows[i].arrival <= from+2*reach; i++ {
			if j.agree(x, &j.b.rows[i]) {
				bins[(j.b.rows[i].arrival-from)/bin]++
				pairs++
			}
		}
	}
	// A bin and its neighbour, since the shift may lie on their border.
	best := 0
	for i := range len(bins) - 1 {
		if n := int(bins[i] + bins[i+1]); n > votes {
			best, votes = i, n
		}
	}
	noise = 2 * float64(pairs-votes) / float64(len(bins))
	return base - reach + int64(best+1)*bin, votes, noise, sample
}

// at is a row's arrival by b's clock.
func (j *join) at(x *seen) int64 {
	return x.arrival + j.shift + int64(j.slope*float64(x.arrival-j.a.rows[0].arrival))
}

// A pair is a candidate.
type pair struct {
	cost int64
	a, b int32
}

// maxCandidates bounds how many rows of b are considered for one of a.
const maxCandidates = 8

// match pairs rows that can be one request, the closest first.
func (j *join) match() {
	var pairs []pair
	for i := range j.a.rows {
		j.a.rows[i].match = -1
	}
	for i := range j.b.rows {
		j.b.rows[i].match = -1
	}
	low := 0
	var near []pair
	for i := range j.a.rows {
		x := &j.a.rows[i]
		at := j.at(x)
		for low < len(j.b.rows) && j.b.rows[low].arrival < at-j.window {
			low++
		}
		near = near[:0]
		for k := low; k < len(j.b.rows) && j.b.rows[k].arrival <= at+j.window; k++ {
			if y := &j.b.rows[k]; j.agree(x, y) {
				near = append(near, pair{j.cost(at, x, y), int32(i), int32(k)})
			}
		}
		slices.SortFunc(near, comparePairs)
		pairs = append(pairs, near[:min(len(near), maxCandidates)]...)
	}
	slices.SortFunc(pairs, comparePairs)
	for _, p := range pairs {
		if x, y := &j.a.rows[p.a], &j.b.rows[p.b]; x.match < 0 && y.match < 0 {
			x.match, y.match = p.b, p.a
		}
	}
}

func comparePairs(p, q pair) int {
	return cmp.Or(cmp.Compare(p.cost, q.cost), cmp.Compare(p.a, q.a), cmp.Compare(p.b, q.b))
}

// cost is how far apart two rows are: in arrival, and where both have one in
// duration, which tells apart what arrived together.
func (j *join) cost(at int64, x, y *seen) int64 {
	c := abs(y.arrival - at)
	switch {
	case x.aborted != y.aborted:
		c += j.window // unless nothing else is there
	case x.lasted >= 0 && y.lasted >= 0:
		c += min(abs(y.lasted-x.lasted), j.window)
	}
	return c
}

func abs(v int64) int64 { return max(v, -v) }

// refine takes offset and drift from the rows that are matched: medians, so that
// a few wrong pairs do no harm.
func (j *join) refine() {
	var diffs []int64
	var at []int64
	for i := range j.a.rows {
		if x := &j.a.rows[i]; x.match >= 0 {
			diffs = append(diffs, j.b.rows[x.match].arrival-x.arrival)
			at = append(at, x.arrival-j.a.rows[0].arrival)
		}
	}
	if len(diffs) == 0 {
		return
	}
	j.slope = 0
	n := len(diffs) / 3
	if n >= 100 {
		early, late := medianOf(diffs[:n]), medianOf(diffs[len(diffs)-n:])
		span := medianOf(at[len(at)-n:]) - medianOf(at[:n])
		// Of clocks that are to be compared none gains more than 500 ppm; a
		// difference within the jitter is none.
		if s := float64(late-early) / float64(max(span, 1)); math.Abs(s) < 500e-6 && span > int64(time.Minute) && abs(late-early) > int64(time.Millisecond) {
			j.slope = s
		}
	}
	for i := range diffs {
		diffs[i] -= int64(j.slope * float64(at[i]))
	}
	j.shift = medianOf(diffs)
}

func medianOf(v []int64) int64 {
	s := slices.Clone(v)
	slices.Sort(s)
	return s[len(s)/2]
}

// fill reports what the join found.
func (c *Comparison) fill(j *join) {
	c.Offset = time.Duration(j.shift)
	if j.a.start != 0 && j.b.start != 0 {
		c.Offset -= time.Duration(j.a.start - j.b.start)
	}
	c.Drift = j.slope * 1e6
	firstB, lastB := j.b.rows[0].arrival, j.b.rows[len(j.b.rows)-1].arrival
	firstA, lastA := j.at(&j.a.rows[0]), j.at(&j.a.rows[len(j.a.rows)-1])
	var arrival, ttft, e2e []int64
	var prompt, output, blocks Agreement
	for i := range j.a.rows {
		x := &j.a.rows[i]
		at := j.at(x)
		if x.match < 0 {
			if at < firstB-j.window || at > lastB+j.window {
				c.OutsideB++
			} else {
				c.MissingB++
			}
			continue
		}
		y := &j.b.rows[x.match]
		c.Matched++
		arrival = append(arrival, y.arrival-at)
		if x.ttft >= 0 && y.ttft >= 0 {
			ttft = append(ttft, y.ttft-x.ttft)
		}
		if x.e2e >= 0 && y.e2e >= 0 && !x.aborted && !y.aborted {
			e2e = append(e2e, y.e2e-x.e2e)
		}
		if x.verdict && y.verdict {
			c.Aborts.add(x.aborted, y.aborted, true)
		}
		prompt.add(x.prompt >= 0, y.prompt >= 0, x.prompt == y.prompt)
		output.add(x.output >= 0, y.output >= 0, x.output == y.output)
		if j.digests {
			blocks.add(x.promptBlocks >= 0, y.promptBlocks >= 0, x.digest == y.digest && x.promptBlocks == y.promptBlocks)
		}
	}
	for i := range j.b.rows {
		if y := &j.b.rows[i]; y.match < 0 {
			if y.arrival < firstA-j.window || y.arrival > lastA+j.window {
				c.OutsideA++
			} else {
				c.MissingA++
			}
		}
	}
	if d := difference(arrival); d != nil {
		c.Arrival = *d
	}
	c.TTFT, c.E2E = difference(ttft), difference(e2e)
	for _, f := range []struct {
		to   **Agreement
		from Agreement
	}{{&c.Prompt, prompt}, {&c.Output, output}, {&c.Blocks, blocks}} {
		if f.from.Both > 0 {
			*f.to = &f.from
		}
	}
}

func (a *Agreement) add(x, y, equal bool) {
	switch {
	case x && y:
		a.Both++
		if equal {
			a.Equal++
		}
	case x:
		a.OnlyA++
	case y:
		a.OnlyB++
	default:
		a.Neither++
	}
}

func difference(v []int64) *Difference {
	if len(v) == 0 {
		return nil
	}
	d := &Difference{N: int64(len(v)), Median: time.Duration(medianOf(v))}
	size := make([]float64, len(v))
	for i, x := range v {
		size[i] = float64(abs(x))
	}
	slices.Sort(size)
	d.P50 = time.Duration(stats.Quantile(size, 0.5))
	d.P90 = time.Duration(stats.Quantile(size, 0.9))
	d.P99 = time.Duration(stats.Quantile(size, 0.99))
	d.Max = time.Duration(size[len(size)-1])
	return d
}

// ErrDiffer is returned by [Comparison.Within] where two captures differ by more
// than they may.
var ErrDiffer = errors.New("the captures differ")

// Bounds are what two captures may differ by. Zero is no bound.
type Bounds struct {
	Missing float64       // share of the rows of one that the other does not have
	Arrival time.Duration // p99
	TTFT    time.Duration // p99
	Aborts  float64       // share of matched rows on whose abort they must agree
}

// Within returns an error that wraps [ErrDiffer] and names every bound that is
// exceeded.
func (c *Comparison) Within(b Bounds) error {
	var errs []error
	fail := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: "+format, append([]any{ErrDiffer}, args...)...))
	}
	if b.Missing > 0 {
		for _, m := range []struct {
			name string
			n    int64
			of   int64
		}{{"a", c.MissingA, c.RowsB - c.OutsideA}, {"b", c.MissingB, c.RowsA - c.OutsideB}} {
			if float64(m.n) > b.Missing*float64(m.of) {
				fail("%s does not have %d of %d rows", m.name, m.n, m.of)
			}
		}
		if c.Matched == 0 {
			fail("no row is in both")
		}
	}
	if b.Arrival > 0 && c.Arrival.P99 > b.Arrival {
		fail("p99 of the difference in arrival is %v", c.Arrival.P99)
	}
	if b.TTFT > 0 && (c.TTFT == nil || c.TTFT.P99 > b.TTFT) {
		if c.TTFT == nil {
			fail("no TTFT is in both")
		} else {
			fail("p99 of the difference in TTFT is %v", c.TTFT.P99)
		}
	}
	if s := c.Aborts.Share(); b.Aborts > 0 && !(s >= b.Aborts) {
		fail("they agree on the abort of %.4g of the rows", s)
	}
	return errors.Join(errs...)
}
