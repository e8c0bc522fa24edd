package replay

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	promodel "github.com/prometheus/common/model"

	"reprise/backends"
	"reprise/backends/sim"
	"reprise/gpu"
	"reprise/gpu/findings"
	"reprise/internal/clock"
	"reprise/internal/enginemetrics"
	"reprise/internal/metrics"
	"reprise/internal/wire"
	"reprise/traceformat"
)

// scrapeTimeout is longer than a busy machine takes, but where a test is about
// what takes longer still.
var scrapeTimeout = 10 * time.Second

// watched plays n requests against a simulated engine into a new directory.
// page is what scrapes get, nil: the engine's own.
func watched(t *testing.T, n int, gap time.Duration, page http.HandlerFunc, during func(*Dir, *Exporter), sources ...gpu.Source) (*Manifest, string) {
	t.Helper()
	p, err := sim.Start(t.Context(), sim.Options{Preset: "llama-3-8b@h100"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop() })
	b, err := backends.Open("sim", backends.Config{URL: p.URL})
	if err != nil {
		t.Fatal(err)
	}
	info, err := b.Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	trace := every(n, gap)
	for i := range trace.rows {
		trace.rows[i].PromptTokens, trace.rows[i].OutputTokens = traceformat.Some[int32](100), traceformat.Some[int32](10)
	}
	plan, err := NewPlan(trace.source(), Defaults(), Target{MaxLen: info.MaxLen, VocabSize: info.VocabSize, MinID: info.MinID})
	if err != nil {
		t.Fatal(err)
	}
	client, err := wire.New(p.URL, wire.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	m := NewManifest("replay", nil, plan, "test", Server{Backend: "sim", Info: info})
	path := filepath.Join(t.TempDir(), "run")
	dir, err := CreateDir(path, m, plan, nil, metrics.DefaultLimits(), false)
	if err != nil {
		t.Fatal(err)
	}
	o := gpu.EngineOptions{Name: "engine", URL: p.URL + "/metrics", Tables: []*enginemetrics.Table{backends.Metrics("sim")}, Period: 20 * time.Millisecond, Timeout: scrapeTimeout}
	if page != nil {
		s := httptest.NewServer(page)
		t.Cleanup(s.Close)
		o.URL = s.URL + "/metrics"
	}
	progress := &Progress{}
	tel, err := dir.StartTelemetry(progress, []gpu.EngineOptions{o}, sources...)
	if err != nil {
		t.Fatal(err)
	}
	x, err := dir.Serve("127.0.0.1:0", progress)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	tel.Ready(t.Context())
	stats, err := plan.Run(t.Context(), Config{Backend: b, Client: client, Record: dir.Record, Progress: progress})
	if err != nil {
		t.Fatal(err)
	}
	if during != nil {
		during(dir, x)
	}
	if _, err := dir.Close(stats, nil); err != nil {
		t.Fatal(err)
	}
	return m, path
}

// The engine's counters over a run are the run's own sums, and its samples lie on
// the run's clock.
func TestTelemetryOfARun(t *testing.T) {
	const n = 40
	m, path := watched(t, n, 20*time.Millisecond, nil, nil)
	rec := m.Telemetry
	if rec == nil || rec.Engine == nil || rec.File != TelemetryFile {
		t.Fatalf("telemetry %+v", rec)
	}
	e := rec.Engine
	if e.Prompt.V != 100*n || e.Generated.V != 10*n || e.Finished.V != n || e.Received != 10*n {
		t.Errorf("engine %+v, want %d prompt and %d output tokens", e, 100*n, 10*n)
	}
	if s := e.Spans[string(enginemetrics.TTFT)]; s.N != n || s.Sum <= 0 {
		t.Errorf("TTFT %+v", s)
	}
	if c := rec.Clocks; c == nil || c.TTFT == nil || c.TTFT.N != n || c.TTFT.Min < -time.Millisecond || len(c.Sums) != 3 || c.Sums[0].EngineN != n || c.Sums[0].OursN != n {
		t.Errorf("clocks %+v", c)
	}
	if rec.KV == nil || rec.KV.Capacity.V < 1e5 || rec.Little == nil || rec.Environment.Verdict != findings.Unwatched {
		t.Errorf("KV %+v, Little %+v, %+v", rec.KV, rec.Little, rec.Environment)
	}
	for _, page := range rec.Pages {
		if b, err := os.ReadFile(filepath.Join(path, page)); err != nil || !bytes.Contains(b, []byte("vllm:generation_tokens_total")) {
			t.Errorf("%s: %v", page, err)
		}
	}
	if len(rec.Pages) != 2 {
		t.Errorf("pages %q, want the first and the last", rec.Pages)
	}
	r, err := gpu.Open(filepath.Join(path, TelemetryFile))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	busy := 0
	for s, err := range r.All() {
		if err != nil {
			t.Fatal(err)
		}
		if s.Time < -20*time.Second || s.Time > time.Minute {
			t.Fatalf("a sample at %v", s.Time)
		}
		if s.Metric == string(enginemetrics.Running) && s.Value > 0 {
			busy++
			if s.Time < 0 {
				t.Errorf("the engine is busy %v before the first send", -s.Time)
			}
		}
	}
	if busy == 0 {
		t.Error("no scrape met a request")
	}
	var text strings.Builder
	if err := rec.Render(&text, 88); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"telemetry   engine ", "  KV cache  ", "  in flight ", "our TTFT less the engine's", "mean ITL"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("no %q in\n%s", want, text.String())
		}
	}
	again, err := ReadManifest(path)
	if err != nil || again.Telemetry == nil || again.Telemetry.Engine.Prompt.V != 100*n {
		t.Errorf("read again: %v", err)
	}
}

