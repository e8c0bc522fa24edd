package html

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"reprise/internal/metrics"
	iunits "reprise/internal/units"
	"reprise/report"
)

// WriteComparison writes a comparison as one page. profiles are those of the
// first run of A and of B, on one axis of time.
func WriteComparison(w io.Writer, c *report.Comparison, checks []report.Check, profiles [2]*report.Profile) error {
	p := &page{
		Eyebrow: "Reprise · comparison", Title: c.B.Name + " against " + c.A.Name, Lead: c.Headline(),
		Cautions: c.Warnings, Foot: "Written by report compare. This file loads nothing and can be kept, mailed and printed as it is.",
	}
	for _, s := range []struct {
		class, mark string
		of          *report.Subject
	}{{"a", "A", &c.A}, {"b", "B", &c.B}} {
		p.Sides = append(p.Sides, side{s.class, s.mark, s.of.Name, detail(s.of)})
	}
	p.Verdict = comparisonVerdict(c)
	if c.Invalid {
		p.Lead = "Not to be relied on, as a run is invalid: " + p.Lead
	}
	tracks := []track{{profiles[0], "A", 1}, {profiles[1], "B", 2}}
	b := &builder{page: p}
	p.Cards = comparisonCards(c)

	summary := section{ID: "summary", Title: "Summary", Text: []string{c.Scope()}}
	if t := gates(checks); t != nil {
		summary.Blocks = append(summary.Blocks, block{Title: "Gates", Table: t, Narrow: true})
	}
	summary.Blocks = append(summary.Blocks, block{Table: metricTable(c)}, block{List: notes(c)})
	p.Sections = append(p.Sections, summary, work(c))

	add := func(id, title string, figs []figure, text ...string) {
		if len(figs) > 0 {
			p.Sections = append(p.Sections, section{ID: id, Title: title, Text: text, Blocks: []block{{Figures: figs}}})
		}
	}
	first := ""
	if c.Repeats > 1 {
		first = " Charts show the first pair of runs; repeats are never pooled."
	}
	add("distributions", "Distributions", b.cdfs(tracks), "Further left is faster. Axes begin at the second percentile."+first)
	add("shift", "Where in the distribution", b.shifts(c), "What separates the sides at each quantile: a constant cost lifts the whole line, queueing lifts its right end.")
	add("time", "Over time", b.times(tracks), fmt.Sprintf("Both runs from their own start, in windows of %s, warm-up and drain included.", units(profiles[0].Width)))
	add("load", "Under load", b.load(tracks), "Each dot is a window in time.")
	add("facts", "By the trace's own facts", b.heats(tracks), "Every request lies in one cell; both sides have one scale of colour, which grows with the root of the share.")
	if t := segmentTable(c); t != nil {
		p.Sections = append(p.Sections, section{ID: "segments", Title: "By segment", Text: []string{"Which requests the difference comes from. These intervals are not corrected for there being many segments: they say where to look."}, Blocks: []block{{Table: t}}})
	}
	if t := moverTable(c); t != nil {
		p.Sections = append(p.Sections, section{ID: "movers", Title: "Requests that moved most", Text: []string{"By the difference of E2E. Ids are those of the trace."}, Blocks: []block{{Table: t}}})
	}
	if t := noiseTable(c); t != nil {
		p.Sections = append(p.Sections, section{ID: "noise", Title: "Noise from run to run", Text: []string{"The standard deviation over repeats of one side: no smaller difference can be told from chance by one run of each."}, Blocks: []block{{Table: t}}})
	}
	p.Sections = append(p.Sections, comparedRuns([]marked{{"A", &c.A}, {"B", &c.B}}, tracks), section{ID: "how", Title: "How to read this", Blocks: []block{{List: append(slices.Clone(how), comparedHow(c)...)}}})
	if b.err != nil {
		return b.err
	}
	return p.write(w)
}

