//go:build linux

package packet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"reprise/capture"
	"reprise/capture/packet/frame"
	"reprise/capture/packet/live"
	"reprise/traceformat"
)

// realTruth is what a client saw of its request.
type realTruth struct{ sent, first int64 }

// realTraffic sends n requests over keep-alive connections of net/http's server
// on loopback, each for a number of tokens of its own, and returns what the
// clients saw, by that number. Every answer has two events and its usage.
func realTraffic(t *testing.T, port int, n, clients int) map[int]realTruth {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		var id int
		fmt.Sscanf(string(body[strings.Index(string(body), `"max_tokens":`)+13:]), "%d", &id)
		w.Header().Set("Content-Type", "text/event-stream")
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		for i := range 2 {
			io.WriteString(w, event(id, i))
			w.(http.Flusher).Flush()
		}
		io.WriteString(w, lastEvent(id))
	})}
	go srv.Serve(l)
	defer srv.Close()
	var mu sync.Mutex
	truths := map[int]realTruth{}
	var wg sync.WaitGroup
	for c := range clients {
		wg.Go(func() {
			conn, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			stamped := &stampedConn{Conn: conn}
			br := bufio.NewReader(stamped)
			for id := 1 + c; id <= n; id += clients {
				body := requestBody(id)
				req := fmt.Sprintf("POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
				tr := realTruth{sent: time.Now().UnixNano()}
				stamped.first = 0
				io.WriteString(conn, req)
				resp, err := http.ReadResponse(br, nil)
				if err != nil {
					t.Error(err)
					return
				}
				io.Copy(io.Discard, resp.Body)
				tr.first = stamped.first
				mu.Lock()
				truths[id] = tr
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return truths
}

// stampedConn notes when the first read with an event returned.
type stampedConn struct {
	net.Conn
	first int64
}

func (c *stampedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.first == 0 && strings.Contains(string(p[:n]), "data:") {
		c.first = time.Now().UnixNano()
	}
	return n, err
}

// recorded runs packets through an engine and a recorder.
type recorded struct {
	rows
	rec    *capture.Recorder
	engine *Engine
}

func newRecorded(t *testing.T, port int) *recorded {
	r := &recorded{}
	var err error
	if r.rec, err = capture.NewRecorder(&r.rows, capture.Options{Slack: time.Minute}); err != nil {
		t.Fatal(err)
	}
	r.engine = New(Into(r.rec), Options{Ports: []uint16{uint16(port)}})
	return r
}

// check compares the rows with what the clients saw. Errors of time depend on
// what else the machine does: they are printed, not judged.
func (r *recorded) check(t *testing.T, truths map[int]realTruth) {
	t.Helper()
	r.engine.Close()
	if err := r.rec.Close(); err != nil {
		t.Fatal(err)
	}
	s := r.engine.Stats()
	if err := s.Check(); err != nil {
		t.Error(err)
	}
	acc := r.rec.Accounts()
	if int(acc.Recorded) != len(truths) || acc.Seen != acc.Recorded {
		t.Errorf("%d requests: %s; %+v", len(truths), acc, s)
	}
	start := r.rec.Header().Start.UnixNano()
	var arrivals, ttfts []float64
	for i := range r.list {
		row := &r.list[i]
		id := row.MaxTokens.Or(0)
		tr, ok := truths[int(id)]
		if !ok {
			t.Errorf("a row of a request that was not sent: max_tokens %d", id)
			continue
		}
		if row.OutputTokens.Or(0) != id || row.OutputTokensSource != traceformat.SourceUsage || row.Status.Or(0) != 200 {
			t.Errorf("request %d: output tokens %d by %s, status %d", id, row.OutputTokens.Or(0), row.OutputTokensSource, row.Status.Or(0))
		}
		arrivals = append(arrivals, float64(start+int64(row.Arrival)-tr.sent)/1e6)
		ttft, ok := row.TTFT.Get()
		if !ok {
			t.Errorf("request %d has no TTFT", id)
			continue
		}
		ttfts = append(ttfts, float64(int64(ttft)-(tr.first-tr.sent))/1e6)
	}
	t.Logf("%d rows; arrival minus truth in ms: %s; TTFT minus truth in ms: %s; gaps %d, duplicates %d", len(r.list), spread(arrivals), spread(ttfts), s.Reassembly.Gaps, s.Reassembly.Duplicates)
}

func spread(v []float64) string {
	if len(v) == 0 {
		return "none"
	}
	slices.Sort(v)
	at := func(q float64) float64 { return v[int(q*float64(len(v)-1))] }
	return fmt.Sprintf("p1 %.3f p50 %.3f p99 %.3f", at(0.01), at(0.5), at(0.99))
}

func requests(t *testing.T) int {
	if testing.Short() {
		return 500
	}
	return 10000
}

func TestTcpdump(t *testing.T) {
	if _, err := exec.LookPath("tcpdump"); err != nil {
		t.Skip("tcpdump is not installed")
	}
	for i, iface := range []string{"lo", "any"} {
		t.Run(iface, func(t *testing.T) {
			port := 18431 + i
			file := filepath.Join(t.TempDir(), "lo.pcap")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			cmd := exec.CommandContext(ctx, "tcpdump", "-i", iface, "-s", "0", "-B", "65536", "-U", "--time-stamp-precision=nano", "-Z", "root", "-w", file, "tcp port "+strconv.Itoa(port))
			cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
			stderr, _ := cmd.StderrPipe()
			if err := cmd.Start(); err != nil {
				t.Skip(err)
			}
			lines := bufio.NewScanner(stderr)
			if !waitFor(lines, "listening on") {
				cmd.Wait()
				t.Skip("tcpdump may not capture here")
			}
			truths := realTraffic(t, port, requests(t), 4)
			time.Sleep(1500 * time.Millisecond) // it reads its buffer each second
			cancel()
			for lines.Scan() {
				if strings.HasSuffix(lines.Text(), "dropped by kernel") && !strings.HasPrefix(lines.Text(), "0 ") {
					defer t.Skipf("tcpdump lost packets: %s", lines.Text())
				}
			}
			cmd.Wait()
			src, err := frame.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			r := newRecorded(t, port)
			m := frame.FromSource(src, frame.DefaultReorder)
			var p frame.Packet
			for m.Next(&p) == nil {
				r.engine.Packet(&p)
			}
			r.check(t, truths)
		})
	}
}

func waitFor(s *bufio.Scanner, text string) bool {
	for s.Scan() {
		if strings.Contains(s.Text(), text) {
			return true
		}
	}
	return false
}

func TestRing(t *testing.T) {
	for i, iface := range []string{"lo", "any"} {
		t.Run(iface, func(t *testing.T) {
			port := 18441 + i
			socket, err := live.Open(live.Options{Interface: iface, Ports: []uint16{uint16(port)}})
			if errors.Is(err, os.ErrPermission) {
				t.Skip("opening a packet socket takes CAP_NET_RAW")
			} else if err != nil {
				t.Fatal(err)
			}
			ring, err := socket.Map()
			if err != nil {
				t.Fatal(err)
			}
			defer ring.Close()
			r := newRecorded(t, port)
			over := make(chan struct{})
			done := make(chan error)
			go func() {
				for {
					last := false
					select {
					case <-over:
						last = true
					default:
					}
					n, err := ring.Read(100*time.Millisecond, r.engine.Packet)
					if err != nil || last && n == 0 {
						done <- err
						return
					}
				}
			}()
			truths := realTraffic(t, port, requests(t), 4)
			close(over)
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			st, err := ring.Stats()
			if err != nil {
				t.Fatal(err)
			}
			if st.Dropped > 0 {
				t.Skipf("the kernel dropped %d packets: the machine is busy", st.Dropped)
			}
			r.check(t, truths)
			// The filter passes the server's port alone; of loopback, the kernel or
			// the ring passes over one copy of each packet.
			if s := r.engine.Stats(); s.Ignored != 0 || s.Reassembly.Duplicates != 0 {
				t.Errorf("%d packets of other ports, %d duplicates", s.Ignored, s.Reassembly.Duplicates)
			}
		})
	}
}
