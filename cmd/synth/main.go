// Synth learns what a trace of LLM traffic is like, and writes new ones.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"strings"

	ucli "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/internal/units"
	"reprise/synth"
	"reprise/synth/score"
	"reprise/traceformat"
	_ "reprise/traceformat/convert" // registers the public formats
)

// A model is a trace wherever one is read: model:NAME.
func init() { synth.Register() }

func main() { os.Exit(cli.Main(app(), os.Args, os.Stdout, os.Stderr)) }

func app() *ucli.App {
	return &ucli.App{
		Name:      "synth",
		UsageText: "synth COMMAND ... [flags]",
		Description: `Synth learns what a trace of LLM traffic is like, and writes new ones. A model is a small
JSON file without the rows of its source, unless it says so; it can be read, edited and
shared. What it writes is a trace like any other: replay plays it, trace inspects it.

Examples:
  synth fit trace.parquet -o model.json
  synth generate model.json -o new.parquet --duration 1h --seed 1
  synth score model.json held-out.parquet
  synth generate --rate 20 --prompt-tokens lognormal:512,0.8 --output-tokens fixed:128 --duration 5m -o - | replay -

Exit status is 0 if done, 1 if it failed or a score misses a limit, 2 for a usage error,
130 if interrupted.`,
		Commands: []*ucli.Command{fitCommand(), generateCommand(), scoreCommand(), modelsCommand()},
	}
}

// readFlags say how to read a trace.
func readFlags() []ucli.Flag {
	return []ucli.Flag{
		&ucli.StringFlag{Name: "format", Aliases: []string{"from"}, Usage: "the trace is in format `NAME` (told by content)"},
		&ucli.StringFlag{Name: "lengths", Usage: "prompt lengths of later turns are `RULE`: cumulative or incremental"},
		&ucli.StringSliceFlag{Name: "param", Usage: "tell the format `KEY=VALUE`, such as block_size=512"},
	}
}

func readOptions(c *ucli.Context) ([]traceformat.ReadOption, error) {
	var opts []traceformat.ReadOption
	if f := c.String("format"); f != "" {
		opts = append(opts, traceformat.WithFormat(f))
	}
	switch l := c.String("lengths"); traceformat.LengthRule(l) {
	case traceformat.LengthsUnknown:
	case traceformat.LengthsCumulative, traceformat.LengthsIncremental:
		opts = append(opts, traceformat.Param("lengths", l))
	default:
		return nil, cli.Usagef("", "--lengths %q: want cumulative or incremental", l)
	}
	for _, p := range c.StringSlice("param") {
		key, value, ok := strings.Cut(p, "=")
		if !ok || key == "" {
			return nil, cli.Usagef("", "--param %q: want KEY=VALUE", p)
		}
		opts = append(opts, traceformat.Param(key, value))
	}
	return opts, nil
}

// load reads a trace into memory, several as one; of one with more than most rows
// the first most, and then more is true.
func load(ctx context.Context, c *ucli.Context, names []string, most int64) (s *score.Sample, h *traceformat.Header, more bool, err error) {
	opts, err := readOptions(c)
	if err != nil {
		return nil, nil, false, err
	}
	var sources []traceformat.Source
	close := func() {
		for _, s := range sources {
			s.Reader.Close()
		}
	}
	for _, name := range names {
		r, err := traceformat.Open(name, opts...)
		if errors.Is(err, fs.ErrNotExist) {
			close()
			return nil, nil, false, &cli.Error{Code: cli.Failed, Err: fmt.Errorf("%s: no such file", name), Hint: "trace fetch lists public traces, synth models what ships"}
		}
		if err != nil {
			close()
			return nil, nil, false, err
		}
		// A Sample sorts its own rows; what several are merged of has to be sorted.
		if len(names) > 1 && !r.Header().Sorted {
			sorted, err := traceformat.Sorted(r, os.TempDir())
			if err != nil {
				close()
				return nil, nil, false, errors.Join(err, r.Close())
			}
			r = both{sorted, r}
		}
		sources = append(sources, traceformat.Source{Name: name, Reader: r})
	}
	r := sources[0].Reader
	if len(sources) > 1 {
		if r, err = traceformat.Merge(sources...); err != nil {
			close()
			return nil, nil, false, err
		}
	}
	defer r.Close()
	first := &firstRows{Reader: r, most: most}
	if s, err = score.Load(ctx, first); err != nil {
		return nil, nil, false, fmt.Errorf("%s: %w", strings.Join(names, ", "), err)
	}
	if first.more && !r.Header().Sorted {
		return nil, nil, false, &cli.Error{Code: cli.Failed, Err: fmt.Errorf("%s: has more than %s rows, and they are in no order: the first of them are no stretch of time", names[0], units.Count(most)),
			Hint: "trace convert " + names[0] + " -o sorted.parquet"}
	}
	s.Name = names[0]
	return s, r.Header(), first.more, nil
}

// firstRows yields the first rows of a trace.
type firstRows struct {
	traceformat.Reader
	most int64
	more bool // there are more
}

func (f *firstRows) All() iter.Seq2[*traceformat.Row, error] {
	return func(yield func(*traceformat.Row, error) bool) {
		n := int64(0)
		for row, err := range f.Reader.All() {
			if n++; err == nil && n > f.most {
				f.more = true
				return
			}
			if !yield(row, err) {
				return
			}
		}
	}
}

// both closes the reader that a sorted one was made of.
type both struct {
	traceformat.Reader
	source traceformat.Reader
}

func (b both) Close() error { return errors.Join(b.Reader.Close(), b.source.Close()) }
