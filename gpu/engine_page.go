package gpu

import (
	"bytes"
	"cmp"
	"errors"
	"hash/maphash"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	promodel "github.com/prometheus/common/model"

	"reprise/internal/enginemetrics"
)

// A reading is one engine's value of one quantity on one page.
type reading struct {
	quantity enginemetrics.Quantity
	kind     enginemetrics.Kind
	engine   string // as its labels tell it apart, empty where nothing does
	value    float64
	hist     *histogram // of a span, nil where the page has its sum alone
}

// A histogram is cumulative in time and not in its buckets.
type histogram struct {
	bounds []float64 // upper, rising; the last bucket has none
	counts []float64 // one more than bounds
	sum    float64
	n      float64
}

// A page is what was understood of a page of metrics.
type page struct {
	table    *enginemetrics.Table
	readings []reading
	started  float64 // process_start_time_seconds, 0 if it is not there
	doubled  int     // samples that were there more than once
	odd      int     // values that are no finite numbers, histograms that do not add up

	model  string // of several, the one that counts
	models bool   // several, and none of them is the one that is played against
}

// startTime says when the process behind a page began.
const startTime = "process_start_time_seconds"

// canonical takes names as they were before a gateway replaced colons.
func canonical(name string) string { return strings.ReplaceAll(name, ":", "_") }

// A filter knows the families that tables ask for.
type filter struct{ families, samples map[string]bool }

func newFilter(tables []*enginemetrics.Table) filter {
	f := filter{map[string]bool{}, map[string]bool{}}
	add := func(name string) {
		// Both spellings, so that no line of a page takes a new string.
		for _, name := range []string{name, canonical(name)} {
			f.families[name] = true
			for _, suffix := range []string{"", "_bucket", "_sum", "_count"} {
				f.samples[name+suffix] = true
			}
		}
	}
	add(startTime)
	for _, t := range tables {
		for _, e := range t.Entries {
			for _, s := range slices.Concat(e.Sources, e.Plus) {
				add(s.Name)
			}
		}
	}
	return f
}

// cut keeps the lines of body that are asked for, each sample and each TYPE
// once: it makes pages that are far too long cheap, and repeated families whole.
// lines are the numbers of the lines that were kept.
func (f filter) cut(body []byte) (kept []byte, lines []int, doubled int) {
	// Hashes in place of what they are of: a page is cut twice a second, beside a
	// sender that its garbage would disturb.
	seed, seen := maphash.MakeSeed(), make(map[uint64]struct{}, 512)
	kept, lines = make([]byte, 0, min(len(body), 128<<10)), make([]int, 0, 512)
	number := 0
	for line := range bytes.Lines(body) {
		number++
		text := bytes.TrimLeft(line, " \t")
		var key []byte
		rest, isType := bytes.CutPrefix(text, []byte("# TYPE "))
		if isType {
			name, _, _ := bytes.Cut(bytes.TrimLeft(rest, " \t"), []byte(" "))
			if !f.families[string(name)] {
				continue
			}
			key = name
		} else {
			end := bytes.IndexAny(text, "{ \t\r\n")
			if end <= 0 || text[0] == '#' || !f.samples[string(text[:end])] {
				continue
			}
			if key = text[:end]; text[end] == '{' {
				// Up to the value, which is what follows the last brace.
				key = text[:max(end, bytes.LastIndexByte(text, '}'))]
			}
		}
		hash := maphash.Bytes(seed, key)
		if isType {
			hash = ^hash
		}
		if _, ok := seen[hash]; ok {
			if text[0] != '#' {
				doubled++
			}
			continue
		}
		seen[hash] = struct{}{}
		kept, lines = append(kept, line...), append(lines, number)
	}
	return kept, lines, doubled
}

