package replay

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"

	"reprise/backends"
	"reprise/internal/tokenizer"
)

// Words are what the prompts of a plan are made of that go as text: each is one
// token of the server's, after a space, wherever it stands among others. So a
// prompt of N tokens is N words less what the server's template adds.
//
// A chat template stands before every prompt, as part of its first block: two
// prompts that share k recorded blocks share their first k × block size tokens
// as in the record, and two that share none share the template's head. What the
// template puts after a prompt takes the place of its last tokens, which may be
// of a shared block. Where only the size of the template is known, not how much
// of it stands before the message, blocks begin with the message.
type Words struct {
	// Source says where the words come from.
	Source WordSource `json:"source"`
	Count  int        `json:"words"`
	Digest string     `json:"digest"` // SHA-256 of the list; one seed gives one text with one list
	// Checked counts the tokens that were compared, word by word, with what the
	// server makes of the words.
	Checked int `json:"tokens_checked"`
	// NoSpace says that the first word of a prompt goes without its space, which
	// some templates cut off.
	NoSpace bool `json:"first_without_space"`
	// Template is how many tokens the server adds to the text of a prompt; Head of
	// them stand before it.
	Template       int    `json:"template_tokens"`
	Head           int    `json:"template_tokens_before"`
	TemplateSource string `json:"template_source"` // "tokenize", "usage" (of Probes requests of one token) or "unknown"
	Probes         int    `json:"requests_of_calibration,omitempty"`
	// Exact says that words and template were found to give exact lengths;
	// otherwise Warnings say why not.
	Exact    bool     `json:"exact"`
	Warnings []string `json:"-"` // they go among those of the run

	list []string
}

// A WordSource says how words were chosen.
type WordSource string

const (
	WordsFromFile   WordSource = "tokenizer.json" // one token each by the model's file
	WordsFromServer WordSource = "server"         // one token each by the server's own tokenizer
	WordsBuiltIn    WordSource = "built-in"       // one token each in the usual vocabularies
)

// A Tokenizer is a backend whose server tells how it cuts text into tokens. An
// error wrapping [backends.ErrNoTokenizer] says that it does not.
type Tokenizer interface {
	// Tokenize returns the ids of text, without special tokens.
	Tokenize(ctx context.Context, text string) ([]uint32, error)
	// TokenizePrompt returns the ids of the prompt that the server makes of a
	// [backends.Call] with that text.
	TokenizePrompt(ctx context.Context, text string) ([]uint32, error)
}

// A speller is a backend that knows words of its server's vocabulary.
type speller interface{ Words() []string }

// A WordConfig is what FindWords needs.
type WordConfig struct {
	Backend backends.Backend
	Info    *backends.Info
	// Ask sends a request to the server. It is for requests of one token, whose
	// usage tells the size of the template.
	Ask func(ctx context.Context, path string, body []byte) (status int, answer []byte, err error)
	// File is the model's tokenizer.json; nil without one.
	File *tokenizer.Tokenizer
}

// FindWords chooses the words of a server that takes text, and measures its
// template. The words come from the model's tokenizer file, or from trying
// words at the server's own tokenizer, or from a built-in list, by what there
// is; they are compared with the server's tokenizer, if it has one, in random
// order. The template is what the server's tokenizer adds to a message, or what
// the usage of three requests of one token says that it does.
//
// The same server gives the same words. An error means that the server could
// not be reached or that the file is another model's; anything less is in
// Words.Warnings.
func FindWords(ctx context.Context, c WordConfig) (*Words, error) {
	f := &finder{WordConfig: c, rand: rand.New(rand.NewPCG(1, 1)), w: &Words{TemplateSource: "unknown"}}
	f.server, _ = c.Backend.(Tokenizer)
	f.room = 4096
	if n := c.Info.MaxLen; n > 0 {
		f.room = min(max(n-16, 16), 64<<10)
	}
	if err := f.choose(ctx); err != nil {
		return nil, err
	}
	if err := f.template(ctx); err != nil {
		return nil, err
	}
	w := f.w
	h := sha256.New()
	for _, c := range f.words {
		w.list = append(w.list, c.text)
		h.Write([]byte(c.text + "\n"))
	}
	w.Count, w.Digest = len(w.list), hex.EncodeToString(h.Sum(nil))
	return w, nil
}

