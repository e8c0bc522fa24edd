package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"unicode/utf8"
)

// A vocabulary is half a million small strings. These walk over it without
// holding it twice, and let the caller stop at a limit; encoding/json checks
// the syntax before and decodes what is small.

// valid reports whether data may be walked over. The reference refuses what is
// not UTF-8, so a guess at its meaning would have nothing to agree with.
func valid(data []byte) error {
	if !utf8.Valid(data) {
		return errors.New("not UTF-8")
	}
	if !json.Valid(data) {
		var v any
		return json.Unmarshal(data, &v) // says where
	}
	return nil
}

// members yields the names and values of a JSON object, in order.
func members(raw []byte) (iter.Seq2[string, []byte], error) {
	if len(raw) == 0 || raw[0] != '{' {
		return nil, fmt.Errorf("%s, want an object", kind(raw))
	}
	return func(yield func(string, []byte) bool) {
		for i := skipSpace(raw, 1); raw[i] != '}'; {
			name := value(raw, i)
			i = skipSpace(raw, i+len(name)) + 1 // the colon
			i = skipSpace(raw, i)
			v := value(raw, i)
			s, _ := text(name)
			if !yield(s, v) {
				return
			}
			if i = skipSpace(raw, i+len(v)); raw[i] == ',' {
				i = skipSpace(raw, i+1)
			}
		}
	}, nil
}

// elements yields the values of a JSON array.
func elements(raw []byte) (iter.Seq[[]byte], error) {
	if len(raw) == 0 || raw[0] != '[' {
		return nil, fmt.Errorf("%s, want an array", kind(raw))
	}
	return func(yield func([]byte) bool) {
		for i := skipSpace(raw, 1); raw[i] != ']'; {
			v := value(raw, i)
			if !yield(v) {
				return
			}
			if i = skipSpace(raw, i+len(v)); raw[i] == ',' {
				i = skipSpace(raw, i+1)
			}
		}
	}, nil
}

// text decodes a JSON string; ok is false if raw is none.
func text(raw []byte) (s string, ok bool) {
	if len(raw) < 2 || raw[0] != '"' {
		return "", false
	}
	if bytes.IndexByte(raw, '\\') < 0 {
		return string(raw[1 : len(raw)-1]), true
	}
	return s, json.Unmarshal(raw, &s) == nil
}

// kind names a value for an error.
func kind(raw []byte) string {
	switch {
	case len(raw) == 0:
		return "absent"
	case len(raw) > 40:
		return string(raw[:1]) + "..."
	}
	return string(raw)
}

func skipSpace(raw []byte, i int) int {
	for raw[i] == ' ' || raw[i] == '\t' || raw[i] == '\n' || raw[i] == '\r' {
		i++
	}
	return i
}

// value returns the value that begins at i, which is no white space.
func value(raw []byte, i int) []byte {
	depth := 0
	for j := i; j < len(raw); j++ {
		switch raw[j] {
		case '"':
			for j++; raw[j] != '"'; j++ {
				if raw[j] == '\\' {
					j++
				}
			}
			if depth == 0 {
				return raw[i : j+1]
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return raw[i:j] // a number, true, false or null before it
			}
			if depth--; depth == 0 {
				return raw[i : j+1]
			}
		case ',', ':', ' ', '\t', '\n', '\r':
			if depth == 0 {
				return raw[i:j]
			}
		}
	}
	return raw[i:]
}
