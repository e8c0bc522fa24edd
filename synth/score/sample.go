package score

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"reprise/traceformat"
)

// A Sample is one trace, column by column, in order of arrival. Slices have one
// entry a row, or are nil where no row of the trace knows the value. A Sample
// does not change after it is made; its methods return new ones.
type Sample struct {
	Name    string
	Arrival []float64 // seconds from the start of the window, ascending
	// Horizon is the length of the observed window in seconds, from 0: for a
	// loaded trace the last arrival and one mean gap.
	Horizon float64

	In, Out   []int32 // prompt and output tokens, -1 unknown
	Cached    []int32 // prompt tokens served from a cache, -1 unknown
	Reasoning []int32 // -1 unknown

	// Blocks holds the prefix blocks of all rows, those of row i from
	// BlockStart[i] to BlockStart[i+1].
	Blocks     []uint64
	BlockStart []int
	BlockSize  int32
	Partial    traceformat.PartialRule

	Session []int32   // number of the session from 0, in order of appearance, -1 none
	Parent  []int32   // row that this one continues, -1 none or not in the Sample
	Turn    []int32   // position in the session from 0, -1 unknown
	Think   []float64 // seconds between the parent's answer and this row, NaN unknown

	// Service is seconds from a request to the end of its answer, NaN unknown.
	Service []float64
	// Aborted marks rows whose client hung up, so that Out is what had come by
	// then and not what would have come.
	Aborted []bool

	Client  []int32  // index into Clients
	Clients []string // pseudonyms in order of appearance

	// Tick is the resolution of the clock in seconds, 0 where it is exact or
	// arrivals were spread.
	Tick    float64
	Lengths traceformat.LengthRule
}

// Bounds of a Sample in memory: about 50 bytes a row and 8 a block.
const (
	MaxRows   = 16 << 20
	MaxBlocks = 64 << 20
)

// N is the number of rows.
func (s *Sample) N() int { return len(s.Arrival) }

// Rate is rows a second over the Horizon, NaN of an empty Sample.
func (s *Sample) Rate() float64 {
	if s.Horizon <= 0 {
		return math.NaN()
	}
	return float64(s.N()) / s.Horizon
}

// RowBlocks returns the prefix blocks of row i; they belong to the Sample.
func (s *Sample) RowBlocks(i int) []uint64 {
	if s.BlockStart == nil {
		return nil
	}
	return s.Blocks[s.BlockStart[i]:s.BlockStart[i+1]]
}

// HasBlocks says whether any row has prefix blocks.
func (s *Sample) HasBlocks() bool { return len(s.Blocks) > 0 }

// HasSessions says whether any session has a second turn.
func (s *Sample) HasSessions() bool {
	if s.Session == nil {
		return false
	}
	seen := map[int32]bool{}
	for _, id := range s.Session {
		if id >= 0 && seen[id] {
			return true
		}
		seen[id] = true
	}
	return false
}

// pick returns the given rows, ascending, at the given arrivals, over a window
// of horizon seconds. Session numbers stay, parents outside are dropped.
func (s *Sample) pick(rows []int, arrival []float64, horizon float64) *Sample {
	p := &Sample{Name: s.Name, Arrival: arrival, Horizon: horizon, BlockSize: s.BlockSize, Partial: s.Partial,
		Clients: s.Clients, Tick: s.Tick, Lengths: s.Lengths}
	p.In, p.Out = choose(s.In, rows), choose(s.Out, rows)
	p.Cached, p.Reasoning = choose(s.Cached, rows), choose(s.Reasoning, rows)
	p.Session, p.Turn, p.Client = choose(s.Session, rows), choose(s.Turn, rows), choose(s.Client, rows)
	p.Think, p.Service, p.Aborted = choose(s.Think, rows), choose(s.Service, rows), choose(s.Aborted, rows)
	if s.Parent != nil {
		at := make([]int32, s.N())
		for i := range at {
			at[i] = -1
		}
		for i, r := range rows {
			at[r] = int32(i)
		}
		p.Parent = make([]int32, len(rows))
		for i, r := range rows {
			p.Parent[i] = -1
			if parent := s.Parent[r]; parent >= 0 {
				p.Parent[i] = at[parent]
			}
		}
	}
	if s.BlockStart != nil {
		p.BlockStart = make([]int, 1, len(rows)+1)
		for _, r := range rows {
			p.Blocks = append(p.Blocks, s.RowBlocks(r)...)
			p.BlockStart = append(p.BlockStart, len(p.Blocks))
		}
	}
	return p
}

