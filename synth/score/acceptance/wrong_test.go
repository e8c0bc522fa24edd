package main

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"

	"reprise/synth/score"
)

// Each wrong model fails the metric that names it, and every other way of
// looking at it that it should survive lets it pass.
func TestWrongModelsFail(t *testing.T) {
	o := options{traces: os.Getenv("REPRISE_SHARED") + "/traces", seeds: 3, stderr: io.Discard}
	if os.Getenv("REPRISE_SHARED") == "" {
		o.traces = "../../../../shared/traces"
	}
	for _, name := range []string{"conv", "code", "moon"} {
		t.Run(name, func(t *testing.T) {
			s, err := o.load(context.Background(), name)
			if errors.Is(err, os.ErrNotExist) {
				t.Skip("the public traces are not here (set REPRISE_SHARED to the folder that holds traces/)")
			}
			if err != nil {
				t.Fatal(err)
			}
			c := &trace{options: &o, name: name, real: s}
			if err := c.wrongModels(context.Background()); err != nil {
				t.Fatal(err)
			}
			if len(c.figures) == 0 {
				t.Fatal("no wrong models were tried")
			}
			tab := table{Figures: c.figures}
			if tab.unexpected() || testing.Verbose() {
				tab.text(os.Stdout)
			}
			if tab.unexpected() {
				t.Error("a wrong model passes")
			}
		})
	}
}

// What the wrong models keep, they keep exactly.
func TestWrongModelsKeepTheRest(t *testing.T) {
	s := &score.Sample{Horizon: 10, BlockSize: 10, BlockStart: []int{0}}
	for i, ids := range [][]uint64{{1, 2, 3}, {1, 2, 4}, {1, 5}, {1, 2, 6}} {
		s.Arrival = append(s.Arrival, float64(i))
		s.In, s.Out = append(s.In, int32(10*len(ids))), append(s.Out, int32(i))
		s.Blocks = append(s.Blocks, ids...)
		s.BlockStart = append(s.BlockStart, len(s.Blocks))
	}
	if got := shuffledModel(s, 1); score.GapKS(s, got) != 0 || score.KS(score.Known(s.In), score.Known(got.In)) != 0 {
		t.Error("shuffling has changed gaps or lengths")
	}
	if got := independentModel(s, 1); score.GapKS(s, got) != 0 || score.KS(score.Known(s.In), score.Known(got.In)) != 0 {
		t.Error("independent outputs have changed gaps or prompts")
	}
	if got := poissonModel(s, 1); got.Horizon != s.Horizon || len(got.In) != got.N() {
		t.Errorf("Poisson: %d rows, %d lengths", got.N(), len(got.In))
	}
	m := newTreeModel(s)
	if len(m.nodes) != 3 { // root, 1, 2
		t.Errorf("%d nodes are shared, want the root and two", len(m.nodes))
	}
	got := m.sample(1)
	if faults, first := score.CheckTree(got); faults != 0 {
		t.Errorf("the tree walk is no tree: %v", first)
	}
	for i := range got.Arrival {
		if ids := got.RowBlocks(i); len(ids) < 2 || ids[0] != 1 {
			t.Errorf("row %d: %v, want the root and a tail", i, ids)
		}
	}
}
