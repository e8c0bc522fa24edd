package main

import (
	"context"
	"io"
	"slices"

	ucli "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/report/study"
)

func studyCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "study",
		Usage:     "say what an experiment found, and which configuration to take",
		UsageText: "report study DIR [flags]",
		Description: `Study reads the folder of an experiment, or of an A/B (replay ... --repeat N -o DIR): every
cell with intervals over its repeats, what each factor does and where factors depend on
each other, throughput against latency, the Pareto front, the tail, the KV cache, cost, and
the configuration that meets the objectives. Runs that are invalid, partial, failed or
skipped are listed and in no figure.

An objective is a bound that a share of the requests must meet:
  --slo 'ttft.p99<500ms'   99 % of the requests take less; a failure does not
  --slo 'e2e<10s'          counts for goodput, and asks for no share

Examples:
  report study out/ --html study.html
  report study out/ --slo 'ttft.p99<500ms' --slo 'tpot.p95<50ms' --price-per-gpu-hour 2.5
  report study out/ --json | jq .recommendation

Exit status is 0 if done, 1 if it failed, 2 for a usage error, 3 if a run is invalid or
partial, 130 if interrupted.`,
		Flags: []ucli.Flag{
			&ucli.StringSliceFlag{Name: "slo", Usage: "hold cells against `OBJECTIVE`, such as 'ttft.p99<500ms'; may be given more than once", DefaultText: "the experiment's"},
			&ucli.Float64Flag{Name: "price-per-gpu-hour", Usage: "`PRICE` of a GPU-hour, in any currency", DefaultText: "the experiment's"},
			&ucli.Float64Flag{Name: "gpus-per-engine", Usage: "`N` GPUs are paid for while an engine is up", DefaultText: "the experiment's, what telemetry saw, or 1"},
			htmlFlag(),
			&ucli.StringFlag{Name: "markdown", Usage: "write the study to `FILE` as Markdown, - for standard output"},
			&ucli.Uint64Flag{Name: "seed", Value: 1, Usage: "of the bootstrap"},
			cli.JSONFlag(),
		},
		Action: cli.Action(runStudy),
	}
}

func runStudy(ctx context.Context, c *ucli.Context) error {
	if c.NArg() != 1 {
		return cli.Usagef("report study out/", "study: want the folder of one experiment, got %d", c.NArg())
	}
	if err := oneStdout(c, "json", "markdown", "html"); err != nil {
		return err
	}
	conf := study.Config{Price: c.Float64("price-per-gpu-hour"), GPUs: c.Float64("gpus-per-engine"), Seed: c.Uint64("seed")}
	for _, f := range []string{"price-per-gpu-hour", "gpus-per-engine"} {
		if v := c.Float64(f); c.IsSet(f) && !(v > 0 && v < 1e12) {
			return cli.Usagef("report study out/ --"+f+" 2.5", "--%s is %v, want more than 0", f, v)
		}
	}
	if c.IsSet("slo") {
		var err error
		if conf.Objectives, err = study.ParseObjectives(c.StringSlice("slo")); err != nil {
			return cli.Usagef("report study out/ --slo 'ttft.p99<500ms'", "--slo: %w", err)
		}
	}
	var k copies
	defer k.close()
	dir, err := k.fetch(ctx, c.Args().First())
	if err != nil {
		return err
	}
	s, err := study.Read(ctx, dir, conf)
	if err != nil {
		return &cli.Error{Code: cli.Failed, Err: err, Hint: "want a folder that replay experiment run, or replay with several backends and -o DIR, wrote"}
	}
	taken := false
	for _, f := range []struct {
		flag   string
		render func(io.Writer) error
	}{{"html", s.WriteHTML}, {"markdown", s.WriteMarkdown}} {
		onStdout, err := writeTo(c, f.flag, f.render)
		if err != nil {
			return err
		}
		taken = taken || onStdout
	}
	switch {
	case taken:
	case c.Bool("json"):
		err = cli.WriteJSON(c.App.Writer, s)
	default:
		err = s.WriteText(c.App.Writer)
	}
	if err != nil {
		return err
	}
	if slices.ContainsFunc(s.Runs, func(x *study.Run) bool { return x.Broken() }) {
		return &cli.Error{Code: cli.Invalid}
	}
	return nil
}
