//go:build !linux

package wire

// Preflight says before a run whether n connections fit the machine. Only
// Linux is known well enough to say; elsewhere the run itself reports.
func Preflight(n int) error { return nil }

func nofileText() string { return "" }
func portText() string   { return "" }
