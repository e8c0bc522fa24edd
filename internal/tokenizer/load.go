package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"unicode/utf8"
)

// ErrUnsupported is wrapped by the error for a file that is well formed and
// asks for something that this package does not do. Counting through the
// server's /tokenize, or sending token ids, remains.
var ErrUnsupported = errors.New("not supported")

// Bounds on one file. Tokenizers of 260,000 tokens take 35 MB.
const (
	maxFile  = 128 << 20
	maxVocab = 1 << 21 // ids
	maxAdded = 1 << 16
	maxTrie  = 1 << 20 // bytes of added tokens

	maxTemplate = 1 << 10 // tokens
)

// Load reads a tokenizer.json, or the one in a model's folder.
func Load(path string) (*Tokenizer, error) {
	if i, err := os.Stat(path); err == nil && i.IsDir() {
		path = filepath.Join(path, "tokenizer.json")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	var data []byte
	if info.Size() <= maxFile { // of a pipe, that says nothing
		if data, err = io.ReadAll(io.LimitReader(f, maxFile+1)); err != nil {
			return nil, err
		}
	}
	if max(info.Size(), int64(len(data))) > maxFile {
		return nil, fmt.Errorf("%s: larger than %d MiB, which no tokenizer is", path, maxFile>>20)
	}
	t, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

// unsupported names what the file asks for, and what could be asked for.
func unsupported(what, known string) error {
	return fmt.Errorf("%s is %w (known: %s); count through the server's /tokenize or send token ids instead", what, ErrUnsupported, known)
}

func parse(data []byte) (*Tokenizer, error) {
	if err := valid(data); err != nil {
		return nil, err
	}
	parts, err := sections(bytes.TrimSpace(data))
	if err != nil {
		return nil, err
	}
	if v, ok := parts["version"]; ok && string(v) != `"1.0"` {
		return nil, unsupported("version "+kind(v), `"1.0"`)
	}
	t := &Tokenizer{special: map[uint32]bool{}, added: map[uint32]bool{}}
	var l loader
	for _, part := range []struct {
		name string
		read func(raw []byte) error
	}{
		{"normalizer", t.readNormalizer},
		{"pre_tokenizer", t.readPreTokenizer},
		{"decoder", readDecoder},
		{"model", func(raw []byte) error { return l.readModel(t, raw) }},
		{"added_tokens", func(raw []byte) error { return l.readAdded(t, raw) }},
		{"post_processor", t.readPostProcessor},
	} {
		if err := part.read(parts[part.name]); err != nil {
			return nil, fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return t, nil
}

// sections returns the members of an object by name. One that is there twice
// has no meaning that readers agree on.
func sections(raw []byte) (map[string][]byte, error) {
	all, err := members(raw)
	if err != nil {
		return nil, err
	}
	parts := map[string][]byte{}
	for name, v := range all {
		if _, twice := parts[name]; twice {
			return nil, fmt.Errorf("%q is there twice", name)
		}
		parts[name] = v
	}
	return parts, nil
}

// absent reports whether a section is missing or null.
func absent(raw []byte) bool { return len(raw) == 0 || string(raw) == "null" }

// stages returns the parts of a section: those of a Sequence, which lists them
// under name, or the section itself; none if it is absent. A Sequence inside is
// left to the caller, who knows no such type.
func stages(raw []byte, name string) ([]stage, error) {
	if absent(raw) {
		return nil, nil
	}
	var s stage
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, err
	}
	if s.Type != "Sequence" {
		return []stage{s}, nil
	}
	parts, err := sections(raw)
	if err != nil {
		return nil, err
	}
	var all []stage
	if err := json.Unmarshal(parts[name], &all); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return all, nil
}

// stage is one normalizer, pre-tokenizer or post-processor.
type stage struct {
	Type string
	raw  []byte
}

func (s *stage) UnmarshalJSON(raw []byte) error {
	type plain stage
	s.raw = bytes.Clone(raw)
	return json.Unmarshal(raw, (*plain)(s))
}

func (t *Tokenizer) readNormalizer(raw []byte) error {
	all, err := stages(raw, "normalizers")
	for _, s := range all {
		if s.Type != "NFC" {
			return unsupported(strconv.Quote(s.Type), "none, NFC")
		}
		t.nfc = true
	}
	return err
}

func (t *Tokenizer) readPreTokenizer(raw []byte) error {
	all, err := stages(raw, "pretokenizers")
	if err != nil {
		return err
	}
	names := make([]string, len(all))
	for i, s := range all {
		names[i] = s.Type
	}
	list := strings.Join(names, ", ")
	if list != "ByteLevel" && list != "Split, ByteLevel" {
		return unsupported(fmt.Sprintf("%.100q", list), "ByteLevel; Split, ByteLevel")
	}
	level := struct {
		AddPrefixSpace bool `json:"add_prefix_space"`
		UseRegex       bool `json:"use_regex"`
	}{AddPrefixSpace: true, UseRegex: true} // the defaults of the reference
	if err := json.Unmarshal(all[len(all)-1].raw, &level); err != nil {
		return err
	}
	switch {
	case level.AddPrefixSpace:
		return unsupported("add_prefix_space", "false")
	case len(all) == 1 && !level.UseRegex:
		return unsupported("ByteLevel with no split pattern", "use_regex, or a Split before it")
	case len(all) == 1:
		t.split = splitters[gpt2Pattern]
		return nil
	case level.UseRegex:
		return unsupported("ByteLevel with use_regex after a Split", "use_regex false")
	}
	return t.readSplit(all[0].raw)
}

func (t *Tokenizer) readSplit(raw []byte) error {
	var s struct {
		Pattern struct {
			Regex, String *string
		}
		Behavior string
		Invert   bool
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return err
	}
	if s.Pattern.String != nil || s.Pattern.Regex == nil {
		return unsupported("Split by anything but a Regex", "the patterns of Llama-3, Qwen2 and GPT-2")
	}
	// The known patterns leave nothing of the text unmatched, so removing what
	// they do not match is the same as keeping matches apart.
	if !(s.Behavior == "Isolated" && !s.Invert || s.Behavior == "Removed" && s.Invert) {
		return unsupported(fmt.Sprintf("Split with behavior %q, invert %t", s.Behavior, s.Invert), "Isolated")
	}
	if t.split = splitters[*s.Pattern.Regex]; t.split == nil {
		return unsupported(fmt.Sprintf("the split pattern %.300q", *s.Pattern.Regex), "those of Llama-3, Qwen2 and GPT-2")
	}
	return nil
}

func readDecoder(raw []byte) error {
	if absent(raw) {
		return unsupported("no decoder", "ByteLevel")
	}
	var s stage
	err := json.Unmarshal(raw, &s)
	if err == nil && s.Type != "ByteLevel" {
		err = unsupported(strconv.Quote(s.Type), "ByteLevel")
	}
	return err
}

// loader holds what only loading needs.
type loader struct {
	vocab map[string]uint32 // as the file spells tokens
	taken []bool            // ids that the model has
}

func (l *loader) readModel(t *Tokenizer, raw []byte) error {
	parts, err := sections(raw)
	if err != nil {
		return err
	}
	var m struct {
		Type         *string
		Dropout      float64
		IgnoreMerges bool   `json:"ignore_merges"`
		Prefix       string `json:"continuing_subword_prefix"`
		Suffix       string `json:"end_of_word_suffix"`
	}
	for name, into := range map[string]any{
		"type": &m.Type, "dropout": &m.Dropout, "ignore_merges": &m.IgnoreMerges,
		"continuing_subword_prefix": &m.Prefix, "end_of_word_suffix": &m.Suffix,
	} {
		if v, ok := parts[name]; ok {
			if err := json.Unmarshal(v, into); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	switch {
	case m.Type != nil && *m.Type != "BPE":
		return unsupported(strconv.Quote(*m.Type), "BPE")
	case m.Dropout != 0:
		return unsupported(fmt.Sprintf("dropout %v", m.Dropout), "none")
	case m.Prefix != "":
		return unsupported(fmt.Sprintf("continuing_subword_prefix %q", m.Prefix), "none")
	case m.Suffix != "":
		return unsupported(fmt.Sprintf("end_of_word_suffix %q", m.Suffix), "none")
	}
	if err := l.readVocab(t, parts["vocab"]); err != nil {
		return fmt.Errorf("vocab: %w", err)
	}
	// With a token for each byte, unk_token, fuse_unk and byte_fallback have
	// nothing to do.
	for b, r := range byteRunes {
		id, ok := l.vocab[string(r)]
		if !ok {
			return fmt.Errorf("vocab: %w: no token for byte 0x%02x (%q), which a byte-level vocabulary has", ErrUnsupported, b, r)
		}
		t.bpe.bytes[b] = id
	}
	if err := l.readMerges(t, parts["merges"]); err != nil {
		return fmt.Errorf("merges: %w", err)
	}
	if m.IgnoreMerges {
		t.bpe.words = make(map[string]uint32, len(l.vocab))
		for s, id := range l.vocab {
			if word, ok := bytesOf(s); ok {
				t.bpe.words[word] = id
			}
		}
	}
	t.bpe.seed = maphash.MakeSeed()
	t.bpe.cache = make([]atomic.Pointer[cached], cacheSlots)
	return nil
}

func (l *loader) readVocab(t *Tokenizer, raw []byte) error {
	all, err := members(raw)
	if err != nil {
		return err
	}
	l.vocab = map[string]uint32{}
	top := uint32(0)
	for s, v := range all {
		id, err := strconv.ParseUint(string(v), 10, 32)
		if err != nil {
			return fmt.Errorf("%q: id %s is no whole number", s, kind(v))
		}
		if id >= maxVocab || len(l.vocab) >= maxVocab {
			return fmt.Errorf("%q: id %d: a vocabulary of more than %d tokens is not read", s, id, maxVocab)
		}
		l.vocab[s] = uint32(id)
		top = max(top, uint32(id))
	}
	if len(l.vocab) == 0 {
		return errors.New("empty")
	}
	t.tokens = make([]string, top+1)
	l.taken = make([]bool, top+1)
	for s, id := range l.vocab {
		if l.taken[id] {
			return fmt.Errorf("two tokens have id %d, one of them %q", id, s)
		}
		l.taken[id] = true
		t.tokens[id] = decoded(s)
	}
	return nil
}

func (l *loader) readMerges(t *Tokenizer, raw []byte) error {
	all, err := elements(raw)
	if err != nil {
		return err
	}
	t.bpe.merges = map[uint64]merge{}
	var form byte // of the first: '"' or '['
	var joined []byte
	rank := uint32(0)
	i := -1
	for v := range all {
		i++
		if form == 0 {
			form = v[0]
		}
		left, right, ok := "", "", false
		switch {
		case v[0] != form:
			return fmt.Errorf("[%d]: %s: strings and pairs are mixed", i, kind(v))
		case form == '"':
			s, _ := text(v)
			if strings.HasPrefix(s, "#version") {
				continue
			}
			left, right, ok = strings.Cut(s, " ")
			ok = ok && !strings.Contains(right, " ")
		case form == '[':
			left, right, ok = twoStrings(v)
		}
		if !ok {
			return fmt.Errorf("[%d]: %s, want \"left right\" or [\"left\", \"right\"]", i, kind(v))
		}
		if rank >= maxMerges {
			return fmt.Errorf("more than %d merges are not read", maxMerges)
		}
		if left == "" || right == "" {
			return fmt.Errorf("[%d]: an empty side", i)
		}
		joined = append(append(joined[:0], left...), right...)
		a, ok1 := l.vocab[left]
		b, ok2 := l.vocab[right]
		id, ok3 := l.vocab[string(joined)]
		if !ok1 || !ok2 || !ok3 {
			return fmt.Errorf("[%d]: %q and %q: they or their join are not in the vocabulary", i, left, right)
		}
		t.bpe.merges[pair(a, b)] = merge{rank: rank, id: id}
		rank++
	}
	return nil
}

// twoStrings decodes a JSON array of two strings.
func twoStrings(raw []byte) (a, b string, ok bool) {
	all, err := elements(raw)
	if err != nil {
		return "", "", false
	}
	n := 0
	ok = true
	for v := range all {
		s, is := text(v)
		ok = ok && is
		switch n++; n {
		case 1:
			a = s
		case 2:
			b = s
		}
	}
	return a, b, ok && n == 2
}

func (l *loader) readAdded(t *Tokenizer, raw []byte) error {
	if absent(raw) {
		return nil
	}
	all, err := elements(raw)
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	trie := 0
	// The reference goes by content: a token of the model keeps its id, any
	// other gets the next free one, whatever the file says.
	next := uint32(len(l.vocab))
	i := -1
	for v := range all {
		i++
		var a struct {
			ID         int64
			Content    string
			SingleWord bool `json:"single_word"`
			Lstrip     bool
			Rstrip     bool
			Normalized bool
			Special    bool
		}
		if err := json.Unmarshal(v, &a); err != nil {
			return fmt.Errorf("[%d]: %w", i, err)
		}
		if i >= maxAdded {
			return fmt.Errorf("more than %d are not read", maxAdded)
		}
		if trie += len(a.Content); trie > maxTrie {
			return fmt.Errorf("more than %d bytes of them are not read", maxTrie)
		}
		id, inModel := l.vocab[a.Content]
		if !inModel {
			id = next
		}
		switch {
		case a.Content == "":
			return fmt.Errorf("[%d]: empty content", i)
		case seen[a.Content]:
			return fmt.Errorf("[%d]: %q is there twice", i, a.Content)
		case a.SingleWord:
			return unsupported(fmt.Sprintf("[%d]: %q: single_word", i, a.Content), "false")
		case a.ID != int64(id):
			return fmt.Errorf("[%d]: %q says id %d, but the reference would give it %d", i, a.Content, a.ID, id)
		case !inModel && int(id) < len(l.taken) && l.taken[id]:
			return fmt.Errorf("[%d]: %q has id %d, which a token of the model has", i, a.Content, id)
		case id >= maxVocab:
			return fmt.Errorf("[%d]: %q: id %d: a vocabulary of more than %d tokens is not read", i, a.Content, id, maxVocab)
		}
		seen[a.Content] = true
		if !inModel {
			next++
		}
		for len(t.tokens) <= int(id) {
			t.tokens = append(t.tokens, "")
		}
		content, m := a.Content, &t.raw
		if a.Normalized {
			m = &t.normalized
			if t.nfc {
				content = nfc(content)
			}
		}
		m.add(content, addedToken{id, a.Lstrip, a.Rstrip})
		t.tokens[id] = decoded(content)
		t.added[id] = true
		if a.Special {
			t.special[id] = true
		}
	}
	return nil
}

func (t *Tokenizer) readPostProcessor(raw []byte) error {
	all, err := stages(raw, "processors")
	for i, s := range all {
		switch s.Type {
		case "ByteLevel": // moves offsets, not ids
		case "TemplateProcessing":
			if len(t.prefix)+len(t.suffix) > 0 {
				return unsupported("a second TemplateProcessing", "one")
			}
			if err := t.readTemplate(s.raw); err != nil {
				return fmt.Errorf("[%d]: %w", i, err)
			}
		default:
			return unsupported(strconv.Quote(s.Type), "ByteLevel, TemplateProcessing, a Sequence of them")
		}
	}
	return err
}

func (t *Tokenizer) readTemplate(raw []byte) error {
	var p struct {
		Single []struct {
			SpecialToken *struct{ ID string }
			Sequence     *struct{ ID string }
		}
		SpecialTokens map[string]struct{ IDs []uint32 } `json:"special_tokens"`
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return err
	}
	inside := 0
	for i, s := range p.Single {
		switch {
		case s.Sequence != nil && s.SpecialToken == nil && s.Sequence.ID == "A":
			inside++
		case s.SpecialToken != nil && s.Sequence == nil:
			tok, ok := p.SpecialTokens[s.SpecialToken.ID]
			if !ok {
				return fmt.Errorf("single[%d]: special_tokens has no %q", i, s.SpecialToken.ID)
			}
			for _, id := range tok.IDs {
				if int64(id) >= int64(len(t.tokens)) {
					return fmt.Errorf("single[%d]: %q has id %d, beyond the vocabulary of %d", i, s.SpecialToken.ID, id, len(t.tokens))
				}
			}
			if len(t.prefix)+len(t.suffix)+len(tok.IDs) > maxTemplate {
				return fmt.Errorf("single[%d]: a template of more than %d tokens is not read", i, maxTemplate)
			}
			if inside == 0 {
				t.prefix = append(t.prefix, tok.IDs...)
			} else {
				t.suffix = append(t.suffix, tok.IDs...)
			}
		default:
			return fmt.Errorf("single[%d]: neither a SpecialToken nor the Sequence A", i)
		}
	}
	if inside != 1 {
		return fmt.Errorf("single: the text is there %d times, want once", inside)
	}
	return nil
}

// byteRunes are the characters by which a byte-level vocabulary spells bytes:
// printable ones stand for themselves, the others follow from U+0100 on.
// (GPT-2's bytes_to_unicode.)
var byteRunes = func() (t [256]rune) {
	n := rune(0)
	for b := range rune(256) {
		if b >= '!' && b <= '~' || b >= 0xa1 && b <= 0xac || b >= 0xae {
			t[b] = b
		} else {
			t[b] = 256 + n
			n++
		}
	}
	return t
}()

var runeBytes = func() map[rune]byte {
	m := map[rune]byte{}
	for b, r := range byteRunes {
		m[r] = byte(b)
	}
	return m
}()

// bytesOf returns the bytes that a token's spelling stands for; ok is false if
// it has a character that stands for none.
func bytesOf(s string) (string, bool) {
	b := make([]byte, 0, utf8.RuneCountInString(s))
	for _, r := range s {
		c, ok := runeBytes[r]
		if !ok {
			return "", false
		}
		b = append(b, c)
	}
	return string(b), true
}

// decoded returns what the decoder makes of a token: one that is not spelt in
// bytes, such as a special token with a space in it, stands for itself.
func decoded(s string) string {
	if b, ok := bytesOf(s); ok {
		return b
	}
	return s
}
