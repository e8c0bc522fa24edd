package traceinfo

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"reprise/internal/cli"
	"reprise/internal/units"
	"reprise/traceformat"
)

// WriteText prints in for a person.
func (in *Info) WriteText(w io.Writer) error {
	p := &printer{w: w}
	p.header(in.Header)
	p.traffic(in)
	p.lengths(in)
	p.prefix(in.Prefix)
	p.people(in)
	p.outcomes(in)
	p.support(in.Support)
	return p.err
}

// fewWindows is below how many windows an index of dispersion says so: its
// standard error is about the square root of two over their number, a third of
// the figure at 20.
const fewWindows = 20

// A printer writes sections and remembers the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

// fact writes one line of a name and a value; an empty value is left out.
func (p *printer) fact(name, value string) {
	if value != "" {
		p.printf("%-12s %s\n", name, value)
	}
}

func (p *printer) table(t *cli.Table) {
	if p.err == nil {
		p.err = t.Write(p.w, "  ")
	}
}

func (p *printer) header(h *traceformat.Header) {
	version := "" // of a file; what is generated while it is read has none
	if h.Version > 0 {
		version = fmt.Sprintf("version %d", h.Version)
	}
	p.fact("format", join(h.Origin.Dialect, version))
	p.fact("origin", strings.TrimSpace(join(strings.TrimSpace(h.Origin.Program+" "+h.Origin.Version), vantage(h.Origin.Vantage))))
	start := "relative"
	if !h.Start.IsZero() {
		start = h.Start.UTC().Format(time.RFC3339Nano)
	}
	p.fact("start", start)
	clock := h.Clock.Source
	if h.Clock.Tick > 0 {
		clock = join(clock, "ticks every "+units.Duration(h.Clock.Tick))
	}
	if h.Clock.Dequantised != "" {
		clock = join(clock, "spread within a tick: "+h.Clock.Dequantised)
	}
	if n := len(h.Clock.Steps); n > 0 {
		clock = join(clock, fmt.Sprintf("%d known steps", n))
	}
	p.fact("clock", clock)
	p.fact("tokenizer", h.Tokenizer)
	if h.Blocks.Size > 0 {
		blocks := fmt.Sprintf("%d tokens", h.Blocks.Size)
		for _, s := range []string{h.Blocks.Scheme, scope(h.Blocks.Scope), partial(h.Blocks.Partial)} {
			blocks = join(blocks, s)
		}
		p.fact("blocks", blocks)
	}
	p.fact("lengths", string(h.Lengths))
	if r := h.Sampling.Rate; r > 0 && r < 1 {
		p.fact("sampling", units.Percent(r)+" by "+h.Sampling.By)
	}
	if d := dropped(h.Rows); d > 0 {
		p.fact("dropped", fmt.Sprintf("%s of %s seen", units.Count(d), units.Count(h.Rows.Seen)))
	}
	p.fact("partial", h.Partial)
	if lacks := h.Extra[traceformat.Lacks]; lacks != "" {
		for i, what := range strings.Split(lacks, "; ") {
			p.fact([]string{"limits", ""}[min(i, 1)], what)
		}
	}
}

func (p *printer) traffic(in *Info) {
	p.printf("\n")
	p.fact("rows", units.Count(in.Rows))
	if in.Rows == 0 {
		return
	}
	p.fact("span", units.Duration(in.Span))
	if in.Rate > 0 {
		rate := units.Rate(in.Rate)
		if in.PeakRate > 0 {
			rate = join(rate, fmt.Sprintf("at most %s in a second", units.Count(in.PeakRate)))
		}
		p.fact("rate", rate)
	}
	if in.Tokens != nil {
		p.fact("tokens", fmt.Sprintf("%s prompt, %s output", units.Rate(in.Tokens.Prompt), units.Rate(in.Tokens.Output)))
	}
	a := in.Arrivals
	if a.GapCV != nil {
		p.fact("gaps", fmt.Sprintf("CV %s, p50 %s, p99 %s, max %s", units.Digits(*a.GapCV), units.Duration(a.GapP50), units.Duration(a.GapP99), units.Duration(a.GapMax)))
	}
	if a.Backwards > 0 {
		p.fact("unsorted", units.Count(a.Backwards)+" rows arrive before the row above: no gaps, no burstiness")
	}
	if len(in.Burstiness) > 0 {
		p.printf("\nburstiness (index of dispersion of counts; Poisson is 1)\n")
		t := cli.Table{Head: []string{"window", "IDC", ""}}
		for _, b := range in.Burstiness {
			remark := b.Artefact
			if remark == "" && b.Complete < fewWindows {
				remark = fmt.Sprintf("from %d windows", b.Complete)
			}
			t.Row(strconv.FormatFloat(b.Window.Seconds(), 'g', -1, 64)+" s", units.Digits(b.IDC), remark)
		}
		p.table(&t)
	}
}

func (p *printer) lengths(in *Info) {
	if in.Prompt == nil && in.Output == nil {
		return
	}
	p.printf("\nlengths in tokens\n")
	t := cli.Table{Head: []string{"", "mean", "min", "p5", "p25", "p50", "p75", "p95", "p99", "max", "unknown", "zero"}}
	row := func(name string, l *Lengths) {
		if l == nil {
			return
		}
		cells := []string{name, units.Digits(l.Mean)}
		for _, v := range []int64{l.Min, l.P5, l.P25, l.P50, l.P75, l.P95, l.P99, l.Max, l.Unknown, l.Zero} {
			cells = append(cells, units.Count(v))
		}
		t.Row(cells...)
	}
	row("prompt", in.Prompt)
	row("output", in.Output)
	p.table(&t)
	for _, f := range []struct {
		name string
		l    *Lengths
	}{{"prompt", in.Prompt}, {"output", in.Output}} {
		if f.l == nil {
			continue
		}
		if c := f.l.Cap; c != nil {
			p.printf("  %s is cut at %s: %s of rows\n", f.name, units.Count(c.Value), units.Percent(c.Share))
		}
		if len(f.l.Atoms) > 0 {
			var atoms []string
			for _, a := range f.l.Atoms {
				atoms = append(atoms, fmt.Sprintf("%s (%s)", units.Count(a.Value), units.Percent(a.Share)))
			}
			p.printf("  %s most often %s\n", f.name, strings.Join(atoms, ", "))
		}
	}
}

