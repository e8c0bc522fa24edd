package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"reprise/backends"
	"reprise/backends/sim/server"
	"reprise/backends/vllm"
)

func init() {
	backends.Register("sim", func(c backends.Config) (backends.Backend, error) { return New(c) })
}

// A Backend is a simulated engine that runs already. Its dialect is vLLM's.
type Backend struct {
	*vllm.Backend
	conf backends.Config
}

var _ backends.Backend = (*Backend)(nil)

// New returns a Backend for the engine at c.URL, which [Start] gave. The
// options of c are those of [ParseOptions]; they are checked, and otherwise
// concern the process alone.
func New(c backends.Config) (*Backend, error) {
	if _, err := ParseOptions(c.Options); err != nil {
		return nil, fmt.Errorf("sim: %w", err)
	}
	if c.URL == "" {
		return nil, errors.New("sim: no address: the engine must be started first")
	}
	c.Options = nil
	v, err := vllm.New(c)
	if err != nil {
		return nil, fmt.Errorf("sim: %w", err)
	}
	return &Backend{Backend: v, conf: c}, nil
}

// Words returns words of the simulated vocabulary: a text of them, each after a
// space, has as many tokens. They are as few as an honest vocabulary of a small
// model has, spread over all of it.
func (b *Backend) Words() []string {
	const n = 4096
	words := make([]string, n)
	for i := range words {
		id := server.VocabLow + i*(server.VocabEnd-server.VocabLow)/n
		words[i] = strings.TrimPrefix(server.Detokenize([]uint32{uint32(id)}), " ")
	}
	return words
}

// Probe implements [backends.Backend].
func (b *Backend) Probe(ctx context.Context) (*backends.Info, error) {
	i, err := b.Backend.Probe(ctx)
	if err != nil {
		return nil, err
	}
	var info struct {
		Config map[string]string `json:"sim_config"`
	}
	if err := b.conf.AskJSON(ctx, "/server_info", nil, &info); err != nil {
		return nil, fmt.Errorf("sim: %w", err)
	}
	if info.Config["preset"] == "" {
		return nil, fmt.Errorf("sim: the server at %s is not a simulated engine", b.conf.URL)
	}
	i.Engine = "sim"
	if i.Config == nil {
		i.Config = map[string]string{}
	}
	maps.Copy(i.Config, info.Config)
	// The driver of a real engine must guess at these.
	i.MinID, i.VocabSize = server.VocabLow, server.VocabEnd
	i.Config["vocab_source"] = "simulated, " + strconv.Itoa(server.VocabEnd) + " tokens"
	return i, nil
}
