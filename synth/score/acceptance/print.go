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
		rows = append(rows, []string{f.Row, f.Metric, f.Protocol, f.Trace, f.Model, number(float64(f.Value)), span, f.limit(), floor, verdict})
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
	for _, m := range []string{plain, withRows, rowsAlone} {
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
	if len(t.Unseen) > 0 {
		fmt.Fprintf(w, "\nunseen traffic: %s\n\n", t.claimSummary())
		tab := cli.Table{Head: []string{"learnt from, then tested on", "fit", "says it fits", "turns out", "misses"}}
		for i := range t.Unseen {
			c := &t.Unseen[i]
			says := "no"
			if c.Fits {
				says = "yes"
			}
			tab.Row(c.Case, c.Chosen, says, c.verdict(), strings.Join(c.misses(), ", "))
		}
		if err := tab.Write(w, ""); err != nil {
			return err
		}
	}
	for _, n := range t.Notes {
		if _, err := fmt.Fprintf(w, "note: %s\n", n); err != nil {
			return err
		}
	}
	return nil
}

// markdown prints the table as docs/synthesis.md has it: a row a metric, a
// column a trace, in a cell the value, its limit and floor.
func (t *table) markdown(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Median of %d seeds, limit and floor in parentheses, what misses its limit in bold. %s.\n", t.Seeds, t.summary())
	for _, part := range []struct{ model, title string }{
		{plain, "Models without rows of the source:"},
		{withRows, "The next half hour where rows of the source are allowed (`--allow-resampling`), and the fit chooses:"},
		{rowsAlone, "The next half hour by a block bootstrap of the source's rows alone (`--allow-resampling --arrivals rows`):"},
	} {
		fmt.Fprintf(&b, "\n%s\n\n", part.title)
		t.columns(&b, part.model)
	}
	b.WriteString("\nModels that are wrong on purpose, and the metric that finds them:\n\n| model | trace | metric | value | limit |\n|---|---|---|---:|---|\n")
	for _, f := range t.Figures {
		if f.Expected != "" {
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", strings.TrimPrefix(f.Model, "wrong: "), f.Trace, escaped(f.Metric), number(float64(f.Value)), f.limit())
		}
	}
	if len(t.Unseen) > 0 {
		t.claims(&b)
	}
	for i, n := range t.Notes {
		if i == 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "- %s\n", n)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

var traceTitles = []struct{ name, title string }{
	{"conv", "Azure conversation"}, {"code", "Azure code"}, {"moon", "Mooncake conversation"}, {"sessions", "coding sessions"}, {"program", "program"},
}

// columns prints the figures of one kind of model, those that have any.
func (t *table) columns(b *strings.Builder, model string) {
	type key struct{ row, metric, protocol string }
	var keys []key
	cells := map[key]map[string]string{}
	there := map[string]bool{}
	for _, f := range t.Figures {
		if f.Model != model {
			continue
		}
		k := key{f.Row, f.Metric, f.Protocol}
		if cells[k] == nil {
			cells[k] = map[string]string{}
			keys = append(keys, k)
		}
		value := number(float64(f.Value))
		if f.Verdict != "pass" {
			value = "**" + value + "**"
		}
		floor := ""
		if f.Floor != "" {
			floor = ", floor " + f.Floor
		}
		cells[k][f.Trace] = fmt.Sprintf("%s (%s%s)", value, f.limit(), floor)
		there[f.Trace] = true
	}
	head, rule := "| row | metric | by |", "|---|---|---|"
	for _, one := range traceTitles {
		if there[one.name] {
			head, rule = head+" "+one.title+" |", rule+"---|"
		}
	}
	fmt.Fprintf(b, "%s\n%s\n", head, rule)
	for _, k := range keys {
		fmt.Fprintf(b, "| %s | %s | %s |", k.row, escaped(k.metric), k.protocol)
		for _, one := range traceTitles {
			if there[one.name] {
				fmt.Fprintf(b, " %s |", cells[k][one.name])
			}
		}
		b.WriteByte('\n')
	}
}

var escaped = strings.NewReplacer("|", `\|`).Replace

func (f *figure) limit() string {
	if f.Low.OK() {
		return number(float64(f.Low)) + " to " + number(float64(f.High))
	}
	return "<= " + number(float64(f.High))
}
