package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/internal/traceout"
	"reprise/internal/units"
	"reprise/replay"
	"reprise/replay/experiment"
)

func experimentCommand() *urfave.Command {
	set := &urfave.StringSliceFlag{Name: "set", Usage: "overrule the file: `KEY=VALUE` of a key of it, replay.FLAG, engine.FLAG, vars.NAME, factors.NAME (levels, with commas), or a flag of replay"}
	asJSON := &urfave.BoolFlag{Name: "json", Usage: "print JSON"}
	quiet := &urfave.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "no progress on standard error"}
	return &urfave.Command{
		Name:      "experiment",
		Usage:     "play a matrix of traces, backends, engine flags and loads",
		UsageText: "replay experiment plan|run matrix.yaml [--set KEY=VALUE] · replay experiment resume DIR",
		Description: `
An experiment's file names traces, backends and factors (flags of the engine or of
replay), and the design says which of their combinations are played. Each repeat is a
block with one run of each, in an order that no drift favours. Engines with a serving
configuration are started, watched and ended. What is finished is never played again:
after a crash or a reboot "resume" goes on. See docs/experiments.md.

Examples:
  replay experiment plan testdata/experiments/batching.yaml
  replay experiment run testdata/experiments/batching.yaml -o batching/
  replay experiment run matrix.yaml --set duration=5s --set repeats=1
  replay experiment resume batching/

Exit status is 0 if done, 1 if a run failed, 2 for a usage error, 3 if done and a run is
invalid, 130 if it was interrupted (what is finished is kept).`,
		Subcommands: []*urfave.Command{
			{
				Name: "plan", Usage: "print cells, order, expected duration and disk, and start nothing", UsageText: "replay experiment plan matrix.yaml [--set KEY=VALUE] [--json]",
				Flags: []urfave.Flag{set, asJSON}, Action: planExperiment,
			},
			{
				Name: "run", Usage: "play it, or go on with what is in DIR", UsageText: "replay experiment run matrix.yaml [-o DIR] [--set KEY=VALUE] [flags]",
				Flags: []urfave.Flag{
					&urfave.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`DIR` to write", DefaultText: "NAME-DATE-TIME"},
					set, asJSON, quiet,
				},
				Action: runExperiment,
			},
			{
				Name: "resume", Usage: "go on with the experiment in DIR at its first unfinished run", UsageText: "replay experiment resume DIR [flags]",
				Flags: []urfave.Flag{asJSON, quiet}, Action: resumeExperiment,
			},
		},
	}
}

// cellFlags are the flags of replay that a cell may have: those of one run.
type cellFlags map[string]bool

func newCellFlags() cellFlags {
	f := cellFlags{}
	not := slices.Concat(ownFlags, planFlags, []string{"shard", "start-at"})
	for _, flag := range app().Flags {
		if name := flag.Names()[0]; !slices.Contains(not, name) {
			f[name] = true
		}
	}
	return f
}

// Known implements experiment.Flags.
func (f cellFlags) Known(name string) bool { return f[name] }

// argument is the one argument of a command.
func argument(c *urfave.Context, what string) (string, error) {
	if c.NArg() != 1 {
		return "", cli.Usagef("replay experiment "+c.Command.Name+" "+what, "want one %s, got %d arguments", what, c.NArg())
	}
	return c.Args().First(), nil
}

// newExperiment reads a matrix, all but its traces.
func newExperiment(c *urfave.Context) (*ab, error) {
	name, err := argument(c, "matrix.yaml")
	if err != nil {
		return nil, err
	}
	m, err := experiment.ReadMatrix(name, c.StringSlice("set"))
	if err != nil {
		return nil, cli.Usagef("", "%w", err)
	}
	cells, factors, err := m.Expand(newCellFlags())
	if err != nil {
		return nil, cli.Usagef("", "%w", err)
	}
	a := experimentOf(c, cells, &experiment.Plan{
		Title: m.Title, Question: m.Question, Design: m.Design, Factors: factors, SLOs: m.SLOs, PricePerGPUHour: m.PricePerGPUHour, GPUsPerEngine: m.GPUsPerEngine,
		Settings: &experiment.Settings{Retries: m.Retries, Cooldown: time.Duration(m.Cooldown), HookTimeout: time.Duration(m.HookTimeout), Restart: m.Restart},
	})
	a.repeats, a.seed, a.skipImpossible = m.Repeats, m.Seed, m.Impossible == "skip"
	base := filepath.Base(name)
	a.output = strings.TrimSuffix(base, filepath.Ext(base)) + "-" + time.Now().Format("20060102-150405")
	if o := c.String("output"); traceout.Remote(o) {
		return nil, severalRuns(o)
	} else if o != "" {
		a.output = filepath.Clean(o)
	}
	return a, a.openCells()
}

