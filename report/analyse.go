package report

import (
	"context"
	"os"

	"reprise/internal/metrics"
	"reprise/traceformat"
)

// A Config says what Analyse computes, beyond what a run says of itself.
type Config struct {
	SLOs []metrics.SLO            // in place of those that the run was played with
	As   string                   // also the figures that this tool would have printed, see metrics.Tools
	Read []traceformat.ReadOption // for a trace that is not native
}

// An Analysis is what the rows of a run or a capture amount to.
type Analysis struct {
	Name string `json:"name"`
	// State and Reason say whether the rows are all there are: a State constant
	// of a run, partial of a trace that says so, and empty otherwise.
	State    string           `json:"state,omitempty"`
	Reason   string           `json:"reason,omitempty"`
	Summary  *metrics.Summary `json:"summary"`
	As       string           `json:"metrics_as,omitempty"`
	Figures  []metrics.Figure `json:"figures,omitempty"`
	Warnings []string         `json:"warnings,omitempty"` // of the run
	Merge    *Joined          `json:"merge,omitempty"`    // of a run that was joined from shards
}

// checkEvery is how many rows pass between two looks at the context.
const checkEvery = 4096

// Analyse computes every figure of the run directory or trace called name from
// its rows. A run is measured over the window that it was planned with; a file
// alone has no plan, and its window ends with its last request. Reasons that
// were found against the run when it was played stay reasons.
func Analyse(ctx context.Context, name string, c Config) (*Analysis, error) {
	a := &Analysis{Name: name, As: c.As}
	var m *Manifest
	conf := metrics.Config{}
	if info, err := os.Stat(name); err == nil && info.IsDir() && isRun(name) {
		if m, err = ReadManifest(name); err != nil {
			return nil, err
		}
		conf = m.config()
		a.State, a.Reason, a.Warnings, a.Merge = m.State, m.Reason, m.Warnings, m.Merge
		if m.State == StateRunning {
			a.Reason = "it was killed, or is still going on"
		}
	}
	if c.SLOs != nil {
		conf.SLOs = c.SLOs
	}
	var as *metrics.As
	if c.As != "" {
		var err error
		if as, err = metrics.NewAs(c.As, conf.From); err != nil {
			return nil, err
		}
	}
	r, err := traceformat.Open(name, c.Read...)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	col := metrics.NewCollector(conf)
	n := 0
	for row, err := range r.All() {
		if n++; err == nil && n%checkEvery == 0 {
			err = ctx.Err()
		}
		if err != nil {
			return nil, err
		}
		col.Add(row)
		if as != nil {
			as.Add(row)
		}
	}
	a.Summary = col.Summary()
	if m != nil {
		hold(&a.Summary.Fidelity, m.Summary)
	} else if why := r.Header().Partial; why != "" {
		a.State, a.Reason = StatePartial, why
	}
	if as != nil {
		a.Figures = as.Figures()
	}
	return a, nil
}
