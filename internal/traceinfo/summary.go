package traceinfo

import (
	"fmt"
	"math"
	"time"

	"reprise/internal/stats"
	"reprise/internal/units"
	"reprise/traceformat"
)

// topNames is how many names of a column an Info lists.
const topNames = 10

// info turns the tallies into figures.
func (t *tallies) info(h *traceformat.Header) *Info {
	a := t.arrivals
	in := &Info{
		Header: h, Rows: a.rows, Span: a.last - a.first,
		Arrivals:  Arrivals{First: a.first, Last: a.last, Distinct: a.distinct, Tick: a.tick(), Backwards: a.backwards},
		Clients:   t.clients.top(topNames),
		Models:    t.models.top(topNames),
		Endpoints: t.endpoints.top(topNames),
		Classes:   t.classes.top(topNames),
		Limits:    t.limits,
		Prompt:    t.prompt.summary(&t.promptSource),
		Output:    t.output.summary(&t.outputFrom),
	}
	if s := in.Span.Seconds(); s > 0 {
		in.Rate = float64(a.rows) / s
		if t.prompt.known+t.output.known > 0 {
			in.Tokens = &TokenRates{Prompt: t.prompt.sum / s, Output: t.output.sum / s}
		}
	}
	if a.backwards == 0 {
		in.arrivals(a)
	}
	if t.prefixRows > 0 {
		in.Prefix = t.prefixInfo(h.Blocks)
	}
	if t.sessions.rows > 0 {
		t.sessions.close(t.sessions.old)
		t.sessions.close(t.sessions.young)
		t.sessions.old, t.sessions.young = nil, nil
		in.Sessions = &Sessions{Sessions: t.sessions.turns.known, AtMost: t.sessions.split, Rows: t.sessions.rows,
			Turns: t.sessions.turns.summary(nil), Think: quantiles(t.think), Parents: t.parents}
	}
	if t.outcomes > 0 {
		in.Outcomes = t.outcomeInfo(in.Span)
	}
	if t.replayed > 0 {
		in.Replay = &Replay{Rows: t.replayed, Lag: quantiles(t.lag)}
	}
	in.Support = t.support(in)
	return in
}

// arrivals fills in what only sorted rows can tell.
func (in *Info) arrivals(a *arrivals) {
	gaps := a.gap.Moments()
	if cv := gaps.CV(); gaps.N() > 1 && !math.IsNaN(cv) {
		q := quantiles(a.gap)
		in.Arrivals.GapCV, in.Arrivals.GapP50, in.Arrivals.GapP99, in.Arrivals.GapMax = &cv, q.P50, q.P99, q.Max
	}
	for i, b := range a.bursts {
		counts, idc := b.Counts(), b.Index()
		if math.IsNaN(idc) {
			continue
		}
		if windows[i] == time.Second {
			in.PeakRate = int64(counts.Max())
		}
		in.Burstiness = append(in.Burstiness, Burst{Window: windows[i], IDC: idc, Complete: counts.N(),
			Artefact: artefact(windows[i], in.Header.Clock, in.Arrivals)})
	}
}

func quantiles(h *stats.Hist) *TimeQuantiles {
	if h.N() == 0 {
		return nil
	}
	m := h.Moments()
	at := func(p float64) time.Duration {
		// A Hist does not tell times below its resolution apart and gives the
		// upper end of its lowest class, 511 ns, for a gap of nothing.
		if d := time.Duration(h.Quantile(p)); d >= stats.HistMin {
			return d
		}
		return 0
	}
	return &TimeQuantiles{Known: h.N(), P5: at(0.05), P50: at(0.5), P90: at(0.9), P99: at(0.99), Max: time.Duration(m.Max())}
}

// coarse is the tick of the clock as far as it shapes the arrivals: what the
// header says, or what the stamps show from a millisecond on.
func coarse(c traceformat.Clock, a Arrivals) time.Duration {
	if a.Tick >= time.Millisecond && c.Dequantised == "" {
		return max(a.Tick, c.Tick)
	}
	return c.Tick
}

// artefact says why burstiness at window w is that of the clock: a window that
// is shorter than two ticks is either empty or holds a whole tick's arrivals.
func artefact(w time.Duration, c traceformat.Clock, a Arrivals) string {
	tick := coarse(c, a)
	switch {
	case w >= 2*tick:
		return ""
	case c.Dequantised != "":
		return fmt.Sprintf("arrivals were spread over ticks of %s", units.Duration(tick))
	default:
		return fmt.Sprintf("the clock ticks every %s", units.Duration(tick))
	}
}