// experimentOf makes what plays cells.
func experimentOf(c *urfave.Context, cells []experiment.Cell, p *experiment.Plan) *ab {
	return &ab{
		c: c, stderr: c.App.ErrWriter, quiet: c.Bool("quiet"), cells: cells, matrix: p,
		endpoints: map[string]endpoint{}, works: map[string]*work{}, probed: map[string]experiment.Target{}, seen: map[string]*server{},
		retries: p.Settings.Retries, cooldown: p.Settings.Cooldown, hookTimeout: p.Settings.HookTimeout,
		engines: engineHost{restart: p.Settings.Restart == "always"},
	}
}

// openCells finds what each cell plays and against what. All that is wrong with
// them is reported at once.
func (a *ab) openCells() error {
	alike := map[string]*work{}
	var errs []error
	var code *cli.Error
	for i := range a.cells {
		cell := &a.cells[i]
		if cell.Skipped != "" {
			continue
		}
		w, err := a.openCell(cell, alike)
		if err == nil {
			a.works[cell.Name] = w
			continue
		}
		if a.skipImpossible {
			cell.Skipped = "impossible: " + firstLine(err)
			continue
		}
		if own, ok := errors.AsType[*cli.Error](err); ok && code == nil {
			code = own
		}
		errs = append(errs, fmt.Errorf("cell %s: %w", cell.Name, err))
	}
	if errs == nil {
		return nil
	}
	hint := "exclude what cannot be, or say impossible: skip"
	if code != nil && code.Hint != "" {
		hint = code.Hint + "; or " + hint
	}
	if more := len(errs) - maxCellErrors; more > 0 {
		errs = append(errs[:maxCellErrors], fmt.Errorf("and %d more cells", more))
	}
	return &cli.Error{Code: cli.Usage, Err: errors.Join(errs...), Hint: hint}
}

// maxCellErrors bounds what is printed of cells that cannot be.
const maxCellErrors = 5

func firstLine(err error) string {
	s, _, _ := strings.Cut(err.Error(), "\n")
	return s
}

func (a *ab) openCell(cell *experiment.Cell, alike map[string]*work) (*work, error) {
	arg := cell.Arg
	if arg == "" {
		arg = cell.Backend
	}
	e, err := parseEndpoint(arg, cell.URL, cell.Options)
	if err != nil {
		return nil, err
	}
	if e.embedded() {
		if _, err := e.simOptions(); err != nil {
			return nil, err
		}
	}
	a.endpoints[cell.Name] = e
	if cell.Launch != nil {
		if err := cell.Launch.Check(); err != nil {
			return nil, err
		}
	}
	key := fmt.Sprintf("%q", append([]string{cell.Source}, cell.Flags...))
	if w := alike[key]; w != nil {
		return w, nil
	}
	var args []string
	for _, f := range cell.Flags {
		args = append(args, "--"+f)
	}
	if cell.Source != "" {
		args = append(args, "--", cell.Source)
	}
	c, err := runContext(a.c.App, args)
	if err != nil {
		return nil, err
	}
	w := &work{c: c}
	for _, f := range cell.Flags {
		if name, _, _ := strings.Cut(f, "="); !slices.Contains(serverFlags, name) {
			w.flags = append(w.flags, f)
		}
	}
	if w.trace, err = traceName(c); err != nil {
		return nil, err
	}
	if w.trace == "-" {
		return nil, cli.Usagef("write it to a file first", "standard input can be read by one run alone")
	}
	if err := a.ownTrace(w.trace); err != nil {
		return nil, err
	}
	if w.options, err = options(c); err != nil {
		return nil, cli.Usagef("", "%w", err)
	}
	if _, err := fidelityLimits(c); err != nil {
		return nil, err
	}
	if w.source, _, _, err = openSource(a.c.Context, c, w.trace); err != nil {
		return nil, err
	}
	alike[key] = w
	return w, nil
}

// ownTrace refuses an experiment that would play what it writes.
func (a *ab) ownTrace(trace string) error {
	out, err := filepath.Abs(a.output)
	if err != nil {
		return err
	}
	in, err := filepath.Abs(trace)
	if err != nil {
		return err
	}
	for _, p := range []*string{&out, &in} {
		if real, err := filepath.EvalSymlinks(*p); err == nil {
			*p = real
		}
	}
	if in == out || strings.HasPrefix(in, out+string(filepath.Separator)) {
		return cli.Usagef("name another directory with -o", "%s lies in %s, where this experiment writes: it would play its own runs", trace, a.output)
	}
	return nil
}

// runContext is the command line of one run: flags, and perhaps a trace.
func runContext(parent *urfave.App, args []string) (*urfave.Context, error) {
	run := app()
	run.Writer, run.ErrWriter = parent.Writer, parent.ErrWriter
	set := flag.NewFlagSet(run.Name, flag.ContinueOnError)
	set.SetOutput(io.Discard)
	for _, f := range run.Flags {
		if err := f.Apply(set); err != nil {
			return nil, err
		}
	}
	if err := set.Parse(args); err != nil {
		return nil, cli.Usagef("", "%w", err)
	}
	return urfave.NewContext(run, set, nil), nil
}

func planExperiment(c *urfave.Context) error {
	a, err := newExperiment(c)
	if err != nil {
		return err
	}
	p, err := a.plan(replay.Target{})
	if err != nil {
		return err
	}
	p.Notes = append(p.Notes, a.taken()...)
	if c.Bool("json") {
		return cli.WriteJSON(c.App.Writer, p)
	}
	return writePlan(c.App.Writer, p)
}

