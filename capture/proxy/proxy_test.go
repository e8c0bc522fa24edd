package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"reprise/traceformat"
)

// A running is a proxy in front of an upstream.
type running struct {
	*Proxy
	addr string
	url  string
	stop func() error
	// unfinished says that a file may be left: outputs of the test fail.
	unfinished bool
}

// run starts a proxy in front of the server at upstream and ends it, with
// whatever it holds, at the end of the test.
func run(t testing.TB, upstream string, change func(*Options)) *running {
	t.Helper()
	u, err := url.Parse(upstream)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Upstream: u, Drain: time.Minute}
	if change != nil {
		change(&o)
	}
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen("127.0.0.1:0", false)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Serve(ctx, l) }()
	r := &running{Proxy: p, addr: l.Addr().String()}
	r.url = "http://" + r.addr
	if p.cert != nil {
		r.url = "https://" + r.addr
	}
	r.stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() {
		if err := r.stop(); err != nil && !r.unfinished {
			t.Errorf("Serve = %v, want nil", err)
		}
	})
	return r
}

// server starts an upstream that ends with the test.
func server(t testing.TB, h http.HandlerFunc) *httptest.Server {
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s
}

// client is a client that changes nothing on its own.
func client(t testing.TB) *http.Client {
	tr := &http.Transport{DisableCompression: true}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// raw sends bytes and returns all that comes back until the server hangs up or
// the answer is complete.
func raw(t *testing.T, addr, request string) string {
	t.Helper()
	c := dial(t, addr)
	io.WriteString(c, request)
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	b, _ := io.ReadAll(c)
	return string(b)
}

func dial(t testing.TB, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// script is an upstream that answers each connection with the same bytes once
// it has read a head, and remembers what it read.
type script struct {
	net.Listener
	mu   sync.Mutex
	seen []string
}

func scripted(t testing.TB, answer string, hangUp bool) *script {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &script{Listener: l}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				br := bufio.NewReader(c)
				for {
					head := ""
					for !strings.HasSuffix(head, "\r\n\r\n") {
						line, err := br.ReadString('\n')
						if err != nil {
							return
						}
						head += line
					}
					s.mu.Lock()
					s.seen = append(s.seen, head)
					s.mu.Unlock()
					io.WriteString(c, answer)
					if hangUp {
						return
					}
				}
			}()
		}
	}()
	return s
}

func (s *script) url() string { return "http://" + s.Addr().String() }

func (s *script) last(t *testing.T) string {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.seen) == 0 {
		t.Fatal("the upstream saw no request")
	}
	return s.seen[len(s.seen)-1]
}

// fields are the lines of a head after the first, sorted.
func fields(head string) []string {
	lines := strings.Split(strings.TrimSuffix(head, "\r\n\r\n"), "\r\n")
	slices.Sort(lines[1:])
	return lines
}

