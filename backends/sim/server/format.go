package server

import (
	"math"
	"strconv"
	"time"

	"reprise/backends/sim/engine"
	"reprise/internal/llmapi"
)

// A formatter writes the answer to one call. All bodies are appended by hand: at
// thousands of events a second this is most of the server's work.
type formatter struct {
	s      *Server
	c      *call
	prefix []byte // up to the index of a choice
	sent   []int  // tokens, by choice
	total  int
	roles  bool     // chat: the role-only events are out
	group  []output // tokens of one choice, collected from a late batch
}

func newFormatter(s *Server, c *call) *formatter {
	f := &formatter{s: s, c: c, sent: make([]int, len(c.reqs))}
	f.prefix = append(f.head([]byte("data: "), true), `[{"index":`...)
	return f
}

// head appends the fields that every body starts with, up to `"choices":`.
func (f *formatter) head(b []byte, chunk bool) []byte {
	object := "text_completion"
	switch {
	case f.c.chat && chunk:
		object = "chat.completion.chunk"
	case f.c.chat:
		object = "chat.completion"
	}
	b = append(b, `{"id":`...)
	b = llmapi.AppendString(b, f.c.id)
	b = append(b, `,"object":"`...)
	b = append(b, object...)
	b = append(b, `","created":`...)
	b = strconv.AppendInt(b, f.c.created, 10)
	b = llmapi.AppendString(appendKey(b, "model"), f.s.opts.Model)
	return appendKey(b, "choices")
}

// events appends an event for each choice that has tokens in out: one token
// each, unless the client lagged.
func (f *formatter) events(b []byte, out []output) []byte {
	if f.c.chat && !f.roles && len(out) > 0 {
		f.roles = true
		b = f.roleEvents(b)
	}
	switch {
	case f.s.split:
		for i := range out {
			b = f.event(b, out[i:i+1])
		}
		return b
	case len(f.sent) == 1:
		if len(out) > 0 {
			b = f.event(b, out)
		}
		return b
	}
	for i := range out {
		if out[i].index < 0 {
			continue
		}
		index := out[i].index
		f.group = f.group[:0]
		for j := i; j < len(out); j++ {
			if out[j].index == index {
				f.group = append(f.group, out[j])
				out[j].index = -1
			}
		}
		f.group[0].index = index
		b = f.event(b, f.group)
	}
	return b
}

// event appends one event with the tokens of one choice, whose index is that of
// the first.
func (f *formatter) event(b []byte, out []output) []byte {
	i, last := out[0].index, out[len(out)-1]
	first := f.sent[i] == 0
	b = append(b, f.prefix...)
	b = strconv.AppendInt(b, int64(i), 10)
	if f.c.chat {
		b = append(b, `,"delta":{"content":"`...)
	} else {
		b = append(b, `,"text":"`...)
	}
	for _, o := range out {
		b = f.text(b, o.token)
	}
	f.sent[i] += len(out)
	if f.c.chat {
		b = append(b, `"},"logprobs":null`...)
	} else {
		b = append(b, `","logprobs":null`...)
	}
	b = f.finish(b, i, last.finish, !f.c.chat)
	if !f.c.chat {
		b = appendKey(b, "prompt_token_ids")
		if f.c.returnIDs && first {
			b = llmapi.AppendIDs(b, f.c.prompts[i/f.c.n])
		} else {
			b = append(b, "null"...)
		}
	}
	b = appendKey(b, "token_ids")
	if f.c.returnIDs {
		b = append(b, '[')
		for k, o := range out {
			if k > 0 {
				b = append(b, ',')
			}
			b = strconv.AppendUint(b, uint64(o.token), 10)
		}
		b = append(b, ']')
	} else {
		b = append(b, "null"...)
	}
	b = append(b, "}]"...)
	if f.c.continuous {
		b = f.continuousUsage(b, i)
	}
	if last.finish != engine.Running && !f.c.usage {
		b = llmapi.AppendString(appendKey(b, "system_fingerprint"), f.s.fingerprint)
	}
	return append(b, "}\n\n"...)
}

