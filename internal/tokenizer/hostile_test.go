package tokenizer

import (
	"math/rand/v2"
	"slices"
	"strings"
	"unicode"
)

// hostile is text that tokenizers get wrong: each kind of it, alone and mixed.
type hostile struct{ *rand.Rand }

func newHostile(seed uint64) hostile { return hostile{rand.New(rand.NewPCG(seed, 1))} }

var snippets = []string{
	"func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {\n\tif err := json.NewDecoder(r.Body).Decode(&req); err != nil {\n\t\treturn\n\t}\n}",
	"    def __init__(self, *args, **kwargs):\r\n        super().__init__(*args, **kwargs)\r\n\r\n",
	"#include <stdio.h>\nint main(void){printf(\"%d\\n\", 0xDEADBEEF);return 0;}//EOF",
	"SELECT COUNT(*) FROM t WHERE a<=1.5e-10 AND b!='it''s';--",
	"{\"key\": [null, true, -1.5e+10], \"k2\": {\"\\u00e9\": \"\\ud83d\"}}",
	"https://www.example.com/a/b?id=42&lang=en#s-3 user@host.org",
	"$\\frac{\\partial f}{\\partial x}$ ~~~~~ ==== ---- ........ !!!??? ((()))",
	"I'm, you're, he's, we've, they'll, I'd, can't; I'M YOU'RE HE'S WE'VE THEY'LL I'D CAN'T",
	"'s't're've'm'll'd'S'T'Re'vE'M'lL'D'ſ'ſtart 'ſs x'ſ ''s '''ll' 'l 'r 'v ' '",
	"don’t l’été it＇s ʼn ŉ 'ﬆ 'ﬅ 'K 'ß",
	"Übergrößenträger naïveté garçon œuvre Straße žluťoučký kůň zażółć gęślą jaźń İstanbul'da",
	"Съешь же ещё этих мягких французских булок; Щедра земля, їжак, ґанок",
	"我能吞下玻璃而不伤身体。中华人民共和国国务院２０２４年１２月３日（星期二）",
	"日本語の文章を、ひらがなとカタカナとﾊﾝｶｸで書きます。ヴァ ヴァ が が",
	"안녕하세요 대한민국. 각 각 한글 ᄀᄀᆨ ᅡ가",
	"اللغة العربية جميلة ومتنوعة. فَارسِی زبان شیرین است ١٢٣٤٥٦٧ ۱۲۳۴",
	"עִבְרִית שפה יפה. שּׁ שּׁ",
	"हिन्दी में क़ एक क़ वाक्य १२३४५ বাংলা ো தமிழ் மொழி ొ ภาษาไทย๑๒๓ ខ្មែរ မြန်မာ ལྷ་ས། ཀྵ",
	"😀🚀🔥❤️👩‍👩‍👧‍👦🏳️‍🌈🇩🇪🇫🇷 👍🏽👍🏿 #️⃣ 1️⃣ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𝟘𝟙𝟚𝟛 ½¼¾ ²³ Ⅻ ⑳ 〇 ௰",
	"∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, ∑ₙ αₙ ≤ ∫ f(t) dt ⇒ √2 ≠ π Å Å Å Ω K ≠ ≠ ⫝̸",
	"Z̵̢̛̫̯̙̲̙̅̏́a̶͖̥̐l̷̨̬̈́g̸̙̽o̴̺͒ e\u0301\u0323 e\u0323\u0301 \u1e69 s\u0307\u0323 q\u0307\u0323\u0301",
	"1 12 123 1234 12345 1234567890123 1,234.56 0x1F v1.2.3 ١٢٣ １２３",
	"été e\u0301t\u00e9 \u00e9te\u0301\u0301 hello shelloo world a word 日本  日本\n語 <a b> < a b>",
	"\U00011935\U00011930 \U0001109b\U000110ba a\u0898\u0323 a\u1ac1\u0301 e\U0001e4ec\u0301\U0001e4ee \U000105d2\u0307 \U00016121\U0001611f",
	" return self None configure print return\tself",
	"<pad>  <mask> <mask>  <pad> <pad>\u3000<pad><pad>\u2003<mask>",
	"<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>",
	"<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n<tool_call>",
	"<|endoftext|> <|endoftex|> <|<|im_end|>|> <|im_|im_start|> <mask>  <mask> x  <mask>y <pad>  <pad><pad>  <pad>   \n\n\n\n\n z <pad>\n\n\n\n\nq",
}

var whites = []string{" ", " ", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\r", "\v", "\f", "\u0085", "\u00a0", "\u1680",
	"\u2003", "\u200b", "\u2028", "\u2029", "\u202f", "\u205f", "\u3000", "\u180e", "\ufeff", "\x1c", "\x00", " \n ", "\n \n", " \r\n\t"}

