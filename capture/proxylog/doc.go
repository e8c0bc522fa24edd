// Package proxylog reads the logs of gateways and engines as requests and their
// outcomes: one file a dialect, and any CSV or JSON by a mapping.
//
// [Import] opens the files, tells their dialect from the first lines, and hands
// every request to a [capture.Recorder], which keys identities and keeps the
// accounts. What a log cannot know stays unknown; [Capability] says what that is
// before a line is imported.
//
// Nothing of a line reaches an error or an output but what a column has room
// for: samples of lines that cannot be read are shapes, every letter an a and
// every digit a 0.
//
// # Times
//
// All times are nanoseconds since the epoch. Many gateways stamp the end of a
// request: its arrival is that minus its duration. A log that has the end alone
// is refused, unless [Options.ArrivalsAreEnd] is set.
//
// # Memory
//
// A line is bounded by 32 MiB, what is joined over lines by a number of
// requests. Nothing else grows with the input.
package proxylog
