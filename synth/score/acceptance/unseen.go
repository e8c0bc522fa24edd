package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
	"time"

	"reprise/synth"
	"reprise/synth/score"
)

// A claim is what a fit said of itself, and what it then did on traffic that it
// had not seen: other stretches of the
// public traces, in other order; other services; other sessions; another prefix
// structure.
type claim struct {
	Case    string        `json:"case"`
	Rows    [2]int        `json:"rows"` // learnt from, tested on
	Chosen  string        `json:"chosen"`
	Fits    bool          `json:"fits"`
	Same    bool          `json:"same_hour"`
	Unseen  synth.Unseen  `json:"unseen"`
	Said    string        `json:"said"`
	Figures []claimFigure `json:"figures"`
}

// A claimFigure is one metric on the unseen trace; the limit is 1.5 times the
// floor for lengths, and the table's for queues where the floor is below it.
type claimFigure struct {
	Name    string       `json:"name"`
	Value   score.Number `json:"value"`
	Low     score.Number `json:"limit_low"`
	High    score.Number `json:"limit_high"`
	Floor   score.Number `json:"floor"`
	Verdict string       `json:"verdict"`
}

func (c *claim) misses() []string {
	var names []string
	for _, f := range c.Figures {
		if f.Verdict == "fail" {
			names = append(names, fmt.Sprintf("%s %s (%s)", f.Name, number(float64(f.Value)), (&figure{Low: f.Low, High: f.High}).limit()))
		}
	}
	return names
}

// verdict: near is what a model is for, told what it is honest about, and
// over-claimed the worst outcome.
func (c *claim) verdict() string {
	switch {
	case len(c.Figures) == 0:
		return "not measured"
	case len(c.misses()) == 0:
		return "near"
	case c.Fits:
		return "over-claimed"
	}
	return "off, and said so"
}

// stretch is one pair of traces.
type stretch struct {
	name        string
	train, test *score.Sample
	from        bool // the test follows the training
}

// unseenSeeds are enough for a median of what has wide limits.
const unseenSeeds = 5

func (o *options) unseen(ctx context.Context) ([]claim, error) {
	var pairs []stretch
	for _, name := range []string{"conv", "code", "moon"} {
		s, err := o.load(ctx, name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		title := strings.ToLower(titleOf(name))
		third := func(k float64) *score.Sample { return s.Slice(k*s.Horizon/3, (k+1)*s.Horizon/3) }
		first, second := s.Halves()
		pairs = append(pairs,
			stretch{title + ", second half, then the first", second, first, true},
			stretch{title + ", first third, then the last", third(0), third(2), true},
			stretch{title + ", last third, then the second", third(2), third(1), true},
			stretch{title + ", second quarter, then the third", s.Slice(s.Horizon/4, s.Horizon/2), s.Slice(s.Horizon/2, s.Horizon*3/4), true})
	}
	if s, err := o.loadSessions(ctx); err == nil {
		a, b := s.SessionFold(0, 2, 11)
		pairs = append(pairs, stretch{"coding sessions, one half, then the other", a, b, false})
	} else if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	// Other services: hours of ServeGen's clients, thinned to what an hour of the
	// other traces has. Their rates change from hour to hour as published.
	for _, g := range []struct {
		model string
		hour  int
		rate  float64
	}{{"servegen-m-mid", 20, 6}, {"servegen-m-mid", 80, 6}, {"servegen-m-mid", 130, 6}, {"servegen-deepseek-r1", 9, 6}, {"servegen-deepseek-r1", 15, 6}} {
		m, err := synth.Load(g.model)
		if err != nil {
			return nil, err
		}
		at := func(hour int) (*score.Sample, error) {
			s, err := m.Sample(ctx, synth.GenOptions{Seed: 1, From: time.Duration(hour) * time.Hour, Duration: time.Hour, Rate: g.rate / m.Rate()})
			if err == nil {
				s.Horizon = 3600
			}
			return s, err
		}
		a, err := at(g.hour)
		if err != nil {
			return nil, err
		}
		b, err := at(g.hour + 1)
		if err != nil {
			return nil, err
		}
		pairs = append(pairs, stretch{fmt.Sprintf("%s, hour %d, then %d", g.model, g.hour, g.hour+1), a, b, true})
	}
	// Other prefixes: chats of several turns with blocks of 16 tokens, whose truth
	// is known because it is written down.
	for _, text := range []string{
		"rate=5,arrival=gamma:cv=2,prompt-tokens=lognormal:900,0.8,output-tokens=lognormal:200,0.7,shared-prefix=0.4,prefixes=8,block-size=64",
		"rate=2,arrival=exponential,prompt-tokens=lognormal:400,0.6,output-tokens=lognormal:200,0.7,turns=geometric:4,shared-prefix=0.3,prefixes=3,block-size=16",
	} {
		spec, err := synth.ParseSpec(text)
		if err != nil {
			return nil, err
		}
		m, err := spec.Model()
		if err != nil {
			return nil, err
		}
		var two [2]*score.Sample
		for k := range two {
			if two[k], err = m.Sample(ctx, synth.GenOptions{Seed: uint64(k + 1), Duration: time.Hour}); err != nil {
				return nil, err
			}
			two[k].Horizon = 3600
		}
		name := "made up: prompts that share beginnings"
		if strings.Contains(text, "turns") {
			name = "made up: chats"
		}
		pairs = append(pairs, stretch{name, two[0], two[1], true})
	}
	var claims []claim
	for _, p := range pairs {
		fmt.Fprintf(o.stderr, "unseen: %s\n", p.name)
		c, err := o.claim(ctx, p)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.name, err)
		}
		claims = append(claims, *c)
	}
	return claims, nil
}

