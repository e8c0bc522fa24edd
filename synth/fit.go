package synth

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"reprise/synth/score"
)

// FitOptions says how a trace is learnt. The zero value is a good start.
type FitOptions struct {
	Name   string // of the model
	Source Source // what to say of the origin; rows, seconds and ticks are filled in
	// AllowResampling admits models that hold rows of the source.
	AllowResampling bool
	// Rate is the rate to assume where arrivals cannot be learnt because all rows
	// (or all sessions) begin at one instant; 0 is an error, or for sessions
	// enough to keep as many under way as the source has.
	Rate float64
	// Kind takes one kind of arrivals instead of choosing: a Kind of Arrivals.
	Kind string
	Seed uint64
}

// ErrFit is wrapped where a trace cannot be learnt.
var ErrFit = errors.New("nothing to learn from")

// Bounds of the work of a fit: rows that candidates are scored on, and clients
// that are learnt one by one; the others are taken together.
const (
	maxScored  = 150_000
	maxClients = 64
	fewRows    = 50 // of a client of its own
)

// A FitReport says which generators were tried, how near each came, and what
// was chosen.
type FitReport struct {
	Chosen  string `json:"chosen"`
	Verdict string `json:"verdict"`
	// Fits is the whole claim: the same hour again within the limits, and traffic
	// that was held out as near as the noise floor allows. What could not be
	// learnt or not be tested is no fit.
	Fits bool `json:"fits"`
	// SameHour is the first half of it, Unseen the second.
	SameHour bool   `json:"same_hour"`
	Unseen   Unseen `json:"unseen,omitempty"`
	// Floor is what two halves of the trace differ by.
	Floor Scores `json:"floor_halves"`
	// FloorNext is what the stretches that held-out scores come from differ by,
	// the mean of the folds.
	FloorNext  *Scores       `json:"floor_next,omitempty"`
	Candidates []Candidate   `json:"candidates"`
	Prefix     *PrefixScores `json:"prefix,omitempty"`
	Warnings   []string      `json:"warnings,omitempty"`
}

// Unseen says how a model does on traffic that was held out.
type Unseen string

// Values of Unseen.
const (
	UnseenNear      Unseen = "near"       // as near as the floor allows
	UnseenOff       Unseen = "off"        // further, and the verdict says in what
	UnseenNotTested Unseen = "not tested" // too few rows, or arrivals that were assumed
)

// A Candidate is one generator and its scores.
type Candidate struct {
	Name      string `json:"name"`
	HoldsRows bool   `json:"holds_source_rows,omitempty"`
	// Again compares it with the trace that it was learnt from, played from
	// the start: the same hour. Next is held out: learnt from one stretch,
	// compared with the one after it, the mean of the folds.
	Again *Scores `json:"again,omitempty"`
	Next  *Scores `json:"next,omitempty"`
	folds []foldScores
}

// A foldScores is one term of Next, and what its two stretches differ by.
type foldScores struct{ scores, floor Scores }

// Scores are distances between a generated trace and a real one, medians over
// seeds. Ratios are synthetic over real.
type Scores struct {
	Rows     score.Number  `json:"rows"`      // ratio
	GapKS    score.Number  `json:"gap_ks"`    // gaps over their mean
	IDC      score.Number  `json:"idc"`       // largest |ln ratio| at 1, 10, 100 s
	TokenIDC score.Number  `json:"token_idc"` // largest |ln ratio| at 10, 100 s
	Queues   []QueueScores `json:"queues"`
	// Lengths of prompts and outputs, and how much the share of the variance of
	// log output between bins of prompts differs.
	InKS  score.Number `json:"in_ks"`
	OutKS score.Number `json:"out_ks"`
	Eta2  score.Number `json:"eta2"`
	// Sessions, compared with the same hour alone.
	TurnsKS score.Number `json:"turns_ks"`
	ThinkKS score.Number `json:"think_ks"`
	// Total weighs these by the floor: less is better, about 1 is as different
	// as the halves of the trace are.
	Total score.Number `json:"total"`
}

// QueueScores compare the time to first token behind a FIFO prefill.
type QueueScores struct {
	Load float64      `json:"load"`
	KS   score.Number `json:"ttft_ks"`
	P99  score.Number `json:"ttft_p99"` // ratio
}

// PrefixScores compare prefix reuse.
type PrefixScores struct {
	Again PrefixScore `json:"again"`
	Next  PrefixScore `json:"next"`
	Floor PrefixScore `json:"floor_halves"`
}

// A PrefixScore is the error of the hit ratio over cache sizes.
type PrefixScore struct {
	Mean score.Number `json:"hit_mean_error"`
	Max  score.Number `json:"hit_max_error"`
}

var loads = []float64{0.5, 0.7, 0.8}

// Fit learns a model of a trace. The report is also part of the model.
func Fit(ctx context.Context, s *score.Sample, o FitOptions) (*Model, *FitReport, error) {
	f, err := newFitter(s, o)
	if err != nil {
		return nil, nil, err
	}
	if err := f.choose(ctx); err != nil {
		return nil, nil, err
	}
	if err := f.finish(ctx); err != nil {
		return nil, nil, err
	}
	return f.model, f.report, nil
}

// A fitter carries one fit.
type fitter struct {
	o          FitOptions
	s          *score.Sample // arrivals spread over their ticks
	model      *Model
	report     *FitReport
	groups     [][]int            // rows by session, nil without sessions
	stretches  [][2]*score.Sample // of folds, nil until asked for
	foldFloors []Scores           // what these differ by
	// typicalOf is the candidate of which the trace is like any draw.
	typicalOf string
}

