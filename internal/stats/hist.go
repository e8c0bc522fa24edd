package stats

import (
	"math"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Range and resolution of a [Hist].
const (
	HistMin    = time.Microsecond
	HistMax    = time.Hour
	HistDigits = 3
)

// A Hist holds durations where the values themselves are too many to keep: an
// HdrHistogram from 1 µs to 1 h with 3 significant digits, so that a quantile
// is off by at most one part in a thousand, or by 1 µs. Mean, standard
// deviation, minimum and maximum are exact. Nothing is left out: what is longer
// counts as 1 h, and [Hist.Over] says how often. Not for concurrent use.
type Hist struct {
	h     *hdrhistogram.Histogram
	exact Moments
	over  int64
}

// NewHist returns an empty Hist of about 200 KB.
func NewHist() *Hist {
	return &Hist{h: hdrhistogram.New(int64(HistMin), int64(HistMax), HistDigits)}
}

// Add records d n times. A negative d counts as 0.
func (h *Hist) Add(d time.Duration, n int64) {
	if n < 1 {
		return
	}
	d = max(d, 0)
	h.exact.AddN(float64(d), n)
	if d > HistMax {
		h.over += n
		d = HistMax
	}
	// The only error is a value out of range, which the lines above exclude.
	_ = h.h.RecordValues(int64(d), n)
}

// Merge adds all that o holds.
func (h *Hist) Merge(o *Hist) {
	h.h.Merge(o.h)
	h.exact.Merge(o.exact)
	h.over += o.over
}

// Reset empties h and keeps its memory.
func (h *Hist) Reset() {
	h.h.Reset()
	h.exact, h.over = Moments{}, 0
}

// N is how many values were recorded.
func (h *Hist) N() int64 { return h.exact.N() }

// Over is how many of them were longer than [HistMax].
func (h *Hist) Over() int64 { return h.over }

// Moments are exact.
func (h *Hist) Moments() Moments { return h.exact }

// Quantile is the value of the rank nearest to pn, to 3 significant digits; NaN
// of no values.
func (h *Hist) Quantile(p float64) float64 {
	if h.N() == 0 || !(p >= 0 && p <= 1) {
		return math.NaN()
	}
	v := float64(h.h.ValueAtQuantile(100 * p))
	// A bucket is reported by its upper end, which can lie beyond every value.
	return min(max(v, h.exact.Min()), min(h.exact.Max(), float64(HistMax)))
}

// HDR is the histogram itself, for writing logs. It stays h's.
func (h *Hist) HDR() *hdrhistogram.Histogram { return h.h }
