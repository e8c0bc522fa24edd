package gpu

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"math"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"reprise/internal/enginemetrics"
)

const (
	// EnginePeriod is how often an engine is scraped unless its options say
	// otherwise: its gauges move with every pass, and a page costs a server of
	// Python some milliseconds.
	EnginePeriod = 500 * time.Millisecond
	// engineTimeout bounds one scrape. A page takes some ms, up to a second where
	// the server's interpreter is busy.
	engineTimeout = 2 * time.Second
)

// EngineRestarted is the note of the gap between the last scrape of an engine and
// the first of its successor.
const EngineRestarted = "restarted: counters began anew"

// EngineOptions say which engine to scrape.
type EngineOptions struct {
	// Name is the source's, the engine's name by default.
	Name string
	// URL is that of the page. Its text is in no error and no sample.
	URL string
	// Tables are the engines that it may be; more than one means that the page
	// tells. See backends.Metrics.
	Tables []*enginemetrics.Table
	// Model is the one that is played against: where a page tells of several,
	// the others are left out.
	Model   string
	Period  time.Duration // 0: EnginePeriod
	Timeout time.Duration // of one scrape, 0: 2 s
	MaxPage int           // bytes, 0: 8 MiB
	Header  http.Header   // of the request: authorisation
	TLS     *tls.Config   // nil: the default
	// First, if set, is given the first page that was understood, as soon as
	// that is. It may not keep it.
	First func(page []byte)
}

// An Engine is a Source that scrapes the /metrics of a serving engine: vLLM,
// SGLang, llama.cpp, or any other with a table. Its samples are those of
// [EngineMetrics], with the engine's index as their device: "engine" where the
// page has one without an index, "engine0" and so on with data parallel ranks.
//
// Counters go into the stream as the engine has them. Where it was restarted and
// its counters overtook the old values between two scrapes, a 0 comes before the
// new value, so that a reader who takes falls for restarts sees this one too.
type Engine struct {
	o    EngineOptions
	page *scraper

	mu     sync.Mutex   // what is below, but the scraper alone writes it
	last   bytes.Buffer // the last page that was understood
	table  *enginemetrics.Table
	begun  bool          // there was a page
	seen   time.Duration // the last one
	start  float64
	series map[seriesKey]*engineSeries
	stats  EngineStats
}

type seriesKey struct {
	quantity enginemetrics.Quantity
	engine   string
}

// An engineSeries is what is known of a counter or span since the first scrape.
type engineSeries struct {
	value float64    // of the last scrape
	hist  *histogram // of the last scrape
	total float64    // increase since the first
	whole *histogram // likewise, in buckets
	at    time.Duration
}

// EngineStats say how the scraping went, beyond what a Sampler knows.
type EngineStats struct {
	Engine   string `json:"engine,omitempty"` // the table that was used
	Pages    int64  `json:"pages"`            // understood
	Bytes    int    `json:"page_bytes"`       // of the last page
	Restarts int64  `json:"restarts"`         // of the engine, between two scrapes
	Doubled  int64  `json:"doubled_samples"`  // samples that stood on a page more than once
	Odd      int64  `json:"odd_samples"`      // no finite numbers, histograms that do not add up
}

// NewEngine returns a source that has not asked for anything yet.
func NewEngine(o EngineOptions) (*Engine, error) {
	u, err := url.Parse(o.URL)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return nil, errors.New("metrics page: want http://host:port/metrics or https://")
	case u.User != nil:
		return nil, errors.New("metrics page: its address holds credentials: give an API key instead")
	case len(o.Tables) == 0:
		return nil, errors.New("metrics page: no engine's metrics are known")
	}
	if o.Name == "" {
		o.Name = "engine"
		if len(o.Tables) == 1 {
			o.Name = o.Tables[0].Engine
		}
	}
	if o.Period <= 0 {
		o.Period = EnginePeriod
	}
	if o.Timeout <= 0 {
		o.Timeout = engineTimeout
	}
	page := newScraper(o.URL, o.TLS)
	page.header = o.Header
	if o.MaxPage > 0 {
		page.max = o.MaxPage
	}
	if len(o.Tables) == 1 {
		page.hint = o.Tables[0].Enable
	}
	return &Engine{o: o, page: page, series: map[seriesKey]*engineSeries{}}, nil
}

