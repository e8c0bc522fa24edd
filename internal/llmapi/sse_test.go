package llmapi

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	gosse "github.com/tmaxmax/go-sse"

	"reprise/internal/llmapi/fixture"
)

// split feeds the pieces to s and returns copies of the events.
func split(s *SSE, pieces ...[]byte) (events []string) {
	for _, p := range pieces {
		// The piece is overwritten after use, as a network buffer is.
		p = bytes.Clone(p)
		s.Feed(p)
		for data, ok := s.Next(); ok; data, ok = s.Next() {
			events = append(events, string(data))
		}
		for i := range p {
			p[i] = '#'
		}
	}
	return events
}

func TestSSE(t *testing.T) {
	tests := []struct {
		name, in string
		want     []string
		pending  bool
	}{
		{"LF", "data: a\n\ndata: b\n\n", []string{"a", "b"}, false},
		{"CRLF", "data: a\r\n\r\ndata: b\r\n\r\n", []string{"a", "b"}, false},
		{"CR", "data: a\r\rdata: b\r\r", []string{"a", "b"}, false},
		{"all ends in one stream", "data: a\r\n\ndata: b\n\rdata: c\r\r\n", []string{"a", "b", "c"}, false},
		{"data lines are joined with LF", "data: a\ndata: b\r\ndata:\ndata: c\n\n", []string{"a\nb\n\nc"}, false},
		{"one space after the colon is dropped, not two", "data:  a\n\ndata:b\n\n", []string{" a", "b"}, false},
		{"comments and other fields are skipped", ": ping\nevent: e\nid: 1\nretry: 5\ndata: a\nfoo: b\n\n", []string{"a"}, false},
		{"an event without data is none", "event: ping\n\n: keep-alive\n\n\n\ndata: a\n\n", []string{"a"}, false},
		{"empty data is an event", "data\n\ndata:\n\ndata: \n\n", []string{"", "", ""}, false},
		{"other names that start with data", "data2: a\ndatab\nDATA: c\n data: d\n\n", nil, false},
		{"byte-order mark", "\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", []string{"a"}, false},
		{"half a character passes as it is", "data: \xf0\x9f\n\ndata: \x98\x80\n\n", []string{"\xf0\x9f", "\x98\x80"}, false},
		{"an event that nothing ends is not one", "data: a\n\ndata: b\n", []string{"a"}, true},
		{"nor is half a line", "data: a\n\nda", []string{"a"}, true},
		{"nothing", "", nil, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// In one piece, then in two for every place of the cut, then bytewise.
			in := []byte(tt.in)
			cuts := [][][]byte{{in}}
			for i := range in {
				cuts = append(cuts, [][]byte{in[:i], in[i:]})
			}
			cuts = append(cuts, slices.Collect(slices.Chunk(in, 1)))
			for _, pieces := range cuts {
				var s SSE
				if got := split(&s, pieces...); !slices.Equal(got, tt.want) || s.Pending() != tt.pending || s.Err() != nil {
					t.Fatalf("%q: events %q, pending %t, error %v; want %q, %t", pieces, got, s.Pending(), s.Err(), tt.want, tt.pending)
				}
			}
		})
	}
}

// The streams of real servers, cut at every byte, against another
// implementation.
func TestSSEAgainstOracle(t *testing.T) {
	for _, dir := range []string{"vllm", "sglang", "openai"} {
		for _, x := range fixture.All(t, "../../backends/"+dir+"/testdata/*.txt") {
			if x.Events == nil {
				continue
			}
			in := x.Stream()
			want := oracle(t, in)
			if len(want) != len(x.Events) {
				t.Fatalf("%s: oracle finds %d events of %d", x.Name, len(want), len(x.Events))
			}
			for i := range in {
				if got := split(new(SSE), in[:i], in[i:]); !slices.Equal(got, want) {
					t.Fatalf("%s cut at %d: %d events, want %d, or other data", x.Name, i, len(got), len(want))
				}
			}
		}
	}
}

// oracle returns the data of the events in b, those with empty data left out:
// go-sse reports an event that has a name and no data, the standard does not.
func oracle(t testing.TB, b []byte) (events []string) {
	for e, err := range gosse.Read(bytes.NewReader(b), &gosse.ReadConfig{MaxEventSize: 1 << 20}) {
		if err != nil {
			t.Fatalf("oracle: %v", err)
		}
		if e.Data != "" {
			events = append(events, e.Data)
		}
	}
	return events
}

