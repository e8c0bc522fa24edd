package backends

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestBaseURL(t *testing.T) {
	tests := []struct{ in, want, err string }{
		{"http://127.0.0.1:8000", "http://127.0.0.1:8000", ""},
		{"http://127.0.0.1:8000/", "http://127.0.0.1:8000", ""},
		{"https://host/v1", "https://host", ""},
		{"https://host/llm/v1/", "https://host/llm", ""},
		{"http://[::1]:8000", "http://[::1]:8000", ""},
		{"", "", "no server named"},
		{"localhost:8000", "", "want http://host:port"},
		{"ftp://host", "", "want http://host:port"},
		{"http://", "", "want http://host:port"},
		{"http://a:hush@host", "", "credentials"},
		{"http://host?key=hush", "", "has a query"},
		{"http://host:port", "", "invalid port"},
	}
	for _, tt := range tests {
		got, err := Config{URL: tt.in}.BaseURL()
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("BaseURL(%q) = %q, %v; want %q, %q", tt.in, got, err, tt.want, tt.err)
		}
		if err != nil && strings.Contains(tt.in, ":hush@") && strings.Contains(err.Error(), "hush") {
			t.Errorf("BaseURL(%q): the error repeats the password: %v", tt.in, err)
		}
	}
}

func TestOpen(t *testing.T) {
	if _, err := Open("nope", Config{}); err == nil || !strings.HasPrefix(err.Error(), `no backend "nope"; there are `) {
		t.Errorf("Open: %v", err)
	}
}

func TestAskJSON(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ok":
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, `{"method":%q,"auth":%q,"type":%q,"body":%q}`, r.Method, r.Header.Get("Authorization"), r.Header.Get("Content-Type"), body)
		case "/denied":
			http.Error(w, `{"error":"Unauthorized"}`, http.StatusUnauthorized)
		case "/long":
			io.CopyN(w, zeros{}, maxAnswer+1)
		case "/text":
			io.WriteString(w, "hello")
		case "/cut":
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, "{")
		}
	}))
	defer s.Close()
	c := Config{URL: s.URL, APIKey: "hush"}
	tests := []struct{ name, path, body, want string }{
		{"a GET", "/ok", "", `map[auth:Bearer hush body: method:GET type:]`},
		{"a POST", "/ok", "{}", `map[auth:Bearer hush body:{} method:POST type:application/json]`},
		{"a refusal", "/denied", "", "/denied: status 401: Unauthorized (is an API key needed?)"},
		{"no JSON", "/text", "", "/text: not the JSON that was expected: invalid character 'h' looking for beginning of value"},
		{"too long", "/long", "", "GET " + s.URL + "/long: the answer is longer than 16777216 bytes"},
		{"cut", "/cut", "", "GET " + s.URL + "/cut: unexpected EOF"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var body []byte
			if tt.body != "" {
				body = []byte(tt.body)
			}
			var v map[string]string
			err := c.AskJSON(t.Context(), tt.path, body, &v)
			got := fmt.Sprint(v)
			if err != nil {
				got = err.Error()
				if strings.Contains(got, "hush") {
					t.Errorf("the error repeats the key: %s", got)
				}
			}
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func TestFindModel(t *testing.T) {
	list := ""
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, list) }))
	defer s.Close()
	tests := []struct{ name, list, ask, want, err string }{
		{"the first", `{"data":[{"id":"a"},{"id":"b"}]}`, "", "a", ""},
		{"not an adapter", `{"data":[{"id":"lora","parent":"a"},{"id":"a","parent":null}]}`, "", "a", ""},
		{"unless it is asked for", `{"data":[{"id":"lora","parent":"a"},{"id":"a"}]}`, "lora", "lora", ""},
		{"one that is not there", `{"data":[{"id":"a"},{"id":"b"}]}`, "c", "", `/v1/models: no model "c"; there are ["a" "b"]`},
		{"none at all", `{"data":[]}`, "", "", "/v1/models: the server names no model"},
	}
	for _, tt := range tests {
		list = tt.list
		m, err := Config{URL: s.URL, Model: tt.ask}.FindModel(t.Context())
		if m.ID != tt.want || (err != nil) != (tt.err != "") || err != nil && err.Error() != tt.err {
			t.Errorf("%s: %q, %v; want %q, %s", tt.name, m.ID, err, tt.want, tt.err)
		}
	}
}

