package score

import (
	"context"
	"fmt"

	"reprise/traceformat"
)

// Load reads a trace into memory. It does not close r.
func Load(ctx context.Context, r traceformat.Reader) (*Sample, error) {
	var b Builder
	n := 0
	for row, err := range r.All() {
		if err != nil {
			return nil, err
		}
		if n++; n%4096 == 0 && ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err := b.Add(row); err != nil {
			return nil, err
		}
	}
	if n == 0 {
		return nil, traceformat.ErrEmpty
	}
	return b.Sample(r.Header()), nil
}

// LoadFile opens name, as [traceformat.Open] does, and reads it into memory.
func LoadFile(ctx context.Context, name string, opts ...traceformat.ReadOption) (*Sample, error) {
	r, err := traceformat.Open(name, opts...)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	s, err := Load(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	s.Name = name
	return s, nil
}
