package launch

import (
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// adopt makes this process the parent of all orphans of its descendants.
func adopt() { unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// dieTogether kills a process should this one be killed.
func dieTogether(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }

// descendants are the processes below this one, zombies left out.
func descendants(int) []process {
	dirs, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	type entry struct {
		process
		parent int
		zombie bool
	}
	var all []entry
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile("/proc/" + d.Name() + "/stat")
		if err != nil {
			continue // it has ended
		}
		// The name is in parentheses, and may hold any.
		open, end := strings.IndexByte(string(b), '('), strings.LastIndexByte(string(b), ')')
		if open < 0 || end < open {
			continue
		}
		f := strings.Fields(string(b[end+1:]))
		if len(f) < 3 {
			continue
		}
		parent, _ := strconv.Atoi(f[1])
		group, _ := strconv.Atoi(f[2])
		all = append(all, entry{process{pid, group, string(b[open+1 : end])}, parent, f[0] == "Z" || f[0] == "X"})
	}
	below := map[int]bool{os.Getpid(): true}
	for again := true; again; {
		again = false
		for _, e := range all {
			if below[e.parent] && !below[e.pid] {
				below[e.pid], again = true, true
			}
		}
	}
	var out []process
	for _, e := range all {
		if below[e.pid] && e.pid != os.Getpid() && !e.zombie {
			out = append(out, e.process)
		}
	}
	return out
}
