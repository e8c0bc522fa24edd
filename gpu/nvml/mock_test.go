//go:build cgo && linux && !nonvml

package nvml

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxb200"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh200"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"

	"reprise/gpu"
)

// servers are go-nvml's. gpm says which have it: Hopper and later.
var servers = []struct {
	name  string
	new   func() *server.Server
	model string
	gpm   bool
}{
	{"a100", dgxa100.New, "Mock NVIDIA A100-SXM4-40GB", false},
	{"h100", dgxh100.New, "NVIDIA H100 80GB HBM3", true},
	{"h200", dgxh200.New, "NVIDIA H200 141GB HBM3e", true},
	{"b200", dgxb200.New, "NVIDIA B200 180GB HBM3e", true},
}

// A fake is a server with every method that the sources call, and what they
// find there.
type fake struct {
	*server.Server
	mu     sync.Mutex
	calls  map[string]int
	ret    map[string]nvml.Return // what a method answers in place of a value
	crash  map[string]bool        // methods that panic
	lost   map[int]bool           // GPUs off the bus
	events []nvml.EventData
	energy uint64 // mJ
	init   nvml.Return
	lacks  map[string]bool // symbols that the library has not
}

// at counts a call and says what it is to answer.
func (f *fake) at(method string, gpu int) nvml.Return {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls[method]++
	if f.crash[method] {
		panic(method + " is broken")
	}
	if f.lost[gpu] {
		return nvml.ERROR_GPU_IS_LOST
	}
	return f.ret[method]
}

func (f *fake) set(method string, ret nvml.Return) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ret[method] = ret
}

func (f *fake) count(method string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[method]
}

// methods are those of a device that have an answer of their own to refuse.
// Each gives the metrics of the second column, which are absent without it.
var methods = map[string][]string{
	"GetUtilizationRates":          {gpu.GPUUtilization, gpu.GPUMemoryBusy},
	"GetMemoryInfo_v2":             {gpu.GPUMemoryReserved},
	"GetTotalEnergyConsumption":    {gpu.GPUEnergy},
	"GetClockInfo":                 {gpu.GPUClockSM, gpu.GPUClockMemory},
	"GetTemperature":               {gpu.GPUTemperature},
	"GetCurrentClocksEventReasons": {gpu.GPUThrottleReasons},
	"GetFieldValues": {
		gpu.GPUPowerAverage, gpu.GPUPCIeTransmit, gpu.GPUPCIeReceive, gpu.GPUNVLinkTransmit, gpu.GPUNVLinkReceive,
		gpu.GPUMemoryTemp, gpu.GPUThrottleTime, gpu.GPUPCIeReplays, gpu.GPURemappedRows,
	},
	"GetComputeRunningProcesses": {gpu.GPUProcesses, gpu.GPUProcessMemory},
	"GetEnforcedPowerLimit":      {gpu.GPUPowerLimit},
	"GetTotalEccErrors":          {gpu.GPUECCErrors},
	"GpmQueryDeviceSupport": {
		gpu.GPUSMActive, gpu.GPUSMOccupancy, gpu.GPUTensorActive, gpu.GPUTensorHMMA, gpu.GPUDRAMActive,
		gpu.GPUFP64Active, gpu.GPUFP32Active, gpu.GPUFP16Active, gpu.GPUGraphicsActive, gpu.GPUNVLinkTxRate, gpu.GPUNVLinkRxRate,
		gpu.GPUPCIeTransmitRate, gpu.GPUPCIeReceiveRate,
	},
}

