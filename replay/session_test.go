package replay

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"reprise/traceformat"
)

// talk is one conversation of three turns at 0, 10 and 20 s, with pauses of
// 4 and 5 s after answers that took 6 and 5 s when it was recorded.
func talk() *rowsOf {
	t := every(3, 10*time.Second)
	for i := range t.rows {
		r := &t.rows[i]
		r.Session, r.Turn = traceformat.Some[int64](1), traceformat.Some(int32(i))
		if i > 0 {
			r.Think = traceformat.Some(time.Duration(3+i) * time.Second)
		}
	}
	return t
}

func TestSessionPolicies(t *testing.T) {
	const s = time.Second
	tests := []struct {
		name    string
		policy  SessionPolicy
		speedup float64
		answer  string // how long the server takes
		want    []time.Duration
	}{
		{"recorded times ignore a slow answer", SessionsRecorded, 1, "30s", []time.Duration{0, 10 * s, 20 * s}},
		{"think: a slow answer delays what follows", SessionsThink, 1, "30s", []time.Duration{0, 34 * s, 69 * s}},
		{"think: a fast answer lets it come early", SessionsThink, 1, "1s", []time.Duration{0, 5 * s, 11 * s}},
		{"think: speed-up shortens the pause, not the answer", SessionsThink, 2, "1s", []time.Duration{0, 3 * s, 6500 * time.Millisecond}},
		{"both: a fast answer waits for the recorded time", SessionsBoth, 1, "1s", []time.Duration{0, 10 * s, 20 * s}},
		{"both: a slow one delays", SessionsBoth, 1, "8s", []time.Duration{0, 12 * s, 25 * s}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := Defaults()
				o.Sessions, o.Speedup = tt.policy, tt.speedup
				rows, _, err := play(t, talk(), o, &fakeClient{script: func(int) string { return "sent " + tt.answer + " head tok tok tok tok end" }}, nil)
				if err != nil || len(rows) != 3 {
					t.Fatalf("err = %v, %d rows; want 3", err, len(rows))
				}
				for i, r := range rows {
					if r.Sent.V != tt.want[i] || r.Scheduled.V != tt.want[i] || r.Arrival != tt.want[i] {
						t.Errorf("turn %d: sent %v, scheduled %v, arrival %v; want %v", i, r.Sent.V, r.Scheduled.V, r.Arrival, tt.want[i])
					}
				}
			})
		})
	}
}

// A branch goes on from an older turn, at the same time as the main line.
func TestSessionsBranch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trace := talk()
		trace.rows[2].Parent = traceformat.Some[int64](0)
		o := Defaults()
		o.Sessions = SessionsThink
		rows, _, err := play(t, trace, o, &fakeClient{script: func(int) string { return "sent 1s head tok tok tok tok end" }}, nil)
		if err != nil || len(rows) != 3 {
			t.Fatalf("err = %v, %d rows; want 3", err, len(rows))
		}
		if rows[1].Sent.V != 5*time.Second || rows[2].Sent.V != 6*time.Second {
			t.Errorf("turns sent at %v and %v, want 5s and 6s: both follow the first", rows[1].Sent.V, rows[2].Sent.V)
		}
	})
}

// The pause follows from the recorded answer where no column says it.
func TestSessionsPauseFromTheRecordedAnswer(t *testing.T) {
	trace := talk()
	for i := range trace.rows {
		trace.rows[i].Think = traceformat.Opt[time.Duration]{}
	}
	o := Defaults()
	o.Sessions = SessionsThink
	_, err := NewPlan(trace.source(), o, Target{})
	if e, ok := errors.AsType[*PlanError](err); !ok || e.Total != 2 || e.Hint == "" {
		t.Fatalf("NewPlan without pauses = %v, want a PlanError naming 2 rows and the next step", err)
	}
	trace.rows[0].E2E, trace.rows[1].E2E = traceformat.Some(6*time.Second), traceformat.Some(5*time.Second)
	synctest.Test(t, func(t *testing.T) {
		rows, _, err := play(t, trace, o, &fakeClient{script: func(int) string { return "sent 1s head tok tok tok tok end" }}, nil)
		if err != nil || len(rows) != 3 {
			t.Fatalf("err = %v, %d rows; want 3", err, len(rows))
		}
		if rows[1].Sent.V != 5*time.Second || rows[2].Sent.V != 11*time.Second {
			t.Errorf("turns sent at %v and %v, want 5s and 11s", rows[1].Sent.V, rows[2].Sent.V)
		}
	})
}

