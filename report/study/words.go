package study

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"reprise/internal/units"
	"reprise/report"
	"reprise/report/html"
)

// change writes an effect: "+4.2 %", "×3.1" from twice or half on, or a
// difference.
func (m *Measure) change(v report.Number, relative bool) string {
	return m.changed(v, relative, relative && manifold(v))
}

func manifold(v report.Number) bool { return v.OK && (v.V >= 1 || v.V <= -0.5) }

func (m *Measure) changed(v report.Number, relative, times bool) string {
	switch {
	case !v.OK:
		return "-"
	case times:
		return "×" + units.Digits(1+v.V)
	case relative || m.Unit == "share":
		text := units.Percent(max(v.V, -v.V))
		if !relative {
			text = strings.TrimSuffix(text, " %") + " points"
		}
		if v.V < 0 {
			return "-" + text
		}
		return "+" + text
	case v.V < 0:
		return m.Format(v.V)
	}
	return "+" + m.Format(v.V)
}

func (m *Measure) changeInterval(v report.Value, relative bool) string {
	if !v.Lo.OK || !v.Hi.OK {
		return ""
	}
	times := relative && manifold(v.V)
	return m.changed(v.Lo, relative, times) + " to " + m.changed(v.Hi, relative, times)
}

// interval writes "450 ms to 520 ms", empty without one.
func (m *Measure) interval(e Estimate) string {
	if !e.Lo.OK || !e.Hi.OK {
		return ""
	}
	return m.Format(e.Lo.V) + " to " + m.Format(e.Hi.V)
}

// label writes the levels of a cell, in the order of the factors.
func (s *Study) label(c *Cell) string {
	var parts []string
	for _, f := range s.Factors {
		parts = append(parts, c.Levels[f.Name])
	}
	return strings.Join(parts, " · ")
}

// unbroken is the label for a page, which keeps it on one line in a narrow table.
func (s *Study) unbroken(c *Cell) string {
	return strings.ReplaceAll(s.label(c), " · ", "\u00a0·\u00a0")
}

// labels names what label writes.
func (s *Study) labels() string {
	var parts []string
	for _, f := range s.Factors {
		name := f.Name
		if f.Unit != "" {
			name += " (" + f.Unit + ")"
		}
		parts = append(parts, name)
	}
	return strings.Join(parts, " · ")
}

// lost are the runs that do not count.
func (s *Study) lost() (out []*Run) {
	for _, x := range s.Runs {
		if !x.Counted {
			out = append(out, x)
		}
	}
	return out
}

// counted is how many runs count, and of how many cells.
func (s *Study) counted() (runs, cells int) {
	for i := range s.Cells {
		runs += s.Cells[i].Counted
		if s.Cells[i].Counted > 0 {
			cells++
		}
	}
	return runs, cells
}

// verdict says in a line whether the figures may be believed.
func (s *Study) verdict() (class, word, text string) {
	runs, cells := s.counted()
	lost := map[string]int{}
	for _, x := range s.lost() {
		lost[x.Status]++
	}
	text = fmt.Sprintf("%s of %s count, in %d of %d cells.", units.Count(int64(runs)), plural(len(s.Runs)-unplanned(s.Runs), "run"), cells, len(s.Cells))
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(lost)) {
		parts = append(parts, fmt.Sprintf("%d %s", lost[k], k))
	}
	if len(parts) > 0 {
		text += " In no figure: " + strings.Join(parts, ", ") + "."
	}
	switch {
	case runs == 0:
		return "bad", "NOTHING TO SHOW", text
	case s.Invalid:
		return "bad", "PARTLY INVALID", text
	case len(parts) > 0 && (len(lost) > 1 || lost[skipped] == 0):
		return "warn", "INCOMPLETE", text
	}
	return "good", "VALID", text
}

// unplanned are entries of cells without a run.
func unplanned(runs []*Run) (n int) {
	for _, x := range runs {
		if x.Number == 0 {
			n++
		}
	}
	return n
}

func plural(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return units.Count(int64(n)) + " " + what
}

// withheld groups the reasons for which figures have no interval.
func (s *Study) withheld() (out []string) {
	of := map[string][]string{}
	for i := range s.Cells {
		for _, m := range measures {
			e := s.Cells[i].Figures[m.Name]
			if e.Why != "" && !slices.Contains(of[e.Why], m.Title) {
				of[e.Why] = append(of[e.Why], m.Title)
			}
		}
	}
	for _, why := range slices.Sorted(maps.Keys(of)) {
		out = append(out, fmt.Sprintf("no interval of %s in some cells: %s", strings.Join(of[why], ", "), why))
	}
	return out
}

