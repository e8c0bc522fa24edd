package report

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"reprise/internal/cli"
	"reprise/internal/units"
)

// format writes a value of a metric for people.
func (m *Metric) format(v float64) string {
	switch m.Unit {
	case "ns":
		sign := ""
		if v < 0 {
			sign, v = "-", -v
		}
		return sign + units.Duration(time.Duration(v))
	case "share":
		if v < 0 {
			return "-" + units.Percent(-v)
		}
		return units.Percent(v)
	}
	return units.Digits(v)
}

func (m *Metric) value(v Number) string {
	if !v.OK {
		return "-"
	}
	return m.format(v.V)
}

// interval writes "-12.3 ms to 4.1 ms".
func (m *Metric) interval(v Value) string {
	if !v.Lo.OK || !v.Hi.OK {
		return "-"
	}
	return m.format(v.Lo.V) + " to " + m.format(v.Hi.V)
}

// relative writes "+4.2 % (+1.0 % to +7.5 %)".
func (m *Metric) relative() string {
	if !m.Rel.V.OK {
		return "-"
	}
	s := signedPercent(m.Rel.V.V)
	if m.Rel.Lo.OK && m.Rel.Hi.OK {
		s += fmt.Sprintf(" (%s to %s)", signedPercent(m.Rel.Lo.V), signedPercent(m.Rel.Hi.V))
	}
	return s
}

// Headline says in one sentence what was found.
func (c *Comparison) Headline() string {
	var better, worse []string
	judged := 0
	for i := range c.Metrics {
		m := &c.Metrics[i]
		switch m.Verdict {
		case Better:
			better = append(better, m.Name)
		case Worse:
			worse = append(worse, m.Name)
		}
		if m.Verdict != NotJudged {
			judged++
		}
	}
	name := c.B.Name
	if !slices.ContainsFunc(c.Work, func(w Work) bool { return w.BothOK > 0 }) {
		text := fmt.Sprintf("No request succeeded on both %s and %s, so that there are no latencies to compare.", c.A.Name, name)
		if judged > 0 && len(better)+len(worse) > 0 {
			better = append(better, worse...)
			text += fmt.Sprintf(" They differ in %s.", enumerate(better))
		}
		return text
	}
	switch {
	case judged == 0:
		return "There is too little to judge by: no metric has an interval."
	case len(better)+len(worse) == 0:
		return fmt.Sprintf("No difference between %s and %s was found in %d metrics.", c.A.Name, name, judged)
	case len(worse) == 0:
		return fmt.Sprintf("%s is better than %s in %s.", name, c.A.Name, enumerate(better))
	case len(better) == 0:
		return fmt.Sprintf("%s is worse than %s in %s.", name, c.A.Name, enumerate(worse))
	}
	return fmt.Sprintf("%s is better than %s in %s, and worse in %s.", name, c.A.Name, enumerate(better), enumerate(worse))
}

func enumerate(names []string) string {
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}

// scope says what intervals and corrections are.
func (c *Comparison) scope() string {
	s := "Intervals are at 95 %, of these runs: a block bootstrap over paired requests in time."
	if c.Estimand == Deployment {
		s = fmt.Sprintf("Intervals are at 95 %%, of the deployment: Student's over %d pairs of runs.", c.Repeats)
	}
	if c.Family > 1 {
		return s + fmt.Sprintf(" p is after Holm's correction for all metrics of all %d comparisons.", c.Family)
	}
	return s + " p is after Holm's correction for all metrics of the table."
}

// Mark is the letter of B: another one among several sides.
func (c *Comparison) Mark() string { return cmp.Or(c.mark, "B") }

