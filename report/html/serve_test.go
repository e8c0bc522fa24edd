package html

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// served is a folder with two runs, and what lies outside it or is none.
func served(t *testing.T) (*httptest.Server, string) {
	t.Helper()
	top := t.TempDir()
	root := filepath.Join(top, "runs")
	a, b, outside := made(t, 400, 1, 1), made(t, 400, 2, 1.2), made(t, 400, 3, 1)
	for from, to := range map[string]string{a: filepath.Join(root, "x", "a & b"), b: filepath.Join(root, "b"), outside: filepath.Join(top, "outside")} {
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(top, "outside"), filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	// A run whose rows are elsewhere.
	sly := filepath.Join(root, "sly")
	manifest, err := os.ReadFile(filepath.Join(root, "b", "run.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(sly, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(sly, "run.json"), manifest, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(top, "outside", "trace.parquet"), filepath.Join(sly, "trace.parquet")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(root, "broken"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "broken", "run.json"), []byte("<script>"), 0o644); err != nil {
		t.Fatal(err)
	}
	s, err := NewServer(root)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return server, root
}

func TestServe(t *testing.T) {
	server, root := served(t)
	q := func(path string, kv ...string) string {
		v := url.Values{}
		for i := 0; i < len(kv); i += 2 {
			v.Set(kv[i], kv[i+1])
		}
		return path + "?" + v.Encode()
	}
	for _, tt := range []struct {
		name, path, method, host string
		code                     int
		holds, lacks             string
	}{
		{"the list", "/", "GET", "", 200, "a &amp; b", "outside"},
		{"a link is not followed", "/", "GET", "", 200, "broken: its run.json cannot be read", `value="link"`},
		{"nor one of rows", "/", "GET", "", 200, `value="b"`, `value="sly"`},
		{"a run", q("/run", "dir", "x/a & b"), "GET", "", 200, "<strong>", root},
		{"a comparison", q("/compare", "a", "x/a & b", "b", "b"), "GET", "", 200, "Was it the same work?", root},
		{"one run twice", q("/compare", "a", "b", "b", "b"), "GET", "", 200, "No difference", root},
		{"no way out", q("/run", "dir", "../outside"), "GET", "", 404, "no such run", "<"},
		{"nor through a link", q("/run", "dir", "link"), "GET", "", 404, "no such run", "<"},
		{"nor by an absolute name", q("/run", "dir", filepath.Join(filepath.Dir(root), "outside")), "GET", "", 404, "no such run", "<"},
		{"nor by another spelling", q("/run", "dir", "x/../b"), "GET", "", 404, "no such run", "<"},
		{"a broken run", q("/run", "dir", "broken"), "GET", "", 404, "no such run", "<"},
		{"half a choice", q("/compare", "a", "b"), "GET", "", 404, "choose", "<"},
		{"files are not served", "/b/trace.parquet", "GET", "", 404, "no such page", "<"},
		{"nothing is written", "/", "POST", "", 405, "only shows", "<"},
		{"a name that was pointed here", "/", "GET", "evil.example:8377", 421, "localhost", "<"},
		{"localhost", "/", "GET", "localhost:8377", 200, "Runs", ""},
		{"an address", "/", "GET", "[::1]:8377", 200, "Runs", ""},
		{"an icon", "/favicon.ico", "GET", "", 204, "", ""},
		{"a head", "/", "HEAD", "", 200, "", "Runs"},
	} {
		r, err := http.NewRequestWithContext(t.Context(), tt.method, server.URL+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if tt.host != "" {
			r.Host = tt.host
		}
		answer, err := server.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil || answer.StatusCode != tt.code || !strings.Contains(string(body), tt.holds) || tt.lacks != "" && strings.Contains(string(body), tt.lacks) {
			t.Errorf("%s: %s %s = %d %.300q, %v", tt.name, tt.method, tt.path, answer.StatusCode, body, err)
		}
		if csp := answer.Header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'") || answer.Header.Get("X-Content-Type-Options") != "nosniff" || len(answer.Header["Access-Control-Allow-Origin"]) > 0 {
			t.Errorf("%s: headers %v", tt.name, answer.Header)
		}
		if strings.Contains(string(body), "<img src=x") || strings.Contains(string(body), "<script>alert") {
			t.Errorf("%s: a name is markup", tt.name)
		}
	}
	if _, err := NewServer(filepath.Join(root, "b", "run.json")); err == nil {
		t.Error("a file is served as a folder")
	}
}

// Choosing two runs in a browser compares them.
func TestServeInABrowser(t *testing.T) {
	ctx := browser(t)
	server, _ := served(t)
	asked, said := watch(t, ctx)
	do(t, ctx, chromedp.EmulateViewport(390, 800), chromedp.Navigate(server.URL))
	if over := eval[int](t, ctx, `document.documentElement.scrollWidth - innerWidth`); over > 0 {
		t.Errorf("%d pixels wider than a phone", over)
	}
	accessible(t, ctx, "list")
	eval[chromedp.Void](t, ctx, `document.querySelector("form button[type=submit]").click()`)
	until(t, ctx, `document.readyState === "complete" && !!document.querySelector("#work")`)
	if n := eval[int](t, ctx, `document.querySelectorAll(".is-live canvas").length`); n < 8 {
		t.Errorf("%d charts", n)
	}
	for _, u := range asked() {
		if !strings.HasPrefix(u, server.URL) {
			t.Errorf("asked for %s", u)
		}
	}
	if s := said(); len(s) > 0 {
		t.Errorf("the console says %q", s)
	}
}
