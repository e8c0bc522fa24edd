package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	ucli "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/internal/traceout"
	"reprise/internal/units"
	"reprise/synth"
	"reprise/synth/score"
)

func fitCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "fit",
		Usage:     "learn a model of a trace",
		UsageText: "synth fit TRACE... -o MODEL [flags]",
		Description: `Fit reads a trace, tries several generators on it and keeps the one that comes nearest on
traffic that it has not seen. It prints the scores of all of them beside the noise floor of
the trace, which is what two halves of it differ by, and says so where none of them fits.

The model holds quantiles, rates and probabilities and no rows of the trace. Models that do
hold rows play its bursts more faithfully; --allow-resampling admits them, and they are
marked. Several traces are learnt as one. A folder of ServeGen's clients is a model already
and is taken over.

Examples:
  synth fit trace.parquet -o model.json
  synth fit sessions/*.json -o agents.json --name agents --licence Apache-2.0
  synth fit trace.parquet -o exact.json --allow-resampling

Exit status is 0 if done, 1 if it failed, 2 for a usage error, 130 if interrupted.`,
		Flags: append([]ucli.Flag{
			&ucli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write the model to `FILE`, or - for standard output"},
			&ucli.BoolFlag{Name: "force", Usage: "replace FILE if it exists"},
			&ucli.StringFlag{Name: "name", Usage: "`NAME` of the model", DefaultText: "that of the trace"},
			&ucli.StringFlag{Name: "source", Usage: "`ADDRESS` of the trace, kept in the model"},
			&ucli.StringFlag{Name: "licence", Usage: "`LICENCE` of the trace, kept in the model"},
			&ucli.StringFlag{Name: "cite", Usage: "`TEXT` to cite the trace by, kept in the model"},
			&ucli.BoolFlag{Name: "allow-resampling", Usage: "admit models that hold rows of the trace"},
			&ucli.StringFlag{Name: "arrivals", Usage: "take this `KIND` of arrivals instead of choosing: exponential, gamma, weibull, quantiles, mmpp, profile, rows"},
			&ucli.Float64Flag{Name: "rate", Usage: "`N` requests (or sessions) a second, where the trace does not say"},
			&ucli.DurationFlag{Name: "first", Usage: "of a folder of ServeGen's clients, take the first `TIME` alone"},
			&ucli.Uint64Flag{Name: "seed", Value: 1, Usage: "`N` that the fit's own draws come from"},
			&ucli.Int64Flag{Name: "rows", Value: 4_000_000, Usage: "learn from the first `N` rows of a trace that has more"},
			cli.JSONFlag(),
		}, readFlags()...),
		Action: cli.Action(fit),
	}
}

func fit(ctx context.Context, c *ucli.Context) error {
	if c.NArg() == 0 {
		return cli.Usagef("synth fit trace.parquet -o model.json", "fit: which trace?")
	}
	out, err := traceout.Target(c)
	if err != nil {
		return err
	}
	names := c.Args().Slice()
	name := c.String("name")
	if name == "" {
		base := filepath.Base(names[0])
		name, _, _ = strings.Cut(base, ".")
	}
	trace := filepath.Base(names[0])
	if trace == "-" {
		trace = "standard input"
	}
	o := synth.FitOptions{
		Name: name, AllowResampling: c.Bool("allow-resampling"), Rate: c.Float64("rate"), Kind: c.String("arrivals"), Seed: c.Uint64("seed"),
		Source: synth.Source{Trace: trace, Address: c.String("source"), Licence: c.String("licence"), Cite: c.String("cite"),
			Program: "synth fit " + cli.Version()},
	}
	if len(names) == 1 && synth.IsServeGen(names[0]) {
		return fitServeGen(c, out, names[0], o)
	}
	most := c.Int64("rows")
	if most < 2 {
		return cli.Usagef("", "--rows %d: want 2 or more", most)
	}
	s, h, more, err := load(ctx, c, names, most)
	if err != nil {
		return err
	}
	o.Source.Dialect = h.Origin.Dialect
	m, report, err := synth.Fit(ctx, s, o)
	if errors.Is(err, synth.ErrFit) {
		return &cli.Error{Code: cli.Failed, Err: fmt.Errorf("%s: %w", names[0], err), Hint: "trace info " + names[0] + " says what the trace has"}
	}
	if err != nil {
		return err
	}
	if more { // the report is part of the model
		report.Warnings = append(report.Warnings, fmt.Sprintf("learnt from the first %s rows, %s s: what comes after is not in it; --rows takes more, trace slice --start another stretch",
			units.Count(most), units.Digits(m.Source.Seconds)))
	}
	if err := writeModel(c, out, m); err != nil {
		return err
	}
	w := reportWriter(c, out)
	if c.Bool("json") {
		return cli.WriteJSON(w, report)
	}
	return writeFit(w, m, report)
}

