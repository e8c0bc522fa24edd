//go:build !linux

package main

import (
	"errors"
	"os/exec"
	"time"
)

func startOn(*exec.Cmd, int) error { return errors.New("cores can be chosen on Linux only") }
func cpuTime() time.Duration       { return 0 }
func maxRSS() int64                { return 0 }
