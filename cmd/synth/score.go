package main

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"sync"
	"time"

	ucli "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/synth"
	"reprise/synth/score"
)

func scoreCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "score",
		Usage:     "compare what a model writes with a real trace",
		UsageText: "synth score MODEL TRACE... [flags]",
		Description: `Score generates traces from a model, as long as the trace and with several seeds, and
compares each with the trace: arrivals, burstiness over scales, lengths and how they depend
on each other, prefix reuse, sessions, and what a prefill queue makes of them. Values are
medians over the seeds. The floor is what parts of the trace differ by among themselves, and
no limit asks for less than that.

Score a model on a trace that it was not fitted to. The rate is scaled to the trace's mean;
--keep-rate leaves it. Queues compare shape at equal rate.

Examples:
  synth score model.json held-out.parquet
  synth score model:azure-conv trace.parquet --seeds 20 --html score.html
  synth score model.json held-out.parquet --markdown > score.md

Exit status is 0 if every limit is kept, 1 if one is not or it failed, 2 for a usage error,
130 if interrupted.`,
		Flags: append([]ucli.Flag{
			&ucli.IntFlag{Name: "seeds", Value: 5, Usage: "generate `N` traces"},
			&ucli.Uint64Flag{Name: "seed", Value: 1, Usage: "first seed is `N`"},
			&ucli.BoolFlag{Name: "keep-rate", Usage: "do not scale the rate to the trace's"},
			&ucli.StringFlag{Name: "order", Usage: "play a profile `ORDER`: recorded or resampled", DefaultText: "as the model says"},
			&ucli.BoolFlag{Name: "markdown", Usage: "print Markdown"},
			&ucli.StringFlag{Name: "html", Usage: "write table and pictures to `FILE`"},
			&ucli.StringFlag{Name: "svg", Usage: "write each picture to `DIR`"},
			&ucli.BoolFlag{Name: "force", Usage: "replace the files of --html and --svg if they exist"},
			cli.JSONFlag(),
		}, readFlags()...),
		Action: cli.Action(scoreModel),
	}
}

// maxSeeds bounds the work of a typing mistake.
const maxSeeds = 1000

func scoreModel(ctx context.Context, c *ucli.Context) error {
	if c.NArg() < 2 {
		return cli.Usagef("synth score model.json held-out.parquet", "score takes a model and a trace and got %d arguments", c.NArg())
	}
	seeds := c.Int("seeds")
	if seeds < 1 || seeds > maxSeeds {
		return cli.Usagef("", "--seeds %d: want 1 to %d", seeds, maxSeeds)
	}
	out, err := score.OutputOf(c)
	if err != nil {
		return err
	}
	m, err := openModel(c.Args().First())
	if err != nil {
		return err
	}
	real, _, _, err := load(ctx, c, c.Args().Slice()[1:], math.MaxInt64)
	if err != nil {
		return err
	}
	real = real.Dequantise(1)
	if real.N() < 2 || real.Horizon <= 0 {
		return fmt.Errorf("%s: %d rows in no time are nothing to compare with", real.Name, real.N())
	}
	o := synth.GenOptions{Duration: time.Duration(real.Horizon * float64(time.Second)), Order: c.String("order")}
	if rate := m.Rate(); !c.Bool("keep-rate") && rate > 0 {
		o.Rate = real.Rate() / rate
	}
	reports := make([]*score.Report, seeds)
	samples := make([]*score.Sample, seeds)
	errs := make([]error, seeds)
	floor := score.NewFloor(real)
	var wg sync.WaitGroup
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	for i := range seeds {
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			one := o
			one.Seed = c.Uint64("seed") + uint64(i)
			s, err := m.Sample(ctx, one)
			if err != nil {
				errs[i] = err
				return
			}
			s.Name, s.Horizon = c.Args().First(), real.Horizon
			reports[i] = score.CompareWith(floor, real, s)
			if i == 0 {
				samples[0] = s // the one that is drawn
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	r := score.Median(reports)
	if m.HoldsSourceRows {
		r.Notes = append(r.Notes, "the model holds rows of its source")
	}
	if m.Source.Rows == real.N() && math.Abs(m.Source.Seconds-real.Horizon) < 1e-3*real.Horizon {
		r.Notes = append(r.Notes, "the trace has the rows and the length of the one that the model was learnt from: this is no held-out score")
	}
	if o.Rate != 0 && (o.Rate < 0.99 || o.Rate > 1.01) {
		r.Notes = append(r.Notes, fmt.Sprintf("the model's rate was multiplied by %.3g to meet the trace's", o.Rate))
	}
	return out.Write(c, r, real, samples[0])
}
