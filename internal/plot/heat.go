package plot

import (
	"fmt"
	"io"
	"math"
)

// A HeatMap draws a share for each cell of a grid as the strength of one colour.
type HeatMap struct {
	Title string
	Desc  string
	X, Y  Axis
	// XEdges and YEdges bound the cells, ascending: one more than there are.
	XEdges, YEdges []float64
	// Values holds a row of cells for each interval of YEdges, from the lowest.
	Values [][]float64
	// Top is the value of full strength; 0 is the greatest one. Two maps that
	// are to be compared need the same.
	Top float64
	// Label says what the colour means: "share of requests".
	Label  string
	Height float64 // of the area for data; 0 is 240 units
	Color  int     // place in the palette
}

var _ Figure = (*HeatMap)(nil)

// Caption is the title.
func (h *HeatMap) Caption() string { return h.Title }

func (h *HeatMap) top() float64 {
	top := h.Top
	if top == 0 {
		for _, row := range h.Values {
			for _, v := range row {
				top = max(top, v)
			}
		}
	}
	return top
}

// strength of a value: the root, so that rare cells are seen at all.
func strength(v, top float64) float64 {
	if !(v > 0) || !(top > 0) {
		return 0
	}
	return min(1, math.Sqrt(v/top))
}

// WriteSVG draws the map.
func (h *HeatMap) WriteSVG(w io.Writer) error {
	if len(h.Values) != len(h.YEdges)-1 {
		return fmt.Errorf("heat map %q has %d rows for %d edges", h.Title, len(h.Values), len(h.YEdges))
	}
	height := h.Height
	if height == 0 {
		height = 240
	}
	top := headerHeight(h.Title, nil) + 26
	f := frame{left: 58, right: width - 14, top: top, bottom: top + height}
	xa, ya := h.X, h.Y
	xa.Fixed, ya.Fixed = true, true
	xa.Min, xa.Max = h.XEdges[0], h.XEdges[len(h.XEdges)-1]
	ya.Min, ya.Max = h.YEdges[0], h.YEdges[len(h.YEdges)-1]
	xs, ys := xa.fit(nil, f.left, f.right), ya.fit(nil, f.bottom, f.top)
	var d canvas
	d.open(h.Title, h.Desc, f.bottom+78)
	d.header(h.Title, nil)
	full := h.top()
	d.axes(f, xa, ya, xs, ys)
	for j, row := range h.Values {
		if len(row) != len(h.XEdges)-1 {
			return fmt.Errorf("heat map %q: row %d has %d cells for %d edges", h.Title, j, len(row), len(h.XEdges))
		}
		y1, _ := ys.at(h.YEdges[j])
		y2, _ := ys.at(h.YEdges[j+1])
		for i, v := range row {
			s := strength(v, full)
			if s == 0 {
				continue
			}
			x1, _ := xs.at(h.XEdges[i])
			x2, _ := xs.at(h.XEdges[i+1])
			fmt.Fprintf(&d, `<rect x="%s" y="%s" width="%s" height="%s" class="rp-f%d" opacity="%.2f"/>`+"\n",
				num(x1), num(y2), num(x2-x1+0.3), num(y1-y2+0.3), h.Color%len(palette), s)
		}
	}
	// The scale of the colour.
	y := f.bottom + 58
	const steps = 24
	for i := range steps {
		fmt.Fprintf(&d, `<rect x="%s" y="%s" width="7.2" height="10" class="rp-f%d" opacity="%.2f"/>`+"\n", num(f.left+float64(i)*7), num(y-9), h.Color%len(palette), float64(i+1)/steps)
	}
	d.text(f.left-6, y, "rp-dim", "end", "0")
	d.text(f.left+steps*7+6, y, "rp-dim", "", Axis{Percent: true}.label(full)+" "+h.Label)
	d.close()
	_, err := w.Write(d.Bytes())
	return err
}

// Data lists the strongest cells.
func (h *HeatMap) Data() (head []string, rows [][]string) {
	head = []string{orText(h.X.Label, "x"), orText(h.Y.Label, "y"), orText(h.Label, "share")}
	type cell struct {
		i, j int
		v    float64
	}
	var best []cell
	for j, row := range h.Values {
		for i, v := range row {
			if v <= 0 {
				continue
			}
			at := len(best)
			for at > 0 && best[at-1].v < v {
				at--
			}
			if at >= maxTable {
				continue
			}
			best = append(best[:at], append([]cell{{i, j, v}}, best[at:]...)...)
			best = best[:min(len(best), maxTable)]
		}
	}
	for _, c := range best {
		rows = append(rows, []string{
			h.X.cell(h.XEdges[c.i]) + " to " + h.X.cell(h.XEdges[c.i+1]),
			h.Y.cell(h.YEdges[c.j]) + " to " + h.Y.cell(h.YEdges[c.j+1]),
			Axis{Percent: true}.cell(c.v),
		})
	}
	return head, rows
}
