package sglang

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"reprise/backends"
	"reprise/traceformat"
)

func server(t *testing.T, pages map[string]string, status int) *Backend {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		page, ok := pages[r.Method+" "+r.URL.Path]
		if !ok {
			http.Error(w, `{"detail":"Not Found"}`, http.StatusNotFound)
			return
		}
		w.WriteHeader(status)
		w.Write([]byte(page))
	}))
	t.Cleanup(s.Close)
	b, err := New(backends.Config{URL: s.URL})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFlushCache(t *testing.T) {
	const flush = "POST /flush_cache"
	for _, tt := range []struct {
		name   string
		pages  map[string]string
		status int
		busy   bool
		want   string
	}{
		{"flushed", map[string]string{flush: "Cache flushed.\nPlease check backend logs for more details. (When there are running or waiting requests, the operation will not be performed.)\n"}, 200, false, ""},
		{"busy", map[string]string{flush: "Flush cache failed.\n"}, 400, true, "while requests are running"},
		{"a gateway", nil, 200, false, "there is no /flush_cache"},
		{"dead", map[string]string{flush: `{"error":{"message":"gone"}}`}, 500, false, "status 500: gone"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			note, err := server(t, tt.pages, tt.status).FlushCache(t.Context())
			if note != "" || errors.Is(err, backends.ErrCacheBusy) != tt.busy || (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("FlushCache = %q, %v; want %q, busy %t", note, err, tt.want, tt.busy)
			}
		})
	}
}

func TestCacheStatus(t *testing.T) {
	// Lines of recordings, cut down, with a second rank beside the first.
	loads := `{"version":"0.5.23","loads":[{"dp_rank":0,"num_running_reqs":3,"num_waiting_reqs":1,"queues":{"waiting":1}},{"dp_rank":1,"num_running_reqs":1,"num_waiting_reqs":0}]}`
	metrics := `sglang:prompt_tokens_total{engine_type="unified",is_streaming="false",model_name="tiny"} 8027.0
sglang:prompt_tokens_total{engine_type="unified",is_streaming="true",model_name="tiny"} 26.0
sglang:cached_tokens_total{cache_source="device",engine_type="unified",model_name="tiny"} 4016.0
`
	for _, tt := range []struct {
		name  string
		pages map[string]string
		want  backends.CacheStatus
	}{
		{"recorded", map[string]string{"GET /v1/loads": loads, "GET /metrics": metrics},
			backends.CacheStatus{Known: true, Running: 4, Waiting: 1, Queries: traceformat.Some[int64](8053), Hits: traceformat.Some[int64](4016)}},
		{"just started", map[string]string{"GET /v1/loads": loads, "GET /metrics": "\n"},
			backends.CacheStatus{Known: true, Running: 4, Waiting: 1, Queries: traceformat.Some[int64](0), Hits: traceformat.Some[int64](0)}},
		{"no metrics", map[string]string{"GET /v1/loads": loads}, backends.CacheStatus{Known: true, Running: 4, Waiting: 1}},
		{"nothing", nil, backends.CacheStatus{}},
	} {
		if got, err := server(t, tt.pages, 200).CacheStatus(t.Context()); err != nil || got != tt.want {
			t.Errorf("%s: CacheStatus = %+v, %v; want %+v", tt.name, got, err, tt.want)
		}
	}
	if _, err := server(t, map[string]string{"GET /v1/loads": "{"}, 200).CacheStatus(t.Context()); err == nil {
		t.Error("damaged loads: no error")
	}
}
