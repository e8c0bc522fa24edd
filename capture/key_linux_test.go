package capture

import (
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
)

// A Secret of Kubernetes is a file of root's that the group of the pod may read,
// and nothing else that others can read is taken.
func TestKeyOfRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to be someone else")
	}
	dir, err := os.MkdirTemp("", "key-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	const pod = 65532
	path := filepath.Join(dir, "key")
	want, err := LoadKey(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		owner int
		mode  os.FileMode
		taken bool
	}{
		{0, 0o440, true}, {0, 0o640, true}, {0, 0o444, false}, {0, 0o660, false},
		{pod, 0o400, true}, {pod, 0o440, false},
	} {
		if err := os.Chown(path, c.owner, pod); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		type result struct {
			key *Key
			err error
		}
		loaded := make(chan result)
		go func() {
			// The user of this thread alone, which ends with the goroutine.
			runtime.LockOSThread()
			for _, call := range []uintptr{syscall.SYS_SETRESGID, syscall.SYS_SETRESUID} {
				if _, _, errno := syscall.RawSyscall(call, pod, pod, pod); errno != 0 {
					loaded <- result{err: errno}
					return
				}
			}
			k, err := LoadKey(path)
			loaded <- result{k, err}
		}()
		got := <-loaded
		if (got.err == nil) != c.taken {
			t.Errorf("owner %d, mode %04o: %v, want taken to be %t", c.owner, c.mode, got.err, c.taken)
		}
		if got.err == nil && got.key.Fingerprint() != want.Fingerprint() {
			t.Errorf("owner %d, mode %04o: another key", c.owner, c.mode)
		}
	}
}
