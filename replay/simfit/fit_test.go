package simfit

import (
	"math"
	"testing"
	"time"

	"reprise/backends/sim/engine"
)

func TestNonNegative(t *testing.T) {
	// y = 3 + 2 a - c over points that tell them apart: without the negative one
	// the constant and a take what is left, as least squares with bounds do.
	var xx [terms][terms]float64
	var xy [terms]float64
	for a := range 10 {
		for c := range 10 {
			x := [terms]float64{1, float64(a), 0, 0, float64(c)}
			y := 30 + 2*x[1] - x[4]
			for i := range terms {
				for j := range terms {
					xx[i][j] += x[i] * x[j]
				}
				xy[i] += x[i] * y
			}
		}
	}
	b := nonNegative(&xx, &xy)
	// The mean of c is 4.5.
	if math.Abs(b[0]-25.5) > 1e-3 || math.Abs(b[1]-2) > 1e-3 || b[2] != 0 || b[3] != 0 || b[4] != 0 {
		t.Errorf("coefficients %v, want 25.5, 2, 0, 0, 0", b)
	}
}

func TestVectorsAreCosts(t *testing.T) {
	p, err := engine.PresetNamed("")
	if err != nil {
		t.Fatal(err)
	}
	got := costOf(vector(p.Cost))
	for i, q := range parameters {
		if a, b := *q.of(&got), *q.of(&p.Cost); math.Abs(a/b-1) > 1e-9 {
			t.Errorf("constant %d is %v, want %v", i, a, b)
		}
	}
	if c := costOf(vector(engine.Cost{})); c.Validate() != nil || math.Abs(c.Step-parameters[0].floor) > 1e-6 {
		t.Errorf("nothing becomes %+v", c)
	}
}

// Half as much and twice as much are equally bad, and nothing off is 0.
func TestLoss(t *testing.T) {
	r := &Run{}
	for i := range 50 {
		d := time.Duration(i+1) * time.Millisecond
		r.real = append(r.real, outcome{ttft: d, e2e: 3 * d, counts: i > 0})
	}
	s := &simulator{run: r}
	scaled := func(f float64) float64 {
		var sim []outcome
		for _, o := range r.real {
			sim = append(sim, outcome{ttft: time.Duration(f * float64(o.ttft)), e2e: time.Duration(f * float64(o.e2e))})
		}
		sim[0] = outcome{} // does not count
		return s.loss(sim)
	}
	if l := scaled(1); l != 0 {
		t.Errorf("the loss of the truth is %v", l)
	}
	if half, twice := scaled(0.5), scaled(2); math.Abs(half-twice) > 1e-9 || math.Abs(half-1.5*math.Ln2) > 1e-6 {
		t.Errorf("the loss of half is %v, of twice %v, want %v", half, twice, 1.5*math.Ln2)
	}
	if a, b := scaled(1.1), scaled(1.2); a >= b {
		t.Errorf("20 %% off is %v, 10 %% off %v", b, a)
	}
}
