package agent

import (
	"context"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"reprise/gpu"
	"reprise/internal/clock"
)

const ms = time.Millisecond

func remote(t testing.TB, o RemoteOptions) *Remote {
	t.Helper()
	r, err := NewRemote(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// reading takes one reading of r.
func reading(t testing.TB, r *Remote) (all []gpu.Sample, err error) {
	t.Helper()
	err = r.Sample(t.Context(), clock.Now, func(s gpu.Sample) { all = append(all, s) })
	return all, err
}

func find(all []gpu.Sample, metric string) (gpu.Sample, bool) {
	for _, s := range slices.Backward(all) {
		if s.Metric == metric {
			return s, true
		}
	}
	return gpu.Sample{}, false
}

func count(all []gpu.Sample, metric string) (n int) {
	for _, s := range all {
		if s.Metric == metric {
			n++
		}
	}
	return n
}

// Samples arrive once each, at the time they were taken, on our clock although
// the agent's is another.
func TestSamplesOverHTTP(t *testing.T) {
	const ahead = 3 * time.Hour // the agent's clock
	theirs := func() time.Duration { return clock.Now() + ahead }
	s := NewServer(Options{Now: theirs}, func() []gpu.SourceStatus {
		return []gpu.SourceStatus{{Name: "nvml", Devices: []gpu.Device{{Source: "nvml", Name: "gpu0", Model: "M"}}}}
	})
	web := httptest.NewServer(s.Handler())
	defer web.Close()
	r := remote(t, RemoteOptions{URL: web.URL})
	s.Add(gpu.Sample{Time: theirs(), Source: "nvml", Metric: gpu.GPUPower, Value: 1}) // before anybody asked
	if _, err := reading(t, r); err != nil {
		t.Fatal(err)
	}
	before := clock.Now()
	for i := range 3 {
		s.Add(gpu.Sample{Time: theirs(), Source: "nvml", Device: "gpu0", Metric: gpu.GPUPower, Unit: "W", Value: float64(i), Late: ms})
	}
	after := clock.Now()
	all, err := reading(t, r)
	if err != nil {
		t.Fatal(err)
	}
	_, bound, _ := r.Offset(clock.Now())
	var got []float64
	for _, m := range all {
		if m.Metric != gpu.GPUPower {
			continue
		}
		got = append(got, m.Value)
		if m.Time < before-bound || m.Time > after+bound || m.Source != "nvml" || m.Device != "gpu0" || m.Late != ms {
			t.Errorf("sample %+v, want it between %v and %v", m, before, after)
		}
	}
	if !slices.Equal(got, []float64{0, 1, 2}) {
		t.Errorf("values %v, want 0 1 2", got)
	}
	if all, err = reading(t, r); err != nil || count(all, gpu.GPUPower) != 0 {
		t.Errorf("samples came twice: %v, %v", all, err)
	}
	if d := r.Devices(); len(d) != 1 || d[0].Model != "M" {
		t.Errorf("Devices() = %+v", d)
	}
}

// Property: whatever the ways, and however the clocks part, the truth is within
// the bound.
func TestBoundHolds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		zero := time.Duration(rapid.Int64Range(-1e18, 1e18).Draw(t, "offset"))
		slew := rapid.Float64Range(-maxSlew, maxSlew).Draw(t, "slew")
		truth := func(at time.Duration) time.Duration { return zero + time.Duration(slew*float64(at)) }
		way := rapid.Int64Range(0, int64(2*time.Second))
		var c Clocks
		at := time.Duration(0)
		for range rapid.IntRange(1, 60).Draw(t, "exchanges") {
			at += time.Duration(rapid.Int64Range(0, int64(20*time.Second)).Draw(t, "pause"))
			x := Exchange{T0: at}
			at += time.Duration(way.Draw(t, "there"))
			x.T1 = at + truth(at)
			at += time.Duration(rapid.Int64Range(0, int64(time.Second)).Draw(t, "thinking"))
			x.T2 = at + truth(at)
			at += time.Duration(way.Draw(t, "back"))
			x.T3 = at
			c.Add(x)
			offset, bound, ok := c.Offset(at)
			if !ok {
				continue
			}
			const rounding = 10 // ns, of the model
			if err := (offset - truth(at)).Abs(); err > bound+rounding {
				t.Fatalf("offset %v is off by %v, bound %v", offset, err, bound)
			}
		}
		if len(c.kept) > int(keepFor/bucket)+1 {
			t.Fatalf("%d exchanges are kept", len(c.kept))
		}
	})
}

