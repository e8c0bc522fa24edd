package vllm

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"

	"reprise/backends"
	"reprise/internal/llmapi"
)

// cacheInfo reads the labels of vllm:cache_config_info. One block is vLLM's
// null block and holds nothing.
func cacheInfo(config map[string]string) backends.CacheInfo {
	i := backends.CacheInfo{Off: config["enable_prefix_caching"] == "False"}
	i.Block, _ = strconv.Atoi(config["block_size"])
	i.Block = max(0, i.Block)
	if n, err := strconv.ParseInt(config["num_gpu_blocks"], 10, 32); err == nil && n > 1 {
		i.Tokens = (n - 1) * int64(i.Block)
	}
	return i
}

// CacheStatus reads /metrics. A server without it gives no figures.
func (b *Backend) CacheStatus(ctx context.Context) (s backends.CacheStatus, err error) {
	status, answer, err := b.conf.Ask(ctx, "/metrics", nil)
	if err != nil || status != http.StatusOK {
		return s, err
	}
	page := string(answer)
	running := backends.CountMetric(page, "vllm:num_requests_running")
	waiting := backends.CountMetric(page, "vllm:num_requests_waiting")
	s.Known, s.Running, s.Waiting = running.OK && waiting.OK, running.V, waiting.V
	s.Queries = backends.CountMetric(page, "vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total")
	s.Hits = backends.CountMetric(page, "vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total")
	return s, nil
}

// FlushCache empties the prefix cache through /reset_prefix_cache, which is
// there in development mode alone. vLLM refuses while a request holds a block,
// and says so under status 200.
func (b *Backend) FlushCache(ctx context.Context) (note string, err error) {
	const path = "/reset_prefix_cache"
	status, answer, err := b.conf.Ask(ctx, path, []byte{})
	if err != nil {
		return "", err
	}
	switch status {
	case http.StatusOK:
	case http.StatusNotFound, http.StatusMethodNotAllowed:
		return "", &backends.CacheError{
			Reason: fmt.Sprintf("vllm: there is no %s: the prefix cache cannot be flushed", path),
			Next:   "start vLLM with VLLM_SERVER_DEV_MODE=1 in its environment, or use --cache salt, which needs no flush",
		}
	default:
		_, msg := llmapi.HTTPFault(status, answer)
		return "", fmt.Errorf("vllm: %w", &backends.StatusError{Path: path, Status: status, Message: msg})
	}
	var v struct {
		Success *bool `json:"success"`
	}
	if err := json.Unmarshal(answer, &v); err != nil || v.Success == nil {
		return "", &backends.CacheError{
			Reason: fmt.Sprintf("vllm: %s does not say whether the prefix cache was flushed", path),
			Next:   "use --cache salt, which needs no flush, or a newer vLLM",
		}
	}
	if !*v.Success {
		return "", backends.ErrCacheBusy
	}
	return "", nil
}
