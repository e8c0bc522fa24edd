package report

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"time"

	"reprise/internal/metrics"
	"reprise/internal/stats"
	"reprise/traceformat"
)

// ComparisonVersion is the version of the JSON form of a Comparison.
const ComparisonVersion = 1

// A Side is one of the things compared: one run, or its repeats.
type Side struct {
	Name string   `json:"name"`
	Runs []string `json:"runs"` // run directories or traces
}

// What an interval speaks of.
const (
	TheseRuns  = "these runs"      // other requests of the same kind in the same runs
	Deployment = "this deployment" // other runs as well
)

// Verdicts of a Metric.
const (
	Better       = "better"
	Worse        = "worse"
	NoDifference = "no difference found"
	NotJudged    = "not judged"
)

// A Comparison holds A against B, under one trace.
type Comparison struct {
	Version  int     `json:"version"`
	A        Subject `json:"a"`
	B        Subject `json:"b"`
	Estimand string  `json:"estimand"` // what the intervals speak of: TheseRuns or Deployment
	Repeats  int     `json:"repeats"`  // pairs of runs
	// Family is the number of comparisons whose p-values were corrected together,
	// this one among them; 0 for this one alone.
	Family int `json:"family,omitempty"`
	// Work says whether both did the same, one entry a pair of runs.
	Work    []Work   `json:"work"`
	Metrics []Metric `json:"metrics"`
	// Paired says how often one request was faster in B than in A.
	Paired   []Sooner  `json:"paired"`
	Shift    []Shift   `json:"shift"`
	Segments []Segment `json:"segments,omitempty"`
	Movers   []Mover   `json:"movers,omitempty"`
	// Noise is what repeats of one side differ by: the floor under every
	// difference. Nil without repeats.
	Noise []Noise `json:"noise,omitempty"`
	// Invalid is true if a run on either side is: its client was the bottleneck,
	// or it was not what the trace says.
	Invalid  bool     `json:"invalid"`
	Warnings []string `json:"warnings,omitempty"`
	mark     string   // of B in a Family: C, D and so on
	charts   [2]*profiler
	charted  [2]*run
}

// A Subject is one side as its runs describe it.
type Subject struct {
	Name string    `json:"name"`
	Runs []RunFact `json:"runs"`
}

// A RunFact is one run, in short.
type RunFact struct {
	Name     string           `json:"name"`
	Backend  string           `json:"backend,omitempty"`
	Started  time.Time        `json:"started_at,omitzero"`
	State    string           `json:"state,omitempty"`
	Digest   string           `json:"plan_digest,omitempty"`
	Summary  *metrics.Summary `json:"summary"`
	manifest *Manifest
	lacks    string
}

// A Metric is one figure of both sides. Durations are in ns.
type Metric struct {
	Name   string `json:"name"` // ttft.p99, goodput
	Unit   string `json:"unit"` // ns, share, 1/s, J/token, tokens/J
	Higher bool   `json:"higher_is_better"`
	A      Value  `json:"a"`
	B      Value  `json:"b"`
	// Diff is B - A, Rel B/A - 1.
	Diff Value `json:"difference"`
	Rel  Value `json:"relative"`
	// P is the p-value of no difference, PHolm after Holm's correction for all
	// the metrics of this comparison that have one.
	P     Number `json:"p,omitzero"`
	PHolm Number `json:"p_holm,omitzero"`
	// BetterB is the probability that B is the better one.
	BetterB Number `json:"probability_b_better,omitzero"`
	// Effect is the difference in standard errors.
	Effect Number `json:"effect,omitzero"`
	// Detectable is the smallest difference that such an experiment finds in
	// four of five repetitions.
	Detectable Number `json:"detectable,omitzero"`
	Verdict    string `json:"verdict"`
	Why        string `json:"why,omitempty"` // there is no interval
}

