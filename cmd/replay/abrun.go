package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/internal/units"
	"reprise/replay"
	"reprise/replay/experiment"
	"reprise/replay/search"
)

// summaryFile is what a run of a sequence printed, in its run directory.
const summaryFile = "summary.txt"

// flags writes the flags that were given as "name=value", those left out.
func (a *ab) flags(without []string) []string { return givenFlags(a.c, a.c.App.Flags, without) }

// givenFlags writes those of flags that were given as "name=value", those left
// out.
func givenFlags(c *urfave.Context, flags []urfave.Flag, without []string) (out []string) {
	for _, f := range flags {
		name := f.Names()[0]
		if !c.IsSet(name) || slices.Contains(without, name) {
			continue
		}
		switch v := c.Value(name).(type) {
		case urfave.StringSlice:
			for _, s := range v.Value() {
				out = append(out, name+"="+s)
			}
		case []string:
			for _, s := range v {
				out = append(out, name+"="+s)
			}
		default:
			out = append(out, fmt.Sprintf("%s=%v", name, v))
		}
	}
	return out
}

// probe asks the servers what they are that nothing starts.
func (a *ab) probe(ctx context.Context) error {
	alike := map[string]experiment.Target{} // by what was asked
	for i := range a.cells {
		cell := &a.cells[i]
		if cell.Before != "" || cell.Launch != nil || cell.Skipped != "" {
			continue
		}
		e := a.endpoints[cell.Name]
		key := fmt.Sprintf("%q", append([]string{e.kind, e.url, e.preset}, e.options...))
		t, asked := alike[key]
		if !asked {
			srv, err := connect(ctx, a.works[cell.Name].c, e)
			if err != nil {
				if err = a.impossible(cell, err); err != nil {
					return err
				}
				continue
			}
			srv.stop()
			t = targetOf(srv)
			alike[key] = t
			if !e.embedded() {
				a.seen[e.url] = srv
			}
		}
		a.probed[cell.Name] = t
	}
	return nil
}

// impossible is what to do about a cell that cannot be: nothing, where the matrix
// says that it may be left out, which is noted in the cell.
func (a *ab) impossible(cell *experiment.Cell, err error) error {
	if a.matrix == nil {
		return err
	}
	if a.skipImpossible {
		cell.Skipped = "impossible: " + firstLine(err)
		for i := range a.cells {
			if a.cells[i].Name == cell.Name {
				a.cells[i].Skipped = cell.Skipped
			}
		}
		return nil
	}
	e := &cli.Error{Code: cli.Failed, Err: fmt.Errorf("cell %s: %w", cell.Name, err), Hint: "exclude it, or say impossible: skip"}
	if own, ok := errors.AsType[*cli.Error](err); ok && own.Hint != "" {
		e.Code, e.Hint = own.Code, own.Hint+"; or exclude the cell, or say impossible: skip"
	}
	return e
}

func targetOf(s *server) experiment.Target {
	t := s.target()
	return experiment.Target{MaxLen: t.MaxLen, MaxPrompt: t.MaxPrompt, VocabSize: t.VocabSize, MinID: t.MinID}
}

// common is what all servers take that were asked, and the flags' word over it.
func (a *ab) common() replay.Target {
	var t replay.Target
	asked := false
	for _, cell := range a.cells {
		x, ok := a.probed[cell.Name]
		if !ok {
			continue
		}
		if !asked {
			t, asked = planTarget(x), true
		}
		t = t.Common(planTarget(x)) // with itself too: that settles what a server does not say
	}
	return t
}

// narrow returns what both can take. Flags have the last word.
func (a *ab) narrow(x, y experiment.Target) experiment.Target {
	t := planTarget(x).Common(planTarget(y))
	o := &a.options
	return experiment.Target{
		MaxLen: cmp.Or(o.MaxLen, t.MaxLen), MaxPrompt: cmp.Or(o.MaxPrompt, t.MaxPrompt),
		VocabSize: cmp.Or(o.VocabSize, t.VocabSize), MinID: cmp.Or(o.MinID, t.MinID),
	}
}

