package capture

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"reprise/internal/llmapi"
	"reprise/traceformat"
)

// checkRepeat fails if next, taken for a repetition of prev, reads otherwise than
// it does on its own.
func checkRepeat(t testing.TB, endpoint string, prev, next []byte) (matched bool) {
	t.Helper()
	var p repeat
	var r, want reply
	if r.read(endpoint, prev) != nil {
		return false
	}
	p.learn(prev, &r)
	for range 2 { // the second time the reply is current
		if !p.match(next, &r) {
			return false
		}
		if err := want.read(endpoint, next); err != nil {
			t.Fatalf("%s after %q: %q is taken, and reads as %v", endpoint, prev, next, err)
		}
		if d := cmp.Diff(want, r, cmp.AllowUnexported(reply{})); d != "" {
			t.Fatalf("%s after %q: %q -read +match\n%s", endpoint, prev, next, d)
		}
	}
	return true
}

func TestRepeats(t *testing.T) {
	for name, atLeast := range map[string]int{
		"vllm/testdata/sse_chat.txt": 5, "vllm/testdata/sse_plain.txt": 10, "sglang/testdata/chat_stream.txt": 5,
		"sglang/testdata/generate_stream.txt": 0, "vllm/testdata/sse_continuous_usage_token_ids.txt": 0,
	} {
		x := readRecording(t, name)
		endpoint := routeOf("POST", x.path).endpoint
		var s llmapi.SSE
		var prev []byte
		n := 0
		for _, p := range x.pieces {
			s.Feed(p.data)
			for data, ok := s.Next(); ok; data, ok = s.Next() {
				if prev != nil && checkRepeat(t, endpoint, prev, data) {
					n++
				}
				prev = bytes.Clone(data)
			}
		}
		if n < atLeast || atLeast == 0 && n > 0 {
			t.Errorf("%s: %d events repeat the one before, want %d or more, or none", name, n, atLeast)
		}
	}
	prev := `{"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}`
	for text, want := range map[string]bool{
		"b": true, "longer": true, "ä€": true, "": false, `b\n`: false, `b"`: false, `","x":"`: false, "\n": false, `\`: false,
	} {
		next := fmt.Sprintf(`{"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}`, text)
		if got := checkRepeat(t, traceformat.EndpointChat, []byte(prev), []byte(next)); got != want {
			t.Errorf("match of %q = %t, want %t", text, got, want)
		}
	}
}

func FuzzRepeat(f *testing.F) {
	for _, s := range [][2]string{
		{`{"choices":[{"index":0,"delta":{"content":"a"}}]}`, `{"choices":[{"index":0,"delta":{"content":"bc"}}]}`},
		{`{"text":"a","choices":[{"text":""}]}`, `{"text":"b","choices":[{"text":""}]}`},
		{`{"type":"content_block_delta","delta":{"type":"text_delta","text":"a"}}`, `{"type":"content_block_delta","delta":{"type":"text_delta","text":"aa"}}`},
		{`{"token":{"text":"a"},"content":"x"}`, `{"token":{"text":"a"},"content":"y"}`},
		{`{"choices":[{"text":"a"},{"text":"a"}]}`, `{"choices":[{"text":"a"},{"text":"aa"}]}`},
	} {
		f.Add(byte(0), []byte(s[0]), []byte(s[1]))
		f.Add(byte(1), []byte(s[0]), []byte(s[1]))
	}
	names := []string{traceformat.EndpointChat, traceformat.EndpointMessages, traceformat.EndpointResponses, traceformat.EndpointGenerate}
	f.Fuzz(func(t *testing.T, endpoint byte, prev, next []byte) {
		checkRepeat(t, names[int(endpoint)%len(names)], prev, next)
		// And what differs only where the text is.
		var r reply
		if r.read(names[int(endpoint)%len(names)], prev) == nil && len(r.Text) > 0 {
			if i := bytes.Index(prev, r.Text); i >= 0 {
				other := append(append(bytes.Clone(prev[:i]), next...), prev[i+len(r.Text):]...)
				checkRepeat(t, names[int(endpoint)%len(names)], prev, other)
			}
		}
	})
}
