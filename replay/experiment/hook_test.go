//go:build unix

package experiment

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

var hooked = Run{Number: 7, Cell: "vllm", Repeat: 3}

func TestHookEnvironment(t *testing.T) {
	dir := t.TempDir()
	err := hook(t.Context(), beforeRun, `echo "$REPRISE_HOOK $REPRISE_CELL $REPRISE_REPEAT $REPRISE_RUN $REPRISE_URL"; cat`, dir, hooked, "http://127.0.0.1:8000", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, HookFile))
	if err != nil || !strings.HasPrefix(string(b), "--- before-run, 2") || !strings.HasSuffix(string(b), "\nbefore-run vllm 3 7 http://127.0.0.1:8000\n") {
		t.Errorf("hook.log is %q, %v", b, err)
	}
}

// What a failing hook printed is shown, and cannot move the cursor. What came
// before it is not.
func TestHookFails(t *testing.T) {
	dir := t.TempDir()
	if err := hook(t.Context(), beforeRun, `echo earlier`, dir, hooked, "", time.Minute); err != nil {
		t.Fatal(err)
	}
	err := hook(t.Context(), beforeRun, `printf 'no GPU\033[2J left\n' >&2; exit 3`, dir, hooked, "", time.Minute)
	if err == nil || !strings.Contains(err.Error(), "before-run of vllm: exit status 3\n  | no GPU[2J left") || strings.Contains(err.Error(), "earlier") {
		t.Errorf("%q", err)
	}
}

// A hook that takes too long, or that is interrupted, dies with all that it
// started in the foreground or background.
func TestHookIsKilledWithItsGroup(t *testing.T) {
	for _, why := range []string{"timeout", "interrupt"} {
		dir := t.TempDir()
		pids := filepath.Join(dir, "pids")
		ctx, cancel := context.WithCancel(t.Context())
		timeout := 500 * time.Millisecond
		if why == "interrupt" {
			timeout = time.Hour
			time.AfterFunc(500*time.Millisecond, cancel)
		}
		// One child listens to SIGTERM, the other does not.
		err := hook(ctx, beforeRun, `sh -c 'trap "" TERM; sleep 600 & echo $! >> "$1"; wait' - `+pids+` & echo $! >> `+pids+`; sleep 600`, dir, hooked, "", timeout)
		cancel()
		if err == nil || errors.Is(err, context.Canceled) != (why == "interrupt") {
			t.Errorf("%s: %v", why, err)
		}
		b, err := os.ReadFile(pids)
		if err != nil || len(strings.Fields(string(b))) != 2 {
			t.Fatalf("%s: pids %q, %v", why, b, err)
		}
		for pid := range strings.FieldsSeq(string(b)) {
			n, err := strconv.Atoi(pid)
			if err != nil {
				t.Fatal(err)
			}
			gone := false
			for range 50 {
				if gone = dead(n); gone {
					break
				}
				time.Sleep(100 * time.Millisecond)
			}
			if !gone {
				t.Errorf("%s: process %d lives on", why, n)
			}
		}
	}
}

// dead says that a process is gone, or that nobody waits for it.
func dead(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return true
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err == nil && strings.Contains(string(b), ") Z ")
}

// An engine that a hook starts in the background outlives the hook.
func TestHookLeavesTheBackgroundAlone(t *testing.T) {
	dir := t.TempDir()
	start := time.Now()
	if err := hook(t.Context(), beforeRun, `sleep 600 & echo $! > "`+dir+`/pid"`, dir, hooked, "", time.Hour); err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(filepath.Join(dir, "pid"))
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(pid, syscall.SIGKILL)
	if dead(pid) || time.Since(start) > 5*time.Minute {
		t.Error("the engine is gone, or the hook waited for it")
	}
}

// Hooks surround every run, a failing one fails it, and the hook after it is run
// all the same.
func TestHooksOfASequence(t *testing.T) {
	plan := testPlan(1, "a", "b")
	log := filepath.Join(t.TempDir(), "log")
	for i := range plan.Cells {
		plan.Cells[i].Before = "echo start $REPRISE_CELL >> " + log + "; test $REPRISE_CELL = b"
		plan.Cells[i].After = "echo stop $REPRISE_CELL >> " + log
	}
	f := create(t, plan)
	p := newPlayer(t, f)
	p.Retries = 0
	if err := p.run(); err != nil {
		t.Fatal(err)
	}
	if len(p.played) != 1 || p.played[0] != "b-1" || f.State.Count(Failed) != 1 {
		t.Errorf("played %v: %+v", p.played, f.State.Runs)
	}
	b, _ := os.ReadFile(log)
	if s := string(b); !strings.Contains(s, "start a\nstop a\n") || !strings.Contains(s, "start b\nstop b\n") {
		t.Errorf("hooks said %q", s)
	}
	for _, r := range f.State.Runs {
		if r.Cell == "a" && !strings.Contains(r.Reason, "before-run of a: exit status 1") {
			t.Errorf("reason %q", r.Reason)
		}
	}
}

// A hook after a run that was measured fails it too: it may be what checks that
// the engine was all right.
func TestAfterHookFails(t *testing.T) {
	plan := testPlan(1, "a")
	plan.Cells[0].After = "exit 1"
	f := create(t, plan)
	p := newPlayer(t, f)
	p.Retries = 0
	if err := p.run(); err != nil || f.State.Count(Failed) != 1 {
		t.Errorf("%v, %+v", err, f.State.Runs)
	}
	if _, err := os.Stat(filepath.Join(f.RunPath(plan.Runs[0])+".failed-1", HookFile)); err != nil {
		t.Error(err)
	}
}
