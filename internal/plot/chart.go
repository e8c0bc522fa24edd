package plot

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// A Chart draws series of points over two axes.
type Chart struct {
	Title string
	Desc  string // what a reader who cannot see it should know
	X, Y  Axis
	Lines []Line
	Rules []Rule
	// Height of the area for data; 0 is 220 units.
	Height float64
}

// A Line is a series: Y over X, in the order given. Points without a number
// break it.
type Line struct {
	Name string
	X, Y []float64
	// Low and High draw a band of the line's colour about it, or alone where Y
	// is nil.
	Low, High []float64
	Step      bool // the value holds until the next point
	Dots      bool // mark the points
	Loose     bool // and draw no line between them
	// Whiskers draws Low and High, and XLow and XHigh, as bars through the points
	// in place of a band.
	Whiskers    bool
	XLow, XHigh []float64
	Labels      []string // beside the points
	// Color is the place in the palette, counted from 1; 0 is the place in the
	// list.
	Color int
}

// A Rule is a thin line across the chart.
type Rule struct {
	Name string
	Y    float64
}

var _ Figure = (*Chart)(nil)

// Caption is the title.
func (c *Chart) Caption() string { return c.Title }

func (c *Chart) color(i int) int {
	if n := c.Lines[i].Color; n > 0 {
		return (n - 1) % len(palette)
	}
	return i % len(palette)
}

// WriteSVG draws the chart.
func (c *Chart) WriteSVG(w io.Writer) error {
	var xv, yv []float64
	var entries []entry
	for i, l := range c.Lines {
		if err := l.check(); err != nil {
			return fmt.Errorf("chart %q: %w", c.Title, err)
		}
		xv = append(append(append(xv, l.X...), l.XLow...), l.XHigh...)
		yv = append(append(append(yv, l.Y...), l.Low...), l.High...)
		kind := byte('l')
		if l.Loose {
			kind = 'r'
		}
		if l.Y == nil {
			kind = 'b'
		}
		if l.Name != "" {
			entries = append(entries, entry{l.Name, c.color(i), kind})
		}
	}
	for _, r := range c.Rules {
		yv = append(yv, r.Y)
		if r.Name != "" {
			entries = append(entries, entry{name: r.Name, kind: '-'})
		}
	}
	height := c.Height
	if height == 0 {
		height = 220
	}
	top := headerHeight(c.Title, entries) + 22
	f := frame{left: 58, right: width - 14, top: top, bottom: top + height}
	xs, ys := c.X.fit(xv, f.left, f.right), c.Y.fit(yv, f.bottom, f.top)
	var d canvas
	d.open(c.Title, c.Desc, f.bottom+46)
	d.header(c.Title, entries)
	d.axes(f, c.X, c.Y, xs, ys)
	for _, r := range c.Rules {
		if y, ok := ys.at(r.Y); ok {
			d.line(f.left, y, f.right, y, "rp-rule")
		}
	}
	for i, l := range c.Lines {
		l.draw(&d, xs, ys, c.color(i))
	}
	d.close()
	_, err := w.Write(d.Bytes())
	return err
}

func (l *Line) check() error {
	n := len(l.X)
	for name, v := range map[string][]float64{"y": l.Y, "low": l.Low, "high": l.High, "lower x": l.XLow, "higher x": l.XHigh} {
		if v != nil && len(v) != n {
			return fmt.Errorf("line %q has %d x and %d %s", l.Name, n, len(v), name)
		}
	}
	if l.Labels != nil && len(l.Labels) != n {
		return fmt.Errorf("line %q has %d x and %d labels", l.Name, n, len(l.Labels))
	}
	if (l.Low == nil) != (l.High == nil) || (l.XLow == nil) != (l.XHigh == nil) {
		return fmt.Errorf("line %q has one edge of a band", l.Name)
	}
	return nil
}

func (l *Line) draw(d *canvas, xs, ys scale, color int) {
	if l.Low != nil && !l.Whiskers {
		l.band(d, xs, ys, color)
	}
	if l.Y == nil {
		return
	}
	var path strings.Builder
	pen := false
	lastY := 0.0
	for i := range l.X {
		x, okX := xs.at(l.X[i])
		y, okY := ys.at(l.Y[i])
		if !okX || !okY {
			pen = false
			continue
		}
		x, y = xs.clamp(x), ys.clamp(y)
		switch {
		case !pen:
			fmt.Fprintf(&path, "M%s %s", num(x), num(y))
		case l.Step:
			fmt.Fprintf(&path, "L%s %sV%s", num(x), num(lastY), num(y))
		default:
			fmt.Fprintf(&path, "L%s %s", num(x), num(y))
		}
		pen, lastY = true, y
	}
	if !l.Loose {
		fmt.Fprintf(d, `<path d="%s" class="rp-line rp-s%d"%s/>`+"\n", path.String(), color, dash(color))
	}
	if l.Whiskers {
		l.whiskers(d, xs, ys, color)
	}
	if !l.Dots {
		return
	}
	for i := range l.X {
		x, okX := xs.at(l.X[i])
		y, okY := ys.at(l.Y[i])
		if okX && okY {
			fmt.Fprintf(d, `<circle cx="%s" cy="%s" r="3.5" class="rp-f%d"/>`+"\n", num(xs.clamp(x)), num(ys.clamp(y)), color)
			if l.Labels != nil && l.Labels[i] != "" {
				l.label(d, xs.clamp(x), ys.clamp(y), l.Labels[i])
			}
		}
	}
}

