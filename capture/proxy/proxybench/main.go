//go:build linux

// Proxybench measures what a proxy costs: the delay it adds to the first event,
// the requests it carries on one core, and the memory of an open stream, each
// beside nginx with buffering off and beside Go's own ReverseProxy.
//
//	go build -o bin/ ./cmd/capture ./internal/wire/mock/serve && go run ./capture/proxy/proxybench -bin bin delay
//
// The mock server and the client share one core, the proxies take turns on
// another. On a machine that others use as well, the rates say who else ran;
// CPU time a request says less of them, and ratios of neighbouring runs least.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"reprise/internal/clock"
	"reprise/internal/cores"
	"reprise/internal/wire"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "proxybench:", err)
		os.Exit(1)
	}
}

type options struct {
	bin              string
	rounds           int
	each             time.Duration
	rate             int
	conns            int
	streams          int
	prompt           int
	events, perWrite int
	gap              time.Duration
	only             string
	dir              string
}

func run() error {
	var o options
	reverse := flag.String("reverse", "", "be a plain ReverseProxy before this `URL`")
	flag.StringVar(&o.bin, "bin", "bin", "`folder` of the programs capture and serve")
	flag.IntVar(&o.rounds, "rounds", 10, "times that each takes its turn")
	flag.DurationVar(&o.each, "each", 2*time.Second, "of one turn")
	flag.IntVar(&o.rate, "rate", 1000, "requests/s of delay")
	flag.IntVar(&o.conns, "conns", 256, "requests in flight of rate")
	flag.IntVar(&o.events, "events", 64, "token events of an answer, for rate")
	flag.IntVar(&o.perWrite, "per-write", 1, "of them in one write of the server, 0: all, for rate")
	flag.DurationVar(&o.gap, "gap", 2*time.Millisecond, "`time` between two of its writes, for rate")
	flag.IntVar(&o.streams, "streams", 5000, "open streams of memory")
	flag.IntVar(&o.prompt, "prompt", 400, "bytes of the prompt")
	flag.StringVar(&o.only, "only", "", "of the proxies, those with these `names`")
	flag.Parse()
	if *reverse != "" {
		return serveReverse(*reverse)
	}
	var err error
	if o.dir, err = os.MkdirTemp("", "proxybench-"); err != nil {
		return err
	}
	defer os.RemoveAll(o.dir)
	if err := wire.Preflight(o.streams + 1000); err != nil {
		return err
	}
	switch flag.Arg(0) {
	case "delay":
		return o.delay()
	case "rate":
		return o.throughput()
	case "memory":
		return o.memory()
	}
	return errors.New("delay, rate or memory?")
}

// serveReverse is what a few lines of Go give.
func serveReverse(upstream string) error {
	u, err := url.Parse(upstream)
	if err != nil {
		return err
	}
	p := &httputil.ReverseProxy{
		Rewrite:       func(r *httputil.ProxyRequest) { r.SetURL(u); r.Out.Host = r.In.Host },
		FlushInterval: -1,
		Transport:     &http.Transport{MaxIdleConns: 10000, MaxIdleConnsPerHost: 10000, DisableCompression: true},
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return http.Serve(l, p)
}

// A process under test.
type process struct {
	name string
	cmd  *exec.Cmd
	url  string
	pid  int // of the one that works
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// mock starts the upstream, on the first core.
func (o *options) mock(args ...string) (*process, error) {
	cmd := exec.Command(filepath.Join(o.bin, "serve"), args...)
	if _, err := cmd.StdinPipe(); err != nil {
		return nil, err
	}
	return started("mock", cmd, 0, "")
}

// started starts cmd; it is ready when it prints an address, or listens at addr.
func started(name string, cmd *exec.Cmd, core int, addr string) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p := &process{name: name, cmd: cmd, url: "http://" + addr}
	if addr == "" {
		out, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		if err := cores.Start(cmd, core); err != nil {
			return nil, err
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			return nil, fmt.Errorf("%s did not start", name)
		}
		p.url = "http://" + strings.TrimPrefix(strings.TrimSpace(line), "http://")
	} else {
		if err := cores.Start(cmd, core); err != nil {
			return nil, err
		}
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			c, err := net.Dial("tcp", addr)
			if err == nil {
				c.Close()
				break
			}
			if time.Now().After(end) {
				return nil, fmt.Errorf("%s did not start", name)
			}
		}
	}
	p.pid = cmd.Process.Pid
	return p, nil
}

