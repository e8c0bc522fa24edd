package replay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"reprise/backends"
	"reprise/internal/tokenizer"
	"reprise/traceformat"
)

// A textServer is a server of text prompts with a real tokenizer and a chat
// template.
type textServer struct {
	tok      *tokenizer.Tokenizer
	template func(string) string
	cut      func([]uint32) []uint32 // what else befalls the ids, nil: nothing
	usage    bool                    // its answers count tokens
	asked    int                     // requests of one token
	tried    int                     // texts tokenised
}

func (s *textServer) Probe(context.Context) (*backends.Info, error) { return &backends.Info{}, nil }
func (s *textServer) TokenIDs() bool                                { return false }
func (s *textServer) Encode(dst []byte, c *backends.Call) (string, []byte) {
	b, _ := json.Marshal(c.Text)
	return "/chat", append(dst, b...)
}
func (s *textServer) NewDecoder(c *backends.Call) backends.Decoder { return backends.NewDecoder(c) }

func (s *textServer) ids(text string) []uint32 {
	ids := s.tok.Encode(nil, text, tokenizer.Options{})
	if s.cut != nil {
		ids = s.cut(ids)
	}
	return ids
}

// prompt is what the server makes of a message.
func (s *textServer) prompt(text string) []uint32 { return s.ids(s.template(text)) }

func (s *textServer) ask(_ context.Context, path string, body []byte) (int, []byte, error) {
	s.asked++
	var text string
	if err := json.Unmarshal(body, &text); err != nil || path != "/chat" {
		return 400, []byte(`{"error":{"message":"bad"}}`), nil
	}
	usage := ""
	if s.usage {
		usage = fmt.Sprintf(`,"usage":{"prompt_tokens":%d,"completion_tokens":1}`, len(s.prompt(text)))
	}
	return 200, []byte(`{"choices":[{"index":0,"message":{"role":"assistant","content":"x"},"finish_reason":"length"}]` + usage + `}`), nil
}

// half tells how it cuts text, and not its template; whole tells both.
type half struct{ *textServer }

func (s half) Tokenize(_ context.Context, text string) ([]uint32, error) {
	s.tried++
	return s.ids(text), nil
}
func (half) TokenizePrompt(context.Context, string) ([]uint32, error) {
	return nil, backends.ErrNoTokenizer
}

type whole struct{ half }

func (s whole) TokenizePrompt(_ context.Context, text string) ([]uint32, error) {
	return s.prompt(text), nil
}

// mute has the pages and refuses them.
type mute struct{ *textServer }

func (mute) Tokenize(context.Context, string) ([]uint32, error) {
	return nil, fmt.Errorf("%w: 404", backends.ErrNoTokenizer)
}
func (mute) TokenizePrompt(context.Context, string) ([]uint32, error) {
	return nil, fmt.Errorf("%w: 404", backends.ErrNoTokenizer)
}

