package tokenizer

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
	"pgregory.net/rapid"
)

func TestDecodeGivesTheTextBack(t *testing.T) {
	h := newHostile(3)
	llama, qwen := load(t, "llama3"), load(t, "qwen2")
	for _, text := range h.texts(2000) {
		checkRoundTrip(t, llama, qwen, text)
	}
}

// checkRoundTrip: nothing of a text is lost, but for what a normalizer changes
// and bytes that are not UTF-8.
func checkRoundTrip(t *testing.T, llama, qwen *Tokenizer, text string) {
	want := string([]rune(text))
	if got := llama.Decode(llama.Encode(nil, text, Options{})); got != want {
		t.Errorf("llama3: decoded %q, want %q", got, want)
	}
	// Special tokens part the text before it is normalized.
	if got := qwen.Decode(qwen.Encode(nil, text, Options{})); nfc(got) != nfc(want) {
		t.Errorf("qwen2: decoded %q, want the normal form of %q", got, want)
	}
}

func FuzzEncode(f *testing.F) {
	for _, s := range snippets {
		f.Add(s)
	}
	f.Add("\xff\xfe\xed\xa0\x80\xf0\x9f")
	llama, qwen, gpt := load(f, "llama3"), load(f, "qwen2"), load(f, "gpt2")
	f.Fuzz(func(t *testing.T, text string) {
		checkRoundTrip(t, llama, qwen, text)
		gpt.Encode(nil, text, Options{Template: true})
		// A cached word and a merged one are the same.
		if a, b := qwen.Encode(nil, text, Options{}), qwen.Encode(nil, text, Options{}); !slices.Equal(a, b) {
			t.Errorf("Encode(%q) = %d, then %d", text, a, b)
		}
	})
}

func TestEncodeAppends(t *testing.T) {
	tok := load(t, "llama3")
	got := tok.Encode([]uint32{7}, "<|eot_id|>", Options{Template: true})
	if want := []uint32{7, 3000, 3004}; !slices.Equal(got, want) {
		t.Errorf("got %d, want %d", got, want)
	}
}

func TestInvalidBytesCountAsReplacementCharacters(t *testing.T) {
	tok := load(t, "qwen2")
	got := tok.Encode(nil, "a\xff\xfeb\xed\xa0\x80", Options{})
	want := tok.Encode(nil, "a\ufffd\ufffdb\ufffd\ufffd\ufffd", Options{})
	if !slices.Equal(got, want) {
		t.Errorf("got %d, want %d", got, want)
	}
}

func TestVocabulary(t *testing.T) {
	tok := load(t, "qwen2") // 3000 tokens, then three special and three other added ones
	if got := tok.VocabSize(); got != 3006 {
		t.Errorf("VocabSize() = %d, want 3006", got)
	}
	for id, want := range map[uint32]bool{0: false, 2999: false, 3000: true, 3002: true, 3003: false, 3005: false, 3006: false} {
		if got := tok.IsSpecial(id); got != want {
			t.Errorf("IsSpecial(%d) = %t, want %t", id, got, want)
		}
	}
	if got := tok.Decode([]uint32{3001, 1 << 31, 3003}); got != "<|im_start|><think>" {
		t.Errorf("Decode = %q", got)
	}
}

// Many goroutines on one cache give what one gives.
func TestConcurrentUse(t *testing.T) {
	tok := load(t, "qwen2")
	texts := newHostile(5).texts(300)
	want := make([][]uint32, len(texts))
	for i, s := range texts {
		want[i] = tok.Encode(nil, s, Options{})
	}
	tok = load(t, "qwen2") // an empty cache
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i, s := range texts {
				if got := tok.Encode(nil, s, Options{}); !slices.Equal(got, want[i]) {
					t.Errorf("Encode(%q) = %d, want %d", s, got, want[i])
				}
			}
		})
	}
	wg.Wait()
}

