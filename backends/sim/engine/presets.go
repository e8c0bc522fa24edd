package engine

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// A Preset is a model on a GPU.
type Preset struct {
	Name   string
	Cost   Cost
	Blocks int // KV blocks of 16 tokens, the null block included
	// MaxBatchedTokens and MaxSeqs are vLLM's defaults for the device's API
	// server.
	MaxBatchedTokens, MaxSeqs int
	MaxModelLen               int // of Llama 3.1, the same network; Llama 3 itself was trained on 8192
}

// DefaultPreset is what is simulated unless told otherwise.
const DefaultPreset = "llama-3-8b@h100"

// Constants of Llama-3-8B in bf16 on one GPU, shared by its presets.
const (
	// 32 layers x 8 KV heads x 128 x (K and V) x 2 bytes.
	kvBytes = 131072
	// 8.03e9 parameters x 2 bytes.
	weightBytes = 16.06e9
	// Time to read all weights over the time the data sheet's bandwidth gives:
	// 1.36 meets the profiled small-batch time of the A100 (10.7 ms against
	// 9.7-11.2) and of the H100 (6.5 against 6.3-6.6).
	weightSlowdown = 1.36
	// Share of the data sheet's bandwidth that decode attention reaches.
	kvEfficiency = 0.8

	// BLIS trained_physics_coefficients, fitted to vLLM on H100: 0.13 ms plus
	// 32 us for each of 32 layers per step; 4.4 us per sequence; 15.6 ms from
	// the arrival of a request to the queue.
	stepNs, seqNs, admitNs = 1.15e6, 4.4e3, 15.6e6
)

// llama8B is Llama-3-8B on a GPU with the given memory bandwidth (bytes/s).
// tokenNs is profiled, pairNs derived: 4 x 4096 x 32 FLOP at half the peak.
func llama8B(bandwidth, tokenNs, pairNs float64) Cost {
	return Cost{
		Step: stepNs, Seq: seqNs, Admit: admitNs,
		Weights: weightBytes / bandwidth * weightSlowdown * 1e9,
		Token:   tokenNs,
		Pair:    pairNs,
		KV:      kvBytes / (kvEfficiency * bandwidth) * 1e9,
	}
}

// Where the constants come from:
//   - Token: Vidur's data/profiling/compute/{a100,h100}/**/mlp.csv, medians at
//     TP1 of 256 to 4096 tokens, times 32 layers. The H100's profile is of
//     Llama-2-7B (20.1 us), scaled by the parameters of the linear layers;
//   - Weights: 16.06 GB over the data sheet's bandwidth, times 1.36; checked
//     against the same profiles at 1 to 64 tokens;
//   - Pair: derived, 4 x 4096 x 32 FLOP at half the data sheet's bf16 peak. Not
//     measured;
//   - KV: derived, 128 KiB a token at 80 % of the data sheet's bandwidth. BLIS's
//     fit for the H100 is 1.6 times that;
//   - Step, Seq, Admit: BLIS, fitted on the H100 and used for all;
//   - Blocks: memory x 0.9, less 16 GB of weights and 3 GB, over 2 MiB a block;
//   - MaxBatchedTokens, MaxSeqs: vLLM 0.32's defaults by device.
var presets = map[string]Preset{
	// 312 TFLOP/s, 2.04 TB/s, 80 GB.
	"llama-3-8b@a100": {Cost: llama8B(2.04e12, 67e3, 3.4), Blocks: 25_000, MaxBatchedTokens: 2048, MaxSeqs: 256},
	// 989 TFLOP/s, 3.35 TB/s, 80 GB.
	"llama-3-8b@h100": {Cost: llama8B(3.35e12, 21.7e3, 1.05), Blocks: 25_000, MaxBatchedTokens: 8192, MaxSeqs: 1024},
	// The H100's arithmetic with 4.8 TB/s and 141 GB: only terms of bandwidth
	// and capacity differ.
	"llama-3-8b@h200": {Cost: llama8B(4.8e12, 21.7e3, 1.05), Blocks: 51_000, MaxBatchedTokens: 8192, MaxSeqs: 1024},
}

// Presets lists the names of the presets.
func Presets() []string { return slices.Sorted(maps.Keys(presets)) }

// PresetNamed returns a preset; the empty name is [DefaultPreset].
func PresetNamed(name string) (Preset, error) {
	if name == "" {
		name = DefaultPreset
	}
	p, ok := presets[strings.ToLower(name)]
	if !ok {
		return Preset{}, fmt.Errorf("no simulated engine %q; there are %s", name, strings.Join(Presets(), ", "))
	}
	p.Name = strings.ToLower(name)
	p.MaxModelLen = 131_072
	return p, nil
}
