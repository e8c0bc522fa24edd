package capture

import (
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"reprise/internal/tokenizer"
	"reprise/traceformat"
)

func loadTokenizer(t testing.TB) *tokenizer.Tokenizer {
	t.Helper()
	tok, err := tokenizer.Load(filepath.Join("..", "internal", "tokenizer", "testdata", "llama3.json"))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// With a tokenizer, lengths that no server says are counted, and blocks are of
// tokens.
func TestTokenizer(t *testing.T) {
	tok := loadTokenizer(t)
	words := strings.Repeat("the quick brown fox ", 30)
	n := tok.Count(words)
	o := Options{Tokenizer: tok, TokenizerName: "llama3", Key: NewKey()}
	r, s := newTest(t, o)
	exchange(r, "/v1/chat/completions", `{"stream":true,"messages":[{"role":"user","content":"`+words+`"}]}`, 200, "text/event-stream",
		`{"choices":[{"index":0,"delta":{"content":"the quick"}}]}`,
		`{"choices":[{"index":0,"delta":{"content":" brown fox"},"finish_reason":"stop"}]}`)
	exchange(r, "/v1/completions", `{"prompt":"`+words+`"}`, 200, "application/json",
		`{"choices":[{"index":0,"text":"the quick brown fox","finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":3}}`)
	exchange(r, "/generate", `{"text":"`+words+`","stream":true}`, 200, "text/event-stream",
		`{"text":"the quick"}`, `{"text":"the quick brown"}`, `{"text":"the quick brown fox","meta_info":{"finish_reason":{"type":"stop"}}}`)
	chat, usage, native := s.rows[0], s.rows[1], s.rows[2]
	if chat.PromptTokens.V != int32(n) || chat.PromptTokensSource != traceformat.SourceTokenizer {
		t.Errorf("prompt of %v by %q, want %d by the tokenizer", chat.PromptTokens, chat.PromptTokensSource, n)
	}
	if want := int32(tok.Count("the quick brown fox")); chat.OutputTokens.V != want || chat.OutputTokensSource != traceformat.SourceTokenizer {
		t.Errorf("answer of %v by %q, want %d by the tokenizer", chat.OutputTokens, chat.OutputTokensSource, want)
	} else if native.OutputTokens.V != want {
		t.Errorf("cumulative answer of %v, want %d", native.OutputTokens, want)
	}
	if usage.PromptTokens.V != 7 || usage.OutputTokens.V != 3 || usage.PromptTokensSource != traceformat.SourceUsage {
		t.Errorf("row %s: usage goes before the tokenizer", rowText(usage))
	}
	if got := len(usage.PrefixBlocks); got != n/16 || !slices.Equal(usage.PrefixBlocks, native.PrefixBlocks) {
		t.Errorf("%d blocks of %d tokens, want %d, the same for both", got, n, n/16)
	}
	if h := r.Header(); h.Tokenizer != "llama3" || h.Blocks.Size != 16 || h.Blocks.Bytes != 0 {
		t.Errorf("header %+v", h)
	}
}

// A conversation is found with a tokenizer as without.
func TestTokenizerSessions(t *testing.T) {
	r, s := newTest(t, Options{Tokenizer: loadTokenizer(t)})
	for _, c := range []turn{
		{at: 0, messages: []string{"user", "hi"}, answer: "one"},
		{at: 2 * time.Second, messages: []string{"user", "hi"}, answer: "two"},
		{at: 9 * time.Second, messages: []string{"user", "hi", "assistant", "one", "user", "more"}, answer: "x"},
	} {
		c.play(r)
	}
	if p := s.rows[2].Parent; p != traceformat.Some[int64](0) {
		t.Errorf("parent %v, want 0; %s", p, rowText(s.rows[2]))
	}
}

// The size of a block of bytes, in tokens, is learnt from the servers' counts.
func TestBlockSizeIsMeasured(t *testing.T) {
	r, _ := newTest(t, Options{})
	if n := r.Header().Blocks.Size; n != 16 {
		t.Errorf("block of %d tokens before anything is known, want 16", n)
	}
	for range 10 {
		exchange(r, "/v1/completions", `{"prompt":"`+strings.Repeat("a", 1000)+`"}`, 200, "application/json", `{"choices":[],"usage":{"prompt_tokens":500,"completion_tokens":3}}`)
	}
	if b := r.Header().Blocks; b.Size != 32 || b.Bytes != 64 || b.Of != traceformat.BlocksOfContent {
		t.Errorf("blocks %+v, want 32 tokens in 64 bytes", b)
	}
}

// A Recorder takes exchanges from many goroutines.
func TestConcurrent(t *testing.T) {
	r, s := newTest(t, Options{Sample: Sample{Of: 2}})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				exchange(r, "/v1/chat/completions", `{"stream":true,"messages":[{"role":"user","content":"x"}]}`, 200, "text/event-stream", `{"choices":[{"delta":{"content":"a"},"finish_reason":"stop"}]}`)
				r.Drop(ReasonQueueFull)
				r.Record(&Logged{Arrival: epoch, Session: "s"})
				r.Accounts()
				r.Header()
			}
		})
	}
	wg.Wait()
	a := r.Accounts()
	if a.Seen != 1200 || a.Reasons[ReasonQueueFull] != 400 || a.Recorded != int64(len(s.rows)) {
		t.Errorf("accounts %v", a)
	}
	ids := map[int64]bool{}
	for _, row := range s.rows {
		ids[row.ID] = true
	}
	if len(ids) != len(s.rows) {
		t.Errorf("%d ids for %d rows", len(ids), len(s.rows))
	}
}

