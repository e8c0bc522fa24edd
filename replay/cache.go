package replay

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"reprise/backends"
	"reprise/internal/traceinfo"
	"reprise/internal/units"
	"reprise/traceformat"
)

// A CacheMode says what state the server's prefix cache is in when the run
// begins.
type CacheMode string

const (
	CacheWarm CacheMode = "warm" // as it is
	CacheCold CacheMode = "cold" // flushed through the engine's own interface
	// CacheSalted leaves the cache alone and keeps the run's prompts apart from
	// all others by a salt: it finds nothing that is not its own. What others
	// left still takes up room.
	CacheSalted CacheMode = "salt"
)

// maxCacheSalt is far more than a name needs.
const maxCacheSalt = 128

// ParseCache reads "warm", "cold", "salt" or "salt=NAME". Without a name each
// run draws a salt of its own.
func ParseCache(s string) (mode CacheMode, salt string, err error) {
	m, salt, named := strings.Cut(s, "=")
	switch mode = CacheMode(m); {
	case mode == CacheSalted && named && (salt == "" || len(salt) > maxCacheSalt || strings.ContainsFunc(salt, unprintable)):
		return "", "", fmt.Errorf("--cache %q: want a salt of 1 to %d printable ASCII characters", s, maxCacheSalt)
	case mode == CacheSalted, !named && (mode == CacheWarm || mode == CacheCold):
		return mode, salt, nil
	}
	return "", "", fmt.Errorf("--cache is %q, want warm, cold, salt or salt=NAME", s)
}

func unprintable(r rune) bool { return r <= ' ' || r > '~' }

// drawSalt makes the salt of one run from its seed and a number of its own.
// The manifest holds it, so that salt=NAME sends the same bytes again.
func drawSalt(seed uint64) string {
	var run [8]byte
	rand.Read(run[:]) // never fails
	return fmt.Sprintf("reprise-%016x", mix(seed, binary.LittleEndian.Uint64(run[:])))
}

// A Cache is a backend whose server has a prefix cache that can be watched, and
// perhaps emptied.
type Cache interface {
	// CacheStatus asks how busy the server is, and for its counters.
	CacheStatus(context.Context) (backends.CacheStatus, error)
	// FlushCache empties the cache. It returns [backends.ErrCacheBusy] where the
	// server refuses for now and a [*backends.CacheError] where it cannot; note
	// says what is left in spite of a success.
	FlushCache(context.Context) (note string, err error)
}

// A CacheRecord is what a manifest says of the server's prefix cache: the state
// it began in, the hits that the trace implies and those that there were.
//
// All shares are of prompt tokens. The trace implies a hit for the leading
// blocks of a prompt that a request before it had, the run being alone on the
// server and every prompt in the cache from the moment it is sent; answers are
// not looked up, as the prompts that follow them in a replay hold other tokens.
type CacheRecord struct {
	Mode  CacheMode   `json:"mode"`
	Salt  string      `json:"salt,omitempty"`
	Flush *CacheFlush `json:"flush,omitempty"`
	// Implied covers every request that was sent. It is null where the trace
	// does not say what prompts share.
	Implied *CacheImplied `json:"implied,omitempty"`
	// Reported covers the answers that came with a count of cached tokens, null
	// where none did.
	Reported *CacheReported `json:"reported,omitempty"`
	// Counters are the engine's own totals over the run. They count all clients
	// of the server.
	Counters *CacheCounters `json:"counters,omitempty"`
	// Difference is the reported share less the implied one of the same
	// requests; that of the counters less the implied one of all where answers
	// do not say. At capacity if that is known.
	Difference traceformat.Opt[float64] `json:"difference,omitzero"`
	Notes      []string                 `json:"notes,omitempty"`

	cache  Cache
	info   backends.CacheInfo
	shard  bool
	before backends.CacheStatus
}

// A CacheFlush says how the cache was emptied.
type CacheFlush struct {
	Waited   time.Duration `json:"waited_ns"` // for the server to be idle
	Attempts int           `json:"attempts"`
}

