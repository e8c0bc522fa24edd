package metrics

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"reprise/traceformat"
)

// A folded run says what a kept one says: counts and means to the last digit,
// percentiles to three, what is placed in time to the width of a slot.
func TestFoldedRunSaysTheSame(t *testing.T) {
	const n = 20000
	rng := rand.New(rand.NewPCG(1, 2))
	at := func(scale time.Duration) time.Duration { return time.Duration(rng.ExpFloat64() * float64(scale)) }
	rows := make([]*traceformat.Row, n)
	for i := range rows {
		r := &traceformat.Row{}
		r.ID, r.Arrival = int64(i), time.Duration(i)*10*time.Millisecond
		r.Scheduled = traceformat.Some(r.Arrival)
		r.Wake = traceformat.Some(r.Arrival + at(20*time.Microsecond))
		r.Conn = traceformat.Some(r.Wake.V + at(10*time.Microsecond))
		r.ConnReused = traceformat.Some(rng.IntN(10) > 0)
		r.Sent = traceformat.Some(r.Conn.V + at(2*time.Microsecond))
		r.PromptTokens, r.OutputTokens = traceformat.Some[int32](100), traceformat.Some[int32](10)
		r.ServedPromptTokens, r.ServedOutputTokens = r.PromptTokens, r.OutputTokens
		r.TTFT = traceformat.Some(at(300 * time.Millisecond))
		r.E2E = traceformat.Some(r.TTFT.V + at(2*time.Second))
		r.Close = traceformat.Some(r.Sent.V + r.E2E.V)
		r.Status, r.Result, r.FinishReason = traceformat.Some[int16](200), traceformat.ResultOK, "length"
		if rng.IntN(10) == 0 {
			r.Result, r.Error, r.Status = traceformat.ResultServerError, "http_500", traceformat.Some[int16](500)
		}
		rows[i] = r
	}
	rng.Shuffle(n, func(i, j int) { rows[i], rows[j] = rows[j], rows[i] }) // rows come as they end

	for _, to := range []time.Duration{0, 150 * time.Second} {
		conf := Config{From: 5 * time.Second, To: to, SLOs: []SLO{{MetricTTFT, 500 * time.Millisecond}, {MetricE2E, 3 * time.Second}}, Planned: n + 7}
		kept, folds := NewCollector(conf), NewCollector(conf)
		folds.keep = 1000
		for _, r := range rows {
			kept.Add(r)
			folds.Add(r)
		}
		k, f := kept.Summary(), folds.Summary()
		if folds.rows != nil || folds.folded == nil {
			t.Fatal("nothing was folded")
		}
		if k.Requests.Measured != f.Requests.Measured || k.Requests.OK != f.Requests.OK || k.Requests.Warmup != f.Requests.Warmup || k.Requests.After != f.Requests.After {
			t.Errorf("requests: %+v, folded %+v", k.Requests, f.Requests)
		}
		if k.Rates != f.Rates || k.Window != f.Window {
			t.Errorf("rates and window: %+v %+v, folded %+v %+v", k.Rates, k.Window, f.Rates, f.Window)
		}
		if k.Goodput.Met != f.Goodput.Met || k.Goodput.SLOs[0] != f.Goodput.SLOs[0] || k.Goodput.SLOs[1] != f.Goodput.SLOs[1] {
			t.Errorf("goodput: %+v, folded %+v", k.Goodput, f.Goodput)
		}
		for _, d := range []struct {
			name string
			k, f *Dist
		}{
			{"ttft", &k.TTFT.Schedule, &f.TTFT.Schedule}, {"ttft from send", &k.TTFT.Send, &f.TTFT.Send},
			{"ttft with failures", &k.TTFT.WithFailures, &f.TTFT.WithFailures},
			{"e2e", &k.E2E.Schedule, &f.E2E.Schedule}, {"tpot", &k.TPOT, &f.TPOT}, {"failed after", &k.FailedAfter, &f.FailedAfter},
			{"send error", &k.SendLag.Error, &f.SendLag.Error}, {"pacer", &k.SendLag.Pacer, &f.SendLag.Pacer},
			{"queue", &k.SendLag.Queue, &f.SendLag.Queue}, {"connect", &k.SendLag.Connect, &f.SendLag.Connect},
		} {
			if d.k.N != d.f.N || d.k.N == 0 || d.k.Max != d.f.Max || d.k.Min != d.f.Min {
				t.Errorf("%s: %+v, folded %+v", d.name, d.k, d.f)
			}
			if d.f.Estimator != HDR || d.k.Estimator != Exact {
				t.Errorf("%s: estimators %s, folded %s", d.name, d.k.Estimator, d.f.Estimator)
			}
			for _, q := range percentiles {
				a, b := *q.of(d.k), *q.of(d.f)
				if a.OK != b.OK {
					t.Errorf("%s %s: %v, folded %v", d.name, q.name, a, b)
				}
				if a.OK && !a.V.IsInf() && math.Abs(float64(a.V-b.V)) > 0.02*float64(a.V)+2000 || a.V.IsInf() != b.V.IsInf() {
					t.Errorf("%s %s: %v, folded %v", d.name, q.name, a.V, b.V)
				}
			}
		}
		if d := math.Abs(k.InFlight.Mean-f.InFlight.Mean) / k.InFlight.Mean; d > 1e-3 {
			t.Errorf("in flight on average %g, folded %g", k.InFlight.Mean, f.InFlight.Mean)
		}
		if f.InFlight.Peak > k.InFlight.Peak || float64(f.InFlight.Peak) < 0.98*float64(k.InFlight.Peak) {
			t.Errorf("in flight at most %d, folded %d", k.InFlight.Peak, f.InFlight.Peak)
		}
		var requests, ok int64
		for i, b := range f.Timeline {
			requests, ok = requests+b.Requests, ok+b.OK
			if i > 0 && b.From-f.Timeline[i-1].From != f.Timeline[1].From-f.Timeline[0].From {
				t.Errorf("bin %d begins at %v", i, b.From)
			}
			if m := b.TTFT.V.Duration(); b.OK > 100 && (m < 120*time.Millisecond || m > 330*time.Millisecond) {
				t.Errorf("bin %d has a median TTFT of %v, its source 208 ms", i, m)
			}
		}
		if requests != f.Requests.Measured || ok != f.Requests.OK || len(f.Timeline) > maxBins {
			t.Errorf("timeline of %d bins holds %d requests, %d ok; %+v", len(f.Timeline), requests, ok, f.Requests)
		}
	}
}

// Slots and bins join without losing anything.
func TestFlightJoins(t *testing.T) {
	var f flight
	f.add(0, 10*time.Second)
	f.add(3*time.Second, 5*time.Second)
	f.add(time.Hour, 2*time.Hour) // widens the slots
	if got, want := f.busy(0, 3*time.Hour), 12*time.Second+time.Hour; got != want {
		t.Errorf("busy for %v, want %v", got, want)
	}
	if got := f.busy(20*time.Second, 30*time.Minute); got != 0 {
		t.Errorf("busy for %v in between", got)
	}
	if f.peak() != 2 {
		t.Errorf("peak %d", f.peak())
	}
}
