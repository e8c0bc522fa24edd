package wirehttp

import (
	"bytes"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"pgregory.net/rapid"

	"reprise/capture"
	"reprise/capture/packet/reassembly"
)

// log is a recorder that writes down what it is told, a line per exchange.
type log struct {
	list    []*entry
	dropped []string
}

type entry struct {
	what strings.Builder
	over bool
}

func (l *log) Begin(t int64, c capture.Conn) Exchange {
	e := &entry{}
	fmt.Fprintf(&e.what, "@%d", t)
	if c.LateJoin {
		e.what.WriteString(" late")
	}
	l.list = append(l.list, e)
	return e
}
func (l *log) Drop(reason string) { l.dropped = append(l.dropped, reason) }

func (e *entry) put(format string, args ...any) {
	if !e.over {
		fmt.Fprintf(&e.what, " "+format, args...)
	}
}
func (e *entry) RequestHead(t int64, method, target string, h capture.Header) {
	e.put("%s %s", method, target)
	if h != nil && h("x-id") != "" {
		e.put("id=%s", h("x-id"))
	}
}
func (e *entry) RequestBody(t int64, p []byte) { e.put("<%s", p) }
func (e *entry) RequestEnd(t int64)            { e.put("sent@%d", t) }
func (e *entry) ResponseHead(t int64, status int, h capture.Header) {
	e.put("%d@%d", status, t)
}
func (e *entry) ResponseBody(t int64, p []byte) { e.put(">%s", p) }
func (e *entry) ResponseEnd(t int64)            { e.put("done@%d", t); e.over = true }
func (e *entry) End(t int64, how capture.Ending) {
	e.put("%s@%d", map[capture.Ending]string{capture.ClientAbort: "client_abort", capture.ServerReset: "server_reset", capture.Timeout: "timeout", capture.Truncated: "truncated", capture.Evicted: "evicted"}[how], t)
	e.over = true
}
func (e *entry) Mispaired(t int64)                   { e.put("mispaired@%d", t); e.over = true }
func (e *entry) Gap(t int64, response bool, n int64) { e.put("gap(%d)", n) }

func (l *log) String() string {
	var b strings.Builder
	for _, e := range l.list {
		b.WriteString(e.what.String() + "\n")
	}
	for _, d := range l.dropped {
		b.WriteString("dropped " + d + "\n")
	}
	return b.String()
}

// wire is a connection whose segments a test writes by hand. Every segment
// acknowledges all that the other side has sent, and takes a unit of time.
type wire struct {
	log
	env  *Env
	asm  *reassembly.Assembler
	next [2]uint32
	now  int64
}

const (
	client = 0
	server = 1
)

func newWire() *wire {
	w := &wire{next: [2]uint32{5000, 900}}
	w.asm = reassembly.New(reassembly.Options{}, func(c *reassembly.Conn) reassembly.Handler { return w.env.Begin(c) })
	w.env = NewEnv(&w.log, &w.asm.Budget)
	return w
}

func (w *wire) segment(from int, flags uint8, p string) {
	w.now++
	s := reassembly.Segment{
		Time: w.now, Flags: flags, Payload: []byte(p), Seq: w.next[from], Ack: w.next[1-from],
		Src: reassembly.Endpoint{Addr: [16]byte{15: 1}, Port: 40000}, Dst: reassembly.Endpoint{Addr: [16]byte{15: 2}, Port: 8000},
	}
	if from == server {
		s.Src, s.Dst = s.Dst, s.Src
	}
	w.asm.Add(&s)
	w.next[from] += uint32(len(p))
	if flags&(reassembly.SYN|reassembly.FIN) != 0 {
		w.next[from]++
	}
}

func (w *wire) open() {
	w.segment(client, reassembly.SYN, "")
	w.segment(server, reassembly.SYN|reassembly.ACK, "")
	w.now = 0
}

func (w *wire) say(from int, p string) { w.segment(from, reassembly.ACK, p) }
func (w *wire) fin(from int)           { w.segment(from, reassembly.ACK|reassembly.FIN, "") }
func (w *wire) rst(from int)           { w.segment(from, reassembly.ACK|reassembly.RST, "") }

