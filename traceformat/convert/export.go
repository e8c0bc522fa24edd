package convert

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"reprise/traceformat"
)

// ExportOptions say how to write a foreign format.
type ExportOptions struct {
	// Start dates the trace for formats that need dates (azure, baseten). Zero
	// takes Header.Start.
	Start time.Time
	// OmitBlocks writes mooncake and bailian files without block ids, where the
	// trace has none or of another size.
	OmitBlocks bool
	// SkipIncomplete leaves out rows that lack a length which the format needs,
	// and counts them in Report.Skipped. Without it the first one is an error.
	SkipIncomplete bool
}

// A Report says what an export wrote and what it could not.
type Report struct {
	Rows    int64            // written
	Skipped map[string]int64 // left out, by reason
	Lost    []Loss           // what rows had and the format has no place for
}

// A Loss is a column that the target format cannot hold, or not as fine.
type Loss struct {
	Column string
	Rows   int64  // rows that had a value in it
	Note   string // what became of it; empty: it was left out
}

func (l Loss) String() string {
	note := l.Note
	if note == "" {
		note = "left out"
	}
	return fmt.Sprintf("%s: %s in %d rows", l.Column, note, l.Rows)
}

// A target writes one foreign format.
type target struct {
	// open refuses traces that the format cannot hold, and writes what comes
	// before the first row.
	open func(x *export) error
	// write writes one row.
	write func(x *export, row *traceformat.Row) error
	// close writes what comes after the last row.
	close func(x *export) error
	// holds names the columns that write has a place for, and nativeHolds those
	// that it writes back only to traces that came from the format.
	holds, nativeHolds []string
}

var targets = map[string]target{
	azureName:    azureTarget,
	basetenName:  basetenTarget,
	burstName:    burstGPTTarget,
	mooncakeName: mooncakeTarget,
	bailianName:  bailianTarget,
}

// Exporters returns the names of the formats that [Export] writes, sorted.
func Exporters() []string { return slices.Sorted(maps.Keys(targets)) }

// errIncomplete says that a row lacks what the format needs.
var errIncomplete = errors.New("incomplete")

// Export writes the rows of r to w in the named format. Traces that came from
// that format are written back field for field; of others, what the format has
// no place for is listed in the report. Rows go out in the order of r. An error
// leaves w with a part of the output. o may be nil.
func Export(name string, w io.Writer, r traceformat.Reader, o *ExportOptions) (*Report, error) {
	t, ok := targets[name]
	if !ok {
		return nil, fmt.Errorf("no exporter for %q, want one of %s", name, strings.Join(Exporters(), ", "))
	}
	if o == nil {
		o = &ExportOptions{}
	}
	h := r.Header()
	x := &export{
		ExportOptions: *o,
		header:        h,
		w:             bufio.NewWriterSize(w, 1<<16),
		native:        h.Origin.Dialect == name,
		report:        &Report{Skipped: map[string]int64{}},
		losses:        map[string]*Loss{},
	}
	if x.Start.IsZero() {
		x.Start = h.Start
	}
	if x.native {
		x.sourceStart, _ = strconv.ParseInt(h.Extra[SourceStart], 10, 64)
	}
	if err := t.open(x); err != nil {
		return nil, fmt.Errorf("cannot write %s: %w", name, err)
	}
	holds := t.holds
	if x.native {
		holds = slices.Concat(holds, t.nativeHolds, []string{"extra"})
	}
	lossy := columnsBut(holds)
	for row, err := range r.All() {
		if err != nil {
			return nil, err
		}
		if err := x.row(t, row, lossy); err != nil {
			return nil, fmt.Errorf("cannot write %s: row %d (id %d): %w", name, x.rows, row.ID, err)
		}
		x.rows++
	}
	if err := x.flush(false); err != nil {
		return nil, err
	}
	if t.close != nil {
		if err := t.close(x); err != nil {
			return nil, fmt.Errorf("cannot write %s: %w", name, err)
		}
	}
	if err := x.w.Flush(); err != nil {
		return nil, err
	}
	for _, k := range slices.Sorted(maps.Keys(x.losses)) {
		x.report.Lost = append(x.report.Lost, *x.losses[k])
	}
	return x.report, nil
}

// export is one run of Export.
type export struct {
	ExportOptions
	header      *traceformat.Header
	w           *bufio.Writer
	native      bool  // the trace came from this format
	sourceStart int64 // first stamp of the source, for formats without dates
	report      *Report
	losses      map[string]*Loss
	rows        int64             // read
	fields      map[string]string // Extra of the current row, if native
	json        jsonWriter
	line        []byte
	pending     bool // line waits for its end
	baseten     *basetenWriter
}