// A Value is a figure with its interval at 95 %.
type Value struct {
	V  Number `json:"value,omitzero"`
	Lo Number `json:"lo,omitzero"`
	Hi Number `json:"hi,omitzero"`
}

// A Number is absent from JSON where it is none.
type Number struct{ traceformat.Opt[float64] }

func number(v float64) Number {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return Number{}
	}
	return Number{traceformat.Some(v)}
}

// IsZero leaves an unknown number out of JSON.
func (n Number) IsZero() bool { return !n.OK }

// A Sooner says how often the same request was faster on one side.
type Sooner struct {
	Metric   string  `json:"metric"`
	Requests int64   `json:"requests"`
	B        float64 `json:"b_faster"` // shares of Requests
	A        float64 `json:"a_faster"`
	Median   Number  `json:"median_difference_ns,omitzero"` // of B - A, request by request
}

// A Shift is the difference between the distributions at one quantile.
type Shift struct {
	Metric string  `json:"metric"`
	P      float64 `json:"quantile"`
	A      float64 `json:"a"`
	Diff   Value   `json:"difference"`
}

// A Segment compares the requests that have something in common. Its intervals
// are not corrected for there being many segments: they say where to look.
type Segment struct {
	By       string   `json:"by"`    // prompt_tokens, output_tokens, turn, cache_hit, client, time
	Label    string   `json:"label"` // "1,024 to 4,095"
	Requests int64    `json:"requests"`
	Metrics  []Metric `json:"metrics"`
}

// A Mover is a request whose latency differs most.
type Mover struct {
	ID           int64         `json:"id"`
	Lap          int32         `json:"lap,omitempty"`
	Arrival      time.Duration `json:"arrival_ns"`
	PromptTokens int32         `json:"prompt_tokens"`
	OutputTokens int32         `json:"output_tokens"`
	TTFT         [2]Number     `json:"ttft_ns"`
	E2E          [2]Number     `json:"e2e_ns"`
}

// Noise is the standard deviation of a metric over repeats of one side.
type Noise struct {
	Metric string `json:"metric"`
	A      Number `json:"a,omitzero"`
	B      Number `json:"b,omitzero"`
}

// A CompareConfig says how to compare.
type CompareConfig struct {
	Config
	// KeepUnequal compares requests too whose prompt or token counts differ
	// between the sides.
	KeepUnequal bool
	Seed        uint64 // of the bootstrap
	// Charts keeps what [Family.Profiles] needs of the first pair of runs, which
	// spares reading them again.
	Charts bool
}

// figure is what is compared of pairs.
type figure struct {
	name string
	of   func(*figures) float32
}

var latencies = []figure{
	{"ttft", func(f *figures) float32 { return f.ttft }},
	{"e2e", func(f *figures) float32 { return f.e2e }},
	{"tpot", func(f *figures) float32 { return f.tpot }},
}

var compared = []struct {
	name  string
	level float64
}{{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"mean", stats.Mean}}

// Compare holds side a against side b. Repeats are paired in their order: the
// first of a with the first of b. Sides of different length are compared as far
// as the shorter one goes, and a warning says so.
func Compare(ctx context.Context, a, b Side, c CompareConfig) (*Comparison, error) {
	out, err := compareSides(ctx, a, b, c)
	if err != nil {
		return nil, err
	}
	correct(out)
	return out, nil
}

// compareSides is Compare short of the verdicts.
func compareSides(ctx context.Context, a, b Side, c CompareConfig) (*Comparison, error) {
	if err := errors.Join(a.check(), b.check()); err != nil {
		return nil, err
	}
	n := min(len(a.Runs), len(b.Runs))
	if n == 0 {
		return nil, errors.New("a comparison takes a run on each side")
	}
	out := &Comparison{Version: ComparisonVersion, A: Subject{Name: a.Name}, B: Subject{Name: b.Name}, Repeats: n, Estimand: TheseRuns}
	if n >= 3 {
		out.Estimand = Deployment
	}
	if len(a.Runs) != len(b.Runs) {
		out.warn("%s has %d runs and %s %d: %d pairs are compared", a.Name, len(a.Runs), b.Name, len(b.Runs), n)
	}
	runs := make([]comparedRun, n)
	for i := range n {
		if err := out.pair(ctx, i, a.Runs[i], b.Runs[i], c, &runs[i]); err != nil {
			return nil, err
		}
	}
	out.collect(runs)
	out.noise(runs)
	out.doubts()
	return out, nil
}

