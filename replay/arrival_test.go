package replay

import (
	"math"
	"slices"
	"testing"
	"time"

	"reprise/traceformat"
)

func TestParseArrival(t *testing.T) {
	tests := []struct {
		process, rate string
		want          string // of the error, empty for none
		stages        int
	}{
		{"poisson", "20", "", 1},
		{"", "20", "", 1},
		{"gamma:cv=2", "5:30s,5..40:2m,40", "", 3},
		{"constant", "0..10:1m", "", 1},
		{"poisson", "", "--arrival poisson needs --rate, in requests a second", 0},
		{"gamma", "5", `--arrival "gamma": want gamma:cv=N with N between 0 and 100`, 0},
		{"gamma:cv=-1", "5", `--arrival "gamma:cv=-1": want gamma:cv=N with N between 0 and 100`, 0},
		{"uniform", "5", `--arrival is "uniform", want constant, poisson or gamma:cv=N`, 0},
		{"poisson", "5,6", `--rate "5,6": only the last stage may go without a duration`, 0},
		{"poisson", "5..6", `--rate "5..6": a ramp needs a duration, such as 5..6:1m`, 0},
		{"poisson", "-5", `--rate stage "-5": want N, N:DURATION or N..M:DURATION in requests a second`, 0},
		{"poisson", "0:5s", `--rate stage "0:5s": want N, N:DURATION or N..M:DURATION in requests a second`, 0},
		{"poisson", "NaN", `--rate stage "NaN": want N, N:DURATION or N..M:DURATION in requests a second`, 0},
	}
	for _, tt := range tests {
		a, err := ParseArrival(tt.process, tt.rate)
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != tt.want || len(a.Stages) != tt.stages {
			t.Errorf("ParseArrival(%q, %q) = %d stages, %q; want %d, %q", tt.process, tt.rate, len(a.Stages), got, tt.stages, tt.want)
		}
	}
}

