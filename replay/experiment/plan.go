package experiment

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"reprise/backends/launch"
	"reprise/internal/durable"
	"reprise/replay"
)

// Names in the folder of an experiment.
const (
	PlanFile  = "plan.json"
	StateFile = "state.json"
	RunsDir   = "runs"
	HookFile  = "hook.log" // in a run directory
)

// Version is the version of plan.json and state.json that this package writes.
// Version 1, of sequences whose cells all play one trace in one way, is read as
// well.
const Version = 2

// A Cell is one thing to measure.
type Cell struct {
	Name    string   `json:"name"`
	Backend string   `json:"backend"`           // the kind of backend
	Arg     string   `json:"arg,omitempty"`     // as of --backend, where that says more than the kind
	URL     string   `json:"url,omitempty"`     // of its server; empty for the embedded engine
	Options []string `json:"options,omitempty"` // KEY=VALUE, of this backend alone
	// Before and After are shell commands around each run.
	Before string `json:"before_run,omitempty"`
	After  string `json:"after_run,omitempty"`
	// Launch says how its engine is started, if that is for this program to do.
	Launch *launch.Spec `json:"launch,omitempty"`

	// Factors are the levels that make the cell, by factor.
	Factors map[string]string `json:"factors,omitempty"`
	Trace   string            `json:"trace,omitempty"` // without its folder
	// Source is the trace as it is opened; empty where the flags make it up, and
	// in a sequence of one trace, whose command line has it.
	Source string `json:"source,omitempty"`
	// Flags are the cell's own, as "name=value" in alphabetical order.
	Flags []string `json:"flags,omitempty"`
	// Work is the digest of the replay plan: what each run sends, and when.
	Work     string `json:"plan_digest,omitempty"`
	Requests int64  `json:"requests,omitempty"`
	// RunTime and RunBytes are guesses of one run, hooks and starts not counted.
	RunTime  time.Duration `json:"expected_run_ns,omitempty"`
	RunBytes int64         `json:"expected_run_bytes,omitempty"`
	// Skipped is why the cell is not played.
	Skipped string `json:"skipped,omitempty"`

	levels map[string]string // of all factors, also of those that do not vary
}

// A Run is one run of a cell.
type Run struct {
	Number int    `json:"number"` // from 1, in the order of playing
	Cell   string `json:"cell"`
	Repeat int    `json:"repeat"` // from 1: the block that it belongs to
}

// Dir is the run's folder in that of the experiment.
func (r Run) Dir() string {
	return filepath.Join(RunsDir, fmt.Sprintf("%03d-%s-%d", r.Number, r.Cell, r.Repeat))
}

func (r Run) String() string { return fmt.Sprintf("run %d (%s repeat %d)", r.Number, r.Cell, r.Repeat) }

// A Plan is everything that is decided before the first run.
type Plan struct {
	Version int            `json:"version"`
	Program replay.Program `json:"program"`
	Created time.Time      `json:"created"`
	Args    []string       `json:"args"`
	// Flags are those that shape what is played, as "name=value" in alphabetical
	// order. FlagsDigest is their SHA-256.
	Flags       []string `json:"flags"`
	FlagsDigest string   `json:"flags_digest"`
	// Trace, Work and Requests are of all cells, where they do not differ.
	Trace string `json:"trace,omitempty"`
	Work  string `json:"plan_digest,omitempty"`
	// Target is what the cells' plans were made for.
	Target Target `json:"target"`
	// Cache is what the prefix caches are before each run, where no flag says so.
	Cache    string `json:"cache,omitempty"`
	Requests int64  `json:"requests_per_run,omitempty"`
	Repeats  int    `json:"repeats"`
	Seed     uint64 `json:"seed"` // of the order too

	// What a matrix says beyond its cells.
	Title    string   `json:"title,omitempty"`
	Question string   `json:"question,omitempty"`
	Design   string   `json:"design,omitempty"`
	Factors  []Factor `json:"factors,omitempty"`
	SLOs     []string `json:"slos,omitempty"`
	// PricePerGPUHour is in any currency, and 0 where it was not said.
	PricePerGPUHour float64   `json:"price_per_gpu_hour,omitempty"`
	GPUsPerEngine   float64   `json:"gpus_per_engine,omitempty"`
	Settings        *Settings `json:"settings,omitempty"`

	Cells []Cell `json:"cells"`
	Runs  []Run  `json:"runs"` // in the order of playing
	// RunTime and RunBytes are guesses of one run, hooks not counted; of a matrix,
	// the means over its cells.
	RunTime  time.Duration `json:"expected_run_ns"`
	RunBytes int64         `json:"expected_run_bytes"`
	Notes    []string      `json:"notes,omitempty"`
}

