package clock

import (
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

func monotonic() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic("clock: CLOCK_MONOTONIC is unreadable: " + err.Error())
	}
	return time.Duration(ts.Nano())
}

// An Alarm waits for deadlines on a thread of its own, and can be woken before.
// It sleeps in ppoll, whose timeout the kernel keeps with a high-resolution
// timer; the thread's timer slack (50 µs by default, by which the kernel may
// delay any sleep to save wake-ups) is switched off. Where the process may
// (root, CAP_SYS_NICE, an rtprio limit), the thread is scheduled in real time,
// so that it runs at its deadline on a busy machine as well.
type Alarm struct {
	wake   int // an eventfd
	rt     bool
	mu     sync.Mutex
	closed bool
}

// NewAlarm locks the calling goroutine to its thread until Close.
func NewAlarm() (*Alarm, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	runtime.LockOSThread()
	// Not fatal: without it, every sleep is up to 50 µs longer.
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
	return &Alarm{wake: fd, rt: realTime(true)}, nil
}

// RealTime reports whether the thread is scheduled in real time.
func (a *Alarm) RealTime() bool { return a.rt }

// realTime puts the calling thread into the lowest real-time class, or back.
func realTime(on bool) bool {
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL}
	if on {
		attr.Policy, attr.Priority = unix.SCHED_RR, 1
	}
	return unix.SchedSetAttr(0, &attr, 0) == nil
}

// SleepUntil blocks until t, or until Wake is called. It may return early; it
// does so for every Wake since the last call.
func (a *Alarm) SleepUntil(t time.Duration) {
	fds := [1]unix.PollFd{{Fd: int32(a.wake), Events: unix.POLLIN}}
	ts := unix.NsecToTimespec(int64(max(0, t-Now())))
	if n, _ := unix.Ppoll(fds[:], &ts, nil); n > 0 {
		var b [8]byte
		_, _ = unix.Read(a.wake, b[:])
	}
}

// Wake ends the current or the next SleepUntil. Any goroutine may call it.
func (a *Alarm) Wake() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.closed {
		_, _ = unix.Write(a.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
}

// Close is called by the goroutine that made a.
func (a *Alarm) Close() {
	a.mu.Lock()
	a.closed = true
	unix.Close(a.wake)
	a.mu.Unlock()
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) // back to the default
	if a.rt {
		realTime(false)
	}
	runtime.UnlockOSThread()
}
