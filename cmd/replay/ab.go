package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/internal/metrics"
	"reprise/internal/units"
	"reprise/replay"
	"reprise/replay/experiment"
	"reprise/report"
)

// sequenceFlags are those of several runs, one after another.
func sequenceFlags() []urfave.Flag {
	return []urfave.Flag{
		&urfave.IntFlag{Name: "repeat", Value: 1, Usage: "play `N` runs of each backend, interleaved"},
		&urfave.BoolFlag{Name: "plan-only", Usage: "print the order of the runs, the expected duration and disk, and exit"},
		&urfave.BoolFlag{Name: "resume", Usage: "go on with the runs of DIR (without this flag too, if DIR has some)"},
		&urfave.IntFlag{Name: "retries-runs", Value: 1, Usage: "play a run that failed up to `N` times more"},
		&urfave.DurationFlag{Name: "cooldown", Value: time.Minute, Usage: "before each run, wait up to `TIME` for the engines to answer and be idle"},
		&urfave.StringSliceFlag{Name: "before-run", Usage: "`BACKEND=COMMAND` for the shell before each run of it, such as one that starts the engine and waits until it is ready"},
		&urfave.StringSliceFlag{Name: "after-run", Usage: "`BACKEND=COMMAND` for the shell after each run of it, however it ended"},
		&urfave.DurationFlag{Name: "hook-timeout", Value: 15 * time.Minute, Usage: "`TIME` for such a command"},
		&urfave.StringSliceFlag{Name: "fail-if", Usage: "exit 1 if `CONDITION` is certain of the comparison, such as 'ttft.p99 > +5%'"},
		&urfave.StringFlag{Name: "junit", Usage: "write these conditions to `FILE` as JUnit XML"},
		&urfave.BoolFlag{Name: "keep-unequal", Usage: "compare requests too whose prompt or token counts differ"},
	}
}

// Flags that are not those of a run. The first make another experiment, the
// second do not.
var (
	planFlags = []string{"backend", "url", "option", "repeat"}
	ownFlags  = []string{
		"output", "force", "json", "quiet", "plan-only", "resume", "retries-runs", "cooldown", "before-run", "after-run", "hook-timeout",
		"fail-if", "junit", "keep-unequal",
	}
)

// sequenced says whether the command line is one of several runs.
func sequenced(c *urfave.Context) bool {
	if len(c.StringSlice("backend")) > 1 {
		return true
	}
	for _, f := range sequenceFlags() {
		if c.IsSet(f.Names()[0]) {
			return true
		}
	}
	return false
}

// An ab is the command line of several runs.
type ab struct {
	c         *urfave.Context
	stderr    io.Writer
	trace     string
	options   replay.Options
	cells     []experiment.Cell
	endpoints map[string]endpoint // by cell
	gates     []report.Gate
	output    string
	quiet     bool

	probed map[string]experiment.Target // of embedded engines, which do not change
	seen   map[string]*server           // servers that are up all the time, by url
	cache  string                       // --cache of the runs, where it was not given
}

// playSequence is the action of `replay TRACE --backend A --backend B`.
func playSequence(c *urfave.Context) error {
	a := &ab{
		c: c, stderr: c.App.ErrWriter, quiet: c.Bool("quiet"),
		endpoints: map[string]endpoint{}, probed: map[string]experiment.Target{}, seen: map[string]*server{},
	}
	if err := a.parse(); err != nil {
		return err
	}
	ctx, interrupts, done := signals(c.App.ErrWriter)
	defer done()
	source, _, closeSource, err := openSource(ctx, c, a.trace)
	if err != nil {
		return err
	}
	defer closeSource()
	if c.Bool("plan-only") {
		return a.planOnly(source)
	}
	// From here the first interrupt ends the sequence, and the second what the
	// first one waits for.
	interrupts.note = "interrupted: requests in flight may end, then it stops; again to stop at once"
	interrupts.drain()
	soft, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-interrupts.first:
			cancel()
		case <-soft.Done():
		}
	}()

	folder, err := a.open(soft, source)
	if err != nil {
		return err
	}
	defer folder.Close()
	a.describe(folder)
	err = (&experiment.Sequence{
		Folder: folder, Retries: c.Int("retries-runs"), HookTimeout: c.Duration("hook-timeout"), Say: a.say,
		Ready:  a.ready,
		Narrow: a.narrow,
		Same:   func(x, y experiment.Target) (bool, error) { return a.same(source, x, y) },
		Play: func(sctx context.Context, p experiment.Progress, dir string) error {
			return a.playRun(sctx, ctx, p, dir)
		},
	}).Run(soft, ctx)
	if errors.Is(err, context.Canceled) {
		s := folder.State
		return &cli.Error{
			Code: cli.Interrupted, Err: fmt.Errorf("interrupted: %d of %d runs are done and kept in %s", s.Count(experiment.Finished), len(s.Runs), a.output),
			Hint: "to go on: " + a.again(),
		}
	}
	if fatal, ok := errors.AsType[*experiment.FatalError](err); ok {
		return &cli.Error{Code: cli.Failed, Err: fatal, Hint: "with that put right, to go on: " + a.again()}
	}
	if err != nil {
		return err
	}
	return a.finish(soft, folder)
}

