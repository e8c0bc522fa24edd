package backends

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"

	"reprise/internal/llmapi"
	"reprise/traceformat"
)

// NewDecoder returns a Decoder for the OpenAI-compatible dialects and SGLang's
// native one. It counts the tokens of an event by the best that the event
// offers:
//
//  1. the running count of its choice (vLLM's and SGLang's continuous usage,
//     SGLang's meta_info, llama.cpp's timings), less what the choice had before;
//  2. its token ids, where they are asked for;
//  3. one, if there is content. Such events are not Exact. A usage block that
//     ends the stream, on its own or beside the finish reason as llama.cpp has
//     it, sets the total of the Result.
//
// It must be used by one goroutine at a time. It keeps no text of the answer.
func NewDecoder(c *Call) Decoder {
	return &decoder{n: max(c.N, 1)}
}

type decoder struct {
	n      int
	one    choice
	others []choice // by index less 1, made when the first of them speaks
	chunk  llmapi.Chunk
	done   bool
	total  traceformat.Opt[int32] // from a usage block that speaks for all choices
	res    Result
}

type choice struct {
	tokens  int32 // so far
	exact   bool  // tokens is the server's own count
	guessed bool  // an event was taken for a token
}

func (d *decoder) Event(data []byte) (Event, error) {
	if string(bytes.TrimSpace(data)) == "[DONE]" {
		d.done = true
		return Event{Exact: true, Done: true}, nil
	}
	c := &d.chunk
	if err := c.Parse(data); err != nil {
		return Event{}, d.bad("bad_event", fmt.Errorf("event of %d bytes: %w", len(data), err))
	}
	if c.Error {
		d.fault("error_event", 0, data)
		return Event{Exact: true}, nil
	}
	if c.Index < 0 || c.Index >= d.n {
		return Event{}, d.bad("bad_event", fmt.Errorf("event of choice %d, where %d were asked for", c.Index, d.n))
	}
	return d.take(c), nil
}

// take counts what an event without an error adds to its choice.
func (d *decoder) take(c *llmapi.Chunk) Event {
	d.note(c)

	native := c.Choices == 0 && (c.Content || c.TokenIDs.OK)
	if c.Choices == 0 && !native {
		if c.Output.OK {
			d.total = c.Output
		}
		return Event{Exact: true}
	}
	ch := d.choice(c.Index)
	switch {
	case c.Output.OK && ch.guessed && len(c.FinishReason) > 0:
		// Usage appears at the end alone: this is the choice's total, and what it
		// has on top of the events did not come in this one.
		ch.tokens, ch.exact = c.Output.V, true
		if c.Content {
			return Event{Tokens: 1}
		}
		return Event{Exact: true}
	case c.Output.OK:
		// Counts never go back in practice; if one does, the tokens that come
		// again are not new.
		n := max(c.Output.V-ch.tokens, 0)
		ch.tokens, ch.exact = max(c.Output.V, ch.tokens), !ch.guessed
		return Event{Tokens: int(n), Exact: ch.exact}
	case c.TokenIDs.OK && !native:
		n := min(c.TokenIDs.V, math.MaxInt32-ch.tokens)
		ch.tokens, ch.exact = ch.tokens+n, !ch.guessed
		return Event{Tokens: int(n), Exact: ch.exact}
	case c.Content:
		ch.guessed, ch.exact = true, false
		ch.tokens += min(1, math.MaxInt32-ch.tokens)
		return Event{Tokens: 1}
	default: // a role, an empty delta, or a character that is not complete
		return Event{Exact: !ch.guessed}
	}
}

// choice returns the state of a choice, 0 <= i < d.n.
func (d *decoder) choice(i int) *choice {
	if i == 0 {
		return &d.one
	}
	for len(d.others) < i {
		d.others = append(d.others, choice{})
	}
	return &d.others[i-1]
}

func (d *decoder) Body(status int, data []byte) (Event, error) {
	if status < 200 || status > 299 {
		d.res.Error, d.res.Message = llmapi.HTTPFault(status, data)
		return Event{Exact: true}, nil
	}
	// SGLang answers n > 1 with an array of replies.
	replies := []json.RawMessage{data}
	if t := bytes.TrimSpace(data); len(t) > 0 && t[0] == '[' {
		if err := json.Unmarshal(t, &replies); err != nil {
			return Event{}, d.bad("bad_body", fmt.Errorf("body of %d bytes: %w", len(data), err))
		}
	}
	e := Event{Exact: true}
	for _, r := range replies {
		c := &d.chunk
		if err := c.Parse(r); err != nil {
			return Event{}, d.bad("bad_body", fmt.Errorf("body of %d bytes: %w", len(data), err))
		}
		if c.Error {
			d.fault("error_body", 0, r)
			return Event{Exact: true}, nil
		}
		d.note(c)
		n := c.Output
		if !n.OK {
			n = c.TokenIDs
		}
		switch {
		case n.OK:
			e.Tokens += int(n.V)
		case c.Content:
			e.Tokens++
			e.Exact = false
		default:
			e.Exact = false
		}
	}
	if e.Exact && e.Tokens <= math.MaxInt32 {
		d.total = traceformat.Some(int32(e.Tokens))
	}
	return e, nil
}

// note takes what later chunks may not repeat. It is what makes a Result.
func (d *decoder) note(c *llmapi.Chunk) {
	r := &d.res
	r.PromptTokens.Take(c.Prompt)
	r.CachedTokens.Take(c.Cached)
	r.ReasoningTokens.Take(c.Reasoning)
	r.Queue.Take(c.Queue)
	r.Prefill.Take(c.Prefill)
	r.TTFT.Take(c.TTFT)
	r.E2E.Take(c.E2E)
	if len(c.FinishReason) == 0 || r.FinishReason == "abort" || r.FinishReason == "error" {
		return // with several choices, a failure of one is the news
	}
	r.FinishReason = finishReason(c.FinishReason)
	if r.FinishReason == "abort" || r.FinishReason == "error" {
		f := llmapi.EndFault(c.FinishMessage)
		r.Error, r.Message = f.Name(r.FinishReason), f.Message
	}
}

// finishReason returns the reason without allocating for the usual ones.
// Reasons are stored, so one that does not look like a word is not let through.
func finishReason(raw []byte) string {
	switch string(raw) {
	case "stop":
		return "stop"
	case "length":
		return "length"
	case "abort":
		return "abort"
	case "error":
		return "error"
	}
	for _, c := range raw {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-') || len(raw) > 32 {
			return "other"
		}
	}
	return string(raw)
}

func (d *decoder) fault(base string, status int, body []byte) {
	f := llmapi.ReadFault(status, body)
	d.res.Error, d.res.Message = f.Name(base), f.Message
}

// bad records an answer that is not in the dialect, and returns the reason.
func (d *decoder) bad(class string, err error) error {
	if d.res.Error == "" {
		d.res.Error, d.res.Message = class, llmapi.OneLine(err.Error())
	}
	return err
}

func (d *decoder) Result() Result {
	r := d.res
	r.OutputTokens = d.total
	sum, exact := int64(d.one.tokens), d.one.exact
	for _, c := range d.others {
		sum, exact = sum+int64(c.tokens), exact && c.exact
	}
	// llama.cpp's last block counts one choice of several: the sum of the
	// running counts is the better total then. Elsewhere the two agree.
	if exact && (!d.total.OK || sum > int64(d.total.V)) {
		r.OutputTokens = traceformat.Some(int32(min(sum, math.MaxInt32)))
	}
	return r
}