// same says whether the requests that a cell plans for two targets are the same.
func (a *ab) same(cell *experiment.Cell, x, y experiment.Target) (bool, error) {
	if x.VocabSize != y.VocabSize || x.MinID != y.MinID {
		return false, nil
	}
	w := a.works[cell.Name]
	var digests [2]string
	for i, t := range []experiment.Target{x, y} {
		p, err := replay.NewPlan(w.source, w.options, planTarget(t))
		if err != nil {
			return false, &experiment.FatalError{Err: explain(w.trace, err)}
		}
		digests[i] = p.Digest
	}
	return digests[0] == digests[1], nil
}

// planTarget is what a plan has to know.
func planTarget(t experiment.Target) replay.Target {
	return replay.Target{MaxLen: t.MaxLen, MaxPrompt: t.MaxPrompt, VocabSize: t.VocabSize, MinID: t.MinID}
}

// chooseCache keeps runs apart in the cache of servers that stay up, where that
// is possible and nothing else was asked for. Empty is what the flags say.
func (a *ab) chooseCache() string {
	if a.c.IsSet("cache") || len(a.seen) == 0 {
		return ""
	}
	for _, s := range a.seen {
		if !s.info.Cache.Salt && !s.info.Cache.Off {
			return ""
		}
	}
	for _, cell := range a.cells {
		if e := a.endpoints[cell.Name]; cell.Before != "" || e.embedded() {
			return ""
		}
	}
	return string(replay.CacheSalted)
}

// cacheNotes say what prefix caches do to the runs.
func (a *ab) cacheNotes() []string {
	switch {
	case a.cache != "":
		return []string{"each run has a salt of its own, so that it finds nothing of the runs before it in the prefix cache; --cache warm, cold or salt says otherwise"}
	case len(a.seen) > 0 && a.options.Cache == replay.CacheWarm && a.c.Int("repeat") > 1:
		return []string{"engines that stay up keep their prefix cache: later repeats find the prompts of earlier ones there; --cache cold or --cache salt keeps runs apart"}
	}
	return nil
}

// The wait for servers between two runs.
const idlePause = 250 * time.Millisecond

// ready waits until the server of a cell answers and until it and all others
// that are up have nothing to do.
func (a *ab) ready(ctx context.Context, cell *experiment.Cell) (t experiment.Target, notes []string, err error) {
	e, c := a.endpoints[cell.Name], a.works[cell.Name].c
	deadline := time.Now().Add(a.cooldown)
	var srv *server
	if e.embedded() {
		t = a.probed[cell.Name]
		if cell.Before != "" && t == (experiment.Target{}) {
			if srv, err = connect(ctx, c, e); err != nil {
				return t, nil, err
			}
			srv.stop()
			t = targetOf(srv)
			a.probed[cell.Name] = t
			srv = nil
		}
	} else {
		for {
			if srv, err = connect(ctx, c, e); err == nil {
				break
			}
			if own, ok := errors.AsType[*cli.Error](err); ok && own.Code == cli.Usage {
				return t, nil, &experiment.FatalError{Err: err}
			}
			if !pause(ctx, deadline) {
				return t, nil, errors.Join(context.Cause(ctx), err)
			}
		}
		t = targetOf(srv)
		a.engines.info = srv.info
	}
	busy := []*server{}
	if srv != nil {
		busy = append(busy, srv)
	}
	for url, s := range a.seen {
		if url != e.url {
			busy = append(busy, s)
		}
	}
	for {
		busy = slices.DeleteFunc(busy, func(s *server) bool { return idle(ctx, s) })
		if len(busy) == 0 {
			return t, nil, context.Cause(ctx)
		}
		if !pause(ctx, deadline) {
			if err := context.Cause(ctx); err != nil {
				return t, nil, err
			}
			note := fmt.Sprintf("%s was still busy after %v (--cooldown) when the run began", busy[0].name, a.cooldown)
			a.say("warning: %s", note)
			return t, []string{note}, nil
		}
	}
}

