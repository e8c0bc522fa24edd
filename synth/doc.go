// Package synth learns a trace of LLM traffic and writes new ones.
//
// [Fit] reads a [score.Sample] and tries several generators of arrivals on it:
// renewal processes, a Markov-modulated Poisson process, a windowed profile of
// rate and lengths played again or in new order, and, where asked for, a block
// bootstrap of the rows themselves. Each is judged on traffic that it has not
// seen, next to the noise floor of the trace, and the best becomes a [Model]:
// a readable JSON file that [Model.Generate] turns into rows.
//
// # What a model is
//
// A [Model] is a superposition of clients. A [Client] has arrivals (of requests,
// or of sessions where the source has them), lengths (quantiles with explicit
// atoms, joint through a checkerboard copula, conditional on the window or
// regime), and optionally sessions and prefix blocks. Nothing in it is a row of
// the source unless HoldsSourceRows says so.
//
// # Randomness
//
// Every client owns random streams that follow from the seed, its own slot and
// the purpose (arrivals, lengths, prefixes, sessions), and nothing else. Adding
// or removing a client leaves the rows of the others as they were, ids of
// blocks and sessions included; row ids count the merged trace.
//
// # Memory
//
// A generator holds the reuse window of the prefixes and the sessions that are
// under way, never the trace.
package synth
