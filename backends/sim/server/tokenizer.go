package server

import (
	"strconv"
	"strings"
)

// Ids from VocabLow to VocabEnd are words: a text of them reads back as the same
// ids. Answers are made of them.
const (
	VocabLow = 1000
	VocabEnd = 128000
)

// The vocabulary: bytes, then pairs of [a-z ] so that plain text costs about
// half a token a letter, then words " CVCVC" (consonant, vowel, ...), which are
// all six bytes long and start with the only space in them, so that any
// sequence of them reads back as itself. Special tokens lie above.
const (
	pairAlphabet = "abcdefghijklmnopqrstuvwxyz "
	firstPair    = 256
	firstWord    = firstPair + len(pairAlphabet)*len(pairAlphabet) // 985
	wordsEnd     = VocabEnd
	vocabEnd     = 128256 // with special tokens, as Llama 3

	tokenBOS         = 128000
	tokenStartHeader = 128006
	tokenEndHeader   = 128007
	tokenEOT         = 128009

	consonants = "bcdfghjklmnpqrstvwxz" // 20
	vowels     = "aeiou"                // 5
	wordLen    = 6
)

// wordID reads a word token at the start of s.
func wordID(s string) (uint32, bool) {
	if len(s) < wordLen || s[0] != ' ' {
		return 0, false
	}
	n := 0
	for i := 1; i < wordLen; i++ {
		set := consonants
		if i%2 == 0 {
			set = vowels
		}
		d := strings.IndexByte(set, s[i])
		if d < 0 {
			return 0, false
		}
		n = n*len(set) + d
	}
	if n += firstWord; n >= wordsEnd {
		return 0, false
	}
	return uint32(n), true
}

func appendWord(dst []byte, id uint32) []byte {
	n := int(id) - firstWord
	var w [wordLen]byte
	w[0] = ' '
	for i := wordLen - 1; i > 0; i-- {
		set := consonants
		if i%2 == 0 {
			set = vowels
		}
		w[i] = set[n%len(set)]
		n /= len(set)
	}
	return append(dst, w[:]...)
}

// Tokenize splits text from left to right into the longest token that fits: a
// word, a pair, a byte. Joining the tokens gives the text back.
func Tokenize(dst []uint32, text string) []uint32 {
	for i := 0; i < len(text); {
		if id, ok := wordID(text[i:]); ok {
			dst = append(dst, id)
			i += wordLen
			continue
		}
		// A pair must not swallow the space that starts a word.
		if i+1 < len(text) {
			a, b := strings.IndexByte(pairAlphabet, text[i]), strings.IndexByte(pairAlphabet, text[i+1])
			_, word := wordID(text[i+1:])
			if a >= 0 && b >= 0 && !word {
				dst = append(dst, uint32(firstPair+a*len(pairAlphabet)+b))
				i += 2
				continue
			}
		}
		dst = append(dst, uint32(text[i]))
		i++
	}
	return dst
}

// appendToken appends the text of one token.
func appendToken(dst []byte, id uint32) []byte {
	switch {
	case id < firstPair:
		return append(dst, byte(id))
	case id < uint32(firstWord):
		n := int(id) - firstPair
		return append(dst, pairAlphabet[n/len(pairAlphabet)], pairAlphabet[n%len(pairAlphabet)])
	case id < wordsEnd:
		return appendWord(dst, id)
	default:
		dst = append(dst, "<|special_"...)
		dst = strconv.AppendUint(dst, uint64(id), 10)
		return append(dst, "|>"...)
	}
}

// Detokenize joins the texts of tokens.
func Detokenize(ids []uint32) string {
	var b []byte
	for _, id := range ids {
		b = appendToken(b, id)
	}
	return string(b)
}

// A message is one turn of a chat.
type message struct {
	Role    string
	Content string
}

// tokenizeChat frames messages as Llama 3's template does, the answer's header
// last.
func tokenizeChat(msgs []message) []uint32 {
	ids := []uint32{tokenBOS}
	for _, m := range msgs {
		ids = append(ids, tokenStartHeader)
		ids = Tokenize(ids, m.Role)
		ids = append(ids, tokenEndHeader)
		ids = Tokenize(ids, m.Content)
		ids = append(ids, tokenEOT)
	}
	ids = append(ids, tokenStartHeader)
	ids = Tokenize(ids, "assistant")
	return append(ids, tokenEndHeader)
}
