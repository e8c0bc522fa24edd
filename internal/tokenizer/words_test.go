package tokenizer

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// Any words in any order are as many tokens, the ones they say they are; so are
// they after and before what chat templates put around a message, and the first
// may go without its space if it is Bare.
func TestWordsAreStable(t *testing.T) {
	for _, shape := range shapes {
		tok := load(t, shape)
		words := tok.Words(0)
		bare := slices.DeleteFunc(slices.Clone(words), func(w Word) bool { return !w.Bare })
		t.Logf("%s: %d words, %d of them bare", shape, len(words), len(bare))
		if len(words) < 300 || len(bare) < 100 {
			t.Errorf("%s: %d words, %d bare: too few to write prompts with", shape, len(words), len(bare))
		}
		befores := []string{"", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "\n", "user\n"}
		if shape != "gpt2" {
			// GPT-2's pattern cuts several line breaks by what follows them.
			befores = append(befores, "\n\n", "\r\n", ".\n\n")
		}
		afters := []string{"", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "\n", "\n\n", "\r\n", " ", "."}
		rapid.Check(t, func(r *rapid.T) {
			chosen := rapid.SliceOfN(rapid.SampledFrom(words), 1, 200).Draw(r, "words")
			before := rapid.SampledFrom(befores).Draw(r, "before")
			after := rapid.SampledFrom(afters).Draw(r, "after")
			var want []uint32
			var text strings.Builder
			for _, w := range chosen {
				want = append(want, w.ID)
				text.WriteString(w.Text)
			}
			s := text.String()
			if rapid.Bool().Draw(r, "trimmed") {
				w := rapid.SampledFrom(bare).Draw(r, "first")
				first := tok.Encode(nil, w.Text[1:], Options{})
				if len(first) != 1 {
					r.Fatalf("%q is %d tokens without its space, but Bare", w.Text, len(first))
				}
				want, s = append(first, want...), w.Text[1:]+s
			}
			if got := tok.Encode(nil, s, Options{}); !slices.Equal(got, want) {
				r.Fatalf("%s: Encode(%q)\n got %d\nwant %d", shape, s, got, want)
			}
			if n := tok.Count(s); n != len(want) {
				r.Fatalf("%s: Count(%q) = %d, want %d", shape, s, n, len(want))
			}
			got := tok.Encode(nil, before+s+after, Options{})
			i := tok.Count(before)
			if len(got) != i+len(want)+tok.Count(after) || !slices.Equal(got[i:i+len(want)], want) {
				r.Fatalf("%s: Encode(%q)\n got %d\nwant %d inside", shape, before+s+after, got, want)
			}
		})
	}
}

func TestWordsInOrder(t *testing.T) {
	tok := load(t, "llama3")
	all := tok.Words(0)
	if some := tok.Words(50); !slices.Equal(some, all[:50]) {
		t.Errorf("Words(50) is not the beginning of Words(0)")
	}
	if !slices.IsSortedFunc(all, func(a, b Word) int { return int(a.ID) - int(b.ID) }) {
		t.Errorf("words are not in the order of their ids")
	}
	for _, w := range all {
		if strings.Trim(w.Text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") != " " {
			t.Errorf("word %q", w.Text)
		}
	}
}

// Added tokens of letters and spaces could match inside words and across them.
func TestWordsKeepClearOfAddedTokens(t *testing.T) {
	for _, content := range []string{"hello", "s a", "e ", " t", "n th", "  ", " ", "elf"} {
		tok, err := parse(edit(t, "gpt2", `"content":"hello"`, `"content":"`+content+`"`))
		if err != nil {
			t.Fatal(err)
		}
		words := tok.Words(0)
		if content != " " && len(words) < 50 {
			t.Errorf("%q added: %d words are left", content, len(words))
		}
		h := newHostile(1)
		for range 20 {
			h.Shuffle(len(words), func(i, j int) { words[i], words[j] = words[j], words[i] })
			var text strings.Builder
			for _, w := range words {
				text.WriteString(w.Text)
			}
			if n := tok.Count(text.String()); n != len(words) {
				t.Fatalf("%q added: %d words are %d tokens", content, len(words), n)
			}
		}
	}
}

// Of two tokens with one text, the word is the one that the text gives.
func TestWordsWithOneText(t *testing.T) {
	s := smallSections
	s[7] = `"th":256,"the":257,"Ġthe":258," the":259`
	s[0], s[4] = "[]", "null"
	tok, err := parse([]byte(smallFile(s)))
	if err != nil {
		t.Fatal(err)
	}
	var got []uint32
	for _, w := range tok.Words(0) {
		got = append(got, w.ID)
	}
	if want := []uint32{258}; !slices.Equal(got, want) {
		t.Errorf("words %d, want %d", got, want)
	}
}
