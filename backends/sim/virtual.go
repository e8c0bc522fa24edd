package sim

import (
	"fmt"
	"strconv"

	"reprise/backends"
	"reprise/backends/sim/engine"
	"reprise/backends/sim/server"
)

// Virtual is the engine of o for a run in virtual time, and what a probe of its
// server would have said of it.
func Virtual(o Options) (engine.Config, *backends.Info, error) {
	o, c, err := o.Engine()
	if err != nil {
		return c, nil, fmt.Errorf("sim: %w", err)
	}
	i := &backends.Info{
		Engine: "sim", Version: server.Version, Model: o.Model, MaxLen: c.MaxModelLen, VocabSize: server.VocabEnd, MinID: server.VocabLow,
		Cache: backends.CacheInfo{
			Off: !c.PrefixCaching || c.Batching == engine.Static, Block: c.BlockSize, Tokens: int64(c.Blocks-1) * int64(c.BlockSize), Salt: true,
		},
		Config: o.Describe(c),
	}
	i.Config["block_size"] = strconv.Itoa(c.BlockSize)
	i.Config["num_gpu_blocks"] = strconv.Itoa(c.Blocks)
	return c, i, nil
}
