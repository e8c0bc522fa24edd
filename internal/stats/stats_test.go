package stats

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// What numpy 2 says: np.quantile(x, p), to the last digit.
func TestQuantileIsNumpys(t *testing.T) {
	x := []float64{1, 2, 4, 8, 16, 32, 64, 128, 256, 512.3}
	inf := math.Inf(1)
	tests := []struct {
		name string
		x    []float64
		p    float64
		want float64
	}{
		{"minimum", x, 0, 1},
		{"below the first gap", x, 0.01, 1.09},
		{"on an order statistic and a quarter", x, 0.25, 5},
		{"median of an even sample", x, 0.5, 24},
		{"p90", x, 0.9, 281.6299999999999},
		{"p95", x, 0.95, 396.9649999999997},
		{"p99", x, 0.99, 489.233},
		{"p99.9", x, 0.999, 509.99329999999986},
		{"maximum", x, 1, 512.3},
		{"two values, nearer to the upper", []float64{3, 9}, 0.7, 7.199999999999999},
		{"one value is every quantile", []float64{7}, 0.99, 7},
		{"an infinite neighbour without weight", []float64{1, 2, 3, inf, inf}, 0.5, 3},
		{"an infinite neighbour with weight", []float64{1, 2, 3, inf, inf}, 0.51, inf},
		{"between two infinite values", []float64{1, inf, inf, inf}, 0.9, inf},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := Quantile(tt.x, tt.p); got != tt.want {
				t.Errorf("Quantile(%v, %v) = %v, want %v", tt.x, tt.p, got, tt.want)
			}
		})
	}
	for _, p := range []float64{-0.1, 1.1, math.NaN()} {
		if got := Quantile(x, p); !math.IsNaN(got) {
			t.Errorf("Quantile(x, %v) = %v, want NaN", p, got)
		}
	}
	if got := Quantile(nil, 0.5); !math.IsNaN(got) {
		t.Errorf("Quantile(nil, 0.5) = %v, want NaN", got)
	}
}

func TestQuantileStaysInside(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := rapid.SliceOfN(rapid.Float64Range(-1e12, 1e12), 1, 50).Draw(t, "x")
		slices.Sort(x)
		p := rapid.Float64Range(0, 1).Draw(t, "p")
		q := rapid.Float64Range(p, 1).Draw(t, "q")
		a, b := Quantile(x, p), Quantile(x, q)
		if a < x[0] || b > x[len(x)-1] || a > b {
			t.Errorf("Quantile(%v) at %v and %v = %v and %v", x, p, q, a, b)
		}
	})
}

// The ranks that scipy.stats.binom gives.
func TestQuantileInterval(t *testing.T) {
	tests := []struct {
		n      int
		p      float64
		lo, hi int
		ok     bool
	}{
		{0, 0.5, 0, 0, false},
		{5, 0.5, 0, 0, false},
		{6, 0.5, 0, 5, true},
		{10, 0.5, 1, 8, true},
		{20, 0.5, 5, 14, true},
		{35, 0.9, 0, 0, false},
		{36, 0.9, 28, 35, true},
		{100, 0.5, 39, 60, true},
		{100, 0.9, 83, 95, true},
		{367, 0.99, 0, 0, false},
		{368, 0.99, 359, 367, true},
		{1000, 0.99, 982, 996, true},
		{10000, 0.99, 9879, 9919, true},
		{3687, 0.999, 0, 0, false},
		{3688, 0.999, 3679, 3687, true},
		{1000000, 0.5, 499019, 500980, true},
		{1000000, 0.99, 989804, 990195, true},
		{10000000, 0.999, 9989803, 9990195, true},
		{100, 0, 0, 0, false},
		{100, 1, 0, 0, false},
	}
	for _, tt := range tests {
		lo, hi, ok := QuantileInterval(tt.n, tt.p, Level)
		if lo != tt.lo || hi != tt.hi || ok != tt.ok {
			t.Errorf("QuantileInterval(%d, %v) = %d, %d, %t; want %d, %d, %t", tt.n, tt.p, lo, hi, ok, tt.lo, tt.hi, tt.ok)
		}
	}
}

// The interval must hold the true quantile as often as it claims, whatever the
// distribution.
func TestQuantileIntervalCovers(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct {
		n int
		p float64
	}{{50, 0.5}, {50, 0.9}, {400, 0.99}} {
		lo, hi, _ := QuantileInterval(c.n, c.p, Level)
		truth := -math.Log(1 - c.p) // of the exponential distribution
		const rounds = 2000
		hits := 0
		x := make([]float64, c.n)
		for range rounds {
			for i := range x {
				x[i] = rng.ExpFloat64()
			}
			slices.Sort(x)
			if x[lo] <= truth && truth <= x[hi] {
				hits++
			}
		}
		// Three standard errors of a share of 0.95 are 0.015.
		if share := float64(hits) / rounds; share < Level-0.015 {
			t.Errorf("n = %d, p = %v: %v of the intervals hold the quantile, want %v", c.n, c.p, share, Level)
		}
	}
}

