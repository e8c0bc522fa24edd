package study

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"reprise/internal/metrics"
	"reprise/internal/stats"
	"reprise/internal/units"
	"reprise/report"
)

// Version is the version of the JSON form of a Study.
const Version = 1

// A Config says what Read computes, beyond what the experiment says of itself.
type Config struct {
	Objectives []Objective // in place of the plan's
	// Price is that of a GPU-hour, in any currency; 0 is the plan's.
	Price float64
	// GPUs that an engine takes; 0 is what the plan or telemetry says, or one.
	GPUs float64
	Seed uint64 // of the bootstrap
}

// A Study is what an experiment found.
type Study struct {
	Version    int         `json:"version"`
	Name       string      `json:"name"` // of the folder
	Title      string      `json:"title"`
	Question   string      `json:"question,omitempty"`
	Factors    []Factor    `json:"factors"`
	Load       string      `json:"load_factor,omitempty"` // the factor that is the load, if one is
	Objectives []Objective `json:"slos,omitempty"`
	Price      float64     `json:"price_per_gpu_hour,omitempty"`
	// Simulated says in what way the figures are a model's, empty of real engines.
	Simulated string   `json:"simulated,omitempty"`
	SimFit    []SimFit `json:"sim_fit,omitempty"`
	// Invalid says that a run was; it is in no figure.
	Invalid bool   `json:"invalid"`
	Runs    []*Run `json:"runs"`
	Cells   []Cell `json:"cells"`
	// Empty are the levels without a run that counts.
	Empty          []string        `json:"empty_levels,omitempty"`
	Fraction       string          `json:"design"`
	Aliases        []string        `json:"aliases,omitempty"`
	Effects        []Effect        `json:"effects,omitempty"`
	Interactions   []Interaction   `json:"interactions,omitempty"`
	Variation      []Variation     `json:"variation,omitempty"`
	Fronts         []Front         `json:"pareto_fronts,omitempty"`
	Recommendation *Recommendation `json:"recommendation,omitempty"`
	Warnings       []string        `json:"warnings,omitempty"`
	Repeat         Repeat          `json:"repeat"`

	load   int     // place of Load, -1
	gpus   float64 // of an engine, as the plan says; 0 if it does not
	design *design
	known  map[string]knownMeans
}

// A Repeat is everything that it takes to do it again.
type Repeat struct {
	Program     report.Program `json:"program"`
	Created     time.Time      `json:"created,omitzero"`
	Args        []string       `json:"args,omitempty"`
	Flags       []string       `json:"flags,omitempty"`
	FlagsDigest string         `json:"flags_digest,omitempty"`
	Trace       string         `json:"trace,omitempty"`
	Digest      string         `json:"plan_digest,omitempty"`
	Repeats     int            `json:"repeats"`
	Seed        uint64         `json:"seed"`
	Cache       string         `json:"cache,omitempty"`
	Notes       []string       `json:"notes,omitempty"`
}

// A SimFit is how far off the model was where it was held against an engine.
type SimFit struct {
	Cells []string          `json:"cells"`
	Error map[string]string `json:"error"`
	order []string
}

// A Cell is one combination of levels.
type Cell struct {
	Name     string            `json:"name"`
	Levels   map[string]string `json:"levels"`
	Backend  string            `json:"backend,omitempty"`
	URL      string            `json:"url,omitempty"`
	Options  []string          `json:"options,omitempty"`
	Flags    []string          `json:"flags,omitempty"`
	Trace    string            `json:"trace,omitempty"`
	Requests int64             `json:"requests,omitempty"`
	Planned  int               `json:"runs_planned"`
	Counted  int               `json:"runs_counted"`
	Why      string            `json:"why,omitempty"` // no run counts
	// Behind says that requests came faster than they were answered: its latencies
	// are of how long it was loaded.
	Behind  bool                `json:"behind,omitempty"`
	Figures map[string]Estimate `json:"figures,omitempty"`
	Met     []Attained          `json:"slos,omitempty"` // by objective

	launch json.RawMessage
	arg    string
	digest string
	runs   []*Run
	levels []int // by factor
	growth []growth
}

// How an interval was made.
const (
	OverRepeats = "repeats"     // Student's over repeats
	WithinRuns  = "within runs" // the block bootstrap of the runs themselves
)

