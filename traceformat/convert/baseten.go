package convert

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/parquet-go/parquet-go"

	"reprise/traceformat"
)

const basetenName = "baseten"

// Columns of a Baseten trace, as AIPerf's baseten_trace loader reads them.
const (
	basetenTime      = "timestamp_start_unix_ms"
	basetenPrompt    = "prompt"
	basetenIn        = "input_tokens"
	basetenOut       = "output_tokens"
	basetenHashes    = "total_hashes"
	basetenBlock     = "block_size"
	basetenSession   = "provided_session_id"
	basetenSession2  = "poor_man_session_id"
	basetenE2E       = "duration_e2e_ms"
	basetenTTFT      = "duration_ttft_ms"
	basetenCanceled  = "request_canceled"
	basetenCached    = "cached_tokens_reference"
	basetenModel     = "model_name"
	basetenOrg       = "org_id"
	basetenText      = "output_text"
	basetenVersion   = "__version__"
	basetenFeatures  = "features"
	basetenHashesLen = "total_hashes_len"
	basetenSpec      = "speculation_ratio"
)

var basetenFormat = traceformat.Format{
	Name: basetenName,
	DetectParquet: func(columns []string) bool {
		for _, c := range []string{basetenTime, basetenIn, basetenOut} {
			if !slices.Contains(columns, c) {
				return false
			}
		}
		return true
	},
	OpenParquet: openBaseten,
}

func openBaseten(path, name string, o *traceformat.OpenOptions) (traceformat.Reader, error) {
	p, err := readParams(o)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, &traceformat.RowError{Name: name, Row: -1, Err: err}
	}
	b := &baseten{name: name}
	h := newHeader(basetenName)
	h.Lengths = traceformat.LengthsCumulative // a row holds the prompt as it was sent
	r, err := b.reader(f, h, p, o)
	// All is read and sorted, or in memory, by now.
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	return r, nil
}

func (b *baseten) reader(f *os.File, h *traceformat.Header, p params, o *traceformat.OpenOptions) (_ traceformat.Reader, err error) {
	defer func() {
		// The library panics on some damage, in the footer and inside of pages.
		if p := recover(); p != nil {
			err = &traceformat.RowError{Name: b.name, Row: b.rows, Err: fmt.Errorf("the file is damaged: %v", p)}
		}
	}()
	if err := b.openFile(f); err != nil {
		return nil, &traceformat.RowError{Name: b.name, Row: -1, Err: err}
	}
	defer b.closePages()
	sorted, err := sortSource(b, o)
	if err != nil {
		return nil, err
	}
	return newReader(sorted, readerConfig{header: h, unit: time.Millisecond, dated: true, params: p})
}

type baseten struct {
	name   string
	file   *parquet.File
	group  int   // next row group
	left   int64 // rows left in the current one
	rows   int64
	leaves []*leaf
	nulls  bool                       // total_hashes may be null, which is not the same as empty
	values map[string][]parquet.Value // of the current row, by column
	extra  extra

	size    int32 // of blocks
	whole   bool  // some row has an id less than the last block would need
	partial bool  // some row has an id for it
}

// A leaf reads one column, row by row.
type leaf struct {
	name   string
	index  int
	pages  parquet.Pages
	values parquet.ValueReader
	buf    []parquet.Value
	ready  []parquet.Value // of buf, not yet read
	row    []parquet.Value
}

func (b *baseten) openFile(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	b.file, err = parquet.OpenFile(f, info.Size(), parquet.SkipBloomFilters(true), parquet.SkipPageIndex(true))
	if err != nil {
		return fmt.Errorf("not a readable Parquet file: %w", err)
	}
	schema := b.file.Schema()
	for _, path := range schema.Columns() {
		l, ok := schema.Lookup(path...)
		if !ok {
			continue
		}
		name := path[0]
		kind := l.Node.Type().Kind()
		known := slices.Contains(basetenColumns, name)
		switch {
		case name == basetenPrompt || name == basetenText:
			b.extra.drop(name)
			continue
		case !known && (kind == parquet.ByteArray || l.MaxRepetitionLevel > 0 || len(path) > 1):
			b.extra.drop(name) // it may be text, and reading it may take long
			continue
		case l.MaxRepetitionLevel > 0 && name != basetenHashes || l.MaxRepetitionLevel > 1:
			return fmt.Errorf("column %s is a list, want one value a row", strings.Join(path, "."))
		case slices.ContainsFunc(b.leaves, func(l *leaf) bool { return l.name == name }):
			return fmt.Errorf("column %s has more parts than one", name)
		}
		if name == basetenHashes {
			for _, f := range schema.Fields() {
				b.nulls = b.nulls || f.Name() == name && f.Optional()
			}
		}
		b.leaves = append(b.leaves, &leaf{name: name, index: l.ColumnIndex, buf: make([]parquet.Value, 1024)})
	}
	for _, c := range []string{basetenTime, basetenIn, basetenOut} {
		if !slices.ContainsFunc(b.leaves, func(l *leaf) bool { return l.name == c }) {
			return fmt.Errorf("no column %s: %w", c, traceformat.ErrFormat)
		}
	}
	b.values = make(map[string][]parquet.Value, len(b.leaves))
	return nil
}

