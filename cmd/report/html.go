package main

import (
	"bytes"
	"context"
	"io"
	"os"

	ucli "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/report"
	"reprise/report/html"
)

func htmlFlag() ucli.Flag {
	return &ucli.StringFlag{Name: "html", Usage: "write `FILE`, one page with charts that loads nothing, - for standard output"}
}

// writeTo writes what render makes to the file that a flag names, whole or not
// at all. onStdout says that standard output is taken.
func writeTo(c *ucli.Context, flag string, render func(io.Writer) error) (onStdout bool, err error) {
	name := c.String(flag)
	if name == "" {
		return false, nil
	}
	var b bytes.Buffer
	if err := render(&b); err != nil {
		return false, err
	}
	if name == "-" {
		_, err := c.App.Writer.Write(b.Bytes())
		return true, err
	}
	return false, os.WriteFile(name, b.Bytes(), 0o644)
}

// oneStdout refuses flags that would all write to standard output.
func oneStdout(c *ucli.Context, flags ...string) error {
	taken := ""
	for _, f := range flags {
		if f == "json" && c.Bool(f) || f != "json" && c.String(f) == "-" {
			if taken != "" {
				return cli.Usagef("name a file for one of them", "--%s and --%s both write to standard output", taken, f)
			}
			taken = f
		}
	}
	return nil
}

// pageOf writes a comparison as a page.
func pageOf(ctx context.Context, w io.Writer, f *report.Family, checks [][]report.Check) error {
	ps, err := f.Profiles(ctx)
	if err != nil {
		return err
	}
	return html.WriteFamily(w, f, checks, ps)
}
