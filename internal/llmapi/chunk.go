package llmapi

import (
	"errors"
	"fmt"
	"math"
	"time"

	"reprise/internal/jsonscan"
	"reprise/traceformat"
)

// A parser is a walk over a body, with steps for what bodies hold.
type parser struct{ jsonscan.Parser }

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
	// Text is the answer's text: "content" of a delta or message, or "text"; of
	// several choices, the last one's. A view of the parsed bytes, escapes not
	// resolved. Other is true if there is content that Text leaves out.
	Text  []byte
	Other bool
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
	p := parser{jsonscan.New(data)}
	var r reply
	if !p.Enter('{') {
		return p.err()
	}
	r.parse(&p)
	if p.Peek(); p.Bad() || p.Rest() != 0 {
		return p.err()
	}
	r.fill(c)
	return nil
}

func (p *parser) err() error {
	if p.Pos()+p.Rest() == 0 {
		return fmt.Errorf("%w: it is empty", ErrJSON)
	}
	return fmt.Errorf("%w: byte %d of %d", ErrJSON, p.Pos(), p.Pos()+p.Rest())
}

// A reply is the object as it stands: a repeated name replaces what it said
// before, and nothing is put together until the end.
type reply struct {
	object   []byte
	hasError bool

	choices choices
	index   int
	text    []byte
	ids     traceformat.Opt[int32]
	usage   usage
	hasUse  bool
	hasMeta bool
	meta    metaInfo
	metrics metrics
	timings timings
}

type choices struct {
	n      int
	index  int
	text   []byte
	other  bool
	ids    traceformat.Opt[int32]
	finish finish
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
	for k, ok := p.Key(); ok; k, ok = p.Key() {
		switch string(k) {
		case "object":
			r.object = p.Text()
		case "error":
			r.hasError = !p.Null()
		case "choices":
			r.choices.parse(p)
		case "usage":
			r.hasUse = p.Peek() == '{'
			r.usage.parse(p)
		case "text":
			r.text = p.Text()
		case "index":
			r.index = p.index()
		case "output_ids":
			r.ids = p.ids()
		case "meta_info":
			r.hasMeta = p.Peek() == '{'
			r.meta.parse(p)
		case "metrics":
			r.metrics.parse(p)
		case "timings":
			r.timings.parse(p)
		default:
			p.Skip()
		}
	}
}

func (cs *choices) parse(p *parser) {
	*cs = choices{}
	if !p.Enter('[') {
		p.Skip()
		return
	}
	for p.Elem() {
		cs.n++
		if !p.Enter('{') {
			p.Skip()
			continue
		}
		var c struct {
			index                int
			text, delta, message content
			ids                  traceformat.Opt[int32]
			finish               finish
		}
		for k, ok := p.Key(); ok; k, ok = p.Key() {
			switch string(k) {
			case "index":
				c.index = p.index()
			case "text":
				c.text = content{text: p.Text()}
			case "delta":
				c.delta = p.message()
			case "message":
				c.message = p.message()
			case "token_ids":
				c.ids = p.ids()
			case "finish_reason":
				c.finish.parse(p)
			default:
				p.Skip()
			}
		}
		cs.index = c.index
		for _, v := range [...]content{c.text, c.delta, c.message} {
			if len(v.text) > 0 {
				cs.text = v.text
			}
			cs.other = cs.other || v.other
		}
		if c.ids.OK {
			cs.ids = add(cs.ids, c.ids)
		}
		if len(c.finish.reason) > 0 {
			cs.finish = c.finish
		}
	}
}

// A content is what a delta or message holds.
type content struct {
	text  []byte
	other bool // reasoning, a refusal, a tool call, or content in parts
}

// message steps over the delta or message of a chat choice and returns what it
// carries.
func (p *parser) message() (c content) {
	if !p.Enter('{') {
		p.Skip()
		return c
	}
	var parts, reasoningContent, reasoning, refusal, calls bool
	for k, ok := p.Key(); ok; k, ok = p.Key() {
		switch string(k) {
		case "content":
			c.text, parts = nil, false
			if p.Peek() == '"' {
				c.text = p.Text()
			} else {
				parts = p.filled()
			}
		case "reasoning_content":
			reasoningContent = p.filled()
		case "reasoning":
			reasoning = p.filled()
		case "refusal":
			refusal = p.filled()
		case "tool_calls":
			calls = p.filled()
		default:
			p.Skip()
		}
	}
	c.other = parts || reasoningContent || reasoning || refusal || calls
	return c
}

