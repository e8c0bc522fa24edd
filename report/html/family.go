package html

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"reprise/report"
)

// palette is the number of colours that tell sides and runs apart.
const palette = 6

// sideClass is the class of a side, which gives it its colour; sides beyond the
// palette have none.
func sideClass(i int) string {
	if i < palette {
		return string(rune('a' + i))
	}
	return ""
}

// WriteFamily writes several sides, each held against the first, as one page.
// profiles are those of the first run of each side, on one axis of time.
func WriteFamily(w io.Writer, f *report.Family, checks [][]report.Check, profiles []*report.Profile) error {
	if len(f.Comparisons) == 1 {
		var of []report.Check
		if len(checks) > 0 {
			of = checks[0]
		}
		return WriteComparison(w, f.Comparisons[0], of, [2]*report.Profile{profiles[0], profiles[1]})
	}
	p := &page{
		Eyebrow: "Reprise · comparison", Title: others(f) + " against " + f.Baseline, Lead: f.Headline(),
		Foot: "Written by report compare. This file loads nothing and can be kept, mailed and printed as it is.",
	}
	sides := []marked{{"A", &f.Comparisons[0].A}}
	for _, c := range f.Comparisons {
		sides = append(sides, marked{c.Mark(), &c.B})
	}
	var tracks []track
	for i, s := range sides {
		p.Sides = append(p.Sides, side{sideClass(i), s.mark, s.of.Name, detail(s.of)})
		tracks = append(tracks, track{profiles[i], s.mark, i + 1})
	}
	for _, c := range f.Comparisons {
		for _, text := range c.Warnings {
			if !slices.Contains(p.Cautions, text) {
				p.Cautions = append(p.Cautions, text)
			}
		}
	}
	p.Verdict = familyVerdict(f)
	if f.Invalid() {
		p.Lead = "Not to be relied on, as a run is invalid: " + p.Lead
	}
	p.Cards = familyCards(f)

	summary := section{ID: "summary", Title: "Summary", Text: []string{f.Comparisons[0].Scope() + " Each side is held against A; under a figure stands what it is of A's, with its interval."}}
	if t := gates(slices.Concat(checks...)); t != nil {
		summary.Blocks = append(summary.Blocks, block{Title: "Gates", Table: t, Narrow: true})
	}
	summary.Blocks = append(summary.Blocks, block{Table: matrix(f)})
	p.Sections = append(p.Sections, summary)

	b := &builder{page: p}
	add := func(id, title string, figs []figure, text ...string) {
		if len(figs) > 0 {
			p.Sections = append(p.Sections, section{ID: id, Title: title, Text: text, Blocks: []block{{Figures: figs}}})
		}
	}
	first := ""
	if slices.ContainsFunc(f.Comparisons, func(c *report.Comparison) bool { return c.Repeats > 1 }) {
		first = " Charts show the first run of each side; repeats are never pooled."
	}
	var shifts []figure
	for _, c := range f.Comparisons {
		shifts = append(shifts, b.shifts(c)...)
	}
	add("distributions", "Distributions", b.cdfs(tracks), "Further left is faster. Axes begin at the second percentile."+first)
	add("shift", "Where in the distribution", shifts, "What separates a side from A at each quantile: a constant cost lifts the whole line, queueing lifts its right end.")
	add("time", "Over time", b.times(tracks), fmt.Sprintf("All runs from their own start, in windows of %s, warm-up and drain included.", units(profiles[0].Width)))
	add("load", "Under load", b.load(tracks), "Each dot is a window in time.")
	add("facts", "By the trace's own facts", b.heats(tracks), "Every request lies in one cell; all sides have one scale of colour, which grows with the root of the share.")
	for _, c := range f.Comparisons {
		p.Sections = append(p.Sections, against(c))
	}
	p.Sections = append(p.Sections, comparedRuns(sides, tracks), section{ID: "how", Title: "How to read this", Blocks: []block{{List: append(slices.Clone(how), comparedHow(f.Comparisons[0])...)}}})
	if b.err != nil {
		return b.err
	}
	return p.write(w)
}

