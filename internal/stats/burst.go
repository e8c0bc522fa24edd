package stats

import (
	"math"
	"time"
)

// A Dispersion measures how bursty a stream of arrivals is at one time scale,
// in constant memory: it counts arrivals in consecutive windows and compares
// the variance of the counts with their mean.
type Dispersion struct {
	width  time.Duration
	window int64 // index of the open window
	count  int64 // arrivals in it
	closed Moments
	begun  bool
}

// NewDispersion counts in windows of width, [k width, (k+1) width). Width is
// more than 0.
func NewDispersion(width time.Duration) *Dispersion { return &Dispersion{width: width} }

// Add takes the arrivals in order; one that is earlier than its predecessor
// counts in the predecessor's window.
func (d *Dispersion) Add(at time.Duration) {
	w := int64(at / d.width)
	if at < 0 && at%d.width != 0 {
		w--
	}
	switch {
	case !d.begun:
		d.begun, d.window = true, w
	case w > d.window:
		d.closed.Add(float64(d.count))
		d.closed.AddN(0, w-d.window-1) // windows without an arrival count
		d.window, d.count = w, 0
	}
	d.count++
}

// Counts are the moments over the windows from the first arrival's to the one
// before the last arrival's: the last one is cut by the end of the recording.
func (d *Dispersion) Counts() Moments { return d.closed }

// Index is the index of dispersion of counts, variance / mean: 1 for a Poisson
// process at any width, above 1 for bursts, 0 for a clock (Cox and Lewis, "The
// Statistical Analysis of Series of Events", 1966, section 4.5). NaN before two
// windows are full.
func (d *Dispersion) Index() float64 {
	if d.closed.N() < 2 || d.closed.Mean() == 0 {
		return math.NaN()
	}
	return d.closed.Variance() / d.closed.Mean()
}

// PeakToMean is the largest count of a window divided by the mean.
func (d *Dispersion) PeakToMean() float64 {
	if d.closed.N() == 0 || d.closed.Mean() == 0 {
		return math.NaN()
	}
	return d.closed.Max() / d.closed.Mean()
}

// Counts returns how many of the times lie in each window of width of
// [start, end), a last partial one left out. Times need no order.
func Counts(times []time.Duration, start, end, width time.Duration) []float64 {
	if width <= 0 || end <= start {
		return nil
	}
	counts := make([]float64, (end-start)/width)
	for _, t := range times {
		if t < start {
			continue
		}
		if i := (t - start) / width; i < time.Duration(len(counts)) {
			counts[i]++
		}
	}
	return counts
}

// Autocorrelation of x at a lag, divided by n at every lag (the estimator that
// Box and Jenkins use, whose values are a valid correlation sequence). NaN if
// lag is not in [0, len(x)) or x is constant.
func Autocorrelation(x []float64, lag int) float64 {
	if lag < 0 || lag >= len(x) {
		return math.NaN()
	}
	var m Moments
	for _, v := range x {
		m.Add(v)
	}
	if m.Variance() == 0 {
		return math.NaN()
	}
	sum := 0.0
	for i := lag; i < len(x); i++ {
		sum += (x[i] - m.Mean()) * (x[i-lag] - m.Mean())
	}
	return sum / float64(len(x)) / m.Variance()
}

// Burstiness maps the coefficient of variation of the gaps between arrivals to
// (cv-1)/(cv+1): -1 for a clock, 0 for a Poisson process, towards 1 for bursts
// (Goh and Barabási, "Burstiness and memory in complex systems", EPL 81, 2008).
func Burstiness(cv float64) float64 { return (cv - 1) / (cv + 1) }
