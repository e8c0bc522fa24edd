package replay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"reprise/backends"
	"reprise/internal/clock"
	"reprise/internal/wire"
	"reprise/traceformat"
)

// rowsOf is a trace in memory.
type rowsOf struct {
	header traceformat.Header
	rows   []traceformat.Row
}

func (t *rowsOf) Header() *traceformat.Header { return &t.header }
func (t *rowsOf) Close() error                { return nil }
func (t *rowsOf) All() iter.Seq2[*traceformat.Row, error] {
	return func(yield func(*traceformat.Row, error) bool) {
		for i := range t.rows {
			row := t.rows[i]
			if !yield(&row, nil) {
				return
			}
		}
	}
}

func (t *rowsOf) source() Source {
	return func() (traceformat.Reader, error) { return t, nil }
}

// every is n requests of 100 + 4 tokens, one each gap.
func every(n int, gap time.Duration) *rowsOf {
	t := &rowsOf{}
	for i := range n {
		var r traceformat.Row
		r.ID, r.Arrival = int64(i), time.Duration(i)*gap
		r.PromptTokens, r.OutputTokens = traceformat.Some[int32](100), traceformat.Some[int32](4)
		t.rows = append(t.rows, r)
	}
	return t
}

// lineBackend is a dialect of its own, so that these tests are about the
// engine: an event is "tok", "end" or "bad".
type lineBackend struct{}

func (lineBackend) Probe(context.Context) (*backends.Info, error) { return &backends.Info{}, nil }
func (lineBackend) TokenIDs() bool                                { return true }
func (lineBackend) Encode(dst []byte, c *backends.Call) (string, []byte) {
	b, _ := json.Marshal(c.PromptIDs)
	return "/", append(dst, b...)
}
func (lineBackend) NewDecoder(c *backends.Call) backends.Decoder { return &lineDecoder{} }

type lineDecoder struct {
	n int
	r backends.Result
}

func (d *lineDecoder) Event(data []byte) (backends.Event, error) {
	switch string(data) {
	case "tok":
		d.n++
		return backends.Event{Tokens: 1, Exact: true}, nil
	case "end":
		d.r.FinishReason, d.r.OutputTokens = "length", traceformat.Some(int32(d.n))
		return backends.Event{Done: true}, nil
	case "bad":
		d.r.Error = "error_event"
		return backends.Event{}, nil
	}
	return backends.Event{}, errors.New("unknown event")
}

func (d *lineDecoder) Body(status int, data []byte) (backends.Event, error) {
	return backends.Event{}, nil
}
func (d *lineDecoder) Result() backends.Result { return d.r }

// fakeClient answers in the bubble's time. script is what the i-th started
// request does; its steps are "100ms" (wait), "head", "head:500", a data
// event, "refuse", "cut" or "hang".
type fakeClient struct {
	script func(i int) string
	mu     sync.Mutex
	n      int
	wg     sync.WaitGroup
}

func (f *fakeClient) Warm(int) error    { return nil }
func (f *fakeClient) Spare(int)         {}
func (f *fakeClient) Kind() string      { return "fake" }
func (f *fakeClient) Stats() wire.Stats { return wire.Stats{} }
func (f *fakeClient) Close()            { f.wg.Wait() }

type fakeCall struct{ abort context.CancelFunc }

func (c fakeCall) Abort() { c.abort() }

