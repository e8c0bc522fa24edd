package capture

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"reprise/traceformat"
)

// canaries are random strings that must not come out anywhere.
type canaries struct{ list []string }

// next is a new canary. Its first letter keeps it from being a number.
func (c *canaries) next() string {
	var b [16]byte
	rand.Read(b[:])
	s := "c" + hex.EncodeToString(b[:])
	c.list = append(c.list, s)
	return s
}

// find returns what of a canary is in b: the whole, or half of it, plain or in
// an encoding that somebody might choose.
func (c *canaries) find(b []byte) string {
	lower := bytes.ToLower(b)
	for _, s := range c.list {
		for _, half := range []string{s[:17], s[16:]} {
			for _, form := range []string{half, url.QueryEscape(half), hex.EncodeToString([]byte(half)), strings.ToLower(base64.StdEncoding.EncodeToString([]byte(half))[:16])} {
				if bytes.Contains(lower, []byte(form)) {
					return form
				}
			}
		}
	}
	return ""
}

// TestCanaries puts random strings wherever a client or a server can write
// something, and searches everything that comes out.
func TestCanaries(t *testing.T) {
	dir := t.TempDir()
	trace := filepath.Join(dir, "trace.parquet")
	journal, err := traceformat.CreateJournal(traceformat.JournalPath(trace), nil)
	if err != nil {
		t.Fatal(err)
	}
	key, err := LoadKey(filepath.Join(dir, "key"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewRecorder(journal, Options{Key: key, Program: "capture test", Vantage: "proxy"})
	if err != nil {
		t.Fatal(err)
	}
	var c canaries
	header := func(extra map[string]string) Header {
		seen := map[string]string{}
		return func(name string) string {
			if v, ok := extra[name]; ok {
				return v
			}
			if seen[name] == "" {
				seen[name] = c.next()
			}
			return seen[name]
		}
	}
	q := func() string { return `"` + c.next() + `"` }
	text := func() string { return strings.Repeat(c.next()+" ", 8) } // several blocks
	requests := []struct{ path, body string }{
		{"/v1/chat/completions", `{"model":"m","user":` + q() + `,"messages":[{"role":"system","name":` + q() + `,"content":"` + text() + `"},{"role":"user","content":[{"type":"text","text":"` + text() + `"},{"type":"image_url","image_url":{"url":` + q() + `}}]},{"role":"assistant","tool_calls":[{"id":` + q() + `,"function":{"name":` + q() + `,"arguments":` + q() + `}}]}],"tools":[{"function":{"name":` + q() + `,"description":` + q() + `}}],` + q() + `:` + q() + `,"metadata":{"session_id":` + q() + `},"stream":true,"stop":[` + q() + `]}`},
		{"/v1/chat/completions", `{"model":"tell me about ` + c.next() + ` and then stop","messages":[{"role":` + q() + `,"content":` + q() + `}],"session_id":` + q() + `}`},
		{"/v1/messages", `{"model":"claude","system":` + q() + `,"metadata":{"user_id":"user_` + c.next() + `_session_` + c.next() + `"},"messages":[{"role":"user","content":` + q() + `}]}`},
		{"/v1/responses", `{"model":"gpt","instructions":` + q() + `,"input":` + q() + `,"previous_response_id":` + q() + `,"conversation":` + q() + `}`},
		{"/generate", `{"text":"` + text() + `","rid":` + q() + `,"sampling_params":{"stop":` + q() + `}}`},
		{"/v1/embeddings", `{"model":"e","input":[` + q() + `],"user":` + q() + `}`},
		{"/v1/completions", `{"model":"m","prompt":` + q()}, // no JSON
		{"", `{"model":"m","prompt":` + q() + `}`}, // joined late
		{"/v1/" + c.next(), `{}`},
		{"/health?token=" + c.next(), ``},
	}
	answers := []struct {
		status int
		kind   string
		body   func() string
	}{
		{200, "text/event-stream", func() string {
			return `data: {"id":` + q() + `,"choices":[{"index":0,"delta":{"content":` + q() + `,"reasoning_content":` + q() + `},"finish_reason":null}]}` + "\n\nevent: " + c.next() + "\ndata: " +
				`{"choices":[{"index":0,"delta":{},"finish_reason":` + q() + `}]}` + "\n\n"
		}},
		{200, "text/event-stream", func() string {
			return `data: {"type":"content_block_delta","delta":{"type":"text_delta","text":` + q() + `}}` + "\n\n" + `data: {"type":"error","error":{"type":` + q() + `,"message":` + q() + `}}` + "\n\n"
		}},
		{200, "text/event-stream", func() string { return "data: " + c.next() + "\n\n" }},
		{200, "application/json", func() string {
			return `{"id":` + q() + `,"object":"response","model":` + q() + `,"choices":[{"message":{"content":` + q() + `},"finish_reason":"stop"}],"usage":{"prompt_tokens":100,"completion_tokens":5}}`
		}},
		{200, "application/json", func() string {
			return `{"text":` + q() + `,"meta_info":{"id":` + q() + `,"finish_reason":{"type":` + q() + `,"message":` + q() + `}}}`
		}},
		{400, "application/json", func() string {
			return `{"error":{"message":` + q() + `,"type":` + q() + `,"param":` + q() + `,"code":` + q() + `}}`
		}},
		{500, "text/plain", func() string { return c.next() }},
		{503, c.next(), func() string { return c.next() }},
	}
	at := epoch
	for _, request := range requests {
		for _, answer := range answers {
			for _, coding := range []string{"", c.next()} {
				at += 1e9
				x := r.Begin(at, Conn{Client: c.next()})
				method := "POST"
				if request.path == "" {
					method = ""
				}
				var h Header
				if method != "" {
					h = header(map[string]string{"content-encoding": ""})
				}
				target := request.path
				if target != "" && !strings.Contains(target, "?") {
					target = "http://" + c.next() + target + "?" + c.next() + "=" + c.next()
				}
				x.RequestHead(at, method, target, h)
				x.RequestBody(at, []byte(request.body))
				x.RequestEnd(at)
				x.ResponseHead(at, answer.status, header(map[string]string{"content-type": answer.kind, "content-encoding": coding, "x-prompt-tokens": "", "x-generated-tokens": ""}))
				x.ResponseBody(at+1e6, []byte(answer.body()))
				x.ResponseEnd(at + 2e6)
			}
		}
	}
	r.Record(&Logged{Arrival: at, Client: c.next(), Session: c.next(), User: c.next(), RequestID: c.next(), PrefixHashes: []string{c.next(), c.next()}, Row: traceformat.Row{Request: traceformat.Request{Model: c.next() + "\n" + c.next()}}})
	var out bytes.Buffer
	out.WriteString(r.Accounts().String())
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	a := r.Accounts()
	if err := a.Check(); err != nil || a.Recorded < 100 || a.Reasons[ReasonPanic] > 0 {
		t.Fatalf("%v, %v: want most of it recorded", a, err)
	}
	if err := journal.Close(); err != nil {
		t.Fatal(err)
	}
	searchFiles(t, &c, dir) // the journal
	if err := traceformat.Seal(traceformat.JournalPath(trace), trace, traceformat.Rebase()); err != nil {
		t.Fatal(err)
	}
	searchFiles(t, &c, dir)

	reader, err := traceformat.Open(trace)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	h, err := json.Marshal(reader.Header())
	if err != nil {
		t.Fatal(err)
	}
	out.Write(h)
	models := map[string]int{}
	n := int64(0)
	for row, err := range reader.All() {
		if err != nil {
			t.Fatal(err)
		}
		n++
		models[row.Model]++
		out.Write(row.AppendJSON(nil))
		fmt.Fprintf(&out, "%+v", *row)
	}
	if n != a.Recorded {
		t.Errorf("%d rows in the file, %d recorded", n, a.Recorded)
	}
	if models["m"] == 0 || models["claude"] == 0 {
		t.Errorf("models %v: want those that look like a name kept", models)
	}
	if hit := c.find(out.Bytes()); hit != "" {
		t.Errorf("%q, a piece of a canary, came out", hit)
	}
	// The search itself finds what is there.
	if c.find([]byte("x"+strings.ToUpper(c.list[3])+"y")) == "" {
		t.Error("a planted canary is not found")
	}
	for v := range traceformat.Validate(reopen(t, trace)) {
		if !v.Note {
			t.Errorf("the trace breaks a rule: %v", v)
		}
	}
}

func reopen(t *testing.T, name string) traceformat.Reader {
	r, err := traceformat.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// searchFiles searches every file, and what zstd frames in it hold.
func searchFiles(t *testing.T, c *canaries, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if hit := c.find(b); hit != "" {
			t.Errorf("%s holds %q, a piece of a canary", filepath.Base(path), hit)
		}
		z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return err
		}
		defer z.Close()
		frames := 0
		for i := 0; i+4 < len(b); i++ {
			if bytes.HasPrefix(b[i:], []byte{0x28, 0xb5, 0x2f, 0xfd}) {
				if plain, err := z.DecodeAll(b[i:], nil); err == nil || len(plain) > 0 {
					frames++
					if hit := c.find(plain); hit != "" {
						t.Errorf("%s holds %q, a piece of a canary, compressed", filepath.Base(path), hit)
					}
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
