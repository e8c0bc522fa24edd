package capture

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"reprise/traceformat"
)

type nullSink struct{}

func (nullSink) Append(*traceformat.Row) error { return nil }

// BenchmarkStream is what the core costs per byte of a streamed answer of 200
// tokens, one event a read, request and row included.
func BenchmarkStream(b *testing.B) {
	var events [][]byte
	size := 0
	for i := range 200 {
		e := fmt.Appendf(nil, `data: {"id":"chatcmpl-aa4ea627376db47b","object":"chat.completion.chunk","created":1795426197,"model":"tiny","choices":[{"index":0,"delta":{"content":" w%d"},"logprobs":null,"finish_reason":null,"token_ids":null}]}`+"\n\n", i)
		events = append(events, e)
		size += len(e)
	}
	last := []byte(`data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\n" + `data: {"choices":[],"usage":{"prompt_tokens":100,"completion_tokens":200}}` + "\n\ndata: [DONE]\n\n")
	body := []byte(`{"model":"m","stream":true,"messages":[{"role":"user","content":"` + strings.Repeat("word ", 100) + `"}]}`)
	r, err := NewRecorder(nullSink{}, Options{})
	if err != nil {
		b.Fatal(err)
	}
	head := Header(func(name string) string {
		if name == "content-type" {
			return "text/event-stream"
		}
		return ""
	})
	b.SetBytes(int64(size))
	b.ReportAllocs()
	at := epoch
	for b.Loop() {
		x := r.Begin(at, Conn{Client: "a"})
		x.RequestHead(at, "POST", "/v1/chat/completions", head)
		x.RequestBody(at, body)
		x.RequestEnd(at)
		x.ResponseHead(at, 200, head)
		for _, e := range events {
			at += 1e6
			x.ResponseBody(at, e)
		}
		x.ResponseBody(at, last)
		x.ResponseEnd(at)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/200, "ns/event")
}

// BenchmarkPrompt is what hashing a prompt costs.
func BenchmarkPrompt(b *testing.B) {
	for _, kb := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("%dKiB", kb), func(b *testing.B) {
			body := []byte(`{"model":"m","messages":[{"role":"user","content":"` + string(bytes.Repeat([]byte("words, "), kb*1024/7)) + `"}]}`)
			r, err := NewRecorder(nullSink{}, Options{})
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			at := epoch
			for b.Loop() {
				at += 1e6
				x := r.Begin(at, Conn{Client: "a"})
				x.RequestHead(at, "POST", "/v1/chat/completions", nil)
				x.RequestBody(at, body)
				x.RequestEnd(at)
				x.ResponseHead(at, 200, nil)
				x.ResponseEnd(at)
			}
		})
	}
}