// pause waits a moment, and says whether the deadline is still ahead.
func pause(ctx context.Context, deadline time.Time) bool {
	if !time.Now().Before(deadline) {
		return false
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(idlePause):
		return true
	}
}

// idle says that a server has nothing to do, or does not say.
func idle(ctx context.Context, s *server) bool {
	cache, ok := s.backend.(replay.Cache)
	if !ok {
		return true
	}
	status, err := cache.CacheStatus(ctx)
	return err != nil || !status.Known || status.Running+status.Waiting == 0
}

// partEnv is the environment variable that makes this program play one run of a
// sequence: a process each, so that no run begins with the heap, the threads or
// the sockets of another. It holds a part.
const partEnv = "REPRISE_SEQUENCE"

// A part is what a run of a sequence has to know of it.
type part struct {
	Label    string        `json:"label"`
	Rest     time.Duration `json:"rest_ns"`
	Terminal bool          `json:"terminal"` // behind the standard error's pipe
	// Watch, if set, stops the run as soon as its outcome is certain.
	Watch *search.Watch `json:"watch,omitempty"`
}

// partOfSequence reads partEnv; nil if this is no part of a sequence. The
// process ends with the one that started it, however that ends: stdin is a pipe
// from there.
func partOfSequence(stdin io.Reader) (*part, error) {
	raw, ok := os.LookupEnv(partEnv)
	if !ok {
		return nil, nil
	}
	os.Unsetenv(partEnv)
	p := new(part)
	if err := json.Unmarshal([]byte(raw), p); err != nil {
		return nil, fmt.Errorf("%s: %w", partEnv, err)
	}
	go func() {
		io.Copy(io.Discard, stdin)
		os.Exit(cli.Interrupted) // the journal has what was measured
	}()
	return p, nil
}

// show puts the sequence into the view of the run.
func (p *part) show(v *replay.View) {
	if p != nil {
		v.Label, v.Rest, v.Terminal = p.Label, p.Rest, p.Terminal
	}
}

// args are those of one run.
func (a *ab) args(p experiment.Progress, dir string) []string {
	args := []string{}
	flag := func(name, value string) { args = append(args, "--"+name+"="+value) }
	w := a.works[p.Cell]
	for _, f := range w.flags {
		args = append(args, "--"+f)
	}
	e := a.endpoints[p.Cell]
	i := slices.IndexFunc(a.cells, func(c experiment.Cell) bool { return c.Name == p.Cell })
	switch {
	case a.cells[i].Arg != "":
		flag("backend", a.cells[i].Arg)
	case e.preset != "":
		flag("backend", e.kind+"="+e.preset)
	default:
		flag("backend", e.kind)
	}
	if e.url != "" {
		flag("url", e.url)
	}
	for _, kv := range e.options {
		flag("option", kv)
	}
	own := []int{w.options.MaxLen, w.options.MaxPrompt, w.options.VocabSize, w.options.MinID}
	for i, n := range []int{p.Target.MaxLen, p.Target.MaxPrompt, p.Target.VocabSize, p.Target.MinID} {
		if n = cmp.Or(own[i], n); n > 0 {
			flag(serverFlags[i], strconv.Itoa(n))
		}
	}
	if a.cache != "" {
		flag("cache", a.cache)
	}
	if a.quiet {
		flag("quiet", "true")
	}
	flag("output", dir)
	if !w.c.IsSet("synthetic") {
		args = append(args, "--", w.trace)
	}
	return args
}

// killAfter is how long a run has to end that was told to stop at once.
const killAfter = 10 * time.Second

