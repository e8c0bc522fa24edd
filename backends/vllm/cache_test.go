package vllm

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"reprise/backends"
	"reprise/traceformat"
)

// server answers with pages by method and path, and with 404 as vLLM has it.
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
	const reset = "POST /reset_prefix_cache"
	for _, tt := range []struct {
		name   string
		pages  map[string]string
		status int
		busy   bool
		want   string // in the error
		hint   string
	}{
		{"flushed", map[string]string{reset: `{"success":true}`}, 200, false, "", ""},
		{"busy, under status 200", map[string]string{reset: `{"success":false}`}, 200, true, "while requests are running", ""},
		{"not in development mode", nil, 200, false, "there is no /reset_prefix_cache", "VLLM_SERVER_DEV_MODE=1"},
		{"an older release, which says nothing", map[string]string{reset: ""}, 200, false, "does not say whether", "--cache salt"},
		{"another body", map[string]string{reset: `{"ok":true}`}, 200, false, "does not say whether", "--cache salt"},
		{"dead", map[string]string{reset: `{"error":{"message":"gone"}}`}, 500, false, "status 500: gone", ""},
		{"a key is needed", map[string]string{reset: `{"error":"Unauthorized"}`}, 401, false, "is an API key needed?", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			note, err := server(t, tt.pages, tt.status).FlushCache(t.Context())
			if note != "" || errors.Is(err, backends.ErrCacheBusy) != tt.busy || (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("FlushCache = %q, %v; want %q, busy %t", note, err, tt.want, tt.busy)
			}
			if e, ok := errors.AsType[*backends.CacheError](err); ok != (tt.hint != "") || ok && !strings.Contains(e.Hint(), tt.hint) {
				t.Errorf("hint of %v, want %q", err, tt.hint)
			}
		})
	}
	b, err := New(backends.Config{URL: "http://127.0.0.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.FlushCache(t.Context()); err == nil || errors.Is(err, backends.ErrCacheBusy) {
		t.Errorf("a server that is not there: %v", err)
	}
	if _, err := b.CacheStatus(t.Context()); err == nil {
		t.Error("the status of a server that is not there: no error")
	}
}

func TestCacheStatus(t *testing.T) {
	// Lines of a recording, with a second engine beside the first.
	const page = `# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
vllm:num_requests_running{engine="1",model_name="tiny"} 1.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 2.0
vllm:prefix_cache_queries_total{engine="0",model_name="tiny"} 286345.0
vllm:prefix_cache_queries_created{engine="0",model_name="tiny"} 1.7954263442889209e+09
vllm:prefix_cache_hits_total{engine="0",model_name="tiny"} 98304.0
`
	want := backends.CacheStatus{Known: true, Running: 4, Waiting: 2, Queries: traceformat.Some[int64](286345), Hits: traceformat.Some[int64](98304)}
	for _, tt := range []struct {
		name, page string
		want       backends.CacheStatus
	}{
		{"recorded", page, want},
		{"names of older releases", strings.ReplaceAll(page, "vllm:prefix_cache", "vllm:gpu_prefix_cache"), want},
		{"another page", "up 1\n", backends.CacheStatus{}},
	} {
		if got, err := server(t, map[string]string{"GET /metrics": tt.page}, 200).CacheStatus(t.Context()); err != nil || got != tt.want {
			t.Errorf("%s: CacheStatus = %+v, %v; want %+v", tt.name, got, err, tt.want)
		}
	}
	if got, err := server(t, nil, 200).CacheStatus(t.Context()); err != nil || got != (backends.CacheStatus{}) {
		t.Errorf("without /metrics: %+v, %v", got, err)
	}
}

func TestCacheInfo(t *testing.T) {
	for _, tt := range []struct {
		block, blocks, enabled string
		want                   backends.CacheInfo
	}{
		{"128", "32768", "True", backends.CacheInfo{Block: 128, Tokens: 32767 * 128}},
		{"16", "None", "False", backends.CacheInfo{Block: 16, Off: true}},
		{"-16", "-4", "", backends.CacheInfo{}},
		{"", "", "", backends.CacheInfo{}},
	} {
		if got := cacheInfo(map[string]string{"block_size": tt.block, "num_gpu_blocks": tt.blocks, "enable_prefix_caching": tt.enabled}); got != tt.want {
			t.Errorf("cacheInfo(%s, %s, %s) = %+v, want %+v", tt.block, tt.blocks, tt.enabled, got, tt.want)
		}
	}
}
