package llmapi

import (
	"errors"
	"fmt"
	"math"
	"time"

	"reprise/traceformat"
)

// A Chunk is what one event of a stream, or one whole body, says that matters.
// It covers the dialects by their union: no two use one name for two things.
//
// Counts that are absent, null, negative, fractional or beyond int32 are
// unknown, never 0.
type Chunk struct {
	// Choices counts the entries of "choices". The last block of a stream, which
	// carries usage alone, has none; neither has SGLang's native reply.
	Choices int
	// Index of the choice (the last one, if there are several): 0 where the
	// server leaves it out, -1 where it is no count.
	Index int

	// Content is true if text is there: an answer, reasoning, a refusal, or a
	// piece of a tool call.
	Content bool
	// TokenIDs counts the ids in "token_ids", over all choices, or in
	// "output_ids".
	TokenIDs traceformat.Opt[int32]

	// FinishReason as the server spells it; of several choices, the last one
	// that has any. A view of the parsed bytes, escapes not resolved.
	FinishReason []byte
	// FinishMessage is what SGLang says of an abort; a view likewise.
	FinishMessage []byte

	// From "usage" or, without it, SGLang's "meta_info" or llama.cpp's "timings".
	// In a stream Output is what the choice at Index has so far, or everything in
	// the last block.
	Prompt, Output, Cached, Reasoning traceformat.Opt[int32]

	// Error is true if the object reports an error; [ReadFault] says which.
	Error bool

	// The engine's own clocks. Prefill is a span; Queue, TTFT and E2E count from
	// the arrival in the engine.
	//
	//	vLLM "metrics"       Queue = queue_time_ms
	//	                     Prefill = time_to_first_token_ms, which vLLM counts from scheduling
	//	                     TTFT = Queue + Prefill, E2E = TTFT + generation_time_ms
	//	SGLang "meta_info"   Queue = queue_time, TTFT = first_token_latency, E2E = e2e_latency
	//	                     Prefill = prefill_finished_time - forward_entry_time
	//	llama.cpp "timings"  Prefill = prompt_ms; it reports no queue
	Queue, Prefill, TTFT, E2E traceformat.Opt[time.Duration]
}

// ErrJSON is what [Chunk.Parse] reports of bytes that are not a JSON object.
var ErrJSON = errors.New("not a JSON object")

// Parse fills c from data, a JSON object. Anything else is an [ErrJSON], and so
// are values nested deeper than 200. c holds views of data afterwards. Nothing
// is allocated, but for names written with escapes.
func (c *Chunk) Parse(data []byte) error {
	*c = Chunk{}
	p := parser{b: data}
	var r reply
	if !p.enter('{') {
		return p.err()
	}
	r.parse(&p)
	if p.peek(); p.bad || p.i != len(data) {
		return p.err()
	}
	r.fill(c)
	return nil
}

func (p *parser) err() error {
	if len(p.b) == 0 {
		return fmt.Errorf("%w: it is empty", ErrJSON)
	}
	return fmt.Errorf("%w: byte %d of %d", ErrJSON, p.i, len(p.b))
}

// A reply is the object as it stands: a repeated name replaces what it said
// before, and nothing is put together until the end.
type reply struct {
	object   []byte
	hasError bool

	choices choices
	index   int
	text    bool
	ids     traceformat.Opt[int32]
	usage   usage
	hasUse  bool
	hasMeta bool
	meta    metaInfo
	metrics metrics
	timings timings
}

type choices struct {
	n       int
	index   int
	content bool
	ids     traceformat.Opt[int32]
	finish  finish
}

type finish struct{ reason, message []byte }

type usage struct{ prompt, output, cached, reasoning traceformat.Opt[int32] }

// metrics is vLLM's, in ms.
type metrics struct{ queue, ttft, generation traceformat.Opt[float64] }

// timings is llama.cpp's; it divides a prompt into what it reused and the rest.
type timings struct {
	promptMS              traceformat.Opt[float64]
	cached, rest, predict traceformat.Opt[int32]
}

type metaInfo struct {
	usage
	finish
	queue, forward, prefilled, ttft, e2e traceformat.Opt[float64] // s
}

