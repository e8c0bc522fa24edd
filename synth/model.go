package synth

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
)

// ModelFormat and ModelVersion begin every model file.
const (
	ModelFormat  = "reprise-model"
	ModelVersion = 1
)

// maxModelBytes bounds what is read as a model; one that holds source rows is
// the largest.
const maxModelBytes = 256 << 20

// ErrModel is wrapped by every error about the content of a model.
var ErrModel = errors.New("not a usable model")

// A Model is what was learnt from a trace, or written down without one.
type Model struct {
	Format  string `json:"format"`
	Version int    `json:"version"`
	Name    string `json:"name,omitempty"`
	// HoldsSourceRows says that rows of the source are part of the model, so
	// that sharing it shares them.
	HoldsSourceRows bool   `json:"holds_source_rows"`
	Source          Source `json:"source"`
	// Horizon is how long a trace is generated unless said, in seconds.
	Horizon float64 `json:"horizon_s"`
	Blocks  *Blocks `json:"blocks,omitempty"`
	// DoesNotKeep says in words what the model loses of its source.
	DoesNotKeep []string   `json:"does_not_keep,omitempty"`
	Memory      *Memory    `json:"memorises,omitempty"`
	Fit         *FitReport `json:"fit,omitempty"`

	Clients []Client `json:"clients"`
	// Description is for people: parametric fits that nothing is generated from.
	Description []Description `json:"description,omitempty"`
}

// A Source says where a model comes from.
type Source struct {
	Trace   string  `json:"trace,omitempty"` // its name, never a path
	Address string  `json:"address,omitempty"`
	Licence string  `json:"licence,omitempty"`
	Cite    string  `json:"cite,omitempty"`
	Dialect string  `json:"dialect,omitempty"`
	Rows    int     `json:"rows,omitempty"`
	Seconds float64 `json:"seconds,omitempty"`
	Tick    float64 `json:"tick_s,omitempty"` // arrivals were spread over ticks of this length
	Program string  `json:"program,omitempty"`
	Lengths string  `json:"lengths,omitempty"` // rule of the prompt lengths of later turns
}

// Blocks says what prefix blocks are generated.
type Blocks struct {
	Size    int32  `json:"size"`    // tokens
	Partial string `json:"partial"` // kept, dropped or padded
	Scope   string `json:"scope,omitempty"`
	// Window is how far back a request may continue another, in seconds, and
	// Entries how many requests are held for that at most.
	Window  float64 `json:"reuse_window_s"`
	Entries int     `json:"reuse_entries"`
}

// A Client is one independent source of requests: a tenant, a class, or all
// of a trace.
type Client struct {
	// Slot is the client's own number. Its random streams and block ids follow
	// from it, so that they stay when other clients come and go.
	Slot     int       `json:"slot"`
	Name     string    `json:"name,omitempty"` // pseudonym, written as client_id
	Class    string    `json:"class,omitempty"`
	Model    string    `json:"model,omitempty"`
	Endpoint string    `json:"endpoint,omitempty"`
	Weight   float64   `json:"weight"` // multiplies the rate; 1 is as learnt
	Arrivals Arrivals  `json:"arrivals"`
	Lengths  *Lengths  `json:"lengths,omitempty"`
	Sessions *Sessions `json:"sessions,omitempty"`
	Prefixes *Prefixes `json:"prefixes,omitempty"`
	Rows     *Rows     `json:"rows,omitempty"`
}

// A Memory says how much of its source a model gives back.
type Memory struct {
	// Runs counts runs of three consecutive (input, output) pairs of a
	// generated trace that stand in the source, of Of runs; Chance is the same
	// count between the halves of the source.
	Runs   int    `json:"shared_runs_of_3"`
	Of     int    `json:"of"`
	Chance int    `json:"between_halves_of_source"`
	Note   string `json:"note,omitempty"`
}

const maxSlots = 1 << 19

