package plot

import (
	"bytes"
	"fmt"
	"strings"
)

// styleElement is in every drawing that stands alone.
var styleElement = "<style>" + style + "</style>"

// Colors are the CSS variables that drawings take their colours from, for a
// light page or a dark one. Names begin with rp so that they meet no others on
// a page.
func Colors(dark bool) string {
	var b strings.Builder
	ink, dim, grid, paper := "#1b1b1b", "#565656", "#e2e2e2", "#ffffff"
	if dark {
		ink, dim, grid, paper = "#ececec", "#a8a8a8", "#383838", "#161616"
	}
	fmt.Fprintf(&b, "--rp-ink:%s;--rp-dim:%s;--rp-grid:%s;--rp-paper:%s;", ink, dim, grid, paper)
	for i, p := range palette {
		color := p.light
		if dark {
			color = p.dark
		}
		fmt.Fprintf(&b, "--rp-%d:%s;", i, color)
	}
	return b.String()
}

// Shapes is the CSS of drawings that are part of a page, which says where
// Colors come from.
var Shapes = func() string {
	var b strings.Builder
	b.WriteString(".rp-bg{fill:var(--rp-paper)}.rp text{fill:var(--rp-ink)}.rp .rp-dim{fill:var(--rp-dim);font-size:12px}")
	b.WriteString(".rp .rp-title{font-weight:600}.rp-grid{stroke:var(--rp-grid);stroke-width:1}.rp-axis{stroke:var(--rp-dim);stroke-width:1}")
	b.WriteString(".rp-rule{stroke:var(--rp-dim);stroke-width:1;stroke-dasharray:3 3}.rp-line{fill:none;stroke-width:2;stroke-linejoin:round}.rp-band{opacity:.22;stroke:none}.rp-whisker{fill:none;stroke-width:1.5;opacity:.7}")
	for i := range palette {
		fmt.Fprintf(&b, ".rp-s%d{stroke:var(--rp-%d)}.rp-f%d{fill:var(--rp-%d)}", i, i, i, i)
	}
	return b.String()
}()

// Inline draws f without its style, for an HTML page that has Shapes and Colors
// once: one whose content policy lists every style, or lets its reader choose
// between light and dark.
func Inline(f Figure) (string, error) {
	var b bytes.Buffer
	if err := f.WriteSVG(&b); err != nil {
		return "", err
	}
	return strings.Replace(b.String(), styleElement, "", 1), nil
}
