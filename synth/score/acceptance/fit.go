package main

import (
	"context"

	"reprise/synth"
	"reprise/synth/score"
)

// fit learns a model of train, with rows of the source in it where rows is set
// and they serve better.
func fit(ctx context.Context, train *score.Sample, rows bool) (*synth.Model, error) {
	m, _, err := synth.Fit(ctx, train, synth.FitOptions{Name: train.Name, AllowResampling: rows, Seed: 1})
	return m, err
}
