package cli

import (
	"encoding/json"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"golang.org/x/term"
)

// IsTerminal reports whether w is a terminal that a person watches.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Columns is the width of the terminal behind w, or def where w is none.
func Columns(w io.Writer, def int) int {
	if f, ok := w.(*os.File); ok {
		if cols, _, err := term.GetSize(int(f.Fd())); err == nil && cols > 0 {
			return cols
		}
	}
	return def
}

// WriteJSON writes v as --json does everywhere: one indented object, keys in
// the order of the fields, map keys sorted.
func WriteJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// A Table lines up rows of cells. A column whose cells all begin with a digit,
// a sign or "-" is aligned to the right.
type Table struct {
	Head []string // may be empty
	rows [][]string
}

// Row adds a row.
func (t *Table) Row(cells ...string) { t.rows = append(t.rows, cells) }

// Write prints the table, indented by indent.
func (t *Table) Write(w io.Writer, indent string) error {
	var width []int
	var text []bool
	rows := t.rows
	for _, r := range rows {
		for i, c := range r {
			if i == len(width) {
				width, text = append(width, 0), append(text, false)
			}
			width[i] = max(width[i], utf8.RuneCountInString(c))
			text[i] = text[i] || c != "" && !strings.ContainsRune("+-.0123456789", rune(c[0]))
		}
	}
	if len(t.Head) > 0 {
		rows = append([][]string{t.Head}, rows...)
		for i, c := range t.Head {
			if i == len(width) {
				width, text = append(width, 0), append(text, true)
			}
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	var b strings.Builder
	for _, r := range rows {
		var line strings.Builder
		line.WriteString(indent)
		for i, c := range r {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(c))
			if i > 0 {
				line.WriteString("  ")
			}
			if text[i] {
				line.WriteString(c + pad)
			} else {
				line.WriteString(pad + c)
			}
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}
