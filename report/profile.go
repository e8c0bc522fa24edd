package report

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"reprise/gpu/findings"
	"reprise/internal/metrics"
	"reprise/traceformat"
)

// Bounds of a Profile.
const (
	firstWindow = 125 * time.Millisecond // width of a window to begin with
	maxWindows  = 240                    // while rows are read
	drawn       = 120                    // that a Profile is made with, at most
	fewest      = 12                     // that it keeps, however few requests there are
	perWindow   = 12                     // successes that a window should hold
)

// A Profile is a run reduced to what charts show: distributions, bands over
// time, densities. Its size does not depend on the number of rows. Latencies
// are of successes, from the schedule.
type Profile struct {
	Name     string
	Manifest *Manifest // nil of a capture
	// Findings are what the run's manifest holds of its telemetry, Notes the gaps
	// and faults of the sources.
	Findings *findings.Findings
	Notes    []string

	// From and To bound the measured window; To is 0 where it has no end.
	From, To time.Duration
	// TTFT to ITL are of the measured requests; ITL is pooled over tokens.
	TTFT, E2E, TPOT, ITL Curve
	// Width is that of a window in time, Windows are all of the run, warm-up and
	// drain included.
	Width   time.Duration
	Windows []TimeWindow
	// Prompt holds TTFT against prompt tokens, Output E2E against output tokens,
	// both in measured requests.
	Prompt, Output Density
	// Telemetry is on the same windows.
	Telemetry []Gauge
}

// A TimeWindow is what happened in a stretch of run time: latencies and ends by
// time zero of the requests, tokens by their events.
type TimeWindow struct {
	Requests     int64
	OK           int64
	Failed       int64   // or shed
	OutputTokens float64 // whose events fall into it
	InFlight     float64 // mean
	TTFT         Band
	E2E          Band
	TPOT         Band
}

// BandOf is how many successes a window needs for its p10 and p90, medianOf for
// its p50: they say what the window held and estimate nothing.
const (
	BandOf   = 10
	medianOf = 3
)

// A Band holds quantiles in ns; NaN where there are too few requests.
type Band struct{ P10, P50, P90 float64 }

// timePart is a TimeWindow in the making.
type timePart struct {
	requests, ok, failed int64
	tokens               float64
	busy                 time.Duration
	ttft, e2e, tpot      sketch
}

func (p *timePart) merge(o *timePart) {
	p.requests, p.ok, p.failed = p.requests+o.requests, p.ok+o.ok, p.failed+o.failed
	p.tokens += o.tokens
	p.busy += o.busy
	p.ttft.merge(&o.ttft)
	p.e2e.merge(&o.e2e)
	p.tpot.merge(&o.tpot)
}

func (s *sketch) band() Band {
	return Band{s.among(0.1, BandOf), s.among(0.5, medianOf), s.among(0.9, BandOf)}
}

// profiler makes a Profile from rows.
type profiler struct {
	conf                 metrics.Config
	width                time.Duration
	parts                []timePart
	ttft, e2e, tpot, itl sketch
	prompt, output       Density
}

func newProfiler(c metrics.Config) *profiler {
	return &profiler{conf: c, width: firstWindow, prompt: newDensity(), output: newDensity()}
}

// part finds the window that holds t, and makes windows wider where there would
// be too many.
func (p *profiler) part(t time.Duration) *timePart {
	t = max(t, 0)
	for t/p.width >= maxWindows {
		p.parts = halve(p.parts)
		p.width *= 2
	}
	k := int(t / p.width)
	for len(p.parts) <= k {
		p.parts = append(p.parts, timePart{})
	}
	return &p.parts[k]
}

// halve joins neighbouring windows.
func halve(parts []timePart) []timePart {
	for i := 0; i < len(parts); i += 2 {
		if i > 0 {
			parts[i/2] = parts[i]
		}
		if i+1 < len(parts) {
			parts[i/2].merge(&parts[i+1])
		}
	}
	half := (len(parts) + 1) / 2
	clear(parts[half:])
	return parts[:half]
}

// add takes a row and what was read of it.
func (p *profiler) add(row *traceformat.Row, m *metrics.Reading) {
	base := m.Sent.Or(m.Zero)
	p.tokens(row, m, base)
	if m.End.OK && m.End.V > base {
		p.spread(base, m.End.V, func(w *timePart, d time.Duration) { w.busy += d })
	}
	w := p.part(m.Zero)
	w.requests++
	if m.Class == metrics.Failed || m.Class == metrics.Shed {
		w.failed++
	}
	if m.Class != metrics.OK {
		return
	}
	w.ok++
	inside := measured(&p.conf, m.Zero)
	figure := func(d traceformat.Opt[time.Duration], window, all *sketch, h *Density, tokens traceformat.Opt[int32]) {
		if !d.OK {
			return
		}
		ns := float64(d.V)
		window.add(ns)
		if inside {
			all.add(ns)
			if h != nil && tokens.OK {
				h.add(tokens.V, ns)
			}
		}
	}
	figure(m.FromSchedule(m.TTFT), &w.ttft, &p.ttft, &p.prompt, m.PromptTokens)
	figure(m.FromSchedule(m.E2E), &w.e2e, &p.e2e, &p.output, m.OutputTokens)
	figure(m.TPOT, &w.tpot, &p.tpot, nil, m.OutputTokens)
	if inside {
		metrics.TokenGaps(row, func(gap time.Duration, tokens int64) {
			p.itl.addN(float64(gap)/float64(tokens), tokens)
		})
	}
}

