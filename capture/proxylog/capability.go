package proxylog

import (
	"fmt"
	"strings"
	"time"

	"reprise/capture"
)

// A Capability says what a log can tell of requests, before it is imported.
type Capability struct {
	Dialect string `json:"dialect"`
	// Arrival is what arrivals resolve, in nanoseconds in JSON.
	Arrival time.Duration `json:"arrival_resolution_ns"`
	// ArrivalFrom says what arrivals are made of: "start", "end - duration" or
	// "end".
	ArrivalFrom string `json:"arrival_from"`
	// TTFT is "no", or where it comes from: engine, gateway, header.
	TTFT     string `json:"ttft"`
	Duration bool   `json:"duration"`
	Tokens   bool   `json:"tokens"`
	Cached   bool   `json:"cached_tokens"`
	Model    bool   `json:"model"`
	Client   bool   `json:"client"`
	Session  bool   `json:"session"`
	Prefix   bool   `json:"prefix_blocks"`
	Aborts   bool   `json:"aborts"`
	Status   bool   `json:"status"`
	// Notes are what is worth knowing besides: losses, and how to lose less.
	Notes []string `json:"notes,omitempty"`
}

// String is the capability on one line, as in "arrivals at 1 ms, no TTFT, aborts
// yes, tokens no".
func (c Capability) String() string {
	yes := func(v bool) string {
		if v {
			return "yes"
		}
		return "no"
	}
	ttft := "no TTFT"
	switch c.TTFT {
	case "engine", "gateway":
		ttft = "TTFT by the " + c.TTFT
	case "header":
		ttft = "the head's time for a TTFT"
	}
	arrival := resolution(c.Arrival)
	switch c.ArrivalFrom {
	case "end - duration":
		arrival += " (end minus duration)"
	case "end":
		arrival += " (of the END of requests)"
	}
	return fmt.Sprintf("arrivals at %s, %s, durations %s, aborts %s, tokens %s, cached tokens %s, model %s, clients %s, sessions %s, prefix blocks %s",
		arrival, ttft, yes(c.Duration), yes(c.Aborts), yes(c.Tokens), yes(c.Cached), yes(c.Model), yes(c.Client), yes(c.Session), yes(c.Prefix))
}

func resolution(d time.Duration) string {
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{time.Second, "s"}, {time.Millisecond, "ms"}, {time.Microsecond, "µs"}} {
		if d >= u.unit && d%u.unit == 0 {
			return fmt.Sprintf("%d %s", d/u.unit, u.name)
		}
	}
	return fmt.Sprintf("%d ns", d)
}

// coverage counts what the rows of an import have in fact.
type coverage struct {
	rows, ttft, prompt, output, model, client, session, prefix, aborts, e2e int64
}

func (c *coverage) add(l *capture.Logged) {
	c.rows++
	count := func(n *int64, ok bool) {
		if ok {
			*n++
		}
	}
	r := &l.Row
	count(&c.ttft, r.TTFT.OK)
	count(&c.prompt, r.PromptTokens.OK)
	count(&c.output, r.OutputTokens.OK)
	count(&c.model, r.Model != "")
	count(&c.client, l.Client != "")
	count(&c.session, l.Session != "")
	count(&c.prefix, l.PrefixHashes != nil)
	count(&c.aborts, r.Abort.OK)
	count(&c.e2e, r.E2E.OK)
}

// String names the share of rows that have each thing, and leaves out what none
// has.
func (c *coverage) String() string {
	var parts []string
	for _, f := range []struct {
		name string
		n    int64
	}{
		{"prompt tokens", c.prompt}, {"output tokens", c.output}, {"TTFT", c.ttft}, {"duration", c.e2e}, {"model", c.model},
		{"client", c.client}, {"session", c.session}, {"prefix blocks", c.prefix}, {"aborted", c.aborts},
	} {
		if f.n > 0 {
			parts = append(parts, fmt.Sprintf("%s %.4g %%", f.name, 100*float64(f.n)/float64(c.rows)))
		}
	}
	if parts == nil {
		return "nothing but arrivals"
	}
	return strings.Join(parts, ", ")
}
