package tokenizer

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

func testFile(t testing.TB, shape string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", shape+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// edit returns a shape's file with one thing in it changed.
func edit(t testing.TB, shape, old, new string) []byte {
	t.Helper()
	data := testFile(t, shape)
	if bytes.Count(data, []byte(old)) != 1 {
		t.Fatalf("%s.json has %q %d times, want once", shape, old, bytes.Count(data, []byte(old)))
	}
	return bytes.Replace(data, []byte(old), []byte(new), 1)
}

// What a file asks for beyond the known is refused by name.
func TestRefused(t *testing.T) {
	const (
		level = `{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true}`
		nfc   = `"normalizer":{"type":"NFC"}`
	)
	tests := []struct {
		name, shape, old, new string
		want                  string
	}{
		{"version", "gpt2", `"version":"1.0"`, `"version":"2.0"`, `version "2.0" is not supported`},
		{"model", "gpt2", `"type":"BPE"`, `"type":"Unigram"`, `model: "Unigram" is not supported (known: BPE)`},
		{"dropout", "gpt2", `"dropout":null`, `"dropout":0.1`, `model: dropout 0.1 is not supported`},
		{"prefix of subwords", "gpt2", `"continuing_subword_prefix":null`, `"continuing_subword_prefix":"##"`, `continuing_subword_prefix "##" is not supported`},
		{"suffix of words", "gpt2", `"end_of_word_suffix":null`, `"end_of_word_suffix":"</w>"`, `end_of_word_suffix "</w>" is not supported`},
		{"normalizer", "qwen2", nfc, `"normalizer":{"type":"NFKC"}`, `normalizer: "NFKC" is not supported (known: none, NFC)`},
		{"normalizer in a sequence", "qwen2", nfc, `"normalizer":{"type":"Sequence","normalizers":[{"type":"NFC"},{"type":"Lowercase"}]}`, `normalizer: "Lowercase" is not supported`},
		{"sequence in a sequence", "qwen2", nfc, `"normalizer":{"type":"Sequence","normalizers":[{"type":"Sequence","normalizers":[]}]}`, `normalizer: "Sequence" is not supported`},
		{"split pattern", "llama3", `\\p{N}{1,3}`, `\\p{N}{1,2}`, `pre_tokenizer: the split pattern "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,2}`},
		{"split by a string", "llama3", `"Regex":`, `"String":`, `Split by anything but a Regex is not supported`},
		{"split behaviour", "llama3", `"behavior":"Isolated"`, `"behavior":"MergedWithNext"`, `Split with behavior "MergedWithNext", invert false is not supported`},
		{"inverted split", "llama3", `"invert":false`, `"invert":true`, `Split with behavior "Isolated", invert true is not supported`},
		{"two patterns", "llama3", `"use_regex":false`, `"use_regex":true`, `ByteLevel with use_regex after a Split is not supported`},
		{"no pattern", "gpt2", `"pre_tokenizer":` + level, `"pre_tokenizer":` + strings.Replace(level, `"use_regex":true`, `"use_regex":false`, 1), `ByteLevel with no split pattern is not supported`},
		{"a space before the text", "gpt2", `"pre_tokenizer":` + level, `"pre_tokenizer":{"type":"ByteLevel"}`, `add_prefix_space is not supported`},
		{"pre-tokenizer", "gpt2", `"pre_tokenizer":` + level, `"pre_tokenizer":{"type":"Metaspace"}`, `pre_tokenizer: "Metaspace" is not supported (known: ByteLevel; Split, ByteLevel)`},
		{"three stages", "llama3", `"pretokenizers":[`, `"pretokenizers":[{"type":"Digits"},`, `pre_tokenizer: "Digits, Split, ByteLevel" is not supported`},
		{"no pre-tokenizer", "gpt2", `"pre_tokenizer":` + level, `"pre_tokenizer":null`, `pre_tokenizer: "" is not supported`},
		{"decoder", "gpt2", `"decoder":{"type":"ByteLevel"`, `"decoder":{"type":"WordPiece"`, `decoder: "WordPiece" is not supported (known: ByteLevel)`},
		{"no decoder", "gpt2", `"decoder":`, `"decodes":`, `decoder: no decoder is not supported`},
		{"post-processor", "gpt2", `"type":"TemplateProcessing"`, `"type":"RobertaProcessing"`, `post_processor: "RobertaProcessing" is not supported`},
		{"single words", "gpt2", `"id":2005,"content":"hello","single_word":false`, `"id":2005,"content":"hello","single_word":true`, `added_tokens: [6]: "hello": single_word is not supported`},
		{"a byte without a token", "gpt2", `"Ā":`, `"ĀĀĀĀĀĀĀĀĀ":`, `no token for byte 0x00 ('Ā')`},
	}
	for _, tt := range tests {
		_, err := parse(edit(t, tt.shape, tt.old, tt.new))
		if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q, which is ErrUnsupported", tt.name, err, tt.want)
		}
	}
}

