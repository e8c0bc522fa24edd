package gpu

import (
	"context"
	"errors"
	"time"
)

// A Sample is one value of one metric at one moment.
type Sample struct {
	// Time is when the value was read: a reading of internal/clock, or, from a
	// file, since the run's zero.
	Time time.Duration
	// Source is the name of the Source; "a/b" is source b of agent a.
	Source string
	// Device is what was measured within the source: "gpu0", "gpu0/mig1", an
	// engine's name. Empty where the source measures itself.
	Device string
	// Metric is a name of METRICS.md.
	Metric string
	// Attr tells apart several values of one metric of one device, as
	// "key=value" pairs joined by commas: "pid=4711", "reason=power".
	Attr string
	// Unit is the metric's, a UCUM code: "1" (a ratio), "By", "W", "J", "s".
	Unit  string
	Value float64

	// Late is how long after its due time the sample was taken, where that was
	// more than the sampler tolerates, else 0.
	Late time.Duration
	// Note is the reason that a gap gives; else empty. It never holds text from
	// a request.
	Note string
}

// A Key names the series that a sample belongs to.
type Key struct{ Source, Device, Metric, Attr string }

// Key returns the series of s.
func (s *Sample) Key() Key { return Key{s.Source, s.Device, s.Metric, s.Attr} }

// IsGap reports whether s says that nothing is known of the Value seconds
// before its Time, in place of a measurement.
func (s *Sample) IsGap() bool { return s.Metric == MetricGap }

// A Source takes samples of one thing. A Sampler calls Sample from one
// goroutine at a time and Close once, after the last call.
type Source interface {
	// Name is short, unique among the sources of a run, and says what it is,
	// not where: "nvml", "dcgm", "vllm".
	Name() string
	// Period is how often Sample wants to be called.
	Period() time.Duration
	// Sample reads everything once. now reads the run's clock; emit takes each
	// value as soon as it was read. emit fills in the source's name, the unit
	// of a metric that [Lookup] knows, and a Time that is zero. It may not be
	// called after Sample returned.
	//
	// An error says that this reading failed, wholly or from some point on; a
	// [*Fault] also says how. The source is asked again after a pause and opens
	// again what it needs. Sample should end soon after ctx does.
	Sample(ctx context.Context, now func() time.Duration, emit func(Sample)) error
	// Close releases what the source holds.
	Close() error
}

// An Accountant is a Source that records its gaps itself: one whose values wait
// while it cannot be read, and come later.
type Accountant interface {
	Source
	AccountsGaps()
}

// ErrNotYet is the error of a source that has nothing to read until another one
// has: it is asked again, and no fault is recorded.
var ErrNotYet = errors.New("not yet")

// A Lacker is a Source whose other side may lack what was hoped for.
type Lacker interface {
	// Absent may be called at any time: each item names what there is not, and
	// why.
	Absent() []string
}

// A Describer is a Source that knows its devices.
type Describer interface {
	// Devices may be called at any time and returns what was last known.
	Devices() []Device
}

// A Device is what is known of a GPU for good. Fields that a source cannot
// learn are empty.
type Device struct {
	Source string `json:"source,omitempty"`
	// Name is Sample.Device.
	Name   string `json:"name"`
	Model  string `json:"model,omitempty"`  // "NVIDIA H100 80GB HBM3"
	UUID   string `json:"uuid,omitempty"`   // "GPU-…" or "MIG-…"
	Driver string `json:"driver,omitempty"` // version of the driver
	// Memory is the size of the device memory in bytes.
	Memory uint64 `json:"memory_bytes,omitempty"`
	// Missing lists metrics that the device says it does not support.
	Missing []string `json:"missing,omitempty"`
}
