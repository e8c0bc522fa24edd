package proxylog

import (
	"bytes"

	"reprise/capture"
)

// A tabled parser reads logs whose lines are JSON objects, or rows of CSV, by a
// table of keys. What is particular to a dialect hangs in its hooks.
type tabled struct {
	assembler
	table *table
	csv   *columns // nil: JSON
	rec   record
	out   capture.Logged
	cap   Capability

	// skip says why a record is no request; empty: it is one.
	skip func(*record) string
	// fix puts right what the rules for all dialects do not know.
	fix func(*record, *capture.Logged)
}

// newTabled makes a parser and checks that the sample can be read with what the
// options say. hooks may set what the parser's own methods need before that.
func newTabled(s *Sample, a assembler, keys []key, hooks func(*tabled)) (*tabled, error) {
	t := &tabled{assembler: a, table: newTable(keys)}
	if s.CSV != nil {
		t.csv = newColumns(t.table, s.CSV, ',')
	}
	if hooks != nil {
		hooks(t)
	}
	p := newProbed()
	for _, b := range s.Records {
		var r record
		if t.fields(b, &r) == nil && (t.skip == nil || t.skip(&r) == "") {
			p.add(&r)
		}
	}
	t.cap = p.capability(&t.assembler)
	return t, p.check(a.o)
}

func (t *tabled) fields(rec []byte, r *record) error {
	if t.csv != nil {
		return t.csv.row(rec, r)
	}
	return t.table.object(rec, r)
}

func (t *tabled) Capability() Capability { return t.cap }

func (t *tabled) Parse(rec []byte, e *Emitter) error {
	t.rec.reset()
	if err := t.fields(rec, &t.rec); err != nil {
		return err
	}
	return t.take(&t.rec, e)
}

// take makes a request of a record that was read.
func (t *tabled) take(r *record, e *Emitter) error {
	if t.skip != nil {
		if reason := t.skip(r); reason != "" {
			e.Drop(reason, 1)
			return nil
		}
	}
	t.out = capture.Logged{}
	reason, err := t.request(r, &t.out)
	switch {
	case err != nil:
		return err
	case reason != "":
		e.Drop(reason, 1)
		return nil
	}
	if t.fix != nil {
		t.fix(r, &t.out)
	}
	e.Record(&t.out)
	return nil
}

func (t *tabled) Flush(*Emitter) {}

// Columns read rows of CSV by the table of the JSON of the same dialect: a
// column is a key, and JSON in a column is descended into.
type columns struct {
	table   *table
	nodes   []*node
	comma   byte
	fields  [][]byte
	scratch []byte
}

func newColumns(t *table, names []string, comma byte) *columns {
	c := &columns{table: t, comma: comma}
	for _, name := range names {
		n := t.root
		for _, part := range splitPath(name) {
			n = t.step(n, part)
			if n == nil {
				break
			}
		}
		c.nodes = append(c.nodes, n)
	}
	return c
}

// step finds the node below n of that name, or nil.
func (t *table) step(n *node, name string) *node { return t.find(n, []byte(name)) }

func (c *columns) row(rec []byte, r *record) (err error) {
	c.fields, c.scratch, err = splitCSV(c.fields[:0], rec, c.scratch[:0], c.comma)
	switch {
	case err != nil:
		return err
	case len(c.fields) != len(c.nodes):
		return errShort
	}
	for i, v := range c.fields {
		n := c.nodes[i]
		if n == nil || len(v) == 0 {
			continue
		}
		if n.bind != nil {
			r.put(n.bind, v, false)
		}
		if (n.sub != nil || n.each != nil) && (v[0] == '{' || v[0] == '[') {
			c.table.text(bytes.Clone(v), n, r, 0)
		}
	}
	return nil
}
