package score

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"reprise/traceformat"
)

func TestKS(t *testing.T) {
	for _, tt := range []struct {
		name string
		a, b []float64
		want float64
	}{
		{"the same", []float64{1, 2, 3}, []float64{3, 1, 2}, 0},
		{"apart", []float64{1, 2}, []float64{3, 4}, 1},
		{"an atom that both have counts once", []float64{5, 5, 5, 5}, []float64{5, 5}, 0},
		{"half of an atom moved", []float64{5, 5, 5, 5}, []float64{5, 5, 6, 6}, 0.5},
		{"one of four", []float64{1, 2, 3, 4}, []float64{1, 2, 3, 9}, 0.25},
		{"empty", nil, []float64{1}, math.NaN()},
	} {
		if got := KS(tt.a, tt.b); !same(got, tt.want) {
			t.Errorf("%s: KS = %v, want %v", tt.name, got, tt.want)
		}
	}
}

func same(a, b float64) bool {
	return math.IsNaN(a) && math.IsNaN(b) || math.Abs(a-b) < 1e-9
}

// KS and W1 by their definitions, over every value.
func TestDistancesAgainstDefinition(t *testing.T) {
	values := rapid.SliceOfN(rapid.IntRange(0, 12), 1, 30)
	rapid.Check(t, func(t *rapid.T) {
		var a, b []float64
		for _, v := range values.Draw(t, "a") {
			a = append(a, float64(v))
		}
		for _, v := range values.Draw(t, "b") {
			b = append(b, float64(v))
		}
		f := func(x []float64, at float64) float64 {
			n := 0
			for _, v := range x {
				if v <= at {
					n++
				}
			}
			return float64(n) / float64(len(x))
		}
		ks, w1 := 0.0, 0.0
		for v := range 13 {
			d := math.Abs(f(a, float64(v)) - f(b, float64(v)))
			ks, w1 = max(ks, d), w1+d
		}
		if got := KS(a, b); !same(got, ks) {
			t.Errorf("KS = %v, want %v", got, ks)
		}
		if got := W1(a, b); !same(got, w1) {
			t.Errorf("W1 = %v, want %v", got, w1)
		}
	})
}

func TestLogRatio(t *testing.T) {
	if got := LogRatio(2, 1); !same(got, math.Ln2) || !same(LogRatio(1, 2), got) {
		t.Errorf("LogRatio(2, 1) = %v", got)
	}
	if !math.IsNaN(LogRatio(0, 1)) || !math.IsNaN(LogRatio(1, math.NaN())) {
		t.Error("LogRatio of nothing is a number")
	}
}

// counted makes a Sample of so many arrivals in each second.
func counted(counts ...int) *Sample {
	s := &Sample{Horizon: float64(len(counts))}
	for w, n := range counts {
		for i := range n {
			s.Arrival = append(s.Arrival, float64(w)+float64(i)/float64(n))
			s.In = append(s.In, 10)
			s.Out = append(s.Out, 1)
		}
	}
	return s
}

func TestDispersion(t *testing.T) {
	s := counted(4, 0, 0, 4) // mean 2, variance 4
	if got := IDC(s, 1); !same(got, 2) {
		t.Errorf("IDC = %v, want 2", got)
	}
	// Tokens of 10: Var(W) = 400 over E[N] E[X²] = 2·100.
	if got := TokenIDC(s, 1); !same(got, 2) {
		t.Errorf("TokenIDC = %v, want 2", got)
	}
	s.In = []int32{10, 10, 10, 10, 30, 30, 30, 30} // W 40, 0, 0, 120: mean 40, variance 2400; E[X²] 500
	if got := TokenIDC(s, 1); !same(got, 2.4) {
		t.Errorf("TokenIDC = %v, want 2.4", got)
	}
	if got := IDC(counted(3, 3, 3), 1); !same(got, 0) {
		t.Errorf("IDC of a clock = %v, want 0", got)
	}
	if got := IDC(counted(3), 1); !math.IsNaN(got) {
		t.Errorf("IDC of one window = %v, want NaN", got)
	}
	if got := IDC(&Sample{}, 1); !math.IsNaN(got) {
		t.Errorf("IDC of nothing = %v, want NaN", got)
	}
}

func TestGapKSIgnoresTheLevel(t *testing.T) {
	a := counted(4, 1, 1, 4)
	b := a.AtRate(a.Rate() * 7)
	if got := GapKS(a, b); got > 1e-9 {
		t.Errorf("GapKS of one sample at two rates = %v", got)
	}
	if got := b.Rate(); !same(got, a.Rate()*7) {
		t.Errorf("rate %v", got)
	}
	if got := GapKS(counted(1), a); !math.IsNaN(got) {
		t.Errorf("GapKS of one row = %v, want NaN", got)
	}
}

