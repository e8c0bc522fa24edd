package main

import (
	"errors"
	"fmt"
	"os"

	urfave "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/replay/selftest"
)

func selftestCommand() *urfave.Command {
	return &urfave.Command{
		Name:      "selftest",
		Usage:     "measure how exactly this machine sends and times",
		UsageText: "replay selftest [--json] [--quick]",
		Description: `
Selftest plays hard traces (a steady 5,000 requests a second, a burst of 200 in 10 ms,
10,000 streams at a time, the highest rate) against a mock server with known delays on
this machine, and prints the floor: what a replay from here reports beyond these
figures is the server's.

Examples:
  replay selftest
  replay selftest --json > floor.json`,
		Flags: []urfave.Flag{
			&urfave.BoolFlag{Name: "json", Usage: "print the figures as JSON"},
			&urfave.BoolFlag{Name: "quick", Usage: "a fifth of the length"},
		},
		Action: runSelftest,
	}
}

func runSelftest(c *urfave.Context) error {
	if c.NArg() > 0 {
		return cli.Usagef("a trace named like that is written ./selftest", "selftest takes no arguments, got %q", c.Args().First())
	}
	ctx, _, done := signals(c.App.ErrWriter)
	defer done()
	scale := 1.0
	if c.Bool("quick") {
		scale = 0.2
	}
	var results []*selftest.Result
	for _, t := range selftest.Tests(scale) {
		fmt.Fprintf(c.App.ErrWriter, "%s: %s\n", t.Name, t.About)
		r, err := selftest.Run(ctx, t)
		if err != nil {
			return fmt.Errorf("%s: %w", t.Name, err)
		}
		results = append(results, r)
	}
	if c.Bool("json") {
		if err := cli.WriteJSON(c.App.Writer, map[string]any{"version": 1, "tests": results}); err != nil {
			return err
		}
	} else {
		fmt.Fprintln(os.Stderr)
		selftest.Render(c.App.Writer, results)
	}
	for _, r := range results {
		if r.Failed > 0 {
			return &cli.Error{Code: cli.Failed, Err: errors.New("requests to the mock server failed")}
		}
	}
	return nil
}
