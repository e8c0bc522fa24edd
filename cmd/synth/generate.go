package main

import (
	"context"
	"strconv"
	"time"

	ucli "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/internal/traceout"
	"reprise/synth"
	"reprise/traceformat"
)

// specFlags describe a workload without a model. Their names are the keys of
// replay --synthetic.
func specFlags() []ucli.Flag {
	var flags []ucli.Flag
	for _, k := range synth.SpecKeys() {
		usage := "`" + "VALUE` without a model: " + k.Usage
		if k.Name == "rate" {
			usage += "; with one, scale its rate to so many requests a second"
		}
		flags = append(flags, &ucli.StringFlag{Name: k.Name, Usage: usage})
	}
	return flags
}

func generateCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "generate",
		Usage:     "write a trace from a model, a mix of models or a description",
		UsageText: "synth generate [MODEL] -o FILE [flags]",
		Description: `Generate writes a new trace as Parquet: from a model file, from a model that ships
(model:NAME, see synth models), from several (--mix), or from a description in flags alone.
The same seed gives the same file. Memory does not grow with the length.

--scale-rate adds independent copies of the traffic, twice the sessions rather than the same
ones twice as fast. --rate scales the model's own rate in place. The factors ask what if:
prompts 1.5 times as long, half the reuse, twice the swings of the rate.

Examples:
  synth generate model.json -o new.parquet --duration 1h --seed 1
  synth generate model:azure-conv --scale-rate 2 --duration 10m -o - | replay -
  synth generate --mix chat.json:0.7,code.json:0.3 --rate 20 -o mixed.parquet
  synth generate --rate 20 --arrival gamma:cv=2 --prompt-tokens lognormal:512,0.8 --output-tokens fixed:128 --duration 5m -o made.parquet

Exit status is 0 if done, 1 if it failed, 2 for a usage error, 130 if interrupted.`,
		Flags: append([]ucli.Flag{
			&ucli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write to `FILE`, or - for standard output"},
			&ucli.BoolFlag{Name: "force", Usage: "replace FILE if it exists"},
			&ucli.DurationFlag{Name: "duration", Usage: "`TIME` that the trace lasts", DefaultText: "as long as the model's source"},
			&ucli.DurationFlag{Name: "from", Usage: "begin `TIME` after the start of what the model has learnt"},
			&ucli.Int64Flag{Name: "rows", Usage: "end after `N` rows"},
			&ucli.Uint64Flag{Name: "seed", Value: 1, Usage: "`N` that all draws come from"},
			&ucli.StringFlag{Name: "start", Usage: "the trace starts at `TIME` (RFC 3339)"},
			&ucli.Float64Flag{Name: "scale-rate", Value: 1, Usage: "superpose `N` independent copies of the traffic"},
			&ucli.StringFlag{Name: "mix", Usage: "models and their shares of the requests, `A.json:0.7,B.json:0.3`"},
			&ucli.StringFlag{Name: "order", Usage: "play a profile `ORDER`: recorded or resampled", DefaultText: "as the model says"},
			&ucli.Float64Flag{Name: "prompts", Value: 1, Usage: "prompts `N` times as long"},
			&ucli.Float64Flag{Name: "outputs", Value: 1, Usage: "outputs `N` times as long"},
			&ucli.Float64Flag{Name: "reuse", Value: 1, Usage: "`N` times the share of requests that continue earlier ones"},
			&ucli.Float64Flag{Name: "bursts", Value: 1, Usage: "`N` times the deviations of the rate from its mean"},
			&ucli.StringFlag{Name: "save-model", Usage: "also write the model that was made of the flags to `FILE`"},
		}, specFlags()...),
		Action: cli.Action(generate),
	}
}

func generate(ctx context.Context, c *ucli.Context) error {
	out, err := traceout.NativeTarget(c)
	if err != nil {
		return err
	}
	if save := c.String("save-model"); save != "" {
		if save == out {
			return cli.Usagef("", "-o and --save-model name one file")
		}
		if err := traceout.CheckTarget(save, c.Bool("force")); err != nil {
			return err
		}
	}
	o, err := genOptions(c)
	if err != nil {
		return err
	}
	m, err := chosenModel(c, o)
	if err != nil {
		return err
	}
	g, err := m.Generate(*o)
	if err != nil {
		return cli.Usagef("synth generate --help", "%w", err)
	}
	defer g.Close()
	if save := c.String("save-model"); save != "" {
		if err := writeModel(c, save, m); err != nil {
			return err
		}
	}
	h := g.Header().Clone()
	h.Origin.Version = cli.Version()
	return traceout.Write(ctx, c, out, h, func(w *traceformat.Writer, p *traceout.Progress) error {
		return traceout.Copy(ctx, w, g.All(), p)
	})
}

