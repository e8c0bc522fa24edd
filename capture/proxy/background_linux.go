package proxy

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// background gives the calling goroutine a thread of its own that yields to
// all others, for the rest of the goroutine's life: sorting a file must not be
// felt by the traffic.
func background() {
	runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
	_ = unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), 19)
}