// Whatever a page of metrics is, the run is what it would have been without, and
// the summary says what was missing.
func TestTelemetryFaults(t *testing.T) {
	for _, tt := range []struct {
		name, note string
		page       http.HandlerFunc
	}{
		{"HTML", "an HTML page", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html></html>\n") }},
		{"cut in half", "cut short", func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, "vllm:num_requests_running 1\nvllm:num_reque")
		}},
		{"50 MB", "too long", func(w http.ResponseWriter, _ *http.Request) {
			chunk := bytes.Repeat([]byte("x 1\n"), 1<<18)
			for range 50 {
				if _, err := w.Write(chunk); err != nil {
					return
				}
			}
		}},
		{"a stall", "timeout", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }},
		{"no such page", "status 404", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.name == "a stall" {
				defer func(d time.Duration) { scrapeTimeout = d }(scrapeTimeout)
				scrapeTimeout = 50 * time.Millisecond
			}
			m, _ := watched(t, 20, 20*time.Millisecond, tt.page, nil)
			if m.Summary.Requests.OK != 20 || m.State != StateComplete {
				t.Errorf("the run: %+v", m.Summary.Requests)
			}
			if notes := strings.Join(m.Telemetry.Notes, "\n"); !strings.Contains(notes, tt.note) || strings.Contains(notes, "127.0.0.1") {
				t.Errorf("notes %q, want %q", notes, tt.note)
			}
			if c := m.Telemetry.Clocks; c == nil || c.TTFT == nil || c.TTFT.N != 20 {
				t.Error("the answers' own times are lost with the page")
			}
		})
	}
}

// A counter that goes back in the middle of a run is a restart.
func TestTelemetryCounterGoesBack(t *testing.T) {
	var n atomic.Int64
	m, _ := watched(t, 40, 20*time.Millisecond, func(w http.ResponseWriter, _ *http.Request) {
		k := n.Add(1)
		fmt.Fprintf(w, "vllm:num_requests_running 1\nvllm:generation_tokens_total %d\n", 10*(k%8))
	}, nil)
	if e := m.Telemetry.Engine; e == nil || e.Restarts == 0 || m.Telemetry.Engines[0].Restarts == 0 {
		t.Errorf("engine %+v", e)
	} else if want := 10 * (n.Load() - 1); e.Generated.V > want || e.Generated.V < want-10*m.Telemetry.Engines[0].Restarts {
		t.Errorf("%d tokens over %d restarts, want about %d", e.Generated.V, m.Telemetry.Engines[0].Restarts, want)
	}
}

// hotGPU is a device that is too hot, at 100 W.
type hotGPU struct{ begun time.Duration }

func (*hotGPU) Name() string          { return "nvml" }
func (*hotGPU) Period() time.Duration { return 10 * time.Millisecond }
func (*hotGPU) Close() error          { return nil }
func (g *hotGPU) Sample(_ context.Context, now func() time.Duration, emit func(gpu.Sample)) error {
	at := now()
	if g.begun == 0 {
		g.begun = at
	}
	emit(gpu.Sample{Time: at, Device: "gpu0", Metric: gpu.GPUEnergy, Value: 100 * (at - g.begun).Seconds()})
	emit(gpu.Sample{Time: at, Device: "gpu0", Metric: gpu.GPUThrottleReasons, Value: 0x40})
	return nil
}