// label writes beside a point, on the side where there is room.
func (l *Line) label(d *canvas, x, y float64, text string) {
	if x+8+textWidth(text, small) > width {
		d.text(x-6, y-6, "rp-dim", "end", text)
		return
	}
	d.text(x+6, y-6, "rp-dim", "", text)
}

// whiskers draws the bars of points whose interval is known.
func (l *Line) whiskers(d *canvas, xs, ys scale, color int) {
	bar := func(x1, y1, x2, y2 float64) {
		fmt.Fprintf(d, `<path d="M%s %sL%s %s" class="rp-whisker rp-s%d"/>`+"\n", num(x1), num(y1), num(x2), num(y2), color)
	}
	for i := range l.X {
		x, okX := xs.at(l.X[i])
		y, okY := ys.at(l.Y[i])
		if !okX || !okY {
			continue
		}
		x, y = xs.clamp(x), ys.clamp(y)
		if l.Low != nil {
			lo, okLo := ys.at(l.Low[i])
			hi, okHi := ys.at(l.High[i])
			if okHi && !okLo {
				lo, okLo = ys.from, true // an interval that goes down to nothing, on a logarithmic axis
			}
			if okLo && okHi {
				bar(x, ys.clamp(lo), x, ys.clamp(hi))
			}
		}
		if l.XLow != nil {
			lo, okLo := xs.at(l.XLow[i])
			hi, okHi := xs.at(l.XHigh[i])
			if okLo && okHi {
				bar(xs.clamp(lo), y, xs.clamp(hi), y)
			}
		}
	}
}

func (l *Line) band(d *canvas, xs, ys scale, color int) {
	var up, down []string
	for i := range l.X {
		x, ok := xs.at(l.X[i])
		lo, okLo := ys.at(l.Low[i])
		hi, okHi := ys.at(l.High[i])
		if !ok || !okLo || !okHi {
			continue
		}
		up = append(up, num(xs.clamp(x))+" "+num(ys.clamp(hi)))
		down = append(down, num(xs.clamp(x))+" "+num(ys.clamp(lo)))
	}
	if len(up) < 2 {
		return
	}
	slices.Reverse(down)
	fmt.Fprintf(d, `<path d="M%sZ" class="rp-band rp-f%d"/>`+"\n", strings.Join(append(up, down...), "L"), color)
}

// maxTable bounds the rows of a table per series.
const maxTable = 25

// Data lists the points, thinned where a series has very many.
func (c *Chart) Data() (head []string, rows [][]string) {
	head = []string{"series", orText(c.X.Label, "x"), orText(c.Y.Label, "y")}
	for _, l := range c.Lines {
		step := max(1, (len(l.X)+maxTable-1)/maxTable)
		for i := 0; i < len(l.X); i += step {
			y := ""
			if l.Y != nil {
				y = c.Y.cell(l.Y[i])
			}
			if l.Low != nil {
				y += fmt.Sprintf(" [%s, %s]", c.Y.cell(l.Low[i]), c.Y.cell(l.High[i]))
			}
			x := c.X.cell(l.X[i])
			if l.XLow != nil {
				x += fmt.Sprintf(" [%s, %s]", c.X.cell(l.XLow[i]), c.X.cell(l.XHigh[i]))
			}
			rows = append(rows, []string{l.Name, x, strings.TrimSpace(y)})
		}
	}
	for _, r := range c.Rules {
		rows = append(rows, []string{r.Name, "", c.Y.cell(r.Y)})
	}
	return head, rows
}

// cell prints a value of a table.
func (a Axis) cell(v float64) string {
	for _, t := range a.Ticks {
		if t.At == v {
			return t.Label
		}
	}
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return "-"
	}
	if a.Percent {
		return trim(v*100, 2) + " %"
	}
	if m := math.Abs(v); m >= 1000 {
		return trim(v, 0)
	} else if m < 1e-3 && m > 0 {
		return fmt.Sprintf("%.2e", v)
	}
	return trim(v, 4)
}

func orText(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// CDF returns at most points points of the distribution function of values,
// for a [Line] with Step: quantiles at equal distance, and the extremes.
func CDF(values []float64, points int) (x, y []float64) {
	s := slices.Clone(values)
	slices.Sort(s)
	n := len(s)
	if n == 0 {
		return nil, nil
	}
	points = min(max(points, 2), n)
	for k := range points {
		i := 0
		if points > 1 {
			i = k * (n - 1) / (points - 1)
		}
		// All of a tie, so that a step has its full height.
		j, _ := slices.BinarySearch(s, math.Nextafter(s[i], math.Inf(1)))
		if len(x) > 0 && x[len(x)-1] == s[i] {
			continue
		}
		x, y = append(x, s[i]), append(y, float64(j)/float64(n))
	}
	return x, y
}
