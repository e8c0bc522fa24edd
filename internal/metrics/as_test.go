package metrics

import (
	"math"
	"strings"
	"testing"

	"reprise/traceformat"
)

// Three answers and a failure, as each tool would have counted them.
func TestAs(t *testing.T) {
	rows := []*traceformat.Row{
		sent(-s1, event{ms1, 1}), // warm-up
		// Woken 1 ms late, 2 ms until it was sent; a role 50 ms on, then six tokens.
		with(late(sent(0, event{100 * ms1, 1}, event{150 * ms1, 3}, event{210 * ms1, 2}), ms1, 2*ms1, 0), func(r *traceformat.Row) {
			r.FirstEvent, r.Close = known(53*ms1), known(223*ms1)
		}),
		sent(s1, event{300 * ms1, 1}),
		failed(sent(2*s1, event{5 * ms1, 1}, event{6 * ms1, 1}), traceformat.ResultServerError, "connection_reset"),
		// A length that was not asked for is no failure to any of the tools.
		with(sent(3*s1, event{40 * ms1, 1}, event{80 * ms1, 3}), func(r *traceformat.Row) { r.OutputTokens.V = 9 }),
		shed(3 * s1),
	}
	tests := map[string]map[string]float64{
		// From the wake. The wait from the role to the first token is an ITL.
		"vllm": {
			"completed": 3, "failed": 1, "duration": 3.079, "total_input_tokens": 300, "total_output_tokens": 11,
			"request_throughput": 3 / 3.079, "output_throughput": 11 / 3.079, "total_token_throughput": 311 / 3.079,
			"mean_ttft_ms": (52 + 300 + 40) / 3., "median_ttft_ms": 52, "p99_ttft_ms": 52 + 0.98*248,
			"mean_tpot_ms": (160./5 + 40./3) / 2, "std_tpot_ms": (160./5 - 40./3) / 2,
			"mean_itl_ms": (50 + 50 + 60 + 40) / 4., "p99_itl_ms": 60,
			"mean_e2el_ms": (212 + 300 + 80) / 3., "median_e2el_ms": 212,
		},
		// Latency and TPOT run to the end of the stream, ITL is split over tokens.
		"sglang": {
			"completed": 3, "duration": 3.08, "input_throughput": 300 / 3.08, "concurrency": (0.222 + 0.301 + 0.081) / 3.08,
			"mean_ttft_ms": (102 + 300 + 40) / 3., "median_ttft_ms": 102,
			"mean_e2e_latency_ms": (222 + 301 + 81) / 3., "mean_tpot_ms": (120./5 + 41./3) / 2,
			"mean_itl_ms": 150 / 8., "max_itl_ms": 30, "p95_itl_ms": 30,
		},
		// ITL is per request; the gaps are inter-chunk latencies.
		"aiperf": {
			"time_to_first_token.avg": (102 + 300 + 40) / 3., "time_to_first_token.p50": 102, "time_to_second_token.avg": 45,
			"request_latency.avg": (212 + 300 + 80) / 3., "inter_token_latency.avg": (22 + 40./3) / 2, "inter_token_latency.max": 22,
			"inter_chunk_latency.avg": 50, "inter_chunk_latency.max": 60,
			"output_token_throughput_per_user.min": 1000 / 22., "output_token_throughput_per_user.max": 75, "output_token_throughput_per_user.p50": (1000/22. + 75) / 2,
			"output_token_throughput": 11 / 3.079, "total_token_throughput": 311 / 3.079, "request_throughput": 3 / 3.079,
			"request_count": 3, "error_request_count": 1, "benchmark_duration": 3.079,
		},
		// TPOT includes the first token, and both it and ITL weigh requests by
		// tokens; percentiles are values of the sample.
		"guidellm": {
			"request_latency.mean": (0.222 + 0.301 + 0.081) / 3, "time_to_first_token_ms.median": 102, "time_to_first_token_ms.p95": 300,
			"inter_token_latency_ms.mean": (22*5 + 40.) / 8, "inter_token_latency_ms.median": 22, "inter_token_latency_ms.std_dev": math.Sqrt(15) / 8 * (22 - 40./3),
			"time_per_output_token_ms.mean": (212 + 300 + 80) / 11., "time_per_output_token_ms.median": 212. / 6,
			"requests_per_second.mean": 3 / 3.08, "output_tokens_per_second.mean": 11 / 3.08, "tokens_per_second.mean": 311 / 3.08,
		},
		// Requests/s counts the failed one; ITL is rounded to a nanosecond.
		"genai-perf": {
			"time_to_first_token.avg": (102 + 300 + 40) / 3., "time_to_first_token.p75": 201, "time_to_second_token.max": 50,
			"request_latency.p90": 212 + 0.8*88, "inter_token_latency.min": 13.333333, "inter_token_latency.max": 22,
			"output_token_throughput_per_request.avg": (6/0.212 + 1/0.3 + 4/0.08) / 3, "output_token_throughput.avg": 11 / 3.079,
			"request_throughput.avg": 4 / 3.079, "request_count.avg": 3,
		},
	}
	for _, name := range Tools() {
		want, ok := tests[name]
		if !ok {
			t.Errorf("%s is not tested", name)
		}
		a, err := NewAs(name, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			a.Add(r)
		}
		got := map[string]float64{}
		for _, f := range a.Figures() {
			if _, twice := got[f.Name]; twice {
				t.Errorf("%s: two figures %s", name, f.Name)
			}
			got[f.Name] = f.Value
		}
		for figure, w := range want {
			g, ok := got[figure]
			tolerance := 1e-9
			if strings.Contains(figure, "itl") {
				tolerance = 1e-3 // HDR
			}
			if !ok || math.Abs(g-w) > tolerance*w {
				t.Errorf("%s: %s = %v (%t), want %v", name, figure, g, ok, w)
			}
		}
	}
}

func TestAsOfNothing(t *testing.T) {
	for _, name := range Tools() {
		a, err := NewAs(name, 0)
		if err != nil {
			t.Fatal(err)
		}
		a.Add(failed(sent(0), traceformat.ResultServerError, "connect_refused"))
		for _, f := range a.Figures() {
			if math.IsNaN(f.Value) || math.IsInf(f.Value, 0) || f.Value > 1 {
				t.Errorf("%s: %s = %v of a run without an answer", name, f.Name, f.Value)
			}
		}
	}
	if _, err := NewAs("wrk", 0); err == nil || !strings.Contains(err.Error(), "there are vllm, sglang, aiperf, guidellm, genai-perf") {
		t.Errorf("NewAs(wrk): %v", err)
	}
}
