package html

import (
	"fmt"
	"math"
	"slices"

	"reprise/internal/plot"
	"reprise/report"
)

// A track is a profile with its name and colour on the page.
type track struct {
	*report.Profile
	Name  string
	Color int // place in the palette, from 1
}

// unitOf chooses s or ms for durations in ns of about this size.
func unitOf(ns float64) (name string, factor float64) {
	if ns >= 2e9 {
		return "s", 1e-9
	}
	return "ms", 1e-6
}

func scaled(v []float64, factor float64) []float64 {
	out := make([]float64, len(v))
	for i, x := range v {
		out[i] = x * factor
	}
	return out
}

// builder collects the figures of a section; the first error stays.
type builder struct {
	page *page
	err  error
}

func (b *builder) draw(into *[]figure, f plot.Figure, note string) {
	d, err := draw(f)
	if err != nil {
		if b.err == nil {
			b.err = err
		}
		return
	}
	d.Note = note
	*into = append(*into, d)
}

// lowest is the share at which the axis of a distribution begins.
const lowest = 0.02

// cdfs draws the distributions of latencies.
func (b *builder) cdfs(tracks []track) (figs []figure) {
	for _, f := range []struct {
		name, long string
		of         func(*report.Profile) *report.Curve
	}{
		{"TTFT", "time to first token", func(p *report.Profile) *report.Curve { return &p.TTFT }},
		{"E2E", "time to last token", func(p *report.Profile) *report.Curve { return &p.E2E }},
		{"TPOT", "time per output token after the first, by request", func(p *report.Profile) *report.Curve { return &p.TPOT }},
		{"ITL", "gap between tokens, pooled", func(p *report.Profile) *report.Curve { return &p.ITL }},
	} {
		most := 0.0
		for _, t := range tracks {
			if c := f.of(t.Profile); len(c.X) > 0 {
				most = max(most, c.X[len(c.X)/2])
			}
		}
		unit, factor := unitOf(most)
		chart := &plot.Chart{
			Title: f.name + ": " + f.long, Desc: "Share of all that took at most so long, on a logarithmic axis.",
			X: plot.Axis{Label: f.name + ", " + unit, Log: true}, Y: plot.Axis{Label: "share at or below", Percent: true, Fixed: true, Max: 1},
		}
		from, to := math.Inf(1), 0.0
		for _, t := range tracks {
			if c := f.of(t.Profile); len(c.X) > 1 {
				k, _ := slices.BinarySearch(c.Y, lowest)
				from, to = min(from, c.X[min(k, len(c.X)-1)]), max(to, c.X[len(c.X)-1])
				chart.Lines = append(chart.Lines, plot.Line{Name: t.Name, X: scaled(c.X, factor), Y: c.Y, Color: t.Color, Step: true})
			}
		}
		if len(chart.Lines) > 0 {
			// A few gaps of next to nothing, of tokens that came together, would take
			// most of a logarithmic axis.
			if from > 0 && to > from {
				chart.X.Fixed, chart.X.Min, chart.X.Max = true, from*factor*0.9, to*factor*1.1
			}
			b.draw(&figs, chart, "")
		}
	}
	return figs
}

