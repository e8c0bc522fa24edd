package stats

import (
	"fmt"
	"math"
	"slices"

	"gonum.org/v1/gonum/stat/distuv"
)

// minBlocks is how many blocks must hold something for an interval.
const minBlocks = 8

// minPairs is how many pairs an interval takes, minTail how many of them beyond
// a quantile.
const (
	minPairs = 100
	minTail  = 10
)

// maxMemory bounds the correlation of neighbouring half blocks, beyond which
// blocks are not independent: of small blocks, which are then made larger, and
// of large ones, whose fewer halves tell less.
const (
	maxMemorySmall = 0.2
	maxMemoryLarge = 0.35
)

// draws is the number of bootstrap replicates.
const draws = 1000

// A Difference is B - A of one figure, with what is known of its uncertainty.
type Difference struct {
	A, B float64 // the figure under each condition
	Diff float64 // B - A
	// Lo and Hi bound Diff at Level. They are NaN where Why says that there is no
	// interval.
	Lo, Hi float64
	// ALo to BHi bound the figures themselves.
	ALo, AHi, BLo, BHi float64
	// RelLo and RelHi bound B/A - 1; NaN where A or B may be 0 or negative.
	Rel, RelLo, RelHi float64
	// P is the two-sided p-value of no difference.
	P float64
	// Less is the probability that B is below A, from the same distribution as
	// the interval.
	Less float64
	SE   float64
	DF   int
	Why  string // why there is no interval
}

// none is a difference whose interval is withheld.
func (d Difference) none(format string, a ...any) Difference {
	nan := math.NaN()
	d.Lo, d.Hi, d.RelLo, d.RelHi, d.P, d.Less, d.SE = nan, nan, nan, nan, nan, nan, nan
	d.ALo, d.AHi, d.BLo, d.BHi = nan, nan, nan, nan
	d.Why = fmt.Sprintf(format, a...)
	return d
}

// OK says whether there is an interval.
func (d *Difference) OK() bool { return d.Why == "" }

// Detectable is the smallest difference that an experiment with this standard
// error finds at Level in four of five repetitions; NaN without an interval.
func (d *Difference) Detectable() float64 {
	if !d.OK() {
		return math.NaN()
	}
	t := student(d.DF)
	return (t.Quantile(1-(1-Level)/2) + t.Quantile(0.8)) * d.SE
}

func student(df int) distuv.StudentsT { return distuv.StudentsT{Sigma: 1, Nu: float64(df)} }

// Differences compares quantiles, or the mean (level [Mean]), of these runs: it
// says what other requests of the same kind, in the same two runs, would have
// given. How runs differ from each other it cannot know.
//
// The interval is Student's with one degree of freedom less than there are
// blocks, around the figure of all pairs, with the standard deviation of the
// replicates; where the quantile lies on a tie, whose replicates jump, it is
// widened to the percentile interval of the replicates.
func (p *Paired) Differences(seed uint64, levels ...float64) []Difference {
	out := make([]Difference, len(levels))
	n := int64(min(p.a.n, p.b.n))
	reps := map[int][][][2]float64{}
	for i, level := range levels {
		var d Difference
		if n == 0 {
			d.A, d.B, d.Diff, d.Rel = math.NaN(), math.NaN(), math.NaN(), math.NaN()
			out[i] = d.none("nothing to compare")
			continue
		}
		d.A, d.B = p.Estimate(level)
		d.Diff, d.Rel = d.B-d.A, d.B/d.A-1
		pieces := 2
		if p.memory(1, level) > maxMemorySmall {
			pieces = 4
		}
		filled := p.filled(pieces)
		switch {
		case level != Mean && float64(n)*(1-level) < minTail:
			out[i] = d.none("%d do not carry it: it takes %.0f", n, math.Ceil(minTail/(1-level)-1e-9))
		case n < minPairs || filled < minBlocks:
			out[i] = d.none("%d in %d blocks of time: it takes %d, and %d blocks", n, filled, minPairs, minBlocks)
		case pieces > 2 && p.memory(2, level) > maxMemoryLarge:
			out[i] = d.none("neighbouring blocks of requests resemble each other: the run is short for how long its load remembers")
		default:
			if reps[pieces] == nil {
				reps[pieces] = p.replicates(draws, seed, pieces, levels...)
			}
			d.DF = filled - 1
			out[i] = p.interval(d, reps[pieces][i], filled, level)
		}
	}
	return out
}

