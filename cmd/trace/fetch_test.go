package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"reprise/internal/cli"
)

const fetchedCSV = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319600,3180,8\n"

// A public server in one process: what it serves, and which part of it first.
func fetchServer(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return s.URL
}

func registryFile(t *testing.T, list ...publicTrace) string {
	t.Helper()
	data, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "registry.json")
	if err := os.WriteFile(name, data, 0o666); err != nil {
		t.Fatal(err)
	}
	return name
}

func runTrace(args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	code = cli.Main(app(), append([]string{"trace"}, args...), &out, &err)
	return code, out.String(), err.String()
}

func known(url, content string) publicTrace {
	return publicTrace{Name: "x", URL: url + "/x.csv", Format: "azure", Licence: "CC0", Size: int64(len(content)), SHA256: fmt.Sprintf("%x", sha256.Sum256([]byte(content)))}
}

func serve(content string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "x.csv", time.Time{}, strings.NewReader(content))
	}
}

func TestFetch(t *testing.T) {
	t.Chdir(t.TempDir())
	url := fetchServer(t, serve(fetchedCSV))
	registry := registryFile(t, known(url, fetchedCSV))
	code, out, errs := runTrace("fetch", "x", "--registry", registry)
	if code != 0 || !strings.Contains(out, "as expected") {
		t.Fatalf("fetch = %d %q %q", code, out, errs)
	}
	data, err := os.ReadFile("x.csv")
	if err != nil || string(data) != fetchedCSV {
		t.Errorf("got %q, %v", data, err)
	}
	if _, err := os.Stat("x.csv.part"); err == nil {
		t.Error("the partial file is still there")
	}
	if code, _, errs := runTrace("fetch", "x", "--registry", registry); code != cli.Usage || !strings.Contains(errs, "x.csv exists") {
		t.Errorf("again = %d %q", code, errs)
	}
	if code, _, errs := runTrace("fetch", "x", "--registry", registry, "--force"); code != 0 {
		t.Errorf("with --force = %d %q", code, errs)
	}
}

