package study

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"reprise/internal/stats"
	"reprise/internal/units"
	"reprise/report"
)

// loads are names of factors that are the load, the likeliest first.
var loads = []string{"rate", "request-rate", "qps", "rps", "concurrency", "max-concurrency", "clients", "users", "speedup", "scale-rate", "load", "batch"}

// loadFactor finds the factor that is the load, by its name: its levels, two at
// least, are numbers, or end in one. -1 if there is none.
func loadFactor(fs []Factor) int {
	for _, name := range loads {
		i := slices.IndexFunc(fs, func(f Factor) bool { return strings.EqualFold(strings.ReplaceAll(f.Name, "_", "-"), name) })
		if i >= 0 && len(fs[i].Levels) > 1 && !slices.ContainsFunc(fs[i].Levels, func(l string) bool { _, v := loadLevel(l); return math.IsNaN(v) }) {
			return i
		}
	}
	return -1
}

// loadLevel divides the name of a level: "closed-16" is 16 of the family closed,
// as there may be several kinds of load. A plain number has no family.
func loadLevel(level string) (family string, v float64) {
	if v, err := strconv.ParseFloat(level, 64); err == nil {
		return "", v
	}
	number := level[strings.LastIndexFunc(level, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })+1:]
	v, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return "", math.NaN()
	}
	return strings.TrimRight(strings.TrimSuffix(level, number), "-_ =:"), v
}

// A configuration is what is the same at all loads.
type configuration struct {
	name  string
	cells []*Cell // with figures, by load
}

// configurations groups the cells that have figures, in the order of the plan.
func (s *Study) configurations() (out []configuration) {
	at := map[string]int{}
	for i := range s.Cells {
		c := &s.Cells[i]
		if c.Counted == 0 {
			continue
		}
		name := s.configurationOf(c)
		k, ok := at[name]
		if !ok {
			k = len(out)
			at[name] = k
			out = append(out, configuration{name: name})
		}
		out[k].cells = append(out[k].cells, c)
	}
	for _, c := range out {
		if s.load >= 0 {
			slices.SortStableFunc(c.cells, func(a, b *Cell) int { return cmp.Compare(s.loadOf(a), s.loadOf(b)) })
		}
	}
	return out
}

// configurationOf names a cell by all but its load, and by the kind of load.
func (s *Study) configurationOf(c *Cell) string {
	name := s.settingsOf(c)
	if s.load < 0 {
		return name
	}
	family, _ := loadLevel(c.Levels[s.Factors[s.load].Name])
	switch {
	case family == "":
		return name
	case name == allCells:
		return family
	}
	return name + ", " + family
}

// allCells is the name of what has no name.
const allCells = "all cells"

// settingsOf names a cell by all but its load.
func (s *Study) settingsOf(c *Cell) string {
	var parts []string
	for i, f := range s.Factors {
		if i == s.load || len(f.Levels) < 2 {
			continue
		}
		if f.Kind == "backend" && len(s.Factors) == 1 {
			parts = append(parts, c.Levels[f.Name])
			continue
		}
		parts = append(parts, f.Name+"="+c.Levels[f.Name])
	}
	if len(parts) == 0 {
		return allCells
	}
	return strings.Join(parts, ", ")
}

// loadOf is the load of a cell as a number, NaN without one.
func (s *Study) loadOf(c *Cell) float64 {
	if s.load < 0 || c.levels[s.load] < 0 {
		return math.NaN()
	}
	_, v := loadLevel(s.Factors[s.load].Levels[c.levels[s.load]])
	return v
}

// atLoad writes "at rate=20", empty without a load.
func (s *Study) atLoad(c *Cell) string {
	if s.load < 0 {
		return ""
	}
	f := s.Factors[s.load]
	return "at " + f.Name + "=" + c.Levels[f.Name]
}

// title names a cell by its levels.
func (s *Study) title(c *Cell) string {
	at, name := s.atLoad(c), s.settingsOf(c)
	switch {
	case at == "":
		return name
	case name == allCells:
		return strings.TrimPrefix(at, "at ")
	}
	return name + " " + at
}