func newFake(s *server.Server, gpm bool) *fake {
	f := &fake{Server: s, calls: map[string]int{}, ret: map[string]nvml.Return{}, crash: map[string]bool{}, lost: map[int]bool{}, lacks: map[string]bool{}}
	s.InitFunc = func() nvml.Return { f.at("Init", -1); return f.init }
	s.LookupSymbolFunc = func(name string) error {
		if f.lacks[name] {
			return errors.New("undefined symbol")
		}
		return nil
	}
	s.EventSetCreateFunc = func() (nvml.EventSet, nvml.Return) {
		return &mock.EventSet{
			FreeFunc: func() nvml.Return { return nvml.SUCCESS },
			WaitFunc: func(uint32) (nvml.EventData, nvml.Return) {
				if ret := f.at("Wait", -1); ret != nvml.SUCCESS {
					return nvml.EventData{}, ret
				}
				f.mu.Lock()
				defer f.mu.Unlock()
				if len(f.events) == 0 {
					return nvml.EventData{}, nvml.ERROR_TIMEOUT
				}
				e := f.events[0]
				f.events = f.events[1:]
				return e, nvml.SUCCESS
			},
		}, f.at("EventSetCreate", -1)
	}
	s.GpmSampleAllocFunc = func() (nvml.GpmSample, nvml.Return) {
		return &mock.GpmSample{FreeFunc: func() nvml.Return { f.at("Free", -1); return nvml.SUCCESS }}, f.at("GpmSampleAlloc", -1)
	}
	s.GpmMetricsGetFunc = func(g *nvml.GpmMetricsGetType) nvml.Return {
		for i := range g.NumMetrics {
			m := &g.Metrics[i]
			m.Value, m.NvmlReturn = float64(m.MetricId), uint32(nvml.SUCCESS)
			if m.MetricId == uint32(nvml.GPM_METRIC_IMMA_TENSOR_UTIL) {
				m.NvmlReturn = uint32(nvml.ERROR_NOT_SUPPORTED)
			}
		}
		return f.at("GpmMetricsGet", -1)
	}
	for i, d := range s.Devices {
		f.device(i, d.(*server.Device), gpm)
	}
	return f
}

// device gives d every method.
func (f *fake) device(i int, d *server.Device, gpm bool) {
	d.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) {
		return nvml.Utilization{Gpu: 73, Memory: 41}, f.at("GetUtilizationRates", i)
	}
	d.GetMemoryInfo_v2Func = func() (nvml.Memory_v2, nvml.Return) {
		return nvml.Memory_v2{Total: 80 << 30, Used: 60 << 30, Free: 19 << 30, Reserved: 1 << 30}, f.at("GetMemoryInfo_v2", i)
	}
	d.GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) {
		return nvml.Memory{Total: 80 << 30, Used: 61 << 30, Free: 19 << 30}, f.at("GetMemoryInfo", i)
	}
	d.GetTotalEnergyConsumptionFunc = func() (uint64, nvml.Return) {
		ret := f.at("GetTotalEnergyConsumption", i)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.energy += 80_000
		return f.energy, ret
	}
	d.GetClockInfoFunc = func(c nvml.ClockType) (uint32, nvml.Return) {
		return map[nvml.ClockType]uint32{nvml.CLOCK_SM: 1980, nvml.CLOCK_MEM: 2619}[c], f.at("GetClockInfo", i)
	}
	d.GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 56, f.at("GetTemperature", i) }
	d.GetCurrentClocksEventReasonsFunc = func() (uint64, nvml.Return) { return 0x44, f.at("GetCurrentClocksEventReasons", i) }
	d.GetCurrentClocksThrottleReasonsFunc = func() (uint64, nvml.Return) { return 0x20, f.at("GetCurrentClocksThrottleReasons", i) }
	d.GetPowerUsageFunc = func() (uint32, nvml.Return) { return 301_000, f.at("GetPowerUsage", i) }
	d.GetFieldValuesFunc = func(vs []nvml.FieldValue) nvml.Return {
		for j := range vs {
			v := &vs[j]
			v.NvmlReturn, v.ValueType = uint32(nvml.SUCCESS), uint32(nvml.VALUE_TYPE_UNSIGNED_LONG_LONG)
			n := uint64(v.FieldId) * 1000
			switch v.FieldId {
			case nvml.FI_DEV_POWER_INSTANT, nvml.FI_DEV_POWER_AVERAGE:
				v.ValueType = uint32(nvml.VALUE_TYPE_UNSIGNED_INT)
			case nvml.FI_DEV_PERF_POLICY_POWER:
				n = 2_500_000_000
			case nvml.FI_DEV_PERF_POLICY_RELIABILITY:
				v.NvmlReturn = uint32(nvml.ERROR_NOT_SUPPORTED)
			}
			binary.NativeEndian.PutUint64(v.Value[:], n)
		}
		return f.at("GetFieldValues", i)
	}
	d.GetComputeRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) {
		return []nvml.ProcessInfo{{Pid: 4711, UsedGpuMemory: 59 << 30}, {Pid: 12, UsedGpuMemory: math.MaxUint64}}, f.at("GetComputeRunningProcesses", i)
	}
	d.GetMPSComputeRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) {
		return []nvml.ProcessInfo{{Pid: 4711, UsedGpuMemory: 1}}, nvml.SUCCESS
	}
	d.GetGraphicsRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) { return nil, nvml.ERROR_NOT_SUPPORTED }
	d.GetEnforcedPowerLimitFunc = func() (uint32, nvml.Return) { return 700_000, f.at("GetEnforcedPowerLimit", i) }
	d.GetTotalEccErrorsFunc = func(k nvml.MemoryErrorType, c nvml.EccCounterType) (uint64, nvml.Return) {
		return uint64(k) + 2, f.at("GetTotalEccErrors", i)
	}
	d.GetPcieThroughputFunc = func(c nvml.PcieUtilCounter) (uint32, nvml.Return) {
		return 500 + uint32(c), f.at("GetPcieThroughput", i)
	}
	d.RegisterEventsFunc = func(uint64, nvml.EventSet) nvml.Return { return f.at("RegisterEvents", i) }
	d.GpmQueryDeviceSupportFunc = func() (nvml.GpmSupport, nvml.Return) {
		s := nvml.GpmSupport{}
		if gpm {
			s.IsSupportedDevice = 1
		}
		return s, f.at("GpmQueryDeviceSupport", i)
	}
	d.GpmSampleGetFunc = func(nvml.GpmSample) nvml.Return { return f.at("GpmSampleGet", i) }
}

