package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	urfave "github.com/urfave/cli/v2"

	"reprise/backends"
	_ "reprise/backends/openai"
	_ "reprise/backends/sglang"
	"reprise/backends/sim"
	_ "reprise/backends/vllm"
	"reprise/internal/cli"
	"reprise/internal/metrics"
	"reprise/internal/units"
	"reprise/internal/wire"
	"reprise/replay"
	"reprise/traceformat"
	_ "reprise/traceformat/convert"
)

const defaultConnect = 10 * time.Second

// play is the action of `replay TRACE`.
func play(c *urfave.Context) error {
	if c.Bool("virtual") {
		return playVirtual(c)
	}
	if c.IsSet("chunks") {
		return cli.Usagef("add --virtual", "--chunks goes with --virtual")
	}
	if sequenced(c) {
		return playSequence(c)
	}
	part, err := partOfSequence(os.Stdin)
	if err != nil {
		return err
	}
	trace, err := traceName(c)
	if err != nil {
		return err
	}
	o, err := options(c)
	if err != nil {
		return cli.Usagef("", "%w", err)
	}
	slos, err := metrics.ParseSLOs(c.StringSlice("slo"))
	if err != nil {
		return cli.Usagef("replay trace.parquet --slo 'ttft<500ms' --slo 'tpot<50ms'", "%w", err)
	}
	if as := c.String("metrics-as"); as != "" && !slices.Contains(metrics.Tools(), as) {
		return cli.Usagef("", "no metrics of %q; there are %s", as, strings.Join(metrics.Tools(), ", "))
	}
	limits, err := fidelityLimits(c)
	if err != nil {
		return err
	}
	ctx, interrupts, done := signals(c.App.ErrWriter)
	defer done()

	ref, check, err := commonStart(ctx, c, &o)
	if err != nil {
		return err
	}
	file, err := loadTokenizer(c)
	if err != nil {
		return err
	}
	source, name, closeSource, err := openSource(ctx, c, trace)
	if err != nil {
		return err
	}
	defer closeSource()

	where, err := onlyEndpoint(c)
	if err != nil {
		return err
	}
	srv, err := connect(ctx, c, where)
	if err != nil {
		return err
	}
	defer srv.stop()

	watched, err := watching(c, srv)
	if err != nil {
		return err
	}
	defer watched.drop()
	words, err := findWords(ctx, c, srv, file)
	if err != nil {
		return err
	}
	target := srv.target()
	target.Words = words
	plan, err := replay.NewPlan(source, o, target)
	if err != nil {
		return explain(name, err)
	}
	output := outputName(c, o.Shard)
	if err := apart(trace, output); err != nil {
		return err
	}
	cache, err := plan.PrepareCache(ctx, srv.backend, srv.info, func(s string) { fmt.Fprintln(c.App.ErrWriter, s) })
	if err != nil {
		return explainCache(err)
	}
	client, err := dial(c, srv.url, plan)
	if err != nil {
		return err
	}
	defer client.Close()

	m := replay.NewManifest("replay", safeArgs(os.Args[1:]), plan, name, replay.Server{
		Backend: srv.name, URL: srv.public, Client: client.Kind(), Info: srv.info,
	})
	m.Cache = cache
	dir, err := replay.CreateDir(output, m, plan, slos, limits, c.Bool("force"))
	if err != nil {
		return err
	}
	if as := c.String("metrics-as"); as != "" {
		if err := dir.MeasureAs(as); err != nil {
			return err
		}
	}
	if !c.Bool("quiet") {
		fmt.Fprintf(c.App.ErrWriter, "%s: %d requests over %s against %s\n", name, plan.Rows, units.Clock(plan.Span()), srv.describe())
		for _, w := range m.Warnings {
			fmt.Fprintf(c.App.ErrWriter, "warning: %s\n", w)
		}
	}

	progress := &replay.Progress{}
	telemetry, stopServing, err := watched.start(dir, progress, c.App.ErrWriter)
	if err != nil {
		return err
	}
	defer stopServing()
	view := &replay.View{
		Out: c.App.ErrWriter, Terminal: cli.IsTerminal(c.App.ErrWriter), Plan: plan, Progress: progress, Live: dir.Live(), Telemetry: telemetry,
	}
	part.show(view)
	viewDone := make(chan struct{})
	var viewing sync.WaitGroup
	if !c.Bool("quiet") {
		viewing.Go(func() { view.Run(viewDone) })
	}
	if telemetry != nil {
		telemetry.Ready(ctx)
	}
	interrupts.drain()
	running, record, relax := part.guard(ctx, dir.Record, progress)
	stats, runErr := plan.Run(running, replay.Config{
		Backend: srv.backend, Client: client, Header: srv.header, Record: record, Progress: progress, Drain: interrupts.first,
		Clock: check, Reference: ref,
	})
	relax()
	stopped, isStopped := errors.AsType[*stoppedError](runErr)
	if isStopped {
		m.Stopped = stopped.reason
	}
	close(viewDone)
	viewing.Wait()
	if err := srv.died(); err != nil && runErr == nil {
		m.Warnings = append(m.Warnings, err.Error())
	}
	ws := client.Stats()
	m.Server.Wire = &ws
	if ws.Resent > 0 {
		m.Warnings = append(m.Warnings, fmt.Sprintf("%d requests met a kept-alive connection that the server had just closed, and went out again on a new one", ws.Resent))
	}
	if stats.WarmError != "" {
		m.Warnings = append(m.Warnings, "connections could not be opened ahead: "+stats.WarmError)
	}
	cache.Finish(ctx, stats)

	// The figures are complete even where the disk was not.
	summary, closeErr := dir.Close(stats, runErr)
	if err := show(c, summary, m, dir); err != nil {
		return errors.Join(err, closeErr)
	}
	for _, w := range m.Warnings {
		fmt.Fprintf(c.App.ErrWriter, "warning: %s\n", w)
	}
	switch {
	case closeErr != nil:
		hint := ""
		if _, err := os.Stat(filepath.Join(output, traceformat.JournalPath(replay.TraceFile))); err == nil {
			hint = "trace recover " + output + " saves what the journal holds"
		}
		return &cli.Error{Code: cli.Failed, Err: fmt.Errorf("closing the run: %w", closeErr), Hint: hint}
	case isStopped:
		return nil // as asked
	case stats.Interrupted && (runErr == nil || errors.Is(runErr, context.Canceled)):
		return &cli.Error{Code: cli.Interrupted}
	case runErr != nil:
		return runErr
	case summary.Requests.OK == 0:
		return &cli.Error{Code: cli.Failed, Err: errors.New("no request succeeded"), Hint: "the summary counts the failures by class"}
	case !summary.Fidelity.Valid:
		return &cli.Error{Code: cli.Invalid}
	}
	return nil
}

