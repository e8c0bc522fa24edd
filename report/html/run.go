package html

import (
	"fmt"
	"io"
	"slices"
	"time"

	"reprise/internal/metrics"
	iunits "reprise/internal/units"
	"reprise/report"
	"reprise/traceformat"
)

// WriteRun writes the analysis of a run or a capture as one page.
func WriteRun(w io.Writer, a *report.Analysis) error {
	s := a.Summary
	p := &page{
		Eyebrow: "Reprise · run", Title: a.Name, Verdict: runVerdict(a),
		Cautions: slices.Concat(a.Warnings, s.Warnings), Foot: "Written by report. This file loads nothing and can be kept, mailed and printed as it is.",
		Lead: lead(s),
	}
	if m := a.Profile.Manifest; m != nil && m.Server.Backend != "" {
		p.Sides = []side{{"", "", m.Server.Backend, "under " + m.Trace.Name}}
	}
	p.Cards = runCards(s)
	tracks := []track{{a.Profile, "this run", 1}}
	if s.Fidelity.Verdict == metrics.NotReplayed {
		tracks[0].Name = "this capture"
	}
	b := &builder{page: p}
	summary := section{ID: "summary", Title: "Latencies", Text: []string{"From the schedule unless the line says otherwise; under each percentile, its interval at 95 %. A percentile that the sample does not carry is not shown."}}
	summary.Blocks = []block{{Table: latencyTable(s)}, {Facts: rates(s)}}
	if s.Goodput != nil {
		summary.Blocks = append(summary.Blocks, block{Title: "Goodput", Table: goodput(s), Narrow: true})
	}
	if a.Figures != nil {
		t := &table{Caption: "By the formulas of " + a.As, Head: []string{"figure", "value", "unit"}}
		for _, f := range a.Figures {
			t.Rows = append(t.Rows, []cell{text(f.Name), {Text: iunits.Digits(f.Value), Sort: float(f.Value)}, text(f.Unit)})
		}
		summary.Blocks = append(summary.Blocks, block{Title: "As " + a.As + " would print it", Table: t, Fold: true})
	}
	p.Sections = append(p.Sections, summary)
	add := func(id, title string, figs []figure, text ...string) {
		if len(figs) > 0 {
			p.Sections = append(p.Sections, section{ID: id, Title: title, Text: text, Blocks: []block{{Figures: figs}}})
		}
	}
	add("distributions", "Distributions", b.cdfs(tracks), "Axes begin at the second percentile.")
	add("time", "Over time", b.times(tracks), fmt.Sprintf("In windows of %s, warm-up and drain included.", units(a.Profile.Width)))
	add("load", "Under load", b.load(tracks), "Each dot is a window in time.")
	add("facts", "By the trace's own facts", b.heats(tracks), "Every request lies in one cell; the strength of the colour grows with the root of the share.")
	if t := runSegments(a.Segments); t != nil {
		p.Sections = append(p.Sections, section{ID: "segments", Title: "By segment", Text: []string{"Percentiles to 1 %, with intervals at 95 %."}, Blocks: []block{{Table: t}}})
	}
	fid := section{ID: "fidelity", Title: "Fidelity", Blocks: []block{{Table: fidelity([]string{"requests"}, []*metrics.Summary{s}), Narrow: true}}}
	if t := lagTable(s); t != nil {
		fid.Text = []string{"How late requests were sent, by cause: " + "the figures of the service hold none of it, those from the schedule all of it."}
		fid.Blocks = append(fid.Blocks, block{Title: "Send lag", Table: t})
	}
	if f := failures([]string{a.Name}, []*metrics.Summary{s}); f != nil {
		fid.Blocks = append(fid.Blocks, block{Title: "Failures", Table: f})
	}
	p.Sections = append(p.Sections, fid)
	host, notes := host(tracks)
	runs := section{ID: "runs", Title: "Run and host"}
	if host != nil {
		runs.Blocks = append(runs.Blocks, block{Table: host})
	}
	if len(notes) > 0 {
		runs.Blocks = append(runs.Blocks, block{List: notes})
	}
	if m := a.Profile.Manifest; m != nil {
		runs.Blocks = append(runs.Blocks, block{Title: "Manifest", Facts: manifest(m)}, block{Title: "Every setting", Facts: settings(m), Fold: true})
	}
	if runs.Blocks != nil {
		p.Sections = append(p.Sections, runs)
	}
	p.Sections = append(p.Sections, section{ID: "how", Title: "How to read this", Blocks: []block{{List: how}}})
	if b.err != nil {
		return b.err
	}
	return p.write(w)
}

