package experiment

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/goccy/go-yaml"

	"reprise/backends/launch"
)

// A Factor is one thing that an experiment varies.
type Factor struct {
	Name   string   `json:"name"`
	Kind   string   `json:"kind"` // engine, replay, trace or backend
	Unit   string   `json:"unit,omitempty"`
	Levels []string `json:"levels"`
}

// A Flags says which flags of replay a cell may have.
type Flags interface {
	// Known says whether there is a flag of that name for one run.
	Known(name string) bool
}

// axis is a factor while cells are made of it.
type axis struct {
	Factor
	levels []Level
}

// Expand makes the cells of m. Those that Exclude names are among them, as
// skipped. Every problem that can be seen without reading a trace is reported.
func (m *Matrix) Expand(flags Flags) ([]Cell, []Factor, error) {
	axes, err := m.axes(flags)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", m.path, err)
	}
	combos, err := m.combos(axes)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", m.path, err)
	}
	var errs []error
	if err := m.checkRules(axes); err != nil {
		errs = append(errs, err)
	}
	var cells []Cell
	for _, combo := range combos {
		c, err := m.cell(flags, axes, combo)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c.Skipped = m.excluded(c)
		cells = append(cells, c)
	}
	if err := errors.Join(unique(errs)...); err != nil {
		return nil, nil, fmt.Errorf("%s: %w", m.path, err)
	}
	nameCells(cells, axes)
	var factors []Factor
	for _, a := range axes {
		if len(a.Levels) > 1 || a.Kind == "replay" || a.Kind == "engine" {
			factors = append(factors, a.Factor)
		}
	}
	if !slices.ContainsFunc(cells, func(c Cell) bool { return c.Skipped == "" }) {
		return nil, nil, fmt.Errorf("%s: every cell is excluded", m.path)
	}
	return cells, factors, nil
}

// unique leaves out what was said already: a problem of many cells.
func unique(errs []error) (out []error) {
	seen := map[string]bool{}
	for _, err := range errs {
		if err != nil && !seen[err.Error()] {
			seen[err.Error()] = true
			out = append(out, err)
		}
	}
	return out
}

// axes are the factors of the file, after those of traces and backends.
func (m *Matrix) axes(flags Flags) ([]axis, error) {
	var out []axis
	trace, backend := axis{Factor: Factor{Name: "trace", Kind: "trace"}}, axis{Factor: Factor{Name: "backend", Kind: "backend"}}
	for _, t := range m.Traces {
		trace.Levels = append(trace.Levels, t.Name)
	}
	for _, b := range m.Backends {
		backend.Levels = append(backend.Levels, b.Name)
	}
	out = append(out, trace, backend)
	var errs []error
	for _, f := range m.factors {
		a := axis{Factor: Factor{Name: f.Name, Kind: f.Kind, Unit: f.Unit}}
		known := flags.Known(f.Name)
		if a.Kind == "" {
			a.Kind = "engine"
			if known {
				a.Kind = "replay"
			}
		}
		for _, l := range f.Levels {
			a.Levels = append(a.Levels, l.Label)
			if l.Plain {
				own := yaml.MapSlice{{Key: f.Name, Value: l.Label}}
				if a.Kind == "replay" {
					l.Replay = own
				} else {
					l.Engine = own
				}
			}
			for _, item := range l.Replay {
				if name := fmt.Sprint(item.Key); !flags.Known(name) {
					errs = append(errs, fmt.Errorf("factor %s: replay has no flag --%s for one run", f.Name, name))
				}
			}
			a.levels = append(a.levels, l)
		}
		// A name with flags of both is the engine's, as it has to be restarted.
		if f.Kind == "" && !f.Levels[0].Plain {
			a.Kind = "replay"
			if slices.ContainsFunc(a.levels, func(l Level) bool { return len(l.Engine) > 0 }) {
				a.Kind = "engine"
			}
		}
		out = append(out, a)
	}
	return out, errors.Join(unique(errs)...)
}

