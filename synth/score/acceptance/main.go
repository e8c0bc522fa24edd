// Acceptance fits models to the public traces and prints how near what they
// generate comes, metric by metric, with the limits that this project has set
// itself and the noise floors of the traces. make score runs it.
//
//	go run ./synth/score/acceptance [-traces DIR] [-seeds 20] [-json | -markdown] [-figures DIR]
//
// Protocols: R fits a trace and compares with the same trace; I fits alternate
// blocks of 60 s and compares with the others; H fits the first half and
// compares with the second, at the second's mean rate. A trace that is not
// there is skipped, and the table says so.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"

	"reprise/internal/cli"
	"reprise/synth"
	"reprise/synth/score"
	"reprise/traceformat"
	_ "reprise/traceformat/convert"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("acceptance", flag.ContinueOnError)
	fs.SetOutput(stderr)
	o := options{stderr: stderr}
	fs.StringVar(&o.traces, "traces", defaultTraces(), "folder of the public traces")
	fs.IntVar(&o.seeds, "seeds", 20, "traces generated for each median")
	fs.BoolVar(&o.measured, "program", true, "also build synth, for its determinism, speed and memory")
	asJSON := fs.Bool("json", false, "print JSON")
	asMarkdown := fs.Bool("markdown", false, "print Markdown")
	figures := fs.String("figures", "", "also draw pictures into this folder")
	if err := fs.Parse(args); err != nil {
		return cli.Usage
	}
	if fs.NArg() > 0 || o.seeds < 1 {
		fmt.Fprintln(stderr, "acceptance: no arguments, and at least one seed")
		return cli.Usage
	}
	t, err := o.run(ctx)
	if err != nil {
		fmt.Fprintf(stderr, "acceptance: %v\n", err)
		if errors.Is(err, context.Canceled) {
			return cli.Interrupted
		}
		return cli.Failed
	}
	if *figures != "" {
		if err := o.writeFigures(ctx, *figures); err != nil {
			fmt.Fprintf(stderr, "acceptance: %v\n", err)
			return cli.Failed
		}
	}
	switch {
	case *asJSON:
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		err = enc.Encode(t)
	case *asMarkdown:
		err = t.markdown(stdout)
	default:
		err = t.text(stdout)
	}
	if err != nil {
		fmt.Fprintf(stderr, "acceptance: %v\n", err)
		return cli.Failed
	}
	if t.unexpected() {
		return cli.Failed
	}
	return cli.Done
}

func defaultTraces() string {
	shared := os.Getenv("REPRISE_SHARED")
	if shared == "" {
		shared = filepath.Join("..", "shared")
	}
	return filepath.Join(shared, "traces")
}

type options struct {
	traces string
	seeds  int
	stderr io.Writer
	// measured builds and runs the program for rows 21 to 23.
	measured bool
}

// A table is the result.
type table struct {
	Schema  string   `json:"schema"`
	Seeds   int      `json:"seeds"`
	Figures []figure `json:"figures"`
	Unseen  []claim  `json:"unseen"`
	Notes   []string `json:"notes,omitempty"`
}

