// Package proxy is a streaming reverse proxy that records what flows past.
//
// It stands in front of production, so that the order of its duties is fixed:
// traffic first, recording second. Each read from one side is written to the
// other at once; no byte of a body is changed, held back or added; what one
// hop says to the next (RFC 9110, section 7.6.1) is all that is taken away.
// Requests and answers are parsed by net/http.
//
// # Recording
//
// What passes is copied, with the time at which it was read, into pooled
// batches, one queue takes the batches without ever waiting, and one goroutine
// a file feeds them to a [capture.Recorder]. A full queue or a spent budget
// costs that exchange its record, which is counted by reason. A panic, a stall
// or a full disk switches recording off until a new file works; traffic does
// not notice.
//
// # Goroutines
//
// [Proxy.Serve] owns all goroutines and returns when they are gone. The usual
// request, whose body comes with its head or in one read, takes none beyond
// net/http's own: the goroutine of its handler writes to the upstream, reads
// the answer and writes to the client.
package proxy
