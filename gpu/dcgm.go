package gpu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	promodel "github.com/prometheus/common/model"
)

// DCGMPeriod is how often an exporter is asked. It collects every 30 s unless
// it is started with `-c 1000`; asking more often gives the same values again.
const DCGMPeriod = time.Second

// A dcgmField is a field of DCGM as its exporter prints it.
type dcgmField struct {
	metric, attr string
	scale        float64
}

// dcgmFields maps fields to the vocabulary. The units are those of the
// exporter's default-counters.csv. Left out are the violation times, which are
// microseconds in one version and nanoseconds in another, and
// DCGM_FI_DEV_NVLINK_BANDWIDTH_TOTAL, of which DCGM does not say what it counts.
var dcgmFields = map[string]dcgmField{
	"DCGM_FI_DEV_GPU_UTIL":                    {GPUUtilization, "", 0.01},
	"DCGM_FI_DEV_MEM_COPY_UTIL":               {GPUMemoryBusy, "", 0.01},
	"DCGM_FI_DEV_FB_USED":                     {GPUMemoryUsage, "", 1 << 20},
	"DCGM_FI_DEV_FB_FREE":                     {GPUMemoryFree, "", 1 << 20},
	"DCGM_FI_DEV_FB_RESERVED":                 {GPUMemoryReserved, "", 1 << 20},
	"DCGM_FI_DEV_FB_TOTAL":                    {GPUMemoryLimit, "", 1 << 20},
	"DCGM_FI_DEV_POWER_USAGE":                 {GPUPowerAverage, "", 1},
	"DCGM_FI_DEV_POWER_USAGE_INSTANT":         {GPUPower, "", 1},
	"DCGM_FI_DEV_ENFORCED_POWER_LIMIT":        {GPUPowerLimit, "", 1},
	"DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION":    {GPUEnergy, "", 1e-3},
	"DCGM_FI_DEV_SM_CLOCK":                    {GPUClockSM, "", 1e6},
	"DCGM_FI_DEV_MEM_CLOCK":                   {GPUClockMemory, "", 1e6},
	"DCGM_FI_DEV_GPU_TEMP":                    {GPUTemperature, "", 1},
	"DCGM_FI_DEV_MEMORY_TEMP":                 {GPUMemoryTemp, "", 1},
	"DCGM_FI_DEV_CLOCKS_EVENT_REASONS":        {GPUThrottleReasons, "", 1},
	"DCGM_FI_DEV_CLOCK_THROTTLE_REASONS":      {GPUThrottleReasons, "", 1},
	"DCGM_FI_DEV_PCIE_REPLAY_COUNTER":         {GPUPCIeReplays, "", 1},
	"DCGM_FI_DEV_ECC_SBE_VOL_TOTAL":           {GPUECCErrors, "type=corrected", 1},
	"DCGM_FI_DEV_ECC_DBE_VOL_TOTAL":           {GPUECCErrors, "type=uncorrected", 1},
	"DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS":   {GPURemappedRows, "type=corrected", 1},
	"DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS": {GPURemappedRows, "type=uncorrected", 1},
	"DCGM_FI_DEV_XID_ERRORS":                  {GPUXID, "", 1},
	"DCGM_FI_PROF_GR_ENGINE_ACTIVE":           {GPUGraphicsActive, "", 1},
	"DCGM_FI_PROF_SM_ACTIVE":                  {GPUSMActive, "", 1},
	"DCGM_FI_PROF_SM_OCCUPANCY":               {GPUSMOccupancy, "", 1},
	"DCGM_FI_PROF_PIPE_TENSOR_ACTIVE":         {GPUTensorActive, "", 1},
	"DCGM_FI_PROF_PIPE_TENSOR_HMMA_ACTIVE":    {GPUTensorHMMA, "", 1},
	"DCGM_FI_PROF_PIPE_TENSOR_IMMA_ACTIVE":    {GPUTensorIMMA, "", 1},
	"DCGM_FI_PROF_DRAM_ACTIVE":                {GPUDRAMActive, "", 1},
	"DCGM_FI_PROF_PIPE_FP64_ACTIVE":           {GPUFP64Active, "", 1},
	"DCGM_FI_PROF_PIPE_FP32_ACTIVE":           {GPUFP32Active, "", 1},
	"DCGM_FI_PROF_PIPE_FP16_ACTIVE":           {GPUFP16Active, "", 1},
	"DCGM_FI_PROF_PCIE_TX_BYTES":              {GPUPCIeTransmitRate, "", 1},
	"DCGM_FI_PROF_PCIE_RX_BYTES":              {GPUPCIeReceiveRate, "", 1},
	"DCGM_FI_PROF_NVLINK_TX_BYTES":            {GPUNVLinkTxRate, "", 1},
	"DCGM_FI_PROF_NVLINK_RX_BYTES":            {GPUNVLinkRxRate, "", 1},
}

