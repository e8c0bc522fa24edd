//go:build cgo && linux && !nonvml

package nvml

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"reprise/gpu"
)

// Built says whether this binary has NVML.
const Built = true

// Open opens the library and returns the sources for all GPUs of this host. The
// error is a [*gpu.Fault] that says why the library cannot be opened now; the
// sources are there all the same and try again whenever they are read, so that a
// driver may come up after this program. The caller closes them in any case.
func Open(o Options) ([]gpu.Source, error) {
	var opts []nvml.LibraryOption
	if o.Library != "" {
		opts = append(opts, nvml.WithLibraryPath(o.Library))
	}
	return open(nvml.New(opts...), o)
}

func open(lib nvml.Interface, o Options) ([]gpu.Source, error) {
	h := &host{lib: lib, users: 2}
	if o.Period == 0 {
		o.Period = DefaultPeriod
	}
	return []gpu.Source{
		&source{host: h, name: "nvml", period: o.Period, metrics: fastMetrics},
		&source{host: h, name: "nvml-slow", period: slowPeriod, metrics: slowMetrics, follows: true},
	}, h.ensure()
}

// libraries guards the loading of libraries: go-nvml keeps what it finds in
// them in variables of its package.
var libraries sync.Mutex

// A host is the library and the GPUs it knows, shared by the sources.
type host struct {
	lib nvml.Interface

	use  sync.RWMutex // held for reading while the library is in use
	open bool
	gpus []handle
	gen  int // counts openings
	// events is where the driver leaves XIDs, nil where there are none.
	events nvml.EventSet

	mu      sync.Mutex
	users   int // sources that are not closed
	devices []gpu.Device
	pcie    map[string]bool // devices whose PCIe traffic the fast source has
}

// fastPCIe says whether the fast source has the PCIe traffic of a device.
func (h *host) fastPCIe(device string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.pcie[device]
}

func (h *host) setFastPCIe(device string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pcie == nil {
		h.pcie = map[string]bool{}
	}
	h.pcie[device] = true
}

// A handle is a GPU or MIG instance as it was found when the library was opened.
type handle struct {
	name   string // "gpu0"
	uuid   string
	index  int
	dev    nvml.Device // nil if it could not be had
	parent nvml.Device // of a MIG instance
	gi     int         // GPU instance of a MIG instance
}

// ensure opens the library if it is not, and leaves it open.
func (h *host) ensure() error {
	h.use.Lock()
	defer h.use.Unlock()
	if h.open {
		return nil
	}
	libraries.Lock()
	ret := h.lib.Init()
	libraries.Unlock()
	if ret != nvml.SUCCESS {
		return faultOf(ret)
	}
	h.open = true
	if err := h.find(); err != nil {
		h.shut()
		return err
	}
	h.gen++
	h.listen()
	return nil
}

// found says whether the library was open at some time.
func (h *host) found() bool {
	h.use.RLock()
	defer h.use.RUnlock()
	return h.gen > 0
}

