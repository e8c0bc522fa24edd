package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"reprise/internal/metrics"
)

// A MergeError says why directories were not joined, and what to do.
type MergeError struct {
	Reason string // a line for each thing
	Hint   string
}

func (e *MergeError) Error() string { return e.Reason }

// A shard is one of the directories to join.
type shard struct {
	dir     string
	m       *Manifest
	index   int
	of      int
	startAt time.Time
	zero    time.Time     // wall clock
	offset  time.Duration // of zero from that of the whole
	killed  bool

	rows, sent, shed int64
	fidelity         metrics.Fidelity
}

// name is what messages call s.
func (s *shard) name() string { return fmt.Sprintf("shard %d/%d (%s)", s.index, s.of, s.dir) }

// loadShards reads the run.json of each directory.
func loadShards(dirs []string) ([]*shard, error) {
	var shards []*shard
	for _, dir := range dirs {
		dir = filepath.Clean(dir)
		m, err := ReadManifest(dir)
		if err != nil {
			return nil, err
		}
		var o struct {
			Shard struct {
				Index int `json:"index"`
				Of    int `json:"of"`
			} `json:"shard"`
			StartAt time.Time `json:"start_at"`
		}
		if err := json.Unmarshal(m.Options, &o); err != nil {
			return nil, fmt.Errorf("%s: options: %w", filepath.Join(dir, manifestFile), err)
		}
		s := &shard{dir: dir, m: m, index: o.Shard.Index, of: o.Shard.Of, startAt: o.StartAt, killed: m.State == StateRunning}
		switch {
		case s.of <= 1:
			return nil, &MergeError{
				Reason: fmt.Sprintf("%s is a whole run, and no shard of one", dir),
				Hint:   "merge joins what --shard i/n took apart; repeats of a run are never pooled, as what differs between them is what they are for",
			}
		case s.index < 0 || s.index >= s.of:
			return nil, fmt.Errorf("%s: shard %d of %d is none", filepath.Join(dir, manifestFile), s.index, s.of)
		}
		shards = append(shards, s)
	}
	return shards, nil
}

// agree checks that all are shards of one run.
func agree(shards []*shard) error {
	first := shards[0]
	want, err := first.work()
	if err != nil {
		return err
	}
	for _, s := range shards[1:] {
		got, err := s.work()
		if err != nil {
			return err
		}
		// One that was killed has not written its figures, nor what they were
		// to be judged by.
		if s.m.Summary == nil || first.m.Summary == nil {
			delete(got, "judged_by")
		}
		var diff []string
		for _, key := range slices.Sorted(maps.Keys(got)) {
			compare(key, want[key], got[key], &diff)
		}
		if len(diff) > 0 {
			return &MergeError{
				Reason: fmt.Sprintf("%s and %s are not of one run:\n  %s", filepath.Join(first.dir, manifestFile), filepath.Join(s.dir, manifestFile), strings.Join(diff, "\n  ")),
				Hint:   "shards of a run differ in --shard and -o alone",
			}
		}
	}
	return nil
}

