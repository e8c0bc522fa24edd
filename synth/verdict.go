package synth

import (
	"fmt"
	"math"
	"strings"

	"reprise/synth/score"
)

// Limits of what a fit may claim of traffic that was held out: those of the
// table in docs/synthesis.md, or a multiple of what the two stretches differ by
// themselves, whichever is wider.
const (
	nextGap, nextIDC, nextEta2   = 0.10, 0.40, 0.05
	nextLightKS, nextKS, nextP99 = 0.10, 0.15, 1.4
	nextFloor, nextFloorIDC      = 1.5, 1.25
	nextLengths                  = 0.010 // beside the floor of the lengths
	fewestRows                   = 200   // of a trace that a claim is made of
	limitTurns, limitThink       = 0.15, 0.05
	limitHitMean, limitHitMax    = 0.015, 0.030
	limitLengths, limitEta2      = 0.02, 0.05
)

// verdict says whether the chosen model may be trusted, and in what not.
func (f *fitter) verdict() {
	r := f.report
	c := f.chosen()
	if c.Again == nil || len(r.Candidates) == 0 {
		return // arrivals that were assumed: nothing is claimed
	}
	name := r.Chosen
	if f.s.N() < fewestRows {
		r.Unseen = UnseenNotTested
		r.Verdict = fmt.Sprintf("%d rows are too few to say whether anything fits; %s was not tested on traffic it has not seen", f.s.N(), name)
		return
	}
	misses := f.sameHourMisses(c)
	r.SameHour = len(misses) == 0
	switch {
	case !r.SameHour:
		r.Verdict = fmt.Sprintf("no candidate fits: %s comes nearest, and %s", name, strings.Join(misses, ", "))
	case f.typicalOf == name && !c.Again.passes():
		r.Verdict = name + ": the trace is no further from what it generates than two draws are from each other"
	default:
		r.Verdict = name + " gives the same hour again within the limits"
	}
	next := f.claimed(c)
	switch {
	case len(next) == 0:
		r.Unseen = UnseenNotTested
		r.Verdict += "; it was not tested on traffic it has not seen, of which the trace has too little"
	case f.tellsNothing():
		r.Unseen = UnseenNotTested
		r.Verdict += "; stretches of the trace differ so much that a Poisson process would pass for the next one, so that it says nothing about traffic it has not seen"
	default:
		off := append(offNext(next), f.prefixOff()...)
		if r.Unseen = UnseenNear; len(off) > 0 {
			r.Unseen = UnseenOff
			r.Verdict += "; no candidate fits traffic it has not seen: " + strings.Join(off, ", ")
		} else {
			r.Verdict += "; traffic it has not seen is as near as another stretch of the trace is"
		}
	}
	r.Fits = r.SameHour && r.Unseen == UnseenNear
	if !r.Fits {
		f.warn("do not size a service by this model without looking at its scores")
	}
}

// tellsNothing says whether held-out traffic is no test: a Poisson process, which
// the same hour refutes, would pass it.
func (f *fitter) tellsNothing() bool {
	for _, k := range f.report.Candidates {
		if k.Name == ArrivalsExponential && k.Again != nil && k.Next != nil {
			return f.report.Chosen != k.Name && !k.Again.passes() && f.typicalOf == "" && len(offNext(k.folds)) == 0
		}
	}
	return false
}

// claimed are the held-out scores of what the model does after its end.
func (f *fitter) claimed(c *Candidate) []foldScores {
	p := f.model.Clients[0].Arrivals.Profile
	if c.Name != ArrivalsProfile || p == nil {
		return c.folds
	}
	name := ArrivalsProfile + ", then " + p.Beyond
	switch {
	case p.Beyond == OrderRows:
		name = ArrivalsRows
	case p.BeyondLevel != 0:
		name += drifting
	}
	for i := range f.report.Candidates {
		if k := &f.report.Candidates[i]; k.Name == name && k.Next != nil {
			return k.folds
		}
	}
	return c.folds
}

// findings collects scores that miss their limits, in words.
type findings []string

func (l *findings) most(name string, x score.Number, limit float64) {
	if !within(x, limit) {
		*l = append(*l, fmt.Sprintf("%s is %.3g (limit %.3g)", name, float64(x), limit))
	}
}

