package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"reprise/capture/packet/frame"
	"reprise/capture/packet/pcaptest"
	"reprise/internal/cli"
)

// loPcap is a capture of 18 requests through nginx, HAProxy and Caddy.
const loPcap = "../../capture/packet/testdata/lo.pcap"

// run calls the program in this process.
func runCapture(args ...string) (status int, stdout, stderr string) {
	var out, errs bytes.Buffer
	status = cli.Main(app(), append([]string{"capture"}, args...), &out, &errs)
	return status, out.String(), errs.String()
}

type packetsJSON struct {
	Rows     int64
	Accounts struct{ Seen, Recorded int64 }
	Details  struct {
		Packets struct{ Seen, Parsed, Ignored int64 }
	}
}

func TestPacketsOfFile(t *testing.T) {
	out := filepath.Join(t.TempDir(), "t.parquet")
	status, stdout, stderr := runCapture("packets", "--json", loPcap, "-o", out)
	var got packetsJSON
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || status != 0 {
		t.Fatalf("status %d, %v\n%s", status, err, stderr)
	}
	if got.Rows != 18 || got.Accounts.Seen != 18 || got.Details.Packets.Seen != 751 || got.Details.Packets.Parsed != 751 {
		t.Errorf("%+v", got)
	}
	if !strings.Contains(stderr, "packets seen 751 = parsed 751") {
		t.Errorf("the accounts are not printed:\n%s", stderr)
	}
	// Half of it, and the other half, by port; the same twice is the same trace
	// with each packet seen twice.
	_, stdout, _ = runCapture("packets", "--json", "--read", loPcap, "--port", "18000", "--force", "-o", out)
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || got.Rows == 0 || got.Rows >= 18 || got.Details.Packets.Ignored == 0 {
		t.Errorf("--port: %v, %+v", err, got)
	}
	_, stdout, _ = runCapture("packets", "--json", loPcap, loPcap, "--force", "-o", out)
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || got.Rows != 18 || got.Details.Packets.Seen != 2*751 {
		t.Errorf("the same file twice: %v, %+v", err, got)
	}
}

// TestPacketsWithKeys: a file that carries TLS keys is read, and what is encrypted
// in it stays unread, which is said.
func TestPacketsWithKeys(t *testing.T) {
	var n pcaptest.Net
	c := n.Dial()
	c.Open(1_790_000_000_000_000_000)
	c.Send(pcaptest.Client, 1_790_000_000_001_000_000, append([]byte{0x16, 3, 1, 0, 200}, make([]byte, 200)...))
	c.Close(pcaptest.Client, 1_790_000_000_002_000_000)
	file := pcaptest.PcapNG(frame.Ethernet, 9, false, n.Packets)
	// A Decryption Secrets Block with the line of a key log, behind the section's header.
	keys := []byte("CLIENT_RANDOM 00 00\n")
	block := binary.LittleEndian.AppendUint32(nil, 10)
	block = binary.LittleEndian.AppendUint32(block, uint32(20+len(keys)))
	block = binary.LittleEndian.AppendUint32(block, 0x544c534b) // TLSK
	block = binary.LittleEndian.AppendUint32(block, uint32(len(keys)))
	block = binary.LittleEndian.AppendUint32(append(block, keys...), uint32(20+len(keys)))
	name := filepath.Join(t.TempDir(), "keys.pcapng")
	if err := os.WriteFile(name, slices.Insert(file, 28, block...), 0o600); err != nil {
		t.Fatal(err)
	}
	status, stdout, stderr := runCapture("packets", "--json", name, "-o", filepath.Join(t.TempDir(), "t.parquet"))
	var got packetsJSON
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || status != 0 || got.Details.Packets.Seen != int64(len(n.Packets)) || got.Rows != 0 {
		t.Fatalf("status %d, %v, %+v\n%s", status, err, got, stderr)
	}
	for _, want := range []string{"TLS keys, which are not used", "1 connections are encrypted"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("%q is not said:\n%s", want, stderr)
		}
	}
}

