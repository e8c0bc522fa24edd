package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"reprise/backends/sim/engine"
	simserver "reprise/backends/sim/server"
	"reprise/gpu"
	"reprise/gpu/agent"
	"reprise/internal/testnet"
	"reprise/replay"
	"reprise/report"
	"reprise/traceformat"
)

// Sixteen machines with clocks that are up to minutes wrong play one run over a
// network that delays each of them differently and loses packets. Joined, it is
// the run that one machine would have played.
func TestShardsOverANetwork(t *testing.T) {
	const shards, lead = 16, 12 * time.Second
	delay := func(i int) time.Duration { return time.Duration(1+i) * time.Millisecond } // and half of it back
	network := testnet.New(t, shards+1, 7, func(from, to int) testnet.Link {
		if from == shards {
			return testnet.Link{Delay: delay(to) / 2, Loss: 0.005}
		}
		return testnet.Link{Delay: delay(from), Loss: 0.005}
	})
	address := network.Addr(shards)

	telling := agent.HTTP(agent.NewServer(agent.Options{}, func() []gpu.SourceStatus { return nil }).Handler())
	var api, clock net.Listener
	if err := network.On(shards, func() (err error) {
		if api, err = net.Listen("tcp", address+":0"); err == nil {
			clock, err = net.Listen("tcp", address+":0")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	truth := witnessAt(t, api, simserver.Options{Cost: &engine.Cost{Step: 1e6}})
	go telling.Serve(clock)
	defer telling.Close()

	dir := t.TempDir()
	program, err := exec.LookPath("replay")
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(lead).Truncate(time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var processes []*exec.Cmd
	var dirs []string
	for i := range shards {
		dirs = append(dirs, filepath.Join(dir, fmt.Sprintf("shard-%02d", i)))
		cmd := exec.CommandContext(ctx, program, "--synthetic", "rate=40,arrival=gamma:cv=2,prompt-tokens=fixed:64,output-tokens=fixed:8", "--duration", "6s", "--backend", "vllm", "--url", "http://"+api.Addr().String(),
			"--shard", fmt.Sprintf("%d/%d", i, shards), "--start-at", at.Format(time.RFC3339Nano), "--clock", "http://"+clock.Addr().String(),
			"--max-clock-error", "20ms", "--telemetry", "off", "--quiet", "-o", dirs[i])
		wrong := time.Duration(i-shards/2) * 13 * time.Second // up to 104 s behind and 91 ahead
		cmd.Env = append(os.Environ(), wrongClock+"="+wrong.String())
		var diag bytes.Buffer
		cmd.Stderr = &diag
		if err := network.Start(i, cmd); err != nil {
			t.Fatal(err)
		}
		processes = append(processes, cmd)
	}
	for i, cmd := range processes {
		// A busy machine may make a run invalid; this test is of starts and counts.
		if err := cmd.Wait(); err != nil && cmd.ProcessState.ExitCode() != 3 {
			t.Fatalf("shard %d: %v\n%s", i, err, cmd.Stderr)
		}
	}

	m, err := report.Merge(t.Context(), report.MergeConfig{Shards: dirs, Out: filepath.Join(dir, "run")})
	if err != nil {
		t.Fatal(err)
	}
	if m.Merge.Of != shards || m.Merge.OffsetMax > time.Millisecond {
		t.Errorf("joined %d shards that say to have begun up to %v apart", m.Merge.Of, m.Merge.OffsetMax)
	}
	_, lost := network.Counts()
	if lost == 0 {
		t.Error("the network lost nothing")
	}

	of := map[string]int{} // the shard of a request
	for i, d := range dirs {
		for _, row := range readRows(t, filepath.Join(d, replay.TraceFile)) {
			of[rowKey(row)] = i
		}
	}
	rows := readRows(t, filepath.Join(dir, "run", replay.TraceFile))
	late, sendError := make([][]time.Duration, shards), []time.Duration{}
	for _, row := range rows {
		came, ok := truth.came[rowKey(row)]
		shard, played := of[rowKey(row)]
		if !ok || !played || row.Result != traceformat.ResultOK {
			t.Fatalf("request %s: seen %v, of a shard %v, %s %s", rowKey(row), ok, played, row.Result, row.Error)
		}
		late[shard] = append(late[shard], came.Sub(at)-delay(shard)-row.Scheduled.Or(0))
		sendError = append(sendError, row.Sent.Or(math.MaxInt64)-row.Scheduled.Or(0))
	}
	if planned := m.Plan.All; int64(len(rows)) != planned || int64(len(truth.came)) != planned || truth.again != 0 {
		t.Errorf("%d rows, %d requests at the server, %d of them twice; planned were %d", len(rows), len(truth.came), truth.again, planned)
	}
	var all []time.Duration
	for i, l := range late {
		slices.Sort(l)
		all = append(all, l...)
		// The quickest tenth: what the network lost, and what a busy machine kept
		// from the witness, comes later, and that is no fault of the start. A
		// quarter of the delay is what cannot be measured, as the way there takes
		// twice as long as the way back.
		if quick := l[len(l)/10]; quick.Abs() > 5*time.Millisecond+delay(i)/4 {
			t.Errorf("shard %d sent its requests %v after the plan, by the server's clock", i, quick)
		}
	}
	slices.Sort(all)
	slices.Sort(sendError)
	t.Logf("%d requests of %d shards; %d packets lost; at the server, less the delay: p50 %v p90 %v p99 %v after the plan; sent: p99 %v",
		len(rows), shards, lost, all[len(all)/2], all[len(all)*9/10], all[len(all)*99/100], sendError[len(sendError)*99/100])
}

// A witness is an engine that remembers who asked when, and whose answer was
// written to its end.
type witness struct {
	mu    sync.Mutex
	came  map[string]time.Time // by X-Request-Id
	done  map[string]time.Time
	again int // requests that came more than once
}

// witnessAt serves an engine at l until the test ends.
func witnessAt(t *testing.T, l net.Listener, o simserver.Options) *witness {
	t.Helper()
	server, err := simserver.New(o)
	if err != nil {
		t.Fatal(err)
	}
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve(inner)
	w := &witness{came: map[string]time.Time{}, done: map[string]time.Time{}}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: inner.Addr().String()})
	proxy.FlushInterval = -1
	proxy.ErrorLog = log.New(io.Discard, "", 0)
	front := &http.Server{ErrorLog: proxy.ErrorLog, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		id := r.Header.Get("X-Request-Id")
		if id != "" {
			w.note(w.came, id)
		}
		// Without it, net/http closes the request's body when the answer begins,
		// and the proxy's writer may be about to look for its end: the answer is
		// then cut short.
		http.NewResponseController(rw).EnableFullDuplex()
		proxy.ServeHTTP(rw, r) // panics where the answer is cut short
		if id != "" {
			w.note(w.done, id)
		}
	})}
	go front.Serve(l)
	t.Cleanup(func() {
		front.Close()
		server.Close()
	})
	return w
}

func (w *witness) note(where map[string]time.Time, id string) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, again := where[id]; again {
		w.again++
	}
	where[id] = now
}

// rowKey is the X-Request-Id of a row.
func rowKey(row *traceformat.Row) string { return fmt.Sprintf("reprise-%d-%d", row.Lap, row.ID) }