func runVerdict(a *report.Analysis) verdict {
	f := &a.Summary.Fidelity
	v := verdict{Class: "bad", Word: "INVALID", Text: "Not what the trace says, so compare nothing with it.", Reasons: slices.Clone(f.Reasons)}
	switch f.Verdict {
	case metrics.NotReplayed:
		v = verdict{Class: "plain", Word: "A CAPTURE", Text: "Nothing was sent; latencies are from the arrival."}
	case metrics.Valid:
		v = verdict{Class: "good", Word: "VALID", Text: "Every request was sent."}
		if f.SendError.OK {
			v.Text = fmt.Sprintf("Send error %s %s, of at most %s.", f.SendErrorOf, f.SendError.V, units(f.SendErrorLimit))
		}
	}
	switch {
	case a.State == "" || a.State == report.StateComplete:
	case a.Reason != "":
		v.Class, v.Reasons = "bad", append(v.Reasons, "The run is "+a.State+": "+a.Reason)
	default:
		v.Class, v.Reasons = "bad", append(v.Reasons, "The run is "+a.State)
	}
	return v
}

// lead says what happened, in a sentence.
func lead(s *metrics.Summary) string {
	q := &s.Requests
	text := fmt.Sprintf("%s requests over %s, %s succeeded", iunits.Count(q.Measured), units(s.Window.Length), iunits.Count(q.OK))
	if q.Failed > 0 {
		text += ", " + iunits.Count(q.Failed) + " failed"
	}
	if q.Shed > 0 {
		text += ", " + iunits.Count(q.Shed) + " were shed"
	}
	if q.Unknown > 0 {
		text += ", " + iunits.Count(q.Unknown) + " have no outcome"
	}
	return text + "."
}

func runCards(s *metrics.Summary) (out []card) {
	latency := func(name string, d *metrics.Dist, v traceformat.Opt[metrics.Nanos], key string) {
		if !v.OK {
			return
		}
		k := card{Name: name, Values: []cardValue{{Text: v.V.String()}}}
		if ci, ok := d.Intervals[key]; ok {
			k.Note = fmt.Sprintf("%s to %s at 95 %%", ci[0], ci[1])
		}
		out = append(out, k)
	}
	latency("TTFT p50", &s.TTFT.Schedule, s.TTFT.Schedule.P50, "p50")
	latency("TTFT p99", &s.TTFT.Schedule, s.TTFT.Schedule.P99, "p99")
	latency("TPOT p50", &s.TPOT, s.TPOT.P50, "p50")
	latency("E2E p50", &s.E2E.Schedule, s.E2E.Schedule.P50, "p50")
	if s.Rates.OutputTokens > 0 {
		out = append(out, card{Name: "Output tokens/s", Values: []cardValue{{Text: iunits.Digits(s.Rates.OutputTokens)}}, Note: "received inside the window"})
	}
	if g := s.Goodput; g != nil {
		out = append(out, card{Name: "Goodput", Values: []cardValue{{Text: iunits.Rate(g.Requests)}}, Note: iunits.Percent(g.Share) + " of requests met every SLO"})
	}
	if q := &s.Requests; q.Measured > 0 {
		out = append(out, card{Name: "Success", Values: []cardValue{{Text: iunits.Percent(float64(q.OK) / float64(q.Measured))}}, Note: fmt.Sprintf("%s of %s", iunits.Count(q.OK), iunits.Count(q.Measured))})
	}
	return out
}

// columns are the statistics that a table of distributions shows.
func columns(d *metrics.Dist) []metrics.Statistic {
	return slices.DeleteFunc(d.Statistics(), func(q metrics.Statistic) bool { return q.Name == "min" })
}

type distRow struct {
	name string
	d    *metrics.Dist
}