// combos are the combinations of levels that the design asks for: an index of a
// level for each axis.
func (m *Matrix) combos(axes []axis) ([][]int, error) {
	switch m.Design {
	case LatinSquare:
		return m.latin(axes)
	case Chosen:
		return m.chosen(axes)
	}
	out := [][]int{nil}
	for _, a := range axes {
		var next [][]int
		for _, c := range out {
			for i := range a.Levels {
				next = append(next, append(slices.Clone(c), i))
			}
		}
		if len(next) > maxCells {
			return nil, fmt.Errorf("more than %d cells: fewer levels, or design: %s", maxCells, LatinSquare)
		}
		out = next
	}
	return out, nil
}

// latin is the fraction of a full design in which every pair of levels of any two
// factors comes exactly once: n × n cells of n levels. The third factor's level
// is the sum of the first two's, the next ones' that with multiples of the
// second, which are orthogonal where n is prime. The seed decides which level is
// which.
func (m *Matrix) latin(axes []axis) ([][]int, error) {
	var vary []int
	n := 0
	for i, a := range axes {
		if len(a.Levels) == 1 {
			continue
		}
		if n != 0 && len(a.Levels) != n {
			return nil, fmt.Errorf("design %s wants as many levels of each factor: %s has %d, %s %d", LatinSquare, axes[vary[0]].Name, n, a.Name, len(a.Levels))
		}
		n = len(a.Levels)
		vary = append(vary, i)
	}
	most := 3
	if prime(n) {
		most = n + 1
	}
	switch {
	case len(vary) < 3:
		return nil, fmt.Errorf("design %s is a fraction of three factors or more, and %d vary: use design: %s", LatinSquare, len(vary), Full)
	case len(vary) > most:
		return nil, fmt.Errorf("design %s takes up to %d factors of %d levels, and %d vary", LatinSquare, most, n, len(vary))
	}
	r := rand.New(rand.NewPCG(m.Seed, latinStream))
	names := make([][]int, len(vary))
	for k := range names {
		names[k] = r.Perm(n)
	}
	var out [][]int
	for i := range n {
		for j := range n {
			combo := make([]int, len(axes))
			for k, axis := range vary {
				v := i
				switch {
				case k == 1:
					v = j
				case k > 1:
					v = (i + (k-1)*j) % n
				}
				combo[axis] = names[k][v]
			}
			out = append(out, combo)
		}
	}
	return out, nil
}

const latinStream = 0x6c6174696e // "latin"

func prime(n int) bool {
	for d := 2; d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return n > 1
}

// chosen are the cells of the list; a factor that a cell does not name has its
// first level.
func (m *Matrix) chosen(axes []axis) ([][]int, error) {
	var out [][]int
	var errs []error
	for i, c := range m.Cells {
		combo := make([]int, len(axes))
		for name, label := range c {
			k := slices.IndexFunc(axes, func(a axis) bool { return a.Name == name })
			if k < 0 {
				errs = append(errs, fmt.Errorf("cell %d: no factor %q; there are %s", i+1, name, axisNames(axes)))
				continue
			}
			if combo[k] = slices.Index(axes[k].Levels, string(label)); combo[k] < 0 {
				errs = append(errs, fmt.Errorf("cell %d: factor %s has no level %q; there are %s", i+1, name, label, strings.Join(axes[k].Levels, ", ")))
			}
		}
		if slices.ContainsFunc(out, func(o []int) bool { return slices.Equal(o, combo) }) {
			errs = append(errs, fmt.Errorf("cell %d is one of those before it", i+1))
		}
		out = append(out, combo)
	}
	return out, errors.Join(errs...)
}

func axisNames(axes []axis) string {
	var names []string
	for _, a := range axes {
		names = append(names, a.Name)
	}
	return strings.Join(names, ", ")
}

