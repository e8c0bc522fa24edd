package html

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"reprise/internal/metrics"
	iunits "reprise/internal/units"
	"reprise/report"
)

// WriteRepeats writes several runs of one thing as one page: every figure over
// the runs, and each run beside the others.
func WriteRepeats(w io.Writer, r *report.Repeats) error {
	p := &page{
		Eyebrow: "Reprise · repeats", Title: r.Name, Cautions: r.Warnings, Lead: repeatsLead(r), Verdict: repeatsVerdict(r),
		Foot: "Written by report. This file loads nothing and can be kept, mailed and printed as it is.",
	}
	var tracks []track
	var all []*report.Profile
	for i, a := range r.Runs {
		mark := fmt.Sprint(i + 1)
		p.Sides = append(p.Sides, side{sideClass(i), mark, a.Name, startedAt(a.Profile.Manifest)})
		all = append(all, a.Profile)
		if i < palette {
			tracks = append(tracks, track{a.Profile, "run " + mark, i + 1})
		}
	}
	p.Cards = repeatsCards(r)
	b := &builder{page: p}
	own := r.Estimand == report.TheseRuns
	summary := section{ID: "summary", Title: "Over the runs", Text: []string{r.Scope()}, Blocks: []block{{Table: repeatsTable("Every figure over the runs", r.Main(), own)}}}
	var notes []string
	for _, why := range r.Withheld() {
		notes = append(notes, "No interval: "+why+".")
	}
	if notes != nil {
		summary.Blocks = append(summary.Blocks, block{List: notes})
	}
	if r.AsOf != nil {
		var fs []*report.RepeatedFigure
		for i := range r.AsOf {
			fs = append(fs, &r.AsOf[i])
		}
		summary.Blocks = append(summary.Blocks, block{Title: "As " + r.As + " would print it", Table: repeatsTable("By the formulas of "+r.As, fs, own), Fold: true})
	}
	p.Sections = append(p.Sections, summary)
	add := func(id, title string, figs []figure, text ...string) {
		if len(figs) > 0 {
			p.Sections = append(p.Sections, section{ID: id, Title: title, Text: text, Blocks: []block{{Figures: figs}}})
		}
	}
	some := ""
	if len(r.Runs) > palette {
		some = fmt.Sprintf(" Charts show the first %d runs of %d; tables have all.", palette, len(r.Runs))
	}
	add("distributions", "Distributions", b.cdfs(tracks), "A line a run: what lies between the lines is what differs from run to run. Axes begin at the second percentile."+some)
	add("time", "Over time", b.times(tracks), fmt.Sprintf("All runs from their own start, in windows of %s, warm-up and drain included.", units(all[0].Width)))
	add("load", "Under load", b.load(tracks), "Each dot is a window in time.")
	add("facts", "By the trace's own facts", b.heats(tracks[:1]), "Of the first run. Every request lies in one cell; the strength of the colour grows with the root of the share.")
	if t := repeatedSegments(r); t != nil {
		p.Sections = append(p.Sections, section{ID: "segments", Title: "By segment", Text: []string{"Means over the runs" + map[bool]string{true: ".", false: ", with intervals at 95 % of the deployment."}[own] + " Percentiles to 1 %."}, Blocks: []block{{Table: t}}})
	}
	var names []string
	sides := make([]marked, 0, len(r.Runs))
	fid := section{ID: "fidelity", Title: "Fidelity"}
	sums := summaries(r)
	for i, a := range r.Runs {
		names = append(names, fmt.Sprintf("%d  %s", i+1, a.Name))
	}
	fid.Blocks = append(fid.Blocks, block{Table: fidelity(names, sums)})
	if f := failures(names, sums); f != nil {
		fid.Blocks = append(fid.Blocks, block{Title: "Failures", Table: f})
	}
	for i, a := range r.Runs {
		sides = append(sides, marked{fmt.Sprint(i + 1), &report.Subject{Name: a.Name, Runs: []report.RunFact{a.Fact()}}})
	}
	p.Sections = append(p.Sections, fid, comparedRuns(sides, allTracks(all)), section{ID: "how", Title: "How to read this", Blocks: []block{{List: append(slices.Clone(how),
		"Runs are never pooled: a percentile of all requests of all runs takes what differs between runs for what differs between requests. Each figure is computed for each run, and its mean over the runs is shown.")}}})
	if b.err != nil {
		return b.err
	}
	return p.write(w)
}

// allTracks names the profiles for the table of hosts.
func allTracks(all []*report.Profile) (out []track) {
	for i, p := range all {
		out = append(out, track{p, fmt.Sprintf("run %d", i+1), i + 1})
	}
	return out
}

func startedAt(m *report.Manifest) string {
	if m == nil {
		return ""
	}
	parts := []string{m.Server.Backend, serverModel(m)}
	if m.Trace.Name != "" {
		parts = append(parts, "under "+m.Trace.Name)
	}
	if m.Stats != nil && !m.Stats.StartedAt.IsZero() {
		parts = append(parts, m.Stats.StartedAt.UTC().Format("2006-01-02 15:04:05 UTC"))
	}
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), ", ")
}