// RenderText writes a comparison for a terminal.
func (c *Comparison) RenderText(w io.Writer) error {
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	if c.Invalid {
		line("INVALID: a run did not do what its trace says; see below")
	}
	line("%s", c.Headline())
	line("")
	line("A  %s", c.A.describe())
	line("%s  %s", c.Mark(), c.B.describe())
	for i := range c.Work {
		line("%s", c.Work[i].describe(i, len(c.Work)))
	}
	line("")
	if _, err := io.WriteString(w, b.String()); err != nil {
		return err
	}
	b.Reset()
	t := &cli.Table{}
	t.Row("metric", "A", c.Mark(), c.Mark()+" - A", "95 % interval", "relative", "p", "verdict")
	for i := range c.Metrics {
		m := &c.Metrics[i]
		t.Row(m.Name, m.value(m.A.V), m.value(m.B.V), m.value(m.Diff.V), m.interval(m.Diff), m.relative(), pValue(m.PHolm), m.verdict())
	}
	if err := t.Write(w, ""); err != nil {
		return err
	}
	line("")
	line("%s", c.scope())
	for _, why := range c.withheld() {
		line("no interval: %s", why)
	}
	for _, s := range c.Paired {
		line("the same request: %s faster in %s for %s of %s, in A for %s; median difference %s", s.Metric, c.Mark(),
			units.Percent(s.B), units.Count(s.Requests), units.Percent(s.A), (&Metric{Unit: "ns"}).value(s.Median))
	}
	if rows := c.loudSegments(); len(rows) > 0 {
		line("")
		line("where (uncorrected, to see where to look):")
		for _, r := range rows {
			line("  %s", r)
		}
	}
	for _, warning := range c.Warnings {
		line("* %s", warning)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func pValue(p Number) string {
	switch {
	case !p.OK:
		return "-"
	case p.V < 0.001:
		return "<0.001"
	}
	return fmt.Sprintf("%.3f", p.V)
}

func (m *Metric) verdict() string {
	if m.Verdict == NoDifference && m.Detectable.OK {
		return fmt.Sprintf("%s (would find %s)", m.Verdict, m.format(m.Detectable.V))
	}
	return m.Verdict
}

// withheld groups the reasons for which metrics have no interval.
func (c *Comparison) withheld() (out []string) {
	by := map[string][]string{}
	var order []string
	for i := range c.Metrics {
		m := &c.Metrics[i]
		if m.Why == "" {
			continue
		}
		if by[m.Why] == nil {
			order = append(order, m.Why)
		}
		by[m.Why] = append(by[m.Why], m.Name)
	}
	for _, why := range order {
		out = append(out, enumerate(by[why])+": "+why)
	}
	return out
}

func (s *Subject) describe() string {
	text := s.Name
	if s.Runs[0].Backend != "" && s.Runs[0].Backend != s.Name {
		text += " (" + s.Runs[0].Backend + ")"
	}
	if len(s.Runs) > 1 {
		return fmt.Sprintf("%s, %d runs", text, len(s.Runs))
	}
	if s.Runs[0].Name != s.Name {
		text += ", " + s.Runs[0].Name
	}
	return text
}

func (w *Work) describe(i, of int) string {
	text := "same work"
	if w.Unequal() {
		text = "not all the same work"
	} else if w.Unverified == w.BothOK && w.BothOK > 0 {
		text = "prompts not verified (no digests)"
	}
	text = fmt.Sprintf("%s: %s requests in both, %s succeeded in both", text, units.Count(w.Joined), units.Count(w.BothOK))
	if w.CachedTokens > 0 {
		text += fmt.Sprintf("; cached tokens differ in %s", units.Count(w.CachedTokens))
	}
	if of > 1 {
		text = fmt.Sprintf("pair %d: %s", i+1, text)
	}
	return text
}

// loudSegments are the segments whose median differs, largest first.
func (c *Comparison) loudSegments() (out []string) {
	for i := range c.Segments {
		s := &c.Segments[i]
		for k := range s.Metrics {
			m := &s.Metrics[k]
			if m.Diff.Lo.OK && (m.Diff.Lo.V > 0 || m.Diff.Hi.V < 0) && m.Name == "ttft.p50" {
				out = append(out, fmt.Sprintf("%s %s (%s requests): %s %s", strings.ReplaceAll(s.By, "_", " "), s.Label, units.Count(s.Requests), m.Name, m.relative()))
			}
		}
	}
	return out
}

// RenderMarkdown writes a comparison for a merge request.
func (c *Comparison) RenderMarkdown(w io.Writer, checks []Check) error {
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	line("### %s", markdown(c.Headline()))
	line("")
	if c.Invalid {
		line("**Invalid:** a run did not do what its trace says.")
		line("")
	}
	for i := range checks {
		k := &checks[i]
		line("- %s: `%s`: %s", k.mark("**fail**"), strings.ReplaceAll(k.Title(), "`", "'"), markdown(k.Text))
	}
	if len(checks) > 0 {
		line("")
	}
	line("| metric | %s | %s | %s - A | 95 %% interval | relative | p | verdict |", markdown(c.A.Name), markdown(c.B.Name), c.Mark())
	line("|---|--:|--:|--:|--:|--:|--:|---|")
	for i := range c.Metrics {
		m := &c.Metrics[i]
		line("| %s | %s | %s | %s | %s | %s | %s | %s |", m.Name, m.value(m.A.V), m.value(m.B.V), m.value(m.Diff.V), m.interval(m.Diff), m.relative(), pValue(m.PHolm), m.verdict())
	}
	line("")
	line("%s", c.scope())
	line("")
	for i := range c.Work {
		line("- %s", c.Work[i].describe(i, len(c.Work)))
	}
	for _, why := range c.withheld() {
		line("- no interval: %s", markdown(why))
	}
	for _, warning := range c.Warnings {
		line("- %s", markdown(warning))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// markdown makes any text plain: names come from users and servers.
var markdownEscaper = strings.NewReplacer(`\`, `\\`, "`", "\\`", "*", `\*`, "_", `\_`, "<", "&lt;", ">", "&gt;", "|", `\|`, "[", `\[`, "]", `\]`, "#", `\#`, "\n", " ", "\r", " ")

func markdown(s string) string { return markdownEscaper.Replace(s) }

// Markdown makes any text plain in a page of Markdown.
func Markdown(s string) string { return markdown(s) }