func distTable(caption string, rows []distRow) *table {
	t := &table{Caption: caption, Head: []string{"", "n"}}
	for _, q := range columns(&metrics.Dist{}) {
		t.Head = append(t.Head, q.Name)
	}
	for _, r := range rows {
		if r.d.N == 0 {
			continue
		}
		row := []cell{text(r.name), count(r.d.N)}
		for _, q := range columns(r.d) {
			v := q.Value
			if !v.OK {
				row = append(row, text("-"))
				continue
			}
			c := cell{Text: v.V.String(), Sort: float(float64(v.V))}
			if ci, ok := q.Interval.Get(); ok {
				c.Sub = fmt.Sprintf("%s to %s", ci[0], ci[1])
			}
			row = append(row, c)
		}
		t.Rows = append(t.Rows, row)
	}
	if t.Rows == nil {
		return nil
	}
	return t
}

func latencyTable(s *metrics.Summary) *table {
	return distTable("Latencies of successes", []distRow{
		{"TTFT", &s.TTFT.Schedule}, {"TTFT, from the send", &s.TTFT.Send}, {"TTFT, a failure as infinite", &s.TTFT.WithFailures},
		{"E2E", &s.E2E.Schedule}, {"E2E, from the send", &s.E2E.Send}, {"E2E, a failure as infinite", &s.E2E.WithFailures},
		{"TPOT", &s.TPOT}, {"ITL, pooled over tokens", &s.ITL}, {"Gap between events", &s.EventGap}, {"Failures took", &s.FailedAfter},
	})
}

func lagTable(s *metrics.Summary) *table {
	l := &s.SendLag
	return distTable("Send lag of every request that was sent", []distRow{
		{"Error, |sent - scheduled|", &l.Error}, {"Pacer", &l.Pacer}, {"Waiting for a connection", &l.Queue}, {"Opening one", &l.Connect}, {"Writing", &l.Write},
	})
}

func rates(s *metrics.Summary) []fact {
	r := &s.Rates
	out := []fact{
		{"Measured window", units(s.Window.Length)}, {"Whole run", units(s.Window.RunLength)},
		{"Offered", iunits.Rate(r.Offered)}, {"Completed", iunits.Rate(r.Completed)},
		{"Output tokens/s in the window", iunits.Digits(r.OutputTokens)}, {"All tokens/s", iunits.Digits(r.TotalTokens)},
		{"Output tokens/s, whole run", iunits.Digits(r.RunOutputTokens)},
		{"In flight, mean and peak", fmt.Sprintf("%s, %s", iunits.Digits(s.InFlight.Mean), iunits.Count(s.InFlight.Peak))},
		{"Prompt tokens", iunits.Count(s.Tokens.Prompt)}, {"Output tokens", iunits.Count(s.Tokens.Output)},
	}
	if s.Tokens.CachedOf > 0 {
		out = append(out, fact{"Prompt tokens from the prefix cache", iunits.Percent(s.Tokens.CacheHit())})
	}
	return out
}

func goodput(s *metrics.Summary) *table {
	g := s.Goodput
	t := &table{Caption: "Requests that met each objective", Head: []string{"objective", "met", "of", "share"}}
	share := func(n int64) cell {
		if g.Of == 0 {
			return text("-")
		}
		return text(iunits.Percent(float64(n) / float64(g.Of)))
	}
	for _, x := range g.SLOs {
		t.Rows = append(t.Rows, []cell{text(x.SLO.String()), count(x.Met), count(g.Of), share(x.Met)})
	}
	t.Rows = append(t.Rows, []cell{text("all of them"), count(g.Met), count(g.Of), share(g.Met)})
	return t
}

func runSegments(all []report.RunSegment) *table {
	if len(all) == 0 {
		return nil
	}
	columns := []string{"ttft.p50", "ttft.p90", "ttft.p99", "tpot.p50", "e2e.p50", "e2e.p90"}
	t := &table{Caption: "Segments", Head: []string{"segment", "requests", "failed"}, Sorted: true}
	for _, c := range columns {
		t.Head = append(t.Head, heading(c))
	}
	for i := range all {
		s := &all[i]
		row := []cell{text(segmentName(s.By, s.Label)), count(s.Requests), count(s.Failed)}
		for _, c := range columns {
			k := slices.IndexFunc(s.Figures, func(f report.SegmentFigure) bool { return f.Name == c })
			if k < 0 {
				row = append(row, text("-"))
				continue
			}
			f := &s.Figures[k]
			row = append(row, cell{Text: units(time.Duration(f.V.V)), Sort: sortKey(f.V), Sub: fmt.Sprintf("%s to %s", units(time.Duration(f.Lo.V)), units(time.Duration(f.Hi.V)))})
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}
