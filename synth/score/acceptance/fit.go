package main

import (
	"context"

	"reprise/synth"
	"reprise/synth/score"
)

// fit learns a model of train, of the kind that models are called by in the
// table.
func fit(ctx context.Context, train *score.Sample, kind string) (*synth.Model, error) {
	o := synth.FitOptions{Name: train.Name, Seed: 1, AllowResampling: kind != plain}
	if kind == rowsAlone {
		o.Kind = synth.ArrivalsRows
	}
	m, _, err := synth.Fit(ctx, train, o)
	return m, err
}
