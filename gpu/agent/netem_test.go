//go:build linux

package agent

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A namespace is one side of a cable.
type namespace struct{ name, dev, addr string }

// cable makes two network namespaces joined by a cable, whose sides delay what
// they send.
func cable(t *testing.T, delayA, delayB time.Duration) (a, b namespace) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	for _, tool := range []string{"ip", "tc"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("no %s here", tool)
		}
	}
	id := os.Getpid()
	a = namespace{fmt.Sprintf("reprise-a%d", id), fmt.Sprintf("rpa%d", id%1e6), "10.213.7.1"}
	b = namespace{fmt.Sprintf("reprise-b%d", id), fmt.Sprintf("rpb%d", id%1e6), "10.213.7.2"}
	must := func(what string, args ...string) {
		t.Helper()
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("%s: %v: %.200s", what, err, out)
		}
	}
	for _, n := range []namespace{a, b} {
		must("a network namespace cannot be made here", "ip", "netns", "add", n.name)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", n.name).Run() })
	}
	must("veth", "ip", "link", "add", a.dev, "netns", a.name, "type", "veth", "peer", "name", b.dev, "netns", b.name)
	for _, n := range []struct {
		namespace
		delay time.Duration
	}{{a, delayA}, {b, delayB}} {
		must("address", "ip", "-n", n.name, "addr", "add", n.addr+"/30", "dev", n.dev)
		must("link", "ip", "-n", n.name, "link", "set", n.dev, "up")
		if n.delay > 0 {
			must("this kernel has no netem", "tc", "-n", n.name, "qdisc", "add", "dev", n.dev, "root", "netem", "delay", fmt.Sprintf("%dus", n.delay.Microseconds()))
		}
	}
	return a, b
}

// within runs f on a thread that is in the namespace. A socket stays in the one
// that it was made in.
func (n namespace) within(f func() error) error {
	done := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		ns, err := os.Open("/run/netns/" + n.name)
		if err == nil {
			defer ns.Close()
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// The same claim over a real network stack, delayed by the kernel. One process
// is in both namespaces, so that the truth is exactly 0.
func TestOffsetNetem(t *testing.T) {
	for _, tt := range []struct {
		name        string
		there, back time.Duration
	}{
		{"no delay", 0, 0},
		{"10 ms each way", 10 * ms, 10 * ms},
		{"40 ms there, 2 ms back", 40 * ms, 2 * ms},
		{"2 ms there, 40 ms back", 2 * ms, 40 * ms},
	} {
		t.Run(tt.name, func(t *testing.T) {
			client, server := cable(t, tt.there, tt.back)
			var l net.Listener
			if err := server.within(func() (err error) {
				l, err = net.Listen("tcp", server.addr+":0")
				return err
			}); err != nil {
				t.Skipf("the namespace cannot be entered: %v", err)
			}
			serve(t, l, 0)
			dial := func(ctx context.Context, network, addr string) (c net.Conn, err error) {
				// Go's resolver and dialer would use other threads; an address in
				// figures needs neither.
				err = client.within(func() (err error) {
					c, err = net.DialTimeout(network, addr, 5*time.Second)
					return err
				})
				return c, err
			}
			worst, bound := offsets(t, "http://"+l.Addr().String(), dial, 0, 5)
			t.Logf("worst error %v, last bound %v", worst, bound)
			if tt.there == tt.back && worst > ms {
				t.Logf("more than 1 ms off over equal delays")
			}
		})
	}
}
