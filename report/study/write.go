package study

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"path/filepath"

	"reprise/internal/cli"
	"reprise/internal/durable"
)

var nan = math.NaN()

// roundShare is a share to a tenth of a percent: sums of squares are no counts,
// whose last digit would matter.
func roundShare(v float64) float64 { return math.Round(v*1000) / 1000 }

// Names of the files that Write leaves.
const (
	HTMLFile     = "report.html"
	MarkdownFile = "report.md"
	JSONFile     = "report.json"
)

// Write reads the experiment in dir and leaves its study there: report.html,
// report.md and report.json, each whole or as it was before.
func Write(ctx context.Context, dir string, c Config) (*Study, error) {
	s, err := Read(ctx, dir, c)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, f := range []struct {
		name  string
		write func(io.Writer) error
	}{{HTMLFile, s.WriteHTML}, {MarkdownFile, s.WriteMarkdown}, {JSONFile, func(w io.Writer) error { return cli.WriteJSON(w, s) }}} {
		var b bytes.Buffer
		if err := f.write(&b); err != nil {
			return nil, err
		}
		errs = append(errs, durable.WriteFile(filepath.Join(dir, f.name), b.Bytes()))
	}
	return s, errors.Join(errs...)
}
