// Report says what runs and captures amount to, and joins the shards of a run.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	ucli "github.com/urfave/cli/v2"

	"reprise/internal/build"
	"reprise/internal/cli"
	"reprise/internal/metrics"
	"reprise/internal/traceout"
	"reprise/internal/units"
	"reprise/report"
	"reprise/report/html"
	"reprise/traceformat"
	_ "reprise/traceformat/convert" // registers the public formats
)

func main() { os.Exit(cli.Main(app(), os.Args, os.Stdout, os.Stderr)) }

func app() *ucli.App {
	return &ucli.App{
		Name:      "report",
		UsageText: "report RUN... [flags]\nreport compare A B [flags]\nreport merge SHARD... -o DIR [flags]\nreport study DIR [flags]\nreport serve DIR [flags]",
		Description: `Report prints what the rows of RUN amount to: whether the run did what its trace says,
what became of the requests, latencies, rates, goodput. RUN is a run directory, or any
trace that "trace info" reads. A run is measured over the window that it was planned
with; a file alone has no plan, and its window ends with its last request. A run in object storage (make cloud) is copied to a
temporary folder first; there a pattern stands for several.

Several runs are repeats of one thing. They are never pooled: every figure is computed
for each, and its mean is shown; from three runs on with an interval that holds what
differs from run to run.

Examples:
  report run/
  report runs/*-vllm-*/
  report run/ --slo 'ttft<500ms' --slo 'tpot<50ms'
  report run/ --metrics-as vllm
  report run/ --html run.html --csv run.csv
  report run/ --json | jq .summary.ttft_ns.from_schedule
  report merge shard-*/ -o run/

Exit status is 0 if done, 1 if it failed, 2 for a usage error, 3 if the run is invalid or
partial, 130 if interrupted.`,
		Flags: []ucli.Flag{
			&ucli.StringSliceFlag{Name: "slo", Usage: "goodput counts requests that meet it, for example 'ttft<500ms'; `METRIC<TIME` of ttft, tpot, e2e", DefaultText: "as the run was played"},
			&ucli.StringFlag{Name: "metrics-as", Usage: "also print the figures by another `TOOL`'s formulas: " + strings.Join(metrics.Tools(), ", ")},
			&ucli.StringFlag{Name: "format", Usage: "source `FORMAT` of a trace", DefaultText: "detected"},
			htmlFlag(),
			&ucli.StringFlag{Name: "markdown", Usage: "write the figures to `FILE` as Markdown, - for standard output"},
			&ucli.StringFlag{Name: "csv", Usage: "write the figures to `FILE` as CSV, one a row, - for standard output"},
			cli.JSONFlag(),
		},
		Action:   cli.Action(show),
		Commands: []*ucli.Command{mergeCommand(), compareCommand(), studyCommand(), serveCommand()},
	}
}

func mergeCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "merge",
		Usage:     "join the shards of one run",
		UsageText: "report merge SHARD... -o DIR [flags]",
		Description: `Merge joins the run directories of all shards of one run (replay --shard i/n) into the
one that a single big machine would have written: every row, and every figure computed
from all rows. Trace, seed, all other options, build and server must be the same, each
shard of n there once and no request in two; otherwise it says what differs and writes
nothing. Repeats of a run are never pooled.

Shards that are to count as one need one --start-at: the schedule is that of the one
run, and a shard that began late has sent all its requests late. When it began is what
the clock of its machine said: what clocks disagree by blurs the figures that are of
several shards at a time (in flight, over time), and no latency.

Examples:
  report merge shard-*/ -o run/
  report merge shard-0/ shard-2/ --partial -o run/

Exit status is 0 if done, 1 if the shards are not of one run or cannot be read, 2 for a
usage error, 3 if the joined run is invalid or partial, 130 if interrupted.`,
		Flags: []ucli.Flag{
			&ucli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "run `DIR` to write"},
			&ucli.BoolFlag{Name: "force", Usage: "replace the run that is in DIR"},
			&ucli.DurationFlag{Name: "wait", Usage: "wait up to `TIME` until every shard is there and has ended; SHARD may then be a pattern, such as 'shard-*'"},
			&ucli.BoolFlag{Name: "partial", Usage: "go without missing shards: what they would have sent counts as never sent"},
			cli.JSONFlag(),
		},
		Action: cli.Action(merge),
	}
}

