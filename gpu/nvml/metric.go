//go:build cgo && linux && !nonvml

package nvml

import (
	"errors"
	"fmt"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"reprise/gpu"
)

// A metric is one question to NVML about one device, which may give several
// samples.
type metric struct {
	names []string // of the samples
	read  func(*env) nvml.Return
	off   bool       // never asked again
	fault *gpu.Fault // why, or why not at the moment; nil if it is not supported
	more  func() []string
}

// missing lists the names that the device does not support.
func (m *metric) missing() []string {
	var names []string
	if m.off && m.fault == nil {
		names = m.names
	}
	if m.more != nil {
		names = append(names[:len(names):len(names)], m.more()...)
	}
	return names
}

// env is what a metric is read with.
type env struct {
	host *host
	dev  *device
	now  func() time.Duration
	emit func(gpu.Sample)
}

// put emits a value that was read just now.
func (e *env) put(metric string, value float64) {
	e.emit(gpu.Sample{Time: e.now(), Metric: metric, Value: value})
}

func (e *env) putAttr(metric, attr string, value float64) {
	e.emit(gpu.Sample{Time: e.now(), Metric: metric, Attr: attr, Value: value})
}

// unsupported says whether ret means that asking again is in vain.
func unsupported(ret nvml.Return) bool {
	switch ret {
	case nvml.ERROR_NOT_SUPPORTED, nvml.ERROR_FUNCTION_NOT_FOUND, nvml.ERROR_INVALID_ARGUMENT,
		nvml.ERROR_VGPU_ECC_NOT_SUPPORTED, nvml.ERROR_FREQ_NOT_SUPPORTED,
		nvml.ERROR_ARGUMENT_VERSION_MISMATCH, nvml.ERROR_DEPRECATED:
		return true
	}
	return false
}

// readMetrics asks everything once. The fault is that of the device or of the
// library; what goes wrong with one metric alone is recorded as that metric's.
func (e *env) readMetrics() *gpu.Fault {
	for _, m := range e.dev.metrics {
		if m.off {
			continue
		}
		ret, err := e.ask(m)
		switch {
		case err != nil:
			m.off = true
			e.say(m, &gpu.Fault{Name: gpu.FaultPanic, Err: err})
		case ret == nvml.SUCCESS:
			if m.fault != nil {
				m.fault = nil
				e.putAttr(gpu.MetricUp, "metric="+m.names[0], 1)
			}
		case unsupported(ret):
			m.off, m.fault = true, nil
		case ret == nvml.ERROR_GPU_IS_LOST, ret == nvml.ERROR_GPU_NOT_FOUND, ret == nvml.ERROR_RESET_REQUIRED,
			ret == nvml.ERROR_DRIVER_NOT_LOADED, ret == nvml.ERROR_LIB_RM_VERSION_MISMATCH:
			return faultOf(ret)
		case ret == nvml.ERROR_UNINITIALIZED:
			return &gpu.Fault{Name: faultUninitialized}
		case ret == nvml.ERROR_NO_PERMISSION:
			m.off = true
			e.say(m, faultOf(ret))
		default: // a passing trouble
			if m.fault == nil {
				e.say(m, faultOf(ret))
			}
		}
	}
	return nil
}

// say records that a metric cannot be read.
func (e *env) say(m *metric, f *gpu.Fault) {
	m.fault = f
	e.emit(gpu.Sample{Time: e.now(), Metric: gpu.MetricUp, Attr: "metric=" + m.names[0], Value: 0, Note: f.Error()})
}

func (e *env) ask(m *metric) (ret nvml.Return, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = errors.New(fmt.Sprint(p))
		}
	}()
	return m.read(e), nil
}

// one is a metric of one value.
func one(name string, scale float64, get func(nvml.Device) (uint64, nvml.Return)) *metric {
	return &metric{names: []string{name}, read: func(e *env) nvml.Return {
		v, ret := get(e.dev.dev)
		if ret == nvml.SUCCESS {
			e.put(name, float64(v)*scale)
		}
		return ret
	}}
}

// A candidate is a metric and the functions it calls.
type candidate struct {
	*metric
	needs []string
}

// available keeps the candidates whose functions the library has.
func available(h *host, all []candidate) []*metric {
	var ms []*metric
	for _, c := range all {
		for _, f := range c.needs {
			if !h.has(f) {
				c.off = true
			}
		}
		ms = append(ms, c.metric)
	}
	return ms
}

const (
	percent = 0.01
	kilo    = 1e3
	mega    = 1e6
	milli   = 1e-3
	kibi    = 1 << 10
	mebi    = 1 << 20
	nano    = 1e-9
)

