package score

import (
	"fmt"
	"io"
	"math"

	"reprise/internal/plot"
	"reprise/internal/stats"
	"reprise/internal/units"
)

// Figures draws what a table of distances hides: the distributions, burstiness
// over scales, the joint lengths, the hit curve and what a queue feels. A
// figure that one side has no data for is left out.
func Figures(reference, other *Sample) []plot.Figure {
	var f []plot.Figure
	if reference.N() < 2 || other.N() < 2 {
		return nil
	}
	f = append(f, cdf("Gaps between arrivals, over their mean", "gap / mean gap", levelled(Gaps(reference)), levelled(Gaps(other))))
	f = append(f, burstiness(reference, other))
	for _, side := range []struct {
		name string
		a, b []int32
	}{{"Prompt", reference.In, other.In}, {"Output", reference.Out, other.Out}} {
		if a, b := Known(side.a), Known(side.b); len(a) > 0 && len(b) > 0 {
			f = append(f, cdf(side.name+" length", side.name+" tokens", a, b))
		}
	}
	f = append(f, joint(reference, other)...)
	if reference.HasBlocks() && other.HasBlocks() {
		f = append(f, hits(reference, other))
		if a, b := ReuseGaps(reference), ReuseGaps(other); len(a) > 0 && len(b) > 0 {
			f = append(f, cdf("Time until a prefix is used again", "reuse gap, s", a, b))
		}
	}
	if a, b := ThinkTimes(reference), ThinkTimes(other); len(a) > 0 && len(b) > 0 {
		f = append(f, cdf("Think time between turns", "think time, s", a, b))
	}
	if a, b := PromptWork(reference), PromptWork(other); a != nil && b != nil {
		f = append(f, queues(reference, other, a, b, "TTFT in a prefill queue"))
	}
	if reference.HasBlocks() && other.HasBlocks() {
		f = append(f, queues(reference, other, CacheWork(reference, QueueCache), CacheWork(other, QueueCache),
			fmt.Sprintf("TTFT in a prefill queue behind a cache of %s blocks", units.Count(QueueCache))))
	}
	return f
}

// cdfPoints are enough for a drawing of 400 units.
const cdfPoints = 240

func cdf(title, label string, reference, other []float64) *plot.Chart {
	ax, ay := plot.CDF(reference, cdfPoints)
	bx, by := plot.CDF(other, cdfPoints)
	return &plot.Chart{
		Title: title,
		Desc: fmt.Sprintf("Two cumulative distributions on a logarithmic axis. Medians: reference %.3g, other %.3g. Greatest distance between the two: %.3f.",
			stats.Quantile(sorted(reference), 0.5), stats.Quantile(sorted(other), 0.5), KS(reference, other)),
		X:     plot.Axis{Label: label, Log: true},
		Y:     plot.Axis{Label: "share at or below", Percent: true, Fixed: true, Max: 1},
		Lines: []plot.Line{{Name: "reference", X: ax, Y: ay, Step: true}, {Name: "other", X: bx, Y: by, Step: true}},
	}
}

// burstiness draws the index of dispersion over window widths, with the span of
// the reference's halves as a band.
func burstiness(reference, other *Sample) *plot.Chart {
	var x, a, b, lo, hi []float64
	h1, h2 := reference.Halves()
	for w := max(0.1, reference.Tick); w <= reference.Horizon/10; w *= math.Sqrt(math.Sqrt(10)) {
		p, q := IDC(h1, w), IDC(h2, w)
		x = append(x, w)
		a, b = append(a, IDC(reference, w)), append(b, IDC(other, w))
		lo, hi = append(lo, min(p, q)), append(hi, max(p, q))
	}
	return &plot.Chart{
		Title: "Burstiness over time scales",
		Desc:  "Index of dispersion of counts, variance over mean of the arrivals in a window, over the width of the window. A Poisson process has 1 everywhere. The band spans the two halves of the reference.",
		X:     plot.Axis{Label: "width of the window, s", Log: true},
		Y:     plot.Axis{Label: "variance / mean of counts", Log: true},
		Lines: []plot.Line{
			{Name: "reference", X: x, Y: a},
			{Name: "other", X: x, Y: b},
			{Name: "halves of the reference", X: x, Low: lo, High: hi, Color: 1},
		},
		Rules: []plot.Rule{{Name: "Poisson", Y: 1}},
	}
}

// joint draws where pairs of lengths lie, both sides on one scale.
func joint(reference, other *Sample) []plot.Figure {
	ax, ay := pairs(reference)
	bx, by := pairs(other)
	if len(ax) == 0 || len(bx) == 0 {
		return nil
	}
	const bins = 28
	xe, ye := edges(append(append([]float64{}, ax...), bx...), bins), edges(append(append([]float64{}, ay...), by...), bins)
	av, bv := grid(ax, ay, xe, ye), grid(bx, by, xe, ye)
	top := 0.0
	for j := range av {
		for i := range av[j] {
			top = max(top, av[j][i], bv[j][i])
		}
	}
	one := func(name string, s *Sample, v [][]float64, color int) plot.Figure {
		return &plot.HeatMap{
			Title: "Prompt and output length together: " + name,
			Desc: fmt.Sprintf("Share of requests by prompt length and output length, on logarithmic axes. The prompt length explains %.3g of the variance of the logarithm of the output length.",
				Eta2(s, 20)),
			X: plot.Axis{Label: "prompt tokens", Log: true}, Y: plot.Axis{Label: "output tokens", Log: true},
			XEdges: xe, YEdges: ye, Values: v, Top: top, Label: "of requests (root scale)", Color: color,
		}
	}
	return []plot.Figure{one("reference", reference, av, 0), one("other", other, bv, 1)}
}

