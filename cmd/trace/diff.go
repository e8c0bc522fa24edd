package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"

	ucli "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/internal/traceout"
	"reprise/internal/units"
	"reprise/traceformat"
)

func diffCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "diff",
		Usage:     "compare two traces, row by row or as workloads",
		UsageText: "trace diff FILE FILE [flags]",
		Description: `Diff joins two traces on id and lap and says which columns differ, in how many rows,
and which rows are in one trace alone. Differences between the headers are listed and do
not count.

With --workload it compares what two traces ask of a server, whatever their rows: arrivals,
burstiness, lengths and how they depend on each other, prefix reuse, sessions, and what a
prefill queue makes of them. The first trace is the reference. Every distance stands beside
the same distance between parts of the reference, and limits never ask for less than that.
Ticks of a coarse clock are spread. --html and --svg add pictures.

Examples:
  trace diff before.parquet after.parquet
  trace diff run-a/ run-b/ --columns prompt_digest,served_output_tokens
  trace diff monday.parquet tuesday.parquet --workload --html diff.html

Exit status is 0 if the rows are equal, or the workloads within every limit, 1 if they
differ or cannot be read, 2 for a usage error, 130 if interrupted.`,
		Flags: append(readFlags(),
			&ucli.StringFlag{Name: "columns", Usage: "compare these `NAMES` alone, comma-separated"},
			&ucli.StringFlag{Name: "ignore", Usage: "leave these `NAMES` out, comma-separated"},
			&ucli.IntFlag{Name: "n", Value: 10, Usage: "list the first `N` rows that differ"},
			&ucli.BoolFlag{Name: "workload", Usage: "compare distributions, burstiness, reuse and queues in place of rows"},
			&ucli.BoolFlag{Name: "markdown", Usage: "with --workload, print Markdown"},
			&ucli.StringFlag{Name: "html", Usage: "with --workload, write table and pictures to `FILE`"},
			&ucli.StringFlag{Name: "svg", Usage: "with --workload, write each picture to `DIR`"},
			&ucli.BoolFlag{Name: "force", Usage: "replace the files of --html and --svg if they exist"},
			cli.JSONFlag()),
		Action: cli.Action(func(ctx context.Context, c *ucli.Context) error {
			names, err := arguments(c, 2, 2)
			if err != nil {
				return err
			}
			if c.Bool("workload") {
				return diffWorkload(ctx, c, names)
			}
			for _, f := range []string{"markdown", "html", "svg", "force"} {
				if c.IsSet(f) {
					return cli.Usagef("trace diff A B --workload --"+f, "--%s is for --workload", f)
				}
			}
			if names[0] == "-" && names[1] == "-" {
				return cli.Usagef("", "standard input cannot be both traces")
			}
			if c.Int("n") < 0 {
				return cli.Usagef("", "-n %d: want 0 or more", c.Int("n"))
			}
			columns, err := columnList(c.String("columns"))
			if err != nil {
				return err
			}
			ignore, err := columnList(c.String("ignore"))
			if err != nil {
				return err
			}
			a, err := open(c, names[0])
			if err != nil {
				return err
			}
			defer a.Close()
			b, err := open(c, names[1])
			if err != nil {
				return err
			}
			defer b.Close()
			d := &differ{names: [2]string{names[0], names[1]}, columns: columns, ignore: ignore, most: c.Int("n")}
			if err := d.run(ctx, a, b); err != nil {
				return err
			}
			write := d.writeText
			if c.Bool("json") {
				write = func(w io.Writer) error { return cli.WriteJSON(w, d.result) }
			}
			if err := write(c.App.Writer); err != nil {
				return err
			}
			if !d.result.Equal {
				return &cli.Error{Code: cli.Failed}
			}
			return nil
		}),
	}
}

// A difference is the result of a diff, as --json prints it.
type difference struct {
	A       string       `json:"a"`
	B       string       `json:"b"`
	Equal   bool         `json:"equal"` // every row, in the columns compared
	RowsA   int64        `json:"rows_a"`
	RowsB   int64        `json:"rows_b"`
	Both    int64        `json:"rows_in_both"`
	Differ  int64        `json:"rows_that_differ"`
	OnlyA   int64        `json:"rows_only_in_a"`
	OnlyB   int64        `json:"rows_only_in_b"`
	Header  []change     `json:"header,omitempty"`
	Columns []columnDiff `json:"columns,omitempty"`
	Rows    []rowDiff    `json:"rows,omitempty"` // the first that differ
}