func (p *Paired) interval(d Difference, reps [][2]float64, filled int, level float64) Difference {
	var m, ma, mb, logs Moments
	diffs := make([]float64, len(reps))
	positive := d.A > 0 && d.B > 0
	for i, r := range reps {
		diffs[i] = r[1] - r[0]
		m.Add(diffs[i])
		ma.Add(r[0])
		mb.Add(r[1])
		if positive = positive && r[0] > 0 && r[1] > 0; positive {
			logs.Add(math.Log(r[1] / r[0]))
		}
	}
	t := student(d.DF)
	q := t.Quantile(1 - (1-Level)/2)
	// The replicates of n blocks vary less than blocks do, by (n-1)/n.
	wide := math.Sqrt(float64(filled) / float64(filled-1))
	d.SE = m.SD() * wide
	d.Lo, d.Hi = d.Diff-q*d.SE, d.Diff+q*d.SE
	ha, hb := q*ma.SD()*wide, q*mb.SD()*wide
	d.ALo, d.AHi, d.BLo, d.BHi = d.A-ha, d.A+ha, d.B-hb, d.B+hb
	if p.Tied(level) {
		slices.Sort(diffs)
		tail := distuv.UnitNormal.CDF(-q * wide)
		d.Lo, d.Hi = min(d.Lo, Quantile(diffs, tail)), max(d.Hi, Quantile(diffs, 1-tail))
	}
	d.RelLo, d.RelHi = math.NaN(), math.NaN()
	if positive {
		l, h := math.Log(d.B/d.A), q*logs.SD()*wide
		d.RelLo, d.RelHi = math.Expm1(l-h), math.Expm1(l+h)
	}
	d.P, d.Less = d.judge(t)
	return d
}

// judge gives the p-value and the probability of a negative difference.
func (d *Difference) judge(t distuv.StudentsT) (p, less float64) {
	switch {
	case d.SE > 0:
		x := d.Diff / d.SE
		return 2 * t.CDF(-math.Abs(x)), t.CDF(-x)
	case d.Diff < 0:
		return 0, 1
	case d.Diff > 0:
		return 0, 0
	}
	return 1, 0.5
}

// Tied says whether a quantile lies on a value that makes up 1 % or more of a
// side, so that it jumps rather than moves.
func (p *Paired) Tied(level float64) bool {
	return level != Mean && p.a.sorted != nil && (Tied(p.a.sorted, level) || Tied(p.b.sorted, level))
}

// Tied says whether a quantile lies on a value that makes up 1 % or more of all.
func Tied(sorted []float64, level float64) bool {
	x := Quantile(sorted, level)
	lo, _ := slices.BinarySearch(sorted, x)
	hi, _ := slices.BinarySearch(sorted, math.Nextafter(x, math.Inf(1)))
	return float64(hi-lo) >= 0.01*float64(len(sorted))
}

