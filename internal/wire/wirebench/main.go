// Wirebench measures how many streaming requests a second each wire client
// carries: in a closed loop, against the mock server, each on one core.
//
//	go run ./internal/wire/wirebench
//
// It starts the mock on one core and the clients on another, in turns, wrk
// among them where it is installed, and prints a line for each run. With
// -client it is one of those clients.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"reprise/internal/clock"
	"reprise/internal/cores"
	"reprise/internal/llmapi"
	"reprise/internal/wire"
	"reprise/internal/wire/mock"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "wirebench:", err)
		os.Exit(1)
	}
}

// A result is what one client did.
type result struct {
	Client   string  `json:"client"`
	Requests int64   `json:"requests"`
	Events   int64   `json:"events"`
	Failed   int64   `json:"failed"`
	Rate     float64 `json:"requests_per_s"`
	CPU      float64 `json:"cpu_us_per_request"`
	MaxRSS   int64   `json:"max_rss_kb"`
}

type options struct {
	conns    int
	duration time.Duration
	events   int
	perWrite int
	body     int
	profile  string
}

func run() error {
	var o options
	serve := flag.String("serve", "", "be the mock server, on this `address`, until stdin ends")
	client := flag.String("client", "", "be one client: raw or std")
	url := flag.String("url", "", "server of -client")
	rounds := flag.Int("rounds", 3, "times each client runs, in turns")
	flag.IntVar(&o.conns, "conns", 64, "requests in flight")
	flag.DurationVar(&o.duration, "duration", 3*time.Second, "of one run")
	flag.IntVar(&o.events, "events", 16, "token events of an answer")
	flag.IntVar(&o.perWrite, "per-write", 0, "token events that the server writes at once, 0: all")
	flag.IntVar(&o.body, "prompt", 20, "token ids in a request")
	flag.StringVar(&o.profile, "profile", "", "with -client, `file` for a CPU profile")
	flag.Parse()
	switch {
	case *serve != "":
		return serveMock(*serve, o)
	case *client != "":
		r, err := load(*client, *url, o)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(r)
	}
	return compare(*rounds, o)
}

