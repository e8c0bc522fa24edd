package metrics

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"reprise/internal/stats"
	"reprise/internal/units"
	"reprise/traceformat"
)

// minWidth is the narrowest table that RenderText lays out; a narrower screen
// wraps it. From meanWidth on it has a column more.
const (
	minWidth  = 70
	meanWidth = minWidth + 9
)

// RenderText writes s for a person: the fidelity verdict first, then what
// happened to the requests, the latencies, and what to know before believing
// them. Lines are no longer than width, where that is 70 or more.
func RenderText(w io.Writer, s *Summary, width int, color bool) error {
	p := printer{width: max(width, minWidth), color: color}
	p.verdict(&s.Fidelity, s)
	p.counts(s)
	p.table(s)
	p.sums(s)
	p.spark(s.Timeline)
	p.notes(s)
	_, err := w.Write(p.b.Bytes())
	return err
}

type printer struct {
	b     bytes.Buffer
	width int
	color bool
	gaps  bool // a percentile was left out
}

// Styles, as SGR codes.
const (
	bold  = "1"
	faint = "2"
	good  = "1;32"
	wrong = "1;31"
)

func (p *printer) style(code, text string) string {
	if !p.color {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// labelWidth is the first column of all lines that have a label.
const labelWidth = 12

// items prints a label and what belongs to it, with as many items on a line as
// fit.
func (p *printer) items(label string, items ...string) {
	at := 0
	for _, item := range items {
		if item == "" {
			continue
		}
		n := utf8.RuneCountInString(item)
		switch {
		case at == 0:
			p.b.WriteString(p.style(bold, fmt.Sprintf("%-*s", labelWidth, label)))
			at = labelWidth
		case at+3+n > p.width:
			p.b.WriteString("\n" + strings.Repeat(" ", labelWidth))
			at = labelWidth
		default:
			p.b.WriteString("   ")
			at += 3
		}
		p.b.WriteString(item)
		at += n
	}
	if at > 0 {
		p.b.WriteByte('\n')
	}
}

// wrapped prints text behind a mark, its further lines indented alike.
func (p *printer) wrapped(mark, text string) {
	indent := utf8.RuneCountInString(mark)
	at := indent
	p.b.WriteString(mark)
	for i, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		if i > 0 {
			if at+1+n > p.width {
				p.b.WriteString("\n" + strings.Repeat(" ", indent))
				at = indent
			} else {
				p.b.WriteByte(' ')
				at++
			}
		}
		p.b.WriteString(word)
		at += n
	}
	p.b.WriteByte('\n')
}

func (p *printer) verdict(f *Fidelity, s *Summary) {
	switch f.Verdict {
	case NotReplayed:
		p.b.WriteString(p.style(bold, "A CAPTURE"))
		p.b.WriteString("  nothing was sent; latencies are from the arrival\n")
	case Valid:
		p.b.WriteString(p.style(good, "VALID"))
		text := "every request was sent"
		if f.SendError.OK {
			text = fmt.Sprintf("send error %s %s (limit %s)", f.SendErrorOf, f.SendError.V, units.Duration(f.SendErrorLimit))
		}
		if l := &s.Lengths; l.Output.Verified > 0 && l.Prompt.Exact == l.Prompt.Verified && l.Prompt.Unverified+l.Output.Unverified == 0 {
			text += ", all token counts exact"
		}
		p.b.WriteString("  " + text + "\n")
	default:
		p.b.WriteString(p.style(wrong, "INVALID"))
		p.b.WriteString("  not what the trace says, so compare nothing with it:\n")
		for _, r := range f.Reasons {
			p.wrapped("  - ", r)
		}
	}
	p.b.WriteByte('\n')
}

func count(n int64, what string) string {
	if n == 0 {
		return ""
	}
	return units.Count(n) + " " + what
}

func (p *printer) counts(s *Summary) {
	q := &s.Requests
	p.items("requests", units.Count(q.Measured)+" measured", units.Count(q.OK)+" ok", count(q.Failed, "failed"), count(q.Shed, "shed"),
		count(q.Aborted, "hung up"), count(q.Unknown, "without outcome"), count(q.Unsent, "never sent"), count(q.Warmup, "warm-up"), count(q.After, "after"))
	var failures []string
	for _, f := range q.Failures {
		name := f.Outcome
		if f.Error != "" {
			name += "/" + f.Error
		}
		failures = append(failures, units.Count(f.N)+" "+name)
	}
	p.items("  failed", failures...)
	if r := &s.Rates; s.Window.Length > 0 {
		sent := ""
		if s.Fidelity.Verdict != NotReplayed {
			sent = units.Rate(r.Sent) + " sent"
		}
		p.items("rate", units.Rate(r.Offered)+" offered", sent, units.Rate(r.Completed)+" completed", "over "+units.Duration(s.Window.Length))
		p.items("tokens", tokenRate(r.OutputTokens)+" out", tokenRate(r.TotalTokens)+" in and out", tokenRate(r.RunOutputTokens)+" out with drain")
	} else if r.RunOutputTokens > 0 {
		p.items("tokens", tokenRate(r.RunOutputTokens)+" out over "+units.Duration(s.Window.RunLength))
	}
	if f := &s.InFlight; f.Peak > 0 {
		p.items("in flight", units.Count(f.Peak)+" peak", units.Digits(f.Mean)+" mean")
	}
	p.b.WriteByte('\n')
}

// tokenRate prints "812 tok/s", "4.81k tok/s", "1.20M tok/s".
func tokenRate(v float64) string {
	switch {
	case v >= 999.5e3:
		return units.Digits(v/1e6) + "M tok/s"
	case v >= 999.5:
		return units.Digits(v/1e3) + "k tok/s"
	}
	return units.Digits(v) + " tok/s"
}

func (p *printer) table(s *Summary) {
	rows := []struct {
		label, from string
		d           *Dist
	}{
		{"TTFT", "from schedule", &s.TTFT.Schedule},
		{"", "from send", &s.TTFT.Send},
		{"", "failures as inf", &s.TTFT.WithFailures},
		{"E2E", "from schedule", &s.E2E.Schedule},
		{"", "from send", &s.E2E.Send},
		{"", "failures as inf", &s.E2E.WithFailures},
		{"TPOT", "", &s.TPOT},
		{"ITL", "over tokens", &s.ITL},
		{"", "event gap", &s.EventGap},
		{"failed", "after", &s.FailedAfter},
		{"send error", "", &s.SendLag.Error},
		{"", "pacer", &s.SendLag.Pacer},
		{"", "queue", &s.SendLag.Queue},
		{"", "connect", &s.SendLag.Connect},
		{"", "write", &s.SendLag.Write},
	}
	head, label := false, ""
	for _, r := range rows {
		if r.label != "" {
			label = r.label
		}
		if r.d.N == 0 {
			continue
		}
		if !head {
			head = true
			names := fmt.Sprintf("%10s%10s%10s%10s", "p50", "p90", "p99", "max")
			if p.width >= meanWidth {
				names = fmt.Sprintf("%10s", "mean") + names
			}
			p.b.WriteString(p.style(faint, strings.Repeat(" ", labelWidth+17)+names) + "\n")
		}
		from := r.from
		if s.Fidelity.Verdict == NotReplayed && from == "from schedule" {
			from = "from arrival"
		}
		var cells strings.Builder
		values := []traceformat.Opt[Nanos]{r.d.Mean, r.d.P50, r.d.P90, r.d.P99, r.d.Max}
		if p.width < meanWidth {
			values = values[1:]
		}
		for _, v := range values {
			text := "-"
			if v.OK {
				text = v.V.String()
			} else {
				p.gaps = true
			}
			cells.WriteString(strings.Repeat(" ", max(1, 10-utf8.RuneCountInString(text))) + text)
		}
		p.b.WriteString(p.style(bold, fmt.Sprintf("%-*s", labelWidth, label)) + fmt.Sprintf("%-17s", from) + cells.String() + "\n")
		label = ""
	}
	if head {
		p.b.WriteByte('\n')
	}
}

func (p *printer) sums(s *Summary) {
	exact := func(what string, l *Length) string {
		if l.Verified == 0 {
			return ""
		}
		text := fmt.Sprintf("%s %s of %s exact", what, units.Count(l.Exact), units.Count(l.Verified))
		if l.MaxError > 0 {
			text += fmt.Sprintf(" (off by %s at most)", units.Count(l.MaxError))
		}
		return text
	}
	p.items("lengths", exact("prompt", &s.Lengths.Prompt), exact("output", &s.Lengths.Output))
	t := &s.Tokens
	p.items("totals", count(t.Prompt, "prompt tokens"), count(t.Output, "output tokens"), count(t.Reasoning, "of reasoning"))
	if hit := t.CacheHit(); !math.IsNaN(hit) {
		p.items("cache hit", units.Percent(hit)+" of prompt tokens")
	}
	if g := s.Goodput; g != nil {
		items := []string{units.Rate(g.Requests), fmt.Sprintf("%s of %s requests (%s) met all", units.Count(g.Met), units.Count(g.Of), units.Percent(g.Share))}
		for _, m := range g.SLOs {
			items = append(items, fmt.Sprintf("%s %s", m.SLO, units.Count(m.Met)))
		}
		p.items("goodput", items...)
	}
}

var sparks = []rune("▁▂▃▄▅▆▇█")

// spark draws the median TTFT over the window. The scale is logarithmic where
// the highest is more than ten times the lowest.
func (p *printer) spark(bins []Bin) {
	if len(bins) < 8 {
		return
	}
	// On a narrow screen a mark stands for the highest of several bins.
	per := (len(bins) + p.width - labelWidth - 1) / (p.width - labelWidth)
	lo, hi := math.Inf(1), 0.0
	var marks []float64 // NaN: no request
	for i := 0; i < len(bins); i += per {
		top := math.NaN()
		for _, b := range bins[i:min(i+per, len(bins))] {
			if v := float64(b.TTFT.V); b.TTFT.OK && !(v <= top) {
				top = v
			}
		}
		if !math.IsNaN(top) {
			lo, hi = min(lo, top), max(hi, top)
		}
		marks = append(marks, top)
	}
	if hi == 0 {
		return
	}
	scale, how := func(v float64) float64 { return v / hi }, ""
	if lo > 0 && hi > 10*lo {
		scale, how = func(v float64) float64 { return math.Log(v/lo) / math.Log(hi/lo) }, ", log scale"
	}
	var b strings.Builder
	for _, v := range marks {
		if math.IsNaN(v) {
			b.WriteByte(' ')
			continue
		}
		b.WriteRune(sparks[min(len(sparks)-1, max(0, int(math.Ceil(scale(v)*float64(len(sparks))))-1))])
	}
	step := time.Duration(per) * (bins[1].From - bins[0].From)
	p.b.WriteByte('\n')
	p.items("TTFT p50", b.String())
	p.items("  over time", fmt.Sprintf("%s a mark, %s to %s%s", units.Duration(step), Nanos(lo), Nanos(hi), how))
}

func (p *printer) notes(s *Summary) {
	notes := slices.Clone(s.Warnings)
	for _, w := range s.ITL.Warnings {
		if !strings.HasPrefix(w, sampleWarning) {
			notes = append(notes, "ITL: "+w)
		}
	}
	if p.gaps {
		notes = append(notes, fmt.Sprintf("a dash is a percentile that the sample is too small for: p50 takes %d, p90 %d, p99 %d values",
			stats.MinSamples(0.5, stats.Level), stats.MinSamples(0.9, stats.Level), stats.MinSamples(0.99, stats.Level)))
	}
	if len(notes) == 0 {
		return
	}
	p.b.WriteByte('\n')
	for _, n := range notes {
		p.wrapped("* ", n)
	}
}

// RenderFigures writes what another tool would have printed, a figure a line.
func RenderFigures(w io.Writer, tool string, figures []Figure) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "by the formulas of %s:\n", tool)
	width := 0
	for _, f := range figures {
		width = max(width, len(f.Name))
	}
	for _, f := range figures {
		value := strconv.FormatFloat(f.Value, 'f', 2, 64)
		if f.Value == math.Trunc(f.Value) && f.Unit == "" {
			value = strconv.FormatFloat(f.Value, 'f', 0, 64)
		}
		b.WriteString(strings.TrimRight(fmt.Sprintf("  %-*s%14s %s", width, f.Name, value, f.Unit), " ") + "\n")
	}
	_, err := w.Write(b.Bytes())
	return err
}
