package main

import (
	"fmt"
	"io"
	"math"
	"strings"

	"reprise/internal/cli"
)

// unexpected says whether a figure is not what it has to be: a wrong model that
// passes. Models that fall short are shown, and do not fail the run: the table
// is a statement, not a gate.
func (t *table) unexpected() bool {
	for _, f := range t.Figures {
		if f.Expected == "fail" && f.Verdict != "fail" {
			return true
		}
	}
	return false
}

func number(v float64) string {
	switch a := math.Abs(v); {
	case math.IsNaN(v):
		return "-"
	case a != 0 && a < 0.01:
		return fmt.Sprintf("%.4f", v)
	case a < 10:
		return fmt.Sprintf("%.3f", v)
	}
	return fmt.Sprintf("%.1f", v)
}

var head = []string{"row", "metric", "by", "trace", "model", "value", "seeds", "limit", "floor", "verdict"}

func (t *table) cells() [][]string {
	var rows [][]string
	for _, f := range t.Figures {
		limit := "<= " + number(float64(f.High))
		if f.Low.OK() {
			limit = number(float64(f.Low)) + " to " + number(float64(f.High))
		}
		verdict := f.Verdict
		if f.Expected != "" {
			verdict += ", as it has to"
			if f.Verdict != f.Expected {
				verdict = f.Verdict + ", but has to " + f.Expected
			}
		}
		floor := f.Floor
		if floor == "" {
			floor = "-"
		}
		span := ""
		if f.Seeds > 1 {
			span = number(float64(f.Min)) + " to " + number(float64(f.Max))
		}
		rows = append(rows, []string{f.Row, f.Metric, f.Protocol, f.Trace, f.Model, number(float64(f.Value)), span, limit, floor, verdict})
	}
	return rows
}

func (t *table) summary() string {
	count := map[string]map[string]int{}
	for _, f := range t.Figures {
		if f.Expected != "" {
			continue
		}
		if count[f.Model] == nil {
			count[f.Model] = map[string]int{}
		}
		count[f.Model][f.Verdict]++
	}
	var parts []string
	for _, m := range []string{plain, withRows} {
		if c := count[m]; c != nil {
			parts = append(parts, fmt.Sprintf("%s: %d of %d limits kept", m, c["pass"], c["pass"]+c["fail"]))
		}
	}
	wrong, caught := 0, 0
	for _, f := range t.Figures {
		if f.Expected != "" {
			wrong++
			if f.Verdict == f.Expected {
				caught++
			}
		}
	}
	return fmt.Sprintf("%s; %d of %d checks find the wrong model", strings.Join(parts, "; "), caught, wrong)
}

func (t *table) text(w io.Writer) error {
	tab := cli.Table{Head: head}
	for _, r := range t.cells() {
		tab.Row(r...)
	}
	if err := tab.Write(w, ""); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "\nmedian of %d seeds; %s\n", t.Seeds, t.summary()); err != nil {
		return err
	}
	for _, n := range t.Notes {
		if _, err := fmt.Fprintf(w, "note: %s\n", n); err != nil {
			return err
		}
	}
	return nil
}

func (t *table) markdown(w io.Writer) error {
	var b strings.Builder
	cell := strings.NewReplacer("|", `\|`).Replace
	line := func(cells []string) {
		for _, c := range cells {
			b.WriteString("| " + cell(c) + " ")
		}
		b.WriteString("|\n")
	}
	line(head)
	b.WriteString("|---|---|---|---|---|---:|---:|---:|---:|---|\n")
	for _, r := range t.cells() {
		line(r)
	}
	fmt.Fprintf(&b, "\nMedian of %d seeds; %s.\n", t.Seeds, t.summary())
	for _, n := range t.Notes {
		fmt.Fprintf(&b, "\n- %s", n)
	}
	_, err := io.WriteString(w, b.String())
	return err
}
