//go:build unix

package launch

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// ownGroup keeps the terminal's signals from the keeper, and the end of the group
// that it was started in.
func ownGroup(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// MaybeKeep keeps an engine and exits if [Start] started this process; otherwise
// it returns at once. Every program, and every TestMain, that may call Start
// calls it before anything else.
func MaybeKeep() {
	raw, ok := os.LookupEnv(keeperEnv)
	if !ok {
		return
	}
	os.Unsetenv(keeperEnv)
	// The engine dies with the thread that started it (PR_SET_PDEATHSIG).
	runtime.LockOSThread()
	// Ctrl-C is for the parent, which ends this process in its own time.
	signal.Ignore(os.Interrupt, syscall.SIGHUP, syscall.SIGPIPE)
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	var o order
	if err := json.Unmarshal([]byte(raw), &o); err != nil {
		say(notice{Err: err.Error()})
		os.Exit(1)
	}
	stop := make(chan struct{})
	go func() {
		parent := make(chan struct{})
		go func() {
			io.Copy(io.Discard, os.Stdin)
			close(parent)
		}()
		select {
		case <-parent:
		case <-term:
		}
		close(stop)
	}()
	k := &keeper{order: o, children: map[int]chan syscall.WaitStatus{}}
	if err := k.run(stop); err != nil {
		say(notice{Err: err.Error()})
		os.Exit(1)
	}
	os.Exit(0)
}

// say writes a line to the parent. Where that is gone nobody listens.
func say(n notice) {
	b, err := json.Marshal(n)
	if err != nil {
		panic(err) // a notice always can be
	}
	os.Stdout.Write(append(b, '\n'))
}

// A keeper has one engine. It reaps every process that the engine leaves behind,
// so nothing here may wait for a child of its own accord.
type keeper struct {
	order
	log *boundedLog

	mu       sync.Mutex // held from the start of a child until it is in children
	children map[int]chan syscall.WaitStatus
}

func (k *keeper) run(stop <-chan struct{}) error {
	adopt()
	var err error
	if k.log, err = createLog(k.Log); err != nil {
		return err
	}
	// Not closed: whoever writes to it after the end must not block.
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		io.Copy(k.log, r)
	}()
	pid, exited, err := k.spawn(k.Spec.Command, w)
	if err != nil {
		return err
	}
	go k.reap()
	say(notice{PID: pid})

	var end End
	var status syscall.WaitStatus
	select {
	case status = <-exited:
		end.Exit = words(status)
		time.Sleep(lastWords)
		say(notice{Exit: end.Exit})
	case <-stop:
		end.Asked = true
	}
	// The engine's command is its own: a container, or a process on another host,
	// is ended only so, also where what spoke for it here is gone.
	if len(k.Spec.Stop) > 0 {
		if _, done, err := k.spawn(k.Spec.Stop, w); err != nil {
			fmt.Fprintf(k.log, "stop: %v\n", err)
		} else {
			select {
			case <-done:
			case <-time.After(k.Spec.StopTimeout):
			}
		}
	}
	k.clear(pid, &end)
	if end.Exit == "" {
		select {
		case status = <-exited:
			end.Exit = words(status)
		case <-time.After(time.Second): // it cannot be ended
			end.Exit = "it does not end"
		}
		say(notice{Exit: end.Exit})
	}
	w.Close()
	select {
	case <-logged:
	case <-time.After(time.Second): // what could not be ended holds the pipe
	}
	if err := k.log.Close(); err != nil {
		end.LogError = err.Error()
	}
	end.LogBytes, end.LogDropped = k.log.total, k.log.dropped
	say(notice{Report: &end})
	return nil
}

// lastWords is the time from the end of an engine until what it said is in the
// log, for whoever quotes it.
const lastWords = 50 * time.Millisecond

func words(s syscall.WaitStatus) string {
	if s.Signaled() {
		return "signal: " + s.Signal().String()
	}
	return fmt.Sprintf("exit status %d", s.ExitStatus())
}

// spawn starts a command in a session of its own.
func (k *keeper) spawn(argv []string, out *os.File) (int, <-chan syscall.WaitStatus, error) {
	path, err := lookPath(argv[0], k.Spec.Dir)
	if err != nil {
		return 0, nil, err
	}
	env := os.Environ()
	for name, v := range k.Spec.Env {
		env = append(env, name+"="+v)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return 0, nil, err
	}
	defer null.Close()
	attr := &syscall.SysProcAttr{Setsid: true}
	dieTogether(attr)
	k.mu.Lock()
	defer k.mu.Unlock()
	p, err := os.StartProcess(path, argv, &os.ProcAttr{Dir: k.Spec.Dir, Env: env, Files: []*os.File{null, out, out}, Sys: attr})
	if err != nil {
		return 0, nil, err
	}
	pid := p.Pid
	p.Release()
	done := make(chan syscall.WaitStatus, 1)
	k.children[pid] = done
	return pid, done, nil
}

// reap waits for every child, own and adopted.
func (k *keeper) reap() {
	for {
		var s syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &s, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil: // there is no child, and another may come
			time.Sleep(10 * time.Millisecond)
		default:
			k.mu.Lock()
			if done, ok := k.children[pid]; ok {
				delete(k.children, pid)
				done <- s
			}
			k.mu.Unlock()
		}
	}
}

// killFor is how long what was killed may take to be gone.
const killFor = 10 * time.Second

// clear ends the engine's group and whatever else it started.
func (k *keeper) clear(pid int, end *End) {
	seen := map[int]bool{}
	stray := func(procs []process) {
		for _, p := range procs {
			if p.group != pid && !seen[p.pid] {
				seen[p.pid] = true
				if len(end.Strays) < maxStrays {
					end.Strays = append(end.Strays, p.name)
				}
			}
		}
	}
	// What is new is asked too: an engine may start something while it ends.
	asked := map[int]bool{}
	for until := time.Now().Add(k.Spec.StopTimeout); ; {
		procs := descendants(pid)
		if len(procs) == 0 {
			return
		}
		stray(procs)
		if time.Now().After(until) {
			break
		}
		for _, p := range procs {
			if !asked[p.pid] {
				asked[p.pid] = true
				syscall.Kill(p.pid, syscall.SIGTERM)
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	killed := map[int]bool{}
	for until := time.Now().Add(killFor); ; {
		procs := descendants(pid)
		if len(procs) == 0 {
			break
		}
		stray(procs)
		for _, p := range procs {
			killed[p.pid] = true
			syscall.Kill(p.pid, syscall.SIGKILL)
		}
		if time.Now().After(until) {
			end.Left = len(procs)
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	end.Killed = len(killed)
}

// maxStrays bounds the names that are kept.
const maxStrays = 16

// A process is one that the engine started.
type process struct {
	pid, group int
	name       string
}