// ratio wants x between 1/limit and limit.
func (l *findings) ratio(name string, x score.Number, limit float64) {
	if !within(score.Number(math.Abs(float64(logOf(x)))), math.Log(limit)) {
		*l = append(*l, fmt.Sprintf("%s is %.2f times the real one (limit %.2f)", name, float64(x), limit))
	}
}

// sameHourMisses lists what keeps a model from giving the same hour again.
func (f *fitter) sameHourMisses(c *Candidate) []string {
	s := c.Again
	var l findings
	if !s.passes() && f.typicalOf != c.Name {
		l.most("the share of rows too many or too few", score.Number(math.Abs(float64(s.Rows)-1)), 0.03)
		l.most("gap KS", s.GapKS, limitGap)
		l.most("burstiness", s.IDC, limitIDC)
		l.most("token burstiness", s.TokenIDC, limitIDC)
		for _, q := range s.Queues {
			limit := limitP99
			if q.Load <= 0.5 {
				limit = limitLightP99
			}
			l.most(fmt.Sprintf("TTFT KS at load %.1f", q.Load), q.KS, limitKS)
			l.ratio(fmt.Sprintf("TTFT p99 at load %.1f", q.Load), q.P99, math.Exp(limit))
		}
	}
	chance := 1.63 / math.Sqrt(float64(f.s.N())) // of the KS of one sample, at 1 %
	l.most("KS of prompt lengths", s.InKS, limitLengths+chance)
	l.most("KS of output lengths", s.OutKS, limitLengths+chance)
	l.most("what prompts say of outputs (eta²), off by", s.Eta2, limitEta2+chance)
	l.most("KS of turns a session", s.TurnsKS, limitTurns)
	l.most("KS of think times", s.ThinkKS, limitThink+chance)
	if p := f.report.Prefix; p != nil {
		l.most("the mean error of the hit curve", p.Again.Mean, limitHitMean)
		l.most("the greatest error of the hit curve", p.Again.Max, limitHitMax)
	}
	return l
}

// offNext lists what the worst of the folds misses: a claim holds for each of
// them, not for their mean.
func offNext(folds []foldScores) []string {
	var worst []string
	for i := range folds {
		if off := folds[i].scores.offNext(&folds[i].floor); len(off) > len(worst) {
			worst = off
		}
	}
	return worst
}

// offNext lists what is further from held-out traffic than the floor explains.
func (s *Scores) offNext(floor *Scores) []string {
	var l findings
	or := func(x score.Number, otherwise float64) float64 {
		if !x.OK() {
			return otherwise
		}
		return max(otherwise, float64(x))
	}
	l.most("gap KS", s.GapKS, max(nextGap, nextFloor*or(floor.GapKS, 0)))
	l.most("burstiness", s.IDC, max(nextIDC, nextFloorIDC*or(floor.IDC, 0)))
	l.most("token burstiness", s.TokenIDC, max(nextIDC, nextFloorIDC*or(floor.TokenIDC, 0)))
	l.most("KS of prompt lengths", s.InKS, nextFloor*or(floor.InKS, 0)+nextLengths)
	l.most("KS of output lengths", s.OutKS, nextFloor*or(floor.OutKS, 0)+nextLengths)
	l.most("what prompts say of outputs (eta²), off by", s.Eta2, nextFloor*or(floor.Eta2, 0)+nextEta2)
	for i, q := range s.Queues {
		limit, p99 := nextKS, nextP99
		if q.Load <= 0.5 {
			limit = nextLightKS
		}
		if i < len(floor.Queues) {
			limit = max(limit, nextFloor*or(floor.Queues[i].KS, 0))
			if p := floor.Queues[i].P99; p.OK() && p > 0 {
				p99 = max(p99, 2*math.Exp(math.Abs(float64(logOf(p)))))
			}
		}
		l.most(fmt.Sprintf("TTFT KS at load %.1f", q.Load), q.KS, limit)
		l.ratio(fmt.Sprintf("TTFT p99 at load %.1f", q.Load), q.P99, p99)
	}
	return l
}

// prefixOff lists what of reuse is further from held-out traffic than the floor
// explains.
func (f *fitter) prefixOff() []string {
	var l findings
	if p := f.report.Prefix; p != nil && p.Next.Mean.OK() {
		l.most("the mean error of the hit curve", p.Next.Mean, max(limitHitMean, nextFloor*float64(p.Floor.Mean)))
		l.most("the greatest error of the hit curve", p.Next.Max, max(limitHitMax, nextFloor*float64(p.Floor.Max)))
	}
	return l
}
