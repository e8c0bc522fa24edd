package findings

import (
	"math"
	"slices"
	"time"

	"reprise/gpu"
	"reprise/internal/enginemetrics"
	"reprise/traceformat"
)

// A kvPoint is one engine's KV cache at one scrape.
type kvPoint struct {
	at          time.Duration
	used, usage float64
	ok          bool
}

// A point is the KV cache against what the client had in flight, at one scrape.
type point struct {
	flight, resident float64 // of the client
	used, usage      float64 // of the engines together
}

// maxPoints bounds the points; every second one goes when there are more.
const maxPoints = 1 << 14

// kvSample gathers the gauges of one scrape of one engine, which have one time.
func (a *analysis) kvSample(s *gpu.Sample) {
	isUsed := s.Metric == string(enginemetrics.KVUsed)
	if !isUsed && s.Metric != string(enginemetrics.KVUsage) {
		return
	}
	k := gpu.Key{Source: s.Source} // engines behind one page are scraped at once
	p := a.kv[k]
	if p != nil && p.at != s.Time {
		a.point(k, p)
		p = nil
	}
	if p == nil {
		p = &kvPoint{at: s.Time}
		a.kv[k] = p
	}
	if isUsed {
		p.used += s.Value
		p.ok = true
	} else {
		p.usage = max(p.usage, s.Value)
	}
}

// point matches a scrape with what was in flight then.
func (a *analysis) point(_ gpu.Key, p *kvPoint) {
	if !p.ok || p.at < 0 || a.in.Shared {
		return
	}
	flight, resident := a.in.Requests.line.at(p.at)
	if flight <= 0 {
		return
	}
	if a.skip++; a.skip <= a.every {
		return
	}
	a.skip = 0
	a.points = append(a.points, point{flight, resident, p.used, p.usage})
	if len(a.points) >= maxPoints {
		kept := a.points[:0]
		for i := 0; i < len(a.points); i += 2 {
			kept = append(kept, a.points[i])
		}
		a.points, a.every = kept, 2*a.every+1
	}
}

// minPoints is the least that a line is drawn through, or a range made of.
const (
	minPoints = 8
	maxRanges = 8
)

// growth relates the KV cache to concurrency and sequence length.
func (a *analysis) growth(f *Findings) {
	kv := &KV{}
	// The fullest of several engines is what counts for headroom.
	for _, k := range a.find(string(enginemetrics.KVUsage)) {
		if l := a.series[k].level(); l != nil && (kv.Usage == nil || l.Max > kv.Usage.Max) {
			kv.Usage = l
		}
	}
	if kv.Usage != nil {
		kv.Headroom = traceformat.Some(max(0, 1-kv.Usage.Max))
	}
	for _, k := range a.find(string(enginemetrics.KVCapacity)) {
		kv.Capacity.OK = true
		kv.Capacity.V += a.series[k].last.Value
	}
	if kv.Usage == nil && len(a.points) == 0 {
		return
	}
	f.KV = kv
	kv.N = int64(len(a.points))
	if len(a.points) < minPoints {
		return
	}
	if b, c, r2, ok := line(a.points); ok {
		kv.PerResident, kv.Fixed, kv.R2 = traceformat.Some(b), traceformat.Some(c), traceformat.Some(r2)
	}
	points := slices.Clone(a.points)
	slices.SortStableFunc(points, func(a, b point) int {
		switch {
		case a.flight < b.flight:
			return -1
		case a.flight > b.flight:
			return 1
		}
		return 0
	})
	ranges := min(maxRanges, len(points)/minPoints)
	for i := range ranges {
		part := points[i*len(points)/ranges : (i+1)*len(points)/ranges]
		g := Growth{From: part[0].flight, To: part[len(part)-1].flight, N: int64(len(part))}
		for _, p := range part {
			g.Flight += p.flight
			g.Resident += p.resident
			g.Used += p.used
			g.Usage += p.usage
		}
		n := float64(len(part))
		g.Length = g.Resident / g.Flight
		g.Flight, g.Resident, g.Used, g.Usage = g.Flight/n, g.Resident/n, g.Used/n, g.Usage/n
		kv.Growth = append(kv.Growth, g)
	}
}

// line is the least squares of used tokens against resident ones.
func line(ps []point) (slope, intercept, r2 float64, ok bool) {
	n := float64(len(ps))
	var mx, my float64
	for _, p := range ps {
		mx += p.resident / n
		my += p.used / n
	}
	var sxx, sxy, syy float64
	for _, p := range ps {
		dx, dy := p.resident-mx, p.used-my
		sxx += dx * dx
		sxy += dx * dy
		syy += dy * dy
	}
	if !(sxx > 0) || !(syy > 0) || math.IsInf(sxx, 0) || math.IsInf(syy, 0) {
		return 0, 0, 0, false
	}
	slope = sxy / sxx
	return slope, my - slope*mx, sxy * sxy / (sxx * syy), true
}
