package replay

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"reprise/backends"
	"reprise/backends/sim"
	"reprise/internal/wire"
	"reprise/traceformat"
)

func TestMain(m *testing.M) {
	sim.MaybeServe()
	os.Exit(m.Run())
}

// startSim starts a simulated engine and says how it is reached.
func startSim(t *testing.T, options map[string]string) (backends.Backend, *backends.Info, string) {
	t.Helper()
	o, err := sim.ParseOptions(options)
	if err != nil {
		t.Fatal(err)
	}
	p, err := sim.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop() })
	b, err := backends.Open("sim", backends.Config{URL: p.URL, Options: options})
	if err != nil {
		t.Fatal(err)
	}
	info, err := b.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return b, info, p.URL
}

// oneByOne plays a trace against a server, a request at a time, so that each
// finds all of those before it in the cache.
func oneByOne(t *testing.T, trace *rowsOf, cache string, b backends.Backend, info *backends.Info, url string) (*CacheRecord, *Plan) {
	t.Helper()
	o := Defaults()
	o.Concurrency = 1
	var err error
	if o.Cache, o.CacheSalt, err = ParseCache(cache); err != nil {
		t.Fatal(err)
	}
	p, err := NewPlan(trace.source(), o, Target{MaxLen: info.MaxLen, MaxPrompt: info.MaxPrompt, VocabSize: info.VocabSize, MinID: info.MinID})
	if err != nil {
		t.Fatal(err)
	}
	r, err := p.PrepareCache(t.Context(), b, info, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	client, err := wire.New(url, wire.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	stats, err := p.Run(t.Context(), Config{Backend: b, Client: client, Record: func(row *traceformat.Row) error {
		if row.Result != traceformat.ResultOK {
			t.Errorf("request %d: %s %s", row.ID, row.Result, row.Error)
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	r.Finish(t.Context(), stats)
	if r.Implied == nil || r.Reported == nil || r.Counters == nil {
		t.Fatalf("implied %v, reported %v, counters %v; want all three", r.Implied, r.Reported, r.Counters)
	}
	return r, p
}

// request adds a row of named blocks and a prompt of so many tokens.
func (t *rowsOf) request(prompt, output int, blocks ...uint64) {
	var r traceformat.Row
	r.ID, r.Arrival = int64(len(t.rows)), time.Duration(len(t.rows))*time.Millisecond
	r.PromptTokens, r.OutputTokens = traceformat.Some(int32(prompt)), traceformat.Some(int32(output))
	r.PrefixBlocks = blocks
	t.rows = append(t.rows, r)
}

func blocksOf(size int32) *rowsOf {
	return &rowsOf{header: traceformat.Header{Blocks: traceformat.Blocks{Size: size}}}
}

// What a run finds in the cache of a simulated engine is what its mode says,
// block for block.
func TestCacheModes(t *testing.T) {
	trace := blocksOf(16)
	trace.request(40, 2, 1, 2)     // 40 tokens: nothing is there
	trace.request(40, 2, 1, 2)     // both blocks
	trace.request(32, 2, 1, 2)     // the last token is computed again, and so its block: 16
	trace.request(70, 2, 1, 2, 3)  // 32
	trace.request(70, 2, 1, 2, 3)  // 48
	trace.request(33, 2, 9, 8)     // 0
	trace.request(16, 2, 9)        // one block, and its last token
	trace.request(100, 2, 9, 8, 7) // 32
	const prompt, unlimited, reusable = 401, 32 + 32 + 32 + 48 + 16 + 32, 32 + 16 + 32 + 48 + 0 + 32
	// On a cache that has it all: whole blocks of what the trace names, and the
	// blocks of each prompt's own end, but never its last token.
	const again = 32 + 32 + 16 + 64 + 64 + 32 + 0 + 96
	b, info, url := startSim(t, map[string]string{"preset": "llama-3-8b@h100", "num-gpu-blocks": "1000"})
	if want := (backends.CacheInfo{Block: 16, Tokens: 999 * 16, Salt: true}); info.Cache != want {
		t.Fatalf("the engine's cache is %+v, want %+v", info.Cache, want)
	}
	for i, tt := range []struct {
		cache  string
		cached int64
	}{
		{"warm", reusable}, // the engine has just started
		{"warm", again},
		{"cold", reusable},
		{"salt=a", reusable},
		{"salt=a", again},
		{"salt=b", reusable},
		{"salt", reusable},
		{"salt", reusable}, // a salt of its own each time
		{"warm", again},    // the salted runs took nothing away
	} {
		r, p := oneByOne(t, trace, tt.cache, b, info, url)
		m := r.Implied
		if m.Requests != 8 || m.PromptTokens != prompt || m.Unlimited != unlimited || m.UnlimitedReusable != reusable || m.AtCapacity != traceformat.Some[int64](reusable) {
			t.Errorf("%d (%s): implied %+v, want %d of %d tokens, %d reusable", i, tt.cache, m, unlimited, prompt, reusable)
		}
		if r.Reported.Cached != tt.cached || r.Reported.PromptTokens != prompt || r.Reported.Implied != reusable {
			t.Errorf("%d (%s): reported %+v, want %d of %d tokens cached", i, tt.cache, r.Reported, tt.cached, prompt)
		}
		if r.Counters.Hits != tt.cached || r.Counters.Queries != prompt {
			t.Errorf("%d (%s): counters %+v, want %d of %d", i, tt.cache, r.Counters, tt.cached, prompt)
		}
		if want := float64(tt.cached)/prompt - float64(reusable)/prompt; r.Difference != traceformat.Some(want) {
			t.Errorf("%d (%s): difference %v, want %v", i, tt.cache, r.Difference, want)
		}
		if exact := r.Reported.Exact == 8; exact != (tt.cached == reusable) {
			t.Errorf("%d (%s): %d of 8 exactly as implied", i, tt.cache, r.Reported.Exact)
		}
		if p.Options.CacheSalt != r.Salt || (r.Salt != "") != strings.HasPrefix(tt.cache, "salt") || (r.Flush != nil) != (tt.cache == "cold") {
			t.Errorf("%d (%s): options %q, salt %q, flush %v", i, tt.cache, p.Options.CacheSalt, r.Salt, r.Flush)
		}
		if noted := slices.ContainsFunc(r.Notes, func(n string) bool { return strings.Contains(n, "found more") }); noted != (tt.cached == again) {
			t.Errorf("%d (%s): notes %q", i, tt.cache, r.Notes)
		}
	}
}

// Random conversations on a cache too small for them: every request finds what
// the model says, to the block. Lengths are such that no block stays unfinished
// (those are given away first, which the model leaves out). Sessions are played
// one after the other, in another order than the trace's.
func TestCacheAtCapacity(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	trace := blocksOf(32)
	next := uint64(1)
	var talks [][]uint64
	const rows = 80
	for range rows {
		var path []uint64
		if len(talks) > 0 && rng.IntN(3) > 0 {
			path = slices.Clone(talks[rng.IntN(len(talks))])
			path = path[:1+rng.IntN(len(path))]
		}
		for range 1 + rng.IntN(3) {
			path = append(path, next)
			next++
		}
		path = path[:min(len(path), 12)]
		talks = append(talks, path)
		trace.request(32*len(path)+11, 6, path...) // 16 more tokens, one of them not computed
	}
	for i := range trace.rows {
		trace.rows[i].Session = traceformat.Some(int64(i % 5))
	}
	b, info, url := startSim(t, map[string]string{"preset": "llama-3-8b@h100", "num-gpu-blocks": "49"})
	r, _ := oneByOne(t, trace, "cold", b, info, url)
	i := r.Implied
	t.Logf("implied %+v, reported %+v", i, r.Reported)
	if r.Reported.Exact != rows || r.Reported.Cached != i.AtCapacity.V || r.Counters.Hits != i.AtCapacity.V || r.Difference != traceformat.Some(0.0) {
		t.Errorf("%d of %d as implied, %d tokens cached, counters %+v, difference %v; want all %d", r.Reported.Exact, rows, r.Reported.Cached, r.Counters, r.Difference, i.AtCapacity.V)
	}
	if i.AtCapacity.V == 0 || i.AtCapacity.V > i.UnlimitedReusable*9/10 || i.UnlimitedReusable != i.Unlimited {
		t.Errorf("implied %+v: want a cache that is too small, and not useless", i)
	}
}

// The model's blocks against the tokens themselves: what an unlimited cache
// holds of a prompt is its longest prefix in common with one before it.
func TestCacheModelAgainstTokens(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 7))
		size, block := 1+rng.IntN(40), smallBlock+rng.IntN(40)
		info := backends.CacheInfo{Block: block}
		if rng.IntN(3) == 0 {
			info.Block = 1
		}
		tally := newCacheTally(size, info)
		if info.Tokens = 1 << 30; rng.IntN(2) == 0 {
			tally = newCacheTally(size, info)
		}
		ps := newPrompts(seed, Vocabulary{Low: 10, Size: 30000}, size, 0)
		var rows []traceformat.Row
		for id := range 60 {
			var r traceformat.Row
			r.ID = int64(id)
			for range rng.IntN(6) {
				r.PrefixBlocks = append(r.PrefixBlocks, uint64(rng.IntN(3)))
			}
			// Ids stand for prefixes: they are made different by what is before.
			for k := range r.PrefixBlocks {
				if k > 0 {
					r.PrefixBlocks[k] += 3*r.PrefixBlocks[k-1] + 10
				}
			}
			n := size*len(r.PrefixBlocks) + rng.IntN(size+1)
			if info.Block > 1 && rng.IntN(3) == 0 {
				n = rng.IntN(n + 1) // cut anywhere, as --too-long clip does
			}
			r.PromptTokens = traceformat.Some(int32(max(1, n)))
			rows = append(rows, r)
			ps.learn(&r.Request, int(r.PromptTokens.V))
		}
		ps.learned()
		var sent [][]uint32
		for id := range rows {
			r := &rows[id]
			lap := int32(rng.IntN(2))
			n := int(r.PromptTokens.V)
			tokens := ps.append(nil, &r.Request, n, lap)
			common := 0
			for _, old := range sent {
				k := 0
				for k < min(len(old), n) && old[k] == tokens[k] {
					k++
				}
				common = max(common, k)
			}
			sent = append(sent, tokens)
			want := min(common, n-1) / info.Block * info.Block
			if got := tally.plan(&r.Request, lap, n, 3, true).unlimited; got != want {
				t.Fatalf("seed %d, blocks of %d and %d, request %d of %d tokens, blocks %v: implied %d, the tokens say %d", seed, size, info.Block, id, n, r.PrefixBlocks, got, want)
			}
		}
	}
}

func TestCacheModel(t *testing.T) {
	type ask struct {
		lap            int32
		prompt, output int
		blocks         []uint64
		other          bool // another shard's
		want           int
	}
	long := []uint64{1, 2, 3, 4}
	for _, tt := range []struct {
		name      string
		size      int
		info      backends.CacheInfo
		asks      []ask
		unlimited int64
		capacity  traceformat.Opt[int64]
	}{
		{name: "token by token, never the last", size: 64, info: backends.CacheInfo{Block: 1},
			asks: []ask{{prompt: 256, blocks: long}, {prompt: 256, blocks: long, want: 255}, {prompt: 300, blocks: long, want: 256}}, unlimited: 512},
		{name: "the engine's blocks are larger than the trace's", size: 64, info: backends.CacheInfo{Block: 128},
			asks: []ask{{prompt: 256, blocks: long}, {prompt: 256, blocks: long, want: 128}, {prompt: 200, blocks: long[:3], want: 128}}, unlimited: 256 + 192},
		{name: "an engine that says nothing", size: 64,
			asks: []ask{{prompt: 256, blocks: long}, {prompt: 256, blocks: long, want: 255}}, unlimited: 256},
		{name: "switched off", size: 64, info: backends.CacheInfo{Block: 16, Tokens: 1 << 20, Off: true},
			asks: []ask{{prompt: 256, blocks: long}, {prompt: 256, blocks: long, want: 0}}, unlimited: 256},
		{name: "laps share nothing", size: 64, info: backends.CacheInfo{Block: 16},
			asks: []ask{{prompt: 256, blocks: long}, {lap: 1, prompt: 256, blocks: long}, {lap: 1, prompt: 256, blocks: long, want: 240}}, unlimited: 256},
		{name: "an id under another parent is another block", size: 64, info: backends.CacheInfo{Block: 16},
			asks: []ask{{prompt: 128, blocks: []uint64{1, 3}}, {prompt: 128, blocks: []uint64{2, 4}}, {prompt: 128, blocks: []uint64{2, 3}, want: 64}}, unlimited: 64},
		{name: "other shards warm the cache and are not counted", size: 64, info: backends.CacheInfo{Block: 16},
			asks: []ask{{prompt: 256, blocks: long, other: true}, {prompt: 257, blocks: long, want: 256}}, unlimited: 256},
		{name: "answers take up room", size: 64, info: backends.CacheInfo{Block: 64, Tokens: 6 * 64},
			asks: []ask{{prompt: 257, output: 64, blocks: long}, {prompt: 1, output: 65}, {prompt: 257, blocks: long, want: 256},
				{prompt: 10, output: 300}, {prompt: 257, blocks: long, want: 128}}, unlimited: 512, capacity: traceformat.Some[int64](384)},
		{name: "answers take up room, token by token", size: 64, info: backends.CacheInfo{Block: 1, Tokens: 6*64 + 63},
			asks: []ask{{prompt: 256, output: 64, blocks: long}, {prompt: 64, output: 64}, {prompt: 257, blocks: long, want: 256},
				{prompt: 10, output: 300}, {prompt: 257, blocks: long, want: 64}}, unlimited: 512, capacity: traceformat.Some[int64](320)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tally := newCacheTally(tt.size, tt.info)
			var prompts, mine int64
			for i, a := range tt.asks {
				r := &traceformat.Request{ID: int64(i), PrefixBlocks: a.blocks}
				if got := tally.plan(r, a.lap, a.prompt, a.output, !a.other).cached; got != a.want {
					t.Errorf("request %d: %d tokens implied, want %d", i, got, a.want)
				}
				if !a.other {
					prompts += int64(a.prompt)
					mine++
				}
			}
			p := tally.planned
			if p.Requests != mine || p.PromptTokens != prompts || p.Unlimited != tt.unlimited || p.AtCapacity != tt.capacity {
				t.Errorf("planned %+v, want %d requests of %d tokens, %d unlimited, %v at capacity", p, mine, prompts, tt.unlimited, tt.capacity)
			}
		})
	}
}

func TestParseCache(t *testing.T) {
	for in, want := range map[string]string{
		"warm": "warm ", "cold": "cold ", "salt": "salt ", "salt=a=b": "salt a=b",
		"": "error", "hot": "error", "cold=x": "error", "salt=": "error", "salt=a b": "error", "salt=é": "error", "salt=" + strings.Repeat("x", 129): "error",
	} {
		mode, salt, err := ParseCache(in)
		got := string(mode) + " " + salt
		if err != nil {
			got = "error"
		}
		if got != want {
			t.Errorf("ParseCache(%q) = %s, want %s", in, got, want)
		}
	}
	if a, b := drawSalt(1), drawSalt(1); a == b || len(a) != len("reprise-0123456789abcdef") {
		t.Errorf("two runs drew the salts %s and %s", a, b)
	}
}

func TestCacheOptions(t *testing.T) {
	o := Defaults()
	o.Cache, o.Shard = CacheSalted, Shard{0, 2}
	if err := o.Validate(); err == nil || !strings.Contains(err.Error(), "--cache salt=NAME") {
		t.Errorf("shards that draw their salts: %v", err)
	}
	if o.CacheSalt = "x"; o.Validate() != nil {
		t.Errorf("shards with one salt: %v", o.Validate())
	}
	if o.Cache = CacheCold; o.Validate() == nil {
		t.Error("a cold cache and a salt: no error")
	}
	if o.Cache, o.CacheSalt = "hot", ""; o.Validate() == nil {
		t.Error("a cache that is hot: no error")
	}
}

// A fakeCache is a server whose load is a function of time.
type fakeCache struct {
	lineBackend
	busy    func(at time.Duration) int64
	flush   func(n int) error
	start   time.Time
	flushes int
}

func (f *fakeCache) CacheStatus(context.Context) (backends.CacheStatus, error) {
	return backends.CacheStatus{Known: true, Running: f.busy(time.Since(f.start))}, nil
}

func (f *fakeCache) FlushCache(context.Context) (string, error) {
	f.flushes++
	if f.flush == nil {
		return "", nil
	}
	return "", f.flush(f.flushes)
}

func TestColdWaitsUntilIdle(t *testing.T) {
	unsupported := &backends.CacheError{Reason: "no way", Next: "restart it"}
	gone := errors.New("connection refused")
	for _, tt := range []struct {
		name    string
		busy    func(time.Duration) int64
		flush   func(n int) error
		want    error // or
		reason  string
		within  time.Duration
		flushes int
		said    int
	}{
		{name: "idle", busy: func(time.Duration) int64 { return 0 }, flushes: 1},
		{name: "busy for 7 s", busy: func(at time.Duration) int64 { return max(0, int64(7*time.Second-at)) }, within: 7 * time.Second, flushes: 1, said: 2},
		{name: "refused twice", busy: func(time.Duration) int64 { return 0 }, flush: func(n int) error {
			if n < 3 {
				return backends.ErrCacheBusy
			}
			return nil
		}, within: 500 * time.Millisecond, flushes: 3, said: 1},
		{name: "never idle", busy: func(time.Duration) int64 { return 3 }, within: time.Minute, reason: "3 requests running", said: 12},
		{name: "never flushed", busy: func(time.Duration) int64 { return 0 }, flush: func(int) error { return backends.ErrCacheBusy }, within: time.Minute, reason: "not idle for 1m0s", flushes: 241, said: 12},
		{name: "unsupported", busy: func(time.Duration) int64 { return 0 }, flush: func(int) error { return unsupported }, want: unsupported, flushes: 1},
		{name: "gone", busy: func(time.Duration) int64 { return 0 }, flush: func(int) error { return gone }, want: gone, flushes: 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fakeCache{busy: tt.busy, flush: tt.flush, start: time.Now()}
				p := &Plan{Options: Defaults()}
				p.Options.Cache = CacheCold
				said := 0
				r, err := p.PrepareCache(t.Context(), f, &backends.Info{}, func(string) { said++ })
				switch {
				case tt.reason != "":
					e, ok := errors.AsType[*backends.CacheError](err)
					if !ok || !strings.Contains(e.Reason, tt.reason) || !strings.Contains(e.Hint(), "--cache salt") {
						t.Errorf("error %v, want %q and a next step", err, tt.reason)
					}
				case !errors.Is(err, tt.want):
					t.Errorf("error %v, want %v", err, tt.want)
				case err == nil && (r.Flush == nil || r.Flush.Waited != tt.within || r.Flush.Attempts != tt.flushes):
					t.Errorf("flush %+v, want one after %v", r.Flush, tt.within)
				}
				if took := time.Since(f.start); took != tt.within || f.flushes != tt.flushes || said != tt.said {
					t.Errorf("took %v, %d flushes, said %d lines; want %v, %d, %d", took, f.flushes, said, tt.within, tt.flushes, tt.said)
				}
			})
		})
	}
}

