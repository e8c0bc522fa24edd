package proxylog

import (
	"fmt"
	"time"
)

// A civil time is what a clock on a wall showed, and what was said beside it.
type civil struct {
	ns     int64 // as if it were UTC
	zone   int64 // ns east of UTC
	zoned  bool
	yeared bool
	tick   time.Duration // what its spelling resolves
}

// daysBefore is the number of days from 1970-01-01 to the day, in the Gregorian
// calendar (H. Hinnant, days_from_civil).
func daysBefore(y, m, d int) int64 {
	if m <= 2 {
		y--
	}
	era := y / 400
	if y < 0 {
		era = (y - 399) / 400
	}
	yoe := y - era*400
	mp := (m + 9) % 12
	doy := (153*mp+2)/5 + d - 1
	doe := yoe*365 + yoe/4 - yoe/100 + doy
	return int64(era)*146097 + int64(doe) - 719468
}

var monthDays = [...]int{0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31}

func validDay(y, m, d int) bool {
	if m < 1 || m > 12 || d < 1 || d > monthDays[m] {
		return false
	}
	return m != 2 || d < 29 || y%4 == 0 && (y%100 != 0 || y%400 == 0)
}

// two reads two digits.
func two(b []byte) int {
	h, l := b[0]-'0', b[1]-'0'
	if h > 9 || l > 9 {
		return -1
	}
	return int(h)*10 + int(l)
}

// timeOfDay reads HH:MM:SS and a fraction, and returns what follows.
func (c *civil) timeOfDay(b []byte) (rest []byte, ok bool) {
	if len(b) < 8 || b[2] != ':' || b[5] != ':' {
		return nil, false
	}
	h, m, s := two(b), two(b[3:]), two(b[6:])
	if h < 0 || h > 23 || m < 0 || m > 59 || s < 0 || s > 60 {
		return nil, false
	}
	c.ns += (int64(h)*3600 + int64(m)*60 + int64(s)) * 1e9
	c.tick = time.Second
	b = b[8:]
	if len(b) > 1 && (b[0] == '.' || b[0] == ',') {
		i, unit := 1, int64(1e8)
		for ; i < len(b) && b[i]-'0' <= 9; i++ {
			c.ns += int64(b[i]-'0') * unit
			if unit > 0 {
				c.tick = time.Duration(unit)
			}
			unit /= 10
		}
		if i == 1 {
			return nil, false
		}
		b = b[i:]
	}
	return b, true
}

// offset reads a zone: Z, UTC, +0000, +00:00 or +00, or nothing.
func (c *civil) offset(b []byte) bool {
	for len(b) > 0 && b[0] == ' ' {
		b = b[1:]
	}
	switch {
	case len(b) == 0:
		return true
	case len(b) == 1 && b[0]|0x20 == 'z', string(b) == "UTC", string(b) == "GMT":
		c.zoned = true
		return true
	case b[0] != '+' && b[0] != '-' || len(b) < 3:
		return false
	}
	h, m := two(b[1:]), 0
	switch rest := b[3:]; {
	case len(rest) == 0:
	case len(rest) == 2:
		m = two(rest)
	case len(rest) == 3 && rest[0] == ':':
		m = two(rest[1:])
	default:
		return false
	}
	if h < 0 || h > 15 || m < 0 || m > 59 {
		return false
	}
	c.zone = int64(h*3600+m*60) * 1e9
	if b[0] == '-' {
		c.zone = -c.zone
	}
	c.zoned = true
	return true
}

// parseISO reads 2026-11-23T09:27:02.123456+00:00 and its variants: a space for
// the T, any number of digits of a second, with and without a zone.
func parseISO(b []byte) (c civil, ok bool) {
	if len(b) < 19 || b[4] != '-' || b[7] != '-' || b[10] != 'T' && b[10] != ' ' && b[10] != 't' {
		return c, false
	}
	c1, c2 := two(b), two(b[2:])
	y, m, d := c1*100+c2, two(b[5:]), two(b[8:])
	if c1 < 0 || c2 < 0 || !validDay(y, m, d) {
		return c, false
	}
	c.ns, c.yeared = daysBefore(y, m, d)*86400e9, true
	rest, ok := c.timeOfDay(b[11:])
	return c, ok && c.offset(rest)
}

var months = [...]string{"Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"}

// month returns 1 to 12, or 0.
func month(b []byte) int {
	for i, m := range months {
		if string(b) == m {
			return i + 1
		}
	}
	return 0
}

// parseCLF reads 23/Nov/2026:09:27:02 +0000, with and without milliseconds and
// zone.
func parseCLF(b []byte) (c civil, ok bool) {
	if len(b) < 20 || b[2] != '/' || b[6] != '/' || b[11] != ':' {
		return c, false
	}
	c1, c2 := two(b[7:]), two(b[9:])
	y, m, d := c1*100+c2, month(b[3:6]), two(b)
	if c1 < 0 || c2 < 0 || !validDay(y, m, d) {
		return c, false
	}
	c.ns, c.yeared = daysBefore(y, m, d)*86400e9, true
	rest, ok := c.timeOfDay(b[12:])
	return c, ok && c.offset(rest)
}

// parseMonthDay reads 11-23 09:27:02, which has neither year nor zone. The year
// of the result is 2000.
func parseMonthDay(b []byte) (c civil, ok bool) {
	if len(b) < 14 || b[2] != '-' || b[5] != ' ' {
		return c, false
	}
	m, d := two(b), two(b[3:])
	if !validDay(2000, m, d) {
		return c, false
	}
	c.ns = daysBefore(2000, m, d) * 86400e9
	rest, ok := c.timeOfDay(b[6:])
	return c, ok && len(rest) == 0
}