const plainOK = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// The head goes on as it came but for what is between two neighbours.
func TestRequestHead(t *testing.T) {
	s := scripted(t, plainOK, false)
	p := run(t, s.url(), nil)
	tests := []struct {
		name, request string
		want          []string
	}{
		{"nothing is added", "GET /v1/models HTTP/1.1\r\nHost: a.example:99\r\n\r\n",
			[]string{"GET /v1/models HTTP/1.1", "Host: a.example:99"}},
		{"target byte for byte", "GET //a/%7e%2F/..;x/./b?q=%41&&=+\"<>|&u HTTP/1.1\r\nHost: a\r\nAccept-Encoding: br;q=1, gzip\r\nUser-Agent: x\r\n\r\n",
			[]string{"GET //a/%7e%2F/..;x/./b?q=%41&&=+\"<>|&u HTTP/1.1", "Accept-Encoding: br;q=1, gzip", "Host: a", "User-Agent: x"}},
		{"bare question mark", "GET /a? HTTP/1.1\r\nHost: a\r\n\r\n", []string{"GET /a? HTTP/1.1", "Host: a"}},
		{"hop by hop", "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-Mine\r\nConnection: close\r\nX-Mine: 1\r\nX-Other: 2\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nTE: gzip\r\nUpgrade: h2c\r\n\r\n",
			[]string{"GET / HTTP/1.1", "Host: a", "X-Other: 2"}},
		{"TE trailers", "GET / HTTP/1.1\r\nHost: a\r\nTE: gzip, trailers\r\nConnection: TE\r\n\r\n",
			[]string{"GET / HTTP/1.1", "Connection: TE", "Host: a", "TE: trailers"}},
		{"upgrade to h2c is not a tunnel", "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
			[]string{"GET / HTTP/1.1", "Host: a"}},
		{"repeated fields keep their order", "GET / HTTP/1.1\r\nHost: a\r\nX-B: 2\r\nX-B: 1\r\n\r\n",
			[]string{"GET / HTTP/1.1", "Host: a", "X-B: 1", "X-B: 2"}},
		{"absolute form", "GET http://b.example/x?y HTTP/1.1\r\nHost: a\r\n\r\n", []string{"GET /x?y HTTP/1.1", "Host: b.example"}},
		{"asterisk", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", []string{"OPTIONS * HTTP/1.1", "Host: a"}},
		{"unknown method", "PURGE /x HTTP/1.1\r\nHost: a\r\n\r\n", []string{"PURGE /x HTTP/1.1", "Host: a"}},
		{"empty body that is said", "POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", []string{"POST /x HTTP/1.1", "Content-Length: 0", "Host: a"}},
		{"proxy credentials are the gateway's to pass on", "GET / HTTP/1.1\r\nHost: a\r\nProxy-Authorization: x\r\n\r\n",
			[]string{"GET / HTTP/1.1", "Host: a", "Proxy-Authorization: x"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := dial(t, p.addr)
			io.WriteString(c, tt.request)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil || resp.StatusCode != 200 {
				t.Fatalf("answer = %v, %v", resp, err)
			}
			io.Copy(io.Discard, resp.Body)
			got := fields(s.last(t))
			// The order of fields of one name is checked where it matters.
			if tt.name == "repeated fields keep their order" {
				if h := s.last(t); strings.Index(h, "X-B: 2") > strings.Index(h, "X-B: 1") {
					t.Errorf("fields changed places:\n%s", h)
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("the upstream got\n%q, want\n%q", got, tt.want)
			}
		})
	}
}

func TestForwardedFieldsWhenAskedFor(t *testing.T) {
	s := scripted(t, plainOK, false)
	p := run(t, s.url(), func(o *Options) { o.Forwarded = true })
	c := dial(t, p.addr)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: a.example\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n")
	if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
		t.Fatal(err)
	}
	want := []string{"GET / HTTP/1.1", "Host: a.example", "X-Forwarded-For: 192.0.2.1, 127.0.0.1", "X-Forwarded-Host: a.example", "X-Forwarded-Proto: http"}
	if got := fields(s.last(t)); !slices.Equal(got, want) {
		t.Errorf("the upstream got %q, want %q", got, want)
	}
}

// The head of the answer comes as the upstream gave it: no Date, no sniffed
// Content-Type, no length that was not there.
func TestResponseHead(t *testing.T) {
	tests := []struct{ name, answer, want string }{
		{"with length", "HTTP/1.1 201 Created\r\nContent-Length: 5\r\nX-A: 1\r\nX-A: 2\r\nKeep-Alive: 3\r\n\r\nhello",
			"HTTP/1.1 201 Created\r\nContent-Length: 5\r\nX-A: 1\r\nX-A: 2\r\n\r\nhello"},
		{"chunked, in one piece", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;ext=1\r\nhello\r\n1\r\n!\r\n0\r\n\r\n",
			"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nhello!\r\n0\r\n\r\n"},
		{"date and type are the upstream's", "HTTP/1.1 200 OK\r\nDate: yesterday\r\nContent-Type: text/x\r\nServer: s\r\nContent-Length: 0\r\n\r\n",
			"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Type: text/x\r\nDate: yesterday\r\nServer: s\r\n\r\n"},
		{"content coding is left alone", "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x00",
			"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\n\x1f\x8b\x00"},
		{"a redirect is the client's", "HTTP/1.1 302 Found\r\nLocation: http://192.0.2.9/\r\nContent-Length: 0\r\n\r\n",
			"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: http://192.0.2.9/\r\n\r\n"},
		{"no content", "HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n", "HTTP/1.1 204 No Content\r\nX-A: 1\r\n\r\n"},
		{"early hints", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx",
			"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := run(t, scripted(t, tt.answer, false).url(), func(o *Options) { o.Idle = 200 * time.Millisecond })
			if got := raw(t, p.addr, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); got != tt.want {
				t.Errorf("the client got\n%q, want\n%q", got, tt.want)
			}
		})
	}
}