// CacheImplied is what the trace implies for some requests, in tokens.
type CacheImplied struct {
	Requests     int64 `json:"requests"`
	Unknown      int64 `json:"requests_unknown,omitempty"` // of these, whose blocks the trace does not say: nothing is shared
	PromptTokens int64 `json:"prompt_tokens"`
	// Unlimited is what a cache without bounds holds of them by the trace's own
	// blocks; UnlimitedReusable what of that the engine can reuse, which are
	// whole blocks of its own and never the last token of a prompt; AtCapacity
	// what is left of that in an LRU cache of the engine's size, which holds
	// answers too.
	Unlimited         int64                  `json:"unlimited_tokens"`
	UnlimitedReusable int64                  `json:"unlimited_reusable_tokens"`
	AtCapacity        traceformat.Opt[int64] `json:"at_capacity_tokens,omitzero"`
	// AtLeast says that the trace has more blocks than are remembered (a
	// million), so that the figures are the least that could be.
	AtLeast bool `json:"at_least,omitempty"`

	HitUnlimited         float64                  `json:"hit_unlimited"`
	HitUnlimitedReusable float64                  `json:"hit_unlimited_reusable"`
	HitAtCapacity        traceformat.Opt[float64] `json:"hit_at_capacity,omitzero"`
}

// CacheReported is what the server said, answer by answer, and what the trace
// implies for the same requests, where it implies anything.
type CacheReported struct {
	Requests     int64   `json:"requests"`
	PromptTokens int64   `json:"prompt_tokens"`
	Cached       int64   `json:"cached_tokens"`
	Implied      int64   `json:"implied_tokens"`
	Exact        int64   `json:"requests_exact"` // as implied, to the token
	More         int64   `json:"requests_more"`  // more was found than implied
	Less         int64   `json:"requests_less"`
	Beyond       int64   `json:"requests_beyond"` // more than in an unlimited cache: not from this run
	Hit          float64 `json:"hit"`
}

// CacheCounters are differences of the server's counters.
type CacheCounters struct {
	Queries int64   `json:"queried_tokens"`
	Hits    int64   `json:"hit_tokens"`
	Hit     float64 `json:"hit"`
}

// ratio is part of whole; nothing of nothing is 0.
func ratio(part, whole int64) float64 {
	if whole == 0 {
		return 0
	}
	return float64(part) / float64(whole)
}

// Bounds of the wait for an idle server.
const (
	flushWait  = time.Minute
	flushPause = 250 * time.Millisecond
	flushSay   = 5 * time.Second
)

// PrepareCache puts the prefix cache of the server into the state that the
// options ask for. It may wait up to a minute for the server to be idle, and
// tells say why. A salt that is drawn goes to p.Options, and from there to the
// manifest. A [*backends.CacheError] says what else can be done.
func (p *Plan) PrepareCache(ctx context.Context, b backends.Backend, info *backends.Info, say func(string)) (*CacheRecord, error) {
	cache, _ := b.(Cache)
	return p.prepareCache(ctx, cache, info, say)
}

func (p *Plan) prepareCache(ctx context.Context, cache Cache, info *backends.Info, say func(string)) (*CacheRecord, error) {
	r := &CacheRecord{Mode: cmp.Or(p.Options.Cache, CacheWarm), info: info.Cache, shard: p.Options.Shard.Of > 1, cache: cache}
	p.cacheInfo = info.Cache
	switch r.Mode {
	case CacheSalted:
		if !info.Cache.Salt {
			return nil, &backends.CacheError{
				Reason: info.Engine + " has no salt that keeps prompts apart in its prefix cache",
				Next:   "use --cache cold, or --cache warm with a --seed that the server has not seen",
			}
		}
		if p.Options.CacheSalt == "" {
			p.Options.CacheSalt = drawSalt(p.Options.Seed)
		}
		r.Salt = p.Options.CacheSalt
	case CacheCold:
		if r.cache == nil {
			return nil, &backends.CacheError{
				Reason: info.Engine + " has no interface to flush its prefix cache",
				Next:   "use --cache warm, or restart the server before each run",
			}
		}
		if err := r.flush(ctx, say); err != nil {
			return nil, err
		}
	}
	if r.cache != nil {
		r.before, _ = r.cache.CacheStatus(ctx) // a server that is gone shows in the run
	}
	return r, context.Cause(ctx)
}