// What is damaged is refused with its place.
func TestDamaged(t *testing.T) {
	tests := []struct {
		name, shape, old, new string
		want                  string
	}{
		{"cut", "gpt2", `"merges":[`, `"merges":[}`, `invalid character '}'`},
		{"two models", "gpt2", `"decoder":`, `"model":1,"decoder":`, `"model" is there twice`},
		{"two vocabularies", "gpt2", `"merges":`, `"vocab":{},"merges":`, `model: "vocab" is there twice`},
		{"no vocabulary", "gpt2", `"vocab":`, `"vocabulary":`, `model: vocab: absent, want an object`},
		{"vocabulary is a list", "gpt2", `"vocab":`, `"vocab":["a"],"ignored":`, `model: vocab: ["a"], want an object`},
		{"no merges", "gpt2", `"merges":`, `"merged":`, `model: merges: absent, want an array`},
		{"a billion ids", "gpt2", `"vocab":{`, `"vocab":{"x":1000000000,`, `model: vocab: "x": id 1000000000: a vocabulary of more than 2097152 tokens is not read`},
		{"id beyond 32 bits", "gpt2", `"vocab":{`, `"vocab":{"x":4294967299,`, `"x": id 4294967299 is no whole number`},
		{"negative id", "gpt2", `"vocab":{`, `"vocab":{"x":-1,`, `"x": id -1 is no whole number`},
		{"id is text", "gpt2", `"vocab":{`, `"vocab":{"x":"1",`, `"x": id "1" is no whole number`},
		{"one id twice", "gpt2", `"vocab":{`, `"vocab":{"zzzzzz":7,`, `two tokens have id 7`},
		{"merge of a token that is not there", "gpt2", `"merges":[`, `"merges":[["zzzz","q"],`, `merges: [0]: "zzzz" and "q": they or their join are not in the vocabulary`},
		{"merge into a token that is not there", "gpt2", `"merges":[`, `"merges":[["q","q"],`, `merges: [0]: "q" and "q"`},
		{"merge with nothing", "gpt2", `"merges":[`, `"merges":[["","q"],`, `merges: [0]: an empty side`},
		{"merge of three", "gpt2", `"merges":[`, `"merges":[["q","q","q"],`, `merges: [0]: ["q","q","q"], want "left right" or ["left", "right"]`},
		{"merge of numbers", "gpt2", `"merges":[`, `"merges":[[1,2],`, `merges: [0]: [1,2], want`},
		{"merge with no space", "llama3", `"merges":[`, `"merges":["qq",`, `merges: [0]: "qq", want`},
		{"merge with two spaces", "llama3", `"merges":[`, `"merges":["q q q",`, `merges: [0]: "q q q", want`},
		{"both forms of merges", "llama3", `"merges":[`, `"merges":[["t","h"],`, `merges: [1]: `},
		{"added token with another's id", "gpt2", `"id":2005,"content":"hello"`, `"id":3,"content":"hello"`, `added_tokens: [6]: "hello" says id 3, but the reference would give it 2005`},
		{"added token far away", "gpt2", `"id":2005,"content":"hello"`, `"id":4294967295,"content":"hello"`, `says id 4294967295`},
		{"added token twice", "gpt2", `"content":"hello"`, `"content":"<mask>"`, `added_tokens: [6]: "<mask>" is there twice`},
		{"added token of nothing", "gpt2", `"content":"hello"`, `"content":""`, `added_tokens: [6]: empty content`},
		{"template without the text", "gpt2", `{"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"<pad>"`, `{"SpecialToken":{"id":"<pad>"`, `the text is there 0 times, want once`},
		{"template with the second text", "gpt2", `{"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"<pad>"`, `{"Sequence":{"id":"B","type_id":0}},{"SpecialToken":{"id":"<pad>"`, `single[1]: neither a SpecialToken nor the Sequence A`},
		{"template of an unknown token", "gpt2", `"special_tokens":{`, `"special":{`, `special_tokens has no "<|endoftext|>"`},
		{"template beyond the vocabulary", "gpt2", `"ids":[2001]`, `"ids":[99999]`, `"<pad>" has id 99999, beyond the vocabulary of 2010`},
		{"wrong type", "gpt2", `"normalizer":`, `"normalizer":[1],"ignored":`, `normalizer: json: cannot unmarshal array`},
		{"dropout is text", "gpt2", `"dropout":null`, `"dropout":"x"`, `model: dropout: json: cannot unmarshal string`},
		{"not UTF-8", "gpt2", `"content":"hello"`, "\"content\":\"\xff\"", `not UTF-8`},
	}
	for _, tt := range tests {
		_, err := parse(edit(t, tt.shape, tt.old, tt.new))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q", tt.name, err, tt.want)
		}
	}
	for _, s := range []string{"", " ", "null", "[]", "{}", "1", `"x"`, "{", "\ufeff{}"} {
		if _, err := parse([]byte(s)); err == nil {
			t.Errorf("parse(%q) gave no error", s)
		}
	}
}