// parsePage reads the quantities of a page by the table of tables that fits it
// best. Its errors are Faults. Where the page tells of several models, those
// other than model are left out, or kept apart if it is not among them.
func parsePage(body []byte, tables []*enginemetrics.Table, model string) (*page, error) {
	if n := len(body); n > 0 && body[n-1] != '\n' {
		return nil, otherwise(body, &Fault{Name: FaultCutShort})
	}
	kept, lines, doubled := newFilter(tables).cut(body)
	parser := expfmt.NewTextParser(promodel.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(kept))
	if err != nil {
		if e, ok := errors.AsType[expfmt.ParseError](err); ok && e.Line >= 1 && e.Line <= len(lines) {
			return nil, Faultf(FaultNotMetrics, "line %d is not of the text format", lines[e.Line-1])
		}
		return nil, Faultf(FaultNotMetrics, "not the text format")
	}
	byName := map[string]*dto.MetricFamily{}
	for _, name := range slices.Sorted(maps.Keys(families)) {
		if c := canonical(name); byName[c] == nil {
			byName[c] = families[name]
		}
	}
	best := &page{}
	for _, t := range tables {
		p := &page{table: t, doubled: doubled}
		p.choose(byName, model)
		p.read(byName)
		// Of two that read as much the one that misses less is the engine's.
		more := len(p.readings) - len(best.readings)
		if best.table == nil || more > 0 || more == 0 && len(t.Entries) < len(best.table.Entries) {
			best = p
		}
	}
	if best.table == nil || len(best.readings) == 0 {
		return nil, otherwise(body, Faultf(FaultNotMetrics, "no metric that is known of %s", engineNames(tables)))
	}
	if f := byName[startTime]; f != nil && len(f.Metric) == 1 {
		if v := value(f.Metric[0]); v > 0 && !math.IsInf(v, 0) {
			best.started = v
		}
	}
	return best, nil
}

func engineNames(tables []*enginemetrics.Table) string {
	names := make([]string, len(tables))
	for i, t := range tables {
		names[i] = t.Engine
	}
	return strings.Join(names, ", ")
}

// otherwise names what a body is that is no page of metrics, if that is clear.
func otherwise(body []byte, fault *Fault) *Fault {
	switch text := bytes.TrimLeft(body[:min(len(body), 512)], " \t\r\n\ufeff"); {
	case len(text) == 0 && len(body) < 512:
		return Faultf(FaultNotMetrics, "an empty page")
	case len(text) > 0 && text[0] == '<':
		return Faultf(FaultNotMetrics, "an HTML page")
	case len(text) > 0 && (text[0] == '{' && bytes.HasPrefix(bytes.TrimLeft(text[1:], " \t\r\n"), []byte(`"`)) && !bytes.Contains(text, []byte("} ")) || text[0] == '['):
		return Faultf(FaultNotMetrics, "a JSON document")
	}
	return fault
}

// modelLabel is what vLLM, SGLang and their gateways name the model by.
const modelLabel = "model_name"

// choose settles which model counts.
func (p *page) choose(families map[string]*dto.MetricFamily, model string) {
	there := map[string]bool{}
	for _, e := range p.table.Entries {
		for _, s := range e.Sources {
			for _, m := range families[canonical(s.Name)].GetMetric() {
				for _, l := range m.Label {
					if l.GetName() == modelLabel {
						there[l.GetValue()] = true
					}
				}
			}
		}
	}
	switch {
	case len(there) < 2:
	case there[model]:
		p.model = model
	default:
		p.models = true
	}
}

// read finds the entries of p.table.
func (p *page) read(families map[string]*dto.MetricFamily) {
	for _, e := range p.table.Entries {
		kind, _ := e.Quantity.Kind()
		rs := p.first(e.Sources, e.Quantity, kind, families)
		if rs == nil {
			continue
		}
		for _, plus := range p.first(e.Plus, e.Quantity, kind, families) {
			i := slices.IndexFunc(rs, func(r reading) bool { return r.engine == plus.engine })
			if i >= 0 {
				rs[i].value += plus.value
			}
		}
		p.readings = append(p.readings, rs...)
	}
	p.derive()
}

// first reads the first source that the page has.
func (p *page) first(sources []enginemetrics.Source, q enginemetrics.Quantity, kind enginemetrics.Kind, families map[string]*dto.MetricFamily) []reading {
	for _, s := range sources {
		if f := families[canonical(s.Name)]; f != nil {
			if rs := p.family(f, s, q, kind); rs != nil {
				return rs
			}
		}
	}
	return nil
}

