package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"reprise/internal/cli"
	"reprise/traceformat"
)

// What follows runs nginx, HAProxy and Caddy, as Debian packages them, in front
// of a server that streams, and compares what their logs become with what the
// client knows. Other ways of recording the same traffic belong beside it:
// streamingServer is the engine, startFronts the gateways, drive the client.

// streamingServer is an engine: it streams events, 10 ms apart, and answers
// probes.
func streamingServer(t *testing.T) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		switch {
		case r.Method != http.MethodPost:
			fmt.Fprint(w, "{}")
			return
		case r.URL.Query().Has("bad"):
			http.Error(w, `{"error":{"message":"no"}}`, http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		flush := http.NewResponseController(w)
		for range streamEvents {
			if _, err := fmt.Fprint(w, "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"tok \"}}]}\n\n"); err != nil {
				return
			}
			if flush.Flush() != nil {
				return
			}
			select {
			case <-r.Context().Done():
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
		fmt.Fprint(w, "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":60,\"total_tokens\":71}}\n\ndata: [DONE]\n\n")
	}))
	t.Cleanup(s.Close)
	return s
}

const streamEvents = 60

// A front is a gateway that runs in front of an engine and writes a log.
type front struct {
	name   string
	url    string
	log    string   // file, whole after stop
	args   []string // that capture logs needs to read it
	aborts bool     // the log tells them
	stop   func()   // ends it and waits for its log
}

// startFronts starts each gateway that is installed, on ports of loopback that
// are free, in front of the server at upstream (host:port).
func startFronts(t *testing.T, upstream string) []*front {
	t.Helper()
	var fronts []*front
	for _, start := range []func(*testing.T, string) *front{startNginx, startHAProxy, startCaddy} {
		if f := start(t, upstream); f != nil {
			fronts = append(fronts, f)
		}
	}
	if len(fronts) == 0 {
		t.Skip("none of nginx, haproxy and caddy is installed: apt-get install nginx haproxy caddy")
	}
	return fronts
}

// installed looks for a program, in the places of system programs as well.
func installed(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range []string{"", "/usr/sbin/", "/usr/local/sbin/", "/usr/bin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path
		}
	}
	t.Logf("%s is not installed: its part is left out", name)
	return ""
}

// freePort is a port of loopback that was free a moment ago.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// runFront starts a program and waits until it answers at port. The returned
// function ends it.
func runFront(t *testing.T, port int, dir, program string, args ...string) (stop func()) {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TZ=UTC", "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	stop = sync.OnceFunc(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-exited:
		case <-time.After(10 * time.Second):
			cmd.Process.Kill()
			<-exited
		}
	})
	t.Cleanup(stop)
	address := fmt.Sprintf("127.0.0.1:%d", port)
	for deadline := time.Now().Add(20 * time.Second); ; {
		c, err := net.DialTimeout("tcp", address, time.Second)
		if err == nil {
			c.Close()
			return stop
		}
		select {
		case err := <-exited:
			exited <- err
			t.Fatalf("%s ended at once: %v\n%s", program, err, output.String())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not answer at %s", program, address)
		}
	}
}

