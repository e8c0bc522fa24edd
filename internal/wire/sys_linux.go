package wire

import (
	"net"
	"net/netip"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The calls of the send and read paths go to the kernel without telling the
// scheduler of Go: none of them can block, and the telling costs as much as a
// small read.

// read reads into b, without blocking.
func read(fd int32, b []byte) (n int, errno unix.Errno) {
	for {
		r, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if e == 0 {
			return int(r), 0
		}
		if e != unix.EINTR {
			return -1, e
		}
	}
}

// writeBoth writes a, then b, without blocking. n counts what was written, and
// is short only with an error or a full buffer.
func writeBoth(fd int32, a, b []byte) (n int, errno unix.Errno) {
	var r uintptr
	for {
		if len(b) <= cap(a)-len(a) {
			joined := append(a, b...)
			r, _, errno = unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(joined))), uintptr(len(joined)))
		} else {
			iov := [2]unix.Iovec{{Base: unsafe.SliceData(a)}, {Base: unsafe.SliceData(b)}}
			iov[0].SetLen(len(a))
			iov[1].SetLen(len(b))
			r, _, errno = unix.RawSyscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&iov)), uintptr(len(iov)))
			runtime.KeepAlive(a)
			runtime.KeepAlive(b)
		}
		switch errno {
		case 0:
			if int(r) < len(a)+len(b) {
				errno = unix.EAGAIN
			}
			return int(r), errno
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// quiet says that a connection is open and has nothing to read.
func (cn *conn) quiet() bool {
	var b [1]byte
	_, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(cn.fd), uintptr(unsafe.Pointer(&b)), 1, unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
	return e == unix.EAGAIN
}

// epollNow returns what is ready, without blocking.
func epollNow(fd int, events []unix.EpollEvent) int {
	r, _, e := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0)
	if e != 0 {
		return 0
	}
	return int(r)
}

// socket makes a non-blocking TCP socket for a connection to addr.
func socket(addr netip.AddrPort) (int, error) {
	family := unix.AF_INET6
	if addr.Addr().Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return -1, dialError(addr, "socket", err)
	}
	for _, o := range [...]struct{ level, name, value int }{
		{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1},
		// As package net does: a peer that is gone without a word is found out.
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			unix.Close(fd)
			return -1, dialError(addr, "setsockopt", err)
		}
	}
	return fd, nil
}

// connectTo begins to connect fd.
func connectTo(fd int, addr netip.AddrPort) error {
	var sa unix.Sockaddr
	if ip := addr.Addr(); ip.Is4() {
		sa = &unix.SockaddrInet4{Port: int(addr.Port()), Addr: ip.As4()}
	} else {
		sa = &unix.SockaddrInet6{Port: int(addr.Port()), Addr: ip.As16(), ZoneId: zoneID(ip.Zone())}
	}
	if err := unix.Connect(fd, sa); err != nil && err != unix.EINPROGRESS {
		return dialError(addr, "connect", err)
	}
	return nil
}

// zoneID is the number of a network interface.
func zoneID(zone string) uint32 {
	if i, err := net.InterfaceByName(zone); err == nil {
		return uint32(i.Index)
	}
	n, _ := strconv.ParseUint(zone, 10, 32)
	return uint32(n)
}
