package study

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"reprise/internal/units"
	"reprise/report"
	"reprise/report/html"
)

// WriteHTML writes a study as one page that needs nothing but itself.
func (s *Study) WriteHTML(w io.Writer) error {
	class, word, text := s.verdict()
	p := &html.Page{
		Eyebrow: "Reprise · study", Title: s.Title, Verdict: html.Verdict{Class: class, Word: word, Text: text},
		Cautions: append(slices.Clone(s.Warnings), s.Repeat.Notes...),
		Foot:     "Written by report study. This file loads nothing and can be kept, mailed and printed as it is.",
	}
	if s.Question != "" {
		p.Sides = append(p.Sides, html.Side{Name: "Question", Detail: s.Question})
	}
	p.Sides = append(p.Sides, html.Side{Name: "Design", Detail: s.Fraction})
	if s.Simulated != "" {
		p.Eyebrow += " · simulated"
		p.Sides = append(p.Sides, html.Side{Name: "Simulated", Detail: s.Simulated})
		for _, f := range s.SimFit {
			p.Sides = append(p.Sides, html.Side{Name: "Error of the model's fit", Detail: f.describe() + " (" + some(f.Cells) + ")"})
		}
	}
	if r := s.Recommendation; r != nil {
		p.Lead = r.Text
	}
	p.Cards = s.cards()
	b := &drawer{study: s}
	add := func(x html.Section) {
		if len(x.Blocks) > 0 {
			p.Sections = append(p.Sections, x)
		}
	}
	add(s.validitySection())
	add(s.recommendationSection())
	add(b.loadSection())
	add(b.frontSection())
	add(s.cellsSection())
	add(b.effectsSection())
	add(b.interactionsSection())
	add(b.tailSection())
	add(b.memorySection())
	add(b.costSection())
	add(s.repeatSection())
	p.Sections = append(p.Sections, html.Section{ID: "how", Title: "How to read this", Blocks: []html.Block{{List: append(slices.Clone(html.How()[:3]), s.how()...)}}})
	if b.err != nil {
		return b.err
	}
	// The page's first link goes to it.
	p.Sections[0].ID = "summary"
	return p.Write(w)
}

func (s *Study) how() []string {
	return []string{
		s.intervals() + " Those of latencies and rates are on a logarithmic scale, around the geometric mean.",
		"An objective such as ttft.p99<500ms is met where the whole interval of the share of requests below the bound lies above 99 %; a request that failed is not below any. That interval is never narrower than so many independent requests could tell (Wilson's).",
		"Goodput counts requests that meet every bound; of several bounds on one metric, the widest.",
		"An effect is the change against the first level, over the cells that were played, by least squares with repeats as blocks. Its error is what cells differ by from repeat to repeat, pooled over cells; without repeats, it is what the factors leave, which takes interactions for chance.",
		"Better and worse are given only where p stays below 0.05 after Holm's correction for every effect of the study.",
		"On the Pareto front lie the cells that no other beats in both figures. Another is not to be told from it where the intervals of the two do not show which is better.",
	}
}

func (s *Study) cards() (out []html.Card) {
	if s.Recommendation == nil {
		return nil
	}
	c := s.Recommendation.cell
	chip := html.Chip{Class: "good", Text: "meets every objective"}
	switch {
	case !slices.ContainsFunc(s.Objectives, func(o Objective) bool { return o.Share > 0 }):
		chip = html.Chip{Class: "plain", Text: "highest goodput"}
	case !s.Recommendation.Met && s.stand(c).likely:
		chip = html.Chip{Class: "warn", Text: "by the figures alone"}
	case !s.Recommendation.Met:
		chip = html.Chip{Class: "bad", Text: "misses an objective"}
	}
	for _, name := range []string{"goodput", "ttft.p50", s.tail("ttft.p99", "ttft.p90"), s.tail("tpot.p99", "tpot.p50"), "output_tokens_per_second", "kv_usage.max", "price_per_million_tokens"} {
		e, ok := c.Figures[name]
		if !ok {
			continue
		}
		m := &measures[measureAt(name)]
		k := html.Card{Name: m.Title, Values: []html.CardValue{{Text: m.Format(e.V.V)}}}
		if m.Name == "goodput" {
			k.Values[0].Text += "/s"
			k.Chip = chip
		}
		if iv := m.interval(e); iv != "" {
			k.Note = iv + " at 95 %"
		}
		out = append(out, k)
	}
	return out
}