// lose is what the capture missed.
func (w *wire) lose(from int, p string) { w.next[from] += uint32(len(p)); w.now++ }

func post(id int, body string) string {
	return fmt.Sprintf("POST /v1/completions HTTP/1.1\r\nX-Id: %d\r\nContent-Length: %d\r\n\r\n%s", id, len(body), body)
}

func answer(body string) string {
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

const sse = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

func chunk(s string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(s), s) }

func TestHTTP1(t *testing.T) {
	for _, tt := range []struct {
		name string
		talk func(w *wire)
		want string
	}{
		{"keep-alive", func(w *wire) {
			w.open()
			w.say(client, post(1, "abc"))
			w.say(server, answer("one"))
			w.say(client, post(2, "de"))
			w.say(server, answer("two"))
			w.fin(client)
			w.fin(server)
		}, "@1 POST /v1/completions id=1 <abc sent@1 200@2 >one done@2\n@3 POST /v1/completions id=2 <de sent@3 200@4 >two done@4\n"},
		{"pipelining", func(w *wire) {
			w.open()
			w.say(client, post(1, "a")+post(2, "b"))
			w.say(server, answer("one")+answer("two"))
		}, "@1 POST /v1/completions id=1 <a sent@1 200@2 >one done@2\n@1 POST /v1/completions id=2 <b sent@1 200@2 >two done@2\n"},
		{"chunks with extensions and trailers", func(w *wire) {
			w.open()
			w.say(client, "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=1\r\nabc\r\n0\r\nA: b\r\n\r\n")
			w.say(server, sse+chunk("data: 1\n\n"))
			w.say(server, chunk("data: 2\n\n")+"0\r\nTrailer: x\r\n\r\n")
		}, "@1 POST / <abc sent@1 200@2 >data: 1\n\n >data: 2\n\n done@3\n"},
		{"cut anywhere", func(w *wire) {
			w.open()
			for _, c := range "POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n" {
				w.say(client, string(c))
			}
			for _, c := range sse + "2\r\nAB\r\n0\r\n\r\n" {
				w.say(server, string(c))
			}
		}, "@1 POST /x <a <b sent@60 200@107 >A >B done@119\n"},
		{"until the end of the connection", func(w *wire) {
			w.open()
			w.say(client, "GET /a HTTP/1.0\r\n\r\n")
			w.say(server, "HTTP/1.0 200 OK\r\n\r\nabc")
			w.say(server, "def")
			w.fin(server)
			w.fin(client)
		}, "@1 GET /a sent@1 200@2 >abc >def done@4\n"},
		{"no bodies", func(w *wire) {
			w.open()
			w.say(client, "HEAD /a HTTP/1.1\r\n\r\n")
			w.say(server, "HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
			w.say(client, "GET /b HTTP/1.1\r\n\r\n")
			w.say(server, "HTTP/1.1 204 No Content\r\n\r\n")
			w.say(client, "GET /c HTTP/1.1\r\n\r\n")
			w.say(server, "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n")
		}, "@1 HEAD /a sent@1 200@2 done@2\n@3 GET /b sent@3 204@4 done@4\n@5 GET /c sent@5 304@6 done@6\n"},
		{"100 Continue", func(w *wire) {
			w.open()
			w.say(client, "POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n")
			w.say(server, "HTTP/1.1 100 Continue\r\n\r\n")
			w.say(client, "abc")
			w.say(server, answer("ok"))
		}, "@1 POST / <abc sent@3 200@4 >ok done@4\n"},
		{"an answer before the end of the request", func(w *wire) {
			w.open()
			w.say(client, "POST / HTTP/1.1\r\nContent-Length: 6\r\n\r\nabc")
			w.say(server, "HTTP/1.1 429 Too Many Requests\r\nContent-Length: 2\r\n\r\nno")
			w.say(client, "def"+post(2, "x"))
			w.say(server, answer("yes"))
		}, "@1 POST / <abc 429@2 >no done@2\n@3 POST /v1/completions id=2 <x sent@3 200@4 >yes done@4\n"},
		{"the client hangs up", func(w *wire) {
			w.open()
			w.say(client, post(1, "a"))
			w.say(server, sse+chunk("data: 1\n\n"))
			w.fin(client)
			w.say(server, chunk("data: 2\n\n"))
			w.rst(client)
		}, "@1 POST /v1/completions id=1 <a sent@1 200@2 >data: 1\n\n >data: 2\n\n client_abort@3\n"},
		{"the server breaks off", func(w *wire) {
			w.open()
			w.say(client, post(1, "a"))
			w.say(server, sse+chunk("data: 1\n\n"))
			w.rst(server)
		}, "@1 POST /v1/completions id=1 <a sent@1 200@2 >data: 1\n\n server_reset@3\n"},
		{"the client ends its direction only", func(w *wire) {
			w.open()
			w.say(client, post(1, "a"))
			w.fin(client)
			w.say(server, answer("late"))
			w.fin(server)
		}, "@1 POST /v1/completions id=1 <a sent@1 200@3 >late done@3\n"},
		{"WebSocket", func(w *wire) {
			w.open()
			w.say(client, "GET /ws HTTP/1.1\r\nUpgrade: websocket\r\n\r\n")
			w.say(server, "HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x02hi")
			w.say(client, "POST / HTTP/1.1\r\n\r\n")
		}, "@1 GET /ws sent@1 101@2 done@2\n"},
		{"CONNECT", func(w *wire) {
			w.open()
			w.say(client, "CONNECT a:443 HTTP/1.1\r\n\r\n")
			w.say(server, "HTTP/1.1 200 OK\r\n\r\n")
			w.say(server, "HTTP/1.1 200 OK\r\n\r\n")
		}, "@1 CONNECT a:443 sent@1 200@2 done@2\n"},
		{"joined within a stream", func(w *wire) {
			w.say(server, "ata: 3\n\n\r\n")
			w.say(server, chunk("data: 4\n\n")+"0\r\n\r\n")
			w.say(client, post(2, "b"))
			w.say(server, answer("two"))
		}, "@3 late POST /v1/completions id=2 <b sent@3 200@4 >two done@4\n"},
		{"joined between two pipelined requests", func(w *wire) {
			w.say(client, post(2, "b"))
			w.say(server, answer("one"))
			w.say(server, answer("two"))
			for i := 3; i < 10; i += 2 {
				w.say(client, post(i, ""))
				w.say(client, post(i+1, ""))
				w.say(server, answer("odd")+answer("even"))
			}
		}, "@1 late POST /v1/completions id=2 <b sent@1 200@2 >one mispaired@2\n" +
			"@4 late POST /v1/completions id=3 sent@4 200@6 >odd done@6\n@5 late POST /v1/completions id=4 sent@5 200@6 >even done@6\n" +
			"@7 late POST /v1/completions id=5 sent@7 200@9 >odd done@9\n@8 late POST /v1/completions id=6 sent@8 200@9 >even done@9\n" +
			"@10 late POST /v1/completions id=7 sent@10 200@12 >odd done@12\n@11 late POST /v1/completions id=8 sent@11 200@12 >even done@12\n" +
			"@13 late POST /v1/completions id=9 sent@13 200@15 >odd done@15\n@14 late POST /v1/completions id=10 sent@14 200@15 >even done@15\n"},
		{"joined between bursts of requests", func(w *wire) {
			for i := 1; i < 4; i += 2 {
				w.say(client, post(i, "")+post(i+1, ""))
				w.say(server, answer("odd")+answer("even"))
			}
		}, "@1 late POST /v1/completions id=1 sent@1 200@2 >odd done@2\n@1 late POST /v1/completions id=2 sent@1 200@2 >even done@2\n" +
			"@3 late POST /v1/completions id=3 sent@3 200@4 >odd done@4\n@3 late POST /v1/completions id=4 sent@3 200@4 >even done@4\n"},
		{"joined where the client always asks ahead", func(w *wire) {
			w.say(client, post(2, ""))
			w.say(server, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n")
			w.say(client, post(3, ""))
			w.say(server, "one")
			w.say(server, answer("two"))
			w.say(client, post(4, ""))
			w.say(server, answer("three"))
		}, "@1 late POST /v1/completions id=2 sent@1 200@2 mispaired@3\n@3 late POST /v1/completions id=3 sent@3 truncated@7\n@6 late POST /v1/completions id=4 sent@6 truncated@7\n" +
			"dropped response_without_request\n"},
		{"the server begins an answer before it has the request", func(w *wire) {
			w.say(client, post(2, ""))
			w.segment(server, reassembly.ACK, "")
			w.next[client] -= uint32(len(post(2, "")))
			w.say(server, answer("one"))
			w.next[client] += uint32(len(post(2, "")))
			w.say(server, answer("two"))
		}, "@1 late POST /v1/completions id=2 sent@1 truncated@4\ndropped response_without_request\n"},
		{"bytes lost within a body of known length", func(w *wire) {
			w.open()
			w.say(client, post(1, "a"))
			w.say(server, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")
			w.lose(server, "def")
			w.say(server, "ghi")
			w.now += 2e9
			w.say(client, post(2, "b"))
			w.say(client, "")
			w.say(server, answer("two"))
		}, "@1 POST /v1/completions id=1 <a sent@1 200@2 >abc gap(3) >ghi done@4\n@2000000005 POST /v1/completions id=2 <b sent@2000000005 200@2000000007 >two done@2000000007\n"},
		{"an event lost", func(w *wire) {
			w.open()
			w.say(client, post(1, "a"))
			w.say(server, sse+chunk("data: 1\n\n"))
			w.lose(server, chunk("data: 2\n\n"))
			w.say(server, chunk("data: 3\n\n"))
			w.say(client, "")
			w.now += 2e9
			w.say(client, "")
			w.say(server, "0\r\n\r\n")
		}, "@1 POST /v1/completions id=1 <a sent@1 200@2 >data: 1\n\n gap(14) >data: 3\n\n done@2000000007\n"},
		{"a request lost", func(w *wire) {
			w.open()
			w.say(client, post(1, "a"))
			w.say(server, answer("one"))
			w.lose(client, post(2, "b"))
			w.say(server, answer("two"))
			w.now += 2e9
			w.say(server, "")
			w.now += 2e9
			w.say(client, post(3, "c"))
			w.say(server, answer("three"))
		}, "@1 POST /v1/completions id=1 <a sent@1 200@2 >one done@2\n@4000000006 POST /v1/completions id=3 <c sent@4000000006 200@4000000007 >three done@4000000007\ndropped response_without_request\n"},
		{"an answer lost", func(w *wire) {
			w.open()
			w.say(client, post(1, "a"))
			w.lose(server, answer("one"))
			w.say(client, post(2, "b"))
			w.now += 2e9
			w.say(client, "")
			w.say(server, answer("two"))
		}, "@1 POST /v1/completions id=1 <a sent@1 truncated@2000000005\n@3 POST /v1/completions id=2 <b sent@3 200@2000000005 >two done@2000000005\n"},
		{"two lengths that differ", func(w *wire) {
			w.open()
			w.say(client, "POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc")
			w.say(client, post(2, "b"))
			w.say(server, answer("two"))
		}, "@2 POST /v1/completions id=2 <b sent@2 truncated@3\ndropped response_without_request\n"},
		{"a length beside chunks", func(w *wire) {
			w.open()
			w.say(client, "POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n")
			w.say(server, answer("two"))
		}, "@1 POST / <x sent@1 200@2 >two done@2\n"},
	} {
		w := newWire()
		tt.talk(w)
		w.asm.Close()
		if got := w.String(); got != tt.want {
			t.Errorf("%s:\n%s\nwant:\n%s", tt.name, got, tt.want)
		}
		if w.asm.Budget.Used != 0 {
			t.Errorf("%s: %d bytes of the budget not given back", tt.name, w.asm.Budget.Used)
		}
	}
}

// talk2 writes frames of both sides.
type talk2 struct {
	*wire
	buf [2]bytes.Buffer
	fr  [2]*http2.Framer
	hb  [2]bytes.Buffer
	enc [2]*hpack.Encoder
}

func newTalk2() *talk2 {
	c := &talk2{wire: newWire()}
	for i := range 2 {
		c.fr[i] = http2.NewFramer(&c.buf[i], nil)
		c.enc[i] = hpack.NewEncoder(&c.hb[i])
	}
	return c
}

func (c *talk2) begin() {
	c.open()
	c.buf[client].WriteString(http2.ClientPreface)
	c.fr[client].WriteSettings()
	c.flush(client)
	c.fr[server].WriteSettings()
	c.flush(server)
	c.now = 0
}

func (c *talk2) block(side int, kv ...string) []byte {
	c.hb[side].Reset()
	for i := 0; i < len(kv); i += 2 {
		c.enc[side].WriteField(hpack.HeaderField{Name: kv[i], Value: kv[i+1]})
	}
	return bytes.Clone(c.hb[side].Bytes())
}

func (c *talk2) flush(side int) { c.say(side, c.buf[side].String()); c.buf[side].Reset() }
func (c *talk2) miss(side int)  { c.lose(side, c.buf[side].String()); c.buf[side].Reset() }

func (c *talk2) ask(id uint32, path, body string) {
	c.fr[client].WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block(client, ":method", "POST", ":path", path, "x-id", fmt.Sprint(id)), EndHeaders: true})
	c.fr[client].WriteData(id, true, []byte(body))
}

func (c *talk2) reply(id uint32, end bool, body string) {
	c.fr[server].WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block(server, ":status", "200", "x", "y"), EndHeaders: true})
	c.fr[server].WriteData(id, end, []byte(body))
}

