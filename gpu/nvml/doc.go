// Package nvml samples the GPUs of this host through NVIDIA's management
// library, libnvidia-ml.so.1, which comes with the driver.
//
// It needs cgo, Linux and no build tag "nonvml". Any other build has the same
// functions, and [Open] says that they are not in it. The library is opened
// when it is first used: a binary with this package starts on a host without a
// driver. For that its symbols must be bound lazily; a link with -Wl,-z,now
// makes a program that does not start.
//
// Two sources share the library. "nvml" reads what changes with the load, five
// times a second unless said: utilisation, memory, power, energy, clocks,
// temperature, throttle reasons, link counters and, on Hopper and later, the
// GPM metrics. "nvml-slow" reads once a second what changes seldom or takes
// long: processes, limits, ECC and row errors, throttled time, MIG instances,
// XIDs, and PCIe throughput where it is only measured by waiting for 20 ms.
//
// A metric that a device does not support is asked for once and then absent; so
// is one that the user may not read, which the file says. A GPU that is lost is
// a gap of that device alone, and it is asked again every few seconds.
package nvml

import "time"

// DefaultPeriod is how often the fast source reads. The driver's own window of
// utilisation is 1/6 s to 1 s by product: more often tells nothing new.
const DefaultPeriod = 200 * time.Millisecond

// slowPeriod is how often the slow source reads.
const slowPeriod = time.Second

// Options of [Open]; the zero value is right.
type Options struct {
	// Library is the file to open, libnvidia-ml.so.1 unless set.
	Library string
	// Period is that of the fast source, DefaultPeriod unless set.
	Period time.Duration
}