var basetenColumns = []string{
	basetenTime, basetenPrompt, basetenIn, basetenOut, basetenHashes, basetenBlock, basetenSession, basetenSession2,
	basetenE2E, basetenTTFT, basetenCanceled, basetenCached, basetenModel, basetenOrg, basetenText, basetenVersion,
	basetenFeatures, basetenHashesLen, basetenSpec,
}

func (b *baseten) closePages() {
	for _, l := range b.leaves {
		if l.pages != nil {
			_ = l.pages.Close() // only memory is behind it
			l.pages, l.values = nil, nil
		}
	}
}

// nextGroup starts the next row group that has rows.
func (b *baseten) nextGroup() error {
	for b.left == 0 {
		b.closePages()
		groups := b.file.RowGroups()
		if b.group == len(groups) {
			return io.EOF
		}
		g := groups[b.group]
		b.group++
		b.left = g.NumRows()
		for _, l := range b.leaves {
			l.pages, l.values, l.ready = g.ColumnChunks()[l.index].Pages(), nil, nil
		}
	}
	return nil
}

// more fills ready, or returns io.EOF at the end of the row group.
func (l *leaf) more() error {
	for {
		if l.values == nil {
			p, err := l.pages.ReadPage()
			if err != nil {
				return err
			}
			l.values = p.Values()
		}
		n, err := l.values.ReadValues(l.buf)
		if err != nil && err != io.EOF {
			return err
		}
		if err == io.EOF {
			l.values = nil
		}
		if n > 0 {
			l.ready = l.buf[:n]
			return nil
		}
	}
}

// next reads the values of the next row.
func (l *leaf) next() error {
	l.row = l.row[:0]
	for {
		if len(l.ready) == 0 {
			if err := l.more(); err == io.EOF && len(l.row) > 0 {
				return nil
			} else if err == io.EOF {
				return io.ErrUnexpectedEOF
			} else if err != nil {
				return err
			}
		}
		if len(l.row) > 0 && l.ready[0].RepetitionLevel() == 0 {
			return nil
		}
		if len(l.row) > maxBlocks {
			return fmt.Errorf("more than %d values in a row", maxBlocks)
		}
		// Values of a page stand until the page after is read; strings are
		// copied, since the row may be completed after that.
		l.row = append(l.row, l.ready[0].Clone())
		l.ready = l.ready[1:]
	}
}

func (b *baseten) where(err error) error {
	return &traceformat.RowError{Name: b.name, Row: b.rows - 1, Err: err}
}

func (b *baseten) read(row *traceformat.Row) error {
	if err := b.nextGroup(); err != nil {
		return err
	}
	for _, l := range b.leaves {
		if err := l.next(); err != nil {
			return &traceformat.RowError{Name: b.name, Row: b.rows, Err: fmt.Errorf("column %s: %w", l.name, err)}
		}
		b.values[l.name] = l.row
	}
	row.ID = b.rows
	b.left--
	b.rows++
	if err := b.fill(row); err != nil {
		return b.where(err)
	}
	return nil
}

// value returns the value of a column, if it has one in this row.
func (b *baseten) value(column string) (parquet.Value, bool) {
	v := b.values[column]
	if len(v) == 0 || v[0].IsNull() {
		return parquet.Value{}, false
	}
	return v[0], true
}

// integer reads a whole number of any width. Pandas makes floats of integers
// where some are missing.
func (b *baseten) integer(column string) (int64, bool, error) {
	v, ok := b.value(column)
	if !ok {
		return 0, false, nil
	}
	var n int64
	switch v.Kind() {
	case parquet.Boolean:
		if v.Boolean() {
			n = 1
		}
	case parquet.Int32:
		n = int64(v.Int32())
	case parquet.Int64:
		n = v.Int64()
	case parquet.Float, parquet.Double:
		f := v.Double()
		if v.Kind() == parquet.Float {
			f = float64(v.Float())
		}
		if math.IsNaN(f) {
			return 0, false, nil // how pandas writes a missing number
		}
		if f != math.Trunc(f) || math.Abs(f) > 1<<53 {
			return 0, false, fmt.Errorf("%s %v is not a whole number", column, f)
		}
		n = int64(f)
	default:
		return 0, false, fmt.Errorf("%s has type %v, want a number", column, v.Kind())
	}
	if n < 0 {
		return 0, false, fmt.Errorf("%s %d %w", column, n, errNegative)
	}
	return n, true, nil
}

