package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"reprise/backends/sim"
	"reprise/traceformat"
)

// buildReplay makes the replay program, which no package of this one may import.
func buildReplay(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("no go command to build replay with")
	}
	program := filepath.Join(t.TempDir(), "replay")
	if out, err := exec.Command("go", "build", "-o", program, "reprise/cmd/replay").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

func runReplay(t *testing.T, program string, args ...string) {
	t.Helper()
	cmd := exec.Command(program, args...)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	// 3: it was late, which a busy machine may be, and the test says by how much.
	if err := cmd.Run(); err != nil && cmd.ProcessState.ExitCode() != 3 {
		t.Fatalf("replay %s: %v\n%s", strings.Join(args, " "), err, output.String())
	}
}

var someWords = strings.Fields("when the rain had stopped they walked along river and talked about old house that nobody wanted to buy")

// converse holds conversations with a server, as clients of a chat service do:
// turns grow, some share a system prompt, some are given up.
func converse(t *testing.T, url string, conversations, turns int) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: conversations}}
	defer client.CloseIdleConnections()
	var group sync.WaitGroup
	for c := range conversations {
		group.Go(func() {
			rng := rand.New(rand.NewPCG(7, uint64(c)))
			text := func(words int) string {
				var b strings.Builder
				for range words {
					b.WriteString(someWords[rng.IntN(len(someWords))] + " ")
				}
				return b.String()
			}
			// Blocks of bytes tell tokens by the mean of a prompt, which holds where
			// all of it is of one kind.
			system := strings.Repeat(strings.Join(someWords[c%3:], " ")+" ", 8)
			messages := fmt.Sprintf(`{"role":"system","content":%q}`, system)
			time.Sleep(time.Duration(c) * 60 * time.Millisecond)
			for turn := range turns {
				messages += fmt.Sprintf(`,{"role":"user","content":%q}`, text(20+rng.IntN(60)))
				limit := 8 + c + turn*conversations // no two are alike
				abort := c%4 == 1 && turn == turns-1
				if abort {
					limit += 400
				}
				body := fmt.Sprintf(`{"model":"llama-3-8b","stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true},"ignore_eos":true,"temperature":0,"max_tokens":%d,"messages":[%s]}`, limit, messages)
				resp, err := client.Post(url+"/v1/chat/completions", "application/json", strings.NewReader(body))
				if err != nil {
					t.Errorf("conversation %d: %v", c, err)
					return
				}
				if abort {
					io.ReadFull(resp.Body, make([]byte, 600))
					resp.Body.Close()
					return
				}
				b, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != http.StatusOK {
					t.Errorf("conversation %d: status %d, %v: %s", c, resp.StatusCode, err, b[:min(len(b), 300)])
					return
				}
				messages += fmt.Sprintf(`,{"role":"assistant","content":%q}`, text(limit))
				time.Sleep(time.Duration(30+rng.IntN(60)) * time.Millisecond)
			}
		})
	}
	group.Wait()
}