// family reads one family: an engine's samples are added up, but of workers that
// report the same thing each only the first counts.
func (p *page) family(f *dto.MetricFamily, s enginemetrics.Source, q enginemetrics.Quantity, kind enginemetrics.Kind) []reading {
	type group struct {
		rank    []int
		reading *reading
	}
	groups := map[string]*group{}
	for _, m := range f.Metric {
		labels := map[string]string{}
		for _, l := range m.Label {
			labels[l.GetName()] = l.GetValue()
		}
		if name, ok := labels[modelLabel]; !has(labels, s.Where) || ok && p.model != "" && name != p.model {
			continue
		}
		r := &reading{quantity: q, kind: kind, engine: p.engine(labels)}
		if !p.take(r, m, labels, s) {
			continue
		}
		rank := p.rank(labels)
		g := groups[r.engine]
		switch {
		case g == nil || slices.Compare(rank, g.rank) < 0:
			groups[r.engine] = &group{rank, r}
		case slices.Compare(rank, g.rank) == 0:
			p.add(g.reading, r)
		}
	}
	var rs []reading
	for _, engine := range slices.Sorted(maps.Keys(groups)) {
		rs = append(rs, *groups[engine].reading)
	}
	return rs
}

func has(labels, where map[string]string) bool {
	for name, v := range where {
		if labels[name] != v {
			return false
		}
	}
	return true
}

func (p *page) engine(labels map[string]string) (index string) {
	for _, name := range p.table.EngineLabels {
		if v, ok := labels[name]; ok {
			index = v
			break
		}
	}
	if name, ok := labels[modelLabel]; ok && p.models {
		return index + "/" + name
	}
	return index
}

func (p *page) rank(labels map[string]string) []int {
	rank := make([]int, len(p.table.RankLabels))
	for i, name := range p.table.RankLabels {
		rank[i], _ = strconv.Atoi(labels[name]) // unranked is first
	}
	return rank
}

// take reads the value of one sample.
func (p *page) take(r *reading, m *dto.Metric, labels map[string]string, s enginemetrics.Source) bool {
	switch {
	case s.Label != "":
		v, err := strconv.ParseFloat(labels[s.Label], 64)
		if err != nil { // "None"
			return false
		}
		r.value = v
	case m.Histogram != nil:
		h := newHistogram(m.Histogram)
		if h == nil {
			p.odd++
			return false
		}
		if r.value = h.sum; !s.Sum && r.kind == enginemetrics.Span {
			r.hist = h
		}
	default:
		r.value = value(m)
	}
	if math.IsNaN(r.value) || math.IsInf(r.value, 0) || r.kind != enginemetrics.Gauge && r.value < 0 {
		p.odd++
		return false
	}
	return true
}

// add adds b to a, which differ in labels that mean nothing here.
func (p *page) add(a, b *reading) {
	a.value += b.value
	switch {
	case a.hist == nil && b.hist == nil:
	case a.hist == nil || b.hist == nil || !slices.Equal(a.hist.bounds, b.hist.bounds):
		a.hist = nil
		p.odd++
	default:
		for i, c := range b.hist.counts {
			a.hist.counts[i] += c
		}
		a.hist.sum += b.hist.sum
		a.hist.n += b.hist.n
	}
}

// value is that of a sample that is no histogram.
func value(m *dto.Metric) float64 {
	switch {
	case m.Gauge != nil:
		return m.Gauge.GetValue()
	case m.Counter != nil:
		return m.Counter.GetValue()
	case m.Untyped != nil:
		return m.Untyped.GetValue()
	}
	return math.NaN()
}

// maxBuckets is far more than any engine has.
const maxBuckets = 1024

