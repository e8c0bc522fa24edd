package synth

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"reprise/synth/score"
	"reprise/traceformat"
	_ "reprise/traceformat/convert"
)

// REPRISE_UPDATE_MODELS=1 go test -run TestShippedModels ./synth fits the
// shipped models again, from the public traces in the shared folder.
var updateModels = os.Getenv("REPRISE_UPDATE_MODELS") != ""

var sources = []struct {
	name, glob string
	source     Source
}{
	{"azure-conv", "azure-llm-2023/AzureLLMInferenceTrace_conv.csv", Source{Trace: "AzureLLMInferenceTrace_conv.csv", Address: "https://github.com/Azure/AzurePublicDataset", Licence: "CC-BY-4.0", Cite: "Patel et al., Splitwise, ISCA 2024"}},
	{"azure-code", "azure-llm-2023/AzureLLMInferenceTrace_code.csv", Source{Trace: "AzureLLMInferenceTrace_code.csv", Address: "https://github.com/Azure/AzurePublicDataset", Licence: "CC-BY-4.0", Cite: "Patel et al., Splitwise, ISCA 2024"}},
	{"mooncake-conv", "mooncake/conversation_trace.jsonl", Source{Trace: "conversation_trace.jsonl", Address: "https://github.com/kvcache-ai/Mooncake", Licence: "Apache-2.0", Cite: "Qin et al., Mooncake, FAST 2025"}},
	{"coding-agents", "kv-cache-tester/*.json", Source{Trace: "22 sessions", Address: "https://github.com/callanjfox/kv-cache-tester", Licence: "Apache-2.0"}},
	{"servegen-m-mid", "servegen/language/m-mid", Source{Trace: "language/m-mid", Address: "https://github.com/alibaba/ServeGen", Licence: "Apache-2.0", Cite: "Xiang et al., ServeGen, arXiv:2505.09999"}},
	{"servegen-deepseek-r1", "servegen/reason/deepseek-r1", Source{Trace: "reason/deepseek-r1", Address: "https://github.com/alibaba/ServeGen", Licence: "Apache-2.0", Cite: "Xiang et al., ServeGen, arXiv:2505.09999"}},
}

// publicTraces is the folder of the public traces, or ends the test.
func publicTraces(t testing.TB) string {
	t.Helper()
	shared := os.Getenv("REPRISE_SHARED")
	if shared == "" {
		shared = "../shared"
	}
	if !filepath.IsAbs(shared) {
		shared = filepath.Join("..", shared) // it is relative to the top of the repository
	}
	dir := filepath.Join(shared, "traces")
	if _, err := os.Stat(dir); err != nil {
		t.Skip("needs the public traces: set REPRISE_SHARED to their folder")
	}
	return dir
}

// publicSample loads one public trace, or several files of one as one trace.
func publicSample(t testing.TB, glob string) *score.Sample {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(publicTraces(t), glob))
	if err != nil || len(paths) == 0 {
		t.Skipf("needs the public trace %s", glob)
	}
	var parts []traceformat.Source
	for _, p := range paths {
		r, err := traceformat.Open(p)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		sorted, err := traceformat.Sorted(r, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer sorted.Close()
		parts = append(parts, traceformat.Source{Name: filepath.Base(p), Reader: sorted})
	}
	r := parts[0].Reader
	if len(parts) > 1 {
		if r, err = traceformat.Merge(parts...); err != nil {
			t.Fatal(err)
		}
	}
	s, err := score.Load(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func updateModel(t *testing.T, name, glob string, source Source) {
	dir := publicTraces(t)
	var m *Model
	var err error
	o := FitOptions{Name: name, Source: source, Seed: 1}
	if path := filepath.Join(dir, glob); IsServeGen(path) {
		// A week is what a model file of a readable size holds.
		m, err = FromServeGen(os.DirFS(path), 7*86400, o)
	} else {
		m, _, err = Fit(t.Context(), publicSample(t, glob), o)
	}
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := m.Write(&b); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join("models", name+".json"), b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %d bytes, %s", name, b.Len(), m.Fit.Verdict)
}

func TestShippedModels(t *testing.T) {
	for _, s := range sources {
		t.Run(s.name, func(t *testing.T) {
			if updateModels {
				updateModel(t, s.name, s.glob, s.source)
				return
			}
			m, err := Load(s.name)
			if err != nil {
				t.Fatal(err)
			}
			if m.HoldsSourceRows {
				t.Error("holds source rows")
			}
			if m.Name != s.name || m.Source.Licence == "" || m.Source.Address == "" || m.Fit == nil || len(m.DoesNotKeep) == 0 {
				t.Errorf("says too little of itself: %q, %+v", m.Name, m.Source)
			}
			g, err := m.Sample(t.Context(), GenOptions{Seed: 1, Rows: 3000})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.IsSorted(g.Arrival) || g.N() != 3000 {
				t.Errorf("%d rows, sorted %t", g.N(), slices.IsSorted(g.Arrival))
			}
			if m.Blocks != nil {
				if n, first := score.CheckTree(g); n > 0 || !g.HasBlocks() {
					t.Errorf("%d rows break the tree: %v", n, first)
				}
			}
		})
	}
	if updateModels {
		return
	}
	var names []string
	for _, s := range sources {
		names = append(names, s.name)
	}
	slices.Sort(names)
	if got := Shipped(); !slices.Equal(got, names) {
		t.Errorf("Shipped() = %v, want %v", got, names)
	}
}
