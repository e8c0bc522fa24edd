package openai

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"reprise/backends"
	"reprise/traceformat"
)

func TestFlushCache(t *testing.T) {
	const (
		slots  = `[{"id":0,"n_ctx":8192,"is_processing":false},{"id":3,"n_ctx":8192,"is_processing":true}]`
		erased = `{"id_slot":0,"n_erased":602}`
		cannot = "{\"error\":{\"code\":501,\"message\":\"This server does not support slots action. Start it with `--slot-save-path`\",\"type\":\"not_supported_error\"}}"
	)
	for _, tt := range []struct {
		name, engine, list, answer string
		status                     int
		want, hint                 string
		asked                      []string
	}{
		{"llama.cpp", llamaCpp, slots, erased, 200, "", "", []string{"/slots", "/slots/0?action=erase", "/slots/3?action=erase"}},
		{"llama.cpp without a folder for slots", llamaCpp, slots, cannot, 501, "does not erase slots", "--slot-save-path DIR and --cache-ram 0", []string{"/slots", "/slots/0?action=erase"}},
		{"llama.cpp that fails", llamaCpp, slots, `{"error":{"message":"gone"}}`, 500, "status 500: gone", "", []string{"/slots", "/slots/0?action=erase"}},
		{"llama.cpp without slots", llamaCpp, "", "", 200, "/slots: status 404", "", []string{"/slots"}},
		{"vllm behind a gateway", vllm, "", "", 200, "no standard interface", "--backend vllm", nil},
		{"OpenAI", hosted, "", "", 200, "no interface", "--cache warm", nil},
		{"unknown", "", "", "", 200, "no interface", "--cache warm", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var asked []string
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				asked = append(asked, r.URL.RequestURI())
				switch {
				case r.Method == http.MethodPost:
					w.WriteHeader(tt.status)
					w.Write([]byte(tt.answer))
				case tt.list != "" && r.URL.Path == "/slots":
					w.Write([]byte(tt.list))
				default:
					http.NotFound(w, r)
				}
			}))
			defer s.Close()
			b, err := New(backends.Config{URL: s.URL, Model: "m"})
			if err != nil {
				t.Fatal(err)
			}
			b.shape(tt.engine)
			note, err := b.FlushCache(t.Context())
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("FlushCache: %v, want %q", err, tt.want)
			}
			if err == nil && !strings.Contains(note, "--cache-ram 0") {
				t.Errorf("the note is %q: it must say what is left", note)
			}
			if e, ok := errors.AsType[*backends.CacheError](err); ok != (tt.hint != "") || ok && !strings.Contains(e.Hint(), tt.hint) {
				t.Errorf("hint of %v, want %q", err, tt.hint)
			}
			if !slices.Equal(asked, tt.asked) {
				t.Errorf("asked %q, want %q", asked, tt.asked)
			}
		})
	}
}

func TestCacheStatus(t *testing.T) {
	const metrics = `# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total 602
llamacpp:prompt_tokens_cached_total 1198
llamacpp:requests_processing 2
llamacpp:requests_deferred 1
`
	const slots = `[{"id":0,"is_processing":true},{"id":1,"is_processing":false}]`
	for _, tt := range []struct {
		name   string
		engine string
		pages  map[string]string
		want   backends.CacheStatus
	}{
		{"all", llamaCpp, map[string]string{"/slots": slots, "/metrics": metrics},
			backends.CacheStatus{Known: true, Running: 1, Waiting: 1, Queries: traceformat.Some[int64](1800), Hits: traceformat.Some[int64](1198)}},
		{"no slots", llamaCpp, map[string]string{"/metrics": metrics},
			backends.CacheStatus{Known: true, Running: 2, Waiting: 1, Queries: traceformat.Some[int64](1800), Hits: traceformat.Some[int64](1198)}},
		{"no metrics", llamaCpp, map[string]string{"/slots": slots}, backends.CacheStatus{Known: true, Running: 1}},
		{"neither", llamaCpp, nil, backends.CacheStatus{}},
		{"another server", "", map[string]string{"/slots": slots, "/metrics": metrics}, backends.CacheStatus{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				page, ok := tt.pages[r.URL.Path]
				if !ok {
					http.NotFound(w, r)
					return
				}
				w.Write([]byte(page))
			}))
			defer s.Close()
			b, err := New(backends.Config{URL: s.URL, Model: "m"})
			if err != nil {
				t.Fatal(err)
			}
			b.shape(tt.engine)
			if got, err := b.CacheStatus(t.Context()); err != nil || got != tt.want {
				t.Errorf("CacheStatus = %+v, %v; want %+v", got, err, tt.want)
			}
		})
	}
}