func (p *printer) prefix(f *Prefix) {
	if f == nil {
		return
	}
	unique := units.Count(f.Unique)
	if f.UniqueAtLeast {
		unique = "more than " + unique
	}
	p.printf("\nprefix sharing: %s blocks, %s distinct; %s rows share a prefix, %s more than one block\n",
		units.Count(f.Blocks), unique, units.Count(f.Sharing), units.Count(f.Deeper))
	if f.Sample != nil {
		from := "of"
		if f.Sample.After > 0 {
			from = fmt.Sprintf("from row %s on, of", units.Count(f.Sample.After))
		}
		p.printf("estimated %s one block in %.0f; --exact follows them all\n", from, 1/f.Sample.Rate)
	}
	t := cli.Table{Head: []string{"LRU cache", "hit", ""}}
	for _, h := range f.Hits {
		size, tokens := units.Count(int64(h.Blocks))+" blocks", ""
		if h.Blocks == 0 {
			size = "unlimited"
		}
		if h.Tokens > 0 {
			tokens = units.Count(h.Tokens) + " tokens"
		}
		share := fmt.Sprintf("%.3f", h.Share)
		if f.Sample != nil {
			share += fmt.Sprintf(" ±%.3f", h.Margin)
		}
		t.Row(size, share, tokens)
	}
	p.table(&t)
}

func (p *printer) people(in *Info) {
	if s := in.Sessions; s != nil {
		p.printf("\n")
		turns := s.Turns
		p.fact("sessions", fmt.Sprintf("%s, turns p50 %s, p95 %s, max %s", units.Count(s.Sessions), units.Count(turns.P50), units.Count(turns.P95), units.Count(turns.Max)))
		p.times("think", s.Think)
	}
	for i, f := range []struct {
		name string
		n    *Names
	}{{"clients", in.Clients}, {"models", in.Models}, {"endpoints", in.Endpoints}, {"classes", in.Classes}} {
		if i == 0 && in.Sessions == nil && (in.Clients != nil || in.Models != nil || in.Endpoints != nil || in.Classes != nil) {
			p.printf("\n")
		}
		p.names(f.name, f.n)
	}
}

func (p *printer) names(label string, n *Names) {
	if n == nil {
		return
	}
	var parts []string
	for _, t := range n.Top[:min(5, len(n.Top))] {
		name := t.Name
		if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			name = fmt.Sprintf("%q", name)
		}
		parts = append(parts, fmt.Sprintf("%s %s", name, units.Percent(float64(t.Rows)/float64(n.Rows))))
	}
	if len(n.Top) > 5 {
		parts = append(parts, "...")
	}
	distinct := units.Count(int64(n.Distinct))
	if n.More {
		distinct = "more than " + distinct
	}
	p.fact(label, fmt.Sprintf("%s: %s", distinct, strings.Join(parts, ", ")))
}

func (p *printer) times(name string, t *TimeQuantiles) {
	if t != nil {
		p.fact(name, fmt.Sprintf("p5 %s, p50 %s, p90 %s, p99 %s, max %s (%s rows)", units.Duration(t.P5), units.Duration(t.P50),
			units.Duration(t.P90), units.Duration(t.P99), units.Duration(t.Max), units.Count(t.Known)))
	}
}

func (p *printer) outcomes(in *Info) {
	o := in.Outcomes
	if o == nil {
		return
	}
	p.printf("\noutcomes of %s rows\n", units.Count(o.Rows))
	p.names("results", o.Results)
	p.names("finish", o.Finish)
	p.names("errors", o.Errors)
	p.times("TTFT", o.TTFT)
	p.times("E2E", o.E2E)
	if c := o.CachedTokens; c != nil {
		p.fact("cached", fmt.Sprintf("mean %s tokens, p50 %s, p99 %s (%s rows)", units.Digits(c.Mean), units.Count(c.P50), units.Count(c.P99), units.Count(c.Known)))
	}
	if f := o.InFlight; f != nil {
		p.fact("in flight", fmt.Sprintf("peak %s at %s, mean %s", units.Count(int64(f.Peak)), units.Duration(f.PeakAt), units.Digits(f.Mean)))
	}
	if in.Replay != nil {
		p.times("send lag", in.Replay.Lag)
	}
}

func (p *printer) support(list []Support) {
	p.printf("\ngood for\n")
	t := cli.Table{}
	for _, s := range list {
		why := s.Why
		if s.Next != "" {
			why += " (" + s.Next + ")"
		}
		t.Row(s.Can, s.For, why)
	}
	p.table(&t)
}

func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + ", " + b
}

func vantage(v string) string {
	if v == "" {
		return ""
	}
	return "seen at the " + v
}

func scope(s traceformat.HashScope) string {
	if s == traceformat.ScopeUnknown {
		return ""
	}
	return "scope " + string(s)
}

func partial(p traceformat.PartialRule) string {
	if p == traceformat.PartialUnknown {
		return ""
	}
	return "partial last block " + string(p)
}
