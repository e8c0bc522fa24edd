//go:build cloud

package objectstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"reprise/traceformat"
)

// uploadEnv makes the test binary upload a file and nothing else: a process to
// kill.
const uploadEnv = "REPRISE_TEST_UPLOAD"

func TestMain(m *testing.M) {
	if path, name, ok := strings.Cut(os.Getenv(uploadEnv), " "); ok {
		_, err := Store{}.Upload(context.Background(), path, name, false)
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// A gateway is a versitygw with a bucket called traces, behind a proxy that may
// answer in its place.
type gateway struct {
	dir   string
	gets  atomic.Int64
	parts atomic.Int64 // asked for
	taken atomic.Int64 // that the server has
	// answer, if it returns true, has answered.
	answer atomic.Pointer[func(w http.ResponseWriter, r *http.Request) bool]
}

// versitygw finds the server: testdata/storage/setup-versitygw.sh builds it.
func versitygw(t *testing.T) string {
	t.Helper()
	name := os.Getenv("REPRISE_VERSITYGW")
	if name == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Skip(err)
		}
		name = filepath.Join(cache, "reprise", "versitygw", "versitygw")
	}
	if _, err := os.Stat(name); err != nil {
		t.Skipf("no versitygw: testdata/storage/setup-versitygw.sh builds it (%v)", err)
	}
	return name
}

func startGateway(t *testing.T) *gateway {
	t.Helper()
	program := versitygw(t)
	g := &gateway{dir: t.TempDir()}
	if err := os.Mkdir(filepath.Join(g.dir, "traces"), 0o777); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	var log bytes.Buffer
	server := exec.Command(program, "--access", "test", "--secret", "testsecret", "--port", addr, "posix", g.dir)
	server.Stdout, server.Stderr = &log, &log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Process.Kill(); server.Wait() })
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("versitygw does not listen: %v\n%s", err, log.String())
		}
	}
	forward := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})
	forward.ErrorHandler = func(w http.ResponseWriter, r *http.Request, err error) { w.WriteHeader(http.StatusBadGateway) }
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method == http.MethodGet && r.Header.Get("Range") != "":
			g.gets.Add(1)
		case r.Method == http.MethodPut && r.URL.Query().Has("partNumber"):
			g.parts.Add(1)
		}
		if f := g.answer.Load(); f != nil && (*f)(w, r) {
			return
		}
		forward.ServeHTTP(w, r)
		if r.URL.Query().Has("partNumber") {
			g.taken.Add(1)
		}
	}))
	t.Cleanup(proxy.Close)
	for k, v := range map[string]string{
		"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "testsecret", "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": proxy.URL,
		"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull, "AWS_SESSION_TOKEN": "", "AWS_PROFILE": "",
	} {
		t.Setenv(k, v)
	}
	return g
}

func (g *gateway) answers(f func(w http.ResponseWriter, r *http.Request) bool) { g.answer.Store(&f) }

// refuse answers as S3 does.
func refuse(w http.ResponseWriter, status int, code string) bool {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>as the test says</Message></Error>", code)
	return true
}

// unfinished are the uploads that the server still holds parts of.
func unfinished(t *testing.T) (keys []string) {
	t.Helper()
	conf, err := config.LoadDefaultConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	bucket := "traces"
	out, err := s3.NewFromConfig(conf, func(o *s3.Options) { o.UsePathStyle = true }).ListMultipartUploads(t.Context(), &s3.ListMultipartUploadsInput{Bucket: &bucket})
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range out.Uploads {
		keys = append(keys, *u.Key)
	}
	return keys
}

func bigFile(t *testing.T, size int) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(path, bytes.Repeat([]byte("0123456789abcdef"), size/16), 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

func absent(t *testing.T, full string) {
	t.Helper()
	if err := (Store{}).Check(t.Context(), full, false); err != nil {
		t.Errorf("%s exists, or is not known: %v", full, err)
	}
}

// A trace goes to a real server and comes back, in few requests; one that is
// replaced while it is read is noticed by its ETag.
func TestS3(t *testing.T) {
	g := startGateway(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "t.parquet")
	rows := makeRows(140_000)
	write(t, path, nil, rows)
	const full = "s3://traces/day=1/t.parquet"
	for i, want := range []bool{false, true} { // the second time it is there
		if done, err := (Store{}).Upload(t.Context(), path, full, false); err != nil || done != want {
			t.Fatalf("upload %d = %t, %v", i, done, err)
		}
	}
	if err := (Store{}).Check(t.Context(), full, false); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Check of what exists = %v", err)
	}
	if left := unfinished(t); len(left) > 0 {
		t.Errorf("%q are not finished", left)
	}
	for _, name := range []string{full, "s3://traces", "s3://traces/day=*/*.parquet"} {
		g.gets.Store(0)
		got, err := read(t, name, &traceformat.OpenOptions{Columns: []string{"arrival_ns", "prompt_tokens"}})
		if err != nil || len(got) != len(rows) || got[77].PromptTokens != rows[77].PromptTokens {
			t.Fatalf("%s: %d rows, %v", name, len(got), err)
		}
		// Two to open; a dataset of one file opens it twice.
		if n := g.gets.Load(); n > 2*2+2 {
			t.Errorf("%s: %d range requests for two row groups", name, n)
		}
	}

	back := filepath.Join(dir, "back.parquet")
	if err := (Store{}).Download(t.Context(), full, back, false); err != nil {
		t.Fatal(err)
	}
	a, _ := os.ReadFile(path)
	if b, _ := os.ReadFile(back); !bytes.Equal(a, b) {
		t.Error("what came back differs")
	}

	// The server is slow for a moment.
	slow := int64(0)
	g.answers(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && atomic.AddInt64(&slow, 1)%3 == 1 {
			return refuse(w, http.StatusServiceUnavailable, "SlowDown")
		}
		return false
	})
	if got, err := read(t, full, &traceformat.OpenOptions{}); err != nil || len(got) != len(rows) {
		t.Errorf("with 503s in between: %d rows, %v", len(got), err)
	}
	g.answer.Store(nil)

	r, err := Open(full, &traceformat.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	write(t, path, nil, makeRows(130_000))
	if _, err := (Store{}).Upload(t.Context(), path, full, false); !errors.Is(err, fs.ErrExist) {
		t.Errorf("another content without force = %v", err)
	}
	if _, err := (Store{}).Upload(t.Context(), path, full, true); err != nil {
		t.Fatal(err)
	}
	var last error
	for _, err := range r.All() {
		last = err
	}
	if !errors.Is(last, ErrChanged) {
		t.Errorf("an object that was replaced = %v", last)
	}
}