func TestFindVocab(t *testing.T) {
	// A tokenizer that uses the ids from 100 to 900.
	tokens := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var q struct {
			Prompt, Content string
			Special         bool `json:"add_special_tokens"`
		}
		b, _ := io.ReadAll(r.Body)
		if err := json.Unmarshal(b, &q); err != nil || q.Prompt == "" || q.Content != q.Prompt || q.Special {
			t.Errorf("asked %s (%v)", b, err)
		}
		io.WriteString(w, `{"tokens":[100,900,500]}`)
	})
	none := http.NotFoundHandler()
	const tokenizer = `{"added_tokens":[{"id":0,"special":true},{"id":2,"special":true},{"id":3,"special":false},{"id":995,"special":true},{"id":998,"special":true}]}`
	tests := []struct {
		name              string
		server            http.Handler
		config, tokenizer string // files of the model
		lo, hi            int
		source, warn      string
	}{
		{"the model's files", tokens, `{"vocab_size":1000}`, tokenizer, 3, 995, "config.json", ""},
		{"a model that also sees", tokens, `{"text_config":{"vocab_size":1000}}`, "", 0, 1000, "config.json", ""},
		{"the files alone", none, `{"vocab_size":1000}`, tokenizer, 3, 995, "config.json", ""},
		{"the server alone", tokens, "", "", 100, 901, "tokenize", ""},
		{"a damaged file is none", tokens, `{"vocab_size":`, "", 100, 901, "tokenize", ""},
		{"files of another model", tokens, `{"vocab_size":600}`, "", 100, 901, "tokenize", "the server uses id 900"},
		{"nothing", none, "", "", 0, 0, "", "the size of the vocabulary is unknown (/tokenize: status 404"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := httptest.NewServer(tt.server)
			defer s.Close()
			dir := t.TempDir()
			for name, text := range map[string]string{"config.json": tt.config, "tokenizer.json": tt.tokenizer} {
				if text == "" {
					continue
				}
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var i Info
			Config{URL: s.URL}.FindVocab(t.Context(), &i, dir)
			if i.MinID != tt.lo || i.VocabSize != tt.hi || i.Config["vocab_source"] != tt.source {
				t.Errorf("ids from %d to %d by %q, want %d to %d by %q", i.MinID, i.VocabSize, i.Config["vocab_source"], tt.lo, tt.hi, tt.source)
			}
			if w := strings.Join(i.Warnings, "\n"); (w != "") != (tt.warn != "") || !strings.Contains(w, tt.warn) {
				t.Errorf("warnings %q, want %q", w, tt.warn)
			}
		})
	}
}

// A path means something on this machine alone, and only when it is whole.
func TestLocalVocabTrusts(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"vocab_size":7}`), 0o600); err != nil {
		t.Fatal(err)
	}
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	relative, err := filepath.Rel(wd, dir)
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		url, dir string
		want     bool
	}{
		{"http://127.0.0.1:8000", dir, true},
		{"http://localhost:8000", dir, true},
		{"http://[::1]:8000", dir, true},
		{"http://10.0.0.7:8000", dir, false},
		{"http://gpu-host:8000", dir, false},
		{"http://127.0.0.1:8000", relative, false},
		{"http://127.0.0.1:8000", "", false},
	}
	for _, tt := range tests {
		if _, hi, ok := (Config{URL: tt.url}).localVocab(tt.dir); ok != tt.want || ok && hi != 7 {
			t.Errorf("localVocab(%s, %s) = %d, %t; want %t", tt.url, tt.dir, hi, ok, tt.want)
		}
	}
}

func TestFlat(t *testing.T) {
	got := Flat(json.RawMessage(`{"tp_size":1,"model":"a\"b","on":true,"x":null,"list":[1],"o":{"a":1},"max_total_tokens":5,"api_key":"hush","admin_api_key":"hush","ssl_keyfile_password":"hush","launch_command":"--api-key hush","hf_token":"hush","long":"` + strings.Repeat("x", 500) + `"}`))
	want := map[string]string{"tp_size": "1", "model": `a"b`, "on": "true", "max_total_tokens": "5"}
	if !maps.Equal(got, want) {
		t.Errorf("Flat = %q, want %q", got, want)
	}
	if Flat(json.RawMessage(`[1]`)) != nil {
		t.Error("Flat of an array is not nil")
	}
}

func TestCheckOptions(t *testing.T) {
	c := Config{Options: map[string]string{"b": "1", "a": "2"}}
	for known, want := range map[string]string{"a,b": "", "b,c": `no option "a"; there are b, c`, "": `no option "a": this backend has none`} {
		names := slices.DeleteFunc(strings.Split(known, ","), func(s string) bool { return s == "" })
		err := c.CheckOptions(names...)
		if got := fmt.Sprint(err); got != want && !(err == nil && want == "") {
			t.Errorf("CheckOptions(%s): %v, want %s", known, err, want)
		}
	}
}
