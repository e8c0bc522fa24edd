package proxylog

import (
	"bytes"
	"encoding/json"
	"time"

	"reprise/traceformat"
)

// A field is something that a log may say of a request, whatever it calls it.
type field uint8

const (
	fieldNone         field = iota
	fieldStart              // when the first byte of the request came
	fieldEnd                // when the request ended, or the line was written
	fieldDuration           // from start to end
	fieldFirst              // when the first token came
	fieldTTFT               // from start to first token
	fieldHeaderTime         // from start to the head of the answer; a list where there were several attempts
	fieldUpstreamTime       // how long each attempt took, a list
	fieldMethod             //
	fieldPath               // with or without a query or a host
	fieldRequestLine        // "POST /v1/chat/completions HTTP/1.1"
	fieldStatus             // of the answer to the client
	fieldUpstream           // status or address of each attempt, a list
	fieldAttempts           // number of attempts
	fieldRetries            // number of attempts beyond the first
	fieldComplete           // nginx: "OK", or nothing if the answer was not sent in full
	fieldTermination        // HAProxy: the four letters of how a session ended
	fieldFlags              // Envoy: response flags
	fieldResult             // success or failure, in the source's words
	fieldError              // class of an error
	fieldFinish             // why the model stopped
	fieldKind               // what sort of record it is
	fieldClient             // address, key id or tenant
	fieldUser               //
	fieldSession            //
	fieldRequestID          //
	fieldTrace              // identity that attempts at one request share
	fieldModel              // model that answered
	fieldModelAsked         // model that was asked for
	fieldPrompt             // prompt tokens
	fieldOutput             // output tokens
	fieldCached             // prompt tokens from the prefix cache
	fieldReasoning          //
	fieldMaxTokens          //
	fieldChoices            // n
	fieldTemperature        //
	fieldStream             //
	fieldQueue              // time in the engine's queue
	fieldPrefill            //
	fieldDecode             // time spent on tokens after the first, or on all
	fieldPerToken           // average time of an output token
	fieldPrefix             // array of block ids
	fieldBlockSize          // tokens in a block
	fieldCacheHit           // the gateway answered from a cache of its own
	numFields
)

var fieldNames = map[string]field{
	"start": fieldStart, "end": fieldEnd, "duration": fieldDuration, "first_token": fieldFirst, "ttft": fieldTTFT,
	"header_time": fieldHeaderTime, "method": fieldMethod, "path": fieldPath, "request_line": fieldRequestLine,
	"status": fieldStatus, "upstream_status": fieldUpstream, "attempts": fieldAttempts, "retries": fieldRetries, "complete": fieldComplete,
	"termination": fieldTermination, "response_flags": fieldFlags, "error": fieldError, "finish_reason": fieldFinish,
	"client": fieldClient, "user": fieldUser, "session": fieldSession, "request_id": fieldRequestID,
	"model": fieldModel, "prompt_tokens": fieldPrompt, "output_tokens": fieldOutput,
	"cached_tokens": fieldCached, "reasoning_tokens": fieldReasoning, "max_tokens": fieldMaxTokens, "n": fieldChoices,
	"temperature": fieldTemperature, "stream": fieldStream, "queue": fieldQueue, "prefill": fieldPrefill,
	"prefix_blocks": fieldPrefix, "block_size": fieldBlockSize, "cache_hit": fieldCacheHit,
}

// A binding says what a key of a log holds.
type binding struct {
	field  field
	unit   unit
	layout string // of unitLayout
	// rank decides where several keys hold one field: the lowest that has a
	// value is taken.
	rank uint8
}

// A value is what a log holds for a field. The bytes are the line's.
type value struct {
	raw    []byte // of a string, what is between its quotes
	quoted bool   // it is a JSON string, in which escapes may stand
	bind   *binding
}

// A record is one line, by field.
type record struct {
	vals [numFields]value
	set  uint64
}

func (r *record) reset() { r.set = 0 }

func (r *record) has(f field) bool { return r.set>>f&1 != 0 }

// put stores a value unless a better one is there. Nothing, "-" and null are no
// values, with the one exception of $request_completion: there, nothing says
// that the answer was cut.
func (r *record) put(b *binding, raw []byte, quoted bool) {
	if len(raw) == 0 && b.field == fieldComplete {
		raw = nil
	} else if len(raw) == 0 || len(raw) == 1 && raw[0] == '-' || !quoted && string(raw) == "null" {
		return
	}
	f := b.field
	if r.has(f) && r.vals[f].bind.rank <= b.rank {
		return
	}
	r.set |= 1 << f
	r.vals[f] = value{raw, quoted, b}
}

