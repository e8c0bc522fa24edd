package capture

import (
	"errors"
	"iter"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"reprise/traceformat"
)

// rowsReader is a trace in memory.
type rowsReader struct {
	header traceformat.Header
	rows   []*traceformat.Row
}

func (r *rowsReader) Header() *traceformat.Header { return &r.header }
func (r *rowsReader) Close() error                { return nil }
func (r *rowsReader) All() iter.Seq2[*traceformat.Row, error] {
	return func(yield func(*traceformat.Row, error) bool) {
		for _, row := range r.rows {
			if !yield(row, nil) {
				return
			}
		}
	}
}

// traffic is n requests at about rate a second, with answers of some length.
func traffic(rng *rand.Rand, n int, rate float64) *rowsReader {
	r := &rowsReader{header: traceformat.Header{Start: time.Unix(0, epoch), Keys: "k", Blocks: traceformat.Blocks{Scheme: BlockScheme, Bytes: 64}}}
	at := time.Duration(0)
	for i := range n {
		at += time.Duration(rng.ExpFloat64() / rate * 1e9)
		row := &traceformat.Row{}
		row.ID, row.Arrival, row.Endpoint = int64(i), at, traceformat.EndpointChat
		row.PromptTokens, row.PromptTokensSource = traceformat.Some(int32(1+rng.IntN(4000))), traceformat.SourceUsage
		row.OutputTokens, row.OutputTokensSource = traceformat.Some(int32(1+rng.IntN(1000))), traceformat.SourceUsage
		row.PrefixBlocks = []uint64{rng.Uint64(), rng.Uint64()}
		row.TTFT = traceformat.Some(time.Duration(20e6 + rng.ExpFloat64()*1e8))
		row.E2E = traceformat.Some(row.TTFT.V + time.Duration(rng.ExpFloat64()*2e9))
		row.Status, row.Result = traceformat.Some[int16](200), traceformat.ResultOK
		if rng.IntN(20) == 0 {
			row.Result, row.Abort = traceformat.ResultClientAbort, row.E2E
		}
		r.rows = append(r.rows, row)
	}
	return r
}

// view is what another capture makes of the same traffic.
func (r *rowsReader) view(rng *rand.Rand, offset time.Duration, jitter time.Duration, lose float64, change func(*traceformat.Row)) *rowsReader {
	v := &rowsReader{header: r.header}
	v.header.Start = r.header.Start.Add(offset)
	for _, row := range r.rows {
		if rng.Float64() < lose {
			continue
		}
		c := row.Clone()
		c.Arrival += time.Duration(rng.Float64() * float64(jitter))
		if change != nil {
			change(c)
		}
		v.rows = append(v.rows, c)
	}
	slices.SortStableFunc(v.rows, (*traceformat.Row).Compare)
	return v
}

func TestCompare(t *testing.T) {
	bare := func(r *traceformat.Row) { // what an nginx log knows
		row := traceformat.Row{}
		row.ID, row.Arrival, row.E2E, row.Status, row.Result = r.ID, r.Arrival, r.E2E, r.Status, r.Result
		row.Arrival = row.Arrival.Round(time.Millisecond)
		if row.E2E.OK {
			row.E2E.V = row.E2E.V.Round(time.Millisecond)
		}
		*r = row
	}
	tests := []struct {
		name           string
		n              int
		rate           float64
		offset, jitter time.Duration
		loseA, loseB   float64
		change         func(*traceformat.Row)
		wrong          float64 // share of wrong pairs that is allowed
	}{
		{name: "the same", n: 3000, rate: 50},
		{name: "a few milliseconds", n: 3000, rate: 50, offset: 7 * time.Millisecond, jitter: 200 * time.Microsecond, loseA: 0.02, loseB: 0.05},
		{name: "a time zone", n: 3000, rate: 50, offset: -2 * time.Hour, jitter: time.Millisecond, loseB: 0.3},
		{name: "a log", n: 3000, rate: 20, offset: 1500 * time.Millisecond, jitter: time.Millisecond, loseA: 0.03, loseB: 0.01, change: bare, wrong: 0.002},
		{name: "a busy log", n: 20000, rate: 500, offset: -40 * time.Millisecond, jitter: time.Millisecond, loseA: 0.01, loseB: 0.01, change: bare, wrong: 0.01},
		{name: "a log in another zone", n: 3000, rate: 20, offset: 9 * time.Hour, jitter: time.Millisecond, change: bare, wrong: 0.002},
		{name: "five rows", n: 5, rate: 1, offset: time.Second, jitter: time.Millisecond},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, uint64(len(tt.name))))
			truth := traffic(rng, tt.n, tt.rate)
			a := truth.view(rng, 0, 0, tt.loseA, nil)
			b := truth.view(rng, tt.offset, tt.jitter, tt.loseB, tt.change)
			c, err := Compare(t.Context(), a, b, CompareOptions{})
			if err != nil {
				t.Fatal(err)
			}
			in := func(r *rowsReader) map[int64]bool {
				m := map[int64]bool{}
				for _, row := range r.rows {
					m[row.ID] = true
				}
				return m
			}
			inA, inB := in(a), in(b)
			both := 0
			for id := range inA {
				if inB[id] {
					both++
				}
			}
			slack := int64(tt.wrong*float64(tt.n)) + 0
			if d := c.Matched - int64(both); d < -slack || d > slack {
				t.Errorf("%d matched, want %d within %d", c.Matched, both, slack)
			}
			if got, want := c.MissingA+c.OutsideA, int64(len(inB))-c.Matched; got != want {
				t.Errorf("%d rows of b are not in a, want %d", got, want)
			}
			if got, want := c.MissingB+c.OutsideB, int64(len(inA))-c.Matched; got != want {
				t.Errorf("%d rows of a are not in b, want %d", got, want)
			}
			if d := c.Offset - tt.offset - tt.jitter/2; d > tt.jitter/2+50*time.Microsecond || d < -tt.jitter/2-50*time.Microsecond {
				t.Errorf("offset %v, want about %v", c.Offset, tt.offset+tt.jitter/2)
			}
			if c.Arrival.P99 > tt.jitter+time.Millisecond {
				t.Errorf("arrivals differ by %v at p99", c.Arrival.P99)
			}
			if s := c.Aborts.Share(); !(s >= 1-2*tt.wrong) {
				t.Errorf("aborts agree on %v", s)
			}
			if tt.change == nil && (c.TTFT == nil || c.TTFT.Max != 0 || c.Prompt == nil || c.Prompt.Equal != c.Prompt.Both || c.Blocks == nil) {
				t.Errorf("TTFT %+v, prompt %+v, blocks %+v: want no difference", c.TTFT, c.Prompt, c.Blocks)
			}
			if len(c.Warnings) > 0 {
				t.Errorf("warnings %q", c.Warnings)
			}
		})
	}
}

