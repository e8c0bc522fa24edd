// Package clock reads and waits on CLOCK_MONOTONIC, the one time axis of a run.
//
// Go's own timers wake 0.6 to 1.4 ms late on a busy machine; a locked thread in the kernel's
// high-resolution sleep ([Alarm]) wakes within a tenth of that. Readings
// are plain durations since an arbitrary origin (boot, on Linux), so that stamps
// taken by different goroutines and by the pacer subtract exactly.
package clock

import "time"

// base ties Go's monotonic reading, which is cheap, to CLOCK_MONOTONIC, which
// is what the kernel sleeps on. Both advance alike, so the offset is fixed.
var (
	base   = time.Now()
	offset = monotonic() - time.Since(base)
)

// Now is the current reading of CLOCK_MONOTONIC.
func Now() time.Duration { return offset + time.Since(base) }
