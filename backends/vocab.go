package backends

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// FindVocab fills i.MinID and i.VocabSize: a range of token ids that are safe to
// send. One id beyond the vocabulary kills an SGLang server, so nothing is
// tried out; the range comes from
//
//  1. config.json and tokenizer.json in dir, where the engine serves from a
//     folder of this machine (dir absolute, the address loopback), or
//  2. the ids that the server's /tokenize gives for ordinary text, which are a
//     safe part of the vocabulary.
//
// dir may be empty. Which of the two it was is Config["vocab_source"].
func (c Config) FindVocab(ctx context.Context, i *Info, dir string) {
	lo, hi, err := c.tokenized(ctx, i.Model)
	if l, h, ok := c.localVocab(dir); ok && h > 0 {
		if hi <= h {
			i.MinID, i.VocabSize = l, h
			i.set("vocab_source", "config.json")
			return
		}
		i.Warnings = append(i.Warnings, fmt.Sprintf("%s says the vocabulary has %d tokens, but the server uses id %d: taking the server's word",
			filepath.Join(dir, "config.json"), h, hi-1))
	}
	if hi > 0 {
		i.MinID, i.VocabSize = lo, hi
		i.set("vocab_source", "tokenize")
		return
	}
	reason := ""
	if err != nil {
		reason = " (" + err.Error() + ")"
	}
	i.Warnings = append(i.Warnings, "the size of the vocabulary is unknown"+reason+": token ids cannot be chosen safely")
}

func (i *Info) set(key, value string) {
	if i.Config == nil {
		i.Config = map[string]string{}
	}
	i.Config[key] = value
}

// samples is text of many scripts and subjects: the more varied, the more of the
// vocabulary the ids reach. Each is short enough for the smallest context.
var samples = [...]string{
	"The quick brown fox jumps over the lazy dog; 1234567890, 3.14159 + 2.71828 = 5.85987! Nevertheless, the committee's extraordinary recommendations were unanimously acknowledged by representatives of approximately seventeen international organisations.",
	"func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { if err := json.NewDecoder(r.Body).Decode(&req); err != nil { http.Error(w, err.Error(), 400); return } }\n\tclass FooBar(unittest.TestCase):\n    def test_assertRaises(self): self.assertEqual(__name__, '__main__')  # TODO",
	"#include <iostream>\ntemplate<typename T> constexpr auto operator<=>(const std::vector<T>& lhs, const std::unordered_map<std::string, T>& rhs) noexcept; SELECT DISTINCT customer_id, COUNT(*) FROM orders WHERE created_at BETWEEN '2019-01-01' AND CURRENT_TIMESTAMP GROUP BY 1 HAVING COUNT(*) > 10;",
	"Übergrößenträger fröhlich Straßenbahnhaltestelle; naïveté, garçon, œuvre, où ça ? ¿Dónde está el niño pequeño? São Paulo, coração, Åse og Øystein, žluťoučký kůň, zażółć gęślą jaźń, İstanbul'da yağmur, Việt Nam điện thoại.",
	"Съешь же ещё этих мягких французских булок, да выпей чаю. Необыкновенные достопримечательности. Щедра земля, їжак, ґанок. Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. עברית שפה יפה. اللغة العربية جميلة ومتنوعة. فارسی زبان شیرین است.",
	"我能吞下玻璃而不伤身体。中华人民共和国国务院关于加强人工智能安全管理的通知。繁體中文字形檢查：臺灣鐵路。日本語の文章を、ひらがなとカタカナと漢字で書きます。東京都渋谷区。한국어 문장도 토큰으로 나눕니다. 안녕하세요 대한민국.",
	"हिन्दी में एक वाक्य लिखा गया है। বাংলা ভাষায় লেখা। தமிழ் மொழியில் எழுதப்பட்டது. తెలుగు భాష. ภาษาไทยไม่มีช่องว่างระหว่างคำ ქართული ენა հայերեն አማርኛ ខ្មែរ မြန်မာ ལྷ་ས།",
	"😀🚀🔥❤️👩‍👩‍👧‍👦🏳️‍🌈 ∀x∈ℝ: ⌈x⌉ = −⌊−x⌋, ∑ₙ αₙ ≤ ∫ f(t) dt ⇒ √2 ≠ π; ♠♣♥♦ ←↑→↓ ░▒▓█ ©®™ €£¥₹ «»„“”… ½¼¾ ²³ ━┃┏┓ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈",
	"immunohistochemistry phosphofructokinase antidisestablishmentarianism onomatopoeia subcutaneous jurisprudence Mediterranean archaeological photosynthesis thermodynamics electromagnetism semiconductors cryptographic kubernetes tensorflow pytorch javascript",
	"https://www.example.com/path/to/resource?id=42&lang=en#section-3 <div class=\"container-fluid\"><a href='mailto:a@b.co'></a></div> {\"key\": [null, true, -1.5e+10]} $\\frac{\\partial f}{\\partial x}$ C:\\Windows\\System32 0xDEADBEEF ================ ----------------",
}

