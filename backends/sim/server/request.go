package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"reprise/backends/sim/engine"
)

// Bounds of one HTTP request, against a client that has lost its mind.
const (
	maxBody    = 64 << 20
	maxChoices = 4096
)

// A body holds the fields of a completions or chat request that have an effect.
// Unknown ones are ignored, as in vLLM.
type body struct {
	Model    *string         `json:"model"`
	Prompt   json.RawMessage `json:"prompt"`
	Messages []struct {
		Role    string          `json:"role"`
		Content json.RawMessage `json:"content"`
	} `json:"messages"`
	MaxTokens           *int     `json:"max_tokens"`
	MaxCompletionTokens *int     `json:"max_completion_tokens"`
	MinTokens           int      `json:"min_tokens"`
	N                   *int     `json:"n"`
	Stream              bool     `json:"stream"`
	Temperature         *float64 `json:"temperature"`
	Seed                *int64   `json:"seed"`
	IgnoreEOS           bool     `json:"ignore_eos"`
	StopTokenIDs        []uint32 `json:"stop_token_ids"`
	ReturnTokenIDs      bool     `json:"return_token_ids"`
	CacheSalt           *string  `json:"cache_salt"`
	Priority            int64    `json:"priority"`
	RequestID           string   `json:"request_id"`
	Echo                bool     `json:"echo"`
	UseBeamSearch       bool     `json:"use_beam_search"`
	StreamOptions       *struct {
		IncludeUsage         bool `json:"include_usage"`
		ContinuousUsageStats bool `json:"continuous_usage_stats"`
	} `json:"stream_options"`
}

// A call is one HTTP request: one sequence per prompt and choice.
type call struct {
	chat, stream, usage, continuous, returnIDs bool

	id      string
	created int64
	prompts [][]uint32
	n       int // choices per prompt
	maxTok  int // as asked, for the metrics
	reqs    []*engine.Request
	fault   *Fault

	mu    sync.Mutex
	out   []output // tokens not yet taken by the handler
	left  int      // sequences that have not ended
	ready chan struct{}
}

// owner ties a sequence to its call.
type owner struct {
	call  *call
	index int
}

// An output is one token of one choice.
type output struct {
	index  int
	token  uint32
	finish engine.Reason
}

// take returns the waiting tokens and whether all sequences have ended. The
// slice given is used for the tokens to come.
func (c *call) take(spare []output) (out []output, ended bool) {
	c.mu.Lock()
	out, c.out = c.out, spare[:0]
	ended = c.left == 0
	c.mu.Unlock()
	return out, ended
}

// parse reads a request body. requestID is the X-Request-Id header.
func (s *Server) parse(data []byte, chat bool, requestID string) (*call, *apiError) {
	var b body
	if err := json.Unmarshal(data, &b); err != nil {
		return nil, jsonError(data, err)
	}
	if b.Model != nil && *b.Model != s.opts.Model && *b.Model != "" {
		return nil, &apiError{
			status: 404, kind: "NotFoundError", param: "model",
			message: fmt.Sprintf("The model `%s` does not exist. Valid aliases: %s.", *b.Model, s.opts.Model),
		}
	}
	if b.Echo || b.UseBeamSearch {
		return nil, badRequest("echo and beam search are not supported by the simulated engine")
	}
	c := &call{
		chat: chat, stream: b.Stream, returnIDs: b.ReturnTokenIDs,
		n: 1, created: time.Now().Unix(), ready: make(chan struct{}, 1),
	}
	if o := b.StreamOptions; o != nil {
		if !b.Stream {
			return nil, invalid("body", "value_error", "Stream options can only be defined when `stream=True`.")
		}
		c.usage, c.continuous = o.IncludeUsage, o.IncludeUsage && o.ContinuousUsageStats
	}
	if b.N != nil {
		c.n = *b.N
	}
	if c.n < 1 {
		return nil, badParam(fmt.Sprintf("n must be at least 1, got %d.", c.n), "n", c.n)
	}
	if c.n > 1 && b.Temperature != nil && *b.Temperature == 0 {
		return nil, badRequest(fmt.Sprintf("n must be 1 when using greedy sampling, got %d.", c.n))
	}
	var fail *apiError
	if chat {
		fail = c.chatPrompt(&b)
	} else {
		fail = c.completionPrompts(b.Prompt)
	}
	if fail != nil {
		return nil, fail
	}
	if len(c.prompts)*c.n > maxChoices {
		return nil, badRequest(fmt.Sprintf("%d prompts of %d choices are more than the %d that the simulated engine takes at once", len(c.prompts), c.n, maxChoices))
	}
	if requestID == "" {
		requestID = b.RequestID
	}
	if requestID == "" {
		requestID = s.id()
	}
	if c.id = "cmpl-" + requestID; chat {
		c.id = "chatcmpl-" + requestID
	}
	return c, s.sequences(c, &b)
}

