package traceformat

import (
	"cmp"
	"encoding/json"
	"slices"
	"time"
)

// Opt is a value that may be unknown. The zero Opt is unknown, which is a
// different thing from a known zero: an unknown length is never 0.
type Opt[T any] struct {
	V  T
	OK bool
}

// Some is a known value.
func Some[T any](v T) Opt[T] { return Opt[T]{V: v, OK: true} }

// Get returns the value and whether it is known.
func (o Opt[T]) Get() (T, bool) { return o.V, o.OK }

// Or returns the value, or def where it is unknown.
func (o Opt[T]) Or(def T) T {
	if o.OK {
		return o.V
	}
	return def
}

// Take sets o to v where v is known.
func (o *Opt[T]) Take(v Opt[T]) {
	if v.OK {
		*o = v
	}
}

// MarshalJSON writes null for an unknown value.
func (o Opt[T]) MarshalJSON() ([]byte, error) {
	if !o.OK {
		return []byte("null"), nil
	}
	return json.Marshal(o.V)
}

// UnmarshalJSON reads null as unknown.
func (o *Opt[T]) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		*o = Opt[T]{}
		return nil
	}
	o.OK = true
	return json.Unmarshal(b, &o.V)
}

// How a length was learnt, best first: columns prompt_tokens_source and
// output_tokens_source.
const (
	SourceUsage     = "usage"     // the server's usage block
	SourceEngine    = "engine"    // the engine's own log or reply metadata
	SourceTokenizer = "tokenizer" // counted with a tokenizer.json
	SourceEvents    = "events"    // number of streamed events
	SourceBytes     = "bytes"     // estimated from the size of the text
)

// What was asked for: column endpoint.
const (
	EndpointChat        = "chat"
	EndpointCompletions = "completions"
	EndpointGenerate    = "generate"
	EndpointMessages    = "messages"
	EndpointResponses   = "responses"
	EndpointEmbeddings  = "embeddings"
)

// How a request ended: column outcome.
const (
	ResultOK          = "ok"
	ResultClientAbort = "client_abort"
	ResultServerError = "server_error"
	ResultTimeout     = "timeout"
	ResultRejected    = "rejected"
	ResultTruncated   = "truncated_capture"
	ResultShed        = "shed"
)

// Where a TTFT was taken: column ttft_source.
const (
	TTFTContentEvent = "content_event" // first event that carries a token
	TTFTEngine       = "engine"        // the engine's own figure
	TTFTGateway      = "gateway"       // a gateway's figure
	TTFTFirstByte    = "first_byte"    // first byte of the body
	TTFTHeader       = "header"        // first byte of the head: not a TTFT, kept for what it is
)

// A Request is what was asked, and when. Names in parentheses are columns.
type Request struct {
	ID       int64      // identity in this file, kept through every later step (id)
	Lap      int32      // which repeat under --loop, from 0 (lap)
	Origin   string     // after a merge: the file that the row came from (origin)
	OriginID Opt[int64] // after a merge: its id there (origin_id)

	Arrival time.Duration // first byte of the request, from the start of the trace (arrival_ns)

	Session Opt[int64]         // conversation (session_id)
	Parent  Opt[int64]         // id of the request that this one continues (parent_id)
	Turn    Opt[int32]         // position in the conversation, from 0 (turn)
	Think   Opt[time.Duration] // pause between the parent's answer and this request (think_ns)

	Client   string // pseudonymous tenant (client_id)
	Model    string // (model)
	Endpoint string // one of the Endpoint constants, or empty (endpoint)
	Class    string // workload class (class)

	PromptTokens       Opt[int32] // (prompt_tokens)
	OutputTokens       Opt[int32] // of all choices together (output_tokens)
	PromptTokensSource string     // one of the Source constants (prompt_tokens_source)
	OutputTokensSource string     // (output_tokens_source)

	MaxTokens   Opt[int32]   // (max_tokens)
	N           Opt[int32]   // choices asked for (n)
	Stream      Opt[bool]    // (stream)
	Temperature Opt[float64] // (temperature)

	// PrefixBlocks identifies the prompt block by block: equal prefix, equal
	// ids. Nil is unknown, empty is known to be none. Stored as int64, bit for
	// bit (prefix_blocks).
	PrefixBlocks []uint64
	OutputBlocks []uint64           // the same of the answer (output_blocks)
	Delay        Opt[time.Duration] // pause before this turn, where a source says it apart from think (delay_ns)
	Extra        string             // JSON object of source fields that no column names, or empty (extra)
}

