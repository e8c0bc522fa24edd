package main

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"reprise/internal/stats"
	"reprise/replay"
	"reprise/traceformat"
)

// Tests against real engines. llama.cpp runs wherever it is installed
// (testdata/engines/setup-llamacpp.sh takes seconds); vLLM and SGLang take a
// minute to start and run when REPRISE_ENGINES names them (make test-engines).

// cacheDir is where engines are installed.
func cacheDir(t *testing.T) string {
	if dir := os.Getenv("REPRISE_CACHE"); dir != "" {
		return dir
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		t.Skip("no cache folder: ", err)
	}
	return filepath.Join(dir, "reprise")
}

func sharedDir() string {
	if dir := os.Getenv("REPRISE_SHARED"); dir != "" {
		return dir
	}
	return filepath.Join("..", "..", "..", "shared")
}

func needs(t *testing.T, files ...string) {
	t.Helper()
	for _, f := range files {
		if _, err := os.Stat(f); err != nil {
			t.Skipf("%v: see testdata/engines and the shared folder's engines/README.md", err)
		}
	}
}

func wanted(t *testing.T, engine string) {
	t.Helper()
	if !slices.Contains(strings.Split(os.Getenv("REPRISE_ENGINES"), ","), engine) {
		t.Skipf("REPRISE_ENGINES does not name %s; make test-engines does", engine)
	}
}

// freePort asks the kernel for one.
func freePort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return port
}

// serve starts an engine in a process group of its own, waits until ready
// answers, and ends the group with the test.
func serve(t *testing.T, port, ready string, within time.Duration, argv ...string) (url string) {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "engine.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		select {
		case <-exited:
		case <-time.After(20 * time.Second):
		}
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		log.Close()
		if t.Failed() {
			t.Log("the engine's last lines:\n", tail(log.Name(), 15))
		}
	})
	url = "http://127.0.0.1:" + port
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	for {
		req, _ := http.NewRequestWithContext(ctx, "GET", url+ready, nil)
		if res, err := http.DefaultClient.Do(req); err == nil {
			res.Body.Close()
			if res.StatusCode == 200 {
				return url
			}
		}
		select {
		case err := <-exited:
			exited <- err
			t.Fatalf("the engine ended before it was ready: %v", err)
		case <-ctx.Done():
			t.Fatalf("the engine was not ready within %v", within)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func tail(name string, n int) string {
	f, err := os.Open(name)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	var lines []string
	for s := bufio.NewScanner(f); s.Scan(); {
		if lines = append(lines, s.Text()); len(lines) > n {
			lines = lines[1:]
		}
	}
	return strings.Join(lines, "\n")
}

// playAzure replays part of the real conversation trace and checks what must
// hold against any engine: every request ends well with the tokens asked for.
func playAzure(t *testing.T, args ...string) []*traceformat.Row {
	t.Helper()
	trace := filepath.Join(sharedDir(), "traces", "azure-llm-2023", "AzureLLMInferenceTrace_conv.csv")
	needs(t, trace)
	return playAll(t, append([]string{trace}, args...)...)
}

func playAll(t *testing.T, args ...string) []*traceformat.Row {
	t.Helper()
	return playInto(t, filepath.Join(t.TempDir(), "run"), args...)
}

func playInto(t *testing.T, dir string, args ...string) []*traceformat.Row {
	t.Helper()
	stdout, stderr, status := replayCommand(t, append(args, "-o", dir)...)
	t.Logf("\n%s", stdout)
	if status != 0 && status != 3 {
		t.Fatalf("exit status %d\n%s", status, stderr)
	}
	rows := readRows(t, dir)
	for _, r := range rows {
		if r.Result != traceformat.ResultOK {
			t.Errorf("request %d: %s, %s", r.ID, r.Result, r.Error)
			continue
		}
		if r.ServedPromptTokens.V != r.PromptTokens.V || r.ServedOutputTokens.V != r.OutputTokens.V {
			t.Errorf("request %d: served %d + %d tokens, want %d + %d", r.ID, r.ServedPromptTokens.V, r.ServedOutputTokens.V, r.PromptTokens.V, r.OutputTokens.V)
		}
	}
	checkTelemetry(t, dir, rows)
	return rows
}

func readRows(t *testing.T, name string) (rows []*traceformat.Row) {
	t.Helper()
	rd, err := traceformat.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	for r, err := range rd.All() {
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, r.Clone())
	}
	return rows
}

func TestEngineLlamaCpp(t *testing.T) {
	python, gguf := filepath.Join(cacheDir(t), "tools", "bin", "python"), filepath.Join(cacheDir(t), "tiny", "tiny.gguf")
	script := filepath.Join(sharedDir(), "engines", "serve-llamacpp.py")
	needs(t, python, gguf, script)
	port := freePort(t)
	url := serve(t, port, "/health", time.Minute, python, script, gguf, port)
	rows := playAzure(t, "--backend", "openai", "--url", url, "--limit", "40", "--speedup", "1", "--too-long", "skip")
	if len(rows) != 40 {
		t.Errorf("%d rows, want 40", len(rows))
	}
	playChat(t, filepath.Join(cacheDir(t), "tiny", "llama"), "--backend", "openai", "--url", url)
	t.Run("completions", func(t *testing.T) {
		playAzure(t, "--backend", "openai", "--option", "prompt=text", "--url", url, "--limit", "20", "--too-long", "skip")
	})
}

// playChat sends text to the chat endpoint: calibrated by the server's own
// tokenizer, then by the model's file. playInto checks that all lengths are exact.
func playChat(t *testing.T, model string, args ...string) {
	t.Helper()
	trace := filepath.Join(sharedDir(), "traces", "azure-llm-2023", "AzureLLMInferenceTrace_conv.csv")
	file := filepath.Join(model, "tokenizer.json")
	needs(t, trace, file)
	args = append([]string{trace, "--chat", "--limit", "20", "--speedup", "2", "--too-long", "skip"}, args...)
	for _, tt := range []struct {
		name   string
		args   []string
		source replay.WordSource
	}{
		{"chat", args, replay.WordsFromServer},
		{"chat by file", append(args[:len(args):len(args)], "--tokenizer", file), replay.WordsFromFile},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "run")
			rows := playInto(t, dir, tt.args...)
			if len(rows) != 20 {
				t.Errorf("%d rows, want 20", len(rows))
			}
			m, err := replay.ReadManifest(dir)
			if err != nil {
				t.Fatal(err)
			}
			w := m.Words
			t.Logf("%+v", w)
			if w == nil || !w.Exact || w.Source != tt.source || w.TemplateSource != "tokenize" || w.Head <= 0 || w.Template <= w.Head || w.Checked < 2*w.Count {
				t.Errorf("words %+v: want exact ones from %s, all of them checked", w, tt.source)
			}
		})
	}
}

