// Package metrics defines every figure of this project, once: the live view,
// the summary of a replay and the reports all take them from here.
//
// A [Collector] is given the rows of a run or of a capture, in any order, and
// makes a [Summary]. [Measure] applies the definitions to one row.
//
// # Time zero
//
// Time zero of a request is its scheduled send (scheduled_ns), not the moment
// when a free worker got to it, so that a sender that falls behind cannot hide
// what its delay did (no coordinated omission). A capture knows no schedule;
// its time zero is arrival_ns, and all that speaks of sending is left out.
// Figures from the actual send (sent_ns), the service's own share, stand beside
// those from the schedule. The difference is the send lag:
//
//	send lag = sent - scheduled = pacer + connection + write
//	pacer    = wake - scheduled  the sender woke late
//	queue    = conn - wake       waited for an open connection  (conn_reused)
//	connect  = conn - wake       opened a connection            (not conn_reused)
//	write    = sent - conn       had a connection and did not write yet
//
// A step whose clock was not recorded counts with the step after it. The send
// error is |send lag|.
//
// # Per request
//
//	TTFT = first token-bearing event - zero
//	E2E  = last token-bearing event - zero
//	TPOT = (last token - first token) / (output tokens - 1), above 1 output token
//
// Events without a token (a role, a comment, a head) do not count; an event
// with a token and no text does. Stream close is not E2E. A TTFT whose source
// is the head of the answer is none.
//
// # Pooled over tokens
//
//	event gap = t[i] - t[i-1], for consecutive token-bearing events
//	ITL       = event gap / tokens of the later event, counted once per token
//
// Where the tokens of the single events are unknown, the request has event gaps
// and no ITL.
//
// # Success
//
// A replayed request succeeded if its outcome is ok, its finish reason is stop
// or length, and it returned as many tokens as were asked for. HTTP 200 and
// [DONE] are not success. Asked for are output_tokens, in each of n choices;
// what the server reports (served_output_tokens) decides, else the sum over
// events, and where neither is known the length is counted as unverified. In a
// capture the outcome column decides alone: nobody asked for a length there.
//
// A hang-up of the recorded user, captured or replayed, is neither a success
// nor a failure. Latency percentiles are over successes; next to them stand
// those over all ends with a failure as an infinite latency, which is what its
// user saw, and how long failures took to fail (censored: at least that).
//
// # The window
//
// The measured window is the closed interval [From, To] of run time. Requests
// scheduled inside are measured, until they end, however late that is; those
// before are warm-up and those after are neither. Without To, the window ends
// with the last scheduled request, rounded up to a millisecond.
//
//	throughput = tokens whose events fall inside the window / its length
//
// Of whichever request, failed ones too: the server made them. Prompt tokens
// count at the request's first token-bearing event, when they had been
// processed. Tokens of requests that recorded no events are spread evenly from
// TTFT to E2E, and a warning says so.
//
//	offered rate   = requests scheduled inside / length
//	sent rate      = requests actually sent inside / length
//	completed rate = successes whose last token falls inside / length
//	goodput        = measured requests that met every SLO / length
//
// SLOs apply to latencies from the schedule. TPOT of an answer of one token is
// met; a whole answer without events has its first token with its last. A
// failed, shed, refused, timed-out or never-sent request misses.
//
// # What percentiles mean
//
// Per-request percentiles are exact, interpolated as numpy does; pooled ones
// are HDR, to 3 significant digits. A percentile that the sample cannot carry
// is left out and named in Warnings (package stats has the rule); one over
// pooled values is judged by the number of events, not of tokens.
package metrics
