//go:build !linux

package mock

import (
	"fmt"
	"runtime"
)

// A Server is only to be had on Linux.
type Server struct{}

// Listen is an error here: the mock stands on epoll.
func Listen(addr string, o Options) (*Server, error) {
	return nil, fmt.Errorf("the mock server needs Linux, and this is %s", runtime.GOOS)
}

func (*Server) Addr() string { return "" }
func (*Server) Stats() Stats { return Stats{} }
func (*Server) Close()       {}
