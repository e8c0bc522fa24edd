package plot

import (
	"fmt"
	"io"
)

// Bars draws horizontal bars, one group a label, so that names of any length
// can be read.
type Bars struct {
	Title  string
	Desc   string
	X      Axis // of the values; it begins at 0 unless it is logarithmic
	Labels []string
	Series []BarSeries
	Rules  []Rule // vertical, at a value of X
}

// A BarSeries holds one value a label; NaN draws none.
type BarSeries struct {
	Name   string
	Values []float64
}

var _ Figure = (*Bars)(nil)

// Caption is the title.
func (b *Bars) Caption() string { return b.Title }

// WriteSVG draws the bars.
func (b *Bars) WriteSVG(w io.Writer) error {
	var values []float64
	var entries []entry
	for i, s := range b.Series {
		if len(s.Values) != len(b.Labels) {
			return fmt.Errorf("bars %q: series %q has %d values for %d labels", b.Title, s.Name, len(s.Values), len(b.Labels))
		}
		values = append(values, s.Values...)
		if s.Name != "" {
			entries = append(entries, entry{s.Name, i % len(palette), 'r'})
		}
	}
	for _, r := range b.Rules {
		values = append(values, r.Y)
		if r.Name != "" {
			entries = append(entries, entry{name: r.Name, kind: '-'})
		}
	}
	const bar, pad, name = 11.0, 6.0, 15.0
	group := name + bar*float64(len(b.Series)) + pad
	top := headerHeight(b.Title, entries) + 8
	f := frame{left: 14, right: width - 44, top: top, bottom: top + group*float64(len(b.Labels)) + 4}
	axis := b.X
	axis.Zero = true
	xs := axis.fit(values, f.left, f.right)
	var d canvas
	d.open(b.Title, b.Desc, f.bottom+46)
	d.header(b.Title, entries)
	for _, v := range xs.ticks(5) {
		x, _ := xs.at(v)
		d.line(x, f.top, x, f.bottom, "rp-grid")
		d.text(x, f.bottom+16, "rp-dim", "middle", axis.label(v))
	}
	d.line(f.left, f.bottom, f.right, f.bottom, "rp-axis")
	d.text((f.left+f.right)/2, f.bottom+34, "", "middle", axis.Label)
	y := f.top
	for k, label := range b.Labels {
		d.text(f.left, y+11, "rp-dim", "", label)
		at := y + name
		for i, s := range b.Series {
			if x, ok := xs.at(s.Values[k]); ok {
				x = xs.clamp(x)
				fmt.Fprintf(&d, `<rect x="%s" y="%s" width="%s" height="%s" class="rp-f%d"/>`+"\n", num(f.left), num(at), num(max(x-f.left, 1)), num(bar-2), i%len(palette))
				d.text(x+4, at+9, "rp-dim", "", axis.cell(s.Values[k]))
			}
			at += bar
		}
		y += group
	}
	for _, r := range b.Rules {
		if x, ok := xs.at(r.Y); ok {
			d.line(x, f.top, x, f.bottom, "rp-rule")
		}
	}
	d.close()
	_, err := w.Write(d.Bytes())
	return err
}

// Data lists the values.
func (b *Bars) Data() (head []string, rows [][]string) {
	head = []string{""}
	for _, s := range b.Series {
		head = append(head, orText(s.Name, orText(b.X.Label, "value")))
	}
	for k, label := range b.Labels {
		row := []string{label}
		for _, s := range b.Series {
			row = append(row, b.X.cell(s.Values[k]))
		}
		rows = append(rows, row)
	}
	return head, rows
}
