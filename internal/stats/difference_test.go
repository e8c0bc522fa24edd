package stats

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

func pieces(n int) []int8 {
	p := make([]int8, n)
	for i := range p {
		p[i] = Piece(i, n)
	}
	return p
}

func TestPieces(t *testing.T) {
	p := pieces(1001)
	if p[0] != 0 || p[1000] != Pieces-1 || !slices.IsSorted(p) {
		t.Errorf("pieces from %d to %d", p[0], p[1000])
	}
}

// The figures of all requests are exact; only replicates come from sketches,
// and these follow the exact ones.
func TestPairedEstimates(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	a, b := make([]float64, 5000), make([]float64, 5000)
	for i := range a {
		a[i] = math.Exp(rng.NormFloat64())
		b[i] = 2 * a[i]
	}
	p := NewPaired(a, b, pieces(len(a)))
	sorted := slices.Sorted(slices.Values(a))
	for _, level := range []float64{0.01, 0.5, 0.9, 0.99, 0.999} {
		x, y := p.Estimate(level)
		if want := Quantile(sorted, level); x != want || y != 2*want {
			t.Errorf("p%g = %v, %v; want %v, %v", 100*level, x, y, want, 2*want)
		}
		// The sketch itself is as good as its edges.
		if s := p.quantile(p.a.total, p.a.n, level); math.Abs(s/x-1) > 0.03 {
			t.Errorf("p%g is %v by the sketch, %v by the values", 100*level, s, x)
		}
		var m Moments
		for _, r := range p.replicates(300, 1, 2, level)[0] {
			m.Add(r[0])
			if math.Abs(r[1]/r[0]-2) > 0.15 {
				t.Fatalf("p%g: a replicate of %v and %v; pairs were torn", 100*level, r[0], r[1])
			}
		}
		if math.Abs(m.Mean()/x-1) > 0.05 {
			t.Errorf("p%g: replicates centre on %v, not %v", 100*level, m.Mean(), x)
		}
	}
	x, y := p.Estimate(Mean)
	var m Moments
	for _, v := range a {
		m.Add(v)
	}
	if math.Abs(x/m.Mean()-1) > 1e-12 || math.Abs(y/x-2) > 1e-12 {
		t.Errorf("means %v and %v, want %v and twice that", x, y, m.Mean())
	}
}

// Of independent pairs, the interval of a mean is the textbook's.
func TestMeanIntervalIsStudents(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	n := 8000
	a, b := make([]float64, n), make([]float64, n)
	var m Moments
	for i := range a {
		a[i] = 10 + rng.NormFloat64()
		b[i] = a[i] + 0.1 + 0.5*rng.NormFloat64()
		m.Add(b[i] - a[i])
	}
	d := NewPaired(a, b, pieces(n)).Differences(1, Mean)[0]
	if !d.OK() {
		t.Fatal(d.Why)
	}
	want := m.SD() / math.Sqrt(float64(n))
	if math.Abs(d.SE/want-1) > 0.35 || math.Abs(d.Diff-m.Mean()) > 1e-9 {
		t.Errorf("standard error %v of %v, want about %v of %v", d.SE, d.Diff, want, m.Mean())
	}
	if d.Lo >= d.Diff || d.Hi <= d.Diff || d.P > 1e-6 || d.Less > 1e-6 || d.Detectable() < 2*d.SE {
		t.Errorf("%+v, detectable %v", d, d.Detectable())
	}
}

