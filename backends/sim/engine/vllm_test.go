package engine

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A recording is what the scheduler of a real vLLM did with requests that were
// all there before its first step.
type recording struct {
	Config struct {
		BlockSize        int    `json:"block_size"`
		NumGPUBlocks     int    `json:"num_gpu_blocks"`
		MaxBatchedTokens int    `json:"max_num_batched_tokens"`
		MaxSeqs          int    `json:"max_num_seqs"`
		MaxModelLen      int    `json:"max_model_len"`
		PrefixCaching    bool   `json:"prefix_caching"`
		Policy           string `json:"policy"`
	} `json:"config"`
	Requests []struct {
		Prompt    [][2]int `json:"prompt"` // runs of (kind, length)
		MaxTokens int      `json:"max_tokens"`
		Salt      string   `json:"salt"`
		Priority  int64    `json:"priority"`
	} `json:"requests"`
	VLLM struct {
		Preemptions  int   `json:"preemptions"`
		CacheQueries int   `json:"cache_queries"`
		CacheHits    int   `json:"cache_hits"`
		CachedTokens []int `json:"cached_tokens"` // by request
		// Steps as words "request:tokens", in the order of the requests.
		Steps []string `json:"steps"`
	} `json:"vllm"`
}

// Pass by pass, token by token: the batches, cache hits and preemptions are
// those of vLLM's own scheduler.
func TestPassesAreVLLMs(t *testing.T) {
	names, err := filepath.Glob("testdata/vllm-0.32/*.json")
	if err != nil || len(names) == 0 {
		t.Fatalf("%d recordings: %v", len(names), err)
	}
	for _, name := range names {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".json"), func(t *testing.T) {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			var rec recording
			if err := json.Unmarshal(b, &rec); err != nil {
				t.Fatal(err)
			}
			c := rec.Config
			e := mustNew(t, Config{
				Cost: unit, BlockSize: c.BlockSize, Blocks: c.NumGPUBlocks, MaxSeqs: c.MaxSeqs, MaxBatchedTokens: c.MaxBatchedTokens,
				MaxModelLen: c.MaxModelLen, PrefixCaching: c.PrefixCaching, Priority: c.Policy == "priority", VocabSize: 16384,
			})
			var reqs []*Request
			for i, r := range rec.Requests {
				var p []uint32
				for _, run := range r.Prompt {
					for k := range run[1] {
						p = append(p, uint32(run[0]*7919+k*104729)%15000+1000)
					}
				}
				q := &Request{Prompt: p, MaxTokens: r.MaxTokens, Priority: r.Priority, Owner: i}
				if r.Salt != "" {
					q.Salt = 1
				}
				if err := e.Submit(0, q); err != nil {
					t.Fatal(err)
				}
				reqs = append(reqs, q)
			}
			step := 0
			for now := time.Duration(0); ; step++ {
				d, ok := e.Step(now)
				if !ok {
					break
				}
				var batch []string
				byRequest := slices.Clone(e.batch)
				slices.SortFunc(byRequest, func(a, b slot) int { return a.r.Owner.(int) - b.r.Owner.(int) })
				for _, s := range byRequest {
					batch = append(batch, fmt.Sprint(s.r.Owner)+":"+strconv.Itoa(s.n))
				}
				if got := strings.Join(batch, " "); step >= len(rec.VLLM.Steps) || got != rec.VLLM.Steps[step] {
					want := "no more steps"
					if step < len(rec.VLLM.Steps) {
						want = rec.VLLM.Steps[step]
					}
					t.Fatalf("pass %d of %d computes\n%s\nvLLM:\n%s", step, len(rec.VLLM.Steps), got, want)
				}
				now += d
				e.Done(now)
			}
			if step != len(rec.VLLM.Steps) {
				t.Errorf("%d passes, vLLM made %d", step, len(rec.VLLM.Steps))
			}
			s := e.Stats()
			if int(s.Preemptions) != rec.VLLM.Preemptions || int(s.CacheQueries) != rec.VLLM.CacheQueries || int(s.CacheHits) != rec.VLLM.CacheHits {
				t.Errorf("preemptions, queries, hits = %d, %d, %d; vLLM's %d, %d, %d", s.Preemptions, s.CacheQueries, s.CacheHits,
					rec.VLLM.Preemptions, rec.VLLM.CacheQueries, rec.VLLM.CacheHits)
			}
			for i, r := range reqs {
				if r.CachedTokens != rec.VLLM.CachedTokens[i] {
					t.Errorf("request %d: %d cached tokens, vLLM's %d", i, r.CachedTokens, rec.VLLM.CachedTokens[i])
				}
			}
			t.Logf("%d requests, %d passes, %d preemptions, %d of %d tokens cached: all as vLLM's", len(reqs), step, s.Preemptions, s.CacheHits, s.CacheQueries)
		})
	}
}
