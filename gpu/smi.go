package gpu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// SMIPeriod is how often nvidia-smi is told to print.
const SMIPeriod = time.Second

// firstLine is how long a reading waits for a program that it has just started.
const firstLine = 2 * time.Second

// maxSMILine bounds a line, and maxSMIPending what is read ahead of a reading.
const (
	maxSMILine    = 16 << 10
	maxSMIPending = 4096
)

// smiFields maps the fields of `nvidia-smi --help-query-gpu`, in the units that
// it prints, to the vocabulary. There is no energy among them: that figure needs
// NVML or DCGM.
var smiFields = map[string]dcgmField{
	"utilization.gpu":                       {GPUUtilization, "", 0.01},
	"utilization.memory":                    {GPUMemoryBusy, "", 0.01},
	"memory.total":                          {GPUMemoryLimit, "", 1 << 20},
	"memory.used":                           {GPUMemoryUsage, "", 1 << 20},
	"memory.free":                           {GPUMemoryFree, "", 1 << 20},
	"memory.reserved":                       {GPUMemoryReserved, "", 1 << 20},
	"power.draw":                            {GPUPowerAverage, "", 1},
	"power.draw.average":                    {GPUPowerAverage, "", 1},
	"power.draw.instant":                    {GPUPower, "", 1},
	"enforced.power.limit":                  {GPUPowerLimit, "", 1},
	"clocks.current.sm":                     {GPUClockSM, "", 1e6},
	"clocks.sm":                             {GPUClockSM, "", 1e6},
	"clocks.current.memory":                 {GPUClockMemory, "", 1e6},
	"clocks.mem":                            {GPUClockMemory, "", 1e6},
	"temperature.gpu":                       {GPUTemperature, "", 1},
	"temperature.memory":                    {GPUMemoryTemp, "", 1},
	"clocks_event_reasons.active":           {GPUThrottleReasons, "", 1},
	"clocks_throttle_reasons.active":        {GPUThrottleReasons, "", 1},
	"ecc.errors.corrected.volatile.total":   {GPUECCErrors, "type=corrected", 1},
	"ecc.errors.uncorrected.volatile.total": {GPUECCErrors, "type=uncorrected", 1},
	"remapped_rows.correctable":             {GPURemappedRows, "type=corrected", 1},
	"remapped_rows.uncorrectable":           {GPURemappedRows, "type=uncorrected", 1},
}

// smiQuery is what nvidia-smi is asked for; what a driver does not know is left
// out, and the old names are asked for instead.
var smiQuery = []string{
	"index", "uuid", "name", "driver_version", "utilization.gpu", "utilization.memory", "memory.total", "memory.used", "memory.free", "memory.reserved",
	"power.draw.instant", "power.draw.average", "enforced.power.limit", "clocks.sm", "clocks.mem", "temperature.gpu", "temperature.memory",
	"clocks_event_reasons.active", "ecc.errors.corrected.volatile.total", "ecc.errors.uncorrected.volatile.total",
}

// smiInstead names older fields by newer ones.
var smiInstead = map[string]string{
	"clocks_event_reasons.active": "clocks_throttle_reasons.active",
	"power.draw.average":          "power.draw",
}

// SMIOptions are those of [NewSMI].
type SMIOptions struct {
	Name   string        // of the source, "nvidia-smi" unless set
	Period time.Duration // SMIPeriod unless set
	// Command is the program to run, nvidia-smi unless set.
	Command string
	// File, if it is set, is read in place of running anything: what
	// `nvidia-smi --query-gpu=timestamp,index,... --format=csv -l 1` writes. It may
	// grow while it is read.
	File string
}

// An SMI reads the CSV of nvidia-smi. It implements [Source] and [Describer].
type SMI struct {
	o      SMIOptions
	query  []string
	parser smiParser
	file   *os.File
	rest   []byte // of File: a line that has not ended
	child  *smiChild
	heard  time.Duration // when the last line came

	mu      sync.Mutex
	devices map[string]Device
}

