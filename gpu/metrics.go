package gpu

import (
	"strings"
)

// A Kind says how the values of a metric combine.
type Kind string

const (
	Gauge   Kind = "gauge"   // a value at a moment, or over the source's own window
	Counter Kind = "counter" // rises; only differences mean something, and a fall is a restart
	Event   Kind = "event"   // something that happened at Time; Value says what
)

// A Metric is a line of the vocabulary, see METRICS.md.
type Metric struct {
	Name string
	Unit string
	Kind Kind
	// DCGM is the field of the same meaning, empty where there is none.
	DCGM string
	Doc  string
}

// Metrics that any source may have.
const (
	// MetricGap is a stretch without readings: Value seconds before Time, the
	// reason in Note.
	MetricGap         = "telemetry.gap"
	MetricUp          = "telemetry.up"
	MetricClockOffset = "telemetry.clock.offset"
	MetricClockError  = "telemetry.clock.error"
	MetricClockDrift  = "telemetry.clock.drift"
	MetricRTT         = "telemetry.rtt"
	MetricDropped     = "telemetry.dropped"
)

// Metrics of a GPU.
const (
	GPUUtilization      = "hw.gpu.utilization"
	GPUMemoryBusy       = "hw.gpu.memory.busy"
	GPUMemoryUsage      = "hw.gpu.memory.usage"
	GPUMemoryFree       = "hw.gpu.memory.free"
	GPUMemoryReserved   = "hw.gpu.memory.reserved"
	GPUMemoryLimit      = "hw.gpu.memory.limit"
	GPUProcessMemory    = "hw.gpu.process.memory.usage"
	GPUProcesses        = "hw.gpu.processes"
	GPUPower            = "hw.gpu.power"
	GPUPowerAverage     = "hw.gpu.power.average"
	GPUPowerLimit       = "hw.gpu.power.limit"
	GPUEnergy           = "hw.gpu.energy"
	GPUClockSM          = "hw.gpu.clock.sm"
	GPUClockMemory      = "hw.gpu.clock.memory"
	GPUTemperature      = "hw.gpu.temperature"
	GPUMemoryTemp       = "hw.gpu.memory.temperature"
	GPUThrottleReasons  = "hw.gpu.throttle.reasons"
	GPUThrottleTime     = "hw.gpu.throttle.time"
	GPUPCIeTransmit     = "hw.gpu.pcie.transmit"
	GPUPCIeReceive      = "hw.gpu.pcie.receive"
	GPUPCIeTransmitRate = "hw.gpu.pcie.transmit.rate"
	GPUPCIeReceiveRate  = "hw.gpu.pcie.receive.rate"
	GPUPCIeReplays      = "hw.gpu.pcie.replays"
	GPUNVLinkTransmit   = "hw.gpu.nvlink.transmit"
	GPUNVLinkReceive    = "hw.gpu.nvlink.receive"
	GPUNVLinkTxRate     = "hw.gpu.nvlink.transmit.rate"
	GPUNVLinkRxRate     = "hw.gpu.nvlink.receive.rate"
	GPUECCErrors        = "hw.gpu.ecc.errors"
	GPURemappedRows     = "hw.gpu.memory.remapped_rows"
	GPUXID              = "hw.gpu.xid"
	GPUGraphicsActive   = "hw.gpu.graphics.active"
	GPUSMActive         = "hw.gpu.sm.active"
	GPUSMOccupancy      = "hw.gpu.sm.occupancy"
	GPUTensorActive     = "hw.gpu.tensor.active"
	GPUTensorHMMA       = "hw.gpu.tensor.hmma.active"
	GPUTensorIMMA       = "hw.gpu.tensor.imma.active"
	GPUDRAMActive       = "hw.gpu.dram.active"
	GPUFP64Active       = "hw.gpu.fp64.active"
	GPUFP32Active       = "hw.gpu.fp32.active"
	GPUFP16Active       = "hw.gpu.fp16.active"
)

// commonMetrics and gpuMetrics are the table in METRICS.md.
var commonMetrics = []Metric{
	{MetricGap, "s", Gauge, "", "nothing is known of this long before the sample's time; the note says why"},
	{MetricUp, "1", Gauge, "", "1 while the source can be read, 0 from when it cannot; recorded when that changes"},
	{MetricClockOffset, "s", Gauge, "", "clock of the agent's host minus clock of the run's, as measured"},
	{MetricClockError, "s", Gauge, "", "bound on the error of that offset: half the smallest round trip, and what the clocks may have drifted since"},
	{MetricClockDrift, "1", Gauge, "", "seconds by which the agent's clock gains on the run's in a second, fitted over the last minutes"},
	{MetricRTT, "s", Gauge, "", "smallest round trip of the last exchange of times with the agent"},
	{MetricDropped, "{sample}", Counter, "", "samples made and not kept: a slow disk, an absent reader, values that are no numbers"},
}

