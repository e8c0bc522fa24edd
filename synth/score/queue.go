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
	Level float64 // mean work a row of the other over the reference's
}

// CompareQueues puts both Samples through the queue whose capacity is the
// reference's work at rho. The other Sample is played at the reference's rate:
// what is compared is shape and work a row, and a model that writes longer
// prompts than the reference has is shown as the heavier load that it is.
func CompareQueues(reference, other *Sample, work, otherWork []float64, rho float64) QueueResult {
	if !comparable(reference, other, work, otherWork) {
		return noQueue(rho)
	}
	c := Capacity(reference, work, rho)
	o := other.AtRate(reference.Rate())
	r := compareTTFT(Queue{c}.TTFT(reference.Arrival, work), Queue{c}.TTFT(o.Arrival, otherWork), rho)
	r.Level = mean(otherWork) / mean(work)
	return r
}

// QueueFloor compares two stretches of one trace, each in its own time and in a
// queue that its own work fills to rho: how much two hours of the same service
// differ in shape when neither is the busier one.
func QueueFloor(reference, other *Sample, work, otherWork []float64, rho float64) QueueResult {
	if !comparable(reference, other, work, otherWork) {
		return noQueue(rho)
	}
	r := compareTTFT(Queue{Capacity(reference, work, rho)}.TTFT(reference.Arrival, work),
		Queue{Capacity(other, otherWork, rho)}.TTFT(other.Arrival, otherWork), rho)
	r.Level = mean(otherWork) / mean(work)
	return r
}

func comparable(a, b *Sample, work, otherWork []float64) bool {
	return len(work) >= 2 && len(otherWork) >= 2 && a.Rate() > 0 && b.Rate() > 0 && mean(work) > 0 && mean(otherWork) > 0
}

func noQueue(rho float64) QueueResult {
	nan := math.NaN()
	return QueueResult{Rho: rho, KS: nan, P99: nan, P50: nan, Level: nan}
}

func compareTTFT(reference, other []float64, rho float64) QueueResult {
	a, b := sorted(reference), sorted(other)
	return QueueResult{
		Rho: rho, KS: sortedKS(a, b),
		P99: stats.Quantile(b, 0.99) / stats.Quantile(a, 0.99),
		P50: stats.Quantile(b, 0.5) / stats.Quantile(a, 0.5),
	}
}
