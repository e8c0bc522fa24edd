package main

import (
	"bytes"
	"math"
	"strings"
	"testing"

	"reprise/synth/score"
)

// The table says what passes, what falls short, and that a wrong model that
// passes is a mistake of the table.
func TestPrint(t *testing.T) {
	nan := score.Number(math.NaN())
	tab := &table{Seeds: 2, Notes: []string{"a note"}, Figures: []figure{
		{Row: "3", Metric: "worst |ln IDC|", Protocol: "R", Trace: "conv", Model: plain, Value: 0.1, Min: 0.09, Max: 0.2, Seeds: 2, Low: nan, High: 0.25, Verdict: "pass"},
		{Row: "16", Metric: "p99", Protocol: "R", Trace: "code", Model: plain, Value: 2, Min: nan, Max: nan, Seeds: 1, Low: 0.8, High: 1.25, Floor: "0.61", Verdict: "fail"},
		{Row: "20", Metric: "IDC", Protocol: "R", Trace: "conv", Model: "wrong: Poisson", Value: 3, Low: nan, High: 0.25, Verdict: "fail", Expected: "fail"},
	}}
	if tab.unexpected() {
		t.Error("a model that falls short is no mistake of the table")
	}
	var text, md bytes.Buffer
	if err := tab.text(&text); err != nil {
		t.Fatal(err)
	}
	if err := tab.markdown(&md); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"model: 1 of 2 limits kept; 1 of 1 checks find the wrong model", "fail, as it has to", "0.090 to 0.200", "note: a note"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the text lacks %q:\n%s", want, text.String())
		}
	}
	for _, want := range []string{`| 3 | worst \|ln IDC\| | R | 0.100 (<= 0.250) |  |`, "**2.000** (0.800 to 1.250, floor 0.61)", "| Poisson | conv | IDC | 3.000 | <= 0.250 |", "- a note"} {
		if !strings.Contains(md.String(), want) {
			t.Errorf("the Markdown lacks %q:\n%s", want, md.String())
		}
	}
	tab.Figures[2].Verdict = "pass"
	if !tab.unexpected() {
		t.Error("a wrong model that passes goes unnoticed")
	}
}

func TestOrder(t *testing.T) {
	if !(order("2") < order("10") && order("19") < order("19b") && order("19b") < order("20")) {
		t.Error("rows are out of order")
	}
}