// builtInWords are the words for a server that nothing is known of.
func builtInWords() *Words { return &Words{Source: WordsBuiltIn, Count: len(common), list: common} }

// A word is a candidate: letters that follow a space.
type word struct {
	text string
	id   uint32 // with the space
	bare bool   // one token without the space too
	solo uint32 // that token
}

type finder struct {
	WordConfig
	w      *Words
	server Tokenizer // nil if it tells nothing
	rand   *rand.Rand
	words  []word
	room   int // bytes of a text that fit into the server's context, however they are cut
}

// minWords is the least vocabulary: with fewer, prompts that part would share
// their next token too often.
const minWords = 64

func (f *finder) warn(format string, a ...any) {
	f.w.Warnings = append(f.w.Warnings, fmt.Sprintf(format, a...))
}

// choose finds the words.
func (f *finder) choose(ctx context.Context) error {
	if f.File != nil {
		f.w.Source = WordsFromFile
		for _, w := range f.File.Words(0) {
			c := word{text: strings.TrimPrefix(w.Text, " "), id: w.ID, bare: w.Bare}
			if c.bare {
				c.solo = f.File.Encode(nil, c.text, tokenizer.Options{})[0]
			}
			f.words = append(f.words, c)
		}
		if len(f.words) < minWords {
			return fmt.Errorf("the tokenizer file has %d words of one token, too few to write prompts with", len(f.words))
		}
		if f.server == nil {
			return nil
		}
		bad, err := f.shuffled(ctx)
		switch {
		case errors.Is(err, backends.ErrNoTokenizer):
			f.server = nil
		case err != nil:
			return err
		case len(bad) > 0:
			return fmt.Errorf("the tokenizer file is not that of the server's model: %q has other tokens there", " "+bad[0])
		}
		return nil
	}
	if f.server != nil {
		err := f.calibrate(ctx)
		if err == nil {
			f.w.Source = WordsFromServer
			return nil
		}
		if !errors.Is(err, backends.ErrNoTokenizer) {
			return err
		}
		if why, ok := errors.AsType[*calibrationError](err); ok {
			f.warn("the server's tokenizer is of no use to write prompts: %v", why)
		}
		f.server = nil
	}
	f.w.Source = WordsBuiltIn
	f.words = nil
	for _, s := range common {
		f.words = append(f.words, word{text: s, bare: true})
	}
	return nil
}

// A calibrationError says why text of exact length cannot be had of a tokenizer.
type calibrationError struct{ reason string }

func (e *calibrationError) Error() string { return e.reason }
func (e *calibrationError) Unwrap() error { return backends.ErrNoTokenizer }

// calibrate keeps the candidates that the server's tokenizer makes one token of.
func (f *finder) calibrate(ctx context.Context) error {
	tries := candidates()
	if s, ok := f.Backend.(speller); ok {
		tries = append(s.Words(), tries...)
	}
	cut, err := f.lines(ctx, tries, " ")
	if err != nil {
		return err
	}
	seen := map[uint32]bool{}
	var kept []string
	for i, ids := range cut {
		if len(ids) == 1 && !seen[ids[0]] {
			seen[ids[0]] = true
			f.words = append(f.words, word{text: tries[i], id: ids[0]})
			kept = append(kept, tries[i])
		}
	}
	if cut, err = f.lines(ctx, kept, ""); err != nil {
		return err
	}
	for i, ids := range cut {
		if len(ids) == 1 {
			f.words[i].bare, f.words[i].solo = true, ids[0]
		}
	}
	// Drop what does not stay a token among others, until all do.
	const rounds = 8
	for range rounds {
		if len(f.words) < minWords {
			return &calibrationError{fmt.Sprintf("%d of %d words are one token, too few", len(f.words), len(tries))}
		}
		f.w.Checked = 0
		bad, err := f.shuffled(ctx)
		if err != nil || len(bad) == 0 {
			return err
		}
		f.words = slices.DeleteFunc(f.words, func(c word) bool { return slices.Contains(bad, c.text) })
	}
	return &calibrationError{"its words change with what stands beside them"}
}