// intervals says what the intervals of cells are.
func (s *Study) intervals() string {
	over, within := false, false
	for i := range s.Cells {
		for _, e := range s.Cells[i].Figures {
			over = over || e.How == OverRepeats
			within = within || e.How == WithinRuns
		}
	}
	switch {
	case over && within:
		return "Intervals are at 95 %: Student's over repeats where three or more count, and otherwise of the requests of these runs (block bootstrap)."
	case over:
		return "Intervals are at 95 %: Student's over repeats."
	case within:
		return "Intervals are at 95 %, of the requests of these runs (block bootstrap): they hold nothing of what differs from run to run."
	}
	return "There are no intervals: no cell has three runs that count, or requests enough."
}

// shown are the figures that some cell has.
func (s *Study) shown() (out []*Measure) {
	for i := range measures {
		for k := range s.Cells {
			if s.Cells[k].Figures[measures[i].Name].V.OK {
				out = append(out, &measures[i])
				break
			}
		}
	}
	return out
}

// configs are the engines' own configurations: what all share, and what differs
// by cell.
func (s *Study) configs() (common []html.Fact, differing []string, by map[string]map[string]string) {
	by = map[string]map[string]string{}
	var order []string
	seen := map[string]bool{}
	first := ""
	for i := range s.Cells {
		c := &s.Cells[i]
		if len(c.runs) == 0 {
			continue
		}
		x := c.runs[0]
		values := map[string]string{}
		put := func(prefix string, object map[string]any) {
			for _, f := range html.Flatten(object) {
				name := prefix + f.Name
				if !seen[name] {
					seen[name] = true
					order = append(order, name)
				}
				values[name] = f.Value
			}
		}
		var info map[string]any
		if json.Unmarshal(x.manifest.Server.Info, &info) == nil {
			config, _ := info["config"].(map[string]any)
			for _, k := range []string{"engine", "version", "model", "max_model_len", "vocab_size"} {
				if v, ok := info[k]; ok {
					put("", map[string]any{"server " + k: v})
				}
			}
			put("", config)
		}
		launch := x.engine
		if launch == nil && json.Unmarshal(c.launch, &launch) != nil {
			launch = nil
		}
		put("launch ", launch)
		by[c.Name] = values
		if first == "" {
			first = c.Name
		}
	}
	for _, name := range order {
		same := true
		for _, v := range by {
			same = same && v[name] == by[first][name]
		}
		if same {
			common = append(common, html.Fact{Name: name, Value: by[first][name]})
		} else {
			differing = append(differing, name)
		}
	}
	return common, differing, by
}

// facts are what was decided before the first run.
func (s *Study) facts() (out []html.Fact) {
	add := func(name, value string) {
		if value != "" {
			out = append(out, html.Fact{Name: name, Value: value})
		}
	}
	r := &s.Repeat
	if len(r.Args) > 0 {
		add("Command", strings.TrimSpace(r.Program.Name+" "+strings.Join(r.Args, " ")))
	}
	add("Program", strings.TrimSpace(r.Program.Name+" "+r.Program.Version+" "+r.Program.Go))
	revision := fmt.Sprintf("%.12s", r.Program.Revision)
	if r.Program.Modified {
		revision += ", modified"
	}
	add("Revision", revision)
	if !r.Created.IsZero() {
		add("Planned", r.Created.UTC().Format("2006-01-02 15:04:05 UTC"))
	}
	add("Design", s.Fraction)
	add("Seed of the order", fmt.Sprint(r.Seed))
	add("Trace", r.Trace)
	add("Digest of the requests", r.Digest)
	add("Flags", strings.Join(r.Flags, " "))
	add("Digest of the flags", r.FlagsDigest)
	add("Prefix cache before each run", r.Cache)
	if len(s.Objectives) > 0 {
		var all []string
		for _, o := range s.Objectives {
			all = append(all, o.String())
		}
		add("Objectives", strings.Join(all, ", "))
	}
	if s.Price > 0 {
		add("Price of a GPU-hour", units.Digits(s.Price))
	}
	if s.gpus > 0 {
		add("GPUs of an engine", fmt.Sprintf("%g", s.gpus))
	}
	return out
}

// effectsOf are the effects of a factor, those of the given figures or, with
// rest, of all others.
func (s *Study) effectsOf(factor string, names []string, rest bool) (out []*Effect) {
	for i := range s.Effects {
		e := &s.Effects[i]
		if e.Factor == factor && slices.Contains(names, e.Measure) != rest {
			out = append(out, e)
		}
	}
	return out
}

// mainFigures are what is told of first.
func (s *Study) mainFigures() []string {
	return []string{"ttft.p50", s.tail("ttft.p99", "ttft.p90"), "tpot.p50", "output_tokens_per_second", "goodput", "error_rate"}
}

// probability writes a p-value.
func probability(p report.Number) string {
	switch {
	case !p.OK:
		return "-"
	case p.V < 0.001:
		return "< 0.001"
	}
	return fmt.Sprintf("%.3f", p.V)
}
