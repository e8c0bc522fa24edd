package synth

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"reprise/synth/score"
	"reprise/traceformat"
)

// described makes a model of a Spec.
func described(t testing.TB, text string) *Model {
	t.Helper()
	s, err := ParseSpec(text)
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.Model()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// rowsOfModel generates clones of all rows.
func rowsOfModel(t testing.TB, m *Model, o GenOptions) []*traceformat.Row {
	t.Helper()
	g, err := m.Generate(o)
	if err != nil {
		t.Fatal(err)
	}
	var rows []*traceformat.Row
	for r, err := range g.All() {
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, r.Clone())
	}
	return rows
}

func digest(t *testing.T, m *Model, o GenOptions) [32]byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "out.parquet")
	g, err := m.Generate(o)
	if err != nil {
		t.Fatal(err)
	}
	w, err := traceformat.Create(path, g.Header(), traceformat.RequireSorted())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if err := traceformat.Copy(w, g); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(b)
}

const rich = "rate=20,arrival=gamma:cv=2,prompt-tokens=lognormal:900,0.8,output-tokens=geometric:60,turns=geometric:3,think=exponential:5,shared-prefix=0.4,clients=3:zipf=1"

func TestSameSeedSameBytes(t *testing.T) {
	models := map[string]*Model{"described": described(t, rich)}
	for _, name := range []string{"azure-code", "mooncake-conv"} {
		m, err := Load(name)
		if err != nil {
			t.Fatal(err)
		}
		models[name] = m
	}
	for name, m := range models {
		o := GenOptions{Seed: 5, Rows: 3000, ScaleRate: 1.5}
		first := digest(t, m, o)
		for _, procs := range []int{1, 2, 5} {
			before := runtime.GOMAXPROCS(procs)
			again := digest(t, m, o)
			runtime.GOMAXPROCS(before)
			if again != first {
				t.Errorf("%s: other bytes at GOMAXPROCS %d", name, procs)
			}
		}
		o.Seed++
		if digest(t, m, o) == first {
			t.Errorf("%s: another seed gives the same bytes", name)
		}
	}
}

// A client that comes or goes leaves the rows of the others as they were, block
// ids and sessions included; only the numbers of rows shift.
func TestClientsAreIndependent(t *testing.T) {
	all := described(t, rich)
	fewer := all.Clone()
	fewer.Clients = slices.Delete(fewer.Clients, 1, 2)
	o := GenOptions{Seed: 3, Duration: time.Minute}
	text := func(rows []*traceformat.Row) (lines []string) {
		for _, r := range rows {
			if r.Client == all.Clients[1].Name {
				continue
			}
			r.ID, r.Parent = 0, traceformat.Opt[int64]{}
			lines = append(lines, string(r.AppendJSON(nil)))
		}
		return lines
	}
	with, without := text(rowsOfModel(t, all, o)), text(rowsOfModel(t, fewer, o))
	if len(without) == 0 || !slices.Equal(with, without) {
		t.Errorf("%d rows with the client, %d without it, or they differ", len(with), len(without))
	}
}

