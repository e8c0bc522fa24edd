package wire

import (
	"errors"
	"fmt"
	"syscall"
)

// explain names the limit behind an error of socket or connect.
func explain(err error) error {
	switch {
	case errors.Is(err, syscall.EMFILE):
		return fmt.Errorf("%w: the limit of open files (RLIMIT_NOFILE%s) is reached; raise it with ulimit -n", err, nofileText())
	case errors.Is(err, syscall.ENFILE):
		return fmt.Errorf("%w: the system-wide limit of open files (fs.file-max) is reached", err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fmt.Errorf("%w: the local ports towards this server are used up (net.ipv4.ip_local_port_range%s)", err, portText())
	}
	return err
}