func TestArrivalTimes(t *testing.T) {
	parse := func(process, rate string) Arrival {
		a, err := ParseArrival(process, rate)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	constant := parse("constant", "4:1s,2:2s")
	const ms = time.Millisecond
	if got, want := slices.Collect(constant.times(1)), []time.Duration{250 * ms, 500 * ms, 750 * ms, 1000 * ms, 1500 * ms, 2000 * ms, 2500 * ms}; !slices.Equal(got, want) {
		t.Errorf("4/s for 1 s, then 2/s for 2 s = %v, want %v", got, want)
	}
	// A ramp from 0 to 10/s in 10 s expects t²/2 arrivals until t.
	ramp := parse("constant", "0..10:10s")
	for i, at := range slices.Collect(ramp.times(1)) {
		if want := math.Sqrt(2 * float64(i+1)); math.Abs(at.Seconds()-want) > 1e-6 {
			t.Errorf("arrival %d of the ramp at %v, want %.6f s", i, at, want)
		}
	}
	// Mean and variation of the random ones, over enough gaps that a wrong
	// process is 10 standard errors away.
	for _, tt := range []struct {
		process string
		cv      float64
	}{{"poisson", 1}, {"gamma:cv=2", 2}, {"gamma:cv=0.5", 0.5}} {
		a := parse(tt.process, "100")
		var n, sum, squares float64
		var before time.Duration
		for at := range a.times(7) {
			gap := (at - before).Seconds()
			before = at
			n, sum, squares = n+1, sum+gap, squares+gap*gap
			if n == 40000 {
				break
			}
		}
		mean := sum / n
		cv := math.Sqrt(squares/n-mean*mean) / mean
		if math.Abs(mean*100-1) > 0.05 || math.Abs(cv/tt.cv-1) > 0.05 {
			t.Errorf("%s at 100/s: mean gap %.5f s, cv %.3f; want 0.01 and %v", tt.process, mean, cv, tt.cv)
		}
		if !slices.Equal(take(a, 7, 10), take(a, 7, 10)) || slices.Equal(take(a, 7, 10), take(a, 8, 10)) {
			t.Errorf("%s: the seed does not decide the arrivals", tt.process)
		}
	}
}

func take(a Arrival, seed uint64, n int) (out []time.Duration) {
	for at := range a.times(seed) {
		if out = append(out, at); len(out) == n {
			break
		}
	}
	return out
}

// Superposing keeps every copy's own gaps: three times the requests, each
// recorded gap still there, and no two requests the same.
func TestScaleRateSuperposes(t *testing.T) {
	trace := every(100, time.Second)
	for i := range trace.rows {
		trace.rows[i].Arrival += time.Duration(i*i) * time.Millisecond // no two gaps alike
	}
	o := Defaults()
	o.ScaleRate = 2.5
	p, err := NewPlan(trace.source(), o, Target{})
	if err != nil {
		t.Fatal(err)
	}
	type key struct {
		id  int64
		lap int32
	}
	seen := map[key]time.Duration{}
	perLap := map[int32]int{}
	var before time.Duration
	for it, err := range p.items() {
		if err != nil {
			t.Fatal(err)
		}
		k := key{it.row.ID, it.lap}
		if _, dup := seen[k]; dup {
			t.Fatalf("request %+v is sent twice", k)
		}
		if it.due < before {
			t.Fatalf("request %+v at %v comes after one at %v", k, it.due, before)
		}
		before = it.due
		seen[k] = it.due
		perLap[it.lap]++
	}
	if perLap[0] != 100 || perLap[1] != 100 || perLap[2] < 30 || perLap[2] > 70 || int64(len(seen)) != p.Rows {
		t.Errorf("copies have %v requests, plan says %d; want 100, 100, about 50", perLap, p.Rows)
	}
	for k, at := range seen {
		want := trace.rows[k.id].Arrival
		if k.lap > 0 {
			want += p.shares[k.lap].offset
			if want >= p.Lap {
				want -= p.Lap
			}
		}
		if at != want {
			t.Fatalf("request %+v at %v, want %v", k, at, want)
		}
	}
	if p.shares[1].offset == 0 || p.shares[1].offset == p.shares[2].offset {
		t.Errorf("offsets %v and %v: the copies are not independent", p.shares[1].offset, p.shares[2].offset)
	}
}

// An arrival that falls on the start of a ramp from zero is at that start.
func TestArrivalOnAStageBoundary(t *testing.T) {
	a, err := ParseArrival("constant", "5:2s,0..40:1m")
	if err != nil {
		t.Fatal(err)
	}
	var before time.Duration
	for i, at := range take(a, 1, 40) {
		if at < before || at > time.Minute {
			t.Fatalf("arrival %d at %v, after one at %v", i, at, before)
		}
		before = at
	}
}

// A copy that is shifted keeps its conversations in order.
func TestScaleRateKeepsConversationsWhole(t *testing.T) {
	trace := every(300, time.Second)
	for i := range trace.rows {
		trace.rows[i].Session = traceformat.Some(int64(i % 20)) // each spans most of the lap
	}
	o := Defaults()
	o.ScaleRate = 4
	p, err := NewPlan(trace.source(), o, Target{})
	if err != nil {
		t.Fatal(err)
	}
	type key struct {
		session int64
		lap     int32
	}
	last := map[key]int64{}
	var before time.Duration
	for it, err := range p.allItems() {
		if err != nil {
			t.Fatal(err)
		}
		if it.due < before {
			t.Fatalf("request %d of copy %d at %v comes after one at %v", it.row.ID, it.lap, it.due, before)
		}
		before = it.due
		k := key{it.row.Session.V, it.lap}
		if id, ok := last[k]; ok && it.row.ID < id {
			t.Fatalf("copy %d: request %d after %d of the same session", it.lap, it.row.ID, id)
		}
		last[k] = it.row.ID
	}
}