func (f *fakeClient) Start(req *wire.Request, sink wire.Sink) wire.Call {
	f.mu.Lock()
	i := f.n
	f.n++
	f.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	f.wg.Go(func() {
		now := clock.Now()
		for step := range strings.FieldsSeq(f.script(i)) {
			if step == "refuse" {
				sink.Close(clock.Now(), fmt.Errorf("dial: %w", syscall.ECONNREFUSED))
				return
			}
			if d, err := time.ParseDuration(step); err == nil {
				select {
				case <-time.After(d):
				case <-ctx.Done():
					sink.Close(clock.Now(), wire.ErrAborted)
					return
				}
				continue
			}
			switch {
			case step == "sent":
				sink.Conn(now, true)
				sink.Sent(clock.Now(), clock.Now())
			case step == "head":
				sink.Head(clock.Now(), wire.Head{Status: 200, ContentType: "text/event-stream"})
			case strings.HasPrefix(step, "head:"):
				var status int
				fmt.Sscan(step[5:], &status)
				sink.Head(clock.Now(), wire.Head{Status: status, ContentType: "application/json"})
			case step == "cut":
				sink.Close(clock.Now(), wire.ErrTruncated)
				return
			case step == "hang":
				<-ctx.Done()
				sink.Close(clock.Now(), wire.ErrAborted)
				return
			default:
				sink.Data(clock.Now(), []byte("data: "+step+"\n\n"))
			}
		}
		sink.Close(clock.Now(), nil)
	})
	return fakeCall{cancel}
}

// A bubbleAlarm sleeps in a bubble's time.
type bubbleAlarm struct{ wake chan struct{} }

func newBubbleAlarm() (alarm, error) { return &bubbleAlarm{make(chan struct{}, 1)}, nil }
func (a *bubbleAlarm) Close()        {}
func (a *bubbleAlarm) Wake() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

func (a *bubbleAlarm) SleepUntil(t time.Duration) {
	select {
	case <-time.After(t - clock.Now()):
	case <-a.wake:
	}
}

// play runs a trace in a bubble and returns the rows in order of arrival.
func play(t *testing.T, trace *rowsOf, o Options, f *fakeClient, edit func(*Config)) ([]traceformat.Row, *Stats, error) {
	t.Helper()
	p, err := NewPlan(trace.source(), o, Target{})
	if err != nil {
		t.Fatal(err)
	}
	var rows []traceformat.Row
	c := Config{
		Backend: lineBackend{}, Client: f,
		Record:   func(r *traceformat.Row) error { rows = append(rows, *r.Clone()); return nil },
		newAlarm: newBubbleAlarm,
	}
	if edit != nil {
		edit(&c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	stats, err := p.Run(ctx, c)
	f.Close()
	slices.SortFunc(rows, func(a, b traceformat.Row) int { return a.Compare(&b) })
	return rows, stats, err
}

const answer = "sent 20ms head 30ms tok 10ms tok 10ms tok 10ms tok end"

// A server that stalls for an hour must not delay a single later request.
func TestRunIsOpenLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Defaults()
		o.TotalTimeout, o.FirstTokenTimeout, o.IdleTimeout = 0, 0, 0
		rows, stats, err := play(t, every(60, time.Second), o, &fakeClient{script: func(int) string {
			return "sent 1h head tok tok tok tok end"
		}}, nil)
		if err != nil || stats.Sent != 60 || stats.Peak != 60 {
			t.Fatalf("err = %v, stats = %+v; want 60 sent, 60 in flight", err, stats)
		}
		for i, r := range rows {
			due := time.Duration(i) * time.Second
			if r.Arrival != due || r.Scheduled.V != due || r.Sent.V != due {
				t.Errorf("row %d: arrival %v, scheduled %v, sent %v; want %v", i, r.Arrival, r.Scheduled.V, r.Sent.V, due)
			}
			if r.TTFT.V != time.Hour {
				t.Errorf("row %d: TTFT = %v, want 1h", i, r.TTFT.V)
			}
		}
	})
}

func TestRunClocksAreExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Defaults()
		o.Speedup = 2
		rows, _, err := play(t, every(3, time.Second), o, &fakeClient{script: func(int) string { return answer }}, nil)
		if err != nil {
			t.Fatal(err)
		}
		const ms = time.Millisecond
		r := rows[2]
		for _, c := range []struct {
			name      string
			got, want time.Duration
		}{
			{"scheduled", r.Scheduled.V, time.Second},
			{"wake", r.Wake.V, time.Second},
			{"sent", r.Sent.V, time.Second},
			{"headers", r.Headers.V, time.Second + 20*ms},
			{"first event", r.FirstEvent.V, time.Second + 50*ms},
			{"TTFT", r.TTFT.V, 50 * ms},
			{"E2E", r.E2E.V, 80 * ms},
			{"close", r.Close.V, time.Second + 80*ms},
		} {
			if c.got != c.want {
				t.Errorf("%s = %v, want %v", c.name, c.got, c.want)
			}
		}
		if want := []time.Duration{50 * ms, 60 * ms, 70 * ms, 80 * ms}; !slices.Equal(r.ChunkTimes, want) {
			t.Errorf("chunk times = %v, want %v", r.ChunkTimes, want)
		}
		if r.Result != traceformat.ResultOK || r.ServedOutputTokens.V != 4 {
			t.Errorf("outcome %q, %d tokens served; want ok, 4", r.Result, r.ServedOutputTokens.V)
		}
	})
}

// Every way to fail is counted as what it is, and the run goes on.
func TestRunClassifiesFailures(t *testing.T) {
	tests := []struct{ script, result, class string }{
		{answer, "ok", ""},
		{"refuse", "server_error", "connect_refused"},
		{"sent head tok cut", "server_error", "truncated"},
		{"sent head tok tok", "server_error", "truncated"}, // a clean close without a finish reason
		{"sent head tok bad", "server_error", "error_event"},
		{"sent head tok what end", "server_error", "malformed_answer"},
		{"sent head:400", "rejected", "http_400"},
		{"sent head:429", "rejected", "http_429"},
		{"sent head:503", "server_error", "http_503"},
		{"sent hang", "timeout", "first_token_timeout"},
		{"sent head tok hang", "timeout", "idle_timeout"},
	}
	synctest.Test(t, func(t *testing.T) {
		o := Defaults()
		o.FirstTokenTimeout, o.IdleTimeout = time.Minute, 30*time.Second
		rows, stats, err := play(t, every(len(tests), time.Second), o, &fakeClient{script: func(i int) string { return tests[i].script }}, nil)
		if err != nil || stats.Interrupted {
			t.Fatalf("err = %v, stats = %+v; want a complete run", err, stats)
		}
		for i, tt := range tests {
			if r := rows[i]; r.Result != tt.result || r.Error != tt.class {
				t.Errorf("%q: outcome %q, %q; want %q, %q", tt.script, r.Result, r.Error, tt.result, tt.class)
			}
		}
	})
}

func TestRunShedsAtTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Defaults()
		o.MaxInFlight = 5
		rows, stats, err := play(t, every(10, time.Second), o, &fakeClient{script: func(int) string { return "sent 1m head tok tok tok tok end" }}, nil)
		if err != nil || stats.Sent != 5 || stats.Shed != 5 || stats.Peak != 5 {
			t.Fatalf("err = %v, stats = %+v; want 5 sent, 5 shed", err, stats)
		}
		for i, r := range rows {
			want := traceformat.ResultOK
			if i >= 5 {
				want = traceformat.ResultShed
			}
			if r.Result != want {
				t.Errorf("row %d: %q, want %q", i, r.Result, want)
			}
			if i >= 5 && (r.Sent.OK || r.Wake.V != r.Scheduled.V) {
				t.Errorf("row %d: a shed request has sent %v, wake %v (scheduled %v)", i, r.Sent, r.Wake, r.Scheduled)
			}
		}
	})
}