// parseCivil reads a date in any of the spellings above.
func parseCivil(b []byte, u unit, layout string) (civil, bool) {
	switch u {
	case unitCLF:
		return parseCLF(b)
	case unitMonthDay:
		return parseMonthDay(b)
	case unitLayout:
		t, err := time.ParseInLocation(layout, string(b), noZone)
		if err != nil {
			return civil{}, false
		}
		_, off := t.Zone()
		c := civil{ns: t.UnixNano() + int64(off)*1e9, zone: int64(off) * 1e9, zoned: t.Location() != noZone, yeared: t.Year() != 0, tick: layoutTick(layout)}
		if !c.yeared {
			c.ns += (daysBefore(2000, 1, 1) - daysBefore(0, 1, 1)) * 86400e9
		}
		return c, true
	}
	if c, ok := parseISO(b); ok {
		return c, true
	}
	return parseCLF(b)
}

// noZone marks times whose layout has no zone.
var noZone = time.FixedZone("none", 0)

// layoutTick is what the fraction of a second in a layout resolves.
func layoutTick(layout string) time.Duration {
	tick := time.Second
	for i := 1; i < len(layout); i++ {
		if (layout[i] == '0' || layout[i] == '9') && (layout[i-1] == '.' || layout[i-1] == ',') {
			for ; i < len(layout) && (layout[i] == '0' || layout[i] == '9'); i++ {
				tick /= 10
			}
			return max(tick, 1)
		}
	}
	return tick
}

// isDate reports whether b is spelt as a date and not as a number.
func isDate(b []byte) bool {
	return len(b) >= 14 && (b[4] == '-' || b[2] == '/' || b[2] == '-')
}

// epoch reads a number of seconds and so on since 1970, or, with unitAuto,
// whichever of them its size allows between 1973 and 5138.
func epoch(b []byte, u unit) (ns int64, tick time.Duration, ok bool) {
	if u == unitAuto {
		v, ok := fixed(b, 0)
		switch {
		case !ok || v < 0:
			return 0, 0, false
		case v < 1e11:
			u = unitSecond
		case v < 1e14:
			u = unitMilli
		case v < 1e17:
			u = unitMicro
		default:
			u = unitNano
		}
	}
	ns, ok = fixed(b, u.scale())
	tick = time.Duration(pow10[max(0, u.scale()-places(b))])
	if u == unitSecond {
		tick = max(tick, time.Microsecond) // what a float64 of seconds since 1970 holds
	}
	return ns, tick, ok && ns > 0
}

// A calendar puts civil times on the axis of time. It knows the zone and the
// year where the log does not say them, and keeps an eye on what they hide.
type calendar struct {
	loc  *time.Location // nil: not given
	year int            // 0: not given

	last   int64 // the stamp before
	second bool  // it lay in the second of two hours of one name
	Folds  int64 // stamps of an hour that comes twice, when clocks are put back
	Gaps   int64 // stamps of an hour that there is not, when they are put forward
}

// at resolves a civil time.
func (k *calendar) at(c civil) (int64, bool) {
	if !c.yeared {
		var ok bool
		if c, ok = k.dated(c); !ok {
			return 0, false
		}
	}
	if c.zoned {
		k.last = c.ns - c.zone
		return k.last, true
	}
	if k.loc == nil {
		return 0, false
	}
	if k.loc == time.UTC {
		k.last = c.ns
		return c.ns, true
	}
	// The offsets a day before and after bracket any change of clocks.
	early, late := k.offset(c.ns-24*3600e9), k.offset(c.ns+24*3600e9)
	a, b := c.ns-early, c.ns-late
	aFits, bFits := k.offset(a) == early, k.offset(b) == late
	t := a
	switch {
	case early == late || aFits && !bFits:
	case bFits && !aFits:
		t = b
	case aFits && bFits:
		k.Folds++
		// The first of the two hours, until that would be a step back: logs are
		// about in order.
		t = min(a, b)
		k.second = k.second || k.last != 0 && t < k.last-30*60e9
		if k.second {
			t = max(a, b)
		}
		k.last = t
		return t, true
	default:
		k.Gaps++
	}
	k.last, k.second = t, false
	return t, true
}

// offset is the zone's distance from UTC at a moment, in ns.
func (k *calendar) offset(utc int64) int64 {
	_, off := time.Unix(0, utc).In(k.loc).Zone()
	return int64(off) * 1e9
}

// dated gives a civil time of the year 2000 the year that is nearest to the
// stamp before, so that the year rolls over at New Year, and back for a line
// that comes late.
func (k *calendar) dated(c civil) (civil, bool) {
	if k.year == 0 {
		return c, false
	}
	t := time.Unix(0, c.ns).UTC()
	best, have := int64(0), false
	for y := k.year - 1; y <= k.year+1; y++ {
		if k.last == 0 && y != k.year || !validDay(y, int(t.Month()), t.Day()) {
			continue
		}
		at := c.ns + (daysBefore(y, 1, 1)-daysBefore(2000, 1, 1))*86400e9
		if t.Month() > 2 {
			at = c.ns + (daysBefore(y, 3, 1)-daysBefore(2000, 3, 1))*86400e9
		}
		if d := at - k.last; !have || abs(d) < abs(best-k.last) {
			best, have = at, true
		}
	}
	if !have {
		return c, false
	}
	k.year = time.Unix(0, best).UTC().Year()
	c.ns, c.yeared = best, true
	return c, true
}

func abs(v int64) int64 {
	if v < 0 {
		return -v
	}
	return v
}

// A NeedError says what a log does not say and the command line must.
type NeedError struct {
	What string // what the log lacks
	Flag string // what gives it
}

func (e *NeedError) Error() string { return fmt.Sprintf("%s: give %s", e.What, e.Flag) }