// tokens counts output tokens where they came.
func (p *profiler) tokens(row *traceformat.Row, m *metrics.Reading, base time.Duration) {
	if n := len(row.ChunkTimes); n > 0 && len(row.ChunkTokens) == n {
		var w *timePart
		var from, to time.Duration
		for i, t := range row.ChunkTimes {
			if at := base + t; w == nil || at < from || at >= to {
				w = p.part(at)
				from = at / p.width * p.width
				to = from + p.width
			}
			w.tokens += float64(row.ChunkTokens[i])
		}
		return
	}
	out, first, last := m.OutputTokens, m.TTFT, m.E2E
	if !out.OK || out.V == 0 || !last.OK {
		return
	}
	begin, end := base+first.Or(last.V), base+last.V
	if end <= begin {
		p.part(end).tokens += float64(out.V)
		return
	}
	p.spread(begin, end, func(w *timePart, d time.Duration) {
		w.tokens += float64(out.V) * float64(d) / float64(end-begin)
	})
}

// spread visits every window between two moments with the time inside it.
func (p *profiler) spread(begin, end time.Duration, visit func(*timePart, time.Duration)) {
	begin = max(begin, 0)
	p.part(end) // before the loop, as it may change the width
	for t := begin; t < end; {
		next := min(end, (t/p.width+1)*p.width)
		visit(p.part(t), next-t)
		t = next
	}
}

// fits says whether windows of this width are few and full enough to draw.
func (p *profiler) fits() bool {
	if len(p.parts) > drawn {
		return false
	}
	var full, ok int64
	for i := range p.parts {
		if n := p.parts[i].ok; n > 0 {
			full++
			ok += n
		}
	}
	return len(p.parts) <= fewest || ok >= perWindow*full
}

// widen makes windows at least so wide, which is a power of two of the first.
func (p *profiler) widen(width time.Duration) {
	for p.width < width {
		p.parts = halve(p.parts)
		p.width *= 2
	}
}

// profile is what was gathered.
func (p *profiler) profile(r *run) *Profile {
	out := &Profile{
		Name: r.name, Manifest: r.manifest, From: p.conf.From, To: p.conf.To,
		TTFT: p.ttft.curve(), E2E: p.e2e.curve(), TPOT: p.tpot.curve(), ITL: p.itl.curve(),
		Width: p.width, Prompt: p.prompt, Output: p.output,
	}
	for i := range p.parts {
		x := &p.parts[i]
		out.Windows = append(out.Windows, TimeWindow{
			Requests: x.requests, OK: x.ok, Failed: x.failed, OutputTokens: x.tokens, InFlight: x.busy.Seconds() / p.width.Seconds(),
			TTFT: x.ttft.band(), E2E: x.e2e.band(), TPOT: x.tpot.band(),
		})
	}
	return out
}

// settle makes the windows of profiles that are drawn together equally wide,
// and adds what the telemetry of the runs says.
func settle(ctx context.Context, ps []*profiler, runs []*run) ([]*Profile, error) {
	width := time.Duration(0)
	for _, p := range ps {
		for !p.fits() {
			p.widen(2 * p.width)
		}
		width = max(width, p.width)
	}
	out := make([]*Profile, len(ps))
	for i, p := range ps {
		p.widen(width)
		out[i] = p.profile(runs[i])
		if err := out[i].telemetry(ctx, runs[i].path); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Profiles reduces runs to what charts show of them, on one axis of time.
func Profiles(ctx context.Context, names []string, c Config) ([]*Profile, error) {
	var ps []*profiler
	var runs []*run
	for _, name := range names {
		r, err := openRun(name, c)
		if err != nil {
			return nil, err
		}
		p := newProfiler(r.conf)
		if err := r.rows(ctx, func(row *traceformat.Row) {
			m := metrics.Measure(row)
			p.add(row, &m)
		}); err != nil {
			return nil, err
		}
		ps, runs = append(ps, p), append(runs, r)
	}
	return settle(ctx, ps, runs)
}

// A Density counts requests over tokens and a latency, on logarithmic cells.
type Density struct {
	N     int64
	Cells [][]int64 // a row for each interval of LatencyEdges, from the lowest
}

// TokenEdges and LatencyEdges (in ns) bound the cells of every Density.
var (
	TokenEdges   = powers(1, 2, 2, 42)
	LatencyEdges = powers(1e5, 10, 8, 62)
)

// powers are n edges, so many for each factor of base.
func powers(first, base, each float64, n int) (edges []float64) {
	for k := range n {
		edges = append(edges, first*math.Pow(base, float64(k)/each))
	}
	return edges
}

func newDensity() Density {
	d := Density{Cells: make([][]int64, len(LatencyEdges)-1)}
	for i := range d.Cells {
		d.Cells[i] = make([]int64, len(TokenEdges)-1)
	}
	return d
}

// add takes a request; what lies beyond the edges counts in the last cell.
func (d *Density) add(tokens int32, ns float64) {
	d.N++
	d.Cells[cell(LatencyEdges, ns)][cell(TokenEdges, float64(tokens))]++
}

func cell(edges []float64, v float64) int {
	k, found := slices.BinarySearch(edges, v)
	if !found {
		k--
	}
	return min(max(k, 0), len(edges)-2)
}

// Span is the time that the windows cover.
func (p *Profile) Span() time.Duration { return time.Duration(len(p.Windows)) * p.Width }

// Label names a profile for people, by what was played against.
func (p *Profile) Label() string {
	if m := p.Manifest; m != nil && m.Server.Backend != "" {
		return fmt.Sprintf("%s (%s)", p.Name, m.Server.Backend)
	}
	return p.Name
}