// A reader takes readings without a sampler, on a clock of its own.
type reader struct {
	t       testing.TB
	sources []gpu.Source
	now     time.Duration
}

func (f *fake) open(t testing.TB) *reader {
	t.Helper()
	sources, err := open(f.Server, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, s := range sources {
			s.Close()
		}
	})
	return &reader{t: t, sources: sources, now: time.Second}
}

// read takes n readings of both sources, a period apart.
func (r *reader) read(n int) (all []gpu.Sample, err error) {
	for range n {
		r.now += DefaultPeriod
		for _, s := range r.sources {
			err = errors.Join(err, s.Sample(r.t.Context(), func() time.Duration { return r.now }, func(s gpu.Sample) {
				if m, ok := gpu.Lookup(s.Metric); !ok {
					r.t.Errorf("metric %q is not in the vocabulary", s.Metric)
				} else if s.Unit != "" && s.Unit != m.Unit {
					r.t.Errorf("%s in %s, want %s", s.Metric, s.Unit, m.Unit)
				}
				all = append(all, s)
			}))
		}
	}
	return all, err
}

// value finds the last sample of a series.
func value(all []gpu.Sample, device, metric, attr string) (float64, bool) {
	for _, s := range slices.Backward(all) {
		if s.Device == device && s.Metric == metric && s.Attr == attr {
			return s.Value, true
		}
	}
	return 0, false
}

func names(all []gpu.Sample, device string) map[string]bool {
	set := map[string]bool{}
	for _, s := range all {
		if s.Device == device {
			set[s.Metric] = true
		}
	}
	return set
}

