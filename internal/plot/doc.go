// Package plot draws static charts as SVG: lines, steps and bands, bars and
// heat maps, with labelled axes, a legend, light and dark colours, and the data
// as a table beside them. There is no JavaScript and nothing is loaded.
//
// A figure is a plain struct; [Figure.WriteSVG] draws it. The drawing is 480
// units wide with 13-unit text, so that it can be read at the width of a phone,
// and scales with its container. Colours follow the reader's preference through
// CSS inside the SVG, also where the file is shown as an image, and series are
// told apart by dashes as well as by colour (Okabe and Ito's palette).
//
// Every figure carries a title and a description for screen readers.
// [WritePage] puts several into one HTML page, each with its data in a table
// that opens on demand.
//
// The output is the same bytes for the same figure.
package plot

import "io"

// A Figure is a chart that can draw itself and tell its data.
type Figure interface {
	// WriteSVG writes the drawing as one svg element, which is a whole file as
	// well as a part of an HTML page.
	WriteSVG(w io.Writer) error
	// Data is what is drawn, as a table: a head and rows of cells.
	Data() (head []string, rows [][]string)
	// Caption is the title.
	Caption() string
}
