package html

import (
	"html/template"
	"io"
	"math"

	"reprise/internal/plot"
	"reprise/report"
)

// What a page is made of, for packages that write pages of their own kind. All
// text in it is escaped.
type (
	Page      = page
	Verdict   = verdict
	Side      = side
	Card      = card
	CardValue = cardValue
	Chip      = chip
	Section   = section
	Block     = block
	Table     = table
	Cell      = cell
	Fact      = fact
	Figure    = figure
)

// Write writes a page as one HTML file that needs nothing but itself.
func (p *page) Write(w io.Writer) error { return p.write(w) }

// Draw makes a figure of a drawing; what it says is escaped.
func Draw(f plot.Figure) (Figure, error) { return draw(f) }

// Forest draws a relative difference with its interval on a logarithmic scale,
// at either end that of [ForestScale]. class is good, bad or plain.
func Forest(rel report.Value, most float64, class string) template.HTML {
	return forest(rel, most, class)
}

// ForestScale is the scale of a column of forests: the logarithm of the largest
// factor, of at most 100.
func ForestScale(rels []report.Value) (most float64) {
	for _, r := range rels {
		for _, n := range []report.Number{r.V, r.Lo, r.Hi} {
			if n.OK {
				most = max(most, math.Abs(math.Log1p(max(n.V, -0.999))))
			}
		}
	}
	return min(most, math.Log(100))
}

// Flatten lists the values of a JSON object, one a fact, nested names joined.
func Flatten(object map[string]any) (out []Fact) {
	flatten("", object, &out)
	return out
}

// How explains the figures of every page.
func How() []string { return how }
