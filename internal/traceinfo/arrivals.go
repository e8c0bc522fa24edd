package traceinfo

import (
	"math"
	"time"

	"reprise/internal/stats"
)

// windows are the lengths at which burstiness is read.
var windows = []time.Duration{100 * time.Millisecond, time.Second, 10 * time.Second, 100 * time.Second}

// arrivals follows the times of a trace.
type arrivals struct {
	rows        int64
	first, last time.Duration
	backwards   int64 // rows that arrive before the row above
	distinct    int64 // stamps
	gcd         time.Duration
	gaps        map[time.Duration]int64 // positive ones by length, nil once they are too many
	gap         *stats.Hist
	bursts      []*stats.Dispersion
}

func newArrivals() *arrivals {
	a := &arrivals{gap: stats.NewHist(), gaps: map[time.Duration]int64{}}
	for _, w := range windows {
		a.bursts = append(a.bursts, stats.NewDispersion(w))
	}
	return a
}

func (a *arrivals) add(at time.Duration) {
	a.rows++
	if a.rows == 1 {
		a.first, a.last, a.distinct = at, at, 1
		a.count(at)
		return
	}
	gap := at - a.last
	if gap < 0 {
		a.backwards++
	}
	if a.backwards > 0 {
		// Gaps and counts of unsorted rows mean nothing; the span still does.
		a.first, a.last = min(a.first, at), max(a.last, at)
		return
	}
	a.last = at
	if gap > 0 {
		a.distinct++
		a.gcd = gcd(gap, a.gcd)
		if a.gaps != nil {
			a.gaps[gap]++
			if len(a.gaps) > maxGaps {
				a.gaps = nil
			}
		}
	}
	a.gap.Add(gap, 1)
	a.count(at)
}

func (a *arrivals) count(at time.Duration) {
	for _, b := range a.bursts {
		b.Add(at - a.first)
	}
}

const (
	// minStamps is the number of distinct stamps below which they say nothing
	// about the clock.
	minStamps = 16
	// maxGaps bounds the lengths of gaps that are told apart: a clock that
	// ticks visibly has few.
	maxGaps = 1 << 12
	// jitter is how far, in ticks, a stamp may lie off its tick. The Mooncake
	// trace ticks every 3,000 ms and is off by 1 ms every other time, which
	// leaves a greatest common divisor of 1 ms.
	jitter = 0.002
)

// tick is the resolution that the stamps show, 0 where they are too few: the
// most frequent gap if nearly all others are multiples of it, give or take the
// jitter, or else the greatest common divisor of all.
func (a *arrivals) tick() time.Duration {
	if a.distinct < minStamps || a.backwards > 0 {
		return 0
	}
	usual, on := time.Duration(0), int64(0)
	for gap, n := range a.gaps {
		if n > a.gaps[usual] || n == a.gaps[usual] && gap < usual {
			usual = gap
		}
	}
	if usual == 0 {
		return a.gcd
	}
	for gap, n := range a.gaps {
		if math.Abs(float64(gap-gap.Round(usual))) <= jitter*float64(usual) {
			on += n
		}
	}
	if float64(on) >= 0.99*float64(a.distinct-1) {
		return usual
	}
	return a.gcd
}

func gcd(a, b time.Duration) time.Duration {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// maxInFlight bounds the requests that are followed at the same time.
const maxInFlight = 1 << 20

// flights counts how many requests were in flight at once, from when each
// began and ended. It holds the edges that lie ahead of the arrivals seen so
// far, in a heap.
type flights struct {
	edges    []edge
	now      int
	peak     int
	peakAt   time.Duration
	known    int64 // requests with an end
	busy     float64
	overflow bool
}

type edge struct {
	at   time.Duration
	step int8 // +1 a request begins, -1 it ends
}

// before orders edges: at the same time, ends come first, so that a request
// that follows another without a gap does not overlap it.
func (e edge) before(f edge) bool { return e.at < f.at || e.at == f.at && e.step < f.step }

// add tells of a request. No later one begins before arrival.
func (f *flights) add(arrival, begin, end time.Duration) {
	begin = max(begin, arrival)
	if f.overflow || end < begin {
		return
	}
	f.known++
	f.busy += (end - begin).Seconds()
	f.push(edge{begin, 1})
	f.push(edge{end, -1})
	f.advance(arrival)
	if len(f.edges) > maxInFlight {
		f.overflow, f.edges = true, nil
	}
}

// advance plays the edges before t.
func (f *flights) advance(t time.Duration) {
	for len(f.edges) > 0 && f.edges[0].at < t {
		f.step()
	}
}

func (f *flights) step() {
	e := f.edges[0]
	f.now += int(e.step)
	if f.now > f.peak {
		f.peak, f.peakAt = f.now, e.at
	}
	n := len(f.edges) - 1
	f.edges[0] = f.edges[n]
	f.edges = f.edges[:n]
	for i := 0; ; {
		c := 2*i + 1
		if c >= n {
			break
		}
		if c+1 < n && f.edges[c+1].before(f.edges[c]) {
			c++
		}
		if !f.edges[c].before(f.edges[i]) {
			break
		}
		f.edges[i], f.edges[c] = f.edges[c], f.edges[i]
		i = c
	}
}

func (f *flights) push(e edge) {
	f.edges = append(f.edges, e)
	for i := len(f.edges) - 1; i > 0; {
		p := (i - 1) / 2
		if !f.edges[i].before(f.edges[p]) {
			break
		}
		f.edges[i], f.edges[p] = f.edges[p], f.edges[i]
		i = p
	}
}

// finish plays the rest.
func (f *flights) finish() {
	for len(f.edges) > 0 {
		f.step()
	}
}