// flush waits until the server is idle, empties its cache, and makes sure that
// nobody else has come in between.
func (r *CacheRecord) flush(ctx context.Context, say func(string)) error {
	start := time.Now()
	f := &CacheFlush{}
	var told time.Time
	for {
		s, err := r.cache.CacheStatus(ctx)
		if err != nil {
			return err
		}
		if s.Running+s.Waiting == 0 {
			f.Waited = time.Since(start)
			f.Attempts++
			note, err := r.cache.FlushCache(ctx)
			if err != nil && !errors.Is(err, backends.ErrCacheBusy) {
				return err
			}
			if err == nil {
				// Who came in before the flush was done may have its prompt in
				// the cache.
				if s, err = r.cache.CacheStatus(ctx); err != nil {
					return err
				}
				if s.Running+s.Waiting == 0 {
					if note != "" {
						r.Notes = append(r.Notes, note)
					}
					if !s.Known {
						r.Notes = append(r.Notes, "the server does not say whether it is idle: another client may have filled the cache again")
					}
					r.Flush = f
					return nil
				}
			}
		}
		busy := "the server is busy"
		if s.Running+s.Waiting > 0 {
			busy = fmt.Sprintf("the server is busy: %d requests running, %d waiting", s.Running, s.Waiting)
		}
		if time.Since(start) >= flushWait {
			return &backends.CacheError{
				Reason: fmt.Sprintf("%s: it was not idle for %v, and does not flush its prefix cache before", busy, flushWait),
				Next:   "stop the other clients, or use --cache salt, which needs no idle server",
			}
		}
		if time.Since(told) >= flushSay {
			told = time.Now()
			say(fmt.Sprintf("%s: waiting up to %v to flush its prefix cache", busy, flushWait))
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(flushPause):
		}
	}
}

// settle bounds the wait for counters that trail behind the last answer.
const settle = 2 * time.Second

// Finish adds what came of the run. It asks the server for its counters once
// more.
func (r *CacheRecord) Finish(ctx context.Context, stats *Stats) {
	t := stats.cache
	if t == nil {
		return
	}
	if t.trace != nil {
		i := t.planned
		i.AtLeast = t.trace.Forgot() || t.blocks != nil && t.blocks.Forgot()
		i.HitUnlimited = ratio(i.Unlimited, i.PromptTokens)
		i.HitUnlimitedReusable = ratio(i.UnlimitedReusable, i.PromptTokens)
		if i.AtCapacity.OK {
			i.HitAtCapacity = traceformat.Some(ratio(i.AtCapacity.V, i.PromptTokens))
		}
		r.Implied = &i
	}
	if t.reported.Requests > 0 {
		rep := t.reported
		rep.Hit = ratio(rep.Cached, rep.PromptTokens)
		r.Reported = &rep
	}
	r.count(ctx)
	switch {
	case r.Implied == nil:
	case r.Reported != nil:
		r.Difference = traceformat.Some(r.Reported.Hit - ratio(r.Reported.Implied, r.Reported.PromptTokens))
	case r.Counters != nil:
		i := r.Implied
		r.Difference = traceformat.Some(r.Counters.Hit - ratio(i.AtCapacity.Or(i.UnlimitedReusable), i.PromptTokens))
	}
	r.doubt()
}

// count takes the difference of the server's counters.
func (r *CacheRecord) count(ctx context.Context) {
	if r.cache == nil || r.info.Off || !r.before.Queries.OK || !r.before.Hits.OK {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settle)
	defer cancel()
	for {
		s, err := r.cache.CacheStatus(ctx)
		if err != nil || !s.Queries.OK || !s.Hits.OK {
			return
		}
		queries, hits := s.Queries.V-r.before.Queries.V, s.Hits.V-r.before.Hits.V
		if queries < 0 || hits < 0 {
			r.Notes = append(r.Notes, "the server's counters went backwards: it was restarted during the run")
			return
		}
		r.Counters = &CacheCounters{Queries: queries, Hits: hits, Hit: ratio(hits, queries)}
		if s.Running+s.Waiting == 0 && (r.Reported == nil || queries >= r.Reported.PromptTokens) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(flushPause):
		}
	}
}

// doubt notes what speaks against the figures.
func (r *CacheRecord) doubt() {
	rep, c := r.Reported, r.Counters
	// A request that overtakes its twin on the way to the engine swaps hits
	// with it: one finds more, the other less.
	if rep != nil && r.Implied != nil && rep.Beyond > rep.Less {
		why := "something else shares their prefixes"
		if r.Mode == CacheWarm {
			why = "the cache was warm from before the run"
		}
		r.Notes = append(r.Notes, fmt.Sprintf("%s of %s requests found more in the cache than the trace implies: %s",
			units.Count(rep.Beyond), units.Count(rep.Requests), why))
	}
	if rep != nil && c != nil && !r.shard && c.Queries > rep.PromptTokens+rep.PromptTokens/100 {
		r.Notes = append(r.Notes, fmt.Sprintf("the server looked up %s tokens, of which this run's answers account for %s: its counters hold other clients, or requests that did not end well",
			units.Count(c.Queries), units.Count(rep.PromptTokens)))
	}
	if r.Implied != nil && r.info.Off {
		r.Notes = append(r.Notes, "the engine's prefix cache is switched off")
	}
}