// An answer that ends with the connection stays one for HTTP/1.0, and a HEAD
// keeps the length of what it does not send.
func TestOldAndHeadRequests(t *testing.T) {
	p := run(t, scripted(t, "HTTP/1.1 200 OK\r\n\r\nuntil the end", true).url(), nil)
	if got, want := raw(t, p.addr, "GET / HTTP/1.0\r\n\r\n"), "HTTP/1.0 200 OK\r\n\r\nuntil the end"; got != want {
		t.Errorf("HTTP/1.0 got %q, want %q", got, want)
	}
	p = run(t, scripted(t, "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", false).url(), nil)
	if got, want := raw(t, p.addr, "HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"), "HTTP/1.1 200 OK\r\nContent-Length: 99\r\nConnection: close\r\n\r\n"; got != want {
		t.Errorf("HEAD got %q, want %q", got, want)
	}
}

// Bodies of every size and framing arrive byte for byte, both ways at once.
func TestBodiesByteForByte(t *testing.T) {
	up := server(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		if n := r.Header.Get("X-Length"); n != "" {
			w.Header().Set("Content-Length", n)
		}
		buf := make([]byte, 7001)
		for {
			n, err := r.Body.Read(buf)
			w.Write(buf[:n])
			if r.Header.Get("X-Flush") != "" {
				w.(http.Flusher).Flush()
			}
			if err != nil {
				return
			}
		}
	})
	for _, o := range []struct {
		name   string
		change func(*Options)
	}{{"pool", nil}, {"recorded", func(o *Options) { o.Record = (&memory{}).record() }}} {
		p := run(t, up.URL, o.change)
		c := client(t)
		rng := rand.New(rand.NewPCG(1, 2))
		for _, size := range []int{0, 1, 300, 4095, 4096, 4097, 32000, 32768, 40000, 1 << 20, 5<<20 + 3} {
			for mode := range 4 {
				body := make([]byte, size)
				for i := range body {
					body[i] = byte(rng.Uint32())
				}
				var in io.Reader = bytes.NewReader(body)
				if mode&1 != 0 {
					in = io.MultiReader(in) // chunked
				}
				req, _ := http.NewRequest("POST", p.url+"/x", in)
				if mode&2 != 0 {
					req.Header.Set("X-Length", fmt.Sprint(size))
				} else {
					req.Header.Set("X-Flush", "1")
				}
				resp, err := c.Do(req)
				if err != nil {
					t.Fatalf("%s, %d bytes, mode %d: %v", o.name, size, mode, err)
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || !bytes.Equal(got, body) {
					t.Fatalf("%s, %d bytes, mode %d: got %d bytes, equal %t, error %v", o.name, size, mode, len(got), bytes.Equal(got, body), err)
				}
			}
		}
	}
}

// Each event reaches the client while the upstream waits for it to have done so:
// with any buffering this would hang.
func TestEveryReadIsFlushed(t *testing.T) {
	seen := make(chan struct{})
	up := server(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		for i := range 5 {
			<-seen
			fmt.Fprintf(w, "data: %d\n\n", i)
			w.(http.Flusher).Flush()
		}
	})
	p := run(t, up.URL, nil)
	resp, err := client(t).Get(p.url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	br := bufio.NewReader(resp.Body)
	for i := range 5 { // the head is here before the first event
		seen <- struct{}{}
		line, err := br.ReadString('\n')
		if want := fmt.Sprintf("data: %d\n", i); line != want || err != nil {
			t.Fatalf("event = %q, %v, want %q", line, err, want)
		}
		br.ReadString('\n')
	}
}

// A body goes on piece by piece as well, and the answer may come meanwhile.
func TestRequestBodyStreams(t *testing.T) {
	up := server(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		buf := make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			w.Write(buf[:n])
			w.(http.Flusher).Flush()
			if err != nil {
				return
			}
		}
	})
	p := run(t, up.URL, nil)
	pr, pw := io.Pipe()
	req, _ := http.NewRequest("POST", p.url, pr)
	resp, err := client(t).Do(req) // before a byte of the body
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for i := range 3 {
		fmt.Fprintf(pw, "piece %d", i)
		buf := make([]byte, 7)
		if _, err := io.ReadFull(resp.Body, buf); err != nil || string(buf) != fmt.Sprintf("piece %d", i) {
			t.Fatalf("echo = %q, %v", buf, err)
		}
	}
	pw.Close()
	if b, err := io.ReadAll(resp.Body); len(b) != 0 || err != nil {
		t.Errorf("end = %q, %v", b, err)
	}
}

