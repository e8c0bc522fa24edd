package experiment

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/goccy/go-yaml"

	"reprise/backends/launch"
)

// Designs: which combinations of levels are played.
const (
	Full        = "full"         // all
	LatinSquare = "latin-square" // a fraction in which each pair of levels comes once
	Chosen      = "cells"        // those listed
)

// A Matrix is what an experiment's file says, its own and the one that it
// extends put together.
type Matrix struct {
	Extends  string             `yaml:"extends,omitempty"` // another file, whose keys hold where this one has none
	Title    string             `yaml:"title"`
	Question string             `yaml:"question"`
	Seed     uint64             `yaml:"seed"`
	Repeats  int                `yaml:"repeats"`
	Retries  int                `yaml:"retries"` // of a run that failed
	Design   string             `yaml:"design"`
	Cells    []map[string]Label `yaml:"cells"` // of design cells: a level of each factor
	Traces   []TraceSpec        `yaml:"traces"`
	Backends []BackendSpec      `yaml:"backends"`
	Factors  yaml.MapSlice      `yaml:"factors"` // by name, a FactorSpec each
	Replay   yaml.MapSlice      `yaml:"replay"`  // flags of replay, of all cells
	Engine   yaml.MapSlice      `yaml:"engine"`  // flags of the engine, of all cells
	Vars     map[string]Label   `yaml:"vars"`    // of serving configurations that have them
	Exclude  []map[string]Label `yaml:"exclude"` // combinations that cannot be, and why
	// Impossible says what to do with a cell that cannot be planned: fail, the
	// default, or skip.
	Impossible      string          `yaml:"impossible"`
	SLOs            []string        `yaml:"slos"`
	PricePerGPUHour float64         `yaml:"price_per_gpu_hour"`
	GPUsPerEngine   float64         `yaml:"gpus_per_engine"`
	Cooldown        launch.Duration `yaml:"cooldown"`
	HookTimeout     launch.Duration `yaml:"hook_timeout"`
	// Restart of launched engines: changed, the default, keeps one for the next
	// run that asks for the same; always begins each run with a new one.
	Restart string `yaml:"restart"`

	path    string // of the file
	factors []FactorSpec
}

// A Label is a scalar of YAML, as a command line has it.
type Label string

// UnmarshalYAML implements yaml.BytesUnmarshaler.
func (l *Label) UnmarshalYAML(b []byte) error {
	var v any
	if err := yaml.Unmarshal(b, &v); err != nil {
		return err
	}
	s, err := launch.Scalar(v)
	*l = Label(s)
	return err
}

// A TraceSpec is a trace as the file names it: its name alone, or with a label,
// flags or traffic made up for it.
type TraceSpec struct {
	Name      string        `yaml:"name"`
	Trace     string        `yaml:"trace"`
	Synthetic string        `yaml:"synthetic"` // as of --synthetic
	Replay    yaml.MapSlice `yaml:"replay"`
}

// UnmarshalYAML implements yaml.BytesUnmarshaler.
func (t *TraceSpec) UnmarshalYAML(b []byte) error {
	*t = TraceSpec{}
	if yaml.Unmarshal(b, &t.Trace) == nil {
		return nil
	}
	type plain TraceSpec
	return yaml.UnmarshalWithOptions(b, (*plain)(t), yaml.Strict())
}

// A BackendSpec is what is played against: NAME, NAME=URL or sim=PRESET as on
// the command line, the file of a serving configuration, or a map.
type BackendSpec struct {
	Name    string            `yaml:"name"`
	Backend string            `yaml:"backend"` // as of --backend
	URL     string            `yaml:"url"`
	Options map[string]Label  `yaml:"options"`
	Engine  string            `yaml:"engine"` // file of a serving configuration
	Vars    map[string]Label  `yaml:"vars"`
	Flags   yaml.MapSlice     `yaml:"flags"` // of the engine
	Replay  yaml.MapSlice     `yaml:"replay"`
	Before  string            `yaml:"before_run"`
	After   string            `yaml:"after_run"`
	config  *launch.Config    // of Engine
	vars    map[string]string // Vars, and those of the matrix that the configuration has
}