// An Outcome is what happened to a request.
type Outcome struct {
	CachedTokens    Opt[int32] // prompt tokens served from the prefix cache (cached_tokens)
	ReasoningTokens Opt[int32] // (reasoning_tokens)
	MediaTokens     Opt[int32] // (media_tokens)

	TTFT       Opt[time.Duration] // to the first event that carries a token (ttft_ns)
	E2E        Opt[time.Duration] // to the last event that carries a token (e2e_ns)
	TTFTSource string             // one of the TTFT constants (ttft_source)

	ChunkTimes  []time.Duration // each token-bearing event, nil if not recorded (chunk_ns)
	ChunkTokens []int32         // tokens in it (chunk_tokens)

	Status       Opt[int16] // HTTP status (status)
	FinishReason string     // stop, length, ... (finish_reason)
	Result       string     // one of the Result constants, empty where there is no outcome (outcome)
	Error        string     // a short class, never a body (error)

	Abort Opt[time.Duration] // when the client hung up (abort_ns)

	// The clocks of a replayed request, from the start of the run.
	Scheduled  Opt[time.Duration] // when the schedule wanted it sent (scheduled_ns)
	Wake       Opt[time.Duration] // when the pacer woke for it (wake_ns)
	Conn       Opt[time.Duration] // when it had a connection (conn_ns)
	ConnReused Opt[bool]          // (conn_reused)
	Sent       Opt[time.Duration] // first byte handed to the kernel (sent_ns)
	Headers    Opt[time.Duration] // head of the answer read (headers_ns)
	FirstEvent Opt[time.Duration] // first event of any kind (first_event_ns)
	Close      Opt[time.Duration] // end of the answer (close_ns)

	// What this run's server said; the plain columns stay what was asked.
	ServedPromptTokens Opt[int32] // (served_prompt_tokens)
	ServedOutputTokens Opt[int32] // (served_output_tokens)
	ServedCachedTokens Opt[int32] // (served_cached_tokens)
	PromptDigest       Opt[int64] // hash of the prompt as sent (prompt_digest)

	// The engine's own clocks, where it reports them.
	ServerQueue   Opt[time.Duration] // (server_queue_ns)
	ServerPrefill Opt[time.Duration] // (server_prefill_ns)
	ServerTTFT    Opt[time.Duration] // (server_ttft_ns)
	ServerE2E     Opt[time.Duration] // (server_e2e_ns)
}

// A Row is one line of a trace.
type Row struct {
	Request
	Outcome
}

// Clone returns a copy that shares no memory with r.
func (r *Row) Clone() *Row {
	c := *r
	c.PrefixBlocks = slices.Clone(r.PrefixBlocks)
	c.OutputBlocks = slices.Clone(r.OutputBlocks)
	c.ChunkTimes = slices.Clone(r.ChunkTimes)
	c.ChunkTokens = slices.Clone(r.ChunkTokens)
	return &c
}

// Compare orders rows by (arrival, id, lap), the order of a sorted trace.
func (r *Row) Compare(s *Row) int {
	switch {
	case r.Arrival != s.Arrival:
		return cmp.Compare(int64(r.Arrival), int64(s.Arrival))
	case r.ID != s.ID:
		return cmp.Compare(r.ID, s.ID)
	default:
		return cmp.Compare(int64(r.Lap), int64(s.Lap))
	}
}
