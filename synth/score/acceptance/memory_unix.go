//go:build unix

package main

import (
	"math"
	"os"
	"runtime"
	"syscall"
)

// peakMemory is the greatest resident memory of a process that has ended, in
// MiB.
func peakMemory(p *os.ProcessState) float64 {
	u, ok := p.SysUsage().(*syscall.Rusage)
	if !ok {
		return math.NaN()
	}
	if runtime.GOOS == "darwin" { // bytes there, KiB elsewhere
		return float64(u.Maxrss) / (1 << 20)
	}
	return float64(u.Maxrss) / 1024
}
