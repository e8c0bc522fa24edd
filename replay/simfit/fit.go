package simfit

import (
	"cmp"
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

// promising is from how many starts a fit goes some way downhill.
const promising = 3

// Fit finds the cost with which a simulation meets r. It starts from least squares
// on the time between tokens and from the shape of a GPU, goes downhill from the
// best of them, and then from where that led, as a simplex may collapse on the
// way.
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
	var begun []*Result
	for _, c := range s.starts() {
		c = s.admitted(c, try)
		loss := try(vector(c))
		if failed != nil {
			return nil, failed
		}
		begun = append(begun, &Result{Start: c, Loss: loss})
	}
	if math.IsInf(best.Loss, 1) {
		return nil, fmt.Errorf("%s: nothing to fit to: no request has a latency", r.Name)
	}
	slices.SortStableFunc(begun, func(a, b *Result) int { return cmp.Compare(a.Loss, b.Loss) })
	descend := func(from engine.Cost, size float64, evaluations int) {
		if evaluations <= 2*len(parameters) || failed != nil {
			return
		}
		// Its error is that it was stopped, which is what evaluations are for.
		_, _ = optimize.Minimize(optimize.Problem{Func: try}, vector(from), &optimize.Settings{
			FuncEvaluations: evaluations, Converger: &optimize.FunctionConverge{Absolute: 1e-4, Iterations: 60},
		}, &optimize.NelderMead{SimplexSize: size})
	}
	for _, b := range begun[:min(len(begun), promising)] {
		before := best.Loss
		descend(b.Start, 0.5, (o.Evaluations-s.runs)/(promising+3))
		if best.Loss < before {
			best.Start = b.Start
		}
	}
	for _, size := range []float64{0.4, 0.2} {
		descend(best.Cost, size, (o.Evaluations-s.runs)/2)
	}
	descend(best.Cost, 0.1, o.Evaluations-s.runs)
	if failed != nil {
		return nil, failed
	}
	// What is at its floor is not there.
	for _, p := range parameters {
		if v := p.of(&best.Cost); *v <= 1.01*p.floor {
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
	all = append(all, s.leastSquares()...)
	// The shape of a GPU, slower or faster until the median decode is that of
	// the run: passes with prefills among them make that less than a step.
	var tpots []float64
	for i := range s.run.real {
		if t := s.run.real[i].tpot; t > 0 {
			tpots = append(tpots, float64(t))
		}
	}
	if p, err := engine.PresetNamed(""); err == nil && len(tpots) > 0 {
		slices.Sort(tpots)
		whole := stats.Quantile(tpots, 0.5) / (p.Cost.Step + p.Cost.Weights)
		for _, part := range []float64{1, 0.75, 0.55, 0.4, 0.3, 0.2} {
			c := p.Cost
			for _, q := range parameters {
				*q.of(&c) *= whole * part
			}
			all = append(all, c)
		}
	}
	return all
}

// admitted sets what a request spends before the queue: the difference of the
// median TTFT without it.
func (s *simulator) admitted(c engine.Cost, try func([]float64) float64) engine.Cost {
	c.Admit = 0
	try(vector(c))
	real, simulated := s.pairs(s.sim, metrics[0].of)
	if len(real) == 0 {
		return c
	}
	slices.Sort(real)
	slices.Sort(simulated)
	c.Admit = max(0, stats.Quantile(real, 0.25)-stats.Quantile(simulated, 0.25))
	return c
}

// squaredGaps bounds the gaps between tokens that least squares take.
const squaredGaps = 20_000

// knees are the tokens up to which a pass takes no longer, that least squares try.
var knees = []float64{0, 16, 32, 64, 96, 128, 192, 256, 384}

// leastSquares takes the time between two tokens of one request for the time of
// a pass, and what was in flight then for its batch. It is rough: a long prompt
// is counted in the pass that ends it. The costs are those for the knees that
// leave the least squares, the best first.
func (s *simulator) leastSquares() []engine.Cost {
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
	for i := range r.rows {
		o := &r.real[i]
		if o.ttft == 0 || o.e2e < o.ttft {
			continue
		}
		first, last := r.rows[i].Arrival+o.ttft, r.rows[i].Arrival+o.e2e
		p, cached := float64(r.rows[i].PromptTokens.V), float64(o.cached)
		slope := float64(r.rows[i].OutputTokens.V-1) / float64(max(1, last-first))
		base := p - slope*float64(first)
		changes = append(changes, change{first, 1, base, slope}, change{last, -1, -base, -slope})
		fresh := max(1, p-cached)
		prompts = append(prompts, prompt{first, fresh, fresh*cached + fresh*(fresh+1)/2})
	}
	var gaps []gap
	for i := 0; i < len(r.gaps); i += 1 + len(r.gaps)/squaredGaps {
		gaps = append(gaps, r.gaps[i])
	}
	if len(gaps) < 10*minRequests {
		return nil
	}
	slices.SortFunc(changes, func(a, b change) int { return cmp.Compare(a.at, b.at) })
	slices.SortFunc(prompts, func(a, b prompt) int { return cmp.Compare(a.at, b.at) })
	slices.SortFunc(gaps, func(a, b gap) int { return cmp.Compare(a.from+a.to, b.from+b.to) })
	type sums struct {
		xx [terms][terms]float64
		xy [terms]float64
		yy float64
	}
	all := make([]sums, len(knees))
	var at change
	next := 0
	for _, g := range gaps {
		mid := g.from + (g.to-g.from)/2
		for ; next < len(changes) && changes[next].at <= mid; next++ {
			at.n += changes[next].n
			at.ctx += changes[next].ctx
			at.slope += changes[next].slope
		}
		tokens, pairs := at.n, 0.0
		lo, _ := slices.BinarySearchFunc(prompts, g.from+1, func(p prompt, t time.Duration) int { return cmp.Compare(p.at, t) })
		for ; lo < len(prompts) && prompts[lo].at <= g.to; lo++ {
			tokens += prompts[lo].tokens
			pairs += prompts[lo].pairs
		}
		if budget := float64(s.conf.MaxBatchedTokens); tokens > budget {
			pairs *= budget / tokens
			tokens = budget
		}
		// Relative errors count, or the few passes with long prompts would be all.
		y := float64(g.to - g.from)
		for i, knee := range knees {
			x := [terms]float64{1, at.n, max(knee, tokens), pairs, at.ctx + at.slope*float64(mid)}
			for a := range terms {
				for b := range terms {
					all[i].xx[a][b] += x[a] * x[b] / (y * y)
				}
				all[i].xy[a] += x[a] / y
			}
			all[i].yy++
		}
	}
	type fit struct {
		cost engine.Cost
		left float64 // squares
	}
	var fits []fit
	for i := range all {
		sum := &all[i]
		b := nonNegative(&sum.xx, &sum.xy)
		left := sum.yy
		for j := range terms {
			left -= 2 * b[j] * sum.xy[j]
			for k := range terms {
				left += b[j] * b[k] * sum.xx[j][k]
			}
		}
		c := engine.Cost{Step: b[0], Seq: b[1], Weights: b[2] * knees[i], Token: b[2], Pair: b[3], KV: b[4]}
		if c.Validate() == nil {
			fits = append(fits, fit{c, left})
		}
	}
	slices.SortStableFunc(fits, func(a, b fit) int { return cmp.Compare(a.left, b.left) })
	var costs []engine.Cost
	for _, f := range fits[:min(len(fits), 4)] {
		costs = append(costs, f.cost)
	}
	return costs
}

// terms of a pass in least squares: step, sequences, tokens, pairs, context.
const terms = 5

// nonNegative solves the normal equations of least squares with no coefficient
// below 0, one after another until they stay.
func nonNegative(xx *[terms][terms]float64, xy *[terms]float64) (b [terms]float64) {
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
