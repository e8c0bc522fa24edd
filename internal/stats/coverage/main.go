// Coverage simulates experiments whose truth is known and counts how often the
// intervals of internal/stats hold it: the table of docs/statistics.md.
//
//	go run ./internal/stats/coverage [-experiments 2000] [-n 500,2000,10000,50000] [-repeats 1,3,5,10]
//
// Latencies under two conditions are drawn request by request, B 5 % slower than
// A, and share what the request itself is like. One repeat: the interval is for
// these two runs. Three and more: each run is faster or slower by 3 % (standard
// deviation) of its own, and the interval is for the deployment. An interval
// that is withheld counts in its own column, not as a hit or a miss.
package main

import (
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"reprise/internal/stats"
)

var levels = []float64{0.5, 0.9, 0.99, stats.Mean}

// shift is how much slower B is.
const shift = 1.05

// runSD is the standard deviation of a run's own factor, in logs.
const runSD = 0.03

// A process draws what n requests took under A and under B.
type process struct {
	name string
	draw func(rng *rand.Rand, n int, shift float64) (a, b []float64)
}

var processes = []process{
	{"iid", func(rng *rand.Rand, n int, shift float64) (a, b []float64) {
		return each(n, func(int) (float64, float64) {
			c := rng.NormFloat64()
			return math.Exp(0.6*c + 0.3*rng.NormFloat64()), shift * math.Exp(0.6*c+0.3*rng.NormFloat64())
		})
	}},
	{"autocorrelated", func(rng *rand.Rand, n int, shift float64) (a, b []float64) {
		// What a request shares with the one before it fades by a tenth: what is
		// remembered lasts 19 requests.
		c, x, y := ar(rng, 0.9), ar(rng, 0.9), ar(rng, 0.9)
		return each(n, func(int) (float64, float64) {
			common := 0.5 * c()
			return math.Exp(common + 0.3*x() + 0.2*rng.NormFloat64()), shift * math.Exp(common+0.3*y()+0.2*rng.NormFloat64())
		})
	}},
	{"drift", func(rng *rand.Rand, n int, shift float64) (a, b []float64) {
		return each(n, func(i int) (float64, float64) {
			c := float64(i)/float64(n) - 0.5 + 0.5*rng.NormFloat64()
			return math.Exp(c + 0.3*rng.NormFloat64()), shift * math.Exp(c+0.3*rng.NormFloat64())
		})
	}},
	{"ties", func(rng *rand.Rand, n int, shift float64) (a, b []float64) {
		return each(n, func(int) (float64, float64) {
			c := 0.6 * rng.NormFloat64()
			return math.Round(10 * math.Exp(c+0.3*rng.NormFloat64())), math.Round(10 * shift * math.Exp(c+0.3*rng.NormFloat64()))
		})
	}},
	{"heavy tail", func(rng *rand.Rand, n int, shift float64) (a, b []float64) {
		// Pareto of index 2.5: a variance, and no third moment.
		return each(n, func(int) (float64, float64) {
			return math.Pow(1-rng.Float64(), -0.4), shift * math.Pow(1-rng.Float64(), -0.4)
		})
	}},
}

func each(n int, one func(i int) (float64, float64)) (a, b []float64) {
	a, b = make([]float64, n), make([]float64, n)
	for i := range n {
		a[i], b[i] = one(i)
	}
	return a, b
}

// ar returns an autoregressive process of unit variance.
func ar(rng *rand.Rand, phi float64) func() float64 {
	v, s := rng.NormFloat64(), math.Sqrt(1-phi*phi)
	return func() float64 {
		v = phi*v + s*rng.NormFloat64()
		return v
	}
}

// truth is the difference of the figures of the process itself.
func (p *process) truth(shift float64) []float64 {
	const n = 4_000_000
	a, b := p.draw(rand.New(rand.NewPCG(7, 7)), n, shift)
	whole := stats.NewPaired(a, b, make([]int8, n))
	out := make([]float64, len(levels))
	for i, level := range levels {
		x, y := whole.Estimate(level)
		out[i] = y - x
	}
	return out
}

func pieces(n int) []int8 {
	h := make([]int8, n)
	for i := range h {
		h[i] = stats.Piece(i, n)
	}
	return h
}

