package main

import (
	"time"

	"golang.org/x/sys/unix"
)

func usage() (u unix.Rusage) {
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return u
}

func cpuTime() time.Duration {
	u := usage()
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func maxRSS() int64 { return usage().Maxrss }
