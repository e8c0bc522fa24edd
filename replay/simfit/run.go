// Package simfit calibrates the simulated engine to a run against a real one: it
// finds the constants of engine.Cost with which a simulation of the same requests,
// in virtual time, meets the latencies that were measured.
package simfit

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"math"
	"path/filepath"
	"slices"
	"time"

	engines "reprise/backends/sim"
	"reprise/backends/sim/engine"
	"reprise/internal/stats"
	"reprise/replay"
	"reprise/traceformat"
)

// A Run is a run as the fit sees it: the requests that were sent, when they were,
// and what came of them.
type Run struct {
	Name     string
	Manifest *replay.Manifest

	header traceformat.Header
	rows   []traceformat.Row // by time of sending; lengths are those that were served
	real   []outcome         // of each row
	gaps   []gap             // between two tokens of one request, by the second
	rate   float64
}

// An outcome is what was measured of one request, or simulated. 0 is unknown.
type outcome struct {
	ttft, e2e, tpot time.Duration
	cached          int32
	known           bool // cached is
	counts          bool // in figures: it succeeded, and not in the warm-up
}

// Open reads a run's directory.
func Open(dir string) (*Run, error) {
	m, err := replay.ReadManifest(dir)
	if err != nil {
		return nil, fmt.Errorf("%w: sim-fit takes the directory of a run", err)
	}
	rd, err := traceformat.Open(dir)
	if err != nil {
		return nil, err
	}
	defer rd.Close()
	r := &Run{Name: filepath.Base(filepath.Clean(dir)), Manifest: m, header: *rd.Header()}
	type both struct {
		row  traceformat.Row
		real outcome
	}
	var all []both
	for row, err := range rd.All() {
		if err != nil {
			return nil, err
		}
		aborted := row.Result == traceformat.ResultClientAbort
		output, prompt := row.ServedOutputTokens.Or(row.OutputTokens.V), row.ServedPromptTokens.Or(row.PromptTokens.V)
		if !row.Sent.OK || row.Result != traceformat.ResultOK && !aborted || prompt < 1 || output < 1 {
			continue // it says nothing of the engine's pace
		}
		x := both{row: traceformat.Row{Request: row.Clone().Request}}
		x.row.Arrival = row.Sent.V
		x.row.PromptTokens, x.row.OutputTokens = traceformat.Some(prompt), traceformat.Some(output)
		x.row.Session, x.row.Parent = traceformat.Opt[int64]{}, traceformat.Opt[int64]{} // it was sent when it was sent
		if aborted {
			x.row.Result, x.row.MaxTokens = row.Result, row.OutputTokens
		} else {
			x.real.counts = row.Scheduled.V >= m.Plan.Warmup
		}
		x.real.ttft, x.real.e2e = row.TTFT.V, row.E2E.V
		if output > 1 && row.TTFT.OK && row.E2E.V > row.TTFT.V {
			x.real.tpot = (row.E2E.V - row.TTFT.V) / time.Duration(output-1)
		}
		if c, ok := row.ServedCachedTokens.Get(); ok {
			x.real.cached, x.real.known = c, true
		}
		// An event of several tokens is of several passes.
		for i := 1; i < len(row.ChunkTimes) && len(row.ChunkTokens) == len(row.ChunkTimes); i++ {
			if a, b := row.ChunkTimes[i-1], row.ChunkTimes[i]; row.ChunkTokens[i] == 1 && b > a {
				r.gaps = append(r.gaps, gap{row.Sent.V + a, row.Sent.V + b})
			}
		}
		all = append(all, x)
	}
	if len(all) < minRequests {
		return nil, fmt.Errorf("%s: %d requests succeeded, and a fit needs at least %d", dir, len(all), minRequests)
	}
	slices.SortStableFunc(all, func(a, b both) int { return cmp.Compare(a.row.Arrival, b.row.Arrival) })
	for i := range all {
		r.rows, r.real = append(r.rows, all[i].row), append(r.real, all[i].real)
	}
	slices.SortFunc(r.gaps, func(a, b gap) int { return cmp.Or(cmp.Compare(a.to, b.to), cmp.Compare(a.from, b.from)) })
	if span := r.rows[len(r.rows)-1].Arrival - r.rows[0].Arrival; span > 0 {
		r.rate = float64(len(r.rows)-1) / span.Seconds()
	}
	return r, nil
}

// A gap is the time between two tokens of one request, in run time.
type gap struct{ from, to time.Duration }

// minRequests is the least that quantiles can be fitted to.
const minRequests = 20

// Header, All and Close make the rows a trace.
func (r *Run) Header() *traceformat.Header { return &r.header }
func (r *Run) Close() error                { return nil }
func (r *Run) All() iter.Seq2[*traceformat.Row, error] {
	return func(yield func(*traceformat.Row, error) bool) {
		for i := range r.rows {
			row := r.rows[i]
			if !yield(&row, nil) {
				return
			}
		}
	}
}

// key of a row within the run.
type key struct {
	id  int64
	lap int32
}

