package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"reprise/gpu"
	"reprise/traceformat"
)

// A run directory of a program that was killed gives its samples back with its
// rows.
func TestRecoverTelemetry(t *testing.T) {
	alive, dead := t.TempDir(), t.TempDir()
	j, err := traceformat.CreateJournal(filepath.Join(alive, "trace.parquet.journal"), &traceformat.Header{Version: traceformat.Version})
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	w, err := gpu.Create(filepath.Join(alive, telemetryFile))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	w.SetZero(10*time.Second, time.Time{})
	w.Add(gpu.Sample{Time: 12 * time.Second, Source: "nvml", Device: "gpu0", Metric: gpu.GPUPower, Value: 300})
	empty, err := os.Stat(filepath.Join(alive, telemetryFile+".journal"))
	if err != nil {
		t.Fatal(err)
	}
	// The writer lives; what is copied is what a dead one leaves.
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if s, err := os.Stat(filepath.Join(alive, telemetryFile+".journal")); err == nil && s.Size() > empty.Size() {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the journal does not grow")
		}
	}
	for _, name := range []string{"trace.parquet.journal", telemetryFile + ".journal"} {
		b, err := os.ReadFile(filepath.Join(alive, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dead, name), b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	path, err := exec.LookPath("trace") // testscript.Main put it there
	if err != nil {
		t.Fatal(err)
	}
	var diag bytes.Buffer
	cmd := exec.CommandContext(t.Context(), path, "recover", dead)
	cmd.Stderr = &diag
	if err := cmd.Run(); err != nil || !strings.Contains(diag.String(), "recovered 1 samples of telemetry") {
		t.Fatalf("%v\n%s", err, diag.String())
	}
	r, err := gpu.Open(filepath.Join(dead, telemetryFile))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for s, err := range r.All() {
		if err != nil || s.Time != 2*time.Second || s.Value != 300 {
			t.Errorf("sample %+v, %v", s, err)
		}
	}
	if r.Rows() != 1 || r.Info().Partial == "" {
		t.Errorf("%d rows, info %+v", r.Rows(), r.Info())
	}
}