func show(ctx context.Context, c *ucli.Context) error {
	if c.NArg() == 0 {
		return cli.Usagef("report run/; report --help lists the flags", "want a run or a trace, got none")
	}
	if err := oneStdout(c, "json", "html", "markdown", "csv"); err != nil {
		return err
	}
	conf := report.Config{As: c.String("metrics-as")}
	if c.IsSet("slo") {
		slos, err := metrics.ParseSLOs(c.StringSlice("slo"))
		if err != nil {
			return cli.Usagef("report run/ --slo 'ttft<500ms' --slo 'tpot<50ms'", "%w", err)
		}
		conf.SLOs = slos
	}
	if f := c.String("format"); f != "" {
		conf.Read = append(conf.Read, traceformat.WithFormat(f))
	}
	if conf.As != "" {
		if _, err := metrics.NewAs(conf.As, 0); err != nil {
			return cli.Usagef("", "--metrics-as: %w", err)
		}
	}
	var k copies
	defer k.close()
	runs, err := k.fetchRuns(ctx, c.Args().Slice())
	if err != nil {
		return err
	}
	conf.Local = k.local
	if len(runs) > 1 {
		return showRepeats(ctx, c, runs, conf)
	}
	a, err := report.Analyse(ctx, runs[0], conf)
	if err != nil {
		return explain(runs[0], err)
	}
	if err := write(c, a, func(w io.Writer) error { return html.WriteRun(w, a) }, func() error { return render(c, a) }); err != nil {
		return err
	}
	return verdict(a.State, a.Summary)
}

// showRepeats reports on several runs of one thing.
func showRepeats(ctx context.Context, c *ucli.Context, runs []string, conf report.Config) error {
	// Runs are read one after another: a little time is well spent on less memory.
	defer debug.SetGCPercent(debug.SetGCPercent(gcPercent))
	r, err := report.AnalyseRepeats(ctx, report.Side{Name: common(runs), Runs: runs}, conf)
	if err != nil {
		return explain("", err)
	}
	if err := write(c, r, func(w io.Writer) error { return html.WriteRepeats(w, r) }, func() error { return r.RenderText(c.App.Writer) }); err != nil {
		return err
	}
	for _, a := range r.Runs {
		if err := verdict(a.State, a.Summary); err != nil {
			return err
		}
	}
	return nil
}

// common names repeats by what their paths begin with.
func common(runs []string) string {
	name := clean(runs[0])
	for _, run := range runs[1:] {
		for !strings.HasPrefix(clean(run), name) {
			name = name[:len(name)-1]
		}
	}
	// What two names share may end inside a character.
	if name = strings.TrimRight(strings.ToValidUTF8(name, ""), "/-_.0123456789"); name == "" {
		return fmt.Sprintf("%d runs", len(runs))
	}
	return name
}

// clean is filepath.Clean where a run lies on this machine.
func clean(run string) string {
	if traceout.Remote(run) {
		return strings.TrimSuffix(traceout.Key(run), "/")
	}
	return filepath.Clean(run)
}

// write writes a result to the files that flags name, and to standard output what
// is not there already.
func write(c *ucli.Context, a interface {
	RenderMarkdown(io.Writer) error
	WriteCSV(io.Writer) error
}, page func(io.Writer) error, text func() error) error {
	taken := false
	for _, f := range []struct {
		flag   string
		render func(io.Writer) error
	}{{"html", page}, {"markdown", a.RenderMarkdown}, {"csv", a.WriteCSV}} {
		onStdout, err := writeTo(c, f.flag, f.render)
		if err != nil {
			return err
		}
		taken = taken || onStdout
	}
	switch {
	case taken:
		return nil
	case c.Bool("json"):
		return cli.WriteJSON(c.App.Writer, a)
	}
	return text()
}

func merge(ctx context.Context, c *ucli.Context) error {
	out := c.String("output")
	switch {
	case c.NArg() == 0:
		return cli.Usagef("report merge shard-*/ -o run/", "merge: which shards?")
	case out == "":
		return cli.Usagef("report merge shard-*/ -o run/", "merge: where to?")
	}
	if c.Duration("wait") > 0 && slices.ContainsFunc(c.Args().Slice(), traceout.Remote) {
		return cli.Usagef("wait for the jobs that upload the shards, then merge", "merge: --wait looks at folders of this machine")
	}
	place := out
	if traceout.Remote(out) {
		if err := traceout.CheckFolder(ctx, out); err != nil {
			return err
		}
		temp, err := os.MkdirTemp("", "reprise-")
		if err != nil {
			return err
		}
		defer os.Remove(temp) // stays where the run in it does
		place = filepath.Join(temp, path.Base(traceout.Key(out)))
	}
	var k copies
	defer k.close()
	shards, err := k.fetchRuns(ctx, c.Args().Slice())
	if err != nil {
		return err
	}
	for i, name := range shards {
		if shards[i] = k.local(name); traceout.Remote(shards[i]) {
			return fmt.Errorf("%s: no run is there: it has no run.json, which is uploaded last", name)
		}
	}
	if limit := c.Duration("wait"); limit > 0 {
		if shards, err = report.Await(ctx, shards, limit, func(s string) { fmt.Fprintln(c.App.ErrWriter, s) }); err != nil {
			return explain("", err)
		}
		if len(shards) == 0 {
			return fmt.Errorf("after %v no shard is at %s", limit, strings.Join(c.Args().Slice(), " "))
		}
	}
	m, err := report.Merge(ctx, report.MergeConfig{
		Shards: shards, Out: place, Force: c.Bool("force"), Partial: c.Bool("partial"), Program: program(), Args: os.Args[1:],
	})
	if err != nil {
		return explain("", err)
	}
	if place != out {
		if err := traceout.PublishFolder(ctx, place, out); err != nil {
			return err
		}
	}
	if c.Bool("json") {
		err = cli.WriteJSON(c.App.Writer, m)
	} else {
		err = render(c, &report.Analysis{Name: clean(out), State: m.State, Reason: m.Reason, Summary: m.Summary, Warnings: m.Warnings, Merge: m.Merge, Telemetry: m.Record()})
	}
	if err != nil {
		return err
	}
	return verdict(m.State, m.Summary)
}

