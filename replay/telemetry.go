package replay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"reprise/gpu"
	"reprise/gpu/findings"
	"reprise/internal/clock"
	"reprise/traceformat"
)

// TelemetryFile holds the samples of a run, see package gpu.
const TelemetryFile = "telemetry.parquet"

// Raw pages of metrics, as the engine wrote them: %s is empty for the only
// engine of a run and names one of several.
const (
	firstPage = "metrics%s-first.txt"
	lastPage  = "metrics%s-last.txt"
)

// telemetryFiles are those of a run besides the pages.
var telemetryFiles = []string{TelemetryFile, gpu.JournalPath(TelemetryFile)}

// A Telemetry samples the serving host while a run goes on. What it cannot read
// is a gap in the file and a line of the summary, never the end of the run.
type Telemetry struct {
	dir      string
	progress *Progress
	engines  []*gpu.Engine
	sampler  *gpu.Sampler // nil where there is nothing to sample
	writer   *gpu.Writer
	latest   gpu.Latest
	rows     *findings.Requests // of one goroutine, that of Record
	virtual  *gpu.SourceStatus  // of an engine in virtual time; nil: the run is real
	zeroed   bool               // of emit: the file knows the run's zero

	mu    sync.Mutex // guards what follows
	pages []string
	err   error // of keeping pages
}

// StartTelemetry begins to sample into the directory. Engines scrape pages and
// sources are everything else; there may be none of either, and then the run's
// rows alone are looked at. p is the run's. Close of the Dir ends it.
func (d *Dir) StartTelemetry(p *Progress, engines []gpu.EngineOptions, sources ...gpu.Source) (*Telemetry, error) {
	t := &Telemetry{dir: d.path, progress: p, rows: findings.NewRequests()}
	all := slices.Clone(sources)
	for _, o := range engines {
		suffix := ""
		if len(engines) > 1 {
			suffix = "-" + o.Name
		}
		o.First = func(page []byte) { t.keep(fmt.Sprintf(firstPage, suffix), page) }
		e, err := gpu.NewEngine(o)
		if err != nil {
			return nil, err
		}
		t.engines = append(t.engines, e)
		all = append(all, e)
	}
	d.telemetry = t
	if len(all) == 0 {
		return t, nil
	}
	var err error
	if t.writer, err = gpu.Create(filepath.Join(d.path, TelemetryFile)); err != nil {
		return nil, err
	}
	t.sampler = gpu.StartSampler(gpu.SamplerConfig{Now: clock.Now, Emit: t.emit}, all...)
	return t, nil
}

// emit is never called concurrently.
func (t *Telemetry) emit(s gpu.Sample) {
	if zero := time.Duration(t.progress.started.Load()); zero != 0 && !t.zeroed {
		// Early: should the program die, what is recovered has the run's time.
		t.zeroed = true
		t.writer.SetZero(zero, time.Now().Add(zero-clock.Now()))
	}
	t.writer.Add(s)
	t.latest.Add(s)
}

// keep writes a raw page.
func (t *Telemetry) keep(name string, page []byte) {
	err := os.WriteFile(filepath.Join(t.dir, name), page, 0o644)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.err = errors.Join(t.err, err)
	if err == nil {
		t.pages = append(t.pages, name)
	}
}

// ready is how long a run waits for what its counters count from.
const ready = 500 * time.Millisecond

// Ready waits until every source was read once, or could not be. It is bounded.
func (t *Telemetry) Ready(ctx context.Context) {
	if t.sampler == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, ready)
	defer cancel()
	for {
		pending := false
		for _, s := range t.sampler.Status() {
			pending = pending || s.Readings == 0 && s.Error == ""
		}
		if !pending {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// Latest are the last values, for a live view.
func (t *Telemetry) Latest() *gpu.Latest { return &t.latest }

// lastScrape bounds the scrape behind the last answer.
const lastScrape = 2 * time.Second

// finish ends the sampling, and says what came of it. The record is there in
// spite of an error.
func (t *Telemetry) finish(m *Manifest) (*findings.Record, error) {
	rec := &findings.Record{}
	if t.sampler != nil {
		t.sampler.Close()
		rec.Sources = t.sampler.Status()
		t.scrapeLast(rec.Sources)
		for i := range rec.Sources {
			if note := rec.Sources[i].Summary(); note != "" {
				rec.Notes = append(rec.Notes, note)
			}
		}
	}
	for _, e := range t.engines {
		suffix := ""
		if len(t.engines) > 1 {
			suffix = "-" + e.Name()
		}
		if page := e.Last(); page != nil {
			t.keep(fmt.Sprintf(lastPage, suffix), page)
		}
		rec.Engines = append(rec.Engines, e.Stats())
	}
	t.mu.Lock()
	rec.Pages = t.pages
	err := t.err
	t.mu.Unlock()

	in := t.input(m)
	if t.writer == nil {
		f, _ := findings.Analyse(in, func(func(gpu.Sample, error) bool) {})
		rec.Findings = *f
		return rec, err
	}
	if t.virtual != nil {
		rec.Sources = append(rec.Sources, *t.virtual)
		t.writer.SetZero(0, m.Stats.StartedAt)
	} else if zero := time.Duration(t.progress.started.Load()); zero != 0 {
		t.writer.SetZero(zero, m.Stats.StartedAt)
	}
	rec.File = TelemetryFile
	t.writer.SetInfo(gpu.FileInfo{Program: m.Program.Version, Sources: rec.Sources})
	rec.Dropped = t.writer.Dropped()
	if rec.Dropped > 0 {
		rec.Notes = append(rec.Notes, fmt.Sprintf("%d samples were lost: the disk did not take them", rec.Dropped))
	}
	if e := t.writer.Close(); e != nil {
		return rec, errors.Join(err, e)
	}
	r, e := gpu.Open(filepath.Join(t.dir, TelemetryFile))
	if e != nil {
		return rec, errors.Join(err, e)
	}
	defer r.Close()
	f, e := findings.Analyse(in, r.All())
	if e != nil {
		return rec, errors.Join(err, e)
	}
	rec.Findings = *f
	return rec, err
}

// scrapeLast reads the engines once more, behind the last answer, so that their
// counters hold the whole run. The sampler has let go of them.
func (t *Telemetry) scrapeLast(status []gpu.SourceStatus) {
	ctx, cancel := context.WithTimeout(context.Background(), lastScrape)
	defer cancel()
	for _, e := range t.engines {
		up := false
		for _, s := range status {
			up = up || s.Name == e.Name() && s.Up && !s.Hung
		}
		if !up {
			continue
		}
		// A failure is an engine that went away with the run.
		_ = e.Sample(ctx, clock.Now, func(s gpu.Sample) {
			metric, _ := gpu.Lookup(s.Metric)
			s.Source, s.Unit = e.Name(), metric.Unit
			t.emit(s)
		})
	}
}

// input is what the run's figures say beside the samples.
func (t *Telemetry) input(m *Manifest) findings.Input {
	in := findings.FromSummary(m.Summary, t.rows)
	in.Shared = m.Options.Shard.Of > 1
	if c := m.Cache; c != nil && c.Implied != nil && !c.info.Off && c.Implied.PromptTokens > 0 {
		in.Implied = traceformat.Some(c.Implied.HitAtCapacity.Or(c.Implied.HitUnlimitedReusable))
	}
	for _, e := range t.engines {
		for q, span := range e.Spans() {
			if in.Spans == nil {
				in.Spans = map[string]gpu.EngineSpan{}
			}
			if _, dup := in.Spans[string(q)]; !dup {
				in.Spans[string(q)] = span
			}
		}
	}
	return in
}