// notes are what a reader of the table of metrics should know.
func notes(c *report.Comparison) (out []string) {
	for _, why := range c.Withheld() {
		out = append(out, "No interval: "+why+".")
	}
	for _, s := range c.Paired {
		median := ""
		if s.Median.OK {
			median = "; the median difference is " + (&report.Metric{Unit: "ns"}).Format(s.Median.V)
		}
		out = append(out, fmt.Sprintf("Of the same %s requests, %s had the smaller %s in %s and %s in A%s.", iunits.Count(s.Requests), iunits.Percent(s.B), heading(s.Metric), c.Mark(), iunits.Percent(s.A), median))
	}
	return out
}

// detail is what describes a side beyond its name.
func detail(s *report.Subject) string {
	var parts []string
	if m := s.Runs[0].Manifest(); m != nil {
		if m.Server.Backend != s.Name {
			parts = append(parts, m.Server.Backend)
		}
		parts = append(parts, serverModel(m), "under "+m.Trace.Name)
	}
	if n := len(s.Runs); n > 1 {
		parts = append(parts, fmt.Sprintf("%d runs", n))
	} else if s.Runs[0].Name != s.Name {
		parts = append(parts, s.Runs[0].Name)
	}
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), ", ")
}

func comparisonVerdict(c *report.Comparison) verdict {
	if c.Invalid {
		return verdict{Class: "bad", Word: "INVALID", Text: "A run did not do what its trace says; its figures are of the client as much as of the server."}
	}
	v := verdict{Class: "good", Word: "VALID", Text: "Every run sent what its trace says, when it says."}
	for _, s := range [][]report.RunFact{c.A.Runs, c.B.Runs} {
		for _, r := range s {
			if r.Summary.Fidelity.Verdict == metrics.NotReplayed {
				v = verdict{Class: "plain", Word: "NOT REPLAYED", Text: "At least one side is a capture: what was sent there was production's, and has no schedule to be held against."}
			}
		}
	}
	for i := range c.Work {
		if c.Work[i].Unequal() {
			v.Reasons = append(v.Reasons, c.DescribeWork(i))
		} else if i == 0 {
			v.Text += " " + upper(c.DescribeWork(i)) + "."
		}
	}
	return v
}

func upper(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}

// cardMetrics are the figures that a reader looks for first.
var cardMetrics = []string{"ttft.p50", "ttft.p99", "tpot.p50", "e2e.p50", "e2e.p99", "output_tokens_per_second", "goodput", "tokens_per_joule", "error_rate"}

func comparisonCards(c *report.Comparison) (out []card) {
	for _, name := range cardMetrics {
		i := slices.IndexFunc(c.Metrics, func(m report.Metric) bool { return m.Name == name })
		if i < 0 {
			continue
		}
		m := &c.Metrics[i]
		s := m.Show()
		k := card{Name: heading(name), Values: []cardValue{{"a", "A", s.A}, {"b", "B", s.B}}, Chip: verdictChip(m.Verdict)}
		if m.Rel.V.OK {
			k.Change = s.Relative
		} else if m.Diff.V.OK {
			k.Change = s.Diff
			if i := known(s.Interval); i != "" {
				k.Change += " (" + i + ")"
			}
		}
		if m.Verdict == report.NotJudged {
			k.Note = "No interval, see the notes of the summary."
			if strings.HasPrefix(m.Why, "a run has one such figure") {
				k.Note = "One figure a run: repeats would give an interval."
			}
		}
		out = append(out, k)
	}
	return out
}

func metricTable(c *report.Comparison) *table {
	t := &table{Caption: "Every metric of both sides", Head: []string{"metric", "A", c.Mark(), c.Mark() + " - A", c.Mark() + " against A", ratioHead, "p", "verdict"}, Sorted: true}
	most := widest(c.Metrics)
	for i := range c.Metrics {
		m := &c.Metrics[i]
		s := m.Show()
		v := verdictChip(m.Verdict)
		t.Rows = append(t.Rows, []cell{
			text(heading(m.Name)), {Text: s.A, Sort: sortKey(m.A.V)}, {Text: s.B, Sort: sortKey(m.B.V)}, {Text: s.Diff, Sub: known(s.Interval), Sort: sortKey(m.Diff.V)},
			{Text: relativeOnly(s.Relative), Sub: inParentheses(s.Relative), Sort: sortKey(m.Rel.V)}, {SVG: forest(m.Rel, most, v.Class)},
			{Text: s.P, Sort: sortKey(m.PHolm)}, {Text: v.Text, Chip: v.Class, Sub: inParentheses(s.Verdict)},
		})
	}
	return t
}

