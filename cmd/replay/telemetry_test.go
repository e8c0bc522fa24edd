package main

import (
	"testing"

	"reprise/gpu/findings"
	"reprise/replay"
	"reprise/traceformat"
)

// checkTelemetry holds what an engine says of a run against the run's rows: its
// counters, scraped before and behind it, are sums over the same requests, and
// its clock, where it has one, is inside ours.
func checkTelemetry(t *testing.T, dir string, rows []*traceformat.Row) {
	t.Helper()
	m, err := replay.ReadManifest(dir)
	if err != nil {
		t.Fatal(err)
	}
	rec := m.Telemetry
	if rec == nil || rec.Engine == nil {
		t.Errorf("no telemetry of the engine: %+v", rec)
		return
	}
	var prompt, output int64
	for _, r := range rows {
		prompt += int64(r.ServedPromptTokens.V)
		output += int64(r.ServedOutputTokens.V)
	}
	e := rec.Engine
	if e.Prompt.V != prompt || e.Generated.V != output || e.Restarts != 0 {
		t.Errorf("the engine counts %d prompt and %d output tokens, its answers %d and %d; %d restarts", e.Prompt.V, e.Generated.V, prompt, output, e.Restarts)
	}
	if e.Running == nil || e.Running.N < 2 {
		t.Errorf("requests running: %+v", e.Running)
	}
	if len(rec.Pages) != 2 || rec.Environment.Verdict != findings.Unwatched && len(rec.GPUs) == 0 {
		t.Errorf("pages %q, host %+v", rec.Pages, rec.Environment)
	}
	if rec.Clocks == nil {
		return
	}
	for _, s := range rec.Clocks.Sums {
		if s.Metric != "itl" && s.Difference < 0 {
			t.Errorf("mean %s: %v here and %v in the engine, which is inside", s.Metric, s.Ours, s.Engine)
		}
		if s.OursN != s.EngineN {
			t.Errorf("%s: %d values here and %d in the engine", s.Metric, s.OursN, s.EngineN)
		}
	}
	t.Logf("engine %+v; clocks %+v", *e, *rec.Clocks)
}