// A bucket that refuses half way, an interrupt and kill -9 leave no object; the
// first two leave no parts either.
func TestS3UploadThatFails(t *testing.T) {
	g := startGateway(t)
	partSize = 5 << 20 // the least that S3 takes
	t.Cleanup(func() { partSize = 16 << 20 })
	path := bigFile(t, 12*partSize)
	g.answers(func(w http.ResponseWriter, r *http.Request) bool {
		return r.URL.Query().Get("partNumber") == "3" && refuse(w, http.StatusForbidden, "AccessDenied")
	})
	if _, err := (Store{}).Upload(t.Context(), path, "s3://traces/refused", false); !errors.Is(err, ErrDenied) {
		t.Errorf("a bucket that refuses half way = %v", err)
	}
	g.answer.Store(nil)
	absent(t, "s3://traces/refused")

	hold := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	g.answers(func(w http.ResponseWriter, r *http.Request) bool {
		if n := r.URL.Query().Get("partNumber"); n > "3" || len(n) > 1 {
			select {
			case <-hold:
			case <-ctx.Done():
			case <-r.Context().Done():
				return true
			}
		}
		return false
	})
	// The interrupt comes when the server has three parts.
	g.taken.Store(0)
	go func() {
		for g.taken.Load() < 3 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	if _, err := (Store{}).Upload(ctx, path, "s3://traces/interrupted", false); !errors.Is(err, context.Canceled) {
		t.Errorf("an interrupt = %v", err)
	}
	g.answers(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("partNumber") == "3" {
			select {
			case <-hold:
			case <-r.Context().Done():
				return true
			}
		}
		return false
	})
	absent(t, "s3://traces/interrupted")
	if left := unfinished(t); len(left) > 0 {
		t.Errorf("%q still hold parts", left)
	}

	g.parts.Store(0)
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), uploadEnv+"="+path+" s3://traces/killed")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(60 * time.Second); g.parts.Load() < 3; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the upload does not get to its third part")
		}
	}
	c.Process.Kill()
	c.Wait()
	close(hold)
	g.answer.Store(nil)
	time.Sleep(100 * time.Millisecond)
	absent(t, "s3://traces/killed")
	// And the same upload goes through afterwards.
	if _, err := (Store{}).Upload(t.Context(), path, "s3://traces/killed", false); err != nil {
		t.Error(err)
	}
}

// Credentials that are missing, wrong or expired and a bucket that refuses are
// told apart, at once.
func TestS3Credentials(t *testing.T) {
	g := startGateway(t)
	try := func() error {
		_, err := Open("s3://traces/x", &traceformat.OpenOptions{})
		return err
	}
	if err := try(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no object = %v", err)
	}
	if _, err := Open("s3://none/x", &traceformat.OpenOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no bucket = %v", err)
	}
	for _, c := range []struct {
		status     int
		code, want string
	}{
		{http.StatusForbidden, "AccessDenied", "access denied"},
		{http.StatusForbidden, "ExpiredToken", "expired"},
		{http.StatusForbidden, "InvalidAccessKeyId", "not accepted"},
	} {
		g.answers(func(w http.ResponseWriter, r *http.Request) bool {
			return r.Method == http.MethodGet && refuse(w, c.status, c.code)
		})
		if _, err := Open("s3://traces/x*", &traceformat.OpenOptions{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s = %v, want it to say %q", c.code, err, c.want)
		}
	}
	g.answer.Store(nil)
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
	if _, err := Open("s3://traces/x*", &traceformat.OpenOptions{}); !errors.Is(err, ErrCredentials) {
		t.Errorf("a wrong key = %v", err)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	if err := try(); !errors.Is(err, ErrCredentials) || !strings.Contains(err.Error(), "were found") {
		t.Errorf("no key = %v", err)
	}
}

func TestS3Folders(t *testing.T) {
	startGateway(t)
	testFolders(t)
}
