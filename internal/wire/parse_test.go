package wire

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// An answer is what was read from the bytes of a connection.
type answer struct {
	headed   bool
	head     Head
	data     string
	consumed int // bytes up to the end of the answer, where complete
	complete bool
	reusable bool
	err      error
}

// parsed reads in through a parser, in pieces of the lengths that cut gives.
func parsed(in []byte, method string, cut func(left int) int) answer {
	var p parser
	p.reset(method)
	var a answer
	var data []byte
	rest := bytes.Clone(in) // feed moves bytes
	for len(rest) > 0 && !p.done() && a.err == nil {
		k := max(1, min(cut(len(rest)), len(rest)))
		body, n, err := p.feed(rest[:k:k])
		if n < k && !p.done() && err == nil {
			a.err = fmt.Errorf("feed stopped at %d of %d without an end", n, k)
			return a
		}
		data = append(data, body...)
		a.consumed += n
		a.err = err
		rest = rest[n:]
	}
	if a.err == nil {
		a.err = p.eof()
	}
	a.complete = a.err == nil && p.done()
	a.headed, a.head, a.data, a.reusable = p.headed, p.head, string(data), a.complete && p.reusable()
	return a
}

func whole(left int) int { return left }

// oracle reads in as net/http does.
func oracle(in []byte, method string) answer {
	var a answer
	src := bytes.NewReader(in)
	br := bufio.NewReader(src)
	var resp *http.Response
	for {
		r, err := http.ReadResponse(br, &http.Request{Method: method})
		if err != nil {
			a.err = err
			return a
		}
		if r.StatusCode >= 100 && r.StatusCode < 200 && r.StatusCode != 101 {
			continue
		}
		resp = r
		break
	}
	a.headed = true
	a.head = Head{
		Status: resp.StatusCode, ContentType: resp.Header.Get("Content-Type"), RequestID: resp.Header.Get("X-Request-Id"),
		RetryAfter: resp.Header.Get("Retry-After"), ContentEncoding: resp.Header.Get("Content-Encoding"),
	}
	b, err := io.ReadAll(resp.Body)
	a.data, a.err = string(b), err
	a.complete = err == nil
	a.consumed = len(in) - src.Len() - br.Buffered()
	a.reusable = a.complete && !resp.Close
	return a
}

// stricter lists where the parser refuses what net/http takes: each would leave
// the framing to guesswork, and no server sends it.
var stricter = []string{
	"it does not begin with HTTP/1.x", "its status is no number", "it switches protocols", "is folded",
	"a trailer line does not end in CR LF", "is longer than 65536 bytes",
}

// agree compares with net/http.
func agree(in []byte, method string, got answer) error {
	want := oracle(in, method)
	switch {
	case got.err == nil:
		if want.err != nil {
			// The Trailer header only announces, and nothing is done with it
			// here; 2 and 02 are one length.
			if e := want.err.Error(); strings.Contains(e, "bad trailer key") || strings.Contains(e, "multiple Content-Length") {
				return nil
			}
			return fmt.Errorf("accepted, net/http says %w", want.err)
		}
		if got.data != want.data || got.consumed != want.consumed || got.reusable != want.reusable {
			return fmt.Errorf("read %q (%d bytes, reusable %t), net/http %q (%d bytes, reusable %t)",
				got.data, got.consumed, got.reusable, want.data, want.consumed, want.reusable)
		}
		w := want.head
		if equalFold(w.ContentEncoding, "identity") {
			w.ContentEncoding = ""
		}
		for _, f := range [][2]string{{got.head.ContentType, w.ContentType}, {got.head.RequestID, w.RequestID},
			{got.head.RetryAfter, w.RetryAfter}, {got.head.ContentEncoding, w.ContentEncoding}} {
			// An empty line before a full one of the same name: net/http takes the empty one.
			if f[0] != f[1] && f[1] != "" {
				return fmt.Errorf("head %+v, net/http %+v", got.head, w)
			}
		}
		if got.head.Status != w.Status {
			return fmt.Errorf("status %d, net/http %d", got.head.Status, w.Status)
		}
	case errors.Is(got.err, ErrTruncated):
		if want.err == nil {
			return fmt.Errorf("%w, net/http reads %q", got.err, want.data)
		}
		if !strings.HasPrefix(got.data, want.data) {
			return fmt.Errorf("read %q before the end, net/http %q", got.data, want.data)
		}
	case errors.Is(got.err, ErrProtocol):
		if want.err == nil {
			for _, s := range stricter {
				if strings.Contains(got.err.Error(), s) {
					return nil
				}
			}
			return fmt.Errorf("%w, net/http accepts it", got.err)
		}
		if !strings.HasPrefix(want.data, got.data) && !strings.HasPrefix(got.data, want.data) {
			return fmt.Errorf("read %q before %w, net/http %q", got.data, got.err, want.data)
		}
	default:
		return got.err
	}
	return nil
}

