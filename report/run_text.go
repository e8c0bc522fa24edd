package report

import (
	"encoding/csv"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"reprise/internal/cli"
	"reprise/internal/metrics"
	"reprise/internal/units"
	"reprise/traceformat"
)

// A RunFigure is one number of an analysis, as the CSV has it.
type RunFigure struct {
	By, Label string // of a segment, both empty for all requests
	Metric    string // ttft, send_lag, output_tokens
	Statistic string // p99, mean, per_second
	Unit      string // ns, 1/s, requests, tokens, share, W, J/token, tokens/J
	N         int64  // values behind it, 0 where that is not a sample
	Value
}

// RunFigures lists every figure of an analysis, those of all requests first.
func (a *Analysis) RunFigures() (out []RunFigure) {
	s := a.Summary
	dist := func(metric string, d *metrics.Dist) {
		for _, q := range d.Statistics() {
			if !q.Value.OK {
				continue
			}
			f := RunFigure{Metric: metric, Statistic: q.Name, Unit: "ns", N: d.N, Value: Value{V: Number{traceformat.Some(float64(q.Value.V))}}}
			if ci, ok := q.Interval.Get(); ok {
				f.Lo, f.Hi = Number{traceformat.Some(float64(ci[0]))}, Number{traceformat.Some(float64(ci[1]))}
			}
			out = append(out, f)
		}
	}
	dist("ttft", &s.TTFT.Schedule)
	dist("ttft_from_send", &s.TTFT.Send)
	dist("ttft_with_failures", &s.TTFT.WithFailures)
	dist("e2e", &s.E2E.Schedule)
	dist("e2e_from_send", &s.E2E.Send)
	dist("e2e_with_failures", &s.E2E.WithFailures)
	dist("tpot", &s.TPOT)
	dist("itl", &s.ITL)
	dist("event_gap", &s.EventGap)
	dist("failed_after", &s.FailedAfter)
	dist("send_error", &s.SendLag.Error)
	one := func(metric, statistic, unit string, v float64) {
		out = append(out, RunFigure{Metric: metric, Statistic: statistic, Unit: unit, Value: Value{V: number(v)}})
	}
	q := &s.Requests
	for _, c := range []struct {
		name string
		n    int64
	}{{"measured", q.Measured}, {"ok", q.OK}, {"failed", q.Failed}, {"shed", q.Shed}, {"aborted", q.Aborted}, {"unknown", q.Unknown}, {"unsent", q.Unsent}} {
		one("requests", c.name, "requests", float64(c.n))
	}
	if q.Measured > 0 {
		one("requests", "failed_share", "share", float64(q.Failed+q.Shed)/float64(q.Measured))
	}
	one("requests", "offered_per_second", "1/s", s.Rates.Offered)
	one("requests", "completed_per_second", "1/s", s.Rates.Completed)
	one("output_tokens", "per_second", "1/s", s.Rates.OutputTokens)
	one("total_tokens", "per_second", "1/s", s.Rates.TotalTokens)
	one("prompt_tokens", "sum", "tokens", float64(s.Tokens.Prompt))
	one("output_tokens", "sum", "tokens", float64(s.Tokens.Output))
	if s.Tokens.CachedOf > 0 {
		one("prompt_tokens", "cached_share", "share", s.Tokens.CacheHit())
	}
	one("in_flight", "mean", "requests", s.InFlight.Mean)
	one("in_flight", "max", "requests", float64(s.InFlight.Peak))
	if g := s.Goodput; g != nil {
		one("goodput", "per_second", "1/s", g.Requests)
		one("goodput", "share", "share", g.Share)
	}
	if t := a.Telemetry; t != nil && t.Energy != nil {
		one("energy", "watts_mean", "W", t.Energy.Watts)
		if v, ok := t.Energy.PerOutputToken.Get(); ok && v > 0 {
			one("energy", "joules_per_output_token", "J/token", v)
			one("energy", "tokens_per_joule", "tokens/J", 1/v)
		}
	}
	for i := range a.Segments {
		x := &a.Segments[i]
		for _, c := range []struct {
			name string
			n    int64
		}{{"measured", x.Requests}, {"ok", x.OK}, {"failed", x.Failed}} {
			out = append(out, RunFigure{By: x.By, Label: x.Label, Metric: "requests", Statistic: c.name, Unit: "requests", Value: Value{V: number(float64(c.n))}})
		}
		for _, f := range x.Figures {
			metric, statistic, _ := strings.Cut(f.Name, ".")
			out = append(out, RunFigure{By: x.By, Label: x.Label, Metric: metric, Statistic: statistic, Unit: "ns", N: f.N, Value: f.Value})
		}
	}
	return out
}

