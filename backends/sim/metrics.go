package sim

import (
	"reprise/backends"
	"reprise/backends/vllm"
	m "reprise/internal/enginemetrics"
)

// The simulated engine's /metrics are vLLM's, but that it counts hang-ups.
func init() {
	t := vllm.Metrics("sim")
	t.Entries = append(t.Entries, m.Entry{Quantity: m.Aborted, Sources: m.Names("sim:aborted_requests_total")})
	backends.RegisterMetrics(t)
}