func newFitter(s *score.Sample, o FitOptions) (*fitter, error) {
	f := &fitter{o: o, report: &FitReport{}}
	n := s.N()
	switch {
	case n == 0:
		return nil, fmt.Errorf("%w: the trace is empty", ErrFit)
	case n == 1:
		return nil, fmt.Errorf("%w: the trace has one row; a model needs at least a few hundred to mean anything", ErrFit)
	case !finite(s.Horizon) || s.Horizon < 0:
		return nil, fmt.Errorf("%w: the trace lasts %v s", ErrFit, s.Horizon)
	case o.Kind != "" && !slices.Contains([]string{ArrivalsExponential, ArrivalsGamma, ArrivalsWeibull, ArrivalsQuantiles, ArrivalsMMPP, ArrivalsProfile, ArrivalsRows}, o.Kind):
		return nil, fmt.Errorf("arrivals %q are not known", clip(o.Kind))
	case o.Kind == ArrivalsRows && !o.AllowResampling:
		return nil, errors.New("resampled rows are a copy of the source: that has to be allowed")
	}
	if n < 200 {
		f.warn("%d rows say little: every figure below has a wide margin", n)
	}
	f.s = f.spread(s)
	if f.s.HasSessions() {
		f.groups = sessionRows(f.s)
	}
	f.model = &Model{Format: ModelFormat, Version: ModelVersion, Name: o.Name, Source: o.Source, Horizon: significant(f.s.Horizon, 9), Fit: f.report}
	src := &f.model.Source
	src.Rows, src.Seconds, src.Lengths = n, significant(f.s.Horizon, 9), string(s.Lengths)
	if f.s != s {
		src.Tick = significant(tickOf(s), 6)
	}
	if s.In == nil {
		f.lose("prompt lengths: the source does not know them")
	}
	if s.Out == nil {
		f.lose("output lengths: the source does not know them")
	}
	return f, nil
}

func (f *fitter) warn(format string, args ...any) {
	f.report.Warnings = append(f.report.Warnings, fmt.Sprintf(format, args...))
}

func (f *fitter) lose(format string, args ...any) {
	f.model.DoesNotKeep = append(f.model.DoesNotKeep, fmt.Sprintf(format, args...))
}

// tickOf is the resolution of the clock: what the header says, or the least
// step where most rows share their stamp with another one.
func tickOf(s *score.Sample) float64 {
	if s.Tick > 0 {
		return s.Tick
	}
	distinct, least := 1, math.Inf(1)
	for i := 1; i < s.N(); i++ {
		if d := s.Arrival[i] - s.Arrival[i-1]; d > 0 {
			distinct++
			least = min(least, d)
		}
	}
	if distinct < 3 || distinct*2 > s.N() || least < 1e-3 {
		return 0
	}
	return least
}

// spread undoes the ticks of a clock: bursts at every tick are its doing and
// not that of the traffic.
func (f *fitter) spread(s *score.Sample) *score.Sample {
	tick := tickOf(s)
	// A tick far below the mean gap changes nothing.
	if tick == 0 || tick*float64(s.N()) < 0.05*s.Horizon {
		return s
	}
	c := *s
	c.Tick = tick
	f.warn("arrivals lie on ticks of %.4g s and were spread evenly inside them", tick)
	return c.Dequantise(f.o.Seed ^ 0x7469636b)
}

// complete replaces outputs that were cut short by the client with one that went
// on: of the rows with about the same prompt, one whose output is at least as
// long (redistribution to the right, Efron 1967).
func complete(s *score.Sample, bin []int32, r *stream) []int32 {
	if s.Aborted == nil || s.Out == nil {
		return s.Out
	}
	byBin := map[int32][]int32{}
	for i, out := range s.Out {
		if out >= 0 && !s.Aborted[i] {
			byBin[at(bin, i)] = append(byBin[at(bin, i)], out)
		}
	}
	for _, outs := range byBin {
		slices.Sort(outs)
	}
	done := slices.Clone(s.Out)
	for i, out := range s.Out {
		if out < 0 || !s.Aborted[i] {
			continue
		}
		longer := byBin[at(bin, i)]
		k, _ := slices.BinarySearch(longer, out)
		if k < len(longer) {
			done[i] = longer[k+r.below(len(longer)-k)]
		}
	}
	return done
}

func at(x []int32, i int) int32 {
	if x == nil {
		return 0
	}
	return x[i]
}

// learned is what is fitted to a stretch of the trace before its arrivals are.
type learned struct {
	s      *score.Sample
	starts *score.Sample // rows that begin something: all, or first turns
	client Client
	bin    []int32 // of the input of each start, nil unknown
	bins   int
}

// learn fits lengths and sessions, and prefixes where asked for.
func (f *fitter) learn(s *score.Sample, groups [][]int, prefixes *Blocks) *learned {
	r := newStream(f.o.Seed, purposeFit)
	l := &learned{s: s, starts: s, client: Client{Weight: 1}}
	coarse := bin(s.In, 8, r)
	l.client.Lengths = fitLengths(lengthRows{s.In, complete(s, coarse, r), s.Reasoning, s.Cached}, r)
	var rule *blockRule
	if prefixes != nil {
		b := newBlockRule(prefixes)
		rule = &b
	}
	if groups != nil {
		first := make([]int, 0, len(groups))
		for _, rows := range groups {
			first = append(first, rows[0])
		}
		slices.Sort(first)
		l.starts = rowsOf(s, first)
		l.client.Sessions = fitSessions(s, groups, rule)
	} else if s.In != nil {
		l.bins = 32
		if s.N() < 2000 {
			l.bins = 8
		}
		l.bin = bin(s.In, l.bins, r)
	}
	if prefixes != nil {
		from := s
		if groups != nil {
			from = l.starts
		}
		l.client.Prefixes = fitPrefixes(from, *rule, findReuse(from))
	}
	return l
}

