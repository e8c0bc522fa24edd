package traceformat

import "time"

// Version is the format version that this package writes.
const Version = 1

// A PartialRule says what became of the last block of a prompt where the
// prompt does not fill it. Every importer has to know: taking one rule for
// another is off by one block a request.
type PartialRule string

const (
	PartialUnknown PartialRule = ""
	PartialKept    PartialRule = "kept"    // it has an id of its own, over fewer tokens
	PartialDropped PartialRule = "dropped" // it has no id
	PartialPadded  PartialRule = "padded"  // its id covers padding and may not match its continuation
)

// A HashScope says within what two block ids may be compared.
type HashScope string

const (
	ScopeUnknown HashScope = ""
	ScopeGlobal  HashScope = "global"  // the whole file
	ScopeSession HashScope = "session" // one session; importers make such ids global by hashing the session in
	ScopeClient  HashScope = "client"  // one client
)

// A LengthRule says what the prompt length of a later turn counts.
type LengthRule string

const (
	LengthsUnknown     LengthRule = ""
	LengthsCumulative  LengthRule = "cumulative"  // the whole conversation so far, as an engine sees it
	LengthsIncremental LengthRule = "incremental" // what this turn adds
)

// A Header says what a trace is and how far to trust it.
type Header struct {
	Version int       `json:"version"`
	Start   time.Time `json:"start,omitzero"` // zero: the times are relative to an unknown start
	Clock   Clock     `json:"clock"`
	Origin  Origin    `json:"origin"`

	Tokenizer string     `json:"tokenizer,omitempty"` // name of the tokenizer that lengths count in
	Blocks    Blocks     `json:"blocks"`
	Lengths   LengthRule `json:"lengths,omitempty"`
	Keys      string     `json:"keys,omitempty"` // fingerprint of the key of client, session and block ids

	Sampling Sampling `json:"sampling"`
	Rows     Counts   `json:"rows"`
	Sorted   bool     `json:"sorted"`            // by (arrival, id, lap)
	Partial  string   `json:"partial,omitempty"` // why the file is not the whole recording: "interrupted", "recovered"

	// Extra holds key-values of other programs, kept through a round trip.
	Extra map[string]string `json:"extra,omitempty"`
}

// Lacks is the key of [Header.Extra] under which an importer says what its source
// does not hold that figures may miss, one clause after the other with "; "
// between.
const Lacks = "convert.lacks"

// Clock describes the clock of Arrival.
type Clock struct {
	Source string        `json:"source,omitempty"`  // "monotonic", "realtime", "log", ...
	Tick   time.Duration `json:"tick_ns,omitempty"` // resolution; 0 is exact
	// Dequantised is how arrivals were spread within a tick ("uniform"), or
	// empty where they stand as recorded.
	Dequantised string      `json:"dequantised,omitempty"`
	Steps       []ClockStep `json:"steps,omitempty"`
}

// A ClockStep is a known jump of the recording clock.
type ClockStep struct {
	At time.Duration `json:"at_ns"`
	By time.Duration `json:"by_ns"`
}

// Origin says who wrote the trace from what.
type Origin struct {
	Program string `json:"program,omitempty"` // "capture proxy", "trace convert", "replay", ...
	Version string `json:"version,omitempty"`
	Dialect string `json:"dialect,omitempty"` // source format: "azure", "mooncake", "nginx", ...
	Vantage string `json:"vantage,omitempty"` // "client", "proxy", "server", "wire"
}

// Blocks says what PrefixBlocks mean.
type Blocks struct {
	Size    int32       `json:"size,omitempty"`   // tokens in a block; 0: the trace has none
	Scheme  string      `json:"scheme,omitempty"` // how ids were made: "hmac-sha256-chain", "sequence" (consecutive integers), ...
	Scope   HashScope   `json:"scope,omitempty"`
	Partial PartialRule `json:"partial,omitempty"`
	// Of is BlocksOfContent where ids were made from the messages of a request,
	// before a chat template: they need not tile PromptTokens. Empty: they do.
	Of string `json:"of,omitempty"`
	// Bytes is the size of a block in bytes of content, where blocks were cut
	// without a tokenizer; Size is then the nearest number of tokens.
	Bytes int32 `json:"bytes,omitempty"`
}

// BlocksOfContent says that block ids were made from message content.
const BlocksOfContent = "content"

// Sampling says which share of the traffic was recorded.
type Sampling struct {
	Rate float64 `json:"rate,omitempty"` // 0 and 1 both mean all
	By   string  `json:"by,omitempty"`   // "session", "client"
}

// Counts accounts for every input: Seen = Recorded + the sum of Dropped.
type Counts struct {
	Seen     int64            `json:"seen"`
	Recorded int64            `json:"recorded"`
	Dropped  map[string]int64 `json:"dropped,omitempty"` // by reason
}