// A drain stops the sending, gives what is in flight its grace, and then hangs
// up; every request that was sent has a row.
func TestRunDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Defaults()
		o.Grace = 10 * time.Second
		drain := make(chan struct{})
		go func() {
			time.Sleep(5*time.Second + 2*lead + 500*time.Millisecond)
			close(drain)
		}()
		rows, stats, err := play(t, every(100, time.Second), o, &fakeClient{script: func(i int) string {
			if i == 5 {
				return "sent head tok hang"
			}
			return "sent 8s head tok tok tok tok end"
		}}, func(c *Config) { c.Drain = drain })
		if err != nil {
			t.Fatal(err)
		}
		if !stats.Interrupted || stats.Sent != 6 || stats.Unsent != 94 || len(rows) != 6 {
			t.Fatalf("stats = %+v with %d rows; want interrupted, 6 sent, 94 unsent", stats, len(rows))
		}
		for i, r := range rows {
			want := traceformat.ResultOK
			if i == 5 {
				want = traceformat.ResultClientAbort
			}
			if r.Result != want {
				t.Errorf("row %d: %q, want %q", i, r.Result, want)
			}
		}
	})
}

func TestRunCancelStopsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := NewPlan(every(100, time.Second).source(), Defaults(), Target{})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(10*time.Second, cancel)
		f := &fakeClient{script: func(int) string { return "sent head tok hang" }}
		n := 0
		stats, err := p.Run(ctx, Config{
			Backend: lineBackend{}, Client: f,
			Record: func(r *traceformat.Row) error {
				n++
				if r.Result != traceformat.ResultClientAbort || r.Error != "interrupted" || len(r.ChunkTimes) != 1 {
					t.Errorf("row %d: %q, %q with %d chunks; want an abort that keeps its token", r.ID, r.Result, r.Error, len(r.ChunkTimes))
				}
				return nil
			},
			newAlarm: newBubbleAlarm,
		})
		if !errors.Is(err, context.Canceled) || int64(n) != stats.Sent || n < 9 || n > 11 {
			t.Errorf("err = %v, %d rows, stats = %+v; want about 10 rows", err, n, stats)
		}
	})
}

// A full disk stops the run; it does not lose what was in flight, and it is
// what the caller learns.
func TestRunStopsWhenRecordingFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full := errors.New("no space left on device")
		offered := 0
		_, stats, err := play(t, every(1000, time.Second), Defaults(), &fakeClient{script: func(int) string { return answer }}, func(c *Config) {
			c.Record = func(*traceformat.Row) error {
				if offered++; offered >= 3 {
					return full
				}
				return nil
			}
		})
		if !errors.Is(err, full) {
			t.Errorf("err = %v, want %v", err, full)
		}
		if stats.Sent > 5 || int64(offered) != stats.Sent {
			t.Errorf("%d sent, %d offered to Record; want a stop soon after the third", stats.Sent, offered)
		}
	})
}

func TestRunRetriesOnlyWhenAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Defaults()
		o.Retries = 2
		rows, stats, err := play(t, every(1, time.Second), o, &fakeClient{script: func(i int) string {
			return []string{"refuse", "sent head:503", answer}[i]
		}}, nil)
		if err != nil || stats.Retries != 2 || stats.Sent != 1 {
			t.Fatalf("err = %v, stats = %+v; want 2 retries of 1 request", err, stats)
		}
		r := rows[0]
		if r.Result != traceformat.ResultOK || r.Extra != `{"retries":2}` {
			t.Errorf("outcome %q, extra %s; want ok after 2 retries", r.Result, r.Extra)
		}
	})
}

func TestRunLoops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Defaults()
		o.Loop = 3
		rows, _, err := play(t, every(4, time.Second), o, &fakeClient{script: func(int) string { return answer }}, nil)
		if err != nil || len(rows) != 12 {
			t.Fatalf("err = %v, %d rows; want 12", err, len(rows))
		}
		for i, r := range rows {
			if want := time.Duration(i) * time.Second; r.Arrival != want || r.Lap != int32(i/4) || r.ID != int64(i%4) {
				t.Errorf("row %d: lap %d, id %d at %v; want lap %d, id %d at %v", i, r.Lap, r.ID, r.Arrival, i/4, i%4, want)
			}
		}
	})
}

