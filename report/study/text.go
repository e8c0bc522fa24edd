package study

import (
	"fmt"
	"io"
	"strings"

	"reprise/internal/cli"
	"reprise/internal/units"
	"reprise/report"
)

// tables are the figures of the two tables of cells.
var tables = [][]string{
	{"ttft.p50", "ttft.p90", "ttft.p95", "ttft.p99", "ttft.p99.9", "tpot.p50", "tpot.p90", "tpot.p95", "tpot.p99", "itl.p50", "itl.p99", "e2e.p50", "e2e.p90", "e2e.p95", "e2e.p99"},
	{"requests_per_second", "output_tokens_per_second", "goodput", "error_rate", "in_flight.mean", "kv_usage.max", "prefix_hit", "preemptions", "tokens_per_joule", "tokens_per_gpu_hour", "price_per_million_tokens"},
}

// among are the figures of a list that some cell has.
func (s *Study) among(names []string) (out []*Measure) {
	for _, m := range s.shown() {
		for _, n := range names {
			if m.Name == n {
				out = append(out, m)
			}
		}
	}
	return out
}

// WriteMarkdown writes a study for a merge request or a wiki.
func (s *Study) WriteMarkdown(w io.Writer) error {
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	md := report.Markdown
	row := func(cells ...string) {
		for i, c := range cells {
			cells[i] = strings.ReplaceAll(md(c), "\n", " ")
		}
		line("| %s |", strings.Join(cells, " | "))
	}
	head := func(cells ...string) {
		row(cells...)
		line("|%s", strings.Repeat("---|", len(cells)))
	}
	line("# %s", md(s.Title))
	line("")
	if s.Question != "" {
		line("%s", md(s.Question))
		line("")
	}
	_, word, text := s.verdict()
	line("**%s** %s", word, md(text))
	line("")
	line("Design: %s.", md(s.Fraction))
	if s.Simulated != "" {
		line("")
		line("**Simulated**: %s.", md(s.Simulated))
		for _, f := range s.SimFit {
			line("- error of the model's fit, in %s: %s", md(some(f.Cells)), md(f.describe()))
		}
	}
	if r := s.Recommendation; r != nil {
		line("")
		line("## Recommendation")
		line("")
		line("%s", md(r.Text))
		for _, why := range r.Reasons {
			line("- %s", md(why))
		}
		for _, a := range r.Alternatives {
			line("- not to be told from it: %s", md(s.alternative(a)))
		}
	}
	lost := s.lost()
	if len(lost)+len(s.Empty) > 0 {
		line("")
		line("## What is in no figure")
		line("")
		if len(lost) > 0 {
			head("run", "state", "why")
			for _, x := range lost {
				row(x.describe(), x.Status, x.Why)
			}
		}
		if len(s.Empty) > 0 {
			line("")
			line("Levels without a run that counts: %s.", md(strings.Join(s.Empty, ", ")))
		}
	}
	line("")
	line("## Cells")
	line("")
	line("Of %s. %s", md(s.labels()), s.intervals())
	for _, names := range tables {
		ms := s.among(names)
		if len(ms) == 0 {
			continue
		}
		line("")
		cells := []string{"cell", "runs"}
		for _, m := range ms {
			cells = append(cells, m.Title)
		}
		head(cells...)
		for i := range s.Cells {
			c := &s.Cells[i]
			cells := []string{s.label(c), fmt.Sprintf("%d of %d", c.Counted, c.Planned)}
			for _, m := range ms {
				e := c.Figures[m.Name]
				text := m.Format(e.V.Or(nan))
				if iv := m.interval(e); iv != "" {
					text += " (" + iv + ")"
				}
				cells = append(cells, text)
			}
			row(cells...)
		}
	}
	for _, why := range s.withheld() {
		line("")
		line("%s.", md(upper(why)))
	}
	if len(s.Objectives) > 0 {
		line("")
		line("## Objectives")
		line("")
		cells := []string{"cell"}
		for _, o := range s.Objectives {
			cells = append(cells, o.String(), "")
		}
		head(cells...)
		share := &Measure{Unit: "share"}
		for i := range s.Cells {
			c := &s.Cells[i]
			if c.Counted == 0 {
				continue
			}
			cells := []string{s.label(c)}
			for _, a := range c.Met {
				cells = append(cells, withInterval(share, a.Share), a.Verdict)
			}
			row(cells...)
		}
	}
	if fs := s.studied(); len(fs) > 0 {
		line("")
		line("## Effects")
		line("")
		line("%s", effectsText)
		for _, a := range s.Aliases {
			line("- %s", md(a))
		}
		for _, f := range fs {
			line("")
			line("### %s", md(s.Factors[f].Name))
			line("")
			head("figure", "level", "against", "change", "95 % interval", "p (Holm)", "")
			for _, e := range s.effectsOf(s.Factors[f].Name, nil, true) {
				m := &measures[measureAt(e.Measure)]
				row(m.Title, e.Level, e.Base, m.change(e.Change.V, e.Ratio), orDash(m.changeInterval(e.Change, e.Ratio)), probability(e.PHolm), said(e))
			}
		}
	}
	if len(s.Interactions) > 0 {
		line("")
		line("## Interactions")
		line("")
		line("%s", interactionsText)
		line("")
		head("factors", "figure", "p (Holm)", "effect of, between", "how much it changes", "95 % interval")
		for i := range s.Interactions {
			x := &s.Interactions[i]
			m := &measures[measureAt(x.Measure)]
			row(x.A+" × "+x.B, m.Title, probability(x.PHolm), x.corner(), m.change(x.Corner.V, x.Ratio), orDash(m.changeInterval(x.Corner, x.Ratio)))
		}
	}
	if len(s.Variation) > 0 {
		line("")
		line("## Where the variation comes from")
		line("")
		t := s.variation()
		for i, r := range t {
			if i == 0 {
				head(r...)
			} else {
				row(r...)
			}
		}
	}
	for _, f := range s.Fronts {
		x, y := &measures[measureAt(f.Throughput)], &measures[measureAt(f.Latency)]
		line("")
		line("## %s against %s", y.Title, x.Title)
		line("")
		head("cell", x.Title, y.Title, "")
		for _, p := range f.Points {
			if p.On || p.Near {
				row(s.label(p.cell), withInterval(x, p.cell.Figures[f.Throughput]), withInterval(y, p.cell.Figures[f.Latency]), p.place())
			}
		}
	}
	line("")
	line("## To repeat it")
	line("")
	for _, f := range s.facts() {
		line("- %s: %s", md(f.Name), md(f.Value))
	}
	line("")
	head("cell", "backend", "options", "flags", "trace", "requests a run", "their digest")
	for i := range s.Cells {
		c := &s.Cells[i]
		row(c.Name, backend(c), strings.Join(c.Options, " "), strings.Join(c.Flags, " "), c.Trace, units.Count(c.Requests), orDash(fmt.Sprintf("%.16s", c.digest)))
	}
	common, differing, by := s.configs()
	if len(differing) > 0 {
		line("")
		head(append([]string{"cell"}, differing...)...)
		for i := range s.Cells {
			if v := by[s.Cells[i].Name]; v != nil {
				cells := []string{s.Cells[i].Name}
				for _, d := range differing {
					cells = append(cells, orDash(v[d]))
				}
				row(cells...)
			}
		}
	}
	if len(common) > 0 {
		line("")
		line("Of all engines:")
		for _, f := range common {
			line("- %s: %s", md(f.Name), md(f.Value))
		}
	}
	notes := append(append([]string(nil), s.Warnings...), s.Repeat.Notes...)
	if len(notes) > 0 {
		line("")
		for _, n := range notes {
			line("- %s", md(upper(n)))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// WriteText writes the answer and the cells for a terminal.
func (s *Study) WriteText(w io.Writer) error {
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	_, word, text := s.verdict()
	line("%s", s.Title)
	line("%s: %s", word, text)
	if s.Simulated != "" {
		line("SIMULATED: %s", s.Simulated)
		for _, f := range s.SimFit {
			line("  error of the fit: %s", f.describe())
		}
	}
	if r := s.Recommendation; r != nil {
		line("")
		line("%s", r.Text)
		for _, why := range r.Reasons {
			line("  %s", why)
		}
		for _, a := range r.Alternatives {
			line("  not to be told from it: %s", s.alternative(a))
		}
	}
	line("")
	ms := s.among(append(s.mainFigures(), "kv_usage.max", "price_per_million_tokens"))
	t := &cli.Table{Head: []string{s.labels(), "runs"}}
	for _, m := range ms {
		t.Head = append(t.Head, m.Title)
	}
	for i := range s.Cells {
		c := &s.Cells[i]
		cells := []string{s.label(c), fmt.Sprintf("%d of %d", c.Counted, c.Planned)}
		for _, m := range ms {
			cells = append(cells, m.Format(c.Figures[m.Name].V.Or(nan)))
		}
		t.Row(cells...)
	}
	if err := t.Write(&b, ""); err != nil {
		return err
	}
	if len(s.Effects) > 0 {
		line("")
		t := &cli.Table{Head: []string{"effect of", "level", "against", "on", "change", "95 % interval", "verdict"}}
		main := s.mainFigures()
		for _, f := range s.studied() {
			for _, e := range s.effectsOf(s.Factors[f].Name, main, false) {
				m := &measures[measureAt(e.Measure)]
				t.Row(e.Factor, e.Level, e.Base, m.Title, m.change(e.Change.V, e.Ratio), orDash(m.changeInterval(e.Change, e.Ratio)), said(e))
			}
		}
		if err := t.Write(&b, ""); err != nil {
			return err
		}
	}
	for _, x := range s.lost() {
		line("in no figure: %s is %s: %s", x.describe(), x.Status, x.Why)
	}
	if len(s.Empty) > 0 {
		line("without a run that counts: %s", strings.Join(s.Empty, ", "))
	}
	for _, a := range s.Aliases {
		line("alias: %s", a)
	}
	for _, n := range s.Warnings {
		line("warning: %s", n)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

const (
	effectsText      = "The change that a level makes against the first one, over the cells that were played, by least squares with repeats as blocks. Relative for latencies and rates. A verdict stands only where p is below 0.05 after Holm's correction for every effect of this study."
	interactionsText = "Where p is small, the effect of one factor depends on the other, and its main effect is an average. The table says by how much the effect of the first factor, from its first to its last level, changes between the first and the last level of the second."
)

// said is an effect's verdict, or why there is none.
func said(e *Effect) string {
	if e.Verdict == report.NotJudged && e.Why != "" {
		return e.Why
	}
	if e.Verdict == report.NotJudged {
		return ""
	}
	return e.Verdict
}

func (x *Interaction) corner() string {
	if !x.Corner.V.OK {
		return orDash(x.Why)
	}
	return fmt.Sprintf("%s→%s, between %s and %s", x.Levels[0], x.Levels[1], x.Levels[2], x.Levels[3])
}

// place says where a point lies.
func (p *FrontPoint) place() string {
	switch {
	case p.On:
		return "on the front"
	case p.Near:
		return "not to be told from it"
	}
	return ""
}

func (s *Study) alternative(a Alternative) string {
	var text strings.Builder
	fmt.Fprintf(&text, "%s, goodput %s", s.title(a.cell), measures[measureAt("goodput")].change(a.Goodput.V, true))
	if iv := measures[measureAt("goodput")].changeInterval(a.Goodput, true); iv != "" {
		text.WriteString(" (" + iv + ")")
	}
	for _, name := range []string{s.tail("ttft.p99", "ttft.p90"), "tokens_per_gpu_hour"} {
		m := &measures[measureAt(name)]
		if e, ok := a.cell.Figures[name]; ok {
			fmt.Fprintf(&text, "; %s %s", m.Title, m.Format(e.V.V))
		}
	}
	return text.String()
}

func (f *SimFit) describe() string {
	var parts []string
	for _, k := range f.order {
		parts = append(parts, k+" "+f.Error[k])
	}
	return strings.Join(parts, ", ")
}

// variation is a table of where differences come from, its head first.
func (s *Study) variation() (out [][]string) {
	var names []string
	for _, f := range s.Factors {
		names = append(names, f.Name)
	}
	for i, a := range s.Factors {
		for _, b := range s.Factors[i+1:] {
			names = append(names, a.Name+" × "+b.Name)
		}
	}
	head := []string{"figure"}
	var known []string
	for _, n := range names {
		for _, v := range s.Variation {
			if _, ok := v.Shares[n]; ok {
				known = append(known, n)
				break
			}
		}
	}
	out = append(out, append(append(head, known...), "run to run", "everything else"))
	for _, v := range s.Variation {
		row := []string{measures[measureAt(v.Measure)].Title}
		for _, n := range known {
			if x, ok := v.Shares[n]; ok {
				row = append(row, units.Percent(roundShare(x)))
			} else {
				row = append(row, "-")
			}
		}
		noise := "-"
		if v.Noise.OK {
			noise = units.Percent(roundShare(v.Noise.V))
		}
		out = append(out, append(row, noise, units.Percent(roundShare(v.Other))))
	}
	return out
}

// backend names what a cell is played against.
func backend(c *Cell) string {
	switch {
	case c.arg != "":
		return c.arg
	case c.URL != "":
		return c.Backend + "=" + c.URL
	}
	return c.Backend
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func upper(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
