package clock

import (
	"slices"
	"testing"
	"time"
)

// The pacer's promise: without a Wake, never before the deadline on the axis
// that Now reads, beyond the rounding of the kernel's clock.
func TestAlarmIsNeverEarly(t *testing.T) {
	a, err := NewAlarm()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	for i := range 50 {
		due := Now() + time.Duration(i)*20*time.Microsecond
		a.SleepUntil(due)
		if late := Now() - due; late < -time.Microsecond {
			t.Fatalf("SleepUntil returned %v early", -late)
		}
	}
	a.SleepUntil(Now() - time.Hour) // a deadline in the past returns at once
}

func TestAlarmWakes(t *testing.T) {
	a, err := NewAlarm()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	start := Now()
	a.Wake() // before the sleep
	a.SleepUntil(start + time.Hour)
	time.AfterFunc(5*time.Millisecond, a.Wake) // within it
	a.SleepUntil(start + time.Hour)
	if d := Now() - start; d < 4*time.Millisecond || d > time.Minute {
		t.Errorf("two woken sleeps took %v, want about 5ms", d)
	}
	// Both wakes are used up.
	due := Now() + 5*time.Millisecond
	a.SleepUntil(due)
	if late := Now() - due; late < -time.Microsecond {
		t.Errorf("a used wake ended another sleep %v early", -late)
	}
}

// BenchmarkOvershoot prints how late an Alarm and Go's own timer wake, in µs.
func BenchmarkOvershoot(b *testing.B) {
	report := func(b *testing.B, late []time.Duration) {
		slices.Sort(late)
		b.ReportMetric(late[len(late)/2].Seconds()*1e6, "µs-p50")
		b.ReportMetric(late[len(late)*99/100].Seconds()*1e6, "µs-p99")
	}
	b.Run("alarm", func(b *testing.B) {
		a, err := NewAlarm()
		if err != nil {
			b.Fatal(err)
		}
		defer a.Close()
		var late []time.Duration
		for b.Loop() {
			due := Now() + time.Millisecond
			a.SleepUntil(due)
			late = append(late, Now()-due)
		}
		report(b, late)
	})
	b.Run("timer", func(b *testing.B) {
		var late []time.Duration
		for b.Loop() {
			due := Now() + time.Millisecond
			time.Sleep(due - Now())
			late = append(late, Now()-due)
		}
		report(b, late)
	})
}
