// Package vllm speaks to vLLM servers through their OpenAI-compatible API.
//
// Prompts are token ids on /v1/completions, or text on /v1/chat/completions.
// Answers get their exact length by ignore_eos with min_tokens = max_tokens,
// and their tokens are counted by continuous usage, as vLLM puts several tokens
// into one event under load.
package vllm

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"reprise/backends"
	"reprise/internal/llmapi"
)

func init() {
	backends.Register("vllm", func(c backends.Config) (backends.Backend, error) { return New(c) })
}

// A Backend is one vLLM server.
type Backend struct {
	conf  backends.Config
	model string
}

var (
	_ backends.Backend = (*Backend)(nil)
	_ backends.Batcher = (*Backend)(nil)
)

// New returns a Backend for the server of c. There are no options.
func New(c backends.Config) (*Backend, error) {
	if err := c.CheckOptions(); err != nil {
		return nil, fmt.Errorf("vllm: %w", err)
	}
	if _, err := c.BaseURL(); err != nil {
		return nil, fmt.Errorf("vllm: %w", err)
	}
	return &Backend{conf: c, model: c.Model}, nil
}

// TokenIDs implements [backends.Backend].
func (b *Backend) TokenIDs() bool { return !b.conf.Chat }

// Tokenize returns the ids of text, without special tokens.
func (b *Backend) Tokenize(ctx context.Context, text string) ([]uint32, error) {
	return b.conf.Tokenize(ctx, b.model, text)
}

// TokenizePrompt returns the ids of the prompt that the server makes of text.
func (b *Backend) TokenizePrompt(ctx context.Context, text string) ([]uint32, error) {
	return b.conf.TokenizeChat(ctx, b.model, text)
}

// NewDecoder implements [backends.Backend].
func (b *Backend) NewDecoder(c *backends.Call) backends.Decoder { return backends.NewDecoder(c) }

// Encode implements [backends.Backend].
//
// The temperature is 0 where c has none, and no seed is sent: a seeded request
// kills vLLM on CPU when its prefill is chunked. vLLM refuses n > 1 at
// temperature 0, so those are sampled at 1.
func (b *Backend) Encode(dst []byte, c *backends.Call) (path string, body []byte) {
	return b.encode(dst, c, nil)
}

// Batches implements [backends.Batcher]: /v1/completions takes a list of prompts,
// and one length for all.
func (b *Backend) Batches() (ok, lengths bool) { return !b.conf.Chat, false }

// EncodeBatch implements [backends.Batcher].
func (b *Backend) EncodeBatch(dst []byte, calls []*backends.Call) (path string, body []byte) {
	return b.encode(dst, backends.LongestCall(calls), calls)
}

// encode encodes c, with the prompts of batch if there are any.
func (b *Backend) encode(dst []byte, c *backends.Call, batch []*backends.Call) (path string, body []byte) {
	dst = append(dst, '{')
	if b.model != "" {
		dst = append(llmapi.AppendString(append(dst, `"model":`...), b.model), ',')
	}
	switch {
	case b.conf.Chat:
		path = "/v1/chat/completions"
		dst = append(dst, `"messages":[{"role":"user","content":`...)
		dst = append(llmapi.AppendString(dst, c.Text), `}]`...)
	case batch != nil:
		path = "/v1/completions"
		dst = backends.AppendPrompts(append(dst, `"prompt":`...), batch)
	default:
		path = "/v1/completions"
		dst = llmapi.AppendIDs(append(dst, `"prompt":`...), c.PromptIDs)
	}
	dst = strconv.AppendInt(append(dst, `,"max_tokens":`...), int64(c.MaxTokens), 10)
	dst = strconv.AppendInt(append(dst, `,"min_tokens":`...), int64(c.MaxTokens), 10)
	dst = append(dst, `,"ignore_eos":true`...)
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
	if c.CacheSalt != "" {
		dst = llmapi.AppendString(append(dst, `,"cache_salt":`...), c.CacheSalt)
	}
	if c.Stream {
		dst = append(dst, `,"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}`...)
	}
	return path, append(dst, '}')
}