func TestLogged(t *testing.T) {
	key := NewKey()
	r, s := newTest(t, Options{Key: key, Slack: time.Hour, Blocks: &traceformat.Blocks{Size: 16, Scheme: "litellm"}})
	row := traceformat.Row{}
	row.Model, row.E2E, row.Extra = "m", traceformat.Some(2*time.Second), `{"a":1}`
	log := func(at int64, session, id string, hashes ...string) {
		r.Record(&Logged{Row: row, Arrival: epoch + at*1e9, Client: "10.0.0.1", Session: session, User: "u", RequestID: id, PrefixHashes: hashes, Attempts: 2})
	}
	log(10, "s", "1", "aa", "bb")
	log(15, "s", "2", "aa", "cc")
	log(15, "s", "2", "aa", "cc") // again
	log(3, "t", "3")              // earlier than the first
	log(12, "s", "4")             // overtaken
	if len(s.rows) != 4 || r.Accounts().Reasons[ReasonRetry] != 1 {
		t.Fatalf("%d rows, %v", len(s.rows), r.Accounts())
	}
	a, b, early, late := s.rows[0], s.rows[1], s.rows[2], s.rows[3]
	if a.PrefixBlocks[0] != b.PrefixBlocks[0] || a.PrefixBlocks[1] == b.PrefixBlocks[1] || early.PrefixBlocks != nil {
		t.Errorf("blocks %v, %v, %v", a.PrefixBlocks, b.PrefixBlocks, early.PrefixBlocks)
	}
	if b.Parent.V != a.ID || b.Turn.V != 1 || b.Think.V != 3*time.Second || late.Turn.OK {
		t.Errorf("second row %s, late row %s", rowText(b), rowText(late))
	}
	if early.Arrival >= a.Arrival || early.Arrival < 0 {
		t.Errorf("the earlier row arrives at %v, the first at %v", early.Arrival, a.Arrival)
	}
	if want := `{"a":1,"attempts":2,"user":"` + key.pseudonym(domainUser, "", "u") + `"}`; a.Extra != want {
		t.Errorf("extra %s, want %s", a.Extra, want)
	}
}
