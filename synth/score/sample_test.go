package score

import (
	"math"
	"slices"
	"testing"
	"time"

	"reprise/traceformat"
)

func TestBuilder(t *testing.T) {
	var b Builder
	add := func(r traceformat.Row) {
		t.Helper()
		if err := b.Add(&r); err != nil {
			t.Fatal(err)
		}
	}
	row := func(id int64, at time.Duration) traceformat.Row {
		return traceformat.Row{Request: traceformat.Request{ID: id, Arrival: at}}
	}
	r := row(7, 10*time.Second)
	r.Session, r.Client, r.PromptTokens = traceformat.Some(int64(99)), "b", traceformat.Some(int32(5))
	add(r)
	r = row(9, 40*time.Second) // out of order
	r.Parent, r.Think = traceformat.Some(int64(7)), traceformat.Some(3*time.Second)
	r.Session = traceformat.Some(int64(99))
	add(r)
	r = row(8, 20*time.Second)
	r.PrefixBlocks, r.Client = []uint64{4, 5}, "a"
	add(r)
	s := b.Sample(&traceformat.Header{Clock: traceformat.Clock{Tick: time.Second}, Blocks: traceformat.Blocks{Size: 16}})
	if !slices.Equal(s.Arrival, []float64{0, 10, 30}) || s.Horizon != 45 || s.Tick != 1 || s.BlockSize != 16 {
		t.Errorf("arrival %v, horizon %v, tick %v, block %d", s.Arrival, s.Horizon, s.Tick, s.BlockSize)
	}
	if !slices.Equal(s.In, []int32{5, -1, -1}) || s.Out != nil || s.Cached != nil || s.Turn != nil {
		t.Errorf("in %v, out %v", s.In, s.Out)
	}
	if !slices.Equal(s.Session, []int32{0, -1, 0}) || !slices.Equal(s.Parent, []int32{-1, -1, 0}) {
		t.Errorf("session %v, parent %v", s.Session, s.Parent)
	}
	if !math.IsNaN(s.Think[0]) || s.Think[2] != 3 {
		t.Errorf("think %v", s.Think)
	}
	if len(s.RowBlocks(0)) != 0 || !slices.Equal(s.RowBlocks(1), []uint64{4, 5}) || len(s.RowBlocks(2)) != 0 {
		t.Errorf("blocks %v %v", s.Blocks, s.BlockStart)
	}
	if got := []string{s.Clients[s.Client[0]], s.Clients[s.Client[1]], s.Clients[s.Client[2]]}; !slices.Equal(got, []string{"b", "a", ""}) {
		t.Errorf("clients %q", got)
	}
}

func TestOneRowAndNone(t *testing.T) {
	var b Builder
	if s := b.Sample(nil); s.N() != 0 || !math.IsNaN(s.Rate()) {
		t.Errorf("empty: %d rows at %v/s", s.N(), s.Rate())
	}
	var one Builder
	if err := one.Add(&traceformat.Row{}); err != nil {
		t.Fatal(err)
	}
	if s := one.Sample(nil); s.N() != 1 || s.Horizon != 0 {
		t.Errorf("one row: %+v", s)
	}
}

func TestInterleaveAndHalves(t *testing.T) {
	s := &Sample{Arrival: []float64{0, 5, 10, 15, 20, 25, 30, 34}, Horizon: 35}
	for i := range s.Arrival {
		s.In = append(s.In, int32(i))
		s.Parent = append(s.Parent, int32(i-1))
	}
	even, odd := s.Interleave(10)
	if !slices.Equal(even.In, []int32{0, 1, 4, 5}) || !slices.Equal(even.Arrival, []float64{0, 5, 10, 15}) || even.Horizon != 20 {
		t.Errorf("even: %v at %v of %v", even.In, even.Arrival, even.Horizon)
	}
	if !slices.Equal(odd.In, []int32{2, 3, 6, 7}) || !slices.Equal(odd.Arrival, []float64{0, 5, 10, 14}) || odd.Horizon != 15 {
		t.Errorf("odd: %v at %v of %v", odd.In, odd.Arrival, odd.Horizon)
	}
	if !slices.Equal(odd.Parent, []int32{-1, 0, -1, 2}) {
		t.Errorf("parents of odd: %v", odd.Parent)
	}
	h1, h2 := s.Halves()
	if h1.N() != 4 || h2.N() != 4 || !slices.Equal(h2.Arrival, []float64{2.5, 7.5, 12.5, 16.5}) {
		t.Errorf("halves: %v and %v", h1.Arrival, h2.Arrival)
	}
	a, b := s.Split(1)
	if a.N()+b.N() != s.N() {
		t.Errorf("split in %d and %d", a.N(), b.N())
	}
}

func TestDequantise(t *testing.T) {
	s := &Sample{Arrival: []float64{0, 0, 0, 3, 3, 9}, Horizon: 10, Tick: 3, In: []int32{1, 2, 3, 4, 5, 6}}
	d := s.Dequantise(1)
	if d.Tick != 0 || !slices.IsSorted(d.Arrival) || !slices.Equal(d.In, s.In) {
		t.Errorf("dequantised to %v", d.Arrival)
	}
	for i, at := range d.Arrival {
		if at < s.Arrival[i] || at >= s.Arrival[i]+3 {
			t.Errorf("row %d at %v left its tick %v", i, at, s.Arrival[i])
		}
	}
	if !slices.Equal(s.Dequantise(1).Arrival, d.Arrival) || slices.Equal(s.Dequantise(2).Arrival, d.Arrival) {
		t.Error("the seed does not decide")
	}
}

func TestSessionFolds(t *testing.T) {
	s := &Sample{Arrival: []float64{0, 1, 2, 3, 4}, Horizon: 5, Session: []int32{0, 1, 0, 2, -1}}
	total := 0
	for k := range 3 {
		in, out := s.SessionFold(k, 3, 1)
		total += in.N()
		if in.N()+out.N() != 5 || len(Turns(in)) != 1 || len(Turns(out)) != 2 {
			t.Errorf("fold %d: %v and %v", k, in.Session, out.Session)
		}
	}
	if total != 4 {
		t.Errorf("the folds hold %d rows of sessions, want 4", total)
	}
}

func TestWithArrivals(t *testing.T) {
	s := blocks([]uint64{1}, []uint64{2}, []uint64{3})
	w := s.WithArrivals([]float64{5, 6}, 7)
	if w.N() != 2 || len(w.In) != 2 || w.Horizon != 7 || !slices.Equal(w.RowBlocks(1), []uint64{2}) {
		t.Errorf("%+v", w)
	}
	if w := s.WithArrivals([]float64{1, 2, 3, 4}, 7); w.N() != 3 || !slices.Equal(w.Arrival, []float64{1, 2, 3}) {
		t.Errorf("%+v", w)
	}
}
