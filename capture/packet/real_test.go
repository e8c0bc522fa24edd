//go:build linux

package packet

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"reprise/capture"
	"reprise/capture/packet/frame"
	"reprise/capture/packet/live"
	"reprise/traceformat"
)

// realTruth is what a client knows of its request, in nanoseconds since the epoch.
//
// A client that reads the clock learns when it ran, and not when something was
// on the wire: in between the machine may have done something else for
// milliseconds. So the first byte left between two readings of the clock, and
// that the first event came is what the kernel wrote on it for the client's own
// socket.
type realTruth struct {
	before, after int64 // the request was written between these
	first         int64 // the kernel had the first event
	read          int64 // the client had it
}

// realTraffic sends n requests over keep-alive connections of net/http's server
// on loopback, each for a number of tokens of its own, and returns what the
// clients saw, by that number. Every answer has two events and its usage; what
// follows the first event waits until the client has that, so that no read has
// both.
func realTraffic(t *testing.T, port int, n, clients int) map[int]realTruth {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
	if err != nil {
		t.Fatal(err)
	}
	read := make([]chan struct{}, n+1)
	for i := range read {
		read[i] = make(chan struct{})
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
			select {
			case <-read[id]:
			case <-r.Context().Done():
				return
			}
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
			stamped, err := newStampedConn(conn.(*net.TCPConn))
			if err != nil {
				t.Error(err)
				return
			}
			br := bufio.NewReader(stamped)
			for id := 1 + c; id <= n; id += clients {
				body := requestBody(id)
				req := fmt.Sprintf("POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
				var tr realTruth
				stamped.begin(func() { close(read[id]) })
				tr.before = time.Now().UnixNano()
				io.WriteString(conn, req)
				tr.after = time.Now().UnixNano()
				resp, err := http.ReadResponse(br, nil)
				if err != nil {
					t.Error(err)
					return
				}
				io.Copy(io.Discard, resp.Body)
				tr.first, tr.read = stamped.first, stamped.read
				mu.Lock()
				truths[id] = tr
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return truths
}

// stampedConn notes when the first event of an answer came.
type stampedConn struct {
	raw         syscall.RawConn
	control     [64]byte
	seen        func() // nil: it came
	first, read int64
}

func newStampedConn(c *net.TCPConn) (*stampedConn, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	opt := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1) })
	return &stampedConn{raw: raw}, errors.Join(opt, err)
}

// begin is called before a request; seen will be once its first event is there.
func (c *stampedConn) begin(seen func()) { c.seen, c.first, c.read = seen, 0, 0 }

func (c *stampedConn) Read(p []byte) (n int, err error) {
	var oob int
	if e := c.raw.Read(func(fd uintptr) bool {
		n, oob, _, _, err = unix.Recvmsg(int(fd), p, c.control[:], 0)
		return err != unix.EAGAIN
	}); e != nil {
		return 0, e
	}
	now := time.Now().UnixNano()
	if n == 0 && err == nil {
		err = io.EOF
	}
	if n > 0 && c.seen != nil && bytes.Contains(p[:n], []byte("data:")) {
		c.read = now
		list, _ := unix.ParseSocketControlMessage(c.control[:oob])
		for _, m := range list {
			if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS {
				c.first = (*unix.Timespec)(unsafe.Pointer(&m.Data[0])).Nano()
			}
		}
		c.seen()
		c.seen = nil
	}
	return max(n, 0), err
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

// outside is how far v lies outside of a range.
func outside(v, from, to int64) float64 {
	return float64(min(v-from, 0)+max(v-to, 0)) / 1e6
}

// check compares the rows with what the clients know. What a client's clock says
// depends on what else the machine does: that is printed, not judged.
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
	var arrivals, ttfts, woken, late []float64 // ms
	unstamped := 0
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
		at := start + int64(row.Arrival)
		arrivals = append(arrivals, outside(at, tr.before, tr.after))
		ttft, ok := row.TTFT.Get()
		if !ok {
			t.Errorf("request %d has no TTFT", id)
			continue
		}
		if tr.first == 0 {
			unstamped++ // the kernel begins to stamp a moment after it was asked to
			continue
		}
		ttfts = append(ttfts, outside(int64(ttft), tr.first-tr.after, tr.first-tr.before))
		woken = append(woken, float64(int64(ttft)-(tr.read-tr.before))/1e6)
		late = append(late, float64(tr.read-tr.first)/1e6)
	}
	t.Logf("%d rows, %d without the kernel's stamp, gaps %d, duplicates %d; in ms:\n"+
		"  arrival, beyond the two clock readings around the write: %s\n"+
		"  TTFT, by the kernel's stamp on the client's socket:       %s\n"+
		"  TTFT, by the client's clock when it had read the event:  %s\n"+
		"  of which the client read it later than the kernel had it: %s",
		len(r.list), unstamped, s.Reassembly.Gaps, s.Reassembly.Duplicates, spread(arrivals), spread(ttfts), spread(woken), spread(late))
	if len(ttfts) == 0 || unstamped > len(r.list)/10 {
		t.Fatalf("the kernel stamped %d of %d first events", len(ttfts), len(r.list))
	}
	if m := most(arrivals); m > 0.2 {
		t.Errorf("the p99 of the error of arrivals is %.3f ms", m)
	}
	if m := most(ttfts); m > 1 {
		t.Errorf("the p99 of the error of TTFT is %.3f ms", m)
	}
}

// most is the p99 of absolute values.
func most(v []float64) float64 {
	abs := make([]float64, len(v))
	for i := range v {
		abs[i] = math.Abs(v[i])
	}
	slices.Sort(abs)
	return abs[len(abs)*99/100]
}

func spread(v []float64) string {
	if len(v) == 0 {
		return "none"
	}
	slices.Sort(v)
	at := func(q float64) float64 { return v[int(q*float64(len(v)-1))] }
	return fmt.Sprintf("p1 %+.3f p50 %+.3f p99 %+.3f", at(0.01), at(0.5), at(0.99))
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
