package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"reprise/backends/sim"
	"reprise/internal/cli"
	"reprise/internal/durable"
	"reprise/internal/units"
	"reprise/replay/simfit"
)

func simFitCommand() *urfave.Command {
	return &urfave.Command{
		Name:      "sim-fit",
		Usage:     "calibrate the simulated engine to a run against a real one",
		ArgsUsage: "RUN",
		Description: `
Sim-fit simulates the requests of RUN, a run's directory, again and again in virtual time
and finds the constants of the cost model with which their latencies are those that were
measured. It writes cost.json, with the errors of the fit on RUN and on the runs of
--validate, and prints them. Simulate that engine with --backend sim=cost.json.

The engine's block size, blocks and limits are taken from the run where the engine
reported them; --option gives the others by the engine's own flag names.

Examples:
  replay sim-fit run/ -o cost.json
  replay sim-fit run/ --validate heavier/ --option max-num-batched-tokens=512 --option max-num-seqs=256 -o cost.json
  replay trace.parquet --backend sim=cost.json --virtual --speedup 3`,
		Flags: []urfave.Flag{
			&urfave.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "cost.json", Usage: "`FILE` to write"},
			&urfave.BoolFlag{Name: "force", Usage: "replace it"},
			&urfave.StringSliceFlag{Name: "validate", Usage: "also tell the errors on this other `RUN` against the same engine"},
			&urfave.StringSliceFlag{Name: "option", Usage: "`KEY=VALUE` of the engine's configuration: block-size, num-gpu-blocks, max-num-seqs, max-num-batched-tokens, max-model-len, prefix-caching, batching"},
			&urfave.IntFlag{Name: "evaluations", Value: simfit.DefaultEvaluations, Usage: "simulate the run at most `N` times"},
			&urfave.BoolFlag{Name: "json", Usage: "print what is written"},
			&urfave.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "no progress on standard error"},
		},
		Action: simFit,
	}
}

// simFit is the action of `replay sim-fit RUN`.
func simFit(c *urfave.Context) error {
	if c.NArg() != 1 {
		return cli.Usagef("replay sim-fit run/ -o cost.json", "want the directory of one run, got %d arguments", c.NArg())
	}
	if n := c.Int("evaluations"); n < 50 || n > 100_000 {
		return cli.Usagef("", "--evaluations is %d, want 50 to 100000", n)
	}
	out := c.String("output")
	if _, err := os.Stat(out); err == nil && !c.Bool("force") {
		return cli.Usagef("name another with -o, or replace it with --force", "%s is there already", out)
	}
	ctx, _, done := signals(c.App.ErrWriter)
	defer done()
	run, err := simfit.Open(c.Args().First())
	if err != nil {
		return err
	}
	var others []*simfit.Run
	for _, dir := range c.StringSlice("validate") {
		o, err := simfit.Open(dir)
		if err != nil {
			return err
		}
		others = append(others, o)
	}
	f, opts, err := describeEngine(run, c.StringSlice("option"))
	if err != nil {
		return err
	}
	conf, _, err := sim.Virtual(opts)
	if err != nil {
		return cli.Usagef("", "%w", err)
	}
	o := simfit.Options{Evaluations: c.Int("evaluations")}
	if !c.Bool("quiet") {
		for _, a := range f.Assumed {
			fmt.Fprintf(c.App.ErrWriter, "warning: neither the run nor an option says the engine's %s: --option %s=N\n", a, a)
		}
		o.Say = func(n int, loss float64) {
			fmt.Fprintf(c.App.ErrWriter, "%d simulations, the best is %s off in the mean\n", n, units.Percent(loss))
		}
	}
	res, err := simfit.Fit(ctx, run, conf, o)
	if errors.Is(err, context.Canceled) {
		return &cli.Error{Code: cli.Interrupted}
	}
	if err != nil {
		return err
	}
	f.Cost, f.Start, f.Loss, f.Evaluations, f.Fit = res.Cost, res.Start, res.Loss, res.Evaluations, res.Run
	for _, other := range others {
		v, err := simfit.Compare(ctx, other, conf, res.Cost)
		if err != nil {
			return err
		}
		f.Validations = append(f.Validations, v)
	}
	b, err := f.Encode()
	if err != nil {
		return err
	}
	if err := durable.WriteFile(out, b); err != nil {
		return err
	}
	if c.Bool("json") {
		_, err := c.App.Writer.Write(b)
		return err
	}
	k := f.Cost
	fmt.Fprintf(c.App.Writer, "%s %s, by %d simulations of %s\n\n", f.Engine, f.Release, f.Evaluations, run.Name)
	fmt.Fprintf(c.App.Writer, "a pass takes %s, %s a sequence, at least %s or %s a token,\n%.3g ns a pair of tokens in prefills, %.3g ns a token of context in decodes; a request %s before the queue\n\n",
		ns(k.Step), ns(k.Seq), ns(k.Weights), ns(k.Token), k.Pair, k.KV, ns(k.Admit))
	if err := renderFit(c.App.Writer, f); err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.App.Writer, "\n%s: replay TRACE --backend sim=%s --virtual\n", out, out)
	return err
}

