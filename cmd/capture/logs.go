package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // --tz works where the system has no zones

	ucli "github.com/urfave/cli/v2"

	"reprise/capture"
	"reprise/capture/proxylog"
	"reprise/internal/cli"
	"reprise/internal/traceout"
	"reprise/internal/units"
	"reprise/traceformat"
)

func init() { commands = append(commands, logsCommand) }

func logsCommand() *ucli.Command {
	var names []string
	for _, d := range proxylog.Dialects() {
		names = append(names, d.Name)
	}
	return &ucli.Command{
		Name:      "logs",
		Usage:     "read the logs of gateways and engines",
		UsageText: "capture logs LOG... -o FILE [flags]",
		Description: `Logs turns logs of gateways and engines into a trace. The dialect is told from the first
lines, and what such a log can know is said before it is read; what it cannot know stays
unknown. A LOG is a file, plain or packed with gzip or zstd, a pattern in quotes, or -
for standard input. Lines may be in any order.

A log whose times name no zone or year is refused until --tz or --year does, and one
that has the end of requests and no durations until --arrivals-are-end. Docs:
docs/capturing.md, with the reference of mapping files.

Dialects: ` + wrapWords(names, 10) + `

Examples:
  capture logs access.log 'access.log.*.gz' -o trace.parquet
  capture logs haproxy.log --tz Europe/Berlin -o trace.parquet
  capture logs access.log --log-format "$(grep -A9 log_format nginx.conf)" --explain
  capture logs requests.csv --mapping columns.yaml -o trace.parquet
  capture logs /var/log/caddy/access.log --follow -o trace.parquet`,
		Flags: without(captureFlags(
			&ucli.StringFlag{Name: "format", Usage: "the logs are in dialect `NAME`", DefaultText: "told by content"},
			&ucli.StringFlag{Name: "mapping", Usage: "`FILE` (YAML or JSON) that says which column or key holds what"},
			&ucli.StringFlag{Name: "log-format", Usage: "nginx's log_format directive, or the format in it, as `TEXT`"},
			&ucli.StringFlag{Name: "tz", Usage: "`ZONE` of times that name none, such as UTC, Local or Europe/Berlin"},
			&ucli.IntFlag{Name: "year", Usage: "`YEAR` of the first time that names none"},
			&ucli.BoolFlag{Name: "arrivals-are-end", Usage: "take the end of a request for its arrival where a log says no more"},
			&ucli.BoolFlag{Name: "trust-header-time", Usage: "take the time to the head of the answer for the TTFT (right for SGLang, wrong for vLLM)"},
			&ucli.BoolFlag{Name: "dither", Usage: "spread arrivals over the tick of the log's clock"},
			&ucli.Uint64Flag{Name: "seed", Usage: "`SEED` of --dither"},
			&ucli.StringFlag{Name: "max-bad", Value: "1%", Usage: "fail if more than `SHARE` of the lines cannot be read"},
			&ucli.StringSliceFlag{Name: "route", Usage: "requests to paths that begin with a prefix are of an endpoint, `PREFIX=ENDPOINT`; may be given more than once"},
			&ucli.StringFlag{Name: "source-sampling", Usage: "the log holds this `SHARE` of the requests (sampled spans)"},
			&ucli.BoolFlag{Name: "follow", Usage: "go on reading as the logs grow and are rotated, until interrupted"},
			&ucli.BoolFlag{Name: "explain", Usage: "say what the logs can know, and read no more"},
		), "tokenizer", "block-bytes", "block-tokens", "session-header", "request-id-header", "retry-window", "memory", "max-body"),
		Action: cli.Action(captureLogs),
	}
}

// wrapWords lists words on lines of a help text that are indented by indent.
func wrapWords(list []string, indent int) string {
	var b strings.Builder
	col := indent
	for i, w := range list {
		if col+len(w)+1 > 86 {
			b.WriteString("\n" + strings.Repeat(" ", indent))
			col = indent
		} else if i > 0 {
			b.WriteByte(' ')
			col++
		}
		b.WriteString(w)
		col += len(w)
	}
	return b.String()
}

// logSlack is how much earlier than the first line of a log another may arrive:
// several files come in any order.
const logSlack = 2 * 365 * 24 * time.Hour