// Every figure of every mock server arrives under its name, in its unit.
func TestServers(t *testing.T) {
	for _, s := range servers {
		t.Run(s.name, func(t *testing.T) {
			f := newFake(s.new(), s.gpm)
			r := f.open(t)
			all, err := r.read(2)
			if err != nil {
				t.Fatal(err)
			}
			want := []struct {
				metric, attr string
				value        float64
			}{
				{gpu.GPUUtilization, "", 0.73}, {gpu.GPUMemoryBusy, "", 0.41},
				{gpu.GPUMemoryUsage, "", 60 << 30}, {gpu.GPUMemoryFree, "", 19 << 30}, {gpu.GPUMemoryReserved, "", 1 << 30}, {gpu.GPUMemoryLimit, "", 80 << 30},
				{gpu.GPUClockSM, "", 1980e6}, {gpu.GPUClockMemory, "", 2619e6}, {gpu.GPUTemperature, "", 56},
				{gpu.GPUThrottleReasons, "", 0x44}, {gpu.GPUThrottleTime, "reason=power", 2.5},
				{gpu.GPUPower, "", 186}, {gpu.GPUPowerAverage, "", 185}, {gpu.GPUPowerLimit, "", 700},
				{gpu.GPUPCIeTransmit, "", 197_000}, {gpu.GPUPCIeReceive, "", 198_000},
				{gpu.GPUNVLinkTransmit, "", 138_000 << 10}, {gpu.GPUNVLinkReceive, "", 139_000 << 10},
				{gpu.GPUProcessMemory, "pid=4711", 59 << 30}, {gpu.GPUProcesses, "", 2},
				{gpu.GPUECCErrors, "type=corrected", 2}, {gpu.GPUECCErrors, "type=uncorrected", 3},
			}
			if s.gpm {
				want = append(want, []struct {
					metric, attr string
					value        float64
				}{
					{gpu.GPUSMActive, "", 0.02}, {gpu.GPUSMOccupancy, "", 0.03}, {gpu.GPUTensorActive, "", 0.05}, {gpu.GPUDRAMActive, "", 0.10},
					{gpu.GPUPCIeTransmitRate, "", 20 << 20}, {gpu.GPUNVLinkRxRate, "", 60 << 20},
				}...)
			}
			for _, w := range want {
				for _, dev := range []string{"gpu0", "gpu7"} {
					if got, ok := value(all, dev, w.metric, w.attr); !ok || math.Abs(got-w.value) > 1e-9*w.value {
						t.Errorf("%s %s %s = %v, %t; want %v", dev, w.metric, w.attr, got, ok, w.value)
					}
				}
			}
			// Joules are millijoules of the counter, which rises.
			var joules []float64
			for _, s := range all {
				if s.Device == "gpu0" && s.Metric == gpu.GPUEnergy {
					joules = append(joules, s.Value)
				}
			}
			if len(joules) != 2 || joules[1]-joules[0] != 8*80 {
				t.Errorf("energy %v, want a rise of 640 J", joules)
			}
			if _, ok := value(all, "gpu0", gpu.GPUProcessMemory, "pid=12"); ok {
				t.Error("memory that is not available was reported")
			}
			if _, ok := value(all, "gpu0", gpu.GPUSMActive, ""); ok != s.gpm {
				t.Errorf("GPM reported: %t, want %t", ok, s.gpm)
			}
			devices := r.sources[0].(gpu.Describer).Devices()
			if len(devices) != 8 || devices[0].Model != s.model || !strings.HasPrefix(devices[0].UUID, "GPU-") || devices[0].Driver == "" || devices[0].Memory != 80<<30 {
				t.Errorf("Devices() = %+v", devices[:min(1, len(devices))])
			}
			if missing := devices[0].Missing; slices.Contains(missing, gpu.GPUSMActive) == s.gpm || !slices.Contains(missing, gpu.GPUThrottleTime) {
				t.Errorf("missing: %v", missing)
			}
		})
	}
}

// What a device does not support is absent, not zero, and asked for once.
func TestNotSupported(t *testing.T) {
	for method, metrics := range methods {
		t.Run(method, func(t *testing.T) {
			f := newFake(dgxh100.New(), true)
			f.set(method, nvml.ERROR_NOT_SUPPORTED)
			r := f.open(t)
			all, err := r.read(6)
			if err != nil {
				t.Fatal(err)
			}
			got := names(all, "gpu3")
			for other, theirs := range methods {
				for _, m := range theirs {
					if want := other != method; got[m] != want {
						t.Errorf("%s reported: %t, want %t", m, got[m], want)
					}
				}
			}
			if got[gpu.MetricUp] {
				t.Error("what is not supported was recorded as failed")
			}
			limit := map[string]int{"GetClockInfo": 16, "GetTotalEccErrors": 16, "GetFieldValues": 16, "GetMemoryInfo_v2": 48}
			if n := f.count(method); n > max(8, limit[method]) {
				t.Errorf("%s was called %d times on 8 GPUs", method, n)
			}
			if method == "GetMemoryInfo_v2" {
				if v, _ := value(all, "gpu3", gpu.GPUMemoryUsage, ""); v != 61<<30 {
					t.Errorf("memory used is %v without v2", v)
				}
			} else if missing := r.sources[0].(gpu.Describer).Devices()[3].Missing; !slices.Contains(missing, metrics[0]) {
				t.Errorf("Missing = %v, want %s in it", missing, metrics[0])
			}
			if method == "GetFieldValues" {
				if v, _ := value(all, "gpu3", gpu.GPUPower, ""); v != 301 {
					t.Errorf("power without fields is %v W, want 301", v)
				}
			}
		})
	}
}

