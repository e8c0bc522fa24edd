package score

import (
	"fmt"
	"math"
	"slices"
	"strconv"

	"reprise/internal/stats"
)

// Schema names the layout of a [Report] in JSON; a change that a reader could
// stumble over gets a new number.
const Schema = "reprise.score/1"

// Block is the width, in seconds, of the blocks that [Sample.Interleave] deals
// for a floor.
const Block = 60

// Loads are the shares of its capacity at which a queue is compared.
var Loads = []float64{0.5, 0.7, 0.8}

// QueueCache is the size in blocks of the prefix cache before the cached queue.
const QueueCache = 10_000

// Scales are the widths, in seconds, at which burstiness is compared.
var Scales = []float64{1, 10, 100}

// A Number is a figure that may not exist: NaN is null in JSON.
type Number float64

// MarshalJSON writes NaN and infinities as null.
func (n Number) MarshalJSON() ([]byte, error) {
	v := float64(n)
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return []byte("null"), nil
	}
	return strconv.AppendFloat(nil, v, 'g', 6, 64), nil
}

// UnmarshalJSON reads null as NaN.
func (n *Number) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		*n = Number(math.NaN())
		return nil
	}
	v, err := strconv.ParseFloat(string(b), 64)
	*n = Number(v)
	return err
}

// OK says whether there is a figure.
func (n Number) OK() bool { return !math.IsNaN(float64(n)) }

// A Verdict is what a figure means beside its limit.
type Verdict string

// Verdicts.
const (
	Pass     Verdict = "pass"
	Fail     Verdict = "fail"
	Info     Verdict = "info"     // no limit: shown for its own sake
	NotKnown Verdict = "no data"  // a side lacks what the metric needs
	NoFloor  Verdict = "no floor" // the limit depends on a floor that the reference is too short for
)

// A Metric is one line of a [Report].
type Metric struct {
	Key   string `json:"key"`   // stable name, such as "gap_ks"
	Name  string `json:"name"`  // for people
	Group string `json:"group"` // arrivals, lengths, prefix, sessions, queue

	Value Number `json:"value"` // the distance, or the ratio other / reference
	// Reference and Other are the figures behind a ratio or a difference.
	Reference Number `json:"reference"`
	Other     Number `json:"other"`
	// Low and High are the limits that Value has to keep; Low is null for a
	// distance.
	Low  Number `json:"limit_low"`
	High Number `json:"limit_high"`
	// Floor is the same figure between two parts of the reference, which
	// FloorOf names: "interleaved", "halves" or "the wider of both".
	Floor   Number `json:"floor"`
	FloorOf string `json:"floor_of,omitempty"`
	// Min and Max span the seeds where the other side was generated several
	// times; Value is then the median.
	Min     Number  `json:"min"`
	Max     Number  `json:"max"`
	Verdict Verdict `json:"verdict"`
	Note    string  `json:"note,omitempty"`
}

// A measured value before it is judged.
type measured struct {
	value, reference, other float64
	note                    string
}

type floorKind int

const (
	noFloor floorKind = iota
	interleaved
	halves
	wider // the one of the two in which a ratio is farther from 1
)

func (k floorKind) String() string {
	return [...]string{"", "interleaved", "halves", "the wider of both"}[k]
}

// A rule says what a metric is called, which floor it has and what it must
// keep, given the floor. low is NaN for a distance; high is NaN for a figure
// without a limit.
type rule struct {
	key, name, group string
	floor            floorKind
	limit            func(floor float64) (low, high float64)
}

func below(f func(floor float64) float64) func(float64) (float64, float64) {
	return func(floor float64) (float64, float64) { return math.NaN(), f(floor) }
}

// atLeast is a limit that gives way where the reference itself is noisier.
func atLeast(limit, times float64) func(float64) (float64, float64) {
	return below(func(floor float64) float64 {
		if math.IsNaN(floor) {
			return limit
		}
		return max(limit, times*floor)
	})
}

// ratio is a limit of a ratio; where two halves of the reference differ by
// more, by that much.
func ratio(low, high float64) func(float64) (float64, float64) {
	return func(floor float64) (float64, float64) {
		if floor > 0 {
			f := min(floor, 1/floor)
			return min(low, f), max(high, 1/f)
		}
		return low, high
	}
}

func unlimited(float64) (float64, float64) { return math.NaN(), math.NaN() }