func (a *ab) say(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintf(a.stderr, format+"\n", args...)
	}
}

// parse reads the command line, and finds all that is wrong with it before
// anything starts.
func (a *ab) parse() error {
	c := a.c
	var err error
	if a.trace, err = traceName(c); err != nil {
		return err
	}
	if a.trace == "-" {
		return cli.Usagef("write it to a file first", "standard input can be read by one run alone")
	}
	if a.options, err = options(c); err != nil {
		return cli.Usagef("", "%w", err)
	}
	if _, err := metrics.ParseSLOs(c.StringSlice("slo")); err != nil {
		return cli.Usagef("replay trace.parquet --slo 'ttft<500ms' --slo 'tpot<50ms'", "%w", err)
	}
	if _, err := fidelityLimits(c); err != nil {
		return err
	}
	switch {
	case c.Int("repeat") < 1 || c.Int("repeat") > maxRepeats:
		return cli.Usagef("", "--repeat is %d, want 1 to %d", c.Int("repeat"), maxRepeats)
	case c.Int("retries-runs") < 0 || c.Duration("cooldown") < 0 || c.Duration("hook-timeout") <= 0:
		return cli.Usagef("", "--retries-runs and --cooldown cannot be negative, and --hook-timeout not 0")
	case a.options.Shard.Of > 1 || !a.options.StartAt.IsZero():
		return cli.Usagef("", "several runs go without --shard and --start-at")
	case c.Bool("force"):
		return cli.Usagef("", "several runs are never replaced: name another directory with -o")
	case c.Bool("resume") && c.String("output") == "":
		return cli.Usagef("--resume -o DIR", "--resume: which directory?")
	}
	if err := a.parseCells(); err != nil {
		return err
	}
	for _, expr := range c.StringSlice("fail-if") {
		g, err := report.ParseGate(expr)
		if err != nil {
			return cli.Usagef("", "--fail-if %w", err)
		}
		a.gates = append(a.gates, g)
	}
	if a.gates != nil && len(a.cells) < 2 {
		return cli.Usagef("add another --backend", "--fail-if speaks of a comparison, and there is one backend")
	}
	if c.String("junit") != "" && a.gates == nil {
		return cli.Usagef("add --fail-if 'ttft.p99 > +5%'", "--junit writes gates, and there are none")
	}
	a.output = filepath.Clean(c.String("output"))
	if c.String("output") == "" {
		a.output = "ab-" + time.Now().Format("20060102-150405")
	}
	return nil
}

// maxRepeats is more than anyone waits for.
const maxRepeats = 1000

