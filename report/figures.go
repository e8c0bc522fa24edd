package report

import "reprise/internal/metrics"

// Known is v as a Number; NaN and infinity are none.
func Known(v float64) Number { return number(v) }

// Measured is what the figures of the run are computed with: the window that it
// was planned with, or that it had in the end.
func (m *Manifest) Measured() metrics.Config { return m.played() }

// Hold keeps what was found against the run when it was played: rows alone may
// not show it.
func (m *Manifest) Hold(f *metrics.Fidelity) { hold(f, m.Summary) }
