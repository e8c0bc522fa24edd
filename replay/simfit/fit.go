package simfit

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"gonum.org/v1/gonum/optimize"

	engines "reprise/backends/sim"
	"reprise/backends/sim/engine"
	"reprise/internal/stats"
)

// Options bound a fit.
type Options struct {
	Evaluations int // simulations of the run, at most
	// Say, if set, is told how far it is.
	Say func(evaluations int, loss float64)
}

// DefaultEvaluations are enough for seven constants: more gain less than a
// percent of the loss.
const DefaultEvaluations = 700

// A Result is a fitted cost.
type Result struct {
	Cost, Start engine.Cost
	Loss        float64
	Evaluations int
	Run         engines.CostRun
}

// A parameter is one constant of a cost, and the least that it can be told
// apart from 0.
type parameter struct {
	of    func(*engine.Cost) *float64
	floor float64
}

// Constants in the order of a vector; a vector holds their logarithms.
var parameters = []parameter{
	{func(c *engine.Cost) *float64 { return &c.Step }, 1e3},
	{func(c *engine.Cost) *float64 { return &c.Seq }, 10},
	{func(c *engine.Cost) *float64 { return &c.Weights }, 1e3},
	{func(c *engine.Cost) *float64 { return &c.Token }, 10},
	{func(c *engine.Cost) *float64 { return &c.Pair }, 1e-3},
	{func(c *engine.Cost) *float64 { return &c.KV }, 1e-3},
	{func(c *engine.Cost) *float64 { return &c.Admit }, 1e3},
}

func vector(c engine.Cost) []float64 {
	x := make([]float64, len(parameters))
	for i, p := range parameters {
		x[i] = math.Log(max(p.floor, *p.of(&c)))
	}
	return x
}

func costOf(x []float64) (c engine.Cost) {
	for i, p := range parameters {
		*p.of(&c) = math.Exp(x[i])
	}
	return c
}

// Fit finds the cost with which a simulation meets r. It starts from least squares
// on the time between tokens and from the shape of a GPU, and goes downhill from
// the better of both, then once more, as a simplex may collapse on the way.
func Fit(ctx context.Context, r *Run, conf engine.Config, o Options) (*Result, error) {
	s, err := newSimulator(r, conf)
	if err != nil {
		return nil, err
	}
	if o.Evaluations == 0 {
		o.Evaluations = DefaultEvaluations
	}
	best := &Result{Loss: math.Inf(1)}
	var failed error
	try := func(x []float64) float64 {
		if failed != nil {
			return math.Inf(1)
		}
		c := costOf(x)
		if c.Validate() != nil {
			return math.Inf(1)
		}
		sim, err := s.play(ctx, c)
		if err != nil {
			failed = err
			return math.Inf(1)
		}
		loss := s.loss(sim)
		if loss < best.Loss {
			best.Loss, best.Cost = loss, c
		}
		if o.Say != nil && s.runs%100 == 0 {
			o.Say(s.runs, best.Loss)
		}
		return loss
	}
	for _, c := range s.starts() {
		x := s.admitted(c, try)
		if try(x); failed != nil {
			return nil, failed
		}
	}
	if math.IsInf(best.Loss, 1) {
		return nil, fmt.Errorf("%s: nothing to fit to: no request has a latency", r.Name)
	}
	best.Start = best.Cost
	for _, size := range []float64{0.7, 0.3, 0.15} {
		left := (o.Evaluations - s.runs) / 2
		if size == 0.15 {
			left = o.Evaluations - s.runs
		}
		if left <= 2*len(parameters) {
			break
		}
		_, err := optimize.Minimize(optimize.Problem{Func: try}, vector(best.Cost), &optimize.Settings{
			FuncEvaluations: left, Converger: &optimize.FunctionConverge{Absolute: 1e-4, Iterations: 60},
		}, &optimize.NelderMead{SimplexSize: size})
		if failed != nil {
			return nil, failed
		}
		if err != nil && math.IsInf(best.Loss, 1) {
			return nil, err
		}
	}
	// What is at its floor is not there.
	for _, p := range parameters {
		if v := p.of(&best.Cost); *v <= p.floor {
			*v = 0
		}
	}
	best.Evaluations = s.runs
	best.Run, err = Compare(ctx, r, conf, best.Cost)
	return best, err
}

// Compare simulates r with a cost and tells the errors.
func Compare(ctx context.Context, r *Run, conf engine.Config, c engine.Cost) (engines.CostRun, error) {
	s, err := newSimulator(r, conf)
	if err != nil {
		return engines.CostRun{}, err
	}
	sim, err := s.play(ctx, c)
	if err != nil {
		return engines.CostRun{}, err
	}
	return s.compare(sim), nil
}

