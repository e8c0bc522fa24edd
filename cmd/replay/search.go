package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/internal/metrics"
	"reprise/internal/traceout"
	"reprise/internal/units"
	"reprise/replay"
	"reprise/replay/search"
	"reprise/synth"
)

// noSearchFlags are those of a run that a search sets itself, or that make no
// sense of several runs.
var noSearchFlags = []string{
	"speedup", "rate", "concurrency", "scale-rate", "loop", "shard", "start-at", "slo", "json", "output", "force", "metrics-as", "metrics-addr",
}

// loadFlags are those of noSearchFlags that say how much load there is.
var loadFlags = []string{"speedup", "rate", "concurrency", "scale-rate"}

// searchFlags are those that are not a run's.
func searchFlags() []urfave.Flag {
	return []urfave.Flag{
		&urfave.StringSliceFlag{Name: "slo", Usage: "what a load must keep: `METRIC.pNN<TIME`, at least NN % of the requests stay below TIME, for example 'ttft.p99<500ms'; of ttft, tpot, e2e"},
		&urfave.Float64Flag{Name: "share", Value: 0.99, Usage: "`SHARE` of the requests that an SLO without a percentile is for"},
		&urfave.StringFlag{Name: "by", Usage: "what load means: `speedup|rate|concurrency`; the recorded times faster, an arrival process, or sessions of a closed loop", DefaultText: "speedup, with --arrival rate"},
		&urfave.Float64Flag{Name: "min", Usage: "lowest `LOAD` to try"},
		&urfave.Float64Flag{Name: "max", Usage: "highest `LOAD` to try"},
		&urfave.IntFlag{Name: "runs", Value: 8, Usage: "play at most `N` runs"},
		&urfave.Float64Flag{Name: "within", Value: 0.03, Usage: "end when the load that fails is at most this `SHARE` above the one that passes"},
		&urfave.Float64Flag{Name: "confidence", Value: 0.95, Usage: "`LEVEL` of the intervals that verdicts rest on"},
		&urfave.Int64Flag{Name: "requests", Usage: "play exactly `N` requests a run", DefaultText: "what the percentile and the time of a request ask for"},
		&urfave.BoolFlag{Name: "curve", Usage: "let runs that are left play 25, 50, 75 and 90 % of the saturation throughput"},
		&urfave.IntFlag{Name: "confirm", Usage: "play the answer `N` times more"},
		&urfave.DurationFlag{Name: "cooldown", Value: time.Minute, Usage: "before each run, wait up to `TIME` for the engine to be idle"},
		&urfave.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "`DIR` for search.json and the runs; the same command goes on there", DefaultText: "search-DATE-TIME"},
		&urfave.BoolFlag{Name: "json", Usage: "print search.json"},
	}
}

// searchCommand is `replay search`; run are the flags of `replay TRACE`.
func searchCommand(run []urfave.Flag) *urfave.Command {
	var taken []string
	for _, f := range append(sequenceFlags(), searchFlags()...) {
		taken = append(taken, f.Names()[0])
	}
	flags := searchFlags()
	for _, f := range run {
		if name := f.Names()[0]; !slices.Contains(taken, name) && !slices.Contains(noSearchFlags, name) {
			flags = append(flags, f)
		}
	}
	// Whoever comes from `replay TRACE` gives them: parse says what to give instead.
	for _, name := range loadFlags {
		flags = append(flags, &urfave.StringFlag{Name: name, Hidden: true})
	}
	return &urfave.Command{
		Name:      "search",
		Usage:     "find the highest load that keeps the SLOs",
		UsageText: "replay search TRACE --slo 'ttft.p99<500ms' [--backend NAME[=URL]] [--by speedup|rate|concurrency] [-o DIR] [flags]",
		Description: `
Search plays TRACE at one load after another until the highest that keeps every SLO and
the lowest that does not lie within 3 % of each other. A light run and a burst come first:
they show the floor of the latencies and the saturation throughput. A run whose outcome is
certain is stopped early; one whose queue grows without bound is called overloaded. A
trace that is too short is played several times over. See docs/search.md.

DIR holds search.json, search.md and a run directory of each run. The same command with
that DIR goes on where it was stopped.

Examples:
  replay search trace.parquet --slo 'ttft.p99<500ms' --slo 'tpot.p95<50ms'
  replay search trace.parquet --slo 'e2e.p95<20s' --by concurrency --backend vllm=http://127.0.0.1:8000
  replay search model:azure-conv --slo 'ttft.p99<1s' --by rate --curve --confirm 3 -o capacity/

Exit status is 0 if a load meets the SLOs, 1 if none does or a run failed, 2 for a usage
error, 3 if this machine was the bottleneck of a run that the answer rests on, 130 if it was
interrupted (what was played is kept).`,
		Flags:  flags,
		Action: playSearch,
	}
}

