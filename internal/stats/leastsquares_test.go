package stats

import (
	"math"
	"math/rand/v2"
	"testing"
)

func near(t *testing.T, what string, got, want, within float64) {
	t.Helper()
	if !(math.Abs(got-want) <= within) {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}

// The Longley data (JASA 62, 1967) are what least squares are checked with:
// columns that all but add up to each other. Coefficients as certified by NIST
// (Statistical Reference Datasets).
func TestLeastSquaresLongley(t *testing.T) {
	y := []float64{60323, 61122, 60171, 61187, 63221, 63639, 64989, 63761, 66019, 67857, 68169, 66513, 68655, 69564, 69331, 70551}
	rows := [][]float64{
		{83.0, 234289, 2356, 1590, 107608, 1947}, {88.5, 259426, 2325, 1456, 108632, 1948}, {88.2, 258054, 3682, 1616, 109773, 1949},
		{89.5, 284599, 3351, 1650, 110929, 1950}, {96.2, 328975, 2099, 3099, 112075, 1951}, {98.1, 346999, 1932, 3594, 113270, 1952},
		{99.0, 365385, 1870, 3547, 115094, 1953}, {100.0, 363112, 3578, 3350, 116219, 1954}, {101.2, 397469, 2904, 3048, 117388, 1955},
		{104.6, 419180, 2822, 2857, 118734, 1956}, {108.4, 442769, 2936, 2798, 120445, 1957}, {110.8, 444546, 4681, 2637, 121950, 1958},
		{112.6, 482704, 3813, 2552, 123366, 1959}, {114.2, 502601, 3931, 2514, 125368, 1960}, {115.7, 518173, 4806, 2572, 127852, 1961},
		{116.9, 554894, 4007, 2827, 130081, 1962},
	}
	columns := [][]float64{make([]float64, len(y))}
	for i := range y {
		columns[0][i] = 1
	}
	for c := range 6 {
		col := make([]float64, len(y))
		for i := range y {
			col[i] = rows[i][c]
		}
		columns = append(columns, col)
	}
	f := LeastSquares(columns, y)
	near(t, "SSE", f.SSE/836424.055505915, 1, 1e-8)
	if f.Rank != 7 || f.DF() != 9 {
		t.Errorf("rank %d, %d degrees of freedom", f.Rank, f.DF())
	}
	sd := math.Sqrt(f.SSE / 9)
	for c, want := range [][2]float64{
		{-3482258.63459582, 890420.383607373}, {15.0618722713733, 84.9149257747669}, {-0.0358191792925910, 0.334910077722432e-01},
		{-2.02022980381683, 0.488399681651699}, {-1.03322686717359, 0.214274163161675}, {-0.0511041056535807, 0.226073200069370}, {1829.15146461355, 455.478499142212},
	} {
		est, scale, ok := f.Contrast(map[int]float64{c: 1})
		if !ok {
			t.Fatalf("column %d is aliased", c)
		}
		near(t, "coefficient", est/want[0], 1, 1e-6)
		near(t, "standard error", scale*sd/want[1], 1, 1e-6)
	}
}

func TestLeastSquaresAliased(t *testing.T) {
	one, a := []float64{1, 1, 1, 1}, []float64{0, 0, 1, 1}
	b := []float64{1, 1, 0, 0} // 1 - a
	f := LeastSquares([][]float64{one, a, b}, []float64{1, 3, 5, 7})
	if f.Rank != 2 || !f.Aliased(2) || f.Aliased(1) {
		t.Fatalf("rank %d, aliased %v %v", f.Rank, f.Aliased(1), f.Aliased(2))
	}
	est, scale, ok := f.Contrast(map[int]float64{1: 1})
	if !ok || math.Abs(est-4) > 1e-12 || math.Abs(scale-1) > 1e-12 || math.Abs(f.SSE-4) > 1e-12 {
		t.Errorf("difference %v, scale %v, SSE %v", est, scale, f.SSE)
	}
	if w, ok := f.Weights(map[int]float64{1: 1}); !ok || math.Abs(w[0]+0.5) > 1e-12 || math.Abs(w[3]-0.5) > 1e-12 {
		t.Errorf("a difference of means has the weights %v", w)
	}
	if _, _, ok := f.Contrast(map[int]float64{2: 1}); ok {
		t.Error("an aliased column was estimated")
	}
}

// The interval of one run holds the truth as often as it says, and does where
// requests resemble their neighbours; one of independent runs too.
func TestAloneCovers(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 9))
	const trials = 150
	held, have, runs := 0, 0, 0
	for k := range trials {
		v := make([]float64, 2000)
		e := rng.NormFloat64()
		for i := range v {
			e = 0.8*e + 0.6*rng.NormFloat64()
			v[i] = math.Exp(e)
		}
		x := Alone(v, uint64(k), 0.5)[0]
		if x.OK() {
			have++
			if x.Lo <= 1 && x.Hi >= 1 {
				held++
			}
		}
		if x := StudentOf(rng.NormFloat64(), rng.NormFloat64(), rng.NormFloat64()); x.Lo <= 0 && x.Hi >= 0 {
			runs++
		}
	}
	if share := float64(held) / float64(have); have < trials*9/10 || share < 0.9 || share > 0.995 {
		t.Errorf("%d of %d intervals hold the median, %d have none", held, have, trials-have)
	}
	if share := float64(runs) / trials; share < 0.9 || share > 0.995 {
		t.Errorf("%v of Student's intervals hold the mean", share)
	}
	if x := Alone([]float64{1, 2, 3}, 1, 0.5)[0]; x.OK() || x.V != 2 || !math.IsNaN(x.Lo) {
		t.Errorf("of three values: %+v", x)
	}
}
