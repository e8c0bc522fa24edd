package metrics

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"reprise/internal/stats"
	"reprise/internal/units"
	"reprise/traceformat"
)

// A Summary holds every figure of a run. Unless a field says otherwise, its
// figures are of the requests scheduled inside the window. In JSON a path from
// the outside in reads as one name: ttft_ns.from_schedule.p99.
type Summary struct {
	Fidelity Fidelity `json:"fidelity"`
	Window   Window   `json:"window"`
	Requests Requests `json:"requests"`
	Rates    Rates    `json:"rates"`
	InFlight InFlight `json:"in_flight"`

	TTFT     Latency `json:"ttft_ns"`
	E2E      Latency `json:"e2e_ns"`
	TPOT     Dist    `json:"tpot_ns"`
	ITL      Dist    `json:"itl_ns"`       // pooled over tokens; n counts tokens
	EventGap Dist    `json:"event_gap_ns"` // pooled over events
	// FailedAfter is how long failures took to fail, from the schedule: their
	// latencies are censored there.
	FailedAfter Dist `json:"failed_after_ns"`

	SendLag SendLag `json:"send_lag_ns"`
	Tokens  Tokens  `json:"tokens"`
	Lengths Lengths `json:"lengths"`
	// Goodput is nil where no SLO was set.
	Goodput  *Goodput `json:"goodput,omitempty"`
	Timeline []Bin    `json:"timeline,omitempty"`
	Warnings []string `json:"warnings,omitempty"`
}

// A Window is the measured interval, both ends included, in run time.
type Window struct {
	From   time.Duration `json:"from_ns"`
	To     time.Duration `json:"to_ns"`
	Length time.Duration `json:"length_ns"`
	// RunLength is from the first scheduled request to the last token, warm-up
	// and drain included.
	RunLength time.Duration `json:"run_length_ns"`
}

// Requests counts ends. Measured = OK + Failed + Shed + Aborted + Unknown.
type Requests struct {
	Rows     int64 `json:"rows"`   // all that were collected
	Warmup   int64 `json:"warmup"` // scheduled before the window
	After    int64 `json:"after"`  // scheduled behind it
	Measured int64 `json:"measured"`
	OK       int64 `json:"ok"`
	Failed   int64 `json:"failed"`
	Shed     int64 `json:"shed"`    // not sent, for want of room in the sender
	Aborted  int64 `json:"aborted"` // the recorded user hung up
	Unknown  int64 `json:"unknown"` // without an outcome, or with a cut one
	Unsent   int64 `json:"unsent"`  // planned and never due, because the run was stopped
	// Failures are those behind Failed, by class, most frequent first.
	Failures []Failure `json:"failures,omitempty"`
}

// A Failure is one way to fail.
type Failure struct {
	Outcome string `json:"outcome"`
	Error   string `json:"error,omitempty"`
	N       int64  `json:"n"`
}

// Rates are per second of the window.
type Rates struct {
	Offered      float64 `json:"requests_per_second_offered"`
	Sent         float64 `json:"requests_per_second_sent"`
	Completed    float64 `json:"requests_per_second_completed"`
	OutputTokens float64 `json:"output_tokens_per_second"`
	TotalTokens  float64 `json:"total_tokens_per_second"` // prompts as well
	// RunOutputTokens is over the whole run, warm-up and drain included.
	RunOutputTokens float64 `json:"run_output_tokens_per_second"`
}

// InFlight counts requests sent and not yet ended, warm-up included.
type InFlight struct {
	Peak int64   `json:"peak"`
	Mean float64 `json:"mean"` // over the window
}

// A Latency is one metric as seen from several places.
type Latency struct {
	Schedule     Dist `json:"from_schedule"` // successes, from time zero
	Send         Dist `json:"from_send"`     // the service's share: the same requests, from the actual send; empty for a capture
	WithFailures Dist `json:"with_failures"` // from time zero, a failure as infinite; empty where nothing failed
}

// SendLag is sent - scheduled of every request that was sent, by cause.
type SendLag struct {
	Error   Dist `json:"error"` // |sent - scheduled|
	Pacer   Dist `json:"pacer"`
	Queue   Dist `json:"queue"`
	Connect Dist `json:"connect"`
	Write   Dist `json:"write"`
	// Dialed counts requests that opened a connection.
	Dialed int64 `json:"connections_opened"`
}

