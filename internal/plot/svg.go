package plot

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"html"
	"math"
	"strconv"
	"strings"
)

// Size of a drawing, in its own units.
const (
	width    = 480
	fontSize = 13
	small    = 12
)

// palette is Okabe and Ito's, adjusted for contrast on white and on near-black:
// a series takes colour i of the list.
var palette = []struct{ light, dark string }{
	{"#0072b2", "#56b4e9"},
	{"#c44601", "#f5a04c"},
	{"#00785a", "#2fc6a0"},
	{"#9b4c86", "#e08fc3"},
	{"#6b5d00", "#e8d94a"},
	{"#555555", "#b0b0b0"},
}

// dashes tells series apart without colour.
var dashes = []string{"", "7 4", "2 3", "9 3 2 3", "4 2", "1 2"}

// style is the CSS of every drawing that stands alone.
var style = ".rp{" + Colors(false) + "font:13px system-ui,-apple-system,'Segoe UI',sans-serif;max-width:100%;height:auto}" +
	"@media(prefers-color-scheme:dark){.rp{" + Colors(true) + "}}" + Shapes

// A canvas collects one drawing.
type canvas struct {
	bytes.Buffer
	height float64
}

// open starts the svg element with its texts for screen readers.
func (c *canvas) open(title, desc string, height float64) {
	c.height = height
	id := identity(title, desc)
	fmt.Fprintf(c, `<svg xmlns="http://www.w3.org/2000/svg" class="rp" viewBox="0 0 %d %s" width="%d" height="%s" role="img" aria-labelledby="%s-t %s-d">`,
		width, num(height), width, num(height), id, id)
	fmt.Fprintf(c, `<title id="%s-t">%s</title><desc id="%s-d">%s</desc>%s`, id, escape(title), id, escape(desc), styleElement)
	fmt.Fprintf(c, `<rect class="rp-bg" width="%d" height="%s"/>`, width, num(height))
	c.WriteByte('\n')
}

// escape makes text safe for XML, which has no place for control characters.
func escape(s string) string {
	return html.EscapeString(strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == 0xfffe || r == 0xffff {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\ufffd")))
}

func (c *canvas) close() { c.WriteString("</svg>\n") }

// identity makes element ids that differ between the figures of a page.
func identity(parts ...string) string {
	h := fnv.New32a()
	for _, p := range parts {
		h.Write([]byte(p))
		h.Write([]byte{0})
	}
	return fmt.Sprintf("rp%08x", h.Sum32())
}

// num prints a coordinate.
func num(v float64) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return "0"
	}
	s := strconv.FormatFloat(math.Round(v*10)/10, 'f', -1, 64)
	if s == "-0" {
		return "0"
	}
	return s
}

func (c *canvas) text(x, y float64, class, anchor, s string) {
	fmt.Fprintf(c, `<text x="%s" y="%s"`, num(x), num(y))
	if class != "" {
		fmt.Fprintf(c, ` class="%s"`, class)
	}
	if anchor != "" {
		fmt.Fprintf(c, ` text-anchor="%s"`, anchor)
	}
	fmt.Fprintf(c, ">%s</text>\n", escape(s))
}

func (c *canvas) line(x1, y1, x2, y2 float64, class string) {
	fmt.Fprintf(c, `<line x1="%s" y1="%s" x2="%s" y2="%s" class="%s"/>`+"\n", num(x1), num(y1), num(x2), num(y2), class)
}

// textWidth is about how wide a text is drawn.
func textWidth(s string, size float64) float64 {
	return float64(len([]rune(s))) * size * 0.56
}

// header draws title and legend and returns the height that they take.
func (c *canvas) header(title string, entries []entry) float64 {
	y := 20.0
	for _, line := range wrapText(title, width-24, fontSize*1.08) {
		c.text(12, y, "rp-title", "", line)
		y += 17
	}
	x := 12.0
	y += 3
	for _, e := range entries {
		w := 28 + textWidth(e.name, small)*1.06 + 16
		if x+w > width && x > 12 {
			x, y = 12, y+18
		}
		e.draw(c, x, y-4)
		c.text(x+28, y, "rp-dim", "", e.name)
		x += w
	}
	if len(entries) > 0 {
		y += 14
	}
	return y
}

// headerHeight is what header returns, before anything is drawn.
func headerHeight(title string, entries []entry) float64 {
	var scratch canvas
	return scratch.header(title, entries)
}

// An entry is one line of a legend.
type entry struct {
	name  string
	color int
	kind  byte // 'l' line, 'b' band, 'r' rectangle, '-' rule
}

func (e entry) draw(c *canvas, x, y float64) {
	switch e.kind {
	case 'b':
		fmt.Fprintf(c, `<rect x="%s" y="%s" width="22" height="10" class="rp-band rp-f%d"/>`+"\n", num(x), num(y-5), e.color)
	case 'r':
		fmt.Fprintf(c, `<rect x="%s" y="%s" width="12" height="10" class="rp-f%d"/>`+"\n", num(x+8), num(y-5), e.color)
	case '-':
		c.line(x, y, x+22, y, "rp-rule")
	default:
		fmt.Fprintf(c, `<path d="M%s %sh22" class="rp-line rp-s%d"%s/>`+"\n", num(x), num(y), e.color, dash(e.color))
	}
}

func dash(i int) string {
	if d := dashes[i%len(dashes)]; d != "" {
		return ` stroke-dasharray="` + d + `"`
	}
	return ""
}

func wrapText(s string, limit, size float64) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(s) {
		if line != "" && textWidth(line+" "+word, size) > limit {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
