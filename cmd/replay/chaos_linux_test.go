package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"reprise/backends/sim/engine"
	simserver "reprise/backends/sim/server"
	"reprise/internal/testnet"
	"reprise/replay"
	"reprise/traceformat"
)

// Chaos: whatever happens to a run, nothing measured is lost, nothing is
// invented, and the run says what happened to it. make chaos plays
// REPRISE_CHAOS rounds of each kind of trouble, at moments that a seed draws.
func TestChaos(t *testing.T) {
	rounds, err := strconv.Atoi(os.Getenv("REPRISE_CHAOS"))
	if err != nil {
		t.Skip("REPRISE_CHAOS says how many rounds; make chaos does")
	}
	for _, kind := range []struct {
		name string
		f    func(*testing.T, *rand.Rand)
	}{{"kill", chaosKill}, {"full disk", chaosDisk}, {"clock step", chaosClock}, {"network", chaosNetwork}, {"engine", chaosEngine}} {
		for round := range rounds {
			t.Run(fmt.Sprintf("%s/%d", kind.name, round), func(t *testing.T) {
				kind.f(t, rand.New(rand.NewPCG(uint64(round), 1)))
			})
		}
	}
}

// chaosTraffic is some 250 requests over six seconds.
var chaosTraffic = []string{"--synthetic", "rate=40,arrival=gamma:cv=2,prompt-tokens=fixed:64,output-tokens=lognormal:12,0.5", "--duration", "6s", "--telemetry", "off", "--quiet"}

// fast is an engine that is never the bottleneck.
var fast = simserver.Options{Cost: &engine.Cost{Step: 4e6}}

// local serves an engine on loopback.
func local(t *testing.T, o simserver.Options) (*witness, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return witnessAt(t, l, o), "http://" + l.Addr().String()
}

// start starts a replay of the traffic into dir.
func start(t *testing.T, env []string, dir string, args ...string) (cmd *exec.Cmd, stderr *bytes.Buffer) {
	t.Helper()
	program, err := exec.LookPath("replay")
	if err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(program, append(append(append([]string{}, chaosTraffic...), "-o", dir), args...)...)
	cmd.Env = append(os.Environ(), env...)
	stderr = new(bytes.Buffer)
	cmd.Stderr = stderr
	return cmd, stderr
}

// nothingInvented holds rows against what the engine saw.
func nothingInvented(t *testing.T, rows []*traceformat.Row, w *witness) (ok int) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	twice := map[string]bool{}
	for _, row := range rows {
		key := rowKey(row)
		if twice[key] {
			t.Errorf("%s has two rows", key)
		}
		twice[key] = true
		if _, came := w.came[key]; row.Result == traceformat.ResultOK && !came {
			t.Errorf("%s succeeded, and the engine never saw it", key)
		}
		if row.Result != traceformat.ResultOK {
			continue
		}
		ok++
		if row.ServedOutputTokens.Or(-1) != row.OutputTokens.Or(-2) || len(row.ChunkTimes) == 0 {
			t.Errorf("%s succeeded with %v of %v tokens", key, row.ServedOutputTokens, row.OutputTokens)
		}
	}
	return ok
}

// planned is the number of requests of the run, as its manifest has it.
func planned(t *testing.T, dir string) int64 {
	t.Helper()
	m, err := replay.ReadManifest(dir)
	if err != nil {
		t.Fatal(err)
	}
	return m.Plan.Rows
}

// A replay that is killed leaves all but the last second.
func chaosKill(t *testing.T, rng *rand.Rand) {
	w, url := local(t, fast)
	dir := filepath.Join(t.TempDir(), "run")
	cmd, _ := start(t, nil, dir, "--backend", "vllm="+url)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1500*time.Millisecond + time.Duration(rng.Int64N(int64(6*time.Second))))
	killed := time.Now()
	cmd.Process.Kill()
	cmd.Wait()
	rows := recovered(t, dir)
	nothingInvented(t, rows, w)
	kept := map[string]bool{}
	for _, row := range rows {
		kept[rowKey(row)] = true
	}
	const last = 1500 * time.Millisecond // a second, and what a busy disk and machine add
	lost := 0
	for key, at := range w.done {
		if killed.Sub(at) > last && !kept[key] {
			lost++
			t.Errorf("%s ended %v before the kill and is lost", key, killed.Sub(at))
		}
	}
	t.Logf("killed after %d answers: %d rows kept, %d lost that ended more than %v before", len(w.done), len(rows), lost, last)
}