// row writes a row and notes which of the columns in lossy it filled.
func (x *export) row(t target, row *traceformat.Row, lossy []column) error {
	x.fields = nil
	if x.native {
		var err error
		if x.fields, err = extraFields(row); err != nil {
			return err
		}
	}
	err := t.write(x, row)
	if errors.Is(err, errIncomplete) && x.SkipIncomplete {
		x.report.Skipped[err.Error()]++
		return nil
	}
	if err != nil {
		return err
	}
	x.report.Rows++
	for _, c := range lossy {
		if c.set(row) {
			x.lose(c.name, "")
		}
	}
	return nil
}

// lose counts a row that lost something of a column.
func (x *export) lose(column, note string) {
	key := column + "\x00" + note
	l := x.losses[key]
	if l == nil {
		l = &Loss{Column: column, Note: note}
		x.losses[key] = l
	}
	l.Rows++
}

// put hands over a line. Its end is written with the next one, because only the
// last line may have to go without.
func (x *export) put(line []byte) error {
	if err := x.flush(true); err != nil {
		return err
	}
	x.pending = true
	_, err := x.w.Write(line)
	return err
}

// flush ends the line before.
func (x *export) flush(more bool) error {
	if !x.pending {
		return nil
	}
	x.pending = false
	if !more && x.native && hasStyle(x.header, noFinalNewline) {
		return nil
	}
	end := "\n"
	if x.native && hasStyle(x.header, crlf) {
		end = "\r\n"
	}
	_, err := x.w.WriteString(end)
	return err
}

// arrival undoes what Dequantise did.
func (x *export) arrival(row *traceformat.Row) int64 {
	at := row.Arrival
	if c := x.header.Clock; c.Dequantised != "" && c.Tick > 0 {
		at -= at % c.Tick
		if off, err := strconv.ParseInt(x.fields[offTick], 10, 64); err == nil && time.Duration(off).Abs() < c.Tick {
			at += time.Duration(off)
		}
	}
	return int64(at)
}

// number gives v as the source wrote it, if it is still that value, and as
// canonical otherwise.
func (x *export) number(key string, v int64, scale int, canonical string) string {
	raw, ok := x.fields[key]
	if !ok {
		return canonical
	}
	text := rawText(raw)
	if got, _, err := parseDecimal([]byte(text), scale); err != nil || got != v {
		return canonical
	}
	return text
}

// rawText takes the quotes off a value of Extra, if it has any.
func rawText(raw string) string {
	if strings.HasPrefix(raw, `"`) {
		return unquote([]byte(raw))
	}
	return raw
}

// tokens gives a length that the format cannot do without.
func (x *export) tokens(key, column string, v traceformat.Opt[int32]) (string, error) {
	n, ok := v.Get()
	if !ok {
		return "", fmt.Errorf("%w: no %s", errIncomplete, column)
	}
	return x.number(key, int64(n), 0, strconv.Itoa(int(n))), nil
}

// date gives the Unix time of a row.
func (x *export) date(row *traceformat.Row) int64 { return x.Start.UnixNano() + x.arrival(row) }

// needDates refuses a trace that is not tied to the calendar.
func (x *export) needDates() error {
	if x.Start.IsZero() {
		return errors.New("the trace has no start date, and the format needs one: say when it starts")
	}
	if y := x.Start.Year(); y < 1970 || y > 2115 {
		return fmt.Errorf("the trace starts in the year %d, want 1970 to 2115", y)
	}
	return nil
}

// needBlocks refuses a trace whose block ids are not what the format means by
// them.
func (x *export) needBlocks(size int32, partial ...traceformat.PartialRule) error {
	b := x.header.Blocks
	switch {
	case x.OmitBlocks:
		return nil
	case b.Size == 0 && x.native:
		return nil // a file of this format without any
	case b.Size == 0:
		return errors.New("the trace has no block ids; ask for a file without them if that will do")
	case b.Size != size && !x.native:
		return fmt.Errorf("the trace has blocks of %d tokens and the format of %d; ask for a file without block ids if that will do", b.Size, size)
	case !slices.Contains(partial, b.Partial):
		return fmt.Errorf("the trace says %q of a partial last block and the format %q; ask for a file without block ids if that will do", b.Partial, partial[0])
	case b.Scope != traceformat.ScopeGlobal:
		return fmt.Errorf("the block ids of the trace compare within a %s and those of the format within the file; ask for a file without block ids if that will do", b.Scope)
	}
	return nil
}

// A column names a field of a row and says whether it is filled.
type column struct {
	name string
	set  func(*traceformat.Row) bool
}

