package traceformat

import (
	"container/heap"
	"errors"
	"fmt"
	"iter"
	"math"
	"strconv"
	"time"
)

// A Source is one input of [Merge].
type Source struct {
	Name   string // becomes Row.Origin of rows that have none
	Reader Reader // sorted
}

// Merge returns a Reader of the rows of all sources in the order of (arrival,
// id, lap). It streams: each source must be sorted, which [Sorted] sees to.
// Closing it closes the sources.
//
// Where every source has an absolute start, rows keep their wall time and the
// merged trace starts at the earliest start; otherwise all count from zero.
//
// Row id i of source k of n becomes i*n+k, and parents with it. Origin and
// OriginID keep what a row was called, unless an earlier merge has set them.
// Ids of sessions and blocks and pseudonyms of clients stay where all sources
// were recorded under one key; otherwise they mean different things and are
// made distinct by source. Sources whose block sizes, partial rules or length
// rules differ cannot be one trace and are refused.
func Merge(sources ...Source) (Reader, error) {
	if len(sources) == 0 {
		return nil, errors.New("nothing to merge")
	}
	m := &merger{}
	heads := make([]namedHeader, len(sources))
	for i, s := range sources {
		heads[i] = namedHeader{s.Name, s.Reader.Header()}
	}
	h, err := mergeHeaders(heads)
	if err != nil {
		return nil, err
	}
	m.header = h
	absolute := !h.Start.IsZero()
	for k, s := range sources {
		in := &mergeInput{Source: s, index: k, count: len(sources), renumbered: true, mix: len(sources) > 1 && h.Keys == ""}
		if absolute {
			in.shift = s.Reader.Header().Start.Sub(h.Start)
		}
		m.inputs = append(m.inputs, in)
	}
	return m, nil
}

// A namedHeader is the header of one source.
type namedHeader struct {
	name string
	*Header
}

// same returns the value that all sources which say something agree on.
func same[T comparable](sources []namedHeader, at func(*Header) T) (v T, ok bool) {
	var zero T
	for _, s := range sources {
		w := at(s.Header)
		switch {
		case w == zero:
		case v == zero:
			v = w
		case v != w:
			return zero, false
		}
	}
	return v, true
}

// everywhere returns the value that all sources have, or zero.
func everywhere[T comparable](sources []namedHeader, at func(*Header) T) T {
	v := at(sources[0].Header)
	for _, s := range sources[1:] {
		if at(s.Header) != v {
			var zero T
			return zero
		}
	}
	return v
}

