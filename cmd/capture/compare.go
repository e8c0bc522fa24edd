package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"time"

	ucli "github.com/urfave/cli/v2"

	"reprise/capture"
	"reprise/internal/cli"
	"reprise/internal/units"
	"reprise/traceformat"
)

func init() { commands = append(commands, compareCommand) }

func compareCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "compare",
		Usage:     "join two captures of the same traffic and say how they differ",
		UsageText: "capture compare A B [flags]",
		Description: `Compare joins two captures of the same traffic, from a log and from packets say, on time
and on what both know, and prints the offset of their clocks, the requests that one of
them does not have, how far arrivals, TTFT and durations differ, whether they agree on
aborts and lengths, and whether something between the engine and a capture held events
back. Differences are B less A. The traces may be of any format that "trace info" reads.

Captures that were made with one --key-file are joined on prefix blocks too.

Examples:
  capture compare from-logs.parquet from-packets.parquet
  capture compare a.parquet b.parquet --max-missing 0.001 --max-arrival 1ms

Exit status is 0 if done, 1 if a bound is exceeded or a trace cannot be read, 2 for a
usage error, 130 if interrupted.`,
		Flags: []ucli.Flag{
			&ucli.DurationFlag{Name: "window", Value: 100 * time.Millisecond, Usage: "how far apart two captures may see one arrival"},
			&ucli.DurationFlag{Name: "max-offset", Value: 26 * time.Hour, Usage: "largest offset of the clocks to look for"},
			&ucli.Float64Flag{Name: "max-missing", Usage: "fail if a capture lacks more than this `SHARE` of the other's requests"},
			&ucli.DurationFlag{Name: "max-arrival", Usage: "fail if arrivals differ by more at p99"},
			&ucli.DurationFlag{Name: "max-ttft", Usage: "fail if TTFT differs by more at p99"},
			&ucli.Float64Flag{Name: "min-aborts", Usage: "fail if they agree on aborts for less than this `SHARE` of the requests"},
			cli.JSONFlag(),
		},
		Action: cli.Action(compare),
	}
}

func compare(ctx context.Context, c *ucli.Context) error {
	if c.NArg() != 2 {
		return cli.Usagef("capture compare --help", "compare takes two traces and got %d", c.NArg())
	}
	if c.Duration("window") <= 0 || c.Duration("max-offset") <= 0 {
		return cli.Usagef("", "--window and --max-offset: want more than 0")
	}
	names := c.Args().Slice()
	var readers [2]traceformat.Reader
	for i, name := range names {
		r, err := traceformat.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: no such file", name)
		}
		if err != nil {
			return err
		}
		defer r.Close()
		readers[i] = r
	}
	d, err := capture.Compare(ctx, readers[0], readers[1], capture.CompareOptions{Window: c.Duration("window"), MaxOffset: c.Duration("max-offset")})
	if err != nil {
		return err
	}
	if c.Bool("json") {
		err = cli.WriteJSON(c.App.Writer, d)
	} else {
		err = writeComparison(c.App.Writer, names, d)
	}
	if err != nil {
		return err
	}
	return d.Within(capture.Bounds{
		Missing: c.Float64("max-missing"), Arrival: c.Duration("max-arrival"), TTFT: c.Duration("max-ttft"), Aborts: c.Float64("min-aborts"),
	})
}

func writeComparison(w io.Writer, names []string, d *capture.Comparison) error {
	by := "time alone"
	if len(d.By) > 0 {
		by = "time, " + words(d.By)
	}
	fmt.Fprintf(w, "a  %s, %s requests\nb  %s, %s requests\n\n", names[0], units.Count(d.RowsA), names[1], units.Count(d.RowsB))
	fmt.Fprintf(w, "joined on %s: %s in both\n", by, units.Count(d.Matched))
	fmt.Fprintf(w, "missing in a  %s, and %s while it was not running\n", units.Count(d.MissingA), units.Count(d.OutsideA))
	fmt.Fprintf(w, "missing in b  %s, and %s while it was not running\n", units.Count(d.MissingB), units.Count(d.OutsideB))
	fmt.Fprintf(w, "b's clock is %s\n", ahead(d))

	var t cli.Table
	t.Head = []string{"b less a", "n", "median", "|p50|", "|p90|", "|p99|", "|max|"}
	row := func(name string, v *capture.Difference) {
		if v == nil || v.N == 0 {
			return
		}
		cells := []string{name, units.Count(v.N), signed(v.Median)}
		for _, q := range []struct {
			p float64
			d time.Duration
		}{{0.5, v.P50}, {0.9, v.P90}, {0.99, v.P99}, {1, v.Max}} {
			cells = append(cells, units.Duration(q.d))
		}
		t.Row(cells...)
	}
	row("arrival", &d.Arrival)
	row("ttft", d.TTFT)
	row("e2e", d.E2E)
	if d.Arrival.N > 0 {
		fmt.Fprintln(w)
		if err := t.Write(w, ""); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	if s := d.Aborts.Share(); !math.IsNaN(s) {
		fmt.Fprintf(w, "aborts         agree on %s: %s in both, %s in a alone, %s in b alone\n", units.Percent(s), units.Count(d.Aborts.Both), units.Count(d.Aborts.OnlyA), units.Count(d.Aborts.OnlyB))
	}
	for _, v := range []struct {
		name string
		a    *capture.Agreement
	}{{"prompt tokens", d.Prompt}, {"output tokens", d.Output}, {"prefix blocks", d.Blocks}} {
		if v.a != nil {
			fmt.Fprintf(w, "%s  equal in %s of the %s that both know\n", v.name, units.Percent(float64(v.a.Equal)/float64(v.a.Both)), units.Count(v.a.Both))
		}
	}
	for i, e := range []*capture.Events{d.EventsA, d.EventsB} {
		if e != nil {
			fmt.Fprintf(w, "events of %c    %s in %s reads, %s of them with several; median gap %s\n", 'a'+i, units.Count(e.Events), units.Count(e.Reads), units.Percent(float64(e.Multi)/float64(e.Reads)), units.Duration(e.GapP50))
		}
	}
	for _, s := range d.Warnings {
		fmt.Fprintf(w, "warning: %s\n", s)
	}
	return nil
}

// ahead says how the clocks differ.
func ahead(d *capture.Comparison) string {
	s := "the same as a's"
	if d.Offset != 0 {
		s = units.Duration(max(d.Offset, -d.Offset)) + " ahead of a's"
		if d.Offset < 0 {
			s = units.Duration(-d.Offset) + " behind a's"
		}
	}
	if d.Drift != 0 {
		s += fmt.Sprintf(" and drifts by %+.1f ppm", d.Drift)
	}
	return s
}

func signed(d time.Duration) string {
	if d < 0 {
		return "-" + units.Duration(-d)
	}
	return units.Duration(d)
}
