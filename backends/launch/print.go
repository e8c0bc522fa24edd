package launch

import (
	"strings"
	"unicode"
)

// Quoted is what a program printed, as it follows an error: each line on one of
// its own, without what moves a cursor.
func Quoted(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		b.WriteString("\n  | " + strings.TrimRight(strings.Map(printable, line), " "))
	}
	return b.String()
}

// printable keeps what moves no cursor.
func printable(c rune) rune {
	switch {
	case c == '\t':
		return ' '
	case !unicode.IsPrint(c):
		return -1
	}
	return c
}