// A download that was cut asks for the rest alone.
func TestFetchResumes(t *testing.T) {
	t.Chdir(t.TempDir())
	var ranges atomic.Value
	var cut atomic.Bool
	cut.Store(true)
	url := fetchServer(t, func(w http.ResponseWriter, r *http.Request) {
		ranges.Store(r.Header.Get("Range"))
		if cut.Load() {
			w.Header().Set("Content-Length", fmt.Sprint(len(fetchedCSV)))
			w.Write([]byte(fetchedCSV[:50]))
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		serve(fetchedCSV)(w, r)
	})
	registry := registryFile(t, known(url, fetchedCSV))
	if code, _, errs := runTrace("fetch", "x", "--registry", registry); code != cli.Failed {
		t.Fatalf("a cut download = %d %q", code, errs)
	}
	cut.Store(false)
	code, out, errs := runTrace("fetch", "x", "--registry", registry, "--json")
	if code != 0 || ranges.Load() != "bytes=50-" {
		t.Fatalf("resumed = %d %q %q, range %q", code, out, errs, ranges.Load())
	}
	var got struct {
		Size  int64 `json:"size"`
		Known bool  `json:"digest_was_known"`
	}
	if err := json.Unmarshal([]byte(out), &got); err != nil || got.Size != int64(len(fetchedCSV)) || !got.Known {
		t.Errorf("%+v, %v", got, err)
	}
}

// A server without ranges starts over, and a partial file of something else
// does not spoil the result.
func TestFetchStartsOver(t *testing.T) {
	t.Chdir(t.TempDir())
	url := fetchServer(t, func(w http.ResponseWriter, r *http.Request) { w.Write([]byte(fetchedCSV)) })
	if err := os.WriteFile("x.csv.part", []byte("rubbish"), 0o666); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := runTrace("fetch", "x", "--registry", registryFile(t, known(url, fetchedCSV))); code != 0 {
		t.Errorf("= %d %q", code, errs)
	}
}

func TestFetchRefuses(t *testing.T) {
	t.Chdir(t.TempDir())
	good := fetchServer(t, serve(fetchedCSV))
	other := fetchServer(t, serve(strings.Replace(fetchedCSV, "4808", "4809", 1)))
	html := fetchServer(t, serve("<html>not found</html>"))
	gone := fetchServer(t, http.NotFound)
	silent := fetchServer(t, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	for _, tt := range []struct {
		name  string
		trace publicTrace
		args  []string
		code  int
		want  string
	}{
		{"another digest", known(other, fetchedCSV), nil, cli.Failed, "sha256 is"},
		{"another size", known(good, fetchedCSV+"x"), nil, cli.Failed, "bytes arrived, want"},
		{"larger than it should be", known(good, fetchedCSV[:40]), nil, cli.Failed, "larger than 40 B"},
		{"a page in place of an unknown file", publicTrace{Name: "x", URL: html + "/x.csv", Format: "azure"}, nil, cli.Failed, "does not read as azure"},
		{"not there", known(gone, fetchedCSV), nil, cli.Failed, "404 Not Found"},
		{"no server", known(closed.URL, fetchedCSV), nil, cli.Failed, "cannot download from"},
		{"a silent server", known(silent, fetchedCSV), []string{"--timeout", "50ms"}, cli.Failed, "gone silent"},
		{"standard output", known(good, fetchedCSV), []string{"-o", "-"}, cli.Usage, "verifies a file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			os.Remove("x.csv.part")
			code, _, errs := runTrace(append([]string{"fetch", "x", "--registry", registryFile(t, tt.trace)}, tt.args...)...)
			if code != tt.code || !strings.Contains(errs, tt.want) {
				t.Errorf("= %d %q, want %d and %q", code, errs, tt.code, tt.want)
			}
			if _, err := os.Stat("x.csv"); err == nil {
				t.Error("the file is there")
			}
		})
	}
}

func TestFetchUnknownDigest(t *testing.T) {
	t.Chdir(t.TempDir())
	url := fetchServer(t, serve(fetchedCSV))
	code, out, errs := runTrace("fetch", "x", "-o", "y.csv", "--registry", registryFile(t, publicTrace{Name: "x", URL: url + "/x.csv", Format: "azure"}))
	want := fmt.Sprintf("%x", sha256.Sum256([]byte(fetchedCSV)))
	if code != 0 || !strings.Contains(out, want) || !strings.Contains(out, "not known here before") {
		t.Errorf("= %d %q %q", code, out, errs)
	}
}

func TestFetchUsage(t *testing.T) {
	if code, out, _ := runTrace("fetch"); code != 0 || !strings.Contains(out, "azure-conv") || !strings.Contains(out, "CC-BY 4.0") {
		t.Errorf("list = %d %q", code, out)
	}
	if code, _, errs := runTrace("fetch", "nothing"); code != cli.Usage || !strings.Contains(errs, "the names are azure-conv") {
		t.Errorf("unknown name = %d %q", code, errs)
	}
	if code, _, errs := runTrace("fetch", "--registry", "nowhere.json"); code != cli.Usage {
		t.Errorf("no registry = %d %q", code, errs)
	}
	bad := registryFile(t, publicTrace{Name: "x", URL: "file:///etc/passwd"})
	if code, _, errs := runTrace("fetch", "x", "--registry", bad); code != cli.Usage || !strings.Contains(errs, "http address") {
		t.Errorf("file address = %d %q", code, errs)
	}
	// The built-in list names each trace once and has whole digests.
	seen := map[string]bool{}
	for _, p := range publicTraces {
		if seen[p.Name] || p.SHA256 != "" && (len(p.SHA256) != 64 || p.Size == 0) || !strings.HasPrefix(p.URL, "https://") {
			t.Errorf("entry %+v", p)
		}
		seen[p.Name] = true
	}
}
