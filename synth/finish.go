package synth

import (
	"context"
	"fmt"
	"math"

	"reprise/synth/score"
)

// finish measures what the chosen model memorises and how its prefixes do, and
// says in words what the numbers mean.
func (f *fitter) finish(ctx context.Context) error {
	m := f.model
	f.describe()
	f.losses()
	if err := m.Check(); err != nil {
		return fmt.Errorf("the fitted model is not valid, which is a mistake of this program: %w", err)
	}
	if err := f.measure(ctx); err != nil {
		return err
	}
	f.verdict()
	return nil
}

// measure scores what the choice of arrivals has left out: memory and prefixes.
func (f *fitter) measure(ctx context.Context) error {
	m := f.model
	if f.s.In == nil && f.s.Out == nil {
		return nil
	}
	ref := f.scored(f.s)
	g, err := m.Sample(ctx, GenOptions{Seed: f.o.Seed, Duration: seconds(ref.Horizon)})
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		f.warn("the model makes no row in a stretch as long as its source")
		return nil
	}
	f.memory(ref, g)
	if c := f.chosen(); f.groups != nil && len(f.report.Candidates) > 0 && c.Again != nil {
		c.Again.TurnsKS = apartKS(score.Turns(ref), score.Turns(g))
		c.Again.ThinkKS = apartKS(score.ThinkTimes(ref), score.ThinkTimes(g))
	}
	// Where the start of sessions was assumed, reuse meets in another order.
	if m.Blocks != nil && len(f.report.Candidates) > 0 {
		return f.prefixScores(ctx, ref, g)
	}
	return nil
}

func apartKS(a, b []float64) score.Number {
	if len(a) == 0 || len(b) == 0 {
		return score.Number(math.NaN())
	}
	return score.Number(score.KS(a, b))
}

// runLength is how many rows in a row count as remembered.
const runLength = 3

func (f *fitter) memory(ref, g *score.Sample) {
	if ref.In == nil || ref.Out == nil {
		return
	}
	r := &Memory{}
	r.Runs, r.Of = score.RunsShared(ref, g, runLength)
	h1, h2 := ref.Halves()
	r.Chance, _ = score.RunsShared(h1, h2, runLength)
	switch {
	case f.model.HoldsSourceRows:
		r.Note = "the model holds rows of its source: do not share it where the source may not be shared"
	case r.Runs > 10+2*r.Chance:
		r.Note = "more runs than chance makes: look at the lengths before sharing"
	case r.Runs > 0:
		r.Note = "common lengths that follow each other by chance"
	}
	f.model.Memory = r
}

// prefixScores compares the hit ratio of caches, for the same stretch and for the
// one that follows.
func (f *fitter) prefixScores(ctx context.Context, ref, g *score.Sample) error {
	curve := func(a, b *score.Sample) PrefixScore {
		mean, most := score.CurveError(score.HitCurve(b), score.HitCurve(a))
		return PrefixScore{score.Number(mean), score.Number(most)}
	}
	unknown := PrefixScore{score.Number(math.NaN()), score.Number(math.NaN())}
	p := &PrefixScores{curve(ref, g), unknown, unknown}
	f.report.Prefix = p
	h1, h2 := ref.Halves()
	if h1.N() < 100 || h2.N() < 100 || f.groups != nil {
		return nil
	}
	p.Floor = curve(h2, h1)
	kind := ArrivalsExponential // arrivals play no part, the order of rows does
	if f.model.HoldsSourceRows {
		kind = ArrivalsRows
	}
	var err error
	p.Next, err = f.prefixNext(ctx, kind)
	return err
}

// prefixNext scores the reuse of what the first half makes on the second, with
// arrivals of one kind.
func (f *fitter) prefixNext(ctx context.Context, kind string) (PrefixScore, error) {
	unknown := PrefixScore{score.Number(math.NaN()), score.Number(math.NaN())}
	h1, h2 := f.scored(f.s).Halves()
	blocks := *f.model.Blocks
	l := f.learn(h1, nil, &blocks)
	if instant(l.starts) {
		return unknown, nil
	}
	m := f.arrivals(l, kind, nil)
	if m == nil {
		return unknown, nil
	}
	m.Blocks = &blocks
	next, err := m.Sample(ctx, GenOptions{Seed: f.o.Seed, Rows: int64(h2.N())})
	if err != nil {
		return unknown, ctx.Err()
	}
	mean, most := score.CurveError(score.HitCurve(h2), score.HitCurve(next))
	return PrefixScore{score.Number(mean), score.Number(most)}, nil
}

// losses says what the model does not keep.
func (f *fitter) losses() {
	a := &f.model.Clients[0].Arrivals
	if f.model.HoldsSourceRows {
		f.lose("order beyond blocks of time")
	} else {
		f.lose("the order of rows inside a window, and which prompt got which answer beyond the copula")
	}
	if a.Kind == ArrivalsProfile {
		f.lose("anything finer than counts in windows of %g s and how they cluster inside", a.Profile.Window)
		f.lose("what another day brings: beyond %.4g s it goes on with the windows it has (%s)", f.model.Horizon, a.Profile.Beyond)
	}
	if f.s.HasSessions() && f.model.Clients[0].Sessions == nil {
		f.lose("sessions")
	}
	if f.s.Clients != nil && len(f.model.Clients) == 1 && len(f.s.Clients) > 1 {
		f.lose("clients: all %d are one", len(f.s.Clients))
	}
	if b := f.model.Blocks; b != nil {
		f.lose("reuse of blocks after more than %.4g s or %d requests", b.Window, b.Entries)
		f.lose("a last block that is not full and is shared")
	}
	if f.s.Aborted != nil {
		n := 0
		for _, a := range f.s.Aborted {
			if a {
				n++
			}
		}
		f.lose("that clients hung up on %d rows: their outputs were taken to be as long as those of others that went on", n)
	}
}
