package sim

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"reprise/backends/sim/engine"
	"reprise/backends/sim/server"
)

// Options say what to simulate; the zero value is the default preset.
type Options = server.Options

// A CostFile is a cost model that was fitted to a real run, and how well.
type (
	CostFile   = server.CostFile
	CostConfig = server.CostConfig
	CostRun    = server.CostRun
	CostError  = server.CostError
	CostSpread = server.CostSpread
)

// CostFileVersion is the version of cost.json.
const CostFileVersion = server.CostFileVersion

// A Fault makes some requests go wrong, for tests of clients.
type (
	Fault     = server.Fault
	FaultKind = server.FaultKind
)

// Kinds of faults; see [reprise/backends/sim/server] for each.
const (
	Stall      = server.Stall
	Die        = server.Die
	Truncate   = server.Truncate
	ErrorEvent = server.ErrorEvent
	HalfUTF8   = server.HalfUTF8
	Status     = server.Status
	Refuse     = server.Refuse
	Crash      = server.Crash
	Exit       = server.Exit
)

// ParseOptions reads options by their command-line names: preset, max-num-seqs,
// batching and so on.
func ParseOptions(kv map[string]string) (Options, error) { return server.ParseOptions(kv) }

// Presets lists the engines that can be simulated.
func Presets() []string { return engine.Presets() }

// marker is the environment variable that turns a process into the engine. It
// holds the Options.
const marker = "REPRISE_SIM_SERVE"

// hello is the child's one line on stdout.
type hello struct {
	URL string `json:"url"`
}

// MaybeServe runs the simulated engine and exits if [Start] started this
// process; otherwise it returns at once. Every program, and every TestMain,
// that may call Start calls it before anything else.
func MaybeServe() {
	raw, child := os.LookupEnv(marker)
	if !child {
		return
	}
	os.Unsetenv(marker)
	if err := serve(raw, os.Stdin, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "sim: %v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func serve(raw string, stdin io.Reader, stdout io.Writer) error {
	// The terminal's Ctrl-C is for the parent, which drains before it stops us.
	signal.Ignore(os.Interrupt)
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)

	// Streams need one thread besides the engine's, which sleeps in the kernel;
	// more would take the sender's. The live heap is small, so a lazy collector
	// costs little memory.
	runtime.GOMAXPROCS(max(2, min(4, runtime.NumCPU())))
	debug.SetGCPercent(400)

	var o Options
	if err := json.Unmarshal([]byte(raw), &o); err != nil {
		return fmt.Errorf("options: %w", err)
	}
	s, err := server.New(o)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", s.Options().Listen)
	if err != nil {
		return err
	}
	go func() {
		parent := make(chan struct{})
		go func() {
			io.Copy(io.Discard, stdin) // ends when the parent does, however it does
			close(parent)
		}()
		select {
		case <-parent:
		case <-term:
		}
		s.Close()
	}()
	line, err := json.Marshal(hello{URL: "http://" + l.Addr().String()})
	if err != nil {
		return err
	}
	if _, err := stdout.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("tell the parent the address: %w", err)
	}
	return s.Serve(l)
}

// A Process is a running simulated engine.
type Process struct {
	URL string // base, e.g. http://127.0.0.1:40123
	Pid int

	cmd   *exec.Cmd
	stdin io.Closer
	tail  tail
	done  chan struct{}
	err   error // once done is closed

	mu       sync.Mutex
	stopping bool
}

// startTimeout bounds the time from exec to the address.
const startTimeout = 20 * time.Second

// stopTimeout bounds the time from Stop to the end, by force if need be.
const stopTimeout = 5 * time.Second

// Start runs a simulated engine in a child process and waits until it listens.
// ctx bounds the start alone: the engine outlives it until Stop, so that
// answers in flight can be drained after an interrupt. If this process dies,
// however it does, the engine ends too.
func Start(ctx context.Context, o Options) (*Process, error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("sim: %w", err)
	}
	raw, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("sim: options: %w", err)
	}
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("sim: find this program: %w", err)
	}
	p := &Process{cmd: exec.Command(exe), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), marker+"="+string(raw))
	p.cmd.Stderr = &p.tail
	p.cmd.SysProcAttr = ownGroup()
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("sim: %w", err)
	}
	p.stdin = stdin
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("sim: %w", err)
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("sim: %w", err)
	}
	p.Pid = p.cmd.Process.Pid

	type answer struct {
		h   hello
		err error
	}
	first := make(chan answer, 1)
	go func() {
		var a answer
		// A program without MaybeServe would print anything here.
		line, err := bufio.NewReader(io.LimitReader(stdout, 4096)).ReadBytes('\n')
		if err == nil {
			err = json.Unmarshal(line, &a.h)
		}
		if err == nil && a.h.URL == "" {
			err = errors.New("no address")
		}
		a.err = err
		first <- a
		io.Copy(io.Discard, stdout)
		p.finish(p.cmd.Wait())
	}()
	timeout := time.NewTimer(startTimeout)
	defer timeout.Stop()
	select {
	case a := <-first:
		if a.err == nil {
			p.URL = a.h.URL
			return p, nil
		}
		p.kill()
		if tail := p.tail.String(); tail != "" {
			return nil, fmt.Errorf("sim: the child process did not start: %s", tail)
		}
		return nil, fmt.Errorf("sim: the child process said nothing that makes sense (%w): does this program call sim.MaybeServe first?", a.err)
	case <-ctx.Done():
		p.kill()
		return nil, fmt.Errorf("sim: start: %w", context.Cause(ctx))
	case <-timeout.C:
		p.kill()
		return nil, fmt.Errorf("sim: the child process is not ready after %v", startTimeout)
	}
}

func (p *Process) finish(err error) {
	p.mu.Lock()
	if p.stopping {
		err = nil
	} else {
		why := "ended by itself"
		if err != nil {
			why = err.Error()
		}
		if tail := p.tail.String(); tail != "" {
			why += ": " + tail
		}
		err = fmt.Errorf("sim: the engine process %s", why)
	}
	p.err = err
	p.mu.Unlock()
	close(p.done)
}

func (p *Process) kill() {
	p.mu.Lock()
	p.stopping = true
	p.mu.Unlock()
	p.cmd.Process.Kill()
	p.stdin.Close()
	<-p.done
}

// Done is closed when the process has ended, by Stop or by itself.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err returns nil while the process runs or if Stop ended it; otherwise why it
// ended, with the last of what it wrote to stderr.
func (p *Process) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// Stop ends the process and waits for its end. It returns an error if the
// process had died before. It may be called more than once.
func (p *Process) Stop() error {
	select {
	case <-p.done:
		return p.err
	default:
	}
	p.mu.Lock()
	p.stopping = true
	p.mu.Unlock()
	p.stdin.Close()
	select {
	case <-p.done:
	case <-time.After(stopTimeout):
		p.cmd.Process.Kill()
		<-p.done
	}
	return p.err
}

// A tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailSize = 2 << 10

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, b...)
	if len(t.b) > tailSize {
		t.b = append(t.b[:0], t.b[len(t.b)-tailSize:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.b))
}
