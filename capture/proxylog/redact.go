package proxylog

import "unicode/utf8"

// shapeLen bounds a sample.
const shapeLen = 160

// Shape shows what a line looks like and nothing of what it says: every letter
// becomes a, every digit 0, everything else beyond ASCII punctuation and spaces
// a question mark, and it is cut.
func Shape(line []byte) string {
	out := make([]byte, 0, min(len(line), shapeLen)+3)
	for len(line) > 0 {
		if len(out) >= shapeLen {
			return string(append(out, "..."...))
		}
		r, n := utf8.DecodeRune(line)
		line = line[n:]
		switch {
		case r >= '0' && r <= '9':
			out = append(out, '0')
		case r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z':
			out = append(out, 'a')
		case r >= ' ' && r < 0x7f:
			out = append(out, byte(r))
		default:
			out = append(out, '?')
		}
	}
	return string(out)
}
