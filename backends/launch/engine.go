package launch

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// keeperEnv is the environment variable that turns a process into a keeper. It
// holds an order.
const keeperEnv = "REPRISE_ENGINE_KEEPER"

// An order is what a keeper is to do.
type order struct {
	Spec Spec   `json:"spec"`
	Log  string `json:"log"`
}

// A notice is one line from a keeper.
type notice struct {
	PID    int    `json:"pid,omitempty"`    // the engine was started
	Exit   string `json:"exit,omitempty"`   // how it ended
	Report *End   `json:"report,omitempty"` // all of it has: the last line
	Err    string `json:"error,omitempty"`  // it could not be started
}

// An End says how an engine went.
type End struct {
	Exit   string `json:"exit"`             // "exit status 1", "signal: killed"
	Asked  bool   `json:"asked"`            // it was told to end
	Killed int    `json:"killed,omitempty"` // processes that did not end when they were asked to
	// Strays are processes that had left the engine's group, by command.
	Strays []string `json:"strays,omitempty"`
	// Left could not be ended.
	Left       int    `json:"left,omitempty"`
	LogBytes   int64  `json:"log_bytes"`
	LogDropped int64  `json:"log_bytes_dropped,omitempty"`
	LogError   string `json:"log_error,omitempty"`
}

// An Engine runs.
type Engine struct {
	Spec    Spec
	PID     int
	LogPath string
	Started time.Time
	Took    time.Duration // until it was ready

	alive io.Closer // the keeper ends the engine when it is closed
	gone  chan struct{}
	over  chan struct{} // the keeper has ended
	mu    sync.Mutex
	exit  string
	end   *End
	err   error
}

// An Error is an engine that did not start, or that died.
type Error struct {
	Reason string
	Tail   string // of its log
}

func (e *Error) Error() string { return e.Reason + Quoted(e.Tail) }

// tailShown of a log is quoted in an error.
const tailShown = 2 << 10

func failure(logPath, format string, a ...any) *Error {
	var b strings.Builder
	CopyLog(&b, logPath, 0, tailShown)
	text := b.String()
	if _, after, cut := strings.Cut(text, "left out ...\n"); cut {
		text = after
	}
	return &Error{fmt.Sprintf(format, a...), text}
}

// Pauses between two looks.
const (
	readyPause = 200 * time.Millisecond
	portPause  = 100 * time.Millisecond
)

// Start starts an engine and returns when it is ready: when every path of
// Spec.Ready has answered with 200. The error is a [*Error] if the engine is to
// blame; nothing of it is left then. Its output goes to logPath, and bounded.
//
// A port that is in use is waited for until wait is over: the engine before it
// may be about to end.
func Start(ctx context.Context, s Spec, logPath string, wait time.Duration) (*Engine, error) {
	s.setDefaults()
	if err := s.Check(); err != nil {
		return nil, err
	}
	deadline := time.Now().Add(wait)
	for s.Listening() {
		if !time.Now().Before(deadline) {
			return nil, fmt.Errorf("something listens at %s already: another engine, or one that was not ended", s.URL)
		}
		if err := sleep(ctx, portPause); err != nil {
			return nil, err
		}
	}
	e, err := keep(s, logPath)
	if err != nil {
		return nil, err
	}
	if err := e.ready(ctx); err != nil {
		e.Stop()
		return nil, err
	}
	e.Took = time.Since(e.Started)
	return e, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// keep starts the keeper, and learns from it that the engine was started.
func keep(s Spec, logPath string) (*Engine, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	env, err := json.Marshal(order{s, logPath})
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), keeperEnv+"="+string(env))
	cmd.Stderr = os.Stderr
	ownGroup(cmd)
	alive, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	e := &Engine{Spec: s, LogPath: logPath, Started: time.Now(), alive: alive, gone: make(chan struct{}), over: make(chan struct{})}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	first := make(chan notice, 1)
	go func() {
		defer close(e.over)
		lines := bufio.NewScanner(out)
		heard := false
		gone := sync.OnceFunc(func() { close(e.gone) })
		for lines.Scan() {
			var n notice
			if json.Unmarshal(lines.Bytes(), &n) != nil {
				continue
			}
			if !heard {
				heard = true
				first <- n
			}
			e.mu.Lock()
			if n.Exit != "" {
				e.exit = n.Exit
			}
			if n.Report != nil {
				e.end = n.Report
			}
			e.mu.Unlock()
			if n.Exit != "" {
				gone()
			}
		}
		err := cmd.Wait()
		e.mu.Lock()
		e.err = err
		e.mu.Unlock()
		gone()
		if !heard {
			first <- notice{Err: "its keeper ended without a word"}
		}
	}()
	n := <-first
	if n.Err != "" {
		alive.Close()
		<-e.over
		return nil, &Error{Reason: "the engine cannot be started: " + n.Err}
	}
	e.PID = n.PID
	return e, nil
}

