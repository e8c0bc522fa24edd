package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	ucli "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/internal/metrics"
	"reprise/report"
	"reprise/traceformat"
)

func compareCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "compare",
		Usage:     "say which side is better, by how much, and how sure that is",
		UsageText: "report compare A B [C...] [flags]\nreport compare A1,A2,A3 B1,B2,B3 [flags]",
		Description: `Compare holds B against A, request by request: was it the same work, what differs, by how
much, and could it be chance. A side is a run directory or a captured trace, or its
repeats with commas between; NAME=RUN,RUN names it. Requests join on id and lap, so that
runs of one trace are needed. Of more than two sides, each is held against the first, and
p-values are corrected for all of them together.

With one run of each side the intervals are of these runs; from three on they are of the
deployment, and hold what differs from run to run. Latencies are from the schedule, of
requests that succeeded on both sides. Where prompts or token counts differ, the request
was not the same work and is left out, unless --keep-unequal.

A gate fails only if the whole interval lies beyond its limit:
  --fail-if 'ttft.p99 > +5%'     B is more than 5 % above A
  --fail-if 'error_rate > 0.1%'  B itself
  --fail-if 'e2e.p50 > 2s'
  --fail-if 'sglang: ttft.p99 > +5%'  that side alone, of several; otherwise each

Examples:
  report compare vllm/ sglang/ --html ab.html
  report compare vllm/ sglang/ llamacpp/ --markdown -
  report compare before=a1,a2,a3 after=b1,b2,b3 --fail-if 'ttft.p99 > +5%' --junit gate.xml
  report compare a/ b/ --json | jq '.metrics[] | select(.name=="ttft.p99")'

Exit status is 0 if done, 1 if a gate fails or the sides cannot be compared, 2 for a usage
error, 3 if a run of either side is invalid, 130 if interrupted.`,
		Flags: []ucli.Flag{
			&ucli.StringSliceFlag{Name: "slo", Usage: "for goodput and misses, for example 'ttft<500ms'", DefaultText: "as run A was played"},
			&ucli.StringSliceFlag{Name: "fail-if", Usage: "exit 1 if `CONDITION` is certain; may be given more than once"},
			&ucli.StringFlag{Name: "junit", Usage: "write the gates to `FILE` as JUnit XML"},
			&ucli.StringFlag{Name: "markdown", Usage: "write the comparison to `FILE` as Markdown, - for standard output"},
			htmlFlag(),
			&ucli.BoolFlag{Name: "keep-unequal", Usage: "compare requests too whose prompt or token counts differ"},
			&ucli.Uint64Flag{Name: "seed", Value: 1, Usage: "of the bootstrap"},
			&ucli.StringFlag{Name: "format", Usage: "source `FORMAT` of traces", DefaultText: "detected"},
			cli.JSONFlag(),
		},
		Action: cli.Action(compare),
	}
}

// gcPercent trades a little time for memory: a comparison holds both runs.
const gcPercent = 40