// A GPU that was throttled makes the run invalid, and says why; its energy is
// divided by what came of it.
func TestTelemetryDisturbed(t *testing.T) {
	m, _ := watched(t, 40, 20*time.Millisecond, nil, nil, &hotGPU{})
	f := m.Summary.Fidelity
	if f.Valid || f.Verdict != metrics.Invalid || !strings.Contains(strings.Join(f.Reasons, "\n"), "gpu0 was throttled") {
		t.Errorf("fidelity %+v", f)
	}
	e := m.Telemetry.Energy
	if e == nil || math.Abs(e.Watts-100) > 1 || e.Covered < 0.9 {
		t.Fatalf("energy %+v", e)
	}
	if s := m.Summary; math.Abs(e.PerRequest.V*s.Rates.Completed-100) > 1 || math.Abs(e.PerOutputToken.V*s.Rates.OutputTokens-100) > 1 {
		t.Errorf("%v J a request at %v/s, %v J a token at %v/s; want 100 W", e.PerRequest.V, s.Rates.Completed, e.PerOutputToken.V, s.Rates.OutputTokens)
	}
}

// The page of a run is Prometheus text, and holds the run's own counts and its
// telemetry.
func TestExporter(t *testing.T) {
	watched(t, 30, 10*time.Millisecond, nil, func(_ *Dir, x *Exporter) {
		resp, err := http.Get("http://" + x.Addr + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		parser := expfmt.NewTextParser(promodel.UTF8Validation)
		fs, err := parser.TextToMetricFamilies(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		value := func(name string) float64 {
			f := fs["reprise_"+name]
			if f == nil || len(f.Metric) == 0 {
				t.Errorf("no %s", name)
				return 0
			}
			m := f.Metric[0]
			return m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
		for name, want := range map[string]float64{
			"requests_sent_total": 30, "requests_shed_total": 0, "requests_in_flight": 0, "output_tokens_total": 300, "requests_ended_total": 30,
			"send_error_seconds": 30, "time_to_first_token_seconds": 30, "e2e_latency_seconds": 30,
		} {
			if v := value(name); v != want {
				t.Errorf("%s = %v, want %v", name, v, want)
			}
		}
		value("gen_ai_server_requests_running")
		if value("elapsed_seconds") <= 0 {
			t.Error("no time has passed")
		}
		for _, path := range []string{"/", "/metrics/x", "/debug/pprof/"} {
			resp, err := http.Get("http://" + x.Addr + path)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusNotFound {
				t.Errorf("%s: status %d", path, resp.StatusCode)
			}
		}
	})
}

// A live view shows what there is, and nothing before there is any.
func TestTelemetryLine(t *testing.T) {
	var none *Telemetry
	tel := &Telemetry{}
	if none.Line() != "" || tel.Line() != "" {
		t.Error("a line of nothing")
	}
	for _, s := range []gpu.Sample{
		{Source: "engine", Device: "engine0", Metric: string(enginemetrics.Running), Value: 3}, {Source: "engine", Device: "engine1", Metric: string(enginemetrics.Running), Value: 4},
		{Source: "engine", Device: "engine0", Metric: string(enginemetrics.Waiting), Value: 1}, {Source: "engine", Device: "engine0", Metric: string(enginemetrics.KVUsage), Value: 0.25},
		{Source: "nvml", Device: "gpu0", Metric: gpu.GPUUtilization, Value: 0.5}, {Source: "nvml", Device: "gpu1", Metric: gpu.GPUUtilization, Value: 1},
		{Source: "nvml", Device: "gpu0", Metric: gpu.GPUPower, Value: 400}, {Source: "nvml", Device: "gpu1", Metric: gpu.GPUPower, Value: 600},
	} {
		tel.latest.Add(s)
	}
	if got, want := tel.Line(), "engine 7 running, 1 waiting, KV 25 %  GPU 75 % busy, 1,000 W"; got != want {
		t.Errorf("Line() = %q, want %q", got, want)
	}
	var out strings.Builder
	p := &Progress{}
	p.started.Store(int64(clock.Now()))
	v := &View{Out: &out, Plan: &Plan{Rows: 1}, Progress: p, Live: metrics.NewLive(), Telemetry: tel}
	v.draw()
	if !strings.HasSuffix(out.String(), "  "+tel.Line()+"\n") {
		t.Errorf("a line of the view: %q", out.String())
	}
	out.Reset()
	v.Terminal = true
	v.draw()
	v.draw()
	if !strings.Contains(out.String(), "\x1b[4A\x1b[J") || strings.Count(out.String(), "\n") != 8 {
		t.Errorf("frames of a terminal: %q", out.String())
	}
}