func captureLogs(ctx context.Context, c *ucli.Context) error {
	if c.NArg() == 0 {
		return cli.Usagef("capture logs --help", "logs: which log?")
	}
	o, err := logOptions(c)
	if err != nil {
		return err
	}
	share, err := parseShare(c, "source-sampling", 1)
	if err != nil {
		return err
	}
	inputs, err := proxylog.Files(c.Args().Slice(), os.Stdin)
	if err != nil {
		return err
	}
	im, err := proxylog.Open(inputs, o)
	if err != nil {
		return logError(err)
	}
	defer im.Close()
	explain(c, im)
	if c.Bool("explain") {
		if c.Bool("json") {
			return cli.WriteJSON(c.App.Writer, im.Capability())
		}
		return nil
	}
	ro := capture.Options{Program: "capture logs", Version: cli.Version()}
	if ro.Sample, err = capture.ParseSample(c.String("sample"), c.String("sample-by")); err != nil {
		return &cli.Error{Code: cli.Usage, Err: err, Hint: "--sample 1/16 --sample-by session"}
	}
	if name := c.String("key-file"); name != "" {
		if ro.Key, err = capture.LoadKey(name); err != nil {
			return err
		}
	}
	ro.Dialect, ro.Vantage, ro.Clock, ro.Blocks, ro.Slack = im.Dialect().Name, im.Vantage(), im.Clock(), im.Blocks(), logSlack
	if c.Bool("follow") {
		if share != 1 {
			return cli.Usagef("", "--source-sampling goes with whole logs, not with --follow")
		}
		return follow(ctx, c, im, ro)
	}
	return importLogs(ctx, c, im, ro, share)
}

// logOptions reads the flags that say how a log is read.
func logOptions(c *ucli.Context) (*proxylog.Options, error) {
	o := &proxylog.Options{
		Format: c.String("format"), LogFormat: c.String("log-format"), Year: c.Int("year"),
		ArrivalsAreEnd: c.Bool("arrivals-are-end"), TrustHeaderTime: c.Bool("trust-header-time"),
		Dither: c.Bool("dither"), Seed: c.Uint64("seed"),
	}
	if o.Format != "" && proxylog.Find(o.Format) == nil {
		return nil, cli.Usagef("capture logs --help lists the dialects", "--format %q: no such dialect", o.Format)
	}
	if name := c.String("mapping"); name != "" {
		m, err := proxylog.LoadMapping(name)
		if err != nil {
			return nil, &cli.Error{Code: cli.Usage, Err: err, Hint: "docs/capturing.md has the reference of mapping files"}
		}
		o.Mapping = m
	}
	if name := c.String("tz"); name != "" {
		loc, err := time.LoadLocation(name)
		if err != nil {
			return nil, cli.Usagef("--tz UTC, --tz Europe/Berlin or --tz Local", "--tz %q: no such zone", name)
		}
		o.Zone = loc
	}
	if o.Year != 0 && (o.Year < 1980 || o.Year > 2200) {
		return nil, cli.Usagef("", "--year %d: want a year such as 2026", o.Year)
	}
	for _, r := range c.StringSlice("route") {
		prefix, endpoint, ok := strings.Cut(r, "=")
		if !ok || !strings.HasPrefix(prefix, "/") || !proxylog.IsEndpoint(endpoint) {
			return nil, cli.Usagef("--route /llm/ask=chat", "--route %q: want PREFIX=ENDPOINT, the endpoint being chat, completions, generate, messages, responses or embeddings", r)
		}
		o.Routes = append(o.Routes, proxylog.Route{Prefix: prefix, Endpoint: endpoint})
	}
	var err error
	o.MaxBad, err = parseShare(c, "max-bad", proxylog.DefaultMaxBad)
	if o.MaxBad == 0 {
		o.MaxBad = math.SmallestNonzeroFloat64 // 0 in Options is the default
	}
	return o, err
}

// parseShare reads a flag such as 1%, 0.01 or 1/100.
func parseShare(c *ucli.Context, flag string, def float64) (float64, error) {
	s := c.String(flag)
	if s == "" {
		return def, nil
	}
	of := 1.0
	text := s
	if t, ok := strings.CutSuffix(text, "%"); ok {
		text, of = t, 100
	} else if a, b, ok := strings.Cut(text, "/"); ok {
		n, err := strconv.ParseFloat(b, 64)
		if err != nil || n < 1 {
			n = math.NaN()
		}
		text, of = a, n
	}
	v, err := strconv.ParseFloat(text, 64)
	v /= of
	if err != nil || !(v >= 0 && v <= 1) {
		return 0, cli.Usagef("--"+flag+" 5%", "--%s %q: want a share such as 5%%, 0.05 or 1/20", flag, s)
	}
	return v, nil
}

// logError turns what a log needs to be told into a usage error.
func logError(err error) error {
	if _, ok := errors.AsType[*proxylog.NeedError](err); ok {
		return &cli.Error{Code: cli.Usage, Err: err}
	}
	return err
}

// explain says on standard error what the log can know.
func explain(c *ucli.Context, im *proxylog.Import) {
	capability := im.Capability()
	fmt.Fprintf(c.App.ErrWriter, "%s: this log supports %s\n", im.Dialect().Title, capability)
	for _, n := range capability.Notes {
		fmt.Fprintf(c.App.ErrWriter, "note: %s\n", n)
	}
}

