package report

import (
	"cmp"
	"encoding/json"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"reprise/gpu"
	"reprise/gpu/findings"
)

// Record is what the manifest says of telemetry, nil where it says nothing or
// what another version wrote.
func (m *Manifest) Record() *findings.Record {
	var r *findings.Record
	if len(m.Telemetry) == 0 || json.Unmarshal(m.Telemetry, &r) != nil {
		return nil
	}
	return r
}

// watcher is the shard that saw most of the server: all shards load the same
// one, so that one of them tells of it what there is to tell, and samples of
// several would count its energy and its tokens several times. Most sources
// count first, then who watched longest. It is nil where nobody watched, or
// where each shard had a server of its own.
func watcher(shards []*shard) (*shard, *findings.Record) {
	type candidate struct {
		*shard
		rec     *findings.Record
		sources int
	}
	var all []candidate
	for _, s := range shards {
		if s.m.Server.URL != shards[0].m.Server.URL || s.m.Server.URL == "" && len(shards) > 1 {
			return nil, nil
		}
		rec := s.m.Record()
		if rec == nil || rec.File == "" {
			continue
		}
		c := candidate{s, rec, 0}
		for _, src := range rec.Sources {
			if src.Readings > 0 {
				c.sources++
			}
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, nil
	}
	until := func(c candidate) time.Duration {
		if c.m.Stats == nil {
			return 0
		}
		return c.offset + c.m.Stats.Elapsed
	}
	best := slices.MaxFunc(all, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.sources, b.sources), cmp.Compare(until(a), until(b)))
	})
	return best.shard, best.rec
}

// watch puts telemetry to the joined run m in dir, whose rows are given: the
// samples of one shard on the axis of the whole, and what they say together with
// the requests of all. Where that cannot be, a warning says that telemetry stays
// with the shards.
func watch(m *Manifest, shards []*shard, rows *findings.Requests, dir string) error {
	s, from := watcher(shards)
	if s == nil {
		if slices.ContainsFunc(shards, func(s *shard) bool { return len(s.m.Telemetry) > 0 }) {
			m.Warnings = append(m.Warnings, "telemetry stays with the shards: they did not watch one and the same server")
		}
		return nil
	}
	rec, err := s.watched(m, from, rows, dir)
	if err != nil {
		m.Warnings = append(m.Warnings, fmt.Sprintf("telemetry stays with the shards: %s: %v", s.name(), err))
		return nil
	}
	rec.From = s.name()
	known := m.Summary.Fidelity.Reasons
	for _, why := range rec.Environment.Reasons {
		// Mostly it is what the shard found as well.
		if !slices.ContainsFunc(known, func(r string) bool { return strings.HasSuffix(r, why) }) {
			object(&m.Summary.Fidelity, "the serving host was disturbed: "+why)
		}
	}
	m.Telemetry, err = json.Marshal(rec)
	return err
}

// watched writes the samples of s to dir and computes what they say of m.
func (s *shard) watched(m *Manifest, from *findings.Record, rows *findings.Requests, dir string) (*findings.Record, error) {
	r, err := gpu.Open(filepath.Join(s.dir, telemetryFile))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	in := findings.FromSummary(m.Summary, rows)
	in.Shared = m.Merge.MissingRequests > 0
	if from.Engine != nil {
		in.Spans = from.Engine.Spans
	}
	f, err := findings.Analyse(in, moved(r.All(), s.offset))
	if err != nil {
		return nil, err
	}
	info := r.Info()
	info.Start = m.Merge.Zero
	var damage error
	err = gpu.WriteFile(filepath.Join(dir, telemetryFile), info, func(yield func(gpu.Sample) bool) {
		for x, err := range moved(r.All(), s.offset) {
			if err != nil {
				damage = err
				return
			}
			if !yield(x) {
				return
			}
		}
	})
	if err = cmp.Or(damage, err); err != nil {
		os.Remove(filepath.Join(dir, telemetryFile))
		return nil, err
	}
	return &findings.Record{File: telemetryFile, Sources: from.Sources, Engines: from.Engines, Dropped: from.Dropped, Notes: from.Notes, Findings: *f}, nil
}

// moved puts samples on another axis.
func moved(samples iter.Seq2[gpu.Sample, error], by time.Duration) iter.Seq2[gpu.Sample, error] {
	return func(yield func(gpu.Sample, error) bool) {
		for s, err := range samples {
			s.Time += by
			if !yield(s, err) {
				return
			}
		}
	}
}
