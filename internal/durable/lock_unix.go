//go:build unix

package durable

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockPatience is how long LockFile waits for a lock that is held. Whenever this
// process starts another, the child holds all that is open here, locks included,
// from its fork to its exec: a journal that is closed and read again at once
// would seem to be somebody else's.
const lockPatience = 500 * time.Millisecond

// LockFile keeps other processes from reading a journal that is being written,
// for as long as f is open.
func LockFile(f *os.File) error {
	deadline := time.Now().Add(lockPatience)
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	for errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond)
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		return errors.New("another process is writing it")
	case errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.ENOLCK), errors.Is(err, unix.ENOSYS):
		return nil // a file system without locks
	}
	return err
}
