package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	ucli "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/internal/traceout"
	"reprise/internal/units"
	"reprise/traceformat"
)

func headCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "head",
		Usage:     "print the first rows",
		UsageText: "trace head FILE [flags]",
		Description: `Head prints the first rows as a table of the columns that hold something, lists by
their length. With --json each row is a JSON object on a line of its own, with every
column that is known, times in nanoseconds.

Examples:
  trace head trace.parquet
  trace head trace.parquet -n 3 --json
  trace head run/ --columns id,scheduled_ns,sent_ns,ttft_ns`,
		Flags: append(readFlags(),
			&ucli.IntFlag{Name: "n", Value: 10, Usage: "print `N` rows, 0 for all"},
			&ucli.StringFlag{Name: "columns", Usage: "print these `NAMES`, comma-separated"},
			cli.JSONFlag()),
		Action: cli.Action(head),
	}
}

func head(ctx context.Context, c *ucli.Context) error {
	names, err := arguments(c, 1, 1)
	if err != nil {
		return err
	}
	most := c.Int("n")
	if most < 0 {
		return cli.Usagef("", "-n %d: want 0 or more", most)
	}
	columns, err := columnList(c.String("columns"))
	if err != nil {
		return err
	}
	r, err := open(c, names[0])
	if err != nil {
		return err
	}
	defer r.Close()
	out := bufio.NewWriter(c.App.Writer)
	table := &rowTable{columns: columns}
	n := 0
	var buf []byte
	for row, err := range r.All() {
		if err != nil {
			return err
		}
		if n%traceout.Every == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		n++
		buf = row.AppendJSON(buf[:0])
		if !c.Bool("json") {
			if err := table.add(buf); err != nil {
				return err
			}
		} else if err := writeRow(out, buf, columns); err != nil {
			return err
		}
		// A table is laid out by its widest cells, so that its rows are held;
		// a long one is laid out anew every so often.
		if len(table.rows) == traceout.Every {
			if err := table.write(out, cli.Columns(c.App.Writer, 0)); err != nil {
				return err
			}
		}
		if n == most {
			break
		}
	}
	if n == 0 && !c.Bool("json") {
		if _, err := fmt.Fprintln(out, "no rows"); err != nil {
			return err
		}
	}
	if err := table.write(out, cli.Columns(c.App.Writer, 0)); err != nil {
		return err
	}
	return out.Flush()
}

// columnList reads a list of column names; nil is all.
func columnList(list string) ([]string, error) {
	if list == "" {
		return nil, nil
	}
	names := strings.Split(list, ",")
	for i, n := range names {
		names[i] = strings.TrimSpace(n)
		if !slices.Contains(traceformat.ColumnNames(), names[i]) {
			return nil, cli.Usagef("the columns are "+strings.Join(traceformat.ColumnNames(), ", "), "no column is called %q", names[i])
		}
	}
	return names, nil
}

// fields splits the JSON object of a row into its columns, in order.
func fields(object []byte) (names []string, values []json.RawMessage, err error) {
	dec := json.NewDecoder(bytes.NewReader(object))
	if _, err := dec.Token(); err != nil {
		return nil, nil, err
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return nil, nil, err
		}
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			return nil, nil, err
		}
		names, values = append(names, key.(string)), append(values, v)
	}
	return names, values, nil
}

// writeRow writes a row as a line of JSON, of the wanted columns alone.
func writeRow(w io.Writer, object []byte, columns []string) error {
	if columns != nil {
		names, values, err := fields(object)
		if err != nil {
			return err
		}
		object = []byte("{")
		for _, c := range columns {
			if i := slices.Index(names, c); i >= 0 {
				if len(object) > 1 {
					object = append(object, ',')
				}
				object = strconv.AppendQuote(object, c)
				object = append(append(object, ':'), values[i]...)
			}
		}
		object = append(object, '}')
	}
	_, err := w.Write(append(object, '\n'))
	return err
}

// A rowTable lays out rows for a person.
type rowTable struct {
	columns []string // wanted, nil for those that hold something
	rows    []map[string]string
	blocks  int // tables written so far
}

func (t *rowTable) add(object []byte) error {
	names, values, err := fields(object)
	if err != nil {
		return err
	}
	row := map[string]string{}
	for i, n := range names {
		row[n] = cell(n, values[i])
	}
	t.rows = append(t.rows, row)
	return nil
}

// cell is a value for a person: times with their unit, lists by their length.
func cell(column string, v json.RawMessage) string {
	switch {
	case v[0] == '[':
		n := 0
		if len(v) > 2 {
			n = bytes.Count(v, []byte(",")) + 1
		}
		return fmt.Sprintf("[%d]", n)
	case strings.HasSuffix(column, "_ns"):
		ns, err := strconv.ParseInt(string(v), 10, 64)
		if err != nil {
			return string(v)
		}
		if column == "arrival_ns" {
			return strconv.FormatFloat(float64(ns)/1e9, 'f', 6, 64)
		}
		return units.Duration(time.Duration(ns))
	case v[0] == '"':
		var s string
		if json.Unmarshal(v, &s) != nil {
			return string(v)
		}
		if strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) {
			s = strconv.Quote(s) // a name must not write on the terminal
		}
		return shorten(s, 24)
	case v[0] == '{':
		return shorten(string(v), 40)
	}
	return string(v)
}

func shorten(s string, most int) string {
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	return string([]rune(s)[:most-3]) + "..."
}

// write prints and forgets the rows. What does not fit into width columns of a
// terminal (0: no terminal) is left out and named.
func (t *rowTable) write(w io.Writer, width int) error {
	if len(t.rows) == 0 {
		return nil
	}
	columns := t.columns
	if columns == nil {
		for _, n := range traceformat.ColumnNames() {
			if slices.ContainsFunc(t.rows, func(r map[string]string) bool { return r[n] != "" && (n != "lap" || r[n] != "0") }) {
				columns = append(columns, n)
			}
		}
	}
	columns, rest := t.fit(columns, width)
	tbl := cli.Table{}
	for _, n := range columns {
		tbl.Head = append(tbl.Head, heading(n))
	}
	for _, r := range t.rows {
		cells := make([]string, len(columns))
		for i, n := range columns {
			cells[i] = r[n]
		}
		tbl.Row(cells...)
	}
	if t.blocks > 0 {
		fmt.Fprintln(w)
	}
	t.blocks++
	t.rows = t.rows[:0]
	if err := tbl.Write(w, ""); err != nil || len(rest) == 0 {
		return err
	}
	_, err := fmt.Fprintf(w, "and %s: --columns picks, --json prints all\n", strings.Join(rest, ", "))
	return err
}

// fit splits columns into those that fit into width, the first in any case, and
// the rest.
func (t *rowTable) fit(columns []string, width int) (shown, rest []string) {
	used := -2
	for i, n := range columns {
		widest := len(heading(n))
		for _, r := range t.rows {
			widest = max(widest, utf8.RuneCountInString(r[n]))
		}
		used += 2 + widest
		if width > 0 && i > 0 && used > width {
			return columns[:i], columns[i:]
		}
	}
	return columns, nil
}

// heading is the name of a column over cells that carry their own unit.
func heading(column string) string {
	if column == "arrival_ns" {
		return "arrival_s"
	}
	return strings.TrimSuffix(column, "_ns")
}