func ns(v float64) string { return units.Duration(time.Duration(v)) }

// renderFit writes how far simulations with a fitted cost were off.
func renderFit(w io.Writer, f *sim.CostFile) error {
	var t cli.Table
	t.Head = []string{"simulated / measured", "requests", "rate", "TTFT p50", "p90", "E2E p50", "p90", "TPOT p50", "p90", "cached"}
	row := func(name string, r *sim.CostRun) {
		cells := []string{name, units.Count(r.Requests), fmt.Sprintf("%.3g/s", r.Rate)}
		for _, metric := range []string{"ttft", "e2e", "tpot"} {
			for _, q := range []float64{0.5, 0.9} {
				cell := "-"
				for _, e := range r.Errors {
					if e.Metric == metric && e.Quantile == q {
						cell = fmt.Sprintf("%+.1f %%", 100*e.Error)
					}
				}
				cells = append(cells, cell)
			}
		}
		cached := "-"
		if r.Cached > 0 {
			cached = fmt.Sprintf("%+.1f %%", 100*(float64(r.Simulated)/float64(r.Cached)-1))
		}
		t.Row(append(cells, cached)...)
	}
	row("fit "+f.Fit.Run, &f.Fit)
	for i := range f.Validations {
		row("other "+f.Validations[i].Run, &f.Validations[i])
	}
	return t.Write(w, "")
}

// describeEngine says what the run's engine was, from what it reported of itself
// and from options.
func describeEngine(run *simfit.Run, options []string) (*sim.CostFile, sim.Options, error) {
	m := run.Manifest
	f := &sim.CostFile{Version: sim.CostFileVersion, Created: time.Now().UTC().Truncate(time.Second), Program: "replay " + m.Program.Version, Name: "fitted"}
	conf := map[string]string{}
	if i := m.Server.Info; i != nil {
		f.Engine, f.Release, f.Model = i.Engine, i.Version, i.Model
		conf = i.Config
		f.Config.MaxModelLen = i.MaxLen
		f.Config.NoPrefixCaching = i.Cache.Off
		f.Config.BlockSize = i.Cache.Block
		if i.Cache.Block > 0 {
			f.Config.NumGPUBlocks = int(i.Cache.Tokens)/i.Cache.Block + 1
		}
		if b := conf["batching"]; b != "continuous" {
			f.Config.Batching = b
		}
	}
	given := map[string]string{}
	for _, kv := range options {
		k, v, ok := strings.Cut(kv, "=")
		if !ok {
			return nil, sim.Options{}, cli.Usagef("--option max-num-seqs=64", "--option %q is not KEY=VALUE", kv)
		}
		given[strings.TrimSuffix(k, "-override")] = v
	}
	d := sim.Options{}
	preset, _, err := d.Engine()
	if err != nil {
		return nil, d, err
	}
	for _, n := range []struct {
		key   string
		of    *int
		usual int
	}{
		{"block-size", &f.Config.BlockSize, preset.BlockSize},
		{"num-gpu-blocks", &f.Config.NumGPUBlocks, preset.NumGPUBlocks},
		{"max-num-seqs", &f.Config.MaxNumSeqs, preset.MaxNumSeqs},
		{"max-num-batched-tokens", &f.Config.MaxNumBatchedTokens, preset.MaxNumBatchedTokens},
		{"max-model-len", &f.Config.MaxModelLen, 0},
	} {
		said := conf[strings.ReplaceAll(n.key, "-", "_")]
		if v, ok := given[n.key]; ok {
			delete(given, n.key)
			said = v
			if k, err := strconv.Atoi(v); err != nil || k < 1 {
				return nil, d, cli.Usagef("", "--option %s is %q, want a positive number", n.key, v)
			}
		}
		if k, err := strconv.Atoi(said); err == nil && k > 0 {
			*n.of = k
		}
		if *n.of <= 1 {
			*n.of = n.usual
			if n.key == "max-model-len" {
				*n.of = (f.Config.NumGPUBlocks - 1) * f.Config.BlockSize
			}
			f.Assumed = append(f.Assumed, n.key)
		}
	}
	// One request of full length must fit.
	f.Config.MaxModelLen = min(f.Config.MaxModelLen, (f.Config.NumGPUBlocks-1)*f.Config.BlockSize)
	if v, ok := given["prefix-caching"]; ok {
		on, err := strconv.ParseBool(v)
		if err != nil {
			return nil, d, cli.Usagef("", "--option prefix-caching is %q, want true or false", v)
		}
		f.Config.NoPrefixCaching = !on
		delete(given, "prefix-caching")
	}
	if v, ok := given["batching"]; ok {
		f.Config.Batching = v
		delete(given, "batching")
	}
	for k := range given {
		return nil, d, cli.Usagef("replay sim-fit --help lists them", "--option %s is none of an engine's that is fitted", k)
	}
	f.Cost.Step = 1 // until it is fitted, so that the file is a valid one
	return f, sim.Options{Fitted: f}, nil
}