func (r *reply) parse(p *parser) {
	for k, ok := p.key(); ok; k, ok = p.key() {
		switch string(k) {
		case "object":
			r.object = p.text()
		case "error":
			r.hasError = !p.null()
		case "choices":
			r.choices.parse(p)
		case "usage":
			r.hasUse = p.peek() == '{'
			r.usage.parse(p)
		case "text":
			r.text = len(p.text()) > 0
		case "index":
			r.index = p.index()
		case "output_ids":
			r.ids = p.ids()
		case "meta_info":
			r.hasMeta = p.peek() == '{'
			r.meta.parse(p)
		case "metrics":
			r.metrics.parse(p)
		case "timings":
			r.timings.parse(p)
		default:
			p.skip()
		}
	}
}

func (cs *choices) parse(p *parser) {
	*cs = choices{}
	if !p.enter('[') {
		p.skip()
		return
	}
	for p.elem() {
		cs.n++
		if !p.enter('{') {
			p.skip()
			continue
		}
		var c struct {
			index                int
			text, delta, message bool
			ids                  traceformat.Opt[int32]
			finish               finish
		}
		for k, ok := p.key(); ok; k, ok = p.key() {
			switch string(k) {
			case "index":
				c.index = p.index()
			case "text":
				c.text = len(p.text()) > 0
			case "delta":
				c.delta = p.message()
			case "message":
				c.message = p.message()
			case "token_ids":
				c.ids = p.ids()
			case "finish_reason":
				c.finish.parse(p)
			default:
				p.skip()
			}
		}
		cs.index = c.index
		cs.content = cs.content || c.text || c.delta || c.message
		if c.ids.OK {
			cs.ids = add(cs.ids, c.ids)
		}
		if len(c.finish.reason) > 0 {
			cs.finish = c.finish
		}
	}
}

// message steps over the delta or message of a chat choice and reports whether
// it carries content.
func (p *parser) message() bool {
	if !p.enter('{') {
		p.skip()
		return false
	}
	var content, reasoningContent, reasoning, refusal, calls bool
	for k, ok := p.key(); ok; k, ok = p.key() {
		switch string(k) {
		case "content":
			content = p.filled()
		case "reasoning_content":
			reasoningContent = p.filled()
		case "reasoning":
			reasoning = p.filled()
		case "refusal":
			refusal = p.filled()
		case "tool_calls":
			calls = p.filled()
		default:
			p.skip()
		}
	}
	return content || reasoningContent || reasoning || refusal || calls
}

// filled steps over a value and reports whether it is a string or an array, and
// not empty.
func (p *parser) filled() bool {
	if p.peek() == '[' {
		n, _ := p.elems()
		return n > 0
	}
	return len(p.text()) > 0
}

func (p *parser) index() int {
	if n := p.count(); n.OK {
		return int(n.V)
	}
	return -1
}

func (p *parser) ids() (n traceformat.Opt[int32]) {
	n.V, n.OK = p.elems()
	return n
}

// add returns a + b, what is unknown taken for 0.
func add(a, b traceformat.Opt[int32]) traceformat.Opt[int32] {
	return traceformat.Some(int32(min(int64(a.V)+int64(b.V), math.MaxInt32)))
}

func (f *finish) parse(p *parser) {
	*f = finish{}
	if !p.enter('{') {
		f.reason = p.text()
		return
	}
	for k, ok := p.key(); ok; k, ok = p.key() {
		switch string(k) {
		case "type":
			f.reason = p.text()
		case "message":
			f.message = p.text()
		default:
			p.skip()
		}
	}
}

func (u *usage) parse(p *parser) {
	*u = usage{}
	if !p.enter('{') {
		p.skip()
		return
	}
	var inOutput traceformat.Opt[int32]
	for k, ok := p.key(); ok; k, ok = p.key() {
		switch string(k) {
		case "prompt_tokens":
			u.prompt = p.count()
		case "completion_tokens":
			u.output = p.count()
		case "reasoning_tokens": // SGLang
			u.reasoning = p.count()
		case "prompt_tokens_details":
			u.cached = p.member("cached_tokens")
		case "completion_tokens_details":
			inOutput = p.member("reasoning_tokens")
		default:
			p.skip()
		}
	}
	if inOutput.OK {
		u.reasoning = inOutput
	}
}

// member steps over a value and returns the count of that name, if the value is
// an object that has it.
func (p *parser) member(name string) (n traceformat.Opt[int32]) {
	if !p.enter('{') {
		p.skip()
		return n
	}
	for k, ok := p.key(); ok; k, ok = p.key() {
		if string(k) == name {
			n = p.count()
		} else {
			p.skip()
		}
	}
	return n
}

