// Package units prints quantities for people: three significant digits and the
// unit that suits the size. Files and --json hold the plain numbers instead.
package units

import (
	"fmt"
	"math"
	"strconv"
	"time"
)

// Count prints n with thousands apart: 19366 is "19,366".
func Count(n int64) string {
	s := strconv.FormatInt(n, 10)
	start := 0
	if n < 0 {
		start = 1
	}
	for i := len(s) - 3; i > start; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// Duration prints d in ns, µs, ms or s, and from two minutes on as "2m30s",
// "1h02m" or "3d04h".
func Duration(d time.Duration) string {
	if d < 0 {
		if d == math.MinInt64 {
			d++ // its positive does not fit
		}
		return "-" + Duration(-d)
	}
	switch {
	case d == 0:
		return "0 s"
	case d < time.Microsecond:
		return strconv.FormatInt(int64(d), 10) + " ns"
	// The limits are where three digits would round up to 1000 of the unit.
	case d < 999500*time.Nanosecond:
		return Digits(float64(d)/1e3) + " µs"
	case d < 999500*time.Microsecond:
		return Digits(float64(d)/1e6) + " ms"
	case d < 119500*time.Millisecond:
		return Digits(d.Seconds()) + " s"
	case d < time.Hour-500*time.Millisecond:
		d = d.Round(time.Second)
		return strconv.Itoa(int(d/time.Minute)) + "m" + two(int(d%time.Minute/time.Second)) + "s"
	case d < 48*time.Hour-30*time.Second:
		d = d.Round(time.Minute)
		return strconv.Itoa(int(d/time.Hour)) + "h" + two(int(d%time.Hour/time.Minute)) + "m"
	default:
		d = d.Round(time.Hour)
		return strconv.Itoa(int(d/(24*time.Hour))) + "d" + two(int(d%(24*time.Hour)/time.Hour)) + "h"
	}
}

// Clock prints d as a stopwatch does, in whole seconds: "0:07", "58:22",
// "1:02:03".
func Clock(d time.Duration) string {
	sign := ""
	if d < 0 {
		sign, d = "-", -d
	}
	s := int(d / time.Second)
	out := strconv.Itoa(s/60%60) + ":" + two(s%60)
	if s >= 3600 {
		out = strconv.Itoa(s/3600) + ":" + two(s/60%60) + ":" + two(s%60)
	}
	return sign + out
}

// Percent prints a share: 0.052 is "5.2 %". A share that is not quite all or
// not quite nothing is never printed as all or nothing.
func Percent(share float64) string {
	p := share * 100
	switch {
	case math.IsNaN(p):
		return "-"
	case p == math.Trunc(p) && math.Abs(p) < 1e6:
		return strconv.FormatFloat(p, 'f', 0, 64) + " %"
	case p > 0 && p < 0.05:
		return Digits(p) + " %"
	case p >= 99.95 && p < 100:
		return strconv.FormatFloat(math.Floor(p*1000)/1000, 'f', 3, 64) + " %"
	}
	return strconv.FormatFloat(p, 'f', 1, 64) + " %"
}

// Points prints a difference of two shares.
func Points(d float64) string {
	if d == 0 {
		return "no difference"
	}
	return fmt.Sprintf("%+.3g points", 100*d)
}

// Rate prints events per second: "5.53/s", "1,234/s".
func Rate(perSecond float64) string { return Digits(perSecond) + "/s" }

// Bytes prints n in binary units: "512 B", "1.5 KiB", "139 GiB".
func Bytes(n int64) string {
	v, unit := float64(n), 0
	for math.Abs(v) >= 999.5 && unit < len(byteUnits)-1 {
		v /= 1024
		unit++
	}
	if unit == 0 {
		return strconv.FormatInt(n, 10) + " B"
	}
	return Digits(v) + " " + byteUnits[unit]
}

var byteUnits = []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}

// Digits prints v to three significant digits, whole and with thousands apart
// from 100 on.
func Digits(v float64) string {
	a := math.Abs(v)
	switch {
	case math.IsNaN(v) || math.IsInf(v, 0):
		return "-"
	case a == 0:
		return "0"
	case a >= 1e15 || a < 1e-3:
		return strconv.FormatFloat(v, 'g', 3, 64)
	case a >= 99.95:
		return Count(int64(math.Round(v)))
	}
	decimals := 2 - int(math.Floor(math.Log10(a)))
	s := strconv.FormatFloat(v, 'f', decimals, 64)
	// Rounding can carry into one more digit: 9.996 is 10.0, not 10.00.
	if r, err := strconv.ParseFloat(s, 64); err == nil && decimals > 0 && math.Abs(r) >= math.Pow10(3-decimals) {
		s = strconv.FormatFloat(v, 'f', decimals-1, 64)
	}
	return s
}

func two(n int) string {
	if n < 10 {
		return "0" + strconv.Itoa(n)
	}
	return strconv.Itoa(n)
}
