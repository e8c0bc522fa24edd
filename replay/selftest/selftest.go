// Package selftest measures this machine's floor: how exactly it sends and how
// exactly it times, against a mock server whose delays are known. What a
// replay reports beyond these figures is the server's.
//
// The mock is a child process of the same program, so that it shares neither
// scheduler nor garbage collector with the sender; on a small machine the two
// still share its cores, and the figures are those of both together.
package selftest

import (
	"context"
	"fmt"
	"io"
	"iter"
	"math"
	"slices"
	"time"

	"reprise/backends"
	"reprise/backends/vllm"
	"reprise/internal/stats"
	"reprise/internal/units"
	"reprise/internal/wire"
	"reprise/internal/wire/mock"
	"reprise/replay"
	"reprise/traceformat"
)

// A Test is one hard trace, played against one mock.
type Test struct {
	Name  string
	About string
	Mock  mock.Options
	rows  func(yield func(at time.Duration, output int) bool)
	loop  int // closed loop with this many users
}

// Tests returns the traces of the self-test. scale shortens them: 1 takes about
// half a minute.
func Tests(scale float64) []Test {
	n := func(v float64) int { return max(1, int(v*scale)) }
	const ms = time.Millisecond
	return []Test{{
		Name: "steady", About: "5,000 requests a second, 2 tokens each",
		Mock: mock.Options{FirstToken: 20 * ms, Gap: 10 * ms, PerWrite: 1},
		rows: every(n(5000*5), time.Second/5000, 2),
	}, {
		Name: "burst", About: "50 requests a second, 16 tokens each, with 200 more in 10 ms",
		Mock: mock.Options{FirstToken: 50 * ms, Gap: 5 * ms, PerWrite: 1},
		rows: merge(every(n(50*6), time.Second/50, 16), burst(3*time.Second, 200, 10*ms, 16)),
	}, {
		Name: "streams", About: "10,000 streams at a time, a token a second each",
		Mock: mock.Options{FirstToken: 100 * ms, Gap: time.Second, PerWrite: 1},
		rows: every(n(10000), time.Duration(float64(5*time.Second)/10000), 6),
	}, {
		Name: "rate", About: "as fast as 64 streams at a time go, 16 tokens in one write",
		Mock: mock.Options{},
		rows: every(n(150000), 0, 16), loop: 64,
	}}
}

func every(n int, gap time.Duration, output int) func(func(time.Duration, int) bool) {
	return func(yield func(time.Duration, int) bool) {
		for i := range n {
			if !yield(time.Duration(i)*gap, output) {
				return
			}
		}
	}
}

func burst(at time.Duration, n int, within time.Duration, output int) func(func(time.Duration, int) bool) {
	return func(yield func(time.Duration, int) bool) {
		for i := range n {
			if !yield(at+within*time.Duration(i)/time.Duration(n), output) {
				return
			}
		}
	}
}

// merge joins two ascending sequences.
func merge(a, b func(func(time.Duration, int) bool)) func(func(time.Duration, int) bool) {
	type arrival struct {
		at     time.Duration
		output int
	}
	return func(yield func(time.Duration, int) bool) {
		var all []arrival
		for _, s := range []func(func(time.Duration, int) bool){a, b} {
			s(func(at time.Duration, output int) bool {
				all = append(all, arrival{at, output})
				return true
			})
		}
		slices.SortStableFunc(all, func(a, b arrival) int { return int(a.at - b.at) })
		for _, x := range all {
			if !yield(x.at, x.output) {
				return
			}
		}
	}
}

// trace is the Test as a trace.
type trace struct{ t *Test }

func (trace) Header() *traceformat.Header { return &traceformat.Header{Sorted: true} }
func (trace) Close() error                { return nil }
func (t trace) All() iter.Seq2[*traceformat.Row, error] {
	return func(yield func(*traceformat.Row, error) bool) {
		var row traceformat.Row
		t.t.rows(func(at time.Duration, output int) bool {
			row.Arrival = at
			row.PromptTokens, row.OutputTokens = traceformat.Some[int32](16), traceformat.Some(int32(output))
			ok := yield(&row, nil)
			row.ID++
			return ok
		})
	}
}

