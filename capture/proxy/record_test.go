package proxy

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"reprise/capture"
	"reprise/traceformat"
)

// chat is a request that is recorded.
const chat = `{"model":"m","stream":true,"max_tokens":9,"messages":[{"role":"user","content":"hello"}]}`

// engine streams n events to each chat, and waits for hold, if there is one,
// before the last.
func engine(t testing.TB, n int, hold chan struct{}) *httptest.Server {
	return server(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range n {
			if i == n-1 && hold != nil {
				select {
				case <-hold:
				case <-r.Context().Done():
					return
				}
			}
			fmt.Fprintf(w, "data: {\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"w%d\"}}]}\n\n", i)
			w.(http.Flusher).Flush()
		}
		io.WriteString(w, "data: {\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":4}}\n\ndata: [DONE]\n\n")
	})
}

func ask(t testing.TB, c *http.Client, p *running) {
	t.Helper()
	resp, err := c.Post(p.url+"/v1/chat/completions", "application/json", strings.NewReader(chat))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 || !strings.HasSuffix(string(b), "data: [DONE]\n\n") {
		t.Fatalf("traffic suffers: %d, %v, ends in %q", resp.StatusCode, err, b[max(0, len(b)-30):])
	}
}

func TestRecordedRow(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		out := new(memory)
		p := run(t, engine(t, 4, nil).URL, func(o *Options) { o.Record = out.record(); o.Record.Recorder.Vantage = "proxy" })
		c := client(t)
		if http2 {
			c = http2Client(t)
		}
		for range 20 {
			ask(t, c, p)
		}
		if err := p.stop(); err != nil {
			t.Fatal(err)
		}
		if len(out.rows) != 20 || out.header.Rows.Recorded != 20 || out.header.Rows.Seen != 20 {
			t.Fatalf("%d rows, header %+v, want 20", len(out.rows), out.header.Rows)
		}
		for i, r := range out.rows {
			ttft, e2e := r.TTFT.Or(-1), r.E2E.Or(-1)
			if r.Endpoint != traceformat.EndpointChat || r.Model != "m" || r.Result != traceformat.ResultOK || r.Status.Or(0) != 200 ||
				r.PromptTokens.Or(0) != 7 || r.OutputTokens.Or(0) != 4 || r.MaxTokens.Or(0) != 9 || len(r.ChunkTimes) < 4 ||
				ttft <= 0 || e2e < ttft || r.Arrival < 0 || i > 0 && r.Arrival < out.rows[i-1].Arrival {
				t.Errorf("http2 %t, row %d = %+v", http2, i, r)
			}
		}
	}
}

