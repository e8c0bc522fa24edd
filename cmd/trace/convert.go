package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	ucli "github.com/urfave/cli/v2"

	"reprise/internal/cli"
	"reprise/internal/traceout"
	"reprise/traceformat"
	"reprise/traceformat/convert"
)

func exportCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "export",
		Usage:     "write a trace in a public format",
		UsageText: "trace export FILE --to NAME -o FILE [flags]",
		Description: `Export writes a trace in a public format. One that came from the format is written back
field for field; of others, what the format has no place for is listed on standard error.
A name that ends in .gz or .zst is packed.

Formats: ` + strings.Join(convert.Exporters(), " ") + `

Examples:
  trace export trace.parquet --to mooncake -o trace.jsonl
  trace export run/ --to azure --start 2024-05-01T00:00:00Z -o - | head`,
		Flags: append(append([]ucli.Flag{
			&ucli.StringFlag{Name: "to", Usage: "write format `NAME`"},
			&ucli.StringFlag{Name: "start", Usage: "the trace starts at `TIME` (RFC 3339), for formats with dates"},
			&ucli.BoolFlag{Name: "omit-blocks", Usage: "leave block ids out, where the format has others or the trace none"},
			&ucli.BoolFlag{Name: "skip-incomplete", Usage: "leave out rows that lack what the format needs"},
		}, writeFlags()...), readFlags()...),
		Action: cli.Action(export),
	}
}

func export(ctx context.Context, c *ucli.Context) error {
	names, err := arguments(c, 1, 1)
	if err != nil {
		return err
	}
	to := c.String("to")
	switch {
	case to == "":
		return cli.Usagef("--to "+strings.Join(convert.Exporters(), ", --to "), "export: to which format?")
	case !slices.Contains(convert.Exporters(), to):
		return cli.Usagef("the formats are "+strings.Join(convert.Exporters(), ", "), "--to %q: no such format to write", to)
	}
	o := &convert.ExportOptions{OmitBlocks: c.Bool("omit-blocks"), SkipIncomplete: c.Bool("skip-incomplete")}
	if s := c.String("start"); s != "" {
		if o.Start, err = time.Parse(time.RFC3339Nano, s); err != nil {
			return cli.Usagef("", "--start %q: want a time such as 2024-05-01T00:00:00Z", s)
		}
	}
	name, err := traceout.Target(c)
	if err != nil {
		return err
	}
	r, err := open(c, names[0])
	if err != nil {
		return err
	}
	defer r.Close()
	p := traceout.NewProgress(c.App.ErrWriter)
	defer p.Clear()
	watched := watchedReader{r, ctx, p}
	var report *convert.Report
	if name == "-" {
		out := bufio.NewWriter(c.App.Writer)
		if report, err = convert.Export(to, out, watched, o); err == nil {
			err = out.Flush()
		}
		if err != nil {
			return err
		}
	} else {
		out, err := traceout.CreateFile(name, c.Bool("force"))
		if err != nil {
			return err
		}
		defer out.Abort()
		if report, err = convert.Export(to, out, watched, o); err != nil {
			return err
		}
		if err := out.Publish(); err != nil {
			return err
		}
		if err := p.Done(report.Rows, name, name); err != nil {
			return err
		}
	}
	p.Clear()
	for _, reason := range slices.Sorted(maps.Keys(report.Skipped)) {
		fmt.Fprintf(c.App.ErrWriter, "skipped %s: %s\n", traceout.Rows(report.Skipped[reason]), reason)
	}
	for _, l := range report.Lost {
		fmt.Fprintf(c.App.ErrWriter, "lost %s\n", l)
	}
	return nil
}

// A watchedReader shows progress and ends with the context.
type watchedReader struct {
	traceformat.Reader
	ctx context.Context
	p   *traceout.Progress
}

func (w watchedReader) All() iter.Seq2[*traceformat.Row, error] {
	return func(yield func(*traceformat.Row, error) bool) {
		for row, err := range w.Reader.All() {
			if err == nil {
				if err = w.p.Row(w.ctx); err != nil {
					row = nil
				}
			}
			if !yield(row, err) || err != nil {
				return
			}
		}
	}
}

func convertCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "convert",
		Usage:     "write traces of any format as one Parquet trace",
		UsageText: "trace convert FILE... -o FILE [flags]",
		Description: `Convert reads a trace in any known format and writes it as Parquet, which every command
reads fastest. Row ids stay; rows that are out of order are sorted. Several traces become
one as trace merge does it.

A trace whose clock ticks coarsely (trace info says so) plays as a burst at every tick;
--dequantise spreads its arrivals. Where a format does not say what the prompt lengths of
later turns count, it is refused until --lengths does.

--partition-by hour (or day) writes a folder of one file an hour instead, as Hive, Spark and
DuckDB lay datasets out. A folder like that, or a quoted pattern such as 'day=*/*.parquet',
is one trace wherever one is read.

Examples:
  trace convert conversation_trace.jsonl --dequantise -o moon.parquet
  trace convert sessions/*.json -o agents.parquet
  trace convert january.parquet --partition-by hour -o january
  trace convert BurstGPT_3.csv.gz --lengths incremental -o burst.parquet`,
		Flags:  append(append(writeFlags(), partitionFlag()), readFlags()...),
		Action: cli.Action(joinTraces),
	}
}