// recovered reads what a run left, with the trace program where the run did not
// close its file.
func recovered(t *testing.T, dir string) []*traceformat.Row {
	t.Helper()
	if _, err := os.Stat(filepath.Join(dir, replay.TraceFile)); err != nil {
		if _, err := traceformat.Recover(filepath.Join(dir, traceformat.JournalPath(replay.TraceFile)), filepath.Join(dir, replay.TraceFile)); err != nil {
			t.Fatalf("recover: %v", err)
		}
	}
	return readRows(t, dir)
}

// A disk that is full ends the run with its name, and what was on it is whole.
func chaosDisk(t *testing.T, rng *rand.Rand) {
	w, url := local(t, fast)
	disk := t.TempDir()
	size := 60 + rng.IntN(60) // KiB
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, fmt.Sprintf("size=%dk", size)); err != nil {
		t.Skipf("no small disk here: %v", err)
	}
	defer syscall.Unmount(disk, syscall.MNT_DETACH)
	dir := filepath.Join(disk, "run")
	cmd, stderr := start(t, nil, dir, "--backend", "vllm="+url)
	err := cmd.Run()
	full := strings.Contains(stderr.String(), "no space left")
	if (err != nil && cmd.ProcessState.ExitCode() != 3) != full {
		t.Fatalf("%v\n%s", err, stderr)
	}
	if err := syscall.Mount("", disk, "", syscall.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	rows := recovered(t, dir)
	ok := nothingInvented(t, rows, w)
	if full && ok == 0 && len(w.done) > 100 {
		t.Errorf("%d answers were complete, and nothing of them is left", len(w.done))
	}
	t.Logf("%d KiB: full %v, %d of %d answers kept", size, full, ok, len(w.done))
}

// A wall clock that is set while a run goes on changes nothing of it.
func chaosClock(t *testing.T, rng *rand.Rand) {
	w, url := local(t, fast)
	dir := filepath.Join(t.TempDir(), "run")
	step := time.Duration(rng.Int64N(int64(48*time.Hour))) - 24*time.Hour
	cmd, stderr := start(t, []string{fmt.Sprintf("%s=%v@%v", wrongClock, step, time.Duration(rng.Int64N(int64(6*time.Second))))}, dir, "--backend", "vllm="+url)
	if err := cmd.Run(); err != nil && cmd.ProcessState.ExitCode() != 3 {
		t.Fatalf("%v\n%s", err, stderr)
	}
	rows := readRows(t, dir)
	if ok := nothingInvented(t, rows, w); int64(ok) != planned(t, dir) {
		t.Errorf("%d of %d requests succeeded", ok, planned(t, dir))
	}
	for _, row := range rows {
		if late := row.Sent.Or(-1) - row.Scheduled.Or(0); late < 0 || late > 5*time.Second || row.E2E.Or(-1) < 0 || row.E2E.Or(0) > 30*time.Second {
			t.Errorf("%s: sent %v after its time, ended after %v", rowKey(row), late, row.E2E)
		}
	}
}

