package pcaptest

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"slices"

	"reprise/capture/packet/frame"
)

// chunkText is an event as vLLM 0.32 sends it for a token.
const chunkText = `data: {"id":"chatcmpl-aa4ea627376d%04x","object":"chat.completion.chunk","created":1795426197,"model":"tiny","choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null,"token_ids":null}]}` + "\n\n"

const lastText = `data: {"id":"chatcmpl-aa4ea627376d%04x","object":"chat.completion.chunk","created":1795426197,"model":"tiny","choices":[{"index":0,"delta":{"content":""},"logprobs":null,"finish_reason":"stop","token_ids":null}],"usage":{"prompt_tokens":90,"total_tokens":%d,"completion_tokens":%d}}` + "\n\ndata: [DONE]\n\n"

// WriteStreams writes a capture, as a pcap file with nanoseconds, of answers
// that are streamed over conns keep-alive connections at once, one event in a
// segment, each answer of as many events. Every other segment is acknowledged,
// as on a network. It returns the number of packets.
func WriteStreams(w io.Writer, conns, requests, events int) (packets int, err error) {
	bw := bufio.NewWriterSize(w, 1<<20)
	bw.Write(Pcap(frame.Ethernet, true, false, nil))
	n := &Net{}
	flush := func() {
		slices.SortStableFunc(n.Packets, func(a, b Packet) int { return cmp.Compare(a.Time, b.Time) })
		packets += len(n.Packets)
		bw.Write(Pcap(frame.Ethernet, true, false, n.Packets)[24:])
		n.Packets = n.Packets[:0]
	}
	list := make([]*Conn, conns)
	t := int64(1_790_000_000_000_000_000)
	for i := range list {
		list[i] = n.Dial()
		list[i].Open(t + int64(i)*1000)
	}
	t += 1e9
	flush()
	step := func(f func(c *Conn, i int, t int64)) {
		for i, c := range list {
			f(c, i, t+int64(i)*1000)
		}
		flush()
		t += max(25e6, int64(conns)*1000)
	}
	for range requests {
		step(func(c *Conn, i int, t int64) {
			body := fmt.Sprintf(`{"model":"tiny","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"%0400d"}]}`, i)
			c.Send(Client, t, fmt.Appendf(nil, "POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
		})
		step(func(c *Conn, i int, t int64) {
			c.Send(Server, t, []byte("HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"))
		})
		for e := range events {
			step(func(c *Conn, i int, t int64) {
				d := fmt.Sprintf(chunkText, i)
				c.NoAcks = e%2 == 0
				c.Send(Server, t, fmt.Appendf(nil, "%x\r\n%s\r\n", len(d), d))
			})
		}
		step(func(c *Conn, i int, t int64) {
			d := fmt.Sprintf(lastText, i, 90+events, events)
			c.NoAcks = false
			c.Send(Server, t, fmt.Appendf(nil, "%x\r\n%s\r\n0\r\n\r\n", len(d), d))
		})
	}
	step(func(c *Conn, i int, t int64) { c.Close(Client, t) })
	return packets, bw.Flush()
}
