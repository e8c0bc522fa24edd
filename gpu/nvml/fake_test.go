//go:build cgo && linux && !nonvml

package nvml

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"reprise/gpu"
)

// TestMain makes the test binary a program that reads NVML, when it is asked to
// by the environment: what dlopen finds is settled when a process starts.
func TestMain(m *testing.M) {
	if n := os.Getenv("REPRISE_NVML_READINGS"); n != "" {
		fmt.Sscan(n, &readings)
		os.Exit(helper())
	}
	os.Exit(m.Run())
}

var readings int

// A helperResult is what the program prints.
type helperResult struct {
	Fault   string
	Text    string
	Samples []gpu.Sample
	Devices []gpu.Device
}

func helper() int {
	var r helperResult
	sources, err := Open(Options{})
	if late := os.Getenv("REPRISE_NVML_LATE"); late != "" {
		if err == nil || os.Rename(late, strings.TrimSuffix(late, ".late")) != nil {
			return 1
		}
		err = nil
	}
	if err != nil {
		r.Fault, r.Text = gpu.AsFault(err).Name, err.Error()
	} else {
		now := time.Second
		for range readings {
			now += DefaultPeriod
			for _, s := range sources {
				if err := s.Sample(context.Background(), func() time.Duration { return now }, func(s gpu.Sample) { r.Samples = append(r.Samples, s) }); err != nil {
					r.Fault = gpu.AsFault(err).Name
				}
			}
		}
		r.Devices = sources[0].(gpu.Describer).Devices()
		for _, s := range sources {
			s.Close()
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		return 1
	}
	return 0
}

// fakeLibrary compiles testdata/fake.c and returns the folder that it is in.
func fakeLibrary(t testing.TB, flags ...string) string {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("no gcc here to compile the fake library with")
	}
	module, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/NVIDIA/go-nvml").Output()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	args := append([]string{
		"-shared", "-fPIC", "-w", "-DNVML_NO_UNVERSIONED_FUNC_DEFS",
		"-I", filepath.Join(strings.TrimSpace(string(module)), "pkg", "nvml"),
		"-o", filepath.Join(dir, "libnvidia-ml.so.1"), "testdata/fake.c",
	}, flags...)
	if out, err := exec.Command(gcc, args...).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	return dir
}

// run runs this binary as the program.
func run(t testing.TB, n int, environment ...string) (r helperResult, stderr string, err error) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(append(os.Environ(), fmt.Sprintf("REPRISE_NVML_READINGS=%d", n)), environment...)
	var out, diag bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diag
	if err := cmd.Run(); err != nil {
		return r, diag.String(), err
	}
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	return r, diag.String(), nil
}

// The whole way: dlopen, symbols with versions, structures as C lays them out.
func TestRealLibrary(t *testing.T) {
	r, stderr, err := run(t, 6, "LD_LIBRARY_PATH="+fakeLibrary(t))
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr)
	}
	if r.Fault != "" {
		t.Fatalf("fault %s: %s", r.Fault, r.Text)
	}
	for _, w := range []struct {
		device, metric, attr string
		value                float64
	}{
		{"gpu0", gpu.GPUUtilization, "", 0.90}, {"gpu1", gpu.GPUUtilization, "", 0.91}, {"gpu1", gpu.GPUMemoryBusy, "", 0.31},
		{"gpu0", gpu.GPUMemoryLimit, "", 3000000001}, {"gpu0", gpu.GPUMemoryReserved, "", 500000000}, {"gpu0", gpu.GPUMemoryUsage, "", 1500000001}, {"gpu0", gpu.GPUMemoryFree, "", 1000000000},
		{"gpu0", gpu.GPUEnergy, "", 1250999896.491}, {"gpu1", gpu.GPUEnergy, "", 1250999896.492},
		{"gpu0", gpu.GPUClockSM, "", 1410e6}, {"gpu0", gpu.GPUClockMemory, "", 1593e6}, {"gpu0", gpu.GPUTemperature, "", 61},
		{"gpu0", gpu.GPUThrottleReasons, "", 4}, {"gpu0", gpu.GPUThrottleTime, "reason=power", 3.5},
		{"gpu0", gpu.GPUPower, "", 345.678}, {"gpu0", gpu.GPUPowerAverage, "", 222.0005}, {"gpu0", gpu.GPUPowerLimit, "", 400},
		{"gpu0", gpu.GPUNVLinkTransmit, "", 1 << 43}, {"gpu0", gpu.GPUMemoryTemp, "", -3},
		{"gpu0", gpu.GPUECCErrors, "type=corrected", 5}, {"gpu0", gpu.GPUECCErrors, "type=uncorrected", 7},
		{"gpu0", gpu.GPUProcesses, "", 2}, {"gpu0", gpu.GPUProcessMemory, "pid=77", 5000000000},
		{"gpu1", gpu.GPUXID, "", 79},
		{"gpu0", gpu.GPUSMActive, "", 0.025}, {"gpu0", gpu.GPUDRAMActive, "", 0.105}, {"gpu0", gpu.GPUPCIeReceiveRate, "", 21.5 * (1 << 20)}, {"gpu0", gpu.GPUNVLinkTxRate, "", 61.5 * (1 << 20)},
	} {
		if got, ok := value(r.Samples, w.device, w.metric, w.attr); !ok || got < w.value-1e-6*abs(w.value) || got > w.value+1e-6*abs(w.value) {
			t.Errorf("%s %s %s = %v, %t; want %v", w.device, w.metric, w.attr, got, ok, w.value)
		}
	}
	for _, m := range []string{gpu.GPUSMActive, gpu.GPUDRAMActive} {
		if v, ok := value(r.Samples, "gpu1", m, ""); ok {
			t.Errorf("%s of the GPU without GPM = %v", m, v)
		}
	}
	if v, ok := value(r.Samples, "gpu0", gpu.GPUNVLinkReceive, ""); ok {
		t.Errorf("a field that is not supported = %v", v)
	}
	if len(r.Devices) != 2 || r.Devices[1].UUID != "GPU-1" || r.Devices[1].Model != "Fake GPU" || r.Devices[1].Driver != "999.1" {
		t.Errorf("Devices() = %+v", r.Devices)
	}
}