// csvHead names the columns of WriteCSV; docs/report.md says what they hold.
var csvHead = []string{"segment_by", "segment", "metric", "statistic", "value", "low", "high", "unit", "n"}

// WriteCSV writes one row a figure. An infinite latency is "inf", what is not
// known is empty. A text that a spreadsheet would take for a formula begins with
// an apostrophe.
func (a *Analysis) WriteCSV(w io.Writer) error {
	c := csv.NewWriter(w)
	if err := c.Write(csvHead); err != nil {
		return err
	}
	for _, f := range a.RunFigures() {
		if err := c.Write(f.record()); err != nil {
			return err
		}
	}
	c.Flush()
	return c.Error()
}

// record is a row of the CSV.
func (f *RunFigure) record() []string {
	n := ""
	if f.N > 0 {
		n = strconv.FormatInt(f.N, 10)
	}
	return []string{f.By, unformula(f.Label), f.Metric, f.Statistic, csvNumber(f.V, f.Unit), csvNumber(f.Lo, f.Unit), csvNumber(f.Hi, f.Unit), f.Unit, n}
}

func csvNumber(n Number, unit string) string {
	switch {
	case !n.OK:
		return ""
	case unit == "ns":
		b, err := metrics.Nanos(n.V).MarshalJSON()
		if err != nil {
			return ""
		}
		return strings.Trim(string(b), `"`)
	}
	return strconv.FormatFloat(n.V, 'g', -1, 64)
}

func unformula(s string) string {
	if s != "" && strings.ContainsRune("=+-@\t\r", rune(s[0])) {
		return "'" + s
	}
	return s
}

// shownFigures are the columns of the tables of segments.
var shownFigures = []string{"ttft.p50", "ttft.p99", "tpot.p50", "e2e.p50", "e2e.p99"}

func (s *RunSegment) cell(name string) string {
	i := slices.IndexFunc(s.Figures, func(f SegmentFigure) bool { return f.Name == name })
	if i < 0 {
		return "-"
	}
	return units.Duration(time.Duration(s.Figures[i].V.V))
}

func (s *RunSegment) interval(name string) string {
	i := slices.IndexFunc(s.Figures, func(f SegmentFigure) bool { return f.Name == name })
	if i < 0 {
		return "-"
	}
	f := &s.Figures[i]
	return fmt.Sprintf("%s to %s", units.Duration(time.Duration(f.Lo.V)), units.Duration(time.Duration(f.Hi.V)))
}

func (s *RunSegment) name() string { return strings.ReplaceAll(s.By, "_", " ") + " " + s.Label }

// RenderSegments writes the segments for a terminal, and nothing where there are
// none.
func (a *Analysis) RenderSegments(w io.Writer) error {
	if len(a.Segments) == 0 {
		return nil
	}
	if _, err := io.WriteString(w, "\n"); err != nil {
		return err
	}
	t := &cli.Table{Head: []string{"segment", "requests", "failed", "TTFT p50", "95 % interval", "TTFT p99", "TPOT p50", "E2E p50"}}
	for i := range a.Segments {
		s := &a.Segments[i]
		t.Row(s.name(), units.Count(s.Requests), units.Count(s.Failed), s.cell("ttft.p50"), s.interval("ttft.p50"), s.cell("ttft.p99"), s.cell("tpot.p50"), s.cell("e2e.p50"))
	}
	return t.Write(w, "")
}