func (p *process) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	p.cmd.Wait()
}

const nginxConf = `daemon off;
master_process off;
worker_processes 1;
worker_rlimit_nofile 40000;
pid %[1]s/nginx.pid;
error_log /dev/null;
events { worker_connections 20000; }
http {
  access_log off;
  client_body_temp_path %[1]s/body;
  proxy_temp_path %[1]s/proxy;
  fastcgi_temp_path %[1]s/fastcgi;
  uwsgi_temp_path %[1]s/uwsgi;
  scgi_temp_path %[1]s/scgi;
  keepalive_requests 1000000000;
  upstream mock { server %[2]s; keepalive 10000; keepalive_requests 1000000000; }
  server {
    listen %[3]s;
    location / {
      proxy_pass http://mock;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_buffering off;
      proxy_request_buffering off;
    }
  }
}
`

// proxies starts all that are compared, in front of upstream, on the second core.
func (o *options) proxies(upstream *process) (list []*process, err error) {
	add := func(p *process, err error) error {
		if err == nil {
			list = append(list, p)
		}
		return err
	}
	wanted := func(name string) bool {
		return o.only == "" || slices.Contains(strings.Split(o.only, ","), name)
	}
	defer func() {
		if err != nil {
			stopAll(list)
		}
	}()
	nginx, lookErr := exec.LookPath("nginx")
	if lookErr != nil {
		if _, err := os.Stat("/usr/sbin/nginx"); err == nil {
			nginx, lookErr = "/usr/sbin/nginx", nil
		}
	}
	if lookErr != nil {
		fmt.Println("without nginx, which is not installed")
	} else if wanted("nginx") {
		addr, err := freePort()
		if err != nil {
			return list, err
		}
		conf := filepath.Join(o.dir, "nginx.conf")
		if err := os.WriteFile(conf, fmt.Appendf(nil, nginxConf, o.dir, strings.TrimPrefix(upstream.url, "http://"), addr), 0o600); err != nil {
			return list, err
		}
		if err := add(started("nginx", exec.Command(nginx, "-p", o.dir, "-c", conf), 1, addr)); err != nil {
			return list, err
		}
	}
	for _, name := range []string{"recording", "plain"} {
		if !wanted(name) {
			continue
		}
		addr, err := freePort()
		if err != nil {
			return list, err
		}
		args := []string{"proxy", "--listen", addr, "--upstream", upstream.url, "--admin", "", "--upstream-idle", "1h"}
		if name == "recording" {
			args = append(args, "-o", filepath.Join(o.dir, "trace.parquet"))
		}
		cmd := exec.Command(filepath.Join(o.bin, "capture"), args...)
		if os.Getenv("PROXYBENCH_LOG") != "" {
			cmd.Stderr = os.Stderr
		}
		if err := add(started(name, cmd, 1, addr)); err != nil {
			return list, err
		}
	}
	if wanted("reverse") {
		self, err := os.Executable()
		if err != nil {
			return list, err
		}
		if err := add(started("reverse", exec.Command(self, "-reverse", upstream.url), 1, "")); err != nil {
			return list, err
		}
	}
	return list, nil
}

func stopAll(list []*process) {
	for _, p := range list {
		p.stop()
	}
}

func (o *options) request() *wire.Request {
	return &wire.Request{Method: "POST", Path: "/v1/chat/completions",
		Header: []wire.Field{{Name: "Authorization", Value: "Bearer sk-0123456789abcdef"}, {Name: "User-Agent", Value: "OpenAI/Python 1.99"}, {Name: "Accept", Value: "application/json"}},
		Body:   fmt.Appendf(nil, `{"model":"mock","stream":true,"messages":[{"role":"user","content":%q}]}`, strings.Repeat("word ", o.prompt/5))}
}