// A library of an old driver lacks functions; calling one would end the process.
func TestOldLibrary(t *testing.T) {
	f := newFake(dgxa100.New(), false)
	for _, s := range []string{
		"nvmlDeviceGetCurrentClocksEventReasons", "nvmlGpmSampleAlloc", "nvmlDeviceGetMemoryInfo_v2",
		"nvmlDeviceGetMPSComputeRunningProcesses", "nvmlDeviceGetFieldValues", "nvmlEventSetWait",
	} {
		f.lacks[s] = true
	}
	r := f.open(t)
	all, err := r.read(3)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []string{"GetCurrentClocksEventReasons", "GpmQueryDeviceSupport", "GetMemoryInfo_v2", "GetFieldValues", "Wait"} {
		if n := f.count(m); n > 0 {
			t.Errorf("%s was called %d times", m, n)
		}
	}
	if v, ok := value(all, "gpu0", gpu.GPUThrottleReasons, ""); !ok || v != 0x20 {
		t.Errorf("throttle reasons by their old name = %v, %t", v, ok)
	}
	// PCIe has neither counters nor GPM here, and is measured the slow way.
	if v, ok := value(all, "gpu0", gpu.GPUPCIeReceiveRate, ""); !ok || v != 501e3 {
		t.Errorf("PCIe rate = %v, %t; want 501000", v, ok)
	}
}

// A GPU that falls off the bus is a gap of that GPU; the others go on.
func TestLostGPU(t *testing.T) {
	f := newFake(dgxh200.New(), true)
	r := f.open(t)
	if _, err := r.read(5); err != nil {
		t.Fatal(err)
	}
	f.lost[2] = true
	all, err := r.read(20)
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := value(all, "gpu2", gpu.MetricUp, ""); !ok || v != 0 {
		t.Errorf("up of the lost GPU = %v, %t", v, ok)
	}
	for _, s := range all {
		if s.Device == "gpu2" && s.Metric != gpu.MetricUp {
			t.Fatalf("a lost GPU gave %+v", s)
		}
		if s.Metric == gpu.MetricUp && !strings.Contains(s.Note, "fallen off the bus") {
			t.Errorf("note %q", s.Note)
		}
	}
	if _, ok := value(all, "gpu3", gpu.GPUPower, ""); !ok {
		t.Error("the other GPUs are not read any more")
	}
	if n := f.count("GetUtilizationRates"); n > 25*7+5+8 {
		t.Errorf("a lost GPU was asked at full rate: %d calls", n)
	}
	f.lost[2] = false
	all, err = r.read(30)
	if err != nil {
		t.Fatal(err)
	}
	gap, ok := value(all, "gpu2", gpu.MetricGap, "")
	if !ok || gap < 20*0.2 || gap > 50*0.2 {
		t.Errorf("gap = %v s, %t", gap, ok)
	}
	if v, ok := value(all, "gpu2", gpu.GPUUtilization, ""); !ok || v != 0.73 {
		t.Error("the GPU came back and is not read")
	}
}

// Where all GPUs are gone the library is opened anew.
func TestAllLost(t *testing.T) {
	f := newFake(dgxh200.New(), true)
	r := f.open(t)
	for i := range 8 {
		f.lost[i] = true
	}
	_, err := r.read(1)
	if f := gpu.AsFault(err); f == nil || f.Name != gpu.FaultGPULost {
		t.Errorf("reading = %v, want gpu_lost", err)
	}
	f.mu.Lock()
	f.lost = map[int]bool{}
	f.ret["GetUtilizationRates"] = nvml.ERROR_UNINITIALIZED
	f.mu.Unlock()
	if _, err := r.read(1); err == nil {
		t.Error("an uninitialised library is no error")
	}
	f.set("GetUtilizationRates", nvml.SUCCESS)
	if all, err := r.read(30); err != nil || !names(all, "gpu0")[gpu.GPUUtilization] {
		t.Errorf("after opening anew: %d samples, %v", len(all), err)
	}
	// At first, and anew for each source and reading that found it in trouble.
	if n := f.count("Init"); n != 4 {
		t.Errorf("the library was opened %d times, want 4", n)
	}
}

