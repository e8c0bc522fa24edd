package plot

import (
	"bytes"
	"fmt"
	"html"
	"io"
)

// A Section is a part of a page: text, a table and figures, each of which may
// be missing.
type Section struct {
	Title   string
	Text    []string // paragraphs
	Head    []string // of the table
	Rows    [][]string
	Marks   []string // one a row: a CSS class of the last cell, such as "pass" or "fail"
	Figures []Figure
}

const pageStyle = `:root{color-scheme:light dark;--ink:#1b1b1b;--dim:#565656;--paper:#fff;--line:#ddd;--pass:#00684c;--fail:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#ececec;--dim:#a8a8a8;--paper:#161616;--line:#3a3a3a;--pass:#4cd0a5;--fail:#ff8a80}}
*{box-sizing:border-box}body{margin:0 auto;padding:1rem;max-width:64rem;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,'Segoe UI',sans-serif}
h1{font-size:1.4rem;line-height:1.25}h2{font-size:1.15rem;margin-top:2rem}p{max-width:46rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums}th,td{padding:.25rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left;padding-left:0;white-space:normal;min-width:9rem}th{color:var(--dim);font-weight:600}.pass{color:var(--pass)}.fail{color:var(--fail);font-weight:700}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,28rem),1fr));gap:1.5rem;align-items:start}figure{margin:0}figure svg{width:100%;height:auto}
details{font-size:.875rem;color:var(--dim)}summary{cursor:pointer}`

// WritePage writes an HTML page that needs nothing but itself.
func WritePage(w io.Writer, title string, sections ...Section) error {
	var b bytes.Buffer
	e := html.EscapeString
	fmt.Fprintf(&b, "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>%s</title>\n<style>%s</style>\n</head>\n<body>\n<h1>%s</h1>\n", e(title), pageStyle, e(title))
	for _, s := range sections {
		b.WriteString("<section>\n")
		if s.Title != "" {
			fmt.Fprintf(&b, "<h2>%s</h2>\n", e(s.Title))
		}
		for _, p := range s.Text {
			fmt.Fprintf(&b, "<p>%s</p>\n", e(p))
		}
		if len(s.Head) > 0 {
			b.WriteString("<div class=\"wide\" tabindex=\"0\">")
			table(&b, s.Head, s.Rows, s.Marks)
			b.WriteString("</div>\n")
		}
		if len(s.Figures) > 0 {
			b.WriteString("<div class=\"figures\">\n")
			for _, f := range s.Figures {
				b.WriteString("<figure>\n")
				if err := f.WriteSVG(&b); err != nil {
					return err
				}
				head, rows := f.Data()
				fmt.Fprintf(&b, "<details><summary>Data of “%s”</summary><div class=\"wide\" tabindex=\"0\">", e(f.Caption()))
				table(&b, head, rows, nil)
				b.WriteString("</div></details>\n</figure>\n")
			}
			b.WriteString("</div>\n")
		}
		b.WriteString("</section>\n")
	}
	b.WriteString("</body>\n</html>\n")
	_, err := w.Write(b.Bytes())
	return err
}

func table(b *bytes.Buffer, head []string, rows [][]string, marks []string) {
	e := html.EscapeString
	b.WriteString("<table><thead><tr>")
	for _, h := range head {
		fmt.Fprintf(b, "<th scope=\"col\">%s</th>", e(h))
	}
	b.WriteString("</tr></thead><tbody>\n")
	for i, row := range rows {
		b.WriteString("<tr>")
		for j, c := range row {
			class := ""
			if i < len(marks) && marks[i] != "" && j == len(row)-1 {
				class = fmt.Sprintf(" class=%q", e(marks[i]))
			}
			fmt.Fprintf(b, "<td%s>%s</td>", class, e(c))
		}
		b.WriteString("</tr>\n")
	}
	b.WriteString("</tbody></table>")
}
