package replay

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// A Policy says what to do with a row that cannot be sent as it stands.
type Policy string

const (
	Fail Policy = "fail" // do not start, list the rows
	Clip Policy = "clip" // shorten it until it fits, and count it
	Skip Policy = "skip" // leave it out, and count it
)

// An AbortPolicy says when a replay hangs up where the recorded client did.
type AbortPolicy string

const (
	AbortOff   AbortPolicy = "off"    // never: the answer that was received is asked for, and read to its end
	AbortTime  AbortPolicy = "time"   // as long after the send as recorded
	AbortToken AbortPolicy = "tokens" // when as many tokens have come as had
)

// Options say what to play and how.
type Options struct {
	Seed uint64 `json:"seed"`

	// The part of the trace to play, in trace time.
	Start    time.Duration `json:"start_ns"`
	Duration time.Duration `json:"duration_ns"` // 0: to the end
	Limit    int64         `json:"limit"`       // rows, 0: all
	Loop     int           `json:"loop"`        // laps, 0 means 1
	Warmup   time.Duration `json:"warmup_ns"`   // trace time at the beginning that is played but not measured

	Speedup     float64 `json:"speedup"`       // 0 means 1
	MaxInFlight int     `json:"max_in_flight"` // requests beyond it are shed, 0: unlimited

	Arrival   Arrival       `json:"arrival"`    // other arrivals than recorded
	ScaleRate float64       `json:"scale_rate"` // superposes independent copies of the trace, 0 means 1
	Aborts    AbortPolicy   `json:"aborts"`     // what to do where the recorded client hung up, empty means off
	Sessions  SessionPolicy `json:"sessions"`   // what turns wait for, empty means recorded
	// SessionHeader, if set, names the header that carries the session of a request
	// that has one, so that a gateway that routes by it, or a capture, finds the
	// turns of a conversation. What it carries names a session of a trace and a lap,
	// and nobody.
	SessionHeader string `json:"session_header,omitempty"`

	Shard   Shard     `json:"shard"`             // which part of the run this process plays
	StartAt time.Time `json:"start_at,omitzero"` // wall clock of the first scheduled send, zero: when ready
	// MaxClockError bounds how far this machine's clock may be from that of the
	// other shards, 0: DefaultMaxClockError where clocks are compared.
	MaxClockError time.Duration `json:"max_clock_error_ns,omitempty"`
	Concurrency   int           `json:"concurrency"` // closed loop: this many sessions at a time in place of arrivals

	// Batch sends static batches of so many requests in place of arrivals:
	// together, and the next when all of them are answered. 0: none. Concurrency
	// is how many batches are under way at a time, 0 means 1.
	Batch int `json:"batch,omitempty"`

	TooLong Policy `json:"too_long"` // rows beyond the model's context
	Missing Policy `json:"missing"`  // rows whose lengths are unknown: fail or skip
	MaxLen  int    `json:"max_model_len"`
	// VocabSize bounds the token ids of prompts.
	VocabSize int `json:"vocab_size"`
	// MaxPrompt bounds prompts, and token ids of prompts begin with MinID; 0: as
	// the server says.
	MaxPrompt int `json:"max_prompt_len,omitempty"`
	MinID     int `json:"min_token_id,omitempty"`

	// Spin is how long before a deadline the pacer stops sleeping and polls the
	// clock. It takes that much of a core for each request.
	Spin time.Duration `json:"spin_ns,omitempty"`

	Cache     CacheMode `json:"cache"`                // what the server's prefix cache holds at the start, empty means warm
	CacheSalt string    `json:"cache_salt,omitempty"` // of CacheSalted, empty: PrepareCache draws one

	Retries int `json:"retries"` // times a request that got no answer is sent again

	FirstTokenTimeout time.Duration `json:"first_token_timeout_ns"` // 0: none
	IdleTimeout       time.Duration `json:"idle_timeout_ns"`        // between two reads after the first token, 0: none
	TotalTimeout      time.Duration `json:"total_timeout_ns"`       // 0: none
	Grace             time.Duration `json:"grace_ns"`               // for requests in flight after an interrupt
}