// bin is bins with unknown lengths left out.
func bin(values []int32, k int, r *stream) []int32 {
	if values == nil {
		return nil
	}
	b := bins(known(values), k, r)
	all := make([]int32, len(values))
	next := 0
	for i, v := range values {
		all[i] = -1
		if v >= 0 {
			all[i] = b[next]
			next++
		}
	}
	return all
}

// rowsOf keeps what is needed of some rows, over the same horizon.
func rowsOf(s *score.Sample, rows []int) *score.Sample {
	c := &score.Sample{Name: s.Name, Horizon: s.Horizon, BlockSize: s.BlockSize, Partial: s.Partial, Lengths: s.Lengths}
	if s.BlockStart != nil {
		c.BlockStart = []int{0}
	}
	pick := func(dst, src []int32, i int) []int32 {
		if src == nil {
			return nil
		}
		return append(dst, src[i])
	}
	for _, i := range rows {
		c.Arrival = append(c.Arrival, s.Arrival[i])
		c.In, c.Out = pick(c.In, s.In, i), pick(c.Out, s.Out, i)
		c.Reasoning, c.Cached = pick(c.Reasoning, s.Reasoning, i), pick(c.Cached, s.Cached, i)
		if s.Aborted != nil {
			c.Aborted = append(c.Aborted, s.Aborted[i])
		}
		if s.BlockStart != nil {
			c.Blocks = append(c.Blocks, s.RowBlocks(i)...)
			c.BlockStart = append(c.BlockStart, len(c.Blocks))
		}
	}
	return c
}

// instant says whether the arrivals of a stretch tell nothing.
func instant(s *score.Sample) bool {
	return s.N() < 2 || s.Horizon <= 0 || s.Arrival[s.N()-1] <= s.Arrival[0]
}

// together says whether a trace is sessions that were put side by side: many of
// them start at the very first instant, and nothing is known of when they did.
func (f *fitter) together(starts *score.Sample) bool {
	if f.groups == nil {
		return false
	}
	n, _ := slices.BinarySearch(starts.Arrival, math.Nextafter(starts.Arrival[0], math.Inf(1)))
	return n >= 3 && n*10 >= starts.N()
}

// single wraps one client into a model of the horizon.
func (f *fitter) single(l *learned, a Arrivals) *Model {
	c := l.client
	c.Arrivals = a
	return &Model{Format: ModelFormat, Version: ModelVersion, Horizon: max(1e-3, l.s.Horizon), Blocks: f.model.Blocks, Clients: []Client{c}}
}

// ladder are the windows that profiles are tried with, wide ones first: rates
// and, as a number of these, lengths. A wide window remembers less.
var ladder = []struct {
	window float64
	stride int
}{{3600, 1}, {1800, 1}, {600, 1}, {300, 1}, {120, 1}, {60, 1}, {30, 1}, {20, 1}, {10, 1}, {5, 2}, {2, 5}, {1, 5}, {0.5, 10}}

// Limits of a fit of the same hour, those that docs/synthesis.md states, with
// some room for other seeds.
const (
	limitGap, limitIDC, limitKS, limitP99 = 0.09, 0.25, 0.05, 0.15
	limitLightP99                         = 0.25   // a light load waits for few requests alone
	maxProfile                            = 20_000 // windows
	maxCells                              = 120_000
)

// passes says whether a model gives the same hour again.
func (s *Scores) passes() bool {
	ok := within(s.GapKS, limitGap) && within(s.IDC, limitIDC) && within(s.TokenIDC, limitIDC) && !(math.Abs(float64(s.Rows)-1) > 0.03)
	for _, q := range s.Queues {
		limit := limitP99
		if q.Load <= 0.5 {
			limit = limitLightP99
		}
		ok = ok && within(q.KS, limitKS) && within(score.Number(math.Abs(math.Log(float64(q.P99)))), limit)
	}
	return ok
}

// within passes what cannot be measured: it cannot be wrong either.
func within(x score.Number, limit float64) bool { return !(float64(x) > limit) }

// choose fits the candidates and takes one.
func (f *fitter) choose(ctx context.Context) error {
	blocks, ok := blocksOf(f.s)
	if ok {
		f.model.Blocks = blocks
	} else if f.s.HasBlocks() {
		f.warn("block ids were left out: the trace does not say how long a block is")
	}
	l := f.learn(f.s, f.groups, f.model.Blocks)
	if f.model.Blocks != nil {
		f.window(l.client.Prefixes)
	}
	if instant(l.starts) || f.together(l.starts) {
		return f.assume(l)
	}
	ref := f.scored(f.s)
	f.report.Floor, f.report.FloorNext = f.floor(), f.floorsNext()
	var best, rows *Model
	passed := false
	for _, kind := range []string{ArrivalsExponential, ArrivalsGamma, ArrivalsWeibull, ArrivalsQuantiles, ArrivalsMMPP, ArrivalsProfile, ArrivalsRows} {
		if f.o.Kind != "" && f.o.Kind != kind || kind == ArrivalsRows && f.groups != nil {
			continue
		}
		m, c, err := f.candidate(ctx, l, ref, kind)
		if err != nil {
			return err
		}
		if m == nil {
			continue
		}
		if err = f.heldOut(ctx, &c, kind, m); err != nil {
			return err
		}
		f.report.Candidates = append(f.report.Candidates, c)
		if kind == ArrivalsRows && f.o.Kind != kind {
			if f.o.AllowResampling {
				rows = m
			}
			continue
		}
		// The simplest that passes; else the nearest.
		if best == nil || !passed && (c.Again.passes() || c.Again.Total < f.chosen().Again.Total) {
			best, f.report.Chosen = m, c.Name
			passed = c.Again.passes()
			if !passed && kind != ArrivalsMMPP && kind != ArrivalsQuantiles {
				if passed, err = f.typical(ctx, m, c.Again, ref); err != nil {
					return err
				}
			}
		}
	}
	if best == nil {
		return fmt.Errorf("%w: no generator can be fitted to %d rows in %.4g s", ErrFit, f.s.N(), f.s.Horizon)
	}
	f.model.Clients = best.Clients
	f.model.HoldsSourceRows = best.HoldsSourceRows
	if err := f.beyond(ctx, l); err != nil {
		return err
	}
	if err := f.drift(ctx, l); err != nil {
		return err
	}
	if rows != nil {
		if err := f.continueWith(ctx, rows); err != nil {
			return err
		}
	}
	if f.o.Kind == "" && !f.model.HoldsSourceRows {
		return f.superpose(ctx, ref)
	}
	return nil
}

