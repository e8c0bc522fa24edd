package agent

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"reprise/gpu"
	"reprise/internal/clock"
)

// A relay passes connections on, with a delay each way.
type relay struct {
	l           net.Listener
	to          string
	there, back func() time.Duration
	all         sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
}

func newRelay(t testing.TB, to string, there, back func() time.Duration) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{l: l, to: to, there: there, back: back}
	r.all.Go(r.accept)
	t.Cleanup(func() {
		l.Close()
		r.mu.Lock()
		for _, c := range r.conns {
			c.Close()
		}
		r.mu.Unlock()
		r.all.Wait()
	})
	return r
}

func (r *relay) accept() {
	for {
		in, err := r.l.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", r.to)
		if err != nil {
			in.Close()
			return
		}
		r.mu.Lock()
		r.conns = append(r.conns, in, out)
		r.mu.Unlock()
		r.all.Go(func() { pass(out, in, r.there) })
		r.all.Go(func() { pass(in, out, r.back) })
	}
}

// pass moves what comes from src to dst, late. Order is kept: questions here
// are one at a time.
func pass(dst, src net.Conn, delay func() time.Duration) {
	defer dst.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		if err != nil {
			return
		}
		time.Sleep(delay())
		if _, err := dst.Write(buf[:n]); err != nil {
			return
		}
	}
}

// offsets takes n readings of an agent whose clock is ahead by truth, and
// returns the worst error, checking every bound.
func offsets(t testing.TB, url string, dial func(context.Context, string, string) (net.Conn, error), truth time.Duration, n int) (worst, bound time.Duration) {
	t.Helper()
	r := remote(t, RemoteOptions{URL: url, Dial: dial})
	for range n {
		all, err := reading(t, r)
		if err != nil {
			t.Fatal(err)
		}
		offset, b, ok := r.Offset(clock.Now())
		if !ok {
			t.Fatal("no offset")
		}
		worst, bound = max(worst, (offset-truth).Abs()), b
		if (offset - truth).Abs() > b {
			t.Errorf("offset %v is off by %v, and its bound is %v", offset, offset-truth, b)
		}
		// What is stored is what was measured.
		if off, ok := find(all, gpu.MetricClockOffset); ok {
			e, _ := find(all, gpu.MetricClockError)
			if d := off.Value - truth.Seconds(); max(d, -d) > e.Value+1e-9 {
				t.Errorf("stored offset %v s with error %v s, truth %v", off.Value, e.Value, truth)
			}
		}
	}
	return worst, bound
}

func serve(t testing.TB, l net.Listener, truth time.Duration) {
	t.Helper()
	srv := HTTP(NewServer(Options{Now: func() time.Duration { return clock.Now() + truth }}, nil).Handler())
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-done })
}

// delayCases are ways of unequal length. The truth is injected through the
// agent's clock.
var delayCases = []struct {
	name        string
	there, back time.Duration
	truth       time.Duration
}{
	{"loopback", 0, 0, 0},
	{"loopback, clocks an hour apart", 0, 0, time.Hour},
	{"5 ms each way", 5 * ms, 5 * ms, -time.Minute},
	{"20 ms there, 1 ms back", 20 * ms, ms, time.Second},
	{"1 ms there, 30 ms back", ms, 30 * ms, -time.Second},
}

// In every trial the truth lies within the bound, however unequal the ways.
func TestOffsetBound(t *testing.T) {
	for _, tt := range delayCases {
		for trial := range 2 {
			t.Run(fmt.Sprintf("%s/%d", tt.name, trial), func(t *testing.T) {
				t.Parallel() // mostly, they wait for their delays
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				serve(t, l, tt.truth)
				rng := rand.New(rand.NewPCG(uint64(trial), 1))
				var mu sync.Mutex
				way := func(d time.Duration) func() time.Duration {
					return func() time.Duration {
						mu.Lock()
						defer mu.Unlock()
						if d == 0 {
							return 0
						}
						return d + time.Duration(rng.Int64N(int64(2*ms)))
					}
				}
				addr := l.Addr().String()
				if tt.there+tt.back > 0 {
					addr = newRelay(t, addr, way(tt.there), way(tt.back)).l.Addr().String()
				}
				worst, bound := offsets(t, "http://"+addr, nil, tt.truth, 5)
				t.Logf("worst error %v, last bound %v", worst, bound)
			})
		}
	}
}

// BenchmarkOffset reports the error of the offset over loopback and over equal
// delays, in µs. The issue is whether it stays below 1,000.
func BenchmarkOffset(b *testing.B) {
	for _, delay := range []time.Duration{0, 5 * ms} {
		b.Run(delay.String(), func(b *testing.B) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			serve(b, l, 0)
			addr := l.Addr().String()
			if delay > 0 {
				way := func() time.Duration { return delay }
				addr = newRelay(b, addr, way, way).l.Addr().String()
			}
			n := 0
			var worst time.Duration
			for b.Loop() {
				w, _ := offsets(b, "http://"+addr, nil, 0, 4)
				worst = max(worst, w)
				n++
			}
			b.ReportMetric(float64(worst.Microseconds()), "µs-worst")
		})
	}
}
