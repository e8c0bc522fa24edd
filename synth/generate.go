package synth

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"iter"
	"math"
	"time"

	"reprise/synth/score"
	"reprise/traceformat"
)

// GenOptions says what to generate. The zero value is the model as it was
// learnt, for its own horizon.
type GenOptions struct {
	Seed uint64
	// Duration ends the trace, and so does Rows; 0 is no limit. Without either
	// the trace is as long as the model's horizon.
	Duration time.Duration
	Rows     int64
	// Start is when the trace starts; zero is unknown.
	Start time.Time
	// ScaleRate superposes so many independent copies of the traffic, a part of
	// one included: twice the sessions, not the same ones twice as fast.
	// 0 means 1.
	ScaleRate float64
	// Rate multiplies the rate of every client in place; 0 means 1.
	Rate float64
	// What-if factors, 0 means 1: lengths of prompts and outputs, the share of
	// requests that continue earlier ones, and the deviations of the rate from
	// its mean (of renewal gaps: their coefficient of variation).
	Prompts, Outputs, Reuse, Bursts float64
	// From is where in the model's time the trace begins: a profile that was
	// learnt of one hour plays that hour from 0, and what comes after it from
	// its Horizon on.
	From time.Duration
	// Order plays profiles in another order than the model says.
	Order string
}

// maxCopies bounds ScaleRate.
const maxCopies = 4096

// Validate reports every problem with o.
func (o *GenOptions) Validate() error {
	var errs []error
	if o.Duration < 0 || o.Duration > maxHorizon*time.Second || o.Rows < 0 {
		errs = append(errs, fmt.Errorf("duration %v and rows %d: want a time up to ten years, and a count", o.Duration, o.Rows))
	}
	for _, f := range []struct {
		name string
		x    float64
		max  float64
	}{{"scale-rate", o.ScaleRate, maxCopies}, {"rate factor", o.Rate, 1e6}, {"prompt factor", o.Prompts, 1e6}, {"output factor", o.Outputs, 1e6}, {"reuse factor", o.Reuse, 1e6}, {"burst factor", o.Bursts, 1e3}} {
		if !finite(f.x) || f.x < 0 || f.x > f.max {
			errs = append(errs, fmt.Errorf("%s is %v, want more than 0 and at most %v", f.name, f.x, f.max))
		}
	}
	if o.From < 0 || o.From > maxHorizon*time.Second {
		errs = append(errs, fmt.Errorf("from %v: want a time up to ten years", o.From))
	}
	if o.Order != "" && !knownOrder(o.Order) {
		errs = append(errs, fmt.Errorf("order is %q, want recorded or resampled", clip(o.Order)))
	}
	return errors.Join(errs...)
}

func orOne(x float64) float64 {
	if x == 0 {
		return 1
	}
	return x
}

// A Generator yields the rows of a synthetic trace. It is a
// [traceformat.Reader].
type Generator struct {
	header *traceformat.Header
	limit  float64
	rows   int64
	voices voices
	row    traceformat.Row
}

var _ traceformat.Reader = (*Generator)(nil)

// Generate starts a trace. Rows are made while they are read; the same model,
// options and version give the same rows.
func (m *Model) Generate(o GenOptions) (*Generator, error) {
	if err := errors.Join(m.Check(), o.Validate()); err != nil {
		return nil, err
	}
	limit := o.Duration.Seconds()
	switch {
	case limit == 0 && o.Rows == 0:
		limit = m.Horizon
	case limit == 0:
		limit = maxHorizon
	}
	g := &Generator{header: m.header(&o), limit: limit, rows: o.Rows}
	if g.rows == 0 {
		g.rows = math.MaxInt64
	}
	scale := orOne(o.ScaleRate)
	copies := int(math.Ceil(scale - 1e-12))
	entries := maxEntries
	if m.Blocks != nil {
		entries = m.Blocks.Entries
	}
	entries = max(1024, entries/max(1, copies*len(m.Clients)/4))
	for i := range m.Clients {
		if m.Clients[i].silent() {
			continue
		}
		if err := m.checkBlocks(&m.Clients[i], orOne(o.Prompts)); err != nil {
			return nil, err
		}
		for k := range copies {
			part := min(1, scale-float64(k))
			if v := newVoice(m, &m.Clients[i], k, part, entries, limit, &o); v != nil {
				g.voices = append(g.voices, v)
			}
		}
	}
	if len(g.voices) == 0 {
		return nil, errors.New("the model makes no request in that time: every rate is 0, or no client is active")
	}
	heap.Init(&g.voices)
	return g, nil
}