func choose[T any](column []T, rows []int) []T {
	if column == nil {
		return nil
	}
	c := make([]T, len(rows))
	for i, r := range rows {
		c[i] = column[r]
	}
	return c
}

// Slice returns the rows of [from, to) seconds, counted from from. A to at or
// past the Horizon is the end of the Sample, its last row included.
func (s *Sample) Slice(from, to float64) *Sample {
	if to >= s.Horizon {
		to = math.Inf(1)
	}
	lo, _ := slices.BinarySearch(s.Arrival, from)
	hi, _ := slices.BinarySearch(s.Arrival, to)
	rows, at := make([]int, 0, hi-lo), make([]float64, 0, hi-lo)
	for i := lo; i < hi; i++ {
		rows, at = append(rows, i), append(at, s.Arrival[i]-from)
	}
	return s.pick(rows, at, max(min(to, s.Horizon)-from, 0))
}

// Halves cuts the window in the middle.
func (s *Sample) Halves() (first, second *Sample) {
	mid := s.Horizon / 2
	return s.Slice(0, mid), s.Slice(mid, s.Horizon)
}

// Interleave deals blocks of width seconds alternately to two Samples and
// closes the gaps, so that both keep the rate. A last block that is not full is
// dealt like the others.
func (s *Sample) Interleave(width float64) (even, odd *Sample) {
	var rows [2][]int
	var at [2][]float64
	for i, t := range s.Arrival {
		k := int(t / width)
		side := k % 2
		rows[side] = append(rows[side], i)
		at[side] = append(at[side], t-float64(k)*width+float64(k/2)*width)
	}
	var horizon [2]float64
	for left, k := s.Horizon, 0; left > 0; left, k = left-width, k+1 {
		horizon[k%2] += min(width, left)
	}
	return s.pick(rows[0], at[0], horizon[0]), s.pick(rows[1], at[1], horizon[1])
}

// Split deals the rows to two Samples by the toss of a coin. It keeps lengths
// and destroys every order: the floor of what sampling alone does.
func (s *Sample) Split(seed uint64) (a, b *Sample) {
	rng := rand.New(rand.NewPCG(seed, 0x73706c6974))
	var rows [2][]int
	var at [2][]float64
	for i, t := range s.Arrival {
		side := int(rng.Uint64() >> 63)
		rows[side] = append(rows[side], i)
		at[side] = append(at[side], t)
	}
	return s.pick(rows[0], at[0], s.Horizon), s.pick(rows[1], at[1], s.Horizon)
}

// SessionFold deals whole sessions to a number of folds, round-robin in an order
// drawn from seed, and returns the rows of one fold and those of all others.
func (s *Sample) SessionFold(k, folds int, seed uint64) (inside, outside *Sample) {
	var ids []int32
	seen := map[int32]int{}
	for _, id := range s.Session {
		if _, ok := seen[id]; !ok && id >= 0 {
			seen[id] = len(ids)
			ids = append(ids, id)
		}
	}
	rng := rand.New(rand.NewPCG(seed, 0x666f6c64))
	fold := make(map[int32]int, len(ids))
	for i, j := range rng.Perm(len(ids)) {
		fold[ids[j]] = i % folds
	}
	var rows [2][]int
	var at [2][]float64
	for i, t := range s.Arrival {
		side := 1
		if f, ok := fold[s.session(i)]; ok && f == k {
			side = 0
		}
		rows[side] = append(rows[side], i)
		at[side] = append(at[side], t)
	}
	return s.pick(rows[0], at[0], s.Horizon), s.pick(rows[1], at[1], s.Horizon)
}