// sequences checks the limits of b for each prompt and makes the engine's
// requests.
func (s *Server) sequences(c *call, b *body) *apiError {
	want := 16
	if c.chat {
		want = math.MaxInt32
		if b.MaxCompletionTokens != nil {
			b.MaxTokens = b.MaxCompletionTokens
		}
	}
	if b.MaxTokens != nil {
		want = *b.MaxTokens
	}
	salt := uint64(0)
	if b.CacheSalt != nil {
		h := fnv.New64a()
		h.Write([]byte(*b.CacheSalt))
		salt = max(h.Sum64(), 1)
	}
	for i, p := range c.prompts {
		if fail := outOfVocabulary(p); fail != nil {
			return fail
		}
		limit := s.cfg.MaxModelLen
		if len(p) > limit {
			return badParam(fmt.Sprintf("This model's maximum context length is %d tokens. However, your prompt contains %d input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt.", limit, len(p)), "input_tokens", len(p))
		}
		// Like vLLM, an answer that does not fit is cut without a word.
		maxTokens := min(want, limit-len(p))
		if maxTokens < 1 {
			return badParam(fmt.Sprintf("max_tokens must be at least 1, got %d.", maxTokens), "max_tokens", maxTokens)
		}
		if b.MinTokens < 0 {
			return badParam(fmt.Sprintf("min_tokens must be greater than or equal to 0, got %d.", b.MinTokens), "min_tokens", b.MinTokens)
		}
		if b.MinTokens > maxTokens {
			return badRequest(fmt.Sprintf("min_tokens must be less than or equal to max_tokens=%d, got %d.", maxTokens, b.MinTokens))
		}
		c.maxTok = maxTokens
		for k := range c.n {
			r := &engine.Request{
				Prompt: p, MaxTokens: maxTokens, MinTokens: b.MinTokens, StopIDs: b.StopTokenIDs,
				Priority: b.Priority, Salt: salt, Seed: uint64(k),
				Owner: &owner{call: c, index: i*c.n + k},
			}
			switch {
			case b.Seed != nil:
				r.Seed += uint64(*b.Seed) << 16
			case b.Temperature == nil || *b.Temperature > 0:
				r.Seed = rand.Uint64()
			}
			if s.opts.MeanOutput > 0 && !b.IgnoreEOS {
				r.StopAfter = naturalEnd(s.opts.MeanOutput)
			}
			c.reqs = append(c.reqs, r)
		}
	}
	c.left = len(c.reqs)
	return nil
}

func outOfVocabulary(ids []uint32) *apiError {
	for _, id := range ids {
		if id >= vocabEnd {
			return badRequest(fmt.Sprintf("Token id %d is out of vocabulary", id))
		}
	}
	return nil
}

// naturalEnd draws the length of an answer: geometric with the given mean.
func naturalEnd(mean int) int {
	if mean <= 1 {
		return 1
	}
	n := math.Log(1-rand.Float64()) / math.Log(1-1/float64(mean))
	return 1 + int(min(n, math.MaxInt32))
}

