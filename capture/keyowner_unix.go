//go:build unix

package capture

import (
	"io/fs"
	"os"
	"syscall"
)

// fromRoot reports whether root gave this process a file that it does not own.
func fromRoot(info fs.FileInfo) bool {
	s, ok := info.Sys().(*syscall.Stat_t)
	return ok && s.Uid == 0 && os.Geteuid() != 0
}
