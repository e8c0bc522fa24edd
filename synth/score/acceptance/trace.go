package main

import (
	"context"
	"fmt"
	"math"
	"time"

	"reprise/synth/score"
)

func duration(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second)) }

// A trace runs all rows of the table for one public trace.
type trace struct {
	*options
	name    string
	real    *score.Sample
	figures []figure
	notes   []string
}

const (
	plain = "model"
	// The fit may take blocks of rows where they are nearer to what was held out.
	withRows = "source rows allowed"
	// Blocks of rows are resampled whether they are nearer or not.
	rowsAlone = "source rows alone"
)

func (c *trace) run(ctx context.Context) error {
	even, odd := c.real.Interleave(score.Block)
	first, second := c.real.Halves()
	fmt.Fprintf(c.stderr, "%s: protocol R\n", c.name)
	g, _, err := fitted(ctx, c.real, c.real, plain, false)
	if err != nil {
		return err
	}
	v, err := c.each(ctx, g, func(v values, s *score.Sample) {
		refit(v, c.real, s)
		if c.real.HasBlocks() && s.HasBlocks() {
			prefixes(v, c.real, s)
		}
	})
	if err != nil {
		return err
	}
	c.refitRows(v, plain)

	fmt.Fprintf(c.stderr, "%s: protocol I\n", c.name)
	if g, _, err = fitted(ctx, even, odd, plain, false); err != nil {
		return err
	}
	if v, err = c.each(ctx, g, func(v values, s *score.Sample) { marginals(v, odd, s) }); err != nil {
		return err
	}
	c.marginalRows(v, plain, odd, even)

	// What the next hour is like: also with rows of this one.
	for _, kind := range []string{plain, withRows, rowsAlone} {
		fmt.Fprintf(c.stderr, "%s: protocol H, %s\n", c.name, kind)
		g, m, err := fitted(ctx, first, second, kind, true)
		if err != nil {
			return err
		}
		if kind == withRows && !m.HoldsSourceRows {
			c.notes = append(c.notes, fmt.Sprintf("%s, protocol H: where source rows are allowed the fit chooses a model without them, as nearer to what it held out", c.name))
		}
		if v, err = c.each(ctx, g, func(v values, s *score.Sample) {
			dynamics(v, second, s)
			if second.HasBlocks() && s.HasBlocks() {
				prefixes(v, second, s)
			}
		}); err != nil {
			return err
		}
		c.dynamicRows(v, kind, second, first)
	}
	return c.wrongModels(ctx)
}

// azure says whether rows for the two Azure traces apply: Mooncake's ticks hide
// its arrivals.
func (c *trace) azure() bool { return c.name != "moon" }

