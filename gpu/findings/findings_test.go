package findings

import (
	"iter"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"reprise/gpu"
	"reprise/internal/enginemetrics"
	"reprise/traceformat"
)

func some[T any](v T) traceformat.Opt[T] { return traceformat.Some(v) }

// request is a row that was sent at from and answered evenly from first to last.
func request(from, first, last time.Duration, prompt, output int32) *traceformat.Row {
	r := &traceformat.Row{}
	r.Arrival = from
	r.PromptTokens, r.OutputTokens = some(prompt), some(output)
	o := &r.Outcome
	o.Scheduled, o.Sent, o.Close = some(from), some(from), some(last)
	o.TTFT, o.E2E, o.TTFTSource = some(first-from), some(last-from), traceformat.TTFTContentEvent
	o.ServedPromptTokens, o.ServedOutputTokens = some(prompt), some(output)
	o.Result, o.FinishReason = traceformat.ResultOK, "length"
	return r
}

func sample(at time.Duration, source, device, metric, attr string, v float64) gpu.Sample {
	return gpu.Sample{Time: at, Source: source, Device: device, Metric: metric, Attr: attr, Value: v}
}

func all(samples ...gpu.Sample) iter.Seq2[gpu.Sample, error] {
	slices.SortStableFunc(samples, func(a, b gpu.Sample) int { return int(a.Time - b.Time) })
	return func(yield func(gpu.Sample, error) bool) {
		for _, s := range samples {
			if !yield(s, nil) {
				return
			}
		}
	}
}