func abs(v float64) float64 { return max(v, -v) }

// A driver of years ago has fewer functions and older structures. The dynamic
// linker would end a process that called what is not there.
func TestRealOldLibrary(t *testing.T) {
	r, stderr, err := run(t, 3, "LD_LIBRARY_PATH="+fakeLibrary(t, "-DOLD"))
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr)
	}
	for metric, want := range map[string]float64{
		gpu.GPUMemoryUsage: 2000000001, gpu.GPUThrottleReasons: 0x20, gpu.GPUPCIeTransmitRate: 11e3, gpu.GPUUtilization: 0.90,
	} {
		if got, ok := value(r.Samples, "gpu0", metric, ""); !ok || got != want {
			t.Errorf("%s = %v, %t; want %v", metric, got, ok, want)
		}
	}
	if got, ok := value(r.Samples, "gpu0", gpu.GPUProcessMemory, "pid=77"); !ok || got != 5000000000 {
		t.Errorf("memory of the process = %v, %t", got, ok)
	}
	if _, ok := value(r.Samples, "gpu0", gpu.GPUSMActive, ""); ok {
		t.Error("GPM without its functions")
	}
}

func TestRealLostGPU(t *testing.T) {
	r, stderr, err := run(t, 120, "LD_LIBRARY_PATH="+fakeLibrary(t), "FAKE_NVML_LOST=20")
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr)
	}
	if gap, ok := value(r.Samples, "gpu1", gpu.MetricGap, ""); !ok || gap <= 0 {
		t.Errorf("gap = %v, %t", gap, ok)
	}
	if r.Fault != "" {
		t.Errorf("one lost GPU ended the readings: %s", r.Fault)
	}
}

func TestRealFaults(t *testing.T) {
	dir := fakeLibrary(t)
	for code, want := range map[string]string{"9": gpu.FaultNoDriver, "18": gpu.FaultDriverMismatch, "4": gpu.FaultNoPermission, "999": gpu.FaultFailed} {
		if r, stderr, err := run(t, 1, "LD_LIBRARY_PATH="+dir, "FAKE_NVML_INIT="+code); err != nil || r.Fault != want {
			t.Errorf("nvmlInit giving %s: fault %q, want %s (%v %s)", code, r.Fault, want, err, stderr)
		}
	}
}

// A driver that comes up after the program is found.
func TestRealLateDriver(t *testing.T) {
	dir := fakeLibrary(t)
	library := filepath.Join(dir, "libnvidia-ml.so.1")
	if err := os.Rename(library, library+".late"); err != nil {
		t.Fatal(err)
	}
	r, stderr, err := run(t, 6, "LD_LIBRARY_PATH="+dir, "REPRISE_NVML_LATE="+library+".late")
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr)
	}
	if v, ok := value(r.Samples, "gpu0", gpu.GPUUtilization, ""); !ok || v != 0.90 || r.Fault != "" || len(r.Devices) != 2 {
		t.Errorf("utilisation %v, %t; %d devices, %s %s", v, ok, len(r.Devices), r.Fault, r.Text)
	}
}

// The binary starts without a driver, because its symbols are bound when they
// are used. Were they bound at the start (a link with -z now does that, and so
// does this variable), it would not.
func TestStartsWithoutDriver(t *testing.T) {
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		t.Skip("the linker of this system may not bind lazily")
	}
	r, stderr, err := run(t, 1)
	if err != nil {
		t.Fatalf("the binary does not start: %v\n%s", err, stderr)
	}
	switch {
	case r.Fault == "" || r.Fault != gpu.FaultNoDriver:
		t.Skipf("this host has a driver (%d devices, %s)", len(r.Devices), r.Fault)
	case !strings.Contains(r.Text, "libnvidia-ml.so.1"):
		t.Errorf("error %q does not say what is missing", r.Text)
	}
	_, stderr, err = run(t, 1, "LD_BIND_NOW=1")
	if _, failed := errors.AsType[*exec.ExitError](err); !failed || !strings.Contains(stderr, "undefined symbol: nvml") {
		t.Errorf("bound at once, the binary ends with %v: %.200s; this test proves nothing", err, stderr)
	}
}