// continueWith goes on after the end of a profile with blocks of rows, where
// they are clearly nearer to traffic that was held out: a model that holds rows of
// its source has to earn it.
func (f *fitter) continueWith(ctx context.Context, rows *Model) error {
	c := &f.model.Clients[0]
	if c.Arrivals.Kind != ArrivalsProfile {
		return nil
	}
	best, of := math.Inf(1), math.Inf(1)
	for _, k := range f.report.Candidates {
		switch {
		case k.Next == nil:
		case k.Name == ArrivalsRows:
			of = float64(k.Next.Total)
		case strings.HasPrefix(k.Name, ArrivalsProfile):
			best = min(best, float64(k.Next.Total))
		}
	}
	if of > 0.9*best {
		return nil
	}
	// Blocks of rows also have to keep what is reused.
	if f.model.Blocks != nil {
		plain, err := f.prefixNext(ctx, ArrivalsExponential)
		if err != nil {
			return err
		}
		resampled, err := f.prefixNext(ctx, ArrivalsRows)
		if err != nil {
			return err
		}
		if !(resampled.Mean <= plain.Mean) {
			f.warn("blocks of rows are nearer to held-out arrivals and further from held-out reuse (hit curve off by %.3f, without them by %.3f): the model goes without", float64(resampled.Mean), float64(plain.Mean))
			return nil
		}
	}
	c.Rows, c.Arrivals.Profile.Beyond = rows.Clients[0].Rows, OrderRows
	f.model.HoldsSourceRows = true
	return nil
}

// typical says whether the trace looks like any draw of a model: whether it is
// no further from what the model generates than two draws are from each other.
// The limits of passes are for the same hour again, which a short Poisson
// process is not even of itself.
func (f *fitter) typical(ctx context.Context, m *Model, again *Scores, ref *score.Sample) (bool, error) {
	bare := *m
	bare.Blocks, bare.Clients = nil, slices.Clone(m.Clients)
	bare.Clients[0].Prefixes = nil
	var all []Scores
	for seed := range seedsFor(ref.N()) {
		var g [2]*score.Sample
		for k := range g {
			var err error
			if g[k], err = bare.Sample(ctx, GenOptions{Seed: mix(f.o.Seed + uint64(100+2*seed+k)), Duration: seconds(ref.Horizon)}); err != nil {
				return false, ctx.Err()
			}
			g[k].Horizon = ref.Horizon
		}
		all = append(all, f.distances(g[0], g[1]))
	}
	own := medians(all)
	near := func(x, own score.Number, limit float64) bool { return within(x, max(limit, 1.5*float64(own)+0.01)) }
	ok := near(again.GapKS, own.GapKS, limitGap) && near(again.IDC, own.IDC, limitIDC) && near(again.TokenIDC, own.TokenIDC, limitIDC)
	for i, q := range again.Queues {
		ok = ok && near(q.KS, own.Queues[i].KS, limitKS)
	}
	if ok {
		f.typicalOf = f.report.Chosen
	}
	return ok, nil
}

func (f *fitter) chosen() *Candidate {
	for i := range f.report.Candidates {
		if f.report.Candidates[i].Name == f.report.Chosen {
			return &f.report.Candidates[i]
		}
	}
	return &Candidate{Again: &Scores{Total: score.Number(math.Inf(1))}, Next: &Scores{Total: score.Number(math.Inf(1))}}
}

// window bounds reuse to the longest gap that was seen.
func (f *fitter) window(p *Prefixes) {
	longest := 1.0
	for _, g := range p.Gap {
		if g != nil {
			longest = max(longest, g.Max)
		}
	}
	f.model.Blocks.Window = math.Ceil(longest)
}

// assume gives arrivals that cannot be learnt a rate.
func (f *fitter) assume(l *learned) error {
	rate := f.o.Rate
	if rate <= 0 {
		if f.groups == nil {
			return fmt.Errorf("%w: all %d rows arrive at one instant; name a rate to fit the lengths alone", ErrFit, f.s.N())
		}
		// Little's law: as many sessions under way as the source has.
		length := 0.0
		for _, rows := range f.groups {
			length += (f.s.Arrival[rows[len(rows)-1]] - f.s.Arrival[rows[0]]) / float64(len(f.groups))
		}
		if !(length > 0) {
			return fmt.Errorf("%w: all sessions start and end at one instant; name a rate", ErrFit)
		}
		rate = float64(len(f.groups)) / length
		f.lose("when sessions start: in the source all do at once; they start at random here, %.4g a second, which keeps about as many under way", rate)
	} else {
		f.lose("arrivals: in the source all are at one instant; a Poisson process of the rate that was asked for takes their place")
	}
	f.report.Floor = unknownScores()
	m := f.single(l, Arrivals{Kind: ArrivalsExponential, Rate: significant(rate, 6)})
	if f.model.Horizon < 1 {
		f.model.Horizon = significant(max(1, float64(l.starts.N())/rate), 6)
	}
	f.model.Clients = m.Clients
	f.report.Chosen, f.report.Unseen = ArrivalsExponential, UnseenNotTested
	f.report.Verdict = "arrivals were assumed, not learnt: lengths, and sessions where there are any, are the trace's, when requests come is not"
	return nil
}

