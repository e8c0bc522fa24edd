//go:build !unix

package sim

import "syscall"

// ownGroup does nothing: the child ignores interrupts by itself.
func ownGroup() *syscall.SysProcAttr { return nil }