func TestTrailersBothWays(t *testing.T) {
	got := make(chan http.Header, 1)
	up := server(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Announced")
		io.Copy(io.Discard, r.Body)
		got <- r.Trailer
		io.WriteString(w, "body")
		w.Header().Set("X-Announced", "1")
		w.Header().Set(http.TrailerPrefix+"X-Late", "2")
	})
	for _, http2 := range []bool{false, true} {
		if http2 {
			up.Close()
			up = unencryptedHTTP2(t, up.Config.Handler)
		}
		p := run(t, up.URL, func(o *Options) { o.UpstreamHTTP2 = http2 })
		req, _ := http.NewRequest("POST", p.url, io.MultiReader(strings.NewReader("x")))
		req.Trailer = http.Header{"X-Sum": nil}
		req.Body = &setAtEOF{req.Body, func() { req.Trailer.Set("X-Sum", "9") }}
		resp, err := client(t).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if h := <-got; h.Get("X-Sum") != "9" {
			t.Errorf("http2 %t: the upstream's trailer = %v, want X-Sum: 9", http2, h)
		}
		if string(b) != "body" || resp.Trailer.Get("X-Announced") != "1" || resp.Trailer.Get("X-Late") != "2" {
			t.Errorf("http2 %t: the client's body and trailer = %q, %v", http2, b, resp.Trailer)
		}
	}
}

type setAtEOF struct {
	io.ReadCloser
	f func()
}

func (b *setAtEOF) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.f()
	}
	return n, err
}

