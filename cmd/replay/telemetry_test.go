package main

import (
	"context"
	"math"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reprise/gpu"
	"reprise/gpu/agent"
	"reprise/gpu/findings"
	"reprise/internal/clock"
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

// steadyGPU draws 250 W, and holds 60 of 80 GB.
type steadyGPU struct{ begun time.Duration }

func (*steadyGPU) Name() string          { return "nvml" }
func (*steadyGPU) Period() time.Duration { return 50 * time.Millisecond }
func (*steadyGPU) Close() error          { return nil }
func (g *steadyGPU) Sample(_ context.Context, now func() time.Duration, emit func(gpu.Sample)) error {
	at := now()
	emit(gpu.Sample{Time: at, Device: "gpu0", Metric: gpu.GPUEnergy, Value: 1e6 + 250*(at-g.begun).Seconds()})
	emit(gpu.Sample{Time: at, Device: "gpu0", Metric: gpu.GPUMemoryUsage, Value: 60e9})
	emit(gpu.Sample{Time: at, Device: "gpu0", Metric: gpu.GPUMemoryLimit, Value: 80e9})
	emit(gpu.Sample{Time: at, Device: "gpu0", Metric: gpu.GPUUtilization, Value: 0.5})
	return nil
}

// The GPUs of another host come through its agent, on the run's clock.
func TestAgentBesideARun(t *testing.T) {
	var sampler *gpu.Sampler
	const token = "a-token-of-some-length"
	server := agent.NewServer(agent.Options{Token: token}, func() []gpu.SourceStatus { return sampler.Status() })
	sampler = gpu.StartSampler(gpu.SamplerConfig{Emit: server.Add}, &steadyGPU{clock.Now()})
	defer sampler.Close()
	web := httptest.NewServer(server.Handler())
	defer web.Close()

	tokenFile := filepath.Join(t.TempDir(), "token")
	writeFile(t, tokenFile, token)
	dir := filepath.Join(t.TempDir(), "run")
	stdout, stderr, status := replayCommand(t, "../../testdata/demo.parquet", "--duration", "3s", "-q", "-o", dir, "--gpu", "agent="+web.URL, "--agent-token-file", tokenFile)
	if status != 0 && status != 3 {
		t.Fatalf("status %d\n%s", status, stderr)
	}
	m, err := replay.ReadManifest(dir)
	if err != nil {
		t.Fatal(err)
	}
	rec, s := m.Telemetry, m.Summary
	e := rec.Energy
	if e == nil || e.GPUs != 1 || math.Abs(e.Watts-250) > 5 || math.Abs(e.PerOutputToken.V*s.Rates.OutputTokens-250) > 5 {
		t.Errorf("energy %+v at %v tokens/s, want 250 W", e, s.Rates.OutputTokens)
	}
	if len(rec.GPUs) != 1 || rec.GPUs[0].Headroom.V != 20e9 || rec.Environment.Verdict != findings.Undisturbed {
		t.Errorf("GPUs %+v, host %+v", rec.GPUs, rec.Environment)
	}
	if !strings.Contains(stdout, "J/output token") || !strings.Contains(stdout, "  gpu0      ") {
		t.Errorf("the summary:\n%s", stdout)
	}

	// With the wrong token there is nothing, which is named, and the run is whole.
	stdout, _, _ = replayCommand(t, "../../testdata/demo.parquet", "--limit", "2", "-q", "-o", dir, "--force", "--gpu", "agent="+web.URL)
	if !strings.Contains(stdout, "agent: no readings: unauthorized") || strings.Contains(stdout, "J/output token") {
		t.Errorf("without a token:\n%s", stdout)
	}
}

func writeFile(t *testing.T, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