// lines tokenises words in a line each, after the given space, and returns the
// ids of each.
func (f *finder) lines(ctx context.Context, words []string, space string) ([][]uint32, error) {
	cut := make([][]uint32, 0, len(words))
	for len(words) > 0 {
		var text strings.Builder
		n := 0
		for n < len(words) && (n == 0 || text.Len()+len(words[n])+2 <= f.room) {
			text.WriteString(space + words[n] + "\n")
			n++
		}
		ids, err := f.server.Tokenize(ctx, text.String())
		if err != nil {
			return nil, err
		}
		// The text ends with a line break, so the last token is one, or ends
		// with one, and then it is no separator.
		found := 0
		for start, i := 0, 0; i < len(ids); i++ {
			if ids[i] == ids[len(ids)-1] {
				cut = append(cut, ids[start:i])
				start = i + 1
				found++
			}
		}
		if found != n {
			return nil, &calibrationError{"a line break is not a token of its own"}
		}
		words = words[n:]
	}
	return cut, nil
}

// shuffled tokenises all words in random order, twice, and returns those that
// did not come out as their token, with their neighbours: any of these may be
// the cause. It counts the tokens that were compared.
func (f *finder) shuffled(ctx context.Context) (bad []string, err error) {
	for range 2 {
		order := slices.Clone(f.words)
		f.rand.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
		for len(order) > 0 {
			var text strings.Builder
			text.WriteByte('\n') // as lines has it
			n := 0
			for n < len(order) && (n == 0 || text.Len()+len(order[n].text)+1 <= f.room) {
				text.WriteString(" " + order[n].text)
				n++
			}
			ids, err := f.server.Tokenize(ctx, text.String())
			if err != nil {
				return nil, err
			}
			ids = ids[min(1, len(ids)):]
			f.w.Checked += n
			for i, c := range order[:n] {
				if i >= len(ids) || ids[i] != c.id || i == n-1 && len(ids) > n {
					bad = append(bad, c.text)
					if i > 0 {
						bad = append(bad, order[i-1].text)
					}
					break
				}
			}
			order = order[n:]
		}
	}
	return bad, nil
}

// template measures what the server adds to a prompt. A form of text is right if
// it holds for texts of several lengths that begin with different words: first
// with a space before every word, then without the first.
func (f *finder) template(ctx context.Context) error {
	bare := slices.DeleteFunc(slices.Clone(f.words), func(c word) bool { return !c.bare })
	forms := []struct {
		noSpace bool
		words   []word
	}{{false, f.words}, {true, bare}}
	measures := []func(context.Context, []word, bool) (bool, error){f.byUsage}
	if f.server != nil {
		measures = []func(context.Context, []word, bool) (bool, error){f.byTokenizer, f.byUsage}
	}
	for _, measure := range measures {
		for _, form := range forms {
			if len(form.words) < minWords {
				continue
			}
			ok, err := measure(ctx, form.words, form.noSpace)
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if errors.Is(err, backends.ErrNoTokenizer) {
				break
			}
			if err != nil {
				return err
			}
			if ok {
				f.w.NoSpace, f.words = form.noSpace, form.words
				f.w.Exact = f.w.Source != WordsBuiltIn
				if !f.w.Exact {
					f.warn("prompts are made of %d built-in words, each a token in the usual vocabularies: %d requests had the lengths asked for, the others are compared as they come; "+
						"--tokenizer FILE, the model's tokenizer.json, makes them exact", len(f.words), f.w.Probes)
				}
				return nil
			}
		}
	}
	f.warn("the lengths of text prompts are not exact: what the server adds to them, or how it cuts words, could not be measured%s; each is compared with what the server counts",
		map[bool]string{true: " without its tokenizer (--tokenizer FILE names the model's tokenizer.json)"}[f.w.Source == WordsBuiltIn])
	return nil
}

// text writes words as a prompt.
func (f *finder) text(words []word, noSpace bool) string {
	var b strings.Builder
	for i, c := range words {
		if i > 0 || !noSpace {
			b.WriteByte(' ')
		}
		b.WriteString(c.text)
	}
	return b.String()
}