func serveMock(addr string, o options) error {
	s, err := mock.Listen(addr, mock.Options{Events: o.events, PerWrite: o.perWrite})
	if err != nil {
		return err
	}
	defer s.Close()
	fmt.Println(s.Addr())
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func (o *options) request() []byte {
	var ids []byte
	for i := range o.body {
		ids = append(strconv.AppendInt(ids, int64(1000+i), 10), ',')
	}
	return fmt.Appendf(nil, `{"prompt":[%s],"max_tokens":%d,"stream":true}`, strings.TrimSuffix(string(ids), ","), o.events)
}

// A loop is one of the requests in flight: it starts itself again.
type loop struct {
	client wire.Client
	req    wire.Request
	sse    llmapi.SSE
	stop   *atomic.Bool
	wg     *sync.WaitGroup
	total  *totals
	stamps []time.Duration
	want   int
}

type totals struct{ requests, events, failed atomic.Int64 }

func (l *loop) Conn(time.Duration, bool)       {}
func (l *loop) Sent(first, last time.Duration) {}
func (l *loop) Head(time.Duration, wire.Head)  { l.stamps = l.stamps[:0] }
func (l *loop) Data(at time.Duration, b []byte) {
	l.sse.Feed(b)
	for _, ok := l.sse.Next(); ok; _, ok = l.sse.Next() {
		l.stamps = append(l.stamps, at)
	}
}

func (l *loop) Close(at time.Duration, err error) {
	if err != nil || len(l.stamps) != l.want {
		l.total.failed.Add(1)
	} else {
		l.total.requests.Add(1)
		l.total.events.Add(int64(len(l.stamps) - 2)) // but usage and [DONE]
	}
	l.sse = llmapi.SSE{}
	if l.stop.Load() || errors.Is(err, wire.ErrAborted) {
		l.wg.Done()
		return
	}
	l.client.Start(&l.req, l)
}

func load(kind, url string, o options) (*result, error) {
	open := map[string]func(string, wire.Options) (wire.Client, error){"raw": wire.NewRaw, "std": wire.NewStd}[kind]
	if open == nil {
		return nil, fmt.Errorf("no client %q", kind)
	}
	c, err := open(url, wire.Options{})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.Warm(o.conns); err != nil {
		return nil, err
	}
	if o.profile != "" {
		f, err := os.Create(o.profile)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return nil, err
		}
		defer pprof.StopCPUProfile()
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	var total totals
	began, cpu := clock.Now(), cpuTime()
	for range o.conns {
		wg.Add(1)
		l := &loop{client: c, stop: &stop, wg: &wg, total: &total, want: o.events + 2}
		l.req = wire.Request{Method: "POST", Path: "/v1/completions", Body: o.request()}
		c.Start(&l.req, l)
	}
	time.Sleep(o.duration)
	stop.Store(true)
	wg.Wait()
	took := clock.Now() - began
	n := total.requests.Load()
	r := &result{Client: kind, Requests: n, Events: total.events.Load(), Failed: total.failed.Load(), Rate: float64(n) / took.Seconds(), MaxRSS: maxRSS()}
	r.CPU = float64((cpuTime() - cpu).Microseconds()) / float64(max(1, n))
	return r, nil
}

// compare runs everything and prints it.
func compare(rounds int, o options) error {
	if runtime.NumCPU() < 2 {
		return errors.New("this needs two cores: one for the server, one for the client")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	flags := []string{"-conns", strconv.Itoa(o.conns), "-duration", o.duration.String(), "-events", strconv.Itoa(o.events),
		"-per-write", strconv.Itoa(o.perWrite), "-prompt", strconv.Itoa(o.body)}
	server, addr, err := startMock(self, flags)
	if err != nil {
		return err
	}
	defer server()
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt)
	url := "http://" + addr
	script, err := os.CreateTemp("", "wirebench-*.lua")
	if err != nil {
		return err
	}
	defer os.Remove(script.Name())
	fmt.Fprintf(script, "wrk.method = 'POST'\nwrk.path = '/v1/completions'\nwrk.headers['Content-Type'] = 'application/json'\nwrk.body = '%s'\n", o.request())
	script.Close()

	load, _ := os.ReadFile("/proc/loadavg")
	fmt.Printf("%d cores, load %s%d requests in flight, %d events each\n", runtime.NumCPU(), load, o.conns, o.events)
	rates, costs := map[string][]float64{}, map[string][]float64{}
	for round := range rounds {
		for _, kind := range []string{"std", "raw", "wrk"} {
			select {
			case <-interrupted:
				return errors.New("interrupted")
			default:
			}
			var r result
			if kind == "wrk" {
				if r, err = runWrk(url, script.Name(), o); errors.Is(err, exec.ErrNotFound) {
					continue
				}
			} else {
				r, err = runClient(self, kind, url, flags)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", kind, err)
			}
			rates[kind], costs[kind] = append(rates[kind], r.Rate), append(costs[kind], r.CPU)
			fmt.Printf("round %d  %-4s %8.0f requests/s  %6.2f us CPU a request\n", round+1, kind, r.Rate, r.CPU)
		}
	}
	// On a busy machine the rates say who else ran. A request's CPU time says
	// less of them, and its inverse what a core of one's own would carry.
	for _, kind := range []string{"std", "raw", "wrk"} {
		if len(rates[kind]) > 0 {
			rate, cost := median(rates[kind]), median(costs[kind])
			fmt.Printf("median   %-4s %8.0f requests/s  %6.2f us CPU a request, so %.0f a core", kind, rate, cost, 1e6/cost)
			if len(rates["wrk"]) > 0 {
				fmt.Printf(": %.2f and %.2f of wrk", rate/median(rates["wrk"]), median(costs["wrk"])/cost)
			}
			fmt.Println()
		}
	}
	return nil
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

func startMock(self string, flags []string) (stop func(), addr string, err error) {
	cmd := exec.Command(self, append([]string{"-serve", "127.0.0.1:0"}, flags...)...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, "", err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, "", err
	}
	if err := cores.Start(cmd, 0); err != nil {
		return nil, "", err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, "", errors.Join(err, cmd.Wait())
	}
	return func() { in.Close(); cmd.Wait() }, strings.TrimSpace(line), nil
}

func runClient(self, kind, url string, flags []string) (r result, err error) {
	cmd := exec.Command(self, append([]string{"-client", kind, "-url", url}, flags...)...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cores.Start(cmd, 1); err != nil {
		return r, err
	}
	if err := cmd.Wait(); err != nil {
		return r, err
	}
	if err := json.Unmarshal([]byte(out.String()), &r); err != nil {
		return r, err
	}
	if r.Failed > 0 {
		return r, fmt.Errorf("%d requests failed", r.Failed)
	}
	return r, nil
}

func runWrk(url, script string, o options) (r result, err error) {
	cmd := exec.Command("wrk", "-t1", "-c"+strconv.Itoa(o.conns), "-d"+o.duration.String(), "-s", script, url)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	if err := cores.Start(cmd, 1); err != nil {
		return r, err
	}
	if err := cmd.Wait(); err != nil {
		return r, err
	}
	for line := range strings.Lines(out.String()) {
		line = strings.TrimSpace(line)
		if rate, ok := strings.CutPrefix(line, "Requests/sec:"); ok {
			r.Rate, err = strconv.ParseFloat(strings.TrimSpace(rate), 64)
		} else if n, _, ok := strings.Cut(line, " requests in "); ok {
			r.Requests, err = strconv.ParseInt(n, 10, 64)
		}
		if err != nil {
			return r, err
		}
	}
	if r.Rate == 0 || r.Requests == 0 {
		return r, fmt.Errorf("no rate in %q", out.String())
	}
	cpu := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	r.CPU = float64(cpu.Microseconds()) / float64(r.Requests)
	return r, nil
}
