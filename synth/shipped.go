package synth

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"reprise/traceformat"
)

//go:embed models/*.json
var shipped embed.FS

// Scheme is what names of models begin with where a trace is asked for.
const Scheme = "model:"

// SpecScheme is what descriptions of traffic begin with where a trace is asked
// for, see [ParseSpec].
const SpecScheme = "synthetic:"

// Register makes [traceformat.Open] know both schemes.
func Register() {
	traceformat.RegisterScheme(Scheme, func(name string, o *traceformat.OpenOptions) (traceformat.Reader, error) {
		return openModel(strings.TrimPrefix(name, Scheme), o, Load)
	})
	traceformat.RegisterScheme(SpecScheme, func(name string, o *traceformat.OpenOptions) (traceformat.Reader, error) {
		return openModel(strings.TrimPrefix(name, SpecScheme), o, func(text string) (*Model, error) {
			s, err := ParseSpec(text)
			if err != nil {
				return nil, err
			}
			return s.Model()
		})
	})
}

// Shipped returns the names of the models that come with the program.
func Shipped() []string {
	entries, err := fs.ReadDir(shipped, "models")
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".json"))
	}
	slices.Sort(names)
	return names
}

// Load returns the shipped model of that name, or else the model in that file.
func Load(name string) (*Model, error) {
	if b, err := shipped.ReadFile("models/" + name + ".json"); err == nil {
		return Read(bytes.NewReader(b))
	}
	m, err := ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) && !strings.ContainsAny(name, "/.") {
		return nil, fmt.Errorf("no model is called %s: there are %s, and files", clip(name), strings.Join(Shipped(), ", "))
	}
	return m, err
}

// openModel opens name?option=value&...; options in o.Params hold where the
// name says nothing.
func openModel(name string, o *traceformat.OpenOptions, load func(string) (*Model, error)) (traceformat.Reader, error) {
	name, query, _ := strings.Cut(name, "?")
	values, err := url.ParseQuery(query)
	if err != nil {
		return nil, fmt.Errorf("options of the model: want name=value&name=value")
	}
	for key, v := range o.Params {
		if !values.Has(key) && slices.Contains(genKeys, key) {
			values.Set(key, v)
		}
	}
	var g GenOptions
	var errs []error
	rate := 0.0 // requests a second, as --rate of synth generate
	for _, key := range slices.Sorted(keysOf(values)) {
		if key == "rate" {
			if rate, err = strconv.ParseFloat(values.Get(key), 64); err != nil || !(rate > 0) || !finite(rate) {
				errs = append(errs, fmt.Errorf("rate: %q is no number of requests a second", clip(values.Get(key))))
			}
			continue
		}
		errs = append(errs, g.Set(key, values.Get(key)))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	m, err := load(name)
	if err != nil {
		return nil, err
	}
	if rate > 0 {
		if g.Rate, err = m.rateFactor(rate); err != nil {
			return nil, err
		}
	}
	return m.Generate(g)
}

func keysOf(v url.Values) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range v {
			if !yield(k) {
				return
			}
		}
	}
}

var genKeys = []string{"seed", "duration", "rows", "start", "from", "scale-rate", "rate", "prompts", "outputs", "reuse", "bursts", "order"}

// rateFactor is the GenOptions.Rate that makes so many requests a second.
func (m *Model) rateFactor(rate float64) (float64, error) {
	if !(m.Rate() > 0) {
		return 0, errors.New("the model has no rate that could be scaled")
	}
	return rate / m.Rate(), nil
}

// Set changes one option by the name that it has in flags and in model: names;
// rate, which needs a model, is not one of them.
func (o *GenOptions) Set(key, value string) (err error) {
	bad := func(want string) error { return fmt.Errorf("%s: %q is no %s", key, clip(value), want) }
	number := func(x *float64) {
		v, e := strconv.ParseFloat(value, 64)
		if *x = v; e != nil || !(v > 0) || !finite(v) {
			err = bad("number above 0")
		}
	}
	duration := func(d *time.Duration) {
		v, e := time.ParseDuration(value)
		if *d = v; e != nil || v < 0 {
			err = bad("time such as 5m")
		}
	}
	switch key {
	case "seed":
		v, e := strconv.ParseUint(value, 10, 64)
		if o.Seed = v; e != nil {
			return bad("number from 0 to 2^64-1")
		}
	case "rows":
		v, e := strconv.ParseInt(value, 10, 64)
		if o.Rows = v; e != nil || v < 1 {
			return bad("count")
		}
	case "start":
		v, e := time.Parse(time.RFC3339Nano, value)
		if o.Start = v; e != nil {
			return bad("time such as 2026-01-31T08:00:00Z")
		}
	case "duration":
		duration(&o.Duration)
	case "from":
		duration(&o.From)
	case "scale-rate":
		number(&o.ScaleRate)
	case "prompts":
		number(&o.Prompts)
	case "outputs":
		number(&o.Outputs)
	case "reuse":
		number(&o.Reuse)
	case "bursts":
		number(&o.Bursts)
	case "order":
		o.Order = value
	default:
		return fmt.Errorf("option %q is not known, want one of %s", clip(key), strings.Join(genKeys, ", "))
	}
	return err
}
