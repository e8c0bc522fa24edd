package metrics

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"reprise/internal/stats"
	"reprise/traceformat"
)

// A Figure is one number as another tool names it.
type Figure struct {
	Name  string  `json:"name"` // as in that tool's result file
	Unit  string  `json:"unit"`
	Value float64 `json:"value"`
}

// An As computes the figures that another load generator would have printed
// for the same answers, by that tool's own formulas. They differ from each
// other and from this package's; none of them counts from the schedule.
//
// All of them start a request's clock when their code begins to send it, before
// it has a connection: here wake_ns. All take a stream that came to its end for
// a success, whatever its length and finish reason. What a tool reads off text
// (an event whose text is empty, a count by its own tokenizer) is taken from
// token counts here. Percentiles of pooled gaps are HDR.
//
// Sources: vllm/benchmarks/serve.py (vLLM 0.33.0); python/sglang/benchmark
// metrics.py and backends/sglang_client.py (SGLang 0.5.23); aiperf
// metrics/types (AIPerf 0.13.0); guidellm schemas/request_stats.py and
// schemas/statistics.py (GuideLLM 0.8.1); genai_perf
// profile_data_parser/llm_profile_data_parser.py (GenAI-Perf of 2025).
type As struct {
	tool *tool
	from time.Duration

	ttft, e2e, tpot []float64 // by the tool's formulas, in ns; tpot is what some call ITL
	second          []float64 // from the first token to the second event, ns
	perOutput       []float64 // of tool.perOutput

	// Of a tool that weighs requests: ITL by the tokens after the first, and
	// perOutput by tokens.
	weighedITL, weighedOutput []weighed

	gaps             *stats.Hist
	requests, failed int64
	input, output    int64
	begun            bool
	begin, end       time.Duration // first start; last end
}

// A tool says how a load generator's formulas differ.
type tool struct {
	name    string
	figures func(*As) []Figure
	// Which event ends the wait for the first token, and which the answer.
	firstEvent bool // any event, a role too
	untilClose bool // the end of the stream
	itlToLast  bool // all the same, ITL ends with the last token
	perToken   bool // a pooled gap counts once per token, divided
	rounded    bool // ITL is a whole number of nanoseconds
	byTokens   bool // ITL and perOutput weigh a request by its tokens
	perOutput  func(last, e2e float64, n int64) float64
}

var tools = []tool{
	// TTFT: first chunk that has choices, be it a role. ITL: pooled gaps.
	{name: "vllm", figures: (*As).vllm, firstEvent: true},
	// Latency runs to [DONE]. ITL: pooled gaps, split by the tokens in them.
	{name: "sglang", figures: (*As).sglang, untilClose: true, perToken: true},
	// ITL: per request.
	{name: "aiperf", figures: (*As).aiperf},
	// TPOT includes the first token; ITL is per request. In both a request counts
	// as often as it has tokens: its mean ITL is over tokens.
	{name: "guidellm", figures: (*As).guidellm, untilClose: true, itlToLast: true, byTokens: true,
		perOutput: func(last, _ float64, n int64) float64 { return last / float64(n) }},
	// ITL: per request.
	{name: "genai-perf", figures: (*As).genaiPerf, rounded: true,
		perOutput: func(_, e2e float64, n int64) float64 { return float64(n) / (e2e / 1e9) }},
}

// Tools lists the tools that NewAs knows.
func Tools() []string {
	var names []string
	for _, t := range tools {
		names = append(names, t.name)
	}
	return names
}

// NewAs returns an As for a tool. Requests scheduled before from are warm-up,
// which every tool leaves out.
func NewAs(name string, from time.Duration) (*As, error) {
	for i := range tools {
		if tools[i].name == name {
			return &As{tool: &tools[i], from: from, gaps: stats.NewHist()}, nil
		}
	}
	return nil, fmt.Errorf("no metrics of %q; there are %s", name, strings.Join(Tools(), ", "))
}

