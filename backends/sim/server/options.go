package server

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"reprise/backends/sim/engine"
)

// Options say what to simulate. The zero value is [engine.DefaultPreset] with
// its defaults. They travel to the child process as JSON.
type Options struct {
	Preset string       `json:"preset,omitempty"`
	Cost   *engine.Cost `json:"cost,omitempty"`   // instead of the preset's
	Fitted *CostFile    `json:"fitted,omitempty"` // in place of a preset
	Model  string       `json:"model,omitempty"`  // served name; default: the preset's model
	Listen string       `json:"listen,omitempty"` // default 127.0.0.1:0

	BlockSize           int    `json:"block_size,omitempty"` // default 16
	NumGPUBlocks        int    `json:"num_gpu_blocks,omitempty"`
	MaxNumSeqs          int    `json:"max_num_seqs,omitempty"`
	MaxNumBatchedTokens int    `json:"max_num_batched_tokens,omitempty"`
	MaxModelLen         int    `json:"max_model_len,omitempty"` // default: the preset's, or what the blocks hold
	NoPrefixCaching     bool   `json:"no_prefix_caching,omitempty"`
	Batching            string `json:"batching,omitempty"`          // continuous, static:N or prefill-first
	SchedulingPolicy    string `json:"scheduling_policy,omitempty"` // fcfs or priority
	// MeanOutput is the mean natural length of an answer, drawn from a
	// geometric distribution per request, where the client does not ask to
	// ignore the end. 0: answers have no natural end.
	MeanOutput int `json:"mean_output,omitempty"`

	Faults []Fault `json:"faults,omitempty"`
}

// keys of Options on the command line, "key=value".
const optionKeys = "preset, model, block-size, num-gpu-blocks, max-num-seqs, max-num-batched-tokens, max-model-len, prefix-caching, batching, scheduling-policy, mean-output"

// ParseOptions reads options by their command-line names, those of vLLM's flags
// where it has one. All problems are reported at once.
func ParseOptions(kv map[string]string) (Options, error) {
	var o Options
	var errs []error
	for _, k := range slices.Sorted(maps.Keys(kv)) {
		v := kv[k]
		number := func(dst *int) {
			n, err := strconv.Atoi(v)
			if err != nil || n < 1 {
				errs = append(errs, fmt.Errorf("%s is %q, want a positive number", k, v))
			}
			*dst = n
		}
		switch k {
		case "preset":
			if strings.HasSuffix(v, ".json") {
				var err error
				if o.Fitted, err = ReadCostFile(v); err != nil {
					errs = append(errs, err)
				}
				continue
			}
			o.Preset = v
		case "model":
			o.Model = v
		case "block-size":
			number(&o.BlockSize)
		case "num-gpu-blocks", "num-gpu-blocks-override":
			number(&o.NumGPUBlocks)
		case "max-num-seqs":
			number(&o.MaxNumSeqs)
		case "max-num-batched-tokens":
			number(&o.MaxNumBatchedTokens)
		case "max-model-len":
			number(&o.MaxModelLen)
		case "mean-output":
			number(&o.MeanOutput)
		case "prefix-caching":
			on, err := strconv.ParseBool(v)
			if err != nil {
				errs = append(errs, fmt.Errorf("prefix-caching is %q, want true or false", v))
			}
			o.NoPrefixCaching = !on
		case "batching":
			o.Batching = v
		case "scheduling-policy":
			o.SchedulingPolicy = v
		default:
			errs = append(errs, fmt.Errorf("no option %q; there are %s", k, optionKeys))
		}
	}
	if len(errs) > 0 {
		return o, errors.Join(errs...)
	}
	_, _, err := o.resolve()
	return o, err
}

// Validate reports every problem with o, not just the first.
func (o Options) Validate() error {
	_, _, err := o.resolve()
	return err
}

// Engine returns o with defaults filled in, and the engine that it describes.
func (o Options) Engine() (Options, engine.Config, error) { return o.resolve() }