func TestHTTP2(t *testing.T) {
	for _, tt := range []struct {
		name string
		talk func(c *talk2)
		want string
	}{
		{"interleaved", func(c *talk2) {
			c.begin()
			c.ask(1, "/a", "one")
			c.ask(3, "/b", "two")
			c.flush(client)
			c.reply(3, false, "B")
			c.flush(server)
			c.reply(1, true, "A")
			c.fr[server].WriteData(3, true, []byte("C"))
			c.flush(server)
		}, "@1 POST /a id=1 <one sent@1 200@3 >A done@3\n@1 POST /b id=3 <two sent@1 200@2 >B >C done@3\n"},
		{"continuation, padding, priority, trailers, interim answer", func(c *talk2) {
			c.begin()
			b := c.block(client, ":method", "POST", ":path", "/long", "x-id", "7")
			c.fr[client].WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: b[:4], PadLength: 9, Priority: http2.PriorityParam{StreamDep: 0, Weight: 3}})
			c.fr[client].WriteContinuation(1, false, b[4:6])
			c.fr[client].WriteContinuation(1, true, b[6:])
			c.fr[client].WriteDataPadded(1, false, []byte("body"), make([]byte, 20))
			c.fr[client].WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(client, "trailer", "x"), EndHeaders: true, EndStream: true})
			c.flush(client)
			c.fr[server].WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(server, ":status", "103"), EndHeaders: true})
			c.reply(1, false, "answer")
			c.fr[server].WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block(server, "grpc-status", "0"), EndHeaders: true, EndStream: true})
			c.flush(server)
		}, "@1 POST /long id=7 <body sent@1 103@2 200@2 >answer done@2\n"},
		{"resets", func(c *talk2) {
			c.begin()
			c.ask(1, "/a", "x")
			c.ask(3, "/b", "x")
			c.ask(5, "/c", "x")
			c.ask(7, "/d", "x")
			c.flush(client)
			c.fr[client].WriteRSTStream(1, http2.ErrCodeCancel)
			c.flush(client)
			c.fr[server].WriteRSTStream(3, http2.ErrCodeInternal)
			c.flush(server)
			c.fr[server].WriteGoAway(5, http2.ErrCodeNo, nil)
			c.flush(server)
			c.fin(client)
			c.fin(server)
		}, "@1 POST /a id=1 <x sent@1 client_abort@2\n@1 POST /b id=3 <x sent@1 server_reset@3\n@1 POST /c id=5 <x sent@1 client_abort@5\n@1 POST /d id=7 <x sent@1 server_reset@4\n"},
		{"the server's settings first", func(c *talk2) {
			c.open()
			c.fr[server].WriteSettings()
			c.flush(server)
			c.buf[client].WriteString(http2.ClientPreface)
			c.fr[client].WriteSettings()
			c.ask(1, "/a", "x")
			c.flush(client)
			c.reply(1, true, "y")
			c.flush(server)
		}, "@2 POST /a id=1 <x sent@2 200@3 >y done@3\n"},
		{"upgrade from HTTP/1.1", func(c *talk2) {
			c.open()
			c.say(client, "GET /v1/models HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n")
			c.buf[server].WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
			c.fr[server].WriteSettings()
			c.flush(server)
			c.buf[client].WriteString(http2.ClientPreface)
			c.fr[client].WriteSettings()
			c.flush(client)
			c.reply(1, true, "models")
			c.flush(server)
			c.ask(3, "/b", "x")
			c.flush(client)
			c.reply(3, true, "y")
			c.flush(server)
		}, "@1 GET /v1/models sent@1 200@4 >models done@4\n@5 POST /b id=3 <x sent@5 200@6 >y done@6\n"},
		{"joined late: what was in the table is unknown, what is new is not", func(c *talk2) {
			c.begin()
			c.ask(1, "/a", "before")
			c.miss(client)
			c.reply(1, true, "before")
			c.miss(server)
			// Nothing of this connection was captured but the handshake.
			c.wire = newWire()
			c.ask(3, "/a", "x")
			c.ask(5, "/new", "x")
			c.flush(client)
			c.reply(3, true, "y")
			c.reply(5, true, "z")
			c.flush(server)
		}, "@1 late POST  <x sent@1 200@2 >y done@2\n@1 late POST /new <x sent@1 200@2 >z done@2\n"},
		{"bytes of DATA lost", func(c *talk2) {
			c.begin()
			c.ask(1, "/a", "x")
			c.flush(client)
			c.reply(1, false, "")
			c.flush(server)
			c.fr[server].WriteData(1, false, []byte("abcdef"))
			whole := c.buf[server].String()
			c.buf[server].Reset()
			c.say(server, whole[:11])
			c.lose(server, whole[11:13])
			c.say(server, whole[13:])
			c.say(client, "")
			c.now += 2e9
			c.say(client, "")
			c.fr[server].WriteData(1, true, []byte("g"))
			c.flush(server)
		}, "@1 POST /a id=1 <x sent@1 200@2 >ab gap(2) >ef >g done@2000000008\n"},
	} {
		c := newTalk2()
		tt.talk(c)
		c.asm.Close()
		if got := c.String(); got != tt.want {
			t.Errorf("%s:\n%s\nwant:\n%s", tt.name, got, tt.want)
		}
		if c.asm.Budget.Used != 0 {
			t.Errorf("%s: %d bytes of the budget not given back", tt.name, c.asm.Budget.Used)
		}
	}
}