func (s *Sample) session(i int) int32 {
	if s.Session == nil {
		return -1
	}
	return s.Session[i]
}

// Dequantise spreads arrivals that share a tick uniformly over it and keeps
// their order. A Sample whose clock has no tick is returned as it is.
func (s *Sample) Dequantise(seed uint64) *Sample {
	if s.Tick <= 0 {
		return s
	}
	d := *s
	d.Arrival = make([]float64, s.N())
	rng := rand.New(rand.NewPCG(seed, 0x7469636b))
	for i := 0; i < s.N(); {
		j := i
		for j < s.N() && s.Arrival[j] == s.Arrival[i] {
			d.Arrival[j] = s.Arrival[i] + rng.Float64()*s.Tick
			j++
		}
		slices.Sort(d.Arrival[i:j])
		i = j
	}
	// Stamps that are nearer to each other than a tick may now overlap.
	if !slices.IsSorted(d.Arrival) {
		slices.Sort(d.Arrival)
	}
	d.Tick = 0
	if n := s.N(); n > 0 {
		d.Horizon = max(s.Horizon, d.Arrival[n-1])
	}
	return &d
}

// WithArrivals returns the rows at other times, which are ascending; rows
// beyond them are dropped.
func (s *Sample) WithArrivals(arrival []float64, horizon float64) *Sample {
	if n := len(arrival); n < s.N() {
		rows := make([]int, n)
		for i := range rows {
			rows[i] = i
		}
		s = s.pick(rows, nil, horizon)
	}
	c := *s
	c.Arrival, c.Horizon = arrival[:min(len(arrival), s.rows())], horizon
	return &c
}

// rows counts rows by a column other than Arrival, which pick may have left nil.
func (s *Sample) rows() int {
	return max(len(s.Arrival), len(s.In), len(s.Out), len(s.BlockStart)-1)
}

// AtRate returns the rows with time stretched so that the Rate is rate.
func (s *Sample) AtRate(rate float64) *Sample {
	c := *s
	f := s.Rate() / rate
	c.Arrival = make([]float64, s.N())
	for i, t := range s.Arrival {
		c.Arrival[i] = t * f
	}
	c.Horizon = s.Horizon * f
	return &c
}

// A Builder makes a Sample of rows, one by one. The zero Builder is ready.
type Builder struct {
	s        Sample
	sessions map[int64]int32
	clients  map[string]int32
	ids      []rowKey
	parents  []rowKey // lap -1 where there is none
	last     time.Duration
	unsorted bool
	known    struct{ in, out, cached, reasoning, blocks, session, turn, think, service, aborted, client, parent bool }
}

type rowKey struct {
	id  int64
	lap int32
}

