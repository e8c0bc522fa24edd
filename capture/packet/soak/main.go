//go:build linux

// Soak holds thousands of answers open for half an hour of real time, a share of
// their packets out of order, and writes down the memory of the capture that
// watches them:
//
//	go build -o bin/ ./cmd/capture && go run ./capture/packet/soak -capture bin/capture
//
// The packets are made here and go out on loopback, from and to addresses that
// nobody has, so that no TCP answers. It takes root, for the sockets.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"reprise/capture/packet/pcaptest"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

func run() error {
	program := flag.String("capture", "bin/capture", "the capture `PROGRAM`")
	streams := flag.Int("streams", 20000, "`N` answers open at a time")
	rate := flag.Int("rate", 4000, "`N` times a second some stream says something, mostly two events")
	events := flag.Int("events", 60, "`N` events in an answer, then the stream asks again")
	reorder := flag.Float64("reorder", 0.05, "`SHARE` of the packets that are late")
	duration := flag.Duration("for", 30*time.Minute, "`TIME` to go on")
	every := flag.Duration("every", time.Minute, "`TIME` between two readings of memory")
	flag.Parse()
	if *streams < 1 || *rate < 1 || *events < 1 || *reorder < 0 || *reorder > 1 || flag.NArg() > 0 {
		return errors.New("want positive numbers, a share of at most 1, and flags alone")
	}

	dir, err := os.MkdirTemp("", "soak-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	os.Chmod(dir, 0o777) // the capture runs as nobody
	cmd := exec.Command(*program, "packets", "--interface", "lo", "--port", "8000", "-o", filepath.Join(dir, "trace.parquet"), "--json")
	var stdout strings.Builder
	cmd.Stdout = &stdout
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	defer cmd.Process.Kill()
	lines := bufio.NewScanner(stderr)
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "capturing on") {
		fmt.Println(lines.Text())
	}
	var last []string
	said := make(chan struct{})
	go func() {
		defer close(said)
		for lines.Scan() {
			last = append(last, lines.Text())
			last = last[max(0, len(last)-6):]
		}
	}()

	w, err := newWire()
	if err != nil {
		return err
	}
	began := time.Now()
	s := &soak{wire: w, list: make([]*stream, *streams), events: *events, reorder: *reorder, rng: rand.New(rand.NewPCG(1, 1))}
	fmt.Printf("%d streams, %d turns/s of two events, %d events an answer, %.0f %% out of order\n\n| minutes | resident MB | most so far | CPU s | requests | events |\n|---|---|---|---|---|---|\n",
		*streams, *rate, *events, 100**reorder)
	report := began
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for sent := 0; time.Since(began) < *duration; <-tick.C {
		for due := int(time.Since(began).Seconds() * float64(*rate)); sent < due; sent++ {
			s.step(sent % *streams)
		}
		if err := s.flush(); err != nil {
			return err
		}
		if time.Since(report) >= *every {
			report = report.Add(*every)
			m := usage(cmd.Process.Pid)
			fmt.Printf("| %.1f | %.0f | %.0f | %.1f | %d | %d |\n", time.Since(began).Minutes(), m.rss, m.peak, m.cpu.Seconds(), s.asked, s.sent)
		}
	}
	for i := range s.list {
		s.end(i)
		if i%100 == 99 {
			if err := s.flush(); err != nil {
				return err
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	if err := s.flush(); err != nil {
		return err
	}
	time.Sleep(time.Second)
	cmd.Process.Signal(syscall.SIGINT)
	<-said
	err = cmd.Wait()
	fmt.Println("\n" + strings.Join(last, "\n"))
	var r struct {
		Rows     int64           `json:"rows"`
		Accounts json.RawMessage `json:"accounts"`
		Details  struct {
			Kernel struct {
				Dropped int64 `json:"dropped"`
			} `json:"kernel"`
			Packets struct {
				TCP json.RawMessage `json:"tcp"`
			} `json:"packets"`
		} `json:"details"`
	}
	if e := json.Unmarshal([]byte(stdout.String()), &r); e != nil {
		return errors.Join(err, fmt.Errorf("what capture prints: %w", e))
	}
	fmt.Printf("%d of %d requests recorded, the kernel dropped %d packets, %s\n", r.Rows, s.asked, r.Details.Kernel.Dropped, r.Accounts)
	fmt.Printf("%s\n", r.Details.Packets.TCP)
	if r.Details.Kernel.Dropped == 0 && r.Rows < s.asked {
		err = errors.Join(err, errors.New("requests are missing"))
	}
	return err
}

// A soak is what is under way.
type soak struct {
	wire    *wire
	net     pcaptest.Net
	list    []*stream
	events  int
	reorder float64
	rng     *rand.Rand
	asked   int64
	sent    int64
}

type stream struct {
	conn *pcaptest.Conn
	left int // events of the answer that is under way
}

const headText = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"

// step sends the next thing that a stream has to say.
func (s *soak) step(i int) {
	x := s.list[i]
	if x == nil {
		x = &stream{conn: s.net.Dial()}
		x.conn.Open(0)
		s.list[i] = x
	}
	switch {
	case x.left > 1:
		for range min(2, x.left-1) { // in pairs: one can come behind the other
			s.event(i, fmt.Sprintf(`data: {"id":"c%d","object":"chat.completion.chunk","model":"m","choices":[{"index":0,"delta":{"content":" word"},"finish_reason":null}]}`+"\n\n", i))
			x.left--
			s.sent++
		}
	case x.left == 1:
		s.end(i)
	default:
		body := fmt.Sprintf(`{"model":"m","stream":true,"max_tokens":%d,"messages":[{"role":"user","content":"%0400d"}]}`, s.events, s.asked)
		x.conn.Send(pcaptest.Client, 0, fmt.Appendf(nil, "POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
		x.conn.Send(pcaptest.Server, 0, []byte(headText))
		x.left = s.events
		s.asked++
	}
}

func (s *soak) event(i int, data string) {
	c := s.list[i].conn
	c.NoAcks = s.sent%2 == 0
	c.Send(pcaptest.Server, 0, fmt.Appendf(nil, "%x\r\n%s\r\n", len(data), data))
}

// end ends the answer of a stream that has one.
func (s *soak) end(i int) {
	x := s.list[i]
	if x == nil || x.left == 0 {
		return
	}
	s.event(i, fmt.Sprintf(`data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":%d,"total_tokens":%d}}`+"\n\ndata: [DONE]\n\n", s.events, s.events+9))
	x.conn.Send(pcaptest.Server, 0, []byte("0\r\n\r\n"))
	x.left = 0
}

// flush puts what was made on the wire, some of it behind the next packet of its
// stream, or of all.
func (s *soak) flush() error {
	late := map[int]pcaptest.Packet{}
	for _, p := range s.net.Packets {
		// No answer comes before its request: that stays in order.
		before, behind := late[p.Conn]
		if !behind && p.Dir == pcaptest.Server && p.Bytes > 0 && s.rng.Float64() < s.reorder {
			late[p.Conn] = p
			continue
		}
		if err := s.wire.send(p.Data); err != nil {
			return err
		}
		if behind {
			delete(late, p.Conn)
			if err := s.wire.send(before.Data); err != nil {
				return err
			}
		}
	}
	s.net.Packets = s.net.Packets[:0]
	for _, p := range late {
		if err := s.wire.send(p.Data); err != nil {
			return err
		}
	}
	return nil
}

// A wire puts frames on loopback.
type wire struct{ fd int }

func newWire() (*wire, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0) // receives nothing
	if err != nil {
		return nil, fmt.Errorf("opening a socket for raw frames: %w", err)
	}
	return &wire{fd}, unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: 1, Protocol: 0})
}

func (w *wire) send(frame []byte) error {
	clear(frame[:12]) // loopback's address, so that the frame is for this host
	_, err := unix.Write(w.fd, frame)
	if err != nil && !errors.Is(err, io.ErrShortWrite) {
		return fmt.Errorf("sending a frame: %w", err)
	}
	return nil
}

type used struct {
	rss, peak float64 // MB
	cpu       time.Duration
}

// usage reads what a process has used.
func usage(pid int) (u used) {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(status)) {
		var kb float64
		if n, _ := fmt.Sscanf(line, "VmRSS: %f kB", &kb); n == 1 {
			u.rss = kb / 1000
		}
		if n, _ := fmt.Sscanf(line, "VmHWM: %f kB", &kb); n == 1 {
			u.peak = kb / 1000
		}
	}
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if i := strings.LastIndexByte(string(stat), ')'); i >= 0 {
		f := strings.Fields(string(stat[i+1:]))
		var user, system int64
		fmt.Sscan(f[11], &user)
		fmt.Sscan(f[12], &system)
		u.cpu = time.Duration(user+system) * (time.Second / 100) // USER_HZ
	}
	return u
}
