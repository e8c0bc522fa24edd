package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"reprise/backends/launch"
	"reprise/backends/sim"
	"reprise/internal/wallclock"
	"reprise/replay/selftest"
)

func TestMain(m *testing.M) {
	launch.MaybeKeep()
	sim.MaybeServe()
	selftest.MaybeServe()
	testscript.Main(m, map[string]func(){"replay": func() { setClock(); main() }})
}

// wrongClock names the environment variable by which a test's replay has a clock
// that is wrong: by OFFSET, or by OFFSET from AFTER the start on, OFFSET@AFTER.
const wrongClock = "REPRISE_TEST_CLOCK_OFFSET"

func setClock() {
	offset, after, _ := strings.Cut(os.Getenv(wrongClock), "@")
	off, err := time.ParseDuration(offset)
	if err != nil {
		return
	}
	began := time.Now()
	wait, _ := time.ParseDuration(after)
	wallclock.Now = func() time.Time {
		now := time.Now()
		if now.Sub(began) < wait {
			return now
		}
		return now.Add(off)
	}
}

// TestScripts runs the commands of testdata/script as a user would type them.
func TestScripts(t *testing.T) {
	demo, err := os.ReadFile("../../testdata/demo.parquet")
	if err != nil {
		t.Fatal(err)
	}
	vocabulary, err := os.ReadFile("../../internal/tokenizer/testdata/llama3.json")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(e *testscript.Env) error {
			return errors.Join(os.WriteFile(e.WorkDir+"/demo.parquet", demo, 0o644), os.WriteFile(e.WorkDir+"/tokenizer.json", vocabulary, 0o644))
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"status": status, "interrupt": interrupt},
	})
}

// status runs a command and checks its exit status: status 2 replay --nonsense.
// A run that a busy machine may make invalid has status 0|3.
func status(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status CODE COMMAND...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := "0"
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ProcessState.String()[len("exit status "):]
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if !slices.Contains(strings.Split(args[0], "|"), code) {
		ts.Fatalf("%v: exit status %s, want %s", args[1:], code, args[0])
	}
}

// replayCommand runs replay in a process of its own.
func replayCommand(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	path, err := exec.LookPath("replay") // testscript.Main put it there
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	var out, diag bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diag
	err = cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return out.String(), diag.String(), exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	return out.String(), diag.String(), 0
}

func TestSafeArgs(t *testing.T) {
	in := []string{"replay", "http://u:p@h:1/v1", "--url=https://u:p@h", "--backend", "vllm=http://u@h:8000", "--option", "a=b@c", "s3://bucket/a@b.parquet"}
	want := []string{"replay", "http://h:1/v1", "--url=https://h", "--backend", "vllm=http://h:8000", "--option", "a=b@c", "s3://bucket/a@b.parquet"}
	if got := safeArgs(in); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