func TestDrift(t *testing.T) {
	var c Clocks
	const rate = 80e-6
	for i := range 60 {
		at := time.Duration(i) * time.Second
		off := 5*time.Second + time.Duration(rate*float64(at))
		way := time.Duration(100+i*37%300) * time.Microsecond
		c.Add(Exchange{at, at + way + off, at + way + off, at + way + 100*time.Microsecond})
		if _, ok := c.Drift(); ok && i < 20 {
			t.Fatalf("a drift after %d s", i)
		}
	}
	if got, ok := c.Drift(); !ok || math.Abs(got-rate) > 10e-6 {
		t.Errorf("Drift() = %v, %t; want %v", got, ok, rate)
	}
	// What no honest server says changes nothing.
	before := len(c.kept)
	c.Add(Exchange{100 * time.Second, 0, -time.Hour, 101 * time.Second})
	c.Add(Exchange{100 * time.Second, 0, time.Hour, 101 * time.Second})
	if len(c.kept) != before {
		t.Error("an impossible exchange was kept")
	}
}

// An agent that dies and comes back is a gap with its reason, and its samples
// from its start on arrive.
func TestAgentRestarts(t *testing.T) {
	s := NewServer(Options{}, nil)
	var mu sync.Mutex
	handler := s.Handler()
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		h := handler
		mu.Unlock()
		h.ServeHTTP(w, r)
	}))
	defer web.Close()
	r := remote(t, RemoteOptions{URL: web.URL})
	s.Add(gpu.Sample{Time: clock.Now(), Metric: gpu.GPUPower})
	if _, err := reading(t, r); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		s.Add(gpu.Sample{Time: clock.Now(), Metric: gpu.GPUPower, Value: float64(i)})
	}
	if all, err := reading(t, r); err != nil || count(all, gpu.GPUPower) != 10 {
		t.Fatalf("%d samples, %v", count(all, gpu.GPUPower), err)
	}
	died := clock.Now()
	mu.Lock()
	handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { panic(http.ErrAbortHandler) })
	mu.Unlock()
	if _, err := reading(t, r); gpu.AsFault(err) == nil || gpu.AsFault(err).Name != gpu.FaultUnreachable {
		t.Errorf("a dead agent = %v, want unreachable", err)
	}
	time.Sleep(30 * ms)
	s2 := NewServer(Options{}, nil)
	mu.Lock()
	handler = s2.Handler()
	mu.Unlock()
	s2.Add(gpu.Sample{Time: clock.Now(), Metric: gpu.GPUPower, Value: 77})
	var all []gpu.Sample
	for range 3 {
		more, err := reading(t, r)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, more...)
	}
	gap, ok := find(all, gpu.MetricGap)
	if !ok || gap.Value < 0.03 || gap.Value > (clock.Now()-died).Seconds()+0.01 || !strings.Contains(gap.Note, "began anew") {
		t.Errorf("gap %+v, %t", gap, ok)
	}
	if m, ok := find(all, gpu.GPUPower); !ok || m.Value != 77 {
		t.Errorf("the new agent's sample: %+v, %t", m, ok)
	}
	if n := count(all, gpu.MetricGap); n != 1 {
		t.Errorf("%d gaps, want 1", n)
	}
}

// Samples that the agent forgot are a gap.
func TestLostSamples(t *testing.T) {
	s := NewServer(Options{Keep: 100}, nil)
	web := httptest.NewServer(s.Handler())
	defer web.Close()
	r := remote(t, RemoteOptions{URL: web.URL})
	if _, err := reading(t, r); err != nil {
		t.Fatal(err)
	}
	for i := range 250 {
		s.Add(gpu.Sample{Time: clock.Now(), Metric: gpu.GPUPower, Value: float64(i)})
	}
	all, err := reading(t, r)
	if err != nil {
		t.Fatal(err)
	}
	if gap, ok := find(all, gpu.MetricGap); !ok || !strings.Contains(gap.Note, "150 samples") {
		t.Errorf("gap %+v, %t", gap, ok)
	}
	if n := count(all, gpu.GPUPower); n != 100 {
		t.Errorf("%d samples, want 100", n)
	}
}

// Answers that are cut go on where they were cut.
func TestCutAnswer(t *testing.T) {
	s := NewServer(Options{}, nil)
	cut := true
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/samples" && r.URL.RawQuery != "" && cut {
			cut = false
			rec := httptest.NewRecorder()
			s.Handler().ServeHTTP(rec, r)
			b := rec.Body.Bytes()
			w.Write(b[:len(b)/2])
			return
		}
		s.Handler().ServeHTTP(w, r)
	}))
	defer web.Close()
	r := remote(t, RemoteOptions{URL: web.URL})
	if _, err := reading(t, r); err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		s.Add(gpu.Sample{Time: clock.Now(), Metric: gpu.GPUPower, Value: float64(i)})
	}
	first, err := reading(t, r)
	if err == nil {
		t.Error("half an answer is no error")
	}
	second, err := reading(t, r)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := count(first, gpu.GPUPower), count(second, gpu.GPUPower); a == 0 || a+b != 1000 {
		t.Errorf("%d and %d samples, want 1000 in all", a, b)
	}
}

