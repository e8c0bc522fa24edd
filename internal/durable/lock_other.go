//go:build !unix

package durable

import "os"

// LockFile does nothing where there is no flock.
func LockFile(*os.File) error { return nil }
