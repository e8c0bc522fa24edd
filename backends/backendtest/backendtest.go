// Package backendtest holds what the tests of all backends share: tables of
// recordings, and a client for engines that run.
package backendtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"reprise/backends"
	"reprise/internal/llmapi"
	"reprise/internal/llmapi/fixture"
)

// A Case says what the recording File must decode to.
type Case struct {
	File   string
	N      int    // choices that were asked for; 0 is 1
	Tokens string // of each event, as fmt prints them; of a body, one number
	Exact  bool   // all events
	Result string // as Summary prints it
}

// Summary prints the parts of a result that are known and no clocks:
// "prompt 4 output 16 cached 0 length", and an error with the server's words.
func Summary(r backends.Result) string {
	var parts []string
	add := func(name string, v int32, ok bool) {
		if ok {
			parts = append(parts, fmt.Sprintf("%s %d", name, v))
		}
	}
	add("prompt", r.PromptTokens.V, r.PromptTokens.OK)
	add("output", r.OutputTokens.V, r.OutputTokens.OK)
	add("cached", r.CachedTokens.V, r.CachedTokens.OK)
	add("reasoning", r.ReasoningTokens.V, r.ReasoningTokens.OK)
	if r.FinishReason != "" {
		parts = append(parts, r.FinishReason)
	}
	if r.Error != "" {
		parts = append(parts, "error "+r.Error+": "+r.Message)
	}
	return strings.Join(parts, " ")
}

// Recordings decodes the recordings of testdata and compares. Every file must
// have a case, or be among others, which are no answers to a Call.
func Recordings(t *testing.T, cases []Case, others ...string) {
	t.Helper()
	seen := append(slices.Clone(others), "README.md")
	for _, tt := range cases {
		seen = append(seen, tt.File)
		t.Run(tt.File, func(t *testing.T) {
			x := fixture.Read(t, filepath.Join("testdata", tt.File))
			d := backends.NewDecoder(&backends.Call{N: tt.N, Stream: x.Events != nil})
			var tokens []int
			exact := true
			if x.Events == nil {
				e, err := d.Body(x.Status, x.Body)
				if err != nil {
					t.Errorf("Body: %v", err)
				}
				tokens, exact = append(tokens, e.Tokens), e.Exact
			}
			for _, data := range x.Events {
				e, err := d.Event(data)
				if err != nil {
					t.Errorf("Event(%s): %v", data, err)
				}
				if e.Done != (string(data) == "[DONE]") {
					t.Errorf("Event(%s): done is %t", data, e.Done)
				}
				tokens, exact = append(tokens, e.Tokens), exact && e.Exact
			}
			if got := fmt.Sprint(tokens); got != tt.Tokens || exact != tt.Exact {
				t.Errorf("tokens %s, exact %t; want %s, %t", got, exact, tt.Tokens, tt.Exact)
			}
			if got := Summary(d.Result()); got != tt.Result {
				t.Errorf("result %q\nwant   %q", got, tt.Result)
			}
		})
	}
	files, err := filepath.Glob("testdata/*.*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !slices.Contains(seen, filepath.Base(f)) {
			t.Errorf("%s has no case", f)
		}
	}
}

// URL returns the address of a running engine from the environment, and skips
// the test where there is none.
func URL(t *testing.T, name string) string {
	t.Helper()
	u := os.Getenv(name)
	if u == "" {
		t.Skipf("%s is not set: it needs the address of a running engine", name)
	}
	return u
}

// An Answer is what Play saw.
type Answer struct {
	Status int
	Events []backends.Event
	Tokens int  // of all events
	Exact  bool // all events
	Result backends.Result
	Took   time.Duration
}

