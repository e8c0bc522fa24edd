package wallclock

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// FromKernel returns what the kernel knows of the error of its clock, as the
// time daemon last said and growing since. The error is [ErrUnsynchronised] where
// there is none.
func FromKernel() (Check, error) {
	var t unix.Timex
	state, err := unix.Adjtimex(&t) // changes nothing: no mode is set
	if err != nil {
		return Check{}, fmt.Errorf("adjtimex: %w", err)
	}
	if state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0 {
		return Check{}, ErrUnsynchronised
	}
	return Check{Reference: Kernel, Bound: time.Duration(t.Maxerror) * time.Microsecond}, nil
}
