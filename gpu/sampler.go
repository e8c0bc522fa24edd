package gpu

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"reprise/internal/clock"
)

const (
	// maxBurst bounds what one call of Sample may emit: a source is eight GPUs
	// or one page of metrics, and 16,384 is thirty times that.
	maxBurst = 16384
	// Pauses after a failed reading double from the source's period to this.
	maxBackoff = 5 * time.Second
	// A reading is on time within a tenth of the period, and within this.
	minLate = 5 * time.Millisecond
	// hangGrace is how long Close waits for sources that do not return.
	hangGrace = 2 * time.Second
)

// SamplerConfig is how a [Sampler] works. Only Emit must be set.
type SamplerConfig struct {
	// Emit takes the samples, gaps included. It is never called concurrently,
	// and not after Close. While it runs, no source is read.
	Emit func(Sample)
	// Now is the run's clock, internal/clock unless set.
	Now func() time.Duration
	// ReadTimeout ends the context of one reading; 0 is the larger of 5 s and
	// ten periods.
	ReadTimeout time.Duration
}

// A Sampler runs sources, each at its own rate, in goroutines of its own, until
// Close. A source that fails or panics is asked again after a pause and the time
// without it is recorded; nothing that a source does stops another one or the
// caller.
type Sampler struct {
	cfg     SamplerConfig
	cancel  context.CancelFunc
	ctx     context.Context
	running sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	workers []*worker
}

// A SourceStatus is how a source has done so far.
type SourceStatus struct {
	Name     string        `json:"name"`
	Period   time.Duration `json:"period_ns"`
	Readings int64         `json:"readings"`        // calls of Sample that succeeded
	Samples  int64         `json:"samples"`         // values they gave
	Late     int64         `json:"late"`            // readings that were taken late
	MaxLate  time.Duration `json:"late_ns_max"`     //
	Gaps     int64         `json:"gaps"`            // stretches without readings
	GapTime  time.Duration `json:"gap_ns"`          // their length in all
	Dropped  int64         `json:"dropped"`         // values that were no numbers, or too many
	Faults   []FaultCount  `json:"faults"`          // what went wrong, most frequent first
	Up       bool          `json:"up"`              // the last reading succeeded
	Busy     time.Duration `json:"busy_ns"`         // time spent in Sample, in all
	Devices  []Device      `json:"devices"`         // of a Describer
	Hung     bool          `json:"hung,omitempty"`  // Sample did not return and was left behind
	Error    string        `json:"error,omitempty"` // the last fault
	// Absent says what the other side of a Lacker does not have.
	Absent []string `json:"absent,omitempty"`
}

// A FaultCount is a name of a fault, how often it was met, and its last text.
type FaultCount struct {
	Fault string `json:"fault"`
	Count int64  `json:"count"`
	Text  string `json:"text"`
}

// A worker is a source with what the sampler knows of it. Its fields but src
// are under Sampler.mu.
type worker struct {
	src      Source
	accounts bool // src is an Accountant
	status   SourceStatus
	since    time.Duration // up to here the source is accounted for
	ever     bool          // a reading has succeeded
	fault    *Fault        // why the source is down
	faults   map[string]*FaultCount
	call     uint64 // counts calls of Sample, so that an emit of an old one is told
	done     bool
}

// StartSampler starts sampling the sources.
func StartSampler(cfg SamplerConfig, sources ...Source) *Sampler {
	if cfg.Now == nil {
		cfg.Now = clock.Now
	}
	s := &Sampler{cfg: cfg}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	for _, src := range sources {
		s.Add(src)
	}
	return s
}

// Add starts sampling one more source. After Close it closes the source.
func (s *Sampler) Add(src Source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		go src.Close()
		return
	}
	w := &worker{src: src, since: s.cfg.Now(), faults: map[string]*FaultCount{}}
	_, w.accounts = src.(Accountant)
	w.status = SourceStatus{Name: src.Name(), Period: src.Period()}
	s.workers = append(s.workers, w)
	s.running.Go(func() { s.run(w) })
}