// Tokens are sums over the measured requests.
type Tokens struct {
	PromptAsked int64 `json:"prompt_asked"`
	OutputAsked int64 `json:"output_asked"`
	Prompt      int64 `json:"prompt"` // as the server counted
	Output      int64 `json:"output"` // received, of failures too
	Reasoning   int64 `json:"reasoning"`
	Cached      int64 `json:"cached"`
	CachedOf    int64 `json:"cached_of"` // prompt tokens of the requests whose cached tokens are known
}

// CacheHit is the share of prompt tokens that came from the prefix cache; NaN
// where the server does not say.
func (t *Tokens) CacheHit() float64 { return float64(t.Cached) / float64(t.CachedOf) }

// Lengths compares what was asked for with what was served, over completed
// answers of a replay.
type Lengths struct {
	Prompt Length `json:"prompt_tokens"`
	Output Length `json:"output_tokens"`
}

// A Length compares one kind of count, request by request.
type Length struct {
	Verified   int64 `json:"requests_verified"`
	Unverified int64 `json:"requests_unverified"` // the server told no count
	Exact      int64 `json:"requests_exact"`
	Asked      int64 `json:"asked"`  // sum over verified
	Served     int64 `json:"served"` // sum over verified
	MaxError   int64 `json:"error_max"`
	Over       int64 `json:"requests_over_limit"` // off by more than Limits.PromptShare of what was asked
}

// Goodput counts requests that met every SLO.
type Goodput struct {
	Requests float64  `json:"requests_per_second"`
	Met      int64    `json:"requests_met"`
	Of       int64    `json:"requests_of"` // measured and unsent ones; hang-ups of users and unknown ends left out
	Share    float64  `json:"share"`
	SLOs     []SLOMet `json:"slos"`
}

// An SLOMet says how many requests met one SLO.
type SLOMet struct {
	SLO SLO   `json:"slo"`
	Met int64 `json:"requests_met"`
}

// A Bin is a part of the window, by time zero of the requests.
type Bin struct {
	From     time.Duration          `json:"from_ns"`
	Requests int64                  `json:"requests"`
	OK       int64                  `json:"ok"`
	TTFT     traceformat.Opt[Nanos] `json:"ttft_ns_p50,omitzero"`
	TTFTMax  traceformat.Opt[Nanos] `json:"ttft_ns_max,omitzero"`
}

// maxBins is the number of parts that a Timeline has at most.
const maxBins = 60

// Summary computes every figure over the rows so far. Rows may be added
// afterwards, and Summary asked again.
func (c *Collector) Summary() *Summary {
	c.flow.settle()
	s := &Summary{Tokens: c.tokens, Lengths: c.lengths}
	s.Window = Window{From: c.conf.From, To: c.flow.to, Length: max(0, c.flow.to-c.conf.From)}
	if c.flow.events {
		s.Window.RunLength = max(0, c.flow.last-c.flow.first)
	}
	c.requests(s)
	c.latencies(s)
	c.rates(s)
	c.inFlight(s)
	c.goodput(s)
	c.timeline(s)
	c.warnings(s)
	c.fidelity(s)
	return s
}

func (c *Collector) requests(s *Summary) {
	s.Requests = c.ends
	q := &s.Requests
	q.Unsent = max(0, c.conf.Planned-q.Rows)
	for f, n := range c.failed {
		q.Failures = append(q.Failures, Failure{f.outcome, f.error, n})
	}
	slices.SortFunc(q.Failures, func(a, b Failure) int {
		return cmp.Or(cmp.Compare(b.N, a.N), cmp.Compare(a.Outcome, b.Outcome), cmp.Compare(a.Error, b.Error))
	})
}

// dist sums up one figure of the measured rows that have it; failures stand for
// that many infinite ones.
func (c *Collector) dist(figure int, failures int64) Dist {
	if c.folded != nil {
		return histDist(c.folded.dist[figure], c.folded.dist[figure].N(), failures)
	}
	return exactDist(c.values(figure), failures)
}

