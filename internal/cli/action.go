package cli

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
)

// OneInterrupt is how long after an interrupt another counts as the same one:
// timeout(1) signals its child and then the child's whole group.
const OneInterrupt = 300 * time.Millisecond

// Action runs f under a context that the first Ctrl-C or SIGTERM ends. A second
// one kills the program, which then leaves behind what it was writing.
func Action(f func(context.Context, *cli.Context) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		ctx, stop := signal.NotifyContext(c.Context, os.Interrupt, syscall.SIGTERM)
		defer stop()
		context.AfterFunc(ctx, func() {
			time.Sleep(OneInterrupt)
			stop()
		})
		return f(ctx, c)
	}
}

// JSONFlag is --json, for commands that print a table without it.
func JSONFlag() cli.Flag { return &cli.BoolFlag{Name: "json", Usage: "print JSON"} }