// Defaults are the options of a plain `replay trace.parquet`.
func Defaults() Options {
	return Options{
		Seed: 1, Loop: 1, Speedup: 1, Sessions: SessionsRecorded, Aborts: AbortTime, ScaleRate: 1, TooLong: Fail, Missing: Fail,
		Cache:             CacheWarm,
		FirstTokenTimeout: 5 * time.Minute, IdleTimeout: 5 * time.Minute, TotalTimeout: time.Hour,
		Grace: 30 * time.Second,
	}
}

// maxBatch bounds Options.Batch: what a server takes as one request.
const maxBatch = 4096

// places is how many sessions or batches a closed loop plays at a time, 0 where
// there is none.
func (o *Options) places() int {
	if o.Batch > 0 {
		return max(1, o.Concurrency)
	}
	return o.Concurrency
}

// maxSpin bounds Options.Spin: no sleep is as late as that, and beyond it a
// pacer in real time would starve its own machine.
const maxSpin = 10 * time.Millisecond

// Validate reports every problem with o, not just the first.
func (o *Options) Validate() error {
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	if !(o.Speedup > 0) || o.Speedup > 1e9 {
		bad("--speedup is %v, want more than 0", o.Speedup)
	}
	if o.Loop < 1 {
		bad("--loop is %d, want at least 1", o.Loop)
	}
	if o.MaxLen < 0 || o.VocabSize < 0 || o.MaxPrompt < 0 || o.MinID < 0 {
		bad("--max-model-len, --max-prompt-len, --vocab-size and --min-token-id cannot be negative")
	}
	if o.Limit < 0 || o.MaxInFlight < 0 || o.Retries < 0 {
		bad("--limit, --max-in-flight and --retries cannot be negative")
	}
	if o.Start < 0 || o.Duration < 0 || o.Warmup < 0 {
		bad("--start, --duration and --warmup cannot be negative")
	}
	if o.Duration > 0 && o.Warmup >= o.Duration {
		bad("--warmup %v leaves nothing of --duration %v to measure", o.Warmup, o.Duration)
	}
	if o.Spin < 0 || o.Spin > maxSpin {
		bad("--spin is %v, want 0 to %v", o.Spin, maxSpin)
	}
	if o.MaxClockError < 0 || o.MaxClockError > 0 && o.StartAt.IsZero() {
		bad("--max-clock-error goes with --start-at and is more than 0")
	}
	if o.Concurrency < 0 {
		bad("--concurrency is %d, want at least 1", o.Concurrency)
	}
	if !(o.ScaleRate > 0) || o.ScaleRate > maxShares {
		bad("--scale-rate is %v, want more than 0 and at most %d", o.ScaleRate, maxShares)
	}
	if o.Arrival.IsSet() && (o.Speedup != 1 || o.ScaleRate != 1 || o.Concurrency > 0) {
		bad("--arrival sets the times: it goes without --speedup, --scale-rate and --concurrency")
	}
	if o.Arrival.IsSet() && o.Sessions == SessionsBoth {
		bad("--arrival replaces the recorded times that --sessions both waits for: use think")
	}
	if o.Loop > 1 && o.ScaleRate != 1 {
		bad("--scale-rate goes without --loop: sessions that run past the end of a lap would meet the next")
	}
	if o.Concurrency > 0 && (o.Speedup != 1 || o.ScaleRate != 1) {
		bad("--concurrency has no arrivals: it goes without --speedup and --scale-rate")
	}
	if o.Shard.Of > 1 && o.Concurrency > 0 {
		bad("--shard divides a schedule, and --concurrency has none: give each process its share of the users")
	}
	if o.Batch < 0 || o.Batch > maxBatch {
		bad("--batch is %d, want 1 to %d", o.Batch, maxBatch)
	}
	if o.Batch > 0 {
		if o.Arrival.IsSet() || o.Speedup != 1 || o.ScaleRate != 1 {
			bad("--batch has no arrivals, a batch follows the one before it: it goes without --arrival, --rate, --speedup and --scale-rate")
		}
		if o.Sessions != SessionsRecorded {
			bad("--batch takes the rows as they come: it goes without --sessions %s", o.Sessions)
		}
		if o.MaxInFlight > 0 || o.Retries > 0 || o.Shard.Of > 1 {
			bad("--batch goes without --max-in-flight, --retries and --shard: a batch is sent whole, once")
		}
	}
	switch o.Aborts {
	case AbortOff, AbortTime, AbortToken:
	default:
		bad("--aborts is %q, want off, time or tokens", o.Aborts)
	}
	switch o.Sessions {
	case SessionsRecorded, SessionsThink, SessionsBoth:
	default:
		bad("--sessions is %q, want recorded, think or both", o.Sessions)
	}
	if o.Concurrency > 0 && o.Sessions == SessionsBoth {
		bad("--concurrency has no recorded times to wait for: use --sessions think for the recorded pauses, or none")
	}
	if strings.ContainsFunc(o.SessionHeader, func(c rune) bool {
		return (c|0x20 < 'a' || c|0x20 > 'z') && (c < '0' || c > '9') && c != '-' && c != '_'
	}) {
		bad("--session-header is %q, want the name of a header, such as X-Session-Id", o.SessionHeader)
	} else if slices.ContainsFunc(ownHeaders, func(name string) bool { return strings.EqualFold(name, o.SessionHeader) }) {
		bad("--session-header %s has a meaning of its own: name another, such as X-Session-Id", o.SessionHeader)
	}
	switch o.Cache {
	case "", CacheWarm, CacheCold, CacheSalted:
	default:
		bad("--cache is %q, want warm, cold or salt", o.Cache)
	}
	if o.CacheSalt != "" && o.Cache != CacheSalted {
		bad("--cache %s sends no salt", cmp.Or(o.Cache, CacheWarm))
	}
	if o.Cache == CacheSalted && o.CacheSalt == "" && o.Shard.Of > 1 {
		bad("--cache salt would draw another salt for each shard: name one for all with --cache salt=NAME")
	}
	switch o.TooLong {
	case Fail, Clip, Skip:
	default:
		bad("--too-long is %q, want fail, clip or skip", o.TooLong)
	}
	switch o.Missing {
	case Fail, Skip:
	default:
		bad("--missing is %q, want fail or skip", o.Missing)
	}
	if o.FirstTokenTimeout < 0 || o.IdleTimeout < 0 || o.TotalTimeout < 0 || o.Grace < 0 {
		bad("timeouts cannot be negative")
	}
	return errors.Join(errs...)
}

// ownHeaders are those of every request that cannot carry a session.
var ownHeaders = []string{
	"Host", "Connection", "Content-Type", "Content-Length", "Transfer-Encoding", "User-Agent", "Authorization",
	"Accept-Encoding", "Expect", "Upgrade", "TE", "Trailer", "Idempotency-Key", requestIDHeader,
}

// maxShares bounds --scale-rate: each copy is a reader of the trace.
const maxShares = 64

// A PlanError says why a trace cannot be played as it stands, row by row.
type PlanError struct {
	Reason string // what is wrong with the rows
	Rows   []RowNote
	Total  int64
	Hint   string
}

// A RowNote names one row of a PlanError.
type RowNote struct {
	Row  int64 // in the trace, from 0
	ID   int64
	Note string
}

func (e *PlanError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d rows %s", e.Total, e.Reason)
	for _, r := range e.Rows {
		fmt.Fprintf(&b, "\n  row %d (id %d): %s", r.Row, r.ID, r.Note)
	}
	if more := e.Total - int64(len(e.Rows)); more > 0 {
		fmt.Fprintf(&b, "\n  and %d more", more)
	}
	return b.String()
}

// maxNotes is how many rows a PlanError lists.
const maxNotes = 10
