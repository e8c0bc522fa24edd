//go:build !linux

package proxy

// background does nothing where threads have no priority of their own.
func background() {}
