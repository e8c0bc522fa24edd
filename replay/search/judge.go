package search

import (
	"math"

	"reprise/internal/metrics"
	"reprise/internal/stats"
	"reprise/traceformat"
)

// A Verdict says whether a load keeps the SLOs.
type Verdict string

const (
	Pass      Verdict = "pass"
	Fail      Verdict = "fail"
	Undecided Verdict = "undecided" // within the noise of a run of this length
)

// A Judged says what a run showed of one objective.
type Judged struct {
	Objective metrics.Objective `json:"slo"`
	Met       int64             `json:"requests_met"`
	Of        int64             `json:"requests_of"` // hang-ups of recorded users left out, failures not
	// Effective is the number of independent requests that tell as much.
	Effective float64 `json:"effective_requests"`
	Low       float64 `json:"share_low"` // interval of the share that met it
	High      float64 `json:"share_high"`
	// Value is the latency that just the share of the objective stayed below, a
	// failure being infinite.
	Value   traceformat.Opt[metrics.Nanos] `json:"value_ns,omitzero"`
	Verdict Verdict                        `json:"verdict"`
}

// Share is that of the requests that met the objective.
func (j *Judged) Share() float64 { return float64(j.Met) / float64(max(1, j.Of)) }

// settle computes interval and verdict.
func (j *Judged) settle(confidence float64) {
	j.Low, j.High = stats.Wilson(j.Share(), j.Effective, confidence)
	switch {
	case j.Of == 0:
		j.Verdict = Undecided
	case j.Low >= j.Objective.Share:
		j.Verdict = Pass
	case j.High < j.Objective.Share:
		j.Verdict = Fail
	default:
		j.Verdict = Undecided
	}
}

// worst is the verdict of all objectives together.
func worst(all []Judged) Verdict {
	v := Pass
	for i := range all {
		switch all[i].Verdict {
		case Fail:
			return Fail
		case Undecided:
			v = Undecided
		}
	}
	return v
}

// stretches is the most parts of a run that are compared with each other.
const stretches = 20

// parts is into how many parts a run of so many laps is cut. Where a trace is
// played over, its own busy hours are in every lap: what differs between laps is
// chance.
func parts(laps int) int64 {
	if laps < 4 {
		return stretches
	}
	each := (laps + stretches - 1) / stretches // laps a part
	return int64(laps / each)
}

// A tally counts, over stretches of a run, the requests that met each objective.
type tally struct {
	objectives []metrics.Objective
	planned    int64 // requests of the run
	parts      int64
	seen       int64
	of         [stretches]int64
	met        [][stretches]int64 // by objective
}

func newTally(objectives []metrics.Objective, planned int64, laps int) *tally {
	return &tally{objectives: objectives, planned: max(1, planned), parts: parts(laps), met: make([][stretches]int64, len(objectives))}
}

// judgeable says whether a request says something about the server: one that
// was cut because the run was stopped does not, nor does one whose user hung up.
func judgeable(r *metrics.Reading) bool {
	switch r.Class {
	case metrics.OK, metrics.Shed:
		return true
	case metrics.Failed:
		return r.Error != cutError
	}
	return false
}

// cutError is the error class of a request that a stopped run hung up on.
const cutError = "interrupted"

func (t *tally) add(r *metrics.Reading) {
	b := min(t.parts-1, t.seen*t.parts/t.planned)
	t.seen++
	if !judgeable(r) {
		return
	}
	t.of[b]++
	for i, o := range t.objectives {
		if r.Class == metrics.OK && r.Meets(o.SLO) {
			t.met[i][b]++
		}
	}
}

// judge says what was seen. With best, the requests that are still to come are
// taken to meet everything: what fails then, fails whatever they do.
func (t *tally) judge(confidence float64, best bool) []Judged {
	of := t.of
	var rest [stretches]int64
	if left := t.planned - t.seen; best && left > 0 {
		// A stretch holds as many as the plan says, those seen included.
		for b := range t.parts {
			ends := t.planned*(b+1)/t.parts - t.planned*b/t.parts
			rest[b] = min(left, max(0, ends-of[b]))
			left -= rest[b]
			of[b] += rest[b]
		}
	}
	out := make([]Judged, len(t.objectives))
	for i, o := range t.objectives {
		met := t.met[i]
		j := Judged{Objective: o}
		for b := range met {
			met[b] += rest[b]
			j.Met, j.Of = j.Met+met[b], j.Of+of[b]
		}
		j.Effective = float64(j.Of) / clustering(met[:], of[:])
		j.settle(confidence)
		out[i] = j
	}
	return out
}

// clustering is how much more the share differs between stretches than that of
// as many independent requests would, 1 where chance explains the difference:
// the design effect of a cluster sample.
func clustering(met, of []int64) float64 {
	var m, n float64
	for b := range of {
		m, n = m+float64(met[b]), n+float64(of[b])
	}
	p := m / n
	if !(p > 0 && p < 1) {
		return 1
	}
	chi, k := 0.0, 0
	for b := range of {
		if of[b] > 0 {
			d := float64(met[b]) - float64(of[b])*p
			chi += d * d / (float64(of[b]) * p * (1 - p))
			k++
		}
	}
	if k < 2 {
		return 1
	}
	df := float64(k - 1)
	// The mean of chi²/df is 1 and its variance 2/df, where misses are
	// independent.
	if ratio := chi / df; ratio > 1+2*math.Sqrt(2/df) {
		return ratio
	}
	return 1
}
