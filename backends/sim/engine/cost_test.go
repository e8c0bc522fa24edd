package engine

import (
	"math"
	"testing"
	"time"
)

func preset(t *testing.T, name string) Preset {
	t.Helper()
	p, err := PresetNamed(name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// The presets must give back the profiles that their constants were fitted to:
// Vidur's MLP profiles, TP1, 32 layers (milliseconds).
func TestPresetsMeetTheirProfiles(t *testing.T) {
	tests := []struct {
		preset  string
		tokens  int
		want    float64
		percent float64
	}{
		{"llama-3-8b@a100", 512, 34.6, 7},
		{"llama-3-8b@a100", 2048, 146, 7},
		{"llama-3-8b@a100", 4096, 274, 7},
		{"llama-3-8b@a100", 32, 10.45, 7}, // 9.7 to 11.2: the weights
		// Measured for the 7B, whose linear layers have 1/1.08 of the parameters.
		{"llama-3-8b@h100", 512, 12.0 * 1.08, 15},
		{"llama-3-8b@h100", 2048, 40 * 1.08, 7},
		{"llama-3-8b@h100", 4096, 83 * 1.08, 7},
		{"llama-3-8b@h100", 32, 6.45, 7}, // 6.3 to 6.6
	}
	for _, tt := range tests {
		c := preset(t, tt.preset).Cost
		got := max(c.Weights, c.Token*float64(tt.tokens)) / 1e6
		if off := math.Abs(got-tt.want) / tt.want * 100; off > tt.percent {
			t.Errorf("%s: linear layers of %d tokens take %.1f ms, profiled %.1f: %.0f %% off, want %v", tt.preset, tt.tokens, got, tt.want, off, tt.percent)
		}
	}
	for name, knee := range map[string][2]float64{"llama-3-8b@a100": {128, 170}, "llama-3-8b@h100": {200, 305}} {
		c := preset(t, name).Cost
		if k := c.Weights / c.Token; k < knee[0] || k > knee[1] {
			t.Errorf("%s: the knee is at %.0f tokens, want %v", name, k, knee)
		}
	}
}

// An independent check: vLLM's nightly benchmark of Llama-3.1-8B on one H200,
// batch 8, 32 tokens in, 128 out, took 833 ms.
func TestH200AgainstVLLMNightly(t *testing.T) {
	p := preset(t, "llama-3-8b@h200")
	c := p.Cost
	c.Admit = 0 // the benchmark calls the engine directly
	e := mustNew(t, Config{
		Cost: c, BlockSize: 16, Blocks: p.Blocks, MaxSeqs: p.MaxSeqs, MaxBatchedTokens: p.MaxBatchedTokens,
		MaxModelLen: p.MaxModelLen, PrefixCaching: true, VocabLow: 1000, VocabSize: 1000,
	})
	var reqs []*Request
	for i := range 8 {
		reqs = append(reqs, &Request{Prompt: prompt(i, 32), MaxTokens: 128})
	}
	_, end := run(t, e, 0, reqs...)
	if ms := end.Seconds() * 1000; ms < 833*.85 || ms > 833*1.15 {
		t.Errorf("the batch takes %.0f ms, measured 833", ms)
	}
}

// The formula term by term, with constants that tell the terms apart.
func TestCostFormula(t *testing.T) {
	c := Cost{Step: 1e9, Seq: 1e7, Weights: 5e5, Token: 1e5, Pair: 1000, KV: 1}
	var l load
	l.add(10, 4) // 4 tokens behind 10: 4*10 + 4*5/2 = 50 pairs
	l.add(99, 1) // a decode that reads 100
	if got, want := c.of(l), time.Duration(1e9+2*1e7+5e5+50*1000+100); got != want {
		t.Errorf("cost of %+v = %v, want %v", l, got, want)
	}
	l.add(0, 10) // 15 tokens: beyond the knee
	if got, want := c.of(l), time.Duration(1e9+3*1e7+15e5+105*1000+100); got != want {
		t.Errorf("cost of %+v = %v, want %v", l, got, want)
	}
	// A prompt in chunks attends to as many pairs as a whole one.
	var whole, chunked load
	whole.add(0, 1000)
	for at := 0; at < 1000; at += 250 {
		chunked.add(at, 250)
	}
	if whole.pairs != chunked.pairs {
		t.Errorf("pairs of a prompt: %d whole, %d in chunks", whole.pairs, chunked.pairs)
	}
}

func TestPresetNames(t *testing.T) {
	for _, name := range Presets() {
		p := preset(t, name)
		if err := p.Cost.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if p.Name != name {
			t.Errorf("%s: preset %+v", name, p)
		}
	}
	if p := preset(t, ""); p.Name != DefaultPreset {
		t.Errorf("the default is %s", p.Name)
	}
	if _, err := PresetNamed("gpt-5@abacus"); err == nil {
		t.Error("an unknown preset was found")
	}
}
