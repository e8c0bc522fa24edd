package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"reprise/capture"
	"reprise/traceformat"
)

// What follows records the same traffic in four ways at once: the gateway's own
// log, packets before and behind it, and two recording proxies in the chain
//
//	client -> gateway -> proxy -> proxy that samples -> engine
//
// The client knows what it did: the limit of tokens that a request names is its
// number, from firstID on.
const firstID = 1000

// fixedKey makes what is sampled the same in every run.
const fixedKey = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\n"

func keyFile(t *testing.T, dir string) string {
	t.Helper()
	name := filepath.Join(dir, "key")
	if err := os.WriteFile(name, []byte(fixedKey), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// A background is a command of this program that runs until it is told to end.
type background struct {
	cmd    *exec.Cmd
	stdout bytes.Buffer
	stderr safeBuffer
	done   chan error
}

// startCapture runs "capture args..." as a process of its own and waits until it
// has printed ready.
func startCapture(t *testing.T, ready string, args ...string) *background {
	t.Helper()
	b := &background{cmd: exec.Command("capture", args...), done: make(chan error, 1)}
	b.cmd.Stdout, b.cmd.Stderr = &b.stdout, &b.stderr
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { b.done <- b.cmd.Wait() }()
	t.Cleanup(func() {
		b.cmd.Process.Kill()
		<-b.done
	})
	for end := time.Now().Add(20 * time.Second); !strings.Contains(b.stderr.String(), ready); time.Sleep(5 * time.Millisecond) {
		select {
		case err := <-b.done:
			b.done <- err
			t.Fatalf("capture %s: %v\n%s", strings.Join(args, " "), err, b.stderr.String())
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("capture %s does not come up\n%s", strings.Join(args, " "), b.stderr.String())
		}
	}
	return b
}

// end sends a signal and waits; it returns the exit status.
func (b *background) end(sig os.Signal) int {
	b.cmd.Process.Signal(sig)
	err := <-b.done
	b.done <- err
	return b.cmd.ProcessState.ExitCode()
}

func (b *background) stop(t *testing.T) {
	t.Helper()
	if status := b.end(syscall.SIGTERM); status != 0 {
		t.Fatalf("%s: exit status %d\n%s", b.cmd.Args[1], status, b.stderr.String())
	}
}

// startProxy runs a recording proxy in front of upstream (host:port).
func startProxy(t *testing.T, upstream string, args ...string) (address string, b *background) {
	t.Helper()
	address = fmt.Sprintf("127.0.0.1:%d", freePort(t))
	return address, startCapture(t, "taking connections",
		append([]string{"proxy", "--listen", address, "--upstream", "http://" + upstream, "--admin", "", "--drain", "10s"}, args...)...)
}

// startPcap records ports of loopback into file, with tcpdump if that is there,
// until stop is called.
func startPcap(t *testing.T, file string, ports ...string) (stop func()) {
	t.Helper()
	program := installed(t, "tcpdump")
	if program == "" || os.Geteuid() != 0 {
		return nil
	}
	args := append([]string{"-i", "lo", "-s", "0", "-U", "--immediate-mode", "-B", "16384", "-Z", "root", "-w", file}, strings.Split("port "+strings.Join(ports, " or port "), " ")...)
	cmd := exec.Command(program, args...)
	var stderr safeBuffer
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	stop = sync.OnceFunc(func() {
		time.Sleep(300 * time.Millisecond) // packets on their way
		cmd.Process.Signal(syscall.SIGINT)
		select {
		case <-exited:
		case <-time.After(10 * time.Second):
			cmd.Process.Kill()
			<-exited
		}
	})
	t.Cleanup(stop)
	for end := time.Now().Add(20 * time.Second); !strings.Contains(stderr.String(), "listening on"); time.Sleep(5 * time.Millisecond) {
		select {
		case <-exited:
			exited <- nil
			t.Logf("tcpdump: %s", stderr.String())
			return nil
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("tcpdump does not come up: %s", stderr.String())
		}
	}
	return stop
}

// countingServer is an engine whose prompts have as many tokens as the request's
// limit, and whose answers have streamEvents tokens.
func countingServer(t *testing.T) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var req struct {
			MaxTokens int `json:"max_tokens"`
		}
		if err := json.NewDecoder(r.Body).Decode(&req); err != nil || r.URL.Query().Has("bad") {
			http.Error(w, `{"error":{"message":"no"}}`, http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		flush := http.NewResponseController(w)
		for range streamEvents {
			if _, err := fmt.Fprint(w, "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"tok \"}}]}\n\n"); err != nil || flush.Flush() != nil {
				return
			}
			select {
			case <-r.Context().Done():
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
		fmt.Fprintf(w, "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"length\"}]}\n\n"+
			"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%d}}\n\ndata: [DONE]\n\n", req.MaxTokens, streamEvents, req.MaxTokens+streamEvents)
	}))
	t.Cleanup(s.Close)
	return s
}

// A chainTruth is what the client knows of a request.
type chainTruth struct {
	truth
	ttft    time.Duration // 0: no event came
	session string
}

// driveSessions sends perSession requests in each of n sessions, four sessions at
// a time. Some are refused and some given up.
func driveSessions(t *testing.T, url string, n, perSession int) []chainTruth {
	t.Helper()
	truths := make([]chainTruth, n*perSession)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
	defer client.CloseIdleConnections()
	one := func(i int, session string) error {
		path, body := "/v1/chat/completions", fmt.Sprintf(
			`{"model":"m","stream":true,"max_tokens":%d,"messages":[{"role":"system","content":%q},{"role":"user","content":"this is question number %d of %s, and it is long enough for a block of its own, or two"}]}`,
			firstID+i, strings.Repeat("be brief. ", 30), i, session)
		if i%7 == 3 {
			path += "?bad"
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+path, strings.NewReader(body))
		if err != nil {
			return err
		}
		req.Header.Set("X-Session-Id", session)
		x := &truths[i]
		x.at, x.session = time.Now(), session
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		x.status = resp.StatusCode
		if x.status == http.StatusOK {
			if _, err := io.ReadFull(resp.Body, make([]byte, 10)); err != nil {
				return err
			}
			x.ttft = time.Since(x.at)
		}
		if i%5 == 2 && x.status == http.StatusOK {
			x.aborted = true
			_, err = io.ReadFull(resp.Body, make([]byte, 400))
			return err
		}
		return readAnswer(resp)
	}
	var group sync.WaitGroup
	slots := make(chan struct{}, 4)
	for s := range n {
		group.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			for k := range perSession {
				if err := one(s*perSession+k, fmt.Sprintf("session-%d", s)); err != nil {
					t.Errorf("request %d: %v", s*perSession+k, err)
				}
				time.Sleep(7 * time.Millisecond)
			}
		})
	}
	group.Wait()
	return truths
}