// follow records until it is interrupted. Rows are safe within a second.
func follow(ctx context.Context, c *ucli.Context, im *proxylog.Import, ro capture.Options) error {
	out, err := openOutput(c, ro)
	if err != nil {
		return err
	}
	report, err := im.Follow(ctx, out.Recorder)
	if err == nil || errors.Is(err, context.Canceled) {
		summarise(c, report)
		return out.finish("", report)
	}
	// What was read until then is kept.
	return errors.Join(err, out.finish(traceformat.PartialInterrupted, report))
}

// importLogs reads logs that have an end, in one pass: rows are sorted on their
// way into the file, and nothing is left behind where that fails.
func importLogs(ctx context.Context, c *ucli.Context, im *proxylog.Import, ro capture.Options, share float64) error {
	name, err := traceout.NativeTarget(c)
	if err != nil {
		return err
	}
	path, err := placeHere(c, name)
	if err != nil {
		return err
	}
	if name == "-" {
		dir, err := os.MkdirTemp("", "reprise-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		path = filepath.Join(dir, "trace.parquet")
	}
	s := &logStream{ctx: ctx, im: im, share: share}
	if s.rec, err = capture.NewRecorder(s, ro); err != nil {
		return &cli.Error{Code: cli.Usage, Err: err}
	}
	opts := []traceformat.WriteOption{traceformat.Rebase()}
	if c.Bool("force") {
		opts = append(opts, traceformat.Overwrite())
	}
	err = traceformat.Sort(s, path, opts...)
	if _, said := errors.AsType[*proxylog.BadShareError](err); s.report != nil && !said {
		summarise(c, s.report)
	}
	if err != nil {
		if errors.Is(err, fs.ErrExist) {
			return traceout.ErrExists(name)
		}
		return logError(err)
	}
	return printLogs(c, name, path, s)
}

// printLogs says what was written.
func printLogs(c *ucli.Context, name, path string, s *logStream) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if err := send(c, path, name); err != nil {
		return err
	}
	acc, stdout := s.rec.Accounts(), c.App.Writer
	if name == "-" {
		if err := copyFile(stdout, path); err != nil {
			return err
		}
		stdout, name = c.App.ErrWriter, "standard output"
	}
	if c.Bool("json") {
		return cli.WriteJSON(stdout, result{Output: name, Rows: acc.Recorded, Accounts: acc, Keys: s.header.Keys, Details: s.report})
	}
	noun := "rows"
	if acc.Recorded == 1 {
		noun = "row"
	}
	_, err = fmt.Fprintf(c.App.ErrWriter, "%s\nwrote %s %s (%s) to %s\n", acc, units.Count(acc.Recorded), noun, units.Bytes(info.Size()), name)
	return err
}

// summarise says what came of the lines.
func summarise(c *ucli.Context, r *proxylog.Report) {
	w := c.App.ErrWriter
	if r.Rows != "" {
		fmt.Fprintf(w, "rows with %s\n", r.Rows)
	}
	if r.Unreadable > 0 {
		fmt.Fprintf(w, "%s of %s records cannot be read; letters as a and digits as 0, they begin:\n", units.Count(r.Unreadable), units.Count(r.Records))
		for _, s := range r.Shapes {
			fmt.Fprintf(w, "  %s\n", s)
		}
	}
	if r.Folds > 0 {
		fmt.Fprintf(w, "warning: %s times lie in an hour that came twice, when clocks were put back: told apart by the order of lines\n", units.Count(r.Folds))
	}
	if r.Gaps > 0 {
		fmt.Fprintf(w, "warning: %s times lie in an hour that was left out, when clocks were put forward: is --tz right?\n", units.Count(r.Gaps))
	}
}

// A logStream is the rows of an import as a trace to sort: the recorder hands
// them on while the lines are read.
type logStream struct {
	ctx    context.Context
	im     *proxylog.Import
	rec    *capture.Recorder
	share  float64 // of the requests that the log holds
	yield  func(*traceformat.Row, error) bool
	report *proxylog.Report
	header traceformat.Header
}

var errStopped = errors.New("stopped")

// Append is the recorder's sink.
func (s *logStream) Append(r *traceformat.Row) error {
	if !s.yield(r, nil) {
		return errStopped
	}
	return nil
}

func (s *logStream) Header() *traceformat.Header { return &s.header }
func (s *logStream) Close() error                { return nil }

func (s *logStream) All() iter.Seq2[*traceformat.Row, error] {
	return func(yield func(*traceformat.Row, error) bool) {
		s.yield = yield
		var err error
		s.report, err = s.im.Run(s.ctx, s.rec)
		if e := s.rec.Close(); err == nil {
			err = e
		}
		s.header = *s.rec.Header()
		if s.share < 1 {
			if s.header.Sampling.Rate == 0 {
				s.header.Sampling = traceformat.Sampling{Rate: 1, By: "source"}
			}
			s.header.Sampling.Rate *= s.share
		}
		if err != nil && !errors.Is(err, errStopped) {
			yield(nil, err)
		}
	}
}