func TestMinSamplesIsTheFirstThatCarries(t *testing.T) {
	want := map[float64]int{0.5: 6, 0.9: 36, 0.95: 72, 0.99: 368, 0.999: 3688, 0.1: 36}
	for p, n := range want {
		if got := MinSamples(p, Level); got != n {
			t.Errorf("MinSamples(%v) = %d, want %d", p, got, n)
		}
		if !Carries(int64(n), p) || Carries(int64(n-1), p) {
			t.Errorf("p%v: %d carries: %t, %d carries: %t", p, n, Carries(int64(n), p), n-1, Carries(int64(n-1), p))
		}
		if _, _, ok := QuantileInterval(n, p, Level); !ok {
			t.Errorf("QuantileInterval(%d, %v) has no interval", n, p)
		}
		if _, _, ok := QuantileInterval(n-1, p, Level); ok {
			t.Errorf("QuantileInterval(%d, %v) has one", n-1, p)
		}
	}
	if got := MinSamples(1, Level); got != math.MaxInt {
		t.Errorf("MinSamples(1) = %d", got)
	}
}

func TestMoments(t *testing.T) {
	var m Moments
	for _, v := range []float64{m.Mean(), m.Min(), m.Max(), m.SD(), m.Variance(), m.CV()} {
		if !math.IsNaN(v) {
			t.Fatalf("a figure of no values is %v, want NaN", v)
		}
	}
	m.Add(4)
	m.AddN(7, 2)
	m.AddN(100, 0)
	m.AddN(100, -1)
	m.Add(12)
	// 4, 7, 7, 12: mean 7.5, squares of the deviations 12.25 + .25 + .25 + 20.25
	if m.N() != 4 || m.Mean() != 7.5 || m.Min() != 4 || m.Max() != 12 {
		t.Errorf("n %d, mean %v, min %v, max %v", m.N(), m.Mean(), m.Min(), m.Max())
	}
	if m.Variance() != 33.0/4 || m.SD() != math.Sqrt(11) || m.CV() != math.Sqrt(33.0/4)/7.5 {
		t.Errorf("variance %v, sd %v, cv %v", m.Variance(), m.SD(), m.CV())
	}
}

// Merging the halves gives the whole, also where the values are far from zero
// and close to each other, which is what breaks the naive formula.
func TestMomentsMerge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := rapid.SliceOfN(rapid.Float64Range(1e9, 1e9+1), 0, 40).Draw(t, "x")
		cut := rapid.IntRange(0, len(x)).Draw(t, "cut")
		var all, a, b Moments
		for i, v := range x {
			all.Add(v)
			if i < cut {
				a.Add(v)
			} else {
				b.Add(v)
			}
		}
		a.Merge(b)
		if a.N() != all.N() {
			t.Fatalf("n = %d, want %d", a.N(), all.N())
		}
		if a.N() == 0 {
			return
		}
		if math.Abs(a.Mean()-all.Mean()) > 1e-5 || math.Abs(a.Variance()-all.Variance()) > 1e-6 || a.Min() != all.Min() || a.Max() != all.Max() {
			t.Errorf("merged %+v, whole %+v", a, all)
		}
	})
}

func TestDispersion(t *testing.T) {
	const s = time.Second
	tests := []struct {
		name        string
		at          []time.Duration
		n           int64
		index, peak float64
	}{
		{"nothing", nil, 0, math.NaN(), math.NaN()},
		{"one window is open", []time.Duration{0, s / 2}, 0, math.NaN(), math.NaN()},
		{"a clock", []time.Duration{0, s, 2 * s, 3 * s}, 3, 0, 1},
		// Counts 4, 0, 0, 4, and the open window: mean 2, variance 4.
		{"bursts, with empty windows between", []time.Duration{0, 0, 0, 0, 3 * s, 3 * s, 3 * s, 3 * s, 4 * s}, 4, 2, 2},
		{"one that comes out of order stays in the open window", []time.Duration{2 * s, s, 3 * s, 3 * s, 4 * s}, 2, 0, 1},
		{"before zero", []time.Duration{-s / 2, 0, s}, 2, 0, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := NewDispersion(s)
			for _, at := range tt.at {
				d.Add(at)
			}
			m := d.Counts()
			if m.N() != tt.n || !same(d.Index(), tt.index) || !same(d.PeakToMean(), tt.peak) {
				t.Errorf("%d windows, index %v, peak to mean %v; want %d, %v, %v", m.N(), d.Index(), d.PeakToMean(), tt.n, tt.index, tt.peak)
			}
		})
	}
}

