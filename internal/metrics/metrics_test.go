package metrics

import (
	"encoding/json"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"reprise/traceformat"
)

const (
	ms1 = time.Millisecond
	s1  = time.Second
)

type duration = traceformat.Opt[time.Duration]

func known(d time.Duration) duration { return traceformat.Some(d) }

// event is a token-bearing event: so long after the send, so many tokens.
type event struct {
	at     time.Duration
	tokens int32
}

// sent is a replayed request that asked for 100 prompt tokens and what events
// bring, was sent on time over an open connection and succeeded. Tests bend it.
func sent(at time.Duration, events ...event) *traceformat.Row {
	r := &traceformat.Row{}
	r.Arrival = at
	r.Scheduled, r.Wake, r.Conn, r.Sent = known(at), known(at), known(at), known(at)
	r.ConnReused = traceformat.Some(true)
	n := int32(0)
	for _, e := range events {
		n += e.tokens
		r.ChunkTimes, r.ChunkTokens = append(r.ChunkTimes, e.at), append(r.ChunkTokens, e.tokens)
	}
	r.PromptTokens, r.OutputTokens = traceformat.Some(int32(100)), traceformat.Some(n)
	r.ServedPromptTokens, r.ServedOutputTokens = r.PromptTokens, r.OutputTokens
	r.Result, r.FinishReason, r.Status = traceformat.ResultOK, "length", traceformat.Some(int16(200))
	if len(events) > 0 {
		r.TTFT, r.TTFTSource = known(events[0].at), traceformat.TTFTContentEvent
		r.E2E = known(events[len(events)-1].at)
		r.FirstEvent = known(at + events[0].at)
		r.Close = known(at + r.E2E.V + ms1)
	}
	return r
}

func late(r *traceformat.Row, pacer, conn, write time.Duration) *traceformat.Row {
	shift := pacer + conn + write
	r.Wake.V += pacer
	r.Conn.V += pacer + conn
	r.Sent.V += shift
	r.FirstEvent.V += shift
	r.Close.V += shift
	return r
}

func with(r *traceformat.Row, bend func(*traceformat.Row)) *traceformat.Row {
	bend(r)
	return r
}

func failed(r *traceformat.Row, result, class string) *traceformat.Row {
	r.Result, r.Error, r.FinishReason = result, class, ""
	r.ServedOutputTokens = traceformat.Opt[int32]{}
	return r
}

func shed(at time.Duration) *traceformat.Row {
	r := sent(at)
	r.Wake, r.Conn, r.Sent, r.ConnReused, r.Status = duration{}, duration{}, duration{}, traceformat.Opt[bool]{}, traceformat.Opt[int16]{}
	r.OutputTokens, r.ServedPromptTokens = traceformat.Some(int32(10)), traceformat.Opt[int32]{}
	return failed(r, traceformat.ResultShed, "max_in_flight")
}

func collect(c Config, rows ...*traceformat.Row) *Summary {
	col := NewCollector(c)
	for _, r := range rows {
		col.Add(r)
	}
	return col.Summary()
}