// A flush during which another client came in does not count.
func TestColdIsVerified(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeCache{start: time.Now()}
		looks := 0
		f.busy = func(time.Duration) int64 {
			if looks++; looks == 2 { // after the first flush
				return 1
			}
			return 0
		}
		p := &Plan{Options: Defaults()}
		p.Options.Cache = CacheCold
		r, err := p.PrepareCache(t.Context(), f, &backends.Info{}, func(string) {})
		if err != nil || f.flushes != 2 || r.Flush.Attempts != 2 {
			t.Errorf("%d flushes, %v; want the second to count", f.flushes, err)
		}
	})
}

func TestColdIsInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeCache{start: time.Now(), busy: func(time.Duration) int64 { return 1 }}
		p := &Plan{Options: Defaults()}
		p.Options.Cache = CacheCold
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(10*time.Second, cancel)
		if _, err := p.PrepareCache(ctx, f, &backends.Info{}, func(string) {}); !errors.Is(err, context.Canceled) || time.Since(f.start) != 10*time.Second {
			t.Errorf("error %v after %v", err, time.Since(f.start))
		}
	})
}

func TestCacheModesThatAreNotThere(t *testing.T) {
	for _, tt := range []struct {
		mode CacheMode
		want string
	}{{CacheSalted, "has no salt"}, {CacheCold, "no interface to flush"}} {
		p := &Plan{Options: Defaults()}
		p.Options.Cache = tt.mode
		_, err := p.PrepareCache(t.Context(), lineBackend{}, &backends.Info{Engine: "x"}, nil)
		e, ok := errors.AsType[*backends.CacheError](err)
		if !ok || !strings.Contains(e.Reason, tt.want) || e.Next == "" || p.Options.CacheSalt != "" {
			t.Errorf("%s: %v, want %q", tt.mode, err, tt.want)
		}
	}
}