// NewSMI returns a source that has run and read nothing yet.
func NewSMI(o SMIOptions) *SMI {
	if o.Name == "" {
		o.Name = "nvidia-smi"
	}
	if o.Period <= 0 {
		o.Period = SMIPeriod
	}
	if o.Command == "" {
		o.Command = "nvidia-smi"
	}
	return &SMI{o: o, query: slices.Clone(smiQuery), devices: map[string]Device{}}
}

// Name implements [Source].
func (s *SMI) Name() string { return s.o.Name }

// Period implements [Source].
func (s *SMI) Period() time.Duration { return s.o.Period }

// Devices implements [Describer].
func (s *SMI) Devices() []Device {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Device
	for _, name := range slices.Sorted(maps.Keys(s.devices)) {
		all = append(all, s.devices[name])
	}
	return all
}

// Close implements [Source]: it ends the program.
func (s *SMI) Close() error {
	if s.child != nil {
		s.child.end()
		s.child = nil
	}
	if s.file != nil {
		return s.file.Close()
	}
	return nil
}

// Sample implements [Source]: it takes the lines that came since the last time.
func (s *SMI) Sample(ctx context.Context, now func() time.Duration, emit func(Sample)) error {
	if s.o.File != "" {
		return s.follow(now, emit)
	}
	for {
		if s.child == nil {
			if err := s.start(ctx, now); err != nil {
				return err
			}
		}
		lines, ended := s.child.take()
		for _, l := range lines {
			s.heard = l.at
			if err := s.line(l.text, l.at, now, emit); err != nil {
				return err
			}
		}
		if !ended {
			break
		}
		f := s.child.fault()
		s.child.end()
		s.child = nil
		// A driver that is older than a field refuses the whole query.
		if field, ok := strings.CutPrefix(f.Name, faultField); !ok {
			return f
		} else if !s.without(field) {
			return Faultf(FaultRefused, "nvidia-smi refuses a field that it was not asked for")
		}
	}
	if now()-s.heard > max(3*s.o.Period, 5*time.Second) {
		s.child.end()
		s.child = nil
		return Faultf(FaultTimeout, "nvidia-smi prints nothing any more")
	}
	return nil
}

// start runs nvidia-smi and waits for what it says first, so that a program that
// fails at once does not look alive.
func (s *SMI) start(ctx context.Context, now func() time.Duration) error {
	c, err := startSMI(s.o, s.query, now)
	if err != nil {
		return err
	}
	s.child, s.parser, s.heard = c, smiParser{}, now()
	patience := time.NewTimer(firstLine)
	defer patience.Stop()
	select {
	case <-c.first:
	case <-patience.C:
	case <-ctx.Done():
	}
	return nil
}

// without takes a field out of the query, and says whether it was there.
func (s *SMI) without(field string) bool {
	i := slices.Index(s.query, field)
	if i < 0 {
		return false
	}
	s.query = slices.Delete(s.query, i, i+1)
	if old := smiInstead[field]; old != "" {
		s.query = append(s.query, old)
	}
	return true
}

// follow reads what was added to the file.
func (s *SMI) follow(now func() time.Duration, emit func(Sample)) error {
	if s.file == nil {
		f, err := os.Open(s.o.File)
		if err != nil {
			if pe, ok := errors.AsType[*os.PathError](err); ok {
				err = pe.Err
			}
			return AsFault(err)
		}
		s.file = f
	}
	for range 64 { // so much of a long file with one reading
		chunk := make([]byte, 64<<10)
		n, err := s.file.Read(chunk)
		s.rest = append(s.rest, chunk[:n]...)
		for {
			line, rest, whole := bytes.Cut(s.rest, []byte("\n"))
			if !whole {
				break
			}
			s.rest = rest
			if err := s.line(string(line), now(), now, emit); err != nil {
				return err
			}
		}
		s.rest = append([]byte(nil), s.rest...)
		if len(s.rest) > maxSMILine {
			s.rest = nil
			return Faultf(FaultTooLong, "a line of the file is longer than %d bytes", maxSMILine)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return AsFault(err)
		}
	}
	return nil
}

