package study

import (
	"cmp"
	"math"
	"slices"
	"strconv"

	"reprise/internal/plot"
	"reprise/internal/units"
	"reprise/report/html"
)

// perChart is how many series a chart can tell apart.
const perChart = 6

// A drawer makes the figures of a page; the first error stays.
type drawer struct {
	study *Study
	err   error
}

func (b *drawer) draw(into *[]html.Figure, c *plot.Chart, note string) {
	if len(c.Lines) == 0 {
		return
	}
	f, err := html.Draw(c)
	if err != nil {
		if b.err == nil {
			b.err = err
		}
		return
	}
	f.Note = note
	*into = append(*into, f)
}

// A facet is a group of configurations that fit into one chart.
type facet struct {
	title string
	lines []configuration // named by what differs inside
}

// facets divides the configurations: by the levels of the factor that makes the
// fewest charts, or else as they come.
func (s *Study) facets() (out []facet) {
	all := s.configurations()
	if len(all) <= perChart {
		return []facet{{lines: all}}
	}
	best := -1
	for f := range s.Factors {
		if f == s.load {
			continue
		}
		n := map[int]int{}
		for _, c := range all {
			n[c.cells[0].levels[f]]++
		}
		most := 0
		for _, k := range n {
			most = max(most, k)
		}
		if most <= perChart && (best < 0 || len(s.Factors[f].Levels) < len(s.Factors[best].Levels)) {
			best = f
		}
	}
	if best < 0 {
		for part := range slices.Chunk(all, perChart) {
			out = append(out, facet{lines: part})
		}
		return out
	}
	for l, name := range s.Factors[best].Levels {
		x := facet{title: s.Factors[best].Name + "=" + name}
		for _, c := range all {
			if c.cells[0].levels[best] == l {
				x.lines = append(x.lines, configuration{s.without(c.cells[0], best), c.cells})
			}
		}
		if len(x.lines) > 0 {
			out = append(out, x)
		}
	}
	return out
}

// without names a configuration by all but one factor.
func (s *Study) without(c *Cell, f int) string {
	name := ""
	for i, g := range s.Factors {
		part := g.Name + "=" + c.Levels[g.Name]
		if i == s.load {
			part, _ = loadLevel(c.Levels[g.Name])
		}
		if i == f || len(g.Levels) < 2 || part == "" {
			continue
		}
		if name != "" {
			name += ", "
		}
		name += part
	}
	if name == "" {
		return allCells
	}
	return name
}

func titled(title, facet string) string {
	if facet == "" {
		return title
	}
	return title + ", " + facet
}

// scaleOf chooses the unit of a chart for a figure, by its largest value.
func (s *Study) scaleOf(m *Measure) (unit string, factor float64) {
	switch m.Unit {
	case "ns":
		most := 0.0
		for i := range s.Cells {
			most = max(most, s.Cells[i].Figures[m.Name].V.Or(0))
		}
		if most >= 2e9 {
			return ", s", 1e-9
		}
		return ", ms", 1e-6
	case "share":
		return "", 1
	case "tokens/h":
		return ", millions", 1e-6
	}
	return "", 1
}

func (s *Study) axis(m *Measure) (plot.Axis, float64) {
	unit, factor := s.scaleOf(m)
	a := plot.Axis{Label: m.Title + unit, Zero: true}
	switch {
	case m.Unit == "ns":
		a.Log, a.Zero = true, false
	case m.Unit == "share":
		a.Percent = true
	}
	return a, factor
}

// onto is a value on an axis, with its interval, which is the value where there
// is none.
func onto(e Estimate, factor float64) (v, lo, hi float64) {
	v = e.V.Or(math.NaN()) * factor
	if !e.Lo.OK || !e.Hi.OK {
		return v, math.NaN(), math.NaN()
	}
	return v, e.Lo.V * factor, e.Hi.V * factor
}

