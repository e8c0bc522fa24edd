package capture

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash/fnv"
	"strconv"

	"reprise/internal/jsonscan"
	"reprise/internal/tokenizer"
	"reprise/traceformat"
)

// A prompt is what is known of the text of a request, without the text.
type prompt struct {
	chain *chain // goes on with the answer, where that makes sense; else nil

	blocks []uint64 // nil: unknown
	bytes  int64    // canonical bytes behind them
	digest uint64   // of the whole prompt
	// bounds identify the prompt up to the end of each message; nil where the
	// prompt is one text.
	bounds []uint64
	part   int // bytes after the last whole block
	// window returns n canonical bytes from an offset on, for a prompt of one
	// text: continuations of it are told by its bytes. It works as long as the
	// request's body is there.
	window func(from int64, n int) []byte

	tokens traceformat.Opt[int32] // token ids, or as the tokenizer counts
	media  bool
	batch  int // prompts in one request, if more than one

	images, audio, files int
	tools                int
	toolBytes            int64
}

// A canon writes the canonical bytes of a request's prompt.
type canon struct {
	c     *chain
	tok   *tokenizer.Tokenizer // nil: bytes
	count int64                // tokens of text, and token ids
	exact bool                 // count covers everything
	text  []byte               // scratch
	ids   []uint32             // scratch
	p     *prompt
}

// maxParts bounds how deep content lies in content: a tool's result in a message.
const maxParts = 4

// readPrompt hashes what the request asks to be read.
func (r *Recorder) readPrompt(endpoint string, b *requestBody) *prompt {
	block := r.o.BlockBytes
	if r.o.Tokenizer != nil {
		block = tokenBytes * r.o.BlockTokens
	}
	p := &prompt{chain: newChain(r.key, block)}
	w := &canon{c: p.chain, tok: r.o.Tokenizer, exact: r.o.Tokenizer != nil, p: p}
	one := func(raw []byte) {
		w.alternatives(raw)
		p.window = func(from int64, n int) []byte {
			c := &chain{k: r.key, from: from, window: make([]byte, 0, n)}
			again := &canon{c: c, tok: r.o.Tokenizer, p: new(prompt)}
			if b.tools != nil {
				again.tools(b.tools)
			}
			again.alternatives(raw)
			return c.window
		}
	}
	if b.tools != nil {
		w.tools(b.tools)
	}
	switch endpoint {
	case traceformat.EndpointChat, traceformat.EndpointMessages, traceformat.EndpointResponses:
		if b.system != nil {
			w.frame(frameMessage, []byte("system"))
			w.content(b.system, maxParts)
			p.bounds = append(p.bounds, w.c.boundary())
		}
		list := b.messages
		if endpoint == traceformat.EndpointResponses {
			list = b.input
		}
		if list == nil {
			w.c.release()
			p.chain = nil
			return p
		}
		w.messages(list)
	case traceformat.EndpointEmbeddings:
		w.alternatives(firstOf(b.input, b.inputs, b.text, b.ids))
	default:
		one(firstOf(b.ids, b.prompt, b.inputs, b.text))
	}
	p.finish(w)
	return p
}

// finish takes what the chain has so far for the prompt.
func (p *prompt) finish(w *canon) {
	c := w.c
	if w.exact && w.count <= 1<<30 {
		p.tokens = traceformat.Some(int32(w.count))
	}
	if p.batch > 1 || c.total == 0 {
		c.release()
		p.chain = nil
		return
	}
	p.blocks, p.bytes, p.digest = c.ids, c.total, c.boundary()
	p.part = len(c.buf)
	c.quiet = true
	if p.bounds == nil { // one text: nothing marks where an answer begins
		c.release()
		p.chain = nil
	}
}

// tokenBytes is the size of a token id in canonical bytes.
const tokenBytes = 4

// frame marks what follows; word is the inside of a JSON string.
func (w *canon) frame(tag byte, word []byte) {
	if w.tok == nil {
		w.c.writeByte(tag)
		w.c.writeJSON(word)
		return
	}
	h := fnv.New32a()
	unescape(word, func(b []byte) { h.Write(b) })
	w.id(uint32(tag)<<24 | h.Sum32()&0xffffff)
}

