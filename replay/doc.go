// Package replay plays a trace against a serving backend and measures it.
//
// [NewPlan] reads the trace once and fixes everything that is decided before
// the first byte is sent: which rows go, when, and with what lengths. [Run]
// reads it again and plays it open loop: a request goes out at its time however
// the server is coping, because waiting would let a slow server set its own
// load and hide the stall. What comes back is handed to a [Recorder], one row a
// request; a [Dir] is the recorder that writes a run directory.
//
// # Goroutines
//
// Run owns them all and returns when they are gone: one reads the trace and
// encodes bodies ahead within a bounded look-ahead; one, locked to its thread,
// waits for the deadlines and hands requests to the wire client; a few decode
// what came back, off the path that stamps times; one records.
//
// # Times
//
// The time axis of a run starts at its first scheduled send. Deadlines are
// absolute on CLOCK_MONOTONIC, so lateness never accumulates.
package replay
