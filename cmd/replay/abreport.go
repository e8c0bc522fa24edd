package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"

	"reprise/internal/cli"
	"reprise/internal/metrics"
	"reprise/internal/units"
	"reprise/replay"
	"reprise/replay/experiment"
	"reprise/report"
	"reprise/report/html"
)

// A sequenceReport is report.json of a sequence.
type sequenceReport struct {
	Version int                    `json:"version"`
	Plan    *experiment.Plan       `json:"plan"`
	Runs    []experiment.RunStatus `json:"runs"`
	// Comparisons hold each other cell against the first one; p-values are
	// corrected for all of them together.
	Comparisons []sequenceComparison `json:"comparisons"`
	Warnings    []string             `json:"warnings,omitempty"`
	family      *report.Family       // of the comparisons, nil of none
	checks      [][]report.Check
	dir         string
}

type sequenceComparison struct {
	*report.Comparison
	Gates []report.Check `json:"gates,omitempty"`
}

// finish compares what was played, prints it, and writes it into the folder.
func (a *ab) finish(ctx context.Context, f *experiment.Folder) error {
	// A comparison holds two runs: a little time is well spent on less memory.
	defer debug.SetGCPercent(debug.SetGCPercent(40))
	r := &sequenceReport{Version: 1, Plan: f.Plan, Runs: f.State.Runs, Warnings: a.doubts(f), dir: a.output}
	slos, err := metrics.ParseSLOs(a.c.StringSlice("slo"))
	if err != nil {
		return err
	}
	conf := report.CompareConfig{KeepUnequal: a.c.Bool("keep-unequal"), Seed: a.seed, Charts: true, Config: report.Config{SLOs: slos}}
	var pairs [][2]report.Side
	for _, cell := range f.Plan.Cells[1:] {
		x, y := sides(f, f.Plan.Cells[0].Name, cell.Name)
		if len(x.Runs) == 0 {
			r.Warnings = append(r.Warnings, fmt.Sprintf("%s and %s have no repeat that both finished: there is nothing to compare", x.Name, y.Name))
			continue
		}
		pairs = append(pairs, [2]report.Side{x, y})
	}
	if len(pairs) > 0 {
		if r.family, err = report.CompareAll(ctx, pairs, conf); err != nil {
			return err
		}
		if r.checks, err = r.family.Check(a.gates); err != nil {
			return cli.Usagef("the runs are kept: "+a.again(), "--fail-if: %w", err)
		}
		for i, c := range r.family.Comparisons {
			r.Comparisons = append(r.Comparisons, sequenceComparison{c, r.checks[i]})
		}
	}
	if err := a.write(ctx, r); err != nil {
		return err
	}
	if len(f.Plan.Cells) > 1 {
		a.say("report: %s", filepath.Join(a.output, "report.*"))
	}
	failed := f.State.Count(experiment.Failed)
	gate, invalid := false, false
	for _, c := range r.Comparisons {
		gate = gate || slices.ContainsFunc(c.Gates, func(k report.Check) bool { return k.Failed })
		invalid = invalid || c.Invalid
	}
	switch {
	case failed > 0:
		return &cli.Error{Code: cli.Failed, Err: fmt.Errorf("%d of %s failed", failed, plural(len(f.State.Runs), "run")), Hint: "to try these again: " + a.again()}
	case gate:
		return &cli.Error{Code: cli.Failed}
	case invalid || a.invalid(f):
		return &cli.Error{Code: cli.Invalid}
	}
	return nil
}

// sides are the runs of two cells in the blocks that both finished, block by
// block.
func sides(f *experiment.Folder, a, b string) (x, y report.Side) {
	x.Name, y.Name = a, b
	done := map[string]map[int]string{a: {}, b: {}}
	for _, r := range f.State.Runs {
		if blocks := done[r.Cell]; blocks != nil && r.Status == experiment.Finished {
			blocks[r.Repeat] = f.RunPath(r.Run)
		}
	}
	for block := 1; block <= f.Plan.Repeats; block++ {
		if done[a][block] != "" && done[b][block] != "" {
			x.Runs, y.Runs = append(x.Runs, done[a][block]), append(y.Runs, done[b][block])
		}
	}
	return x, y
}