// A Poisson process has index 1 at every width and burstiness 0.
func TestDispersionOfPoisson(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	d, wide := NewDispersion(100*time.Millisecond), NewDispersion(time.Second)
	var gaps Moments
	at := 0.0
	for range 50000 {
		gap := rng.ExpFloat64() / 20
		gaps.Add(gap)
		at += gap
		d.Add(time.Duration(at * 1e9))
		wide.Add(time.Duration(at * 1e9))
	}
	for _, index := range []float64{d.Index(), wide.Index()} {
		if math.Abs(index-1) > 0.1 {
			t.Errorf("index = %v, want 1 within 0.1", index)
		}
	}
	if b := Burstiness(gaps.CV()); math.Abs(b) > 0.02 {
		t.Errorf("burstiness = %v, want 0 within 0.02", b)
	}
	if Burstiness(0) != -1 || Burstiness(3) != 0.5 {
		t.Errorf("Burstiness(0) = %v, Burstiness(3) = %v; want -1, 0.5", Burstiness(0), Burstiness(3))
	}
}

func TestCounts(t *testing.T) {
	const s = time.Second
	times := []time.Duration{-1, 0, s - 1, s, 3*s - 1, 3 * s, 5 * s}
	if got, want := Counts(times, 0, 3*s+s/2, s), []float64{2, 1, 1}; !slices.Equal(got, want) {
		t.Errorf("Counts = %v, want %v", got, want)
	}
	if got := Counts(times, s, s, s); got != nil {
		t.Errorf("Counts over nothing = %v, want nil", got)
	}
	if got := Counts(times, 0, s, 0); got != nil {
		t.Errorf("Counts at width 0 = %v, want nil", got)
	}
}

func TestAutocorrelation(t *testing.T) {
	// Mean 2.5, deviations -1.5, -.5, .5, 1.5, sum of squares 5.
	x := []float64{1, 2, 3, 4}
	want := []float64{1, (0.75 - 0.25 + 0.75) / 5, (-0.75 - 0.75) / 5, -2.25 / 5, math.NaN()}
	for lag, w := range want {
		if got := Autocorrelation(x, lag); !same(got, w) {
			t.Errorf("Autocorrelation(x, %d) = %v, want %v", lag, got, w)
		}
	}
	if got := Autocorrelation([]float64{2, 2, 2}, 1); !math.IsNaN(got) {
		t.Errorf("of a constant: %v, want NaN", got)
	}
	if got := Autocorrelation(x, -1); !math.IsNaN(got) {
		t.Errorf("at lag -1: %v, want NaN", got)
	}
}

func TestHist(t *testing.T) {
	h := NewHist()
	if !math.IsNaN(h.Quantile(0.5)) {
		t.Errorf("median of nothing = %v, want NaN", h.Quantile(0.5))
	}
	h.Add(-time.Second, 1) // counts as 0
	h.Add(0, 1)
	h.Add(20*time.Millisecond, 6)
	h.Add(2*time.Hour, 2)
	h.Add(time.Minute, 0)
	m := h.Moments()
	if h.N() != 10 || h.Over() != 2 || m.Min() != 0 || m.Max() != float64(2*time.Hour) {
		t.Errorf("n %d, over %d, min %v, max %v", h.N(), h.Over(), m.Min(), m.Max())
	}
	for _, tt := range []struct {
		p    float64
		want time.Duration
	}{{0.5, 20 * time.Millisecond}, {0.8, 20 * time.Millisecond}, {0.9, time.Hour}, {1, time.Hour}} {
		if got := h.Quantile(tt.p); math.Abs(got-float64(tt.want)) > float64(tt.want)/1000 {
			t.Errorf("Quantile(%v) = %v, want %v within one part in a thousand", tt.p, got, float64(tt.want))
		}
	}
	if got := h.Quantile(0.1); got > float64(HistMin) {
		t.Errorf("Quantile(0.1) = %v, want at most %v", got, HistMin)
	}
	other := NewHist()
	other.Add(time.Second, 3)
	other.Merge(h)
	if n := other.N(); n != 13 || other.Over() != 2 || other.HDR().TotalCount() != 13 {
		t.Errorf("merged n %d, over %d, HDR %d; want 13, 2, 13", n, other.Over(), other.HDR().TotalCount())
	}
	h.Reset()
	if h.N() != 0 || h.Over() != 0 || h.HDR().TotalCount() != 0 {
		t.Errorf("after Reset: n %d, over %d", h.N(), h.Over())
	}
}

// Three digits are kept, and no quantile leaves the sample.
func TestHistIsCloseToExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		us := rapid.SliceOfN(rapid.Int64Range(1, 3600e6), 1, 200).Draw(t, "us")
		p := rapid.Float64Range(0.001, 1).Draw(t, "p")
		h := NewHist()
		for _, v := range us {
			h.Add(time.Duration(v)*time.Microsecond, 1)
		}
		slices.Sort(us)
		rank := min(len(us), max(1, int(100*p/100*float64(len(us))+0.5)))
		want := float64(us[rank-1]) * 1e3
		if got := h.Quantile(p); math.Abs(got-want) > max(want/1000, 1e3) || got < float64(us[0])*1e3 {
			t.Errorf("Quantile(%v) of %v µs = %v, want %v", p, us, got, want)
		}
	})
}

func same(a, b float64) bool {
	return math.IsNaN(a) && math.IsNaN(b) || math.Abs(a-b) < 1e-12
}