// An Estimate is a figure of a cell with its interval.
type Estimate struct {
	report.Value
	Runs int    `json:"runs"`
	How  string `json:"interval,omitempty"`
	Why  string `json:"why,omitempty"` // there is no interval
}

// Attained says how many requests met an objective.
type Attained struct {
	Objective Objective `json:"slo"`
	Share     Estimate  `json:"share"`
	// Verdict is met or missed where the whole interval says so.
	Verdict string `json:"verdict"`
}

// Verdicts of an Attained.
const (
	Met     = "met"
	Missed  = "missed"
	Unclear = "not shown"
	NoShare = "" // the objective asks for none
)

// growth is a range of concurrency of one run.
type growth struct{ flight, used, usage, length float64 }

// Read reads the folder of an experiment and computes its study. Runs that are
// missing, damaged or do not count are listed; it fails only where there is no
// plan to read.
func Read(ctx context.Context, dir string, c Config) (*Study, error) {
	p, states, err := readPlan(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s holds no experiment: it has no %s", dir, planFile)
		}
		return nil, err
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	s := &Study{
		Version: Version, Name: filepath.Base(abs), Question: p.Question, Factors: p.Factors, Objectives: c.Objectives, Price: c.Price,
		Repeat: Repeat{p.Program, p.Created, p.Args, p.Flags, p.FlagsDigest, p.Trace, p.Work, p.Repeats, p.Seed, p.Cache, p.Notes},
	}
	s.Title = cmp.Or(p.Title, s.Name)
	s.Runs = list(dir, p, states)
	if s.Objectives == nil {
		for _, text := range p.SLOs {
			o, err := ParseObjectives([]string{text})
			if err != nil {
				s.Warnings = append(s.Warnings, fmt.Sprintf("the objective %s of the plan is held against nothing: %v", text, err))
			}
			s.Objectives = append(s.Objectives, o...)
		}
	}
	if len(s.Objectives) == 0 {
		s.Objectives = asPlayed(s.Runs)
	}
	s.Price = cmp.Or(s.Price, p.Price)
	if err := load(ctx, dir, s.Runs, s.Objectives, c.Seed); err != nil {
		return nil, err
	}
	s.gpus = cmp.Or(c.GPUs, p.GPUs)
	s.cells(p)
	s.simulated()
	s.load = loadFactor(s.Factors)
	if s.load >= 0 {
		s.Load = s.Factors[s.load].Name
	}
	s.design = newDesign(s)
	s.design.describe(s)
	if p.Design != "" {
		s.Fraction += " (" + p.Design + ")"
	}
	s.analyse()
	s.fronts()
	s.recommend()
	s.warn()
	return s, nil
}

// asPlayed are the bounds that the runs were played with, where all of them had
// the same.
func asPlayed(runs []*Run) (out []Objective) {
	var of []metrics.SLO
	for _, x := range runs {
		if !x.Counted || x.manifest.Summary == nil || x.manifest.Summary.Goodput == nil {
			continue
		}
		var these []metrics.SLO
		for _, m := range x.manifest.Summary.Goodput.SLOs {
			these = append(these, m.SLO)
		}
		if of != nil && !slices.Equal(of, these) {
			return nil
		}
		of = these
	}
	for _, slo := range of {
		out = append(out, Objective{SLO: slo})
	}
	return out
}

// value is a figure of a run; NaN where it has none.
func (s *Study) value(m *Measure, x *Run) float64 {
	v := m.of(&reading{sum: x.sum, record: x.record, gpus: s.gpusOf(x), price: s.Price})
	if math.IsInf(v, 0) {
		return math.NaN()
	}
	return v
}

// tells says whether a figure is told of.
func (s *Study) tells(m *Measure) bool {
	return !m.asked || slices.ContainsFunc(s.Objectives, func(o Objective) bool { return nameOf(o) == m.Name })
}

// gpusOf is how many GPUs a run took: as telemetry saw them, where nobody says.
func (s *Study) gpusOf(x *Run) float64 {
	if s.gpus > 0 {
		return s.gpus
	}
	if x.record != nil {
		if n := len(x.record.GPUs); n > 0 {
			return float64(n)
		}
	}
	return 1
}