// A turn whose predecessor fails is sent all the same: the user's next message
// is part of the load.
func TestSessionsGoOnAfterAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Defaults()
		o.Sessions = SessionsThink
		rows, _, err := play(t, talk(), o, &fakeClient{script: func(int) string { return "sent 2s head:500" }}, nil)
		if err != nil || len(rows) != 3 {
			t.Fatalf("err = %v, %d rows; want 3", err, len(rows))
		}
		if rows[2].Sent.V != 13*time.Second {
			t.Errorf("third turn sent at %v, want 13s", rows[2].Sent.V)
		}
	})
}

// Closed loop: never more sessions at a time than users, and never fewer while
// there are sessions left.
func TestConcurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := Defaults()
		o.Concurrency = 4
		rows, stats, err := play(t, every(10, time.Hour), o, &fakeClient{script: func(int) string { return "sent 3s head tok tok tok tok end" }}, nil)
		if err != nil || len(rows) != 10 || stats.Peak != 4 {
			t.Fatalf("err = %v, %d rows, stats = %+v; want 10 rows, 4 in flight", err, len(rows), stats)
		}
		for i, r := range rows {
			if want := time.Duration(i/4) * 3 * time.Second; r.Sent.V != want || r.Scheduled.V != want {
				t.Errorf("request %d: sent %v, scheduled %v; want %v", i, r.Sent.V, r.Scheduled.V, want)
			}
		}
	})
}

// A user of the closed loop plays a session turn by turn before the next.
func TestConcurrencyIsPerSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		trace := talk()
		single := every(1, 0).rows[0]
		single.ID, single.Arrival = 9, time.Hour
		trace.rows = append(trace.rows, single)
		o := Defaults()
		o.Concurrency, o.Sessions = 1, SessionsThink
		rows, stats, err := play(t, trace, o, &fakeClient{script: func(int) string { return "sent 1s head tok tok tok tok end" }}, nil)
		if err != nil || len(rows) != 4 || stats.Peak != 1 {
			t.Fatalf("err = %v, %d rows, stats = %+v; want 4 rows, 1 in flight", err, len(rows), stats)
		}
		for i, want := range []time.Duration{0, 5 * time.Second, 11 * time.Second, 12 * time.Second} {
			if rows[i].Sent.V != want {
				t.Errorf("request %d sent at %v, want %v", i, rows[i].Sent.V, want)
			}
		}
	})
}

// A recorded client that hung up hangs up again: at the recorded moment, or at
// the recorded token.
func TestAborts(t *testing.T) {
	const s = time.Second
	tests := []struct {
		policy AbortPolicy
		result string
		chunks int
		end    time.Duration // of the stream
	}{
		{AbortTime, traceformat.ResultClientAbort, 2, 2500 * time.Millisecond},
		{AbortToken, traceformat.ResultClientAbort, 3, 3 * s},
		{AbortOff, traceformat.ResultOK, 4, 4 * s},
	}
	for _, tt := range tests {
		t.Run(string(tt.policy), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				trace := every(1, 0)
				r := &trace.rows[0]
				r.Result, r.Abort, r.OutputTokens = traceformat.ResultClientAbort, traceformat.Some(2500*time.Millisecond), traceformat.Some[int32](3)
				o := Defaults()
				o.Aborts = tt.policy
				rows, _, err := play(t, trace, o, &fakeClient{script: func(int) string { return "sent head 1s tok 1s tok 1s tok 1s tok end" }}, nil)
				if err != nil || len(rows) != 1 {
					t.Fatalf("err = %v, %d rows", err, len(rows))
				}
				if got := rows[0]; got.Result != tt.result || len(got.ChunkTimes) != tt.chunks || got.Close.V != tt.end {
					t.Errorf("outcome %q after %d chunks and %v; want %q, %d, %v", got.Result, len(got.ChunkTimes), got.Close.V, tt.result, tt.chunks, tt.end)
				}
				if got := rows[0]; tt.policy != AbortOff && (got.Error != "recorded_abort" || got.Abort.V != tt.end) {
					t.Errorf("class %q, abort %v; want recorded_abort, %v", got.Error, got.Abort.V, tt.end)
				}
			})
		})
	}
}