// candidate fits one kind of arrivals; a nil model says that it cannot be.
func (f *fitter) candidate(ctx context.Context, l *learned, ref *score.Sample, kind string) (*Model, Candidate, error) {
	c := Candidate{Name: kind, HoldsRows: kind == ArrivalsRows}
	if kind != ArrivalsProfile {
		m := f.arrivals(l, kind, nil)
		if m == nil {
			return nil, c, nil
		}
		var err error
		c.Again, err = f.again(ctx, m, ref)
		return m, c, err
	}
	var m *Model
	for i, step := range ladder {
		n := windowsOf(l.s.Horizon, step.window)
		if n < 4 && i+1 < len(ladder) && m == nil || n > maxProfile || l.bins*n/step.stride > maxCells && m != nil {
			continue
		}
		m = f.arrivals(l, kind, &ladder[i])
		var err error
		if c.Again, err = f.again(ctx, m, ref); err != nil {
			return nil, c, err
		}
		if c.Again.passes() || ctx.Err() != nil || l.s.N() > 1_000_000 && step.window <= 60 {
			break
		}
	}
	return m, c, ctx.Err()
}

// arrivals fits one kind of arrivals to what was learnt.
func (f *fitter) arrivals(l *learned, kind string, step *struct {
	window float64
	stride int
}) *Model {
	s := l.starts
	switch kind {
	case ArrivalsProfile:
		return f.single(l, Arrivals{Kind: kind, Rate: significant(s.Rate(), 6), Profile: fitProfile(s, l.bin, l.bins, step.window, step.stride)})
	case ArrivalsMMPP:
		states := fitMMPP(s.Arrival, s.Horizon, l.bin, l.bins)
		if states == nil {
			return nil
		}
		return f.single(l, Arrivals{Kind: kind, Rate: significant(s.Rate(), 6), States: states})
	case ArrivalsRows:
		var rs []reuse
		if l.client.Prefixes != nil {
			rs = findReuse(s)
		}
		m := f.single(l, Arrivals{Kind: kind, Rate: significant(s.Rate(), 6)})
		m.HoldsSourceRows = true
		m.Clients[0].Rows = fitRows(s, max(min(rowsBlock, s.Horizon/8), s.Horizon/1e4), rs)
		return m
	}
	a, ok := fitRenewal(kind, score.Gaps(s), s.Rate())
	if !ok {
		return nil
	}
	return f.single(l, a)
}

// rowsBlock is the mean length of resampled blocks in seconds: blocks from 90 to
// 270 s keep the bursts of a service together and still are many an hour.
const rowsBlock = 180

// scored is the part of a sample that candidates are compared with.
func (f *fitter) scored(s *score.Sample) *score.Sample {
	if s.N() <= maxScored {
		return s
	}
	return s.Slice(0, s.Arrival[maxScored])
}

func seedsFor(n int) int {
	switch {
	case n <= 30_000:
		return 5
	case n <= 80_000:
		return 3
	}
	return 1
}

// again scores a model against the stretch that it was learnt from.
func (f *fitter) again(ctx context.Context, m *Model, ref *score.Sample) (*Scores, error) {
	return f.compare(ctx, m, ref, GenOptions{Duration: seconds(ref.Horizon)})
}

func seconds(x float64) time.Duration { return time.Duration(math.Round(x * 1e9)) }

// compare generates with a few seeds and takes the median of each score. Prefix
// blocks play no part.
func (f *fitter) compare(ctx context.Context, m *Model, ref *score.Sample, o GenOptions) (*Scores, error) {
	bare := *m
	bare.Blocks = nil
	bare.Clients = slices.Clone(m.Clients)
	for i := range bare.Clients {
		bare.Clients[i].Prefixes = nil
	}
	var all []Scores
	for seed := range seedsFor(ref.N()) {
		o.Seed = mix(f.o.Seed + uint64(seed))
		g, err := bare.Sample(ctx, o)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			// A model may make no row in a short stretch: that is a bad score.
			all = append(all, worst())
			continue
		}
		// The window is known; the last arrival only hints at it.
		g.Horizon = ref.Horizon
		all = append(all, f.distances(ref, g))
	}
	s := medians(all)
	s.Total = f.total(&s)
	return &s, nil
}

func worst() Scores {
	s := Scores{Rows: 0, GapKS: 1, IDC: 10, TokenIDC: 10, InKS: 1, OutKS: 1, Eta2: 1, TurnsKS: 1, ThinkKS: 1}
	for _, rho := range loads {
		s.Queues = append(s.Queues, QueueScores{rho, 1, 0})
	}
	return s
}

func (f *fitter) distances(ref, g *score.Sample) Scores {
	s := Scores{Rows: score.Number(float64(g.N()) / float64(ref.N())), GapKS: score.Number(score.GapKS(ref, g)), IDC: score.Number(math.NaN()), TokenIDC: score.Number(math.NaN())}
	s.InKS, s.OutKS, s.Eta2 = lengthDistance(ref.In, g.In), lengthDistance(ref.Out, g.Out), score.Number(math.NaN())
	switch {
	case ref.Aborted != nil:
		// Outputs that were cut are not what the model is to make.
		s.OutKS = s.Eta2
	case ref.In != nil && ref.Out != nil && g.In != nil && g.Out != nil:
		s.Eta2 = score.Number(math.Abs(score.Eta2(ref, 20) - score.Eta2(g, 20)))
	}
	s.TurnsKS, s.ThinkKS = score.Number(math.NaN()), score.Number(math.NaN())
	even := g.AtRate(ref.Rate())
	for _, width := range []float64{1, 10, 100} {
		if ref.Horizon < fewestWindows*width {
			continue
		}
		s.IDC = greater(s.IDC, score.LogRatio(score.IDC(even, width), score.IDC(ref, width)))
	}
	if ref.In != nil {
		for _, width := range []float64{10, 100} {
			if ref.Horizon < fewestWindows*width {
				continue
			}
			s.TokenIDC = greater(s.TokenIDC, score.LogRatio(score.TokenIDC(even, width), score.TokenIDC(ref, width)))
		}
		work, other := score.PromptWork(ref), score.PromptWork(g)
		for _, rho := range loads {
			q := score.CompareQueues(ref, g, work, other, rho)
			s.Queues = append(s.Queues, QueueScores{rho, score.Number(q.KS), score.Number(q.P99)})
		}
	}
	return s
}