func compare(ctx context.Context, c *ucli.Context) error {
	if n := c.NArg(); n < 2 || n > report.MaxSides {
		return cli.Usagef("report compare a/ b/; repeats of a side have commas between: a1/,a2/,a3/", "compare: want 2 to %d sides, got %d", report.MaxSides, n)
	}
	if err := oneStdout(c, "json", "markdown", "html"); err != nil {
		return err
	}
	conf := report.CompareConfig{KeepUnequal: c.Bool("keep-unequal"), Seed: c.Uint64("seed"), Charts: c.String("html") != ""}
	if c.IsSet("slo") {
		slos, err := metrics.ParseSLOs(c.StringSlice("slo"))
		if err != nil {
			return cli.Usagef("report compare a/ b/ --slo 'ttft<500ms'", "%w", err)
		}
		conf.SLOs = slos
	}
	if f := c.String("format"); f != "" {
		conf.Read = append(conf.Read, traceformat.WithFormat(f))
	}
	var gates []report.Gate
	for _, expr := range c.StringSlice("fail-if") {
		g, err := report.ParseGate(expr)
		if err != nil {
			return cli.Usagef("", "--fail-if %w", err)
		}
		gates = append(gates, g)
	}
	if c.String("junit") != "" && gates == nil {
		return cli.Usagef("add --fail-if 'ttft.p99 > +5%'", "--junit writes gates, and there are none")
	}
	defer debug.SetGCPercent(debug.SetGCPercent(gcPercent))
	var k copies
	defer k.close()
	sides := sides(c.Args().Slice())
	for i := range sides {
		var err error
		if sides[i].Runs, err = k.fetchRuns(ctx, sides[i].Runs); err != nil {
			return err
		}
	}
	conf.Local = k.local
	var pairs [][2]report.Side
	for _, b := range sides[1:] {
		pairs = append(pairs, [2]report.Side{sides[0], b})
	}
	family, err := report.CompareAll(ctx, pairs, conf)
	if err != nil {
		return explain("", err)
	}
	checks, err := family.Check(gates)
	if err != nil {
		return cli.Usagef("", "--fail-if: %w", err)
	}
	if err := writeComparison(ctx, c, family, checks); err != nil {
		return err
	}
	failed := slices.ContainsFunc(slices.Concat(checks...), func(k report.Check) bool { return k.Failed })
	switch {
	case failed:
		return &cli.Error{Code: cli.Failed}
	case family.Invalid():
		return &cli.Error{Code: cli.Invalid}
	}
	return nil
}

func writeComparison(ctx context.Context, c *ucli.Context, f *report.Family, checks [][]report.Check) error {
	if name := c.String("junit"); name != "" {
		var b bytes.Buffer
		if err := report.WriteJUnit(&b, slices.Concat(checks...)); err != nil {
			return err
		}
		if err := os.WriteFile(name, b.Bytes(), 0o644); err != nil {
			return err
		}
	}
	onStdout, err := writeTo(c, "markdown", func(w io.Writer) error { return f.RenderMarkdown(w, checks) })
	if err != nil {
		return err
	}
	page, err := writeTo(c, "html", func(w io.Writer) error { return pageOf(ctx, w, f, checks) })
	if err != nil || onStdout || page {
		return err
	}
	if c.Bool("json") {
		return cli.WriteJSON(c.App.Writer, comparisonJSON(f, checks))
	}
	return f.RenderText(c.App.Writer, checks)
}

// A gated comparison is what --json prints of two sides, and a part of what it
// prints of more.
type gated struct {
	*report.Comparison
	Gates []report.Check `json:"gates,omitempty"`
}

func comparisonJSON(f *report.Family, checks [][]report.Check) any {
	var all []gated
	for i, c := range f.Comparisons {
		all = append(all, gated{c, checks[i]})
	}
	if len(all) == 1 {
		return all[0]
	}
	return struct {
		*report.Family
		Comparisons []gated `json:"comparisons"`
	}{f, all}
}

// sides reads all sides, and tells those apart that have one name.
func sides(args []string) (out []report.Side) {
	count := map[string]int{}
	for _, arg := range args {
		s := side(arg)
		count[s.Name]++
		out = append(out, s)
	}
	for i := range out {
		if s := &out[i]; count[s.Name] > 1 {
			s.Name += fmt.Sprintf(" (%c)", 'A'+i)
		}
	}
	return out
}

// side reads NAME=RUN,RUN. A file whose name holds "=" is written ./a=b.
func side(arg string) report.Side {
	name, runs, ok := strings.Cut(arg, "=")
	if !ok || strings.ContainsAny(name, "/.") {
		name, runs = "", arg
	}
	s := report.Side{Name: name}
	if _, err := os.Stat(runs); err == nil {
		s.Runs = []string{runs} // also where the name holds a comma
	} else {
		for run := range strings.SplitSeq(runs, ",") {
			if run != "" {
				s.Runs = append(s.Runs, run)
			}
		}
	}
	if s.Name == "" && len(s.Runs) > 0 {
		s.Name = filepath.Base(clean(s.Runs[0]))
	}
	return s
}