// playRun plays one run in a process of its own. When ctx ends, the run may
// drain; when force does, it stops.
func (a *ab) playRun(ctx, force context.Context, p experiment.Progress, dir string) error {
	spec := part{
		Label: fmt.Sprintf("run %d of %d, %s repeat %d", p.Number, p.Of, p.Cell, p.Repeat), Rest: p.Rest,
		Terminal: cli.IsTerminal(a.stderr),
	}
	code, said, err := playPart(ctx, force, spec, a.args(p, dir), dir, &complaints{out: a.stderr, quiet: a.quiet})
	switch {
	case code == cli.Done || code == cli.Invalid:
		a.tell(dir)
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case code == cli.Usage:
		return &experiment.FatalError{Err: errors.New(said)}
	case code > 0:
		return errors.New(said)
	}
	return err // it was killed
}

// playPart runs this program with args as a part of something longer, and
// returns its exit status and what it complained of. The status is negative, and
// err says why, where it did not exit by itself.
func playPart(ctx, force context.Context, spec part, args []string, dir string, stderr *complaints) (code int, said string, err error) {
	self, err := os.Executable()
	if err != nil {
		return -1, "", err
	}
	env, err := json.Marshal(spec)
	if err != nil {
		return -1, "", err
	}
	summary, err := os.Create(filepath.Join(dir, summaryFile))
	if err != nil {
		return -1, "", err
	}
	defer summary.Close()
	cmd := exec.CommandContext(ctx, self, args...)
	cmd.Env = append(os.Environ(), partEnv+"="+string(env))
	cmd.Stdout = summary
	cmd.Stderr = stderr
	experiment.OwnGroup(cmd)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	alive, err := cmd.StdinPipe()
	if err != nil {
		return -1, "", err
	}
	defer alive.Close()
	if err := cmd.Start(); err != nil {
		return -1, "", err
	}
	over := make(chan struct{})
	go func() {
		select {
		case <-over:
			return
		case <-force.Done():
		}
		cmd.Process.Signal(os.Interrupt)
		select {
		case <-over:
		case <-time.After(killAfter):
			cmd.Process.Kill()
		}
	}()
	err = cmd.Wait()
	close(over)
	return cmd.ProcessState.ExitCode(), stderr.text(), err
}

// tell says in a line what came of a run.
func (a *ab) tell(dir string) {
	m, err := replay.ReadManifest(dir)
	if err != nil || m.Summary == nil {
		return
	}
	s := m.Summary
	line := fmt.Sprintf("  %s of %s requests ok, TTFT p50 %s, E2E p50 %s, %s output tokens/s", units.Count(s.Requests.OK), units.Count(s.Requests.Measured),
		median(&s.TTFT), median(&s.E2E), units.Digits(s.Rates.OutputTokens))
	if !s.Fidelity.Valid {
		line += "; INVALID: " + strings.Join(s.Fidelity.Reasons, "; ")
	}
	a.say("%s", line)
}

// complaints hands on what a run says, and keeps its last errors.
type complaints struct {
	out   io.Writer
	quiet bool
	line  []byte
	last  []string
}

// Bounds of what is kept.
const (
	maxComplaint  = 2 << 10
	maxComplaints = 8
)

func (c *complaints) Write(b []byte) (int, error) {
	for _, x := range b {
		switch {
		case x != '\n':
			if len(c.line) < maxComplaint {
				c.line = append(c.line, x)
			}
		default:
			if text, ok := bytes.CutPrefix(c.line, []byte("replay: ")); ok {
				c.last = append(c.last, string(text))
				c.last = c.last[max(0, len(c.last)-maxComplaints):]
			}
			c.line = c.line[:0]
		}
	}
	if c.quiet {
		return len(b), nil
	}
	return c.out.Write(b)
}

func (c *complaints) text() string {
	if len(c.last) == 0 {
		return "the run ended without a word"
	}
	return strings.Join(c.last, "; ")
}
