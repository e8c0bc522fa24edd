package study

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"gonum.org/v1/gonum/stat/distuv"

	"reprise/internal/stats"
	"reprise/report"
)

// An Effect is what a level of a factor changes in a figure, against the first
// level of the factor that has runs, over the cells that were played.
type Effect struct {
	Measure string `json:"measure"`
	Factor  string `json:"factor"`
	Level   string `json:"level"`
	Base    string `json:"against"`
	// Ratio says that Change is relative (0.1 is 10 % more); otherwise it is a
	// difference in the figure's unit.
	Ratio   bool          `json:"relative"`
	Change  report.Value  `json:"change"`
	P       report.Number `json:"p,omitzero"`
	PHolm   report.Number `json:"p_holm,omitzero"` // over all effects of the study
	Verdict string        `json:"verdict"`         // report.Better, Worse, NoDifference, NotJudged
	Why     string        `json:"why,omitempty"`   // there is no interval, or no effect
}

// An Interaction says whether the effect of one factor depends on another.
type Interaction struct {
	Measure string        `json:"measure"`
	A       string        `json:"a"`
	B       string        `json:"b"`
	DF      int           `json:"df"`
	P       report.Number `json:"p,omitzero"`
	PHolm   report.Number `json:"p_holm,omitzero"`
	// Corner says how much the effect of the last level of A (against its first)
	// differs between the last and the first level of B: relative, or a difference.
	Ratio  bool         `json:"relative"`
	Corner report.Value `json:"corner"`
	Levels [4]string    `json:"levels"` // first and last of A, first and last of B
	Why    string       `json:"why,omitempty"`
}

// A Variation says where the differences between runs come from: shares of the
// sum of squares.
type Variation struct {
	Measure string             `json:"measure"`
	Shares  map[string]float64 `json:"shares"` // by factor, and pair of factors
	Other   float64            `json:"other"`  // of interactions that are not listed
	Noise   report.Number      `json:"run_to_run,omitzero"`
}

// An observation is one figure of one run.
type observation struct {
	cell, block int
	y           float64
}

// A design says which levels each cell has.
type design struct {
	factors []Factor
	levels  [][]int // by cell and factor
	counted []bool  // by cell
	exact   bool    // repeats are the very same
}

// means are the figures of cells, adjusted for the blocks that their runs were
// in. Factors are estimated from them and not from runs: each cell counts once,
// however many of its runs do, so that a run that failed cannot shift the effect
// of one factor by what another does.
type means struct {
	at     []int       // the cells
	y      []float64   // by place in at
	raw    []float64   // y before the adjustment
	n      []float64   // runs
	inside [][]float64 // by block but the first, and place: the share of the cell's runs in it
	blocks *stats.LinearFit
	each   float64 // runs a cell: the harmonic mean
	noise  float64 // variance of a run about its cell and block; NaN
	df     int     // of noise; 0 where no cell has repeats
	size   float64 // of the largest figure: what is less than 1e-12 of it is rounding
}

