// Package findings computes what telemetry and requests say together, and
// neither alone: joules per output token, the growth of the KV cache against
// concurrency and sequence length, memory headroom, time throttled, cache hits by
// the engine's counters, Little's law, and how far the engine's clock and ours
// disagree. It also judges whether something disturbed the serving host.
//
// Everything is computed from the rows of a run ([Requests], which takes them in
// any order and in bounded memory) and its samples ([Analyse], which takes them
// in the order of time), so that a run's own summary and a later report come to
// the same figures.
//
// # Definitions
//
// Energy is the increase of the GPUs' energy counters over the measured window,
// linear between two samples, idle power included; it is never integrated power.
// Joules per output token divide it by the output tokens whose events fall into
// the window, joules per request by the requests that ended in it.
//
// Counters of an engine count from the first scrape to the last, which lie
// before the first request and behind the last answer, so that they stand beside
// sums over all requests of the run. Gauges are means over time inside the
// measured window: a value holds until the next sample, or until a gap that was
// recorded between the two.
//
// In flight is from the actual send to the end of the answer. Little's law says
// that its mean is the rate of sending times the mean stay; the engine's own
// count (running and waiting) should be that less what lies between the two.
//
// Resident tokens of a request are its prompt's, and those of its answer so far,
// taken to come evenly between the first token and the last. The KV cache holds
// them all, but once each where requests share a prefix, and in whole blocks.
package findings
