package synth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"reprise/synth/score"
)

// poisson is a trace of n rows at a rate, lognormal lengths.
func poisson(n int, rate float64, seed uint64) *score.Sample {
	r := rand.New(rand.NewPCG(seed, 1))
	s := &score.Sample{}
	t := 0.0
	for range n {
		s.Arrival = append(s.Arrival, t)
		t += r.ExpFloat64() / rate
		s.In = append(s.In, int32(1+math.Exp(6+r.NormFloat64())))
		s.Out = append(s.Out, int32(1+math.Exp(5+0.5*r.NormFloat64())))
	}
	s.Horizon = t
	return s
}

// bursty alternates between a busy and a quiet minute, with long prompts in the
// busy ones.
func bursty(n int, seed uint64) *score.Sample {
	r := rand.New(rand.NewPCG(seed, 2))
	s := &score.Sample{}
	t := 0.0
	for range n {
		busy := int(t/60)%2 == 0
		rate, long := 2.0, 5.0
		if busy {
			rate, long = 20, 6.5
		}
		s.Arrival = append(s.Arrival, t)
		t += r.ExpFloat64() / rate
		in := int32(1 + math.Exp(long+0.5*r.NormFloat64()))
		s.In, s.Out = append(s.In, in), append(s.Out, 1+in/4+int32(r.IntN(10)))
	}
	s.Horizon = t
	return s
}

// mustFit fits, and generates from the model after a trip through its file.
func mustFit(t *testing.T, s *score.Sample, o FitOptions) (*Model, *FitReport, *score.Sample) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	m, report, err := Fit(ctx, s, o)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := m.Write(&b); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), "NaN") {
		t.Error("the file holds NaN")
	}
	m, err = Read(&b)
	if err != nil {
		t.Fatal(err)
	}
	g, err := m.Sample(ctx, GenOptions{Seed: 7})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.IsSorted(g.Arrival) || !finite(g.Arrival...) {
		t.Error("arrivals do not rise")
	}
	return m, report, g
}

func TestFitRefusesWhatSaysNothing(t *testing.T) {
	same := poisson(50, 1, 1)
	clear(same.Arrival)
	same.Horizon = 0
	one := poisson(1, 1, 1)
	tests := []struct {
		name string
		s    *score.Sample
		o    FitOptions
		want string
	}{
		{"empty", &score.Sample{}, FitOptions{}, "the trace is empty"},
		{"one row", one, FitOptions{}, "one row"},
		{"all at one instant", same, FitOptions{}, "all 50 rows arrive at one instant; name a rate"},
		{"unknown kind", poisson(50, 1, 1), FitOptions{Kind: "magic"}, `"magic" are not known`},
		{"resampling without leave", poisson(50, 1, 1), FitOptions{Kind: ArrivalsRows}, "has to be allowed"},
	}
	for _, tt := range tests {
		_, _, err := Fit(t.Context(), tt.s, tt.o)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: Fit = %v, want %q", tt.name, err, tt.want)
		}
	}
	if _, _, g := mustFit(t, same, FitOptions{Rate: 5}); g.N() < 10 {
		t.Errorf("with a rate, all at one instant: %d rows", g.N())
	}
}

