package report

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"reprise/internal/cli"
)

// A Family is several sides, each held against the first. Its p-values are
// corrected for all metrics of all comparisons.
type Family struct {
	Version     int           `json:"version"` // ComparisonVersion
	Baseline    string        `json:"baseline"`
	Comparisons []*Comparison `json:"comparisons"`
	Tests       int           `json:"tests"` // p-values that were corrected together
}

// MaxSides bounds the sides of a Family: they are named by letters.
const MaxSides = 26

// CompareAll holds the second side of each pair against the first, which is of
// one name in all of them: it may lack runs where the other side does.
func CompareAll(ctx context.Context, pairs [][2]Side, c CompareConfig) (*Family, error) {
	if len(pairs) == 0 || len(pairs) >= MaxSides {
		return nil, fmt.Errorf("a comparison takes 2 to %d sides, got %d", MaxSides, len(pairs)+1)
	}
	f := &Family{Version: ComparisonVersion, Baseline: pairs[0][0].Name}
	seen := map[string]bool{f.Baseline: true}
	for i, p := range pairs {
		if seen[p[1].Name] {
			return nil, fmt.Errorf("two sides are called %q: name one of them, NAME=RUN", p[1].Name)
		}
		seen[p[1].Name] = true
		out, err := compareSides(ctx, p[0], p[1], c)
		if err != nil {
			return nil, err
		}
		if len(pairs) > 1 {
			out.Family, out.mark = len(pairs), string(rune('B'+i))
		}
		f.Comparisons = append(f.Comparisons, out)
	}
	f.Tests = correct(f.Comparisons...)
	return f, nil
}

// Check judges the gates, for each comparison those that are for it.
func (f *Family) Check(gates []Gate) ([][]Check, error) {
	if len(f.Comparisons) == 0 {
		return nil, errors.New("there is no comparison for a gate to judge")
	}
	return checkAll(gates, f.Comparisons...)
}

// Invalid says whether a run of any side is.
func (f *Family) Invalid() bool {
	return slices.ContainsFunc(f.Comparisons, func(c *Comparison) bool { return c.Invalid })
}

// Profiles are what charts show: the first run of each side, that of the baseline
// first, on one axis of time. It takes a Family that was made with Charts.
func (f *Family) Profiles(ctx context.Context) ([]*Profile, error) {
	ps, runs := f.Comparisons[0].charts[:1:1], f.Comparisons[0].charted[:1:1]
	for _, c := range f.Comparisons {
		ps, runs = append(ps, c.charts[1]), append(runs, c.charted[1])
	}
	if slices.Contains(ps, nil) {
		return nil, errors.New("the comparison was made without charts")
	}
	return settle(ctx, ps, runs)
}

// Headline says in a sentence a side what was found.
func (f *Family) Headline() string {
	var parts []string
	for _, c := range f.Comparisons {
		parts = append(parts, c.Headline())
	}
	return strings.Join(parts, " ")
}

// Names lists the metrics of all comparisons, in order.
func (f *Family) Names() (out []string) {
	for _, c := range f.Comparisons {
		for i := range c.Metrics {
			if n := c.Metrics[i].Name; !slices.Contains(out, n) {
				out = append(out, n)
			}
		}
	}
	return out
}

// Metric is one figure of a comparison, nil where it has none.
func (c *Comparison) Metric(name string) *Metric { return c.metric(name) }

// first is the metric of the first comparison that has it: its A is the
// baseline's.
func (f *Family) first(name string) *Metric {
	for _, c := range f.Comparisons {
		if m := c.metric(name); m != nil {
			return m
		}
	}
	return nil
}

// against writes a figure and how it stands to A: "12.3 ms, +4.2 % worse".
func (m *Metric) against() string {
	if m == nil {
		return "-"
	}
	s := m.value(m.B.V)
	switch {
	case m.Rel.V.OK:
		s += ", " + signedPercent(m.Rel.V.V)
	case m.Diff.V.OK && m.Unit != "ns":
		s += ", " + m.format(m.Diff.V.V)
	}
	switch m.Verdict {
	case Better, Worse:
		s += " " + m.Verdict
	case NotJudged:
		s += " ?"
	}
	return s
}

// matrixNote explains the table of all sides.
const matrixNote = "Each side against A. Better and worse stand where p is below 0.05 after Holm's correction for all metrics of all comparisons; ? is not judged."

// RenderText writes all comparisons for a terminal: one table of all sides
// first, where there are more than two.
func (f *Family) RenderText(w io.Writer, checks [][]Check) error {
	if len(f.Comparisons) > 1 {
		var b strings.Builder
		if f.Invalid() {
			b.WriteString("INVALID: a run did not do what its trace says; see below\n")
		}
		for _, c := range f.Comparisons {
			fmt.Fprintf(&b, "%s\n", c.Headline())
		}
		t := &cli.Table{}
		head := []string{"metric", "A: " + f.Baseline}
		for _, c := range f.Comparisons {
			head = append(head, c.Mark()+": "+c.B.Name)
		}
		t.Row(head...)
		for _, name := range f.Names() {
			m := f.first(name)
			row := []string{name, m.value(m.A.V)}
			for _, c := range f.Comparisons {
				row = append(row, c.metric(name).against())
			}
			t.Row(row...)
		}
		b.WriteString("\n")
		if err := t.Write(&b, ""); err != nil {
			return err
		}
		fmt.Fprintf(&b, "\n%s\n\n", matrixNote)
		if _, err := io.WriteString(w, b.String()); err != nil {
			return err
		}
	}
	for i, c := range f.Comparisons {
		if i > 0 {
			if _, err := io.WriteString(w, "\n"); err != nil {
				return err
			}
		}
		if err := c.RenderText(w); err != nil {
			return err
		}
		if i < len(checks) {
			if err := RenderChecks(w, checks[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// RenderMarkdown writes all comparisons for a merge request.
func (f *Family) RenderMarkdown(w io.Writer, checks [][]Check) error {
	var b strings.Builder
	if len(f.Comparisons) > 1 {
		fmt.Fprintf(&b, "### Against %s\n\n", markdown(f.Baseline))
		if f.Invalid() {
			b.WriteString("**Invalid:** a run did not do what its trace says.\n\n")
		}
		fmt.Fprintf(&b, "| metric | A: %s |", markdown(f.Baseline))
		for _, c := range f.Comparisons {
			fmt.Fprintf(&b, " %s: %s |", c.Mark(), markdown(c.B.Name))
		}
		b.WriteString("\n|---|--:|" + strings.Repeat("--:|", len(f.Comparisons)) + "\n")
		for _, name := range f.Names() {
			m := f.first(name)
			fmt.Fprintf(&b, "| %s | %s |", name, m.value(m.A.V))
			for _, c := range f.Comparisons {
				fmt.Fprintf(&b, " %s |", c.metric(name).against())
			}
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "\n%s\n\n", matrixNote)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return err
	}
	for i, c := range f.Comparisons {
		if i > 0 {
			if _, err := io.WriteString(w, "\n"); err != nil {
				return err
			}
		}
		var of []Check
		if i < len(checks) {
			of = checks[i]
		}
		if err := c.RenderMarkdown(w, of); err != nil {
			return err
		}
	}
	return nil
}