// filled steps over a value and reports whether it is a string or an array, and
// not empty.
func (p *parser) filled() bool {
	if p.Peek() == '[' {
		n, _ := p.Elems()
		return n > 0
	}
	return len(p.Text()) > 0
}

func (p *parser) index() int {
	if n := p.Count(); n.OK {
		return int(n.V)
	}
	return -1
}

func (p *parser) ids() (n traceformat.Opt[int32]) {
	n.V, n.OK = p.Elems()
	return n
}

// add returns a + b, what is unknown taken for 0.
func add(a, b traceformat.Opt[int32]) traceformat.Opt[int32] {
	return traceformat.Some(int32(min(int64(a.V)+int64(b.V), math.MaxInt32)))
}

func (f *finish) parse(p *parser) {
	*f = finish{}
	if !p.Enter('{') {
		f.reason = p.Text()
		return
	}
	for k, ok := p.Key(); ok; k, ok = p.Key() {
		switch string(k) {
		case "type":
			f.reason = p.Text()
		case "message":
			f.message = p.Text()
		default:
			p.Skip()
		}
	}
}

func (u *usage) parse(p *parser) {
	*u = usage{}
	if !p.Enter('{') {
		p.Skip()
		return
	}
	var inOutput traceformat.Opt[int32]
	for k, ok := p.Key(); ok; k, ok = p.Key() {
		switch string(k) {
		case "prompt_tokens":
			u.prompt = p.Count()
		case "completion_tokens":
			u.output = p.Count()
		case "reasoning_tokens": // SGLang
			u.reasoning = p.Count()
		case "prompt_tokens_details":
			u.cached = p.member("cached_tokens")
		case "completion_tokens_details":
			inOutput = p.member("reasoning_tokens")
		default:
			p.Skip()
		}
	}
	if inOutput.OK {
		u.reasoning = inOutput
	}
}

// member steps over a value and returns the count of that name, if the value is
// an object that has it.
func (p *parser) member(name string) (n traceformat.Opt[int32]) {
	if !p.Enter('{') {
		p.Skip()
		return n
	}
	for k, ok := p.Key(); ok; k, ok = p.Key() {
		if string(k) == name {
			n = p.Count()
		} else {
			p.Skip()
		}
	}
	return n
}

func (m *metaInfo) parse(p *parser) {
	*m = metaInfo{}
	if !p.Enter('{') {
		p.Skip()
		return
	}
	for k, ok := p.Key(); ok; k, ok = p.Key() {
		switch string(k) {
		case "prompt_tokens":
			m.prompt = p.Count()
		case "completion_tokens":
			m.output = p.Count()
		case "cached_tokens":
			m.cached = p.Count()
		case "reasoning_tokens":
			m.usage.reasoning = p.Count()
		case "finish_reason":
			m.finish.parse(p)
		case "queue_time":
			m.queue = p.Float()
		case "forward_entry_time":
			m.forward = p.Float()
		case "prefill_finished_time":
			m.prefilled = p.Float()
		case "first_token_latency":
			m.ttft = p.Float()
		case "e2e_latency":
			m.e2e = p.Float()
		default:
			p.Skip()
		}
	}
}

func (m *metrics) parse(p *parser) {
	*m = metrics{}
	if !p.Enter('{') {
		p.Skip()
		return
	}
	for k, ok := p.Key(); ok; k, ok = p.Key() {
		switch string(k) {
		case "queue_time_ms":
			m.queue = p.Float()
		case "time_to_first_token_ms":
			m.ttft = p.Float()
		case "generation_time_ms":
			m.generation = p.Float()
		default:
			p.Skip()
		}
	}
}

func (t *timings) parse(p *parser) {
	*t = timings{}
	if !p.Enter('{') {
		p.Skip()
		return
	}
	for k, ok := p.Key(); ok; k, ok = p.Key() {
		switch string(k) {
		case "prompt_ms":
			t.promptMS = p.Float()
		case "cache_n":
			t.cached = p.Count()
		case "prompt_n":
			t.rest = p.Count()
		case "predicted_n":
			t.predict = p.Count()
		default:
			p.Skip()
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
	c.Text, c.Other = r.choices.text, r.choices.other
	if len(c.Text) == 0 {
		c.Text = r.text
	}
	c.Content = len(c.Text) > 0 || c.Other
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
