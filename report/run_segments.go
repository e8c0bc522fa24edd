package report

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"reprise/internal/metrics"
	"reprise/internal/units"
	"reprise/traceformat"
)

// A RunSegment holds the figures of those requests of a run that have something
// in common. Percentiles come from a histogram and are right to a percent.
type RunSegment struct {
	By       string `json:"by"`    // prompt_tokens, output_tokens, turn, cache_hit, client, time
	Label    string `json:"label"` // "1,024 to 4,095"
	Requests int64  `json:"requests"`
	OK       int64  `json:"ok"`
	Failed   int64  `json:"failed"` // or shed
	// Figures are those that the segment's successes carry, with the interval at
	// 95 % of the order statistics about them.
	Figures []SegmentFigure `json:"figures,omitempty"`
}

// A SegmentFigure is a percentile of a latency in ns, from the schedule.
type SegmentFigure struct {
	Name string `json:"name"` // ttft.p50
	N    int64  `json:"n"`
	Value
}

// maxSegmentClients bounds the clients that are followed.
const maxSegmentClients = 64

// segmenter sorts the measured requests of a run into segments as they come.
type segmenter struct {
	conf    metrics.Config
	groups  []segmentGroup
	clients map[string]*runSegment
	missed  int64 // requests of clients beyond maxSegmentClients
}

type segmentGroup struct {
	by     string
	labels []string
	parts  []runSegment
	place  func(*traceformat.Row, *metrics.Reading) int
}

type runSegment struct {
	requests, ok, failed int64
	ttft, e2e, tpot      sketch
}

func newSegmenter(c metrics.Config) *segmenter {
	s := &segmenter{conf: c, clients: map[string]*runSegment{}}
	group := func(by string, labels []string, place func(*traceformat.Row, *metrics.Reading) int) {
		s.groups = append(s.groups, segmentGroup{by, labels, make([]runSegment, len(labels)), place})
	}
	count := func(bounds []int32, n traceformat.Opt[int32]) int {
		if !n.OK {
			return -1
		}
		return within(bounds, n.V)
	}
	group("prompt_tokens", rangeLabels(promptBounds), func(_ *traceformat.Row, m *metrics.Reading) int {
		return count(promptBounds, either(m.PromptTokens, m.AskedPromptTokens))
	})
	group("output_tokens", rangeLabels(outputBounds), func(_ *traceformat.Row, m *metrics.Reading) int {
		return count(outputBounds, either(m.OutputTokens, m.AskedOutputTokens))
	})
	group("turn", turnLabels, func(row *traceformat.Row, _ *metrics.Reading) int { return turnPlace(row.Turn.Or(-1)) })
	group("cache_hit", []string{"none", "up to half", "more than half"}, func(row *traceformat.Row, m *metrics.Reading) int {
		return cachePlace(cachedTokens(row), m.PromptTokens.Or(-1))
	})
	return s
}

func either(a, b traceformat.Opt[int32]) traceformat.Opt[int32] {
	if a.OK {
		return a
	}
	return b
}

func (s *segmenter) add(row *traceformat.Row, m *metrics.Reading) {
	if !measured(&s.conf, m.Zero) {
		return
	}
	for i := range s.groups {
		g := &s.groups[i]
		if k := g.place(row, m); k >= 0 {
			g.parts[k].add(m)
		}
	}
	if row.Client == "" {
		return
	}
	c := s.clients[row.Client]
	if c == nil {
		if len(s.clients) == maxSegmentClients {
			s.missed++
			return
		}
		c = new(runSegment)
		s.clients[row.Client] = c
	}
	c.add(m)
}

func (p *runSegment) add(m *metrics.Reading) {
	p.requests++
	switch m.Class {
	case metrics.Failed, metrics.Shed:
		p.failed++
	case metrics.OK:
		p.ok++
		for _, f := range []struct {
			to *sketch
			d  traceformat.Opt[time.Duration]
		}{{&p.ttft, m.FromSchedule(m.TTFT)}, {&p.e2e, m.FromSchedule(m.E2E)}, {&p.tpot, m.TPOT}} {
			if f.d.OK {
				f.to.add(float64(f.d.V))
			}
		}
	}
}

// segments are those that hold enough requests, of groupings that have at least
// two such.
func (s *segmenter) segments(p *profiler) (out []RunSegment) {
	for i := range s.groups {
		g := &s.groups[i]
		out = append(out, labelled(g.by, g.labels, g.parts)...)
	}
	names := make([]string, 0, len(s.clients))
	for name := range s.clients {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(s.clients[b].requests, s.clients[a].requests), cmp.Compare(a, b))
	})
	names = names[:min(len(names), maxClients)]
	parts := make([]runSegment, len(names))
	for i, name := range names {
		parts[i] = *s.clients[name]
	}
	out = append(out, labelled("client", names, parts)...)
	return append(out, s.overTime(p)...)
}

// overTime joins the windows of a profile to about timeWindows.
func (s *segmenter) overTime(p *profiler) []RunSegment {
	each := max(1, (len(p.parts)+timeWindows-1)/timeWindows)
	var labels []string
	var parts []runSegment
	for i := 0; i < len(p.parts); i += each {
		from := time.Duration(i) * p.width
		if from < s.conf.From || s.conf.To > 0 && from > s.conf.To {
			continue // not measured, or not as a whole
		}
		var part runSegment
		for k := i; k < min(i+each, len(p.parts)); k++ {
			x := &p.parts[k]
			part.requests, part.ok, part.failed = part.requests+x.requests, part.ok+x.ok, part.failed+x.failed
			part.ttft.merge(&x.ttft)
			part.e2e.merge(&x.e2e)
			part.tpot.merge(&x.tpot)
		}
		labels, parts = append(labels, "from "+units.Duration(from)), append(parts, part)
	}
	return labelled("time", labels, parts)
}

// labelled makes segments of what has enough requests.
func labelled(by string, labels []string, parts []runSegment) (out []RunSegment) {
	for i := range parts {
		p := &parts[i]
		if p.requests < minSegment {
			continue
		}
		s := RunSegment{By: by, Label: labels[i], Requests: p.requests, OK: p.ok, Failed: p.failed}
		for _, f := range []struct {
			name string
			of   *sketch
		}{{"ttft", &p.ttft}, {"e2e", &p.e2e}, {"tpot", &p.tpot}} {
			for _, q := range compared[:3] {
				if v := f.of.value(q.level); v.V.OK {
					s.Figures = append(s.Figures, SegmentFigure{f.name + "." + q.name, f.of.n, v})
				}
			}
		}
		out = append(out, s)
	}
	if len(out) < 2 {
		return nil // one segment is the whole
	}
	return out
}

// warning says what the segments leave out.
func (s *segmenter) warning() string {
	if s.missed == 0 {
		return ""
	}
	return fmt.Sprintf("segments by client leave out %s requests, of clients beyond the first %d", units.Count(s.missed), maxSegmentClients)
}
