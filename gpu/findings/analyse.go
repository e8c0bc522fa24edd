package findings

import (
	"cmp"
	"iter"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"reprise/gpu"
	"reprise/internal/enginemetrics"
	"reprise/internal/units"
	"reprise/traceformat"
)

// holdPeriods is how long a gauge is taken to stay at its last value when no
// other follows, in mean periods of its own: sources differ, from 200 ms to 30 s.
const holdPeriods = 3

// Analyse computes the findings of a run. The samples come in the order of time;
// an error of theirs ends it.
func Analyse(in Input, samples iter.Seq2[gpu.Sample, error]) (*Findings, error) {
	if in.Requests == nil {
		in.Requests = NewRequests()
	}
	a := analysis{in: in, series: map[gpu.Key]*series{}, kv: map[gpu.Key]*kvPoint{}, gaps: map[gpu.Key][2]time.Duration{}}
	for s, err := range samples {
		if err != nil {
			return nil, err
		}
		a.add(&s)
	}
	a.flush()
	f := &Findings{}
	a.gpus(f)
	a.engine(f)
	a.little(f)
	a.growth(f)
	a.clocks(f)
	a.energy(f)
	a.environment(f)
	if a.lost {
		f.warn("there are more than %s series of telemetry: those beyond are left out", units.Count(maxSeries))
	}
	return f, nil
}

// maxSeries bounds the series that are followed.
const maxSeries = 1 << 14

type analysis struct {
	in     Input
	series map[gpu.Key]*series
	kv     map[gpu.Key]*kvPoint // the scrape under way, by engine
	points []point              // thinned when there are too many
	every  int
	skip   int

	restarts int64
	gaps     map[gpu.Key][2]time.Duration // the last one of a source, or of a device
	lost     bool                         // more series than are followed
}

// A series is one metric of one device, reduced as it comes.
type series struct {
	kind gpu.Kind

	n, inside   int64
	first, last gpu.Sample

	// Gauges: over the window.
	area, held float64
	min, max   float64

	// Counters: over all, and over the window.
	total, window float64
	covered       time.Duration // of the window

	events []int
	bits   map[string]float64 // throttle reasons, s
}

func (a *analysis) add(s *gpu.Sample) {
	m, ok := gpu.Lookup(s.Metric)
	if !ok {
		return
	}
	k := s.Key()
	x := a.series[k]
	if x == nil {
		if len(a.series) >= maxSeries {
			a.lost = true
			return
		}
		x = &series{kind: m.Kind, first: *s, min: math.Inf(1), max: math.Inf(-1)}
		a.series[k] = x
	}
	switch {
	case s.IsGap():
		if s.Note == gpu.EngineRestarted {
			a.restarts++
		}
		if len(a.gaps) < maxSeries {
			a.gaps[gpu.Key{Source: s.Source, Device: s.Device}] = [2]time.Duration{s.Time - time.Duration(min(s.Value, maxSpan.Seconds())*float64(time.Second)), s.Time}
		}
	case m.Kind == gpu.Counter:
		a.counter(x, s)
	case m.Kind == gpu.Event:
		if a.inside(s.Time) && len(x.events) < 64 {
			x.events = append(x.events, int(s.Value))
		}
	default:
		a.gauge(x, s)
	}
	x.last = *s
	x.n++
	if a.inside(s.Time) {
		x.inside++
		x.min, x.max = min(x.min, s.Value), max(x.max, s.Value)
	}
	a.kvSample(s)
}

func (a *analysis) inside(t time.Duration) bool { return t >= a.in.From && t <= a.in.To }

// overlap is the part of [from, to] that lies in the window.
func (a *analysis) overlap(from, to time.Duration) time.Duration {
	return max(0, min(to, a.in.To)-max(from, a.in.From))
}

func (a *analysis) counter(x *series, s *gpu.Sample) {
	if x.n == 0 {
		return
	}
	added := s.Value - x.last.Value
	if added < 0 {
		added = s.Value // it began anew
	}
	x.total += added
	dt := s.Time - x.last.Time
	in := a.overlap(x.last.Time, s.Time)
	switch {
	case dt > 0:
		x.window += added * float64(in) / float64(dt)
		x.covered += in
	case a.inside(s.Time):
		x.window += added
	}
}

func (a *analysis) gauge(x *series, s *gpu.Sample) {
	if x.n > 0 {
		a.hold(x, s.Time)
	}
}

// pace is the mean time between two samples.
func (x *series) pace() time.Duration {
	if x.n < 2 {
		return 0
	}
	return (x.last.Time - x.first.Time) / time.Duration(x.n-1)
}