// TestHeaderTable compares with golang.org/x/net on blocks that were all seen,
// and on a late join wants each field either right or unknown.
func TestHeaderTable(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var buf bytes.Buffer
		enc := hpack.NewEncoder(&buf)
		whole := newHeaderTable(false)
		join := rapid.IntRange(0, 6).Draw(rt, "join")
		late := newHeaderTable(true)
		names := []string{":path", ":method", "x-a", "x-b", "content-type", "authorization"}
		for i := range 12 {
			if i == 5 {
				enc.SetMaxDynamicTableSize(uint32(rapid.SampledFrom([]int{0, 100, 300, 4096}).Draw(rt, "table")))
			}
			buf.Reset()
			var want []hpack.HeaderField
			for range rapid.IntRange(1, 6).Draw(rt, "fields") {
				f := hpack.HeaderField{
					Name:      rapid.SampledFrom(names).Draw(rt, "name"),
					Value:     strings.Repeat("v", rapid.IntRange(0, 80).Draw(rt, "size")) + rapid.StringMatching("[a-c/]{0,2}").Draw(rt, "value"),
					Sensitive: rapid.IntRange(0, 5).Draw(rt, "sensitive") == 0,
				}
				want = append(want, f)
				enc.WriteField(f)
			}
			n := 0
			ok := whole.decode(buf.Bytes(), func(h headerField) {
				if !h.name.ok || !h.value.ok || h.name.s != want[n].Name || h.value.s != want[n].Value {
					rt.Fatalf("block %d field %d: %+v, want %v", i, n, h, want[n])
				}
				n++
			})
			if !ok || n != len(want) {
				rt.Fatalf("block %d: %d fields, want %d", i, n, len(want))
			}
			if i < join {
				continue
			}
			n = 0
			late.decode(buf.Bytes(), func(h headerField) {
				if h.name.ok && h.name.s != want[n].Name || h.value.ok && h.value.s != want[n].Value {
					rt.Fatalf("joined late, block %d field %d: %+v, want %v or unknown", i, n, h, want[n])
				}
				n++
			})
			if n != len(want) {
				rt.Fatalf("joined late, block %d: %d fields, want %d", i, n, len(want))
			}
		}
	})
}