// The clocks of a request whose first attempt never connected are those of the
// one that did.
func TestRunRetryAfterARefusedConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Defaults()
		o.Retries = 1
		rows, _, err := play(t, every(1, time.Second), o, &fakeClient{script: func(i int) string {
			return []string{"refuse", answer}[i]
		}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		r := rows[0]
		const pause = 100 * time.Millisecond
		if r.Sent.V != pause || r.TTFT.V != 50*time.Millisecond || !r.Conn.OK {
			t.Errorf("sent %v, TTFT %v, connection %v; want %v, 50ms, known", r.Sent, r.TTFT, r.Conn, pause)
		}
	})
}

// Everything was sent, and an interrupt cut the last answer short: that is no
// complete run.
func TestRunCutAnswersAreAnInterruptedRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Defaults()
		o.Grace = time.Second
		drain := make(chan struct{})
		time.AfterFunc(10*time.Second, func() { close(drain) })
		rows, stats, err := play(t, every(2, time.Second), o, &fakeClient{script: func(int) string { return "sent head tok hang" }},
			func(c *Config) { c.Drain = drain })
		if err != nil || stats.Unsent != 0 || !stats.Interrupted || len(rows) != 2 {
			t.Errorf("err = %v, %d rows, stats = %+v; want 2 rows, interrupted", err, len(rows), stats)
		}
	})
}

// A slow disk holds up neither the schedule nor the shedding.
func TestRunShedsWithoutWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Defaults()
		o.MaxInFlight = 1
		stalled := false
		rows, _, err := play(t, every(4000, time.Millisecond), o, &fakeClient{script: func(int) string { return "sent 1h head tok tok tok tok end" }},
			func(c *Config) {
				record := c.Record
				c.Record = func(r *traceformat.Row) error {
					if !stalled {
						stalled = true
						time.Sleep(3 * time.Second)
					}
					return record(r)
				}
			})
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			if lag := r.Wake.V - r.Scheduled.V; lag != 0 {
				t.Fatalf("request %d woke %v late", r.ID, lag)
			}
		}
	})
}

// A replay of a looped replay sends every request of every lap again, with the
// prompt that it had.
func TestRunOfARun(t *testing.T) {
	for _, policy := range []SessionPolicy{SessionsRecorded, SessionsThink} {
		synctest.Test(t, func(t *testing.T) {
			o := Defaults()
			o.Loop, o.Sessions = 3, policy
			script := &fakeClient{script: func(int) string { return answer }}
			first, _, err := play(t, talk(), o, script, nil)
			if err != nil || len(first) != 9 {
				t.Fatalf("%s: err = %v, %d rows; want 9", policy, err, len(first))
			}
			o.Loop = 1
			second, _, err := play(t, &rowsOf{rows: first}, o, &fakeClient{script: script.script}, nil)
			if err != nil || len(second) != 9 {
				t.Fatalf("%s: the replay of the run: err = %v, %d rows; want 9", policy, err, len(second))
			}
			for i, r := range second {
				w := first[i]
				if r.ID != w.ID || r.Lap != w.Lap || r.Scheduled.V != w.Scheduled.V || r.PromptDigest != w.PromptDigest {
					t.Errorf("%s: request %d: (%d, %d) at %v, digest %v; want (%d, %d) at %v, %v", policy, i,
						r.ID, r.Lap, r.Scheduled.V, r.PromptDigest.V, w.ID, w.Lap, w.Scheduled.V, w.PromptDigest.V)
				}
			}
		})
	}
}