func TestPacketsUsage(t *testing.T) {
	out := filepath.Join(t.TempDir(), "t.parquet")
	cut := filepath.Join(t.TempDir(), "cut.pcap")
	whole, err := os.ReadFile(loPcap)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cut, whole[:len(whole)-5], 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args   string
		status int
		want   string
	}{
		{"packets -o " + out, 2, "from where?"},
		{"packets " + loPcap, 2, "where to?"},
		{"packets --interface lo -o " + out, 2, "which port"},
		{"packets --interface lo " + loPcap + " -o " + out, 2, "exclude each other"},
		{"packets --port 70000 " + loPcap + " -o " + out, 2, "no port"},
		{"packets packets_test.go -o " + out, 1, "neither pcap nor pcapng"},
		{"packets missing.pcap -o " + out, 1, "no such file"},
		{"packets " + cut + " -o " + out, 1, "ended in damage"},
	} {
		status, _, stderr := runCapture(strings.Fields(tt.args)...)
		if status != tt.status || !strings.Contains(stderr, tt.want) {
			t.Errorf("capture %s: status %d, want %d\n%s", tt.args, status, tt.status, stderr)
		}
	}
	if _, err := os.Stat(out); err != nil {
		t.Error("what was good of a damaged file is not in the trace:", err)
	}
}

// A capture from standard input that is told to end keeps what it has, though
// nothing more comes.
func TestPacketsInterrupted(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no signals")
	}
	whole, err := os.ReadFile(loPcap)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "t.parquet")
	cmd := exec.Command("capture", "packets", "-", "--json", "-o", out)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in.Write(whole[:len(whole)-5])
	time.Sleep(500 * time.Millisecond)
	cmd.Process.Signal(syscall.SIGINT)
	err = cmd.Wait()
	var got packetsJSON
	if e := json.Unmarshal(stdout.Bytes(), &got); e != nil || got.Rows == 0 || cmd.ProcessState.ExitCode() != cli.Interrupted {
		t.Errorf("%v, %v, %d rows\n%s", err, e, got.Rows, stderr.String())
	}
}

// TestPacketsLive runs the program on loopback and looks at its rights, of
// every thread, before it has seen a packet.
func TestPacketsLive(t *testing.T) {
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		t.Skip("giving up the rights of root takes Linux and root")
	}
	dir := t.TempDir()
	for d := dir; d != filepath.Dir(os.TempDir()) && d != "/"; d = filepath.Dir(d) {
		if d == os.TempDir() {
			break
		}
		if err := os.Chmod(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(dir, "live.parquet")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, `{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hi"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}`)
	})}
	go srv.Serve(l)
	defer srv.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	cmd := exec.Command("capture", "packets", "--interface", "lo", "--port", port, "--json", "-o", out)
	var stdout bytes.Buffer
	cmd.Stdout = &stdout
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	lines := bufio.NewScanner(stderr)
	var said strings.Builder
	for lines.Scan() {
		said.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), "capturing on") {
			break
		}
	}
	if strings.Contains(said.String(), "CAP_NET_RAW") {
		t.Skip("no CAP_NET_RAW here")
	}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", cmd.Process.Pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("no threads: %v\n%s", err, said.String())
	}
	for _, name := range threads {
		b, err := os.ReadFile(name)
		if err != nil {
			continue // it ended
		}
		for _, want := range []string{"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapAmb:\t0000000000000000", "NoNewPrivs:\t1"} {
			if !strings.Contains(string(b), want+"\n") {
				t.Errorf("a thread without %q", want)
			}
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 1 && (f[0] == "Uid:" || f[0] == "Gid:" || f[0] == "Groups:") {
				for _, id := range f[1:] {
					if id == "0" {
						t.Errorf("a thread with %s", strings.TrimSpace(line))
					}
				}
			}
		}
	}
	for range 20 {
		resp, err := http.Post("http://"+l.Addr().String()+"/v1/chat/completions", "application/json", strings.NewReader(`{"model":"m","messages":[{"role":"user","content":"hi"}]}`))
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	time.Sleep(200 * time.Millisecond)
	cmd.Process.Signal(syscall.SIGTERM)
	for lines.Scan() {
		said.WriteString(lines.Text() + "\n")
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, said.String())
	}
	var got packetsJSON
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil || got.Rows != 20 {
		t.Errorf("%v: %+v\n%s", err, got, said.String())
	}
}