func partitionFlag() ucli.Flag {
	return &ucli.StringFlag{Name: "partition-by", Usage: "write a folder of one file a `UNIT`: hour or day (UTC)"}
}

// partitionBy is what partitionFlag asks for, if it does.
func partitionBy(c *ucli.Context) (*traceformat.Partition, error) {
	key := c.String("partition-by")
	if key == "" {
		return nil, nil
	}
	var keys []string
	for i := range traceformat.Partitions {
		if p := &traceformat.Partitions[i]; p.Key == key {
			return p, nil
		}
		keys = append(keys, traceformat.Partitions[i].Key)
	}
	return nil, cli.Usagef("", "--partition-by %q: want %s", key, strings.Join(keys, " or "))
}

func mergeCommand() *ucli.Command {
	return &ucli.Command{
		Name:      "merge",
		Usage:     "lay traces over each other",
		UsageText: "trace merge FILE... -o FILE [flags]",
		Description: `Merge writes the rows of several traces as one, in order of arrival. Traces that all
say when they started keep their wall time; otherwise all start together. Row ids are
made new; origin and origin_id keep where a row came from. Sessions, clients and block
ids stay apart, unless all traces were recorded under one key.

Examples:
  trace merge shard-0.parquet shard-1.parquet -o day.parquet
  trace merge chat.parquet agents.parquet -o mixed.parquet`,
		Flags:  append(append(writeFlags(), partitionFlag()), readFlags()...),
		Action: cli.Action(joinTraces),
	}
}

// joinTraces is convert and merge.
func joinTraces(ctx context.Context, c *ucli.Context) error {
	names, err := arguments(c, 1, -1)
	if err != nil {
		return err
	}
	if n := len(names) - len(slices.DeleteFunc(slices.Clone(names), func(s string) bool { return s == "-" })); n > 1 {
		return cli.Usagef("", "standard input can be read once")
	}
	by, err := partitionBy(c)
	if err != nil {
		return err
	}
	var name string
	if by != nil {
		name, err = traceout.FolderTarget(c)
	} else {
		name, err = traceout.NativeTarget(c)
	}
	if err != nil {
		return err
	}
	r, err := openAll(ctx, c, names, spillDir(name))
	if err != nil {
		return err
	}
	defer r.Close()
	program := "trace " + c.Command.Name
	if by != nil {
		return traceout.WriteDataset(ctx, c, name, *by, written(r.Header(), program), func(w *traceformat.DatasetWriter, p *traceout.Progress) error {
			if err := traceout.Copy(ctx, w, r.All(), p); err != nil {
				return err
			}
			*w.Header() = *written(r.Header(), program)
			return nil
		})
	}
	return traceout.Write(ctx, c, name, written(r.Header(), program), func(w *traceformat.Writer, p *traceout.Progress) error {
		if err := traceout.Copy(ctx, w, r.All(), p); err != nil {
			return err
		}
		*w.Header() = *written(r.Header(), program)
		return nil
	})
}

// openAll opens one trace, or several as one, sorted.
func openAll(ctx context.Context, c *ucli.Context, names []string, spill string) (_ traceformat.Reader, err error) {
	var sources []traceformat.Source
	defer func() {
		if err != nil {
			for _, s := range sources {
				s.Reader.Close()
			}
		}
	}()
	for _, name := range names {
		r, err := open(c, name)
		if err != nil {
			return nil, err
		}
		if !r.Header().Sorted {
			sorted, err := traceformat.Sorted(watchedReader{r, ctx, traceout.NewProgress(io.Discard)}, spill)
			if err != nil {
				r.Close()
				return nil, err
			}
			r = bothReader{sorted, r}
		}
		sources = append(sources, traceformat.Source{Name: sourceName(name, names), Reader: r})
	}
	if len(sources) == 1 {
		return sources[0].Reader, nil
	}
	return traceformat.Merge(sources...)
}

// sourceName is what rows of a merged trace name their source: no more of its
// path than tells it from the others.
func sourceName(name string, all []string) string {
	base := filepath.Base(name)
	for _, other := range all {
		if other != name && filepath.Base(other) == base {
			return name
		}
	}
	return base
}

// A bothReader closes the reader that a sorted one was made of.
type bothReader struct {
	traceformat.Reader
	source traceformat.Reader
}

func (b bothReader) Close() error { return errors.Join(b.Reader.Close(), b.source.Close()) }

// spillDir is where a sort of what goes to output spills: where the output has
// room, the sort has.
func spillDir(output string) string {
	if output == "-" || traceout.Remote(output) {
		return os.TempDir()
	}
	return filepath.Dir(output)
}

// written is the header of a trace that program wrote. A native trace keeps
// the word of who recorded it; importers and merges leave it to the caller.
func written(h *traceformat.Header, program string) *traceformat.Header {
	h = h.Clone()
	if h.Origin.Program == "" || h.Origin.Program == "import" {
		h.Origin.Program, h.Origin.Version = program, cli.Version()
	}
	return h
}