func writeConfig(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func startNginx(t *testing.T, upstream string) *front {
	program := installed(t, "nginx")
	if program == "" {
		return nil
	}
	dir, port := t.TempDir(), freePort(t)
	log := filepath.Join(dir, "access.log")
	conf := writeConfig(t, dir, "nginx.conf", fmt.Sprintf(`daemon off; worker_processes 1; pid %[1]s/nginx.pid; error_log %[1]s/nginx.err;
events { worker_connections 256; }
http {
 log_format llm escape=json '{"msec":"$msec","request_time":"$request_time","remote_addr":"$remote_addr","request_method":"$request_method",'
  '"request_uri":"$request_uri","status":"$status","upstream_header_time":"$upstream_header_time","upstream_status":"$upstream_status",'
  '"request_completion":"$request_completion","http_x_session_id":"$http_x_session_id"}';
 access_log %[2]s llm;
 client_body_temp_path %[1]s/1; proxy_temp_path %[1]s/2; fastcgi_temp_path %[1]s/3; uwsgi_temp_path %[1]s/4; scgi_temp_path %[1]s/5;
 server { listen 127.0.0.1:%[3]d; location / { proxy_pass http://%[4]s; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; } }
}
`, dir, log, port, upstream))
	stop := runFront(t, port, dir, program, "-c", conf, "-p", dir)
	return &front{name: "nginx", url: fmt.Sprintf("http://127.0.0.1:%d", port), log: log, aborts: true, stop: stop}
}

func startCaddy(t *testing.T, upstream string) *front {
	program := installed(t, "caddy")
	if program == "" {
		return nil
	}
	// An answer that comes at once can overtake the end of the request's body
	// inside of a Caddy built with an older Go: its server closes the body as it
	// begins to answer, its transport, still to see the body's end, takes that
	// for a failure and hangs up on the engine ("use of closed network
	// connection"), and the client gets the first event and a regular end.
	// Bodies that Caddy has read before it asks the engine cannot do that.
	buffers := "request_buffers 64KiB"
	if version, err := exec.Command(program, "version").Output(); err != nil {
		t.Fatal(err)
	} else if old := strings.TrimPrefix(string(version), "v"); strings.HasPrefix(old, "2.5.") || strings.HasPrefix(old, "2.6.") {
		buffers = "buffer_requests"
	}
	dir, port := t.TempDir(), freePort(t)
	log := filepath.Join(dir, "access.log")
	conf := writeConfig(t, dir, "Caddyfile", fmt.Sprintf("{\n admin off\n auto_https off\n}\nhttp://:%d {\n bind 127.0.0.1\n log {\n  output file %s\n  format json\n }\n reverse_proxy %s {\n  flush_interval -1\n  %s\n }\n}\n", port, log, upstream, buffers))
	stop := runFront(t, port, dir, program, "run", "--config", conf, "--adapter", "caddyfile")
	return &front{name: "caddy", url: fmt.Sprintf("http://127.0.0.1:%d", port), log: log, stop: stop}
}

func startHAProxy(t *testing.T, upstream string) *front {
	program := installed(t, "haproxy")
	if program == "" {
		return nil
	}
	dir, port := t.TempDir(), freePort(t)
	syslog, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(dir, "haproxy.log")
	file, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	collected := make(chan struct{})
	go func() {
		defer close(collected)
		w := bufio.NewWriter(file)
		defer file.Close()
		defer w.Flush()
		b := make([]byte, 64<<10)
		for {
			n, _, err := syslog.ReadFrom(b)
			if err != nil {
				return
			}
			w.Write(append(bytes.TrimRight(b[:n], "\n\x00"), '\n'))
		}
	}()
	conf := writeConfig(t, dir, "haproxy.cfg", fmt.Sprintf(`global
  log %s local0
defaults
  mode http
  log global
  option httplog
  option http-no-delay
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend fe
  bind 127.0.0.1:%d
  default_backend be
backend be
  server s1 %s
`, syslog.LocalAddr(), port, upstream))
	end := runFront(t, port, dir, program, "-f", conf)
	stop := sync.OnceFunc(func() {
		end()
		time.Sleep(100 * time.Millisecond) // datagrams on their way
		syslog.Close()
		<-collected
	})
	t.Cleanup(stop)
	return &front{name: "haproxy", url: fmt.Sprintf("http://127.0.0.1:%d", port), log: log, args: []string{"--tz", "UTC"}, aborts: true, stop: stop}
}

// A truth is what the client knows of a request to a model.
type truth struct {
	at      time.Time
	status  int
	aborted bool
}

// drive sends n requests to a model, in turn, of which every fifth is given up
// and every seventh refused, and probes between them that belong in no trace.
func drive(t *testing.T, url string, n int) []truth {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	var truths []truth
	for i := range n {
		for _, probe := range []string{"/health", "/metrics", "/v1/models"} {
			if i%10 != 0 {
				break
			}
			resp, err := client.Get(url + probe)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		path := "/v1/chat/completions"
		if i%7 == 3 {
			path += "?bad"
		}
		ctx, cancel := context.WithCancel(t.Context())
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+path, strings.NewReader(`{"model":"m","stream":true,"messages":[]}`))
		if err != nil {
			t.Fatal(err)
		}
		one := truth{at: time.Now()}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		one.status = resp.StatusCode
		if i%5 == 2 && resp.StatusCode == http.StatusOK {
			one.aborted = true
			_, err = io.ReadFull(resp.Body, make([]byte, 200))
			cancel()
		} else {
			err = readAnswer(resp)
		}
		if err != nil {
			t.Errorf("request %d: %v", i, err)
		}
		resp.Body.Close()
		cancel()
		truths = append(truths, one)
		time.Sleep(5 * time.Millisecond)
	}
	return truths
}

// readAnswer reads the rest of an answer, and returns an error if a stream has no
// regular end.
func readAnswer(resp *http.Response) error {
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode == http.StatusOK && !bytes.HasSuffix(b, []byte("[DONE]\n\n")) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return fmt.Errorf("broken off by the gateway after %d bytes: %w", len(b), err)
	}
	return nil
}

