package synth

import (
	"math"
	"strings"
	"testing"

	"reprise/synth/score"
)

// A fit claims no more than it has shown.
func TestFitClaimsNoMoreThanItShows(t *testing.T) {
	sessions := &score.Sample{Horizon: 1000, Lengths: "cumulative"}
	for turn := range 6 {
		for id := range int32(40) {
			sessions.Arrival = append(sessions.Arrival, float64(turn)*100+float64(turn)*float64(id)/50)
			sessions.Session, sessions.Turn = append(sessions.Session, id), append(sessions.Turn, int32(turn))
			sessions.In, sessions.Out = append(sessions.In, int32(100+50*turn)), append(sessions.Out, 30)
		}
	}
	changed := bursty(8000, 1)
	for i := 5500; i < changed.N(); i++ {
		changed.Arrival[i] = changed.Arrival[5499] + (changed.Arrival[i]-changed.Arrival[5499])*float64(1+(i/40)%7)
	}
	for i := 1; i < changed.N(); i++ {
		changed.Arrival[i] = max(changed.Arrival[i], changed.Arrival[i-1])
	}
	changed.Horizon = changed.Arrival[changed.N()-1] + 0.1
	tests := []struct {
		name    string
		s       *score.Sample
		unseen  Unseen
		verdict string
	}{
		{"arrivals that were assumed", sessions, UnseenNotTested, "assumed, not learnt"},
		{"too few rows to hold any out", poisson(90, 1, 1), UnseenNotTested, "not tested on traffic it has not seen"},
		{"another hour every hour", changed, UnseenOff, "no candidate fits"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, r, _ := mustFit(t, tt.s, FitOptions{})
			if r.Fits || r.Unseen != tt.unseen || !strings.Contains(r.Verdict, tt.verdict) {
				t.Errorf("fits %t, unseen %q: %s", r.Fits, r.Unseen, r.Verdict)
			}
			if m.Fit.Fits {
				t.Error("the file says that it fits")
			}
		})
	}
}

// Held-out traffic that a Poisson process would pass for is no test of a model
// of bursts.
func TestTellsNothing(t *testing.T) {
	wide := unknownScores()
	wide.IDC = 3
	bursts, next := unknownScores(), unknownScores()
	bursts.IDC, next.IDC = 2, 3.2
	f := &fitter{report: &FitReport{Chosen: ArrivalsProfile, Candidates: []Candidate{{Name: ArrivalsExponential, Again: &bursts, Next: &next, folds: []foldScores{{next, wide}}}}}}
	if !f.tellsNothing() {
		t.Error("a Poisson process passes, and the test is taken for one")
	}
	f.report.Candidates[0].folds[0].floor.IDC = 0.5
	if f.tellsNothing() {
		t.Error("a Poisson process is found out, and the test is not taken for one")
	}
}

// The limits of unseen traffic: a floor widens them, what is unknown does not
// count against a model.
func TestOffNext(t *testing.T) {
	nan := score.Number(math.NaN())
	s := unknownScores()
	if off := s.offNext(&s); len(off) > 0 {
		t.Errorf("nothing is known, and %v is off", off)
	}
	s.IDC, s.InKS, s.Queues = 0.45, 0.05, []QueueScores{{0.5, 0.12, 1.5}, {0.8, nan, 0.3}}
	floor := unknownScores()
	floor.Queues = []QueueScores{{0.5, 0.02, 1.1}, {0.8, 0.1, 1}}
	if off := s.offNext(&floor); len(off) != 4 { // IDC, prompts, KS at 0.5, p99 at 0.8
		t.Errorf("off: %q", off)
	}
	floor.IDC, floor.InKS, floor.Queues = 0.4, 0.03, []QueueScores{{0.5, 0.1, 0.5}, {0.8, 0.1, 0.4}}
	if off := s.offNext(&floor); len(off) != 0 {
		t.Errorf("off in spite of the floor: %q", off)
	}
}
