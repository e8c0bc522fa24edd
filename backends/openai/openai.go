// Package openai speaks to any OpenAI-compatible server, llama.cpp included.
//
// What the server is, it tells in /v1/models and /props, and Probe shapes the
// requests by it:
//
//   - llama.cpp takes token ids and ignore_eos, and counts tokens in the timings
//     of every event (timings_per_token).
//   - vLLM and SGLang behind a gateway take token ids, ignore_eos and continuous
//     usage.
//   - OpenAI itself gets text, and neither ignore_eos nor any field that it
//     would refuse: answers may then be shorter than asked for.
//   - Any other server gets text and ignore_eos.
//
// Where a server has no running count, an event with content is taken for one
// token until the usage block at the end settles the total.
package openai

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"reprise/backends"
	"reprise/internal/llmapi"
)

func init() {
	backends.Register("openai", func(c backends.Config) (backends.Backend, error) { return New(c) })
}

// A Backend is one OpenAI-compatible server.
type Backend struct {
	conf  backends.Config
	model string

	ids        bool   // prompts are token ids
	ignoreEOS  bool   // the server is told to go on to the asked length
	limit      string // name of the field for the answer's length
	continuous bool   // continuous usage
	timings    bool   // llama.cpp's timings in every event
	salt       bool   // cache_salt
	engine     string // as shape was told
}

var (
	_ backends.Backend = (*Backend)(nil)
	_ backends.Batcher = (*Backend)(nil)
)

// New returns a Backend for the server of c. Its options overrule what Probe
// would choose:
//
//	prompt=ids|text              what prompts are
//	ignore_eos=true|false        false for servers that refuse the field
//	max_tokens_field=NAME        max_tokens or max_completion_tokens
func New(c backends.Config) (*Backend, error) {
	if err := c.CheckOptions("ignore_eos", "max_tokens_field", "prompt"); err != nil {
		return nil, fmt.Errorf("openai: %w", err)
	}
	if _, err := c.BaseURL(); err != nil {
		return nil, fmt.Errorf("openai: %w", err)
	}
	for _, o := range [...]struct{ name, a, b string }{
		{"prompt", "ids", "text"},
		{"ignore_eos", "true", "false"},
		{"max_tokens_field", "max_tokens", "max_completion_tokens"},
	} {
		if v, ok := c.Options[o.name]; ok && v != o.a && v != o.b {
			return nil, fmt.Errorf("openai: option %s=%s: want %s or %s", o.name, v, o.a, o.b)
		}
	}
	if c.Chat && c.Options["prompt"] == "ids" {
		return nil, errors.New("openai: chat takes text: prompt=ids does not go with it")
	}
	b := &Backend{conf: c, model: c.Model}
	b.shape("")
	return b, nil
}

// The engines that shape tells apart.
const (
	llamaCpp = "llama.cpp"
	vllm     = "vllm"
	sglang   = "sglang"
	hosted   = "openai" // OpenAI's own service
)

// shape sets what requests look like for an engine.
func (b *Backend) shape(engine string) {
	b.engine = engine
	b.timings = engine == llamaCpp
	b.continuous = engine == vllm || engine == sglang
	b.salt = b.continuous
	b.ids = b.timings || b.continuous
	b.ignoreEOS = engine != hosted
	b.limit = "max_tokens"
	if engine == hosted && b.conf.Chat {
		b.limit = "max_completion_tokens" // max_tokens is refused by its newer models
	}
	switch b.conf.Options["prompt"] {
	case "ids":
		b.ids = true
	case "text":
		b.ids = false
	}
	switch b.conf.Options["ignore_eos"] {
	case "true":
		b.ignoreEOS = true
	case "false":
		b.ignoreEOS = false
	}
	if name := b.conf.Options["max_tokens_field"]; name != "" {
		b.limit = name
	}
	b.ids = b.ids && !b.conf.Chat
}

// TokenIDs implements [backends.Backend].
func (b *Backend) TokenIDs() bool { return b.ids }

// Tokenize returns the ids of text, without special tokens.
func (b *Backend) Tokenize(ctx context.Context, text string) ([]uint32, error) {
	if b.engine == hosted {
		return nil, backends.ErrNoTokenizer
	}
	return b.conf.Tokenize(ctx, b.model, text)
}

// TokenizePrompt returns the ids of the prompt that the server makes of text.
func (b *Backend) TokenizePrompt(ctx context.Context, text string) ([]uint32, error) {
	switch {
	case b.engine == hosted:
		return nil, backends.ErrNoTokenizer
	case !b.conf.Chat:
		return b.conf.TokenizeCompletion(ctx, b.model, text)
	case b.engine == llamaCpp:
		return b.conf.TokenizeTemplate(ctx, b.model, text)
	}
	return b.conf.TokenizeChat(ctx, b.model, text)
}

// NewDecoder implements [backends.Backend].
func (b *Backend) NewDecoder(c *backends.Call) backends.Decoder { return backends.NewDecoder(c) }

// Encode implements [backends.Backend]. The temperature is 0 where c has none;
// several choices are then sampled at 1, as some servers refuse greedy ones.
func (b *Backend) Encode(dst []byte, c *backends.Call) (path string, body []byte) {
	return b.encode(dst, c, nil)
}

// Batches implements [backends.Batcher]. Only of vLLM and SGLang is it known that
// they say which event is of which prompt, token by token.
func (b *Backend) Batches() (ok, lengths bool) { return b.ids && b.continuous, false }

// EncodeBatch implements [backends.Batcher].
func (b *Backend) EncodeBatch(dst []byte, calls []*backends.Call) (path string, body []byte) {
	return b.encode(dst, backends.LongestCall(calls), calls)
}

