package backends

import (
	"errors"
	"math"
	"strconv"
	"strings"

	"reprise/traceformat"
)

// CacheInfo is what a server says of its prefix cache.
type CacheInfo struct {
	Off bool `json:"off,omitempty"` // nothing is reused
	// Block is the granularity of reuse in tokens. An engine reuses whole
	// blocks, and never the last token of a prompt, whose logits it needs.
	Block  int   `json:"block_tokens,omitempty"`    // 0: unknown
	Tokens int64 `json:"capacity_tokens,omitempty"` // what it holds, in whole blocks; 0: unknown
	Salt   bool  `json:"salt"`                      // Call.CacheSalt keeps requests apart
}

// CacheStatus is what a server says of its load and its prefix cache at one
// moment.
type CacheStatus struct {
	Known            bool  // Running and Waiting are
	Running, Waiting int64 // requests
	// Tokens looked up in the cache and found there, since the server started.
	Queries, Hits traceformat.Opt[int64]
}

// ErrCacheBusy says that a cache was not flushed, as requests are running.
var ErrCacheBusy = errors.New("the server does not flush its prefix cache while requests are running")

// A CacheError says why a prefix cache cannot be put into the state that was
// asked for.
type CacheError struct {
	Reason string
	Next   string // what to do about it
}

func (e *CacheError) Error() string { return e.Reason }

// Hint says what to do about it.
func (e *CacheError) Hint() string { return e.Next }

// SumMetric adds up the samples of one name in a page of the Prometheus text
// format. It reports false where there is none, or one that is no finite number.
func SumMetric(page, name string) (sum float64, ok bool) {
	for line := range strings.Lines(page) {
		rest, found := strings.CutPrefix(line, name)
		if !found {
			continue
		}
		if strings.HasPrefix(rest, "{") {
			if rest, found = afterLabels(rest); !found {
				continue
			}
		} else if !strings.HasPrefix(rest, " ") && !strings.HasPrefix(rest, "\t") {
			continue // a longer name
		}
		fields := strings.Fields(rest) // the value, and perhaps a time
		if len(fields) == 0 {
			continue
		}
		v, err := strconv.ParseFloat(fields[0], 64)
		if err != nil || math.IsNaN(v) || math.IsInf(v, 0) {
			return 0, false
		}
		sum, ok = sum+v, true
	}
	return sum, ok && !math.IsInf(sum, 0)
}

// afterLabels skips a label set; a value may hold any character, a closing
// brace too.
func afterLabels(s string) (rest string, ok bool) {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case !quoted && s[i] == '}':
			return s[i+1:], true
		}
	}
	return "", false
}

// CountMetric is SumMetric for counts, under the first of several names that
// the page has: engines rename theirs.
func CountMetric(page string, names ...string) (n traceformat.Opt[int64]) {
	for _, name := range names {
		if v, ok := SumMetric(page, name); ok && v >= 0 && v < 1<<62 {
			return traceformat.Some(int64(math.Round(v)))
		}
	}
	return n
}
