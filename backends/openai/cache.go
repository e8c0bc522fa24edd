package openai

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"reprise/backends"
	"reprise/internal/llmapi"
	"reprise/traceformat"
)

// A slot is one of llama.cpp's sequences, with the prompt that it served last.
type slot struct {
	ID   int  `json:"id"`
	Busy bool `json:"is_processing"`
}

// CacheStatus reads the slots of llama.cpp, and the counters of its /metrics
// where that is on. Other servers give no figures.
func (b *Backend) CacheStatus(ctx context.Context) (s backends.CacheStatus, err error) {
	if b.engine != llamaCpp {
		return s, nil
	}
	var slots []slot
	if err := b.conf.AskJSON(ctx, "/slots", nil, &slots); err != nil {
		if _, ok := errors.AsType[*backends.StatusError](err); !ok {
			return s, err
		}
	}
	for _, sl := range slots {
		s.Known = true
		if sl.Busy {
			s.Running++
		}
	}
	status, answer, err := b.conf.Ask(ctx, "/metrics", nil)
	if err != nil || status != http.StatusOK {
		return s, err
	}
	page := string(answer)
	if !s.Known {
		running := backends.CountMetric(page, "llamacpp:requests_processing")
		s.Known, s.Running = running.OK, running.V
	}
	s.Waiting = backends.CountMetric(page, "llamacpp:requests_deferred").V
	computed := backends.CountMetric(page, "llamacpp:prompt_tokens_total")
	cached := backends.CountMetric(page, "llamacpp:prompt_tokens_cached_total")
	if computed.OK && cached.OK {
		s.Queries, s.Hits = traceformat.Some(computed.V+cached.V), cached
	}
	return s, nil
}

// FlushCache erases llama.cpp's slots, one by one. A slot that is at work is
// erased when it is done. What llama.cpp keeps in host memory stays.
func (b *Backend) FlushCache(ctx context.Context) (note string, err error) {
	switch b.engine {
	case llamaCpp:
	case vllm, sglang:
		return "", &backends.CacheError{
			Reason: "openai: no standard interface flushes a prefix cache",
			Next:   fmt.Sprintf("use --backend %s, which knows the engine's own, or --cache salt", b.engine),
		}
	default:
		return "", &backends.CacheError{
			Reason: "openai: this server has no interface to flush its prefix cache",
			Next:   "use --cache warm, with another --seed for prompts that it has not seen, or restart the server before each run",
		}
	}
	var slots []slot
	if err := b.conf.AskJSON(ctx, "/slots", nil, &slots); err != nil {
		return "", fmt.Errorf("llama.cpp: %w", err)
	}
	for _, sl := range slots {
		path := "/slots/" + strconv.Itoa(sl.ID) + "?action=erase"
		status, answer, err := b.conf.Ask(ctx, path, []byte{})
		switch {
		case err != nil:
			return "", err
		case status == http.StatusNotImplemented || status == http.StatusNotFound:
			return "", &backends.CacheError{
				Reason: "llama.cpp: the server does not erase slots",
				Next:   "start it with --slot-save-path DIR and --cache-ram 0, or restart it before each run",
			}
		case status != http.StatusOK:
			_, msg := llmapi.HTTPFault(status, answer)
			return "", fmt.Errorf("llama.cpp: %w", &backends.StatusError{Path: path, Status: status, Message: msg})
		}
	}
	return "llama.cpp's slots were erased, but not what it keeps of earlier prompts in host memory: start it with --cache-ram 0 to be sure", nil
}