// check refuses a run that stands for two repeats: it would vary by nothing.
func (s *Side) check() error {
	seen := map[string]bool{}
	for _, run := range s.Runs {
		key := filepath.Clean(run)
		if real, err := filepath.EvalSymlinks(run); err == nil {
			key = real
		}
		if seen[key] {
			return fmt.Errorf("%s: %s is there twice; a repeat is a run of its own", s.Name, run)
		}
		seen[key] = true
	}
	return nil
}

func (c *Comparison) warn(format string, a ...any) {
	c.Warnings = append(c.Warnings, fmt.Sprintf(format, a...))
}

// comparedRun is what stays of a pair of runs.
type comparedRun struct {
	joined  int64 // requests
	metrics []runMetric
	tied    map[string]bool
}

type runMetric struct {
	Metric
	d stats.Difference
}

func (c *Comparison) pair(ctx context.Context, i int, nameA, nameB string, conf CompareConfig, into *comparedRun) error {
	a, err := openRun(nameA, conf.Config)
	if err != nil {
		return err
	}
	b, err := openRun(nameB, conf.Config)
	if err != nil {
		return err
	}
	// One set of SLOs judges both.
	b.conf.SLOs = a.conf.SLOs
	if conf.Charts && i == 0 {
		c.charts, c.charted = [2]*profiler{newProfiler(a.conf), newProfiler(b.conf)}, [2]*run{a, b}
	}
	var profilers [2]*profiler
	if i == 0 {
		profilers = c.charts
	}
	j, err := readDuel(ctx, a, b, !conf.KeepUnequal, profilers)
	if err != nil {
		return err
	}
	if j.work.Joined == 0 {
		return fmt.Errorf("%s and %s have no request in common: they are not of one trace", nameA, nameB)
	}
	for i, name := range []string{nameA, nameB} {
		if q := &j.sums[i].Requests; q.Measured > 0 && q.Unknown == q.Measured {
			return fmt.Errorf("%s says what was asked and not what became of it: compare runs of it, as replay writes them", name)
		}
	}
	c.A.Runs = append(c.A.Runs, fact(a, j.sums[0]))
	c.B.Runs = append(c.B.Runs, fact(b, j.sums[1]))
	c.Work = append(c.Work, j.work)
	into.joined = j.work.Joined
	shift := into.measure(j, conf.Seed)
	into.energy(a.manifest, b.manifest)
	if i == 0 {
		// Where the differences are is told of the first pair: pairs are never
		// pooled.
		c.Paired = sooner(j.pairs)
		c.Shift = shift
		c.Segments = segments(j, conf.Seed)
		c.Movers = movers(j.pairs)
	}
	return nil
}

func fact(r *run, s *metrics.Summary) RunFact {
	f := RunFact{Name: r.name, Summary: s, manifest: r.manifest, lacks: r.lacks}
	if m := r.manifest; m != nil {
		f.Backend, f.State, f.Digest = m.Server.Backend, m.State, m.Plan.Digest
		if m.Stats != nil {
			f.Started = m.Stats.StartedAt
		}
	}
	return f
}