func lengthDistance(a, b []int32) score.Number {
	if a == nil || b == nil {
		return score.Number(math.NaN())
	}
	return score.Number(score.KS(score.Known(a), score.Known(b)))
}

// fewestWindows is how many windows a dispersion needs to mean something: with
// 20 its standard error is a third.
const fewestWindows = 20

func greater(a score.Number, b float64) score.Number {
	if !a.OK() || b > float64(a) {
		return score.Number(b)
	}
	return a
}

// medians joins the scores of several seeds.
func medians(all []Scores) Scores {
	mid := func(of func(*Scores) score.Number) score.Number {
		var x []float64
		for i := range all {
			if v := of(&all[i]); v.OK() {
				x = append(x, float64(v))
			}
		}
		if len(x) == 0 {
			return score.Number(math.NaN())
		}
		slices.Sort(x)
		return score.Number((x[(len(x)-1)/2] + x[len(x)/2]) / 2)
	}
	m := Scores{
		Rows:     mid(func(s *Scores) score.Number { return s.Rows }),
		GapKS:    mid(func(s *Scores) score.Number { return s.GapKS }),
		IDC:      mid(func(s *Scores) score.Number { return s.IDC }),
		TokenIDC: mid(func(s *Scores) score.Number { return s.TokenIDC }),
		InKS:     mid(func(s *Scores) score.Number { return s.InKS }),
		OutKS:    mid(func(s *Scores) score.Number { return s.OutKS }),
		Eta2:     mid(func(s *Scores) score.Number { return s.Eta2 }),
		TurnsKS:  mid(func(s *Scores) score.Number { return s.TurnsKS }),
		ThinkKS:  mid(func(s *Scores) score.Number { return s.ThinkKS }),
	}
	for k := range all[0].Queues {
		m.Queues = append(m.Queues, QueueScores{all[0].Queues[k].Load,
			mid(func(s *Scores) score.Number { return s.Queues[k].KS }),
			mid(func(s *Scores) score.Number { return s.Queues[k].P99 })})
	}
	return m
}

func unknownScores() Scores {
	nan := score.Number(math.NaN())
	return Scores{Rows: nan, GapKS: nan, IDC: nan, TokenIDC: nan, InKS: nan, OutKS: nan, Eta2: nan, TurnsKS: nan, ThinkKS: nan, Total: nan}
}

// floor is what the halves of the trace differ by.
func (f *fitter) floor() Scores {
	h1, h2 := f.s.Halves()
	if h1.N() < 2 || h2.N() < 2 {
		return unknownScores()
	}
	s := f.apart(f.scored(h1), f.scored(h2))
	s.Total = score.Number(1)
	return s
}

// apart is what two stretches of the trace differ by, each in its own time.
func (f *fitter) apart(h1, h2 *score.Sample) Scores {
	s := f.distances(h2, h1)
	if h1.In != nil && h2.In != nil {
		for i, rho := range loads {
			q := score.QueueFloor(h2, h1, score.PromptWork(h2), score.PromptWork(h1), rho)
			s.Queues[i].KS, s.Queues[i].P99 = score.Number(q.KS), score.Number(q.P99)
		}
	}
	return s
}

// floorsNext is what the two stretches of each fold differ by, and the mean of
// that.
func (f *fitter) floorsNext() *Scores {
	for _, fold := range f.folds() {
		f.foldFloors = append(f.foldFloors, f.apart(fold[0], fold[1]))
	}
	if len(f.foldFloors) == 0 {
		return nil
	}
	s := means(f.foldFloors)
	s.Total = score.Number(math.NaN())
	return &s
}

// total weighs scores by the floor, with what chance alone does to an hour of
// traffic added to it.
func (f *fitter) total(s *Scores) score.Number {
	var sum, parts float64
	add := func(x, floor score.Number, chance, weight float64) {
		if !x.OK() {
			return
		}
		if !floor.OK() {
			floor = 0
		}
		sum += weight * min(20, math.Abs(float64(x))/(math.Abs(float64(floor))+chance))
		parts += weight
	}
	add(s.GapKS, f.report.Floor.GapKS, 0.02, 0.5)
	add(s.IDC, f.report.Floor.IDC, 0.1, 1)
	add(s.TokenIDC, f.report.Floor.TokenIDC, 0.1, 1)
	for i, q := range s.Queues {
		floor := QueueScores{KS: score.Number(math.NaN()), P99: score.Number(math.NaN())}
		if i < len(f.report.Floor.Queues) {
			floor = f.report.Floor.Queues[i]
		}
		add(q.KS, floor.KS, 0.03, 1)
		add(logOf(q.P99), logOf(floor.P99), 0.2, 1)
	}
	if parts == 0 {
		return score.Number(math.NaN())
	}
	return score.Number(sum / parts)
}

func logOf(x score.Number) score.Number {
	return score.Number(math.Log(max(1e-9, float64(x))))
}

// heldOut scores a kind of arrivals on stretches after the one it learns from.
func (f *fitter) heldOut(ctx context.Context, c *Candidate, kind string, m *Model) error {
	return f.held(ctx, c, "", func(s *score.Sample) *Model { return f.trained(s, kind, m) })
}