// What the files in use have in other ways than the ones of testdata.
func TestAccepted(t *testing.T) {
	const text = "It's 12345 e\u0301te\u0301\r\n\r\n  print(self)<|eot_id|>"
	tests := []struct {
		name, shape, old, new string
	}{
		{"empty prefixes", "qwen2", `"continuing_subword_prefix":null,"end_of_word_suffix":null`, `"continuing_subword_prefix":"","end_of_word_suffix":""`},
		{"dropout of nothing", "qwen2", `"dropout":null`, `"dropout":0.0`},
		{"no type of the model", "qwen2", `"type":"BPE",`, ``},
		{"a member nobody knows", "qwen2", `"version":"1.0"`, `"version":"1.0","made_by":{"a":[1,"}",{"b":null}]}`},
		{"no version", "qwen2", `"version":"1.0",`, ``},
		{"what does not match removed", "llama3", `"behavior":"Isolated","invert":false`, `"behavior":"Removed","invert":true`},
		{"a version line among merges", "llama3", `"merges":[`, `"merges":["#version: 0.2",`},
		{"NFC in a sequence", "qwen2", `{"type":"NFC"}`, `{"type":"Sequence","normalizers":[{"type":"NFC"}]}`},
		{"truncation", "qwen2", `"truncation":null`, `"truncation":{"direction":"Right","max_length":2,"strategy":"LongestFirst","stride":0}`},
		{"no post-processor", "qwen2", `"post_processor":`, `"post_processor":null,"ignored":`},
		{"spaces and line breaks", "llama3", `"vocab":{`, "\"vocab\" :\r\n\t { "},
		{"escapes", "llama3", `"Ġreturn":`, `"\u0120r\u0065turn":`},
	}
	for _, tt := range tests {
		tok, err := parse(edit(t, tt.shape, tt.old, tt.new))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		want := load(t, tt.shape).Encode(nil, text, Options{Template: true})
		if got := tok.Encode(nil, text, Options{Template: true}); !slices.Equal(got, want) {
			t.Errorf("%s: %d, want %d", tt.name, got, want)
		}
	}
}

// The last of two merges of one pair counts, as in the reference.
func TestMergeTwice(t *testing.T) {
	data := edit(t, "gpt2", `"merges":[`, `"merges":[["t","h"],["h","e"],`)
	tok, err := parse(data)
	if err != nil {
		t.Fatal(err)
	}
	want := load(t, "gpt2").Encode(nil, "the theatre", Options{})
	if got := tok.Encode(nil, "the theatre", Options{}); !slices.Equal(got, want) {
		t.Errorf("got %d, want %d", got, want)
	}
}

// A file takes memory in proportion to its size, whatever it says.
func TestAllocationIsCapped(t *testing.T) {
	var deep, wide, long strings.Builder
	for range 4000 {
		deep.WriteString(`{"type":"Sequence","normalizers":[`)
	}
	deep.WriteString(strings.Repeat("]}", 4000))
	for i := range 1 << 17 {
		fmt.Fprintf(&wide, `{"id":%d,"content":"<%d>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},`, i, i)
	}
	long.WriteString(`{"type":"TemplateProcessing","single":[`)
	for range 10000 {
		long.WriteString(`{"SpecialToken":{"id":"x"}},`)
	}
	long.WriteString(`{"Sequence":{"id":"A"}}],"special_tokens":{"x":{"ids":[0` + strings.Repeat(",0", 10000) + `]}}}`)
	tests := []struct{ name, old, new, want string }{
		{"normalizers inside each other", `"normalizer":`, `"normalizer":` + deep.String() + `,"ignored":`, "not supported"},
		{"many added tokens", `"added_tokens":[`, `"added_tokens":[` + wide.String(), "reference would give"},
		{"a long added token", `"content":"hello"`, `"content":"` + strings.Repeat("h", 2<<20) + `"`, "more than 1048576 bytes"},
		{"a template of 100 million tokens", `"post_processor":`, `"post_processor":` + long.String() + `,"ignored":`, "more than 1024 tokens"},
	}
	for _, tt := range tests {
		data := edit(t, "gpt2", tt.old, tt.new)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := parse(data)
		runtime.ReadMemStats(&after)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %.200v, want %q", tt.name, err, tt.want)
		}
		if used, limit := after.TotalAlloc-before.TotalAlloc, uint64(20*len(data)+16<<20); used > limit {
			t.Errorf("%s: %d bytes allocated for a file of %d, want at most %d", tt.name, used, len(data), limit)
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	if _, err := Load(dir); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "tokenizer.json") {
		t.Errorf("an empty folder: %v", err)
	}
	name := filepath.Join(dir, "tokenizer.json")
	if err := os.WriteFile(name, testFile(t, "qwen2"), 0o644); err != nil {
		t.Fatal(err)
	}
	if tok, err := Load(dir); err != nil || tok.Count("print") == 0 {
		t.Errorf("a model's folder: %v", err)
	}
	if err := os.Truncate(name, maxFile+1); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(name); err == nil || !strings.Contains(err.Error(), "larger than 128 MiB") {
		t.Errorf("a large file: %v", err)
	}
	if err := os.Truncate(name, 1000); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(name); err == nil || !strings.HasPrefix(err.Error(), name+": ") {
		t.Errorf("a cut file: %v", err)
	}
}