func (b *baseten) tokens(column string) (traceformat.Opt[int32], error) {
	n, ok, err := b.integer(column)
	if err != nil || !ok {
		return traceformat.Opt[int32]{}, err
	}
	if n > maxTokens {
		return traceformat.Opt[int32]{}, fmt.Errorf("%s %d is more than %d tokens", column, n, maxTokens)
	}
	return traceformat.Some(int32(n)), nil
}

func (b *baseten) millis(column string) (traceformat.Opt[time.Duration], error) {
	n, ok, err := b.integer(column)
	if err != nil || !ok {
		return traceformat.Opt[time.Duration]{}, err
	}
	if n > maxStamp/int64(time.Millisecond) {
		return traceformat.Opt[time.Duration]{}, fmt.Errorf("%s %d %w", column, n, errTooLarge)
	}
	return some(n * int64(time.Millisecond)), nil
}

// text reads a string, or a number as its digits.
func (b *baseten) text(column string) (s string, quoted, ok bool, err error) {
	v, ok := b.value(column)
	if !ok {
		return "", false, false, nil
	}
	if v.Kind() != parquet.ByteArray && v.Kind() != parquet.FixedLenByteArray {
		n, ok, err := b.integer(column)
		return strconv.FormatInt(n, 10), false, ok, err
	}
	s = string(v.ByteArray())
	if !utf8.ValidString(s) {
		return "", true, false, fmt.Errorf("%s is not UTF-8", column)
	}
	return s, true, true, nil
}

func (b *baseten) fill(row *traceformat.Row) error {
	b.extra.reset()
	at, err := b.millis(basetenTime)
	if err != nil {
		return err
	}
	if !at.OK {
		return fmt.Errorf("no %s: when was it sent?", basetenTime)
	}
	row.Arrival = at.V
	if row.PromptTokens, err = b.tokens(basetenIn); err != nil {
		return err
	}
	if row.OutputTokens, err = b.tokens(basetenOut); err != nil {
		return err
	}
	if !row.PromptTokens.OK || !row.OutputTokens.OK {
		return fmt.Errorf("no %s or no %s", basetenIn, basetenOut)
	}
	if row.CachedTokens, err = b.tokens(basetenCached); err != nil {
		return err
	}
	if row.E2E, err = b.millis(basetenE2E); err != nil {
		return err
	}
	if row.TTFT, err = b.millis(basetenTTFT); err != nil {
		return err
	}
	if row.Model, _, _, err = b.text(basetenModel); err != nil {
		return err
	}
	if canceled, ok, err := b.integer(basetenCanceled); err != nil {
		return err
	} else if ok && canceled != 0 {
		row.Result = traceformat.ResultClientAbort
	} else if ok {
		row.Result = traceformat.ResultOK
	}
	org, quoted, ok, err := b.text(basetenOrg)
	if err != nil {
		return err
	}
	row.Client = org
	if ok && !quoted {
		b.extra.keep(basetenOrg, []byte(org)) // a number, not a string
	}
	if err := b.session(row); err != nil {
		return err
	}
	if err := b.blocks(row); err != nil {
		return err
	}
	return b.others(row)
}

// session takes the session of the source where it gives one, and the one that
// was derived otherwise.
func (b *baseten) session(row *traceformat.Row) error {
	provided, quoted, ok, err := b.text(basetenSession)
	if err != nil {
		return err
	}
	if ok {
		key, hashed := sessionID(provided)
		if hashed || quoted {
			b.extra.field(basetenSession, rawValue(provided, quoted))
		}
		row.Session = traceformat.Some(key)
	}
	derived, ok, err := b.integer(basetenSession2)
	if err != nil || !ok {
		return err
	}
	b.extra.keep(basetenSession2, strconv.AppendInt(nil, derived, 10))
	if !row.Session.OK {
		key, _ := sessionID(basetenSession2 + ":" + strconv.FormatInt(derived, 10))
		row.Session = traceformat.Some(key)
	}
	return nil
}

func rawValue(s string, quoted bool) []byte {
	if quoted {
		return appendJSONString(nil, s)
	}
	return []byte(s)
}

