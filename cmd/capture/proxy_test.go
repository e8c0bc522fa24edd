package main

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"reprise/internal/cli"
	"reprise/traceformat"
)

// A safeBuffer takes what several goroutines print.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func address(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// The whole command: it records, says how it is, and ends well on SIGTERM; and
// nothing of what passed through it is in anything that it left behind.
func TestProxyCommand(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a process cannot send itself SIGTERM here")
	}
	canary := func() string {
		b := make([]byte, 16)
		rand.Read(b)
		return hex.EncodeToString(b)
	}
	prompt, answer, header, query, key, model := canary(), canary(), canary(), canary(), canary(), "m-1"
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprintf(w, "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":%q}}]}\n\n", answer)
		w.(http.Flusher).Flush()
		if r.Header.Get("X-Break") != "" {
			panic(http.ErrAbortHandler)
		}
		io.WriteString(w, "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n")
	}))
	defer up.Close()

	dir := t.TempDir()
	out := filepath.Join(dir, "trace.parquet")
	listen, admin := address(t), address(t)
	var stderr safeBuffer
	status := make(chan int, 1)
	go func() {
		status <- cli.Main(app(), []string{"capture", "proxy", "--listen", listen, "--upstream", up.URL, "--admin", admin, "-o", out, "--drain", "5s"}, io.Discard, &stderr)
	}()
	wait(t, func() bool {
		resp, err := http.Get("http://" + admin + "/healthz")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil && resp.StatusCode == 200
	})
	const n = 5
	for i := range n + 2 {
		body := fmt.Sprintf(`{"model":%q,"stream":true,"user":%q,"messages":[{"role":"user","content":%q}]}`, model, key, prompt)
		if i == n {
			body = body[:len(body)-20] // malformed
		}
		req, _ := http.NewRequest("POST", "http://"+listen+"/v1/chat/completions?q="+query, strings.NewReader(body))
		req.Header.Set("Authorization", "Bearer "+key)
		req.Header.Set("X-Header", header)
		req.Header.Set("X-Session-Id", header)
		if i == n+1 {
			req.Header.Set("X-Break", "1")
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if !strings.Contains(string(b), answer) {
			t.Fatalf("the answer is not the upstream's: %q", b)
		}
	}
	// A request that is no request, and one that net/http complains about.
	if c, err := net.Dial("tcp", listen); err == nil {
		fmt.Fprintf(c, "GET /%s HTTP/1.1\r\n%s\r\n\r\n", query, header)
		io.Copy(io.Discard, c)
		c.Close()
	}
	resp, err := http.Get("http://" + admin + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	metrics, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	for _, want := range []string{"capture_recording 1\n", "capture_proxy_requests_total 7\n", `capture_proxy_upstream_errors_total{reason="reset"} 1`} {
		if !strings.Contains(string(metrics), want) {
			t.Errorf("the metrics lack %q", want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := <-status; code != 0 {
		t.Fatalf("exit status %d, stderr:\n%s", code, stderr.String())
	}
	r, err := traceformat.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if h := r.Header(); h.Rows.Seen != n+2 || h.Origin.Program != "capture proxy" || h.Origin.Vantage != "proxy" {
		t.Errorf("header = %+v", h)
	}
	leaks := map[string][]byte{"stderr": []byte(stderr.String()), "metrics": metrics}
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if info, err := d.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", d.Name(), info.Mode())
		}
		b, err := os.ReadFile(path)
		leaks[d.Name()] = b
		return err
	})
	// Parquet packs its pages: the rows are looked at as text as well.
	for row, err := range r.All() {
		if err != nil {
			t.Fatal(err)
		}
		leaks["rows"] = fmt.Appendf(leaks["rows"], "%+v\n", *row)
	}
	for where, b := range leaks {
		for what, secret := range map[string]string{"prompt": prompt, "answer": answer, "header": header, "query": query, "key": key, "address": listen} {
			if bytes.Contains(b, []byte(secret)) {
				t.Errorf("the %s is in %s", what, where)
			}
		}
	}
}

func wait(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the command does not come up")
		}
	}
}

func TestProxyUsage(t *testing.T) {
	tests := []struct {
		args string
		want string
	}{
		{"", "which service"},
		{"--upstream http://a:1/path --listen :0", "has a path"},
		{"--upstream ftp://a:1 --listen :0", "scheme"},
		{"--upstream http://u:p@a:1 --listen :0", "credentials"},
		{"--upstream http://a:1", "where to listen"},
		{"--upstream http://a:1 --listen :0 -o -", "takes a file"},
		{"--upstream http://a:1 --listen :0 -o /nowhere/at/all.parquet", "no such folder"},
		{"--upstream http://a:1 --insecure --listen :0", "https upstream"},
		{"--upstream http://a:1 --listen :0 --cert x", "certificate and its key"},
		{"--upstream http://a:1 --listen :0 --max-connections 0", "at least 1"},
		{"--upstream http://a:1 --listen :0 --roll-size big -o x.parquet", "--roll-size"},
		{"--upstream http://a:1 --listen :0 extra", "no arguments"},
	}
	for _, tt := range tests {
		var stderr safeBuffer
		code := cli.Main(app(), append([]string{"capture", "proxy"}, strings.Fields(tt.args)...), io.Discard, &stderr)
		if code != cli.Usage || !strings.Contains(stderr.String(), tt.want) {
			t.Errorf("capture proxy %s: status %d, %q; want %d and %q", tt.args, code, stderr.String(), cli.Usage, tt.want)
		}
	}
}
