package replay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"reprise/internal/metrics"
	"reprise/traceformat"
)

// Files of a run directory.
const (
	TraceFile    = "trace.parquet"
	ManifestFile = "run.json"
	LatencyFile  = "latency.hlog"
)

// journalFile is there while the run goes on, or after it was killed.
var journalFile = traceformat.JournalPath(TraceFile)

// A Dir records a run in a directory as it goes. What Record was given a
// second ago survives the death of the process and, but for a failing disk, of
// the machine: `trace recover DIR` writes trace.parquet from the journal.
type Dir struct {
	path     string
	manifest *Manifest
	plan     *Plan
	journal  *traceformat.Journal
	metrics  *metrics.Collector
	live     *metrics.Live
	hlog     *metrics.LatencyLog
	as       *metrics.As // nil unless asked for

	telemetry *Telemetry // nil unless started
	exporter  *Exporter  // likewise
}

// CreateDir makes the directory of a run and writes its manifest. A directory
// that holds a run already is refused, or emptied of that run with force.
func CreateDir(path string, m *Manifest, p *Plan, slos []metrics.SLO, limits metrics.Limits, force bool) (*Dir, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, err
	}
	names := append([]string{TraceFile, ManifestFile, LatencyFile, journalFile}, telemetryFiles...)
	if _, err := os.Lstat(filepath.Join(path, ManifestFile)); err == nil {
		// Only beside a run are files of such names surely pages of one.
		pages, _ := filepath.Glob(filepath.Join(path, fmt.Sprintf(firstPage, "*")))
		more, _ := filepath.Glob(filepath.Join(path, fmt.Sprintf(lastPage, "*")))
		for _, page := range append(pages, more...) {
			names = append(names, filepath.Base(page))
		}
	}
	for _, name := range names {
		file := filepath.Join(path, name)
		if _, err := os.Lstat(file); err != nil {
			continue
		}
		if !force {
			return nil, fmt.Errorf("%s holds a run already: name another directory with -o, or replace it with --force", path)
		}
		if err := os.Remove(file); err != nil {
			return nil, err
		}
	}
	d := &Dir{path: path, manifest: m, plan: p, live: metrics.NewLive()}
	if err := m.Write(path); err != nil {
		return nil, err
	}
	var err error
	if d.journal, err = traceformat.CreateJournal(filepath.Join(path, journalFile), d.header("")); err != nil {
		return nil, err
	}
	start := time.Now()
	if at := p.Options.StartAt; !at.IsZero() {
		start = at
	}
	if d.hlog, err = metrics.CreateLatencyLog(filepath.Join(path, LatencyFile), start); err != nil {
		return nil, errors.Join(err, d.journal.Close())
	}
	if m.Virtual {
		d.hlog.Widen(p.Span() / virtualIntervals)
	}
	to := p.Span()
	if p.Waits() {
		to = 0 // the last send, whenever that was
	}
	d.metrics = metrics.NewCollector(metrics.Config{
		From: p.Warmup(), To: to, SLOs: slos, Limits: limits, TokenIDs: p.Words == nil, Planned: p.Rows,
	})
	return d, nil
}

// header describes the run as a trace.
func (d *Dir) header(partial string) *traceformat.Header {
	h := d.plan.Header
	h.Version = traceformat.Version
	h.Clock = traceformat.Clock{Source: "monotonic"}
	h.Origin = traceformat.Origin{Program: "replay", Version: d.manifest.Program.Version, Dialect: d.manifest.Server.Backend, Vantage: "client"}
	h.Start = time.Time{}
	if d.manifest.Stats != nil {
		h.Start = d.manifest.Stats.StartedAt
	}
	h.Rows = traceformat.Counts{}
	h.Partial = partial
	h.Sampling = traceformat.Sampling{}
	return &h
}

// MeasureAs also computes the figures that another tool would have printed.
func (d *Dir) MeasureAs(tool string) (err error) {
	d.as, err = metrics.NewAs(tool, d.plan.Warmup())
	return err
}

// FiguresAs returns those figures.
func (d *Dir) FiguresAs() []metrics.Figure { return d.as.Figures() }

// Path is the directory.
func (d *Dir) Path() string { return d.path }

// Live has the figures of the run so far.
func (d *Dir) Live() *metrics.Live { return d.live }

// Record is a Config.Record.
func (d *Dir) Record(row *traceformat.Row) error {
	// The figures come first: they are complete even where the disk is full.
	d.metrics.Add(row)
	if d.as != nil {
		d.as.Add(row)
	}
	d.live.Add(row)
	if d.telemetry != nil {
		d.telemetry.rows.Add(row)
	}
	if d.exporter != nil {
		d.exporter.add(row)
	}
	return errors.Join(d.hlog.Add(row), d.journal.Append(row))
}

// Close writes what became of the run: trace.parquet from the journal, the
// latency log and the manifest. It does all of it that can be done and returns
// the first error.
func (d *Dir) Close(stats *Stats, runErr error) (*metrics.Summary, error) {
	m := d.manifest
	m.Stats = stats
	m.State = StateComplete
	partial := ""
	if stats.Interrupted || runErr != nil {
		m.State, m.Reason, partial = StatePartial, "interrupted", "interrupted"
		if runErr != nil {
			m.Reason = runErr.Error()
		}
	}
	m.Summary = d.metrics.Summary()
	var noTelemetry error
	if d.telemetry != nil {
		m.Telemetry, noTelemetry = d.telemetry.finish(m)
		m.Telemetry.Blame(&m.Summary.Fidelity)
	}
	err := errors.Join(d.hlog.Close(), d.journal.SetHeader(d.header(partial)), d.journal.Close())
	if err == nil {
		err = traceformat.Seal(filepath.Join(d.path, journalFile), filepath.Join(d.path, TraceFile))
	}
	return m.Summary, errors.Join(err, noTelemetry, m.Write(d.path))
}
