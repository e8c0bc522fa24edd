// Package testnet makes hosts for tests: network namespaces of this machine,
// joined by a network that delays and loses packets as the test says. The
// network is this process, which reads what one host sends from its TUN device
// and writes it to that of another, so that no kernel module is needed. What the
// hosts do goes through the kernel's own TCP.
package testnet

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A Link is one direction between two hosts.
type Link struct {
	Delay time.Duration // of each packet
	Loss  float64       // share of packets that do not come
}

// A Net is a network of hosts, numbered from 0.
type Net struct {
	hosts  []*host
	routes map[netip.Addr]int
	link   func(from, to int) Link
	rng    *rand.Rand // of the losses; under mu

	mu     sync.Mutex
	pipes  map[[2]int]chan packet
	lost   int64
	passed int64
	closed bool
	all    sync.WaitGroup
}

type host struct {
	addr netip.Addr
	ns   *os.File // its namespace
	tun  *os.File
}

type packet struct {
	due  time.Time
	data []byte
}

const (
	device = "tun0"
	// queued bounds the packets under way in one direction; more are lost, as in
	// a router.
	queued = 4096
	mtu    = 1500
)

// New makes n hosts, or skips the test where that is not allowed. link is asked
// for each packet.
func New(t testing.TB, n int, seed uint64, link func(from, to int) Link) *Net {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	net := &Net{routes: map[netip.Addr]int{}, link: link, rng: rand.New(rand.NewPCG(seed, 1)), pipes: map[[2]int]chan packet{}}
	t.Cleanup(net.close)
	for i := range n {
		h := &host{addr: netip.AddrFrom4([4]byte{10, 77, byte(i / 250), byte(1 + i%250)})}
		if err := h.open(); err != nil {
			t.Skipf("no network of namespaces here: %v", err)
		}
		net.hosts = append(net.hosts, h)
		net.routes[h.addr] = i
	}
	for i := range net.hosts {
		net.all.Go(func() { net.forward(i) })
	}
	return net
}

// open makes the namespace and its device. The thread that did it ends with its
// goroutine, as it is in the namespace for good.
func (h *host) open() error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- h.openHere()
	}()
	return <-done
}

func (h *host) openHere() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	var err error
	if h.ns, err = os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())); err != nil {
		return err
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("/dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(device)
	if err != nil {
		unix.Close(fd)
		return err
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		unix.Close(fd)
		return fmt.Errorf("TUNSETIFF: %w", err)
	}
	h.tun = os.NewFile(uintptr(fd), device) // not before: the poller takes a TUN without a device for broken
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	set := func(dev string, call uint, value func(*unix.Ifreq) error) {
		req, e := unix.NewIfreq(dev)
		if e == nil {
			e = value(req)
		}
		if e == nil {
			e = unix.IoctlIfreq(s, call, req)
		}
		if err == nil && e != nil {
			err = fmt.Errorf("%s: %w", dev, e)
		}
	}
	inet := func(a, b, c, d byte) func(*unix.Ifreq) error {
		return func(r *unix.Ifreq) error { return r.SetInet4Addr([]byte{a, b, c, d}) }
	}
	up := func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING); return nil }
	a := h.addr.As4()
	set(device, unix.SIOCSIFADDR, inet(a[0], a[1], a[2], a[3]))
	set(device, unix.SIOCSIFNETMASK, inet(255, 255, 0, 0))
	set(device, unix.SIOCSIFFLAGS, up)
	set("lo", unix.SIOCSIFFLAGS, up)
	return err
}

// Addr is the address of host i.
func (n *Net) Addr(i int) string { return n.hosts[i].addr.String() }

// On runs f on a thread that is on host i: sockets that it makes and processes
// that it starts are of that host for good.
func (n *Net) On(i int, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := unix.Setns(int(n.hosts[i].ns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// Start starts a process on host i.
func (n *Net) Start(i int, cmd *exec.Cmd) error { return n.On(i, cmd.Start) }

// Counts says how many packets came and how many did not.
func (n *Net) Counts() (passed, lost int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.passed, n.lost
}

// forward takes what host i sends until it is closed.
func (n *Net) forward(i int) {
	buf := make([]byte, mtu+64)
	for {
		k, err := n.hosts[i].tun.Read(buf)
		if err != nil {
			return
		}
		if k < 20 || buf[0]>>4 != 4 {
			continue // IPv6's own chatter
		}
		to, ok := n.routes[netip.AddrFrom4([4]byte(buf[16:20]))]
		if !ok {
			continue
		}
		l := n.link(i, to)
		n.mu.Lock()
		if n.closed {
			n.mu.Unlock()
			return
		}
		if n.rng.Float64() < l.Loss {
			n.lost++
			n.mu.Unlock()
			continue
		}
		pipe := n.pipes[[2]int{i, to}]
		if pipe == nil {
			pipe = make(chan packet, queued)
			n.pipes[[2]int{i, to}] = pipe
			n.all.Go(func() { n.deliver(pipe, n.hosts[to]) })
		}
		select {
		case pipe <- packet{time.Now().Add(l.Delay), append([]byte(nil), buf[:k]...)}:
			n.passed++
		default:
			n.lost++
		}
		n.mu.Unlock()
	}
}

// deliver writes packets when they are due, in order.
func (n *Net) deliver(pipe <-chan packet, to *host) {
	for p := range pipe {
		time.Sleep(time.Until(p.due))
		if _, err := to.tun.Write(p.data); err != nil {
			continue // the host is going away; the pipe is emptied until it is closed
		}
	}
}

func (n *Net) close() {
	n.mu.Lock()
	n.closed = true
	for _, p := range n.pipes {
		close(p)
	}
	n.mu.Unlock()
	for _, h := range n.hosts {
		h.tun.Close()
		h.ns.Close()
	}
	n.all.Wait()
}