// edges cuts the span of positive values into bins of equal ratio.
func edges(x []float64, bins int) []float64 {
	s := sorted(x)
	lo, hi := max(s[0], 1), max(s[len(s)-1], 1)+1
	e := make([]float64, bins+1)
	for i := range e {
		e[i] = math.Exp(math.Log(lo) + float64(i)/float64(bins)*(math.Log(hi)-math.Log(lo)))
	}
	return e
}

func grid(x, y, xe, ye []float64) [][]float64 {
	v := make([][]float64, len(ye)-1)
	for j := range v {
		v[j] = make([]float64, len(xe)-1)
	}
	bin := func(v float64, e []float64) int {
		k := int((math.Log(max(v, 1)) - math.Log(e[0])) / (math.Log(e[len(e)-1]) - math.Log(e[0])) * float64(len(e)-1))
		return min(max(k, 0), len(e)-2)
	}
	for i := range x {
		v[bin(y[i], ye)][bin(x[i], xe)] += 1 / float64(len(x))
	}
	return v
}

func hits(reference, other *Sample) *plot.Chart {
	sizes := []float64{}
	for _, n := range CacheSizes {
		sizes = append(sizes, float64(n))
	}
	// The unlimited cache stands a step beyond the largest.
	sizes = append(sizes, 3*sizes[len(sizes)-1])
	a, b := HitCurve(reference), HitCurve(other)
	return &plot.Chart{
		Title: "Hit ratio of a prefix cache over its size",
		Desc: fmt.Sprintf("Share of prompt blocks that an LRU cache would have held, by cache size; the last point is a cache without limit. Without limit: reference %.3f, other %.3f.",
			a[len(a)-1], b[len(b)-1]),
		X:     plot.Axis{Label: "cache size, blocks (last point: no limit)", Log: true},
		Y:     plot.Axis{Label: "share of blocks that hit", Percent: true, Zero: true},
		Lines: []plot.Line{{Name: "reference", X: sizes, Y: a, Dots: true}, {Name: "other", X: sizes, Y: b, Dots: true}},
	}
}

// queues draws the share of requests that wait longer than t, so that the tail
// can be seen.
func queues(reference, other *Sample, work, otherWork []float64, title string) *plot.Chart {
	c := &plot.Chart{
		Title: title,
		X:     plot.Axis{Label: "TTFT, mean service times", Log: true},
		Y:     plot.Axis{Label: "share of requests that take longer", Log: true},
	}
	if !comparable(reference, other, work, otherWork) {
		return c
	}
	o := other.AtRate(reference.Rate())
	for i, rho := range []float64{0.5, 0.8} {
		q := Queue{Capacity(reference, work, rho)}
		unit := mean(work) / q.Capacity
		for k, v := range [][]float64{q.TTFT(reference.Arrival, work), q.TTFT(o.Arrival, otherWork)} {
			x, y := survival(v, unit)
			c.Lines = append(c.Lines, plot.Line{Name: fmt.Sprintf("%s, load %g", []string{"reference", "other"}[k], rho), X: x, Y: y, Color: 1 + 2*i + k})
		}
		r := CompareQueues(reference, other, work, otherWork, rho)
		c.Desc += fmt.Sprintf("At load %g the p99 of other is %.2f times the reference's. ", rho, r.P99)
	}
	c.Desc = "Share of requests whose first token takes longer than a time, in a queue with one server. " + c.Desc
	return c
}

// survival returns points of 1 - F, dense in the tail.
func survival(v []float64, unit float64) (x, y []float64) {
	s := sorted(v)
	n := len(s)
	for p := 1.0; p >= 3/float64(n) && len(x) < 400; p *= 0.94 {
		i := min(int((1-p)*float64(n)), n-1)
		x, y = append(x, s[i]/unit), append(y, p)
	}
	return x, y
}

// WriteHTML writes the table and the figures as one page.
func (r *Report) WriteHTML(w io.Writer, title string, reference, other *Sample) error {
	head, rows := r.table(r.Seeds > 1)
	marks := make([]string, 0, len(rows))
	verdict := len(head) - 1
	if r.Seeds > 1 {
		verdict--
	}
	for i, row := range rows {
		marks = append(marks, row[verdict])
		// The verdict is the last cell, which the mark colours.
		if r.Seeds > 1 {
			rows[i][verdict], rows[i][verdict+1] = row[verdict+1], row[verdict]
		}
	}
	if r.Seeds > 1 {
		head[verdict], head[verdict+1] = head[verdict+1], head[verdict]
	}
	text := []string{"Reference: " + r.Reference.describe(), "Other: " + r.Other.describe(), r.summary() + "."}
	text = append(text, r.Notes...)
	sections := []plot.Section{{Text: text, Head: head, Rows: rows, Marks: marks}, {Text: []string{explanation}}}
	if figures := Figures(reference, other); len(figures) > 0 {
		sections = append(sections, plot.Section{Title: "Figures", Figures: figures})
	}
	return plot.WritePage(w, title, sections...)
}