// A Front is the trade-off between throughput and a latency: the cells that no
// other beats in both.
type Front struct {
	Throughput string       `json:"throughput"`
	Latency    string       `json:"latency"`
	Points     []FrontPoint `json:"points"`
}

// A FrontPoint is a cell that has both figures.
type FrontPoint struct {
	Cell string `json:"cell"`
	// On says that no other cell has more throughput and less latency; Near that
	// one has, and the intervals do not show it.
	On   bool `json:"on_front"`
	Near bool `json:"near_front,omitempty"`

	cell *Cell
}

// tail is the figure of a metric that most cells have: p99, or what the samples
// carry.
func (s *Study) tail(names ...string) string {
	best, most := names[0], 0
	total := 0
	for i := range s.Cells {
		if s.Cells[i].Counted > 0 {
			total++
		}
	}
	for _, name := range names {
		n := 0
		for i := range s.Cells {
			if s.Cells[i].Figures[name].V.OK {
				n++
			}
		}
		if n == total {
			return name
		}
		if n > most {
			best, most = name, n
		}
	}
	return best
}

// fronts finds the trade-offs.
func (s *Study) fronts() {
	for _, latency := range []string{s.tail("ttft.p99", "ttft.p90", "ttft.p50"), s.tail("tpot.p99", "tpot.p50")} {
		f := Front{Throughput: "output_tokens_per_second", Latency: latency}
		for i := range s.Cells {
			c := &s.Cells[i]
			if c.Figures[f.Throughput].V.OK && c.Figures[f.Latency].V.OK {
				f.Points = append(f.Points, FrontPoint{Cell: c.Name, cell: c})
			}
		}
		if len(f.Points) < 2 {
			continue
		}
		for i := range f.Points {
			p := &f.Points[i]
			x, y := p.cell.Figures[f.Throughput], p.cell.Figures[f.Latency]
			beaten, surely := false, false
			for k := range f.Points {
				q := f.Points[k].cell
				u, v := q.Figures[f.Throughput], q.Figures[f.Latency]
				if u.V.V < x.V.V || v.V.V > y.V.V || u.V.V == x.V.V && v.V.V == y.V.V {
					continue
				}
				beaten = true
				surely = surely || above(u, x) || above(y, v)
			}
			p.On, p.Near = !beaten, beaten && !surely
		}
		slices.SortStableFunc(f.Points, func(a, b FrontPoint) int {
			return cmp.Compare(a.cell.Figures[f.Throughput].V.V, b.cell.Figures[f.Throughput].V.V)
		})
		s.Fronts = append(s.Fronts, f)
	}
}

// above says that an interval lies above another one; without intervals, that
// the figure does.
func above(a, b Estimate) bool {
	lo, hi := a.Lo.Or(math.NaN()), b.Hi.Or(math.NaN())
	if math.IsNaN(lo) || math.IsNaN(hi) {
		return a.V.V > b.V.V
	}
	return lo > hi
}

// A Recommendation answers which configuration to take, for the objectives.
type Recommendation struct {
	// Cell and Configuration are the answer; Met says that it is one: every
	// objective is met by its whole interval. Otherwise they are what comes
	// closest, and Text says what is missing.
	Cell          string `json:"cell"`
	Configuration string `json:"configuration"`
	Load          string `json:"load,omitempty"`
	Met           bool   `json:"met"`
	// Proven is false where what meets the objectives has no interval to show it.
	Proven       bool          `json:"proven"`
	Text         string        `json:"text"`
	Reasons      []string      `json:"reasons,omitempty"`
	Alternatives []Alternative `json:"alternatives,omitempty"`

	cell *Cell
}

// An Alternative is a configuration that meets the objectives too, and whose
// goodput cannot be told from the best.
type Alternative struct {
	Cell          string       `json:"cell"`
	Configuration string       `json:"configuration"`
	Load          string       `json:"load,omitempty"`
	Goodput       report.Value `json:"goodput_relative"` // to the recommended one

	cell *Cell
}

// standing is how a cell stands to the objectives.
type standing struct {
	cell   *Cell
	met    bool    // all of them, by whole intervals
	likely bool    // by the figures
	margin float64 // least of (share that meets) / (share asked for)
	worst  int     // the objective of it
}