// A searching is the command line of a search.
type searching struct {
	c      *urfave.Context
	stderr io.Writer
	quiet  bool
	base   []string        // flags of every run
	run    *urfave.Context // of a run with these flags
	trace  string
	spec   search.Spec
	output string
	folder *search.Folder

	endpoint endpoint
	server   *server // that is up all the time; nil for the embedded engine
	target   replay.Target
	cache    string // --cache of the runs, where it was not given
	source   replay.Source
}

// playSearch is the action of `replay search`.
func playSearch(c *urfave.Context) error {
	s := &searching{c: c, stderr: c.App.ErrWriter, quiet: c.Bool("quiet")}
	if err := s.parse(); err != nil {
		return err
	}
	ctx, interrupts, done := signals(c.App.ErrWriter)
	defer done()
	interrupts.note = "interrupted: requests in flight may end, then it stops; again to stop at once"
	source, _, closeSource, err := openSource(ctx, s.run, s.trace)
	if err != nil {
		return err
	}
	defer closeSource()
	s.source = source
	fresh, err := s.begin(ctx)
	if err != nil {
		return err
	}
	folder, begun, err := search.Open(s.output, fresh)
	if err != nil {
		return &cli.Error{Code: cli.Usage, Err: err, Hint: "name another directory with -o"}
	}
	defer folder.Close()
	s.folder, s.cache = folder, folder.Cache
	if begun {
		s.say("%s: %s done, it goes on", s.output, plural(len(folder.Runs), "run"))
	}
	for _, n := range folder.Notes {
		s.say("note: %s", n)
	}

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
	for {
		step, _ := s.spec.Next(folder.Runs)
		if step == nil {
			break
		}
		if soft.Err() != nil {
			return s.interrupted()
		}
		run, err := s.play(soft, ctx, step)
		switch {
		case soft.Err() != nil && err != nil:
			return s.interrupted()
		case err != nil:
			return &cli.Error{Code: cli.Failed, Err: err, Hint: "with that put right, to go on: " + againIn(s.output, c.String("output") == "")}
		}
		folder.Runs = append(folder.Runs, *run)
		if err := folder.Save(); err != nil {
			return err
		}
		s.tell(run)
	}
	if err := folder.Save(); err != nil { // the limits may be new, and no run was played
		return err
	}
	return s.finish()
}

func (s *searching) interrupted() error {
	return &cli.Error{
		Code: cli.Interrupted, Err: fmt.Errorf("interrupted: %s done and kept in %s", plural(len(s.folder.Runs), "run"), s.output),
		Hint: "to go on: " + againIn(s.output, s.c.String("output") == ""),
	}
}

func (s *searching) say(format string, args ...any) {
	if !s.quiet {
		fmt.Fprintf(s.stderr, format+"\n", args...)
	}
}

