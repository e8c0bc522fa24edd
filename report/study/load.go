package study

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"reprise/gpu/findings"
	"reprise/internal/metrics"
	"reprise/internal/stats"
	"reprise/report"
	"reprise/traceformat"
)

// checkEvery is how many rows pass between two looks at the context.
const checkEvery = 4096

// maxValues bounds the requests of which single values are kept for the interval
// of one run.
const maxValues = 500_000

// A Run is one run of a cell, and whether it counts.
type Run struct {
	Number int    `json:"number"`
	Cell   string `json:"cell"`
	Repeat int    `json:"repeat"`
	Dir    string `json:"dir"`
	// Counted says that its figures are in those of its cell; Status is valid
	// then, and otherwise what is the matter, with Why in words.
	Counted bool      `json:"counted"`
	Status  string    `json:"status"`
	Why     string    `json:"why,omitempty"`
	Started time.Time `json:"started_at,omitzero"`
	Digest  string    `json:"plan_digest,omitempty"`
	Notes   []string  `json:"notes,omitempty"`

	cell     int // place in the plan
	manifest *report.Manifest
	sim      simulation
	engine   map[string]any
	sum      *metrics.Summary
	record   *findings.Record
	met      []int64 // by objective, of those that count
	of       int64
	within   map[string]stats.Estimate // by figure
	metIn    []stats.Estimate          // the share that met each objective
	few      bool                      // within and metIn are wanted
}

// Status of a run beyond those of state.json.
const (
	valid      = "valid"
	invalid    = "invalid"
	partial    = "partial"
	skipped    = "skipped"
	unreadable = "unreadable"
)

// list makes the runs of a plan, with what is known before their rows are read.
func list(dir string, p *plan, states map[planRun]runState) (out []*Run) {
	at := map[string]int{}
	for i := range p.Cells {
		at[p.Cells[i].Name] = i
	}
	played := map[string]bool{}
	for _, r := range p.Runs {
		x := &Run{Number: r.Number, Cell: r.Cell, Repeat: r.Repeat, Dir: r.dir(), Status: pending, cell: at[r.Cell]}
		played[r.Cell] = true
		s, known := states[r]
		if known {
			x.Status, x.Why, x.Started, x.Notes = s.Status, s.Reason, s.Started, s.Notes
		}
		switch x.Status {
		case finished:
			x.Why = "" // of an attempt before
			x.open(filepath.Join(dir, x.Dir))
		case pending:
			if why := p.Cells[x.cell].Skipped; why != "" {
				x.Status, x.Why = skipped, why
			} else {
				x.Why = "it was not played yet"
			}
		case running:
			x.Why = "it was killed, or is still going on"
		case failed:
			x.Why = cmp.Or(x.Why, "it failed")
		}
		out = append(out, x)
	}
	// A cell that the plan skips may have no runs at all.
	for i := range p.Cells {
		if c := &p.Cells[i]; !played[c.Name] {
			out = append(out, &Run{Cell: c.Name, cell: i, Status: skipped, Why: cmp.Or(c.Skipped, "the plan has no run of it")})
		}
	}
	return out
}

// open reads what the run says of itself, and decides whether it can count.
func (x *Run) open(dir string) {
	m, err := report.ReadManifest(dir)
	if err == nil {
		x.sim, err = readSimulation(dir)
	}
	if err != nil {
		x.Status, x.Why = unreadable, plain(dir, err)
		return
	}
	x.manifest, x.engine, x.record, x.Digest = m, readEngine(dir), m.Record(), m.Plan.Digest
	if m.Stats != nil {
		x.Started = m.Stats.StartedAt
	}
	switch {
	case m.State != report.StateComplete:
		x.Status, x.Why = partial, cmp.Or(m.Reason, "its run is "+m.State)
	case m.Summary != nil && m.Summary.Fidelity.Verdict == metrics.Invalid:
		x.Status, x.Why = invalid, strings.Join(m.Summary.Fidelity.Reasons, "; ")
	default:
		x.Status, x.Counted = valid, true
	}
}

// plain says what is wrong with a file of a run, without the way to it.
func plain(dir string, err error) string {
	if path, ok := errors.AsType[*fs.PathError](err); ok && errors.Is(err, fs.ErrNotExist) {
		return filepath.Base(path.Path) + " is missing"
	}
	return strings.ReplaceAll(err.Error(), dir+string(filepath.Separator), "")
}