func (s *Study) recommendationSection() html.Section {
	x := html.Section{ID: "recommendation", Title: "Recommendation"}
	r := s.Recommendation
	if r == nil {
		if len(s.Objectives) == 0 {
			x.Blocks = []html.Block{{List: []string{"No objective was given, so that nothing is recommended: report study DIR --slo 'ttft.p99<500ms' --slo 'tpot.p95<50ms' says which configuration meets them. The Pareto front below says what can be had at all."}}}
		}
		return x
	}
	if !r.Met {
		x.Title = "What comes closest"
	}
	x.Text = []string{"Configuration: " + s.title(r.cell) + "."}
	x.Blocks = append(x.Blocks, html.Block{List: r.Reasons})
	if len(r.Alternatives) > 0 {
		var list []string
		for _, a := range r.Alternatives {
			list = append(list, upper(s.alternative(a)))
		}
		x.Blocks = append(x.Blocks, html.Block{Title: "Not to be told from it within the intervals", List: list})
	}
	share := &Measure{Unit: "share"}
	t := &html.Table{Caption: "Share of requests below each bound · " + s.labels(), Head: []string{"cell"}, Sorted: true}
	for _, o := range s.Objectives {
		t.Head = append(t.Head, o.String())
		if o.Share > 0 {
			t.Head = append(t.Head, "verdict")
		}
	}
	t.Head = append(t.Head, "goodput")
	g := &measures[measureAt("goodput")]
	for i := range s.Cells {
		c := &s.Cells[i]
		if c.Counted == 0 {
			continue
		}
		row := []html.Cell{{Text: s.unbroken(c)}}
		for _, a := range c.Met {
			row = append(row, estimate(share, a.Share))
			if a.Objective.Share > 0 {
				row = append(row, html.Cell{Text: a.Verdict, Chip: map[string]string{Met: "good", Missed: "bad"}[a.Verdict] + " plain"})
			}
		}
		t.Rows = append(t.Rows, append(row, estimate(g, c.Figures["goodput"])))
	}
	x.Blocks = append(x.Blocks, html.Block{Title: "Every cell against the objectives", Table: t, Fold: len(t.Rows) > 12})
	return x
}

// estimate shows a figure with its interval under it.
func estimate(m *Measure, e Estimate) html.Cell {
	if !e.V.OK {
		return html.Cell{Text: "-"}
	}
	return html.Cell{Text: m.Format(e.V.V), Sort: strconv.FormatFloat(e.V.V, 'g', 8, 64), Sub: m.interval(e)}
}

func (s *Study) validitySection() html.Section {
	x := html.Section{ID: "validity", Title: "What is in no figure", Text: []string{"Runs that are invalid, partial, failed, skipped or still to come are in no figure."}}
	var list []string
	for _, r := range s.lost() {
		list = append(list, upper(r.describe())+" is "+r.Status+": "+r.Why+".")
	}
	if len(list) > 0 {
		x.Blocks = append(x.Blocks, html.Block{List: list})
	}
	if len(s.Empty) > 0 {
		x.Blocks = append(x.Blocks, html.Block{List: []string{"Levels without a run that counts: " + strings.Join(s.Empty, ", ") + "."}})
	}
	return x
}

func (s *Study) cellsSection() html.Section {
	x := html.Section{ID: "cells", Title: "Every cell", Text: []string{s.intervals() + " Latencies are from the schedule, of successes."}}
	for i, names := range tables {
		ms := s.among(names)
		if len(ms) == 0 {
			continue
		}
		t := &html.Table{Caption: s.labels(), Head: []string{"cell", "runs"}, Sorted: true}
		for _, m := range ms {
			t.Head = append(t.Head, m.Title)
		}
		for k := range s.Cells {
			c := &s.Cells[k]
			runs := html.Cell{Text: fmt.Sprintf("%d of %d", c.Counted, c.Planned), Sort: fmt.Sprint(c.Counted)}
			if c.Behind {
				runs.Sub = "fell behind"
			}
			row := []html.Cell{{Text: s.unbroken(c)}, runs}
			for _, m := range ms {
				row = append(row, estimate(m, c.Figures[m.Name]))
			}
			t.Rows = append(t.Rows, row)
		}
		x.Blocks = append(x.Blocks, html.Block{Title: []string{"Latency", "Throughput and resources"}[i], Table: t})
	}
	if why := s.withheld(); len(why) > 0 {
		var list []string
		for _, w := range why {
			list = append(list, upper(w)+".")
		}
		x.Blocks = append(x.Blocks, html.Block{List: list})
	}
	return x
}

