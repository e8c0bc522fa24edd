package replay

import (
	"path/filepath"
	"time"

	"reprise/gpu"
	"reprise/gpu/findings"
	m "reprise/internal/enginemetrics"
)

// observations bounds how often an engine in virtual time is looked at: a run may
// be a month long, and a curve needs no more points.
const observations = 2000

// virtualIntervals bounds the intervals of its latency log likewise.
const virtualIntervals = 500

// ObservePeriod is how often an engine in virtual time is looked at.
func (p *Plan) ObservePeriod(period time.Duration) time.Duration {
	return max(period, p.Span()/observations)
}

// StartVirtualTelemetry makes what writes the state of a simulated engine over
// the run's time, for VirtualConfig.Observe. Close of the Dir ends it.
func (d *Dir) StartVirtualTelemetry(c *VirtualConfig) error {
	w, err := gpu.Create(filepath.Join(d.path, TelemetryFile))
	if err != nil {
		return err
	}
	status := &gpu.SourceStatus{Name: "engine", Period: c.Every, Up: true, Faults: []gpu.FaultCount{}, Devices: []gpu.Device{}}
	d.telemetry = &Telemetry{dir: d.path, progress: c.Progress, rows: findings.NewRequests(), writer: w, virtual: status}
	block := c.Engine.BlockSize
	var last EngineState
	var lastAt time.Duration
	c.Observe = func(at time.Duration, s *EngineState) {
		emit := func(metric, unit string, v float64) {
			status.Samples++
			w.Add(gpu.Sample{Time: at, Source: "engine", Device: "engine0", Metric: metric, Unit: unit, Value: v})
		}
		gauge := func(q m.Quantity, v float64) { emit(string(q), q.Unit(), v) }
		counter := func(q m.Quantity, was, is int64) {
			gauge(q, float64(is))
			if at > lastAt {
				emit(string(q)+gpu.EngineRate, q.Unit()+"/s", float64(is-was)/(at-lastAt).Seconds())
			}
		}
		gauge(m.Running, float64(s.Running))
		gauge(m.Waiting, float64(s.Waiting))
		gauge(m.KVUsage, float64(s.UsedBlocks)/float64(s.Blocks))
		gauge(m.KVUsed, float64(s.UsedBlocks*block))
		if status.Readings == 0 {
			gauge(m.KVCapacity, float64(s.Blocks*block))
			gauge(m.KVBlocks, float64(s.Blocks))
			gauge(m.KVBlock, float64(block))
		}
		counter(m.PrefixQueries, int64(last.CacheQueries), int64(s.CacheQueries))
		counter(m.PrefixHits, int64(last.CacheHits), int64(s.CacheHits))
		counter(m.Preemptions, int64(last.Preemptions), int64(s.Preemptions))
		counter(m.PromptTokens, last.PromptTokens, s.PromptTokens)
		counter(m.GeneratedTokens, last.GeneratedTokens, s.GeneratedTokens)
		counter(m.Finished, last.Finished, s.Finished)
		counter(m.Aborted, int64(last.Aborted), int64(s.Aborted))
		status.Readings++
		last, lastAt = *s, at
	}
	return nil
}
