package report

import (
	"context"
	"slices"

	"reprise/gpu/findings"
	"reprise/internal/metrics"
	"reprise/traceformat"
)

// A Config says what Analyse computes, beyond what a run says of itself.
type Config struct {
	SLOs []metrics.SLO            // in place of those that the run was played with
	As   string                   // also the figures that this tool would have printed, see metrics.Tools
	Read []traceformat.ReadOption // for a trace that is not native
	// Local, if not nil, says where on this machine the run called name lies: one
	// of object storage is read from a copy, and keeps its name.
	Local func(name string) string
}

// AnalysisVersion is the version of the JSON form of an Analysis.
const AnalysisVersion = 1

// An Analysis is what the rows of a run or a capture amount to.
type Analysis struct {
	Version int    `json:"version"`
	Name    string `json:"name"`
	// State and Reason say whether the rows are all there are: a State constant
	// of a run, partial of a trace that says so, and empty otherwise.
	State   string           `json:"state,omitempty"`
	Reason  string           `json:"reason,omitempty"`
	Summary *metrics.Summary `json:"summary"`
	// Segments are the figures of requests that have something in common.
	Segments []RunSegment     `json:"segments,omitempty"`
	As       string           `json:"metrics_as,omitempty"`
	Figures  []metrics.Figure `json:"figures,omitempty"`
	Warnings []string         `json:"warnings,omitempty"` // of the run
	Merge    *Joined          `json:"merge,omitempty"`    // of a run that was joined from shards
	// Telemetry is what the run's manifest says of the serving host.
	Telemetry *findings.Record `json:"telemetry,omitempty"`
	// Profile is what charts show of it.
	Profile *Profile `json:"-"`
}

// checkEvery is how many rows pass between two looks at the context.
const checkEvery = 4096

// Analyse computes every figure of the run directory or trace called name from
// its rows. A run is measured over the window that it was planned with; a file
// alone has no plan, and its window ends with its last request. Reasons that
// were found against the run when it was played stay reasons.
func Analyse(ctx context.Context, name string, c Config) (*Analysis, error) {
	all, err := analyse(ctx, []string{name}, c)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// analyse analyses runs that are shown together, on one width of windows.
func analyse(ctx context.Context, names []string, c Config) ([]*Analysis, error) {
	var out []*Analysis
	var runs []*run
	var profilers []*profiler
	var segmenters []*segmenter
	for _, name := range names {
		played, err := openRun(name, c)
		if err != nil {
			return nil, err
		}
		p, s := newProfiler(played.conf), newSegmenter(played.conf)
		a, err := analyseRun(ctx, played, c, p, s)
		if err != nil {
			return nil, err
		}
		out, runs, profilers, segmenters = append(out, a), append(runs, played), append(profilers, p), append(segmenters, s)
	}
	ps, err := settle(ctx, profilers, runs)
	if err != nil {
		return nil, err
	}
	for i, a := range out {
		a.Profile, a.Segments = ps[i], segmenters[i].segments(profilers[i])
		if text := segmenters[i].warning(); text != "" {
			a.Warnings = append(slices.Clip(a.Warnings), text)
		}
	}
	return out, nil
}

// analyseRun reads the rows of a run into an analysis short of its profile and
// segments.
func analyseRun(ctx context.Context, played *run, c Config, profile *profiler, segments *segmenter) (*Analysis, error) {
	a := &Analysis{Version: AnalysisVersion, Name: played.name, As: c.As}
	m, conf := played.manifest, played.conf
	if m != nil {
		a.State, a.Reason, a.Warnings, a.Merge = m.State, m.Reason, m.Warnings, m.Merge
		if a.Telemetry = m.Record(); a.Telemetry == nil && len(m.Telemetry) > 0 {
			a.Warnings = append(slices.Clip(a.Warnings), "what run.json says of telemetry cannot be read by this version")
		}
		if m.State == StateRunning {
			a.Reason = "it was killed, or is still going on"
		}
	}
	var as *metrics.As
	var err error
	if c.As != "" {
		if as, err = metrics.NewAs(c.As, conf.From); err != nil {
			return nil, err
		}
	}
	r, err := traceformat.Open(played.path, c.Read...)
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
		reading := metrics.Measure(row)
		profile.add(row, &reading)
		segments.add(row, &reading)
		if as != nil {
			as.Add(row)
		}
	}
	a.Summary = col.Summary()
	a.Warnings = slices.Concat(a.Warnings, lackOf(r.Header().Extra[traceformat.Lacks]))
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