// find lists the GPUs.
func (h *host) find() error {
	n, ret := h.lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return faultOf(ret)
	}
	if n == 0 {
		return gpu.Faultf(gpu.FaultFailed, "the driver knows no GPU")
	}
	driver, ret := h.lib.SystemGetDriverVersion()
	if ret != nvml.SUCCESS {
		driver = ""
	}
	h.gpus = nil
	var devices []gpu.Device
	for i := range min(n, maxGPUs) {
		g := handle{name: fmt.Sprintf("gpu%d", i), index: i}
		d := gpu.Device{Name: g.name, Driver: driver}
		if dev, ret := h.lib.DeviceGetHandleByIndex(i); ret == nvml.SUCCESS {
			g.dev = dev
			g.uuid = describe(dev, &d)
		}
		h.gpus = append(h.gpus, g)
		devices = append(devices, d)
		for _, m := range h.instances(g) {
			d := gpu.Device{Name: m.name, Driver: driver}
			m.uuid = describe(m.dev, &d)
			h.gpus = append(h.gpus, m)
			devices = append(devices, d)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.devices = devices
	return nil
}

// maxGPUs bounds the devices of a host, and maxInstances the MIG instances of
// one: a driver that says more is not to be believed.
const (
	maxGPUs      = 64
	maxInstances = 16
)

func describe(dev nvml.Device, d *gpu.Device) (uuid string) {
	if s, ret := dev.GetUUID(); ret == nvml.SUCCESS {
		d.UUID = s
	}
	if s, ret := dev.GetName(); ret == nvml.SUCCESS {
		d.Model = s
	}
	if m, ret := dev.GetMemoryInfo(); ret == nvml.SUCCESS {
		d.Memory = m.Total
	}
	return d.UUID
}

// instances lists the MIG instances of a GPU.
func (h *host) instances(g handle) []handle {
	if g.dev == nil || !h.has("nvmlDeviceGetMigMode") || !h.has("nvmlDeviceGetMaxMigDeviceCount") ||
		!h.has("nvmlDeviceGetMigDeviceHandleByIndex") || !h.has("nvmlDeviceGetGpuInstanceId") {
		return nil
	}
	if mode, _, ret := g.dev.GetMigMode(); ret != nvml.SUCCESS || mode != nvml.DEVICE_MIG_ENABLE {
		return nil
	}
	n, ret := g.dev.GetMaxMigDeviceCount()
	if ret != nvml.SUCCESS {
		return nil
	}
	var found []handle
	for i := range min(n, maxInstances) {
		dev, ret := g.dev.GetMigDeviceHandleByIndex(i)
		if ret != nvml.SUCCESS {
			continue // that many fit, fewer exist
		}
		gi, ret := dev.GetGpuInstanceId()
		if ret != nvml.SUCCESS {
			continue
		}
		// DCGM names them by the GPU instance as well; several compute instances
		// in one are told apart by their own number.
		name := fmt.Sprintf("%s/mig%d", g.name, gi)
		if slices.ContainsFunc(found, func(h handle) bool { return h.name == name }) {
			name = fmt.Sprintf("%s.%d", name, i)
		}
		found = append(found, handle{name: name, index: g.index, dev: dev, parent: g.dev, gi: gi})
	}
	return found
}

// has reports whether the library has a function. One that it lacks must not be
// called: the dynamic linker would end the process.
func (h *host) has(symbol string) bool { return h.lib.Extensions().LookupSymbol(symbol) == nil }

// listen registers for XIDs of all GPUs.
func (h *host) listen() {
	for _, f := range []string{"nvmlEventSetCreate", "nvmlEventSetWait", "nvmlEventSetFree", "nvmlDeviceRegisterEvents"} {
		if !h.has(f) {
			return
		}
	}
	set, ret := h.lib.EventSetCreate()
	if ret != nvml.SUCCESS {
		return
	}
	registered := false
	for _, g := range h.gpus {
		if g.dev != nil && g.parent == nil && g.dev.RegisterEvents(nvml.EventTypeXidCriticalError, set) == nvml.SUCCESS {
			registered = true
		}
	}
	if !registered {
		set.Free()
		return
	}
	h.events = set
}

// shut closes the library; with h.use held.
func (h *host) shut() {
	if !h.open {
		return
	}
	if h.events != nil {
		h.events.Free()
		h.events = nil
	}
	libraries.Lock()
	h.lib.Shutdown()
	libraries.Unlock()
	h.open, h.gpus = false, nil
}

// A source reads one set of metrics of all devices of a host.
type source struct {
	host    *host
	name    string
	period  time.Duration
	metrics func(*host, handle) []*metric
	// follows says that another source opens the library for the first time, and
	// tells why it cannot: once is enough.
	follows bool

	gen  int // of the host, that devs are of
	devs []*device
}

// A device is a GPU as one source reads it.
type device struct {
	handle
	metrics []*metric
	fault   *gpu.Fault    // why it is down
	since   time.Duration // the last reading that succeeded
	retry   time.Duration // when a device that is down is asked again
	pause   time.Duration
	gpm     gpmState
}

// retryMax bounds the pause between attempts to reach a lost GPU.
const retryMax = 5 * time.Second

func (s *source) Name() string          { return s.name }
func (s *source) Period() time.Duration { return s.period }

// Sample implements gpu.Source. The context is not looked at: no call of NVML
// can be given up.
func (s *source) Sample(_ context.Context, now func() time.Duration, emit func(gpu.Sample)) error {
	if s.follows && !s.host.found() {
		return gpu.ErrNotYet
	}
	if err := s.host.ensure(); err != nil {
		return err
	}
	s.host.use.RLock()
	fatal := s.read(now, emit)
	s.host.use.RUnlock()
	if fatal != nil {
		s.host.use.Lock()
		s.drop()
		s.host.shut()
		s.host.use.Unlock()
		return fatal
	}
	return nil
}

// read reads all devices; with host.use held for reading. It returns a fault of
// the library as a whole, after which that is opened anew.
func (s *source) read(now func() time.Duration, emit func(gpu.Sample)) *gpu.Fault {
	h := s.host
	if s.gen != h.gen {
		s.devs = nil
		for _, g := range h.gpus {
			s.devs = append(s.devs, &device{handle: g, metrics: s.metrics(h, g), since: now()})
		}
		s.gen = h.gen
	}
	down := 0
	var last *gpu.Fault
	for _, d := range s.devs {
		e := &env{host: h, dev: d, now: now, emit: func(m gpu.Sample) {
			if m.Device == "" { // an XID may be another GPU's
				m.Device = d.name
			}
			emit(m)
		}}
		if f := s.readDevice(d, e); f != nil {
			if wholeLibrary(f) {
				return f
			}
			down++
			last = f
		}
	}
	if down == len(s.devs) {
		return last
	}
	return nil
}

// readDevice reads one device, and says why that is down if it is.
func (s *source) readDevice(d *device, e *env) *gpu.Fault {
	at := e.now()
	if d.fault != nil {
		if at < d.retry {
			return d.fault
		}
		s.reach(d)
	}
	f := &gpu.Fault{Name: gpu.FaultGPULost}
	if d.dev != nil {
		f = e.readMetrics()
	}
	switch {
	case f == nil && d.fault != nil:
		e.emit(gpu.Sample{Time: at, Metric: gpu.MetricGap, Value: (at - d.since).Seconds(), Note: d.fault.Error()})
		e.emit(gpu.Sample{Time: at, Metric: gpu.MetricUp, Value: 1})
		d.fault, d.pause = nil, 0
	case f != nil:
		if d.fault == nil {
			e.emit(gpu.Sample{Time: at, Metric: gpu.MetricUp, Value: 0, Note: f.Error()})
		}
		d.fault = f
		d.pause = min(max(2*d.pause, s.period), retryMax)
		d.retry = at + d.pause
		return f
	}
	d.since = at
	s.missing(d)
	return nil
}

// reach gets a new handle for a device that was lost.
func (s *source) reach(d *device) {
	if d.parent != nil {
		return
	}
	var dev nvml.Device
	var ret nvml.Return
	if d.uuid != "" {
		dev, ret = s.host.lib.DeviceGetHandleByUUID(d.uuid)
	} else {
		dev, ret = s.host.lib.DeviceGetHandleByIndex(d.index)
	}
	if ret == nvml.SUCCESS {
		d.dev = dev
	}
}

// missing keeps the list of what the device does not support.
func (s *source) missing(d *device) {
	var names []string
	for _, m := range d.metrics {
		names = append(names, m.missing()...)
	}
	s.host.mu.Lock()
	defer s.host.mu.Unlock()
	for i := range s.host.devices {
		have := &s.host.devices[i]
		if have.Name != d.name {
			continue
		}
		for _, n := range names {
			if !slices.Contains(have.Missing, n) {
				have.Missing = append(have.Missing, n)
				slices.Sort(have.Missing)
			}
		}
	}
}

// Devices implements gpu.Describer; the fast source answers for both.
func (s *source) Devices() []gpu.Device {
	if s.name != "nvml" {
		return nil
	}
	s.host.mu.Lock()
	defer s.host.mu.Unlock()
	all := slices.Clone(s.host.devices)
	for i := range all {
		all[i].Missing = slices.Clone(all[i].Missing)
	}
	return all
}

// drop frees what the devices of this source hold in the library.
func (s *source) drop() {
	if s.gen == s.host.gen && s.host.open {
		for _, d := range s.devs {
			d.gpm.free()
		}
	}
	s.devs, s.gen = nil, 0
}

// Close implements gpu.Source.
func (s *source) Close() error {
	h := s.host
	h.use.Lock()
	defer h.use.Unlock()
	s.drop()
	h.mu.Lock()
	h.users--
	last := h.users == 0
	h.mu.Unlock()
	if last {
		h.shut()
	}
	return nil
}

// faultOf names what NVML returned.
func faultOf(ret nvml.Return) *gpu.Fault {
	name := gpu.FaultFailed
	text := ""
	switch ret {
	case nvml.SUCCESS:
		return nil
	case nvml.ERROR_LIBRARY_NOT_FOUND:
		name, text = gpu.FaultNoDriver, "libnvidia-ml.so.1 cannot be opened: is the NVIDIA driver installed, and mounted into this container?"
	case nvml.ERROR_DRIVER_NOT_LOADED:
		name, text = gpu.FaultNoDriver, "the NVIDIA kernel module is not loaded"
	case nvml.ERROR_LIB_RM_VERSION_MISMATCH:
		name, text = gpu.FaultDriverMismatch, "libnvidia-ml.so.1 and the kernel module are of different driver versions: reboot, or reload the module"
	case nvml.ERROR_NO_PERMISSION:
		name, text = gpu.FaultNoPermission, "NVML refuses this user"
	case nvml.ERROR_GPU_IS_LOST, nvml.ERROR_GPU_NOT_FOUND:
		name, text = gpu.FaultGPULost, "the GPU has fallen off the bus"
	case nvml.ERROR_RESET_REQUIRED:
		name, text = gpu.FaultGPULost, "the GPU needs a reset"
	case nvml.ERROR_TIMEOUT:
		name, text = gpu.FaultTimeout, "NVML did not answer in time"
	default:
		text = fmt.Sprintf("NVML error %d", int(ret))
	}
	return gpu.Faultf(name, "%s", text)
}

// wholeLibrary says whether a fault is of the driver and not of one GPU.
func wholeLibrary(f *gpu.Fault) bool {
	return f.Name == gpu.FaultNoDriver || f.Name == gpu.FaultDriverMismatch || f.Name == faultUninitialized
}

// faultUninitialized is what the other source leaves us with when it has closed
// the library.
const faultUninitialized = "uninitialized"