// measure compares one pair of runs, and returns the shifts of TTFT and E2E.
func (r *comparedRun) measure(j *duel, seed uint64) (shift []Shift) {
	r.tied = map[string]bool{}
	levels := make([]float64, len(compared))
	for i, c := range compared {
		levels[i] = c.level
	}
	add := func(name string, p *stats.Paired, more ...float64) []stats.Difference {
		ds := p.Differences(seed, slices.Concat(levels, more)...)
		for i, c := range compared {
			full := name + "." + c.name
			r.metrics = append(r.metrics, runMetric{Metric{Name: full, Unit: "ns"}, ds[i]})
			r.tied[full] = p.Tied(levels[i])
		}
		return ds[len(compared):]
	}
	for _, f := range latencies {
		var more []float64
		if f.name != "tpot" {
			more = shiftLevels
		}
		for i, d := range add(f.name, f.paired(j.pairs, nil), more...) {
			if d.OK() {
				shift = append(shift, Shift{f.name, shiftLevels[i], d.A, Value{number(d.Diff), number(d.Lo), number(d.Hi)}})
			}
		}
	}
	if sum(j.itl[0]) > 0 && sum(j.itl[1]) > 0 {
		add("itl", stats.NewSketched(itlEdges, &j.itl[0], &j.itl[1], &j.sumI[0], &j.sumI[1]))
	}
	share := func(name string, higher bool, a, b []int8) {
		d := stats.NewPaired(floats(a), floats(b), j.piece).Differences(seed, stats.Mean)[0]
		noneOf(&d, int64(len(a)))
		r.metrics = append(r.metrics, runMetric{Metric{Name: name, Unit: "share", Higher: higher}, d})
	}
	share("error_rate", false, j.failed[0], j.failed[1])
	if j.sums[0].Goodput != nil && j.sums[1].Goodput != nil {
		// The share of requests that miss an SLO moves the other way.
		share("slo_miss_rate", false, j.missed[0], j.missed[1])
		r.total("goodput", "1/s", true, j.sums[0].Goodput.Requests, j.sums[1].Goodput.Requests)
	}
	r.total("output_tokens_per_second", "1/s", true, j.sums[0].Rates.OutputTokens, j.sums[1].Rates.OutputTokens)
	r.total("requests_per_second", "1/s", true, j.sums[0].Rates.Completed, j.sums[1].Rates.Completed)
	return shift
}

// noneOf bounds a share of requests that is 0 on both sides, of n each: that
// still leaves room for a rate of 3/n (Hanley and Lippman-Hand, "If nothing goes
// wrong, is everything all right?", JAMA 249, 1983).
func noneOf(d *stats.Difference, n int64) {
	if d.OK() && d.A == 0 && d.B == 0 {
		most := 3 / float64(n)
		d.ALo, d.BLo, d.AHi, d.BHi, d.Lo, d.Hi, d.SE = 0, 0, most, most, -most, most, math.NaN()
	}
}

func floats(v []int8) []float64 {
	out := make([]float64, len(v))
	for i, x := range v {
		out[i] = float64(x)
	}
	return out
}

func sum(v [stats.Pieces][]float64) (total float64) {
	for _, h := range v {
		for _, c := range h {
			total += c
		}
	}
	return total
}

// total adds a figure that a run has once: what it varies by, only repeats can
// tell.
func (r *comparedRun) total(name, unit string, higher bool, a, b float64) {
	d := stats.Repeated([]float64{a}, []float64{b}, false)
	d.Why = "a run has one such figure: what it varies by, three repeats of each side tell"
	r.metrics = append(r.metrics, runMetric{Metric{Name: name, Unit: unit, Higher: higher}, d})
}

// energy adds what output tokens cost, where the serving hosts of both runs had
// energy counters.
func (r *comparedRun) energy(a, b *Manifest) {
	x, y := joulesPerToken(a), joulesPerToken(b)
	if x > 0 && y > 0 {
		r.total("joules_per_output_token", "J/token", false, x, y)
		r.total("tokens_per_joule", "tokens/J", true, 1/x, 1/y)
	}
}

