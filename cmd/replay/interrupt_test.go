package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"reprise/replay"
	"reprise/traceformat"
)

// interrupt runs a command and sends it an interrupt as soon as its stderr has
// text: interrupt 1 TEXT replay ... (2 sends a second one soon after). It
// expects exit status 130.
func interrupt(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 3 {
		ts.Fatalf("usage: interrupt TIMES TEXT COMMAND...")
	}
	path, err := exec.LookPath(args[2])
	ts.Check(err)
	cmd := exec.Command(path, args[3:]...)
	cmd.Dir = ts.Getenv("WORK")
	var stdout bytes.Buffer
	stderr := &watched{text: args[1], seen: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = &stdout, stderr
	ts.Check(cmd.Start())
	select {
	case <-stderr.seen:
	case <-time.After(30 * time.Second):
		cmd.Process.Kill()
		ts.Fatalf("no %q on stderr", args[1])
	}
	time.Sleep(1500 * time.Millisecond) // into the run
	ts.Check(cmd.Process.Signal(os.Interrupt))
	if args[0] == "2" {
		time.Sleep(200 * time.Millisecond)
		ts.Check(cmd.Process.Signal(os.Interrupt))
	}
	_ = cmd.Wait()
	ts.Logf("%s\n%s", stdout.String(), stderr.all.String())
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		ts.Fatalf("exit status %d, want 130", code)
	}
}

type watched struct {
	all  bytes.Buffer
	text string
	seen chan struct{}
	done bool
}

func (w *watched) Write(b []byte) (int, error) {
	w.all.Write(b)
	if !w.done && strings.Contains(w.all.String(), w.text) {
		w.done = true
		close(w.seen)
	}
	return len(b), nil
}

// A run that is killed keeps all but its last second, and recover restores it.
func TestKilledRunIsRecovered(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	path, err := exec.LookPath("replay")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "../../testdata/demo.parquet", "-o", dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(6 * time.Second)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("the run ended before it was killed: %v", cmd.ProcessState)
	}
	trace := filepath.Join(dir, replay.TraceFile)
	r, err := traceformat.Recover(traceformat.JournalPath(trace), trace)
	if err != nil {
		t.Fatal(err)
	}
	rows := readRows(t, dir)
	if int64(len(rows)) != r.Rows || len(rows) < 20 {
		t.Fatalf("%d rows in the file, %d recovered; want at least 20 after 5 s of the run", len(rows), r.Rows)
	}
	last := time.Duration(0)
	for _, row := range rows {
		last = max(last, row.Close.V)
		if row.Result != traceformat.ResultOK {
			t.Errorf("request %d: %s %s", row.ID, row.Result, row.Error)
		}
	}
	// The run's clock starts about 0.6 s after the process.
	if last < 3500*time.Millisecond {
		t.Errorf("the last row ended %v into the run, which was killed after about 5 s", last)
	}
}