// checkRules finds rules that exclude nothing that there is.
func (m *Matrix) checkRules(axes []axis) error {
	var errs []error
	for i, rule := range m.Exclude {
		named := 0
		for name, label := range rule {
			if name == "reason" {
				continue
			}
			named++
			k := slices.IndexFunc(axes, func(a axis) bool { return a.Name == name })
			switch {
			case k < 0:
				errs = append(errs, fmt.Errorf("exclude %d: no factor %q; there are %s", i+1, name, axisNames(axes)))
			case !slices.Contains(axes[k].Levels, string(label)):
				errs = append(errs, fmt.Errorf("exclude %d: factor %s has no level %q; there are %s", i+1, name, label, strings.Join(axes[k].Levels, ", ")))
			}
		}
		if named == 0 {
			errs = append(errs, fmt.Errorf("exclude %d names no factor", i+1))
		}
	}
	return errors.Join(errs...)
}

// excluded is why a cell is left out, empty if it is not.
func (m *Matrix) excluded(c Cell) string {
	for _, rule := range m.Exclude {
		all := true
		for name, label := range rule {
			all = all && (name == "reason" || c.levels[name] == string(label))
		}
		if all {
			if why := rule["reason"]; why != "" {
				return string(why)
			}
			return "excluded"
		}
	}
	return ""
}

