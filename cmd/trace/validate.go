package main

import (
	"bufio"
	"errors"
	"fmt"

	ucli "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/internal/units"
	"reprise/traceformat"
)

func validateCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "validate",
		Usage:     "check a trace against every rule of the format",
		UsageText: "trace validate FILE [flags]",
		Description: `Validate checks every rule of the format and prints all violations with their rows:
order, ids, parents and turns, ranges, block ids against lengths, times against each
other, the counts of the header. A trace in a public format is checked as it would be
converted.

Examples:
  trace validate trace.parquet
  trace validate run/ --json

Exit status is 0 if the trace is valid, 1 if it is not or cannot be read, 2 for a usage
error, 130 if interrupted.`,
		Flags: append(readFlags(),
			&ucli.IntFlag{Name: "n", Value: 1000, Usage: "print the first `N` violations, 0 for all"},
			cli.JSONFlag()),
		// Nothing is written that an interrupt could leave behind, so that it may
		// end the program as it does by default.
		Action: validate,
	}
}

// A verdict is what validate --json prints.
type verdict struct {
	Name       string                  `json:"name"`
	Valid      bool                    `json:"valid"`
	Violations int64                   `json:"violations"`
	Rules      map[string]int64        `json:"rules"` // violations of each
	List       []traceformat.Violation `json:"list"`  // the first -n
	Notes      []traceformat.Violation `json:"notes,omitempty"`
}

func validate(c *ucli.Context) error {
	names, err := arguments(c, 1, 1)
	if err != nil {
		return err
	}
	most := c.Int("n")
	if most < 0 {
		return cli.Usagef("", "-n %d: want 0 or more", most)
	}
	r, err := open(c, names[0], traceformat.Ahead())
	if err != nil {
		return err
	}
	defer r.Close()
	out := bufio.NewWriter(c.App.Writer)
	v := verdict{Name: names[0], Rules: map[string]int64{}, List: []traceformat.Violation{}}
	asJSON := c.Bool("json")
	for f := range traceformat.Validate(r) {
		if f.Note {
			v.Notes = append(v.Notes, f)
			continue
		}
		v.Violations++
		v.Rules[f.Rule]++
		if most > 0 && v.Violations > int64(most) {
			continue
		}
		if asJSON {
			v.List = append(v.List, f)
		} else if _, err := fmt.Fprintln(out, f); err != nil {
			return err
		}
	}
	v.Valid = v.Violations == 0
	if asJSON {
		if err := cli.WriteJSON(out, v); err != nil {
			return err
		}
	} else {
		if left := v.Violations - int64(most); most > 0 && left > 0 {
			fmt.Fprintf(out, "and %s more: -n 0 prints all\n", units.Count(left))
		}
		for _, n := range v.Notes {
			fmt.Fprintf(out, "note: %s\n", n)
		}
		if v.Valid {
			fmt.Fprintf(out, "%s: valid\n", names[0])
		}
	}
	if err := out.Flush(); err != nil || v.Valid {
		return err
	}
	if v.Violations == 1 {
		err = errors.New("1 violation")
	} else {
		err = fmt.Errorf("%s violations", units.Count(v.Violations))
	}
	return fmt.Errorf("%s: %w", names[0], err)
}