// checkTruth compares a capture with what the client knows. A gateway between
// the two tells the capture of an abort, and holds nothing else back.
func checkTruth(t *testing.T, name string, h *traceformat.Header, rows []traceformat.Row, truths []chainTruth) {
	t.Helper()
	if h.Rows.Seen != h.Rows.Recorded+dropped(h.Rows.Dropped) || h.Rows.Recorded != int64(len(rows)) {
		t.Errorf("%s: the accounts do not add up: %+v, %d rows", name, h.Rows, len(rows))
	}
	if len(rows) != len(truths) {
		t.Errorf("%s: %d rows of %d requests: %+v", name, len(rows), len(truths), h.Rows)
	}
	var arrivals, ttfts []time.Duration
	sessions := map[int64]string{}
	for _, row := range rows {
		i := int(row.MaxTokens.V) - firstID
		if i < 0 || i >= len(truths) {
			t.Fatalf("%s: a row of no request: %s", name, row.AppendJSON(nil))
		}
		x := &truths[i]
		want := traceformat.ResultOK
		switch {
		case x.aborted:
			want = traceformat.ResultClientAbort
		case x.status >= 400:
			want = traceformat.ResultRejected
		}
		if row.Result != want || row.Status.V != int16(x.status) {
			t.Errorf("%s: request %d: %s with %v, want %s with %d", name, i, row.Result, row.Status, want, x.status)
		}
		if s, ok := sessions[row.Session.V]; ok && s != x.session {
			t.Errorf("%s: request %d is of another session", name, i)
		}
		sessions[row.Session.V] = x.session
		arrivals = append(arrivals, h.Start.Add(row.Arrival).Sub(x.at).Abs())
		if x.status != http.StatusOK {
			continue
		}
		if !row.TTFT.OK || row.TTFTSource != traceformat.TTFTContentEvent {
			t.Errorf("%s: request %d has no TTFT", name, i)
		} else {
			ttfts = append(ttfts, (row.TTFT.V - x.ttft).Abs())
		}
		if want == traceformat.ResultOK && (row.PromptTokens.V != int32(firstID+i) || row.OutputTokens.V != streamEvents || row.FinishReason != "length" || len(row.ChunkTimes) != streamEvents) {
			t.Errorf("%s: request %d: %s", name, i, row.AppendJSON(nil))
		}
	}
	if len(sessions) != len(truths)/perSession {
		t.Errorf("%s: %d sessions, want %d", name, len(sessions), len(truths)/perSession)
	}
	slices.Sort(arrivals)
	slices.Sort(ttfts)
	for what, v := range map[string][]time.Duration{"arrivals": arrivals, "TTFT": ttfts} {
		if len(v) > 0 {
			t.Logf("%-12s %-8s differ from the client's by %v (median), %v (most)", name, what, v[len(v)/2], v[len(v)-1])
		}
	}
}

