package main

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"

	"reprise/internal/plot"
	"reprise/synth/score"
)

// writeFigures draws what the table says in numbers, for the traces that are
// there: real traffic beside the fitted model and beside wrong ones.
func (o *options) writeFigures(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	for _, name := range []string{"conv", "moon"} {
		s, err := o.load(ctx, name)
		if os.IsNotExist(err) {
			continue
		}
		if err != nil {
			return err
		}
		g, _, err := fitted(ctx, s, s, plain, false)
		if err != nil {
			return err
		}
		model, err := g(ctx, 1)
		if err != nil {
			return err
		}
		var figures map[string]plot.Figure
		if name == "conv" {
			figures = azureFigures(s, model)
		} else {
			figures = map[string]plot.Figure{"hit-ratio": hitFigure(s, model, newTreeModel(s).sample(1))}
		}
		for file, f := range figures {
			if err := writeSVG(filepath.Join(dir, file+".svg"), f); err != nil {
				return err
			}
		}
	}
	return nil
}

func writeSVG(name string, f plot.Figure) error {
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	if err := f.WriteSVG(file); err != nil {
		file.Close()
		return err
	}
	return file.Close()
}

type side struct {
	name string
	s    *score.Sample
}

func azureFigures(real, model *score.Sample) map[string]plot.Figure {
	sides := []side{{"real", real}, {"synth", model}, {"Poisson, lengths at random", poissonModel(real, 1)}, {"real arrivals, shuffled lengths", shuffledModel(real, 1)}}
	bursts := &plot.Chart{
		Title: "Burstiness of prompt tokens over time scales",
		Desc:  "Index of dispersion of prompt tokens over the width of the window, Azure conversation trace. Real traffic and the fitted model rise together to about 35 at 100 s; with shuffled lengths it reaches about 15; the Poisson process stays at 1.",
		X:     plot.Axis{Label: "width of the window, s", Log: true},
		Y:     plot.Axis{Label: "variance of tokens in a window, over that of chance", Log: true},
	}
	const load = 0.8
	tails := &plot.Chart{
		Title: fmt.Sprintf("TTFT in a prefill queue at load %g", load),
		Desc:  "Share of requests whose first token takes longer than a time, Azure conversation trace. The fitted model follows real traffic; Poisson arrivals with real lengths end at a fiftieth of its tail.",
		X:     plot.Axis{Label: "TTFT, mean service times", Log: true},
		Y:     plot.Axis{Label: "share of requests that take longer", Log: true},
	}
	work := score.PromptWork(real)
	q := score.Queue{Capacity: score.Capacity(real, work, load)}
	unit := 0.0
	for _, w := range work {
		unit += w / q.Capacity / float64(len(work))
	}
	for _, one := range sides {
		var x, y []float64
		for w := 1.0; w <= real.Horizon/20; w *= math.Sqrt(math.Sqrt(10)) {
			x, y = append(x, w), append(y, score.TokenIDC(one.s, w))
		}
		bursts.Lines = append(bursts.Lines, plot.Line{Name: one.name, X: x, Y: y})
		ttft := q.TTFT(one.s.Arrival, score.PromptWork(one.s))
		slices.Sort(ttft)
		x, y = nil, nil
		for p := 1.0; p*float64(len(ttft)) >= 3; p *= 0.94 {
			x, y = append(x, ttft[min(int((1-p)*float64(len(ttft))), len(ttft)-1)]/unit), append(y, p)
		}
		tails.Lines = append(tails.Lines, plot.Line{Name: one.name, X: x, Y: y})
	}
	figures := map[string]plot.Figure{"token-burstiness": bursts, "ttft": tails}
	for _, f := range score.Figures(real, model) {
		if h, ok := f.(*plot.HeatMap); ok {
			name := "lengths-real"
			if h.Color > 0 {
				name, h.Title = "lengths-synth", "Prompt and output length together: synth"
			} else {
				h.Title = "Prompt and output length together: real"
			}
			figures[name] = h
		}
	}
	return figures
}

func hitFigure(real, model, tree *score.Sample) plot.Figure {
	var sizes []float64
	for _, n := range score.CacheSizes {
		sizes = append(sizes, float64(n))
	}
	sizes = append(sizes, 3*sizes[len(sizes)-1])
	c := &plot.Chart{
		Title: "Hit ratio of a prefix cache over its size",
		Desc:  "Share of prompt blocks that an LRU cache would have held, Mooncake conversation trace. The fitted model follows real traffic; a random walk over the prefix tree keeps the unlimited cache and loses half of the hits at 10,000 blocks.",
		X:     plot.Axis{Label: "cache size, blocks (last point: no limit)", Log: true},
		Y:     plot.Axis{Label: "share of blocks that hit", Percent: true, Zero: true},
	}
	for _, one := range []side{{"real", real}, {"synth", model}, {"random walk over the tree", tree}} {
		c.Lines = append(c.Lines, plot.Line{Name: one.name, X: sizes, Y: score.HitCurve(one.s), Dots: true})
	}
	return c
}
