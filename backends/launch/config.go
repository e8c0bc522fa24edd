package launch

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
)

// A Config is a serving configuration: how to start an engine, in the engine's
// own words.
//
//	backend: vllm
//	url: http://127.0.0.1:{port}
//	vars: {port: 8000, model: meta-llama/Llama-3.1-8B-Instruct}
//	command: [vllm, serve, "{model}", --port, "{port}"]
//	flags: {max-model-len: 8192, enable-prefix-caching: true}
//
// Text in braces that names one of vars is replaced; other braces stay, as flags
// may hold JSON.
type Config struct {
	Backend string            `yaml:"backend"`
	URL     string            `yaml:"url"`
	Vars    map[string]string `yaml:"vars"`
	// Command is a list of words, to which the flags are appended, or a line for
	// the shell, in which {flags} stands for them (else they come last). Without
	// one the server runs already, or is the embedded engine.
	Command Words             `yaml:"command"`
	Flags   yaml.MapSlice     `yaml:"flags"`
	Env     map[string]string `yaml:"env"`
	Dir     string            `yaml:"dir"`
	// NoFlags says that --no-NAME turns NAME off, as in vLLM. Otherwise a flag
	// that is false is left out.
	NoFlags bool `yaml:"no_flags"`
	// Options are those of the backend, as with --option.
	Options map[string]string `yaml:"options"`
	// Aliases give names that several engines share this engine's own flags: by
	// NAME, or by NAME=VALUE where the value has another meaning here. Each is a
	// name, or a map of flags.
	Aliases map[string]Alias `yaml:"aliases"`
	// KVCacheTokens is how the engine is told the size of its KV cache, for the
	// shared name kv-cache-tokens.
	KVCacheTokens *TokenFlag `yaml:"kv_cache_tokens"`
	// Refuse lists flags and aliases that this engine has not, with the reason.
	Refuse map[string]string `yaml:"refuse"`
	// Ready are paths of the server that answer with 200 once it serves; what the
	// kind of backend is known for unless said.
	Ready        Words    `yaml:"ready"`
	ReadyTimeout Duration `yaml:"ready_timeout"`
	Stop         Words    `yaml:"stop"`
	StopTimeout  Duration `yaml:"stop_timeout"`
	Expected     Duration `yaml:"expected"` // from the start until it is ready
}

// Words are the words of a command: a list, or a line for the shell.
type Words struct {
	List []string
	Line string
}

// UnmarshalYAML implements yaml.BytesUnmarshaler.
func (w *Words) UnmarshalYAML(b []byte) error {
	*w = Words{}
	if yaml.Unmarshal(b, &w.List) == nil {
		return nil
	}
	w.List = nil
	return yaml.Unmarshal(b, &w.Line)
}

// MarshalYAML implements yaml.InterfaceMarshaler.
func (w Words) MarshalYAML() (any, error) {
	if w.List != nil {
		return w.List, nil
	}
	return w.Line, nil
}

// An Alias is the engine's own flags in place of a shared name.
type Alias struct {
	Name  string
	Flags yaml.MapSlice
}

// UnmarshalYAML implements yaml.BytesUnmarshaler.
func (a *Alias) UnmarshalYAML(b []byte) error {
	*a = Alias{}
	if yaml.Unmarshal(b, &a.Flags) == nil {
		return nil
	}
	a.Flags = nil
	return yaml.Unmarshal(b, &a.Name)
}

// MarshalYAML implements yaml.InterfaceMarshaler.
func (a Alias) MarshalYAML() (any, error) {
	if a.Flags != nil {
		return a.Flags, nil
	}
	return a.Name, nil
}

// A TokenFlag is a flag that counts tokens, or blocks of as many as another flag
// says.
type TokenFlag struct {
	Flag    string `yaml:"flag"`
	Unit    string `yaml:"unit"`    // the flag with the tokens in a block; empty: it counts tokens
	Default int    `yaml:"default"` // tokens in a block where that flag is not given
}

// kvCacheTokens is the name that experiments call the size of the KV cache by.
const kvCacheTokens = "kv-cache-tokens"

// A Duration is written as in 90s or 15m.
type Duration time.Duration

// UnmarshalYAML implements yaml.BytesUnmarshaler.
func (d *Duration) UnmarshalYAML(b []byte) error {
	var s string
	if err := yaml.Unmarshal(b, &s); err != nil {
		return err
	}
	v, err := time.ParseDuration(s)
	if err != nil || v < 0 {
		return fmt.Errorf("%q is not a time such as 90s or 15m", s)
	}
	*d = Duration(v)
	return nil
}

// MarshalYAML implements yaml.InterfaceMarshaler.
func (d Duration) MarshalYAML() (any, error) { return time.Duration(d).String(), nil }

// maxConfig bounds a configuration file.
const maxConfig = 1 << 20

