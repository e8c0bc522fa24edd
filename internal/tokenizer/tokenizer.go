// Package tokenizer counts and writes text in a model's own tokens, from the
// tokenizer.json that lies beside the model's weights.
//
// It reads the byte-level BPE family: the Llama-3, Qwen2, Qwen2.5, Qwen3 and
// GPT-2 split patterns, no normalizer or NFC, merges as strings or pairs,
// ignore_merges, added and special tokens, and a template of special tokens
// around the text. The ids are those of the Python package tokenizers 0.23.3,
// exactly, down to the version of Unicode that it uses. Whatever a file asks for
// beyond that is refused with an error wrapping [ErrUnsupported], never
// approximated: a count that is nearly right would be a wrong experiment.
//
// A [Tokenizer] is immutable but for a cache, and safe for concurrent use.
//
// # Text that is not UTF-8
//
// The reference takes valid text alone. Here each invalid byte counts as one
// U+FFFD, which is what encoding/json sends in its place.
//
// # Truncation and padding
//
// These sections of a file are ignored: serving engines switch both off before
// they encode a prompt.
package tokenizer

import (
	"strings"
	"unicode/utf8"
)

// A Tokenizer turns text into the ids of one vocabulary, and back.
type Tokenizer struct {
	tokens  []string // text of each id; "" where no token has it
	special map[uint32]bool
	added   map[uint32]bool

	// Added tokens are looked for in two passes: in the text as it is, and
	// in what the normalizer made of the rest.
	raw, normalized matcher

	nfc            bool
	split          func(s string, i int) int
	bpe            bpe
	prefix, suffix []uint32 // of the template
}

// Options are the choices of one call to [Tokenizer.Encode].
type Options struct {
	// Template puts the file's special tokens around the text, such as
	// Llama-3's <|begin_of_text|>. Completions endpoints add them; a chat
	// template writes its own.
	Template bool
}

// Encode appends the ids of text to dst. Special tokens written out in the text
// become their single ids, as they do in an engine.
func (t *Tokenizer) Encode(dst []uint32, text string, o Options) []uint32 {
	if o.Template {
		dst = append(dst, t.prefix...)
	}
	if !utf8.ValidString(text) {
		text = string([]rune(text))
	}
	sc := scratches.Get().(*scratch)
	dst = t.raw.cut(dst, text, func(dst []uint32, piece string) []uint32 {
		if t.nfc {
			piece = nfc(piece)
		}
		return t.normalized.cut(dst, piece, func(dst []uint32, piece string) []uint32 {
			for i := 0; i < len(piece); {
				j := t.split(piece, i)
				dst = t.bpe.append(dst, piece[i:j], sc)
				i = j
			}
			return dst
		})
	})
	scratches.Put(sc)
	if o.Template {
		dst = append(dst, t.suffix...)
	}
	return dst
}

// Count returns the number of tokens of text, without a template.
func (t *Tokenizer) Count(text string) int {
	ids := idBuffers.Get().(*[]uint32)
	*ids = t.Encode((*ids)[:0], text, Options{})
	n := len(*ids)
	idBuffers.Put(ids)
	return n
}

// Decode returns the bytes that ids stand for, special tokens spelt out. A
// character whose bytes lie in several tokens is whole only if all of them are
// here, so the string may be invalid UTF-8 and Decode(a) + Decode(b) is always
// Decode of both; the reference shows U+FFFD instead. An id that no token has
// stands for nothing.
func (t *Tokenizer) Decode(ids []uint32) string {
	var b strings.Builder
	for _, id := range ids {
		if int64(id) < int64(len(t.tokens)) {
			b.WriteString(t.tokens[id])
		}
	}
	return b.String()
}

// VocabSize is one more than the highest id, added tokens included. A model's
// own vocab_size may be larger: weights are often padded.
func (t *Tokenizer) VocabSize() int { return len(t.tokens) }

// IsSpecial reports whether id is one of the file's special tokens, which
// engines act on and leave out of what they decode.
func (t *Tokenizer) IsSpecial(id uint32) bool { return t.special[id] }