// Add takes one row, which stays the caller's.
func (a *As) Add(row *traceformat.Row) {
	r := Measure(row)
	if r.Zero < a.from || r.Class == Unknown || r.Class == Shed {
		return
	}
	start, ok := r.Sent.Get()
	before := time.Duration(0) // from the tool's start to the send
	if r.Replayed && row.Wake.OK && ok {
		wake := bound(row.Wake.V)
		before, start = start-wake, wake
	}
	a.requests++
	if ok && (!a.begun || start < a.begin) {
		a.begun, a.begin = true, start
	}
	complete := r.Class == OK || r.Outcome == WrongLength || r.Outcome == BadFinish
	if !complete || !ok || !r.E2E.OK {
		a.failed++
		return
	}
	last := float64(before + r.E2E.V)
	e2e := last
	if a.tool.untilClose && row.Close.OK {
		e2e = float64(bound(row.Close.V) - start)
	}
	ttft := float64(before + r.TTFT.Or(r.E2E.V))
	if a.tool.firstEvent && row.FirstEvent.OK {
		ttft = float64(bound(row.FirstEvent.V) - start)
	}
	n := int64(r.OutputTokens.Or(0))
	a.end = max(a.end, start+time.Duration(e2e))
	a.ttft, a.e2e = append(a.ttft, ttft), append(a.e2e, e2e)
	prompt := r.PromptTokens
	if !prompt.OK {
		prompt = r.AskedPromptTokens
	}
	a.input += int64(prompt.Or(0))
	a.output += n
	if n > 1 {
		until := e2e
		if a.tool.itlToLast {
			until = last
		}
		itl := (until - ttft) / float64(n-1)
		if a.tool.rounded {
			itl = math.RoundToEven(itl)
		}
		a.tpot = append(a.tpot, itl)
		if a.tool.byTokens {
			a.weighedITL = append(a.weighedITL, weighed{itl, float64(n - 1)})
		}
	}
	if a.tool.perOutput != nil && n > 0 && e2e > 0 {
		a.perOutput = append(a.perOutput, a.tool.perOutput(last, e2e, n))
		if a.tool.byTokens {
			a.weighedOutput = append(a.weighedOutput, weighed{a.tool.perOutput(last, e2e, n), float64(n)})
		}
	}
	if a.tool.firstEvent && row.FirstEvent.OK && r.TTFT.OK && before+r.TTFT.V > time.Duration(ttft) {
		// The wait from the role to the first token is a gap like any other.
		a.gaps.Add(before+r.TTFT.V-time.Duration(ttft), 1)
	}
	gapOfSecond := true
	eachGap(row, func(gap time.Duration, tokens int64) {
		if gapOfSecond {
			a.second, gapOfSecond = append(a.second, float64(gap)), false
		}
		if a.tool.perToken && tokens > 0 {
			a.gaps.Add(gap/time.Duration(tokens), tokens)
		} else {
			a.gaps.Add(gap, 1)
		}
	})
}

// Figures returns what the tool would have printed, in its order.
func (a *As) Figures() []Figure {
	for _, v := range [][]float64{a.ttft, a.e2e, a.tpot, a.second, a.perOutput} {
		slices.Sort(v)
	}
	return a.tool.figures(a)
}

func (a *As) seconds() float64 { return (a.end - a.begin).Seconds() }

// rate divides by the duration of the benchmark, drain included.
func (a *As) rate(n int64) float64 {
	if s := a.seconds(); s > 0 {
		return float64(n) / s
	}
	return 0
}

// numpy has what numpy says of a sample; an empty one is 0, as the tools have
// it ("or 0").
type numpy struct {
	mean, sd, min, max float64 // sd of the population
	percentile         func(p float64) float64
}

func ofValues(sorted []float64) numpy {
	if len(sorted) == 0 {
		return numpy{percentile: func(float64) float64 { return 0 }}
	}
	var m stats.Moments
	for _, v := range sorted {
		m.Add(v)
	}
	return numpy{m.Mean(), math.Sqrt(m.Variance()), m.Min(), m.Max(), func(p float64) float64 { return stats.Quantile(sorted, p/100) }}
}

func ofHist(h *stats.Hist) numpy {
	m := h.Moments()
	if m.N() == 0 {
		return ofValues(nil)
	}
	return numpy{m.Mean(), math.Sqrt(m.Variance()), m.Min(), m.Max(), func(p float64) float64 { return h.Quantile(p / 100) }}
}

const ms = 1e6

