//go:build unix

package sim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"reprise/backends"
)

// parentMode makes the test binary a parent that starts an engine, tells its
// address, and waits to be killed.
const parentMode = "REPRISE_SIM_TEST_PARENT"

func TestMain(m *testing.M) {
	MaybeServe()
	if os.Getenv(parentMode) != "" {
		p, err := Start(context.Background(), Options{})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(p.Pid, p.URL)
		select {}
	}
	os.Exit(m.Run())
}

func launch(t *testing.T, o Options) *Process {
	t.Helper()
	p, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop() })
	return p
}

func stream(url string, n int) (tokens int, err error) {
	body := fmt.Sprintf(`{"prompt":[1000,1001],"max_tokens":%d,"min_tokens":%d,"ignore_eos":true,"stream":true}`, n, n)
	resp, err := http.Post(url+"/v1/completions", "application/json", strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	const word = " cacac"
	for e := range strings.SplitSeq(string(b), "\n\n") {
		if _, text, ok := strings.Cut(e, `"text":"`); ok {
			text, _, _ = strings.Cut(text, `"`)
			tokens += len(text) / len(word)
		}
	}
	return tokens, err
}

// gone waits for a process to end. A zombie has: nobody but its parent can take
// it away.
func gone(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			return
		}
		if _, rest, ok := strings.Cut(string(b), ") "); ok && rest[0] == 'Z' {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("process %d is still there after 10 s", pid)
		}
	}
}