func analyse(t *testing.T, in Input, samples ...gpu.Sample) *Findings {
	t.Helper()
	f, err := Analyse(in, all(samples...))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func near(a, b float64) bool { return math.Abs(a-b) <= 1e-9*max(1, math.Abs(a), math.Abs(b)) }

// Joules are a difference of the counter over the window, linear at its edges,
// and survive a driver that begins to count anew.
func TestEnergy(t *testing.T) {
	in := Input{From: 10 * time.Second, To: 20 * time.Second, OutputTokens: 1000, Completed: 10, Requests: NewRequests()}
	var s []gpu.Sample
	for i := range 31 { // 100 W, and 300 W from 15 s on
		at := time.Duration(i) * time.Second
		joules := 100 * at.Seconds()
		if at > 15*time.Second {
			joules = 1500 + 300*(at.Seconds()-15)
		}
		s = append(s, sample(at, "nvml", "gpu0", gpu.GPUEnergy, "", 5e6+joules), sample(at, "nvml", "gpu1", gpu.GPUEnergy, "", 50*at.Seconds()),
			sample(at, "nvml", "gpu0/mig1", gpu.GPUEnergy, "", 5e6+joules), sample(at, "dcgm", "gpu0", gpu.GPUEnergy, "", 0))
	}
	f := analyse(t, in, s...)
	// dcgm comes first by name and its counter stands still: one source counts.
	if e := f.Energy; e == nil || e.Joules != 0 || e.GPUs != 1 {
		t.Fatalf("energy of the first source: %+v", f.Energy)
	}
	s = slices.DeleteFunc(s, func(s gpu.Sample) bool { return s.Source == "dcgm" })
	f = analyse(t, in, s...)
	want := 500.0 + 1500 + 500
	if e := f.Energy; e == nil || !near(e.Joules, want) || e.GPUs != 2 || !near(e.PerOutputToken.V, want/1000) || !near(e.PerRequest.V, want/10) || !near(e.Watts, want/10) || !near(e.Covered, 1) {
		t.Errorf("energy %+v, want %v J", f.Energy, want)
	}
	// Half a window is known: what is said of tokens is scaled.
	half := slices.DeleteFunc(slices.Clone(s), func(s gpu.Sample) bool { return s.Time < 15*time.Second || s.Device != "gpu1" })
	f = analyse(t, in, half...)
	if e := f.Energy; !near(e.Joules, 250) || !near(e.Covered, 0.5) || !near(e.PerRequest.V, 50) || len(f.Warnings) != 1 {
		t.Errorf("half of it: %+v, %q", e, f.Warnings)
	}
	reset := []gpu.Sample{
		sample(10*time.Second, "nvml", "gpu0", gpu.GPUEnergy, "", 1000), sample(15*time.Second, "nvml", "gpu0", gpu.GPUEnergy, "", 1500),
		sample(20*time.Second, "nvml", "gpu0", gpu.GPUEnergy, "", 40),
	}
	if f = analyse(t, in, reset...); !near(f.Energy.Joules, 540) {
		t.Errorf("after a reset %v J, want 540", f.Energy.Joules)
	}
}

// Hosts with agents are added up, and what is scraped twice counts once.
func TestSeveralHosts(t *testing.T) {
	var s []gpu.Sample
	for i, v := range []float64{0, 100} {
		at := time.Duration(i) * 10 * time.Second
		for _, source := range []string{"agent/nvml", "agent/dcgm", "agent1/nvml", "dcgm", "dcgm1"} {
			s = append(s, sample(at, source, "gpu0", gpu.GPUEnergy, "", v))
		}
		for _, source := range []string{"engine", "agent/engine"} {
			s = append(s, sample(at, source, "engine0", string(enginemetrics.Running), "", 5), sample(at, source, "engine0", string(enginemetrics.GeneratedTokens), "", v))
		}
	}
	f := analyse(t, Input{To: 10 * time.Second}, s...)
	if f.Energy.GPUs != 4 || f.Energy.Joules != 400 {
		t.Errorf("energy %+v, want that of 4 GPUs", f.Energy)
	}
	if f.Engine.Engines != 1 || f.Engine.Generated.V != 100 {
		t.Errorf("engine %+v, want one", f.Engine)
	}
}

// A steady load obeys Little's law on both sides, and the engine's counters,
// restarted or not, come to their sums.
func TestEngineAndLittle(t *testing.T) {
	q := NewRequests()
	for i := range 400 { // 10 a second, 2 s each: 20 in flight
		at := time.Duration(i) * 100 * time.Millisecond
		q.Add(request(at, at+500*time.Millisecond, at+2*time.Second, 100, 16))
	}
	in := Input{From: 5 * time.Second, To: 35 * time.Second, Sent: 300, Requests: q, Implied: some(0.5)}
	var s []gpu.Sample
	for i := range 90 {
		at := time.Duration(i) * 500 * time.Millisecond
		generated := float64(160 * i / 2)
		if i >= 40 { // restarted
			generated -= 3200
		}
		for _, engine := range []string{"engine0", "engine1"} {
			s = append(s, sample(at, "engine", engine, string(enginemetrics.Running), "", 9), sample(at, "engine", engine, string(enginemetrics.Waiting), "", 1),
				sample(at, "engine", engine, string(enginemetrics.GeneratedTokens), "", generated/2),
				sample(at, "engine", engine, string(enginemetrics.PrefixQueries), "", 100*float64(i)), sample(at, "engine", engine, string(enginemetrics.PrefixHits), "", 60*float64(i)))
		}
	}
	f := analyse(t, in, s...)
	if e := f.Engine; e.Engines != 2 || !near(e.Running.Mean, 18) || !near(e.Waiting.Mean, 2) || e.Generated.V != 2*(39*40+49*40) {
		t.Errorf("engine %+v, %+v", e, e.Running)
	}
	if l := f.Little; l == nil || !near(l.Law, 20) || math.Abs(l.Client-20) > 1e-6 || !near(l.Engine, 20) || !l.Agree {
		t.Errorf("Little's law %+v", f.Little)
	}
	if p := f.Prefix; p == nil || !near(p.Hit, 0.6) || !near(p.Difference.V, 0.1) {
		t.Errorf("prefixes %+v", f.Prefix)
	}
	for i := range s {
		if s[i].Metric == string(enginemetrics.Running) {
			s[i].Value = 40
		}
	}
	f = analyse(t, in, s...)
	if f.Little.Agree || !slices.ContainsFunc(f.Warnings, func(w string) bool { return strings.Contains(w, "other clients") }) {
		t.Errorf("with others' requests: %+v, %q", f.Little, f.Warnings)
	}
}

// The cache holds what the requests hold: the slope is what was put in.
func TestKVGrowth(t *testing.T) {
	q := NewRequests()
	for i := range 600 {
		at := time.Duration(i) * 100 * time.Millisecond
		if i > 300 && i%2 == 0 {
			continue
		}
		q.Add(request(at, at, at+time.Duration(1+i%5)*time.Second, 200, 64))
	}
	var s []gpu.Sample
	for i := range 110 {
		at := time.Duration(i)*500*time.Millisecond + 50*time.Millisecond
		_, tokens := q.line.at(at)
		s = append(s, sample(at, "engine", "engine0", string(enginemetrics.KVUsed), "", 500+0.75*tokens), sample(at, "engine", "engine0", string(enginemetrics.KVUsage), "", (500+0.75*tokens)/1e5),
			sample(at, "engine", "engine0", string(enginemetrics.KVCapacity), "", 1e5))
	}
	f := analyse(t, Input{From: 0, To: 55 * time.Second, Requests: q}, s...)
	k := f.KV
	if k == nil || math.Abs(k.PerResident.V-0.75) > 1e-6 || math.Abs(k.Fixed.V-500) > 1e-3 || math.Abs(k.R2.V-1) > 1e-9 || k.Capacity.V != 1e5 {
		t.Fatalf("growth %+v", k)
	}
	if len(k.Growth) != maxRanges || !slices.IsSortedFunc(k.Growth, func(a, b Growth) int { return int(1000 * (a.Flight - b.Flight)) }) {
		t.Errorf("%d ranges, or not in order", len(k.Growth))
	}
	for _, g := range k.Growth {
		if g.Length < 200 || g.Length > 264 || !near(g.Used, 500+0.75*g.Resident) {
			t.Errorf("range %+v", g)
		}
	}
}

// The two clocks are compared request by request and by their sums.
func TestClocks(t *testing.T) {
	q := NewRequests()
	for i := range 100 {
		at := time.Duration(i) * 100 * time.Millisecond
		r := request(at, at+500*time.Millisecond, at+2*time.Second, 100, 16)
		less := 5 * time.Millisecond
		if i == 99 {
			less = -time.Millisecond
		}
		r.ServerTTFT, r.ServerE2E = some(500*time.Millisecond-less), some(2*time.Second-10*time.Millisecond)
		q.Add(r)
	}
	s := []gpu.Sample{
		sample(-time.Second, "engine", "engine0", string(enginemetrics.TTFT)+gpu.EngineSum, "", 70), sample(-time.Second, "engine", "engine0", string(enginemetrics.TTFT)+gpu.EngineCount, "", 7),
		sample(time.Minute, "engine", "engine0", string(enginemetrics.TTFT)+gpu.EngineSum, "", 70+49), sample(time.Minute, "engine", "engine0", string(enginemetrics.TTFT)+gpu.EngineCount, "", 107),
	}
	c := analyse(t, Input{From: 0, To: 10 * time.Second, Requests: q}, s...).Clocks
	if d := c.TTFT; d == nil || d.N != 100 || d.Min != -time.Millisecond || math.Abs(float64(d.P50-5*time.Millisecond)) > 1e4 || d.Max != 5*time.Millisecond {
		t.Errorf("TTFT %+v", c.TTFT)
	}
	if d := c.E2E; d == nil || math.Abs(float64(d.P99-10*time.Millisecond)) > 2e4 {
		t.Errorf("E2E %+v", c.E2E)
	}
	if len(c.Sums) != 1 || c.Sums[0].OursN != 100 || c.Sums[0].EngineN != 100 || c.Sums[0].Difference != 10*time.Millisecond {
		t.Errorf("sums %+v", c.Sums)
	}
}

// A gauge holds until the next sample, however unevenly they come, and not
// through a gap.
func TestLevels(t *testing.T) {
	const ms = time.Millisecond
	in := Input{From: 0, To: 10 * time.Second}
	var s []gpu.Sample
	for _, at := range []time.Duration{0, 1000 * ms, 1001 * ms, 4000 * ms, 4001 * ms, 9000 * ms} {
		v := 1.0
		if at >= 4*time.Second {
			v = 3
		}
		s = append(s, sample(at, "nvml", "gpu0", gpu.GPUTemperature, "", v))
	}
	if l := analyse(t, in, s...).GPUs[0].Temperature; !near(l.Mean, (4*1+6*3)/10.0) || l.Min != 1 || l.Max != 3 || l.N != 6 {
		t.Errorf("level %+v", l)
	}
	for _, device := range []string{"", "gpu0"} {
		// Nothing is known from 5 s to 9 s.
		gap := gpu.Sample{Time: 8999 * ms, Source: "nvml", Device: device, Metric: gpu.MetricGap, Value: 3.999}
		if l := analyse(t, in, append(slices.Clone(s), gap)...).GPUs[0].Temperature; !near(l.Mean, (4*1+2*3)/6.0) {
			t.Errorf("with a gap of %q: %+v", device, l)
		}
	}
}

// Time that passes outside the engine is worth a line, and what other shards do
// is not.
func TestWarnings(t *testing.T) {
	q := NewRequests()
	for i := range 100 {
		at := time.Duration(i) * 100 * time.Millisecond
		q.Add(request(at, at+500*time.Millisecond, at+2*time.Second, 100, 16))
	}
	s := []gpu.Sample{
		sample(0, "engine", "engine0", string(enginemetrics.TTFT)+gpu.EngineSum, "", 0), sample(0, "engine", "engine0", string(enginemetrics.TTFT)+gpu.EngineCount, "", 0),
		sample(0, "engine", "engine0", string(enginemetrics.GeneratedTokens), "", 0), sample(time.Second, "engine", "engine0", string(enginemetrics.GeneratedTokens), "", 5000),
		sample(time.Minute, "engine", "engine0", string(enginemetrics.TTFT)+gpu.EngineSum, "", 10), sample(time.Minute, "engine", "engine0", string(enginemetrics.TTFT)+gpu.EngineCount, "", 100),
		{Time: time.Second, Source: "engine", Metric: gpu.MetricGap, Value: 1, Note: gpu.EngineRestarted}, {Time: 2 * time.Second, Source: "engine", Metric: gpu.MetricGap, Value: 1, Note: "timeout"},
	}
	in := Input{From: 0, To: 10 * time.Second, Requests: q, Sent: 100}
	f := analyse(t, in, s...)
	text := strings.Join(f.Warnings, "\n")
	if len(f.Warnings) != 2 || !strings.Contains(text, "400 ms of the mean TTFT of 500 ms lie outside") || !strings.Contains(text, "generated 5,000 tokens and this client received 1,600") {
		t.Errorf("warnings %q", text)
	}
	if f.Engine.Restarts != 1 {
		t.Errorf("%d restarts, want 1", f.Engine.Restarts)
	}
	in.Shared = true
	if f = analyse(t, in, s...); len(f.Warnings) != 0 || f.Little != nil {
		t.Errorf("of a shard: %q, %+v", f.Warnings, f.Little)
	}
}

// What disturbs a run is named, and what does not is not.
func TestEnvironment(t *testing.T) {
	const s = time.Second
	series := func(metric, attr string, v ...float64) (out []gpu.Sample) {
		for i, v := range v {
			if !math.IsNaN(v) {
				out = append(out, sample(time.Duration(i)*s, "nvml-slow", "gpu0", metric, attr, v))
			}
		}
		return out
	}
	repeat := func(v float64, n int) []float64 { return slices.Repeat([]float64{v}, n) }
	quiet := series(gpu.GPUUtilization, "", repeat(0.9, 31)...)
	missing := repeat(math.NaN(), 31)
	late := slices.Concat(missing[:15], repeat(1e9, 16))
	for _, tt := range []struct {
		name    string
		samples []gpu.Sample
		verdict string
		text    string
	}{
		{"nothing was looked at", nil, Unwatched, ""},
		{"nothing happened", quiet, Undisturbed, ""},
		{"idle bits", slices.Concat(quiet, series(gpu.GPUThrottleReasons, "", repeat(3, 31)...)), Undisturbed, ""},
		{"power cap, sampled", slices.Concat(quiet, series(gpu.GPUThrottleReasons, "", repeat(4, 31)...)), Doubtful, "sw power cap"},
		{"thermal, sampled", slices.Concat(quiet, series(gpu.GPUThrottleReasons, "", slices.Concat(repeat(0, 20), repeat(0x40, 11))...)), Disturbed, "hw thermal"},
		{"thermal, for a moment before the window", slices.Concat(quiet, series(gpu.GPUThrottleReasons, "", slices.Concat(repeat(0x40, 3), repeat(0, 28))...)), Undisturbed, ""},
		{"thermal, counted", slices.Concat(quiet, series(gpu.GPUThrottleTime, "reason=thermal", slices.Concat(repeat(5, 20), repeat(7, 11))...)), Disturbed, "throttled for 2.00 s"},
		{"power, counted", slices.Concat(quiet, series(gpu.GPUThrottleTime, "reason=power", slices.Concat(repeat(5, 20), repeat(7, 11))...)), Doubtful, "power"},
		{"ECC before the run", slices.Concat(quiet, series(gpu.GPUECCErrors, "type=uncorrected", repeat(4, 31)...)), Undisturbed, ""},
		{"ECC, uncorrected", slices.Concat(quiet, series(gpu.GPUECCErrors, "type=uncorrected", slices.Concat(repeat(4, 20), repeat(5, 11))...)), Disturbed, "1 uncorrected"},
		{"ECC, corrected", slices.Concat(quiet, series(gpu.GPUECCErrors, "type=corrected", slices.Concat(repeat(4, 20), repeat(6, 11))...)), Doubtful, "corrected 2"},
		{"XID", append(slices.Clone(quiet), sample(20*s, "nvml-slow", "gpu0", gpu.GPUXID, "", 31)), Disturbed, "XID 31"},
		{"a process all along", slices.Concat(quiet, series(gpu.GPUProcesses, "", repeat(1, 31)...), series(gpu.GPUProcessMemory, "pid=1", repeat(1e9, 31)...)), Undisturbed, ""},
		{"two processes all along", slices.Concat(quiet, series(gpu.GPUProcesses, "", repeat(2, 31)...)), Doubtful, "2 processes"},
		{"a process that came", slices.Concat(quiet, series(gpu.GPUProcesses, "", slices.Concat(repeat(1, 15), repeat(2, 16))...), series(gpu.GPUProcessMemory, "pid=1", repeat(1e9, 31)...), series(gpu.GPUProcessMemory, "pid=2", late...)), Disturbed, "1 process came or went"},
		{"one for another", slices.Concat(quiet, series(gpu.GPUProcesses, "", repeat(1, 31)...), series(gpu.GPUProcessMemory, "pid=1", slices.Concat(repeat(1e9, 15), missing[:16])...), series(gpu.GPUProcessMemory, "pid=2", late...)), Disturbed, "2 processes came or went"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := analyse(t, Input{From: 5 * s, To: 30 * s}, tt.samples...).Environment
			if e.Verdict != tt.verdict || !strings.Contains(strings.Join(append(e.Reasons, e.Warnings...), "; "), tt.text) {
				t.Errorf("%+v, want %s: %s", e, tt.verdict, tt.text)
			}
		})
	}
}