// A method that panics, or that this user may not call, costs its own metric.
func TestBrokenMetric(t *testing.T) {
	f := newFake(dgxb200.New(), true)
	f.crash["GetTemperature"] = true
	f.set("GetEnforcedPowerLimit", nvml.ERROR_NO_PERMISSION)
	f.set("GetUtilizationRates", nvml.ERROR_UNKNOWN)
	r := f.open(t)
	all, err := r.read(10)
	if err != nil {
		t.Fatal(err)
	}
	notes := map[string]int{}
	for _, s := range all {
		if s.Metric == gpu.MetricUp && s.Device == "gpu1" {
			notes[s.Attr+" "+s.Note]++
		}
	}
	for _, want := range []string{
		"metric=hw.gpu.temperature panic: GetTemperature is broken",
		"metric=hw.gpu.power.limit no permission: NVML refuses this user",
		"metric=hw.gpu.utilization failed: NVML error 999",
	} {
		if notes[want] != 1 {
			t.Errorf("%q was recorded %d times, want once; all: %v", want, notes[want], notes)
		}
	}
	if n := f.count("GetTemperature"); n != 8 {
		t.Errorf("the panicking method was called %d times on 8 GPUs", n)
	}
	got := names(all, "gpu1")
	if got[gpu.GPUTemperature] || got[gpu.GPUPowerLimit] || !got[gpu.GPUPower] || !got[gpu.GPUECCErrors] {
		t.Errorf("metrics: %v", got)
	}
	f.set("GetUtilizationRates", nvml.SUCCESS) // the trouble passes
	all, _ = r.read(1)
	if v, ok := value(all, "gpu1", gpu.MetricUp, "metric=hw.gpu.utilization"); !ok || v != 1 {
		t.Error("the metric's return is not recorded")
	}
}

func TestEvents(t *testing.T) {
	f := newFake(dgxh100.New(), true)
	r := f.open(t)
	f.events = []nvml.EventData{
		{Device: f.Devices[5], EventType: nvml.EventTypeXidCriticalError, EventData: 79},
		{Device: f.Devices[0], EventType: nvml.EventTypeXidCriticalError, EventData: 48},
	}
	all, err := r.read(2)
	if err != nil {
		t.Fatal(err)
	}
	if v, ok := value(all, "gpu5", gpu.GPUXID, ""); !ok || v != 79 {
		t.Errorf("XID of gpu5 = %v, %t", v, ok)
	}
	if v, ok := value(all, "gpu0", gpu.GPUXID, ""); !ok || v != 48 {
		t.Errorf("XID of gpu0 = %v, %t", v, ok)
	}
}

// MIG instances have their own memory, processes and GPM; the GPU keeps the rest.
func TestMIG(t *testing.T) {
	f := newFake(dgxh100.New(), true)
	parent := f.Devices[0].(*server.Device)
	parent.MigMode = nvml.DEVICE_MIG_ENABLE
	parent.GetMaxMigDeviceCountFunc = func() (int, nvml.Return) { return 7, nvml.SUCCESS }
	inst := dgxh100.NewDevice(0)
	inst.UUID = "MIG-1"
	f.device(20, inst, true)
	inst.GetMemoryInfo_v2Func = func() (nvml.Memory_v2, nvml.Return) {
		return nvml.Memory_v2{Total: 10 << 30, Used: 7 << 30}, nvml.SUCCESS
	}
	inst.GetGpuInstanceIdFunc = func() (int, nvml.Return) { return 9, nvml.SUCCESS }
	parent.GetMigDeviceHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
		if i == 2 {
			return inst, nvml.SUCCESS
		}
		return nil, nvml.ERROR_NOT_FOUND
	}
	gis := 0
	parent.GpmMigSampleGetFunc = func(gi int, _ nvml.GpmSample) nvml.Return { gis = gi; return nvml.SUCCESS }
	f.set("GetUtilizationRates", nvml.ERROR_NOT_SUPPORTED)
	r := f.open(t)
	all, err := r.read(3)
	if err != nil {
		t.Fatal(err)
	}
	if v, _ := value(all, "gpu0/mig9", gpu.GPUMemoryUsage, ""); v != 7<<30 {
		t.Errorf("memory of the instance = %v", v)
	}
	if v, ok := value(all, "gpu0/mig9", gpu.GPUSMActive, ""); !ok || v != 0.02 || gis != 9 {
		t.Errorf("GPM of the instance = %v, %t, asked of GPU instance %d", v, ok, gis)
	}
	if _, ok := value(all, "gpu0/mig9", gpu.GPUPower, ""); ok {
		t.Error("an instance has a power of its own")
	}
	if _, ok := value(all, "gpu0", gpu.GPUPower, ""); !ok {
		t.Error("the GPU has no power")
	}
	d := r.sources[0].(gpu.Describer).Devices()
	if len(d) != 9 || d[1].Name != "gpu0/mig9" || d[1].UUID != "MIG-1" {
		t.Errorf("Devices() = %+v", d)
	}
}