func titleOf(name string) string {
	for _, t := range traceTitles {
		if t.name == name {
			return t.title
		}
	}
	return name
}

// claim fits one stretch and measures on the other.
func (o *options) claim(ctx context.Context, p stretch) (*claim, error) {
	m, r, err := synth.Fit(ctx, p.train, synth.FitOptions{Name: p.name, Seed: 1})
	if err != nil {
		return nil, err
	}
	c := &claim{Case: p.name, Rows: [2]int{p.train.N(), p.test.N()}, Chosen: r.Chosen, Fits: r.Fits, Same: r.SameHour, Unseen: r.Unseen, Said: r.Verdict}
	g := synth.GenOptions{Duration: duration(p.test.Horizon)}
	if p.from {
		g.Rate, g.From = p.test.Rate()/p.train.Rate(), duration(m.Horizon)
	}
	seeds := *o
	seeds.seeds = min(o.seeds, unseenSeeds)
	v, err := seeds.each(ctx, func(ctx context.Context, seed uint64) (*score.Sample, error) {
		at := g
		at.Seed = seed
		s, err := m.Sample(ctx, at)
		if err == nil {
			s.Horizon = p.test.Horizon
		}
		return s, err
	}, func(v values, s *score.Sample) {
		distances(v, p.test, s, p.from, false)
	})
	if err != nil {
		return nil, err
	}
	floor := values{}
	distances(floor, p.test, p.train, p.from, true)
	for _, name := range claimOrder {
		if len(v[name]) == 0 {
			continue
		}
		x, _, _, n := v.median(name)
		at, _, _, _ := floor.median(name)
		if n == 0 || math.IsNaN(at) {
			continue
		}
		l := claimLimit(name, at)
		f := claimFigure{Name: name, Value: score.Number(x), Low: score.Number(l.low), High: score.Number(l.high), Floor: score.Number(at), Verdict: "fail"}
		if l.keeps(x) {
			f.Verdict = "pass"
		}
		c.Figures = append(c.Figures, f)
	}
	return c, nil
}

var claimOrder = []string{"gap KS", "IDC", "prompts KS", "outputs KS", "TTFT KS 0.5", "TTFT p99 0.5", "TTFT KS 0.7", "TTFT p99 0.7", "TTFT KS 0.8", "TTFT p99 0.8",
	"hit curve mean", "hit curve max", "turns KS", "think KS"}

// distances measures the second trace against the first. A floor compares queues
// each at its own level.
func distances(v values, real, other *score.Sample, queues, floor bool) {
	ks := func(name string, a, b []int32) {
		if len(score.Known(a)) > 0 && len(score.Known(b)) > 0 {
			v.add(name, score.KS(score.Known(a), score.Known(b)))
		}
	}
	ks("prompts KS", real.In, other.In)
	ks("outputs KS", real.Out, other.Out)
	if queues {
		v.add("gap KS", score.GapKS(real, other))
		worst, even := 0.0, other.AtRate(real.Rate())
		for _, w := range scales {
			worst = math.Max(worst, score.LogRatio(score.IDC(even, w), score.IDC(real, w)))
		}
		v.add("IDC", worst)
	}
	if queues && real.In != nil {
		compare := score.CompareQueues
		if floor {
			compare = score.QueueFloor
		}
		for _, rho := range score.Loads {
			q := compare(real, other, score.PromptWork(real), score.PromptWork(other), rho)
			v.add(fmt.Sprintf("TTFT KS %g", rho), q.KS)
			v.add(fmt.Sprintf("TTFT p99 %g", rho), q.P99)
		}
	}
	if real.HasBlocks() && other.HasBlocks() {
		mean, most := score.CurveError(score.HitCurve(real), score.HitCurve(other))
		v.add("hit curve mean", mean)
		v.add("hit curve max", most)
	}
	if a, b := score.Turns(real), score.Turns(other); real.HasSessions() && len(b) > 0 {
		v.add("turns KS", score.KS(a, b))
	}
	if a, b := score.ThinkTimes(real), score.ThinkTimes(other); len(a) > 0 && len(b) > 0 {
		v.add("think KS", score.KS(a, b))
	}
}