// The limits are those that a generator has to meet in this project's own
// acceptance test, where the floor of an unknown reference permits.
var rules = func() []rule {
	r := []rule{
		{"rate", "requests a second", "arrivals", noFloor, unlimited},
		{"gap_ks", "gap / mean, KS", "arrivals", halves, atLeast(0.02, 1.1)},
		{"gap_cv", "gap CV, ratio", "arrivals", halves, unlimited},
	}
	for _, w := range Scales {
		r = append(r, rule{fmt.Sprintf("idc_%gs", w), fmt.Sprintf("burstiness (IDC) %g s, |ln|", w), "arrivals", halves, atLeast(0.40, 1.25)})
	}
	for _, w := range Scales[1:] {
		r = append(r, rule{fmt.Sprintf("token_idc_%gs", w), fmt.Sprintf("token burstiness %g s, |ln|", w), "arrivals", halves, atLeast(0.40, 1.25)})
	}
	r = append(r, rule{"acf_10s", "count ACF 1 s lag 10, difference", "arrivals", halves, unlimited})
	for _, side := range []string{"prompt", "output"} {
		r = append(r,
			rule{side + "_mean", side + " tokens, mean", "lengths", interleaved, unlimited},
			rule{side + "_ks", side + " tokens, KS", "lengths", interleaved, below(func(f float64) float64 { return f + 0.010 })},
			rule{side + "_w1", side + " tokens, W1 / mean", "lengths", interleaved, below(func(f float64) float64 { return 1.5*f + 0.005 })},
			rule{side + "_atoms", side + " tokens, worst of 4 atoms and cap", "lengths", interleaved, atLeast(0.20, 1)})
	}
	r = append(r,
		rule{"eta2", "eta² of log output in 20 prompt bins, difference", "lengths", interleaved, atLeast(0.05, 1)},
		rule{"spearman", "Spearman prompt, output, difference", "lengths", interleaved, atLeast(0.03, 1)},
		rule{"cached_ks", "cached tokens, KS", "lengths", interleaved, below(func(f float64) float64 { return f + 0.010 })},
		rule{"reasoning_ks", "reasoning tokens, KS", "lengths", interleaved, below(func(f float64) float64 { return f + 0.010 })},
		rule{"hit_mean", "prefix hit curve, mean error", "prefix", halves, atLeast(0.010, 1.25)},
		rule{"hit_max", "prefix hit curve, greatest error", "prefix", halves, atLeast(0.020, 1.25)},
		rule{"reuse_ks", "reuse gap (log s), KS", "prefix", halves, atLeast(0.03, 1)},
		rule{"tree", "rows whose blocks are no prefix", "prefix", noFloor, below(func(float64) float64 { return 0 })},
		rule{"turns_ks", "turns a session, KS", "sessions", halves, atLeast(0.15, 1)},
		rule{"think_ks", "think time, KS", "sessions", interleaved, atLeast(0.05, 1)},
		rule{"growth_ks", "growth of the prompt from turn to turn, KS", "sessions", halves, unlimited},
		rule{"session_hit", "hit inside a session, difference", "sessions", halves, atLeast(0.01, 1)})
	for _, q := range []struct{ key, name string }{{"queue", "queue"}, {"cached_queue", "queue behind a 10k-block cache"}} {
		for _, rho := range Loads {
			low, high := 0.8, 1.25
			if rho == 0.5 {
				low, high = 0.7, 1.4
			}
			r = append(r,
				rule{fmt.Sprintf("%s_ks_%g", q.key, rho), fmt.Sprintf("TTFT in a %s, load %g, KS", q.name, rho), "queue", halves, atLeast(0.08, 1.1)},
				rule{fmt.Sprintf("%s_p99_%g", q.key, rho), fmt.Sprintf("TTFT in a %s, load %g, p99 ratio", q.name, rho), "queue", wider, ratio(low, high)})
		}
	}
	return r
}()