func TestOpenFaults(t *testing.T) {
	for ret, want := range map[nvml.Return]string{
		nvml.ERROR_LIBRARY_NOT_FOUND:       gpu.FaultNoDriver,
		nvml.ERROR_DRIVER_NOT_LOADED:       gpu.FaultNoDriver,
		nvml.ERROR_LIB_RM_VERSION_MISMATCH: gpu.FaultDriverMismatch,
		nvml.ERROR_NO_PERMISSION:           gpu.FaultNoPermission,
		nvml.ERROR_UNKNOWN:                 gpu.FaultFailed,
	} {
		f := newFake(dgxh100.New(), true)
		f.init = ret
		sources, err := open(f.Server, Options{})
		if gpu.AsFault(err) == nil || gpu.AsFault(err).Name != want {
			t.Errorf("open with %d = %v, want %s", ret, err, want)
		}
		// The sources try again; the second leaves the first reading to the first.
		var emitted []gpu.Sample
		sample := func(s gpu.Source) error {
			return s.Sample(t.Context(), func() time.Duration { return time.Second }, func(s gpu.Sample) { emitted = append(emitted, s) })
		}
		if err := sample(sources[0]); gpu.AsFault(err) == nil || gpu.AsFault(err).Name != want {
			t.Errorf("a reading with %d = %v, want %s", ret, err, want)
		}
		if err := sample(sources[1]); !errors.Is(err, gpu.ErrNotYet) {
			t.Errorf("a reading of the second source with %d = %v", ret, err)
		}
		f.init = nvml.SUCCESS
		for _, s := range sources {
			if err := sample(s); err != nil {
				t.Errorf("a reading with a driver: %v", err)
			}
		}
		if _, ok := value(emitted, "gpu0", gpu.GPUPower, ""); !ok {
			t.Error("no power with a driver")
		}
		for _, s := range sources {
			s.Close()
		}
	}
	f := newFake(dgxh100.New(), true)
	f.Devices = nil
	f.DeviceGetCountFunc = func() (int, nvml.Return) { return 0, nvml.SUCCESS }
	if _, err := open(f.Server, Options{}); err == nil {
		t.Error("a host without a GPU opens")
	}
}

// GPM compares samples that lie more than 100 ms apart, whatever the period.
func TestGPMInterval(t *testing.T) {
	f := newFake(dgxh100.New(), true)
	r := f.open(t)
	for range 50 { // 20 ms apart: a second
		r.now += 20*time.Millisecond - DefaultPeriod
		if _, err := r.read(1); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.count("GpmMetricsGet"); n < 8*7 || n > 8*9 {
		t.Errorf("GPM was compared %d times by 8 GPUs in a second, want 8 each at most every 105 ms", n)
	}
	for _, s := range r.sources {
		s.Close()
	}
	if n := f.count("Free"); n != 16 {
		t.Errorf("%d of 16 GPM samples were freed", n)
	}
}

// BenchmarkReading is one reading of 8 GPUs, without the driver's own work.
func BenchmarkReading(b *testing.B) {
	f := newFake(dgxh200.New(), true)
	r := f.open(b)
	for b.Loop() {
		if _, err := r.read(1); err != nil {
			b.Fatal(err)
		}
	}
}