const perSession = 4

// TestSourcesAgree: logs, packets and the recording proxy make the same trace of
// the same traffic.
func TestSourcesAgree(t *testing.T) {
	if testing.Short() || runtime.GOOS != "linux" {
		t.Skip("starts nginx, HAProxy, Caddy and tcpdump")
	}
	engine := countingServer(t)
	for name, start := range map[string]func(*testing.T, string) *front{"nginx": startNginx, "haproxy": startHAProxy, "caddy": startCaddy} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			key := keyFile(t, dir)
			file := func(name string) string { return filepath.Join(dir, name+".parquet") }
			inner, sampled := startProxy(t, strings.TrimPrefix(engine.URL, "http://"), "-o", file("sampled"), "--key-file", key, "--sample", "1/2")
			outer, proxy := startProxy(t, inner, "-o", file("proxy"), "--key-file", key)
			f := start(t, outer)
			if f == nil {
				t.Skip("not installed")
			}
			port := func(address string) string { return address[strings.LastIndex(address, ":")+1:] }
			pcap := filepath.Join(dir, "lo.pcap")
			stopPcap := startPcap(t, pcap, port(f.url), port(outer))

			truths := driveSessions(t, f.url, 10, perSession)
			time.Sleep(200 * time.Millisecond) // a gateway may notice late that a client has gone
			if stopPcap != nil {
				stopPcap()
			}
			f.stop()
			proxy.stop(t)
			sampled.stop(t)
			must := func(args ...string) {
				t.Helper()
				if status, _, stderr := runCapture(args...); status != 0 {
					t.Fatalf("capture %s: exit status %d\n%s", strings.Join(args, " "), status, stderr)
				}
			}
			must(append([]string{"logs", f.log, "-o", file("log"), "--key-file", key}, f.args...)...)
			h, all := readTrace(t, file("proxy"))
			checkTruth(t, "proxy", h, all, truths)

			type pair struct {
				a, b   string
				bounds capture.Bounds
				same   bool // at the same place: everything is equal
			}
			// As few as one request missing is too much. What arrivals differ by is
			// the machine's affair, but for what is plainly wrong.
			strict := capture.Bounds{Missing: 1e-9, Arrival: 400 * time.Millisecond, Aborts: 1}
			logs := strict
			if !f.aborts {
				logs.Aborts = 0
			}
			pairs := []pair{{"log", "proxy", logs, false}}
			if stopPcap != nil {
				must("packets", pcap, "--port", port(f.url), "-o", file("client-leg"), "--key-file", key)
				must("packets", pcap, "--port", port(outer), "-o", file("proxy-leg"), "--key-file", key)
				must("packets", pcap, "--port", port(outer), "-o", file("proxy-leg-sampled"), "--key-file", key, "--sample", "1/2")
				for _, leg := range []string{"client-leg", "proxy-leg"} {
					h, rows := readTrace(t, file(leg))
					checkTruth(t, leg, h, rows, truths)
				}
				pairs = append(pairs, pair{"log", "client-leg", logs, false}, pair{"client-leg", "proxy", strict, false}, pair{"proxy-leg", "proxy", strict, true})
				sampledSessions(t, "packets", all, file("proxy-leg-sampled"))
			}
			sampledSessions(t, "proxy", all, file("sampled"))
			if f.name == "nginx" { // whose log knows sessions
				must(append([]string{"logs", f.log, "-o", file("log-sampled"), "--key-file", key, "--sample", "1/2"}, f.args...)...)
				sampledSessions(t, "logs", all, file("log-sampled"))
			}
			for _, p := range pairs {
				c := compareFiles(t, file(p.a), file(p.b))
				t.Logf("%s and %s: offset %v, arrivals |p50| %v |p99| %v", p.a, p.b, c.Offset, c.Arrival.P50, c.Arrival.P99)
				if err := c.Within(p.bounds); err != nil || c.Matched != int64(len(truths)) {
					t.Errorf("%s and %s: %d matched: %v", p.a, p.b, c.Matched, err)
				}
				if p.same {
					for what, a := range map[string]*capture.Agreement{"prompts": c.Prompt, "outputs": c.Output, "blocks": c.Blocks} {
						if a == nil || a.Both == 0 || a.Equal != a.Both || a.OnlyA+a.OnlyB != 0 {
							t.Errorf("%s and %s: %s: %+v", p.a, p.b, what, a)
						}
					}
				}
			}
		})
	}
}