// Render writes r as lines of a summary, an item a line where they do not fit
// into width together. A run on a warm cache whose trace says nothing of
// prefixes has none.
func (r *CacheRecord) Render(w io.Writer, width int) error {
	var b strings.Builder
	line := func(label string, items ...string) {
		sep := "   "
		if text := strings.Join(items, sep); 12+utf8.RuneCountInString(text) > width {
			sep = "\n            "
		}
		fmt.Fprintf(&b, "%-12s%s\n", label, strings.Join(items, sep))
	}
	switch {
	case r.Mode == CacheCold && r.Flush != nil:
		text := "cold, flushed"
		if r.Flush.Waited >= time.Second {
			text += " after a wait of " + units.Duration(r.Flush.Waited)
		}
		line("cache", text)
	case r.Mode == CacheSalted:
		line("cache", "apart from all else by the salt "+r.Salt)
	case r.Implied != nil:
		line("cache", "warm, as it was found")
	}
	if i := r.Implied; i != nil {
		prefix := ""
		if i.AtLeast {
			prefix = "at least "
		}
		items := []string{prefix + units.Percent(i.HitUnlimited) + " unlimited"}
		switch {
		case r.info.Off:
		case r.info.Block > 1:
			items = append(items, fmt.Sprintf("%s in whole blocks of %d", units.Percent(i.HitUnlimitedReusable), r.info.Block))
		default:
			items = append(items, units.Percent(i.HitUnlimitedReusable)+" without last tokens")
		}
		if i.HitAtCapacity.OK {
			items = append(items, fmt.Sprintf("%s in %s tokens", units.Percent(i.HitAtCapacity.V), units.Count(r.info.Tokens)))
		}
		line("  implied", items...)
	}
	if rep := r.Reported; rep != nil && r.Implied != nil {
		line("  reported", units.Percent(rep.Hit)+" by its answers", units.Points(r.Difference.V),
			fmt.Sprintf("%s of %s requests as implied", units.Count(rep.Exact), units.Count(rep.Requests)))
	}
	if c := r.Counters; c != nil && r.Implied != nil {
		items := []string{units.Percent(c.Hit) + " by its counters"}
		if r.Reported == nil {
			items = append(items, units.Points(r.Difference.V))
		}
		line("  reported", items...)
	}
	for _, n := range r.Notes {
		line("  note", n)
	}
	if b.Len() == 0 {
		return nil
	}
	_, err := io.WriteString(w, "\n"+b.String())
	return err
}

// A cacheTally plays the prompts of a run against models of a prefix cache, in
// the order of sending, and compares what the server says. Its memory is
// bounded: see [traceinfo.PrefixCache].
//
// The sender only notes what it sends. All else is done where answers are
// recorded.
type cacheTally struct {
	size int // tokens in a block of the trace
	info backends.CacheInfo

	mu    sync.Mutex
	queue []*exchange // sent, not played yet
	spare []*exchange

	// trace is in blocks of the trace, nil where it has none. blocks is in
	// blocks of the engine, nil where those are unknown or so small that they
	// are counted by the trace's: a node for each token would be too many.
	trace, blocks *traceinfo.PrefixCache
	ids           []uint64
	planned       CacheImplied
	reported      CacheReported
}

// implied is how many tokens of a prompt the trace implies to be in the cache
// of the engine.
type implied struct {
	cached    int // at its capacity, if that is known
	unlimited int
}

// smallBlock is the least block of an engine that is modelled as it is.
const smallBlock = 8

func newCacheTally(size int, info backends.CacheInfo) *cacheTally {
	t := &cacheTally{size: size, info: info}
	if size <= 0 {
		return t
	}
	if info.Off {
		info.Tokens = 0
	}
	if info.Block >= smallBlock {
		t.trace, t.blocks = traceinfo.NewPrefixCache(0), traceinfo.NewPrefixCache(int(info.Tokens/int64(info.Block)))
	} else {
		blocks := int(info.Tokens / int64(size))
		if info.Tokens > 0 {
			blocks = max(1, blocks)
		}
		t.trace = traceinfo.NewPrefixCache(blocks)
	}
	t.planned.AtCapacity.OK = info.Tokens > 0
	return t
}

// sent notes that x is sent, or one of another shard about to be.
func (t *cacheTally) sent(x *exchange) {
	if t.trace == nil {
		return
	}
	t.mu.Lock()
	t.queue = append(t.queue, x)
	t.mu.Unlock()
}

