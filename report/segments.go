package report

import (
	"fmt"
	"slices"
	"time"

	"reprise/internal/stats"
	"reprise/internal/units"
)

// minSegment is the least number of pairs that a segment is reported with.
const minSegment = 30

// maxClients is how many clients get a segment of their own, busiest first.
const maxClients = 10

// timeWindows is into how many windows a run is cut.
const timeWindows = 10

// A grouping sorts pairs into segments; a negative place leaves a pair out.
type grouping struct {
	by     string
	labels []string
	place  func(*pair) int
}

// segments compares TTFT and E2E of the requests that have something in common.
func segments(j *duel, seed uint64) (out []Segment) {
	for _, g := range groupings(j) {
		members := make([][]int32, len(g.labels)) // places in j.pairs
		for i := range j.pairs {
			if k := g.place(&j.pairs[i]); k >= 0 {
				members[k] = append(members[k], int32(i))
			}
		}
		filled := 0
		for _, m := range members {
			if len(m) >= minSegment {
				filled++
			}
		}
		if filled < 2 {
			continue // one segment is the whole
		}
		for k, m := range members {
			if len(m) < minSegment {
				continue
			}
			s := Segment{By: g.by, Label: g.labels[k], Requests: int64(len(m))}
			for _, f := range latencies[:2] {
				p := f.paired(j.pairs, m)
				for i, d := range p.Differences(seed, 0.5, 0.9) {
					x := Metric{Name: f.name + "." + compared[i].name, Unit: "ns"}
					x.set(&d)
					s.Metrics = append(s.Metrics, x)
				}
			}
			out = append(out, s)
		}
	}
	return out
}

// promptBounds and outputBounds begin the ranges of tokens.
var (
	promptBounds = []int32{0, 256, 1024, 4096, 16384, 65536}
	outputBounds = []int32{0, 32, 128, 512, 2048}
)

var turnLabels = []string{"first turn", "2nd to 4th", "5th and later"}

// turnPlace is the place in turnLabels; turns count from 0, -1 is unknown.
func turnPlace(turn int32) int {
	switch {
	case turn < 0:
		return -1
	case turn == 0:
		return 0
	case turn < 4:
		return 1
	}
	return 2
}

// cachePlace says whether none, up to half or more of a prompt was cached; -1 is
// unknown.
func cachePlace(cached, prompt int32) int {
	switch {
	case cached < 0 || prompt <= 0:
		return -1
	case cached == 0:
		return 0
	case 2*cached <= prompt:
		return 1
	}
	return 2
}

func groupings(j *duel) []grouping {
	gs := []grouping{
		{"prompt_tokens", rangeLabels(promptBounds), func(p *pair) int { return within(promptBounds, p.prompt) }},
		{"output_tokens", rangeLabels(outputBounds), func(p *pair) int { return within(outputBounds, p.output) }},
		{"turn", turnLabels, func(p *pair) int { return turnPlace(p.turn) }},
		{"cache_hit", []string{"none in A", "up to half in A", "more than half in A"}, func(p *pair) int { return cachePlace(p.cached, p.prompt) }},
	}
	if g, ok := byClient(j); ok {
		gs = append(gs, g)
	}
	if g, ok := byTime(j.pairs); ok {
		gs = append(gs, g)
	}
	return gs
}

// rangeLabels names the ranges between bounds, the last one open.
func rangeLabels(from []int32) (labels []string) {
	for i, f := range from {
		if i == len(from)-1 {
			labels = append(labels, units.Count(int64(f))+" and more")
		} else {
			labels = append(labels, fmt.Sprintf("%s to %s", units.Count(int64(f)), units.Count(int64(from[i+1]-1))))
		}
	}
	return labels
}

func within(from []int32, v int32) int {
	i, found := slices.BinarySearch(from, v)
	if !found {
		i--
	}
	return i
}

func byClient(j *duel) (grouping, bool) {
	count := make([]int, len(j.clients))
	for i := range j.pairs {
		count[j.pairs[i].client]++
	}
	order := make([]int, 0, len(count))
	for i := range count {
		if j.clients[i] != "" {
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return count[b] - count[a] })
	order = order[:min(len(order), maxClients)]
	at := make(map[int32]int, len(order))
	var labels []string
	for k, i := range order {
		at[int32(i)] = k
		labels = append(labels, j.clients[i])
	}
	return grouping{"client", labels, func(p *pair) int {
		if k, ok := at[p.client]; ok {
			return k
		}
		return -1
	}}, len(labels) > 1
}

func byTime(pairs []pair) (grouping, bool) {
	if len(pairs) == 0 {
		return grouping{}, false
	}
	first, last := pairs[0].zero, pairs[0].zero
	for i := range pairs {
		first, last = min(first, pairs[i].zero), max(last, pairs[i].zero)
	}
	width := (last-first)/timeWindows + 1
	var labels []string
	for k := range timeWindows {
		labels = append(labels, fmt.Sprintf("from %s", units.Duration(first+time.Duration(k)*width)))
	}
	return grouping{"time", labels, func(p *pair) int { return int((p.zero - first) / width) }}, last > first && len(pairs) >= stats.Pieces
}