func TestFitOfOddTraces(t *testing.T) {
	edit := func(s *score.Sample, f func(*score.Sample)) *score.Sample { f(s); return s }
	tests := []struct {
		name  string
		s     *score.Sample
		check func(t *testing.T, m *Model, r *FitReport, g *score.Sample)
	}{
		{"two rows", poisson(2, 1, 1), func(t *testing.T, m *Model, r *FitReport, g *score.Sample) {
			if len(r.Warnings) == 0 {
				t.Error("no warning of two rows")
			}
		}},
		{"constant lengths", edit(poisson(500, 5, 1), func(s *score.Sample) {
			for i := range s.In {
				s.In[i], s.Out[i] = 100, 7
			}
		}), func(t *testing.T, m *Model, r *FitReport, g *score.Sample) {
			for i := range g.In {
				if g.In[i] != 100 || g.Out[i] != 7 {
					t.Fatalf("row %d is %d, %d, want 100, 7", i, g.In[i], g.Out[i])
				}
			}
		}},
		{"ticks of 3 s", edit(poisson(3000, 4, 1), func(s *score.Sample) {
			for i := range s.Arrival {
				s.Arrival[i] = 3 * math.Floor(s.Arrival[i]/3)
			}
			s.Tick = 3
		}), func(t *testing.T, m *Model, r *FitReport, g *score.Sample) {
			if m.Source.Tick != 3 {
				t.Errorf("tick = %v, want 3", m.Source.Tick)
			}
			if idc := score.IDC(g, 1); idc > 1.4 {
				t.Errorf("IDC(1 s) = %.2f: the herd at every tick is still there", idc)
			}
		}},
		{"ticks that no header tells", edit(poisson(3000, 4, 1), func(s *score.Sample) {
			for i := range s.Arrival {
				s.Arrival[i] = math.Floor(s.Arrival[i])
			}
		}), func(t *testing.T, m *Model, r *FitReport, g *score.Sample) {
			if m.Source.Tick != 1 {
				t.Errorf("tick = %v, want 1", m.Source.Tick)
			}
		}},
		{"a silent day", edit(poisson(2000, 2, 1), func(s *score.Sample) {
			for i := 1000; i < 2000; i++ {
				s.Arrival[i] += 86400
			}
			s.Horizon += 86400
		}), func(t *testing.T, m *Model, r *FitReport, g *score.Sample) {
			silent := 0.0
			for i := 1; i < g.N(); i++ {
				silent = max(silent, g.Arrival[i]-g.Arrival[i-1])
			}
			if silent < 80_000 && r.Fits {
				t.Errorf("the longest silence is %.0f s, and the report says that it fits", silent)
			}
		}},
		{"no outputs", edit(poisson(500, 5, 1), func(s *score.Sample) { s.Out = nil }), func(t *testing.T, m *Model, r *FitReport, g *score.Sample) {
			if g.Out != nil || g.In == nil {
				t.Error("outputs were made up")
			}
			if !slices.ContainsFunc(m.DoesNotKeep, func(s string) bool { return strings.Contains(s, "output lengths") }) {
				t.Errorf("does not say so: %q", m.DoesNotKeep)
			}
		}},
		{"no lengths", edit(poisson(500, 5, 1), func(s *score.Sample) { s.In, s.Out = nil, nil }), func(t *testing.T, m *Model, r *FitReport, g *score.Sample) {
			if g.Out != nil || g.In != nil {
				t.Error("lengths were made up")
			}
		}},
		{"half of the outputs unknown", edit(poisson(4000, 5, 1), func(s *score.Sample) {
			for i := range s.Out {
				if i%2 == 0 {
					s.Out[i] = -1
				}
			}
		}), func(t *testing.T, m *Model, r *FitReport, g *score.Sample) {
			known := 0
			for _, v := range g.Out {
				if v >= 0 {
					known++
				}
			}
			if share := float64(known) / float64(g.N()); math.Abs(share-0.5) > 0.05 {
				t.Errorf("%.2f of the outputs are known, want a half", share)
			}
		}},
		{"zero lengths", edit(poisson(500, 5, 1), func(s *score.Sample) { clear(s.Out) }), func(t *testing.T, m *Model, r *FitReport, g *score.Sample) {
			if slices.Max(g.Out) != 0 {
				t.Error("outputs of 0 became others")
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, r, g := mustFit(t, tt.s, FitOptions{Seed: 1})
			tt.check(t, m, r, g)
		})
	}
}

// Traffic without bursts needs no profile: the simplest process that fits wins,
// and a fit of what that generates finds it again.
func TestFitTakesTheSimplestThatFits(t *testing.T) {
	m, r, g := mustFit(t, poisson(6000, 5, 3), FitOptions{})
	if kind := m.Clients[0].Arrivals.Kind; kind == ArrivalsProfile || kind == ArrivalsMMPP || !r.Fits {
		t.Errorf("a Poisson process was fitted by %s, fits %t: %s", kind, r.Fits, r.Verdict)
	}
	again, _, _ := mustFit(t, g, FitOptions{})
	if a, b := m.Rate(), again.Rate(); math.Abs(a/b-1) > 0.05 {
		t.Errorf("rate %.3f, after a round trip %.3f", a, b)
	}
}

func TestFitKeepsBursts(t *testing.T) {
	s := bursty(12_000, 1)
	m, r, g := mustFit(t, s, FitOptions{})
	if !r.SameHour || m.Clients[0].Arrivals.Kind != ArrivalsProfile {
		t.Fatalf("chose %s: %s", r.Chosen, r.Verdict)
	}
	for _, width := range []float64{1, 10, 100} {
		if d := score.LogRatio(score.IDC(g, width), score.IDC(s, width)); !(d < 0.3) {
			t.Errorf("IDC(%g s) is off by %.2f", width, d)
		}
	}
	if d := score.LogRatio(score.TokenIDC(g, 10), score.TokenIDC(s, 10)); !(d < 0.3) {
		t.Errorf("token IDC is off by %.2f", d)
	}
	if d := score.Eta2(s, 20) - score.Eta2(g, 20); math.Abs(d) > 0.05 {
		t.Errorf("eta2 is off by %.3f", d)
	}
	var poisson *Candidate
	for i, c := range r.Candidates {
		if c.Name == ArrivalsExponential {
			poisson = &r.Candidates[i]
		}
	}
	if poisson == nil || poisson.Again.passes() {
		t.Error("a Poisson process passes for bursts")
	}
}

func TestFitWithRowsSaysSo(t *testing.T) {
	s := bursty(3000, 1)
	m, _, g := mustFit(t, s, FitOptions{AllowResampling: true, Kind: ArrivalsRows})
	if !m.HoldsSourceRows || m.Memory == nil || m.Memory.Note == "" {
		t.Fatalf("holds %t, %+v", m.HoldsSourceRows, m.Memory)
	}
	if shared, _ := score.RunsShared(s, g, 3); shared < g.N()/2 {
		t.Errorf("%d of %d runs are of the source", shared, g.N())
	}
	plain, _, g := mustFit(t, s, FitOptions{})
	if plain.HoldsSourceRows {
		t.Error("rows without leave")
	}
	if shared, of := score.RunsShared(s, g, 3); shared > of/50 {
		t.Errorf("%d of %d runs of a model without rows are of the source", shared, of)
	}
}

// Outputs that clients cut short are completed from those of others.
func TestFitCompletesAbortedOutputs(t *testing.T) {
	s := poisson(20_000, 5, 1)
	whole := slices.Clone(s.Out)
	r := rand.New(rand.NewPCG(1, 1))
	s.Aborted = make([]bool, s.N())
	for i := range s.Out {
		if cut := int32(r.IntN(400)); cut < s.Out[i] {
			s.Out[i], s.Aborted[i] = cut, true
		}
	}
	_, _, g := mustFit(t, s, FitOptions{Kind: ArrivalsExponential})
	mean := func(x []int32) (m float64) {
		for _, v := range x {
			m += float64(v) / float64(len(x))
		}
		return m
	}
	cut, got, want := mean(s.Out), mean(g.Out), mean(whole)
	if math.Abs(got/want-1) > 0.1 {
		t.Errorf("mean output %.0f, want about %.0f (cut: %.0f)", got, want, cut)
	}
}

func TestFitSuperposesClients(t *testing.T) {
	a, b := poisson(3000, 5, 1), poisson(600, 1, 2)
	for i := range b.In {
		b.In[i] = 9000
	}
	s := &score.Sample{Clients: []string{"a", "b"}, Horizon: 600}
	for i, j := 0, 0; i < a.N() || j < b.N(); {
		from, k, client := a, &i, int32(0)
		if i == a.N() || j < b.N() && b.Arrival[j] < a.Arrival[i] {
			from, k, client = b, &j, 1
		}
		s.Arrival, s.In, s.Out = append(s.Arrival, from.Arrival[*k]), append(s.In, from.In[*k]), append(s.Out, from.Out[*k])
		s.Client = append(s.Client, client)
		*k++
	}
	s.Horizon = s.Arrival[s.N()-1] + 0.1
	m, r, g := mustFit(t, s, FitOptions{})
	if len(m.Clients) != 2 || r.Chosen != "clients" {
		t.Fatalf("%d clients, chose %s", len(m.Clients), r.Chosen)
	}
	for i, c := range g.Client {
		if (g.Clients[c] == "b") != (g.In[i] == 9000) {
			t.Fatalf("client %s asks for %d tokens", g.Clients[c], g.In[i])
		}
	}
}

func TestFitEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := Fit(ctx, bursty(5000, 1), FitOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Fit = %v, want cancelled", err)
	}
}

// The report in the file is the report that was returned.
func TestReportIsPartOfTheModel(t *testing.T) {
	m, r, _ := mustFit(t, poisson(500, 5, 1), FitOptions{})
	a, _ := json.Marshal(m.Fit)
	b, _ := json.Marshal(r)
	if !bytes.Equal(a, b) {
		t.Errorf("in the file:\n%s\nreturned:\n%s", a, b)
	}
}
