package synth

type FitReport struct{}
type Description struct{}
