package study

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"reprise/internal/durable"
	"reprise/report"
)

// Names in an experiment's folder.
const (
	planFile   = "plan.json"
	stateFile  = "state.json"
	runsDir    = "runs"
	engineFile = "engine.json"
	runFile    = "run.json"
)

// Bounds of what is read.
const (
	maxFile   = 64 << 20 // of plan.json, state.json and run.json
	maxEngine = 1 << 20  // of engine.json
	maxRuns   = 20000
)

// Versions of plan.json that are read: 1 is an A/B, which has no factors but its
// backends.
const (
	firstPlan = 1
	lastPlan  = 2
)

// States of a run, as in state.json.
const (
	pending  = "pending"
	running  = "running"
	finished = "finished"
	failed   = "failed"
)

// A Factor is what is varied.
type Factor struct {
	Name   string   `json:"name"`
	Levels []string `json:"levels"`
	Kind   string   `json:"kind,omitempty"` // engine, replay, trace, backend
	Unit   string   `json:"unit,omitempty"`
}

// plan is what a report takes from a plan.json.
type plan struct {
	Version     int            `json:"version"`
	Title       string         `json:"title"`
	Question    string         `json:"question"`
	Program     report.Program `json:"program"`
	Created     time.Time      `json:"created"`
	Args        []string       `json:"args"`
	Flags       []string       `json:"flags"`
	FlagsDigest string         `json:"flags_digest"`
	Design      string         `json:"design"`
	Trace       string         `json:"trace"`
	Work        string         `json:"plan_digest"`
	Cache       string         `json:"cache"`
	Requests    int64          `json:"requests_per_run"`
	Repeats     int            `json:"repeats"`
	Seed        uint64         `json:"seed"`
	Factors     []Factor       `json:"factors"`
	SLOs        []string       `json:"slos"`
	Price       float64        `json:"price_per_gpu_hour"`
	GPUs        float64        `json:"gpus_per_engine"`
	Cells       []planCell     `json:"cells"`
	Runs        []planRun      `json:"runs"`
	Notes       []string       `json:"notes"`
}

type planCell struct {
	Name     string            `json:"name"`
	Backend  string            `json:"backend"`
	Arg      string            `json:"arg"` // sim=PRESET, where the kind of backend does not say it all
	Work     string            `json:"plan_digest"`
	URL      string            `json:"url"`
	Options  []string          `json:"options"`
	Before   string            `json:"before_run"`
	After    string            `json:"after_run"`
	Factors  map[string]string `json:"factors"`
	Trace    string            `json:"trace"`
	Requests int64             `json:"requests"`
	Flags    []string          `json:"flags"`
	Launch   json.RawMessage   `json:"launch"`
	// Skipped is why the cell is not played.
	Skipped string `json:"skipped"`
}

type planRun struct {
	Number int    `json:"number"`
	Cell   string `json:"cell"`
	Repeat int    `json:"repeat"`
}

// dir is the run's folder in that of the experiment.
func (r planRun) dir() string {
	return filepath.Join(runsDir, fmt.Sprintf("%03d-%s-%d", r.Number, r.Cell, r.Repeat))
}

type runState struct {
	planRun
	Status   string    `json:"status"`
	Attempts int       `json:"attempts"`
	Started  time.Time `json:"started_at"`
	Reason   string    `json:"reason"`
	Notes    []string  `json:"notes"`
}

type state struct {
	Runs []runState `json:"runs"`
}

// readPlan reads plan.json and state.json of a folder.
func readPlan(dir string) (*plan, map[planRun]runState, error) {
	p := new(plan)
	name := filepath.Join(dir, planFile)
	if err := durable.ReadJSON(name, maxFile, p); err != nil {
		return nil, nil, err
	}
	if err := p.check(); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	p.complete()
	var s state
	states := map[planRun]runState{}
	if err := durable.ReadJSON(filepath.Join(dir, stateFile), maxFile, &s); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, err
	}
	for _, r := range s.Runs {
		states[r.planRun] = r
	}
	return p, states, nil
}

