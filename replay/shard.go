package replay

import (
	"fmt"
	"strconv"
	"strings"
)

// A Shard is one of several processes that play a trace together. Requests are
// dealt out by session, so that conversations stay whole, and every shard makes
// the prompts that one big run would. The zero Shard is the whole.
type Shard struct {
	Index int `json:"index"` // from 0
	Of    int `json:"of"`    // 0 and 1 mean that there is one
}

// ParseShard reads "i/n", i from 0.
func ParseShard(s string) (Shard, error) {
	index, of, ok := strings.Cut(s, "/")
	i, err1 := strconv.Atoi(index)
	n, err2 := strconv.Atoi(of)
	if !ok || err1 != nil || err2 != nil || n < 1 || i < 0 || i >= n {
		return Shard{}, fmt.Errorf("--shard is %q, want i/n with i from 0 to n-1", s)
	}
	return Shard{i, n}, nil
}

// ShardFromEnv finds the shard in what a scheduler sets for each task:
// Kubernetes Indexed Jobs (JOB_COMPLETION_INDEX, with the job's completions in
// JOB_COMPLETIONS, which the manifest has to pass on) and Slurm arrays
// (SLURM_ARRAY_TASK_ID, _MIN, _COUNT). ok is false outside of both.
func ShardFromEnv(getenv func(string) string) (s Shard, ok bool, err error) {
	number := func(name string) (n int) {
		v := getenv(name)
		n, e := strconv.Atoi(v)
		if e != nil && err == nil {
			err = fmt.Errorf("%s is %q, want a number: say --shard i/n", name, v)
		}
		return n
	}
	switch {
	case getenv("JOB_COMPLETION_INDEX") != "":
		if getenv("JOB_COMPLETIONS") == "" {
			// Kubernetes says which pod this is and not of how many. Every pod
			// playing all of it would be that many times the load.
			return Shard{}, false, fmt.Errorf("JOB_COMPLETION_INDEX is set and JOB_COMPLETIONS, the number of shards, is not: pass it on in the manifest, or say --shard %s/N", getenv("JOB_COMPLETION_INDEX"))
		}
		s = Shard{number("JOB_COMPLETION_INDEX"), number("JOB_COMPLETIONS")}
	case getenv("SLURM_ARRAY_TASK_ID") != "" && getenv("SLURM_ARRAY_TASK_COUNT") != "":
		s = Shard{number("SLURM_ARRAY_TASK_ID"), number("SLURM_ARRAY_TASK_COUNT")}
		if getenv("SLURM_ARRAY_TASK_MIN") != "" {
			s.Index -= number("SLURM_ARRAY_TASK_MIN")
		}
		if getenv("SLURM_ARRAY_TASK_STEP") != "" {
			s.Index /= max(1, number("SLURM_ARRAY_TASK_STEP"))
		}
	default:
		return Shard{}, false, nil
	}
	if err == nil && (s.Of < 1 || s.Index < 0 || s.Index >= s.Of) {
		err = fmt.Errorf("the scheduler says shard %d of %d, which is none: say --shard i/n", s.Index, s.Of)
	}
	return s, err == nil, err
}

// has reports whether a request belongs to s.
func (s Shard) has(it *item) bool {
	if s.Of <= 1 {
		return true
	}
	kind := uint64(blockKind)
	key, ok := it.row.Session.Get()
	if !ok {
		kind, key = tailKind, it.row.ID
	}
	return mix(mix(kind, uint64(key)), uint64(it.lap))%uint64(s.Of) == uint64(s.Index)
}
