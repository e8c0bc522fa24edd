//go:build unix && !linux

package launch

import "syscall"

// adopt does nothing: this system has no way to. What leaves the engine's group
// is out of reach here.
func adopt() {}

func dieTogether(*syscall.SysProcAttr) {}

// descendants is the engine's group as a whole, while anything of it is there.
func descendants(pid int) []process {
	if syscall.Kill(-pid, 0) != nil {
		return nil
	}
	return []process{{pid: -pid, group: pid, name: "group"}}
}