// Play sends a call, on a connection of its own, and decodes the answer. An
// error is what a caller of the backend would stumble over.
func Play(ctx context.Context, conf backends.Config, b backends.Backend, c *backends.Call) (a Answer, err error) {
	a.Exact = true
	base, err := conf.BaseURL()
	if err != nil {
		return a, err
	}
	path, body := b.Encode(nil, c)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+path, bytes.NewReader(body))
	if err != nil {
		return a, err
	}
	req.Close = true
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Request-Id", c.ID)
	start := time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	a.Status = resp.StatusCode
	d := b.NewDecoder(c)
	defer func() { a.Result, a.Took = d.Result(), time.Since(start) }()
	take := func(e backends.Event) {
		a.Events = append(a.Events, e)
		a.Tokens += e.Tokens
		a.Exact = a.Exact && e.Exact
	}
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		all, err := io.ReadAll(resp.Body)
		if err != nil {
			return a, err
		}
		e, err := d.Body(resp.StatusCode, all)
		take(e)
		return a, err
	}
	var s llmapi.SSE
	buf := make([]byte, 4096)
	for {
		n, err := resp.Body.Read(buf)
		s.Feed(buf[:n])
		for data, ok := s.Next(); ok; data, ok = s.Next() {
			e, err := d.Event(data)
			if err != nil {
				return a, err
			}
			take(e)
		}
		switch {
		case s.Err() != nil:
			return a, s.Err()
		case err == io.EOF && s.Pending():
			return a, io.ErrUnexpectedEOF
		case err == io.EOF:
			return a, nil
		case err != nil:
			return a, err
		}
	}
}

// exactly checks that an answer is a success of n tokens, counted in its events
// and in its result.
func exactly(a Answer, prompt, n int, exact bool) error {
	r := a.Result
	if a.Status != http.StatusOK || r.Error != "" || r.FinishReason != "length" {
		return fmt.Errorf("status %d, %s; want a success that ends by length", a.Status, Summary(r))
	}
	if int(r.PromptTokens.V) != prompt || int(r.OutputTokens.V) != n || a.Exact != exact || exact && a.Tokens != n {
		return fmt.Errorf("%s, events %d, exact %t; want prompt %d, output %d, exact %t", Summary(r), a.Tokens, a.Exact, prompt, n, exact)
	}
	return nil
}

// Pages are the recordings of testdata that a fake server answers with, by path.
type Pages map[string]string

// Serve starts a server that answers with recordings, and with 404 as FastAPI
// has it where there is none.
func Serve(t *testing.T, pages Pages) backends.Config {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name, ok := pages[r.URL.Path]
		if !ok {
			http.Error(w, `{"detail":"Not Found"}`, http.StatusNotFound)
			return
		}
		x := fixture.Read(t, filepath.Join("testdata", name))
		w.WriteHeader(x.Status)
		w.Write(x.Body)
	}))
	t.Cleanup(s.Close)
	return backends.Config{URL: s.URL + "/v1/"} // as users of OpenAI's clients type it
}

// A Dialect is where the engines differ.
type Dialect struct {
	Exact          bool // every event has a running count
	OverlongStatus int  // of a streamed request that does not fit
	Clocks         bool // the engine reports its own
}

