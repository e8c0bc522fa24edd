package capture

import (
	"bytes"

	"reprise/internal/jsonscan"
	"reprise/internal/llmapi"
	"reprise/traceformat"
)

// A reply is what one event, or one whole body, says.
type reply struct {
	llmapi.Chunk
	total bool   // Output counts the whole answer, not what a choice has so far
	id    []byte // of the response, where a later request can name it; a view
	known bool   // it is of a dialect that is known
}

// read reads an event or a body of an endpoint; empty where the request is
// unknown. It returns an error for what is no JSON object.
func (r *reply) read(endpoint string, data []byte) error {
	*r = reply{}
	switch endpoint {
	case traceformat.EndpointMessages:
		return r.messages(data)
	case traceformat.EndpointResponses:
		return r.responses(data)
	}
	if err := r.Chunk.Parse(data); err != nil {
		return err
	}
	r.known = r.Choices > 0 || r.Content || r.TokenIDs.OK || r.Output.OK || r.Prompt.OK || r.Error
	if !r.known && endpoint != traceformat.EndpointChat {
		return r.native(data)
	}
	return nil
}

// messages reads Anthropic's Messages API.
func (r *reply) messages(data []byte) error {
	p := jsonscan.New(data)
	if !p.Enter('{') {
		return llmapi.ErrJSON
	}
	var kind, stop []byte
	var u usage
	var block part
	for k, ok := p.Key(); ok; k, ok = p.Key() {
		switch string(k) {
		case "type":
			kind = p.Text()
		case "delta", "content_block":
			block.read(&p)
		case "message":
			u = messageUsage(&p)
		case "usage":
			u.read(&p)
		case "stop_reason":
			stop = p.Text()
		case "content":
			block.list(&p)
		case "error":
			r.Error = !p.Null()
		default:
			p.Skip()
		}
	}
	if p.Bad() {
		return llmapi.ErrJSON
	}
	r.Choices, r.known = 1, true
	switch string(kind) {
	case "content_block_delta", "content_block_start", "message":
		r.Text, r.Other = block.text, block.other
		r.Content = len(r.Text) > 0 || r.Other
	case "message_start", "message_delta", "message_stop", "content_block_stop", "ping":
	case "error":
		r.Error = true
	default:
		r.known = r.Error
	}
	r.FinishReason = firstOf(stop, block.stop)
	r.Prompt, r.Cached = u.prompt()
	if string(kind) != "message_start" { // which counts before anything is written
		r.Output, r.total = u.output, u.output.OK
	}
	return nil
}

// A part is a content block, or what a delta adds to one.
type part struct {
	text, stop []byte
	other      bool
}

func (b *part) read(p *jsonscan.Parser) {
	var kind []byte
	named := false
	for k := range members(p) {
		switch string(k) {
		case "type":
			kind = p.Text()
		case "text":
			if t := p.Text(); len(t) > 0 {
				b.text = t
			}
		case "thinking", "partial_json":
			b.other = len(p.Text()) > 0 || b.other
		case "name":
			named = len(p.Text()) > 0
		case "stop_reason":
			b.stop = p.Text()
		default:
			p.Skip()
		}
	}
	// The name of a tool is written by the model.
	b.other = b.other || named && bytes.HasSuffix(kind, []byte("tool_use"))
}

func (b *part) list(p *jsonscan.Parser) {
	for range elements(p) {
		b.read(p)
	}
}

// A usage is that of the Messages and Responses APIs. Anthropic counts what it
// read from and wrote to the cache apart from the rest of the prompt.
type usage struct {
	input, output, cacheRead, cacheWrite, cached, reasoning traceformat.Opt[int32]
}

func (u *usage) read(p *jsonscan.Parser) {
	for k := range members(p) {
		switch string(k) {
		case "input_tokens":
			u.input = p.Count()
		case "output_tokens":
			u.output = p.Count()
		case "cache_read_input_tokens":
			u.cacheRead = p.Count()
		case "cache_creation_input_tokens":
			u.cacheWrite = p.Count()
		case "input_tokens_details":
			u.cached = count(p, "cached_tokens")
		case "output_tokens_details":
			u.reasoning = count(p, "reasoning_tokens")
		default:
			p.Skip()
		}
	}
}

// prompt is the length of the whole prompt, and what of it was cached.
func (u *usage) prompt() (all, cached traceformat.Opt[int32]) {
	cached = u.cached
	if u.cacheRead.OK {
		cached = u.cacheRead
	}
	if !u.input.OK {
		return all, cached
	}
	sum := int64(u.input.V) + int64(u.cacheRead.V) + int64(u.cacheWrite.V)
	if sum > 1<<30 {
		return all, cached
	}
	return traceformat.Some(int32(sum)), cached
}

func messageUsage(p *jsonscan.Parser) (u usage) {
	for k := range members(p) {
		if string(k) == "usage" {
			u.read(p)
		} else {
			p.Skip()
		}
	}
	return u
}

// count steps over a value and returns the count of that name, if the value is
// an object that has it.
func count(p *jsonscan.Parser, name string) (n traceformat.Opt[int32]) {
	for k := range members(p) {
		if string(k) == name {
			n = p.Count()
		} else {
			p.Skip()
		}
	}
	return n
}