// maxBlocks bounds the ids of one prompt.
const maxBlocks = 1 << 20

// checkBlocks refuses prompts of absurdly many blocks.
func (m *Model) checkBlocks(c *Client, factor float64) error {
	if m.Blocks == nil || c.Prefixes == nil || c.Lengths == nil || c.Lengths.In == nil {
		return nil
	}
	longest := c.Lengths.In.Max
	if f := c.Sessions; f != nil && f.First != nil {
		longest = max(longest, f.First.Max)
	}
	if longest*factor/float64(m.Blocks.Size) > maxBlocks {
		return fmt.Errorf("prompts of up to %.4g tokens in blocks of %d are more than %d blocks", longest*factor, m.Blocks.Size, maxBlocks)
	}
	return nil
}

func (m *Model) header(o *GenOptions) *traceformat.Header {
	h := &traceformat.Header{
		Start:  o.Start,
		Clock:  traceformat.Clock{Source: "synthetic"},
		Origin: traceformat.Origin{Program: "synth generate", Dialect: "synthetic"},
		Extra: map[string]string{
			"synth.seed": fmt.Sprint(o.Seed),
		},
	}
	if m.Name != "" {
		h.Extra["synth.model"] = m.Name
	}
	if b := m.Blocks; b != nil {
		h.Blocks = traceformat.Blocks{Size: b.Size, Scheme: "sequence", Scope: traceformat.ScopeGlobal, Partial: traceformat.PartialRule(b.Partial)}
		h.Extra["synth.reuse_window_s"] = fmt.Sprint(b.Window)
	}
	h.Lengths = traceformat.LengthRule(m.Source.Lengths)
	return h
}

// Header describes the trace.
func (g *Generator) Header() *traceformat.Header { return g.header }

// Close does nothing: a Generator holds memory alone.
func (g *Generator) Close() error { return nil }

// All yields the rows by arrival. The Row belongs to the Generator. It may be
// ranged over once.
func (g *Generator) All() iter.Seq2[*traceformat.Row, error] {
	return func(yield func(*traceformat.Row, error) bool) {
		for id := int64(0); id < g.rows && len(g.voices) > 0; id++ {
			v := g.voices[0]
			v.write(&g.row, id)
			if !yield(&g.row, nil) {
				return
			}
			if v.advance() {
				if len(g.voices) > 1 {
					heap.Fix(&g.voices, 0)
				}
			} else {
				heap.Pop(&g.voices)
			}
		}
	}
}

// Sample generates into memory.
func (m *Model) Sample(ctx context.Context, o GenOptions) (*score.Sample, error) {
	g, err := m.Generate(o)
	if err != nil {
		return nil, err
	}
	s, err := score.Load(ctx, g)
	if err != nil {
		return nil, err
	}
	s.Name = m.Name
	return s, nil
}

// voices is a heap by time of the next row; ties go to the lower slot.
type voices []*voice

func (v voices) Len() int { return len(v) }
func (v voices) Less(i, j int) bool {
	return v[i].t < v[j].t || v[i].t == v[j].t && v[i].key < v[j].key
}
func (v voices) Swap(i, j int) { v[i], v[j] = v[j], v[i] }
func (v *voices) Push(x any)   { *v = append(*v, x.(*voice)) }
func (v *voices) Pop() any {
	old := *v
	x := old[len(old)-1]
	old[len(old)-1] = nil
	*v = old[:len(old)-1]
	return x
}

