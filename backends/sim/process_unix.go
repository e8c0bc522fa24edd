//go:build unix

package sim

import "syscall"

// ownGroup keeps the terminal's signals from the child.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
