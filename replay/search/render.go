package search

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"reprise/internal/cli"
	"reprise/internal/metrics"
	"reprise/internal/units"
	"reprise/traceformat"
)

// table is the runs, one a row.
func (f *File) table() (head []string, rows [][]string) {
	head = []string{"run", "load", "offered", "completed", "output tok/s", "in flight"}
	for _, o := range f.Spec.Objectives {
		head = append(head, o.String(), "share that met it")
	}
	head = append(head, "verdict")
	for i := range f.Runs {
		r := &f.Runs[i]
		load := string(r.Kind)
		if r.Load > 0 {
			load = f.Spec.Format(r.Load)
			if r.Kind != Probe {
				load += " (" + string(r.Kind) + ")"
			}
		}
		row := []string{fmt.Sprint(r.Number), load, units.Rate(r.Offered), units.Rate(r.Completed), units.Digits(r.OutputTokens), units.Digits(r.InFlight)}
		for k := range r.Objectives {
			j := &r.Objectives[k]
			value := j.Value.V.String()
			switch {
			case !j.Value.OK:
				value = "-"
			case r.Overload != nil || r.Stopped == StopOverload:
				value = "grows" // it is a matter of how long one waits
			}
			row = append(row, value, fmt.Sprintf("%s [%s, %s]", units.Percent(j.Share()), units.Percent(j.Low), units.Percent(j.High)))
		}
		rows = append(rows, append(row, r.verdict()))
	}
	return head, rows
}

// verdict is that of a run for people.
func (r *Run) verdict() string {
	v := string(r.Verdict)
	switch {
	case r.Kind == Burst:
		v = "-"
	case r.Kind == Floor && r.Verdict != Fail:
		v = "-" // too few requests to prove anything
	case r.Overload != nil || r.Stopped == StopOverload:
		v = "overload"
	case r.Stopped != "":
		v += ", stopped early"
	}
	if len(r.Invalid) > 0 {
		v += ", INVALID"
	}
	return v
}

// Says is the answer in a sentence or two.
func (f *File) Says() string {
	s, r := &f.Spec, f.Result
	slos := make([]string, len(s.Objectives))
	for i, o := range s.Objectives {
		slos[i] = o.String()
	}
	goal := strings.Join(slos, " and ")
	capacity := ""
	if r.Capacity.OK {
		capacity = fmt.Sprintf("%s (%s, %s output tokens/s) meets %s", s.Format(r.Capacity.V), units.Rate(r.Requests), units.Digits(r.OutputTokens), goal)
	}
	between := ""
	if r.Capacity.OK && r.Fails.OK {
		between = fmt.Sprintf(", %s does not: the bracket is %s wide", s.Format(r.Fails.V), units.Percent(r.Fails.V/r.Capacity.V-1))
		if r.Estimate.OK {
			between += ", the estimate " + s.Format(r.Estimate.V)
		}
	}
	confidence := fmt.Sprintf(" (confidence %s)", units.Percent(s.Confidence))
	switch r.Status {
	case Going:
		return fmt.Sprintf("not finished: %d of at most %d runs are done", len(f.Runs), s.Runs+s.Confirm)
	case Found:
		return "capacity: " + capacity + between + confidence
	case AtMax:
		return "capacity: " + capacity + ", the highest load allowed" + confidence
	case Nothing:
		if floor := find(f.Runs, Floor); floor != nil && floor.Verdict == Fail {
			return fmt.Sprintf("no load meets %s: one request at a time misses it", goal)
		}
		if r.Fails.OK {
			return fmt.Sprintf("no load that was tried meets %s: %s, the lowest, does not", goal, s.Format(r.Fails.V))
		}
		return "no load that was tried meets " + goal
	}
	if !r.Capacity.OK {
		return fmt.Sprintf("undecided: no load could be told from %s with %s requests a run: longer runs (--requests) can", goal, units.Count(s.Requests))
	}
	switch r.Status {
	case Noise:
		return "capacity: " + capacity + between + confidence + "; what lies between is within the noise of runs of this length"
	case NoBounds:
		estimate := ""
		if r.Estimate.OK {
			estimate = ", the estimate is " + s.Format(r.Estimate.V)
		}
		return fmt.Sprintf("capacity: at least %s%s; no load that was tried fails for sure%s", capacity, estimate, confidence)
	}
	return "capacity: " + capacity + between + confidence + fmt.Sprintf("; the %d runs are used up", s.Runs)
}

