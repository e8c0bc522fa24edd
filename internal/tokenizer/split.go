package tokenizer

import (
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

// The split patterns that files ask for by their text. Each has a scanner
// below, since Go's regexp has no lookahead; a scanner takes a non-empty s and
// i < len(s) and returns where the match that begins at i ends. Every pattern
// matches something at every position.
const (
	gpt2Pattern   = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
	llama3Pattern = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	qwen2Pattern  = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
)

var splitters = map[string]func(s string, i int) int{
	gpt2Pattern:   splitGPT2,
	llama3Pattern: func(s string, i int) int { return splitCL100K(s, i, 3) },
	qwen2Pattern:  func(s string, i int) int { return splitCL100K(s, i, 1) },
}

// class is what the patterns tell apart.
type class uint8

const (
	other class = iota // [^\s\p{L}\p{N}]
	letter
	number
	space   // \s but for the next
	newline // [\r\n]
	end     // past the end of the text
)

func (c class) blank() bool { return c == space || c == newline }

// classes says for each code point of the basic plane, and by ranges beyond.
type classes struct {
	basic [0x10000]class
	high  []classRange // in order
}

type classRange struct {
	lo, hi rune
	class  class
}

var classTable = sync.OnceValue(func() *classes {
	t := new(classes)
	for _, set := range []struct {
		ranges string
		class  class
	}{{letters, letter}, {numbers, number}, {spaces, space}, {"a d", newline}} {
		for lo, hi := range runeRanges(set.ranges) {
			for r := lo; r <= min(hi, 0xffff); r++ {
				t.basic[r] = set.class
			}
			if hi > 0xffff {
				t.high = append(t.high, classRange{max(lo, 0x10000), hi, set.class})
			}
		}
	}
	slices.SortFunc(t.high, func(a, b classRange) int { return int(a.lo - b.lo) })
	return t
})

// runeRanges yields the bounds of each range of a string of tables.go.
func runeRanges(s string) func(yield func(lo, hi rune) bool) {
	return func(yield func(lo, hi rune) bool) {
		for f := range strings.FieldsSeq(s) {
			a, b, isRange := strings.Cut(f, "-")
			if !isRange {
				b = a
			}
			lo, err1 := strconv.ParseInt(a, 16, 32)
			hi, err2 := strconv.ParseInt(b, 16, 32)
			if err1 != nil || err2 != nil {
				panic("tokenizer: tables.go: bad range " + f)
			}
			if !yield(rune(lo), rune(hi)) {
				return
			}
		}
	}
}

var ascii = func() (t [utf8.RuneSelf]class) {
	for r := range t {
		switch c := byte(r); {
		case c|0x20 >= 'a' && c|0x20 <= 'z':
			t[r] = letter
		case c >= '0' && c <= '9':
			t[r] = number
		case c == '\n' || c == '\r':
			t[r] = newline
		case c == ' ' || c >= '\t' && c <= '\r':
			t[r] = space
		}
	}
	return t
}()

// at returns the class and the length of the character at i.
func at(s string, i int) (class, int) {
	if i >= len(s) {
		return end, 0
	}
	if c := s[i]; c < utf8.RuneSelf {
		return ascii[c], 1
	}
	r, n := utf8.DecodeRuneInString(s[i:])
	return classTable().of(r), n
}

func (t *classes) of(r rune) class {
	if r < 0x10000 {
		return t.basic[r]
	}
	i, _ := slices.BinarySearchFunc(t.high, r, func(g classRange, r rune) int { return int(g.hi - r) })
	if i < len(t.high) && t.high[i].lo <= r {
		return t.high[i].class
	}
	return other
}

// run returns where the run of class c that includes i ends.
func run(s string, i int, c class) int {
	for {
		k, n := at(s, i)
		if k != c {
			return i
		}
		i += n
	}
}

func splitGPT2(s string, i int) int {
	if s[i] == '\'' {
		if n := contraction(s[i+1:], false); n > 0 {
			return i + 1 + n
		}
	}
	c, n := at(s, i)
	if s[i] == ' ' {
		if next, m := at(s, i+1); next == letter || next == number || next == other {
			return run(s, i+1+m, next)
		}
	}
	if c.blank() {
		stop, last, _ := blanks(s, i)
		return beforeWord(s, i, stop, last)
	}
	return run(s, i+n, c)
}

// splitCL100K is the pattern of tiktoken's cl100k_base, which Llama-3 took over
// and Qwen2 changed to one digit a token.
func splitCL100K(s string, i, digits int) int {
	if s[i] == '\'' {
		if n := contraction(s[i+1:], true); n > 0 {
			return i + 1 + n
		}
	}
	c, n := at(s, i)
	switch c {
	case letter:
		return run(s, i+n, letter)
	case number:
		for range digits {
			k, n := at(s, i)
			if k != number {
				break
			}
			i += n
		}
		return i
	}
	next, m := at(s, i+n)
	if next == letter && c != newline {
		return run(s, i+n+m, letter)
	}
	if c == other || s[i] == ' ' && next == other {
		return run(s, run(s, i+n, other), newline)
	}
	stop, last, newlines := blanks(s, i)
	if newlines > 0 {
		return newlines // \s*[\r\n]+ gives back what follows the last one
	}
	return beforeWord(s, i, stop, last)
}

// contraction returns the length of what follows the apostrophe in 's, 't, 're,
// 've, 'm, 'll or 'd, 0 if it is none of them. Of the letters, s alone has a
// case variant that is not ASCII.
func contraction(s string, fold bool) int {
	lower := func(i int) byte {
		switch {
		case i >= len(s):
			return 0
		case fold && s[i] >= 'A' && s[i] <= 'Z':
			return s[i] | 0x20
		}
		return s[i]
	}
	switch a, b := lower(0), lower(1); {
	case a == 's', a == 't', a == 'm', a == 'd':
		return 1
	case a == 'r' && b == 'e', a == 'v' && b == 'e', a == 'l' && b == 'l':
		return 2
	case fold && strings.HasPrefix(s, "ſ"):
		return len("ſ")
	}
	return 0
}

// blanks looks at the run of white space at i: where it ends, where its last
// character begins, and where its last line break ends (0 without one).
func blanks(s string, i int) (stop, last, newlines int) {
	for {
		c, n := at(s, i)
		if !c.blank() {
			return i, last, newlines
		}
		last = i
		i += n
		if c == newline {
			newlines = i
		}
	}
}

// beforeWord is \s+(?!\S)|\s+: the last space of a run goes with the word that
// follows, unless it is all there is.
func beforeWord(s string, i, stop, last int) int {
	if stop == len(s) || last == i {
		return stop
	}
	return last
}