// others names the sides that are held against the first.
func others(f *report.Family) string {
	var names []string
	for _, c := range f.Comparisons {
		names = append(names, c.B.Name)
	}
	if len(names) > palette {
		return fmt.Sprintf("%d sides", len(names))
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}

func familyVerdict(f *report.Family) verdict {
	all := comparisonVerdict(f.Comparisons[0])
	rank := map[string]int{"good": 0, "plain": 1, "bad": 2}
	all.Reasons = nil
	for _, c := range f.Comparisons {
		v := comparisonVerdict(c)
		if rank[v.Class] > rank[all.Class] {
			all.Class, all.Word, all.Text = v.Class, v.Word, v.Text
		}
		for i := range c.Work {
			if c.Work[i].Unequal() {
				all.Reasons = append(all.Reasons, c.Mark()+" and A, "+c.DescribeWork(i))
			}
		}
	}
	if all.Class == "good" {
		all.Text = "Every run sent what its trace says, when it says."
	}
	return all
}

// familyCards show the main figures of all sides.
func familyCards(f *report.Family) (out []card) {
	for _, name := range cardMetrics {
		k := card{Name: heading(name)}
		for i, c := range f.Comparisons {
			m := c.Metric(name)
			if m == nil {
				continue
			}
			s := m.Show()
			if len(k.Values) == 0 {
				k.Values = append(k.Values, cardValue{sideClass(0), "A", s.A})
			}
			value := s.B
			if m.Rel.V.OK {
				value += " (" + relativeOnly(s.Relative) + ")"
			}
			k.Values = append(k.Values, cardValue{sideClass(i + 1), c.Mark(), value})
		}
		if k.Values != nil {
			out = append(out, k)
		}
	}
	return out
}

// matrix has every metric of every side.
func matrix(f *report.Family) *table {
	t := &table{Caption: "Every metric of every side", Head: []string{"metric", "A"}, Sorted: true}
	for _, c := range f.Comparisons {
		t.Head = append(t.Head, c.Mark(), c.Mark()+" against A")
	}
	for _, name := range f.Names() {
		row := []cell{text(heading(name)), text("-")}
		for _, c := range f.Comparisons {
			m := c.Metric(name)
			if m == nil {
				row = append(row, text("-"), text("-"))
				continue
			}
			s := m.Show()
			if row[1].Text == "-" {
				row[1] = cell{Text: s.A, Sort: sortKey(m.A.V)}
			}
			change := known(s.Relative)
			if !m.Rel.V.OK && m.Diff.V.OK {
				change = s.Diff
				if i := known(s.Interval); i != "" {
					change += " (" + i + ")"
				}
			}
			v := verdictChip(m.Verdict)
			row = append(row, cell{Text: s.B, Sub: change, Sort: sortKey(m.B.V)}, cell{Text: v.Text, Chip: v.Class, Sub: inParentheses(s.Verdict)})
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

// against is one comparison of several, in full.
func against(c *report.Comparison) section {
	s := section{ID: "against-" + strings.ToLower(c.Mark()), Title: fmt.Sprintf("%s against %s in full", c.B.Name, c.A.Name), Text: []string{c.Headline()}}
	s.Blocks = append(s.Blocks, block{Title: "Metrics", Table: metricTable(c)}, block{List: notes(c)})
	for _, b := range work(c).Blocks {
		b.Fold = b.Title != "Fidelity"
		s.Blocks = append(s.Blocks, b)
	}
	for _, x := range []struct {
		title string
		t     *table
	}{{"By segment, uncorrected", segmentTable(c)}, {"Requests that moved most", moverTable(c)}, {"Noise from run to run", noiseTable(c)}} {
		if x.t != nil {
			s.Blocks = append(s.Blocks, block{Title: x.title, Table: x.t, Fold: true})
		}
	}
	for i := range s.Blocks {
		if t := s.Blocks[i].Table; t != nil {
			t.Caption += ", " + c.Mark() + " and A" // no two tables of a page have one name
		}
	}
	return s
}
