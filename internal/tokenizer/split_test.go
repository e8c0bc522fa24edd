package tokenizer

import (
	"slices"
	"strings"
	"testing"
)

// What the patterns do with what they differ in, and with what scanners get
// wrong. Each line is as tokenizers 0.23.3 splits it; TestReference asks for
// thousands more.
func TestSplit(t *testing.T) {
	tests := []struct {
		shapes string
		pieces []string
	}{
		{"llama3 qwen2", []string{"It", "'s", " a", " dog", "'ll", "'x", " y", "'"}},
		{"gpt2", []string{"It", "'s", " a", " dog", "'ll", "'", "x", " y", "'"}},
		{"llama3 qwen2", []string{"IT", "'S", " WE", "'Ve", "'lL", "ama"}},
		{"gpt2", []string{"IT", "'", "S", " WE", "'", "Ve", "'", "lLama"}},
		{"llama3 qwen2", []string{"'ſ", "tart", " it", "'ſ"}},
		{"gpt2", []string{"'", "ſtart", " it", "'", "ſ"}},
		{"llama3 qwen2", []string{"'s", "t", "'re", "d", "'ra", "''", "s"}},
		{"gpt2", []string{"'s", "t", "'re", "d", "'", "ra", "''", "s"}},
		{"llama3", []string{"123", "456", "7", " ", "12", "x", "٣٤٥", "６½"}},
		{"qwen2", []string{"1", "2", "3", "4", "5", "6", "7", " ", "1", "2", "x", "٣", "٤", "٥", "６", "½"}},
		{"gpt2", []string{"1234567", " 12", "x", "٣٤٥６½"}},
		{"llama3 qwen2", []string{"(foo", "\tbar", " baz", "\n", "qux", "\u00a0q", "!!\n"}},
		{"gpt2", []string{"(", "foo", "\t", "bar", " baz", "\n", "qux", "\u00a0", "q", "!!", "\n"}},
		{"llama3 qwen2", []string{"a", "  ", " b", "   \n", "  ", " c", " \r\n \n", "\t", "\td", "  "}},
		{"gpt2", []string{"a", "  ", " b", "   \n  ", " c", " \r\n \n\t", "\t", "d", "  "}},
		{"llama3 qwen2", []string{" !?", " \n", "...\r\n\n", "  ", " !\n", "x"}},
		{"gpt2", []string{" !?", " ", "\n", "...", "\r\n\n  ", " !", "\n", "x"}},
		{"llama3 qwen2 gpt2", []string{"a", "\u3000", "\u3000", "!"}},
		{"llama3 qwen2", []string{"e", "\u0301t", "\u0301\u0301", " \u0301", "x"}},
		{"gpt2", []string{"e", "\u0301", "t", "\u0301\u0301", " \u0301", "x"}},
		{"llama3 qwen2 gpt2", []string{"\U0002ebf0\U000105c0", " 😀👍🏽", " \u1c89", "\U00010d40"}},
		{"llama3 qwen2 gpt2", []string{"\x00\x1c", " \x1c\u180e\ufeff\u200b"}},
	}
	for _, tt := range tests {
		for shape := range strings.FieldsSeq(tt.shapes) {
			tok, text := load(t, shape), strings.Join(tt.pieces, "")
			var got []string
			for i := 0; i < len(text); {
				j := tok.split(text, i)
				got = append(got, text[i:j])
				i = j
			}
			if !slices.Equal(got, tt.pieces) {
				t.Errorf("%s: %q is split %q, want %q", shape, text, got, tt.pieces)
			}
		}
	}
}
