package main

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime/debug"

	"reprise/internal/cli"
	"reprise/replay/experiment"
	"reprise/report/study"
)

// finishExperiment says what came of a matrix, and writes it into its folder.
func (a *ab) finishExperiment(ctx context.Context, f *experiment.Folder) error {
	defer debug.SetGCPercent(debug.SetGCPercent(40))
	for _, doubt := range a.doubts(f) {
		a.say("warning: %s", doubt)
	}
	s, err := study.Write(ctx, a.output, study.Config{Seed: a.seed})
	if err != nil {
		return err
	}
	if a.c.Bool("json") {
		err = cli.WriteJSON(a.c.App.Writer, s)
	} else {
		err = s.WriteText(a.c.App.Writer)
	}
	if err != nil {
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
