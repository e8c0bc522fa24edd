package replay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"reprise/internal/clock"
	"reprise/internal/wallclock"
)

// DefaultMaxClockError bounds the error of a clock that was compared with a
// reference, unless Options.MaxClockError does.
const DefaultMaxClockError = 5 * time.Millisecond

const (
	// compareAt is how long before a common start clocks are compared for the
	// last time: what they drift by after that is microseconds.
	compareAt = 10 * time.Second
	// compareFor bounds how long that may take.
	compareFor = 5 * time.Second
)

// A Reference compares this machine's clock with one that all shards ask.
type Reference func(context.Context) (wallclock.Check, error)

// A ClockError says that this machine's clock is not good enough for a common
// start.
type ClockError struct{ Reason, Hint string }

func (e *ClockError) Error() string { return e.Reason }

// CheckClock compares this machine's clock with the reference, or with what its
// kernel knows where ref is nil. It returns nil where the start is nobody's but
// this process's. A clock whose error may be beyond Options.MaxClockError is a
// [*ClockError]; where nobody set that and nobody named a reference, it is a
// warning.
func (o *Options) CheckClock(ctx context.Context, ref Reference) (c *wallclock.Check, warning string, err error) {
	if o.StartAt.IsZero() {
		return nil, "", nil
	}
	limit := o.clockLimit()
	if ref != nil {
		check, err := ref(ctx)
		if err != nil {
			return nil, "", err
		}
		return &check, "", within(&check, limit)
	}
	check, err := wallclock.FromKernel()
	if err == nil {
		c, err = &check, within(&check, limit)
	} else {
		err = &ClockError{Reason: err.Error(), Hint: compareHint}
	}
	if e, ok := errors.AsType[*ClockError](err); ok && o.MaxClockError == 0 {
		return c, fmt.Sprintf("%s: shards on other machines may begin earlier or later; %s", e.Reason, e.Hint), nil
	}
	return c, "", err
}

func (o *Options) clockLimit() time.Duration { return cmp.Or(o.MaxClockError, DefaultMaxClockError) }

const compareHint = "--clock ntp://HOST or the address of a replay agent compares it"

func within(c *wallclock.Check, limit time.Duration) error {
	switch {
	case c.Bound <= limit:
		return nil
	case c.Reference == wallclock.Kernel:
		return &ClockError{fmt.Sprintf("this machine's clock may be wrong by %v, as its time daemon has it", c.Bound.Round(time.Microsecond)), compareHint}
	}
	return &ClockError{
		fmt.Sprintf("the offset from %s is known to ±%v, and not to ±%v", c.Reference, c.Bound.Round(time.Microsecond), limit),
		"name a --clock that is nearer, or allow more with --max-clock-error",
	}
}

// untilStart waits until shortly before the common start, compares clocks once
// more and returns how long it still is, by the reference's clock, and what that
// is ahead of this machine's. An error means that the shards would not begin
// together.
func (r *run) untilStart(ctx context.Context, at time.Time) (wait, ahead time.Duration, err error) {
	o, check := &r.plan.Options, r.Clock
	measured := clock.Now()
	until := func() time.Duration {
		d := at.Sub(wallclock.Now())
		if check != nil {
			d -= check.Offset
		}
		return d
	}
	if r.Reference != nil && until() > compareAt+compareFor {
		select {
		case <-time.After(until() - compareAt):
		case <-r.halted:
			return 0, 0, nil
		}
		ctx, cancel := context.WithTimeout(ctx, compareFor)
		again, _, err := o.CheckClock(ctx, r.Reference)
		cancel()
		if _, refused := errors.AsType[*ClockError](err); refused {
			return 0, 0, err
		}
		if err == nil {
			check = again
		} else if check != nil { // the first one still holds, less exactly
			old := *check
			old.Bound += time.Duration(wallclock.MaxSlew * float64(clock.Now()-measured))
			check = &old
			if err := within(check, o.clockLimit()); err != nil {
				return 0, 0, err
			}
		}
	}
	if check != nil {
		ahead = check.Offset
	}
	r.compared = check
	if wait = until(); wait < 0 {
		err = fmt.Errorf("the start at %v is past by %v: the shards would not begin together", at.Format(time.RFC3339Nano), -wait)
	}
	return max(0, wait), ahead, err
}
