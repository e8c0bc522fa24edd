package main

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime/debug"
	"slices"

	"reprise/internal/cli"
	"reprise/replay/experiment"
	"reprise/report"
)

// finishExperiment says what came of a matrix, and writes it into its folder:
// the runs and, where two cells played the same, their comparison.
func (a *ab) finishExperiment(ctx context.Context, f *experiment.Folder) error {
	defer debug.SetGCPercent(debug.SetGCPercent(40))
	r := &sequenceReport{Version: 1, Plan: f.Plan, Runs: f.State.Runs, Warnings: a.doubts(f), dir: a.output}
	conf := report.CompareConfig{Seed: a.seed}
	if x, y := pair(f.Plan); x != nil {
		if one, other := sides(f, x.Name, y.Name); len(one.Runs) > 0 {
			c, err := report.Compare(ctx, one, other, conf)
			if err != nil {
				return err
			}
			r.Comparisons = append(r.Comparisons, sequenceComparison{c, nil})
		}
	}
	if err := a.write(ctx, r, conf.Config); err != nil {
		return err
	}
	a.say("report: %s", filepath.Join(a.output, "report.*"))
	switch failed := f.State.Count(experiment.Failed); {
	case failed > 0:
		return &cli.Error{Code: cli.Failed, Err: fmt.Errorf("%d of %s failed", failed, plural(len(f.State.Runs), "run")), Hint: "to try these again: " + a.again()}
	case a.invalid(f):
		return &cli.Error{Code: cli.Invalid}
	}
	return nil
}

// pair are the cells of a plan that plays two, and both the same.
func pair(p *experiment.Plan) (x, y *experiment.Cell) {
	var active []*experiment.Cell
	for i := range p.Cells {
		if p.Cells[i].Skipped == "" {
			active = append(active, &p.Cells[i])
		}
	}
	// The digest is of the trace's part alone: flags shape the load and the prompts.
	if len(active) != 2 || active[0].Work != active[1].Work || !slices.Equal(active[0].Flags, active[1].Flags) {
		return nil, nil
	}
	return active[0], active[1]
}