// Nothing asks for the body before the upstream does.
func TestExpectContinue(t *testing.T) {
	t.Run("asked for", func(t *testing.T) {
		up := server(t, func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body) // sends 100
			fmt.Fprintf(w, "%s", b)
		})
		p := run(t, up.URL, nil)
		c := dial(t, p.addr)
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
		br := bufio.NewReader(c)
		line, _ := br.ReadString('\n')
		if line != "HTTP/1.1 100 Continue\r\n" {
			t.Fatalf("first line = %q, want 100 Continue", line)
		}
		br.ReadString('\n')
		io.WriteString(c, "hello")
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("answer = %v, %v", resp, err)
		}
		if b, _ := io.ReadAll(resp.Body); string(b) != "hello" {
			t.Errorf("body = %q, want hello", b)
		}
	})
	t.Run("refused", func(t *testing.T) {
		p := run(t, scripted(t, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno!", false).url(), nil)
		got := raw(t, p.addr, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 500000000\r\nExpect: 100-continue\r\n\r\n")
		if want := "HTTP/1.1 413 Request Entity Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nno!"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// A server may refuse a body it has not read; the client gets to see that.
func TestEarlyAnswer(t *testing.T) {
	p := run(t, scripted(t, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno", true).url(), nil)
	for range 5 {
		c := dial(t, p.addr)
		io.WriteString(c, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50000000\r\n\r\nstart")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(resp.Body); resp.StatusCode != 401 || string(b) != "no" || err != nil {
			t.Fatalf("answer = %d %q %v, want 401 no", resp.StatusCode, b, err)
		}
	}
}

func TestUpgradeIsATunnel(t *testing.T) {
	up := server(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Sec-WebSocket-Key") != "k" {
			t.Errorf("the upstream got %v", r.Header)
		}
		c, brw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: x\r\n\r\nfirst")
		io.Copy(c, brw)
	})
	for name, change := range map[string]func(*Options){"pool": nil, "recorded": func(o *Options) { o.Record = (&memory{}).record() }} {
		p := run(t, up.URL, change)
		c := dial(t, p.addr)
		io.WriteString(c, "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\nearly")
		br := bufio.NewReader(c)
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "websocket" || resp.Header.Get("Sec-WebSocket-Accept") != "x" {
			t.Fatalf("%s: answer = %v, %v", name, resp, err)
		}
		frame := make([]byte, 200_000)
		for i := range frame {
			frame[i] = byte(i * 7)
		}
		go func() {
			c.Write(frame)
			c.(*net.TCPConn).CloseWrite()
		}()
		got, err := io.ReadAll(br)
		if want := append([]byte("firstearly"), frame...); !bytes.Equal(got, want) || err != nil {
			t.Errorf("%s: echo of %d bytes and %v, want %d bytes", name, len(got), err, len(want))
		}
	}
}

// unencryptedHTTP2 is a server that speaks HTTP/2 alone, without TLS.
func unencryptedHTTP2(t testing.TB, h http.Handler) *httptest.Server {
	s := httptest.NewUnstartedServer(h)
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func http2Client(t testing.TB) *http.Client {
	tr := &http.Transport{DisableCompression: true, Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// Each version on each side, with bodies both ways.
func TestProtocolVersions(t *testing.T) {
	h := func(w http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		n, _ := io.Copy(sum, r.Body)
		fmt.Fprintf(w, "%s %s %d %x", r.Proto, r.URL.RequestURI(), n, sum.Sum(nil))
		w.(http.Flusher).Flush()
		io.WriteString(w, strings.Repeat("z", 100_000))
	}
	body := bytes.Repeat([]byte("0123456789"), 30_000)
	for _, upHTTP2 := range []bool{false, true} {
		up := server(t, h)
		proto := "HTTP/1.1"
		if upHTTP2 {
			up, proto = unencryptedHTTP2(t, http.HandlerFunc(h)), "HTTP/2.0"
		}
		p := run(t, up.URL, func(o *Options) { o.UpstreamHTTP2 = upHTTP2; o.Record = (&memory{}).record() })
		for _, c := range []*http.Client{client(t), http2Client(t)} {
			for _, size := range []int{0, 10, 200_000} {
				resp, err := c.Post(p.url+"/a%2Fb?c", "x/y", bytes.NewReader(body[:size]))
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				want := fmt.Sprintf("%s /a%%2Fb?c %d %x", proto, size, sha256.Sum256(body[:size])) + strings.Repeat("z", 100_000)
				if string(got) != want || err != nil {
					t.Errorf("%s to %s, %d bytes: got %.90q of %d bytes, %v", resp.Proto, proto, size, got, len(got), err)
				}
			}
		}
	}
}

// Under HTTP/2 a path may hold what would end a request line.
func TestNoSmugglingFromHTTP2(t *testing.T) {
	s := scripted(t, plainOK, false)
	p := run(t, s.url(), nil)
	tests := []struct{ method, uri, host string }{
		{"GET", "/a HTTP/1.1\r\nHost: b\r\n\r\nGET /c", "a"},
		{"GET", "/a b", "a"},
		{"GET /x HTTP/1.1\r\n", "/a", "a"},
		{"GET", "/a", "a\r\nX: y"},
		{"GET", "/a\x00", "a"},
	}
	for _, tt := range tests {
		w := httptest.NewRecorder()
		p.ServeHTTP(w, &http.Request{Method: tt.method, RequestURI: tt.uri, Host: tt.host, ProtoMajor: 2, Header: http.Header{}, URL: &url.URL{Path: "/"}, Body: http.NoBody})
		if w.Code != 400 {
			t.Errorf("%q %q %q: status %d, want 400", tt.method, tt.uri, tt.host, w.Code)
		}
	}
	if len(s.seen) > 0 {
		t.Errorf("the upstream got %q", s.seen)
	}
}

// What could be read in two ways is refused, or goes on in one of them.
func TestNoSmugglingFromHTTP1(t *testing.T) {
	type seen struct{ head, body string }
	tests := []struct {
		name, request string
		status        string
		want          []seen // what may have reached the upstream
	}{
		{"CL and TE", "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 60\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n", "",
			[]seen{{"POST /a", "abc<nil>"}, {"GET /smuggled", "<nil>"}}}, // as two requests, which they are
		{"two lengths", "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", "400", nil},
		{"odd length", "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc", "400", nil},
		{"unknown coding", "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", "501", nil},
		{"space before colon", "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", "400", nil},
		{"bad chunk", "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n", "400", nil},
		{"bare CR in a field", "GET /a HTTP/1.1\r\nHost: a\r\nX: b\rY: c\r\n\r\n", "400", nil},
		{"NUL in a field", "GET /a HTTP/1.1\r\nHost: a\r\nX: b\x00c\r\n\r\n", "400", nil},
		{"two hosts", "GET /a HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400", nil},
		{"no host", "GET /a HTTP/1.1\r\n\r\n", "400", nil},
		{"connect", "CONNECT a:1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "501", nil},
		{"body cut off", "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc", "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// An upstream of its own: it may see a request after the client has gone.
			var mu sync.Mutex
			var requests []seen
			up := server(t, func(w http.ResponseWriter, r *http.Request) {
				b, err := io.ReadAll(r.Body)
				mu.Lock()
				defer mu.Unlock()
				requests = append(requests, seen{r.Method + " " + r.URL.Path, fmt.Sprint(string(b), err)})
			})
			p := run(t, up.URL, nil)
			c := dial(t, p.addr)
			io.WriteString(c, tt.request)
			c.(*net.TCPConn).CloseWrite()
			c.SetReadDeadline(time.Now().Add(10 * time.Second))
			got, _ := io.ReadAll(c)
			if _, after, _ := strings.Cut(string(got), " "); !strings.HasPrefix(after, tt.status) {
				t.Errorf("answer = %.80q, want status %s", got, tt.status)
			}
			mu.Lock()
			defer mu.Unlock()
			for i, r := range requests {
				if strings.Contains(r.body, "EOF") || strings.Contains(r.body, "malformed") || strings.Contains(r.body, "reset") {
					continue // the upstream saw that the body was cut off
				}
				if i >= len(tt.want) || r != tt.want[i] {
					t.Errorf("the upstream got %q, want %q", requests, tt.want)
				}
			}
		})
	}
}

// A client that hangs up is felt by the upstream, whichever versions are spoken.
func TestClientAbortReachesTheUpstream(t *testing.T) {
	for _, upHTTP2 := range []bool{false, true} {
		for _, when := range []string{"before the head", "in the stream"} {
			began, felt := make(chan struct{}, 1), make(chan struct{}, 1)
			h := func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				if when == "in the stream" {
					io.WriteString(w, "data: 1\n\n")
					w.(http.Flusher).Flush()
				}
				began <- struct{}{}
				<-r.Context().Done()
				felt <- struct{}{}
			}
			up := server(t, h)
			if upHTTP2 {
				up = unencryptedHTTP2(t, http.HandlerFunc(h))
			}
			p := run(t, up.URL, func(o *Options) { o.UpstreamHTTP2 = upHTTP2 })
			for _, c := range []*http.Client{client(t), http2Client(t)} {
				ctx, cancel := context.WithCancel(t.Context())
				req, _ := http.NewRequestWithContext(ctx, "POST", p.url, strings.NewReader("{}"))
				go func() {
					<-began
					cancel()
				}()
				if resp, err := c.Do(req); err == nil {
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				select {
				case <-felt:
				case <-time.After(20 * time.Second):
					t.Fatalf("http2 upstream %t, %s: the upstream goes on", upHTTP2, when)
				}
			}
			eventually(t, func() bool { return p.m.aborts.Load() == 2 }, "aborts counted")
		}
	}
}

func eventually(t testing.TB, ok func() bool, what string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still not: %s", what)
		}
	}
}

// Failures of the upstream are said in words that name no address.
func TestUpstreamFailures(t *testing.T) {
	l, _ := net.Listen("tcp", "127.0.0.1:0")
	nobody := l.Addr().String()
	l.Close()
	silent := server(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // net/http looks after the client from then on
		<-r.Context().Done()
	})
	tests := []struct {
		name, url string
		want      int
		reason    int
	}{
		{"refuses", "http://" + nobody, 502, errorConnect},
		{"hangs up", scripted(t, "", true).url(), 502, errorReset},
		{"hangs up in the head", scripted(t, "HTTP/1.1 200 OK\r\nX: ", true).url(), 502, errorReset},
		{"speaks something else", scripted(t, "SSH-2.0-OpenSSH\r\n\r\n", true).url(), 502, errorMalformed},
		{"has an endless head", scripted(t, "HTTP/1.1 200 OK\r\n"+strings.Repeat("X: y\r\n", 1<<18), true).url(), 502, errorMalformed},
		{"has endless interim answers", scripted(t, strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 1<<16), true).url(), 502, errorMalformed},
		{"switches unasked", scripted(t, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", true).url(), 502, errorMalformed},
		{"is silent", silent.URL, 504, errorTimeout},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := run(t, tt.url, func(o *Options) {
				if tt.want == 504 {
					o.HeaderTimeout = 300 * time.Millisecond
				}
			})
			resp, err := client(t).Post(p.url+"/secret-path", "text/plain", strings.NewReader("secret-body"))
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			b, _ := io.ReadAll(resp.Body)
			if resp.StatusCode != tt.want || !bytes.HasPrefix(b, []byte(`{"error":{"message":"`)) || resp.Header.Get("Content-Type") != "application/json" {
				t.Errorf("answer = %d %q, want %d", resp.StatusCode, b, tt.want)
			}
			if strings.Contains(string(b), "127.0.0.1") || strings.Contains(string(b), "secret") {
				t.Errorf("the answer says too much: %q", b)
			}
			if n := p.m.upstreamErrors[tt.reason].Load(); n != 1 {
				t.Errorf("counted %d under %s, want 1", n, upstreamErrorNames[tt.reason])
			}
		})
	}
}

// An answer that breaks off must not look complete.
func TestBrokenAnswerIsSeen(t *testing.T) {
	for _, answer := range []string{
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz",
		"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
	} {
		p := run(t, scripted(t, answer, true).url(), nil)
		for _, c := range []*http.Client{client(t), http2Client(t)} {
			resp, err := c.Get(p.url)
			if err != nil {
				t.Fatal(err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if string(b) != "hello" || err == nil {
				t.Errorf("%s: body %q, error %v; want hello and an error", resp.Proto, b, err)
			}
		}
	}
}

// A connection that the upstream closed while idle, or on which it said
// something unasked, carries no request.
func TestStaleConnections(t *testing.T) {
	var n atomic.Int64
	up := scripted(t, plainOK, true) // closes after each answer, without saying so
	p := run(t, up.url(), nil)
	for range 20 {
		resp, err := client(t).Post(p.url, "x/y", strings.NewReader("a"))
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%v, %v", resp, err)
		}
		n.Add(1)
		resp.Body.Close()
		time.Sleep(2 * time.Millisecond)
	}
	// The answer to nobody's request is nobody's answer.
	p = run(t, scripted(t, plainOK+"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nwrong!", false).url(), nil)
	for range 20 {
		resp, err := client(t).Get(p.url)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(b) != "ok" {
			t.Fatalf("body = %q, want ok", b)
		}
	}
}

func TestNoProxyFromTheEnvironment(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:1")
	up := unencryptedHTTP2(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}))
	p := run(t, up.URL, func(o *Options) { o.UpstreamHTTP2 = true })
	resp, err := client(t).Get(p.url)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v, %v", resp, err)
	}
	resp.Body.Close()
}

// A drain lets streams end, takes no new ones, and cuts off what takes too long.
func TestDrain(t *testing.T) {
	release := make(chan struct{})
	up := server(t, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "first ")
		w.(http.Flusher).Flush()
		select {
		case <-release:
			io.WriteString(w, "last")
		case <-r.Context().Done():
		}
	})
	t.Run("ends", func(t *testing.T) {
		p := run(t, up.URL, nil)
		resp, err := client(t).Get(p.url)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- p.stop() }()
		eventually(t, func() bool {
			c, err := net.Dial("tcp", p.addr)
			if err == nil {
				c.Close()
			}
			return err != nil
		}, "no new connections")
		w := httptest.NewRecorder()
		p.Admin().ServeHTTP(w, httptest.NewRequest("GET", "/healthz", nil))
		if w.Code != 503 {
			t.Errorf("/healthz = %d while draining, want 503", w.Code)
		}
		release <- struct{}{}
		if b, err := io.ReadAll(resp.Body); string(b) != "first last" || err != nil {
			t.Errorf("body = %q, %v, want all of it", b, err)
		}
		if err := <-ended; err != nil {
			t.Errorf("Serve = %v", err)
		}
	})
	t.Run("is cut off", func(t *testing.T) {
		p := run(t, up.URL, func(o *Options) { o.Drain = 100 * time.Millisecond })
		resp, err := client(t).Get(p.url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if err := p.stop(); err != nil {
			t.Errorf("Serve = %v", err)
		}
		if b, err := io.ReadAll(resp.Body); string(b) != "first " || err == nil {
			t.Errorf("body = %q, %v, want an error", b, err)
		}
	})
}

