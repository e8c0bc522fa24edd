package cli

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A person types and presses TAB in a real, interactive shell: what stands on
// the line then is what the program is called with.
func TestTab(t *testing.T) {
	keys := []struct{ typed, want string }{
		{"replay --ba\tvllm x\r", `args=["x"] backend=["vllm"]`},
		{"replay --backend vllm tr\t\r", `args=["trace.parquet"] backend=["vllm"]`},
		{"replay --backend vllm --out\tdir x\r", `args=["x"] backend=["vllm"] speedup=1 output="dir"`},
		{"replay exp\tpl\tm.yaml\r", `replay experiment plan args=["m.yaml"]`},
		{"replay --js\t--output=tr\t x\r", `output="trace.parquet" json=true`},
		{"replay a\\ b\t\r", `args=["a b.csv"]`},
	}
	for shell, start := range map[string][]string{
		"bash": {"--norc", "--noprofile", "-i"},
		"zsh":  {"-f", "-i"},
	} {
		t.Run(shell, func(t *testing.T) {
			dir := program(t, shell)
			terminal := startShell(t, dir, shell, start...)
			// In two parts, so that the echo of what is typed is not the prompt.
			setup := "PS1='REA''DY> '; . ./_replay\r"
			if shell == "zsh" {
				setup = "unsetopt prompt_sp prompt_cr zle_bracketed_paste; PS1='REA''DY> '; autoload -Uz compinit; compinit -D -u; . ./_replay\r"
			}
			terminal.send(t, setup, "READY> ")
			for _, k := range keys {
				// A shell reads what comes after a TAB once it has completed.
				for i, part := range strings.SplitAfter(k.typed, "\t") {
					if i > 0 {
						time.Sleep(300 * time.Millisecond)
					}
					terminal.write(t, part)
				}
				if out := terminal.until(t, "verbose=", "READY> "); !strings.Contains(out, k.want) {
					t.Errorf("%q gave %q, want %s", k.typed, out, k.want)
				}
			}
		})
	}
}

// A pty is the master's end of a terminal.
type pty struct {
	*os.File
	out chan string
}

func startShell(t *testing.T, dir, shell string, args ...string) *pty {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: 200}); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no terminals here: %v", err)
	}
	cmd := exec.Command(shell, args...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + dir + ":" + os.Getenv("PATH"), "HOME=" + dir, "TERM=dumb", "ZDOTDIR=" + dir}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	p := &pty{os.NewFile(uintptr(fd), "ptmx"), make(chan string, 1000)}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		p.Close()
	})
	go func() {
		defer close(p.out)
		b := make([]byte, 4096)
		for {
			n, err := p.Read(b)
			if err != nil {
				return
			}
			p.out <- string(b[:n])
		}
	}()
	return p
}

func (p *pty) write(t *testing.T, s string) {
	t.Helper()
	if _, err := fmt.Fprint(p, s); err != nil {
		t.Fatal(err)
	}
}

func (p *pty) send(t *testing.T, s, until string) {
	t.Helper()
	p.write(t, s)
	p.until(t, until)
}

// until returns what the shell writes until all of marks have come, in order.
func (p *pty) until(t *testing.T, marks ...string) string {
	t.Helper()
	var all strings.Builder
	deadline := time.After(20 * time.Second)
	for {
		rest, found := all.String(), true
		for _, m := range marks {
			_, rest, found = strings.Cut(rest, m)
			if !found {
				break
			}
		}
		if found {
			return all.String()
		}
		select {
		case s, ok := <-p.out:
			if !ok {
				t.Fatalf("the shell ended after %q", all.String())
			}
			all.WriteString(s)
		case <-deadline:
			t.Fatalf("waited for %q, got %q", marks, all.String())
		}
	}
}