// joulesPerToken is what a run's telemetry says an output token cost all GPUs of
// the host; 0 is unknown.
func joulesPerToken(m *Manifest) float64 {
	if m == nil {
		return 0
	}
	if rec := m.Record(); rec != nil && rec.Energy != nil {
		return rec.Energy.PerOutputToken.Or(0)
	}
	return 0
}

// paired gathers one figure of the pairs that have it on both sides: of those
// at the given places, nil for all.
func (f *figure) paired(pairs []pair, places []int32) *stats.Paired {
	n := len(pairs)
	if places != nil {
		n = len(places)
	}
	a, b, piece := make([]float64, 0, n), make([]float64, 0, n), make([]int8, 0, n)
	for i := range n {
		p := &pairs[i]
		if places != nil {
			p = &pairs[places[i]]
		}
		if x, y := float64(f.of(&p.a)), float64(f.of(&p.b)); !math.IsNaN(x) && !math.IsNaN(y) {
			a, b, piece = append(a, x), append(b, y), append(piece, p.piece)
		}
	}
	return stats.NewPaired(a, b, piece)
}

// collect makes the metrics of all pairs of runs.
func (c *Comparison) collect(runs []comparedRun) {
	var order []Metric
	for _, r := range runs {
		for _, x := range r.metrics {
			if !slices.ContainsFunc(order, func(m Metric) bool { return m.Name == x.Name }) {
				order = append(order, x.Metric)
			}
		}
	}
	fewer := map[int][]string{}
	for _, m := range order {
		var ds []stats.Difference // of the pairs that have it
		tied := false
		for _, r := range runs {
			if d := find(r.metrics, m.Name); !math.IsNaN(d.A) && !math.IsNaN(d.B) {
				ds = append(ds, d)
			}
			tied = tied || r.tied[m.Name]
		}
		if len(ds) == 0 {
			continue // nothing to say
		}
		d := ds[0]
		switch {
		case len(runs) >= 3:
			var as, bs []float64
			for _, x := range ds {
				as, bs = append(as, x.A), append(bs, x.B)
			}
			d = stats.Repeated(as, bs, tied)
			if m.Unit == "share" {
				// Of one run, as runs are not pooled.
				least := runs[0].joined
				for _, r := range runs {
					least = min(least, r.joined)
				}
				noneOf(&d, least)
			}
		case len(runs) == 2:
			d = both(find(runs[0].metrics, m.Name), find(runs[1].metrics, m.Name))
		}
		if len(ds) < len(runs) {
			fewer[len(ds)] = append(fewer[len(ds)], m.Name)
		}
		m.set(&d)
		c.Metrics = append(c.Metrics, m)
	}
	for _, n := range slices.Sorted(maps.Keys(fewer)) {
		c.warn("%d of %d pairs of runs alone have %s", n, len(runs), enumerate(fewer[n]))
	}
}

func find(ms []runMetric, name string) stats.Difference {
	for _, m := range ms {
		if m.Name == name {
			return m.d
		}
	}
	d := stats.Difference{A: math.NaN(), B: math.NaN()}
	d.Why = "one pair of runs has no such figure"
	return d
}

// both averages two pairs of runs, each with the uncertainty of its requests
// alone.
func both(x, y stats.Difference) stats.Difference {
	d := stats.Average(x, y)
	if d.OK() {
		return d
	}
	d.Why = cmp.Or(x.Why, y.Why)
	return d
}

func (m *Metric) set(d *stats.Difference) {
	m.A = Value{number(d.A), number(d.ALo), number(d.AHi)}
	m.B = Value{number(d.B), number(d.BLo), number(d.BHi)}
	m.Diff = Value{number(d.Diff), number(d.Lo), number(d.Hi)}
	m.Rel = Value{number(d.Rel), number(d.RelLo), number(d.RelHi)}
	m.P, m.Why = number(d.P), d.Why
	m.Detectable = number(d.Detectable())
	if d.OK() {
		less := d.Less
		if m.Higher {
			less = 1 - less
		}
		m.BetterB = number(less)
		m.Effect = number(d.Diff / d.SE)
	}
}