// smallSections are the parts of a small file, which smallFile puts together:
// added tokens, normalizer, pre-tokenizer, decoder, post-processor, switches of
// the model, merges, vocabulary beyond the bytes.
var smallSections = [8]string{
	`[{"id":259,"content":"<s>","single_word":false,"lstrip":true,"rstrip":true,"normalized":false,"special":true},{"id":256,"content":"th","normalized":true}]`,
	`{"type":"Sequence","normalizers":[{"type":"NFC"}]}`,
	`{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":` + quoteJSON(llama3Pattern) + `},"behavior":"Isolated","invert":false},{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]}`,
	`{"type":"ByteLevel"}`,
	`{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<s>"}},{"Sequence":{"id":"A"}}],"special_tokens":{"<s>":{"ids":[259]}}}`,
	`"type":"BPE","ignore_merges":true`,
	`["t h","th e","Ġ the"]`,
	`"th":256,"the":257,"Ġthe":258`,
}

func smallFile(s [8]string) string {
	var vocab strings.Builder
	for b, r := range byteRunes {
		fmt.Fprintf(&vocab, "%s:%d,", quoteJSON(string(r)), b)
	}
	return fmt.Sprintf(`{"version":"1.0","added_tokens":%s,"normalizer":%s,"pre_tokenizer":%s,"decoder":%s,"post_processor":%s,"model":{%s,"merges":%s,"vocab":{%s%s}}}`,
		s[0], s[1], s[2], s[3], s[4], s[5], s[6], vocab.String(), s[7])
}

func quoteJSON(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// FuzzParse checks that any file is refused, or gives a tokenizer whose Count,
// ids and Words hold together. The fuzzer writes one section of a small file, or
// the whole: a vocabulary of 256 bytes in every input would leave it nothing to
// find.
func FuzzParse(f *testing.F) {
	if _, err := parse([]byte(smallFile(smallSections))); err != nil {
		f.Fatal(err)
	}
	for i, s := range smallSections {
		f.Add(byte(i), s)
	}
	f.Add(byte(0), `[]`)
	f.Add(byte(2), `{"type":"ByteLevel","add_prefix_space":false}`)
	f.Add(byte(6), `[["t","h"],["th","e"]]`)
	f.Add(byte(7), `"x":1000000000`)
	f.Add(byte(99), `{"model":{"vocab":{"a":1},"merges":[]}}`)
	f.Fuzz(func(t *testing.T, section byte, raw string) {
		s, data := smallSections, raw
		if int(section) < len(s) {
			s[section] = raw
			data = smallFile(s)
		}
		tok, err := parse([]byte(data))
		if err != nil {
			return
		}
		const text = "the <s> theatre's 1234 \u00e9\r\n"
		ids := tok.Encode(nil, text, Options{Template: true})
		if len(tok.prefix)+len(tok.suffix)+tok.Count(text) != len(ids) {
			t.Errorf("%d ids, Count says %d", len(ids), tok.Count(text))
		}
		for _, id := range ids {
			if int(id) >= tok.VocabSize() {
				t.Errorf("id %d of %d", id, tok.VocabSize())
			}
		}
		var all strings.Builder
		words := tok.Words(100)
		for _, w := range words {
			all.WriteString(w.Text)
		}
		if n := tok.Count(all.String() + all.String()); n != 2*len(words) {
			t.Errorf("%d words twice are %d tokens: %q", len(words), n, all.String())
		}
	})
}

func BenchmarkLoad(b *testing.B) {
	data := testFile(b, "qwen2")
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := parse(data); err != nil {
			b.Fatal(err)
		}
	}
}