// fastMetrics are what changes with the load.
func fastMetrics(h *host, g handle) []*metric {
	all := []candidate{
		{&metric{names: []string{gpu.GPUUtilization, gpu.GPUMemoryBusy}, read: readUtilization}, []string{"nvmlDeviceGetUtilizationRates"}},
		{&metric{names: []string{gpu.GPUMemoryUsage, gpu.GPUMemoryFree, gpu.GPUMemoryLimit}, read: readMemory}, nil},
		{one(gpu.GPUEnergy, milli, nvml.Device.GetTotalEnergyConsumption), []string{"nvmlDeviceGetTotalEnergyConsumption"}},
		{one(gpu.GPUClockSM, mega, func(d nvml.Device) (uint64, nvml.Return) { return wide(d.GetClockInfo(nvml.CLOCK_SM)) }), []string{"nvmlDeviceGetClockInfo"}},
		{one(gpu.GPUClockMemory, mega, func(d nvml.Device) (uint64, nvml.Return) { return wide(d.GetClockInfo(nvml.CLOCK_MEM)) }), []string{"nvmlDeviceGetClockInfo"}},
		{one(gpu.GPUTemperature, 1, func(d nvml.Device) (uint64, nvml.Return) { return wide(d.GetTemperature(nvml.TEMPERATURE_GPU)) }), []string{"nvmlDeviceGetTemperature"}},
		{throttleReasons(h), nil},
		{fields(fastFields, powerFallback(h)), []string{"nvmlDeviceGetFieldValues"}},
	}
	if g.parent != nil {
		all = all[1:2] // an instance has memory of its own; the rest is the GPU's
	}
	ms := available(h, all)
	if gpm := gpmMetric(h); gpm != nil {
		ms = append(ms, gpm)
	}
	return ms
}

func wide(v uint32, ret nvml.Return) (uint64, nvml.Return) { return uint64(v), ret }

func readUtilization(e *env) nvml.Return {
	u, ret := e.dev.dev.GetUtilizationRates()
	if ret == nvml.SUCCESS {
		e.put(gpu.GPUUtilization, float64(u.Gpu)*percent)
		e.put(gpu.GPUMemoryBusy, float64(u.Memory)*percent)
	}
	return ret
}

// readMemory prefers the second version, which counts what the driver keeps
// apart from what is used.
func readMemory(e *env) nvml.Return {
	if e.host.has("nvmlDeviceGetMemoryInfo_v2") {
		if m, ret := e.dev.dev.GetMemoryInfo_v2(); ret == nvml.SUCCESS {
			e.put(gpu.GPUMemoryUsage, float64(m.Used))
			e.put(gpu.GPUMemoryFree, float64(m.Free))
			e.put(gpu.GPUMemoryReserved, float64(m.Reserved))
			e.put(gpu.GPUMemoryLimit, float64(m.Total))
			return ret
		} else if !unsupported(ret) {
			return ret
		}
	}
	m, ret := e.dev.dev.GetMemoryInfo()
	if ret == nvml.SUCCESS {
		e.put(gpu.GPUMemoryUsage, float64(m.Used))
		e.put(gpu.GPUMemoryFree, float64(m.Free))
		e.put(gpu.GPUMemoryLimit, float64(m.Total))
	}
	return ret
}

// throttleReasons has two names, of drivers before and after R535.
func throttleReasons(h *host) *metric {
	switch {
	case h.has("nvmlDeviceGetCurrentClocksEventReasons"):
		return one(gpu.GPUThrottleReasons, 1, nvml.Device.GetCurrentClocksEventReasons)
	case h.has("nvmlDeviceGetCurrentClocksThrottleReasons"):
		return one(gpu.GPUThrottleReasons, 1, nvml.Device.GetCurrentClocksThrottleReasons)
	}
	return &metric{names: []string{gpu.GPUThrottleReasons}, off: true}
}

