package score

import (
	"math"

	"reprise/internal/stats"
)

// A Queue is what a serving engine's prefill feels like: one server, first come
// first served, whose work is known when a row arrives. It is a proxy that any
// trace can be put through, and it shows what marginal distributions cannot:
// rows, long prompts and cache misses that come together.
type Queue struct {
	// Capacity is work a second, see [Capacity].
	Capacity float64
}

// Capacity is the speed at which the work of a Sample fills a share rho of its
// horizon.
func Capacity(s *Sample, work []float64, rho float64) float64 {
	total := 0.0
	for _, w := range work {
		total += w
	}
	return total / (rho * s.Horizon)
}

// TTFT returns the seconds from each arrival to the end of its own work
// (Lindley's recursion).
func (q Queue) TTFT(arrival, work []float64) []float64 {
	ttft := make([]float64, len(arrival))
	free := math.Inf(-1)
	for i, t := range arrival {
		free = max(free, t) + work[i]/q.Capacity
		ttft[i] = free - t
	}
	return ttft
}

// PromptWork is the work of a cacheless prefill: the prompt's tokens. Rows of
// unknown length count as the mean.
func PromptWork(s *Sample) []float64 {
	known := Known(s.In)
	if len(known) == 0 {
		return nil
	}
	m := mean(known)
	w := make([]float64, s.N())
	for i, v := range s.In {
		w[i] = m
		if v >= 0 {
			w[i] = float64(v)
		}
	}
	return w
}

// CacheWork is the work of a prefill behind an LRU prefix cache of so many
// blocks: the blocks that it does not hold, and a quarter of one that every
// request costs.
func CacheWork(s *Sample, cache int) []float64 {
	w := Uncached(s, cache)
	for i := range w {
		w[i] += 0.25
	}
	return w
}

// A QueueResult compares the TTFT of two Samples in one [Queue].
type QueueResult struct {
	Rho   float64
	KS    float64 // of the two distributions of TTFT
	P99   float64 // of the other over the reference's
	P50   float64
	Level float64 // work a second of the other over the reference's, after both have the reference's rate
}

// CompareQueues puts both Samples through the queue whose capacity is the
// reference's work at rho. The other Sample is played at the reference's rate:
// what is compared is shape, and the level is a figure of its own.
func CompareQueues(reference, other *Sample, work, otherWork []float64, rho float64) QueueResult {
	none := QueueResult{Rho: rho, KS: math.NaN(), P99: math.NaN(), P50: math.NaN(), Level: math.NaN()}
	if len(work) < 2 || len(otherWork) < 2 || !(reference.Rate() > 0) || !(other.Rate() > 0) {
		return none
	}
	q := Queue{Capacity(reference, work, rho)}
	if !(q.Capacity > 0) {
		return none
	}
	o := other.AtRate(reference.Rate())
	a, b := sorted(q.TTFT(reference.Arrival, work)), sorted(q.TTFT(o.Arrival, otherWork))
	return QueueResult{
		Rho: rho, KS: sortedKS(a, b),
		P99:   stats.Quantile(b, 0.99) / stats.Quantile(a, 0.99),
		P50:   stats.Quantile(b, 0.5) / stats.Quantile(a, 0.5),
		Level: mean(otherWork) / mean(work),
	}
}
