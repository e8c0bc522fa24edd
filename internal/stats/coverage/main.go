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
//
// An experiment of fewer repeats is the beginning of one of more, and the one
// without a difference has the same requests as the one with it: cells of one
// process and n share their chance, and each is right by itself.
package main

import (
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"reprise/internal/stats"
	"reprise/internal/units"
)

var levels = []float64{0.5, 0.9, 0.99, stats.Mean}

// shift is how much slower B is.
const shift = 1.05

// runSD is the standard deviation of a run's own factor, in logs.
const runSD = 0.03

// A process draws what n requests took under A, and under B if it were no slower.
type process struct {
	name  string
	draw  func(rng *rand.Rand, n int) (a, b []float64)
	round bool // latencies are whole numbers
}

var processes = []process{
	{"iid", func(rng *rand.Rand, n int) (a, b []float64) {
		return each(n, func(int) (float64, float64) {
			c := rng.NormFloat64()
			return math.Exp(0.6*c + 0.3*rng.NormFloat64()), math.Exp(0.6*c + 0.3*rng.NormFloat64())
		})
	}, false},
	{"autocorrelated", func(rng *rand.Rand, n int) (a, b []float64) {
		// What a request shares with the one before it fades by a tenth: what is
		// remembered lasts 19 requests.
		c, x, y := ar(rng, 0.9), ar(rng, 0.9), ar(rng, 0.9)
		return each(n, func(int) (float64, float64) {
			common := 0.5 * c()
			return math.Exp(common + 0.3*x() + 0.2*rng.NormFloat64()), math.Exp(common + 0.3*y() + 0.2*rng.NormFloat64())
		})
	}, false},
	{"drift", func(rng *rand.Rand, n int) (a, b []float64) {
		return each(n, func(i int) (float64, float64) {
			c := float64(i)/float64(n) - 0.5 + 0.5*rng.NormFloat64()
			return math.Exp(c + 0.3*rng.NormFloat64()), math.Exp(c + 0.3*rng.NormFloat64())
		})
	}, false},
	{"ties", func(rng *rand.Rand, n int) (a, b []float64) {
		return each(n, func(int) (float64, float64) {
			c := 0.6 * rng.NormFloat64()
			return 10 * math.Exp(c+0.3*rng.NormFloat64()), 10 * math.Exp(c+0.3*rng.NormFloat64())
		})
	}, true},
	{"heavy tail", func(rng *rand.Rand, n int) (a, b []float64) {
		// Pareto of index 2.5: a variance, and no third moment.
		return each(n, func(int) (float64, float64) {
			return math.Pow(1-rng.Float64(), -0.4), math.Pow(1-rng.Float64(), -0.4)
		})
	}, false},
}