// fuzzWire gives two streams, cut into segments and with losses as the third
// argument says, to the parsers, and checks what holds for all input.
func fuzzWire(t *testing.T, up, down, cuts []byte, syn bool) {
	w := newWire()
	if syn {
		w.open()
	}
	left := [2]string{string(up), string(down)}
	for i := 0; len(left[0])+len(left[1]) > 0; i++ {
		c := byte(37)
		if len(cuts) > 0 {
			c = cuts[i%len(cuts)]
		}
		side := int(c & 1)
		n := min(len(left[side]), 1+int(c>>2)*3)
		if n > 0 && left[side] != "" {
			if c>>1&31 == 31 {
				w.lose(side, left[side][:n])
			} else {
				w.say(side, left[side][:n])
			}
			left[side] = left[side][n:]
		} else if i > 4*(len(up)+len(down)) || left[1-side] != "" && len(cuts) == 0 {
			w.say(1-side, left[1-side])
			left[1-side] = ""
		} else if i > 1000 {
			break
		}
		if c == 255 {
			w.now += 2e9
		}
		if w.asm.Budget.Used > 4<<20 {
			t.Fatalf("%d bytes held", w.asm.Budget.Used)
		}
	}
	w.asm.Close()
	for i, e := range w.list {
		if !e.over {
			t.Errorf("exchange %d was not ended", i)
		}
	}
	if w.asm.Budget.Used != 0 {
		t.Errorf("%d bytes of the budget not given back", w.asm.Budget.Used)
	}
}

