// Package gpu gathers telemetry: what the GPUs and the engine of a serving host
// did, on the clock of the requests.
//
// There is one kind of value, a [Sample]: when, from which source, of which
// device, which metric, in which unit, how much. A [Source] takes samples of one
// thing; a [Sampler] runs sources, each at its own rate, and records what it
// could not see as well as what it saw. A [Writer] keeps samples in the file
// telemetry.parquet as they come, a [Reader] gives them back, a [Latest] holds
// the last value of every series for a live view.
//
// Sources of this package are a DCGM exporter ([NewDCGM]) and nvidia-smi
// ([NewSMI]). NVML itself is in gpu/nvml, which needs cgo; another host's
// sources come through gpu/agent.
//
// # Time
//
// Sample.Time is a reading of internal/clock, the one axis of a run, while the
// run goes on. A file counts from the run's zero ([Writer.SetZero]), so that
// its times stand beside arrival_ns and sent_ns of the run's trace.
//
// # What is missing
//
// A metric that a device does not have is absent, never zero. A stretch of time
// in which a source could not be read is a sample of its own, of [MetricGap],
// with the reason. A sample taken late says by how much.
//
// # Names
//
// METRICS.md lists the metrics with their units and the names that DCGM,
// OpenTelemetry and NVML have for them; [Lookup] has the same table.
package gpu