// verdict is the exit status of a report.
func verdict(state string, s *metrics.Summary) error {
	if s.Fidelity.Verdict == metrics.Invalid || state != "" && state != report.StateComplete {
		return &cli.Error{Code: cli.Invalid}
	}
	return nil
}

// explain adds the next step to what the report says.
func explain(name string, err error) error {
	if e, ok := errors.AsType[*report.MergeError](err); ok {
		return &cli.Error{Code: cli.Failed, Err: err, Hint: e.Hint}
	}
	if path, ok := errors.AsType[*fs.PathError](err); ok && errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%s: no such file", path.Path)
		if filepath.Base(path.Path) == "run.json" {
			return &cli.Error{Code: cli.Failed, Err: err, Hint: "want a run directory, as replay -o DIR writes it"}
		}
		return err
	}
	if row, ok := errors.AsType[*traceformat.RowError](err); ok && row.Row < 0 && (name == "" || row.Name == name) && errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: no such file", row.Name)
	}
	if errors.Is(err, traceformat.ErrDirectory) && name != "" {
		e := &cli.Error{Code: cli.Failed, Err: err}
		if _, no := os.Stat(filepath.Join(name, "plan.json")); no == nil {
			e.Hint = "it is the folder of an experiment: report study " + name
		} else if _, no := os.Stat(filepath.Join(name, "search.json")); no == nil {
			e.Hint = "it is the folder of a search: its answer is in " + filepath.Join(name, "search.md") + ", its runs in " + filepath.Join(name, "runs")
		}
		return e
	}
	return err
}

// render prints an analysis for a person.
func render(c *ucli.Context, a *report.Analysis) error {
	w := c.App.Writer
	color := cli.IsTerminal(w) && os.Getenv("NO_COLOR") == ""
	if err := metrics.RenderText(w, a.Summary, cli.Columns(w, 88), color); err != nil {
		return err
	}
	if err := a.Telemetry.Render(w, cli.Columns(w, 88)); err != nil {
		return err
	}
	if a.Figures != nil {
		fmt.Fprintln(w)
		if err := metrics.RenderFigures(w, a.As, a.Figures); err != nil {
			return err
		}
	}
	if err := a.RenderSegments(w); err != nil {
		return err
	}
	if j := a.Merge; j != nil {
		fmt.Fprintln(w)
		t := &cli.Table{Head: []string{"shard", "directory", "requests", "began, by its clock", "send error", "verdict"}}
		for i := range j.Shards {
			s := &j.Shards[i]
			send := ""
			if f := &s.Fidelity; f.SendError.OK {
				send = fmt.Sprintf("%s %s", f.SendErrorOf, f.SendError.V)
			}
			state := s.Fidelity.Verdict
			if s.State != report.StateComplete {
				state += ", " + s.State
			}
			t.Row(fmt.Sprintf("%d/%d", s.Index, j.Of), s.Dir, units.Count(s.Rows), began(s), send, state)
		}
		if err := t.Write(w, ""); err != nil {
			return err
		}
		switch {
		case j.ClockError != nil:
			fmt.Fprintf(w, "clocks of the shards are at most %s apart\n", units.Duration(*j.ClockError))
		case j.StartAt:
			fmt.Fprintln(w, "how far the clocks of the shards are apart is not known: replay --clock measures it")
		}
	}
	for _, warning := range a.Warnings {
		fmt.Fprintf(c.App.ErrWriter, "warning: %s\n", warning)
	}
	state := ""
	switch {
	case a.State == "" || a.State == report.StateComplete:
	case a.Reason != "":
		state = ", partial: " + a.Reason
	default:
		state = ", " + a.State
	}
	_, err := fmt.Fprintf(w, "\nrun: %s%s\n", a.Name, state)
	return err
}

// began prints where a shard's zero lies on the axis of the run.
func began(s *report.Shard) string {
	switch d := s.Offset; {
	case d < 0:
		return "-" + units.Duration(-d)
	default:
		return "+" + units.Duration(d)
	}
}

// program is what run.json says of this one.
func program() report.Program {
	b := build.Read()
	return report.Program{Name: "report merge", Version: b.Version, Revision: b.Revision, Modified: b.Modified, Go: b.Go}
}