func (b *baseten) blocks(row *traceformat.Row) error {
	size, err := b.tokens(basetenBlock)
	if err != nil {
		return err
	}
	if size.OK {
		if size.V < 1 {
			return fmt.Errorf("%s is %d", basetenBlock, size.V)
		}
		if b.size != 0 && size.V != b.size {
			return fmt.Errorf("%s is %d after %d: a trace has one block size", basetenBlock, size.V, b.size)
		}
		b.size = size.V
	}
	values, ok := b.values[basetenHashes]
	if !ok || b.nulls && len(values) == 1 && values[0].IsNull() && values[0].DefinitionLevel() == 0 {
		return nil
	}
	ids := make([]uint64, 0, len(values))
	for _, v := range values {
		switch {
		case v.IsNull() && len(values) == 1: // a list of nothing
		case v.Kind() == parquet.Int64 && !v.IsNull():
			ids = append(ids, v.Uint64())
		case v.Kind() == parquet.Int32 && !v.IsNull():
			ids = append(ids, uint64(v.Uint32()))
		default:
			return fmt.Errorf("%s holds something else than integers", basetenHashes)
		}
	}
	row.PrefixBlocks = ids
	if size.OK && row.PromptTokens.V%size.V != 0 && len(ids) > 0 {
		switch len(ids) {
		case int(row.PromptTokens.V / size.V):
			b.whole = true
		case blocksKept(row.PromptTokens.V, size.V):
			b.partial = true
		default:
			b.whole, b.partial = true, true // neither rule
		}
	}
	return nil
}

// others keeps what has no column.
func (b *baseten) others(row *traceformat.Row) error {
	for _, l := range b.leaves {
		switch l.name {
		case basetenVersion, basetenFeatures, basetenSpec, basetenHashesLen:
		default:
			if slices.Contains(basetenColumns, l.name) {
				continue
			}
		}
		v, ok := b.value(l.name)
		if !ok {
			continue
		}
		var text []byte
		switch v.Kind() {
		case parquet.Boolean, parquet.Int32, parquet.Int64:
			text = []byte(v.String())
		case parquet.Float, parquet.Double:
			// The shortest text that gives the same float back.
			bits, f := 64, v.Double()
			if v.Kind() == parquet.Float {
				bits, f = 32, float64(v.Float())
			}
			if math.IsNaN(f) || math.IsInf(f, 0) {
				continue
			}
			text = strconv.AppendFloat(nil, f, 'g', -1, bits)
		default:
			s, _, _, err := b.text(l.name)
			if err != nil {
				return err
			}
			text = appendJSONString(nil, s)
		}
		b.extra.field(l.name, text)
	}
	row.Extra = b.extra.result()
	return nil
}

func (b *baseten) finish(h *traceformat.Header) {
	if b.size > 0 {
		h.Blocks = traceformat.Blocks{Size: b.size, Scheme: "baseten", Scope: traceformat.ScopeGlobal}
		switch {
		case b.whole && !b.partial:
			h.Blocks.Partial = traceformat.PartialDropped
		case b.partial && !b.whole:
			h.Blocks.Partial = traceformat.PartialKept
		}
	}
	finishText(h, nil, b.extra.dropped)
}

// basetenRow is a row as it is exported. Prompts and answers are not ours to
// give: prompt is required of the format and empty.
type basetenRow struct {
	Time      int64    `parquet:"timestamp_start_unix_ms"`
	Prompt    string   `parquet:"prompt"`
	In        int32    `parquet:"input_tokens"`
	Out       int32    `parquet:"output_tokens"`
	Hashes    []uint64 `parquet:"total_hashes,optional,list"`
	Block     *int32   `parquet:"block_size,optional"`
	Session   *string  `parquet:"provided_session_id,optional"`
	Session2  *int64   `parquet:"poor_man_session_id,optional"`
	E2E       *int64   `parquet:"duration_e2e_ms,optional"`
	TTFT      *int64   `parquet:"duration_ttft_ms,optional"`
	Canceled  *int32   `parquet:"request_canceled,optional"`
	Cached    *int32   `parquet:"cached_tokens_reference,optional"`
	Model     *string  `parquet:"model_name,optional"`
	Org       *string  `parquet:"org_id,optional"`
	Spec      *float64 `parquet:"speculation_ratio,optional"`
	Text      *string  `parquet:"output_text,optional"`
	Version   *string  `parquet:"__version__,optional"`
	Features  *string  `parquet:"features,optional"`
	HashesLen *int64   `parquet:"total_hashes_len,optional"`
}

// basetenBatch is how many rows are handed to the Parquet writer at a time.
const basetenBatch = 1024

// basetenTarget writes a Parquet file.
type basetenWriter struct {
	w    *parquet.GenericWriter[basetenRow]
	rows []basetenRow
}

