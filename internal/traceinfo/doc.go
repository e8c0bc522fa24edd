// Package traceinfo finds out what a trace is: how many requests, how fast,
// how bursty, how long, how much of their prompts they share, what came of
// them, and what the trace can and cannot be used for.
//
// [Analyze] reads the rows once, in the order of the file, in memory that does
// not grow with the trace: what is counted by value (lengths, clients,
// sessions, blocks) has a bound each, and an [Info] says where a bound was met.
package traceinfo