// The source of the slow metrics and that of the others are one device.
func TestSlowSourceIsTheSameGPU(t *testing.T) {
	f := analyse(t, Input{To: 10 * time.Second},
		sample(time.Second, "a/nvml", "gpu0", gpu.GPUMemoryUsage, "", 60e9), sample(2*time.Second, "a/nvml", "gpu0", gpu.GPUMemoryUsage, "", 70e9),
		sample(time.Second, "a/nvml-slow", "gpu0", gpu.GPUMemoryLimit, "", 80e9))
	if len(f.GPUs) != 1 || f.GPUs[0].Headroom.V != 10e9 || f.GPUs[0].Source != "a/nvml" {
		t.Errorf("GPUs %+v", f.GPUs)
	}
}

// However requests lie, the timeline holds each one's time and tokens, and stays
// bounded.
func TestTimeline(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := timeline{width: cellWidth}
		flight, tokens := 0.0, 0.0
		for range rapid.IntRange(1, 20).Draw(t, "requests") {
			a := time.Duration(rapid.Int64Range(0, int64(3*time.Hour)).Draw(t, "from"))
			first := a + time.Duration(rapid.Int64Range(0, int64(time.Minute)).Draw(t, "first"))
			last := first + time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "last"))
			b := last + time.Duration(rapid.Int64Range(1, int64(time.Second)).Draw(t, "close"))
			prompt, output := rapid.Float64Range(0, 1e5).Draw(t, "prompt"), rapid.Float64Range(0, 1e4).Draw(t, "output")
			l.add(a, b, first, last, prompt, output)
			flight += (b - a).Seconds()
			tokens += prompt*(b-a).Seconds() + output*((last-first).Seconds()/2+(b-last).Seconds())
		}
		var gotFlight, gotTokens float64
		for _, c := range l.cells {
			gotFlight += c.flight
			gotTokens += c.tokens
			if c.flight < 0 || c.tokens < -1e-6*tokens {
				t.Fatalf("a cell of %v", c)
			}
		}
		if math.Abs(gotFlight-flight) > 1e-6*flight || math.Abs(gotTokens-tokens) > 1e-6*tokens+1e-6 {
			t.Fatalf("flight %v, want %v; tokens %v, want %v", gotFlight, flight, gotTokens, tokens)
		}
		if len(l.cells) > maxCells {
			t.Fatalf("%d cells", len(l.cells))
		}
	})
}

// A row from a damaged file neither panics nor takes memory.
func TestTimelineOfDamage(t *testing.T) {
	q := NewRequests()
	for _, r := range []*traceformat.Row{
		request(-time.Hour, -time.Minute, time.Second, 1, 1), request(0, time.Second, 1<<61, 1, 1), request(1<<61, 1<<61, 1<<62, -5, -5),
		request(10*time.Second, 5*time.Second, 3*time.Second, 1, 1),
	} {
		q.Add(r)
	}
	if len(q.line.cells) > maxCells {
		t.Errorf("%d cells", len(q.line.cells))
	}
	analyse(t, Input{From: 0, To: time.Second, Requests: q, Sent: 1}, sample(time.Millisecond, "e", "engine", string(enginemetrics.Running), "", 1))
}