// A real engine that is at work refuses, and is flushed once it is done.
func TestColdAgainstABusyEngine(t *testing.T) {
	b, info, url := startSim(t, map[string]string{"num-gpu-blocks": "1000"})
	c := b.(Cache)
	call := &backends.Call{PromptIDs: []uint32{1000, 1001}, MaxTokens: 60, Stream: true}
	path, body := b.Encode(nil, call)
	res, err := http.Post(url+path, "application/json", strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := res.Body.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if s, err := c.CacheStatus(t.Context()); err != nil || !s.Known || s.Running != 1 || s.Waiting != 0 {
		t.Fatalf("status %+v, %v; want 1 running (was the answer over too soon?)", s, err)
	}
	if _, err := c.FlushCache(t.Context()); !errors.Is(err, backends.ErrCacheBusy) {
		t.Errorf("flush of a busy engine: %v, want %v", err, backends.ErrCacheBusy)
	}
	p := &Plan{Options: Defaults()}
	p.Options.Cache = CacheCold
	var said []string
	r, err := p.PrepareCache(t.Context(), b, info, func(s string) { said = append(said, s) })
	if err != nil || len(said) != 1 || !strings.Contains(said[0], "1 requests running") || r.Flush.Waited == 0 {
		t.Errorf("%v, said %q, flush %+v", err, said, r.Flush)
	}
	if n, err := io.Copy(io.Discard, res.Body); err != nil || n == 0 {
		t.Errorf("the answer that was waited for: %d bytes, %v", n, err)
	}
}

func TestCacheRender(t *testing.T) {
	r := &CacheRecord{
		Mode: CacheCold, Flush: &CacheFlush{Waited: 3 * time.Second, Attempts: 1},
		info:       backends.CacheInfo{Block: 16, Tokens: 1600},
		Implied:    &CacheImplied{HitUnlimited: 0.5, HitUnlimitedReusable: 0.48, HitAtCapacity: traceformat.Some(0.25)},
		Reported:   &CacheReported{Requests: 4, Exact: 3, Hit: 0.24},
		Counters:   &CacheCounters{Hit: 0.24},
		Difference: traceformat.Some(-0.01),
		Notes:      []string{"something"},
	}
	want := `
cache       cold, flushed after a wait of 3.00 s
  implied   50 % unlimited   48 % in whole blocks of 16   25 % in 1,600 tokens
  reported  24 % by its answers   -1 points   3 of 4 requests as implied
  reported  24 % by its counters
  note      something
`
	var b strings.Builder
	if err := r.Render(&b, 88); err != nil || b.String() != want {
		t.Errorf("Render = %s, %v\nwant %s", b.String(), err, want)
	}
	b.Reset()
	if err := r.Render(&b, 60); err != nil || !strings.Contains(b.String(), "50 % unlimited\n            48 % in whole blocks of 16\n") {
		t.Errorf("narrow: %s, %v", b.String(), err)
	}
	b.Reset()
	if err := (&CacheRecord{Mode: CacheWarm, Reported: r.Reported}).Render(&b, 88); err != nil || b.Len() > 0 {
		t.Errorf("a trace without prefixes on a warm cache: %q, %v", b.String(), err)
	}
	for line := range strings.SplitSeq(want, "\n") {
		if len(line) > 88 {
			t.Errorf("line of %d: %s", len(line), line)
		}
	}
}

// Playing a prompt against the models is part of making it ready.
func BenchmarkCachePlan(b *testing.B) {
	for _, block := range []int{1, 16} {
		b.Run("block="+strconv.Itoa(block), func(b *testing.B) {
			t := newCacheTally(64, backends.CacheInfo{Block: block, Tokens: 400_000})
			r := &traceformat.Request{PrefixBlocks: make([]uint64, 32)}
			for i := range 32 {
				r.PrefixBlocks[i] = uint64(i)
			}
			b.ReportAllocs()
			for b.Loop() {
				r.ID++
				r.PrefixBlocks[31] = uint64(r.ID + 100)
				t.plan(r, 0, 32*64, 100, true)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/32, "ns/trace-block")
		})
	}
}

// countingCache is a server whose counters are what each look finds.
type countingCache struct {
	fakeCache
	looks []backends.CacheStatus
}

func (f *countingCache) CacheStatus(context.Context) (backends.CacheStatus, error) {
	if len(f.looks) == 0 {
		return backends.CacheStatus{}, errors.New("connection refused")
	}
	s := f.looks[0]
	if len(f.looks) > 1 {
		f.looks = f.looks[1:]
	}
	return s, nil
}

// What the counters say where answers do not, and when they are not believed.
func TestCacheFinish(t *testing.T) {
	look := func(running, queries, hits int64) backends.CacheStatus {
		return backends.CacheStatus{Known: true, Running: running, Queries: traceformat.Some(queries), Hits: traceformat.Some(hits)}
	}
	none := traceformat.Opt[float64]{}
	for _, tt := range []struct {
		name       string
		looks      []backends.CacheStatus
		answers    bool // say how many tokens were cached
		counters   *CacheCounters
		difference traceformat.Opt[float64]
		note       string
		within     time.Duration
	}{
		{name: "answers say nothing", looks: []backends.CacheStatus{look(0, 1000, 500), look(0, 1256, 596)},
			counters: &CacheCounters{Queries: 256, Hits: 96, Hit: 0.375}, difference: traceformat.Some(-0.0625)},
		{name: "counters that trail behind", looks: []backends.CacheStatus{look(0, 1000, 500), look(1, 1128, 500), look(0, 1128, 500), look(0, 1256, 612)}, answers: true,
			counters: &CacheCounters{Queries: 256, Hits: 112, Hit: 0.4375}, difference: traceformat.Some(0.0), within: 500 * time.Millisecond},
		{name: "counters that never come", looks: []backends.CacheStatus{look(0, 1000, 500)}, answers: true,
			counters: &CacheCounters{}, difference: traceformat.Some(0.0), within: settle},
		{name: "other clients", looks: []backends.CacheStatus{look(0, 0, 0), look(0, 300, 112)}, answers: true,
			counters: &CacheCounters{Queries: 300, Hits: 112, Hit: 112.0 / 300}, difference: traceformat.Some(0.0), note: "hold other clients"},
		{name: "a restart", looks: []backends.CacheStatus{look(0, 1000, 500), look(0, 256, 112)}, answers: true, difference: traceformat.Some(0.0), note: "restarted"},
		{name: "no counters", looks: []backends.CacheStatus{{}}, difference: none},
		{name: "a server that is gone", difference: none},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tally := newCacheTally(16, backends.CacheInfo{Block: 16})
				for id := range 2 {
					x := &exchange{prompt: 128, output: 1}
					x.row.ID, x.row.PrefixBlocks = int64(id), []uint64{1, 2, 3, 4, 5, 6, 7, 8}
					if tally.sent(x); tt.answers {
						x.row.ServedPromptTokens, x.row.ServedCachedTokens = traceformat.Some[int32](128), traceformat.Some(int32(112*id))
					}
					tally.answered(x)
				}
				f := &countingCache{looks: tt.looks}
				p := &Plan{Options: Defaults()}
				r, err := p.PrepareCache(t.Context(), f, &backends.Info{}, nil)
				if err != nil {
					t.Fatal(err)
				}
				start := time.Now()
				ended, cancel := context.WithCancel(t.Context())
				cancel() // as after an interrupt
				r.Finish(ended, &Stats{cache: tally})
				if took := time.Since(start); took != tt.within {
					t.Errorf("took %v, want %v", took, tt.within)
				}
				if r.Implied.UnlimitedReusable != 112 || r.Implied.Unlimited != 128 || (r.Reported != nil) != tt.answers {
					t.Errorf("implied %+v, reported %+v", r.Implied, r.Reported)
				}
				if (r.Counters == nil) != (tt.counters == nil) || r.Counters != nil && *r.Counters != *tt.counters || r.Difference != tt.difference {
					t.Errorf("counters %+v, difference %v; want %+v, %v", r.Counters, r.Difference, tt.counters, tt.difference)
				}
				if got := strings.Join(r.Notes, "; "); !strings.Contains(got, tt.note) || (got == "") != (tt.note == "") {
					t.Errorf("notes %q, want %q", got, tt.note)
				}
			})
		})
	}
}