func show(c *urfave.Context, s *metrics.Summary, m *replay.Manifest, dir *replay.Dir) error {
	if c.Bool("json") {
		return cli.WriteJSON(c.App.Writer, m)
	}
	if err := renderVirtual(c, m); err != nil {
		return err
	}
	color := cli.IsTerminal(c.App.Writer) && os.Getenv("NO_COLOR") == ""
	if err := metrics.RenderText(c.App.Writer, s, cli.Columns(c.App.Writer, 88), color); err != nil {
		return err
	}
	if err := m.Cache.Render(c.App.Writer, cli.Columns(c.App.Writer, 88)); err != nil {
		return err
	}
	if err := m.Stats.Batch.Render(c.App.Writer); err != nil {
		return err
	}
	if err := m.Telemetry.Render(c.App.Writer, cli.Columns(c.App.Writer, 88)); err != nil {
		return err
	}
	if as := c.String("metrics-as"); as != "" {
		fmt.Fprintln(c.App.Writer)
		if err := metrics.RenderFigures(c.App.Writer, as, dir.FiguresAs()); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(c.App.Writer, "\nrun: %s\n", dir.Path())
	return err
}

func options(c *urfave.Context) (replay.Options, error) {
	o := replay.Defaults()
	o.Seed = c.Uint64("seed")
	o.Start, o.Duration, o.Warmup = c.Duration("start"), c.Duration("duration"), c.Duration("warmup")
	o.Limit, o.Loop = c.Int64("limit"), c.Int("loop")
	o.Speedup, o.MaxInFlight = c.Float64("speedup"), c.Int("max-in-flight")
	o.TooLong, o.Missing = replay.Policy(c.String("too-long")), replay.Policy(c.String("missing"))
	o.MaxLen, o.VocabSize = c.Int("max-model-len"), c.Int("vocab-size")
	o.MaxPrompt, o.MinID = c.Int("max-prompt-len"), c.Int("min-token-id")
	o.Retries = c.Int("retries")
	o.FirstTokenTimeout, o.IdleTimeout, o.TotalTimeout = c.Duration("first-token-timeout"), c.Duration("idle-timeout"), c.Duration("timeout")
	o.Grace = c.Duration("grace")
	o.Spin = c.Duration("spin")
	o.SessionHeader = c.String("session-header")
	o.Sessions, o.Aborts = replay.SessionPolicy(c.String("sessions")), replay.AbortPolicy(c.String("aborts"))
	o.ScaleRate, o.Concurrency = c.Float64("scale-rate"), c.Int("concurrency")
	o.Batch = c.Int("batch")
	var errs []error
	var err error
	if o.Arrival, err = replay.ParseArrival(c.String("arrival"), c.String("rate")); err != nil {
		errs = append(errs, err)
	}
	if o.Cache, o.CacheSalt, err = replay.ParseCache(c.String("cache")); err != nil {
		errs = append(errs, err)
	}
	if s := c.String("shard"); s != "" {
		o.Shard, err = replay.ParseShard(s)
	} else {
		o.Shard, _, err = replay.ShardFromEnv(os.Getenv)
	}
	errs = append(errs, err)
	if s := c.String("start-at"); s != "" {
		if o.StartAt, err = time.Parse(time.RFC3339Nano, s); err != nil {
			errs = append(errs, fmt.Errorf("--start-at %q: want RFC 3339, such as 2026-01-31T12:00:00Z", s))
		}
	}
	o.MaxClockError = c.Duration("max-clock-error")
	return o, errors.Join(append(errs, o.Validate())...)
}

// interrupts is what a person's Ctrl-C does: before the run it ends the program;
// during it, the first ends the sending and the second everything.
type interrupts struct {
	first   chan struct{} // closed by the first one during the run
	running atomic.Bool
	note    string // to the user, at the first one
}

// drain says that from here on an interrupt is to be drained.
func (i *interrupts) drain() { i.running.Store(true) }

func signals(stderr io.Writer) (ctx context.Context, i *interrupts, done func()) {
	ctx, cancel := context.WithCancel(context.Background())
	i = &interrupts{first: make(chan struct{}), note: "interrupted: no more is sent, requests in flight may end; again to stop at once"}
	ch := make(chan os.Signal, 4)
	signal.Notify(ch, os.Interrupt, syscall.SIGTERM)
	go func() {
		drained := false
		var last time.Time
		for range ch {
			if time.Since(last) < cli.OneInterrupt {
				continue
			}
			last = time.Now()
			if i.running.Load() && !drained {
				drained = true
				fmt.Fprintln(stderr, "\n"+i.note)
				close(i.first)
				continue
			}
			cancel()
			time.Sleep(cli.OneInterrupt)
			signal.Stop(ch) // the next one ends the process, should this one not
		}
	}()
	return ctx, i, func() {
		signal.Stop(ch)
		close(ch)
		cancel()
	}
}

// openSource returns what opens the trace, as often as needed: standard input,
// which can be read once, is kept in a temporary file.
func openSource(ctx context.Context, c *urfave.Context, trace string) (source replay.Source, name string, done func(), err error) {
	name = trace
	var opts []traceformat.ReadOption
	if f := c.String("format"); f != "" {
		opts = append(opts, traceformat.WithFormat(f))
	}
	if c.Bool("dequantise") {
		opts = append(opts, traceformat.Dequantise())
	}
	opts = append(opts, generated(c, trace)...)
	path, done := name, func() {}
	if name == "-" {
		f, err := os.CreateTemp("", "replay-stdin-*")
		if err != nil {
			return nil, "", nil, err
		}
		done = func() { os.Remove(f.Name()) }
		copied := make(chan error, 1)
		go func() {
			_, err := io.Copy(f, os.Stdin)
			copied <- errors.Join(err, f.Close())
		}()
		select {
		case err = <-copied:
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err != nil {
			done()
			return nil, "", nil, fmt.Errorf("keeping standard input: %w", err)
		}
		path, name = f.Name(), "standard input"
	}
	return func() (traceformat.Reader, error) {
		rd, err := traceformat.Open(path, opts...)
		if err != nil {
			if row, ok := errors.AsType[*traceformat.RowError](err); ok && row.Name == path {
				row.Name = name // not that of the temporary file
			}
			return nil, err
		}
		return interruptible{rd, ctx}, nil
	}, name, done, nil
}

// interruptible is a Reader that ends with ctx.
type interruptible struct {
	traceformat.Reader
	ctx context.Context
}

func (r interruptible) All() iter.Seq2[*traceformat.Row, error] {
	return func(yield func(*traceformat.Row, error) bool) {
		n := 0
		for row, err := range r.Reader.All() {
			if n++; n%4096 == 0 && r.ctx.Err() != nil {
				yield(nil, r.ctx.Err())
				return
			}
			if !yield(row, err) {
				return
			}
		}
	}
}

// explain adds the file and the next step to what NewPlan says.
func explain(name string, err error) error {
	if errors.Is(err, context.Canceled) {
		return err
	}
	e := &cli.Error{Code: cli.Failed, Err: err}
	if plan, ok := errors.AsType[*replay.PlanError](err); ok {
		e.Err, e.Hint = fmt.Errorf("%s: %w", name, err), plan.Hint
	} else if unsorted, ok := errors.AsType[*replay.UnsortedError](err); ok {
		e.Err, e.Hint = fmt.Errorf("%s: %w", name, err), unsorted.Hint()
	} else if _, ok := errors.AsType[*traceformat.RowError](err); !ok && !strings.Contains(err.Error(), name) {
		e.Err = fmt.Errorf("%s: %w", name, err)
	}
	return e
}

// explainCache adds the next step where a cache cannot be had as asked for.
func explainCache(err error) error {
	if e, ok := errors.AsType[*backends.CacheError](err); ok {
		return &cli.Error{Code: cli.Failed, Err: err, Hint: e.Next}
	}
	return err
}

// A server is what the run plays against.
type server struct {
	name    string // of the backend
	url     string
	public  string // url for the manifest; empty for the embedded engine
	backend backends.Backend
	info    *backends.Info
	header  []wire.Field
	ask     func(ctx context.Context, path string, body []byte) (status int, answer []byte, err error)
	process *sim.Process // of the embedded engine
}

func (s *server) stop() {
	if s.process != nil {
		s.process.Stop()
	}
}

// died reports that the embedded engine ended before it was told to.
func (s *server) died() error {
	if s.process == nil {
		return nil
	}
	return s.process.Err()
}

func (s *server) describe() string {
	d := s.name
	if s.info.Engine != s.name && s.info.Engine != "" {
		d += " (" + s.info.Engine + ")"
	}
	if s.info.Version != "" {
		d += " " + s.info.Version
	}
	if preset := s.info.Config["preset"]; s.process != nil {
		return d + ", " + preset + ", simulated"
	}
	if s.info.Model != "" {
		d += ", model " + s.info.Model
	}
	return d
}

// target is what a plan has to know of the server.
func (s *server) target() replay.Target {
	i := s.info
	return replay.Target{MaxLen: i.MaxLen, MaxPrompt: i.MaxPrompt, VocabSize: i.VocabSize, MinID: i.MinID, Text: !s.backend.TokenIDs()}
}

// An endpoint is a server as the command line names it.
type endpoint struct {
	kind    string // of the backend
	url     string
	preset  string   // of the embedded engine, which has no url
	options []string // KEY=VALUE
}

// embedded says that the server is the engine that comes with this program.
func (e *endpoint) embedded() bool { return e.kind == "sim" && e.url == "" }

// parseOptions reads the options of e, its preset among them.
func (e *endpoint) parseOptions() (map[string]string, error) {
	kv := map[string]string{}
	for _, o := range e.options {
		k, v, ok := strings.Cut(o, "=")
		if !ok {
			return nil, cli.Usagef("--option max-num-seqs=64", "--option %q is not KEY=VALUE", o)
		}
		kv[k] = v
	}
	if e.embedded() && e.preset != "" {
		kv["preset"] = e.preset
	}
	return kv, nil
}

// simOptions are those of the embedded engine.
func (e *endpoint) simOptions() (sim.Options, error) {
	kv, err := e.parseOptions()
	if err != nil {
		return sim.Options{}, err
	}
	o, err := sim.ParseOptions(kv)
	if err != nil {
		return o, cli.Usagef("the presets are "+presetList(), "sim: %w", err)
	}
	return o, nil
}

func presetList() string { return strings.Join(sim.Presets(), ", ") }

// parseEndpoint reads NAME, NAME=URL or sim=PRESET.
func parseEndpoint(arg, url string, options []string) (endpoint, error) {
	name, value, _ := strings.Cut(arg, "=")
	e := endpoint{kind: name, url: url, options: options}
	switch {
	case name == "sim" && url == "" && !strings.Contains(value, "://"):
		e.preset = value
	case value != "":
		if url != "" {
			return e, cli.Usagef("", "--backend %s=%s and --url both name a server", name, value)
		}
		e.url = value
	}
	if !slices.Contains(backends.Names(), name) {
		return e, cli.Usagef("", "no backend %q; there are %s", name, strings.Join(backends.Names(), ", "))
	}
	if e.url == "" && !e.embedded() {
		return e, cli.Usagef(fmt.Sprintf("--backend %s --url http://127.0.0.1:8000", name), "no --url: which %s server should receive the trace?", name)
	}
	return e, nil
}

// onlyEndpoint is the server of --backend and --url.
func onlyEndpoint(c *urfave.Context) (endpoint, error) {
	name := "sim"
	if all := c.StringSlice("backend"); len(all) > 0 {
		name = all[0]
	}
	return parseEndpoint(name, c.String("url"), c.StringSlice("option"))
}

// connect starts the embedded engine if the server is that, and asks it what it
// is.
func connect(ctx context.Context, c *urfave.Context, e endpoint) (*server, error) {
	name := e.kind
	s := &server{name: name, url: e.url}
	opts, err := e.parseOptions()
	if err != nil {
		return nil, err
	}
	conf := backends.Config{Model: c.String("model"), APIKey: os.Getenv(c.String("api-key-env")), Chat: c.Bool("chat"), Options: opts}
	if e.embedded() {
		o, err := e.simOptions()
		if err != nil {
			return nil, err
		}
		p, err := sim.Start(ctx, o)
		if err != nil {
			return nil, err
		}
		s.process, s.url = p, p.URL
	}
	conf.URL = s.url
	b, err := backends.Open(name, conf)
	if err != nil {
		s.stop()
		return nil, cli.Usagef("", "%w", err)
	}
	if s.process == nil {
		s.public = s.url
	}
	s.backend, s.ask = b, conf.Ask
	if conf.APIKey != "" {
		s.header = []wire.Field{{Name: "Authorization", Value: "Bearer " + conf.APIKey}}
	}
	if s.url, err = conf.BaseURL(); err != nil {
		s.stop()
		return nil, cli.Usagef("", "%w", err)
	}
	probing, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if s.info, err = b.Probe(probing); err != nil {
		s.stop()
		hint := "is the server up? the embedded engine needs none: replay trace.parquet --backend sim"
		return nil, &cli.Error{Code: cli.Failed, Err: fmt.Errorf("asking %s at %s what it is: %w", name, s.url, err), Hint: hint}
	}
	if s.info.NoReuse {
		s.header = append(s.header, wire.Field{Name: "Connection", Value: "close"})
	}
	return s, nil
}

// dial makes the wire client of the run.
func dial(c *urfave.Context, base string, p *replay.Plan) (wire.Client, error) {
	if err := wire.Preflight(min(p.Connections, replay.MaxWarm)); err != nil {
		return nil, &cli.Error{Code: cli.Failed, Err: err, Hint: "--max-in-flight bounds the connections; requests beyond it are shed"}
	}
	o := wire.Options{Connect: c.Duration("connect-timeout"), RetryStale: true}
	switch kind := c.String("client"); kind {
	case "auto":
		return wire.New(base, o)
	case "raw":
		return wire.NewRaw(base, o)
	case "std":
		return wire.NewStd(base, o)
	default:
		return nil, cli.Usagef("", "--client is %q, want auto, raw or std", kind)
	}
}

func outputName(c *urfave.Context, s replay.Shard) string {
	if o := c.String("output"); o != "" {
		return filepath.Clean(o)
	}
	return defaultOutput(s)
}

func defaultOutput(s replay.Shard) string {
	name := "run-" + time.Now().Format("20060102-150405")
	if s.Of > 1 {
		name += fmt.Sprintf("-shard-%d-of-%d", s.Index, s.Of)
	}
	return name
}

// apart refuses to write the run over the trace that it plays.
func apart(trace, output string) error {
	target, err := os.Stat(filepath.Join(output, replay.TraceFile))
	if err != nil {
		return nil
	}
	for _, name := range []string{trace, filepath.Join(trace, replay.TraceFile)} {
		if s, err := os.Stat(name); err == nil && os.SameFile(s, target) {
			return cli.Usagef("", "-o %s is the run that is played: name another directory", output)
		}
	}
	return nil
}

func fidelityLimits(c *urfave.Context) (metrics.Limits, error) {
	l := metrics.DefaultLimits()
	if d := c.Duration("max-send-error"); d != 0 {
		if d < 0 {
			return l, cli.Usagef("", "--max-send-error is %v, want more than 0", d)
		}
		l.SendErrorP99, l.SendErrorFloor = d, d
	}
	if l.PromptShare = c.Float64("max-prompt-error"); !(l.PromptShare >= 0 && l.PromptShare <= 1) {
		return l, cli.Usagef("", "--max-prompt-error is %v, want a share from 0 to 1", l.PromptShare)
	}
	return l, nil
}

// safeArgs is the command line without what a manifest must not hold.
func safeArgs(args []string) []string {
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = withoutUser(a)
	}
	return out
}

// userInfo is the name and password of a URL, wherever that stands in an argument:
// --url=URL, vllm=URL.
var userInfo = regexp.MustCompile(`://[^/?#\s]*@`)

func withoutUser(arg string) string { return userInfo.ReplaceAllString(arg, "://") }
