package llmapi

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"unicode"
)

// A Fault is what a server says when it refuses a request or breaks off.
type Fault struct {
	// Class is what went wrong in one word, "" if it is none of the known ones:
	// context_overflow, out_of_vocab, model_not_found, empty_prompt, max_tokens,
	// unknown_field, bad_json, unauthorized, rate_limited, overloaded,
	// engine_dead, aborted, not_found, method_not_allowed.
	Class string
	// Message is the server's own words on one line, for a terminal: short, and
	// without control characters. It may quote the request, so it is not to be
	// stored.
	Message string
}

// EndFault reads what an engine says of a choice that it ended as abort or
// error. That it was aborted is no news and no class.
func EndFault(message []byte) Fault {
	f := ReadFault(0, message)
	if f.Class == "aborted" {
		f.Class = ""
	}
	return f
}

// Name joins a short class of an event or status with f's own:
// "http_400/context_overflow".
func (f Fault) Name(base string) string {
	if f.Class == "" {
		return base
	}
	return base + "/" + f.Class
}

// maxMessage bounds Fault.Message, in bytes.
const maxMessage = 300

// maxFault bounds what of an error body is read. A longer body is taken for
// text.
const maxFault = 256 << 10

// ReadFault reads the body of an error status, or an error event. Status is 0
// for an event. It knows
//
//	{"error":{"message":..,"type":..,"param":..,"code":..}}   OpenAI, vLLM, llama.cpp, SGLang
//	{"error":".."}                                            SGLang
//	{"object":"error","message":..,"type":..,"code":..}       SGLang, older vLLM
//	{"detail":".."}, {"detail":[{"msg":..}]}                  FastAPI's router
//
// and takes anything else for text.
func ReadFault(status int, body []byte) Fault {
	var msg, kind string
	var o struct {
		Error   json.RawMessage `json:"error"`
		Message json.RawMessage `json:"message"`
		Type    json.RawMessage `json:"type"`
		Detail  json.RawMessage `json:"detail"`
	}
	if len(body) <= maxFault && json.Unmarshal(body, &o) == nil {
		var inner struct {
			Message json.RawMessage `json:"message"`
			Type    json.RawMessage `json:"type"`
			Code    json.RawMessage `json:"code"`
		}
		var details []struct {
			Msg string `json:"msg"`
		}
		switch {
		case json.Unmarshal(o.Error, &inner) == nil && len(inner.Message)+len(inner.Type)+len(inner.Code) > 0:
			msg, kind = str(inner.Message), str(inner.Type)+" "+str(inner.Code)
		case len(o.Error) > 0 && string(o.Error) != "null":
			msg = str(o.Error)
		case len(o.Message) > 0:
			msg, kind = str(o.Message), str(o.Type)
		case json.Unmarshal(o.Detail, &details) == nil && len(details) > 0:
			msg = details[0].Msg
		case len(o.Detail) > 0:
			msg = str(o.Detail)
		}
	}
	if msg == "" {
		msg = string(body[:min(len(body), 2*maxMessage)])
	}
	return Fault{Class: classify(status, strings.ToLower(msg), strings.ToLower(kind)), Message: OneLine(msg)}
}

// str returns a JSON string's value, and any other JSON as it stands.
func str(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	return string(bytes.TrimSpace(raw))
}

// classify goes by the words that servers are seen to use, in lower case, most
// telling first; the fixtures of the backends' tests have them all.
func classify(status int, msg, kind string) string {
	for _, r := range [...]struct {
		class string
		words []string
	}{
		{"engine_dead", []string{"enginecore encountered", "enginedeaderror", "engine is dead", "engine loop is not running"}},
		{"context_overflow", []string{"context length", "context size", "context window", "exceed_context_size", "context_length_exceeded", "input is too long", "exceeds the maximum allowed length", "prompt is too long"}},
		{"out_of_vocab", []string{"out of vocabulary", "invalid tokens", "invalid token id", "out of range of the vocab"}},
		{"model_not_found", []string{"model_not_found", "the model `", "model not found", "unknown model"}},
		{"empty_prompt", []string{"at least one prompt", "non-empty", "cannot be empty", "must not be empty", "should be provided", "prompt is empty"}},
		{"max_tokens", []string{"max_tokens must be", "max_completion_tokens must be", "min_tokens must be", "min_new_tokens must be", "max_new_tokens must be"}},
		{"bad_json", []string{"json_invalid", "json decode error", "parse error", "could not parse the json"}},
		{"unknown_field", []string{"unknown field", "unrecognized request argument", "unknown parameter", "unsupported parameter", "extra_forbidden", "extra inputs are not permitted"}},
		{"overloaded", []string{"queue is full", "overloaded", "too many requests", "server busy", "no available"}},
		{"aborted", []string{"aborted", "request was cancelled"}},
	} {
		for _, w := range r.words {
			if strings.Contains(msg, w) || strings.Contains(kind, w) {
				return r.class
			}
		}
	}
	switch status {
	case 401, 403:
		return "unauthorized"
	case 404:
		return "not_found"
	case 405:
		return "method_not_allowed"
	case 429:
		return "rate_limited"
	case 503:
		return "overloaded"
	}
	return ""
}

// HTTPFault names the answer to a request that was refused with status: the
// base class is "http_<status>".
func HTTPFault(status int, body []byte) (class, message string) {
	f := ReadFault(status, body)
	return f.Name("http_" + strconv.Itoa(status)), f.Message
}

// OneLine makes s fit for a line of a terminal: at most 300 bytes, and what
// could move a cursor is a space. Bytes that are not UTF-8 become U+FFFD.
func OneLine(s string) string {
	s = strings.ToValidUTF8(s[:min(len(s), 2*maxMessage)], "\ufffd")
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }), " ")
	s = strings.Join(strings.Fields(s), " ")
	if len(s) <= maxMessage {
		return s
	}
	return strings.ToValidUTF8(s[:maxMessage-len("…")], "") + "…"
}