// Name implements [Source].
func (e *Engine) Name() string { return e.o.Name }

// Period implements [Source].
func (e *Engine) Period() time.Duration { return e.o.Period }

// Close implements [Source].
func (e *Engine) Close() error {
	e.page.close()
	return nil
}

// Stats may be asked at any time.
func (e *Engine) Stats() EngineStats {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.stats
}

// Last returns a copy of the last page that was understood, nil if none was.
func (e *Engine) Last() []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.stats.Pages == 0 {
		return nil
	}
	return bytes.Clone(e.last.Bytes())
}

// Sample implements [Source].
func (e *Engine) Sample(ctx context.Context, now func() time.Duration, emit func(Sample)) error {
	ctx, cancel := context.WithTimeout(ctx, e.o.Timeout)
	defer cancel()
	at, err := e.page.fetch(ctx, now)
	if err != nil {
		return err
	}
	tables := e.o.Tables
	if e.table != nil {
		tables = []*enginemetrics.Table{e.table}
	}
	p, err := parsePage(e.page.body.Bytes(), tables, e.o.Model)
	if err != nil && e.table != nil && len(e.o.Tables) > 1 {
		p, err = parsePage(e.page.body.Bytes(), e.o.Tables, e.o.Model) // another engine came up in its place
	}
	if err != nil {
		return err
	}
	e.keep(p)
	e.emit(p, at, emit)
	return nil
}

// keep makes p the last page.
func (e *Engine) keep(p *page) {
	e.mu.Lock()
	first := e.stats.Pages == 0
	e.table = p.table
	e.stats.Engine = p.table.Engine
	e.stats.Pages++
	e.stats.Bytes = e.page.body.Len()
	e.stats.Doubled += int64(p.doubled)
	e.stats.Odd += int64(p.odd)
	e.last, e.page.body = e.page.body, e.last
	e.mu.Unlock()
	if first && e.o.First != nil {
		e.o.First(e.last.Bytes())
	}
}

// emit turns a page into samples.
func (e *Engine) emit(p *page, at time.Duration, emit func(Sample)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	restarted := e.restarted(p)
	if restarted {
		e.stats.Restarts++
		emit(Sample{Time: at, Metric: MetricGap, Value: (at - e.seen).Seconds(), Note: EngineRestarted})
	}
	first := !e.begun
	e.begun, e.start = true, p.started
	for _, r := range p.readings {
		put := func(metric, attr string, v float64) {
			if !math.IsNaN(v) && !math.IsInf(v, 0) {
				emit(Sample{Time: at, Device: device(r.engine), Metric: metric, Attr: attr, Value: v})
			}
		}
		name := string(r.quantity)
		if r.kind == enginemetrics.Gauge {
			put(name, "", r.value)
			continue
		}
		metric := name
		if r.kind == enginemetrics.Span {
			metric += EngineSum
		}
		s := e.series[seriesKey{r.quantity, r.engine}]
		fresh := s == nil
		if fresh {
			// What a page lacks until it is raised began at 0 after the first page.
			s = &engineSeries{value: r.value, hist: r.hist, at: at}
			e.series[seriesKey{r.quantity, r.engine}] = s
			if !first && p.table.Late {
				s.value, s.hist, s.at = 0, nil, e.seen
				put(metric, "", 0)
			}
		}
		if restarted {
			if s.value > 0 && r.value >= s.value {
				put(metric, "", 0)
				if r.hist != nil {
					put(name+EngineCount, "", 0)
				}
			}
			s.value, s.hist = 0, nil
		}
		put(metric, "", r.value)
		added := r.value - s.value
		if added < 0 {
			added = r.value
		}
		s.total += added
		if r.kind == enginemetrics.Counter {
			if dt := (at - s.at).Seconds(); dt > 0 {
				put(name+EngineRate, "", added/dt)
			}
		} else if r.hist != nil {
			put(name+EngineCount, "", r.hist.n)
			s.span(r.hist, fresh && (first || !p.table.Late), restarted, func(q string, v float64) { put(name, "quantile="+q, v) })
		}
		s.value, s.hist, s.at = r.value, r.hist, at
	}
	if p.table.Late {
		e.absent(p, at, emit)
	}
	e.seen = at
}