func TestStrangeServers(t *testing.T) {
	for name, tt := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request)
		fault  string
	}{
		"html":      {func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>login</html>") }, gpu.FaultNotMetrics},
		"not found": {http.NotFound, gpu.FaultRefused},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		}, gpu.FaultRefused},
		"endless": {func(w http.ResponseWriter, _ *http.Request) {
			for range 100 {
				io.WriteString(w, strings.Repeat("[", 10000))
			}
		}, gpu.FaultNotMetrics},
		"mad clock": {func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, `{"instance":"x","receive_ns":5,"send_ns":9223372036854775807}`)
		}, gpu.FaultNotMetrics},
	} {
		t.Run(name, func(t *testing.T) {
			web := httptest.NewServer(http.HandlerFunc(tt.answer))
			defer web.Close()
			_, err := reading(t, remote(t, RemoteOptions{URL: web.URL, Token: "secret-token"}))
			f := gpu.AsFault(err)
			if f == nil || f.Name != tt.fault {
				t.Fatalf("reading = %v, want %s", err, tt.fault)
			}
			if host := strings.TrimPrefix(web.URL, "http://"); strings.Contains(f.Error(), host) || strings.Contains(f.Error(), "secret") {
				t.Errorf("error %q tells an address or a token", f.Error())
			}
		})
	}
}

func TestToken(t *testing.T) {
	s := NewServer(Options{Token: "right"}, nil)
	web := httptest.NewServer(s.Handler())
	defer web.Close()
	for _, path := range []string{"/v1/time", "/v1/samples", "/v1/about", "/metrics", "/healthz", "/nothing"} {
		for _, auth := range []string{"", "Bearer wrong", "right", "Bearer ", "bearer right", "Basic right"} {
			req := httptest.NewRequest("GET", path, nil)
			if auth != "" {
				req.Header.Set("Authorization", auth)
			}
			w := httptest.NewRecorder()
			s.Handler().ServeHTTP(w, req)
			if w.Code != http.StatusUnauthorized {
				t.Errorf("%s with %q: status %d", path, auth, w.Code)
			}
		}
	}
	if _, err := reading(t, remote(t, RemoteOptions{URL: web.URL, Token: "wrong"})); gpu.AsFault(err) == nil || gpu.AsFault(err).Name != gpu.FaultUnauthorized {
		t.Errorf("a wrong token = %v", err)
	}
	if _, err := reading(t, remote(t, RemoteOptions{URL: web.URL, Token: "right"})); err != nil {
		t.Errorf("the right token = %v", err)
	}
	// Who speaks the wrong protocol is told which is right.
	if _, err := reading(t, remote(t, RemoteOptions{URL: strings.Replace(web.URL, "http:", "https:", 1)})); err == nil || !strings.Contains(err.Error(), "does not speak TLS") {
		t.Errorf("https to http = %v", err)
	}
	secure := httptest.NewTLSServer(s.Handler())
	defer secure.Close()
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	if _, err := reading(t, remote(t, RemoteOptions{URL: strings.Replace(secure.URL, "https:", "http:", 1)})); err == nil || !strings.Contains(err.Error(), "https:// in place of http://") {
		t.Errorf("http to https = %v", err)
	}
	// Nothing can be written.
	for _, method := range []string{"POST", "PUT", "DELETE"} {
		req := httptest.NewRequest(method, "/v1/samples", nil)
		req.Header.Set("Authorization", "Bearer right")
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, req)
		if w.Code != http.StatusMethodNotAllowed {
			t.Errorf("%s: status %d", method, w.Code)
		}
	}
}

func TestMetricsPage(t *testing.T) {
	s := NewServer(Options{}, nil)
	s.Add(gpu.Sample{Time: 1, Source: "nvml", Device: "gpu0", Metric: gpu.GPUEnergy, Unit: "J", Value: 5})
	s.Add(gpu.Sample{Time: 2, Source: "nvml", Device: "gpu0", Metric: gpu.GPUECCErrors, Attr: "type=corrected", Value: 2})
	s.Add(gpu.Sample{Time: 2, Source: "nvml", Metric: gpu.MetricGap, Value: 2})
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{
		"# TYPE reprise_hw_gpu_energy_joules_total counter\n",
		`reprise_hw_gpu_energy_joules_total{source="nvml",device="gpu0"} 5` + "\n",
		`reprise_hw_gpu_ecc_errors_total{source="nvml",device="gpu0",type="corrected"} 2` + "\n",
	} {
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("the page lacks %q:\n%s", want, w.Body)
		}
	}
	if strings.Contains(w.Body.String(), "gap") {
		t.Error("a gap is no value that lasts")
	}
}

