package sglang

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"reprise/backends"
	"reprise/internal/llmapi"
)

// CacheStatus reads /v1/loads, and the counters of /metrics where the server
// was started with --enable-metrics.
func (b *Backend) CacheStatus(ctx context.Context) (s backends.CacheStatus, err error) {
	var v struct {
		Loads []struct {
			Running int64 `json:"num_running_reqs"`
			Waiting int64 `json:"num_waiting_reqs"`
		} `json:"loads"` // one for each data-parallel rank
	}
	if err := b.conf.AskJSON(ctx, "/v1/loads", nil, &v); err != nil {
		if _, ok := errors.AsType[*backends.StatusError](err); !ok {
			return s, err
		}
	}
	for _, l := range v.Loads {
		s.Known = true
		s.Running += l.Running
		s.Waiting += l.Waiting
	}
	status, answer, err := b.conf.Ask(ctx, "/metrics", nil)
	if err != nil || status != http.StatusOK {
		return s, err
	}
	page := string(answer)
	s.Queries = backends.CountMetric(page, "sglang:prompt_tokens_total")
	s.Hits = backends.CountMetric(page, "sglang:cached_tokens_total")
	s.Queries.OK, s.Hits.OK = true, true // a counter that was never raised is not on the page
	return s, nil
}

// FlushCache empties the radix cache. SGLang refuses while requests run or
// wait.
func (b *Backend) FlushCache(ctx context.Context) (note string, err error) {
	const path = "/flush_cache"
	status, answer, err := b.conf.Ask(ctx, path, []byte{})
	switch {
	case err != nil:
		return "", err
	case status == http.StatusOK:
		return "", nil
	case status == http.StatusBadRequest:
		return "", backends.ErrCacheBusy
	case status == http.StatusNotFound || status == http.StatusMethodNotAllowed:
		return "", &backends.CacheError{
			Reason: fmt.Sprintf("sglang: there is no %s: the prefix cache cannot be flushed", path),
			Next:   "name the server itself, not a gateway in front of it, or use --cache salt, which needs no flush",
		}
	}
	_, msg := llmapi.HTTPFault(status, answer)
	return "", fmt.Errorf("sglang: %w", &backends.StatusError{Path: path, Status: status, Message: msg})
}