// held scores what train makes of a stretch on the stretch after it, over the
// folds; c.Next stays nil where there is none.
func (f *fitter) held(ctx context.Context, c *Candidate, order string, train func(*score.Sample) *Model) error {
	var all []Scores
	for i, fold := range f.folds() {
		m := train(fold[0])
		if m == nil {
			continue
		}
		s, err := f.compare(ctx, m, fold[1], f.nextOptions(m, fold[1], order))
		if err != nil {
			return err
		}
		all = append(all, *s)
		c.folds = append(c.folds, foldScores{*s, f.foldFloors[i]})
	}
	if len(all) == 0 {
		return nil
	}
	s := means(all)
	s.Total = f.total(&s)
	c.Next = &s
	return nil
}

// nextOptions plays what comes after the end of a model.
func (f *fitter) nextOptions(m *Model, ref *score.Sample, order string) GenOptions {
	return GenOptions{Duration: seconds(ref.Horizon), From: seconds(m.Horizon), Order: order}
}

// folds are pairs of neighbouring stretches: halves, and thirds where there are
// rows enough.
func (f *fitter) folds() [][2]*score.Sample {
	if f.stretches != nil {
		return f.stretches
	}
	folds := [][2]*score.Sample{}
	add := func(from, to, end float64) {
		a, b := f.s.Slice(from, to), f.s.Slice(to, end)
		if a.N() >= 50 && b.N() >= 50 {
			folds = append(folds, [2]*score.Sample{f.scored(a), f.scored(b)})
		}
	}
	t := f.s.Horizon
	add(0, t/2, t)
	if f.s.N() >= 2000 {
		add(0, t/3, 2*t/3)
		add(t/3, 2*t/3, t)
	}
	f.stretches = folds
	return folds
}

// trained fits a kind of arrivals, with windows as m has them, to a stretch.
func (f *fitter) trained(s *score.Sample, kind string, m *Model) *Model {
	var groups [][]int
	if f.groups != nil {
		groups = sessionRows(s)
	}
	l := f.learn(s, groups, nil)
	if instant(l.starts) {
		return nil
	}
	if kind != ArrivalsProfile {
		return f.arrivals(l, kind, nil)
	}
	p := m.Clients[0].Arrivals.Profile
	step := ladder[0]
	step.window, step.stride = p.Window, max(1, p.Stride)
	t := f.arrivals(l, kind, &step)
	t.Clients[0].Arrivals.Profile.Beyond = p.Beyond
	if p.BeyondLevel != 0 {
		t.Clients[0].Arrivals.Profile.BeyondLevel = driftLevel(s, l.client.Lengths)
	}
	t.Horizon = p.Window * float64(t.Clients[0].Arrivals.Profile.Windows)
	return t
}

// means joins the scores of folds.
func means(all []Scores) Scores {
	mean := func(of func(*Scores) score.Number) score.Number {
		sum, n := 0.0, 0.0
		for i := range all {
			if v := of(&all[i]); v.OK() {
				sum, n = sum+float64(v), n+1
			}
		}
		return score.Number(sum / n)
	}
	m := Scores{
		Rows:     mean(func(s *Scores) score.Number { return s.Rows }),
		GapKS:    mean(func(s *Scores) score.Number { return s.GapKS }),
		IDC:      mean(func(s *Scores) score.Number { return s.IDC }),
		TokenIDC: mean(func(s *Scores) score.Number { return s.TokenIDC }),
		InKS:     mean(func(s *Scores) score.Number { return s.InKS }),
		OutKS:    mean(func(s *Scores) score.Number { return s.OutKS }),
		Eta2:     mean(func(s *Scores) score.Number { return s.Eta2 }),
		TurnsKS:  mean(func(s *Scores) score.Number { return s.TurnsKS }),
		ThinkKS:  mean(func(s *Scores) score.Number { return s.ThinkKS }),
	}
	for k := range all[0].Queues {
		m.Queues = append(m.Queues, QueueScores{all[0].Queues[k].Load,
			mean(func(s *Scores) score.Number { return s.Queues[k].KS }),
			score.Number(math.Exp(float64(mean(func(s *Scores) score.Number { return logOf(s.Queues[k].P99) }))))})
	}
	return m
}

// beyond chooses how a profile goes on after its end, by held-out score.
func (f *fitter) beyond(ctx context.Context, l *learned) error {
	a := &f.model.Clients[0].Arrivals
	if a.Kind != ArrivalsProfile || l.s.Horizon >= 20*3600 {
		if a.Kind == ArrivalsProfile {
			a.Profile.Beyond = OrderRecorded // a day repeats better than its minutes shuffled
		}
		return nil
	}
	best := math.Inf(1)
	for _, order := range []string{OrderResampled, OrderRecorded} {
		c := Candidate{Name: ArrivalsProfile + ", then " + order}
		if err := f.held(ctx, &c, order, func(s *score.Sample) *Model { return f.trained(s, ArrivalsProfile, f.model) }); err != nil || c.Next == nil {
			return err
		}
		f.report.Candidates = append(f.report.Candidates, c)
		// Another such hour is taken unless the same one again is clearly nearer.
		if t := float64(c.Next.Total); t < 0.85*best {
			best, a.Profile.Beyond = t, order
		}
	}
	return nil
}

