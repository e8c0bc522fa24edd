// Package capture records production traffic of LLM services: an exchange seen
// anywhere, in a proxy, on the wire or in a log, becomes one row of a trace.
package capture