// newHistogram reads a histogram of the page, nil if it does not add up: a page
// that was cut between its lines, or garbage.
func newHistogram(d *dto.Histogram) *histogram {
	h := &histogram{sum: d.GetSampleSum(), n: float64(d.GetSampleCount())}
	if d.SampleSum == nil || d.SampleCount == nil || math.IsNaN(h.sum) || math.IsInf(h.sum, 0) || h.sum < 0 || len(d.Bucket) > maxBuckets {
		return nil
	}
	buckets := slices.SortedFunc(slices.Values(d.Bucket), func(a, b *dto.Bucket) int { return cmp.Compare(a.GetUpperBound(), b.GetUpperBound()) })
	before := 0.0
	for i, b := range buckets {
		bound, total := b.GetUpperBound(), float64(b.GetCumulativeCount())
		if math.IsNaN(bound) || total < before || i > 0 && bound <= buckets[i-1].GetUpperBound() {
			return nil
		}
		if math.IsInf(bound, 1) {
			break
		}
		h.bounds, h.counts = append(h.bounds, bound), append(h.counts, total-before)
		before = total
	}
	if before > h.n {
		return nil
	}
	h.counts = append(h.counts, h.n-before)
	return h
}

// derive adds what follows from other quantities of the same engine: capacity
// from blocks, tokens in use from the share, and the share from tokens.
func (p *page) derive() {
	type kv struct{ usage, capacity, used, blocks, block float64 }
	engines := map[string]*kv{}
	for _, r := range p.readings {
		if r.kind != enginemetrics.Gauge {
			continue
		}
		e := engines[r.engine]
		if e == nil {
			e = &kv{-1, -1, -1, -1, -1}
			engines[r.engine] = e
		}
		switch r.quantity {
		case enginemetrics.KVUsage:
			e.usage = r.value
		case enginemetrics.KVCapacity:
			e.capacity = r.value
		case enginemetrics.KVUsed:
			e.used = r.value
		case enginemetrics.KVBlocks:
			e.blocks = r.value
		case enginemetrics.KVBlock:
			e.block = r.value
		}
	}
	for _, engine := range slices.Sorted(maps.Keys(engines)) {
		e := engines[engine]
		put := func(q enginemetrics.Quantity, v float64) {
			p.readings = append(p.readings, reading{quantity: q, kind: enginemetrics.Gauge, engine: engine, value: v})
		}
		if e.capacity < 0 && e.blocks > 0 && e.block > 0 {
			e.capacity = e.blocks * e.block
			put(enginemetrics.KVCapacity, e.capacity)
		}
		switch {
		case e.used < 0 && e.usage >= 0 && e.capacity > 0:
			put(enginemetrics.KVUsed, e.usage*e.capacity)
		case e.usage < 0 && e.used >= 0 && e.capacity > 0:
			put(enginemetrics.KVUsage, e.used/e.capacity)
		}
	}
}

// quantile estimates one from the buckets, as Prometheus does: values lie evenly
// within a bucket, the first begins at 0, and what lies in the last, which has no
// end, is taken for its beginning. NaN where there is no value.
func (h *histogram) quantile(p float64) float64 {
	if h.n <= 0 || len(h.bounds) == 0 {
		return math.NaN()
	}
	rank, before := p*h.n, 0.0
	for i, c := range h.counts[:len(h.bounds)] {
		if before+c >= rank && c > 0 {
			from := 0.0
			if i > 0 {
				from = h.bounds[i-1]
			} else if h.bounds[0] <= 0 {
				return h.bounds[0]
			}
			return from + (h.bounds[i]-from)*(rank-before)/c
		}
		before += c
	}
	return h.bounds[len(h.bounds)-1]
}

// bucket is the one that the quantile lies in: its bounds, without the upper
// one where it is the last.
func (h *histogram) bucket(p float64) []float64 {
	before, from := 0.0, 0.0
	for i, c := range h.counts {
		if before += c; before >= p*h.n && c > 0 {
			if i == len(h.bounds) {
				break
			}
			return []float64{min(from, h.bounds[i]), h.bounds[i]}
		}
		if i < len(h.bounds) {
			from = h.bounds[i]
		}
	}
	return []float64{from}
}

// since is what was added to h after last, and all of h where the engine began
// anew in between, or renamed its buckets.
func (h *histogram) since(last *histogram) *histogram {
	if last == nil || h.n < last.n || !slices.Equal(h.bounds, last.bounds) {
		return h
	}
	d := &histogram{bounds: h.bounds, counts: make([]float64, len(h.counts)), sum: max(0, h.sum-last.sum), n: h.n - last.n}
	for i := range h.counts {
		if d.counts[i] = h.counts[i] - last.counts[i]; d.counts[i] < 0 {
			return h
		}
	}
	return d
}
