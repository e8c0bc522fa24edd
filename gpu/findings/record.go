package findings

import (
	"reprise/gpu"
	"reprise/internal/metrics"
)

// A Record is what the manifest of a run says of its telemetry.
type Record struct {
	// From says which shard the samples of a joined run are of.
	From    string             `json:"from,omitempty"`
	File    string             `json:"file,omitempty"`
	Pages   []string           `json:"pages,omitempty"` // first and last of /metrics, as they were
	Sources []gpu.SourceStatus `json:"sources,omitempty"`
	Engines []gpu.EngineStats  `json:"engines,omitempty"` // of the scrapers among them
	Dropped int64              `json:"dropped,omitempty"` // samples that a slow disk did not take
	// Notes are the gaps and faults of the sources, in words.
	Notes []string `json:"notes,omitempty"`
	Findings
}

// Blame makes a run invalid that was disturbed.
func (r *Record) Blame(f *metrics.Fidelity) {
	if r.Environment.Verdict != Disturbed || f.Verdict == metrics.NotReplayed {
		return
	}
	for _, why := range r.Environment.Reasons {
		f.Reasons = append(f.Reasons, "the serving host was disturbed: "+why)
	}
	f.Valid, f.Verdict = false, metrics.Invalid
}