type columnDiff struct {
	Column string `json:"column"`
	Rows   int64  `json:"rows"`
}

// A rowDiff is one row that differs, or is in one trace alone.
type rowDiff struct {
	ID      int64    `json:"id"`
	Lap     int64    `json:"lap,omitempty"`
	Only    string   `json:"only,omitempty"` // "a" or "b"
	Changes []change `json:"changes,omitempty"`
}

// A change is a value in both traces; null is unknown.
type change struct {
	Name string          `json:"name"`
	A    json.RawMessage `json:"a"`
	B    json.RawMessage `json:"b"`
}

type rowKey struct {
	id  int64
	lap int32
}

// maxPending bounds the bytes of rows that wait for their partner. Two traces
// in the same order need next to nothing; two runs need what was in flight.
const maxPending = 256 << 20

// A differ joins two traces in one pass over both.
type differ struct {
	names           [2]string
	columns, ignore []string
	most            int
	pending         [2]map[rowKey][]byte
	bytes           int
	counts          map[string]int64
	result          difference
}

func (d *differ) run(ctx context.Context, a, b traceformat.Reader) error {
	d.pending = [2]map[rowKey][]byte{{}, {}}
	d.counts = map[string]int64{}
	nextA, stopA := iter.Pull2(a.All())
	defer stopA()
	nextB, stopB := iter.Pull2(b.All())
	defer stopB()
	seen := [2]*int64{&d.result.RowsA, &d.result.RowsB}
	next := [2]func() (*traceformat.Row, error, bool){nextA, nextB}
	open := [2]bool{true, true}
	for n := 0; open[0] || open[1]; n++ {
		if n%traceout.Every == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		for side := range next {
			if !open[side] {
				continue
			}
			row, err, ok := next[side]()
			if err != nil {
				return err
			}
			if !ok {
				open[side] = false
				continue
			}
			*seen[side]++
			if err := d.add(side, row); err != nil {
				return err
			}
		}
	}
	d.finish()
	return d.headers(a.Header(), b.Header())
}

// add matches a row with its partner or lets it wait.
func (d *differ) add(side int, row *traceformat.Row) error {
	key := rowKey{row.ID, row.Lap}
	other := d.pending[1-side]
	if partner, ok := other[key]; ok {
		delete(other, key)
		d.bytes -= len(partner)
		mine := row.AppendJSON(nil)
		if side == 0 {
			return d.compare(key, mine, partner)
		}
		return d.compare(key, partner, mine)
	}
	if _, ok := d.pending[side][key]; ok {
		return fmt.Errorf("%s: id %d, lap %d is there twice, and rows are joined on it", d.names[side], key.id, key.lap)
	}
	object := row.AppendJSON(nil)
	d.pending[side][key] = object
	if d.bytes += len(object); d.bytes > maxPending {
		return fmt.Errorf("%d rows of %s and %d of %s have no partner so far: these are not the same requests, or they are in very different orders",
			len(d.pending[0]), d.names[0], len(d.pending[1]), d.names[1])
	}
	return nil
}

func (d *differ) compared(column string) bool {
	return (d.columns == nil || slices.Contains(d.columns, column)) && !slices.Contains(d.ignore, column)
}

func (d *differ) compare(key rowKey, a, b []byte) error {
	d.result.Both++
	if bytes.Equal(a, b) {
		return nil
	}
	namesA, valuesA, err := fields(a)
	if err != nil {
		return err
	}
	namesB, valuesB, err := fields(b)
	if err != nil {
		return err
	}
	var changes []change
	note := func(name string, va, vb json.RawMessage) {
		if d.compared(name) && !bytes.Equal(va, vb) {
			d.counts[name]++
			changes = append(changes, change{name, orNull(va), orNull(vb)})
		}
	}
	for i, n := range namesA {
		var vb json.RawMessage
		if j := slices.Index(namesB, n); j >= 0 {
			vb = valuesB[j]
		}
		note(n, valuesA[i], vb)
	}
	for i, n := range namesB {
		if !slices.Contains(namesA, n) {
			note(n, nil, valuesB[i])
		}
	}
	if len(changes) > 0 {
		d.result.Differ++
		if len(d.result.Rows) < d.most {
			d.result.Rows = append(d.result.Rows, rowDiff{ID: key.id, Lap: int64(key.lap), Changes: changes})
		}
	}
	return nil
}

