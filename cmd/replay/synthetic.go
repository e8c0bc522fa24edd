package main

import (
	"strings"

	urfave "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/synth"
	"reprise/traceformat"
)

// Names that begin with model: are traces that a model generates while it is
// read; nothing is written to disk.
func init() { synth.Register() }

// syntheticFlag describes traffic in place of a trace.
var syntheticFlag = &urfave.StringFlag{Name: "synthetic", Usage: "play made-up traffic in place of a trace: `KEYS` as of synth generate, such as rate=20,arrival=gamma:cv=2,prompt-tokens=lognormal:512,0.8,output-tokens=fixed:128"}

// traceName is the trace that the command line names.
func traceName(c *urfave.Context) (string, error) {
	keys := c.String("synthetic")
	switch {
	case c.IsSet("synthetic") && c.NArg() > 0:
		return "", cli.Usagef("", "--synthetic takes the place of a trace, and there is %s", c.Args().First())
	case c.IsSet("synthetic"):
		// The reader takes what follows a question mark for options of its own.
		if strings.Contains(keys, "?") {
			return "", cli.Usagef("", "--synthetic %q: a question mark is in no key or value", keys)
		}
		if _, err := synth.ParseSpec(keys); err != nil {
			return "", cli.Usagef("replay --synthetic 'rate=5,prompt-tokens=lognormal:512,0.8,output-tokens=fixed:128'", "--synthetic: %w", err)
		}
		return synth.SpecScheme + keys, nil
	case c.NArg() != 1:
		return "", cli.Usagef("replay trace.parquet --backend vllm --url http://127.0.0.1:8000; replay --help lists the flags",
			"want one trace, got %d arguments", c.NArg())
	}
	return c.Args().First(), nil
}

// generated tells a model how much of its traffic is going to be played: it
// goes on for as long as asked.
func generated(c *urfave.Context, trace string) []traceformat.ReadOption {
	d := c.Duration("duration")
	if d <= 0 || !strings.HasPrefix(trace, synth.Scheme) && !strings.HasPrefix(trace, synth.SpecScheme) {
		return nil
	}
	return []traceformat.ReadOption{traceformat.Param("duration", (c.Duration("start") + d).String())}
}
