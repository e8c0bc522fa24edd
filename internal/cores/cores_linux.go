// Package cores starts processes on chosen cores, for benchmarks whose parties
// must not share one.
package cores

import (
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// Start starts a process on the n-th of the cores that this one may use, from 0.
func Start(cmd *exec.Cmd, n int) error {
	// A child inherits the mask of the thread that starts it. The thread lives on:
	// its death would be taken for the process's by a child with a death signal.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return err
	}
	defer unix.SchedSetaffinity(0, &all)
	for cpu := range 1024 {
		if !all.IsSet(cpu) {
			continue
		}
		if n--; n < 0 {
			var one unix.CPUSet
			one.Set(cpu)
			if err := unix.SchedSetaffinity(0, &one); err != nil {
				return err
			}
			break
		}
	}
	return cmd.Start()
}