// parse reads the command line, and finds all that is wrong with it before
// anything starts.
func (s *searching) parse() error {
	c := s.c
	for _, name := range loadFlags {
		if c.IsSet(name) {
			hint := "leave it out; --by speedup|rate|concurrency says what load means, --min and --max bound it"
			if name != "scale-rate" {
				hint = fmt.Sprintf("leave it out; --by %s varies it, --min and --max bound it", name)
			}
			return cli.Usagef(hint, "--%s is a load, and the load is what a search varies", name)
		}
	}
	var err error
	if s.trace, err = traceName(c); err != nil {
		return err
	}
	if s.trace == "-" {
		return cli.Usagef("write it to a file first", "standard input can be read by one run alone")
	}
	if len(c.StringSlice("backend")) > 1 {
		return cli.Usagef("search each of them with a command of its own", "a search has one backend, and there are %d", len(c.StringSlice("backend")))
	}
	share := c.Float64("share")
	if !(share > 0 && share < 1) {
		return cli.Usagef("", "--share is %v, want more than 0 and less than 1", share)
	}
	objectives, err := metrics.ParseObjectives(c.StringSlice("slo"), share)
	if err != nil {
		return cli.Usagef("replay search trace.parquet --slo 'ttft.p99<500ms' --slo 'tpot.p95<50ms'", "%w", err)
	}
	s.spec = search.Spec{
		By: search.Axis(c.String("by")), Objectives: objectives, Confidence: c.Float64("confidence"), Within: c.Float64("within"), Runs: c.Int("runs"),
		Min: c.Float64("min"), Max: c.Float64("max"), Requests: c.Int64("requests"), Fixed: c.IsSet("requests"), Curve: c.Bool("curve"), Confirm: c.Int("confirm"),
	}
	if s.spec.By == "" {
		s.spec.By = search.Speedup
		if c.IsSet("arrival") {
			s.spec.By = search.Rate
		}
	}
	if s.spec.By != search.Rate && c.IsSet("arrival") {
		return cli.Usagef("--by rate", "--arrival is a process whose rate is the load, and --by is %s", s.spec.By)
	}
	if err := s.spec.Validate(); err != nil {
		return cli.Usagef("replay search trace.parquet --slo 'ttft.p99<500ms'", "%w", err)
	}
	if !s.spec.Fixed {
		s.spec.Requests = search.DefaultRequests(objectives, s.spec.Confidence)
	} else if s.spec.Requests < search.FloorRequests {
		return cli.Usagef("", "--requests is %d, want at least %d", s.spec.Requests, search.FloorRequests)
	}
	for _, o := range objectives {
		if n := search.LeastRequests(o, s.spec.Confidence); s.spec.Requests < n {
			return cli.Usagef(fmt.Sprintf("--requests %d or more", n), "no run of %d requests can show that %s holds: at a confidence of %s it takes %d that all meet it",
				s.spec.Requests, o, units.Percent(s.spec.Confidence), n)
		}
	}
	if c.Duration("cooldown") < 0 {
		return cli.Usagef("", "--cooldown cannot be negative")
	}
	var own []string
	for _, f := range searchFlags() {
		own = append(own, f.Names()[0])
	}
	for _, f := range givenFlags(c, c.Command.Flags, append(own, "quiet")) {
		s.base = append(s.base, "--"+f)
	}
	if s.run, err = runContext(s.c.App, s.base); err != nil {
		return err
	}
	// A rate stands for all of them: the arrivals are checked with it.
	if _, err := s.options(&search.Step{Kind: search.Probe, Load: max(1, s.spec.Min)}); err != nil {
		return cli.Usagef("", "%w", err)
	}
	if _, err := fidelityLimits(s.run); err != nil {
		return err
	}
	if s.endpoint, err = onlyEndpoint(s.run); err != nil {
		return err
	}
	if s.run.Bool("virtual") {
		if err := onlySimulated(s.run, s.endpoint); err != nil {
			return err
		}
	}
	if o := c.String("output"); traceout.Remote(o) {
		return severalRuns(o)
	}
	s.output = filepath.Clean(c.String("output"))
	if c.String("output") == "" {
		s.output = "search-" + time.Now().Format("20060102-150405")
	}
	return nil
}

// load are the flags that make the load of a step.
func (s *searching) load(step *search.Step) []string {
	number := strconv.FormatFloat(step.Load, 'f', -1, 64)
	switch {
	case step.Kind == search.Floor:
		return []string{"--concurrency=1"}
	case step.Kind == search.Burst:
		return []string{"--concurrency=" + strconv.FormatInt(step.Requests, 10)}
	case s.spec.By == search.Speedup:
		return []string{"--speedup=" + number}
	case s.spec.By == search.Rate:
		return []string{"--rate=" + number}
	}
	return []string{"--concurrency=" + number}
}

// flags are those of a run, its length left out.
func (s *searching) flags(step *search.Step) []string {
	light := step.Kind == search.Floor || step.Kind == search.Burst
	var out []string
	for _, f := range s.base {
		name, _, _ := strings.Cut(strings.TrimPrefix(f, "--"), "=")
		// The first two runs have no arrivals, and are too short to warm up.
		if light && (name == "arrival" || name == "warmup") {
			continue
		}
		if name == "limit" {
			continue // length knows of it
		}
		if f == "--sessions="+string(replay.SessionsBoth) && light {
			f = "--sessions=" + string(replay.SessionsThink)
		}
		out = append(out, f)
	}
	return append(out, s.load(step)...)
}

// options are those of a run of one lap.
func (s *searching) options(step *search.Step) (replay.Options, error) {
	c, err := runContext(s.c.App, s.flags(step))
	if err != nil {
		return replay.Options{}, err
	}
	return options(c)
}

// mostBase is a rate that no recorded traffic has: times that mean nothing.
const mostBase = 1e7

// maxLaps bounds how often a trace is played over.
const maxLaps = 10_000

