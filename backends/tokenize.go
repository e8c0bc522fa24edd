package backends

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"reprise/internal/llmapi"
)

// ErrNoTokenizer says that a server does not tell how it cuts text into tokens.
var ErrNoTokenizer = errors.New("the server does not tell how it cuts text into tokens")

// Tokenize returns the token ids that the server's /tokenize gives for text,
// without the special tokens that a prompt would begin with. A server that has
// no such page, or refuses, gives an error wrapping [ErrNoTokenizer].
func (c Config) Tokenize(ctx context.Context, model, text string) ([]uint32, error) {
	ids, err := c.tokenize(ctx, model, text, false)
	return ids, noTokenizer(err)
}

// TokenizeCompletion is Tokenize with the special tokens that a text prompt of
// the completions endpoint begins with.
func (c Config) TokenizeCompletion(ctx context.Context, model, text string) ([]uint32, error) {
	ids, err := c.tokenize(ctx, model, text, true)
	return ids, noTokenizer(err)
}

// TokenizeChat returns the token ids of a chat with one message of the user, in
// the server's own template, as vLLM and SGLang give them.
func (c Config) TokenizeChat(ctx context.Context, model, text string) ([]uint32, error) {
	b := llmapi.AppendString([]byte(`{"model":`), model)
	b = append(appendMessage(append(b, ','), text), '}')
	ids, err := c.askTokens(ctx, b)
	return ids, noTokenizer(err)
}

// TokenizeTemplate is TokenizeChat of llama.cpp, which writes a chat in its
// template on one page and tokenises on another, as it does within a request.
func (c Config) TokenizeTemplate(ctx context.Context, model, text string) ([]uint32, error) {
	var r struct {
		Prompt string `json:"prompt"`
	}
	if err := c.AskJSON(ctx, "/apply-template", append(appendMessage([]byte{'{'}, text), '}'), &r); err != nil {
		return nil, noTokenizer(err)
	}
	return c.TokenizeCompletion(ctx, model, r.Prompt)
}

// appendMessage appends the member "messages" of a request: one message of the
// user.
func appendMessage(dst []byte, text string) []byte {
	dst = append(dst, `"messages":[{"role":"user","content":`...)
	return append(llmapi.AppendString(dst, text), `}]`...)
}

// tokenize asks in all dialects at once: vLLM and SGLang take the text as
// prompt, llama.cpp as content; neither minds the other.
func (c Config) tokenize(ctx context.Context, model, text string, special bool) ([]uint32, error) {
	b := llmapi.AppendString([]byte(`{"model":`), model)
	b = llmapi.AppendString(append(b, `,"prompt":`...), text)
	b = llmapi.AppendString(append(b, `,"content":`...), text)
	return c.askTokens(ctx, fmt.Appendf(b, `,"add_special_tokens":%t,"add_special":%t}`, special, special))
}

func (c Config) askTokens(ctx context.Context, body []byte) ([]uint32, error) {
	var r struct {
		Tokens []uint32 `json:"tokens"`
	}
	if err := c.AskJSON(ctx, "/tokenize", body, &r); err != nil {
		return nil, err
	}
	return r.Tokens, nil
}

// noTokenizer marks the errors of a server that is well and has no tokens.
func noTokenizer(err error) error {
	e, ok := errors.AsType[*StatusError](err)
	if ok && (e.Status < http.StatusInternalServerError || e.Status == http.StatusNotImplemented) {
		return fmt.Errorf("%w: %w", ErrNoTokenizer, err)
	}
	return err
}
