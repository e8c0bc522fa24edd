package llmapi

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// The shapes that servers give errors; the recordings of the backends have the
// bodies whole.
func TestReadFault(t *testing.T) {
	tests := []struct {
		name   string
		status int
		body   string
		want   Fault
	}{
		{"an object", 400, `{"error":{"message":"Token id 7 is out of vocabulary","type":"BadRequestError","code":400}}`, Fault{"out_of_vocab", "Token id 7 is out of vocabulary"}},
		{"the type tells", 400, `{"error":{"message":"too much","type":"exceed_context_size_error"}}`, Fault{"context_overflow", "too much"}},
		{"the code tells", 404, `{"error":{"message":"no such thing","type":null,"code":"model_not_found"}}`, Fault{"model_not_found", "no such thing"}},
		{"a string", 400, `{"error":"unknown field ` + "`x`" + `"}`, Fault{"unknown_field", "unknown field `x`"}},
		{"at the top", 400, `{"object":"error","message":"longer than the model's context length","type":"BadRequestError"}`, Fault{"context_overflow", "longer than the model's context length"}},
		{"SGLang's of the last tokens", 400, `{"error":{"message":"Input length (8186 tokens) exceeds the maximum allowed length (8186 tokens). Use a shorter input or enable --allow-auto-truncate."}}`, Fault{"context_overflow", "Input length (8186 tokens) exceeds the maximum allowed length (8186 tokens). Use a shorter input or enable --allow-auto-truncate."}},
		{"a router's", 404, `{"detail":"Not Found"}`, Fault{"not_found", "Not Found"}},
		{"a validator's", 422, `{"detail":[{"loc":["body"],"msg":"Extra inputs are not permitted"}]}`, Fault{"unknown_field", "Extra inputs are not permitted"}},
		{"OpenAI's of a field", 400, `{"error":{"message":"Unrecognized request argument supplied: ignore_eos","type":"invalid_request_error","param":null,"code":null}}`, Fault{"unknown_field", "Unrecognized request argument supplied: ignore_eos"}},
		{"no words at all", 400, `{"error":{"code":7}}`, Fault{"", `{"error":{"code":7}}`}},
		{"null", 500, `{"error":null}`, Fault{"", `{"error":null}`}},
		{"a page", 503, "<html>\n<b>Service Unavailable</b>", Fault{"overloaded", "<html> <b>Service Unavailable</b>"}},
		{"nothing", 502, "", Fault{}},
		{"by the status alone", 401, "{}", Fault{"unauthorized", "{}"}},
	}
	for _, tt := range tests {
		if got := ReadFault(tt.status, []byte(tt.body)); got != tt.want {
			t.Errorf("%s: ReadFault = %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func TestOneLine(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"lines and tabs", "a\r\n\tb  c\n", "a b c"},
		{"escape sequences", "\x1b[2J\x1b]0;title\x07x\x9by", "[2J ]0;title x\ufffdy"},
		{"writing direction and marks", "a\u202eb\u200bc\ufeff", "a b c"},
		{"half a character", "a\xf0\x9f", "a\ufffd"},
		{"other scripts stay", "Übergröße 東京 😀", "Übergröße 東京 😀"},
	}
	for _, tt := range tests {
		if got := OneLine(tt.in); got != tt.want {
			t.Errorf("%s: OneLine(%q) = %q, want %q", tt.name, tt.in, got, tt.want)
		}
	}
	for _, in := range []string{strings.Repeat("é", 1000), strings.Repeat("a\n", 1000), strings.Repeat("a\xff", 1000)} {
		got := OneLine(in)
		if len(got) > maxMessage || !utf8.ValidString(got) || !strings.HasSuffix(got, "…") {
			t.Errorf("OneLine of %d bytes: %d bytes, %q", len(in), len(got), got)
		}
	}
}

func FuzzReadFault(f *testing.F) {
	f.Add([]byte(`{"error":{"message":"x","type":1,"code":[]}}`), 400)
	f.Add([]byte(`{"detail":[{"msg":"\u001b[0m"}]}`), 0)
	f.Add([]byte("\x1b\xff"), 500)
	f.Fuzz(func(t *testing.T, body []byte, status int) {
		got := ReadFault(status, body)
		if len(got.Message) > maxMessage || OneLine(got.Message) != got.Message {
			t.Errorf("message %q is not fit for a terminal", got.Message)
		}
		if strings.ContainsFunc(got.Class, func(r rune) bool { return (r < 'a' || r > 'z') && r != '_' }) {
			t.Errorf("class %q", got.Class)
		}
	})
}