// correct corrects p-values for looking at all the metrics of all these comparisons, says
// what is better, and returns how many p-values there were.
func correct(cs ...*Comparison) (tests int) {
	var ps []float64
	var of []*Metric
	for _, c := range cs {
		for i := range c.Metrics {
			m := &c.Metrics[i]
			if m.P.OK {
				tests++
			}
			ps, of = append(ps, m.P.Or(math.NaN())), append(of, m)
		}
	}
	for i, p := range stats.Holm(ps) {
		m := of[i]
		m.PHolm = number(p)
		switch {
		case !m.PHolm.OK:
			m.Verdict = NotJudged
		case p > 1-stats.Level:
			m.Verdict = NoDifference
		case (m.Diff.V.V < 0) != m.Higher:
			m.Verdict = Better
		default:
			m.Verdict = Worse
		}
	}
	return tests
}

// noise measures what repeats of one side differ by.
func (c *Comparison) noise(runs []comparedRun) {
	if len(runs) < 2 {
		return
	}
	for _, m := range c.Metrics {
		var a, b stats.Moments
		for _, r := range runs {
			d := find(r.metrics, m.Name)
			if !math.IsNaN(d.A) && !math.IsNaN(d.B) {
				a.Add(d.A)
				b.Add(d.B)
			}
		}
		c.Noise = append(c.Noise, Noise{m.Name, number(a.SD()), number(b.SD())})
	}
}

// doubts says what stands against the comparison.
func (c *Comparison) doubts() {
	for _, s := range []*Subject{&c.A, &c.B} {
		for _, r := range s.Runs {
			if f := &r.Summary.Fidelity; f.Verdict == metrics.Invalid {
				c.Invalid = true
				for _, reason := range f.Reasons {
					c.warn("%s is invalid: %s", r.Name, reason)
				}
			}
			if r.State == StatePartial || r.State == StateRunning {
				c.warn("%s is %s: its last requests are missing", r.Name, r.State)
			}
			for _, what := range lackOf(r.lacks) {
				c.warn("%s: %s", r.Name, what)
			}
		}
	}
	energy := [2]int{}
	for side, s := range []*Subject{&c.A, &c.B} {
		for _, r := range s.Runs {
			if joulesPerToken(r.manifest) > 0 {
				energy[side]++
			}
		}
	}
	if (energy[0] > 0) != (energy[1] > 0) {
		with := c.A.Name
		if energy[1] > 0 {
			with = c.B.Name
		}
		c.warn("the energy counters of %s alone were read: tokens per joule are not compared", with)
	}
	c.doubtBuilds()
	switch c.Repeats {
	case 1:
		c.warn("one run of each side: what differs from run to run is unknown, and may be more than these intervals; --repeat 5 would measure it")
	case 2:
		c.warn("two runs of each side: the intervals are of these runs, as what differs from run to run takes three")
	}
	for i, w := range c.Work {
		if w.Unequal() {
			what := "left out"
			if w.Excluded == 0 {
				what = "compared all the same"
			}
			c.warn("pair %d: %d prompts, %d prompt token counts and %d output token counts differ between the sides: these requests were %s", i+1, w.Prompts, w.PromptTokens, w.OutputTokens, what)
		}
		if w.OnlyA+w.OnlyB > 0 {
			c.warn("pair %d: %d requests are in %s alone and %d in %s alone", i+1, w.OnlyA, c.A.Name, w.OnlyB, c.B.Name)
		}
		if w.BothOK == 0 {
			c.warn("pair %d: no request succeeded on both sides: there are no latencies to compare", i+1)
		} else if f := w.FailedA + w.FailedB; f > 0 {
			c.warn("pair %d: latencies are of the %d requests that succeeded on both sides; %d failed in %s alone, %d in %s alone", i+1, w.BothOK, w.FailedA, c.A.Name, w.FailedB, c.B.Name)
		}
	}
}

