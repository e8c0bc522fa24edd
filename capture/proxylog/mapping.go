package proxylog

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"

	"reprise/traceformat"
)

// A Mapping says which column of a CSV file, or which key of JSON objects, holds
// what. It is read from YAML or JSON; docs/capturing.md is its reference.
type Mapping struct {
	Format    string `yaml:"format"`    // csv or jsonl; empty: told by the content
	Delimiter string `yaml:"delimiter"` // of CSV, "," unless said
	Vantage   string `yaml:"vantage"`   // client, proxy or server
	// Lengths and TTFT say where these were learnt: usage or engine, gateway or
	// engine.
	Lengths string `yaml:"lengths"`
	TTFT    string `yaml:"ttft"`
	// Fields maps names of fields to columns.
	Fields map[string]Column `yaml:"fields"`
	// Where keeps the records alone whose column has the value.
	Where map[string]string `yaml:"where"`
	// Block says what prefix_blocks are.
	BlockSize int32 `yaml:"block_size"`
}

// A Column is where a field stands and how it is spelt.
type Column struct {
	Columns []string // names; the first that has a value is taken
	Unit    string   // s, ms, us, ns, spelt, or of a time also iso, clf
	Layout  string   // of a time, as Go's package time writes layouts
}

// UnmarshalYAML reads a name, a list of names, or {column, columns, unit, layout}.
func (c *Column) UnmarshalYAML(b []byte) error {
	var name string
	if yaml.Unmarshal(b, &name) == nil {
		c.Columns = []string{name}
		return nil
	}
	var names []string
	if yaml.Unmarshal(b, &names) == nil {
		c.Columns = names
		return nil
	}
	var full struct {
		Column  string   `yaml:"column"`
		Columns []string `yaml:"columns"`
		Unit    string   `yaml:"unit"`
		Layout  string   `yaml:"layout"`
	}
	if err := yaml.UnmarshalWithOptions(b, &full, yaml.Strict()); err != nil {
		return err
	}
	c.Columns, c.Unit, c.Layout = full.Columns, full.Unit, full.Layout
	if full.Column != "" {
		c.Columns = append([]string{full.Column}, c.Columns...)
	}
	return nil
}

var units = map[string]unit{
	"": unitAuto, "auto": unitAuto, "s": unitSecond, "ms": unitMilli, "us": unitMicro, "µs": unitMicro, "ns": unitNano,
	"spelt": unitSpelt, "iso": unitISO, "rfc3339": unitISO, "clf": unitCLF,
}

// maxMapping bounds a mapping file.
const maxMapping = 1 << 20

// LoadMapping reads the mapping at path.
func LoadMapping(path string) (*Mapping, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("mapping %s: %w", path, pathless(err))
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxMapping))
	if err != nil {
		return nil, fmt.Errorf("mapping %s: %w", path, pathless(err))
	}
	m, err := ParseMapping(b)
	if err != nil {
		return nil, fmt.Errorf("mapping %s: %w", path, err)
	}
	return m, nil
}

// ParseMapping reads a mapping and reports every problem with it.
func ParseMapping(b []byte) (*Mapping, error) {
	m := &Mapping{}
	if err := yaml.UnmarshalWithOptions(b, m, yaml.Strict()); err != nil {
		return nil, errors.New(yaml.FormatError(err, false, false))
	}
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(slices.Contains([]string{"", "csv", "jsonl", "json"}, m.Format), "format %q, want csv or jsonl", m.Format)
	check(len(m.Delimiter) <= 1 || m.Delimiter == `\t`, "delimiter %q, want one character", m.Delimiter)
	check(slices.Contains([]string{"", "client", "proxy", "server"}, m.Vantage), "vantage %q, want client, proxy or server", m.Vantage)
	check(slices.Contains([]string{"", traceformat.SourceUsage, traceformat.SourceEngine}, m.Lengths), "lengths %q, want usage or engine", m.Lengths)
	check(slices.Contains([]string{"", traceformat.TTFTGateway, traceformat.TTFTEngine}, m.TTFT), "ttft %q, want gateway or engine", m.TTFT)
	for _, name := range sortedKeys(m.Fields) {
		c := m.Fields[name]
		f, known := fieldNames[name]
		check(known, "field %q, want one of %s", name, strings.Join(sortedKeys(fieldNames), ", "))
		check(len(c.Columns) > 0 && !slices.Contains(c.Columns, ""), "field %s: no column", name)
		u, ok := units[c.Unit]
		check(ok, "field %s: unit %q, want s, ms, us, ns, spelt, iso or clf", name, c.Unit)
		moment := f == fieldStart || f == fieldEnd || f == fieldFirst
		check(c.Layout == "" || known && moment, "field %s: a layout is for times", name)
		check(u != unitISO && u != unitCLF || moment, "field %s: %q is for times", name, c.Unit)
	}
	_, start := m.Fields["start"]
	_, end := m.Fields["end"]
	check(start || end, "neither start nor end is among the fields: when did requests come?")
	return m, errors.Join(errs...)
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (m *Mapping) comma() byte {
	switch m.Delimiter {
	case "":
		return ','
	case `\t`:
		return '\t'
	}
	return m.Delimiter[0]
}

// mappingDialect is what a mapping file describes.
var mappingDialect = &Dialect{
	Name: "mapping", Title: "CSV or JSON by a mapping file", Vantage: "proxy",
	Detect: func(*Sample) int { return 0 },
	New: func(s *Sample, o *Options) (Parser, error) {
		m := o.Mapping
		if m == nil {
			return nil, errors.New("--format mapping needs --mapping FILE")
		}
		a := newAssembler(o, or(m.Lengths, traceformat.SourceUsage), or(m.TTFT, traceformat.TTFTGateway))
		var keys []key
		for _, name := range sortedKeys(m.Fields) {
			c := m.Fields[name]
			u := units[c.Unit]
			if c.Layout != "" {
				u = unitLayout
			}
			for _, column := range c.Columns {
				keys = append(keys, key{columnPath(s, column), binding{field: fieldNames[name], unit: u, layout: c.Layout}})
			}
		}
		// Conditions stand in fields that no log has: one a condition.
		wheres := sortedKeys(m.Where)
		if len(wheres) > 1 {
			return nil, fmt.Errorf("where: one condition is possible, %d are given", len(wheres))
		}
		for _, column := range wheres {
			keys = append(keys, key{columnPath(s, column), binding{field: fieldKind}})
		}
		t, err := newTabled(s, a, keys, func(t *tabled) {
			if t.csv != nil {
				t.csv = newColumns(t.table, s.CSV, m.comma())
			}
			t.skip = func(r *record) string {
				for _, v := range m.Where {
					if r.text(fieldKind) != v {
						return reasonNotRequest
					}
				}
				return ""
			}
		})
		if t == nil {
			return nil, err
		}
		var blocks *traceformat.Blocks
		if m.BlockSize > 0 {
			blocks = &traceformat.Blocks{Size: m.BlockSize, Scheme: blockScheme, Scope: traceformat.ScopeGlobal}
		}
		return blockParser{t, blocks}, err
	},
}

// columnPath is the path of a column. In JSON a dot leads into an object, unless
// the sample has the whole name as a key.
func columnPath(s *Sample, column string) string {
	escaped := strings.ReplaceAll(column, ".", `\.`)
	if s.CSV != nil {
		return column
	}
	for _, o := range s.objects {
		if v, ok := o[escaped]; ok && v != "" {
			return escaped
		}
	}
	return column
}

func or(s, def string) string {
	if s == "" {
		return def
	}
	return s
}
