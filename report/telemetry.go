package report

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"

	"reprise/gpu"
	"reprise/gpu/findings"
	"reprise/internal/enginemetrics"
)

// A Gauge is one figure of the serving host in every window of a Profile, over
// all devices that have it. Between two readings, where they come less often than
// windows, the line that joins them; NaN where there was none for longer.
type Gauge struct {
	Metric  string // as in gpu/METRICS.md
	Title   string
	Unit    string // of the values: "%", "W", "GiB", or a word
	Devices int
	// Mean is over devices and readings, Low and High are the extremes among them.
	Mean, Low, High []float64
}

// watched are the metrics that are shown, in order, and what a value is
// multiplied by to have the unit.
var watched = []struct {
	metric, title, unit string
	scale               float64
}{
	{string(enginemetrics.Running), "Requests running, by the engine", "requests", 1},
	{string(enginemetrics.Waiting), "Requests waiting, by the engine", "requests", 1},
	{string(enginemetrics.KVUsage), "KV cache in use", "%", 100},
	{gpu.GPUSMActive, "GPU SM active", "%", 100},
	{gpu.GPUUtilization, "GPU utilisation", "%", 100},
	{gpu.GPUDRAMActive, "GPU memory bandwidth in use", "%", 100},
	{gpu.GPUPower, "GPU power", "W", 1},
	{gpu.GPUMemoryUsage, "GPU memory in use", "GiB", 1.0 / (1 << 30)},
	{gpu.GPUClockSM, "GPU SM clock", "MHz", 1e-6},
	{gpu.GPUTemperature, "GPU temperature", "°C", 1},
}

// maxDevices bounds the devices that a Gauge counts.
const maxDevices = 1024

// telemetry adds what the run's telemetry says, if it has any.
func (p *Profile) telemetry(ctx context.Context, dir string) error {
	if p.Manifest == nil {
		return nil
	}
	if len(p.Manifest.Telemetry) > 0 {
		var rec struct {
			findings.Findings
			Notes []string `json:"notes"`
		}
		// One of another version is no reason to show nothing of the run.
		if err := json.Unmarshal(p.Manifest.Telemetry, &rec); err == nil {
			p.Findings, p.Notes = &rec.Findings, rec.Notes
		} else {
			p.Notes = append(p.Notes, "what run.json says of telemetry cannot be read by this version")
		}
	}
	if len(p.Windows) == 0 {
		return nil
	}
	path := filepath.Join(dir, telemetryFile)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	r, err := gpu.Open(path)
	if err != nil {
		p.Notes = append(p.Notes, "telemetry.parquet cannot be read: "+err.Error())
		return nil
	}
	defer r.Close()
	at := map[string]int{}
	for i, w := range watched {
		at[w.metric] = i
	}
	type gathered struct {
		sum, n, low, high []float64
		devices           map[[2]string]bool
	}
	all := make([]*gathered, len(watched))
	n := 0
	for s, err := range r.All() {
		if n++; err == nil && n%checkEvery == 0 {
			err = ctx.Err()
		}
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			p.Notes = append(p.Notes, "telemetry.parquet is damaged: "+err.Error())
			break
		}
		i, ok := at[s.Metric]
		if !ok || s.Attr != "" || s.Time < 0 || s.Time >= p.Span() || math.IsNaN(s.Value) || math.IsInf(s.Value, 0) {
			continue
		}
		g := all[i]
		if g == nil {
			w := len(p.Windows)
			g = &gathered{make([]float64, w), make([]float64, w), make([]float64, w), make([]float64, w), map[[2]string]bool{}}
			all[i] = g
		}
		k, v := int(s.Time/p.Width), s.Value*watched[i].scale
		if g.n[k] == 0 {
			g.low[k], g.high[k] = v, v
		}
		g.sum[k] += v
		g.n[k]++
		g.low[k], g.high[k] = min(g.low[k], v), max(g.high[k], v)
		if len(g.devices) < maxDevices {
			g.devices[[2]string{s.Source, s.Device}] = true
		}
	}
	for i, g := range all {
		if g == nil {
			continue
		}
		x := Gauge{Metric: watched[i].metric, Title: watched[i].title, Unit: watched[i].unit, Devices: len(g.devices), Mean: g.sum, Low: g.low, High: g.high}
		for k, n := range g.n {
			if n == 0 {
				x.Mean[k], x.Low[k], x.High[k] = math.NaN(), math.NaN(), math.NaN()
				continue
			}
			x.Mean[k] /= n
		}
		for _, v := range [][]float64{x.Mean, x.Low, x.High} {
			joinReadings(v)
		}
		p.Telemetry = append(p.Telemetry, x)
	}
	return nil
}

// joinReadings draws a line between readings that come less often than windows do. A gap
// of more than three times the usual one stays a gap: nothing was read there.
func joinReadings(v []float64) {
	var at, gaps []int // where there are readings, and how far each is from the one before
	for k, x := range v {
		if math.IsNaN(x) {
			continue
		}
		if n := len(at); n > 0 {
			gaps = append(gaps, k-at[n-1])
		}
		at = append(at, k)
	}
	if len(gaps) == 0 {
		return
	}
	slices.Sort(gaps)
	usual := gaps[len(gaps)/2]
	for i := range at[1:] {
		from, to := at[i], at[i+1]
		if to-from > 3*usual {
			continue
		}
		for k := from + 1; k < to; k++ {
			v[k] = v[from] + (v[to]-v[from])*float64(k-from)/float64(to-from)
		}
	}
}
