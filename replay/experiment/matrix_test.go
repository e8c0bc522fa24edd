package experiment

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// some flags of replay.
type some []string

func (s some) Known(name string) bool { return slices.Contains(s, name) }

var known = some{"seed", "limit", "rate", "arrival", "cache", "slo", "synthetic", "batch", "concurrency"}

func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "m.yaml")
}

func expand(t testing.TB, text string, set ...string) ([]Cell, []Factor) {
	t.Helper()
	m, err := ReadMatrix(write(t, map[string]string{"m.yaml": text}), set)
	if err != nil {
		t.Fatal(err)
	}
	cells, factors, err := m.Expand(known)
	if err != nil {
		t.Fatal(err)
	}
	return cells, factors
}

func TestFullDesign(t *testing.T) {
	cells, factors := expand(t, `
traces: [{name: a, trace: a.parquet, replay: {limit: 5}}, {name: b, synthetic: "rate=1"}]
backends: [sim, {name: far, backend: vllm, url: http://h:1, options: {x: 1}}]
factors:
  rate: {levels: [5, 10], unit: requests/s}
  how: {levels: {plain: , paced: {replay: {arrival: poisson, limit: 7}}}}
replay: {seed: 3, limit: 1}
slos: ["ttft.p99<500ms", "itl.p50<20ms"]
`)
	if len(cells) != 16 || len(factors) != 4 {
		t.Fatalf("%d cells of %d factors", len(cells), len(factors))
	}
	var names []string
	for _, c := range cells {
		names = append(names, c.Name)
		want := []string{"limit=5", "rate=" + c.Factors["rate"], "seed=3", "slo=ttft<500ms"}
		if c.Factors["trace"] == "b" {
			want[0] = "limit=1"
			want = append(want, "synthetic=rate=1")
		}
		if c.Factors["how"] == "paced" {
			want[0] = "limit=7"
			want = append(want, "arrival=poisson")
		}
		if c.Factors["backend"] == "far" { // it stays up, and keeps its cache
			want = append(want, "cache=salt")
		}
		slices.Sort(want)
		if !slices.Equal(c.Flags, want) {
			t.Errorf("%s has %v, want %v", c.Name, c.Flags, want)
		}
	}
	if slices.Sort(names); len(slices.Compact(names)) != 16 {
		t.Errorf("names %v", names)
	}
	if f := factors[3]; f.Name != "how" || f.Kind != "replay" || !slices.Equal(f.Levels, []string{"plain", "paced"}) {
		t.Errorf("%+v", f)
	}
}

// Every pair of levels of any two factors comes exactly once.
func TestLatinSquare(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.SampledFrom([]int{2, 3, 4, 5, 6, 7}).Draw(t, "levels")
		most := 3
		if prime(n) {
			most = n + 1
		}
		k := rapid.IntRange(3, most).Draw(t, "factors")
		m := &Matrix{Seed: rapid.Uint64().Draw(t, "seed")}
		axes := []axis{{Factor: Factor{Name: "trace", Levels: []string{"t"}}}}
		for i := range k {
			axes = append(axes, axis{Factor: Factor{Name: string(rune('a' + i)), Levels: make([]string, n)}})
		}
		combos, err := m.latin(axes)
		if err != nil || len(combos) != n*n {
			t.Fatalf("%d cells, %v", len(combos), err)
		}
		for a := 1; a <= k; a++ {
			for b := a + 1; b <= k; b++ {
				seen := map[[2]int]bool{}
				for _, c := range combos {
					seen[[2]int{c[a], c[b]}] = true
				}
				if len(seen) != n*n {
					t.Fatalf("%d levels, factors %d and %d: %d pairs of %d", n, a, b, len(seen), n*n)
				}
			}
		}
	})
	axes := []axis{{Factor: Factor{Levels: make([]string, 4)}}, {Factor: Factor{Levels: make([]string, 4)}}, {Factor: Factor{Levels: make([]string, 4)}}, {Factor: Factor{Levels: make([]string, 4)}}}
	if _, err := (&Matrix{}).latin(axes); err == nil {
		t.Error("four factors of four levels are no such square")
	}
	if _, err := (&Matrix{}).latin(axes[:2]); err == nil {
		t.Error("two factors have no fraction")
	}
}

func TestChosenAndExcluded(t *testing.T) {
	cells, _ := expand(t, `
traces: [t.parquet]
factors: {rate: {levels: [1, 2, 3]}, seed: {levels: [1, 2]}}
design: cells
cells: [{rate: 3}, {rate: 2, seed: 2}]
exclude: [{rate: 2, reason: it was asked for}]
`)
	if len(cells) != 2 || cells[0].Factors["rate"] != "3" || cells[0].Factors["seed"] != "1" || cells[0].Skipped != "" || cells[1].Skipped != "it was asked for" {
		t.Errorf("%+v", cells)
	}
}

func TestSet(t *testing.T) {
	const text = "title: a\ntraces: [t.parquet]\nreplay: {limit: 9}\nfactors: {rate: {unit: rps, levels: [1, 2, 3]}, how: {levels: {x: , y: {replay: {seed: 5}}, z: }}}\n"
	cells, factors := expand(t, text, "repeats=4", "limit=2", "replay.seed=8", "factors.rate=7,1", "factors.how=y", "backends=sim=llama-3-8b@a100", "traces=u.parquet,v.parquet")
	if len(cells) != 4 || cells[0].Arg != "sim=llama-3-8b@a100" || !slices.Equal(factors[1].Levels, []string{"7", "1"}) || factors[1].Unit != "rps" {
		t.Errorf("%+v, %+v", cells, factors)
	}
	if want := []string{"limit=2", "rate=7", "seed=5"}; !slices.Equal(cells[0].Flags, want) {
		t.Errorf("flags %v, want %v", cells[0].Flags, want)
	}
	for _, set := range []string{"nothing", "=1", "factors.no=1", "factors.how=w", "sorts.x=1", "repeats=many", "repeats=-1", "design=random", "slos=fast"} {
		if m, err := ReadMatrix(write(t, map[string]string{"m.yaml": text}), []string{set}); err == nil {
			t.Errorf("--set %s was taken: %+v", set, m)
		}
	}
}