var gpuMetrics = []Metric{
	{GPUUtilization, "1", Gauge, "DCGM_FI_DEV_GPU_UTIL", "share of the driver's last window (1/6 s to 1 s) in which a kernel ran"},
	{GPUMemoryBusy, "1", Gauge, "DCGM_FI_DEV_MEM_COPY_UTIL", "share of that window in which device memory was read or written"},
	{GPUMemoryUsage, "By", Gauge, "DCGM_FI_DEV_FB_USED", "device memory in use"},
	{GPUMemoryFree, "By", Gauge, "DCGM_FI_DEV_FB_FREE", "device memory that is free"},
	{GPUMemoryReserved, "By", Gauge, "DCGM_FI_DEV_FB_RESERVED", "device memory that driver and firmware keep; part of no process"},
	{GPUMemoryLimit, "By", Gauge, "DCGM_FI_DEV_FB_TOTAL", "size of the device memory"},
	{GPUProcessMemory, "By", Gauge, "", "device memory of one process, `pid=`"},
	{GPUProcesses, "{process}", Gauge, "", "processes that hold a context on the device"},
	{GPUPower, "W", Gauge, "DCGM_FI_DEV_POWER_USAGE_INSTANT", "power now"},
	{GPUPowerAverage, "W", Gauge, "DCGM_FI_DEV_POWER_USAGE", "power, as the driver averages it (over 1 s on Ampere and later)"},
	{GPUPowerLimit, "W", Gauge, "DCGM_FI_DEV_ENFORCED_POWER_LIMIT", "power limit that is enforced"},
	{GPUEnergy, "J", Counter, "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "energy since the driver was loaded; joules of a run are a difference of it"},
	{GPUClockSM, "Hz", Gauge, "DCGM_FI_DEV_SM_CLOCK", "clock of the SMs"},
	{GPUClockMemory, "Hz", Gauge, "DCGM_FI_DEV_MEM_CLOCK", "clock of the memory"},
	{GPUTemperature, "Cel", Gauge, "DCGM_FI_DEV_GPU_TEMP", "temperature of the chip"},
	{GPUMemoryTemp, "Cel", Gauge, "DCGM_FI_DEV_MEMORY_TEMP", "temperature of the memory"},
	{GPUThrottleReasons, "{bitmask}", Gauge, "DCGM_FI_DEV_CLOCKS_EVENT_REASONS", "why clocks are below their maximum, a sum of the bits below"},
	{GPUThrottleTime, "s", Counter, "", "time that clocks were held down, `reason=power|thermal|sync_boost|board_limit|low_utilization|reliability`"},
	{GPUPCIeTransmit, "By", Counter, "", "bytes that the GPU sent over PCIe"},
	{GPUPCIeReceive, "By", Counter, "", "bytes that the GPU received over PCIe"},
	{GPUPCIeTransmitRate, "By/s", Gauge, "DCGM_FI_PROF_PCIE_TX_BYTES", "the same as a rate over the source's own window (NVML: 20 ms; GPM: one period)"},
	{GPUPCIeReceiveRate, "By/s", Gauge, "DCGM_FI_PROF_PCIE_RX_BYTES", "likewise, received"},
	{GPUPCIeReplays, "{replay}", Counter, "DCGM_FI_DEV_PCIE_REPLAY_COUNTER", "PCIe retries"},
	{GPUNVLinkTransmit, "By", Counter, "", "data bytes that the GPU sent over all its NVLinks"},
	{GPUNVLinkReceive, "By", Counter, "", "data bytes that the GPU received over all its NVLinks"},
	{GPUNVLinkTxRate, "By/s", Gauge, "DCGM_FI_PROF_NVLINK_TX_BYTES", "the same as a rate, over one period"},
	{GPUNVLinkRxRate, "By/s", Gauge, "DCGM_FI_PROF_NVLINK_RX_BYTES", "likewise, received"},
	{GPUECCErrors, "{error}", Counter, "DCGM_FI_DEV_ECC_SBE_VOL_TOTAL, DCGM_FI_DEV_ECC_DBE_VOL_TOTAL", "ECC errors since the driver was loaded, `type=corrected|uncorrected`"},
	{GPURemappedRows, "{row}", Counter, "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS, DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS", "rows of memory replaced by spare ones, `type=corrected|uncorrected`"},
	{GPUXID, "{xid}", Event, "DCGM_FI_DEV_XID_ERRORS", "an error that the driver reported; the value is its XID"},
	{GPUGraphicsActive, "1", Gauge, "DCGM_FI_PROF_GR_ENGINE_ACTIVE", "share of time in which the compute or graphics engine was busy"},
	{GPUSMActive, "1", Gauge, "DCGM_FI_PROF_SM_ACTIVE", "share of time in which an SM had a warp, mean over SMs"},
	{GPUSMOccupancy, "1", Gauge, "DCGM_FI_PROF_SM_OCCUPANCY", "resident warps over the most that fit, mean over SMs and time"},
	{GPUTensorActive, "1", Gauge, "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE", "share of cycles in which a tensor pipe was busy"},
	{GPUTensorHMMA, "1", Gauge, "DCGM_FI_PROF_PIPE_TENSOR_HMMA_ACTIVE", "share of cycles, tensor pipe on 16-bit floats"},
	{GPUTensorIMMA, "1", Gauge, "DCGM_FI_PROF_PIPE_TENSOR_IMMA_ACTIVE", "share of cycles, tensor pipe on integers"},
	{GPUDRAMActive, "1", Gauge, "DCGM_FI_PROF_DRAM_ACTIVE", "memory bandwidth over its peak"},
	{GPUFP64Active, "1", Gauge, "DCGM_FI_PROF_PIPE_FP64_ACTIVE", "share of cycles in which the FP64 pipe was busy"},
	{GPUFP32Active, "1", Gauge, "DCGM_FI_PROF_PIPE_FP32_ACTIVE", "share of cycles in which the FP32 pipe was busy"},
	{GPUFP16Active, "1", Gauge, "DCGM_FI_PROF_PIPE_FP16_ACTIVE", "share of cycles in which the FP16 pipe was busy"},
}

var vocabulary = map[string]Metric{}

func init() { RegisterMetrics(commonMetrics...); RegisterMetrics(gpuMetrics...) }

// RegisterMetrics adds to the vocabulary; it is called from init functions. A
// name that is there already is a mistake in the program and panics.
func RegisterMetrics(ms ...Metric) {
	for _, m := range ms {
		if _, ok := vocabulary[m.Name]; ok {
			panic("gpu: metric " + m.Name + " is registered twice")
		}
		vocabulary[m.Name] = m
	}
}

// Lookup finds a metric of the vocabulary.
func Lookup(name string) (Metric, bool) {
	m, ok := vocabulary[name]
	return m, ok
}

// A ThrottleReason is a bit of [GPUThrottleReasons]. The bits are those of NVML
// (nvmlClocksEventReasons) and DCGM.
type ThrottleReason struct {
	Bit  uint64
	Name string
	// Slow says that the device was kept from its clocks by power or heat,
	// which is what makes a run doubtful; idle and set clocks do not.
	Slow bool
}

// ThrottleReasonTable lists the bits.
var ThrottleReasonTable = []ThrottleReason{
	{0x001, "gpu_idle", false},
	{0x002, "applications_clocks_setting", false},
	{0x004, "sw_power_cap", true},
	{0x008, "hw_slowdown", true},
	{0x010, "sync_boost", false},
	{0x020, "sw_thermal_slowdown", true},
	{0x040, "hw_thermal_slowdown", true},
	{0x080, "hw_power_brake_slowdown", true},
	{0x100, "display_clock_setting", false},
	{0x200, "board_limit", true},
	{0x400, "reliability", false},
}

// ThrottleReasons names the bits of mask. slow says whether one of them is
// power or heat.
func ThrottleReasons(mask float64) (names []string, slow bool) {
	if !(mask > 0 && mask < 1<<53) {
		return nil, false
	}
	for _, r := range ThrottleReasonTable {
		if uint64(mask)&r.Bit != 0 {
			names = append(names, r.Name)
			slow = slow || r.Slow
		}
	}
	return names, slow
}

// AttrValue finds the value of key in Sample.Attr.
func AttrValue(attr, key string) (string, bool) {
	for pair := range strings.SplitSeq(attr, ",") {
		if k, v, ok := strings.Cut(pair, "="); ok && k == key {
			return v, true
		}
	}
	return "", false
}