// common fixes the axes of charts that are to be compared.
func common(charts []*plot.Chart) {
	if len(charts) < 2 {
		return
	}
	fix := func(axis func(*plot.Chart) *plot.Axis, values func(*plot.Line) [][]float64) {
		lo, hi := math.Inf(1), math.Inf(-1)
		for _, c := range charts {
			for i := range c.Lines {
				for _, v := range values(&c.Lines[i]) {
					for _, x := range v {
						if !math.IsNaN(x) && !(axis(c).Log && x <= 0) {
							lo, hi = min(lo, x), max(hi, x)
						}
					}
				}
			}
			for _, r := range c.Rules {
				if axis(c) == &c.Y {
					lo, hi = min(lo, r.Y), max(hi, r.Y)
				}
			}
		}
		if lo > hi {
			return
		}
		for _, c := range charts {
			a := axis(c)
			if a.Ticks != nil {
				continue
			}
			if a.Fixed = true; a.Log {
				a.Min, a.Max = lo*0.92, hi*1.08
			} else {
				a.Min, a.Max = min(lo, 0), hi+0.03*(hi-min(lo, 0))
			}
		}
	}
	fix(func(c *plot.Chart) *plot.Axis { return &c.X }, func(l *plot.Line) [][]float64 { return [][]float64{l.X, l.XLow, l.XHigh} })
	fix(func(c *plot.Chart) *plot.Axis { return &c.Y }, func(l *plot.Line) [][]float64 { return [][]float64{l.Y, l.Low, l.High} })
}

// curves draws one figure over another, a line for each configuration through
// its loads.
func (b *drawer) curves(into *[]html.Figure, title, desc, note, xName, yName string) {
	s := b.study
	mx, my := &measures[measureAt(xName)], &measures[measureAt(yName)]
	ax, fx := s.axis(mx)
	ay, fy := s.axis(my)
	ax.Log, ax.Zero = false, true
	if xName == "in_flight.mean" {
		ax.Label = "requests in flight, mean"
	}
	var charts []*plot.Chart
	for _, f := range s.facets() {
		c := &plot.Chart{Title: titled(title, f.title), Desc: desc, X: ax, Y: ay}
		for i, conf := range f.lines {
			l := plot.Line{Name: conf.name, Color: i%perChart + 1, Dots: true, Whiskers: true, Loose: len(conf.cells) == 1}
			for _, cell := range conf.cells {
				ex, ey := cell.Figures[xName], cell.Figures[yName]
				if !ex.V.OK || !ey.V.OK {
					continue
				}
				x, xlo, xhi := onto(ex, fx)
				y, ylo, yhi := onto(ey, fy)
				l.X, l.XLow, l.XHigh = append(l.X, x), append(l.XLow, xlo), append(l.XHigh, xhi)
				l.Y, l.Low, l.High = append(l.Y, y), append(l.Low, ylo), append(l.High, yhi)
			}
			if len(l.X) > 0 {
				c.Lines = append(c.Lines, l)
			}
		}
		if len(c.Lines) > 0 {
			b.bound(c, my, fy)
			charts = append(charts, c)
		}
	}
	common(charts)
	for _, c := range charts {
		b.draw(into, c, note)
	}
}

// farAbove is from where on a bound is so far beyond every value that it would
// take the chart.
const farAbove = 1.5

// bound draws the objectives of a figure's metric.
func (b *drawer) bound(c *plot.Chart, m *Measure, factor float64) {
	most := 0.0
	for _, l := range c.Lines {
		for _, y := range l.Y {
			most = max(most, y)
		}
	}
	for _, o := range b.study.Objectives {
		if float64(o.Below)*factor > farAbove*most {
			continue
		}
		if m.Unit == "ns" && len(m.Name) > len(o.Metric) && m.Name[:len(o.Metric)+1] == o.Metric+"." {
			c.Rules = append(c.Rules, plot.Rule{Name: o.String(), Y: float64(o.Below) * factor})
		}
	}
}

// overLoad draws a figure over the load factor.
func (b *drawer) overLoad(into *[]html.Figure, title, note, name string) {
	s := b.study
	if s.load < 0 {
		return
	}
	f := &s.Factors[s.load]
	m := &measures[measureAt(name)]
	ay, fy := s.axis(m)
	label := f.Name
	if f.Unit != "" {
		label += ", " + f.Unit
	}
	var charts []*plot.Chart
	for _, part := range s.facets() {
		c := &plot.Chart{Title: titled(title, part.title), Desc: m.Title + " at each load.", X: plot.Axis{Label: label, Zero: true}, Y: ay}
		for i, conf := range part.lines {
			l := plot.Line{Name: conf.name, Color: i%perChart + 1, Dots: true, Whiskers: true}
			for _, cell := range conf.cells {
				e := cell.Figures[name]
				if !e.V.OK {
					continue
				}
				v, lo, hi := onto(e, fy)
				l.X, l.Y, l.Low, l.High = append(l.X, s.loadOf(cell)), append(l.Y, v), append(l.Low, lo), append(l.High, hi)
			}
			if len(l.X) > 0 {
				c.Lines = append(c.Lines, l)
			}
		}
		if len(c.Lines) > 0 {
			charts = append(charts, c)
		}
	}
	common(charts)
	for _, c := range charts {
		b.draw(into, c, note)
	}
}