// work is all that the shards of one run have in common, as JSON values.
func (s *shard) work() (map[string]any, error) {
	options, err := generic(s.m.Options)
	if err != nil {
		return nil, fmt.Errorf("%s: options: %w", filepath.Join(s.dir, manifestFile), err)
	}
	if o, ok := options.(map[string]any); ok {
		o["shard"] = map[string]any{"of": s.of}
	}
	var info struct {
		Engine  string `json:"engine"`
		Version string `json:"version"`
		Model   string `json:"model"`
	}
	if len(s.m.Server.Info) > 0 {
		if err := json.Unmarshal(s.m.Server.Info, &info); err != nil {
			return nil, fmt.Errorf("%s: server: %w", filepath.Join(s.dir, manifestFile), err)
		}
	}
	p, h := s.m.Plan, s.m.Trace.Header
	// These are of the shard, not of the run.
	p.Rows, p.PromptTokens, p.OutputTokens, p.PeakRate, p.Connections, p.Span = 0, 0, 0, 0, 0, 0
	judged := s.m.config()
	all := map[string]any{
		"options": options,
		"plan":    p,
		"program": map[string]any{"version": s.m.Program.Version, "revision": s.m.Program.Revision},
		"server":  map[string]any{"backend": s.m.Server.Backend, "info": info},
		"trace":   map[string]any{"header": map[string]any{"blocks": h.Blocks, "lengths": h.Lengths, "tokenizer": h.Tokenizer, "keys": h.Keys}},
		"judged_by": map[string]any{
			"slos": judged.SLOs, "limits": judged.Limits,
		},
	}
	for key, v := range all {
		if all[key], err = generic(v); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// generic turns v into what JSON is made of. Numbers keep their digits.
func generic(v any) (any, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	var out any
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	return out, d.Decode(&out)
}

// maxDifferences bounds what an error lists.
const maxDifferences = 8

// compare lists where two JSON values differ.
func compare(path string, a, b any, diff *[]string) {
	x, ok1 := a.(map[string]any)
	y, ok2 := b.(map[string]any)
	if ok1 && ok2 {
		keys := maps.Clone(x)
		maps.Copy(keys, y)
		for _, k := range slices.Sorted(maps.Keys(keys)) {
			compare(path+"."+k, x[k], y[k], diff)
		}
		return
	}
	p, q := text(a), text(b)
	if p == q {
		return
	}
	switch n := len(*diff); {
	case n < maxDifferences:
		*diff = append(*diff, fmt.Sprintf("%s is %s and %s", path, p, q))
	case n == maxDifferences:
		*diff = append(*diff, "and more")
	}
}

func text(v any) string {
	if v == nil {
		return "not there"
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	if len(b) > 80 {
		return string(b[:77]) + "..."
	}
	return string(b)
}

// complete checks that every shard is there once and sorts them. It returns the
// indexes of those that are not there, which is an error unless partial.
func complete(shards []*shard, partial bool) (missing []int, err error) {
	slices.SortStableFunc(shards, func(a, b *shard) int { return a.index - b.index })
	planned := int64(0)
	for i, s := range shards {
		if i > 0 && shards[i-1].index == s.index {
			return nil, &MergeError{
				Reason: fmt.Sprintf("%s and %s are both shard %d/%d", shards[i-1].dir, s.dir, s.index, s.of),
				Hint:   "one of them is a repeat or a copy, and repeats are never pooled: name each shard once",
			}
		}
		planned += s.m.Plan.Rows
	}
	of, next := shards[0].of, 0
	for i := range of {
		if next < len(shards) && shards[next].index == i {
			next++
			continue
		}
		if len(missing) == maxMissing {
			break
		}
		missing = append(missing, i)
	}
	all := shards[0].m.Plan.All
	switch {
	case planned > all, len(shards) == of && planned != all:
		return nil, &MergeError{Reason: fmt.Sprintf("the shards planned %d requests together and the run has %d: a run.json was changed", planned, all)}
	case len(shards) < of && !partial:
		what := "shard " + list(missing)
		verb := "is"
		if of-len(shards) > 1 {
			what, verb = "shards "+list(missing), "are"
			if more := of - len(shards) - len(missing); more > 0 {
				what += fmt.Sprintf(" and %d more", more)
			}
		}
		return nil, &MergeError{
			Reason: fmt.Sprintf("%s of %d %s missing, with %d of the run's %d requests", what, of, verb, all-planned, all),
			Hint:   "name their directories too, or --partial: what they would have sent counts as never sent",
		}
	}
	return missing, nil
}

// maxMissing bounds how many missing shards are named: n comes from a file.
const maxMissing = 100

func list(numbers []int) string {
	var b strings.Builder
	for i, n := range numbers {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprint(&b, n)
	}
	return b.String()
}

// align finds the zero of the whole and where on its axis each shard's lies.
func align(shards []*shard) (zero time.Time, err error) {
	startAt := shards[0].startAt
	for _, s := range shards {
		switch {
		case s.m.Virtual:
			return zero, &MergeError{
				Reason: s.name() + " was played in virtual time, against an engine of its own: its shards do not make the run that one engine would have had",
				Hint:   "play the trace whole: replay TRACE --virtual",
			}
		case s.m.Stats != nil && !s.m.Stats.StartedAt.IsZero():
			s.zero = s.m.Stats.StartedAt
		case !startAt.IsZero():
			s.zero = startAt // it was killed before it could say more
		default:
			return zero, &MergeError{
				Reason: fmt.Sprintf("%s does not say when the run began, as it was killed: its times cannot be put beside those of other shards", filepath.Join(s.dir, manifestFile)),
				Hint:   "leave it out with --partial; shards with one --start-at do not have this problem",
			}
		}
		if zero.IsZero() || s.zero.Before(zero) {
			zero = s.zero
		}
	}
	if !startAt.IsZero() {
		zero = startAt
	}
	for _, s := range shards {
		s.offset = s.zero.Sub(zero)
		if s.offset > maxOffset || s.offset < -maxOffset {
			return zero, &MergeError{
				Reason: fmt.Sprintf("%s began %v from the run's zero, %s: they were not played together", s.name(), s.offset.Round(time.Second), zero.Format(time.RFC3339Nano)),
				Hint:   "play all shards with one --start-at",
			}
		}
	}
	return zero, nil
}

// maxOffset is more than any two shards of one run begin apart.
const maxOffset = 24 * time.Hour