// readTrace reads the rows and the header of a trace.
func readTrace(t *testing.T, path string) (*traceformat.Header, []traceformat.Row) {
	t.Helper()
	r, err := traceformat.OpenFile(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var rows []traceformat.Row
	for row, err := range r.All() {
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, *row.Clone())
	}
	return r.Header().Clone(), rows
}

// TestLogsOfRealGateways compares the traces of gateways' logs with the truth of
// the client: how many requests, when each came, how it ended.
func TestLogsOfRealGateways(t *testing.T) {
	if testing.Short() {
		t.Skip("starts nginx, HAProxy and Caddy")
	}
	server := streamingServer(t)
	for _, f := range startFronts(t, strings.TrimPrefix(server.URL, "http://")) {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			truths := drive(t, f.url, 20)
			// A gateway may notice late that the client of its last request has gone.
			time.Sleep(time.Second)
			f.stop()
			out := filepath.Join(t.TempDir(), "trace.parquet")
			var stderr bytes.Buffer
			args := append([]string{"capture", "logs", f.log, "-o", out}, f.args...)
			if code := cli.Main(app(), args, io.Discard, &stderr); code != 0 {
				t.Fatalf("exit status %d\n%s", code, stderr.String())
			}
			h, rows := readTrace(t, out)
			if len(rows) != len(truths) {
				t.Fatalf("%d rows of %d requests\n%s", len(rows), len(truths), stderr.String())
			}
			if sum := h.Rows.Recorded + dropped(h.Rows.Dropped); h.Rows.Seen != sum || h.Rows.Seen < int64(len(truths)+6) {
				t.Errorf("seen %d, recorded and dropped %d: %v", h.Rows.Seen, sum, h.Rows.Dropped)
			}
			for reason, want := range map[string]int64{"health_check": 2, "metrics": 2, "model_list": 2} {
				if h.Rows.Dropped[reason] != want {
					t.Errorf("%d under %s, want %d", h.Rows.Dropped[reason], reason, want)
				}
			}
			var errs []time.Duration
			for i, row := range rows {
				errs = append(errs, h.Start.Add(row.Arrival).Sub(truths[i].at).Abs())
				want := traceformat.ResultOK
				switch {
				case truths[i].aborted && f.aborts:
					want = traceformat.ResultClientAbort
				case truths[i].status >= 400:
					want = traceformat.ResultRejected
				}
				if row.Result != want {
					t.Errorf("request %d: outcome %q, want %q", i, row.Result, want)
				}
				if row.Status.V != int16(truths[i].status) {
					t.Errorf("request %d: status %v, want %d", i, row.Status, truths[i].status)
				}
				if row.Endpoint != traceformat.EndpointChat || row.TTFT.OK || row.PromptTokens.OK {
					t.Errorf("request %d: %s: an access log knows no TTFT and no tokens", i, row.AppendJSON(nil))
				}
			}
			slices.Sort(errs)
			t.Logf("arrivals differ from the client's by %v (median), %v (most)", errs[len(errs)/2], errs[len(errs)-1])
			// A stream takes 600 ms: had the end been taken for the start, all
			// would be off by that. What is below depends on how busy the machine
			// is, and is for the benchmark.
			if errs[len(errs)/2] > 200*time.Millisecond {
				t.Errorf("arrivals differ from the client's by %v (median)", errs[len(errs)/2])
			}
		})
	}
}

func dropped(reasons map[string]int64) (n int64) {
	for _, v := range reasons {
		n += v
	}
	return n
}