func (c *trace) refitRows(v values, kind string) {
	c.add(v, "rows", "1", "rows / expected", "R", kind, limit{0.97, 1.03}, "")
	if c.azure() {
		gap := map[string]float64{"conv": 0.020, "code": 0.10}[c.name]
		c.add(v, "gap_ks", "2", "gap KS", "R", kind, atMost(gap), map[string]string{"conv": ".018", "code": ".203"}[c.name])
		c.add(v, "idc", "3", "worst |ln IDC| at 1, 10, 100 s", "R", kind, atMost(0.25), "")
		c.add(v, "token_idc", "5", "worst |ln token IDC| at 10, 100 s", "R", kind, atMost(0.25), "")
		worst, which := worstAtom(v, c.real)
		v["atoms"] = []float64{worst}
		c.notes = append(c.notes, fmt.Sprintf("%s, row 9: the worst atom is %s", c.name, which))
		c.add(v, "atoms", "9", "worst of 4 atoms and cap", "R", kind, atMost(0.20), "")
		for _, rho := range score.Loads {
			p99 := limit{0.8, 1.25}
			if rho == 0.5 {
				p99 = limit{0.7, 1.4}
			}
			c.add(v, fmt.Sprintf("ttft_ks_%g", rho), "16", fmt.Sprintf("TTFT KS, load %g", rho), "R", kind, atMost(0.08), "")
			c.add(v, fmt.Sprintf("ttft_p99_%g", rho), "16", fmt.Sprintf("TTFT p99 ratio, load %g", rho), "R", kind, p99, "")
		}
	}
	if c.real.HasBlocks() {
		c.add(v, "hit_mean", "10", "hit curve, mean error", "R", kind, atMost(0.015), "")
		c.add(v, "hit_max", "10", "hit curve, greatest error", "R", kind, atMost(0.030), "")
		first, second := c.real.Halves()
		c.add(v, "reuse_ks", "13", "reuse gap KS (log s)", "R", kind, atMost(0.03),
			fmt.Sprintf("H %.3f", score.KS(logs(score.ReuseGaps(first)), logs(score.ReuseGaps(second)))))
		c.add(v, "tree", "14", "rows that break the tree", "R", kind, atMost(0), "")
		for _, rho := range score.Loads {
			c.add(v, fmt.Sprintf("cached_ks_%g", rho), "19", fmt.Sprintf("cached TTFT KS, load %g", rho), "R", kind, atMost(0.05), "")
			c.add(v, fmt.Sprintf("cached_p99_%g", rho), "19", fmt.Sprintf("cached TTFT p99 ratio, load %g", rho), "R", kind, limit{0.8, 1.25}, "")
		}
	}
}

func (c *trace) marginalRows(v values, kind string, real, other *score.Sample) {
	floor := values{}
	marginals(floor, real, other)
	for _, side := range []string{"in", "out"} {
		ks, w1 := floor["ks_"+side][0], floor["w1_"+side][0]
		c.add(v, "ks_"+side, "6", "length KS, "+side, "I", kind, atMost(ks+0.010), fmt.Sprintf("%.4f", ks))
		c.add(v, "w1_"+side, "7", "length W1 / mean, "+side, "I", kind, atMost(1.5*w1+0.005), fmt.Sprintf("%.4f", w1))
	}
	if c.azure() {
		c.add(v, "eta2", "8", "difference of eta²", "I", kind, atMost(0.05), fmt.Sprintf("%.3f", floor["eta2"][0]))
		c.add(v, "spearman", "8", "difference of Spearman", "I", kind, atMost(0.03), fmt.Sprintf("%.3f", floor["spearman"][0]))
	}
}

func (c *trace) dynamicRows(v values, kind string, real, other *score.Sample) {
	if c.azure() {
		floor := 0.0
		for _, w := range scales {
			floor = math.Max(floor, score.LogRatio(score.IDC(other, w), score.IDC(real, w)))
		}
		c.add(v, "idc", "4", "worst |ln IDC| at 1, 10, 100 s", "H", kind, atMost(math.Max(0.40, 1.25*floor)), fmt.Sprintf("%.2f", floor))
		for _, rho := range []float64{0.5, 0.8} {
			f := score.QueueFloor(real, other, score.PromptWork(real), score.PromptWork(other), rho)
			text := fmt.Sprintf("%.3f", f.KS)
			if c.name == "code" {
				c.add(v, fmt.Sprintf("ttft_ks_%g", rho), "18", fmt.Sprintf("TTFT KS, load %g", rho), "H", kind, atMost(1.5*f.KS), text)
				continue
			}
			c.add(v, fmt.Sprintf("ttft_ks_%g", rho), "17", fmt.Sprintf("TTFT KS, load %g", rho), "H", kind, atMost(1.1*f.KS), text)
			p := math.Min(f.P99, 1/f.P99)
			c.add(v, fmt.Sprintf("ttft_p99_%g", rho), "17", fmt.Sprintf("TTFT p99 ratio, load %g", rho), "H", kind, limit{p / 2, 2 / p}, fmt.Sprintf("%.2f", f.P99))
		}
	}
	if real.HasBlocks() {
		meanFloor, maxFloor := score.CurveError(score.HitCurve(real), score.HitCurve(other))
		c.add(v, "hit_mean", "11", "hit curve, mean error", "H", kind, atMost(0.010), fmt.Sprintf("%.4f", meanFloor))
		c.add(v, "hit_max", "11", "hit curve, greatest error", "H", kind, atMost(0.020), fmt.Sprintf("%.4f", maxFloor))
		for _, rho := range []float64{0.5, 0.7} {
			f := score.QueueFloor(real, other, score.CacheWork(real, score.QueueCache), score.CacheWork(other, score.QueueCache), rho)
			high := map[float64]float64{0.5: 0.10, 0.7: 0.15}[rho]
			c.add(v, fmt.Sprintf("cached_ks_%g", rho), "19b", fmt.Sprintf("cached TTFT KS, load %g", rho), "H", kind, atMost(high), fmt.Sprintf("%.3f", f.KS))
			c.add(v, fmt.Sprintf("cached_p99_%g", rho), "19b", fmt.Sprintf("cached TTFT p99 ratio, load %g", rho), "H", kind, limit{0.7, 1.4}, fmt.Sprintf("%.2f", f.P99))
		}
	}
}

