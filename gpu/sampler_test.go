package gpu

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"
)

// A fakeSource does what its function says.
type fakeSource struct {
	name   string
	period time.Duration
	sample func(call int, emit func(Sample)) error

	mu     sync.Mutex
	calls  int
	closed int
}

func (f *fakeSource) Name() string          { return f.name }
func (f *fakeSource) Period() time.Duration { return f.period }
func (f *fakeSource) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed++
	return nil
}
func (f *fakeSource) Sample(ctx context.Context, now func() time.Duration, emit func(Sample)) error {
	f.mu.Lock()
	f.calls++
	call := f.calls
	f.mu.Unlock()
	return f.sample(call, emit)
}

// inBubble runs sources for d of fake time and returns what they gave.
func inBubble(t *testing.T, d time.Duration, sources ...Source) (all []Sample, status []SourceStatus) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		// Not from 0, which is a time that was not said.
		s := StartSampler(SamplerConfig{Now: func() time.Duration { return time.Since(start) + time.Hour }, Emit: func(m Sample) { all = append(all, m) }}, sources...)
		time.Sleep(d)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		n := len(all)
		time.Sleep(time.Minute)
		if len(all) != n {
			t.Error("samples after Close")
		}
		status = s.Status()
	})
	return all, status
}

func of(all []Sample, metric string) (some []Sample) {
	for _, s := range all {
		if s.Metric == metric {
			some = append(some, s)
		}
	}
	return some
}

func steady(name string, period time.Duration) *fakeSource {
	return &fakeSource{name: name, period: period, sample: func(n int, emit func(Sample)) error {
		emit(Sample{Metric: GPUPower, Device: "gpu0", Value: float64(n)})
		return nil
	}}
}

// Each source is read at its own rate, and its samples are complete.
func TestSamplerRates(t *testing.T) {
	fast, slow := steady("fast", 200*ms), steady("slow", time.Second)
	all, status := inBubble(t, 10*time.Second+ms, fast, slow)
	if fast.calls != 51 || slow.calls != 11 || fast.closed != 1 || slow.closed != 1 {
		t.Errorf("%d and %d readings, closed %d and %d times; want 51, 11, 1, 1", fast.calls, slow.calls, fast.closed, slow.closed)
	}
	for i, s := range of(all, GPUPower) {
		if s.Unit != "W" || s.Late != 0 || s.Time < time.Hour || s.Source == "" {
			t.Fatalf("sample %d: %+v", i, s)
		}
	}
	if len(of(all, MetricGap)) != 0 || len(of(all, MetricUp)) != 2 {
		t.Errorf("gaps %v, ups %v", of(all, MetricGap), of(all, MetricUp))
	}
	for _, st := range status {
		if !st.Up || st.Gaps != 0 || st.Readings < 11 || st.Summary() != "" {
			t.Errorf("%+v", st)
		}
	}
}

// A source that fails or panics is asked again after a growing pause; the time
// without it is one gap with the reason, and other sources go on.
func TestSamplerFaults(t *testing.T) {
	other := steady("other", 200*ms)
	failing := &fakeSource{name: "failing", period: 200 * ms, sample: func(n int, emit func(Sample)) error {
		switch {
		case n == 6:
			panic("metric on fire")
		case n > 6 && n < 15:
			return Faultf(FaultGPULost, "gone")
		}
		emit(Sample{Metric: GPUPower, Value: 1})
		return nil
	}}
	all, status := inBubble(t, time.Minute+ms, failing, other)
	gaps := of(all, MetricGap)
	if len(gaps) != 1 || gaps[0].Source != "failing" || !strings.Contains(gaps[0].Note, "gpu lost: gone") {
		t.Fatalf("gaps: %+v", gaps)
	}
	// 0.2 + 0.4 + ... + 3.2 s, and 5 s from then on: nine pauses after the
	// failure, which itself came a period after the last good reading.
	if want := 0.2 + (0.2 + 0.4 + 0.8 + 1.6 + 3.2) + 4*5; math.Abs(gaps[0].Value-want) > 0.001 {
		t.Errorf("gap of %v s, want %v", gaps[0].Value, want)
	}
	var ups []string
	for _, u := range of(all, MetricUp) {
		if u.Source == "failing" {
			ups = append(ups, fmt.Sprint(u.Value, " ", u.Note))
		}
	}
	if !slices.Equal(ups, []string{"1 ", "0 panic: metric on fire", "1 "}) {
		t.Errorf("ups: %q", ups)
	}
	if other.calls != 301 {
		t.Errorf("the other source was read %d times, want 301", other.calls)
	}
	st := status[0]
	if st.Gaps != 1 || len(st.Faults) != 2 || st.Faults[0].Fault != FaultGPULost || st.Faults[0].Count != 8 || st.Faults[1].Fault != FaultPanic || !strings.Contains(st.Summary(), "gpu_lost (8)") {
		t.Errorf("%+v: %s", st, st.Summary())
	}
}

// A source that is down at the end leaves a gap to the end.
func TestSamplerEndsInGap(t *testing.T) {
	dead := &fakeSource{name: "dead", period: time.Second, sample: func(int, func(Sample)) error { return errors.New("no") }}
	all, status := inBubble(t, 30*time.Second, dead)
	gaps := of(all, MetricGap)
	if len(gaps) != 1 || math.Abs(gaps[0].Value-30) > 0.01 || gaps[0].Note != "failed: no" {
		t.Errorf("gaps: %+v", gaps)
	}
	if s := status[0].Summary(); !strings.HasPrefix(s, "dead: no readings: failed: no") || status[0].Up {
		t.Errorf("summary %q", s)
	}
}

