package backends

import (
	"fmt"
	"strings"
	"testing"
)

// Events of a batch are those of its prompts, by index; the usage block at the
// end, which adds them up, is of none.
func TestBatchDecoder(t *testing.T) {
	for name, tt := range map[string]struct {
		events []string
		want   string // index and tokens of each event, then the results
	}{
		"vLLM": {[]string{
			`{"choices":[{"index":1,"text":"a","finish_reason":null}],"usage":{"prompt_tokens":7,"completion_tokens":1}}`,
			`{"choices":[{"index":0,"text":"b","finish_reason":null}],"usage":{"prompt_tokens":5,"completion_tokens":2}}`,
			`{"choices":[{"index":1,"text":"c","finish_reason":"length"}],"usage":{"prompt_tokens":7,"completion_tokens":3}}`,
			`{"choices":[{"index":0,"text":"d","finish_reason":"length"}],"usage":{"prompt_tokens":5,"completion_tokens":3}}`,
			`{"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":6}}`, `[DONE]`,
		}, "1:1 0:2 1:2 0:1 -1:0 -1:0 | 5 3 length | 7 3 length"},
		"SGLang": {[]string{
			`{"text":"a","output_ids":[1],"meta_info":{"id":"x","finish_reason":null,"prompt_tokens":5,"completion_tokens":1},"index":0}`,
			`{"text":"b","output_ids":[1],"meta_info":{"id":"y","finish_reason":{"type":"length","length":1},"prompt_tokens":9,"completion_tokens":1,"cached_tokens":4},"index":1}`,
			`{"text":"ab","output_ids":[1,2],"meta_info":{"id":"x","finish_reason":{"type":"length","length":2},"prompt_tokens":5,"completion_tokens":2},"index":0}`, `[DONE]`,
		}, "0:1 1:1 0:1 -1:0 | 5 2 length | 9 1 length"},
		"an error is of all":    {[]string{`{"error":{"message":"gone","code":500}}`, `[DONE]`}, "-1:0 -1:0 | 0 0 error_event | 0 0 error_event"},
		"a prompt that is none": {[]string{`{"choices":[{"index":2,"text":"a"}]}`}, "-1:0 | 0 0 bad_event | 0 0 bad_event"},
	} {
		d := NewBatchDecoder(2)
		var got []string
		for _, e := range tt.events {
			i, ev, _ := d.Event([]byte(e))
			got = append(got, fmt.Sprintf("%d:%d", i, ev.Tokens))
		}
		var out strings.Builder
		out.WriteString(strings.Join(got, " "))
		for i := range 2 {
			r := d.Member(i).Result()
			out.WriteString(fmt.Sprintf(" | %d %d %s%s", r.PromptTokens.V, r.OutputTokens.V, r.FinishReason, r.Error))
		}
		if out.String() != tt.want {
			t.Errorf("%s: %s\nwant %s", name, out.String(), tt.want)
		}
	}
}

func TestBatchDecoderBody(t *testing.T) {
	for _, tt := range []struct {
		status int
		body   string
		want   string
	}{{400, `{"error":{"message":"too long"}}`, "http_400"}, {200, `{"choices":[]}`, "bad_body"}, {200, `<html>`, "bad_body"}} {
		d := NewBatchDecoder(2)
		d.Body(tt.status, []byte(tt.body))
		for i := range 2 {
			if r := d.Member(i).Result(); !strings.HasPrefix(r.Error, tt.want) {
				t.Errorf("%d %s: member %d: %+v", tt.status, tt.body, i, r)
			}
		}
	}
}
