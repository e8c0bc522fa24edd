package proxylog

import (
	"bytes"
	"math"
	"strconv"
	"time"
)

var pow10 = [...]int64{1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12}

// fixed reads a decimal number as a multiple of 10^-scale, scale being at most
// 12: digits beyond that are rounded. It does not pass through a float unless
// the number has an exponent, so that a time of 2026 keeps its nanoseconds.
func fixed(b []byte, scale int) (v int64, ok bool) {
	full, neg, i := scale, false, 0
	if len(b) > 0 && (b[0] == '-' || b[0] == '+') {
		neg = b[0] == '-'
		i++
	}
	start := i
	for ; i < len(b); i++ {
		c := b[i] - '0'
		if c > 9 {
			break
		}
		if v > (math.MaxInt64-9)/10 {
			return 0, false
		}
		v = v*10 + int64(c)
	}
	digits := i - start
	if i < len(b) && b[i] == '.' {
		i++
		start = i
		for ; i < len(b); i++ {
			c := b[i] - '0'
			if c > 9 {
				break
			}
			switch n := i - start; {
			case n < scale:
				if v > (math.MaxInt64-9)/10 {
					return 0, false
				}
				v = v*10 + int64(c)
			case n == scale && c >= 5:
				v++
			}
		}
		digits += i - start
		scale -= min(scale, i-start)
	}
	switch {
	case digits == 0:
		return 0, false
	case i < len(b) && (b[i] == 'e' || b[i] == 'E'):
		return exponent(b, full)
	case i < len(b):
		return 0, false
	case v > math.MaxInt64/pow10[scale]:
		return 0, false
	}
	v *= pow10[scale]
	if neg {
		v = -v
	}
	return v, true
}

// exponent is fixed for numbers such as 1.3e-05.
func exponent(b []byte, scale int) (int64, bool) {
	f, err := strconv.ParseFloat(string(b), 64)
	if err != nil || scale >= len(pow10) {
		return 0, false
	}
	f = math.Round(f * float64(pow10[scale]))
	if math.Abs(f) >= math.MaxInt64 {
		return 0, false
	}
	return int64(f), true
}

// places counts the digits behind the point.
func places(b []byte) int {
	n := 0
	if _, after, ok := bytes.Cut(b, []byte{'.'}); ok {
		for _, c := range after {
			if c < '0' || c > '9' {
				break
			}
			n++
		}
	}
	return n
}

// atoi reads digits alone.
func atoi(b []byte) (int, bool) {
	if len(b) == 0 || len(b) > 9 {
		return 0, false
	}
	n := 0
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, true
}

// A unit says what a number counts, or how a stamp is spelt.
type unit uint8

const (
	unitAuto     unit = iota // dates by their spelling, numbers by their size
	unitSecond               // seconds
	unitMilli                // milliseconds
	unitMicro                // microseconds
	unitNano                 // nanoseconds
	unitSpelt                // "1.23s", "45.6ms", "789µs", as Go and Rust print durations
	unitISO                  // 2026-11-23T09:27:02.123Z and its like
	unitCLF                  // 23/Nov/2026:09:27:02 +0000
	unitMonthDay             // 11-23 09:27:02
	unitLayout               // a layout that a mapping gives
)

// scale is the power of ten that makes a number in this unit nanoseconds.
func (u unit) scale() int {
	switch u {
	case unitSecond, unitAuto:
		return 9
	case unitMilli:
		return 6
	case unitMicro:
		return 3
	default:
		return 0
	}
}

// span reads a duration. Seconds are what a bare number means.
func span(b []byte, u unit) (time.Duration, bool) {
	if u == unitSpelt || u == unitAuto && len(b) > 0 && b[len(b)-1] == 's' {
		return spelt(b)
	}
	v, ok := fixed(b, u.scale())
	return time.Duration(v), ok && v >= 0
}

// spelt reads "1.234s", "12ms", "1m3s" and Rust's "789µs".
func spelt(b []byte) (time.Duration, bool) {
	if n := bytes.Index(b, []byte("ns")); n > 0 && n == len(b)-2 {
		v, ok := fixed(b[:n], 0)
		return time.Duration(v), ok && v >= 0
	}
	if len(b) == 0 || len(b) > 40 {
		return 0, false
	}
	d, err := time.ParseDuration(string(b))
	return d, err == nil && d >= 0
}