func (s *Study) repeatSection() html.Section {
	x := html.Section{ID: "repeat", Title: "To repeat it", Blocks: []html.Block{{Facts: s.facts()}}}
	cells := &html.Table{Caption: "What each cell is played with", Head: []string{"cell", "levels", "backend", "options", "flags", "trace", "requests a run", "their digest"}}
	for i := range s.Cells {
		c := &s.Cells[i]
		cells.Rows = append(cells.Rows, []html.Cell{{Text: c.Name}, {Text: s.unbroken(c)}, {Text: orDash(backend(c))}, {Text: orDash(strings.Join(c.Options, " "))}, {Text: orDash(strings.Join(c.Flags, " "))}, {Text: orDash(c.Trace)}, {Text: units.Count(c.Requests)}, {Text: orDash(fmt.Sprintf("%.16s", c.digest))}})
	}
	x.Blocks = append(x.Blocks, html.Block{Title: "Cells", Table: cells, Fold: true})
	common, differing, by := s.configs()
	if len(differing) > 0 {
		t := &html.Table{Caption: "As the servers said, by the first run of each cell", Head: append([]string{"cell"}, differing...)}
		for i := range s.Cells {
			v := by[s.Cells[i].Name]
			if v == nil {
				continue
			}
			row := []html.Cell{{Text: s.Cells[i].Name}}
			for _, d := range differing {
				row = append(row, html.Cell{Text: orDash(v[d])})
			}
			t.Rows = append(t.Rows, row)
		}
		x.Blocks = append(x.Blocks, html.Block{Title: "Where engines were configured differently", Table: t, Fold: true})
	}
	if len(common) > 0 {
		x.Blocks = append(x.Blocks, html.Block{Title: "What all engines had in common", Facts: common, Fold: true})
	}
	runs := &html.Table{Caption: "In the order of playing", Head: []string{"run", "state", "started", "digest of the requests", "folder"}}
	for _, r := range s.Runs {
		if r.Number == 0 {
			continue
		}
		started := "-"
		if !r.Started.IsZero() {
			started = r.Started.UTC().Format("2006-01-02 15:04:05")
		}
		runs.Rows = append(runs.Rows, []html.Cell{{Text: fmt.Sprint(r.Number)}, {Text: r.Status}, {Text: started}, {Text: orDash(fmt.Sprintf("%.16s", r.Digest))}, {Text: r.Dir}})
	}
	if len(runs.Rows) > 0 {
		x.Blocks = append(x.Blocks, html.Block{Title: "Runs", Table: runs, Fold: true})
	}
	return x
}

// effectTable lists effects with their forests.
func effectTable(caption string, effects []*Effect) *html.Table {
	if len(effects) == 0 {
		return nil
	}
	var rels []report.Value
	for _, e := range effects {
		if e.Ratio {
			rels = append(rels, e.Change)
		}
	}
	most := html.ForestScale(rels)
	t := &html.Table{Caption: caption, Head: []string{"figure", "level", "change, at 95 %", "p (Holm)", "verdict", "ratio, log scale"}}
	for _, e := range effects {
		m := &measures[measureAt(e.Measure)]
		verdict, class := html.Cell{Text: said(e)}, "plain"
		switch e.Verdict {
		case report.Better:
			class = "good"
			verdict.Chip = class
		case report.Worse:
			class = "bad"
			verdict.Chip = class
		}
		row := []html.Cell{{Text: m.Title}, {Text: e.Level}, {Text: m.change(e.Change.V, e.Ratio), Sub: m.changeInterval(e.Change, e.Ratio)}, {Text: probability(e.PHolm)}, verdict}
		if e.Ratio && e.Change.V.OK {
			row = append(row, html.Cell{SVG: html.Forest(e.Change, most, class)})
		} else {
			row = append(row, html.Cell{Text: ""})
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}