// parseCells reads --backend, --option, --before-run and --after-run. A cell is
// named by its label, or by its backend where no other has that name, or by its
// preset.
func (a *ab) parseCells() error {
	c := a.c
	args := c.StringSlice("backend")
	if len(args) == 0 {
		args = []string{"sim"}
	}
	if len(args) > 1 && c.String("url") != "" {
		return cli.Usagef("--backend vllm=URL --backend sglang=URL", "--url is of one backend, and there are %d", len(args))
	}
	kinds := map[string]int{}
	labels := make([]string, len(args))
	for i, arg := range args {
		labels[i], args[i] = cutLabel(arg)
		kind, _, _ := strings.Cut(args[i], "=")
		if labels[i] == "" {
			kinds[kind]++
		}
	}
	for i, arg := range args {
		e, err := parseEndpoint(arg, c.String("url"), nil)
		if err != nil {
			return err
		}
		name := labels[i]
		if name == "" {
			name = e.kind
			if kinds[e.kind] > 1 && e.preset != "" {
				name = e.preset
			}
		}
		if err := experiment.CheckName(name); err != nil {
			return cli.Usagef("--backend LABEL:"+e.kind+"=...", "--backend: %w", err)
		}
		if _, twice := a.endpoints[name]; twice {
			return cli.Usagef(fmt.Sprintf("label them: --backend a:%s --backend b:%s", arg, arg), "two backends are named %s", name)
		}
		if _, err := url.Parse(e.url); err != nil {
			return cli.Usagef("", "--backend %s: its address is none", name)
		}
		a.endpoints[name] = e
		a.cells = append(a.cells, experiment.Cell{Name: name, Backend: e.kind, URL: e.url})
	}
	for _, kv := range c.StringSlice("option") {
		name, rest, labelled := strings.Cut(kv, ":")
		_, known := a.endpoints[name]
		switch {
		case labelled && known:
			a.option(name, rest)
		case labelled && !strings.Contains(name, "="):
			return cli.Usagef("the backends are "+a.names(), "--option %s: no backend is named %s", kv, name)
		default:
			for i := range a.cells {
				a.option(a.cells[i].Name, kv)
			}
		}
	}
	for i := range a.cells {
		cell := &a.cells[i]
		e := a.endpoints[cell.Name]
		cell.Options = slices.Clone(e.options)
		if e.preset != "" {
			cell.Options = append([]string{"preset=" + e.preset}, cell.Options...)
		}
	}
	for _, f := range []struct {
		name string
		of   func(*experiment.Cell) *string
	}{
		{"before-run", func(c *experiment.Cell) *string { return &c.Before }},
		{"after-run", func(c *experiment.Cell) *string { return &c.After }},
	} {
		for _, arg := range c.StringSlice(f.name) {
			name, command, ok := strings.Cut(arg, "=")
			i := slices.IndexFunc(a.cells, func(c experiment.Cell) bool { return c.Name == name })
			switch {
			case !ok || strings.TrimSpace(command) == "":
				return cli.Usagef("--"+f.name+" '"+a.cells[0].Name+"=systemctl restart engine'", "--%s: want BACKEND=COMMAND", f.name)
			case i < 0:
				return cli.Usagef("the backends are "+a.names(), "--%s: no backend is named %q", f.name, name)
			case *f.of(&a.cells[i]) != "":
				return cli.Usagef("join them with &&", "--%s: there are two commands for %s", f.name, name)
			}
			*f.of(&a.cells[i]) = command
		}
	}
	return nil
}

// cutLabel takes LABEL: off NAME=VALUE. A colon behind the first = is of the
// value.
func cutLabel(arg string) (label, rest string) {
	name, _, _ := strings.Cut(arg, "=")
	if i := strings.IndexByte(name, ':'); i > 0 {
		return arg[:i], arg[i+1:]
	}
	return "", arg
}

func (a *ab) option(cell, kv string) {
	e := a.endpoints[cell]
	e.options = append(slices.Clip(e.options), kv)
	a.endpoints[cell] = e
}

func (a *ab) names() string {
	var names []string
	for _, c := range a.cells {
		names = append(names, c.Name)
	}
	return strings.Join(names, ", ")
}

// plan makes the plan of the sequence for servers that take t.
func (a *ab) plan(source replay.Source, t replay.Target) (*experiment.Plan, error) {
	p, err := replay.NewPlan(source, a.options, t)
	if err != nil {
		return nil, explain(a.trace, err)
	}
	m := replay.NewManifest("replay", safeArgs(os.Args[1:]), p, a.trace, replay.Server{})
	x := &experiment.Plan{
		Version: experiment.Version, Program: m.Program, Created: time.Now().UTC(), Args: m.Args, Trace: m.Trace.Name, Work: p.Digest,
		Target:   experiment.Target{MaxLen: p.MaxLen, MaxPrompt: p.MaxPrompt, VocabSize: int(p.Vocab.Low + p.Vocab.Size), MinID: int(p.Vocab.Low)},
		Requests: p.Rows, Repeats: a.c.Int("repeat"), Seed: a.options.Seed, Cells: a.cells,
		RunTime: p.Span() + runOverhead, RunBytes: runBytes(p),
	}
	if p.Waits() {
		x.Notes = append(x.Notes, "sends wait for answers: the duration is a guess")
	}
	for i := range x.Cells {
		x.Cells[i].URL = safeArgs([]string{x.Cells[i].URL})[0]
	}
	x.SetFlags(safeArgs(a.flags(ownFlags)))
	x.Schedule()
	return x, nil
}

// What a run takes besides its span: to start, and for the last answers.
const runOverhead = 3 * time.Second