// drift carries the level of the prompts on past the end of a profile, where
// that would have been nearer in the folds and in none of them further: some services drift over hours, and
// the last third of a stretch then says more of the next one than all of it.
func (f *fitter) drift(ctx context.Context, l *learned) error {
	a := &f.model.Clients[0].Arrivals
	if a.Kind != ArrivalsProfile || l.client.Lengths == nil || l.client.Lengths.In == nil || f.groups != nil {
		return nil
	}
	var all, late float64
	folds := f.folds()
	for _, fold := range folds {
		x, y := score.LogRatio(meanIn(fold[0]), meanIn(fold[1])), score.LogRatio(lastIn(fold[0]), meanIn(fold[1]))
		if !(y < x+0.01) {
			return nil
		}
		all, late = all+x, late+y
	}
	// Less than a twentieth is no drift worth a word.
	if len(folds) < 3 || late > 0.9*all || all/float64(len(folds)) < 0.05 {
		return nil
	}
	a.Profile.BeyondLevel = driftLevel(f.s, l.client.Lengths)
	f.report.Warnings = append(f.report.Warnings, fmt.Sprintf("prompts drift: after its end the model goes on with the level of the last third, %.2f times the mean", lastIn(f.s)/meanIn(f.s)))
	c := Candidate{Name: ArrivalsProfile + ", then " + a.Profile.Beyond + drifting}
	if err := f.held(ctx, &c, "", func(s *score.Sample) *Model { return f.trained(s, ArrivalsProfile, f.model) }); err != nil {
		return err
	}
	f.report.Candidates = append(f.report.Candidates, c)
	return nil
}

// drifting is what the name of a candidate ends in whose prompts go on drifting.
const drifting = ", drifting"

func meanIn(s *score.Sample) float64 {
	sum, n := 0.0, 0.0
	for _, v := range s.In {
		if v >= 0 {
			sum, n = sum+float64(v), n+1
		}
	}
	return sum / n
}

// lastIn is the mean prompt of the last third.
func lastIn(s *score.Sample) float64 { return meanIn(s.Slice(s.Horizon*2/3, s.Horizon)) }

// driftLevel is the BeyondLevel that gives prompts the mean of the last third.
func driftLevel(s *score.Sample, lengths *Lengths) float64 {
	want := lastIn(s) / meanIn(s)
	q := lengths.In.quantiler()
	at := func(power float64) float64 {
		const steps = 2000
		sum := 0.0
		for i := range steps {
			sum += q.real(math.Pow((float64(i)+0.5)/steps, power)) / steps
		}
		return sum
	}
	whole := at(1)
	return significant(bisect(0.1, 10, func(power float64) float64 { return at(power)/whole - want }), 4)
}

// superpose tries a client of its own for each client key.
func (f *fitter) superpose(ctx context.Context, ref *score.Sample) error {
	if len(f.s.Clients) < 2 || f.s.Client == nil {
		return nil
	}
	step := ladder[0]
	step.window, step.stride = 60, 1
	for windowsOf(f.s.Horizon, step.window) > maxProfile/4 {
		step.window *= 5
	}
	beyond := f.beyondOf()
	if p := f.model.Clients[0].Arrivals.Profile; p != nil {
		step.window, step.stride = p.Window, max(1, p.Stride)
	}
	m, rest := f.clients(f.s, &step, beyond)
	if m == nil {
		return nil
	}
	if rest > 0 {
		f.lose("the identity of clients with few rows: %d rows were taken together", rest)
	}
	again, err := f.again(ctx, m, ref)
	if err != nil {
		return err
	}
	c := Candidate{Name: "clients", Again: again}
	if err = f.held(ctx, &c, "", func(s *score.Sample) *Model {
		train, _ := f.clients(s, &step, beyond)
		if train != nil {
			train.Horizon = step.window * float64(windowsOf(s.Horizon, step.window))
		}
		return train
	}); err != nil {
		return err
	}
	f.report.Candidates = append(f.report.Candidates, c)
	if !again.passes() && again.Total > 0.5 && again.Total > 2*f.chosen().Again.Total {
		f.lose("who asks: a model of each client came less near than one of all together")
		return nil
	}
	if f.model.Blocks != nil {
		f.lose("prefixes that clients share with each other")
	}
	f.model.Clients, f.report.Chosen = m.Clients, c.Name
	return nil
}

// beyondOf is how the model of all clients together goes on after its end.
func (f *fitter) beyondOf() string {
	if p := f.model.Clients[0].Arrivals.Profile; p != nil {
		return p.Beyond
	}
	return ""
}

// clients fits a client of its own for each client key of a stretch that has
// rows enough, and one for rest, the number of all other rows. A nil model says
// that there is one client at most.
func (f *fitter) clients(s *score.Sample, step *struct {
	window float64
	stride int
}, beyond string) (m *Model, rest int) {
	rows := make([][]int, len(s.Clients))
	for i, c := range s.Client {
		rows[c] = append(rows[c], i)
	}
	order := make([]int, len(rows))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(len(rows[b]), len(rows[a])) })
	m = &Model{Format: ModelFormat, Version: ModelVersion, Horizon: max(1e-3, significant(s.Horizon, 9)), Blocks: f.model.Blocks}
	add := func(name string, rows []int) {
		slices.Sort(rows)
		part := part(s, rows)
		var groups [][]int
		if f.groups != nil {
			groups = sessionRows(part)
		}
		one := f.arrivals(f.learn(part, groups, f.model.Blocks), ArrivalsProfile, step).Clients[0]
		one.Slot, one.Name = len(m.Clients), name
		if beyond != "" {
			one.Arrivals.Profile.Beyond = beyond
		}
		m.Clients = append(m.Clients, one)
	}
	var others []int
	for k, c := range order {
		if k < maxClients && len(rows[c]) >= fewRows {
			add(s.Clients[c], rows[c])
		} else {
			others = append(others, rows[c]...)
		}
	}
	if len(m.Clients) < 2 {
		return nil, 0
	}
	if len(others) > 1 {
		add("", others)
	}
	return m, len(others)
}

// part is some rows of the trace with their sessions.
func part(s *score.Sample, rows []int) *score.Sample {
	c := rowsOf(s, rows)
	for _, i := range rows {
		if s.Session != nil {
			c.Session = append(c.Session, s.Session[i])
		}
		if s.Think != nil {
			c.Think = append(c.Think, s.Think[i])
		}
		if s.Service != nil {
			c.Service = append(c.Service, s.Service[i])
		}
	}
	return c
}
