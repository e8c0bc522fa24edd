package wire

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// spareFiles are descriptors left to everything that is no connection: result
// files, telemetry, the runtime's own.
const spareFiles = 64

// Preflight says whether n connections to one server fit the limits of this
// process and machine, after raising the soft limit of open files to the hard
// one. Connections that linger after an earlier run are not counted.
func Preflight(n int) error {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
		return fmt.Errorf("read RLIMIT_NOFILE: %w", err)
	}
	if lim.Cur < lim.Max {
		raised := unix.Rlimit{Cur: lim.Max, Max: lim.Max}
		if unix.Setrlimit(unix.RLIMIT_NOFILE, &raised) == nil {
			lim = raised
		}
	}
	open := openFiles()
	if need := uint64(open + n + spareFiles); need > lim.Cur {
		return fmt.Errorf("%d connections need %d open files with the %d open now, and RLIMIT_NOFILE allows %d (hard limit %d): raise it with ulimit -n, or lower the connections",
			n, need, open, lim.Cur, lim.Max)
	}
	if lo, hi, ok := portRange(); ok && n > hi-lo+1 {
		return fmt.Errorf("%d connections to one address need as many local ports, and net.ipv4.ip_local_port_range allows %d (%d to %d): widen it, or lower the connections",
			n, hi-lo+1, lo, hi)
	}
	return nil
}

// openFiles counts the descriptors of this process; 0 where it cannot.
func openFiles() int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(d) - 1 // that of the listing itself
}

func portRange() (lo, hi int, ok bool) {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return 0, 0, false
	}
	f := strings.Fields(string(b))
	if len(f) != 2 {
		return 0, 0, false
	}
	lo, err1 := strconv.Atoi(f[0])
	hi, err2 := strconv.Atoi(f[1])
	return lo, hi, err1 == nil && err2 == nil && lo <= hi
}

func nofileText() string {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) != nil {
		return ""
	}
	return " " + strconv.FormatUint(lim.Cur, 10)
}

func portText() string {
	lo, hi, ok := portRange()
	if !ok {
		return ""
	}
	return fmt.Sprintf(" %d to %d", lo, hi)
}