// cells reduces the runs to one entry a cell.
func (s *Study) cells(p *plan) {
	for i := range p.Cells {
		pc := &p.Cells[i]
		c := Cell{
			Name: pc.Name, Levels: map[string]string{}, Backend: pc.Backend, URL: pc.URL, Options: pc.Options, Flags: pc.Flags,
			Trace: cmp.Or(pc.Trace, p.Trace), Requests: cmp.Or(pc.Requests, p.Requests), Figures: map[string]Estimate{},
		}
		c.launch, c.arg, c.digest = pc.Launch, pc.Arg, cmp.Or(pc.Work, p.Work)
		for _, f := range s.Factors {
			l := pc.Factors[f.Name]
			c.Levels[f.Name] = l
			c.levels = append(c.levels, slices.Index(f.Levels, l))
		}
		var lost []string
		for _, x := range s.Runs {
			if x.cell != i {
				continue
			}
			if x.Number > 0 {
				c.Planned++
			}
			if x.Counted {
				c.runs = append(c.runs, x)
			} else {
				lost = append(lost, x.Status+": "+x.Why)
			}
			s.Invalid = s.Invalid || x.Status == invalid
		}
		c.Counted = len(c.runs)
		if c.Counted == 0 {
			c.Why = strings.Join(slices.Compact(lost), "; ")
		}
		c.summarise(s)
		s.Cells = append(s.Cells, c)
	}
}

func (c *Cell) summarise(s *Study) {
	if len(c.runs) == 0 {
		return
	}
	behind := 0
	for _, x := range c.runs {
		if fellBehind(x.sum) {
			behind++
		}
		if x.record != nil && x.record.KV != nil {
			for _, g := range x.record.KV.Growth {
				c.growth = append(c.growth, growth{g.Flight, g.Used, g.Usage, g.Length})
			}
		}
	}
	c.Behind = 2*behind > len(c.runs)
	for i := range measures {
		m := &measures[i]
		if !s.tells(m) {
			continue
		}
		var values []float64
		var within []stats.Estimate
		for _, x := range c.runs {
			v := s.value(m, x)
			if math.IsNaN(v) {
				continue
			}
			values = append(values, v)
			if e, ok := x.within[m.Name]; ok {
				within = append(within, e)
			}
		}
		e := combine(m, values, within)
		if m.Name == "error_rate" && e.How == OverRepeats {
			e = widen(e, c.runs, func(x *Run) (int64, int64) {
				q := &x.sum.Requests
				return q.Failed + q.Shed + q.Unsent, x.of
			})
		}
		if e.V.OK {
			c.Figures[m.Name] = e
		}
	}
	for i, o := range s.Objectives {
		c.Met = append(c.Met, attained(i, o, c.runs))
	}
}

// fellBehind says that a queue grew for as long as the load lasted: a tenth of
// the requests was still unanswered at the end of the window, and there were
// half as many again of them as were in flight on average. In a steady state
// the two are equal; of a queue that grows evenly the end is twice the mean.
func fellBehind(s *metrics.Summary) bool {
	left := (s.Rates.Offered - s.Rates.Completed) * s.Window.Length.Seconds()
	return s.Rates.Completed < 0.9*s.Rates.Offered && left > 1.5*s.InFlight.Mean && left > 8
}

// combine makes a cell's figure of those of its runs.
func combine(m *Measure, values []float64, within []stats.Estimate) Estimate {
	n := len(values)
	if n == 0 {
		return Estimate{}
	}
	logs := m.Ratio && slices.Min(values) > 0
	work := slices.Clone(values)
	if logs {
		for i, v := range work {
			work[i] = math.Log(v)
		}
	}
	e := stats.StudentOf(work...)
	v, lo, hi := e.V, e.Lo, e.Hi
	if logs {
		v, lo, hi = math.Exp(v), math.Exp(lo), math.Exp(hi)
	}
	out := Estimate{Runs: n, How: OverRepeats, Why: e.Why}
	if !e.OK() {
		out.How = ""
		if len(within) == n {
			lo, hi, out.Why = acrossRuns(v, within)
		}
		if out.Why == "" {
			out.How = WithinRuns
		}
	}
	// None of the figures can be negative.
	lo = max(lo, 0)
	if m.Unit == "share" {
		hi = min(hi, 1)
	}
	out.Value = report.Value{V: report.Known(v), Lo: report.Known(lo), Hi: report.Known(hi)}
	return out
}