// A started engine serves, says what it is through the driver, and is gone
// after Stop.
func TestStartProbeStop(t *testing.T) {
	options := map[string]string{"preset": "llama-3-8b@a100", "num-gpu-blocks": "1000", "batching": "static:4"}
	o, err := ParseOptions(options)
	if err != nil {
		t.Fatal(err)
	}
	p := launch(t, o)
	b, err := backends.Open("sim", backends.Config{URL: p.URL, Options: options})
	if err != nil {
		t.Fatal(err)
	}
	info, err := b.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.Engine != "sim" || info.Model != "llama-3-8b" || info.MinID != 1000 || info.VocabSize != 128000 || info.MaxLen != 15984 || len(info.Warnings) > 0 {
		t.Errorf("Probe() = %+v", info)
	}
	for k, want := range map[string]string{
		"preset": "llama-3-8b@a100", "num_gpu_blocks": "1000", "block_size": "16", "enable_prefix_caching": "False",
		"batching": "static:4", "max_num_batched_tokens": "2048", "cost_token_ns": "67000",
	} {
		if info.Config[k] != want {
			t.Errorf("config %s = %q, want %q", k, info.Config[k], want)
		}
	}
	// What the driver encodes is answered with the exact count.
	c := &backends.Call{PromptIDs: []uint32{1000, 127999}, MaxTokens: 7, Stream: true}
	path, body := b.Encode(nil, c)
	resp, err := http.Post(p.URL+path, "application/json", strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	d, tokens := b.NewDecoder(c), 0
	for line := range strings.Lines(string(data)) {
		if e, ok := strings.CutPrefix(strings.TrimSpace(line), "data: "); ok {
			ev, err := d.Event([]byte(e))
			if err != nil {
				t.Fatalf("event %s: %v", e, err)
			}
			tokens += ev.Tokens
		}
	}
	if r := d.Result(); tokens != 7 || r.OutputTokens.Or(0) != 7 || r.PromptTokens.Or(0) != 2 || r.FinishReason != "length" || r.Error != "" || !r.TTFT.OK {
		t.Errorf("%d tokens, result %+v", tokens, r)
	}
	if err := p.Stop(); err != nil {
		t.Errorf("Stop() = %v", err)
	}
	gone(t, p.Pid)
	if err := p.Stop(); err != nil || p.Err() != nil {
		t.Errorf("a second Stop() = %v, Err() = %v", err, p.Err())
	}
}

// The words that the driver names are tokens of their own, and a message of them
// stands whole inside the template.
func TestWords(t *testing.T) {
	p := launch(t, Options{})
	b, err := New(backends.Config{URL: p.URL, Chat: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	words := b.Words()
	text := " " + strings.Join(words, " ")
	ids, err := b.Tokenize(t.Context(), text)
	if err != nil || len(ids) != len(words) || len(words) != len(slices.Compact(slices.Sorted(slices.Values(ids)))) {
		t.Errorf("%d words are %d tokens, %v", len(words), len(ids), err)
	}
	prompt, err := b.TokenizePrompt(t.Context(), text)
	if err != nil || len(prompt) != len(ids)+13 || !slices.Equal(prompt[5:5+len(ids)], ids) {
		t.Errorf("the prompt has %d tokens, %v; want %d and 13 of the template, 5 before", len(prompt), err, len(ids))
	}
}

func TestNewNeedsAnAddress(t *testing.T) {
	if _, err := New(backends.Config{}); err == nil || !strings.Contains(err.Error(), "started first") {
		t.Errorf("New without URL = %v", err)
	}
	if _, err := New(backends.Config{URL: "http://127.0.0.1:1", Options: map[string]string{"speed": "11"}}); err == nil || !strings.Contains(err.Error(), `no option "speed"`) {
		t.Errorf("New with an unknown option = %v", err)
	}
}

// Ctrl-C reaches the whole foreground group of the terminal. The engine must
// live on while its parent drains.
func TestInterruptIsIgnored(t *testing.T) {
	p := launch(t, Options{})
	if pgid, err := syscall.Getpgid(p.Pid); err != nil || pgid != p.Pid {
		t.Errorf("the engine is in group %d (%v), want one of its own", pgid, err)
	}
	if err := syscall.Kill(p.Pid, syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if n, err := stream(p.URL, 5); n != 5 || err != nil {
		t.Errorf("after an interrupt: %d tokens, %v", n, err)
	}
	if err := syscall.Kill(p.Pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	gone(t, p.Pid)
}

// However the parent ends, the engine does not outlive it.
func TestEngineEndsWithItsParent(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), parentMode+"=1")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var pid int
		var url string
		if _, err := fmt.Fscan(out, &pid, &url); err != nil {
			t.Fatalf("the parent said nothing: %v", err)
		}
		if n, err := stream(url, 3); n != 3 || err != nil {
			t.Errorf("%d tokens, %v", n, err)
		}
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		gone(t, pid)
	}
}

func TestDeathIsReported(t *testing.T) {
	for _, tt := range []struct {
		kind FaultKind
		want string
	}{{Exit, "exit fault"}, {Crash, "engine core died"}} {
		p := launch(t, Options{Faults: []Fault{{Kind: tt.kind, After: 2}}})
		stream(p.URL, 5)
		select {
		case <-p.Done():
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: the engine lives", tt.kind)
		}
		for _, err := range []error{p.Err(), p.Stop()} {
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "exit status 1") {
				t.Errorf("%s: error %v, want %q", tt.kind, err, tt.want)
			}
		}
	}
}

// A killed engine is a reported one.
func TestKillIsReported(t *testing.T) {
	p := launch(t, Options{})
	if p.Err() != nil {
		t.Errorf("Err() of a running engine = %v", p.Err())
	}
	syscall.Kill(p.Pid, syscall.SIGKILL)
	<-p.Done()
	if err := p.Err(); err == nil || !strings.Contains(err.Error(), "killed") {
		t.Errorf("Err() = %v, want it to say killed", err)
	}
}

func TestStartFails(t *testing.T) {
	if _, err := Start(t.Context(), Options{Preset: "nope"}); err == nil || !strings.Contains(err.Error(), "llama-3-8b@h100") {
		t.Errorf("unknown preset: %v", err)
	}
	// The child's own words.
	if _, err := Start(t.Context(), Options{Listen: "256.0.0.1:1"}); err == nil || !strings.Contains(err.Error(), "256.0.0.1") {
		t.Errorf("an address that cannot be: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Start(ctx, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("a start that was called off: %v", err)
	}
}

// The context of Start is over with the start: an interrupt must leave the
// engine for the drain.
func TestContextBoundsTheStartAlone(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	p, err := Start(ctx, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop()
	cancel()
	if n, err := stream(p.URL, 5); n != 5 || err != nil {
		t.Errorf("after the context ended: %d tokens, %v", n, err)
	}
}
