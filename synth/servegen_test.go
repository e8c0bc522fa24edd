package synth

import (
	"math"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

func serveGenFS(trace, dataset string) fstest.MapFS {
	dir := fstest.MapFS{"chunk-0-trace.csv": {Data: []byte(trace)}}
	if dataset != "" {
		dir["chunk-0-dataset.json"] = &fstest.MapFile{Data: []byte(dataset)}
	}
	return dir
}

func TestFromServeGen(t *testing.T) {
	m, err := FromServeGen(serveGenFS("0,0,0,,0,0\n600,2,1.5,Gamma,0.44,1\n1200,4,1,Weibull,1,1\n",
		`{"0": {"input_tokens": "{10: 0.5, 20: 0.5}", "output_tokens": "{7: 1.0}", "reason_ratio": "{0.0: 0.5, 0.5: 0.5}"}}`), 0, FitOptions{Name: "x"})
	if err != nil {
		t.Fatal(err)
	}
	g, err := m.Sample(t.Context(), GenOptions{Seed: 1, Duration: 30 * time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	// 600 s of silence, then 2 and 4 a second. A Sample starts at its first row.
	if n := float64(g.N()); math.Abs(n/3600-1) > 0.1 {
		t.Errorf("%v rows, want about 3600", n)
	}
	tens, zero := 0.0, 0.0
	for i := range g.In {
		if g.In[i] != 10 && g.In[i] != 20 || g.Out[i] != 7 {
			t.Fatalf("lengths %d, %d", g.In[i], g.Out[i])
		}
		if g.In[i] == 10 {
			tens++
		}
		if g.Reasoning[i] == 0 {
			zero++
		}
	}
	if n := float64(g.N()); math.Abs(tens/n-0.5) > 0.05 || math.Abs(zero/n-0.5) > 0.05 {
		t.Errorf("%.2f of the inputs are 10, %.2f of the answers have no reasoning; want a half", tens/n, zero/n)
	}
	// Without lengths none are made up.
	if m, err = FromServeGen(serveGenFS("0,1,1,Gamma,1,1\n600,1,1,Gamma,1,1\n", ""), 0, FitOptions{}); err != nil {
		t.Fatal(err)
	}
	if g, err = m.Sample(t.Context(), GenOptions{Rows: 10}); err != nil || g.In != nil {
		t.Errorf("lengths %v, %v", g, err)
	}
}

func TestFromServeGenRefuses(t *testing.T) {
	whole := "0,1,1,Gamma,1,1\n600,1,1,Gamma,1,1\n"
	for _, tt := range []struct{ trace, dataset, want string }{
		{"0,1,1,Gamma,1\n", "", "line 1: 5 fields, want 6"},
		{"0,1,1,Gamma,1,1\n600,x,1,Gamma,1,1\n", "", "line 2: field 2"},
		{"0,1,1,Gamma,1,1\n600,NaN,1,Gamma,1,1\n", "", "line 2: field 2"},
		{"0,1,1,Pareto,1,1\n600,1,1,Gamma,1,1\n", "", `pattern "Pareto"`},
		{"0,1,1,,1,1\n600,1,1,Gamma,1,1\n", "", "a rate without a pattern"},
		{"0,1,1,Gamma,1,1\n600,1,1,Gamma,1,1\n700,1,1,Gamma,1,1\n", "", "not equally long"},
		{"", "", "0 windows say nothing"},
		{"0,0,0,,0,0\n600,0,0,,0,0\n", "", "no client is ever active"},
		{whole, `{"0": {"input_tokens": "__import__('os')"}}`, "want {value: probability"},
		{whole, `{"0": {"input_tokens": "{1: -1}"}}`, "entry 1 is no value"},
		{whole, `{"0": {"input_tokens": "{1: 0}"}}`, "add up to nothing"},
		{whole, `{"0": `, "cut short"},
	} {
		_, err := FromServeGen(serveGenFS(tt.trace, tt.dataset), 0, FitOptions{})
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q %q: %v, want %q", tt.trace, tt.dataset, err, tt.want)
		}
	}
	if _, err := FromServeGen(fstest.MapFS{}, 0, FitOptions{}); err == nil {
		t.Error("an empty folder was taken")
	}
}
