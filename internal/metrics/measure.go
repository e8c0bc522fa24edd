package metrics

import (
	"math"
	"time"

	"reprise/traceformat"
)

// A Class says how a request ended, as far as figures go.
type Class uint8

const (
	Unknown Class = iota // no outcome was recorded, or only a part of it
	OK                   // a success
	Failed
	Shed    // never sent, for want of room in the sender
	Aborted // the recorded user hung up
)

// Outcomes of a Reading that the outcome column does not know: the server
// called the answer complete and it is not a success.
const (
	WrongLength = "wrong_length" // not as many tokens as were asked for
	BadFinish   = "bad_finish"   // a finish reason other than stop and length
)

// Error classes that say that the client, not the server, could not send.
var clientErrors = map[string]bool{"no_file_descriptors": true, "no_ports": true, "dns": true}

// recordedAbort is the error class of a replay that hung up as the user did.
const recordedAbort = "recorded_abort"

// A Lag is sent - scheduled, by cause.
type Lag struct {
	Total                        time.Duration
	Pacer, Queue, Connect, Write time.Duration
}

// A Reading is what one row says of its request, by the definitions of this
// package. Durations are unknown where the row does not hold them.
type Reading struct {
	Class   Class
	Outcome string // of what is not OK: a Result constant of traceformat, WrongLength or BadFinish
	Error   string // short class

	Replayed bool          // the row has a schedule
	Zero     time.Duration // scheduled send, or arrival in a capture; run time
	Sent     traceformat.Opt[time.Duration]
	Lag      traceformat.Opt[Lag] // of a replayed request that was sent

	// From the actual send; add Lag.Total for the figure from the schedule.
	TTFT, E2E, TPOT traceformat.Opt[time.Duration]

	// End of the answer, or of the wait for it, in run time.
	End traceformat.Opt[time.Duration]

	PromptTokens traceformat.Opt[int32] // processed: what the server said, in a capture what was recorded
	OutputTokens traceformat.Opt[int32] // received

	// What was asked for, of replayed requests.
	AskedPromptTokens, AskedOutputTokens traceformat.Opt[int32]
}

// FromSchedule turns a figure from the actual send into the one from time zero.
func (r *Reading) FromSchedule(d traceformat.Opt[time.Duration]) traceformat.Opt[time.Duration] {
	if d.OK {
		d.V += r.Lag.V.Total
	}
	return d
}

// Meets judges a success by one SLO.
func (r *Reading) Meets(slo SLO) bool {
	d := r.Latency(slo.Metric)
	return d.OK && d.V < slo.Below
}

// Latency is the figure of a success that an SLO of that metric bounds, from the
// schedule. An answer that came at once has no first token of its own, and one
// of a single token no TPOT to miss: it is 0.
func (r *Reading) Latency(metric string) traceformat.Opt[time.Duration] {
	switch metric {
	case MetricTTFT:
		if r.TTFT.OK {
			return r.FromSchedule(r.TTFT)
		}
	case MetricTPOT:
		if r.OutputTokens.Or(0) == 1 {
			return traceformat.Some(time.Duration(0))
		}
		return r.TPOT
	}
	return r.FromSchedule(r.E2E)
}

// forever bounds every clock: 36 years, so that sums of a few of them cannot
// overflow, whatever a damaged file holds.
const forever = time.Duration(1 << 60)

func bound(d time.Duration) time.Duration { return max(-forever, min(forever, d)) }

func clock(o traceformat.Opt[time.Duration]) traceformat.Opt[time.Duration] {
	o.V = bound(o.V)
	return o
}

// Measure reads a row.
func Measure(row *traceformat.Row) Reading {
	zero := traceformat.Some(bound(row.Arrival))
	r := Reading{Zero: zero.V, Sent: zero, Replayed: row.Scheduled.OK}
	r.PromptTokens, r.OutputTokens = row.PromptTokens, row.OutputTokens
	if r.Replayed {
		r.Zero, r.Sent = bound(row.Scheduled.V), clock(row.Sent)
		r.AskedPromptTokens, r.AskedOutputTokens = row.PromptTokens, row.OutputTokens
		r.PromptTokens, r.OutputTokens = row.ServedPromptTokens, row.ServedOutputTokens
		r.Lag = r.lag(row)
	}
	if !r.OutputTokens.OK && len(row.ChunkTokens) > 0 {
		sum := int64(0)
		for _, n := range row.ChunkTokens {
			sum += int64(max(n, 0))
		}
		r.OutputTokens = traceformat.Some(int32(min(math.MaxInt32, sum)))
	}
	if r.Sent.OK {
		r.TTFT, r.E2E = clock(row.TTFT), clock(row.E2E)
		if row.TTFTSource == traceformat.TTFTHeader {
			r.TTFT.OK = false
		}
	}
	if n := r.OutputTokens.Or(0); n > 1 && r.TTFT.OK && r.E2E.OK && r.E2E.V >= r.TTFT.V {
		r.TPOT = traceformat.Some((r.E2E.V - r.TTFT.V) / time.Duration(n-1))
	}
	switch {
	case row.Close.OK:
		r.End = clock(row.Close)
	case row.Abort.OK && r.Sent.OK:
		r.End = traceformat.Some(r.Sent.V + bound(row.Abort.V))
	case r.E2E.OK:
		r.End = traceformat.Some(r.Sent.V + r.E2E.V)
	}
	r.Class, r.Outcome, r.Error = classify(row, &r)
	return r
}

func classify(row *traceformat.Row, r *Reading) (c Class, outcome, class string) {
	switch row.Result {
	case "":
		if row.E2E.OK || row.TTFT.OK {
			return OK, "", ""
		}
		return Unknown, "", ""
	case traceformat.ResultTruncated:
		return Unknown, row.Result, row.Error
	case traceformat.ResultShed:
		return Shed, row.Result, row.Error
	case traceformat.ResultClientAbort:
		if !r.Replayed || row.Error == recordedAbort {
			return Aborted, row.Result, row.Error
		}
		return Failed, row.Result, row.Error
	case traceformat.ResultOK:
	default:
		return Failed, row.Result, row.Error
	}
	if !r.Replayed {
		return OK, "", ""
	}
	if f := row.FinishReason; f != "stop" && f != "length" {
		if f == "" {
			f = "none"
		}
		return Failed, BadFinish, f
	}
	if asked, ok := r.AskedOutputTokens.Get(); ok && r.OutputTokens.OK && r.OutputTokens.V != asked {
		if r.OutputTokens.V < asked {
			return Failed, WrongLength, "too_short"
		}
		return Failed, WrongLength, "too_long"
	}
	return OK, "", ""
}

// lag splits the send lag of a replayed row. A clock that is missing leaves its
// step to the next one.
func (r *Reading) lag(row *traceformat.Row) traceformat.Opt[Lag] {
	if !r.Sent.OK {
		return traceformat.Opt[Lag]{}
	}
	l := Lag{Total: r.Sent.V - r.Zero}
	at := r.Zero
	if wake, ok := clock(row.Wake).Get(); ok {
		l.Pacer, at = wake-at, wake
	}
	if conn, ok := clock(row.Conn).Get(); ok {
		wait := conn - at
		if at = conn; row.ConnReused.Or(true) {
			l.Queue = wait
		} else {
			l.Connect = wait
		}
	}
	l.Write = r.Sent.V - at
	return traceformat.Some(l)
}
