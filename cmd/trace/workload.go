package main

import (
	"context"
	"fmt"

	ucli "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/synth/score"
)

// diffWorkload compares two traces as workloads.
func diffWorkload(ctx context.Context, c *ucli.Context, names []string) error {
	for _, f := range []string{"columns", "ignore", "n"} {
		if c.IsSet(f) {
			return cli.Usagef("", "--%s is for rows and --workload compares none", f)
		}
	}
	if names[0] == "-" && names[1] == "-" {
		return cli.Usagef("", "standard input cannot be both traces")
	}
	out, err := score.OutputOf(c)
	if err != nil {
		return err
	}
	var sides [2]*score.Sample
	for i, name := range names {
		if sides[i], err = loadSample(ctx, c, name); err != nil {
			return err
		}
	}
	r := score.Compare(sides[0], sides[1])
	return out.Write(c, r, sides[0], sides[1])
}

// loadSample reads a trace into memory and spreads the ticks of its clock.
func loadSample(ctx context.Context, c *ucli.Context, name string) (*score.Sample, error) {
	r, err := open(c, name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	s, err := score.Load(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	s = s.Dequantise(1)
	s.Name = name
	return s, nil
}