// Settings are how a matrix is played, for whoever goes on with it.
type Settings struct {
	Retries     int           `json:"retries"`
	Cooldown    time.Duration `json:"cooldown_ns"`
	HookTimeout time.Duration `json:"hook_timeout_ns"`
	Restart     string        `json:"restart"` // of launched engines: changed or always
}

// active are the cells that are played, by their index.
func (p *Plan) active() (out []int) {
	for i := range p.Cells {
		if p.Cells[i].Skipped == "" {
			out = append(out, i)
		}
	}
	return out
}

// Expected guesses how long the whole of it takes and what it leaves on disk.
func (p *Plan) Expected() (d time.Duration, bytes int64) {
	var up *launch.Spec
	for _, r := range p.Runs {
		c := p.Cell(r.Cell)
		d, bytes = d+c.RunTime, bytes+c.RunBytes
		if c.Launch != nil && (up == nil || !up.Same(c.Launch) || p.Settings != nil && p.Settings.Restart == "always") {
			d += c.Launch.Expected
		}
		if c.Launch != nil {
			up = c.Launch
		}
	}
	return d, bytes
}

// A Target is what every server of an experiment can take.
type Target struct {
	MaxLen    int `json:"max_model_len,omitempty"`
	MaxPrompt int `json:"max_prompt_len,omitempty"`
	VocabSize int `json:"vocab_size,omitempty"`
	MinID     int `json:"min_token_id,omitempty"`
}

// Schedule fills Runs from Cells, Repeats and Seed.
func (p *Plan) Schedule() {
	p.Runs = nil
	active := p.active()
	for block, order := range Order(len(active), p.Repeats, p.Seed) {
		for _, c := range order {
			p.Runs = append(p.Runs, Run{len(p.Runs) + 1, p.Cells[active[c]].Name, block + 1})
		}
	}
}

// SetFlags sets Flags and their digest.
func (p *Plan) SetFlags(flags []string) {
	p.Flags = slices.Sorted(slices.Values(flags))
	sum := sha256.Sum256([]byte(strings.Join(p.Flags, "\n")))
	p.FlagsDigest = hex.EncodeToString(sum[:])
}

// Cell returns the cell of that name, nil if there is none.
func (p *Plan) Cell(name string) *Cell {
	i := slices.IndexFunc(p.Cells, func(c Cell) bool { return c.Name == name })
	if i < 0 {
		return nil
	}
	return &p.Cells[i]
}

// Validate reports every problem with a plan that was read from a file, not
// just the first.
func (p *Plan) Validate() error {
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	if p.Version < 1 || p.Version > Version {
		return fmt.Errorf("version %d, want 1 to %d", p.Version, Version)
	}
	seen := map[string]bool{}
	for _, c := range p.Cells {
		if err := CheckName(c.Name); err != nil {
			bad("%w", err)
		}
		if seen[c.Name] {
			bad("two cells are named %s", c.Name)
		}
		seen[c.Name] = true
	}
	for i, r := range p.Runs {
		if r.Number != i+1 || r.Repeat < 1 || r.Repeat > p.Repeats || !seen[r.Cell] || p.Cell(r.Cell).Skipped != "" {
			bad("run %d of the list is not one of this plan", i+1)
		}
	}
	if n := len(p.active()); len(p.Runs) == 0 || len(p.Runs) != p.Repeats*n {
		bad("%d runs, want %d repeats of %d cells", len(p.Runs), p.Repeats, n)
	}
	return errors.Join(errs...)
}

// maxName bounds the name of a cell: it is a part of file names.
const maxName = 40

// CheckName says whether a cell may have that name: letters, digits and any of
// . _ @ -, and not "." first.
func CheckName(name string) error {
	ok := name != "" && len(name) <= maxName && name[0] != '.' && name[0] != '-'
	for _, c := range []byte(name) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("._@-", c) >= 0)
	}
	if !ok {
		return fmt.Errorf("%q cannot name a cell: want up to %d letters, digits, dots, @, _ and -, beginning with none of . and -", name, maxName)
	}
	return nil
}

