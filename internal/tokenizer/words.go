package tokenizer

import "strings"

// A Word is one token of text that stays one token, with the same id, wherever
// it stands among other Words.
type Word struct {
	ID   uint32
	Text string // a space and ASCII letters
	// Bare reports whether the word is one token without its space too, where
	// nothing, a special token or a line break comes before it. Under a chat
	// template that trims messages, begin each with such a word.
	Bare bool
}

// Words returns at most n words of the vocabulary, by id; all if n is 0 or less.
//
// Any text made of them has exactly as many tokens as words, and a longer one
// begins with the tokens of a shorter one that it begins with. So a prompt of N
// tokens that shares its first M with another is a matter of choosing words. It
// holds because every known split pattern cuts before a space that a letter
// follows and after a letter that a space follows: each word goes through the
// merges alone, where Words has seen it come out as one token. ASCII is its own
// normal form, and words in which an added token of letters could match are
// left out.
func (t *Tokenizer) Words(n int) []Word {
	bad := t.lettersAdded()
	var words []Word
	var ids []uint32
	one := func(text string) bool {
		ids = t.Encode(ids[:0], text, Options{})
		return len(ids) == 1
	}
	for id, s := range t.tokens {
		letters, ok := strings.CutPrefix(s, " ")
		if !ok || !isLetters(letters) || t.added[uint32(id)] || containsAny(letters, bad) {
			continue
		}
		if !one(s) || ids[0] != uint32(id) {
			continue // reachable by no merges, so text never gives it
		}
		words = append(words, Word{ID: uint32(id), Text: s, Bare: one(letters)})
		if len(words) == n {
			break
		}
	}
	return words
}

// lettersAdded returns pieces that no word may contain, one for each added token
// of spaces and letters alone, which could match across words. A match takes in
// every run of letters of the token, so that leaving out the words with one of
// them is enough. Tokens of a single space are in every word, those of several
// in no text of words.
func (t *Tokenizer) lettersAdded() []string {
	var bad []string
	for id := range t.added {
		s := t.tokens[id]
		longest := ""
		for f := range strings.FieldsSeq(s) {
			if len(f) > len(longest) {
				longest = f
			}
		}
		if isLetters(strings.ReplaceAll(s, " ", "")) {
			bad = append(bad, longest)
		}
	}
	return bad
}

func isLetters(s string) bool {
	for i := range len(s) {
		if c := s[i] | 0x20; c < 'a' || c > 'z' {
			return false
		}
	}
	return s != ""
}

func containsAny(s string, subs []string) bool {
	for _, sub := range subs {
		if strings.Contains(s, sub) {
			return true
		}
	}
	return false
}