// ReadConfig reads a serving configuration. Unknown keys are errors, with their
// lines.
func ReadConfig(name string) (*Config, error) {
	i, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if !i.Mode().IsRegular() || i.Size() > maxConfig {
		return nil, fmt.Errorf("%s is not a file of at most %d bytes", name, maxConfig)
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	c, err := ParseConfig(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

// ParseConfig reads the bytes of a serving configuration.
func ParseConfig(b []byte) (*Config, error) {
	var raw any
	err := yaml.UnmarshalWithOptions(b, &raw, yaml.UseOrderedMap())
	if err == nil {
		if err := CheckAliases(raw); err != nil {
			return nil, err
		}
	}
	c := new(Config)
	if err == nil {
		err = yaml.UnmarshalWithOptions(b, c, yaml.Strict())
	}
	if err != nil {
		return nil, errors.New(strings.TrimSpace(yaml.FormatError(err, false, true)))
	}
	return c, c.validate()
}

func (c *Config) validate() error {
	var errs []error
	if c.Backend == "" {
		errs = append(errs, errors.New("backend is missing: sim, vllm, sglang or openai"))
	}
	if c.Launches() && c.URL == "" {
		errs = append(errs, errors.New("url is missing: where does the command listen?"))
	}
	if !c.Launches() && c.URL != "" && len(c.Flags) > 0 {
		errs = append(errs, errors.New("flags have no command that takes them"))
	}
	for _, f := range c.Flags {
		if _, err := flagOf(f); err != nil {
			errs = append(errs, err)
		}
	}
	if t := c.KVCacheTokens; t != nil && (t.Flag == "" || t.Unit != "" && t.Default < 1) {
		errs = append(errs, errors.New("kv_cache_tokens: want flag, and with a unit the default of that"))
	}
	for name, a := range c.Aliases {
		if a.Name == "" && a.Flags == nil {
			errs = append(errs, fmt.Errorf("alias %s stands for nothing", name))
		}
		if a.Name != "" && strings.Contains(name, "=") {
			errs = append(errs, fmt.Errorf("alias %s is of one value: it stands for flags with values, not for a name", name))
		}
	}
	return errors.Join(errs...)
}

// maxSpelled bounds YAML with its aliases written out, about in bytes.
const maxSpelled = 8 << 20

// CheckAliases refuses what was read of YAML, with ordered maps, whose aliases
// stand for more than anyone writes: in a few lines aliases of aliases are
// billions of values, which are one in memory until they are written out.
func CheckAliases(v any) error {
	if left := spelled(v, maxSpelled); left <= 0 {
		return fmt.Errorf("with its aliases written out it has more than %d bytes", maxSpelled)
	}
	return nil
}

// spelled takes the size of v from what is left, and stops where nothing is.
func spelled(v any, left int) int {
	left--
	switch v := v.(type) {
	case string:
		left -= len(v)
	case yaml.MapSlice:
		for _, i := range v {
			if left = spelled(i.Value, spelled(i.Key, left)); left <= 0 {
				break
			}
		}
	case []any:
		for _, e := range v {
			if left = spelled(e, left); left <= 0 {
				break
			}
		}
	}
	return left
}

// Launches says whether there is something to start.
func (c *Config) Launches() bool { return c.Command.List != nil || c.Command.Line != "" }

// A Flag is one flag of an engine. Value "true" and "false" are those of a
// switch.
type Flag struct{ Name, Value string }

func (f Flag) String() string { return f.Name + "=" + f.Value }

// flagOf reads a flag as the file has it. A null takes it out.
func flagOf(i yaml.MapItem) (Flag, error) {
	name, ok := i.Key.(string)
	if !ok || name == "" || strings.HasPrefix(name, "-") {
		return Flag{}, fmt.Errorf("flag %v: want its name, without dashes", i.Key)
	}
	v, err := Scalar(i.Value)
	if err != nil {
		return Flag{}, fmt.Errorf("flag %s: %w", name, err)
	}
	return Flag{name, v}, nil
}

// Scalar writes a value of YAML as a command line has it.
func Scalar(v any) (string, error) {
	switch v := v.(type) {
	case nil:
		return "", nil
	case string:
		return v, nil
	case bool, int, int64, uint64:
		return fmt.Sprint(v), nil
	case float64:
		return strings.TrimSuffix(fmt.Sprintf("%g", v), ".0"), nil
	}
	return "", fmt.Errorf("want a number, a word or true or false, not %v", v)
}

// Resolve puts flags given by shared or own names into the engine's own, on top
// of those of the file. A flag with an empty value takes one out.
func (c *Config) Resolve(given []Flag) ([]Flag, error) {
	var flags []Flag
	var errs []error
	set := func(f Flag) {
		i := slices.IndexFunc(flags, func(g Flag) bool { return g.Name == f.Name })
		switch {
		case i >= 0 && f.Value == "":
			flags = slices.Delete(flags, i, i+1)
		case i >= 0:
			flags[i] = f
		case f.Value != "":
			flags = append(flags, f)
		}
	}
	own := func(items yaml.MapSlice) {
		for _, i := range items {
			f, err := flagOf(i)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			set(f)
		}
	}
	own(c.Flags)
	tokens := ""
	for _, f := range given {
		if f.Name == kvCacheTokens && c.KVCacheTokens != nil {
			tokens = f.Value
			continue
		}
		for _, key := range []string{f.String(), f.Name} {
			if why, no := c.Refuse[key]; no {
				errs = append(errs, fmt.Errorf("%s: %s", key, why))
			}
		}
		if a, ok := c.Aliases[f.String()]; ok {
			own(a.Flags)
			continue
		}
		switch a, ok := c.Aliases[f.Name]; {
		case ok && a.Name != "":
			set(Flag{a.Name, f.Value})
		case ok:
			own(a.Flags)
		case c.only(f.Name):
			errs = append(errs, fmt.Errorf("%s: there are %s", f, strings.Join(c.values(f.Name), ", ")))
		default:
			set(f)
		}
	}
	if tokens != "" {
		// The block's size is known once all flags are.
		n, err := strconv.Atoi(tokens)
		per := 1
		if t := c.KVCacheTokens; t.Unit != "" {
			per = t.Default
			if i := slices.IndexFunc(flags, func(f Flag) bool { return f.Name == t.Unit }); i >= 0 {
				per, _ = strconv.Atoi(flags[i].Value)
			}
		}
		if err != nil || per < 1 || n < per {
			errs = append(errs, fmt.Errorf("%s=%s: want a number of tokens, of at least one block", kvCacheTokens, tokens))
		} else {
			set(Flag{c.KVCacheTokens.Flag, strconv.Itoa(n / per)})
		}
	}
	return flags, errors.Join(errs...)
}

// only says that a name is known by some values alone.
func (c *Config) only(name string) bool { return len(c.values(name)) > 0 }

func (c *Config) values(name string) (out []string) {
	for key := range c.Aliases {
		if n, _, valued := strings.Cut(key, "="); valued && n == name {
			out = append(out, key)
		}
	}
	slices.Sort(out)
	return out
}

var inBraces = regexp.MustCompile(`\{[A-Za-z_][A-Za-z0-9_]*\}`)

// fill puts vars into s.
func fill(s string, vars map[string]string) string {
	return inBraces.ReplaceAllStringFunc(s, func(m string) string {
		if v, ok := vars[m[1:len(m)-1]]; ok {
			return v
		}
		return m
	})
}

// Spec is what starts the engine with those flags, which are its own names. A
// flag that is called as one of vars sets that. vars replace those of the file.
func (c *Config) Spec(flags []Flag, vars map[string]string) (*Spec, error) {
	all := map[string]string{}
	maps.Copy(all, c.Vars)
	for k, v := range vars {
		if _, ok := all[k]; !ok {
			return nil, fmt.Errorf("no var %q in the serving configuration", k)
		}
		all[k] = v
	}
	for _, f := range flags {
		if _, ok := all[f.Name]; ok {
			all[f.Name] = f.Value
		}
	}
	var args []string
	for _, f := range flags {
		if _, ok := all[f.Name]; ok {
			continue
		}
		switch v := fill(f.Value, all); v {
		case "true":
			args = append(args, "--"+f.Name)
		case "false":
			if c.NoFlags {
				args = append(args, "--no-"+f.Name)
			}
		default:
			args = append(args, "--"+f.Name, v)
		}
	}
	s := &Spec{
		Backend: c.Backend, URL: fill(c.URL, all), Dir: fill(c.Dir, all), Env: map[string]string{},
		ReadyTimeout: time.Duration(c.ReadyTimeout), StopTimeout: time.Duration(c.StopTimeout), Expected: time.Duration(c.Expected),
	}
	for k, v := range c.Env {
		s.Env[k] = fill(v, all)
	}
	if c.Command.List != nil {
		for _, w := range c.Command.List {
			s.Command = append(s.Command, fill(w, all))
		}
		s.Command = append(s.Command, args...)
	} else {
		for i, a := range args {
			args[i] = quote(a)
		}
		line := c.Command.Line
		if !strings.Contains(line, "{flags}") {
			line += " {flags}"
		}
		all["flags"] = strings.Join(args, " ")
		s.Command = []string{"sh", "-c", fill(line, all)}
	}
	switch {
	case c.Ready.List != nil:
		for _, p := range c.Ready.List {
			s.Ready = append(s.Ready, fill(p, all))
		}
	case c.Ready.Line != "":
		s.Ready = []string{fill(c.Ready.Line, all)}
	}
	switch {
	case c.Stop.List != nil:
		for _, w := range c.Stop.List {
			s.Stop = append(s.Stop, fill(w, all))
		}
	case c.Stop.Line != "":
		s.Stop = []string{"sh", "-c", fill(c.Stop.Line, all)}
	}
	s.setDefaults()
	if len(s.Ready) == 0 {
		return nil, fmt.Errorf("ready is missing: which path answers once %s serves?", c.Backend)
	}
	return s, nil
}

// quote makes one word of the shell of s.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