// runBytes guesses what a run leaves on disk: its rows, the times of its chunks,
// and telemetry once a second.
func runBytes(p *replay.Plan) int64 {
	return 64<<10 + p.Rows*200 + p.OutputTokens*int64(p.Options.Loop)*3 + int64(p.Span().Seconds())*200
}

// planOnly prints what would be played. It asks no server.
func (a *ab) planOnly(source replay.Source) error {
	p, err := a.plan(source, replay.Target{MaxLen: a.options.MaxLen, VocabSize: a.options.VocabSize})
	if err != nil {
		return err
	}
	if a.c.Bool("json") {
		return cli.WriteJSON(a.c.App.Writer, p)
	}
	var t cli.Table
	t.Head = []string{"backend", "kind", "address", "options"}
	for _, c := range p.Cells {
		t.Row(c.Name, c.Backend, orDash(c.URL), orDash(strings.Join(c.Options, " ")))
	}
	if err := t.Write(a.c.App.Writer, ""); err != nil {
		return err
	}
	out := &strings.Builder{}
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
	n := time.Duration(len(p.Runs))
	fmt.Fprintf(out, "\n%s of %s requests, about %s each, about %s in all", plural(len(p.Runs), "run"), units.Count(p.Requests),
		units.About(p.RunTime), units.About(n*p.RunTime))
	if slices.ContainsFunc(p.Cells, func(c experiment.Cell) bool { return c.Before+c.After != "" }) {
		fmt.Fprint(out, " and what the commands around runs take")
	}
	fmt.Fprintf(out, "\nabout %s on disk\n", units.Bytes(int64(n)*p.RunBytes))
	for _, note := range p.Notes {
		fmt.Fprintf(out, "note: %s\n", note)
	}
	fmt.Fprintln(out, "note: no server was asked whether it takes these requests")
	_, err = io.WriteString(a.c.App.Writer, out.String())
	return err
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// open begins an experiment, or goes on with the one that is in the directory.
// Servers that are up are asked what they take before anything is written.
func (a *ab) open(ctx context.Context, source replay.Source) (*experiment.Folder, error) {
	old, err := experiment.ReadPlan(a.output)
	switch {
	case err == nil:
		p, err := a.plan(source, planTarget(old.Target))
		if err != nil {
			return nil, err
		}
		if d := old.Differs(p); d != "" {
			return nil, cli.Usagef("name another directory with -o", "%s is another experiment: %s", a.output, d)
		}
		if was, is := old.Program, p.Program; was.Version != is.Version || was.Revision != is.Revision {
			a.say("warning: the experiment was begun by %s, and this is %s", orDash(was.Version), orDash(is.Version))
		}
		if err := a.probe(ctx); err != nil {
			return nil, err
		}
		f, err := experiment.Open(a.output)
		if err != nil {
			return nil, err
		}
		// A command may have been put right.
		f.Plan.Cells = p.Cells
		a.cache = f.Plan.Cache
		return f, nil
	case !errors.Is(err, os.ErrNotExist):
		return nil, err
	case a.c.Bool("resume"):
		return nil, cli.Usagef("without --resume it begins", "%s: there is nothing to go on with", a.output)
	}
	if err := a.probe(ctx); err != nil {
		return nil, err
	}
	p, err := a.plan(source, a.common())
	if err != nil {
		return nil, err
	}
	p.Cache = a.chooseCache()
	a.cache = p.Cache
	p.Notes = append(p.Notes, a.cacheNotes()...)
	return experiment.Create(a.output, p)
}

// again is the command that goes on.
func (a *ab) again() string { return againIn(a.output, a.c.String("output") == "") }

// againIn is the command that goes on in a folder, which it may not have named.
func againIn(output string, unnamed bool) string {
	args := safeArgs(os.Args)
	if unnamed {
		args = append(args, "-o", output)
	}
	for i, arg := range args {
		if i > 0 && strings.ContainsFunc(arg, func(r rune) bool { return !strings.ContainsRune(plain, r) }) {
			args[i] = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
		}
	}
	args[0] = filepath.Base(args[0])
	return strings.Join(args, " ")
}

// plain characters mean nothing to a shell.
const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=@,+%"

// describe says what is about to be played.
func (a *ab) describe(f *experiment.Folder) {
	p, s := f.Plan, f.State
	if n := s.Count(experiment.Finished); n > 0 {
		a.say("%s: %d of %d runs are done", a.output, n, len(s.Runs))
	}
	a.say("%s: %s, %s requests each, in %s", p.Trace, plural(len(p.Runs), "run"), units.Count(p.Requests), a.output)
	for _, n := range p.Notes {
		a.say("note: %s", n)
	}
}
