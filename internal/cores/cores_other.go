//go:build !linux

// Package cores starts processes on chosen cores, for benchmarks whose parties
// must not share one.
package cores

import (
	"errors"
	"os/exec"
)

// Start fails: cores can be chosen on Linux only.
func Start(*exec.Cmd, int) error { return errors.New("cores can be chosen on Linux only") }