func FuzzHTTP1(f *testing.F) {
	f.Add([]byte(post(1, "abc")+post(2, "x")), []byte(answer("one")+sse+chunk("data: 1\n\n")+"0\r\n\r\n"), []byte{9, 8, 200, 77, 255, 126}, true)
	f.Add([]byte("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\n\r\n"), []byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 101 x\r\n\r\n"), []byte{255, 254, 1}, true)
	f.Add([]byte("HEAD / HTTP/1.1\r\nUpgrade: h2c\r\n\r\n"), []byte(http.StatusText(200)), []byte{}, false)
	f.Fuzz(func(t *testing.T, up, down, cuts []byte, syn bool) { fuzzWire(t, up, down, cuts, syn) })
}

func FuzzHTTP2(f *testing.F) {
	c := newTalk2()
	c.buf[client].WriteString(http2.ClientPreface)
	c.fr[client].WriteSettings()
	c.ask(1, "/a", "body")
	c.ask(3, "/b", "body")
	c.fr[client].WriteRSTStream(3, http2.ErrCodeCancel)
	c.fr[server].WriteSettings()
	c.reply(1, false, "a")
	c.fr[server].WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: c.block(server, ":path", "/"), EndHeaders: true})
	c.fr[server].WriteDataPadded(1, true, []byte("b"), make([]byte, 3))
	c.fr[server].WriteGoAway(1, http2.ErrCodeNo, nil)
	up, down := c.buf[client].Bytes(), c.buf[server].Bytes()
	f.Add(up, down, []byte{9, 8, 200, 77, 255, 126}, true)
	f.Add(up[24:], down, []byte{33, 32, 254, 255}, false)
	f.Fuzz(func(t *testing.T, up, down, cuts []byte, syn bool) { fuzzWire(t, up, down, cuts, syn) })
}
