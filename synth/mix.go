package synth

import (
	"errors"
	"fmt"
)

// A Weighted model is one part of a mix.
type Weighted struct {
	Model *Model
	// Share of the requests of the mix; shares are taken relative to their sum.
	Share float64
}

// Mix superposes models: the mix has the mean rate of the first model, and of
// its requests each model has its share. Block ids and sessions of the parts stay
// apart. All that have blocks must have blocks of one size and rule.
func Mix(parts []Weighted) (*Model, error) {
	if len(parts) == 0 {
		return nil, errors.New("a mix needs at least one model")
	}
	total := 0.0
	for i, p := range parts {
		if !finite(p.Share) || p.Share <= 0 {
			return nil, fmt.Errorf("part %d of the mix: share is %v, want more than 0", i+1, p.Share)
		}
		if err := p.Model.Check(); err != nil {
			return nil, fmt.Errorf("part %d of the mix: %w", i+1, err)
		}
		if p.Model.Rate() <= 0 {
			return nil, fmt.Errorf("part %d of the mix: its rate is 0", i+1)
		}
		total += p.Share
	}
	m := &Model{Format: ModelFormat, Version: ModelVersion, Name: "mix", Horizon: parts[0].Model.Horizon,
		Source: Source{Program: "synth mix", Lengths: parts[0].Model.Source.Lengths}}
	rate := parts[0].Model.Rate()
	for i, p := range parts {
		c := p.Model.Clone()
		if b := c.Blocks; b != nil {
			if m.Blocks == nil {
				m.Blocks = b
			} else if m.Blocks.Size != b.Size || m.Blocks.Partial != b.Partial {
				return nil, fmt.Errorf("part %d of the mix: its blocks are %d tokens, last one %s; those before are %d, %s", i+1, b.Size, b.Partial, m.Blocks.Size, m.Blocks.Partial)
			} else {
				m.Blocks.Window, m.Blocks.Entries = max(m.Blocks.Window, b.Window), max(m.Blocks.Entries, b.Entries)
			}
		}
		if c.Source.Lengths != m.Source.Lengths {
			m.Source.Lengths = ""
		}
		factor := p.Share / total * rate / c.Rate()
		m.HoldsSourceRows = m.HoldsSourceRows || c.HoldsSourceRows
		for _, one := range c.Clients {
			one.Slot = len(m.Clients)
			one.Weight *= factor
			if one.Class == "" {
				one.Class = c.Name
			}
			m.Clients = append(m.Clients, one)
		}
		m.Name += " " + c.Name
		m.DoesNotKeep = append(m.DoesNotKeep, c.DoesNotKeep...)
	}
	return m, m.Check()
}