func figures(id, title string, figs []html.Figure, text ...string) html.Section {
	x := html.Section{ID: id, Title: title, Text: text}
	if len(figs) > 0 {
		x.Blocks = []html.Block{{Figures: figs}}
	}
	return x
}

func (b *drawer) loadSection() html.Section {
	s := b.study
	if s.load < 0 {
		return html.Section{}
	}
	var figs []html.Figure
	f := s.Factors[s.load]
	ttft, tpot := s.tail("ttft.p99", "ttft.p90", "ttft.p50"), s.tail("tpot.p99", "tpot.p50")
	for _, y := range []string{ttft, tpot} {
		m := &measures[measureAt(y)]
		b.curves(&figs, m.Title+" against throughput", "A line for each configuration, through its loads.", "", "output_tokens_per_second", y)
	}
	b.overLoad(&figs, "Throughput over load", "", "output_tokens_per_second")
	b.overLoad(&figs, "Goodput over load", "Requests that meet every bound.", "goodput")
	return figures("load", "Throughput and latency under load", figs, "Each point is a cell, with its intervals both ways; a line goes through the levels of "+f.Name+". Where a line turns up without going further right, the configuration is full.")
}

func (b *drawer) tailSection() html.Section {
	s := b.study
	var figs []html.Figure
	for _, y := range []string{s.tail("ttft.p99", "ttft.p90", "ttft.p50"), s.tail("e2e.p99", "e2e.p50")} {
		b.curves(&figs, measures[measureAt(y)].Title+" against concurrency", "A point for each cell.", "", "in_flight.mean", y)
	}
	if len(figs) == 0 {
		return html.Section{}
	}
	return figures("tail", "The tail against concurrency", figs, "Concurrency is the mean number of requests in flight, as they were and not as they were set.")
}

// kvBins is how many points the growth of a configuration is drawn with.
const kvBins = 10

// grown are the averages of ranges of concurrency over all runs of a
// configuration.
func grown(cells []*Cell, by func(growth) float64) (out []growth) {
	var all []growth
	for _, c := range cells {
		all = append(all, c.growth...)
	}
	all = slices.DeleteFunc(all, func(g growth) bool { return !(by(g) > 0) })
	slices.SortFunc(all, func(a, b growth) int { return cmp.Compare(by(a), by(b)) })
	if len(all) == 0 {
		return nil
	}
	for part := range slices.Chunk(all, (len(all)+kvBins-1)/kvBins) {
		var g growth
		n := float64(len(part))
		for _, x := range part {
			g.flight, g.used, g.usage, g.length = g.flight+x.flight/n, g.used+x.used/n, g.usage+x.usage/n, g.length+x.length/n
		}
		out = append(out, g)
	}
	return out
}

func (b *drawer) memorySection() html.Section {
	s := b.study
	var figs []html.Figure
	for _, k := range []struct {
		title, x, y, note string
		percent, thin     bool
		of                func(growth) (x, y float64)
	}{
		{"KV cache against concurrency", "requests in flight", "KV cache in use", "Averages of ranges of concurrency, over every run of a configuration. A lower line holds the same requests in less.", true, false, func(g growth) (float64, float64) { return g.flight, g.usage }},
		{"KV tokens of a request against its length", "resident tokens a request, mean", "KV tokens a request", "Below the diagonal prompts share blocks; above it lie blocks that are half full, or kept for later prompts.", false, true, func(g growth) (float64, float64) { return g.length, g.used / max(g.flight, 1) }},
	} {
		var charts []*plot.Chart
		for _, f := range s.facets() {
			c := &plot.Chart{Title: titled(k.title, f.title), Desc: k.title + ", as telemetry saw it.", X: plot.Axis{Label: k.x, Zero: true}, Y: plot.Axis{Label: k.y, Zero: true, Percent: k.percent}}
			for i, conf := range f.lines {
				l := plot.Line{Name: conf.name, Color: i%perChart + 1, Dots: true, Loose: k.thin}
				for _, g := range grown(conf.cells, func(g growth) float64 { x, _ := k.of(g); return x }) {
					x, y := k.of(g)
					if y > 0 {
						l.X, l.Y = append(l.X, x), append(l.Y, y)
					}
				}
				if len(l.X) > 0 {
					c.Lines = append(c.Lines, l)
				}
			}
			if len(c.Lines) > 0 {
				charts = append(charts, c)
			}
		}
		common(charts)
		for _, c := range charts {
			b.draw(&figs, c, k.note)
		}
	}
	if len(figs) == 0 {
		return html.Section{}
	}
	b.overLoad(&figs, "Most of the KV cache in use, over load", "", "kv_usage.max")
	if slices.ContainsFunc(s.Cells, func(c Cell) bool { return c.Figures["preemptions"].V.Or(0) > 0 }) {
		b.overLoad(&figs, "Preemptions over load", "Requests that were put back because the KV cache was full.", "preemptions")
	}
	return figures("memory", "Memory and the KV cache", figs)
}