// length returns the flags that give a run of a step its number of requests, and
// its plan. A trace that is too short is played over; a model goes on for longer.
func (s *searching) length(step *search.Step) (flags []string, p *replay.Plan, err error) {
	o, err := s.options(step)
	if err != nil {
		return nil, nil, err
	}
	want := step.Requests
	o.Limit = want
	if l := s.run.Int64("limit"); l > 0 {
		o.Limit = min(l, want)
	}
	flags = []string{fmt.Sprintf("--limit=%d", o.Limit)}
	plan := func() (err error) {
		if p, err = replay.NewPlan(s.source, o, s.target); err != nil {
			return explain(s.trace, err)
		}
		return nil
	}
	if err := plan(); err != nil {
		return nil, nil, err
	}
	if p.Rows < want && p.Rows > 0 {
		laps := (want + p.Rows - 1) / p.Rows
		if laps > maxLaps {
			return nil, nil, fmt.Errorf("%s has %d requests, and a run needs %s: that is more than %d laps", s.trace, p.Rows, units.Count(want), maxLaps)
		}
		o.Loop = int(laps)
		flags = append(flags, fmt.Sprintf("--loop=%d", laps))
		if err := plan(); err != nil {
			return nil, nil, err
		}
	}
	return flags, p, nil
}

// begin asks the server what it takes and looks at the trace, and describes the
// search.
func (s *searching) begin(ctx context.Context) (*search.File, error) {
	srv, err := connect(ctx, s.run, s.endpoint)
	if err != nil {
		return nil, err
	}
	srv.stop()
	s.target = planTarget(targetOf(srv))
	f := &search.File{
		Version: search.Version, Created: time.Now().UTC().Truncate(time.Second), Args: safeArgs(os.Args[1:]), Trace: filepath.Base(s.trace),
		Backend: srv.describe(),
	}
	if !s.endpoint.embedded() {
		s.server = srv
		if !s.run.IsSet("cache") {
			if srv.info.Cache.Salt || srv.info.Cache.Off {
				f.Cache = string(replay.CacheSalted)
				f.Notes = append(f.Notes, "each run has a salt of its own, so that it finds nothing of the runs before it in the prefix cache; --cache warm or cold says otherwise")
			} else {
				f.Notes = append(f.Notes, "the engine keeps its prefix cache between runs: later ones find the prompts of earlier ones there; --cache cold empties it where the engine can")
			}
		}
	}
	if err := s.lengthen(ctx); err != nil {
		return nil, err
	}
	step := &search.Step{Kind: search.Probe, Load: 1, Requests: s.spec.Requests}
	flags, p, err := s.length(step)
	if err != nil {
		return nil, err
	}
	if len(flags) > 1 {
		f.Notes = append(f.Notes, fmt.Sprintf("a run needs %s requests, which is more than the part of %s to play has: it is played over, with new prompts each time", units.Count(s.spec.Requests), f.Trace))
	}
	switch s.spec.By {
	case search.Rate:
		s.spec.Base = 1
	case search.Speedup:
		s.spec.Base = float64(p.Rows) / p.Span().Seconds()
		if !(s.spec.Base < mostBase) {
			return nil, cli.Usagef("--by rate or --by concurrency", "all requests of %s arrive at one moment: there is nothing to speed up", s.trace)
		}
	}
	f.Program = replay.NewManifest("replay", nil, p, s.trace, replay.Server{Info: srv.info}).Program
	f.Digest = p.Digest
	for _, b := range s.base {
		f.Flags = append(f.Flags, withoutUser(strings.TrimPrefix(b, "--")))
	}
	slices.Sort(f.Flags)
	f.Spec = s.spec
	return f, nil
}

// lengthen makes generated traffic go on for as long as the longest runs need, so
// that it need not be played over.
func (s *searching) lengthen(ctx context.Context) error {
	generated := strings.HasPrefix(s.trace, synth.Scheme) || strings.HasPrefix(s.trace, synth.SpecScheme)
	if !generated || s.run.IsSet("duration") || s.run.IsSet("limit") {
		return nil
	}
	most := s.spec.Longest()
	o, err := s.options(&search.Step{Kind: search.Probe, Load: 1})
	if err != nil {
		return err
	}
	o.Limit = most
	p, err := replay.NewPlan(s.source, o, s.target)
	if err != nil {
		return explain(s.trace, err)
	}
	if p.Rows == 0 || p.Rows >= most {
		return nil
	}
	d := time.Duration(1.3 * float64(p.Lap) * float64(most) / float64(p.Rows)).Truncate(time.Second)
	s.base = append(s.base, "--duration="+d.String())
	if s.run, err = runContext(s.c.App, s.base); err != nil {
		return err
	}
	s.source, _, _, err = openSource(ctx, s.run, s.trace) // a generated one leaves nothing behind
	return err
}
