// Trace inspects, checks, converts, cuts, joins and compares traces of LLM
// traffic, in any format that this project reads.
package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	ucli "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/synth"
	"reprise/traceformat"
	_ "reprise/traceformat/convert" // registers the public formats
)

// A model is a trace wherever one is read: model:NAME.
func init() { synth.Register() }

func main() { os.Exit(cli.Main(app(), os.Args, os.Stdout, os.Stderr)) }

func app() *ucli.App {
	return &ucli.App{
		Name:      "trace",
		UsageText: "trace COMMAND FILE... [flags]",
		Description: `Trace inspects, checks, converts, cuts, joins and compares traces of LLM traffic.

A FILE is a trace in any known format, told by its content, plain or packed with gzip or
zstd; a run directory; a folder of files in hour=.../ folders or a quoted pattern such as
'day=*/*.parquet', which are one trace; or - for standard input. trace COMMAND --help says
more.

Known formats: ` + wrapNames(traceformat.Formats()) + `

Examples:
  trace info trace.parquet
  trace convert AzureLLMInferenceTrace_conv.csv -o conv.parquet
  trace slice conv.parquet --start 10m --duration 5m -o cut.parquet
  trace export cut.parquet --to mooncake -o - | head -1

Exit status is 0 if done, 1 if a trace is damaged, invalid or different, 2 for a usage
error, 130 if interrupted.`,
		Commands: []*ucli.Command{
			infoCommand(), headCommand(), validateCommand(), convertCommand(), exportCommand(),
			sliceCommand(), mergeCommand(), recoverCommand(), diffCommand(), fetchCommand(), copyCommand(),
		},
	}
}

// wrapNames lists names on lines of a help text.
func wrapNames(names []string) string {
	lines, line := []string{}, ""
	for _, n := range names {
		if len(line)+len(n) > 68 {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += n
	}
	return strings.Join(append(lines, line), "\n               ")
}

// readFlags say how to read a trace.
func readFlags() []ucli.Flag {
	return []ucli.Flag{
		&ucli.StringFlag{Name: "format", Aliases: []string{"from"}, Usage: "the traces are in format `NAME` (told by content)"},
		&ucli.StringFlag{Name: "lengths", Usage: "prompt lengths of later turns are `RULE`: cumulative or incremental"},
		&ucli.BoolFlag{Name: "dequantise", Usage: "spread arrivals that share a tick of a coarse clock over it"},
		&ucli.StringSliceFlag{Name: "param", Usage: "tell the format `KEY=VALUE`, such as seed=1 or block_size=512"},
	}
}

// writeFlags say where to write a trace.
func writeFlags() []ucli.Flag {
	return []ucli.Flag{
		&ucli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write to `FILE`, or - for standard output"},
		&ucli.BoolFlag{Name: "force", Usage: "replace FILE if it exists"},
	}
}

// readOptions turns readFlags into options.
func readOptions(c *ucli.Context) ([]traceformat.ReadOption, error) {
	var opts []traceformat.ReadOption
	if f := c.String("format"); f != "" {
		opts = append(opts, traceformat.WithFormat(f))
	}
	if c.Bool("dequantise") {
		opts = append(opts, traceformat.Dequantise())
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

// open opens the trace called name as the flags say.
func open(c *ucli.Context, name string, more ...traceformat.ReadOption) (traceformat.Reader, error) {
	opts, err := readOptions(c)
	if err != nil {
		return nil, err
	}
	r, err := traceformat.Open(name, append(opts, more...)...)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: no such file", name)
	}
	if err != nil {
		return nil, err
	}
	if traceformat.Native(r) && c.Bool("dequantise") {
		r.Close()
		return nil, cli.Usagef("trace convert SOURCE --dequantise -o FILE", "%s: Parquet traces stand as recorded; --dequantise is for the source", name)
	}
	return r, nil
}

// arguments checks that the command got from least to most files (-1: any
// number).
func arguments(c *ucli.Context, least, most int) ([]string, error) {
	n := c.NArg()
	what := "one trace"
	if least == 2 {
		what = "two traces"
	}
	switch {
	case n == 0:
		return nil, cli.Usagef(c.Command.HelpName+" --help", "%s: which trace?", c.Command.Name)
	case n < least || most >= 0 && n > most:
		return nil, cli.Usagef(c.Command.HelpName+" --help", "%s takes %s and got %d", c.Command.Name, what, n)
	}
	return c.Args().Slice(), nil
}
