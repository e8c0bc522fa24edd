package score

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	ucli "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/internal/plot"
	"reprise/internal/traceout"
)

// An Output is where a command line wants a [Report]: flags json and markdown
// choose what standard output gets, html and svg name files beside it.
type Output struct {
	json, markdown bool
	html, svg      string
	force          bool
}

// OutputOf reads the flags json, markdown, html, svg and force, and checks that
// files can be written before anything is computed.
func OutputOf(c *ucli.Context) (*Output, error) {
	o := &Output{json: c.Bool("json"), markdown: c.Bool("markdown"), html: c.String("html"), svg: c.String("svg"), force: c.Bool("force")}
	if o.json && o.markdown {
		return nil, cli.Usagef("", "--json and --markdown: want one of them")
	}
	if o.html != "" {
		if err := traceout.CheckTarget(o.html, o.force); err != nil {
			return nil, err
		}
	}
	if o.svg != "" {
		if info, err := os.Stat(o.svg); err == nil && !info.IsDir() {
			return nil, cli.Usagef("name a folder", "%s is not a folder", o.svg)
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return o, nil
}

// Write prints the report and writes its files. A report in which a limit is
// not kept is an error without words, of status [cli.Failed].
func (o *Output) Write(c *ucli.Context, r *Report, reference, other *Sample) error {
	if o.html != "" {
		f, err := traceout.CreateFile(o.html, o.force)
		if err != nil {
			return err
		}
		defer f.Abort()
		if err := r.WriteHTML(f, fmt.Sprintf("%s against %s", filepath.Base(r.Other.Name), filepath.Base(r.Reference.Name)), reference, other); err != nil {
			return err
		}
		if err := f.Publish(); err != nil {
			return err
		}
	}
	if o.svg != "" {
		if err := writeFigures(o.svg, Figures(reference, other), o.force); err != nil {
			return err
		}
	}
	write := r.WriteText
	switch {
	case o.json:
		write = func(w io.Writer) error { return cli.WriteJSON(w, r) }
	case o.markdown:
		write = r.WriteMarkdown
	}
	if err := write(c.App.Writer); err != nil {
		return err
	}
	if !r.OK() {
		return &cli.Error{Code: cli.Failed}
	}
	return nil
}

func writeFigures(dir string, figures []plot.Figure, force bool) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	for _, figure := range figures {
		name := filepath.Join(dir, slug(figure.Caption())+".svg")
		if err := traceout.CheckTarget(name, force); err != nil {
			return err
		}
		f, err := traceout.CreateFile(name, force)
		if err != nil {
			return err
		}
		if err := figure.WriteSVG(f); err != nil {
			f.Abort()
			return err
		}
		if err := f.Publish(); err != nil {
			return err
		}
	}
	return nil
}

// slug is a title as a file name.
func slug(title string) string {
	words := strings.FieldsFunc(strings.ToLower(title), func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') })
	return strings.Join(words, "-")
}
