//go:build !unix

package experiment

import "os/exec"

// OwnGroup does nothing: there are no process groups, and of a hook the command
// alone is ended.
func OwnGroup(*exec.Cmd) {}

func endGroup(cmd *exec.Cmd) { cmd.Process.Kill() }

func killGroup(*exec.Cmd) {}