func testTokenizer(t testing.TB, shape string) *tokenizer.Tokenizer {
	t.Helper()
	tok, err := tokenizer.Load(filepath.Join("..", "internal", "tokenizer", "testdata", shape+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func chatML(s string) string {
	return "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\n" + s + "<|im_end|>\n<|im_start|>assistant\n"
}

func trimming(s string) string { return chatML(strings.TrimSpace(s)) }

func TestFindWords(t *testing.T) {
	tests := []struct {
		name     string
		template func(string) string
		server   func(*textServer) backends.Backend
		noUsage  bool
		file     bool
		want     Words
		warn     string // a piece of the only warning, empty: none
	}{
		{name: "the server tells everything", template: chatML, server: func(s *textServer) backends.Backend { return whole{half{s}} },
			want: Words{Source: WordsFromServer, TemplateSource: "tokenize", Exact: true}},
		{name: "the template cuts spaces off", template: trimming, server: func(s *textServer) backends.Backend { return whole{half{s}} },
			want: Words{Source: WordsFromServer, TemplateSource: "tokenize", Exact: true, NoSpace: true}},
		{name: "the template is told by usage alone", template: chatML, server: func(s *textServer) backends.Backend { return half{s} },
			want: Words{Source: WordsFromServer, TemplateSource: "usage", Probes: 3, Exact: true}},
		{name: "usage tells of spaces cut off", template: trimming, server: func(s *textServer) backends.Backend { return half{s} },
			want: Words{Source: WordsFromServer, TemplateSource: "usage", NoSpace: true, Exact: true}},
		{name: "a file, and the server agrees", template: chatML, file: true, server: func(s *textServer) backends.Backend { return whole{half{s}} },
			want: Words{Source: WordsFromFile, TemplateSource: "tokenize", Exact: true}},
		{name: "a file, and a server that tells nothing", template: chatML, file: true, server: func(s *textServer) backends.Backend { return s },
			want: Words{Source: WordsFromFile, TemplateSource: "usage", Probes: 3, Exact: true}},
		{name: "a file, and spaces cut off", template: trimming, file: true, server: func(s *textServer) backends.Backend { return mute{s} },
			want: Words{Source: WordsFromFile, TemplateSource: "usage", NoSpace: true, Exact: true}},
		{name: "a file, and a server that does not count", template: chatML, file: true, noUsage: true, server: func(s *textServer) backends.Backend { return s },
			want: Words{Source: WordsFromFile, TemplateSource: "unknown", Probes: 1}, warn: "not exact"},
		{name: "nothing is told", template: chatML, server: func(s *textServer) backends.Backend { return mute{s} },
			want: Words{Source: WordsBuiltIn, TemplateSource: "usage"}, warn: "--tokenizer FILE"},
	}
	for _, shape := range []string{"gpt2", "llama3", "qwen2"} {
		for _, tt := range tests {
			t.Run(shape+"/"+tt.name, func(t *testing.T) {
				s := &textServer{tok: testTokenizer(t, shape), template: tt.template, usage: !tt.noUsage}
				c := WordConfig{Backend: tt.server(s), Info: &backends.Info{MaxLen: 4096}, Ask: s.ask}
				if tt.file {
					c.File = s.tok
				}
				w, err := FindWords(t.Context(), c)
				if err != nil {
					t.Fatal(err)
				}
				t.Logf("%d words of %d texts, %d tokens checked, template %d, %d of it before, %d requests", w.Count, s.tried, w.Checked, w.Template, w.Head, w.Probes)
				if w.Source != tt.want.Source || w.TemplateSource != tt.want.TemplateSource || w.Exact != tt.want.Exact || w.NoSpace != tt.want.NoSpace {
					t.Errorf("words %+v\nwant  %+v", *w, tt.want)
				}
				if tt.want.Probes > 0 && w.Probes != tt.want.Probes || w.Probes != s.asked {
					t.Errorf("%d requests of one token, %d counted", s.asked, w.Probes)
				}
				if tt.warn == "" && len(w.Warnings) > 0 || tt.warn != "" && (len(w.Warnings) != 1 || !strings.Contains(w.Warnings[0], tt.warn)) {
					t.Errorf("warnings %q, want %q", w.Warnings, tt.warn)
				}
				if again, err := FindWords(t.Context(), c); err != nil || !slices.Equal(again.list, w.list) || again.Digest != w.Digest {
					t.Errorf("other words the second time, %v", err)
				}
				exactPrompts(t, s, w)
			})
		}
	}
}

// exactPrompts plans a trace of prompts that share blocks and compares the
// server's tokens with the record.
func exactPrompts(t *testing.T, s *textServer, w *Words) {
	t.Helper()
	const size = 32
	trace := &rowsOf{}
	trace.header.Blocks.Size = size
	rnd := rand.New(rand.NewPCG(3, 3))
	for i := range 60 {
		var r traceformat.Row
		r.ID = int64(i)
		r.PromptTokens, r.OutputTokens = traceformat.Some(int32(70+rnd.IntN(200))), traceformat.Some[int32](4)
		path := uint64(1)
		for range (int(r.PromptTokens.V) - 1) / size {
			path = path*5 + rnd.Uint64N(3)
			r.PrefixBlocks = append(r.PrefixBlocks, path)
		}
		trace.rows = append(trace.rows, r)
	}
	p, err := NewPlan(trace.source(), Defaults(), Target{Text: true, Words: w})
	if err != nil {
		t.Fatal(err)
	}
	var prompts [][]uint32
	for i := range trace.rows {
		r := &trace.rows[i].Request
		var text textWriter
		ids := s.prompt(text.write(w, p.prompts.append(nil, r, int(r.PromptTokens.V)-p.template(), 0)))
		if off := len(ids) - int(r.PromptTokens.V); w.Exact && off != 0 {
			t.Fatalf("row %d has %d tokens, want %d", i, len(ids), r.PromptTokens.V)
		}
		prompts = append(prompts, ids)
	}
	if !w.Exact || w.TemplateSource != "tokenize" {
		return
	}
	for i := range prompts {
		for j := range i {
			a, b := trace.rows[i].PrefixBlocks, trace.rows[j].PrefixBlocks
			k := 0
			for k < len(a) && k < len(b) && a[k] == b[k] {
				k++
			}
			// The template's end stands where the record has more of the prompt.
			words := min(len(prompts[i]), len(prompts[j])) - (w.Template - w.Head)
			if got, want := commonPrefix(prompts[i], prompts[j]), max(min(k*size, words), w.Head); got != want {
				t.Fatalf("rows %d and %d share %d tokens, want %d: %d blocks and a template of %d", j, i, got, want, k, w.Head)
			}
		}
	}
}

// A file of another model is refused: lengths would be off without a sign.
func TestFindWordsWithAnotherModelsFile(t *testing.T) {
	s := &textServer{tok: testTokenizer(t, "gpt2"), template: chatML, usage: true}
	_, err := FindWords(t.Context(), WordConfig{Backend: whole{half{s}}, Info: &backends.Info{}, Ask: s.ask, File: testTokenizer(t, "llama3")})
	if err == nil || !strings.Contains(err.Error(), "not that of the server's model") {
		t.Errorf("error %v, want that the file is not the server's", err)
	}
}

// Words that change beside others are left out.
func TestFindWordsDropsWhatMerges(t *testing.T) {
	s := &textServer{tok: testTokenizer(t, "qwen2"), template: chatML, usage: true}
	clean, err := FindWords(t.Context(), WordConfig{Backend: whole{half{s}}, Info: &backends.Info{}, Ask: s.ask})
	if err != nil {
		t.Fatal(err)
	}
	// One word eats whatever token of text comes after it.
	eater := s.tok.Encode(nil, " "+clean.list[0], tokenizer.Options{})[0]
	s.cut = func(ids []uint32) (out []uint32) {
		for i := 0; i < len(ids); i++ {
			out = append(out, ids[i])
			if ids[i] == eater && i+1 < len(ids) && strings.HasPrefix(s.tok.Decode(ids[i+1:i+2]), " ") {
				out[len(out)-1] = 1 << 20
				i++
			}
		}
		return out
	}
	w, err := FindWords(t.Context(), WordConfig{Backend: whole{half{s}}, Info: &backends.Info{}, Ask: s.ask})
	if err != nil {
		t.Fatal(err)
	}
	if slices.Contains(w.list, clean.list[0]) || w.Count < clean.Count-8 || !w.Exact {
		t.Errorf("%d of %d words are left, exact %t, %q among them: %t", w.Count, clean.Count, w.Exact, clean.list[0], slices.Contains(w.list, clean.list[0]))
	}
	exactPrompts(t, s, w)
}

// A tokenizer that cannot be calibrated leaves the built-in words, and says so.
func TestFindWordsOfUselessTokenizers(t *testing.T) {
	for _, tt := range []struct {
		name string
		cut  func([]uint32) []uint32
		want string
	}{
		{"no tokens", func([]uint32) []uint32 { return nil }, "a line break is not a token"},
		{"one token for all", func(ids []uint32) []uint32 { return ids[:min(1, len(ids))] }, "a line break is not a token"},
		{"alike", func(ids []uint32) []uint32 { return make([]uint32, len(ids)) }, "a line break is not a token"},
	} {
		s := &textServer{tok: testTokenizer(t, "gpt2"), template: chatML, usage: true, cut: tt.cut}
		w, err := FindWords(t.Context(), WordConfig{Backend: whole{half{s}}, Info: &backends.Info{}, Ask: s.ask})
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if w.Source != WordsBuiltIn || w.Exact || len(w.Warnings) != 2 || !strings.Contains(w.Warnings[0], tt.want) {
			t.Errorf("%s: words %+v, warnings %q; want built-in ones, and %q", tt.name, w, w.Warnings, tt.want)
		}
	}
}

// A server that goes away ends the search; it does not become a guess.
func TestFindWordsOfDeadServer(t *testing.T) {
	s := &textServer{tok: testTokenizer(t, "gpt2"), template: chatML}
	dead := errors.New("connection refused")
	_, err := FindWords(t.Context(), WordConfig{Backend: broken{whole{half{s}}, dead}, Info: &backends.Info{}, Ask: s.ask})
	if !errors.Is(err, dead) {
		t.Errorf("error %v, want %v", err, dead)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := FindWords(ctx, WordConfig{Backend: s, Info: &backends.Info{}, Ask: func(ctx context.Context, _ string, _ []byte) (int, []byte, error) {
		return 0, nil, ctx.Err()
	}}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want that it was called off", err)
	}
}

type broken struct {
	whole
	err error
}

func (b broken) Tokenize(context.Context, string) ([]uint32, error) { return nil, b.err }

// Rows that the template alone outgrows are never sent silently.
func TestRowsShorterThanTheTemplate(t *testing.T) {
	w := &Words{Source: WordsBuiltIn, Count: len(common), list: common, Template: 12}
	trace := every(4, 1)
	for i, n := range []int32{100, 12, 13, 3} {
		trace.rows[i].PromptTokens.V = n
	}
	tests := []struct {
		policy     Policy
		rows       int64
		skipped    int64
		lengthened int64
		prompts    int64
		err        string
	}{
		{Fail, 0, 0, 0, 0, "2 rows are shorter than the chat template, which takes 12 tokens and at least a word\n  row 1 (id 1): 12 tokens\n  row 3 (id 3): 3 tokens"},
		{Skip, 2, 2, 0, 113, ""},
		{Clip, 4, 0, 2, 139, ""},
	}
	for _, tt := range tests {
		o := Defaults()
		o.TooLong = tt.policy
		p, err := NewPlan(trace.source(), o, Target{Text: true, Words: w, MaxLen: 4096})
		if tt.err != "" {
			if e, ok := errors.AsType[*PlanError](err); !ok || e.Error() != tt.err || !strings.Contains(e.Hint, "--too-long skip") {
				t.Errorf("%s: error %v, want %s", tt.policy, err, tt.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", tt.policy, err)
			continue
		}
		if p.Rows != tt.rows || p.Skipped["shorter than the chat template"] != tt.skipped || p.Lengthened != tt.lengthened || p.PromptTokens != tt.prompts {
			t.Errorf("%s: %d rows, skipped %v, %d lengthened, %d prompt tokens", tt.policy, p.Rows, p.Skipped, p.Lengthened, p.PromptTokens)
		}
	}
	o := Defaults()
	o.TooLong = Clip
	if _, err := NewPlan(trace.source(), o, Target{Text: true, Words: w, MaxLen: 13}); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("a context of 13 tokens: %v, want no room for the template's 12, a word and an answer", err)
	}
	// The least context that there is room in: a word, and a token of answer.
	if p, err := NewPlan(trace.source(), o, Target{Text: true, Words: w, MaxLen: 14}); err != nil || p.PromptTokens != 4*13 || p.OutputTokens != 4 {
		t.Errorf("a context of 14 tokens: %v, %+v", err, p)
	}
}

// A template longer than a block takes the whole of it.
func TestPromptsUnderALongTemplate(t *testing.T) {
	const size = 16
	p := newPrompts(1, Vocabulary{Size: 500}, size, 40)
	rows := []traceformat.Request{
		{ID: 0, PrefixBlocks: []uint64{1, 2, 3, 4, 5}},
		{ID: 1, PrefixBlocks: []uint64{1, 2, 3, 4, 6}},
		{ID: 2, PrefixBlocks: []uint64{7, 8, 9, 10, 11}},
	}
	const n = 80 - 40
	var ids [][]uint32
	for i := range rows {
		p.learn(&rows[i], n)
	}
	for i := range rows {
		ids = append(ids, p.append(nil, &rows[i], n, 0))
		if len(ids[i]) != n {
			t.Fatalf("row %d has %d tokens, want %d", i, len(ids[i]), n)
		}
	}
	if a, b := commonPrefix(ids[0], ids[1]), commonPrefix(ids[0], ids[2]); a != 4*size-40 || b != 0 {
		t.Errorf("four common blocks share %d tokens beside the template, none share %d; want %d, 0", a, b, 4*size-40)
	}
}

func TestCandidates(t *testing.T) {
	all := candidates()
	seen := map[string]bool{}
	for _, s := range all {
		if seen[s] || strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" || s == "" {
			t.Fatalf("candidate %q comes twice, or is no word", s)
		}
		seen[s] = true
	}
	for _, s := range []string{"the", "The", "question", "questions", "a", "zz", "zzz"} {
		if !seen[s] {
			t.Errorf("%q is not tried", s)
		}
	}
	t.Logf("%d candidates", len(all))
}
