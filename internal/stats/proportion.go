package stats

import (
	"math"

	"gonum.org/v1/gonum/stat/distuv"
)

// Wilson is the interval of a proportion after Wilson (1927): of n independent
// trials a share met; the interval holds the true share with probability level.
// n need not be whole: an effective sample size. Without trials it is [0, 1].
func Wilson(share, n, level float64) (lo, hi float64) {
	if !(n > 0) || !(level > 0 && level < 1) {
		return 0, 1
	}
	z := distuv.UnitNormal.Quantile(1 - (1-level)/2)
	z2 := z * z / n
	centre := (share + z2/2) / (1 + z2)
	half := z / (1 + z2) * math.Sqrt(share*(1-share)/n+z2/(4*n))
	lo, hi = max(0, centre-half), min(1, centre+half)
	// Rounding must not take away what no trial spoke against.
	if share <= 0 {
		lo = 0
	}
	if share >= 1 {
		hi = 1
	}
	return lo, hi
}
