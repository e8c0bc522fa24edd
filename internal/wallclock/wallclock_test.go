package wallclock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// timeServer is a real one, chrony's, that serves this machine's own time.
func timeServer(t *testing.T) string {
	t.Helper()
	program, err := exec.LookPath("chronyd")
	if err != nil {
		if program, err = exec.LookPath("/usr/sbin/chronyd"); err != nil {
			t.Skip("no chronyd here (Debian's package chrony)")
		}
	}
	free, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := free.LocalAddr().(*net.UDPAddr).Port
	free.Close()
	// chronyd drops its privileges, and could not read below a test's own folder.
	dir, err := os.MkdirTemp("", "chrony-*")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "conf")
	text := fmt.Sprintf("port %d\nbindaddress 127.0.0.1\ncmdport 0\nlocal stratum 3\nallow 127.0.0.1\npidfile %s/pid\n", port, dir)
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-d", "-x", "-f", conf) // -x: it never touches the host's clock
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return fmt.Sprintf("ntp://127.0.0.1:%d", port)
}

// The offset of a clock that is wrong is found, within the bound.
func TestNTP(t *testing.T) {
	server := timeServer(t)
	defer func() { Now = time.Now }()
	for _, wrong := range []time.Duration{0, 37 * time.Millisecond, -42 * time.Second} {
		Now = func() time.Time { return time.Now().Add(wrong) }
		var c Check
		var err error
		for range 20 { // chronyd takes a moment to serve
			if c, err = NTP(t.Context(), server); err == nil {
				break
			}
			time.Sleep(200 * time.Millisecond)
		}
		if err != nil {
			t.Fatal(err)
		}
		if off := (c.Offset + wrong).Abs(); off > c.Bound || c.Bound <= 0 || c.Reference != server {
			t.Errorf("a clock that is %v off: offset %v ± %v of %s", wrong, c.Offset, c.Bound, c.Reference)
		}
	}
}

func TestNTPRefuses(t *testing.T) {
	for _, address := range []string{"ntp://", "http://127.0.0.1", "ntp://u:p@h", "ntp://h/path", "h"} {
		if _, err := NTP(t.Context(), address); err == nil || !strings.Contains(err.Error(), "want ntp://host") {
			t.Errorf("%q: %v", address, err)
		}
	}
	// Nobody there.
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := NTP(ctx, "ntp://127.0.0.1:1"); err == nil {
		t.Error("a port where nobody serves told the time")
	}
}

// What this machine's kernel says is a bound or that there is none.
func TestFromKernel(t *testing.T) {
	c, err := FromKernel()
	switch {
	case errors.Is(err, ErrUnsynchronised):
	case err != nil:
		t.Fatal(err)
	case c.Reference != Kernel || c.Bound <= 0 || c.Offset != 0:
		t.Errorf("%+v", c)
	}
}