// experiment returns the difference of every level.
func (p *process) experiment(seed uint64, n, repeats int, shift float64) []stats.Difference {
	rng := rand.New(rand.NewPCG(seed, uint64(n*100+repeats)))
	if repeats == 1 {
		a, b := p.draw(rng, n, shift)
		return stats.NewPaired(a, b, pieces(n)).Differences(seed, levels...)
	}
	as, bs := make([][]float64, len(levels)), make([][]float64, len(levels))
	one := make([]int8, n)
	tied := make([]bool, len(levels))
	for range repeats {
		a, b := p.draw(rng, n, shift)
		whole := stats.NewPaired(a, b, one)
		fa, fb := math.Exp(runSD*rng.NormFloat64()), math.Exp(runSD*rng.NormFloat64())
		for i, level := range levels {
			x, y := whole.Estimate(level)
			as[i], bs[i] = append(as[i], fa*x), append(bs[i], fb*y)
			tied[i] = tied[i] || whole.Tied(level)
		}
	}
	out := make([]stats.Difference, len(levels))
	for i := range levels {
		out[i] = stats.Repeated(as[i], bs[i], tied[i])
	}
	return out
}

// A cell counts over experiments.
type cell struct {
	held, shown [4]int
	alarms      int // A/A experiments with an alarm after correction
	found       [4]int
	foundOf     [4]int
}

func run(p *process, n, repeats, experiments int, truth []float64) cell {
	var mu sync.Mutex
	var sum cell
	var wg sync.WaitGroup
	next := make(chan int)
	for range runtime.NumCPU() {
		wg.Go(func() {
			for e := range next {
				same := p.experiment(uint64(e), n, repeats, 1)
				other := p.experiment(uint64(e)+1<<32, n, repeats, shift)
				ps := make([]float64, len(levels))
				mu.Lock()
				for i := range levels {
					ps[i] = same[i].P
					d := &other[i]
					if !d.OK() {
						continue
					}
					sum.shown[i]++
					if d.Lo <= truth[i] && truth[i] <= d.Hi {
						sum.held[i]++
					}
					sum.foundOf[i]++
					if d.P <= 1-stats.Level {
						sum.found[i]++
					}
				}
				for _, v := range stats.Holm(ps) {
					if v <= 1-stats.Level {
						sum.alarms++
						break
					}
				}
				mu.Unlock()
			}
		})
	}
	for e := range experiments {
		next <- e
	}
	close(next)
	wg.Wait()
	return sum
}

func main() {
	experiments := flag.Int("experiments", 2000, "`N` in each cell")
	ns := flag.String("n", "500,2000,10000,50000", "requests in a run")
	ks := flag.String("repeats", "1,3,5,10", "repeats of each condition")
	flag.Parse()
	fmt.Printf("%d experiments a cell. held: share of the intervals shown that hold the truth, %%; shown: share of experiments with an\n", *experiments)
	fmt.Println("interval, where not 100 %; A/A: share of experiments without a difference in which any of the four is significant at 5 %")
	fmt.Println("after Holm's correction; power: share in which the 5 % shift is found (uncorrected).")
	fmt.Println("\n| process | n | repeats | p50 | p90 | p99 | mean | A/A | power p50 | p90 | p99 | mean |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|---|---|")
	for i := range processes {
		p := &processes[i]
		truth := p.truth(shift)
		for _, k := range ints(*ks) {
			want := truth
			if k > 1 {
				// The mean of a run's factor is above one.
				want = make([]float64, len(truth))
				for i := range truth {
					want[i] = truth[i] * math.Exp(runSD*runSD/2)
				}
			}
			for _, n := range ints(*ns) {
				c := run(p, n, k, *experiments, want)
				fmt.Printf("| %s | %d | %d |", p.name, n, k)
				for i := range levels {
					switch {
					case c.shown[i] == 0:
						fmt.Print(" none |")
					case c.shown[i] < *experiments:
						fmt.Printf(" %.1f (%.0f shown) |", percent(c.held[i], c.shown[i]), percent(c.shown[i], *experiments))
					default:
						fmt.Printf(" %.1f |", percent(c.held[i], c.shown[i]))
					}
				}
				fmt.Printf(" %.1f |", percent(c.alarms, *experiments))
				for i := range levels {
					fmt.Printf(" %.0f |", percent(c.found[i], max(1, c.foundOf[i])))
				}
				fmt.Println()
			}
		}
	}
}

func percent(k, n int) float64 { return 100 * float64(k) / float64(n) }

func ints(s string) (out []int) {
	for field := range strings.SplitSeq(s, ",") {
		n, err := strconv.Atoi(field)
		if err != nil || n < 1 {
			fmt.Fprintf(os.Stderr, "coverage: %q is no count\n", field)
			os.Exit(2)
		}
		out = append(out, n)
	}
	return out
}
