package synth

import (
	"testing"

	"reprise/synth/score"
)

// A client of a trace with conversations may have none: all its sessions have one
// turn, and there is no pause to learn.
func TestSessionsOfOneTurn(t *testing.T) {
	s := &score.Sample{Arrival: []float64{0, 1, 3}, In: []int32{10, 20, 30}, Session: []int32{0, 1, 2}}
	f := fitSessions(s, sessionRows(s), nil)
	if err := f.check(); err != nil {
		t.Fatal(err)
	}
	if f.Turns.Max != 1 || f.turns() != 1 {
		t.Errorf("turns %+v", f.Turns)
	}
}