// Connections that say nothing cost a slot for as long as a head may take, and
// others wait meanwhile.
func TestSilentConnectionsAreBounded(t *testing.T) {
	up := server(t, func(w http.ResponseWriter, r *http.Request) {})
	p := run(t, up.URL, func(o *Options) { o.MaxConnections = 8; o.ReadHeader = 200 * time.Millisecond })
	for i := range 60 {
		c, err := net.DialTimeout("tcp", p.addr, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if i%2 == 0 {
			io.WriteString(c, "GET / HTTP/1.1\r\nX-Slow: ")
		}
		if n := p.m.connections.Load(); n > 8 {
			t.Fatalf("%d connections are open, want at most 8", n)
		}
	}
	resp, err := client(t).Get(p.url)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("a good client gets %v, %v", resp, err)
	}
	resp.Body.Close()
	if p.m.limited.Load() == 0 {
		t.Error("no connection had to wait, want the bound to be counted")
	}
}

func TestLargeHeadIsRefused(t *testing.T) {
	up := server(t, func(w http.ResponseWriter, r *http.Request) {})
	p := run(t, up.URL, func(o *Options) { o.MaxHeader = 8 << 10 })
	if got := raw(t, p.addr, "GET / HTTP/1.1\r\nHost: a\r\nX: "+strings.Repeat("y", 20<<10)+"\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 431") {
		t.Errorf("answer = %.60q, want 431", got)
	}
}