func orNull(v json.RawMessage) json.RawMessage {
	if v == nil {
		return json.RawMessage("null")
	}
	return v
}

// finish counts what found no partner.
func (d *differ) finish() {
	r := &d.result
	r.A, r.B = d.names[0], d.names[1]
	r.OnlyA, r.OnlyB = int64(len(d.pending[0])), int64(len(d.pending[1]))
	for side, only := range []string{"a", "b"} {
		keys := make([]rowKey, 0, len(d.pending[side]))
		for k := range d.pending[side] {
			keys = append(keys, k)
		}
		slices.SortFunc(keys, func(x, y rowKey) int { return cmp.Or(cmp.Compare(x.id, y.id), cmp.Compare(x.lap, y.lap)) })
		for _, k := range keys[:min(len(keys), max(0, d.most-len(r.Rows)))] {
			r.Rows = append(r.Rows, rowDiff{ID: k.id, Lap: int64(k.lap), Only: only})
		}
	}
	for _, n := range traceformat.ColumnNames() {
		if d.counts[n] > 0 {
			r.Columns = append(r.Columns, columnDiff{n, d.counts[n]})
		}
	}
	r.Equal = r.Differ+r.OnlyA+r.OnlyB == 0
}

// headers lists what the headers say differently.
func (d *differ) headers(a, b *traceformat.Header) error {
	var flat [2]map[string]json.RawMessage
	for i, h := range []*traceformat.Header{a, b} {
		data, err := json.Marshal(h)
		if err != nil {
			return err
		}
		flat[i] = map[string]json.RawMessage{}
		flatten("", data, flat[i])
	}
	var keys []string
	for _, m := range flat {
		for k := range m {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range slices.Compact(keys) {
		if va, vb := flat[0][k], flat[1][k]; !bytes.Equal(va, vb) {
			d.result.Header = append(d.result.Header, change{k, orNull(va), orNull(vb)})
		}
	}
	return nil
}

// flatten names the leaves of a JSON object by their path.
func flatten(prefix string, v json.RawMessage, into map[string]json.RawMessage) {
	var object map[string]json.RawMessage
	if v[0] != '{' || json.Unmarshal(v, &object) != nil {
		into[prefix] = v
		return
	}
	if prefix != "" {
		prefix += "."
	}
	for k, sub := range object {
		flatten(prefix+k, sub, into)
	}
}

func (d *differ) writeText(w io.Writer) error {
	r := &d.result
	var b strings.Builder
	t := cli.Table{}
	t.Row("a", traceout.Rows(r.RowsA), r.A)
	t.Row("b", traceout.Rows(r.RowsB), r.B)
	if err := t.Write(&b, ""); err != nil {
		return err
	}
	for _, h := range r.Header {
		fmt.Fprintf(&b, "header %s: %s -> %s\n", h.Name, shorten(string(h.A), 60), shorten(string(h.B), 60))
	}
	if r.Equal {
		b.WriteString("all rows are equal\n")
	} else {
		fmt.Fprintf(&b, "%s of %s in both differ; %s are only in a, %s only in b\n",
			units.Count(r.Differ), traceout.Rows(r.Both), units.Count(r.OnlyA), units.Count(r.OnlyB))
	}
	if len(r.Columns) > 0 {
		t := cli.Table{Head: []string{"column", "rows"}}
		for _, c := range r.Columns {
			t.Row(c.Column, units.Count(c.Rows))
		}
		if err := t.Write(&b, "  "); err != nil {
			return err
		}
	}
	for _, row := range r.Rows {
		fmt.Fprintf(&b, "id %d", row.ID)
		if row.Lap != 0 {
			fmt.Fprintf(&b, " lap %d", row.Lap)
		}
		if row.Only != "" {
			fmt.Fprintf(&b, ": only in %s\n", row.Only)
			continue
		}
		b.WriteByte('\n')
		for _, c := range row.Changes {
			fmt.Fprintf(&b, "  %s: %s -> %s\n", c.Name, shorten(string(c.A), 60), shorten(string(c.B), 60))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