// starts are costs to begin from.
func (s *simulator) starts() []engine.Cost {
	var all []engine.Cost
	squares, ok := s.leastSquares()
	if ok {
		all = append(all, squares)
	}
	// The shape of a GPU, as fast as the median decode step of the run.
	var tpots []float64
	for i := range s.run.real {
		if t := s.run.real[i].tpot; t > 0 {
			tpots = append(tpots, float64(t))
		}
	}
	if p, err := engine.PresetNamed(""); err == nil && len(tpots) > 0 {
		slices.Sort(tpots)
		f := stats.Quantile(tpots, 0.5) / (p.Cost.Step + p.Cost.Weights)
		c := p.Cost
		for _, q := range parameters {
			*q.of(&c) *= f
		}
		all = append(all, c)
	}
	return all
}

// admitted sets what a request spends before the queue: the difference of the
// median TTFT without it.
func (s *simulator) admitted(c engine.Cost, try func([]float64) float64) []float64 {
	c.Admit = 0
	try(vector(c))
	real, simulated := s.pairs(s.sim, metrics[0].of)
	if len(real) == 0 {
		return vector(c)
	}
	slices.Sort(real)
	slices.Sort(simulated)
	c.Admit = max(0, stats.Quantile(real, 0.25)-stats.Quantile(simulated, 0.25))
	return vector(c)
}

// squaredGaps bounds the gaps between tokens that least squares take.
const squaredGaps = 20_000

// leastSquares takes the time between two tokens of one request for the time of
// a pass, and what was in flight then for its batch. It is rough: a long prompt
// is counted in the pass that ends it.
func (s *simulator) leastSquares() (engine.Cost, bool) {
	r := s.run
	type change struct {
		at         time.Duration
		n          float64 // requests
		ctx, slope float64 // their context at time 0, and its growth
	}
	type prompt struct {
		at            time.Duration
		tokens, pairs float64
	}
	var changes []change
	var prompts []prompt
	type gap struct{ from, to time.Duration }
	var gaps []gap
	total := 0
	for _, c := range r.chunks {
		total += max(0, len(c)-1)
	}
	every := max(1, total/squaredGaps)
	n := 0
	for i, c := range r.chunks {
		if len(c) < 2 {
			continue
		}
		at := r.rows[i].Arrival
		first, last := at+c[0], at+c[len(c)-1]
		p, cached := float64(r.rows[i].PromptTokens.V), float64(r.real[i].cached)
		slope := float64(len(c)-1) / float64(max(1, last-first))
		base := p - slope*float64(first)
		changes = append(changes, change{first, 1, base, slope}, change{last, -1, -base, -slope})
		fresh := max(1, p-cached)
		prompts = append(prompts, prompt{first, fresh, fresh*cached + fresh*(fresh+1)/2})
		for k := 1; k < len(c); k++ {
			if n++; n%every == 0 && c[k] > c[k-1] {
				gaps = append(gaps, gap{at + c[k-1], at + c[k]})
			}
		}
	}
	if len(gaps) < 10*minRequests {
		return engine.Cost{}, false
	}
	slices.SortFunc(changes, func(a, b change) int { return int(a.at - b.at) })
	slices.SortFunc(prompts, func(a, b prompt) int { return int(a.at - b.at) })
	slices.SortFunc(gaps, func(a, b gap) int { return int(a.to - b.to) })
	const k = 5 // step, sequence, token, pair, context
	var xx [k][k]float64
	var xy [k]float64
	var at change
	next := 0
	for _, g := range gaps {
		mid := g.from + (g.to-g.from)/2
		for ; next < len(changes) && changes[next].at <= mid; next++ {
			at.n += changes[next].n
			at.ctx += changes[next].ctx
			at.slope += changes[next].slope
		}
		x := [k]float64{1, at.n, at.n, 0, at.ctx + at.slope*float64(mid)}
		lo, _ := slices.BinarySearchFunc(prompts, g.from+1, func(p prompt, t time.Duration) int { return int(p.at - t) })
		for ; lo < len(prompts) && prompts[lo].at <= g.to; lo++ {
			x[2] += prompts[lo].tokens
			x[3] += prompts[lo].pairs
		}
		// Relative errors count, or the few passes with long prompts would be all.
		y := float64(g.to - g.from)
		for a := range k {
			for b := range k {
				xx[a][b] += x[a] * x[b] / (y * y)
			}
			xy[a] += x[a] / y
		}
	}
	b := nonNegative(xx[:], xy[:])
	c := engine.Cost{Step: b[0], Seq: b[1], Token: b[2], Pair: b[3], KV: b[4]}
	return c, c.Validate() == nil
}

// nonNegative solves the normal equations of least squares with no coefficient
// below 0, one after another until they stay.
func nonNegative(xx [][5]float64, xy []float64) []float64 {
	b := make([]float64, len(xy))
	for range 2000 {
		moved := 0.0
		for i := range b {
			if xx[i][i] == 0 {
				continue
			}
			v := xy[i]
			for j := range b {
				if j != i {
					v -= xx[i][j] * b[j]
				}
			}
			v = max(0, v/xx[i][i])
			if d := math.Abs(v - b[i]); d > 1e-9*v {
				moved = max(moved, d)
			}
			b[i] = v
		}
		if moved == 0 {
			break
		}
	}
	return b
}