func TestRecordedAbort(t *testing.T) {
	out := new(memory)
	p := run(t, engine(t, 3, make(chan struct{})).URL, func(o *Options) { o.Record = out.record() })
	ctx, cancel := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(ctx, "POST", p.url+"/v1/chat/completions", strings.NewReader(chat))
	resp, err := client(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	bufio.NewReader(resp.Body).ReadString('\n')
	cancel()
	eventually(t, func() bool { return p.m.streams.Load() == 0 }, "the exchange ends")
	p.stop()
	if len(out.rows) != 1 || out.rows[0].Result != traceformat.ResultClientAbort || !out.rows[0].Abort.OK {
		t.Errorf("rows = %+v, want one client abort", out.rows)
	}
}

// Whatever the output does, clients see nothing of it, recording is switched
// off, says so, and comes back.
func TestFaultsOfRecording(t *testing.T) {
	tests := []struct {
		name, reason string
		brk, mend    func(*memory, chan struct{})
	}{
		{"panic", FaultPanic,
			func(m *memory, _ chan struct{}) { m.set(nil, nil, true) },
			func(m *memory, _ chan struct{}) { m.set(nil, nil, false) }},
		{"stall", FaultStall,
			func(m *memory, hang chan struct{}) { m.set(nil, hang, false) },
			func(m *memory, hang chan struct{}) { m.set(nil, nil, false); close(hang) }},
		{"full disk", FaultDisk,
			func(m *memory, _ chan struct{}) { m.set(errFull, nil, false) },
			func(m *memory, _ chan struct{}) { m.set(nil, nil, false) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out, hang := new(memory), make(chan struct{})
			p := run(t, engine(t, 2, nil).URL, func(o *Options) { o.Record = out.record(); o.Record.Queue = 4 })
			off := func() string { _, why := p.rec.accounts(); return why }
			c, asked := client(t), int64(0)
			for range 3 {
				ask(t, c, p)
				asked++
			}
			tt.brk(out, hang)
			for end := time.Now().Add(20 * time.Second); off() != tt.reason; asked++ {
				ask(t, c, p)
				if time.Now().After(end) {
					t.Fatalf("recording is off because of %q, want %q", off(), tt.reason)
				}
			}
			w := httptest.NewRecorder()
			p.Admin().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
			if want := `capture_recording{reason="` + tt.reason + `"} 0`; !strings.Contains(w.Body.String(), want) {
				t.Errorf("the metrics lack %s", want)
			}
			for range 10 {
				ask(t, c, p)
				asked++
			}
			tt.mend(out, hang)
			eventually(t, func() bool { return off() == "" }, "recording is on again")
			before := p.rec.cur.Load().accounts.Load().Recorded
			for range 3 {
				ask(t, c, p)
				asked++
			}
			eventually(t, func() bool {
				k := p.rec.cur.Load()
				return k != nil && (k.accounts.Load().Recorded >= before+3)
			}, "new exchanges are recorded")
			p.unfinished = tt.reason == FaultDisk
			err := p.stop()
			if _, left := errors.AsType[*UnfinishedError](err); left != p.unfinished || !left && err != nil {
				t.Fatalf("%v, and a file was left: %v", err, p.unfinished)
			}
			a, _ := p.rec.accounts()
			if err := a.Check(); err != nil || a.Seen != asked || a.Open != 0 || a.Dropped() == 0 {
				t.Errorf("accounts %v of %d requests: %v", a, asked, err)
			}
		})
	}
}

// A recorder that cannot keep up costs records, each of which is counted.
func TestQueueBounds(t *testing.T) {
	for _, tt := range []struct {
		reason string
		change func(*RecordOptions)
	}{
		{capture.ReasonQueueFull, func(o *RecordOptions) { o.Queue = 2 }},
		{capture.ReasonMemory, func(o *RecordOptions) { o.QueueMemory = 3 * (smallBatch + 3*batchCost) }},
	} {
		out, hang := new(memory), make(chan struct{})
		p := run(t, engine(t, 2, nil).URL, func(o *Options) {
			o.Record = out.record()
			o.Record.Stall = time.Hour
			tt.change(o.Record)
		})
		out.set(nil, hang, false)
		c := client(t)
		for range 40 {
			ask(t, c, p)
		}
		out.set(nil, nil, false)
		close(hang)
		p.stop()
		a, _ := p.rec.accounts()
		if err := a.Check(); err != nil || a.Seen != 40 || a.Reasons[tt.reason] == 0 || a.Recorded == 0 || a.Open != 0 {
			t.Errorf("%s: accounts %v of 40 requests: %v", tt.reason, a, err)
		}
		if n := p.rec.held.Load(); n != 0 {
			t.Errorf("%s: %d bytes of batches are held after the end", tt.reason, n)
		}
	}
}

// Under any mixture of answers, aborts, rolls and faults, every exchange is
// accounted for once.
func TestAccountsOfAMess(t *testing.T) {
	out := new(memory)
	hold := make(chan struct{})
	go func() {
		for {
			select {
			case hold <- struct{}{}:
			case <-t.Context().Done():
				return
			}
		}
	}()
	p := run(t, engine(t, 5, hold).URL, func(o *Options) {
		o.Record = out.record()
		o.Record.Queue = 16
		o.Record.Retry = 10 * time.Millisecond
	})
	stop := make(chan struct{})
	var trouble, wg sync.WaitGroup
	trouble.Go(func() {
		rng := rand.New(rand.NewPCG(3, 4))
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(rng.IntN(20)) * time.Millisecond):
			}
			switch rng.IntN(6) {
			case 0:
				out.set(errFull, nil, false)
			case 1:
				out.set(nil, nil, rng.IntN(3) == 0)
			case 2:
				p.Reload()
			default:
				out.set(nil, nil, false)
			}
		}
	})
	for i := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(5, uint64(i)))
			c := client(t)
			if i%2 == 1 {
				c = http2Client(t)
			}
			for range 60 {
				ctx, cancel := context.WithCancel(context.Background())
				if rng.IntN(3) == 0 {
					time.AfterFunc(time.Duration(rng.IntN(2000))*time.Microsecond, cancel)
				}
				body := io.Reader(strings.NewReader(chat))
				if rng.IntN(2) == 0 {
					body = io.MultiReader(body)
				}
				req, _ := http.NewRequestWithContext(ctx, "POST", p.url+"/v1/chat/completions", body)
				if resp, err := c.Do(req); err == nil {
					io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				cancel()
			}
		})
	}
	wg.Wait()
	close(stop)
	trouble.Wait()
	out.set(nil, nil, false)
	p.unfinished = true
	err := p.stop()
	if _, left := errors.AsType[*UnfinishedError](err); !left && err != nil {
		t.Fatal(err)
	}
	a, _ := p.rec.accounts()
	if err := a.Check(); err != nil || a.Seen != p.m.requests.Load() || a.Open != 0 {
		t.Errorf("accounts %v of %d requests: %v", a, p.m.requests.Load(), err)
	}
	if p.rec.held.Load() != 0 || out.opened != out.closed {
		t.Errorf("%d bytes are held, %d outputs were opened and %d closed", p.rec.held.Load(), out.opened, out.closed)
	}
}

