package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	urfave "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/internal/traceout"
	"reprise/report"
)

// uploaded makes an action that plays one run leave it in object storage where
// --output says so. The run is written here first, as a network has pauses that
// a disk has not, and uploaded when it has ended, however it ended.
func uploaded(play urfave.ActionFunc) urfave.ActionFunc {
	return func(c *urfave.Context) error {
		to := c.String("output")
		if !traceout.Remote(to) {
			return play(c)
		}
		if sequenced(c) {
			return severalRuns(to)
		}
		o, err := options(c)
		if err != nil {
			return cli.Usagef("", "%w", err)
		}
		if err := traceout.CheckFolder(c.Context, to); err != nil {
			return err
		}
		dir := defaultOutput(o.Shard)
		if _, err := os.Lstat(dir); err == nil {
			return fmt.Errorf("%s, where the run is written until it is uploaded, exists", dir)
		}
		if err := c.Set("output", dir); err != nil {
			return err
		}
		err = play(c)
		m, e := report.ReadManifest(dir)
		if e != nil || m.State == report.StateRunning {
			return err // nothing was played, or it needs trace recover first
		}
		ctx, stop := signal.NotifyContext(c.Context, os.Interrupt, syscall.SIGTERM)
		defer stop()
		if e := traceout.PublishFolder(ctx, dir, to); e != nil {
			// What is wrong with the run was said with its figures.
			return e
		}
		fmt.Fprintf(c.App.ErrWriter, "uploaded %s to %s\n", dir, to)
		return err
	}
}

// severalRuns refuses object storage to what goes on in the folder where it was
// stopped.
func severalRuns(to string) error {
	return cli.Usagef("write them here and upload them: trace cp DIR "+to, "%s: one run alone is uploaded; a folder of runs has to be here, to go on with", to)
}