func (w *canon) id(id uint32) {
	var b [tokenBytes]byte
	binary.LittleEndian.PutUint32(b[:], id)
	w.c.write(b[:])
}

// string writes the inside of a JSON string as text.
func (w *canon) string(raw []byte) {
	if w.tok == nil {
		w.c.writeJSON(raw)
		return
	}
	w.text = w.text[:0]
	unescape(raw, func(b []byte) { w.text = append(w.text, b...) })
	w.encode()
}

// json writes a JSON value as text, without the white space between tokens.
func (w *canon) json(raw []byte) {
	if w.tok == nil {
		compact(raw, w.c.write)
		return
	}
	w.text = w.text[:0]
	compact(raw, func(b []byte) { w.text = append(w.text, b...) })
	w.encode()
}

func (w *canon) encode() {
	w.ids = w.tok.Encode(w.ids[:0], string(w.text), tokenizer.Options{})
	w.count += int64(len(w.ids))
	for _, id := range w.ids {
		w.id(id)
	}
	clear(w.text)
}

// compact yields a valid JSON value in pieces, without the white space between
// tokens.
func compact(raw []byte, yield func([]byte)) {
	for len(raw) > 0 {
		i := bytes.IndexAny(raw, " \t\r\n\"")
		if i < 0 {
			yield(raw)
			return
		}
		if raw[i] != '"' {
			if i > 0 {
				yield(raw[:i])
			}
			raw = raw[i+1:]
			continue
		}
		end := i + 1
		for end < len(raw) && raw[end] != '"' {
			if raw[end] == '\\' {
				end++
			}
			end++
		}
		end = min(end+1, len(raw))
		yield(raw[:end])
		raw = raw[end:]
	}
}

func (w *canon) tools(raw []byte) {
	if raw[0] == '[' {
		p := jsonscan.New(raw)
		n, _ := p.Elems()
		w.p.tools = int(n)
	}
	if w.p.tools == 0 {
		return
	}
	before := w.c.total
	w.frame(frameTools, nil)
	w.json(raw)
	w.p.toolBytes = w.c.total - before
}

// messages writes a conversation: a list of messages or items, or the text of
// one.
func (w *canon) messages(raw []byte) {
	p := jsonscan.New(raw)
	if !p.Enter('[') {
		w.frame(frameMessage, []byte("user"))
		w.content(raw, maxParts)
		w.p.bounds = append(w.p.bounds, w.c.boundary())
		return
	}
	for p.Elem() {
		w.message(p.Value())
		w.p.bounds = append(w.p.bounds, w.c.boundary())
	}
}

// message writes one message, whatever the order of its members.
func (w *canon) message(raw []byte) {
	p := jsonscan.New(raw)
	if !p.Enter('{') {
		w.frame(frameMessage, nil)
		w.content(raw, maxParts)
		return
	}
	var role, kind, name, arguments []byte
	var content, output, calls, call []byte
	for k, ok := p.Key(); ok; k, ok = p.Key() {
		switch string(k) {
		case "role":
			role = p.Text()
		case "type":
			kind = p.Text()
		case "content":
			content = p.Value()
		case "tool_calls":
			calls = p.Value()
		case "function_call":
			call = p.Value()
		case "name":
			name = p.Text()
		case "arguments":
			arguments = p.Text()
		case "output":
			output = p.Value()
		default:
			p.Skip()
		}
	}
	if len(role) == 0 { // an item of the Responses API that is no message
		role = kind
	}
	w.frame(frameMessage, role)
	w.content(content, maxParts)
	if len(arguments) > 0 {
		w.frame(frameCall, name)
		w.string(arguments)
	}
	if len(output) > 0 {
		w.frame(frameResult, nil)
		w.content(output, maxParts)
	}
	w.calls(calls)
	w.function(call)
}

// calls writes the tool calls of an assistant's message.
func (w *canon) calls(raw []byte) {
	p := jsonscan.New(raw)
	if !p.Enter('[') {
		return
	}
	for p.Elem() {
		for k := range members(&p) {
			if string(k) == "function" {
				w.function(p.Value())
			} else {
				p.Skip()
			}
		}
	}
}