// doubts says what stands against the sequence as a whole.
func (a *ab) doubts(f *experiment.Folder) (out []string) {
	type work struct {
		plan, words string
		low, size   uint32
	}
	type firstRun struct {
		work
		of string
	}
	first := map[string]firstRun{} // by what cells are to send
	for i := range f.State.Runs {
		r := &f.State.Runs[i]
		if r.Status == experiment.Failed {
			out = append(out, fmt.Sprintf("%s failed: %s", r.Run, r.Reason))
		}
		for _, n := range r.Notes {
			out = append(out, fmt.Sprintf("%s: %s", r.Run, n))
		}
		if r.Status != experiment.Finished {
			continue
		}
		m, err := replay.ReadManifest(f.RunPath(r.Run))
		if err != nil {
			continue
		}
		w := work{plan: m.Plan.Digest, low: m.Plan.VocabLow, size: m.Plan.VocabSize}
		if m.Words != nil {
			w.words = m.Words.Digest
		}
		key := f.Plan.Cell(r.Cell).Work
		switch one, ok := first[key]; {
		case !ok:
			first[key] = firstRun{w, r.Run.String()}
		case w.plan != one.plan:
			out = append(out, fmt.Sprintf("%s did not send the requests of %s", r.Run, one.of))
		case w != one.work:
			out = append(out, fmt.Sprintf("%s did not send the prompts of %s: their tokens or words are others", r.Run, one.of))
		}
	}
	return out
}

// invalid says whether the client was the bottleneck of some run.
func (a *ab) invalid(f *experiment.Folder) bool {
	return slices.ContainsFunc(f.State.Runs, func(r experiment.RunStatus) bool {
		m, err := replay.ReadManifest(f.RunPath(r.Run))
		return err == nil && m.Summary != nil && !m.Summary.Fidelity.Valid
	})
}

// write prints the report and writes report.txt, .md, .json and, where there is
// a comparison, .html.
func (a *ab) write(ctx context.Context, r *sequenceReport) error {
	var text, md, js bytes.Buffer
	if err := errors.Join(r.renderText(&text), r.renderMarkdown(&md), cli.WriteJSON(&js, r)); err != nil {
		return err
	}
	files := map[string][]byte{"report.txt": text.Bytes(), "report.md": md.Bytes(), "report.json": js.Bytes()}
	if r.family != nil {
		ps, err := r.family.Profiles(ctx)
		if err != nil {
			return err
		}
		var page bytes.Buffer
		if err := html.WriteFamily(&page, r.family, r.checks, ps); err != nil {
			return err
		}
		files["report.html"] = page.Bytes()
	}
	var errs []error
	for name, b := range files {
		errs = append(errs, os.WriteFile(filepath.Join(a.output, name), b, 0o644))
	}
	if name := a.c.String("junit"); name != "" {
		var b bytes.Buffer
		errs = append(errs, report.WriteJUnit(&b, slices.Concat(r.checks...)), os.WriteFile(name, b.Bytes(), 0o644))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	out := text.Bytes()
	if a.c.Bool("json") {
		out = js.Bytes()
	}
	_, err := a.c.App.Writer.Write(out)
	return err
}

func (r *sequenceReport) renderText(w io.Writer) error {
	var b strings.Builder
	var t cli.Table
	t.Head = []string{"run", "backend", "repeat", "state", "requests ok", "TTFT p50", "E2E p50", "output tok/s"}
	dirs := r.summaries()
	for i, run := range r.Runs {
		ok, ttft, e2e, rate := "-", "-", "-", "-"
		state := run.Status
		if s := dirs[i]; s != nil {
			ok, rate = units.Count(s.Requests.OK), units.Digits(s.Rates.OutputTokens)
			ttft, e2e = median(&s.TTFT), median(&s.E2E)
			if !s.Fidelity.Valid {
				state = "INVALID"
			}
		}
		t.Row(fmt.Sprint(run.Number), run.Cell, fmt.Sprint(run.Repeat), state, ok, ttft, e2e, rate)
	}
	if err := t.Write(&b, ""); err != nil {
		return err
	}
	for _, warning := range r.Warnings {
		fmt.Fprintf(&b, "warning: %s\n", warning)
	}
	for _, note := range r.Plan.Notes {
		fmt.Fprintf(&b, "note: %s\n", note)
	}
	if r.family != nil {
		b.WriteString("\n")
		if err := r.family.RenderText(&b, r.checks); err != nil {
			return err
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (r *sequenceReport) renderMarkdown(w io.Writer) error {
	if r.family != nil {
		if err := r.family.RenderMarkdown(w, r.checks); err != nil {
			return err
		}
		if _, err := io.WriteString(w, "\n"); err != nil {
			return err
		}
	}
	for _, warning := range slices.Concat(r.Warnings, r.Plan.Notes) {
		if _, err := fmt.Fprintf(w, "- %s\n", report.Markdown(warning)); err != nil {
			return err
		}
	}
	return nil
}

// summaries are the figures of the finished runs; nil for others.
func (r *sequenceReport) summaries() []*metrics.Summary {
	out := make([]*metrics.Summary, len(r.Runs))
	for i, run := range r.Runs {
		if run.Status != experiment.Finished {
			continue
		}
		if m, err := replay.ReadManifest(filepath.Join(r.dir, run.Dir())); err == nil {
			out[i] = m.Summary
		}
	}
	return out
}

// median writes the p50 of a latency.
func median(l *metrics.Latency) string {
	if !l.Schedule.P50.OK {
		return "-"
	}
	return units.Duration(l.Schedule.P50.V.Duration())
}
