package stats

import (
	"math"
	"testing"

	"gonum.org/v1/gonum/stat/distuv"
)

// The ends are the shares p at which the observed one is z standard deviations
// of p away: what the interval is defined by.
func TestWilson(t *testing.T) {
	tests := []struct{ share, n, level, z float64 }{
		{0.99, 1000, 0.95, 1.959964},
		{0.5, 10, 0.9, 1.644854},
		{0.003, 12345, 0.99, 2.575829},
	}
	for _, tt := range tests {
		lo, hi := Wilson(tt.share, tt.n, tt.level)
		if !(lo < tt.share && tt.share < hi) {
			t.Errorf("Wilson(%v, %v, %v) = %v, %v", tt.share, tt.n, tt.level, lo, hi)
		}
		for _, p := range []float64{lo, hi} {
			if z := math.Abs(tt.share-p) / math.Sqrt(p*(1-p)/tt.n); math.Abs(z-tt.z) > 1e-5 {
				t.Errorf("Wilson(%v, %v, %v) has an end at %v, %v deviations away, want %v", tt.share, tt.n, tt.level, p, z, tt.z)
			}
		}
	}
	if lo, hi := Wilson(1, 380, 0.95); lo < 0.9899 || lo > 0.99 || hi != 1 {
		t.Errorf("380 of 380: %v, %v; want 0.99 just missed, and 1", lo, hi)
	}
	if lo, hi := Wilson(0.3, 0, 0.95); lo != 0 || hi != 1 {
		t.Errorf("nothing seen: %v, %v; want 0, 1", lo, hi)
	}
}

// The interval holds the truth about as often as it says: summed over the whole
// binomial distribution, so that no chance is in it.
func TestWilsonCoverage(t *testing.T) {
	for _, p := range []float64{0.5, 0.9, 0.95} {
		const n = 400
		b := distuv.Binomial{N: n, P: p}
		held := 0.0
		for k := range n + 1 {
			if lo, hi := Wilson(float64(k)/n, n, 0.95); lo <= p && p <= hi {
				held += b.Prob(float64(k))
			}
		}
		if math.Abs(held-0.95) > 0.012 {
			t.Errorf("of a share of %v the interval holds %.4f, want about 0.95", p, held)
		}
	}
}