// A simulator plays the requests of a run against engines of different costs.
type simulator struct {
	run   *Run
	plan  *replay.Plan
	index map[key]int
	conf  engine.Config
	sim   []outcome
	runs  int
}

func newSimulator(r *Run, conf engine.Config) (*simulator, error) {
	o := replay.Defaults()
	o.Aborts, o.TooLong = replay.AbortToken, replay.Fail
	p, err := replay.NewPlan(func() (traceformat.Reader, error) { return r, nil }, o, replay.Target{MaxLen: conf.MaxModelLen, VocabSize: 1 << 17, MinID: 1000})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.Name, err)
	}
	s := &simulator{run: r, plan: p, conf: conf, index: map[key]int{}, sim: make([]outcome, len(r.rows))}
	for i := range r.rows {
		s.index[key{r.rows[i].ID, r.rows[i].Lap}] = i
	}
	return s, nil
}

// play simulates the run with a cost.
func (s *simulator) play(ctx context.Context, c engine.Cost) ([]outcome, error) {
	conf := s.conf
	conf.Cost = c
	v, err := replay.NewVirtual(s.plan, replay.VirtualConfig{Engine: conf, Record: func(row *traceformat.Row) error {
		o := outcome{ttft: row.TTFT.V, e2e: row.E2E.V, cached: row.ServedCachedTokens.V}
		if n := row.ServedOutputTokens.V; n > 1 && row.TTFT.OK {
			o.tpot = (o.e2e - o.ttft) / time.Duration(n-1)
		}
		s.sim[s.index[key{row.ID, row.Lap}]] = o
		return nil
	}})
	if err != nil {
		return nil, err
	}
	s.runs++
	_, err = v.Run(ctx)
	return s.sim, err
}

// metrics are what is compared of a request.
var metrics = []struct {
	name string
	of   func(*outcome) time.Duration
}{
	{"ttft", func(o *outcome) time.Duration { return o.ttft }},
	{"e2e", func(o *outcome) time.Duration { return o.e2e }},
	{"tpot", func(o *outcome) time.Duration { return o.tpot }},
}

// pairs are the figures of one metric where it was measured, request by request.
func (s *simulator) pairs(sim []outcome, of func(*outcome) time.Duration) (real, simulated []float64) {
	for i := range s.run.real {
		if m := of(&s.run.real[i]); s.run.real[i].counts && m > 0 {
			real, simulated = append(real, float64(m)), append(simulated, float64(of(&sim[i])))
		}
	}
	return real, simulated
}

// fitted are the quantiles whose difference a fit minimises.
var fitted = []float64{0.1, 0.25, 0.5, 0.75, 0.9, 0.97}

// loss is the mean over metrics of how far quantiles and single requests are
// off: |ln(simulated / measured)|, so that half as much and twice as much are
// equally bad. Single requests weigh half, each at most 1: in a queue, who came
// a moment earlier may be far ahead.
func (s *simulator) loss(sim []outcome) float64 {
	total, n := 0.0, 0
	for _, m := range metrics {
		real, simulated := s.pairs(sim, m.of)
		if len(real) == 0 {
			continue
		}
		single := 0.0
		for i := range real {
			single += min(1, off(simulated[i], real[i]))
		}
		total += single / float64(len(real)) / 2
		slices.Sort(real)
		slices.Sort(simulated)
		for _, q := range fitted {
			total += off(stats.Quantile(simulated, q), stats.Quantile(real, q)) / float64(len(fitted))
		}
		n++
	}
	if n == 0 {
		return math.Inf(1)
	}
	return total / float64(n)
}

func off(simulated, measured float64) float64 {
	return math.Abs(math.Log(max(simulated, 1) / max(measured, 1)))
}

// compare tells the errors of a simulation.
func (s *simulator) compare(sim []outcome) engines.CostRun {
	r := s.run
	c := engines.CostRun{Run: r.Name, Trace: r.Manifest.Trace.Name, Digest: r.Manifest.Plan.Digest, Rate: r.rate}
	for i := range r.real {
		if r.real[i].counts {
			c.Requests++
			if r.real[i].known {
				c.Cached += int64(r.real[i].cached)
				c.Simulated += int64(sim[i].cached)
			}
		}
	}
	for _, m := range metrics {
		real, simulated := s.pairs(sim, m.of)
		if len(real) == 0 {
			continue
		}
		var single []float64
		for i := range real {
			single = append(single, math.Abs(simulated[i]/real[i]-1))
		}
		slices.Sort(single)
		c.PerRow = append(c.PerRow, engines.CostSpread{Metric: m.name, P50: stats.Quantile(single, 0.5), P90: stats.Quantile(single, 0.9)})
		slices.Sort(real)
		slices.Sort(simulated)
		for _, q := range []float64{0.5, 0.9, 0.99} {
			a, b := stats.Quantile(real, q), stats.Quantile(simulated, q)
			c.Errors = append(c.Errors, engines.CostError{Metric: m.name, Quantile: q, Measured: time.Duration(a), Simulated: time.Duration(b), Error: b/a - 1})
		}
	}
	return c
}