// measure takes every metric that both Samples allow. ownLevel compares queues
// at each Sample's own level, as [QueueFloor] does.
func measure(ref, other *Sample, ownLevel bool) map[string]measured {
	m := map[string]measured{}
	m["rate"] = ratioOf(ref.Rate(), other.Rate())
	m["gap_ks"] = measured{value: GapKS(ref, other)}
	m["gap_cv"] = ratioOf(GapCV(ref), GapCV(other))
	for _, w := range Scales {
		m[fmt.Sprintf("idc_%gs", w)] = logRatioOf(IDC(ref, w), IDC(other, w))
	}
	for _, w := range Scales[1:] {
		m[fmt.Sprintf("token_idc_%gs", w)] = logRatioOf(TokenIDC(ref, w), TokenIDC(other, w))
	}
	m["acf_10s"] = differenceOf(CountACF(ref, 1, 10), CountACF(other, 1, 10))
	for _, side := range []struct {
		name string
		a, b []int32
	}{{"prompt", ref.In, other.In}, {"output", ref.Out, other.Out}} {
		a, b := sorted(Known(side.a)), sorted(Known(side.b))
		if len(a) == 0 || len(b) == 0 {
			continue
		}
		m[side.name+"_mean"] = ratioOf(mean(a), mean(b))
		m[side.name+"_ks"] = measured{value: KS(a, b)}
		m[side.name+"_w1"] = measured{value: RelativeW1(a, b)}
		m[side.name+"_atoms"] = atomError(side.a, side.b)
	}
	m["eta2"] = differenceOf(Eta2(ref, 20), Eta2(other, 20))
	m["spearman"] = differenceOf(Spearman(ref), Spearman(other))
	m["cached_ks"] = measured{value: KS(Known(ref.Cached), Known(other.Cached))}
	m["reasoning_ks"] = measured{value: KS(Known(ref.Reasoning), Known(other.Reasoning))}
	if ref.HasBlocks() && other.HasBlocks() {
		a, b := HitCurve(ref), HitCurve(other)
		meanError, maxError := CurveError(a, b)
		last := len(a) - 1
		m["hit_mean"] = measured{value: meanError, reference: mean(a), other: mean(b)}
		m["hit_max"] = measured{value: maxError, reference: a[last], other: b[last], note: "the columns beside it hold the hit of a cache without limit"}
		m["reuse_ks"] = measured{value: KS(logs(ReuseGaps(ref)), logs(ReuseGaps(other)))}
		n, first := CheckTree(other)
		t := measured{value: float64(n)}
		if n > 0 {
			t.note = first[0].String()
		}
		m["tree"] = t
	}
	if ref.HasSessions() && other.HasSessions() {
		m["turns_ks"] = measured{value: KS(Turns(ref), Turns(other))}
		m["think_ks"] = measured{value: KS(ThinkTimes(ref), ThinkTimes(other))}
		m["growth_ks"] = measured{value: KS(Growth(ref), Growth(other))}
		m["session_hit"] = differenceOf(SessionHit(ref), SessionHit(other))
	}
	compare := CompareQueues
	if ownLevel {
		compare = QueueFloor
	}
	queue := func(key string, a, b []float64) {
		for _, rho := range Loads {
			r := compare(ref, other, a, b, rho)
			m[fmt.Sprintf("%s_ks_%g", key, rho)] = measured{value: r.KS}
			m[fmt.Sprintf("%s_p99_%g", key, rho)] = measured{value: r.P99}
		}
	}
	queue("queue", PromptWork(ref), PromptWork(other))
	if ref.HasBlocks() && other.HasBlocks() {
		queue("cached_queue", CacheWork(ref, QueueCache), CacheWork(other, QueueCache))
	}
	return m
}

func ratioOf(a, b float64) measured { return measured{value: b / a, reference: a, other: b} }
func logRatioOf(a, b float64) measured {
	return measured{value: LogRatio(a, b), reference: a, other: b}
}
func differenceOf(a, b float64) measured {
	return measured{value: math.Abs(a - b), reference: a, other: b}
}

// atomError is the greatest relative error of the mass of the reference's four
// largest atoms and of its cap. Atoms that fewer than 200 rows of the reference
// have are left out: chance alone moves their mass by a tenth and more.
func atomError(ref, other []int32) measured {
	atoms := Atoms(ref, 4)
	if c, ok := Cap(ref); ok && !slices.ContainsFunc(atoms, func(a Atom) bool { return a.Value == c.Value }) {
		atoms = append(atoms, c)
	}
	known := float64(len(Known(ref)))
	worst := measured{value: math.NaN()}
	for _, a := range atoms {
		if a.Mass*known < 200 {
			continue
		}
		b := Mass(other, a.Value)
		if e := math.Abs(b/a.Mass - 1); !(e <= worst.value) {
			worst = measured{value: e, reference: a.Mass, other: b, note: fmt.Sprintf("length %d", a.Value)}
		}
	}
	return worst
}

// A Floor holds what two parts of one reference differ by.
type Floor struct {
	interleaved, halves map[string]measured
}

// minFloorRows is the least number of rows in a part for a floor to mean
// anything.
const minFloorRows = 100