// Probe implements [backends.Backend].
func (b *Backend) Probe(ctx context.Context) (*backends.Info, error) {
	i := &backends.Info{Engine: "vllm", Config: map[string]string{}}
	m, err := b.conf.FindModel(ctx)
	if err != nil {
		return nil, fmt.Errorf("vllm: %w", err)
	}
	b.model = m.ID
	i.Model, i.MaxLen = m.ID, m.MaxLen
	i.Config["root"] = m.Root
	if i.MaxLen == 0 {
		i.Warnings = append(i.Warnings, "the server does not say its context length: vLLM cuts answers that do not fit short without an error")
	}

	var v struct {
		Version string `json:"version"`
	}
	if err := b.conf.AskJSON(ctx, "/version", nil, &v); err != nil {
		if _, ok := errors.AsType[*backends.StatusError](err); !ok {
			return nil, fmt.Errorf("vllm: %w", err)
		}
		i.Warnings = append(i.Warnings, "there is no /version: this may not be vLLM, or a proxy is in front of it")
	}
	i.Version = v.Version
	if before(v.Version, 6) {
		i.Warnings = append(i.Warnings, "vLLM "+v.Version+" may send no continuous usage: tokens are then counted by events, and checked by the total alone")
	}

	switch status, metrics, err := b.conf.Ask(ctx, "/metrics", nil); {
	case err != nil:
		return nil, fmt.Errorf("vllm: %w", err)
	case status != http.StatusOK:
		i.Warnings = append(i.Warnings, fmt.Sprintf("/metrics: status %d: the cache's configuration is not recorded", status))
	default:
		labels(i.Config, string(metrics), "vllm:cache_config_info{")
	}
	i.Cache = cacheInfo(i.Config)
	// Releases before 0.9 ignore the salt, as they do every field that they do
	// not know.
	i.Cache.Salt = !before(v.Version, 9)

	// Development mode only. The first call takes 2.5 s, in which the server
	// does little else: let it end, so that it is not under way in the run.
	var dev struct {
		Config string `json:"vllm_config"`
	}
	wait, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if b.conf.AskJSON(wait, "/server_info", nil, &dev) == nil && dev.Config != "" {
		i.Config["vllm_config"] = dev.Config
	}

	if b.TokenIDs() {
		b.conf.FindVocab(ctx, i, m.Root)
	}
	return i, ctx.Err()
}

// before reports whether a version is older than 0.minor: continuous usage is
// there for all endpoints since 0.6. Versions that are not numbers are builds
// from source.
func before(version string, minor int) bool {
	major, rest, _ := strings.Cut(version, ".")
	number, _, _ := strings.Cut(rest, ".")
	n, err := strconv.Atoi(number)
	return major == "0" && err == nil && n < minor
}

// labels adds the labels of the first sample that starts with prefix to m.
func labels(m map[string]string, metrics, prefix string) {
	_, rest, ok := strings.Cut(metrics, "\n"+prefix)
	if !ok {
		return
	}
	rest, _, _ = strings.Cut(rest, "\n") // one within a value is escaped
	for !strings.HasPrefix(rest, "}") {
		name, after, ok := strings.Cut(rest, `="`)
		if !ok {
			return
		}
		var v strings.Builder
		i := 0
		for ; i < len(after) && after[i] != '"'; i++ {
			if after[i] == '\\' && i+1 < len(after) {
				i++
				if after[i] == 'n' {
					v.WriteByte('\n')
					continue
				}
			}
			v.WriteByte(after[i])
		}
		if i == len(after) {
			return
		}
		m[name] = v.String()
		rest, ok = strings.CutPrefix(after[i+1:], ",")
		if !ok {
			return
		}
	}
}