// A network that loses packets, delays them and fails for a while: each request
// has one row, and says how it ended.
func chaosNetwork(t *testing.T, rng *rand.Rand) {
	var down atomic.Bool
	loss, delay := rng.Float64()*0.1, time.Duration(rng.Int64N(int64(30*time.Millisecond)))
	network := testnet.New(t, 2, rng.Uint64(), func(from, to int) testnet.Link {
		if down.Load() {
			return testnet.Link{Loss: 1}
		}
		return testnet.Link{Delay: delay, Loss: loss}
	})
	var l net.Listener
	if err := network.On(1, func() (err error) {
		l, err = net.Listen("tcp", network.Addr(1)+":0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	w := witnessAt(t, l, fast)
	dir := filepath.Join(t.TempDir(), "run")
	cmd, stderr := start(t, nil, dir, "--backend", "vllm=http://"+l.Addr().String(), "--first-token-timeout", "4s", "--idle-timeout", "4s", "--connect-timeout", "4s", "--grace", "5s")
	if err := network.Start(0, cmd); err != nil {
		t.Fatal(err)
	}
	go func() {
		time.Sleep(2*time.Second + time.Duration(rng.Int64N(int64(3*time.Second))))
		down.Store(true)
		time.Sleep(time.Duration(rng.Int64N(int64(6 * time.Second))))
		down.Store(false)
	}()
	err := cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); err != nil && code != 3 && code != 1 {
		t.Fatalf("%v\n%s", err, stderr)
	}
	if _, err := os.Stat(filepath.Join(dir, "run.json")); err != nil {
		// It was down before the run could begin, and that is said.
		if !strings.Contains(stderr.String(), network.Addr(1)) {
			t.Errorf("no run, and the reason names no server:\n%s", stderr)
		}
		return
	}
	rows := readRows(t, dir)
	ok := nothingInvented(t, rows, w)
	if int64(len(rows)) != planned(t, dir) {
		t.Errorf("%d rows of %d requests", len(rows), planned(t, dir))
	}
	ends := map[string]int{}
	for _, row := range rows {
		if row.Result != traceformat.ResultOK && row.Error == "" {
			t.Errorf("%s ended as %q and says not why", rowKey(row), row.Result)
		}
		ends[row.Result+" "+row.Error]++
	}
	said(t, dir, ok)
	t.Logf("loss %.1f %%, delay %v: %v", 100*loss, delay, ends)
}

// An engine that crashes, hangs or goes away in the middle.
func chaosEngine(t *testing.T, rng *rand.Rand) {
	kinds := []simserver.FaultKind{simserver.Die, simserver.Stall, simserver.Truncate, simserver.ErrorEvent}
	o := fast
	fault := simserver.Fault{Kind: kinds[rng.IntN(len(kinds))], After: rng.IntN(5), Every: 1 + rng.IntN(20)}
	o.Faults = []simserver.Fault{fault}
	w, url := local(t, o)
	dir := filepath.Join(t.TempDir(), "run")
	cmd, stderr := start(t, nil, dir, "--backend", "vllm="+url, "--first-token-timeout", "2s", "--idle-timeout", "2s")
	if err := cmd.Run(); err != nil && cmd.ProcessState.ExitCode() != 3 && cmd.ProcessState.ExitCode() != 1 {
		t.Fatalf("%v\n%s", err, stderr)
	}
	rows := readRows(t, dir)
	ok := nothingInvented(t, rows, w)
	if int64(len(rows)) != planned(t, dir) {
		t.Errorf("%d rows of %d requests", len(rows), planned(t, dir))
	}
	if fault.Every > 1 && ok == 0 || fault.Every == 1 && ok == len(rows) {
		t.Errorf("%d of %d requests succeeded under %+v", ok, len(rows), fault)
	}
	said(t, dir, ok)
	t.Logf("%s after %d tokens of every %d: %d of %d ok", fault.Kind, fault.After, fault.Every, ok, len(rows))
}

// said checks that the manifest counts what the rows hold.
func said(t *testing.T, dir string, ok int) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "run.json"))
	if err != nil {
		t.Fatal(err)
	}
	var m struct {
		State   string
		Summary struct{ Requests struct{ OK int } }
	}
	if err := json.Unmarshal(b, &m); err != nil || m.State == replay.StateRunning || m.Summary.Requests.OK != ok {
		t.Errorf("run.json: %v; state %q, %d ok, and the rows have %d", err, m.State, m.Summary.Requests.OK, ok)
	}
}