// load reads the rows of the runs that can count, a few at a time.
func load(ctx context.Context, dir string, runs []*Run, objectives []Objective, seed uint64) error {
	perCell := map[int]int{}
	for _, x := range runs {
		if x.Counted {
			perCell[x.cell]++
		}
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, min(8, runtime.GOMAXPROCS(0)))
	for _, x := range runs {
		if !x.Counted {
			continue
		}
		x.few = perCell[x.cell] < 3
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if ctx.Err() != nil {
				return
			}
			if err := x.read(ctx, filepath.Join(dir, x.Dir), objectives, seed); err != nil {
				x.Counted, x.Status, x.Why = false, unreadable, plain(filepath.Join(dir, x.Dir), err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// read computes the figures of a run from its rows.
func (x *Run) read(ctx context.Context, dir string, objectives []Objective, seed uint64) error {
	conf := x.manifest.Measured()
	conf.SLOs = perRequest(objectives)
	r, err := traceformat.Open(dir)
	if err != nil {
		return err
	}
	defer r.Close()
	col := metrics.NewCollector(conf)
	x.met = make([]int64, len(objectives))
	var values [columns][]float64
	good, errs, met := []float64{}, []float64{}, make([][]float64, len(objectives))
	n := 0
	for row, err := range r.All() {
		if n++; err == nil && n%checkEvery == 0 {
			err = context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		col.Add(row)
		m := metrics.Measure(row)
		if m.Zero < conf.From || conf.To != 0 && m.Zero > conf.To || m.Class == metrics.Aborted || m.Class == metrics.Unknown {
			continue
		}
		ok := m.Class == metrics.OK
		keep := x.few && len(good) < maxValues
		if keep {
			errs = append(errs, oneIf(!ok))
			good = append(good, oneIf(ok && meetsAll(&m, conf.SLOs)))
		}
		for i, o := range objectives {
			meets := ok && m.Meets(o.SLO)
			if meets {
				x.met[i]++
			}
			if keep {
				met[i] = append(met[i], oneIf(meets))
			}
		}
		if ok && keep {
			for c, d := range [columns]traceformat.Opt[time.Duration]{columnTTFT: m.FromSchedule(m.TTFT), columnE2E: m.FromSchedule(m.E2E), columnTPOT: m.TPOT} {
				if d.OK {
					values[c] = append(values[c], float64(d.V))
				}
			}
		}
	}
	x.sum = col.Summary()
	x.manifest.Hold(&x.sum.Fidelity)
	if x.sum.Fidelity.Verdict == metrics.Invalid {
		x.Counted, x.Status, x.Why = false, invalid, strings.Join(x.sum.Fidelity.Reasons, "; ")
		return nil
	}
	q := &x.sum.Requests
	x.of = q.Measured - q.Aborted - q.Unknown + q.Unsent
	if x.few {
		x.bootstrap(values, good, errs, met, seed)
	}
	return nil
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func meetsAll(m *metrics.Reading, slos []metrics.SLO) bool {
	for _, s := range slos {
		if !m.Meets(s) {
			return false
		}
	}
	return len(slos) > 0
}

// bootstrap finds what other requests in this run would have given.
func (x *Run) bootstrap(values [columns][]float64, good, errs []float64, met [][]float64, seed uint64) {
	x.within = map[string]stats.Estimate{}
	x.metIn = make([]stats.Estimate, len(met))
	if x.of > int64(len(good)) {
		return // there are more requests than are kept
	}
	for c := range columns {
		var names []string
		var levels []float64
		for i := range measures {
			if w, ok := within[measures[i].Name]; ok && w.column == c {
				names, levels = append(names, measures[i].Name), append(levels, w.level)
			}
		}
		if len(values[c]) == 0 {
			continue
		}
		for i, e := range stats.Alone(values[c], seed, levels...) {
			x.within[names[i]] = e
		}
	}
	x.within["error_rate"] = proportion(errs, seed)
	if sec := x.sum.Window.Length.Seconds(); x.sum.Goodput != nil && sec > 0 {
		e, f := proportion(good, seed), float64(x.of)/sec
		e.V, e.Lo, e.Hi = e.V*f, e.Lo*f, e.Hi*f
		x.within["goodput"] = e
	}
	for i := range met {
		x.metIn[i] = proportion(met[i], seed)
	}
}

// roundOff is less than one request of any run, and more than what arithmetic
// leaves of a bound that is 0.
const roundOff = 1e-12

// proportion is a share of requests with its interval: Wilson's where all are
// alike or few, as if requests were independent, and the wider of it and the
// bootstrap's otherwise.
func proportion(each []float64, seed uint64) stats.Estimate {
	if len(each) == 0 {
		return stats.Estimate{V: math.NaN(), Lo: math.NaN(), Hi: math.NaN(), Why: "no requests"}
	}
	e := stats.Alone(each, seed, stats.Mean)[0]
	lo, hi := stats.Wilson(e.V, float64(len(each)), stats.Level)
	if e.OK() {
		lo, hi = min(lo, e.Lo), max(hi, e.Hi)
	}
	if lo < roundOff {
		lo = 0
	}
	return stats.Estimate{V: e.V, Lo: lo, Hi: min(1, hi)}
}

// describe names a run.
func (x *Run) describe() string {
	if x.Number == 0 {
		return "cell " + x.Cell
	}
	return fmt.Sprintf("run %d (%s, repeat %d)", x.Number, x.Cell, x.Repeat)
}

// Broken says that the run was played and is not what it should be.
func (x *Run) Broken() bool {
	return x.Status == invalid || x.Status == partial || x.Status == unreadable
}
