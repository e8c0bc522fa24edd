package proxy

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
)

// What has arrived of a chunk goes on although the chunk does not end yet.
func TestPartOfAChunkIsPassedOn(t *testing.T) {
	parts := make(chan string)
	up := server(t, func(w http.ResponseWriter, r *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		for p := range parts {
			io.WriteString(c, p)
		}
	})
	p := run(t, up.URL, nil)
	resp, err := client(t).Get(p.url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	for _, s := range []struct{ raw, data string }{
		{"1000000\r\nfirst", "first"}, {"second", "second"}, {strings.Repeat("x", 10_000), strings.Repeat("x", 10_000)},
	} {
		parts <- s.raw
		got := make([]byte, len(s.data))
		if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != s.data {
			t.Fatalf("got %.20q, %v, want %.20q", got, err, s.data)
		}
	}
	close(parts)
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("a body that was cut off ended without an error")
	}
}

// FuzzLookahead checks that the lookahead changes nothing of what net/http reads
// and that its reads never ask for more than there is.
func FuzzLookahead(f *testing.F) {
	for _, s := range []string{
		"5\r\nhello\r\n0\r\n\r\n", "5;a=b\r\nhello\r\n1\r\n!\r\n0\r\nX: y\r\n\r\n", "A\r\n0123456789\r\n00\r\n\r\n",
		"zz\r\n", "5\r\nhel", "ffffffffffffffffff\r\n", "", "0\r\n", "1\nx\n0\n\n",
	} {
		f.Add([]byte(s), uint8(3))
	}
	f.Fuzz(func(t *testing.T, body []byte, piece uint8) {
		head := "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
		read := func(look bool) ([]byte, error) {
			var src io.Reader = strings.NewReader(head + string(body))
			if piece%2 == 0 {
				src = iotest.OneByteReader(src)
			}
			br := bufio.NewReaderSize(src, 64)
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				t.Skip()
			}
			if !look {
				return io.ReadAll(resp.Body)
			}
			var all []byte
			var l lookahead
			buf := make([]byte, 1+int(piece))
			for range 10*len(body) + 100 {
				n := l.ready(br, len(buf))
				if n < 1 || n > len(buf) {
					t.Fatalf("ready = %d, want 1 to %d", n, len(buf))
				}
				raw, _ := br.Peek(br.Buffered())
				n, err := resp.Body.Read(buf[:n])
				l.passed(raw[:max(0, len(raw)-br.Buffered())])
				all = append(all, buf[:n]...)
				if err == io.EOF {
					return all, nil
				}
				if err != nil {
					return all, err
				}
			}
			t.Fatal("no end")
			return nil, nil
		}
		want, wantErr := read(false)
		got, err := read(true)
		if !bytes.Equal(got, want) || (err == nil) != (wantErr == nil) {
			t.Fatalf("got %q, %v, want %q, %v", got, err, want, wantErr)
		}
	})
}
