package replay

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"reprise/internal/wallclock"
)

func TestCheckClock(t *testing.T) {
	at := time.Now().Add(time.Hour)
	says := func(offset, bound time.Duration) Reference {
		return func(context.Context) (wallclock.Check, error) {
			return wallclock.Check{Reference: "ntp://t", Offset: offset, Bound: bound}, nil
		}
	}
	down := errors.New("nobody there")
	for name, c := range map[string]struct {
		o      Options
		ref    Reference
		offset time.Duration
		want   string // in the error
	}{
		"no common start":       {ref: says(0, time.Hour)},
		"good":                  {o: Options{StartAt: at}, ref: says(-40*time.Second, time.Millisecond), offset: -40 * time.Second},
		"too far":               {o: Options{StartAt: at}, ref: says(0, 6*time.Millisecond), want: "known to ±6ms, and not to ±5ms"},
		"allowed":               {o: Options{StartAt: at, MaxClockError: 10 * time.Millisecond}, ref: says(0, 6*time.Millisecond)},
		"stricter":              {o: Options{StartAt: at, MaxClockError: time.Microsecond}, ref: says(0, 2*time.Microsecond), want: "±1µs"},
		"no answer":             {o: Options{StartAt: at}, ref: func(context.Context) (wallclock.Check, error) { return wallclock.Check{}, down }, want: "nobody there"},
		"the kernel, by choice": {o: Options{StartAt: at, MaxClockError: time.Nanosecond}, want: "clock"},
	} {
		got, _, err := c.o.CheckClock(t.Context(), c.ref)
		if (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		if err == nil && c.offset != 0 && got.Offset != c.offset {
			t.Errorf("%s: %+v", name, got)
		}
	}
	// Nobody asked for a bound, so that a machine which has none may begin, with a
	// warning; one whose daemon knows better says nothing.
	o := Options{StartAt: at}
	c, warning, err := o.CheckClock(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if good := c != nil && c.Bound <= DefaultMaxClockError; good != (warning == "") {
		t.Errorf("%+v: warning %q", c, warning)
	}
}
