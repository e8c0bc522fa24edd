package main

import (
	"context"
	"fmt"

	ucli "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/internal/traceinfo"
	"reprise/traceformat"
)

func infoCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "info",
		Usage:     "say what a trace is and what it is good for",
		UsageText: "trace info FILE [flags]",
		Description: `Info reads a trace once and prints what it is: rows, rates, burstiness, quantiles of
the lengths, how much of the prompts an LRU prefix cache would have held, sessions,
clients, models, outcomes, and what the trace can and cannot be used for.

Burstiness is the index of dispersion of counts, variance over mean of the arrivals in
windows of 0.1, 1, 10 and 100 s: 1 for a Poisson process. The hit share counts blocks up
to the first that is missing. Memory does not grow with the trace. Past ten million rows
the hit shares are estimated from one block in 16, with a 95 % interval; --exact follows
every block.

Examples:
  trace info trace.parquet
  trace info conversation_trace.jsonl.gz --json
  zcat trace.csv.gz | trace info -`,
		Flags: append(readFlags(), &ucli.BoolFlag{Name: "exact", Usage: "follow every block of a trace of more than 10 million rows"}, cli.JSONFlag()),
		Action: cli.Action(func(ctx context.Context, c *ucli.Context) error {
			names, err := arguments(c, 1, 1)
			if err != nil {
				return err
			}
			r, err := open(c, names[0], traceformat.Ahead())
			if err != nil {
				return err
			}
			defer r.Close()
			in, err := traceinfo.Analyze(ctx, r, c.Bool("exact"))
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return cli.WriteJSON(c.App.Writer, struct {
					Name string `json:"name"`
					*traceinfo.Info
				}{names[0], in})
			}
			if _, err := fmt.Fprintf(c.App.Writer, "%-12s %s\n", "trace", names[0]); err != nil {
				return err
			}
			return in.WriteText(c.App.Writer)
		}),
	}
}