func (l *lengths) summary(sources *names) *Lengths {
	if l.known == 0 {
		return nil
	}
	q := l.quantiles(quantileShares)
	out := &Lengths{
		Known: l.known, Unknown: l.unknown, Total: int64(l.sum), Mean: l.sum / float64(l.known), Min: l.min,
		P5: q[0], P25: q[1], P50: q[2], P75: q[3], P90: q[4], P95: q[5], P99: q[6], P999: q[7], Max: l.max,
		Atoms: l.atoms(4, 10, 0.005),
	}
	if len(l.counts) > 0 {
		out.Zero = l.counts[0]
	}
	if c, ok := l.limit(); ok {
		out.Cap = &c
	}
	if sources != nil {
		out.Sources = sources.top(topNames)
	}
	return out
}

func (t *tallies) prefixInfo(b traceformat.Blocks) *Prefix {
	s := t.prefix
	p := &Prefix{Rows: t.prefixRows, UniqueAtLeast: s.c.evicted}
	p.Blocks, p.Unique = s.counts()
	p.Sharing, p.Deeper = s.rowsSharing()
	if s.sampling {
		p.Sample = &Sample{Rate: sampleRate, After: s.firstRows}
	}
	for i := range s.c.hits {
		size := 0
		switch {
		case i < len(s.sizes):
			size = s.sizes[i]
		case s.c.evicted:
			size = s.remembered()
		}
		h := Hit{Blocks: size, Tokens: int64(size) * int64(b.Size)}
		h.Share, h.Margin = s.share(i)
		p.Hits = append(p.Hits, h)
	}
	return p
}

func (t *tallies) outcomeInfo(span time.Duration) *Outcomes {
	o := &Outcomes{
		Rows: t.outcomes, Results: t.results.top(topNames), Errors: t.errors.top(topNames), Finish: t.finish.top(topNames),
		TTFT: quantiles(t.ttft), TTFTSources: t.ttftSources.top(topNames), E2E: quantiles(t.e2e),
		Chunks: t.chunks, CachedTokens: t.cached.summary(nil), Aborted: t.aborted,
	}
	// Unsorted rows and more requests than are followed leave no figure.
	if f := &t.flights; f.known > 0 && !f.overflow && t.arrivals.backwards == 0 {
		f.finish()
		o.InFlight = &InFlight{Rows: f.known, Peak: f.peak, PeakAt: f.peakAt}
		if span > 0 {
			o.InFlight.Mean = f.busy / span.Seconds()
		}
	}
	return o
}

// visibleTick is the tick from which a server feels that requests come together
// which did not: about the time of a step of its engine.
const visibleTick = 10 * time.Millisecond