// play catches up with the sender.
func (t *cacheTally) play() {
	t.mu.Lock()
	queue := t.queue
	t.queue = t.spare[:0]
	t.mu.Unlock()
	for _, x := range queue {
		x.implied = t.plan(&x.row.Request, x.row.Lap, x.prompt, x.output, !x.others)
	}
	clear(queue)
	t.spare = queue
}

// plan plays one request. mine is false for one that another process sends to
// the same server.
func (t *cacheTally) plan(r *traceformat.Request, lap int32, prompt, output int, mine bool) implied {
	// By the trace's blocks. An id stands for a prefix in most traces; chained,
	// it does in all. A block that is cut short is another than the whole.
	t.ids = t.ids[:0]
	chain := mix(rootNode, uint64(lap))
	left := prompt
	for _, id := range r.PrefixBlocks {
		if left <= 0 {
			break
		}
		n := min(t.size, left)
		chain = mix(chain, mix(blockKind, id))
		t.ids = append(t.ids, mix(chain, uint64(n)))
		left -= n
	}
	named := len(t.ids)
	own := mix(mix(tailKind, uint64(r.ID)), uint64(lap))
	if t.blocks == nil && t.planned.AtCapacity.OK {
		// What no other prompt shares takes up room as well.
		for k := range (left + output + t.size/2) / t.size {
			t.ids = append(t.ids, mix(own, uint64(k)))
		}
	}
	limited, unlimited := t.trace.Add(t.ids)
	tokens := func(blocks int) int { return min(min(blocks, named)*t.size, prompt) }
	shared, kept := tokens(unlimited), tokens(limited)
	reusable, atCapacity := t.reusable(shared, prompt), t.reusable(kept, prompt)
	if t.blocks != nil {
		limited, unlimited = t.blocks.Add(t.engineBlocks(r, own, lap, prompt, output))
		b := t.info.Block
		reusable, atCapacity = t.reusable(unlimited*b, prompt), t.reusable(limited*b, prompt)
	}
	if mine {
		p := &t.planned
		p.Requests++
		if r.PrefixBlocks == nil {
			p.Unknown++
		}
		p.PromptTokens += int64(prompt)
		p.Unlimited += int64(shared)
		p.UnlimitedReusable += int64(reusable)
		if p.AtCapacity.OK {
			p.AtCapacity.V += int64(atCapacity)
		}
	}
	if t.planned.AtCapacity.OK {
		return implied{atCapacity, reusable}
	}
	return implied{reusable, reusable}
}

// reusable is what an engine reuses of a shared prefix.
func (t *cacheTally) reusable(shared, prompt int) int {
	if t.info.Off {
		return 0
	}
	b := max(1, t.info.Block)
	return max(0, min(shared, prompt-1)) / b * b
}

// engineBlocks names the blocks that a request fills at the engine: equal
// content, equal name. A block is the block of the trace that its last token
// lies in, all before it, and its place. The last token of an answer is not
// computed, so it is in none.
func (t *cacheTally) engineBlocks(r *traceformat.Request, own uint64, lap int32, prompt, output int) []uint64 {
	t.ids = t.ids[:0]
	chain := mix(rootNode, uint64(lap))
	at := 0 // blocks of the trace in chain
	for k := range (prompt + max(0, output-1)) / t.info.Block {
		last := (k+1)*t.info.Block - 1
		block := last / t.size
		name := own
		if last < prompt && block < len(r.PrefixBlocks) {
			for ; at <= block; at++ {
				chain = mix(chain, mix(blockKind, r.PrefixBlocks[at]))
			}
			name = chain
		}
		t.ids = append(t.ids, mix(name, uint64(k)))
	}
	return t.ids
}

// answered compares what the server said of x with what was implied.
func (t *cacheTally) answered(x *exchange) {
	t.play()
	t.compare(&x.row, x.implied)
}

func (t *cacheTally) compare(row *traceformat.Row, i implied) {
	cached, ok := row.ServedCachedTokens.Get()
	prompt, known := row.ServedPromptTokens.Get()
	if !ok || !known {
		return
	}
	r := &t.reported
	r.Requests++
	r.PromptTokens += int64(prompt)
	r.Cached += int64(cached)
	if t.trace == nil {
		return
	}
	r.Implied += int64(i.cached)
	if int(cached) > i.unlimited {
		r.Beyond++
	}
	switch d := int(cached) - i.cached; {
	case d == 0:
		r.Exact++
	case d > 0:
		r.More++
	default:
		r.Less++
	}
}
