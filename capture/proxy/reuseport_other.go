//go:build !unix

package proxy

import (
	"errors"
	"syscall"
)

func controlReusePort(string, string, syscall.RawConn) error {
	return errors.New("this system cannot share a port")
}
