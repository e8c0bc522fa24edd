package synth

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"gonum.org/v1/gonum/stat/distuv"
)

// A Spec describes traffic in a few words, without any data:
//
//	rate=20,arrival=gamma:cv=2,prompt-tokens=lognormal:512,0.8,output-tokens=fixed:128
//
// Keys are those of [SpecKeys]. Set takes one, ParseSpec a list.
type Spec struct {
	Rate         float64
	Arrival      string
	CV           float64 // of gamma and weibull gaps
	Prompt       Dist
	Output       Dist
	Turns        Dist
	Turn         Dist // tokens that a later turn adds beside the answer; empty: as Prompt
	Think        Dist // seconds
	SharedPrefix float64
	Prefixes     int
	BlockSize    int
	Clients      int
	Zipf         float64 // exponent of the clients' shares, 0 equal
	Duration     time.Duration
}

// A SpecKey is a word of a Spec.
type SpecKey struct{ Name, Usage string }

// SpecKeys lists the words of a Spec, for flags and help texts.
func SpecKeys() []SpecKey {
	return []SpecKey{
		{"rate", "requests a second (sessions a second with turns)"},
		{"arrival", "poisson, fixed, gamma:cv=2 or weibull:cv=2"},
		{"prompt-tokens", "distribution of prompt lengths: " + distForms},
		{"output-tokens", "distribution of output lengths"},
		{"turns", "distribution of requests in a session, such as geometric:4"},
		{"turn-tokens", "tokens that a later turn adds beside the answer before (as prompt-tokens)"},
		{"think", "distribution of seconds between an answer and the next turn"},
		{"shared-prefix", "share of each prompt that is a common prefix, 0 to 1"},
		{"prefixes", "number of such prefixes"},
		{"block-size", "tokens in a prefix block"},
		{"clients", "number of clients, such as 10 or 10:zipf=1.1"},
		{"length", "how long a trace is unless said, such as 10m"},
	}
}

const distForms = "fixed:128, uniform:16,512, normal:512,100, lognormal:MEDIAN,SIGMA, exponential:MEAN, gamma:MEAN,CV, geometric:MEAN, pareto:LEAST,INDEX; each with max=N"

// DefaultSpec is what is not said.
func DefaultSpec() *Spec {
	return &Spec{
		Rate: 1, Arrival: ArrivalsExponential, CV: 1, Prefixes: 1, BlockSize: 64, Clients: 1, Duration: 10 * time.Minute,
		Prompt: Dist{Kind: "lognormal", A: 512, B: 0.8}, Output: Dist{Kind: "lognormal", A: 128, B: 0.8},
		Turns: Dist{Kind: "fixed", A: 1}, Think: Dist{Kind: "exponential", A: 10},
	}
}