// values gathers one figure of the measured rows that have it, while all rows
// are kept.
func (c *Collector) values(figure int) []float64 {
	var v []float64
	for r := range c.records() {
		if r.flags&measured == 0 {
			continue
		}
		if d := r.figure(figure); d != none {
			v = append(v, float64(d))
		}
	}
	return v
}

func (c *Collector) latencies(s *Summary) {
	failures := s.Requests.Failed + s.Requests.Shed + s.Requests.Unsent
	latency := func(schedule, send int) (l Latency) {
		l.Schedule = c.dist(schedule, 0)
		if failures > 0 {
			l.WithFailures = c.dist(schedule, failures)
		}
		l.Send = c.dist(send, 0)
		return l
	}
	s.TTFT = latency(ttftSchedule, ttftSend)
	s.E2E = latency(e2eSchedule, e2eSend)
	s.TPOT = c.dist(tpot, 0)
	s.ITL = histDist(c.itl, c.itlN, 0)
	if c.noITL > 0 {
		s.ITL.Warnings = append(s.ITL.Warnings, fmt.Sprintf("left out %s: how many tokens each event carried is unknown", plural(c.noITL, "request")))
	}
	s.EventGap = histDist(c.gaps, c.gaps.N(), 0)
	s.FailedAfter = c.dist(failedAfter, 0)
	s.SendLag = SendLag{
		Error: c.dist(sendError, 0),
		Pacer: c.dist(pacerLag, 0), Queue: c.dist(queueLag, 0), Connect: c.dist(connectLag, 0), Write: c.dist(writeLag, 0),
	}
	s.SendLag.Dialed = s.SendLag.Connect.N
}

func (r *record) sendError() time.Duration { return max(r.lag, -r.lag) }
func (r *record) write() time.Duration     { return r.lag - r.pacer - r.conn }

func (r *record) tpot() time.Duration {
	if r.out < 2 || r.ttft == none || r.e2e == none || r.e2e < r.ttft {
		return none
	}
	return (r.e2e - r.ttft) / time.Duration(r.out-1)
}

func (c *Collector) rates(s *Summary) {
	if sec := s.Window.RunLength.Seconds(); sec > 0 {
		s.Rates.RunOutputTokens = float64(c.flow.all.output) / sec
	}
	sec := s.Window.Length.Seconds()
	if sec <= 0 {
		return
	}
	s.Rates.Offered = float64(s.Requests.Measured) / sec
	s.Rates.Sent, s.Rates.Completed = float64(c.flow.in.sent)/sec, float64(c.flow.in.completed)/sec
	s.Rates.OutputTokens = float64(c.flow.in.output) / sec
	s.Rates.TotalTokens = float64(c.flow.in.output+c.flow.in.prompt) / sec
}

func (c *Collector) inFlight(s *Summary) {
	if f := c.folded; f != nil {
		s.InFlight.Peak = f.flight.peak()
		if s.Window.Length > 0 {
			s.InFlight.Mean = f.flight.busy(s.Window.From, s.Window.To).Seconds() / s.Window.Length.Seconds()
		}
		return
	}
	var begins, ends []time.Duration
	var busy time.Duration
	for r := range c.records() {
		if r.lag == none || r.end == none {
			continue
		}
		begin := r.zero + r.lag
		end := max(begin, r.end)
		begins, ends = append(begins, begin), append(ends, end)
		busy += max(0, min(end, s.Window.To)-max(begin, s.Window.From))
	}
	slices.Sort(begins)
	slices.Sort(ends)
	// One that ends as another begins has left.
	for i, done := 0, 0; i < len(begins); i++ {
		for done < len(ends) && ends[done] <= begins[i] {
			done++
		}
		s.InFlight.Peak = max(s.InFlight.Peak, int64(i+1-done))
	}
	if s.Window.Length > 0 {
		s.InFlight.Mean = busy.Seconds() / s.Window.Length.Seconds()
	}
}