// slowMetrics are what changes seldom, or takes long to read.
func slowMetrics(h *host, g handle) []*metric {
	all := []candidate{
		{&metric{names: []string{gpu.GPUProcesses, gpu.GPUProcessMemory}, read: readProcesses}, []string{"nvmlDeviceGetComputeRunningProcesses"}},
		{one(gpu.GPUPowerLimit, milli, func(d nvml.Device) (uint64, nvml.Return) { return wide(d.GetEnforcedPowerLimit()) }), []string{"nvmlDeviceGetEnforcedPowerLimit"}},
		{ecc("type=corrected", nvml.MEMORY_ERROR_TYPE_CORRECTED), []string{"nvmlDeviceGetTotalEccErrors"}},
		{ecc("type=uncorrected", nvml.MEMORY_ERROR_TYPE_UNCORRECTED), []string{"nvmlDeviceGetTotalEccErrors"}},
		{fields(slowFields, nil), []string{"nvmlDeviceGetFieldValues"}},
		{pcieThroughput(gpu.GPUPCIeTransmitRate, nvml.PCIE_UTIL_TX_BYTES), []string{"nvmlDeviceGetPcieThroughput"}},
		{pcieThroughput(gpu.GPUPCIeReceiveRate, nvml.PCIE_UTIL_RX_BYTES), []string{"nvmlDeviceGetPcieThroughput"}},
	}
	if g.parent != nil {
		return available(h, all[:1])
	}
	if g.index == 0 {
		// One set of events serves all GPUs; the first one's turn reads it.
		all = append(all, candidate{&metric{names: []string{gpu.GPUXID}, read: readEvents}, nil})
	}
	return available(h, all)
}

func ecc(attr string, kind nvml.MemoryErrorType) *metric {
	return &metric{names: []string{gpu.GPUECCErrors}, read: func(e *env) nvml.Return {
		n, ret := e.dev.dev.GetTotalEccErrors(kind, nvml.VOLATILE_ECC)
		if ret == nvml.SUCCESS {
			e.putAttr(gpu.GPUECCErrors, attr, float64(n))
		}
		return ret
	}}
}

// pcieThroughput waits for 20 ms, so it is asked only where neither a counter
// nor GPM has the figure. NVML gives KB/s.
func pcieThroughput(name string, counter nvml.PcieUtilCounter) *metric {
	return &metric{names: []string{name}, read: func(e *env) nvml.Return {
		if e.host.fastPCIe(e.dev.name) {
			return nvml.SUCCESS
		}
		v, ret := e.dev.dev.GetPcieThroughput(counter)
		if ret == nvml.SUCCESS {
			e.put(name, float64(v)*kilo)
		}
		return ret
	}}
}

// maxProcesses bounds the list of one device.
const maxProcesses = 256

func readProcesses(e *env) nvml.Return {
	list, ret := e.dev.dev.GetComputeRunningProcesses()
	if ret != nvml.SUCCESS {
		return ret
	}
	seen := map[uint32]bool{}
	add := func(list []nvml.ProcessInfo) {
		for _, p := range list {
			if seen[p.Pid] || len(seen) >= maxProcesses {
				continue
			}
			seen[p.Pid] = true
			// All ones is "not available": containers without rights, WDDM.
			if p.UsedGpuMemory != ^uint64(0) {
				e.putAttr(gpu.GPUProcessMemory, fmt.Sprintf("pid=%d", p.Pid), float64(p.UsedGpuMemory))
			}
		}
	}
	add(list)
	// Processes under MPS and those that draw are in lists of their own.
	if e.host.has("nvmlDeviceGetMPSComputeRunningProcesses") {
		if list, ret := e.dev.dev.GetMPSComputeRunningProcesses(); ret == nvml.SUCCESS {
			add(list)
		}
	}
	if e.host.has("nvmlDeviceGetGraphicsRunningProcesses") {
		if list, ret := e.dev.dev.GetGraphicsRunningProcesses(); ret == nvml.SUCCESS {
			add(list)
		}
	}
	e.put(gpu.GPUProcesses, float64(len(seen)))
	return nvml.SUCCESS
}

// maxEvents bounds the events of one reading; what is left waits for the next.
const maxEvents = 64

// readEvents takes the XIDs that the driver has reported since the last reading.
// They carry no time of their own.
func readEvents(e *env) nvml.Return {
	if e.host.events == nil {
		return nvml.ERROR_NOT_SUPPORTED
	}
	for range maxEvents {
		ev, ret := e.host.events.Wait(0)
		if ret == nvml.ERROR_TIMEOUT || ret == nvml.ERROR_GPU_IS_LOST {
			break // nothing waits; a GPU that is lost shows in its own readings
		}
		if ret != nvml.SUCCESS {
			return ret
		}
		if ev.EventType != nvml.EventTypeXidCriticalError {
			continue
		}
		x := gpu.Sample{Time: e.now(), Metric: gpu.GPUXID, Value: float64(ev.EventData)}
		for _, g := range e.host.gpus {
			if g.dev == ev.Device {
				x.Device = g.name
			}
		}
		e.emit(x)
	}
	return nvml.SUCCESS
}
