package main

import (
	"context"
	"fmt"
	"time"

	urfave "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/internal/tokenizer"
	"reprise/replay"
)

// maxCalibration bounds what finding the words of a server takes: tens of short
// questions, and three requests of one token.
const maxCalibration = time.Minute

// loadTokenizer reads the file of --tokenizer; nil without one.
func loadTokenizer(c *urfave.Context) (*tokenizer.Tokenizer, error) {
	path := c.String("tokenizer")
	if path == "" {
		return nil, nil
	}
	t, err := tokenizer.Load(path)
	if err != nil {
		return nil, &cli.Error{Code: cli.Failed, Err: err, Hint: "a server with /tokenize (vLLM, SGLang, llama.cpp) needs no --tokenizer"}
	}
	return t, nil
}

// findWords chooses what the prompts of a server that takes text are made of;
// nil for one that takes token ids.
func findWords(ctx context.Context, c *urfave.Context, s *server, file *tokenizer.Tokenizer) (*replay.Words, error) {
	if s.backend.TokenIDs() {
		if file != nil {
			return nil, cli.Usagef("add --chat to send text", "--tokenizer is for prompts sent as text, and %s takes token ids", s.name)
		}
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, maxCalibration)
	defer cancel()
	w, err := replay.FindWords(ctx, replay.WordConfig{Backend: s.backend, Info: s.info, Ask: s.ask, File: file})
	if err != nil {
		if path := c.String("tokenizer"); path != "" {
			err = fmt.Errorf("%s: %w", path, err)
		}
		return nil, fmt.Errorf("finding words of one token at %s: %w", s.url, err)
	}
	return w, nil
}
