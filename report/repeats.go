package report

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"reprise/internal/cli"
	"reprise/internal/metrics"
	"reprise/internal/stats"
	"reprise/internal/units"
)

// RepeatsVersion is the version of the JSON form of Repeats.
const RepeatsVersion = 1

// minRepeats is how many runs an interval over runs takes.
const minRepeats = 3

// Repeats are several runs of one thing. Every figure is computed for each run
// by itself, and then told over the runs: rows of runs are never pooled, as a
// pooled percentile takes what differs between runs for what differs between
// requests.
type Repeats struct {
	Version  int    `json:"version"`
	Name     string `json:"name"`
	Estimand string `json:"estimand"` // what intervals speak of: Deployment from three runs on, TheseRuns below
	// Figures are over the runs, those of all requests first.
	Figures  []RepeatedFigure `json:"figures"`
	As       string           `json:"metrics_as,omitempty"`
	AsOf     []RepeatedFigure `json:"metrics_as_figures,omitempty"`
	Invalid  bool             `json:"invalid"` // a run is
	Warnings []string         `json:"warnings,omitempty"`
	Runs     []*Analysis      `json:"runs"`
}

// A RepeatedFigure is one number of every run, and their mean. Value.V is the
// mean, and its interval that of the deployment.
type RepeatedFigure struct {
	By        string `json:"by,omitempty"` // of a segment, both empty for all requests
	Label     string `json:"label,omitempty"`
	Metric    string `json:"metric"`
	Statistic string `json:"statistic,omitempty"`
	Unit      string `json:"unit"` // ns, 1/s, requests, tokens, share
	Value
	SD Number `json:"sd,omitzero"` // from run to run
	// Runs holds the figure of each run with its own interval, in the order of the
	// runs; without a value where a run does not have it.
	Runs []Value `json:"runs"`
	Of   int     `json:"of"` // runs that have it
	// Why says why there is no interval over the runs.
	Why string `json:"why,omitempty"`
}

// figureKey is what makes figures of two runs the same.
type figureKey struct{ by, label, metric, statistic, unit string }

// AnalyseRepeats analyses each run and tells every figure over all of them.
func AnalyseRepeats(ctx context.Context, side Side, c Config) (*Repeats, error) {
	if len(side.Runs) == 0 {
		return nil, errors.New("no run to report on")
	}
	if err := side.check(); err != nil {
		return nil, err
	}
	all, err := analyse(ctx, side.Runs, c)
	if err != nil {
		return nil, err
	}
	r := &Repeats{Version: RepeatsVersion, Name: side.Name, As: c.As, Runs: all, Estimand: TheseRuns}
	if len(all) >= minRepeats {
		r.Estimand = Deployment
	}
	var own, as [][]RunFigure
	for _, a := range all {
		own = append(own, a.RunFigures())
		var fs []RunFigure
		for _, f := range a.Figures {
			fs = append(fs, RunFigure{Metric: f.Name, Unit: f.Unit, Value: Value{V: number(f.Value)}})
		}
		as = append(as, fs)
	}
	r.Figures, r.AsOf = overRuns(own), overRuns(as)
	r.doubts()
	return r, nil
}

// overRuns tells each figure over the runs, in the order in which figures come.
func overRuns(own [][]RunFigure) (out []RepeatedFigure) {
	at := map[figureKey]int{}
	for run, fs := range own {
		for _, f := range fs {
			key := figureKey{f.By, f.Label, f.Metric, f.Statistic, f.Unit}
			i, ok := at[key]
			if !ok {
				i = len(out)
				at[key] = i
				out = append(out, RepeatedFigure{By: f.By, Label: f.Label, Metric: f.Metric, Statistic: f.Statistic, Unit: f.Unit, Runs: make([]Value, len(own))})
			}
			out[i].Runs[run] = f.Value
		}
	}
	for i := range out {
		out[i].summarise()
	}
	return out
}