// Describe is the configuration of an engine in words, as /server_info gives it.
// o is resolved.
func (o Options) Describe(c engine.Config) map[string]string {
	ns := func(v float64) string { return strconv.FormatFloat(v, 'g', 6, 64) }
	return map[string]string{
		"preset":                 o.Preset,
		"batching":               cmp.Or(o.Batching, "continuous"),
		"scheduling_policy":      cmp.Or(o.SchedulingPolicy, "fcfs"),
		"max_num_seqs":           strconv.Itoa(c.MaxSeqs),
		"max_num_batched_tokens": strconv.Itoa(c.MaxBatchedTokens),
		"mean_output":            strconv.Itoa(o.MeanOutput),
		"cost_step_ns":           ns(c.Cost.Step),
		"cost_seq_ns":            ns(c.Cost.Seq),
		"cost_weights_ns":        ns(c.Cost.Weights),
		"cost_token_ns":          ns(c.Cost.Token),
		"cost_pair_ns":           ns(c.Cost.Pair),
		"cost_kv_ns":             ns(c.Cost.KV),
		"cost_admit_ns":          ns(c.Cost.Admit),
	}
}

// preset is what o is a variation of.
func (o Options) preset() (engine.Preset, error) {
	if o.Fitted != nil {
		return o.Fitted.preset(), nil
	}
	return engine.PresetNamed(o.Preset)
}

// resolve fills in defaults.
func (o Options) resolve() (Options, engine.Config, error) {
	p, err := o.preset()
	if err != nil {
		return o, engine.Config{}, err
	}
	o.Preset = p.Name
	blockSize := 16
	if f := o.Fitted; f != nil {
		blockSize = f.Config.BlockSize
		o.NoPrefixCaching = o.NoPrefixCaching || f.Config.NoPrefixCaching
		o.Batching = cmp.Or(o.Batching, f.Config.Batching)
		o.Model = cmp.Or(o.Model, f.Model, f.Engine)
	}
	if o.Cost == nil {
		o.Cost = &p.Cost
	}
	if o.Model == "" {
		o.Model, _, _ = strings.Cut(p.Name, "@")
	}
	if o.Listen == "" {
		o.Listen = "127.0.0.1:0"
	}
	setDefault := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	setDefault(&o.BlockSize, blockSize)
	setDefault(&o.NumGPUBlocks, max(2, p.Blocks*blockSize/max(o.BlockSize, 1)))
	setDefault(&o.MaxNumSeqs, p.MaxSeqs)
	setDefault(&o.MaxNumBatchedTokens, p.MaxBatchedTokens)
	setDefault(&o.MaxModelLen, min(p.MaxModelLen, (o.NumGPUBlocks-1)*o.BlockSize))
	c := engine.Config{
		Cost: *o.Cost, BlockSize: o.BlockSize, Blocks: o.NumGPUBlocks, MaxSeqs: o.MaxNumSeqs,
		MaxBatchedTokens: o.MaxNumBatchedTokens, MaxModelLen: o.MaxModelLen, PrefixCaching: !o.NoPrefixCaching,
		VocabLow: VocabLow, VocabSize: VocabEnd - VocabLow,
	}
	var errs []error
	switch kind, size, _ := strings.Cut(o.Batching, ":"); kind {
	case "", "continuous":
	case "prefill-first":
		c.Batching = engine.PrefillFirst
	case "static":
		c.Batching = engine.Static
		if c.StaticSize, err = strconv.Atoi(size); err != nil {
			errs = append(errs, fmt.Errorf("batching is %q, want static:N with a number of sequences", o.Batching))
			c.StaticSize = 1
		}
	default:
		errs = append(errs, fmt.Errorf("batching is %q, want continuous, static:N or prefill-first", o.Batching))
	}
	switch o.SchedulingPolicy {
	case "", "fcfs":
	case "priority":
		c.Priority = true
	default:
		errs = append(errs, fmt.Errorf("scheduling policy is %q, want fcfs or priority", o.SchedulingPolicy))
	}
	if o.MeanOutput < 0 {
		errs = append(errs, fmt.Errorf("mean output is %d tokens, want at least 1, or 0 for none", o.MeanOutput))
	}
	for i, f := range o.Faults {
		if err := f.validate(); err != nil {
			errs = append(errs, fmt.Errorf("fault %d: %w", i, err))
		}
	}
	errs = append(errs, c.Validate())
	return o, c, errors.Join(errs...)
}