// cell makes one cell, all but its name.
func (m *Matrix) cell(flags Flags, axes []axis, combo []int) (Cell, error) {
	t, b := &m.Traces[combo[0]], &m.Backends[combo[1]]
	c := Cell{Factors: map[string]string{}, levels: map[string]string{}, Backend: b.Backend, URL: b.URL, Before: b.Before, After: b.After, Source: t.Trace, Trace: filepath.Base(t.Trace)}
	play := newFlagSet(flags)
	var engine []launch.Flag
	var errs []error
	add := func(what string, items yaml.MapSlice) {
		if err := play.add(items); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	addEngine := func(items yaml.MapSlice) {
		for _, i := range items {
			v, err := launch.Scalar(i.Value)
			if err != nil {
				errs = append(errs, fmt.Errorf("engine flag %v: %w", i.Key, err))
				continue
			}
			engine = append(engine, launch.Flag{Name: fmt.Sprint(i.Key), Value: v})
		}
	}
	add("replay", m.Replay)
	addEngine(m.Engine)
	add("backend "+b.Name, b.Replay)
	addEngine(b.Flags)
	add("trace "+t.Name, t.Replay)
	if t.Synthetic != "" {
		c.Trace = t.Name
		play.set("synthetic", t.Synthetic)
	}
	for k, a := range axes {
		c.levels[a.Name] = a.Levels[combo[k]]
		if len(a.Levels) > 1 || k > 1 {
			c.Factors[a.Name] = a.Levels[combo[k]]
		}
		if k > 1 {
			l := a.levels[combo[k]]
			add("factor "+a.Name, l.Replay)
			addEngine(l.Engine)
		}
	}
	for _, s := range m.SLOs {
		// Goodput counts the requests that meet it; the share is the study's.
		if p := sloForm.FindStringSubmatch(strings.TrimSpace(s)); p != nil && p[1] != "itl" {
			play.more("slo", p[1]+"<"+p[5])
		}
	}
	kind, _, more := strings.Cut(b.Backend, "=")
	if c.Backend = kind; more {
		c.Arg = b.Backend
	}
	if err := m.cellEngine(&c, b, kind, engine); err != nil {
		errs = append(errs, err)
	}
	// An engine that stays up keeps its prefix cache: each run has a salt of its
	// own, unless the file says what it wants.
	if (c.URL != "" || c.Launch != nil) && (kind == "vllm" || kind == "sglang") && flags.Known("cache") && !play.has("cache") {
		play.set("cache", "salt")
	}
	c.Flags = play.list()
	return c, errors.Join(errs...)
}

// cellEngine sets what is played against.
func (m *Matrix) cellEngine(c *Cell, b *BackendSpec, kind string, given []launch.Flag) error {
	conf := b.config
	options := map[string]string{}
	own := given
	if conf != nil {
		maps.Copy(options, conf.Options)
		var err error
		if own, err = conf.Resolve(given); err != nil {
			return fmt.Errorf("backend %s: %w", b.Name, err)
		}
	}
	embedded := kind == "sim" && b.URL == "" && (conf == nil || !conf.Launches() && conf.URL == "")
	switch {
	case conf != nil && conf.Launches() && b.URL == "":
		s, err := conf.Spec(own, b.vars)
		if err != nil {
			return fmt.Errorf("backend %s: %w", b.Name, err)
		}
		c.Launch, c.URL = s, s.URL
	case embedded:
		for _, f := range own {
			if f.Value != "" {
				options[f.Name] = f.Value
			}
		}
	case len(own) > 0:
		return fmt.Errorf("backend %s runs already, and nobody here can set %s of it: give it an engine file with a command", b.Name, own[0].Name)
	case b.URL == "" && conf != nil:
		c.URL = conf.URL
	}
	if c.URL == "" && !embedded {
		return fmt.Errorf("backend %s: no url, and no engine file that starts it", b.Name)
	}
	for k, v := range b.Options {
		options[k] = string(v)
	}
	for k, v := range options {
		c.Options = append(c.Options, k+"="+v)
	}
	slices.Sort(c.Options)
	return nil
}

// A flagSet collects the flags of a cell; the last word on each counts.
type flagSet struct {
	flags  Flags
	values map[string][]string
}

func newFlagSet(f Flags) *flagSet { return &flagSet{f, map[string][]string{}} }

func (s *flagSet) add(items yaml.MapSlice) error {
	var errs []error
	for _, i := range items {
		name := fmt.Sprint(i.Key)
		if !s.flags.Known(name) {
			errs = append(errs, fmt.Errorf("replay has no flag --%s for one run", name))
			continue
		}
		if list, ok := i.Value.([]any); ok {
			delete(s.values, name)
			for _, v := range list {
				text, err := launch.Scalar(v)
				errs = append(errs, err)
				s.more(name, text)
			}
			continue
		}
		v, err := launch.Scalar(i.Value)
		if err != nil {
			errs = append(errs, fmt.Errorf("--%s: %w", name, err))
			continue
		}
		if i.Value == nil {
			delete(s.values, name)
			continue
		}
		s.set(name, v)
	}
	return errors.Join(errs...)
}

func (s *flagSet) set(name, v string)  { s.values[name] = []string{v} }
func (s *flagSet) more(name, v string) { s.values[name] = append(s.values[name], v) }
func (s *flagSet) has(name string) bool {
	_, ok := s.values[name]
	return ok
}

func (s *flagSet) list() (out []string) {
	for name, values := range s.values {
		for _, v := range values {
			out = append(out, name+"="+v)
		}
	}
	slices.Sort(out)
	return out
}

// nameCells names each cell by its levels, and by a number where that is too long
// or not unique.
func nameCells(cells []Cell, axes []axis) {
	seen := map[string]int{}
	names := make([]string, len(cells))
	for i := range cells {
		var parts []string
		for k, a := range axes {
			if len(a.Levels) > 1 || k == 1 && len(axes) == 2 {
				parts = append(parts, part(a.Name, cells[i].levels[a.Name]))
			}
		}
		if len(parts) == 0 {
			parts = []string{part("backend", cells[i].levels["backend"])}
		}
		names[i] = strings.Join(parts, "_")
		seen[names[i]]++
	}
	for i := range cells {
		name := names[i]
		if seen[name] > 1 || CheckName(name) != nil {
			number := fmt.Sprintf("c%02d_", i+1)
			name = number + name[:min(len(name), maxName-len(number))]
		}
		cells[i].Name = name
	}
}

// part is what a level adds to a name: itself, behind the factor's initials if it
// is a number or a switch.
func part(factor, label string) string {
	clean := strings.Map(func(r rune) rune {
		switch {
		case r < unicode.MaxASCII && (unicode.IsLetter(r) || unicode.IsDigit(r)), r == '.', r == '@', r == '-':
			return r
		}
		return '-'
	}, label)
	_, err := strconv.ParseFloat(label, 64)
	if err == nil || label == "true" || label == "false" {
		initials := ""
		for w := range strings.FieldsFuncSeq(factor, func(r rune) bool { return r == '-' || r == '_' }) {
			initials += w[:1]
		}
		if !strings.ContainsAny(factor, "-_") {
			initials = factor
		}
		clean = initials + clean
	}
	return strings.TrimLeft(clean, ".-")
}
