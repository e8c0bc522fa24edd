package synth

import (
	"math"
	"testing"

	"reprise/synth/score"
)

// A model, what it generates, and the model that is fitted to that say the same,
// within what one hour leaves open.
func TestRoundTrip(t *testing.T) {
	for _, name := range []string{"azure-conv", "mooncake-conv"} {
		t.Run(name, func(t *testing.T) {
			first, err := Load(name)
			if err != nil {
				t.Fatal(err)
			}
			g, err := first.Sample(t.Context(), GenOptions{Seed: 3})
			if err != nil {
				t.Fatal(err)
			}
			second, report, _ := mustFit(t, g, FitOptions{Name: name})
			again, err := second.Sample(t.Context(), GenOptions{Seed: 4})
			if err != nil {
				t.Fatal(err)
			}
			near := func(what string, got, want, limit float64) {
				t.Helper()
				t.Logf("%s: %.4g, after the round trip %.4g", what, want, got)
				if !(math.Abs(math.Log(got/want)) <= limit) {
					t.Errorf("%s: %.4g became %.4g", what, want, got)
				}
			}
			near("rate", second.Rate(), first.Rate(), 0.03)
			if a, b := first.Clients[0].Arrivals.Kind, second.Clients[0].Arrivals.Kind; a != b {
				t.Errorf("arrivals by %s became %s", a, b)
			}
			a, b := first.Clients[0].Lengths, second.Clients[0].Lengths
			for _, p := range []float64{0.05, 0.25, 0.5, 0.75, 0.95, 0.99} {
				near("prompt quantile", b.In.quantiler().real(p), a.In.quantiler().real(p), 0.08)
			}
			if c := report.Candidates; len(c) == 0 || !report.SameHour {
				t.Errorf("the fit of what was generated: %s", report.Verdict)
			}
			if ks := score.KS(score.Known(g.In), score.Known(again.In)); ks > 0.03 {
				t.Errorf("KS of prompts after the round trip %.3f", ks)
			}
			if ks := score.KS(score.Known(g.Out), score.Known(again.Out)); ks > 0.03 {
				t.Errorf("KS of outputs after the round trip %.3f", ks)
			}
			if d := score.Eta2(g, 20) - score.Eta2(again, 20); math.Abs(d) > 0.06 {
				t.Errorf("eta² is off by %.3f", d)
			}
			for _, width := range []float64{1, 10, 100} {
				near("IDC", score.IDC(again, width), score.IDC(g, width), 0.3)
			}
			for _, rho := range []float64{0.7, 0.8} {
				if q := score.CompareQueues(g, again, score.PromptWork(g), score.PromptWork(again), rho); q.KS > 0.08 || math.Abs(math.Log(q.P99)) > 0.35 {
					t.Errorf("TTFT at load %g: KS %.3f, p99 %.2f times", rho, q.KS, q.P99)
				}
			}
			if first.Blocks != nil {
				if mean, most := score.CurveError(score.HitCurve(g), score.HitCurve(again)); mean > 0.02 || most > 0.04 {
					t.Errorf("hit curve is off by %.3f, at most %.3f", mean, most)
				}
			}
		})
	}
}