// Repeated compares one figure of a deployment by the difference in each pair
// of repeats: Student's interval of their mean, which holds what differs from
// run to run. It takes three pairs. Of a quantile that is tied in some run
// there is no interval: its average over runs is not that of the deployment.
func Repeated(a, b []float64, tied bool) Difference {
	n := min(len(a), len(b))
	d := Difference{DF: n - 1}
	var m, ma, mb, logs Moments
	positive := true
	for i := range n {
		m.Add(b[i] - a[i])
		ma.Add(a[i])
		mb.Add(b[i])
		if positive = positive && a[i] > 0 && b[i] > 0; positive {
			logs.Add(math.Log(b[i] / a[i]))
		}
	}
	if n == 0 {
		return d.none("no pair of runs")
	}
	d.A, d.B, d.Diff = ma.Mean(), mb.Mean(), m.Mean()
	d.Rel = d.B/d.A - 1
	if n < 3 {
		return d.none("%d repeats of each: what differs from run to run takes three", n)
	}
	if tied {
		return d.none("many requests took exactly as long, so that this figure jumps from one value to another between runs")
	}
	t := student(d.DF)
	q := t.Quantile(1 - (1-Level)/2)
	root := math.Sqrt(float64(n))
	d.SE = m.SD() / root
	ha, hb := q*ma.SD()/root, q*mb.SD()/root
	d.ALo, d.AHi, d.BLo, d.BHi = d.A-ha, d.A+ha, d.B-hb, d.B+hb
	d.Lo, d.Hi = d.Diff-q*d.SE, d.Diff+q*d.SE
	d.RelLo, d.RelHi = math.NaN(), math.NaN()
	if positive {
		h := q * logs.SD() / root
		d.Rel = math.Expm1(logs.Mean())
		d.RelLo, d.RelHi = math.Expm1(logs.Mean()-h), math.Expm1(logs.Mean()+h)
	}
	d.P, d.Less = d.judge(t)
	return d
}

// MeanOf is the mean of a figure over repeats with Student's interval at [Level]:
// what other runs of the same deployment would give. NaN below three values.
func MeanOf(v []float64) (mean, sd, lo, hi float64) {
	var m Moments
	for _, x := range v {
		m.Add(x)
	}
	mean, sd = m.Mean(), m.SD()
	if len(v) < 3 {
		return mean, sd, math.NaN(), math.NaN()
	}
	h := student(len(v)-1).Quantile(1-(1-Level)/2) * sd / math.Sqrt(float64(len(v)))
	return mean, sd, mean - h, mean + h
}

// Holm corrects p-values for looking at all of them (Holm, "A simple
// sequentially rejective multiple test procedure", 1979). NaN stays NaN and
// counts for nothing.
func Holm(p []float64) []float64 {
	var order []int
	for i, v := range p {
		if !math.IsNaN(v) {
			order = append(order, i)
		}
	}
	slices.SortFunc(order, func(i, j int) int {
		if p[i] < p[j] {
			return -1
		}
		return 1
	})
	out := slices.Clone(p)
	worst := 0.0
	for k, i := range order {
		worst = max(worst, min(1, float64(len(order)-k)*p[i]))
		out[i] = worst
	}
	return out
}

// Average is the mean of independent differences, each with its own standard
// error: what several runs differ by in themselves, and not from each other.
// Without an interval of each there is none.
func Average(ds ...Difference) Difference {
	var out Difference
	n := float64(len(ds))
	variance, va, vb, vr := 0.0, 0.0, 0.0, 0.0
	half := func(lo, hi float64, df int) float64 { return (hi - lo) / 2 / student(df).Quantile(1-(1-Level)/2) }
	rel := 0.0
	for _, d := range ds {
		out.A, out.B, out.Diff = out.A+d.A/n, out.B+d.B/n, out.Diff+d.Diff/n
		if !d.OK() {
			continue
		}
		out.DF += d.DF
		variance += d.SE * d.SE
		a, b := half(d.ALo, d.AHi, d.DF), half(d.BLo, d.BHi, d.DF)
		va, vb = va+a*a, vb+b*b
		r := half(math.Log1p(d.RelLo), math.Log1p(d.RelHi), d.DF)
		vr += r * r
		rel += math.Log1p(d.Rel) / n
	}
	out.Rel = out.B/out.A - 1
	for _, d := range ds {
		if !d.OK() {
			return out.none("%s", d.Why)
		}
	}
	t := student(out.DF)
	q := t.Quantile(1 - (1-Level)/2)
	out.SE = math.Sqrt(variance) / n
	out.Lo, out.Hi = out.Diff-q*out.SE, out.Diff+q*out.SE
	ha, hb, hr := q*math.Sqrt(va)/n, q*math.Sqrt(vb)/n, q*math.Sqrt(vr)/n
	out.ALo, out.AHi, out.BLo, out.BHi = out.A-ha, out.A+ha, out.B-hb, out.B+hb
	out.RelLo, out.RelHi = math.Expm1(rel-hr), math.Expm1(rel+hr)
	out.P, out.Less = out.judge(t)
	return out
}