// acrossRuns is the interval of the mean of figures with one each.
func acrossRuns(v float64, within []stats.Estimate) (lo, hi float64, why string) {
	below, above := 0.0, 0.0
	for _, e := range within {
		if !e.OK() {
			return math.NaN(), math.NaN(), e.Why
		}
		below += (e.V - e.Lo) * (e.V - e.Lo)
		above += (e.Hi - e.V) * (e.Hi - e.V)
	}
	n := float64(len(within))
	return v - math.Sqrt(below)/n, v + math.Sqrt(above)/n, ""
}

// widen makes the interval of a share no narrower than what so many requests can
// tell, were they independent: repeats that agree by chance say little.
func widen(e Estimate, runs []*Run, counts func(*Run) (n, of int64)) Estimate {
	var n, of int64
	for _, x := range runs {
		a, b := counts(x)
		n, of = n+a, of+b
	}
	if of == 0 {
		return e
	}
	lo, hi := stats.Wilson(float64(n)/float64(of), float64(of), stats.Level)
	if e.Lo.OK && e.Hi.OK {
		lo, hi = min(lo, e.Lo.V), max(hi, e.Hi.V)
	}
	e.Lo, e.Hi = report.Known(max(0, lo)), report.Known(min(1, hi))
	return e
}

// attained judges an objective.
func attained(i int, o Objective, runs []*Run) Attained {
	var values []float64
	var within []stats.Estimate
	for _, x := range runs {
		if x.of > 0 {
			values = append(values, float64(x.met[i])/float64(x.of))
			if x.metIn != nil {
				within = append(within, x.metIn[i])
			}
		}
	}
	e := combine(&Measure{Unit: "share"}, values, within)
	if e.V.OK {
		e = widen(e, runs, func(x *Run) (int64, int64) { return x.met[i], x.of })
	}
	a := Attained{Objective: o, Share: e}
	switch {
	case o.Share == 0:
		a.Verdict = NoShare
	case !e.V.OK:
		a.Verdict = Unclear
	case e.Lo.V >= o.Share:
		a.Verdict = Met
	case e.Hi.V < o.Share:
		a.Verdict = Missed
	default:
		a.Verdict = Unclear
	}
	return a
}

// simulated says which figures are a model's.
func (s *Study) simulated() {
	var sim, virtual, counted int
	fits := map[string]*SimFit{}
	var order []string
	for _, x := range s.Runs {
		if !x.Counted {
			continue
		}
		counted++
		if x.sim.Virtual {
			virtual++
		}
		if x.sim.Virtual || x.manifest.Server.Backend == "sim" {
			sim++
		}
		if f := x.sim.fit(); f != nil {
			key := f.describe()
			if fits[key] == nil {
				fits[key] = f
				order = append(order, key)
			}
			if f := fits[key]; !slices.Contains(f.Cells, x.Cell) {
				f.Cells = append(f.Cells, x.Cell)
			}
		}
	}
	for _, k := range order {
		s.SimFit = append(s.SimFit, *fits[k])
	}
	if sim == 0 {
		return
	}
	what := "an engine's model, not an engine"
	if sim < counted {
		what = fmt.Sprintf("of %s of %s runs: an engine's model, not an engine", units.Count(int64(sim)), units.Count(int64(counted)))
	}
	clock := "in real time"
	if virtual > 0 {
		clock = "in virtual time"
	}
	s.Simulated = fmt.Sprintf("%s, %s", what, clock)
	if len(s.SimFit) == 0 {
		s.Simulated += "; how far off it is from an engine of yours nobody measured (replay sim-fit)"
	}
}

// warn gathers what a reader has to know besides.
func (s *Study) warn() {
	add := func(format string, a ...any) { s.Warnings = append(s.Warnings, fmt.Sprintf(format, a...)) }
	var few, behind []string
	for i := range s.Cells {
		c := &s.Cells[i]
		if c.Counted > 0 && c.Counted < 3 {
			few = append(few, s.label(c))
		}
		if c.Behind {
			behind = append(behind, s.label(c))
		}
	}
	if len(few) > 0 {
		add("fewer than three repeats count of %s: intervals there hold nothing of what differs from run to run", some(few))
	}
	if len(behind) > 0 {
		add("requests came faster than they were answered in %s: latencies there grow for as long as the load lasts, and are of this length of run", some(behind))
	}
	if s.design.exact {
		add("repeats of a cell gave the very same figures: their intervals are of no width, and say nothing of another machine or another seed")
	}
}

// some lists names, the first few of many.
func some(names []string) string {
	const most = 6
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}
