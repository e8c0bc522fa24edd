//go:build !linux

package wallclock

// FromKernel knows nothing here.
func FromKernel() (Check, error) { return Check{}, ErrUnsynchronised }