func (c *call) completionPrompts(raw json.RawMessage) *apiError {
	empty := badRequest("Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)")
	empty.param = "prompt"
	if len(raw) == 0 || bytes.Equal(raw, []byte("null")) || bytes.Equal(raw, []byte(`""`)) {
		return empty
	}
	if raw[0] == '"' {
		var text string
		json.Unmarshal(raw, &text) // valid: it was part of a valid body
		c.prompts = [][]uint32{Tokenize(nil, text)}
		return nil
	}
	if raw[0] != '[' {
		return invalid("body.prompt", "list_type", "Input should be a valid list")
	}
	rest := trim(raw[1:])
	switch {
	case rest[0] == ']':
		return badRequest("You must pass at least one prompt")
	case rest[0] == '"':
		var texts []string
		if json.Unmarshal(raw, &texts) != nil {
			return invalid("body.prompt", "string_type", "Input should be a valid string")
		}
		for _, t := range texts {
			if t == "" {
				return empty
			}
			c.prompts = append(c.prompts, Tokenize(nil, t))
		}
		return nil
	case rest[0] == '[':
		for {
			ids, after, ok := parseIDs(rest)
			if !ok {
				return badIDs()
			}
			if len(ids) == 0 {
				return empty
			}
			c.prompts = append(c.prompts, ids)
			if rest = trim(after); rest[0] == ']' {
				return nil
			}
			if rest = trim(rest[1:]); rest[0] != '[' {
				return badIDs()
			}
		}
	default:
		ids, _, ok := parseIDs(raw)
		if !ok {
			return badIDs()
		}
		c.prompts = [][]uint32{ids}
		return nil
	}
}

func badIDs() *apiError {
	return invalid("body.prompt", "int_type", "Input should be a valid integer greater than or equal to 0")
}

func trim(b []byte) []byte { return bytes.TrimLeft(b, " \t\r\n") }

// parseIDs reads an array of token ids at the start of valid JSON and returns
// what follows it. It is much cheaper than the reflection of encoding/json,
// and prompts are most of what this server reads.
func parseIDs(b []byte) (ids []uint32, rest []byte, ok bool) {
	// At least two bytes per id: the bound keeps this honest.
	end := bytes.IndexByte(b, ']')
	if end < 0 {
		return nil, nil, false
	}
	ids = make([]uint32, 0, bytes.Count(b[:end], []byte{','})+1)
	i := 1
	for i < end {
		switch c := b[i]; {
		case c >= '0' && c <= '9':
			v := uint64(0)
			for ; i < end && b[i] >= '0' && b[i] <= '9'; i++ {
				if v = v*10 + uint64(b[i]-'0'); v > math.MaxUint32 {
					v = math.MaxUint32 // out of any vocabulary, and reported as such
				}
			}
			ids = append(ids, uint32(v))
		case c == ',' || c == ' ' || c == '\n' || c == '\t' || c == '\r':
			i++
		default:
			return nil, nil, false // a sign, a fraction, a string, null, an inner list
		}
	}
	return ids, b[end+1:], true
}

// chatPrompt flattens the messages to text and frames them.
func (c *call) chatPrompt(b *body) *apiError {
	if len(b.Messages) == 0 {
		return badRequest("You must pass at least one message")
	}
	msgs := make([]message, len(b.Messages))
	for i, m := range b.Messages {
		msgs[i].Role = m.Role
		text, fail := contentText(m.Content)
		if fail != nil {
			return fail
		}
		msgs[i].Content = text
	}
	c.prompts = [][]uint32{tokenizeChat(msgs)}
	return nil
}

// contentText reads the content of a message: a string, null, or parts of text.
func contentText(raw json.RawMessage) (string, *apiError) {
	var text string
	if len(raw) == 0 || json.Unmarshal(raw, &text) == nil {
		return text, nil
	}
	var parts []struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}
	if json.Unmarshal(raw, &parts) != nil {
		return "", invalid("body.messages", "string_type", "Input should be a valid string")
	}
	for _, p := range parts {
		if p.Type != "text" {
			return "", badRequest(fmt.Sprintf("the simulated engine takes text only, not a part of type %q", p.Type))
		}
		text += p.Text
	}
	return text, nil
}

// jsonError is vLLM's answer to a body that is not JSON or not of the right
// types.
func jsonError(data []byte, err error) *apiError {
	if te, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return invalid("body."+te.Field, "type_error", "Input should be a valid "+te.Type.String())
	}
	at := 0
	if se, ok := errors.AsType[*json.SyntaxError](err); ok {
		at = max(0, int(se.Offset)-1)
	}
	loc := fmt.Sprintf("body.%d", min(at, len(data)))
	return &apiError{
		status: 400, kind: "Bad Request", param: loc,
		message: "1 validation error:\n  {'type': 'json_invalid', 'loc': '" + loc + "', 'msg': 'JSON decode error', 'input': '<dict of 0 items>', 'ctx': {'error': '" + err.Error() + "'}}",
	}
}