// span adds the values since the scrape before to the series, and tells their
// quantiles.
func (s *engineSeries) span(h *histogram, fresh, restarted bool, put func(q string, v float64)) {
	if fresh {
		return // nobody knows when those values came
	}
	last := s.hist
	if restarted {
		last = nil
	}
	d := h.since(last)
	if s.whole == nil || !slices.Equal(s.whole.bounds, d.bounds) {
		s.whole = &histogram{bounds: d.bounds, counts: make([]float64, len(d.counts))}
	}
	for i, c := range d.counts {
		s.whole.counts[i] += c
	}
	s.whole.sum += d.sum
	s.whole.n += d.n
	if d.n > 0 {
		put("0.5", d.quantile(0.5))
		put("0.99", d.quantile(0.99))
	}
}

// absent tells that the counters which are not on the page yet are zero.
func (e *Engine) absent(p *page, at time.Duration, emit func(Sample)) {
	for _, entry := range p.table.Entries {
		kind, _ := entry.Quantity.Kind()
		if kind == enginemetrics.Gauge || slices.ContainsFunc(p.readings, func(r reading) bool { return r.quantity == entry.Quantity }) {
			continue
		}
		known := false
		for k := range e.series {
			known = known || k.quantity == entry.Quantity
		}
		if known {
			continue
		}
		metric := string(entry.Quantity)
		if kind == enginemetrics.Span {
			emit(Sample{Time: at, Device: device(""), Metric: metric + EngineCount})
			metric += EngineSum
		}
		emit(Sample{Time: at, Device: device(""), Metric: metric})
	}
}

// restarted reports that p is of another process than the page before: another
// start, or a counter of one engine that fell.
func (e *Engine) restarted(p *page) bool {
	if !e.begun {
		return false
	}
	if p.started != 0 && e.start != 0 && math.Abs(p.started-e.start) > 1 {
		return true
	}
	for _, r := range p.readings {
		if s := e.series[seriesKey{r.quantity, r.engine}]; s != nil && r.kind == enginemetrics.Counter && r.value < s.value {
			return true
		}
	}
	return false
}

// device names an engine behind one page.
func device(engine string) string { return "engine" + engine }

// An EngineSpan is a span over all scrapes, by the engine's own clock.
type EngineSpan struct {
	N    int64   `json:"n"`
	Sum  float64 `json:"sum_s"`
	Mean float64 `json:"mean_s"`
	// P50 and P99 are estimates from the buckets, as Prometheus makes them; the
	// truth lies somewhere in the bucket, which begins and ends at the bounds.
	P50       float64   `json:"p50_s_estimate"`
	P50Bounds []float64 `json:"p50_s_bucket"` // the last bucket has no end
	P99       float64   `json:"p99_s_estimate"`
	P99Bounds []float64 `json:"p99_s_bucket"`
}

// Spans returns what the histograms gathered between the first and the last
// scrape, engines added up. A span that the engine has no histogram of is not
// among them.
func (e *Engine) Spans() map[enginemetrics.Quantity]EngineSpan {
	e.mu.Lock()
	defer e.mu.Unlock()
	sums := map[enginemetrics.Quantity]*histogram{}
	for k, s := range e.series {
		if s.whole == nil {
			continue
		}
		sum := sums[k.quantity]
		if sum == nil {
			sums[k.quantity] = &histogram{s.whole.bounds, slices.Clone(s.whole.counts), s.whole.sum, s.whole.n}
			continue
		}
		if !slices.Equal(sum.bounds, s.whole.bounds) {
			continue
		}
		for i, c := range s.whole.counts {
			sum.counts[i] += c
		}
		sum.sum += s.whole.sum
		sum.n += s.whole.n
	}
	spans := map[enginemetrics.Quantity]EngineSpan{}
	for q, h := range sums {
		if h.n < 1 {
			continue
		}
		sp := EngineSpan{N: int64(math.Round(h.n)), Sum: h.sum, Mean: h.sum / h.n, P50: h.quantile(0.5), P99: h.quantile(0.99)}
		sp.P50Bounds, sp.P99Bounds = h.bucket(0.5), h.bucket(0.99)
		if len(h.bounds) == 0 {
			sp.P50, sp.P99 = sp.Mean, sp.Mean
		}
		spans[q] = sp
	}
	return spans
}
