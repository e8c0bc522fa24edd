package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"reprise/traceformat"
)

// Chaos in front of production: make chaos plays REPRISE_CHAOS rounds.
func TestChaosProxy(t *testing.T) {
	rounds, err := strconv.Atoi(os.Getenv("REPRISE_CHAOS"))
	if err != nil {
		t.Skip("REPRISE_CHAOS says how many rounds; make chaos does")
	}
	for round := range rounds {
		rng := rand.New(rand.NewPCG(uint64(round), 2))
		t.Run(fmt.Sprintf("kill/%d", round), func(t *testing.T) { chaosProxyKill(t, rng) })
		t.Run(fmt.Sprintf("full disk/%d", round), func(t *testing.T) { chaosProxyDisk(t, rng) })
	}
}

// asking is clients that ask for streams until told to stop.
type asking struct {
	stop  chan struct{}
	users sync.WaitGroup

	mu     sync.Mutex
	ended  []time.Time // of answers that were whole
	asked  int
	failed int
}

func ask(address string, users int) *asking {
	a := &asking{stop: make(chan struct{})}
	for user := range users {
		a.users.Go(func() {
			// A prompt of its own each time: a request that is asked again is a retry.
			for k := 0; ; k++ {
				select {
				case <-a.stop:
					return
				default:
				}
				a.mu.Lock()
				a.asked++
				a.mu.Unlock()
				body := fmt.Sprintf(`{"model":"m","stream":true,"messages":[{"role":"user","content":"%d of %d"}]}`, k, user)
				resp, err := http.Post("http://"+address+"/v1/chat/completions", "application/json", strings.NewReader(body))
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				a.mu.Lock()
				if err == nil {
					a.ended = append(a.ended, time.Now())
				} else {
					a.failed++
				}
				a.mu.Unlock()
				if err != nil {
					time.Sleep(10 * time.Millisecond)
				}
			}
		})
	}
	return a
}

func (a *asking) end() {
	close(a.stop)
	a.users.Wait()
	http.DefaultClient.CloseIdleConnections()
}

// A proxy that is killed leaves what it had recorded but for the last second.
func chaosProxyKill(t *testing.T, rng *rand.Rand) {
	up := streamingServer(t)
	file := filepath.Join(t.TempDir(), "t.parquet")
	address, b := startProxy(t, strings.TrimPrefix(up.URL, "http://"), "-o", file)
	a := ask(address, 8)
	time.Sleep(time.Duration(rng.Int64N(int64(5 * time.Second))))
	killed := time.Now()
	b.end(syscall.SIGKILL)
	a.end()
	if _, err := traceformat.Recover(traceformat.JournalPath(file), file); err != nil {
		t.Fatal(err)
	}
	_, rows := readTrace(t, file)
	ok := 0
	for _, row := range rows {
		if row.Result == traceformat.ResultOK {
			ok++
		}
	}
	must := 0
	for _, at := range a.ended {
		if killed.Sub(at) > 1500*time.Millisecond {
			must++
		}
	}
	// An answer's last bytes may have reached a client that the kill cut off.
	if ok < must || ok > len(a.ended)+8 || len(rows) > a.asked {
		t.Errorf("%d rows, %d of them whole; clients asked %d, had %d whole answers, %d of them more than 1.5 s before the kill", len(rows), ok, a.asked, len(a.ended), must)
	}
	t.Logf("%d whole answers, %d rows", len(a.ended), len(rows))
}

// Traffic goes on when the disk is full, and the recording says what it dropped.
func chaosProxyDisk(t *testing.T, rng *rand.Rand) {
	up := streamingServer(t)
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, fmt.Sprintf("size=%dk", 8+rng.IntN(40))); err != nil {
		t.Skipf("no small disk here: %v", err)
	}
	defer syscall.Unmount(disk, syscall.MNT_DETACH)
	address, b := startProxy(t, strings.TrimPrefix(up.URL, "http://"), "-o", filepath.Join(disk, "t.parquet"))
	a := ask(address, 16)
	time.Sleep(4 * time.Second)
	a.end()
	if a.failed > 0 || len(a.ended) == 0 {
		t.Errorf("%d requests failed, %d did not", a.failed, len(a.ended))
	}
	status := b.end(syscall.SIGTERM)
	full := strings.Contains(b.stderr.String(), "no space left")
	if full != (status != 0) {
		t.Errorf("exit status %d, full %v\n%s", status, full, b.stderr.String())
	}
	t.Logf("%d answers, none disturbed; full: %v", len(a.ended), full)
}
