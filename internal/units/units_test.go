package units

import (
	"math"
	"testing"
	"time"
)

func TestFormats(t *testing.T) {
	tests := []struct{ got, want string }{
		{Count(0), "0"},
		{Count(999), "999"},
		{Count(-1000), "-1,000"},
		{Count(-100), "-100"},
		{Count(19366), "19,366"},
		{Count(math.MinInt64), "-9,223,372,036,854,775,808"},

		{Duration(0), "0 s"},
		{Duration(999), "999 ns"},
		{Duration(1234), "1.23 µs"},
		{Duration(999499), "999 µs"},
		{Duration(999500), "1.00 ms"},
		{Duration(9996 * time.Microsecond), "10.0 ms"},
		{Duration(47300 * time.Microsecond), "47.3 ms"},
		{Duration(-1500 * time.Millisecond), "-1.50 s"},
		{Duration(119499 * time.Millisecond), "119 s"},
		{Duration(119500 * time.Millisecond), "2m00s"},
		{Duration(3502 * time.Second), "58m22s"},
		{Duration(time.Hour - time.Millisecond), "1h00m"},
		{Duration(76 * time.Hour), "3d04h"},
		{Duration(math.MinInt64), "-106751d23h"}, // rounded down: 106751.99 days minus half an hour's rounding
		{Clock(7900 * time.Millisecond), "0:07"},
		{Clock(3502 * time.Second), "58:22"},
		{Clock(3723 * time.Second), "1:02:03"},
		{Clock(-time.Minute), "-1:00"},

		{Percent(0), "0 %"},
		{Percent(1), "100 %"},
		{Percent(0.052), "5.2 %"},
		{Percent(0.99999), "99.999 %"},
		{Percent(0.9999999), "99.999 %"},
		{Percent(0.00001), "0.00100 %"},
		{Percent(math.NaN()), "-"},

		{Rate(5.5297), "5.53/s"},
		{Rate(1234), "1,234/s"},
		{Bytes(999), "999 B"},
		{Bytes(1536), "1.50 KiB"},
		{Bytes(139 << 30), "139 GiB"},
		{Bytes(math.MaxInt64), "8.00 EiB"},
		{Digits(99.96), "100"},
		{Digits(0.042), "0.0420"},
		{Digits(0.0009996), "0.001"},
		{Digits(math.Inf(1)), "-"},
	}
	for i, tt := range tests {
		if tt.got != tt.want {
			t.Errorf("case %d: got %q, want %q", i, tt.got, tt.want)
		}
	}
}