func TestEta2(t *testing.T) {
	s := &Sample{}
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range 4000 {
		s.In = append(s.In, int32(i))
		// A dependence that goes up and down: log(out) is 1 in the middle half.
		out := int32(1)
		if i >= 1000 && i < 3000 {
			out = 100
		}
		s.Out = append(s.Out, out)
	}
	if got := Eta2(s, 20); math.Abs(got-1) > 0.01 {
		t.Errorf("Eta2 of a function of the input = %v, want 1", got)
	}
	if got := Spearman(s); math.Abs(got) > 0.01 {
		t.Errorf("Spearman of it = %v, want 0", got)
	}
	rng.Shuffle(len(s.Out), func(i, j int) { s.Out[i], s.Out[j] = s.Out[j], s.Out[i] })
	if got := Eta2(s, 20); got > 0.02 {
		t.Errorf("Eta2 of independent lengths = %v, want 19/4000", got)
	}
	if got := Eta2(&Sample{In: []int32{1, 2}, Out: []int32{5, 5}}, 20); !math.IsNaN(got) {
		t.Errorf("Eta2 of constant outputs = %v, want NaN", got)
	}
}

func TestSpearman(t *testing.T) {
	// Ranks 0, 1.5, 1.5, 3 against 0..3: 4.5 / sqrt(4.5·5).
	s := &Sample{In: []int32{1, 7, 7, 50, -1}, Out: []int32{10, 20, 30, 40, 5}}
	if got, want := Spearman(s), 4.5/math.Sqrt(4.5*5); !same(got, want) {
		t.Errorf("Spearman = %v, want %v", got, want)
	}
}

func TestAtomsAndCaps(t *testing.T) {
	col := []int32{5, 5, 5, 2, 2, 9, -1, -1}
	if got := Atoms(col, 2); !slices.Equal(got, []Atom{{5, 0.5}, {2, 1. / 3}}) {
		t.Errorf("Atoms = %v", got)
	}
	if got := Mass(col, 2); !same(got, 1./3) {
		t.Errorf("Mass = %v", got)
	}
	rng := rand.New(rand.NewPCG(5, 5))
	var x []int32
	for range 5000 {
		x = append(x, int32(rng.ExpFloat64()*500))
	}
	if c, ok := Cap(x); ok {
		t.Errorf("an exponential has a cap %+v", c)
	}
	for i := range x {
		x[i] = min(x[i], 1200)
	}
	if c, ok := Cap(x); !ok || c.Value != 1200 {
		t.Errorf("cap = %+v %t, want 1200", c, ok)
	}
	if _, ok := Cap(nil); ok {
		t.Error("nothing has a cap")
	}
}

func TestRunsShared(t *testing.T) {
	src := &Sample{Arrival: make([]float64, 4), In: []int32{1, 2, 3, 4}, Out: []int32{1, 1, 1, 1}}
	syn := &Sample{Arrival: make([]float64, 5), In: []int32{9, 2, 3, 4, 1}, Out: []int32{1, 1, 1, 1, 1}}
	if shared, runs := RunsShared(src, syn, 3); shared != 1 || runs != 3 {
		t.Errorf("RunsShared = %d of %d, want 1 of 3", shared, runs)
	}
	syn.Out[2] = -1
	if shared, runs := RunsShared(src, syn, 3); shared != 0 || runs != 0 {
		t.Errorf("with an unknown length: %d of %d, want 0 of 0", shared, runs)
	}
}

func TestQueue(t *testing.T) {
	// Work of 2 s each at 0, 1 and 10 s.
	got := Queue{1}.TTFT([]float64{0, 1, 10}, []float64{2, 2, 2})
	if !slices.Equal(got, []float64{2, 3, 2}) {
		t.Errorf("TTFT = %v, want 2 3 2", got)
	}
	s := &Sample{Arrival: []float64{0, 1, 10}, Horizon: 12, In: []int32{4, -1, 8}}
	if w := PromptWork(s); !slices.Equal(w, []float64{4, 6, 8}) {
		t.Errorf("PromptWork = %v", w)
	}
	if c := Capacity(s, PromptWork(s), 0.5); c != 3 {
		t.Errorf("Capacity = %v, want 3", c)
	}
	r := CompareQueues(s, s, PromptWork(s), PromptWork(s), 0.5)
	if r.KS != 0 || r.P99 != 1 || r.Level != 1 {
		t.Errorf("a sample against itself: %+v", r)
	}
	if r := CompareQueues(s, &Sample{}, PromptWork(s), nil, 0.5); !math.IsNaN(r.KS) {
		t.Errorf("against nothing: %+v", r)
	}
}

