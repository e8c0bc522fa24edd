package testnet

import (
	"io"
	"net"
	"os/exec"
	"testing"
	"time"
)

// Bytes come whole over a network that loses packets, after the delay of both
// directions, to a host that another's processes reach by its address alone.
func TestNet(t *testing.T) {
	const there, back = 20 * time.Millisecond, 5 * time.Millisecond
	n := New(t, 2, 1, func(from, to int) Link {
		if from == 0 {
			return Link{Delay: there, Loss: 0.02}
		}
		return Link{Delay: back, Loss: 0.02}
	})
	var l net.Listener
	if err := n.On(1, func() (err error) {
		l, err = net.Listen("tcp", n.Addr(1)+":0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	if c, err := net.DialTimeout("tcp", l.Addr().String(), 100*time.Millisecond); err == nil {
		c.Close()
		t.Fatal("a host is reached from outside of its network")
	}
	var c net.Conn
	if err := n.On(0, func() (err error) {
		c, err = net.Dial("tcp", l.Addr().String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const size = 1 << 20
	go func() {
		c.Write(make([]byte, size))
		c.(*net.TCPConn).CloseWrite()
	}()
	if k, err := io.Copy(io.Discard, c); k != size || err != nil {
		t.Fatalf("%d of %d bytes came back: %v", k, size, err)
	}
	if passed, lost := n.Counts(); lost == 0 || float64(lost)/float64(passed+lost) > 0.05 {
		t.Errorf("%d packets came and %d did not, want about 2 %%", passed, lost)
	}
	best := time.Hour
	for range 5 {
		began := time.Now()
		if err := n.On(0, func() error {
			c, err := net.Dial("tcp", l.Addr().String())
			if err == nil {
				c.Close()
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		best = min(best, time.Since(began))
	}
	if best < there+back {
		t.Errorf("connecting took %v, and a round trip takes %v", best, there+back)
	}
	if path, err := exec.LookPath("true"); err == nil {
		cmd := exec.Command(path)
		if err := n.Start(0, cmd); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
}