// claimLimit: lengths 1.5 times the floor and what chance adds (row 6), queues as
// rows 17 to 19b where the floor allows, reuse as row 10.
func claimLimit(name string, floor float64) limit {
	switch {
	case name == "gap KS":
		return atMost(math.Max(0.10, 1.5*floor))
	case name == "IDC":
		return atMost(math.Max(0.40, 1.25*floor))
	case strings.HasPrefix(name, "TTFT KS"):
		high := 0.15
		if strings.HasSuffix(name, "0.5") {
			high = 0.10
		}
		return atMost(math.Max(high, 1.5*floor))
	case strings.HasPrefix(name, "TTFT p99"):
		p := math.Min(floor, 1/floor)
		return limit{math.Min(0.7, p/2), math.Max(1.4, 2/p)}
	case name == "hit curve mean":
		return atMost(math.Max(0.015, 1.5*floor))
	case name == "hit curve max":
		return atMost(math.Max(0.030, 1.5*floor))
	case name == "turns KS":
		return atMost(math.Max(0.15, 1.5*floor))
	case name == "think KS":
		return atMost(math.Max(0.05, 1.5*floor))
	}
	return atMost(1.5*floor + 0.010)
}

func (t *table) claimSummary() string {
	count := map[string]int{}
	kept, of := 0, 0
	for i := range t.Unseen {
		c := &t.Unseen[i]
		count[c.verdict()]++
		of += len(c.Figures)
		kept += len(c.Figures) - len(c.misses())
	}
	return fmt.Sprintf("%d of %d limits kept; of %d fits %d near, %d off and said so, %d over-claimed",
		kept, of, len(t.Unseen), count["near"], count["off, and said so"], count["over-claimed"])
}

// claims prints the section as Markdown.
func (t *table) claims(w io.Writer) {
	fmt.Fprintf(w, "\nTraffic that the models had not seen: %s.\n\n", t.claimSummary())
	fmt.Fprint(w, "| learnt from, then tested on | rows | fit | says it fits | \\|ln IDC\\| (limit) | prompts, outputs KS (limit) | TTFT KS, p99 ratio at 0.5 / 0.7 / 0.8 | turns out |\n|---|---:|---|---|---|---|---|---|\n")
	for i := range t.Unseen {
		c := &t.Unseen[i]
		by := map[string]claimFigure{}
		for _, f := range c.Figures {
			by[f.Name] = f
		}
		cell := func(name string, limits bool) string {
			f, ok := by[name]
			if !ok {
				return "-"
			}
			s := number(float64(f.Value))
			if f.Verdict != "pass" {
				s = "**" + s + "**"
			}
			if limits {
				s += " (" + (&figure{Low: f.Low, High: f.High}).limit() + ")"
			}
			return s
		}
		var queues []string
		for _, rho := range score.Loads {
			queues = append(queues, cell(fmt.Sprintf("TTFT KS %g", rho), false)+", "+cell(fmt.Sprintf("TTFT p99 %g", rho), false))
		}
		says := "no"
		if c.Fits {
			says = "yes"
		}
		verdict := c.verdict()
		var other []string
		for _, m := range c.misses() {
			if !strings.HasPrefix(m, "TTFT") && !strings.HasPrefix(m, "IDC") && !strings.HasPrefix(m, "prompts") && !strings.HasPrefix(m, "outputs") {
				other = append(other, m)
			}
		}
		if len(other) > 0 {
			verdict += ": " + strings.Join(other, ", ")
		}
		fmt.Fprintf(w, "| %s | %d, %d | %s | %s | %s | %s, %s | %s | %s |\n", c.Case, c.Rows[0], c.Rows[1], c.Chosen, says,
			cell("IDC", true), cell("prompts KS", true), cell("outputs KS", true), strings.Join(queues, " / "), verdict)
	}
}