func mergeHeaders(sources []namedHeader) (*Header, error) {
	h := &Header{Version: Version, Sorted: true}
	var errs []error
	var ok bool
	if h.Blocks.Size, ok = same(sources, func(h *Header) int32 { return h.Blocks.Size }); !ok {
		errs = append(errs, errors.New("block sizes differ"))
	}
	if h.Blocks.Partial, ok = same(sources, func(h *Header) PartialRule { return h.Blocks.Partial }); !ok {
		errs = append(errs, errors.New("rules for a partial last block differ"))
	}
	if h.Lengths, ok = same(sources, func(h *Header) LengthRule { return h.Lengths }); !ok {
		errs = append(errs, errors.New("some count lengths of later turns cumulatively and some do not"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("these traces cannot be merged: %w", err)
	}
	h.Tokenizer = everywhere(sources, func(h *Header) string { return h.Tokenizer })
	h.Keys = everywhere(sources, func(h *Header) string { return h.Keys })
	h.Blocks.Scheme = everywhere(sources, func(h *Header) string { return h.Blocks.Scheme })
	h.Blocks.Of = everywhere(sources, func(h *Header) string { return h.Blocks.Of })
	h.Blocks.Bytes, _ = same(sources, func(h *Header) int32 { return h.Blocks.Bytes })
	h.Blocks.Scope = everywhere(sources, func(h *Header) HashScope { return h.Blocks.Scope })
	if h.Keys == "" && len(sources) > 1 && h.Blocks.Size > 0 {
		h.Blocks.Scheme = "merged"
	}
	h.Origin.Dialect = everywhere(sources, func(h *Header) string { return h.Origin.Dialect })
	h.Origin.Vantage = everywhere(sources, func(h *Header) string { return h.Origin.Vantage })
	h.Clock.Source = everywhere(sources, func(h *Header) string { return h.Clock.Source })
	h.Clock.Dequantised = everywhere(sources, func(h *Header) string { return h.Clock.Dequantised })
	h.Sampling = everywhere(sources, func(h *Header) Sampling { return h.Sampling })
	h.Partial = sources[0].Partial

	absolute := true
	for _, s := range sources {
		absolute = absolute && !s.Start.IsZero()
	}
	for i, s := range sources {
		src := s.Header
		if absolute && (i == 0 || src.Start.Before(h.Start)) {
			h.Start = src.Start
		}
		h.Clock.Tick = max(h.Clock.Tick, src.Clock.Tick)
		if h.Partial == "" {
			h.Partial = src.Partial
		}
		addCounts(&h.Rows, src.Rows)
	}
	if absolute && len(sources) > 1 {
		for _, s := range sources {
			shift := s.Start.Sub(h.Start)
			if shift >= maxArrival {
				return nil, fmt.Errorf("%s starts more than ten years after another source", s.name)
			}
			for _, step := range s.Clock.Steps {
				h.Clock.Steps = append(h.Clock.Steps, ClockStep{At: step.At + shift, By: step.By})
			}
		}
	}
	return h, nil
}

func addCounts(to *Counts, c Counts) {
	to.Seen += c.Seen
	to.Recorded += c.Recorded
	for reason, n := range c.Dropped {
		if to.Dropped == nil {
			to.Dropped = map[string]int64{}
		}
		to.Dropped[reason] += n
	}
}

type merger struct {
	header *Header
	inputs []*mergeInput
	used   bool
}

func (m *merger) Header() *Header { return m.header }

func (m *merger) Close() error {
	var errs []error
	for _, in := range m.inputs {
		errs = append(errs, in.Reader.Close())
	}
	return errors.Join(errs...)
}

func (m *merger) All() iter.Seq2[*Row, error] {
	return func(yield func(*Row, error) bool) {
		if m.used {
			yield(nil, fileError("merge", errors.New("rows were read before")))
			return
		}
		m.used = true
		if !mergeRows(m.inputs, yield) {
			return
		}
		// Sources that count only while they are read know it now.
		m.header.Rows = Counts{}
		for _, in := range m.inputs {
			addCounts(&m.header.Rows, in.Reader.Header().Rows)
		}
	}
}

// mergeRows yields the rows of all inputs in order, and reports whether it came
// to their end.
func mergeRows(inputs []*mergeInput, yield func(*Row, error) bool) bool {
	var h mergeHeap
	for _, in := range inputs {
		next, stop := iter.Pull2(in.Reader.All())
		defer stop()
		in.next = next
		ok, err := in.advance()
		if err != nil {
			yield(nil, err)
			return false
		}
		if ok {
			h = append(h, in)
		}
	}
	heap.Init(&h)
	for len(h) > 0 {
		in := h[0]
		if !yield(in.row, nil) {
			return false
		}
		ok, err := in.advance()
		switch {
		case err != nil:
			yield(nil, err)
			return false
		case ok:
			heap.Fix(&h, 0)
		default:
			heap.Pop(&h)
		}
	}
	return true
}

type mergeInput struct {
	Source
	index, count int
	shift        time.Duration
	renumbered   bool // ids of rows are made new; otherwise they stay
	mix          bool // ids of sessions, blocks and clients mean nothing in other sources
	unordered    bool // rows may come in any order
	next         func() (*Row, error, bool)
	row          *Row
	key          [3]int64
	rows         int64
	clients      map[string]string
}

// advance moves to the next row and makes it one of the merged trace.
func (in *mergeInput) advance() (bool, error) {
	row, err, ok := in.next()
	if !ok || err != nil {
		return false, err
	}
	if err := in.adopt(row); err != nil {
		return false, err
	}
	in.row = row
	return true, nil
}

// adopt makes the next row of the source one of the merged trace.
func (in *mergeInput) adopt(row *Row) error {
	key := row.key()
	if !in.unordered && in.rows > 0 && less(key, in.key) {
		return rowError(in.Name, in.rows, fmt.Errorf("%w: sort it before merging", ErrUnsorted))
	}
	in.key = key
	if in.renumbered {
		if err := in.renumber(row); err != nil {
			return rowError(in.Name, in.rows, err)
		}
	}
	in.move(row)
	in.rows++
	return nil
}

func (in *mergeInput) id(id int64) (int64, error) {
	n := int64(in.count)
	if id > (math.MaxInt64-n)/n || id < math.MinInt64/n {
		return 0, fmt.Errorf("id %d is too large to be renumbered", id)
	}
	return id*n + int64(in.index), nil
}

func (in *mergeInput) renumber(r *Row) (err error) {
	if r.Origin == "" {
		r.Origin, r.OriginID = in.Name, Some(r.ID)
	}
	if r.ID, err = in.id(r.ID); err != nil {
		return err
	}
	if r.Parent.OK {
		if r.Parent.V, err = in.id(r.Parent.V); err != nil {
			return err
		}
	}
	if !in.mix {
		return nil
	}
	if r.Session.OK {
		r.Session.V = int64(in.distinct(uint64(r.Session.V)) >> 1)
	}
	for _, blocks := range [][]uint64{r.PrefixBlocks, r.OutputBlocks} {
		for i, b := range blocks {
			blocks[i] = in.distinct(b)
		}
	}
	if r.Client != "" {
		c, ok := in.clients[r.Client]
		if !ok {
			if in.clients == nil || len(in.clients) >= maxInterned {
				in.clients = map[string]string{}
			}
			c = strconv.Itoa(in.index) + ":" + r.Client
			in.clients[r.Client] = c
		}
		r.Client = c
	}
	return nil
}

// distinct maps ids of one source to ids that no other source has, but for a
// chance of 2^-64 a pair. Within a source no two ids become one.
func (in *mergeInput) distinct(id uint64) uint64 { return mix(id ^ mix(uint64(in.index)+1)) }

// mix is the finaliser of MurmurHash3, a bijection.
func mix(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// move shifts what counts from the start of the trace.
func (in *mergeInput) move(r *Row) {
	if in.shift == 0 {
		return
	}
	r.Arrival += in.shift
	for _, t := range []*Opt[time.Duration]{&r.Scheduled, &r.Wake, &r.Conn, &r.Sent, &r.Headers, &r.FirstEvent, &r.Close} {
		if t.OK {
			t.V += in.shift
		}
	}
}

type mergeHeap []*mergeInput

func (h mergeHeap) Len() int           { return len(h) }
func (h mergeHeap) Less(i, j int) bool { return less(h[i].row.key(), h[j].row.key()) }
func (h mergeHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *mergeHeap) Push(x any)        { *h = append(*h, x.(*mergeInput)) }
func (h *mergeHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	*h = old[:len(old)-1]
	return x
}
