//go:build cgo && linux && !nonvml

package nvml

import (
	"encoding/binary"
	"math"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"reprise/gpu"
)

// A fieldID is a field of nvmlDeviceGetFieldValues, which reads many in one call.
type fieldID struct {
	id    uint32
	scope uint32
	name  string
	attr  string
	scale float64
}

// allLinks, as the scope of a NVLink field, sums over the links.
const allLinks = math.MaxUint32

var fastFields = []fieldID{
	{nvml.FI_DEV_POWER_INSTANT, 0, gpu.GPUPower, "", milli},
	{nvml.FI_DEV_POWER_AVERAGE, 0, gpu.GPUPowerAverage, "", milli},
	{nvml.FI_DEV_PCIE_COUNT_TX_BYTES, 0, gpu.GPUPCIeTransmit, "", 1},
	{nvml.FI_DEV_PCIE_COUNT_RX_BYTES, 0, gpu.GPUPCIeReceive, "", 1},
	{nvml.FI_DEV_NVLINK_THROUGHPUT_DATA_TX, allLinks, gpu.GPUNVLinkTransmit, "", kibi},
	{nvml.FI_DEV_NVLINK_THROUGHPUT_DATA_RX, allLinks, gpu.GPUNVLinkReceive, "", kibi},
}

// The times are nanoseconds since the driver was loaded (nvml.h, "NVML Perf
// Policy Counters" and NVML_FI_DEV_CLOCKS_EVENT_REASON_*).
var slowFields = []fieldID{
	{nvml.FI_DEV_MEMORY_TEMP, 0, gpu.GPUMemoryTemp, "", 1},
	{nvml.FI_DEV_PERF_POLICY_POWER, 0, gpu.GPUThrottleTime, "reason=power", nano},
	{nvml.FI_DEV_PERF_POLICY_THERMAL, 0, gpu.GPUThrottleTime, "reason=thermal", nano},
	{nvml.FI_DEV_PERF_POLICY_SYNC_BOOST, 0, gpu.GPUThrottleTime, "reason=sync_boost", nano},
	{nvml.FI_DEV_PERF_POLICY_BOARD_LIMIT, 0, gpu.GPUThrottleTime, "reason=board_limit", nano},
	{nvml.FI_DEV_PERF_POLICY_LOW_UTILIZATION, 0, gpu.GPUThrottleTime, "reason=low_utilization", nano},
	{nvml.FI_DEV_PERF_POLICY_RELIABILITY, 0, gpu.GPUThrottleTime, "reason=reliability", nano},
	{nvml.FI_DEV_PCIE_REPLAY_COUNTER, 0, gpu.GPUPCIeReplays, "", 1},
	{nvml.FI_DEV_REMAPPED_COR, 0, gpu.GPURemappedRows, "type=corrected", 1},
	{nvml.FI_DEV_REMAPPED_UNC, 0, gpu.GPURemappedRows, "type=uncorrected", 1},
}

// fields reads several fields at once. A field that is not supported is left
// out of later calls. instead, where it is not nil, is read while no field gives
// the power.
func fields(ids []fieldID, instead func(*env) nvml.Return) *metric {
	ask := make([]nvml.FieldValue, len(ids))
	what := append([]fieldID(nil), ids...)
	var absent []string
	power := false
	m := &metric{names: []string{ids[0].name}}
	m.more = func() []string { return absent }
	m.read = func(e *env) nvml.Return {
		ask = ask[:len(what)]
		for i, f := range what {
			ask[i] = nvml.FieldValue{FieldId: f.id, ScopeId: f.scope}
		}
		ret := nvml.SUCCESS
		if len(what) > 0 {
			ret = e.dev.dev.GetFieldValues(ask)
			if unsupported(ret) {
				for _, f := range what {
					absent = append(absent, f.name)
				}
				what, ret = nil, nvml.SUCCESS
			} else if ret != nvml.SUCCESS {
				return ret
			}
		}
		keep := what[:0]
		for i, f := range what {
			one := nvml.Return(ask[i].NvmlReturn)
			v, ok := fieldNumber(&ask[i])
			switch {
			case unsupported(one) || one == nvml.SUCCESS && !ok:
				absent = append(absent, f.name)
				continue
			case one == nvml.SUCCESS:
				e.putAttr(f.name, f.attr, v*f.scale)
				power = power || f.name == gpu.GPUPower || f.name == gpu.GPUPowerAverage
				if f.name == gpu.GPUPCIeTransmit {
					e.host.setFastPCIe(e.dev.name)
				}
			default: // this one failed this time
				ret = one
			}
			keep = append(keep, f)
		}
		what = keep
		if instead != nil && !power {
			if r := instead(e); ret == nvml.SUCCESS {
				ret = r
			}
		}
		return ret
	}
	return m
}

// powerFallback is for GPUs that have no field for it: on those,
// nvmlDeviceGetPowerUsage is the power now (nvml.h).
func powerFallback(h *host) func(*env) nvml.Return {
	if !h.has("nvmlDeviceGetPowerUsage") {
		return nil
	}
	off := false
	return func(e *env) nvml.Return {
		if off {
			return nvml.SUCCESS
		}
		v, ret := e.dev.dev.GetPowerUsage()
		if unsupported(ret) {
			off, ret = true, nvml.SUCCESS
		} else if ret == nvml.SUCCESS {
			e.put(gpu.GPUPower, float64(v)*milli)
		}
		return ret
	}
}

// fieldNumber reads the union that the value is in (nvmlValue_t).
func fieldNumber(f *nvml.FieldValue) (float64, bool) {
	u := binary.NativeEndian.Uint64(f.Value[:])
	switch nvml.ValueType(f.ValueType) {
	case nvml.VALUE_TYPE_DOUBLE:
		v := math.Float64frombits(u)
		return v, !math.IsNaN(v) && !math.IsInf(v, 0)
	case nvml.VALUE_TYPE_UNSIGNED_INT:
		return float64(binary.NativeEndian.Uint32(f.Value[:])), true
	case nvml.VALUE_TYPE_UNSIGNED_LONG, nvml.VALUE_TYPE_UNSIGNED_LONG_LONG:
		return float64(u), u != math.MaxUint64
	case nvml.VALUE_TYPE_SIGNED_LONG_LONG:
		return float64(int64(u)), true
	case nvml.VALUE_TYPE_SIGNED_INT:
		return float64(int32(binary.NativeEndian.Uint32(f.Value[:]))), true
	case nvml.VALUE_TYPE_UNSIGNED_SHORT:
		return float64(binary.NativeEndian.Uint16(f.Value[:])), true
	}
	return 0, false
}