// A voice makes the rows of one copy of one client, one ahead.
type voice struct {
	c   *Client
	key uint64
	o   *GenOptions

	pacer    *pacer
	rows     *rowSource
	lengths  *lengthSampler
	prefixes *prefixer
	rule     *blockRule
	talker   *talker
	base     uint64

	// The next arrival of the process, and whether there is one.
	start       float64
	startWindow *windowLengths
	startRow    int // of the source, -1 none
	more        bool

	// The next row.
	t      float64
	now    lengths
	talk   *conversation
	blocks []uint64
	limit  float64
	from   float64 // of the process's time
}

// Bits of ids: 19 of the slot, 12 of the copy and 32 of a count. The first
// client's ids are small numbers.
const (
	copyBits  = 12
	countBits = 32
)

func newVoice(m *Model, c *Client, copyNumber int, part float64, entries int, limit float64, o *GenOptions) *voice {
	path := []uint64{uint64(c.Slot), uint64(copyNumber)}
	// A path of its own for each stream: append must not share memory.
	of := func(purpose uint64) *stream { return newStream(o.Seed, path[0], path[1], purpose) }
	v := &voice{c: c, o: o, limit: limit, key: uint64(c.Slot)<<copyBits | uint64(copyNumber)}
	v.base = v.key << countBits
	rate := orOne(o.Rate) * part
	v.from = o.From.Seconds()
	end := v.from + limit
	rowsFrom := math.Inf(1)
	switch p := c.Arrivals.Profile; {
	case c.Arrivals.Kind == ArrivalsRows:
		rowsFrom = v.from
	case c.Arrivals.Kind == ArrivalsProfile && p.Beyond == OrderRows && o.Order == "":
		rowsFrom = max(v.from, p.duration())
	}
	if rowsFrom > v.from {
		v.pacer = newPacer(c, o.Seed, path, rate, orOne(o.Bursts), v.from, min(end, rowsFrom), o.Order)
	}
	if rowsFrom < end {
		v.rows = newRowSource(c.Rows, of(purposeArrivals), rate*c.Weight, rowsFrom, end)
	}
	v.lengths = newLengthSampler(c.Lengths, of(purposeLengths), orOne(o.Prompts), orOne(o.Outputs))
	if c.Sessions != nil {
		v.talker = newTalker(c.Sessions, c.Lengths, of(purposeSessions), int64(v.base))
	}
	if c.Prefixes != nil && m.Blocks != nil {
		v.prefixes = newPrefixer(c.Prefixes, m.Blocks, of(purposePrefixes), v.base, entries, orOne(o.Reuse))
		rule := newBlockRule(m.Blocks)
		v.rule = &rule
	}
	v.pull()
	if !v.advance() {
		return nil
	}
	return v
}

// pull takes the next arrival from the process.
func (v *voice) pull() {
	v.more, v.startRow = false, -1
	if v.pacer != nil {
		if v.start, v.startWindow, v.more = v.pacer.arrival(); !v.more {
			v.pacer = nil
		}
	}
	if v.pacer == nil && v.rows != nil {
		v.start, v.startRow, v.more = v.rows.arrival()
	}
	v.start -= v.from
}

// advance prepares the next row; it says whether there is one.
func (v *voice) advance() bool {
	if v.talker != nil {
		return v.advanceSession()
	}
	if !v.more {
		return false
	}
	v.t = v.start
	if v.startRow >= 0 {
		v.copyRow(v.startRow)
	} else {
		window := v.startWindow
		v.now = v.lengths.draw(v.lengths.level(window), window)
		if v.prefixes != nil && v.now.in >= 0 {
			v.blocks = v.prefixes.blocks(v.blocks[:0], v.t, v.now.in, nil)
		}
	}
	v.pull()
	return true
}

// copyRow makes a row of the source the next one.
func (v *voice) copyRow(i int) {
	r := v.c.Rows
	v.now = lengths{-1, -1, -1, -1}
	if r.In != nil && r.In[i] >= 0 {
		v.now.in = scaled(r.In[i], v.lengths.scaleIn)
	}
	if r.Out != nil && r.Out[i] >= 0 {
		v.now.out = scaled(r.Out[i], v.lengths.scaleOut)
	}
	if v.prefixes != nil && v.now.in >= 0 {
		h := &hint{}
		if r.Reuse != nil {
			h = &hint{r.Reuse[i], int(r.Depth[i])}
		}
		v.blocks = v.prefixes.blocks(v.blocks[:0], v.t, v.now.in, h)
	}
}