// reportWriter is where a report goes: the model takes standard output where it
// was sent there.
func reportWriter(c *ucli.Context, out string) io.Writer {
	if out == "-" {
		return c.App.ErrWriter
	}
	return c.App.Writer
}

// fitServeGen takes over the clients of a folder of ServeGen, which are fits
// already.
func fitServeGen(c *ucli.Context, out, dir string, o synth.FitOptions) error {
	m, err := synth.FromServeGen(os.DirFS(dir), c.Duration("first").Seconds(), o)
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	if err := writeModel(c, out, m); err != nil {
		return err
	}
	w := reportWriter(c, out)
	if c.Bool("json") {
		return cli.WriteJSON(w, listed(m.Name, m))
	}
	return writeModelText(w, m)
}

// writeModel writes a model where traceout.Target said.
func writeModel(c *ucli.Context, out string, m *synth.Model) error {
	if out == "-" {
		return m.Write(c.App.Writer)
	}
	f, err := traceout.CreateFile(out, c.Bool("force"))
	if err != nil {
		return err
	}
	defer f.Abort()
	if err := m.Write(f); err != nil {
		return err
	}
	if err := f.Publish(); err != nil {
		return err
	}
	info, err := os.Stat(out)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(c.App.ErrWriter, "wrote %s (%s)\n", out, units.Bytes(info.Size()))
	return err
}

// writeFit prints the candidates.
func writeFit(w io.Writer, m *synth.Model, r *synth.FitReport) error {
	var b strings.Builder
	if len(r.Candidates) == 0 {
		return writeVerdict(w, m, r)
	}
	fmt.Fprintf(&b, "%s: %s rows over %s s\n\n", m.Name, units.Count(int64(m.Source.Rows)), units.Digits(m.Source.Seconds))
	t := cli.Table{Head: []string{"arrivals", "compared with", "score", "gap KS", "IDC |ln|", "token IDC |ln|", "lengths KS in, out", "TTFT KS, p99 ratio by load"}}
	line := func(name, against string, s *synth.Scores) {
		if s == nil {
			return
		}
		var queues []string
		for _, q := range s.Queues {
			queues = append(queues, fmt.Sprintf("%g: %s %sx", q.Load, short(q.KS), short(q.P99)))
		}
		t.Row(name, against, short(s.Total), short(s.GapKS), short(s.IDC), short(s.TokenIDC), short(s.InKS)+", "+short(s.OutKS), strings.Join(queues, "  "))
	}
	line("floor", "half with half", &r.Floor)
	line("floor", "the folds of the next", r.FloorNext)
	for _, k := range r.Candidates {
		name := k.Name
		if k.Name == r.Chosen {
			name += " (chosen)"
		}
		if k.HoldsRows {
			name += ", holds rows"
		}
		line(name, "the same hour", k.Again)
		line(name, "the next", k.Next)
	}
	if err := t.Write(&b, ""); err != nil {
		return err
	}
	b.WriteString("\nScores are relative to the floor: about 1 is as different as two halves of the trace are.\n\n")
	if _, err := io.WriteString(w, b.String()); err != nil {
		return err
	}
	return writeVerdict(w, m, r)
}

// writeVerdict prints what was chosen, and what to know about it.
func writeVerdict(w io.Writer, m *synth.Model, r *synth.FitReport) error {
	var b strings.Builder
	if r.Chosen != "" {
		fmt.Fprintf(&b, "chosen     %s\n", r.Chosen)
	}
	if r.Verdict != "" {
		fmt.Fprintf(&b, "verdict    %s\n", r.Verdict)
		fmt.Fprintf(&b, "fits       %s\n", map[bool]string{true: "yes", false: "no"}[r.Fits])
	}
	for _, s := range m.DoesNotKeep {
		fmt.Fprintf(&b, "not kept   %s\n", s)
	}
	if mem := m.Memory; mem != nil {
		fmt.Fprintf(&b, "memorises  %d of %d runs of three rows stand in the source; %d do between its halves\n", mem.Runs, mem.Of, mem.Chance)
	}
	for _, s := range r.Warnings {
		fmt.Fprintf(&b, "warning    %s\n", s)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func short(n score.Number) string {
	switch v := float64(n); {
	case !n.OK():
		return "-"
	case v != 0 && v < 0.1:
		return fmt.Sprintf("%.3f", v)
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}
