package proxy

import (
	"bufio"
	"bytes"
	"net/http"
	"strings"
	"testing"
)

// FuzzHead checks that whatever net/http takes for one request goes on as one
// request: the same method, target, host and framing, and no byte behind it.
func FuzzHead(f *testing.F) {
	for _, s := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
		"POST //x/%2f?q HTTP/1.1\r\nHost: a:1\r\nContent-Length: 3\r\nConnection: x, Content-Length, Host\r\nX: y\r\n\r\nabc",
		"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-A, X-B\r\nTE: trailers\r\nConnection: Transfer-Encoding\r\n\r\n0\r\n\r\n",
		"GET http://u:p@b/x?y HTTP/1.0\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: a\r\nUpgrade: a\r\nUpgrade: b\r\nConnection: Upgrade\r\n\r\n",
		"GET /\x80 HTTP/1.1\r\nHost: \r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n", "GET http://b HTTP/1.1\r\nHost: a\r\n\r\n", "GET http://b?x HTTP/1.1\r\nHost: a\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	p := &Proxy{}
	f.Fuzz(func(t *testing.T, in []byte) {
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(in)))
		if err != nil || r.Method == http.MethodConnect || !forwardable(r) || !serverTakes(r) {
			return
		}
		out := p.appendHead(nil, r, framingOf(r))
		br := bufio.NewReader(bytes.NewReader(out))
		got, err := http.ReadRequest(br)
		if err != nil {
			t.Fatalf("%q goes on as %q: %v", in, out, err)
		}
		if got.Method != r.Method || got.RequestURI != target(r) || got.Host != r.Host || got.ContentLength != r.ContentLength {
			t.Errorf("%q goes on as %q", in, out)
		}
		if n := br.Buffered(); n > 0 {
			t.Errorf("%q goes on as %q, with %d bytes behind the head", in, out, n)
		}
		if bytes.Count(out, []byte("\r\nHost: ")) != 1 || strings.Count(strings.ToLower(string(out)), "\r\ncontent-length:")+bytes.Count(out, []byte("\r\nTransfer-Encoding:")) > 1 {
			t.Errorf("%q goes on as %q, which can be read in two ways", in, out)
		}
	})
}

// serverTakes is what net/http's server checks beyond ReadRequest.
func serverTakes(r *http.Request) bool {
	for name, values := range r.Header {
		if !isToken(name) {
			return false
		}
		for _, v := range values {
			if strings.ContainsAny(v, "\r\n\x00") {
				return false
			}
		}
	}
	return r.URL != nil && r.Header["Host"] == nil
}