// means adjusts by what blocks differ by inside cells: with cells taken out of
// figures and blocks first, only a column a block is left to fit (Frisch and
// Waugh, "Partial time regressions as compared with individual trends", 1933).
func (d *design) means(obs []observation) *means {
	m := &means{noise: math.NaN()}
	place := map[int]int{}
	for _, o := range obs {
		place[o.cell] = 0
	}
	m.at = slices.Sorted(maps.Keys(place))
	for i, c := range m.at {
		place[c] = i
	}
	m.raw, m.n = make([]float64, len(m.at)), make([]float64, len(m.at))
	for _, o := range obs {
		m.n[place[o.cell]]++
		m.raw[place[o.cell]] += o.y
		m.size = max(m.size, math.Abs(o.y))
	}
	inverse := 0.0
	for i := range m.at {
		m.raw[i] /= m.n[i]
		inverse += 1 / m.n[i]
	}
	m.each = float64(len(m.at)) / inverse
	y := make([]float64, len(obs))
	for i, o := range obs {
		y[i] = o.y - m.raw[place[o.cell]]
	}
	var cols [][]float64
	for _, b := range blocksOf(obs)[1:] {
		in := make([]float64, len(m.at))
		for _, o := range obs {
			if o.block == b {
				in[place[o.cell]] += 1 / m.n[place[o.cell]]
			}
		}
		col := make([]float64, len(obs))
		for i, o := range obs {
			if o.block == b {
				col[i] = 1
			}
			col[i] -= in[place[o.cell]]
		}
		cols, m.inside = append(cols, col), append(m.inside, in)
	}
	m.blocks = stats.LeastSquares(cols, y)
	if m.df = m.blocks.DF() - len(m.at); m.df > 0 {
		m.noise = m.snap(math.Sqrt(m.blocks.SSE / float64(m.df)))
		m.noise *= m.noise
	}
	for i := range m.at {
		w := make([]float64, len(m.at))
		w[i] = 1
		v, _ := m.sum(w)
		m.y = append(m.y, v)
	}
	return m
}

// sum is a weighted sum of cells, as if each had been in every block alike, with
// its scale.
func (m *means) sum(weights []float64) (v, scale float64) {
	total, squares := 0.0, 0.0
	for i, w := range weights {
		v += w * m.raw[i]
		total += w
		squares += w * w / m.n[i]
	}
	off := map[int]float64{}
	for b, in := range m.inside {
		if m.blocks.Aliased(b) {
			continue // no cell has runs in it and out of it
		}
		excess := -total / float64(len(m.inside)+1)
		for i, w := range weights {
			excess += w * in[i]
		}
		off[b] = -excess
	}
	shift, wide, _ := m.blocks.Contrast(off)
	return m.snap(v + shift), math.Sqrt(squares + wide*wide)
}

// snap takes what is left of rounding for nothing.
func (m *means) snap(v float64) float64 {
	if math.Abs(v) < 1e-12*m.size {
		return 0
	}
	return v
}

// observations are the means as one observation a cell.
func (m *means) observations() (out []observation) {
	for i, c := range m.at {
		out = append(out, observation{cell: c, y: m.y[i]})
	}
	return out
}

func newDesign(s *Study) *design {
	d := &design{factors: s.Factors}
	for i := range s.Cells {
		d.levels = append(d.levels, s.Cells[i].levels)
		d.counted = append(d.counted, s.Cells[i].Counted > 0)
	}
	return d
}

// once is an observation of each cell that has runs, to look at the design alone.
func (d *design) once() (obs []observation) {
	for c, ok := range d.counted {
		if ok {
			obs = append(obs, observation{cell: c})
		}
	}
	return obs
}

// present are the levels of a factor among observations, in order.
func (d *design) present(obs []observation, f int) (out []int) {
	for l := range d.factors[f].Levels {
		if slices.ContainsFunc(obs, func(o observation) bool { return d.levels[o.cell][f] == l }) {
			out = append(out, l)
		}
	}
	return out
}

// A model is a fit to cells with the columns of its levels. The first level of a factor
// that is present has none.
type model struct {
	*stats.LinearFit
	level map[[2]int]int // column by factor and level
	pair  map[[2]int]int // column by levels of the pair
}

// fit fits the main effects of all factors but those left out, and the
// interactions of pairs.
func (d *design) fit(obs []observation, without []int, pairs ...[2]int) *model {
	m := &model{level: map[[2]int]int{}, pair: map[[2]int]int{}}
	var cols [][]float64
	add := func(of func(o observation) bool) int {
		col := make([]float64, len(obs))
		for i, o := range obs {
			if of(o) {
				col[i] = 1
			}
		}
		cols = append(cols, col)
		return len(cols) - 1
	}
	add(func(observation) bool { return true })
	for f := range d.factors {
		if slices.Contains(without, f) {
			continue
		}
		for _, l := range d.present(obs, f)[1:] {
			m.level[[2]int{f, l}] = add(func(o observation) bool { return d.levels[o.cell][f] == l })
		}
	}
	for _, p := range pairs {
		for _, a := range d.present(obs, p[0])[1:] {
			for _, b := range d.present(obs, p[1])[1:] {
				m.pair[[2]int{a, b}] = add(func(o observation) bool { return d.levels[o.cell][p[0]] == a && d.levels[o.cell][p[1]] == b })
			}
		}
	}
	y := make([]float64, len(obs))
	for i, o := range obs {
		y[i] = o.y
	}
	m.LinearFit = stats.LeastSquares(cols, y)
	return m
}