// genOptions reads the flags that say what to generate of a model.
func genOptions(c *ucli.Context) (*synth.GenOptions, error) {
	o := &synth.GenOptions{
		Seed: c.Uint64("seed"), Duration: c.Duration("duration"), From: c.Duration("from"), Rows: c.Int64("rows"), ScaleRate: c.Float64("scale-rate"),
		Prompts: c.Float64("prompts"), Outputs: c.Float64("outputs"), Reuse: c.Float64("reuse"), Bursts: c.Float64("bursts"), Order: c.String("order"),
	}
	for _, f := range []string{"scale-rate", "prompts", "outputs", "reuse", "bursts"} {
		if v := c.Float64(f); !(v > 0) {
			return nil, cli.Usagef("", "--%s %g: want more than 0", f, v)
		}
	}
	if c.IsSet("duration") && o.Duration <= 0 || c.IsSet("rows") && o.Rows <= 0 {
		return nil, cli.Usagef("", "--duration and --rows: want more than 0")
	}
	if s := c.String("start"); s != "" {
		var err error
		if o.Start, err = time.Parse(time.RFC3339Nano, s); err != nil {
			return nil, cli.Usagef("", "--start %q: want a time such as 2024-05-01T00:00:00Z", s)
		}
	}
	if err := o.Validate(); err != nil {
		return nil, cli.Usagef("", "%w", err)
	}
	return o, nil
}

// chosenModel is the model that the command line means: a file, a mix or a
// description. --rate on a model sets o.Rate.
func chosenModel(c *ucli.Context, o *synth.GenOptions) (*synth.Model, error) {
	mix := c.String("mix")
	var keys [][2]string
	described := false
	for _, k := range synth.SpecKeys() {
		if c.IsSet(k.Name) {
			keys = append(keys, [2]string{k.Name, c.String(k.Name)})
			described = described || k.Name != "rate"
		}
	}
	source := c.NArg() == 1 || mix != ""
	switch {
	case c.NArg() > 1:
		return nil, cli.Usagef("synth generate --mix A.json:0.5,B.json:0.5", "generate takes one model and got %d", c.NArg())
	case c.NArg() == 1 && mix != "":
		return nil, cli.Usagef("", "a model and --mix: want one of them")
	case !source && len(keys) == 0:
		return nil, cli.Usagef("synth generate model:azure-conv -o new.parquet, or --rate 20 --prompt-tokens fixed:512 --output-tokens fixed:128", "generate: from what? a model, --mix, or --rate with lengths")
	case described && source:
		return nil, cli.Usagef("--prompts, --outputs, --reuse and --bursts are factors on what a model has", "--%s describes a workload, and a model has its own", firstOther(keys))
	case !source:
		return describedModel(keys)
	}
	if c.IsSet("save-model") && mix == "" {
		return nil, cli.Usagef("", "--save-model is for a mix or a workload described in flags: %s is a model already", c.Args().First())
	}
	read := func() (*synth.Model, error) { return openModel(c.Args().First()) }
	if mix != "" {
		read = func() (*synth.Model, error) { return mixedModel(mix) }
	}
	m, err := read()
	if err != nil {
		return nil, err
	}
	if r := c.String("rate"); r != "" {
		want, err := strconv.ParseFloat(r, 64)
		if err != nil || !(want > 0) {
			return nil, cli.Usagef("", "--rate %q: want requests a second", r)
		}
		if !(m.Rate() > 0) {
			return nil, cli.Usagef("", "the model has no rate that --rate could scale")
		}
		o.Rate = want / m.Rate()
	}
	return m, nil
}

// firstOther is the first key that only a description has.
func firstOther(keys [][2]string) string {
	for _, k := range keys {
		if k[0] != "rate" {
			return k[0]
		}
	}
	return ""
}