func (p *plan) check() error {
	switch {
	case p.Version < firstPlan || p.Version > lastPlan:
		return fmt.Errorf("version %d, and this program reads %d to %d", p.Version, firstPlan, lastPlan)
	case len(p.Cells) == 0:
		return errors.New("it has no cells")
	case len(p.Runs) > maxRuns:
		return fmt.Errorf("%d runs, more than %d", len(p.Runs), maxRuns)
	}
	seen := map[string]bool{}
	for _, c := range p.Cells {
		// It becomes a part of a path.
		if c.Name == "" || !filepath.IsLocal(c.Name) || strings.ContainsAny(c.Name, `/\`) {
			return fmt.Errorf("%q cannot name a cell", c.Name)
		}
		if seen[c.Name] {
			return fmt.Errorf("two cells are named %s", c.Name)
		}
		seen[c.Name] = true
	}
	for _, r := range p.Runs {
		if !seen[r.Cell] || r.Number < 1 || r.Repeat < 1 {
			return fmt.Errorf("run %d is of cell %q repeat %d, which is none of the plan", r.Number, r.Cell, r.Repeat)
		}
	}
	names := map[string]bool{}
	for _, f := range p.Factors {
		if f.Name == "" || names[f.Name] {
			return fmt.Errorf("two factors are named %q", f.Name)
		}
		names[f.Name] = true
	}
	return nil
}

// notSet is the level of a cell that says nothing of a factor.
const notSet = "(not set)"

// complete gives a plan without factors one: its cells. A level that only cells
// name is added to its factor.
func (p *plan) complete() {
	if len(p.Factors) == 0 {
		f := Factor{Name: "backend", Kind: "backend"}
		for i := range p.Cells {
			f.Levels = append(f.Levels, p.Cells[i].Name)
			p.Cells[i].Factors = map[string]string{"backend": p.Cells[i].Name}
		}
		p.Factors = []Factor{f}
		return
	}
	for i := range p.Factors {
		f := &p.Factors[i]
		for k := range p.Cells {
			c := &p.Cells[k]
			if c.Factors == nil {
				c.Factors = map[string]string{}
			}
			if _, ok := c.Factors[f.Name]; !ok {
				c.Factors[f.Name] = notSet
			}
			if l := c.Factors[f.Name]; !slices.Contains(f.Levels, l) {
				f.Levels = append(f.Levels, l)
			}
		}
	}
}

// numbers are the levels of a factor as numbers; nil if one is none.
func (f *Factor) numbers() []float64 {
	out := make([]float64, len(f.Levels))
	for i, l := range f.Levels {
		v, err := strconv.ParseFloat(l, 64)
		if err != nil {
			return nil
		}
		out[i] = v
	}
	return out
}

// A simulation says that a run was of a model in place of an engine.
type simulation struct {
	Virtual bool `json:"virtual"`
	// SimFit is the error of the model's fit in any form; Simulation.Fitted the
	// cost model as sim-fit wrote it, with how far off it was.
	SimFit     json.RawMessage `json:"sim_fit"`
	Simulation struct {
		Fitted json.RawMessage `json:"fitted"`
	} `json:"simulation"`
}

// fit is what there is of an error; nil if nothing is.
func (s *simulation) fit() *SimFit {
	for _, raw := range []json.RawMessage{s.SimFit, s.Simulation.Fitted} {
		if len(raw) > 0 && string(raw) != "null" {
			return newSimFit(raw)
		}
	}
	return nil
}

// readSimulation takes from run.json what only a simulated run has.
func readSimulation(dir string) (s simulation, err error) {
	err = durable.ReadJSON(filepath.Join(dir, runFile), maxFile, &s)
	return s, err
}

// readEngine reads how an engine was started, nil where it was not, or nothing
// says.
func readEngine(dir string) map[string]any {
	var v struct {
		Launch map[string]any `json:"launch"`
	}
	if durable.ReadJSON(filepath.Join(dir, engineFile), maxEngine, &v) != nil {
		return nil
	}
	return v.Launch
}