func TestEngineVLLM(t *testing.T) {
	wanted(t, "vllm")
	venv, model := filepath.Join(cacheDir(t), "vllm"), filepath.Join(cacheDir(t), "tiny", "llama")
	script := filepath.Join(sharedDir(), "engines", "serve-vllm.sh")
	needs(t, filepath.Join(venv, "bin", "vllm"), model, script)
	port := freePort(t)
	url := serve(t, port, "/health", 5*time.Minute, "bash", script, venv, model, port,
		"--enable-per-request-metrics", "--enable-prompt-tokens-details")
	rows := playAzure(t, "--backend", "vllm", "--url", url, "--limit", "60", "--speedup", "0.2", "--too-long", "skip")
	// Our TTFT holds what the engine's own clock says, plus what lies between:
	// the network, the API server, the event loop.
	var between []float64
	for _, r := range rows {
		if s, ok := r.ServerTTFT.Get(); ok && r.TTFT.OK {
			between = append(between, (r.TTFT.V-s).Seconds()*1e3)
		}
	}
	if len(between) < len(rows) {
		t.Errorf("%d of %d requests have the engine's own TTFT", len(between), len(rows))
	}
	slices.Sort(between)
	p50, p99 := stats.Quantile(between, 0.5), stats.Quantile(between, 0.99)
	t.Logf("our TTFT minus vLLM's own: p50 %.2f ms, p99 %.2f ms", p50, p99)
	if p50 < 0 || p50 > 25 {
		t.Errorf("our TTFT is %.2f ms beyond vLLM's own at the median, want 0 to 25 ms", p50)
	}
	playChat(t, model, "--backend", "vllm", "--url", url)
	t.Run("as any server", func(t *testing.T) {
		playChat(t, model, "--backend", "openai", "--url", url)
	})
}

func TestEngineSGLang(t *testing.T) {
	wanted(t, "sglang")
	venv, model := filepath.Join(cacheDir(t), "sglang"), filepath.Join(cacheDir(t), "tiny", "llama")
	script := filepath.Join(sharedDir(), "engines", "serve-sglang.sh")
	needs(t, filepath.Join(venv, "bin", "python"), model, script)
	port := freePort(t)
	url := serve(t, port, "/model_info", 5*time.Minute, "bash", script, venv, model, port)
	playAzure(t, "--backend", "sglang", "--url", url, "--limit", "60", "--speedup", "0.2", "--too-long", "skip")
	t.Run("v1", func(t *testing.T) {
		playAzure(t, "--backend", "sglang", "--option", "api=v1", "--url", url, "--limit", "20", "--speedup", "0.2", "--too-long", "skip")
	})
	playChat(t, model, "--backend", "sglang", "--url", url)
}

// A real coding session, turn by turn: vLLM's own count of cached tokens is
// what the trace's blocks say, request by request.
func TestEngineVLLMSession(t *testing.T) {
	wanted(t, "vllm")
	venv, model := filepath.Join(cacheDir(t), "vllm"), filepath.Join(cacheDir(t), "tiny", "llama")
	script := filepath.Join(sharedDir(), "engines", "serve-vllm.sh")
	trace := filepath.Join(sharedDir(), "traces", "kv-cache-tester", "trace_0527.json")
	needs(t, filepath.Join(venv, "bin", "vllm"), model, script, trace)
	t.Setenv("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
	port := freePort(t)
	const block = 64 // as the trace's
	url := serve(t, port, "/health", 5*time.Minute, "bash", script, venv, model, port,
		"--enable-prompt-tokens-details", "--max-model-len", "32768", "--block-size", strconv.Itoa(block))
	rows := playAll(t, trace, "--backend", "vllm", "--url", url, "--sessions", "think", "--speedup", "20", "--too-long", "skip", "--limit", "14")
	if len(rows) < 3 {
		t.Fatalf("%d turns, want several", len(rows))
	}
	seen := map[uint64]bool{}
	reused := 0
	for _, r := range rows { // in the order of sending, which is that of answers: turns wait
		n := 0
		for _, id := range r.PrefixBlocks {
			if !seen[id] {
				break
			}
			n++
		}
		// vLLM computes at least the last token itself.
		want := min(n*block, (int(r.PromptTokens.V)-1)/block*block)
		if got := int(r.ServedCachedTokens.V); got != want {
			t.Errorf("turn %d: %d cached tokens, the trace implies %d", r.Turn.V, got, want)
		}
		reused += want
		for _, id := range r.PrefixBlocks {
			seen[id] = true
		}
	}
	t.Logf("%d turns, %d cached tokens, as implied", len(rows), reused)
}