// line takes a line of CSV that came at at.
func (s *SMI) line(text string, at time.Duration, now func() time.Duration, emit func(Sample)) error {
	row, err := s.parser.line(text)
	if err != nil || row == nil {
		return err
	}
	if !row.time.IsZero() {
		// Wall clock of this host, or of one that shares its time.
		at = now() - time.Since(row.time)
	}
	s.mu.Lock()
	if row.device.Memory == 0 {
		row.device.Memory = s.devices[row.device.Name].Memory
	}
	s.devices[row.device.Name] = row.device
	s.mu.Unlock()
	for _, m := range row.samples {
		m.Time, m.Device = at, row.device.Name
		emit(m)
	}
	if row.lost != "" {
		emit(Sample{Time: at, Device: row.device.Name, Metric: MetricUp, Value: 0, Note: Faultf(FaultGPULost, "%s", row.lost).Error()})
	}
	return nil
}

// An smiRow is what a line says.
type smiRow struct {
	time    time.Time
	device  Device
	samples []Sample
	lost    string // why the GPU cannot be read
}

// An smiParser reads lines after the line that names the columns.
type smiParser struct{ columns []string }

// smiTime is how nvidia-smi writes a timestamp, in local time.
const smiTime = "2006/01/02 15:04:05.000"

func (p *smiParser) line(text string) (*smiRow, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return nil, nil
	}
	r := csv.NewReader(strings.NewReader(text))
	r.TrimLeadingSpace, r.LazyQuotes = true, true
	cells, err := r.Read()
	if err != nil {
		return nil, Faultf(FaultNotMetrics, "a line is no CSV")
	}
	for i, c := range cells {
		cells[i] = strings.TrimSpace(c)
	}
	if slices.Contains(cells, "index") || slices.Contains(cells, "uuid") {
		p.columns = nil
		for _, c := range cells {
			name, _, _ := strings.Cut(c, " [") // "power.draw [W]"
			p.columns = append(p.columns, name)
		}
		return nil, nil
	}
	if p.columns == nil {
		return nil, Faultf(FaultNotMetrics, "the first line does not name the columns: use --format=csv without noheader, and query index")
	}
	if len(cells) != len(p.columns) {
		return nil, Faultf(FaultNotMetrics, "a line of %d cells under %d columns", len(cells), len(p.columns))
	}
	row := &smiRow{}
	for i, name := range p.columns {
		cell := cells[i]
		switch name {
		case "index":
			row.device.Name = "gpu" + cell
		case "uuid", "gpu_uuid":
			row.device.UUID = cell
		case "name", "gpu_name":
			row.device.Model = cell
		case "driver_version":
			row.device.Driver = cell
		case "timestamp":
			row.time, _ = time.ParseInLocation(smiTime, cell, time.Local)
		default:
			f, known := smiFields[name]
			v, ok := smiNumber(cell)
			switch {
			case known && ok:
				row.samples = append(row.samples, Sample{Metric: f.metric, Attr: f.attr, Value: v * f.scale})
				if name == "memory.total" {
					row.device.Memory = uint64(v) << 20
				}
			case strings.Contains(cell, "lost") || strings.Contains(cell, "requires reset"):
				row.lost = strings.Trim(cell, "[]")
			}
		}
	}
	if row.device.Name == "" {
		row.device.Name = row.device.UUID
	}
	return row, nil
}

// smiNumber reads a cell: "87", "87 %", "0x0000000000000004"; not "[N/A]".
func smiNumber(cell string) (float64, bool) {
	cell, _, _ = strings.Cut(cell, " ")
	if hex, ok := strings.CutPrefix(cell, "0x"); ok {
		v, err := strconv.ParseUint(hex, 16, 64)
		return float64(v), err == nil
	}
	v, err := strconv.ParseFloat(cell, 64)
	return v, err == nil && v-v == 0
}

