package main

import (
	"bufio"
	"fmt"
	"io"
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

	"reprise/traceformat"
)

// Tests against real engines, where REPRISE_ENGINES names them (make
// test-engines): what a capture says of lengths and cached tokens is what the
// engine itself counts at /metrics.

// startEngine runs an engine of the shared folder in a process group of its own,
// if it is wanted and installed, and returns host:port of it.
func startEngine(t *testing.T, name, ready string, args ...string) string {
	t.Helper()
	if !slices.Contains(strings.Split(os.Getenv("REPRISE_ENGINES"), ","), name) {
		t.Skipf("REPRISE_ENGINES does not name %s; make test-engines does", name)
	}
	cache := os.Getenv("REPRISE_CACHE")
	if cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			t.Skip("no cache folder: ", err)
		}
		cache = filepath.Join(dir, "reprise")
	}
	shared := os.Getenv("REPRISE_SHARED")
	if shared == "" {
		shared = filepath.Join("..", "..", "..", "shared")
	}
	script, venv, model := filepath.Join(shared, "engines", "serve-"+name+".sh"), filepath.Join(cache, name), filepath.Join(cache, "tiny", "llama")
	for _, f := range []string{script, venv, model} {
		if _, err := os.Stat(f); err != nil {
			t.Skipf("%v: see the shared folder's engines/README.md", err)
		}
	}
	port := freePort(t)
	cmd := exec.Command("bash", append([]string{script, venv, model, strconv.Itoa(port)}, args...)...)
	log, err := os.Create(filepath.Join(t.TempDir(), "engine.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { cmd.Wait(); close(exited) }()
	t.Cleanup(func() {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		select {
		case <-exited:
		case <-time.After(20 * time.Second):
		}
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	})
	address := fmt.Sprintf("127.0.0.1:%d", port)
	for end := time.Now().Add(8 * time.Minute); ; time.Sleep(300 * time.Millisecond) {
		resp, err := http.Get("http://" + address + ready)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return address
			}
		}
		select {
		case <-exited:
			b, _ := os.ReadFile(log.Name())
			t.Fatalf("%s ended before it was ready\n%s", name, b[max(0, len(b)-3000):])
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("%s is not ready", name)
		}
	}
}

// counter is the sum of a metric over its labels.
func counter(t *testing.T, address, name string) (sum float64) {
	t.Helper()
	resp, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	found := false
	for s := bufio.NewScanner(resp.Body); s.Scan(); {
		rest, ok := strings.CutPrefix(s.Text(), name)
		if !ok || !strings.HasPrefix(rest, "{") && !strings.HasPrefix(rest, " ") {
			continue
		}
		v, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		if err != nil {
			t.Fatal(err)
		}
		sum, found = sum+v, true
	}
	if !found {
		t.Logf("no metric %s", name)
	}
	return sum
}

// checkEngine sends conversations and completions through a recording proxy, and
// compares the sums of the trace with what the engine's counters have grown by.
func checkEngine(t *testing.T, address string, prompt, output, cached string) {
	dir := t.TempDir()
	proxyAddress, proxy := startProxy(t, address, "-o", filepath.Join(dir, "proxy.parquet"), "--key-file", keyFile(t, dir))
	pcap := filepath.Join(dir, "lo.pcap")
	stopPcap := startPcap(t, pcap, proxyAddress[strings.LastIndex(proxyAddress, ":")+1:])
	names := []string{prompt, output, cached}
	var before, after [3]float64
	for i, name := range names {
		before[i] = counter(t, address, name)
	}
	model := modelOf(t, address)
	const n = 12
	for i := range n {
		text := strings.Repeat("the quick brown fox jumps over the lazy dog. ", 8+i)
		path, body := "/v1/completions", fmt.Sprintf(`"prompt":%q`, text)
		if i%2 == 1 {
			path, body = "/v1/chat/completions", fmt.Sprintf(`"messages":[{"role":"user","content":%q}]`, text)
		}
		stream := ""
		if i%3 != 0 {
			stream = `"stream":true,"stream_options":{"include_usage":true},`
		}
		req := fmt.Sprintf(`{"model":%q,%s"temperature":0,"ignore_eos":true,"max_tokens":%d,%s}`, model, stream, 5+i, body)
		resp, err := http.Post("http://"+proxyAddress+path, "application/json", strings.NewReader(req))
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Fatalf("status %d: %s", resp.StatusCode, b)
		}
	}
	time.Sleep(2 * time.Second) // counters come from another process
	for i, name := range names {
		after[i] = counter(t, address, name)
	}
	if stopPcap != nil {
		stopPcap()
	}
	proxy.stop(t)
	check := func(source string, rows []traceformat.Row) {
		var sums [3]float64
		for i, row := range rows {
			sums[0] += float64(row.PromptTokens.V)
			sums[1] += float64(row.OutputTokens.V)
			sums[2] += float64(row.CachedTokens.V)
			if row.OutputTokens.V != int32(5+i) || row.PromptTokensSource != traceformat.SourceUsage || row.OutputTokensSource != traceformat.SourceUsage || row.Result != traceformat.ResultOK {
				t.Errorf("%s: request %d: %s", source, i, row.AppendJSON(nil))
			}
			if row.Stream.V && (!row.TTFT.OK || row.TTFTSource != traceformat.TTFTContentEvent) {
				t.Errorf("%s: request %d has no TTFT", source, i)
			}
		}
		if len(rows) != n {
			t.Errorf("%s: %d rows of %d requests", source, len(rows), n)
		}
		for i, name := range names {
			t.Logf("%s: %s: %.0f, the engine %.0f", source, name, sums[i], after[i]-before[i])
			if sums[i] != after[i]-before[i] {
				t.Errorf("%s: %.0f tokens, %s has grown by %.0f", source, sums[i], name, after[i]-before[i])
			}
		}
		if sums[2] == 0 {
			t.Errorf("%s: no cached tokens, though prompts share their beginning", source)
		}
	}
	_, rows := readTrace(t, filepath.Join(dir, "proxy.parquet"))
	check("proxy", rows)
	if stopPcap != nil {
		out := filepath.Join(dir, "packets.parquet")
		if status, _, stderr := runCapture("packets", pcap, "-o", out); status != 0 {
			t.Fatalf("packets: exit status %d\n%s", status, stderr)
		}
		_, rows = readTrace(t, out)
		check("packets", rows)
	}
}

// modelOf is the name under which an engine serves its model.
func modelOf(t *testing.T, address string) string {
	t.Helper()
	resp, err := http.Get("http://" + address + "/v1/models")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	_, rest, ok := strings.Cut(string(b), `"id":"`)
	name, _, end := strings.Cut(rest, `"`)
	if !ok || !end {
		t.Fatalf("no model in %s", b)
	}
	return name
}

func TestEngineVLLM(t *testing.T) {
	address := startEngine(t, "vllm", "/health", "--enable-prompt-tokens-details")
	checkEngine(t, address, "vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:prefix_cache_hits_total")
}

func TestEngineSGLang(t *testing.T) {
	address := startEngine(t, "sglang", "/model_info", "--enable-cache-report")
	checkEngine(t, address, "sglang:prompt_tokens_total", "sglang:generation_tokens_total", "sglang:cached_tokens_total")
}
