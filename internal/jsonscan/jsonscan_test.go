package jsonscan

import (
	"encoding/json"
	"testing"
)

// walk goes over an object and returns its names, guessing each by the list.
func walk(b []byte, likely [][]byte) (names []string, ok bool) {
	p := New(b)
	if !p.Enter('{') {
		return nil, false
	}
	for i := 0; ; i++ {
		var guess []byte
		if i < len(likely) {
			guess = likely[i]
		}
		name, more := p.KeyIs(guess)
		if !more {
			break
		}
		names = append(names, string(name))
		p.Skip()
	}
	p.Peek()
	return names, !p.Bad() && p.Rest() == 0
}

// FuzzWalk checks that a walk takes what encoding/json takes, but for nesting
// deeper than MaxDepth, and that guessing names changes nothing.
func FuzzWalk(f *testing.F) {
	for _, s := range []string{
		`{"a":1,"b":{"c":[true,null,"x\u0041"]}}`, `{"a" : 1}`, `{"a\"b":1}`, `{"":0}`, `{"a":1,}`, `{"a"1}`, `[1]`, `{"a":01}`, `{"a":"` + "\x01" + `"}`,
	} {
		f.Add([]byte(s), "a", "b")
	}
	f.Fuzz(func(t *testing.T, b []byte, one, two string) {
		plain, ok := walk(b, nil)
		var o map[string]json.RawMessage
		if valid := json.Unmarshal(b, &o) == nil && o != nil; ok != valid && !deep(b) {
			t.Fatalf("%q: taken %t, valid %t", b, ok, valid)
		}
		for _, guess := range []string{one, two} {
			for _, c := range guess {
				if c < ' ' || c == '"' || c == '\\' {
					return
				}
			}
		}
		guessed, ok2 := walk(b, [][]byte{[]byte(one), []byte(two)})
		if ok != ok2 || len(plain) != len(guessed) {
			t.Fatalf("%q: guessing %q, %q changes %q to %q", b, one, two, plain, guessed)
		}
		for i := range plain {
			if plain[i] != guessed[i] {
				t.Fatalf("%q: guessing %q, %q changes %q to %q", b, one, two, plain, guessed)
			}
		}
	})
}

func deep(b []byte) bool {
	depth := 0
	for _, c := range b {
		if c == '{' || c == '[' {
			depth++
		}
	}
	return depth > MaxDepth
}