func (a *As) vllm() []Figure {
	f := []Figure{
		{"completed", "", float64(len(a.e2e))}, {"failed", "", float64(a.failed)}, {"duration", "s", a.seconds()},
		{"total_input_tokens", "", float64(a.input)}, {"total_output_tokens", "", float64(a.output)},
		{"request_throughput", "req/s", a.rate(int64(len(a.e2e)))}, {"output_throughput", "tok/s", a.rate(a.output)},
		{"total_token_throughput", "tok/s", a.rate(a.input + a.output)},
	}
	for _, m := range []struct {
		name string
		d    numpy
	}{{"ttft", ofValues(a.ttft)}, {"tpot", ofValues(a.tpot)}, {"itl", ofHist(a.gaps)}, {"e2el", ofValues(a.e2e)}} {
		f = append(f, Figure{"mean_" + m.name + "_ms", "ms", m.d.mean / ms}, Figure{"median_" + m.name + "_ms", "ms", m.d.percentile(50) / ms},
			Figure{"std_" + m.name + "_ms", "ms", m.d.sd / ms}, Figure{"p99_" + m.name + "_ms", "ms", m.d.percentile(99) / ms})
	}
	return f
}

func (a *As) sglang() []Figure {
	sum := 0.0
	for _, v := range a.e2e {
		sum += v / 1e9
	}
	concurrency := 0.0
	if s := a.seconds(); s > 0 {
		concurrency = sum / s
	}
	f := []Figure{
		{"completed", "", float64(len(a.e2e))}, {"duration", "s", a.seconds()},
		{"total_input_tokens", "", float64(a.input)}, {"total_output_tokens", "", float64(a.output)},
		{"request_throughput", "req/s", a.rate(int64(len(a.e2e)))}, {"input_throughput", "tok/s", a.rate(a.input)},
		{"output_throughput", "tok/s", a.rate(a.output)}, {"total_throughput", "tok/s", a.rate(a.input + a.output)},
		{"concurrency", "", concurrency},
	}
	for _, m := range []struct {
		name string
		d    numpy
	}{{"e2e_latency", ofValues(a.e2e)}, {"ttft", ofValues(a.ttft)}, {"tpot", ofValues(a.tpot)}, {"itl", ofHist(a.gaps)}} {
		f = append(f, Figure{"mean_" + m.name + "_ms", "ms", m.d.mean / ms}, Figure{"median_" + m.name + "_ms", "ms", m.d.percentile(50) / ms},
			Figure{"std_" + m.name + "_ms", "ms", m.d.sd / ms})
		if m.name == "itl" {
			f = append(f, Figure{"p95_itl_ms", "ms", m.d.percentile(95) / ms})
		}
		f = append(f, Figure{"p99_" + m.name + "_ms", "ms", m.d.percentile(99) / ms})
		if m.name == "itl" {
			f = append(f, Figure{"max_itl_ms", "ms", m.d.max / ms})
		}
	}
	return f
}

// nvidia is the block of statistics that AIPerf and GenAI-Perf print.
func nvidia(name, unit string, scale float64, d numpy, percentiles ...float64) []Figure {
	f := []Figure{{name + ".avg", unit, d.mean / scale}, {name + ".min", unit, d.min / scale}, {name + ".max", unit, d.max / scale}}
	for _, p := range percentiles {
		f = append(f, Figure{fmt.Sprintf("%s.p%v", name, p), unit, d.percentile(p) / scale})
	}
	return append(f, Figure{name + ".std", unit, d.sd / scale})
}

