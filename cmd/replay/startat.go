package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"reprise/gpu/agent"
	"reprise/internal/cli"
	"reprise/internal/units"
	"reprise/internal/wallclock"
	"reprise/replay"
)

// startFlags are those of a start that several machines share.
func startFlags() []urfave.Flag {
	return []urfave.Flag{
		&urfave.StringFlag{Name: "start-at", Usage: "first scheduled send at this `TIME` (RFC 3339)"},
		&urfave.StringFlag{Name: "clock", Usage: "with --start-at: begin by the clock at `URL`, the same for all shards: ntp://HOST, or a \"replay agent\" (its token and TLS: --agent-token-file, --agent-ca, …)",
			DefaultText: "this machine's own"},
		&urfave.DurationFlag{Name: "max-clock-error", Usage: "refuse to begin if the clock may be off by more than `TIME`",
			DefaultText: fmt.Sprintf("%v with --clock; without it, a warning", replay.DefaultMaxClockError)},
	}
}

// reference is the clock that --clock names, nil without it.
func reference(c *urfave.Context) (replay.Reference, error) {
	address := c.String("clock")
	switch {
	case address == "":
		return nil, nil
	case c.String("start-at") == "":
		return nil, cli.Usagef("", "--clock goes with --start-at: nothing else asks for the time of day")
	case strings.HasPrefix(address, "ntp://"):
		return func(ctx context.Context) (wallclock.Check, error) { return wallclock.NTP(ctx, address) }, nil
	}
	conf, err := agentTLS(c)
	if err != nil {
		return nil, err
	}
	token, err := agentToken(c)
	if err != nil {
		return nil, err
	}
	r, err := agent.NewRemote(agent.RemoteOptions{URL: address, Token: token, TLS: conf})
	if err != nil {
		return nil, cli.Usagef("--clock ntp://HOST, or the http(s)://HOST:PORT of a replay agent", "--clock %q: %w", address, err)
	}
	return r.WallClock, nil
}

// commonStart compares this machine's clock before anything else is done, so
// that a run which could not begin with the others fails now.
func commonStart(ctx context.Context, c *urfave.Context, o *replay.Options) (replay.Reference, *wallclock.Check, error) {
	ref, err := reference(c)
	if err != nil {
		return nil, nil, err
	}
	check, warning, err := o.CheckClock(ctx, ref)
	if e, ok := errors.AsType[*replay.ClockError](err); ok {
		return nil, nil, &cli.Error{Code: cli.Failed, Err: e, Hint: e.Hint}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("--clock: %w", err)
	}
	if warning != "" {
		fmt.Fprintf(c.App.ErrWriter, "warning: %s\n", warning)
	}
	if o.StartAt.IsZero() {
		return nil, nil, nil
	}
	now := wallclock.Now()
	if check != nil {
		now = now.Add(check.Offset)
		if ref != nil && !c.Bool("quiet") {
			side := "ahead of"
			if check.Offset < 0 {
				side = "behind"
			}
			fmt.Fprintf(c.App.ErrWriter, "clock: %s is %s %s this machine's, ±%s; the start is by it\n",
				check.Reference, units.Duration(check.Offset.Abs()), side, units.Duration(check.Bound))
		}
	}
	if late := now.Sub(o.StartAt); late > 0 {
		return nil, nil, cli.Usagef("", "--start-at %s is past by %v", c.String("start-at"), late.Round(time.Millisecond))
	}
	return ref, check, nil
}