// NewFloor measures the floors of a reference: its interleaved blocks and its
// halves against each other.
func NewFloor(reference *Sample) *Floor {
	f := &Floor{}
	even, odd := reference.Interleave(Block)
	if even.N() >= minFloorRows && odd.N() >= minFloorRows {
		f.interleaved = measure(odd, even, true)
	}
	first, second := reference.Halves()
	if first.N() >= minFloorRows && second.N() >= minFloorRows {
		f.halves = measure(second, first, true)
	}
	return f
}

func (f *Floor) of(r rule) float64 {
	value := func(parts map[string]measured) float64 {
		if v, ok := parts[r.key]; ok {
			return v.value
		}
		return math.NaN()
	}
	switch r.floor {
	case interleaved:
		return value(f.interleaved)
	case halves:
		return value(f.halves)
	case wider:
		// A tail depends on its one worst minute: one split says too little.
		a, b := value(f.interleaved), value(f.halves)
		if !(LogRatio(a, 1) >= LogRatio(b, 1)) {
			return b
		}
		return a
	}
	return math.NaN()
}

// Compare measures how near other comes to reference and judges it. Rows at
// ticks of a coarse clock should be spread before ([Sample.Dequantise]).
func Compare(reference, other *Sample) *Report {
	return CompareWith(NewFloor(reference), reference, other)
}

// CompareWith is [Compare] with the reference's floor, which need not be
// measured anew for every other Sample.
func CompareWith(floor *Floor, reference, other *Sample) *Report {
	return newReport(reference, other, floor, measure(reference, other, false))
}

func newReport(reference, other *Sample, floor *Floor, m map[string]measured) *Report {
	r := &Report{Schema: Schema, Reference: side(reference), Other: side(other), Seeds: 1}
	for _, rule := range rules {
		line := Metric{Key: rule.key, Name: rule.name, Group: rule.group, FloorOf: rule.floor.String(),
			Floor: Number(floor.of(rule)), Value: Number(math.NaN()), Reference: Number(math.NaN()), Other: Number(math.NaN()),
			Min: Number(math.NaN()), Max: Number(math.NaN())}
		if v, ok := m[rule.key]; ok {
			line.Value, line.Note = Number(v.value), v.note
			if v.reference != 0 || v.other != 0 {
				line.Reference, line.Other = Number(v.reference), Number(v.other)
			}
		}
		low, high := rule.limit(float64(line.Floor))
		line.Low, line.High = Number(low), Number(high)
		line.judge(rule)
		r.Metrics = append(r.Metrics, line)
	}
	return r
}

func (m *Metric) judge(r rule) {
	v := float64(m.Value)
	low, high := float64(m.Low), float64(m.High)
	_, ever := r.limit(0)
	switch {
	case math.IsNaN(v):
		m.Verdict = NotKnown
	case math.IsNaN(ever):
		m.Verdict = Info
	case math.IsNaN(high):
		m.Verdict = NoFloor
	case v <= high && (math.IsNaN(low) || v >= low):
		m.Verdict = Pass
	default:
		m.Verdict = Fail
	}
}

// Median joins reports of one reference and several seeds of one model: each
// value becomes the median, with the span beside it, and is judged anew.
func Median(reports []*Report) *Report {
	if len(reports) == 0 {
		return nil
	}
	r := *reports[0]
	r.Seeds = len(reports)
	r.Metrics = slices.Clone(r.Metrics)
	rows, horizon := 0, 0.0
	for _, one := range reports {
		rows += one.Other.Rows
		horizon += float64(one.Other.Seconds)
	}
	r.Other.Rows = (rows + len(reports)/2) / len(reports)
	r.Other.Seconds = Number(horizon / float64(len(reports)))
	r.Other.Rate = Number(float64(r.Other.Rows) / float64(r.Other.Seconds))
	for i := range r.Metrics {
		m := &r.Metrics[i]
		middle := func(get func(*Metric) Number) (median, lowest, highest Number) {
			var x []float64
			for _, one := range reports {
				if v := get(&one.Metrics[i]); v.OK() {
					x = append(x, float64(v))
				}
			}
			slices.Sort(x)
			if len(x) == 0 {
				nan := Number(math.NaN())
				return nan, nan, nan
			}
			return Number(stats.Quantile(x, 0.5)), Number(x[0]), Number(x[len(x)-1])
		}
		m.Value, m.Min, m.Max = middle(func(m *Metric) Number { return m.Value })
		m.Other, _, _ = middle(func(m *Metric) Number { return m.Other })
		m.judge(rules[i])
	}
	return &r
}