// overTime is one panel and the same as a drawing for readers without a script.
func (b *builder) overTime(into *[]figure, id, title, unit, note string, tracks []track, of func(*report.Profile) (y, low, high []float64)) {
	p := panel{ID: id, Title: title, Unit: unit}
	chart := &plot.Chart{Title: title, Desc: title + " over the time of the run.", Height: 150, Y: plot.Axis{Label: unit, Zero: true}}
	longest := 0.0
	for _, t := range tracks {
		longest = max(longest, t.Span().Seconds())
	}
	chart.X.Label = "time of the run, s"
	div := 1.0
	if longest > 7200 {
		chart.X.Label, div = "time of the run, min", 60
	}
	for _, t := range tracks {
		y, low, high := of(t.Profile)
		if y == nil || !slices.ContainsFunc(y, func(v float64) bool { return !math.IsNaN(v) }) {
			continue
		}
		x := make([]float64, len(y))
		for k := range x {
			x[k] = (float64(k) + 0.5) * t.Width.Seconds()
		}
		if len(x) > len(p.X) {
			p.X = x
		}
		p.Lines = append(p.Lines, line{t.Name, t.Color, y, low, high})
		chart.Lines = append(chart.Lines, plot.Line{Name: t.Name, X: scaled(x, 1/div), Y: y, Low: low, High: high, Color: t.Color, Dots: len(y) == 1})
	}
	if len(p.Lines) == 0 {
		return
	}
	for i := range p.Lines {
		l := &p.Lines[i]
		l.Y, l.Low, l.High = padded(l.Y, len(p.X)), padded(l.Low, len(p.X)), padded(l.High, len(p.X))
	}
	n := len(*into)
	b.draw(into, chart, note)
	if len(*into) > n {
		(*into)[n].Panel = id
		b.page.live = append(b.page.live, p)
	}
}

// padded fills a shorter run up with nothing.
func padded(v points, n int) points {
	if v == nil {
		return nil
	}
	v = slices.Clone(v)
	for len(v) < n {
		v = append(v, math.NaN())
	}
	return v
}

func each(p *report.Profile, f func(*report.TimeWindow) float64) []float64 {
	out := make([]float64, len(p.Windows))
	for i := range p.Windows {
		out[i] = f(&p.Windows[i])
	}
	return out
}

// times draws everything that has a time axis.
func (b *builder) times(tracks []track) (figs []figure) {
	if len(tracks) == 0 {
		return nil
	}
	width := tracks[0].Width.Seconds()
	band := fmt.Sprintf("Median of the requests scheduled in each %s; the band is p10 to p90, where a window has at least %d successes.", units(tracks[0].Width), report.BandOf)
	for _, f := range []struct {
		id, name string
		of       func(*report.TimeWindow) report.Band
	}{
		{"ttft", "TTFT", func(w *report.TimeWindow) report.Band { return w.TTFT }},
		{"e2e", "E2E", func(w *report.TimeWindow) report.Band { return w.E2E }},
		{"tpot", "TPOT", func(w *report.TimeWindow) report.Band { return w.TPOT }},
	} {
		most := 0.0
		for _, t := range tracks {
			for i := range t.Windows {
				if v := f.of(&t.Windows[i]).P50; v > most {
					most = v
				}
			}
		}
		unit, factor := unitOf(most)
		b.overTime(&figs, f.id, f.name, unit, band, tracks, func(p *report.Profile) (y, low, high []float64) {
			return each(p, func(w *report.TimeWindow) float64 { return f.of(w).P50 * factor }),
				each(p, func(w *report.TimeWindow) float64 { return f.of(w).P10 * factor }),
				each(p, func(w *report.TimeWindow) float64 { return f.of(w).P90 * factor })
		})
	}
	plain := func(id, title, unit, note string, of func(*report.TimeWindow) float64) {
		b.overTime(&figs, id, title, unit, note, tracks, func(p *report.Profile) (y, low, high []float64) { return each(p, of), nil, nil })
	}
	plain("tokens", "Output tokens received", "tokens/s", "Tokens whose events fall into each window.", func(w *report.TimeWindow) float64 { return w.OutputTokens / width })
	plain("offered", "Requests scheduled", "requests/s", "", func(w *report.TimeWindow) float64 { return float64(w.Requests) / width })
	plain("flight", "Requests in flight, by the client", "requests", "Sent and not yet ended, mean of each window.", func(w *report.TimeWindow) float64 { return w.InFlight })
	if slices.ContainsFunc(tracks, func(t track) bool {
		return slices.ContainsFunc(t.Windows, func(w report.TimeWindow) bool { return w.Failed > 0 })
	}) {
		plain("failed", "Requests failed or shed", "requests/s", "By the time they were scheduled.", func(w *report.TimeWindow) float64 { return float64(w.Failed) / width })
	}
	b.gauges(&figs, tracks)
	return figs
}