func compareFiles(t *testing.T, a, b string) *capture.Comparison {
	t.Helper()
	var readers [2]traceformat.Reader
	for i, name := range []string{a, b} {
		r, err := traceformat.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		readers[i] = r
	}
	c, err := capture.Compare(t.Context(), readers[0], readers[1], capture.CompareOptions{Window: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// sampledSessions checks that a sample of one in two has some of the sessions of
// all, each as a whole, and says so.
func sampledSessions(t *testing.T, source string, all []traceformat.Row, name string) {
	t.Helper()
	h, rows := readTrace(t, name)
	count := func(rows []traceformat.Row) map[int64]int {
		m := map[int64]int{}
		for i := range rows {
			m[rows[i].Session.V]++
		}
		return m
	}
	whole, part := count(all), count(rows)
	for session, n := range part {
		if n != whole[session] {
			t.Errorf("%s: the sample has %d requests of a session of %d", source, n, whole[session])
		}
	}
	if len(part) == 0 || len(part) == len(whole) {
		t.Errorf("%s: the sample has %d of %d sessions", source, len(part), len(whole))
	}
	if h.Sampling.Rate != 0.5 || h.Rows.Dropped[capture.ReasonSampledOut] != int64(len(all)-len(rows)) {
		t.Errorf("%s: the header says %+v, %+v", source, h.Sampling, h.Rows)
	}
}