// hold counts the last value of a gauge up to t, or to where a gap began.
func (a *analysis) hold(x *series, t time.Duration) {
	from := x.last.Time
	for _, k := range []gpu.Key{{Source: x.last.Source}, {Source: x.last.Source, Device: x.last.Device}} {
		if gap, ok := a.gaps[k]; ok && gap[1] > from && gap[0] < t {
			t = min(t, max(from, gap[0]))
		}
	}
	sec := a.overlap(from, t).Seconds()
	x.area += x.last.Value * sec
	x.held += sec
	if x.first.Metric == gpu.GPUThrottleReasons && sec > 0 {
		names, _ := gpu.ThrottleReasons(x.last.Value)
		for _, n := range names {
			if x.bits == nil {
				x.bits = map[string]float64{}
			}
			x.bits[n] += sec
		}
	}
}

// flush lets the last values hold to the end of the window.
func (a *analysis) flush() {
	for _, x := range a.series {
		if x.kind == gpu.Gauge && x.n > 0 {
			a.hold(x, min(a.in.To, x.last.Time+holdPeriods*x.pace()))
		}
	}
	for k, p := range a.kv {
		a.point(k, p)
	}
}

// level sums up a gauge, nil where nothing is known of the window.
func (x *series) level() *Level {
	if x == nil || x.held <= 0 {
		return nil
	}
	l := &Level{Mean: x.area / x.held, Min: x.min, Max: x.max, N: x.inside}
	if x.inside == 0 { // it holds from before
		l.Min, l.Max = l.Mean, l.Mean
	}
	return l
}

// find returns the series of a metric, in the order of source, device and
// attribute. An engine that is scraped from here and by an agent counts once.
func (a *analysis) find(metric string) (ks []gpu.Key) {
	for k := range a.series {
		if k.Metric == metric {
			ks = append(ks, k)
		}
	}
	if remote := func(k gpu.Key) bool { return strings.Contains(k.Source, "/") }; strings.HasPrefix(metric, "gen_ai.") && !allOf(ks, remote) {
		ks = slices.DeleteFunc(ks, remote)
	}
	slices.SortFunc(ks, func(a, b gpu.Key) int {
		return cmp.Or(cmp.Compare(a.Source, b.Source), cmp.Compare(a.Device, b.Device), cmp.Compare(a.Attr, b.Attr))
	})
	return ks
}

func allOf(ks []gpu.Key, is func(gpu.Key) bool) bool {
	return !slices.ContainsFunc(ks, func(k gpu.Key) bool { return !is(k) })
}

// sumLevels adds up a gauge over engines. The extremes are of the sum if all had
// theirs at once: bounds.
func (a *analysis) sumLevels(metric string) *Level {
	var sum *Level
	for _, k := range a.find(metric) {
		l := a.series[k].level()
		switch {
		case l == nil:
		case sum == nil:
			sum = l
		default:
			sum.Mean += l.Mean
			sum.Min += l.Min
			sum.Max += l.Max
			sum.N = max(sum.N, l.N)
		}
	}
	return sum
}

// sumCounter adds up a counter over engines, from the first scrape to the last.
func (a *analysis) sumCounter(metric string) (total traceformat.Opt[int64]) {
	for _, k := range a.find(metric) {
		total.OK = true
		total.V += int64(math.Round(a.series[k].total))
	}
	return total
}

func (a *analysis) engine(f *Findings) {
	e := &Engine{
		Running: a.sumLevels(string(enginemetrics.Running)), Waiting: a.sumLevels(string(enginemetrics.Waiting)),
		Prompt: a.sumCounter(string(enginemetrics.PromptTokens)), Generated: a.sumCounter(string(enginemetrics.GeneratedTokens)),
		Finished: a.sumCounter(string(enginemetrics.Finished)), Aborted: a.sumCounter(string(enginemetrics.Aborted)),
		Rejected: a.sumCounter(string(enginemetrics.Rejected)), Preemptions: a.sumCounter(string(enginemetrics.Preemptions)),
		Received: a.in.Requests.output, Spans: a.in.Spans, Engines: len(a.find(string(enginemetrics.Running))),
	}
	if e.Engines == 0 && !e.Generated.OK && !e.Prompt.OK {
		return
	}
	f.Engine, e.Restarts = e, a.restarts
	if g := e.Generated; !a.in.Shared && g.OK && e.Received > 0 && float64(g.V) > 1.01*float64(e.Received)+64 {
		f.warn("the engine generated %s tokens and this client received %s: it has other clients, or answers were cut off",
			units.Count(g.V), units.Count(e.Received))
	}
	queries, hits := a.sumCounter(string(enginemetrics.PrefixQueries)), a.sumCounter(string(enginemetrics.PrefixHits))
	if queries.OK && hits.OK && queries.V > 0 {
		p := &Prefix{Queries: queries.V, Hits: hits.V, Hit: float64(hits.V) / float64(queries.V), Implied: a.in.Implied}
		if p.Implied.OK {
			p.Difference = traceformat.Some(p.Hit - p.Implied.V)
		}
		f.Prefix = p
	}
}