func (s *Study) stand(c *Cell) standing {
	x := standing{cell: c, met: true, likely: true, margin: math.Inf(1), worst: -1}
	for i, a := range c.Met {
		if a.Objective.Share == 0 {
			continue
		}
		x.met = x.met && a.Verdict == Met
		x.likely = x.likely && a.Share.V.OK && a.Share.V.V >= a.Objective.Share
		// What is left to miss, in units of what may miss.
		m := (a.Share.V.Or(0) - a.Objective.Share) / (1 - a.Objective.Share)
		if m < x.margin {
			x.margin, x.worst = m, i
		}
	}
	return x
}

// recommend chooses.
func (s *Study) recommend() {
	if len(s.Objectives) == 0 {
		return
	}
	asked := slices.ContainsFunc(s.Objectives, func(o Objective) bool { return o.Share > 0 })
	goodput := func(c *Cell) float64 { return c.Figures["goodput"].V.Or(math.NaN()) }
	var meeting, likely, all []standing
	for i := range s.Cells {
		c := &s.Cells[i]
		if c.Counted == 0 || math.IsNaN(goodput(c)) {
			continue
		}
		x := s.stand(c)
		all = append(all, x)
		if x.met {
			meeting = append(meeting, x)
		}
		if x.likely {
			likely = append(likely, x)
		}
	}
	if len(all) == 0 {
		return
	}
	better := func(a, b standing) int {
		return cmp.Or(cmp.Compare(goodput(b.cell), goodput(a.cell)),
			cmp.Compare(b.cell.Figures["output_tokens_per_second"].V.V, a.cell.Figures["output_tokens_per_second"].V.V),
			cmp.Compare(a.cell.Figures["ttft.p50"].V.V, b.cell.Figures["ttft.p50"].V.V))
	}
	r := &Recommendation{Met: true, Proven: true}
	s.Recommendation = r
	pool := meeting
	switch {
	case len(meeting) > 0:
	case len(likely) > 0:
		pool, r.Met, r.Proven = likely, false, false
	default:
		r.Met, r.Proven = false, false
		slices.SortStableFunc(all, func(a, b standing) int { return cmp.Or(cmp.Compare(b.margin, a.margin), better(a, b)) })
		s.closest(r, all)
		return
	}
	slices.SortStableFunc(pool, better)
	best := pool[0].cell
	r.cell, r.Cell, r.Configuration, r.Load = best, best.Name, s.settingsOf(best), s.atLoad(best)
	g := &measures[measureAt("goodput")]
	r.Text = fmt.Sprintf("%s has the highest goodput of the %s that meet every objective: %s.", s.title(best), cells(len(pool)), withInterval(g, best.Figures["goodput"]))
	switch {
	case !asked:
		r.Text = fmt.Sprintf("%s has the highest goodput: %s. No objective says how many requests must meet it (ttft.p99<500ms does), so that none is held against a cell.", s.title(best), withInterval(g, best.Figures["goodput"]))
	case !r.Proven:
		r.Text = fmt.Sprintf("No cell is shown to meet every objective. By the figures alone %s does, with the highest goodput of such: %s. More repeats, or longer runs, would tell.", s.title(best), withInterval(g, best.Figures["goodput"]))
	}
	for _, a := range best.Met {
		r.Reasons = append(r.Reasons, s.explain(best, a))
	}
	if s.load >= 0 && asked {
		r.Reasons = append(r.Reasons, s.next(best, pool))
	}
	s.alternatives(r, pool[1:])
}

func cells(n int) string {
	if n == 1 {
		return "one cell"
	}
	return units.Count(int64(n)) + " cells"
}

// explain says how a cell stands to one objective.
func (s *Study) explain(c *Cell, a Attained) string {
	share := &Measure{Unit: "share"}
	text := fmt.Sprintf("%s: %s of the requests took less than %s", a.Objective, withInterval(share, a.Share), units.Duration(a.Objective.Below))
	if a.Objective.Share > 0 {
		text += fmt.Sprintf(", of %s that must", units.Percent(a.Objective.Share))
	}
	name := nameOf(a.Objective)
	if e, ok := c.Figures[name]; ok {
		m := &measures[measureAt(name)]
		text += fmt.Sprintf("; %s is %s", m.Title, withInterval(m, e))
		if over := e.V.V/float64(a.Objective.Below) - 1; over > 0 {
			text += fmt.Sprintf(", %s above the bound", units.Percent(over))
		}
	}
	return text
}

