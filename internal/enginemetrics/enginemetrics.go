// Package enginemetrics is the vocabulary in which the /metrics of every engine
// is read: quantities that all of them have, each with one unit, and the table
// by which one engine's names become those.
//
// A backend knows the names that its engine gives them (they drift between
// versions) and writes a [Table]; the scraper in package gpu knows the
// quantities alone. This package lies below both and knows neither.
package enginemetrics

// A Quantity is one thing that engines measure of themselves.
type Quantity string

// Gauges: what is so at the moment of the scrape.
const (
	Running    Quantity = "requests_running"   // in the batch
	Waiting    Quantity = "requests_waiting"   // queued in the engine
	KVUsage    Quantity = "kv_cache_usage"     // share of the KV cache in use, 0 to 1
	KVCapacity Quantity = "kv_capacity_tokens" // tokens that the KV cache holds
	KVUsed     Quantity = "kv_used_tokens"     // of them held by requests, or by usage × capacity where only that is known
	KVBlocks   Quantity = "kv_blocks"          // blocks of it
	KVBlock    Quantity = "kv_block_tokens"    // tokens in one block
)

// Counters: since the engine started, so that differences mean something.
const (
	PrefixQueries   Quantity = "prefix_cache_queried_tokens" // looked up
	PrefixHits      Quantity = "prefix_cache_hit_tokens"     // and found
	Preemptions     Quantity = "preemptions"                 // requests thrown out of the batch for want of memory
	PromptTokens    Quantity = "prompt_tokens"               // processed, cached ones included
	GeneratedTokens Quantity = "generated_tokens"
	Finished        Quantity = "requests_finished"
	Aborted         Quantity = "requests_aborted"
	Rejected        Quantity = "requests_rejected" // refused at the door
)

// Spans: histograms of seconds, one value a request but for ITL, which has one
// a token. An engine without the histogram may still have its sum.
const (
	TTFT    Quantity = "ttft_seconds"    // from the arrival at the server to the first token
	Queue   Quantity = "queue_seconds"   // waiting to be scheduled for the first time
	Prefill Quantity = "prefill_seconds" // from then to the first token
	Decode  Quantity = "decode_seconds"  // from the first token to the last
	ITL     Quantity = "itl_seconds"     // between two tokens
	TPOT    Quantity = "tpot_seconds"    // mean of a request's ITL
	E2E     Quantity = "e2e_seconds"     // from the arrival to the last token
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
	help string
}{
	{Running, Gauge, "Requests in the engine's batch."},
	{Waiting, Gauge, "Requests that wait in the engine."},
	{KVUsage, Gauge, "Share of the KV cache in use, 0 to 1."},
	{KVCapacity, Gauge, "Tokens that the KV cache holds."},
	{KVUsed, Gauge, "Tokens in the KV cache that requests hold."},
	{KVBlocks, Gauge, "Blocks of the KV cache."},
	{KVBlock, Gauge, "Tokens in a block of the KV cache."},
	{PrefixQueries, Counter, "Prompt tokens looked up in the prefix cache."},
	{PrefixHits, Counter, "Prompt tokens found in the prefix cache."},
	{Preemptions, Counter, "Requests thrown out of the batch for want of memory."},
	{PromptTokens, Counter, "Prompt tokens processed."},
	{GeneratedTokens, Counter, "Output tokens generated."},
	{Finished, Counter, "Requests finished."},
	{Aborted, Counter, "Requests whose client hung up, as far as the engine counts them."},
	{Rejected, Counter, "Requests refused by a limit of the queue."},
	{TTFT, Span, "Time to first token by the engine's clock."},
	{Queue, Span, "Time in the engine's queue."},
	{Prefill, Span, "Time of the prefill."},
	{Decode, Span, "Time of the decode."},
	{ITL, Span, "Time between two tokens by the engine's clock."},
	{TPOT, Span, "Mean time per output token of a request."},
	{E2E, Span, "Time from arrival to last token by the engine's clock."},
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