// tokenized returns the range of ids that /tokenize gives for the samples, 0, 0
// if there is none.
func (c Config) tokenized(ctx context.Context, model string) (lo, hi int, err error) {
	lo = -1
	for _, s := range samples {
		ids, err := c.tokenize(ctx, model, s, false)
		if err != nil {
			return 0, 0, err
		}
		for _, id := range ids {
			hi = max(hi, int(id)+1)
			if lo < 0 || int(id) < lo {
				lo = int(id)
			}
		}
	}
	return max(lo, 0), hi, nil
}

// maxFile bounds what is read of a model's files. Tokenizers of 250,000 tokens
// take 35 MB.
const maxFile = 128 << 20

// localVocab reads the vocabulary of a model in a folder of this machine. Ids
// from lo up to hi are in it and are none of the tokenizer's special tokens.
func (c Config) localVocab(dir string) (lo, hi int, ok bool) {
	u, err := url.Parse(c.URL)
	if err != nil || !filepath.IsAbs(dir) {
		return 0, 0, false
	}
	// Behind another address, the same path may hold another model.
	if ip := net.ParseIP(u.Hostname()); u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return 0, 0, false
	}
	var config struct {
		Vocab int `json:"vocab_size"`
		Text  struct {
			Vocab int `json:"vocab_size"`
		} `json:"text_config"` // of models that see or hear
	}
	if readJSON(filepath.Join(dir, "config.json"), &config) != nil {
		return 0, 0, false
	}
	hi = max(config.Vocab, config.Text.Vocab)
	if hi <= 0 {
		return 0, 0, false
	}
	var tok struct {
		Added []struct {
			ID      int  `json:"id"`
			Special bool `json:"special"`
		} `json:"added_tokens"`
	}
	if readJSON(filepath.Join(dir, "tokenizer.json"), &tok) != nil {
		return 0, hi, true
	}
	// Special tokens sit at the bottom of a vocabulary, or at its top.
	size := hi
	for _, t := range tok.Added {
		switch {
		case !t.Special || t.ID < 0:
		case t.ID < size/2:
			lo = max(lo, t.ID+1)
		default:
			hi = min(hi, t.ID)
		}
	}
	return lo, hi, true
}

func readJSON(name string, v any) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

// Flat turns a JSON object of settings into Info.Config: strings, numbers and
// booleans by name. Nested values and nulls are left out, and so is what may
// hold a secret.
func Flat(raw json.RawMessage) map[string]string {
	var o map[string]json.RawMessage
	if json.Unmarshal(raw, &o) != nil {
		return nil
	}
	flat := map[string]string{}
	for k, v := range o {
		if secret(k) || len(v) == 0 || len(v) > 400 {
			continue
		}
		var s string
		switch v[0] {
		case '"':
			if json.Unmarshal(v, &s) != nil {
				continue
			}
		case '{', '[', 'n':
			continue
		default:
			s = string(v)
		}
		flat[k] = s
	}
	return flat
}

// secret reports whether a setting of that name may hold a key or a password;
// a command line may hold both.
func secret(name string) bool {
	name = strings.ToLower(name)
	for _, w := range [...]string{"api_key", "apikey", "password", "passwd", "secret", "credential", "command", "auth_token", "hf_token", "_env"} {
		if strings.Contains(name, w) {
			return true
		}
	}
	return false
}
