package main

import (
	"context"
	"fmt"
	"math"

	"reprise/synth/score"
)

// folds of row 15.
const folds = 5

// sessions is row 15: models are fitted to four fifths of the sessions and
// compared with the fifth that they have not seen. The folds are small, so that
// what is compared is all held-out sessions together against all generated
// ones. The floor is the same figure between two halves of the sessions.
func (o *options) sessions(ctx context.Context, s *score.Sample) ([]figure, error) {
	fmt.Fprintf(o.stderr, "sessions: %d folds\n", folds)
	var turns, think []float64
	var models []generator
	var hits []float64
	for k := range folds {
		_, train := s.SessionFold(k, folds, 1)
		g, _, err := fitted(ctx, train, s, plain, false)
		if err != nil {
			return nil, err
		}
		models = append(models, g)
	}
	v, err := o.each(ctx, func(ctx context.Context, seed uint64) (*score.Sample, error) {
		return models[int(seed)%folds](ctx, seed)
	}, func(v values, syn *score.Sample) {
		v["turns"] = append(v["turns"], score.Turns(syn)...)
		v["think"] = append(v["think"], score.ThinkTimes(syn)...)
		v.add("hit", score.SessionHit(syn))
	})
	if err != nil {
		return nil, err
	}
	turns, think, hits = v["turns"], v["think"], v["hit"]
	floors := values{}
	for seed := range uint64(20) {
		a, b := s.SessionFold(0, 2, seed)
		floors.add("turns", score.KS(score.Turns(a), score.Turns(b)))
		floors.add("think", score.KS(score.ThinkTimes(a), score.ThinkTimes(b)))
		floors.add("hit", math.Abs(score.SessionHit(a)-score.SessionHit(b)))
	}
	c := &trace{options: o, name: "sessions"}
	floor := func(key string) string {
		m, _, _, _ := floors.median(key)
		return fmt.Sprintf("%.3f", m)
	}
	real := score.SessionHit(s)
	one := values{"turns": {score.KS(score.Turns(s), turns)}, "think": {score.KS(score.ThinkTimes(s), think)}}
	for _, h := range hits {
		one.add("hit", math.Abs(h-real))
	}
	c.add(one, "turns", "15", "turns a session, KS", "5-fold", plain, atMost(0.15), floor("turns"))
	c.add(one, "think", "15", "think time, KS", "5-fold", plain, atMost(0.05), floor("think"))
	c.add(one, "hit", "15", "hit inside a session, difference", "5-fold", plain, atMost(0.01), floor("hit"))
	return c.figures, nil
}