// facts are what is known beside the answer.
func (f *File) facts() (out []string) {
	s, r := &f.Spec, f.Result
	if r.Binding != "" {
		what := "missed first: "
		if !r.Fails.OK && r.Status != Nothing {
			what = "nearest to its bound: "
		}
		out = append(out, what+r.Binding)
	}
	if x := r.Saturation; x != nil {
		line := fmt.Sprintf("saturation throughput: %s, %s output tokens/s", units.Rate(x.Requests), units.Digits(x.OutputTokens))
		if x.Load.OK {
			line += ", that is " + s.Format(x.Load.V)
		}
		out = append(out, fmt.Sprintf("%s (run %d, %s)", line, x.Run, x.Kind))
	}
	if k := r.Knee; k != nil {
		how := "measured"
		if k.Interpolated {
			how = "between loads that were played"
		}
		out = append(out, fmt.Sprintf("knee, by power (throughput / mean E2E): %s, %s, E2E %s (%s)", s.Format(k.Load), units.Rate(k.Requests), k.E2EMean, how))
	}
	if r.ConfirmedOf > 0 {
		out = append(out, fmt.Sprintf("played again: it passed in %d of %d runs", r.Confirmed, r.ConfirmedOf))
	}
	return out
}

func (f *File) curveTable() (head []string, rows [][]string) {
	if len(f.Result.Curve) == 0 {
		return nil, nil
	}
	head = []string{"of saturation", "load", "requests/s", "TTFT p50", "TTFT p99", "TPOT p50", "TPOT p95", "E2E p50", "source"}
	value := func(v traceformat.Opt[metrics.Nanos]) string {
		if !v.OK {
			return "-"
		}
		return v.V.String()
	}
	for _, p := range f.Result.Curve {
		load, source := "-", p.Source
		if p.Load.OK {
			load = f.Spec.Format(p.Load.V)
		}
		switch p.Source {
		case FromRun:
			source = fmt.Sprintf("run %d", p.Run)
		case NoSource:
			source = "not played"
		}
		rows = append(rows, []string{units.Percent(p.Share), load, units.Digits(p.Requests), value(p.TTFTP50), value(p.TTFTP99), value(p.TPOTP50), value(p.TPOTP95), value(p.E2EP50), source})
	}
	return head, rows
}

// RenderText prints the search for a terminal.
func (f *File) RenderText(w io.Writer) error {
	var b bytes.Buffer
	write := func(head []string, rows [][]string) {
		t := cli.Table{Head: head}
		for _, r := range rows {
			t.Row(r...)
		}
		t.Write(&b, "  ") // a Buffer takes all
		b.WriteByte('\n')
	}
	if head, rows := f.table(); len(rows) > 0 {
		write(head, rows)
	}
	if head, rows := f.curveTable(); len(rows) > 0 {
		write(head, rows)
	}
	for _, line := range f.facts() {
		fmt.Fprintln(&b, line)
	}
	for _, note := range f.Notes {
		fmt.Fprintln(&b, "note:", note)
	}
	for _, warning := range f.Result.Warnings {
		fmt.Fprintln(&b, "warning:", warning)
	}
	fmt.Fprintln(&b, f.Says())
	_, err := w.Write(b.Bytes())
	return err
}

// Markdown is search.md.
func (f *File) Markdown() []byte {
	var b bytes.Buffer
	write := func(head []string, rows [][]string) {
		if len(rows) == 0 {
			return
		}
		rule := make([]string, len(head))
		for i := range rule {
			rule[i] = "---"
		}
		for _, r := range append([][]string{head, rule}, rows...) {
			b.WriteString("|")
			for _, cell := range r {
				b.WriteString(" " + strings.ReplaceAll(cell, "|", `\|`) + " |")
			}
			b.WriteByte('\n')
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "# Capacity of %s on %s\n\n%s\n\n", f.Backend, f.Trace, f.Says())
	head, rows := f.table()
	write(head, rows)
	if head, rows := f.curveTable(); len(rows) > 0 {
		b.WriteString("## Latency at shares of the saturation throughput\n\n")
		write(head, rows)
	}
	lines := f.facts()
	for _, n := range f.Notes {
		lines = append(lines, "note: "+n)
	}
	for _, w := range f.Result.Warnings {
		lines = append(lines, "warning: "+w)
	}
	for _, l := range lines {
		b.WriteString("- " + l + "\n")
	}
	return b.Bytes()
}
