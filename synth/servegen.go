package synth

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// ServeGen (alibaba/ServeGen, arXiv:2505.09999) publishes its clients as rates
// and gap shapes by windows of 600 s, chunk-N-trace.csv, and distributions of
// lengths by windows of 6 h, chunk-N-dataset.json. That is a model already, and
// is taken as one: no trace is made of it in between.

// Bounds of what is read.
const (
	maxServeGenClients = 10_000
	maxServeGenBytes   = 64 << 20
	maxPMF             = 1 << 20
)

var (
	serveGenTrace = regexp.MustCompile(`^chunk-(\d{1,6})-trace\.csv$`)
	errServeGen   = errors.New("not a folder of ServeGen clients")
)

// IsServeGen says whether a folder holds ServeGen's clients.
func IsServeGen(dir string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return serveGenTrace.MatchString(e.Name()) })
}

// FromServeGen makes a model of the clients in a folder. Windows from seconds
// on are left out; 0 takes all.
func FromServeGen(dir fs.FS, seconds float64, o FitOptions) (*Model, error) {
	entries, err := fs.ReadDir(dir, ".")
	if err != nil {
		return nil, err
	}
	var numbers []int
	for _, e := range entries {
		if m := serveGenTrace.FindStringSubmatch(e.Name()); m != nil {
			n, err := strconv.Atoi(m[1])
			if err != nil {
				return nil, fmt.Errorf("%s: %w", e.Name(), err)
			}
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	switch {
	case len(numbers) == 0:
		return nil, fmt.Errorf("%w: it has no chunk-N-trace.csv", errServeGen)
	case len(numbers) > maxServeGenClients:
		return nil, fmt.Errorf("%w: more than %d clients", errServeGen, maxServeGenClients)
	}
	m := &Model{Format: ModelFormat, Version: ModelVersion, Name: o.Name, Source: o.Source}
	m.Source.Dialect = "servegen"
	lengths := 0
	for _, n := range numbers {
		c, window, err := serveGenClient(dir, n, seconds)
		if err != nil {
			return nil, err
		}
		if c == nil {
			continue // never active
		}
		m.Horizon = max(m.Horizon, window)
		if c.Lengths != nil {
			lengths++
		}
		m.Clients = append(m.Clients, *c)
	}
	if len(m.Clients) == 0 {
		return nil, fmt.Errorf("%w: no client is ever active", ErrFit)
	}
	m.Source.Seconds = m.Horizon
	m.Fit = &FitReport{Chosen: "clients", Verdict: "taken over from the published rates and distributions; there are no rows to score it on"}
	m.DoesNotKeep = append(m.DoesNotKeep, "how input and output depend on each other: the source gives each alone", "sessions and prefixes: the source has none")
	if lengths < len(m.Clients) {
		m.DoesNotKeep = append(m.DoesNotKeep, fmt.Sprintf("lengths of %d of %d clients: the source does not give them", len(m.Clients)-lengths, len(m.Clients)))
	}
	return m, m.Check()
}

// serveGenClient reads one client; nil is one that is never active. window is
// the time that it describes.
func serveGenClient(dir fs.FS, n int, seconds float64) (c *Client, window float64, err error) {
	name := fmt.Sprintf("chunk-%d-trace.csv", n)
	p, rate, err := serveGenProfile(dir, name, seconds)
	if err != nil || rate == 0 {
		return nil, 0, err
	}
	c = &Client{Slot: n, Name: fmt.Sprintf("client-%d", n), Weight: 1, Arrivals: Arrivals{Kind: ArrivalsProfile, Rate: significant(rate, 4), Profile: p}}
	data := path.Join(".", fmt.Sprintf("chunk-%d-dataset.json", n))
	b, err := readBounded(dir, data)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return c, p.duration(), nil
	case err != nil:
		return nil, 0, err
	}
	if err := serveGenLengths(b, c); err != nil {
		return nil, 0, fmt.Errorf("%s: %w", data, err)
	}
	return c, p.duration(), nil
}

func readBounded(dir fs.FS, name string) ([]byte, error) {
	f, err := dir.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxServeGenBytes+1))
	if err == nil && len(b) > maxServeGenBytes {
		err = fmt.Errorf("%s: larger than %d MiB", name, maxServeGenBytes>>20)
	}
	return b, err
}