// Status says how each source has done.
func (s *Sampler) Status() []SourceStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]SourceStatus, 0, len(s.workers))
	for _, w := range s.workers {
		st := w.status
		st.Up = w.ever && w.fault == nil
		st.Faults = []FaultCount{}
		for _, f := range w.faults {
			st.Faults = append(st.Faults, *f)
		}
		slices.SortFunc(st.Faults, func(a, b FaultCount) int {
			if a.Count != b.Count {
				return int(b.Count - a.Count)
			}
			return cmpString(a.Fault, b.Fault)
		})
		if l, ok := w.src.(Lacker); ok {
			st.Absent = l.Absent()
		}
		if d, ok := w.src.(Describer); ok {
			for _, dev := range d.Devices() {
				if dev.Source == "" {
					dev.Source = st.Name
				} else {
					dev.Source = st.Name + "/" + dev.Source
				}
				st.Devices = append(st.Devices, dev)
			}
		}
		all = append(all, st)
	}
	return all
}

func cmpString(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// Close ends sampling and closes the sources. It waits for readings that are
// under way, but for a hung driver no longer than two seconds: such a source
// is recorded as hung, and its goroutine ends when the driver returns.
func (s *Sampler) Close() error {
	s.cancel()
	gone := make(chan struct{})
	go func() { s.running.Wait(); close(gone) }()
	timer := time.NewTimer(hangGrace)
	defer timer.Stop()
	select {
	case <-gone:
	case <-timer.C:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	now := s.cfg.Now()
	for _, w := range s.workers {
		if !w.done {
			w.status.Hung = true
			s.count(w, &Fault{Name: FaultHung})
			s.gap(w, now, &Fault{Name: FaultHung})
		}
	}
	return nil
}

// run samples w until the sampler is closed.
func (s *Sampler) run(w *worker) {
	defer func() {
		err := closeSource(w.src)
		s.mu.Lock()
		defer s.mu.Unlock()
		w.done = true
		if err != nil {
			s.count(w, AsFault(err))
		}
		if w.fault != nil && !s.closed {
			s.gap(w, s.cfg.Now(), w.fault)
		}
	}()
	period := max(w.src.Period(), time.Millisecond)
	backoff := period
	timer := time.NewTimer(0)
	defer timer.Stop()
	for due := s.cfg.Now(); ; {
		select {
		case <-s.ctx.Done():
			return
		case <-timer.C:
		}
		ok := s.read(w, due, period)
		if s.ctx.Err() != nil {
			return
		}
		now := s.cfg.Now()
		if ok {
			backoff = period
			due += period
			// Readings that would come at once are left out, not caught up
			// on: they would all say the same. The gap is recorded by read.
			if late := now - due; late > 0 {
				due += late / period * period
			}
		} else {
			due = now + backoff
			backoff = min(2*backoff, max(maxBackoff, period))
		}
		timer.Reset(max(0, due-now))
	}
}

// closeSource keeps a panic in a source's Close from ending the program.
func closeSource(src Source) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = Faultf(FaultPanic, "%v", p)
		}
	}()
	return src.Close()
}