// summarise makes the mean over the runs.
func (f *RepeatedFigure) summarise() {
	var values []float64
	infinite, tied := 0, false
	for i := range f.Runs {
		v := &f.Runs[i]
		if v.V.OK && math.IsInf(v.V.V, 0) {
			infinite++
			*v = Value{} // JSON has no word for it
			continue
		}
		for _, n := range []*Number{&v.Lo, &v.Hi} {
			if n.OK && math.IsInf(n.V, 0) {
				*n = Number{}
			}
		}
		if v.V.OK {
			values = append(values, v.V.V)
			tied = tied || v.Lo.OK && v.Hi.OK && v.Lo.V == v.Hi.V
		}
	}
	f.Of = len(values) + infinite
	if infinite > 0 {
		f.Why = fmt.Sprintf("infinite in %d of %d runs: too many requests never answered", infinite, len(f.Runs))
		return
	}
	if len(values) == 0 {
		return
	}
	mean, sd, lo, hi := stats.MeanOf(values)
	f.V, f.SD = number(mean), number(sd)
	switch {
	case len(values) < minRepeats:
		f.Why = fmt.Sprintf("%d of %d runs have it: what differs from run to run takes three", len(values), len(f.Runs))
		if len(values) == len(f.Runs) {
			f.Why = fmt.Sprintf("%d runs: what differs from run to run takes three", len(values))
		}
	case f.Statistic == "failed_share" && mean == 0:
		f.Why = "no request failed in any run; of n requests, that bounds the rate by 3/n"
	case tied:
		f.Why = "many requests took exactly as long, so that this figure jumps from one value to another between runs"
	case f.Statistic == "min" || f.Statistic == "max":
		f.Why = "an extreme follows the number of requests, and has no interval"
	default:
		f.Lo, f.Hi = number(lo), number(hi)
	}
}

// doubts says what stands against taking these runs for repeats of one thing.
func (r *Repeats) doubts() {
	warn := func(format string, x ...any) { r.Warnings = append(r.Warnings, fmt.Sprintf(format, x...)) }
	first := r.Runs[0]
	for _, a := range r.Runs {
		if f := &a.Summary.Fidelity; f.Verdict == metrics.Invalid {
			r.Invalid = true
			for _, reason := range f.Reasons {
				warn("%s is invalid: %s", a.Name, reason)
			}
		}
		if a.State == StatePartial || a.State == StateRunning {
			warn("%s is %s: its last requests are missing", a.Name, a.State)
		}
		x, y := first.Profile.Manifest, a.Profile.Manifest
		switch {
		case (x == nil) != (y == nil):
			warn("%s and %s are not repeats of one thing: one of them is no run", first.Name, a.Name)
		case x == nil:
		case x.Plan.Digest != y.Plan.Digest:
			warn("%s was not played from the plan of %s: trace, seed, speed or another flag differs, so that these are not repeats of one thing", a.Name, first.Name)
		case x.Server.Backend != y.Server.Backend || x.Server.URL != y.Server.URL:
			warn("%s was played against another server than %s", a.Name, first.Name)
		}
		for _, text := range slices.Concat(a.Warnings, a.Summary.Warnings) {
			warn("%s: %s", a.Name, text)
		}
	}
	if len(r.Runs) < minRepeats {
		warn("%d runs: intervals are of each run by itself, as what differs from run to run takes three", len(r.Runs))
	}
}

// Scope says what the intervals are.
func (r *Repeats) Scope() string {
	if r.Estimand == Deployment {
		return fmt.Sprintf("Means over %d runs, which are not pooled; intervals at 95 %% are of the deployment: Student's over the runs.", len(r.Runs))
	}
	return fmt.Sprintf("Means over %d runs, which are not pooled; intervals at 95 %% are each run's own, of other requests of the same kind in it.", len(r.Runs))
}

// Valid counts the runs that are.
func (r *Repeats) Valid() (n int) {
	for _, a := range r.Runs {
		if a.Summary.Fidelity.Verdict != metrics.Invalid {
			n++
		}
	}
	return n
}

