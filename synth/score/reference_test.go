package score

import (
	"context"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"reprise/internal/stats"
	"reprise/traceformat"
	_ "reprise/traceformat/convert"
)

const (
	azureConv = "azure-llm-2023/AzureLLMInferenceTrace_conv.csv"
	azureCode = "azure-llm-2023/AzureLLMInferenceTrace_code.csv"
	mooncake  = "mooncake/conversation_trace.jsonl"
)

// public loads one of the public traces, or skips the test.
func public(t *testing.T, name string, opts ...traceformat.ReadOption) *Sample {
	t.Helper()
	shared := os.Getenv("REPRISE_SHARED")
	if shared == "" {
		shared = filepath.Join("..", "..", "..", "shared")
	}
	path := filepath.Join(shared, "traces", filepath.FromSlash(name))
	if _, err := os.Stat(path); err != nil {
		t.Skipf("the public trace %s is not here (set REPRISE_SHARED to the folder that holds traces/)", name)
	}
	s, err := LoadFile(context.Background(), path, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func near(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if !(math.Abs(got-want) <= tolerance) {
		t.Errorf("%s = %.4f, want %.4f within %g", what, got, want, tolerance)
	}
}

// The figures of a second implementation, in Python, of the same definitions on
// the same public traces, to the digits it printed.
func TestFiguresOfPublicTraces(t *testing.T) {
	t.Run("azure conv", func(t *testing.T) {
		s := public(t, azureConv)
		near(t, "rows", float64(s.N()), 19366, 0)
		near(t, "rate", s.Rate(), 5.53, 0.005)
		near(t, "gap CV", GapCV(s), 1.09, 0.005)
		for _, w := range []struct{ width, idc float64 }{{0.1, 1.06}, {1, 1.39}, {10, 3.86}, {100, 26.7}} {
			near(t, "IDC", IDC(s, w.width), w.idc, 0.05)
		}
		near(t, "token IDC 10 s", TokenIDC(s, 10), 4.5, 0.05)
		near(t, "token IDC 100 s", TokenIDC(s, 100), 34.9, 0.05)
		near(t, "ACF lag 1", CountACF(s, 1, 1), 0.22, 0.006)
		near(t, "ACF lag 10", CountACF(s, 1, 10), 0.20, 0.006)
		// The other divides by n - lag.
		near(t, "ACF lag 60", CountACF(s, 1, 60), 0.16*3441/3501, 0.006)
		near(t, "eta2", Eta2(s, 20), 0.633, 0.004)
		near(t, "Spearman", Spearman(s), 0.073, 0.0005)
		if a := Atoms(s.In, 1)[0]; a.Value != 181 || math.Abs(a.Mass-0.022) > 0.0005 {
			t.Errorf("largest atom of the input %+v, want 181 at 0.022", a)
		}
		if a := Atoms(s.Out, 1)[0]; a.Value != 396 || math.Abs(a.Mass-0.022) > 0.0005 {
			t.Errorf("largest atom of the output %+v, want 396 at 0.022", a)
		}
		even, odd := s.Interleave(60)
		near(t, "interleaved KS in", KS(Known(even.In), Known(odd.In)), 0.0065, 0.0001)
		near(t, "interleaved KS out", KS(Known(even.Out), Known(odd.Out)), 0.0115, 0.0001)
		near(t, "interleaved W1 in", RelativeW1(Known(odd.In), Known(even.In)), 0.013, 0.0005)
		near(t, "interleaved W1 out", RelativeW1(Known(odd.Out), Known(even.Out)), 0.009, 0.0005)
		h1, h2 := s.Halves()
		near(t, "halves gap KS", GapKS(h1, h2), 0.018, 0.0005)
		near(t, "halves KS in", KS(Known(h1.In), Known(h2.In)), 0.081, 0.001)
		near(t, "halves KS out", KS(Known(h1.Out), Known(h2.Out)), 0.079, 0.0005)
		near(t, "halves W1 in", RelativeW1(Known(h1.In), Known(h2.In)), 0.151, 0.001)
		near(t, "halves W1 out", RelativeW1(Known(h1.Out), Known(h2.Out)), 0.120, 0.001)
		near(t, "Spearman of the first half", Spearman(h1), 0.035, 0.001)
		near(t, "Spearman of the second", Spearman(h2), 0.111, 0.001)
		for _, want := range []QueueResult{{Rho: 0.5, KS: 0.130, P99: 0.32}, {Rho: 0.8, KS: 0.279, P99: 0.61}} {
			got := QueueFloor(h2, h1, PromptWork(h2), PromptWork(h1), want.Rho)
			near(t, "queue floor KS", got.KS, want.KS, 0.0015)
			near(t, "queue floor p99", got.P99, want.P99, 0.006)
		}
		// Poisson arrivals and shuffled lengths lose nearly all of the queue.
		rng := rand.New(rand.NewPCG(1, 2))
		p := *s
		p.Arrival = make([]float64, 0, s.N())
		for at := rng.ExpFloat64() / s.Rate(); at < s.Horizon; at += rng.ExpFloat64() / s.Rate() {
			p.Arrival = append(p.Arrival, at)
		}
		work := PromptWork(s)
		drawn := make([]float64, len(p.Arrival))
		for i := range drawn {
			drawn[i] = work[rng.IntN(len(work))]
		}
		r := CompareQueues(s, &p, work, drawn, 0.8)
		near(t, "Poisson queue KS", r.KS, 0.479, 0.03)
		near(t, "Poisson queue p99", r.P99, 0.02, 0.01)
		near(t, "Poisson IDC 100 s", IDC(&p, 100), 0.82, 0.6)
	})
	t.Run("azure code", func(t *testing.T) {
		s := public(t, azureCode)
		near(t, "rows", float64(s.N()), 8819, 0)
		near(t, "gap CV", GapCV(s), 13.2, 0.05)
		for _, w := range []struct{ width, idc, tol float64 }{{0.1, 2.54, 0.005}, {1, 13.2, 0.05}, {10, 71.6, 0.05}, {100, 151.7, 0.05}} {
			near(t, "IDC", IDC(s, w.width), w.idc, w.tol)
		}
		near(t, "ACF lag 1", CountACF(s, 1, 1), 0.76, 0.006)
		near(t, "eta2", Eta2(s, 20), 0.005, 0.001)
		near(t, "Spearman", Spearman(s), -0.022, 0.0006)
		if c, ok := Cap(s.In); !ok || c.Value != 7436 || math.Abs(c.Mass-0.023) > 0.0005 {
			t.Errorf("cap of the input %+v %t, want 7436 at 0.023", c, ok)
		}
		if a := Atoms(s.Out, 1)[0]; a.Value != 9 || math.Abs(a.Mass-0.092) > 0.0005 {
			t.Errorf("largest atom of the output %+v, want 9 at 0.092", a)
		}
		even, odd := s.Interleave(60)
		near(t, "interleaved KS in", KS(Known(even.In), Known(odd.In)), 0.024, 0.0005)
		near(t, "interleaved KS out", KS(Known(even.Out), Known(odd.Out)), 0.029, 0.0006)
		near(t, "interleaved W1 out", RelativeW1(Known(odd.Out), Known(even.Out)), 0.095, 0.0006)
		h1, h2 := s.Halves()
		near(t, "halves gap KS", GapKS(h1, h2), 0.203, 0.0005)
		for _, want := range []QueueResult{{Rho: 0.5, KS: 0.124, P99: 1.40}, {Rho: 0.8, KS: 0.188, P99: 0.88}} {
			got := QueueFloor(h2, h1, PromptWork(h2), PromptWork(h1), want.Rho)
			near(t, "queue floor KS", got.KS, want.KS, 0.005)
			near(t, "queue floor p99", got.P99, want.P99, 0.04)
		}
	})
	t.Run("mooncake", func(t *testing.T) {
		s := public(t, mooncake)
		near(t, "tick", s.Tick, 3, 0)
		near(t, "blocks", float64(len(s.Blocks)), 288500, 0)
		near(t, "IDC 10 s", IDC(s, 10), 2.10, 0.005)
		near(t, "IDC 100 s", IDC(s, 100), 3.51, 0.005)
		near(t, "Spearman", Spearman(s), 0.072, 0.0005)
		for i, want := range []float64{0.042, 0.045, 0.065, 0.212, 0.326, 0.366} {
			near(t, "hit curve", HitCurve(s)[i], want, 0.0006)
		}
		gaps := sorted(ReuseGaps(s))
		near(t, "rows that reuse", float64(len(gaps)), 4658, 0)
		for i, p := range []float64{0.1, 0.25, 0.5, 0.75, 0.9} {
			near(t, "reuse gap", stats.Quantile(gaps, p), []float64{42, 66, 123, 264, 483}[i], 0.002)
		}
		if n, first := CheckTree(s); n != 0 {
			t.Errorf("%d rows break the tree: %v", n, first)
		}
		// The other cuts this trace in the middle of its rows, not of its time.
		d := s.Dequantise(1)
		mid := d.Arrival[d.N()/2]
		h1, h2 := d.Slice(0, mid), d.Slice(mid, d.Horizon)
		near(t, "hit of the first half", HitCurve(h1)[5], 0.346, 0.0006)
		near(t, "hit of the second", HitCurve(h2)[5], 0.336, 0.0006)
		meanError, maxError := CurveError(HitCurve(h1), HitCurve(h2))
		near(t, "curve floor, mean", meanError, 0.004, 0.0005)
		near(t, "curve floor, max", maxError, 0.009, 0.0005)
		near(t, "reuse gap floor", KS(logs(ReuseGaps(h1)), logs(ReuseGaps(h2))), 0.053, 0.006)
		// The other prints .93, .81 and .88 and does not say how it sets the level.
		for i, rho := range []float64{0.5, 0.7, 0.8} {
			got := QueueFloor(h2, h1, CacheWork(h2, 10000), CacheWork(h1, 10000), rho)
			near(t, "cache queue floor p99", got.P99, []float64{0.93, 0.81, 0.88}[i], 0.15)
		}
	})
}
