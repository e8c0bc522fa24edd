package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	urfave "github.com/urfave/cli/v2"

	"reprise/backends/sim"
	"reprise/internal/cli"
	"reprise/internal/metrics"
	"reprise/internal/units"
	"reprise/replay"
)

// Flags that speak of a server, of sockets or of the clock on the wall.
var realFlags = []string{
	"url", "model", "chat", "tokenizer", "api-key-env", "start-at", "retries", "connect-timeout", "first-token-timeout", "idle-timeout",
	"timeout", "spin", "grace", "client", "max-send-error", "max-prompt-error", "metrics-url", "metrics-addr", "gpu",
}

// onlySimulated refuses a server, and flags of one, in virtual time.
func onlySimulated(c *urfave.Context, e endpoint) error {
	for _, f := range realFlags {
		if c.IsSet(f) {
			return cli.Usagef("leave it out", "--%s means nothing in virtual time: no server is asked and nothing waits", f)
		}
	}
	if !e.embedded() {
		return cli.Usagef("--backend sim", "--virtual plays against the simulated engine alone, and --backend is %s", e.kind)
	}
	return nil
}

// playVirtual is the action of `replay TRACE --virtual`.
func playVirtual(c *urfave.Context) error {
	if sequenced(c) {
		return cli.Usagef("play them one by one: replay TRACE --virtual -o DIR", "--virtual goes with one backend and one run")
	}
	trace, err := traceName(c)
	if err != nil {
		return err
	}
	o, err := options(c)
	if err != nil {
		return cli.Usagef("", "%w", err)
	}
	where, err := onlyEndpoint(c)
	if err != nil {
		return err
	}
	if err := onlySimulated(c, where); err != nil {
		return err
	}
	v := &virtualRun{endpoint: where, options: o, output: outputName(c, o.Shard), quiet: c.Bool("quiet")}
	if err := v.flags(c); err != nil {
		return err
	}
	ctx, interrupts, done := signals(c.App.ErrWriter)
	defer done()
	source, name, closeSource, err := openSource(ctx, c, trace)
	if err != nil {
		return err
	}
	defer closeSource()
	if err := apart(trace, v.output); err != nil {
		return err
	}
	v.source, v.name = source, name
	v.started = interrupts.drain
	v.drain = interrupts.first
	m, dir, err := v.play(ctx, c)
	if m == nil || m.Summary == nil {
		return err
	}
	if e := show(c, m.Summary, m, dir); e != nil {
		return errors.Join(e, err)
	}
	switch {
	case m.Stats.Interrupted && (err == nil || errors.Is(err, context.Canceled)):
		return &cli.Error{Code: cli.Interrupted}
	case err != nil:
		return err
	case m.Summary.Requests.OK == 0:
		return &cli.Error{Code: cli.Failed, Err: errors.New("no request succeeded"), Hint: "the summary counts the failures by class"}
	case !m.Summary.Fidelity.Valid:
		return &cli.Error{Code: cli.Invalid}
	}
	return nil
}

// A virtualRun is one run in virtual time.
type virtualRun struct {
	endpoint endpoint
	options  replay.Options
	source   replay.Source
	name     string // of the trace
	output   string
	slos     []metrics.SLO
	limits   metrics.Limits
	chunks   bool
	observe  bool
	period   time.Duration // of observations, at least
	quiet    bool

	started func()          // called before the run
	drain   <-chan struct{} // ends the sending
}

// flags reads those of the command line that are not the plan's.
func (v *virtualRun) flags(c *urfave.Context) (err error) {
	if v.slos, err = metrics.ParseSLOs(c.StringSlice("slo")); err != nil {
		return cli.Usagef("replay trace.parquet --slo 'ttft<500ms' --slo 'tpot<50ms'", "%w", err)
	}
	v.limits = metrics.DefaultLimits()
	for _, f := range []struct {
		name string
		on   *bool
	}{{"chunks", &v.chunks}, {"telemetry", &v.observe}} {
		switch s := c.String(f.name); s {
		case "on":
			*f.on = true
		case "off":
		default:
			return cli.Usagef("", "--%s is %q, want on or off", f.name, s)
		}
	}
	rate := c.Float64("metrics-rate")
	if !(rate >= 0 && rate <= maxRate) {
		return cli.Usagef("", "--metrics-rate is %v, want 0 to %d times a second", rate, maxRate)
	}
	if rate == 0 {
		v.observe = false
	} else {
		v.period = time.Duration(float64(time.Second) / rate)
	}
	return nil
}