// doubtBuilds says where runs were not played from one plan, by one build of the
// client, or, of one side, against one server.
func (c *Comparison) doubtBuilds() {
	first := c.A.Runs[0]
	plan, build := false, false
	for _, s := range []*Subject{&c.A, &c.B} {
		server := ""
		for i, r := range s.Runs {
			if !plan && r.Digest != "" && first.Digest != "" && r.Digest != first.Digest {
				plan = true
				c.warn("%s and %s were not played from one plan (%.12s and %.12s): trace, seed, speed or another flag differs", first.Name, r.Name, first.Digest, r.Digest)
			}
			m := r.manifest
			if m == nil {
				continue
			}
			if f := first.manifest; !build && f != nil && (f.Program.Version != m.Program.Version || f.Program.Revision != m.Program.Revision) {
				build = true
				c.warn("%s and %s were played by two builds of the client (%s and %s): what differs may be the client's", first.Name, r.Name, f.Program.build(), m.Program.build())
			}
			switch is := m.Server.identity(); {
			case i == 0 || server == "":
				server = is
			case is != "" && is != server:
				c.warn("the repeats of %s are not of one server: %s was played against %s, and %s before", s.Name, r.Name, is, server)
				server = is
			}
		}
	}
}

// sooner counts, pair by pair, which side was faster.
func sooner(pairs []pair) (out []Sooner) {
	for _, f := range latencies {
		s := Sooner{Metric: f.name}
		var diffs []float64
		var a, b int64
		for i := range pairs {
			d := float64(f.of(&pairs[i].b)) - float64(f.of(&pairs[i].a))
			switch {
			case math.IsNaN(d):
				continue
			case d < 0:
				b++
			case d > 0:
				a++
			}
			diffs = append(diffs, d)
		}
		if s.Requests = int64(len(diffs)); s.Requests == 0 {
			continue
		}
		slices.Sort(diffs)
		s.A, s.B = float64(a)/float64(len(diffs)), float64(b)/float64(len(diffs))
		s.Median = number(stats.Quantile(diffs, 0.5))
		out = append(out, s)
	}
	return out
}

// shiftLevels are the quantiles at which TTFT and E2E are compared.
var shiftLevels = []float64{0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99}

// maxMovers is how many requests are named that moved most.
const maxMovers = 20

// movers are the pairs whose E2E differs most.
func movers(pairs []pair) (out []Mover) {
	moved := func(i int32) float64 { return math.Abs(float64(pairs[i].b.e2e) - float64(pairs[i].a.e2e)) }
	further := func(i, j int32) int {
		return cmp.Or(cmp.Compare(moved(j), moved(i)), cmp.Compare(pairs[i].key.id, pairs[j].key.id), cmp.Compare(pairs[i].key.lap, pairs[j].key.lap))
	}
	order := make([]int32, 0, maxMovers+1) // the furthest so far
	for k := range pairs {
		i := int32(k)
		if !(moved(i) >= 0) || len(order) == maxMovers && further(i, order[maxMovers-1]) > 0 {
			continue
		}
		at, _ := slices.BinarySearchFunc(order, i, further)
		order = slices.Insert(order, at, i)
		order = order[:min(len(order), maxMovers)]
	}
	for _, i := range order {
		p := &pairs[i]
		out = append(out, Mover{
			ID: p.key.id, Lap: p.key.lap, Arrival: p.zero, PromptTokens: p.prompt, OutputTokens: p.output,
			TTFT: [2]Number{number(float64(p.a.ttft)), number(float64(p.b.ttft))}, E2E: [2]Number{number(float64(p.a.e2e)), number(float64(p.b.e2e))},
		})
	}
	return out
}