func TestIntervalsAreWithheld(t *testing.T) {
	draw := func(n int, f func(i int) float64) []float64 {
		v := make([]float64, n)
		for i := range v {
			v[i] = f(i)
		}
		return v
	}
	rng := rand.New(rand.NewPCG(5, 6))
	noise := func(int) float64 { return 1 + rng.Float64() }
	few := NewPaired(draw(50, noise), draw(50, noise), pieces(50)).Differences(1, 0.5)[0]
	if few.OK() || math.IsNaN(few.Diff) || !math.IsNaN(few.Lo) || !math.IsNaN(few.Detectable()) {
		t.Errorf("50 pairs: %+v", few)
	}
	some := NewPaired(draw(500, noise), draw(500, noise), pieces(500)).Differences(1, 0.5, 0.99)
	if !some[0].OK() || some[1].OK() {
		t.Errorf("500 pairs: p50 %q, p99 %q", some[0].Why, some[1].Why)
	}
	one := NewPaired(draw(500, noise), draw(500, noise), make([]int8, 500)).Differences(1, 0.5)[0]
	if one.OK() {
		t.Error("one session has an interval")
	}
	// B is slow for a third of the run: how often such a spell comes is unknown.
	spell := NewPaired(draw(2000, noise), draw(2000, func(i int) float64 {
		if i < 700 {
			return 5 + rng.Float64()
		}
		return 1 + rng.Float64()
	}), pieces(2000)).Differences(1, Mean)[0]
	if spell.OK() {
		t.Errorf("one spell of a third of the run has an interval: %+v", spell)
	}
	none := NewPaired(nil, nil, nil).Differences(1, 0.5)[0]
	if none.OK() {
		t.Error("nothing has an interval")
	}
	same := make([]float64, 1000)
	d := NewPaired(same, same, pieces(1000)).Differences(1, 0.5, Mean)
	if !d[0].OK() || d[0].Lo != 0 || d[0].Hi != 0 || d[0].P != 1 || d[1].P != 1 {
		t.Errorf("all equal: %+v", d)
	}
}

// Sketches by fixed edges agree with values, to the width of a bin.
func TestSketched(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 9))
	edges := make([]float64, 2000)
	for i := range edges {
		edges[i] = math.Pow(1.01, float64(i-1000))
	}
	var ha, hb [Pieces][]float64
	var sa, sb [Pieces]float64
	for i := range ha {
		ha[i], hb[i] = make([]float64, len(edges)), make([]float64, len(edges))
	}
	n := 20000
	a, b, p := make([]float64, n), make([]float64, n), pieces(n)
	for i := range a {
		a[i], b[i] = math.Exp(rng.NormFloat64()), 1.1*math.Exp(rng.NormFloat64())
		ka, _ := slices.BinarySearch(edges, a[i])
		kb, _ := slices.BinarySearch(edges, b[i])
		ha[p[i]][ka]++
		hb[p[i]][kb]++
		sa[p[i]] += a[i]
		sb[p[i]] += b[i]
	}
	exact := NewPaired(a, b, p).Differences(1, 0.5, 0.99, Mean)
	rough := NewSketched(edges, &ha, &hb, &sa, &sb).Differences(1, 0.5, 0.99, Mean)
	for i := range exact {
		e, r := exact[i], rough[i]
		if math.Abs(e.A/r.A-1) > 0.01 || math.Abs(e.B/r.B-1) > 0.01 || math.Abs(e.SE/r.SE-1) > 0.2 {
			t.Errorf("exact %+v\nsketched %+v", e, r)
		}
	}
}

func TestRepeated(t *testing.T) {
	// By R: t.test(c(11, 12.5, 13), c(10, 11, 12.2), paired = TRUE)
	d := Repeated([]float64{10, 11, 12.2}, []float64{11, 12.5, 13}, false)
	if !d.OK() || math.Abs(d.Diff-1.1) > 1e-12 || math.Abs(d.Lo-0.2043) > 1e-3 || math.Abs(d.Hi-1.9957) > 1e-3 || math.Abs(d.P-0.0341) > 1e-3 {
		t.Errorf("%+v", d)
	}
	if d := Repeated([]float64{1, 2}, []float64{2, 3}, false); d.OK() || d.Diff != 1 {
		t.Errorf("two repeats: %+v", d)
	}
	if d := Repeated([]float64{1, 2, 3}, []float64{2, 3, 4}, true); d.OK() {
		t.Errorf("ties: %+v", d)
	}
	if d := Repeated(nil, nil, false); d.OK() {
		t.Errorf("no runs: %+v", d)
	}
}

func TestHolm(t *testing.T) {
	// By R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")
	got := Holm([]float64{0.01, 0.04, math.NaN(), 0.03, 0.005})
	want := []float64{0.03, 0.06, math.NaN(), 0.06, 0.02}
	for i := range want {
		if math.Abs(got[i]-want[i]) > 1e-12 || math.IsNaN(got[i]) != math.IsNaN(want[i]) {
			t.Errorf("%v, want %v", got, want)
			break
		}
	}
}
