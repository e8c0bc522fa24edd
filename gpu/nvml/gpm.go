//go:build cgo && linux && !nonvml

package nvml

import (
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"reprise/gpu"
)

// gpmInterval is the least time between two GPM samples that may be compared:
// the driver refreshes them every 100 ms (nvml.h, nvmlGpmMetricsGet).
const gpmInterval = 105 * time.Millisecond

// gpmFields are the GPM metrics that are asked for. Rates come in MiB/s.
var gpmFields = []struct {
	id    nvml.GpmMetricId
	name  string
	scale float64
}{
	{nvml.GPM_METRIC_GRAPHICS_UTIL, gpu.GPUGraphicsActive, percent},
	{nvml.GPM_METRIC_SM_UTIL, gpu.GPUSMActive, percent},
	{nvml.GPM_METRIC_SM_OCCUPANCY, gpu.GPUSMOccupancy, percent},
	{nvml.GPM_METRIC_ANY_TENSOR_UTIL, gpu.GPUTensorActive, percent},
	{nvml.GPM_METRIC_HMMA_TENSOR_UTIL, gpu.GPUTensorHMMA, percent},
	{nvml.GPM_METRIC_IMMA_TENSOR_UTIL, gpu.GPUTensorIMMA, percent},
	{nvml.GPM_METRIC_DRAM_BW_UTIL, gpu.GPUDRAMActive, percent},
	{nvml.GPM_METRIC_FP64_UTIL, gpu.GPUFP64Active, percent},
	{nvml.GPM_METRIC_FP32_UTIL, gpu.GPUFP32Active, percent},
	{nvml.GPM_METRIC_FP16_UTIL, gpu.GPUFP16Active, percent},
	{nvml.GPM_METRIC_PCIE_TX_PER_SEC, gpu.GPUPCIeTransmitRate, mebi},
	{nvml.GPM_METRIC_PCIE_RX_PER_SEC, gpu.GPUPCIeReceiveRate, mebi},
	{nvml.GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC, gpu.GPUNVLinkTxRate, mebi},
	{nvml.GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC, gpu.GPUNVLinkRxRate, mebi},
}

// gpmState is what GPM holds of one device: the last sample, and room for one.
type gpmState struct {
	last, next nvml.GpmSample
	at         time.Duration // of last
	taken      bool          // last holds a sample
	absent     []string
	off        []bool // by gpmFields
}

// free gives the samples back; the library must be open.
func (g *gpmState) free() {
	for _, s := range []nvml.GpmSample{g.last, g.next} {
		if s != nil {
			s.Free()
		}
	}
	*g = gpmState{}
}

// gpmMetric reads all of GPM, or is nil where the library has none of it.
func gpmMetric(h *host) *metric {
	for _, f := range []string{
		"nvmlGpmQueryDeviceSupport", "nvmlGpmSampleAlloc", "nvmlGpmSampleFree",
		"nvmlGpmSampleGet", "nvmlGpmMigSampleGet", "nvmlGpmMetricsGet",
	} {
		if !h.has(f) {
			return nil
		}
	}
	m := &metric{names: []string{gpu.GPUSMActive}}
	var state *gpmState
	m.more = func() []string {
		switch {
		case m.off && m.fault == nil:
			var all []string
			for _, f := range gpmFields[2:] {
				all = append(all, f.name)
			}
			return append(all, gpmFields[0].name)
		case state != nil:
			return state.absent
		}
		return nil
	}
	m.read = func(e *env) nvml.Return {
		state = &e.dev.gpm
		return e.readGPM(state)
	}
	return m
}

func (e *env) readGPM(g *gpmState) nvml.Return {
	if g.last == nil {
		if ret := e.openGPM(g); ret != nvml.SUCCESS {
			return ret
		}
	}
	if g.taken && e.now()-g.at < gpmInterval {
		return nvml.SUCCESS
	}
	var ret nvml.Return
	if e.dev.parent != nil {
		ret = e.dev.parent.GpmMigSampleGet(e.dev.gi, g.next)
	} else {
		ret = e.dev.dev.GpmSampleGet(g.next)
	}
	if ret != nvml.SUCCESS {
		g.taken = false
		return ret
	}
	compare := g.taken
	g.last, g.next = g.next, g.last
	g.at, g.taken = e.now(), true
	if !compare {
		return nvml.SUCCESS
	}
	get := &nvml.GpmMetricsGetType{Sample1: g.next, Sample2: g.last}
	ids := make([]int, len(gpmFields))
	for i, f := range gpmFields {
		if !g.off[i] {
			ids[get.NumMetrics] = i
			get.Metrics[get.NumMetrics].MetricId = uint32(f.id)
			get.NumMetrics++
		}
	}
	if get.NumMetrics == 0 {
		return nvml.ERROR_NOT_SUPPORTED
	}
	if ret := e.host.lib.GpmMetricsGet(get); ret != nvml.SUCCESS {
		return ret
	}
	for i := range get.NumMetrics {
		f := gpmFields[ids[i]]
		switch one := nvml.Return(get.Metrics[i].NvmlReturn); {
		case one == nvml.SUCCESS:
			e.emit(gpu.Sample{Time: g.at, Metric: f.name, Value: get.Metrics[i].Value * f.scale})
			if f.name == gpu.GPUPCIeTransmitRate {
				e.host.setFastPCIe(e.dev.name)
			}
		case unsupported(one):
			g.off[ids[i]] = true
			g.absent = append(g.absent, f.name)
		}
	}
	return nvml.SUCCESS
}

// openGPM asks whether the device has GPM and makes room for samples.
func (e *env) openGPM(g *gpmState) nvml.Return {
	dev := e.dev.dev
	if e.dev.parent != nil {
		dev = e.dev.parent
	}
	support, ret := dev.GpmQueryDeviceSupport()
	if ret != nvml.SUCCESS {
		return ret
	}
	if support.IsSupportedDevice == 0 {
		return nvml.ERROR_NOT_SUPPORTED
	}
	last, ret := e.host.lib.GpmSampleAlloc()
	if ret != nvml.SUCCESS {
		return ret
	}
	next, ret := e.host.lib.GpmSampleAlloc()
	if ret != nvml.SUCCESS {
		last.Free()
		return ret
	}
	*g = gpmState{last: last, next: next, off: make([]bool, len(gpmFields))}
	return nvml.SUCCESS
}
