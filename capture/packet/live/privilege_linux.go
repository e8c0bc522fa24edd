package live

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socketEnv names the socket that a process hands to itself.
const socketEnv = "REPRISE_PACKET_SOCKET"

// lastCapability is more than any capability's number.
const lastCapability = 63

// Reexec starts this program again, in this process, with the socket open and no
// rights: as the user if this is root, without capabilities, and with no way to
// any (no_new_privs). It returns only if that failed.
//
// A new image is the sure way: rights belong to threads, the runtime of Go has
// many, and execve leaves only the one that has given them up.
func (s *Socket) Reexec(name string) error {
	uid, gid := os.Getuid(), os.Getgid()
	if os.Geteuid() == 0 {
		u, err := user.Lookup(name)
		if err != nil {
			return fmt.Errorf("--user: %w", err)
		}
		uid, _ = strconv.Atoi(u.Uid)
		gid, _ = strconv.Atoi(u.Gid)
		if uid == 0 {
			return errors.New("--user is root: --allow-root says that this is meant")
		}
	}
	runtime.LockOSThread()
	if _, err := unix.FcntlInt(uintptr(s.fd), unix.F_SETFD, 0); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	if os.Geteuid() == 0 {
		for c := range uintptr(lastCapability) {
			unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0) // those that there are
		}
		// The calls of this thread alone, not those of package syscall, which
		// act on all and are not to be mixed with the rest of this.
		groups := [1]uint32{uint32(gid)}
		for _, call := range []struct {
			what       string
			nr         uintptr
			a0, a1, a2 uintptr
		}{
			{"setgroups", unix.SYS_SETGROUPS, 1, uintptr(unsafe.Pointer(&groups[0])), 0},
			{"setresgid", unix.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)},
			{"setresuid", unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)},
		} {
			if _, _, errno := unix.RawSyscall(call.nr, call.a0, call.a1, call.a2); errno != 0 {
				return fmt.Errorf("%s: %w", call.what, errno)
			}
		}
		runtime.KeepAlive(&groups)
	}
	unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&head, &none[0]); err != nil {
		return fmt.Errorf("giving up capabilities: %w", err)
	}
	env := append(os.Environ(), fmt.Sprintf("%s=%d,%d", socketEnv, s.fd, s.ring))
	return fmt.Errorf("starting again without rights: %w", syscall.Exec("/proc/self/exe", os.Args, env))
}

// Inherited returns the socket that this process handed to itself with
// [Socket.Reexec], or nil if it did not.
func Inherited() (*Socket, error) {
	v, ok := os.LookupEnv(socketEnv)
	if !ok {
		return nil, nil
	}
	os.Unsetenv(socketEnv)
	s := &Socket{}
	if _, err := fmt.Sscanf(v, "%d,%d", &s.fd, &s.ring); err != nil {
		return nil, fmt.Errorf("%s: not set by this program", socketEnv)
	}
	if domain, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil || domain != unix.AF_PACKET || s.ring <= 0 || s.ring%blockBytes != 0 {
		return nil, fmt.Errorf("%s: not set by this program", socketEnv)
	}
	unix.CloseOnExec(s.fd)
	return s, CheckRights()
}

// CheckRights returns an error if this process could do more than a user: what
// parses packets from strangers must not.
func CheckRights() error {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	want := map[string]func(string) bool{
		"Uid:":        func(v string) bool { return !strings.Contains("\t"+v+"\t", "\t0\t") },
		"CapPrm:":     func(v string) bool { return strings.Trim(v, "0") == "" },
		"CapEff:":     func(v string) bool { return strings.Trim(v, "0") == "" },
		"NoNewPrivs:": func(v string) bool { return v == "1" },
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "\t")
		if ok := want[key]; ok != nil && !ok(value) {
			return fmt.Errorf("this process still has rights (%s %s)", key, value)
		}
		delete(want, key)
	}
	if len(want) > 0 {
		return errors.New("cannot tell which rights this process has")
	}
	return nil
}