var contractions = []string{"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}

func (h hostile) pick(s []string) string { return s[h.IntN(len(s))] }

// rune draws code points so that each kind of them comes often.
func (h hostile) rune() rune {
	for {
		var r rune
		switch h.IntN(12) {
		case 0, 1:
			r = rune(h.IntN(0x80))
		case 2:
			r = rune(h.IntN(0x600))
		case 3:
			r = rune(h.IntN(0x10000))
		case 4:
			r = rune(h.IntN(0x20000))
		case 5:
			r = rune(h.IntN(0x110000))
		case 6:
			r = 0x300 + rune(h.IntN(0x70)) // marks
		case 7:
			r = []rune{0x1100, 0x1161, 0x11a7, 0xac00, 0xac1c}[h.IntN(5)] + rune(h.IntN(28))
		case 8:
			r = 0x4e00 + rune(h.IntN(0x5200))
		case 9:
			// Marks that are new to Unicode after version 9, composites after it,
			// letters and digits after 15.
			r = []rune{0x898, 0x1ac0, 0x1df6, 0x10f46, 0x11930, 0x1c89, 0x105c0, 0x10d40, 0x11380, 0x16120, 0x2ebf0, 0x1e5d0}[h.IntN(12)] + rune(h.IntN(12))
		case 10:
			r = 0x1f300 + rune(h.IntN(0x400))
		default:
			r = []rune{0x340, 0x344, 0x387, 0x958, 0xfb1d, 0x2126, 0x1d15e, 0x2f800, 0x9cb, 0x1f00, 0x11935, 0x1109a}[h.IntN(12)] + rune(h.IntN(4))
		}
		if !unicode.Is(unicode.Cs, r) {
			return r
		}
	}
}

func (h hostile) part() string {
	switch h.IntN(16) {
	case 0, 1:
		return h.pick(snippets)
	case 2:
		s := []rune(h.pick(snippets))
		i := h.IntN(len(s))
		return string(s[i : i+h.IntN(len(s)-i)+1])
	case 3, 4:
		return strings.Repeat(h.pick(whites), 1+h.IntN(4))
	case 5:
		c := []byte(h.pick(contractions))
		for i := range c {
			if h.IntN(2) == 0 && c[i] != '\'' {
				c[i] ^= 0x20
			}
		}
		return string(c)
	case 6, 7, 8:
		rs := make([]rune, 1+h.IntN(12))
		for i := range rs {
			rs[i] = h.rune()
		}
		return string(rs)
	case 9:
		rs := []rune{'a' + rune(h.IntN(26))}
		for range h.IntN(8) {
			rs = append(rs, 0x300+rune(h.IntN(0x70)))
		}
		return string(rs)
	case 10:
		b := make([]byte, 1+h.IntN(10))
		for i := range b {
			b[i] = "0123456789"[h.IntN(10)]
		}
		return string(b)
	case 11:
		b := make([]byte, 1+h.IntN(6))
		for i := range b {
			b[i] = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"[h.IntN(32)]
		}
		return string(b)
	case 12:
		b := make([]byte, 1+h.IntN(14))
		for i := range b {
			b[i] = "etaoinshrdlucmfwypvbgkqjxzETAOIN"[h.IntN(32)]
		}
		return string(b)
	default:
		return h.pick(strings.Fields(h.pick(snippets)))
	}
}

func (h hostile) text() string {
	switch h.IntN(200) {
	case 0: // a very long word
		return strings.Repeat(h.pick([]string{"a", "ab", "é", "日本", "!", "0", "_-", "e\u0301", "ᄀ", "abcdefghij"}), 200+h.IntN(1500))
	case 1:
		b := make([]byte, 100+h.IntN(3000))
		for i := range b {
			b[i] = 'a' + byte(h.IntN(26))
		}
		return string(b)
	case 2:
		return strings.Repeat(h.pick(whites), 100+h.IntN(1000)) + h.pick([]string{"", "x", "\n", "!", "1"})
	case 3: // more marks than Stream-Safe Text allows
		rs := []rune{h.rune()}
		for range 20 + h.IntN(200) {
			rs = append(rs, 0x300+rune(h.IntN(0x70)))
		}
		return string(append(rs, h.rune()))
	case 4, 5: // bytes
		b := make([]byte, h.IntN(40))
		for i := range b {
			b[i] = byte(h.Uint32())
		}
		return string(b)
	}
	var b strings.Builder
	for range h.IntN(12) {
		b.WriteString(h.part())
		if h.IntN(3) == 0 {
			b.WriteString(h.pick(whites))
		}
	}
	return b.String()
}

// texts returns the snippets and n random texts.
func (h hostile) texts(n int) []string {
	all := append(slices.Clone(snippets), "")
	for range n {
		all = append(all, h.text())
	}
	return all
}