func (a *As) aiperf() []Figure {
	perUser := make([]float64, 0, len(a.tpot)) // 1 / ITL; descending ITL is ascending here
	for _, v := range slices.Backward(a.tpot) {
		if v > 0 {
			perUser = append(perUser, 1e9/v)
		}
	}
	var f []Figure
	for _, m := range []struct {
		name, unit string
		scale      float64
		d          numpy
	}{
		{"time_to_first_token", "ms", ms, ofValues(a.ttft)}, {"time_to_second_token", "ms", ms, ofValues(a.second)},
		{"request_latency", "ms", ms, ofValues(a.e2e)}, {"inter_token_latency", "ms", ms, ofValues(a.tpot)},
		{"inter_chunk_latency", "ms", ms, ofHist(a.gaps)}, {"output_token_throughput_per_user", "tokens/sec/user", 1, ofValues(perUser)},
	} {
		f = append(f, nvidia(m.name, m.unit, m.scale, m.d, 99, 90, 50)...)
	}
	return append(f, Figure{"output_token_throughput", "tokens/sec", a.rate(a.output)},
		Figure{"total_token_throughput", "tokens/sec", a.rate(a.input + a.output)},
		Figure{"request_throughput", "requests/sec", a.rate(int64(len(a.e2e)))},
		Figure{"request_count", "requests", float64(len(a.e2e))}, Figure{"error_request_count", "requests", float64(a.failed)},
		Figure{"benchmark_duration", "sec", a.seconds()})
}

func (a *As) genaiPerf() []Figure {
	var f []Figure
	for _, m := range []struct {
		name, unit string
		scale      float64
		d          numpy
	}{
		{"time_to_first_token", "ms", ms, ofValues(a.ttft)}, {"time_to_second_token", "ms", ms, ofValues(a.second)},
		{"request_latency", "ms", ms, ofValues(a.e2e)}, {"inter_token_latency", "ms", ms, ofValues(a.tpot)},
		{"output_token_throughput_per_request", "tokens/sec", 1, ofValues(a.perOutput)},
	} {
		f = append(f, nvidia(m.name, m.unit, m.scale, m.d, 99, 90, 75)...)
	}
	// Its request throughput counts every request, answered or not.
	return append(f, Figure{"output_token_throughput.avg", "tokens/sec", a.rate(a.output)},
		Figure{"request_throughput.avg", "requests/sec", a.rate(a.requests)}, Figure{"request_count.avg", "count", float64(len(a.e2e))})
}

func (a *As) guidellm() []Figure {
	f := []Figure{
		{"requests_per_second.mean", "req/s", a.rate(int64(len(a.e2e)))}, {"output_tokens_per_second.mean", "tok/s", a.rate(a.output)},
		{"tokens_per_second.mean", "tok/s", a.rate(a.input + a.output)},
	}
	for _, m := range []struct {
		name, unit string
		scale      float64
		v          []weighed
	}{
		{"request_latency", "s", 1e9, evenly(a.e2e)}, {"time_to_first_token_ms", "ms", ms, evenly(a.ttft)},
		{"inter_token_latency_ms", "ms", ms, a.weighedITL}, {"time_per_output_token_ms", "ms", ms, a.weighedOutput},
	} {
		mean, sd, at := distribution(m.v)
		f = append(f, Figure{m.name + ".mean", m.unit, mean / m.scale}, Figure{m.name + ".median", m.unit, at(0.5) / m.scale},
			Figure{m.name + ".std_dev", m.unit, sd / m.scale}, Figure{m.name + ".p95", m.unit, at(0.95) / m.scale},
			Figure{m.name + ".p99", m.unit, at(0.99) / m.scale})
	}
	return f
}

// A weighed is a value that counts w times.
type weighed struct{ v, w float64 }

func evenly(values []float64) []weighed {
	out := make([]weighed, len(values))
	for i, v := range values {
		out[i] = weighed{v, 1}
	}
	return out
}

// distribution is GuideLLM's DistributionSummary, which it sorts values for. at
// is the smallest value whose cumulative share reaches p, without interpolation.
func distribution(values []weighed) (mean, sd float64, at func(p float64) float64) {
	slices.SortFunc(values, func(a, b weighed) int { return cmp.Compare(a.v, b.v) })
	total := 0.0
	for _, x := range values {
		total += x.w
		mean += x.v * x.w
	}
	if total == 0 {
		return 0, 0, func(float64) float64 { return 0 }
	}
	mean /= total
	for _, x := range values {
		sd += (x.v - mean) * (x.v - mean) * x.w
	}
	return mean, math.Sqrt(sd / total), func(p float64) float64 {
		sum := 0.0
		for _, x := range values {
			// Shares are summed, and not weights, so that rounding picks the
			// value that it picks there.
			if sum += x.w / total; sum >= p {
				return x.v
			}
		}
		return values[len(values)-1].v
	}
}