// next says what the next load up does to the configuration.
func (s *Study) next(best *Cell, pool []standing) string {
	f := s.Factors[s.load]
	for i := range s.Cells {
		c := &s.Cells[i]
		if c.Counted == 0 || s.configurationOf(c) != s.configurationOf(best) || !(s.loadOf(c) > s.loadOf(best)) {
			continue
		}
		if x := s.stand(c); !x.met && x.worst >= 0 {
			return fmt.Sprintf("the next load, %s=%s, does not: %s", f.Name, c.Levels[f.Name], s.explain(c, c.Met[x.worst]))
		}
	}
	return fmt.Sprintf("%s=%s is the highest load of this configuration that was played: it may carry more", f.Name, best.Levels[f.Name])
}

// closest says what is missing where nothing meets the objectives.
func (s *Study) closest(r *Recommendation, all []standing) {
	x := all[0]
	c := x.cell
	r.cell, r.Cell, r.Configuration, r.Load = c, c.Name, s.settingsOf(c), s.atLoad(c)
	a := c.Met[x.worst]
	r.Text = fmt.Sprintf("No cell meets every objective. %s comes closest, and fails %s.", s.title(c), s.explain(c, a))
	for i, o := range s.Objectives {
		if o.Share == 0 {
			continue
		}
		met := 0
		for _, y := range all {
			if y.cell.Met[i].Verdict == Met {
				met++
			}
		}
		r.Reasons = append(r.Reasons, fmt.Sprintf("%s is met by %d of %s", o, met, cells(len(all))))
	}
}

// alternatives are the best of other configurations, where they cannot be told
// from the chosen one.
func (s *Study) alternatives(r *Recommendation, rest []standing) {
	seen := map[string]bool{s.settingsOf(r.cell): true}
	for _, x := range rest {
		name := s.settingsOf(x.cell)
		if seen[name] {
			continue
		}
		seen[name] = true
		rel, apart := s.against(r.cell, x.cell, "goodput")
		if !apart {
			r.Alternatives = append(r.Alternatives, Alternative{Cell: x.cell.Name, Configuration: name, Load: s.atLoad(x.cell), Goodput: rel, cell: x.cell})
		}
	}
}

// against holds a figure of b against that of a, repeat by repeat where both have
// three, and says whether they can be told apart.
func (s *Study) against(a, b *Cell, name string) (rel report.Value, apart bool) {
	m := &measures[measureAt(name)]
	var va, vb []float64
	for _, x := range a.runs {
		i := slices.IndexFunc(b.runs, func(y *Run) bool { return y.Repeat == x.Repeat })
		if i < 0 {
			continue
		}
		if u, v := s.value(m, x), s.value(m, b.runs[i]); !math.IsNaN(u) && !math.IsNaN(v) {
			va, vb = append(va, u), append(vb, v)
		}
	}
	d := stats.Repeated(va, vb, false)
	if d.OK() {
		return report.Value{V: report.Known(d.Rel), Lo: report.Known(d.RelLo), Hi: report.Known(d.RelHi)}, d.Lo > 0 || d.Hi < 0
	}
	x, y := a.Figures[name], b.Figures[name]
	return report.Value{V: report.Known(y.V.V/x.V.V - 1)}, above(x, y) || above(y, x)
}

// withInterval writes "480 ms (450 ms to 520 ms)".
func withInterval(m *Measure, e Estimate) string {
	if !e.V.OK {
		return "-"
	}
	suffix := ""
	if m.Name == "goodput" {
		suffix = "/s"
	}
	text := m.Format(e.V.V) + suffix
	if e.Lo.OK && e.Hi.OK {
		text += " (" + m.Format(e.Lo.V) + " to " + m.Format(e.Hi.V) + ")"
	}
	return text
}

// nameOf is the figure that an objective bounds, whether or not there is one.
func nameOf(o Objective) string { return fmt.Sprintf("%s.p%.4g", o.Metric, 100*o.Share) }
