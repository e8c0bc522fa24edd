package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"reprise/internal/cli"
	"reprise/internal/metrics"
	"reprise/internal/units"
	"reprise/replay"
	"reprise/replay/search"
	"reprise/traceformat"
)

// play plays a step and measures it. A run that fails is tried once more.
func (s *searching) play(ctx, force context.Context, step *search.Step) (*search.Run, error) {
	flags, plan, err := s.length(step)
	if err != nil {
		return nil, err
	}
	number := len(s.folder.Runs) + 1
	dir := filepath.Join(search.RunsDir, fmt.Sprintf("%03d-%s", number, s.label(step)))
	run := &search.Run{Number: number, Kind: step.Kind, Load: step.Load, Dir: filepath.ToSlash(dir), Why: step.Why, Planned: plan.Rows}
	what := string(step.Kind)
	if step.Load > 0 {
		what = s.spec.Format(step.Load)
	}
	s.say("run %d of at most %d: %s, %s requests (%s)", number, s.spec.Runs+s.spec.Confirm, what, units.Count(plan.Rows), step.Why)
	for attempt := 1; ; attempt++ {
		err := s.attempt(ctx, force, step, run, plan, flags)
		if err == nil || ctx.Err() != nil || attempt == 2 {
			return run, err
		}
		if e, ok := errors.AsType[*cli.Error](err); ok && e.Code == cli.Usage {
			return nil, err
		}
		s.say("run %d failed: %v; it is tried again, and what there is of it is kept beside it", number, err)
	}
}

// attempt plays a run into its directory once.
func (s *searching) attempt(ctx, force context.Context, step *search.Step, run *search.Run, plan *replay.Plan, flags []string) error {
	if err := s.folder.Aside(run.Dir); err != nil {
		return err
	}
	dir := filepath.Join(s.output, filepath.FromSlash(run.Dir))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := s.settle(ctx, run); err != nil {
		return err
	}
	spec := part{Label: fmt.Sprintf("run %d, %s", run.Number, s.label(step)), Terminal: cli.IsTerminal(s.stderr)}
	if step.Kind != search.Floor && step.Kind != search.Burst {
		spec.Watch = &search.Watch{
			Objectives: s.spec.Objectives, Confidence: s.spec.Confidence, Planned: plan.Rows, Laps: plan.Options.Loop, Closed: s.spec.By == search.Concurrency, Warmup: plan.Warmup(),
		}
	}
	run.Started = time.Now().UTC()
	code, said, err := playPart(ctx, force, spec, s.args(step, flags, dir), dir, &complaints{out: s.stderr, quiet: s.quiet})
	run.Took = time.Since(run.Started)
	m, readErr := replay.ReadManifest(dir)
	answered := readErr == nil && m.Summary != nil && m.Summary.Requests.OK > 0
	switch {
	case code == cli.Done || code == cli.Invalid:
	case ctx.Err() != nil:
		return errors.Join(context.Cause(ctx), s.folder.Aside(run.Dir))
	case code == cli.Failed && readErr == nil && m.State == replay.StateComplete && !answered && run.Load > 0:
		// It served a light load: that it answers nothing under this one is the
		// result.
	case code == cli.Usage:
		return cli.Usagef("", "%s", said)
	case code > 0:
		return errors.New(said)
	case err != nil:
		return err
	}
	if readErr != nil {
		return readErr
	}
	return s.measure(dir, m, run)
}