func (m *metaInfo) parse(p *parser) {
	*m = metaInfo{}
	if !p.enter('{') {
		p.skip()
		return
	}
	for k, ok := p.key(); ok; k, ok = p.key() {
		switch string(k) {
		case "prompt_tokens":
			m.prompt = p.count()
		case "completion_tokens":
			m.output = p.count()
		case "cached_tokens":
			m.cached = p.count()
		case "reasoning_tokens":
			m.usage.reasoning = p.count()
		case "finish_reason":
			m.finish.parse(p)
		case "queue_time":
			m.queue = p.float()
		case "forward_entry_time":
			m.forward = p.float()
		case "prefill_finished_time":
			m.prefilled = p.float()
		case "first_token_latency":
			m.ttft = p.float()
		case "e2e_latency":
			m.e2e = p.float()
		default:
			p.skip()
		}
	}
}

func (m *metrics) parse(p *parser) {
	*m = metrics{}
	if !p.enter('{') {
		p.skip()
		return
	}
	for k, ok := p.key(); ok; k, ok = p.key() {
		switch string(k) {
		case "queue_time_ms":
			m.queue = p.float()
		case "time_to_first_token_ms":
			m.ttft = p.float()
		case "generation_time_ms":
			m.generation = p.float()
		default:
			p.skip()
		}
	}
}

func (t *timings) parse(p *parser) {
	*t = timings{}
	if !p.enter('{') {
		p.skip()
		return
	}
	for k, ok := p.key(); ok; k, ok = p.key() {
		switch string(k) {
		case "prompt_ms":
			t.promptMS = p.float()
		case "cache_n":
			t.cached = p.count()
		case "prompt_n":
			t.rest = p.count()
		case "predicted_n":
			t.predict = p.count()
		default:
			p.skip()
		}
	}
}

func (r *reply) fill(c *Chunk) {
	c.Error = r.hasError || string(r.object) == "error"
	c.Choices = r.choices.n
	c.Index = r.choices.index
	if c.Choices == 0 {
		c.Index = r.index
	}
	c.Content = r.choices.content || r.text
	c.TokenIDs = r.choices.ids
	if !c.TokenIDs.OK {
		c.TokenIDs = r.ids
	}
	f := r.choices.finish
	if len(f.reason) == 0 {
		f = r.meta.finish
	}
	c.FinishReason, c.FinishMessage = f.reason, f.message
	u := r.meta.usage
	switch {
	case r.hasUse:
		u = r.usage
	case !r.hasMeta:
		u = usage{output: r.timings.predict, cached: r.timings.cached}
		if r.timings.cached.OK && r.timings.rest.OK {
			u.prompt = add(r.timings.cached, r.timings.rest)
		}
	}
	c.Prompt, c.Output, c.Cached, c.Reasoning = u.prompt, u.output, u.cached, u.reasoning

	c.Queue = span(r.meta.queue, time.Second)
	c.TTFT = span(r.meta.ttft, time.Second)
	c.E2E = span(r.meta.e2e, time.Second)
	switch {
	case r.meta.forward.OK && r.meta.prefilled.OK:
		c.Prefill = span(traceformat.Some(r.meta.prefilled.V-r.meta.forward.V), time.Second)
	case r.metrics.ttft.OK:
		c.Prefill = span(r.metrics.ttft, time.Millisecond)
	default:
		c.Prefill = span(r.timings.promptMS, time.Millisecond)
	}
	if r.metrics.queue.OK {
		c.Queue = span(r.metrics.queue, time.Millisecond)
		if prefill := span(r.metrics.ttft, time.Millisecond); c.Queue.OK && prefill.OK {
			c.TTFT = traceformat.Some(c.Queue.V + prefill.V)
			if decode := span(r.metrics.generation, time.Millisecond); decode.OK {
				c.E2E = traceformat.Some(c.TTFT.V + decode.V)
			}
		}
	}
}

// span returns v units as a duration, if that is neither negative nor beyond a
// year.
func span(v traceformat.Opt[float64], unit time.Duration) (d traceformat.Opt[time.Duration]) {
	const year = 365 * 24 * time.Hour
	if f := v.V * float64(unit); v.OK && f >= 0 && f <= float64(year) {
		return traceformat.Some(time.Duration(math.Round(f)))
	}
	return d
}