func TestExtends(t *testing.T) {
	name := write(t, map[string]string{
		"m.yaml": "extends: b.yaml\nreplay: {limit: 2}\nfactors: {seed: {levels: [1]}}\n",
		"b.yaml": "extends: c.yaml\ntitle: b\n",
		"c.yaml": "title: c\nquestion: why\ntraces: [t.parquet]\nreplay: {limit: 1, rate: 4}\nfactors: {rate: {levels: [5]}}\n", "t.parquet": "",
	})
	m, err := ReadMatrix(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	cells, factors, err := m.Expand(known)
	if err != nil || m.Title != "b" || m.Question != "why" || len(factors) != 2 || cells[0].Source != filepath.Join(filepath.Dir(name), "t.parquet") {
		t.Errorf("%+v, %+v, %v", m, cells, err)
	}
	if want := []string{"limit=2", "rate=5", "seed=1"}; !slices.Equal(cells[0].Flags, want) {
		t.Errorf("flags %v, want %v", cells[0].Flags, want)
	}
}

// Mistakes are named with their line, where YAML knows it.
func TestMatrixMistakes(t *testing.T) {
	for text, want := range map[string]string{
		"":                                   "is empty",
		"traces: [t]\nreapeats: 2\n":         "[2:1] unknown field \"reapeats\"",
		"traces: [t]\nrepeats: many\n":       "[2:",
		"title: x\n":                         "traces is missing",
		"traces: [t, t]\n":                   "two traces are named t",
		"traces: [{name: x}]\n":              "want one of trace and synthetic",
		"traces: [{trace: x, sinthetic: y}]": "sinthetic",
		"traces: [t]\nfactors: {rate: {levels: []}}":                   "has no levels",
		"traces: [t]\nfactors: {rate: {levels: [1, 1]}}":               "two levels of rate are named 1",
		"traces: [t]\nfactors: {trace: {levels: [1]}}":                 "no factor can be named trace",
		"traces: [t]\nfactors: {rate: {kind: speed, levels: [1]}}":     "kind is \"speed\"",
		"traces: [t]\nfactors: {rate: {levels: {a: {reply: {x: 1}}}}}": "reply",
		"traces: [t]\ndesign: cells":                                   "go together",
		"traces: [t]\nbackends: [{name: x}]":                           "neither named",
		"traces: [t]\nbackends: [vllm]":                                "no url",
		"traces: [t]\nreplay: {outputt: 1}":                            "replay has no flag --outputt",
		"traces: [t]\nexclude: [{reason: none}]":                       "names no factor",
		"traces: [t]\nexclude: [{trace: t}]":                           "every cell is excluded",
	} {
		m, err := ReadMatrix(write(t, map[string]string{"m.yaml": text}), nil)
		if err == nil {
			_, _, err = m.Expand(known)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

// Whatever a file holds is refused or makes cells that hold together.
func FuzzMatrix(f *testing.F) {
	f.Add("traces: [t]\nfactors: {rate: {levels: [1, 2]}, seed: {levels: {a: , b: {replay: {seed: 2}}}}}\nexclude: [{rate: 1}]\n")
	f.Add("traces: [t, u]\ndesign: latin-square\nfactors: {rate: {levels: [1, 2]}, x: {levels: [1, 2]}}\n")
	f.Add("extends: m.yaml\n")
	f.Fuzz(func(t *testing.T, text string) {
		m, err := ReadMatrix(write(t, map[string]string{"m.yaml": text}), nil)
		if err != nil {
			return
		}
		cells, factors, err := m.Expand(known)
		if err != nil {
			return
		}
		p := &Plan{Version: Version, Repeats: m.Repeats, Seed: m.Seed, Cells: cells, Factors: factors}
		if p.Schedule(); p.Validate() != nil {
			t.Fatalf("%q makes a plan that is none: %v", text, p.Validate())
		}
		for _, c := range cells {
			for name := range maps.Keys(c.Factors) {
				if !slices.ContainsFunc(factors, func(f Factor) bool { return f.Name == name && slices.Contains(f.Levels, c.Factors[name]) }) {
					t.Fatalf("%q: cell %s has %s=%s, which is no level", text, c.Name, name, c.Factors[name])
				}
			}
		}
	})
}

// TestAliasBomb refuses a file of a few hundred bytes that would be written out
// to tens of millions.
func TestAliasBomb(t *testing.T) {
	var b strings.Builder
	b.WriteString("traces: [model:chat]\nbackends: [sim]\nreplay:\n  l0: &l0 x\n")
	for _, level := range []string{"01", "12", "23", "34", "45", "56", "67"} {
		b.WriteString("  l" + level[1:] + ": &l" + level[1:] + " [" + strings.Repeat("*l"+level[:1]+", ", 9) + "*l" + level[:1] + "]\n")
	}
	if _, err := ReadMatrix(write(t, map[string]string{"m.yaml": b.String()}), nil); err == nil || !strings.Contains(err.Error(), "with its aliases written out") {
		t.Errorf("the error is %v", err)
	}
}
