//go:build unix

package main

import "syscall"

// privateFiles keeps every file that this program creates, temporary ones
// included, from all but its owner.
func privateFiles() { syscall.Umask(0o077) }
