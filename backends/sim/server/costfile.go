package server

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"reprise/backends/sim/engine"
)

// CostFileVersion is the version of cost.json that this package reads.
const CostFileVersion = 1

// maxCostFile bounds a cost.json.
const maxCostFile = 1 << 20

// A CostFile is cost.json: the cost model of a real engine as it was fitted to a
// run against it, that engine's configuration, and how well a simulation of
// runs with it meets what was measured. `--backend sim=cost.json` simulates it.
type CostFile struct {
	Version int         `json:"version"`
	Created time.Time   `json:"created"`
	Program string      `json:"program"`         // what fitted it
	Name    string      `json:"name,omitempty"`  // of the file; set when it is read
	Engine  string      `json:"engine"`          // that was measured
	Release string      `json:"engine_version"`  // its version
	Model   string      `json:"model,omitempty"` //
	Cost    engine.Cost `json:"cost"`

	Config      CostConfig  `json:"config"`
	Assumed     []string    `json:"config_assumed,omitempty"` // of Config, what neither the run nor an option said
	Fit         CostRun     `json:"fit"`
	Validations []CostRun   `json:"validations,omitempty"` // on other runs
	Evaluations int         `json:"evaluations"`           // simulations that the fit took
	Loss        float64     `json:"loss"`                  // what it minimised
	Start       engine.Cost `json:"start"`                 // where it began
}

// A CostConfig is the configuration that a cost was fitted under.
type CostConfig struct {
	BlockSize           int    `json:"block_size"`
	NumGPUBlocks        int    `json:"num_gpu_blocks"`
	MaxNumSeqs          int    `json:"max_num_seqs"`
	MaxNumBatchedTokens int    `json:"max_num_batched_tokens"`
	MaxModelLen         int    `json:"max_model_len"`
	NoPrefixCaching     bool   `json:"no_prefix_caching,omitempty"`
	Batching            string `json:"batching,omitempty"`
}

// A CostRun compares a run with its simulation.
type CostRun struct {
	Run      string       `json:"run"`    // its folder's name
	Trace    string       `json:"trace"`  // that it played
	Digest   string       `json:"digest"` // of its work
	Requests int64        `json:"requests"`
	Rate     float64      `json:"requests_per_second"`
	Errors   []CostError  `json:"errors"`
	PerRow   []CostSpread `json:"per_request"`
	// Cached are prompt tokens found in the cache, as reported and simulated.
	Cached    int64 `json:"cached_tokens"`
	Simulated int64 `json:"cached_tokens_simulated"`
}

// A CostError is one figure, measured and simulated.
type CostError struct {
	Metric    string        `json:"metric"` // ttft, e2e, tpot
	Quantile  float64       `json:"quantile"`
	Measured  time.Duration `json:"measured_ns"`
	Simulated time.Duration `json:"simulated_ns"`
	Error     float64       `json:"error"` // simulated / measured - 1
}

// A CostSpread is how far single requests are off: quantiles of
// |simulated / measured - 1|.
type CostSpread struct {
	Metric string  `json:"metric"`
	P50    float64 `json:"p50"`
	P90    float64 `json:"p90"`
}

// ReadCostFile reads and checks a cost.json.
func ReadCostFile(path string) (*CostFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: replay sim-fit RUN -o %s makes one", err, path)
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case info.Size() > maxCostFile:
		return nil, fmt.Errorf("%s: %d bytes are no cost.json", path, info.Size())
	}
	c := &CostFile{}
	d := json.NewDecoder(f)
	if err := d.Decode(c); err != nil {
		return nil, fmt.Errorf("%s: no cost.json of replay sim-fit: %w", path, err)
	}
	if c.Version != CostFileVersion {
		return nil, fmt.Errorf("%s: version %d, want %d", path, c.Version, CostFileVersion)
	}
	c.Name = filepath.Base(path)
	if err := c.Cost.Validate(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	k := c.Config
	if k.BlockSize < 1 || k.NumGPUBlocks < 2 || k.MaxNumSeqs < 1 || k.MaxNumBatchedTokens < 1 || k.MaxModelLen < 2 {
		return nil, fmt.Errorf("%s: its config lacks sizes: %+v", path, k)
	}
	return c, nil
}

// Encode is the file's content.
func (c *CostFile) Encode() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	err := e.Encode(c)
	return b.Bytes(), err
}

// preset is the engine of the file in place of a preset.
func (c *CostFile) preset() engine.Preset {
	return engine.Preset{
		Name: c.Name, Cost: c.Cost, Blocks: c.Config.NumGPUBlocks,
		MaxBatchedTokens: c.Config.MaxNumBatchedTokens, MaxSeqs: c.Config.MaxNumSeqs, MaxModelLen: c.Config.MaxModelLen,
	}
}
