package plot

import (
	"math"
	"strconv"
	"strings"
)

// An Axis is one direction of a chart. The zero Axis fits the data on a linear
// scale.
type Axis struct {
	Label string // with the unit in it: "TTFT, s"
	Log   bool   // values up to 0 are not drawn
	// Min and Max bound the axis where Fixed is set; without, the data do.
	Min, Max float64
	Fixed    bool
	Percent  bool // ticks are shares of one
	Zero     bool // a linear axis that follows the data begins at 0
	// Ticks stand in place of round numbers: the names of levels.
	Ticks []Tick
}

// A Tick is a marked place on an axis.
type Tick struct {
	At    float64
	Label string
}

// scale maps values to coordinates.
type scale struct {
	log      bool
	min, max float64 // in log10 where log
	from, to float64 // coordinates
}

// fit makes the scale of an axis for values.
func (a Axis) fit(values []float64, from, to float64) scale {
	lo, hi := math.Inf(1), math.Inf(-1)
	for _, v := range values {
		if math.IsNaN(v) || math.IsInf(v, 0) || a.Log && v <= 0 {
			continue
		}
		lo, hi = min(lo, v), max(hi, v)
	}
	if a.Zero && !a.Log {
		lo = min(lo, 0)
	}
	if a.Fixed {
		lo, hi = a.Min, a.Max
	}
	s := scale{log: a.Log, from: from, to: to}
	if lo > hi || math.IsInf(lo, 0) {
		lo, hi = 0, 1
		if a.Log {
			lo = 0.1
		}
	}
	if a.Log {
		lo, hi = math.Log10(lo), math.Log10(hi)
	}
	if hi-lo < 1e-12*max(1, math.Abs(hi)) {
		lo, hi = lo-0.5, hi+0.5
	}
	if !a.Fixed {
		pad := (hi - lo) * 0.03
		if !(a.Zero && lo == 0) {
			lo -= pad
		}
		hi += pad
	}
	s.min, s.max = lo, hi
	return s
}

// at returns the coordinate of v; ok is false where the scale has none.
func (s scale) at(v float64) (x float64, ok bool) {
	if s.log {
		if v <= 0 {
			return 0, false
		}
		v = math.Log10(v)
	}
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return 0, false
	}
	x = s.from + (v-s.min)/(s.max-s.min)*(s.to-s.from)
	return x, true
}

// clamp keeps a coordinate on the scale.
func (s scale) clamp(x float64) float64 {
	return min(max(x, min(s.from, s.to)), max(s.from, s.to))
}

// ticks returns about n round values inside the scale.
func (s scale) ticks(n int) []float64 {
	if s.log {
		return s.logTicks(n)
	}
	span := s.max - s.min
	step := math.Pow(10, math.Floor(math.Log10(span/float64(n))))
	for _, m := range []float64{1, 2, 5, 10} {
		if span/(step*m) <= float64(n) {
			step *= m
			break
		}
	}
	var t []float64
	for k := math.Ceil(s.min/step - 1e-9); k*step <= s.max+step*1e-9; k++ {
		t = append(t, k*step)
	}
	return t
}

func (s scale) logTicks(n int) []float64 {
	decades := s.max - s.min
	marks := []float64{1}
	switch {
	case decades < 0.7:
		// Less than a decade reads best with plain round numbers.
		var t []float64
		lin := scale{min: math.Pow(10, s.min), max: math.Pow(10, s.max)}
		for _, v := range lin.ticks(n) {
			if v > 0 {
				t = append(t, v)
			}
		}
		return t
	case decades < 1.7:
		marks = []float64{1, 2, 5}
	case decades < 3:
		marks = []float64{1, 3}
	}
	every := max(1, int(math.Ceil(decades/float64(n))))
	var t []float64
	for e := int(math.Floor(s.min)); e <= int(math.Ceil(s.max)); e++ {
		if e%every != 0 {
			continue
		}
		for _, m := range marks {
			v := m * math.Pow(10, float64(e))
			if l := math.Log10(v); l >= s.min-1e-9 && l <= s.max+1e-9 {
				t = append(t, v)
			}
		}
	}
	return t
}

// label prints a tick.
func (a Axis) label(v float64) string {
	if a.Percent {
		return trim(v*100, 1) + " %"
	}
	switch m := math.Abs(v); {
	case m == 0:
		return "0"
	case m >= 999.5e9 || m < 9.995e-5:
		return strconv.FormatFloat(v, 'e', 0, 64)
	case m >= 999.5e6:
		return trim(v/1e9, 1) + "G"
	case m >= 999.5e3:
		return trim(v/1e6, 1) + "M"
	case m >= 9995:
		return trim(v/1e3, 1) + "k"
	case m >= 10:
		return trim(v, 1)
	}
	return trim(v, 4)
}

func trim(v float64, digits int) string {
	s := strconv.FormatFloat(v, 'f', digits, 64)
	if strings.Contains(s, ".") {
		s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
	}
	if s == "-0" {
		return "0"
	}
	return s
}

// frame is the area in which data are drawn.
type frame struct {
	left, right, top, bottom float64
}

// axes draws grid, ticks and labels.
func (c *canvas) axes(f frame, xa, ya Axis, xs, ys scale) {
	for _, t := range ya.marks(ys, 5) {
		if y, ok := ys.at(t.At); ok {
			c.line(f.left, y, f.right, y, "rp-grid")
			c.text(f.left-6, y+4, "rp-dim", "end", t.Label)
		}
	}
	taken := math.Inf(-1)
	for _, t := range xa.marks(xs, 6) {
		x, ok := xs.at(t.At)
		if !ok {
			continue
		}
		c.line(x, f.top, x, f.bottom, "rp-grid")
		half := textWidth(t.Label, small) / 2
		if xa.Ticks != nil && x-half < taken {
			continue // names of levels are of any length
		}
		taken = x + half + 6
		anchor, at := "middle", x
		if xa.Ticks != nil && x+half > width {
			anchor, at = "end", width-2
		}
		c.text(at, f.bottom+16, "rp-dim", anchor, t.Label)
	}
	c.frameLines(f, xa, ya)
}

// marks are the ticks of an axis: its own, or about n round values.
func (a Axis) marks(s scale, n int) []Tick {
	if a.Ticks != nil {
		return a.Ticks
	}
	var out []Tick
	for _, v := range s.ticks(n) {
		out = append(out, Tick{v, a.label(v)})
	}
	return out
}

func (c *canvas) frameLines(f frame, xa, ya Axis) {
	c.line(f.left, f.bottom, f.right, f.bottom, "rp-axis")
	c.line(f.left, f.top, f.left, f.bottom, "rp-axis")
	c.text((f.left+f.right)/2, f.bottom+34, "", "middle", xa.Label)
	// Above the axis, since turned text is hard to read on a small screen.
	c.text(12, f.top-8, "rp-dim", "", ya.Label)
}
