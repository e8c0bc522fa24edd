package search

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"reprise/internal/metrics"
	"reprise/traceformat"
)

// A station is a server of so many slots, each of which takes a fixed time for a
// request: its capacity is known exactly.
type station struct {
	slots    int
	service  float64 // s, of which
	first    float64 // until the first token
	slower   float64 // service grows by this share for each request in the system beside
	poisson  bool
	failures float64 // share of requests that fail
	seed     uint64
}

const stationTokens = 11

// capacity is in requests a second.
func (s station) capacity() float64 { return float64(s.slots) / s.service }

// play simulates a run and returns its rows.
func (s station) play(by Axis, step Step) []*traceformat.Row {
	rng := rand.New(rand.NewPCG(s.seed, 7))
	n := int(step.Requests)
	free := make([]float64, s.slots)
	closed, users := false, 0
	switch {
	case step.Kind == Floor:
		closed, users = true, 1
	case step.Kind != Burst && by == Concurrency:
		closed, users = true, int(step.Load)
	}
	user := make([]float64, max(1, users))
	var rows []*traceformat.Row
	at := 0.0
	for i := range n {
		u := 0
		switch {
		case closed:
			for k := range user {
				if user[k] < user[u] {
					u = k
				}
			}
			at = user[u]
		case step.Kind == Burst:
		case s.poisson:
			at += rng.ExpFloat64() / step.Load
		default:
			at += 1 / step.Load
		}
		slot := 0
		for k := range free {
			if free[k] < free[slot] {
				slot = k
			}
		}
		begin := max(at, free[slot])
		busy := 0
		for _, f := range free {
			if f > begin {
				busy++
			}
		}
		took := s.service * (1 + s.slower*float64(busy))
		end := begin + took
		free[slot] = end
		if closed {
			user[u] = end
		}
		row := &traceformat.Row{}
		ns := func(t float64) time.Duration { return time.Duration(t * 1e9) }
		row.ID, row.Arrival = int64(i), ns(at)
		row.PromptTokens, row.OutputTokens = traceformat.Some(int32(10)), traceformat.Some(int32(stationTokens))
		row.Scheduled, row.Sent = traceformat.Some(ns(at)), traceformat.Some(ns(at))
		row.ServedOutputTokens = row.OutputTokens
		row.TTFT, row.E2E = traceformat.Some(ns(begin-at+s.first)), traceformat.Some(ns(end-at))
		row.Close = traceformat.Some(ns(end))
		row.Result, row.FinishReason = traceformat.ResultOK, "length"
		if rng.Float64() < s.failures {
			row.Result = traceformat.ResultServerError
		}
		rows = append(rows, row)
	}
	return rows
}

func each(rows []*traceformat.Row) func(func(*traceformat.Row, error) bool) {
	return func(yield func(*traceformat.Row, error) bool) {
		for _, r := range rows {
			if !yield(r, nil) {
				return
			}
		}
	}
}