func gates(checks []report.Check) *table {
	if len(checks) == 0 {
		return nil
	}
	t := &table{Caption: "Conditions under which this comparison fails", Head: []string{"condition", "result", "why"}}
	for _, k := range checks {
		result := cell{Text: "pass", Chip: "good"}
		switch {
		case k.Failed:
			result = cell{Text: "fail", Chip: "bad"}
		case k.Unknown:
			result = cell{Text: "unknown", Chip: "warn"}
		}
		t.Rows = append(t.Rows, []cell{text(k.Title()), result, text(k.Text)})
	}
	return t
}

// work says whether both sides did the same.
func work(c *report.Comparison) section {
	s := section{ID: "work", Title: "Was it the same work?", Text: []string{"The same request is compared with itself: both sides have it, both answered it, with the same prompt and as many tokens. What is not so is left out, or marked."}}
	t := &table{Caption: "Requests of each pair of runs", Head: []string{""}}
	for i := range c.Work {
		t.Head = append(t.Head, fmt.Sprintf("pair %d", i+1))
	}
	if len(c.Work) == 1 {
		t.Head[1] = "requests"
	}
	for _, f := range []struct {
		name string
		of   func(*report.Work) int64
	}{
		{"Measured in A", func(w *report.Work) int64 { return w.Rows[0] }}, {"Measured in " + c.Mark(), func(w *report.Work) int64 { return w.Rows[1] }},
		{"In both", func(w *report.Work) int64 { return w.Joined }}, {"Only in A", func(w *report.Work) int64 { return w.OnlyA }}, {"Only in " + c.Mark(), func(w *report.Work) int64 { return w.OnlyB }},
		{"Succeeded in both", func(w *report.Work) int64 { return w.BothOK }}, {"Failed in A only", func(w *report.Work) int64 { return w.FailedA }}, {"Failed in " + c.Mark() + " only", func(w *report.Work) int64 { return w.FailedB }},
		{"Prompt differs", func(w *report.Work) int64 { return w.Prompts }}, {"Prompt not verified, for want of a digest", func(w *report.Work) int64 { return w.Unverified }},
		{"Prompt tokens differ", func(w *report.Work) int64 { return w.PromptTokens }}, {"Output tokens differ", func(w *report.Work) int64 { return w.OutputTokens }},
		{"Cached tokens differ: the server's saving, and compared", func(w *report.Work) int64 { return w.CachedTokens }}, {"Left out as unequal work", func(w *report.Work) int64 { return w.Excluded }},
	} {
		row := []cell{text(f.name)}
		for i := range c.Work {
			row = append(row, count(f.of(&c.Work[i])))
		}
		t.Rows = append(t.Rows, row)
	}
	examples := &table{Caption: "Requests that were not the same work", Head: []string{"request", "what", "A", c.Mark()}}
	for i := range c.Work {
		w := &c.Work[i]
		for _, e := range w.Examples {
			examples.Rows = append(examples.Rows, []cell{count(e.ID), text(strings.ReplaceAll(e.What, "_", " ")), count(int64(e.Was[0])), count(int64(e.Was[1]))})
		}
	}
	s.Beside = true
	s.Blocks = append(s.Blocks, block{Title: "Requests", Table: t, Narrow: true})
	names, sums := runsOf([]marked{{"A", &c.A}, {c.Mark(), &c.B}})
	s.Blocks = append(s.Blocks, block{Title: "Fidelity", Table: fidelity(names, sums), Narrow: true})
	if len(examples.Rows) > 0 {
		s.Blocks = append(s.Blocks, block{Title: "Examples of unequal work", Table: examples, Fold: true})
	}
	if f := failures(names, sums); f != nil {
		s.Blocks = append(s.Blocks, block{Title: "Failures", Table: f})
	}
	return s
}

