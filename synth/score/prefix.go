package score

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sort"

	"reprise/internal/traceinfo"
	"reprise/traceformat"
)

// CacheSizes are the sizes, in blocks, at which a hit curve is read; past them
// comes a cache without limit.
var CacheSizes = []int{100, 1_000, 3_000, 10_000, 30_000}

// HitCurve is the share of all prefix blocks that LRU caches of [CacheSizes],
// and last one without limit, would have held: blocks up to the first that is
// missing, over blocks of all rows. All sizes are played in one pass (Mattson
// et al., 1970). Nil where the Sample has no blocks.
func HitCurve(s *Sample) []float64 {
	if !s.HasBlocks() {
		return nil
	}
	curve := traceinfo.NewHitCurve(CacheSizes...)
	for i := range s.Arrival {
		curve.Add(s.RowBlocks(i))
	}
	return curve.Shares()
}

// CurveError is the mean and the greatest absolute difference of two curves.
func CurveError(a, b []float64) (meanError, maxError float64) {
	if len(a) == 0 || len(a) != len(b) {
		return math.NaN(), math.NaN()
	}
	for i := range a {
		d := math.Abs(a[i] - b[i])
		meanError += d / float64(len(a))
		maxError = max(maxError, d)
	}
	return meanError, maxError
}

// popular is the share of rows from which on a block counts as a system prompt
// rather than as a conversation: its reuse is as frequent as arrivals are.
const popular = 0.1

// ReuseGaps returns, for each row that shares more with an earlier row than a
// popular system prompt, the seconds since the last row that had its deepest
// shared block. A gap of less than a millisecond counts as one, so that its
// logarithm exists.
func ReuseGaps(s *Sample) []float64 {
	if !s.HasBlocks() {
		return nil
	}
	rows := make(map[uint64]int32, len(s.Blocks))
	for _, id := range s.Blocks {
		rows[id]++
	}
	most := int32(popular * float64(s.N()))
	last := make(map[uint64]float64, len(rows))
	var gaps []float64
	for i, t := range s.Arrival {
		ids := s.RowBlocks(i)
		depth := 0
		for depth < len(ids) {
			if _, ok := last[ids[depth]]; !ok {
				break
			}
			depth++
		}
		if depth > 0 && rows[ids[depth-1]] <= max(most, 2) {
			gaps = append(gaps, max(t-last[ids[depth-1]], 1e-3))
		}
		for _, id := range ids {
			last[id] = t
		}
	}
	return gaps
}

// A TreeFault is a row whose prefix blocks cannot be those of a prompt.
type TreeFault struct {
	Row  int
	What string
}

func (f TreeFault) String() string { return fmt.Sprintf("row %d: %s", f.Row, f.What) }

// CheckTree verifies that block ids are prefixes: each id has one depth and one
// predecessor everywhere, none comes twice in a row, and each row has as many
// as its prompt length asks for under the Sample's rule for a partial last
// block. It returns how many rows break a rule and the first few of them.
func CheckTree(s *Sample) (faults int, first []TreeFault) {
	if !s.HasBlocks() {
		return 0, nil
	}
	type place struct {
		parent uint64
		depth  int32
	}
	at := make(map[uint64]place, len(s.Blocks))
	fault := func(row int, format string, args ...any) {
		faults++
		if len(first) < 5 {
			first = append(first, TreeFault{row, fmt.Sprintf(format, args...)})
		}
	}
	for i := range s.Arrival {
		ids := s.RowBlocks(i)
		if want, ok := s.blocksFor(i); ok && len(ids) != want {
			fault(i, "%d prefix blocks for %d tokens, want %d", len(ids), s.In[i], want)
			continue
		}
		parent := uint64(0)
		for d, id := range ids {
			p, ok := at[id]
			here := place{parent, int32(d)}
			if !ok {
				at[id] = here
			} else if p != here {
				fault(i, "block at depth %d was at depth %d before or followed another block", d, p.depth)
				break
			}
			parent = id
		}
	}
	return faults, first
}

// blocksFor is how many blocks row i must have, where that is known.
func (s *Sample) blocksFor(i int) (n int, ok bool) {
	if s.In == nil || s.In[i] < 0 || s.BlockSize <= 0 {
		return 0, false
	}
	switch s.Partial {
	case traceformat.PartialKept, traceformat.PartialPadded:
		return int((s.In[i] + s.BlockSize - 1) / s.BlockSize), true
	case traceformat.PartialDropped:
		return int(s.In[i] / s.BlockSize), true
	}
	return 0, false
}

// logs returns the logarithms.
func logs(x []float64) []float64 {
	c := make([]float64, 0, len(x))
	for _, v := range x {
		c = append(c, math.Log(v))
	}
	return c
}

// Uncached returns how many blocks of each row an LRU prefix cache of so many
// blocks would not have held.
func Uncached(s *Sample, cache int) []float64 {
	c := traceinfo.NewPrefixCache(cache)
	u := make([]float64, s.N())
	for i := range u {
		ids := s.RowBlocks(i)
		hit, _ := c.Add(ids)
		u[i] = float64(len(ids) - hit)
	}
	return u
}

// SessionHit is the share of prefix blocks that an earlier row of the same
// session had, up to the first that none had; rows without a session count as
// sessions of their own. It relies on ids being prefixes ([CheckTree]): a
// session that has had a block has had all before it.
func SessionHit(s *Sample) float64 {
	if !s.HasBlocks() || s.Session == nil {
		return math.NaN()
	}
	// One session after the other, so that the blocks of one are held at a time.
	rows := make([]int, s.N())
	for i := range rows {
		rows[i] = i
	}
	slices.SortStableFunc(rows, func(i, j int) int { return cmp.Compare(s.Session[i], s.Session[j]) })
	seen := map[uint64]bool{}
	hits, total := 0, 0
	for k, i := range rows {
		if k == 0 || s.Session[i] != s.Session[rows[k-1]] || s.Session[i] < 0 {
			clear(seen)
		}
		ids := s.RowBlocks(i)
		depth := sort.Search(len(ids), func(d int) bool { return !seen[ids[d]] })
		hits += depth
		total += len(ids)
		for _, id := range ids[depth:] {
			seen[id] = true
		}
	}
	return float64(hits) / float64(total)
}