// A word of a quarter of a million bytes takes n log n, as does a run of marks
// or of blanks: quadratic time would be minutes here.
func TestLongRuns(t *testing.T) {
	tok := load(t, "qwen2")
	for _, s := range []string{"a", "ab", "!", "\u0301\u0323", " ", "\n ", "<|im_", "'", "1", "한", "\u1112\u1161\u11ab"} {
		text := strings.Repeat(s, 1<<18/len(s))
		ids := tok.Encode(nil, text, Options{})
		if got := tok.Decode(ids); norm.NFC.IsNormalString(s) && got != text {
			t.Errorf("a long run of %q does not decode to itself", s)
		}
	}
}

// The normal form is x/text's where the two have the same idea of it: text of
// characters as old as the reference's tables, without its 30 marks in a row.
func TestNFC(t *testing.T) {
	if got, want := len(marks()), 800; got < want {
		t.Errorf("%d marks, want at least %d", got, want)
	}
	old := func(r rune) bool {
		return !later(r) && (norm.NFC.PropertiesString(string(r)).CCC() == 0 || marks()[r] > 0)
	}
	for r := rune(0); r <= unicode.MaxRune; r++ {
		if s := string(r); utf8.ValidRune(r) && old(r) && force(s) != norm.NFC.String(s) {
			t.Errorf("nfc(%+q) = %+q, want %+q", s, force(s), norm.NFC.String(s))
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		h := newHostile(rapid.Uint64().Draw(t, "seed"))
		var rs []rune
		for range 25 {
			if r := h.rune(); old(r) {
				rs = append(rs, r)
			}
		}
		s := string(rs)
		if got, want := force(s), norm.NFC.String(s); got != want {
			t.Fatalf("nfc(%+q) = %+q, want %+q", s, got, want)
		}
		if got, want := nfc(s), force(s); got != want {
			t.Fatalf("nfc(%+q) = %+q, in full %+q", s, got, want)
		}
	})
}

// force is nfc without its shortcut for text that is normal already.
func force(s string) string {
	out := []rune{}
	for _, r := range s {
		out = decompose(out, r)
	}
	order(out)
	return string(compose(out))
}

// The tables say of old characters what the unicode package says.
func TestClasses(t *testing.T) {
	for r := rune(0); r <= unicode.MaxRune; r++ {
		want := other
		switch {
		case r == '\r' || r == '\n':
			want = newline
		case unicode.IsSpace(r):
			want = space
		case unicode.IsLetter(r):
			want = letter
		case unicode.IsNumber(r):
			want = number
		}
		got := classTable().of(r)
		if assigned := unicode.In(r, unicode.L, unicode.M, unicode.N, unicode.P, unicode.S, unicode.Z, unicode.Cc, unicode.Cf, unicode.Co); assigned && got != want && unicode.Version == "15.0.0" {
			t.Errorf("%U is %d, want %d", r, got, want)
		}
		if r < utf8.RuneSelf && ascii[r] != got {
			t.Errorf("%U is %d in the table of ASCII, %d in the other", r, ascii[r], got)
		}
	}
	for r, want := range map[rune]class{0x1c89: letter, 0x105c0: letter, 0x10d40: number, 0x1e5d0: letter, 0x2ebf0: letter, 0x1f600: other} {
		if got := classTable().of(r); got != want {
			t.Errorf("%U is %d, want %d (Unicode 16)", r, got, want)
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	english := strings.Repeat(snippets[0]+" The committee's recommendations were unanimously acknowledged by representatives of seventeen organisations; nevertheless, nobody knows what they'll do in 2031.\n", 200)
	mixed := strings.Repeat(strings.Join(snippets[:20], "\n"), 20)
	random := strings.Join(newHostile(8).texts(2000), " ")
	for _, shape := range shapes[:2] {
		tok := load(b, shape)
		for _, bm := range []struct{ name, text string }{{"english", english}, {"mixed", mixed}, {"hostile", random}} {
			b.Run(shape+"/"+bm.name, func(b *testing.B) {
				b.SetBytes(int64(len(bm.text)))
				b.ReportAllocs()
				var ids []uint32
				for b.Loop() {
					ids = tok.Encode(ids[:0], bm.text, Options{})
				}
			})
		}
	}
}