// A Spread is a distribution in nanoseconds; P99 is 0 below 500 values.
type Spread struct {
	P50 float64 `json:"p50"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

func spread(v []float64) Spread {
	if len(v) == 0 {
		return Spread{}
	}
	slices.Sort(v)
	s := Spread{P50: stats.Quantile(v, 0.5), Max: v[len(v)-1]}
	if len(v) >= 500 {
		s.P99 = stats.Quantile(v, 0.99)
	}
	return s
}

// A Result is what one Test found.
type Result struct {
	Name     string `json:"name"`
	About    string `json:"about"`
	Requests int64  `json:"requests"`
	Failed   int64  `json:"failed"`
	Peak     int64  `json:"in_flight_peak"`

	SendError Spread `json:"send_error_ns"` // |sent - scheduled|
	// TTFTError and ITLError are how far the reported latency is from the
	// mock's configured one, from the actual send. The mock's own lateness is
	// in them.
	TTFTError Spread `json:"ttft_error_ns"`
	ITLError  Spread `json:"itl_error_ns"`
	MockLate  Spread `json:"mock_lateness_ns"`

	PerSecond float64 `json:"requests_per_second"`
	// LateEnd is how much later than planned the last request went out, over
	// the planned span.
	LateEnd    float64       `json:"last_send_late_share"`
	CPU        time.Duration `json:"cpu_per_request_ns"` // of the sender
	MemoryPeak int64         `json:"memory_peak_bytes"`  // of the sender, so far
	Client     string        `json:"client"`
	ClosedLoop int           `json:"closed_loop,omitempty"`
}

// Run plays t and measures it.
func Run(ctx context.Context, t Test) (*Result, error) {
	m, err := startMock(ctx, t.Mock)
	if err != nil {
		return nil, err
	}
	defer m.stop()
	b, err := vllm.New(backends.Config{URL: m.url})
	if err != nil {
		return nil, err
	}
	if _, err := b.Probe(ctx); err != nil {
		return nil, fmt.Errorf("asking the mock server what it is: %w", err)
	}
	o := replay.Defaults()
	o.Concurrency = t.loop
	plan, err := replay.NewPlan(func() (traceformat.Reader, error) { return trace{&t}, nil }, o, replay.Target{VocabSize: 32000})
	if err != nil {
		return nil, err
	}
	if err := wire.Preflight(plan.Connections); err != nil {
		return nil, err
	}
	client, err := wire.New(m.url, wire.Options{RetryStale: true})
	if err != nil {
		return nil, err
	}
	defer client.Close()

	r := &Result{Name: t.Name, About: t.About, Client: client.Kind(), ClosedLoop: t.loop}
	var send, ttft, itl []float64
	var firstSent, lastSent, lastDue, lastEnd time.Duration
	firstSent = math.MaxInt64
	gap := t.Mock.Gap
	cpu := cpuTime()
	s, err := plan.Run(ctx, replay.Config{Backend: b, Client: client, Record: func(row *traceformat.Row) error {
		r.Requests++
		if row.Result != traceformat.ResultOK || row.ServedOutputTokens.V != row.OutputTokens.V {
			r.Failed++
			return nil
		}
		firstSent, lastSent = min(firstSent, row.Sent.V), max(lastSent, row.Sent.V)
		lastDue, lastEnd = max(lastDue, row.Scheduled.V), max(lastEnd, row.Close.V)
		send = append(send, math.Abs(float64(row.Sent.V-row.Scheduled.V)))
		if t.loop > 0 {
			return nil
		}
		ttft = append(ttft, math.Abs(float64(row.TTFT.V-t.Mock.FirstToken)))
		for i := 1; i < len(row.ChunkTimes); i++ {
			itl = append(itl, math.Abs(float64(row.ChunkTimes[i]-row.ChunkTimes[i-1]-gap)))
		}
		return nil
	}})
	if err != nil {
		return nil, err
	}
	r.CPU = (cpuTime() - cpu) / time.Duration(max(1, s.Sent))
	r.MemoryPeak = maxRSS()
	r.Peak = s.Peak
	r.SendError, r.TTFTError, r.ITLError = spread(send), spread(ttft), spread(itl)
	if span := lastSent - firstSent; span > 0 {
		r.PerSecond = float64(r.Requests) / max(span, lastEnd-firstSent).Seconds()
		if t.loop == 0 {
			r.PerSecond = float64(r.Requests-1) / span.Seconds()
		}
	}
	if t.loop == 0 && lastDue > 0 {
		r.LateEnd = float64(lastSent-lastDue) / float64(lastDue)
	}
	if late, err := m.stats(ctx); err == nil && t.loop == 0 {
		r.MockLate = Spread{float64(late.LateP50), float64(late.LateP99), float64(late.LateMax)}
	}
	return r, nil
}

// Render prints results for a person.
func Render(w io.Writer, rs []*Result) {
	line := func(name string, s Spread) {
		p99 := "-"
		if s.P99 > 0 {
			p99 = units.Duration(time.Duration(s.P99))
		}
		fmt.Fprintf(w, "  %-22s %10s %10s %10s\n", name, units.Duration(time.Duration(s.P50)), p99, units.Duration(time.Duration(s.Max)))
	}
	for _, r := range rs {
		fmt.Fprintf(w, "%s: %s\n", r.Name, r.About)
		fmt.Fprintf(w, "  %s requests, %s failed, %s in flight, %s/s, %s CPU each, %s peak\n", units.Count(r.Requests), units.Count(r.Failed),
			units.Count(r.Peak), units.Count(int64(r.PerSecond)), units.Duration(r.CPU), units.Bytes(r.MemoryPeak))
		if r.ClosedLoop > 0 {
			fmt.Fprintln(w)
			continue
		}
		fmt.Fprintf(w, "  %-22s %10s %10s %10s\n", "", "p50", "p99", "max")
		line("send error", r.SendError)
		line("TTFT error", r.TTFTError)
		line("ITL error", r.ITLError)
		line("the mock's lateness", r.MockLate)
		fmt.Fprintf(w, "  the last send was %.3f %% of the span late\n\n", 100*r.LateEnd)
	}
}