// A shot is one request and its first event.
type shot struct {
	sent, first time.Duration
	done        func(*shot, error)
}

func (s *shot) Conn(time.Duration, bool)       {}
func (s *shot) Sent(first, last time.Duration) { s.sent = first }
func (s *shot) Head(time.Duration, wire.Head)  {}
func (s *shot) Data(at time.Duration, b []byte) {
	if s.first == 0 {
		s.first = at
	}
}
func (s *shot) Close(at time.Duration, err error) { s.done(s, err) }

// open sends o.rate requests/s for o.each and returns how long each waited for
// its first event.
func (o *options) open(to string) ([]time.Duration, error) {
	c, err := wire.NewRaw(to, wire.Options{})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.Warm(64); err != nil {
		return nil, err
	}
	alarm, err := clock.NewAlarm()
	if err != nil {
		return nil, err
	}
	defer alarm.Close()
	var mu sync.Mutex
	var waits []time.Duration
	var failed error
	var wg sync.WaitGroup
	n := int(o.each.Seconds() * float64(o.rate))
	start := clock.Now() + 50*time.Millisecond
	for i := range n {
		due := start + time.Duration(i)*time.Second/time.Duration(o.rate)
		for clock.Now() < due {
			alarm.SleepUntil(due)
		}
		wg.Add(1)
		c.Start(o.request(), &shot{done: func(s *shot, err error) {
			mu.Lock()
			defer mu.Unlock()
			defer wg.Done()
			if err != nil {
				failed = err
			} else if i > n/10 {
				waits = append(waits, s.first-s.sent)
			}
		}})
	}
	wg.Wait()
	slices.Sort(waits)
	return waits, failed
}

func at(sorted []time.Duration, q float64) time.Duration {
	return sorted[int(q*float64(len(sorted)-1))]
}

// delay compares what each proxy adds to the first event of a direct request.
func (o *options) delay() error {
	up, err := o.mock("--first-token", "2ms", "--gap", "2ms", "--per-write", "4")
	if err != nil {
		return err
	}
	defer up.stop()
	list, err := o.proxies(up)
	if err != nil {
		return err
	}
	defer stopAll(list)
	p50, p99 := map[string][]float64{}, map[string][]float64{}
	fmt.Printf("first event at %d requests/s, ms beyond a direct request of the same round\n", o.rate)
	for round := range o.rounds {
		direct, err := o.open(up.url)
		if err != nil {
			return err
		}
		fmt.Printf("round %2d  direct %.3f", round+1, ms(at(direct, 0.5)))
		for i := range list {
			p := list[(i+round)%len(list)]
			waits, err := o.open(p.url)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			a, b := ms(at(waits, 0.5)-at(direct, 0.5)), ms(at(waits, 0.99)-at(direct, 0.99))
			p50[p.name], p99[p.name] = append(p50[p.name], a), append(p99[p.name], b)
			fmt.Printf("  %s p50 %+.3f p99 %+.3f", p.name, a, b)
		}
		fmt.Println()
	}
	for _, p := range list {
		s := slices.Sorted(slices.Values(p50[p.name]))
		fmt.Printf("median    %-9s p50 %+.3f ms (%+.3f to %+.3f), p99 %+.3f ms\n", p.name, median(s), s[0], s[len(s)-1], median(p99[p.name]))
	}
	return nil
}

func ms(d time.Duration) float64 { return d.Seconds() * 1e3 }

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