func (w *canon) function(raw []byte) {
	if len(raw) == 0 || raw[0] != '{' {
		return
	}
	p := jsonscan.New(raw)
	var name, arguments []byte
	for k := range members(&p) {
		switch string(k) {
		case "name":
			name = p.Text()
		case "arguments":
			arguments = p.Text()
		default:
			p.Skip()
		}
	}
	w.frame(frameCall, name)
	w.string(arguments)
}

// content writes text, a part, or a list of parts. Depth bounds parts in parts.
func (w *canon) content(raw []byte, depth int) {
	if len(raw) == 0 || depth == 0 {
		return
	}
	p := jsonscan.New(raw)
	switch p.Peek() {
	case '"':
		w.frame(frameText, nil)
		w.string(p.Text())
	case '[':
		p.Enter('[')
		for p.Elem() {
			w.content(p.Value(), depth-1)
		}
	case '{':
		w.part(raw, depth)
	}
}

// part writes one part of a message's content.
func (w *canon) part(raw []byte, depth int) {
	p := jsonscan.New(raw)
	var kind, text, name []byte
	var content, input, medium []byte
	for k := range members(&p) {
		switch string(k) {
		case "type":
			kind = p.Text()
		case "text", "refusal":
			text = p.Text()
		case "name":
			name = p.Text()
		case "content":
			content = p.Value()
		case "input":
			input = p.Value()
		case "image_url", "image", "source", "video_url", "video", "input_audio", "audio", "audio_url", "file", "file_data", "file_id", "file_url":
			medium = p.Value()
		default:
			p.Skip()
		}
	}
	switch {
	case bytes.Contains(kind, []byte("audio")):
		w.p.audio++
		w.medium(medium)
	case bytes.Contains(kind, []byte("image")), bytes.Contains(kind, []byte("video")):
		w.p.images++
		w.medium(medium)
	case bytes.Contains(kind, []byte("file")), string(kind) == "document":
		w.p.files++
		w.medium(medium)
	case string(kind) == "tool_use":
		w.frame(frameCall, name)
		w.json(input)
	case string(kind) == "tool_result":
		w.frame(frameResult, nil)
		w.content(content, depth-1)
	case text != nil:
		w.frame(frameText, nil)
		w.string(text)
	case medium != nil:
		w.p.files++
		w.medium(medium)
	}
}

// medium writes what identifies an image, a recording or a file: equal ones are
// equal, and their size does not stretch the prompt.
func (w *canon) medium(raw []byte) {
	w.p.media = true
	w.exact = false
	var d [sha256.Size]byte
	w.c.k.sum(&d, domainMedia, raw, "")
	id := binary.BigEndian.Uint64(d[:])
	if w.tok == nil {
		w.c.write(binary.BigEndian.AppendUint64([]byte{frameMedia}, id))
	} else {
		w.id(frameMedia<<24 | uint32(id>>40))
	}
}

// alternatives writes the prompt of an endpoint that takes a text, token ids, or
// a list of either. Several prompts in one request have no blocks: they are no
// prefix of anything.
func (w *canon) alternatives(raw []byte) {
	p := jsonscan.New(raw)
	switch p.Peek() {
	case '"':
		w.string(p.Text())
	case '[':
		w.exact = true // token ids, until something else comes
		p.Enter('[')
		for p.Elem() {
			switch c := p.Peek(); c {
			case '"', '[':
				w.p.batch++
				w.one(p.Value())
			case '{':
				w.p.batch++
				w.exact = false
				p.Skip()
			default:
				w.tokenID(&p)
			}
		}
	default:
		w.exact = false
	}
}

// one writes one of several prompts.
func (w *canon) one(raw []byte) {
	p := jsonscan.New(raw)
	if p.Peek() == '"' {
		w.exact = w.exact && w.tok != nil
		w.string(p.Text())
		return
	}
	p.Enter('[')
	for p.Elem() {
		w.tokenID(&p)
	}
}

func (w *canon) tokenID(p *jsonscan.Parser) {
	if c := p.Peek(); c < '0' || c > '9' {
		p.Skip()
		w.exact = false
		return
	}
	id, err := strconv.ParseUint(string(p.Num()), 10, 32)
	if err != nil {
		w.exact = false
		return
	}
	w.id(uint32(id))
	w.count++
}
