package experiment

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"
)

// What became of a run.
const (
	Pending  = "pending"
	Running  = "running"  // or killed
	Finished = "finished" // played to its end, hooks and all
	Failed   = "failed"   // and not to be tried again before the next resume
)

// A State is what became of each run of a plan.
type State struct {
	Version int         `json:"version"`
	Target  Target      `json:"target"` // as narrow as the servers seen so far ask for
	Runs    []RunStatus `json:"runs"`   // as in the plan
}

// A RunStatus is what became of one run.
type RunStatus struct {
	Run
	Status   string `json:"status"`
	Attempts int    `json:"attempts,omitempty"` // that failed or finished
	// Started and Took are of the last attempt, hooks and waiting included.
	Started time.Time     `json:"started_at,omitzero"`
	Took    time.Duration `json:"took_ns,omitempty"`
	Reason  string        `json:"reason,omitempty"` // why the last attempt failed
	Notes   []string      `json:"notes,omitempty"`
}

func newState(p *Plan) *State {
	s := &State{Version: Version, Target: p.Target}
	for _, r := range p.Runs {
		s.Runs = append(s.Runs, RunStatus{Run: r, Status: Pending})
	}
	return s
}

// ReadState reads what became of the runs of p.
func ReadState(dir string, p *Plan) (*State, error) {
	name := filepath.Join(dir, StateFile)
	s := new(State)
	err := readJSON(name, s)
	if errors.Is(err, fs.ErrNotExist) {
		return newState(p), nil
	}
	if err != nil {
		return nil, err
	}
	if s.Version < 1 || s.Version > Version || len(s.Runs) != len(p.Runs) {
		return nil, fmt.Errorf("%s is not of this plan", name)
	}
	for i, r := range s.Runs {
		if r.Run != p.Runs[i] {
			return nil, fmt.Errorf("%s: run %d is another than in %s", name, i+1, PlanFile)
		}
	}
	return s, nil
}

// Count returns how many runs have a status.
func (s *State) Count(status string) (n int) {
	for i := range s.Runs {
		if s.Runs[i].Status == status {
			n++
		}
	}
	return n
}

// left guesses how long the unfinished runs take: each as long as the finished
// ones of its cell did, or as planned and as much longer as those of other cells
// took. beside is left out.
func (s *State) left(p *Plan, beside int) (d time.Duration) {
	type mean struct {
		sum time.Duration
		n   int
	}
	took := map[string]mean{}
	var real, planned time.Duration
	for _, r := range s.Runs {
		if r.Status == Finished {
			m := took[r.Cell]
			took[r.Cell] = mean{m.sum + r.Took, m.n + 1}
			real, planned = real+r.Took, planned+p.Cell(r.Cell).RunTime
		}
	}
	for i, r := range s.Runs {
		if i == beside || r.Status == Finished || r.Status == Failed {
			continue
		}
		if m := took[r.Cell]; m.n > 0 {
			d += m.sum / time.Duration(m.n)
			continue
		}
		guess := p.Cell(r.Cell).RunTime
		if planned > 0 {
			guess = time.Duration(float64(guess) * float64(real) / float64(planned))
		}
		d += guess
	}
	return d
}
