// Package mock is an inference server with known delays, cheap enough that a
// client is measured against it and not it by the client.
//
// It speaks as much of vLLM's API as a replay needs: /v1/models, /version,
// /health, and streams from /v1/completions and /v1/chat/completions, with as
// many token events as max_tokens asks for. Every answer is a stream, whatever
// was asked. GET /stats tells how late the mock itself was, as [Stats].
//
// It runs on Linux, in one thread, and trusts its clients: it is no server to
// expose.
package mock

import (
	"bytes"
	"math"
	"strconv"
	"time"
)

// Options say how answers come.
type Options struct {
	FirstToken time.Duration // from the last byte of a request to its first event
	Gap        time.Duration // between two writes
	Events     int           // token events where max_tokens is absent. 0: 16
	PerWrite   int           // token events in one write. 0: the whole answer

	// Seen, if set, is told of each request when its first events are written:
	// when it was read to its end and when that was, on the clock of package
	// clock. It must be quick.
	Seen func(arrived, answered time.Duration) `json:"-"`
}

// Stats say what a server did. Lateness is that of its own writes against their
// due times: what a client measures beyond it, is the client's or the kernel's.
type Stats struct {
	Requests int64         `json:"requests"`
	Events   int64         `json:"events"`
	LateP50  time.Duration `json:"late_p50_ns"`
	LateP99  time.Duration `json:"late_p99_ns"`
	LateMax  time.Duration `json:"late_max_ns"`
}

// A kind is the dialect of an answer.
type kind uint8

const (
	completion kind = iota
	chat
)

const head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"

// appendEvent writes token event i of n, counted from 1, as one chunk.
func appendEvent(b []byte, k kind, i, n int, running bool) []byte {
	return appendChunk(b, func(b []byte) []byte {
		b = append(b, `data: {"id":"mock","object":"text_completion","created":1,"model":"mock","choices":[{"index":0,`...)
		if k == chat {
			b = append(b, `"delta":{"content":" a"}`...)
		} else {
			b = append(b, `"text":" a"`...)
		}
		if i == n {
			b = append(b, `,"finish_reason":"length"}]`...)
		} else {
			b = append(b, `,"finish_reason":null}]`...)
		}
		if running {
			b = append(b, `,"usage":{"completion_tokens":`...)
			b = strconv.AppendInt(b, int64(i), 10)
			b = append(b, '}')
		}
		return append(b, "}\n\n"...)
	})
}

// appendEnd writes what follows the last token event. prompt is the offset of a
// field of promptWidth bytes for the length of the prompt.
func appendEnd(b []byte, n int) (out []byte, prompt int) {
	b = appendChunk(b, func(b []byte) []byte {
		b = append(b, `data: {"id":"mock","object":"text_completion","created":1,"model":"mock","choices":[],"usage":{"prompt_tokens":`...)
		prompt = len(b)
		b = append(b, "         0"...)
		b = append(b, `,"completion_tokens":`...)
		b = strconv.AppendInt(b, int64(n), 10)
		return append(b, "}}\n\n"...)
	})
	b = appendChunk(b, func(b []byte) []byte { return append(b, "data: [DONE]\n\n"...) })
	return append(b, "0\r\n\r\n"...), prompt
}

const promptWidth = 10

// setPrompt writes the length of a prompt over its field.
func setPrompt(field []byte, n int) {
	for i := promptWidth - 1; i >= 0; i-- {
		field[i] = ' '
		if n > 0 || i == promptWidth-1 {
			field[i] = byte('0' + n%10)
		}
		n /= 10
	}
}

// appendChunk puts what write appends into a chunk with a size of three digits.
func appendChunk(b []byte, write func([]byte) []byte) []byte {
	at := len(b)
	b = write(append(b, "000\r\n"...))
	const hex = "0123456789abcdef"
	for i, n := 2, len(b)-at-5; i >= 0; i-- {
		b[at+i] = hex[n%16]
		n /= 16
	}
	return append(b, "\r\n"...)
}

// A request is what the mock reads of one.
type request struct {
	get     bool
	path    []byte
	kind    kind
	events  int // 0: not said
	prompt  int
	running bool // continuous_usage_stats
}

// maxRequest bounds what is buffered of one request.
const maxRequest = 64 << 20

// parse reads a request at the start of b. n is its length, 0 if it is not
// whole yet, and -1 if it is no request.
func parse(b []byte) (r request, n int) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		if len(b) > maxRequest {
			return r, -1
		}
		return r, 0
	}
	line, fields, _ := bytes.Cut(b[:end+2], []byte("\r\n"))
	method, line, ok := bytes.Cut(line, []byte(" "))
	path, _, ok2 := bytes.Cut(line, []byte(" "))
	if !ok || !ok2 {
		return r, -1
	}
	length := 0
	for len(fields) > 0 {
		var f []byte
		f, fields, _ = bytes.Cut(fields, []byte("\r\n"))
		if name, value, _ := bytes.Cut(f, []byte(":")); len(name) == len("Content-Length") && bytes.EqualFold(name, []byte("Content-Length")) {
			v, err := strconv.Atoi(string(bytes.TrimSpace(value)))
			if err != nil || v < 0 || v > maxRequest {
				return r, -1
			}
			length = v
		}
	}
	n = end + 4 + length
	if len(b) < n {
		return r, 0
	}
	r.get, r.path = string(method) == "GET", path
	if bytes.Contains(path, []byte("/chat/")) {
		r.kind = chat
	}
	body := b[end+4 : n]
	// The options stand behind the prompt, which is long.
	if i := bytes.LastIndex(body, []byte(`"max_tokens":`)); i >= 0 {
		r.events = number(body[i+len(`"max_tokens":`):])
	}
	if _, ids, ok := bytes.Cut(body, []byte(`"prompt":[`)); ok {
		if end := bytes.IndexByte(ids, ']'); end > 0 {
			r.prompt = 1 + bytes.Count(ids[:end], []byte(","))
		}
	}
	r.running = bytes.HasSuffix(body, []byte(`"continuous_usage_stats":true}}`)) || bytes.Contains(body, []byte(`"continuous_usage_stats":true`))
	return r, n
}

// number reads the digits at the start of b.
func number(b []byte) (n int) {
	b = bytes.TrimLeft(b, " ")
	for _, c := range b {
		if c < '0' || c > '9' || n > math.MaxInt32 {
			break
		}
		n = n*10 + int(c-'0')
	}
	return n
}

// page answers a GET.
func page(path string, stats func() []byte) []byte {
	status, body := "200 OK", []byte("{}")
	switch path {
	case "/v1/models":
		body = []byte(`{"object":"list","data":[{"id":"mock","object":"model","created":1,"owned_by":"vllm","max_model_len":4194304}]}`)
	case "/version":
		body = []byte(`{"version":"mock"}`)
	case "/stats":
		body = stats()
	case "/health":
	default:
		status, body = "404 Not Found", []byte(`{"error":{"message":"Not Found","code":404}}`)
	}
	b := append([]byte("HTTP/1.1 "+status+"\r\nContent-Type: application/json\r\nContent-Length: "), strconv.Itoa(len(body))...)
	return append(append(b, "\r\n\r\n"...), body...)
}