// Engine plays calls against a running engine: lengths are exact, streamed and
// not, for one choice and several; a prompt that does not fit is an error that
// is recognised.
func Engine(t *testing.T, conf backends.Config, b backends.Backend, i *backends.Info, want Dialect) {
	t.Helper()
	if i.Model == "" || i.MaxLen <= 0 {
		t.Errorf("Probe = %+v: want a model and its context length", i)
	}
	call := func(id string, prompt, answer int) *backends.Call {
		c := &backends.Call{ID: id, MaxTokens: answer, Stream: true}
		if !b.TokenIDs() {
			c.Text = strings.Repeat("word ", prompt)
			return c
		}
		if i.VocabSize-i.MinID < 100 {
			t.Fatalf("ids from %d to %d: too few", i.MinID, i.VocabSize)
		}
		for k := range prompt {
			c.PromptIDs = append(c.PromptIDs, uint32(i.MinID+(k*7919+len(id))%(i.VocabSize-i.MinID)))
		}
		return c
	}
	// play also checks the engine's clocks against this side's, which tells a
	// wrong unit.
	play := func(c *backends.Call) (Answer, error) {
		a, err := Play(t.Context(), conf, b, c)
		if err != nil {
			return a, fmt.Errorf("%s: %w", c.ID, err)
		}
		r := a.Result
		if want.Clocks && r.Error == "" && !(r.E2E.OK && r.TTFT.OK && r.Queue.OK && r.Prefill.OK) ||
			r.E2E.OK && (r.E2E.V <= 0 || r.E2E.V > a.Took || r.TTFT.V > r.E2E.V || r.Prefill.V > r.TTFT.V || r.Queue.V > r.TTFT.V) {
			return a, fmt.Errorf("%s: clocks queue %v, prefill %v, ttft %v, e2e %v, where the answer took %v", c.ID, r.Queue, r.Prefill, r.TTFT, r.E2E, a.Took)
		}
		return a, nil
	}
	exact := func(c *backends.Call, prompt int) (Answer, error) {
		a, err := play(c)
		if err != nil {
			return a, err
		}
		if !b.TokenIDs() {
			prompt = int(a.Result.PromptTokens.V) // what the tokenizer and the template make of it
		}
		if err := exactly(a, prompt, c.MaxTokens, want.Exact || !c.Stream); err != nil {
			return a, fmt.Errorf("%s: %w", c.ID, err)
		}
		return a, nil
	}

	for _, n := range []struct{ prompt, answer int }{{1, 1}, {3, 2}, {200, 64}, {2000, 17}} {
		for _, stream := range []bool{true, false} {
			c := call(fmt.Sprintf("%s-%d-%d-%t-%t", i.Engine, n.prompt, n.answer, stream, b.TokenIDs()), n.prompt, n.answer)
			c.Stream = stream
			a, err := exact(c, n.prompt)
			if err != nil {
				t.Error(err)
			} else if stream && !a.Events[len(a.Events)-1].Done {
				t.Errorf("%s: the stream has no end mark", c.ID)
			}
		}
	}

	// Under load, where engines put several tokens into one event.
	var wg sync.WaitGroup
	var mu sync.Mutex
	sizes := map[int]int{}
	for k := range 48 {
		wg.Go(func() {
			a, err := exact(call(fmt.Sprintf("%s-load-%d-%t", i.Engine, k, b.TokenIDs()), 40+k, 50), 40+k)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, e := range a.Events {
				sizes[e.Tokens]++
			}
		})
	}
	wg.Wait()
	t.Logf("events by the tokens in them, 48 streams at once: %v", sizes)

	c := call(i.Engine+"-n3", 50, 20)
	c.N = 3
	if a, err := play(c); err != nil || a.Result.OutputTokens.V != 60 || want.Exact && a.Tokens != 60 || a.Result.Error != "" {
		t.Errorf("%s: %v, %s, events %d; want 60 tokens", c.ID, err, Summary(a.Result), a.Tokens)
	}
	if i.MaxLen <= 64<<10 {
		// Up to the limit that Probe found, lengths are exact: engines cut answers
		// short at the end of the context, under status 200.
		if b.TokenIDs() {
			if _, err := exact(call(i.Engine+"-full", i.MaxLen-20, 20), i.MaxLen-20); err != nil {
				t.Error(err)
			}
			longest := i.MaxLen - 1
			if i.MaxPrompt > 0 {
				longest = min(longest, i.MaxPrompt)
			}
			if _, err := exact(call(i.Engine+"-longest", longest, 1), longest); err != nil {
				t.Error(err)
			}
		}
		c = call(i.Engine+"-overlong", i.MaxLen+1000, 4)
		if a, err := play(c); err != nil || a.Status != want.OverlongStatus || !strings.HasSuffix(a.Result.Error, "/context_overflow") || a.Tokens != 0 {
			t.Errorf("%s: %v, status %d, %s; want %d and a context overflow", c.ID, err, a.Status, Summary(a.Result), want.OverlongStatus)
		}
	}
	if _, err := exact(call(i.Engine+"-after", 5, 5), 5); err != nil {
		t.Error(err)
	}
}
