package capture

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"time"

	"reprise/internal/jsonscan"
	"reprise/internal/llmapi"
	"reprise/traceformat"
)

// An answerForm says how a body is read.
type answerForm int

const (
	formUnknown answerForm = iota // not told yet
	formStream
	formBody
)

const (
	// maxEvent bounds one event of a stream.
	maxEvent = 8 << 20
	// maxFault bounds what is kept of the body of an error.
	maxFault = 256 << 10
	// maxChoices bounds the choices of an answer whose request is unknown.
	maxChoices = 1 << 10
)

// answerState is what an Exchange knows of its answer.
type answerState struct {
	begun  bool
	status int // 0: unknown
	form   answerForm
	dec    *decoder
	sse    llmapi.SSE
	buf    []byte
	lost   bool  // a part of the body is missing, or cannot be read
	gapped bool  // it is missing in the capture
	lastAt int64 // of the body's last piece
	now    int64 // time of the piece being read

	one    choice
	others []choice
	reply  reply
	same   repeat
	known  bool // something of a dialect was seen
	done   bool // [DONE] was seen
	summed bool // and the block of usage that comes before it

	times       []time.Duration // of token-bearing events
	tokens      []int32
	bare        []time.Duration // of events that end a choice and carry no text
	chunksLost  bool
	first, last traceformat.Opt[time.Duration]

	prompt, output, cached, reasoning traceformat.Opt[int32]
	queue, prefill, ttft, e2e         traceformat.Opt[time.Duration]
	finish, fault                     string
	id                                string // of the response

	text    []byte                 // of the answer, while it is needed to count or to hash it
	spoken  bool                   // the chain has the head of the assistant's message
	noText  bool                   // the text is incomplete, or of several choices
	engines bool                   // lengths are the engine's own
	counted traceformat.Opt[int32] // output, by the tokenizer
}

// A choice is how far one of several answers has come.
type choice struct {
	tokens  int32
	exact   bool // tokens is the server's own count
	guessed bool // an event was taken for a token
}

func (a *answerState) head(x *Exchange, t int64, status int, h Header) {
	if a.begun {
		return
	}
	a.begun, a.status = true, status
	if coding := h.get("content-encoding"); coding != "" && !strings.EqualFold(coding, "identity") {
		if x.hold(decoderCost) {
			a.dec = newDecoder(strings.Clone(coding), func(p []byte) { a.read(x, p) })
		} else {
			a.lost = true
		}
	}
	switch kind, _, _ := strings.Cut(h.get("content-type"), ";"); strings.ToLower(strings.TrimSpace(kind)) {
	case "text/event-stream":
		a.form = formStream
	case "application/json":
		a.form = formBody
	case "application/x-ndjson": // Ollama's own endpoints: not read
		a.form, a.lost = formBody, true
	}
	if status >= 300 {
		a.form = formBody
	}
	a.engineHead(h)
}

// engineHead reads what TGI says in the head of a whole answer.
func (a *answerState) engineHead(h Header) {
	prompt, output := headCount(h, "x-prompt-tokens"), headCount(h, "x-generated-tokens")
	if !prompt.OK && !output.OK {
		return
	}
	a.prompt, a.output, a.engines = prompt, output, true
	a.queue, a.e2e = headMillis(h, "x-queue-time"), headMillis(h, "x-total-time")
}

func headCount(h Header, name string) (n traceformat.Opt[int32]) {
	v, err := strconv.ParseUint(h.get(name), 10, 30)
	if err != nil {
		return n
	}
	return traceformat.Some(int32(v))
}

func headMillis(h Header, name string) (d traceformat.Opt[time.Duration]) {
	v, err := strconv.ParseUint(h.get(name), 10, 32)
	if err != nil {
		return d
	}
	return traceformat.Some(time.Duration(v) * time.Millisecond)
}

func (a *answerState) body(x *Exchange, t int64, p []byte) {
	if len(p) == 0 {
		return
	}
	a.begun, a.lastAt, a.now = true, t, t
	switch {
	case a.dec != nil:
		if err := a.dec.feed(p); err != nil {
			a.drop(x)
		}
	case !a.lost || a.gapped && a.form == formStream:
		a.read(x, p)
	}
}

// drop gives up on the rest of the body.
func (a *answerState) drop(x *Exchange) {
	a.lost, a.noText = true, true
	if a.dec != nil {
		a.dec.stop()
		a.dec = nil
		x.hold(-decoderCost)
	}
	x.hold(-int64(cap(a.buf)))
	a.buf = nil
}