// taken says which engines cannot be started, as something has their port.
func (a *ab) taken() (out []string) {
	seen := map[string]bool{}
	for i := range a.cells {
		l := a.cells[i].Launch
		if l == nil || a.cells[i].Skipped != "" || seen[l.URL] {
			continue
		}
		if seen[l.URL] = true; l.Listening() {
			out = append(out, fmt.Sprintf("something listens at %s already, where the engine of %s is to be started", l.URL, a.cells[i].Name))
		}
	}
	return out
}

func runExperiment(c *urfave.Context) error {
	a, err := newExperiment(c)
	if err != nil {
		return err
	}
	return a.runCells()
}

// runCells plays the cells, or what is left of them.
func (a *ab) runCells() error {
	ctx, interrupts, done := signals(a.stderr)
	defer done()
	if _, err := os.Stat(filepath.Join(a.output, experiment.PlanFile)); err != nil {
		// An engine of a run that was killed may be about to end; otherwise this is
		// known before anything starts.
		if ports := a.taken(); ports != nil {
			return &cli.Error{Code: cli.Failed, Err: errors.New(strings.Join(ports, "; ")), Hint: "end what listens there, or give the engine another port, such as --set vars.port=8001"}
		}
	}
	return a.playAll(ctx, interrupts)
}

func resumeExperiment(c *urfave.Context) error {
	dir, err := argument(c, "DIR")
	if err != nil {
		return err
	}
	p, err := experiment.ReadPlan(dir)
	if errors.Is(err, os.ErrNotExist) {
		return cli.Usagef("replay experiment run matrix.yaml -o "+dir+" begins", "%s: there is no experiment to go on with", dir)
	}
	if err != nil {
		return err
	}
	if p.Settings == nil {
		return cli.Usagef(strings.Join(p.Args, " "), "%s was begun by replay TRACE --backend ...: the same command goes on with it", dir)
	}
	matrix := *p
	matrix.Notes, matrix.Runs, matrix.Cells, matrix.RunTime, matrix.RunBytes = nil, nil, nil, 0, 0
	a := experimentOf(c, p.Cells, &matrix)
	a.repeats, a.seed, a.output = p.Repeats, p.Seed, filepath.Clean(dir)
	if err := a.openCells(); err != nil {
		return err
	}
	return a.runCells()
}

// writePlan prints what would be played.
func writePlan(w io.Writer, p *experiment.Plan) error {
	out := &strings.Builder{}
	if p.Title != "" {
		fmt.Fprintf(out, "%s\n", p.Title)
	}
	if p.Question != "" {
		fmt.Fprintf(out, "%s\n", strings.TrimSpace(p.Question))
	}
	if out.Len() > 0 {
		fmt.Fprintln(out)
	}
	t := cli.Table{Head: []string{"cell", "backend", "trace", "requests", "run time"}}
	for _, f := range p.Factors {
		if f.Kind == "engine" || f.Kind == "replay" {
			head := f.Name
			if f.Unit != "" {
				head += " (" + f.Unit + ")"
			}
			t.Head = append(t.Head, head)
		}
	}
	skipped := 0
	for i := range p.Cells {
		c := &p.Cells[i]
		if c.Skipped != "" {
			skipped++
			continue
		}
		row := []string{c.Name, c.Backend, c.Trace, units.Count(c.Requests), units.About(c.RunTime)}
		for _, f := range p.Factors {
			if f.Kind == "engine" || f.Kind == "replay" {
				row = append(row, c.Factors[f.Name])
			}
		}
		t.Row(row...)
	}
	if err := t.Write(out, ""); err != nil {
		return err
	}
	for i := range p.Cells {
		if c := &p.Cells[i]; c.Skipped != "" {
			fmt.Fprintf(out, "not played: %s: %s\n", c.Name, c.Skipped)
		}
	}
	writeOrder(out, p)
	took, bytes := p.Expected()
	fmt.Fprintf(out, "\n%s: %s, %s, about %s in all\nabout %s on disk\n", plural(len(p.Runs), "run"), plural(len(p.Cells)-skipped, "cell"),
		plural(p.Repeats, "repeat"), units.About(took), units.Bytes(bytes))
	for _, n := range p.Notes {
		fmt.Fprintf(out, "note: %s\n", n)
	}
	fmt.Fprintln(out, "note: no server was asked whether it takes these requests")
	_, err := io.WriteString(w, out.String())
	return err
}

// writeOrder writes which cells each repeat plays, in order.
func writeOrder(out *strings.Builder, p *experiment.Plan) {
	fmt.Fprintf(out, "\norder\n")
	for block := 1; block <= p.Repeats; block++ {
		var names []string
		for _, r := range p.Runs {
			if r.Repeat == block {
				names = append(names, r.Cell)
			}
		}
		fmt.Fprintf(out, "  repeat %d: %s\n", block, strings.Join(names, ", "))
	}
}
