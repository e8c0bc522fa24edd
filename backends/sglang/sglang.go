// Package sglang speaks to SGLang servers through their native /generate, or
// through the OpenAI-compatible API.
//
// On /generate, prompts are token ids, answers get their exact length by
// ignore_eos with min_new_tokens = max_new_tokens, and tokens are counted by
// meta_info.completion_tokens, which every event carries: that holds for the
// cumulative replies of the default as for --incremental-streaming-output.
//
// A single token id beyond the vocabulary kills an SGLang server. Probe finds
// the safe range without trying ids; what is encoded must stay inside it.
package sglang

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"

	"reprise/backends"
	"reprise/internal/llmapi"
)

func init() {
	backends.Register("sglang", func(c backends.Config) (backends.Backend, error) { return New(c) })
}

// A Backend is one SGLang server.
type Backend struct {
	conf  backends.Config
	model string
	v1    bool // the OpenAI-compatible API
	rid   bool // calls carry their ids
}

var (
	_ backends.Backend = (*Backend)(nil)
	_ backends.Batcher = (*Backend)(nil)
)

// New returns a Backend for the server of c. Its options are
//
//	api=generate|v1    the native interface (the default), or OpenAI's, which chat needs
//	rid=true           send a call's id as rid, by which SGLang's logs name it
//
// Without the latter SGLang makes up ids. It aborts whatever bears a rid whose
// streamed answer ended 2 s ago, so ids must not come again within that time,
// as they would where a trace is played twice in a row.
func New(c backends.Config) (*Backend, error) {
	if err := c.CheckOptions("api", "rid"); err != nil {
		return nil, fmt.Errorf("sglang: %w", err)
	}
	if _, err := c.BaseURL(); err != nil {
		return nil, fmt.Errorf("sglang: %w", err)
	}
	b := &Backend{conf: c, model: c.Model, v1: c.Chat}
	switch api := c.Options["api"]; {
	case api == "v1":
		b.v1 = true
	case api == "generate" && c.Chat:
		return nil, errors.New("sglang: api=generate has no chat; use api=v1")
	case api != "" && api != "generate":
		return nil, fmt.Errorf("sglang: option api=%s: want generate or v1", api)
	}
	switch v := c.Options["rid"]; v {
	case "true":
		b.rid = true
	case "", "false":
	default:
		return nil, fmt.Errorf("sglang: option rid=%s: want true or false", v)
	}
	return b, nil
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

// Encode implements [backends.Backend]. The temperature is 0 where c has none.
// Several choices are then sampled at 1, as greedy ones would be alike.
func (b *Backend) Encode(dst []byte, c *backends.Call) (path string, body []byte) {
	return b.encode(dst, c, nil)
}

// Batches implements [backends.Batcher]: /generate takes lists of prompts and of
// sampling parameters, /v1/completions prompts alone.
func (b *Backend) Batches() (ok, lengths bool) { return !b.conf.Chat, !b.v1 }

// EncodeBatch implements [backends.Batcher].
func (b *Backend) EncodeBatch(dst []byte, calls []*backends.Call) (path string, body []byte) {
	return b.encode(dst, backends.LongestCall(calls), calls)
}

// encode encodes c, with the prompts of batch if there are any.
func (b *Backend) encode(dst []byte, c *backends.Call, batch []*backends.Call) (path string, body []byte) {
	t := c.Temperature.Or(0)
	if c.N > 1 && t == 0 {
		t = 1
	}
	if math.IsNaN(t) || math.IsInf(t, 0) {
		t = 0
	}
	if !b.v1 {
		sampling := func(dst []byte, tokens int) []byte {
			dst = strconv.AppendInt(append(dst, `{"max_new_tokens":`...), int64(tokens), 10)
			dst = strconv.AppendInt(append(dst, `,"min_new_tokens":`...), int64(tokens), 10)
			dst = strconv.AppendFloat(append(dst, `,"ignore_eos":true,"temperature":`...), t, 'g', -1, 64)
			if c.N > 1 {
				dst = strconv.AppendInt(append(dst, `,"n":`...), int64(c.N), 10)
			}
			return append(dst, '}')
		}
		dst = append(dst, `{"input_ids":`...)
		if batch == nil {
			dst = append(llmapi.AppendIDs(dst, c.PromptIDs), `,"sampling_params":`...)
			dst = sampling(dst, c.MaxTokens)
		} else {
			dst = append(backends.AppendPrompts(dst, batch), `,"sampling_params":[`...)
			for i, m := range batch {
				if i > 0 {
					dst = append(dst, ',')
				}
				dst = sampling(dst, m.MaxTokens)
			}
			dst = append(dst, ']')
		}
		if c.Stream {
			dst = append(dst, `,"stream":true`...)
		}
		return "/generate", append(b.names(dst, c, batch), '}')
	}
	dst = llmapi.AppendString(append(dst, `{"model":`...), b.model)
	if b.conf.Chat {
		path = "/v1/chat/completions"
		dst = append(llmapi.AppendString(append(dst, `,"messages":[{"role":"user","content":`...), c.Text), `}]`...)
	} else if batch != nil {
		path = "/v1/completions"
		dst = backends.AppendPrompts(append(dst, `,"prompt":`...), batch)
	} else {
		path = "/v1/completions"
		dst = llmapi.AppendIDs(append(dst, `,"prompt":`...), c.PromptIDs)
	}
	dst = strconv.AppendInt(append(dst, `,"max_tokens":`...), int64(c.MaxTokens), 10)
	dst = strconv.AppendInt(append(dst, `,"min_tokens":`...), int64(c.MaxTokens), 10)
	dst = strconv.AppendFloat(append(dst, `,"ignore_eos":true,"temperature":`...), t, 'g', -1, 64)
	if c.N > 1 {
		dst = strconv.AppendInt(append(dst, `,"n":`...), int64(c.N), 10)
	}
	if c.Stream {
		dst = append(dst, `,"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}`...)
	}
	return path, append(b.names(dst, c, batch), '}')
}

// names appends what both interfaces call by one name.
func (b *Backend) names(dst []byte, c *backends.Call, batch []*backends.Call) []byte {
	switch {
	case !b.rid || c.ID == "":
	case len(batch) > 0:
		dst = append(dst, `,"rid":[`...)
		for i, m := range batch {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = llmapi.AppendString(dst, m.ID)
		}
		dst = append(dst, ']')
	case c.N <= 1: // with several choices SGLang takes a list of ids, one for each
		dst = llmapi.AppendString(append(dst, `,"rid":`...), c.ID)
	}
	if c.CacheSalt != "" {
		dst = llmapi.AppendString(append(dst, `,"extra_key":`...), c.CacheSalt)
	}
	return dst
}

// Probe implements [backends.Backend]. It leaves /health alone, which makes
// SGLang generate a token and takes a second.
func (b *Backend) Probe(ctx context.Context) (*backends.Info, error) {
	i := &backends.Info{Engine: "sglang"}
	var raw json.RawMessage
	if err := b.ask(ctx, "/server_info", "/get_server_info", &raw); err != nil {
		return nil, fmt.Errorf("sglang: %w", err)
	}
	i.Config = backends.Flat(raw)
	var s struct {
		Version     string `json:"version"`
		ModelPath   string `json:"model_path"`
		ContextLen  int    `json:"context_length"`
		MaxInput    int    `json:"max_req_input_len"`
		Interval    int    `json:"stream_interval"`
		Incremental bool   `json:"incremental_streaming_output"`
		Truncate    bool   `json:"allow_auto_truncate"`
		NoRadix     bool   `json:"disable_radix_cache"`
		PageSize    int    `json:"page_size"`
		Capacity    int64  `json:"max_total_num_tokens"`
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, fmt.Errorf("sglang: /server_info: %w", err)
	}
	m, err := b.conf.FindModel(ctx)
	if err != nil {
		return nil, fmt.Errorf("sglang: %w", err)
	}
	b.model = m.ID
	i.Version, i.Model, i.MaxLen = s.Version, m.ID, m.MaxLen
	i.Cache = backends.CacheInfo{Off: s.NoRadix, Block: max(1, s.PageSize), Tokens: s.Capacity, Salt: true}
	if i.MaxLen == 0 {
		i.MaxLen = s.ContextLen
	}
	// What the server accepts is less than what it names. A context of 8192
	// takes prompts of up to 8185 tokens, and cuts answers short at 8190 in all,
	// under status 200: max_req_input_len is 5 below the scheduler's own limit,
	// which keeps one more token for itself (0.5.23: tp_worker.py, scheduler.py).
	if s.MaxInput > 0 {
		i.MaxPrompt = s.MaxInput - 1
		if most := s.MaxInput + 4; i.MaxLen == 0 || most < i.MaxLen {
			i.MaxLen = most
		}
	}
	if i.MaxLen == 0 {
		i.Warnings = append(i.Warnings, "the server does not say its context length: requests that do not fit will fail")
	}
	if s.Interval > 1 {
		i.Warnings = append(i.Warnings, fmt.Sprintf("stream_interval is %d: events carry that many tokens, and gaps between tokens are averages", s.Interval))
	}
	if !b.v1 && !s.Incremental {
		i.Warnings = append(i.Warnings, "each event repeats the whole answer, so long answers cost both sides bytes by their square: start the server with --incremental-streaming-output")
	}
	if s.Truncate {
		i.Warnings = append(i.Warnings, "allow_auto_truncate is on: prompts that are too long are cut without an error")
	}
	if b.TokenIDs() {
		b.conf.FindVocab(ctx, i, s.ModelPath)
	}
	return i, ctx.Err()
}

// ask gets a page by its name, or by the name that it had before 0.5.
func (b *Backend) ask(ctx context.Context, path, former string, v any) error {
	err := b.conf.AskJSON(ctx, path, nil, v)
	if e, ok := errors.AsType[*backends.StatusError](err); ok && e.Status == http.StatusNotFound {
		if b.conf.AskJSON(ctx, former, nil, v) == nil {
			return nil
		}
	}
	return err
}
