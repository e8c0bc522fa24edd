package units

import (
	"testing"
	"time"
)

func TestAbout(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "1 s", 0: "1 s", 39600 * time.Millisecond: "40 s", 89 * time.Second: "89 s", 90 * time.Second: "2 min",
		4*time.Minute + 10*time.Second: "4 min", 89 * time.Minute: "89 min", 90 * time.Minute: "1.5 h", 26 * time.Hour: "26.0 h", 60 * time.Hour: "2.5 days",
	} {
		if got := About(d); got != want {
			t.Errorf("About(%v) = %q, want %q", d, got, want)
		}
	}
}
