//go:build !linux

package clock

import "time"

func monotonic() time.Duration { return 0 }

// SleepUntil blocks until t, as exactly as the runtime's timers allow.
func SleepUntil(t time.Duration) { time.Sleep(t - Now()) }
