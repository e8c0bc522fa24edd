package traceformat

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "rewrite the generated parts of FORMAT.md")

// exampleRow is what the hex in FORMAT.md shows.
func exampleRow() *Row {
	return &Row{
		Request: Request{ID: 1, Arrival: 1500, Model: "m", PromptTokens: Some[int32](300), Temperature: Some(0.5), PrefixBlocks: []uint64{1<<64 - 1}},
		Outcome: Outcome{ChunkTimes: []time.Duration{100, 150}, ChunkTokens: []int32{1, 1}},
	}
}

// generated returns the parts of FORMAT.md that follow from the code, by name.
func generated() map[string]string {
	var cols strings.Builder
	cols.WriteString("| column | type | null | field | meaning |\n| --- | --- | --- | --- | --- |\n")
	for _, c := range columns {
		null := "yes"
		if c.required {
			null = "no"
		}
		fmt.Fprintf(&cols, "| `%s` | %s | %s | %d | %s |\n", c.name, c.typ, null, c.tag, c.doc)
	}
	var keys strings.Builder
	keys.WriteString("| key | meaning |\n| --- | --- |\n")
	for _, k := range headerKeys {
		fmt.Fprintf(&keys, "| `%s%s` | %s |\n", keyPrefix, k.name, k.doc)
	}
	raw := appendCut(nil, appendFields(nil, exampleRow()))
	return map[string]string{
		"columns": cols.String(),
		"keys":    keys.String(),
		"row":     "```\n" + hex.Dump(raw) + "```\n",
	}
}

// TestFormatPage keeps FORMAT.md true: its tables and bytes are those of the
// code.
func TestFormatPage(t *testing.T) {
	b, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	for name, want := range generated() {
		start, end := "<!-- begin "+name+" -->\n", "<!-- end "+name+" -->"
		i := strings.Index(page, start)
		j := strings.Index(page, end)
		if i < 0 || j < i {
			t.Fatalf("FORMAT.md has no part %q", name)
		}
		i += len(start)
		if got := page[i:j]; got != want {
			if *update {
				page = page[:i] + want + page[j:]
				continue
			}
			t.Errorf("part %q of FORMAT.md is out of date (go test -run FormatPage -update):\n%s\nwant:\n%s", name, got, want)
		}
	}
	if *update {
		if err := os.WriteFile("FORMAT.md", []byte(page), 0o666); err != nil {
			t.Fatal(err)
		}
	}
}

// The bytes that FORMAT.md explains one by one are those of the row.
func TestFormatPageFields(t *testing.T) {
	b, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), "<!-- begin fields -->\n")
	part, _, ok2 := strings.Cut(rest, "<!-- end fields -->")
	if !ok || !ok2 {
		t.Fatal("FORMAT.md explains no fields")
	}
	var got []byte
	for line := range strings.Lines(part) {
		x, err := hex.DecodeString(strings.ReplaceAll(line[4:34], " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, x...)
	}
	if want := appendCut(nil, appendFields(nil, exampleRow())); !bytes.Equal(got, want) {
		t.Errorf("FORMAT.md explains % x, the row is % x", got, want)
	}
}

// The journal of FORMAT.md is one that this package reads.
func TestFormatPageJournal(t *testing.T) {
	b, err := os.ReadFile("FORMAT.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(b), "<!-- begin journal -->\n```\n")
	dump, _, ok2 := strings.Cut(rest, "```")
	if !ok || !ok2 {
		t.Fatal("FORMAT.md has no journal")
	}
	var journal []byte
	for line := range strings.Lines(dump) {
		if len(line) < 60 {
			continue // the offset that ends a dump
		}
		x, err := hex.DecodeString(strings.ReplaceAll(line[10:58], " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		journal = append(journal, x...)
	}
	rec := &journalContent{sorter: newSorter("", sortMemory)}
	if err := rec.scan(bytes.NewReader(journal), int64(len(journal))); err != nil {
		t.Fatal(err)
	}
	if !rec.Complete || rec.Rows != 1 || !rec.Header {
		t.Errorf("the journal of FORMAT.md: %+v, want it complete with one row", rec.Recovery)
	}
	for row := range rec.sorter.rows() {
		if got, want := string(row.AppendJSON(nil)), string(exampleRow().AppendJSON(nil)); got != want {
			t.Errorf("the journal of FORMAT.md holds %s, want %s", got, want)
		}
	}
}