// UnmarshalYAML implements yaml.BytesUnmarshaler.
func (s *BackendSpec) UnmarshalYAML(b []byte) error {
	*s = BackendSpec{}
	if yaml.Unmarshal(b, &s.Backend) == nil {
		if isConfig(s.Backend) {
			s.Engine, s.Backend = s.Backend, ""
		}
		return nil
	}
	type plain BackendSpec
	return yaml.UnmarshalWithOptions(b, (*plain)(s), yaml.Strict())
}

// isConfig says that a backend is the file of a serving configuration.
func isConfig(name string) bool {
	return strings.HasSuffix(name, ".yaml") || strings.HasSuffix(name, ".yml")
}

// A FactorSpec is one thing that is varied.
type FactorSpec struct {
	Name string `yaml:"-"`
	Kind string `yaml:"kind"` // replay or engine: whose flag it is; found out where it is left out
	Unit string `yaml:"unit"`
	// Levels are values of the flag, or names with the flags that each stands for.
	Levels Levels `yaml:"levels"`
}

// Levels of a factor, in the order of the file.
type Levels []Level

// A Level of a factor: flags to add. A level of a plain list has the factor's own
// flag in neither yet.
type Level struct {
	Label  string
	Plain  bool
	Replay yaml.MapSlice `yaml:"replay"`
	Engine yaml.MapSlice `yaml:"engine"`
}

// UnmarshalYAML implements yaml.BytesUnmarshaler.
func (l *Levels) UnmarshalYAML(b []byte) error {
	*l = nil
	var list []Label
	if yaml.Unmarshal(b, &list) == nil {
		for _, v := range list {
			*l = append(*l, Level{Label: string(v), Plain: true})
		}
		return nil
	}
	var named yaml.MapSlice
	if err := yaml.Unmarshal(b, &named); err != nil {
		return err
	}
	for _, item := range named {
		var flags struct {
			Replay yaml.MapSlice `yaml:"replay"`
			Engine yaml.MapSlice `yaml:"engine"`
		}
		b, err := yaml.Marshal(item.Value)
		if err != nil {
			return err
		}
		if item.Value != nil {
			if err := yaml.UnmarshalWithOptions(b, &flags, yaml.Strict()); err != nil {
				return fmt.Errorf("level %v: want {replay: {…}, engine: {…}}: %s", item.Key, oneLine(err))
			}
		}
		label, err := launch.Scalar(item.Key)
		if err != nil {
			return err
		}
		*l = append(*l, Level{Label: label, Replay: flags.Replay, Engine: flags.Engine})
	}
	return nil
}

func oneLine(err error) string {
	s, _, _ := strings.Cut(yaml.FormatError(err, false, false), "\n")
	return s
}

// maxMatrix bounds a file, and maxExtends how long a chain of them may be.
const (
	maxMatrix  = 1 << 20
	maxExtends = 16
)

// maxCells is more than anyone waits for.
const maxCells = 4096