// RenderMarkdown writes an analysis for a merge request or a wiki.
func (a *Analysis) RenderMarkdown(w io.Writer) error {
	var b strings.Builder
	line := func(format string, x ...any) { fmt.Fprintf(&b, format+"\n", x...) }
	s := a.Summary
	line("### %s", markdown(a.Name))
	line("")
	switch f := &s.Fidelity; f.Verdict {
	case metrics.Valid:
		line("**Valid**: send error %s %s, of at most %s.", f.SendErrorOf, f.SendError.V, units.Duration(f.SendErrorLimit))
	case metrics.NotReplayed:
		line("**A capture**: nothing was sent; latencies are from the arrival.")
	default:
		line("**Invalid**: not what the trace says, so compare nothing with it.")
		for _, r := range f.Reasons {
			line("- %s", markdown(r))
		}
	}
	if a.State != "" && a.State != StateComplete {
		line("")
		line("**%s**: %s", markdown(a.State), markdown(a.Reason))
	}
	q := &s.Requests
	line("")
	line("%s requests over %s: %s ok, %s failed, %s shed; %s output tokens/s.", units.Count(q.Measured), units.Duration(s.Window.Length),
		units.Count(q.OK), units.Count(q.Failed), units.Count(q.Shed), units.Digits(s.Rates.OutputTokens))
	if g := s.Goodput; g != nil {
		line("Goodput %s, %s of requests.", units.Rate(g.Requests), units.Percent(g.Share))
	}
	line("")
	line("| latency | n | mean | p50 | p90 | p99 | p99.9 | max |")
	line("|---|--:|--:|--:|--:|--:|--:|--:|")
	for _, r := range []struct {
		name string
		d    *metrics.Dist
	}{
		{"TTFT", &s.TTFT.Schedule}, {"TTFT from the send", &s.TTFT.Send}, {"TTFT with failures", &s.TTFT.WithFailures}, {"E2E", &s.E2E.Schedule},
		{"E2E from the send", &s.E2E.Send}, {"E2E with failures", &s.E2E.WithFailures}, {"TPOT", &s.TPOT}, {"ITL", &s.ITL},
	} {
		if r.d.N == 0 {
			continue
		}
		cell := func(v traceformat.Opt[metrics.Nanos], key string) string {
			if !v.OK {
				return "-"
			}
			if ci, ok := r.d.Intervals[key]; ok {
				return fmt.Sprintf("%s (%s to %s)", v.V, ci[0], ci[1])
			}
			return v.V.String()
		}
		d := r.d
		line("| %s | %s | %s | %s | %s | %s | %s | %s |", r.name, units.Count(d.N), cell(d.Mean, ""), cell(d.P50, "p50"), cell(d.P90, "p90"), cell(d.P99, "p99"), cell(d.P999, "p99_9"), cell(d.Max, ""))
	}
	if len(a.Segments) > 0 {
		line("")
		line("| segment | requests | failed | TTFT p50 | TTFT p99 | TPOT p50 | E2E p50 | E2E p99 |")
		line("|---|--:|--:|--:|--:|--:|--:|--:|")
		for i := range a.Segments {
			x := &a.Segments[i]
			fmt.Fprintf(&b, "| %s | %s | %s |", markdown(x.name()), units.Count(x.Requests), units.Count(x.Failed))
			for _, name := range shownFigures {
				text := x.cell(name)
				if text != "-" {
					text += " (" + x.interval(name) + ")"
				}
				fmt.Fprintf(&b, " %s |", text)
			}
			line("")
		}
	}
	line("")
	line("Latencies are from the schedule, of successes; in parentheses, intervals at 95 %%.")
	for _, warning := range slices.Concat(a.Warnings, s.Warnings) {
		line("- %s", markdown(warning))
	}
	_, err := io.WriteString(w, b.String())
	return err
}
