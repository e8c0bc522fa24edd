package agent

import (
	"time"

	"reprise/internal/wallclock"
)

const (
	maxSlew = wallclock.MaxSlew
	// keepFor is how long exchanges are remembered; the drift is fitted over it.
	keepFor = 5 * time.Minute
	// bucket is the stretch of time of which the quickest exchange is kept.
	bucket = time.Second
	// driftSpan is the least time over which a drift is reported.
	driftSpan = 20 * time.Second
)

// An Exchange is one question for the time. T0 and T3 are readings of the
// client's clock, before the question left and after the answer came; T1 and T2
// of the server's, after the question came and before the answer left.
type Exchange struct{ T0, T1, T2, T3 time.Duration }

// RTT is the time spent on the way.
func (x Exchange) RTT() time.Duration { return (x.T3 - x.T0) - (x.T2 - x.T1) }

// Offset is the server's clock minus the client's, off by at most half of RTT.
func (x Exchange) Offset() time.Duration { return ((x.T1 - x.T0) + (x.T2 - x.T3)) / 2 }

// mid is when the offset was that, on the client's clock.
func (x Exchange) mid() time.Duration { return x.T0 + (x.T3-x.T0)/2 }

// Clocks is what is known of the offset between two clocks. The zero value knows
// nothing. It is not safe for concurrent use.
type Clocks struct {
	kept []Exchange // the quickest of each bucket, by time
}

// Add takes an exchange. One that no honest server can have made is ignored.
func (c *Clocks) Add(x Exchange) {
	if x.T3 < x.T0 || x.T2 < x.T1 || x.RTT() < 0 {
		return
	}
	if n := len(c.kept); n > 0 && x.T0/bucket == c.kept[n-1].T0/bucket {
		if x.RTT() < c.kept[n-1].RTT() {
			c.kept[n-1] = x
		}
		return
	}
	c.kept = append(c.kept, x)
	old := 0
	for old < len(c.kept) && c.kept[old].T0 < x.T0-keepFor {
		old++
	}
	c.kept = append(c.kept[:0], c.kept[old:]...)
}

// Offset returns the server's clock minus the client's at at, on the client's
// clock, and by how much that may be wrong: half the round trip of the exchange
// it rests on, and what the clocks may have drifted since and during it: where
// between its ends the server looked at its clock is not known. ok is false
// before the first exchange.
func (c *Clocks) Offset(at time.Duration) (offset, bound time.Duration, ok bool) {
	for _, x := range c.kept {
		apart := (at - x.mid()).Abs() + (x.T3-x.T0)/2
		b := x.RTT()/2 + time.Duration(maxSlew*float64(apart))
		if !ok || b <= bound {
			offset, bound, ok = x.Offset(), b, true
		}
	}
	return offset, bound, ok
}

// RTT is the smallest round trip of the last bucket.
func (c *Clocks) RTT() time.Duration {
	if len(c.kept) == 0 {
		return 0
	}
	return c.kept[len(c.kept)-1].RTT()
}

// Drift is by how much the server's clock gains on the client's, in seconds per
// second: the slope of a line through the offsets, each weighing as much as it is
// certain. ok is false until the exchanges span 20 s.
func (c *Clocks) Drift() (rate float64, ok bool) {
	n := len(c.kept)
	if n < 3 || c.kept[n-1].T0-c.kept[0].T0 < driftSpan {
		return 0, false
	}
	var w, wx, wy float64
	base, zero := c.kept[0].mid(), c.kept[0].Offset()
	weight := func(x Exchange) float64 {
		r := max(x.RTT().Seconds(), 1e-6)
		return 1 / (r * r)
	}
	for _, x := range c.kept {
		k := weight(x)
		w += k
		wx += k * (x.mid() - base).Seconds()
		wy += k * (x.Offset() - zero).Seconds()
	}
	var xx, xy float64
	for _, x := range c.kept {
		dx := (x.mid() - base).Seconds() - wx/w
		xx += weight(x) * dx * dx
		xy += weight(x) * dx * ((x.Offset() - zero).Seconds() - wy/w)
	}
	if xx == 0 {
		return 0, false
	}
	return xy / xx, true
}
