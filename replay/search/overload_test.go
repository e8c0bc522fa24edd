package search

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"reprise/internal/metrics"
	"reprise/traceformat"
)

// arrivalsOf plays rows at given times against slots of a fixed service time and
// looks for overload.
func overloadOf(at []float64, slots int, service float64) *Overload {
	free := make([]float64, slots)
	var spans []span
	for _, t := range at {
		k := 0
		for i := range free {
			if free[i] < free[k] {
				k = i
			}
		}
		free[k] = max(t, free[k]) + service
		spans = append(spans, span{sent: t, end: free[k], ok: true})
	}
	if o, sure := detect(samples(spans)); sure {
		return o
	}
	return nil
}

func poisson(n int, seed uint64, rate func(t float64) float64) (at []float64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	t := 0.0
	for range n {
		t += rng.ExpFloat64() / rate(t)
		at = append(at, t)
	}
	return at
}

func TestOverload(t *testing.T) {
	const slots, service = 8, 0.1 // 80 requests/s
	constant := func(r float64) func(float64) float64 { return func(float64) float64 { return r } }
	tests := []struct {
		name  string
		n     int
		rate  func(float64) float64
		least float64 // share of the seeds that are called overloaded
		most  float64
	}{
		{"half of the capacity", 1000, constant(40), 0, 0},
		{"95 % of the capacity", 1000, constant(76), 0, 0.03},
		{"20 % beyond it", 1000, constant(96), 0.9, 1},
		{"half beyond it", 1000, constant(120), 1, 1},
		{"10 % beyond it, long", 5000, constant(88), 0.95, 1},
		{"a day that gets busier, within it", 1000, func(t float64) float64 { return min(76, 20+3*t) }, 0, 0.03},
		{"a busy minute that passes", 2000, func(t float64) float64 {
			if t > 8 && t < 12 {
				return 120
			}
			return 50
		}, 0, 0},
	}
	for _, tt := range tests {
		hits := 0.0
		const seeds = 100
		for seed := range uint64(seeds) {
			if overloadOf(poisson(tt.n, seed, tt.rate), slots, service) != nil {
				hits++
			}
		}
		if share := hits / seeds; share < tt.least || share > tt.most {
			t.Errorf("%s: %.2f of the runs are called overloaded, want %v to %v", tt.name, share, tt.least, tt.most)
		}
	}
	// Rates and growth are those of the truth: 120 arrive and 80 end.
	o := overloadOf(poisson(4000, 1, constant(120)), slots, service)
	if o == nil || math.Abs(o.Arrivals-120) > 8 || math.Abs(o.Completions-80) > 2 || math.Abs(o.Growth-40) > 6 {
		t.Errorf("overload is %+v, want 120 in, 80 out, 40 more each second", o)
	}
	for _, s := range [][]Sample{nil, make([]Sample, 500)} {
		if o, _ := detect(s); o != nil {
			t.Errorf("nothing is overloaded: %+v", o)
		}
	}
}

// feed plays a run second by second under a guard, and returns when it stopped.
func feed(rows []*traceformat.Row, w Watch) (reason string, at time.Duration, sent int64) {
	g := NewGuard(w)
	told := make([]bool, len(rows))
	last := rows[len(rows)-1].Scheduled.V
	for now := time.Duration(0); now <= last; now += Look {
		sent, flying := int64(0), int64(0)
		for i, r := range rows {
			if r.Sent.V > now {
				break
			}
			sent++
			switch {
			case r.Close.V > now:
				flying++
			case !told[i]:
				told[i] = true
				g.Add(r)
			}
		}
		if reason, text := g.Check(now, sent, flying); reason != "" {
			if text == "" {
				panic("a reason without a text")
			}
			return reason, now, sent
		}
	}
	return "", last, int64(len(rows))
}

func TestGuard(t *testing.T) {
	st := station{slots: 8, service: 0.1, first: 0.01, poisson: true}
	const n = 2000
	loose, tight := objectives(t, "ttft.p99<1h"), objectives(t, "ttft.p99<150ms")
	if why, at, _ := feed(st.play(Rate, Step{Kind: Probe, Load: 60, Requests: n}), Watch{Objectives: loose, Confidence: 0.95, Planned: n}); why != "" {
		t.Errorf("a run within capacity is stopped after %v: %s", at, why)
	}
	why, _, sent := feed(st.play(Rate, Step{Kind: Probe, Load: 160, Requests: n}), Watch{Objectives: loose, Confidence: 0.95, Planned: n})
	if why != StopOverload || sent > n*7/10 {
		t.Errorf("twice the capacity: %q after %d of %d requests", why, sent, n)
	}
	// In a closed loop no queue grows; that nobody meets the SLO is seen early.
	why, _, sent = feed(st.play(Concurrency, Step{Kind: Probe, Load: 40, Requests: n}), Watch{Objectives: tight, Confidence: 0.95, Planned: n, Closed: true})
	if why != StopHopeless || sent > n/2 {
		t.Errorf("five users a slot: %q after %d of %d requests", why, sent, n)
	}
	// A stop is a verdict: the same run, stopped or not, fails.
	rows := st.play(Concurrency, Step{Kind: Probe, Load: 40, Requests: n})
	part, err := Measure(each(rows[:700]), How{Objectives: tight, Confidence: 0.95, Kind: Probe, Closed: true, Planned: n, Stopped: true})
	if err != nil || worst(part.Objectives) != Fail {
		t.Errorf("700 of %d requests that all miss: %+v, %v", n, part, err)
	}
	part, err = Measure(each(rows[:700]), How{Objectives: loose, Confidence: 0.95, Kind: Probe, Closed: true, Planned: n, Stopped: true})
	if err != nil || worst(part.Objectives) != Pass {
		t.Errorf("700 of %d requests that all meet it: %+v, %v", n, part, err)
	}
}

// Misses that come together tell less than as many apart.
func TestClusteredMisses(t *testing.T) {
	o := objectives(t, "ttft.p95<1s")
	judge := func(miss func(i int) bool) Judged {
		ta := newTally(o, 1000, 1)
		for i := range 1000 {
			b := i * stretches / 1000
			ta.seen++
			ta.of[b]++
			if !miss(i) {
				ta.met[0][b]++
			}
		}
		return ta.judge(0.95, false)[0]
	}
	apart := judge(func(i int) bool { return i%33 == 0 })
	together := judge(func(i int) bool { return i >= 500 && i < 531 })
	if apart.Verdict != Pass || apart.Effective != 1000 {
		t.Errorf("31 misses apart: %+v", apart)
	}
	if together.Met != apart.Met || together.Verdict != Undecided || together.Effective > 100 {
		t.Errorf("31 misses together: %+v", together)
	}
}

// A trace that is played over misses at its own busy hour in every lap: that is
// no chance.
func TestLapsAreAlike(t *testing.T) {
	o := objectives(t, "ttft.p90<1s")
	for laps, want := range map[int]Verdict{1: Undecided, 10: Pass, 50: Pass} {
		ta := newTally(o, 1000, laps)
		for i := range 1000 {
			r := metrics.Reading{Class: metrics.OK, TTFT: traceformat.Some(time.Millisecond)}
			if i%(1000/laps) < 70/laps {
				r.TTFT = traceformat.Some(time.Hour)
			}
			ta.add(&r)
		}
		if j := ta.judge(0.95, false)[0]; j.Verdict != want {
			t.Errorf("%d laps: %+v, want %s", laps, j, want)
		}
	}
}
