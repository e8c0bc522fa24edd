//go:build unix

package launch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fakeEnv turns the test binary into an engine that answers /health.
const fakeEnv = "REPRISE_FAKE_ENGINE"

func TestMain(m *testing.M) {
	MaybeKeep()
	if addr, ok := os.LookupEnv(fakeEnv); ok {
		serve(addr)
	}
	os.Exit(m.Run())
}

// serve is a fake engine. Its arguments say what is wrong with it.
func serve(addr string) {
	has := func(what string) bool {
		return slices.Contains(os.Args[1:], what)
	}
	os.Unsetenv(fakeEnv)
	if has("deaf") {
		fmt.Println("loading forever")
		time.Sleep(time.Hour)
	}
	if has("broken") {
		fmt.Println("no GPU\x1b[2J left")
		os.Exit(3)
	}
	if has("stubborn") {
		ignore()
	}
	if has("parent") {
		for _, argv := range [][]string{{"sleep", "601"}, {"setsid", "sleep", "602"}, {"sh", "-c", "trap '' TERM; setsid sh -c 'sleep 603 & wait' & wait"}} {
			c := exec.Command(argv[0], argv[1:]...)
			if err := c.Start(); err != nil {
				fmt.Println(err)
				os.Exit(4)
			}
		}
	}
	if has("flood") {
		line := strings.Repeat("x", 99) + "\n"
		for i := range 80_000 { // 8 MB
			fmt.Printf("%06d %s", i, line)
		}
	}
	http.HandleFunc("/health", func(w http.ResponseWriter, _ *http.Request) {})
	http.HandleFunc("/die", func(http.ResponseWriter, *http.Request) {
		fmt.Println("out of memory")
		os.Exit(137)
	})
	fmt.Println("listening")
	fmt.Println(http.ListenAndServe(addr, nil))
	os.Exit(1)
}

func ignore() {
	c := make(chan os.Signal, 8)
	signal.Notify(c, syscall.SIGTERM)
	go func() {
		for range c {
			fmt.Println("I do not end")
		}
	}()
}

// fake is the Spec of a fake engine on a port of its own.
func fake(t *testing.T, how ...string) (Spec, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	return Spec{
		Backend: "sim", Command: append([]string{os.Args[0]}, how...), Env: map[string]string{fakeEnv: addr}, URL: "http://" + addr,
		ReadyTimeout: 20 * time.Second, StopTimeout: 500 * time.Millisecond,
	}, filepath.Join(t.TempDir(), "engine.log")
}

// sleepers are the processes of the fakes' children.
func sleepers(t *testing.T) (n int) {
	t.Helper()
	out, _ := exec.Command("ps", "-eo", "args").Output()
	for line := range strings.Lines(string(out)) {
		if l := strings.TrimSpace(line); l == "sleep 601" || l == "sleep 602" || l == "sleep 603" {
			n++
		}
	}
	return n
}