// ready waits until the engine answers.
func (e *Engine) ready(ctx context.Context) error {
	deadline := time.Now().Add(e.Spec.ReadyTimeout)
	last := "it did not answer"
	for _, path := range e.Spec.Ready {
		for {
			asking, cancel := context.WithDeadline(ctx, deadline)
			err := ask(asking, strings.TrimRight(e.Spec.URL, "/")+path)
			cancel()
			if err == nil {
				break
			}
			if ctx.Err() == nil {
				last = err.Error()
			}
			select {
			case <-e.gone:
				return failure(e.LogPath, "the engine ended before it was ready: %s", e.Exit())
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(readyPause):
			}
			if !time.Now().Before(deadline) {
				return failure(e.LogPath, "the engine was not ready after %v (ready_timeout): %s: %s", e.Spec.ReadyTimeout, path, last)
			}
		}
	}
	return nil
}

// askTimeout bounds one question whether an engine is ready. SGLang generates a
// token to answer it.
const askTimeout = 30 * time.Second

func ask(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Close = true
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	io.Copy(io.Discard, io.LimitReader(res.Body, 1<<20))
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", res.StatusCode)
	}
	return nil
}

// answerTimeout bounds the question whether an engine that was ready still is.
const answerTimeout = 5 * time.Second

// Answers says whether the engine still answers: its process may be there, and
// its server gone.
func (e *Engine) Answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return e.Exit() == "" && ask(ctx, strings.TrimRight(e.Spec.URL, "/")+e.Spec.Ready[0]) == nil
}

// Silent is the error of an engine whose server does not answer any more: that of
// Died, if it is about to be gone.
func (e *Engine) Silent() error {
	select {
	case <-e.gone:
		return e.Died()
	case <-time.After(time.Second):
	}
	return failure(e.LogPath, "the engine does not answer any more: %s", e.Spec.Ready[0])
}

// Gone is closed when the engine has ended, whoever ended it.
func (e *Engine) Gone() <-chan struct{} { return e.gone }

// Exit says how the engine ended; empty while it runs.
func (e *Engine) Exit() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	select {
	case <-e.gone:
	default:
		return ""
	}
	if e.exit == "" {
		return "its keeper is gone"
	}
	return e.exit
}

// Died is the error of an engine that ended without having been asked to.
func (e *Engine) Died() error { return failure(e.LogPath, "the engine died: %s", e.Exit()) }

// Stop ends the engine and everything that it started, and returns when all of
// it is gone and the port is free: first as Spec.Stop says, then by SIGTERM, and
// after Spec.StopTimeout by SIGKILL.
func (e *Engine) Stop() (End, error) {
	e.alive.Close()
	<-e.over
	e.mu.Lock()
	end, err := e.end, e.err
	e.mu.Unlock()
	if end == nil {
		return End{}, errors.Join(errors.New("the engine's keeper did not say how the engine ended"), err)
	}
	switch {
	case end.Left > 0:
		return *end, fmt.Errorf("%d processes of the engine could not be ended", end.Left)
	case !e.portFree():
		return *end, fmt.Errorf("the engine was ended, and %s is still in use", e.Spec.URL)
	}
	return *end, nil
}

// portFree waits for a port that is about to be free.
func (e *Engine) portFree() bool {
	for range 50 {
		if !e.Spec.Listening() {
			return true
		}
		time.Sleep(portPause)
	}
	return false
}