// read takes the next piece of the decoded body.
func (a *answerState) read(x *Exchange, p []byte) {
	if a.form == formUnknown {
		if p = bytes.TrimLeft(p, " \r\n\t\xef\xbb\xbf"); len(p) == 0 {
			return
		}
		a.form = formStream
		if p[0] == '{' || p[0] == '[' {
			a.form = formBody
		}
	}
	if a.form == formStream {
		a.events(x, p)
		return
	}
	most := x.r.o.MaxBody
	if a.status >= 300 {
		most = maxFault
	}
	if int64(len(a.buf)+len(p)) > most || !x.reserve(&a.buf, len(p)) {
		a.lost = true
		x.hold(-int64(cap(a.buf)))
		a.buf = nil
		return
	}
	a.buf = append(a.buf, p...)
}

func (a *answerState) events(x *Exchange, p []byte) {
	a.sse.Max = maxEvent
	a.sse.Feed(p)
	for data, ok := a.sse.Next(); ok; data, ok = a.sse.Next() {
		a.event(x, data)
	}
	if a.sse.Err() != nil {
		a.lost, a.noText = true, true
	}
}

func (a *answerState) gap(n int64) {
	a.lost, a.gapped, a.noText = true, true, true
	if a.dec != nil {
		a.dec.stop()
		a.dec = nil
	}
	a.chunksLost = true
	if a.form == formStream {
		// The rest of a cut event is no data line, so that the next whole event is
		// found.
		a.sse = llmapi.SSE{}
	}
}

func (a *answerState) release() {
	if a.dec != nil {
		a.dec.stop()
		a.dec = nil
	}
	clear(a.text)
	a.buf, a.text, a.id = nil, nil, ""
	a.sse = llmapi.SSE{}
	a.same = repeat{}
}

// event reads one event of a stream.
func (a *answerState) event(x *Exchange, data []byte) {
	if string(bytes.TrimSpace(data)) == "[DONE]" {
		a.done = true
		return
	}
	r := &a.reply
	endpoint := x.ask.endpoint
	if !x.ask.known || !x.ask.ask.read {
		endpoint = dialectOf(endpoint, data)
		x.ask.endpoint = endpoint
	}
	if !a.same.match(data, r) {
		if err := r.read(endpoint, data); err != nil {
			if !a.gapped && a.fault == "" {
				a.fault = "bad_event"
			}
			return
		}
		a.same.learn(data, r)
	}
	a.known = a.known || r.known
	if r.Error {
		a.failed(llmapi.ReadFault(0, data).Name("error_event"))
		return
	}
	a.note(x, r)
	tokens := a.count(r)
	if tokens > 0 {
		a.add(x, tokens)
	} else if len(r.FinishReason) > 0 && !r.Content {
		a.bare = append(a.bare, x.since(a.now))
	}
	a.say(x, r)
}

// dialectOf corrects an endpoint that was told by the shape of a body, or not at
// all, by the look of an event.
func dialectOf(endpoint string, data []byte) string {
	head := data[:min(len(data), 64)]
	switch {
	case bytes.Contains(head, []byte(`"type":"response.`)), bytes.Contains(head, []byte(`"type": "response.`)):
		return traceformat.EndpointResponses
	case bytes.Contains(head, []byte(`"type":"message_`)), bytes.Contains(head, []byte(`"type":"content_block`)),
		bytes.Contains(head, []byte(`"type": "message_`)), bytes.Contains(head, []byte(`"type": "content_block`)):
		return traceformat.EndpointMessages
	}
	return endpoint
}

func (a *answerState) failed(class string) {
	if a.fault == "" {
		a.fault = class
	}
}

// note takes what later events may not repeat.
func (a *answerState) note(x *Exchange, r *reply) {
	a.prompt.Take(r.Prompt)
	a.cached.Take(r.Cached)
	a.reasoning.Take(r.Reasoning)
	a.queue.Take(r.Queue)
	a.prefill.Take(r.Prefill)
	a.ttft.Take(r.TTFT)
	a.e2e.Take(r.E2E)
	if len(r.id) > 0 && len(r.id) <= 256 && a.id == "" {
		a.id = plain(r.id)
	}
	if len(r.FinishReason) == 0 || a.finish == "abort" || a.finish == "error" {
		return // with several choices, a failure of one is the news
	}
	a.finish = finishWord(r.FinishReason)
	if a.finish == "abort" || a.finish == "error" {
		a.failed(llmapi.EndFault(r.FinishMessage).Name(a.finish))
	}
}

