package metrics

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"reprise/internal/stats"
	"reprise/internal/units"
	"reprise/traceformat"
)

// Limits of a faithful run.
type Limits struct {
	// The send error's p99 may be SendErrorP99, and no more than
	// SendErrorTTFTShare of the median TTFT, which may not ask for better than
	// SendErrorFloor.
	SendErrorP99       time.Duration `json:"send_error_ns_p99"`
	SendErrorFloor     time.Duration `json:"send_error_ns_floor"`
	SendErrorTTFTShare float64       `json:"send_error_ttft_share"`
	// PromptShare is how far each prompt may be off, as a share of its tokens,
	// where prompts went as text. As token ids they may not be off at all.
	PromptShare float64 `json:"text_prompt_tokens_share"`
}

// DefaultLimits are 5 ms, 1 % of the median TTFT but at least 1 ms, and 1 % of
// the tokens of each prompt sent as text.
func DefaultLimits() Limits {
	return Limits{SendErrorP99: 5 * time.Millisecond, SendErrorFloor: time.Millisecond, SendErrorTTFTShare: 0.01, PromptShare: 0.01}
}

// sendError is the limit in force for a median TTFT.
func (l Limits) sendError(ttft traceformat.Opt[Nanos]) time.Duration {
	if !ttft.OK || ttft.V.IsInf() {
		return l.SendErrorP99
	}
	return min(l.SendErrorP99, max(l.SendErrorFloor, time.Duration(float64(ttft.V)*l.SendErrorTTFTShare)))
}

// Verdicts of a Fidelity.
const (
	Valid       = "valid"
	Invalid     = "invalid"
	NotReplayed = "not_replayed" // a capture: nothing was sent
)

// Who held up the sends of an invalid run.
const (
	ClientBottleneck  = "client"  // the sender: its pacer, its queue, its writes
	ConnectBottleneck = "connect" // opening connections to the server
)

// Fidelity says whether the run did what the trace says, and what speaks
// against it. Valid is false for a capture as well.
type Fidelity struct {
	Valid      bool     `json:"valid"`
	Verdict    string   `json:"verdict"`
	Reasons    []string `json:"reasons,omitempty"`
	Bottleneck string   `json:"bottleneck,omitempty"`

	// SendError is the p99 of |sent - scheduled|, below 100 requests the maximum,
	// and SendErrorLimit what it may be. It says what this run did and estimates
	// nothing, so that it takes fewer requests than the p99 of a Dist.
	SendError      traceformat.Opt[Nanos] `json:"send_error_ns,omitzero"`
	SendErrorOf    string                 `json:"send_error_of,omitempty"` // "p99" or "max"
	SendErrorLimit time.Duration          `json:"send_error_ns_limit"`
	Limits         Limits                 `json:"limits"`
}

func (c *Collector) fidelity(s *Summary) {
	f := &s.Fidelity
	f.Limits = c.conf.Limits
	if c.replays == 0 && c.conf.Planned == 0 {
		f.Verdict = NotReplayed
		return
	}
	bad := func(format string, a ...any) { f.Reasons = append(f.Reasons, fmt.Sprintf(format, a...)) }
	q := &s.Requests
	if q.Measured == 0 {
		bad("no request was scheduled inside the measured window")
	}
	if q.Shed > 0 {
		bad("shed %s of %s for want of room in flight: the server saw less than the trace holds", units.Count(q.Shed), plural(q.Measured, "request"))
	}
	if q.Unsent > 0 {
		bad("never sent %s of %s: the run was stopped", units.Count(q.Unsent), plural(q.Rows+q.Unsent, "request"))
	}
	for _, class := range slices.Sorted(maps.Keys(c.client)) {
		bad("this client could not send %s: %s", plural(c.client[class], "request"), class)
		f.Bottleneck = ClientBottleneck
	}
	c.punctual(s, bad)
	c.lengthsRight(s, bad)
	if f.Valid = len(f.Reasons) == 0; f.Valid {
		f.Verdict = Valid
	} else {
		f.Verdict = Invalid
	}
}

// punctual judges when requests were sent.
func (c *Collector) punctual(s *Summary, bad func(string, ...any)) {
	f := &s.Fidelity
	f.SendErrorLimit = f.Limits.sendError(s.TTFT.Send.P50)
	sent := s.SendLag.Error
	switch {
	case sent.N == 0:
		return
	case sent.N < 100:
		f.SendError, f.SendErrorOf = sent.Max, "max"
	case sent.P99.OK:
		f.SendError, f.SendErrorOf = sent.P99, "p99"
	default:
		v := c.values(sendError)
		slices.Sort(v)
		f.SendError, f.SendErrorOf = some(stats.Quantile(v, 0.99)), "p99"
	}
	if f.SendError.V <= Nanos(f.SendErrorLimit) {
		return
	}
	// What held up the late ones decides whom to blame.
	var l Lag
	if c.folded != nil {
		l = c.folded.late
	}
	for r := range c.records() {
		if r.flags&measured != 0 && r.figure(sendError) > f.SendErrorLimit {
			l.delayed(r)
		}
	}
	cause, most := "pacer", l.Pacer
	for _, k := range []struct {
		cause string
		d     time.Duration
	}{{"queue", l.Queue}, {"connect", l.Connect}, {"write", l.Write}} {
		if k.d > most {
			cause, most = k.cause, k.d
		}
	}
	what := map[string]string{
		"pacer": "the sender waking late", "queue": "waiting for a free connection",
		"connect": "opening connections", "write": "writing the request",
	}[cause]
	blame := "this client was the bottleneck"
	if f.Bottleneck == "" {
		f.Bottleneck = ClientBottleneck
	}
	if cause == "connect" {
		blame = "open more of them before the start, or look at the server's backlog"
		f.Bottleneck = ConnectBottleneck
	}
	bad("the send error's %s is %s, over the limit of %s; %s of the delay was %s: %s", f.SendErrorOf, f.SendError.V,
		units.Duration(f.SendErrorLimit), units.Percent(float64(most)/float64(max(1, l.Total))), what, blame)
}

// lengthsRight judges what was sent and what came back.
func (c *Collector) lengthsRight(s *Summary, bad func(string, ...any)) {
	p, o := &s.Lengths.Prompt, &s.Lengths.Output
	switch off := p.Verified - p.Exact; {
	case off == 0:
	case c.conf.TokenIDs:
		bad("%s of %s had another length at the server, by up to %s", units.Count(off), plural(p.Verified, "prompt"), plural(p.MaxError, "token"))
	default:
		if p.Over > 0 {
			bad("%s of %s off by more than %s of its tokens, by up to %s", units.Count(p.Over), plural(p.Verified, "prompt"),
				units.Percent(s.Fidelity.Limits.PromptShare), plural(p.MaxError, "token"))
		}
	}
	if off := o.Verified - o.Exact; off > 0 {
		bad("%s of %s had another length than asked for, by up to %s", units.Count(off), plural(o.Verified, "answer"), plural(o.MaxError, "token"))
	}
	if c.conf.TokenIDs && p.Unverified+o.Unverified > 0 {
		bad("the server told no token count of %s: lengths are unverified", plural(max(p.Unverified, o.Unverified), "answer"))
	}
}
