package gpu

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

func testSample(t testing.TB, s Source, now time.Duration) (all []Sample, err error) {
	t.Helper()
	err = s.Sample(t.Context(), func() time.Duration { return now }, func(m Sample) {
		if _, ok := Lookup(m.Metric); !ok {
			t.Errorf("metric %q is not in the vocabulary", m.Metric)
		}
		all = append(all, m)
	})
	return all, err
}

func lookFor(all []Sample, device, metric, attr string) (float64, bool) {
	for _, s := range slices.Backward(all) {
		if s.Device == device && s.Metric == metric && s.Attr == attr {
			return s.Value, true
		}
	}
	return 0, false
}

func TestDCGMPage(t *testing.T) {
	page, err := os.ReadFile("testdata/dcgm.txt")
	if err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/metrics" {
			w.Write(page)
		}
	}))
	defer web.Close()
	d, err := NewDCGM("", web.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	all, err := testSample(t, d, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []struct {
		device, metric string
		value          float64
	}{
		{"gpu0", GPUClockSM, 1980e6}, {"gpu1", GPUClockSM, 345e6}, {"gpu0", GPUPowerAverage, 412.313}, {"gpu0", GPUEnergy, 126436482.163},
		{"gpu0", GPUUtilization, 0.97}, {"gpu1", GPUUtilization, 0}, {"gpu0", GPUMemoryUsage, 71234 << 20}, {"gpu1/mig9", GPUMemoryUsage, 12 << 20},
		{"gpu0", GPUTensorActive, 0.41223}, {"gpu0", GPUPCIeTransmitRate, 33011804},
	} {
		if got, ok := lookFor(all, w.device, w.metric, ""); !ok || math.Abs(got-w.value) > 1e-9*w.value {
			t.Errorf("%s %s = %v, %t; want %v", w.device, w.metric, got, ok, w.value)
		}
	}
	if v, ok := lookFor(all, "gpu1", GPUEnergy, ""); ok {
		t.Errorf("DCGM's value for unknown became %v J", v)
	}
	if _, ok := lookFor(all, "gpu0", GPUXID, ""); ok {
		t.Error("an XID of before the run was reported")
	}
	if devices := d.Devices(); len(devices) != 3 || devices[0].Model != "NVIDIA H100 80GB HBM3" || devices[0].Driver != "570.86.15" || !strings.HasPrefix(devices[1].UUID, "GPU-") {
		t.Errorf("Devices() = %+v", devices)
	}
	// A new XID is an event, once.
	page = []byte(strings.Replace(string(page), `err_msg="MMU"} 31`, `err_msg="bus"} 79`, 1))
	all, _ = testSample(t, d, time.Second)
	if v, ok := lookFor(all, "gpu0", GPUXID, ""); !ok || v != 79 {
		t.Errorf("XID = %v, %t", v, ok)
	}
	all, _ = testSample(t, d, time.Second)
	if _, ok := lookFor(all, "gpu0", GPUXID, ""); ok {
		t.Error("the same XID was reported twice")
	}
}

func TestDCGMStrangePages(t *testing.T) {
	page, err := os.ReadFile("testdata/dcgm.txt")
	if err != nil {
		t.Fatal(err)
	}
	filler := strings.Repeat("go_info{version=\"x\"} 1\n", 1<<16)
	for _, tt := range []struct {
		name, fault string
		serve       func(w http.ResponseWriter)
	}{
		{"cut in half", FaultCutShort, func(w http.ResponseWriter) { w.Write(page[:len(page)/2]) }},
		{"cut on the wire", FaultCutShort, func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "100000")
			w.Write(page)
			panic(http.ErrAbortHandler)
		}},
		{"50 MB", FaultTooLong, func(w http.ResponseWriter) {
			for range 50 << 20 / len(filler) {
				io.WriteString(w, filler)
			}
		}},
		{"HTML", FaultNotMetrics, func(w http.ResponseWriter) { io.WriteString(w, "<!doctype html><title>login</title>\n") }},
		{"JSON", FaultNotMetrics, func(w http.ResponseWriter) { io.WriteString(w, "{\"error\": 1}\n") }},
		{"empty", FaultNotMetrics, func(w http.ResponseWriter) {}},
		{"another exporter", FaultNotMetrics, func(w http.ResponseWriter) { io.WriteString(w, "go_goroutines 8\n") }},
		{"broken line", FaultNotMetrics, func(w http.ResponseWriter) { io.WriteString(w, "DCGM_FI_DEV_GPU_UTIL{gpu=\"0\"} many\n") }},
		{"404", FaultRefused, func(w http.ResponseWriter) { w.WriteHeader(404) }},
		{"401", FaultUnauthorized, func(w http.ResponseWriter) { w.WriteHeader(401) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { tt.serve(w) }))
			defer web.Close()
			d, err := NewDCGM("", web.URL)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err = testSample(t, d, time.Second)
			runtime.ReadMemStats(&after)
			f := AsFault(err)
			if f == nil || f.Name != tt.fault {
				t.Fatalf("Sample = %v, want %s", err, tt.fault)
			}
			if strings.Contains(f.Error(), strings.TrimPrefix(web.URL, "http://")) {
				t.Errorf("error %q tells an address", f.Error())
			}
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 100<<20 {
				t.Errorf("%d MB were allocated", grown>>20)
			}
		})
	}
	d, err := NewDCGM("", "http://127.0.0.1:1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := testSample(t, d, 0); AsFault(err) == nil || AsFault(err).Name != FaultUnreachable || strings.Contains(AsFault(err).Error(), "127.0.0.1") {
		t.Errorf("nobody there = %v", err)
	}
}