func TestGeneratedTracesAreValid(t *testing.T) {
	for name, m := range map[string]*Model{"described": described(t, rich), "lengths": described(t, "rate=50,length=1m")} {
		g, err := m.Generate(GenOptions{Seed: 1, Duration: 2 * time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "out.parquet")
		w, err := traceformat.Create(path, g.Header(), traceformat.RequireSorted())
		if err != nil {
			t.Fatal(err)
		}
		if err := traceformat.Copy(w, g); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		r, err := traceformat.OpenFile(path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for v := range traceformat.Validate(r) {
			if !v.Note {
				t.Errorf("%s: %s", name, v)
			}
		}
	}
}

func TestSessions(t *testing.T) {
	s := described(t, "rate=5,turns=geometric:4,think=exponential:8,prompt-tokens=fixed:100,output-tokens=fixed:50,length=1h")
	g, err := s.Sample(t.Context(), GenOptions{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	mean := func(x []float64) (m float64) {
		for _, v := range x {
			m += v / float64(len(x))
		}
		return m
	}
	if got := mean(score.Turns(g)); math.Abs(got-4) > 0.2 {
		t.Errorf("%.2f turns a session, want 4", got)
	}
	if got := mean(score.ThinkTimes(g)); math.Abs(got-8) > 0.5 {
		t.Errorf("think time %.2f s, want 8", got)
	}
	for _, d := range score.Growth(g) {
		if d != 150 {
			t.Fatalf("a prompt grew by %.0f tokens, want the answer's 50 and 100 more", d)
		}
	}
	if n, first := score.CheckTree(g); n > 0 {
		t.Errorf("%d rows break the tree: %v", n, first)
	}
}

func TestScaleRateSuperposes(t *testing.T) {
	m := described(t, "rate=10,arrival=gamma:cv=3,length=20m")
	one, err := m.Sample(t.Context(), GenOptions{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	four, err := m.Sample(t.Context(), GenOptions{Seed: 1, ScaleRate: 4})
	if err != nil {
		t.Fatal(err)
	}
	if r := four.Rate() / one.Rate(); math.Abs(r-4) > 0.4 {
		t.Errorf("rate grew by %.2f, want 4", r)
	}
	// Independent copies smooth each other; the same traffic faster would not.
	if a, b := score.GapCV(one), score.GapCV(four); b > 0.9*a {
		t.Errorf("gap CV %.2f, of four copies %.2f: want less", a, b)
	}
	half, err := m.Sample(t.Context(), GenOptions{Seed: 1, ScaleRate: 0.5})
	if err != nil {
		t.Fatal(err)
	}
	if r := half.Rate() / one.Rate(); math.Abs(r-0.5) > 0.08 {
		t.Errorf("rate fell to %.2f, want 0.5", r)
	}
}

func TestWhatIf(t *testing.T) {
	m, err := Load("mooncake-conv")
	if err != nil {
		t.Fatal(err)
	}
	sample := func(o GenOptions) *score.Sample {
		o.Seed, o.Rows = 1, 4000
		s, err := m.Sample(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if n, first := score.CheckTree(s); n > 0 {
			t.Errorf("%+v: %d rows break the tree: %v", o, n, first)
		}
		return s
	}
	mean := func(x []int32) (m float64) {
		for _, v := range x {
			m += float64(v) / float64(len(x))
		}
		return m
	}
	base := sample(GenOptions{})
	if r := mean(sample(GenOptions{Prompts: 2}).In) / mean(base.In); math.Abs(r-2) > 0.05 {
		t.Errorf("prompts grew by %.2f, want 2", r)
	}
	if r := mean(sample(GenOptions{Outputs: 0.5}).Out) / mean(base.Out); math.Abs(r-0.5) > 0.05 {
		t.Errorf("outputs grew by %.2f, want 0.5", r)
	}
	hit := func(s *score.Sample) float64 { c := score.HitCurve(s); return c[len(c)-1] }
	if a, b, c := hit(sample(GenOptions{Reuse: 0.3})), hit(base), hit(sample(GenOptions{Reuse: 1.5})); !(a < b && b < c) {
		t.Errorf("hit ratios %.3f, %.3f, %.3f do not rise with reuse", a, b, c)
	}
	if a, b := score.IDC(base, 10), score.IDC(sample(GenOptions{Bursts: 3}), 10); b < 1.5*a {
		t.Errorf("IDC(10 s) %.2f, with three times the bursts %.2f", a, b)
	}
}

func TestFromIsTheHourAfter(t *testing.T) {
	m, err := Load("azure-conv")
	if err != nil {
		t.Fatal(err)
	}
	a, err := m.Sample(t.Context(), GenOptions{Seed: 1})
	if err != nil {
		t.Fatal(err)
	}
	b, err := m.Sample(t.Context(), GenOptions{Seed: 1, From: seconds(m.Horizon)})
	if err != nil {
		t.Fatal(err)
	}
	if slices.Equal(score.Counts(a, 60), score.Counts(b, 60)) {
		t.Error("the hour after has the same minutes")
	}
	if r := b.Rate() / a.Rate(); math.Abs(r-1) > 0.25 {
		t.Errorf("its rate is %.2f times as high", r)
	}
}

func TestMix(t *testing.T) {
	conv, err := Load("azure-conv")
	if err != nil {
		t.Fatal(err)
	}
	code, err := Load("azure-code")
	if err != nil {
		t.Fatal(err)
	}
	m, err := Mix([]Weighted{{conv, 0.7}, {code, 0.3}})
	if err != nil {
		t.Fatal(err)
	}
	rows := rowsOfModel(t, m, GenOptions{Seed: 1})
	n := 0
	for _, r := range rows {
		if r.Class == "azure-code" {
			n++
		}
	}
	if share := float64(n) / float64(len(rows)); math.Abs(share-0.3) > 0.03 {
		t.Errorf("code is %.3f of the mix, want 0.3", share)
	}
	moon, err := Load("mooncake-conv")
	if err != nil {
		t.Fatal(err)
	}
	agents, err := Load("coding-agents")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Mix([]Weighted{{moon, 1}, {agents, 1}}); err == nil {
		t.Error("blocks of 512 and of 64 tokens were mixed")
	}
}

// Whatever a model is asked for, rows come in order, within the time, and with
// sound prefix trees.
func TestGenerateProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := fmt.Sprintf("rate=%g,arrival=gamma:cv=%g,prompt-tokens=lognormal:%g,%g,turns=geometric:%g,shared-prefix=%g,prefixes=%d,block-size=%d,clients=%d",
			rapid.Float64Range(0.1, 50).Draw(t, "rate"), rapid.Float64Range(0.1, 5).Draw(t, "cv"), rapid.Float64Range(10, 5000).Draw(t, "median"),
			rapid.Float64Range(0, 1.5).Draw(t, "sigma"), rapid.Float64Range(1, 6).Draw(t, "turns"), rapid.Float64Range(0, 1).Draw(t, "shared"),
			rapid.IntRange(1, 4).Draw(t, "prefixes"), rapid.IntRange(1, 600).Draw(t, "block"), rapid.IntRange(1, 4).Draw(t, "clients"))
		spec, err := ParseSpec(text)
		if err != nil {
			t.Fatal(err)
		}
		m, err := spec.Model()
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		o := GenOptions{Seed: rapid.Uint64().Draw(t, "seed"), Rows: 400, Duration: time.Minute, ScaleRate: rapid.Float64Range(0.2, 3).Draw(t, "scale")}
		g, err := m.Generate(o)
		if err != nil {
			return // no client is active in that time
		}
		var b score.Builder
		last := time.Duration(0)
		n := int64(0)
		for r := range g.All() {
			if r.Arrival < last || r.Arrival > o.Duration {
				t.Fatalf("%s: arrival %v after %v", text, r.Arrival, last)
			}
			if err := r.Check(); err != nil {
				t.Fatal(err)
			}
			last = r.Arrival
			n++
			if err := b.Add(r); err != nil {
				t.Fatal(err)
			}
		}
		if n == 0 || n > o.Rows {
			t.Fatalf("%s: %d rows", text, n)
		}
		if k, first := score.CheckTree(b.Sample(g.Header())); k > 0 {
			t.Fatalf("%s: %d rows break the tree: %v", text, k, first)
		}
	})
}

func TestSchemes(t *testing.T) {
	Register()
	for name, want := range map[string]int{"model:azure-conv?seed=2&rows=10": 10, "synthetic:rate=5,output-tokens=uniform:5,9?rows=7": 7} {
		r, err := traceformat.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, err := range r.All() {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		if n != want {
			t.Errorf("%s: %d rows, want %d", name, n, want)
		}
		r.Close()
	}
	for name, want := range map[string]string{
		"model:nothing":                 "no model is called nothing",
		"model:azure-conv?speed=2":      `option "speed" is not known`,
		"model:azure-conv?duration=-5m": "is no time such as 5m",
		"synthetic:rate=none":           `"none" is no number`,
	} {
		if _, err := traceformat.Open(name); err == nil || !bytes.Contains([]byte(err.Error()), []byte(want)) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}