// ReadMatrix reads an experiment's file and those that it extends. Each of set is
// KEY=VALUE and overrules them: KEY is a key of the file, replay.FLAG,
// engine.FLAG, vars.NAME, factors.NAME (levels, separated by commas), or the
// plain name of a flag of replay.
func ReadMatrix(name string, set []string) (*Matrix, error) {
	raw, err := readRaw(name, nil)
	if err != nil {
		return nil, err
	}
	for _, kv := range set {
		if raw, err = override(raw, kv); err != nil {
			return nil, fmt.Errorf("--set %s: %w", kv, err)
		}
	}
	m := &Matrix{}
	if err := decode(raw, m); err != nil {
		return nil, fmt.Errorf("%s: %s", name, oneLine(err))
	}
	m.path = name
	if err := m.settle(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return m, nil
}

func decode(raw yaml.MapSlice, v any) error {
	b, err := yaml.Marshal(raw)
	if err != nil {
		return err
	}
	return yaml.UnmarshalWithOptions(b, v, yaml.Strict(), yaml.UseOrderedMap())
}

// readRaw reads one file on top of what it extends. Its own mistakes are reported
// with their lines.
func readRaw(name string, chain []string) (yaml.MapSlice, error) {
	abs, err := filepath.Abs(name)
	if err != nil {
		return nil, err
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		abs = real
	}
	if slices.Contains(chain, abs) {
		return nil, fmt.Errorf("%s extends itself: %s", name, strings.Join(append(chain[slices.Index(chain, abs):], abs), " -> "))
	}
	if chain = append(chain, abs); len(chain) > maxExtends {
		return nil, fmt.Errorf("%s: more than %d files extend one another", name, maxExtends)
	}
	i, err := os.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s: no such file", name)
	case err != nil:
		return nil, err
	case i.IsDir():
		return nil, fmt.Errorf("%s is a directory, want an experiment's file, such as matrix.yaml", name)
	case !i.Mode().IsRegular() || i.Size() > maxMatrix:
		return nil, fmt.Errorf("%s is not a file of at most %d bytes", name, maxMatrix)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var check Matrix
	var raw yaml.MapSlice
	if len(bytes.TrimSpace(b)) == 0 {
		return nil, fmt.Errorf("%s is empty", name)
	}
	// The message of a syntax error quotes the file, which is for a terminal to show.
	if !utf8.Valid(b) || bytes.IndexByte(b, 0) >= 0 {
		return nil, fmt.Errorf("%s is no text, want an experiment's file in YAML", name)
	}
	if err := yaml.UnmarshalWithOptions(b, &raw, yaml.UseOrderedMap()); err != nil {
		return nil, fmt.Errorf("%s: %s", name, strings.TrimSpace(yaml.FormatError(err, false, true)))
	}
	if err := launch.CheckAliases(raw); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if err := yaml.UnmarshalWithOptions(b, &check, yaml.Strict()); err != nil {
		return nil, fmt.Errorf("%s: %s", name, strings.TrimSpace(yaml.FormatError(err, false, true)))
	}
	locate(raw, filepath.Dir(abs))
	if check.Extends == "" {
		return raw, nil
	}
	base, err := readRaw(beside(filepath.Dir(abs), check.Extends), chain)
	if err != nil {
		return nil, fmt.Errorf("%s: extends: %w", name, err)
	}
	return merge(base, raw), nil
}

// beside is a file named in a file of dir: of that folder if it is there, of the
// current one otherwise.
func beside(dir, name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	if in := filepath.Join(dir, name); exists(in) {
		return in
	}
	if abs, err := filepath.Abs(name); err == nil && exists(name) {
		return abs
	}
	return name
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// locate makes the files that raw names absolute.
func locate(raw yaml.MapSlice, dir string) {
	for i := range raw {
		list, ok := raw[i].Value.([]any)
		if !ok || raw[i].Key != "traces" && raw[i].Key != "backends" {
			continue
		}
		for k := range list {
			switch v := list[k].(type) {
			case string:
				if kind, value, ok := strings.Cut(v, "="); ok && raw[i].Key == "backends" {
					list[k] = kind + "=" + beside(dir, value)
				} else {
					list[k] = beside(dir, v)
				}
			case yaml.MapSlice:
				for n := range v {
					if s, ok := v[n].Value.(string); ok && (v[n].Key == "trace" || v[n].Key == "engine") {
						v[n].Value = beside(dir, s)
					}
				}
			}
		}
	}
}

// merged are the keys whose maps are put together; other keys replace.
var merged = []string{"replay", "engine", "factors", "vars"}

func merge(base, over yaml.MapSlice) yaml.MapSlice {
	out := slices.Clone(base)
	out = slices.DeleteFunc(out, func(i yaml.MapItem) bool { return i.Key == "extends" })
	for _, item := range over {
		key, _ := item.Key.(string)
		a, isMap := get(out, key).(yaml.MapSlice)
		b, both := item.Value.(yaml.MapSlice)
		switch {
		case key == "extends":
			continue
		case slices.Contains(merged, key) && isMap && both:
			out = put(out, key, put(a, "", nil, b...))
		default:
			out = put(out, key, item.Value)
		}
	}
	return out
}

func get(m yaml.MapSlice, key string) any {
	for _, i := range m {
		if i.Key == key {
			return i.Value
		}
	}
	return nil
}

// put returns m with a key set, unless it is empty, and further ones.
func put(m yaml.MapSlice, key string, v any, more ...yaml.MapItem) yaml.MapSlice {
	out := slices.Clone(m)
	if key != "" {
		more = append([]yaml.MapItem{{Key: key, Value: v}}, more...)
	}
	for _, item := range more {
		if i := slices.IndexFunc(out, func(o yaml.MapItem) bool { return o.Key == item.Key }); i >= 0 {
			out[i].Value = item.Value
		} else {
			out = append(out, item)
		}
	}
	return out
}

// topKeys are those that --set may set, with the lists among them.
var topKeys = map[string]bool{
	"title": false, "question": false, "seed": false, "repeats": false, "retries": false, "design": false, "impossible": false,
	"price_per_gpu_hour": false, "gpus_per_engine": false, "cooldown": false, "hook_timeout": false, "restart": false,
	"traces": true, "backends": true, "slos": true,
}

// override applies one --set.
func override(raw yaml.MapSlice, kv string) (yaml.MapSlice, error) {
	key, text, ok := strings.Cut(kv, "=")
	if !ok || key == "" {
		return nil, errors.New("want KEY=VALUE")
	}
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		v = text
	}
	list, top := topKeys[key]
	if list {
		var all []any
		for one := range strings.SplitSeq(text, ",") {
			all = append(all, one)
		}
		raw = put(raw, key, all)
		locate(raw, ".")
		return raw, nil
	}
	if top {
		return put(raw, key, v), nil
	}
	section, name, dotted := strings.Cut(key, ".")
	if !dotted {
		section, name = "replay", key
	}
	at, _ := get(raw, section).(yaml.MapSlice)
	switch section {
	case "replay", "engine", "vars":
		return put(raw, section, put(at, name, v)), nil
	case "factors":
		return overrideLevels(raw, at, name, text)
	}
	return nil, fmt.Errorf("no key %q: there are replay.FLAG, engine.FLAG, vars.NAME, factors.NAME and %s", key, strings.Join(slices.Sorted(maps.Keys(topKeys)), ", "))
}

func overrideLevels(raw, factors yaml.MapSlice, name, text string) (yaml.MapSlice, error) {
	spec, ok := get(factors, name).(yaml.MapSlice)
	if !ok {
		return nil, fmt.Errorf("no factor %q", name)
	}
	var list []any
	named, isNamed := get(spec, "levels").(yaml.MapSlice)
	var some yaml.MapSlice
	for label := range strings.SplitSeq(text, ",") {
		if !isNamed {
			var v any
			if yaml.Unmarshal([]byte(label), &v) != nil {
				v = label
			}
			list = append(list, v)
			continue
		}
		i := slices.IndexFunc(named, func(i yaml.MapItem) bool { return fmt.Sprint(i.Key) == label })
		if i < 0 {
			return nil, fmt.Errorf("factor %s has no level %q", name, label)
		}
		some = append(some, named[i])
	}
	var levels any = list
	if isNamed {
		levels = some
	}
	return put(raw, "factors", put(factors, name, put(spec, "levels", levels))), nil
}

// Defaults of a Matrix.
const (
	DefaultCooldown    = time.Minute
	DefaultHookTimeout = 15 * time.Minute
	maxRepeats         = 1000
	maxRetries         = 100
)

var sloForm = regexp.MustCompile(`^(ttft|tpot|e2e|itl)(\.(p[0-9]+(\.[0-9]+)?|mean|max))?\s*<=?\s*([0-9.]+(ns|us|µs|ms|s|m))$`)

// settle fills in defaults, reads serving configurations, and reports every
// problem, not just the first.
func (m *Matrix) settle() error {
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	m.Repeats = cmp.Or(m.Repeats, 1)
	m.Seed = cmp.Or(m.Seed, 1)
	m.Design = cmp.Or(m.Design, Full)
	m.Impossible, m.Restart = cmp.Or(m.Impossible, "fail"), cmp.Or(m.Restart, "changed")
	m.Cooldown = cmp.Or(m.Cooldown, launch.Duration(DefaultCooldown))
	m.HookTimeout = cmp.Or(m.HookTimeout, launch.Duration(DefaultHookTimeout))
	if m.Repeats < 1 || m.Repeats > maxRepeats {
		bad("repeats is %d, want 1 to %d", m.Repeats, maxRepeats)
	}
	if m.Retries < 0 || m.Retries > maxRetries {
		bad("retries is %d, want 0 to %d", m.Retries, maxRetries)
	}
	if m.Design != Full && m.Design != LatinSquare && m.Design != Chosen {
		bad("design is %q, want %s, %s or %s", m.Design, Full, LatinSquare, Chosen)
	}
	if (m.Design == Chosen) != (len(m.Cells) > 0) {
		bad("design %s and a list of cells go together", Chosen)
	}
	if m.Impossible != "fail" && m.Impossible != "skip" {
		bad("impossible is %q, want fail or skip", m.Impossible)
	}
	if m.Restart != "changed" && m.Restart != "always" {
		bad("restart is %q, want changed or always", m.Restart)
	}
	if m.PricePerGPUHour < 0 || m.GPUsPerEngine < 0 {
		bad("price_per_gpu_hour and gpus_per_engine cannot be negative")
	}
	for _, s := range m.SLOs {
		if !sloForm.MatchString(strings.TrimSpace(s)) {
			bad("slo %q: want such as ttft.p99<500ms, of ttft, tpot, itl or e2e", s)
		}
	}
	if len(m.Traces) == 0 {
		bad("traces is missing: which ones?")
	}
	for i := range m.Traces {
		t := &m.Traces[i]
		if (t.Trace == "") == (t.Synthetic == "") {
			bad("trace %d: want one of trace and synthetic", i+1)
		}
		if t.Name == "" {
			t.Name = traceLabel(t.Trace)
			if t.Synthetic != "" {
				t.Name = "synthetic"
			}
		}
	}
	if len(m.Backends) == 0 {
		m.Backends = []BackendSpec{{Backend: "sim"}}
	}
	for i := range m.Backends {
		if err := m.settleBackend(&m.Backends[i]); err != nil {
			errs = append(errs, err)
		}
	}
	unique := func(what string, n int, name func(int) string) {
		seen := map[string]bool{}
		for i := range n {
			if seen[name(i)] {
				bad("two %s are named %s: give them a name each", what, name(i))
			}
			seen[name(i)] = true
		}
	}
	unique("traces", len(m.Traces), func(i int) string { return m.Traces[i].Name })
	unique("backends", len(m.Backends), func(i int) string { return m.Backends[i].Name })
	for _, item := range m.Factors {
		f := FactorSpec{}
		b, err := yaml.Marshal(item.Value)
		if err == nil {
			err = yaml.UnmarshalWithOptions(b, &f, yaml.Strict())
		}
		name, isText := item.Key.(string)
		switch {
		case err != nil:
			bad("factor %v: %s", item.Key, oneLine(err))
		case !isText || name == "trace" || name == "backend":
			bad("no factor can be named %v", item.Key)
		case len(f.Levels) == 0:
			bad("factor %s has no levels", name)
		case f.Kind != "" && f.Kind != "replay" && f.Kind != "engine":
			bad("factor %s: kind is %q, want replay or engine", name, f.Kind)
		}
		f.Name = name
		unique("levels of "+name, len(f.Levels), func(i int) string { return f.Levels[i].Label })
		m.factors = append(m.factors, f)
	}
	return errors.Join(errs...)
}

func traceLabel(trace string) string {
	name := filepath.Base(trace)
	if _, after, ok := strings.Cut(name, ":"); ok {
		name = after
	}
	for _, ext := range []string{".zst", ".gz", ".parquet", ".jsonl", ".csv", ".json"} {
		name = strings.TrimSuffix(name, ext)
	}
	return name
}

func (m *Matrix) settleBackend(b *BackendSpec) error {
	b.vars = map[string]string{}
	if b.Engine != "" {
		var err error
		if b.config, err = launch.ReadConfig(b.Engine); err != nil {
			return fmt.Errorf("engine: %w", err)
		}
		if b.Backend == "" {
			b.Backend = b.config.Backend
		}
		if b.Name == "" {
			b.Name = strings.TrimSuffix(strings.TrimSuffix(filepath.Base(b.Engine), ".yaml"), ".yml")
		}
		for k, v := range m.Vars {
			if _, ok := b.config.Vars[k]; ok {
				b.vars[k] = string(v)
			}
		}
	}
	for k, v := range b.Vars {
		b.vars[k] = string(v)
	}
	if b.Backend == "" {
		return errors.New("a backend is neither named nor has it an engine file")
	}
	kind, value, _ := strings.Cut(b.Backend, "=")
	if strings.Contains(value, "://") {
		if b.URL != "" {
			return fmt.Errorf("backend %s: url names a second server", b.Backend)
		}
		b.Backend, b.URL = kind, value
	}
	if b.Name == "" {
		b.Name = kind
		if value != "" && b.URL == "" {
			b.Name = traceLabel(value)
		}
	}
	return nil
}