// Add takes a row; it keeps nothing of it. The error says that the trace is
// larger than a Sample may be.
func (b *Builder) Add(r *traceformat.Row) error {
	s := &b.s
	if len(s.Arrival) == MaxRows {
		return fmt.Errorf("the trace has more than %d rows, which is what is compared at most: cut it with trace slice", MaxRows)
	}
	if len(s.Blocks)+len(r.PrefixBlocks) > MaxBlocks {
		return fmt.Errorf("the trace has more than %d prefix blocks, which is what is compared at most: cut it with trace slice", MaxBlocks)
	}
	if b.sessions == nil {
		b.sessions, b.clients = map[int64]int32{}, map[string]int32{}
		s.BlockStart = []int{0}
	}
	k := &b.known
	b.unsorted = b.unsorted || r.Arrival < b.last
	b.last = r.Arrival
	s.Arrival = append(s.Arrival, r.Arrival.Seconds())
	length := func(column *[]int32, v traceformat.Opt[int32], known *bool) {
		*column = append(*column, v.Or(-1))
		*known = *known || v.OK
	}
	length(&s.In, r.PromptTokens, &k.in)
	length(&s.Out, r.OutputTokens, &k.out)
	length(&s.Cached, r.CachedTokens, &k.cached)
	length(&s.Reasoning, r.ReasoningTokens, &k.reasoning)
	length(&s.Turn, r.Turn, &k.turn)
	s.Blocks = append(s.Blocks, r.PrefixBlocks...)
	s.BlockStart = append(s.BlockStart, len(s.Blocks))
	k.blocks = k.blocks || len(r.PrefixBlocks) > 0

	session := int32(-1)
	if id, ok := r.Session.Get(); ok {
		k.session = true
		if session, ok = b.sessions[id]; !ok {
			session = int32(len(b.sessions))
			b.sessions[id] = session
		}
	}
	s.Session = append(s.Session, session)
	think := math.NaN()
	if v, ok := r.Think.Get(); ok {
		think, k.think = v.Seconds(), true
	}
	s.Think = append(s.Think, think)
	service := math.NaN()
	if v, ok := r.E2E.Get(); ok {
		service, k.service = v.Seconds(), true
	}
	s.Service = append(s.Service, service)
	aborted := r.Result == traceformat.ResultClientAbort
	k.aborted = k.aborted || aborted
	s.Aborted = append(s.Aborted, aborted)
	client, ok := b.clients[r.Client]
	if !ok {
		client = int32(len(s.Clients))
		b.clients[r.Client] = client
		s.Clients = append(s.Clients, r.Client)
	}
	k.client = k.client || r.Client != ""
	s.Client = append(s.Client, client)
	b.ids = append(b.ids, rowKey{r.ID, r.Lap})
	parent := rowKey{lap: -1}
	if id, ok := r.Parent.Get(); ok {
		parent, k.parent = rowKey{id, r.Lap}, true
	}
	b.parents = append(b.parents, parent)
	return nil
}

// Sample returns what was added as a trace with header h. The Builder must not
// be used after it.
func (b *Builder) Sample(h *traceformat.Header) *Sample {
	s, k := &b.s, &b.known
	if h != nil {
		s.BlockSize, s.Partial, s.Lengths = h.Blocks.Size, h.Blocks.Partial, h.Lengths
		if h.Clock.Dequantised == "" {
			s.Tick = h.Clock.Tick.Seconds()
		}
	}
	drop := func(column *[]int32, known bool) {
		if !known {
			*column = nil
		}
	}
	drop(&s.In, k.in)
	drop(&s.Out, k.out)
	drop(&s.Cached, k.cached)
	drop(&s.Reasoning, k.reasoning)
	drop(&s.Turn, k.turn)
	drop(&s.Session, k.session)
	drop(&s.Client, k.client)
	if !k.client {
		s.Clients = nil
	}
	if !k.think {
		s.Think = nil
	}
	if !k.service {
		s.Service = nil
	}
	if !k.aborted {
		s.Aborted = nil
	}
	if !k.blocks {
		s.Blocks, s.BlockStart = nil, nil
	}
	if k.parent {
		at := make(map[rowKey]int32, len(b.ids))
		for i, id := range b.ids {
			at[id] = int32(i)
		}
		s.Parent = make([]int32, len(b.parents))
		for i, p := range b.parents {
			s.Parent[i] = -1
			if row, ok := at[p]; ok && p.lap >= 0 {
				s.Parent[i] = row
			}
		}
	}
	b.ids, b.parents = nil, nil
	n := len(s.Arrival)
	if b.unsorted {
		rows := make([]int, n)
		for i := range rows {
			rows[i] = i
		}
		slices.SortStableFunc(rows, func(i, j int) int { return cmp.Compare(s.Arrival[i], s.Arrival[j]) })
		*s = *s.pick(rows, choose(s.Arrival, rows), 0)
	}
	if n > 0 {
		first := s.Arrival[0]
		// A capture may begin long before its first request, or a cut keep the
		// source's times.
		for i := range s.Arrival {
			s.Arrival[i] -= first
		}
		s.Horizon = s.Arrival[n-1]
		if n > 1 {
			s.Horizon += s.Horizon / float64(n-1)
		}
	}
	return s
}