// serveGenProfile reads window_start_s, rate, cv, pattern, shape, scale.
func serveGenProfile(dir fs.FS, name string, seconds float64) (*Profile, float64, error) {
	b, err := readBounded(dir, name)
	if err != nil {
		return nil, 0, err
	}
	var rates, shapes []float64
	var kinds []byte
	var width, last, sum float64
	in := bufio.NewScanner(bytes.NewReader(b))
	for line := 1; in.Scan(); line++ {
		bad := func(what string) error { return fmt.Errorf("%s: line %d: %s", name, line, what) }
		f := strings.Split(strings.TrimSpace(in.Text()), ",")
		if len(f) != 6 {
			return nil, 0, bad(fmt.Sprintf("%d fields, want 6", len(f)))
		}
		var x [6]float64
		for _, i := range []int{0, 1, 2, 4, 5} {
			if x[i], err = strconv.ParseFloat(f[i], 64); err != nil || !finite(x[i]) || x[i] < 0 || x[i] > maxHorizon {
				return nil, 0, bad(fmt.Sprintf("field %d is no number that fits", i+1))
			}
		}
		switch {
		case line == 1 && x[0] != 0:
			return nil, 0, bad("the first window does not start at 0")
		case line == 2:
			width = x[0]
		}
		if line > 1 && (width <= 0 || math.Abs(x[0]-last-width) > 1e-6*width) {
			return nil, 0, bad("windows are not equally long")
		}
		if last = x[0]; seconds > 0 && x[0] >= seconds {
			break
		}
		if len(rates) == maxWindows {
			return nil, 0, bad("too many windows")
		}
		kind := byte('g')
		shape := min(1e6, max(minShape, x[4]))
		switch f[3] {
		case "Weibull":
			kind = 'w'
		case "Gamma":
		case "":
			shape = 1
			if x[1] != 0 {
				return nil, 0, bad("a rate without a pattern")
			}
		default:
			return nil, 0, bad(fmt.Sprintf("pattern %q is not known", clip(f[3])))
		}
		sum += x[1]
		rates, shapes, kinds = append(rates, x[1]), append(shapes, significant(shape, 2)), append(kinds, kind)
	}
	if err := in.Err(); err != nil {
		return nil, 0, fmt.Errorf("%s: %w", name, err)
	}
	if len(rates) < 2 {
		return nil, 0, fmt.Errorf("%s: %d windows say nothing", name, len(rates))
	}
	p := &Profile{Window: width, Windows: len(rates), Order: OrderRecorded, Beyond: OrderRecorded, Block: 36 * width}
	p.Spans = spans(rates)
	for i := range p.Spans {
		s := &p.Spans[i]
		for k, r := range s.Rates {
			s.Rates[k] = significant(r, 3)
		}
		end := s.At + len(s.Rates)
		s.Shapes, s.Kinds = shapes[s.At:end], string(kinds[s.At:end])
		for k := range s.Shapes {
			s.Shapes[k] = max(minShape, s.Shapes[k])
		}
	}
	return p, sum / float64(len(rates)), nil
}