// putJSON stores a JSON value.
func (r *record) putJSON(b *binding, v []byte) {
	if len(v) >= 2 && v[0] == '"' {
		r.put(b, v[1:len(v)-1], true)
		return
	}
	r.put(b, v, false)
}

// bytes is the text of a field, with escapes undone.
func (r *record) bytes(f field) []byte {
	if !r.has(f) {
		return nil
	}
	v := &r.vals[f]
	if v.quoted && bytes.IndexByte(v.raw, '\\') >= 0 {
		var s string
		q := append(append(append(make([]byte, 0, len(v.raw)+2), '"'), v.raw...), '"')
		if json.Unmarshal(q, &s) == nil {
			return []byte(s)
		}
	}
	return v.raw
}

func (r *record) text(f field) string { return string(r.bytes(f)) }

// maxTokens is what a column of lengths takes.
const maxTokens = 1 << 30

// count reads a number of tokens or the like.
func (r *record) count(f field) (n traceformat.Opt[int32]) {
	if !r.has(f) {
		return n
	}
	v, ok := fixed(r.vals[f].raw, 0)
	if !ok || v < 0 || v > maxTokens {
		return n
	}
	return traceformat.Some(int32(v))
}

func (r *record) number(f field) (n traceformat.Opt[float64]) {
	if !r.has(f) {
		return n
	}
	v, ok := fixed(r.vals[f].raw, 9)
	if !ok {
		return n
	}
	return traceformat.Some(float64(v) / 1e9)
}

// span reads a duration; of a list, its sum.
func (r *record) span(f field) (d traceformat.Opt[time.Duration]) {
	if !r.has(f) {
		return d
	}
	v := &r.vals[f]
	if bytes.IndexByte(v.raw, ',') >= 0 || bytes.IndexByte(v.raw, ':') >= 0 {
		sum := time.Duration(0)
		for part := range listParts(v.raw) {
			s, ok := span(part, v.bind.unit)
			if !ok {
				return d
			}
			sum += s
		}
		return traceformat.Some(sum)
	}
	s, ok := span(v.raw, v.bind.unit)
	return traceformat.Opt[time.Duration]{V: s, OK: ok}
}

// lastSpan is the last duration of a list and the sum of those before it in
// another list: when, from the start, something happened in the last attempt.
func (r *record) lastSpan(f, before field) (d traceformat.Opt[time.Duration]) {
	if !r.has(f) {
		return d
	}
	n, last := 0, []byte(nil)
	for part := range listParts(r.vals[f].raw) {
		last = part
		n++
	}
	s, ok := span(last, r.vals[f].bind.unit)
	if !ok {
		return d
	}
	if n > 1 {
		if !r.has(before) {
			return d
		}
		i := 0
		for part := range listParts(r.vals[before].raw) {
			if i++; i == n {
				break
			}
			p, ok := span(part, r.vals[before].bind.unit)
			if !ok {
				return d
			}
			s += p
		}
	}
	return traceformat.Some(s)
}

// listParts yields the parts of nginx's "0.004, 0.310 : 0.2": commas separate
// servers of one upstream, colons the groups of an internal redirect.
func listParts(b []byte) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		for {
			i := bytes.IndexByte(b, ',')
			if j := bytes.Index(b, []byte(" : ")); j >= 0 && (i < 0 || j < i) {
				i = j + 1
			}
			if i < 0 {
				yield(bytes.TrimSpace(b))
				return
			}
			if !yield(bytes.TrimSpace(b[:i])) {
				return
			}
			b = b[i+1:]
		}
	}
}

// listLen is the number of parts.
func listLen(b []byte) int {
	n := 0
	for range listParts(b) {
		n++
	}
	return n
}

// truth reads a boolean, in JSON's words and Python's.
func (r *record) truth(f field) (v traceformat.Opt[bool]) {
	if !r.has(f) {
		return v
	}
	switch string(r.vals[f].raw) {
	case "true", "True", "1", "yes", "TRUE":
		return traceformat.Some(true)
	case "false", "False", "0", "no", "FALSE":
		return traceformat.Some(false)
	}
	return v
}

// stamp reads a moment and what its spelling resolves.
func (r *record) stamp(f field, k *calendar) (ns int64, tick time.Duration, ok bool) {
	if !r.has(f) {
		return 0, 0, false
	}
	v := &r.vals[f]
	u := v.bind.unit
	if u <= unitNano && (u != unitAuto || !isDate(v.raw)) {
		return epoch(v.raw, u)
	}
	c, ok := parseCivil(v.raw, u, v.bind.layout)
	if !ok {
		return 0, 0, false
	}
	ns, ok = k.at(c)
	return ns, c.tick, ok
}