// Read reads a model. What is wrong with it is an error that wraps ErrModel.
func Read(r io.Reader) (*Model, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxModelBytes+1))
	switch {
	case err != nil:
		return nil, err
	case len(b) > maxModelBytes:
		return nil, fmt.Errorf("%w: larger than %d MiB", ErrModel, maxModelBytes>>20)
	case len(bytes.TrimSpace(b)) == 0:
		return nil, fmt.Errorf("%w: the file is empty", ErrModel)
	}
	var head struct {
		Format  string `json:"format"`
		Version int    `json:"version"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrModel, located(b, err))
	}
	switch {
	case head.Format != ModelFormat:
		return nil, fmt.Errorf("%w: format is %q, want %q", ErrModel, clip(head.Format), ModelFormat)
	case head.Version != ModelVersion:
		return nil, fmt.Errorf("%w: version is %d, this program knows %d", ErrModel, head.Version, ModelVersion)
	}
	m := new(Model)
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(m); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrModel, located(b, err))
	}
	if d.More() {
		return nil, fmt.Errorf("%w: something follows the model", ErrModel)
	}
	if err := m.Check(); err != nil {
		return nil, err
	}
	return m, nil
}

// ReadFile reads the model in a file.
func ReadFile(path string) (*Model, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m, err := Read(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

// located adds the line to an error of encoding/json.
func located(b []byte, err error) error {
	at := int64(-1)
	if e, ok := errors.AsType[*json.SyntaxError](err); ok {
		at = e.Offset
		if at >= int64(len(b)) {
			return fmt.Errorf("line %d: the file is cut short", 1+bytes.Count(b, []byte("\n")))
		}
	}
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		at = e.Offset
	}
	if at < 0 || at > int64(len(b)) {
		return err
	}
	return fmt.Errorf("line %d: %w", 1+bytes.Count(b[:at], []byte("\n")), err)
}

// clip shortens a string from a file for a message.
func clip(s string) string {
	if len(s) > 40 {
		return strings.ToValidUTF8(s[:40], "") + "…"
	}
	return s
}

// Write writes the model as JSON: a line for each list of numbers.
func (m *Model) Write(w io.Writer) error {
	if err := m.Check(); err != nil {
		return err
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", " "); err != nil {
		return err
	}
	_, err = w.Write(append(joinNumbers(out.Bytes()), '\n'))
	return err
}

// joinNumbers puts lists that hold numbers alone on one line.
func joinNumbers(b []byte) []byte {
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] == '"' { // skip strings
			j := i + 1
			for b[j] != '"' {
				if b[j] == '\\' {
					j++
				}
				j++
			}
			out = append(out, b[i:j+1]...)
			i = j
			continue
		}
		if b[i] == '[' {
			if j := bytes.IndexAny(b[i+1:], "[]{}\""); j >= 0 && b[i+1+j] == ']' {
				for _, c := range b[i : i+1+j] {
					if c != ' ' && c != '\n' {
						out = append(out, c)
					}
				}
				i += j // the bracket comes next
				continue
			}
		}
		out = append(out, b[i])
	}
	return out
}

// Check reports everything that keeps a model from being generated from.
func (m *Model) Check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if m.Format != ModelFormat || m.Version != ModelVersion {
		bad("format %q version %d, want %q version %d", clip(m.Format), m.Version, ModelFormat, ModelVersion)
	}
	if !finite(m.Horizon) || m.Horizon <= 0 || m.Horizon > maxHorizon {
		bad("horizon_s is %v, want a time up to ten years", m.Horizon)
	}
	if len(m.Clients) == 0 {
		bad("has no clients")
	}
	if b := m.Blocks; b != nil {
		if b.Size <= 0 || b.Size > 1<<20 {
			bad("blocks: size is %d tokens", b.Size)
		}
		if !slices.Contains([]string{"kept", "dropped", "padded"}, b.Partial) {
			bad("blocks: partial is %q, want kept, dropped or padded", clip(b.Partial))
		}
		if !finite(b.Window) || b.Window <= 0 || b.Entries <= 0 || b.Entries > maxEntries {
			bad("blocks: a reuse window of %v s and %d entries, want more than 0 and at most %d entries", b.Window, b.Entries, maxEntries)
		}
	}
	slots := map[int]bool{}
	holds := false
	for i := range m.Clients {
		c := &m.Clients[i]
		at := fmt.Sprintf("client %d", i)
		if c.Slot < 0 || c.Slot >= maxSlots || slots[c.Slot] {
			bad("%s: slot %d is taken or out of range", at, c.Slot)
		}
		slots[c.Slot] = true
		holds = holds || c.Rows != nil
		for _, err := range c.check(m) {
			bad("%s: %w", at, err)
		}
	}
	if holds != m.HoldsSourceRows {
		bad("holds_source_rows is %t, and its clients say %t", m.HoldsSourceRows, holds)
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrModel, errors.Join(errs...))
}

// maxHorizon is what traceformat takes for an arrival at most, in seconds.
const maxHorizon = 10 * 365 * 86400

func (c *Client) check(m *Model) []error {
	var errs []error
	if !finite(c.Weight) || c.Weight < 0 || c.Weight > 1e9 {
		errs = append(errs, fmt.Errorf("weight is %v, want 0 or more", c.Weight))
	}
	add := func(name string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
		}
	}
	add("arrivals", c.Arrivals.check(c))
	if c.Lengths != nil {
		add("lengths", c.Lengths.check())
	}
	if c.Sessions != nil {
		add("sessions", c.Sessions.check())
	}
	if c.Prefixes != nil {
		if m.Blocks == nil {
			errs = append(errs, errors.New("prefixes: the model has no blocks"))
		}
		add("prefixes", c.Prefixes.check())
	}
	if c.Rows != nil {
		add("rows", c.Rows.check())
	}
	return errs
}

// Rate is the mean rate in requests a second over the model's horizon.
func (m *Model) Rate() float64 {
	sum := 0.0
	for i := range m.Clients {
		sum += m.Clients[i].rate()
	}
	return sum
}

func (c *Client) rate() float64 {
	r := c.Weight * c.Arrivals.Rate
	if c.Sessions != nil {
		r *= max(1, c.Sessions.turns())
	}
	return r
}

// Clone returns a deep copy.
func (m *Model) Clone() *Model {
	b, err := json.Marshal(m)
	if err != nil {
		panic(err) // models hold finite numbers and strings
	}
	c := new(Model)
	if err := json.Unmarshal(b, c); err != nil {
		panic(err)
	}
	return c
}

// interval is a length of time that makes sense to divide by.
func interval(x float64) bool { return finite(x) && x > 0 && !math.IsInf(1/x, 0) }