// Figure is one figure of all requests; nil where no run has it.
func (r *Repeats) Figure(metric, statistic string) *RepeatedFigure {
	for i := range r.Figures {
		if f := &r.Figures[i]; f.By == "" && f.Metric == metric && f.Statistic == statistic {
			return f
		}
	}
	return nil
}

// Main lists the figures of the table over all runs.
func (r *Repeats) Main() (out []*RepeatedFigure) {
	for _, m := range []string{"ttft", "e2e", "tpot", "itl"} {
		for _, s := range []string{"p50", "p90", "p99", "mean"} {
			if f := r.Figure(m, s); f != nil {
				out = append(out, f)
			}
		}
	}
	for _, k := range [][2]string{
		{"requests", "failed_share"}, {"requests", "completed_per_second"}, {"output_tokens", "per_second"}, {"goodput", "per_second"}, {"goodput", "share"},
		{"in_flight", "mean"}, {"prompt_tokens", "cached_share"}, {"energy", "joules_per_output_token"}, {"send_error", "p99"},
	} {
		if f := r.Figure(k[0], k[1]); f != nil {
			out = append(out, f)
		}
	}
	return out
}

// Title names a figure: "ttft.p99".
func (f *RepeatedFigure) Title() string {
	if f.Statistic == "" {
		return f.Metric
	}
	return f.Metric + "." + f.Statistic
}

// Format writes a value in the figure's unit.
func (f *RepeatedFigure) Format(n Number) string { return (&Metric{Unit: f.Unit}).value(n) }

// Interval writes the interval of a value of the figure, "-" where there is none.
func (f *RepeatedFigure) Interval(v Value) string { return (&Metric{Unit: f.Unit}).interval(v) }

// extremes are the least and the greatest of the runs.
func (f *RepeatedFigure) extremes() (least, greatest Number) {
	for _, v := range f.Runs {
		if v.V.OK && (!least.OK || v.V.V < least.V) {
			least = v.V
		}
		if v.V.OK && (!greatest.OK || v.V.V > greatest.V) {
			greatest = v.V
		}
	}
	return least, greatest
}

// Range writes the least and the greatest of the runs.
func (f *RepeatedFigure) Range() string {
	lo, hi := f.extremes()
	return (&Metric{Unit: f.Unit}).interval(Value{Lo: lo, Hi: hi})
}

// Withheld groups the reasons for which main figures have no interval over runs.
func (r *Repeats) Withheld() (out []string) {
	by := map[string][]string{}
	var order []string
	for _, f := range r.Main() {
		if f.Why == "" || len(r.Runs) < minRepeats && f.Of == len(r.Runs) {
			continue
		}
		if by[f.Why] == nil {
			order = append(order, f.Why)
		}
		by[f.Why] = append(by[f.Why], f.Title())
	}
	for _, why := range order {
		out = append(out, enumerate(by[why])+": "+why)
	}
	return out
}

// A RepeatedSegment is a segment over the runs: the figures of shownFigures.
type RepeatedSegment struct {
	By, Label string
	Requests  *RepeatedFigure
	Figures   []*RepeatedFigure // nil where no run has it
}

// SegmentHead names the figures of a RepeatedSegment.
func SegmentHead() []string { return slices.Clone(shownFigures) }

// Segments lists the segments over the runs.
func (r *Repeats) Segments() (out []RepeatedSegment) {
	for i := range r.Figures {
		f := &r.Figures[i]
		if f.By == "" {
			continue
		}
		if n := len(out); n == 0 || out[n-1].By != f.By || out[n-1].Label != f.Label {
			k := slices.IndexFunc(out, func(s RepeatedSegment) bool { return s.By == f.By && s.Label == f.Label })
			if k < 0 {
				out = append(out, RepeatedSegment{By: f.By, Label: f.Label, Figures: make([]*RepeatedFigure, len(shownFigures))})
			} else { // that the first run did not have
				out = append(out[:k], append(out[k+1:], out[k])...)
			}
		}
		s := &out[len(out)-1]
		if k := slices.Index(shownFigures, f.Title()); k >= 0 {
			s.Figures[k] = f
		} else if f.Metric == "requests" && f.Statistic == "measured" {
			s.Requests = f
		}
	}
	return out
}