func TestListen(t *testing.T) {
	for _, addr := range []string{"0.0.0.0:0", ":0", "[::]:0", "192.0.2.1:0", "example.org:0"} {
		if l, err := Listen(addr, 1, false); err != ErrOpen {
			t.Errorf("Listen(%q) = %v, want ErrOpen", addr, err)
			if err == nil {
				l.Close()
			}
		}
	}
	for _, addr := range []string{"127.0.0.1:0", "localhost:0", "127.8.8.8:0"} {
		l, err := Listen(addr, 1, false)
		if err != nil {
			t.Errorf("Listen(%q) = %v", addr, err)
			continue
		}
		l.Close()
	}
	if _, err := Listen("nothing", 1, true); err == nil {
		t.Error("an address without a port is taken")
	}
}

// Connections beyond the limit wait; they do not push others out.
func TestConnectionLimit(t *testing.T) {
	l, err := Listen("127.0.0.1:0", 2, false)
	if err != nil {
		t.Fatal(err)
	}
	srv := HTTP(NewServer(Options{}, nil).Handler())
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	defer func() { srv.Close(); <-done }()
	var conns []net.Conn
	for range 3 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	answered := func(c net.Conn, wait time.Duration) bool {
		fmt.Fprintf(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
		c.SetReadDeadline(time.Now().Add(wait))
		_, err := c.Read(make([]byte, 1))
		return err == nil
	}
	if !answered(conns[0], 5*time.Second) || !answered(conns[1], 5*time.Second) {
		t.Fatal("the first two are not served")
	}
	if answered(conns[2], 50*ms) {
		t.Fatal("a third connection is served")
	}
	conns[0].Close()
	conns[2].SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := conns[2].Read(make([]byte, 1)); err != nil {
		t.Errorf("the third is not served after the first left: %v", err)
	}
}

func TestRemoteURL(t *testing.T) {
	for _, bad := range []string{"", "host:1", "ftp://h", "http://", "http://h/x", "http://u:p@h", "http://h?x=1", "http://%"} {
		if _, err := NewRemote(RemoteOptions{URL: bad}); err == nil {
			t.Errorf("NewRemote(%q) is no error", bad)
		}
	}
}

// Under a Sampler a failing agent is one that is down, and no gap while its
// samples wait for us.
func TestUnderSampler(t *testing.T) {
	s := NewServer(Options{}, nil)
	var mu sync.Mutex
	down := false
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		refuse := down
		mu.Unlock()
		if refuse {
			http.Error(w, "no", http.StatusServiceUnavailable)
			return
		}
		s.Handler().ServeHTTP(w, r)
	}))
	defer web.Close()
	r := remote(t, RemoteOptions{URL: web.URL, Period: 5 * ms})
	var all []gpu.Sample
	got := make(chan struct{}, 1)
	sampler := gpu.StartSampler(gpu.SamplerConfig{Emit: func(m gpu.Sample) {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, m)
		select {
		case got <- struct{}{}:
		default:
		}
	}}, r)
	wait := func(what string, ok func() bool) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		for {
			mu.Lock()
			done := ok()
			mu.Unlock()
			if done {
				return
			}
			select {
			case <-got:
			case <-ctx.Done():
				t.Fatalf("waited in vain: %s", what)
			}
		}
	}
	wait("up", func() bool { return count(all, gpu.MetricUp) == 1 })
	mu.Lock()
	down = true
	mu.Unlock()
	wait("down", func() bool { return count(all, gpu.MetricUp) == 2 })
	s.Add(gpu.Sample{Time: clock.Now(), Source: "nvml", Metric: gpu.GPUPower, Value: 9})
	mu.Lock()
	down = false
	mu.Unlock()
	wait("the sample that waited", func() bool { return count(all, gpu.GPUPower) == 1 })
	sampler.Close()
	if m, _ := find(all, gpu.GPUPower); m.Source != "agent/nvml" {
		t.Errorf("source %q", m.Source)
	}
	if n := count(all, gpu.MetricGap); n != 0 {
		t.Errorf("%d gaps although nothing was lost", n)
	}
}

func FuzzRemote(f *testing.F) {
	f.Add([]byte(`{"version":1,"instance":"x","from":0,"lost":3}` + "\n" + `{"t":5,"m":"hw.gpu.power","v":1}` + "\n" + `{"end":1}` + "\n"))
	f.Add([]byte(`{"version":2,"instance":"x"}`))
	f.Add([]byte("<html>"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := remote(t, RemoteOptions{URL: "http://127.0.0.1:1"})
		r.client.Transport = answer(in)
		n := 0
		r.samples(t.Context(), 0, clock.Now, func(gpu.Sample) { n++ })
		if n > len(in) {
			t.Fatal("more samples than bytes")
		}
	})
}

type answer []byte

func (a answer) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(string(a))), Request: r}, nil
}