// TestCaptureReplayCapture: what was captured, replayed and captured again is
// what it was.
func TestCaptureReplayCapture(t *testing.T) {
	if testing.Short() || runtime.GOOS == "windows" {
		t.Skip("records and replays for some seconds")
	}
	program := buildReplay(t)
	engine, err := sim.Start(t.Context(), sim.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Stop()
	dir := t.TempDir()
	key := keyFile(t, dir)
	upstream := strings.TrimPrefix(engine.URL, "http://")
	file := func(name string) string { return filepath.Join(dir, name) }
	record := func(name string, traffic func(url string)) (*traceformat.Header, []traceformat.Row) {
		address, proxy := startProxy(t, upstream, "-o", file(name), "--key-file", key)
		traffic("http://" + address)
		proxy.stop(t)
		return readTrace(t, file(name))
	}
	_, first := record("first.parquet", func(url string) { converse(t, url, 12, 3) })
	if len(first) != 36 {
		t.Fatalf("%d rows of 36 requests", len(first))
	}
	play := func(trace, name string, more ...string) []traceformat.Row {
		_, rows := record(name, func(url string) {
			args := []string{file(trace), "--backend", "sim", "--url", url, "-o", file(name + "-run"), "--missing", "fail"}
			runReplay(t, program, append(args, more...)...)
		})
		return rows
	}
	// From messages to token ids, and from token ids to the same again: the first
	// replay names the sessions, and the second leaves them to be found.
	second := play("first.parquet", "second.parquet", "--session-header", "X-Session-Id")
	_, run := readTrace(t, filepath.Join(file("second.parquet-run"), "trace.parquet"))
	sameTrace(t, "first and second", first, second, run, 64, true)
	third := play("second.parquet", "third.parquet")
	_, run = readTrace(t, filepath.Join(file("third.parquet-run"), "trace.parquet"))
	sameTrace(t, "second and third", second, third, run, 0, false)
}

// sameTrace compares a trace with the capture of its replay, whose own record is
// run. The limit of tokens is what joins rows: converse gives each its own. Slack
// is how many tokens of a shared beginning blocks of different kinds may differ by;
// named says that the replay sent the sessions, so that each is there as a whole.
func sameTrace(t *testing.T, name string, want, got, run []traceformat.Row, slack int, named bool) {
	t.Helper()
	if len(got) != len(want) || len(run) != len(want) {
		t.Fatalf("%s: %d rows, %d of the replay, want %d", name, len(got), len(run), len(want))
	}
	var errs, sends []time.Duration
	turns, found := 0, 0
	byLimit := func(a, b traceformat.Row) int { return cmp.Compare(a.MaxTokens.V, b.MaxTokens.V) }
	want, got = slices.SortedFunc(slices.Values(want), byLimit), slices.SortedFunc(slices.Values(got), byLimit)
	for i := range want {
		w, g := &want[i], &got[i]
		errs = append(errs, g.Arrival-w.Arrival)
		if s, ok := run[i].Sent.Get(); ok {
			sends = append(sends, (s - run[i].Arrival).Abs())
		}
		if g.PromptTokens != w.PromptTokens || g.MaxTokens != w.MaxTokens || g.Result != w.Result || g.Client != w.Client || g.Stream != w.Stream {
			t.Errorf("%s: request %d:\n%s\n%s", name, i, g.AppendJSON(nil), w.AppendJSON(nil))
		}
		if w.Result == traceformat.ResultOK && g.OutputTokens != w.OutputTokens {
			t.Errorf("%s: request %d: %v tokens, want %v", name, i, g.OutputTokens, w.OutputTokens)
		}
		if w.Result == traceformat.ResultClientAbort && (g.Abort.V-w.Abort.V).Abs() > 400*time.Millisecond {
			t.Errorf("%s: request %d: given up after %v, want %v", name, i, g.Abort.V, w.Abort.V)
		}
		for k := range i {
			// Where no session is named, and as what of a prompt is no whole block
			// is new in each turn, not every turn is found, but none in a session
			// of others.
			if w.Session == want[k].Session {
				turns++
				if g.Session == got[k].Session {
					found++
				}
			} else if g.Session == got[k].Session {
				t.Errorf("%s: requests %d and %d are of one session", name, k, i)
			}
			a, b := shared(w, &want[k]), shared(g, &got[k])
			if max(a-b, b-a) > slack {
				t.Errorf("%s: requests %d and %d share %d tokens, want %d", name, k, i, b, a)
			}
		}
	}
	// Both begin with their first row, which may itself have been late.
	slices.Sort(errs)
	middle := errs[len(errs)/2]
	for i := range errs {
		errs[i] = (errs[i] - middle).Abs()
	}
	slices.Sort(errs)
	slices.Sort(sends)
	t.Logf("%s: %d of %d pairs of turns found", name, found, turns)
	if named && found != turns {
		t.Errorf("%s: %d of %d pairs of turns found, though sessions were named", name, found, turns)
	}
	t.Logf("%s: arrivals differ by %v (median), %v (most); sends were late by %v (median), %v (most)",
		name, errs[len(errs)/2], errs[len(errs)-1], sends[len(sends)/2], sends[len(sends)-1])
	if d := errs[len(errs)/2]; d > sends[len(sends)/2]+100*time.Millisecond {
		t.Errorf("%s: arrivals differ by %v at the median", name, d)
	}
}

// shared is how many tokens of their prompts two rows share, by their blocks.
func shared(a, b *traceformat.Row) int {
	n := 0
	for n < min(len(a.PrefixBlocks), len(b.PrefixBlocks)) && a.PrefixBlocks[n] == b.PrefixBlocks[n] {
		n++
	}
	if n == 0 {
		return 0
	}
	return n * int(a.PromptTokens.V) / len(a.PrefixBlocks)
}