// closed keeps o.conns requests in flight for o.each.
func (o *options) closed(to string) (n int64, took time.Duration, err error) {
	c, err := wire.NewRaw(to, wire.Options{})
	if err != nil {
		return 0, 0, err
	}
	defer c.Close()
	if err := c.Warm(o.conns); err != nil {
		return 0, 0, err
	}
	var stop atomic.Bool
	var done atomic.Int64
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	began := clock.Now()
	for range o.conns {
		wg.Add(1)
		req := o.request()
		s := new(shot)
		s.done = func(s *shot, err error) {
			if err != nil {
				failed.Store(&err)
			} else {
				done.Add(1)
			}
			if err != nil || stop.Load() {
				wg.Done()
				return
			}
			c.Start(req, s)
		}
		c.Start(req, s)
	}
	time.Sleep(o.each)
	n, took = done.Load(), clock.Now()-began
	stop.Store(true)
	wg.Wait()
	if e := failed.Load(); e != nil {
		return n, took, *e
	}
	return n, took, nil
}

// throughput compares requests/s and CPU time.
func (o *options) throughput() error {
	mock := []string{"--events", strconv.Itoa(o.events), "--per-write", strconv.Itoa(o.perWrite), "--gap", o.gap.String()}
	return o.rateOf(mock)
}

func (o *options) rateOf(args []string) error {
	up, err := o.mock(args...)
	if err != nil {
		return err
	}
	defer up.stop()
	list, err := o.proxies(up)
	if err != nil {
		return err
	}
	defer stopAll(list)
	fmt.Printf("%d requests in flight, prompts of %d bytes, mock %s\n", o.conns, o.prompt, strings.Join(args, " "))
	rates, costs := map[string][]float64{}, map[string][]float64{}
	for round := range o.rounds {
		fmt.Printf("round %2d ", round+1)
		for i := range list {
			p := list[(i+round)%len(list)]
			before := cpuOf(p.pid)
			n, took, err := o.closed(p.url)
			if err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			rate := float64(n) / took.Seconds()
			cost := float64((cpuOf(p.pid) - before).Microseconds()) / float64(n)
			rates[p.name], costs[p.name] = append(rates[p.name], rate), append(costs[p.name], cost)
			fmt.Printf(" %s %.0f/s %.1f us", p.name, rate, cost)
		}
		fmt.Println()
	}
	for _, p := range list {
		fmt.Printf("median    %-9s %6.0f requests/s, %.1f us CPU a request", p.name, median(rates[p.name]), median(costs[p.name]))
		if other := rates["nginx"]; other != nil {
			var r, c []float64
			for i := range other {
				r, c = append(r, rates[p.name][i]/other[i]), append(c, costs["nginx"][i]/costs[p.name][i])
			}
			slices.Sort(r)
			fmt.Printf(": %.2f of nginx (%.2f to %.2f), by CPU %.2f", median(r), r[0], r[len(r)-1], median(c))
		}
		fmt.Println()
	}
	return nil
}

// memory opens streams that stay open after their first events.
func (o *options) memory() error {
	up, err := o.mock("--gap", "100s", "--events", "16", "--per-write", "8")
	if err != nil {
		return err
	}
	defer up.stop()
	list, err := o.proxies(up)
	if err != nil {
		return err
	}
	defer stopAll(list)
	for _, p := range list {
		before := rss(p.pid)
		c, err := wire.NewRaw(p.url, wire.Options{})
		if err != nil {
			return err
		}
		var open atomic.Int64
		for i := range o.streams {
			c.Start(o.request(), &opened{shot{done: func(*shot, error) {}}, &open})
			if i%100 == 99 {
				time.Sleep(20 * time.Millisecond)
			}
		}
		for end := time.Now().Add(30 * time.Second); open.Load() < int64(o.streams) && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(2 * time.Second)
		after := rss(p.pid)
		fmt.Printf("%-9s %d open streams, resident %.1f MiB, before them %.1f: %.1f KB a stream\n", p.name, open.Load(), float64(after)/(1<<20), float64(before)/(1<<20), float64(after-before)/float64(open.Load())/1000)
		c.Close()
		time.Sleep(500 * time.Millisecond)
	}
	return nil
}

// opened counts streams whose first event is there.
type opened struct {
	shot
	n *atomic.Int64
}

func (s *opened) Data(at time.Duration, b []byte) {
	if s.first == 0 {
		s.n.Add(1)
	}
	s.shot.Data(at, b)
}