// A body of any size passes in the same memory, recorded or not.
func TestLargeBodyInBoundedMemory(t *testing.T) {
	const size = 96 << 20
	up := server(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Length", fmt.Sprint(n))
		io.Copy(w, io.LimitReader(zeros{}, n))
	})
	p := run(t, up.URL, func(o *Options) {
		o.Record = (&memory{}).record()
		o.Record.QueueMemory = 8 << 20
		o.Record.Recorder.Memory = 8 << 20
	})
	var most uint64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapAlloc)
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
	req, _ := http.NewRequest("POST", p.url+"/v1/chat/completions", io.LimitReader(zeros{}, size))
	req.ContentLength = size
	resp, err := client(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	n, err := io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	close(stop)
	wg.Wait()
	if n != size || err != nil {
		t.Errorf("got %d bytes, %v, want %d", n, err, size)
	}
	if most > 64<<20 {
		t.Errorf("the heap reached %d MiB over a body of %d MiB", most>>20, size>>20)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A memory is an output that keeps rows and fails as it is told.
type memory struct {
	mu     sync.Mutex
	rows   []traceformat.Row
	header *traceformat.Header
	err    error
	hang   chan struct{}
	crash  bool
	opened int
	closed int
}

func (m *memory) record() *RecordOptions {
	return &RecordOptions{Open: func() (Output, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.opened++
		return m, nil
	}, Retry: 300 * time.Millisecond, Stall: 300 * time.Millisecond}
}

func (m *memory) set(err error, hang chan struct{}, crash bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err, m.hang, m.crash = err, hang, crash
}

func (m *memory) state() (hang chan struct{}, crash bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.hang, m.crash, m.err
}

func (m *memory) Append(r *traceformat.Row) error {
	hang, crash, err := m.state()
	if hang != nil {
		<-hang
	}
	if crash {
		panic("the output is broken")
	}
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rows = append(m.rows, *r.Clone())
	return nil
}

func (m *memory) SetHeader(h *traceformat.Header) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.header = h.Clone()
	return nil
}

func (m *memory) Sync() error { _, _, err := m.state(); return err }
func (m *memory) Size() int64 { m.mu.Lock(); defer m.mu.Unlock(); return int64(len(m.rows)) * 100 }
func (m *memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed++
	return nil
}

var errFull = fmt.Errorf("write: %w", syscall.ENOSPC)

// The same over HTTP/2, and to a server that speaks it.
func TestEarlyAnswerOverHTTP2(t *testing.T) {
	refuse := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(401)
		io.WriteString(w, "no")
	})
	for _, upHTTP2 := range []bool{false, true} {
		up := scripted(t, "HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno", true).url()
		if upHTTP2 {
			up = unencryptedHTTP2(t, refuse).URL
		}
		p := run(t, up, func(o *Options) { o.UpstreamHTTP2 = upHTTP2; o.Record = (&memory{}).record() })
		for range 3 {
			for name, c := range map[string]*http.Client{"HTTP/1.1": client(t), "HTTP/2": http2Client(t)} {
				resp, err := c.Post(p.url, "x/y", io.MultiReader(io.LimitReader(zeros{}, 3<<20)))
				if err != nil {
					// A client of HTTP/1.1 may see the reset before it looks at the answer.
					if name == "HTTP/1.1" {
						continue
					}
					t.Fatalf("%s to http2 %t: %v", name, upHTTP2, err)
				}
				b, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if resp.StatusCode != 401 || string(b) != "no" || err != nil {
					t.Errorf("%s to http2 %t: %d %q %v, want 401 no", name, upHTTP2, resp.StatusCode, b, err)
				}
			}
		}
		eventually(t, func() bool { return p.m.streams.Load() == 0 }, "the exchanges end")
	}
}

// A client that stops in the middle of its body ends the upstream's request as
// well, and holds nothing.
func TestAbortInTheBody(t *testing.T) {
	felt := make(chan error, 10)
	up := server(t, func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		felt <- err
	})
	out := new(memory)
	p := run(t, up.URL, func(o *Options) { o.Record = out.record() })
	for _, head := range []string{"Content-Length: 100000", "Transfer-Encoding: chunked"} {
		c := dial(t, p.addr)
		io.WriteString(c, "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"+head+"\r\n\r\n5\r\nhello\r\n")
		eventually(t, func() bool { return p.m.streams.Load() == 1 }, "the exchange begins")
		time.Sleep(20 * time.Millisecond) // so that some of the body is on its way
		c.Close()
		select {
		case err := <-felt:
			if err == nil {
				t.Errorf("%s: the upstream took half a body for all of it", head)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: the upstream waits on", head)
		}
		eventually(t, func() bool { return p.m.streams.Load() == 0 }, "the exchange ends")
	}
	p.stop()
	if a, _ := p.rec.accounts(); a.Seen != 2 || a.Open != 0 || a.Check() != nil {
		t.Errorf("accounts %v", a)
	}
}