// measure reads what a run recorded.
func (s *searching) measure(dir string, m *replay.Manifest, run *search.Run) error {
	rd, err := traceformat.Open(filepath.Join(dir, replay.TraceFile))
	if err != nil {
		return err
	}
	defer rd.Close()
	run.Stopped = m.Stopped
	run.Measured, err = search.Measure(rd.All(), search.How{
		Objectives: s.spec.Objectives, Confidence: s.spec.Confidence, Kind: run.Kind, Closed: s.spec.By == search.Concurrency,
		Planned: run.Planned, Laps: m.Options.Loop, Warmup: m.Plan.Warmup, Stopped: m.Stopped != "",
	})
	if err != nil {
		return err
	}
	run.Warnings = append(run.Warnings, m.Warnings...)
	if m.Summary != nil && !m.Summary.Fidelity.Valid {
		// That a run was stopped is no fault of this machine.
		run.Invalid = slices.DeleteFunc(m.Summary.Fidelity.Reasons, func(why string) bool { return run.Stopped != "" && strings.HasPrefix(why, "never sent ") })
	}
	run.Judge()
	return nil
}

// label names a step in file names.
func (s *searching) label(step *search.Step) string {
	if step.Load == 0 {
		return string(step.Kind)
	}
	return string(s.spec.By) + "-" + strconv.FormatFloat(step.Load, 'f', -1, 64)
}

// settle waits until a server that is up has nothing to do.
func (s *searching) settle(ctx context.Context, run *search.Run) error {
	if s.server == nil {
		return nil
	}
	deadline := time.Now().Add(s.c.Duration("cooldown"))
	for !idle(ctx, s.server) {
		if !pause(ctx, deadline) {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			note := fmt.Sprintf("the engine was still busy after %v (--cooldown) when the run began", s.c.Duration("cooldown"))
			run.Warnings = append(run.Warnings, note)
			s.say("warning: %s", note)
			return nil
		}
	}
	return context.Cause(ctx)
}

// args are those of one run.
func (s *searching) args(step *search.Step, length []string, dir string) []string {
	args := append(s.flags(step), length...)
	// Its own summary counts goodput by one SLO a metric.
	seen := map[string]bool{}
	for _, o := range s.spec.Objectives {
		if !seen[o.Metric] {
			seen[o.Metric] = true
			args = append(args, "--slo="+o.SLO.String())
		}
	}
	if s.cache != "" {
		args = append(args, "--cache="+s.cache)
	}
	if s.quiet {
		args = append(args, "--quiet=true")
	}
	args = append(args, "--output="+dir)
	if !s.run.IsSet("synthetic") {
		args = append(args, "--", s.trace)
	}
	return args
}

// tell says in a line what came of a run.
func (s *searching) tell(r *search.Run) {
	var parts []string
	for i := range r.Objectives {
		j := &r.Objectives[i]
		parts = append(parts, fmt.Sprintf("%s %s of %s", j.Objective, units.Percent(j.Share()), units.Count(j.Of)))
	}
	line := fmt.Sprintf("  %s completed, TTFT p50 %s, %s", units.Rate(r.Completed), optional(r.TTFT.P50), strings.Join(parts, ", "))
	switch {
	case r.Overload != nil:
		line += fmt.Sprintf(": overload, %s in flight grew to %s", units.Count(r.Overload.From), units.Count(r.Overload.To))
	case r.Kind != search.Floor && r.Kind != search.Burst || r.Verdict == search.Fail:
		line += ": " + string(r.Verdict)
	}
	if r.Stopped != "" {
		line += ", stopped early as " + r.Stopped
	}
	if len(r.Invalid) > 0 {
		line += "; INVALID: " + strings.Join(r.Invalid, "; ")
	}
	s.say("%s", line)
}

func optional(v traceformat.Opt[metrics.Nanos]) string {
	if !v.OK {
		return "-"
	}
	return v.V.String()
}

// finish prints the search.
func (s *searching) finish() error {
	f := s.folder.File
	if s.c.Bool("json") {
		if err := cli.WriteJSON(s.c.App.Writer, f); err != nil {
			return err
		}
	} else {
		if err := f.RenderText(s.c.App.Writer); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(s.c.App.Writer, "\nsearch: %s\n", s.output); err != nil {
			return err
		}
	}
	switch {
	case !f.Result.Capacity.OK:
		return &cli.Error{Code: cli.Failed}
	case s.spec.Invalid(f.Runs):
		return &cli.Error{Code: cli.Invalid}
	}
	return nil
}