// An smiChild is a running nvidia-smi.
type smiChild struct {
	cancel context.CancelFunc
	gone   chan struct{} // closed when the program has ended and all is read
	first  chan struct{} // closed with the second line or the end

	mu    sync.Mutex
	lines []smiLine
	count int
	last  []string // the last lines that are no CSV, for what went wrong
	err   error
}

type smiLine struct {
	text string
	at   time.Duration
}

func startSMI(o SMIOptions, query []string, now func() time.Duration) (*smiChild, error) {
	path, err := exec.LookPath(o.Command)
	if err != nil {
		return nil, Faultf(FaultNoDriver, "nvidia-smi is not in the PATH")
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, path, "--query-gpu="+strings.Join(query, ","), "--format=csv,nounits", fmt.Sprintf("--loop-ms=%d", o.Period.Milliseconds()))
	cmd.WaitDelay = time.Second // a child of its own may hold the pipe
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, in := io.Pipe()
	cmd.Stdout, cmd.Stderr = in, in
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, Faultf(FaultFailed, "nvidia-smi does not start")
	}
	c := &smiChild{cancel: cancel, gone: make(chan struct{}), first: make(chan struct{})}
	begun := sync.OnceFunc(func() { close(c.first) })
	read := make(chan struct{})
	go func() {
		defer close(read)
		lines := bufio.NewScanner(out)
		lines.Buffer(make([]byte, 0, 4096), maxSMILine)
		for lines.Scan() {
			at := now()
			c.mu.Lock()
			if len(c.lines) < maxSMIPending {
				c.lines = append(c.lines, smiLine{lines.Text(), at})
			}
			if c.count++; c.count == 2 {
				begun()
			}
			if c.last = append(c.last, lines.Text()); len(c.last) > 4 {
				c.last = c.last[1:]
			}
			c.mu.Unlock()
		}
		io.Copy(io.Discard, out) // after a line that is too long
	}()
	go func() {
		defer close(c.gone)
		err := cmd.Wait()
		in.Close()
		<-read
		c.mu.Lock()
		c.err = err
		c.mu.Unlock()
		begun()
	}()
	return c, nil
}

// take returns the lines that came, and whether these are the last.
func (c *smiChild) take() (lines []smiLine, ended bool) {
	select {
	case <-c.gone:
		ended = true
	default:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	lines, c.lines = c.lines, nil
	// What is no CSV is an error message, which fault reads when it ends.
	lines = slices.DeleteFunc(lines, func(l smiLine) bool { return !strings.Contains(l.text, ",") })
	return lines, ended
}

// end stops the program and waits for it.
func (c *smiChild) end() {
	c.cancel()
	<-c.gone
}

// faultField starts the name of the fault that a field is not known.
const faultField = "field:"

var badField = regexp.MustCompile(`Field "([^"]*)" is not a valid field`)

// fault says why the program ended.
func (c *smiChild) fault() *Fault {
	c.mu.Lock()
	defer c.mu.Unlock()
	text := strings.Join(c.last, "\n")
	if m := badField.FindStringSubmatch(text); m != nil {
		return &Fault{Name: faultField + m[1]}
	}
	for _, known := range []struct{ text, fault, say string }{
		{"version mismatch", FaultDriverMismatch, "nvidia-smi and the kernel module are of different driver versions"},
		{"couldn't communicate with the NVIDIA driver", FaultNoDriver, "nvidia-smi finds no driver"},
		{"GPU is lost", FaultGPULost, "nvidia-smi says that a GPU is lost"},
		{"nsufficient", FaultNoPermission, "nvidia-smi may not read the GPUs"},
		{"No devices were found", FaultNoDriver, "nvidia-smi finds no GPU"},
	} {
		if strings.Contains(text, known.text) {
			return Faultf(known.fault, "%s", known.say)
		}
	}
	if exit, ok := errors.AsType[*exec.ExitError](c.err); ok {
		return Faultf(FaultFailed, "nvidia-smi ended with %v", exit.ProcessState)
	}
	return Faultf(FaultFailed, "nvidia-smi ended")
}