func TestMeasure(t *testing.T) {
	three := func() *traceformat.Row {
		return sent(s1, event{100 * ms1, 1}, event{150 * ms1, 3}, event{210 * ms1, 2})
	}
	tests := []struct {
		name string
		row  *traceformat.Row
		want Reading
	}{
		{"a success; an event may carry several tokens", late(three(), 2*ms1, 3*ms1, 5*ms1), Reading{
			Class: OK, Replayed: true, Zero: s1, Sent: known(s1 + 10*ms1),
			Lag:  traceformat.Some(Lag{Total: 10 * ms1, Pacer: 2 * ms1, Queue: 3 * ms1, Write: 5 * ms1}),
			TTFT: known(100 * ms1), E2E: known(210 * ms1), TPOT: known(22 * ms1), End: known(s1 + 221*ms1),
			PromptTokens: traceformat.Some(int32(100)), OutputTokens: traceformat.Some(int32(6)),
			AskedPromptTokens: traceformat.Some(int32(100)), AskedOutputTokens: traceformat.Some(int32(6)),
		}},
		{"a new connection", with(late(three(), 0, 3*ms1, 0), func(r *traceformat.Row) { r.ConnReused.V = false }), Reading{
			Class: OK, Replayed: true, Zero: s1, Sent: known(s1 + 3*ms1), Lag: traceformat.Some(Lag{Total: 3 * ms1, Connect: 3 * ms1}),
			TTFT: known(100 * ms1), E2E: known(210 * ms1), TPOT: known(22 * ms1), End: known(s1 + 214*ms1),
			PromptTokens: traceformat.Some(int32(100)), OutputTokens: traceformat.Some(int32(6)),
			AskedPromptTokens: traceformat.Some(int32(100)), AskedOutputTokens: traceformat.Some(int32(6)),
		}},
		{"clocks between schedule and send unknown: all of it is the last step", with(late(three(), 2*ms1, 3*ms1, 5*ms1), func(r *traceformat.Row) {
			r.Wake, r.Conn = duration{}, duration{}
		}), Reading{
			Class: OK, Replayed: true, Zero: s1, Sent: known(s1 + 10*ms1), Lag: traceformat.Some(Lag{Total: 10 * ms1, Write: 10 * ms1}),
			TTFT: known(100 * ms1), E2E: known(210 * ms1), TPOT: known(22 * ms1), End: known(s1 + 221*ms1),
			PromptTokens: traceformat.Some(int32(100)), OutputTokens: traceformat.Some(int32(6)),
			AskedPromptTokens: traceformat.Some(int32(100)), AskedOutputTokens: traceformat.Some(int32(6)),
		}},
		{"one token has no TPOT", sent(0, event{50 * ms1, 1}), Reading{
			Class: OK, Replayed: true, Sent: known(0), Lag: traceformat.Some(Lag{}),
			TTFT: known(50 * ms1), E2E: known(50 * ms1), End: known(51 * ms1),
			PromptTokens: traceformat.Some(int32(100)), OutputTokens: traceformat.Some(int32(1)),
			AskedPromptTokens: traceformat.Some(int32(100)), AskedOutputTokens: traceformat.Some(int32(1)),
		}},
		{"shed: never sent, so no lag and no latency", shed(s1), Reading{
			Class: Shed, Outcome: traceformat.ResultShed, Error: "max_in_flight", Replayed: true, Zero: s1,
			AskedPromptTokens: traceformat.Some(int32(100)), AskedOutputTokens: traceformat.Some(int32(10)),
		}},
		{"a capture: time zero is the arrival, lengths are what happened", &traceformat.Row{
			Request: traceformat.Request{Arrival: s1, PromptTokens: traceformat.Some(int32(7)), OutputTokens: traceformat.Some(int32(3))},
			Outcome: traceformat.Outcome{Result: traceformat.ResultOK, TTFT: known(10 * ms1), E2E: known(30 * ms1)},
		}, Reading{
			Class: OK, Zero: s1, Sent: known(s1), TTFT: known(10 * ms1), E2E: known(30 * ms1), TPOT: known(10 * ms1), End: known(s1 + 30*ms1),
			PromptTokens: traceformat.Some(int32(7)), OutputTokens: traceformat.Some(int32(3)),
		}},
		{"a capture that timed the head alone has no TTFT", &traceformat.Row{
			Outcome: traceformat.Outcome{Result: traceformat.ResultOK, TTFT: known(10 * ms1), TTFTSource: traceformat.TTFTHeader, E2E: known(30 * ms1)},
		}, Reading{Class: OK, Sent: known(0), TTFT: duration{V: 10 * ms1}, E2E: known(30 * ms1), End: known(30 * ms1)}},
		{"a synthetic row has no outcome", &traceformat.Row{Request: traceformat.Request{Arrival: s1}}, Reading{Sent: known(s1), Zero: s1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, Measure(tt.row)); diff != "" {
				t.Errorf("Measure (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSuccess(t *testing.T) {
	ok := func(bend func(*traceformat.Row)) *traceformat.Row { return with(sent(0, event{ms1, 4}), bend) }
	captured := func(result, class string) *traceformat.Row {
		return &traceformat.Row{Outcome: traceformat.Outcome{Result: result, Error: class}}
	}
	tests := []struct {
		name    string
		row     *traceformat.Row
		class   Class
		outcome string
		err     string
	}{
		{"length", ok(func(r *traceformat.Row) {}), OK, "", ""},
		{"stop", ok(func(r *traceformat.Row) { r.FinishReason = "stop" }), OK, "", ""},
		{"HTTP 200 without a finish reason", ok(func(r *traceformat.Row) { r.FinishReason = "" }), Failed, BadFinish, "none"},
		{"aborted by the engine", ok(func(r *traceformat.Row) { r.FinishReason = "abort" }), Failed, BadFinish, "abort"},
		{"too few tokens", ok(func(r *traceformat.Row) { r.ServedOutputTokens.V = 3 }), Failed, WrongLength, "too_short"},
		{"too many tokens", ok(func(r *traceformat.Row) { r.ServedOutputTokens.V = 5 }), Failed, WrongLength, "too_long"},
		{"no count from the server: the events'", ok(func(r *traceformat.Row) { r.ServedOutputTokens.OK = false }), OK, "", ""},
		{"no count at all is not known to be wrong", ok(func(r *traceformat.Row) { r.ServedOutputTokens.OK = false; r.ChunkTokens = nil }), OK, "", ""},
		{"the events' count is wrong", ok(func(r *traceformat.Row) { r.ServedOutputTokens.OK = false; r.OutputTokens.V = 9 }), Failed, WrongLength, "too_short"},
		{"two choices: the length is of both together", ok(func(r *traceformat.Row) { r.N = traceformat.Some(int32(2)); r.ServedOutputTokens.V = 4 }), OK, "", ""},
		{"an error event", ok(func(r *traceformat.Row) { r.Result, r.Error = traceformat.ResultServerError, "error_event" }), Failed, "server_error", "error_event"},
		{"refused", ok(func(r *traceformat.Row) { r.Result, r.Error = traceformat.ResultRejected, "http_429" }), Failed, "rejected", "http_429"},
		{"timed out", ok(func(r *traceformat.Row) { r.Result, r.Error = traceformat.ResultTimeout, "idle_timeout" }), Failed, "timeout", "idle_timeout"},
		{"cut off by the interrupt", ok(func(r *traceformat.Row) { r.Result, r.Error = traceformat.ResultClientAbort, "interrupted" }), Failed, "client_abort", "interrupted"},
		{"hung up as recorded", ok(func(r *traceformat.Row) { r.Result, r.Error = traceformat.ResultClientAbort, "recorded_abort" }), Aborted, "client_abort", "recorded_abort"},
		{"shed", shed(0), Shed, "shed", "max_in_flight"},
		{"captured: any finish reason that the outcome calls ok", captured(traceformat.ResultOK, ""), OK, "", ""},
		{"captured: the user hung up", captured(traceformat.ResultClientAbort, ""), Aborted, "client_abort", ""},
		{"captured: the recording began in the middle", captured(traceformat.ResultTruncated, "x"), Unknown, "truncated_capture", "x"},
		{"captured: server error", captured(traceformat.ResultServerError, "http_500"), Failed, "server_error", "http_500"},
		{"no outcome", captured("", ""), Unknown, "", ""},
		{"a latency without an outcome column", &traceformat.Row{Outcome: traceformat.Outcome{E2E: known(s1)}}, OK, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if r := Measure(tt.row); r.Class != tt.class || r.Outcome != tt.outcome || r.Error != tt.err {
				t.Errorf("class %v, outcome %q, error %q; want %v, %q, %q", r.Class, r.Outcome, r.Error, tt.class, tt.outcome, tt.err)
			}
		})
	}
}

// One run by hand: the window is [1 s, 5 s].
func handRun() []*traceformat.Row {
	return []*traceformat.Row{
		// Warm-up, of whose tokens the second event lies inside the window.
		sent(500*ms1, event{400 * ms1, 2}, event{1000 * ms1, 5}),
		// 10 ms late, an event without a token in between.
		late(sent(1*s1, event{100 * ms1, 1}, event{150 * ms1, 3}, event{170 * ms1, 0}, event{210 * ms1, 2}), 2*ms1, 3*ms1, 5*ms1),
		// On a new connection.
		with(late(sent(2*s1, event{300 * ms1, 1}), 0, 4*ms1, 0), func(r *traceformat.Row) { r.ConnReused.V = false }),
		// Breaks after one of ten tokens.
		with(failed(sent(3*s1, event{200 * ms1, 1}), traceformat.ResultServerError, "connection_reset"), func(r *traceformat.Row) { r.OutputTokens.V = 10 }),
		shed(4 * s1),
		// At the very end of the window; its tokens lie behind it.
		sent(5*s1, event{50 * ms1, 1}, event{90 * ms1, 1}),
		sent(6*s1, event{50 * ms1, 1}),
	}
}

func TestSummaryByHand(t *testing.T) {
	slos := []SLO{{MetricTTFT, 150 * ms1}, {MetricTPOT, 30 * ms1}}
	s := collect(Config{From: s1, To: 5 * s1, SLOs: slos, TokenIDs: true, Planned: 9}, handRun()...)

	if diff := cmp.Diff(Window{From: s1, To: 5 * s1, Length: 4 * s1, RunLength: 5550 * ms1}, s.Window); diff != "" {
		t.Errorf("window (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(Requests{
		Rows: 7, Warmup: 1, After: 1, Measured: 5, OK: 3, Failed: 1, Shed: 1, Unsent: 2,
		Failures: []Failure{{traceformat.ResultServerError, "connection_reset", 1}},
	}, s.Requests); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	// Inside the window: 5 tokens of the warm-up, 6, 1 and 1 of the failure. The
	// prompts of the three that began to answer inside; the warm-up's did before.
	if diff := cmp.Diff(Rates{
		Offered: 5.0 / 4, Sent: 4.0 / 4, Completed: 3.0 / 4, OutputTokens: 13.0 / 4, TotalTokens: 313.0 / 4,
		RunOutputTokens: 18 / 5.55,
	}, s.Rates); diff != "" {
		t.Errorf("rates (-want +got):\n%s", diff)
	}
	// Sent and ended: [.5, 1.501], [1.01, 1.221], [2.004, 2.305], [3, 3.201],
	// [5, 5.091], [6, 6.051].
	if diff := cmp.Diff(InFlight{Peak: 2, Mean: (0.501 + 0.211 + 0.301 + 0.201 + 0) / 4}, s.InFlight, approx); diff != "" {
		t.Errorf("in flight (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(Tokens{PromptAsked: 500, OutputAsked: 29, Prompt: 400, Output: 10}, s.Tokens); diff != "" {
		t.Errorf("tokens (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(Lengths{
		Prompt: Length{Verified: 3, Exact: 3, Asked: 300, Served: 300}, Output: Length{Verified: 3, Exact: 3, Asked: 9, Served: 9},
	}, s.Lengths); diff != "" {
		t.Errorf("lengths (-want +got):\n%s", diff)
	}
	samples := []struct {
		name string
		d    Dist
		n    int64
		want [3]time.Duration // min, mean, max
	}{
		{"TTFT from the schedule: 110, 304, 50", s.TTFT.Schedule, 3, [3]time.Duration{50 * ms1, 464 * ms1 / 3, 304 * ms1}},
		{"TTFT from the send: 100, 300, 50", s.TTFT.Send, 3, [3]time.Duration{50 * ms1, 150 * ms1, 300 * ms1}},
		{"E2E from the schedule: 220, 304, 90", s.E2E.Schedule, 3, [3]time.Duration{90 * ms1, 614 * ms1 / 3, 304 * ms1}},
		{"E2E from the send: 210, 300, 90", s.E2E.Send, 3, [3]time.Duration{90 * ms1, 200 * ms1, 300 * ms1}},
		{"TPOT: 110/5 and 40/1", s.TPOT, 2, [3]time.Duration{22 * ms1, 31 * ms1, 40 * ms1}},
		{"ITL: 3 x 50/3, 2 x 60/2, 1 x 40", s.ITL, 6, [3]time.Duration{50 * ms1 / 3, 25 * ms1, 40 * ms1}},
		{"event gap: 50, 60, 40", s.EventGap, 3, [3]time.Duration{40 * ms1, 50 * ms1, 60 * ms1}},
		{"failed after 201", s.FailedAfter, 1, [3]time.Duration{201 * ms1, 201 * ms1, 201 * ms1}},
		{"send error: 10, 4, 0, 0", s.SendLag.Error, 4, [3]time.Duration{0, 3500 * time.Microsecond, 10 * ms1}},
		{"pacer: 2, 0, 0, 0", s.SendLag.Pacer, 4, [3]time.Duration{0, 500 * time.Microsecond, 2 * ms1}},
		{"queue: 3, 0, 0", s.SendLag.Queue, 3, [3]time.Duration{0, ms1, 3 * ms1}},
		{"connect: 4", s.SendLag.Connect, 1, [3]time.Duration{4 * ms1, 4 * ms1, 4 * ms1}},
		{"write: 5, 0, 0, 0", s.SendLag.Write, 4, [3]time.Duration{0, 1250 * time.Microsecond, 5 * ms1}},
	}
	for _, tt := range samples {
		got := [3]time.Duration{tt.d.Min.V.Duration(), tt.d.Mean.V.Duration(), tt.d.Max.V.Duration()}
		for i := range got {
			if d := got[i] - tt.want[i]; d > 1 || d < -1 { // rounding to a nanosecond
				t.Errorf("%s: n %d, min, mean, max %v; want %d, %v", tt.name, tt.d.N, got, tt.n, tt.want)
				break
			}
		}
		if tt.d.N != tt.n {
			t.Errorf("%s: n %d, want %d", tt.name, tt.d.N, tt.n)
		}
		if tt.d.P50.OK && tt.name != "ITL: 3 x 50/3, 2 x 60/2, 1 x 40" {
			t.Errorf("%s: a p50 of %d values, which takes 6", tt.name, tt.n)
		}
	}
	// One failed, one was shed and two never sent: four infinite ones of seven.
	if w := s.TTFT.WithFailures; w.N != 7 || !w.P50.OK || !w.P50.V.IsInf() || w.Min.V.Duration() != 50*ms1 || !w.Mean.V.IsInf() || w.SD.OK {
		t.Errorf("TTFT with failures = %+v; want 7 values, an infinite median and mean", w)
	}
	// TTFT < 150 ms: 110 and 50. TPOT < 30 ms: 22 and the single token. Both: the first.
	if diff := cmp.Diff(&Goodput{
		Requests: 1.0 / 4, Met: 1, Of: 7, Share: 1.0 / 7, SLOs: []SLOMet{{slos[0], 2}, {slos[1], 2}},
	}, s.Goodput); diff != "" {
		t.Errorf("goodput (-want +got):\n%s", diff)
	}
	f := s.Fidelity
	if f.Valid || f.Verdict != Invalid || len(f.Reasons) != 3 || f.SendErrorOf != "max" || f.SendError.V.Duration() != 10*ms1 || f.SendErrorLimit != 5*ms1 {
		t.Errorf("fidelity = %+v; want invalid for shed, unsent and a send error of 10 ms over 5 ms", f)
	}
}

// The order of rows is nobody's business, nor is whether the end of the window
// is known before it is reached.
func TestSummaryDoesNotDependOnOrder(t *testing.T) {
	for _, to := range []time.Duration{0, 6 * s1} {
		rows := handRun()
		want := collect(Config{To: 6 * s1}, rows...)
		slices.Reverse(rows)
		got := collect(Config{To: to}, rows...)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("To %v, in reverse (-want +got):\n%s", to, diff)
		}
	}
}

func TestWindowEndsWithTheLastRequestRoundedUp(t *testing.T) {
	// Scheduled at 0 and 1.0002 s: the window ends at 1.001 s, and the event at
	// 1.001 s is inside, the one a nanosecond later is not.
	s := collect(Config{}, sent(0, event{1001 * ms1, 4}, event{1001*ms1 + 1, 2}), sent(1000200*time.Microsecond, event{ms1, 1}))
	if s.Window.To != 1001*ms1 {
		t.Errorf("window ends at %v, want 1.001s", s.Window.To)
	}
	if want := 4 / 1.001; math.Abs(s.Rates.OutputTokens-want) > 1e-9 {
		t.Errorf("output tokens/s = %v, want %v", s.Rates.OutputTokens, want)
	}
}

// With nothing known of the end, what waits is looked through now and then, not
// at each event, and counts stay right.
func TestOpenWindowSettles(t *testing.T) {
	c := NewCollector(Config{})
	c.Add(sent(0, event{0, 1}))
	const n = 3 * maxWaiting
	for i := range n {
		// The first half of the events falls into the window as it grows.
		c.Add(sent(time.Duration(i/2)*ms1, event{time.Duration(i-i/2+1) * ms1, 1}))
	}
	if len(c.flow.waiting) > n*3/4 {
		t.Errorf("%d buckets wait, after %d events of which half lie inside", len(c.flow.waiting), n)
	}
	// Scheduled up to (n-1)/2 ms, events at 0 and at i+1 ms.
	end := (n - 1) / 2
	s := c.Summary()
	if want := float64(1+end) / (float64(end) / 1000); math.Abs(s.Rates.OutputTokens-want) > 1e-9 {
		t.Errorf("output tokens/s = %v, want %v", s.Rates.OutputTokens, want)
	}
	if len(c.flow.waiting) != n-end {
		t.Errorf("%d buckets wait, want the %d events behind the window", len(c.flow.waiting), n-end)
	}
}

func TestCapture(t *testing.T) {
	row := func(at time.Duration, result string) *traceformat.Row {
		r := &traceformat.Row{}
		r.Arrival, r.Result = at, result
		r.PromptTokens, r.OutputTokens, r.CachedTokens = traceformat.Some(int32(1000)), traceformat.Some(int32(5)), traceformat.Some(int32(250))
		r.TTFT, r.E2E = known(100*ms1), known(500*ms1)
		return r
	}
	aborted := row(2*s1, traceformat.ResultClientAbort)
	aborted.Abort = known(300 * ms1)
	s := collect(Config{SLOs: []SLO{{MetricE2E, s1}}}, row(0, traceformat.ResultOK), row(s1, traceformat.ResultServerError), aborted,
		row(4*s1, traceformat.ResultOK), &traceformat.Row{Request: traceformat.Request{Arrival: 3 * s1}})
	if f := s.Fidelity; f.Verdict != NotReplayed || f.Valid || f.Reasons != nil {
		t.Errorf("fidelity of a capture = %+v", f)
	}
	if s.TTFT.Schedule.N != 2 || s.TTFT.Send.N != 0 || s.SendLag.Error.N != 0 {
		t.Errorf("TTFT n %d, from send %d, send error %d; want 2, 0, 0", s.TTFT.Schedule.N, s.TTFT.Send.N, s.SendLag.Error.N)
	}
	if q := s.Requests; q.OK != 2 || q.Failed != 1 || q.Aborted != 1 || q.Unknown != 1 {
		t.Errorf("requests = %+v", q)
	}
	// The hang-up and the unknown end are neither met nor missed.
	if g := s.Goodput; g.Met != 2 || g.Of != 3 {
		t.Errorf("goodput = %+v, want 2 of 3", g)
	}
	if got := s.Tokens.CacheHit(); got != 0.25 {
		t.Errorf("cache hit = %v, want 0.25", got)
	}
	// 5 tokens each, spread over 100 to 500 ms: three answers lie inside [0, 4 s].
	if want := 15.0 / 4; s.Rates.OutputTokens != want {
		t.Errorf("output tokens/s = %v, want %v", s.Rates.OutputTokens, want)
	}
	if !strings.Contains(strings.Join(s.Warnings, "\n"), "the tokens of 4 requests evenly") {
		t.Errorf("warnings = %q", s.Warnings)
	}
}

func TestEventsWithoutTokenCounts(t *testing.T) {
	r := sent(0, event{100 * ms1, 2}, event{200 * ms1, 3}, event{400 * ms1, 4})
	r.ChunkTokens = nil
	s := collect(Config{To: 200 * ms1}, r)
	if s.ITL.N != 0 || s.EventGap.N != 2 {
		t.Errorf("ITL n %d, event gap n %d; want 0, 2", s.ITL.N, s.EventGap.N)
	}
	if len(s.ITL.Warnings) != 1 || !strings.Contains(s.ITL.Warnings[0], "left out 1 request") {
		t.Errorf("warnings of ITL = %q", s.ITL.Warnings)
	}
	// 9 tokens over 3 events, two of which are inside.
	if s.Rates.OutputTokens != 6/0.2 {
		t.Errorf("output tokens/s = %v, want 30", s.Rates.OutputTokens)
	}
}

func TestAnswerInOnePiece(t *testing.T) {
	r := sent(0)
	r.OutputTokens, r.ServedOutputTokens = traceformat.Some(int32(8)), traceformat.Some(int32(8))
	r.E2E, r.Close = known(300*ms1), known(300*ms1)
	s := collect(Config{To: s1, SLOs: []SLO{{MetricTTFT, 301 * ms1}}}, r)
	if s.TTFT.Schedule.N != 0 || s.E2E.Schedule.N != 1 || s.TPOT.N != 0 {
		t.Errorf("TTFT n %d, E2E n %d, TPOT n %d; want 0, 1, 0", s.TTFT.Schedule.N, s.E2E.Schedule.N, s.TPOT.N)
	}
	if s.Goodput.Met != 1 {
		t.Error("the user had the first token with the last, within the SLO")
	}
	if s.Rates.OutputTokens != 8 || s.Rates.TotalTokens != 108 {
		t.Errorf("tokens/s = %v and %v, want 8 and 108", s.Rates.OutputTokens, s.Rates.TotalTokens)
	}
}

func TestAllAtOnce(t *testing.T) {
	s := collect(Config{}, sent(0, event{s1, 10}), sent(0, event{2 * s1, 10}))
	if s.Rates.Offered != 0 || s.Rates.OutputTokens != 0 || s.Rates.RunOutputTokens != 10 {
		t.Errorf("rates = %+v; want the whole run's alone, 10 tok/s", s.Rates)
	}
	if len(s.Warnings) == 0 || !strings.Contains(s.Warnings[0], "at one moment") {
		t.Errorf("warnings = %q", s.Warnings)
	}
	if s.InFlight.Peak != 2 {
		t.Errorf("peak = %d, want 2", s.InFlight.Peak)
	}
}

func TestEmpty(t *testing.T) {
	s := collect(Config{SLOs: []SLO{{MetricTTFT, s1}}})
	if s.Fidelity.Verdict != NotReplayed || s.Goodput.Share != 0 || s.Timeline != nil {
		t.Errorf("summary of nothing = %+v", s)
	}
	if s := collect(Config{Planned: 3}); s.Fidelity.Valid || s.Requests.Unsent != 3 {
		t.Errorf("a plan of which nothing was sent: %+v", s.Fidelity)
	}
	if s := collect(Config{From: s1}, sent(0, event{ms1, 1})); s.Fidelity.Valid {
		t.Errorf("a run that was all warm-up: %+v", s.Fidelity)
	}
}

// A second lap is a request like any other.
func TestLaps(t *testing.T) {
	a, b := sent(0, event{ms1, 1}), sent(s1, event{ms1, 1})
	b.Lap = 1
	if s := collect(Config{}, a, b); s.Requests.OK != 2 || s.Requests.Rows != 2 {
		t.Errorf("requests = %+v, want 2 ok", s.Requests)
	}
}

func TestFidelity(t *testing.T) {
	// n requests with a TTFT, each late by lag but for the last, late by worst.
	run := func(n int, ttft, lag, worst time.Duration) []*traceformat.Row {
		var rows []*traceformat.Row
		for i := range n {
			l := lag
			if i == n-1 {
				l = worst
			}
			rows = append(rows, late(sent(time.Duration(i)*s1, event{ttft, 1}), l, 0, 0))
		}
		return rows
	}
	tests := []struct {
		name       string
		conf       Config
		rows       []*traceformat.Row
		reasons    []string // parts of each
		bottleneck string
		limit      time.Duration
	}{
		{"on time and exact", Config{TokenIDs: true}, run(10, 300*ms1, 0, 0), nil, "", 3 * ms1},
		{"the limit is 1 % of the median TTFT", Config{}, run(10, 300*ms1, 0, 3*ms1), nil, "", 3 * ms1},
		{"over 1 % of the median TTFT", Config{}, run(10, 300*ms1, 0, 3*ms1+1), []string{"max is 3.00 ms, over the limit of 3.00 ms; 100 % of the delay was the sender waking late"}, ClientBottleneck, 3 * ms1},
		{"never stricter than 1 ms", Config{}, run(10, 20*ms1, 0, ms1), nil, "", ms1},
		{"never laxer than 5 ms", Config{}, run(10, 10*s1, 0, 6*ms1), []string{"over the limit of 5.00 ms"}, ClientBottleneck, 5 * ms1},
		{"judged by the p99, not the worst", Config{}, run(400, 300*ms1, 0, s1), nil, "", 3 * ms1},
		{"one late in 150 is within the p99", Config{}, run(150, 300*ms1, 0, s1), nil, "", 3 * ms1},
		{"one late in 99 is not", Config{}, run(99, 300*ms1, 0, s1), []string{"max is 1.00 s"}, ClientBottleneck, 3 * ms1},
		{"other limits", Config{Limits: Limits{SendErrorP99: s1, SendErrorFloor: s1}}, run(10, 300*ms1, 0, s1), nil, "", s1},
		{"too early is an error as well", Config{}, []*traceformat.Row{with(sent(s1, event{ms1, 1}), func(r *traceformat.Row) { r.Sent.V -= 6 * ms1 })},
			[]string{"max is 6.00 ms"}, ClientBottleneck, 5 * ms1},
		{"connecting held it up", Config{}, []*traceformat.Row{
			with(late(sent(0, event{ms1, 1}), 2*ms1, 20*ms1, ms1), func(r *traceformat.Row) { r.ConnReused.V = false }),
		}, []string{"87.0 % of the delay was opening connections"}, ConnectBottleneck, 5 * ms1},
		{"waiting for a connection", Config{}, []*traceformat.Row{late(sent(0, event{ms1, 1}), 2*ms1, 20*ms1, 3*ms1)},
			[]string{"80 % of the delay was waiting for a free connection: this client was the bottleneck"}, ClientBottleneck, 5 * ms1},
		{"shed", Config{}, append(run(10, 300*ms1, 0, 0), shed(3*s1)), []string{"shed 1 of 11 requests"}, "", 3 * ms1},
		{"stopped early", Config{Planned: 12}, run(10, 300*ms1, 0, 0), []string{"never sent 2 of 12 requests"}, "", 3 * ms1},
		{"no descriptors left", Config{}, append(run(10, 300*ms1, 0, 0), with(failed(sent(3*s1), traceformat.ResultServerError, "no_file_descriptors"), func(r *traceformat.Row) {
			r.Sent, r.Conn = duration{}, duration{}
		})), []string{"this client could not send 1 request: no_file_descriptors"}, ClientBottleneck, 3 * ms1},
		{"refused by the server is the server's", Config{}, append(run(10, 300*ms1, 0, 0), with(failed(sent(3*s1), traceformat.ResultServerError, "connect_refused"), func(r *traceformat.Row) {
			r.Sent, r.Conn = duration{}, duration{}
		})), nil, "", 3 * ms1},
		{"one prompt token off, sent as ids", Config{TokenIDs: true}, append(run(199, 300*ms1, 0, 0), with(sent(200*s1, event{300 * ms1, 1}), func(r *traceformat.Row) {
			r.ServedPromptTokens.V = 101
		})), []string{"1 of 200 prompts had another length at the server, by up to 1 token"}, "", 3 * ms1},
		{"the same sent as text is within 1 %", Config{}, append(run(199, 300*ms1, 0, 0), with(sent(200*s1, event{300 * ms1, 1}), func(r *traceformat.Row) {
			r.ServedPromptTokens.V = 101
		})), nil, "", 3 * ms1},
		{"text far off", Config{}, []*traceformat.Row{with(sent(0, event{300 * ms1, 1}), func(r *traceformat.Row) { r.ServedPromptTokens.V = 90 })},
			[]string{"1 of 1 prompt off by more than 1 % of its tokens, by up to 10 tokens"}, "", 5 * ms1},
		{"text errors that cancel out", Config{}, []*traceformat.Row{
			with(sent(0, event{300 * ms1, 1}), func(r *traceformat.Row) { r.ServedPromptTokens.V = 95 }),
			with(sent(s1, event{300 * ms1, 1}), func(r *traceformat.Row) { r.ServedPromptTokens.V = 105 }),
		}, []string{"2 of 2 prompts off by more than 1 % of its tokens, by up to 5 tokens"}, "", 5 * ms1},
		{"an answer too short", Config{}, append(run(10, 300*ms1, 0, 0), with(sent(0, event{300 * ms1, 4}), func(r *traceformat.Row) { r.OutputTokens.V = 9 })),
			[]string{"1 of 11 answers had another length than asked for, by up to 5 tokens"}, "", 3 * ms1},
		{"no counts from the server", Config{TokenIDs: true}, []*traceformat.Row{with(sent(0, event{300 * ms1, 1}), func(r *traceformat.Row) { r.ServedPromptTokens.OK = false })},
			[]string{"no token count of 1 answer: lengths"}, "", 5 * ms1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := collect(tt.conf, tt.rows...).Fidelity
			ok := f.Valid == (len(tt.reasons) == 0) && (f.Verdict == Valid) == f.Valid && len(f.Reasons) == len(tt.reasons)
			for i := 0; ok && i < len(tt.reasons); i++ {
				ok = strings.Contains(f.Reasons[i], tt.reasons[i])
			}
			if !ok || f.Bottleneck != tt.bottleneck || f.SendErrorLimit != tt.limit {
				t.Errorf("valid %t, reasons %q, bottleneck %q, limit %v; want %q, %q, %v", f.Valid, f.Reasons, f.Bottleneck, f.SendErrorLimit, tt.reasons, tt.bottleneck, tt.limit)
			}
		})
	}
}

func TestDistLeavesOutWhatItCannotCarry(t *testing.T) {
	values := make([]float64, 100)
	for i := range values {
		values[i] = float64(100 - i)
	}
	d := exactDist(values, 0)
	if d.P50.V != 50.5 || d.P95.V != 95.05 || d.P99.OK || d.P999.OK || d.SD.V != Nanos(math.Sqrt(101*100/12.0)) {
		t.Errorf("dist = %+v", d)
	}
	if want := [2]Nanos{40, 61}; d.Intervals["p50"] != want { // ranks 39 and 60, from 0
		t.Errorf("interval of p50 = %v, want %v", d.Intervals["p50"], want)
	}
	if want := []string{"a sample of 100 does not carry p99 (takes 368), p99.9 (takes 3,688)"}; !slices.Equal(d.Warnings, want) {
		t.Errorf("warnings = %q, want %q", d.Warnings, want)
	}
	if d := exactDist(nil, 0); d.N != 0 || d.Min.OK || d.Warnings != nil {
		t.Errorf("dist of nothing = %+v", d)
	}
	if d := exactDist(nil, 10); !d.P50.V.IsInf() || !d.Min.V.IsInf() {
		t.Errorf("dist of failures alone = %+v", d)
	}
}

func TestSummaryAsJSON(t *testing.T) {
	s := collect(Config{From: s1, To: 5 * s1, SLOs: []SLO{{MetricTTFT, 150 * ms1}}}, handRun()...)
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{
		`"ttft_ns":{"from_schedule":{"n":3,"mean":154666667,`, `"with_failures":{"n":5,"mean":"inf","min":50000000,"max":"inf"`,
		`"requests_per_second_offered":1.25`, `"slos":[{"slo":"ttft\u003c150ms","requests_met":2}]`, `"verdict":"invalid"`,
	} {
		if !strings.Contains(string(b), part) {
			t.Errorf("JSON lacks %s:\n%s", part, b)
		}
	}
	var back Summary
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(&back)
	if err != nil || string(again) != string(b) {
		t.Errorf("read back and written again (%v):\n%s\nwas\n%s", err, again, b)
	}
}

func TestTimeline(t *testing.T) {
	var rows []*traceformat.Row
	for i := range 8 {
		rows = append(rows, sent(time.Duration(i)*s1, event{time.Duration(i+1) * 10 * ms1, 1}))
	}
	rows = append(rows, shed(7*s1))
	s := collect(Config{}, rows...)
	if len(s.Timeline) != 2 {
		t.Fatalf("%d bins, want 2 of at least 4 requests", len(s.Timeline))
	}
	// [0, 3.5 s] and (3.5 s, 7 s].
	a, b := s.Timeline[0], s.Timeline[1]
	if a.Requests != 4 || a.OK != 4 || a.TTFT.V.Duration() != 25*ms1 || a.TTFTMax.V.Duration() != 40*ms1 {
		t.Errorf("first bin = %+v", a)
	}
	if b.Requests != 5 || b.OK != 4 || b.TTFT.V.Duration() != 65*ms1 || b.TTFTMax.V.Duration() != 80*ms1 || b.From != 3500*ms1+1 {
		t.Errorf("second bin = %+v", b)
	}
}

func TestParseSLOs(t *testing.T) {
	got, err := ParseSLOs([]string{"ttft<500ms", " TPOT < 50 ms , e2e<10s "})
	if want := []SLO{{MetricTTFT, 500 * ms1}, {MetricTPOT, 50 * ms1}, {MetricE2E, 10 * s1}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("ParseSLOs = %v, %v; want %v", got, err, want)
	}
	for arg, want := range map[string]string{
		"":                    "want a metric",
		"ttft":                "want a metric",
		"ttft>5ms":            "want a metric",
		"ttft<":               "is no duration",
		"ttft<5":              "is no duration",
		"ttft<=5ms":           "is no duration",
		"ttft<-1s":            "nothing takes less",
		"ttft<0s":             "nothing takes less",
		"itl<5ms":             "no metric \"itl\"",
		"ttft.p99<5ms":        "no metric \"ttft.p99\"",
		"ttft<500ms,ttft<1s":  "two SLOs bound ttft",
		"ttft<500ms,,e2e<10s": "want a metric",
	} {
		if _, err := ParseSLOs([]string{arg}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseSLOs(%q): %v, want an error with %q", arg, err, want)
		}
	}
}

func TestLive(t *testing.T) {
	l := NewLive()
	if f := l.Snapshot(0, 0); f != (LiveFigures{}) {
		t.Errorf("snapshot of nothing = %+v", f)
	}
	for _, r := range handRun() {
		l.Add(r)
	}
	f := l.Snapshot(2*s1, 100)
	if f.Done != 6 || f.Failed != 1 || f.Shed != 1 || f.TokensPerSecond != 50 {
		t.Errorf("snapshot = %+v; want 6 done, 1 failed, 1 shed, 50 tok/s", f)
	}
	if d := f.LagP99 - 10*ms1; d > 10*time.Microsecond || d < -10*time.Microsecond {
		t.Errorf("lag p99 = %v, want 10ms", f.LagP99)
	}
	if d := f.TTFTP50 - 110*ms1; d > ms1 || d < -ms1 { // of 400, 110, 304, 50, 50
		t.Errorf("TTFT p50 = %v, want 110ms", f.TTFTP50)
	}
	// The rate forgets what is more than five seconds old.
	l.Snapshot(6*s1, 100)
	l.Snapshot(10*s1, 100)
	if f := l.Snapshot(12*s1, 160); f.TokensPerSecond != 10 {
		t.Errorf("tokens/s = %v, want 60 over the 6 s since the last snapshot 5 s ago", f.TokensPerSecond)
	}
}

var approx = cmp.Comparer(func(a, b float64) bool { return math.Abs(a-b) < 1e-9 })