// read takes one reading and says whether it succeeded.
func (s *Sampler) read(w *worker, due, period time.Duration) bool {
	timeout := s.cfg.ReadTimeout
	if timeout == 0 {
		timeout = max(5*time.Second, 10*period)
	}
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()

	at := s.cfg.Now()
	late := at - due
	if late < max(period/10, minLate) {
		late = 0
	}
	s.mu.Lock()
	w.call++
	call, burst := w.call, 0
	var dropped int64
	s.mu.Unlock()
	err := sample(ctx, w.src, s.cfg.Now, func(m Sample) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.closed || w.call != call {
			return
		}
		if burst++; burst > maxBurst || math.IsNaN(m.Value) || math.IsInf(m.Value, 0) {
			dropped++
			return
		}
		if m.Late == 0 && !w.accounts {
			m.Late = late
		}
		s.emit(w, m)
	})
	end := s.cfg.Now()

	s.mu.Lock()
	defer s.mu.Unlock()
	w.call++
	w.status.Busy += end - at
	if dropped > 0 {
		w.status.Dropped += dropped
		s.emit(w, Sample{Time: end, Metric: MetricDropped, Value: float64(w.status.Dropped)})
	}
	if err != nil {
		if s.ctx.Err() != nil {
			return false // the sampler is being closed, which is not the source's fault
		}
		if errors.Is(err, ErrNotYet) {
			return false
		}
		f := AsFault(err)
		s.count(w, f)
		if w.fault == nil {
			s.emit(w, Sample{Time: end, Metric: MetricUp, Value: 0, Note: f.note()})
		}
		w.fault = f
		return false
	}
	switch {
	case w.fault != nil:
		if !w.accounts {
			s.gap(w, at, w.fault)
		}
		s.emit(w, Sample{Time: end, Metric: MetricUp, Value: 1})
	case !w.ever:
		s.emit(w, Sample{Time: end, Metric: MetricUp, Value: 1})
	case at-w.since >= 2*period-period/10 && !w.accounts:
		s.gap(w, at, &Fault{Name: FaultLate})
		s.count(w, &Fault{Name: FaultLate})
	}
	w.fault, w.ever, w.since = nil, true, at
	w.status.Readings++
	if late > 0 {
		w.status.Late++
		w.status.MaxLate = max(w.status.MaxLate, late)
	}
	return true
}

func sample(ctx context.Context, src Source, now func() time.Duration, emit func(Sample)) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = Faultf(FaultPanic, "%v", p)
		}
	}()
	return src.Sample(ctx, now, emit)
}

// emit completes a sample and hands it on; with s.mu held.
func (s *Sampler) emit(w *worker, m Sample) {
	if m.Source == "" {
		m.Source = w.status.Name
	} else {
		m.Source = w.status.Name + "/" + m.Source
	}
	if m.Time == 0 {
		m.Time = s.cfg.Now()
	}
	if m.Unit == "" {
		m.Unit = vocabulary[m.Metric].Unit
	}
	m.Note = clipNote(m.Note)
	w.status.Samples++
	if m.IsGap() {
		w.status.Gaps++
		w.status.GapTime += time.Duration(m.Value * float64(time.Second))
	}
	s.cfg.Emit(m)
}

// gap records that nothing is known of w from the last reading to at.
func (s *Sampler) gap(w *worker, at time.Duration, why *Fault) {
	if at <= w.since {
		return
	}
	s.emit(w, Sample{Time: at, Metric: MetricGap, Value: (at - w.since).Seconds(), Note: why.note()})
	w.since = at
}

// count remembers a fault; with s.mu held.
func (s *Sampler) count(w *worker, f *Fault) {
	c := w.faults[f.Name]
	if c == nil {
		c = &FaultCount{Fault: f.Name}
		w.faults[f.Name] = c
	}
	c.Count++
	c.Text = f.note()
	w.status.Error = c.Text
}

// Summary is the faults and gaps of a source in a line, empty where there is
// nothing to tell.
func (st *SourceStatus) Summary() string {
	absent := ""
	if len(st.Absent) > 0 {
		absent = fmt.Sprintf("%s lacks %s", st.Name, strings.Join(st.Absent, "; "))
	}
	switch {
	case st.Readings == 0 && st.Error != "":
		return fmt.Sprintf("%s: no readings: %s", st.Name, st.Error)
	case st.Gaps == 0 && st.Dropped == 0 && !st.Hung:
		return absent
	}
	var text strings.Builder
	if absent != "" {
		text.WriteString(absent + "; ")
	}
	fmt.Fprintf(&text, "%s: %d gaps, %.1f s in all", st.Name, st.Gaps, st.GapTime.Seconds())
	for i, f := range st.Faults {
		sep := ", "
		if i == 0 {
			sep = ": "
		}
		fmt.Fprintf(&text, "%s%s (%d)", sep, f.Fault, f.Count)
	}
	if st.Dropped > 0 {
		fmt.Fprintf(&text, "; %d values dropped", st.Dropped)
	}
	return text.String()
}