// marked is a side with its letter.
type marked struct {
	mark string
	of   *report.Subject
}

func runsOf(sides []marked) (names []string, sums []*metrics.Summary) {
	for _, s := range sides {
		for i, r := range s.of.Runs {
			mark := s.mark
			if len(s.of.Runs) > 1 {
				mark += fmt.Sprint(i + 1)
			}
			names, sums = append(names, mark+"  "+r.Name), append(sums, r.Summary)
		}
	}
	return names, sums
}

func segmentTable(c *report.Comparison) *table {
	if len(c.Segments) == 0 {
		return nil
	}
	t := &table{Caption: "Segments", Head: []string{"segment", "requests"}, Sorted: true}
	for _, m := range c.Segments[0].Metrics {
		t.Head = append(t.Head, heading(m.Name)+" A", c.Mark(), c.Mark()+" against A", "ratio")
	}
	var all []report.Metric
	for i := range c.Segments {
		all = append(all, c.Segments[i].Metrics...)
	}
	most := widest(all)
	for i := range c.Segments {
		s := &c.Segments[i]
		row := []cell{text(segmentName(s.By, s.Label)), count(s.Requests)}
		for k := range s.Metrics {
			m := &s.Metrics[k]
			x := m.Show()
			class := ""
			if m.Diff.Hi.OK && m.Diff.Hi.V < 0 {
				class = "good"
			} else if m.Diff.Lo.OK && m.Diff.Lo.V > 0 {
				class = "bad"
			}
			row = append(row, cell{Text: x.A, Sort: sortKey(m.A.V)}, cell{Text: x.B, Sort: sortKey(m.B.V)}, cell{Text: relativeOnly(x.Relative), Sort: sortKey(m.Rel.V)}, cell{SVG: forest(m.Rel, most, class)})
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

// ratioHead names a column of forests.
const ratioHead = "ratio, log scale"

// known drops a dash.
func known(s string) string {
	if s == "-" {
		return ""
	}
	return s
}

// inParentheses is the interval of a relative difference.
func inParentheses(s string) string {
	_, s, _ = strings.Cut(s, " (")
	return strings.TrimSuffix(s, ")")
}

// relativeOnly drops the interval, which is drawn beside it.
func relativeOnly(s string) string {
	s, _, _ = strings.Cut(s, " (")
	return s
}

func segmentName(by, label string) string {
	switch by {
	case "prompt_tokens", "output_tokens":
		return label + " " + strings.ReplaceAll(by, "_", " ")
	case "cache_hit":
		return "cached " + label
	case "turn", "time":
		return label
	}
	return by + " " + label
}

func moverTable(c *report.Comparison) *table {
	if len(c.Movers) == 0 {
		return nil
	}
	t := &table{Caption: "The requests whose E2E differs most", Head: []string{"request", "arrival", "prompt tokens", "output tokens", "TTFT A", "TTFT " + c.Mark(), "E2E A", "E2E " + c.Mark(), "E2E difference"}, Sorted: true}
	ns := &report.Metric{Unit: "ns"}
	show := func(n report.Number) cell {
		if !n.OK {
			return text("-")
		}
		return cell{Text: ns.Format(n.V), Sort: sortKey(n)}
	}
	tokens := func(n int32) cell {
		if n < 0 {
			return text("-")
		}
		return count(int64(n))
	}
	for _, m := range c.Movers {
		id := fmt.Sprint(m.ID)
		if m.Lap > 0 {
			id += fmt.Sprintf(" lap %d", m.Lap)
		}
		diff := cell{Text: "-"}
		if m.E2E[0].OK && m.E2E[1].OK {
			d := m.E2E[1].V - m.E2E[0].V
			diff = cell{Text: ns.Format(d), Sort: float(d)}
			if d > 0 {
				diff.Text = "+" + diff.Text
			}
		}
		t.Rows = append(t.Rows, []cell{
			{Text: id, Sort: fmt.Sprint(m.ID)}, {Text: units(m.Arrival), Sort: fmt.Sprint(int64(m.Arrival))}, tokens(m.PromptTokens), tokens(m.OutputTokens),
			show(m.TTFT[0]), show(m.TTFT[1]), show(m.E2E[0]), show(m.E2E[1]), diff,
		})
	}
	return t
}

func noiseTable(c *report.Comparison) *table {
	if len(c.Noise) == 0 {
		return nil
	}
	t := &table{Caption: "Standard deviation over repeats", Head: []string{"metric", "A", c.Mark()}, Sorted: true}
	for _, n := range c.Noise {
		i := slices.IndexFunc(c.Metrics, func(m report.Metric) bool { return m.Name == n.Metric })
		if i < 0 {
			continue
		}
		show := func(v report.Number) cell {
			if !v.OK {
				return text("-")
			}
			return cell{Text: c.Metrics[i].Format(v.V), Sort: sortKey(v)}
		}
		t.Rows = append(t.Rows, []cell{text(heading(n.Metric)), show(n.A), show(n.B)})
	}
	return t
}

// comparedRuns says what was run, and holds the settings of each side against
// those of the first.
func comparedRuns(sides []marked, tracks []track) section {
	s := section{ID: "runs", Title: "Runs and hosts"}
	if t, notes := host(tracks); t != nil {
		s.Blocks = append(s.Blocks, block{Table: t})
		if len(notes) > 0 {
			s.Blocks = append(s.Blocks, block{List: notes})
		}
	}
	if t := differing(sides); t != nil {
		s.Blocks = append(s.Blocks, block{Title: "Settings that differ", Table: t, Narrow: true})
	}
	for _, x := range sides {
		for i := range x.of.Runs {
			r := &x.of.Runs[i]
			if facts := manifest(r.Manifest()); facts != nil {
				s.Blocks = append(s.Blocks, block{Title: x.mark + ": " + r.Name, Facts: facts})
			}
			if i == 0 {
				if all := settings(r.Manifest()); all != nil {
					s.Blocks = append(s.Blocks, block{Title: "Every setting of " + x.mark, Facts: all, Fold: true})
				}
			}
		}
	}
	if s.Blocks == nil {
		s.Text = []string{"Neither side has a run.json: captures say nothing of the host they were taken on."}
	}
	return s
}

// differing lists what is not the same on all sides.
func differing(sides []marked) *table {
	t := &table{Caption: "What the first run of each side was started with", Head: []string{""}}
	var all [][]fact
	for _, x := range sides {
		facts := settings(x.of.Runs[0].Manifest())
		if facts == nil {
			return nil
		}
		t.Head, all = append(t.Head, x.mark), append(all, facts)
	}
	value := func(fs []fact, name string) string {
		for _, f := range fs {
			if f.Name == name {
				return f.Value
			}
		}
		return "-"
	}
	seen := map[string]bool{}
	for _, f := range slices.Concat(all...) {
		if seen[f.Name] {
			continue
		}
		seen[f.Name] = true
		row, same := []cell{text(f.Name)}, true
		for _, fs := range all {
			v := value(fs, f.Name)
			row, same = append(row, text(v)), same && v == value(all[0], f.Name)
		}
		if !same {
			t.Rows = append(t.Rows, row)
		}
	}
	if t.Rows == nil {
		return nil
	}
	return t
}

func comparedHow(c *report.Comparison) []string {
	out := []string{
		"Differences are of the requests that succeeded on both sides and were the same work. Better and worse are given only where p stays below 0.05 after Holm's correction for all the metrics that were looked at.",
	}
	if c.Estimand == report.Deployment {
		return append(out, "With three pairs of runs or more the intervals hold what differs from run to run.")
	}
	return append(out, "These intervals are of these runs: of other requests of the same kind, and not of other runs.")
}