// runRow is a run in the table of runs.
func (a *Analysis) runRow() []string {
	s := a.Summary
	verdict := strings.ReplaceAll(s.Fidelity.Verdict, "_", " ")
	if s.Fidelity.Verdict == metrics.Invalid {
		verdict = "INVALID"
	}
	if a.State != "" && a.State != StateComplete {
		verdict += ", " + a.State
	}
	cell := func(d *metrics.Dist, key string) string {
		i := slices.IndexFunc(d.Statistics(), func(q metrics.Statistic) bool { return q.Name == key && q.Value.OK })
		if i < 0 {
			return "-"
		}
		q := d.Statistics()[i]
		text := q.Value.V.String()
		if ci, ok := q.Interval.Get(); ok {
			text += fmt.Sprintf(" (%s to %s)", ci[0], ci[1])
		}
		return text
	}
	return []string{a.Name, verdict, units.Count(s.Requests.OK) + " of " + units.Count(s.Requests.Measured),
		cell(&s.TTFT.Schedule, "p50"), cell(&s.TTFT.Schedule, "p99"), cell(&s.E2E.Schedule, "p50"), units.Digits(s.Rates.OutputTokens)}
}

// runHead are the columns of runRow.
var runHead = []string{"run", "verdict", "ok", "TTFT p50", "TTFT p99", "E2E p50", "output tok/s"}

func (r *Repeats) headline() string {
	text := fmt.Sprintf("%s: %d runs", r.Name, len(r.Runs))
	if n := len(r.Runs) - r.Valid(); n > 0 {
		text = fmt.Sprintf("INVALID: %s, %d of them not what the trace says", text, n)
	}
	return text
}

// figureHead and figureRow are the table over the runs. Below three runs there
// is no interval over them: the runs' own stand in the table of runs.
func (r *Repeats) figureHead() []string {
	head := []string{"metric", "mean of runs", "95 % interval", "sd of runs", "least to greatest"}
	for i := range r.Runs {
		head = append(head, fmt.Sprintf("run %d", i+1))
	}
	return head
}

func (f *RepeatedFigure) row(ownIntervals bool) []string {
	row := []string{f.Title(), f.Format(f.V), f.Interval(f.Value), f.Format(f.SD), f.Range()}
	for _, v := range f.Runs {
		text := f.Format(v.V)
		if ownIntervals && v.Lo.OK && v.Hi.OK {
			text += " (" + f.Interval(v) + ")"
		}
		row = append(row, text)
	}
	return row
}

