package tokenizer

import (
	"slices"
	"sync"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// nfc normalizes s to form C as the reference does. It cannot leave that to
// norm.NFC, which differs in two ways: it puts U+034F into runs of more than 30
// marks (Stream-Safe Text), and it knows marks that were added to Unicode after
// version 9, which the reference takes for ordinary characters.
//
// What norm calls normal is so for the reference too: with fewer marks known,
// fewer sequences are out of order and fewer compose.
func nfc(s string) string {
	if norm.NFC.IsNormalString(s) {
		return s
	}
	out := make([]rune, 0, len(s))
	for _, r := range s {
		out = decompose(out, r)
	}
	order(out)
	return string(compose(out))
}

// Hangul syllables are composed by arithmetic: Unicode 16, section 3.12.
const (
	hangulS, hangulL, hangulV, hangulT     = 0xac00, 0x1100, 0x1161, 0x11a7
	hangulLs, hangulVs, hangulTs, hangulSs = 19, 21, 28, 19 * 21 * 28
)

func decompose(out []rune, r rune) []rune {
	if r >= hangulS && r < hangulS+hangulSs {
		i := r - hangulS
		out = append(out, hangulL+i/(hangulVs*hangulTs), hangulV+i/hangulTs%hangulVs)
		if t := i % hangulTs; t > 0 {
			out = append(out, hangulT+t)
		}
		return out
	}
	if r < utf8.RuneSelf || later(r) {
		return append(out, r)
	}
	var b [utf8.UTFMax]byte
	d := norm.NFD.Properties(b[:utf8.EncodeRune(b[:], r)]).Decomposition()
	if d == nil {
		return append(out, r)
	}
	for _, r := range string(d) {
		out = append(out, r)
	}
	return out
}

// marks are the combining classes of the characters that have one.
var marks = sync.OnceValue(func() map[rune]uint8 {
	m := map[rune]uint8{}
	for lo, hi := range runeRanges(nonstarters) {
		for r := lo; r <= hi; r++ {
			m[r] = norm.NFC.PropertiesString(string(r)).CCC()
		}
	}
	return m
})

var composites = sync.OnceValue(func() map[rune]bool {
	m := map[rune]bool{}
	for lo, hi := range runeRanges(highComposites) {
		for r := lo; r <= hi; r++ {
			m[r] = true
		}
	}
	return m
})

// later reports whether r is a composite that the reference does not know. All
// that came after its Unicode lie in the blocks of scripts beyond the basic
// plane.
func later(r rune) bool { return r >= 0x10000 && r < 0x1d000 && !composites()[r] }

// order sorts each run of marks by combining class.
func order(rs []rune) {
	ccc := marks()
	byClass := func(a, b rune) int { return int(ccc[a]) - int(ccc[b]) }
	for i := 0; i < len(rs); {
		j := i
		for j < len(rs) && ccc[rs[j]] > 0 {
			j++
		}
		if j-i > 1 {
			slices.SortStableFunc(rs[i:j], byClass)
		}
		i = j + 1
	}
}

// compose joins each character with the starter before it where nothing of the
// same or a higher class stands between, in place.
func compose(rs []rune) []rune {
	ccc := marks()
	out := rs[:0]
	starter, last := -1, uint8(0) // index in out; class of the last kept after it
	for _, r := range rs {
		c := ccc[r]
		if starter >= 0 && (last < c || starter == len(out)-1) {
			if p, ok := composed(out[starter], r); ok {
				out[starter] = p
				continue
			}
		}
		if c == 0 {
			starter, last = len(out), 0
		} else {
			last = c
		}
		out = append(out, r)
	}
	return out
}

// composed returns the primary composite of two characters.
func composed(a, b rune) (rune, bool) {
	if a >= hangulL && a < hangulL+hangulLs && b >= hangulV && b < hangulV+hangulVs {
		return hangulS + ((a-hangulL)*hangulVs+b-hangulV)*hangulTs, true
	}
	if a >= hangulS && a < hangulS+hangulSs && (a-hangulS)%hangulTs == 0 && b > hangulT && b < hangulT+hangulTs {
		return a + b - hangulT, true
	}
	if norm.NFC.PropertiesString(string(b)).BoundaryBefore() {
		return 0, false // most characters: they join nothing on their left
	}
	s := norm.NFC.String(string([]rune{a, b}))
	r, n := utf8.DecodeRuneInString(s)
	return r, n == len(s) && !later(r)
}
