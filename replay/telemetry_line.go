package replay

import (
	"fmt"
	"strings"

	"reprise/gpu"
	"reprise/internal/enginemetrics"
	"reprise/internal/units"
)

// Line is the telemetry of this moment for a live view, empty where there is
// none yet.
func (t *Telemetry) Line() string {
	if t == nil {
		return ""
	}
	var running, waiting, kv, power, memory, busy float64
	engines, gpus, kvs, powers := 0, 0, 0, 0
	for _, s := range t.latest.All() {
		switch s.Metric {
		case string(enginemetrics.Running):
			running += s.Value
			engines++
		case string(enginemetrics.Waiting):
			waiting += s.Value
		case string(enginemetrics.KVUsage):
			kv = max(kv, s.Value)
			kvs++
		case gpu.GPUUtilization:
			busy += s.Value
			gpus++
		case gpu.GPUPower:
			power += s.Value
			powers++
		case gpu.GPUMemoryUsage:
			memory += s.Value
		}
	}
	var items []string
	if engines > 0 {
		text := fmt.Sprintf("engine %s running, %s waiting", units.Count(int64(running)), units.Count(int64(waiting)))
		if kvs > 0 {
			text += ", KV " + units.Percent(kv)
		}
		items = append(items, text)
	}
	if gpus > 0 {
		text := fmt.Sprintf("GPU %s busy", units.Percent(busy/float64(gpus)))
		if powers > 0 {
			text += fmt.Sprintf(", %s W", units.Digits(power))
		}
		if memory > 0 {
			text += ", " + units.Bytes(int64(memory))
		}
		items = append(items, text)
	}
	if len(items) == 0 {
		return ""
	}
	return strings.Join(items, "  ")
}