// RenderText writes the repeats for a terminal.
func (r *Repeats) RenderText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", r.headline())
	t := &cli.Table{Head: runHead}
	for _, a := range r.Runs {
		t.Row(a.runRow()...)
	}
	if err := t.Write(&b, ""); err != nil {
		return err
	}
	b.WriteString("\n")
	own := r.Estimand == TheseRuns
	t = &cli.Table{Head: r.figureHead()}
	for _, f := range r.Main() {
		t.Row(f.row(own)...)
	}
	if err := t.Write(&b, ""); err != nil {
		return err
	}
	if r.AsOf != nil {
		fmt.Fprintf(&b, "\nby the formulas of %s:\n", r.As)
		t = &cli.Table{Head: r.figureHead()}
		for i := range r.AsOf {
			t.Row(r.AsOf[i].row(own)...)
		}
		if err := t.Write(&b, ""); err != nil {
			return err
		}
	}
	if segments := r.Segments(); segments != nil {
		b.WriteString("\n")
		t = &cli.Table{Head: append([]string{"segment", "requests"}, shownFigures...)}
		for _, s := range segments {
			t.Row(s.row(strings.ReplaceAll(s.By, "_", " ") + " " + s.Label)...)
		}
		if err := t.Write(&b, ""); err != nil {
			return err
		}
	}
	fmt.Fprintf(&b, "\n%s\n", r.Scope())
	for _, why := range r.Withheld() {
		fmt.Fprintf(&b, "no interval: %s\n", why)
	}
	for _, text := range r.Warnings {
		fmt.Fprintf(&b, "* %s\n", text)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (s *RepeatedSegment) row(name string) []string {
	row := []string{name, "-"}
	if s.Requests != nil {
		row[1] = s.Requests.Format(s.Requests.V)
	}
	for _, f := range s.Figures {
		if f == nil || !f.V.OK {
			row = append(row, "-")
			continue
		}
		text := f.Format(f.V)
		if f.Lo.OK {
			text += " (" + f.Interval(f.Value) + ")"
		}
		row = append(row, text)
	}
	return row
}

// RenderMarkdown writes the repeats for a merge request or a wiki.
func (r *Repeats) RenderMarkdown(w io.Writer) error {
	var b strings.Builder
	table := func(head []string, rows [][]string) {
		fmt.Fprintf(&b, "| %s |\n|---%s|\n", strings.Join(head, " | "), strings.Repeat("|--:", len(head)-1))
		for _, row := range rows {
			for _, c := range row {
				fmt.Fprintf(&b, "| %s ", markdown(c))
			}
			b.WriteString("|\n")
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "### %s\n\n", markdown(r.headline()))
	var rows [][]string
	for _, a := range r.Runs {
		rows = append(rows, a.runRow())
	}
	table(runHead, rows)
	rows = nil
	for _, f := range r.Main() {
		rows = append(rows, f.row(r.Estimand == TheseRuns))
	}
	table(r.figureHead(), rows)
	if r.AsOf != nil {
		rows = nil
		for i := range r.AsOf {
			rows = append(rows, r.AsOf[i].row(r.Estimand == TheseRuns))
		}
		fmt.Fprintf(&b, "By the formulas of %s:\n\n", markdown(r.As))
		table(r.figureHead(), rows)
	}
	if segments := r.Segments(); segments != nil {
		rows = nil
		for _, s := range segments {
			rows = append(rows, s.row(strings.ReplaceAll(s.By, "_", " ")+" "+s.Label))
		}
		table(append([]string{"segment", "requests"}, shownFigures...), rows)
	}
	fmt.Fprintf(&b, "%s\n\n", r.Scope())
	for _, why := range r.Withheld() {
		fmt.Fprintf(&b, "- no interval: %s\n", markdown(why))
	}
	for _, text := range r.Warnings {
		fmt.Fprintf(&b, "- %s\n", markdown(text))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// WriteCSV writes the columns of Analysis.WriteCSV and two more: the run, empty
// for the mean of the runs, and the standard deviation over them. The n of a mean
// is the number of runs that have it.
func (r *Repeats) WriteCSV(w io.Writer) error {
	c := csv.NewWriter(w)
	if err := c.Write(append(slices.Clone(csvHead), "run", "sd")); err != nil {
		return err
	}
	for i := range r.Figures {
		f := &r.Figures[i]
		if err := c.Write([]string{f.By, unformula(f.Label), f.Metric, f.Statistic, csvNumber(f.V, f.Unit), csvNumber(f.Lo, f.Unit), csvNumber(f.Hi, f.Unit), f.Unit, strconv.Itoa(f.Of), "", csvNumber(f.SD, f.Unit)}); err != nil {
			return err
		}
	}
	for _, a := range r.Runs {
		for _, f := range a.RunFigures() {
			if err := c.Write(append(f.record(), unformula(a.Name), "")); err != nil {
				return err
			}
		}
	}
	c.Flush()
	return c.Error()
}