// pick returns n of the words, at random.
func (f *finder) pick(words []word, n int) []word {
	out := make([]word, n)
	for i := range out {
		out[i] = words[f.rand.IntN(len(words))]
	}
	return out
}

// byTokenizer finds the words in the prompt that the server makes of them.
func (f *finder) byTokenizer(ctx context.Context, words []word, noSpace bool) (bool, error) {
	sizes := [...]int{64, 1, 2, 3, 4, 8, 16, 32, 64, 1, 1, 1}
	var head, tail []uint32
	checked := 0
	for k, n := range sizes {
		n = min(n, max(1, f.room/16))
		chosen := f.pick(words, n)
		want := make([]uint32, n)
		for i, c := range chosen {
			if want[i] = c.id; i == 0 && noSpace {
				want[i] = c.solo
			}
		}
		ids, err := f.server.TokenizePrompt(ctx, f.text(chosen, noSpace))
		if err != nil {
			return false, err
		}
		if k == 0 {
			at := 0
			for at+n <= len(ids) && !slices.Equal(ids[at:at+n], want) {
				at++
			}
			if at+n > len(ids) {
				return false, nil
			}
			head, tail = ids[:at], ids[at+n:]
		}
		if !slices.Equal(ids, slices.Concat(head, want, tail)) {
			return false, nil
		}
		checked += n
	}
	f.w.Checked += checked
	f.w.Template, f.w.Head, f.w.TemplateSource = len(head)+len(tail), len(head), "tokenize"
	return true, nil
}

// byUsage asks for one token after prompts of three lengths. The prompts are
// salted where the server can keep them apart from those of the run.
func (f *finder) byUsage(ctx context.Context, words []word, noSpace bool) (bool, error) {
	// A template that cuts the first space off shows in words that are one token
	// with it and more without: the first prompts begin with such, the last does
	// not.
	var split, sound []word
	for _, c := range words {
		if c.bare {
			sound = append(sound, c)
		} else {
			split = append(split, c)
		}
	}
	least := len(words)
	if f.w.Source != WordsBuiltIn {
		least = min(least, 256)
	}
	sizes := [...]int{1, min(17, max(2, f.room/8)), min(least, max(3, f.room/4))}
	template := 0
	for k, n := range sizes {
		chosen := f.pick(words, n)
		if n == len(words) {
			chosen = slices.Clone(words)
		}
		switch {
		case k < 2 && len(split) > 0:
			chosen[0] = split[f.rand.IntN(len(split))]
		case k == 2 && len(sound) > 0 && len(split) > 0:
			chosen[0] = sound[f.rand.IntN(len(sound))]
		}
		used, err := f.probe(ctx, f.text(chosen, noSpace))
		if err != nil {
			return false, err
		}
		if used < n || k > 0 && used-n != template {
			return false, nil
		}
		if k == 0 {
			// Should the others disagree, this is the best guess.
			template = used - n
			f.w.Template, f.w.TemplateSource = template, "usage"
		}
	}
	return true, nil
}

// probe returns the tokens that the server counts in a prompt. An error wrapping
// ErrNoTokenizer means that it does not say.
func (f *finder) probe(ctx context.Context, text string) (int, error) {
	call := &backends.Call{ID: fmt.Sprintf("reprise-calibration-%d", f.w.Probes), Text: text, MaxTokens: 1}
	if f.Info.Cache.Salt {
		call.CacheSalt = "reprise-calibration"
	}
	f.w.Probes++
	path, body := f.Backend.Encode(nil, call)
	status, answer, err := f.Ask(ctx, path, body)
	if err != nil {
		return 0, fmt.Errorf("%w: %w", backends.ErrNoTokenizer, err)
	}
	d := f.Backend.NewDecoder(call)
	_, err = d.Body(status, answer)
	r := d.Result()
	if err != nil || status != http.StatusOK || r.Error != "" || !r.PromptTokens.OK {
		return 0, fmt.Errorf("%w: %s: status %d: %s", backends.ErrNoTokenizer, path, status, r.Message)
	}
	return int(r.PromptTokens.V), nil
}
