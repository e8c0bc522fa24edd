package replay

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"net"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"reprise/gpu"
	"reprise/internal/metrics"
	"reprise/traceformat"
)

// An Exporter serves what a run is doing as a page of Prometheus metrics: its
// own requests, and the last values of its telemetry.
type Exporter struct {
	Addr string // where it listens

	progress *Progress
	latest   *gpu.Latest
	server   *http.Server
	served   chan struct{}

	mu    sync.Mutex
	ended map[string]uint64 // by how
	ttft  buckets
	e2e   buckets
	lag   buckets
}

// Serve exports the run at addr until Close. The directory's telemetry goes with
// it if that was started before.
func (d *Dir) Serve(addr string, p *Progress) (*Exporter, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	x := &Exporter{
		Addr: l.Addr().String(), progress: p, served: make(chan struct{}), ended: map[string]uint64{},
		ttft: newBuckets(latencyBounds), e2e: newBuckets(latencyBounds), lag: newBuckets(lagBounds),
	}
	if d.telemetry != nil {
		x.latest = d.telemetry.Latest()
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", x.page)
	x.server = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10}
	go func() {
		defer close(x.served)
		x.server.Serve(l) // ends with Close
	}()
	d.exporter = x
	return x, nil
}

// Close ends the serving; a page that is under way has a second.
func (x *Exporter) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	err := x.server.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		err = x.server.Close()
	}
	<-x.served
	return err
}

// Bounds of the histograms, in seconds.
var (
	latencyBounds = []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 25, 50, 100, 250, 1000}
	lagBounds     = []float64{1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, .001, .0025, .005, .01, .025, .05, .1, .25, 1}
)

// buckets is a histogram that is cumulative only when printed.
type buckets struct {
	bounds []float64
	counts []uint64
	sum    float64
	n      uint64
}

func newBuckets(bounds []float64) buckets {
	return buckets{bounds: bounds, counts: make([]uint64, len(bounds))}
}

func (b *buckets) add(d time.Duration) {
	v := max(0, d.Seconds())
	if i, _ := slices.BinarySearch(b.bounds, v); i < len(b.counts) {
		b.counts[i]++
	}
	b.sum += v
	b.n++
}

func (b *buckets) proto() *dto.Histogram {
	h := &dto.Histogram{SampleCount: new(b.n), SampleSum: new(b.sum)}
	total := uint64(0)
	for i, bound := range b.bounds {
		total += b.counts[i]
		h.Bucket = append(h.Bucket, &dto.Bucket{UpperBound: new(bound), CumulativeCount: new(total)})
	}
	return h
}

// classNames are the values of the label outcome.
var classNames = map[metrics.Class]string{metrics.OK: "ok", metrics.Failed: "failed", metrics.Shed: "shed", metrics.Aborted: "hung_up", metrics.Unknown: "unknown"}

// add takes a row, which stays the caller's.
func (x *Exporter) add(row *traceformat.Row) {
	r := metrics.Measure(row)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.ended[classNames[r.Class]]++
	if lag, ok := r.Lag.Get(); ok {
		x.lag.add(max(lag.Total, -lag.Total))
	}
	if r.Class == metrics.OK {
		if v, ok := r.FromSchedule(r.TTFT).Get(); ok {
			x.ttft.add(v)
		}
		if v, ok := r.FromSchedule(r.E2E).Get(); ok {
			x.e2e.add(v)
		}
	}
}

func (x *Exporter) page(w http.ResponseWriter, _ *http.Request) {
	var b bytes.Buffer
	for _, f := range slices.Concat(x.own(), x.others()) {
		if _, err := expfmt.MetricFamilyToText(&b, f); err != nil {
			http.Error(w, "no metrics", http.StatusInternalServerError)
			return
		}
	}
	w.Header().Set("Content-Type", string(expfmt.NewFormat(expfmt.TypeTextPlain)))
	w.Write(b.Bytes()) // a scraper that went away is its own affair
}

// own are the metrics of the client.
func (x *Exporter) own() (fs []*dto.MetricFamily) {
	s, started := x.progress.Snapshot()
	family := func(name, help string, kind dto.MetricType, ms ...*dto.Metric) {
		fs = append(fs, &dto.MetricFamily{Name: new("reprise_" + name), Help: new(help), Type: kind.Enum(), Metric: ms})
	}
	counter := func(name, help string, v int64) {
		family(name, help, dto.MetricType_COUNTER, &dto.Metric{Counter: &dto.Counter{Value: new(float64(v))}})
	}
	gauge := func(name, help string, v float64) {
		family(name, help, dto.MetricType_GAUGE, &dto.Metric{Gauge: &dto.Gauge{Value: new(v)}})
	}
	if started {
		gauge("elapsed_seconds", "Time since the first scheduled send; negative before it.", s.Elapsed.Seconds())
	}
	counter("requests_sent_total", "Requests handed to the wire.", s.Sent)
	counter("requests_shed_total", "Requests not sent for want of room in flight.", s.Shed)
	counter("retries_total", "Sends beyond the first of a request.", s.Retries)
	counter("output_tokens_total", "Output tokens received.", s.Tokens)
	gauge("requests_in_flight", "Requests sent and not ended.", float64(s.InFlight))
	gauge("requests_in_flight_peak", "The most there were at once.", float64(s.Peak))
	gauge("goroutines", "Goroutines of the replay itself.", float64(runtime.NumGoroutine()))
	x.mu.Lock()
	defer x.mu.Unlock()
	var ended []*dto.Metric
	for _, how := range slices.Sorted(maps.Keys(x.ended)) {
		ended = append(ended, &dto.Metric{Label: []*dto.LabelPair{{Name: new("outcome"), Value: new(how)}}, Counter: &dto.Counter{Value: new(float64(x.ended[how]))}})
	}
	if ended != nil {
		family("requests_ended_total", "Requests that ended, by outcome.", dto.MetricType_COUNTER, ended...)
	}
	histogram := func(name, help string, b *buckets) {
		family(name, help, dto.MetricType_HISTOGRAM, &dto.Metric{Histogram: b.proto()})
	}
	histogram("send_error_seconds", "Time between the scheduled send and the actual one.", &x.lag)
	histogram("time_to_first_token_seconds", "From the scheduled send to the first token, of successes.", &x.ttft)
	histogram("e2e_latency_seconds", "From the scheduled send to the last token, of successes.", &x.e2e)
	return fs
}

// others are the last values of the telemetry.
func (x *Exporter) others() []*dto.MetricFamily {
	if x.latest == nil {
		return nil
	}
	return gpu.Families(x.latest.All())
}
