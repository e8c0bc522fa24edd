package clock

import (
	"runtime"
	"testing"
	"time"
)

// The pacer's promise: never before the deadline, on the axis that Now reads.
func TestSleepUntilIsNeverEarly(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for i := range 50 {
		due := Now() + time.Duration(i)*20*time.Microsecond
		SleepUntil(due)
		// The vDSO and the syscall may disagree by the rounding of a multiply.
		if late := Now() - due; late < -time.Microsecond {
			t.Fatalf("SleepUntil(%v) returned %v early", due, -late)
		}
	}
	SleepUntil(Now() - time.Hour) // a deadline in the past returns at once
}