// little checks the engine's count of requests.
func (a *analysis) little(f *Findings) {
	sec := (a.in.To - a.in.From).Seconds()
	if a.in.Shared || f.Engine == nil || f.Engine.Running == nil || sec <= 0 {
		return
	}
	client := a.in.Requests.line.mean(a.in.From, a.in.To)
	if math.IsNaN(client) || a.in.Sent <= 0 {
		return
	}
	l := &Little{Rate: a.in.Sent / sec, Stay: a.in.Requests.stay.mean(), Client: client, Engine: f.Engine.Running.Mean, N: f.Engine.Running.N}
	if w := f.Engine.Waiting; w != nil {
		l.Engine += w.Mean
	}
	l.Law = l.Rate * l.Stay
	l.Beside = l.Engine - l.Client
	l.Agree = math.Abs(l.Beside) <= max(1, 0.2*l.Client)
	f.Little = l
	switch {
	case l.Agree || l.N < 8:
	case l.Beside > 0:
		f.warn("the engine held %s requests on average and this client had %s in flight: it has other clients",
			units.Digits(l.Engine), units.Digits(l.Client))
	default:
		f.warn("the engine held %s requests on average and this client had %s in flight: the rest was on the way, or in front of the engine",
			units.Digits(l.Engine), units.Digits(l.Client))
	}
}

// minCompared is how many values two means take before their difference is
// worth a warning.
const minCompared = 30

// clocks compares the engine's times with ours.
func (a *analysis) clocks(f *Findings) {
	q := a.in.Requests
	c := &Clocks{TTFT: q.serverTTFT.disagreement(), E2E: q.serverE2E.disagreement(), Queue: q.serverQueue.disagreement()}
	for _, m := range []struct {
		name     string
		quantity enginemetrics.Quantity
		ours     sums
	}{{"ttft", enginemetrics.TTFT, q.ttft}, {"e2e", enginemetrics.E2E, q.e2e}, {"itl", enginemetrics.ITL, q.itl}} {
		sum, n := 0.0, 0.0
		for _, k := range a.find(string(m.quantity) + gpu.EngineSum) {
			sum += a.series[k].total
		}
		for _, k := range a.find(string(m.quantity) + gpu.EngineCount) {
			n += a.series[k].total
		}
		if n < 1 || m.ours.n < 1 {
			continue
		}
		d := SumDisagreement{Metric: m.name, Ours: seconds(m.ours.mean()), OursN: m.ours.n, Engine: seconds(sum / n), EngineN: int64(math.Round(n))}
		d.Difference = d.Ours - d.Engine
		c.Sums = append(c.Sums, d)
		if m.quantity == enginemetrics.TTFT && d.OursN >= minCompared && d.Difference > max(5*time.Millisecond, d.Ours/4) && !a.in.Shared {
			f.warn("%s of the mean TTFT of %s lie outside the engine: between it and here, in front of it, or in this client", units.Duration(d.Difference), units.Duration(d.Ours))
		}
	}
	if c.TTFT != nil || c.E2E != nil || c.Queue != nil || c.Sums != nil {
		f.Clocks = c
	}
}

func (s *sums) mean() float64 {
	if s.n == 0 {
		return 0
	}
	return s.sum / float64(s.n)
}

func (s *signed) disagreement() *Disagreement {
	if s.m.N() == 0 {
		return nil
	}
	return &Disagreement{
		N: s.m.N(), Mean: time.Duration(s.m.Mean()), Min: time.Duration(s.m.Min()), Max: time.Duration(s.m.Max()),
		P50: s.quantile(0.5), P99: s.quantile(0.99),
	}
}

// hostOf names what a source watches: one that reads some metrics more seldom
// than the others is two sources, NAME and NAME-slow.
func hostOf(source string) string { return strings.TrimSuffix(source, "-slow") }

// kindOf divides the name of a source into the agent that it came by, if any,
// and what it is: dcgm and dcgm2 are exporters of two hosts.
func kindOf(source string) (agent, kind string) {
	if i := strings.LastIndexByte(source, '/'); i >= 0 {
		agent, source = source[:i], source[i+1:]
	}
	return agent, strings.TrimRight(hostOf(source), "0123456789")
}