// gauges draws the telemetry, on the axis of the requests.
func (b *builder) gauges(into *[]figure, tracks []track) {
	var seen []string
	for _, t := range tracks {
		for i := range t.Telemetry {
			g := &t.Telemetry[i]
			if slices.Contains(seen, g.Metric) {
				continue
			}
			seen = append(seen, g.Metric)
			devices := 0
			of := func(p *report.Profile) *report.Gauge {
				for k := range p.Telemetry {
					if p.Telemetry[k].Metric == g.Metric {
						return &p.Telemetry[k]
					}
				}
				return nil
			}
			for _, u := range tracks {
				if x := of(u.Profile); x != nil {
					devices = max(devices, x.Devices)
				}
			}
			note := "Mean of each window; the band is the least and greatest reading."
			if devices > 1 {
				note = fmt.Sprintf("Mean over %d devices and each window; the band is the least and greatest reading of any.", devices)
			}
			b.overTime(into, fmt.Sprintf("gauge%d", len(seen)), g.Title, g.Unit, note, tracks, func(p *report.Profile) (y, low, high []float64) {
				if x := of(p); x != nil {
					return x.Mean, x.Low, x.High
				}
				return nil, nil, nil
			})
		}
	}
}

// load draws latency and throughput against the number in flight, a dot for each
// window in time.
func (b *builder) load(tracks []track) (figs []figure) {
	type point func(*report.TimeWindow) float64
	scatter := func(title, y string, note string, of point) {
		chart := &plot.Chart{Title: title, Desc: "A dot for each window in time.", X: plot.Axis{Label: "requests in flight, mean of the window", Zero: true}, Y: plot.Axis{Label: y, Zero: true}}
		for _, t := range tracks {
			l := plot.Line{Name: t.Name, Color: t.Color, Dots: true, Loose: true}
			for i := range t.Windows {
				if w := &t.Windows[i]; w.InFlight > 0 && !math.IsNaN(of(w)) {
					l.X, l.Y = append(l.X, w.InFlight), append(l.Y, of(w))
				}
			}
			if len(l.X) > 0 {
				chart.Lines = append(chart.Lines, l)
			}
		}
		if len(chart.Lines) > 0 {
			b.draw(&figs, chart, note)
		}
	}
	most := 0.0
	width := 1.0
	for _, t := range tracks {
		width = t.Width.Seconds()
		for _, w := range t.Windows {
			if w.TTFT.P50 > most {
				most = w.TTFT.P50
			}
		}
	}
	unit, factor := unitOf(most)
	scatter("TTFT against requests in flight", "median TTFT, "+unit, "", func(w *report.TimeWindow) float64 { return w.TTFT.P50 * factor })
	scatter("Throughput against requests in flight", "output tokens/s", "Where the dots stop rising, the server is full.", func(w *report.TimeWindow) float64 { return w.OutputTokens / width })

	kv := &plot.Chart{Title: "KV cache against requests in flight", Desc: "Used tokens of the cache at ranges of concurrency.", X: plot.Axis{Label: "requests in flight, mean of the range", Zero: true}, Y: plot.Axis{Label: "tokens in the KV cache, thousands", Zero: true}}
	for _, t := range tracks {
		if t.Findings == nil || t.Findings.KV == nil {
			continue
		}
		l := plot.Line{Name: t.Name, Color: t.Color, Dots: true}
		for _, g := range t.Findings.KV.Growth {
			l.X, l.Y = append(l.X, g.Flight), append(l.Y, g.Used/1000)
		}
		if len(l.X) > 0 {
			kv.Lines = append(kv.Lines, l)
		}
	}
	if len(kv.Lines) > 0 {
		b.draw(&figs, kv, "How the cache grows with concurrency; a lower line holds the same requests in less.")
	}
	return figs
}