var dcgmFilter = func() filter {
	f := filter{map[string]bool{}, map[string]bool{}}
	for name := range dcgmFields {
		f.families[name], f.samples[name] = true, true
	}
	return f
}()

// A DCGM is the page of a DCGM exporter. It implements [Source] and [Describer].
type DCGM struct {
	name string
	page *scraper
	xids map[string]float64 // the last of each device

	mu      sync.Mutex
	devices []Device
}

// NewDCGM returns the exporter at rawURL, which is asked for nothing yet. Its
// path is /metrics unless it has one.
func NewDCGM(name, rawURL string) (*DCGM, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return nil, errors.New("the address of a DCGM exporter is http://host:9400/metrics")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/metrics"
	}
	if name == "" {
		name = "dcgm"
	}
	return &DCGM{name: name, page: newScraper(u.String(), nil), xids: map[string]float64{}}, nil
}

// Name implements [Source].
func (d *DCGM) Name() string { return d.name }

// Period implements [Source].
func (d *DCGM) Period() time.Duration { return DCGMPeriod }

// Close implements [Source].
func (d *DCGM) Close() error {
	d.page.close()
	return nil
}

// Devices implements [Describer].
func (d *DCGM) Devices() []Device {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.devices)
}

// Sample implements [Source].
func (d *DCGM) Sample(ctx context.Context, now func() time.Duration, emit func(Sample)) error {
	at, err := d.page.fetch(ctx, now)
	if err != nil {
		return err
	}
	return d.parse(d.page.body.Bytes(), at, emit)
}

// parse emits what the page says.
func (d *DCGM) parse(body []byte, at time.Duration, emit func(Sample)) error {
	if n := len(body); n > 0 && body[n-1] != '\n' {
		return otherwise(body, &Fault{Name: FaultCutShort})
	}
	kept, lines, _ := dcgmFilter.cut(body)
	parser := expfmt.NewTextParser(promodel.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(kept))
	if err != nil {
		if e, ok := errors.AsType[expfmt.ParseError](err); ok && e.Line >= 1 && e.Line <= len(lines) {
			return Faultf(FaultNotMetrics, "line %d is not of the text format", lines[e.Line-1])
		}
		return Faultf(FaultNotMetrics, "not the text format")
	}
	if len(families) == 0 {
		return otherwise(body, Faultf(FaultNotMetrics, "no DCGM_FI_ metric on the page: is it a DCGM exporter's?"))
	}
	devices := map[string]Device{}
	seen := map[Key]bool{}
	for _, name := range slices.Sorted(maps.Keys(families)) {
		f := dcgmFields[name]
		for _, m := range families[name].Metric {
			dev := dcgmDevice(m)
			devices[dev.Name] = dev
			v := value(m)
			if blank(v) {
				continue
			}
			s := Sample{Time: at, Device: dev.Name, Metric: f.metric, Attr: f.attr, Value: v * f.scale}
			if f.metric == GPUXID {
				// The page repeats the last one; what was there before the run
				// is not of the run.
				last, known := d.xids[dev.Name]
				d.xids[dev.Name] = v
				if !known || v == last || v == 0 {
					continue
				}
			}
			// Two exporters behind one address, or a field by both its names.
			if seen[s.Key()] {
				continue
			}
			seen[s.Key()] = true
			emit(s)
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.devices = nil
	for _, name := range slices.Sorted(maps.Keys(devices)) {
		d.devices = append(d.devices, devices[name])
	}
	return nil
}

// dcgmDevice reads the labels of a series.
func dcgmDevice(m *dto.Metric) Device {
	l := map[string]string{}
	for _, p := range m.Label {
		l[p.GetName()] = p.GetValue()
	}
	d := Device{Name: "gpu" + l["gpu"], Model: l["modelName"], UUID: l["UUID"], Driver: l["DCGM_FI_DRIVER_VERSION"]}
	if gi := l["GPU_I_ID"]; gi != "" {
		d.Name = fmt.Sprintf("%s/mig%s", d.Name, gi)
	}
	return d
}

// blank says whether v is one of DCGM's values for "unknown", "not supported" or
// "no permission" (dcgm_structs.h: DCGM_INT32_BLANK, DCGM_INT64_BLANK,
// DCGM_FP64_BLANK and the 15 values above each).
func blank(v float64) bool {
	return v >= 0x7ffffff0 && v <= 0x7fffffff && v == float64(int64(v)) || v >= 140737488355328
}
