// Package enginemetrics is the vocabulary in which the /metrics of every engine
// is read: quantities that all of them have, each with one unit, and the table
// by which one engine's names become those.
//
// A backend knows the names that its engine gives them (they drift between
// versions) and writes a [Table]; the scraper in package gpu knows the
// quantities alone. This package lies below both and knows neither.
package enginemetrics

// A Quantity is one thing that engines measure of themselves: the name of its
// metric. Where OpenTelemetry's conventions for generative AI have a name
// (time_to_first_token, time_per_output_token, request.duration) it is that; the
// others follow their style.
type Quantity string

// Gauges: what is so at the moment of the scrape.
const (
	Running    Quantity = "gen_ai.server.requests.running"    // in the batch
	Waiting    Quantity = "gen_ai.server.requests.waiting"    // queued in the engine
	KVUsage    Quantity = "gen_ai.server.kv_cache.usage"      // share of the KV cache in use, 0 to 1
	KVCapacity Quantity = "gen_ai.server.kv_cache.capacity"   // tokens that the KV cache holds
	KVUsed     Quantity = "gen_ai.server.kv_cache.used"       // of them held by requests, or by usage × capacity where only that is known
	KVBlocks   Quantity = "gen_ai.server.kv_cache.blocks"     // blocks of it
	KVBlock    Quantity = "gen_ai.server.kv_cache.block_size" // tokens in one block
)

// Counters: since the engine started, so that differences mean something.
const (
	PrefixQueries   Quantity = "gen_ai.server.prefix_cache.queries" // looked up
	PrefixHits      Quantity = "gen_ai.server.prefix_cache.hits"    // and found
	Preemptions     Quantity = "gen_ai.server.preemptions"          // requests thrown out of the batch for want of memory
	PromptTokens    Quantity = "gen_ai.server.tokens.prompt"        // processed, cached ones included
	GeneratedTokens Quantity = "gen_ai.server.tokens.generated"
	Finished        Quantity = "gen_ai.server.requests.finished"
	Aborted         Quantity = "gen_ai.server.requests.aborted"
	Rejected        Quantity = "gen_ai.server.requests.rejected" // refused at the door
)

// Spans: histograms of seconds, one value a request but for ITL, which has one
// a token. An engine without the histogram may still have its sum.
const (
	TTFT    Quantity = "gen_ai.server.time_to_first_token"   // from the arrival at the server to the first token
	Queue   Quantity = "gen_ai.server.time_in_queue"         // waiting to be scheduled for the first time
	Prefill Quantity = "gen_ai.server.time_in_prefill"       // from then to the first token
	Decode  Quantity = "gen_ai.server.time_in_decode"        // from the first token to the last
	ITL     Quantity = "gen_ai.server.inter_token_latency"   // between two tokens
	TPOT    Quantity = "gen_ai.server.time_per_output_token" // mean of a request's ITL
	E2E     Quantity = "gen_ai.server.request.duration"      // from the arrival to the last token
)

// A Kind says how a quantity behaves.
type Kind uint8

const (
	Gauge Kind = iota
	Counter
	Span
)

// kinds is every quantity, in the order in which tables and pages list them.
var kinds = []struct {
	q    Quantity
	kind Kind
	unit string // UCUM
	help string
}{
	{Running, Gauge, "{request}", "Requests in the engine's batch."},
	{Waiting, Gauge, "{request}", "Requests that wait in the engine."},
	{KVUsage, Gauge, "1", "Share of the KV cache in use, 0 to 1."},
	{KVCapacity, Gauge, "{token}", "Tokens that the KV cache holds."},
	{KVUsed, Gauge, "{token}", "Tokens in the KV cache that requests hold."},
	{KVBlocks, Gauge, "{block}", "Blocks of the KV cache."},
	{KVBlock, Gauge, "{token}", "Tokens in a block of the KV cache."},
	{PrefixQueries, Counter, "{token}", "Prompt tokens looked up in the prefix cache."},
	{PrefixHits, Counter, "{token}", "Prompt tokens found in the prefix cache."},
	{Preemptions, Counter, "{preemption}", "Requests thrown out of the batch for want of memory."},
	{PromptTokens, Counter, "{token}", "Prompt tokens processed."},
	{GeneratedTokens, Counter, "{token}", "Output tokens generated."},
	{Finished, Counter, "{request}", "Requests finished."},
	{Aborted, Counter, "{request}", "Requests whose client hung up, as far as the engine counts them."},
	{Rejected, Counter, "{request}", "Requests refused by a limit of the queue."},
	{TTFT, Span, "s", "Time to first token by the engine's clock."},
	{Queue, Span, "s", "Time in the engine's queue."},
	{Prefill, Span, "s", "Time of the prefill."},
	{Decode, Span, "s", "Time of the decode."},
	{ITL, Span, "s", "Time between two tokens by the engine's clock."},
	{TPOT, Span, "s", "Mean time per output token of a request."},
	{E2E, Span, "s", "Time from arrival to last token by the engine's clock."},
}

// Quantities lists the vocabulary.
func Quantities() []Quantity {
	qs := make([]Quantity, len(kinds))
	for i := range kinds {
		qs[i] = kinds[i].q
	}
	return qs
}

// Kind says how q behaves; ok is false for a word that is not of the vocabulary.
func (q Quantity) Kind() (k Kind, ok bool) {
	for i := range kinds {
		if kinds[i].q == q {
			return kinds[i].kind, true
		}
	}
	return 0, false
}

// Unit is that of q, a UCUM code.
func (q Quantity) Unit() string {
	for i := range kinds {
		if kinds[i].q == q {
			return kinds[i].unit
		}
	}
	return ""
}

// Help describes q in one line.
func (q Quantity) Help() string {
	for i := range kinds {
		if kinds[i].q == q {
			return kinds[i].help
		}
	}
	return ""
}

// A Source says where an engine has a quantity: a name, and which of its samples.
type Source struct {
	// Name is that of the family, such as vllm:num_requests_running. A colon and
	// an underscore count as equal, as gateways that pass a page on rename the
	// one to the other.
	Name string
	// Where are label values that a sample must have, nil: any. Samples that
	// differ in labels which identify no engine are added up.
	Where map[string]string
	// Label takes the value from this label of an info metric (vLLM's
	// cache_config_info) and not from the sample.
	Label string
	// Sum takes the sum of a histogram for a counter.
	Sum bool
}

// An Entry is one quantity and its names, the newest version's first. The first
// that is on a page counts.
type Entry struct {
	Quantity Quantity
	Sources  []Source
	// Plus, if set, is added to it where it is on the page: an engine that counts
	// computed and reused tokens apart.
	Plus []Source
}

// A Table is one engine's names.
type Table struct {
	Engine  string // as in backends.Info.Engine
	Entries []Entry
	// EngineLabels name the label that tells engines behind one address apart
	// (data parallel ranks), the newest version's first. Those engines are kept
	// apart, and added up for totals.
	EngineLabels []string
	// RankLabels name labels of workers that report one engine's figures each for
	// itself (tensor parallel ranks): of those the lowest is taken, never the sum.
	RankLabels []string
	// Late says that a counter is on the page only once it was raised, so that
	// absence is zero.
	Late bool
	// Enable says how to switch the page on where the server has none.
	Enable string
}

// Names makes the Sources of plain families.
func Names(names ...string) []Source {
	s := make([]Source, len(names))
	for i, n := range names {
		s[i].Name = n
	}
	return s
}