func logOf(t *testing.T, path string) string {
	t.Helper()
	var b strings.Builder
	if err := CopyLog(&b, path, 1<<20, 1<<20); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestStartAndStop(t *testing.T) {
	s, log := fake(t)
	e, err := Start(t.Context(), s, log, 0)
	if err != nil {
		t.Fatal(err)
	}
	if !s.Listening() || e.PID == 0 || e.Took <= 0 || e.Exit() != "" {
		t.Errorf("engine %+v listens: %t", e, s.Listening())
	}
	if _, err := Start(t.Context(), s, log+"2", 200*time.Millisecond); err == nil || !strings.Contains(err.Error(), "listens at "+s.URL+" already") {
		t.Errorf("a second one on its port: %v", err)
	}
	end, err := e.Stop()
	if err != nil || !end.Asked || end.Killed > 0 || end.Exit != "signal: terminated" {
		t.Errorf("%+v, %v", end, err)
	}
	if l := logOf(t, log); !strings.Contains(l, "listening\n") {
		t.Errorf("log %q", l)
	}
}

// What an engine starts ends with it, also what left its group or hears no
// SIGTERM.
func TestStubbornEngineWithChildren(t *testing.T) {
	if _, err := exec.LookPath("setsid"); err != nil {
		t.Skip("setsid is not there")
	}
	s, log := fake(t, "stubborn", "parent")
	e, err := Start(t.Context(), s, log, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 50 {
		if sleepers(t) == 3 {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if n := sleepers(t); n != 3 {
		t.Fatalf("%d children are there, want 3", n)
	}
	end, err := e.Stop()
	if err != nil || end.Killed < 1 || end.Left != 0 || len(end.Strays) == 0 {
		t.Errorf("%+v, %v", end, err)
	}
	if n := sleepers(t); n != 0 {
		t.Errorf("%d children live on", n)
	}
	if l := logOf(t, log); !strings.Contains(l, "I do not end") {
		t.Errorf("log %q", l)
	}
}

func TestEnginesThatDoNotStart(t *testing.T) {
	s, log := fake(t, "deaf")
	s.ReadyTimeout = time.Second
	start := time.Now()
	_, err := Start(t.Context(), s, log, 0)
	if e, ok := errors.AsType[*Error](err); !ok || !strings.Contains(err.Error(), "not ready after 1s (ready_timeout): /health: ") || !strings.Contains(e.Tail, "loading forever") {
		t.Errorf("never ready: %v", err)
	}
	if d := time.Since(start); d > 15*time.Second {
		t.Errorf("that took %v", d)
	}
	s, log = fake(t, "broken")
	if _, err = Start(t.Context(), s, log, 0); err == nil || !strings.Contains(err.Error(), "ended before it was ready: exit status 3\n  | no GPU[2J left") {
		t.Errorf("broken: %v", err)
	}
	s, log = fake(t, "deaf")
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err = Start(ctx, s, log, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("interrupted: %v", err)
	}
	s.Command = []string{"no-such-engine"}
	if err := s.Check(); err == nil || !strings.Contains(err.Error(), "executable no-such-engine: executable file not found") {
		t.Errorf("%v", err)
	}
}

func TestEngineDies(t *testing.T) {
	s, log := fake(t)
	e, err := Start(t.Context(), s, log, 0)
	if err != nil {
		t.Fatal(err)
	}
	go http.Get(s.URL + "/die")
	select {
	case <-e.Gone():
	case <-time.After(20 * time.Second):
		t.Fatal("nobody noticed")
	}
	if got := e.Died().Error(); !strings.Contains(got, "the engine died: exit status 137") || !strings.Contains(got, "out of memory") {
		t.Errorf("%q", got)
	}
	if end, err := e.Stop(); err != nil || end.Asked || end.Exit != "exit status 137" {
		t.Errorf("%+v, %v", end, err)
	}
}

// A log keeps its beginning and its end, and no more.
func TestEngineFloodsItsLog(t *testing.T) {
	s, log := fake(t, "flood")
	e, err := Start(t.Context(), s, log, 0)
	if err != nil {
		t.Fatal(err)
	}
	end, err := e.Stop()
	if err != nil || end.LogBytes < 8e6 || end.LogDropped < 4e6 {
		t.Errorf("%+v, %v", end, err)
	}
	var size int64
	for _, n := range []string{log, log + ".1", log + ".2"} {
		i, err := os.Stat(n)
		if err != nil {
			t.Fatal(err)
		}
		size += i.Size()
	}
	if size > logHead+logTail || size != end.LogBytes-end.LogDropped {
		t.Errorf("%d bytes on disk, of %+v", size, end)
	}
	l := logOf(t, log)
	if !strings.HasPrefix(l, "000000 x") || !strings.HasSuffix(l, "listening\n") || !strings.Contains(l, "left out") {
		t.Errorf("log of %d bytes: %.20q ... %.20q", len(l), l, l[len(l)-20:])
	}
}

// The engine ends when whoever started it is killed.
func TestEngineEndsWithItsStarter(t *testing.T) {
	if testing.Short() {
		t.Skip("starts processes of processes")
	}
	s, log := fake(t)
	const env = "REPRISE_LAUNCH_TEST"
	if os.Getenv(env) != "" {
		s.Env[fakeEnv], s.URL = os.Getenv(env), "http://"+os.Getenv(env)
		e, err := Start(t.Context(), s, os.Getenv(env+"_LOG"), 0)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("pid %d\n", e.PID)
		time.Sleep(time.Hour)
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^TestEngineEndsWithItsStarter$", "-test.v")
	cmd.Env = append(os.Environ(), env+"="+s.Env[fakeEnv], env+"_LOG="+log)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for range 200 {
		if s.Listening() {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if !s.Listening() {
		t.Fatal("the engine was not started")
	}
	syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	cmd.Wait()
	for range 200 {
		if !s.Listening() {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Error("the engine lives on")
}

// What is stopped by a command of its own is: a container's client may end and
// leave the container.
func TestStopCommand(t *testing.T) {
	s, log := fake(t)
	mark := filepath.Join(t.TempDir(), "stopped")
	s.Stop = []string{"sh", "-c", "echo removing it; touch " + mark}
	e, err := Start(t.Context(), s, log, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Stop(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(mark); err != nil || !strings.Contains(logOf(t, log), "removing it") {
		t.Errorf("%v; log %q", err, logOf(t, log))
	}
}

func TestCopyLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := createLog(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		l.Write([]byte(strconv.Itoa(i)))
	}
	l.Close()
	for _, tt := range []struct {
		head, tail int64
		want       string
	}{
		{100, 0, "0123456789"},
		{5, 5, "0123456789"},
		{2, 3, "01\n... a part of the log was left out ...\n789"},
		{0, 1, "\n... a part of the log was left out ...\n9"},
	} {
		var b strings.Builder
		if err := CopyLog(&b, path, tt.head, tt.tail); err != nil || b.String() != tt.want {
			t.Errorf("CopyLog(%d, %d) = %q, %v; want %q", tt.head, tt.tail, b.String(), err, tt.want)
		}
	}
}