func (b *drawer) costSection() html.Section {
	s := b.study
	x := html.Section{ID: "cost", Title: "Cost"}
	ms := s.among([]string{"output_tokens_per_second", "tokens_per_gpu_hour", "price_per_million_tokens", "tokens_per_joule"})
	if s.Price == 0 && !slices.ContainsFunc(ms, func(m *Measure) bool { return m.Name == "tokens_per_joule" }) {
		return x
	}
	var figs []html.Figure
	if s.Price > 0 {
		b.overLoad(&figs, "Price of a million output tokens", "", "price_per_million_tokens")
		x.Text = append(x.Text, "At a price of "+units.Digits(s.Price)+" for a GPU-hour. An engine that waits costs as much as one that works: the price falls with load until it is full.")
	}
	b.overLoad(&figs, "Output tokens for a joule", "Of all GPUs.", "tokens_per_joule")
	if len(figs) > 0 {
		x.Blocks = append(x.Blocks, html.Block{Figures: figs})
	}
	t := &html.Table{Caption: "Cost by cell · " + s.labels(), Head: []string{"cell"}, Sorted: true}
	for _, m := range ms {
		t.Head = append(t.Head, m.Title)
	}
	for i := range s.Cells {
		c := &s.Cells[i]
		if c.Counted == 0 {
			continue
		}
		row := []html.Cell{{Text: s.unbroken(c)}}
		for _, m := range ms {
			row = append(row, estimate(m, c.Figures[m.Name]))
		}
		t.Rows = append(t.Rows, row)
	}
	x.Blocks = append(x.Blocks, html.Block{Table: t, Title: "Cost by cell", Fold: len(t.Rows) > 12})
	return x
}

func (b *drawer) frontSection() html.Section {
	s := b.study
	x := html.Section{ID: "pareto", Title: "What can be had at once", Text: []string{"Every cell by its throughput and a latency. On the front, more of the one costs some of the other; whatever lies above it and to the left is beaten in both."}}
	var figs []html.Figure
	for _, f := range s.Fronts {
		mx, my := &measures[measureAt(f.Throughput)], &measures[measureAt(f.Latency)]
		ax, fx := s.axis(mx)
		ay, fy := s.axis(my)
		c := &plot.Chart{Title: my.Title + " and throughput of every cell", Desc: "The Pareto front and all cells.", X: ax, Y: ay, Height: 260}
		front := plot.Line{Name: "Pareto front", Color: 1, Dots: true, Whiskers: true}
		near := plot.Line{Name: "not to be told from it", Color: 3, Dots: true, Loose: true, Whiskers: true}
		rest := plot.Line{Name: "beaten in both", Color: 6, Dots: true, Loose: true, Whiskers: true}
		t := &html.Table{Caption: "The front, from the least throughput · " + s.labels(), Head: []string{"cell", mx.Title, my.Title, ""}}
		for _, p := range f.Points {
			l := &rest
			switch {
			case p.On:
				l = &front
			case p.Near:
				l = &near
			}
			vx, xlo, xhi := onto(p.cell.Figures[f.Throughput], fx)
			vy, ylo, yhi := onto(p.cell.Figures[f.Latency], fy)
			l.X, l.XLow, l.XHigh = append(l.X, vx), append(l.XLow, xlo), append(l.XHigh, xhi)
			l.Y, l.Low, l.High = append(l.Y, vy), append(l.Low, ylo), append(l.High, yhi)
			place := p.place()
			if p.On {
				n := strconv.Itoa(len(front.X))
				front.Labels = append(front.Labels, n)
				place += ", " + n
			}
			if p.On || p.Near {
				t.Rows = append(t.Rows, []html.Cell{{Text: s.unbroken(p.cell)}, estimate(mx, p.cell.Figures[f.Throughput]), estimate(my, p.cell.Figures[f.Latency]), {Text: place, Chip: map[bool]string{true: "good", false: "plain"}[p.On]}})
			}
		}
		for _, l := range []plot.Line{rest, near, front} {
			if len(l.X) > 0 {
				c.Lines = append(c.Lines, l)
			}
		}
		b.bound(c, my, fy)
		b.draw(&figs, c, "")
		x.Blocks = append(x.Blocks, html.Block{Title: my.Title + " and throughput", Table: t})
	}
	if len(figs) > 0 {
		x.Blocks = append([]html.Block{{Figures: figs}}, x.Blocks...)
	}
	return x
}

