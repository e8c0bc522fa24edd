package capture

import "bytes"

// A repeat recognises an event that is the one before but for its text, as
// nearly all events of a stream are: bytes that are equal around a string
// literal mean the same around another. It saves reading them again, which is
// most of what a token costs.
type repeat struct {
	event      []byte // the event that was read
	from, tail int    // its text begins at from, and tail bytes follow it
	reply      reply
	current    bool // the reply given to match last is still this one, but for its text
}

// maxRepeat bounds what is kept of an event.
const maxRepeat = 4 << 10

// learn takes an event that was read as r. Only one that says nothing but its
// text is worth it.
func (p *repeat) learn(data []byte, r *reply) {
	p.event, p.current = p.event[:0], false
	plain := len(r.Text) > 0 && !r.Other && !r.Error && !r.total && !r.TokenIDs.OK && !r.Output.OK && !r.Prompt.OK &&
		!r.Cached.OK && !r.Reasoning.OK && !r.Queue.OK && !r.Prefill.OK && !r.TTFT.OK && !r.E2E.OK &&
		len(r.FinishReason) == 0 && len(r.FinishMessage) == 0 && len(r.id) == 0
	if !plain || len(data) > maxRepeat {
		return
	}
	from := cap(data) - cap(r.Text)
	if from < 1 || from+len(r.Text) >= len(data) || &data[from] != &r.Text[0] {
		return
	}
	p.event = append(p.event, data...)
	p.from, p.tail = from, len(data)-from-len(r.Text)
	p.reply = *r
	p.reply.Text = nil
}

// match reads data if it is such a repetition; r is always the same variable. What it takes for the text is the
// inside of one string literal, not empty.
func (p *repeat) match(data []byte, r *reply) bool {
	end := len(data) - p.tail
	if len(p.event) == 0 || end <= p.from ||
		!bytes.Equal(data[end:], p.event[len(p.event)-p.tail:]) || !bytes.Equal(data[:p.from], p.event[:p.from]) {
		return false
	}
	text := data[p.from:end]
	for _, c := range text {
		if c < ' ' || c == '"' || c == '\\' {
			return false // escapes are for the reader
		}
	}
	if !p.current {
		*r = p.reply
		p.current = true
	}
	r.Text = text
	return true
}