func FuzzDCGM(f *testing.F) {
	page, err := os.ReadFile("testdata/dcgm.txt")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(page)
	f.Add([]byte("DCGM_FI_DEV_GPU_UTIL NaN\n"))
	f.Add([]byte("# TYPE DCGM_FI_DEV_GPU_UTIL histogram\nDCGM_FI_DEV_GPU_UTIL_bucket{le=\"1\"} 1\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		d, err := NewDCGM("", "http://x")
		if err != nil {
			t.Fatal(err)
		}
		if err := d.parse(in, 0, func(Sample) {}); err != nil {
			if _, ok := errors.AsType[*Fault](err); !ok {
				t.Fatalf("error %v is a %T, want *Fault", err, err)
			}
		}
	})
}

// smiProgram writes a shell script that stands for nvidia-smi.
func smiProgram(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "nvidia-smi")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// smiLines is what nvidia-smi prints for a H100 and for a GPU without ECC and
// memory temperature.
const smiLines = `index, uuid, name, utilization.gpu [%], memory.total [MiB], memory.used [MiB], power.draw.instant [W], clocks.current.sm [MHz], temperature.memory, clocks_event_reasons.active, ecc.errors.corrected.volatile.total
0, GPU-0, NVIDIA H100 80GB HBM3, 98, 81559, 70000, 402.11, 1980, 61, 0x0000000000000004, 0
1, GPU-1, NVIDIA L4, 3, 23034, 100, 22.10, 210, N/A, 0x0000000000000001, [N/A]
`

func TestSMI(t *testing.T) {
	s := NewSMI(SMIOptions{Command: smiProgram(t, "cat <<'X'\n"+smiLines+"X\nexec sleep 60\n")})
	defer s.Close()
	all, err := sampleUntil(t, s, 2)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []struct {
		device, metric, attr string
		value                float64
	}{
		{"gpu0", GPUUtilization, "", 0.98}, {"gpu0", GPUMemoryLimit, "", 81559 << 20}, {"gpu0", GPUMemoryUsage, "", 70000 << 20}, {"gpu0", GPUPower, "", 402.11},
		{"gpu0", GPUClockSM, "", 1980e6}, {"gpu0", GPUMemoryTemp, "", 61}, {"gpu0", GPUThrottleReasons, "", 4}, {"gpu0", GPUECCErrors, "type=corrected", 0},
		{"gpu1", GPUUtilization, "", 0.03}, {"gpu1", GPUThrottleReasons, "", 1},
	} {
		if got, ok := lookFor(all, w.device, w.metric, w.attr); !ok || math.Abs(got-w.value) > 1e-9*w.value {
			t.Errorf("%s %s = %v, %t; want %v", w.device, w.metric, got, ok, w.value)
		}
	}
	for _, absent := range [][2]string{{GPUMemoryTemp, ""}, {GPUECCErrors, "type=corrected"}} {
		if v, ok := lookFor(all, "gpu1", absent[0], absent[1]); ok {
			t.Errorf("%s, which is not available, = %v", absent[0], v)
		}
	}
	if d := s.Devices(); len(d) != 2 || d[1].Model != "NVIDIA L4" || d[0].Memory != 81559<<20 {
		t.Errorf("Devices() = %+v", d)
	}
}

// sampleUntil reads until n devices have given something.
func sampleUntil(t *testing.T, s *SMI, n int) (all []Sample, err error) {
	t.Helper()
	start := time.Now()
	for len(s.Devices()) < n && time.Since(start) < 20*time.Second && err == nil {
		var more []Sample
		more, err = testSample(t, s, time.Since(start))
		all = append(all, more...)
		time.Sleep(5 * ms)
	}
	return all, err
}