// finish appends the reason of the end. Completions always name a stop reason,
// chat only in the last event.
func (f *formatter) finish(b []byte, i int, why engine.Reason, always bool) []byte {
	b = appendKey(b, "finish_reason")
	if why == engine.Running {
		b = append(b, "null"...)
	} else {
		b = append(append(append(b, '"'), reasons[why]...), '"')
	}
	if always || why != engine.Running {
		b = appendKey(b, "stop_reason")
		if r := f.c.reqs[i]; why == engine.Stop && r.StopIDHit {
			b = strconv.AppendUint(b, uint64(r.StopID), 10)
		} else {
			b = append(b, "null"...)
		}
	}
	return b
}

// text appends the text of a token inside a JSON string.
func (f *formatter) text(b []byte, id uint32) []byte {
	n := f.total
	f.total++
	if flt := f.c.fault; flt != nil && flt.Kind == HalfUTF8 {
		// U+20AC in UTF-8, broken in two.
		switch n - flt.After {
		case 0:
			return append(b, "\xe2\x82"...)
		case 1:
			return append(b, "\xac"...)
		}
	}
	return appendToken(b, id) // a word: nothing to escape
}

// roleEvents appends the events without content that open each choice of a
// chat.
func (f *formatter) roleEvents(b []byte) []byte {
	for i := range f.sent {
		b = append(b, f.prefix...)
		b = strconv.AppendInt(b, int64(i), 10)
		b = append(b, `,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]`...)
		b = appendKey(b, "prompt_token_ids")
		if f.c.returnIDs {
			b = llmapi.AppendIDs(b, f.c.prompts[0])
		} else {
			b = append(b, "null"...)
		}
		b = append(b, `,"prompt_text":null`...)
		if f.c.continuous {
			b = f.continuousUsage(b, i)
		}
		b = append(b, "}\n\n"...)
	}
	return b
}

func (f *formatter) continuousUsage(b []byte, i int) []byte {
	b = appendUsage(b, len(f.c.prompts[i/f.c.n]), f.sent[i])
	return append(b, '}')
}

// appendUsage appends the usage object, open at its end.
func appendUsage(b []byte, prompt, completion int) []byte {
	b = append(b, `,"usage":{"prompt_tokens":`...)
	b = strconv.AppendInt(b, int64(prompt), 10)
	b = appendIntField(b, "total_tokens", prompt+completion)
	return appendIntField(b, "completion_tokens", completion)
}

func (f *formatter) promptTokens() (n int) {
	for _, p := range f.c.prompts {
		n += len(p)
	}
	return n
}

// end appends the usage event, if asked for, and the end mark.
func (f *formatter) end(b []byte) []byte {
	if !f.c.usage {
		return append(b, doneEvent...)
	}
	b = append(b, f.prefix[:len(f.prefix)-len(`[{"index":`)]...)
	b = append(b, "[]"...)
	b = appendUsage(b, f.promptTokens(), f.total)
	b = append(b, `,"prompt_tokens_details":{"cached_tokens":`...)
	b = strconv.AppendInt(b, int64(f.c.reqs[0].CachedTokens), 10)
	if f.c.chat {
		b = append(b, `,"created_cache_tokens":0`...)
	}
	b = append(b, "}}"...)
	b = llmapi.AppendString(appendKey(b, "system_fingerprint"), f.s.fingerprint)
	if len(f.c.reqs) == 1 {
		b = f.metrics(appendKey(b, "metrics"))
		b = append(b, '}')
	}
	b = append(b, "}\n\n"...)
	return append(b, doneEvent...)
}