var basetenTarget = target{
	holds: []string{
		"prompt_tokens", "output_tokens", "prefix_blocks", "session_id", "e2e_ns", "ttft_ns", "cached_tokens", "model", "client_id", "outcome",
	},
	open: func(x *export) error {
		if err := x.needDates(); err != nil {
			return err
		}
		x.baseten = &basetenWriter{w: parquet.NewGenericWriter[basetenRow](x.w, parquet.Compression(&parquet.Zstd), parquet.MaxRowsPerRowGroup(131_072))}
		return nil
	},
	write: writeBaseten,
	close: func(x *export) error {
		if err := x.baseten.flush(); err != nil {
			return err
		}
		return x.baseten.w.Close()
	},
}

func (b *basetenWriter) flush() error {
	_, err := b.w.Write(b.rows)
	b.rows = b.rows[:0]
	return err
}

func writeBaseten(x *export, row *traceformat.Row) error {
	if !row.PromptTokens.OK || !row.OutputTokens.OK {
		return fmt.Errorf("%w: no prompt_tokens or no output_tokens", errIncomplete)
	}
	out := basetenRow{
		Time: x.wholeMillis("arrival_ns", time.Duration(x.date(row))),
		In:   row.PromptTokens.V, Out: row.OutputTokens.V,
		Hashes: slices.Clone(row.PrefixBlocks),
		Cached: pointer(row.CachedTokens),
		E2E:    x.optMillis("e2e_ns", row.E2E),
		TTFT:   x.optMillis("ttft_ns", row.TTFT),
	}
	if x.OmitBlocks {
		if out.Hashes != nil {
			x.lose("prefix_blocks", "")
		}
		out.Hashes = nil
	} else if size := x.header.Blocks.Size; size > 0 {
		out.Block = &size
	}
	if row.Model != "" {
		out.Model = &row.Model
	}
	if row.Client != "" {
		out.Org = &row.Client
	}
	if row.Result != "" {
		canceled := int32(0)
		if row.Result == traceformat.ResultClientAbort {
			canceled = 1
		}
		out.Canceled = &canceled
		if canceled == 0 && row.Result != traceformat.ResultOK {
			x.lose("outcome", "only whether it was cancelled is left")
		}
	}
	if !x.native && row.Session.OK {
		session := formatDecimal(row.Session.V, 0)
		out.Session = &session
	}
	if x.native {
		x.basetenExtra(&out, row)
	}
	model, org := cloned(out.Model), cloned(out.Org) // row is not ours to keep
	out.Model, out.Org = model, org
	x.baseten.rows = append(x.baseten.rows, out)
	if len(x.baseten.rows) == basetenBatch {
		return x.baseten.flush()
	}
	return nil
}

// basetenExtra puts back what the source had and no column holds.
func (x *export) basetenExtra(out *basetenRow, row *traceformat.Row) {
	text := func(key string) *string {
		raw, ok := x.fields[key]
		if !ok {
			return nil
		}
		s := rawText(raw)
		return &s
	}
	integer := func(key string) *int64 {
		n, err := strconv.ParseInt(x.fields[key], 10, 64)
		if err != nil {
			return nil
		}
		return &n
	}
	out.Version, out.Features = text(basetenVersion), text(basetenFeatures)
	out.HashesLen, out.Session2 = integer(basetenHashesLen), integer(basetenSession2)
	var f float64
	if json.Unmarshal([]byte(x.fields[basetenSpec]), &f) == nil {
		out.Spec = &f
	}
	for _, key := range slices.Sorted(maps.Keys(x.fields)) {
		if !slices.Contains(basetenColumns, key) && key != offTick {
			x.lose(key, "")
		}
	}
	if out.Session = text(basetenSession); out.Session == nil && row.Session.OK && out.Session2 == nil {
		s := formatDecimal(row.Session.V, 0)
		out.Session = &s
	}
}

// wholeMillis gives d in milliseconds and notes where that is less than d.
func (x *export) wholeMillis(column string, d time.Duration) int64 {
	if d%time.Millisecond != 0 {
		x.lose(column, "cut to 1 ms")
	}
	return d.Milliseconds()
}

func (x *export) optMillis(column string, d traceformat.Opt[time.Duration]) *int64 {
	if !d.OK {
		return nil
	}
	ms := x.wholeMillis(column, d.V)
	return &ms
}

func pointer[T any](o traceformat.Opt[T]) *T {
	if !o.OK {
		return nil
	}
	return &o.V
}

func cloned(s *string) *string {
	if s == nil {
		return nil
	}
	c := strings.Clone(*s)
	return &c
}
