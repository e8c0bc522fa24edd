package score

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"reprise/internal/stats"
	"reprise/traceformat"
	_ "reprise/traceformat/convert"
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

func TestExplore(t *testing.T) {
	for _, name := range []string{"azure-llm-2023/AzureLLMInferenceTrace_conv.csv", "azure-llm-2023/AzureLLMInferenceTrace_code.csv", "mooncake/conversation_trace.jsonl"} {
		s := public(t, name)
		t.Logf("%s n %d horizon %.1f rate %.3f tick %v", name, s.N(), s.Horizon, s.Rate(), s.Tick)
		t.Logf(" cv %.3f idc %.3f %.3f %.3f %.3f acf %.3f %.3f %.3f", GapCV(s), IDC(s, .1), IDC(s, 1), IDC(s, 10), IDC(s, 100), CountACF(s, 1, 1), CountACF(s, 1, 10), CountACF(s, 1, 60))
		t.Logf(" tokidc %.3f %.3f", TokenIDC(s, 10), TokenIDC(s, 100))
		t.Logf(" spearman %.4f eta2 %.4f atoms in %v out %v", Spearman(s), Eta2(s, 20), Atoms(s.In, 4), Atoms(s.Out, 4))
		ci, oki := Cap(s.In)
		co, oko := Cap(s.Out)
		t.Logf(" caps %v %v %v %v", ci, oki, co, oko)
		e, o := s.Interleave(60)
		h1, h2 := s.Halves()
		for _, p := range [][2]*Sample{{e, o}, {h1, h2}} {
			a, b := p[0], p[1]
			t.Logf(" n %d %d gapks raw %.4f lev %.4f in %.4f out %.4f w1 in %.4f out %.4f eta %.4f %.4f sp %.4f %.4f", a.N(), b.N(), KS(Gaps(a), Gaps(b)), GapKS(a, b),
				KS(Known(a.In), Known(b.In)), KS(Known(a.Out), Known(b.Out)), RelativeW1(Known(b.In), Known(a.In)), RelativeW1(Known(b.Out), Known(a.Out)), Eta2(a, 20), Eta2(b, 20), Spearman(a), Spearman(b))
			t.Logf("   idc 1/10/60/100 %.3f %.3f %.3f %.3f ; %.3f %.3f %.3f %.3f", IDC(a, 1), IDC(a, 10), IDC(a, 60), IDC(a, 100), IDC(b, 1), IDC(b, 10), IDC(b, 60), IDC(b, 100))
			for _, rho := range []float64{.5, .7, .8} {
				r := CompareQueues(b, a, PromptWork(b), PromptWork(a), rho)
				// work levelled too
				wa := PromptWork(a)
				for i := range wa {
					wa[i] /= r.Level
				}
				r2 := CompareQueues(b, a, PromptWork(b), wa, rho)
				r3 := CompareQueues(b, a, PromptWork(b), PromptWork(a), rho)
				_ = r3
				t.Logf("   queue rho %.1f ks %.4f p99 %.3f | levelled work %.4f %.3f (level %.3f)", rho, r.KS, r.P99, r2.KS, r2.P99, r.Level)
			}
		}
		if s.HasBlocks() {
			d := s.Dequantise(1)
			t.Logf(" curve %.3f", HitCurve(s))
			h1, h2 := d.Halves()
			t.Logf(" H1 %.3f H2 %.3f", HitCurve(h1), HitCurve(h2))
			g := ReuseGaps(s)
			slices.Sort(g)
			t.Logf(" reuse n %d q %.1f %.1f %.1f %.1f %.1f", len(g), stats.Quantile(g, .1), stats.Quantile(g, .25), stats.Quantile(g, .5), stats.Quantile(g, .75), stats.Quantile(g, .9))
			g = ReuseGaps(d)
			t.Logf(" deq reuse H KS %.4f n %d", KS(logs(ReuseGaps(h1)), logs(ReuseGaps(h2))), len(g))
			n, f := CheckTree(s)
			t.Logf(" tree %d %v", n, f)
			for _, rho := range []float64{.5, .7, .8} {
				r := CompareQueues(h2, h1, CacheWork(h2, 10000), CacheWork(h1, 10000), rho)
				t.Logf("   cache queue rho %.1f ks %.4f p99 %.3f level %.3f", rho, r.KS, r.P99, r.Level)
			}
		}
	}
	_ = math.Pi
}
