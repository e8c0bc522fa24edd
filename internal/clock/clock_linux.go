package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

func monotonic() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic("clock: CLOCK_MONOTONIC is unreadable: " + err.Error())
	}
	return time.Duration(ts.Nano())
}

// SleepUntil blocks the calling thread until t. Lock the goroutine to its
// thread first (runtime.LockOSThread), or the runtime may hand the wake-up to
// another one. It does not return early.
func SleepUntil(t time.Duration) {
	ts := unix.NsecToTimespec(int64(t))
	for unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &ts, nil) == unix.EINTR {
	}
}