func (c *Collector) goodput(s *Summary) {
	if len(c.conf.SLOs) == 0 {
		return
	}
	g := &Goodput{Of: s.Requests.Measured - s.Requests.Aborted - s.Requests.Unknown + s.Requests.Unsent}
	for i, slo := range c.conf.SLOs {
		g.SLOs = append(g.SLOs, SLOMet{SLO: slo, Met: c.met[i]})
	}
	g.Met = c.metAll
	if g.Of > 0 {
		g.Share = float64(g.Met) / float64(g.Of)
	}
	if sec := s.Window.Length.Seconds(); sec > 0 {
		g.Requests = float64(g.Met) / sec
	}
	s.Goodput = g
}

func (c *Collector) timeline(s *Summary) {
	if s.Window.Length <= 0 || s.Requests.Measured == 0 {
		return
	}
	if c.folded != nil {
		s.Timeline = c.folded.bins.timeline()
		return
	}
	// No more bins than a handful of requests each, so that a median means
	// something.
	n := int(min(maxBins, max(1, s.Requests.Measured/4)))
	width := s.Window.Length/time.Duration(n) + 1
	s.Timeline = make([]Bin, n)
	values := make([][]float64, n)
	for r := range c.records() {
		if r.flags&measured == 0 {
			continue
		}
		k := int((r.zero - s.Window.From) / width)
		s.Timeline[k].Requests++
		if r.class == OK {
			s.Timeline[k].OK++
			if r.ttft != none {
				values[k] = append(values[k], float64(r.ttft+r.lag))
			}
		}
	}
	for k := range s.Timeline {
		b := &s.Timeline[k]
		b.From = s.Window.From + time.Duration(k)*width
		slices.Sort(values[k])
		if v := values[k]; len(v) > 0 {
			b.TTFT, b.TTFTMax = some(stats.Quantile(v, 0.5)), some(v[len(v)-1])
		}
	}
}

func (c *Collector) warnings(s *Summary) {
	warn := func(format string, a ...any) { s.Warnings = append(s.Warnings, fmt.Sprintf(format, a...)) }
	q := &s.Requests
	if q.Measured > 0 && s.Window.Length <= 0 {
		warn("all requests are scheduled at one moment: there is no window to take rates over, but for the whole run's")
	}
	if bad := q.Failed + q.Shed; bad > 0 && q.OK > 0 {
		warn("latencies are of successes; %s failed or shed count as infinite where the figure says so", plural(bad, "request"))
	}
	if q.Unsent > 0 {
		warn("%s never sent, as the run was stopped", plural(q.Unsent, "planned request"))
	}
	if c.folded != nil {
		warn("percentiles are to 3 digits, and the peak in flight as of every %s: %s are more than are kept one by one",
			units.Duration(c.folded.flight.width), plural(q.Rows, "request"))
	}
	if q.Unknown > 0 {
		warn("%s without an outcome, or with a cut one, in no latency", plural(q.Unknown, "request"))
	}
	if c.flow.spread > 0 {
		warn("tokens/s spread the tokens of %s evenly: when they came, or in which event, was not recorded", plural(c.flow.spread, "request"))
	}
	if drain := s.Window.RunLength - (s.Window.To - c.flow.first); c.flow.events && s.Window.Length > 0 && drain > s.Window.Length {
		warn("the answers took longer to drain (%s) than the window is long (%s): its tokens/s are of the ramp-up",
			units.Duration(drain), units.Duration(s.Window.Length))
	}
	for _, l := range []struct {
		what string
		l    *Length
	}{{"prompt", &s.Lengths.Prompt}, {"output", &s.Lengths.Output}} {
		if l.l.Unverified > 0 {
			warn("the server told no %s token count of %s", l.what, plural(l.l.Unverified, "answer"))
		}
	}
	if t := &s.Tokens; t.CachedOf > 0 && t.Cached > t.CachedOf {
		warn("the server reports more cached tokens (%s) than prompt tokens (%s)", units.Count(t.Cached), units.Count(t.CachedOf))
	}
	if math.IsNaN(s.Tokens.CacheHit()) && c.replays > 0 && q.OK > 0 {
		warn("the server does not say how many prompt tokens came from its prefix cache")
	}
}

// plural prints "1 request", "1,200 requests".
func plural(n int64, what string) string {
	if n != 1 {
		what += "s"
	}
	return units.Count(n) + " " + what
}
