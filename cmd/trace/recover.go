package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	ucli "github.com/urfave/cli/v2"

	"reprise/gpu"
	"reprise/internal/cli"
	"reprise/internal/traceout"
	"reprise/internal/units"
	"reprise/traceformat"
)

func recoverCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "recover",
		Usage:     "turn the journal of a recording that died into a trace",
		UsageText: "trace recover FILE|DIR [-o FILE] [flags]",
		Description: `Recover reads the journal that a recording or a run leaves behind when it is killed, and
writes the trace it would have become, sorted and marked as recovered. DIR is a run
directory. What is damaged is skipped and said; the journal is removed if nothing of it
was lost.

Examples:
  trace recover run/
  trace recover monday.parquet.journal
  trace recover monday.parquet.journal -o saved.parquet`,
		Flags: []ucli.Flag{
			&ucli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write to `FILE` (the name of the journal without .journal)"},
			&ucli.BoolFlag{Name: "force", Usage: "replace FILE if it exists"},
			cli.JSONFlag(),
		},
		Action: cli.Action(recoverTrace),
	}
}

const journalSuffix = ".journal"

// journalOf finds the journal that name stands for and the trace it is of.
func journalOf(name string) (journal, trace string, err error) {
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return "", "", fmt.Errorf("%s: no such file", name)
	} else if err != nil {
		return "", "", err
	}
	if !info.IsDir() {
		if trace, ok := strings.CutSuffix(name, journalSuffix); ok {
			return name, trace, nil
		}
		return name, "", nil
	}
	trace = filepath.Join(name, traceformat.RunTrace)
	journal = traceformat.JournalPath(trace)
	if _, err := os.Stat(journal); err != nil {
		if _, err := os.Stat(trace); err == nil {
			return "", "", fmt.Errorf("%s: %s is whole, there is nothing to recover", name, traceformat.RunTrace)
		}
		return "", "", fmt.Errorf("%s: holds no %s", name, filepath.Base(journal))
	}
	return journal, trace, nil
}

func recoverTrace(ctx context.Context, c *ucli.Context) error {
	names, err := arguments(c, 1, 1)
	if err != nil {
		return err
	}
	journal, out, err := journalOf(names[0])
	if err != nil {
		return err
	}
	if c.IsSet("output") {
		out = c.String("output")
	}
	switch {
	case out == "":
		return cli.Usagef("-o FILE", "recover: where to? the name does not end in %s", journalSuffix)
	case out == "-":
		return cli.Usagef("-o FILE", "recover writes a file")
	}
	if err := traceout.CheckTarget(out, c.Bool("force")); err != nil {
		return err
	}
	var opts []traceformat.WriteOption
	if c.Bool("force") {
		opts = append(opts, traceformat.Overwrite())
	}
	// The sort that this ends in cannot be stopped half way; it leaves the
	// journal as it is until the trace is whole.
	r, err := traceformat.Recover(journal, out, opts...)
	if err != nil {
		return err
	}
	samples, err := recoverTelemetry(c, names[0])
	if err != nil {
		return err
	}
	if c.Bool("json") {
		type damage struct {
			Offset int64  `json:"offset"`
			Bytes  int64  `json:"bytes"`
			Why    string `json:"why"`
		}
		result := struct {
			Journal  string   `json:"journal"`
			Output   string   `json:"output"`
			Rows     int64    `json:"rows"`
			Complete bool     `json:"complete"`
			Header   bool     `json:"header"`
			Lost     int64    `json:"lost_bytes"`
			Damage   []damage `json:"damage,omitempty"`
			Samples  int64    `json:"telemetry_samples,omitempty"`
		}{Samples: samples, Journal: journal, Output: out, Rows: r.Rows, Complete: r.Complete, Header: r.Header, Lost: r.Lost()}
		for _, d := range r.Damage {
			result.Damage = append(result.Damage, damage{d.Offset, d.Bytes, d.Err.Error()})
		}
		return cli.WriteJSON(c.App.Writer, result)
	}
	fmt.Fprintf(c.App.ErrWriter, "recovered %s to %s\n", traceout.Rows(r.Rows), out)
	if samples > 0 {
		fmt.Fprintf(c.App.ErrWriter, "recovered %s samples of telemetry beside it\n", units.Count(samples))
	}
	if !r.Header {
		fmt.Fprintln(c.App.ErrWriter, "the header is lost: what the trace says of its clock, blocks and lengths is unknown")
	}
	if len(r.Damage) > 0 {
		fmt.Fprintf(c.App.ErrWriter, "%s of the journal could not be read, and it was kept:\n", units.Bytes(r.Lost()))
	}
	for _, d := range r.Damage {
		fmt.Fprintf(c.App.ErrWriter, "  %v\n", d)
	}
	return nil
}

// recoverTelemetry saves the samples of a run directory, where it has a journal
// of them. A trace that goes elsewhere leaves them for a recovery in place.
func recoverTelemetry(c *ucli.Context, dir string) (samples int64, err error) {
	path := filepath.Join(dir, telemetryFile)
	if info, err := os.Stat(gpu.JournalPath(path)); err != nil || !info.Mode().IsRegular() || c.IsSet("output") {
		return 0, nil
	}
	if err := traceout.CheckTarget(path, c.Bool("force")); err != nil {
		return 0, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	r, err := gpu.Recover(gpu.JournalPath(path), path)
	if err != nil {
		return 0, err
	}
	return r.Samples, nil
}

// telemetryFile is where a run directory has its samples.
const telemetryFile = "telemetry.parquet"