// gpus sums up each device.
func (a *analysis) gpus(f *Findings) {
	type id struct{ source, device string }
	devices := map[id]map[string][]gpu.Key{}
	for k := range a.series {
		if !strings.HasPrefix(k.Metric, "hw.gpu.") || k.Device == "" {
			continue
		}
		host := hostOf(k.Source)
		d := devices[id{host, k.Device}]
		if d == nil {
			d = map[string][]gpu.Key{}
			devices[id{host, k.Device}] = d
		}
		d[k.Metric] = append(d[k.Metric], k)
	}
	for _, d := range slices.SortedFunc(maps.Keys(devices), func(a, b id) int {
		return cmp.Or(cmp.Compare(a.source, b.source), cmp.Compare(a.device, b.device))
	}) {
		ks := devices[d]
		one := func(metric string) *series {
			if len(ks[metric]) == 0 {
				return nil
			}
			return a.series[ks[metric][0]]
		}
		g := GPU{
			Source: d.source, Device: d.device, Utilization: one(gpu.GPUUtilization).level(), SMActive: one(gpu.GPUSMActive).level(),
			DRAMActive: one(gpu.GPUDRAMActive).level(), Tensor: one(gpu.GPUTensorActive).level(), Power: one(gpu.GPUPower).level(),
			Temperature: one(gpu.GPUTemperature).level(), ClockSM: one(gpu.GPUClockSM).level(), Memory: one(gpu.GPUMemoryUsage).level(),
		}
		if g.Power == nil {
			g.Power = one(gpu.GPUPowerAverage).level()
		}
		if x := one(gpu.GPUMemoryLimit); x != nil {
			g.MemoryLimit = x.last.Value
			if g.Memory != nil {
				g.Headroom = traceformat.Some(g.MemoryLimit - g.Memory.Max)
			}
		}
		if x := one(gpu.GPUMemoryFree); x != nil && x.inside > 0 {
			g.Headroom = traceformat.Some(x.min)
		}
		if x := one(gpu.GPUEnergy); x != nil && x.covered > 0 {
			g.Energy = traceformat.Some(x.window)
		}
		g.throttled(a, ks)
		for _, k := range ks[gpu.GPUECCErrors] {
			if v, _ := gpu.AttrValue(k.Attr, "type"); v == "uncorrected" {
				g.Fatal += a.series[k].total
			} else {
				g.Corrected += a.series[k].total
			}
		}
		for _, k := range ks[gpu.GPUXID] {
			g.XIDs = append(g.XIDs, a.series[k].events...)
		}
		if x := one(gpu.GPUProcesses); x != nil && x.inside > 0 {
			g.Processes = int(x.max)
		}
		g.Processes = max(g.Processes, len(ks[gpu.GPUProcessMemory]))
		f.GPUs = append(f.GPUs, g)
	}
}

// throttled adds up the time that clocks were held down.
func (g *GPU) throttled(a *analysis, ks map[string][]gpu.Key) {
	put := func(reason string, sec float64) {
		if sec > 0 {
			if g.Throttled == nil {
				g.Throttled = map[string]float64{}
			}
			g.Throttled[reason] += sec
		}
	}
	for _, k := range ks[gpu.GPUThrottleTime] {
		if reason, ok := gpu.AttrValue(k.Attr, "reason"); ok && a.series[k].covered > 0 {
			put(reason, a.series[k].window)
		}
	}
	for _, k := range ks[gpu.GPUThrottleReasons] {
		for reason, sec := range a.series[k].bits {
			if _, slow := gpu.ThrottleReasons(float64(bit(reason))); slow {
				put(reason, sec)
			}
		}
	}
}

func bit(reason string) uint64 {
	for _, r := range gpu.ThrottleReasonTable {
		if r.Name == reason {
			return r.Bit
		}
	}
	return 0
}

// energy divides joules by what was got for them.
func (a *analysis) energy(f *Findings) {
	window := a.in.To - a.in.From
	if window <= 0 {
		return
	}
	e := &Energy{Covered: 1}
	// MIG instances share the counter of their GPU, and sources of two kinds may
	// watch one host: each GPU counts once, by the first kind that has any.
	kinds := map[string]string{}
	for _, k := range a.find(gpu.GPUEnergy) {
		x := a.series[k]
		host, kind := kindOf(k.Source)
		if x.covered <= 0 || strings.Contains(k.Device, "/mig") || kinds[host] != "" && kinds[host] != kind {
			continue
		}
		kinds[host] = kind
		e.GPUs++
		e.Joules += x.window
		e.Covered = min(e.Covered, float64(x.covered)/float64(window))
	}
	if e.GPUs == 0 {
		return
	}
	e.Watts = e.Joules / (window.Seconds() * e.Covered)
	if e.Covered < 0.98 {
		f.warn("the energy counters are known for %s of the window alone: joules are of that part, scaled to the whole", units.Percent(e.Covered))
	}
	if a.in.OutputTokens > 0 {
		e.PerOutputToken = traceformat.Some(e.Joules / e.Covered / a.in.OutputTokens)
	}
	if a.in.Completed > 0 {
		e.PerRequest = traceformat.Some(e.Joules / e.Covered / a.in.Completed)
	}
	f.Energy = e
}