func summaries(r *report.Repeats) (out []*metrics.Summary) {
	for _, a := range r.Runs {
		out = append(out, a.Summary)
	}
	return out
}

func repeatsLead(r *report.Repeats) string {
	var measured, ok int64
	for _, s := range summaries(r) {
		measured, ok = measured+s.Requests.Measured, ok+s.Requests.OK
	}
	return fmt.Sprintf("%d runs, %s requests in all, %s succeeded.", len(r.Runs), iunits.Count(measured), iunits.Count(ok))
}

func repeatsVerdict(r *report.Repeats) verdict {
	v := runVerdict(r.Runs[0])
	for i, a := range r.Runs {
		x := runVerdict(a)
		if x.Class == "bad" {
			if v.Class != "bad" {
				v = verdict{Class: "bad", Word: "INVALID"}
			}
			if i == 0 {
				v.Reasons = nil
			}
			for _, reason := range x.Reasons {
				v.Reasons = append(v.Reasons, a.Name+": "+reason)
			}
		}
	}
	switch {
	case v.Class == "bad" && r.Invalid:
		v.Word = "INVALID"
		v.Text = fmt.Sprintf("%d of %d runs did not do what their trace says.", len(r.Runs)-r.Valid(), len(r.Runs))
	case v.Class == "bad":
		v.Word, v.Text = "PARTIAL", "A run lacks its last requests."
	case v.Class == "good":
		v.Text = "Every run sent what its trace says, when it says."
	}
	return v
}

func repeatsCards(r *report.Repeats) (out []card) {
	for _, k := range [][2]string{{"ttft", "p50"}, {"ttft", "p99"}, {"tpot", "p50"}, {"e2e", "p50"}, {"output_tokens", "per_second"}, {"goodput", "per_second"}, {"energy", "tokens_per_joule"}, {"requests", "failed_share"}} {
		f := r.Figure(k[0], k[1])
		if f == nil || !f.V.OK {
			continue
		}
		x := card{Name: repeatedHeading(f), Values: []cardValue{{Text: f.Format(f.V)}}, Note: "runs " + f.Range()}
		if f.Lo.OK {
			x.Change = f.Interval(f.Value)
		}
		out = append(out, x)
	}
	return out
}

// repeatedHeading names a figure for people.
func repeatedHeading(f *report.RepeatedFigure) string {
	switch f.Title() {
	case "output_tokens.per_second":
		return "Output tokens/s"
	case "requests.completed_per_second":
		return "Requests/s"
	case "requests.failed_share":
		return "Error rate"
	case "goodput.per_second":
		return "Goodput, 1/s"
	case "prompt_tokens.cached_share":
		return "Prompt tokens from the cache"
	case "in_flight.mean":
		return "In flight, mean"
	case "energy.tokens_per_joule":
		return "Tokens per joule"
	case "energy.joules_per_output_token":
		return "Joules per token"
	case "send_error.p99":
		return "Send error p99"
	}
	return heading(f.Title())
}

func repeatsTable(caption string, fs []*report.RepeatedFigure, own bool) *table {
	t := &table{Caption: caption, Head: []string{"metric", "mean of runs", "sd of runs", "least to greatest"}, Sorted: true}
	if len(fs) > 0 {
		for i := range fs[0].Runs {
			t.Head = append(t.Head, fmt.Sprintf("run %d", i+1))
		}
	}
	for _, f := range fs {
		row := []cell{text(repeatedHeading(f)), {Text: f.Format(f.V), Sub: known(f.Interval(f.Value)), Sort: sortKey(f.V)}, {Text: f.Format(f.SD), Sort: sortKey(f.SD)}, text(f.Range())}
		for _, v := range f.Runs {
			c := cell{Text: f.Format(v.V), Sort: sortKey(v.V)}
			if own {
				c.Sub = known(f.Interval(v))
			}
			row = append(row, c)
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

func repeatedSegments(r *report.Repeats) *table {
	segments := r.Segments()
	if segments == nil {
		return nil
	}
	t := &table{Caption: "Segments, means over the runs", Head: []string{"segment", "requests a run"}, Sorted: true}
	for _, name := range report.SegmentHead() {
		t.Head = append(t.Head, heading(name))
	}
	for _, s := range segments {
		row := []cell{text(segmentName(s.By, s.Label)), text("-")}
		if f := s.Requests; f != nil {
			row[1] = cell{Text: f.Format(f.V), Sort: sortKey(f.V)}
		}
		for _, f := range s.Figures {
			if f == nil || !f.V.OK {
				row = append(row, text("-"))
				continue
			}
			row = append(row, cell{Text: f.Format(f.V), Sub: known(f.Interval(f.Value)), Sort: sortKey(f.V)})
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}