// A driver that is older than a field refuses all; the field is left out, or
// asked for by its old name.
func TestSMIOldDriver(t *testing.T) {
	s := NewSMI(SMIOptions{Command: smiProgram(t, `
case "$*" in
*clocks_event_reasons.active*) echo 'Field "clocks_event_reasons.active" is not a valid field to query.'; exit 2;;
*memory.reserved*) echo 'Field "memory.reserved" is not a valid field to query.'; exit 2;;
*clocks_throttle_reasons.active*) printf 'index, clocks_throttle_reasons.active\n0, 0x0000000000000020\n'; exec sleep 60;;
esac
exit 9
`)})
	defer s.Close()
	all, err := sampleUntil(t, s, 1)
	if v, ok := lookFor(all, "gpu0", GPUThrottleReasons, ""); err != nil || !ok || v != 0x20 {
		t.Errorf("throttle reasons = %v, %t, %v", v, ok, err)
	}
}

func TestSMIFaults(t *testing.T) {
	for script, want := range map[string]string{
		"echo \"NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure\"; exit 9":   FaultNoDriver,
		"echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18":                                 FaultDriverMismatch,
		"echo 'Unable to determine the device handle for GPU0000:3B:00.0: GPU is lost.  Reboot the system'; exit 15": FaultGPULost,
		"echo 'No devices were found'; exit 6": FaultNoDriver,
		"exit 3":                               FaultFailed,
		"echo hello; exec sleep 60":            FaultTimeout,
	} {
		s := NewSMI(SMIOptions{Command: smiProgram(t, script)})
		var err error
		for start := time.Now(); err == nil && time.Since(start) < 20*time.Second; time.Sleep(5 * ms) {
			_, err = testSample(t, s, 100*time.Since(start)) // a minute is 0.6 s
		}
		if f := AsFault(err); f == nil || f.Name != want {
			t.Errorf("%q: %v, want %s", script, err, want)
		}
		s.Close()
	}
	s := NewSMI(SMIOptions{Command: "/nonexistent/nvidia-smi"})
	if _, err := testSample(t, s, 0); AsFault(err) == nil || AsFault(err).Name != FaultNoDriver {
		t.Errorf("no nvidia-smi = %v", err)
	}
}

// A file that grows is followed; its timestamps count.
func TestSMIFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "smi.csv")
	now := time.Now()
	line := func(ago time.Duration, util int) string {
		return fmt.Sprintf("%s, 0, %d %%\n", now.Add(-ago).Local().Format(smiTime), util)
	}
	if err := os.WriteFile(path, []byte("timestamp, index, utilization.gpu [%]\n"+line(10*time.Second, 50)+line(9*time.Second, 60)[:20]), 0o644); err != nil {
		t.Fatal(err)
	}
	s := NewSMI(SMIOptions{File: path})
	defer s.Close()
	all, err := testSample(t, s, time.Hour)
	if err != nil || len(all) != 1 {
		t.Fatalf("%d samples, %v; want 1: the second line has not ended", len(all), err)
	}
	if ago := time.Hour - all[0].Time; ago < 9*time.Second || ago > 5*time.Minute {
		t.Errorf("the sample is %v ago, want 10s", ago)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	io.WriteString(f, line(9*time.Second, 60)[20:]+line(8*time.Second, 70))
	all, err = testSample(t, s, time.Hour)
	if err != nil || len(all) != 2 || math.Abs(all[1].Value-0.7) > 1e-9 {
		t.Errorf("after it grew: %+v, %v", all, err)
	}
	for _, bad := range []string{"0, 50 %\n", "index, a\n1\n", strings.Repeat("x", 100_000)} {
		if err := os.WriteFile(path+"2", []byte(bad), 0o644); err != nil {
			t.Fatal(err)
		}
		s := NewSMI(SMIOptions{File: path + "2"})
		if _, err := testSample(t, s, 0); AsFault(err) == nil {
			t.Errorf("%.20q is no error", bad)
		}
		s.Close()
	}
	missing := NewSMI(SMIOptions{File: path + "3"})
	if _, err := testSample(t, missing, 0); err == nil || strings.Contains(err.Error(), path) {
		t.Errorf("a missing file = %v", err)
	}
}

func FuzzSMI(f *testing.F) {
	f.Add(smiLines)
	f.Add("index\n[GPU is lost]\n")
	f.Add("timestamp, index\n2026/11/24 10:00:00.000, 0\n\"\n")
	f.Fuzz(func(t *testing.T, in string) {
		var p smiParser
		for line := range strings.Lines(in) {
			row, err := p.line(line)
			if err != nil {
				continue
			}
			if row == nil {
				continue
			}
			for _, s := range row.samples {
				if s.Value-s.Value != 0 {
					t.Fatalf("a value that is no number from %q", line)
				}
			}
		}
	})
}
