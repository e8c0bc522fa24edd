package report

import (
	"encoding/json"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reprise/gpu"
	"reprise/gpu/findings"
	"reprise/internal/enginemetrics"
	"reprise/internal/metrics"
	"reprise/traceformat"
)

// watchShard gives a shard telemetry of a GPU of 250 W that all shards share, and of an
// engine; its times count from the shard's own zero, late after the others'.
func watchShard(t *testing.T, dir string, late time.Duration, throttled bool) *findings.Record {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	err := gpu.WriteFile(filepath.Join(dir, telemetryFile), gpu.FileInfo{Program: "v1"}, func(yield func(gpu.Sample) bool) {
		for at := -time.Second; at < 31*time.Second; at += 200 * ms {
			for _, s := range []gpu.Sample{
				{Device: "gpu0", Source: "nvml", Metric: gpu.GPUEnergy, Unit: "J", Value: 1e6 + 250*at.Seconds()},
				{Device: "engine", Source: "engine", Metric: string(enginemetrics.GeneratedTokens), Unit: "{token}", Value: 100 * at.Seconds()},
				{Device: "engine", Source: "engine", Metric: string(enginemetrics.Running), Unit: "{request}", Value: 5},
				{Device: "gpu0", Source: "nvml", Metric: gpu.GPUThrottleReasons, Unit: "{bitmask}", Value: map[bool]float64{true: 0x40}[throttled]},
			} {
				s.Time = at - late
				if !yield(s) {
					return
				}
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return &findings.Record{File: telemetryFile, Sources: []gpu.SourceStatus{{Name: "nvml", Readings: 160}, {Name: "engine", Readings: 160}}, Notes: []string{"a note"}}
}

func telemetryOf(t *testing.T, m *Manifest, r *findings.Record) {
	t.Helper()
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	m.Telemetry = b
}

// One shard's samples and the requests of all make the telemetry of the whole:
// the energy of the one GPU is there once, whoever watched it.
func TestMergedTelemetry(t *testing.T) {
	t.Chdir(t.TempDir())
	all := played(1500)
	dirs := writeShards(t, all, 3, func(i int, m *Manifest) {
		late(1, 40*ms)(i, m)
		switch i {
		case 0: // without the GPU
			r := watchShard(t, "s0", 0, false)
			r.Sources = r.Sources[1:]
			telemetryOf(t, m, r)
		case 1:
			telemetryOf(t, m, watchShard(t, "s1", 40*ms, false))
		}
	})
	m := mustMerge(t, MergeConfig{Shards: dirs})
	rec := m.Record()
	if rec == nil || !strings.HasPrefix(rec.From, "shard 1/3 ") || rec.File != telemetryFile || len(rec.Notes) != 1 {
		t.Fatalf("telemetry %+v, want that of shard 1", rec)
	}
	e := rec.Energy
	if e == nil || e.GPUs != 1 || math.Abs(e.Watts-250) > 0.01 {
		t.Fatalf("energy %+v, want 250 W", e)
	}
	if s := m.Summary; math.Abs(e.PerOutputToken.V*s.Rates.OutputTokens-250) > 0.01 || math.Abs(e.PerRequest.V*s.Rates.Completed-250) > 0.01 {
		t.Errorf("%v J a token at %v/s, want 250 W over all shards", e.PerOutputToken.V, s.Rates.OutputTokens)
	}
	var tokens int64
	for _, r := range all {
		if r.Sent.OK {
			tokens += int64(r.OutputTokens.Or(0))
		}
	}
	if rec.Engine == nil || rec.Engine.Received != tokens || rec.Engine.Restarts != 0 {
		t.Errorf("engine %+v, want %d tokens received over all shards", rec.Engine, tokens)
	}
	r, err := gpu.Open("whole")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for s, err := range r.All() {
		if err != nil || s.Time != -time.Second {
			t.Errorf("the first sample is at %v, %v; want -1 s on the axis of the whole", s.Time, err)
		}
		break
	}
	if !r.Info().Start.Equal(start) || r.Rows() != 4*160 {
		t.Errorf("%d samples from %v", r.Rows(), r.Info().Start)
	}
	a, err := Analyse(t.Context(), "whole", Config{})
	if err != nil || a.Telemetry == nil || a.Telemetry.Energy == nil || *a.Telemetry.Energy != *e {
		t.Errorf("analysed: %+v, %v", a, err)
	}
}

// What disturbed the server disturbed the run, and is said once.
func TestMergedDisturbance(t *testing.T) {
	t.Chdir(t.TempDir())
	dirs := writeShards(t, played(300), 2, func(i int, m *Manifest) {
		if i == 0 {
			telemetryOf(t, m, watchShard(t, "s0", 0, true))
		}
	})
	m := mustMerge(t, MergeConfig{Shards: dirs})
	if f := m.Summary.Fidelity; f.Verdict != metrics.Invalid || strings.Count(strings.Join(f.Reasons, "\n"), "gpu0 was throttled") != 1 {
		t.Errorf("fidelity %+v", f)
	}
}

// Where there is no telemetry of the whole, that is said, and the rest is joined.
func TestMergedTelemetryStaysWithShards(t *testing.T) {
	for _, tt := range []struct {
		name, warning string
		change        func(i int, m *Manifest)
	}{
		{"an engine each", "did not watch one and the same server", func(_ int, m *Manifest) { m.Server.URL = "" }},
		{"a damaged file", "telemetry stays with the shards: shard 0/2", func(i int, _ *Manifest) {
			if i != 0 {
				return
			}
			b, err := os.ReadFile("s0/telemetry.parquet")
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile("s0/telemetry.parquet", b[:len(b)/2], 0o644); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			dirs := writeShards(t, played(300), 2, func(i int, m *Manifest) {
				if i == 0 {
					telemetryOf(t, m, watchShard(t, "s0", 0, false))
				}
				tt.change(i, m)
			})
			m := mustMerge(t, MergeConfig{Shards: dirs})
			if m.Telemetry != nil || !strings.Contains(strings.Join(m.Warnings, "\n"), tt.warning) {
				t.Errorf("telemetry %s, warnings %q", m.Telemetry, m.Warnings)
			}
			if _, err := os.Stat(filepath.Join("whole", telemetryFile)); err == nil {
				t.Error("half of a telemetry file was kept")
			}
			if _, err := os.Stat(filepath.Join("whole", traceformat.RunTrace)); err != nil {
				t.Error(err)
			}
		})
	}
}