func FuzzSSE(f *testing.F) {
	for _, s := range []string{
		"data: a\n\ndata: b\r\n\r\ndata: c\r\r", "\xef\xbb\xbfdata: x\n: c\nevent: e\ndata: y\n\n",
		"data\ndata:\n\n\r\n\r", "\n\xef\xbb\xbfdata: x\n\n", "id: 1\nretry: 2\n\n", "data: {\"choices\":[]}\n\ndata: [DONE]\n\n",
	} {
		f.Add([]byte(s), uint16(3), uint16(7))
	}
	f.Fuzz(func(t *testing.T, in []byte, a, b uint16) {
		if len(in) > 64<<10 {
			return
		}
		whole := split(new(SSE), in)
		// How a stream is cut changes nothing.
		i := int(a) % (len(in) + 1)
		j := i + int(b)%(len(in)-i+1)
		if got := split(new(SSE), in[:i], in[i:j], in[j:]); !slices.Equal(got, whole) {
			t.Errorf("cut at %d and %d: %q, in one piece %q", i, j, got, whole)
		}
		if got := split(new(SSE), slices.Collect(slices.Chunk(in, 1))...); !slices.Equal(got, whole) {
			t.Errorf("bytewise: %q, in one piece %q", got, whole)
		}
		// An independent reading of the standard, and another implementation.
		if want := reference(in); !slices.Equal(whole, want) {
			t.Errorf("events %q, by the standard %q", whole, want)
		}
		if strings.Contains(strings.TrimPrefix(string(in), bom), bom) {
			return // go-sse also skips one that follows empty lines; the standard, only the first of the stream
		}
		full := slices.DeleteFunc(slices.Clone(whole), func(s string) bool { return s == "" })
		if want := oracle(t, in); !slices.Equal(full, want) {
			t.Errorf("events %q, go-sse finds %q", full, want)
		}
	})
}

const bom = "\xef\xbb\xbf"

// reference follows section 9.2.6 of the HTML standard word by word.
func reference(in []byte) (events []string) {
	s := strings.TrimPrefix(string(in), bom)
	s = strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", "\n"), "\r", "\n")
	lines := strings.Split(s, "\n")
	data := ""
	for _, l := range lines[:len(lines)-1] { // what follows the last end is no line
		name, value, _ := strings.Cut(l, ":")
		switch {
		case l == "":
			if data != "" {
				events = append(events, strings.TrimSuffix(data, "\n"))
			}
			data = ""
		case name == "data":
			data += strings.TrimPrefix(value, " ") + "\n"
		}
	}
	return events
}

func TestSSEBounds(t *testing.T) {
	long := strings.Repeat("x", 100)
	tests := []struct{ name, in, want string }{
		{"a line", "data: a\n\ndata: " + long + "\n\n", "event stream: byte 9: a line is longer than 64 bytes"},
		{"a comment counts", ":" + long, "event stream: byte 0: a line is longer than 64 bytes"},
		{"an event of many lines", strings.Repeat("data: 0123456789\n", 8) + "\n", "event stream: byte 102: an event is longer than 64 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := SSE{Max: 64}
			split(&s, []byte(tt.in))
			if s.Err() == nil || s.Err().Error() != tt.want {
				t.Errorf("error %v, want %s", s.Err(), tt.want)
			}
			// However it comes, no more is kept than the bound, and nothing more is
			// read.
			s = SSE{Max: 64}
			for i := range len(tt.in) {
				split(&s, []byte(tt.in[i:i+1]))
				if cap(s.line)+cap(s.buf) > 4*64 {
					t.Fatalf("byte %d: %d bytes are kept", i, cap(s.line)+cap(s.buf))
				}
			}
			if s.Err() == nil {
				t.Error("bytewise: no error")
			}
			if got := split(&s, []byte("\n\ndata: a\n\n")); got != nil {
				t.Errorf("events %q after an error", got)
			}
		})
	}
	// A large event does not hold on to its buffer.
	var s SSE
	split(&s, []byte("data: "+strings.Repeat("x", 1<<20)), []byte("\n\n"))
	if n := cap(s.line) + cap(s.buf); n > 2*keepBuffer {
		t.Errorf("%d bytes are kept after a large event", n)
	}
}

func TestSSEAllocatesNothing(t *testing.T) {
	in := []byte(strings.Repeat("data: {\"choices\":[{\"index\":0,\"text\":\"x\"}]}\n\n", 20))
	for _, size := range []int{len(in), 100, 7} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			var s SSE
			n := 0
			if got := testing.AllocsPerRun(100, func() {
				for p := range slices.Chunk(in, size) {
					s.Feed(p)
					for _, ok := s.Next(); ok; _, ok = s.Next() {
						n++
					}
				}
			}); got != 0 {
				t.Errorf("%v allocations per run", got)
			}
			if n != 20*101 {
				t.Errorf("%d events, want %d", n, 20*101)
			}
		})
	}
}

func BenchmarkSSE(b *testing.B) {
	in := fixture.Read(b, "../../backends/vllm/testdata/sse_continuous_usage_token_ids.txt")
	stream := in.Stream()
	b.SetBytes(int64(len(stream)))
	b.ReportAllocs()
	var s SSE
	for b.Loop() {
		s.Feed(stream)
		for _, ok := s.Next(); ok; _, ok = s.Next() {
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(in.Events)), "ns/event")
}