// wrongModels checks that the metrics find what they are for.
func (c *trace) wrongModels(ctx context.Context) error {
	fmt.Fprintf(c.stderr, "%s: models that have to fail\n", c.name)
	wrong := func(name string, make func(*score.Sample, uint64) *score.Sample, measure func(values, *score.Sample), add func(values)) error {
		v, err := c.each(ctx, func(_ context.Context, seed uint64) (*score.Sample, error) { return make(c.real, seed), nil }, measure)
		if err != nil {
			return err
		}
		from := len(c.figures)
		add(v)
		for i := range c.figures[from:] {
			c.figures[from+i].Expected = "fail"
		}
		return nil
	}
	whole := func(v values, s *score.Sample) { refit(v, c.real, s); marginals(v, c.real, s) }
	if c.azure() {
		if err := wrong("Poisson", poissonModel, whole, func(v values) {
			c.add(v, "idc", "20", "row 3: worst |ln IDC| at 1, 10, 100 s", "R", "wrong: Poisson", atMost(0.25), "")
			c.add(v, "ttft_p99_0.8", "20", "row 16: TTFT p99 ratio, load 0.8", "R", "wrong: Poisson", limit{0.8, 1.25}, "")
		}); err != nil {
			return err
		}
	}
	// In the code trace the two lengths say next to nothing about each other, and
	// tokens are bursty because requests are, so that neither of these is wrong
	// there.
	if c.name == "conv" {
		if err := wrong("shuffled", shuffledModel, whole, func(v values) {
			c.add(v, "token_idc", "20", "row 5: worst |ln token IDC| at 10, 100 s", "R", "wrong: shuffled lengths", atMost(0.25), "")
		}); err != nil {
			return err
		}
		if err := wrong("independent", independentModel, whole, func(v values) {
			c.add(v, "eta2", "20", "row 8: difference of eta²", "R", "wrong: independent lengths", atMost(0.05), "")
		}); err != nil {
			return err
		}
	}
	if c.real.HasBlocks() {
		tree := newTreeModel(c.real)
		walk := func(_ *score.Sample, seed uint64) *score.Sample { return tree.sample(seed) }
		if err := wrong("tree walk", walk, func(v values, s *score.Sample) { prefixes(v, c.real, s) }, func(v values) {
			c.add(v, "hit_mean", "20", "row 10: hit curve, mean error", "R", "wrong: tree walk", atMost(0.015), "")
			c.add(v, "hit_max", "20", "row 10: hit curve, greatest error", "R", "wrong: tree walk", atMost(0.030), "")
			c.add(v, "reuse_ks", "20", "row 13: reuse gap KS (log s)", "R", "wrong: tree walk", atMost(0.03), "")
			c.add(v, "cached_p99_0.8", "20", "row 19: cached TTFT p99 ratio, load 0.8", "R", "wrong: tree walk", limit{0.8, 1.25}, "")
		}); err != nil {
			return err
		}
	}
	return nil
}
