package launch

import "unicode"

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
