//go:build !linux

package clock

import "time"

func monotonic() time.Duration { return 0 }

// An Alarm waits for deadlines and can be woken before, as exactly as the
// runtime's timers allow.
type Alarm struct{ wake chan struct{} }

// NewAlarm returns an Alarm.
func NewAlarm() (*Alarm, error) { return &Alarm{make(chan struct{}, 1)}, nil }

// SleepUntil blocks until t, or until Wake is called. It may return early.
func (a *Alarm) SleepUntil(t time.Duration) {
	timer := time.NewTimer(t - Now())
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-a.wake:
	}
}

// Wake ends the current or the next SleepUntil. Any goroutine may call it.
func (a *Alarm) Wake() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// RealTime reports whether the thread is scheduled in real time.
func (a *Alarm) RealTime() bool { return false }

// Close frees a.
func (a *Alarm) Close() {}