func (o *options) run(ctx context.Context) (*table, error) {
	t := &table{Schema: "reprise.acceptance/1", Seeds: o.seeds}
	// First, while this process is small: a child begins with what its parent had as
	// its greatest memory.
	if o.measured {
		figures, notes, err := o.program(ctx)
		if err != nil {
			return nil, fmt.Errorf("program: %w", err)
		}
		t.Figures, t.Notes = append(t.Figures, figures...), append(t.Notes, notes...)
	}
	for _, name := range []string{"conv", "code", "moon"} {
		s, err := o.load(ctx, name)
		if errors.Is(err, os.ErrNotExist) {
			t.Notes = append(t.Notes, fmt.Sprintf("%s is not there, and its rows are left out", name))
			continue
		}
		if err != nil {
			return nil, err
		}
		c := &trace{options: o, name: name, real: s}
		if err := c.run(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		t.Figures = append(t.Figures, c.figures...)
		t.Notes = append(t.Notes, c.notes...)
	}
	sessions, err := o.loadSessions(ctx)
	switch {
	case errors.Is(err, os.ErrNotExist):
		t.Notes = append(t.Notes, "the coding sessions are not there, and row 15 is left out")
	case err != nil:
		return nil, err
	default:
		figures, err := o.sessions(ctx, sessions)
		if err != nil {
			return nil, fmt.Errorf("sessions: %w", err)
		}
		t.Figures = append(t.Figures, figures...)
	}
	if t.Unseen, err = o.unseen(ctx); err != nil {
		return nil, fmt.Errorf("unseen: %w", err)
	}
	slices.SortStableFunc(t.Figures, func(a, b figure) int { return strings.Compare(order(a.Row), order(b.Row)) })
	return t, nil
}

// order makes a sort key of a row's name: 2 before 10, 19 before 19b.
func order(row string) string {
	digits := len(row) - len(strings.TrimLeft(row, "0123456789"))
	return fmt.Sprintf("%04s%s", row[:digits], row[digits:])
}

var files = map[string]string{
	"conv": "azure-llm-2023/AzureLLMInferenceTrace_conv.csv",
	"code": "azure-llm-2023/AzureLLMInferenceTrace_code.csv",
	"moon": "mooncake/conversation_trace.jsonl",
}

func (o *options) load(ctx context.Context, name string) (*score.Sample, error) {
	path := filepath.Join(o.traces, filepath.FromSlash(files[name]))
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	s, err := score.LoadFile(ctx, path)
	if err != nil {
		return nil, err
	}
	s = s.Dequantise(1)
	s.Name = name
	return s, nil
}

// loadSessions reads all sessions as one trace.
func (o *options) loadSessions(ctx context.Context) (*score.Sample, error) {
	paths, err := filepath.Glob(filepath.Join(o.traces, "kv-cache-tester", "*.json"))
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 {
		return nil, os.ErrNotExist
	}
	var sources []traceformat.Source
	for _, p := range paths {
		r, err := traceformat.Open(p)
		if err != nil {
			return nil, err
		}
		sources = append(sources, traceformat.Source{Name: filepath.Base(p), Reader: r})
	}
	r, err := traceformat.Merge(sources...)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	s, err := score.Load(ctx, r)
	if err != nil {
		return nil, err
	}
	s.Name = "sessions"
	return s, nil
}

// A generator makes the synthetic trace of one seed.
type generator func(ctx context.Context, seed uint64) (*score.Sample, error)

// each runs measure on a trace of every seed, on all processors; seeds keep
// their order in the values.
func (o *options) each(ctx context.Context, generate generator, measure func(values, *score.Sample)) (values, error) {
	all := make([]values, o.seeds)
	errs := make([]error, o.seeds)
	var wg sync.WaitGroup
	slots := make(chan struct{}, runtime.GOMAXPROCS(0))
	for seed := range o.seeds {
		slots <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-slots }()
			s, err := generate(ctx, uint64(seed)+1)
			if err != nil {
				errs[seed] = err
				return
			}
			all[seed] = values{}
			measure(all[seed], s)
		})
	}
	wg.Wait()
	if err := errors.Join(append(errs, ctx.Err())...); err != nil {
		return nil, err
	}
	merged := values{}
	for _, v := range all {
		for key, x := range v {
			merged[key] = append(merged[key], x...)
		}
	}
	return merged, nil
}

// fitted returns a generator of the model that is fitted to train, for the
// window of test: its horizon and, where scale is set, its mean rate.
func fitted(ctx context.Context, train, test *score.Sample, kind string, scale bool) (generator, *synth.Model, error) {
	m, err := fit(ctx, train, kind)
	if err != nil {
		return nil, nil, err
	}
	g := synth.GenOptions{Duration: duration(test.Horizon)}
	if scale {
		g.Rate = test.Rate() / train.Rate()
		// The stretch that follows the one it learnt from.
		g.From = duration(m.Horizon)
	}
	return func(ctx context.Context, seed uint64) (*score.Sample, error) {
		o := g
		o.Seed = seed
		s, err := m.Sample(ctx, o)
		if err == nil {
			s.Horizon = test.Horizon
		}
		return s, err
	}, m, nil
}

// add makes a figure of the values under key.
func (c *trace) add(v values, key, row, metric, protocol, model string, l limit, floor string) {
	median, lo, hi, n := v.median(key)
	f := figure{Row: row, Metric: metric, Protocol: protocol, Trace: c.name, Model: model,
		Value: score.Number(median), Min: score.Number(lo), Max: score.Number(hi), Seeds: n,
		Low: score.Number(l.low), High: score.Number(l.high), Floor: floor, Verdict: "fail"}
	switch {
	case math.IsNaN(median):
		f.Verdict = "no data"
	case l.keeps(median):
		f.Verdict = "pass"
	}
	c.figures = append(c.figures, f)
}