// encode encodes c, with the prompts of batch if there are any.
func (b *Backend) encode(dst []byte, c *backends.Call, batch []*backends.Call) (path string, body []byte) {
	dst = llmapi.AppendString(append(dst, `{"model":`...), b.model)
	path = "/v1/completions"
	switch {
	case b.conf.Chat:
		path = "/v1/chat/completions"
		dst = append(llmapi.AppendString(append(dst, `,"messages":[{"role":"user","content":`...), c.Text), `}]`...)
	case batch != nil:
		dst = backends.AppendPrompts(append(dst, `,"prompt":`...), batch)
	case b.ids:
		dst = llmapi.AppendIDs(append(dst, `,"prompt":`...), c.PromptIDs)
	default:
		dst = llmapi.AppendString(append(dst, `,"prompt":`...), c.Text)
	}
	dst = append(append(append(dst, `,"`...), b.limit...), `":`...)
	dst = strconv.AppendInt(dst, int64(c.MaxTokens), 10)
	if b.ignoreEOS {
		dst = append(dst, `,"ignore_eos":true`...)
	}
	t := c.Temperature.Or(0)
	if c.N > 1 {
		dst = strconv.AppendInt(append(dst, `,"n":`...), int64(c.N), 10)
		if t == 0 {
			t = 1
		}
	}
	if math.IsNaN(t) || math.IsInf(t, 0) {
		t = 0
	}
	dst = strconv.AppendFloat(append(dst, `,"temperature":`...), t, 'g', -1, 64)
	if b.salt && c.CacheSalt != "" {
		dst = llmapi.AppendString(append(dst, `,"cache_salt":`...), c.CacheSalt)
	}
	if c.Stream {
		dst = append(dst, `,"stream":true,"stream_options":{"include_usage":true`...)
		if b.continuous {
			dst = append(dst, `,"continuous_usage_stats":true`...)
		}
		dst = append(dst, '}')
		if b.timings {
			dst = append(dst, `,"timings_per_token":true`...)
		}
	}
	return path, append(dst, '}')
}

// Probe implements [backends.Backend].
func (b *Backend) Probe(ctx context.Context) (*backends.Info, error) {
	i := &backends.Info{Engine: "openai-compatible", Model: b.conf.Model, Config: map[string]string{}}
	m, err := b.conf.FindModel(ctx)
	switch e, ok := errors.AsType[*backends.StatusError](err); {
	case ok && e.Status == http.StatusNotFound && b.conf.Model != "":
		i.Warnings = append(i.Warnings, "there is no /v1/models: the context length is unknown")
	case ok && e.Status == http.StatusNotFound:
		return nil, fmt.Errorf("openai: %w: name the model", err)
	case err != nil:
		return nil, fmt.Errorf("openai: %w", err)
	default:
		i.Model, i.MaxLen = m.ID, m.MaxLen
	}
	b.model = i.Model

	engine := ""
	u, _ := url.Parse(b.conf.URL)
	switch owner := strings.ToLower(m.OwnedBy); {
	case owner == "llamacpp" || owner == "llama.cpp":
		engine = llamaCpp
	case owner == vllm || owner == sglang:
		engine = owner
	case owner == "system" || strings.HasPrefix(owner, "openai") || u != nil && u.Hostname() == "api.openai.com":
		engine = hosted
	}
	var props struct {
		Build    string `json:"build_info"`
		Slots    int    `json:"total_slots"`
		Settings struct {
			Context int `json:"n_ctx"` // of one slot
		} `json:"default_generation_settings"`
	}
	if engine == "" || engine == llamaCpp {
		if b.conf.AskJSON(ctx, "/props", nil, &props) == nil && props.Slots > 0 {
			engine = llamaCpp
			i.Version = props.Build
			i.MaxLen = props.Settings.Context
			i.Config["total_slots"] = strconv.Itoa(props.Slots)
			i.Config["slot_n_ctx"] = strconv.Itoa(props.Settings.Context)
		}
	}
	b.shape(engine)
	i.Cache.Salt = b.salt
	if engine == llamaCpp {
		i.Cache.Block = 1
	}
	if engine != "" {
		i.Engine = engine
	}
	if m.OwnedBy != "" {
		i.Config["owned_by"] = m.OwnedBy
	}

	switch {
	case engine == llamaCpp:
		// It closes the connection after each streamed answer, having said
		// "Keep-Alive: timeout=5": the next request on it may meet the close.
		i.NoReuse = true
		if i.MaxLen == 0 {
			i.MaxLen = m.Meta.Context
		}
		if b.ids {
			b.conf.FindVocab(ctx, i, "")
		}
	case b.continuous:
		if engine == sglang && i.MaxLen > 7 {
			// What of its context SGLang leaves to a request; see package sglang.
			i.MaxPrompt = i.MaxLen - 7
			i.MaxLen -= 2
		}
		if b.ids {
			b.conf.FindVocab(ctx, i, m.Root)
		}
	default:
		if b.ids {
			b.conf.FindVocab(ctx, i, "")
		}
		i.Warnings = append(i.Warnings, "the server may give no running token count: an event is then taken for one token, and gaps between tokens are only as exact as that")
	}
	if !b.ids && !b.conf.Chat {
		i.Warnings = append(i.Warnings, "prompts are text, as the server is not known to take token ids: their lengths are what its tokenizer makes of them (prompt=ids overrules)")
	}
	if !b.ignoreEOS {
		i.Warnings = append(i.Warnings, "the server is not told to ignore the end of text: answers may be shorter than asked for")
	}
	if i.MaxLen == 0 {
		i.Warnings = append(i.Warnings, "the server does not say its context length: requests that do not fit will fail")
	}
	return i, ctx.Err()
}
