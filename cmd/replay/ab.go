package main

import (
	"cmp"
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
	// What all servers of a sequence have to take, and so each run is told.
	serverFlags = []string{"max-model-len", "max-prompt-len", "vocab-size", "min-token-id"}
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

// An ab is the command line of several runs, or the matrix of an experiment.
type ab struct {
	c         *urfave.Context
	stderr    io.Writer
	trace     string         // of an A/B
	options   replay.Options // likewise
	cells     []experiment.Cell
	endpoints map[string]endpoint // by cell
	works     map[string]*work    // likewise
	gates     []report.Gate
	output    string
	quiet     bool

	retries               int // of runs that failed
	repeats               int
	seed                  uint64
	cooldown, hookTimeout time.Duration
	matrix                *experiment.Plan // what the plan says of a matrix beyond its cells; nil in an A/B
	skipImpossible        bool             // leave out cells that cannot be
	engines               engineHost

	probed map[string]experiment.Target // of embedded engines, which do not change
	seen   map[string]*server           // servers that are up all the time, by url
	cache  string                       // --cache of the runs, where it was not given
}

// A work is what some cells play: a trace, and the flags of a run.
type work struct {
	c       *urfave.Context
	trace   string
	options replay.Options
	source  replay.Source
	flags   []string // "name=value" of all but what a cell or a server decides
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
	a.works = map[string]*work{}
	one := &work{c: c, trace: a.trace, options: a.options, source: source, flags: a.flags(slices.Concat(ownFlags, planFlags, serverFlags))}
	for _, cell := range a.cells {
		a.works[cell.Name] = one
	}
	if c.Bool("plan-only") {
		return a.planOnly()
	}
	return a.playAll(ctx, interrupts)
}

// playAll begins or goes on with the runs, and reports them.
func (a *ab) playAll(ctx context.Context, interrupts *interrupts) error {
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

	folder, err := a.open(soft)
	if err != nil {
		return err
	}
	defer folder.Close()
	a.describe(folder)
	err = (&experiment.Sequence{
		Folder: folder, Retries: a.retries, HookTimeout: a.hookTimeout, Say: a.say,
		Ready:  a.ready,
		Narrow: a.narrow,
		Same:   a.same,
		Begin:  a.begin,
		Play: func(sctx context.Context, p experiment.Progress, dir string) error {
			return a.playRun(sctx, ctx, p, dir)
		},
	}).Run(soft, ctx)
	if stop := a.engines.stop(); stop != nil {
		a.say("warning: %v", stop)
	}
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
	if a.matrix != nil {
		return a.finishExperiment(soft, folder)
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
	a.retries, a.repeats, a.seed = c.Int("retries-runs"), c.Int("repeat"), a.options.Seed
	a.cooldown, a.hookTimeout = c.Duration("cooldown"), c.Duration("hook-timeout")
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
func (a *ab) plan(t replay.Target) (*experiment.Plan, error) {
	x := &experiment.Plan{}
	if a.matrix != nil {
		*x = *a.matrix
	}
	x.Version, x.Created, x.Repeats, x.Seed, x.Cells = experiment.Version, time.Now().UTC(), a.repeats, a.seed, slices.Clone(a.cells)
	x.Args = safeArgs(os.Args[1:])
	plans := map[*work]*replay.Plan{}
	var first *replay.Plan
	var waits bool
	var runs int64
	for i := range x.Cells {
		cell := &x.Cells[i]
		cell.URL = safeArgs([]string{cell.URL})[0]
		if cell.Skipped != "" {
			continue
		}
		w := a.works[cell.Name]
		p := plans[w]
		if p == nil {
			var err error
			if p, err = replay.NewPlan(w.source, w.options, t); err != nil {
				if err = a.impossible(cell, explain(w.trace, err)); err != nil {
					return nil, err
				}
				continue
			}
			plans[w] = p
		}
		if first == nil {
			first = p
			x.Program = replay.NewManifest("replay", nil, p, w.trace, replay.Server{}).Program
		}
		if cell.Trace == "" {
			cell.Trace = filepath.Base(w.trace)
		}
		cell.Work, cell.Requests, cell.RunTime, cell.RunBytes = p.Digest, p.Rows, p.Span()+runOverhead, runBytes(p)
		waits = waits || p.Waits()
		runs++
		x.RunTime, x.RunBytes = x.RunTime+cell.RunTime, x.RunBytes+cell.RunBytes
	}
	if first == nil {
		return nil, errors.New("no cell can be played")
	}
	x.RunTime, x.RunBytes = x.RunTime/time.Duration(runs), x.RunBytes/runs
	x.Trace, x.Work, x.Requests = common(x, func(c *experiment.Cell) string { return c.Trace }), common(x, func(c *experiment.Cell) string { return c.Work }), common(x, func(c *experiment.Cell) int64 { return c.Requests })
	x.Target = experiment.Target{MaxLen: first.MaxLen, MaxPrompt: first.MaxPrompt, VocabSize: int(first.Vocab.Low + first.Vocab.Size), MinID: int(first.Vocab.Low)}
	if a.matrix != nil {
		// What one cell's flags say is not for the others.
		x.Target.MaxLen, x.Target.MaxPrompt = t.MaxLen, t.MaxPrompt
	}
	if waits {
		x.Notes = append(slices.Clip(x.Notes), "sends wait for answers: the duration is a guess")
	}
	var flags []string
	if a.matrix == nil {
		flags = safeArgs(a.flags(ownFlags))
	}
	x.SetFlags(flags)
	x.Schedule()
	return x, nil
}

// common is what all cells that are played have, or nothing.
func common[T comparable](p *experiment.Plan, of func(*experiment.Cell) T) (v T) {
	var none T
	for i := range p.Cells {
		c := &p.Cells[i]
		switch {
		case c.Skipped != "":
		case v == none:
			v = of(c)
		case of(c) != v:
			return none
		}
	}
	return v
}

// What a run takes besides its span: to start, and for the last answers.
const runOverhead = 3 * time.Second

// runBytes guesses what a run leaves on disk: its rows, the times of its chunks,
// and telemetry once a second.
func runBytes(p *replay.Plan) int64 {
	return 64<<10 + p.Rows*200 + p.OutputTokens*int64(p.Options.Loop)*3 + int64(p.Span().Seconds())*200
}

// planOnly prints what would be played. It asks no server.
func (a *ab) planOnly() error {
	p, err := a.plan(replay.Target{MaxLen: a.options.MaxLen, VocabSize: a.options.VocabSize})
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
	writeOrder(out, p)
	took, bytes := p.Expected()
	fmt.Fprintf(out, "\n%s of %s requests, about %s each, about %s in all", plural(len(p.Runs), "run"), units.Count(p.Requests),
		units.About(p.RunTime), units.About(took))
	if slices.ContainsFunc(p.Cells, func(c experiment.Cell) bool { return c.Before+c.After != "" }) {
		fmt.Fprint(out, " and what the commands around runs take")
	}
	fmt.Fprintf(out, "\nabout %s on disk\n", units.Bytes(bytes))
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
func (a *ab) open(ctx context.Context) (*experiment.Folder, error) {
	old, err := experiment.ReadPlan(a.output)
	switch {
	case err == nil:
		p, err := a.plan(planTarget(old.Target))
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
	p, err := a.plan(a.common())
	if err != nil {
		return nil, err
	}
	p.Cache = a.chooseCache()
	a.cache = p.Cache
	p.Notes = append(p.Notes, a.cacheNotes()...)
	return experiment.Create(a.output, p)
}

// again is the command that goes on.
func (a *ab) again() string {
	if a.matrix != nil {
		return "replay experiment resume " + shellWord(a.output)
	}
	return againIn(a.output, a.c.String("output") == "")
}

// againIn is the command that goes on in a folder, which it may not have named.
func againIn(output string, unnamed bool) string {
	args := safeArgs(os.Args)
	if unnamed {
		args = append(args, "-o", output)
	}
	for i, arg := range args {
		if i > 0 {
			args[i] = shellWord(arg)
		}
	}
	args[0] = filepath.Base(args[0])
	return strings.Join(args, " ")
}

// shellWord is one word of a shell.
func shellWord(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune(plain, r) }) {
		return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	}
	return s
}

// plain characters mean nothing to a shell.
const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=@,+%"

// describe says what is about to be played.
func (a *ab) describe(f *experiment.Folder) {
	p, s := f.Plan, f.State
	if n := s.Count(experiment.Finished); n > 0 {
		a.say("%s: %d of %d runs are done", a.output, n, len(s.Runs))
	}
	if a.matrix == nil {
		a.say("%s: %s, %s requests each, in %s", p.Trace, plural(len(p.Runs), "run"), units.Count(p.Requests), a.output)
	} else {
		took, bytes := p.Expected()
		a.say("%s: %s, about %s and %s, in %s", cmp.Or(p.Title, "experiment"), plural(len(p.Runs), "run"), units.About(took), units.Bytes(bytes), a.output)
	}
	for _, n := range p.Notes {
		a.say("note: %s", n)
	}
}