// effectsSection holds a chart and a table for each factor.
func (b *drawer) effectsSection() html.Section {
	s := b.study
	x := html.Section{ID: "effects", Title: "What each factor does", Text: []string{effectsText}}
	if len(s.Aliases) > 0 {
		x.Blocks = append(x.Blocks, html.Block{Title: "What this design cannot tell apart", List: s.Aliases})
	}
	fs := s.studied()
	if len(fs) == 0 {
		return html.Section{}
	}
	main := s.mainFigures()
	var figs []html.Figure
	for _, f := range fs {
		b.effectCurve(&figs, f, main)
	}
	if len(figs) > 0 {
		x.Blocks = append(x.Blocks, html.Block{Figures: figs})
	}
	if rows := s.variation(); len(rows) > 1 {
		t := &html.Table{Caption: "Shares of the sum of squares between runs, of logarithms", Head: append([]string{}, rows[0]...)}
		for _, r := range rows[1:] {
			var cells []html.Cell
			for _, v := range r {
				cells = append(cells, html.Cell{Text: v})
			}
			t.Rows = append(t.Rows, cells)
		}
		x.Blocks = append(x.Blocks, html.Block{Title: "Where the variation comes from", Table: t})
	}
	for _, f := range fs {
		name := s.Factors[f].Name
		base := ""
		if e := s.effectsOf(name, nil, true); len(e) > 0 {
			base = e[0].Base
		}
		if t := effectTable("Against "+name+"="+base, s.effectsOf(name, main, false)); t != nil {
			x.Blocks = append(x.Blocks, html.Block{Title: name, Table: t})
		}
		if t := effectTable("Against "+name+"="+base, s.effectsOf(name, main, true)); t != nil {
			x.Blocks = append(x.Blocks, html.Block{Title: "All other figures by " + name, Table: t, Fold: true})
		}
	}
	return x
}

// levelAxis places the levels of a factor: by their numbers where they are some,
// by a logarithm where these span a decade.
func levelAxis(f *Factor, levels []int) (at map[int]float64, a plot.Axis) {
	a = plot.Axis{Label: f.Name}
	if f.Unit != "" {
		a.Label += ", " + f.Unit
	}
	at = map[int]float64{}
	if n := f.numbers(); n != nil && len(levels) > 1 {
		lo, hi := math.Inf(1), math.Inf(-1)
		for _, l := range levels {
			at[l] = n[l]
			lo, hi = min(lo, n[l]), max(hi, n[l])
		}
		a.Log = lo > 0 && hi/lo >= 8
		for _, l := range levels {
			a.Ticks = append(a.Ticks, plot.Tick{At: n[l], Label: f.Levels[l]})
		}
		slices.SortFunc(a.Ticks, func(x, y plot.Tick) int { return cmp.Compare(x.At, y.At) })
		return at, a
	}
	for i, l := range levels {
		at[l] = float64(i)
		a.Ticks = append(a.Ticks, plot.Tick{At: float64(i), Label: f.Levels[l]})
	}
	a.Fixed, a.Min, a.Max = true, -0.4, float64(len(levels))-0.6
	return at, a
}

