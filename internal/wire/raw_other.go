//go:build !linux

package wire

import (
	"fmt"
	"runtime"
)

const haveRaw = false

type flight struct{}

// NewRaw needs epoll: elsewhere than on Linux it is an error, and New chooses
// net/http.
func NewRaw(base string, o Options) (Client, error) {
	return nil, fmt.Errorf("the raw client needs Linux, and this is %s: use net/http", runtime.GOOS)
}