func blocksOf(obs []observation) []int {
	seen := map[int]bool{}
	for _, o := range obs {
		seen[o.block] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

// minDF is how many degrees of freedom an error needs: two runs of each of two
// cells leave one, whose interval would be 25 standard errors wide.
const minDF = 2

// sample are the observations of a figure, and whether they are logarithms.
func (d *design) sample(s *Study, m *Measure) (obs []observation, logs bool) {
	logs = m.Ratio
	for c := range s.Cells {
		for _, x := range s.Cells[c].runs {
			v := s.value(m, x)
			if math.IsNaN(v) {
				continue
			}
			logs = logs && v > 0
			obs = append(obs, observation{c, x.Repeat, v})
		}
	}
	if logs {
		for i := range obs {
			obs[i].y = math.Log(obs[i].y)
		}
	}
	return obs, logs
}

// analyse finds effects, interactions and where the variation comes from.
func (s *Study) analyse() {
	d := s.design
	main := []string{s.tail("ttft.p99", "ttft.p90", "ttft.p50"), "tpot.p50", "output_tokens_per_second", "goodput"}
	for i := range measures {
		m := &measures[i]
		if !s.tells(m) || m.Name == "in_flight.mean" || m.Name == "price_per_million_tokens" || m.Name == "tokens_per_gpu_hour" && s.Price == 0 {
			continue // what follows from others
		}
		obs, logs := d.sample(s, m)
		if len(obs) < 2 || same(obs) {
			continue
		}
		s.Effects = append(s.Effects, d.effects(m, obs, logs)...)
		if slices.Contains(main, m.Name) {
			ins, v := d.interactions(m, obs, logs)
			s.Interactions = append(s.Interactions, ins...)
			s.Variation = append(s.Variation, v)
		}
	}
	ps := make([]float64, len(s.Effects))
	for i := range s.Effects {
		ps[i] = s.Effects[i].P.Or(math.NaN())
	}
	for i, p := range stats.Holm(ps) {
		e := &s.Effects[i]
		e.PHolm = report.Known(p)
		e.Verdict = verdict(e, &measures[measureAt(e.Measure)])
	}
	ps = make([]float64, len(s.Interactions))
	for i := range s.Interactions {
		ps[i] = s.Interactions[i].P.Or(math.NaN())
	}
	for i, p := range stats.Holm(ps) {
		s.Interactions[i].PHolm = report.Known(p)
	}
}

// same says that there is nothing to explain.
func same(obs []observation) bool {
	return !slices.ContainsFunc(obs, func(o observation) bool { return o.y != obs[0].y })
}

// significant is the level of verdicts, after Holm's correction.
const significant = 0.05

func verdict(e *Effect, m *Measure) string {
	switch {
	case !e.PHolm.OK:
		return report.NotJudged
	case e.PHolm.V >= significant:
		return report.NoDifference
	case !m.Higher && !m.Lower:
		return report.NotJudged
	case (e.Change.V.V > 0) == m.Higher:
		return report.Better
	}
	return report.Worse
}

// spread is the error that intervals are made of.
type spread struct {
	sd  float64
	df  int
	why string // there is none
}

// spread is the error of a fit to the means: what repeats differ by, or else what
// the fit leaves.
func (m *means) spread(f *stats.LinearFit) spread {
	v, df := m.noise, m.df
	if df < minDF {
		df = f.DF()
		v = m.snap(math.Sqrt(f.SSE * m.each / float64(max(1, df))))
		v *= v
	}
	if df < minDF && m.df > 0 {
		return spread{math.NaN(), df, "there are too few repeats, and as many levels as cells: nothing is left to tell chance by"}
	}
	if df < minDF {
		return spread{math.NaN(), df, "there are no repeats, and as many levels as cells: nothing is left to tell chance by"}
	}
	return spread{math.Sqrt(v), df, ""}
}

// value is a contrast with its interval, as a relative change or a difference.
func (sp spread) value(est, scale float64, logs bool) (v report.Value, p report.Number) {
	lo, hi := math.NaN(), math.NaN()
	if sp.why == "" {
		se := scale * sp.sd
		half := stats.StudentQuantile(sp.df) * se
		lo, hi = est-half, est+half
		switch {
		case se > 0:
			p = report.Known(stats.StudentP(sp.df, est/se))
		case est != 0:
			p = report.Known(0)
		default:
			p = report.Known(1)
		}
	}
	if logs {
		est, lo, hi = math.Expm1(est), math.Expm1(lo), math.Expm1(hi)
	}
	return report.Value{V: report.Known(est), Lo: report.Known(lo), Hi: report.Known(hi)}, p
}

// effects estimates every level of every factor.
func (d *design) effects(m *Measure, runs []observation, logs bool) (out []Effect) {
	mean := d.means(runs)
	obs := mean.observations()
	full := d.fit(obs, nil)
	sp := mean.spread(full.LinearFit)
	if m.Name == "ttft.p50" && mean.df > 0 && mean.noise == 0 {
		d.exact = true
	}
	for f := range d.factors {
		levels := d.present(obs, f)
		if len(levels) < 2 {
			continue
		}
		apart := full.Rank-d.fit(obs, []int{f}).Rank == len(levels)-1
		for _, l := range levels[1:] {
			e := Effect{Measure: m.Name, Factor: d.factors[f].Name, Level: d.factors[f].Levels[l], Base: d.factors[f].Levels[levels[0]], Ratio: logs, Why: sp.why}
			w, ok := full.Weights(map[int]float64{full.level[[2]int{f, l}]: 1})
			switch {
			case !apart || !ok:
				e.Why = "it cannot be told from other factors in the cells that have this figure"
			default:
				est, scale := mean.sum(w)
				e.Change, e.P = sp.value(est, scale, logs)
			}
			out = append(out, e)
		}
	}
	return out
}

// pairs are all pairs of factors that have levels to combine.
func (d *design) pairs(obs []observation) (out [][2]int) {
	for a := range d.factors {
		for b := a + 1; b < len(d.factors); b++ {
			if len(d.present(obs, a)) > 1 && len(d.present(obs, b)) > 1 {
				out = append(out, [2]int{a, b})
			}
		}
	}
	return out
}

// interactions tests each pair of factors, and divides the variation between
// runs. Sums of squares of means stand for as many runs as a cell has (the
// analysis of unweighted means: Yates, "The analysis of multiple classifications
// with unequal numbers in the different classes", 1934).
func (d *design) interactions(m *Measure, runs []observation, logs bool) (out []Interaction, v Variation) {
	mean := d.means(runs)
	obs := mean.observations()
	full := d.fit(obs, nil)
	all := make([]int, len(d.factors))
	for i := range all {
		all[i] = i
	}
	whole := d.fit(obs, all).SSE * mean.each
	if mean.df > 0 {
		whole += mean.noise * float64(mean.df)
	}
	v = Variation{Measure: m.Name, Shares: map[string]float64{}, Other: 1}
	take := func(name string, ss float64) {
		if whole > 0 {
			v.Shares[name] = max(0, ss*mean.each/whole)
			v.Other -= v.Shares[name]
		}
	}
	for f := range d.factors {
		if len(d.present(obs, f)) > 1 {
			take(d.factors[f].Name, d.fit(obs, []int{f}).SSE-full.SSE)
		}
	}
	for _, p := range d.pairs(obs) {
		with := d.fit(obs, nil, p)
		gain := with.Rank - full.Rank
		a, b := d.factors[p[0]], d.factors[p[1]]
		la, lb := d.present(obs, p[0]), d.present(obs, p[1])
		if gain == 0 {
			continue // the design says nothing of it
		}
		in := Interaction{Measure: m.Name, A: a.Name, B: b.Name, DF: gain, Ratio: logs}
		in.Levels = [4]string{a.Levels[la[0]], a.Levels[la[len(la)-1]], b.Levels[lb[0]], b.Levels[lb[len(lb)-1]]}
		take(a.Name+" × "+b.Name, full.SSE-with.SSE)
		sp := mean.spread(with.LinearFit)
		if in.Why = sp.why; in.Why == "" {
			ms := (full.SSE - with.SSE) * mean.each / float64(gain)
			switch {
			case sp.sd > 0:
				in.P = report.Known(distuv.F{D1: float64(gain), D2: float64(sp.df)}.Survival(ms / (sp.sd * sp.sd)))
			case mean.snap(math.Sqrt(max(0, ms))) > 0:
				in.P = report.Known(0)
			default:
				in.P = report.Known(1)
			}
		}
		if column, played := with.pair[[2]int{la[len(la)-1], lb[len(lb)-1]}]; played {
			if w, ok := with.Weights(map[int]float64{column: 1}); ok {
				est, scale := mean.sum(w)
				in.Corner, _ = sp.value(est, scale, logs)
			}
		}
		if gain < (len(la)-1)*(len(lb)-1) {
			in.Why = "not every combination of the two was played"
		}
		out = append(out, in)
	}
	if mean.df > 0 && whole > 0 {
		v.Noise = report.Known(mean.noise * float64(mean.df) / whole)
		v.Other -= v.Noise.V
	}
	v.Other = max(0, v.Other)
	return out, v
}

// describe says what the design can tell apart: empty levels, fractions, aliases.
func (d *design) describe(s *Study) {
	obs := d.once()
	full := 1
	for f := range d.factors {
		full *= len(d.factors[f].Levels)
		for l, name := range d.factors[f].Levels {
			if !slices.ContainsFunc(obs, func(o observation) bool { return d.levels[o.cell][f] == l }) {
				s.Empty = append(s.Empty, d.factors[f].Name+"="+name)
			}
		}
	}
	combos := map[string]bool{}
	for c := range d.levels {
		combos[fmt.Sprint(d.levels[c])] = true
	}
	switch {
	case len(combos) == full:
		s.Fraction = fmt.Sprintf("all %d combinations of %s", full, d.names())
	default:
		s.Fraction = fmt.Sprintf("%d of the %d combinations of %s", len(combos), full, d.names())
	}
	s.Fraction += fmt.Sprintf(", %s each", repeats(s.Repeat.Repeats))
	if len(obs) > 1 {
		s.Aliases = d.aliases(obs)
	}
}

func repeats(n int) string {
	if n == 1 {
		return "one run"
	}
	return fmt.Sprintf("%d runs", n)
}

func (d *design) names() string {
	var names []string
	for _, f := range d.factors {
		names = append(names, f.Name)
	}
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}

// maxAliases bounds what is listed.
const maxAliases = 24

// aliases names effects that the cells with runs cannot tell apart.
func (d *design) aliases(obs []observation) (out []string) {
	add := func(format string, a ...any) {
		if len(out) < maxAliases {
			out = append(out, fmt.Sprintf(format, a...))
		}
	}
	full := d.fit(obs, nil)
	lost := map[int]bool{}
	for f := range d.factors {
		n := len(d.present(obs, f)) - 1
		if n < 1 || full.Rank-d.fit(obs, []int{f}).Rank == n {
			continue
		}
		lost[f] = true
		var with []string
		for g := range d.factors {
			if g != f && d.fit(obs, []int{g}).Rank-d.fit(obs, []int{f, g}).Rank == n {
				with = append(with, d.factors[g].Name)
			}
		}
		if len(with) == 0 {
			with = []string{"other factors"}
		}
		add("the effect of %s cannot be told from that of %s: they change together", d.factors[f].Name, strings.Join(with, " and "))
	}
	pairs := d.pairs(obs)
	name := func(p [2]int) string { return d.factors[p[0]].Name + " × " + d.factors[p[1]].Name }
	for f := range d.factors {
		if lost[f] || len(d.present(obs, f)) < 2 {
			continue
		}
		for _, p := range pairs {
			if p[0] == f || p[1] == f {
				continue
			}
			others := d.except(f, p)
			alone := d.fit(obs, others).Rank - d.fit(obs, append(others, f)).Rank
			beside := d.fit(obs, others, p).Rank - d.fit(obs, append(others, f), p).Rank
			switch {
			case beside == 0 && alone > 0:
				add("the effect of %s is aliased with %s: what looks like the one may be the other", d.factors[f].Name, name(p))
			case beside < alone:
				add("the effect of %s is partly aliased with %s", d.factors[f].Name, name(p))
			}
		}
	}
	for i, p := range pairs {
		alone := d.fit(obs, nil, p).Rank - full.Rank
		if alone == 0 {
			add("%s cannot be estimated: the combinations that it takes were not played", name(p))
			continue
		}
		for _, q := range pairs[i+1:] {
			both, only := d.fit(obs, nil, p, q).Rank, d.fit(obs, nil, q).Rank
			if only > full.Rank && both == only {
				add("%s is aliased with %s", name(p), name(q))
			}
		}
	}
	return out
}

// except lists the factors besides one and a pair.
func (d *design) except(f int, p [2]int) (out []int) {
	for g := range d.factors {
		if g != f && g != p[0] && g != p[1] {
			out = append(out, g)
		}
	}
	return out
}

// studied are the places of the factors that have effects.
func (s *Study) studied() (out []int) {
	for f := range s.Factors {
		if slices.ContainsFunc(s.Effects, func(e Effect) bool { return e.Factor == s.Factors[f].Name }) {
			out = append(out, f)
		}
	}
	return out
}

// knownMeans are the means of a figure, kept for the points of several charts.
type knownMeans struct {
	*means
	spread spread
	logs   bool
}

// marginal is a figure at a combination of levels, over the cells that have them.
func (s *Study) marginal(m *Measure, at map[int]int) Estimate {
	k, ok := s.known[m.Name]
	if !ok {
		runs, logs := s.design.sample(s, m)
		if len(runs) == 0 {
			return Estimate{}
		}
		mean := s.design.means(runs)
		k = knownMeans{mean, mean.spread(s.design.fit(mean.observations(), nil).LinearFit), logs}
		if s.known == nil {
			s.known = map[string]knownMeans{}
		}
		s.known[m.Name] = k
	}
	mean, sp, logs := k.means, k.spread, k.logs
	w, n := make([]float64, len(mean.at)), 0
	for i, c := range mean.at {
		in := true
		for f, l := range at {
			in = in && s.design.levels[c][f] == l
		}
		if in {
			w[i] = 1
			n++
		}
	}
	if n == 0 {
		return Estimate{}
	}
	for i := range w {
		w[i] /= float64(n)
	}
	v, scale := mean.sum(w)
	half := math.NaN()
	if sp.why == "" {
		half = stats.StudentQuantile(sp.df) * sp.sd * scale
	}
	lo, hi := v-half, v+half
	if logs {
		v, lo, hi = math.Exp(v), math.Exp(lo), math.Exp(hi)
	}
	return Estimate{Value: report.Value{V: report.Known(v), Lo: report.Known(lo), Hi: report.Known(hi)}, Runs: n, Why: sp.why}
}
