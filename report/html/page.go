package html

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"strings"

	"reprise/internal/plot"
)

var (
	//go:embed assets/page.html
	pageHTML string
	//go:embed assets/page.css
	pageCSS string
	//go:embed assets/page.js
	pageJS string
	//go:embed assets/uplot.css
	uplotCSS string
	//go:embed assets/uplot.js
	uplotJS string
	//go:embed assets/uplot.LICENSE
	uplotLicence string
)

var pageTemplate = template.Must(template.New("page").Parse(pageHTML))

// A page is what the template shows.
type page struct {
	Eyebrow, Title, Lead string
	Verdict              verdict
	Sides                []side
	Cards                []card
	Cautions             []string
	Sections             []section
	Foot                 string

	live   []panel
	policy string // Policy unless set
}

// A verdict says whether the figures may be believed.
type verdict struct {
	Class   string // good, bad, plain
	Word    string // VALID
	Text    string
	Reasons []string
}

// A side is a thing that is shown, with its colour.
type side struct{ Class, Mark, Name, Detail string }

// A card is a figure that a reader looks for first.
type card struct {
	Name   string
	Values []cardValue
	Change string // "+4.2 % (+1.0 % to +7.5 %)"
	Chip   chip
	Note   string
}

type cardValue struct{ Class, Mark, Text string }

// A chip is a word with a colour; the word alone says it all.
type chip struct{ Class, Text string }

type section struct {
	ID, Title string
	Text      []string
	Blocks    []block
	Beside    bool   // blocks stand beside each other where there is room
	Compare   string // of a form around the section, what its button says
}

// A block is one of its fields.
type block struct {
	Title   string
	Table   *table
	Figures []figure
	Facts   []fact
	List    []string
	Fold    bool // closed until asked for
	Narrow  bool // the table is no wider than it needs to be
}

type fact struct{ Name, Value string }

type table struct {
	Caption string
	Head    []string
	Rows    [][]cell
	Sorted  bool // by the reader
}

type cell struct {
	Text string
	Sort string // what the column is sorted by, if not the text
	Sub  string // a smaller line under it
	Chip string // class of a chip
	SVG  template.HTML
	Link string
	// Pick makes the cell a choice: the name of the parameter, its value and what
	// it is called.
	Pick *pick
}

type pick struct {
	Name, Value, Label string
	Chosen             bool
}

// A figure is a drawing with its data, and a live one where Panel names it.
type figure struct {
	SVG     template.HTML
	Caption string
	Head    []string
	Rows    [][]string
	Panel   string
	Note    string
}

// A panel is what the script draws: lines over time.
type panel struct {
	ID    string `json:"id"`
	Title string `json:"title"`
	Unit  string `json:"unit"`
	Log   bool   `json:"log,omitempty"`
	X     points `json:"x"` // s
	Lines []line `json:"lines"`
}

type line struct {
	Name  string `json:"name"`
	Color int    `json:"color"` // place in the palette
	Y     points `json:"y"`
	Low   points `json:"low,omitempty"`
	High  points `json:"high,omitempty"`
}

// points are numbers of four digits; NaN is null.
type points []float64

// MarshalJSON implements json.Marshaler.
func (p points) MarshalJSON() ([]byte, error) {
	b := []byte{'['}
	for i, v := range p {
		if i > 0 {
			b = append(b, ',')
		}
		if v != v || v > 1e300 || v < -1e300 {
			b = append(b, "null"...)
		} else {
			b = fmt.Appendf(b, "%.4g", v)
		}
	}
	return append(b, ']'), nil
}

// style is all CSS of a page, script all JavaScript: constants, so that their
// hashes are the content policy of every page.
var (
	style  = uplotCSS + "\n" + colors() + plot.Shapes + "\n" + pageCSS
	script = "/* uPlot 1.6.32\n" + uplotLicence + "*/\n" + stripFirstComment(uplotJS) + "\n" + pageJS
)

// Policy is the content policy of every page.
var Policy = fmt.Sprintf("default-src 'none'; style-src 'sha256-%s'; script-src 'sha256-%s'; base-uri 'none'; form-action 'none'", hash(style), hash(script))

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// stripFirstComment drops the address of the library, so that no page holds
// one; its licence stands before it.
func stripFirstComment(js string) string {
	if rest, ok := strings.CutPrefix(js, "/*!"); ok {
		_, js, _ = strings.Cut(rest, "*/")
	}
	return js
}

// colors says which colours a page has, by the reader's preference or choice.
func colors() string {
	light, dark := plot.Colors(false), plot.Colors(true)
	return ":root{" + light + "}@media screen and (prefers-color-scheme:dark){:root:not([data-theme=light]){" + dark +
		"}}@media screen{:root[data-theme=dark]{" + dark + "}}"
}

// write renders the page.
func (p *page) write(w io.Writer) error {
	var body bytes.Buffer
	if err := pageTemplate.Execute(&body, p); err != nil {
		return err
	}
	data, err := json.Marshal(p.live)
	if err != nil {
		return err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="%s">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="color-scheme" content="light dark">
<title>%s</title>
<style>%s</style>
</head>
<body>
`, cmp.Or(p.policy, Policy), template.HTMLEscapeString(p.Title), style)
	b.Write(body.Bytes())
	fmt.Fprintf(&b, "<script type=\"application/json\" id=\"panels\">%s</script>\n<script>%s</script>\n</body>\n</html>\n", data, script)
	_, err = w.Write(b.Bytes())
	return err
}

// draw makes a figure of a drawing.
func draw(f plot.Figure) (figure, error) {
	svg, err := plot.Inline(f)
	if err != nil {
		return figure{}, err
	}
	head, rows := f.Data()
	// plot escapes every text of a drawing.
	return figure{SVG: template.HTML(svg), Caption: f.Caption(), Head: head, Rows: rows}, nil
}