// ParseSpec reads key=value,key=value. A value may hold commas: what does not
// begin with a known key belongs to the value before.
func ParseSpec(text string) (*Spec, error) {
	s := DefaultSpec()
	type pair struct{ key, value string }
	var pairs []pair
	for part := range strings.SplitSeq(text, ",") {
		key, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		if ok && slices.ContainsFunc(SpecKeys(), func(k SpecKey) bool { return k.Name == key }) {
			pairs = append(pairs, pair{key, value})
			continue
		}
		if len(pairs) == 0 {
			return nil, fmt.Errorf("traffic %q: want key=value, with keys %s", clip(text), keyNames())
		}
		pairs[len(pairs)-1].value += "," + part
	}
	var errs []error
	for _, p := range pairs {
		errs = append(errs, s.Set(p.key, p.value))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return s, nil
}

func keyNames() string {
	var names []string
	for _, k := range SpecKeys() {
		names = append(names, k.Name)
	}
	return strings.Join(names, ", ")
}

// Set changes one key.
func (s *Spec) Set(key, value string) (err error) {
	number := func(min, max float64) float64 {
		x, e := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if e != nil || !(x >= min && x <= max) {
			err = fmt.Errorf("%s: %q is no number from %v to %v", key, clip(value), min, max)
		}
		return x
	}
	count := func(max int) int {
		n, e := strconv.Atoi(strings.TrimSpace(value))
		if e != nil || n < 1 || n > max {
			err = fmt.Errorf("%s: %q is no count from 1 to %d", key, clip(value), max)
		}
		return n
	}
	dist := func(d *Dist, min, max float64) {
		if *d, err = ParseDist(value); err == nil {
			err = d.within(min, max)
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", key, err)
		}
	}
	switch key {
	case "rate":
		s.Rate = number(1e-9, 1e6)
	case "arrival":
		err = s.setArrival(value)
	case "prompt-tokens":
		dist(&s.Prompt, 0, maxTokens)
	case "output-tokens":
		dist(&s.Output, 0, maxTokens)
	case "turns":
		dist(&s.Turns, 1, 1e6)
	case "turn-tokens":
		dist(&s.Turn, 0, maxTokens)
	case "think":
		dist(&s.Think, 0, maxHorizon)
	case "shared-prefix":
		s.SharedPrefix = number(0, 1)
	case "prefixes":
		s.Prefixes = count(1000)
	case "block-size":
		s.BlockSize = count(1 << 20)
	case "clients":
		n, zipf, ok := strings.Cut(value, ":")
		value = n
		s.Clients = count(10_000)
		if ok && err == nil {
			value = strings.TrimPrefix(zipf, "zipf=")
			s.Zipf = number(0, 10)
		}
	case "length":
		d, e := time.ParseDuration(strings.TrimSpace(value))
		if e != nil || d <= 0 || d > maxHorizon*time.Second {
			return fmt.Errorf("length: %q is no time such as 10m", clip(value))
		}
		s.Duration = d
	default:
		return fmt.Errorf("key %q is not known, want one of %s", clip(key), keyNames())
	}
	return err
}

func (s *Spec) setArrival(value string) error {
	kind, args, _ := strings.Cut(strings.TrimSpace(value), ":")
	names := map[string]string{"poisson": ArrivalsExponential, "exponential": ArrivalsExponential, "fixed": ArrivalsFixed, "constant": ArrivalsFixed, "gamma": ArrivalsGamma, "weibull": ArrivalsWeibull}
	known, ok := names[kind]
	if !ok {
		return fmt.Errorf("arrival: %q is not known, want poisson, fixed, gamma:cv=2 or weibull:cv=2", clip(kind))
	}
	s.Arrival, s.CV = known, 1
	if args == "" {
		return nil
	}
	if known == ArrivalsExponential || known == ArrivalsFixed {
		return fmt.Errorf("arrival: %s takes no %q", kind, clip(args))
	}
	x, err := strconv.ParseFloat(strings.TrimPrefix(args, "cv="), 64)
	if err != nil || !(x >= 0.01 && x <= 30) {
		return fmt.Errorf("arrival: %q is no coefficient of variation from 0.01 to 30", clip(args))
	}
	s.CV = x
	return nil
}

// A Dist is a distribution in a word and up to two numbers.
type Dist struct {
	Kind string
	A, B float64
	Max  float64 // 0: none
}

var distKinds = map[string]int{"fixed": 1, "uniform": 2, "normal": 2, "lognormal": 2, "exponential": 1, "gamma": 2, "geometric": 1, "pareto": 2}

// ParseDist reads kind:a,b,max=c, or a number alone.
func ParseDist(text string) (Dist, error) {
	text = strings.TrimSpace(text)
	if x, err := strconv.ParseFloat(text, 64); err == nil && finite(x) {
		return Dist{Kind: "fixed", A: x}, nil
	}
	kind, rest, _ := strings.Cut(text, ":")
	n, ok := distKinds[kind]
	if !ok {
		return Dist{}, fmt.Errorf("distribution %q is not known, want %s", clip(kind), distForms)
	}
	d := Dist{Kind: kind}
	var args []float64
	for part := range strings.SplitSeq(rest, ",") {
		limit, isMax := strings.CutPrefix(strings.TrimSpace(part), "max=")
		x, err := strconv.ParseFloat(limit, 64)
		if err != nil || !finite(x) {
			return d, fmt.Errorf("%s: %q is no number", kind, clip(part))
		}
		if isMax {
			d.Max = x
		} else {
			args = append(args, x)
		}
	}
	if len(args) != n {
		return d, fmt.Errorf("%s takes %d numbers, not %d", kind, n, len(args))
	}
	d.A = args[0]
	if n > 1 {
		d.B = args[1]
	}
	return d, d.check()
}

func (d Dist) check() error {
	bad := false
	switch d.Kind {
	case "uniform":
		bad = d.B < d.A
	case "normal":
		bad = d.B < 0
	case "lognormal":
		bad = d.A <= 0 || d.B < 0 || d.B > 10
	case "exponential":
		bad = d.A <= 0
	case "gamma", "pareto":
		bad = d.A <= 0 || d.B <= 0
	case "geometric":
		bad = d.A < 1
	}
	if bad {
		return fmt.Errorf("%s: %v,%v are no parameters of it", d.Kind, d.A, d.B)
	}
	return nil
}

// within says whether the distribution lies in a range; tails are cut at it.
func (d Dist) within(min, max float64) error {
	if m := d.quantile(0.5); !(m >= min && m <= max) {
		return fmt.Errorf("%s of median %.4g does not lie from %v to %v", d.Kind, m, min, max)
	}
	return nil
}

// quantile is the inverse of the distribution function.
func (d Dist) quantile(p float64) float64 {
	switch d.Kind {
	case "uniform":
		return d.A + p*(d.B-d.A)
	case "normal":
		return d.A + d.B*distuv.UnitNormal.Quantile(p)
	case "lognormal":
		return d.A * math.Exp(d.B*distuv.UnitNormal.Quantile(p))
	case "exponential":
		return -d.A * math.Log1p(-p)
	case "gamma":
		shape := 1 / (d.B * d.B)
		return distuv.Gamma{Alpha: shape, Beta: shape / d.A}.Quantile(p)
	case "geometric":
		if d.A == 1 {
			return 1
		}
		return math.Max(1, math.Ceil(math.Log1p(-p)/math.Log1p(-1/d.A)))
	case "pareto":
		return d.A * math.Pow(1-p, -1/d.B)
	}
	return d.A
}

// tailEnd is where distributions without an end are cut.
const tailEnd = 1 - 1e-5

// marginal describes the distribution within a range; whole numbers occupy the
// unit around them.
func (d Dist) marginal(min, max float64, whole bool) *Marginal {
	if d.Max > 0 {
		max = math.Min(max, d.Max)
	}
	clamp := func(x float64) float64 { return math.Min(max, math.Max(min, x)) }
	if d.Kind == "fixed" {
		v := clamp(d.A)
		if whole {
			v = math.Round(v)
		}
		return &Marginal{Atoms: [][2]float64{{v, 1}}, Min: v, Max: v}
	}
	if d.Kind == "geometric" {
		m := &Marginal{Min: min, Max: min}
		for k, before := 1.0, 0.0; before < tailEnd && k < 10_000; k++ {
			p := -math.Expm1(k * math.Log1p(-1/d.A))
			if k >= max {
				p = 1
			}
			m.Atoms, m.Max = append(m.Atoms, [2]float64{k, p - before}), k
			if before = p; p == 1 {
				break
			}
		}
		return m
	}
	m := &Marginal{}
	for _, p := range levels(1<<20, 512) {
		v := clamp(d.quantile(math.Min(tailEnd, math.Max(1-tailEnd, p))))
		m.Levels, m.Values = append(m.Levels, p), append(m.Values, v)
	}
	m.Min, m.Max = m.Values[0], m.Values[len(m.Values)-1]
	if whole {
		m.Min, m.Max = math.Round(m.Min), math.Round(m.Max)
	}
	return m
}

// plus is the distribution of a sum of independent draws.
func plus(a, b *Marginal) *Marginal {
	qa, qb, s := a.quantiler(), b.quantiler(), newStream(1)
	sums := make([]int32, 1<<15)
	for i := range sums {
		sums[i] = int32(math.Min(maxTokens, math.Round(qa.real(s.uniform())+qb.real(s.uniform()))))
	}
	return fitMarginal(sums)
}

// weibullByCV is the shape whose gaps have a coefficient of variation.
func weibullByCV(cv float64) float64 {
	return bisect(0.05, 200, func(k float64) float64 {
		a, _ := math.Lgamma(1 + 2/k)
		b, _ := math.Lgamma(1 + 1/k)
		return a - 2*b - math.Log1p(cv*cv)
	})
}

// Model turns the description into a model.
func (s *Spec) Model() (*Model, error) {
	m := &Model{Format: ModelFormat, Version: ModelVersion, Name: "synthetic", Horizon: s.Duration.Seconds(),
		Source: Source{Program: "written down, not learnt", Lengths: "cumulative"}}
	sessions := s.Turns.Kind != "fixed" || s.Turns.A > 1
	longest := float64(maxTokens)
	if sessions || s.SharedPrefix > 0 {
		longest = math.Min(longest, float64(s.BlockSize)*maxBlocks)
	}
	c := Client{Weight: 1, Arrivals: Arrivals{Kind: s.Arrival}, Lengths: &Lengths{InKnown: 1, OutKnown: 1,
		In: s.Prompt.marginal(1, longest, true), Out: s.Output.marginal(1, maxTokens, true)}}
	switch s.Arrival {
	case ArrivalsGamma:
		c.Arrivals.Shape = 1 / (s.CV * s.CV)
	case ArrivalsWeibull:
		c.Arrivals.Shape = weibullByCV(s.CV)
	}
	if sessions {
		add := s.Turn
		if add.Kind == "" {
			add = s.Prompt
		}
		first := c.Lengths.In
		grown := plus(add.marginal(1, maxTokens, true), c.Lengths.Out)
		turns := s.Turns.marginal(1, 1e6, true)
		c.Sessions = &Sessions{Turns: turns, Think: s.Think.marginal(0, maxHorizon, false), First: first, Growth: []*Marginal{grown}, KeepAll: 1}
		// The limit of a prompt is that of the longest session.
		wide := *first
		wide.Max = math.Min(longest, first.Max+grown.Max*turns.Max)
		c.Lengths.In = &wide
	}
	if sessions || s.SharedPrefix > 0 {
		m.Blocks = &Blocks{Size: int32(s.BlockSize), Partial: "dropped", Window: 1, Entries: 1024}
		c.Prefixes = s.prefixes()
	}
	shares := make([]float64, s.Clients)
	sum := 0.0
	for i := range shares {
		shares[i] = math.Pow(float64(i+1), -s.Zipf)
		sum += shares[i]
	}
	for i, w := range shares {
		one := c
		one.Slot = i
		one.Arrivals.Rate = s.Rate * w / sum
		if s.Clients > 1 {
			one.Name = fmt.Sprintf("client-%d", i+1)
		}
		m.Clients = append(m.Clients, one)
	}
	return m, m.Check()
}

// prefixes makes every prompt begin with a share of blocks of one of the common
// prefixes, each a chain of blocks of which long prompts take more.
func (s *Spec) prefixes() *Prefixes {
	p := &Prefixes{}
	if s.SharedPrefix > 0 {
		q := s.Prompt.marginal(1, maxTokens, true)
		longest := int(q.Max) / s.BlockSize
		for d := 1; d <= longest; d += max(1, d/16) {
			p.Edges = append(p.Edges, d)
		}
	}
	k := len(p.Edges) + 1
	p.Continue, p.All = make([]float64, k), make([]float64, k)
	p.Append, p.Depth, p.Gap = make([]*Marginal, k), make([]*Marginal, k), make([]*Marginal, k)
	if len(p.Edges) == 0 {
		return p // nothing is shared, or no prompt fills a block
	}
	rootOf := make([]int, k) // index in a chain, -1 none
	var depths []int
	for i := range rootOf {
		edge := p.Edges[min(i, k-2)]
		depth := min(maxRootDepth, int(math.Round(s.SharedPrefix*float64(edge))))
		rootOf[i] = len(depths) - 1
		if depth > 0 && (len(depths) == 0 || depth > depths[len(depths)-1]) {
			depths = append(depths, depth)
			rootOf[i]++
		}
	}
	for chain := range s.Prefixes {
		for i, d := range depths {
			parent := -1
			if i > 0 {
				parent = chain*len(depths) + i - 1
			}
			p.Roots = append(p.Roots, Root{Parent: parent, Depth: d})
		}
	}
	if len(p.Roots) == 0 {
		return p
	}
	for _, at := range rootOf {
		row := make([]int, len(p.Roots)+1)
		if at < 0 {
			row[0] = 1
		} else {
			for chain := range s.Prefixes {
				row[1+chain*len(depths)+at] = 1
			}
		}
		p.Popular = append(p.Popular, row)
	}
	return p
}