// Differs says in what way another command line is not that of p, empty if it
// is.
func (p *Plan) Differs(q *Plan) string {
	if d := difference(p.Flags, q.Flags); d != "" {
		return d
	}
	for i := range p.Cells {
		c := &p.Cells[i]
		d := q.Cell(c.Name)
		if d == nil || c.Skipped != d.Skipped {
			return fmt.Sprintf("it has a cell %s", c.Name)
		}
		if f := difference(c.Flags, d.Flags); f != "" {
			return fmt.Sprintf("of %s, %s", c.Name, f)
		}
		if c.Backend != d.Backend || c.URL != d.URL || !slices.Equal(c.Options, d.Options) || (c.Launch == nil) != (d.Launch == nil) || c.Launch != nil && !c.Launch.Same(d.Launch) {
			return fmt.Sprintf("the engine of %s differs", c.Name)
		}
		switch {
		case c.Trace != d.Trace:
			return fmt.Sprintf("it plays %s, and this is %s", c.Trace, d.Trace)
		case c.Work != d.Work:
			return fmt.Sprintf("the requests differ (plan %.12s and %.12s): %s was changed", c.Work, d.Work, cmp.Or(c.Trace, "the trace"))
		}
	}
	if len(p.Cells) != len(q.Cells) || p.Repeats != q.Repeats || p.Seed != q.Seed {
		return fmt.Sprintf("it has %d repeats of %d cells with seed %d, this has %d of %d with seed %d", p.Repeats, len(p.Cells), p.Seed, q.Repeats, len(q.Cells), q.Seed)
	}
	return ""
}

func difference(was, is []string) string {
	var only []string
	for _, f := range was {
		if !slices.Contains(is, f) {
			only = append(only, "it has --"+f)
		}
	}
	for _, f := range is {
		if !slices.Contains(was, f) {
			only = append(only, "this has --"+f)
		}
	}
	return strings.Join(only, ", ")
}

// maxFile bounds plan.json and state.json.
const maxFile = 64 << 20

// ReadPlan reads the plan of an experiment's folder. The error wraps
// [fs.ErrNotExist] if there is none.
func ReadPlan(dir string) (*Plan, error) {
	p := new(Plan)
	if err := readJSON(filepath.Join(dir, PlanFile), p); err != nil {
		return nil, err
	}
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, PlanFile), err)
	}
	p.upgrade()
	return p, nil
}

// upgrade gives the cells of an older plan what was said once for all of them.
func (p *Plan) upgrade() {
	if p.Version > 1 {
		return
	}
	for i := range p.Cells {
		c := &p.Cells[i]
		c.Trace, c.Work, c.Requests, c.RunTime, c.RunBytes = p.Trace, p.Work, p.Requests, p.RunTime, p.RunBytes
	}
}

func readJSON(name string, v any) error { return durable.ReadJSON(name, maxFile, v) }

func writeJSON(name string, v any) error { return durable.WriteJSON(name, v) }

// A Folder is an experiment on disk, held by one process at a time.
type Folder struct {
	Path  string
	Plan  *Plan
	State *State
	lock  *os.File
}

// Create makes the folder of a new experiment and writes its plan. A folder that
// holds a run or an experiment is refused.
func Create(path string, p *Plan) (*Folder, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	for _, name := range []string{replay.ManifestFile, PlanFile, StateFile, RunsDir} {
		if _, err := os.Lstat(filepath.Join(path, name)); err == nil {
			return nil, fmt.Errorf("%s holds %s already: name another directory with -o", path, name)
		}
	}
	if err := os.MkdirAll(filepath.Join(path, RunsDir), 0o755); err != nil {
		return nil, err
	}
	f := &Folder{Path: path, Plan: p, State: newState(p)}
	if err := f.hold(); err != nil {
		return nil, err
	}
	// The plan comes last: a folder with a plan is complete.
	err := writeJSON(filepath.Join(path, StateFile), f.State)
	if err == nil {
		err = writeJSON(filepath.Join(path, PlanFile), p)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Open opens the folder of an experiment that was begun, for its Sequence to go
// on.
func Open(path string) (*Folder, error) {
	f := &Folder{Path: path}
	var err error
	if f.Plan, err = ReadPlan(path); err != nil {
		return nil, err
	}
	if err := f.hold(); err != nil {
		return nil, err
	}
	if f.State, err = ReadState(path, f.Plan); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// hold keeps other processes out.
func (f *Folder) hold() error {
	lock, err := os.OpenFile(filepath.Join(f.Path, ".lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	if err := durable.LockFile(lock); err != nil {
		lock.Close()
		return fmt.Errorf("%s: another process is playing this experiment", f.Path)
	}
	f.lock = lock
	return nil
}

// Close lets others in.
func (f *Folder) Close() error { return f.lock.Close() }

// RunPath is the run directory of r.
func (f *Folder) RunPath(r Run) string { return filepath.Join(f.Path, r.Dir()) }

// aside renames what is left of an attempt, so that nothing of it is lost and
// its name is free. There need not be anything.
func (f *Folder) aside(r Run, why string) error {
	dir := f.RunPath(r)
	if os.Remove(dir) == nil {
		return nil // it was empty
	}
	return durable.Aside(dir, why)
}
