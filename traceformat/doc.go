// Package traceformat reads and writes replayable traces of LLM inference
// traffic.
//
// A trace is a [Header] and rows in arrival order. A [Row] holds a [Request],
// what was asked, and an [Outcome], what happened. A captured trace has both,
// a synthetic trace has requests alone, and a replay writes a trace again: the
// same requests with new outcomes. One reader, one writer and one set of
// statistics serve all three.
//
// Prompts and completions are never stored: lengths, times and keyed hashes
// are all a row has room for.
//
// # Times
//
// Every time in a Row is a [time.Duration]. Request.Arrival and the clocks of a
// replay (Scheduled, Wake, Conn, Sent, Headers, FirstEvent, Close) count from
// the start of the trace; TTFT, E2E, Abort and Chunks count from the moment the
// request was sent (in a capture: from its arrival). Nothing stored counts from
// the schedule; reports derive that by adding Sent - Scheduled.
//
// # Ownership
//
// A [Reader] owns the memory behind every Row that it yields. Call [Row.Clone]
// to keep one past the next iteration. A [Writer] has copied what it needs when
// Write returns.
//
// # Compatibility
//
// Version 1 files stay readable by every later release. Readers tolerate absent
// optional columns and unknown versions are refused; see FORMAT.md for the
// byte layout of the Parquet file and of the journal.
package traceformat
