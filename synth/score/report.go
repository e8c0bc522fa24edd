package score

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strings"

	"reprise/internal/cli"
	"reprise/internal/units"
)

// A Report is the comparison of two traces.
type Report struct {
	Schema    string   `json:"schema"` // [Schema]
	Reference Side     `json:"reference"`
	Other     Side     `json:"other"`
	Seeds     int      `json:"seeds"` // how often the other side was generated
	Metrics   []Metric `json:"metrics"`
	Notes     []string `json:"notes,omitempty"`
}

// A Side is one of the two traces.
type Side struct {
	Name    string `json:"name"`
	Rows    int    `json:"rows"`
	Seconds Number `json:"seconds"`
	Rate    Number `json:"rate"`
}

func side(s *Sample) Side {
	return Side{s.Name, s.N(), Number(s.Horizon), Number(s.Rate())}
}

// Metric returns the line with this key.
func (r *Report) Metric(key string) (Metric, bool) {
	for _, m := range r.Metrics {
		if m.Key == key {
			return m, true
		}
	}
	return Metric{}, false
}

// Count returns how many lines have a verdict.
func (r *Report) Count(v Verdict) int {
	n := 0
	for _, m := range r.Metrics {
		if m.Verdict == v {
			n++
		}
	}
	return n
}

// OK says whether no metric fails.
func (r *Report) OK() bool { return r.Count(Fail) == 0 }

// figure prints a value of a metric: three digits after the point, more of a
// small one, fewer of a large one.
func figure(n Number) string {
	v := float64(n)
	switch a := math.Abs(v); {
	case math.IsNaN(v):
		return "-"
	case math.IsInf(v, 0):
		return "inf"
	case a == 0:
		return "0"
	case a < 0.01:
		return fmt.Sprintf("%.4f", v)
	case a < 10:
		return fmt.Sprintf("%.3f", v)
	case a < 100:
		return fmt.Sprintf("%.1f", v)
	}
	return units.Count(int64(math.Round(v)))
}

func (m *Metric) limit() string {
	switch {
	case m.Verdict == Info || !m.High.OK():
		return "-"
	case m.Low.OK():
		return figure(m.Low) + " to " + figure(m.High)
	}
	return "<= " + figure(m.High)
}

// rows are the lines worth printing: what neither side knows is left out.
func (r *Report) table(seeds bool) (head []string, rows [][]string) {
	head = []string{"metric", "value", "reference", "other", "floor", "limit", "verdict"}
	if seeds {
		head = append(head, "seeds")
	}
	for _, m := range r.Metrics {
		if m.Verdict == NotKnown {
			continue
		}
		row := []string{m.Name, figure(m.Value), figure(m.Reference), figure(m.Other), figure(m.Floor), m.limit(), string(m.Verdict)}
		if seeds {
			span := ""
			if m.Min.OK() {
				span = figure(m.Min) + " to " + figure(m.Max)
			}
			row = append(row, span)
		}
		rows = append(rows, row)
	}
	return head, rows
}

func (r *Report) summary() string {
	s := fmt.Sprintf("%d of %d limits are kept", r.Count(Pass), r.Count(Pass)+r.Count(Fail))
	if n := r.Count(NoFloor); n > 0 {
		s += fmt.Sprintf("; %d have no floor, as the reference is too short to be split", n)
	}
	return s
}

func (s Side) describe() string {
	return fmt.Sprintf("%s: %s rows over %s s, %s", s.Name, units.Count(int64(s.Rows)), units.Digits(float64(s.Seconds)), units.Rate(float64(s.Rate)))
}

// explanation is printed under every table.
const explanation = `A distance (KS, W1, |ln|, difference) is 0 where both are alike; a ratio is other / reference.
The floor is the same figure between two parts of the reference: alternate 60 s blocks for
lengths, halves for what has an order. A limit never asks for less than the reference's own noise.`

// WriteText prints the table for a terminal.
func (r *Report) WriteText(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "reference  %s\nother      %s\n\n", r.Reference.describe(), r.Other.describe())
	head, rows := r.table(r.Seeds > 1)
	t := cli.Table{Head: head}
	for _, row := range rows {
		t.Row(row...)
	}
	if err := t.Write(&b, ""); err != nil {
		return err
	}
	fmt.Fprintf(&b, "\n%s\n", r.summary())
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	fmt.Fprintf(&b, "\n%s\n", explanation)
	_, err := io.WriteString(w, b.String())
	return err
}

// WriteMarkdown prints the table as Markdown.
func (r *Report) WriteMarkdown(w io.Writer) error {
	var b strings.Builder
	cell := strings.NewReplacer("|", `\|`, "\n", " ").Replace
	fmt.Fprintf(&b, "Reference: %s  \nOther: %s\n\n", cell(r.Reference.describe()), cell(r.Other.describe()))
	head, rows := r.table(r.Seeds > 1)
	line := func(cells []string) {
		for _, c := range cells {
			b.WriteString("| " + cell(c) + " ")
		}
		b.WriteString("|\n")
	}
	line(head)
	b.WriteString("|---|" + strings.Repeat("---:|", len(head)-1) + "\n")
	for _, row := range rows {
		line(row)
	}
	fmt.Fprintf(&b, "\n%s.\n", r.summary())
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "\nNote: %s.\n", n)
	}
	fmt.Fprintf(&b, "\n%s\n", explanation)
	_, err := io.WriteString(w, b.String())
	return err
}

// ReadReport reads a Report that was written as JSON.
func ReadReport(data []byte) (*Report, error) {
	var r Report
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("not a score report: %w", err)
	}
	if r.Schema != Schema {
		return nil, fmt.Errorf("score report of schema %.40q, want %q", r.Schema, Schema)
	}
	return &r, nil
}