// columns are those of a row, except what every format has: id and arrival.
var columns = []column{
	{"lap", func(r *traceformat.Row) bool { return r.Lap != 0 }},
	{"origin", func(r *traceformat.Row) bool { return r.Origin != "" }},
	{"origin_id", func(r *traceformat.Row) bool { return r.OriginID.OK }},
	{"session_id", func(r *traceformat.Row) bool { return r.Session.OK }},
	{"parent_id", func(r *traceformat.Row) bool { return r.Parent.OK }},
	{"turn", func(r *traceformat.Row) bool { return r.Turn.OK }},
	{"think_ns", func(r *traceformat.Row) bool { return r.Think.OK }},
	{"client_id", func(r *traceformat.Row) bool { return r.Client != "" }},
	{"model", func(r *traceformat.Row) bool { return r.Model != "" }},
	{"endpoint", func(r *traceformat.Row) bool { return r.Endpoint != "" }},
	{"class", func(r *traceformat.Row) bool { return r.Class != "" }},
	{"prompt_tokens", func(r *traceformat.Row) bool { return r.PromptTokens.OK }},
	{"output_tokens", func(r *traceformat.Row) bool { return r.OutputTokens.OK }},
	{"prompt_tokens_source", func(r *traceformat.Row) bool { return r.PromptTokensSource != "" }},
	{"output_tokens_source", func(r *traceformat.Row) bool { return r.OutputTokensSource != "" }},
	{"max_tokens", func(r *traceformat.Row) bool { return r.MaxTokens.OK }},
	{"n", func(r *traceformat.Row) bool { return r.N.OK }},
	{"stream", func(r *traceformat.Row) bool { return r.Stream.OK }},
	{"temperature", func(r *traceformat.Row) bool { return r.Temperature.OK }},
	{"prefix_blocks", func(r *traceformat.Row) bool { return r.PrefixBlocks != nil }},
	{"output_blocks", func(r *traceformat.Row) bool { return r.OutputBlocks != nil }},
	{"delay_ns", func(r *traceformat.Row) bool { return r.Delay.OK }},
	{"extra", func(r *traceformat.Row) bool { return r.Extra != "" }},
	{"cached_tokens", func(r *traceformat.Row) bool { return r.CachedTokens.OK }},
	{"reasoning_tokens", func(r *traceformat.Row) bool { return r.ReasoningTokens.OK }},
	{"media_tokens", func(r *traceformat.Row) bool { return r.MediaTokens.OK }},
	{"ttft_ns", func(r *traceformat.Row) bool { return r.TTFT.OK }},
	{"e2e_ns", func(r *traceformat.Row) bool { return r.E2E.OK }},
	{"ttft_source", func(r *traceformat.Row) bool { return r.TTFTSource != "" }},
	{"chunk_ns", func(r *traceformat.Row) bool { return r.ChunkTimes != nil }},
	{"chunk_tokens", func(r *traceformat.Row) bool { return r.ChunkTokens != nil }},
	{"status", func(r *traceformat.Row) bool { return r.Status.OK }},
	{"finish_reason", func(r *traceformat.Row) bool { return r.FinishReason != "" }},
	{"outcome", func(r *traceformat.Row) bool { return r.Result != "" }},
	{"error", func(r *traceformat.Row) bool { return r.Error != "" }},
	{"abort_ns", func(r *traceformat.Row) bool { return r.Abort.OK }},
	{"scheduled_ns", func(r *traceformat.Row) bool { return r.Scheduled.OK }},
	{"wake_ns", func(r *traceformat.Row) bool { return r.Wake.OK }},
	{"conn_ns", func(r *traceformat.Row) bool { return r.Conn.OK }},
	{"conn_reused", func(r *traceformat.Row) bool { return r.ConnReused.OK }},
	{"sent_ns", func(r *traceformat.Row) bool { return r.Sent.OK }},
	{"headers_ns", func(r *traceformat.Row) bool { return r.Headers.OK }},
	{"first_event_ns", func(r *traceformat.Row) bool { return r.FirstEvent.OK }},
	{"close_ns", func(r *traceformat.Row) bool { return r.Close.OK }},
	{"served_prompt_tokens", func(r *traceformat.Row) bool { return r.ServedPromptTokens.OK }},
	{"served_output_tokens", func(r *traceformat.Row) bool { return r.ServedOutputTokens.OK }},
	{"served_cached_tokens", func(r *traceformat.Row) bool { return r.ServedCachedTokens.OK }},
	{"prompt_digest", func(r *traceformat.Row) bool { return r.PromptDigest.OK }},
	{"server_queue_ns", func(r *traceformat.Row) bool { return r.ServerQueue.OK }},
	{"server_prefill_ns", func(r *traceformat.Row) bool { return r.ServerPrefill.OK }},
	{"server_ttft_ns", func(r *traceformat.Row) bool { return r.ServerTTFT.OK }},
	{"server_e2e_ns", func(r *traceformat.Row) bool { return r.ServerE2E.OK }},
}

func columnsBut(held []string) []column {
	var out []column
	for _, c := range columns {
		if !slices.Contains(held, c.name) {
			out = append(out, c)
		}
	}
	return out
}