// Files that roll are whole, private, in sequence, and together hold all.
func TestFilesRoll(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "trace.parquet")
	files := &Files{Path: path, Roll: true, Log: slog.New(slog.DiscardHandler)}
	p := run(t, engine(t, 2, nil).URL, func(o *Options) { o.Record = &RecordOptions{Open: files.Open} })
	c := client(t)
	for i := range 3 {
		for range 4 {
			ask(t, c, p)
		}
		if i < 2 {
			p.Reload()
			eventually(t, func() bool { return p.rec.files.Load() == int64(i+1) }, "the file is finished")
		}
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	names, _ := filepath.Glob(filepath.Join(dir, "*"))
	for i := range names {
		names[i] = filepath.Base(names[i])
	}
	if want := []string{"trace.000001.parquet", "trace.000002.parquet", "trace.000003.parquet"}; !slices.Equal(names, want) {
		t.Fatalf("files = %v, want %v", names, want)
	}
	for _, name := range names {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v, want 0600", name, info.Mode(), err)
		}
		r, err := traceformat.Open(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, err := range r.All() {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		if h := r.Header(); n != 4 || h.Rows.Seen != 4 || h.Rows.Recorded != 4 || !h.Sorted || h.Keys == "" {
			t.Errorf("%s: %d rows, header %+v, want 4 of 4", name, n, h)
		}
		r.Close()
	}
}

// What a killed process left behind is saved, what a live one holds is not
// touched, and no name is used twice.
func TestFilesRecover(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trace.parquet")
	log := slog.New(slog.DiscardHandler)
	journal := traceformat.JournalPath(path)
	j, err := traceformat.CreateJournal(journal, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Append(new(traceformat.Row)); err != nil {
		t.Fatal(err)
	}
	j.Sync()
	f := &Files{Path: path, Log: log}
	left := f.Leftovers()
	if len(left) != 1 {
		t.Fatalf("Leftovers = %v, want one", left)
	}
	f.Recover(left) // live: locked
	if _, err := os.Stat(path); err == nil {
		t.Fatal("the journal of a live process was recovered")
	}
	b, err := os.ReadFile(journal) // as a crash leaves it
	if err != nil {
		t.Fatal(err)
	}
	j.Close()
	os.Remove(journal)
	os.WriteFile(journal, b, 0o600)

	out, err := f.Open()
	if err != nil {
		t.Fatal(err)
	}
	f.Recover(left)
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := f.Open()
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	names, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "*"))
	want := []string{"trace.000001.parquet", "trace.000002.parquet", "trace.parquet"}
	for i := range names {
		names[i] = filepath.Base(names[i])
	}
	if !slices.Equal(names, want) {
		t.Errorf("files = %v, want %v", names, want)
	}
	r, err := traceformat.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if h := r.Header(); h.Partial != traceformat.PartialRecovered || h.Rows.Recorded != 1 {
		t.Errorf("recovered header = %+v", h)
	}
}

// A first output that cannot be opened is an error at the start.
func TestNoOutputAtTheStart(t *testing.T) {
	want := errors.New("no")
	s := engine(t, 1, nil)
	p := run(t, s.URL, nil)
	o := p.o
	o.Record = &RecordOptions{Open: func() (Output, error) { return nil, want }}
	if _, err := New(o); !errors.Is(err, want) {
		t.Errorf("New = %v, want %v", err, want)
	}
}

// TestMain fails if anything of the tests is still running after them.
func TestMain(m *testing.M) {
	if os.Getenv("LISTEN_FDS") != "" && os.Getenv("PROXY_TEST_UPSTREAM") != "" {
		os.Exit(serveActivated())
	}
	code := m.Run()
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	var stacks string
	for range 400 {
		buf := make([]byte, 1<<20)
		stacks = string(buf[:runtime.Stack(buf, true)])
		if !strings.Contains(stacks, "capture/proxy.") || strings.Count(stacks, "capture/proxy.") == strings.Count(stacks, "capture/proxy.TestMain") {
			os.Exit(code)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if code == 0 {
		fmt.Fprintf(os.Stderr, "goroutines are left behind:\n%s\n", stacks)
		code = 1
	}
	os.Exit(code)
}