// heats draws the densities of all tracks on one grid and one scale of colour.
func (b *builder) heats(tracks []track) (figs []figure) {
	for _, h := range []struct {
		title, x, y, what string
		of                func(*report.Profile) *report.Density
	}{
		{"TTFT against prompt tokens", "prompt tokens", "TTFT", "prompt tokens as the server counted them", func(p *report.Profile) *report.Density { return &p.Prompt }},
		{"E2E against output tokens", "output tokens", "E2E", "output tokens received", func(p *report.Profile) *report.Density { return &p.Output }},
	} {
		i0, i1, j0, j1 := len(report.TokenEdges), 0, len(report.LatencyEdges), 0
		top := 0.0
		for _, t := range tracks {
			d := h.of(t.Profile)
			for j, row := range d.Cells {
				for i, n := range row {
					if n > 0 {
						i0, i1, j0, j1 = min(i0, i), max(i1, i+1), min(j0, j), max(j1, j+1)
						top = max(top, float64(n)/float64(d.N))
					}
				}
			}
		}
		if i1 == 0 {
			continue
		}
		// A little air, so that a single row of cells is no bar across the chart.
		i0, i1 = max(0, i0-1), min(len(report.TokenEdges)-1, i1+1)
		j0, j1 = max(0, j0-1), min(len(report.LatencyEdges)-1, j1+1)
		unit, factor := unitOf(report.LatencyEdges[j1] / 4)
		for _, t := range tracks {
			d := h.of(t.Profile)
			if d.N == 0 {
				continue
			}
			m := &plot.HeatMap{
				Title: h.title, Desc: "Share of requests by " + h.what + " and " + h.y + ".",
				X: plot.Axis{Label: h.x, Log: true}, Y: plot.Axis{Label: h.y + ", " + unit, Log: true},
				XEdges: report.TokenEdges[i0 : i1+1], YEdges: scaled(report.LatencyEdges[j0:j1+1], factor),
				Top: top, Label: "of the requests", Color: t.Color - 1, Height: 220,
			}
			if len(tracks) > 1 {
				m.Title = t.Name + ": " + h.title
			}
			for _, row := range d.Cells[j0:j1] {
				cells := make([]float64, i1-i0)
				for i, n := range row[i0:i1] {
					cells[i] = float64(n) / float64(d.N)
				}
				m.Values = append(m.Values, cells)
			}
			b.draw(&figs, m, "")
		}
	}
	return figs
}

// shifts draws the difference between the sides, quantile by quantile.
func (b *builder) shifts(c *report.Comparison) (figs []figure) {
	all := c.Shift
	for _, name := range []string{"ttft", "e2e"} {
		most := 0.0
		var l plot.Line
		for _, s := range all {
			if s.Metric == name && s.Diff.V.OK {
				most = max(most, math.Abs(s.Diff.V.V))
			}
		}
		unit, factor := unitOf(most)
		orNaN := func(n report.Number) float64 { return n.Or(math.NaN()) * factor }
		for _, s := range all {
			if s.Metric == name {
				l.X = append(l.X, s.P*100)
				l.Y, l.Low, l.High = append(l.Y, orNaN(s.Diff.V)), append(l.Low, orNaN(s.Diff.Lo)), append(l.High, orNaN(s.Diff.Hi))
			}
		}
		if len(l.X) < 2 {
			continue
		}
		mark, title := c.Mark(), heading(name)+": difference at each quantile"
		if c.Family > 1 {
			title = mark + ", " + title
		}
		l.Color, l.Name, l.Dots = 3, mark+" - A, with its interval at 95 %", true
		b.draw(&figs, &plot.Chart{
			Title: title, Desc: mark + " less A from the 5th to the 99th percentile, with intervals.",
			X: plot.Axis{Label: "percentile", Fixed: true, Max: 100}, Y: plot.Axis{Label: mark + " - A, " + unit}, Lines: []plot.Line{l}, Rules: []plot.Rule{{Name: "no difference"}},
		}, "Below the line "+mark+" is faster. Intervals are of each quantile alone.")
	}
	return figs
}