// count returns the tokens of an event by the best that it offers: the running
// count of its choice less what the choice had before, its token ids, or one if
// there is content.
func (a *answerState) count(r *reply) int32 {
	if r.total {
		a.output = r.Output
		if !r.Content && !r.TokenIDs.OK {
			return 0
		}
	}
	native := r.Choices == 0 && (r.Content || r.TokenIDs.OK)
	if r.Choices == 0 && !native {
		a.output.Take(r.Output)
		a.summed = a.summed || r.Output.OK
		return 0
	}
	if r.Index < 0 || r.Index >= maxChoices {
		a.chunksLost = true
		return 0
	}
	c := a.choice(r.Index)
	switch {
	case r.total:
	case r.Output.OK && c.guessed && len(r.FinishReason) > 0:
		// Usage appears at the end alone: this is the choice's total, and what it
		// has on top of the events did not come in this one.
		c.tokens, c.exact = r.Output.V, true
		return btoi(r.Content)
	case r.Output.OK:
		// Counts never go back in practice; if one does, the tokens that come
		// again are not new.
		n := max(r.Output.V-c.tokens, 0)
		c.tokens, c.exact = max(r.Output.V, c.tokens), !c.guessed
		return n
	}
	switch {
	case r.TokenIDs.OK && !native:
		n := min(r.TokenIDs.V, 1<<30-c.tokens)
		c.tokens, c.exact = c.tokens+n, !c.guessed
		return n
	case r.Content:
		c.guessed, c.exact = true, false
		c.tokens += btoi(c.tokens < 1<<30)
		return 1
	}
	return 0
}

func btoi(b bool) int32 {
	if b {
		return 1
	}
	return 0
}

// choice returns the state of a choice, 0 <= i < maxChoices.
func (a *answerState) choice(i int) *choice {
	if i == 0 {
		return &a.one
	}
	a.noText = true
	for len(a.others) < i {
		a.others = append(a.others, choice{})
	}
	return &a.others[i-1]
}

// chunkCost is what an event costs to keep.
const chunkCost = 12

// add notes a token-bearing event.
func (a *answerState) add(x *Exchange, tokens int32) {
	at := x.since(a.now)
	if a.last.OK {
		at = max(at, a.last.V) // segments that overtook each other
	}
	if !a.first.OK {
		a.first = traceformat.Some(at)
	}
	a.last = traceformat.Some(at)
	if a.chunksLost {
		return
	}
	if len(a.times) == cap(a.times) {
		grow := max(64, len(a.times))
		if !x.hold(int64(grow) * chunkCost) {
			a.chunksLost = true
			return
		}
		a.times, a.tokens = slices.Grow(a.times, grow), slices.Grow(a.tokens, grow)
	}
	a.times = append(a.times, at)
	a.tokens = append(a.tokens, tokens)
}

// say goes on with the conversation's chain, so that the request that brings
// this answer back is known to continue it. With a tokenizer the text is kept
// until it is whole.
func (a *answerState) say(x *Exchange, r *reply) {
	p := x.ask.prompt
	if len(r.Text) == 0 || a.noText || p == nil {
		return
	}
	if x.r.o.Tokenizer != nil {
		if r.Choices == 0 { // SGLang's replies are cumulative
			a.text = a.text[:0]
		}
		unescape(r.Text, func(b []byte) {
			if x.reserve(&a.text, len(b)) {
				a.text = append(a.text, b...)
			} else {
				a.noText = true
			}
		})
		return
	}
	if p.chain == nil {
		return
	}
	if !a.spoken {
		a.spoken = true
		p.chain.writeByte(frameMessage)
		p.chain.write([]byte("assistant"))
		p.chain.writeByte(frameText)
	}
	p.chain.writeJSON(r.Text)
}

// whole reads a body that is no stream, once it is complete.
func (a *answerState) whole(x *Exchange) {
	if a.status >= 300 {
		return
	}
	endpoint := x.ask.endpoint
	replies := [][]byte{a.buf}
	if b := bytes.TrimSpace(a.buf); len(b) > 0 && b[0] == '[' { // SGLang with n > 1, TGI
		replies = replies[:0]
		p := jsonscan.New(b)
		for p.Enter('['); p.Elem(); {
			replies = append(replies, p.Value())
		}
		if p.Bad() {
			a.failed("bad_body")
			return
		}
	}
	var sum int64
	exact := len(replies) > 0
	for _, data := range replies {
		r := &a.reply
		if err := r.read(endpoint, data); err != nil {
			a.failed("bad_body")
			return
		}
		a.known = a.known || r.known
		if r.Error {
			a.failed(llmapi.ReadFault(0, data).Name("error_body"))
			return
		}
		a.note(x, r)
		n := r.Output
		if !n.OK {
			n = r.TokenIDs
		}
		sum += int64(n.V)
		exact = exact && n.OK
		if len(replies) > 1 || r.Choices > 1 {
			a.noText = true
		}
		a.say(x, r)
	}
	if exact && sum <= 1<<30 {
		a.output = traceformat.Some(int32(sum))
	}
}