// A reading that takes longer than its period is not caught up on: what was
// skipped is a gap, and what came late says so.
func TestSamplerOverrun(t *testing.T) {
	slow := &fakeSource{name: "slow", period: 200 * ms, sample: func(n int, emit func(Sample)) error {
		if n == 3 {
			time.Sleep(900 * ms)
		}
		if n == 10 {
			time.Sleep(250 * ms)
		}
		emit(Sample{Metric: GPUPower, Value: 1})
		return nil
	}}
	all, status := inBubble(t, 5*time.Second-ms, slow)
	gaps := of(all, MetricGap)
	if len(gaps) != 1 || math.Abs(gaps[0].Value-0.9) > 0.11 || gaps[0].Note != "late" {
		t.Errorf("gaps: %+v", gaps)
	}
	var late []time.Duration
	for _, s := range of(all, GPUPower) {
		if s.Late > 0 {
			late = append(late, s.Late)
		}
	}
	if len(late) == 0 || late[0] > 200*ms || status[0].Late != int64(len(late)) || status[0].MaxLate != slices.Max(late) {
		t.Errorf("late: %v; %+v", late, status[0])
	}
	if slow.calls > 25 || slow.calls < 18 {
		t.Errorf("%d readings", slow.calls)
	}
}

// A driver that never returns holds Close up for two seconds and no longer.
func TestSamplerHang(t *testing.T) {
	release := make(chan struct{})
	hung := &fakeSource{name: "hung", period: 100 * ms, sample: func(n int, emit func(Sample)) error {
		if n == 3 {
			<-release
			emit(Sample{Metric: GPUPower, Value: 99}) // too late
		}
		return nil
	}}
	start := time.Now()
	var all []Sample
	s := StartSampler(SamplerConfig{Emit: func(m Sample) { all = append(all, m) }}, hung, steady("other", 50*ms))
	time.Sleep(400 * ms)
	s.Close()
	if d := time.Since(start); d > time.Minute {
		t.Errorf("Close took %v", d)
	}
	st := s.Status()[0]
	if !st.Hung || st.Gaps != 1 || !strings.Contains(st.Summary(), "hung") {
		t.Errorf("%+v", st)
	}
	close(release)
	s.running.Wait()
	if n := len(of(all, MetricGap)); n != 1 {
		t.Errorf("%d gaps, want 1", n)
	}
	for _, m := range all {
		if m.Value == 99 {
			t.Error("a sample of after Close was taken")
		}
	}
	if hung.closed != 1 {
		t.Error("the source was not closed when it returned")
	}
}

// Values that are no numbers, and floods, are dropped and counted.
func TestSamplerDrops(t *testing.T) {
	wild := &fakeSource{name: "wild", period: time.Second, sample: func(n int, emit func(Sample)) error {
		emit(Sample{Metric: GPUPower, Value: math.NaN()})
		emit(Sample{Metric: GPUPower, Value: math.Inf(1)})
		if n == 2 {
			for range maxBurst + 100 {
				emit(Sample{Metric: GPUPower, Value: 1})
			}
		}
		return nil
	}}
	all, status := inBubble(t, 1500*ms, wild)
	if n := len(of(all, GPUPower)); n != maxBurst-2 {
		t.Errorf("%d samples, want %d", n, maxBurst-2)
	}
	if d := of(all, MetricDropped); len(d) != 2 || d[1].Value != 106 || status[0].Dropped != 106 {
		t.Errorf("dropped: %+v, %d", d, status[0].Dropped)
	}
}

func TestFaultTexts(t *testing.T) {
	long := AsFault(errors.New(strings.Repeat("é", 500) + "\n\xff"))
	if n := long.note(); len(n) > maxNote || strings.Contains(n, "\n") || !utf8.ValidString(n) || !strings.HasSuffix(n, "…") {
		t.Errorf("note %q", n)
	}
	for err, want := range map[error]string{
		context.DeadlineExceeded: FaultTimeout, errors.New("x"): FaultFailed, fmt.Errorf("a: %w", Faultf(FaultPanic, "b")): FaultPanic,
	} {
		if got := AsFault(err).Name; got != want {
			t.Errorf("AsFault(%v) = %s, want %s", err, got, want)
		}
	}
	if AsFault(nil) != nil {
		t.Error("no error is a fault")
	}
}

func TestLatest(t *testing.T) {
	var l Latest
	for i := range maxSeries + 10 {
		l.Add(Sample{Time: time.Duration(i), Metric: GPUProcessMemory, Attr: fmt.Sprint("pid=", i)})
	}
	if n := len(l.All()); n != maxSeries {
		t.Errorf("%d series are held, want %d", n, maxSeries)
	}
	if _, ok := l.Get(Key{Metric: GPUProcessMemory, Attr: "pid=3"}); ok {
		t.Error("the series that was silent for longest is still held")
	}
	l.Add(Sample{Time: 1 << 40, Metric: GPUProcessMemory, Attr: "pid=100", Value: 5})
	if s, ok := l.Get(Key{Metric: GPUProcessMemory, Attr: "pid=100"}); !ok || s.Value != 5 {
		t.Errorf("Get = %+v, %t", s, ok)
	}
}