// metrics appends vLLM's per-request timings, open at its end. What cannot be
// told is left out of streams.
func (f *formatter) metrics(b []byte) []byte {
	r := f.c.reqs[0]
	b = append(b, `{"time_to_first_token_ms":`...)
	b = appendMillis(b, r.First-r.Scheduled)
	b = appendMillis(appendKey(b, "generation_time_ms"), r.Last-r.First)
	b = appendMillis(appendKey(b, "queue_time_ms"), r.Scheduled-r.Queued)
	if r.Output > 1 {
		b = appendMillis(appendKey(b, "mean_itl_ms"), (r.Last-r.First)/time.Duration(r.Output-1))
	}
	if d := r.Last - r.Scheduled; d > 0 {
		b = appendFloat(appendKey(b, "tokens_per_second"), float64(r.Output)/d.Seconds())
	}
	return b
}

func appendMillis(b []byte, d time.Duration) []byte {
	return appendFloat(b, float64(d)/float64(time.Millisecond))
}

// appendFloat writes a float as Python does: with a point, always.
func appendFloat(b []byte, v float64) []byte {
	if v == math.Trunc(v) && math.Abs(v) < 1e16 {
		return strconv.AppendFloat(b, v, 'f', 1, 64)
	}
	return strconv.AppendFloat(b, v, 'g', -1, 64)
}

// whole returns the body of an answer that is not streamed.
func (f *formatter) whole(out []output) []byte {
	c := f.c
	tokens := make([][]uint32, len(c.reqs))
	for i, r := range c.reqs {
		tokens[i] = make([]uint32, 0, r.Output)
	}
	for _, o := range out {
		tokens[o.index] = append(tokens[o.index], o.token)
	}
	b := append(f.head(nil, false), '[')
	for i, r := range c.reqs {
		if i > 0 {
			b = append(b, ',')
		}
		b = strconv.AppendInt(append(b, `{"index":`...), int64(i), 10)
		if c.chat {
			b = append(b, `,"message":{"role":"assistant","content":"`...)
		} else {
			b = append(b, `,"text":"`...)
		}
		for _, id := range tokens[i] {
			b = f.text(b, id)
		}
		b = append(b, '"')
		if c.chat {
			b = append(b, `,"refusal":null,"annotations":null,"audio":null,"function_call":null,"reasoning":null}`...)
		}
		b = append(b, `,"logprobs":null`...)
		b = f.finish(b, i, r.Finish, true)
		b = appendKey(b, "token_ids")
		if c.returnIDs {
			b = llmapi.AppendIDs(b, tokens[i])
		} else {
			b = append(b, "null"...)
		}
		if !c.chat {
			b = append(b, `,"prompt_logprobs":null`...)
			b = appendKey(b, "prompt_token_ids")
			if c.returnIDs {
				b = llmapi.AppendIDs(b, c.prompts[i/c.n])
			} else {
				b = append(b, "null"...)
			}
		}
		b = append(b, `,"routed_experts":null}`...)
	}
	b = append(b, `],"service_tier":null`...)
	b = llmapi.AppendString(appendKey(b, "system_fingerprint"), f.s.fingerprint)
	b = appendUsage(b, f.promptTokens(), f.total)
	b = append(b, `,"prompt_tokens_details":{"cached_tokens":`...)
	b = strconv.AppendInt(b, int64(c.reqs[0].CachedTokens), 10)
	b = append(b, `,"created_cache_tokens":null,"multimodal_tokens":null},"completion_tokens_details":null}`...)
	if c.chat {
		b = append(b, `,"prompt_logprobs":null`...)
		b = appendKey(b, "prompt_token_ids")
		if c.returnIDs {
			b = llmapi.AppendIDs(b, c.prompts[0])
		} else {
			b = append(b, "null"...)
		}
		b = append(b, `,"prompt_text":null`...)
	}
	b = append(b, `,"kv_transfer_params":null,"ec_transfer_params":null,"metrics":`...)
	if len(c.reqs) == 1 {
		b = append(f.metrics(b), `,"speculative_decoding":null}`...)
	} else {
		b = append(b, "null"...)
	}
	return append(b, '}')
}