func objectives(t testing.TB, slos ...string) []metrics.Objective {
	t.Helper()
	o, err := metrics.ParseObjectives(slos, 0.99)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func rateSpec(t testing.TB, slos ...string) *Spec {
	o := objectives(t, slos...)
	s := &Spec{By: Rate, Objectives: o, Confidence: 0.95, Within: 0.03, Runs: 8, Requests: DefaultRequests(o, 0.95), Base: 1}
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	return s
}

// simulate runs a whole search against rows that play makes.
func simulate(t testing.TB, s *Spec, play func(Step) []*traceformat.Row) ([]Run, *Result) {
	t.Helper()
	var runs []Run
	for {
		step, status := s.Next(runs)
		if step == nil {
			r := s.Result(runs)
			if r.Status != status {
				t.Errorf("Result says %q and Next %q", r.Status, status)
			}
			return runs, r
		}
		m, err := Measure(each(play(*step)), How{
			Objectives: s.Objectives, Confidence: s.Confidence, Kind: step.Kind, Closed: s.By == Concurrency, Planned: step.Requests,
		})
		if err != nil {
			t.Fatal(err)
		}
		run := Run{Number: len(runs) + 1, Kind: step.Kind, Load: step.Load, Why: step.Why, Planned: step.Requests, Measured: m}
		run.Judge()
		runs = append(runs, run)
		if len(runs) > s.Runs+s.Confirm {
			t.Fatalf("it does not end:\n%s", listing(runs))
		}
	}
}

func listing(runs []Run) (out string) {
	for _, r := range runs {
		out += fmt.Sprintf("%d %s %v %s overload=%t completed %.2f/s (%s)", r.Number, r.Kind, r.Load, r.Verdict, r.Overload != nil, r.Completed, r.Why)
		for _, j := range r.Objectives {
			out += fmt.Sprintf("; %s %.4f [%.4f %.4f] %v", j.Objective, j.Share(), j.Low, j.High, j.Value.V)
		}
		out += "\n"
	}
	return out
}

// The capacity of a server with even arrivals is slots / service time: below it
// nothing waits, above it the queue grows for ever.
func TestFindsKnownCapacity(t *testing.T) {
	for _, slots := range []int{1, 2, 7, 16, 64, 200} {
		for _, service := range []float64{0.05, 0.4, 3} {
			st := station{slots: slots, service: service, first: service / 10}
			s := rateSpec(t, fmt.Sprintf("ttft.p99<%dms", int(1000*service)))
			runs, r := simulate(t, s, func(step Step) []*traceformat.Row { return st.play(s.By, step) })
			lo, hi := r.Capacity.V/st.capacity(), r.Fails.V/st.capacity()
			if r.Status != Found || lo < 0.97 || lo > 1.03 || hi/lo > 1.0301 || len(runs) > 8 {
				t.Errorf("%d slots, %v s: %s, passes %.3f and fails %.3f of the capacity after %d runs\n%s", slots, service, r.Status, lo, hi, len(runs), listing(runs))
			}
			if x := r.Saturation.Requests / st.capacity(); x < 0.96 || x > 1.04 {
				t.Errorf("%d slots, %v s: saturation throughput is %.3f of the capacity (%+v)\n%s", slots, service, x, r.Saturation, listing(runs))
			}
		}
	}
}

// With Poisson arrivals latency rises before saturation. The truth is where a
// long run crosses the objective, found without the search. A run of a search is
// shorter and says so: what it calls passed or failed must be that, but for its
// confidence.
func TestFindsCrossingOfAQueue(t *testing.T) {
	var wrong, all int
	var errs []float64
	for _, tt := range []struct {
		slots  int
		slower float64
		slo    string
	}{{1, 0, "ttft.p99<500ms"}, {4, 0, "ttft.p95<200ms"}, {16, 0.05, "e2e.p99<200ms"}, {16, 0.05, "tpot.p50<10ms"}} {
		st := station{slots: tt.slots, service: 0.1, first: 0.02, slower: tt.slower, poisson: true, seed: 99}
		s := rateSpec(t, tt.slo)
		s.Requests = 2000
		share := func(load float64) float64 {
			const n = 12_000
			met := 0
			for _, row := range st.play(Rate, Step{Kind: Probe, Load: load, Requests: n}) {
				if r := metrics.Measure(row); r.Meets(s.Objectives[0].SLO) {
					met++
				}
			}
			return float64(met) / n
		}
		truth, hi := 1.0, 2*st.capacity()
		for range 9 {
			if mid := math.Sqrt(truth * hi); share(mid) >= s.Objectives[0].Share {
				truth = mid
			} else {
				hi = mid
			}
		}
		for seed := range uint64(3) {
			st.seed = seed
			runs, r := simulate(t, s, func(step Step) []*traceformat.Row { return st.play(s.By, step) })
			e := r.Estimate.V / truth
			errs = append(errs, math.Abs(math.Log(e)))
			all++
			if r.Capacity.V > 1.03*truth || r.Fails.OK && r.Fails.V < truth/1.03 {
				wrong++
			}
			if e < 0.85 || e > 1.18 || len(runs) > 8 {
				t.Errorf("%+v %s: estimate is %.3f of the truth %.2f, %s [%v %v] after %d runs\n%s", st, tt.slo, e, truth, r.Status, r.Capacity.V, r.Fails.V, len(runs), listing(runs))
			}
		}
	}
	slices.Sort(errs)
	t.Logf("wrong brackets: %d of %d; errors of the estimate %.3f", wrong, all, errs)
	if median := errs[len(errs)/2]; wrong > 2 || median > 0.04 {
		t.Errorf("%d of %d brackets leave out the truth, the median error is %.3f", wrong, all, median)
	}
}

func TestClosedLoop(t *testing.T) {
	for _, slots := range []int{1, 3, 10, 64, 300} {
		st := station{slots: slots, service: 0.2, first: 0.02}
		o := objectives(t, "ttft.p99<50ms")
		s := &Spec{By: Concurrency, Objectives: o, Confidence: 0.95, Within: 0.03, Runs: 8, Requests: 2000}
		runs, r := simulate(t, s, func(step Step) []*traceformat.Row { return st.play(s.By, step) })
		if math.Abs(r.Capacity.V-float64(slots)) > 0.03*float64(slots) || len(runs) > 8 {
			t.Errorf("%d slots: %v sessions (%s) after %d runs\n%s", slots, r.Capacity.V, r.Status, len(runs), listing(runs))
		}
		for i := range runs {
			if runs[i].Overload != nil {
				t.Errorf("a closed loop is overloaded:\n%s", listing(runs))
			}
		}
	}
}

func TestEnds(t *testing.T) {
	st := station{slots: 8, service: 0.1, first: 0.01}
	tests := []struct {
		name   string
		change func(*Spec)
		slo    string
		status string
	}{
		{"the floor misses it", nil, "ttft.p99<5ms", Nothing},
		{"the floor misses one of two", nil, "ttft.p99<5s,tpot.p50<1ms", Nothing},
		{"the highest load allowed passes", func(s *Spec) { s.Max = 40 }, "ttft.p99<1s", AtMax},
		{"the lowest load allowed fails", func(s *Spec) { s.Min = 100 }, "ttft.p99<1s", Nothing},
		{"an SLO that nothing misses ends at overload", nil, "e2e.p99<10h", Found},
		{"too few runs", func(s *Spec) { s.Runs = 3 }, "ttft.p99<1s", UsedUp},
	}
	for _, tt := range tests {
		s := rateSpec(t, tt.slo)
		if tt.change != nil {
			tt.change(s)
		}
		runs, r := simulate(t, s, func(step Step) []*traceformat.Row { return st.play(s.By, step) })
		if tt.status == UsedUp && r.Status == NoBounds {
			r.Status = UsedUp
		}
		if r.Status != tt.status {
			t.Errorf("%s: %s, want %s\n%s", tt.name, r.Status, tt.status, listing(runs))
		}
		for _, run := range runs {
			if run.Load > 0 && (s.Max > 0 && run.Load > s.Max || run.Load < s.Min) {
				t.Errorf("%s: load %v is out of bounds", tt.name, run.Load)
			}
		}
	}
}

// What is not the server's fault does not end a search: a load that failed while
// this machine was the bottleneck is played again, and so is one that failed
// below one that passed.
func TestPlaysDoubtsAgain(t *testing.T) {
	st := station{slots: 8, service: 0.1, first: 0.01}
	for name, spoil := range map[string]func(r *Run){
		"invalid": func(r *Run) { r.Invalid = []string{"the sender was late"} },
		"chance":  func(*Run) {},
	} {
		s := rateSpec(t, "ttft.p99<100ms")
		s.Runs = 12
		var runs []Run
		spoilt := 0.0
		for {
			step, _ := s.Next(runs)
			if step == nil {
				break
			}
			m, err := Measure(each(st.play(s.By, *step)), How{Objectives: s.Objectives, Confidence: 0.95, Kind: step.Kind, Planned: step.Requests})
			if err != nil {
				t.Fatal(err)
			}
			run := Run{Number: len(runs) + 1, Kind: step.Kind, Load: step.Load, Planned: step.Requests, Why: step.Why, Measured: m}
			run.Judge()
			if step.Kind == Probe && spoilt == 0 {
				spoilt = step.Load // the first load fails whatever it is
				run.Verdict = Fail
				for i := range run.Objectives {
					run.Objectives[i].Met, run.Objectives[i].Verdict = 0, Fail
				}
				spoil(&run)
			}
			runs = append(runs, run)
		}
		r := s.Result(runs)
		if name == "invalid" && (math.Abs(r.Capacity.V/st.capacity()-1) > 0.03 || times(runs, spoilt) < 2) {
			t.Errorf("%s: capacity %v of %v, %s\n%s", name, r.Capacity.V, st.capacity(), r.Status, listing(runs))
		}
		if r.Capacity.V > 1.03*st.capacity() || r.Fails.V < spoilt {
			t.Errorf("%s: bracket [%v %v]\n%s", name, r.Capacity.V, r.Fails.V, listing(runs))
		}
	}
}

// A search goes on from its file: with what the file keeps of the runs, the next
// step is the one that it was.
func TestGoesOnFromItsFile(t *testing.T) {
	st := station{slots: 5, service: 0.1, first: 0.01, poisson: true, seed: 3}
	s := rateSpec(t, "ttft.p95<150ms", "e2e<1s")
	s.Curve, s.Runs, s.Confirm = true, 12, 2
	runs, result := simulate(t, s, func(step Step) []*traceformat.Row { return st.play(s.By, step) })
	dir := t.TempDir()
	fresh := func() *File { return &File{Version: Version, Trace: "t", Spec: *s} }
	f, begun, err := Open(dir, fresh())
	if err != nil || begun {
		t.Fatal(begun, err)
	}
	if _, _, err := Open(dir, fresh()); err == nil {
		t.Error("two may play one search")
	}
	f.Runs = runs
	if err := f.Save(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	g, begun, err := Open(dir, fresh())
	if err != nil || !begun {
		t.Fatal(begun, err)
	}
	defer g.Close()
	for k := range runs {
		a, _ := s.Next(runs[:k])
		b, _ := g.Spec.Next(g.Runs[:k])
		if a == nil || b == nil || *a != *b {
			t.Errorf("after %d runs: %+v, and from the file %+v", k, a, b)
		}
	}
	if r := g.Spec.Result(g.Runs); r.Status != result.Status || r.Capacity != result.Capacity || r.ConfirmedOf != 2 {
		t.Errorf("the result became %+v, and was %+v", r, result)
	}
	measured := 0
	for i, p := range result.Curve {
		if p.Source == FromRun {
			measured++
		}
		if i > 0 && p.E2EP50.OK && p.E2EP50.V < 0.98*result.Curve[i-1].E2EP50.V {
			t.Errorf("latency falls with load: %+v", result.Curve)
		}
	}
	if measured < 3 || result.Knee == nil || !(result.Knee.Load > 0) {
		t.Errorf("%d of the curve are measured, knee %+v\n%s", measured, result.Knee, listing(runs))
	}
	other := fresh()
	other.Spec.Objectives = objectives(t, "ttft.p95<151ms", "e2e<1s")
	if d := g.Differs(other); d == "" {
		t.Error("another SLO is the same search")
	}
}
