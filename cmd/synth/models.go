package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"

	ucli "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/internal/units"
	"reprise/synth"
)

func modelsCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "models",
		Usage:     "list the models that ship, or show one",
		UsageText: "synth models [MODEL] [flags]",
		Description: `Models lists the models that ship with this program, each learnt from a public trace. With
the name of one, or of a model file, it shows where it comes from, what it scored, what it
does not keep and how much of its source it gives back. model:NAME stands for a trace
wherever one is read.

Examples:
  synth models
  synth models azure-conv
  replay model:azure-conv --duration 5m`,
		Flags:  []ucli.Flag{cli.JSONFlag()},
		Action: cli.Action(models),
	}
}

// A listing is a model as synth models --json prints it.
type listing struct {
	Name            string       `json:"name"`
	HoldsSourceRows bool         `json:"holds_source_rows"`
	Rate            float64      `json:"rate"`
	Seconds         float64      `json:"seconds"`
	Source          synth.Source `json:"source"`
	Fits            bool         `json:"fits"`
	Verdict         string       `json:"verdict,omitempty"`
}

func listed(name string, m *synth.Model) listing {
	l := listing{Name: name, HoldsSourceRows: m.HoldsSourceRows, Rate: m.Rate(), Seconds: m.Horizon, Source: m.Source}
	if m.Fit != nil {
		l.Fits, l.Verdict = m.Fit.Fits, m.Fit.Verdict
	}
	return l
}

func models(_ context.Context, c *ucli.Context) error {
	switch c.NArg() {
	case 0:
	case 1:
		m, err := openModel(c.Args().First())
		if err != nil {
			return err
		}
		if c.Bool("json") {
			return cli.WriteJSON(c.App.Writer, listed(c.Args().First(), m))
		}
		return writeModelText(c.App.Writer, m)
	default:
		return cli.Usagef("synth models --help", "models takes one model and got %d", c.NArg())
	}
	var all []listing
	for _, name := range synth.Shipped() {
		m, err := synth.Load(name)
		if err != nil {
			return err
		}
		all = append(all, listed(name, m))
	}
	if c.Bool("json") {
		return cli.WriteJSON(c.App.Writer, all)
	}
	t := cli.Table{Head: []string{"model", "rate", "of", "rows", "licence", "source"}}
	for _, l := range all {
		t.Row("model:"+l.Name, units.Rate(l.Rate), units.Digits(l.Seconds)+" s", units.Count(int64(l.Source.Rows)), l.Source.Licence, l.Source.Address)
	}
	return t.Write(c.App.Writer, "")
}

func writeModelText(w io.Writer, m *synth.Model) error {
	var b strings.Builder
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%-10s %s\n", name, value)
		}
	}
	line("model", m.Name)
	line("source", strings.Join(strings.Fields(m.Source.Trace+" "+m.Source.Address), " "))
	line("cite", m.Source.Cite)
	line("licence", m.Source.Licence)
	holds := "no"
	if m.HoldsSourceRows {
		holds = "YES: sharing the model shares them"
	}
	line("rows", "holds rows of its source: "+holds)
	line("rate", fmt.Sprintf("%s over %s s, %d clients", units.Rate(m.Rate()), units.Digits(m.Horizon), len(m.Clients)))
	if blocks := m.Blocks; blocks != nil {
		line("blocks", fmt.Sprintf("of %d tokens, reused for up to %s s", blocks.Size, units.Digits(blocks.Window)))
	}
	b.WriteByte('\n')
	if _, err := io.WriteString(w, b.String()); err != nil {
		return err
	}
	if m.Fit == nil {
		return nil
	}
	return writeFit(w, m, m.Fit)
}

// openModel reads a model file, or a model that ships: its name, with or
// without model: before it.
func openModel(name string) (*synth.Model, error) {
	m, err := synth.Load(strings.TrimPrefix(name, synth.Scheme))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &cli.Error{Code: cli.Failed, Err: fmt.Errorf("%s: no such file", name), Hint: "the models that ship are " + strings.Join(synth.Shipped(), ", ")}
	}
	if errors.Is(err, synth.ErrModel) {
		return nil, &cli.Error{Code: cli.Failed, Err: err, Hint: "synth fit TRACE -o MODEL makes one"}
	}
	return m, err
}

// mixedModel reads the models of --mix and superposes them.
func mixedModel(text string) (*synth.Model, error) {
	var parts []synth.Weighted
	for one := range strings.SplitSeq(text, ",") {
		// The name may have a colon, the share has none.
		at := strings.LastIndexByte(one, ':')
		if at < 1 {
			return nil, mixUsage(text)
		}
		share, err := strconv.ParseFloat(one[at+1:], 64)
		if err != nil || !(share > 0) {
			return nil, mixUsage(text)
		}
		m, err := openModel(strings.TrimSpace(one[:at]))
		if err != nil {
			return nil, err
		}
		parts = append(parts, synth.Weighted{Model: m, Share: share})
	}
	m, err := synth.Mix(parts)
	if err != nil {
		return nil, &cli.Error{Code: cli.Failed, Err: fmt.Errorf("--mix: %w", err)}
	}
	return m, nil
}

func mixUsage(text string) error {
	return cli.Usagef("--mix model:azure-conv:0.7,mine.json:0.3", "--mix %q: want MODEL:SHARE,MODEL:SHARE", text)
}

// describedModel makes a model of key=value pairs.
func describedModel(keys [][2]string) (*synth.Model, error) {
	s := synth.DefaultSpec()
	var errs []error
	for _, k := range keys {
		if err := s.Set(k[0], k[1]); err != nil {
			errs = append(errs, fmt.Errorf("--%w", err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, cli.Usagef("synth generate --help", "%w", err)
	}
	m, err := s.Model()
	if err != nil {
		return nil, cli.Usagef("", "%w", err)
	}
	return m, nil
}