// advanceSession prepares the next turn of a session, or the first of a new one.
func (v *voice) advanceSession() bool {
	d := v.talker
	if v.talk != nil {
		if d.goOn(v.talk) && v.talk.due < v.limit {
			heap.Push(&d.open, v.talk)
		}
		v.talk = nil
	}
	var window *windowLengths
	switch {
	case len(d.open) > 0 && (!v.more || d.open[0].due <= v.start):
		v.talk = heap.Pop(&d.open).(*conversation)
	case v.more:
		v.talk = d.start(v.start)
		window = v.startWindow
		v.pull()
	default:
		return false
	}
	c := v.talk
	v.t = c.due
	tokens, ok := d.prompt(c)
	var u float64
	if ok && v.lengths.in != nil {
		u = v.lengths.in.level(float64(tokens), v.lengths.s.uniform())
	} else {
		u = v.lengths.level(window)
	}
	v.now = v.lengths.draw(u, window)
	if ok {
		c.in = tokens
		v.now.in = scaled(tokens, v.lengths.scaleIn)
	}
	if v.rule != nil && v.now.in >= 0 {
		v.sessionBlocks(c)
	}
	return true
}

// sessionBlocks makes the blocks of the next turn of c.
func (v *voice) sessionBlocks(c *conversation) {
	ids, whole := v.rule.of(v.now.in)
	if c.turn == 0 {
		// The first turn begins like any request.
		v.blocks = v.prefixes.blocks(v.blocks[:0], v.t, v.now.in, nil)
		c.runs = c.runs[:0]
		last := v.prefixes.entries.at(v.prefixes.entries.end() - 1)
		for i := last.from; i < last.to; i++ {
			c.runs = append(c.runs, *v.prefixes.runs.at(i))
		}
	} else {
		before := 0
		for _, r := range c.runs {
			before += int(r.n)
		}
		keep := min(whole, v.talker.share(before))
		c.runs = taken(c.runs[:0], c.runs, keep)
		if n := ids - keep; n > 0 {
			fresh := v.prefixes.fresh(n)
			if k := len(c.runs) - 1; k >= 0 && c.runs[k].start+uint64(c.runs[k].n) == fresh.start {
				c.runs[k].n += fresh.n
			} else {
				c.runs = append(c.runs, fresh)
			}
		}
		v.blocks = v.blocks[:0]
		for _, r := range c.runs {
			v.blocks = r.ids(v.blocks)
		}
	}
	if ids > whole { // the next turn does not share a block that was not full
		c.runs = taken(c.runs[:0], c.runs, whole)
	}
}

// write makes the prepared row the row with this id.
func (v *voice) write(r *traceformat.Row, id int64) {
	*r = traceformat.Row{}
	r.ID = id
	r.Arrival = time.Duration(math.Round(v.t * 1e9))
	c := v.c
	r.Client, r.Class, r.Model, r.Endpoint = c.Name, c.Class, c.Model, c.Endpoint
	known := func(o *traceformat.Opt[int32], n int32) {
		if n >= 0 {
			*o = traceformat.Some(n)
		}
	}
	known(&r.PromptTokens, v.now.in)
	known(&r.OutputTokens, v.now.out)
	known(&r.ReasoningTokens, v.now.reasoning)
	known(&r.CachedTokens, v.now.cached)
	if v.prefixes != nil && v.now.in >= 0 {
		r.PrefixBlocks = v.blocks
		if r.PrefixBlocks == nil {
			r.PrefixBlocks = []uint64{}
		}
	}
	if t := v.talk; t != nil {
		r.Session, r.Turn = traceformat.Some(t.id), traceformat.Some(t.turn)
		if t.turn > 0 {
			r.Parent = traceformat.Some(t.row)
			if t.think >= 0 {
				r.Think = traceformat.Some(time.Duration(t.think * 1e9))
			}
		}
		t.row = id
	}
}