// TestRunSendsSessions: on demand a request names its session, another one in each
// lap, and one that has none says nothing.
func TestRunSendsSessions(t *testing.T) {
	for _, name := range []string{"", "X-Session-Id"} {
		synctest.Test(t, func(t *testing.T) {
			o := Defaults()
			o.Loop, o.SessionHeader = 2, name
			trace := talk()
			single := trace.rows[len(trace.rows)-1]
			single.ID, single.Session, single.Parent = 99, traceformat.Opt[int64]{}, traceformat.Opt[int64]{}
			single.Arrival += time.Second
			trace.rows = append(trace.rows, single)
			var mu sync.Mutex
			sent := map[string]string{}
			f := &fakeClient{script: func(int) string { return answer }}
			c := &headersClient{fakeClient: f, saw: func(h []wire.Field) {
				mu.Lock()
				defer mu.Unlock()
				var id, session string
				for _, f := range h {
					switch f.Name {
					case "X-Request-Id":
						id = f.Value
					case name:
						session += f.Value
					}
				}
				sent[id] = session
			}}
			rows, _, err := play(t, trace, o, f, func(conf *Config) { conf.Client = c })
			if err != nil || len(rows) != 2*len(trace.rows) {
				t.Fatalf("err = %v, %d rows; want %d", err, len(rows), 2*len(trace.rows))
			}
			for i := range rows {
				want := ""
				if s, ok := rows[i].Session.Get(); ok && name != "" {
					want = fmt.Sprintf("reprise-%d-%d", rows[i].Lap, s)
				}
				if got, ok := sent[requestID(&rows[i])]; !ok || got != want {
					t.Errorf("--session-header %q: request %d of lap %d sent session %q, want %q", name, rows[i].ID, rows[i].Lap, got, want)
				}
			}
		})
	}
	o := Defaults()
	for _, bad := range []string{"a b", "X-Session:", "content-length", "x-request-id"} {
		if o.SessionHeader = bad; o.Validate() == nil {
			t.Errorf("--session-header %q is taken", bad)
		}
	}
}

// A headersClient shows the headers of each request.
type headersClient struct {
	*fakeClient
	saw func([]wire.Field)
}

func (c *headersClient) Start(req *wire.Request, sink wire.Sink) wire.Call {
	c.saw(req.Header)
	return c.fakeClient.Start(req, sink)
}

// earlyAlarm notes how long before each deadline it was to wake.
type earlyAlarm struct {
	bubbleAlarm
	targets []time.Duration
}

func (a *earlyAlarm) SleepUntil(t time.Duration) {
	a.targets = append(a.targets, t)
	a.bubbleAlarm.SleepUntil(t)
}

// A watchedClient is told of each send by the pacer itself.
type watchedClient struct {
	*fakeClient
	sends func()
}

func (w *watchedClient) Start(req *wire.Request, sink wire.Sink) wire.Call {
	w.sends()
	return w.fakeClient.Start(req, sink)
}

// With a spin the pacer sleeps up to it and polls the clock from there: never
// is a request early, and no sleep goes up to its time.
func TestRunSpins(t *testing.T) {
	const spin = 2 * time.Millisecond
	o := Defaults()
	o.Spin = spin
	a := &earlyAlarm{bubbleAlarm: bubbleAlarm{make(chan struct{}, 1)}}
	spun := 0
	f := &fakeClient{script: func(int) string { return "sent head tok tok tok tok end" }}
	rows, stats, err := play(t, every(5, 10*time.Millisecond), o, f, func(c *Config) {
		c.newAlarm = func() (alarm, error) { return a, nil }
		c.Client = &watchedClient{f, func() {
			if clock.Now() >= a.targets[len(a.targets)-1]+spin {
				spun++
			}
		}}
	})
	if err != nil || len(rows) != 5 || stats.Sent != 5 {
		t.Fatalf("err = %v, %d rows, stats = %+v", err, len(rows), stats)
	}
	for i, r := range rows {
		if r.Wake.V < r.Scheduled.V {
			t.Errorf("row %d went out at %v, before its time %v", i, r.Wake.V, r.Scheduled.V)
		}
	}
	if spun != 5 {
		t.Errorf("%d of 5 sends came %v or more after the end of a sleep", spun, spin)
	}
}