// Two captures that have nothing to do with one another are not talked into
// agreeing.
func TestCompareStrangers(t *testing.T) {
	a := traffic(rand.New(rand.NewPCG(1, 1)), 2000, 50)
	b := traffic(rand.New(rand.NewPCG(2, 2)), 2000, 50)
	c, err := Compare(t.Context(), a, b, CompareOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if c.Matched != 0 || len(c.Warnings) == 0 {
		t.Errorf("%d of 2000 matched, warnings %q; want none, and a warning", c.Matched, c.Warnings)
	}
	if err := c.Within(Bounds{Missing: 0.5}); !errors.Is(err, ErrDiffer) {
		t.Errorf("Within = %v", err)
	}
	empty := &rowsReader{}
	if c, err = Compare(t.Context(), a, empty, CompareOptions{}); err != nil || c.Matched != 0 || c.MissingB != 2000 {
		t.Errorf("against nothing: %+v, %v", c, err)
	}
}

// A proxy that holds events back is noticed.
func TestCompareCoalescing(t *testing.T) {
	mk := func(per int, gap time.Duration) *rowsReader {
		r := &rowsReader{header: traceformat.Header{Start: time.Unix(0, epoch)}}
		for i := range 10 {
			row := &traceformat.Row{}
			row.ID, row.Arrival = int64(i), time.Duration(i)*time.Second
			for k := range 60 {
				row.ChunkTimes = append(row.ChunkTimes, time.Duration(k/per)*gap)
				row.ChunkTokens = append(row.ChunkTokens, 1)
			}
			row.TTFT, row.E2E = traceformat.Some(row.ChunkTimes[0]), traceformat.Some(row.ChunkTimes[59])
			r.rows = append(r.rows, row)
		}
		return r
	}
	c, err := Compare(t.Context(), mk(1, 20*time.Millisecond), mk(5, 100*time.Millisecond), CompareOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if c.EventsA.Coalesced || !c.EventsB.Coalesced || c.EventsB.Reads != 120 || c.EventsB.Multi != 120 {
		t.Errorf("events %+v and %+v", c.EventsA, c.EventsB)
	}
	if len(c.Warnings) != 1 || !strings.HasPrefix(c.Warnings[0], "b saw several events") {
		t.Errorf("warnings %q", c.Warnings)
	}
	// A fast engine is not a proxy that holds back.
	if c, err = Compare(t.Context(), mk(1, 500*time.Microsecond), mk(1, 500*time.Microsecond), CompareOptions{}); err != nil || len(c.Warnings) != 0 {
		t.Errorf("warnings %q, %v", c.Warnings, err)
	}
}

func TestWithin(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	truth := traffic(rng, 1000, 50)
	c, err := Compare(t.Context(), truth.view(rng, 0, 0, 0, nil), truth.view(rng, 0, 2*time.Millisecond, 0.05, func(r *traceformat.Row) {
		r.TTFT.V += time.Duration(r.ID%3) * time.Millisecond
		r.Result = traceformat.ResultOK
	}), CompareOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		b    Bounds
		want string
	}{
		{Bounds{}, ""},
		{Bounds{Missing: 0.1, Arrival: 5 * time.Millisecond, TTFT: 5 * time.Millisecond, Aborts: 0.9}, ""},
		{Bounds{Missing: 0.01}, "b does not have"},
		{Bounds{Arrival: 500 * time.Microsecond}, "arrival"},
		{Bounds{TTFT: time.Millisecond}, "TTFT"},
		{Bounds{Aborts: 0.99}, "abort"},
	} {
		err := c.Within(tt.b)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || !errors.Is(err, ErrDiffer)) {
			t.Errorf("Within(%+v) = %v, want %q", tt.b, err, tt.want)
		}
	}
}
