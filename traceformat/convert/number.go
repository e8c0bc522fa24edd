package convert

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"reprise/traceformat"
)

const (
	// maxTokens bounds lengths. The longest contexts served are a few million
	// tokens; a billion is damage, or another column.
	maxTokens = 1 << 30
	// maxBlocks bounds the block ids of one row.
	maxBlocks = 1 << 22
	// maxStamp bounds times: 146 years in nanoseconds, which holds Unix times
	// until 2116 and leaves room to add without overflow.
	maxStamp = int64(1) << 62
	// maxNumber bounds the text of a number. The longest that a float64 prints
	// as is 24 characters, written without an exponent 330.
	maxNumber = 400
)

var (
	errNegative = errors.New("is negative")
	errNumber   = errors.New("is not a number")
	errTooLarge = errors.New("is out of range")
)

// parseDecimal reads a decimal number as a multiple of 10^-scale. exact is
// false where digits beyond that were rounded (half to even). It never passes
// through a float: "0.1" at scale 9 is 100,000,000 and nothing near it.
func parseDecimal(text []byte, scale int) (v int64, exact bool, err error) {
	s := text
	if len(s) == 0 || len(s) > maxNumber {
		return 0, false, errNumber
	}
	neg := false
	if s[0] == '-' || s[0] == '+' {
		neg = s[0] == '-'
		s = s[1:]
	}
	exp := 0
	if i := bytes.IndexAny(s, "eE"); i >= 0 {
		e := string(s[i+1:])
		exp, err = strconv.Atoi(e)
		if err != nil || exp > maxNumber || exp < -maxNumber {
			return 0, false, errNumber
		}
		s = s[:i]
	}
	whole, frac, _ := bytes.Cut(s, []byte("."))
	if len(whole)+len(frac) == 0 {
		return 0, false, errNumber
	}
	// The value is the digits of whole and frac, times 10^(point-len(digits)).
	point := len(whole) + exp + scale
	n := len(whole) + len(frac)
	digit := func(i int) byte {
		if i < len(whole) {
			return whole[i]
		}
		return frac[i-len(whole)]
	}
	for i := range n {
		if c := digit(i); c < '0' || c > '9' {
			return 0, false, errNumber
		}
	}
	exact = true
	for i := range point {
		d := int64(0)
		if i < n {
			d = int64(digit(i) - '0')
		} else if v == 0 {
			break
		}
		if v > (maxStamp-d)/10 {
			return 0, false, errTooLarge
		}
		v = v*10 + d
	}
	// What lies below the scale: compare it with a half, then round.
	half := 0 // -1 below, 0 exactly a half, 1 above
	below := max(point, 0)
	for i := below; i < n; i++ {
		d := digit(i)
		if d != '0' {
			exact = false
		}
		switch {
		case i == below && point >= 0:
			half = int(d) - '5'
		case d != '0' && half == 0 && point >= 0:
			half = 1
		}
	}
	if point < 0 {
		half = -1
	}
	if !exact && (half > 0 || half == 0 && v%2 == 1) {
		v++
	}
	if neg {
		if v != 0 || !exact {
			return 0, false, errNegative
		}
	}
	return v, exact, nil
}

// parseTokens reads a length.
func parseTokens(text []byte) (v int32, exact bool, err error) {
	n, exact, err := parseDecimal(text, 0)
	switch {
	case err != nil:
		return 0, false, err
	case !exact:
		return 0, false, errors.New("is not a whole number")
	case n > maxTokens:
		return 0, false, fmt.Errorf("is more than %d tokens", maxTokens)
	}
	return int32(n), true, nil
}

// formatDecimal writes v, a multiple of 10^-scale, with as few digits as give
// it back: an integer where it is one.
func formatDecimal(v int64, scale int) string {
	s := strconv.FormatInt(v, 10)
	if scale == 0 {
		return s
	}
	if pad := scale + 1 - len(s); pad > 0 {
		s = strings.Repeat("0", pad) + s
	}
	whole, frac := s[:len(s)-scale], strings.TrimRight(s[len(s)-scale:], "0")
	if frac == "" {
		return whole
	}
	return whole + "." + frac
}

// formatFloat writes v, a multiple of 10^-scale, as Python's repr writes the
// nearest float64. Tools of the field write their traces with it.
func formatFloat(v int64, scale int) string {
	f, err := strconv.ParseFloat(formatDecimal(v, scale), 64)
	if err != nil || f == 0 {
		return "0.0"
	}
	if a := math.Abs(f); a < 1e-4 || a >= 1e16 {
		s := strconv.FormatFloat(f, 'e', -1, 64)
		return s // both write two digits of exponent at least
	}
	s := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// seconds and milliseconds are the scales of parseDecimal that give
// nanoseconds.
const (
	seconds      = 9
	milliseconds = 6
)

// stamp is a time as its source wrote it.
type stamp struct {
	ns    int64
	exact bool
}

func parseStamp(text []byte, scale int) (stamp, error) {
	v, exact, err := parseDecimal(text, scale)
	return stamp{v, exact}, err
}

func some(ns int64) traceformat.Opt[time.Duration] {
	return traceformat.Some(time.Duration(ns))
}

// floatTime is the word of the style for stamps that are written as floats: 5.0
// and not 5.
const floatTime = "float-time"

// formatTime writes nanoseconds in the unit of scale.
func formatTime(ns int64, scale int, float bool) string {
	if float {
		return formatFloat(ns, scale)
	}
	return formatDecimal(ns, scale)
}