// slower returns what requests take that are slower by a factor, in their order.
func (p *process) slower(v []float64, factor float64) []float64 {
	out := make([]float64, len(v))
	for i, x := range v {
		if out[i] = factor * x; p.round {
			out[i] = math.Round(out[i])
		}
	}
	return out
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
func (p *process) truth() []float64 {
	a, b := p.draw(rand.New(rand.NewPCG(7, 7)), 8_000_000)
	slices.Sort(a)
	slices.Sort(b)
	x, y := newFigures(p.slower(a, 1)), newFigures(p.slower(b, shift))
	out := make([]float64, len(levels))
	for i := range levels {
		out[i] = y.value[i] - x.value[i]
	}
	return out
}

// figures are those of one run, by level.
type figures struct {
	value []float64
	tied  []bool
}

func newFigures(sorted []float64) figures {
	f := figures{make([]float64, len(levels)), make([]bool, len(levels))}
	for i, level := range levels {
		if level == stats.Mean {
			for _, x := range sorted {
				f.value[i] += x / float64(len(sorted))
			}
			continue
		}
		f.value[i], f.tied[i] = stats.Quantile(sorted, level), stats.Tied(sorted, level)
	}
	return f
}

func pieces(n int) []int8 {
	h := make([]int8, n)
	for i := range h {
		h[i] = stats.Piece(i, n)
	}
	return h
}

// A result is the difference of every level, without a true difference and with
// the shift.
type result struct{ same, other []stats.Difference }

// experiment returns a result for each number of repeats.
func (p *process) experiment(seed uint64, n int, repeats []int) []result {
	most := slices.Max(repeats)
	out := make([]result, len(repeats))
	var fs [3][]figures // of A, of B, of the slower B
	var factors [2][]float64
	for r := range most {
		rng := rand.New(rand.NewPCG(seed, uint64(n)<<8|uint64(r)))
		a, b := p.draw(rng, n)
		if i := slices.Index(repeats, 1); i >= 0 && r == 0 {
			one := p.slower(a, 1)
			out[i].same = stats.NewPaired(one, p.slower(b, 1), pieces(n)).Differences(seed, levels...)
			out[i].other = stats.NewPaired(one, p.slower(b, shift), pieces(n)).Differences(seed, levels...)
		}
		if most == 1 {
			break
		}
		for k := range factors {
			factors[k] = append(factors[k], math.Exp(runSD*rng.NormFloat64()))
		}
		slices.Sort(a)
		slices.Sort(b)
		for k, v := range [][]float64{p.slower(a, 1), p.slower(b, 1), p.slower(b, shift)} {
			fs[k] = append(fs[k], newFigures(v))
		}
	}
	for i, k := range repeats {
		if k > 1 {
			out[i] = result{repeated(fs[0][:k], fs[1][:k], factors), repeated(fs[0][:k], fs[2][:k], factors)}
		}
	}
	return out
}

func repeated(a, b []figures, factors [2][]float64) []stats.Difference {
	out := make([]stats.Difference, len(levels))
	for i := range levels {
		var as, bs []float64
		tied := false
		for r := range a {
			as, bs = append(as, factors[0][r]*a[r].value[i]), append(bs, factors[1][r]*b[r].value[i])
			tied = tied || a[r].tied[i] || b[r].tied[i]
		}
		out[i] = stats.Repeated(as, bs, tied)
	}
	return out
}

// A cell counts over experiments.
type cell struct {
	held, shown [4]int
	alarms      int // A/A experiments with an alarm after correction
	found       [4]int
}

func (c *cell) add(r *result, truth []float64) {
	ps := make([]float64, len(levels))
	for i := range levels {
		ps[i] = r.same[i].P
		d := &r.other[i]
		if !d.OK() {
			continue
		}
		c.shown[i]++
		if d.Lo <= truth[i] && truth[i] <= d.Hi {
			c.held[i]++
		}
		if d.P <= 1-stats.Level {
			c.found[i]++
		}
	}
	for _, v := range stats.Holm(ps) {
		if v <= 1-stats.Level {
			c.alarms++
			break
		}
	}
}

// run returns a cell for each number of repeats.
func run(p *process, n int, repeats []int, experiments int, truth []float64) []cell {
	var mu sync.Mutex
	cells := make([]cell, len(repeats))
	// The mean of a run's factor is above one.
	of := make([]float64, len(truth))
	for i := range truth {
		of[i] = truth[i] * math.Exp(runSD*runSD/2)
	}
	var wg sync.WaitGroup
	next := make(chan int)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for e := range next {
				rs := p.experiment(uint64(e), n, repeats)
				mu.Lock()
				for i, k := range repeats {
					want := of
					if k == 1 {
						want = truth
					}
					cells[i].add(&rs[i], want)
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
	return cells
}

func main() {
	experiments := flag.Int("experiments", 2000, "`N` in each cell")
	ns := flag.String("n", "500,2000,10000,50000", "requests in a run")
	ks := flag.String("repeats", "1,3,5,10", "repeats of each condition")
	flag.Parse()
	fmt.Printf("%d experiments a cell. held: share of the intervals shown that hold the truth, %%; in brackets: share of experiments with an\n", *experiments)
	fmt.Println("interval, where not 100 %; A/A: share of experiments without a difference in which any of the four is significant at 5 %")
	fmt.Println("after Holm's correction; power: share in which the 5 % shift is found (uncorrected).")
	fmt.Println("\n| process | n | repeats | p50 | p90 | p99 | mean | A/A | power p50 | p90 | p99 | mean |")
	fmt.Println("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
	repeats := ints(*ks)
	for i := range processes {
		p := &processes[i]
		truth := p.truth()
		for _, n := range ints(*ns) {
			for j, c := range run(p, n, repeats, *experiments, truth) {
				c.print(p.name, n, repeats[j], *experiments)
			}
		}
	}
}

func (c *cell) print(process string, n, repeats, experiments int) {
	fmt.Printf("| %s | %s | %d |", process, units.Count(int64(n)), repeats)
	for i := range levels {
		switch {
		case c.shown[i] == 0:
			fmt.Print(" none |")
		case c.shown[i] < experiments:
			// Cut and not rounded: one interval that is missing shows.
			fmt.Printf(" %.1f (%.0f) |", percent(c.held[i], c.shown[i]), math.Floor(percent(c.shown[i], experiments)))
		default:
			fmt.Printf(" %.1f |", percent(c.held[i], c.shown[i]))
		}
	}
	fmt.Printf(" %.1f |", percent(c.alarms, experiments))
	for i := range levels {
		if c.shown[i] == 0 {
			fmt.Print(" - |")
			continue
		}
		fmt.Printf(" %.0f |", percent(c.found[i], c.shown[i]))
	}
	fmt.Println()
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