// answers are the seeds of the fuzz target and the cases of the split test.
var answers = []struct{ name, in, data string }{
	{"fixed length", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello"},
	{"events in chunks", "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: a\n\n\r\nA\r\ndata: bc\n\n\r\n0\r\n\r\n", "data: a\n\ndata: bc\n\n"},
	{"chunk extensions and trailers", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=\"b\"; c \r\nhello\r\n000;x\r\nX-T: 1\r\nY: 2\r\n\r\n", "hello"},
	{"no length, until close", "HTTP/1.1 200 OK\r\n\r\nall of it", "all of it"},
	{"HTTP/1.0 with length", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok", "ok"},
	{"HTTP/1.0 knows no chunks", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "2\r\nok\r\n0\r\n\r\n"},
	{"close among tokens", "HTTP/1.1 200 OK\r\nConnection: foo, Close\r\nContent-Length: 2\r\n\r\nok", "ok"},
	{"1xx skipped", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\nContent-Length: 9\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "ok"},
	{"204 has no body", "HTTP/1.1 204 No Content\r\nContent-Length: 9\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", ""},
	{"chunked wins over length", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", "ok"},
	{"equal lengths twice", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 02\r\nContent-Length: 2\r\n\r\nok", "ok"},
	{"bare line feeds in the head", "HTTP/1.1 200 OK\nContent-Length: 2\n\nok", "ok"},
	{"headers we know", "HTTP/1.1 429 Too Many Requests\r\nretry-after:  7\r\nX-Request-ID: r-1\r\nContent-Encoding: gzip\r\nContent-Length: 0\r\n\r\n", ""},
	{"space before the colon", "HTTP/1.1 200 OK\r\nContent-Length : 2\r\nContent-Length: 3\r\n\r\nabc", "abc"},
	{"folded header", "HTTP/1.1 200 OK\r\nX-A: b\r\n c\r\nContent-Length: 2\r\n\r\nok", "ok"},
	{"folded length", "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n 2\r\n\r\nok", ""},
	{"a second answer follows", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\nevil", "ok"},
	{"cut in the head", "HTTP/1.1 200 OK\r\nContent-Le", ""},
	{"cut in the body", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", "hel"},
	{"cut in a chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", "hel"},
	{"cut before the last chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "hello"},
	{"cut in the trailer", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n", "hello"},
	{"chunk longer than it says", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n", "he"},
	{"chunk size of 16 digits", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nhello", ""},
	{"chunk size of 17 digits", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n00000000000000005\r\nhello\r\n0\r\n\r\n", ""},
	{"chunk size with leading zeros", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0000000000000005\r\nhello\r\n0\r\n\r\n", "hello"},
	{"negative chunk size", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n", ""},
	{"empty chunk size", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n", ""},
	{"chunk line with bare line feed", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n", ""},
	{"space before a chunk extension", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5 ;x\r\nhello\r\n0\r\n\r\n", ""},
	{"two transfer encodings", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", ""},
	{"gzip, chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", ""},
	{"lengths that differ", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", ""},
	{"negative length", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", ""},
	{"signed length", "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\na", ""},
	{"length beyond int64", "HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775808\r\n\r\na", ""},
	{"empty length", "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\na", ""},
	{"header without colon", "HTTP/1.1 200 OK\r\nnonsense\r\n\r\n", ""},
	{"control byte in a value", "HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n", ""},
	{"no HTTP", "SSH-2.0-OpenSSH_9.2\r\n", ""},
	{"HTTP/2", "HTTP/2.0 200 OK\r\n\r\n", ""},
	{"status of two digits", "HTTP/1.1 20 OK\r\n\r\n", ""},
	{"upgrade", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n", ""},
	{"Kelvin sign", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chun\u212aed\r\n\r\n0\r\n\r\n", ""},
}

// Every way to cut an answer in two, and every byte alone, reads as the whole
// does, and as net/http reads it.
func TestParserAgreesAtEverySplit(t *testing.T) {
	for _, tt := range answers {
		t.Run(tt.name, func(t *testing.T) {
			in := []byte(tt.in)
			for _, method := range []string{"POST", "HEAD"} {
				want := parsed(in, method, whole)
				if err := agree(in, method, want); err != nil {
					t.Fatalf("%s: %v", method, err)
				}
				if method == "POST" && want.data != tt.data && want.err == nil {
					t.Errorf("data = %q, want %q", want.data, tt.data)
				}
				same(t, "byte by byte", want, parsed(in, method, func(int) int { return 1 }))
				for at := 1; at < len(in); at++ {
					same(t, fmt.Sprintf("cut at %d", at), want, parsed(in, method, func(left int) int {
						if left == len(in) {
							return at
						}
						return left
					}))
				}
			}
		})
	}
}

func same(t interface{ Errorf(string, ...any) }, how string, want, got answer) {
	if fmt.Sprint(want.err) != fmt.Sprint(got.err) {
		t.Errorf("%s: error %v, whole: %v", how, got.err, want.err)
	}
	want.err, got.err = nil, nil
	if want != got {
		t.Errorf("%s: %+v, whole: %+v", how, got, want)
	}
}

func TestParserCaps(t *testing.T) {
	chunked := "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
	endless := func(head, unit string) string { return head + strings.Repeat(unit, 128<<10/len(unit)) }
	for _, tt := range []struct{ name, in string }{
		{"status line", endless("HTTP/1.1 200 ", "a")},
		{"header line", endless("HTTP/1.1 200 OK\r\nX: ", "a")},
		{"header lines", endless("HTTP/1.1 200 OK\r\n", "X: a\r\n")},
		{"interim answers", endless("", "HTTP/1.1 100 Continue\r\n\r\n")},
		{"chunk line", endless(chunked, "0")},
		{"chunk extension", endless(chunked+"5;", "a")},
		{"chunk extensions", endless(chunked, "1;"+strings.Repeat("x", 1000)+"\r\na\r\n")},
		{"trailer", endless(chunked+"0\r\n", "X: a\r\n")},
		{"trailer line", endless(chunked+"0\r\nX: ", "a")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, step := range []int{1, 1000, len(tt.in)} {
				a := parsed([]byte(tt.in), "POST", func(int) int { return step })
				if !errors.Is(a.err, ErrProtocol) || a.consumed > maxHead+step {
					t.Errorf("in steps of %d: read %d bytes, then %v, want ErrProtocol", step, a.consumed, a.err)
				}
			}
		})
	}
}

// A connection's parser is used for one answer after another.
func TestParserResets(t *testing.T) {
	var p parser
	for i, tt := range answers {
		want := parsed([]byte(tt.in), "POST", whole)
		p.reset("POST")
		body, n, err := p.feed([]byte(tt.in))
		if err == nil {
			err = p.eof()
		}
		same(t, tt.name, want, answer{headed: p.headed, head: p.head, data: string(body), consumed: n,
			complete: err == nil && p.done(), reusable: p.reusable() && err == nil, err: err})
		if i > 0 && cap(p.line) > maxHead {
			t.Errorf("%s: %d bytes kept", tt.name, cap(p.line))
		}
	}
}

// Generated answers, cut at random: what was put in chunks comes out.
func TestParserReadsWhatWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var in bytes.Buffer
		in.WriteString("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n")
		var want []byte
		for _, piece := range rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 1, 300), 0, 20).Draw(t, "pieces") {
			fmt.Fprintf(&in, "%x\r\n%s\r\n", len(piece), piece)
			want = append(want, piece...)
		}
		in.WriteString("0\r\n\r\n")
		size := in.Len()
		in.WriteString(rapid.StringN(0, 20, 20).Draw(t, "garbage"))
		cuts := rapid.SliceOfN(rapid.IntRange(1, 200), 1, 50).Draw(t, "cuts")
		i := 0
		got := parsed(in.Bytes(), "POST", func(int) int { i++; return cuts[i%len(cuts)] })
		if got.err != nil || got.data != string(want) || got.consumed != size || !got.reusable {
			t.Fatalf("read %+v, want %q in %d bytes", got, want, size)
		}
	})
}

// FuzzParser holds the parser against net/http, whole and in pieces.
func FuzzParser(f *testing.F) {
	for _, a := range answers {
		f.Add([]byte(a.in), []byte{3, 1, 250}, false)
		f.Add([]byte(a.in), []byte{1}, true)
	}
	f.Fuzz(func(t *testing.T, in, cuts []byte, isHEAD bool) {
		method := "POST"
		if isHEAD {
			method = "HEAD"
		}
		want := parsed(in, method, whole)
		if err := agree(in, method, want); err != nil {
			t.Fatal(err)
		}
		if len(cuts) > 0 {
			i := 0
			same(t, "in pieces", want, parsed(in, method, func(int) int { i++; return int(cuts[i%len(cuts)]) }))
		}
	})
}