// play plays the run and writes its directory. The manifest is there, with its
// summary, as soon as the run began, whatever the error.
func (v *virtualRun) play(ctx context.Context, c *urfave.Context) (*replay.Manifest, *replay.Dir, error) {
	kv, err := v.endpoint.simOptions()
	if err != nil {
		return nil, nil, err
	}
	conf, info, err := sim.Virtual(kv)
	if err != nil {
		return nil, nil, cli.Usagef("the presets are "+presetList(), "%w", err)
	}
	plan, err := replay.NewPlan(v.source, v.options, replay.Target{MaxLen: info.MaxLen, VocabSize: info.VocabSize, MinID: info.MinID})
	if err != nil {
		return nil, nil, explain(v.name, err)
	}
	progress := &replay.Progress{}
	vc := replay.VirtualConfig{Engine: conf, Progress: progress, Drain: v.drain, Chunks: v.chunks, Every: plan.ObservePeriod(v.period)}
	m := replay.NewManifest("replay", safeArgs(os.Args[1:]), plan, v.name, replay.Server{Backend: "sim", Client: "virtual", Info: info})
	m.Virtual = true
	dir, err := replay.CreateDir(v.output, m, plan, v.slos, v.limits, c.Bool("force"))
	if err != nil {
		return nil, nil, err
	}
	if as := c.String("metrics-as"); as != "" {
		if err := dir.MeasureAs(as); err != nil {
			return nil, nil, cli.Usagef("", "%w", err)
		}
	}
	if v.observe {
		if err := dir.StartVirtualTelemetry(&vc); err != nil {
			return nil, nil, err
		}
	}
	vc.Record = dir.Record
	run, err := replay.NewVirtual(plan, vc)
	if err != nil {
		return nil, nil, err
	}
	if m.Cache, err = run.PrepareCache(ctx, info); err != nil {
		return nil, nil, explainCache(err)
	}
	if !v.quiet {
		fmt.Fprintf(c.App.ErrWriter, "%s: %d requests over %s against sim, %s, in virtual time\n", v.name, plan.Rows, units.Clock(plan.Span()), info.Config["preset"])
	}
	watched := make(chan struct{})
	var watching sync.WaitGroup
	if !v.quiet {
		watching.Go(func() { v.watch(c, plan, progress, watched) })
	}
	if v.started != nil {
		v.started()
	}
	stats, runErr := run.Run(ctx)
	close(watched)
	watching.Wait()
	m.Simulation = run.Simulation()
	m.Simulation.Fitted = kv.Fitted
	m.Cache.Finish(ctx, stats)
	_, closeErr := dir.Close(stats, runErr)
	if closeErr != nil {
		return m, dir, &cli.Error{Code: cli.Failed, Err: fmt.Errorf("closing the run: %w", closeErr)}
	}
	return m, dir, runErr
}

// watch says how far the simulation is.
func (v *virtualRun) watch(c *urfave.Context, p *replay.Plan, progress *replay.Progress, done <-chan struct{}) {
	tick := time.NewTicker(replay.Every)
	defer tick.Stop()
	begin := time.Now()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		s, _ := progress.Snapshot()
		fmt.Fprintf(c.App.ErrWriter, "simulated %s of %s  sent %s of %s  in flight %s  %s\n", units.Clock(s.Elapsed), units.Clock(p.Span()),
			units.Count(s.Sent), units.Count(p.Rows), units.Count(s.InFlight), timesReal(s.Elapsed, time.Since(begin)))
	}
}

// timesReal says how much faster than the clock a simulation was.
func timesReal(virtual, real time.Duration) string {
	return fmt.Sprintf("%.3g times as fast as the clock", virtual.Seconds()/max(real.Seconds(), 1e-9))
}

// renderVirtual writes the lines of a summary that say what its times are.
func renderVirtual(c *urfave.Context, m *replay.Manifest) error {
	if !m.Virtual {
		return nil
	}
	s := m.Simulation
	if f := s.Fitted; f != nil {
		fmt.Fprintf(c.App.Writer, "simulated as fitted to %s %s; so far its simulations were off by\n\n", f.Engine, f.Release)
		if err := renderFit(c.App.Writer, f); err != nil {
			return err
		}
		fmt.Fprintln(c.App.Writer)
	}
	_, err := fmt.Fprintf(c.App.Writer, "simulated in virtual time: %s of %s in %s, %s; %s passes, %s preemptions\n\n",
		units.Clock(m.Stats.Elapsed), m.Server.Info.Config["preset"], units.Duration(s.Took), timesReal(m.Stats.Elapsed, s.Took), units.Count(s.Passes), units.Count(s.Preemptions))
	return err
}