// responses reads OpenAI's Responses API.
func (r *reply) responses(data []byte) error {
	p := jsonscan.New(data)
	if !p.Enter('{') {
		return llmapi.ErrJSON
	}
	var kind, delta []byte
	var whole, resp response
	for k, ok := p.Key(); ok; k, ok = p.Key() {
		switch string(k) {
		case "type":
			kind = p.Text()
		case "delta":
			delta = p.Text()
		case "response":
			for k := range members(&p) {
				resp.member(&p, k)
			}
		default:
			whole.member(&p, k)
		}
	}
	if p.Bad() {
		return llmapi.ErrJSON
	}
	r.Choices, r.known = 1, true
	switch {
	case kind == nil: // a whole body
		resp = whole
		r.known = string(whole.object) == "response" || whole.failed
		r.Text, r.Other = whole.text, whole.other
	case bytes.HasSuffix(kind, []byte(".delta")):
		if bytes.HasSuffix(kind, []byte("output_text.delta")) {
			r.Text = delta
		} else {
			r.Other = len(delta) > 0
		}
	case string(kind) == "error":
		r.Error = true
	}
	r.Content = len(r.Text) > 0 || r.Other
	r.Error = r.Error || resp.failed
	r.id = resp.id
	if string(resp.status) == "in_progress" || string(resp.status) == "queued" {
		return nil
	}
	r.FinishReason = resp.finish()
	r.Prompt, r.Cached = resp.usage.prompt()
	r.Output, r.Reasoning, r.total = resp.usage.output, resp.usage.reasoning, resp.usage.output.OK
	return nil
}

// A response is the object of the Responses API.
type response struct {
	object, id, status, why []byte
	text                    []byte
	other                   bool
	failed                  bool
	usage                   usage
}

func (r *response) member(p *jsonscan.Parser, k []byte) {
	switch string(k) {
	case "object":
		r.object = p.Text()
	case "id":
		r.id = p.Text()
	case "status":
		r.status = p.Text()
	case "incomplete_details":
		r.why = member(p, "reason")
	case "usage":
		r.usage.read(p)
	case "error":
		r.failed = !p.Null()
	case "output":
		r.output(p)
	default:
		p.Skip()
	}
}

// output reads the items of an answer.
func (r *response) output(p *jsonscan.Parser) {
	for range elements(p) {
		for k := range members(p) {
			switch string(k) {
			case "content":
				var b part
				b.list(p)
				if len(b.text) > 0 {
					r.text = b.text
				}
			case "arguments":
				r.other = len(p.Text()) > 0 || r.other
			default:
				p.Skip()
			}
		}
	}
}

func (r *response) finish() []byte {
	switch string(r.status) {
	case "incomplete":
		if len(r.why) > 0 {
			return r.why
		}
	case "completed", "failed", "cancelled":
	default:
		return nil
	}
	return r.status
}

// native reads what TGI and llama.cpp say on their own endpoints.
func (r *reply) native(data []byte) error {
	p := jsonscan.New(data)
	if !p.Enter('{') {
		return llmapi.ErrJSON
	}
	stopped := false
	for k, ok := p.Key(); ok; k, ok = p.Key() {
		switch string(k) {
		case "token": // TGI, in a stream; special ones are tokens too
			r.known = r.known || p.Peek() == '{'
			if p.Peek() == '{' {
				r.TokenIDs = traceformat.Some[int32](1)
				r.Text = member(&p, "text")
			} else {
				p.Skip()
			}
		case "generated_text":
			if p.Peek() == '"' {
				r.known = true
				if t := p.Text(); !r.TokenIDs.OK {
					r.Text = t
				}
			} else {
				p.Skip()
			}
		case "details":
			r.details(&p)
		case "content": // llama.cpp
			if p.Peek() == '"' {
				r.known = true
				r.Text = p.Text()
			} else {
				p.Skip()
			}
		case "stop":
			stopped = p.Peek() == 't'
			p.Skip()
		case "stop_type":
			r.FinishReason = p.Text()
		case "tokens_predicted":
			r.Output, r.total = p.Count(), true
		case "tokens_evaluated":
			r.Prompt = p.Count()
		default:
			p.Skip()
		}
	}
	if p.Bad() {
		return llmapi.ErrJSON
	}
	if string(r.FinishReason) == "none" {
		r.FinishReason = nil
	}
	if stopped && len(r.FinishReason) == 0 {
		r.FinishReason = []byte("stop")
	}
	if r.total && len(r.FinishReason) == 0 { // a running count of llama.cpp
		r.Output, r.total, r.Prompt = traceformat.Opt[int32]{}, false, traceformat.Opt[int32]{}
	}
	r.Content = len(r.Text) > 0
	if r.known {
		r.Choices = 1
	}
	return nil
}

// details reads TGI's account of an answer.
func (r *reply) details(p *jsonscan.Parser) {
	for k := range members(p) {
		switch string(k) {
		case "finish_reason":
			r.FinishReason = p.Text()
		case "generated_tokens":
			r.Output = p.Count()
			r.total = r.Output.OK
		case "input_length":
			r.Prompt = p.Count()
		case "prefill":
			if n, ok := p.Elems(); ok && n > 0 && !r.Prompt.OK {
				r.Prompt = traceformat.Some(n)
			}
		default:
			p.Skip()
		}
	}
}

// finishWord is a finish reason in the words of the column. Reasons are stored,
// so one that does not look like a word is not let through.
func finishWord(raw []byte) string {
	switch string(raw) {
	case "stop", "end_turn", "stop_sequence", "eos_token", "eos", "word", "completed":
		return "stop"
	case "length", "max_tokens", "max_output_tokens", "limit":
		return "length"
	case "tool_calls", "tool_use", "function_call":
		return "tool_calls"
	case "abort", "cancelled":
		return "abort"
	case "error", "failed":
		return "error"
	case "content_filter", "refusal":
		return "content_filter"
	case "pause_turn":
		return "pause_turn"
	}
	return "other"
}