// The mean wait of M/D/1 is rho/(2(1-rho)) service times (Pollaczek, Khinchin).
func TestQueueIsMD1(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	n := 400000
	arrival, work := make([]float64, n), make([]float64, n)
	at := 0.0
	for i := range arrival {
		at += rng.ExpFloat64()
		arrival[i], work[i] = at, 1
	}
	for _, rho := range []float64{0.5, 0.8} {
		want := rho * (1 + rho/(2*(1-rho)))
		if got := mean(Queue{1 / rho}.TTFT(arrival, work)); math.Abs(got/want-1) > 0.03 {
			t.Errorf("mean TTFT at rho %v = %v, want %v", rho, got, want)
		}
	}
}

// blocks makes a Sample of rows of block ids, one a second.
func blocks(rows ...[]uint64) *Sample {
	s := &Sample{BlockStart: []int{0}, BlockSize: 10, Partial: traceformat.PartialKept}
	for i, ids := range rows {
		s.Arrival = append(s.Arrival, float64(i))
		s.In = append(s.In, int32(10*len(ids)))
		s.Out = append(s.Out, 1)
		s.Blocks = append(s.Blocks, ids...)
		s.BlockStart = append(s.BlockStart, len(s.Blocks))
	}
	s.Horizon = float64(len(rows))
	return s
}

func TestHitCurveAndUncached(t *testing.T) {
	s := blocks([]uint64{1, 2, 3}, []uint64{1, 2, 4}, []uint64{9}, []uint64{1, 2, 4, 5})
	want := 5. / 11
	for i, v := range HitCurve(s) {
		if !same(v, want) {
			t.Errorf("curve at size %d is %v, want %v", i, v, want)
		}
	}
	if got := Uncached(s, 100); !slices.Equal(got, []float64{3, 1, 1, 1}) {
		t.Errorf("Uncached = %v", got)
	}
	// Two blocks: only the head of the last prompt is held.
	if got := Uncached(s, 2); !slices.Equal(got, []float64{3, 1, 1, 3}) {
		t.Errorf("Uncached in two blocks = %v", got)
	}
	if HitCurve(&Sample{}) != nil {
		t.Error("a curve without blocks")
	}
}

func TestReuseGaps(t *testing.T) {
	rows := [][]uint64{{0, 1}, {0, 2}, {0, 1, 3}, {0, 2, 4}}
	for i := range 40 {
		rows = append(rows, []uint64{0, uint64(100 + i)})
	}
	// Block 0 is popular, so that sharing it alone is no reuse.
	if got := ReuseGaps(blocks(rows...)); !slices.Equal(got, []float64{2, 2}) {
		t.Errorf("ReuseGaps = %v, want 2 2", got)
	}
}

func TestCheckTree(t *testing.T) {
	for _, tt := range []struct {
		name string
		s    *Sample
		want int
	}{
		{"a tree", blocks([]uint64{0, 1}, []uint64{0, 2}, []uint64{0, 1, 3}), 0},
		{"another parent", blocks([]uint64{0, 1}, []uint64{5, 1}), 1},
		{"another depth", blocks([]uint64{0, 1}, []uint64{1}), 1},
		{"twice in a row", blocks([]uint64{0, 1, 0}), 1},
	} {
		if got, first := CheckTree(tt.s); got != tt.want {
			t.Errorf("%s: %d faults %v, want %d", tt.name, got, first, tt.want)
		}
	}
	s := blocks([]uint64{0, 1})
	s.In[0] = 25
	if got, _ := CheckTree(s); got != 1 {
		t.Error("25 tokens in two blocks of 10, the partial one kept, is no fault")
	}
	s.Partial = traceformat.PartialDropped
	if got, _ := CheckTree(s); got != 0 {
		t.Error("25 tokens in two blocks of 10, the partial one dropped, is a fault")
	}
}

func TestSessions(t *testing.T) {
	s := blocks([]uint64{1}, []uint64{1, 2}, []uint64{7}, []uint64{1, 2, 3})
	s.Session = []int32{0, 0, -1, 1}
	s.Parent = []int32{-1, 0, -1, -1}
	s.Think = []float64{math.NaN(), 4, math.NaN(), math.NaN()}
	if got := Turns(s); !slices.Equal(got, []float64{2, 1}) {
		t.Errorf("Turns = %v", got)
	}
	if got := ThinkTimes(s); !slices.Equal(got, []float64{4}) {
		t.Errorf("ThinkTimes = %v", got)
	}
	if got := Growth(s); !slices.Equal(got, []float64{10}) {
		t.Errorf("Growth = %v", got)
	}
	if got := SessionHit(s); !same(got, 1./7) {
		t.Errorf("SessionHit = %v, want 1/7", got)
	}
	if !s.HasSessions() {
		t.Error("no sessions")
	}
}