// effectCurve draws the effect of a factor on the main figures, as ratios.
func (b *drawer) effectCurve(into *[]html.Figure, f int, names []string) {
	s := b.study
	factor := &s.Factors[f]
	levels := s.design.present(s.design.once(), f)
	if len(levels) < 2 {
		return
	}
	at, axis := levelAxis(factor, levels)
	c := &plot.Chart{Title: "Effect of " + factor.Name, Desc: "Ratio of each figure to that at the first level.", X: axis, Y: plot.Axis{Label: "ratio to " + factor.Name + "=" + factor.Levels[levels[0]], Log: true}, Rules: []plot.Rule{{Name: "no effect", Y: 1}}}
	color := 0
	for _, name := range names {
		m := &measures[measureAt(name)]
		color++
		l := plot.Line{Name: m.Title, Color: (color-1)%perChart + 1, Dots: true, Whiskers: true, Loose: factor.numbers() == nil && len(levels) > 2}
		for _, e := range s.effectsOf(factor.Name, []string{name}, false) {
			if !e.Ratio || !e.Change.V.OK {
				continue
			}
			if len(l.X) == 0 {
				base := slices.Index(factor.Levels, e.Base)
				l.X, l.Y, l.Low, l.High = append(l.X, at[base]), append(l.Y, 1), append(l.Low, 1), append(l.High, 1)
			}
			k := slices.Index(factor.Levels, e.Level)
			l.X, l.Y = append(l.X, at[k]), append(l.Y, 1+e.Change.V.V)
			l.Low, l.High = append(l.Low, 1+e.Change.Lo.Or(math.NaN())), append(l.High, 1+e.Change.Hi.Or(math.NaN()))
		}
		if len(l.X) > 1 {
			c.Lines = append(c.Lines, l)
		}
	}
	b.draw(into, c, "")
}

// interactionsSection holds the interaction plots, of the pairs and figures that
// matter, and the table of all.
func (b *drawer) interactionsSection() html.Section {
	s := b.study
	if len(s.Interactions) == 0 {
		return html.Section{}
	}
	x := html.Section{ID: "interactions", Title: "Where factors depend on each other", Text: []string{interactionsText}}
	var figs []html.Figure
	for i := range s.Interactions {
		in := &s.Interactions[i]
		if in.PHolm.OK && in.PHolm.V >= significant || len(figs) >= 12 {
			continue
		}
		b.interaction(&figs, in)
	}
	if len(figs) > 0 {
		x.Blocks = append(x.Blocks, html.Block{Figures: figs})
	}
	t := &html.Table{Caption: "Pairs of factors", Head: []string{"factors", "figure", "p (Holm)", "effect of, between", "how much it changes, at 95 %"}, Sorted: true}
	for i := range s.Interactions {
		in := &s.Interactions[i]
		m := &measures[measureAt(in.Measure)]
		t.Rows = append(t.Rows, []html.Cell{{Text: in.A + " × " + in.B}, {Text: m.Title}, {Text: probability(in.PHolm)}, {Text: in.corner()}, {Text: m.change(in.Corner.V, in.Ratio), Sub: m.changeInterval(in.Corner, in.Ratio)}})
	}
	x.Blocks = append(x.Blocks, html.Block{Title: "All pairs", Table: t, Fold: len(t.Rows) > 16})
	return x
}

// interaction draws a figure over the levels of one factor, a line for each level
// of the other: parallel lines are no interaction.
func (b *drawer) interaction(into *[]html.Figure, in *Interaction) {
	s := b.study
	fa := slices.IndexFunc(s.Factors, func(f Factor) bool { return f.Name == in.A })
	fb := slices.IndexFunc(s.Factors, func(f Factor) bool { return f.Name == in.B })
	obs := s.design.once()
	// The one with more levels, or with numbers, makes the axis.
	if weight(s, obs, fb) > weight(s, obs, fa) {
		fa, fb = fb, fa
	}
	la, lb := s.design.present(obs, fa), s.design.present(obs, fb)
	m := &measures[measureAt(in.Measure)]
	at, axis := levelAxis(&s.Factors[fa], la)
	ay, fy := s.axis(m)
	c := &plot.Chart{Title: m.Title + ": " + in.A + " × " + in.B, Desc: "Average over the other factors; parallel lines are no interaction.", X: axis, Y: ay}
	for i, l := range lb[:min(len(lb), perChart)] {
		line := plot.Line{Name: s.Factors[fb].Name + "=" + s.Factors[fb].Levels[l], Color: i + 1, Dots: true, Whiskers: true}
		for _, k := range la {
			e := s.marginal(m, map[int]int{fa: k, fb: l})
			if !e.V.OK {
				continue
			}
			v, lo, hi := onto(e, fy)
			line.X, line.Y, line.Low, line.High = append(line.X, at[k]), append(line.Y, v), append(line.Low, lo), append(line.High, hi)
		}
		if len(line.X) > 0 {
			c.Lines = append(c.Lines, line)
		}
	}
	b.draw(into, c, "")
}

func weight(s *Study, obs []observation, f int) int {
	w := len(s.design.present(obs, f))
	if s.Factors[f].numbers() != nil {
		w += 100
	}
	return w
}