// serveGenLengths joins the distributions of all windows, each as heavy as the
// requests in it, and keeps how inputs change from window to window.
func serveGenLengths(b []byte, c *Client) error {
	var windows map[string]map[string]string
	if err := json.Unmarshal(b, &windows); err != nil {
		return located(b, err)
	}
	type part struct {
		at     float64
		weight float64
		fields map[string]pmf
	}
	p := c.Arrivals.Profile
	rates := p.rates()
	var parts []part
	for start, fields := range windows {
		at, err := strconv.ParseFloat(start, 64)
		if err != nil || !finite(at) || at < 0 {
			return fmt.Errorf("window %q does not start at a time", clip(start))
		}
		w := part{at: at, fields: map[string]pmf{}}
		for name, text := range fields {
			if w.fields[name], err = parsePMF(text); err != nil {
				return fmt.Errorf("window %s: %s: %w", clip(start), clip(name), err)
			}
		}
		parts = append(parts, w)
	}
	slices.SortFunc(parts, func(a, b part) int {
		switch {
		case a.at < b.at:
			return -1
		case a.at > b.at:
			return 1
		}
		return 0
	})
	for i := range parts {
		end := p.duration()
		if i+1 < len(parts) {
			end = parts[i+1].at
		}
		for k := int(parts[i].at / p.Window); k < len(rates) && float64(k)*p.Window < end; k++ {
			parts[i].weight += rates[k]
		}
	}
	joined := func(name string) pmf {
		all := pmf{}
		for _, w := range parts {
			if d := w.fields[name]; len(d.values) > 0 && w.weight > 0 {
				all.add(d, w.weight)
			}
		}
		return all.sorted()
	}
	in, out, reason := joined("input_tokens"), joined("output_tokens"), joined("reason_ratio")
	if len(in.values) == 0 && len(out.values) == 0 {
		return nil
	}
	l := &Lengths{}
	if len(in.values) > 0 {
		l.In, l.InKnown = fitMarginal(in.whole(pmfRows)), 1
	}
	if len(out.values) > 0 {
		l.Out, l.OutKnown = fitMarginal(out.whole(pmfRows)), 1
	}
	if len(reason.values) > 0 {
		shares := reason.draws(pmfRows)
		zero := 0
		for zero < len(shares) && shares[zero] <= 0 {
			zero++
		}
		bin := PartBin{Zero: rounded(float64(zero)/float64(len(shares)), 5)}
		if zero < len(shares) {
			for i := range shares {
				shares[i] = min(1, shares[i])
			}
			bin.Share = fitContinuous(shares[zero:], 32)
		}
		l.Reasoning = &Part{Known: 1, Bins: []PartBin{bin}}
	}
	c.Lengths = l
	return nil
}

// pmfRows is how finely a distribution is turned into rows before it is
// described.
const pmfRows = 20_000

// A pmf is values with weights.
type pmf struct{ values, weights []float64 }

func (d *pmf) add(o pmf, weight float64) {
	for i, v := range o.values {
		d.values, d.weights = append(d.values, v), append(d.weights, o.weights[i]*weight)
	}
}

func (d pmf) sorted() pmf {
	order := make([]int, len(d.values))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int {
		switch {
		case d.values[i] < d.values[j]:
			return -1
		case d.values[i] > d.values[j]:
			return 1
		}
		return 0
	})
	var s pmf
	for _, i := range order {
		s.values, s.weights = append(s.values, d.values[i]), append(s.weights, d.weights[i])
	}
	return s
}

// draws are n evenly spaced quantiles of a sorted pmf.
func (d pmf) draws(n int) []float64 {
	total := 0.0
	for _, w := range d.weights {
		total += w
	}
	x, k, before := make([]float64, n), 0, 0.0
	for i := range x {
		target := (float64(i) + 0.5) / float64(n) * total
		for k < len(d.values)-1 && before+d.weights[k] < target {
			before += d.weights[k]
			k++
		}
		x[i] = d.values[k]
	}
	return x
}

func (d pmf) whole(n int) []int32 {
	x := make([]int32, n)
	for i, v := range d.draws(n) {
		x[i] = int32(min(maxTokens, max(0, math.Round(v))))
	}
	return x
}

// parsePMF reads {value: probability, ...}, which is how a dictionary of Python
// prints; nothing is evaluated.
func parsePMF(text string) (pmf, error) {
	var d pmf
	text = strings.TrimSpace(text)
	body, ok := strings.CutPrefix(text, "{")
	if body, ok = cutSuffix(body, "}", ok); !ok {
		return d, errors.New("want {value: probability, ...}")
	}
	sum := 0.0
	for pair := range strings.SplitSeq(body, ",") {
		if strings.TrimSpace(pair) == "" {
			continue
		}
		v, p, ok := strings.Cut(pair, ":")
		value, err1 := strconv.ParseFloat(strings.TrimSpace(v), 64)
		weight, err2 := strconv.ParseFloat(strings.TrimSpace(p), 64)
		if !ok || err1 != nil || err2 != nil || !finite(value, weight) || weight < 0 || value < 0 || value > maxTokens {
			return d, fmt.Errorf("entry %d is no value and probability", len(d.values)+1)
		}
		if len(d.values) == maxPMF {
			return d, errors.New("too many entries")
		}
		sum += weight
		d.values, d.weights = append(d.values, value), append(d.weights, weight)
	}
	if len(d.values) > 0 && !(sum > 0 && finite(sum)) {
		return d, errors.New("the probabilities add up to nothing")
	}
	return d, nil
}

func cutSuffix(s, suffix string, ok bool) (string, bool) {
	s, found := strings.CutSuffix(s, suffix)
	return s, ok && found
}