// support judges what the trace can be used for.
func (t *tallies) support(in *Info) []Support {
	h, rows := in.Header, in.Rows
	var out []Support
	say := func(what, can, why, next string) {
		out = append(out, Support{For: what, Can: can, Why: why, Next: next})
	}
	of := func(n int64, what string) string {
		return fmt.Sprintf("%s of %s rows %s", units.Count(n), units.Count(rows), what)
	}
	if rows == 0 {
		say("anything", "no", "the trace has no rows", "")
		return out
	}

	const timing = "replay with the recorded timing"
	tick := coarse(h.Clock, in.Arrivals)
	perTick := float64(rows) / float64(in.Arrivals.Distinct)
	switch {
	case in.Span == 0:
		say(timing, "no", "all rows arrive at the same time", "")
	case in.Arrivals.Backwards > 0:
		say(timing, "partly", of(in.Arrivals.Backwards, "arrive before the row above"), "trace convert sorts them")
	case h.Clock.Dequantised != "":
		say(timing, "yes", fmt.Sprintf("arrivals were spread over ticks of %s: gaps below that are made up", units.Duration(tick)), "")
	case tick >= visibleTick && perTick >= 1.05:
		say(timing, "partly", fmt.Sprintf("the clock ticks every %s and %.1f rows share a stamp: bursts are artefacts", units.Duration(tick), perTick),
			"read the source with --dequantise")
	default:
		say(timing, "yes", fmt.Sprintf("%s distinct arrivals", units.Count(in.Arrivals.Distinct)), "")
	}

	const exact = "replay with exact token counts"
	noPrompt, noOutput := t.prompt.unknown, t.output.unknown
	guessed := t.promptSource.rows[traceformat.SourceBytes] + t.outputFrom.rows[traceformat.SourceBytes] +
		t.promptSource.rows[traceformat.SourceEvents] + t.outputFrom.rows[traceformat.SourceEvents]
	switch {
	case noPrompt == rows || noOutput == rows:
		missing := "prompt"
		if noPrompt < rows {
			missing = "output"
		}
		say(exact, "no", missing+" lengths are unknown", "")
	case noPrompt+noOutput > 0:
		say(exact, "partly", fmt.Sprintf("prompt lengths unknown on %s and output lengths on %s of %s rows", units.Count(noPrompt), units.Count(noOutput), units.Count(rows)), "")
	case guessed > 0:
		say(exact, "partly", fmt.Sprintf("%s lengths were estimated from bytes or counted by events", units.Count(guessed)), "")
	default:
		say(exact, "yes", "prompt and output lengths are known on every row", "")
	}

	const reuse = "KV cache reuse"
	switch {
	case in.Prefix == nil:
		say(reuse, "no", "no block ids: prompts share nothing", "")
	case h.Blocks.Size == 0:
		say(reuse, "partly", "the header does not say how many tokens a block has", "")
	case in.Prefix.Rows < rows:
		say(reuse, "partly", of(rows-in.Prefix.Rows, "have no block ids"), "")
	case h.Blocks.Partial == traceformat.PartialUnknown:
		say(reuse, "partly", "the header does not say what became of a partial last block", "")
	default:
		say(reuse, "yes", fmt.Sprintf("block ids of %d tokens, partial last block %s", h.Blocks.Size, h.Blocks.Partial), "")
	}

	const turns = "conversations"
	switch {
	case in.Sessions == nil:
		say(turns, "no", "no session ids", "")
	case h.Lengths == traceformat.LengthsUnknown:
		say(turns, "partly", "the header does not say whether a later turn's prompt length counts the earlier ones", "read the source with --lengths")
	case in.Sessions.Sessions == in.Sessions.Rows:
		say(turns, "partly", "every session has one turn", "")
	case in.Sessions.Think == nil:
		say(turns, "partly", "no think times: turns can follow the recorded times alone", "")
	default:
		say(turns, "yes", "turns and think times are known", "")
	}

	const compare = "comparison with what was recorded"
	switch {
	case in.Outcomes == nil:
		say(compare, "no", "no outcomes: the trace says what was asked and not what came of it", "")
	case in.Outcomes.TTFT == nil && in.Outcomes.E2E == nil:
		say(compare, "partly", "outcomes without latencies", "")
	case in.Outcomes.TTFT == nil:
		say(compare, "partly", "end-to-end times without TTFT", "")
	case t.ttftSources.rows[traceformat.TTFTHeader]+t.ttftSources.rows[traceformat.TTFTFirstByte] > 0:
		say(compare, "partly", "TTFT was taken at the header or the first byte on some rows, which is before the first token", "")
	case in.Outcomes.TTFT.Known < rows:
		say(compare, "partly", of(in.Outcomes.TTFT.Known, "have a TTFT"), "")
	default:
		say(compare, "yes", "TTFT is known on every row", "")
	}
	if in.Outcomes != nil {
		switch {
		case t.chunks == 0:
			say("inter-token latency", "no", "no times of single chunks", "")
		case t.chunks < rows:
			say("inter-token latency", "partly", of(t.chunks, "have the times of their chunks"), "")
		default:
			say("inter-token latency", "yes", "every row has the times of its chunks", "")
		}
	}

	switch {
	case in.Clients == nil:
		say("fairness between clients", "no", "no client ids", "")
	case in.Clients.Distinct == 1:
		say("fairness between clients", "no", "all requests come from one client", "")
	default:
		say("fairness between clients", "yes", fmt.Sprintf("%s clients", units.Count(int64(in.Clients.Distinct))), "")
	}
	if r := h.Sampling.Rate; r > 0 && r < 1 {
		say("load as it was", "partly", fmt.Sprintf("%s of the traffic was recorded: rates are a share, bursts are thinned", units.Percent(r)), "")
	}
	if d := dropped(h.Rows); d > 0 {
		say("load as it was", "partly", fmt.Sprintf("%s of %s requests were dropped while recording", units.Count(d), units.Count(h.Rows.Seen)), "")
	}
	if h.Partial != "" {
		say("the whole recording", "no", "the file is partial: "+h.Partial, "")
	}
	return out
}

func dropped(c traceformat.Counts) int64 {
	n := int64(0)
	for _, d := range c.Dropped {
		n += d
	}
	return n
}
